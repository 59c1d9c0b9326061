"""The command line from one end to the other, on tiny volumes and pictures, and the ways it goes wrong."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image
from scipy import ndimage
from synthetic_dicom import photograph, save

from medcoarse.bundle_files import serve
from medcoarse.cli.bundle import run_bundle
from medcoarse.cli.facts import load_image
from medcoarse.cli.files import find_images
from medcoarse.cli.main import CommandError, in_one_line, main
from medcoarse.cli.predict import _without_header
from medcoarse.datalist import DataError
from medcoarse.own_data import prepare_drawings
from medcoarse.readers.formats import read_drawing
from medcoarse.readers.itksnap import read_label_descriptions
from medcoarse.writers.segmentation import WriteError
from tests import label_double
from tests.bundles.commands import refused, text, train_words
from tests.cases_folders import BACKGROUND, OBLIQUE, volume, write_pictures, write_volumes
from tests.drawings import PATIENT, segments, write_dicom_seg, write_series
from tests.reference.slow_surfaces import slow_surface_distances


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volumes(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def trained(volumes: Path) -> Path:
    """A bundle trained for two epochs."""
    out = volumes / "run"
    words = text("train", volumes / "images", volumes / "drawings", "--output_dir", out)
    words += text("--labels", volumes / "masks", "--background", BACKGROUND, "--class_names", "box", "--epochs", 2)
    assert main(words) == 0
    return out


# --- training ----------------------------------------------------------------------------------------------------


def test_training_leaves_a_bundle_and_a_plan(trained: Path, volumes: Path) -> None:
    plan = json.loads((trained / "configs" / "plan.json").read_text())
    assert plan["settings"]["class_names"] == ["background", "box"]
    assert plan["settings"]["mapping"] == {"0": None, "1": [1, "positive"], "3": [0, "positive"]}
    assert plan["settings"]["network_def#strides"] == [[2, 2, 1], [2, 2, 2]]
    page = (trained / "docs" / "README.md").read_text()
    assert "0. background\n1. box\n" in page
    assert [path.name for path in (trained / "docs").iterdir()] == ["README.md"], "nothing of the model it comes from"
    assert plan["reasons"]["spacing"].startswith("all images have the same spacing")
    assert plan["settings"]["spacing"] == [1.0198, 1.0198, 3.0]
    for name in ("train.json", "inference.json"):
        content = json.loads((trained / "configs" / name).read_text())
        assert [content[key] for key in ("orientation", "spacing", "spacing_tolerance")] == [
            "LAS",
            [1.0198, 1.0198, 3.0],
            0.05,
        ]
    content = json.loads((trained / "configs" / "train.json").read_text())
    assert content["network_def"]["strides"] == [[2, 2, 1], [2, 2, 2]]
    assert content["patch_size"] == json.loads((trained / "configs" / "inference.json").read_text())["patch_size"]
    assert (trained / "models" / "model.pt").is_file()
    datalist = json.loads((trained / "datalist.json").read_text())
    assert (len(datalist["training"]), len(datalist["validation"])) == (3, 1)
    for item in [*datalist["training"], *datalist["validation"]]:
        assert all((trained / path).is_file() for path in item.values())
        assert set(item) == {"image", "drawing", "label"}


def test_the_same_command_goes_on(
    trained: Path, volumes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = volumes / "copy"
    shutil.copytree(trained, out)
    words = text("train", volumes / "images", volumes / "drawings", "--labels", volumes / "masks")
    words += text("--background", BACKGROUND, "--class_names", "box", "--output_dir", out, "--epochs", 3)
    before = (out / "models" / "model.pt").read_bytes()
    assert main(words) == 0
    said = "".join(capfd.readouterr())
    assert "is planned already" in said
    assert "after epoch 2 of 3" in said or "epoch 3/3" in said
    assert "epoch 1/3" not in said
    assert (out / "models" / "model.pt").read_bytes() != before
    assert main([*words, "--seed", "5"]) == 1
    assert "holds a training made with --seed 0 and asked for now with --seed 5; choose" in capfd.readouterr().err


def test_the_bundle_runs_without_the_command(trained: Path, volumes: Path, tmp_path: Path) -> None:
    """As MONAI's own command line and MONAI Deploy run it."""
    workflow = ConfigWorkflow(
        str(trained / "configs" / "inference.json"),
        meta_file=str(trained / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="inference",
        bundle_root=str(trained),
        dataset_dir=str(volumes / "images"),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    workflow.run()
    assert len(list(tmp_path.rglob("*.nii.gz"))) == 4


# --- prediction --------------------------------------------------------------------------------------------------


def test_predictions_lie_where_the_images_do(trained: Path, volumes: Path, tmp_path: Path) -> None:
    images, out = volumes / "images", tmp_path / "out"
    assert main(text("predict", trained, images, "--output_dir", out)) == 0
    for image in images.iterdir():
        source, found = nib.load(image), nib.load(out / image.name)
        assert found.shape == source.shape
        np.testing.assert_allclose(found.affine, source.affine, atol=1e-5)
        assert set(np.unique(found.dataobj)) <= {0, 1}
    slicer, soft = tmp_path / "slicer", tmp_path / "soft"
    one = images / "case0.nii.gz"
    assert main(text("predict", trained, one, "--output_dir", slicer, "--format", "seg.nrrd")) == 0
    drawing = read_drawing(slicer / "case0.seg.nrrd")
    assert drawing.layers[0].names == {1: "box"}
    np.testing.assert_array_equal(drawing.layers[0].values, np.asarray(nib.load(out / one.name).dataobj))
    assert main(text("predict", trained, one, "--output_dir", soft, "--probabilities")) == 0
    probabilities = nib.load(soft / one.name).get_fdata()
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(-1), drawing.layers[0].values)


def other_seed(trained: Path, folder: Path) -> Path:
    """The same bundle with other weights."""
    shutil.copytree(trained, folder)
    weights = torch.load(folder / "models" / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    other = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in weights.items()
    }
    torch.save(other, folder / "models" / "model.pt")
    return folder


def test_several_bundles_answer_together(trained: Path, volumes: Path, tmp_path: Path) -> None:
    image = volumes / "images" / "case0.nii.gz"
    other = other_seed(trained, tmp_path / "other")

    def predicted(name: str, bundle: Path, *words: object) -> np.ndarray:
        assert main(text("predict", bundle, image, "--output_dir", tmp_path / name, *words)) == 0
        return np.asarray(nib.load(tmp_path / name / image.name).dataobj)

    one = predicted("one", trained, "--probabilities")
    two = predicted("two", other, "--probabilities")
    assert np.abs(one - two).max() > 0.05
    both = predicted("both", trained, "--with", other, "--probabilities")
    np.testing.assert_allclose(both, (one + two) / 2, atol=1e-6)
    twice = predicted("twice", trained, "--with", other, other)
    np.testing.assert_array_equal(twice, (one + 2 * two).argmax(-1))


def test_bundles_of_other_classes_do_not_answer_together(
    trained: Path, volumes: Path, tmp_path: Path, capfd: Any
) -> None:
    other = other_seed(trained, tmp_path / "other")
    words = ("predict", trained, volumes / "images", "--output_dir", tmp_path / "out", "--with", other)
    metadata = other / "configs" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"box"', '"bag"'))
    assert f"--with {other}: its classes are background, bag, those of {trained} background, box" in refused(
        capfd, *words
    )
    shutil.copyfile(trained / "configs" / "metadata.json", metadata)
    plan = json.loads((other / "configs" / "plan.json").read_text()) | {"channels": ["0000", "0001"]}
    (other / "configs" / "plan.json").write_text(json.dumps(plan))
    assert f"its channels are 0000, 0001, those of {trained} one file" in refused(capfd, *words)
    (other / "models" / "model.pt").unlink()
    assert f"{other}/models/model.pt: no weights" in refused(capfd, *words)
    assert not (tmp_path / "out").exists()


def test_dicom_in_and_dicom_out(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slices = write_series(tmp_path / "in" / "first", reverse=True)
    write_series(tmp_path / "in" / "second")
    assert main(text("predict", trained, tmp_path / "in", "--output_dir", tmp_path / "out")) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first.dcm", "second.dcm"]
    seg = hd.seg.segread(tmp_path / "out" / "first.dcm")
    assert seg.StudyInstanceUID == slices[0].StudyInstanceUID
    assert seg.get_segment_description(1).segment_label == "box"
    assert seg.ManufacturerModelName == "Segmentation learned from drawings"
    said = "".join(capfd.readouterr())
    assert PATIENT not in said
    assert "4711" not in said


def test_one_bad_image_does_not_stop_the_others(
    trained: Path, volumes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = tmp_path / "in"
    places.mkdir()
    (places / "a.nii.gz").write_bytes(b"broken")
    shutil.copy(volumes / "images" / "case0.nii.gz", places / "b.nii.gz")
    assert main(text("predict", trained, places, "--output_dir", tmp_path / "out")) == 1
    assert "1 of 2 images" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.nii.gz", "labels.txt"]
    assert read_label_descriptions(tmp_path / "out" / "labels.txt") == {0: "background", 1: "box"}


def test_images_of_another_kind_are_said_to_be(
    trained: Path, volumes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (20, 20), 7).save(tmp_path / "a.png")
    image = nib.load(volumes / "images" / "case0.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([image.get_fdata()] * 2, -1), image.affine), tmp_path / "b.nii.gz")
    assert main(text("predict", trained, tmp_path, "--output_dir", tmp_path / "out")) == 1
    said = capfd.readouterr().err
    assert "a.png: has 2 axes; the bundle was trained on images of 3\n" in said
    assert "b.nii.gz: has 2 channels; the bundle was trained on images of 1\n" in said
    words = text("report", trained, "--output_dir", tmp_path / "out", "--cases", volumes / "images", tmp_path)
    assert "a.png: has 2 axes; the bundle was trained on images of 3" in refused(capfd, *words)


def test_an_image_of_what_is_no_number_is_not_called_background(
    trained: Path, volumes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = nib.load(volumes / "images" / "case0.nii.gz")
    values = image.get_fdata()
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), tmp_path / "a.nii.gz")
    assert main(text("predict", trained, tmp_path, "--output_dir", tmp_path / "out")) == 1
    assert "a.nii.gz: has values that are not numbers (NaN or infinity)" in capfd.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    words = text("report", trained, "--output_dir", tmp_path / "out", "--cases", tmp_path)
    assert "a.nii.gz: has values that are not numbers (NaN or infinity)" in refused(capfd, *words)


def test_images_of_one_name_do_not_replace_each_other(
    trained: Path, volumes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = (tmp_path / folder / "case1.nii.gz" for folder in "xy")
    for copy in (one, two):
        copy.parent.mkdir()
        shutil.copy(volumes / "images" / "case1.nii.gz", copy)
    out = tmp_path / "out"
    said = refused(capfd, "predict", trained, tmp_path / "x", tmp_path / "y", "--output_dir", out)
    assert f"{one} and {two} would both become {out / 'case1.nii.gz'}" in said
    assert not out.exists()
    other = one.with_name("case1.nrrd")
    SimpleITK.WriteImage(SimpleITK.ReadImage(one), other)
    assert f"{one} and {other}" in refused(capfd, "predict", trained, tmp_path / "x", "--output_dir", out)
    other.unlink()
    assert main(text("predict", trained, tmp_path, "--output_dir", out)) == 0
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.gz")) == [
        "x/case1.nii.gz",
        "y/case1.nii.gz",
    ]


@pytest.mark.parametrize("place", [".", "below/.."])
def test_a_series_called_by_a_dot(place: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "series")
    (tmp_path / "series" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "series")
    assert main(text("predict", trained, place, "--output_dir", tmp_path / "out", "--format", "nii.gz")) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["labels.txt", "series.nii.gz"]


def test_a_stray_dicom_file_hides_no_images(tmp_path: Path) -> None:
    write_volumes(tmp_path, 2)
    write_series(tmp_path / "series")
    for name in ("images", "deep"):
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.copy(tmp_path / "series" / "0.dcm", tmp_path / name / "stray.dcm")
    shutil.copytree(tmp_path / "masks", tmp_path / "deep" / "more")
    for name in ("images", "deep"):
        with pytest.raises(CommandError, match=f"{name}: holds DICOM files beside other images; put the series in a "):
            find_images([tmp_path / name])
    (tmp_path / "series" / "empty").mkdir()
    (tmp_path / "series" / "notes.txt").write_text("left")
    assert find_images([tmp_path / "series"]) == [tmp_path / "series"]


def test_what_was_made_beside_the_images_is_no_image(trained: Path, volumes: Path, tmp_path: Path) -> None:
    shutil.copytree(volumes / "images", tmp_path / "images")
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "output" / "figures").mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(tmp_path / "run" / "output" / "figures" / "overview.png")
    words = text("predict", trained, tmp_path, "--output_dir", tmp_path / "out")
    for more in ([], ["--overwrite"]):
        assert main(words + more) == 0
        assert all(path.parent.name == "images" for path in (tmp_path / "out").rglob("*.gz"))
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == len(list((volumes / "images").iterdir()))


# --- the other commands ------------------------------------------------------------------------------------------


def test_evaluation(volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks against themselves, and one with a half of the box gone: Dice 2 * 0.5 / 1.5."""
    segmented = tmp_path / "segmented"
    shutil.copytree(volumes / "masks", segmented)
    _, mask, _ = volume(0)
    mask[: mask.shape[0] // 2] = 0
    nib.save(nib.Nifti1Image(mask, OBLIQUE), segmented / "case0.nii.gz")
    words = text("evaluate", segmented, volumes / "masks", "--output_dir", tmp_path / "scores")
    assert main([*words, "--class_names", "background", "box"]) == 0
    table = json.loads((tmp_path / "scores" / "scores.json").read_text())
    rows = {row["name"]: row for row in table["images"]}
    assert rows["case1"]["dice_box"] == 1
    assert rows["case0"]["dice_box"] == pytest.approx(2 / 3)
    assert table["image"]["dice_box"] == pytest.approx((3 + 2 / 3) / 4)
    csv = (tmp_path / "scores" / "scores.csv").read_text().splitlines()
    assert len(csv) == 1 + 4 + 2
    assert f"mean over the classes but background: Dice {(3 + 2 / 3) / 4:.4f}," in capsys.readouterr().out
    assert table["image"]["mean_dice"] == table["image"]["dice_box"]
    assert main([*words, "--class_names", "background", "box", "--include_background"]) == 0
    row = json.loads((tmp_path / "scores" / "scores.json").read_text())["image"]
    assert row["mean_dice"] == pytest.approx((row["dice_box"] + row["dice_background"]) / 2)
    assert f"mean over all classes: Dice {row['mean_dice']:.4f}," in capsys.readouterr().out
    assert main(text("evaluate", segmented, volumes / "masks")) == 0  # scores.json beside them is no segmentation
    assert main(text("evaluate", segmented, volumes / "masks")) == 0


@pytest.mark.parametrize("kind", ["volume", "slice", "picture"])
def test_evaluation_of_surfaces(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against all pairs of voxels on the surfaces; what one of both lacks is undefined, and far from 0."""
    rng, shape = np.random.default_rng(0), (10, 9, 6) if kind == "volume" else (10, 9)
    spacing, unit = ((1.0, 1.0), "pixels") if kind == "picture" else ((0.8, 1.0, 3.0)[: len(shape)], "mm")
    expected, names = [], ["background", "box", "cyst"]
    for name in ("a", "b"):
        one, two = (ndimage.gaussian_filter(rng.normal(size=shape), 1.5) > 0.02 for _ in range(2))
        expected.append(slow_surface_distances(one, two, spacing))
        for place, mask in (("said", one), ("true", two)):
            values = mask.astype(np.uint8)
            values[tuple(np.argwhere(values == 0)[0])] = 2 if (name, place) == ("a", "true") else 0
            (tmp_path / place).mkdir(exist_ok=True)
            if kind == "picture":
                Image.fromarray(values.T).save(tmp_path / place / f"{name}.png")
            else:
                affine = np.diag([0.8, -1.0, 3.0, 1.0])[[1, 0, 2, 3]]
                whole = values[..., None] if kind == "slice" else values
                nib.save(nib.Nifti1Image(whole, affine), tmp_path / place / f"{name}.nii.gz")
    words = text("evaluate", tmp_path / "said", tmp_path / "true", "--class_names", *names)
    assert main([*words, "--surface"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[-2:] == [f"hd95_{unit}", f"assd_{unit}"]
    assert [line.split()[-2:] for line in lines[2:5:2]] == [["-", "-"], ["-", "-"]], "background, and what was missed"
    found = json.loads((tmp_path / "said" / "scores.json").read_text())
    for row, (mean, most) in zip([*found["images"], found["image"]], [*expected, np.mean(expected, 0)], strict=True):
        assert row[f"assd_{unit}_box"] == pytest.approx(mean, rel=1e-4)
        assert row[f"hd95_{unit}_box"] == pytest.approx(most, rel=1e-4)
        assert row[f"hd95_{unit}_cyst"] is None
    csv = (tmp_path / "said" / "scores.csv").read_text().splitlines()
    assert f"hd95_{unit}_box" in csv[0].split(",")
    assert len({len(line.split(",")) for line in csv}) == 1
    assert main(words) == 0
    assert "hd95" not in (tmp_path / "said" / "scores.json").read_text()


def test_evaluation_refuses_another_grid(volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segmented = tmp_path / "segmented"
    shutil.copytree(volumes / "masks", segmented)
    nib.save(nib.Nifti1Image(volume(0)[1], np.eye(4)), segmented / "case0.nii.gz")
    assert main(text("evaluate", segmented, volumes / "masks")) == 1
    said = capsys.readouterr().err
    assert "lies on another grid" in said
    assert "resample" not in said, "the command has no such option"


@pytest.mark.parametrize("method", ["majority", "mean", "staple", "spatial_staple"])
def test_fusion(volumes: Path, tmp_path: Path, method: str) -> None:
    """Three annotators, one of whom drew nothing: two of three say the mask."""
    for name in ("ada", "ben", "cleo"):
        shutil.copytree(volumes / "masks", tmp_path / name)
    nothing = np.zeros_like(volume(0)[1])
    nib.save(nib.Nifti1Image(nothing, OBLIQUE), tmp_path / "cleo" / "case0.nii.gz")
    (tmp_path / "ben" / "case1.nii.gz").unlink()
    words = text("fuse", tmp_path / "ada", tmp_path / "ben", tmp_path / "cleo", "--output_dir", tmp_path / "out")
    assert main([*words, "--method", method]) == 0
    for index in range(4):
        found = nib.load(tmp_path / "out" / f"case{index}.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), volume(index)[1])
        np.testing.assert_allclose(found.affine, OBLIQUE, atol=1e-5)
    assert json.loads((tmp_path / "out" / "fusion.json").read_text())["method"] == method


def test_simulation_can_be_trained_on(volumes: Path, tmp_path: Path) -> None:
    drawings = tmp_path / "drawings"
    profiles = ["--profile", "stroke_positive", "stroke_negative"]
    assert main([*text("simulate", volumes / "masks", drawings), *profiles]) == 0
    record = json.loads((drawings / "parameters.json").read_text())
    assert set(record["masks"]) == {f"case{index}.nii.gz" for index in range(4)}
    drawn = nib.load(drawings / "case0.nii.gz")
    np.testing.assert_allclose(drawn.affine, OBLIQUE, atol=1e-5)
    values = np.asarray(drawn.dataobj)
    assert set(np.unique(values)) == {0, 1, 255}
    words = text("train", volumes / "images", drawings, "--output_dir", tmp_path / "run", "--plan_only")
    assert main(words) == 0
    mapping = json.loads((tmp_path / "run" / "configs" / "train.json").read_text())["mapping"]
    assert mapping == {"255": None, "1": [1, "positive"], "0": [0, "positive"]}
    again = tmp_path / "again"
    assert main([*text("simulate", volumes / "masks", again, "--separate"), *profiles]) == 0
    assert len(list(again.glob("*.nii.gz"))) == 8


def test_simulated_annotators_can_be_told_apart(
    volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = text("simulate", volumes / "masks", tmp_path / "drawings", "--annotators", "--profile")
    assert main([*words, "dhe_over", "coarse_negative"]) == 1
    assert "coarse_negative draws what is not the structure" in capsys.readouterr().err
    assert not (tmp_path / "drawings").exists()
    assert main([*words, "dhe_good", "dhe_over"]) == 0
    assert "8 drawings and parameters.json" in capsys.readouterr().out
    for case in range(4):
        faithful, wide = (
            np.asarray(nib.load(tmp_path / "drawings" / name / f"case{case}.nii.gz").dataobj)
            for name in ("dhe_good", "dhe_over")
        )
        np.testing.assert_array_equal(faithful, volume(case)[1])
        assert wide.sum() > faithful.sum()
    words = text("train", volumes / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--plan_only")
    assert main([*words, *text("--annotators", "--mapping", "dense")]) == 0
    assert json.loads((tmp_path / "run" / "configs" / "train.json").read_text())["annotators"] == [
        "dhe_good",
        "dhe_over",
    ]


def test_report(trained: Path) -> None:
    assert main(text("report", trained)) == 0
    assert (trained / "output" / "annotators.html").is_file()


@pytest.mark.parametrize("name", ["review.json", "case_report.json"])
def test_reports_are_about_what_was_drawn_not_what_was_made_of_it(trained: Path, name: str) -> None:
    assert main(text("report", trained)) == 0
    parser = ConfigParser()
    parser.read_config([str(trained / "configs" / "train.json"), str(trained / "configs" / name)])
    parser["bundle_root"] = str(trained)
    items = parser.get_parsed_content("train#drawings")
    assert len(items) == 3
    assert all((item["positive"] == 0).sum() == (volume(0)[2] == BACKGROUND).sum() for item in items)


def test_monai_label_segments_with_what_was_trained_and_trains_it_on(
    trained: Path, volumes: Path, tmp_path: Path
) -> None:
    served = serve(trained, tmp_path / "model", iterations_per_epoch=1, batch_size=1)
    image, drawn = volumes / "images" / "case0.nii.gz", tmp_path / "case0.nii.gz"
    assert main(text("predict", trained, image, "--output_dir", tmp_path / "out")) == 0
    own = np.asarray(nib.load(tmp_path / "out" / image.name).dataobj)
    np.testing.assert_array_equal(label_double.segment(served, image), own.T)
    assert label_double.labels(served) == {"box": 1}
    strokes = np.choose(volume(0)[2], [0, 3, 0, 2]).astype(np.uint8)
    nib.save(nib.Nifti1Image(strokes, nib.load(image).affine), drawn)
    label_double.train(served, [{"image": str(image), "label": str(drawn)}] * 2, max_epochs=1, val_split=0.5)
    assert (served / "models" / "model.pt").read_bytes() != (trained / "models" / "model.pt").read_bytes()
    (row,) = json.loads((served / "output" / "metrics.json").read_text())["validation"]
    assert 0 <= row["drawn_agreement"] <= 1
    assert "mean_dice" not in row, "a reader's scribbles are no masks"


def test_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--epochs", 1)
    assert main(words) == 0
    assert main(text("predict", tmp_path / "run", tmp_path / "images", "--output_dir", tmp_path / "out")) == 0
    with Image.open(tmp_path / "out" / "p0.png") as found, Image.open(tmp_path / "images" / "p0.png") as image:
        assert found.size == image.size
        assert set(np.unique(np.asarray(found))) <= {0, 1}
        served = serve(tmp_path / "run", tmp_path / "model")
        segmented = label_double.segment(served, tmp_path / "images" / "p0.png")
        np.testing.assert_array_equal(segmented, np.asarray(found))
    assert main(text("report", tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run" / "output" / "annotators.json").read_text())["unit"] == "pixels"
    assert main(text("evaluate", tmp_path / "out", tmp_path / "masks")) == 0


def test_pictures_that_are_shown_turned_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As cameras save them; what was drawn on the picture as it is shown would lie elsewhere."""
    write_pictures(tmp_path)
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--plan_only")
    for index, (orientation, suffix) in enumerate([(1, ".jpg"), (6, ".jpg"), (3, ".png")]):
        file = tmp_path / "images" / f"p{index}.png"
        with Image.open(file) as image:
            exif = image.getexif()
            exif[274] = orientation
            file.unlink()
            image.save(file.with_suffix(suffix), exif=exif)
    said = refused(capfd, *words)
    assert "p1.jpg: is shown turned or mirrored (EXIF orientation 6)" in said
    assert "save it upright" in said
    listed = {"training": [{"image": "images/p1.jpg", "drawing": "drawings/p1.png"}]}
    (tmp_path / "d.json").write_text(json.dumps(listed))
    with pytest.raises(SystemExit, match=r"^DataError: 1 problem .*\n  - .*p1.jpg: is shown turned"):
        prepare_drawings(tmp_path / "d.json", lambda: tmp_path, "unlabeled_255", 2, 1, 2)
    (tmp_path / "images" / "p1.jpg").unlink()
    (tmp_path / "drawings" / "p1.png").unlink()
    assert "p2.png: is shown turned or mirrored (EXIF orientation 3)" in refused(capfd, *words)
    with pytest.raises(DataError, match=r"p2.png: is shown turned"):
        read_drawing(tmp_path / "images" / "p2.png")
    (tmp_path / "images" / "p2.png").unlink()
    (tmp_path / "drawings" / "p2.png").unlink()
    assert main(words) == 0


def test_pictures_in_tiff(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of 16 bit, with masks in TIFF; neither needs ITK."""
    write_pictures(tmp_path)
    for name, scale in (("images", 200), ("masks", 1)):
        for file in (tmp_path / name).iterdir():
            values = np.asarray(Image.open(file)).astype(np.uint16) * scale
            Image.fromarray(values).save(file.with_suffix(".TIF"))
            file.unlink()
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--epochs", 1)
    assert main([*words, "--labels", str(tmp_path / "masks")]) == 0
    words = text("predict", tmp_path / "run", tmp_path / "images", "--output_dir", tmp_path / "segmented")
    assert main(words) == 0
    assert len(list((tmp_path / "segmented").glob("*.png"))) == 3
    stack = [Image.new("L", (40, 33))] * 2
    stack[0].save(tmp_path / "images" / "p0.TIF", format="TIFF", save_all=True, append_images=stack[1:])
    capfd.readouterr()
    assert main([*words, "--overwrite"]) == 1
    assert "p0.TIF: holds 2 pictures; save each by itself" in capfd.readouterr().err


def test_colours_of_a_palette_are_no_intensities(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path)
    with Image.open(tmp_path / "images" / "p1.png") as picture:
        picture.convert("RGB").quantize(16).save(tmp_path / "images" / "p1.png")
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--plan_only")
    said = refused(capfd, *words)
    assert "p1.png: its numbers stand for the colours of a palette; save it in grey or colour" in said


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("<c8", "holds complex numbers; save their magnitude"),
        ([("R", "u1"), ("G", "u1"), ("B", "u1")], "holds colours; save it in grey, or a file for each channel"),
    ],
)
def test_what_is_no_intensity_in_nifti(tmp_path: Path, kind: Any, message: str) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 3, 2), kind), OBLIQUE), tmp_path / "a.nii.gz")
    with pytest.raises(CommandError, match=f"a.nii.gz: {message}"):
        load_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.mha", "a.mha: MetaImage is read by ITK; pip install itk, or save it as NIfTI"),
        ("a.nrrd", "a.nrrd: NRRD is read by pynrrd; pip install pynrrd, or save it as NIfTI"),
    ],
)
def test_what_reads_a_format_is_named_where_it_is_missing(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("itk", "nrrd"):
        monkeypatch.setattr(f"medcoarse.transforms.series.has_{package}", False)
    with pytest.raises(CommandError, match=re.escape(message)):
        load_image(tmp_path / name)


def test_images_of_several_spacings_and_classes(tmp_path: Path) -> None:
    """They are resampled for the network; what is predicted lies on the images' own voxels."""
    shapes, steps = [(24, 22, 8), (32, 20, 9), (20, 30, 6)], [(1, 1, 3), (0.8, 1.2, 2.5), (1.3, 0.9, 4)]
    for index, (shape, step) in enumerate(zip(shapes, steps, strict=True)):
        image, mask, drawing = volume(index, shape)
        drawing[-3:-1, 2:20] = 5  # a second class
        affine = OBLIQUE[:, [2, 0, 1, 3]] @ np.diag([*step, 1.0]) if index == 1 else np.diag([-step[0], *step[1:], 1.0])
        for name, values in (("images", image), ("drawings", drawing), ("masks", mask)):
            (tmp_path / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(values, affine), tmp_path / name / f"a{index}.nii.gz")
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--epochs", 1)
    assert main([*words, "--background", str(BACKGROUND)]) == 0
    settings = json.loads((tmp_path / "run" / "configs" / "plan.json").read_text())["settings"]
    assert settings["spacing"] is not None
    assert settings["mapping"] == {"0": None, "1": [1, "positive"], "5": [2, "positive"], "3": [0, "positive"]}
    assert settings["loss#balance"] == 0.5, "much less of class 1 was drawn than of class 5"
    assert json.loads((tmp_path / "run" / "configs" / "train.json").read_text())["loss"]["balance"] == 0.5
    assert main(text("predict", tmp_path / "run", tmp_path / "images", "--output_dir", tmp_path / "out")) == 0
    assert main(text("predict", tmp_path / "run", tmp_path / "images", "--output_dir", tmp_path / "p", "--prob")) == 0
    for image in (tmp_path / "images").iterdir():
        source, found = nib.load(image), nib.load(tmp_path / "out" / image.name)
        assert found.shape == source.shape
        np.testing.assert_allclose(found.affine, source.affine, atol=1e-4)
        soft = nib.load(tmp_path / "p" / image.name).get_fdata()
        assert soft.shape == (*source.shape, 3)
        np.testing.assert_allclose(soft.sum(-1), 1, atol=1e-4)
        np.testing.assert_array_equal(soft.argmax(-1), np.asarray(found.dataobj))


def predicted(bundle: Path, image: Path, out: Path) -> nib.Nifti1Image:
    assert main(text("predict", bundle, image, "--output_dir", out)) == 0
    return nib.load(out / image.name)


def test_an_image_stored_with_its_axes_elsewhere_is_segmented_alike(
    trained: Path, volumes: Path, tmp_path: Path
) -> None:
    """Two axes exchanged and one the other way round; what is predicted is on the voxels that the image has."""
    image = volumes / "images" / "case0.nii.gz"
    first = predicted(trained, image, tmp_path / "first")
    turn = nib.orientations.axcodes2ornt("SAR")
    nib.save(nib.load(image).as_reoriented(nib.io_orientation(nib.load(image).affine)), tmp_path / "ras.nii.gz")
    ras = nib.load(tmp_path / "ras.nii.gz")
    other = ras.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(ras.affine), turn))
    nib.save(other, tmp_path / "other.nii.gz")
    found = predicted(trained, tmp_path / "other.nii.gz", tmp_path / "out")
    assert (found.shape, "".join(nib.aff2axcodes(found.affine))) == (other.shape, "SAR")
    np.testing.assert_allclose(found.affine, other.affine, atol=1e-4)
    back = found.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(found.affine), nib.io_orientation(first.affine))
    )
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(first.dataobj))
    assert 0 < np.asarray(first.dataobj).mean() < 1, "or nothing is told"


