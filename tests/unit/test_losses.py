from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from medcoarse.appearance import appearance_nll
from medcoarse.confusion import (
    Annotations,
    CoupledOutput,
    FullConfusion,
    GlobalConfusion,
    IdentityConfusion,
    LowRankConfusion,
    UpsampledConfusion,
    swap_transition,
)
from medcoarse.likelihoods import (
    coarse_nll,
    complementary_nll,
    joint_nll,
    log_complementary_evidence,
    log_evidence,
    mean_trace,
    ruled_out_nll,
)
from medcoarse.losses import CoupledLoss, consensus, dense_nll, partial_dice
from medcoarse.networks import AnnotatorNet, CoupledModel
from tests.reference import coarse_losses as slow

B, R, L = 2, 3, 4


def confusion_of(structure: str, image: tuple[int, ...], floor: float, seed: int = 0, classes: int = L):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    if structure == "full":
        return FullConfusion(normal(B, R, classes, classes, *image), floor)
    if structure == "rank_one":
        return LowRankConfusion(normal(B, R, classes, *image), normal(B, R, 1, classes, *image), None, floor)
    if structure == "low_rank":
        factors = normal(B, R, 2, classes, *image), normal(B, R, 2, classes, *image)
        return LowRankConfusion(normal(B, R, classes, *image), *factors, floor)
    return GlobalConfusion(normal(R, classes, classes), floor)


def one_annotator(confusion, annotator):
    axis = 0 if isinstance(confusion, GlobalConfusion) else 1
    fields = {name: value for name, value in confusion._asdict().items() if isinstance(value, torch.Tensor)}
    return confusion._replace(**{name: value.narrow(axis, annotator, 1) for name, value in fields.items()})


STRUCTURES = ("full", "rank_one", "low_rank", "global")
IMAGES = ((5, 3), (3, 2, 4))


def dense_cm(confusion, image):
    cm = confusion.dense()
    return cm.view(*cm.shape[:4], *(cm.shape[4:] or (1,) * len(image))).expand(B, -1, -1, -1, *image)


def batch(image, classes=L, seed=1, undrawn=0.3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, classes, *image, generator=generator)
    drawing = torch.randint(0, classes, (B, R, *image), generator=generator)
    drawing[torch.rand(drawing.shape, generator=generator) < undrawn] = 255
    return logits.log_softmax(1), drawing


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_terms_agree_with_slow_reference(structure, image, floor, balance):
    confusion, (log_probs, drawing) = confusion_of(structure, image, floor), batch(image)
    transition = torch.tensor([[0, 0.2, 0.5, 0.1], [0.6, 0, 0.4, 0.2], [0.3, 0.3, 0, 0.7], [0.1, 0.5, 0.1, 0]])
    probs = log_probs.exp().double().flatten(2).tolist()
    cm = dense_cm(confusion, image).double().flatten(4).tolist()
    flat = drawing.flatten(2).tolist()
    drawing[drawing == 3] = 255  # a class that nobody drew
    flat = drawing.flatten(2).tolist()
    nll = coarse_nll(log_probs, confusion, drawing, balance).item()
    assert nll == pytest.approx(slow.positive_nll(probs, cm, flat, balance), 1e-5)
    negative = complementary_nll(log_probs, confusion, transition.log(), drawing).item()
    assert negative == pytest.approx(slow.negative_nll(probs, cm, transition.tolist(), flat), 1e-5)
    assert mean_trace(confusion, drawing, balance).item() == pytest.approx(slow.mean_trace(cm, flat, balance), 1e-5)


