"""Reports of cases by the bundles that have a configuration for them, against counting by hand."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer

from medcoarse.synthetic import write_fundus_dataset
from medcoarse.synthetic.volumes import write_brats_dataset, write_lidc_dataset, write_ms_dataset
from tests.bundles.conftest import SMALL, Bundle

NETWORK = {name: value for name, value in SMALL.items() if name.startswith("network")}


def _les_av(folder: Path) -> Bundle:
    data = write_fundus_dataset(folder, num_images=6, size=(96, 109), num_test=2)
    return Bundle("les_av", data, NETWORK | {"patch_size": [32, 32]}, "vessel", (96, 109), "test")


def _ms_lesions(folder: Path) -> Bundle:
    data = write_ms_dataset(folder, 1, 2, 1, (28, 28, 10), (1.0, 1.0, 2.2))
    small = NETWORK | {"patch_size": [16, 16, 8], "network_def#strides": [[2, 2, 1]]}
    return Bundle("ms_lesions", data, small, "lesion", (28, 28), "validation")


def _brats(folder: Path) -> Bundle:
    data = write_brats_dataset(folder, 1, 2, 1, (32, 32, 8), (1.0, 1.0, 2.2), volumes=True)
    return Bundle("brats", data, NETWORK | {"image_size": [16, 16]}, "core", (32, 32), "validation")


def _lidc(folder: Path) -> Bundle:
    data = write_lidc_dataset(folder, 1, 2, 1, (32, 32, 12), (1.0, 1.0, 2.2))
    return Bundle("lidc", data, NETWORK | {"image_size": [16, 16]}, "nodule", (32, 32), "validation")


MAKERS = {"les_av": _les_av, "ms_lesions": _ms_lesions, "brats": _brats, "lidc": _lidc}


@pytest.fixture(scope="module", params=MAKERS)
def bundle(request, tmp_path_factory) -> Bundle:
    return MAKERS[request.param](tmp_path_factory.mktemp("data") / "set")


def report(bundle: Bundle, output: Path, **overrides):
    """By random weights; the workflow, and what it wrote."""
    images = bundle.data / "images" if bundle.name == "les_av" else bundle.data / "cases"
    options = bundle.small | bundle.places(output) | {"dataset_dir": str(images)} | overrides
    built = bundle.workflow("inference.json", "case_report.json", kind="infer", **options)
    torch.manual_seed(0)
    (output / "models").mkdir(parents=True, exist_ok=True)
    torch.save(built.parser.get_parsed_content("network_def").state_dict(), output / "models" / "model.pt")
    bundle.run("inference.json", "case_report.json", kind="infer", **options)
    return built, json.loads((output / "case_report.json").read_text())


def test_sizes_of_a_bundles_report(bundle, tmp_path):
    built, content = report(bundle, tmp_path)
    assert content["calibration"]["calibrated"] is False
    assert content["class_names"][:2] == ["background", bundle.structure]
    network = built.parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(tmp_path / "models" / "model.pt", weights_only=True))
    whole = "patch_size" in bundle.small
    inferer = (
        SlidingWindowInferer(bundle.small["patch_size"], 4, 0.25, "gaussian")
        if whole
        else SliceInferer(2, bundle.small["image_size"], 16, 0.25, "gaussian")
    )
    items = built.parser.get_parsed_content("dataset")
    assert len(content["cases"]) == len(items) > 1
    for case, item in zip(content["cases"], items, strict=True):
        with torch.no_grad():
            found = inferer(item["image"].as_tensor()[None], network.eval())[0].softmax(0).numpy()
        inside = item["mask"][0].numpy() != 0 if bundle.name == "les_av" else np.ones(found.shape[1:], bool)
        voxel = (96 * 109) / (48 * 54) if bundle.name == "les_av" else 2.2  # the network sees photographs of 48 x 54
        one = case["classes"][1]
        assert one["segmented"] == pytest.approx(voxel * ((found.argmax(0) == 1) & inside).sum(), rel=1e-6)
        assert one["expected"] == pytest.approx(voxel * found[1][inside].sum(), rel=1e-4)
        assert case["unit"] == ("pixels" if bundle.name == "les_av" else "mm³")
    text = (tmp_path / "case_report.html").read_text()
    assert content["provenance"]["weights_sha256"] in text
    assert json.loads((bundle.root / "configs" / "metadata.json").read_text())["name"] in text
    assert str(bundle.data) not in text


def test_a_bundles_report_is_calibrated_with_masks(bundle, tmp_path):
    _, content = report(bundle, tmp_path, calibration_dir=str(bundle.data))
    facts = content["calibration"]
    items = [item for item in bundle.items(bundle.section) if "label" in item]
    assert (facts["calibrated"], facts["num_images"]) == (True, len(items))
    if bundle.name != "les_av":
        labels = [nibabel.load(bundle.data / item["label"]) for item in items]
        assert facts["num_pixels"] == sum(int(np.prod(label.shape)) for label in labels)
    else:
        assert facts["num_pixels"] < 2 * 48 * 54, "what lies outside the field of view is not counted"
