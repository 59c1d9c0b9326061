"""The LIDC script on small series in the official layout, made here; the DICOM reader beside an independent one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, SqueezeDimd

from medcoarse.datalist import DataError, load_datalist, verify_datalist
from medcoarse.readers.dicom import first_index, nifti_affine, read_series, resample

pydicom = pytest.importorskip("pydicom", reason="DICOM series are read with pydicom")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "data_prep"))  # scripts there import each other plainly

import cases  # noqa: E402
import lidc  # noqa: E402

SECRET = "Doe^Jane"
SIZE, DEPTH = 40, 9


def write_slice(
    path: Path, number: int, z_mm: float, stored: np.ndarray, uid: str, patient: str, **changed: Any
) -> None:
    """One CT slice; stored values are Hounsfield units + 1024."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{uid}.{number + 1}"
    data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = uid, uid + ".999", "CT"
    data.PatientID, data.PatientName, data.InstanceNumber = patient, SECRET, number + 1
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelSpacing, data.SliceThickness = [0.5, 0.5], 2.5
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-100.0, -50.0, z_mm]
    data.PixelData = stored.astype("<i2").tobytes()
    for name, value in changed.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def z_of(k: int) -> float:
    return -200.0 + 2.5 * k


def hounsfield() -> np.ndarray:
    """Every voxel tells its place: 100 * slice + row - column, padding in a corner."""
    k, y, x = np.mgrid[:DEPTH, :SIZE, :SIZE]
    volume = 100 * k + y - x
    volume[:, :3, :3] = -2000
    return volume


def write_series(folder: Path, patient: str, uid: str, **changed: Any) -> Path:
    """File names and instance numbers run against the position."""
    for k, stored in enumerate(hounsfield() + 1023 + int(uid.rpartition(".")[2])):  # no two series are the same
        number = DEPTH - 1 - k
        write_slice(folder / f"1-{number + 1:03d}.dcm", number, z_of(k), stored, uid, patient, **changed)
    return folder


def square(k: int, top: int, left: int, side: int, inclusion: str = "TRUE", uid: str = "") -> str:
    """The outline around ``side`` x ``side`` pixels whose first is (top, left)."""
    around = range(-1, side + 1)
    edges = [(left + i, top + j) for i in around for j in around if {i, j} & {-1, side}]
    return outline(k, edges, inclusion, uid)


def outline(k: int, edges: Sequence[tuple[int, int]], inclusion: str = "TRUE", uid: str = "") -> str:
    points = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in edges)
    sop = f"<imageSOP_UID>{uid}.{DEPTH - k}</imageSOP_UID>" if uid else ""
    return f"<roi><imageZposition>{z_of(k)}</imageZposition>{sop}<inclusion>{inclusion}</inclusion>{points}</roi>"


def write_xml(path: Path, uid: str, *readers: Sequence[str]) -> None:
    """Readers are lists of nodules, a nodule is its outlines."""
    sessions = "".join(
        "<readingSession>"
        + "".join(f"<unblindedReadNodule>{n}</unblindedReadNodule>" for n in nodules)
        + "</readingSession>"
        for nodules in readers
    )
    header = f"<ResponseHeader><SeriesInstanceUid>{uid}</SeriesInstanceUid></ResponseHeader>"
    text = f'<?xml version="1.0"?><LidcReadMessage xmlns="http://www.nih.gov">{header}{sessions}</LidcReadMessage>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


POINT = outline(7, [(30, 30)])
"""A nodule below 3 mm."""


