"""What the bundles of several annotators on volumes do, end to end, on drawn data and on official files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medcoarse import morphology
from medcoarse.baselines.fused_labels import fused_confusion
from medcoarse.datalist import load_datalist
from medcoarse.synthetic.brain import ms_scan, tumour_scan
from medcoarse.synthetic.lung import READERS
from medcoarse.synthetic.volumes import write_brats_dataset, write_lidc_dataset, write_ms_dataset
from medcoarse.workflow import DATA_SETS
from tests.bundles.conftest import ROOT, SMALL, Bundle
from tests.bundles.test_bundles import (  # what holds for these bundles as well, on their own data
    test_a_run_resumed_at_an_epoch_boundary_is_bit_identical,
    test_evaluation_without_weights_says_so,
    test_files_that_the_model_zoo_asks_for,
    test_inference_needs_only_stock_monai,
    test_metadata_follow_the_schema,
    test_network_takes_and_gives_what_the_metadata_say,
    test_root_files_are_copies_of_configs,
    test_the_annotators_learn_alone_in_the_end,
    test_two_processes_train_and_gather_their_scores,
)
from tests.bundles.test_mnist import mean_distance

__all__ = [
    "test_a_run_resumed_at_an_epoch_boundary_is_bit_identical",
    "test_evaluation_without_weights_says_so",
    "test_files_that_the_model_zoo_asks_for",
    "test_inference_needs_only_stock_monai",
    "test_metadata_follow_the_schema",
    "test_network_takes_and_gives_what_the_metadata_say",
    "test_root_files_are_copies_of_configs",
    "test_the_annotators_learn_alone_in_the_end",
    "test_two_processes_train_and_gather_their_scores",
]

sys.path.insert(0, str(ROOT / "data_prep"))  # scripts there import each other plainly

import brats
import ms_lesions

MS_SHAPE, MS_SPACING = (28, 28, 10), (1.0, 1.0, 2.2)
MS_SMALL = {"patch_size": [16, 16, 8], "network_def#strides": [[2, 2, 1]]}


@dataclass(frozen=True)
class VolumeBundle(Bundle):
    """A bundle whose images are NIfTI.

    Args:
        postfix: what is added to the names of predictions.
        class_names: as in its scores.
        num_annotators: who drew the small data set.
    """

    postfix: str = ""
    class_names: tuple[str, ...] = ()
    num_annotators: int = 5

    def image_of(self, item: dict[str, Any]) -> Path:
        return self.data / (item["image"][0] if isinstance(item["image"], list) else item["image"])

    def prediction_of(self, folder: Path, item: dict[str, Any]) -> Path:
        image = self.image_of(item)
        name = image.name.replace(".nii.gz", f"_{self.postfix}.nii.gz")
        return folder / image.parent.relative_to(self.data / "cases") / name


def _ms_lesions(folder: Path) -> VolumeBundle:
    data = write_ms_dataset(folder, 3, 1, 2, MS_SHAPE, MS_SPACING)
    return VolumeBundle(
        "ms_lesions", data, SMALL | MS_SMALL, "lesion", MS_SHAPE[:2], "validation", "lesion", ("background", "lesion")
    )


def _brats(folder: Path) -> VolumeBundle:
    data = write_brats_dataset(folder, 1, 1, 2, (28, 28, 8), (2.0, 2.0, 5.0))
    names = ("background", "core", "oedema", "enhancing")
    small = SMALL | {"image_size": [28, 28]}
    return VolumeBundle("brats", data, small, "core", (28, 28), "validation", "tumour", names)


def _lidc(folder: Path) -> VolumeBundle:
    data = write_lidc_dataset(folder, 2, 1, 2, (28, 28, 8), (1.0, 1.0, 2.5))
    small = SMALL | {"image_size": [28, 28]}
    return VolumeBundle(
        "lidc", data, small, "nodule", (28, 28), "validation", "nodule", ("background", "nodule"), len(READERS)
    )


MAKE = {"ms_lesions": _ms_lesions, "brats": _brats, "lidc": _lidc}


@pytest.fixture(scope="module", params=list(MAKE))
def bundle(request, tmp_path_factory) -> VolumeBundle:
    return MAKE[request.param](tmp_path_factory.mktemp("data") / request.param)


@pytest.fixture(scope="module")
def trained(bundle, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    bundle.train(output)
    return output


def load(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


# --- every bundle ------------------------------------------------------------------------------------------------


def test_training_leaves_weights_and_scores(bundle, trained):
    weights = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert not any(name.startswith(("annotator", "segmenter")) for name in weights)
    content = bundle.metrics(trained)
    assert (content["facts"]["supervision"], content["facts"]["num_annotators"]) == ("positive", bundle.num_annotators)
    assert [row["epoch"] for row in content["validation"]] == [1, 2]
    own = {f"{name}_dice" for name in bundle.class_names[1:]}
    assert own < set(content["validation"][-1])
    assert (trained / "figures" / "epoch_0002.png").is_file()


def test_evaluation_and_inference_write_the_same_on_the_grid_of_the_image(bundle, trained, tmp_path):
    table = bundle.evaluate(trained)
    arguments = {"dataset_dir": str(bundle.data / "cases"), "ckpt_dir": str(trained / "models")}
    bundle.run("inference.json", kind="infer", output_dir=str(tmp_path), **bundle.small_network, **arguments)
    assert len(table["images"]) == len(bundle.items("test")) > 1
    assert len({row["name"] for row in table["images"]}) == len(table["images"])
    sums = np.zeros((2, len(bundle.class_names)))
    for item in bundle.items("test"):
        image, label = nibabel.load(bundle.image_of(item)), load(bundle.data / item["label"])
        evaluated, inferred = (
            nibabel.load(bundle.prediction_of(folder, item)) for folder in (trained / "predictions", tmp_path)
        )
        for found in (evaluated, inferred):
            assert (*found.shape, 1)[:4] == (*image.shape[:3], 1)  # MONAI writes slices with an axis more
            np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
        predicted, again = (np.asanyarray(found.dataobj).reshape(label.shape) for found in (evaluated, inferred))
        assert np.array_equal(predicted, again)
        assert set(np.unique(predicted)) <= set(range(len(bundle.class_names)))
        for k in range(len(bundle.class_names)):
            sums[:, k] += 2 * ((predicted == k) & (label == k)).sum(), (predicted == k).sum() + (label == k).sum()
    for name, (both, either) in zip(bundle.class_names, sums.T, strict=True):
        assert table["dataset"][f"dice_{name}"] == pytest.approx(both / either, abs=1e-6)
    assert sums[0, 1:].sum() > 0, "something was found"
    averaged = [table["dataset"][f"dice_{name}"] for name in bundle.class_names[len(bundle.class_names) > 2 :]]
    assert table["dataset"]["mean_dice"] == pytest.approx(np.mean(averaged)), (
        "of several structures, without background"
    )


def test_a_copy_of_the_folder_is_all_that_a_command_needs(bundle, tmp_path):
    """Drawn data, the bundle moved elsewhere, the working directory its own."""
    copy = tmp_path / "moved"
    shutil.copytree(bundle.root, copy, ignore=shutil.ignore_patterns("output", "models"))
    shape = list(MS_SHAPE) if bundle.name == "ms_lesions" else [28, 28, 8]
    few = {"num_training": 2, "num_validation": 1, "num_test": 1, "shape": shape, "spacing": [2.0, 2.0, 5.0]}
    options = bundle.small | {"max_epochs": 1, "warmup_epochs": 0, "synthetic": few}
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json",
         *(f"--{key}={value}" for key, value in options.items())],
        cwd=copy, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"training on synthetic {DATA_SETS[bundle.name].what}" in done.stdout
    assert (copy / "models" / "model.pt").is_file()
    assert (copy / "output" / "synthetic" / "datalist.json").is_file()


def test_calibration_over_the_voxels_of_all_test_images(bundle, trained, tmp_path):
    options = bundle.small | bundle.places(tmp_path) | {"ckpt_dir": str(trained / "models")}
    built = bundle.run("train.json", "evaluate.json", "evaluate_calibration.json", **options)
    found = json.loads((tmp_path / "evaluation.json").read_text())["calibration"]
    network, inferer, items = map(built.parser.get_parsed_content, ("network", "validate#inferer", "validate#dataset"))
    terms = []
    for item in items:
        with torch.no_grad():
            p = torch.as_tensor(inferer(torch.as_tensor(item["image"])[None], network.eval())).softmax(1)[0]
        label = torch.as_tensor(item["label"])[0].long()
        gap = p - (torch.arange(len(p)).view(-1, *[1] * label.ndim) == label).float()
        terms.append(gap.square().sum(0)[label != 255])
    assert (found["num_images"], found["num_pixels"]) == (len(items), sum(map(len, terms)))
    assert found["brier"] == pytest.approx(torch.cat(terms).double().mean().item(), rel=1e-4)
    assert {f"ece_{name}" for name in bundle.class_names[1:]} < set(found)


def test_properties(bundle, trained, tmp_path):
    built = bundle.workflow("train.json", **bundle.small, **bundle.places(tmp_path))
    built.initialize()
    assert not built.check_properties()
    arguments = {"dataset_dir": str(bundle.data), "ckpt_dir": str(trained / "models")}
    inference = bundle.workflow("inference.json", kind="infer", **arguments)
    inference.initialize()
    assert not inference.check_properties()


@pytest.mark.parametrize(("where", "message"), [("dataset_dir", "no file like"), ("ckpt_dir", "no weights at")])
def test_inference_says_what_is_missing(bundle, trained, tmp_path, where, message):
    arguments = {"dataset_dir": str(bundle.data), "ckpt_dir": str(trained / "models")}
    built = bundle.workflow("inference.json", kind="infer", **(arguments | {where: str(tmp_path / "empty")}))
    with pytest.raises(SystemExit, match=message):
        built.initialize()


def test_the_recipe_is_that_of_the_mnist_bundle(bundle):
    """Bundles have to stand alone, so what they have in common stands in each of them; here it is held together."""
    own, mnist = (
        json.loads((root / "configs" / "train.json").read_text()) for root in (bundle.root, ROOT / "bundles" / "mnist")
    )
    several = json.loads((ROOT / "bundles" / "mnist" / "configs" / "annotators.json").read_text())
    together = own["loss"].pop("joint", False)  # measured for tumours alone
    assert together == (several["loss#joint"] if bundle.root.name == "brats" else False)
    assert own["loss"].pop("balance", 0) == (0.5 if bundle.root.name == "brats" else 0), "several structures, some rare"
    same = ["max_epochs", "warmup_epochs", "val_interval", "learning_rate", "optimizer", "loss"]
    same += ["annotator_interval", "full_state", "coarse_model"]
    assert {key: own[key] for key in same} == {key: mnist[key] for key in same}
    for key in ("annotator_epochs", "annotator_final_rate"):
        assert own[key] == several[key]
    assert own["annotator_def"]["reduction"] == several["annotator_def#reduction"]
    assert own["train"]["trainer"] == mnist["train"]["trainer"]
    assert own["validate"]["evaluator"] == mnist["validate"]["evaluator"]
    own_handlers, handlers = ([one["_target_"] for one in c["train"]["handlers"]] for c in (own, mnist))
    assert own_handlers == handlers
    for key in ("structure", "diagonal_floor", "feature_channels"):
        assert own["annotator_def"][key] == mnist["annotator_def"][key]


def test_files_are_read_by_one_thread(bundle):
    """MONAI's NIfTI reader keeps the file names of its last call: of lists that two threads read files get lost."""
    config = json.loads((bundle.root / "configs" / "train.json").read_text())
    for section in ("train", "validate"):
        assert config[section]["dataset"]["_target_"] == "CacheDataset"
        assert config[section]["dataset"]["num_workers"] == 1


