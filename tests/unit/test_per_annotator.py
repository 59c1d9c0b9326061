"""One network per annotator is as many trainings, each on the images of one annotator."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet, UNet
from torch import nn

from medcoarse.baselines.partial import PartialLoss
from medcoarse.baselines.per_annotator import PerAnnotator, PerAnnotatorLoss
from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.losses import dense_nll


def build(spatial_dims=2, classes=2, norm="instance"):
    return UNet(spatial_dims, 1, classes, channels=(4, 8), strides=(2,), norm=norm)


def batch(annotators, classes=2, size=(8, 8), number=6, seed=0):
    """Images, and labels of which a fifth of the pixels is unknown."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(number, 1, *size, generator=generator)
    label = torch.randint(0, classes, (number, annotators, *size), generator=generator, dtype=torch.uint8)
    label[torch.rand(label.shape, generator=generator) < 0.2] = 255
    return image, label


def optimizer(module):
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


def train(model, batches, loss):
    """As an engine does: one step a batch."""
    steps = optimizer(model)
    for image, label in batches:
        steps.zero_grad(set_to_none=True)
        loss(model.train()(image, label), Annotations(label)).backward()
        steps.step()


def train_alone(network, batches, loss):
    """The ordinary training of one network on label maps ``(B, 1, *S)``."""
    steps = optimizer(network)
    for image, label in batches:
        steps.zero_grad(set_to_none=True)
        loss(CoupledOutput(network.train()(image)), Annotations(label)).backward()
        steps.step()


def same(one, other):
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("size", "classes", "dice"), [((8, 8), 2, 0.5), ((4, 8, 8), 3, 0.0)])
def test_one_annotator_is_the_ordinary_training(size, classes, dice):
    batches = [batch(1, classes, size, seed=seed) for seed in range(3)]
    torch.manual_seed(0)
    alone = build(len(size), classes)
    torch.manual_seed(0)
    model = PerAnnotator(lambda: build(len(size), classes), num_annotators=1)
    assert same(alone, model.networks[0])
    train(model, batches, PerAnnotatorLoss(classes, dice_weight=dice))
    train_alone(alone, batches, PartialLoss(classes, dice_weight=dice))
    assert same(alone, model.networks[0])
    image = batches[0][0]
    expected = alone.eval()(image).softmax(1)
    assert torch.allclose(model.eval()(image).exp(), expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_each_network_is_trained_on_the_images_of_its_annotator_alone(norm):
    """Also where the network has statistics of what it sees, and where a batch has nothing of an annotator."""
    batches = [batch(3, seed=seed) for seed in range(4)]
    drew = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(7)) < 0.6
    drew[1:3, :, 2] = False
    for (_, label), who in zip(batches, drew, strict=True):
        label[~who] = 255
    model = PerAnnotator(lambda: build(norm=norm), num_annotators=3)
    alone = [build(norm=norm) for _ in range(3)]
    for one, network in zip(alone, model.networks, strict=True):
        one.load_state_dict(network.state_dict())
    train(model, batches, PerAnnotatorLoss(2))
    for r, one in enumerate(alone):
        own = [
            (image[who[:, r]], label[who[:, r], r : r + 1]) for (image, label), who in zip(batches, drew, strict=True)
        ]
        train_alone(one, [pair for pair in own if len(pair[0])], PartialLoss(2, dice_weight=0.5))
        for name, value in one.state_dict().items():
            assert torch.allclose(value, model.networks[r].state_dict()[name], atol=1e-5), (r, name)


def test_nothing_moves_for_an_annotator_without_a_sample():
    model, loss = PerAnnotator(build, num_annotators=2), PerAnnotatorLoss(2)
    image, label = batch(2)
    steps = optimizer(model)
    for hidden in (False, True):
        if hidden:
            label[:, 1] = 255
        before = [parameter.clone() for parameter in model.networks[1].parameters()]
        steps.zero_grad(set_to_none=True)
        loss(model(image, label), Annotations(label)).backward()
        steps.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, model.networks[1].parameters(), strict=True)]
        assert any(moved) != hidden, "not by momentum or weight decay, either"


def test_where_nobody_drew_anything_it_costs_nothing():
    model = PerAnnotator(build, num_annotators=2)
    image, label = batch(2)
    label[:] = 255
    value = PerAnnotatorLoss(2)(model(image, label), Annotations(label))
    value.backward()
    assert value.item() == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_networks_start_differently_and_their_mean_is_the_answer():
    model = PerAnnotator(lambda: BasicUNet(2, 1, 3, features=(4, 4, 4, 4, 4, 4)), num_annotators=3).eval()
    image = batch(1, size=(32, 32))[0]
    with torch.no_grad():
        each = [network(image).softmax(1) for network in model.networks]
        assert not torch.allclose(each[0], each[1])
        assert torch.allclose(model(image).exp(), sum(each) / 3, atol=1e-6)
        assert torch.allclose(model.members(image), torch.stack(each, 1))


def test_sums_of_the_annotators():
    loss = PerAnnotatorLoss(2, dice_weight=0.5)
    _, label = batch(2)
    logits = tuple(torch.randn(6, 2, 8, 8) for _ in range(2))
    value = loss(logits, Annotations(label))
    alone = PartialLoss(2, dice_weight=0.5)
    expected = [alone(CoupledOutput(one), Annotations(label[:, r : r + 1])) for r, one in enumerate(logits)]
    assert value.item() == pytest.approx(sum(expected).item(), rel=1e-6)
    assert (loss.parts["nll"] + 0.5 * loss.parts["dice"]).item() == pytest.approx(value.item())
    balanced = PerAnnotatorLoss(2, dice_weight=0, balance=0.5)(logits, Annotations(label))
    rows = [label[:, r : r + 1].clone() for r in range(2)]
    expected = [dense_nll(one.log_softmax(1), own, balance=0.5) for one, own in zip(logits, rows, strict=True)]
    assert balanced.item() == pytest.approx(sum(expected).item(), rel=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least one annotator is needed, got num_annotators=0"):
        PerAnnotator(build, 0)
    model, (image, label) = PerAnnotator(lambda: nn.Conv2d(1, 2, 1), 3), batch(2)
    with pytest.raises(ValueError, match="needs the annotations of 3 annotators, got 2"):
        model(image, label)
    with pytest.raises(ValueError, match="needs the annotations of 3 annotators, got none"):
        model(image)
    with pytest.raises(ValueError, match="takes the logits of a PerAnnotator in training, and positive drawings"):
        PerAnnotatorLoss(2)(CoupledOutput(torch.zeros(1, 2, 3)), Annotations(label))
    with pytest.raises(ValueError, match=r"weights must not be negative, got .*dice_weight=-1"):
        PerAnnotatorLoss(2, dice_weight=-1)
