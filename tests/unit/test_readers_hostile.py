"""Damaged, absurd and hostile drawings: a drawing or one clear error, in bounded time and memory, quoting nobody.

The number of mutated inputs for each format is MEDCOARSE_FUZZ_EXAMPLES, by default 60 (bytes) and 60 (fields).
"""

from __future__ import annotations

import copy
import json
import os
import resource
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.data.utils  # noqa: F401  readers import it when they need it, which would count as their time
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medcoarse.datalist import DataError
from medcoarse.readers.claims import as_claims, claimed
from medcoarse.readers.drawing import Drawing, Grid
from medcoarse.readers.formats import READERS, read_drawing
from medcoarse.readers.masks import mask_labels
from tests import drawings as made

EXAMPLES = int(os.environ.get("MEDCOARSE_FUZZ_EXAMPLES", "60"))
MAX_SECONDS, MAX_MEGABYTES = 10, 1500
REFERENCES = {"rtstruct": Grid(made.SHAPE, made.AFFINE), "geojson": Grid(made.PICTURE)}
REFERENCES["coco"] = Grid(made.PICTURE, name="image.png")
JSON = ("labelme", "coco", "cityscapes", "geojson")
TEXT_HEADERS = ("nrrd", "seg_nrrd", "metaimage")
DICOM = ("dicom_seg", "rtstruct")
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="MEDCOARSE_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("valid")
    slices = made.write_series(folder / "series")
    files = {
        "nifti": made.write_nifti(folder / "a.nii"),
        "nifti_gz": made.write_nifti(folder / "a.nii.gz"),
        "nrrd": made.write_itk(folder / "a.nrrd"),
        "seg_nrrd": made.write_seg_nrrd(folder / "a.seg.nrrd", layered=True),
        "metaimage": made.write_itk(folder / "a.mha"),
        "png": made.write_picture(folder / "a.png", palette=True),
        "tiff": made.write_picture(folder / "a.tif"),
        "bmp": made.write_picture(folder / "a.bmp"),
        "dicom_seg": made.write_dicom_seg(folder / "seg.dcm", slices),
        "rtstruct": made.write_rtstruct(folder / "rt.dcm", slices[0].FrameOfReferenceUID),
    }
    for kind in JSON:
        files[kind] = made.write_json(folder / f"{kind}.json", getattr(made, kind)())
    return files


KINDS = (*TEXT_HEADERS, "nifti", "nifti_gz", "png", "tiff", "bmp", *DICOM, *JSON)


def read(path: Path, kind: str) -> Drawing | DataError:
    """A drawing or a DataError that is one clear sentence; all else fails."""
    name = {"nifti_gz": "nifti", "seg_nrrd": "nrrd"}.get(kind, kind)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result: Drawing | DataError
    try:
        result = read_drawing(path, REFERENCES.get(name), name)
    except DataError as error:
        result = error
    assert time.process_time() - start < MAX_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MAX_MEGABYTES
    if isinstance(result, DataError):
        text = str(result)
        assert text.startswith(f"{path}: ")
        assert len(text) < 600
        assert "Mustermann" not in text
        assert "4711" not in text
        assert result.__context__ is None or result.__suppress_context__, "what the library says is shown"
        return result
    for layer in result.layers:
        assert layer.values.shape == result.grid.shape
        assert layer.values.dtype.kind == "u"
    assert result.grid.affine is None or np.isfinite(result.grid.affine).all()
    return result


def test_all_readers_are_here():
    assert {{"nifti_gz": "nifti", "seg_nrrd": "nrrd"}.get(kind, kind) for kind in KINDS} == set(READERS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_valid_files_are_valid(kind: str, valid: dict[str, Path]):
    assert isinstance(read(valid[kind], kind), Drawing)


# ---- fuzzing ----

EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["set", "insert", "delete", "cut", "repeat"]), st.binary(max_size=8)),
    min_size=1,
    max_size=6,
)


