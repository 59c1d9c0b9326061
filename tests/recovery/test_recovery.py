"""Annotations drawn from known confusion matrices: the model must find the matrices and the truth behind them."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet
from scipy.ndimage import gaussian_filter

from medcoarse.confusion import (
    UNLABELED,
    Annotations,
    CoupledOutput,
    GlobalConfusion,
    complement,
    identity,
    sample_annotation,
    swap_transition,
)
from medcoarse.fusion.staple import staple
from medcoarse.losses import CoupledLoss
from medcoarse.metrics import confusion_counts, confusion_matrix_error, iou, mean_confusion
from medcoarse.networks import AnnotatorNet, CoupledModel
from medcoarse.transforms.dictionary import MergeStrokesd, SimulateCoarsed

SIZE, NUM_TRAINING, NUM_TEST = 32, 48, 16


def blobs(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright smooth blobs in noise: image and truth, ``(N, 1, SIZE, SIZE)``."""
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(number, SIZE, SIZE, generator=generator).numpy()
    smooth = torch.from_numpy(gaussian_filter(field, (0, 4, 4)))
    truth = (smooth > 0.5 * smooth.flatten(1).std(1)[:, None, None]).long()[:, None]
    return truth + 0.4 * torch.randn(truth.shape, generator=generator), truth