def test_one_annotator_an_image_and_the_truth_out_of_reach(bundle, tmp_path):
    data, assignment = bundle.parsed(tmp_path, "train#dataset", "who_drew", annotators_per_image=1)
    for item, drew in zip(data, assignment, strict=True):
        for part in item if isinstance(item, list) else [item]:
            assert set(part) == {"image", "positive"}
            assert part["positive"].shape[0] == bundle.num_annotators
            others = [r for r in range(bundle.num_annotators) if r not in drew]
            assert (part["positive"][others] == 255).all(), "who did not draw says nothing, not background"
            assert (part["positive"][drew] != 255).any()


def test_a_datalist_that_says_who_drew_is_obeyed(bundle, tmp_path):
    listed = json.loads((bundle.data / "datalist.json").read_text())
    prolific = [[0]] * (len(listed["training"]) - 1) + [[1]]
    for item, drew in zip(listed["training"], prolific, strict=True):
        item["annotators"] = drew
    shutil.copytree(bundle.data, tmp_path / "data")
    (tmp_path / "data" / "datalist.json").write_text(json.dumps(listed))
    keys = ("who_drew", "train#dataset", "train#sampler")
    drew, data, sampler = bundle.parsed(tmp_path, *keys, dataset_dir=str(tmp_path / "data"), num_training=None)
    assert drew == prolific
    for item, (own,) in zip(data, prolific, strict=True):
        for part in item if isinstance(item, list) else [item]:
            assert [r for r in range(bundle.num_annotators) if (part["positive"][r] != 255).any()] == [own]
    weights = torch.as_tensor(sampler.weights)
    assert weights[:-1].sum().item() == pytest.approx(weights[-1].item()), "nobody is favoured for having drawn more"


