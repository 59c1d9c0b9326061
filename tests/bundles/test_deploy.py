"""Deployment: what our part of it does by itself, and the whole of it where its environment is."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export
from PIL import Image

from tests.bundles.conftest import ROOT

pytest.importorskip("pydicom", minversion="3.0", reason="pip install -e .[dev]")

from compare_series import in_space, labels_on, places, sources_of
from exported import read_metadata, takes_photographs
from photographs import PhotographError, instance_name, rgb_pixels, source_header
from pydicom import config, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, JPEG2000Lossless, generate_uid
from series import SeriesError, find_series, read_series
from synthetic_dicom import SECONDARY_CAPTURE, SECRETS, as_stored, photograph, save, to_rgb, to_ybr
from synthetic_series import OBLIQUE, slices, write

from medcoarse.writers.dicom_seg import write_dicom_seg
from medcoarse.writers.segmentation import make_segmentation

DEPLOY = ROOT / "examples" / "deploy"
CONFIGS = ROOT / "bundles" / "les_av" / "configs"
ENVIRONMENT = os.environ.get("MEDCOARSE_DEPLOY_ENV")


@pytest.fixture(scope="module")
def rgb():
    """A photograph with all colours in it, odd in both directions."""
    return np.random.default_rng(0).integers(0, 256, (33, 41, 3), dtype=np.uint8)


@pytest.fixture
def smooth():
    """What JPEG keeps nearly as it is."""
    rows, columns = np.mgrid[:32, :48]
    return np.stack([4 * columns, 6 * rows, 255 - 3 * columns], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The bundle with random weights, exported."""
    folder = tmp_path_factory.mktemp("exported")
    network = ConfigParser(ConfigParser.load_config_file(CONFIGS / "inference.json")).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "model.pt")
    ckpt_export(
        net_id="network_def",
        filepath=str(folder / "model.ts"),
        ckpt_file=str(folder / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
    )
    return folder / "model.ts"


def written(dataset, path, **bytes_in_place):
    """The dataset as it is read from a file."""
    save(dataset, path, **bytes_in_place)
    return dcmread(path)


def test_colours_there_and_back():
    """Against values that were worked out by hand from the equations of the standard."""
    assert to_ybr(np.array([[[255, 0, 0]]], np.uint8)).tolist() == [[[76, 85, 255]]]
    assert to_rgb(np.array([[[76, 85, 255]]], np.uint8)).tolist() == [[[254, 0, 0]]]


@pytest.mark.parametrize("colours", ["RGB", "YBR_FULL"])
def test_photographs_are_read_as_rgb(rgb, tmp_path, colours):
    read = rgb_pixels(written(photograph(rgb, colours), tmp_path / "a.dcm"))
    assert (read.shape, read.dtype) == (rgb.shape, np.uint8)
    assert np.array_equal(read, as_stored(rgb, colours))
    assert np.abs(read.astype(int) - rgb).max() <= (0 if colours == "RGB" else 3)


def test_jpeg_is_read_as_rgb(smooth, tmp_path):
    read = rgb_pixels(written(photograph(smooth, "YBR_FULL_422"), tmp_path / "a.dcm"))
    assert np.array_equal(read, as_stored(smooth, "YBR_FULL_422"))
    assert np.abs(read.astype(int) - smooth).mean() < 4


def test_lossless_jpeg_2000_is_read_as_it_was(rgb, tmp_path):
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG2000", irreversible=False, mct=1, no_jp2=True)
    dataset = photograph(rgb)
    dataset.PhotometricInterpretation, dataset.file_meta.TransferSyntaxUID = "YBR_RCT", JPEG2000Lossless
    dataset.PixelData = encapsulate([stream.getvalue()])
    assert np.array_equal(rgb_pixels(written(dataset, tmp_path / "a.dcm")), rgb)


def test_planes_of_colour_after_each_other_are_read_too(rgb, tmp_path):
    dataset = photograph(rgb)
    dataset.PlanarConfiguration = 1
    planes = np.moveaxis(rgb, -1, 0)
    dataset.PixelData = planes.tobytes() + bytes(planes.size % 2)
    assert np.array_equal(rgb_pixels(written(dataset, tmp_path / "a.dcm")), rgb)


def change(keyword, value):
    return lambda dataset: setattr(dataset, keyword, value)


BROKEN = {
    "no pixels": (lambda dataset: delattr(dataset, "PixelData"), "has no pixel data"),
    "short": (lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:900]), "cannot be decoded"),
    "frames": (change("NumberOfFrames", 3), "several frames"),
    "monochrome": (change("PhotometricInterpretation", "MONOCHROME2"), "photometric interpretation is not one of RGB"),
    "palette": (change("PhotometricInterpretation", "PALETTE COLOR"), "photometric interpretation"),
    "odd": (change("PhotometricInterpretation", "NOBODY"), "photometric interpretation"),
    "no colours": (lambda dataset: delattr(dataset, "PhotometricInterpretation"), "photometric interpretation"),
    "one sample": (change("SamplesPerPixel", 1), "three samples a pixel"),
    "16 bits": (change("BitsAllocated", 16), "do not have 8 bits"),
    "kind": (change("SOPClassUID", SECONDARY_CAPTURE), "SOP class is none of Ophthalmic Photography 8 Bit Image"),
    "sex": (change("PatientSex", "NORA"), "PatientSex being invalid"),
    "time": (change("StudyTime", "129900"), "StudyTime being invalid"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_photographs_are_refused_in_one_sentence_that_names_nobody(rgb, tmp_path, what, recwarn, capsys):
    damage, message = BROKEN[what]
    dataset = photograph(rgb)
    damage(dataset)
    dataset = written(dataset, tmp_path / "Nobody_Nora.dcm")
    with pytest.raises(PhotographError, match=message) as caught:
        rgb_pixels(dataset)
    text = str(caught.value)
    assert dataset.SOPInstanceUID in text
    assert caught.value.__cause__ is None  # no second message behind it
    printed = text + "".join(capsys.readouterr()) + "".join(str(warning.message) for warning in recwarn)
    assert not [secret for secret in SECRETS if secret.lower() in printed.lower()]


def test_an_impossible_date_of_birth_is_not_quoted(rgb, tmp_path):
    dataset = written(photograph(rgb), tmp_path / "a.dcm", birth_date=b"19701332")
    with (
        config.disable_value_validation(),
        pytest.raises(PhotographError, match="PatientBirthDate being inv") as caught,
    ):
        rgb_pixels(dataset)
    assert "1970" not in str(caught.value).replace(dataset.SOPInstanceUID, "")


def test_an_instance_without_a_valid_uid_is_not_quoted(rgb):
    dataset = photograph(rgb)
    with config.disable_value_validation():
        dataset.SOPInstanceUID = "Nobody"
        assert "Nobody" not in instance_name(dataset)


def test_the_header_for_a_segmentation(rgb, tmp_path):
    dataset = photograph(rgb)
    del dataset.StudyID, dataset.PatientName
    dataset.FrameOfReferenceUID = generate_uid()
    dataset = written(dataset, tmp_path / "a.dcm")
    header = source_header(dataset)
    assert "PixelData" not in header
    assert (header.StudyID, header.PatientName) == ("", "")
    assert len(header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]) == 0
    assert header.SOPInstanceUID == dataset.SOPInstanceUID
    assert header.FrameOfReferenceUID == dataset.FrameOfReferenceUID
    assert "PixelData" in dataset, "the photograph is left as it was"
    assert "SharedFunctionalGroupsSequence" not in dataset
    assert "StudyID" not in dataset


