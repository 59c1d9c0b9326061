"""Which image a DICOM drawing was drawn on, by the series that it names: hospitals call files by long numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medcoarse.cli.main import CommandError
from medcoarse.datalist import DataError
from medcoarse.readers.dicom import first_image, is_dicom, read_tags, referenced_series
from medcoarse.readers.formats import could_be_dicom


def drawn_on(drawings: Sequence[Path], images: Sequence[Path]) -> dict[Path, Path]:
    """Drawing -> image, of DICOM drawings that name the series of one of the images, and of no other.

    Args:
        drawings: files of any format.
        images: files, and folders of DICOM series.

    Raises:
        CommandError: a damaged DICOM file.

    Example:
        >>> drawn_on([Path("a.nii.gz")], [Path("series")])
        {}
    """
    in_dicom = [file for file in drawings if could_be_dicom(file) and file.is_file() and is_dicom(file)]
    if not in_dicom:
        return {}
    try:
        series: dict[str, list[Path]] = {}
        for image in images:
            series.setdefault(_series_of(image), []).append(image)
        series.pop("", None)
        named = {file: [image for uid in referenced_series(file) for image in series.get(uid, ())] for file in in_dicom}
    except DataError as error:
        raise CommandError(str(error)) from None
    return {file: found[0] for file, found in named.items() if len(found) == 1}


def _series_of(image: Path) -> str:
    """UID of the series of an image; empty if it is none in DICOM."""
    if image.is_dir():
        file = first_image(image)
    else:
        file = image if could_be_dicom(image) and image.is_file() and is_dicom(image) else None
    return "" if file is None else read_tags(file, ["SeriesInstanceUID"])["SeriesInstanceUID"]
