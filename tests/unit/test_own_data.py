"""What is said of images and drawings of one's own before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd

from medcoarse.datalist import DataError, load_datalist
from medcoarse.own_data import (
    block_size,
    calibrating_items,
    check_patch,
    factors,
    prepare_drawings,
    reported_items,
    section_items,
    section_of,
    verify_annotators,
    who_drew_any,
)
from medcoarse.transforms.drawn import LoadCoarseAnnotationd, LoadStrokesOfEachd, UnlabeledIfMissingd
from medcoarse.transforms.series import LoadImageOrSeriesd

ITEM = {"image": "image.nii.gz", "drawing": "drawing.nii.gz"}
OPTIONS = {"mapping": "unlabeled_255", "spatial_dims": 3, "in_channels": 1, "num_classes": 2}


def save(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 3.0)) -> None:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)


@pytest.fixture
def folder(tmp_path):
    """One volume, of which both classes are drawn a little."""
    save(tmp_path / "image.nii.gz", np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32))
    drawing = np.full((8, 6, 4), 255, np.uint8)
    drawing[2, 2:4, 1], drawing[6, 2:5, 1] = 1, 0
    save(tmp_path / "drawing.nii.gz", drawing)
    return tmp_path


def write(folder: Path, **sections: list[dict[str, str]]) -> Path:
    path = folder / "datalist.json"
    path.write_text(json.dumps(sections))
    return path


def refused(path: Path, **options: object) -> str:
    with pytest.raises(SystemExit) as caught:
        prepare_drawings(path, lambda: path.parent, **{**OPTIONS, **options})
    return str(caught.value)


def warnings_of(caplog) -> list[str]:
    ours = [record for record in caplog.records if record.name == "medcoarse.own_data"]
    return [record.getMessage() for record in ours if record.levelname == "WARNING"]


def test_one_drawn_volume_is_fine_and_is_counted(folder, caplog):
    path = write(folder, training=[ITEM])
    with caplog.at_level("INFO", logger="medcoarse.own_data"):
        assert prepare_drawings(path, lambda: folder, **OPTIONS, class_names=["rest", "thing"]) == str(path)
    assert "Voxels drawn for training: rest 3, thing 2" in caplog.text
    assert warnings_of(caplog) == []


def test_less_background_than_structures_is_warned_of(folder, caplog):
    drawing = np.full((8, 6, 4), 255, np.uint8)
    drawing[2, 2:4, 1], drawing[6, 2, 1] = 1, 0
    save(folder / "drawing.nii.gz", drawing)
    prepare_drawings(write(folder, training=[ITEM]), lambda: folder, **OPTIONS)
    (warned,) = warnings_of(caplog)
    assert warned.startswith("Less background was drawn (1 voxels) than structures (2):")
    caplog.clear()
    drawing[6, 3, 1] = 0
    save(folder / "drawing.nii.gz", drawing)  # as much
    prepare_drawings(write(folder, training=[ITEM]), lambda: folder, **OPTIONS)
    assert warnings_of(caplog) == []


def test_a_closed_line_of_background_stands_for_all_beyond_it(folder, caplog):
    drawing = np.full((8, 6, 4), 255, np.uint8)
    drawing[:, :, 1] = 0
    drawing[::7, ::5, 1] = 255  # the corners: beyond a line of 20 voxels
    drawing[1:7, 1:5, 1] = 1
    save(folder / "drawing.nii.gz", drawing)
    prepare_drawings(write(folder, training=[ITEM]), lambda: folder, **OPTIONS)
    assert warnings_of(caplog) == []
    drawing[0, 2, 1] = 255  # open
    save(folder / "drawing.nii.gz", drawing)
    prepare_drawings(write(folder, training=[ITEM]), lambda: folder, **OPTIONS)
    (warned,) = warnings_of(caplog)
    assert "(19 voxels) than structures (24)" in warned


def scattered() -> np.ndarray:
    """One stroke 4 voxels (of 1 mm) from the next and 1 from background: lost from 0.25 on; the other from 1."""
    drawing = np.full((8, 6, 4), 255, np.uint8)
    drawing[1, 2, 1] = drawing[5, 2, 1] = 1
    drawing[6, 1:4, 1] = 0
    return drawing


def test_background_that_would_be_spread_over_strokes_is_warned_of(folder, caplog):
    save(folder / "drawing.nii.gz", scattered())
    path = write(folder, training=[ITEM])
    for ratio in (0.0, 0.2):
        prepare_drawings(path, lambda: folder, **OPTIONS, spread_background=ratio)
        assert warnings_of(caplog) == []
    prepare_drawings(path, lambda: folder, **OPTIONS, spread_background=0.3)
    (warned,) = warnings_of(caplog)
    assert warned.startswith("With --spread_background 0.3, 1 of the 2 strokes")
    assert "pass 0.2 instead" in warned
    for wrong in (1.5, None, "0.3"):
        assert "ratio must be a number from 0" in refused(path, spread_background=wrong)


def test_spreading_is_judged_in_mm(folder, caplog):
    """Slices are 3 mm apart: a stroke two slices from the next is 6 mm away from it, not 2."""
    drawing = np.full((8, 6, 4), 255, np.uint8)
    drawing[4, 3, 0] = drawing[4, 3, 2] = 1
    drawing[2, 3, :3:2] = 0  # 2 mm from either: lost from 1/3 on, and in voxels from 1 on
    save(folder / "drawing.nii.gz", drawing)
    path = write(folder, training=[ITEM])
    prepare_drawings(path, lambda: folder, **OPTIONS, spread_background=0.4)
    (warned,) = warnings_of(caplog)
    assert "2 of the 2 strokes" in warned
    assert "pass 0.3 instead" in warned


def test_strokes_that_lie_together_or_alone_are_not_warned_of(folder, caplog):
    drawing = np.full((8, 6, 4), 255, np.uint8)
    drawing[2, 2, 1] = drawing[4, 2, 1] = 1
    drawing[7, 1:4, 1] = 0
    save(folder / "drawing.nii.gz", drawing)
    path = write(folder, training=[ITEM])
    prepare_drawings(path, lambda: folder, **OPTIONS, spread_background=0.6)
    drawing[4, 2, 1] = 255
    save(folder / "drawing.nii.gz", drawing)
    prepare_drawings(path, lambda: folder, **OPTIONS, spread_background=0.6)
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(("number", "warned"), [(19, False), (18, True)])
def test_one_stroke_in_twenty_may_be_lost(folder, caplog, number, warned):
    """A row of strokes 2 mm apart, and the last alone beside background."""
    drawing = np.full((60, 6, 4), 255, np.uint8)
    drawing[: 2 * number : 2, 2, 1], drawing[58, 2, 1], drawing[59, :, 1] = 1, 1, 0
    drawing[0, 5, :] = 0
    save(folder / "drawing.nii.gz", drawing)
    save(folder / "image.nii.gz", np.random.default_rng(0).normal(size=drawing.shape))
    prepare_drawings(write(folder, training=[ITEM]), lambda: folder, **OPTIONS, spread_background=0.4)
    assert bool([one for one in warnings_of(caplog) if "--spread_background" in one]) == warned


@pytest.mark.parametrize(("loops", "instead"), [(False, "pass 0.4 instead"), (True, "pass 0.3 instead")])
def test_beside_closed_lines_less_is_advised(folder, caplog, loops, instead):
    """Both strokes are 2 mm from background and 4.1 from each other."""
    drawing = np.full((8, 6, 4), 255, np.uint8)
    drawing[2, 2, 1] = drawing[6, 3, 1] = 1
    drawing[2, 4, 1] = drawing[6, 5, 1] = 0
    save(folder / "drawing.nii.gz", drawing)
    prepare_drawings(write(folder, training=[ITEM]), lambda: folder, **OPTIONS, spread_background=0.6, loops=loops)
    (warned,) = warnings_of(caplog)
    assert instead in warned


def test_what_lies_beyond_closed_lines_is_reckoned_with(folder, caplog):
    """Two strokes 5 mm apart, background 2 mm around them; beyond the end, said by a corner, all of a slice."""
    drawing = np.full((8, 6, 4), 255, np.uint8)
    drawing[:, ::5, 1] = drawing[::7, :, 1] = drawing[0, 0, 2] = 0
    drawing[2, 2, 1] = drawing[2, 3, 1] = drawing[6, 2, 1] = 1
    save(folder / "drawing.nii.gz", drawing, (1.0, 1.0, 0.5))
    save(folder / "image.nii.gz", np.random.default_rng(0).normal(size=(8, 6, 4)), (1.0, 1.0, 0.5))
    path = write(folder, training=[ITEM])
    for loops, lost in ((False, ()), (True, ("2 of the 2 strokes", "pass 0.1 instead"))):
        prepare_drawings(path, lambda: folder, **OPTIONS, spread_background=0.2, loops=loops)
        assert [all(words in warned for words in lost) for warned in warnings_of(caplog)] == [True] * bool(lost)


def test_only_what_is_trained_on_is_judged(folder, caplog):
    save(folder / "scattered.nii.gz", scattered())
    save(folder / "other.nii.gz", np.random.default_rng(1).normal(size=(8, 6, 4)).astype(np.float32))
    other = {"image": "other.nii.gz", "drawing": "scattered.nii.gz"}
    prepare_drawings(
        write(folder, training=[ITEM], validation=[other]), lambda: folder, **OPTIONS, spread_background=0.3
    )
    assert warnings_of(caplog) == []


def test_everybody_is_judged_by_their_own_strokes(folder, caplog):
    """Max fills in between Ada's strokes; spread are hers, and his."""
    between = np.full((8, 6, 4), 255, np.uint8)
    between[2:5, 2, 1], between[7, 1:4, 1] = 1, 0
    save(folder / "drawing.nii.gz", scattered())
    save(folder / "between.nii.gz", between)
    item = {"image": "image.nii.gz", "drawing": ["drawing.nii.gz", "between.nii.gz"], "annotators": ["Ada", "Max"]}
    path = write(folder, training=[item])
    prepare_drawings(path, lambda: folder, **OPTIONS, spread_background=0.3)
    assert warnings_of(caplog) == [], "merged, one line"
    prepare_drawings(path, lambda: folder, **OPTIONS, spread_background=0.3, annotators=["Ada", "Max"])
    (warned,) = warnings_of(caplog)
    assert "1 of the 2 strokes" in warned


