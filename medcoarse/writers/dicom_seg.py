"""DICOM SEG by highdicom: binary segments, or probabilities of the classes, that refer to the images they are of."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medcoarse import __version__
from medcoarse.datalist import DataError
from medcoarse.files import write_atomically
from medcoarse.readers.dicom import is_dicom, is_of_images, pydicom_module, quietly, series_files
from medcoarse.readers.drawing import Grid, lps_affine
from medcoarse.readers.placement import place
from medcoarse.writers.nrrd import require_labeled
from medcoarse.writers.segmentation import Code, Segment, Segmentation, WriteError

_INSTALL = "pip install highdicom"
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""Attributes that every instance has, with or without a value; those of files that break this rule are empty."""


@dataclass(frozen=True)
class Algorithm:
    """What made a segmentation, as DICOM wants to know it.

    Args:
        name: of the model.
        version: its version.
        manufacturer: who made it.
        serial_number: of the "device": a checksum of the weights, for example.
    """

    name: str = "medcoarse"
    version: str = __version__
    manufacturer: str = "medcoarse"
    serial_number: str = "0"


def algorithm_of(metadata: Mapping[str, Any], weights: str) -> Algorithm:
    """The algorithm that a bundle is.

    Args:
        metadata: its metadata.json.
        weights: checksum of its weights.

    Example:
        >>> algorithm_of({"name": "Liver", "version": "0.1.0"}, "81fe").manufacturer
        'unknown'
    """
    name, version, authors = (str(metadata.get(key, "unknown"))[:64] for key in ("name", "version", "authors"))
    return Algorithm(name, version, authors, weights)


def write_dicom_seg(
    path: Path,
    segmentation: Segmentation,
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    algorithm: Algorithm | None = None,
) -> None:
    """Write labels as a binary segmentation, probabilities as one of fractions (256 steps).

    Patient and study are taken from the source, as DICOM asks for. The label map may be turned, mirrored and in another
    order of slices than the source, but has to lie on its voxels.

    Args:
        path: the .dcm file.
        segmentation: on the grid of the source; background is not written.
        source: the folder of the series, or its files.
        algorithm: what made it.

    Raises:
        WriteError: no source, another grid, unlabeled voxels, or a header that highdicom cannot refer to; highdicom is
            not installed. The text quotes no header.
    """
    hd, _ = _modules()
    headers = source_headers(source)
    grid = source_grid(headers, Path(path))
    values = _on_source(segmentation, grid, path)
    fractions = segmentation.is_probabilities
    if not fractions:
        require_labeled(values, segmentation, "DICOM SEG")
    algorithm = algorithm or Algorithm()
    pixels = _pixels(values, fractions, len(headers))
    try:
        with quietly():
            found = hd.seg.Segmentation(
                source_images=[_with_groups(header) for header in headers],
                pixel_array=pixels,
                segmentation_type="FRACTIONAL" if fractions else "BINARY",
                segment_descriptions=[_description(segment, algorithm) for segment in segmentation.segments],
                series_instance_uid=hd.UID(),
                series_number=1 + int(headers[0].get("SeriesNumber") or 0),
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer=algorithm.manufacturer,
                manufacturer_model_name=algorithm.name,
                software_versions=algorithm.version,
                device_serial_number=algorithm.serial_number,
                series_description="Segmentation (research only)",
                content_label="SEGMENTATION",
                omit_empty_frames=bool(pixels.any()),
            )
            found.ContentCreatorName = ""  # nobody drew it, but the standard asks for the field
            if "ImagePositionPatient" not in headers[0]:
                found.PatientOrientation = None  # unknown, which has to be said of what has no place
                found.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence", None)  # as `_with_groups` said
            buffer = io.BytesIO()
            found.save_as(buffer)
    except Exception as error:  # highdicom promises no types, and what it says may quote the header
        raise WriteError(
            f"{path}: highdicom cannot refer to this source ({type(error).__name__}); is its header complete, and of "
            "an image?"
        ) from None
    write_atomically(Path(path), lambda file: file.write(buffer.getvalue()))


def source_headers(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Any]:
    """Headers of one series, ordered along the normal of its slices; no pixels.

    Raises:
        WriteError: no DICOM image, several series, or values that cannot be read. The text quotes no header.
    """
    one = isinstance(source, str | os.PathLike)
    listed = [Path(source)] if one else [Path(file) for file in source]  # type: ignore[arg-type, union-attr]
    with _unquoted(listed[0] if listed else Path("source")):
        return _headers(listed)


def _headers(listed: list[Path]) -> list[Any]:
    _, pydicom = _modules()
    files = sorted(entry for place in listed for entry in (series_files(place) if place.is_dir() else [place]))
    where = listed[0] if listed else "no source"
    headers = []
    for file in files:
        if file.is_file() and is_dicom(file):
            try:
                with quietly():
                    header = pydicom.dcmread(file, stop_before_pixels=True)
            except Exception as error:  # as above
                raise WriteError(f"{file}: damaged DICOM file ({type(error).__name__}); export it again") from None
            if "Rows" in header and is_of_images(header):
                headers.append(header)
    series = {str(header.get("SeriesInstanceUID", "")) for header in headers}
    if not headers:
        raise WriteError(f"{where}: no DICOM image; DICOM SEG refers to the series that was segmented, pass its folder")
    if len(series) > 1:
        raise WriteError(f"{where}: holds {len(series)} DICOM series; keep the files of one series in a folder")
    for header in headers:
        for keyword in _MAY_BE_EMPTY:
            if header.get(keyword) is None:
                setattr(header, keyword, "")
    return headers if len(headers) == 1 else sorted(headers, key=_height)


