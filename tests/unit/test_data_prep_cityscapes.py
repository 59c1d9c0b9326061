"""The Cityscapes script on small files in the official layout."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcoarse.datalist import load_datalist

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "data_prep"))  # scripts there import each other plainly

import cityscapes  # noqa: E402

CITIES = {"train": ("aachen", "bochum", "bremen", "ulm"), "val": ("lindau",), "train_extra": ("augsburg",)}
SIZE = (12, 16)


def write_frame(root: Path, split: str, stem: str, seed: int, coarse: bool = False) -> None:
    """A picture, its mask (roads, cars and what is not evaluated) and, if asked for, a drawing, with their names."""
    city = stem.split("_")[0]
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 7, 26, 255], SIZE).astype(np.uint8)
    files = {f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png": rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)}
    if split != "train_extra":
        files[f"gtFine/{split}/{city}/{stem}_gtFine_labelIds.png"] = label
    if coarse:
        files[f"gtCoarse/{split}/{city}/{stem}_gtCoarse_labelIds.png"] = np.where(label == 7, 7, 0).astype(np.uint8)
    for name, array in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def official(root: Path, coarse: bool = False) -> Path:
    number = 0
    for split, cities in CITIES.items():
        for city in cities if coarse or split != "train_extra" else ():
            for frame in range(3):
                write_frame(root, split, f"{city}_{frame // 2:06d}_{frame:06d}", number, coarse)
                number += 1
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return official(tmp_path / "official")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = cityscapes.main([str(argument) for argument in arguments])
    caught = capsys.readouterr()
    return status, caught.out + caught.err


def content(folder: Path) -> dict:
    return json.loads((folder / "datalist.json").read_text())


def test_whole_cities_are_held_out_and_val_is_for_testing(folder, capsys):
    status, text = run(capsys, "--folder", folder)
    assert status == 0, text
    assert "next: python -m monai.bundle run training --config_file bundles/cityscapes/train.json --dataset_dir" in text
    found = content(folder)
    cities = {
        name: {Path(item["image"]).parent.name for item in found[name]} for name in ("training", "validation", "test")
    }
    assert cities["test"] == {"lindau"}
    assert cities["training"] | cities["validation"] == set(CITIES["train"])
    assert not cities["training"] & cities["validation"]
    assert len(cities["validation"]) == 1
    assert len(found["training"]) == found["numTraining"] == 9
    assert (found["labels"], found["label_ids"]) == ({"0": "road", "1": "car"}, [7, 26])
    for item in load_datalist(folder / "datalist.json"):
        assert Path(item["image"]).is_file()
        assert Path(item["label"]).name == Path(item["image"]).name.replace("leftImg8bit", "gtFine_labelIds")


def test_nothing_is_written_beside_read_only_data_and_a_second_run_changes_nothing(folder, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    target = tmp_path / "elsewhere" / "listed"
    assert run(capsys, "--folder", folder, "--output_dir", target)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    items = load_datalist(target / "datalist.json", "test")
    assert all(Path(item["image"]).is_file() and str(folder) in item["image"] for item in items)
    assert not any(Path(item["image"]).is_absolute() for item in content(target)["test"])
    stamps = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    assert run(capsys, "--folder", folder, "--output_dir", target)[0] == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in target.rglob("*")}


def test_provenance_says_which_bytes_and_which_split(folder, capsys):
    run(capsys, "--folder", folder, "--seed", 3)
    record = json.loads((folder / "provenance.json").read_text())
    assert record["parameters"]["seed"] == 3
    assert record["images"] == {"training": 9, "validation": 3, "test": 3, "subset": 9}
    assert record["label_ids"]["training"] == [0, 1, 7, 26, 255]
    assert len(record["files"]) == 2 * 15


def test_the_subset_is_drawn_with_the_seed(folder, capsys):
    drawn = []
    for seed in (0, 0, 1):
        run(capsys, "--folder", folder, "--subset", 4, "--held_out", "ulm", "--seed", seed)
        found = content(folder)
        drawn.append([item["image"] for item in found["subset"]])
        assert len(drawn[-1]) == 4
        assert {item["image"] for item in found["training"]} > set(drawn[-1])
    assert drawn[0] == drawn[1] != drawn[2]


def test_drawings_and_images_that_have_drawings_only(tmp_path, capsys):
    folder = official(tmp_path / "official", coarse=True)
    assert run(capsys, "--folder", folder)[0] == 0
    found = content(folder)
    assert all("coarse" in item and "label" in item for item in found["training"])
    assert [sorted(item) for item in found["extra"]] == [["coarse", "image"]] * 3


def test_drawings_of_images_that_were_not_downloaded_are_left_out(tmp_path, capsys):
    """gtCoarse.zip has drawings of train_extra, leftImg8bit_trainvaltest.zip not its images."""
    folder = official(tmp_path / "official", coarse=True)
    shutil.rmtree(folder / "leftImg8bit/train_extra")
    status, text = run(capsys, "--folder", folder)
    assert status == 0, text
    assert f"{folder}: there is no leftImg8bit/train_extra; 3 drawings of its images left out\n" in text
    found = content(folder)
    assert "extra" not in found
    assert all("coarse" in item for item in found["training"])


def test_a_single_missing_image_is_a_problem_where_others_are_there(tmp_path, capsys):
    folder = official(tmp_path / "official", coarse=True)
    stem = "augsburg/augsburg_000000_000001"
    (folder / f"leftImg8bit/train_extra/{stem}_leftImg8bit.png").unlink()
    status, text = run(capsys, "--folder", folder)
    assert status == 1
    assert "1 problem:" in text
    assert f"gtCoarse/train_extra/{stem}_gtCoarse_labelIds.png: there is no image leftImg8bit/train_extra/" in text
    assert not (folder / "datalist.json").exists()


def test_polygons_stand_in_for_label_maps(folder, tmp_path, capsys):
    path = folder / "gtFine/train/aachen/aachen_000000_000001_gtFine_labelIds.png"
    path.unlink()
    road = {"label": "road", "polygon": [[0, 6], [15, 6], [15, 11], [0, 11]]}
    polygons = path.with_name(path.name.replace("labelIds.png", "polygons.json"))
    polygons.write_text(json.dumps({"imgWidth": 16, "imgHeight": 12, "objects": [road]}))
    target = tmp_path / "listed"
    assert run(capsys, "--folder", folder, "--output_dir", target, "--held_out", "ulm")[0] == 0
    (item,) = [item for item in load_datalist(target / "datalist.json") if "aachen_000000_000001" in item["image"]]
    painted = np.array(Image.open(item["label"]))
    assert Path(item["label"]).is_relative_to(target)
    assert (painted[6:] == 7).all()
    assert (painted[:6] == 0).all()


def test_one_city_is_split_by_sequence(tmp_path, capsys):
    """As the street scenes of CamVid, which are one city in both splits."""
    folder = tmp_path / "camvid"
    for sequence, number in (("0001TP", 2), ("0006R0", 4), ("0016E5", 9)):
        for frame in range(number):
            write_frame(folder, "train", f"camvid_{sequence}_{frame:05d}", frame + 100 * number)
    write_frame(folder, "val", "camvid_0016E5_99999", 7)
    status, text = run(capsys, "--folder", folder)
    assert status == 1
    assert "camvid is in train and in val; cities must not be shared" in text
    assert "pass --shared-cities" in text
    assert run(capsys, "--folder", folder, "--shared-cities")[0] == 0
    held = {Path(item["image"]).name.split("_")[1] for item in content(folder)["validation"]}
    assert held == {"0001TP"}, "two of fifteen are nearest to the share that is asked for"


def test_the_same_picture_in_both_splits_is_never_accepted(folder, capsys):
    write_frame(folder, "val", "aachen_000000_000000", 0)
    status, text = run(capsys, "--folder", folder, "--shared-cities")
    assert status == 1
    assert "aachen_000000_000000_leftImg8bit.png is in train and in val" in text


def _remove(name):
    return lambda folder: (folder / name).unlink()


def _mislabel(folder):
    label = np.full(SIZE, 7, np.uint8)
    label[0, :3] = 34, 77, 200
    Image.fromarray(label).save(folder / "gtFine/train/ulm/ulm_000000_000000_gtFine_labelIds.png")


def _colour(folder):
    picture = Image.new("RGB", SIZE[::-1])
    picture.save(folder / "gtFine/train/ulm/ulm_000000_000000_gtFine_labelIds.png")


def _cut(folder):
    path = folder / "gtFine/val/lindau/lindau_000000_000000_gtFine_labelIds.png"
    path.write_bytes(path.read_bytes()[:60])


def _rename(folder):
    path = folder / "leftImg8bit/train/ulm/ulm_000000_000000_leftImg8bit.png"
    path.rename(path.with_name("ulm_1.png"))


def _move(folder):
    path = folder / "leftImg8bit/train/ulm/ulm_000000_000000_leftImg8bit.png"
    path.rename(folder / "leftImg8bit/train/aachen" / path.name)


def _some_drawings(folder):
    write_frame(folder, "train", "ulm_000000_000000", 9, coarse=True)


def _other_size(folder):
    Image.new("RGB", (20, 20)).save(folder / "leftImg8bit/val/lindau/lindau_000000_000000_leftImg8bit.png")


FINE = "gtFine/train/ulm/ulm_000000_000000_gtFine_labelIds.png"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove(FINE), "has neither gtFine_labelIds.png nor gtFine_polygons.json; unpack gtFine*.zip"),
        (_remove("leftImg8bit/train/ulm/ulm_000000_000000_leftImg8bit.png"), f"{FINE}: there is no image"),
        (_mislabel, "holds the label ids 34, 77, 200, Cityscapes has 0 to 33; pass *_labelIds.png"),
        (_colour, "has mode RGB, expected one channel of 8 bits"),
        (_cut, "cannot be decoded"),
        (_rename, "ulm_1.png: expected <city>_<sequence>_<frame>_leftImg8bit.png in the folder of its city"),
        (_move, "expected <city>_<sequence>_<frame>_leftImg8bit.png in the folder of its city"),
        (_some_drawings, "has no drawing in gtCoarse, though 1 others have; unpack gtCoarse.zip"),
        (_other_size, "lindau_000000_000000"),
    ],
)
def test_what_is_wrong_is_said(folder, capsys, damage, message):
    damage(folder)
    status, text = run(capsys, "--folder", folder, "--held_out", "bochum")
    assert status == 1
    assert message in text, text
    assert not (folder / "datalist.json").exists()


def test_another_folder_is_refused(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    status, text = run(capsys, "--folder", tmp_path)
    assert status == 1
    assert "expected the folders leftImg8bit/train, leftImg8bit/val, gtFine of Cityscapes, got ['images']" in text
    assert "unpack leftImg8bit_trainvaltest.zip" in text
    status, text = run(capsys, "--folder", tmp_path / "nowhere")
    assert (status, "no such folder" in text) == (1, True)


def test_an_unknown_city_to_hold_out(folder, capsys):
    status, text = run(capsys, "--folder", folder, "--held_out", "rome")
    assert status == 1
    assert "rome is no city or <city>_<sequence> of train; these are aachen" in text
