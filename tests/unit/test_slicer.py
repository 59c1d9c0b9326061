"""What is written opens in 3D Slicer, and what 3D Slicer writes is read: by Slicer's own code, on both sides.

The package slicer-core holds the C++ libraries that the application is built of, dcmqi the programs by which its
extension for DICOM segmentations reads and writes them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.transforms import Compose, LoadImaged

from medcoarse.readers.drawing import Grid
from medcoarse.readers.formats import read_drawing
from medcoarse.readers.placement import place
from medcoarse.transforms.drawn import LoadCoarseAnnotationd
from medcoarse.writers import dicom_seg
from medcoarse.writers.formats import write_segmentation
from medcoarse.writers.segmentation import make_segmentation
from tests.drawings import AFFINE, SHAPE, itk_image, label_map, segments, write_nifti, write_series
from tests.unit.test_writers import AFFINES, NAMES, OBLIQUE, VOLUME_SUFFIXES, itk_affine, probabilities

SCENE = Path(__file__).parents[1] / "slicer_scene.py"


def slicer(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCENE), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def opened(folder: Path, *files: Path) -> list[tuple[list[dict[str, Any]], np.ndarray, np.ndarray]]:
    """What Slicer makes of files: what it says of the segments, masks on the grid of `SHAPE`, affine."""
    folder.mkdir()
    slicer("open", *files, folder)
    found = []
    for file in files:
        arrays = np.load(folder / f"{file.name}.npz")
        masks = np.zeros((len(arrays["masks"]), *SHAPE), bool)
        masks[tuple(slice(size) for size in arrays["masks"].shape)] = arrays["masks"]
        found.append((json.loads((folder / f"{file.name}.json").read_text()), masks, arrays["affine"]))
    return found


def test_volumes_open(tmp_path: Path) -> None:
    names = {f"{place}{suffix}": AFFINES[place] for place in AFFINES for suffix in VOLUME_SUFFIXES}
    files = [
        write_segmentation(tmp_path / name, make_segmentation(label_map(), affine, NAMES))
        for name, affine in names.items()
    ]
    for (_, masks, affine), expected in zip(opened(tmp_path / "opened", *files), names.values(), strict=True):
        np.testing.assert_array_equal(masks, list(segments().values()))
        np.testing.assert_allclose(affine, expected, atol=1e-6)


def test_names_colours_and_terms_open(tmp_path: Path) -> None:
    given = make_segmentation(
        label_map(),
        OBLIQUE,
        ["background", "Gefäß 血管", "edge"],
        {"edge": ("SCT", "1", "Ed^ge")},
        {"edge": (255, 0, 51)},
    )
    (((vessel, edge), _, _),) = opened(tmp_path / "opened", write_segmentation(tmp_path / "a.seg.nrrd", given))
    assert (vessel["name"], edge["name"]) == ("Gefäß 血管", "edge")
    assert edge["colour"] == [1.0, 0.0, 0.2]
    assert edge["term"].split("~")[1:3] == ["SCT^123037004^Anatomical Structure", "SCT^1^Ed ge"]


def test_pictures_slices_and_absent_classes_open(tmp_path: Path) -> None:
    flat = write_segmentation(tmp_path / "a.seg.nrrd", make_segmentation(label_map()[..., 1], None, NAMES))
    slice_ = write_segmentation(tmp_path / "b.seg.nrrd", make_segmentation(label_map()[..., 3:4], AFFINE, NAMES))
    empty = write_segmentation(tmp_path / "c.seg.nrrd", make_segmentation(np.zeros(SHAPE, int), OBLIQUE, NAMES))
    for said, masks, _ in (found := opened(tmp_path / "opened", flat, slice_, empty)):
        assert [segment["name"] for segment in said] == NAMES[1:]
        assert not masks[..., 1:].any()
    np.testing.assert_array_equal(found[0][1][..., 0], [segments()["vessel"][..., 1], np.zeros(SHAPE[:2])])
    np.testing.assert_array_equal(found[1][1][..., 0], [np.zeros(SHAPE[:2]), segments()["edge"][..., 3]])
    assert not found[2][1].any()


@pytest.mark.parametrize(("name", "overlapping"), [*((name, False) for name in AFFINES), ("oblique", True)])
def test_what_slicer_saves_is_read(tmp_path: Path, name: str, overlapping: bool) -> None:
    drawn = {"Gefäß 血管": segments()["vessel"], "edge": segments()["edge"]}
    if overlapping:
        drawn["all"] = np.any(list(drawn.values()), axis=0)
    save(tmp_path, drawn, AFFINES[name])
    drawing = read_drawing(tmp_path / "saved.seg.nrrd")
    assert drawing.grid.shape != SHAPE  # Slicer cuts to the box around what is drawn
    assert len(drawing.layers) == 1 + overlapping
    found = {text: layer.values == value for layer in drawing.layers for value, text in layer.names.items()}
    assert list(found) == list(drawn)
    for segment, mask in found.items():
        np.testing.assert_array_equal(on_image(mask, drawing.grid, AFFINES[name]), drawn[segment])
    if not overlapping:
        for suffix in (".nii.gz", ".nrrd", ".mha"):
            exported = read_drawing(tmp_path / f"exported{suffix}")
            values = on_image(exported.layers[0].values, exported.grid, AFFINES[name])
            np.testing.assert_array_equal(values, label_map())


def test_a_drawing_of_slicer_becomes_an_annotation(tmp_path: Path) -> None:
    save(tmp_path, {"vessel": segments()["vessel"], "not vessel": segments()["edge"]}, OBLIQUE)
    image = write_nifti(tmp_path / "image.nii.gz", np.zeros(SHAPE, np.int16), OBLIQUE)
    reading = LoadCoarseAnnotationd("drawing", "slicer", num_classes=2, class_names=["background", "vessel"])
    load = Compose([LoadImaged("image", ensure_channel_first=True), reading])
    found = load({"image": str(image), "drawing": str(tmp_path / "saved.seg.nrrd")})
    for kind, segment in (("positive", "vessel"), ("negative", "edge")):  # is a vessel, is no vessel
        np.testing.assert_array_equal(np.asarray(found[kind]), np.where(segments()[segment], 1, 255)[None])


def save(folder: Path, drawn: dict[str, np.ndarray], affine: np.ndarray) -> None:
    np.savez(folder / "segments.npz", names=list(drawn), masks=list(drawn.values()), affine=affine)
    slicer("save", folder)


def on_image(values: np.ndarray, grid: Grid, affine: np.ndarray) -> np.ndarray:
    """Values in a box, on the whole grid."""
    found: np.ndarray = place(values[None].astype(np.uint8), grid, Grid(SHAPE, affine), "a", [0], segments=True)[0]
    return found


# --- DICOM -------------------------------------------------------------------------------------------------------


def dcmqi(program: str, *arguments: str | Path) -> str:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["binary", "fractions"])
def test_dicom_opens(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path / "series", reverse=True)
    affine = dicom_seg.source_grid(dicom_seg.source_headers(tmp_path / "series"), tmp_path).affine
    values = label_map() if kind == "binary" else probabilities()
    given = make_segmentation(values, affine, ["background", "prostate", "edge"], probabilities=kind != "binary")
    path = write_segmentation(tmp_path / "a.dcm", given, tmp_path / "series")
    said = dcmqi("segimage2itkimage", "--inputDICOM", path, "--outputDirectory", tmp_path, "--outputType", "nrrd")
    assert not [line for line in said.splitlines() if line.startswith(("W:", "E:"))]
    described = [group[0] for group in json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"]]
    assert [segment["SegmentLabel"] for segment in described] == ["prostate", "edge"]
    assert described[0]["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] == "Prostate"
    assert described[0]["recommendedDisplayRGBValue"] == list(given.segments[0].colour)
    expected = list(segments().values()) if kind == "binary" else np.rint(255 * values[1:])
    for number, wanted in enumerate(expected, 1):
        image = sitk.ReadImage(str(tmp_path / f"{number}.nrrd"))
        found = on_image(
            sitk.GetArrayFromImage(image).transpose(2, 1, 0), Grid(image.GetSize(), itk_affine(image)), AFFINE
        )
        if kind == "binary":
            np.testing.assert_array_equal(found > 0, wanted)
        else:
            np.testing.assert_allclose(found, wanted, atol=1)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_dicom_of_slicers_extension_is_read(tmp_path: Path, kind: str, compression: str) -> None:
    write_series(tmp_path / "series")
    described = [
        {
            "labelID": number,
            "SegmentLabel": name,
            "SegmentDescription": "",
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": code("85756007", "Tissue"),
            "SegmentedPropertyTypeCodeSequence": code("85756007", "Tissue"),
        }
        for number, name in enumerate(NAMES[1:], 1)
    ]
    (tmp_path / "meta.json").write_text(json.dumps({"segmentAttributes": [described]}))
    sitk.WriteImage(itk_image(label_map()), str(tmp_path / "a.nrrd"))
    words = ("--inputImageList", tmp_path / "a.nrrd", "--inputMetadata", tmp_path / "meta.json")
    form = ("--segmentationType", kind, "--compress", compression)
    source = ("--inputDICOMDirectory", tmp_path / "series")
    dcmqi("itkimage2segimage", *words, *form, *source, "--outputDICOM", tmp_path / "a.dcm")
    drawing = read_drawing(tmp_path / "a.dcm")
    assert drawing.layers[0].names == {1: "vessel", 2: "edge"}
    np.testing.assert_array_equal(on_image(drawing.layers[0].values, drawing.grid, AFFINE), label_map())


def code(value: str, meaning: str) -> dict[str, str]:
    return {"CodingSchemeDesignator": "SCT", "CodeValue": value, "CodeMeaning": meaning}