@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_all_drawings_together_agree_with_slow_reference(structure, image, floor):
    """Value, trace, and the class that Dice holds on to."""
    positive, negative = (confusion_of(structure, image, floor, seed) for seed in (0, 7))
    (log_probs, drawn), (_, ruled_out) = batch(image, undrawn=0.7), batch(image, seed=8, undrawn=0.8)
    transition = torch.tensor([[0, 0.2, 0.5, 0.1], [0.6, 0, 0.4, 0.2], [0.3, 0.3, 0, 0.7], [0.1, 0.5, 0.1, 0]])
    probs = log_probs.exp().double().flatten(2).tolist()
    cms = [dense_cm(one, image).double().flatten(4).tolist() for one in (positive, negative)]
    maps = [one.flatten(2).tolist() for one in (drawn, ruled_out)]
    pairs = [(cms[0], maps[0], None), (cms[1], maps[1], transition.tolist())]
    assert (drawn != 255).any(1).logical_or((ruled_out != 255).any(1)).float().mean() < 1, "somewhere nobody drew"
    loss = CoupledLoss(L, trace_weight=0.4, transition=transition, dice_weight=0.3, joint=True)
    value = loss(CoupledOutput(log_probs, positive, negative), Annotations(drawn, ruled_out))
    nll, labels = slow.joint_nll(probs, pairs)
    traces = slow.mean_trace(cms[0], maps[0]) + slow.mean_trace(cms[1], maps[1])
    dice = partial_dice(log_probs.exp(), torch.tensor(labels).view(B, 1, *image)).item()
    parts = {name: part.item() for name, part in loss.parts.items()}
    assert parts == pytest.approx({"nll_joint": nll, "trace": traces, "consensus_dice": dice}, rel=1e-5)
    assert value.item() == pytest.approx(nll + 0.4 * traces + 0.3 * dice, rel=1e-5)
    for output, target, own in (
        (CoupledOutput(log_probs, positive), Annotations(drawn), pairs[:1]),
        (CoupledOutput(log_probs, None, negative), Annotations(negative=ruled_out), pairs[1:]),
        (CoupledOutput(log_probs, None, negative, transition.log()), Annotations(negative=ruled_out), pairs[1:]),
    ):
        alone = CoupledLoss(L, transition=None if output.log_transition is not None else transition, joint=True)
        alone(output, target)
        assert alone.parts["nll_joint"].item() == pytest.approx(slow.joint_nll(probs, own)[0], rel=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_drawing_is_explained_alike_together_and_by_itself(structure):
    confusion = one_annotator(confusion_of(structure, (5, 3), 0.0), 0)
    log_probs, drawing = batch((5, 3))
    target = Annotations(drawing[:, :1])
    values = [CoupledLoss(L, joint=joint)(CoupledOutput(log_probs, confusion), target) for joint in (True, False)]
    assert torch.allclose(*values)


def test_who_contradicts_two_who_are_right_is_the_one_to_be_doubted():
    """Three people, p undecided: together the third's matrix learns to err, each by itself nothing tells who does."""
    log_probs = torch.full((1, 2, 40), 0.5).log()
    truth = torch.arange(40) % 2
    drawing = torch.stack([truth, truth, 1 - truth])[None]
    found = {}
    for joint in (True, False):
        table = (torch.eye(2) * 2).expand(3, 2, 2).clone().requires_grad_()
        optimizer = torch.optim.Adam([table], lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            CoupledLoss(2, joint=joint)(
                CoupledOutput(log_probs, GlobalConfusion(table)), Annotations(drawing)
            ).backward()
            optimizer.step()
        found[joint] = GlobalConfusion(table.detach()).diagonal().flatten(2).mean((0, 2))
    assert found[True][:2].min() > 0.99
    assert found[True][2] < 0.05
    assert found[False].max() - found[False].min() < 0.01


@pytest.mark.parametrize("structure", STRUCTURES)
def test_together_undrawn_pixels_get_no_gradient(structure):
    confusion = confusion_of(structure, (4, 4), 0.0)
    log_probs, drawing = batch((4, 4))
    drawing[:, :, 1:3] = 255
    logits = log_probs.clone().requires_grad_()
    loss = CoupledLoss(L, dice_weight=0.5, joint=True)
    loss(CoupledOutput(logits, confusion, confusion), Annotations(drawing, drawing)).backward()
    assert (logits.grad[:, :, 1:3] == 0).all()
    assert (logits.grad[:, :, 0] != 0).any()
    nobody = torch.full_like(drawing, 255)
    assert CoupledLoss(L, joint=True)(CoupledOutput(log_probs, confusion), Annotations(nobody)).item() == 0


def test_together_the_trace_moves_the_matrices_and_a_class_that_nobody_rules_out_leaves_no_nan():
    log_probs, drawing = batch((4, 4))
    transition = torch.tensor([[0, 0, 0, 0], [0.5, 0, 0.5, 0.5], [0.5, 0.5, 0, 0.5], [0, 0.5, 0.5, 0]])
    table = torch.randn(R, L, L, dtype=torch.float64, requires_grad=True)

    def value(table):
        loss = CoupledLoss(L, trace_weight=0.4, transition=transition, joint=True)
        output = CoupledOutput(log_probs, GlobalConfusion(table), GlobalConfusion(table))
        return loss(output, Annotations(drawing, drawing.clamp_min(1)))

    [with_trace] = torch.autograd.grad(value(table), table)
    step = 1e-3 * torch.eye(L, dtype=torch.float64)
    slope = (value(table + step) - value(table - step)).item() / 2e-3
    assert with_trace.diagonal(dim1=1, dim2=2).sum().item() == pytest.approx(slope, rel=1e-2)
    log_m = swap_transition(2).log()
    log_m[:, 0] = -torch.inf  # of class 0 nothing is ever said
    full = torch.zeros(1, 1, 2, 2, 3, requires_grad=True)
    log_complementary_evidence(FullConfusion(full), log_m, torch.tensor([[[0, 1, 255]]])).sum().backward()
    assert full.grad.isfinite().all()


def test_together_a_drawing_of_no_class_is_refused():
    log_probs, drawing = batch((4, 4))
    drawing[0, 0, 0, 0] = L + 3
    confusion = confusion_of("full", (4, 4), 0.0)
    for target in (Annotations(drawing), Annotations(negative=drawing)):
        with pytest.raises(ValueError, match=f"tive must hold classes below {L}, or 255"):
            CoupledLoss(L, joint=True)(CoupledOutput(log_probs, confusion, confusion), target)


def test_where_there_are_masks_drawings_wait_for_the_annotators():
    log_probs, drawing = batch((4, 4))
    drawn = Annotations(drawing, (drawing + 1) % L)
    label = torch.full((len(log_probs), 1, 4, 4), 255)
    label[0] = torch.arange(16).view(1, 4, 4) % L
    wait, both = (CoupledLoss(L, warmup=warmup, dice_weight=0.5) for warmup in ("masks", "consensus"))
    warm = CoupledOutput(log_probs)
    assert torch.equal(wait(warm, drawn._replace(label=label)), both(warm, Annotations(label=label)))
    assert "consensus" not in wait.parts
    nothing = torch.full_like(label, 255)
    for masks in (None, nothing):
        assert torch.equal(wait(warm, drawn._replace(label=masks)), both(warm, drawn._replace(label=masks)))
        assert "consensus" in wait.parts
    confusion = confusion_of("full", (4, 4), 0.0)
    coupled = CoupledOutput(log_probs, confusion, confusion)
    assert torch.equal(wait(coupled, drawn._replace(label=label)), both(coupled, drawn._replace(label=label)))
    with pytest.raises(ValueError, match="warmup must be one of consensus, identity, masks, got 'mask'"):
        CoupledLoss(L, warmup="mask")


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("name", ["positive", "negative", "label"])
def test_what_is_no_map_of_classes_is_refused_from_the_first_step(name, warm):
    log_probs, drawing = batch((4, 4))
    drawing = drawing[:, :1] if name == "label" else drawing
    confusion = None if warm else confusion_of("full", (4, 4), 0.0)
    output = CoupledOutput(log_probs, confusion, confusion)
    for value, said in ((L, "classes below"), (-1, "classes below"), (300, "classes below")):
        wrong = drawing.int()
        wrong[0, 0, 0, 0] = value
        for dtype in (torch.int64, torch.float32):
            with pytest.raises(ValueError, match=said):
                CoupledLoss(L)(output, Annotations(**{name: wrong.to(dtype)}))
    for value in (0.4, float("nan"), float("inf")):
        wrong = drawing.float()
        wrong[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match=rf"{name} must hold whole numbers.*nearest|classes below"):
            CoupledLoss(L)(output, Annotations(**{name: wrong}))
    with pytest.raises(TypeError, match=f"{name} must be a tensor .*got ndarray"):
        CoupledLoss(L)(output, Annotations(**{name: drawing.numpy()}))
    if name == "label":
        with pytest.raises(ValueError, match="label must have one channel, got 4"):
            CoupledLoss(L)(output, Annotations(label=torch.rand(len(drawing), 4, 4, 4)))


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int16, torch.uint16, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_the_type_of_a_drawing_says_nothing(dtype, warm):
    log_probs, drawing = batch((4, 4))
    drawing = (drawing == 1).byte()
    confusion = None if warm else confusion_of("full", (4, 4), 0.0)
    for name in ("positive", "negative"):
        objectives = [
            CoupledLoss(L, dice_weight=0.5)(CoupledOutput(log_probs, confusion, confusion), Annotations(**{name: one}))
            for one in (drawing, drawing.to(dtype))
        ]
        assert torch.equal(*objectives)


@pytest.mark.parametrize("target", [torch.zeros(1, 1, 3), {"positive": torch.zeros(1, 1, 3)}, (torch.zeros(1, 1, 3),)])
def test_a_target_that_is_no_annotations_is_refused_with_what_to_pass(target):
    with pytest.raises(TypeError, match=r"target must be Annotations\(positive=.*PrepareBatchCoarse"):
        CoupledLoss(2)(CoupledOutput(torch.zeros(1, 2, 3)), target)
    with pytest.raises(TypeError, match=r"got Tensor; in evaluation, model.couple\(image\)"):
        CoupledLoss(2)(torch.zeros(1, 2, 3), Annotations(torch.zeros(1, 1, 3)))


def test_together_coarse_matrices_are_interpolated_once(monkeypatch):
    calls = []
    whole = UpsampledConfusion.full
    monkeypatch.setattr(UpsampledConfusion, "full", lambda self: (calls.append(1), whole(self))[1])
    coarse = UpsampledConfusion(confusion_of("full", (2, 2), 0.0), (4, 4))
    log_probs, drawing = batch((4, 4))
    value = CoupledLoss(L, joint=True)(CoupledOutput(log_probs, coarse, coarse), Annotations(drawing, drawing))
    assert len(calls) == 2
    fine = coarse.full()
    expected = CoupledLoss(L, joint=True)(CoupledOutput(log_probs, fine, fine), Annotations(drawing, drawing))
    assert torch.allclose(value, expected)


@pytest.mark.parametrize("joint", [False, True])
def test_a_network_that_is_called_on_a_tensor_of_monai_learns(joint):
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randint(0, L, (1, 2, 6, 6), generator=generator) for _ in range(2))
    slopes = []
    for wrap in (MetaTensor, torch.Tensor):
        torch.manual_seed(1)
        annotator = AnnotatorNet(torch.nn.Conv2d(1, 4, 1), 2, 4, num_classes=L, num_positive=2, num_negative=2)
        model = CoupledModel(torch.nn.Conv2d(1, L, 1), annotator)
        output = model(wrap(torch.ones(1, 1, 6, 6)))
        CoupledLoss(L, joint=joint, trace_weight=0.1)(output, Annotations(wrap(positive), wrap(negative))).backward()
        slopes.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*slopes, strict=True))
    assert all(slope.any() for slope in slopes[0][:2])