def edited(content: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    for where, what, data in edits:
        place = int(where * len(content))
        if what == "set":
            content = content[:place] + data + content[place + len(data) :]
        elif what == "insert":
            content = content[:place] + data + content[place:]
        elif what == "delete":
            content = content[:place] + content[place + 1 + len(data) :]
        elif what == "cut":
            content = content[:place]
        else:
            content = content[:place] + content[max(0, place - 50) :]
    return content


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_bytes(kind: str, valid: dict[str, Path], tmp_path: Path):
    content, path = valid[kind].read_bytes(), tmp_path / valid[kind].name

    @QUICK
    @given(EDITS)
    def tried(edits: list[tuple[float, str, bytes]]) -> None:
        path.write_bytes(edited(content, edits))
        read(path, kind)

    tried()


VALUES = [None, True, -1, 0, 1, 2, 255, 65536, 10**9, 10**30, 1.5, 1e308, float("nan"), float("inf"), -float("inf")]
VALUES += ["", "x", "1", [], {}, [[]], [[1, 2]], [None], {"a": 1}]
HOSTILE = st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(max_size=5)
STEPS = st.lists(st.tuples(st.lists(st.integers(0, 50), max_size=7), HOSTILE, st.booleans()), min_size=1, max_size=3)


def put(node: Any, path: list[int], value: Any, delete: bool) -> None:
    """Replace or delete one place in nested lists and dictionaries."""
    for depth, step in enumerate(path):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = keys[step % len(keys)]
        if depth == len(path) - 1 or not isinstance(node[key], dict | list):
            if delete:
                del node[key]
            else:
                node[key] = copy.deepcopy(value)
            return
        node = node[key]


@pytest.mark.parametrize("kind", JSON)
def test_mutated_json_fields(kind: str, tmp_path: Path):
    path = tmp_path / "a.json"

    @QUICK
    @given(STEPS)
    def tried(steps: list[tuple[list[int], Any, bool]]) -> None:
        content = getattr(made, kind)()
        for place, value, delete in steps:
            put(content, place, value, delete)
        path.write_text(json.dumps(content))
        read(path, kind)

    tried()


@pytest.mark.parametrize("kind", TEXT_HEADERS)
def test_mutated_header_lines(kind: str, valid: dict[str, Path], tmp_path: Path):
    content, path = valid[kind].read_bytes(), tmp_path / valid[kind].name
    end = content.index(b"\n\n") if "nrrd" in kind else content.index(b"LOCAL")
    lines = content[:end].decode().split("\n")
    numbers = st.sampled_from(["0", "-1", "3", "99999999999", "nan", "inf", "1e308", "x", "", "(1,0,0)", "/etc/passwd"])
    edits = st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 9), numbers | st.text(max_size=6)), min_size=1, max_size=3
    )

    @QUICK
    @given(edits)
    def tried(edits: list[tuple[int, int, str]]) -> None:
        header = list(lines)
        for line, word, value in edits:
            words = header[line % len(header)].split(" ")
            words[word % len(words)] = value
            header[line % len(header)] = " ".join(words)
        path.write_bytes("\n".join(header).encode("utf-8", "replace") + content[end:])
        read(path, kind)

    tried()


@pytest.mark.parametrize("kind", DICOM)
def test_mutated_dicom_tags(kind: str, valid: dict[str, Path], tmp_path: Path):
    path = tmp_path / "a.dcm"
    whole = pydicom.dcmread(valid[kind])
    values = st.sampled_from(
        [None, 0, -1, 1, 65535, 10**9, "", "x", "1.2.3", 1e308, float("nan"), [], [0, 0], [1e-9, 1e-9]]
    )
    steps = st.lists(st.tuples(st.lists(st.integers(0, 60), min_size=1, max_size=6), values, st.booleans()), min_size=1)

    @QUICK
    @given(steps)
    def tried(steps: list[tuple[list[int], Any, bool]]) -> None:
        data = copy.deepcopy(whole)
        for place, value, delete in steps[:3]:
            change(data, place, value, delete)
        try:
            data.save_as(path)
        except Exception:
            return  # pydicom refuses to write it
        read(path, kind)

    tried()


