"""Drawings in every format: what was drawn, with its names, comes back at the same place of the patient."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor, NibabelReader, PILReader
from monai.transforms import (
    Compose,
    EnsureChannelFirst,
    EnsureChannelFirstd,
    Flip,
    Flipd,
    Lambdad,
    LoadImage,
    LoadImaged,
    Orientationd,
    Rotate90,
    Spacingd,
    SpatialCrop,
    SpatialPad,
    Zoom,
)
from PIL import Image
from scipy.spatial.transform import Rotation
from skimage.draw import polygon2mask

from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError
from medcoarse.readers.claims import Claim, as_claims, claimed, drawn_names, preset
from medcoarse.readers.drawing import Drawing, Grid, Layer
from medcoarse.readers.formats import read_drawing
from medcoarse.readers.placement import place
from medcoarse.readers.shapes import Budget, circle, fill, stroke
from medcoarse.transforms.drawn import LoadCoarseAnnotationd, LoadMaskd, UnlabeledIfMissingd
from tests import drawings as made

NAMES = {"vessel": (1, "positive"), "edge": (1, "negative")}
VALUES = {0: None, 1: (1, "positive"), 2: (1, "negative")}


def masks_of(drawing: Drawing) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for layer in drawing.layers:
        for value, name in drawn_names(layer).items():
            if value:
                found[name] = found.get(name, np.zeros(drawing.grid.shape, bool)) | (layer.values == value)
    return found


def same_masks(drawing: Drawing, expected: dict[str, np.ndarray]) -> None:
    found = masks_of(drawing)
    assert set(found) == set(expected)
    for name, mask in expected.items():
        assert np.array_equal(found[name], mask), name


# ---- volumes ----

VOLUMES = ("nii.gz", "nii", "nrrd", "mha", "seg.nrrd", "layers.seg.nrrd", "seg.dcm", "rtstruct.dcm")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The image as NIfTI and as a DICOM series, and the same drawing in every format."""
    folder = tmp_path_factory.mktemp("volumes")
    slices = made.write_series(folder / "series")
    files = {"series": folder / "series", "image": made.write_nifti(folder / "image.nii.gz")}
    for kind in ("nii.gz", "nii"):
        files[kind] = made.write_nifti(folder / f"a.{kind}")
    for kind in ("nrrd", "mha"):
        files[kind] = made.write_itk(folder / f"a.{kind}")
    files["seg.nrrd"] = made.write_seg_nrrd(folder / "one.seg.nrrd")
    files["layers.seg.nrrd"] = made.write_seg_nrrd(folder / "two.seg.nrrd", layered=True)
    files["seg.dcm"] = made.write_dicom_seg(folder / "seg.dcm", slices)
    files["rtstruct.dcm"] = made.write_rtstruct(folder / "rtstruct.dcm", slices[0].FrameOfReferenceUID)
    return files


@pytest.mark.parametrize("kind", VOLUMES)
def test_round_trip_of_volumes(kind: str, volumes: dict[str, Path]):
    drawing = read_drawing(volumes[kind], Grid(made.SHAPE, made.AFFINE))
    expected = made.segments()
    if not drawing.segments:
        expected = {"1": expected["vessel"], "2": expected["edge"]}
    if drawing.grid.shape != made.SHAPE:  # DICOM SEG leaves empty slices out
        first = round(float((drawing.grid.affine[2, 3] - made.ORIGIN[2]) / made.SPACING[2]))
        expected = {name: mask[..., first : first + drawing.grid.shape[2]] for name, mask in expected.items()}
    else:
        assert np.allclose(drawing.grid.affine, made.AFFINE, atol=1e-4)
    same_masks(drawing, expected)


@pytest.mark.parametrize("image", ["image", "series"])
@pytest.mark.parametrize("kind", VOLUMES)
def test_a_known_place_of_the_patient_stays_there(kind: str, image: str, volumes: dict[str, Path]):
    """Also when stock transforms turn the image before, and flip both afterwards."""
    mapping = NAMES if "seg" in kind or "rt" in kind else VALUES
    read = LoadCoarseAnnotationd("drawing", mapping, 2)
    keys = ["image", "positive", "negative"]
    turned = [Orientationd("image", "SPL", labels=None)] if drawn_as_segments(kind) else []
    flips = [Flipd(keys, 0), Flipd(keys, 2)]
    pipeline = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), *turned, read, *flips])
    item = pipeline({"image": volumes[image], "drawing": volumes[kind]})
    for key, name in (("positive", "vessel"), ("negative", "edge")):
        maps = item[key]
        assert isinstance(maps, MetaTensor)
        assert maps.dtype == torch.uint8
        assert maps.shape == (1, *item["image"].shape[1:])
        assert set(torch.unique(maps.as_tensor()).tolist()) == {1, UNLABELED}
        drawn = np.argwhere(maps[0].numpy() == 1)
        ras = drawn @ maps.affine.numpy()[:3, :3].T + maps.affine.numpy()[:3, 3]
        expected = np.argwhere(made.segments()[name]) @ made.AFFINE[:3, :3].T + made.AFFINE[:3, 3]
        assert {tuple(p) for p in ras.round(3).tolist()} == {tuple(p) for p in expected.round(3).tolist()}


def drawn_as_segments(kind: str) -> bool:
    return "seg" in kind or "rt" in kind


@pytest.mark.parametrize("kind", ["nii.gz", "nrrd", "mha", "seg.nrrd", "layers.seg.nrrd", "seg.dcm"])
def test_masks_in_every_format_on_a_dicom_series(kind: str, volumes: dict[str, Path]):
    """What lies in no segment is background, also beyond the box that the file holds."""
    item = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])({"image": volumes["series"]})
    names = ["background", "vessel", "edge"]
    found = LoadMaskd("label", 3, names)({**item, "label": volumes[kind]})["label"]
    lying = LoadCoarseAnnotationd("drawing", {"0": None, "vessel": (1, "positive"), "edge": (2, "positive")}, 3)
    drawn = lying({**item, "drawing": volumes["seg.dcm"]})["positive"]
    np.testing.assert_array_equal(found, np.where(np.asarray(drawn) == UNLABELED, 0, drawn))


