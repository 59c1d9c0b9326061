"""Colour photographs of invented patients as DICOM files: what the application is checked on."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.config import disable_value_validation
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

OPHTHALMIC, PHOTOGRAPHIC = "1.2.840.10008.5.1.4.1.1.77.1.5.1", "1.2.840.10008.5.1.4.1.1.77.1.4"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

STUDY = generate_uid()

SECRETS = ("Nobody", "Nora", "ID-4711", "ACC-0815", "19700101", "19701332")
"""What identifies the invented patient; none of it may be printed."""

TO_YBR = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
"""PS3.3 C.7.6.3.1.2, as the standard rounds it; the two colour channels are then shifted by 128."""


def as_bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Rounded, and kept in 0..255."""
    return np.asarray(np.clip(np.floor(values + 0.5), 0, 255), dtype=np.uint8)


def to_ybr(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB -> YBR_FULL."""
    shifted: NDArray[np.float64] = rgb @ TO_YBR.T + [0, 128, 128]
    return as_bytes(shifted)


def to_rgb(ybr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """YBR_FULL -> RGB: red and blue by definition, and green is what is left of the luminance."""
    luminance, blue, red = np.moveaxis(ybr.astype(np.float64) - [0, 128, 128], -1, 0)
    rgb = np.stack(
        [
            luminance + 1.402 * red,
            luminance - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587,
            luminance + 1.772 * blue,
        ],
        -1,
    )
    return as_bytes(rgb)


def instance(sop_class: str, modality: str, series: str, number: int) -> Dataset:
    """An instance without pixels, of the invented patient."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, series
    dataset.PatientName, dataset.PatientID, dataset.PatientSex = "Nobody^Nora", "ID-4711", "O"
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "ACC-0815", "1", None
    dataset.StudyDescription, dataset.SeriesDescription = "Nobody was looked at", "Images of Nobody"
    dataset.StudyDate, dataset.StudyTime, dataset.Modality = "20260101", "120000", modality
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number
    dataset.Manufacturer, dataset.ManufacturerModelName = "Invented", "Device"
    return dataset


def photograph(rgb: NDArray[np.uint8], colours: str = "RGB", sop_class: str = OPHTHALMIC) -> Dataset:
    """An instance of one photograph (H, W, 3), in the colours RGB, YBR_FULL, or YBR_FULL_422 as a JPEG."""
    dataset = instance(sop_class, "OP", generate_uid(), 1)
    dataset.ImageLaterality, dataset.NumberOfFrames = "L", 1
    dataset.Rows, dataset.Columns = rgb.shape[:2]
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PhotometricInterpretation = colours
    if colours == "YBR_FULL_422":
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.LossyImageCompression = "01"
        dataset.PixelData = encapsulate([jpeg(rgb)])
    else:
        samples = to_ybr(rgb) if colours == "YBR_FULL" else rgb
        dataset.PixelData = samples.tobytes() + bytes(samples.size % 2)
    return dataset


def jpeg(rgb: NDArray[np.uint8]) -> bytes:
    """Baseline JPEG with the colours of two neighbours in a row shared."""
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=95, subsampling="4:2:2")
    return stream.getvalue()


def as_stored(rgb: NDArray[np.uint8], colours: str) -> NDArray[np.uint8]:
    """What is left of a photograph after it was stored, without any reader of DICOM."""
    if colours == "YBR_FULL":
        return to_rgb(to_ybr(rgb))
    if colours == "YBR_FULL_422":
        with Image.open(io.BytesIO(jpeg(rgb))) as stored:
            stored.draft("YCbCr", stored.size)
            return to_rgb(np.asarray(stored))
    return rgb


def save(dataset: Dataset, path: Path, birth_date: bytes = b"19700101") -> None:
    """Write an instance; the date of birth is put into the bytes, because pydicom would refuse an impossible one."""
    dataset.PatientBirthDate = "19700101"
    dataset.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes().replace(b"19700101", birth_date, 1))


def main(pictures: Path, dicom: Path, references: Path) -> None:
    """Turn pictures into instances of all kinds, two of them in one series; write what they should be read as.

    Beside them go folders with a photograph and a picture that are to be refused, and a good one each.
    """
    dicom.mkdir(parents=True)
    references.mkdir(parents=True)
    kinds = [("RGB", OPHTHALMIC), ("YBR_FULL_422", OPHTHALMIC), ("YBR_FULL", PHOTOGRAPHIC)]
    paths = sorted(pictures.iterdir())
    series = generate_uid()
    facts = {}
    for number, (colours, sop_class) in enumerate(kinds):
        with Image.open(paths[number // 2]) as picture:
            rgb = np.asarray(picture.convert("RGB"))
        dataset = photograph(rgb, colours, sop_class)
        if sop_class == OPHTHALMIC:
            dataset.SeriesInstanceUID, dataset.InstanceNumber = series, number + 1
        if colours == "YBR_FULL_422":
            dataset.PatientName = "Nobody"  # without a caret: highdicom would quote it
            with disable_value_validation():
                dataset.FrameOfReferenceUID = "Nobody"  # not valid: pydicom would quote it
        if colours == "YBR_FULL":
            dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 192", "Nobody^Nora Zoë"
        save(dataset, dicom / f"Nobody_Nora_{number}.dcm")
        Image.fromarray(as_stored(rgb, colours)).save(references / f"{dataset.SOPInstanceUID}.png")
        facts[str(dataset.SOPInstanceUID)] = {"file": f"Nobody_Nora_{number}.dcm", "colours": colours}
    save(photograph(rgb, "RGB", SECONDARY_CAPTURE), dicom / "Nobody_Nora_report.dcm")  # no photograph: left out
    (dicom / "Nobody_Nora.txt").write_text("no DICOM at all: left out")
    (dicom.parent / "broken").mkdir()
    save(photograph(rgb), dicom.parent / "broken" / "Nobody_Nora.dcm", birth_date=b"19701332")
    good = photograph(rgb)
    good.SOPInstanceUID = good.file_meta.MediaStorageSOPInstanceUID = UID("1.2.5")
    save(good, dicom.parent / "broken" / "Nobody_Norma.dcm")
    (dicom.parent / "damaged").mkdir()
    (dicom.parent / "damaged" / "Nobody_Nora.png").write_bytes(paths[0].read_bytes()[:3000])
    Image.fromarray(rgb).save(dicom.parent / "damaged" / "good.png")
    (references.parent / "instances.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