def test_an_image_stored_with_its_axes_elsewhere_is_scored_and_reported_on_alike(
    trained: Path, volumes: Path, tmp_path: Path
) -> None:
    """Its mask is stored as it was."""
    image = nib.load(volumes / "images" / "case0.nii.gz")
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(("S", "A", "R"))
    )
    nib.save(image.as_reoriented(turn), tmp_path / "other.nii.gz")
    scores, sizes = [], []
    for number, place in enumerate((volumes / "images" / "case0.nii.gz", tmp_path / "other.nii.gz")):
        out = tmp_path / str(number)
        drawn = {
            key: str(volumes / key / f"case1{end}.nii.gz") for key, end in (("images", ""), ("drawings", "_drawn"))
        }
        items = {
            "training": [{"image": drawn["images"], "drawing": drawn["drawings"]}],
            "test": [{"image": str(place), "label": str(volumes / "masks" / "case0.nii.gz")}],
        }
        (tmp_path / f"{number}.json").write_text(json.dumps(items))
        given = {"datalist": str(tmp_path / f"{number}.json"), "output_dir": str(out)}
        run_bundle(trained, ["train.json", "evaluate.json"], "evaluating", **given)
        scores.append(json.loads((out / "evaluation.json").read_text())["dataset"]["dice_box"])
        assert nib.load(next((out / "predictions").rglob("*.nii.gz"))).shape == nib.load(place).shape
        assert main(text("report", trained, "--cases", place, "--output_dir", out)) == 0
        sizes.append(json.loads((out / "case_report.json").read_text())["cases"])
    assert 0 < scores[0] == pytest.approx(scores[1])
    assert len(sizes[0]) == 1
    assert sizes[0][0]["classes"] == sizes[1][0]["classes"]