@pytest.mark.parametrize("writer", ["seg.nrrd", "seg.dcm"])
def test_overlapping_segments_are_kept(writer: str, tmp_path: Path):
    masks = made.segments()
    masks["edge"] = masks["edge"] | masks["vessel"]
    slices = made.write_series(tmp_path / "series")
    if writer == "seg.nrrd":
        file = made.write_seg_nrrd(tmp_path / "a.seg.nrrd", masks, layered=True)
    else:
        file = made.write_dicom_seg(tmp_path / "a.dcm", slices, masks)
    drawing = read_drawing(file)
    assert len(drawing.layers) == 2
    first = round(float((drawing.grid.affine[2, 3] - made.ORIGIN[2]) / made.SPACING[2]))
    same_masks(drawing, {name: m[..., first : first + drawing.grid.shape[2]] for name, m in masks.items()})


def test_slicer_names_in_any_language_and_files_of_old_versions(tmp_path: Path):
    masks = {"Gefäß": made.segments()["vessel"], "edge": made.segments()["edge"]}
    ascii_masks = {"NAME": masks["Gefäß"], "edge": masks["edge"]}  # pynrrd writes ASCII only, Slicer writes UTF-8
    for layered in (False, True):
        file = made.write_seg_nrrd(tmp_path / "a.seg.nrrd", ascii_masks, layered)
        file.write_bytes(file.read_bytes().replace(b"Name:=NAME", "Name:=Gefäß".encode()))
        same_masks(read_drawing(file), masks)
    new = file.read_bytes()
    old = b"\n".join(line for line in new.split(b"\n") if b"_Layer:" not in line and b"_LabelValue:" not in line)
    (tmp_path / "old.seg.nrrd").write_bytes(old)
    same_masks(read_drawing(tmp_path / "old.seg.nrrd"), masks)


@pytest.mark.parametrize("kind", ["nrrd", "mha"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_itk_files_of_any_type_turned_in_space(kind: str, compress: bool, dtype: type, tmp_path: Path):
    image = made.itk_image(made.label_map().astype(dtype))
    image.SetDirection((0, 0.6, 0.8, 1, 0, 0, 0, 0.8, -0.6))
    sitk.WriteImage(image, str(tmp_path / f"a.{kind}"), compress)
    drawing = read_drawing(tmp_path / f"a.{kind}")
    index = (3, 2, 1)
    place_ras = drawing.grid.affine @ [*index, 1]
    assert np.allclose(place_ras[:3] * (-1, -1, 1), image.TransformIndexToPhysicalPoint(index))
    assert np.array_equal(drawing.layers[0].values, made.label_map())


@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (1, 0)])
def test_nifti_headers_that_contradict_themselves(codes: tuple[int, int], tmp_path: Path):
    """Two places, or sizes of voxels that are not those of the place: a drawing with its image's header lies on it."""
    for name in ("image", "drawing"):
        saved = nib.Nifti1Image(np.ones((4, 3, 2), np.uint8), None)
        saved.set_sform(np.diag([2, 2, 3, 1]), codes[0])
        saved.set_qform(np.diag([-1, 1, 5, 1]), codes[1])
        nib.save(saved, tmp_path / f"{name}.nii.gz")
    item = {key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "drawing")}
    load = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), LoadCoarseAnnotationd("drawing", "dense", 2)])
    found = load(item)
    assert (found["positive"] == 1).all()
    np.testing.assert_array_equal(read_drawing(item["drawing"]).grid.affine, found["image"].affine)


@pytest.mark.parametrize("reader", [None, "PydicomReader"])  # ITK sorts slices by place, pydicom's by instance
def test_slices_in_reverse_order_of_instances(reader: str | None, tmp_path: Path):
    slices = made.write_series(tmp_path / "series", reverse=True)
    file = made.write_dicom_seg(tmp_path / "a.dcm", slices)
    load = LoadImaged("image", reader=reader)
    item = Compose([load, EnsureChannelFirstd("image"), LoadCoarseAnnotationd("drawing", NAMES, 2)])(
        {"image": tmp_path / "series", "drawing": file}
    )
    affine = item["positive"].affine.numpy()
    ras = np.argwhere(item["positive"][0].numpy() == 1) @ affine[:3, :3].T + affine[:3, 3]
    expected = np.argwhere(made.segments()["vessel"]) @ made.AFFINE[:3, :3].T + made.AFFINE[:3, 3]
    assert {tuple(p) for p in ras.round(3).tolist()} == {tuple(p) for p in expected.round(3).tolist()}
    assert np.allclose(item["image"].affine, affine)


@pytest.mark.parametrize(
    "axes", [(0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0), (0.6, 0.8, 0, -0.48, 0.36, 0.8)]
)
def test_dicom_series_along_any_axes(axes: tuple[float, ...], tmp_path: Path):
    file = made.write_dicom_seg(tmp_path / "a.dcm", made.write_series(tmp_path / "series", axes=axes))
    read = LoadCoarseAnnotationd("drawing", NAMES, 2)
    item = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), read])(
        {"image": tmp_path / "series", "drawing": file}
    )
    steps = np.stack([axes[:3], axes[3:], np.cross(axes[:3], axes[3:])], 1) * made.SPACING
    expected = (np.argwhere(made.segments()["vessel"]) @ steps.T + made.ORIGIN) * (-1, -1, 1)
    affine = item["positive"].affine.numpy()
    found = np.argwhere(item["positive"][0].numpy() == 1) @ affine[:3, :3].T + affine[:3, 3]
    assert {tuple(p) for p in (found.round(2) + 0.0).tolist()} == {tuple(p) for p in (expected.round(2) + 0.0).tolist()}


# ---- pictures ----


def write_outlines(kind: str, folder: Path) -> Path:
    content = getattr(made, kind)()
    return made.write_json(folder / f"{kind}.json", content)


@pytest.mark.parametrize("kind", ["labelme", "coco", "cityscapes", "geojson"])
def test_outlines_on_a_picture(kind: str, tmp_path: Path):
    Image.new("RGB", made.PICTURE).save(tmp_path / "image.png")
    read = LoadCoarseAnnotationd("drawing", NAMES, 2)
    keys = ["image", "positive"]
    pipeline = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), read, Flipd(keys, 1)])
    item = pipeline({"image": tmp_path / "image.png", "drawing": write_outlines(kind, tmp_path)})
    assert np.array_equal(item["positive"][0].numpy() == 1, (made.picture_map() == 1)[:, ::-1])
    assert np.array_equal(item["negative"][0].numpy() == 1, made.picture_map() == 2)
    assert (item["negative"][0].numpy() != 1).sum() == (item["negative"][0].numpy() == UNLABELED).sum()