def test_spread_background_counts_as_background(folder, caplog):
    drawing = np.full((8, 6, 4), 255, np.uint8)
    drawing[2, 2:4, 1], drawing[6, 2, 1] = 1, 0
    save(folder / "drawing.nii.gz", drawing)
    path = write(folder, training=[ITEM])
    prepare_drawings(path, lambda: folder, **OPTIONS, spread_background=0.3)
    assert warnings_of(caplog) == []


def test_where_masks_are_learned_from_nothing_is_said_of_drawings(folder, caplog):
    drawing = np.full((8, 6, 4), 255, np.uint8)
    drawing[2, 2:4, 1], drawing[6, 2, 1] = 1, 0
    save(folder / "drawing.nii.gz", drawing)
    save(folder / "label.nii.gz", np.zeros((8, 6, 4), np.uint8))
    path = write(folder, training=[{**ITEM, "label": "label.nii.gz"}])
    prepare_drawings(path, lambda: folder, **OPTIONS, supervision="dense")
    assert warnings_of(caplog) == []


def test_without_a_datalist_something_is_drawn(folder):
    write(folder, training=[ITEM])
    assert prepare_drawings("", lambda: folder, **OPTIONS) == str(folder / "datalist.json")


def test_what_is_drawn_for_validation_does_not_count(folder):
    save(
        folder / "drawing2.nii.gz",
        np.where(np.arange(8)[:, None, None] == 2, 1, 255).astype(np.uint8) * np.ones((8, 6, 4), np.uint8),
    )
    image = np.random.default_rng(1).normal(size=(8, 6, 4)).astype(np.float32)
    save(folder / "image2.nii.gz", image)
    other = {"image": "image2.nii.gz", "drawing": "drawing2.nii.gz"}
    assert "no training drawing shows '0'" in refused(write(folder, training=[other], validation=[ITEM]))


