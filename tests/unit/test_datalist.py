"""Reading datalists, and every problem that `verify_datalist` must name before training starts."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image

from medcoarse.assignment import assign_annotators, assignment_of, with_annotators
from medcoarse.datalist import (
    MAX_LINES,
    DataError,
    les_av_datalist,
    les_av_items,
    les_av_root,
    load_datalist,
    provenance,
    verify_datalist,
    verify_les_av,
    verify_prepared,
    write_annotators,
)

COMMITTED = Path(__file__).resolve().parents[2] / "bundles" / "les_av" / "configs" / "datalist.json"
OFFICIAL_IDS = [12, 15, 33, 34, 37, 42, 49, 53, 90, 111, 119, 224, 240, 275, 279, 304, 318, 367, 370, 486, 529, 586]
REAL = Path(os.environ.get("MEDCOARSE_DATA", "/nonexistent")) / "LES-AV"


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def make_les_av(root: Path, ids: list[int], seed: int = 0) -> Path:
    """A small data set in the official layout; every image has its own size and content."""
    rng = np.random.default_rng(seed)
    for index, i in enumerate(ids):
        shape = (16 + index, 20)
        save(root / "images" / f"{i}.png", rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        save(root / "vessel-segmentations" / f"{i}.png", rng.choice(np.uint8([0, 255]), shape))
        field = np.ones(shape, np.uint8)
        field[0] = 0
        mask = Image.fromarray(field, mode="P")
        mask.putpalette([0, 0, 0, 255, 255, 255])
        (root / "masks").mkdir(exist_ok=True)
        mask.save(root / "masks" / f"{i}_mask.gif")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_les_av(tmp_path / "LES-AV", [3, 20, 100, 7, 8])


def problems(root: Path, **kwargs: Any) -> str:
    """The text of the error that verifying all items of a folder raises."""
    with pytest.raises(DataError) as caught:
        verify_datalist({"training": les_av_items(root)}, label_values=(0, 255), **kwargs)
    return str(caught.value)


class TestLoad:
    def write(self, folder: Path, content: Any) -> Path:
        path = folder / "datalist.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def test_agrees_with_monai_on_image_and_label(self, tmp_path: Path) -> None:
        ours = load_datalist(COMMITTED, "training", tmp_path)
        theirs = load_decathlon_datalist(COMMITTED, True, "training", tmp_path)
        assert [(i["image"], i["label"]) for i in ours] == [(i["image"], i["label"]) for i in theirs]
        assert all(Path(i["mask"]).is_absolute() for i in ours)

    def test_names_become_absolute_and_the_rest_is_kept(self, tmp_path: Path) -> None:
        entry = {"image": ["t1.nii", "sub/../t2.nii"], "label": "/abs/l.nii", "fold": 3, "annotator": "A", "mask": ""}
        (item,) = load_datalist(self.write(tmp_path, {"training": [entry]}), path_keys=["image", "label", "mask"])
        assert item["image"] == [str(tmp_path / "t1.nii"), str(tmp_path / "t2.nii")]
        assert item["label"] == "/abs/l.nii"
        assert (item["fold"], item["annotator"], "mask" in item) == (3, "A", False)

    def test_files_that_are_none_are_not_there(self, tmp_path: Path) -> None:
        entry = {"image": "a", "label": "", "drawing": [], "mask": None, "others": [None, ""], "annotators": [], "n": 0}
        (tmp_path / "d.json").write_text(json.dumps({"training": [entry, {"image": "b", "drawing": ["c", None]}]}))
        first, second = load_datalist(tmp_path / "d.json")
        assert first == {"image": str(tmp_path.resolve() / "a"), "annotators": [], "n": 0}
        assert second["drawing"] == [str(tmp_path.resolve() / "c"), None], "somebody drew nothing"

    def test_bare_name_is_an_image(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, {"test": ["a.png"]})
        assert load_datalist(path, "test") == [{"image": str(tmp_path / "a.png")}]

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            ("{", "not valid JSON"),
            ({"training": []}, "section 'training' is empty; list at least one image"),
            ({"train": [{"image": "a"}]}, r"no section 'training', got \['train'\]"),
            (["a.png"], r"no section 'training', got \[\]"),
            ({"training": [7]}, "entry 0 of 'training' is 7"),
        ],
    )
    def test_bad_content(self, tmp_path: Path, content: Any, text: str) -> None:
        with pytest.raises(DataError, match=text):
            load_datalist(self.write(tmp_path, content))

    def test_the_first_entries(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, {"training": ["a.png", "b.png", "c.png"]})
        assert [Path(item["image"]).name for item in load_datalist(path, num_items=2)] == ["a.png", "b.png"]
        assert len(load_datalist(path, num_items=3)) == 3
        for number in (0, -1, 4):
            with pytest.raises(DataError, match=f"'training' lists 3 items, {number} are wanted; ask for fewer"):
                load_datalist(path, num_items=number)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nothing.json: no such datalist; pass the path"):
            load_datalist(tmp_path / "nothing.json")


class TestAnnotators:
    def test_people_are_no_files(self, tmp_path: Path) -> None:
        entry = {"image": "a.png", "annotators": ["Ada", "Max"], "negative_annotators": ["Eva"]}
        path = tmp_path / "datalist.json"
        path.write_text(json.dumps({"training": [entry]}))
        (item,) = load_datalist(path)
        assert (item["annotators"], item["negative_annotators"]) == (["Ada", "Max"], ["Eva"])
        assert load_datalist(path, path_keys=["annotators"])[0]["annotators"][0] == str(tmp_path / "Ada")

    @pytest.mark.parametrize("annotators", [3, ["Ada", "Max", "Eva"]])
    def test_are_drawn_and_written(self, tmp_path: Path, annotators: Any) -> None:
        path = tmp_path / "datalist.json"
        content = {"name": "mine", "training": ["a.png", {"image": "b.png", "fold": 1}, "c.png"], "test": ["d.png"]}
        path.write_text(json.dumps(content))
        assignment = write_annotators(path, annotators, per_image=2, seed=5)
        assert assignment == assign_annotators(3, 3, 2, 5)
        items = load_datalist(path)
        assert assignment_of(items, annotators) == assignment
        assert items[1]["fold"] == 1
        found = json.loads(path.read_text())
        assert (found["name"], found["test"]) == ("mine", ["d.png"])
        assert [set(entry) for entry in found["training"]] == [
            {"image", "annotators"},
            {"image", "fold", "annotators"},
            {"image", "annotators"},
        ]
        write_annotators(path, annotators, per_image=1)
        assert [len(item["annotators"]) for item in load_datalist(path)] == [1, 1, 1]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["datalist.json"]

    def test_the_file_stays_whole_where_they_cannot_be_drawn(self, tmp_path: Path) -> None:
        path = tmp_path / "datalist.json"
        path.write_text('{"training": ["a.png"]}')
        with pytest.raises(ValueError, match=r"per_image must be in 0 .. 2"):
            write_annotators(path, 2, per_image=3)
        with pytest.raises(DataError, match="no section 'test'"):
            write_annotators(path, 2, section="test")
        with pytest.raises(DataError, match="no such datalist"):
            write_annotators(tmp_path / "nothing.json", 2)
        assert path.read_text() == '{"training": ["a.png"]}'

    def test_are_verified(self, root: Path) -> None:
        items = les_av_items(root)
        drew = with_annotators(items, assign_annotators(len(items), 2))
        assert verify_datalist({"training": drew}, label_values=(0, 255), annotators=2) == 3 * len(items)
        test_items = les_av_items(root, section="test")  # nobody is listed there
        assert verify_datalist({"training": drew, "test": test_items}, label_values=(0, 255)) > 3 * len(items)
        drew[0]["annotators"] = [7]
        del drew[1]["annotators"]
        with pytest.raises(DataError) as caught:
            verify_datalist({"training": drew}, label_values=(0, 255), annotators=3)
        text = str(caught.value)
        assert "training[0]: annotators lists 7, but there are 3, numbered from 0" in text
        assert "training[1]: no 'annotators', which other items have; list who drew it" in text
        assert "annotator 2 drew no image" in text


class TestVerify:
    def test_good_data_pass_and_each_file_counts_once(self, root: Path) -> None:
        items = les_av_items(root)
        assert verify_datalist(items + items, label_values=(0, 255)) == 12

    def test_missing_mask_file(self, root: Path) -> None:
        entries = les_av_datalist(root)
        (root / "datalist.json").write_text(json.dumps(entries))
        (root / "masks" / "7_mask.gif").unlink()
        text = problems(root)
        assert text.startswith("1 problem in the data (4 items, 12 files):")
        assert f"{root}/masks/7_mask.gif: no such file; restore it or take it off the datalist" in text

    def test_mask_that_only_one_item_lacks(self, root: Path) -> None:
        (root / "masks" / "7_mask.gif").unlink()
        assert f"training[1] ({root}/images/7.png): no 'mask', which other items have" in problems(root)

    def test_different_sizes(self, root: Path) -> None:
        save(root / "vessel-segmentations" / "8.png", np.zeros((9, 11), np.uint8))
        expected = f"8.png: size 11x9, but its image {root}/images/8.png is 20x20; export both on the same grid"
        assert expected in problems(root)

    def test_unexpected_values(self, root: Path) -> None:
        label = np.zeros((16, 20), np.uint8)
        label[0, :3] = (1, 128, 255)
        save(root / "vessel-segmentations" / "3.png", label)
        assert "3.png: label holds the values {0, 1, 128, 255}, expected only {0, 255}; correct" in problems(root)

    def test_class_numbers_are_expected_unless_values_are_given(self, root: Path) -> None:
        with pytest.raises(DataError, match=r"holds the values \{0, 255\}, expected only \{0, 1, 2\}"):
            verify_datalist(les_av_items(root), num_classes=3)

    def test_label_in_colour(self, root: Path) -> None:
        save(root / "vessel-segmentations" / "3.png", np.zeros((16, 20, 3), np.uint8))
        assert "3.png: label of 3 channels, expected 1; save it in greyscale or with a palette" in problems(root)

    def test_image_of_another_kind(self, root: Path) -> None:
        save(root / "images" / "3.png", np.full((16, 20), 90, np.uint8))
        assert "3.png: 1 channel, but most images have 3; convert it" in problems(root)
        assert verify_datalist(les_av_items(root), label_values=(0, 255), same_channels=False) == 12

    def test_required_key(self, root: Path) -> None:
        (root / "masks" / "7_mask.gif").unlink()
        (root / "vessel-segmentations" / "8.png").unlink()
        text = problems(root, required_keys=("label", "mask"))
        assert text.startswith("2 problems in the data (4 items, 10 files):")
        remedy = "which every item must have; add the file or leave the image out"
        assert f"training[1] ({root}/images/7.png): no 'mask', {remedy}" in text
        assert f"training[2] ({root}/images/8.png): no 'label', {remedy}" in text

    @pytest.mark.parametrize(
        ("items", "text"),
        [
            ([{"image": 5}], r"items\[0\]: 'image' is 5; write a file name or a list of file names"),
            ([{"image": ["a.png", None]}], r"items\[0\]: 'image' is \['a.png', None\]; write a file name"),
            ([{"image": "a.png", "mask": {"x": 1}}], r"items\[0\]: 'mask' is \{'x': 1\}; write a file name"),
            (["a.png"], r"items\[0\] is 'a.png'; write an object with file names"),
            ("a.png", "section 'items' is 'a.png'; list its items"),
            ({"training": {"image": "a.png"}}, r"section 'training' is \{'image': 'a.png'\}; list its items"),
            ({"training": 7}, "section 'training' is 7; list its items"),
        ],
    )
    def test_no_datalist_at_all(self, items: Any, text: str) -> None:
        with pytest.raises(DataError, match=rf"^1 problem in the data .*\n  - {text}"):
            verify_datalist(items)

    def test_blank_mask(self, root: Path) -> None:
        save(root / "masks" / "3_mask.gif", np.zeros((16, 20), np.uint8))
        assert "3_mask.gif: mask is 0 everywhere" in problems(root)

    def test_blank_label_is_fine(self, root: Path) -> None:
        save(root / "vessel-segmentations" / "3.png", np.zeros((16, 20), np.uint8))
        assert verify_datalist(les_av_items(root), label_values=(0, 255)) == 12

    @pytest.mark.parametrize("name", ["images/3.png", "vessel-segmentations/3.png", "masks/3_mask.gif"])
    @pytest.mark.parametrize("keep", [0.0, 0.3, 0.97])
    def test_cut_short(self, root: Path, name: str, keep: float) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(keep * len(content))])
        assert f"{root}/{name}: {'damaged, cut short' if keep else '0 bytes long'}" in problems(root)

    def test_flipped_bit_fails_the_png_checksum(self, root: Path) -> None:
        content = bytearray((root / "images" / "3.png").read_bytes())
        content[-20] ^= 1  # in the checksum of the last data chunk
        (root / "images" / "3.png").write_bytes(content)
        assert "3.png: damaged, cut short" in problems(root)

    def test_text_instead_of_an_image(self, root: Path) -> None:
        (root / "images" / "3.png").write_text("<html>")
        assert "3.png: damaged, cut short or of unknown format (cannot identify image file" in problems(root)

    def test_unreadable_file(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Image, "open", refuse)
        assert "3.png: not readable (Permission denied); correct the permissions" in problems(root)

    def test_no_annotation(self, root: Path) -> None:
        (root / "vessel-segmentations" / "3.png").unlink()
        text = problems(root)
        assert f"training[0] ({root}/images/3.png): no annotation, 'label' is missing or empty; add one" in text
        assert verify_datalist(les_av_items(root), label_values=(0, 255), allow_missing_annotation=True) == 11

    def test_one_of_several_annotations_is_enough(self, root: Path) -> None:
        items = les_av_items(root)
        items[0]["label_2"] = items[0].pop("label")
        assert verify_datalist(items, label_keys=["label", "label_2"], label_values=(0, 255)) == 12

    def test_item_without_image(self, root: Path) -> None:
        with pytest.raises(DataError, match=r"items\[0\] \(no image\): key 'image' is missing or empty"):
            verify_datalist([{"label": str(root / "vessel-segmentations" / "3.png")}], label_values=(0, 255))

    def test_empty_folder_as_image(self, tmp_path: Path) -> None:
        (tmp_path / "series").mkdir()
        with pytest.raises(DataError, match="series: an empty folder, expected an image"):
            verify_datalist([{"image": str(tmp_path / "series")}], allow_missing_annotation=True)

    def test_empty_section(self, root: Path) -> None:
        with pytest.raises(DataError, match="section 'test' is empty"):
            verify_datalist({"training": les_av_items(root), "test": []}, label_values=(0, 255))

    def test_many_problems_are_counted_not_printed(self, tmp_path: Path) -> None:
        items = [{"image": str(tmp_path / f"{i}.png")} for i in range(MAX_LINES + 5)]
        with pytest.raises(DataError) as caught:
            verify_datalist(items, allow_missing_annotation=True)
        lines = str(caught.value).splitlines()
        assert lines[0].startswith("25 problems in the data (25 items, 25 files)")
        assert len(lines) == MAX_LINES + 2
        assert lines[-1] == "  ... and 5 more"


class TestLeaks:
    def sections(self, root: Path) -> dict[str, Any]:
        return {name: les_av_items(root, section=name) for name in ("training", "test")}

    def test_same_file(self, root: Path) -> None:
        sections = self.sections(root)
        sections["test"].append(sections["training"][1])
        with pytest.raises(DataError, match=r"7.png in 'test' is the same image as .*/7.png in 'training'; keep it"):
            verify_datalist(sections, label_values=(0, 255))

    def test_copy_under_another_name(self, root: Path) -> None:
        for folder, name in (("images", "{}.png"), ("vessel-segmentations", "{}.png"), ("masks", "{}_mask.gif")):
            (root / folder / name.format(100)).write_bytes((root / folder / name.format(3)).read_bytes())
        with pytest.raises(DataError, match=r"100.png in 'test' is the same image as .*/3.png in 'training'"):
            verify_datalist(self.sections(root), label_values=(0, 255))

    def test_repeated_within_a_section_is_fine(self, root: Path) -> None:
        items = les_av_items(root)
        assert verify_datalist(
            {"training": items * 2, "test": les_av_items(root, section="test")}, label_values=(0, 255)
        )

    def test_same_length_other_content_is_fine(self, tmp_path: Path) -> None:
        for name, value in (("a", 1), ("b", 2)):
            np.save(tmp_path / f"{name}.npy", np.full((4, 4), value))
        sections = {name: [{"image": str(tmp_path / f"{name}.npy")}] for name in ("a", "b")}
        assert verify_datalist(sections, allow_missing_annotation=True) == 2


class TestVolumes:
    def volume(self, path: Path, array: np.ndarray) -> str:
        nib.save(nib.Nifti1Image(array, np.diag([0.5, 0.5, 3.0, 1.0])), path)
        return str(path)

    def test_several_modalities_and_a_label(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        images = [self.volume(tmp_path / f"{m}.nii.gz", rng.random((6, 5, 4))) for m in ("t1", "t2")]
        label = self.volume(tmp_path / "l.nii.gz", rng.integers(0, 3, (6, 5, 4)).astype(np.float32))
        assert verify_datalist([{"image": images, "label": label}], num_classes=3) == 3
        with pytest.raises(DataError, match=r"label holds the values \{0, 1, 2\}, expected only \{0, 1\}"):
            verify_datalist([{"image": images, "label": label}])

    def test_channels_last_image(self, tmp_path: Path) -> None:
        image = self.volume(tmp_path / "i.nii", np.zeros((6, 5, 4, 2)))
        label = self.volume(tmp_path / "l.nii", np.zeros((6, 5, 4)))
        assert verify_datalist([{"image": image, "label": label}]) == 2

    def test_modalities_of_different_size(self, tmp_path: Path) -> None:
        images = [self.volume(tmp_path / f"{n}.nii", np.zeros((6, 5, n))) for n in (4, 3)]
        with pytest.raises(DataError, match=r"3.nii: size 6x5x3, but its image .*4.nii is 6x5x4"):
            verify_datalist([{"image": images}], allow_missing_annotation=True)

    @pytest.mark.parametrize("suffix", [".nii.gz", ".npy"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, tmp_path: Path, suffix: str, value: float) -> None:
        array = np.zeros((6, 5, 4))
        array[0, 0, :2] = value
        path = tmp_path / f"i{suffix}"
        np.save(path, array) if suffix == ".npy" else self.volume(path, array)
        with pytest.raises(DataError, match=f"i{suffix}: 2 samples NaN or infinite; replace them by numbers"):
            verify_datalist([{"image": str(path)}], allow_missing_annotation=True)

    def test_label_with_nan(self, tmp_path: Path) -> None:
        image, label = np.zeros((4, 4)), np.array([[0, np.nan]] * 2)
        np.save(tmp_path / "i.npy", image)
        np.save(tmp_path / "l.npy", np.tile(label, (2, 2)))
        with pytest.raises(DataError, match=r"label holds the values \{0, nan\}, expected only \{0, 1\}"):
            verify_datalist([{"image": str(tmp_path / "i.npy"), "label": str(tmp_path / "l.npy")}])

    @pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.npy"])
    def test_cut_short(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        array = np.random.default_rng(0).random((16, 16, 8))
        if name == "v.npy":
            np.save(path, array)
        else:
            self.volume(path, array)
        item = [{"image": str(path)}]
        assert verify_datalist(item, allow_missing_annotation=True) == 1
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=f"{name}: damaged, cut short or of unknown format"):
            verify_datalist(item, allow_missing_annotation=True)


class TestProvenance:
    def test_folder(self, root: Path) -> None:
        for name in ("provenance.json", "LES-AV.zip.part", ".hidden"):
            (root / name).write_text("x")
        record = provenance(root)
        assert len(record["files"]) == 15
        assert record["total_bytes"] == sum(entry["size"] for entry in record["files"].values())
        assert record["tool"].startswith("medcoarse ")
        assert record["created"].endswith("+00:00")

    def test_some_files_and_another_checksum_after_a_change(self, root: Path) -> None:
        files = [root / "images" / "3.png", root / "masks" / "3_mask.gif"]
        before = provenance(files)["files"]
        assert list(before) == ["images/3.png", "masks/3_mask.gif"]
        files[0].write_bytes(b"")
        after = provenance(files)["files"]
        assert after["images/3.png"] != before["images/3.png"]
        assert after["masks/3_mask.gif"] == before["masks/3_mask.gif"]

    def test_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no files to record"):
            provenance(tmp_path)


class TestPrepared:
    def make(self, root: Path, label: int = 255) -> Path:
        sections = {}
        for value, name in enumerate(("training", "validation", "test")):
            save(root / f"{name}.png", np.full((4, 4), value, np.uint8))
            save(root / f"{name}_label.png", np.full((4, 4), label, np.uint8))
            sections[name] = [{"image": f"{name}.png", "label": f"{name}_label.png"}]
        (root / "datalist.json").write_text(json.dumps(sections))
        return root

    def verify(self, root: Path, **rules: Any) -> int:
        return verify_prepared(root, "data_prep/x.py", label_values=(0, 255), required_keys=("label",), **rules)

    def test_all_sections_are_decoded(self, tmp_path: Path) -> None:
        assert self.verify(self.make(tmp_path)) == 6
        for name in ("training", "validation", "test"):
            (tmp_path / f"{name}.png").rename(tmp_path / "away.png")
            with pytest.raises(DataError, match=f"{name}.png: no such file"):
                self.verify(tmp_path)
            (tmp_path / "away.png").rename(tmp_path / f"{name}.png")
        with pytest.raises(DataError, match=r"holds the values \{7\}, expected only \{0, 255\}"):
            self.verify(self.make(tmp_path, label=7))

    def test_too_few_to_train_on(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="'training' lists 1 items, 2 are wanted"):
            self.verify(self.make(tmp_path), num_training=2)

    def test_another_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"datalist.json: no such file; run `python data_prep/x.py` and pass"):
            self.verify(tmp_path)


class TestLesAv:
    def test_committed_split_follows_its_rule(self) -> None:
        content = json.loads(COMMITTED.read_text())
        ids = {s: [int(Path(e["image"]).stem) for e in content[s]] for s in ("training", "test")}
        assert ids["test"] == OFFICIAL_IDS[4::5] == [37, 111, 279, 486]
        assert ids["training"] == [i for i in OFFICIAL_IDS if i not in ids["test"]]
        assert (content["numTraining"], content["numTest"]) == (18, 4)
        assert 34 in ids["training"]
        for entry in content["training"] + content["test"]:
            i = Path(entry["image"]).stem
            names = {
                "image": f"images/{i}.png",
                "label": f"vessel-segmentations/{i}.png",
                "mask": f"masks/{i}_mask.gif",
            }
            assert entry == names

    def test_committed_split_is_what_the_rule_makes_of_the_official_files(self, tmp_path: Path) -> None:
        made = les_av_datalist(make_les_av(tmp_path / "LES-AV", OFFICIAL_IDS))
        committed = json.loads(COMMITTED.read_text())
        assert made == {key: committed[key] for key in made}

    def test_split_in_the_folder_comes_first(self, root: Path) -> None:
        (root / "datalist.json").write_text('{"training": ["images/8.png"]}')
        assert les_av_items(root, COMMITTED) == [{"image": str(root / "images" / "8.png")}]

    @pytest.mark.parametrize("lost", [[], [12], OFFICIAL_IDS[:10]], ids=["none", "one", "ten"])
    def test_committed_split_where_most_of_its_images_are(
        self, tmp_path: Path, lost: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        root = make_les_av(tmp_path / "LES-AV", [i for i in OFFICIAL_IDS if i not in lost])
        assert [Path(i["image"]).stem for i in les_av_items(root, COMMITTED, "test")] == ["37", "111", "279", "486"]
        assert not caplog.text
        if lost:
            with pytest.raises(DataError, match=rf"{root}/images/12.png: no such file"):
                verify_les_av(root, COMMITTED)

    @pytest.mark.parametrize("ids", [[3, 7, 8, 12, 20], OFFICIAL_IDS[:11]], ids=["one in common", "half of them"])
    def test_own_split_where_most_images_are_others(
        self, tmp_path: Path, ids: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        root = make_les_av(tmp_path / "own", ids)
        found = [Path(i["image"]).stem for i in les_av_items(root, COMMITTED, "test")]
        assert found == [str(i) for i in ids[4::5]]
        missing = [i for i in OFFICIAL_IDS if i not in ids]
        assert f"{len(missing)} of its 22 images are not in {root}" in caplog.text
        assert f"first images/{'15' if len(ids) == 5 else '224'}.png): every fifth image" in caplog.text
        assert verify_les_av(root, COMMITTED) == 3 * len(ids)

    def test_own_photographs_in_the_same_layout(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        (test,) = les_av_items(root, COMMITTED, "test")
        assert test["image"] == str(root / "images" / "100.png")
        assert test["mask"] == str(root / "masks" / "100_mask.gif")
        assert "22 of its 22 images are not in" in caplog.text
        assert verify_les_av(root, COMMITTED) == 15

    def test_split_that_names_no_image(self, root: Path) -> None:
        (root.parent / "split.json").write_text('{"training": [{"image": 5}]}')
        assert len(les_av_items(root, root.parent / "split.json")) == 4

    def test_every_item_needs_a_mask(self, root: Path) -> None:
        for mask in (root / "masks").iterdir():
            mask.unlink()
        with pytest.raises(DataError) as caught:
            verify_les_av(root)
        lines = str(caught.value).splitlines()
        assert lines[0].startswith("5 problems in the data (5 items, 10 files)")
        remedy = "which every item must have; add the file or leave the image out"
        assert lines[1] == f"  - training[0] ({root}/images/3.png): no 'mask', {remedy}"
        assert lines[5] == f"  - test[0] ({root}/images/100.png): no 'mask', {remedy}"

    def test_photographs_in_grey_and_with_transparency(self, root: Path) -> None:
        save(root / "images" / "3.png", np.full((16, 20), 90, np.uint8))
        save(root / "images" / "7.png", np.full((19, 20, 4), 90, np.uint8))
        assert verify_les_av(root) == 15

    def test_nested_folder(self, root: Path) -> None:
        (root.parent / "__MACOSX").mkdir()
        assert les_av_root(root.parent) == les_av_root(root) == root
        assert verify_les_av(root.parent) == 15

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no such folder; run `python data_prep/les_av.py`"):
            les_av_root(tmp_path / "nowhere")

    def test_other_layout(self, tmp_path: Path) -> None:
        (tmp_path / "pictures").mkdir()
        with pytest.raises(DataError, match=r"expected images/ and vessel-segmentations/, got \['pictures'\]; run"):
            les_av_root(tmp_path)

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="got an empty folder; run"):
            les_av_root(tmp_path)
        (tmp_path / "images").mkdir()
        with pytest.raises(DataError, match=r"images: holds no image \(.png"):
            les_av_items(tmp_path)

    @pytest.mark.skipif(not REAL.is_dir(), reason="set MEDCOARSE_DATA to a folder that holds LES-AV/")
    def test_real_data(self) -> None:
        start = time.process_time()  # of all threads; the clock on the wall depends on the neighbours
        assert verify_les_av(REAL, COMMITTED) == 66
        assert time.process_time() - start < 6
        assert len(les_av_items(REAL, COMMITTED)) == 18
