"""CycleMix: what mixing, holes and turns do to images, labels and predictions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from medcoarse.baselines.cyclemix import (
    CycleMix,
    CycleMixLoss,
    CycleMixOutput,
    dissimilarity,
    largest_components,
    paste,
    saliency,
    salient_box,
)
from medcoarse.baselines.partial import PartialLoss
from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.losses import consensus


def batch(size=(8, 8), number=4, classes=3, seed=0, drawn=0.5):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(number, 1, *size, generator=generator)
    positive = torch.randint(0, classes, (number, 1, *size), generator=generator, dtype=torch.uint8)
    positive[torch.rand(positive.shape, generator=generator) > drawn] = 255
    return image, Annotations(positive=positive, image=image)


def pointwise(spatial_dims=2, classes=3):
    torch.manual_seed(0)
    layer = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims](1, classes, 1)
    layer.weight.data *= 5
    return layer


class Looking(nn.Module):
    """A network that is not equivariant: it looks around and knows where it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Conv2d(1, 3, 5, padding=2)

    def forward(self, image):
        return self.layer(image) + torch.arange(image.shape[-1])


def test_a_mix_ratio_of_one_is_the_partial_loss_twice_and_consistent():
    image, target = batch()
    model = CycleMix(Looking(), 3, mix_ratio=1.0, hole_ratio=0.0, turn=False)
    output = model(image, target)
    loss = CycleMixLoss(3, integrity_weight=0, consistency_weight=1)
    value = loss(output, target)
    partial = PartialLoss(3, dice_weight=0)(CoupledOutput(model.segmenter(image)), target)
    assert torch.equal(output.label, target.positive)
    assert value.item() == pytest.approx(2 * partial.item(), rel=1e-5)
    assert loss.parts["consistency"].item() == pytest.approx(0, abs=1e-6)
    assert loss.parts["mixed"].item() == pytest.approx(partial.item(), rel=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (6, 9), (4, 4, 6)])
def test_an_equivariant_network_is_consistent_whatever_is_done(size):
    image, target = batch(size)
    model = CycleMix(pointwise(len(size)), 3, hole_ratio=0.4)
    loss = CycleMixLoss(3)
    for _ in range(8):
        loss(model(image, target), target)
        assert loss.parts["consistency"].item() == pytest.approx(0, abs=1e-6)


def test_a_network_that_is_not_equivariant_is_not():
    image, target = batch()
    loss = CycleMixLoss(3)
    for options in ({"mix_ratio": 0.5, "hole_ratio": 0, "turn": False}, {"mix_ratio": 1.0, "hole_ratio": 0}):
        model, found = CycleMix(Looking(), 3, **options), []
        for _ in range(8):
            loss(model(image, target), target)
            found.append(loss.parts["consistency"].item())
        assert max(found) > 1e-4


@pytest.mark.parametrize("size", [(8, 8), (6, 9), (4, 4, 6)])
def test_unlabeled_stays_unlabeled_and_labels_stay_with_their_pixels(size):
    image, target = batch(size, drawn=0.6)
    codes = torch.arange(image.numel()).view(image.shape).float() + 1  # every pixel is one of its own

    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = []

        def forward(self, image):
            self.seen.append(image.detach())
            return torch.cat([image, -image, 0 * image], 1)

    for seed in range(5):
        recorder = Recorder()
        output = CycleMix(recorder, 3, hole_ratio=0.3, seed=seed)(codes, target)
        mixed = output.mixed[:, :1].detach()  # what was seen, turned back
        hole = ~output.visible
        assert torch.equal(mixed == 0, hole)
        known = target.positive.flatten()[(mixed.long() - 1).clamp_min(0).flatten()].view_as(mixed)
        assert torch.equal(output.label, known.masked_fill(hole, 255))
        assert (output.label == 255).any()
        assert output.label.dtype == torch.uint8
        assert len(recorder.seen) == 2
        assert hole.flatten(1).sum(1).unique().tolist() == [math.prod(round(0.3 * n) for n in size)]


