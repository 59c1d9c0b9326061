"""Outlines, which do not say on which voxels they lie: they are filled on those of an image or of a label map."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medcoarse.cli.files import pair
from medcoarse.cli.image_grids import find_grids
from medcoarse.cli.main import CommandError, main
from medcoarse.cli.references import drawn_on
from medcoarse.writers.itksnap import write_label_descriptions
from tests.bundles.commands import refused, text
from tests.cases_folders import volume, write_volumes
from tests.drawings import (
    AFFINE,
    PICTURE,
    SHAPE,
    contour,
    geojson,
    picture_map,
    segments,
    write_dicom_seg,
    write_rtstruct,
    write_series,
)

VESSEL, EDGE = segments().values()
NAMES = ("--class_names", "background", "vessel", "edge")
BODY = {"BODY": [("CLOSED_PLANAR", contour((0, 6, 0, 5), k)) for k in range(SHAPE[2])]}
VESSEL_CONTOURS = [("CLOSED_PLANAR", contour((1, 4, 1, 5), 1)), ("CLOSED_PLANAR", contour((1, 2, 1, 2), 2))]
REGIONS = {"vessel": VESSEL_CONTOURS, "edge": [("CLOSED_PLANAR", contour((5, 6, 0, 3), 3))]}


def structures(path: Path, regions: Any = None, frame: str = "1.2") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_rtstruct(path, frame, regions or REGIONS)


def predicted(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.uint8), AFFINE), path)
    return path


def scores(folder: Path, *more: Any) -> dict[str, Any]:
    assert main(text("evaluate", folder / "said", folder / "true", "--output_dir", folder / "scores", *more)) == 0
    return json.loads((folder / "scores" / "scores.json").read_text())["images"][0]


def test_contours_are_scored_on_the_voxels_of_their_image(tmp_path: Path, capfd: Any) -> None:
    """Of the 13 voxels in the contours of the vessel 12 are found, and one elsewhere: Dice 24 / (13 + 13)."""
    said = VESSEL + 2 * EDGE
    said[1, 1, 2], said[0, 0, 0] = 0, 1
    predicted(tmp_path / "said" / "a.nii.gz", said)
    structures(tmp_path / "true" / "a.dcm")
    words = ("evaluate", tmp_path / "said", tmp_path / "true", *NAMES)
    assert "pass --images" in refused(capfd, *words), "a label map may be cut, or have other slices"
    predicted(tmp_path / "images" / "a_0000.nii.gz", np.zeros(SHAPE))
    row = scores(tmp_path, *NAMES, "--images", tmp_path / "images")
    assert (VESSEL.sum(), EDGE.sum()) == (13, 3)
    assert (row["dice_vessel"], row["dice_edge"]) == (pytest.approx(24 / 26), 1)
    assert "cut to boxes" not in capfd.readouterr().out


def test_segments_do_not_tell_how_large_an_image_is(tmp_path: Path, capfd: Any) -> None:
    frame = "1.2.3"
    slices = write_series(tmp_path / "images" / "a", frame)
    (tmp_path / "said").mkdir()
    write_dicom_seg(tmp_path / "said" / "a.dcm", slices)
    structures(tmp_path / "true" / "a_rt.dcm", frame=frame)
    words = ("evaluate", tmp_path / "said", tmp_path / "true")
    said = refused(capfd, *words)
    assert "a_rt.dcm: holds outlines, and nothing in it says on which voxels; pass --images" in said
    row = scores(tmp_path, *NAMES, "--images", tmp_path / "images")
    assert (row["dice_vessel"], row["dice_edge"], row["specificity_vessel"]) == (1, 1, 1)
    assert "cut to boxes" not in capfd.readouterr().out
    structures(tmp_path / "true" / "a_rt.dcm", frame="4.5")
    assert "another DICOM frame of reference" in refused(capfd, *words, *NAMES, "--images", tmp_path / "images")


def test_contours_of_several_readers_are_fused(tmp_path: Path, capfd: Any) -> None:
    predicted(tmp_path / "images" / "a_0000.nii.gz", np.zeros(SHAPE))  # of two channels, as nnU-Net names them
    predicted(tmp_path / "images" / "a_0001.nii.gz", np.zeros(SHAPE))
    structures(tmp_path / "ada" / "a.dcm")
    structures(tmp_path / "ben" / "a.dcm", {"vessel": VESSEL_CONTOURS[:1], "edge": REGIONS["edge"]})
    structures(tmp_path / "cleo" / "a.dcm", REGIONS | {"vessel": VESSEL_CONTOURS[1:]})
    words = ["fuse", *(tmp_path / who for who in ("ada", "ben", "cleo")), "--output_dir", tmp_path / "out"]
    assert "pass --images" in refused(capfd, *words)
    assert main(text(*words, "--images", tmp_path / "images", *NAMES)) == 0
    found = nib.load(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), VESSEL + 2 * EDGE)
    np.testing.assert_allclose(found.affine, AFFINE)


def test_outlines_of_pictures_are_fused_with_what_they_say_of_background(tmp_path: Path) -> None:
    """As strokes, so that what nobody outlined is unlabeled."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros(PICTURE[::-1], np.uint8)).save(tmp_path / "images" / "p.png")
    content = geojson()
    for who in ("ada", "ben"):
        (tmp_path / who).mkdir()
        (tmp_path / who / "p.geojson").write_text(json.dumps(content))
    words = ["fuse", tmp_path / "ada", tmp_path / "ben", "--images", tmp_path / "images", "--output_dir"]
    assert main(text(*words, tmp_path / "masks", *NAMES)) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks" / "p.png")).T, picture_map())
    words += [tmp_path / "strokes", "--mapping", "slicer", "--background", "edge", "--class_names", "edge", "vessel"]
    assert main(text(*words)) == 0
    strokes = np.asarray(Image.open(tmp_path / "strokes" / "p.png")).T
    np.testing.assert_array_equal(strokes, np.choose(picture_map(), [255, 1, 0]))


