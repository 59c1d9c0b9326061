"""The gated CRF against all pairs one by one, and against finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from medcoarse.baselines.gated_crf import GatedCRFLoss, gated_crf, rescaled
from medcoarse.baselines.partial import PartialLoss
from medcoarse.confusion import Annotations, CoupledOutput


def slow(probs, image, source=None, destination=None, radius=5, sigma_xy=6.0, sigma_rgb=0.1, spacing=None):
    """Every pair of pixels in turn."""
    size, total, asked = probs.shape[2:], 0.0, 0.0
    places = list(itertools.product(*map(range, size)))
    spacing = spacing or [1.0] * len(size)
    for b in range(len(probs)):
        for i in places:
            gate = 1.0 if source is None else float(source[(b, 0, *i)])
            asked += gate
            for j in places:
                steps = [y - x for x, y in zip(i, j, strict=True)]
                if i == j or max(map(abs, steps)) > radius:
                    continue
                end = 1.0 if destination is None else float(destination[(b, 0, *j)])
                far = sum((s * mm) ** 2 for s, mm in zip(steps, spacing, strict=True)) / (2 * sigma_xy**2)
                look = sum(float(c[(b, *i)] - c[(b, *j)]) ** 2 for c in image.unbind(1)) / (2 * sigma_rgb**2)
                same = sum(float(p[(b, *i)] * p[(b, *j)]) for p in probs.unbind(1))
                total += gate * end * math.exp(-far - look) * (1 - same)
    return total / max(asked, 1)


def problem(size, classes=3, channels=2, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(batch, classes, *size, generator=generator, dtype=torch.double).softmax(1)
    image = 0.2 * torch.rand(batch, channels, *size, generator=generator, dtype=torch.double)
    gates = [torch.rand(batch, 1, *size, generator=generator).lt(0.6).double() for _ in range(2)]
    return probs, image, *gates


@pytest.mark.parametrize(("size", "radius"), [((5, 7), 2), ((5, 7), 9), ((1, 4), 1), ((3, 2, 4), 1), ((6,), 5)])
@pytest.mark.parametrize("gated", [False, True])
def test_energy_is_that_of_all_pairs(size, radius, gated):
    probs, image, *gates = problem(size)
    gates = gates if gated else [None, None]
    spacing = [1.0, 0.5, 2.0][: len(size)]
    expected = slow(probs, image, *gates, radius, 2.0, 0.1, spacing)
    found = gated_crf(probs, image, *gates, radius, 2.0, 0.1, spacing)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    assert expected > 0


@pytest.mark.parametrize("gated", [False, True])
def test_slope_is_that_of_finite_differences(gated):
    probs, image, *gates = problem((4, 3))
    gates = gates if gated else [None, None]
    probs.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: gated_crf(p, image, *gates, radius=2), probs)


def test_what_is_kept_for_the_slope_does_not_grow_with_the_radius():
    probs, image, *_ = problem((16, 16))

    def kept(radius):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            gated_crf(probs.clone().requires_grad_(), image, radius=radius)
        return sum(saved)

    assert kept(1) == kept(7) <= 2 * probs.numel()


def test_a_single_pixel_and_a_shut_gate_cost_nothing():
    probs, image, *_ = problem((1, 1))
    assert gated_crf(probs, image) == 0
    probs, image, *_ = problem((4, 4))
    probs.requires_grad_()
    value = gated_crf(probs, image, torch.zeros(2, 1, 4, 4))
    assert value == 0
    assert torch.autograd.grad(value, probs)[0].abs().sum() == 0


def test_outside_the_field_of_view_nothing_matters():
    probs, image, view, _ = problem((6, 5))
    other = torch.where(view > 0, probs, 1 / 3)
    strange = torch.where(view > 0, image, 7.0)
    assert gated_crf(probs, image, view, view).item() == pytest.approx(gated_crf(other, strange, view, view).item())


def test_certain_and_equal_classes_have_no_energy():
    probs = torch.zeros(1, 3, 5, 5)
    probs[:, 1] = 1
    image = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert gated_crf(probs, image).item() == pytest.approx(0, abs=1e-4)


def target_of(size=(6, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 3, (2, 1, *size), generator=generator, dtype=torch.uint8)
    drawn[torch.rand(drawn.shape, generator=generator) < 0.7] = 255
    logits = torch.randn(2, 3, *size, generator=generator, requires_grad=True)
    image = 100 + 50 * torch.rand(2, 2, *size, generator=generator)
    return CoupledOutput(logits), Annotations(positive=drawn, image=image)


@pytest.mark.parametrize("gate", ["all", "undrawn"])
@pytest.mark.parametrize("size", [(6, 8), (3, 4, 5)])
def test_loss_is_the_partial_loss_and_the_energy(gate, size):
    output, target = target_of(size)
    loss = GatedCRFLoss(3, dice_weight=0.5, crf_weight=0.3, gate=gate, radius=2)
    low, high = target.image.flatten(2).amin(2), target.image.flatten(2).amax(2)
    low, high = (one.view(*one.shape, *[1] * len(size)) for one in (low, high))
    source = (target.positive == 255).float() if gate == "undrawn" else None
    energy = slow(output.logits.detach().softmax(1), (target.image - low) / (high - low), source, None, 2)
    expected = PartialLoss(3, dice_weight=0.5)(output, target).item() + 0.3 * energy
    assert loss(output, target).item() == pytest.approx(expected, rel=1e-4)
    assert set(loss.parts) == {"drawn nll", "drawn dice", "crf"}


def test_lower_resolution_is_the_energy_of_block_means():
    output, target = target_of((6, 8))
    loss = GatedCRFLoss(3, reduction=2, gate="undrawn")
    loss(output, target)
    blocks = torch.nn.AvgPool2d(2)
    undrawn = (target.positive == 255).float()
    expected = slow(*(blocks(one) for one in (output.logits.detach().softmax(1), rescaled(target.image), undrawn)))
    assert loss.parts["crf"].item() == pytest.approx(expected, rel=1e-4)
    odd_output, odd_target = target_of((5, 7))
    loss(odd_output, odd_target).backward()
    assert odd_output.logits.grad.isfinite().all()


def test_undrawn_pixels_learn_from_their_looks():
    output, target = target_of()
    loss = GatedCRFLoss(3)
    slope = torch.autograd.grad(loss(output, target), output.logits)[0].abs().sum(1, keepdim=True)
    assert (slope > 0).all()
    nothing = target._replace(positive=torch.full_like(target.positive, 255))
    value = loss(output, nothing)
    assert value.item() == pytest.approx(0.1 * loss.parts["crf"].item(), rel=1e-4)


def test_no_weight_is_the_partial_loss():
    output, target = target_of()
    assert GatedCRFLoss(3, crf_weight=0)(output, target._replace(image=None)) == PartialLoss(3)(output, target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crf_weight": -1.0}, "crf_weight >= 0"),
        ({"reduction": 0}, "reduction >= 1"),
        ({"gate": "half"}, "one of all, undrawn, got 'half'"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        GatedCRFLoss(2, **arguments)


def test_what_the_energy_asks_for():
    output, target = target_of()
    with pytest.raises(ValueError, match="the gated CRF looks at the image"):
        GatedCRFLoss(3)(output, target._replace(image=None))
    with pytest.raises(ValueError, match="radius >= 1"):
        gated_crf(torch.ones(1, 2, 3), torch.ones(1, 1, 3), radius=0)
    with pytest.raises(ValueError, match="agree in batch and size"):
        gated_crf(torch.ones(1, 2, 3), torch.ones(1, 1, 4))