def test_an_image_of_another_spacing_is_segmented_alike(trained: Path, volumes: Path, tmp_path: Path) -> None:
    """All images to train on had one spacing; this one has every voxel eight times."""
    image = nib.load(volumes / "images" / "case0.nii.gz")
    first = np.asarray(predicted(trained, volumes / "images" / "case0.nii.gz", tmp_path / "first").dataobj)
    finer = np.kron(image.get_fdata(), np.ones((2, 2, 2))).astype(np.float32)
    affine = image.affine @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] -= image.affine[:3, :3] @ [0.25, 0.25, 0.25]
    nib.save(nib.Nifti1Image(finer, affine), tmp_path / "finer.nii.gz")
    found = predicted(trained, tmp_path / "finer.nii.gz", tmp_path / "out")
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    assert found.shape == finer.shape
    same = np.asarray(found.dataobj) == np.kron(first, np.ones((2, 2, 2)))
    assert same.mean() > 0.85
    seen = ConfigParser()
    seen.read_config(str(trained / "configs" / "inference.json"))
    item = seen.get_parsed_content("preprocessing")({"image": str(tmp_path / "finer.nii.gz")})
    np.testing.assert_allclose(item["image"].shape[1:], image.shape, atol=1)


def test_images_that_are_alike_are_trained_on_to_the_bit_as_they_are_stored(trained: Path) -> None:
    parser = ConfigParser()
    parser.read_config(str(trained / "configs" / "train.json"))
    parser["bundle_root"] = str(trained)
    planned = list(parser.get_parsed_content("train#drawings"))
    parser.parse(True)
    parser["orientation"] = parser["spacing"] = None
    parser.parse(True)
    stored = list(parser.get_parsed_content("train#drawings"))
    assert len(planned) == len(stored) == 3
    for one, other in zip(planned, stored, strict=True):
        for key in ("image", "label", "positive", "shown"):
            assert one[key].applied_operations != other[key].applied_operations
            assert one[key].dtype == other[key].dtype
            assert torch.equal(one[key].as_tensor(), other[key].as_tensor())