@pytest.mark.parametrize("kind", ["contours", "pictures"])
def test_masks_in_outlines_are_drawn_of(tmp_path: Path, kind: str) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    if kind == "contours":
        predicted(tmp_path / "images" / "a.nii.gz", np.zeros(SHAPE))
        structures(masks / "a.dcm")
    else:
        (tmp_path / "images").mkdir()
        Image.fromarray(np.zeros(PICTURE[::-1], np.uint8)).save(tmp_path / "images" / "a.png")
        (masks / "a.geojson").write_text(json.dumps(geojson()))
    words = ["simulate", masks, tmp_path / "out", "--images", tmp_path / "images", *NAMES]
    assert main(text(*words)) == 0
    name, shape = ("a.nii.gz", SHAPE) if kind == "contours" else ("a.png", PICTURE)
    drawn = nib.load(tmp_path / "out" / name).get_fdata() if kind == "contours" else Image.open(tmp_path / "out" / name)
    assert np.asarray(drawn).shape in (shape, shape[::-1])


def test_an_image_that_is_missing_is_named(tmp_path: Path) -> None:
    predicted(tmp_path / "images" / "b.nii.gz", np.zeros(SHAPE))
    file = structures(tmp_path / "true" / "a.dcm")
    with pytest.raises(CommandError, match=r"a\.dcm: no image in .* is called 'a', or as what precedes a _ in it"):
        find_grids({file: ["a"]}, str(tmp_path / "images"))
    found = find_grids({file: ["b_rt"], tmp_path / "images" / "b.nii.gz": ["b"]}, str(tmp_path / "images"))
    assert list(found) == [file], "a label map says itself on which voxels it lies"
    assert found[file].shape == SHAPE


