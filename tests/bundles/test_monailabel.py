"""The bundles in MONAI Label: against a double of what it does, and against MONAI Label where its environment is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from medcoarse.bundle_files import main, serve
from medcoarse.datalist import DataError
from tests import label_double
from tests.bundles.conftest import ROOT

sys.path.insert(0, str(ROOT / "examples" / "monailabel"))

import check

NAMES = sorted(path.parts[-3] for path in ROOT.glob("bundles/*/configs/train.json"))
ENVIRONMENT = os.environ.get("MEDCOARSE_LABEL_ENV")

SMALL = {
    "iterations_per_epoch": 2,
    "batch_size": 2,
    "annotator_backbone#channels": [4, 8],
    "annotator_backbone#strides": [2],
}


@pytest.fixture(scope="module", params=NAMES)
def served(request, tmp_path_factory):
    """A bundle as it is served, with random weights, three images with scribbles and one without."""
    place = tmp_path_factory.mktemp(request.param)
    check.lay_out(ROOT / "bundles" / request.param, place, SMALL)
    return place / "model" / request.param, place


def items(place: Path) -> list[dict[str, str]]:
    images = sorted(path for path in (place / "studies").iterdir() if path.is_file())
    return [{"image": str(path), "label": str(place / "studies/labels/final" / path.name)} for path in images]


def state(bundle: Path) -> dict[str, torch.Tensor]:
    return torch.load(bundle / "models" / "model.pt", weights_only=True)


def test_every_bundle_can_be_served():
    assert [bundle.name for bundle in check.BUNDLES] == NAMES


def test_segmenting_training_and_segmenting_again(served):
    bundle, place = served
    unseen = next((place / "unseen").iterdir())
    before, weights = label_double.segment(bundle, unseen), state(bundle)
    assert before.shape == check.drawn_case(bundle.name, 3)[1].shape[:: 1 if unseen.suffix == ".png" else -1]
    assert set(np.unique(before)) <= {0, *label_double.labels(bundle).values()}
    label_double.train(bundle, items(place), max_epochs=2, val_split=0.34)
    trained = state(bundle)
    assert list(trained) == list(weights), "flat, and the segmenter's alone"
    assert any((trained[name] != weights[name]).any() for name in weights)
    assert all(value.isfinite().all() for value in trained.values())
    assert label_double.weights_that_are_served(bundle).name == "model.pt"
    rows = json.loads((bundle / "output" / "metrics.json").read_text())["validation"]
    assert [row["epoch"] for row in rows] == [1, 2]
    label_double.segment(bundle, unseen)
    assert not (bundle / "output" / "synthetic").exists(), "nothing was drawn in place of the reader's images"


@pytest.mark.parametrize("val_split", [0.2, 0.0, -1])
def test_one_image_is_enough_and_validation_may_be_empty(served, val_split):
    bundle, place = served
    before = state(bundle)
    label_double.train(bundle, items(place)[:1], val_split=val_split)
    assert any((value != before[name]).any() for name, value in state(bundle).items())


def test_what_is_learned_from_are_the_scribbles(served):
    """As the loss gets them: what was drawn, 255 where nothing was, and the same is scored."""
    bundle, place = served
    config = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "train.json"))
    config["validate#dataset#data"] = items(place)[:1]
    config["bundle_root"] = str(bundle)
    config.get_parsed_content("imports")
    if bundle.name == "les_av":
        config["zoom"] = 1.0
    if bundle.name == "cityscapes":
        config["longest_side"] = 96
    item = config.get_parsed_content("validate#dataset")[0]
    _, truth = check.drawn_case(bundle.name, 0)
    drawn = check.scribbles(truth, check.values_of(bundle), 0)
    expected = np.where(drawn == 0, 255, truth)
    expected = expected.T if expected.ndim == 2 else expected  # MONAI loads pictures with axis 0 to the right
    assert np.array_equal(item["positive"][0].numpy(), expected)
    assert np.array_equal(item["label"].numpy(), item["positive"].numpy())
    if bundle.name == "cityscapes":
        assert "undrawn_is_background" not in config, "the first class is road: there is no background"
        return
    config["undrawn_is_background"] = True
    config.parse(reset=True)
    item = config.get_parsed_content("validate#dataset")[0]
    assert np.array_equal(item["positive"][0].numpy(), np.where(expected == 255, 0, expected))


def test_training_starts_from_the_weights_that_are_served(served):
    """With a learning rate of nothing, they stay."""
    bundle, place = served
    # Other weights than the seed's own: those would be met again by a training that starts anew.
    served_weights = {name: value + 1 if value.is_floating_point() else value for name, value in state(bundle).items()}
    torch.save(served_weights, bundle / "models" / "model.pt")
    config = json.loads((bundle / "configs" / "train.json").read_text())
    changed = json.dumps(config | {"learning_rate": 0.0, "annotator_learning_rate": 0.0})
    (bundle / "configs" / "train.json").write_text(changed)
    try:
        before = state(bundle)
        label_double.train(bundle, items(place), val_split=0)
        after = state(bundle)
        learned = [name for name in before if "running" not in name and "num_batches" not in name]
        assert all(torch.equal(before[name], after[name]) for name in learned)
        label_double.train(bundle, items(place), val_split=0, pretrained=False)
        assert not all(torch.equal(before[name], state(bundle)[name]) for name in learned)
    finally:
        (bundle / "configs" / "train.json").write_text(json.dumps(config))


def test_a_value_that_means_nothing_stops_the_training(served, tmp_path, capsys):
    bundle, place = served
    strange = tmp_path / Path(items(place)[0]["label"]).name
    if strange.suffix == ".png":
        Image.fromarray(np.full((28, 28), 9, np.uint8)).save(strange)
    else:
        image = nibabel.load(items(place)[0]["image"])
        nibabel.save(nibabel.Nifti1Image(np.full(image.shape[:3], 9, np.uint8), image.affine), strange)
    with pytest.raises(RuntimeError) as caught:
        label_double.train(bundle, [items(place)[0] | {"label": str(strange)}], val_split=0)
    causes, error = [], caught.value
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    assert any(isinstance(cause, DataError) and "drawn, but not in the mapping" in str(cause) for cause in causes)


def test_the_handlers_that_the_overlay_names_are_those(served):
    bundle, _ = served
    handlers = json.loads((bundle / "configs" / "train.json").read_text())["train"]["handlers"]
    found = {place: handlers[place]["_target_"].rsplit(".", 1)[-1] for place in (0, 6, 9, 11)}
    assert found == {0: "Resume", 6: "MetricsJson", 9: "Validate", 11: "SaveCheckpoint"}
    assert handlers[0]["path"] == handlers[11]["path"] == "$@output_dir + '/full.pt'"


def test_serving_copies_and_refuses(tmp_path, capsys):
    bundle = ROOT / "bundles" / "mnist"
    main([str(bundle), "--monailabel", str(tmp_path), "--undrawn_is_background"])
    copy = tmp_path / "mnist"
    assert capsys.readouterr().out.split() == [str(copy)]
    config = json.loads((copy / "configs" / "train.json").read_text())
    assert config["undrawn_is_background"] is True
    assert config["loss"] == json.loads((bundle / "configs" / "train.json").read_text())["loss"]
    ours, served = (json.loads((place / "configs/inference.json").read_text()) for place in (bundle, copy))
    assert ours.pop("postprocessing") != served.pop("postprocessing")
    assert ours == served
    with pytest.raises(FileExistsError, match="may have been trained"):
        serve(bundle, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no configs/monailabel\.json"):
        serve(tmp_path, tmp_path / "other")


@pytest.mark.skipif(not ENVIRONMENT, reason="MEDCOARSE_LABEL_ENV is not set: no environment with MONAI Label")
def test_monai_label_itself(tmp_path):
    command = [sys.executable, str(ROOT / "examples/monailabel/check.py"), "--env", str(ENVIRONMENT)]
    done = subprocess.run([*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (sorted(report["bundles"]), report["faults"]) == (NAMES, [])


def test_what_cannot_be_installed_is_told_apart_from_what_fails(tmp_path):
    nowhere = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, str(ROOT / "examples/monailabel/check.py"), "--env", str(tmp_path / "env")]
    command += ["--folder", str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=nowhere)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "could not be installed, so nothing was checked" in done.stderr
