"""CoarseSup, adapted: which step moves which network, in what direction, and the limits of plain training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medcoarse.baselines.coarsesup import CoarseSup, CoarseSupLoss, CoarseSupOutput
from medcoarse.confusion import Annotations, CoupledOutput, GlobalConfusion, IdentityConfusion
from medcoarse.losses import CoupledLoss
from medcoarse.networks import AnnotatorNet

PLAIN = {"prior_weight": 0.0, "entropy_weight": 0.0}
CM = torch.tensor([[[0.8, 0.3], [0.2, 0.7]]])


def model_of(structure="global", positive=1, negative=1, classes=2, channels=1):
    torch.manual_seed(0)
    annotator = AnnotatorNet(None, 2, 0, classes, positive, negative, structure)
    posterior = nn.Conv2d(channels + (positive + negative) * classes, classes, 1)
    return CoarseSup(nn.Conv2d(channels, classes, 1), annotator, posterior)


def given(classes=2, size=(2, 3), seed=0):
    """Logits of p and q, a drawing with gaps."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(2, classes, *size, generator=generator, dtype=torch.float64) for _ in range(2))
    drawing = torch.randint(0, classes, (2, 1, *size), generator=generator)
    drawing[0, 0, 0, 0] = 255
    return p, q, drawing


def output_of(p, q, confusion=None):
    return CoarseSupOutput(p, confusion, None, None, q)


def test_the_loss_of_two_pixels_by_hand():
    """p, q = (.5, .5), (.25, .75) and (.9, .1), (.6, .4); the first is drawn as 1, the second is not drawn."""
    p, q = (torch.tensor(rows).T[None].log() for rows in ([[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.6, 0.4]]))
    loss = CoarseSupLoss(2, prior_weight=2, entropy_weight=3)
    found = loss(output_of(p, q, GlobalConfusion(CM.log())), Annotations(torch.tensor([[[1, 255]]])))
    parts = {
        "posterior nll": -math.log(0.2 * 0.25 + 0.7 * 0.75),
        "posterior prior": (math.log(2) - 0.6 * math.log(0.9) - 0.4 * math.log(0.1)) / 2,
        "posterior entropy": -sum(x * math.log(x) for x in (0.25, 0.75, 0.6, 0.4)) / 2,
        "soft nll": (math.log(2) - 0.6 * math.log(0.9) - 0.4 * math.log(0.1)) / 2,
    }
    assert {name: value.item() for name, value in loss.parts.items()} == pytest.approx(parts)
    expected = parts["posterior nll"] + 3 * parts["posterior prior"] - 3 * parts["posterior entropy"]  # 2 E, 1 M
    assert found.item() == pytest.approx(expected)


def differences(function, at, step=1e-4):
    """Central differences of a function of a tensor, entry by entry."""
    slope = torch.zeros_like(at)
    for i in range(at.numel()):
        move = torch.zeros_like(at).flatten()
        move[i] = step
        move = move.view_as(at)
        slope.view(-1)[i] = (function(at + move) - function(at - move)) / (2 * step)
    return slope


def test_each_step_goes_down_in_its_own_network_only():
    """Central differences of the two steps, each written out, the other network held."""
    p, q, drawing = given()
    table = CM.log().double()
    drawn = drawing != 255

    def e_step(q, table=table):
        probs, log_p = q.softmax(1), p.log_softmax(1)
        said = torch.einsum("ij,bjxy->bixy", table[0].softmax(0), probs).gather(1, drawing.masked_fill(~drawn, 0))
        entropy = -(probs * q.log_softmax(1)).sum(1).mean()
        return -said[drawn].log().mean() + 0.05 * -(probs * log_p).sum(1).mean() - 0.01 * entropy

    def m_step(p):
        return -(q.softmax(1) * p.log_softmax(1)).sum(1).mean()

    leaves = [one.clone().requires_grad_() for one in (p, q, table)]
    loss = CoarseSupLoss(2)(output_of(*leaves[:2], GlobalConfusion(leaves[2])), Annotations(drawing))
    slopes = torch.autograd.grad(loss, leaves)
    expected = differences(m_step, p), differences(e_step, q), differences(lambda t: e_step(q, t), table)
    for slope, one in zip(slopes, expected, strict=True):
        assert torch.allclose(slope, one, atol=2e-5)
        assert one.abs().max() > 1e-3


@pytest.mark.parametrize(("option", "nearer"), [("prior_weight", "p"), ("entropy_weight", "uniform")])
def test_the_prior_draws_q_to_p_and_the_entropy_to_doubt(option, nearer):
    p, q, _ = given()
    q = q.requires_grad_()
    loss = CoarseSupLoss(2, **(PLAIN | {option: 1.0}))
    (slope,) = torch.autograd.grad(loss(output_of(p, q), Annotations(label=torch.full((2, 1, 2, 3), 255))), q)
    before, after = q.detach().softmax(1), (q - 0.01 * slope).detach().softmax(1)

    def distance(probs):
        if nearer == "p":
            return -(probs * p.log_softmax(1)).sum(1).mean()
        return (probs * probs.log()).sum(1).mean()

    assert distance(after) < distance(before) - 1e-5