def test_review_of_those_who_drew(bundle, trained, tmp_path):
    places = bundle.places(tmp_path) | {"ckpt_dir": str(trained / "models")}
    bundle.run("train.json", "review.json", **bundle.small, **places)
    content = json.loads((tmp_path / "annotators.json").read_text())
    assert [one["num_images"] for one in content["annotators"]] == [content["num_images"]] * bundle.num_annotators
    assert content["ask_next"] == []
    assert content["unit"] == "mm"


@pytest.mark.parametrize("bundle", ["brats"], indirect=True)
def test_errors_are_planted_where_there_is_a_tumour(bundle, tmp_path):
    configs, options = ("train.json", "heads.json", "planted.json"), bundle.small | bundle.places(tmp_path)
    built = bundle.run(*configs, **options, num_planted=2)
    drawings = built.parser.get_parsed_content("train#drawings")
    listed = built.parser.get_parsed_content("training_items")
    tumours = {n for n, item in enumerate(listed) if load(item["label"]).any()}
    planted = [n for n, item in enumerate(drawings) if "planted" in item]
    assert len(planted) == 2
    assert set(planted) < tumours < set(range(len(listed)))
    for n in planted:
        assert (torch.as_tensor(drawings[n]["label"]) != 0).any(), "another one's mask shows a tumour, too"
    found = json.loads((tmp_path / "annotators.json").read_text())
    assert found["planted"]["number"] == 2
    assert len({one["image"] for one in found["worst"]}) == len(found["worst"]) == 2


