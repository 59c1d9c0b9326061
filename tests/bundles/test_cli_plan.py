"""What `medcoarse train` makes of images and drawings before it trains, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser, verify_metadata
from monai.transforms import RandFlipd

from medcoarse.cli.main import main
from medcoarse.cli.plan import _said_of_masks, free_memory_gb
from medcoarse.own_data import prepare_drawings
from tests.bundles.commands import refused, text, train_words
from tests.bundles.conftest import ROOT
from tests.cases_folders import BACKGROUND, OBLIQUE, volume, write_pictures, write_volumes
from tests.drawings import SHAPE, label_map, segments, write_nifti, write_seg_nrrd

SCHEMA = ROOT / "tests" / "reference" / "bundle_metadata_schema.json"


def test_unpaired_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    (tmp_path / "drawings" / "case1_drawn.nii.gz").rename(tmp_path / "drawings" / "other.nii.gz")
    said = refused(capfd, *train_words(tmp_path))
    assert "1 of 3 images have no drawing: case1.nii.gz" in said
    assert "1 of 3 drawings have no image: other.nii.gz" in said
    shutil.copy(tmp_path / "drawings" / "case0_drawn.nii.gz", tmp_path / "drawings" / "case0_too.nii.gz")
    (tmp_path / "drawings" / "other.nii.gz").rename(tmp_path / "drawings" / "case1.nii.gz")
    assert "case0.nii.gz has two drawings" in refused(capfd, *train_words(tmp_path))
    assert not (tmp_path / "run").exists()


def test_masks_of_some_images_are_learned_from_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """case0 has a mask alone, case1 a drawing alone, case2 and case3 have both."""
    write_volumes(tmp_path, 4)
    (tmp_path / "drawings" / "case0_drawn.nii.gz").unlink()
    (tmp_path / "masks" / "case1.nii.gz").unlink()
    words = train_words(tmp_path, "--labels", tmp_path / "masks", "--learn_labels", "--validation", 0, "--epochs", 10)
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "4 images with drawings or masks: 4 for training" in said
    assert "masks to learn from, of images to train on: 3" in said
    listed = json.loads((tmp_path / "run" / "datalist.json").read_text())["training"]
    found = {Path(item["image"]).name[:5]: ("drawing" in item, "label" in item) for item in listed}
    assert found == {"case0": (False, True), "case1": (True, False), "case2": (True, True), "case3": (True, True)}
    config = json.loads((tmp_path / "run" / "configs" / "train.json").read_text())
    assert config["supervision"] == "semi"
    words.remove("--plan_only")
    assert main(words) == 0
    new = tmp_path / "new.nii.gz"
    shutil.copy(tmp_path / "images" / "case0.nii.gz", new)
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "run" / "configs" / "train.json"))
    parser["bundle_root"] = str(tmp_path / "run")
    loss = parser.get_parsed_content("loss")
    assert (loss.warmup, loss.coupled_dice_weight) == ("masks", 0)
    assert parser.get_parsed_content("annotator_learning_rate") == pytest.approx(0.05 * parser["learning_rate"])
    dataset = parser.get_parsed_content("train#dataset")
    shown = {key: [False] * len(listed) for key in ("positive", "label")}
    for number, cut in enumerate([dataset[n] for n in range(3 * len(listed))]):
        cut = cut[0] if isinstance(cut, list) else cut
        for key, images in shown.items():
            images[number % len(listed)] |= bool((cut[key] != 255).any())
    assert shown["label"] == ["label" in item for item in listed]
    assert shown["positive"] == ["drawing" in item for item in listed]
    assert main(text("report", tmp_path / "run", "--pool", tmp_path / "images", new)) == 0
    asked = json.loads((tmp_path / "run" / "output" / "annotators.json").read_text())["ask_next"]
    assert [one["image"] for one in asked] == ["new.nii.gz"], "case0 has its mask"
    (tmp_path / "masks" / "case0.nii.gz").unlink()
    shutil.rmtree(tmp_path / "run")
    assert "1 images have no drawing and no mask: case0.nii.gz; pass --partial" in refused(capfd, *words)
    assert main([*words, "--partial", "--plan_only"]) == 0
    assert "LEFT OUT, for nobody has drawn them yet: 1, case0.nii.gz" in capfd.readouterr().out
    shutil.rmtree(tmp_path / "run")
    same = [tmp_path / "drawings" if word == str(tmp_path / "masks") else word for word in words]
    assert "DRAWINGS and --labels are one folder" in refused(capfd, *same)
    del words[words.index("--labels") : words.index("--labels") + 2]
    assert "of which masks? pass --labels FOLDER" in refused(capfd, *words, "--partial")


def test_beside_masks_annotators_learn_fast_from_whole_drawings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also if one image alone has a drawing, which then is no slip."""
    write_volumes(tmp_path, 3)
    shutil.copytree(tmp_path / "masks", tmp_path / "whole")
    for case in ("case1", "case2"):
        (tmp_path / "whole" / f"{case}.nii.gz").unlink()
    words = text("train", tmp_path / "images", tmp_path / "whole", "--output_dir", tmp_path / "run", "--plan_only")
    words += text("--mapping", "dense", "--labels", tmp_path / "masks", "--learn_labels", "--validation", 0)
    assert main(words) == 0
    assert "IS DRAWN IN" not in capfd.readouterr().out
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "run" / "configs" / "train.json"))
    parser["bundle_root"] = str(tmp_path / "run")
    assert parser.get_parsed_content("annotator_learning_rate") == parser["learning_rate"]


