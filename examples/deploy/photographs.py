"""Colour photographs in DICOM: their pixels, and what a segmentation needs to refer to them."""

from __future__ import annotations

import re
from copy import deepcopy

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import pixel_array
from pydicom.valuerep import DA, TM

PHOTOGRAPH_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": "Ophthalmic Photography 8 Bit Image",
    "1.2.840.10008.5.1.4.1.1.77.1.4": "VL Photographic Image",
}
"""SOP classes that are taken for colour fundus photographs."""

COLOUR_MODELS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations that are brought to RGB."""

DATES: dict[str, type[DA] | type[TM]] = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
SEXES = ("M", "F", "O", "")

MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientSex", "AccessionNumber", "StudyID", *DATES)
"""Attributes that every instance has, with or without a value; those of files that break this rule are empty."""

UID = re.compile(r"[0-9.]{1,64}")


class InputError(ValueError):
    """Something in the input folder cannot be segmented; the text says which and why, and never names a person."""


class PhotographError(InputError):
    """An instance is no colour photograph that can be read; the text names its SOP instance."""


def rgb_pixels(dataset: Dataset) -> NDArray[np.uint8]:
    """The pixels of a colour photograph.

    Args:
        dataset: a single-frame instance of one of `PHOTOGRAPH_CLASSES`, 8 bits a channel, compressed or not.

    Returns:
        (H, W, 3), RGB.

    Raises:
        PhotographError: for any other instance, and for pixels that are missing or damaged.
    """
    name = instance_name(dataset)
    fault = _fault(dataset)
    if fault:
        raise PhotographError(f"{name} is no colour photograph that can be segmented: {fault}")
    try:
        pixels = pixel_array(dataset)  # as RGB
    except Exception as error:  # a decoder may raise anything
        raise PhotographError(f"the pixels of {name} cannot be decoded: {error}") from None
    expected = (dataset.Rows, dataset.Columns, 3)
    if pixels.shape != expected:
        raise PhotographError(f"the pixels of {name} have shape {pixels.shape}, its header says {expected}")
    return pixels.astype(np.uint8, copy=False)


def instance_name(dataset: Dataset) -> str:
    """How messages call an instance: by its UID, which is all of it that they may show."""
    uid = str(dataset.get("SOPInstanceUID", ""))
    return f"instance {uid}" if UID.fullmatch(uid) else "an instance without a valid SOP Instance UID"


def _fault(dataset: Dataset) -> str:
    """What is wrong, in words of our own: an attribute of a broken file may hold anything, a name among it."""
    samples, colours = dataset.get("SamplesPerPixel"), dataset.get("PhotometricInterpretation")
    if dataset.get("SOPClassUID") not in PHOTOGRAPH_CLASSES:
        return f"its SOP class is none of {', '.join(PHOTOGRAPH_CLASSES.values())}"
    if "PixelData" not in dataset:
        return "it has no pixel data"
    if str(dataset.get("NumberOfFrames") or 1) != "1":
        return "it has several frames; split them first"
    if samples != 3 or colours not in COLOUR_MODELS:
        return f"its photometric interpretation is not one of {', '.join(COLOUR_MODELS)} with three samples a pixel"
    if (dataset.get("BitsAllocated"), dataset.get("BitsStored")) != (8, 8):
        return "its channels do not have 8 bits"
    wrong = [keyword for keyword, kind in DATES.items() if not _is_valid(dataset.get(keyword), kind)]
    wrong += ["PatientSex"] * ((dataset.get("PatientSex") or "") not in SEXES)
    return f"a segmentation cannot refer to it, its {' and '.join(wrong)} being invalid" if wrong else ""


def _is_valid(value: object, kind: type[DA] | type[TM]) -> bool:
    try:
        kind(str(value or ""))
    except ValueError:
        return False
    return True


def source_header(dataset: Dataset) -> Dataset:
    """A photograph as highdicom takes it for the source of a segmentation: without pixels, nothing missing.

    highdicom looks for the size of a pixel in the functional groups of every kind of instance that may have several
    frames. Ophthalmic photographs may, but have no functional groups; here they get one that says nothing.
    """
    header = deepcopy(dataset)
    header.pop("PixelData", None)
    for keyword in MAY_BE_EMPTY:
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    groups = Dataset()
    groups.PixelMeasuresSequence = [Dataset()]
    header.SharedFunctionalGroupsSequence = [groups]
    return header
