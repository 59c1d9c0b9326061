"""Series of slices of an invented patient, from volumes: `python synthetic_series.py VOLUMES OUT`.

Run by check.py, in the environment of the application.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid
from synthetic_dicom import SECONDARY_CAPTURE, instance, photograph, save

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
"""Directions of a row and of a column, in DICOM's coordinates."""


def slices(
    volume: NDArray[np.int16],
    spacing: tuple[float, ...],
    sop_class: str,
    modality: str,
    axes: tuple[float, ...],
    intercept: int,
    numbers: list[int],
) -> list[Dataset]:
    """A volume (column, row, slice) as slices that ascend along their normal.

    Args:
        volume: what is stored.
        spacing: mm between columns, rows and slices.
        sop_class: of the slices.
        modality: of the series.
        axes: directions of a row and of a column.
        intercept: what is added to what is stored.
        numbers: instance number of every slice.
    """
    series, frame = generate_uid(), generate_uid()
    normal = np.cross(axes[:3], axes[3:])
    found = []
    for k, number in enumerate(numbers):
        one = instance(sop_class, modality, series, number)
        one.FrameOfReferenceUID, one.PositionReferenceIndicator = frame, ""
        one.ImagePositionPatient = [f"{value:.9g}" for value in (-31.5, 12.25, 70) + k * spacing[2] * normal]
        one.ImageOrientationPatient = [f"{value:.9g}" for value in axes]
        one.PixelSpacing, one.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        one.Columns, one.Rows = volume.shape[:2]
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, intercept, "HU" if modality == "CT" else "US"
        one.PixelData = np.ascontiguousarray(volume[..., k].T, dtype=np.uint16).tobytes()
        found.append(one)
    return found


def write(folder: Path, series: list[Dataset], names: list[int]) -> None:
    """One file for every slice, called by numbers that say nothing of where it lies."""
    folder.mkdir(parents=True)
    for name, one in zip(names, series, strict=True):
        save(one, folder / f"Nobody_Nora_{name}.dcm")


def main(volumes: Path, out: Path) -> None:
    """A CT whose slices are numbered in the order of space, an MR whose are not; a CT with a gap beside a localizer and
    that MR.
    """
    kinds: list[tuple[Any, ...]] = [
        ("ct", CTImageStorage, "CT", AXIAL, -1024, sorted),
        ("mr", MRImageStorage, "MR", OBLIQUE, 0, np.random.default_rng(0).permutation),
    ]
    for path, (name, sop_class, modality, axes, intercept, order) in zip(
        sorted(volumes.iterdir()), kinds, strict=False
    ):
        image: Any = nib.load(path)
        spacing = tuple(float(step) for step in image.header.get_zooms())
        number = image.shape[2]
        numbers = [int(value) for value in order(range(1, number + 1))]
        series = slices(np.asarray(image.dataobj), spacing, sop_class, modality, axes, intercept, numbers)
        write(out / "dicom" / name, series, [(7 * k) % number if number % 7 else k for k in range(number)])
        if name == "mr":
            write(out / "broken" / name, series, list(range(number)))
        if name == "ct":
            for one in series:
                one.SeriesInstanceUID = "1.2.3"
            write(out / "broken" / name, series[:3] + series[4:], list(range(number - 1)))
            for one, directions in zip(series, (AXIAL, OBLIQUE), strict=False):
                one.SeriesInstanceUID, one.SOPInstanceUID = "1.2.4", generate_uid()
                one.ImageType, one.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], list(directions)
            write(out / "broken" / "localizer", series[:2], [0, 1])
    (out / "dicom" / "others").mkdir()
    save(photograph(np.zeros((8, 8, 3), np.uint8), "RGB", SECONDARY_CAPTURE), out / "dicom" / "others" / "report.dcm")
    (out / "dicom" / "others" / "Nobody_Nora.txt").write_text("no DICOM at all: left out")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