def test_structures_in_one_another_are_fused_and_drawn_of(tmp_path: Path, capfd: Any) -> None:
    """The lesion covers the organ, which holds it: as masks, and as strokes, whose background is outlined too."""
    predicted(tmp_path / "images" / "a.nii.gz", np.zeros(SHAPE))
    nested = {"organ": VESSEL_CONTOURS, "lesion": [("CLOSED_PLANAR", contour((2, 3, 2, 4), 1))]}
    for who in ("ada", "ben"):
        structures(tmp_path / who / "a.dcm", nested | {"air": REGIONS["edge"]})
    names = ["--class_names", "air", "organ", "lesion", "--images", tmp_path / "images"]
    fuse: list[Any] = ["fuse", tmp_path / "ada", tmp_path / "ben", "--overwrite", "--output_dir", tmp_path / "out"]
    assert "its segments overlap" in refused(capfd, *fuse, *names)
    assert "which of organ, lesion, air lies in which?" in refused(capfd, *fuse, "--nested", *names[4:])
    expected = VESSEL.astype(np.uint8)
    expected[2, 2:4, 1] = 2
    assert main(text(*fuse, "--nested", *names)) == 0
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj), expected)
    strokes = ["--mapping", "slicer", "--background", "air"]
    assert main(text(*fuse, "--nested", *names, *strokes)) == 0
    drawn = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(drawn, np.where(VESSEL, expected, np.where(EDGE, 0, 255)))
    assert main(text(*fuse, *names, *strokes)) == 0
    drawn = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    assert (drawn[2, 2:4, 1] == 255).all(), "who says two things of a voxel says nothing"
    simulate = ["simulate", tmp_path / "ada", tmp_path / "drawn", *names, "--profile", "dhe_good"]
    assert "its segments overlap" in refused(capfd, *simulate)
    assert main(text(*simulate, "--nested", "--overwrite")) == 0


# --- files that are called by numbers --------------------------------------------------------------------------------


def hospital(folder: Path, *people: str) -> None:
    """Two series, and of each what everybody drew, in files that are called by numbers."""
    for number, regions in enumerate((REGIONS, REGIONS | {"edge": [("CLOSED_PLANAR", contour((4, 6, 0, 3), 3))]})):
        series = write_series(folder / "images" / f"case{number}", f"1.2.{number}")[0].SeriesInstanceUID
        for who in people:
            (folder / who).mkdir(exist_ok=True)
            file = folder / who / f"RS.1.2.840.{number if who == people[0] else 9 - number}.dcm"
            write_rtstruct(file, f"1.2.{number}", regions, series)


def test_structures_belong_to_the_series_that_they_name(tmp_path: Path, capfd: Any) -> None:
    hospital(tmp_path, "true")
    wide = EDGE | np.roll(EDGE, -1, 0)
    predicted(tmp_path / "said" / "case0.nii.gz", VESSEL + 2 * EDGE)
    predicted(tmp_path / "said" / "case1.nii.gz", VESSEL + 2 * wide)
    words = ("evaluate", tmp_path / "said", tmp_path / "true", *NAMES)
    assert "no segmentation has a mask of its name" in refused(capfd, *words)
    assert main(text(*words, "--images", tmp_path / "images")) == 0
    rows = json.loads((tmp_path / "said" / "scores.json").read_text())["images"]
    assert [(row["name"], row["dice_vessel"], row["dice_edge"]) for row in rows] == [("case0", 1, 1), ("case1", 1, 1)]
    simulate = ["simulate", tmp_path / "true", tmp_path / "drawn", "--images", tmp_path / "images", *NAMES]
    assert main(text(*simulate)) == 0
    assert sorted(path.name for path in (tmp_path / "drawn").glob("*.nii.gz")) == ["case0.nii.gz", "case1.nii.gz"]


def test_readers_of_series_are_fused_whatever_their_files_are_called(tmp_path: Path) -> None:
    hospital(tmp_path, "ada", "ben")
    words = ["fuse", tmp_path / "ada", tmp_path / "ben", "--images", tmp_path / "images", "--output_dir"]
    assert main(text(*words, tmp_path / "out", *NAMES)) == 0
    first = np.asarray(nib.load(tmp_path / "out" / "case0.nii.gz").dataobj)
    np.testing.assert_array_equal(first, VESSEL + 2 * EDGE)
    assert (np.asarray(nib.load(tmp_path / "out" / "case1.nii.gz").dataobj) == 2).sum() == 6


