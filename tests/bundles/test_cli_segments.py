"""Files that name what they show: a segment is what its name says, whatever its number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest

from medcoarse.cli.facts import load_image
from medcoarse.cli.label_maps import Shown, common_grid, name_classes
from medcoarse.cli.main import CommandError, main
from medcoarse.datalist import DataError
from medcoarse.readers.drawing import Grid
from medcoarse.readers.formats import read_drawing
from medcoarse.readers.itksnap import read_label_descriptions
from medcoarse.transforms.drawn import LoadCoarseAnnotationd
from medcoarse.writers.formats import write_segmentation
from medcoarse.writers.itksnap import write_label_descriptions
from medcoarse.writers.segmentation import make_segmentation
from tests.bundles.commands import refused, text
from tests.cases_folders import BACKGROUND, volume, write_pictures, write_volumes
from tests.drawings import (
    AFFINE,
    SHAPE,
    label_map,
    seg_header,
    segments,
    write_dicom_seg,
    write_nifti,
    write_seg_nrrd,
    write_series,
)

VESSEL, EDGE = segments().values()


def slicer(path: Path, numbers: dict[str, int], layered: bool = False, **masks: np.ndarray) -> Path:
    """A segmentation with these numbers: "vessel" and "edge" as they are, unless masks say otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = {name: (segments() | masks)[name.lower()] for name in numbers}
    if layered:
        header = seg_header({name: (layer, number) for layer, (name, number) in enumerate(numbers.items())}, True)
        values = np.stack([numbers[name] * mask.astype(np.uint8) for name, mask in drawn.items()])
    else:
        header = seg_header({name: (0, number) for name, number in numbers.items()}, False)
        values = sum(numbers[name] * mask.astype(np.uint8) for name, mask in drawn.items())
    nrrd.write(str(path), values, header)
    return path


def labels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def table(folder: Path, *more: Any) -> dict[str, Any]:
    assert main(text("evaluate", folder / "said", folder / "true", "--output_dir", folder / "scores", *more)) == 0
    return json.loads((folder / "scores" / "scores.json").read_text())


def fused(folder: Path, *more: Any, people: tuple[str, ...] = ("ada", "ben", "cleo")) -> dict[str, Any]:
    words = text("fuse", *(folder / who for who in people), "--output_dir", folder / "out", "--overwrite", *more)
    assert main(words) == 0
    return json.loads((folder / "out" / "fusion.json").read_text())


ONE, OTHER = {"vessel": 1, "edge": 2}, {"edge": 1, "vessel": 2}


# --- numbers and names ---------------------------------------------------------------------------------------------


def test_segmentations_that_differ_in_their_numbers_alone_are_the_same(tmp_path: Path, capfd: Any) -> None:
    slicer(tmp_path / "said" / "a.seg.nrrd", ONE)
    slicer(tmp_path / "true" / "a.seg.nrrd", OTHER)
    row = table(tmp_path)["images"][0]
    assert (row["dice_edge"], row["dice_vessel"], row["mean_dice"]) == (1, 1, 1)
    assert "segments are matched by name, for their numbers do not mean the same in all files: 1 edge, 2 vessel" in (
        capfd.readouterr().out
    )


def test_numbers_that_mean_the_same_in_all_files_are_kept_and_named(tmp_path: Path, capfd: Any) -> None:
    for place in ("said", "true", "ada", "ben"):
        slicer(tmp_path / place / "a.seg.nrrd", {"Vessel": 1, "edge": 3})
    slicer(tmp_path / "said" / "b.seg.nrrd", {"vessel": 1}, vessel=EDGE)
    slicer(tmp_path / "true" / "b.seg.nrrd", {"vessel": 1, "edge": 2}, edge=0 * EDGE)  # an empty segment has no number
    row = table(tmp_path)["image"]
    assert [key for key in row if key.startswith("dice_")] == [
        "dice_background",
        "dice_Vessel",
        "dice_class 2",
        "dice_edge",
    ]
    assert (row["dice_Vessel"], row["dice_class 2"], row["dice_edge"]) == (0.5, None, 1)
    assert "by name" not in capfd.readouterr().out
    assert fused(tmp_path, people=("ada", "ben"))["class_names"] == ["background", "Vessel", "class 2", "edge"]
    np.testing.assert_array_equal(labels(tmp_path / "out" / "a.nii.gz"), VESSEL + 3 * EDGE)