def source_grid(headers: list[Any], path: Path) -> Grid:
    """Grid (column, row, slice) of sorted headers; of one image without a place in space (column, row).

    Raises:
        WriteError: slices of several sizes or directions, at irregular distances, several frames, or values that
            cannot be read. The text quotes no header.
    """
    with _unquoted(path):
        return _grid(headers, path)


def _grid(headers: list[Any], path: Path) -> Grid:
    first = headers[0]
    if str(first.get("NumberOfFrames") or 1) != "1":
        raise WriteError(f"{path}: its source has several frames in one file; split it into single slices")
    shape = int(first.Columns), int(first.Rows), len(headers)
    if "ImagePositionPatient" not in first or "ImageOrientationPatient" not in first:
        if len(headers) > 1:
            raise WriteError(f"{path}: its source has several images without a position; pass one of them")
        return Grid(shape[:2])
    same = all(
        (int(header.Columns), int(header.Rows)) == shape[:2]
        and np.allclose(header.ImageOrientationPatient, first.ImageOrientationPatient, atol=1e-3)
        for header in headers
    )
    positions = np.array([header.ImagePositionPatient for header in headers], dtype=np.float64)
    steps = np.diff(positions, axis=0)
    thickness = float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1)
    step = steps.mean(axis=0) if len(steps) else _normal(first) * thickness
    if not same or (len(steps) and np.abs(steps - step).max() > 0.1 * np.linalg.norm(step)):
        raise WriteError(f"{path}: the slices of its source form no regular volume; pass one whole series")
    along_row, along_column = np.array(first.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    between_rows, between_columns = (float(value) for value in first.PixelSpacing)
    axes = np.stack([along_row * between_columns, along_column * between_rows, step], axis=1)
    return Grid(shape, lps_affine(path, axes, positions[0]))


@contextlib.contextmanager
def _unquoted(where: Path) -> Iterator[None]:
    """Errors of converting a header's values, whose text quotes them, become one that does not."""
    try:
        with quietly():
            yield
    except (WriteError, DataError):
        raise
    except Exception as error:  # pydicom promises no types
        raise WriteError(
            f"{where}: a DICOM header has a value that cannot be read ({type(error).__name__}); export it again"
        ) from None


def _modules() -> tuple[Any, Any]:
    pydicom = pydicom_module()
    try:
        import highdicom
    except ImportError:
        raise WriteError(f"DICOM SEG is written with highdicom, which is not installed; {_INSTALL}") from None
    return highdicom, pydicom


def _normal(header: Any) -> NDArray[np.float64]:
    along_row, along_column = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    return np.cross(along_row, along_column)


def _height(header: Any) -> float:
    if "ImagePositionPatient" not in header or "ImageOrientationPatient" not in header:
        return 0.0
    return float(np.array(header.ImagePositionPatient, dtype=np.float64) @ _normal(header))


def _on_source(segmentation: Segmentation, target: Grid, path: str | os.PathLike[str]) -> NDArray[Any]:
    """The values, turned and mirrored to lie as the source does."""
    values = np.moveaxis(segmentation.values, 0, -1) if segmentation.is_probabilities else segmentation.values
    shape, affine = segmentation.grid.shape, segmentation.grid.affine
    if len(target.shape) == 3 and len(shape) == 2:
        values, shape = values[:, :, None], (*shape, 1)
    if len(target.shape) == 3 and affine is not None and len(segmentation.grid.shape) == 3:
        turn = nib.orientations.io_orientation(np.linalg.inv(target.affine) @ affine)  # type: ignore[arg-type, no-untyped-call]
        affine = affine @ nib.orientations.inv_ornt_aff(turn, shape)  # type: ignore[no-untyped-call]
        values = nib.orientations.apply_orientation(values, turn)  # type: ignore[no-untyped-call]
        shape = values.shape[:3]
        target_affine = target.affine
    else:
        affine = target_affine = None
    blank = np.zeros((1, *shape), np.uint8)
    try:
        place(blank, Grid(shape, affine), Grid(target.shape, target_affine), path, [0])
    except DataError as error:
        raise WriteError(f"{error} (the image is the DICOM source)") from None
    return values


def _with_groups(header: Any) -> Any:
    """A header in which highdicom finds the functional groups that it looks for in every kind of image that may have
    several frames. Photographs may, but have none; they get one that says nothing.
    """
    if "ImagePositionPatient" not in header and "SharedFunctionalGroupsSequence" not in header:
        _, pydicom = _modules()
        groups = pydicom.Dataset()
        groups.PixelMeasuresSequence = [pydicom.Dataset()]
        header.SharedFunctionalGroupsSequence = [groups]
    return header


def _pixels(values: NDArray[Any], fractions: bool, num_sources: int) -> NDArray[Any]:
    """(slice, row, column), and the segments last, as highdicom has it."""
    if fractions:
        values = values[..., 1:]
        flat = values[:, :, None] if values.ndim == 3 else values
        return np.ascontiguousarray(flat.transpose(2, 1, 0, 3))
    flat = values[:, :, None] if values.ndim == 2 else values
    return np.ascontiguousarray(flat.transpose(2, 1, 0))


def _coded(code: Code) -> Any:
    hd, _ = _modules()
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _description(segment: Segment, algorithm: Algorithm) -> Any:
    hd, _ = _modules()
    family = hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")
    return hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.name[:64],
        segmented_property_category=_coded(segment.category),
        segmented_property_type=_coded(segment.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name, version=algorithm.version, family=family
        ),
        display_color=hd.color.CIELabColor.from_rgb(*segment.colour),
    )