def test_masks_beside_drawings_of_several(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """case0 has a mask alone; Ada drew case1, Ben case2, both case3."""
    write_volumes(tmp_path, 4)
    for who, numbers in (("Ada", (1, 3)), ("Ben", (2, 3))):
        (tmp_path / "drawings" / who).mkdir()
        for number in numbers:
            shutil.copy(tmp_path / "drawings" / f"case{number}_drawn.nii.gz", tmp_path / "drawings" / who)
    for file in (tmp_path / "drawings").glob("*.nii.gz"):
        file.unlink()
    for number in (1, 2, 3):
        (tmp_path / "masks" / f"case{number}.nii.gz").unlink()
    more = ("--labels", tmp_path / "masks", "--learn_labels", "--annotators", "--validation", 0, "--epochs", 3)
    words = train_words(tmp_path, *more)
    words.remove("--plan_only")
    assert main(words) == 0
    assert "IS DRAWN IN" not in capfd.readouterr().out
    items = json.loads((tmp_path / "run" / "datalist.json").read_text())["training"]
    assert sorted(item["annotators"] for item in items) == [[], ["Ada"], ["Ada", "Ben"], ["Ben"]]
    shutil.copy(tmp_path / "images" / "case0.nii.gz", tmp_path / "images" / "case9.nii.gz")
    shutil.copy(tmp_path / "masks" / "case0.nii.gz", tmp_path / "masks" / "case9.nii.gz")
    assert main([*words, "--plan_only"]) == 0
    assert "NEW since it was planned, and not trained on: case9.nii.gz" in capfd.readouterr().out


def test_masks_are_of_images_to_validate_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 6)
    for number in (0, 1, 2, 3, 5):
        (tmp_path / "masks" / f"case{number}.nii.gz").unlink()
    words = train_words(tmp_path, "--labels", tmp_path / "masks")
    for seed in range(3):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert main([*words, "--seed", str(seed)]) == 0
        listed = json.loads((tmp_path / "run" / "datalist.json").read_text())
        assert [Path(item["image"]).name for item in listed["validation"]] == ["case4.nii.gz"]
        assert "masks for scores: 1 of images to validate on" in capfd.readouterr().out
    shutil.rmtree(tmp_path / "run")
    assert main([*words, "--validation", "0"]) == 0
    said = capfd.readouterr().out
    assert "masks for scores: 1 of images to train on, which are scored as nothing is held back" in said
    assert "NO IMAGE IS HELD BACK to validate on: scores" in said
    for number in (2, 3, 4, 5):
        (tmp_path / "images" / f"case{number}.nii.gz").unlink()
        (tmp_path / "drawings" / f"case{number}_drawn.nii.gz").unlink()
    shutil.rmtree(tmp_path / "run")
    assert main(train_words(tmp_path)) == 0
    assert "HELD BACK to validate on (there are two, --validation 0.5 takes one" in capfd.readouterr().out
    shutil.rmtree(tmp_path / "run")
    assert main(train_words(tmp_path, "--validation", 0.5)) == 0
    said = capfd.readouterr().out
    assert "1 for training, 1 for validation" in said
    assert "HELD BACK" not in said


def test_it_is_said_where_no_mask_can_be_held_back() -> None:
    """As that of a patient who has most of the images."""
    said = _said_of_masks([Path("a"), Path("b")], [Path("c")])
    assert said == "masks for scores: NONE of an image to validate on, so there will be no Dice"


def test_what_masks_alone_show_is_learned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody drew background; without masks to learn from that is an error."""
    write_volumes(tmp_path, 3)
    mapping = json.dumps({"0": None, "1": [1, "positive"], "3": None})
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run")
    words += text("--plan_only", "--mapping", mapping, "--labels", tmp_path / "masks")
    assert "background: is drawn nowhere" in refused(capfd, *words)
    assert main([*words, "--learn_labels"]) == 0
    config = json.loads((tmp_path / "run" / "configs" / "train.json").read_text())
    listed = str(tmp_path / "run" / "datalist.json")
    prepare_drawings(listed, lambda: tmp_path, config["mapping"], 3, 1, 2, config["class_names"], "semi")
    with pytest.raises(SystemExit, match="no training drawing shows 'background'"):
        prepare_drawings(listed, lambda: tmp_path, config["mapping"], 3, 1, 2, config["class_names"])


def test_masks_of_segments_in_layers_are_learned_from(tmp_path: Path) -> None:
    """As 3D Slicer may save segments that do not overlap."""
    folders = [tmp_path / name for name in ("images", "drawings", "masks")]
    for folder in folders:
        folder.mkdir()
    for case in ("a", "b"):
        write_nifti(folders[0] / f"{case}.nii.gz", label_map().astype(np.float32))
        write_seg_nrrd(folders[1] / f"{case}.seg.nrrd", segments() | {"background": ~(label_map() > 0)})
        write_seg_nrrd(folders[2] / f"{case}.seg.nrrd", layered=True)
    words = text("train", *folders[:2], "--output_dir", tmp_path / "run", "--plan_only", "--labels", folders[2])
    assert main(words) == 0
    config = json.loads((tmp_path / "run" / "configs" / "train.json").read_text())
    assert sorted(config["class_names"]) == ["background", "edge", "vessel"]
    assert config["binary_labels"] is False


def write_two_classes(folder: Path, numbers: dict[str, int], named: bool) -> None:
    """Boxes of two classes; strokes in them and of background, and masks of these numbers."""
    boxes = {"vessel": (slice(1, 4), slice(1, 5), slice(1, 3)), "edge": (slice(4, 6), slice(0, 3), slice(3, 5))}
    for number in range(2):
        mask, drawing = np.zeros((2, *SHAPE), np.uint8)
        drawn = {"background": np.zeros(SHAPE, bool)}
        drawn["background"][:, 5, :] = True
        for value, (name, box) in enumerate(boxes.items(), 1):
            mask[box] = numbers[name]
            drawn[name] = np.zeros(SHAPE, bool)
            drawn[name][box[0], box[1].start, box[2].start] = True
            drawing[drawn[name]] = value
        drawing[drawn["background"]] = BACKGROUND
        for kind in ("images", "drawings", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        write_nifti(folder / "images" / f"a{number}.nii.gz", mask.astype(np.float32))
        write_nifti(folder / "masks" / f"a{number}.nii.gz", mask)
        if named:
            write_seg_nrrd(folder / "drawings" / f"a{number}.seg.nrrd", drawn)
        else:
            write_nifti(folder / "drawings" / f"a{number}.nii.gz", drawing)


@pytest.mark.parametrize("named", [True, False])
def test_masks_whose_numbers_were_mixed_up_are_refused(
    named: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By name the classes are edge and vessel; in the masks they are the other way round."""
    write_two_classes(tmp_path, {"vessel": 1, "edge": 2} if named else {"vessel": 2, "edge": 1}, named)
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--plan_only")
    words += [] if named else text("--background", BACKGROUND, "--class_names", "vessel", "edge")
    assert main(words) == 0
    shutil.rmtree(tmp_path / "run")
    words += text("--labels", tmp_path / "masks")
    said = refused(capfd, *words)
    if not named:
        assert "6 of 6 voxels drawn as 'vessel' are 2 in the masks, which is read as 'edge'; number the" in said
        assert "number the classes in the masks as 1 vessel, 2 edge, or correct the masks" in said
        return
    assert "4 of 4 voxels drawn as 'edge' are 2 in the masks, which is read as 'vessel'; pass --class_names in" in said
    assert "in the order of the masks' numbers: 'vessel' 'edge', or" in said
    assert main([*words, "--class_names", "vessel", "edge"]) == 0


