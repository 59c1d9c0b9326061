"""What is written reads the same: by the readers here, by MONAI's transform, and by the formats' own libraries."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from shutil import which
from typing import Any

import highdicom as hd
import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import PILReader
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image
from synthetic_dicom import photograph, save

from medcoarse.readers.drawing import Grid
from medcoarse.readers.formats import read_drawing
from medcoarse.readers.placement import place
from medcoarse.transforms.drawn import LoadCoarseAnnotationd
from medcoarse.transforms.saved import SaveSegmentationd
from medcoarse.writers import dicom_seg
from medcoarse.writers.formats import write_segmentation
from medcoarse.writers.segmentation import WriteError, make_segmentation
from tests.drawings import (
    AFFINE,
    PATIENT,
    PICTURE,
    SHAPE,
    cityscapes,
    coco,
    geojson,
    label_map,
    labelme,
    picture_map,
    write_dicom_seg,
    write_itk,
    write_json,
    write_nifti,
    write_picture,
    write_rtstruct,
    write_seg_nrrd,
    write_series,
)

NAMES = ["background", "vessel", "edge"]
TURN = np.deg2rad(20.0)
OBLIQUE = np.array(
    [
        [0.5 * np.cos(TURN), -0.7 * np.sin(TURN), 0.0, -3.0],
        [0.5 * np.sin(TURN), 0.7 * np.cos(TURN), 0.0, 7.5],
        [0.0, 0.0, 2.5, 11.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
PERMUTED = OBLIQUE[:, [2, 0, 1, 3]]
FLIPPED = OBLIQUE @ np.diag([1.0, -1.0, -1.0, 1.0])
AFFINES = {"plain": AFFINE, "ras": np.diag([1.0, 2.0, 3.0, 1.0]), "oblique": OBLIQUE, "permuted": PERMUTED}
AFFINES["flipped"] = FLIPPED
VOLUME_SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".seg.nrrd"]


def lps(affine: np.ndarray) -> np.ndarray:
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def itk_affine(image: sitk.Image) -> np.ndarray:
    """As RAS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return lps(affine)


def probabilities(shape: tuple[int, ...] = SHAPE, num_classes: int = 3) -> np.ndarray:
    values = np.random.default_rng(0).random((num_classes, *shape)).astype(np.float32)
    return values / values.sum(0)


# --- volumes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
@pytest.mark.parametrize("name", AFFINES)
def test_labels_and_geometry_survive(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_segmentation(path, make_segmentation(label_map(), AFFINES[name], NAMES))
    drawing = read_drawing(path)
    np.testing.assert_array_equal(drawing.layers[0].values, label_map())
    np.testing.assert_allclose(drawing.grid.affine, AFFINES[name], atol=1e-5)
    other = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(other).transpose(2, 1, 0), label_map())
    np.testing.assert_allclose(itk_affine(other), AFFINES[name], atol=1e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_nibabel_reads_the_same(tmp_path: Path) -> None:
    path = write_segmentation(tmp_path / "a.nii.gz", make_segmentation(label_map(), OBLIQUE, NAMES))
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    assert image.shape == SHAPE
    np.testing.assert_allclose(image.get_sform(), OBLIQUE, atol=1e-6)
    np.testing.assert_allclose(image.get_qform(), OBLIQUE, atol=1e-5)
    assert b'{"labels": {"1": "vessel", "2": "edge"}}' in image.header.extensions[0].get_content()


def test_a_sheared_affine_has_no_quaternion(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    path = write_segmentation(tmp_path / "a.nii", make_segmentation(label_map(), sheared, NAMES))
    assert nib.load(path).header["qform_code"] == 0
    np.testing.assert_allclose(read_drawing(path).grid.affine, sheared, atol=1e-6)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".seg.nrrd"])
