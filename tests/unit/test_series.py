"""Folders with a DICOM series, as they come from scanners, computers and discs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid

from medcoarse.cli.facts import load_image, modality_of
from medcoarse.cli.files import find_images, is_series
from medcoarse.cli.main import CommandError, main
from medcoarse.datalist import DataError
from medcoarse.own_data import prepare_drawings
from medcoarse.readers.dicom import require_one_series, series_files
from medcoarse.readers.formats import frame_of_reference
from tests.drawings import PATIENT, SHAPE, write_dicom_seg, write_series


def write_strays(folder: Path) -> None:
    """What operating systems and discs leave beside the slices."""
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "._0.dcm").write_bytes(b"\0\5\x16\7")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "0_notes.txt").write_text("left")
    index = Dataset()
    index.file_meta = FileMetaDataset()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    index.FileSetID, index.DirectoryRecordSequence = "DISC", Sequence()
    index.save_as(folder / "DICOMDIR", enforce_file_format=True)


def test_strays_are_no_slices(tmp_path: Path) -> None:
    series = tmp_path / "disc" / "series"
    slices = write_series(series)
    write_strays(series)
    shutil.copy(series / "DICOMDIR", tmp_path / "disc" / "DICOMDIR")
    assert [path.name for path in series_files(series)] == [f"{k}.dcm" for k in range(SHAPE[2])]
    assert is_series(series)
    assert not is_series(tmp_path / "disc"), "a disc has an index beside its folders"
    assert find_images([tmp_path]) == [series]
    assert modality_of(series) == "CT"
    assert frame_of_reference(series) == slices[0].FrameOfReferenceUID
    image = load_image(series)
    assert tuple(image.shape) == (1, *SHAPE)
    np.testing.assert_array_equal(np.unique(image), np.arange(SHAPE[2]))


def test_training_and_prediction_with_strays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "drawings").mkdir()
    for number in range(3):
        slices = write_series(tmp_path / "images" / f"s{number}")
        write_dicom_seg(tmp_path / "drawings" / f"s{number}.dcm", slices)
        write_strays(tmp_path / "images" / f"s{number}")
    words = ["train", str(tmp_path / "images"), str(tmp_path / "drawings"), "--background", "edge", "--epochs", "1"]
    assert main([*words, "--output_dir", str(tmp_path / "run")]) == 0, capfd.readouterr().err
    words = ["predict", str(tmp_path / "run"), str(tmp_path / "images"), "--output_dir", str(tmp_path / "out")]
    assert main(words) == 0, capfd.readouterr().err
    assert len(list((tmp_path / "out").glob("s?.dcm"))) == 3


def test_the_frame_of_reference_is_compared_in_spite_of_strays(tmp_path: Path) -> None:
    write_series(tmp_path / "images" / "s")
    write_strays(tmp_path / "images" / "s")
    (tmp_path / "drawings").mkdir()
    write_dicom_seg(tmp_path / "drawings" / "s.dcm", write_series(tmp_path / "other"))
    content = {"training": [{"image": "images/s", "drawing": "drawings/s.dcm"}]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    mapping = {"vessel": [1, "positive"], "edge": [0, "positive"]}
    with pytest.raises(SystemExit, match="frame of reference"):
        prepare_drawings(tmp_path / "datalist.json", lambda: tmp_path, mapping, 3, 1, 2)


def change(path: Path, **values: Any) -> None:
    data = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(data, name, value)
    data.save_as(path)


def second_series(folder: Path) -> None:
    write_series(folder / "more")
    for path in (folder / "more").iterdir():
        path.rename(folder / f"second_{path.name}")
    (folder / "more").rmdir()


def lost_slice(folder: Path) -> None:
    (folder / "2.dcm").unlink()


def copied_slice(folder: Path) -> None:
    shutil.copy(folder / "2.dcm", folder / "copy.dcm")


def turned_slice(folder: Path) -> None:
    change(folder / "2.dcm", ImageOrientationPatient=[0, 1, 0, 0, 0, 1])


def slice_nowhere(folder: Path) -> None:
    data = pydicom.dcmread(folder / "2.dcm")
    del data.ImagePositionPatient
    data.save_as(folder / "2.dcm")


def numbered_otherwise(folder: Path) -> None:
    change(folder / "2.dcm", InstanceNumber=9)


FAULTS: dict[Callable[[Path], None], str] = {
    second_series: "holds 2 DICOM series; keep the files of one series in a folder",
    lost_slice: "a slice may be missing",
    copied_slice: "two slices at one position",
    turned_slice: "differ in ImageOrientationPatient",
    slice_nowhere: "2.dcm: does not say where it lies",
}


@pytest.mark.parametrize("spoil", FAULTS)
def test_what_is_no_single_volume(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    require_one_series(tmp_path / "s")
    spoil(tmp_path / "s")
    with pytest.raises(DataError, match=FAULTS[spoil]) as caught:
        require_one_series(tmp_path / "s")
    assert PATIENT not in str(caught.value)
    with pytest.raises(CommandError, match=FAULTS[spoil]):
        load_image(tmp_path / "s")


def test_series_that_run_down_or_are_one_slice_or_one_file_are_fine(tmp_path: Path) -> None:
    write_series(tmp_path / "down", reverse=True)
    require_one_series(tmp_path / "down")
    numbered_otherwise(tmp_path / "down")
    require_one_series(tmp_path / "down")
    write_series(tmp_path / "one")
    for path in series_files(tmp_path / "one")[1:]:
        path.unlink()
    require_one_series(tmp_path / "one")
    require_one_series(tmp_path / "one" / "0.dcm")
    require_one_series(tmp_path)


def test_several_series_are_refused_everywhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "drawings").mkdir()
    for number in range(3):
        slices = write_series(tmp_path / "images" / f"s{number}")
        write_dicom_seg(tmp_path / "drawings" / f"s{number}.dcm", slices)
    train = ["train", str(tmp_path / "images"), str(tmp_path / "drawings"), "--background", "edge", "--epochs", "1"]
    assert main([*train, "--output_dir", str(tmp_path / "run")]) == 0
    second_series(tmp_path / "images" / "s1")
    capfd.readouterr()
    assert main([*train, "--output_dir", str(tmp_path / "second")]) == 1
    said = capfd.readouterr().err
    assert "s1: holds 2 DICOM series" in said
    words = ["predict", str(tmp_path / "run"), str(tmp_path / "images"), "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--format", "nii.gz"]) == 1
    said = capfd.readouterr().err
    assert "s1: holds 2 DICOM series" in said
    assert "1 of 3 images" in said
    assert PATIENT not in said
    mapping = {"vessel": [1, "positive"], "edge": [0, "positive"]}
    with pytest.raises(SystemExit, match="holds 2 DICOM series"):
        prepare_drawings(tmp_path / "run" / "datalist.json", lambda: tmp_path, mapping, 3, 1, 2)