def test_strokes_that_run_over_are_no_other_class(tmp_path: Path) -> None:
    """Of a mask that has a small part of what was drawn, and of the other class nothing."""
    write_two_classes(tmp_path, {"vessel": 1, "edge": 2}, named=False)
    for file in (tmp_path / "masks").iterdir():
        write_nifti(file, np.zeros(SHAPE, np.uint8))
    assert main(train_words(tmp_path, "--labels", tmp_path / "masks")) == 0


def test_a_window_shows_the_structure_of_which_little_was_drawn(tmp_path: Path) -> None:
    """Of one 3000 voxels of 0 to 50 are drawn, of the other 8 of 800 to 807."""
    for number in range(2):
        image = np.random.default_rng(number).uniform(0, 50, (30, 20, 12)).astype(np.float32)
        image[0, 0, 0] = -1000
        drawing = np.zeros(image.shape, np.uint8)
        drawing[:, :10, 1:11], drawing[20:28, 15, 5], drawing[:, 18, 5] = 1, 2, BACKGROUND
        image[20:28, 15, 5] = np.arange(800, 808)
        for kind, values in (("images", image), ("drawings", drawing)):
            (tmp_path / kind).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / kind / f"a{number}.nii.gz")
    assert main(train_words(tmp_path)) == 0
    settings = json.loads((tmp_path / "run" / "configs" / "plan.json").read_text())["settings"]
    assert settings["intensity"] == "ct"
    low, high = settings["ct_window"]
    assert 0 <= low < 1
    assert 806 < high <= 807


def test_every_mask_that_does_not_fit_is_named(tmp_path: Path) -> None:
    write_volumes(tmp_path, 3)
    words = train_words(tmp_path, "--labels", tmp_path / "masks")
    assert main(words) == 0
    config = json.loads((tmp_path / "run" / "configs" / "train.json").read_text())
    for case in ("case0", "case2"):
        nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "masks" / f"{case}.nii.gz")
    given = (str(tmp_path / "run" / "datalist.json"), lambda: tmp_path, config["mapping"], 3, 1, 2)
    with pytest.raises(SystemExit, match=r"2 problems in the data \(3 items\)") as error:
        prepare_drawings(*given)
    assert all(f"{case}.nii.gz: lies on another grid" in str(error.value) for case in ("case0", "case2"))


def test_masks_that_lie_elsewhere_are_refused_while_planning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    file = tmp_path / "masks" / "case1.nii.gz"
    mask = nib.load(file)
    nib.save(mask.slicer[23::-1], file)  # stored the other way round, which is the same place
    words = train_words(tmp_path, "--labels", tmp_path / "masks")
    assert main(words) == 0
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), np.diag([2, 2, 2, 1])), file)
    shutil.rmtree(tmp_path / "run")
    said = refused(capfd, *words)
    assert "1 of 6 drawings and masks cannot be used" in said
    assert "case1.nii.gz: lies on another grid than the image: spacing (2.0, 2.0, 2.0)" in said
    nib.save(nib.Nifti1Image(np.full(mask.shape, 9, np.uint8), mask.affine), file)
    assert "the mask shows '9', and the classes are 0 background, 1 class 1; number them so" in refused(capfd, *words)


def test_images_that_nobody_has_drawn_yet_are_left_out_if_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_volumes(tmp_path, 4)
    (tmp_path / "drawings" / "case1_drawn.nii.gz").unlink()
    mask = nib.load(tmp_path / "masks" / "case1.nii.gz")
    nib.save(nib.Nifti1Image(np.full(mask.shape, 9, np.uint8), mask.affine), tmp_path / "masks" / "case1.nii.gz")
    said = refused(capfd, *train_words(tmp_path))
    assert "1 of 4 images have no drawing: case1.nii.gz; pass --partial to leave them out" in said
    words = train_words(tmp_path, "--partial", "--labels", tmp_path / "masks")
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "3 images with drawings" in said
    assert "LEFT OUT, for nobody has drawn them yet: 1, case1.nii.gz, with 1 mask" in said
    listed = json.loads((tmp_path / "run" / "datalist.json").read_text())
    items = [item for part in listed.values() for item in part]
    assert sorted(Path(item["image"]).name for item in items) == ["case0.nii.gz", "case2.nii.gz", "case3.nii.gz"]
    assert all("label" in item for item in items)
    shutil.copy(tmp_path / "drawings" / "case0_drawn.nii.gz", tmp_path / "drawings" / "case1_drawn.nii.gz")
    words.remove("--partial")  # everything is drawn now
    assert main(words) == 0
    assert "NEW since it was planned, and not trained on: case1.nii.gz" in capfd.readouterr().out


