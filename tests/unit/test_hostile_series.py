"""Damaged series and LIDC annotations: a sound result or one clear error, in bounded time, quoting nobody."""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from medcoarse.datalist import DataError
from medcoarse.readers.dicom import Series, read_series, require_one_series
from medcoarse.readers.lidc import Reading, nodule_voxels, read_lidc_xml
from medcoarse.transforms.series import LoadImageOrSeriesd
from tests import drawings as made
from tests.unit.test_readers_hostile import EDITS, MAX_MEGABYTES, MAX_SECONDS, QUICK, change, edited

Z = (-10.0, -7.5, -5.0)
NAN = float("nan")
VALUES = st.sampled_from(
    [
        *(None, 0, -1, 1, 65535, 10**9, "", "x", "1.2.3", 1e308, 1e-300, NAN, float("inf"), [], [0, 0], [1, 1, 1]),
        *([1e-9, 1e-9], ["nan", "nan"], [-1, 1], [0] * 6, [1, 0, 0, 1, 0, 0], [2, 0, 0, 0, 2, 0], [NAN] * 3, [NAN] * 6),
    ]
)
STEPS = st.lists(st.tuples(st.lists(st.integers(0, 60), min_size=1, max_size=2), VALUES, st.booleans()), min_size=1)


def bounded(call: Callable[[], Any]) -> Any:
    """What it returns, or its DataError; nothing else is let through."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result = call()
    except DataError as error:
        result = error
    if isinstance(result, DataError):
        text = str(result)
        assert len(text) < 600
        assert "Mustermann" not in text
        assert "4711" not in text
        assert result.__context__ is None or result.__suppress_context__
    assert time.monotonic() - start < MAX_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MAX_MEGABYTES
    return result


def sound(series: Series | DataError) -> None:
    if isinstance(series, DataError):
        return
    assert series.volume.ndim == 3
    assert (series.spacing_mm > 0).all()
    for values in (series.spacing_mm, series.origin_mm, series.axes, np.array(series.z_mm)):
        assert np.isfinite(values).all()
    np.testing.assert_allclose(series.axes @ series.axes.T, np.eye(3), atol=1e-2)


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("series")
    made.write_series(folder)
    return sorted(folder.glob("*.dcm"))


def test_the_valid_series_is_valid(slices: list[Path]):
    assert isinstance(bounded(lambda: read_series(slices)), Series)
    assert bounded(lambda: require_one_series(slices[0].parent)) is None


@pytest.mark.parametrize("number", [1, 3])
def test_mutated_tags_of_slices(number: int, slices: list[Path], tmp_path: Path):
    """All slices alike, for what differs between slices is refused anyway; and only one of them."""
    whole = [pydicom.dcmread(path) for path in slices[:number]]
    paths = [tmp_path / path.name for path in slices[:number]]

    @QUICK
    @given(STEPS, st.booleans())
    def tried(steps: list[tuple[list[int], Any, bool]], every: bool) -> None:
        for n, (data, path) in enumerate(zip(map(copy.deepcopy, whole), paths, strict=True)):
            for place, value, delete in steps[:3] if every or n == 0 else ():
                change(data, place, value, delete)
            try:
                data.save_as(path)
            except Exception:
                return  # pydicom refuses to write it
        sound(bounded(lambda: read_series(paths)))
        bounded(lambda: require_one_series(tmp_path))

    tried()


def test_mutated_bytes_of_a_slice(slices: list[Path], tmp_path: Path):
    content = slices[0].read_bytes()
    paths = [tmp_path / "0.dcm", *slices[1:]]

    @QUICK
    @given(EDITS)
    def tried(edits: list[tuple[float, str, bytes]]) -> None:
        paths[0].write_bytes(edited(content, edits))
        sound(bounded(lambda: read_series(paths)))

    tried()


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("PixelSpacing", ["nan", "1"]),
        ("PixelSpacing", ["0", "1"]),
        ("PixelSpacing", ["-1", "1"]),
        ("PixelSpacing", ["1"]),
        ("SliceThickness", "nan"),
        ("SliceThickness", "-2"),
        ("ImagePositionPatient", ["nan", "0", "0"]),
        ("ImagePositionPatient", ["0", "0"]),
        ("ImageOrientationPatient", ["0"] * 6),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"]),
        ("ImageOrientationPatient", ["2", "0", "0", "0", "2", "0"]),
        ("RescaleSlope", "nan"),
        ("RescaleIntercept", "inf"),
    ],
)
def test_geometry_that_is_none_is_refused(tag: str, value: Any, slices: list[Path], tmp_path: Path):
    data = pydicom.dcmread(slices[0])
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    setattr(data, tag, value)
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=r"a\.dcm: .*"):
        read_series([tmp_path / "a.dcm"])


def test_slices_without_a_place_are_refused_before_they_are_stacked(slices: list[Path], tmp_path: Path):
    for path in slices[:3]:
        data = pydicom.dcmread(path)
        data.ImagePositionPatient = ["0", "0", "nan"]
        data.save_as(tmp_path / path.name)
    with pytest.raises(DataError, match="does not say where it lies"):
        require_one_series(tmp_path)


# --- LIDC --------------------------------------------------------------------------------------------------------

EDGES = "".join(
    f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in [(1, 1), (3, 1), (3, 3), (1, 3)]
)
ROI = (
    f"<roi><imageZposition>-7.5</imageZposition><imageSOP_UID>b</imageSOP_UID><inclusion>TRUE</inclusion>{EDGES}</roi>"
)
XML = (
    '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage uid="x" xmlns="http://www.nih.gov"><ResponseHeader>'
    "<SeriesInstanceUid>1.2</SeriesInstanceUid></ResponseHeader><readingSession><unblindedReadNodule><noduleID>4</noduleID>"
    f"{ROI}{ROI.replace('-7.5', '-5.0')}</unblindedReadNodule></readingSession></LidcReadMessage>"
)


def lidc(path: Path) -> Reading | DataError | None:
    """The reading with all its voxels, which must be some."""
    reading = bounded(lambda: read_lidc_xml(path))
    if isinstance(reading, Reading):
        for nodule in (nodule for reader in reading.readers for nodule in reader):
            assert all(np.isfinite(outline.z_mm) for outline in nodule)
            voxels = bounded(lambda nodule=nodule: nodule_voxels(nodule, ["a", "b", "c"], Z))
            if not isinstance(voxels, DataError):
                assert voxels.dtype.kind == "i"
                assert voxels.shape[1] == 3
    elif isinstance(reading, DataError):
        assert str(reading).startswith(f"{path}: ")
    return reading


def test_mutated_bytes_of_annotations(tmp_path: Path):
    path = tmp_path / "a.xml"
    path.write_text(XML)
    assert isinstance(lidc(path), Reading)

    @QUICK
    @given(EDITS)
    def tried(edits: list[tuple[float, str, bytes]]) -> None:
        path.write_bytes(edited(XML.encode(), edits))
        lidc(path)

    tried()


@pytest.mark.parametrize("old", ["-7.5", "TRUE", "<xCoord>1<", "<yCoord>3<", "1.2", "UTF-8", "<imageSOP_UID>b<"])
def test_absurd_fields_of_annotations(old: str, tmp_path: Path):
    path = tmp_path / "a.xml"
    values = [
        "",
        "nan",
        "inf",
        "1e308",
        "-1",
        "99999999",
        "9" * 30,
        "9" * 5000,
        "1_0",
        "x",
        "\u0661",
        "utf-32",
        "rot13",
    ]
    for value in values:
        for number in (1, 99):
            new = old[: old.index(">") + 1] + value + "<" if old.startswith("<") else value
            path.write_text(XML.replace(old, new, number))
            lidc(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-7.5", "nan", "imageZposition"),
        ("-7.5", "inf", "imageZposition"),
        ("<xCoord>1<", "<xCoord>99999999<", "outside"),
        ("<xCoord>1<", f"<xCoord>{'9' * 30}<", "outside"),
        ("<yCoord>3<", "<yCoord>-2<", "outside"),
        ("UTF-8", "rot13", "no XML file"),
    ],
)
def test_annotations_that_are_refused(old: str, new: str, message: str, tmp_path: Path):
    path = tmp_path / "a.xml"
    path.write_text(XML.replace(old, new, 1))
    error = lidc(path)
    assert isinstance(error, DataError)
    assert message in str(error)


def test_entities_do_not_multiply(tmp_path: Path):
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "aaaaaaaaaa"}">' for n in range(10))
    bomb = XML.replace("<LidcReadMessage", f"<!DOCTYPE x [{entities}]><LidcReadMessage", 1).replace("1.2<", "&e9;<", 1)
    (tmp_path / "a.xml").write_text(bomb)
    assert isinstance(lidc(tmp_path / "a.xml"), DataError)
    outside = XML.replace(
        "<LidcReadMessage", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><LidcReadMessage', 1
    )
    (tmp_path / "b.xml").write_text(outside.replace("1.2<", "&e;<", 1))
    assert isinstance(lidc(tmp_path / "b.xml"), DataError), "nothing of another file is read"


def image_of(path: Path) -> MetaTensor | DataError:
    """A volume with a place in space, or what is wrong with it."""
    image = bounded(lambda: LoadImageOrSeriesd("image")({"image": str(path)})["image"])
    if not isinstance(image, DataError):
        assert image.ndim in (2, 3)  # a single slice is a picture
        assert np.isfinite(np.asarray(image.affine)).all()
        assert abs(np.linalg.det(np.asarray(image.affine))) > 0
    return image


@pytest.mark.parametrize("number", [1, 3])
def test_mutated_tags_of_images(number: int, slices: list[Path], tmp_path: Path):
    whole = [pydicom.dcmread(path) for path in slices[:number]]
    paths = [tmp_path / path.name for path in slices[:number]]

    @QUICK
    @given(STEPS, st.booleans())
    def tried(steps: list[tuple[list[int], Any, bool]], every: bool) -> None:
        for n, (data, path) in enumerate(zip(map(copy.deepcopy, whole), paths, strict=True)):
            for place, value, delete in steps[:3] if every or n == 0 else ():
                change(data, place, value, delete)
            try:
                data.save_as(path)
            except Exception:
                return  # pydicom refuses to write it
        image_of(tmp_path)

    tried()
