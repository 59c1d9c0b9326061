"""DICOM series: their files, whether they are one volume; a CT in Hounsfield units, and boxes of it on another grid."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medcoarse.datalist import DataError

AIR_HU = -1024
"""Written where there is nothing: outside the scan, and where a scanner padded with something lower."""

_SPACING_TOLERANCE = 0.1
_INDEX = "DICOMDIR"
"""What the table of contents of a disc is called, by the standard; it is a DICOM file, and no image."""
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient")
_NO_IMAGES = ("SEG", "RTSTRUCT", "SR", "KO", "PR", "RTPLAN", "RTRECORD", "REG", "FID", "RWV", "DOC")
"""Modalities of what is made of images, and often exported into their folder."""
_DIRECTION_TOLERANCE = 1e-3
_LENGTH_TOLERANCE, _RIGHT_ANGLE_TOLERANCE = 5e-2, 1e-2  # directions are written with few digits
_INSTALL = "pip install pydicom"


@dataclass(frozen=True)
class Series:
    """A CT volume and where it lies.

    Convention: arrays are indexed (slice, row, column), slices ascending along the normal of the image plane (towards
    the head for the usual axial series), and so are ``spacing_mm`` and the rows of ``axes``. Index i lies at
    ``origin_mm + (spacing_mm * i) @ axes`` in DICOM's patient coordinates (left, posterior, superior).
    """

    volume: npt.NDArray[np.int16]
    spacing_mm: npt.NDArray[np.float64]
    origin_mm: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    sop_uids: tuple[str, ...]
    z_mm: tuple[float, ...]
    """Third component of every slice's ImagePositionPatient, as LIDC's annotations state it."""


def pydicom_module() -> Any:
    """pydicom, which is an optional dependency.

    Raises:
        DataError: it is not installed; says how to install it.
    """
    try:
        import pydicom
    except ImportError:
        raise DataError(f"DICOM files are read with pydicom, which is not installed; {_INSTALL}") from None
    return pydicom


def read_tags(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, str]:
    """Some header fields of a DICOM file as text, empty where the file has none; no pixels are read.

    Raises:
        DataError: no DICOM file, or damaged.
    """
    header = _read(Path(path), stop_before_pixels=True, specific_tags=list(names))
    with quietly():
        return {name: str(header.get(name, "")) for name in names}


def referenced_series(path: str | os.PathLike[str]) -> frozenset[str]:
    """UIDs of the series that a segmentation or outlines were drawn on; none where the file does not say so.

    Raises:
        DataError: no DICOM file, or damaged.
    """
    file = Path(path)
    tags = ["ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"]
    header = _read(file, stop_before_pixels=True, specific_tags=tags)
    try:
        with quietly():
            found = list(header.get(tags[0]) or [])
            for frame in header.get(tags[1]) or []:
                for study in frame.get("RTReferencedStudySequence") or []:
                    found += study.get("RTReferencedSeriesSequence") or []
            return frozenset(str(one.SeriesInstanceUID) for one in found)
    except Exception as error:  # pydicom promises no types, and what it says may quote the header
        raise DataError(f"{file}: damaged DICOM file ({type(error).__name__}); export it again") from None


def is_dicom(path: Path) -> bool:
    """Whether a file is in DICOM's file format."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def series_files(folder: Path) -> list[Path]:
    """DICOM files in a folder, by name; not the index of a disc, nor hidden files, which operating systems leave."""
    entries = (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))
    return [entry for entry in entries if entry.is_file() and entry.name.upper() != _INDEX and is_dicom(entry)]


def is_of_images(header: Any) -> bool:
    """Whether a file is of a series of images, not a segmentation, outlines, a report, ... of one."""
    with quietly():
        return header.get("Modality") not in _NO_IMAGES


def first_image(folder: Path) -> Path | None:
    """The first file of a series, by name; None where there is none.

    Raises:
        DataError: damaged files before it.
    """
    files = series_files(folder)
    return next((file for file in files if is_of_images(read_tags(file, ["Modality"]))), None)