@pytest.mark.parametrize("method", ["majority", "staple", "spatial_staple"])
def test_training_on_fused_labels(bundle, tmp_path, method):
    who = {"positive_profiles": ["level_5_positive", "dhe_over", "dhe_under", "dhe_wrong", "dhe_blank"]}
    fused, true = (
        bundle.parsed(tmp_path, "train#preprocessing", "training_items", **who, supervision="dense", fusion=one)
        for one in (method, None)
    )
    deterministic = [
        [t for t in pipeline.transforms if not type(t).__name__.startswith(("Rand", "Delete", "SpatialPad"))]
        for pipeline, _ in (fused, true)
    ]
    agree = []
    for item in fused[1]:
        labels = []
        for transforms in deterministic:
            seen: Any = item
            for transform in transforms:
                seen = transform(seen)
            labels.append(seen["label"])
        agree.append(float((labels[0] == labels[1]).float().mean()))
    assert 0.5 < sum(agree) / len(agree) < 1


def test_what_is_scored_of_drawn_data_is_what_was_drawn_from(bundle, tmp_path):
    """And not what the annotators agree on, also where the data list their masks."""
    for item, listed in zip(bundle.parsed(tmp_path, "validate#dataset"), bundle.items("validation"), strict=True):
        true = load(bundle.data / listed["label"])
        assert np.array_equal(np.asarray(item["label"]).reshape(true.shape), true)


# --- those who draw ----------------------------------------------------------------------------------------------

who_simulate = pytest.mark.parametrize("bundle", ["ms_lesions", "brats"], indirect=True)
SCORED = ("train.json", "evaluate.json", "evaluate_annotators.json", "evaluate_methods.json")


