"""Two decoders, labels mixed of both, and labels of what the network is certain of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet
from torch import nn

from medcoarse.baselines.dmpls import (
    DualBranchLoss,
    DualBranchUNet,
    DualOutput,
    ExpandedSeeds,
    expanded,
    mixed_probs,
    ramp_up,
)
from medcoarse.baselines.epochs import EpochChance
from medcoarse.baselines.partial import PartialLoss
from medcoarse.baselines.soft_labels import HardLabels, Numbered
from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.losses import consensus
from tests.shown import Shown


def unet(spatial_dims=2, channels=(4, 8, 12)):
    torch.manual_seed(0)
    return UNet(spatial_dims, 1, 3, channels, [2] * (len(channels) - 1), num_res_units=2)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("channels", [(4, 8), (4, 8, 12, 16)])
def test_the_main_branch_is_the_network_as_it_is(spatial_dims, channels):
    network = unet(spatial_dims, channels)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = DualBranchUNet(network)
    image = torch.rand(2, 1, *[16] * spatial_dims)
    assert model.segmenter.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.segmenter.state_dict().items())
    output = model(image)
    assert torch.equal(output.main, network(image))
    assert torch.equal(model.eval()(image), network(image))
    number = sum(p.numel() for p in network.parameters())
    decoder = sum(p.numel() for p in model.auxiliary.parameters())
    assert sum(p.numel() for p in model.parameters()) == number + decoder
    assert 0 < decoder < number


def test_the_second_decoder_starts_elsewhere_and_shares_the_encoder():
    model, image = DualBranchUNet(unet(), dropout=0.0), torch.rand(2, 1, 16, 16)
    output = model(image)
    assert not torch.allclose(output.main, output.auxiliary)
    output.auxiliary.sum().backward()
    reached = [name for name, p in model.segmenter.named_parameters() if p.grad is not None]
    assert reached
    assert all(p.grad is not None for p in model.auxiliary.parameters())
    main_decoder = {f"model.2.{name}" for name, _ in model.segmenter.model[2].named_parameters()}
    assert main_decoder.isdisjoint(reached)
    assert any(name.startswith("model.0.") for name in reached)
    assert torch.equal(model(image).auxiliary, output.auxiliary), "no dropout"


def test_with_equal_weights_and_no_dropout_both_decoders_agree():
    model, image = DualBranchUNet(unet(), dropout=0.0), torch.rand(2, 1, 16, 16)
    model.auxiliary.load_state_dict(nn.ModuleList(model._levels()[1]).state_dict())
    output = model(image)
    assert torch.equal(output.main, output.auxiliary)
    model.dropout = 0.5
    assert not torch.equal(model(image).main, model(image).auxiliary)


def output_and_target(seed=0, size=(4, 5)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 2, 3, *size, generator=generator, requires_grad=True)
    drawn = torch.randint(0, 3, (2, 1, *size), generator=generator, dtype=torch.uint8)
    drawn[torch.rand(drawn.shape, generator=generator) < 0.6] = 255
    return logits, DualOutput(*logits), Annotations(positive=drawn)


def alpha_of(seed, epoch, number=1):
    chance = EpochChance(seed)
    chance.start(epoch)
    return [float(torch.rand((), generator=chance.generator)) for _ in range(number)][-1]


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)])
@pytest.mark.parametrize("soft", [False, True])
def test_loss_by_numpy(soft, size):
    logits, output, target = output_and_target(size=size)
    loss = DualBranchLoss(3, soft=soft, pseudo_weight=0.7, seed=5)
    value = loss(output, target)
    probs = logits.detach().softmax(2).double().numpy()
    alpha = alpha_of(5, 0)
    mixed = alpha * probs[0] + (1 - alpha) * probs[1]
    label, total = target.positive[:, 0].numpy(), 0.0
    for one in probs:
        nll = [-math.log(one[(b, label[(b, *x)], *x)]) for b, *x in np.ndindex(label.shape) if label[(b, *x)] != 255]
        if soft:
            pseudo = -(mixed * np.log(one)).sum(1).mean()
        else:
            hard = mixed.argmax(1)
            dice = [2 * one[:, k][hard == k].sum() / (one[:, k].sum() + (hard == k).sum()) for k in (1, 2)]
            pseudo = 1 - np.mean(dice)
        total += 0.5 * (np.mean(nll) + 0.7 * pseudo)
    assert value.item() == pytest.approx(total, rel=1e-4)
    assert set(loss.parts) == {"drawn nll", "drawn dice", "pseudo"}


@pytest.mark.parametrize("soft", [False, True])
def test_pseudo_labels_have_no_gradient(soft):
    logits, output, target = output_and_target()
    nothing = Annotations(positive=torch.full_like(target.positive, 255))
    loss = DualBranchLoss(3, soft=soft, pseudo_weight=2.0, seed=1)
    slope = torch.autograd.grad(loss(output, nothing), logits)[0]
    if soft:  # of cross-entropy with a fixed label: p - q at every pixel
        probs = logits.detach().softmax(2)
        q = mixed_probs(output, alpha_of(1, 0))
        expected = 2.0 * 0.5 * (probs - q) / q[:, 0].numel()
        assert torch.allclose(slope, expected, atol=1e-6)
    assert slope.abs().sum() > 0


def test_without_pseudo_labels_two_equal_branches_are_the_partial_loss():
    logits, _, target = output_and_target()
    loss = DualBranchLoss(3, pseudo_weight=0, dice_weight=0.5)
    expected = PartialLoss(3, dice_weight=0.5)(CoupledOutput(logits[0]), target)
    assert loss(DualOutput(logits[0], logits[0]), target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_alpha_is_uniform_and_follows_seed_and_epoch():
    chance = EpochChance(3)
    draws = torch.stack([torch.rand((), generator=chance.generator) for _ in range(2000)]).sort()[0]
    assert (draws - torch.linspace(0, 1, 2000)).abs().max() < 0.05
    assert alpha_of(0, 1) != alpha_of(0, 2) != alpha_of(1, 2)
    _, output, target = output_and_target()

    def run(epochs, state=None):
        loss, values = DualBranchLoss(3, soft=True, seed=4), []
        engine = Engine(lambda engine, batch: values.append(loss(output, target).item()))
        loss.attach(engine)
        if state is not None:
            engine.load_state_dict(state)
        engine.run([0, 0, 0], max_epochs=epochs)
        return values, engine.state_dict() | {"epoch_length": 3}

    whole, _ = run(3)
    first, state = run(1)
    assert len(set(whole)) == 9
    assert first == whole[:3]
    assert run(3, state | {"max_epochs": 3})[0] == whole[3:]


def test_the_weight_grows_with_the_epochs():
    loss = DualBranchLoss(3, soft=True, pseudo_weight=8, ramp_epochs=10)
    weights = []
    for epoch in (1, 5, 10, 20):
        loss.chance.start(epoch)
        weights.append(loss.weight())
    assert weights == pytest.approx([8 * ramp_up(0.1), 8 * math.exp(-1.25), 8, 8])
    assert DualBranchLoss(3, pseudo_weight=0.5).weight() == 0.5


def test_drawn_labels_stay_and_doubtful_pixels_stay_open():
    generator = torch.Generator().manual_seed(0)
    log_probs = (5 * torch.randn(2, 3, 8, 9, generator=generator)).log_softmax(1)
    drawn = torch.randint(0, 3, (2, 1, 8, 9), generator=generator, dtype=torch.uint8)
    drawn[torch.rand(drawn.shape, generator=generator) < 0.5] = 255
    label = expanded(drawn, log_probs)
    entropy = torch.distributions.Categorical(logits=log_probs.movedim(1, -1)).entropy()[:, None]
    assert torch.equal(label[drawn != 255], drawn[drawn != 255])
    open_ = drawn == 255
    assert torch.equal(label[open_] != 255, entropy[open_] < 0.1)
    assert torch.equal(label[open_ & (label != 255)], log_probs.argmax(1, keepdim=True)[open_ & (label != 255)].byte())
    assert (label[open_] == 255).any()
    assert (label[open_] != 255).any()
    assert torch.equal(expanded(drawn, log_probs, 0), drawn)
    certain = F.one_hot(torch.zeros(1, 4).long(), 3).movedim(-1, 1).double().log()  # -inf for the other classes
    assert expanded(torch.full((1, 1, 4), 255), certain).eq(0).all()


def test_the_second_stage_starts_from_the_drawings_alone():
    generator = torch.Generator().manual_seed(0)
    items = [
        {
            "image": 6 * torch.randn(2, 4, 5, generator=generator),
            "positive": torch.randint(0, 2, (1, 4, 5), generator=generator, dtype=torch.uint8),
            "negative": torch.randint(0, 2, (1, 4, 5), generator=generator, dtype=torch.uint8),
            "label": torch.randint(0, 2, (1, 4, 5), generator=generator),
        }
        for _ in range(3)
    ]
    labels = HardLabels()
    data = Numbered(items * 2, 3)
    seeds = ExpandedSeeds(Shown(), data, SimpleInferer(), labels, 2, epochs=[2])
    seen = []
    engine = Engine(lambda engine, batch: seen.append([labels(data[i])["label"].clone() for i in (0, 4, 5)]))
    seeds.attach(engine)
    engine.run([0], max_epochs=2)
    drawn = [consensus(Annotations(item["positive"][None], item["negative"][None]), 2)[0] for item in items]
    assert all(torch.equal(one, other) for one, other in zip(seen[0], drawn, strict=True))
    wanted = [expanded(d[None], item["image"][None].log_softmax(1))[0] for d, item in zip(drawn, items, strict=True)]
    assert all(torch.equal(one, other) for one, other in zip(seen[1], wanted, strict=True))
    assert any((one != other).any() for one, other in zip(drawn, wanted, strict=True))
    other = ExpandedSeeds(Shown(), data, SimpleInferer(), HardLabels(), 2, epochs=[2])
    other.load_state_dict(seeds.state_dict())
    other._start(engine)
    assert all(torch.equal(other.labels.maps[n], wanted[n]) for n in range(3)), "resuming keeps the labels"


def test_what_does_not_fit_is_said():
    with pytest.raises(TypeError, match="built for MONAI's UNet, got Conv2d"):
        DualBranchUNet(nn.Conv2d(1, 2, 1))
    with pytest.raises(ValueError, match=r"dropout must be .* got 1.5"):
        DualBranchUNet(unet(), dropout=1.5)
    with pytest.raises(ValueError, match="must not be negative"):
        DualBranchLoss(2, pseudo_weight=-1)
    with pytest.raises(TypeError, match="takes a DualBranchUNet's output"):
        DualBranchLoss(2)(CoupledOutput(torch.zeros(1, 2, 3)), Annotations())
    with pytest.raises(ValueError, match="5 items are not 2 ones"):
        Numbered([0] * 5, 2)