@pytest.mark.parametrize("palette", [False, True])
def test_png_values_and_palette_indices(palette: bool, tmp_path: Path):
    drawing = read_drawing(made.write_picture(tmp_path / "a.png", palette))
    assert np.array_equal(drawing.layers[0].values, made.picture_map())


def test_geojson_holes_lines_and_several_parts(tmp_path: Path):
    ring = [[0, 0], [8, 0], [8, 5], [0, 5], [0, 0]]
    hole = [[2, 1], [4, 1], [4, 3], [2, 3], [2, 1]]
    properties = {"classification": {"names": ["Tumor", "Positive"]}}
    features = [{"geometry": {"type": "Polygon", "coordinates": [ring, hole]}, "properties": properties}]
    two = [[[[0, 0], [1, 0], [1, 1], [0, 1]]], [[[7, 4], [8, 4], [8, 5], [7, 5]]]]
    features.append({"geometry": {"type": "MultiPolygon", "coordinates": two}, "properties": {"name": "two"}})
    line = {"type": "LineString", "coordinates": [[0.5, 2.5], [7.5, 2.5]]}
    features.append({"geometry": line, "properties": {"name": "line"}})
    file = made.write_json(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": features})
    found = masks_of(read_drawing(file, Grid(made.PICTURE)))
    expected = np.ones(made.PICTURE, bool)
    expected[2:4, 1:3] = False
    assert np.array_equal(found["Tumor: Positive"], expected)
    assert np.argwhere(found["two"]).tolist() == [[0, 0], [7, 4]]
    assert np.argwhere(found["line"]).tolist() == [[x, 2] for x in range(8)]


def test_geojson_as_qupath_writes_it_without_a_collection(tmp_path: Path):
    """A list of features; one of them has no class."""
    features = made.geojson()["features"]
    del features[1]["properties"]["classification"]
    for name, content in (("a.geojson", features), ("b.json", features), ("c.geojson", features[1])):
        found = masks_of(read_drawing(made.write_json(tmp_path / name, content), Grid(made.PICTURE)))
        assert np.array_equal(found["unclassified"], made.picture_map() == 2)
        if len(content) == 2 and isinstance(content, list):
            assert np.array_equal(found["vessel"], made.picture_map() == 1)
    Image.new("RGB", made.PICTURE).save(tmp_path / "image.png")
    image = EnsureChannelFirst()(LoadImage(image_only=True)(tmp_path / "image.png"))
    read = LoadCoarseAnnotationd("drawing", {"vessel": (1, "positive")}, 2)
    with pytest.raises(DataError, match=r"'unclassified' \(2 voxels\) are drawn, but not in the mapping"):
        read({"image": image, "drawing": tmp_path / "a.geojson"})


@pytest.mark.parametrize("by", [(9.7, 0), (-2.5, 0), (0, 6.7), (0, -2.5)])
def test_geojson_of_a_larger_picture_is_refused(by: tuple[float, float], tmp_path: Path):
    """A pixel and a fiftieth of the side beyond the border is let through."""

    def shape(x: float, y: float) -> Path:
        geometry = {"type": "Polygon", "coordinates": [[[2, 2], [3, 2], [x, y], [2, 2]]]}
        return made.write_json(tmp_path / "a.geojson", [{"geometry": geometry, "properties": {"name": "a"}}])

    read_drawing(shape(9.1, 6.1), Grid(made.PICTURE))
    read_drawing(shape(-1, -1), Grid(made.PICTURE))
    with pytest.raises(
        DataError, match=r"pixels beyond the picture, which has 8 x 5; pass the picture it was drawn on"
    ):
        read_drawing(shape(*(4 if step == 0 else step for step in by)), Grid(made.PICTURE))


@pytest.mark.parametrize("kind", ["geojson", "labelme"])
def test_a_picture_with_its_axes_the_other_way_round(kind: str, tmp_path: Path):
    Image.new("RGB", made.PICTURE).save(tmp_path / "image.png")
    loading = [LoadImaged("image", reader=PILReader(reverse_indexing=False)), EnsureChannelFirstd("image")]
    pipeline = Compose([*loading, LoadCoarseAnnotationd("drawing", NAMES, 2)])
    with pytest.raises(RuntimeError) as error:
        pipeline({"image": tmp_path / "image.png", "drawing": write_outlines(kind, tmp_path)})
    assert "image.png: its axes are (y, x), those of drawings (x, y)" in str(error.value.__cause__)
    undrawn = Compose([*loading, UnlabeledIfMissingd("label")])({"image": tmp_path / "image.png"})
    assert undrawn["label"].shape == (1, *made.PICTURE[::-1]), "nothing is read, so nothing can be misplaced"


def test_contours_on_an_image_that_was_resampled_since(tmp_path: Path):
    """They are filled on the slices that they were drawn on, and never every third one of thinner slices."""
    nib.save(nib.Nifti1Image(np.zeros(made.SHAPE, np.float32), made.AFFINE), tmp_path / "image.nii.gz")
    drawn = made.write_rtstruct(tmp_path / "a.dcm", "1.2")
    spacing = np.array(made.SPACING) / (1, 1, 3)
    loading = [LoadImaged("image"), EnsureChannelFirstd("image")]
    item = {"image": tmp_path / "image.nii.gz", "drawing": drawn}
    expected = Compose(
        [
            *loading,
            LoadCoarseAnnotationd("drawing", NAMES, 2),
            Spacingd(["image", "positive"], spacing, mode=["bilinear", "nearest"]),
        ]
    )(item)
    resampled = [*loading, Spacingd("image", spacing)]
    with pytest.raises(RuntimeError) as error:
        Compose([*resampled, LoadCoarseAnnotationd("drawing", NAMES, 2)])(item)
    assert "lies on another grid than the image" in str(error.value.__cause__)
    found = Compose([*resampled, LoadCoarseAnnotationd("drawing", NAMES, 2, resample=True)])(item)
    assert found["positive"].shape == found["image"].shape
    vessel = [(one["positive"] == 1).sum().item() for one in (found, expected)]
    assert vessel[0] == pytest.approx(vessel[1], rel=0.2)
    slices = (found["positive"] == 1).any(1).any(1)[0].nonzero().flatten().tolist()
    assert slices == list(range(slices[0], slices[-1] + 1)), "no slice is left out"


@pytest.mark.parametrize("canonical", [False, True])
@pytest.mark.parametrize("stored", [[[0, 1], [1, 1], [2, 1]], [[2, 1], [0, -1], [1, 1]]])
def test_contours_on_a_volume_that_was_cut_or_turned_since(canonical: bool, stored: list[list[int]], tmp_path: Path):
    """The same voxels, of what is left of it, as if it had been turned after they were drawn."""
    volume = nib.Nifti1Image(np.zeros(made.SHAPE, np.float32), made.AFFINE)
    nib.save(volume.as_reoriented(np.array(stored)), tmp_path / "image.nii.gz")
    drawn = made.write_rtstruct(tmp_path / "a.dcm", "1.2")
    load = LoadImaged("image", reader=NibabelReader(as_closest_canonical=canonical))
    read = LoadCoarseAnnotationd("drawing", NAMES, 2)
    image = EnsureChannelFirstd("image")(load({"image": tmp_path / "image.nii.gz"}))["image"]
    whole = read({"image": image, "drawing": drawn})["positive"]
    assert (whole == 1).sum() == made.segments()["vessel"].sum()
    inner = SpatialCrop(roi_start=(1, 1, 1), roi_end=(99, 99, 99))
    for move in (inner, Flip(0), SpatialPad((20, 20, 20)), Compose([inner, Rotate90(1, (0, 2))])):
        found = read({"image": move(image), "drawing": drawn})["positive"]
        assert torch.equal(found.as_tensor() == 1, move(whole).as_tensor() == 1)


def test_outlines_on_a_slice_of_a_volume(tmp_path: Path):
    """Along any axis: the file's axes say nothing of the slice."""
    nib.save(nib.Nifti1Image(np.zeros((8, 3, 5), np.float32), np.eye(4)), tmp_path / "image.nii.gz")
    loading = [LoadImaged("image"), EnsureChannelFirstd("image"), Lambdad("image", lambda image: image[:, :, 1])]
    read = Compose([*loading, LoadCoarseAnnotationd("drawing", NAMES, 2)])
    found = read({"image": tmp_path / "image.nii.gz", "drawing": write_outlines("geojson", tmp_path)})
    assert np.array_equal(found["positive"][0] == 1, made.picture_map() == 1)


def test_labelme_shapes(tmp_path: Path):
    content = made.labelme()
    content["shapes"] = [
        {"label": "a", "shape_type": "rectangle", "points": [[6, 4], [2, 1]]},
        {"label": "b", "shape_type": "linestrip", "points": [[0.5, 0.5], [0.5, 4.5], [2.5, 4.5]]},
        {"label": "c", "shape_type": "circle", "points": [[6.5, 2.5], [6.5, 4.0]]},
        {"label": "d", "shape_type": "point", "points": [[7.9, 4.9]]},
    ]
    found = masks_of(read_drawing(made.write_json(tmp_path / "a.json", content)))
    assert np.argwhere(found["a"]).tolist() == [[x, y] for x in range(2, 6) for y in range(1, 4)]
    assert np.argwhere(found["b"]).tolist() == [[0, y] for y in range(5)] + [[1, 4], [2, 4]]
    assert np.argwhere(found["c"]).tolist() == [[x, y] for x in (5, 6, 7) for y in (1, 2, 3)]
    assert np.argwhere(found["d"]).tolist() == [[7, 4]]


def test_cityscapes_later_objects_cover_earlier_ones(tmp_path: Path):
    content = made.cityscapes()
    content["objects"].insert(0, {"label": "road", "polygon": [[0, 0], [7, 0], [7, 4], [0, 4]]})
    content["objects"].append({"label": "gone", "deleted": 1, "polygon": [[0, 0], [7, 0], [7, 4]]})
    found = masks_of(read_drawing(made.write_json(tmp_path / "a_polygons.json", content)))
    assert set(found) == {"road", "vessel", "edge"}
    assert np.array_equal(found["road"], made.picture_map() == 0)


# ---- shapes ----


@pytest.mark.parametrize("seed", range(8))
def test_fill_against_scikit_image(seed: int):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-6, 36, (int(rng.integers(3, 30)), 2))  # crosses itself and leaves the picture
    box, drawn = fill([points], (30, 25), Budget())
    found = np.zeros((30, 25), bool)
    found[box] = drawn
    assert np.array_equal(found, polygon2mask((30, 25), points))