@who_simulate
def test_errors_of_the_annotators_are_counted_in_repeated_drawings(bundle, trained, tmp_path):
    """By hand for matrices that claim that nobody errs: who draws 2 mm too much does so in every drawing alike."""
    options = bundle.small | bundle.places(tmp_path) | {"ckpt_dir": str(trained / "models")}
    built = bundle.run(*SCORED, **options, **{"confusion#report#num_draws": 2})
    assert built.parser.get_parsed_content("matrices_of") == "networks"
    content = json.loads((tmp_path / "evaluation.json").read_text())
    found, errors = content["annotators"], []
    assert len(found["images"]) == content["num_images"] == len(bundle.items("test"))
    for item in built.parser.get_parsed_content("confusion#dataset"):
        label, over = (np.asarray(item[key][r]).ravel() for key, r in (("label", 0), ("positive", 1)))
        present = np.unique(label)
        table = np.stack([np.bincount(over[label == k], minlength=len(bundle.class_names)) for k in present], 1)
        share = table / table.sum(0)
        errors.append(np.sqrt(((share - np.eye(len(share))[:, present]) ** 2).mean()))
    assert found["identity"]["cm_error_positive_2"] == pytest.approx(np.mean(errors), abs=1e-6)
    assert np.mean(errors) > 0
    assert found["identity"]["cm_error_positive_1"] == 0, "the first annotator is always right"
    assert found["image"]["cm_error"] > 0
    assert (tmp_path / "confusion.png").is_file()
    # the same weights, as if they had been learned from a fusion, whose own matrices are scored then
    own = {"supervision": "dense", "fusion": "majority", "confusion#report#num_draws": 2}
    fused = bundle.run(*SCORED, **options, **own).parser.get_parsed_content
    assert torch.allclose(
        fused("confusion#report").tables.double(),
        fused_confusion(fused("train#drawings"), len(bundle.class_names), "majority"),
        atol=1e-6,
        equal_nan=True,
    )
    again = json.loads((tmp_path / "evaluation.json").read_text())["annotators"]["image"]["cm_error"]
    assert again not in (None, found["image"]["cm_error"])


@who_simulate
def test_whose_matrices_are_scored(bundle, tmp_path):
    options: dict[str, dict[str, Any]] = {
        "nobody": {"supervision": "dense"},
        "majority": {"warmup_epochs": 2, "loss#warmup": "identity"},
        "staple": {"supervision": "dense", "fusion": "staple"},
    }
    for who, own in options.items():
        built = bundle.workflow(*SCORED, **(bundle.small | bundle.places(tmp_path) | {"max_epochs": 2} | own))
        built.parser.parse()
        assert built.parser.get_parsed_content("matrices_of") == who


# --- MS lesions --------------------------------------------------------------------------------------------------

only_ms = pytest.mark.parametrize("bundle", ["ms_lesions"], indirect=True)
only_brats = pytest.mark.parametrize("bundle", ["brats"], indirect=True)
only_lidc = pytest.mark.parametrize("bundle", ["lidc"], indirect=True)


@only_ms
def test_lengths_are_in_mm_whatever_the_spacing(bundle, tmp_path):
    """The one who draws too much goes 2 mm too far: two voxels in the plane, none along the third axis."""
    for item in bundle.parsed(tmp_path, "validate#dataset"):
        label, over = (np.asarray(item[key][r]) for key, r in (("label", 0), ("positive", 1)))
        assert label.any()
        assert np.array_equal(over == 1, morphology.thicken(label == 1, 2.0, MS_SPACING))
        assert not np.array_equal(over == 1, morphology.thicken(label == 1, 2.0, None))


@only_ms
def test_half_of_the_patches_are_centred_on_something_drawn(bundle, tmp_path):
    where = {"dataset_dir": str(write_ms_dataset(tmp_path / "large", 2, 1, 1)), "patch_size": [8, 8, 4]}
    data, drawings = bundle.parsed(tmp_path, "train#dataset", "train#drawings", patches_per_volume=48, **where)
    assert np.mean([float((item["positive"] == 1).any(0).float().mean()) for item in drawings]) < 0.1
    centres = [part["positive"][:, 4, 4, 2] for item in data for part in item]
    assert len(centres) == 2 * 48
    assert 0.35 < np.mean([bool((drawn == 1).any()) for drawn in centres]) < 0.65


@only_ms
def test_padding_is_unlabeled(bundle, tmp_path):
    size = {"patch_size": [16, 16, 16]}
    data = bundle.parsed(tmp_path, "train#dataset", **size)
    padded = 16 - MS_SHAPE[2]
    for item in data:
        for part in item:
            beyond = (part["image"] == 0).all(0) & (part["positive"] == 255).all(0)
            assert beyond.all((0, 1)).sum() == padded
            assert (part["positive"] == 255).float().mean() == pytest.approx(padded / 16)


