"""Images of one file a channel, as nnU-Net names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medcoarse.cli.channels import are_channels, join_channels
from medcoarse.cli.main import CommandError, main
from medcoarse.readers.formats import read_drawing
from tests.bundles.commands import refused, text
from tests.cases_folders import BACKGROUND, OBLIQUE, volume, write_volumes
from tests.drawings import SHAPE, write_dicom_seg, write_series


def write_channels(folder: Path, number: int = 3) -> Path:
    """images/case0_0000.nii.gz, case0_0001.nii.gz, ...: the second channel is the first one times ten."""
    write_volumes(folder, number)
    for path in sorted((folder / "images").iterdir()):
        stem = path.name.removesuffix(".nii.gz")
        path.rename(folder / "images" / f"{stem}_0000.nii.gz")
        nib.save(nib.Nifti1Image(10 * volume(int(stem[4:]))[0], OBLIQUE), folder / "images" / f"{stem}_0001.nii.gz")
    return folder


def train_words(folder: Path, *more: Any) -> list[str]:
    words = text("train", folder / "images", folder / "drawings", "--output_dir", folder / "run")
    return words + text("--background", BACKGROUND, *more)


def test_planned_trained_and_predicted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_channels(tmp_path)
    assert main(train_words(tmp_path, "--labels", tmp_path / "masks", "--epochs", 1)) == 0
    plan = json.loads((tmp_path / "run" / "configs" / "plan.json").read_text())
    assert (plan["images"], plan["channels"], plan["settings"]["in_channels"]) == (3, ["0000", "0001"], 2)
    datalist = json.loads((tmp_path / "run" / "datalist.json").read_text())
    for item in [*datalist["training"], *datalist["validation"]]:
        assert [Path(file).name[-11:] for file in item["image"]] == ["0000.nii.gz", "0001.nii.gz"]
        assert all((tmp_path / "run" / file).is_file() for file in item["image"])
    assert "mean_dice" in json.loads((tmp_path / "run" / "output" / "metrics.json").read_text())["validation"][-1]
    words = text("predict", tmp_path / "run", tmp_path / "images", "--output_dir", tmp_path / "out")
    assert main(words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"case{k}.nii.gz" for k in range(3)),
        "labels.txt",
    ]
    found = nib.load(tmp_path / "out" / "case0.nii.gz")
    assert found.shape == volume(0)[1].shape
    np.testing.assert_allclose(found.affine, OBLIQUE, atol=1e-5)
    assert main(text("evaluate", tmp_path / "out", tmp_path / "masks")) == 0
    (tmp_path / "images" / "case1_0001.nii.gz").unlink()
    said = refused(capfd, *words, "--overwrite")
    assert "must have the same channels, 0000, 0001" in said
    assert "0000: case1.nii.gz" in said


def test_channels_that_differ(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_channels(tmp_path)
    second = tmp_path / "images" / "case1_0001.nii.gz"
    nib.save(nib.Nifti1Image(volume(1)[0][:-1], OBLIQUE), second)
    said = refused(capfd, *train_words(tmp_path, "--plan_only"))
    assert "case1_0001.nii.gz lies on another grid than case1_0000.nii.gz" in said
    second.unlink()
    said = refused(capfd, *train_words(tmp_path, "--plan_only"))
    assert "images of several files must have the same channels, 0000, 0001" in said
    assert "there are 0000: case1.nii.gz; 0000, 0001: case0.nii.gz, case2.nii.gz" in said


def test_channels_that_differ_by_rounding_and_in_format(tmp_path: Path) -> None:
    write_channels(tmp_path)
    for number in range(3):
        path = tmp_path / "images" / f"case{number}_0001.nii.gz"
        rounded = OBLIQUE.copy()
        rounded[0, 3] += 5e-4
        values = np.asarray(nib.load(path).dataobj)
        path.unlink()
        nib.save(nib.Nifti1Image(values, rounded), path.with_name(f"case{number}_0001.nii"))
    assert main(train_words(tmp_path, "--epochs", 1)) == 0
    words = text("predict", tmp_path / "run", tmp_path / "images", "--output_dir", tmp_path / "out")
    assert main(words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"case{k}.nii.gz" for k in range(3)),
        "labels.txt",
    ]


def test_channels_that_are_dicom_series(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "drawings").mkdir()
    for number in range(3):
        slices = write_series(tmp_path / "images" / f"s{number}_0000")
        shutil.copytree(tmp_path / "images" / f"s{number}_0000", tmp_path / "images" / f"s{number}_0001")
        write_dicom_seg(tmp_path / "drawings" / f"s{number}.dcm", slices)
    words = text("train", tmp_path / "images", tmp_path / "drawings", "--output_dir", tmp_path / "run")
    assert main([*words, "--background", "edge", "--epochs", "1"]) == 0, capfd.readouterr().err
    assert (
        "DICOM says so" in json.loads((tmp_path / "run" / "configs" / "plan.json").read_text())["reasons"]["intensity"]
    )
    (tmp_path / "images" / "s1_0001" / "2.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"Mustermann")
    words = text("predict", tmp_path / "run", tmp_path / "images", "--output_dir", tmp_path / "out")
    said = refused(capfd, *words)
    assert "1 of 3 images" in said
    assert "Muster" not in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["s0.dcm", "s2.dcm"]
    assert read_drawing(tmp_path / "out" / "s0.dcm").grid.shape[:2] == SHAPE[:2]


def test_numbers_of_images_stay_numbers_of_images(tmp_path: Path) -> None:
    """Pictures of a film, say: each has a drawing of its own."""
    write_volumes(tmp_path, 3)
    for number in range(3):
        (tmp_path / "images" / f"case{number}.nii.gz").rename(tmp_path / "images" / f"film_000{number}.nii.gz")
        drawing = tmp_path / "drawings" / f"case{number}_drawn.nii.gz"
        drawing.rename(tmp_path / "drawings" / f"film_000{number}_drawn.nii.gz")
    assert main(train_words(tmp_path, "--plan_only")) == 0
    plan = json.loads((tmp_path / "run" / "configs" / "plan.json").read_text())
    assert (plan["images"], plan["settings"]["in_channels"]) == (3, 1)
    assert "channels" not in plan


def test_one_channel_with_its_number() -> None:
    files = [Path("a_0000.nii.gz"), Path("b_1_0000.nii.gz")]
    assert are_channels(files, [Path("a.nii.gz"), Path("b_1.nii.gz")])
    assert not are_channels(files, [Path("a_0000.nii.gz"), Path("b_1_0000.nii.gz")])
    assert join_channels(files)[0] == {Path("a.nii.gz"): files[:1], Path("b_1.nii.gz"): files[1:]}
    with pytest.raises(CommandError, match=r"no number: c\.nii\.gz"):
        join_channels([*files, Path("c.nii.gz")])