def test_drawings_are_paired_by_the_series_that_they_name(tmp_path: Path, capfd: Any) -> None:
    """A segmentation in DICOM names its series as well; names go first, and what names two series is of neither."""
    hospital(tmp_path, "drawn")
    images = sorted((tmp_path / "images").iterdir())
    files = sorted((tmp_path / "drawn").iterdir())
    assert pair(images, files, "drawing") == dict(zip(images, files, strict=True))
    slices = write_series(tmp_path / "more" / "case2")
    segmented = write_dicom_seg(tmp_path / "drawn" / "4711.dcm", slices)
    assert drawn_on([segmented, *files], [*images, tmp_path / "more" / "case2"]) == {
        segmented: tmp_path / "more" / "case2",
        **dict(zip(files, images, strict=True)),
    }
    named = structures(tmp_path / "drawn" / "case1.dcm")
    assert pair(images, [files[0], named], "drawing") == {images[0]: files[0], images[1]: named}
    copies = tmp_path / "copies"
    shutil.copytree(images[0], copies / "again")
    assert drawn_on(files[:1], [*images, copies / "again"]) == {}
    with pytest.raises(CommandError, match="may have any name, and say on which series it lies"):
        pair(images, [segmented], "mask")
    broken = tmp_path / "drawn" / "broken.dcm"
    broken.write_bytes(segmented.read_bytes()[:700])
    with pytest.raises(CommandError, match=r"broken\.dcm: "):
        drawn_on([broken], images)


def test_all_of_a_hospital_may_lie_in_one_tree(tmp_path: Path, capfd: Any) -> None:
    """As archives hand it out: series and structures in folders and files that are called alike for all patients."""
    for number in range(3):
        patient = tmp_path / "archive" / f"p{number}"
        series = write_series(patient / "1.000-CT", f"1.2.{number}")[0].SeriesInstanceUID
        structures(patient / "2.000-RTSTRUCT" / "1-1.dcm", REGIONS | BODY, f"1.2.{number}")
        write_rtstruct(patient / "2.000-RTSTRUCT" / "1-1.dcm", f"1.2.{number}", REGIONS | BODY, series)
    words: list[Any] = ["train", tmp_path / "archive", tmp_path / "archive", "--output_dir", tmp_path / "run"]
    words += ["--plan_only", "--background", "edge", "--class_names", "vessel", "--only_named"]
    assert main(text(*words)) == 0
    assert "3 images of 1 patient with drawings" in capfd.readouterr().out
    items = json.loads((tmp_path / "run" / "datalist.json").read_text())
    for item in (item for section in items.values() for item in section):
        assert Path(item["image"]).parent.name == Path(str(item["drawing"])).parent.parent.name
    write_volumes(tmp_path / "mixed", 2)
    shutil.copytree(tmp_path / "mixed" / "images", tmp_path / "mixed" / "drawings", dirs_exist_ok=True)
    words[1:3] = [tmp_path / "mixed" / "drawings"] * 2
    words[4] = tmp_path / "other"
    assert "IMAGES and DRAWINGS are one folder" in refused(capfd, *words)


def test_images_of_one_name_in_several_folders(tmp_path: Path, capfd: Any) -> None:
    """As of patients, who have a CT each; a drawing lies in a folder of that name, or says in DICOM what it is of."""
    for patient in ("p1", "p2"):
        predicted(tmp_path / "said" / patient / "CT.nii.gz", VESSEL + 2 * EDGE)
        predicted(tmp_path / "true" / patient / "CT_mask.nii.gz", VESSEL + 2 * np.roll(EDGE, 1 - int(patient[1]), 0))
    images = sorted((tmp_path / "said").rglob("*.nii.gz"))
    masks = sorted((tmp_path / "true").rglob("*.nii.gz"))
    assert pair(images, masks, "mask") == dict(zip(images, masks, strict=True))
    assert pair(images, masks[1:], "mask", need_all=False) == {images[1]: masks[1]}
    words = ["evaluate", tmp_path / "said", tmp_path / "true", *NAMES]
    assert main(text(*words)) == 0
    rows = json.loads((tmp_path / "said" / "scores.json").read_text())["images"]
    assert [(row["name"], row["dice_edge"]) for row in rows] == [("p1/CT", 1), ("p2/CT", 0)]
    assert main(text("simulate", tmp_path / "said", tmp_path / "drawn")) == 0
    drawn = sorted((tmp_path / "drawn").rglob("*.nii.gz"))
    assert [file.relative_to(tmp_path / "drawn").as_posix() for file in drawn] == ["p1/CT.nii.gz", "p2/CT.nii.gz"]
    assert pair(images, drawn, "drawing") == dict(zip(images, drawn, strict=True))
    with pytest.raises(CommandError, match=r"CT\.nii\.gz has two drawings"):
        pair(images[:1], drawn, "drawing")


# --- segments beside those of interest -----------------------------------------------------------------------------