# --- BraTS -------------------------------------------------------------------------------------------------------


@only_brats
def test_one_annotator_mixes_up_two_classes(bundle, tmp_path):
    drawn = np.zeros((5, 4, 4), int)
    for item in bundle.parsed(tmp_path, "validate#dataset", target=1):
        for r, said in enumerate(np.asarray(item["positive"])):
            np.add.at(drawn[r], (said.ravel(), np.asarray(item["label"]).ravel()), 1)
    shares = drawn / drawn.sum(1, keepdims=True)
    good, over, _, swapped, blank = shares
    assert np.array_equal(good, np.eye(4))
    assert over[1, 2:].max() > 0 < over[1, 0] + over[1, 3]
    assert swapped[2, 1] == pytest.approx(0.4, abs=0.1), "two fifths of the core are called oedema"
    assert 0 < swapped[1, 2] == pytest.approx(0.4, abs=0.1)
    assert np.array_equal(swapped[:, [0, 3]], np.eye(4)[:, [0, 3]]), "the other classes are left alone"
    assert (blank[0] == 1).all()


@only_brats
def test_inference_takes_whole_volumes(bundle, trained, tmp_path):
    volumes = write_brats_dataset(tmp_path / "whole", 1, 1, 1, (28, 28, 8), (2.0, 2.0, 5.0), volumes=True)
    arguments = {"dataset_dir": str(volumes / "cases"), "ckpt_dir": str(trained / "models")}
    bundle.run("inference.json", kind="infer", output_dir=str(tmp_path / "out"), **bundle.small_network, **arguments)
    whole = load(tmp_path / "out" / "synthetic01" / "image_tumour.nii.gz")
    # Each slice is standardized by itself in training and in its own file, so the results need not be the same.
    assert whole.shape[:3] == (28, 28, 8)


# --- LIDC-IDRI ---------------------------------------------------------------------------------------------------


@only_lidc
def test_readers_are_compared_with_what_the_networks_say_they_draw(bundle, trained, tmp_path):
    """By hand, with one reader who did not read the scans."""
    data = tmp_path / "data"
    shutil.copytree(bundle.data, data)
    for path in data.rglob("*_reader3.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.full(image.shape, 255, np.uint8), image.affine), path)
    options = bundle.small | bundle.places(tmp_path) | {"dataset_dir": str(data), "ckpt_dir": str(trained / "models")}
    options |= {"distribution#num_samples": None}  # what each would most likely draw
    built = bundle.run("train.json", "evaluate.json", "evaluate_distribution.json", **options)
    found = json.loads((tmp_path / "evaluation.json").read_text())["distribution"]
    model = built.parser.get_parsed_content("coarse_model").eval()
    items = built.parser.get_parsed_content("validate#dataset")
    assert len(items) == found["num_images"] > 1
    for item, scores in zip(items, found["images"], strict=True):
        with torch.no_grad():
            output = model.couple(torch.as_tensor(item["image"])[None])
        probs, cm = output.logits.softmax(1)[0].numpy(), output.positive.dense()[0].numpy()
        segmented = np.einsum("rothw,thw->rohw", cm, probs).argmax(1)
        read = np.asarray(item["positive"])[[0, 1, 3]]
        across, *within = (mean_distance(a, b) for a, b in ((segmented, read), (segmented,) * 2, (read,) * 2))
        assert scores["ged_iou"] == pytest.approx(2 * across - sum(within), abs=1e-6)


# --- official files ----------------------------------------------------------------------------------------------


def _official_ms(folder: Path) -> Path:
    """Files named as those of the challenge; rater 1 outlines generously, rater 2 overlooks what is thin."""
    for number in range(1, 6):
        scan = ms_scan(number, (24, 24, 10), (1.0, 1.0, 2.0))
        stem, lesions = f"training{number:02d}", scan.label == 1
        masks = [morphology.thicken(lesions, 1.0), morphology.thin(lesions, 1.0, preserve=False)]
        files = {f"preprocessed/{stem}_01_{key}_pp": scan.image[..., c] for c, key in enumerate(ms_lesions.MODALITIES)}
        files |= {
            f"masks/{stem}_01_{key}": mask.astype(np.uint8) for key, mask in zip(ms_lesions.RATERS, masks, strict=True)
        }
        for name, array in files.items():
            path = folder / stem / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), path)
        for c, key in enumerate(ms_lesions.MODALITIES):  # as they were scanned, each on a grid of its own
            path = folder / stem / "orig" / f"{stem}_01_{key}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(scan.image[: 20 + c, :, ::2, c], np.diag([1.0, 1.0, 4.0, 1.0])), path)
    assert ms_lesions.main(["--folder", str(folder)]) == 0
    return folder


