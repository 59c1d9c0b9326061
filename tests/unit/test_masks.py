"""Masks lie where they were drawn, and mean what their values or names say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, Flip, LoadImage
from PIL import Image

from medcoarse.cli.label_maps import MaskReader
from medcoarse.cli.main import CommandError
from medcoarse.datalist import DataError, load_datalist
from medcoarse.readers.claims import class_named
from medcoarse.transforms.drawn import LoadMaskd
from medcoarse.writers.formats import write_segmentation
from medcoarse.writers.segmentation import make_segmentation
from tests.cases_folders import OBLIQUE, volume
from tests.drawings import AFFINE, SHAPE, label_map, segments, write_nifti, write_seg_nrrd

NAMES = ["background", "liver", "tumour"]


@pytest.fixture
def masked() -> tuple[MetaTensor, np.ndarray]:
    """An image, and its mask with two classes and something unknown."""
    image, mask, _ = volume(0)
    mask[6:8, 6:8, 2] = 2
    mask[0, 0, 0] = 255
    return MetaTensor(torch.from_numpy(image)[None], affine=torch.from_numpy(OBLIQUE)), mask


def read(image: MetaTensor, file: Path, **options: Any) -> np.ndarray:
    found = LoadMaskd("label", 3, NAMES, **options)({"image": image, "label": file})["label"]
    assert found.dtype == torch.uint8
    assert torch.equal(found.affine, image.affine)
    return np.asarray(found)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_a_mask_that_is_stored_the_other_way_round_lies_right(masked: Any, axes: tuple[int, ...], tmp_path: Path):
    image, mask = masked
    turn = np.eye(4)
    for axis in axes:
        turn[axis, axis], turn[axis, 3] = -1, mask.shape[axis] - 1
    nib.save(nib.Nifti1Image(np.flip(mask, axes), OBLIQUE @ turn), tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read(image, tmp_path / "mask.nii.gz")[0], mask)


def test_a_mask_with_its_axes_swapped_lies_right(masked: Any, tmp_path: Path):
    image, mask = masked
    nib.save(nib.Nifti1Image(mask.transpose(2, 0, 1), OBLIQUE[:, [2, 0, 1, 3]]), tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read(image, tmp_path / "mask.nii.gz")[0], mask)


def test_a_mask_on_another_grid_is_refused_unless_resampled(masked: Any, tmp_path: Path):
    image, mask = masked
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "elsewhere.nii.gz")
    with pytest.raises(DataError, match=r"elsewhere.nii.gz: lies on another grid than the image: spacing"):
        read(image, tmp_path / "elsewhere.nii.gz")
    half = OBLIQUE @ np.diag([2.0, 2, 2, 1])
    nib.save(nib.Nifti1Image(mask[::2, ::2, ::2], half), tmp_path / "half.nii.gz")
    found = read(image, tmp_path / "half.nii.gz", resample=True)[0]
    np.testing.assert_array_equal(found[::2, ::2, ::2], mask[::2, ::2, ::2])


@pytest.mark.parametrize("order", [["tumour", "liver"], ["Liver", "TUMOUR"]])
def test_a_segment_is_the_class_of_its_name_whatever_its_number(masked: Any, order: list[str], tmp_path: Path):
    image, mask = masked
    mask[mask == 255] = 0
    number = {name.lower(): value for value, name in enumerate(order, 1)}
    values = np.zeros_like(mask)
    for label, name in enumerate(NAMES[1:], 1):
        values[mask == label] = number[name]
    segmentation = make_segmentation(values, OBLIQUE, ["background", *order])
    write_segmentation(tmp_path / "mask.seg.nrrd", segmentation)
    np.testing.assert_array_equal(read(image, tmp_path / "mask.seg.nrrd")[0], mask)
    np.testing.assert_array_equal(MaskReader(NAMES)(tmp_path / "mask.seg.nrrd")[0], mask)  # as it is evaluated
    write_segmentation(tmp_path / "other.seg.nrrd", make_segmentation(values, OBLIQUE, ["background", "liver", "cyst"]))
    with pytest.raises(DataError, match=r"shows 'cyst', and the classes are 0 background, 1 liver, 2 tumour; name"):
        read(image, tmp_path / "other.seg.nrrd")


def test_names_that_differ_in_capitals_alone_are_told_apart(masked: Any, tmp_path: Path):
    image, mask = masked
    mask[mask == 255] = 0
    names = ["background", "T1", "t1"]
    write_segmentation(tmp_path / "mask.seg.nrrd", make_segmentation(mask, OBLIQUE, names))
    item = {"image": image, "label": tmp_path / "mask.seg.nrrd"}
    np.testing.assert_array_equal(LoadMaskd("label", 3, names)(item)["label"][0], mask)
    np.testing.assert_array_equal(MaskReader(names)(tmp_path / "mask.seg.nrrd")[0], mask)
    with pytest.raises(DataError, match="shows 'T1', 't1', and the classes"):
        LoadMaskd("label", 3, ["background", "a", "b"])(item)
    assert class_named("T 1", names) is None
    assert class_named("t1 ", names) is None, "it might be either"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_segment_of_background_gives_way_to_the_others(place: int, tmp_path: Path):
    """In whichever layer: people paint background over all, and a structure into it."""
    masks = list(segments().items())
    masks.insert(place, ("Background", np.ones(SHAPE, bool)))
    write_seg_nrrd(tmp_path / "mask.seg.nrrd", dict(masks), layered=True)
    names = ["background", "vessel", "edge"]
    image = MetaTensor(torch.zeros(1, *SHAPE), affine=torch.from_numpy(AFFINE))
    found = LoadMaskd("label", 3, names)({"image": image, "label": tmp_path / "mask.seg.nrrd"})["label"]
    np.testing.assert_array_equal(found[0], label_map())
    np.testing.assert_array_equal(MaskReader(names)(tmp_path / "mask.seg.nrrd")[0], label_map())


def test_a_binary_mask_that_may_have_unlabeled_voxels_is_refused(tmp_path: Path):
    """Others of its folder have 0 and 255, so that 255 is class 1, and 1 beside it is nobody knows what."""
    values = (segments()["vessel"]).astype(np.uint8)
    image = MetaTensor(torch.zeros(1, *SHAPE), affine=torch.from_numpy(AFFINE))
    item = {"image": image, "label": write_nifti(tmp_path / "mask.nii.gz", values)}
    load = LoadMaskd("label", 2, ["background", "vessel"], binary=True)
    for scale in (1, 255):
        write_nifti(item["label"], scale * values)
        np.testing.assert_array_equal(load(item)["label"][0], values)
        np.testing.assert_array_equal(MaskReader(load.class_names, [item["label"]])(item["label"])[0], values)
    values[-1] = 255
    write_nifti(item["label"], values)
    said = r"mask.nii.gz: shows both 1 and 255, and where masks are binary 255 is class 1; is it unlabeled here\?"
    with pytest.raises(DataError, match=said):
        load(item)
    with pytest.raises(CommandError, match=said):
        MaskReader(load.class_names, [item["label"]])(item["label"])
    np.testing.assert_array_equal(MaskReader(load.class_names)(item["label"])[0], values)


def test_segments_that_overlap_or_lie_outside_are_refused(masked: Any, tmp_path: Path):
    image, _ = masked
    shape = {"points": [[2, 1], [5, 1], [5, 4]], "shape_type": "polygon", "group_id": None, "flags": {}}
    content = {"imageWidth": 8, "imageHeight": 6, "imagePath": "image.png", "version": "5.0.1"}
    content["shapes"] = [shape | {"label": name} for name in ("liver", "tumour")]
    (tmp_path / "mask.json").write_text(json.dumps(content))
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "image.png")
    picture = EnsureChannelFirst()(LoadImage()(tmp_path / "image.png"))
    with pytest.raises(DataError, match=r"mask.json: its segments overlap, and a mask has one class at a voxel"):
        read(picture, tmp_path / "mask.json")
    values = np.zeros(image.shape[1:], np.uint8)
    values[-4:, 3:6, 2] = 1
    moved = OBLIQUE.copy()
    moved[:3, 3] += 2 * OBLIQUE[:3, 0]
    write_segmentation(tmp_path / "mask.seg.nrrd", make_segmentation(values, moved, NAMES))
    with pytest.raises(DataError, match="6 voxels are drawn outside the image"):
        read(image, tmp_path / "mask.seg.nrrd")


def test_values_that_are_no_class_are_refused(masked: Any, tmp_path: Path):
    image, mask = masked
    mask[1, 1, 1] = 7
    nib.save(nib.Nifti1Image(mask, OBLIQUE), tmp_path / "mask.nii.gz")
    with pytest.raises(DataError, match=r"shows '7', and the classes are 0 background, 1 liver, 2 tumour; number them"):
        read(image, tmp_path / "mask.nii.gz")


def test_pictures_of_0_and_255(tmp_path: Path):
    mask = np.zeros((5, 4), np.uint8)
    mask[1, 2] = 255
    for name in ("image", "mask"):
        Image.fromarray(mask.T).save(tmp_path / f"{name}.png")
    image = EnsureChannelFirst()(LoadImage()(tmp_path / "image.png"))
    load = LoadMaskd("label", 2, ["background", "vessel"], binary=True)
    for move in (lambda one: one, Flip(0)):
        Image.fromarray((mask // 255 if isinstance(move, Flip) else mask).T).save(tmp_path / "mask.png")  # 0 and 1, too
        found = load({"image": move(image), "label": tmp_path / "mask.png"})["label"]
        np.testing.assert_array_equal(found[0], np.asarray(move(image))[0] == 255)
    Image.fromarray(mask.T).save(tmp_path / "mask.png")
    unknown = LoadMaskd("label", 2, ["background", "vessel"])({"image": image, "label": tmp_path / "mask.png"})["label"]
    np.testing.assert_array_equal(unknown[0], mask)


def test_polygons_are_classes_by_name_and_what_lies_in_none_is_background(tmp_path: Path):
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "image.png")
    corners = [[2, 1], [5, 1], [5, 4], [2, 4]]
    shape = {"label": "liver", "points": corners, "shape_type": "polygon", "group_id": None, "flags": {}}
    content = {"shapes": [shape], "imageWidth": 8, "imageHeight": 6, "imagePath": "image.png", "version": "5.0.1"}
    (tmp_path / "mask.json").write_text(json.dumps(content))
    image = EnsureChannelFirst()(LoadImage()(tmp_path / "image.png"))
    found = read(image, tmp_path / "mask.json")[0]
    assert (found[3, 2], found[0, 0], set(found.ravel().tolist())) == (1, 0, {0, 1})


@pytest.mark.parametrize("given", [["a.png", "b.png"], None])
def test_a_mask_is_one_file(given: Any, masked: Any):
    with pytest.raises(DataError, match="'label' must be the name of one file"):
        LoadMaskd("label", 3, NAMES)({"image": masked[0], "label": given})


def test_null_in_a_datalist_is_nothing(tmp_path: Path):
    content = {"training": [{"image": "a.png", "label": None}]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    assert load_datalist(tmp_path / "datalist.json", "training") == [{"image": str(tmp_path / "a.png")}]


def test_a_mask_of_decimals_in_a_picture(tmp_path: Path):
    values = np.array([[0, 1, 2], [2, 1, 0]], np.float32)
    Image.fromarray(values.T).save(tmp_path / "mask.tiff")
    Image.fromarray(values.T.astype(np.uint8)).save(tmp_path / "image.png")
    image = EnsureChannelFirst()(LoadImage()(tmp_path / "image.png"))
    np.testing.assert_array_equal(read(image, tmp_path / "mask.tiff")[0], values)
    Image.fromarray(values.T + 0.5).save(tmp_path / "mask.tiff")
    with pytest.raises(DataError, match="values with fractions"):
        read(image, tmp_path / "mask.tiff")


def test_names_of_classes_must_differ():
    for names in (["background", "liver"], ["background", "liver", "liver"]):
        with pytest.raises(ValueError, match="class_names must be 3 different names"):
            LoadMaskd("label", 3, names)