def test_segments_that_are_no_class_are_left_out_of_scores(tmp_path: Path, capfd: Any) -> None:
    predicted(tmp_path / "said" / "a.nii.gz", VESSEL + 2 * EDGE)
    structures(tmp_path / "true" / "a.dcm", BODY | REGIONS)
    predicted(tmp_path / "images" / "a.nii.gz", np.zeros(SHAPE))
    words = ("evaluate", tmp_path / "said", tmp_path / "true", "--images", tmp_path / "images")
    assert "segment 'BODY' is none of --class_names" in refused(capfd, *words, *NAMES)
    assert "which segments? pass --class_names" in refused(capfd, *words, "--only_named")
    row = scores(tmp_path, *NAMES, "--only_named", *words[3:])
    assert (row["dice_vessel"], row["dice_edge"]) == (1, 1)
    assert not any("BODY" in key for key in row)
    write_label_descriptions(tmp_path / "said" / "labels.txt", ["background", "vessel", "edge"])
    assert scores(tmp_path, "--only_named", *words[3:]) == row, "by the names that are beside the label maps"


def test_a_name_that_no_file_has_is_a_slip(tmp_path: Path, capfd: Any) -> None:
    write_series(tmp_path / "images" / "a", "1.2")
    for who in ("ada", "ben"):
        structures(tmp_path / who / "a.dcm", BODY | REGIONS)
    words: list[Any] = ["fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out"]
    words += ["--images", tmp_path / "images", "--only_named", "--class_names", "background"]
    said = refused(capfd, *words, "vesel", "edge")
    assert "--only_named: none of the files has a segment 'vesel'; there are 'BODY', 'edge', 'vessel'" in said
    assert main(text(*words, "Vessel", "edge")) == 0
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj), VESSEL + 2 * EDGE)


def box(values: np.ndarray) -> list[tuple[str, list[float]]]:
    """Contours of a box of voxels at unit spacing from the origin, as Slicer exports them in LPS."""
    (x0, y0, k0), (x1, y1, k1) = np.argwhere(values).min(0), np.argwhere(values).max(0) + 1
    edges = [(x0 - 0.5, y0 - 0.5), (x1 - 0.5, y0 - 0.5), (x1 - 0.5, y1 - 0.5), (x0 - 0.5, y1 - 0.5)]
    return [("CLOSED_PLANAR", [v for x, y in edges for v in (-x, -y, float(k))]) for k in range(k0, k1)]


def test_training_leaves_out_what_is_no_class(tmp_path: Path, capfd: Any) -> None:
    """Of drawings and of masks that are structure sets with the body in them."""
    for index in range(4):
        image, mask, drawing = volume(index)
        stroke = {"organ": box(drawing == 1), "rest": box(drawing == 3), "BODY": box(np.ones_like(mask))}
        (tmp_path / "images").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "images" / f"case{index}.nii.gz")
        structures(tmp_path / "drawings" / f"case{index}.dcm", stroke)
        structures(tmp_path / "masks" / f"case{index}.dcm", {"organ": box(mask), "BODY": box(np.ones_like(mask))})
    words: list[Any] = ["train", tmp_path / "images", tmp_path / "drawings", "--labels", tmp_path / "masks"]
    words += ["--background", "rest", "--epochs", 1, "--output_dir", tmp_path / "run"]
    names = ["--class_names", "organ"]
    assert "name all but background, each once, or pass --only_named" in refused(capfd, *words, *names)
    assert "which segments? pass --class_names" in refused(capfd, *words, "--only_named")
    structures(tmp_path / "masks" / "case0.dcm", {"Organ1": box(volume(0)[1]), "BODY": box(np.ones((24, 22, 8)))})
    assert "no drawing names 'orgn'" in refused(capfd, *words, "--only_named", "--class_names", "orgn")
    assert main(text(*words, *names, "--only_named")) == 0
    said = capfd.readouterr().out
    assert "names in the drawings, left out: 'BODY'" in said
    assert "NO 'organ' in 1 of 4 masks, and background there: case0.dcm; left out of these: 'BODY', 'Organ1'" in said
    train = json.loads((tmp_path / "run" / "configs" / "train.json").read_text())
    assert train["mapping"] == {"rest": [0, "positive"], "organ": [1, "positive"], "BODY": None}
    assert (tmp_path / "run" / "models" / "model.pt").is_file()
    for index in range(1, 4):
        shutil.copy(tmp_path / "masks" / "case0.dcm", tmp_path / "masks" / f"case{index}.dcm")
    words[-1] = tmp_path / "other"
    said = refused(capfd, *words, *names, "--only_named")
    assert "none of the masks has a segment 'organ'; there are 'BODY', 'Organ1'" in said