def test_a_class_that_is_drawn_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    named = {"0": None, "1": [1, "positive"], "2": [1, "positive"], "3": [0, "positive"], "9": [2, "positive"]}
    words = ("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--plan_only")
    said = refused(capfd, *words, "--mapping", json.dumps(named))
    assert "class 2: is drawn nowhere" in said
    assert not (tmp_path / "run").exists()


def test_a_value_outside_the_mapping(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    mapping = '{"0": null, "1": [1, "positive"]}'
    said = refused(capfd, *train_words(tmp_path, "--mapping", mapping))
    assert "'3'" in said
    assert "not in the mapping" in said
    assert "no drawing holds 7" in refused(capfd, *train_words(tmp_path, "--background", 7))
    words = [word for word in train_words(tmp_path) if word not in ("--background", str(BACKGROUND))]
    assert "Pass --background VALUE" in refused(capfd, *words)
    assert "none of dense" in refused(capfd, *train_words(tmp_path, "--mapping", "itk"))
    assert "--class_names must be 1" in refused(capfd, *train_words(tmp_path, "--class_names", "a", "b"))


def test_a_drawing_in_another_orientation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    path = tmp_path / "drawings" / "case1_drawn.nii.gz"
    other = np.diag([-1.0, 1, 1, 1])
    nib.save(nib.Nifti1Image(volume(1)[2], OBLIQUE @ other), path)
    assert "nothing that is drawn lies in the image" in refused(capfd, *train_words(tmp_path, "--resample"))
    other[0, 3] = len(volume(1)[2]) - 1.5  # the other way round, and half a voxel aside
    nib.save(nib.Nifti1Image(volume(1)[2][::-1], OBLIQUE @ other), path)
    said = refused(capfd, *train_words(tmp_path))
    assert "lies on another grid" in said
    assert "case1_drawn" in said
    assert "`medcoarse train --resample`" in said
    assert main(train_words(tmp_path, "--resample")) == 0
    settings = json.loads((tmp_path / "run" / "configs" / "train.json").read_text())
    assert settings["resample"] is True
    datalist = str(tmp_path / "run" / "datalist.json")
    reading = [datalist, lambda: tmp_path, settings["mapping"], 3, 1, 2]
    with pytest.raises(SystemExit, match=r"lies on another grid.*--resample True of the bundle"):
        prepare_drawings(*reading, resample=False)
    assert prepare_drawings(*reading, resample=True) == datalist


def test_empty_missing_and_damaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    (tmp_path / "empty").mkdir()
    words = text("train", tmp_path / "empty", tmp_path / "drawings", "--output_dir", tmp_path / "run")
    assert "holds no image" in refused(capfd, *words)
    words[1] = str(tmp_path / "nowhere")
    assert "no such file or folder" in refused(capfd, *words)
    (tmp_path / "images" / "case1.nii.gz").write_bytes(b"damaged")
    said = refused(capfd, *train_words(tmp_path))
    assert "case1.nii.gz: damaged" in said
    write_volumes(tmp_path, 3)
    (tmp_path / "drawings" / "case2_drawn.nii.gz").write_bytes(b"damaged")
    assert "case2_drawn.nii.gz: damaged" in refused(capfd, *train_words(tmp_path))


def test_images_are_kept_as_far_as_memory_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_volumes(tmp_path, 5)
    assert 0 < free_memory_gb() < 1e5
    voxels = volume(0)[0].size
    two = 2 * voxels * (5 + 8) + voxels * 10  # to train on, with an index for each voxel, and one to validate on
    monkeypatch.setattr("medcoarse.cli.plan.free_memory_gb", lambda: 2.1e-9 * two)
    assert main(train_words(tmp_path)) == 0
    configs = tmp_path / "run" / "configs"
    plan = json.loads((configs / "plan.json").read_text())
    assert plan["settings"]["cache_num"] == json.loads((configs / "train.json").read_text())["cache_num"] == 2
    assert "READ ANEW" in plan["reasons"]["cache_num"]


def test_several_processes_train_by_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps a share of the images, and takes a share of the batch."""
    write_volumes(tmp_path, 7)
    assert main(train_words(tmp_path)) == 0
    configs = tmp_path / "run" / "configs"
    seen: dict[str, list[list[str]]] = {"train": [], "validate": []}
    for rank in range(2):
        for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)):
            monkeypatch.setenv(name, str(value))
        parser = ConfigParser()
        parser.read_config([str(configs / "train.json"), str(configs / "multi_gpu_train.json")])
        parser.update({"bundle_root": str(tmp_path / "run"), "batch_size": 6})
        parser.get_parsed_content("imports")
        loader = parser.get_parsed_content("train#dataloader")
        assert (loader.batch_size, loader.dataset.cache_num) == (3, 3)
        assert next(iter(loader))["image"].shape[0] == 3
        for name, images in seen.items():
            data = parser.get_parsed_content(f"{name}#dataset").data
            images.append(sorted(Path(item["image"]).name for item in data))
    assert len(seen["train"][0]) == len(seen["train"][1])
    assert not {*seen["train"][0]} & {*seen["train"][1]}, "6 images"
    assert [len(images) for images in seen["validate"]] == [1, 0]


def test_images_of_one_patient_stay_together(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 6)
    words = train_words(tmp_path, "--patient", "case[0-2]|case", "--validation", 0.5)
    assert main(words) == 0
    assert "6 images of 4 patients with drawings: 3 for training, 3 for validation" in capfd.readouterr().out
    sections = json.loads((tmp_path / "run" / "datalist.json").read_text())
    assert {len([item for item in items if item["image"][-8] in "345"]) for items in sections.values()} == {0, 3}
    assert main(words) == 0
    assert main([*words[:-4], *words[-2:]]) == 0
    said = capfd.readouterr().out
    assert "made with --patient 'case[0-2]|case' and asked for now without --patient; planned anew" in said
    assert "patients" not in said.partition("anew")[2]
    shutil.rmtree(tmp_path / "run")
    assert "finds nothing in case0.nii.gz" in refused(capfd, *train_words(tmp_path, "--patient", "case[1-9]"))


def test_what_is_refused_before_and_said_after_inspecting(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    words = [*train_words(tmp_path), "--plan_only"]
    place = words.index("--output_dir") + 1
    words[place] = str(tmp_path / "masks" / "case0.nii.gz" / "run")
    assert "cannot be written to (Not a directory)" in refused(capfd, *words)
    words[place] = str(tmp_path / "run")
    assert "--device_memory must be more than 0" in refused(capfd, *words, "--device_memory", 0)
    assert "'grey' is no number" in refused(capfd, *words, "--background", "grey")
    drawing = tmp_path / "drawings" / "case1_drawn.nii.gz"
    nib.save(nib.Nifti1Image(0 * volume(1)[2], OBLIQUE), drawing)
    assert main([*words, "--loops"]) == 0
    assert "NOTHING IS DRAWN in case1_drawn.nii.gz" in capfd.readouterr().out
    assert json.loads((tmp_path / "run" / "configs" / "train.json").read_text())["loops"] is True
    assert main(text(*words)) == 0
    assert "made with --loops and asked for now without --loops; planned anew" in capfd.readouterr().out
    assert main([*words, "--loops"]) == 0


@pytest.mark.parametrize("name", ["$__import__('os').abort()", "@network", "%x", "tumour #1"])
def test_names_that_a_configuration_would_evaluate_are_refused(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Names of classes come from files too: of segments, made by other people."""
    write_volumes(tmp_path, 2)
    assert "begins with $, @ or %, or holds a #; rename it" in refused(
        capfd, *train_words(tmp_path, "--class_names", name)
    )
    assert not (tmp_path / "run").exists()
    moved = (tmp_path / "images").rename(tmp_path / "images #2")
    words = [str(moved) if word == str(tmp_path / "images") else word for word in train_words(tmp_path)]
    assert "holds a #" in refused(capfd, *words)


def test_a_class_that_is_drawn_on_one_image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    words = train_words(tmp_path, "--mapping", "itksnap")
    assert main(words) == 0
    item = json.loads((tmp_path / "run" / "datalist.json").read_text())["validation"][0]
    shutil.rmtree(tmp_path / "run")
    drawing = tmp_path / "run" / item["drawing"]
    (tmp_path / "run").mkdir()
    drawn = nib.load(drawing)
    values = np.asarray(drawn.dataobj).copy()
    values[15:17] = 2
    nib.save(nib.Nifti1Image(values, drawn.affine), drawing)
    said = refused(capfd, *words)
    assert f"class 2: is drawn only on images to validate on ({Path(item['image']).name})" in said
    assert "pass another --seed, or --validation 0" in said
    assert main([*words, "--validation", "0"]) == 0


def test_where_masks_decide_who_is_validated_on_another_seed_is_no_help(tmp_path: Path, capfd: Any) -> None:
    write_volumes(tmp_path, 5)
    for index in range(5):
        (tmp_path / "people" / ("Max" if index == 1 else "Ada")).mkdir(parents=True, exist_ok=True)
        file = tmp_path / "drawings" / f"case{index}_drawn.nii.gz"
        file.rename(tmp_path / "people" / ("Max" if index == 1 else "Ada") / file.name)
        if index != 1:
            (tmp_path / "masks" / f"case{index}.nii.gz").unlink()
    words = text("train", tmp_path / "images", tmp_path / "people", "--annotators", "--background", BACKGROUND)
    words += text("--plan_only", "--labels", tmp_path / "masks", "--output_dir", tmp_path / "run")
    said = refused(capfd, *words)
    assert "Max: drew only images to validate on; leave masks of these out of --labels" in said
    assert "or pass --validation 0" in said
    assert main([*words, "--validation", "0"]) == 0


def test_who_drew_nothing_is_not_among_those_who_drew(tmp_path: Path, capfd: Any) -> None:
    write_volumes(tmp_path, 3)
    for who in ("Ada", "Max"):
        shutil.copytree(tmp_path / "drawings", tmp_path / "people" / who)
    drawn = nib.load(tmp_path / "drawings" / "case1_drawn.nii.gz")
    empty = nib.Nifti1Image(np.zeros(drawn.shape, np.uint8), drawn.affine)
    nib.save(empty, tmp_path / "people" / "Max" / "case1_drawn.nii.gz")
    words = text("train", tmp_path / "images", tmp_path / "people", "--annotators", "--background", BACKGROUND)
    words += text("--plan_only", "--output_dir", tmp_path / "run", "--validation", 0)
    assert main(words) == 0
    assert "NOTHING IS DRAWN in Max: case1_drawn.nii.gz" in capfd.readouterr().out
    listed = json.loads((tmp_path / "run" / "datalist.json").read_text())["training"]
    assert {Path(item["image"]).name[:5]: item["annotators"] for item in listed} == {
        "case0": ["Ada", "Max"],
        "case1": ["Ada"],
        "case2": ["Ada", "Max"],
    }
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "people" / "Ada")
    (tmp_path / "people" / "Ada").mkdir()
    for index in (0, 2):
        name = f"case{index}_drawn.nii.gz"
        shutil.copy(tmp_path / "drawings" / name, tmp_path / "people" / "Ada" / name)
    (tmp_path / "people" / "Max" / "case0_drawn.nii.gz").unlink()  # leaves case1, which is empty, and case2
    words = [*words[: words.index("--validation")], *text("--validation", 0.34)]
    outcomes = set()
    for seed in range(8):
        code = main([*words, *text("--seed", seed, "--output_dir", tmp_path / f"run{seed}")])
        kept = tmp_path / f"run{seed}" / "datalist.json"
        outcomes.add(code)
        assert (code == 0) == (kept.is_file() and "case2" not in json.dumps(json.loads(kept.read_text())["validation"]))
    assert outcomes == {0, 1}, "who drew on the image for validation and left the other empty is refused"
    shutil.rmtree(tmp_path / "people" / "Ada")
    shutil.copytree(tmp_path / "drawings", tmp_path / "people" / "Ada")
    words = [*words[: words.index("--validation")], *text("--validation", 0)]
    for index in (0, 2):
        nib.save(empty, tmp_path / "people" / "Max" / f"case{index}_drawn.nii.gz")
    assert "Max: nothing is drawn in any file; leave the folder out" in refused(capfd, *words)