def test_images_stored_in_several_orientations_are_trained_on_as_one(volumes: Path, tmp_path: Path) -> None:
    """The drawing of one that is stored otherwise comes along, and so does its mask."""
    for name in ("images", "drawings", "masks"):
        shutil.copytree(volumes / name, tmp_path / name)
    turn = nib.orientations.axcodes2ornt("SRA")
    image = nib.load(tmp_path / "images" / "case0.nii.gz")
    now = nib.orientations.ornt_transform(nib.io_orientation(image.affine), turn)
    nib.save(image.as_reoriented(now), tmp_path / "images" / "case0.nii.gz")
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--plan_only")
    words += text("--labels", tmp_path / "masks", "--background", BACKGROUND, "--validation", 0)
    assert main(words) == 0
    plan = json.loads((tmp_path / "run" / "configs" / "plan.json").read_text())
    assert plan["settings"]["orientation"] == "LAS"
    assert "3 of 4 images lead; the others are turned so" in plan["reasons"]["orientation"]
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "run" / "configs" / "train.json"))
    parser["bundle_root"] = str(tmp_path / "run")
    item = next(iter(parser.get_parsed_content("train#drawings")))
    image, mask, drawing = volume(0)
    np.testing.assert_array_equal(np.asarray(item["shown"][0]), image)
    np.testing.assert_array_equal(np.asarray(item["label"][0]), mask)
    np.testing.assert_array_equal(np.asarray(item["positive"][0]), np.choose(drawing, [255, 1, 255, 0]))