def negative_drawing(cm: torch.Tensor, truth: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What an annotator with confusion ``cm`` rules out: a complementary label of the class meant."""
    table = complement(swap_transition(2), cm.movedim(3, 1).flatten(0, 1)).unflatten(0, (len(cm), 2)).movedim(1, 3)
    return sample_annotation(table, truth, generator)


def fit(image, target, structure, floor=0.0, trace_weight=0.1, steps=240, warmup=80, num_negative=1) -> CoupledModel:
    torch.manual_seed(0)
    segmenter = UNet(2, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
    backbone = UNet(2, 1, 8, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)
    annotator = AnnotatorNet(backbone, 2, 8, 2, num_negative=num_negative, structure=structure, diagonal_floor=floor)
    model = CoupledModel(segmenter, annotator)
    loss = CoupledLoss(2, trace_weight=trace_weight, warmup="identity")
    rate = 0.05 if structure == "global" else 0.002
    groups = [{"params": segmenter.parameters()}, {"params": annotator.parameters(), "lr": rate}]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    for step in range(steps):
        model.annotating = step >= warmup
        chosen = torch.randperm(len(image))[:12]
        part = Annotations(*(None if drawing is None else drawing[chosen] for drawing in target[:2]))
        optimizer.zero_grad()
        loss(model(image[chosen]), part).backward()
        optimizer.step()
    return model


def object_iou(model, image, truth) -> float:
    with torch.no_grad():
        return iou(confusion_counts(model.eval()(image), truth, 2).sum(0))[1].item()


def cm_errors(model, image, truth, true_cms) -> list[tuple[float, float]]:
    """(error of the estimate, error of the identity) for each kind of annotator."""
    pairs = []
    with torch.no_grad():
        for estimate, true in zip(model.annotator(image), true_cms, strict=True):
            cm = estimate.dense()
            cm = cm.view(*cm.shape[:4], *(cm.shape[4:] or (1, 1))).expand(len(image), -1, -1, -1, SIZE, SIZE)
            table = mean_confusion(cm, truth).nanmean(0)[0]
            pairs.append(tuple(confusion_matrix_error(x, true).item() for x in (table, identity(2))))
    return pairs


@pytest.fixture(scope="module")
def missing_half():
    """Both annotators overlook more than half of the object, at random: no majority is right anywhere on it."""
    image, truth = blobs(NUM_TRAINING, seed=1)
    tables = torch.tensor([[0.97, 0.56], [0.03, 0.44]]), torch.tensor([[0.95, 0.58], [0.05, 0.42]])
    generator = torch.Generator().manual_seed(2)
    cms = [t.view(1, 1, 2, 2, 1, 1).expand(NUM_TRAINING, -1, -1, -1, SIZE, SIZE) for t in tables]
    drawings = sample_annotation(cms[0], truth, generator), negative_drawing(cms[1], truth, generator)
    drawn = Annotations(*drawings)
    test_image, test_truth = blobs(NUM_TEST, seed=9)
    naive = object_iou(fit(image, drawn, "global", warmup=10_000), test_image, test_truth)
    return image, tables, drawn, test_image, test_truth, naive


@pytest.mark.parametrize("structure", ["global", "low_rank", "full"])
def test_recovers_matrices_and_truth(missing_half, structure):
    image, tables, drawn, test_image, test_truth, naive = missing_half
    model = fit(image, drawn, structure)
    assert object_iou(model, test_image, test_truth) > naive + 0.3
    for error, error_of_identity in cm_errors(model, test_image, test_truth, tables):
        assert error < 0.25 * error_of_identity


def test_strokes_of_both_kinds_share_one_matrix():
    """Most pixels are undrawn and say nothing. Counted as background, the same strokes are worth next to nothing."""
    image, truth = blobs(NUM_TRAINING, seed=1)
    test_image, test_truth = blobs(NUM_TEST, seed=9)
    stroke = {"dense": False, "scribble_mm": 2.0, "ratio": 0.3, "num_parts": 2}
    draw = SimulateCoarsed("label", positive=stroke, negative=stroke | {"ratio": 0.1})
    items = [MergeStrokesd()(draw({"label": label})) for label in truth.numpy()]
    strokes = torch.stack([torch.as_tensor(item["strokes"]) for item in items]).long()
    assert 0.7 < (strokes == 255).float().mean() < 0.95
    learned = fit(image, Annotations(strokes), "low_rank", floor=0.5, num_negative=0)
    counted = fit(image, Annotations((strokes == 1).long()), "low_rank", floor=0.5, num_negative=0)
    iou_of_strokes = object_iou(learned, test_image, test_truth)
    assert iou_of_strokes > 0.55
    assert iou_of_strokes > object_iou(counted, test_image, test_truth) + 0.3


def test_drawings_explained_together_find_the_matrices_that_staple_finds():
    """Without an image, p being the prior everywhere, the joint likelihood is STAPLE's: one optimum, two ways there.

    Five people, three classes, some of it undrawn; the two who err most agree with each other in half of their errors.
    """
    generator = torch.Generator().manual_seed(0)
    prior = torch.tensor([0.6, 0.3, 0.1])
    truth = torch.multinomial(prior, 6000, replacement=True, generator=generator)[None, None]
    habits = [0.9 * torch.eye(3) + 0.1 / 3, 0.8 * torch.eye(3) + 0.2 / 3, 0.7 * torch.eye(3) + 0.1]
    habits += [torch.tensor([[0.7, 0.1, 0.1], [0.3, 0.5, 0.5], [0.0, 0.4, 0.4]])] * 2
    cms = torch.stack(habits)[None, ..., None].expand(-1, -1, -1, -1, truth.shape[2])
    drawings = sample_annotation(cms, truth, generator)
    drawings[torch.rand(drawings.shape, generator=generator) < 0.2] = UNLABELED
    found = staple(drawings, num_classes=3, prior=prior, initial_diagonal=0.8, tol=1e-9)

    table = (2 * torch.eye(3)).expand(5, 3, 3).clone().requires_grad_()
    loss, log_probs = CoupledLoss(3, joint=True), prior.log().view(1, 3, 1).expand(1, 3, truth.shape[2])
    optimizer = torch.optim.LBFGS([table], max_iter=300, line_search_fn="strong_wolfe")

    def value() -> torch.Tensor:
        optimizer.zero_grad()
        objective = loss(CoupledOutput(log_probs, GlobalConfusion(table)), Annotations(drawings))
        objective.backward()
        return objective

    optimizer.step(value)
    learned = GlobalConfusion(table.detach())
    assert torch.allclose(learned.dense()[0], found.cm[0].float(), atol=2e-3)
    assert torch.allclose(learned.dense()[0], torch.stack(habits), atol=0.06)