def scan_folder(root: Path, patient: int) -> Path:
    return root / f"LIDC-IDRI-{patient:04d}" / "01-01-2000-NA-NA-30178" / "3000566.000000-NA-03192"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four patients in the official layout, and a radiograph that is passed over.

    Patient 1: readers 1 and 2 outline one nodule, reader 2 smaller and with a hole, reader 3 another one, reader 4 a
    point only. Patients 2 and 3: one nodule, four and three readers. Patient 4: no nodule, three readers.
    """
    root = tmp_path / "official"
    for patient in range(1, 5):
        write_series(scan_folder(root, patient), f"LIDC-IDRI-{patient:04d}", f"1.2.{patient}")
    uid = "1.2.1"
    write_xml(
        scan_folder(root, 1) / "069.xml",
        uid,
        [square(3, 10, 12, 8, uid=uid) + square(4, 10, 12, 8, uid=uid)],
        [square(3, 10, 12, 6) + square(3, 12, 14, 2, "FALSE")],
        [square(6, 28, 28, 4)],
        [POINT],
    )
    write_xml(scan_folder(root, 2) / "070.xml", "1.2.2", *[[square(2, 10, 10, 6)]] * 4)
    write_xml(scan_folder(root, 3) / "071.xml", "1.2.3", *[[square(2, 10, 10, 6)]] * 3)
    write_xml(scan_folder(root, 4) / "072.xml", "1.2.4", [], [POINT], [])
    radiograph = root / "LIDC-IDRI-0001" / "01-01-2000-NA-NA-1" / "1.000000-NA-1"
    write_slice(radiograph / "1-1.dcm", 0, 0, np.zeros((4, 4)), "1.2.77", "LIDC-IDRI-0001", Modality="DX")
    (radiograph / "1.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov/idri"></IdriReadMessage>')
    return root


def run(*args: object) -> int:
    return lidc.main([str(arg) for arg in args])


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def all_items(out: Path) -> list[dict[str, Any]]:
    return [item for section in cases.SECTIONS for item in load_datalist(out / "datalist.json", section)]


KEYS = ["image", "positive"]
LOAD = Compose([LoadImaged(KEYS), EnsureChannelFirstd(KEYS), SqueezeDimd(KEYS, dim=-1)])


# ---- the series -------------------------------------------------------------------------------------------------


def test_series_is_sorted_by_position_and_in_hounsfield_units(folder: Path):
    series = read_series(sorted(scan_folder(folder, 1).glob("*.dcm")))
    assert np.array_equal(series.volume, np.maximum(hounsfield(), -1024))
    assert series.spacing_mm.tolist() == [2.5, 0.5, 0.5]
    assert series.origin_mm.tolist() == [-100, -50, -200]
    assert series.z_mm == tuple(z_of(k) for k in range(DEPTH))
    assert series.sop_uids == tuple(f"1.2.1.{DEPTH - k}" for k in range(DEPTH))


def test_series_lying_prone(tmp_path: Path):
    """Both in-plane axes turned: rows run to the front, columns to the right; slices still ascend."""
    write_series(
        tmp_path, "LIDC-IDRI-0001", "1.2.1", ImageOrientationPatient=[-1, 0, 0, 0, -1, 0], PixelSpacing=[0.5, 0.7]
    )
    series = read_series(tmp_path.glob("*.dcm"))
    assert np.array_equal(series.volume, np.maximum(hounsfield(), -1024))
    assert series.spacing_mm.tolist() == [2.5, 0.5, 0.7]
    place = series.origin_mm + (series.spacing_mm * [1, 2, 3]) @ series.axes
    assert place == pytest.approx([-100 - 3 * 0.7, -50 - 2 * 0.5, -197.5])


def test_resampling_and_affine_agree_with_simpleitk(folder: Path):
    sitk = pytest.importorskip("SimpleITK")
    series = read_series(scan_folder(folder, 1).glob("*.dcm"))
    centre, shape = (3.37, 18.2, 21.7), (25, 30, 28)  # no halves, which may be rounded either way
    grid = (series.spacing_mm, centre, shape, 1.0)
    affine = nifti_affine(series, first_index(*grid))
    volume = series.volume.astype(np.float32)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(series.spacing_mm[::-1].tolist())
    image.SetOrigin(series.origin_mm.tolist())
    target = sitk.Image(*shape[::-1], sitk.sitkFloat32)
    target.SetOrigin((affine[:3, 3] * [-1, -1, 1]).tolist())
    for order, how, fill in ((1, sitk.sitkLinear, -1024), (0, sitk.sitkNearestNeighbor, 0)):
        expected = sitk.GetArrayFromImage(sitk.Resample(image, target, sitk.Transform(), how, fill))
        found = resample(volume, *grid, order=order, fill=fill)
        assert found.shape == shape
        assert np.abs(found - expected).max() < 0.01
        assert (found == fill).any(), "a part lies outside"
        assert np.abs(resample(series.volume, *grid, order=order, fill=fill) - expected).max() < 0.51, "rounded"


def test_gaps_copies_and_mixtures(tmp_path: Path):
    folder = write_series(tmp_path, "LIDC-IDRI-0001", "1.2.1")
    with pytest.raises(DataError, match="no DICOM slices to read"):
        read_series([])
    files = sorted(folder.glob("*.dcm"))
    assert len(read_series(files[:1]).volume) == 1
    with pytest.raises(
        DataError, match=r"usually 2.5 mm apart, but 5 mm between slices 5 and 6 of 8 .* may be missing"
    ):
        read_series(files[:3] + files[4:])
    (folder / "copy.dcm").write_bytes(files[3].read_bytes())
    with pytest.raises(DataError, match="two slices at one position; remove the copy"):
        read_series(folder.glob("*.dcm"))
    stored = np.zeros((SIZE, SIZE))
    write_slice(folder / "copy.dcm", 77, 0, stored, "1.2.2", "LIDC-IDRI-0001")
    with pytest.raises(DataError, match="differ in SeriesInstanceUID; keep the slices of one series in a folder"):
        read_series(folder.glob("*.dcm"))
    write_slice(folder / "copy.dcm", 77, 0, stored[1:], "1.2.1", "LIDC-IDRI-0001")
    with pytest.raises(DataError, match="differ in shape"):
        read_series(folder.glob("*.dcm"))


# ---- what is written --------------------------------------------------------------------------------------------


def test_crops_by_hand(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Nodule 1 of patient 1: rows 10-17, columns 12-19, slices 3 and 4, 0.5 x 0.5 x 2.5 mm: 4 x 4 x 5 mm."""
    out = tmp_path / "out"
    assert run("--folder", folder, "--output_dir", out) == 0
    assert "4 scans prepared, 0 there already, 0 left out" in capsys.readouterr().out
    items = [i for i in all_items(out) if i["case"]["patient"] == "LIDC-IDRI-0001" and i["case"]["nodule"] == 1]
    assert [item["case"]["slice"] for item in items] == [1, 2, 3, 4, 5]
    assert all(item["marked"] == [1, 1, 0, 0] and item["spacing"] == [1, 1, 1] for item in items)
    loaded = [LOAD(item) for item in items]
    masks = np.stack([np.asarray(item["positive"]) for item in loaded])  # slice, reader, x, y
    assert masks.shape == (5, 4, 180, 180)
    assert masks.sum(axis=(2, 3))[:, 0].tolist() == [16] * 5
    # centre: slice 3.5, row 13.5, column 15.5. Reader 1 fills 4 x 4 pixels around the middle of 180
    x, y = np.nonzero(masks[0, 0])
    assert (x.min(), x.max(), y.min(), y.max()) == (88, 91, 88, 91)
    # reader 2 drew slice 3 only: the lower half. Rows 10-15, columns 12-17 without rows 12-13, columns 14-15
    drawn = masks.sum(axis=(2, 3))[:, 1]
    assert drawn[3:].tolist() == [0, 0]
    assert (drawn[:2] == 8).all(), "3 x 3 mm less 1 x 1 mm"
    assert not masks[0, 1, 89, 89]
    assert not masks[:, 2:].any(), "who did not outline it: background"
    image = np.asarray(loaded[2]["image"])[0]
    assert image[88, 88] == pytest.approx(350 + (13.5 - 3) - (15.5 - 3), abs=0.51)
    assert image[91, 88] == pytest.approx(350 + (13.5 - 3) - (15.5 + 3), abs=0.51), "columns come first"
    assert (image == -1024).sum() > 180 * 180 - 22 * 22, "outside the scan"
    affine = loaded[0]["image"].affine
    assert affine.shape == (3, 3)
    stored = nibabel.load(items[0]["image"]).affine
    low = stored @ [88, 88, 0, 1]  # slice 3.5 - 2 mm; left and posterior turn to right and anterior
    assert low[:3] == pytest.approx([100 - 0.5 * 15.5 + 1.5, 50 - 0.5 * 13.5 + 1.5, z_of(0) + 2.5 * 3.5 - 2])