def test_volumes_of_fewer_slices_than_the_network_halves_the_other_axes(tmp_path: Path) -> None:
    """An odd number of them: pictures of the validation are made of whole volumes."""
    for index in range(3):
        for name, values in zip(("images", "masks", "drawings"), volume(index, (64, 64, 9)), strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.diag([1, 1, 3.5, 1])), tmp_path / name / f"a{index}.nii.gz")
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--epochs", 1)
    assert main([*words, "--background", str(BACKGROUND), "--labels", str(tmp_path / "masks")]) == 0
    assert len(list((tmp_path / "run" / "output" / "figures").glob("*.png"))) == 1


def test_single_slices_are_pictures_with_a_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index in range(3):
        image, mask, drawing = volume(index, (40, 33))
        for name, values in (("images", image), ("drawings", drawing), ("masks", mask)):
            (tmp_path / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(values[..., None], OBLIQUE), tmp_path / name / f"a{index}.nii.gz")
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--epochs", 1)
    assert main([*words, "--background", str(BACKGROUND)]) == 0
    assert json.loads((tmp_path / "run" / "configs" / "train.json").read_text())["spatial_dims"] == 2
    for more, end in (
        (["--format", "nii.gz"], ".nii.gz"),
        (["--format", "seg.nrrd"], ".seg.nrrd"),
        (["--prob"], ".nii.gz"),
    ):
        out = tmp_path / "".join(more)
        assert main([*text("predict", tmp_path / "run", tmp_path / "images", "--output_dir", out), *more]) == 0
        if more == ["--prob"]:
            assert nib.load(out / "a0.nii.gz").shape == (40, 33, 1, 2)
            continue
        grid = read_drawing(out / f"a0{end}").grid
        assert grid.shape == (40, 33, 1)
        np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-5)
    assert "ITS PIXELS" not in capfd.readouterr().out
    nib.save(nib.Nifti1Image(volume(0, (40, 33))[0][..., None], np.diag([0.5, 1, 1, 1])), tmp_path / "b.nii.gz")
    assert main(text("predict", tmp_path / "run", tmp_path / "b.nii.gz", "--output_dir", tmp_path / "other")) == 0
    assert "ITS PIXELS HAVE 0.5 x 1 mm, those trained on 1.02 x 1.02, and slices are not" in capfd.readouterr().out