def test_neighbours_share_no_pixel_and_leave_none_out():
    """Pixel centres exactly on the common edges."""
    total = np.zeros((6, 6), int)
    for x in (0, 3):
        for y in (0, 2, 4):
            box, drawn = fill([np.array([[x, y], [x + 3, y], [x + 3, y + 2], [x, y + 2]], float)], (6, 6), Budget())
            total[box] += drawn
    assert (total == 1).all()


def test_strokes_are_connected_and_cut_at_the_border():
    box, drawn = stroke(np.array([[-5.0, 2.0], [3.0, 2.2], [3.0, 99.0]]), (6, 5), Budget())
    found = np.zeros((6, 5), bool)
    found[box] = drawn
    assert np.argwhere(found).tolist() == [[0, 2], [1, 2], [2, 2], [3, 2], [3, 3], [3, 4]]
    assert fill([circle(np.array([50.0, 50.0]), 3.0)], (6, 5), Budget())[1].size == 0


def test_rtstruct_holes_and_strokes(tmp_path: Path):
    regions = {
        "ring": [("CLOSED_PLANAR", made.contour((0, 6, 0, 6), 2)), ("CLOSED_PLANAR", made.contour((2, 4, 2, 4), 2))],
        "line": [("OPEN_PLANAR", made.contour((1, 5, 1, 1), 4)[:6])],
        "dot": [("POINT", list(np.array(made.ORIGIN) + np.array(made.SPACING) * (6, 5, 0)))],
    }
    found = masks_of(
        read_drawing(made.write_rtstruct(tmp_path / "a.dcm", "1.2", regions), Grid(made.SHAPE, made.AFFINE))
    )
    ring = np.zeros(made.SHAPE, bool)
    ring[0:6, 0:6, 2] = True
    ring[2:4, 2:4, 2] = False
    assert np.array_equal(found["ring"], ring)
    assert set(np.argwhere(found["line"])[:, 2]) == {4}
    assert np.argwhere(found["dot"]).tolist() == [[6, 5, 0]]


