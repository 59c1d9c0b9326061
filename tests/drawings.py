"""Small drawings in every format, by its own library where it has one, all of the same voxels at the same place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import nrrd
import numpy as np
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

SPACING, ORIGIN = (0.5, 0.7, 2.5), (10.0, -20.0, 30.0)  # of (x, y, z), LPS
SHAPE = (7, 6, 5)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE = LPS_TO_RAS @ np.block([[np.diag(SPACING), np.array(ORIGIN)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
PATIENT = "Mustermann^Erika"


def segments() -> dict[str, np.ndarray]:
    """Two named segments (x, y, z) that are not symmetric in any way."""
    vessel, edge = np.zeros((2, *SHAPE), bool)
    vessel[1:4, 1:5, 1] = True
    vessel[1, 1, 2] = True
    edge[5, 0:3, 3] = True
    return {"vessel": vessel, "edge": edge}


def label_map() -> np.ndarray:
    found = segments()
    return (found["vessel"] + 2 * found["edge"]).astype(np.uint8)


def itk_image(values: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    return image


def write_nifti(path: Path, values: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(label_map() if values is None else values, affine), path)
    return path


def write_itk(path: Path, values: np.ndarray | None = None, compress: bool = True) -> Path:
    sitk.WriteImage(itk_image(label_map() if values is None else values), str(path), compress)
    return path


def seg_header(names: Mapping[str, tuple[int, int]], layered: bool) -> dict[str, Any]:
    """What 3D Slicer writes: name -> (layer, value)."""
    header: dict[str, Any] = {"space": "left-posterior-superior", "space origin": np.array(ORIGIN)}
    directions = np.diag(SPACING)
    header["space directions"] = np.vstack([[np.nan] * 3, directions]) if layered else directions
    header["kinds"] = (["list"] if layered else []) + ["domain"] * 3
    for number, (name, (layer, value)) in enumerate(names.items()):
        start = f"Segment{number}_"
        header |= {start + "ID": f"Segment_{number + 1}", start + "Name": name}
        header |= {start + "Layer": str(layer), start + "LabelValue": str(value), start + "Color": "0.5 0.7 0.3"}
    header["Segmentation_MasterRepresentation"] = "Binary labelmap"
    return header


def write_seg_nrrd(path: Path, masks: Mapping[str, np.ndarray] | None = None, layered: bool = False) -> Path:
    """One layer, or one for each segment."""
    masks = segments() if masks is None else masks
    if layered:
        header = seg_header({name: (number, 1) for number, name in enumerate(masks)}, True)
        nrrd.write(str(path), np.stack(list(masks.values())).astype(np.uint8), header)
    else:
        header = seg_header({name: (0, number) for number, name in enumerate(masks, 1)}, False)
        values = sum(number * mask.astype(np.uint8) for number, mask in enumerate(masks.values(), 1))
        nrrd.write(str(path), values, header)
    return path


def write_series(
    folder: Path, frame: str | None = None, reverse: bool = False, axes: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
) -> list[Dataset]:
    """A CT series on the grid, or with its rows and columns along other axes."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), frame or generate_uid()
    slices = []
    for k in range(SHAPE[2]):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = PATIENT, "4711", "19700101", "F"
        data.StudyID = data.StudyDate = data.StudyTime = data.AccessionNumber = data.ReferringPhysicianName = ""
        data.Modality, data.SeriesNumber, data.InstanceNumber = "CT", 1, SHAPE[2] - k if reverse else k + 1
        data.Rows, data.Columns = SHAPE[1], SHAPE[0]
        step = np.cross(axes[:3], axes[3:]) * SPACING[2]
        data.ImagePositionPatient = [f"{value:.8g}" for value in np.array(ORIGIN) + k * step]
        data.ImageOrientationPatient = [f"{value:.8g}" for value in axes]
        data.PixelSpacing, data.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.RescaleSlope, data.RescaleIntercept = 15, 1, 0
        data.PixelData = np.full(SHAPE[1::-1], k, np.uint16).tobytes()
        data.save_as(folder / f"{k}.dcm", enforce_file_format=True)
        slices.append(data)
    return slices


def write_dicom_seg(path: Path, slices: list[Dataset], masks: Mapping[str, np.ndarray] | None = None) -> Path:
    masks = segments() if masks is None else masks
    descriptions = [
        hd.seg.SegmentDescription(
            number, name, codes.SCT.Tissue, codes.SCT.Tissue, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, name in enumerate(masks, 1)
    ]
    pixels = np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], axis=-1).astype(np.uint8)
    found = hd.seg.Segmentation(
        slices,
        pixels,
        "BINARY",
        descriptions,
        generate_uid(),
        2,
        generate_uid(),
        1,
        "maker",
        "model",
        "1",
        "4712",
    )
    found.save_as(path)
    return path