def test_a_class_that_nobody_drew(folder):
    said = refused(write(folder, training=[ITEM]), num_classes=3, class_names=["rest", "thing", "other"])
    assert "no training drawing shows 'other'" in said
    assert "draw some of each class" in said


def test_a_training_image_without_what_is_learned_from(folder):
    path = write(folder, training=[ITEM, {"image": "image.nii.gz"}])
    assert "1 training items have no 'drawing'" in refused(path)
    assert "2 training items have no 'label'" in refused(path, supervision="dense")


@pytest.mark.parametrize("nothing", ["", [], None])
def test_files_that_are_none_are_as_if_they_were_left_out(folder, nothing):
    save(folder / "other.nii.gz", np.random.default_rng(1).normal(size=(8, 6, 4)).astype(np.float32))
    path = write(folder, training=[ITEM], validation=[{"image": "other.nii.gz", "label": nothing, "drawing": nothing}])
    assert prepare_drawings(path, lambda: folder, **OPTIONS) == str(path)
    (item,) = load_datalist(path, "validation")
    load = Compose([LoadImageOrSeriesd("image"), EnsureChannelFirstd("image")])
    read = LoadCoarseAnnotationd("drawing", "unlabeled_255", 2, allow_missing_keys=True)
    assert "positive" not in read(load(item))
    assert "1 training items have no 'drawing', first None" in refused(write(folder, training=[{"image": nothing}]))
    assert "'image' is missing or empty" in refused(write(folder, training=[ITEM | {"image": nothing}]))