def test_a_class_that_is_called_otherwise_in_the_masks_is_no_background(tmp_path: Path, capfd: Any) -> None:
    """Each side has to have all names: label maps say nothing of those of the masks, nor do other segmentations."""
    misnamed = {"vessel": VESSEL_CONTOURS, "Edge1": REGIONS["edge"]} | BODY
    for name in "ab":
        predicted(tmp_path / "said" / f"{name}.nii.gz", VESSEL + 2 * EDGE)
        predicted(tmp_path / "images" / f"{name}.nii.gz", np.zeros(SHAPE))
        structures(tmp_path / "true" / f"{name}.dcm", misnamed)
    words = ("--images", tmp_path / "images", *NAMES, "--only_named")
    said = refused(capfd, "evaluate", tmp_path / "said", tmp_path / "true", *words)
    assert "none of the masks has a segment 'edge'; there are 'BODY', 'Edge1', 'vessel'" in said
    structures(tmp_path / "true" / "b.dcm", BODY | REGIONS)
    assert scores(tmp_path, *words)["dice_edge"] is None
    said = "NO 'edge' in 1 of 2 masks, and background there: a.dcm; left out of these: 'BODY', 'Edge1'"
    assert said in capfd.readouterr().out
    assert main(text("simulate", tmp_path / "true", tmp_path / "drawn", *words)) == 0
    assert said in capfd.readouterr().out
    maps = ("evaluate", tmp_path / "said", tmp_path / "said", *NAMES, "--only_named")
    assert "the files hold no segments, and values of label maps are not left out" in refused(capfd, *maps)


def test_names_beside_label_maps_say_nothing_of_what_lies_in_what(tmp_path: Path, capfd: Any) -> None:
    predicted(tmp_path / "said" / "a.nii.gz", VESSEL + 2 * EDGE)
    predicted(tmp_path / "images" / "a.nii.gz", np.zeros(SHAPE))
    structures(tmp_path / "true" / "a.dcm", BODY | REGIONS)
    write_label_descriptions(tmp_path / "said" / "labels.txt", ["background", "vessel", "edge"])
    words = ("evaluate", tmp_path / "said", tmp_path / "true", "--images", tmp_path / "images", "--nested")
    assert "which of vessel, edge, BODY lies in which?" in refused(capfd, *words)
    assert scores(tmp_path, *words[3:], "--only_named")["mean_dice"] == 1


def test_outlines_of_another_frame_of_reference_are_refused(tmp_path: Path, capfd: Any) -> None:
    write_series(tmp_path / "images" / "a", "1.2")
    predicted(tmp_path / "said" / "a.nii.gz", VESSEL + 2 * EDGE)
    for who in ("ada", "ben"):
        structures(tmp_path / who / "a.dcm", frame="3.4")
    more = ("--images", tmp_path / "images", *NAMES)
    for words in (
        ("evaluate", tmp_path / "said", tmp_path / "ada"),
        ("fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out"),
        ("simulate", tmp_path / "ada", tmp_path / "out"),
    ):
        assert "was drawn in another DICOM frame of reference than its image's" in refused(capfd, *words, *more)


def test_a_mask_is_not_drawn_on_every_other_slice(tmp_path: Path, capfd: Any) -> None:
    """As a drawing it may be; and small structures that lie apart are no gaps."""
    square = [("CLOSED_PLANAR", contour((1, 4, 1, 4), k)) for k in range(0, SHAPE[2], 2)]
    apart = [("CLOSED_PLANAR", contour((k, k + 1, k, k + 1), k)) for k in range(0, SHAPE[2], 2)]
    for who in ("ada", "ben"):
        structures(tmp_path / who / "a.dcm", {"vessel": square, "edge": REGIONS["edge"]})
    predicted(tmp_path / "images" / "a.nii.gz", np.zeros(SHAPE))
    words = ["fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out", "--overwrite"]
    words += ["--images", tmp_path / "images", *NAMES]
    assert "a.dcm: 'vessel' is drawn on every other slice or fewer" in refused(capfd, *words)
    assert main(text(*words, "--mapping", "slicer", "--background", "edge", "--class_names", "edge", "vessel")) == 0
    for who in ("ada", "ben"):
        structures(tmp_path / who / "a.dcm", {"vessel": apart, "edge": REGIONS["edge"]})
    assert main(text(*words)) == 0