# ---- mapping ----


def drawing_of(*layers: dict[int, str] | None, values: list[list[int]], segments: bool = True) -> Drawing:
    parts = tuple(Layer(np.array(v), names or {}) for v, names in zip(values, layers, strict=True))
    return Drawing(Grid((len(values[0]),)), parts, segments)


def test_presets():
    values = drawing_of(None, values=[[0, 1, 2]], segments=False)
    assert as_claims({"0": "null", "1": [1, "positive"]}, 2)["0"] is None  # JSON, handed on by MONAI's command line
    dense = claimed(values, as_claims(preset("dense", 3), 3), "a")
    assert dense["positive"].tolist() == [[0, 1, 2]]
    assert dense["negative"].shape == (0, 3)
    itksnap = claimed(values, as_claims(preset("itksnap", 3), 3), "a")
    assert itksnap["positive"].tolist() == [[UNLABELED, 1, 2]]
    strokes = drawing_of(None, values=[[0, 1, 255]], segments=False)
    assert claimed(strokes, as_claims(preset("unlabeled_255", 2), 2), "a")["positive"].tolist() == [[0, 1, UNLABELED]]
    scribbles = claimed(
        drawing_of(None, values=[[0, 2, 3]], segments=False), as_claims(preset("monailabel_scribbles", 2), 2), "a"
    )
    assert scribbles["positive"].tolist() == [[UNLABELED, UNLABELED, 1]]
    assert scribbles["negative"].tolist() == [[UNLABELED, 1, UNLABELED]]
    slicer = as_claims(preset("slicer", 2, ["background", "vessel"]), 2)
    named = drawing_of({1: "vessel", 2: "not vessel", 3: "background"}, values=[[0, 1, 2, 3]])
    assert claimed(named, slicer, "a")["positive"].tolist() == [[UNLABELED, 1, UNLABELED, 0]]
    assert claimed(named, slicer, "a")["negative"].tolist() == [[UNLABELED, UNLABELED, 1, UNLABELED]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("oil", 2), r"no preset 'oil', expected one of \('dense', .*or a mapping"),
        (lambda: preset("slicer", 2), "preset 'slicer' needs class_names, 2 names, got None"),
        (
            lambda: preset("monailabel_scribbles", 4),
            r"write a mapping such as \{0: None, 4: \(1, 'negative'\), 5: \(1, ",
        ),
        (lambda: as_claims({1: 1}, 2), "1 is mapped to 1, expected None .* with classes 0 to 1"),
        (lambda: as_claims({1: "positive"}, 2), "is mapped to 'positive'"),
        (lambda: as_claims({1: (2, "positive")}, 2), "with classes 0 to 1"),
        (lambda: as_claims({1: (1, "both")}, 2), "'positive' or 'negative'"),
        (lambda: as_claims({1: (1, "positive"), "1": None}, 2), "a key twice"),
        (lambda: as_claims({1: None}, 2), "says nothing"),
        (lambda: LoadCoarseAnnotationd("a", "dense", 2, contradictions="x"), "must be one of"),
        (lambda: LoadCoarseAnnotationd("a", "dense", 2, tolerance=1), "tolerance must be"),
        (lambda: LoadCoarseAnnotationd(["a", "b"], "dense", 2), "outputs of its own"),
    ],
)
def test_what_is_no_mapping(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_drawn_is_never_background_unless_one_says_so():
    """Nor is it in a layer where another layer has a segment."""
    drawing = drawing_of({1: "a"}, {1: "b"}, values=[[0, 1, 0], [0, 0, 1]])
    mapping = {"a": (1, "positive"), "b": (2, "positive")}
    assert claimed(drawing, as_claims(mapping, 3), "x")["positive"].tolist() == [[UNLABELED, 1, 2]]
    assert claimed(drawing, as_claims({0: (0, "positive"), **mapping}, 3), "x")["positive"].tolist() == [[0, 1, 2]]


def test_what_is_not_mapped_is_listed_with_the_remedy():
    with pytest.raises(DataError) as error:
        claimed(drawing_of({1: "a", 2: "b"}, values=[[0, 1, 1, 2]]), as_claims({"A": (1, "positive")}, 2), "f.nrrd")
    text = str(error.value)
    assert "f.nrrd: 'a' (2 voxels), 'b' (1 voxels) are drawn, but not in the mapping, which has ['A']" in text
    assert "{'a': (class, 'positive')}" in text
    assert "None" in text
    with pytest.raises(DataError, match=r"'0' \(2 voxels\) are drawn, but not"):
        claimed(drawing_of(None, values=[[0, 0, 1]], segments=False), as_claims({1: (1, "positive")}, 2), "f")


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ((1, "positive"), (2, "positive"), True),
        ((1, "positive"), (1, "negative"), True),
        ((1, "negative"), (2, "negative"), True),
        ((1, "positive"), (2, "negative"), False),
        ((1, "positive"), (1, "positive"), False),
        ((1, "positive", 0), (2, "positive", 1), False),
        ((1, "positive", 0), (1, "negative", 1), False),
    ],
)
def test_contradictions_of_one_annotator(first: tuple, second: tuple, clash: bool):
    drawing = drawing_of({1: "a"}, {1: "b"}, values=[[1, 1, 0], [0, 1, 1]])
    claims = as_claims({"a": first, "b": second}, 3)
    if clash:
        with pytest.raises(DataError, match=r"contradicts itself: annotator 0 at 1 voxels, first \(1,\);.*'unlabeled'"):
            claimed(drawing, claims, "f")
        maps = claimed(drawing, claims, "f", "unlabeled")
        assert all((values[:1, 1] == UNLABELED).all() for values in maps.values())
        assert sum(int((values != UNLABELED).sum()) for values in maps.values()) == 2
    else:
        maps = claimed(drawing, claims, "f")
        assert maps[first[1]][Claim(*first).annotator, 1] == first[0]
        assert maps[second[1]][Claim(*second).annotator, 1] == second[0]


