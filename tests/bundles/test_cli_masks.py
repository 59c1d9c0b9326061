"""Masks as people have them: what 255 means, and which files belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medcoarse.baselines.fused_labels import fused_confusion
from medcoarse.cli.main import main
from medcoarse.cli.simulate import EXAMPLES
from tests.bundles.commands import refused, text
from tests.cases_folders import write_pictures, write_volumes

LEFT = np.repeat([[1, 1, 0, 0, 0, 0]], 5, 0).astype(np.uint8)
MIDDLE = np.repeat([[0, 1, 1, 0, 0, 0]], 5, 0).astype(np.uint8)


def save(path: Path, values: np.ndarray) -> Path:
    """A picture, or a volume of one slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(values.T[..., None].astype(np.uint8), np.eye(4)), path)
    else:
        Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def scores(folder: Path, *more: str) -> dict[str, Any]:
    words = text("evaluate", folder / "said", folder / "true", "--output_dir", folder / "scores", *more)
    assert main(words) == 0
    return json.loads((folder / "scores" / "scores.json").read_text())


# --- what 255 means ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".nii.gz"])
@pytest.mark.parametrize("scales", [(1, 255), (255, 255), (255, 1)])
def test_masks_of_0_and_255_are_binary(tmp_path: Path, suffix: str, scales: tuple[int, int]) -> None:
    """Two of three pixels of each: Dice 2 * 1 / (2 + 2)."""
    save(tmp_path / "said" / f"a{suffix}", scales[0] * LEFT)
    save(tmp_path / "true" / f"a{suffix}", scales[1] * MIDDLE)
    save(tmp_path / "said" / f"b{suffix}", 0 * LEFT)
    save(tmp_path / "true" / f"b{suffix}", scales[1] * MIDDLE)
    rows = {row["name"]: row for row in scores(tmp_path)["images"]}
    assert (rows["a"]["dice_class 1"], rows["b"]["dice_class 1"]) == (pytest.approx(0.5), 0)


def test_255_is_unlabeled_where_masks_number_their_classes(tmp_path: Path) -> None:
    """The second mask has no structure: that it means the same there is known from the first."""
    border = np.where(np.arange(6) == 0, 255, 0)
    save(tmp_path / "true" / "a.png", np.where(border, 255, MIDDLE))
    save(tmp_path / "true" / "b.png", np.where(border, 255, 0 * MIDDLE))
    save(tmp_path / "said" / "a.png", LEFT)
    save(tmp_path / "said" / "b.png", LEFT)
    rows = {row["name"]: row for row in scores(tmp_path)["images"]}
    assert rows["a"]["dice_class 1"] == pytest.approx(2 * 5 / (5 + 10))
    assert rows["b"]["dice_class 1"] is None, "there is none"
    assert rows["b"]["dice_background"] == pytest.approx(2 * 20 / (20 + 25))


def test_masks_that_mean_different_things_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "true" / "a.png", LEFT)
    save(tmp_path / "true" / "b.png", 255 * LEFT)
    for name in ("a", "b"):
        save(tmp_path / "said" / f"{name}.png", LEFT)
    words = text("evaluate", tmp_path / "said", tmp_path / "true")
    said = refused(capfd, *words)
    assert "b.png has 255 and no class, a.png has classes" in said
    assert "write all masks of a folder alike" in said


@pytest.mark.parametrize("method", ["majority", "staple"])
def test_fusion_of_binary_masks(tmp_path: Path, method: str) -> None:
    for name, scale in (("ada", 255), ("ben", 255), ("cleo", 1)):
        save(tmp_path / name / "a.png", scale * (LEFT if name == "cleo" else MIDDLE))
    words = text("fuse", tmp_path / "ada", tmp_path / "ben", tmp_path / "cleo", "--output_dir", tmp_path / "out")
    assert main([*words, "--method", method]) == 0
    with Image.open(tmp_path / "out" / "a.png") as found:
        np.testing.assert_array_equal(np.asarray(found), MIDDLE)