@pytest.mark.parametrize("shape", [(4, 3, 1), (1, 3, 4), (1, 1, 1), (4, 3)])
def test_the_number_of_axes_stays(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    path = write_segmentation(tmp_path / f"a{suffix}", make_segmentation(np.ones(shape, int), np.eye(4), NAMES))
    assert read_drawing(path).grid.shape == shape


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_unlabeled_voxels_survive(tmp_path: Path, suffix: str) -> None:
    values = label_map()
    values[0, 0, 0] = 255
    path = write_segmentation(tmp_path / f"a{suffix}", make_segmentation(values, AFFINE, NAMES))
    np.testing.assert_array_equal(read_drawing(path).layers[0].values, values)


def test_slicer_gets_names_colours_and_terms(tmp_path: Path) -> None:
    found = make_segmentation(label_map(), OBLIQUE, NAMES, {"edge": ("SCT", "1", "Ed^ge")}, {"vessel": (255, 0, 51)})
    path = write_segmentation(tmp_path / "a.seg.nrrd", found)
    assert read_drawing(path).layers[0].names == {1: "vessel", 2: "edge"}
    assert read_drawing(path).segments
    _, header = nrrd.read(str(path))
    assert header["Segment0_Color"] == "1 0 0.2"
    assert header["Segment0_Extent"] == "1 3 1 4 1 2"
    assert "SCT^59820001^Blood Vessel" in header["Segment0_Tags"]
    assert "SCT^1^Ed ge" in header["Segment1_Tags"]
    assert header["Segmentation_MasterRepresentation"] == "Binary labelmap"
    np.testing.assert_allclose(header["space directions"].T, lps(OBLIQUE)[:3, :3])


def test_names_in_any_language(tmp_path: Path) -> None:
    names = ["background", "Gefäß", "縁"]
    path = write_segmentation(tmp_path / "a.seg.nrrd", make_segmentation(label_map(), AFFINE, names))
    (layer,) = read_drawing(path).layers
    assert layer.names == {1: "Gefäß", 2: "縁"}
    np.testing.assert_array_equal(layer.values, label_map())
    assert sitk.ReadImage(str(path)).GetMetaData("Segment0_Name") == "Gefäß"
    path = write_segmentation(
        tmp_path / "a.nrrd", make_segmentation(probabilities(), AFFINE, names, probabilities=True)
    )
    assert sitk.ReadImage(str(path)).GetMetaData("class_names") == "background|Gefäß|縁"


def test_an_absent_class_keeps_its_place_in_slicer(tmp_path: Path) -> None:
    path = write_segmentation(tmp_path / "a.seg.nrrd", make_segmentation(np.zeros(SHAPE, int), AFFINE, NAMES))
    assert nrrd.read_header(str(path))["Segment1_Extent"] == "0 -1 0 -1 0 -1"
    assert not read_drawing(path).layers[0].values.any()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_probabilities_are_lossless(tmp_path: Path, suffix: str) -> None:
    given = probabilities()
    found = make_segmentation(given, OBLIQUE, NAMES, probabilities=True)
    path = write_segmentation(tmp_path / f"a{suffix}", found)
    read = (
        np.moveaxis(nib.load(path).get_fdata(dtype=np.float32), -1, 0) if "nii" in suffix else nrrd.read(str(path))[0]
    )
    np.testing.assert_array_equal(read, given)


# --- the whole way round -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".seg.nrrd", ".dcm"])
def test_drawing_reader_writer_reader(tmp_path: Path, suffix: str) -> None:
    """A drawing by 3D Slicer on a DICOM series, read, written in every format, and read again."""
    write_series(tmp_path / "series")
    drawn = write_seg_nrrd(tmp_path / "drawn.seg.nrrd")
    load = Compose([LoadImaged("image", reader="PydicomReader"), EnsureChannelFirstd("image")])
    image = load({"image": str(tmp_path / "series")})["image"]
    read = LoadCoarseAnnotationd("drawing", {"vessel": (1, "positive"), "edge": (2, "positive")}, num_classes=3)
    first = read({"image": image, "drawing": drawn})["positive"]
    assert first.shape == image.shape
    labels = first.clone()
    labels[labels == 255] = 0
    save = SaveSegmentationd("pred", tmp_path / "out", NAMES, suffix, source_key="series")
    path = save({"pred": labels, "series": str(tmp_path / "series")})["pred_path"]
    assert Path(path).name == f"series{suffix}"
    named = {"vessel": (1, "positive"), "edge": (2, "positive")}
    values: dict[Any, Any] = {0: None, 1: (1, "positive"), 2: (2, "positive")}
    mapping = named if suffix in (".seg.nrrd", ".dcm") else values
    again = LoadCoarseAnnotationd("drawing", mapping, num_classes=3)({"image": image, "drawing": path})["positive"]
    np.testing.assert_array_equal(again, first)
    np.testing.assert_allclose(again.affine, image.affine)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "a.nii.gz": write_nifti,
    "a.nrrd": write_itk,
    "a.mha": write_itk,
    "a.seg.nrrd": write_seg_nrrd,
    "a.png": write_picture,
    "a.tif": write_picture,
    "a.bmp": write_picture,
    "seg.dcm": lambda path: write_dicom_seg(path, write_series(path.parent / "series")),
    "rt.dcm": lambda path: write_rtstruct(path, write_series(path.parent / "series")[0].FrameOfReferenceUID),
    "labelme.json": lambda path: write_json(path, labelme()),
    "coco.json": lambda path: write_json(path, coco()),
    "cityscapes.json": lambda path: write_json(path, cityscapes()),
    "a.geojson": lambda path: write_json(path, geojson()),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_format_is_written_as_it_was_read(tmp_path: Path, name: str) -> None:
    """Labels, place and names: drawing -> reader -> writer -> reader."""
    SOURCES[name](tmp_path / name)
    outlines = Grid(SHAPE, AFFINE) if name == "rt.dcm" else Grid(PICTURE, name="image.png")
    first = read_drawing(tmp_path / name, outlines)
    (layer,) = first.layers
    assert len(np.unique(layer.values)) > 1
    names = [layer.names.get(number, f"class {number}") for number in range(1, int(layer.values.max()) + 1)]
    given = make_segmentation(layer.values, first.grid.affine, ["background", *names])
    for suffix in (".seg.nrrd", ".nrrd", ".nii.gz"):
        again = read_drawing(write_segmentation(tmp_path / f"again{suffix}", given))
        np.testing.assert_array_equal(again.layers[0].values, layer.values)
        if first.grid.affine is not None:
            np.testing.assert_allclose(again.grid.affine, first.grid.affine, atol=1e-5)
        if suffix == ".seg.nrrd":
            assert again.layers[0].names == dict(enumerate(names, 1))


def test_a_turned_and_mirrored_map_lands_on_the_series(tmp_path: Path) -> None:
    write_series(tmp_path / "series", reverse=True, axes=(0.8, 0.6, 0, -0.6, 0.8, 0))
    grid = dicom_seg.source_grid(dicom_seg.source_headers(tmp_path / "series"), tmp_path)
    assert grid.affine is not None
    plain = make_segmentation(label_map(), grid.affine, NAMES)
    turned = np.ascontiguousarray(label_map()[::-1].transpose(2, 0, 1))
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (SHAPE[0] - 1)
    affine[:3, 0] *= -1
    other = make_segmentation(turned, affine[:, [2, 0, 1, 3]], NAMES)
    maps = []
    for number, found in enumerate((plain, other)):
        path = write_segmentation(tmp_path / f"{number}.dcm", found, tmp_path / "series")
        drawing = read_drawing(path)
        layer = drawing.layers[0].values.astype(np.uint8)[None]
        maps.append(place(layer, drawing.grid, grid, path, [0], segments=True)[0])  # empty slices are left out
    np.testing.assert_array_equal(maps[0], label_map())
    np.testing.assert_array_equal(maps[1], label_map())


def test_the_order_of_slices_is_that_of_space_not_of_names(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    for number, name in enumerate((3, 0, 4, 1, 2)):
        (tmp_path / "series" / f"{number}.dcm").rename(tmp_path / "series" / f"slice{name}.dcm")
    found = make_segmentation(label_map(), AFFINE, NAMES)
    drawing = read_drawing(write_segmentation(tmp_path / "a.dcm", found, tmp_path / "series"))
    layer = drawing.layers[0].values.astype(np.uint8)[None]
    placed = place(layer, drawing.grid, Grid(SHAPE, AFFINE), tmp_path, [0], segments=True)[0]
    np.testing.assert_array_equal(placed, label_map())


# --- DICOM -------------------------------------------------------------------------------------------------------


def test_dicom_seg_says_what_it_is(tmp_path: Path) -> None:
    slices = write_series(tmp_path / "series")
    grid = dicom_seg.source_grid(dicom_seg.source_headers(tmp_path / "series"), tmp_path)
    found = make_segmentation(label_map(), grid.affine, NAMES)
    algorithm = dicom_seg.Algorithm("net", "1.2", "somebody", "abc")
    path = write_segmentation(tmp_path / "a.dcm", found, tmp_path / "series", algorithm)
    seg = hd.seg.segread(path)
    assert seg.segmentation_type == hd.seg.SegmentationTypeValues.BINARY
    described = seg.get_segment_description(1)
    assert described.segment_label == "vessel"
    assert described.segmented_property_type.value == "59820001"
    assert described.algorithm_identification.name == "net"
    assert described.algorithm_identification.version == "1.2"
    assert (seg.DeviceSerialNumber, seg.Manufacturer) == ("abc", "somebody")
    assert (seg.PatientName, seg.StudyInstanceUID) == (PATIENT, slices[0].StudyInstanceUID)
    assert seg.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    sources = {uid for _, _, uid in seg.get_source_image_uids()}
    assert sources == {data.SOPInstanceUID for data in slices}


@pytest.mark.skipif(which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("kind", ["binary", "fractions"])
def test_dciodvfy_finds_no_error(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path / "series")
    grid = dicom_seg.source_grid(dicom_seg.source_headers(tmp_path / "series"), tmp_path)
    values = label_map() if kind == "binary" else probabilities()
    found = make_segmentation(values, grid.affine, NAMES, probabilities=kind != "binary")
    path = write_segmentation(tmp_path / "a.dcm", found, tmp_path / "series")
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    assert [line for line in said.splitlines() if line.startswith("Error")] == []


@pytest.mark.skipif(which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_dciodvfy_finds_no_error_in_that_of_a_photograph(tmp_path: Path) -> None:
    save(photograph(np.zeros((6, 7, 3), np.uint8)), tmp_path / "p.dcm")
    found = make_segmentation(label_map()[..., 1], None, NAMES)
    path = write_segmentation(tmp_path / "a.dcm", found, tmp_path / "p.dcm")
    np.testing.assert_array_equal(hd.seg.segread(path).pixel_array.reshape(-1, 6, 7)[0], label_map()[..., 1].T == 1)
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_probabilities_become_fractions(tmp_path: Path) -> None:
    write_series(tmp_path / "series", reverse=True)
    grid = dicom_seg.source_grid(dicom_seg.source_headers(tmp_path / "series"), tmp_path)
    given = probabilities()
    found = make_segmentation(given, grid.affine, NAMES, probabilities=True)
    path = write_segmentation(tmp_path / "a.dcm", found, tmp_path / "series")
    seg = hd.seg.segread(path)
    assert seg.segmentation_type == hd.seg.SegmentationTypeValues.FRACTIONAL
    read = seg.get_volume(combine_segments=False, rescale_fractional=True)
    read = read.ensure_handedness(hd.AxisHandedness.LEFT_HANDED, flip_axis=0).array  # slice, row, column
    np.testing.assert_allclose(read, given[1:].transpose(3, 2, 1, 0), atol=0.5 / 255 + 1e-6)


def test_an_empty_segmentation_is_written(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    grid = dicom_seg.source_grid(dicom_seg.source_headers(tmp_path / "series"), tmp_path)
    found = make_segmentation(np.zeros(SHAPE, int), grid.affine, NAMES)
    drawing = read_drawing(write_segmentation(tmp_path / "a.dcm", found, tmp_path / "series"))
    assert drawing.grid.shape == SHAPE
    assert not drawing.layers[0].values.any()


def test_dicom_of_one_slice(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    grid = dicom_seg.source_grid(dicom_seg.source_headers(tmp_path / "series" / "1.dcm"), tmp_path)
    found = make_segmentation(label_map()[..., 1:2], grid.affine, NAMES)
    drawing = read_drawing(write_segmentation(tmp_path / "a.dcm", found, tmp_path / "series" / "1.dcm"))
    np.testing.assert_array_equal(drawing.layers[0].values, label_map()[..., 1:2])


def refused_dicom(tmp_path: Path, affine: np.ndarray, shape: tuple[int, ...] = SHAPE, source: str = "series") -> str:
    found = make_segmentation(np.ones(shape, int), affine, NAMES)
    with pytest.raises(WriteError) as caught:
        write_segmentation(tmp_path / "a.dcm", found, tmp_path / source)
    assert not (tmp_path / "a.dcm").exists()
    assert PATIENT not in str(caught.value)
    assert "4711" not in str(caught.value)
    return str(caught.value)


def test_dicom_refuses_what_does_not_fit(tmp_path: Path) -> None:
    slices = write_series(tmp_path / "series")
    assert "another grid" in refused_dicom(tmp_path, OBLIQUE)
    assert "another grid" in refused_dicom(tmp_path, AFFINE, (3, 3, 3))
    with pytest.raises(WriteError, match="needs the DICOM series"):
        write_segmentation(tmp_path / "a.dcm", make_segmentation(label_map(), AFFINE, NAMES))
    (tmp_path / "empty").mkdir()
    assert "no DICOM image" in refused_dicom(tmp_path, AFFINE, source="empty")
    (tmp_path / "series" / "2.dcm").unlink()
    assert "no regular volume" in refused_dicom(tmp_path, AFFINE)
    write_series(tmp_path / "two", slices[0].FrameOfReferenceUID)
    (tmp_path / "two" / "0.dcm").rename(tmp_path / "series" / "other.dcm")
    assert "2 DICOM series" in refused_dicom(tmp_path, AFFINE)


def test_headers_are_never_quoted(tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: Any) -> None:
    """A name that is not valid DICOM makes pydicom and highdicom warn, and quote it."""
    write_series(tmp_path / "series")
    for file in (tmp_path / "series").iterdir():
        data = pydicom.dcmread(file)
        data.add_new("PatientBirthDate", "LO", "Mustermann")
        data.StudyDate = ""
        data.save_as(file)
    grid = dicom_seg.source_grid(dicom_seg.source_headers(tmp_path / "series"), tmp_path)
    try:
        write_segmentation(tmp_path / "a.dcm", make_segmentation(label_map(), grid.affine, NAMES), tmp_path / "series")
    except WriteError as error:
        assert "Mustermann" not in str(error)  # noqa: PT017
    said = "".join(capfd.readouterr()) + "".join(str(warning.message) for warning in recwarn)
    assert "Mustermann" not in said


# --- pictures ----------------------------------------------------------------------------------------------------


def test_png_reads_back(tmp_path: Path) -> None:
    values = picture_map()
    values[0, 0] = 255
    path = write_segmentation(tmp_path / "a.png", make_segmentation(values, None, NAMES))
    np.testing.assert_array_equal(read_drawing(path).layers[0].values, values)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture).T, values)
        assert picture.convert("RGB").getpixel((1, 1)) == (128, 174, 128)


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names", "more", "text"),
    [
        (np.full((2, 2), 3), NAMES, {}, "label 3 is none of the 3 classes"),
        (np.full((2, 2), -1), NAMES, {}, "label -1"),
        (np.full((2, 2), 0.5), NAMES, {}, "labels with fractions"),
        (np.full((2, 2), np.nan), NAMES, {}, "labels with fractions"),
        (np.zeros(3, int), NAMES, {}, "two or three axes"),
        (np.zeros((2, 2), int), ["a", "a"], {}, "different names"),
        (np.zeros((2, 2), int), NAMES, {"codes": {"vein": ("a", "b", "c")}}, "no classes"),
        (np.zeros((2, 2), int), NAMES, {"codes": {"edge": "SCT"}}, "must be (scheme, value, meaning)"),
        (np.zeros((2, 2), int), NAMES, {"colours": {"edge": (0, 0, 300)}}, "a colour is"),
        (np.full((3, 2, 2), 1.5), NAMES, {"probabilities": True}, "from 0 to 1"),
        (np.full((2, 2, 2), 0.5), NAMES, {"probabilities": True}, "3 classes"),
    ],
)
def test_what_makes_no_segmentation(values: Any, names: list[str], more: dict[str, Any], text: str) -> None:
    with pytest.raises(WriteError, match=text.replace("(", r"\(").replace(")", r"\)")):
        make_segmentation(values, None, names, **more)


def test_formats_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    soft = make_segmentation(probabilities(), AFFINE, NAMES, probabilities=True)
    for suffix in (".seg.nrrd", ".png"):
        with pytest.raises(WriteError, match="no probabilities"):
            write_segmentation(tmp_path / f"a{suffix}", soft)
    open_label = make_segmentation(np.full(SHAPE, 255), AFFINE, NAMES)
    with pytest.raises(WriteError, match="unlabeled"):
        write_segmentation(tmp_path / "a.seg.nrrd", open_label)
    with pytest.raises(WriteError, match="no format"):
        write_segmentation(tmp_path / "a.mha", open_label)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nifti(tmp_path / "a.nii.gz")
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_segmentation(path, make_segmentation(np.zeros(SHAPE, int), AFFINE, NAMES))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii.gz"]


# --- the transform -----------------------------------------------------------------------------------------------


def test_folders_are_kept_and_files_not_overwritten(tmp_path: Path) -> None:
    item = {"pred": MetaTensor(torch.ones(1, 2, 2, 2), meta={"filename_or_obj": "in/a/x.nii.gz"})}
    save = SaveSegmentationd("pred", tmp_path, ["background", "b"], "nrrd", "_seg", root="in", overwrite=False)
    assert save(item)["pred_path"] == str(tmp_path / "a" / "x_seg.nrrd")
    with pytest.raises(WriteError, match="is there already"):
        save(item)


def test_no_map_takes_the_place_of_another_images(tmp_path: Path) -> None:
    def item(name: str) -> dict[str, Any]:
        return {"pred": MetaTensor(torch.ones(1, 2, 2, 2), meta={"filename_or_obj": name})}

    save = SaveSegmentationd("pred", tmp_path, NAMES)
    first = save(item("a/image.nii.gz"))["pred_path"]
    assert save(item("a/image.nii.gz"))["pred_path"] == first, "the same image again"
    with pytest.raises(WriteError, match=r"of a/image.nii.gz, and b/image.nii.gz is called the same; .* as root"):
        save(item("b/image.nii.gz"))
    apart = SaveSegmentationd("pred", tmp_path / "apart", NAMES, root=Path.cwd())
    assert len({apart(item(str(Path(name, "image.nii.gz").absolute())))["pred_path"] for name in "ab"}) == 2


def test_two_maps_of_an_image_are_no_one_file(tmp_path: Path) -> None:
    value = MetaTensor(torch.ones(1, 2, 2, 2), meta={"filename_or_obj": "image.nii.gz"})
    with pytest.raises(WriteError, match="holds 'pred' of the image; write 'label' with a transform and a postfix"):
        SaveSegmentationd(["pred", "label"], tmp_path, NAMES)({"pred": value, "label": value})


def test_a_map_of_nobody_knows_which_image_is_refused(tmp_path: Path) -> None:
    save = SaveSegmentationd("pred", tmp_path, NAMES)
    with pytest.raises(WriteError, match="'pred' does not say which file it was made of"):
        save({"pred": torch.ones(1, 2, 2, 2)})
    assert not list(tmp_path.iterdir())
    named = SaveSegmentationd("pred", tmp_path, NAMES, name_key="name")
    assert Path(named({"pred": torch.ones(1, 2, 2, 2), "name": "x"})["pred_path"]).name == "x.nii.gz"


def test_probabilities_by_their_channels(tmp_path: Path) -> None:
    pred = MetaTensor(torch.from_numpy(probabilities()), affine=torch.from_numpy(OBLIQUE))
    save = SaveSegmentationd("pred", tmp_path, NAMES, source_key="name")
    path = save({"pred": pred, "name": "x.nii.gz"})["pred_path"]
    assert nib.load(path).shape == (*SHAPE, 3)
    with pytest.raises(WriteError, match="must be"):
        save({"pred": torch.zeros(3), "name": "x"})


def test_a_picture_loaded_on_its_side_is_not_written_on_its_side(tmp_path: Path) -> None:
    Image.fromarray(picture_map().T).save(tmp_path / "a.png")
    save = SaveSegmentationd("image", tmp_path / "out", NAMES, ".png")
    for reader in (PILReader(), PILReader(reverse_indexing=False)):
        item = Compose([LoadImaged("image", reader=reader), EnsureChannelFirstd("image")])(
            {"image": tmp_path / "a.png"}
        )
        with pytest.raises(WriteError, match=r"axes are \(y, x\)") if not reader.reverse_indexing else nullcontext():
            save(item)
    np.testing.assert_array_equal(read_drawing(tmp_path / "out" / "a.png").layers[0].values, picture_map())


def test_a_picture_has_no_affine(tmp_path: Path) -> None:
    pred = MetaTensor(torch.from_numpy(picture_map()[None]), meta={"filename_or_obj": "a.jpg"})
    path = SaveSegmentationd("pred", tmp_path, NAMES, ".png")({"pred": pred})["pred_path"]
    np.testing.assert_array_equal(read_drawing(path).layers[0].values, picture_map())
