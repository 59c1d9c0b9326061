"""What else learns from several annotators, on volumes and slices: the methods of bundles/mnist with these bundles."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch

from medcoarse.fusion.voting import mean_label
from medcoarse.synthetic.volumes import write_ms_dataset
from tests.bundles.test_volumes import MS_SHAPE, SCORED, bundle, only_ms, who_simulate

__all__ = ["bundle"]

FEW = {"confusion#report#num_draws": 2, "distribution#num_samples": 10}
DISTRIBUTION = "../../mnist/configs/evaluate_distribution.json"
EM_EPOCHS = {"em_epochs": [2]}
METHODS = {
    "one CNN per annotator": ("nobody", 5, {}, ["per_annotator"]),
    "Probabilistic U-Net": ("nobody", 7, {"network_def#num_samples": 7}, ["probabilistic_unet"]),
    "generalized EM": ("generalized_em", 1, EM_EPOCHS, ["generalized_em"]),
    "model-bootstrapped EM": ("bootstrapped_em", 1, EM_EPOCHS, ["generalized_em", "bootstrapped_em"]),
}


def configs(bundle, names):
    """A method's files; where patches are cropped, soft labels need one more."""
    files = [f"../../mnist/configs/{name}.json" for name in names]
    own = ["soft_labels.json"] if "generalized_em" in names and bundle.name == "ms_lesions" else []
    return ("train.json", *files, *own)