def contour(mask_box: tuple[int, int, int, int], k: int) -> list[float]:
    """Corners, in LPS mm, of the pixels x0 <= x < x1, y0 <= y < y1 of slice k."""
    x0, x1, y0, y1 = mask_box
    corners = [(x0 - 0.5, y0 - 0.5), (x1 - 0.5, y0 - 0.5), (x1 - 0.5, y1 - 0.5), (x0 - 0.5, y1 - 0.5)]
    return [float(v) for x, y in corners for v in np.array(ORIGIN) + np.array(SPACING) * (x, y, k)]


def write_rtstruct(
    path: Path, frame: str, regions: Mapping[str, list[tuple[str, list[float]]]] | None = None, series: str = ""
) -> Path:
    if regions is None:
        vessel = [("CLOSED_PLANAR", contour((1, 4, 1, 5), 1)), ("CLOSED_PLANAR", contour((1, 2, 1, 2), 2))]
        regions = {"vessel": vessel, "edge": [("CLOSED_PLANAR", contour((5, 6, 0, 3), 3))]}
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.PatientName, data.PatientID, data.Modality = PATIENT, "4711", "RTSTRUCT"
    data.StructureSetROISequence, data.ROIContourSequence = Sequence(), Sequence()
    for number, (name, contours) in enumerate(regions.items(), 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        drawn.ReferencedROINumber, drawn.ContourSequence = number, Sequence()
        for kind, numbers in contours:
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(numbers) // 3
            item.ContourData = [f"{v:.6g}" for v in numbers]
            drawn.ContourSequence.append(item)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(drawn)
    if series:
        places = [Dataset() for _ in range(3)]
        places[2].SeriesInstanceUID = series
        places[1].RTReferencedSeriesSequence = Sequence([places[2]])
        places[0].RTReferencedStudySequence = Sequence([places[1]])
        data.ReferencedFrameOfReferenceSequence = Sequence(places[:1])
    data.save_as(path, enforce_file_format=True)
    return path


# --- pictures: 8 x 5 pixels, "vessel" covers columns 1-3 of rows 1-3, "edge" columns 5-6 of row 0 --------------------

PICTURE = (8, 5)
BOXES = {"vessel": (1, 4, 1, 4), "edge": (5, 7, 0, 1)}


def picture_map() -> np.ndarray:
    """(x, y)"""
    values = np.zeros(PICTURE, np.uint8)
    for value, (x0, x1, y0, y1) in enumerate(BOXES.values(), 1):
        values[x0:x1, y0:y1] = value
    return values


def corners(name: str) -> list[list[float]]:
    """On a screen, where pixel 0 goes from 0 to 1."""
    x0, x1, y0, y1 = BOXES[name]
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def write_picture(path: Path, palette: bool = False) -> Path:
    image = Image.fromarray(picture_map().T)
    if palette:
        image = image.convert("P")
        image.putdata(picture_map().T.ravel().tolist())
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(path)
    return path


def labelme() -> dict[str, Any]:
    shapes = [{"label": name, "shape_type": "polygon", "points": corners(name), "group_id": None} for name in BOXES]
    return {"version": "5.0", "shapes": shapes, "imagePath": "a.png", "imageHeight": 5, "imageWidth": 8}


def coco() -> dict[str, Any]:
    images = [{"id": 3, "file_name": "other.png", "width": 9, "height": 9}]
    images.append({"id": 4, "file_name": "x/image.png", "width": 8, "height": 5})
    categories = [{"id": 10, "name": "vessel"}, {"id": 20, "name": "edge"}]
    polygon = {"image_id": 4, "category_id": 10, "segmentation": [np.ravel(corners("vessel")).tolist()], "iscrowd": 0}
    down = (picture_map() == 2).ravel()  # x by x, each down its column
    changes = np.flatnonzero(np.diff(np.concatenate([[False], down, [not down[-1]]])))
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    crowd = {"image_id": 4, "category_id": 20, "segmentation": {"size": [5, 8], "counts": counts}, "iscrowd": 1}
    return {"images": images, "categories": categories, "annotations": [polygon, crowd]}


def cityscapes() -> dict[str, Any]:
    objects = []
    for name, (x0, x1, y0, y1) in BOXES.items():  # of pixels, the outline belongs to it
        objects.append({"label": name, "polygon": [[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]]})
    return {"imgWidth": 8, "imgHeight": 5, "objects": objects}


def geojson() -> dict[str, Any]:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*corners(name), corners(name)[0]]]},
            "properties": {"objectType": "annotation", "classification": {"name": name, "color": [1, 2, 3]}},
        }
        for name in BOXES
    ]
    return {"type": "FeatureCollection", "features": features}


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path
