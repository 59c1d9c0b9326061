"""DICOM series are read in the order of space, whatever their files and instance numbers say."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.pixels import pixel_array

pytest.importorskip("highdicom", reason="pip install -e .[dev]")

from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from medcoarse.cli.facts import load_image, modality_of
from medcoarse.cli.main import CommandError
from medcoarse.datalist import DataError
from medcoarse.readers.dicom import read_series, require_one_series, series_files
from medcoarse.readers.formats import frame_of_reference, read_drawing
from medcoarse.transforms.series import LoadImageOrSeriesd, SeriesReader
from medcoarse.writers.dicom_seg import source_grid, source_headers
from medcoarse.writers.segmentation import WriteError
from tests.drawings import AFFINE, PATIENT, SHAPE, label_map, segments, write_dicom_seg, write_nifti, write_series

SPACE = np.broadcast_to(np.arange(SHAPE[2], dtype=np.float32), SHAPE)
"""What `write_series` has in its slices: their number along the normal."""


def renumbered(folder: Path, numbers: tuple[int, ...]) -> Path:
    for k, (number, data) in enumerate(zip(numbers, write_series(folder), strict=True)):
        data.InstanceNumber = number
        data.save_as(folder / f"{k}.dcm", enforce_file_format=True)
    return folder


@pytest.mark.parametrize("numbers", [(1, 2, 3, 4, 5), (5, 4, 3, 2, 1), (1, 3, 5, 2, 4), (7, 7, 7, 7, 7)])
def test_slices_ascend_along_their_normal(tmp_path, numbers):
    image = LoadImageOrSeriesd("image")({"image": str(renumbered(tmp_path / "series", numbers))})["image"]
    np.testing.assert_array_equal(np.asarray(image), SPACE)
    np.testing.assert_allclose(np.asarray(image.affine), AFFINE, atol=1e-5)


def test_what_is_in_order_is_read_as_monai_reads_it(tmp_path):
    write_series(tmp_path / "series", axes=(0.6, 0.8, 0, 0, 0, -1))
    ours = LoadImageOrSeriesd("image")({"image": str(tmp_path / "series")})["image"]
    theirs = LoadImaged("image", reader="PydicomReader")({"image": str(tmp_path / "series")})["image"]
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert ours.meta.keys() == theirs.meta.keys()
    np.testing.assert_allclose(np.asarray(ours.affine), np.asarray(theirs.affine))


def test_files_of_a_series_in_any_order(tmp_path):
    write_series(tmp_path / "series")
    files = [tmp_path / "series" / f"{number}.dcm" for number in (3, 0, 4, 1, 2)]
    reader = SeriesReader()
    array, meta = reader.get_data(reader.read(files))
    np.testing.assert_array_equal(array, SPACE)
    np.testing.assert_allclose(meta["affine"], AFFINE, atol=1e-5)


def test_segmentations_beside_the_images_are_left_out(tmp_path):
    write_dicom_seg(tmp_path / "a.dcm", write_series(tmp_path / "series"), segments())
    (tmp_path / "a.dcm").rename(tmp_path / "series" / "a.dcm")
    (tmp_path / "series" / "notes.txt").write_text("no DICOM")
    np.testing.assert_array_equal(np.asarray(load(tmp_path / "series")), SPACE)


def test_several_series_are_channels(tmp_path):
    folders = [
        renumbered(tmp_path / name, numbers) for name, numbers in (("a", (5, 4, 3, 2, 1)), ("b", (1, 3, 5, 2, 4)))
    ]
    image = LoadImageOrSeriesd("image")({"image": [str(folder) for folder in folders]})["image"]
    np.testing.assert_array_equal(np.asarray(image), np.stack([SPACE, SPACE]))


def test_one_slice(tmp_path):
    write_series(tmp_path / "series")
    assert load(tmp_path / "series" / "2.dcm").shape == SHAPE[:2]


def test_other_images_are_read_as_ever(tmp_path):
    np.testing.assert_array_equal(np.asarray(load(write_nifti(tmp_path / "a.nii.gz"))), label_map())


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "693_J2KI.dcm"])
def test_pydicoms_own_files_lie_where_their_headers_say(name):
    path = get_testdata_file(name)
    header = pydicom.dcmread(path)
    image = load_image(Path(path))
    values = header.pixel_array.T * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
    np.testing.assert_allclose(np.asarray(image)[0], values)
    across, down = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
    between_rows, between_columns = map(float, header.PixelSpacing)
    place = np.asarray(header.ImagePositionPatient, float) + 3 * between_columns * across + 2 * between_rows * down
    np.testing.assert_allclose((np.asarray(image.affine) @ [3, 2, 0, 1])[:3], place * [-1, -1, 1], rtol=1e-5)


@pytest.mark.parametrize("name", ["SC_rgb_rle.dcm", "SC_rgb_small_odd.dcm", "SC_ybr_full_422_uncompressed.dcm"])
def test_colours_of_a_photograph_are_channels(name):
    path = get_testdata_file(name)
    image = load_image(Path(path))
    np.testing.assert_array_equal(np.asarray(image), pixel_array(path).transpose(2, 1, 0))
    assert tuple(image.meta["spatial_shape"]) == image.shape[1:]


def test_dicom_whose_numbers_or_frames_are_no_slices(tmp_path):
    with pytest.raises(CommandError, match=r"examples_palette\.dcm: its numbers stand for the colours of a palette"):
        load_image(Path(get_testdata_file("examples_palette.dcm")))
    with pytest.raises(CommandError, match=r"rtdose\.dcm: has several frames; split it into single slices"):
        load_image(Path(get_testdata_file("rtdose.dcm")))
    for data in write_series(tmp_path / "series"):
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.PixelData = 3 * data.PixelData
        data.save_as(tmp_path / "series" / f"{data.InstanceNumber - 1}.dcm", enforce_file_format=True)
    with pytest.raises(CommandError, match="is one of 5 pictures in colour"):
        load_image(tmp_path / "series")


def load(path: Path):
    return LoadImageOrSeriesd("image")({"image": str(path)})["image"]


def test_what_is_no_volume_is_refused_and_nobody_named(tmp_path):
    gap, two, short = (tmp_path / name for name in ("gap", "two", "short"))
    for folder in (gap, two, short):
        write_series(folder)
    (gap / "2.dcm").unlink()
    write_series(two / "x")
    for file in (two / "x").iterdir():
        file.rename(two / f"x{file.name}")
    (short / "1.dcm").write_bytes((short / "1.dcm").read_bytes()[:200])
    for folder, text in ((gap, "no regular volume"), (two, "2 DICOM series"), (short, "no regular volume")):
        with pytest.raises(DataError, match=text) as caught:
            SeriesReader().read(str(folder))
        assert PATIENT not in str(caught.value)


def test_dicom_and_other_files_in_one_step(tmp_path):
    item = {"image": str(renumbered(tmp_path / "series", (5, 4, 3, 2, 1)))}
    item["label"] = str(write_nifti(tmp_path / "a.nii.gz"))
    found = LoadImageOrSeriesd(["image", "label"])(item)
    np.testing.assert_array_equal(np.asarray(found["image"]), SPACE)
    np.testing.assert_array_equal(np.asarray(found["label"]), label_map())


def write_volume(path: Path, values: np.ndarray, shift: float = 0.0) -> str:
    affine = AFFINE.copy()
    affine[0, 3] += shift
    nib.save(nib.Nifti1Image(np.asarray(values, np.float32), affine), path)
    return str(path)


def test_channels_are_what_monai_makes_of_them(tmp_path):
    files = [write_volume(tmp_path / f"{k}.nii.gz", (k + 1) * SPACE) for k in range(3)]
    load = [Compose([kind("image"), EnsureChannelFirstd("image")]) for kind in (LoadImageOrSeriesd, LoadImaged)]
    ours, theirs = (each({"image": files})["image"] for each in load)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    np.testing.assert_array_equal(np.asarray(ours.affine), np.asarray(theirs.affine))
    assert ours.dtype == theirs.dtype
    assert ours.meta.keys() == theirs.meta.keys()
    assert ours.meta["filename_or_obj"] == theirs.meta["filename_or_obj"]


def test_channels_whose_affines_differ_by_rounding_and_in_format(tmp_path):
    second = write_volume(tmp_path / "b.nii", 2 * SPACE, shift=5e-4)
    image = LoadImageOrSeriesd("image")({"image": [write_volume(tmp_path / "a.nii.gz", SPACE), second]})["image"]
    np.testing.assert_array_equal(np.asarray(image), [SPACE, 2 * SPACE])
    np.testing.assert_allclose(np.asarray(image.affine), AFFINE, atol=1e-5)
    write_series(tmp_path / "series")
    image = LoadImageOrSeriesd("image")({"image": [str(tmp_path / "series"), second]})["image"]
    np.testing.assert_array_equal(np.asarray(image), [SPACE, 2 * SPACE])
    with pytest.raises(DataError, match=r"c\.nii lies on another grid than b\.nii"):
        LoadImageOrSeriesd("image")({"image": [second, write_volume(tmp_path / "c.nii", SPACE, shift=0.01)]})


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagePositionPatient", "SliceThickness"])
def test_text_in_place_of_numbers_is_not_quoted(tmp_path, keyword):
    write_series(tmp_path / "series")
    for file in (tmp_path / "series").iterdir():
        write_name(file, keyword)
    with pytest.raises(DataError, match=r"series: a DICOM header has a value that cannot be read") as caught:
        load(tmp_path / "series")
    assert "Muster" not in str(caught.value)
    with pytest.raises(WriteError, match=r"a value that cannot be read") as caught:
        source_grid(source_headers(tmp_path / "series"), tmp_path / "series")
    assert "Muster" not in str(caught.value)


@pytest.mark.parametrize("keyword", ["RescaleSlope"])
def test_nor_of_a_single_slice(tmp_path, keyword):
    write_series(tmp_path / "series")
    write_name(tmp_path / "series" / "0.dcm", keyword)
    with pytest.raises(DataError, match=r"0\.dcm: damaged, or no DICOM image") as caught:
        load(tmp_path / "series" / "0.dcm")
    assert "Muster" not in str(caught.value)


def write_name(file: Path, keyword: str) -> None:
    """Put a name where a number belongs."""
    data = pydicom.dcmread(file)
    tag = pydicom.tag.Tag(keyword)
    raw = pydicom.dataelem.RawDataElement(tag, dictionary_VR(tag), 10, b"Mustermann", 0, False, True)
    data._dict[tag] = raw  # past pydicom's checks
    data.save_as(file)


def test_reports_and_outlines_beside_the_images_are_left_out(tmp_path):
    for k, data in enumerate(write_series(tmp_path / "series")[:3]):
        data.Modality, data.SeriesInstanceUID = ("SR", "RTSTRUCT", "PR")[k], f"1.2.{k}"
        del data.ImagePositionPatient, data.PixelData
        data.save_as(tmp_path / "series" / f"{k}_made_of_it.dcm", enforce_file_format=True)
    require_one_series(tmp_path / "series")
    np.testing.assert_array_equal(np.asarray(load(tmp_path / "series")), SPACE)


def test_segmentations_are_no_series(tmp_path):
    slices = write_series(tmp_path / "series")
    write_dicom_seg(tmp_path / "a.dcm", slices, segments())
    (tmp_path / "a.dcm").rename(tmp_path / "series" / "-a.dcm")  # the first by name
    require_one_series(tmp_path / "series")
    assert modality_of(tmp_path / "series") == "CT"
    assert frame_of_reference(tmp_path / "series") == slices[0].FrameOfReferenceUID
    assert tuple(load_image(tmp_path / "series").shape) == (1, *SHAPE)


def test_directions_may_differ_by_rounding(tmp_path):
    """Of 0.00004999 and 0.00005001 the fourth digits differ."""
    for k, data in enumerate(write_series(tmp_path / "series")):
        data.ImageOrientationPatient = [1, 0.00004999 + 0.00000002 * (k % 2), 0, 0, 1, 0]
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.save_as(tmp_path / "series" / f"{k}.dcm", enforce_file_format=True)
    require_one_series(tmp_path / "series")
    np.testing.assert_array_equal(np.asarray(load(tmp_path / "series")), SPACE)
    assert read_series(series_files(tmp_path / "series")).volume.shape == SHAPE[::-1]
    data.ImageOrientationPatient = [0.99, 0.141, 0, -0.141, 0.99, 0]
    data.save_as(tmp_path / "series" / f"{k}.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match="differ in ImageOrientationPatient"):
        require_one_series(tmp_path / "series")


@pytest.mark.parametrize(
    ("exif", "turned"), [(b"Exif\0\0no such thing", False), (b"Exif\0\0MM\0*", False), (None, True)]
)
def test_exif_that_cannot_be_read_turns_nothing(tmp_path, exif, turned):
    """Viewers show such a picture as it is stored."""
    picture, good = Image.new("L", (3, 2)), Image.Exif()
    good[274] = 6
    picture.save(tmp_path / "a.png", exif=exif or good)
    if turned:
        with pytest.raises(Exception, match="is shown turned"):
            LoadImageOrSeriesd("image")({"image": str(tmp_path / "a.png")})
    else:
        assert LoadImageOrSeriesd("image")({"image": str(tmp_path / "a.png")})["image"].shape[:2] == (3, 2)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_turned_tiff_is_refused(tmp_path, compression):
    """Pillow turns it, some kinds of it into what nobody sees."""
    picture = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10))
    picture.save(tmp_path / "a.tif", tiffinfo={274: 6}, compression=compression)
    with pytest.raises(Exception, match="is shown turned"):
        LoadImageOrSeriesd("image")({"image": str(tmp_path / "a.tif")})
    with pytest.raises(DataError, match="is shown turned"):
        read_drawing(tmp_path / "a.tif")
