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
from tests.unit.test_readers_hostile import EDITS, EXAMPLES, MAX_MEGABYTES, MAX_SECONDS, QUICK, change, edited

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
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
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
    assert time.process_time() - start < MAX_SECONDS
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


def image_of(path: Path) -> MetaTensor | DataError:
    """A volume with a place in space, or what is wrong with it."""
    image = bounded(lambda: LoadImageOrSeriesd("image")({"image": str(path)})["image"])
    if not isinstance(image, DataError):
        assert image.ndim in (2, 3)  # a single slice is a picture
        assert np.isfinite(np.asarray(image.affine)).all()
        assert abs(np.linalg.det(np.asarray(image.affine))) > 0
    return image


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("series")
    made.write_series(folder)
    return sorted(folder.glob("*.dcm"))


def changed(path: Path, new: Path, tags: dict[str, Any]) -> Path:
    data = pydicom.dcmread(path)
    for tag, value in tags.items():
        setattr(data, tag, value)
        if value is None:
            delattr(data, tag)
    data.save_as(new)
    return new


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydicom writes what it would refuse."""
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)


def test_the_valid_series_is_valid(slices: list[Path]):
    assert isinstance(bounded(lambda: read_series(slices)), Series)
    assert bounded(lambda: require_one_series(slices[0].parent)) is None


@pytest.mark.parametrize("number", [1, 3])
def test_mutated_tags(number: int, slices: list[Path], tmp_path: Path, careless: None):
    """Of all slices alike, for what differs between slices is refused anyway, and of one alone; as CT and as image."""
    whole = [pydicom.dcmread(path) for path in slices[:number]]
    paths = [tmp_path / path.name for path in slices[:number]]
    read = []

    @QUICK
    @given(STEPS, st.booleans())
    def tried(steps: list[tuple[list[int], Any, bool]], every: bool) -> None:
        for n, (data, path) in enumerate(zip(map(copy.deepcopy, whole), paths, strict=True)):
            for place, value, delete in steps[:3] if every or n == 0 else ():
                change(data, place, value, delete)
            try:
                data.save_as(path)
            except Exception:
                return  # pydicom cannot write it, and promises no types
        series = bounded(lambda: read_series(paths))
        sound(series)
        bounded(lambda: require_one_series(tmp_path))
        image_of(tmp_path)
        read.append(isinstance(series, Series))

    tried()
    assert len(read) > EXAMPLES // 4, "most were not even written"
    assert {True, False} == set(read)


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
def test_geometry_that_is_none_is_refused(tag: str, value: Any, slices: list[Path], tmp_path: Path, careless: None):
    path = changed(slices[0], tmp_path / "a.dcm", {tag: value})
    with pytest.raises(DataError, match=rf"{tmp_path}.*"):
        read_series([path])


@pytest.mark.parametrize("thickness", [None, "", "0", "-2", "nan"])
def test_only_a_single_slice_needs_its_thickness(
    thickness: str | None, slices: list[Path], tmp_path: Path, careless: None
):
    paths = [changed(path, tmp_path / path.name, {"SliceThickness": thickness}) for path in slices]
    assert read_series(paths).spacing_mm[0] == pytest.approx(made.SPACING[2])
    if thickness in ("-2", "nan"):
        with pytest.raises(DataError, match="SliceThickness of its only slice"):
            read_series(paths[:1])
    else:
        assert read_series(paths[:1]).spacing_mm[0] == 1


def test_directions_of_few_digits_are_those_of_unit_vectors(slices: list[Path], tmp_path: Path):
    paths = [
        changed(path, tmp_path / path.name, {"ImageOrientationPatient": ["0.70", "0.70", "0", "-0.71", "0.71", "0"]})
        for path in slices
    ]
    series = read_series(paths)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(series.axes, [[0, 0, 1], [-half, half, 0], [half, half, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImageOrientationPatient": ["1", "0", "0", "0.5", "0.866", "0"]}, "not at right angles"),
        ({"ImageOrientationPatient": ["2", "0", "0", "0", "2", "0"]}, "directions have no length"),
        ({"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}, "no whole CT slice"),
        ({"RescaleSlope": "1e308"}, "no whole CT slice"),
    ],
)
def test_what_is_no_slice(tags: dict[str, Any], message: str, slices: list[Path], tmp_path: Path, careless: None):
    data = pydicom.dcmread(slices[1])
    content = data.PixelData * int(tags.get("SamplesPerPixel", 1))
    path = changed(slices[1], tmp_path / "a.dcm", {**tags, "PixelData": content})
    with pytest.raises(DataError, match=message):
        read_series([path])


def test_slices_at_the_ends_of_the_world_are_no_series(slices: list[Path], tmp_path: Path):
    ends = ["-1.7e308", "1.7e308"]
    paths = [
        changed(path, tmp_path / path.name, {"ImagePositionPatient": ["0", "0", end]})
        for path, end in zip(slices, ends, strict=False)
    ]
    for call in (lambda: read_series(paths), lambda: require_one_series(tmp_path)):
        with pytest.raises(DataError, match="too far apart"):
            call()


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
    "<SeriesInstanceUid>1.2</SeriesInstanceUid></ResponseHeader><readingSession>"
    "<unblindedReadNodule><noduleID>Mustermann 4711</noduleID>"
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
        ("<xCoord>1<", "<xCoord>1025<", "xCoord is no pixel"),
        ("<xCoord>1<", "<xCoord>1.5<", "xCoord is no pixel"),
        ("<xCoord>1<", f"<xCoord>{'9' * 30}<", "xCoord is no pixel"),
        ("<yCoord>3<", "<yCoord>-2<", "yCoord is no pixel"),
        ("<yCoord>3<", "<yCoord>Mustermann 4711<", "edgeMap without one yCoord that is a number"),
        ("TRUE", "Mustermann 4711", "inclusion is neither"),
        ("UTF-8", "rot13", "no XML file"),
    ],
)
def test_annotations_that_are_refused(old: str, new: str, message: str, tmp_path: Path):
    path = tmp_path / "a.xml"
    path.write_text(XML.replace(old, new, 1))
    error = lidc(path)
    assert isinstance(error, DataError)
    assert message in str(error)


def test_outlines_may_leave_the_slice_by_one_pixel(tmp_path: Path):
    (tmp_path / "a.xml").write_text(XML.replace("<xCoord>1<", "<xCoord>-1<"))
    reading = lidc(tmp_path / "a.xml")
    assert isinstance(reading, Reading)
    assert reading.readers[0][0][0].points.min() == -1


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