@pytest.mark.parametrize("layered", [False, True])
def test_fusion_keeps_structures_together_whatever_their_numbers(tmp_path: Path, layered: bool, capfd: Any) -> None:
    for who, numbers in (("ada", ONE), ("ben", OTHER), ("cleo", {"vessel": 5, "edge": 255})):
        numbers = dict.fromkeys(numbers, 1) if layered and who == "ada" else numbers
        slicer(tmp_path / who / "a.seg.nrrd", numbers, layered)
    record = fused(tmp_path)
    assert record["class_names"] == ["background", "edge", "vessel"]
    np.testing.assert_array_equal(labels(tmp_path / "out" / "a.nii.gz"), EDGE + 2 * VESSEL)
    assert [row["accuracy"] for row in record["reliability"].values()] == [1, 1, 1]
    assert ": 1 edge, 2 vessel" in capfd.readouterr().out


def test_a_segment_of_number_255_is_a_segment(tmp_path: Path) -> None:
    """A drawing is simulated of it, too, as of any."""
    for place in ("said", "true", "masks"):
        slicer(tmp_path / place / "a.seg.nrrd", {"vessel": 255, "edge": 7})
    row = table(tmp_path)["images"][0]
    assert (row["dice_edge"], row["dice_vessel"]) == (1, 1)
    words = text("simulate", tmp_path / "masks", tmp_path / "drawn", "--profile", "dhe_good", "--annotators")
    assert main(words) == 0
    drawn = read_drawing(tmp_path / "drawn" / "dhe_good" / "a.nrrd").layers[0].values
    np.testing.assert_array_equal(drawn, EDGE + 2 * VESSEL)


def test_simulation_numbers_by_name_where_numbers_differ(tmp_path: Path, capfd: Any) -> None:
    for name, numbers in (("a", ONE), ("b", OTHER)):
        slicer(tmp_path / "masks" / f"{name}.seg.nrrd", numbers)
    words = text("simulate", tmp_path / "masks", tmp_path / "drawn", "--profile", "dhe_good", "--annotators")
    for order, more in ((["edge", "vessel"], []), (["vessel", "edge"], ["--class_names", "background", *ONE])):
        assert main([*words, "--overwrite", *more]) == 0
        assert (": 1 edge, 2 vessel" in capfd.readouterr().out) is not bool(more)
        for name in ("a", "b"):
            drawn = read_drawing(tmp_path / "drawn" / "dhe_good" / f"{name}.nrrd").layers[0].values
            expected = sum(number * segments()[name] for number, name in enumerate(order, 1))
            np.testing.assert_array_equal(drawn, expected)
        assert json.loads((tmp_path / "drawn" / "parameters.json").read_text())["class_names"] == ["background", *order]


def test_segments_of_dicom_are_matched_by_name(tmp_path: Path) -> None:
    slices = write_series(tmp_path / "series")
    (tmp_path / "said").mkdir()
    write_dicom_seg(tmp_path / "said" / "a.dcm", slices, dict(reversed(segments().items())))
    slicer(tmp_path / "true" / "a.seg.nrrd", ONE)
    row = table(tmp_path)["images"][0]
    assert (row["dice_edge"], row["dice_vessel"]) == (1, 1)