def test_together_needs_matrices_and_single_classes():
    log_probs, drawing = batch((4, 4))
    output = CoupledOutput(log_probs, IdentityConfusion(R))
    with pytest.raises(ValueError, match='the positive annotators have structure "identity"'):
        CoupledLoss(L, joint=True)(output, Annotations(drawing))
    with pytest.raises(ValueError, match="joint explains drawings one by one, negative_sets"):
        CoupledLoss(L, joint=True, negative_sets=True)


def test_several_negatives_form_a_set():
    """p = (.1, .2, .3, .4): not 3 and not 1 leaves .4; not 0 leaves .9; all four, or none, say nothing."""
    log_probs = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().view(1, 4, 1).expand(1, 4, 4)
    drawn = torch.tensor([[3, 0, 0, 255], [1, 255, 1, 255], [255, 255, 2, 255], [255, 0, 3, 255]])[None]
    expected = -(torch.tensor(0.4).log() + torch.tensor(0.9).log()) / 2
    assert torch.allclose(ruled_out_nll(log_probs, IdentityConfusion(1), drawn), expected)
    one = ruled_out_nll(log_probs, IdentityConfusion(1), drawn[:, :1])
    same = complementary_nll(log_probs, IdentityConfusion(1), swap_transition(4).log(), drawn[:, :1])
    assert torch.allclose(one, same - torch.tensor(3.0).log())
    logits = log_probs.clone().requires_grad_()
    confusion = LowRankConfusion(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 1, 4, 4))
    loss = CoupledLoss(4, trace_weight=0.1, negative_sets=True)
    loss(CoupledOutput(logits, None, confusion), Annotations(negative=drawn)).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[..., 3] == 0).all()
    assert set(loss.parts) == {"nll_negative", "trace"}