def test_structures_in_one_another_are_covered_in_the_order_of_the_mapping():
    """The order of the segments in the file says nothing; other annotators and other voxels stay as they are."""
    drawing = drawing_of(
        {1: "tumour", 2: "else"}, {1: "liver"}, {1: "not tumour"}, values=[[0, 1, 1, 2], [1, 1, 1, 0], [1, 1, 0, 0]]
    )
    told = {
        "liver": (1, "positive"),
        "tumour": (2, "positive"),
        "else": (1, "positive", 1),
        "not tumour": (2, "negative"),
    }
    maps = claimed(drawing, as_claims(told, 3), "f", "last")
    assert maps["positive"].tolist() == [[1, UNLABELED, 2, UNLABELED], [UNLABELED] * 3 + [1]]
    assert maps["negative"].tolist() == [[2, 2, UNLABELED, UNLABELED]]
    told["tumour"] = told.pop("tumour")  # now last of all
    maps = claimed(drawing, as_claims(told, 3), "f", "last")
    assert maps["positive"][0].tolist() == [1, 2, 2, UNLABELED]
    assert maps["negative"].tolist() == [[2, UNLABELED, UNLABELED, UNLABELED]]
    told["liver"] = told.pop("liver")
    assert claimed(drawing, as_claims(told, 3), "f", "last")["positive"][0].tolist() == [1, 1, 1, UNLABELED]


def test_in_no_segment_means_what_it_is_mapped_to_beside_structures_in_one_another():
    drawing = drawing_of({1: "tumour"}, {1: "liver"}, values=[[0, 0, 1], [0, 1, 1]])
    claims = as_claims({"liver": (1, "positive"), "tumour": (2, "positive"), "0": (0, "positive")}, 3)
    assert claimed(drawing, claims, "f", "last")["positive"].tolist() == [[0, 1, 2]]
    plain = drawing_of(None, values=[[0, 2, 1]], segments=False)
    assert claimed(plain, as_claims(preset("dense", 3), 3), "f", "last")["positive"].tolist() == [[0, 2, 1]]


# ---- geometry ----


def on(shape: tuple[int, ...], spacing: tuple[float, ...] = (1, 1, 1), origin: tuple[float, ...] = (0, 0, 0)) -> Grid:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return Grid(shape, affine)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (on((4, 4, 5)), r"shape \(4, 4, 4\), the image's \(4, 4, 5\)"),
        (on((4, 4, 4), (1, 1, 2)), r"spacing \(1.0, 1.0, 1.0\), the image's \(1.0, 1.0, 2.0\)"),
        (on((4, 4, 4), origin=(0, 1, 0)), r"origin \(0.0, 0.0, 0.0\), the image's \(0.0, 1.0, 0.0\)"),
        (on((4, 4, 4), (-1, 1, 1)), "orientation RAS, the image's LAS"),
        (Grid((4, 4)), r"has shape \(4, 4, 4\), the image \(4, 4\)"),
    ],
)
def test_other_grids_are_refused(other: Grid, message: str):
    maps = np.zeros((1, 4, 4, 4), np.uint8)
    with pytest.raises(DataError, match=message):
        place(maps, on((4, 4, 4)), other, "f", [255])
    if other.affine is not None:
        assert place(maps, on((4, 4, 4)), other, "f", [255], resample=True).shape == (1, *other.shape)


def test_a_plane_and_a_volume_of_one_slice_are_one_grid():
    """As ITK-SNAP and 3D Slicer save what is drawn on a picture; a picture's affine, if it has one, says nothing."""
    maps = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    volume, saved = maps[..., None], on((3, 4, 1), (-1, -1, 1))
    for target in (Grid((3, 4)), on((3, 4), (-1, -1, 1)), on((3, 4), (-2, -2, 2))):
        assert np.array_equal(place(volume, saved, target, "f", [255]), maps)
    for turned in (on((3, 4)), on((3, 4), (1, -1, 1)), Grid((3, 4), np.eye(4)[[2, 0, 1, 3]])):
        with pytest.raises(DataError, match="another grid"):
            place(volume, saved, turned, "f", [255])
    noisy = np.eye(4)
    noisy[2, 0] = 1e-9  # as direction cosines have it
    half = Grid((3, 4), np.diag([0.5, 0.5, 1, 1]))
    assert np.array_equal(place(volume, Grid((3, 4, 1), noisy), half, "f", [255]), maps)
    for angle in (10, 45, 89):
        oblique = np.eye(4)
        oblique[:3, :3] = Rotation.from_euler("x", angle, degrees=True).as_matrix()
        with pytest.raises(DataError, match="another grid"):
            place(volume, Grid((3, 4, 1), oblique), on((3, 4)), "f", [255])
    assert np.array_equal(place(maps, Grid((3, 4)), on((3, 4, 1)), "f", [255]), maps[..., None])
    tilted = np.eye(4)
    tilted[1:3, 1:3] = [[0.94, -0.34], [0.34, 0.94]]
    flat = tilted.copy()
    flat[2] = [0, 0, 1, 0]  # as SqueezeDim leaves it
    assert np.array_equal(place(volume, Grid((3, 4, 1), tilted), Grid((3, 4), flat), "f", [255]), maps)
    for turn in ([2, 0, 1, 3], [0, 2, 1, 3]):  # a sagittal and a coronal slice
        affine = np.eye(4)[turn]
        for other, same in ((affine, True), (affine @ np.diag([-1, 1, 1, 1]), False)):
            try:
                found = place(volume, Grid((3, 4, 1), affine), Grid((3, 4), other), "f", [255])
            except DataError:
                assert not same
            else:
                assert same
                assert np.array_equal(found, maps)
    for resample in (False, True):
        with pytest.raises(DataError, match=r"has shape \(4, 3, 1\), the image \(3, 4\)"):
            place(maps.reshape(1, 4, 3, 1), on((4, 3, 1)), Grid((3, 4)), "f", [255], resample=resample)