def test_an_image_that_lies_nowhere(tmp_path: Path, capfd: Any) -> None:
    write_volumes(tmp_path, 3)
    file = tmp_path / "images" / "case1.nii.gz"
    image = nib.Nifti1Image(np.asarray(nib.load(file).dataobj), np.eye(4))
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), 1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), file)
    assert "case1.nii.gz: its axes and origin define no place in space" in refused(capfd, *train_words(tmp_path))


def test_closed_lines_of_background_are_pointed_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    assert main([*train_words(tmp_path), "--loops", "--output_dir", str(tmp_path / "asked")]) == 0
    assert (
        "a closed line of background goes round strokes, and leaves something undrawn beyond it, on 0 of 12 slices only"
        in capfd.readouterr().out
    )
    for index in range(3):
        drawing = volume(index)[2]
        drawing[3, 3:19] = drawing[20, 3:19] = drawing[3:21, 3] = drawing[3:21, 18] = BACKGROUND
        nib.save(nib.Nifti1Image(drawing, OBLIQUE), tmp_path / "drawings" / f"case{index}_drawn.nii.gz")
    assert main(train_words(tmp_path)) == 0
    assert (
        "A CLOSED LINE OF BACKGROUND goes round strokes, and leaves something undrawn beyond it, on 12 of 12 slices"
        in capfd.readouterr().out
    )