@pytest.mark.parametrize("size", [(5, 7), (3, 4, 5), (6,)])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
def test_the_box_holds_the_most_saliency(size, ratio):
    values = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    box = [round(n * (1 - ratio) ** (1 / len(size))) for n in size]
    found = salient_box(values, ratio)
    for b in range(2):
        every = [
            values[b, 0][tuple(slice(c, c + n) for c, n in zip(corner, box, strict=True))].sum().item()
            for corner in itertools.product(*[range(n - m + 1) for n, m in zip(size, box, strict=True)])
        ]
        assert found[b].sum() == math.prod(box)
        assert values[b][found[b]].sum().item() == pytest.approx(max(every))


def test_saliency_by_finite_differences():
    image, target = batch((3, 4), number=1)
    network = nn.Conv2d(1, 3, 3, padding=1).double()
    image = image.double().requires_grad_()
    found = saliency(network(image), image, target.positive)
    for place in itertools.product(range(3), range(4)):
        step = torch.zeros_like(image)
        step[(0, 0, *place)] = 1e-4
        ce = [
            nn.functional.cross_entropy(network(image + s * step), target.positive[:, 0].long(), ignore_index=255)
            for s in (1, -1)
        ]
        assert found[(0, 0, *place)].item() == pytest.approx(abs((ce[0] - ce[1]).item()) / 2e-4, rel=1e-3, abs=1e-6)


def test_pasting_takes_the_partner_in_its_box_alone():
    maps = torch.arange(12).view(3, 1, 4)
    box = torch.tensor([[[1, 0, 0, 0]], [[0, 0, 0, 0]], [[1, 1, 1, 1]]]).bool()
    assert paste(maps, torch.tensor([2, 0, 1]), box).tolist() == [[[8, 1, 2, 3]], [[4, 5, 6, 7]], [[4, 5, 6, 7]]]


def test_what_is_pasted_is_what_is_salient_in_the_partner():
    """Every image has one drawn pixel, which alone is salient; boxes are one pixel large."""
    image, _ = batch(number=6)
    positive = torch.full(image.shape, 255, dtype=torch.uint8)
    drawn = [(n, 7 - n) for n in range(6)]
    for n, place in enumerate(drawn):
        positive[(n, 0, *place)] = 1
    model = CycleMix(pointwise(), 3, mix_ratio=1 - 1 / 64, hole_ratio=0, turn=False)
    label = model(image, Annotations(positive=positive)).label
    moved = 0
    for n, place in enumerate(drawn):
        known = {(int(row), int(column)) for row, column in (label[n, 0] != 255).nonzero()}
        assert place in known
        assert known <= set(drawn)
        moved += len(known) - 1
    assert moved >= 4, "at most a few are their own partners"


def test_the_share_that_is_kept_is_arcsine_distributed():
    model = CycleMix(nn.Identity(), 2)
    drawn = np.sort([model._ratio() for _ in range(3000)])
    expected = 2 / math.pi * np.arcsin(np.sqrt(drawn))
    assert np.abs(expected - np.arange(3000) / 3000).max() < 0.04


def test_draws_follow_seed_and_epoch():
    image, target = batch()

    def labels(epochs, seed=0):
        model, seen = CycleMix(pointwise(), 3, seed=seed), []
        engine = Engine(lambda engine, _: seen.append(model(image, target).label))
        model.chance.attach(engine)
        engine.run([0, 0], max_epochs=epochs)
        return seen

    whole, again, other = labels(2), labels(2), labels(2, seed=1)
    assert all(torch.equal(one, same) for one, same in zip(whole, again, strict=True))
    assert not all(torch.equal(one, same) for one, same in zip(whole, other, strict=True))
    assert not all(torch.equal(one, same) for one, same in zip(whole[:2], whole[2:], strict=True))