def test_dicom_series_with_drawn_segments(tmp_path: Path) -> None:
    """DICOM in, DICOM SEG drawn on it, names instead of a mapping."""
    masks = segments()
    for number in range(3):
        slices = write_series(tmp_path / "images" / f"s{number}")
        for data in slices:
            data.PixelData = (100 * masks["vessel"][..., data.InstanceNumber - 1].T.astype(np.uint16)).tobytes()
            data.save_as(
                tmp_path / "images" / f"s{number}" / f"{data.InstanceNumber - 1}.dcm", enforce_file_format=True
            )
        (tmp_path / "drawings").mkdir(exist_ok=True)
        drawn = {"vessel": masks["vessel"], "background": masks["edge"]}
        write_dicom_seg(tmp_path / "drawings" / f"s{number}_drawn.dcm", slices, drawn)
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--epochs", 1)
    assert main(words) == 0
    settings = json.loads((tmp_path / "run" / "configs" / "plan.json").read_text())["settings"]
    assert settings["class_names"] == ["background", "vessel"]
    assert settings["intensity"] == "ct"
    assert main(text("predict", tmp_path / "run", tmp_path / "images", "--output_dir", tmp_path / "out")) == 0
    assert len(list((tmp_path / "out").glob("s?.dcm"))) == 3