def planned_spread(folder: Path, *more: Any) -> tuple[float, str]:
    """The setting, and why; as ``train.json`` and ``plan.json`` have them."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    assert main(train_words(folder, *more)) == 0
    plan = json.loads((folder / "run" / "configs" / "plan.json").read_text())
    setting = json.loads((folder / "run" / "configs" / "train.json").read_text())["spread_background"]
    assert plan["settings"]["spread_background"] == setting
    return setting, plan["reasons"]["spread_background"]


def add_strokes(folder: Path, place: tuple[int, int, int], affine: np.ndarray = OBLIQUE) -> None:
    """One more stroke of the structure on each image."""
    for index in range(3):
        drawing = volume(index)[2]
        drawing[place] = 1
        nib.save(nib.Nifti1Image(drawing, affine), folder / "drawings" / f"case{index}_drawn.nii.gz")


def test_background_is_spread_if_asked_for_as_far_as_the_strokes_allow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Columns 1 and 2 are background, column 12 is the one stroke of each image."""
    asked = ("--validation", 0, "--spread_background")
    write_volumes(tmp_path, 3)
    assert planned_spread(tmp_path) == (0, "background is what was drawn as background")
    ratio, reason = planned_spread(tmp_path, *asked)
    assert ratio == 0.3
    assert reason.startswith("in no image could a stroke be left out")
    add_strokes(tmp_path, (15, 8, 4))
    assert planned_spread(tmp_path, *asked) == (
        0.5,
        "0 of 6 strokes, each left out in turn, would be background, and at most one in 20 should be",
    )
    assert planned_spread(tmp_path, *asked, "--loops")[0] == 0.3
    capfd.readouterr()
    assert planned_spread(tmp_path, "--validation", 0)[0] == 0
    assert (
        "IF EVERY STRUCTURE IN AN IMAGE GOT A STROKE, pass --spread_background, which is 0.5" in capfd.readouterr().out
    )
    assert planned_spread(tmp_path, "--spread_background", 0.7) == (
        0.7,
        "as asked for; 0 of 4 strokes, each left out in turn, would be background, and at most one in 20 should be: "
        "0.5 is safe",
    )
    assert main(train_words(tmp_path)) == 0
    assert "made with --spread_background 0.7 and asked for now without --spread_background" in capfd.readouterr().out
    assert main(train_words(tmp_path, "--spread_background", "0.7")) == 0
    for wrong in (2, "nan"):
        assert "must be a ratio from 0 to 1" in refused(capfd, *train_words(tmp_path, "--spread_background", wrong))