@who_simulate
@pytest.mark.parametrize("per_image", [5, 1])
@pytest.mark.parametrize("method", list(METHODS))
def test_methods_are_trained_and_scored(bundle, tmp_path, method, per_image):
    who, members, own, names = METHODS[method]
    options = bundle.small | bundle.places(tmp_path) | {"annotators_per_image": per_image, "max_epochs": 2}
    options |= {"warmup_epochs": "@max_epochs", "annotator_learning_rate": "@learning_rate"} | own
    balance = {"loss#balance": 0.5}
    bundle.run(*configs(bundle, names), **options, **balance)
    built = bundle.run(*configs(bundle, names), *SCORED[1:], DISTRIBUTION, **options, **balance, **FEW)
    assert built.parser.get_parsed_content("matrices_of") == who
    assert built.parser.get_parsed_content("loss").balance == 0.5
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert (found["annotators"]["image"]["cm_error"] is None) == (who == "nobody")
    for image in found["distribution"]["images"]:
        assert image["num_annotations"] == 5
        assert image["num_segmentations"] == members * (10 // members)
        assert 0 <= image["ged_iou"] <= 2


@who_simulate
@pytest.mark.parametrize("per_image", [5, 1])
def test_known_matrices_are_those_of_the_drawings(bundle, tmp_path, per_image):
    """Who draws 2 mm too much does so in every drawing alike: where he drew a class his matrix says so for sure."""
    options = bundle.small | bundle.places(tmp_path) | {"warmup_epochs": 0, "num_draws": 3}
    built = bundle.run("train.json", "oracle.json", **options, annotators_per_image=per_image)
    number, sure, seen = len(bundle.class_names), 0, 0
    for item in built.parser.get_parsed_content("train#dataset"):
        for part in item if isinstance(item, list) else [item]:
            assert set(part) == {"image", "positive", "confusion"}, "the truth stays out of reach"
            drawn = part["positive"][1].long()
            matrices = part["confusion"].unflatten(0, (5, number, number))
            drew = drawn != 255
            assert torch.allclose(matrices.sum(1)[:, :, drew], torch.ones(()), atol=1e-5)
            of_drawn = matrices[1].gather(0, drawn.where(drew, 0).expand(1, number, *drawn.shape))[0].amax(0)[drew]
            sure += int((of_drawn > (3 + 0.5) / (3 + number / 2) - 1e-4).sum())
            seen += of_drawn.numel()
    assert sure == seen > 0


@only_ms
def test_beyond_the_volume_soft_labels_and_known_matrices_say_nothing(bundle, tmp_path):
    size = bundle.small | bundle.places(tmp_path) | {"patch_size": [16, 16, 16]}
    soft = bundle.workflow(*configs(bundle, ["generalized_em"]), **size)
    soft.initialize()
    soft.parser.get_parsed_content("em").initialize()
    for item in soft.parser.get_parsed_content("train#dataset"):
        for part in item:
            assert part["label"].shape == (2, 16, 16, 16)
            known = part["label"].sum(0)
            assert torch.equal(known > 0, (part["positive"] != 255).any(0))
            assert (known == 0).float().mean() == pytest.approx(1 - MS_SHAPE[2] / 16)
            mean = mean_label(part["positive"][None], 2)[0]
            assert torch.allclose(part["label"], mean.float(), atol=1e-3), "label and drawings are cropped together"
    known = bundle.workflow("train.json", "oracle.json", **size)
    known.initialize()
    for item in known.parser.get_parsed_content("train#dataset"):
        for part in item:
            beyond = (part["positive"] == 255).all(0)
            assert beyond.any()
            assert (part["confusion"][:, beyond] == 1).all(), "whose logarithm is 0, not infinite"


@only_ms
def test_with_soft_labels_patches_are_centred_on_what_is_drawn(bundle, tmp_path):
    """Half of them, but for those that are moved because they would reach beyond the volume."""
    where = {"dataset_dir": str(write_ms_dataset(tmp_path / "large", 2, 1, 1)), "patch_size": [8, 8, 4]}
    options = bundle.small | bundle.places(tmp_path) | where | {"patches_per_volume": 200}
    built = bundle.workflow(*configs(bundle, ["generalized_em"]), **options)
    built.initialize()
    built.parser.get_parsed_content("em").initialize()
    drawn = [part["positive"][:, 4, 4, 2] for item in built.parser.get_parsed_content("train#dataset") for part in item]
    assert 0.25 < np.mean([bool((one == 1).any()) for one in drawn]) < 0.65


@pytest.mark.parametrize("bundle", ["ms_lesions", "brats", "lidc"], indirect=True)
def test_one_head_an_annotator(bundle, tmp_path):
    """Trained from one drawing each, scored, its matrices and its members too, and applied to files."""
    read = bundle.name == "lidc"  # its readers are nobody's simulation, so that their true matrices are not known
    small = bundle.small | bundle.places(tmp_path) | {"annotators_per_image": 1, "max_epochs": 3}
    bundle.run("train.json", "heads.json", **small)
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(name.startswith(("network.", "votes")) for name in weights)
    scored = ("evaluate.json", "evaluate_distribution.json") if read else (*SCORED[1:], DISTRIBUTION)
    few = {"distribution#num_samples": 8} if read else FEW
    built = bundle.run("train.json", "heads.json", *scored, **small, **few)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    if not read:
        assert built.parser.get_parsed_content("matrices_of") == "networks"
        assert found["annotators"]["image"]["cm_error"] < 1
    assert all(
        image["num_segmentations"] == few["distribution#num_samples"] for image in found["distribution"]["images"]
    )
    bundle.run("train.json", "heads.json", "review.json", **small)
    reviewed = json.loads((tmp_path / "annotators.json").read_text())["annotators"]
    assert sum(one["num_images"] for one in reviewed) == len(bundle.items("training")), "one each"
    apply = bundle.places(tmp_path) | {"dataset_dir": str(bundle.data / "cases"), "output_dir": str(tmp_path / "seg")}
    bundle.run(
        "inference.json", "heads.json", kind="infer", num_annotators=4 if read else 5, **bundle.small_network, **apply
    )
    for item in bundle.items("test"):
        evaluated, inferred = (
            np.asanyarray(nibabel.load(bundle.prediction_of(folder, item)).dataobj).squeeze()
            for folder in (tmp_path / "predictions", tmp_path / "seg")
        )
        assert np.array_equal(evaluated, inferred)
