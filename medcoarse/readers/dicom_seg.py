"""Segmentations in DICOM (SEG), read by highdicom."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.datalist import DataError
from medcoarse.readers.dicom import pydicom_module, quietly
from medcoarse.readers.drawing import Drawing, Grid, Layer, checked_affine, checked_shape, damaged, existing, pack

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")

_INSTALL = "pip install highdicom"
_MAX_SLICES = 20_000
_MAX_SEGMENTS = 65_535
_PER_BYTE, _PER_COMPRESSED_BYTE = 8, 8 * 1100
"""Pixels of one bit in a byte; compressed no better than deflate can."""


def read_dicom_seg(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read a DICOM SEG object; segments that overlap are kept in layers, the names are the segment labels.

    Frames that the file leaves out are undrawn slices. The grid is that of ITK's image of the same series: columns,
    rows, slices, right-handed.

    Args:
        path: the DICOM file.
        reference: not needed.

    Raises:
        DataError: damaged, absurd, no segmentation, one of fractions or of a microscope's slide, without a regular
            grid, or highdicom is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.dcm"
        >>> _ = file.write_bytes(b"no DICOM")
        >>> read_dicom_seg(file)
        Traceback (most recent call last):
        medcoarse.datalist.DataError: ...a.dcm: damaged or no DICOM SEG file (InvalidDicomError); export it again
    """
    path = existing(path)
    pydicom_module()
    highdicom = highdicom_module(path)
    try:
        with quietly():
            _check(path)
            found = highdicom.seg.segread(path)
            geometry = found.get_volume_geometry(allow_missing_positions=True)
            if geometry is None:
                raise DataError(f"{path}: its slices form no regular volume; export it on the grid of its series")
            rows_first = checked_shape(path, geometry.spatial_shape)
            if rows_first[0] > _MAX_SLICES:
                raise DataError(
                    f"{path}: spans {rows_first[0]} slices, at most {_MAX_SLICES} are read; export it again"
                )
            affine, flipped = _right_handed(geometry)
            shape = rows_first[::-1]
            layers = _layers(path, found, shape, flipped)
            grid = Grid(shape, checked_affine(path, affine), str(found.FrameOfReferenceUID))
    except DataError:
        raise
    except Exception as error:  # pydicom and highdicom promise no types, and what they say may quote the header
        raise damaged(path, "DICOM SEG file", error) from None
    return Drawing(grid, layers, segments=True)


def highdicom_module(path: Path) -> Any:
    """highdicom, which is an optional dependency.

    Raises:
        DataError: it is not installed; says how to install it.
    """
    try:
        import highdicom
    except ImportError:
        raise DataError(f"{path}: DICOM SEG is read with highdicom, which is not installed; {_INSTALL}") from None
    return highdicom


def _check(path: Path) -> None:
    """Refuse what cannot be a segmentation of this size, before pixels are read."""
    pydicom = pydicom_module()
    header = pydicom.dcmread(path, stop_before_pixels=True)
    if header.SOPClassUID not in SEG_CLASSES:
        raise DataError(f"{path}: is a DICOM file, but no segmentation; export a DICOM SEG")
    if header.get("SegmentationType") == "FRACTIONAL":
        raise DataError(f"{path}: has fractions, not drawings; export a binary segmentation")
    if "FrameOfReferenceUID" not in header or "TotalPixelMatrixRows" in header:
        raise DataError(f"{path}: has no place in a patient (a slide?); export it on the grid of its series")
    rows, columns, frames = int(header.Rows), int(header.Columns), int(header.NumberOfFrames)
    per_byte = _PER_COMPRESSED_BYTE if header.file_meta.TransferSyntaxUID.is_compressed else _PER_BYTE
    if min(rows, columns, frames) < 1 or rows * columns * frames > path.stat().st_size * per_byte:
        raise DataError(
            f"{path}: declares {frames} frames of {rows} x {columns}, which {path.stat().st_size} bytes cannot hold; "
            "cut short? export it again"
        )
    segments = len(header.SegmentSequence)
    if not 1 <= segments <= _MAX_SEGMENTS or len(header.PerFrameFunctionalGroupsSequence) != frames:
        raise damaged(path, "DICOM SEG file")


def _right_handed(geometry: Any) -> tuple[NDArray[np.float64], bool]:
    """RAS affine of (column, row, slice), and whether the slices are in reverse order."""
    affine = np.asarray(geometry.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    flipped = bool(np.linalg.det(affine[:3, :3]) < 0)
    if flipped:
        affine[:3, 3] += affine[:3, 2] * (geometry.spatial_shape[0] - 1)
        affine[:3, 2] *= -1
    affine[:2] *= -1  # left, posterior -> right, anterior
    return affine, flipped


def _layers(path: Path, found: Any, shape: tuple[int, ...], flipped: bool) -> tuple[Layer, ...]:
    """One label map if no segments overlap, which is quick; otherwise one segment after another."""
    names = {number: _name(found, number) for number in found.segment_numbers if number != 0}  # 0: background
    try:
        return (Layer(_values(found, list(names), flipped), names),)
    except RuntimeError:  # segments overlap; highdicom wants the file anew after that
        found = highdicom_module(path).seg.segread(path)
        whole = tuple(slice(0, size) for size in shape)
        masks = ((name, whole, _values(found, [number], flipped) > 0) for number, name in names.items())
        return pack(shape, masks)


def _name(found: Any, number: int) -> str:
    return str(found.get_segment_description(number).segment_label)


def _values(found: Any, numbers: list[int], flipped: bool) -> NDArray[Any]:
    values = found.get_volume(segment_numbers=numbers, combine_segments=True).array.transpose(2, 1, 0)
    return np.asarray(values[..., ::-1] if flipped else values)