def test_consensus_agrees_with_slow_reference():
    generator = torch.Generator().manual_seed(3)
    for classes in (2, 3):
        maps = torch.randint(0, classes, (2, 2, 1, 200), generator=generator)
        maps[torch.rand(maps.shape, generator=generator) < 0.5] = 255
        positive, negative = maps.squeeze(2)[0][None], maps.squeeze(2)[1][None]
        label = consensus(Annotations(positive, negative), classes)[0, 0].tolist()
        assert label == slow.consensus(positive[0].tolist(), negative[0].tolist(), classes)
        assert len(set(label)) == classes + 1  # every class and unlabeled occur


def test_consensus_without_drawings_says_so():
    with pytest.raises(ValueError, match="positive or negative drawings, got neither"):
        consensus(Annotations(), 2)


def test_asymmetric_transition_by_hand():
    """u = (0.2, 0.3, 0.5); M u = (0.2*0+0.3*0.5+0.5*0.2, 0.2*0.9+0.3*0+0.5*0.8, 0.2*0.1+0.3*0.5) = (.25, .58, .17)."""
    transition = torch.tensor([[0.0, 0.5, 0.2], [0.9, 0.0, 0.8], [0.1, 0.5, 0.0]])
    log_probs = torch.tensor([0.2, 0.3, 0.5]).log().view(1, 3, 1)
    for label, expected in enumerate((0.25, 0.58, 0.17)):
        nll = complementary_nll(log_probs, IdentityConfusion(1), transition.log(), torch.tensor([[[label]]]))
        assert nll.neg().exp().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("image", IMAGES)
def test_identity_confusion_is_cross_entropy_with_ignored_pixels(image):
    log_probs, drawing = batch(image)
    expected = sum(F.nll_loss(log_probs, drawing[:, r], ignore_index=255) for r in range(R))
    assert torch.allclose(coarse_nll(log_probs, IdentityConfusion(R), drawing), expected)
    assert torch.allclose(dense_nll(log_probs, drawing[:, :1]), F.nll_loss(log_probs, drawing[:, 0], ignore_index=255))


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("absent", [[], [2], [0, 1, 2, 3]])
def test_balanced_classes_count_by_a_power_of_their_pixels(image, balance, absent):
    """Written out: the mean of each class, weighted by what it counts."""
    log_probs, drawing = batch(image)
    label = drawing[:, :1].masked_fill(torch.isin(drawing[:, :1], torch.tensor(absent).to(drawing)), 255)
    means, counts = [], []
    for k in range(L):
        here = (label == k)[:, 0]
        if here.any():
            means.append(-log_probs[:, k][here].mean().item())
            counts.append(here.sum().item() ** (1 - balance))
    expected = np.average(means, weights=counts) if means else 0.0
    assert dense_nll(log_probs, label, balance).item() == pytest.approx(expected, rel=1e-5)