def require_one_series(path: Path) -> None:
    """Refuse a folder whose DICOM files are no single volume, which readers would stack nevertheless.

    Only headers are read. Fine are a file, a folder without DICOM files, and one with a single one; segmentations and
    the like beside the images do not count.

    Raises:
        DataError: several series, orientations, two slices at one position, a gap (see `read_series`), or a slice
            without a position. Numbers of slices say nothing: `medcoarse.transforms.series` goes by the positions.
    """
    files = series_files(path) if path.is_dir() else []
    names = ["SeriesInstanceUID", "Modality", *_PLACE]
    every = [(file, _read(file, stop_before_pixels=True, specific_tags=names)) for file in files]
    headers = [(file, header) for file, header in every if is_of_images(header)]
    series = {str(header.get("SeriesInstanceUID", "")) for _, header in headers}
    if len(series) > 1:
        raise DataError(f"{path}: holds {len(series)} DICOM series; keep the files of one series in a folder")
    if len(headers) < 2:
        return
    slices = [(file, _place(file, header)) for file, header in headers]
    _require_one(slices, "ImageOrientationPatient", path)
    normal = np.cross(*np.reshape(slices[0][1]["ImageOrientationPatient"], (2, 3)))
    _step(np.sort([facts["position"] @ normal for _, facts in slices]), 1.0, path)


def _place(path: Path, header: Any) -> dict[str, Any]:
    """Orientation and position of a slice."""
    try:
        return {
            "ImageOrientationPatient": _numbers(header, "ImageOrientationPatient", 6),
            "position": _numbers(header, "ImagePositionPatient", 3),
        }
    except Exception:  # as above: no type is promised, and the text may quote the header
        raise DataError(
            f"{path}: does not say where it lies in its series (position, orientation); several such files are no "
            "volume, put each into a folder of its own"
        ) from None