def _official_brats(folder: Path) -> Path:
    for number in range(5):
        scan = tumour_scan(number, (24, 26, 8), (2.0, 2.0, 5.0))
        name = f"BraTS19_2013_{number}_1"
        arrays = {key: scan.image[..., channel] for channel, key in enumerate(brats.KEYS[:4])}
        arrays["seg"] = np.array([0, 1, 2, 4], np.uint8)[scan.label]
        for key, array in arrays.items():
            path = folder / "official" / name / f"{name}_{key}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([-2.0, -2.0, 5.0, 1.0])), path)
    where = ["--folder", str(folder / "official"), "--output_dir", str(folder / "prepared"), "--size", "28"]
    assert brats.main(where) == 0
    return folder / "prepared"


@only_ms
def test_raters_masks_are_taken_as_they_are(bundle, tmp_path):
    data = _official_ms(tmp_path / "official")
    output = {"dataset_dir": str(data)}
    dataset, items, number = bundle.parsed(
        tmp_path, "validate#dataset", "validate#dataset#data", "num_annotators", **output
    )
    assert number == 2
    for item, listed in zip(dataset, items, strict=True):
        raters = np.stack([load(Path(name)) for name in listed["positive"]])
        assert np.array_equal(item["positive"], raters)
        assert np.array_equal(item["label"][0], np.where(raters[0] == raters[1], raters[0], 255)), "unknown, not 0"
        assert (raters[0] != raters[1]).any()
    simulated = bundle.parsed(tmp_path, "validate#dataset", simulated=True, **output)[0]
    assert simulated["positive"].shape[0] == 5
    unknown = simulated["label"][0] == 255
    assert (simulated["positive"][:, unknown] == 255).all()
    known = np.asarray(simulated["label"][0])
    inside = morphology.thicken(known == 1, 2.0, (1.0, 1.0, 2.0)) & (known != 255)
    assert np.array_equal(np.asarray(simulated["positive"][1]) == 1, inside), "the agreed label keeps its spacing"


def _inference(bundle: VolumeBundle, data: Path, weights: Path, *more: str, **overrides: Any) -> Any:
    """Inference of a folder, or a report of its cases, by random weights."""
    places = {"dataset_dir": str(data), "ckpt_dir": str(weights)}
    built = bundle.workflow("inference.json", *more, kind="infer", **bundle.small_network, **places, **overrides)
    built.parser.parse()
    torch.manual_seed(0)
    weights.mkdir(parents=True, exist_ok=True)
    torch.save(built.parser.get_parsed_content("network_def").state_dict(), weights / "model.pt")
    return built


@only_ms
@pytest.mark.parametrize("more", [(), ("case_report.json",)], ids=["inference", "report"])
def test_registered_scans_are_segmented_and_no_prediction_again(bundle, tmp_path, more):
    """The challenge's folders have originals, too, on grids of their own; results may lie below the same folder."""
    data = _official_ms(tmp_path / "official")
    (data / "training01/preprocessed/._training01_01_flair_pp.nii.gz").write_bytes(b"a Mac's")
    predictions = data / "predicted"
    for _ in range(2):
        built = _inference(bundle, data, tmp_path / "models", output_dir=str(predictions))
        built.initialize()
        built.run()
        assert len(list(predictions.rglob("*.nii.gz"))) == 5, "one of each visit"
    built = _inference(bundle, data, tmp_path / "models", *more, output_dir=str(tmp_path / "out"))
    built.initialize()
    expected = [
        [str(data / f"training0{k}/preprocessed/training0{k}_01_{key}_pp.nii.gz") for key in ms_lesions.MODALITIES]
        for k in range(1, 6)
    ]
    assert built.parser.get_parsed_content("datalist") == expected
    if more:
        built.run()
        assert len(json.loads((tmp_path / "out" / "case_report.json").read_text())["cases"]) == 5