def test_with_matrices_that_are_the_identity_q_learns_as_in_ordinary_training():
    p, q, drawing = given(3)
    q = q.requires_grad_()
    target = Annotations(drawing)
    found = CoarseSupLoss(3, **PLAIN)(output_of(p, q, IdentityConfusion(1)), target)
    plain = CoupledLoss(3)(CoupledOutput(q, IdentityConfusion(1)), target)
    slopes = [torch.autograd.grad(loss, q)[0] for loss in (found, plain)]
    assert torch.equal(*slopes)


def test_with_a_certain_q_p_learns_as_from_masks():
    p, _, label = given(3)
    label[label == 255] = 2
    p = p.requires_grad_()
    certain = 1e3 * nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).double()
    found = CoarseSupLoss(3, dice_weight=0.5)(output_of(p, certain, IdentityConfusion(1)), Annotations(label))
    masks = CoupledLoss(3, dice_weight=0.5)(CoupledOutput(p), Annotations(label=label))
    slopes = [torch.autograd.grad(loss, p)[0] for loss in (found, masks)]
    assert torch.allclose(*slopes, atol=1e-6)


def trained(model, loss, image, target, steps=400, warm=100):
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for step in range(steps):
        model.annotating = step >= warm
        seen = target[:2] if isinstance(model, CoarseSup) else ()
        optimizer.zero_grad()
        loss(model(image, *seen) if seen else CoupledOutput(model(image)), target).backward()
        optimizer.step()
    return model


def test_drawings_that_are_the_masks_make_q_p_and_supervised_training_one():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (20, 1, 8, 8), generator=generator)
    image = label + 0.4 * torch.randn(label.shape, generator=generator)  # classes overlap: p cannot be certain
    drawn = Annotations(label, 1 - label)
    model = trained(model_of(), CoarseSupLoss(2), image, drawn).eval()
    torch.manual_seed(0)
    supervised = trained(nn.Conv2d(1, 2, 1), CoupledLoss(2), image, Annotations(label=label))
    with torch.no_grad():
        p, plain = model(image).softmax(1), supervised(image).softmax(1)
        q = model.train()(image, *drawn[:2]).posterior.softmax(1)
    assert (p - plain).abs().max() < 0.03
    assert (q.argmax(1) == label[:, 0]).all()
    assert torch.diagonal(model.annotator.table.softmax(1), dim1=1, dim2=2).min() > 0.97


def test_the_segmenter_is_not_misled_by_an_annotator_who_draws_too_much():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (20, 1, 16, 16), generator=generator)
    image = label + 0.15 * torch.randn(label.shape, generator=generator)
    positive = torch.where(torch.rand(label.shape, generator=generator) < 0.3, 1, label)  # draws too much
    model = trained(model_of(), CoarseSupLoss(2), image, Annotations(positive, 1 - label), steps=600).eval()
    assert (model(image).argmax(1) == label[:, 0]).float().mean() > 0.98


def test_an_annotator_who_drew_nothing_is_a_blank_channel():
    model = model_of(positive=2, negative=1)
    image, drawing = torch.rand(2, 1, 4, 4), torch.randint(0, 2, (2, 2, 4, 4))
    blank = torch.full((2, 1, 4, 4), 255)
    absent, said = model(image, drawing), model(image, drawing, blank)
    assert torch.equal(absent.posterior, said.posterior)
    drawing[:, 1] = 255
    assert not torch.equal(model(image, drawing).posterior, absent.posterior)
    seen = []
    model.posterior.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(image, drawing, blank)
    assert torch.equal(seen[0][:, 1], (drawing[:, 0] == 0).float())
    assert torch.equal(seen[0][:, 2], (drawing[:, 0] == 1).float())
    assert not seen[0][:, 3:].any()
    loss = CoarseSupLoss(2)
    assert loss(model(image, 0 * drawing + 255, blank), Annotations(0 * drawing + 255, blank)).isfinite()


def test_in_evaluation_only_the_segmenter_runs():
    model = model_of()
    model.posterior.register_forward_hook(lambda *_: pytest.fail("the posterior network ran"))
    image = torch.rand(1, 1, 3, 5)
    assert torch.equal(model.eval()(image), model.segmenter(image))


def test_what_does_not_fit_is_said():
    model = model_of()
    with pytest.raises(ValueError, match="for 1 annotators of a kind, the drawings are of 2"):
        model(torch.rand(1, 1, 2, 2), torch.zeros(1, 2, 2, 2))
    with pytest.raises(TypeError, match="takes the output of a CoarseSup"):
        CoarseSupLoss(2)(CoupledOutput(torch.zeros(1, 2, 3)), Annotations(torch.zeros(1, 1, 3)))
    with pytest.raises(ValueError, match="must not be negative, got prior_weight=-1"):
        CoarseSupLoss(2, prior_weight=-1)