def test_a_drawing_that_misses_the_image_is_refused(tmp_path: Path):
    """As a whole: of one kind everything may lie outside."""
    values = np.zeros((8, 8, 8), np.uint8)
    values[1, 1, 1], values[6, 6, 6] = 1, 2
    file = tmp_path / "drawn.nii.gz"
    nib.save(nib.Nifti1Image(values, np.eye(4)), file)
    read = LoadCoarseAnnotationd("drawing", VALUES, 2, resample=True)

    def read_at(origin: float) -> dict:
        affine = torch.eye(4, dtype=torch.float64)
        affine[:3, 3] = origin
        return read({"image": MetaTensor(torch.zeros(1, 4, 4, 4), affine=affine), "drawing": file})

    part = read_at(4)
    assert (part["positive"] == 255).all()
    assert np.argwhere(np.asarray(part["negative"][0]) == 1).tolist() == [[2, 2, 2]]
    with pytest.raises(DataError, match="nothing that is drawn lies in the image"):
        read_at(20)
    nib.save(nib.Nifti1Image(0 * values, np.eye(4)), file)
    assert (read_at(20)["positive"] == 255).all(), "nothing was drawn"


def test_tolerance_is_at_the_corners():
    maps = np.zeros((1, 100, 4, 4), np.uint8)
    assert place(maps, on((100, 4, 4)), on((100, 4, 4), (1.0004, 1, 1)), "f", [255]) is maps
    with pytest.raises(DataError, match="another grid"):
        place(maps, on((100, 4, 4)), on((100, 4, 4), (1.001, 1, 1)), "f", [255])


def test_nearest_voxel_and_nothing_beyond_half_of_one():
    maps = np.array([[[[1]], [[2]]]], dtype=np.uint8)  # centres at x = 0 and x = 3
    placed = place(maps, on((2, 1, 1), (3, 1, 1)), on((9, 1, 1), origin=(-3, 0, 0)), "f", [255], resample=True)
    assert placed.ravel().tolist() == [255, 255, 1, 1, 1, 2, 2, 2, 255]


def test_segments_may_be_a_turned_box_but_not_lie_outside():
    maps = np.full((1, 2, 3, 4), 255, np.uint8)
    maps[0, 1, 2, 3] = 1
    box = Grid((2, 3, 4), np.array([[0, 0, -1, 6], [1, 0, 0, 2], [0, 1, 0, 1], [0, 0, 0, 1.0]]))
    placed = place(maps, box, on((8, 8, 8)), "f", [255], segments=True)
    assert np.argwhere(placed[0] == 1).tolist() == [[3, 3, 3]]
    with pytest.raises(DataError, match="1 voxels are drawn outside the image"):
        place(maps, box, on((8, 8, 3)), "f", [255], segments=True)
    with pytest.raises(DataError, match="another grid"):
        place(maps, box, on((8, 8, 8)), "f", [255])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flipped", [(), (0,), (1, 2)])
def test_the_same_voxels_stored_in_another_order(order: tuple[int, ...], flipped: tuple[int, ...]):
    """NiBabel turns the array and its affine together; then every voxel is where it was."""
    values = np.random.default_rng(0).integers(0, 3, (3, 4, 5)).astype(np.uint8)
    image = nib.Nifti1Image(values, made.AFFINE)
    axes = [[axis, -1 if axis in flipped else 1] for axis in order]
    stored = image.as_reoriented(np.array(axes))
    drawn, there = np.asarray(stored.dataobj), Grid(stored.shape, stored.affine)
    placed = place(drawn[None], there, Grid(values.shape, made.AFFINE), "f", [255])
    assert np.array_equal(placed[0], values)
    shifted = stored.affine.copy()
    shifted[:3, 3] += stored.affine[:3, 0]  # by one voxel
    longer = np.concatenate([drawn, drawn[:1]])
    for maps, affine in ((drawn, shifted), (longer, stored.affine), (drawn[:-1], stored.affine)):
        with pytest.raises(DataError, match="another grid"):
            place(maps[None], Grid(maps.shape, affine), Grid(values.shape, made.AFFINE), "f", [255])


def test_another_frame_of_reference_is_refused_and_not_quoted(tmp_path: Path):
    slices = made.write_series(tmp_path / "series")
    made.write_series(tmp_path / "other")
    files = [made.write_dicom_seg(tmp_path / "seg.dcm", slices)]
    files.append(made.write_rtstruct(tmp_path / "rt.dcm", slices[0].FrameOfReferenceUID))
    for file in files:
        load = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])
        read = LoadCoarseAnnotationd("drawing", NAMES, 2, resample=True)
        read(load({"image": tmp_path / "series", "drawing": file}))
        with pytest.raises(DataError, match="another DICOM frame of reference") as error:
            read(load({"image": tmp_path / "other", "drawing": file}))
        assert slices[0].FrameOfReferenceUID not in str(error.value)


# ---- the transform ----


def test_one_file_for_each_person(tmp_path: Path):
    first = made.write_nifti(tmp_path / "a.nii.gz")
    second = made.write_nifti(tmp_path / "b.nii.gz", (made.label_map() == 1).astype(np.uint8))
    image = MetaTensor(torch.zeros(1, *made.SHAPE), affine=torch.as_tensor(made.AFFINE))
    item = LoadCoarseAnnotationd("drawing", VALUES, 2)({"image": image, "drawing": [first, None, str(second)]})
    assert item["positive"].shape == item["negative"].shape == (3, *made.SHAPE)
    assert [int((one == 1).sum()) for one in item["positive"]] == [13, 0, 13]
    assert [int((one == 1).sum()) for one in item["negative"]] == [3, 0, 0]
    only = LoadCoarseAnnotationd("drawing", {0: None, 1: (1, "positive"), 2: None}, 2)
    assert "negative" not in only({"image": image, "drawing": first})
    assert "positive" not in LoadCoarseAnnotationd("drawing", VALUES, 2, allow_missing_keys=True)({"image": image})


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("depth", [(), (1,)])
def test_what_itk_saves_of_a_picture_lies_on_it(ending: str, depth: tuple[int, ...], tmp_path: Path):
    """ITK keeps columns and rows and makes up a place in space; a drawing that was turned has another shape."""
    values = np.zeros((6, 4), np.uint8)  # columns, rows
    values[1, 3], values[5, 0] = 1, 2
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "photo.png")
    drawing = sitk.GetImageFromArray(values.T.reshape(*depth, 4, 6))
    drawing.SetSpacing((0.3, 0.3, 1.0)[: drawing.GetDimension()])
    sitk.WriteImage(drawing, tmp_path / f"drawn{ending}")
    image = EnsureChannelFirst()(LoadImage(reader="PILReader")(tmp_path / "photo.png"))
    for resample in (False, True):
        read = LoadCoarseAnnotationd("drawing", VALUES, 2, resample=resample)
        item = read({"image": image, "drawing": tmp_path / f"drawn{ending}"})
        assert item["positive"].shape == item["negative"].shape == (1, 6, 4)
        assert np.argwhere(np.asarray(item["positive"][0]) == 1).tolist() == [[1, 3]]
        assert np.argwhere(np.asarray(item["negative"][0]) == 1).tolist() == [[5, 0]]
        assert torch.equal(item["positive"].affine, image.affine)