def test_regions_off_the_image_matter_where_they_are_wanted(tmp_path: Path, capfd: Any) -> None:
    """An isocentre between two slices, and a couch that reaches beyond the scan."""
    point = np.add(contour((2, 3, 2, 3), 1)[:3], [0, 0, 1.25])
    couch = [("CLOSED_PLANAR", contour((-9, 12, 5, 6), k)) for k in range(SHAPE[2])]
    below = [("CLOSED_PLANAR", contour((0, 6, 5, 6), -2))]
    more = {"iso": [("POINT", point.tolist())], "couch": couch, "table": below}
    predicted(tmp_path / "images" / "a.nii.gz", np.zeros(SHAPE))
    for who in ("ada", "ben"):
        structures(tmp_path / who / "a.dcm", REGIONS | more)
    words = ["fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out", "--overwrite"]
    words += ["--images", tmp_path / "images"]
    assert main(text(*words, *NAMES, "--only_named")) == 0
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj), VESSEL + 2 * EDGE)
    assert "a.dcm: region 'iso': a contour lies 0.5 slices off slice" in refused(capfd, *words, *NAMES)
    said = refused(capfd, *words, *NAMES, "couch", "--only_named")
    assert "region 'couch': a contour reaches 9 voxels beyond the image of 7 x 6 x 5" in said
    strokes = ["--mapping", "slicer", "--background", "edge", "--class_names", "edge", "vessel"]
    assert main(text(*words, *strokes, "--only_named")) == 0
    mapping = json.dumps({"vessel": [1, "positive"], "edge": [0, "positive"]})
    strokes[1] = mapping
    assert "'iso': a contour lies" in refused(capfd, *words, *strokes)
    assert main(text(*words, *strokes, "--only_named")) == 0
    drawn = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(drawn, np.where(VESSEL, 1, np.where(EDGE, 0, 255)))


def test_a_number_of_a_patient_is_no_channel(tmp_path: Path) -> None:
    for number in ("0001", "0002"):
        predicted(tmp_path / "images" / f"pat_{number}.nii.gz", np.zeros(SHAPE))
    file = structures(tmp_path / "true" / "pat_0003.dcm")
    with pytest.raises(CommandError, match=r"no image in .* is called 'pat_0003'"):
        find_grids({file: ["pat_0003"]}, str(tmp_path / "images"))
    predicted(tmp_path / "images" / "pat_0000.nii.gz", np.zeros(SHAPE))
    with pytest.raises(CommandError, match=r"no image in .* is called 'pat_0003'"):
        find_grids({file: ["pat_0003"]}, str(tmp_path / "images"))
    assert find_grids({file: ["other", "pat_rt"]}, str(tmp_path / "images"))[file].shape == SHAPE


def test_what_is_left_out_does_not_make_strokes_of_masks(tmp_path: Path) -> None:
    predicted(tmp_path / "images" / "a.nii.gz", np.zeros(SHAPE))
    for who in ("ada", "ben"):
        structures(tmp_path / who / "a.dcm", REGIONS | {"Not used": BODY["BODY"][:1]})
    words = ["fuse", tmp_path / "ada", tmp_path / "ben", "--output_dir", tmp_path / "out", "--only_named", *NAMES]
    assert main(text(*words, "--images", tmp_path / "images")) == 0


def test_an_image_may_be_called_as_the_segmentation_is(tmp_path: Path) -> None:
    predicted(tmp_path / "images" / "a_ct.nii.gz", np.zeros(SHAPE))
    predicted(tmp_path / "said" / "a_ct.nii.gz", VESSEL + 2 * EDGE)
    structures(tmp_path / "true" / "a.dcm")
    assert scores(tmp_path, *NAMES, "--images", tmp_path / "images")["mean_dice"] == 1