def change(data: pydicom.Dataset, place: list[int], value: Any, delete: bool) -> None:
    """Set or delete one element, in a sequence if the place leads there."""
    for step in place:
        elements = list(data)
        if not elements:
            return
        element = elements[step % len(elements)]
        if element.VR == "SQ" and len(element.value) and step != place[-1]:
            data = element.value[step % len(element.value)]
            continue
        if delete:
            del data[element.tag]
        elif element.VR != "SQ":
            try:
                data[element.tag].value = value
            except Exception:
                del data[element.tag]
        return


# ---- known attacks ----


def say(path: Path, kind: str, message: str) -> None:
    error = read(path, kind)
    assert isinstance(error, DataError), "read as if nothing were wrong"
    assert message in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short_at_any_place(kind: str, valid: dict[str, Path], tmp_path: Path):
    content, path = valid[kind].read_bytes(), tmp_path / valid[kind].name
    step = max(1, len(content) // 12)
    for end in range(0, len(content) - 60, step):
        path.write_bytes(content[:end])
        assert isinstance(read(path, kind), DataError), end


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("nrrd", b"sizes: 7 6 5", b"sizes: 70000 60000 50000", "declares 70000 x 60000 x 50000 voxels"),
        ("nrrd", b"sizes: 7 6 5", b"sizes: 700 600 500", "declares 210000000 bytes of voxels"),
        ("nrrd", b"sizes: 7 6 5", b"sizes: 7 6 6", "210 bytes of voxels, expected 252"),
        ("nrrd", b"encoding: gzip", b"data file: /etc/passwd\nencoding: raw", "in another file"),
        ("nrrd", b"encoding: gzip", b"encoding: ascii", "expected gzip or raw"),
        ("nrrd", b"left-posterior-superior", b"scanner-xyz", "does not say where left is"),
        ("nrrd", b"(0,0.69999999999999996,0)", b"(0.5,0,0)", "define no place in space"),
        ("seg_nrrd", b"Segment0_LabelValue:=1", b"Segment0_LabelValue:=-1", "damaged or no NRRD file"),
        ("seg_nrrd", b"Segment0_Layer:=0", b"Segment0_Layer:=7", "damaged or no NRRD file"),
        ("metaimage", b"DimSize = 7 6 5", b"DimSize = 7 6 5 1", "declares 7 x 6 x 5 x 1 voxels"),
        ("metaimage", b"DimSize = 7 6 5", b"DimSize = 70000 600 500", "declares 70000 x 600 x 500 voxels"),
        ("metaimage", b"DimSize = 7 6 5", b"DimSize = 700 600 500", "declares 210000000 bytes of voxels"),
        ("metaimage", b"ElementDataFile = LOCAL", b"ElementDataFile = /etc/passwd", "in another file"),
        ("metaimage", b"Offset = 10", b"Offset = nan", "define no place in space"),
    ],
)
def test_absurd_headers(kind: str, old: bytes, new: bytes, message: str, valid: dict[str, Path], tmp_path: Path):
    content = valid[kind].read_bytes()
    assert content.count(old) == 1, content[:900]
    path = tmp_path / valid[kind].name
    path.write_bytes(content.replace(old, new))
    say(path, kind, message)


def test_bombs_inflate_no_further_than_declared(valid: dict[str, Path], tmp_path: Path):
    bomb = zlib.compress(bytes(300_000_000), 9)
    head = b"NDims = 2\nDimSize = 4 4\nElementType = MET_UCHAR\nCompressedData = True\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(head + bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(read(tmp_path / "a.mha", "metaimage"), Drawing)
    content = valid["nrrd"].read_bytes()
    (tmp_path / "a.nrrd").write_bytes(content[: content.index(b"\n\n") + 2] + bomb)
    assert isinstance(read(tmp_path / "a.nrrd", "nrrd"), Drawing)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_images_are_no_label_maps(tmp_path: Path):
    made.write_nifti(tmp_path / "a.nii.gz", np.linspace(0, 1, 210).reshape(made.SHAPE))
    say(tmp_path / "a.nii.gz", "nifti", "values with fractions")
    made.write_nifti(tmp_path / "b.nii.gz", np.full(made.SHAPE, -1000, np.int16))
    say(tmp_path / "b.nii.gz", "nifti", "values from -1000 to -1000")
    made.write_nifti(tmp_path / "c.nii.gz", np.full(made.SHAPE, np.nan))
    say(tmp_path / "c.nii.gz", "nifti", "values from nan to nan")
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    say(tmp_path / "a.png", "png", "is in colour (RGB)")