def test_photographs_in_dicom_are_segmented_as_the_pictures_that_they_are(tmp_path: Path) -> None:
    for index in range(3):
        _, mask, drawing = volume(index, (40, 33))
        colours = np.stack([150 * mask, 20 + 40 * mask, 90 - 30 * mask + index], -1).swapaxes(0, 1).astype(np.uint8)
        for name, values in (("images", colours), ("drawings", drawing.T)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / name / f"p{index}.png")
        (tmp_path / "dicom" / f"p{index}").mkdir(parents=True)
        save(photograph(colours), tmp_path / "dicom" / f"p{index}" / "1.dcm")
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run", "--epochs", 1)
    assert main([*words, "--background", str(BACKGROUND)]) == 0
    for images in ("images", "dicom"):
        assert (
            main(text("predict", tmp_path / "run", tmp_path / images, "--output_dir", tmp_path / "out" / images)) == 0
        )
    for index in range(3):
        with Image.open(tmp_path / "out" / "images" / f"p{index}.png") as picture:
            expected = np.asarray(picture)
        found = hd.seg.segread(tmp_path / "out" / "dicom" / f"p{index}.dcm")
        frames = found.pixel_array.reshape(-1, *expected.shape)
        np.testing.assert_array_equal(frames.any(0), expected == 1)
        assert "PixelMeasuresSequence" not in found.SharedFunctionalGroupsSequence[0]


