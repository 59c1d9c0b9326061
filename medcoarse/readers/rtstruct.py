"""Contours in DICOM (RTSTRUCT), on the grid of the image they were drawn on."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.datalist import DataError
from medcoarse.readers.dicom import pydicom_module, quietly
from medcoarse.readers.drawing import Drawing, Grid, NoGridError, checked_shape, damaged, existing, pack
from medcoarse.readers.shapes import Budget, Piece, Points, fill, stroke

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

_OFF_SLICE = 0.25
_BEYOND = 0.02
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OPEN = ("OPEN_PLANAR", "POINT")


def read_rtstruct(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read the contours of a structure set; the names are those of the regions of interest.

    A voxel belongs to a region if its centre lies inside an odd number of the region's contours in its slice, so a
    contour in a contour is a hole. Open contours and points are one voxel wide. A region with contours in no slice of
    the image, or that reaches far beyond it, as a couch does, is left out and named as unplaced.

    Args:
        path: the DICOM file.
        reference: grid of the image as it was drawn on, before any resampling; contours must lie in its slices, along
            any of its axes.

    Raises:
        DataError: damaged, absurd, no structure set, or no reference.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.dcm"
        >>> _ = file.write_bytes(b"no DICOM")
        >>> read_rtstruct(file, Grid((8, 8, 4), np.eye(4)))
        Traceback (most recent call last):
        medcoarse.datalist.DataError: ...a.dcm: damaged or no DICOM RTSTRUCT file (InvalidDicomError); export it again
    """
    path = existing(path)
    if reference is None or reference.affine is None or len(reference.shape) != 3:
        raise NoGridError(f"{path}: contours have no grid of their own; pass the image (a volume with an affine)")
    checked_shape(path, reference.shape)
    pydicom = pydicom_module()
    try:
        with quietly():
            data = pydicom.dcmread(path)
            if data.SOPClassUID != RTSTRUCT_CLASS:
                raise DataError(f"{path}: is a DICOM file, but no structure set; export an RTSTRUCT")
            frame = _frame_of_reference(path, data)
            regions = _regions(path, data, reference)
            unplaced: dict[str, str] = {}
            layers = pack(reference.shape, _pieces(path, regions, reference.shape, unplaced))
    except DataError:
        raise
    except Exception as error:  # pydicom promises no types, and what it says may quote the header
        raise damaged(path, "DICOM RTSTRUCT file", error) from None
    return Drawing(Grid(reference.shape, reference.affine, frame), layers, segments=True, unplaced=unplaced)


def _frame_of_reference(path: Path, data: Any) -> str | None:
    frames = {str(item.get("ReferencedFrameOfReferenceUID", "")) for item in data.StructureSetROISequence} - {""}
    if len(frames) > 1:
        raise DataError(f"{path}: its regions lie in {len(frames)} frames of reference; export those of one series")
    return frames.pop() if frames else None


def _regions(path: Path, data: Any, reference: Grid) -> list[tuple[str, list[tuple[str, Points]]]]:
    """Name and contours of every region: the type of the contour and its points as indices (N, 3)."""
    names: Mapping[int, str] = {int(item.ROINumber): str(item.ROIName) for item in data.StructureSetROISequence}
    to_index = np.linalg.inv(reference.affine)  # type: ignore[arg-type]
    found = []
    for region in data.ROIContourSequence:
        contours = []
        for contour in region.get("ContourSequence") or []:
            numbers = np.array(contour.ContourData, dtype=np.float64)
            if not len(numbers) or len(numbers) % 3 or not (np.abs(numbers) < 1e6).all():
                raise DataError(f"{path}: contours of no or not finite points; export it again")
            ras = numbers.reshape(-1, 3) * (-1, -1, 1)
            contours.append((str(contour.ContourGeometricType), ras @ to_index[:3, :3].T + to_index[:3, 3]))
        found.append((names[int(region.ReferencedROINumber)], contours))
    return found


class _UnplacedError(Exception):
    """Contours that do not lie on the image."""


def _pieces(
    path: Path, regions: list[tuple[str, list[tuple[str, Points]]]], shape: tuple[int, ...], unplaced: dict[str, str]
) -> Iterator[tuple[str, tuple[slice, ...], NDArray[np.bool_]]]:
    budget = Budget()
    for name, contours in regions:
        try:
            places = [_slice(points, shape) for _, points in contours]
        except _UnplacedError as error:
            unplaced[name] = f"{path}: region {name[:80]!r}: {error}"
            continue
        closed: dict[tuple[int, int], list[Points]] = defaultdict(list)
        for (kind, points), (axis, index) in zip(contours, places, strict=True):
            flat = np.delete(points, axis, axis=1)
            if kind in _CLOSED:
                closed[axis, index].append(flat)
            elif kind in _OPEN:
                yield name, *_in_slice(stroke(flat, _without(shape, axis), budget), axis, index)
            else:
                raise DataError(f"{path}: a contour that is neither planar nor a point; export planar contours")
        for (axis, index), outlines in closed.items():
            yield name, *_in_slice(fill(outlines, _without(shape, axis), budget), axis, index)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _in_slice(piece: Piece, axis: int, index: int) -> Piece:
    """A piece of a slice as one of the volume."""
    (first, second), drawn = piece
    box = [first, second]
    box.insert(axis, slice(index, index + 1))
    return tuple(box), np.expand_dims(drawn, axis)


def _slice(points: Points, shape: tuple[int, ...]) -> tuple[int, int]:
    """The axis along which a contour is flat, the last one if there are several, and its slice."""
    spread = np.ptp(points, axis=0)
    axis = 2 if spread[2] < _OFF_SLICE else int(spread.argmin())
    index = int(np.rint(points[:, axis].mean()))
    off = float(np.abs(points[:, axis] - index).max())
    if off > _OFF_SLICE or not 0 <= index < shape[axis]:
        raise _UnplacedError(
            f"a contour lies {off:.2g} slices off slice {index} of axis {axis}, the image has {shape[axis]}; pass the "
            "image it was drawn on, before any resampling"
        )
    beyond = np.maximum(-0.5 - points, points - (np.array(shape) - 0.5)).max(axis=0)
    if (beyond > 1 + _BEYOND * np.array(shape)).any():
        raise _UnplacedError(
            f"a contour reaches {float(beyond.max()):.4g} voxels beyond the image of {' x '.join(map(str, shape))}; "
            "pass the whole image it was drawn on"
        )
    return axis, index
