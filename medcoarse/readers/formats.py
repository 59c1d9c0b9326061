"""Which reader reads a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from medcoarse.datalist import DataError
from medcoarse.readers.cityscapes import read_cityscapes
from medcoarse.readers.coco import read_coco
from medcoarse.readers.dicom import first_image, is_dicom, read_tags, series_files
from medcoarse.readers.dicom_seg import SEG_CLASSES, read_dicom_seg
from medcoarse.readers.drawing import Drawing, Grid, existing
from medcoarse.readers.geojson import read_geojson
from medcoarse.readers.json_files import read_json
from medcoarse.readers.labelme import read_labelme
from medcoarse.readers.metaimage import read_metaimage
from medcoarse.readers.nifti import read_nifti
from medcoarse.readers.nrrd import read_nrrd
from medcoarse.readers.picture import read_bmp, read_png, read_tiff
from medcoarse.readers.rtstruct import RTSTRUCT_CLASS, read_rtstruct

READERS: Mapping[str, Callable[[str | os.PathLike[str], Grid | None], Drawing]] = {
    "nifti": read_nifti,
    "nrrd": read_nrrd,
    "metaimage": read_metaimage,
    "png": read_png,
    "tiff": read_tiff,
    "bmp": read_bmp,
    "dicom_seg": read_dicom_seg,
    "rtstruct": read_rtstruct,
    "labelme": read_labelme,
    "coco": read_coco,
    "cityscapes": read_cityscapes,
    "geojson": read_geojson,
}
_SUFFIXES = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".mha": "metaimage",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
    ".geojson": "geojson",
}
_WITHOUT_GRID = ("rtstruct", "geojson")
LABEL_MAP_SUFFIXES = tuple(suffix for suffix, name in _SUFFIXES.items() if name != "geojson")
"""Of files that hold a value for each voxel; of NRRD also segments."""

_KEYS = {
    "labelme": {"shapes", "imageWidth"},
    "coco": {"images", "annotations", "categories"},
    "cityscapes": {"objects", "imgWidth"},
    "geojson": {"type"},
}


def read_drawing(path: str | os.PathLike[str], reference: Grid | None = None, format: str | None = None) -> Drawing:
    """Read a drawing in any of the formats.

    Args:
        path: the file.
        reference: grid of its image; contours and outlines need it.
        format: one of `READERS`; None to see from the name, and in JSON and DICOM files from the content.

    Raises:
        DataError: no such file or format, or what the reader of the format says.

    Example:
        >>> read_drawing("drawing.xyz", format="oil")
        Traceback (most recent call last):
        medcoarse.datalist.DataError: no format 'oil', expected one of ['nifti', ...
    """
    if format is not None and format not in READERS:
        raise DataError(f"no format {format!r}, expected one of {list(READERS)}")
    return READERS[format or format_of(existing(path))](path, reference)


def format_of(path: Path) -> str:
    """The format of a file.

    Raises:
        DataError: none of those that are read.
    """
    name = path.name.lower()
    for suffix, found in _SUFFIXES.items():
        if name.endswith(suffix):
            return found
    if name.endswith(".json"):
        content = set(read_json(path, "JSON file of drawings", features=True)[1])
        named = next((found for found, keys in _KEYS.items() if keys <= content), None)
    else:
        named = _dicom_format(path)
    if named is None:
        raise DataError(f"{path}: none of the formats {list(READERS)}; save it as one, or pass format")
    return named


def needs_image(path: Path) -> bool:
    """Whether a drawing has outlines and does not say on which voxels, so that it is read with the grid of its image.

    Raises:
        DataError: none of the formats.

    Example:
        >>> needs_image(Path("a.geojson")), needs_image(Path("a.nii.gz"))
        (True, False)
    """
    return format_of(path) in _WITHOUT_GRID


def _dicom_format(path: Path) -> str | None:
    if not is_dicom(path):
        return None
    class_uid = read_tags(path, ["SOPClassUID"])["SOPClassUID"]
    return "dicom_seg" if class_uid in SEG_CLASSES else "rtstruct" if class_uid == RTSTRUCT_CLASS else None


def is_series(path: Path) -> bool:
    """Whether this is a folder with DICOM files, or one such file, called as they are."""
    if path.is_dir():
        return bool(series_files(path))
    return path.is_file() and could_be_dicom(path) and is_dicom(path)


def could_be_dicom(path: Path) -> bool:
    """Whether a file is called as DICOM files are: `.dcm`, `.ima`, a number, or no ending.

    Example:
        >>> [could_be_dicom(Path(name)) for name in ("IM0001", "1.2.840", "a.dcm", "a.nii.gz")]
        [True, True, True, False]
    """
    return path.suffix.lower() in ("", ".dcm", ".ima") or path.suffix[1:].isdigit()


def frame_of_reference(path: str | os.PathLike[str]) -> str | None:
    """UID of the coordinate system of an image in DICOM, a file or the folder of a series; None of any other image."""
    place = Path(path)
    file = first_image(place) if place.is_dir() else place
    if file is None or not file.is_file() or not is_dicom(file):
        return None
    return read_tags(file, ["FrameOfReferenceUID"])["FrameOfReferenceUID"] or None