def test_of_several_people_one_may_have_drawn_nothing(folder):
    path = write(folder, training=[{"image": "image.nii.gz", "drawing": ["drawing.nii.gz", None]}])
    assert prepare_drawings(path, lambda: folder, **OPTIONS) == str(path)


@pytest.mark.parametrize("nothing", [None, ""])
def test_who_drew_nothing_of_an_image_did_not_draw_it(folder, nothing):
    shared = {"image": "image.nii.gz", "annotators": ["Ada", "Max"]}
    path = write(folder, training=[shared | {"drawing": ["drawing.nii.gz", nothing]}])
    (item,) = section_items(path, "training")
    assert (item["annotators"], [Path(file).name for file in item["drawing"]]) == (["Ada"], ["drawing.nii.gz"])
    assert who_drew_any([item], ["Ada", "Max"]) == [0]
    assert "no training image was drawn by 'Max'" in refused(path, annotators=["Ada", "Max"])


def test_an_empty_drawing_is_none(folder):
    """A file in which nothing is drawn must not make anybody's head vote."""
    save(folder / "empty.nii.gz", np.full((8, 6, 4), 255, np.uint8))
    item = {"image": "image.nii.gz", "drawing": ["drawing.nii.gz", "empty.nii.gz"], "annotators": ["Ada", "Max"]}
    assert "no training image was drawn by 'Max'" in refused(write(folder, training=[item]), annotators=["Ada", "Max"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"annotators": [["Max"]], "drawing": ["drawing.nii.gz"]}, "who drew it is [['Max']]"),
     ({"annotators": "Ada", "drawing": ["drawing.nii.gz"]}, "who drew it is Ada"),
     ({"image": 5}, "'image' is 5; write a file name")],
)  # fmt: skip
def test_entries_of_the_wrong_kind(folder, change, message):
    path = write(folder, training=[ITEM | change])
    assert message in refused(path, annotators=["Ada"] if "annotators" in change else [])


def test_drawings_that_are_no_files(folder):
    said = refused(write(folder, training=[ITEM | {"drawing": 5}]))
    assert "'drawing' must be the name of a file, or a list of names" in said
    assert "got 5; leave it out where there is no drawing" in said
    annotated = write(folder, training=[ITEM | {"drawing": 5, "annotators": ["Ada"]}])
    assert "who drew it is ['Ada']; list its drawings" in refused(annotated, annotators=["Ada"])
    assert "got ['drawing.nii.gz', 5]" in refused(write(folder, training=[ITEM | {"drawing": ["drawing.nii.gz", 5]}]))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"in_channels": 3}, "image.nii.gz: 1 channels, expected 3; set in_channels to 1"),
     ({"spatial_dims": 2}, r"image.nii.gz: 3 spatial axes [8, 6, 4], expected 2; set spatial_dims to 3"),
     ({"class_names": ["a"]}, "class_names must be 2 different names"),
     ({"class_names": ["a", "a"]}, "class_names must be 2 different names"),
     ({"mapping": "dense"}, "'255'"),
     ({"mapping": "nonsense"}, "no preset 'nonsense'")],
)  # fmt: skip
def test_what_does_not_fit_the_data(folder, options, message):
    assert message in refused(write(folder, training=[ITEM]), **options)


def test_files_that_are_missing_and_lists_that_are_empty(folder):
    assert "no such datalist" in refused(folder / "nothing.json")
    assert "nothing.nii.gz: no such file" in refused(write(folder, training=[{**ITEM, "image": "nothing.nii.gz"}]))
    assert "'training' is empty" in refused(write(folder, training=[]))


def test_labels_hold_classes_only(folder):
    save(folder / "label.nii.gz", np.full((8, 6, 4), 2, np.uint8))
    path = write(folder, training=[{**ITEM, "label": "label.nii.gz"}])
    assert "label.nii.gz" in refused(path)
    assert prepare_drawings(path, lambda: folder, **{**OPTIONS, "num_classes": 3, "mapping": {
        0: (0, "positive"), 1: (1, "positive"), 255: None, 2: (2, "positive")}}, supervision="dense")  # fmt: skip


def test_a_slice_stored_as_a_volume_is_2d_and_3d(folder):
    save(folder / "image.nii.gz", np.random.default_rng(0).normal(size=(8, 6, 1)).astype(np.float32))
    drawing = np.full((8, 6, 1), 255, np.uint8)
    drawing[2, 2:4], drawing[6, 2:5] = 1, 0
    save(folder / "drawing.nii.gz", drawing)
    path = write(folder, training=[ITEM])
    for spatial_dims in (2, 3):
        assert prepare_drawings(path, lambda: folder, **{**OPTIONS, "spatial_dims": spatial_dims})