def test_a_nodule_of_one_reader(folder: Path, tmp_path: Path):
    assert run("--folder", folder, "--output_dir", tmp_path / "out") == 0
    items = [i for i in all_items(tmp_path / "out") if i["case"]["nodule"] == 2]
    assert {i["case"]["patient"] for i in items} == {"LIDC-IDRI-0001"}
    assert all(item["marked"] == [0, 0, 1, 0] for item in items)
    masks = [np.asarray(LOAD(item)["positive"]) for item in items]
    assert all(mask[2].sum() == 4 and not mask[[0, 1, 3]].any() for mask in masks)
    assert len(items) in (2, 3)


def test_scans_without_nodules_and_readers_who_did_not_read(folder: Path, tmp_path: Path):
    assert run("--folder", folder, "--output_dir", tmp_path / "out") == 0
    items = all_items(tmp_path / "out")
    assert {item["case"]["patient"] for item in items} == {f"LIDC-IDRI-000{k}" for k in (1, 2, 3)}
    for item in items:
        masks = np.asarray(LOAD(item)["positive"])
        unread = item["case"]["patient"] == "LIDC-IDRI-0003"
        assert np.unique(masks[3]).tolist() == ([255] if unread else [0, 1] if item["marked"][3] else [0])
    assert {tuple(i["marked"]) for i in items if i["case"]["patient"] == "LIDC-IDRI-0003"} == {(1, 1, 1, 0)}
    sections = {name: load_datalist(tmp_path / "out" / "datalist.json", name) for name in cases.SECTIONS}
    assert verify_datalist(sections, label_keys=("positive",), label_values=(0, 1, 255)) == 5 * len(items)