# --- the ways it goes wrong --------------------------------------------------------------------------------------


def test_no_bundle_or_no_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volumes(tmp_path, 3)
    words = text("predict", tmp_path, tmp_path / "images", "--output_dir", tmp_path / "out")
    assert "no bundle" in refused(capfd, *words)
    assert main(train_words(tmp_path)) == 0
    words[1] = str(tmp_path / "run")
    assert "no weights" in refused(capfd, *words)
    assert "not trained yet" in refused(capfd, "report", tmp_path / "run")


class Hostile:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickle", "pickle in a zip", "cut off", "empty"])
def test_a_pickle_that_poses_as_weights_is_not_run(
    kind: str, trained: Path, volumes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = volumes / f"run of a {kind}"  # beside the data, whose places it knows
    shutil.copytree(trained, run)
    for name in ("model.pt", "full.pt"):
        file = run / "models" / name
        if kind == "pickle":
            file.write_bytes(pickle.dumps({"state": Hostile(tmp_path / "it ran")}))
        elif kind == "pickle in a zip":
            torch.save({"state": Hostile(tmp_path / "it ran")}, file)
        else:
            file.write_bytes(file.read_bytes()[: 1000 * (kind == "cut off")])
    images = volumes / "images"
    said = refused(capfd, "predict", run, images, "--output_dir", tmp_path / "out")
    assert "models/model.pt: holds something else than weights, or is damaged" in said
    words = text("train", images, volumes / "drawings", "--output_dir", run, "--labels", volumes / "masks")
    words += text("--background", BACKGROUND, "--class_names", "box", "--epochs", 3)
    assert "models/full.pt: holds something else than weights, or is damaged" in refused(capfd, *words)
    assert "weights" in refused(capfd, "report", run, "--cases", images)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(device: str, trained: Path, volumes: Path, tmp_path: Path, capfd: Any) -> None:
    words = ["predict", trained, volumes / "images", "--output_dir", tmp_path / "out", "--device", device]
    assert f"--device {device}: PyTorch cannot use it here; pass cpu" in refused(capfd, *words)
    assert not (tmp_path / "out").exists()


def test_formats_that_do_not_fit(trained: Path, volumes: Path, tmp_path: Path, capfd: Any) -> None:
    words = text("predict", trained, volumes / "images", "--output_dir", tmp_path / "out", "--format")
    assert "needs DICOM images" in refused(capfd, *words, "dcm")
    assert "pictures" in refused(capfd, *words, "png")
    assert "no probabilities" in refused(capfd, *words, "seg.nrrd", "--probabilities")


@pytest.mark.parametrize("words", [[], ["paint"], ["train"], ["train", "a"], ["fuse", "a", "--method", "luck"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: medcoarse" in capsys.readouterr().err


def test_an_option_that_is_misspelt_shows_those_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "a", "b", "--output_dir", "c", "--backgroud", "3"])
    said = capsys.readouterr().err
    assert (caught.value.code, "[--background VALUE]" in said) == (2, True)
    assert "unrecognized arguments: --backgroud 3" in said


@pytest.mark.parametrize("command", ["train", "predict", "evaluate", "simulate", "fuse", "budget", "report"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "examples:" in said
    assert f"medcoarse {command} " in said


def test_errors_of_libraries_about_dicom_are_not_repeated() -> None:
    assert "Mustermann" not in _without_header(ValueError("bad name Mustermann^Erika"), series=True)
    assert _without_header(ValueError("bad"), series=False) == "bad"
    assert _without_header(WriteError("another grid"), series=True) == "another grid"


def test_what_monai_wraps_is_said_in_one_line() -> None:
    wrapped = RuntimeError("Failed to instantiate")
    wrapped.__cause__ = ValueError("two\n  lines")
    assert in_one_line(wrapped) == "two lines"
    named = ValueError("a.json: damaged")
    named.__cause__ = KeyError("x")
    assert in_one_line(named) == "a.json: damaged"


def test_stopped_with_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("medcoarse.cli.simulate.run", stop)
    assert main(["simulate", "a", "b"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_as_a_module() -> None:
    """Help comes without torch, which takes seconds."""
    lines = ["import sys, medcoarse.cli.main as m", "try: m.main(['--help'])", "except SystemExit: pass"]
    code = "\n".join([*lines, "assert 'torch' not in sys.modules"])
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    found = subprocess.run(
        [sys.executable, "-m", "medcoarse", "--version"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout.strip()) == (0, "0.1.0")
