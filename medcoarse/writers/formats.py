"""Which writer writes a file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from medcoarse.writers.dicom_seg import Algorithm, write_dicom_seg
from medcoarse.writers.nifti import write_nifti
from medcoarse.writers.nrrd import write_nrrd, write_seg_nrrd
from medcoarse.writers.picture import write_png
from medcoarse.writers.segmentation import Segmentation, WriteError

SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".dcm", ".png")
"""The longest of those that a name ends with counts."""

IMAGE_SUFFIXES = (*SUFFIXES, ".mha", ".mhd", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The ending that decides about the format.

    Raises:
        WriteError: none of those that are written.

    Example:
        >>> suffix_of("a.b.seg.nrrd"), suffix_of("A.NII.GZ")
        ('.seg.nrrd', '.nii.gz')
    """
    name = Path(path).name.lower()
    found = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    if found is None:
        raise WriteError(f"{Path(path).name}: no format that is written; end its name on one of {', '.join(SUFFIXES)}")
    return found


def stem_of(path: str | os.PathLike[str]) -> str:
    """The name without the ending of an image, also one of two parts.

    Example:
        >>> stem_of("x/case.1.nii.gz"), stem_of("x/series")
        ('case.1', 'series')
    """
    name = Path(path).name
    ending = next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(ending)] if ending else name


def write_segmentation(
    path: str | os.PathLike[str],
    segmentation: Segmentation,
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    algorithm: Algorithm | None = None,
) -> Path:
    """Write a segmentation in the format that the ending of the name asks for, whole or not at all.

    Args:
        path: ends on one of `SUFFIXES`.
        segmentation: from `medcoarse.writers.segmentation.make_segmentation`.
        source: DICOM series that was segmented, its folder or files; for .dcm only.
        algorithm: what made it, for .dcm only.

    Raises:
        WriteError: a format that is none, or that cannot hold this.

    Example:
        >>> import numpy as np
        >>> from medcoarse.writers.segmentation import make_segmentation
        >>> found = make_segmentation(np.zeros((2, 2, 2), int), np.eye(4), ["background", "liver"])
        >>> write_segmentation("a.png", found)
        Traceback (most recent call last):
        medcoarse.writers.segmentation.WriteError: PNG holds pictures of at most 255 classes, got (2, 2, 2); ...
    """
    path, suffix = Path(path), suffix_of(path)
    if suffix == ".dcm":
        if source is None:
            raise WriteError(f"{path}: DICOM SEG needs the DICOM series that was segmented; write .nii.gz without one")
        write_dicom_seg(path, segmentation, source, algorithm)
    else:
        writers = {".nii.gz": write_nifti, ".nii": write_nifti, ".seg.nrrd": write_seg_nrrd, ".nrrd": write_nrrd}
        writers.get(suffix, write_png)(path, segmentation)
    return path