@pytest.mark.parametrize("neighbours", ["lesion", "background"])
def test_neighbours(neighbours: str, folder: Path, tmp_path: Path):
    one, two = square(3, 5, 5, 6), square(3, 5, 25, 6)
    write_xml(scan_folder(folder, 1) / "069.xml", "1.2.1", [one, two], [one], [], [])
    assert run("--folder", folder, "--output_dir", tmp_path / "out", "--neighbours", neighbours) == 0
    items = [i for i in all_items(tmp_path / "out") if i["case"]["patient"] == "LIDC-IDRI-0001"]
    both = neighbours == "lesion"
    for item in items:
        sums = np.asarray(LOAD(item)["positive"]).sum(axis=(1, 2)).tolist()
        first = item["case"]["nodule"] == 1
        assert item["marked"] == [1, int(first), 0, 0]
        assert sums == [18 if both else 9, 9 if first or both else 0, 0, 0]


def test_nothing_personal_is_written_or_printed(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    bad = scan_folder(folder, 3) / "1-002.dcm"
    bad.write_bytes(bad.read_bytes()[:-50])
    write_series(tmp_path / "official" / "other", "Doe" * 30, "1.2.9")  # too long, which pydicom warns of
    write_xml(tmp_path / "official" / "other" / "1.xml", "1.2.9", [])
    write_series(scan_folder(folder, 5), "LIDC-IDRI-0005", "1.2.5")
    write_xml(scan_folder(folder, 5) / "1.xml", "1.2.5", [square(2, 10, 10, 6)])
    out = tmp_path / "out"
    assert run("--folder", folder, "--output_dir", out, "--skip-incomplete") == 0
    captured = capfd.readouterr()
    assert "its PatientID is not like LIDC-IDRI-0001; only the public collection is read" in captured.err
    assert "1-002.dcm: no whole CT slice (ValueError); fetch it again" in captured.err
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.suffix == ".json")
    for text in (captured.out, captured.err, everything.decode()):
        assert "Doe" not in text
    assert str(tmp_path) not in everything.decode()
    assert {i["case"]["patient"] for i in all_items(out)} == {f"LIDC-IDRI-000{k}" for k in (1, 2, 5)}


def test_patients_with_several_scans(folder: Path, tmp_path: Path):
    second = folder / "LIDC-IDRI-0001" / "01-01-2000-NA-NA-2" / "2"
    write_series(second, "LIDC-IDRI-0001", "1.2.0")
    write_xml(second / "a.xml", "1.2.0", [square(2, 10, 10, 6)])
    assert run("--folder", folder, "--output_dir", tmp_path / "out") == 0
    names = [path.name for path in sorted((tmp_path / "out" / "cases").iterdir())]
    assert names == ["LIDC-IDRI-0001_1", "LIDC-IDRI-0001_2", *(f"LIDC-IDRI-000{k}" for k in (2, 3, 4))]
    where = [s for s in cases.SECTIONS for i in load_datalist(tmp_path / "out" / "datalist.json", s)
             if i["case"]["patient"] == "LIDC-IDRI-0001"]  # fmt: skip
    assert len(set(where)) == 1


