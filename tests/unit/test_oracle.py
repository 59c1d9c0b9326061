from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandFlipd, RandRotate90d

from medcoarse.baselines.oracle import KnownConfusiond, OracleLoss, known_confusion
from medcoarse.confusion import Annotations, CoupledOutput, IdentityConfusion, sample_annotation
from medcoarse.losses import CoupledLoss
from medcoarse.transforms.array import SimulateCoarseBatch
from medcoarse.transforms.repeated import count_drawings


def loops(counts, label):
    """The definition, number by number."""
    annotators, classes, *shape = counts.shape
    cm = np.zeros((annotators, classes, classes, *shape))
    for r in range(annotators):
        for x in np.ndindex(*shape):
            for j in range(classes):
                places = [x] if label[x] == j else [y for y in np.ndindex(*shape) if label[y] == j]
                n = [sum(counts[(r, i, *y)] for y in places) for i in range(classes)]
                for i in range(classes):
                    cm[(r, i, j, *x)] = (n[i] + 0.5) / (sum(n) + classes / 2)
    return cm


@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 3)])
@pytest.mark.parametrize("classes", [2, 3])
def test_known_matrices_equal_those_of_loops(shape, classes):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, (2, classes, *shape))
    counts[1, :, 0] = 0  # nothing was drawn there
    label = rng.integers(0, classes, shape)
    label[1, 0] = 255
    label[label == 1] = 0  # a class that there is not
    found = known_confusion(torch.from_numpy(counts), torch.from_numpy(label)[None])
    np.testing.assert_allclose(found.numpy(), loops(counts, label), rtol=1e-6)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, rtol=1e-6)
    assert (found[:, :, 1] == 1 / classes).all(), "nothing is known of a class that there is not"


def item():
    label = torch.zeros(1, 12, 12, dtype=torch.uint8)
    label[:, 2:9, 3:6] = 1
    label[:, 6:8, 3:10] = 1
    return {"image": label.float(), "label": label}


SIMULATE = SimulateCoarseBatch(["good", "over", "mnist_mild_positive"], spacing=1.0)


def test_matrices_of_an_item_are_those_of_its_drawings_and_the_same_again():
    known = KnownConfusiond("label", SIMULATE, num_draws=5)
    found = known(item())["confusion"]
    expected = known_confusion(count_drawings(SIMULATE, item()["label"], 5), item()["label"])
    assert torch.equal(found.unflatten(0, (3, 2, 2)), expected)
    assert torch.equal(found, known(item())["confusion"])
    assert found.dtype == torch.float32


def test_matrices_are_those_at_the_spacing_of_the_label_map():
    plain, at_half = item(), {"label": MetaTensor(item()["label"], affine=torch.diag(torch.tensor([0.5, 0.5, 1, 1])))}
    known = KnownConfusiond("label", SimulateCoarseBatch("over"), num_draws=5)
    here = KnownConfusiond("label", SimulateCoarseBatch("over", spacing=0.5), num_draws=5)(plain)["confusion"]
    assert torch.equal(known(at_half)["confusion"], here)
    assert not torch.equal(known(plain)["confusion"], here), "at 1 mm a millimetre too much is another pixel"


def test_matrices_turn_with_the_image():
    keys = ["image", "label", "confusion"]
    turn = Compose([RandFlipd(keys, 1.0, spatial_axis=0), RandRotate90d(keys, prob=1.0, max_k=1)])
    turned = turn(KnownConfusiond("label", SIMULATE, num_draws=3)(item()))
    assert not torch.equal(turned["image"], item()["image"])
    cm = turned["confusion"].unflatten(0, (3, 2, 2))
    on = turned["image"][0] == 1
    assert torch.allclose(cm[0, 1, 1][on], torch.tensor(3.5 / 4)), "who is right draws the digit where it is now"
    assert torch.allclose(cm[0, 0, 0][~on], torch.tensor(3.5 / 4))


def problem(classes=3, annotators=2, shape=(3, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, *shape, generator=generator, requires_grad=True)
    cm = torch.rand(2, annotators, classes, classes, *shape, generator=generator) + 0.1
    cm = cm / cm.sum(2, keepdim=True)
    drawn = torch.randint(0, classes, (2, annotators, *shape), generator=generator)
    drawn[0, 0, 0] = 255
    drawn[:, 1, 1] = 255
    return logits, cm, drawn


def test_loss_is_the_likelihood_of_what_was_drawn():
    logits, cm, drawn = problem()
    p, total = logits.softmax(1), 0.0
    for r in range(2):
        costs = []
        for b, *x in np.ndindex(2, 3, 4):
            said = drawn[(b, r, *x)].item()
            if said != 255:
                costs.append(-sum(cm[(b, r, said, j, *x)] * p[(b, j, *x)] for j in range(3)).log().item())
        total += sum(costs) / len(costs)
    target = Annotations(positive=drawn, confusion=cm.flatten(1, 3))
    found = OracleLoss(3, trace_weight=0)(CoupledOutput(logits, IdentityConfusion(2)), target)
    assert found.item() == pytest.approx(total, rel=1e-5)


def test_other_terms_and_the_warm_up_are_those_of_the_recipe():
    logits, cm, drawn = problem(classes=2)
    target = Annotations(drawn, image=torch.rand(2, 1, 3, 4), confusion=cm.flatten(1, 3))
    options = {"trace_weight": 0, "dice_weight": 0.5, "appearance_weight": 0.5}
    oracle, plain, coarse = OracleLoss(2, **options), CoupledLoss(2, **options), OracleLoss(2, trace_weight=0)
    warm = CoupledOutput(logits)
    assert oracle(warm, target).item() == pytest.approx(plain(warm, target).item())
    learned = CoupledOutput(logits, IdentityConfusion(2))
    likelihood = [coarse(learned, target).item(), CoupledLoss(2, trace_weight=0)(learned, target).item()]
    rest = [oracle(learned, target).item() - likelihood[0], plain(learned, target).item() - likelihood[1]]
    assert rest[0] == pytest.approx(rest[1], abs=1e-5)
    assert likelihood[0] != pytest.approx(likelihood[1], rel=0.1)


def test_who_is_known_to_swap_the_classes_teaches_the_truth():
    label = torch.randint(0, 2, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    cm = torch.tensor([[0.1, 0.9], [0.9, 0.1]]).view(1, 1, 2, 2, 1, 1).expand(1, 1, 2, 2, 8, 8)
    drawn = sample_annotation(cm, label, torch.Generator().manual_seed(0))
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    output = CoupledOutput(logits, IdentityConfusion(1))
    target = Annotations(positive=drawn, confusion=cm.flatten(1, 3))
    (slope,) = torch.autograd.grad(OracleLoss(2, trace_weight=0)(output, target), logits)
    downhill = (-slope).argmax(1, keepdim=True)
    assert torch.equal(downhill, 1 - drawn.long())
    assert (downhill == label).float().mean() > 0.8


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="those of positive annotators, got 1 negative"):
        KnownConfusiond("label", SimulateCoarseBatch("good", "coarse_negative"))
    logits, cm, drawn = problem()
    output = CoupledOutput(logits, IdentityConfusion(2))
    with pytest.raises(ValueError, match="matrices of the 2 annotators who drew, 18 channels, got none"):
        OracleLoss(3)(output, Annotations(drawn))
    with pytest.raises(ValueError, match="18 channels, got 9 channels"):
        OracleLoss(3)(output, Annotations(drawn, confusion=cm[:, :1].flatten(1, 3)))