def test_what_stands_in_for_an_empty_section(folder, caplog):
    path = write(folder, training=[ITEM], validation=[])
    assert section_of(path, "validation") == section_of(path, "test") == "training"
    assert section_items(path, "validation")[0]["image"] == str(folder / "image.nii.gz")
    assert "has no validation items: the training items are used instead" in caplog.text
    path = write(folder, training=[ITEM], validation=[ITEM], test=[ITEM])
    assert [section_of(path, name) for name in ("training", "validation", "test")] == ["training", "validation", "test"]


def test_patches_have_to_fit_the_network():
    assert factors([2, [1, 2]], 2) == [2, 4]
    assert block_size([2], 3) == [2, 2, 2]
    check_patch([16, 32, 4], [[2, 2, 1], 2], 3)
    with pytest.raises(SystemExit, match=r"must be multiples of \[4, 4, 2\]"):
        check_patch([16, 32, 3], [[2, 2, 1], 2], 3)
    with pytest.raises(SystemExit, match="must have 3 numbers"):
        check_patch([16, 32], [[2, 2, 1], 2], 3)


# --- several people, and what is reported ------------------------------------------------------------------------


def reading(annotators=("Ada", "Max")):
    return LoadStrokesOfEachd("drawing", annotators, 2, mapping={0: None, 1: (1, "positive"), 2: (1, "negative")})


def strokes(path, *values):
    nibabel.save(nibabel.Nifti1Image(np.array([[values]], np.uint8), np.eye(4)), path)
    return str(path)


def test_everybodys_strokes_stay_apart_and_their_own_are_merged(tmp_path):
    files = [strokes(tmp_path / f"{k}.nii.gz", *values) for k, values in enumerate([(1, 2, 0), (1, 0, 2), (2, 0, 0)])]
    item = {"image": MetaTensor(torch.zeros(1, 1, 1, 3)), "drawing": files, "annotators": ["Max", "Ada", "Max"]}
    found = reading()(item)["positive"]
    assert found[:, 0, 0].tolist() == [[1, 255, 0], [255, 0, 255]]  # Max contradicts himself at the first voxel
    item["drawing"], item["annotators"] = files[:1], ["Max"]
    assert reading()(item)["positive"][:, 0, 0].tolist() == [[255, 255, 255], [1, 0, 255]]


@pytest.mark.parametrize("names", [[], ["Ada"], ["Ada", "Eve"]])
def test_drawings_without_an_author_are_refused(tmp_path, names):
    files = [strokes(tmp_path / "a.nii.gz", 1, 0, 0)] * 2
    item = {"image": MetaTensor(torch.zeros(1, 1, 1, 3)), "drawing": files, "annotators": names}
    with pytest.raises(DataError, match="2 drawings of the image, drawn by"):
        reading()(item)
    with pytest.raises(DataError, match="who drew it is"):
        verify_annotators({"training": [item]}, ["Ada", "Max"])


def test_missing_drawings_of_several_people_say_nothing():
    item = {"image": MetaTensor(torch.zeros(1, 2, 3))}
    found = UnlabeledIfMissingd(["label", "positive"], num_channels=[1, 3])(item)
    assert (tuple(found["label"].shape), tuple(found["positive"].shape)) == ((1, 2, 3), (3, 2, 3))
    assert bool((found["positive"] == 255).all())


def test_what_calibrates_a_report(tmp_path):
    for name in "abcd":
        (tmp_path / name).touch()
    sections = {
        "training": [{"image": "a", "drawing": "x"}],
        "validation": [{"image": "b", "drawing": "x"}, {"image": "c", "drawing": "x"}, {"image": "d"}],
    }
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(sections))
    reported = reported_items(path, [tmp_path / "b", tmp_path / "new"])
    assert [Path(item["image"]).name for item in reported] == ["b", "new"]
    assert "drawing" in reported[0]
    assert [Path(item["image"]).name for item in calibrating_items(path, reported)] == ["c"]
    sections["validation"][0]["label"] = "y"
    path.write_text(json.dumps(sections))
    assert [Path(item["image"]).name for item in calibrating_items(path, [])] == ["b"], "masks come before drawings"
    (tmp_path / "b").unlink()
    assert calibrating_items(path, []) == []
    with pytest.raises(SystemExit, match="no test items; pass images"):
        reported_items(path, [])