def test_strokes_far_from_each_other_keep_background_from_spreading(tmp_path: Path) -> None:
    asked = ("--validation", 0, "--spread_background")
    write_volumes(tmp_path, 3)
    add_strokes(tmp_path, (4, 8, 4))  # 2 voxels from background, 8 from the other stroke
    assert planned_spread(tmp_path, *asked)[0] == 0.2
    ratio, reason = planned_spread(tmp_path, *asked, 0.3)
    assert ratio == 0.3
    assert reason.startswith("as asked for; 3 of 6 strokes, each left out in turn, would be background")
    assert reason.endswith(": 0.2 is safe")
    assert planned_spread(tmp_path, *asked, "0") == (0, "as asked for")


def test_distances_between_strokes_are_in_mm(tmp_path: Path) -> None:
    """By hand: the line from y = 6 to 10 is 10 mm from background, its middle 12 voxels from the other stroke."""
    for height, ratio in ((1.0, 0.5), (3.0, 0.2)):
        affine = np.diag([1.0, height, 1.0, 1.0])
        write_volumes(tmp_path, 3, affine)
        add_strokes(tmp_path, (12, 20, 4), affine=affine)
        assert planned_spread(tmp_path, "--validation", 0, "--spread_background")[0] == ratio


def test_what_is_validated_on_does_not_decide_how_far_background_speaks(tmp_path: Path) -> None:
    write_volumes(tmp_path, 3)
    assert main(train_words(tmp_path, "--validation", 0.34)) == 0
    held_out = json.loads((tmp_path / "run" / "datalist.json").read_text())["validation"][0]["image"]
    add_strokes(tmp_path, (15, 8, 4))
    drawing = volume(int(held_out[-8]))[2]
    drawing[4, 8, 4] = 1
    nib.save(nib.Nifti1Image(drawing, OBLIQUE), tmp_path / "drawings" / f"case{held_out[-8]}_drawn.nii.gz")
    ratio, reason = planned_spread(tmp_path, "--validation", 0.34, "--spread_background")
    assert ratio == 0.5
    assert reason.startswith("0 of 4 strokes")


def test_what_lies_beyond_closed_lines_is_reckoned_with(tmp_path: Path) -> None:
    """Two strokes 11.2 mm apart and 5.1 from a line around them; loops make background of a slice 3 mm away."""
    write_volumes(tmp_path, 3)
    for index in range(3):
        drawing = np.zeros_like(volume(index)[2])
        drawing[6, 10, 4] = drawing[17, 10, 4] = 1
        drawing[1:23, 5:16:10, 4] = drawing[1:23:21, 5:16, 4] = drawing[0, 0, 5] = BACKGROUND
        nib.save(nib.Nifti1Image(drawing, OBLIQUE), tmp_path / "drawings" / f"case{index}_drawn.nii.gz")
    asked = ("--validation", 0, "--spread_background")
    assert planned_spread(tmp_path, *asked)[0] == 0.4
    assert planned_spread(tmp_path, *asked, "--loops")[0] == 0.2


def test_images_of_two_kinds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 2)
    image, _, drawing = volume(2, (24, 22, 1))
    nib.save(nib.Nifti1Image(image, OBLIQUE), tmp_path / "images" / "flat.nii.gz")
    nib.save(nib.Nifti1Image(drawing, OBLIQUE), tmp_path / "drawings" / "flat.nii.gz")
    assert "are not alike" in refused(capfd, *train_words(tmp_path))


def test_an_output_folder_that_is_something_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("all of it")
    assert "is no training of this command" in refused(capfd, *train_words(tmp_path))
    words = text("simulate", tmp_path / "masks", tmp_path / "run")
    assert "not empty" in refused(capfd, *words)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    assert main([*words, "--overwrite"]) == 0
    words[-1] = str(tmp_path / "run" / "thesis.txt" / "out")
    assert "thesis.txt/out: cannot be written to (Not a directory); choose another folder" in refused(capfd, *words)


def test_a_plan_that_nothing_was_trained_by_is_made_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The plan says what options to pass; to pass them has to be possible. What somebody changed in it is kept."""
    write_volumes(tmp_path, 3)
    words = train_words(tmp_path)
    assert main(words) == 0
    assert "Next: the same command without --plan_only" in capfd.readouterr().out
    assert main([*words, "--spread_background", "0.25", "--device_memory", "8"]) == 0
    said = capfd.readouterr().out
    assert "nothing was trained by the plan there, made without --spread_background and asked for now with" in said
    train = tmp_path / "run" / "configs" / "train.json"
    assert json.loads(train.read_text())["spread_background"] == 0.25
    os.utime(train, ns=(time.time_ns() + 10**9,) * 2)  # as an editor does it
    assert "holds a training made with --spread_background 0.25" in refused(capfd, *words)
    shutil.rmtree(tmp_path / "run")
    assert main(words) == 0
    (tmp_path / "run" / "models").mkdir()
    assert "holds a training made without --device_memory" in refused(capfd, *words, "--device_memory", 8)


def test_images_that_came_after_the_plan_are_said_to_be_new(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    assert main(train_words(tmp_path)) == 0
    capfd.readouterr()
    assert main(train_words(tmp_path)) == 0
    assert "NEW" not in capfd.readouterr().out
    for kind, end in (("images", ""), ("drawings", "_drawn")):
        shutil.copy(tmp_path / kind / f"case0{end}.nii.gz", tmp_path / kind / f"later{end}.nii.gz")
    assert main(train_words(tmp_path)) == 0
    assert "NEW since it was planned, and not trained on: later.nii.gz" in capfd.readouterr().out
    (tmp_path / "drawings" / "later_drawn.nii.gz").unlink()
    assert main(train_words(tmp_path)) == 0
    said = capfd.readouterr().out
    assert "THE FOLDERS HAVE CHANGED since it was planned: 1 of 4 images have no drawing: later.nii.gz" in said


def mirrored(folder: Path, *more: Any) -> tuple[list[int], list[Any]]:
    """What is planned, and the axes of the transforms that training makes of it."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    assert main(train_words(folder, *more)) == 0
    parser = ConfigParser()
    parser.read_config(str(folder / "run" / "configs" / "train.json"))
    parser["bundle_root"] = str(folder / "run")
    steps = [step for step in parser.get_parsed_content("augmentation") if isinstance(step, RandFlipd)]
    return parser["flip_axes"], [step.flipper.spatial_axis for step in steps]


