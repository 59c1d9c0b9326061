"""Calibration of an evaluation, against a loop over its pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted, Compose
from torch import nn

from medcoarse.calibration_report import CalibrationReport
from medcoarse.files import write_json
from tests.reference import distribution_reference as reference


def batches(size, num_classes, number=3, labels_at=1):
    """Pairs of images, the last alone; labels, some unknown, on a grid so many times as fine, and fields of view."""
    generator = torch.Generator().manual_seed(0)
    fine = tuple(labels_at * length for length in size)
    for n in range(number):
        pair = 2 if n < number - 1 else 1
        label = torch.randint(0, num_classes, (pair, 1, *fine), generator=generator)
        label[torch.rand(label.shape, generator=generator) < 0.2] = 255
        mask = (torch.rand(label.shape, generator=generator) < 0.7).byte()
        yield {"image": torch.randn(pair, 1, *size, generator=generator), "label": label, "mask": mask}


def written(path, data, network, names, **options):
    """What the report writes of an evaluation that makes label maps of all predictions."""
    discrete = Compose([AsDiscreted(keys="pred", argmax=True)])
    report = CalibrationReport(names, path, **options)
    evaluator = SupervisedEvaluator(torch.device("cpu"), data, network, postprocessing=discrete, val_handlers=[report])
    evaluator.run()
    assert evaluator.state.output[0]["pred"].shape[0] == 1, "label maps, as without the report"
    return json.loads(path.read_text())["calibration"]


def expected(data, network, num_classes, mask_key=None, num_bins=15, finer=1):
    """All pixels of the data set in one row."""
    probs, labels, masks = [], [], []
    for batch in data:
        with torch.no_grad():
            p = network(batch["image"]).softmax(1)
        for axis in range(2, p.ndim):
            p = p.repeat_interleave(finer, axis)
        probs.append(p.movedim(1, 0).flatten(1))
        labels.append(batch["label"].flatten())
        masks.append(batch["mask"].flatten())
    p, y = torch.cat(probs, 1).numpy(), torch.cat(labels).numpy()
    mask = torch.cat(masks).numpy() if mask_key else None
    errors = [
        reference.calibration_error(reference.reliability(p, y, num_bins, k or None, mask)) for k in range(num_classes)
    ]
    brier, nll = reference.brier_and_nll(p, y, mask)
    known = (y != 255) & (np.ones_like(y) if mask is None else mask).astype(bool)
    own = {f"ece_class{k}": errors[k] for k in range(1, num_classes)}
    return {"num_images": 5, "num_pixels": known.sum(), "ece": errors[0], **own, "brier": brier, "nll": nll}


@pytest.mark.parametrize("size", [(6, 7), (4, 3, 5)])
@pytest.mark.parametrize(("num_classes", "num_bins"), [(2, 15), (4, 3)])
@pytest.mark.parametrize("mask_key", [None, "mask"])
def test_scores_are_those_of_all_pixels_of_the_data_set(tmp_path, size, num_classes, num_bins, mask_key):
    torch.manual_seed(0)
    network = (nn.Conv2d if len(size) == 2 else nn.Conv3d)(1, num_classes, 3, padding=1)
    data, names = list(batches(size, num_classes)), [f"class{k}" for k in range(num_classes)]
    found = written(tmp_path / "scores.json", data, network, names, mask_key=mask_key, num_bins=num_bins)
    assert found == pytest.approx(expected(data, network, num_classes, mask_key, num_bins), rel=1e-5)


def test_probabilities_go_to_the_grid_of_the_label(tmp_path):
    def enlarged(item):
        p = item["pred"].softmax(0)
        return {"pred": p.repeat_interleave(2, 1).repeat_interleave(2, 2)}

    torch.manual_seed(0)
    network, data = nn.Conv2d(1, 2, 3, padding=1), list(batches((5, 4), 2, labels_at=2))
    found = written(tmp_path / "scores.json", data, network, ["class0", "class1"], postprocessing=enlarged)
    assert found == pytest.approx(expected(data, network, 2, finer=2), rel=1e-5)
    with pytest.raises(ValueError, match=r"label must be \(1, 1, 5, 4\) to match probs, got \(1, 1, 10, 8\)"):
        written(tmp_path / "scores.json", data, network, ["class0", "class1"])


def test_sure_and_wrong_is_finite_and_other_scores_stay(tmp_path):
    class Sure(nn.Module):
        def forward(self, image):
            return 300 * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(len(image), 2, *image.shape[2:])

    write_json(tmp_path / "scores.json", {"dataset": {"iou": 0.5}})
    batch = {"image": torch.zeros(1, 1, 1, 4), "label": torch.tensor([[[[0, 0, 0, 1]]]])}
    found = written(tmp_path / "scores.json", [batch], Sure(), ["class0", "class1"])
    assert found == pytest.approx(
        {"num_images": 1, "num_pixels": 4, "ece": 0.25, "ece_class1": 0.25, "brier": 0.5, "nll": 150.0}
    )
    assert json.loads((tmp_path / "scores.json").read_text())["dataset"] == {"iou": 0.5}


def test_a_second_run_starts_anew_and_nothing_known_is_no_score(tmp_path):
    network, (batch, *_) = nn.Conv2d(1, 2, 1), batches((3, 3), 2)
    report = CalibrationReport(["class0", "class1"], tmp_path / "scores.json")
    for label in (batch["label"], torch.full_like(batch["label"], 255)):
        evaluator = SupervisedEvaluator(torch.device("cpu"), [batch | {"label": label}], network, val_handlers=[report])
        evaluator.run()
        found = json.loads((tmp_path / "scores.json").read_text())["calibration"]
    assert found.pop("num_images") == 2
    assert found.pop("num_pixels") == 0
    assert set(found.values()) == {None}


def test_every_class_has_a_name(tmp_path):
    with pytest.raises(ValueError, match=r"class_names has 2 names \(class0, class1\), the network gives 3 classes"):
        written(tmp_path / "scores.json", list(batches((3, 3), 2)), nn.Conv2d(1, 3, 1), ["class0", "class1"])
