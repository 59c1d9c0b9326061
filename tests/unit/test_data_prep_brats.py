"""The BraTS script on small files in both official layouts, and preparing case by case."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, SqueezeDimd

from medcoarse.datalist import DataError, load_datalist

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "data_prep"))  # scripts there import each other plainly

import brats  # noqa: E402
import cases  # noqa: E402

SHAPE = (10, 8, 6)
AFFINE = np.array([[-1, 0, 0, 9], [0, -1, 0, 7], [0, 0, 2, -3], [0, 0, 0, 1]], float)
"""As in BraTS, the first two axes run to the left and to the back; slices are 2 mm apart here."""

OLD = {key: f"_{key}" for key in brats.KEYS}
NEW = dict(zip(brats.KEYS, ("-t2f", "-t1n", "-t1c", "-t2w", "-seg"), strict=True))


def arrays(scan: str) -> dict[str, np.ndarray]:
    """Slices 1 to 4 have brain: 100 * modality + 10 * slice + 1 there, but for columns that tell left from right."""
    enhancing = 3 if scan.startswith("BraTS-") else 4
    found = {}
    for index, key in enumerate(brats.KEYS[:4]):
        found[key] = np.zeros(SHAPE, np.int16)
        for k in range(1, 5):
            found[key][2:8, 2:7, k] = 100 * index + 10 * k + 1
            found[key][2, 2, k] = 7
    found["seg"] = np.zeros(SHAPE, np.uint8)
    found["seg"][3, 3:6, 2] = 1, 2, enhancing
    return found


def write_scan(root: Path, scan: str, ending: str = ".nii.gz", **changed: Any) -> Path:
    names = NEW if scan.startswith("BraTS-") else OLD
    for key, array in {**arrays(scan), **changed}.items():
        path = root / scan / f"{scan}{names[key]}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return root


OLD_SCANS = ("BraTS19_2013_10_1", "BraTS19_CBICA_AAB_1", "BraTS19_TCIA01_147_1")
NEW_SCANS = ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000", "BraTS-GLI-00003-000")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, scan in enumerate(OLD_SCANS):
        write_scan(tmp_path / "official" / ("HGG" if number else "LGG"), scan, ".nii.gz" if number else ".nii")
    return tmp_path / "official"


@pytest.fixture
def new_folder(tmp_path: Path) -> Path:
    for scan in NEW_SCANS:
        write_scan(tmp_path / "new", scan)
    return tmp_path / "new"


def run(*args: object) -> int:
    return brats.main([str(arg) for arg in args])


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def all_items(out: Path) -> list[dict[str, Any]]:
    return [item for section in cases.SECTIONS for item in load_datalist(out / "datalist.json", section)]


KEYS = ["image", "label"]
LOAD = Compose([LoadImaged(KEYS), EnsureChannelFirstd(KEYS), SqueezeDimd(KEYS, dim=-1)])


# ---- what is written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["folder", "new_folder"])
def test_slices(layout: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]):
    source, out = request.getfixturevalue(layout), tmp_path / "out"
    scans = OLD_SCANS if layout == "folder" else NEW_SCANS
    assert run("--folder", source, "--output_dir", out, "--size", 6) == 0
    assert f"{len(scans)} scans prepared, 0 there already, 0 left out" in capsys.readouterr().out
    items = all_items(out)
    assert sorted((i["case"]["scan"], i["case"]["slice"]) for i in items) == [
        (s, k) for s in scans for k in range(1, 5)
    ]
    for item in items:
        loaded, k = LOAD(item), item["case"]["slice"]
        assert loaded["image"].shape == (4, 6, 6)
        assert item["spacing"] == [1, 1, 2]
        # 10 x 8 -> 6 x 6: two columns and one row less on each side, turned to right and anterior
        expected = np.stack([arrays(scans[0])[key][7:1:-1, 6:0:-1, k] for key in brats.KEYS[:4]])
        assert np.array_equal(loaded["image"], expected)
        assert (loaded["image"][:, 5, 4] == 7).all(), "the marked corner"
        stored = arrays(item["case"]["scan"])["seg"][7:1:-1, 6:0:-1, k]
        assert np.array_equal(loaded["label"][0], np.where(stored == 4, 3, stored))
    drawn = [item for item in items if item["case"]["slice"] == 2]
    assert all(np.unique(LOAD(item)["label"]).tolist() == [0, 1, 2, 3] for item in drawn)


def test_parts_keep_their_place_in_space(folder: Path, tmp_path: Path):
    assert run("--folder", folder, "--output_dir", tmp_path / "out", "--size", 6) == 0
    source = nibabel.load(folder / "HGG" / OLD_SCANS[1] / f"{OLD_SCANS[1]}_t1.nii.gz")
    corner = source.affine @ [2, 2, 3, 1]
    slice_3 = nibabel.load(tmp_path / "out" / "cases" / OLD_SCANS[1] / "image_003.nii.gz")
    assert slice_3.shape == (6, 6, 1, 4)
    assert slice_3.affine @ [5, 4, 0, 1] == pytest.approx(corner)
    assert slice_3.get_data_dtype() == np.int16


def test_padding(folder: Path, tmp_path: Path):
    assert run("--folder", folder, "--output_dir", tmp_path / "out") == 0
    image = nibabel.load(tmp_path / "out" / "cases" / OLD_SCANS[0] / "image_001.nii.gz")
    array = image.get_fdata()
    assert array.shape == (192, 192, 1, 4)
    assert np.count_nonzero(array[..., 0]) == 30
    rows, columns = np.nonzero(array[:, :, 0, 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (91 + 2, 91 + 7, 92 + 1, 92 + 5)
    source = nibabel.load(folder / "LGG" / OLD_SCANS[0] / f"{OLD_SCANS[0]}_t1.nii")
    assert image.affine @ [98, 97, 0, 1] == pytest.approx(source.affine @ [2, 2, 1, 1])


def test_volumes(new_folder: Path, tmp_path: Path):
    assert run("--folder", new_folder, "--output_dir", tmp_path / "out", "--size", 6, "--volumes") == 0
    items = all_items(tmp_path / "out")
    assert sorted(item["case"]["scan"] for item in items) == list(NEW_SCANS)
    loaded = Compose([LoadImaged(KEYS), EnsureChannelFirstd(KEYS)])(items[0])
    assert loaded["image"].shape == (4, 6, 6, 6)
    assert loaded["label"].shape == (1, 6, 6, 6)
    assert not loaded["image"][:, :, :, [0, 5]].any()
    assert loaded["image"].pixdim.tolist() == [1, 1, 2]


def test_fractions_are_kept(folder: Path, tmp_path: Path):
    write_scan(folder / "HGG", OLD_SCANS[1], t1=(arrays("x")["t1"] + 0.25).astype(np.float32))
    assert run("--folder", folder, "--output_dir", tmp_path / "out", "--size", 6) == 0
    image = nibabel.load(tmp_path / "out" / "cases" / OLD_SCANS[1] / "image_001.nii.gz")
    assert image.get_fdata()[2, 2, 0, 1] == 111.25


def test_visits_of_a_patient_stay_together(new_folder: Path, tmp_path: Path):
    for fold in range(3):
        out = tmp_path / f"out{fold}"
        assert run("--folder", new_folder, "--output_dir", out, "--size", 6, "--fold", fold) == 0
        where: dict[str, set[str]] = {}
        for section in cases.SECTIONS:
            for item in load_datalist(out / "datalist.json", section):
                where.setdefault(item["case"]["patient"], set()).add(section)
        assert len(where) == 3
        assert all(len(sections) == 1 for sections in where.values())


@pytest.mark.parametrize(
    ("scan", "patient"),
    [
        ("Brats17_2013_2_1", "Brats17_2013_2"),
        ("Brats18_TCIA13_654_1", "Brats18_TCIA13_654"),
        ("BraTS2021_00495", "BraTS2021_00495"),
        ("BraTS-PED-00012-003", "BraTS-PED-00012"),
    ],
)
def test_patients(scan: str, patient: str):
    assert brats.patient_of(scan) == patient


# ---- what stands against the data -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scan", "values", "message"),
    [
        ("BraTS19_2013_10_1", [0, 3, 4], "holds 0, 3, 4, expected 0, 1, 2 and either 3 or 4"),
        ("BraTS-GLI-00000-000", [0, 1, 4], "holds 0, 1, 4, expected 0, 1, 2, 3; .* five classes of BraTS 2024"),
        ("BraTS19_2013_10_1", [0, 0.5], "holds 0, 0.5, expected"),
    ],
)
def test_unexpected_classes(scan: str, values: list[float], message: str):
    with pytest.raises(DataError, match=message):
        brats.classes(np.array(values), scan)


def test_missing_modality(folder: Path, new_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "HGG" / OLD_SCANS[1] / f"{OLD_SCANS[1]}_t1ce.nii.gz").unlink()
    assert run("--folder", folder, "--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"{OLD_SCANS[1]}: no t1ce; unpack the archive again\n" in error
    assert not (tmp_path / "out").exists()
    for scan in NEW_SCANS:
        (new_folder / scan / f"{scan}-seg.nii.gz").unlink()
    assert run("--folder", new_folder, "--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "4 problems in the data" in error
    assert "no seg; unpack the archive again, or is it a validation or test archive?" in error


def test_scans_can_be_left_out(new_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (new_folder / NEW_SCANS[1] / f"{NEW_SCANS[1]}-t2w.nii.gz").unlink()
    damaged = new_folder / NEW_SCANS[0] / f"{NEW_SCANS[0]}-t1n.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    write_scan(new_folder, "BraTS-GLI-00004-000")
    out = tmp_path / "out"
    assert run("--folder", new_folder, "--output_dir", out, "--size", 6, "--skip-incomplete") == 0
    captured = capsys.readouterr()
    assert "3 scans prepared, 0 there already, 2 left out" in captured.out
    assert f"{damaged}: damaged or no NIfTI file" in captured.err
    assert captured.err.count("no t2w") == 1, "told once"
    assert len(all_items(out)) == 12
    record = json.loads((out / "provenance.json").read_text())
    assert len(record["left_out"]) == 2
    assert str(tmp_path) not in json.dumps(record)
    assert sorted(path.name for path in (out / "cases").iterdir()) == [*NEW_SCANS[2:], "BraTS-GLI-00004-000"]


def test_other_grids_and_blank_scans(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_scan(folder / "HGG", OLD_SCANS[1], t1=np.zeros((10, 8, 7), np.int16))
    blank = {key: np.zeros(SHAPE, np.int16) for key in brats.KEYS}
    write_scan(folder / "HGG", OLD_SCANS[2], **blank)
    assert run("--folder", folder, "--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"{OLD_SCANS[1]}_t1.nii.gz: not on the grid of {OLD_SCANS[1]}_flair.nii.gz" in error
    assert f"{OLD_SCANS[2]}: all modalities are 0 everywhere" in error
    assert not (tmp_path / "out" / "datalist.json").exists()
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["finished"] is False


def test_the_segmentation_of_odd_name(folder: Path):
    path = folder / "HGG" / OLD_SCANS[1] / f"{OLD_SCANS[1]}_seg.nii.gz"
    path.rename(path.with_name("W39_1998.09.19_Segm.nii.gz"))
    assert brats.find_scans(folder)[OLD_SCANS[1]]["seg"].name == "W39_1998.09.19_Segm.nii.gz"


def test_what_is_no_brats_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("--folder", tmp_path / "none") == 1
    assert "no such folder; unpack a training archive of the Brain Tumor Segmentation" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run("--folder", tmp_path / "empty") == 1
    assert "no file like BraTS19_2013_10_1_flair.nii.gz or BraTS-GLI" in capsys.readouterr().err
    write_scan(folder / "copy", OLD_SCANS[1])
    assert run("--folder", folder) == 1
    assert "the same file as" in capsys.readouterr().err


# ---- going on ---------------------------------------------------------------------------------------------------


def test_second_run_changes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    out = tmp_path / "out"
    assert run("--folder", folder, "--output_dir", out, "--size", 6) == 0
    before = state(out)
    record = json.loads((out / "provenance.json").read_text())
    assert record["finished"] is True
    assert record["cases"][OLD_SCANS[0]]["num_source_files"] == 5
    sources = json.loads((out / "cases" / OLD_SCANS[0] / "case.json").read_text())["source_files"]
    assert set(sources[f"LGG/{OLD_SCANS[0]}/{OLD_SCANS[0]}_seg.nii"]) == {"size", "sha256"}
    monkeypatch.setattr(brats, "read_scan", lambda *args: pytest.fail("read again"))
    assert run("--folder", folder, "--output_dir", out, "--size", 6) == 0
    assert "0 scans prepared, 3 there already, 0 left out" in capsys.readouterr().out
    assert state(out) == before


def test_a_stopped_run_goes_on(folder: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    out, save, calls = tmp_path / "out", nibabel.save, []

    def stop(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 12:  # in the middle of the second scan
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setattr(nibabel, "save", stop)
    assert run("--folder", folder, "--output_dir", out, "--size", 6) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    assert [path.name for path in (out / "cases").iterdir()] == [OLD_SCANS[0]]
    assert not (out / "datalist.json").exists()
    monkeypatch.setattr(nibabel, "save", save)
    (out / "cases" / f".{OLD_SCANS[1]}.draft").mkdir()  # as a run that was killed leaves it
    (out / "cases" / f".{OLD_SCANS[1]}.draft" / "image_001.nii.gz").write_bytes(b"half")
    first = state(out / "cases" / OLD_SCANS[0])
    assert run("--folder", folder, "--output_dir", out, "--size", 6) == 0
    assert "2 scans prepared, 1 there already" in capsys.readouterr().out
    assert state(out / "cases" / OLD_SCANS[0]) == first
    assert sorted(path.name for path in (out / "cases").iterdir()) == sorted(OLD_SCANS)
    assert len(all_items(out)) == 12


def test_damage_and_changed_sources_are_made_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert run("--folder", folder, "--output_dir", out, "--size", 6) == 0
    whole = state(out / "cases")
    label = out / "cases" / OLD_SCANS[0] / "label_002.nii.gz"
    label.write_bytes(b"")
    (out / "cases" / OLD_SCANS[1] / "image_001.nii.gz").unlink()
    write_scan(folder / "HGG", OLD_SCANS[2], t1=arrays("x")["t1"].astype(np.float64))
    assert run("--folder", folder, "--output_dir", out, "--size", 6) == 0
    assert "3 scans prepared, 0 there already, 0 left out" in capsys.readouterr().out[-400:]
    assert label.stat().st_size == len(whole[label][1])
    assert set(state(out / "cases")) == set(whole)


def test_other_folders_and_parameters(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert run("--folder", folder, "--output_dir", out) == 1
    assert "is not empty and holds no data set of this script; choose another folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert run("--folder", folder, "--output_dir", out, "--size", 6) == 0
    before = state(out)
    assert run("--folder", folder, "--output_dir", out, "--size", 8) == 1
    assert "holds another data set: parameters is {'size': 6" in capsys.readouterr().err
    assert state(out) == before


def test_help_teaches():
    command = [sys.executable, str(ROOT / "data_prep" / "brats.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    assert "BraTS-GLI-00000-000-t2f.nii.gz" in done.stdout
    assert "register with the Brain Tumor Segmentation challenge" in done.stdout