def drawn_by_three(folder: Path) -> list[dict[str, np.ndarray]]:
    """Two pictures of other sizes; class 2 is in the second alone, which cleo left out, and ben's top is undrawn."""
    rng, pictures = np.random.default_rng(0), []
    for name, size, num_classes in (("a", (20, 37), 2), ("b", (30, 25), 3)):
        true = np.sort(rng.integers(0, num_classes, size), 1).astype(np.uint8)
        drawn = {}
        for who, errors in (("ada", 0.05), ("ben", 0.2), ("cleo", 0.4)):
            wrong = rng.random(size) < errors
            drawn[who] = np.where(wrong, rng.integers(0, num_classes, size), true).astype(np.uint8)
        drawn["ben"][:3] = 255
        if name == "b":
            drawn["cleo"][:] = 255
        for who, values in drawn.items():
            if (values != 255).any():
                save(folder / who / f"{name}.png", values)
        pictures.append(drawn)
    return pictures


def pooled_by_hand(pictures: list[dict[str, np.ndarray]], method: str) -> np.ndarray:
    """Counts (R, drawn, true) against the majority, or the shares of votes, voxel by voxel."""
    counts = np.zeros((3, 3, 3))
    for drawn in pictures:
        for said in np.stack(list(drawn.values()), -1).reshape(-1, 3):
            votes = np.bincount(said[said != 255], minlength=3)
            true = votes / votes.sum()
            if method == "majority":
                true = np.where((votes == votes.max()).sum() == 1, votes == votes.max(), 0)
            for r, k in enumerate(said):
                if k != 255:
                    counts[r, k] += true
    return counts


