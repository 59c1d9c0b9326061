"""Label maps in NIfTI, as ITK-SNAP, MONAI Label and 3D Slicer write them."""

from __future__ import annotations

import os
import zlib

import nibabel as nib
import numpy as np

from medcoarse.datalist import DataError
from medcoarse.readers.drawing import (
    Drawing,
    Grid,
    Layer,
    checked_affine,
    checked_shape,
    damaged,
    existing,
    label_values,
    require_bytes,
)


def read_nifti(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read a label map in NIfTI 1 or 2, plain or gzipped.

    Args:
        path: a .nii or .nii.gz file.
        reference: not needed.

    Raises:
        DataError: damaged, absurd, or no label map.

    Example:
        >>> import tempfile
        >>> file = tempfile.mkdtemp() + "/drawing.nii.gz"
        >>> nib.save(nib.Nifti1Image(np.eye(3, dtype=np.uint8)[..., None], np.diag([1, 1, 3, 1])), file)
        >>> drawing = read_nifti(file)
        >>> drawing.grid.shape, np.unique(drawing.layers[0].values).tolist()
        ((3, 3, 1), [0, 1])
    """
    path = existing(path)
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):  # NIfTI 2 is derived from it
            raise damaged(path, "NIfTI file")
        shape = checked_shape(path, image.shape[:3] if set(image.shape[3:]) <= {1} else image.shape)
        size = int(np.prod(shape)) * image.get_data_dtype().itemsize  # type: ignore[no-untyped-call]
        require_bytes(path, size, path.suffix == ".gz")
        affine = checked_affine(path, np.asarray(_with_one_place(image).affine, dtype=np.float64))
        values = label_values(path, np.asanyarray(image.dataobj).reshape(shape))
    except DataError:
        raise
    except (Exception, zlib.error) as error:  # nibabel promises no types
        raise damaged(path, "NIfTI file", error) from None
    return Drawing(Grid(shape, affine), (Layer(values),), segments=False)


def _with_one_place(image: nib.Nifti1Pair) -> nib.Nifti1Pair:
    """Where a header contradicts itself about the size of voxels, MONAI says which of its two places counts; a drawing
    has to lie where MONAI puts its image, whose header it was given.
    """
    zooms = image.header.get_zooms()[:3]  # type: ignore[no-untyped-call]
    if np.allclose(np.linalg.norm(image.affine[:3, :3], axis=0)[: len(zooms)], zooms):
        return image
    from monai.data.utils import correct_nifti_header_if_necessary  # takes seconds, and few need it

    found: nib.Nifti1Pair = correct_nifti_header_if_necessary(image)  # type: ignore[no-untyped-call]
    return found