def test_annotations_of_their_own_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "xml").mkdir()
    for path in folder.rglob("*.xml"):
        path.rename(tmp_path / "xml" / path.name)
    assert run("--folder", folder, "--output_dir", tmp_path / "out") == 1
    assert "no annotation file (.xml) of a CT scan below it; get them from The Cancer" in capsys.readouterr().err
    assert run("--folder", folder, "--output_dir", tmp_path / "out", "--xml_folder", tmp_path / "xml") == 0
    (tmp_path / "xml" / "070.xml").unlink()
    assert run("--folder", folder, "--output_dir", tmp_path / "out2", "--xml_folder", tmp_path / "xml") == 1
    assert "no annotation file states this series (LIDC-IDRI-0002)" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()


# ---- what stands against the data -------------------------------------------------------------------------------


def test_problems_are_listed_together(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (scan_folder(folder, 1) / "1-004.dcm").unlink()
    write_xml(scan_folder(folder, 2) / "070.xml", "1.2.2", *[[square(2, 10, 10, 6)]] * 5)
    write_xml(scan_folder(folder, 3) / "071.xml", "1.2.3", [square(20, 10, 10, 6)])
    write_xml(scan_folder(folder, 4) / "072.xml", "1.2.4", [square(2, 36, 36, 6)])
    assert run("--folder", folder, "--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "4 problems in the data" in error
    assert "a slice may be missing, fetch the series again" in error
    assert "070.xml: 5 readers, expected 1 to 4" in error
    assert "071.xml: an outline is at z = -150 mm, the series goes from -200 to -180 mm" in error
    assert "072.xml: an outline lies outside the slices; it belongs to another series" in error
    assert not (tmp_path / "out" / "datalist.json").exists()
    assert not list((tmp_path / "out").glob("cases/*"))


def test_damaged_files_and_doubles(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (scan_folder(folder, 1) / "1-001.dcm").write_bytes(b"nothing of the kind")
    (scan_folder(folder, 2) / "070.xml").write_text("<LidcReadMessage>")
    write_xml(folder / "again.xml", "1.2.3", [])
    write_series(folder / "copy", "LIDC-IDRI-0004", "1.2.4")
    assert run("--folder", folder, "--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "1-001.dcm: damaged or no DICOM file (InvalidDicomError); fetch it again" in error
    assert "070.xml: no XML file or cut short" in error
    assert "annotates the same series as" in error
    assert "the same series as" in error
    assert not (tmp_path / "out").exists()


def test_what_is_no_collection(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("--folder", tmp_path / "none") == 1
    assert "no such folder; get the collection from The Cancer Imaging Archive (TCIA)" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run("--folder", tmp_path / "empty") == 1
    assert "no CT series (.dcm) below it" in capsys.readouterr().err
    for wrong in (["--size", "0"], ["--spacing_mm", "0"], ["--max_distance_mm", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            run("--folder", tmp_path, *wrong)


def test_without_pydicom(folder: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert run("--folder", folder, "--output_dir", tmp_path / "out") == 1
    assert "pydicom, which is not installed; pip install pydicom" in capsys.readouterr().err


# ---- going on ---------------------------------------------------------------------------------------------------


def test_second_run_changes_nothing(folder: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert run("--folder", folder, "--output_dir", out) == 0
    before = state(out)
    sources = json.loads((out / "cases" / "LIDC-IDRI-0002" / "case.json").read_text())["source_files"]
    assert len(sources) == DEPTH + 1
    assert json.loads((out / "provenance.json").read_text())["parameters"]["size"] == 180
    monkeypatch.setattr(lidc, "read_series", lambda *args: pytest.fail("read again"))
    assert run("--folder", folder, "--output_dir", out) == 0
    assert "0 scans prepared, 4 there already" in capsys.readouterr().out
    assert state(out) == before


def test_a_run_that_breaks_leaves_no_half_scan(folder: Path, tmp_path: Path, monkeypatch):
    out, save, calls = tmp_path / "out", nibabel.save, []

    def fail(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        save(*args)

    monkeypatch.setattr(nibabel, "save", fail)
    assert run("--folder", folder, "--output_dir", out) == 1
    assert [path.name for path in out.iterdir() if path.name != "provenance.json"] == ["cases"]
    assert list((out / "cases").iterdir()) == []
    monkeypatch.setattr(nibabel, "save", save)
    assert run("--folder", folder, "--output_dir", out) == 0
    assert len(list((out / "cases").iterdir())) == 4


def test_help_teaches():
    command = [sys.executable, str(ROOT / "data_prep" / "lidc.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    assert "outlines lie *outside* a nodule" in done.stdout
    assert "The Cancer Imaging Archive (TCIA)" in done.stdout