def test_balance_is_of_the_warm_up_of_masks_and_of_what_was_drawn():
    log_probs, drawing = batch((5, 3))
    _, mask = batch((5, 3), seed=2)
    target = Annotations(positive=drawing[:, :1], label=mask[:, :1])
    loss = CoupledLoss(L, balance=0.5, dense_weight=0.3)
    terms = [dense_nll(log_probs, one, 0.5).item() for one in (drawing[:, :1], mask[:, :1])]
    for output in (CoupledOutput(log_probs), CoupledOutput(log_probs, IdentityConfusion(1))):
        assert loss(output, target).item() == pytest.approx(terms[0] + 0.3 * terms[1])
    for structure in ("full", "global"):
        confusion = one_annotator(confusion_of(structure, (5, 3), 0.2), 0)
        value = loss(CoupledOutput(log_probs, confusion), target)
        expected = coarse_nll(log_probs, confusion, drawing[:, :1], 0.5).item()
        assert value.item() == pytest.approx(expected + 0.3 * terms[1])
        assert loss.parts["nll_positive"].item() == pytest.approx(expected)


@pytest.mark.parametrize("number", [1, R])
def test_balance_is_of_one_annotator_of_each_kind(number):
    """ "Not this one" of two classes is the other. Of several annotators the likelihood stays as it is."""
    log_probs, drawing = batch((5, 3), classes=2)
    drawing, given = drawing[:, :number], 1.0 if number == 1 else 0.0
    loss, identity = CoupledLoss(2, balance=1), IdentityConfusion(number)
    naive = CoupledLoss(2, balance=1, warmup="identity")(CoupledOutput(log_probs), Annotations(drawing))
    assert naive.item() == pytest.approx(coarse_nll(log_probs, identity, drawing, 1).item())
    positive = loss(CoupledOutput(log_probs, identity, None), Annotations(drawing))
    assert positive.item() == pytest.approx(coarse_nll(log_probs, identity, drawing, given).item())
    negative = loss(CoupledOutput(log_probs, None, identity), Annotations(negative=drawing))
    other = torch.where(drawing == 255, drawing, 1 - drawing)
    assert negative.item() == pytest.approx(coarse_nll(log_probs, identity, other, given).item())
    last = loss(CoupledOutput(log_probs, identity, finished=True), Annotations(drawing))
    assert last.item() == pytest.approx(coarse_nll(log_probs, identity, drawing, 0).item()), "people as they draw"


def test_balance_is_from_0_to_1():
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"balance must be from 0 .* to 1 .*, got {wrong}"):
            CoupledLoss(L, balance=wrong)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_blank_annotator_adds_exactly_nothing(structure):
    confusion, (log_probs, drawing) = confusion_of(structure, (5, 3), 0.5), batch((5, 3))
    drawing[:, 1] = 255
    log_probs.requires_grad_()
    blank = torch.full_like(drawing, 255)
    log_m = swap_transition(L).log()
    assert coarse_nll(log_probs, confusion, blank).item() == 0
    assert complementary_nll(log_probs, confusion, log_m, blank).item() == 0
    assert mean_trace(confusion, blank).item() == 0
    total = coarse_nll(log_probs, confusion, drawing)
    others = sum(coarse_nll(log_probs, one_annotator(confusion, r), drawing[:, r : r + 1]) for r in (0, 2))
    assert torch.allclose(total, others)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("loss", ["positive", "negative"])
def test_undrawn_pixels_get_no_gradient(structure, loss):
    confusion, (log_probs, drawing) = confusion_of(structure, (5, 3), 0.5), batch((5, 3))
    log_probs.requires_grad_()
    log_m = swap_transition(L).log()
    if loss == "positive":
        value = coarse_nll(log_probs, confusion, drawing)
    else:
        value = complementary_nll(log_probs, confusion, log_m, drawing)
    (gradient,) = torch.autograd.grad(value, log_probs)
    undrawn = (drawing == 255).all(1, keepdim=True).expand_as(gradient)
    assert undrawn.any()
    assert (gradient[undrawn] == 0).all()
    assert gradient[~undrawn].abs().min() > 0


def test_a_class_that_nobody_rules_out_leaves_no_nan():
    """Row 0 of this transition is empty, and undrawn pixels are looked up in row 0."""
    transition = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 1.0], [0.5, 1.0, 0.0]])
    logits = torch.randn(1, 3, 4, requires_grad=True)
    drawn = torch.tensor([[[1, 2, 255, 1]]])
    loss = CoupledLoss(3, transition=transition, warmup="identity")
    loss(CoupledOutput(logits), Annotations(negative=drawn)).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[..., :2].abs().min() > 0
    assert (logits.grad[..., 2] == 0).all()