@only_ms
def test_an_incomplete_scan_is_left_out_and_said(bundle, tmp_path, capsys):
    data = tmp_path / "official"
    shutil.copytree(bundle.data / "cases", data)
    first, *others = sorted(data.rglob("*flair*"))
    lost = first.with_name(first.name.replace("flair", "pd"))
    lost.unlink()
    shutil.copy(first, first.with_name("flair_lesion.nii.gz"))
    built = _inference(bundle, data, tmp_path / "models")
    built.initialize()
    assert [files[0] for files in built.parser.get_parsed_content("datalist")] == [str(path) for path in others]
    assert capsys.readouterr().out.count("note: a scan is left out") == 1
    for path in others:
        path.with_name(path.name.replace("flair", "t2")).unlink()
    with pytest.raises(SystemExit, match=f"has all of flair, mprage, pd, t2, .*: there is no {lost}, no .*t2.*; add"):
        _inference(bundle, data, tmp_path / "models").initialize()
    for path in data.rglob("*.nii.gz"):
        if path.name != first.name:
            path.unlink()
    with pytest.raises(SystemExit, match=r"there is no .*mprage\.nii\.gz, no .*pd\.nii\.gz, no .*t2\.nii\.gz; add"):
        _inference(bundle, data, tmp_path / "models").initialize()


def _official_lidc(folder: Path) -> Path:
    """Four patients with a nodule each: three readers outline it, one overlooks it; the last scan has three readers."""
    pytest.importorskip("pydicom", reason="DICOM series are read with pydicom")
    from tests.unit import test_data_prep_lidc as made  # not above: without pydicom it is skipped as a whole

    for patient in range(1, 5):
        where, uid = made.scan_folder(folder / "official", patient), f"1.2.{patient}"
        made.write_series(where, f"LIDC-IDRI-{patient:04d}", uid)
        readers = [
            ["".join(made.square(k, top, 12, side) for k in (2, 3, 4))] for top, side in ((10, 8), (9, 10), (11, 6))
        ]
        made.write_xml(where / "069.xml", uid, *readers, *([[]] if patient < 4 else []))
    where = ["--folder", str(folder / "official"), "--output_dir", str(folder / "prepared"), "--size", "28"]
    assert made.lidc.main(where) == 0
    return folder / "prepared"


@only_lidc
def test_readers_masks_are_taken_as_they_are_and_the_majority_is_scored(bundle, tmp_path):
    data = _official_lidc(tmp_path)
    official = VolumeBundle(**{**vars(bundle), "data": data})
    steps, number = official.parsed(tmp_path / "out", "validate#preprocessing", "num_annotators")
    assert number == 4
    unread = 0
    for section in ("training", "validation", "test"):
        for listed in load_datalist(data / "datalist.json", section):
            item, readers = steps(listed), np.stack([load(Path(name))[..., 0] for name in listed["positive"]])
            assert np.array_equal(item["positive"], readers)
            assert float(item["image"].min()) >= 0
            assert float(item["image"].max()) <= 1
            ones, zeros = ((readers == value).sum(0) for value in (1, 0))
            majority = np.select([ones > zeros, zeros > ones], [1, 0], 255)
            assert np.array_equal(item["label"][0], majority), "a draw is unknown"
            unread += (readers[3] == 255).all()
            assert (majority == 255).any() == (readers[3] != 255).all(), "two of four who say so are a draw"
    assert unread > 0


def test_what_data_prep_makes_is_trained_on_evaluated_and_segmented(bundle, tmp_path):
    make = {"ms_lesions": _official_ms, "brats": _official_brats, "lidc": _official_lidc}[bundle.name]
    official = VolumeBundle(**{**vars(bundle), "data": make(tmp_path / "official")})
    official.train(tmp_path / "run", max_epochs=1, warmup_epochs=0)
    assert official.metrics(tmp_path / "run")["facts"]["data"] == official.data.name
    table = official.evaluate(tmp_path / "run")
    assert len(table["images"]) == len(official.items("test"))
    arguments = {"dataset_dir": str(official.data), "ckpt_dir": str(tmp_path / "run" / "models")}
    official.run(
        "inference.json", kind="infer", output_dir=str(tmp_path / "out"), **official.small_network, **arguments
    )
    number = sum(len(official.items(section)) for section in ("training", "validation", "test"))
    assert len(list((tmp_path / "out").rglob(f"*_{official.postfix}.nii.gz"))) == number