def test_largest_components_by_hand():
    found = torch.tensor([[1, 1, 0, 2], [0, 0, 0, 2], [1, 0, 1, 0], [1, 0, 0, 2]])
    wanted = torch.tensor([[1, 1, 0, 2], [0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]])
    wanted_other = torch.tensor([[0, 0, 0, 2], [0, 0, 0, 2], [1, 0, 0, 0], [1, 0, 0, 0]])
    one_hot = nn.functional.one_hot(found, 3).movedim(-1, 0)[None].float()
    kept = largest_components(one_hot)
    assert torch.equal(kept.sum(1), torch.ones(1, 4, 4))
    label = kept.argmax(1)[0]
    assert torch.equal(label, wanted) or torch.equal(label, wanted_other), "two components of class 1 are as large"
    only_background = torch.zeros(1, 3, 2, 2, 2)
    only_background[:, 0] = 1
    assert torch.equal(largest_components(only_background), only_background)
    diagonal = torch.eye(3)[None, None]
    assert torch.equal(largest_components(torch.cat([1 - diagonal, diagonal], 1))[:, 1:], diagonal)


def test_integrity_can_be_left_out_and_costs_where_there_are_two_pieces():
    probs = torch.full((1, 2, 3, 5), 0.01)
    probs[:, 1, 0, :3] = 0.99
    whole, pieces = probs.clone(), probs.clone()
    pieces[:, 1, 2, 4] = 0.99
    found = {}
    for name, one in (("whole", whole), ("pieces", pieces)):
        one[:, 0] = 1 - one[:, 1]
        output = CycleMixOutput(
            one.log(), one.log(), torch.zeros(1, 1, 3, 5).byte(), one, torch.ones(1, 1, 3, 5, dtype=torch.bool)
        )
        loss = CycleMixLoss(2)
        loss(output, Annotations(positive=output.label))
        found[name] = loss.parts["integrity"].item()
        without = CycleMixLoss(2, integrity_weight=0)
        without(output, Annotations(positive=output.label))
        assert "integrity" not in without.parts
    kept = whole.round()
    expected = 1 - (pieces * kept).sum() / (pieces.norm() * kept.norm())
    assert found["pieces"] == pytest.approx(expected.item(), rel=1e-4)
    assert found["whole"] < 1e-3 < found["pieces"]
    assert dissimilarity(whole, whole).item() == pytest.approx(0, abs=1e-6)


def test_every_weight_is_applied():
    image, target = batch()
    negative = target.positive.flip(-1)
    target = target._replace(negative=negative)
    output = CycleMix(Looking(), 3)(image, target)
    loss = CycleMixLoss(3, 0.5, 0.2, 0.3, dice_weight=0.7)
    value, parts = loss(output, target).item(), loss.parts
    expected = parts["drawn nll"] + 0.7 * parts["drawn dice"] + 0.5 * parts["mixed"] + 0.2 * parts["integrity"]
    assert value == pytest.approx((expected + 0.3 * parts["consistency"]).item(), rel=1e-5)
    drawn = consensus(target, 3)
    assert parts["drawn nll"].item() == pytest.approx(
        nn.functional.cross_entropy(output.logits, drawn[:, 0].long(), ignore_index=255).item(), rel=1e-5
    )


def test_nothing_drawn_and_single_images():
    image, target = batch((1, 1), number=1)
    nothing = Annotations(positive=torch.full_like(target.positive, 255))
    model = CycleMix(pointwise(), 3)
    loss = CycleMixLoss(3)
    loss(model(image, nothing), nothing).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(model.eval()(image), model.segmenter(image))


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        CycleMix(nn.Identity(), 2, hole_ratio=2)
    with pytest.raises(ValueError, match="drawings or masks to mix, got neither"):
        CycleMix(nn.Identity(), 2)(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="must not be negative"):
        CycleMixLoss(2, consistency_weight=-1)
    with pytest.raises(TypeError, match="takes a CycleMix's output"):
        CycleMixLoss(2)(CoupledOutput(torch.zeros(1, 2, 3)), Annotations())