@pytest.mark.parametrize("arguments", [{"warmup": "identity"}, {"warmup": "consensus"}])
@pytest.mark.parametrize("structure", [*STRUCTURES, "identity", None])
def test_nothing_is_left_on_another_device(structure, arguments):
    """The meta device has no values, but refuses to mix with the CPU as a GPU does."""
    confusion = IdentityConfusion(R) if structure == "identity" else None
    if structure in STRUCTURES:
        on_cpu = confusion_of(structure, (4, 4), 0.5)
        confusion = type(on_cpu)(*[f.to("meta") if isinstance(f, torch.Tensor) else f for f in on_cpu])
    logits = torch.empty(B, L, 4, 4, device="meta", requires_grad=True)
    drawing = torch.empty(B, R, 4, 4, device="meta", dtype=torch.long)
    loss = CoupledLoss(L, **arguments).to("meta")
    value = loss(CoupledOutput(logits, confusion, confusion), Annotations(drawing, drawing, drawing[:, :1]))
    assert value.device.type == "meta"
    value.backward()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_agree_with_finite_differences(structure):
    image = (2, 2)
    confusion = confusion_of(structure, image, 0.3, classes=3)
    fields = [None if not isinstance(f, torch.Tensor) else f.double().requires_grad_() for f in confusion]
    drawing = torch.tensor([[[0, 1], [2, 255]], [[1, 1], [0, 2]], [[255, 0], [1, 2]]]).expand(B, -1, -1, -1)
    logits = torch.randn(B, 3, *image, dtype=torch.float64, requires_grad=True)
    log_m = swap_transition(3).double().log()
    tensors = [f for f in fields if f is not None]

    def total(logits, *tensors):
        given = iter(tensors)
        rebuilt = type(confusion)(*[f if n is None else next(given) for f, n in zip(confusion, fields, strict=True)])
        log_probs = logits.log_softmax(1)
        said = log_evidence(rebuilt, drawing) + log_complementary_evidence(rebuilt, log_m, drawing)
        together = joint_nll(log_probs, said, (drawing != 255).any(1, keepdim=True))
        apart = coarse_nll(log_probs, rebuilt, drawing) + complementary_nll(log_probs, rebuilt, log_m, drawing)
        return together + apart

    assert torch.autograd.gradcheck(total, (logits, *tensors))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("margin", [30.0, 200.0, 1e4])
def test_exact_at_probabilities_zero_and_one(structure, margin):
    """p is exactly 0 or 1 in float32: values and gradients stay finite and right."""
    logits = torch.tensor([margin, 0.0]).view(1, 2, 1, 1).expand(B, -1, -1, -1).clone().requires_grad_()
    confusion = confusion_of(structure, (1, 1), 0.5, classes=2)
    drawing = torch.ones(B, R, 1, 1, dtype=torch.long)  # drawn: the improbable class
    output = CoupledOutput(logits, confusion, confusion)
    loss = CoupledLoss(2, trace_weight=0.0)(output, Annotations(drawing, 1 - drawing))
    loss.backward()
    cm = dense_cm(confusion, (1, 1))
    expected = -2 * cm[:, :, 1, 0].log().mean(0).sum()
    assert torch.allclose(loss, expected, atol=1e-4)
    assert torch.isfinite(logits.grad).all()


def test_cross_entropy_gradient_is_exact_where_the_probability_underflows():
    logits = torch.tensor([[[200.0], [0.0]]], requires_grad=True)
    dense_nll(logits.log_softmax(1), torch.tensor([[[1]]])).backward()
    assert logits.grad.flatten().tolist() == [1.0, -1.0]  # p - onehot


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_touch_the_sums(dtype):
    """Logits 20 apart underflow as float16 probabilities."""
    logits = torch.tensor([24.0, 0.0]).view(1, 2, 1, 1)
    drawing = torch.ones(1, 1, 1, 1, dtype=torch.long)
    confusion = FullConfusion(torch.tensor([[20.0, 0.0], [0.0, 20.0]]).view(1, 1, 2, 2, 1, 1))
    loss = CoupledLoss(2, trace_weight=0.0)
    exact = loss(CoupledOutput(logits, confusion), Annotations(drawing))
    with torch.autocast("cpu", dtype=dtype):
        half = loss(CoupledOutput(logits.to(dtype), confusion), Annotations(drawing))
    assert half.dtype == torch.float32
    assert torch.allclose(half, exact)
    assert exact.item() > 15


def test_many_structures_in_one_loss_and_its_parts():
    log_probs, drawing = batch((4, 4))
    confusion = confusion_of("full", (4, 4), 0.5)
    label = torch.randint(0, L, (B, 1, 4, 4))
    label[0, :, :2] = 255
    image = torch.rand(B, 3, 4, 4)
    loss = CoupledLoss(L, trace_weight=0.1, dense_weight=2.0, appearance_weight=0.5, dice_weight=3.0)
    target = Annotations(drawing, (drawing + 1) % L, label, image)
    total = loss(CoupledOutput(log_probs, confusion, confusion), target)
    weights = {"nll_positive": 1, "nll_negative": 1, "trace": 0.1, "dense": 2}
    weights |= {"consensus_dice": 3, "dense_dice": 6}
    assert set(loss.parts) == set(weights)
    probs = log_probs.softmax(1)
    assert loss.parts["consensus_dice"] == partial_dice(probs, consensus(target, L)) > 0
    assert loss.parts["dense_dice"] == partial_dice(probs, label) > 0
    parts = sum(w * loss.parts[n].item() for n, w in weights.items())
    appearance = appearance_nll(probs, image, where=label == 255).item()
    assert appearance > 0
    assert total.item() == pytest.approx(parts + 0.5 * appearance, rel=1e-5)