def test_the_exported_model_carries_its_configuration_and_runs(exported):
    assert read_metadata(exported) == json.loads((CONFIGS / "metadata.json").read_text())
    extra = {"inference.json": ""}
    network = torch.jit.load(exported, _extra_files=extra)
    carried = json.loads(extra["inference.json"])
    assert carried["preprocessing"] == json.loads((CONFIGS / "inference.json").read_text())["preprocessing"]
    with torch.no_grad():
        assert network(torch.rand(1, 3, 32, 64)).shape == (1, 2, 32, 64)


def test_a_model_that_was_renamed_after_its_export_is_refused(exported, tmp_path):
    """The SDK would run it without pre-processing."""
    renamed = shutil.copy(exported, tmp_path / "renamed.ts")
    with pytest.raises(ValueError, match=r"no renamed/extra/inference\.json and .* renamed after its export"):
        read_metadata(renamed)
    with pytest.raises(ValueError, match="is not TorchScript"):
        read_metadata(CONFIGS / "inference.json")


@pytest.mark.parametrize("name", sorted(path.parts[-3] for path in ROOT.glob("bundles/*/configs/inference.json")))
def test_inference_is_what_the_sdk_can_take(name):
    """Stock MONAI and the standard library; loader and channels in steps of their own; classes, not probabilities."""
    content = ConfigParser.load_config_file(ROOT / "bundles" / name / "configs" / "inference.json")
    modules = {line.split()[1].split(".")[0] for line in content["imports"]}
    assert modules <= {"monai", "torch", "numpy", *sys.stdlib_module_names}
    steps = [step["_target_"] for step in content["preprocessing"]["transforms"]]
    assert steps[:2] == ["LoadImaged", "EnsureChannelFirstd"]
    assert not [step for step in steps[1:] if "Load" in step or "Save" in step]
    parts = [step for part in ("preprocessing", "postprocessing") for step in content[part]["transforms"]]
    for step in [*parts, content["inferer"], content["network_def"]]:
        assert "." not in step["_target_"]  # MONAI's own registry
    classes = [step for step in content["postprocessing"]["transforms"] if step["_target_"] == "AsDiscreted"]
    assert [step.get("argmax") for step in classes] == [True]