PENS = {
    "nii.gz": lambda path, values: nib.save(nib.Nifti1Image(values[..., None], np.diag([-0.3, -0.3, 1, 1])), path),
    "nrrd": lambda path, values: sitk.WriteImage(sitk.GetImageFromArray(values.T[None]), path),
    "png": lambda path, values: Image.fromarray(values.T).save(path),
}
MOVES = {
    "flipped": Flip(0),
    "turned by 180 degrees": Flip((0, 1)),
    "turned by 90 degrees": Rotate90(1),
    "padded": SpatialPad((9, 8), value=255),
    "padded behind": SpatialPad((9, 8), method="end", value=255),
    "cropped": SpatialCrop(roi_start=(1, 0), roi_end=(6, 4)),
    "cropped behind": SpatialCrop(roi_start=(0, 0), roi_end=(6, 4)),
    "cut off": SpatialCrop(roi_start=(0, 2), roi_end=(3, 4)),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("ending", PENS)
@pytest.mark.parametrize("made_up", [np.eye(3), np.diag([-1.0, -1.0, 1.0])], ids=["Pillow", "ITK"])
def test_a_picture_may_be_moved_before_its_drawing_is_read(made_up: np.ndarray, ending: str, move: Any, tmp_path: Path):
    """A drawing lies on the pixels of the file, whatever affine a program made up for it."""
    values = np.zeros((6, 4), np.uint8)  # columns, rows
    values[1, 3], values[5, 0] = 1, 2
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "photo.png")
    PENS[ending](tmp_path / f"drawn.{ending}", values)
    image = EnsureChannelFirst()(LoadImage(reader="PILReader")(tmp_path / "photo.png"))
    image.affine = image.meta["original_affine"] = torch.from_numpy(made_up)
    read = LoadCoarseAnnotationd("drawing", VALUES, 2)
    item = read({"image": image, "drawing": tmp_path / f"drawn.{ending}"})
    moved = read({"image": move(image), "drawing": tmp_path / f"drawn.{ending}"})
    for key, place_of in (("positive", [[1, 3]]), ("negative", [[5, 0]])):
        assert np.argwhere(np.asarray(item[key][0]) != 255).tolist() == place_of
        np.testing.assert_array_equal(moved[key], move(item[key]))
    scaled = Zoom(2, keep_size=False)(image)
    with pytest.raises(
        DataError, match=r"was resampled or given another spacing since it was loaded.*read the drawing before"
    ):
        read({"image": scaled, "drawing": tmp_path / f"drawn.{ending}"})
    untraced = Flip(0)
    untraced.tracing = False
    flipped = read({"image": untraced(image), "drawing": tmp_path / f"drawn.{ending}"})
    np.testing.assert_array_equal(flipped["positive"], Flip(0)(item["positive"]))
    image.affine = torch.diag(torch.tensor([0.5, 0.5, 1.0]))  # somebody knows how large its pixels are
    np.testing.assert_array_equal(
        read({"image": image, "drawing": tmp_path / f"drawn.{ending}"})["positive"], item["positive"]
    )


def test_a_shape_on_a_picture_that_was_moved(tmp_path: Path):
    """labelme's polygons are of the file's pixels."""
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "photo.png")
    corners = [[1, 1], [3, 1], [3, 3], [1, 3]]
    shape = {"label": "a", "points": corners, "shape_type": "polygon", "group_id": None, "flags": {}}
    content = {"shapes": [shape], "imageWidth": 6, "imageHeight": 4, "imagePath": "photo.png", "version": "5.0.1"}
    (tmp_path / "drawn.json").write_text(json.dumps(content))
    image = EnsureChannelFirst()(LoadImage()(tmp_path / "photo.png"))
    read = LoadCoarseAnnotationd("drawing", {"a": (1, "positive")}, 2)
    item = read({"image": image, "drawing": tmp_path / "drawn.json"})
    assert int((item["positive"] == 1).sum()) > 0
    moved = read({"image": Rotate90(1)(image), "drawing": tmp_path / "drawn.json"})
    np.testing.assert_array_equal(moved["positive"], Rotate90(1)(item["positive"]))


def test_the_image_must_be_loaded(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'image' must be an image as LoadImaged .* got ndarray\(1, 2, 2\)"):
        LoadCoarseAnnotationd("drawing", VALUES, 2)({"image": np.zeros((1, 2, 2)), "drawing": "a.png"})


REAL = Path(os.environ.get("MEDCOARSE_DATA", "nowhere")) / "prostate_mri"


@pytest.mark.skipif(not REAL.is_dir(), reason="set MEDCOARSE_DATA to a folder that holds prostate_mri")
def test_the_scribble_of_a_person():
    """0 is drawn background, 255 undrawn, so all other presets must refuse it."""
    files = {key: REAL / f"Prostatex_0000{end}.nii.gz" for key, end in (("image", ""), ("drawing", "_scribble"))}
    item = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])(files)
    positive = LoadCoarseAnnotationd("drawing", "unlabeled_255", 3)(item)["positive"]
    counts = dict(zip(*(found.tolist() for found in np.unique(positive.numpy(), return_counts=True)), strict=True))
    assert counts == {0: 9178, 1: 3544, 2: 267, UNLABELED: 2788675}
    truth = np.asarray(nib.load(REAL / "Prostatex_0000_lab.nii.gz").dataobj)
    drawn = positive[0].numpy() != UNLABELED
    assert np.array_equal(positive[0].numpy()[drawn], truth[drawn])
    for name in ("dense", "itksnap"):
        with pytest.raises(DataError, match=r"'255' \(2788675 voxels\)"):
            LoadCoarseAnnotationd("drawing", name, 3)(item)
