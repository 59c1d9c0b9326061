"""CT and MR series: which there are in a folder, and their volumes.

Reading is that of `medcoarse predict`, so that this needs the package, without most of what that requires.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from photographs import UID, InputError
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from medcoarse.transforms.series import SeriesReader

SERIES_CLASSES = {"1.2.840.10008.5.1.4.1.1.2": "CT Image", "1.2.840.10008.5.1.4.1.1.4": "MR Image"}
"""SOP classes of what is segmented: one slice a file."""


class SeriesError(InputError):
    """A series cannot be segmented; the text names its Series Instance UID."""


def find_series(folder: Path) -> dict[str, list[Path]]:
    """The CT and MR series below a folder: their UIDs, sorted, and their files. Localizers are left out, and logged.

    (The SDK's DICOMDataLoaderOperator keeps one of several slices at the same place, so that a series of several
    volumes looks like one.)

    Raises:
        SeriesError: there is none, or a file of one is damaged.
    """
    found: dict[str, list[Path]] = {}
    localizers = set()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "ImageType"])
        except InvalidDicomError:
            continue  # no DICOM
        except Exception as error:  # pydicom promises no types, and its text may quote the header
            raise SeriesError(f"a DICOM file in the input folder is damaged ({type(error).__name__})") from None
        if header.file_meta.get("MediaStorageSOPClassUID") in SERIES_CLASSES:
            uid = str(header.get("SeriesInstanceUID", ""))
            if not UID.fullmatch(uid):
                raise SeriesError("a slice in the input folder has no valid Series Instance UID; is it damaged?")
            found.setdefault(uid, []).append(path)
            if "LOCALIZER" in (header.get("ImageType") or ()):
                localizers.add(uid)
    for uid in sorted(localizers):  # three planes that cross, in most studies: no volume
        logging.getLogger(__name__).warning("series %s was left out: it is a localizer", uid)
        del found[uid]
    if not found:
        raise SeriesError(f"no series in the input folder; this model takes {', '.join(SERIES_CLASSES.values())}")
    return dict(sorted(found.items()))


def read_series(uid: str, files: list[Path]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """A volume (x, y, z) as the bundle's own loader gives it, and its metadata.

    Raises:
        SeriesError: the files are no regular volume, or damaged.
    """
    try:
        reader = SeriesReader()
        array, meta = reader.get_data(reader.read(files))
    except Exception as error:
        raise SeriesError(f"series {uid} cannot be segmented: {without_paths(error, files)}") from None
    return array.astype(np.float32), {**meta, "filename_or_obj": uid}


def without_paths(error: Exception, files: list[Path]) -> str:
    """What an error says, without files, which may be called after people; of libraries only what kind it is."""
    if not type(error).__module__.startswith("medcoarse."):
        return f"its pixels cannot be read ({type(error).__name__})"
    text = str(error)
    for place in {*files, *(file.parent for file in files)}:
        text = text.replace(f"{place}: ", "")
    return text