# --- series ------------------------------------------------------------------------------------------------------

NUMBERS = [3, 1, 4, 2]
VOLUME = np.random.default_rng(0).integers(0, 900, (5, 6, 4)).astype(np.int16)


@pytest.fixture
def series(tmp_path) -> Path:
    """Oblique slices that are numbered in no order, and other files beside them."""
    write(
        tmp_path / "in" / "x",
        slices(VOLUME, (1.0, 1.5, 4.0), CTImageStorage, "CT", OBLIQUE, -10, NUMBERS),
        [2, 0, 3, 1],
    )
    save(photograph(np.zeros((8, 8, 3), np.uint8), "RGB", SECONDARY_CAPTURE), tmp_path / "in" / "x" / "report.dcm")
    (tmp_path / "in" / "Nobody.txt").write_text("no DICOM")
    return tmp_path / "in"


def test_series_are_found_and_read_in_the_order_of_space(series):
    ((uid, files),) = find_series(series).items()
    assert len(files) == 4
    array, meta = read_series(uid, files)
    assert np.array_equal(array, VOLUME - 10.0)
    assert (array.dtype, meta["filename_or_obj"]) == (np.float32, uid)
    steps = np.diag([-1, -1, 1, 1]) @ meta["affine"]
    assert np.allclose(steps[:3, :2].T, [np.array(OBLIQUE[:3]), np.array(OBLIQUE[3:]) * 1.5])


def test_labels_are_looked_up_where_their_slices_lie(series):
    """What the check relies on: a map that is put where its slices lie is found there, by UID and by place."""
    ((uid, files),) = find_series(series).items()
    _, meta = read_series(uid, files)
    labels = (VOLUME % 3).astype(np.uint8)
    labels[..., 0] = 0  # an empty slice is not written
    target = series.parent / "seg.dcm"
    write_dicom_seg(target, make_segmentation(labels, meta["affine"], ["background", "a", "b"]), files)
    (series / "x" / "report.dcm").unlink()
    sources = sources_of(series / "x")
    order = np.argsort([np.dot(one.ImagePositionPatient, np.cross(OBLIQUE[:3], OBLIQUE[3:])) for one in sources])
    for found in (labels_on(target, sources), in_space(target, places(sources))):
        assert np.array_equal(found[order].T, labels)