def test_a_million_vertices_are_read_quickly(tmp_path: Path):
    """A circle of 1000 points, drawn 1001 times over: inside of an odd number."""
    angle = np.linspace(0, 2 * np.pi, 1000)
    points = json.dumps((500 + 400 * np.stack([np.cos(angle), np.sin(angle)], 1)).round(2).tolist())[1:-1]
    text = json.dumps(labelme_of([])).replace("[]", "[" + ",".join([points] * 1001) + "]")
    (tmp_path / "a.json").write_text(text)
    found = read(tmp_path / "a.json", "labelme")
    assert isinstance(found, Drawing)
    assert abs(np.count_nonzero(found.layers[0].values) / (np.pi * 400**2) - 1) < 0.001


def labelme_of(points: Any, number: int = 1, size: int = 1000, kind: str = "polygon") -> dict[str, Any]:
    shapes = [{"label": str(k), "shape_type": kind, "points": points} for k in range(number)]
    return {"imageWidth": size, "imageHeight": size, "shapes": shapes}


ZIGZAG = [[k % 2 * 9e8, k] for k in range(300_000)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (labelme_of(ZIGZAG), "more or larger shapes than people draw"),
        (labelme_of(ZIGZAG, kind="linestrip"), "more or larger shapes than people draw"),
        (labelme_of([[0, 0], [9, 0], [9, 9]], 100, size=100), "over 64 that overlap"),
        (labelme_of([[0, 0], [1, float("nan")], [2, 2]]), "damaged or no labelme file (ValueError)"),
        (labelme_of([[0, 0], [1, 1e300], [2, 2]]), "not finite numbers below a billion"),
        (labelme_of([[0, 0], [1, "9"], [2, 2]]), "pairs of numbers"),
        (labelme_of([[0, 0], [1], [2, 2]]), "not in the format of a labelme file"),
        (labelme_of([[0, 0], [1, 1]], kind="mask"), "a shape 'mask' of 2 points"),
        (labelme_of([[0, 0], [1, 1]], size=20_000), "is for a picture of 20000 x 20000 pixels, at most 134217728"),
        (labelme_of([[0, 0], [1, 1]], size=10**6), "declares 1000000 x 1000000 voxels"),
        ({"imageWidth": True, "imageHeight": 3, "shapes": []}, "expected a whole number from 0"),
        ({"imageWidth": 3, "imageHeight": 3}, "KeyError: 'shapes'"),
        ([], "damaged or no labelme file"),
    ],
)
def test_hostile_outlines(content: Any, message: str, tmp_path: Path):
    say(made.write_json(tmp_path / "a.json", content), "labelme", message)


def test_deep_nesting(tmp_path: Path):
    for text in ("[" * 1_000_000, '{"a":' * 1_000_000, '{"shapes": ' + "[" * 900 + "]" * 900 + "}"):
        (tmp_path / "a.json").write_text(text)
        assert isinstance(read(tmp_path / "a.json", "labelme"), DataError)


def test_outlines_of_another_picture(tmp_path: Path):
    file = made.write_json(tmp_path / "a.json", made.labelme())
    with pytest.raises(DataError, match="drawn on a picture of 8 x 5 pixels, the image has 9 x 5; pass the picture it"):
        read_drawing(file, Grid((9, 5)))
    with pytest.raises(DataError, match=r"its axes are \(y, x\): load it as LoadImaged does"):
        read_drawing(file, Grid((5, 8)))
    with pytest.raises(DataError, match=r"the image has shape \(8, 5, 3\)"):
        read_drawing(file, Grid((8, 5, 3)))
    file = made.write_json(tmp_path / "b.json", made.coco())
    with pytest.raises(DataError, match="0 of 2 images match"):
        read_drawing(file, Grid((8, 5), name="third.png"))
    file = made.write_json(tmp_path / "a.geojson", made.geojson())
    with pytest.raises(DataError, match="does not state the size of its image; pass the image"):
        read_drawing(file)