def read_series(paths: Iterable[str | os.PathLike[str]]) -> Series:
    """Assemble the slices of one CT series.

    Slices are sorted by their position along the normal of the image plane (ImagePositionPatient), whatever their
    names and instance numbers say. Hounsfield units = RescaleSlope * stored value + RescaleIntercept, rounded, and at
    least -1024: some scanners pad the corners with -2000.

    Args:
        paths: the files of the slices, in any order.

    Returns:
        The volume and its geometry.

    Raises:
        DataError: no slices, a damaged one, one that does not say where it lies, slices of several series, sizes or
            orientations, two slices at one place, or a gap, i.e. a step between slices that differs by over 10% from
            the usual one.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise DataError("no DICOM slices to read; fetch the series again")
    slices = [(path, _slice(path)) for path in files]
    where = files[0].parent
    _require_one(slices, "SeriesInstanceUID", where)
    _require_one(slices, "shape", where)
    _require_one(slices, "ImageOrientationPatient", where)
    _require_one(slices, "PixelSpacing", where)
    normal = slices[0][1]["axes"][0]
    facts = sorted((facts for _, facts in slices), key=lambda facts: float(facts["position"] @ normal))
    positions = np.array([facts["position"] for facts in facts])
    step = _step(positions @ facts[0]["axes"][0], facts[0]["thickness"], where)
    return Series(
        np.stack([facts["pixels"] for facts in facts]),
        np.array([step, *facts[0]["PixelSpacing"]]),
        positions[0],
        facts[0]["axes"],
        tuple(facts["sop_uid"] for facts in facts),
        tuple(positions[:, 2].tolist()),
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without pydicom's warnings: they quote the header, which may name people."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(path: Path, **options: Any) -> Any:
    pydicom = pydicom_module()
    try:
        with quietly():
            return pydicom.dcmread(path, **options)
    except Exception as error:  # pydicom promises no types; the text is left out, for it may quote the header
        raise DataError(f"{path}: damaged or no DICOM file ({type(error).__name__}); fetch it again") from None


def _numbers(header: Any, name: str, length: int) -> npt.NDArray[np.float64]:
    """Values of an element, of that length and finite; raises what pydicom or NumPy do, or ValueError."""
    with quietly():
        values = np.array(header[name].value, dtype=float).reshape(length)
    if not np.isfinite(values).all():
        raise ValueError(name)
    return values


def _slice(path: Path) -> dict[str, Any]:
    """Pixels and geometry of one slice."""
    data = _read(path)
    return {**_geometry(path, data), **_pixels(path, data)}


def _geometry(path: Path, data: Any) -> dict[str, Any]:
    """Where a slice lies, and whether it can."""
    try:
        orientation = _numbers(data, "ImageOrientationPatient", 6)
        spacing = _numbers(data, "PixelSpacing", 2)
        position = _numbers(data, "ImagePositionPatient", 3)
    except Exception:  # as above
        raise DataError(
            f"{path}: does not say where it lies (orientation, spacing, position); fetch it again"
        ) from None
    lengths = np.linalg.norm(orientation.reshape(2, 3), axis=1)
    if min(spacing) <= 0 or not np.allclose(lengths, 1, atol=_LENGTH_TOLERANCE):
        raise DataError(f"{path}: PixelSpacing is not above 0 mm or directions have no length; fetch it again")
    row_axis, column_axis = orientation.reshape(2, 3) / lengths[:, None]
    if abs(row_axis @ column_axis) > _RIGHT_ANGLE_TOLERANCE:
        raise DataError(f"{path}: its rows and columns are not at right angles; fetch it again")
    return {
        "position": position,
        "axes": np.stack([np.cross(row_axis, column_axis), column_axis, row_axis]),
        "ImageOrientationPatient": orientation,
        "PixelSpacing": tuple(spacing.tolist()),
        "thickness": data.get("SliceThickness"),
    }


def _pixels(path: Path, data: Any) -> dict[str, Any]:
    """Hounsfield units of a slice, and which one it is."""
    try:
        stored = data.pixel_array.astype(np.float32)
        slope, intercept = (float(_numbers(data, name, 1)[0]) for name in ("RescaleSlope", "RescaleIntercept"))
        with np.errstate(over="ignore", invalid="ignore"):
            hounsfield = stored * np.float32(slope) + np.float32(intercept)
        if stored.ndim != 2 or not np.isfinite(hounsfield).all():
            raise ValueError
        return {
            "pixels": np.clip(np.rint(hounsfield), AIR_HU, 32767).astype(np.int16),
            "shape": stored.shape,
            "SeriesInstanceUID": str(data.SeriesInstanceUID),
            "sop_uid": str(data.SOPInstanceUID),
        }
    except Exception as error:  # as above; a file cut short shows when its pixels are decoded
        raise DataError(f"{path}: no whole CT slice ({type(error).__name__}); fetch it again") from None


def _require_one(slices: Sequence[tuple[Path, Mapping[str, Any]]], key: str, where: Path) -> None:
    """All slices must agree in something; in the orientation but for rounding."""
    first = slices[0][1][key]
    for path, facts in slices:
        directions = key == "ImageOrientationPatient"
        same = np.allclose(facts[key], first, atol=_DIRECTION_TOLERANCE) if directions else facts[key] == first
        if not same:
            names = f"{slices[0][0].name} and {path.name}"
            raise DataError(f"{where}: {names} differ in {key}; keep the slices of one series in a folder")


def _step(heights: npt.NDArray[np.float64], thickness: Any, where: Path) -> float:
    """Distance between slices, which must be the same all along; of a single one its thickness, 1 mm if not stated."""
    if len(heights) == 1:
        return _thickness(thickness, where) if thickness else 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.diff(heights)
    if not np.isfinite(steps).all():
        raise DataError(f"{where}: slices are too far apart to be a series; fetch it again")
    usual = float(np.median(steps))
    if usual <= 0 or steps.min() < 0.01 * usual:
        raise DataError(f"{where}: two slices at one position; remove the copy or fetch the series again")
    worst = int(np.abs(steps - usual).argmax())
    if abs(steps[worst] - usual) > _SPACING_TOLERANCE * usual:
        raise DataError(
            f"{where}: slices are usually {usual:g} mm apart, but {steps[worst]:g} mm between slices {worst + 1} and "
            f"{worst + 2} of {len(heights)} in the order of position; a slice may be missing, fetch the series again"
        )
    return float(steps.mean())


def _thickness(value: Any, where: Path) -> float:
    try:
        thickness = float(value)
    except (TypeError, ValueError):
        thickness = np.nan
    if not 0 < thickness < np.inf:
        raise DataError(f"{where}: the SliceThickness of its only slice is not above 0 mm; fetch it again")
    return thickness


def resample(
    array: npt.NDArray[Any],
    spacing_mm: Sequence[float] | npt.NDArray[np.float64],
    centre: Sequence[float] | npt.NDArray[np.float64],
    shape: Sequence[int],
    target_mm: float = 1.0,
    order: int = 1,
    fill: float = 0,
) -> npt.NDArray[Any]:
    """A box of an array on an isotropic grid with the same axes.

    Output index j lies at input index ``centre + (j - (shape - 1) / 2) * target_mm / spacing_mm``. No smoothing.

    Args:
        array: *S.
        spacing_mm: of the array's axes.
        centre: input index that comes to lie in the middle of the box.
        shape: of the box.
        target_mm: distance of its pixels.
        order: 1 interpolates linearly (images), 0 takes the nearest pixel (masks).
        fill: what lies over half a pixel outside the array.

    Returns:
        The box, in the array's type.

    Example:
        >>> resample(np.array([0, 10, 20]), [2.0], [1], [5]).tolist()
        [0, 5, 10, 15, 20]
        >>> resample(np.array([0, 10, 20]), [2.0], [0], [5], order=0, fill=-1).tolist()
        [-1, 0, 0, 10, 10]
    """
    steps = target_mm / np.asarray(spacing_mm, dtype=float)
    offset = first_index(spacing_mm, centre, shape, target_mm)
    box: npt.NDArray[Any] = ndimage.affine_transform(
        array, steps, offset, tuple(shape), array.dtype, order, "nearest", prefilter=False
    )
    for axis, length in enumerate(array.shape):
        index = offset[axis] + steps[axis] * np.arange(shape[axis])
        np.moveaxis(box, axis, 0)[(index < -0.5) | (index > length - 0.5)] = fill
    return box


def first_index(
    spacing_mm: Sequence[float] | npt.NDArray[np.float64],
    centre: Sequence[float] | npt.NDArray[np.float64],
    shape: Sequence[int],
    target_mm: float = 1.0,
) -> npt.NDArray[np.float64]:
    """Input index at which a box of `resample` begins.

    Example:
        >>> first_index([2.0], [1], [5]).tolist()
        [0.0]
    """
    steps = target_mm / np.asarray(spacing_mm, dtype=float)
    return np.asarray(np.asarray(centre, dtype=float) - steps * (np.asarray(shape) - 1) / 2)


def nifti_affine(series: Series, index: npt.NDArray[np.float64], target_mm: float = 1.0) -> npt.NDArray[np.float64]:
    """Affine of a box of `resample` stored as NIfTI, i.e. indexed (column, row, slice), in RAS coordinates.

    Args:
        series: where the box was taken from.
        index: index in the series at which it begins, see `first_index`.
        target_mm: distance of its pixels.
    """
    affine = np.eye(4)
    affine[:3, :3] = series.axes[::-1].T * target_mm
    affine[:3, 3] = series.origin_mm + (series.spacing_mm * index) @ series.axes
    affine[:2] *= -1  # left, posterior -> right, anterior
    return affine
