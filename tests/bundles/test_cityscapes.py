"""The bundle of street scenes, end to end, on drawn scenes and on files in the official layout."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medcoarse.cityscapes import CLASSES, class_table
from medcoarse.scores import SegmentationScores
from medcoarse.synthetic.street import write_street_dataset
from tests.bundles.conftest import ROOT, SMALL, Bundle
from tests.bundles.test_bundles import (  # what holds for this bundle as well, on its own data
    test_a_run_resumed_at_an_epoch_boundary_is_bit_identical,
    test_bad_data_stop_the_run_with_one_clear_message,
    test_evaluation_without_weights_says_so,
    test_export_gives_the_same_prediction,
    test_files_that_the_model_zoo_asks_for,
    test_inference_needs_only_stock_monai,
    test_metadata_follow_the_schema,
    test_network_takes_and_gives_what_the_metadata_say,
    test_review_of_those_who_drew,
    test_root_files_are_copies_of_configs,
    test_the_annotators_learn_alone_in_the_end,
)
from tests.reference.cityscapes_scores import mean_iou_by_definition

__all__ = [
    "test_a_run_resumed_at_an_epoch_boundary_is_bit_identical",
    "test_bad_data_stop_the_run_with_one_clear_message",
    "test_evaluation_without_weights_says_so",
    "test_export_gives_the_same_prediction",
    "test_files_that_the_model_zoo_asks_for",
    "test_inference_needs_only_stock_monai",
    "test_metadata_follow_the_schema",
    "test_network_takes_and_gives_what_the_metadata_say",
    "test_review_of_those_who_drew",
    "test_root_files_are_copies_of_configs",
    "test_the_annotators_learn_alone_in_the_end",
]

sys.path.insert(0, str(ROOT / "data_prep"))  # scripts there import each other plainly

import cityscapes as script

SIZE = (48, 96)
IDS = np.array(list(CLASSES.values()), np.uint8)


@dataclass(frozen=True)
class StreetBundle(Bundle):
    """Its scores are those of all classes."""

    def saved(self, output: Path, item: dict[str, str]) -> np.ndarray:
        city, name = Path(item["image"]).parts[-2:]
        found = [*output.rglob(name.replace(".png", "_labelIds.png"))]
        assert len(found) == 1, f"{name} of {city}"
        return np.array(Image.open(found[0]))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> StreetBundle:
    data = write_street_dataset(tmp_path_factory.mktemp("data") / "streets", 5, 2, 2, size=SIZE)
    small = SMALL | {"longest_side": 64, "image_size": [32, 32], "patch_size": [32, 16], "num_training": 4}
    return StreetBundle("cityscapes", data, small, "", SIZE, "validation")


@pytest.fixture(scope="module")
def trained(bundle, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    bundle.train(output)
    return output


def test_rare_classes_count_more_than_their_pixels(bundle, tmp_path):
    assert bundle.parsed(tmp_path, "loss").balance == 0.5
    lcc = bundle.workflow("train.json", "lcc.json", **bundle.small, **bundle.places(tmp_path))
    lcc.initialize()
    assert lcc.parser.get_parsed_content("loss").balance == 0, "as the paper has it"


def test_training_leaves_weights_and_scores(bundle, trained):
    weights = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert not any(name.startswith(("annotator", "segmenter")) for name in weights)
    content = bundle.metrics(trained)
    assert content["facts"]["supervision"] == "coarse"
    assert [row["epoch"] for row in content["validation"]] == [1, 2]
    assert 0 < content["validation"][-1]["mean_iou"] < 1
    assert (trained / "figures" / "epoch_0002.png").is_file()


def test_matrices_of_many_classes_are_structured(bundle, tmp_path):
    annotator = bundle.parsed(tmp_path, "annotator_def")
    assert (annotator.structure, annotator.rank, annotator.reduction) == ("low_rank", 1, (4, 4))
    assert annotator.head.out_channels == 2 * 2 * 19, "two numbers for each class of each of two annotators"


def test_the_score_is_the_benchmark_s_where_every_class_occurs():
    """And where one occurs nowhere in the truth, it is left out, where the benchmark gives 0 once it is predicted."""
    rng, table = np.random.default_rng(0), np.array(class_table(list(CLASSES.values())))
    true, predicted = rng.integers(0, 34, (2, 3, 16, 40)).astype(np.uint8)
    predicted = IDS[predicted % 19]
    agree = rng.random(true.shape) < 0.6
    predicted = np.where(agree & np.isin(true, IDS), true, predicted)
    scores = SegmentationScores(19, reduction="dataset")
    for p, t in zip(predicted, true, strict=True):
        scores(torch.as_tensor(table[p])[None, None], torch.as_tensor(table[t])[None, None])
    pairs = list(zip(predicted, true, strict=True))
    assert scores.aggregate().item() == pytest.approx(mean_iou_by_definition(pairs, IDS.tolist()), abs=1e-12)
    without = [(p, np.where(t == 26, 0, t)) for p, t in pairs]
    scores.reset()
    for p, t in without:
        scores(torch.as_tensor(table[p])[None, None], torch.as_tensor(table[t])[None, None])
    others = [number for number in IDS.tolist() if number != 26]
    assert scores.aggregate().item() == pytest.approx(mean_iou_by_definition(without, others), abs=1e-12)
    assert mean_iou_by_definition(without, IDS.tolist()) < mean_iou_by_definition(without, others)


@pytest.mark.parametrize("views", [{}, {"scales": [0.5, 1.0], "flip": True}])
def test_the_reported_score_is_the_benchmark_s_at_native_size(bundle, trained, tmp_path, views):
    arguments = bundle.small | bundle.places(tmp_path) | {"ckpt_dir": str(trained / "models")} | views
    bundle.run("train.json", "evaluate.json", **arguments)
    table = json.loads((tmp_path / "evaluation.json").read_text())
    pairs = []
    for item in bundle.items("test"):
        prediction, label = bundle.saved(tmp_path, item), np.array(Image.open(bundle.data / item["label"]))
        assert prediction.shape == label.shape == SIZE
        assert np.isin(prediction, IDS).all(), "label ids of Cityscapes"
        pairs.append((prediction, label))
    there = [number for number in CLASSES.values() if any((label == number).any() for _, label in pairs)]
    expected = mean_iou_by_definition(pairs, there)
    assert table["dataset"]["mean_iou"] == pytest.approx(expected, abs=1e-9)
    assert expected > 0


@pytest.mark.parametrize(
    ("configs", "views"),
    [
        (["inference.json"], {}),
        (["inference.json", "multi_scale.json"], {"scales": [1.0], "flip": False}),
        (["inference.json", "multi_scale.json"], {"scales": [0.5, 1.0], "flip": True}),
    ],
)
def test_inference_equals_evaluation(bundle, trained, tmp_path, configs, views):
    arguments = bundle.small | bundle.places(tmp_path / "evaluated") | {"ckpt_dir": str(trained / "models")} | views
    bundle.run("train.json", "evaluate.json", **arguments)
    where = {"dataset_dir": str(bundle.data / "leftImg8bit" / "val"), "ckpt_dir": str(trained / "models")}
    small = bundle.small_network | {"longest_side": 64}
    bundle.run(*configs, kind="infer", output_dir=str(tmp_path / "out"), **small, **views, **where)
    for item in bundle.items("test"):
        assert np.array_equal(bundle.saved(tmp_path / "evaluated", item), bundle.saved(tmp_path / "out", item))


def test_inference_says_what_is_missing(bundle, trained, tmp_path):
    built = bundle.workflow("inference.json", kind="infer", dataset_dir=str(tmp_path), ckpt_dir=str(trained / "models"))
    with pytest.raises(SystemExit, match=r"no picture .* pass their folder as --dataset_dir"):
        built.initialize()


def test_drawings_look_alike_at_any_resolution(bundle, tmp_path):
    """Lengths are relative to the width of the frame: about 63 % is labelled, hardly any of it wrongly."""
    data = write_street_dataset(tmp_path / "large", 3, 1, 1, size=(128, 256))
    shares = []
    for side in (128, 256):
        items = bundle.parsed(tmp_path, "train#drawings", dataset_dir=str(data), longest_side=side, num_training=3)
        drawn, right, known = 0, 0, 0
        for item in items:
            label, positive = (np.asarray(item[key])[0] for key in ("label", "positive"))
            known += (label != 255).sum()
            drawn += (positive != 255).sum()
            right += (positive == label)[positive != 255].sum()
        shares.append(drawn / known)
        assert right / drawn > 0.97
    assert shares == pytest.approx([shares[0]] * 2, abs=0.04)
    assert 0.5 < shares[1] < 0.7


def test_real_drawings_are_read_as_drawn(bundle, tmp_path):
    """Folders as they are unpacked, with gtCoarse: positives are what is drawn there, and nobody draws negatives."""
    folder = tmp_path / "official"
    shutil.copytree(bundle.data, folder)
    (folder / "datalist.json").unlink()
    (folder / "provenance.json").unlink()
    for path in (folder / "gtFine" / "train").rglob("*_labelIds.png"):
        label = np.array(Image.open(path))
        label[:, ::3] = 0
        coarse = folder / "gtCoarse" / path.relative_to(folder / "gtFine").parent
        coarse.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(coarse / path.name.replace("gtFine", "gtCoarse"))
    assert script.main(["--folder", str(folder), "--held_out", "sketchford"]) == 0
    official = StreetBundle(**{**vars(bundle), "data": folder})
    side = {"longest_side": SIZE[1]}  # as it is
    items, supervision, table = official.parsed(tmp_path, "train#drawings", "supervision", "class_table", **side)
    assert supervision == "positive"
    for item, listed in zip(items, official.items("training"), strict=False):
        expected = np.array(table)[np.array(Image.open(folder / listed["coarse"]))].T
        assert np.array_equal(np.asarray(item["positive"])[0], expected)
        assert "negative" not in item
    official.train(tmp_path / "run", max_epochs=1, warmup_epochs=0)
    assert official.metrics(tmp_path / "run")["facts"]["negative_profiles"] == []


def test_classes_are_those_of_the_data(bundle, tmp_path):
    folder = tmp_path / "few"
    shutil.copytree(bundle.data, folder)
    (folder / "datalist.json").unlink()
    for path in (folder / "gtFine").rglob("*_labelIds.png"):
        label = np.array(Image.open(path))
        label[~np.isin(label, [7, 23, 26])] = 0
        Image.fromarray(label).save(path)
    assert script.main(["--folder", str(folder)]) == 0
    few = StreetBundle(**{**vars(bundle), "data": folder})
    names, network = few.parsed(tmp_path, "class_names", "network_def")
    assert names == ["road", "sky", "car"]
    assert network.out_channels == 3


@pytest.mark.parametrize("structure", [{"annotator_def#structure": "full"}, {"annotator_def#rank": 2}])
def test_matrices_of_many_classes_are_scored(bundle, tmp_path, structure):
    """By as many drawings as asked for, of the masks at the size that training sees."""
    options = bundle.small | bundle.places(tmp_path) | structure
    bundle.run("train.json", **options)
    draws = {"confusion#report#num_draws": 2, "confusion#report#num_images": 1}
    bundle.run("train.json", "evaluate.json", "evaluate_annotators.json", **options, **draws)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["dataset"]["mean_iou"] > 0
    scores = found["annotators"]
    assert (scores["num_images"], scores["num_draws"]) == (1, 2)
    for name in ("cm_error", "cm_error_positive", "cm_error_negative"):
        assert 0 < scores["image"][name] < 1
    assert scores["image"]["cm_error_positive"] > scores["identity"]["cm_error_positive"], "hardly trained"
    assert (tmp_path / "confusion.png").is_file()


@pytest.mark.parametrize("kind", ["uniform", "biased", "learned"])
def test_what_a_negative_drawing_says_is_one_override(bundle, tmp_path, kind):
    configs = ("train.json", "complementary.json")
    options = bundle.small | {"num_training": 4, "max_epochs": 10, "warmup_epochs": 8, "val_interval": 10}
    built = bundle.run(*configs, **options, **bundle.places(tmp_path), complementary=kind)
    model, loss, trainer = (built.parser.get_parsed_content(key) for key in ("coarse_model", "loss", "train#trainer"))
    num_classes = len(CLASSES)
    uniform = (1 - torch.eye(num_classes)) / (num_classes - 1)
    assert {"nll_positive", "nll_negative"} < set(loss.parts), "both kinds of drawings after the warm-up"
    assert trainer.state.max_epochs == (11 if kind == "learned" else 10), "epochs alone for what is learned alone"
    if kind == "learned":
        learned = model.log_transition().exp()
        assert not torch.allclose(learned, uniform, atol=1e-4)
        torch.testing.assert_close(learned.sum(0), torch.ones(num_classes))
        assert torch.load(tmp_path / "models" / "full.pt", weights_only=True)["model"]["transition_logits"].any()
    else:
        assert model.log_transition() is None
        assert torch.allclose(loss.log_transition.exp(), uniform) == (kind == "uniform")
        assert not list(model.annotator.parameters())


def test_an_unknown_reading_of_negative_drawings_is_refused(bundle, tmp_path):
    built = bundle.workflow(
        "train.json", "complementary.json", **bundle.small, **bundle.places(tmp_path), complementary="often"
    )
    built.initialize()
    with pytest.raises(RuntimeError) as caught:
        built.parser.get_parsed_content("loss")
    assert "uniform, biased or learned, got 'often'" in str(caught.value.__cause__ or caught.value)