def altered(source: Path, target: Path, change: Callable[[pydicom.Dataset], Any]) -> Path:
    data = pydicom.dcmread(source)
    change(data)
    data.save_as(target)
    return target


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("dicom_seg", lambda d: setattr(d, "NumberOfFrames", 10**8), "declares 100000000 frames of 6 x 7"),
        ("dicom_seg", lambda d: setattr(d, "Rows", 65535), "frames of 65535 x 7, which"),
        ("dicom_seg", lambda d: delattr(d, "FrameOfReferenceUID"), "has no place in a patient"),
        ("dicom_seg", lambda d: delattr(d, "SegmentSequence"), "damaged or no DICOM SEG file (AttributeError)"),
        ("dicom_seg", lambda d: setattr(d, "SegmentationType", "FRACTIONAL"), "has fractions"),
        ("dicom_seg", lambda d: setattr(d, "SOPClassUID", "1.2.3"), "no segmentation"),
        ("dicom_seg", lambda d: setattr(place_of(d), "ImagePositionPatient", [0, 0, 1e6]), ""),
        ("dicom_seg", lambda d: setattr(place_of(d), "ImagePositionPatient", ["1e38"] * 3), ""),
        ("rtstruct", lambda d: setattr(d, "SOPClassUID", "1.2.3"), "no structure set"),
        ("rtstruct", lambda d: delattr(d, "ROIContourSequence"), "damaged or no DICOM RTSTRUCT file (AttributeError)"),
        ("rtstruct", lambda d: contour_of(d, [1, 2, 3, 4]), "contours of no or not finite points"),
        ("rtstruct", lambda d: contour_of(d, ["nan"] * 9), "not finite points"),
    ],
)
def test_absurd_tags(kind: str, change: Callable[[pydicom.Dataset], Any], message: str, valid: dict, tmp_path: Path):
    say(altered(valid[kind], tmp_path / "a.dcm", change), kind, message)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0, 0, 0, 9, 9, 9, 0, 9, 5], "slices off slice"),
        ([0, 0, 99, 9, 0, 99, 9, 9, 99], "slices off slice"),
        ([-3000, -20, 30, 3000, -20, 30, 0, 0, 30], "voxels beyond the image"),
    ],
)
def test_contours_off_the_image(numbers: list[float], message: str, valid: dict, tmp_path: Path):
    """They are an error of the region, for who wants it."""
    path = altered(valid["rtstruct"], tmp_path / "a.dcm", lambda d: contour_of(d, numbers))
    drawing = read_drawing(path, Grid(made.SHAPE, made.AFFINE))
    (name,) = drawing.unplaced
    assert message in drawing.unplaced[name]
    wanted = dict.fromkeys(("vessel", "edge"), (1, "positive"))
    with pytest.raises(DataError, match=f"region '{name}': .*{message}.* or map it to None, which leaves it out"):
        claimed(drawing, as_claims(wanted, 2), path)
    with pytest.raises(DataError, match=f"region '{name}': .*{message}"):
        mask_labels(drawing, ["background", "vessel", "edge"], path, only_named=True)
    claimed(drawing, as_claims(wanted | {name: None}, 2), path)
    others = [one for one in wanted if one != name]
    mask_labels(drawing, ["background", *others], path, only_named=True)


def place_of(data: pydicom.Dataset) -> pydicom.Dataset:
    return data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]


def contour_of(data: pydicom.Dataset, numbers: list[Any]) -> None:
    data.ROIContourSequence[0].ContourSequence[0].ContourData = numbers


def test_files_that_are_not_there_or_of_no_known_format(tmp_path: Path):
    with pytest.raises(DataError, match="no such file; correct the path"):
        read_drawing(tmp_path / "a.nii.gz")
    for name, content in (("a.txt", "x"), ("a.json", "{}")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=r"none of the formats \['nifti', .*; save it as one, or pass format"):
            read_drawing(tmp_path / name)