def test_dice_on_the_consensus_may_end_with_the_warm_up():
    log_probs, drawing = batch((4, 4))
    confusion = confusion_of("full", (4, 4), 0.5)
    target = Annotations(drawing, label=torch.randint(0, L, (B, 1, 4, 4)))

    def terms(output: CoupledOutput, **weights: float) -> tuple[float, dict]:
        loss = CoupledLoss(L, dice_weight=3.0, **weights)
        return loss(output, target).item(), loss.parts

    warm, coupled = CoupledOutput(log_probs), CoupledOutput(log_probs, confusion)
    assert terms(warm, coupled_dice_weight=0) == terms(warm)
    whole, parts = terms(coupled)
    for weight in (0.0, 1.0):
        other, left = terms(coupled, coupled_dice_weight=weight)
        assert whole - other == pytest.approx((3 - weight) * parts["consensus_dice"].item(), rel=1e-4)
        assert ("consensus_dice" in left) == (weight > 0)
        assert left["dense_dice"] == parts["dense_dice"]  # masks are no drawings


def test_images_without_any_drawing_leave_the_others_alone():
    log_probs, drawing = batch((4, 4))
    drawing[1] = 255
    confusion = confusion_of("rank_one", (4, 4), 0.5)
    loss = CoupledLoss(L)
    both = loss(CoupledOutput(log_probs, confusion), Annotations(drawing))
    first = LowRankConfusion(*[f[:1] if isinstance(f, torch.Tensor) else f for f in confusion])
    alone = loss(CoupledOutput(log_probs[:1], first), Annotations(drawing[:1]))
    assert torch.allclose(both, alone)


def test_nothing_drawn_at_all_is_zero_with_zero_gradient():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    blank = torch.full((1, 1, 4, 4), 255)
    for output in (CoupledOutput(logits), CoupledOutput(logits, FullConfusion(torch.zeros(1, 1, 2, 2, 4, 4)))):
        value = CoupledLoss(2)(output, Annotations(blank))
        assert value.item() == 0
        assert torch.autograd.grad(value, logits)[0].abs().max() == 0


def test_a_large_trace_weight_is_warned_of():
    with pytest.warns(UserWarning, match="trace_weight = 0.9: above 0.5 .* start from 0.05"):
        CoupledLoss(2, trace_weight=0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trace_weight": -0.1}, "must not be negative, got trace_weight=-0.1"),
        ({"dice_weight": -1.0}, "must not be negative"),
        ({"coupled_dice_weight": -1.0}, "must not be negative"),
        ({"appearance_smoothing": -0.5}, "appearance_smoothing must not be negative, got -0.5"),
        ({"warmup": "none"}, "one of consensus, identity, masks"),
        ({"dense_weight": -1.0}, "must not be negative"),
        ({"transition": [[0.0, 1.0], [1.0, 0.0]]}, "for 2 classes, the loss for 3"),
        ({"transition": [[1.0, 0.0], [0.0, 1.0]]}, "zero diagonal"),
        ({"transition": [[0.0, 0.5, 0.5], [0.9, 0.0, 0.1], [0.9, 0.1, 0.0]]}, "sum to 1.*transpose"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoupledLoss(3, **arguments)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        ((1, 2, 4, 4), {"positive": (1, 2, 5, 4)}, r"positive drawings must be .* got \(1, 2, 5, 4\)"),
        ((1, 3, 4, 4), {"positive": (1, 1, 4, 4)}, "for 2 classes, the segmenter gives 3"),
        ((1, 2, 4, 4), {}, "nothing to learn from"),
        ((1, 2, 4, 4), {"label": (1, 2, 4, 4)}, "one channel, got 2"),
        ((1, 2, 4, 4), {"positive": (1, 2, 4, 4)}, "2 positive annotators drew and the model has 1"),
        ((1, 2, 4, 4), {"negative": (1, 1, 4, 4)}, "1 negative annotators drew and the model has 0.*num_negative=1"),
    ],
)
def test_what_does_not_fit(logits, target, message):
    output = CoupledOutput(torch.zeros(logits), FullConfusion(torch.zeros(1, 1, 2, 2, 4, 4)))
    drawings = {name: torch.zeros(shape, dtype=torch.long) for name, shape in target.items()}
    with pytest.raises(ValueError, match=message):
        CoupledLoss(2)(output, Annotations(**drawings))


@pytest.mark.parametrize(
    ("numbers", "target", "message"),
    [
        ((1, 1), {"positive": 2, "negative": 1}, "2 positive annotators drew and the model has 1"),
        ((2, 1), {"positive": 2, "negative": 1}, None),
        ((2, 1), {"label": 1}, None),
        ((1, 0), {"positive": 1, "negative": 1}, "1 negative annotators drew and the model has 0"),
        (None, {"positive": 3}, None),
    ],
)
def test_annotators_that_do_not_fit_are_noticed_in_the_warm_up(numbers, target, message):
    output = CoupledOutput(torch.zeros(1, 2, 4, 4), num_annotators=numbers)
    drawings = {name: torch.zeros(1, number, 4, 4, dtype=torch.long) for name, number in target.items()}
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        CoupledLoss(2)(output, Annotations(**drawings))