@pytest.mark.parametrize("method", ["majority", "mean", "staple", "spatial_staple"])
def test_reliability_is_counted_over_all_images(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = drawn_by_three(tmp_path)
    folders = text(*(tmp_path / who for who in ("ada", "ben", "cleo")))
    assert main(["fuse", *folders, "--output_dir", str(tmp_path / "out"), "--method", method]) == 0
    record = json.loads((tmp_path / "out" / "fusion.json").read_text())
    assert record["class_names"] == ["background", "class 1", "class 2"], "of all files, also for the first picture"
    if method in ("majority", "mean"):
        counts = pooled_by_hand(pictures, method)
        cm, accuracy = counts / counts.sum(1, keepdims=True), [np.trace(table) / table.sum() for table in counts]
    else:
        items = [{"positive": torch.from_numpy(np.stack([values.T for values in d.values()]))} for d in pictures]
        cm, accuracy = fused_confusion(items, 3, method).numpy(), [None] * 3
        assert [np.shape(record["images"][name]["confusion"]) for name in ("a", "b")] == [(3, 3, 3)] * 2
    shown = capsys.readouterr().out
    assert [row["num_images"] for row in record["reliability"].values()] == [2, 2, 1]
    for r, who in enumerate(folders):
        row = record["reliability"][who]
        found = np.array(row["confusion"], float)
        np.testing.assert_allclose(found, cm[r], atol=1e-6)
        np.testing.assert_allclose(found.sum(0), [1, 1, 1 if r < 2 else np.nan], err_msg="cleo saw no class 2")
        assert list(row["sensitivity"].values()) == [row["confusion"][k][k] for k in range(3)]
        assert accuracy[r] is None or row["accuracy"] == pytest.approx(accuracy[r])
        told = [row["accuracy"], *row["sensitivity"].values()]
        line = " ".join([who, str(row["num_images"]), *("-" if v is None else f"{v:.4f}" for v in told)])
        assert line in [" ".join(one.split()) for one in shown.splitlines()]
    ada, ben, cleo = (row["accuracy"] for row in record["reliability"].values())
    assert ada > ben > cleo


def test_the_table_of_many_classes_stays_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for who in ("ada", "ben"):
        save(tmp_path / who / "a.png", np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert main(text("fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert "class 7" in shown
    assert "class 8" not in shown
    assert "fusion.json has all 12 classes" in shown
    rows = json.loads((tmp_path / "out" / "fusion.json").read_text())["reliability"]
    assert [len(row["sensitivity"]) for row in rows.values()] == [12, 12]


def test_an_annotator_who_drew_nothing_says_nothing(tmp_path: Path) -> None:
    for name, values in (("ada", MIDDLE), ("ben", LEFT), ("cleo", MIDDLE), ("dora", 0 * LEFT + 255)):
        save(tmp_path / name / "a.png", values)
    folders = [tmp_path / name for name in ("ada", "ben", "cleo", "dora")]
    assert main(text("fuse", *folders, "--output_dir", tmp_path / "out")) == 0
    with Image.open(tmp_path / "out" / "a.png") as found:
        np.testing.assert_array_equal(np.asarray(found), MIDDLE)


def test_images_that_one_annotator_drew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Who left out which eye: left and right are of the image, and nobody's name."""
    for who, eyes in (("ada", ("1_left", "1_right", "4_left")), ("ben", ("1_left", "1_right", "4_right"))):
        for eye in eyes:
            save(tmp_path / "drawn" / who / f"p{eye}.png", MIDDLE)
    words = text("fuse", tmp_path / "drawn" / "ada", tmp_path / "drawn" / "ben", "--output_dir", tmp_path / "out")
    said = refused(capfd, *words)
    assert "2 of 6 files are the only ones of their images: p4_left.png, p4_right.png; pass --partial" in said
    assert main([*words, "--partial"]) == 0
    assert "LEFT OUT, for there is no other of their images: 2, p4_left.png, p4_right.png" in capfd.readouterr().out
    record = json.loads((tmp_path / "out" / "fusion.json").read_text())
    assert [Path(name).name for name in record["left_out"]] == ["p4_left.png", "p4_right.png"]
    assert list(record["images"]) == ["p1_left", "p1_right"]
    assert [row["num_images"] for row in record["reliability"].values()] == [2, 2]
    said = refused(capfd, "fuse", tmp_path / "drawn", "--output_dir", tmp_path / "other")
    assert f"medcoarse fuse {tmp_path}/drawn/ada {tmp_path}/drawn/ben, or put the files" in said
    for who in ("ada", "ben"):
        for number in ("1", "2"):
            save(tmp_path / "by_image" / f"p{number}" / f"p{number}_{who}.png", MIDDLE)
        (tmp_path / "by_image" / "p2" / f"p2_{who}.png").rename(tmp_path / "by_image" / "p2" / f"{who}.png")
    assert main(text("fuse", tmp_path / "by_image", "--output_dir", tmp_path / "by_image_out", "--by_image")) == 0
    record = json.loads((tmp_path / "by_image_out" / "fusion.json").read_text())
    assert (record["annotators"], list(record["images"])) == (["ada", "ben"], ["p1", "p2"])
    for who in ("ada", "ben"):  # the same names, and nobody could tell but for what people are called
        for number in ("1", "2"):
            save(tmp_path / "by_person" / who / f"{who}_p{number}.png", MIDDLE)
        save(tmp_path / "by_side" / who / f"{who}_left.png", MIDDLE)
    for folder in ("by_person", "by_side", "by_image"):
        said = refused(capfd, "fuse", tmp_path / folder, "--output_dir", tmp_path / "other")
        assert "holds label maps in 2 places" in said
        assert "or pass --by_image" in said
    for end in ("left", "right"):
        (tmp_path / "drawn" / "ben" / f"p1_{end}.png").unlink()
    said = refused(capfd, *words, "--partial", "--overwrite")
    assert "4 of 4 files are the only ones of their images" in said
    assert "--partial" not in said, "nothing would be left"


def test_people_in_folders_of_images_are_who_their_files_say(tmp_path: Path) -> None:
    """Whether the name of the image comes first or last."""
    for image, values in (("case1", LEFT), ("case10", MIDDLE)):
        for name in (f"ada_{image}", f"{image}.ben", "cleo", image):
            save(tmp_path / "all" / image / f"{name}.png", values)
    assert main(text("fuse", tmp_path / "all", "--output_dir", tmp_path / "out", "--by_image")) == 0
    record = json.loads((tmp_path / "out" / "fusion.json").read_text())
    assert record["annotators"] == ["", "ada", "ben", "cleo"]
    assert {name: len(facts["files"]) for name, facts in record["images"].items()} == {"case1": 4, "case10": 4}
    for image, values in (("case1", LEFT), ("case10", MIDDLE)):
        with Image.open(tmp_path / "out" / f"{image}.png") as found:
            np.testing.assert_array_equal(np.asarray(found), values)


@pytest.mark.parametrize("place", ["p1/scan/ada", "p1/p1/ada", "ada"])
def test_files_of_other_depths_are_not_fused_by_image(
    place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Folders called alike in those of several patients are no image."""
    for who in ("ada", "ben"):
        save(tmp_path / "all" / "p2" / f"{who}.png", LEFT)
        save(tmp_path / "other" / "p2" / f"{who}.png", LEFT)
    file = save(tmp_path / "all" / f"{place}.png", LEFT)
    words = ("fuse", tmp_path / "all", "--output_dir", tmp_path / "out", "--by_image")
    said = refused(capfd, *words)
    assert f"{file}: with --by_image every file lies in a folder of its image, and that in {tmp_path / 'all'}" in said
    file.unlink()
    said = refused(capfd, "fuse", tmp_path / "other", *words[1:])
    assert f"{tmp_path}/other/p2 and {tmp_path}/all/p2 are both of 'p2'; give different images different names" in said
    assert not (tmp_path / "out").exists()


def test_folders_of_images_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for who in ("ada", "ben"):
        save(tmp_path / "all" / "p2" / f"{who}.png", LEFT)
    monkeypatch.chdir(tmp_path / "all")
    assert main(["fuse", ".", "--output_dir", "../out", "--by_image"]) == 0
    assert (tmp_path / "out" / "p2.png").is_file()
    save(tmp_path / "all" / "loose.png", LEFT)
    said = refused(capfd, "fuse", ".", "--output_dir", "../other", "--by_image")
    assert "loose.png: with --by_image every file lies in a folder of its image, and that in ., such as case1/l" in said


def test_simulation_from_binary_masks(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    for number in range(2):
        with Image.open(tmp_path / "masks" / f"p{number}.png") as mask:
            save(tmp_path / "marked" / f"p{number}.png", 255 * np.asarray(mask))
    for masks in ("masks", "marked"):
        assert main(text("simulate", tmp_path / masks, tmp_path / f"of_{masks}")) == 0
    drawn = sorted((tmp_path / "of_masks").glob("*.png"))
    assert drawn
    for path in drawn:
        assert path.read_bytes() == (tmp_path / "of_marked" / path.name).read_bytes()


def test_masks_of_one_name_are_not_simulated_over_each_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for person in ("x", "y"):
        save(tmp_path / "masks" / person / "a.png", MIDDLE)
    assert main(text("simulate", tmp_path / "masks", tmp_path / "apart")) == 0
    assert sorted(json.loads((tmp_path / "apart" / "parameters.json").read_text())["masks"]) == ["x/a.png", "y/a.png"]
    assert [(tmp_path / "apart" / person / "a.png").is_file() for person in ("x", "y")] == [True, True]
    save(tmp_path / "masks" / "x" / "a.bmp", MIDDLE)
    said = refused(capfd, "simulate", tmp_path / "masks", tmp_path / "out")
    assert "x/a.bmp and" in said
    assert "x/a.png have the same name" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("p0.jpg", "p0.jpg: none of the formats ['nifti', "),
        ("p0.mhd", "p0.mhd: none of the formats ['nifti', "),
        ("p0.json", "p0.json: not in the format of a labelme file"),
        ("p0_mask.dcm", "p0_mask.dcm: "),
    ],
)
def test_masks_that_cannot_be_read_are_refused(
    name: str, problem: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path)
    shutil.rmtree(tmp_path / "masks")
    path = tmp_path / "masks" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"shapes": [], "imageWidth": 3}')
    if path.suffix == ".dcm":
        path.write_bytes(b"\0" * 128 + b"DICM")
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--labels", tmp_path / "masks", "--plan_only")
    said = refused(capfd, *words, "--output_dir", tmp_path / "run")
    assert problem in said
    assert not (tmp_path / "run").exists()


def test_what_the_help_of_simulate_says_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_volumes(tmp_path, 3)
    shutil.rmtree(tmp_path / "drawings")
    monkeypatch.chdir(tmp_path)
    commands = [line.split()[1:] for line in EXAMPLES.splitlines() if line.startswith("  medcoarse ")]
    assert [words[0] for words in commands] == ["simulate", "train", "simulate", "simulate", "train", "report"]
    for words in commands:
        assert main([*words, *(["--epochs", "1"] if words[0] == "train" else [])]) == 0
    assert (tmp_path / "run" / "models" / "model.pt").is_file()
    files = {place: len(list((tmp_path / place).rglob("*.nii.gz"))) for place in ("drawings", "strokes", "annotators")}
    assert files == {"drawings": 3, "strokes": 3, "annotators": 9}
    reviewed = json.loads((tmp_path / "people" / "output" / "annotators.json").read_text())
    assert {one["name"] for one in reviewed["annotators"]} == {"dhe_good", "dhe_over", "dhe_under"}


def test_training_with_binary_labels_scores_the_structure(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    for number in range(3):
        with Image.open(tmp_path / "masks" / f"p{number}.png") as mask:
            save(tmp_path / "marked" / f"p{number}.png", 255 * np.asarray(mask))
    dice = []
    for masks in ("masks", "marked"):
        words = text("train", tmp_path / "images", tmp_path / "drawings", "--labels", tmp_path / masks)
        assert main([*words, *text("--output_dir", tmp_path / f"run_{masks}", "--epochs", 1)]) == 0
        found = json.loads((tmp_path / f"run_{masks}" / "output" / "metrics.json").read_text())
        dice.append(found["validation"][-1]["mean_dice"])
    assert dice[0] == dice[1]
    settings = json.loads((tmp_path / "run_marked" / "configs" / "train.json").read_text())
    assert settings["binary_labels"] is True


def test_binary_labels_of_several_classes_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    for number in range(3):
        mask = np.asarray(nib.load(tmp_path / "masks" / f"case{number}.nii.gz").dataobj)
        drawing = nib.load(tmp_path / "drawings" / f"case{number}_drawn.nii.gz")
        strokes = np.asarray(drawing.dataobj).copy()
        strokes[-3:-1, 2:20] = 5
        nib.save(nib.Nifti1Image(strokes, drawing.affine), tmp_path / "drawings" / f"case{number}_drawn.nii.gz")
        nib.save(nib.Nifti1Image(255 * mask, drawing.affine), tmp_path / "masks" / f"case{number}.nii.gz")
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--labels", tmp_path / "masks", "--plan_only")
    said = refused(capfd, *words, "--background", 3, "--output_dir", tmp_path / "run")
    assert "the masks tell 2 classes apart (0 and 255), the drawings 3" in said


def test_labels_of_other_classes_than_the_drawings_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_volumes(tmp_path, 3)
    path = tmp_path / "masks" / "case1.nii.gz"
    mask = nib.load(path)
    values = np.asarray(mask.dataobj).copy()
    values[0, 0, 0], values[1, 0, 0] = 7, 255
    nib.save(nib.Nifti1Image(values, mask.affine), path)
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--labels", tmp_path / "masks", "--plan_only")
    said = refused(capfd, *words, "--background", 3, "--output_dir", tmp_path / "run")
    assert "case1.nii.gz: the mask shows '7', and the classes are 0 background, 1 class 1; number them so" in said
    assert not (tmp_path / "run").exists()


# --- which files belong together ---------------------------------------------------------------------------------


def test_evaluation_pairs_whichever_name_is_longer(tmp_path: Path) -> None:
    for said, true in (("a", "a_mask"), ("b_seg", "b"), ("c_1", "c_1"), ("c_2_seg", "c_2")):
        save(tmp_path / "said" / f"{said}.png", LEFT)
        save(tmp_path / "true" / f"{true}.png", LEFT)
    table = scores(tmp_path)
    assert [row["name"] for row in table["images"]] == ["a", "b_seg", "c_1", "c_2_seg"]
    assert table["image"]["dice_class 1"] == 1


def test_partial_evaluation_leaves_out_on_both_sides(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for said in ("a", "x"):
        save(tmp_path / "said" / f"{said}.png", LEFT)
    for true in ("a", "a_1", "y_mask"):
        save(tmp_path / "true" / f"{true}.png", LEFT)
    said = refused(capfd, "evaluate", tmp_path / "said", tmp_path / "true")
    assert "1 segmentations without a mask: x.png" in said
    assert "2 masks without a segmentation: a_1.png, y_mask.png" in said
    assert "--partial" in said
    assert [row["name"] for row in scores(tmp_path, "--partial")["images"]] == ["a"]
    shown = capfd.readouterr().out
    assert "left out: 1 segmentations without a mask: x.png" in shown
    assert "left out: 2 masks without a segmentation: a_1.png, y_mask.png" in shown


def test_a_mask_of_two_segmentations(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for said in ("a_first", "a_second"):
        save(tmp_path / "said" / f"{said}.png", LEFT)
    save(tmp_path / "true" / "a.png", LEFT)
    said = refused(capfd, "evaluate", tmp_path / "said", tmp_path / "true", "--partial")
    assert "a.png could belong to a_first.png, a_second.png" in said


@pytest.mark.parametrize("folders", [1, 2])
def test_fusion_pairs_by_the_start_of_names(tmp_path: Path, folders: int) -> None:
    """An annotator's name is an ending, a number belongs to the image."""
    drawn = {"ada": ["case_1", "case_2"], "ben": ["case_1", "case_2"], "cleo": ["case_2"]}
    for who, cases in drawn.items():
        for case in cases:
            place = "all" if folders == 1 else "ada" if who == "ada" else "others"
            if folders == 1 or who != "cleo":
                save(tmp_path / place / f"{case}_{who}.png", LEFT if case == "case_1" else MIDDLE)
    words = text("fuse", *sorted(tmp_path.iterdir()), "--output_dir", tmp_path / "out")
    assert main(words) == 0
    for case, mask in (("case_1", LEFT), ("case_2", MIDDLE)):
        with Image.open(tmp_path / "out" / f"{case}.png") as found:
            np.testing.assert_array_equal(np.asarray(found), mask)
    record = json.loads((tmp_path / "out" / "fusion.json").read_text())
    assert [Path(who).name for who in record["annotators"]] == (
        ["ada", "ben", "cleo"] if folders == 1 else ["ada", "others"]
    )
    assert len(record["images"]["case_2"]["files"]) == (3 if folders == 1 else 2)


def test_fusion_of_a_name_and_one_that_goes_on(tmp_path: Path) -> None:
    for place, names in (("ada", ["a", "a_2"]), ("ben", ["a_ben", "a_2_by_ben"])):
        for name in names:
            save(tmp_path / place / f"{name}.png", LEFT)
    assert main(text("fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out")) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "a_2.png"]


def test_what_fusion_cannot_pair(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "all" / "case_1.png", LEFT)
    save(tmp_path / "all" / "case_2.png", LEFT)
    said = refused(capfd, "fuse", tmp_path / "all", "--output_dir", tmp_path / "out")
    assert "2 of 2 files are the only ones of their images: case_1.png, case_2.png" in said
    save(tmp_path / "ada" / "a.png", LEFT)
    save(tmp_path / "ada" / "a_old.png", LEFT)
    save(tmp_path / "ben" / "a.png", LEFT)
    said = refused(capfd, "fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out")
    assert "are both of 'a' by one annotator" in said
    said = refused(capfd, "fuse", tmp_path / "ben", tmp_path / "ada" / ".." / "ben", "--output_dir", tmp_path / "out")
    assert "ben: is named 2 times; name the folder of each annotator once" in said
    assert not (tmp_path / "out").exists()
