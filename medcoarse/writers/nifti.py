"""NIfTI: label maps for ITK-SNAP and everything else, probabilities with the classes as a fourth axis."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medcoarse.files import write_atomically
from medcoarse.writers.segmentation import Segmentation

_COMMENT = 6
"""Code of an extension that holds text."""


def write_nifti(path: Path, segmentation: Segmentation) -> None:
    """Write .nii or .nii.gz; the names of the classes are in an extension of the header, as JSON.

    MONAI's NibabelWriter drops the last axis of a volume of one slice, or adds one after it; here *S stays *S.

    Args:
        path: where to.
        segmentation: labels, or probabilities, which become (*S, L).

    Example:
        >>> import tempfile
        >>> from medcoarse.writers.segmentation import make_segmentation
        >>> file = Path(tempfile.mkdtemp()) / "a.nii.gz"
        >>> write_nifti(file, make_segmentation(np.ones((4, 3, 1), int), np.eye(4), ["background", "liver"]))
        >>> nib.load(file).shape
        (4, 3, 1)
    """
    values = segmentation.values
    if segmentation.is_probabilities:
        axes = values.ndim - 1
        values = np.moveaxis(values, 0, -1)
        if axes == 2:
            values = values[:, :, None]  # the third axis of NIfTI is one of space
    affine = np.eye(4) if segmentation.grid.affine is None else segmentation.grid.affine
    image: Any = nib.Nifti1Image(values, affine)  # type: ignore[no-untyped-call]
    image.set_sform(affine, code=1)
    image.set_qform(affine if _is_rigid(affine) else None, code=1 if _is_rigid(affine) else 0)
    image.header["intent_code"] = 0 if segmentation.is_probabilities else 1002  # labels
    names = json.dumps({"labels": {segment.number: segment.name for segment in segmentation.segments}})
    image.header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, names.encode()))
    data = image.to_bytes()
    write_atomically(path, lambda file: file.write(gzip.compress(data, 6, mtime=0) if path.suffix == ".gz" else data))


def _is_rigid(affine: np.ndarray[Any, Any]) -> bool:
    """Whether the axes are at right angles: the other form that NIfTI has for an affine holds nothing else."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-5))