def test_bad_outputs():
    with pytest.raises(TypeError, match="CoupledOutput"):
        CoupledLoss(2)(torch.zeros(1, 2, 4, 4), Annotations())
    loss = CoupledLoss(2, appearance_weight=1.0)
    with pytest.raises(ValueError, match=r"needs Annotations\.image"):
        loss(CoupledOutput(torch.zeros(1, 2, 4, 4)), Annotations(torch.zeros(1, 1, 4, 4, dtype=torch.long)))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_whole_loss_is_the_sum_of_its_equations(structure, classes):
    """Each group of drawings with its own matrices, its own trace, and the transition matrix that was given."""
    generator = torch.Generator().manual_seed(5)
    transition = torch.rand(classes, classes, generator=generator) * (1 - torch.eye(classes))
    transition /= transition.sum(0)
    positive, negative = (confusion_of(structure, (5, 3), 0.5, seed, classes) for seed in (0, 7))
    log_probs, drawn = batch((5, 3), classes)
    _, ruled_out = batch((5, 3), classes, seed=8)
    loss = CoupledLoss(classes, trace_weight=0.4, transition=transition)
    value = loss(CoupledOutput(log_probs, positive, negative), Annotations(drawn, ruled_out))
    nll = coarse_nll(log_probs, positive, drawn), complementary_nll(log_probs, negative, transition.log(), ruled_out)
    traces = mean_trace(positive, drawn), mean_trace(negative, ruled_out)
    assert value.item() == pytest.approx((sum(nll) + 0.4 * sum(traces)).item(), rel=1e-5)
    parts = {name: part.item() for name, part in loss.parts.items()}
    assert parts == pytest.approx(
        {"nll_positive": nll[0].item(), "nll_negative": nll[1].item(), "trace": sum(traces).item()}
    )


def test_the_trace_of_negative_sets_and_of_learned_transitions_counts():
    log_probs, drawing = batch((5, 3))
    confusion = one_annotator(confusion_of("full", (5, 3), 0.5), 0)
    loss = CoupledLoss(L, trace_weight=0.4, negative_sets=True)
    value = loss(CoupledOutput(log_probs, None, confusion), Annotations(negative=drawing))
    anything = drawing.amin(1, keepdim=True)
    expected = ruled_out_nll(log_probs, confusion, drawing) + 0.4 * mean_trace(confusion, anything)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    learned = CoupledOutput(log_probs, None, confusion, swap_transition(L).log())
    value = CoupledLoss(L, trace_weight=0.4)(learned, Annotations(negative=drawing[:, :1]))
    expected = complementary_nll(log_probs, confusion, swap_transition(L).log(), drawing[:, :1])
    assert value.item() == pytest.approx((expected + 0.4 * mean_trace(confusion, drawing[:, :1])).item(), rel=1e-5)


def test_where_a_set_rules_out_every_class_the_trace_does_not_count():
    """As in the likelihood: of four pixels, one says something."""
    table = torch.zeros(1, 1, 2, 2, 4)
    table[..., 1:] = 5 * torch.eye(2)[..., None]
    negative = torch.tensor([[[0, 0, 1, 255], [255, 1, 0, 255]]])
    loss = CoupledLoss(2, trace_weight=0.5, negative_sets=True)
    loss(CoupledOutput(torch.zeros(1, 2, 4), None, FullConfusion(table)), Annotations(negative=negative))
    assert loss.parts["trace"].item() == pytest.approx(1)  # 0.5 + 0.5, at the first pixel


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_negative_drawing_of_no_class_is_refused(dtype):
    confusion = FullConfusion(torch.zeros(1, 1, 2, 2, 4), 0.5)
    drawing = torch.tensor([[[0, 1, 2, 2]]], dtype=dtype)
    with pytest.raises(ValueError, match="classes below 2, or 255 where nothing was drawn; 2 pixels"):
        CoupledLoss(2)(CoupledOutput(torch.zeros(1, 2, 4), None, confusion), Annotations(negative=drawing))


def test_checks_compute_no_matrices(monkeypatch):
    """They run at every step; the matrices of all pixels cost more than the loss itself."""
    forbidden = ["diagonal", "dense", "full", "log_annotate"]
    for name in forbidden:
        monkeypatch.setattr(UpsampledConfusion, name, lambda *_: pytest.fail("matrices were computed"))
    coarse = FullConfusion(torch.zeros(1, 1, 2, 2, 3, 3), 0.5)
    output = CoupledOutput(torch.zeros(1, 2, 9, 9), UpsampledConfusion(coarse, (9, 9)))
    assert CoupledLoss(2)(output, Annotations(torch.zeros(1, 1, 9, 9, dtype=torch.uint8))).item() > 0


def test_number_of_annotators_of_every_structure():
    table = torch.zeros(2, 3, 4, 4, 5)
    full = FullConfusion(table)
    low_rank = LowRankConfusion(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 1, 4, 5))
    for confusion in (full, low_rank, GlobalConfusion(torch.zeros(3, 4, 4)), UpsampledConfusion(full, (9,))):
        assert confusion.num_annotators == confusion.diagonal().shape[1] == 3
    assert IdentityConfusion(3).num_annotators == 3