def test_what_is_of_one_side_is_not_mirrored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 2)
    assert mirrored(tmp_path, "--class_names", "box") == ([0], [0])
    assert "flip_axes [0]: every second patch is mirrored along axis 0 (left and right)" in capfd.readouterr().out
    assert mirrored(tmp_path, "--class_names", "left box") == ([], [])
    assert "flip_axes []: images are not mirrored, for 'left box' is of one side" in capfd.readouterr().out
    assert mirrored(tmp_path, "--class_names", "left box", "--flip_axes", 1, 0) == ([0, 1], [0, 1])
    assert mirrored(tmp_path, "--flip_axes", "none") == ([], [])
    assert main(train_words(tmp_path, "--flip_axes", "none")) == 0
    assert "is planned already" in capfd.readouterr().out
    assert main(train_words(tmp_path, "--flip_axes", 0)) == 0
    assert "made with --flip_axes ['none'] and asked for now with --flip_axes ['0']" in capfd.readouterr().out
    assert "axes of 0, 1 and 2, or none, got 0 none" in refused(capfd, *train_words(tmp_path, "--flip_axes", 0, "none"))
    write_pictures(tmp_path / "flat")
    words = text(
        "train", tmp_path / "flat" / "images", tmp_path / "flat" / "drawings", "--output_dir", tmp_path / "out"
    )
    assert "--flip_axes 2: the images have the axes 0, 1" in refused(capfd, *words, "--plan_only", "--flip_axes", 1, 2)


def test_the_metadata_are_of_what_was_planned(tmp_path: Path) -> None:
    write_volumes(tmp_path, 2)
    assert main(train_words(tmp_path, "--class_names", "box")) == 0
    metadata = json.loads((tmp_path / "run" / "configs" / "metadata.json").read_text())
    shutil.copy(SCHEMA, tmp_path / Path(metadata["schema"]).name)  # where MONAI would download it to
    verify_metadata(
        meta_file=str(tmp_path / "run" / "configs" / "metadata.json"),
        filepath=str(tmp_path / Path(metadata["schema"]).name),
    )
    assert (metadata["authors"], metadata["copyright"]) == ("unknown", "unknown")
    assert metadata["image_classes"] == "1 channel, modality unknown, intensities: zscore"
    assert metadata["network_data_format"]["inputs"]["image"]["modality"] == "unknown"
    said = json.dumps(metadata)
    assert not [word for word in ("medcoarse authors", "pelvis", "prostate", "n/a") if word in said]
    assert "3D" in metadata["description"]


def test_few_epochs_have_no_warmup_and_blank_images_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_volumes(tmp_path, 3)
    image = nib.load(tmp_path / "images" / "case1.nii.gz")
    nib.save(nib.Nifti1Image(np.full(image.shape, 7.0), image.affine), tmp_path / "images" / "case1.nii.gz")
    assert main(train_words(tmp_path, "--epochs", 2)) == 0
    said = capfd.readouterr().out
    assert "max_epochs 2: as asked for, which leaves NO WARM-UP" in said
    assert "ONE VALUE EVERYWHERE in case1.nii.gz\n" in said
    assert main(train_words(tmp_path, "--epochs", 1)) == 0
    assert "max_epochs 1: as asked for, which leaves NO WARM-UP" in capfd.readouterr().out
    assert main(train_words(tmp_path, "--epochs", 3)) == 0
    assert "max_epochs 3: as asked for\n" in capfd.readouterr().out


def test_a_slip_of_the_pen_is_pointed_at(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 4)
    path = tmp_path / "drawings" / "case1_drawn.nii.gz"
    drawing = nib.load(path)
    values = np.asarray(drawing.dataobj).copy()
    values[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(values, drawing.affine), path)
    assert main(train_words(tmp_path, "--validation", 0)) == 0
    said = capfd.readouterr().out
    assert "class 7 IS DRAWN IN case1.nii.gz ALONE" in said
    assert "class 1 IS DRAWN" not in said
    shutil.rmtree(tmp_path / "run")
    named = refused(capfd, *train_words(tmp_path, "--class_names", "box"))
    assert "of the values [1, 7]; correct the drawing where one of these is a slip" in named


def test_folders_that_were_mistaken(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    images = tmp_path / "images"
    words = ["--output_dir", tmp_path / "run", "--plan_only"]
    assert "IMAGES and DRAWINGS are one folder" in refused(capfd, "train", images, images, *words)
    shutil.copytree(images, tmp_path / "copied")
    for path in (tmp_path / "copied").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image((image.get_fdata() + 100).clip(0, 255).astype(np.uint8), image.affine), path)
    said = refused(capfd, "train", images, tmp_path / "copied", *words, "--background", 999)
    assert re.search(r"the values are -?\d+, -?\d+, -?\d+, \.\.\., \d+: \d+ of them, as images have", said)
    for name in ("Ada", "Max"):
        shutil.copytree(tmp_path / "drawings", tmp_path / "people" / name)
    said = refused(capfd, "train", images, tmp_path / "people", *words, "--background", BACKGROUND)
    assert "Ada/case0_drawn.nii.gz and Max/case0_drawn.nii.gz" in said
    assert "pass --annotators" in said
