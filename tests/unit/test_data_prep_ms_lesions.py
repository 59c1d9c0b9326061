"""The script for the ISBI 2015 challenge, on small files in the official layout; splitting patients."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from medcoarse.datalist import DataError, load_datalist

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "data_prep"))  # scripts there import each other plainly

import cases  # noqa: E402
import ms_lesions  # noqa: E402

SHAPE = (7, 9, 5)
PARTS = ("flair", "mprage", "pd", "t2", "mask1", "mask2")
VISITS = {"training01": 4, "training02": 1, "training03": 2, "training04": 1, "training05": 1}


def path_of(root: Path, patient: str, visit: int, part: str) -> Path:
    if part.startswith("mask"):
        return root / patient / "masks" / f"{patient}_{visit:02d}_{part}.nii"
    return root / patient / "preprocessed" / f"{patient}_{visit:02d}_{part}_pp.nii.gz"


def save(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)


def write(root: Path, visits: Mapping[str, int] = VISITS) -> Path:
    """Images hold 1000 * patient + 100 * visit + part, so that every file is known by its values."""
    rng = np.random.default_rng(0)
    for patient, number in visits.items():
        for visit in range(1, number + 1):
            for index, part in enumerate(PARTS):
                if part.startswith("mask"):
                    array = (rng.random(SHAPE) < 0.1 * (1 + index)).astype(np.uint8)
                else:
                    array = np.full(SHAPE, 1000 * int(patient[-2:]) + 100 * visit + index, np.float32)
                save(path_of(root, patient, visit, part), array)
    (root / "training01" / "orig").mkdir()
    save(root / "training01" / "orig" / "training01_01_flair.nii.gz", np.zeros((2, 2, 2), np.float32))
    (root / "training01" / "preprocessed" / "._training01_01_flair_pp.nii.gz").write_bytes(b"a Mac's")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "training")


def run(*args: object) -> int:
    return ms_lesions.main([str(arg) for arg in args])


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_items_hold_four_modalities_and_two_raters(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run("--folder", folder) == 0
    assert "9 visits of 5 patients, 54 files decoded and verified" in capsys.readouterr().out
    load = Compose([LoadImaged(["image", "positive"]), EnsureChannelFirstd(["image", "positive"])])
    seen = []
    for section in ("training", "validation", "test"):
        for item in load_datalist(folder / "datalist.json", section):
            patient, visit = item["case"]["patient"], item["case"]["visit"]
            loaded = load(item)
            assert loaded["image"].shape == (4, *SHAPE)
            values = [1000 * int(patient[-2:]) + 100 * visit + index for index in range(4)]
            assert loaded["image"][:, 0, 0, 0].tolist() == values
            masks = [nibabel.load(path_of(folder, patient, visit, part)).get_fdata() for part in PARTS[4:]]
            assert np.array_equal(loaded["positive"], np.stack(masks))
            assert item["spacing"] == [1, 1, 1]
            seen.append((patient, visit, section))
    assert [(p, v) for p, v, _ in sorted(seen)] == [(p, v) for p, n in VISITS.items() for v in range(1, n + 1)]
    assert len({(p, s) for p, _, s in seen}) == 5, "a patient is in one section"
    listed = json.loads((folder / "datalist.json").read_text())
    assert listed["annotators"] == ["rater 1", "rater 2"]
    assert listed["modality"] == {"0": "FLAIR", "1": "MPRAGE", "2": "PD", "3": "T2"}
    assert listed["numTraining"] + listed["numTest"] + len(listed["validation"]) == 9
    provenance = json.loads((folder / "provenance.json").read_text())
    assert len(provenance["files"]) == 54
    assert set(provenance["files"]["training02/masks/training02_01_mask2.nii"]) == {"size", "sha256"}
    assert str(folder) not in (folder / "provenance.json").read_text() + (folder / "datalist.json").read_text()


def test_spacing_is_the_headers(tmp_path: Path):
    folder = write(tmp_path)
    for part in PARTS:
        array = np.zeros(SHAPE, np.uint8 if "mask" in part else np.float32)
        save(path_of(folder, "training02", 1, part), array, (0.8, 1.2, 3))
    assert run("--folder", folder, "--output_dir", tmp_path / "elsewhere") == 0
    items = [i for s in cases.SECTIONS for i in load_datalist(tmp_path / "elsewhere" / "datalist.json", s)]
    spacing = {item["case"]["patient"]: item["spacing"] for item in items}
    assert spacing["training02"] == pytest.approx([0.8, 1.2, 3])
    assert spacing["training01"] == [1, 1, 1]
    assert all(Path(name).is_file() for item in items for name in item["image"] + item["positive"])


def test_second_run_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert run("--folder", folder) == 0
    before = state(folder)
    monkeypatch.setattr(ms_lesions, "verify_datalist", lambda *a, **k: pytest.fail("decoded again"))
    assert run("--folder", folder) == 0
    assert "9 visits, unchanged since they were verified" in capsys.readouterr().out
    assert state(folder) == before


def test_folds_test_every_patient_once(folder: Path):
    tested = []
    for fold in range(5):
        assert run("--folder", folder, "--fold", fold) == 0
        items = load_datalist(folder / "datalist.json", "test")
        tested += sorted({item["case"]["patient"] for item in items})
    assert sorted(tested) == sorted(VISITS)


def test_missing_files_are_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    path_of(folder, "training01", 3, "pd").unlink()
    path_of(folder, "training03", 2, "mask2").unlink()
    before = state(folder)
    assert run("--folder", folder) == 1
    error = capsys.readouterr().err
    assert "2 problems in the data:" in error
    assert "training01, visit 3: no preprocessed/training01_03_pd_pp.nii (nor .nii.gz)" in error
    assert "training03, visit 2: no masks/training03_02_mask2.nii (nor .nii.gz)" in error
    assert "leave them out with --skip-incomplete" in error
    assert state(folder) == before
    assert run("--folder", folder, "--skip-incomplete") == 0
    assert "warning: 2 problems" in capsys.readouterr().err
    items = [i for s in cases.SECTIONS for i in load_datalist(folder / "datalist.json", s)]
    assert len(items) == 7
    assert len(json.loads((folder / "provenance.json").read_text())["left_out"]) == 2


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum
    path.write_bytes(content)


def other_size(path: Path) -> None:
    save(path, np.zeros((7, 9, 6), np.uint8))


def other_spacing(path: Path) -> None:
    save(path, np.zeros(SHAPE, np.uint8), (1, 1, 2))


def two_classes(path: Path) -> None:
    save(path, np.full(SHAPE, 2, np.uint8))


def not_a_number(path: Path) -> None:
    save(path, np.full(SHAPE, np.nan, np.float32))


@pytest.mark.parametrize(
    ("part", "damage", "message"),
    [
        ("t2", damaged, "training02_01_t2_pp.nii.gz: damaged or no NIfTI file"),
        ("pd", flipped, "training02_01_pd_pp.nii.gz: damaged or no NIfTI file (BadGzipFile)"),
        ("mask1", damaged, "training02_01_mask1.nii: damaged or no NIfTI file"),
        ("pd", other_size, "training02_01_pd_pp.nii.gz: other size, position or spacing than training02_01_flair_pp"),
        ("pd", other_spacing, "training02_01_pd_pp.nii.gz: other size, position or spacing"),
        ("mask2", other_spacing, "training02_01_mask2.nii: other size, position or spacing than training02_01_mask1"),
        ("mask1", two_classes, "label holds the values {2}, expected only {0, 1}"),
        ("flair", not_a_number, "315 samples NaN or infinite"),
    ],
)
def test_damage_is_found_and_nothing_is_written(folder: Path, part: str, damage, message: str, capsys):
    damage(path_of(folder, "training02", 1, part))
    before = state(folder)
    assert run("--folder", folder) == 1
    assert message in capsys.readouterr().err
    assert state(folder) == before


def test_masks_that_state_another_position_are_noted(folder: Path, capsys: pytest.CaptureFixture[str]):
    for part in ("mask1", "mask2"):
        other_spacing(path_of(folder, "training02", 1, part))
    assert run("--folder", folder) == 0
    assert "note: " in (error := capsys.readouterr().err)
    assert "training02_01_mask1.nii: states another position than training02_01_flair_pp.nii.gz; not used" in error


def test_what_is_no_challenge_folder(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run("--folder", tmp_path / "none") == 1
    assert "no such folder; unpack the training archive of the Longitudinal MS Lesion" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run("--folder", tmp_path / "empty") == 1
    assert "no file like training01_01_flair_pp.nii below it" in capsys.readouterr().err
    copy = path_of(folder, "training01", 1, "pd")
    copy.with_suffix("").write_bytes(b"")
    assert run("--folder", folder) == 1
    assert "the same file as" in capsys.readouterr().err


def test_other_datalists_are_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "datalist.json").write_text("mine")
    assert run("--folder", folder) == 1
    assert "was not made by this script; move it, or name --output_dir" in capsys.readouterr().err
    assert (folder / "datalist.json").read_text() == "mine"


def test_help_teaches():
    command = [sys.executable, str(ROOT / "data_prep" / "ms_lesions.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    assert "training01/preprocessed/training01_01_flair_pp.nii(.gz)" in done.stdout
    assert "register at the challenge's site" in done.stdout


# ---- splitting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [3, 4, 10, 101])
def test_every_patient_is_in_one_section(number: int):
    patients = [f"p{index}" for index in range(number)]
    chosen = cases.split_patients([*patients, *reversed(patients)], cases.Split(seed=3))
    assert sorted(name for part in chosen.values() for name in part) == sorted(patients)
    assert len(chosen["test"]) == len(chosen["validation"]) == max(1, round(0.2 * number))
    assert chosen == cases.split_patients(patients, cases.Split(seed=3))


def test_nobody_left_for_training():
    with pytest.raises(DataError, match="2 patients found, of whom 1 would be for testing and 1 for validation"):
        cases.split_patients(["a", "b"], cases.Split())
    with pytest.raises(DataError, match="nobody for training"):
        cases.split_patients("abcd", cases.Split(0.5, 0.5))
    with pytest.raises(SystemExit, match="2"):
        run("--folder", "x", "--test_ratio", "1")