@pytest.mark.parametrize("command", ["evaluate", "fuse", "simulate"])
def test_a_label_map_beside_segments_whose_numbers_contradict_each_other(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the label map 1 is the vessel, which class names tell."""
    slicer(tmp_path / "ada" / "a.seg.nrrd", ONE)
    slicer(tmp_path / "ada" / "b.seg.nrrd", OTHER)
    (tmp_path / "ben").mkdir()
    for name in ("a", "b"):
        write_nifti(tmp_path / "ben" / f"{name}.nii.gz")
    shutil.copytree(tmp_path / "ada", tmp_path / "all")
    write_nifti(tmp_path / "all" / "c.nii.gz")
    words = {
        "evaluate": text("evaluate", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out"),
        "fuse": text("fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out"),
        "simulate": text("simulate", tmp_path / "all", tmp_path / "out", "--profile", "dhe_good", "--annotators"),
    }[command]
    said = refused(capfd, *words)
    assert ".nii.gz: is a label map, and the segments beside it have no numbers that mean the same in all files" in said
    assert "pass --class_names background ..." in said
    assert not (tmp_path / "out").exists()
    assert "holds class 2, --class_names has 2" in refused(capfd, *words, "--class_names", "background", "edge")
    said = refused(capfd, *words, "--class_names", "background", "vessel", "lesion")
    assert "segment 'edge' is none of --class_names background vessel lesion" in said
    said = refused(capfd, *words, "--class_names", "background", "vessel", "vessel")
    assert "must be different names" in said
    assert not (tmp_path / "out").exists()
    assert main([*words, "--class_names", "background", "vessel", "edge"]) == 0
    if command == "evaluate":
        assert json.loads((tmp_path / "out" / "scores.json").read_text())["image"]["mean_dice"] == 1
        return
    files = [tmp_path / "out" / f"{name}.nii.gz" for name in ("a", "b")]
    if command == "simulate":
        files = [tmp_path / "out" / "dhe_good" / name for name in ("a.nrrd", "b.nrrd", "c.nii.gz")]
    for file in files:
        np.testing.assert_array_equal(read_drawing(file).layers[0].values, label_map())


def test_a_label_map_beside_segments_has_their_numbers(tmp_path: Path, capfd: Any) -> None:
    slicer(tmp_path / "said" / "a.seg.nrrd", ONE)
    (tmp_path / "true").mkdir()
    write_nifti(tmp_path / "true" / "a.nii.gz")
    assert table(tmp_path)["image"]["dice_edge"] == 1
    said = capfd.readouterr().out
    assert (
        "label maps are read by the numbers of the segments beside them: 1 vessel, 2 edge; pass --class_names" in said
    )
    write_nifti(tmp_path / "true" / "a.nii.gz", label_map() + 1)
    words = text("evaluate", tmp_path / "said", tmp_path / "true", "--class_names", "background", "vessel", "edge")
    assert "a.nii.gz: holds class 3, --class_names has 3 names; name all" in refused(capfd, *words)


def test_a_label_map_is_read_by_the_names_that_were_written_beside_it(tmp_path: Path, capfd: Any) -> None:
    """`medcoarse train` numbers names in their order, 3D Slicer as they were made."""
    slicer(tmp_path / "true" / "a.seg.nrrd", ONE)
    (tmp_path / "said").mkdir()
    write_nifti(tmp_path / "said" / "a.nii.gz", np.choose(label_map(), [0, 2, 1]).astype(np.uint8))
    assert table(tmp_path)["images"][0]["dice_vessel"] == 0
    assert "read by the numbers of the segments beside them" in capfd.readouterr().out
    write_label_descriptions(tmp_path / "said" / "labels.txt", ["background", "edge", "vessel"])
    row = table(tmp_path)["images"][0]
    assert (row["dice_edge"], row["dice_vessel"]) == (1, 1)
    write_label_descriptions(tmp_path / "said" / "labels.txt", ["background", "edge"])
    row = table(tmp_path)["images"][0]  # the network knew one class, somebody else calls its second value a vessel
    assert (row["dice_edge"], row["dice_class 2"], row["dice_vessel"]) == (1, None, 0)
    capfd.readouterr()
    (tmp_path / "said" / "labels.txt").write_text("1 red\n")
    assert table(tmp_path)["images"][0]["dice_vessel"] == 0
    assert "labels.txt: '1 red' is no label description" in capfd.readouterr().out
    assert table(tmp_path, "--class_names", "background", "edge", "vessel")["images"][0]["dice_vessel"] == 1


def test_segments_need_no_names_beside_them(tmp_path: Path) -> None:
    """Nor does a file of other names change theirs."""
    slicer(tmp_path / "true" / "a.seg.nrrd", ONE)
    slicer(tmp_path / "said" / "a.seg.nrrd", OTHER)
    write_label_descriptions(tmp_path / "said" / "labels.txt", ["background", "bone"])
    row = table(tmp_path)["images"][0]
    assert (row["dice_edge"], row["dice_vessel"]) == (1, 1)
    assert "dice_bone" not in row


def test_label_descriptions_are_those_of_itk_snap(tmp_path: Path) -> None:
    """Columns: value, three of colour, opacity, two switches, the name."""
    names = ["background", "left kidney", 'a "strange" one']
    write_label_descriptions(tmp_path / "labels.txt", names)
    rows = [line for line in (tmp_path / "labels.txt").read_text().splitlines() if not line.startswith("#")]
    assert [len(row.split('"')[0].split()) for row in rows] == [7] * 3
    assert read_label_descriptions(tmp_path / "labels.txt") == {0: names[0], 1: names[1], 2: "a 'strange' one"}
    exported = (
        '    0     0    0    0        0  0  0    "Clear Label"\n    5   255  0.5    0     0.70  1  1    "Liver"\n'
    )
    (tmp_path / "labels.txt").write_text("# ITK-SnAP\n\n" + exported)
    assert read_label_descriptions(tmp_path / "labels.txt") == {0: "Clear Label", 5: "Liver"}
    (tmp_path / "labels.txt").write_text(exported + exported.replace("Liver", "Lung"))
    with pytest.raises(DataError, match="value 5 is called 'Liver' and 'Lung'"):
        read_label_descriptions(tmp_path / "labels.txt")


def test_names_that_are_spelt_differently() -> None:
    """One class but for capitals and blanks, unless a file shows both."""

    def shown(*names: str) -> Shown:
        return Shown(True, named=frozenset(enumerate(names, 1)))

    def classes(*files: Shown) -> list[str]:
        return name_classes({Path(str(number)): file for number, file in enumerate(files)}).names

    assert classes(shown("b", "A  b"), shown("a B", "B")) == ["background", "A b", "B"]
    assert classes(shown("t1", "T1"), shown("T1")) == ["background", "T1", "t1"]
    assert classes(shown("vessel", "Background")) == ["background", "vessel"], "it is class 0, and so are no numbers"
    assert classes(shown("class 2"), Shown(False, frozenset({0}))) == ["background", "class 2"]
    assert classes(shown("a"), shown("b")) == ["background", "a", "b"], "each is number 1"
    assert classes(shown("a"), shown("b", "a")) == ["background", "a", "b"], "a is 1 and 2"
    assert classes(Shown(True)) == ["background", "class 1"]
    with pytest.raises(CommandError, match="1: is a label map, and the segments beside it have no numbers"):
        classes(shown("class 2"), Shown(False, frozenset({0, 2})))  # class 2 would be two
    with pytest.raises(CommandError, match="1: segment 'T1 ' may be any of those that differ in capitals or blanks"):
        classes(shown("t1", "T1"), shown("T1 "))


# --- boxes ---------------------------------------------------------------------------------------------------------


def write_box(path: Path, masks: dict[str, np.ndarray], steps: int = 0) -> None:
    """As 3D Slicer does: cut to what is drawn."""
    values = sum(number * mask.astype(np.uint8) for number, mask in enumerate(masks.values(), 1))
    inside = np.argwhere(values)
    low, high = inside.min(0), inside.max(0)
    shift = np.eye(4)
    shift[:3, 3] = low + steps
    box = values[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_segmentation(path, make_segmentation(box, AFFINE @ shift, ["nothing", *masks]))


def test_segments_in_boxes_are_fused_on_all_that_anybody_shows(tmp_path: Path) -> None:
    vessel = segments()["vessel"]
    more = vessel.copy()
    more[0, 0, 0] = True
    for who, mask in (("ada", vessel), ("ben", more), ("cleo", more)):
        write_box(tmp_path / who / "a.seg.nrrd", {"vessel": mask})
    assert (
        main(text("fuse", *(tmp_path / who for who in ("ada", "ben", "cleo")), "--output_dir", tmp_path / "out")) == 0
    )
    fused = read_drawing(tmp_path / "out" / "a.nii.gz")
    assert int((fused.layers[0].values == 1).sum()) == int(vessel.sum()) + 1


def test_segments_in_boxes_are_scored_on_all_that_both_show(tmp_path: Path) -> None:
    """What is predicted beyond the box of the mask is wrong all the same."""
    true = segments()
    said = {name: mask.copy() for name, mask in true.items()}
    said["vessel"][0, 0, 0] = said["edge"][6, 5, 4] = True
    write_box(tmp_path / "said" / "a.seg.nrrd", said)
    write_box(tmp_path / "true" / "a.seg.nrrd", true)
    write_seg_nrrd(tmp_path / "true" / "b.seg.nrrd", true, layered=True)  # in layers
    write_box(tmp_path / "said" / "b.seg.nrrd", said)
    words = text("evaluate", tmp_path / "said", tmp_path / "true", "--class_names", "background", "edge", "Vessel")
    assert main(words) == 0
    for row in json.loads((tmp_path / "said" / "scores.json").read_text())["images"]:
        for name, score in (("edge", "dice_edge"), ("vessel", "dice_Vessel")):
            number = int(true[name].sum())
            assert row[score] == pytest.approx(2 * number / (2 * number + 1))


def test_segments_that_overlap_are_not_scored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    true = segments()
    write_box(tmp_path / "said" / "a.seg.nrrd", true)
    (tmp_path / "true").mkdir()
    both = true | {"edge": true["edge"] | true["vessel"]}
    write_seg_nrrd(tmp_path / "true" / "a.seg.nrrd", both, layered=True)
    words = ("evaluate", tmp_path / "said", tmp_path / "true")
    assert "its segments overlap" in refused(capfd, *words)
    assert "its segments overlap" in refused(capfd, *words, "--class_names", "background", "edge", "vessel")


def test_segments_in_one_another_are_scored_by_the_later_class(tmp_path: Path, capfd: Any) -> None:
    """The organ holds the lesion, in the masks; the segmentation has one class at a voxel."""
    lesion, organ = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    organ[1:5, 1:5, 1:3], lesion[2:4, 2:3, 1:3] = True, True
    for folder, masks, layered in (
        ("said", {"organ": organ & ~lesion, "lesion": lesion}, False),
        ("true", {"organ": organ, "lesion": lesion}, True),
    ):
        (tmp_path / folder).mkdir()
        write_seg_nrrd(tmp_path / folder / "a.seg.nrrd", masks, layered=layered)
    words = ("evaluate", tmp_path / "said", tmp_path / "true", "--class_names", "background", "organ", "lesion")
    assert "its segments overlap" in refused(capfd, *words)
    assert "which of lesion, organ lies in which?" in refused(capfd, *words[:3], "--nested")
    assert main(text(*words, "--nested")) == 0
    scores = json.loads((tmp_path / "said" / "scores.json").read_text())
    assert [scores["images"][0][f"dice_{name}"] for name in ("organ", "lesion")] == [1, 1]


def nested_volumes(folder: Path, also: str = "") -> tuple[np.ndarray, np.ndarray]:
    """A lesion in an organ in the body, all three drawn as segments of 3D Slicer that overlap."""
    organ = volume(0)[1] > 0
    lesion, body = np.zeros_like(organ), np.ones_like(organ)
    lesion[10:14, 10:12, 3:5] = True
    assert organ[lesion].all()
    header = seg_header({name: (n, 1) for n, name in enumerate(("lesion", "body", "organ"))}, True)
    header["space directions"] = np.vstack([np.full(3, np.nan), np.diag([-1.0, -1.0, 1.0])])
    header["space origin"] = np.zeros(3)
    for index in range(3):
        for name in ("images", "drawings", also or "drawings"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume(index)[0], np.eye(4)), folder / "images" / f"case{index}.nii.gz")
        for name in {"drawings", also or "drawings"}:
            values = np.stack([lesion, body, organ]).astype(np.uint8)
            nrrd.write(str(folder / name / f"case{index}.seg.nrrd"), values, header)
    return organ, lesion


def counts_of(bundle: Path, image: Path, drawing: Path) -> list[int]:
    """Voxels that training by a plan learns from, of each class."""
    train = json.loads((bundle / "configs" / "train.json").read_text())
    read = LoadCoarseAnnotationd("drawing", train["mapping"], 3, contradictions=train["contradictions"])
    found = read({"image": load_image(image), "drawing": drawing})["positive"]
    return [(found == k).sum().item() for k in range(3)]


def test_drawings_in_one_another_are_learned_from_by_the_later_class(tmp_path: Path, capfd: Any) -> None:
    organ, _ = nested_volumes(tmp_path)
    words: list[Any] = ["train", tmp_path / "images", tmp_path / "drawings", "--background", "body", "--plan_only"]
    names = ["--class_names", "organ", "lesion"]
    said = refused(capfd, *words, *names, "--output_dir", tmp_path / "flat")
    assert "organ: is drawn nowhere" in said
    assert "TWO THINGS ARE SAID OF A VOXEL in case0.seg.nrrd, case1.seg.nrrd" in said
    assert "pass --nested" in said
    words += ["--nested", "--output_dir"]
    assert "which of lesion, organ lies in which?" in refused(capfd, *words, tmp_path / "unnamed")
    assert main(text(*words, tmp_path / "nested", *names)) == 0
    said = capfd.readouterr().out
    assert "TWO THINGS" not in said
    assert "later ones cover earlier ones): background, organ, lesion" in said
    one = tmp_path / "images" / "case0.nii.gz", tmp_path / "drawings" / "case0.seg.nrrd"
    expected = [organ.size - organ.sum(), organ.sum() - 16, 16]
    assert counts_of(tmp_path / "nested", *one) == expected
    mapping = json.dumps({"lesion": [2, "positive"], "organ": [1, "positive"], "body": [0, "positive"], "0": None})
    words[words.index("--background") : words.index("--background") + 2] = ["--mapping", mapping]
    assert main(text(*words, tmp_path / "mapped", *names)) == 0
    assert counts_of(tmp_path / "mapped", *one) == expected, "by the classes, in whatever order they are mapped"


def test_masks_in_one_another_are_learned_from_by_the_later_class(tmp_path: Path, capfd: Any) -> None:
    nested_volumes(tmp_path, also="masks")
    words: list[Any] = ["train", tmp_path / "images", tmp_path / "drawings", "--background", "body"]
    words += ["--class_names", "organ", "lesion", "--labels", tmp_path / "masks", "--learn_labels", "--epochs", 1]
    for path in (tmp_path / "masks").iterdir():  # what is not in the body is background in a mask
        values, header = nrrd.read(str(path))
        values[1] = 0
        nrrd.write(str(path), values, header)
    assert "its segments overlap" in refused(capfd, *words, "--output_dir", tmp_path / "flat")
    assert main(text(*words, "--nested", "--output_dir", tmp_path / "run")) == 0
    assert (tmp_path / "run" / "models" / "model.pt").is_file()


def test_annotations_without_a_class_are_no_class_of_their_own(tmp_path: Path, capfd: Any) -> None:
    write_pictures(tmp_path)
    for path in (tmp_path / "drawings").iterdir():
        path.unlink()
    square = [[[5, 5], [15, 5], [15, 15], [5, 15], [5, 5]]]
    for index in range(3):
        features = [
            {"geometry": {"type": "Polygon", "coordinates": (np.array(square) + shift).tolist()}, "properties": own}
            for shift, own in ((0, {}), (12, {"name": "vessel"}), (16, {"name": "background"}))
        ]
        (tmp_path / "drawings" / f"p{index}.geojson").write_text(json.dumps(features))
    words = ["train", tmp_path / "images", tmp_path / "drawings", "--plan_only", "--output_dir", tmp_path / "run"]
    assert "neither a class nor a name ('unclassified' here); give them a class in QuPath" in refused(capfd, *words)
    assert main(text(*words, "--class_names", "vessel", "unclassified")) == 0


def test_segments_in_boxes_far_apart_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of two images, it seems; a thousand times as much memory as the files need would be filled."""

    def box(size: int, steps: int) -> Grid:
        affine = np.eye(4)
        affine[:3, 3] = steps
        return Grid((size,) * 3, affine)

    def united(size: int, steps: int) -> tuple[int, ...]:
        return common_grid({Path("a"): box(size, 0), Path("b"): box(size, steps)}).shape

    assert united(3, 500) == (503,) * 3, "as large as one image may be, and a lesion small"
    assert united(200, 600) == (800,) * 3
    for size, steps in ((3, 600), (3, -600), (400, 1000)):
        with pytest.raises(CommandError, match=r"a, b: .* so far apart that they span .*; do they belong to one image"):
            united(size, steps)
    write_box(tmp_path / "ada" / "a.seg.nrrd", segments())
    write_box(tmp_path / "ben" / "a.seg.nrrd", segments(), 900)
    for words in (
        ("evaluate", tmp_path / "ada", tmp_path / "ben"),
        ("fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out"),
    ):
        assert "do they belong to one image? if so, save one of them as a label map" in refused(capfd, *words)


def test_scores_that_depend_on_how_files_are_cut_are_named(tmp_path: Path, capfd: Any) -> None:
    write_box(tmp_path / "said" / "a.seg.nrrd", segments())
    write_box(tmp_path / "true" / "a.seg.nrrd", segments())
    (tmp_path / "true" / "b.nii.gz").write_bytes(write_nifti(tmp_path / "b.nii.gz").read_bytes())
    write_box(tmp_path / "said" / "b.seg.nrrd", segments())
    table(tmp_path)
    assert "1 of 2 pairs are segments in both files, which may be cut to boxes: specificity, " in capfd.readouterr().out
    for name in ("said", "true"):
        (tmp_path / name / "a.seg.nrrd").unlink()
    table(tmp_path)
    assert "cut to boxes" not in capfd.readouterr().out


# --- strokes -------------------------------------------------------------------------------------------------------


def stroke(*box: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[box] = True
    return mask


STROKES = {
    "ada": {"vessel": stroke(slice(1, 3), 2, 1), "not vessel": stroke(5, slice(0, 5), 1)},
    "ben": {"vessel": stroke(slice(2, 4), 2, 1), "not vessel": stroke(6, slice(0, 5), 3)},
}


def joined() -> np.ndarray:
    """What both drew; nobody contradicts the other."""
    found = np.full(SHAPE, 255, np.uint8)
    for drawn in STROKES.values():
        found[drawn["not vessel"]] = 0
        found[drawn["vessel"]] = 1
    return found


@pytest.mark.parametrize("ground", ["not vessel", "background"])
@pytest.mark.parametrize("boxed", [False, True])
def test_fusion_of_strokes_with_names(ground: str, boxed: bool, tmp_path: Path, capfd: Any) -> None:
    for who, drawn in STROKES.items():
        masks = {name.replace("not vessel", ground): mask for name, mask in drawn.items()}
        (tmp_path / who).mkdir()
        (write_box if boxed else write_seg_nrrd)(tmp_path / who / "a.seg.nrrd", masks)
    words = text("fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out")
    said = refused(capfd, *words)
    assert f"a.seg.nrrd: has a segment {ground!r} and voxels in no segment; are these strokes" in said
    assert "pass --mapping slicer; --mapping dense if" in said
    assert not (tmp_path / "out").exists()
    record = fused(tmp_path, "--mapping", "slicer", people=("ada", "ben"))
    assert record["class_names"] == ["background", "vessel"]
    found = labels(tmp_path / "out" / "a.nii.gz")
    if not boxed:
        np.testing.assert_array_equal(found, joined())
    assert [(found == value).sum() for value in (0, 1)] == [(joined() == value).sum() for value in (0, 1)]
    names = fused(tmp_path, "--mapping", "dense", people=("ada", "ben"))["class_names"]
    assert names == ["background", "vessel", *(["not vessel"] if ground == "not vessel" else [])]


def test_fusion_of_strokes_of_itk_snap(tmp_path: Path, capfd: Any) -> None:
    for who, drawn in STROKES.items():
        (tmp_path / who).mkdir()
        write_nifti(tmp_path / who / "a.nii.gz", drawn["vessel"] + 3 * drawn["not vessel"].astype(np.uint8))
    fused(tmp_path, people=("ada", "ben"))
    said = capfd.readouterr().out
    assert "WARNING: little is left of class 3 (0%)" in said
    assert "pass --mapping, such as itksnap with --background VALUE" in said
    record = fused(tmp_path, "--mapping", "itksnap", "--background", "3", people=("ada", "ben"))
    assert "WARNING" not in capfd.readouterr().out
    np.testing.assert_array_equal(labels(tmp_path / "out" / "a.nii.gz"), joined())
    assert [row["accuracy"] for row in record["reliability"].values()] == [1, 1]
    words = ("fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "other")
    assert "Pass --background VALUE" in refused(capfd, *words, "--mapping", "itksnap")
    assert "--background is of strokes: pass --mapping" in refused(capfd, *words, "--background", "3")
    assert "--mapping 'luck' is none of" in refused(capfd, *words, "--mapping", "luck")
    mapping = '{"0": null, "1": [1, "positive"]}'
    assert "'3' (5 voxels) are drawn, but not in the mapping" in refused(capfd, *words, "--mapping", mapping)
    assert not (tmp_path / "other" / "fusion.json").exists()


@pytest.mark.parametrize("names", [["liver"], ["rest", "rest"]])
def test_fusion_of_strokes_needs_the_name_of_background_too(names: list[str], tmp_path: Path, capfd: Any) -> None:
    for who in ("ada", "ben"):
        (tmp_path / who).mkdir()
        write_nifti(tmp_path / who / "a.nii.gz")
    words = text("fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out", "--mapping", "itksnap")
    said = refused(capfd, *words, *text("--background", 2, "--class_names", *names))
    assert f"--class_names must be different names, background first, got {' '.join(names)}" in said


def test_masks_that_agree_are_fused_without_a_warning(tmp_path: Path, capfd: Any) -> None:
    for who in ("ada", "ben"):
        slicer(tmp_path / who / "a.seg.nrrd", ONE)
        slicer(tmp_path / who / "b.seg.nrrd", ONE)
    fused(tmp_path, people=("ada", "ben"))
    assert "WARNING" not in capfd.readouterr().out
    whole = {"background": ~VESSEL, "vessel": VESSEL}  # all is in a segment: no strokes
    for who in ("ada", "ben"):
        write_seg_nrrd(tmp_path / who / "b.seg.nrrd", whole)
    assert fused(tmp_path, people=("ada", "ben"))["class_names"] == ["background", "edge", "vessel"]


def test_two_drawings_of_an_image_can_be_made_one_and_trained_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the error says."""
    write_volumes(tmp_path, 3)
    for number in range(3):
        drawing = volume(number)[2]
        parts = drawing.copy(), drawing.copy()
        parts[0][:, ::2], parts[1][:, 1::2] = 0, 0  # everybody drew every other line
        (tmp_path / "drawings" / f"case{number}_drawn.nii.gz").unlink()
        for who, values in zip(("ada", "ben"), parts, strict=True):
            affine = nib.load(tmp_path / "images" / f"case{number}.nii.gz").affine
            nib.save(nib.Nifti1Image(values, affine), tmp_path / "drawings" / f"case{number}_{who}.nii.gz")
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--plan_only", "--output_dir", tmp_path / "run")
    said = refused(capfd, *words, "--background", BACKGROUND)
    assert "make one of them with `medcoarse fuse` (of strokes with --mapping" in said
    assert "train on what that makes, with --mapping unlabeled_255" in said
    assert "pass --annotators" in said
    words = text("fuse", tmp_path / "drawings", "--output_dir", tmp_path / "fused", "--mapping", "itksnap")
    assert main([*words, "--background", str(BACKGROUND)]) == 0
    words = text("train", tmp_path / "images", tmp_path / "fused", "--plan_only", "--output_dir", tmp_path / "run")
    assert main([*words, "--mapping", "unlabeled_255"]) == 0
    for number in range(3):
        expected = np.choose(volume(number)[2], [255, 1, 255, 0])
        np.testing.assert_array_equal(labels(tmp_path / "fused" / f"case{number}.nii.gz"), expected)