def test_a_series_with_a_gap_is_refused_and_names_nobody(series):
    ((uid, files),) = find_series(series).items()
    with pytest.raises(
        SeriesError, match=f"series {uid} cannot be segmented: the slices of its source form no"
    ) as caught:
        read_series(uid, [file for file in files if dcmread(file).InstanceNumber != 1])
    text = str(caught.value)
    assert str(series) not in text
    assert not [secret for secret in SECRETS if secret in text]


def test_damaged_pixels_are_refused_and_name_nobody(series):
    ((uid, files),) = find_series(series).items()
    files[1].write_bytes(files[1].read_bytes()[:-9])
    with pytest.raises(SeriesError, match=f"series {uid} cannot be segmented: its pixels cannot be read") as caught:
        read_series(uid, files)
    assert not [secret for secret in SECRETS if secret in str(caught.value)]


def test_a_localizer_is_left_out_and_said_so(series, caplog):
    """Three planes that cross, which most studies have: no volume, and no reason to stop."""
    ((uid, files),) = find_series(series).items()
    for number in range(3):
        one = dcmread(files[number])
        one.ImageType, one.SeriesInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.4"
        one.SOPInstanceUID = generate_uid()
        save(one, series / f"Nobody_Nora_plane_{number}.dcm")
    assert list(find_series(series)) == [uid]
    assert [record.getMessage() for record in caplog.records] == ["series 1.2.4 was left out: it is a localizer"]
    for file in files:
        file.unlink()
    with pytest.raises(SeriesError, match="no series in the input folder"):
        find_series(series)


def test_a_folder_without_series(tmp_path):
    with pytest.raises(SeriesError, match="no series in the input folder; this model takes CT Image, MR Image"):
        find_series(tmp_path)


@pytest.mark.parametrize(("name", "wanted"), [("les_av", True), ("drawings", False), ("cityscapes", None)])
def test_which_models_take_photographs(name, wanted):
    metadata = json.loads((ROOT / "bundles" / name / "configs" / "metadata.json").read_text())
    if wanted is None:  # colour, but no vessels
        with pytest.raises(ValueError, match="photographs with vessels"):
            takes_photographs(metadata)
    else:
        assert takes_photographs(metadata) is wanted


def test_inference_is_configured_where_no_image_is(tmp_path):
    """A model is exported with its configuration, and there is nothing of its own at the place where it runs."""
    content = ConfigParser.load_config_file(ROOT / "bundles" / "drawings" / "configs" / "inference.json")
    parser = ConfigParser(content | {"dataset_dir": str(tmp_path / "nowhere")})
    assert parser.get_parsed_content("postprocessing").transforms


@pytest.mark.skipif(not ENVIRONMENT, reason="MEDCOARSE_DEPLOY_ENV is not set: no environment with MONAI Deploy")
def test_the_application_gives_the_masks_of_the_bundle(tmp_path):
    command = [sys.executable, str(DEPLOY / "check.py"), "--env", str(ENVIRONMENT), "--folder", str(tmp_path / "check")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "check" / "report.json").read_text())
    assert (len(report["pictures"]), len(report["dicom"]), len(report["segmentations"])) == (2, 3, 3)
    assert {name: len(one["differing_voxels"]) for name, one in report["series"].items()} == {"ct": 3, "mr": 2}
    assert report["faults"] == []


def test_what_cannot_be_installed_is_told_apart_from_what_differs(tmp_path):
    """Without any place to install from."""
    nowhere = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    command = [
        sys.executable,
        str(DEPLOY / "check.py"),
        "--env",
        str(tmp_path / "env"),
        "--folder",
        str(tmp_path / "x"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=nowhere)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "could not be installed, so nothing was checked" in done.stderr
