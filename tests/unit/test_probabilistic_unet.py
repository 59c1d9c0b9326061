"""The Probabilistic U-Net: its divergence, its samples, and what it learns from people who disagree."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import set_rnd
from torch.distributions import Independent, Normal, kl_divergence

from medcoarse.baselines.probabilistic_unet import (
    DiagonalGaussian,
    EvidenceLoss,
    PosteriorOutput,
    ProbabilisticUNet,
    RandAnnotatord,
    gaussian_kl,
)
from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.monitoring import LatentMonitor


def gaussian(*shape, seed=0):
    return DiagonalGaussian(*torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)))


def small(spatial_dims=2, classes=2, **options):
    arguments = {"channels": (4, 8), "strides": (2,), "num_res_units": 1, "latent_size": 3, "num_samples": 8}
    return ProbabilisticUNet(spatial_dims, 1, classes, **(arguments | options))


# the equations


def test_divergence_is_that_of_torch():
    posterior, prior = gaussian(50, 6), gaussian(50, 6, seed=1)
    normal = [Independent(Normal(one.mean, one.log_std.exp()), 1) for one in (posterior, prior)]
    assert torch.allclose(gaussian_kl(posterior, prior), kl_divergence(*normal), rtol=1e-5)
    assert not torch.allclose(gaussian_kl(posterior, prior), gaussian_kl(prior, posterior), rtol=0.1)
    assert (gaussian_kl(posterior, prior) > 0).all()
    assert torch.equal(gaussian_kl(prior, prior), torch.zeros(50))


def test_divergence_is_the_mean_of_log_ratios():
    """By its definition, in numbers that were drawn."""
    posterior, prior = DiagonalGaussian(torch.tensor([[0.3]]), torch.tensor([[-0.5]])), gaussian(1, 1)
    rng = np.random.default_rng(0)
    std, mean = np.exp([float(one.log_std) for one in (posterior, prior)]), [posterior.mean.item(), prior.mean.item()]
    z = mean[0] + std[0] * rng.standard_normal(200_000)
    log_density = [-np.log(s) - 0.5 * ((z - m) / s) ** 2 for m, s in zip(mean, std, strict=True)]
    assert gaussian_kl(posterior, prior).item() == pytest.approx(np.mean(log_density[0] - log_density[1]), rel=0.02)


@pytest.mark.parametrize("size", [(8, 8), (4, 8, 6)])
def test_the_latent_meets_the_features_as_if_it_were_tiled_and_concatenated(size):
    model = small(len(size))
    features, latent = torch.randn(2, 4, *size), torch.randn(2, 3)
    tiled = latent.view(2, 3, *(1,) * len(size)).expand(2, 3, *size)
    weight = model.of_latent.weight.view(4, 3, *(1,) * len(size))
    weight = torch.cat([model.of_features.weight, weight], 1)
    convolve = torch.nn.functional.conv2d if len(size) == 2 else torch.nn.functional.conv3d
    expected = model.mix(convolve(torch.cat([features, tiled], 1), weight, model.of_features.bias))
    assert torch.allclose(model._decode(model.of_features(features), latent), expected, atol=1e-6)
    assert sum(isinstance(layer, type(model.of_features)) for layer in model.mix) == 2, "three 1 x 1 convolutions"


def test_the_bound_by_hand():
    logits = torch.tensor([[0.2, 0.8], [0.6, 0.4]]).log()[:, :, None].expand(2, 2, 3)
    label = torch.tensor([[[1, 1, 255]], [[0, 255, 255]]])
    prior = DiagonalGaussian(torch.zeros(2, 2), torch.zeros(2, 2))
    posterior = DiagonalGaussian(torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.zeros(2, 2))
    loss = EvidenceLoss(2, beta=3.0)
    nll = (-2 * np.log(0.8) - np.log(0.6)) / 2  # sums over the pixels of an image
    kl = (1 + 2) / 2
    assert loss(PosteriorOutput(logits, posterior, prior), Annotations(label)).item() == pytest.approx(nll + 3 * kl)
    assert (loss.parts["nll"].item(), loss.parts["kl"].item()) == pytest.approx((nll, kl))
    balanced = EvidenceLoss(2, balance=1)
    balanced(PosteriorOutput(logits, posterior, prior), Annotations(label))
    nll = 3 * (-np.log(0.8) - np.log(0.6)) / 2 / 2  # both classes count alike, three pixels of two images
    assert balanced.parts["nll"].item() == pytest.approx(nll)


def test_what_nobody_drew_teaches_nothing():
    logits, label = torch.randn(3, 2, 4, 4, requires_grad=True), torch.randint(0, 2, (3, 1, 4, 4))
    label[0, 0, :2], label[2] = 255, 255
    posterior, prior = gaussian(3, 6), gaussian(3, 6, seed=1)
    loss = EvidenceLoss(2)
    value = loss(PosteriorOutput(logits, posterior, prior), Annotations(label))
    (slope,) = torch.autograd.grad(value, logits)
    assert torch.equal((slope != 0).any(1), label[:, 0] != 255)
    drawn = PosteriorOutput(logits[:2], *(DiagonalGaussian(*(x[:2] for x in one)) for one in (posterior, prior)))
    assert value.item() == pytest.approx(loss(drawn, Annotations(label[:2])).item(), rel=1e-6)
    assert loss(drawn, Annotations(torch.full_like(label[:2], 255))).item() == 0


# the network


@pytest.mark.parametrize(("size", "classes"), [((8, 8), 2), ((8, 12), 4), ((4, 8, 8), 3)])
def test_every_parameter_learns(size, classes):
    model = small(len(size), classes)
    image, label = torch.rand(2, 1, *size), torch.randint(0, classes, (2, 1, *size), dtype=torch.uint8)
    label[0, 0, 0] = 255
    output = model(image, label)
    assert output.logits.shape == (2, classes, *size)
    assert output.prior.mean.shape == output.posterior.log_std.shape == (2, 3)
    EvidenceLoss(classes)(output, Annotations(label)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_the_posterior_reads_the_annotation_and_the_prior_does_not():
    model, image = small(classes=3), torch.rand(1, 1, 8, 8)
    labels = [torch.full((1, 1, 8, 8), value) for value in (0, 1, 2, 255)]
    outputs = [model(image, label) for label in labels]
    for i, one in enumerate(outputs):
        assert torch.equal(one.prior.mean, outputs[0].prior.mean)
        assert all(not torch.allclose(one.posterior.mean, other.posterior.mean) for other in outputs[:i])


def test_the_answer_is_the_mean_of_samples_whatever_else_is_in_the_batch():
    model, image = small().eval(), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        members, answer = model.members(image), model(image)
        assert members.shape == (3, 8, 2, 8, 8)
        assert torch.allclose(answer.exp(), members.mean(1), atol=1e-6)
        assert torch.allclose(members.sum(2), torch.ones(3, 8, 8, 8), atol=1e-5)
        assert torch.allclose(model(image[1:2]), answer[1:2], atol=1e-5)
        assert torch.equal(model(image), answer)
        assert not torch.allclose(members[:, 0], members[:, 1])
        twin = small().eval()
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(image), answer), "the noise is that of the seed"


def test_samples_are_of_the_prior():
    model, image = small(latent_size=2).eval(), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        prior, features = model.prior(image), model.of_features(model.unet(image))
        noise = torch.randn((5, 2, 2), generator=torch.Generator().manual_seed(3))
        samples = model.sample(image, num_samples=5, generator=torch.Generator().manual_seed(3))
        for n in range(5):
            latent = prior.mean + prior.log_std.exp() * noise[n]
            assert torch.allclose(samples[:, n], model._decode(features, latent).softmax(1), atol=1e-6)


# what it learns


def fit(annotate, beta, steps=250, seed=0):
    """A network trained on 8 x 8 images; ``annotate(number, generator)`` says whether the middle is drawn."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, loss = small(channels=(8, 8), num_samples=64), EvidenceLoss(2, beta=beta)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    parts = []
    for _ in range(steps):
        image = torch.rand(8, 1, 8, 8, generator=generator)
        label = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
        label[annotate(8, generator), :, 2:6, 2:6] = 1
        optimizer.zero_grad()
        loss(model(image, label), Annotations(label)).backward()
        optimizer.step()
        parts.append({name: part.item() for name, part in loss.parts.items()})
    late = {name: float(np.mean([one[name] for one in parts[-30:]])) for name in parts[0]}
    with torch.no_grad():
        return late, model.eval().members(torch.rand(4, 1, 8, 8, generator=generator))[:, :, 1, 2:6, 2:6]


def by_chance(number, generator):
    return torch.rand(number, generator=generator) < 0.5


def always(number, generator):
    return torch.ones(number, dtype=torch.bool)


def test_without_the_divergence_every_annotation_is_reconstructed():
    """What cannot be told from the image must be told by the latent; a divergence that is dear forbids it."""
    free, _ = fit(by_chance, beta=0.0)
    dear, members = fit(by_chance, beta=1e4)
    assert free["nll"] < 0.1, "of 16 pixels, of which each costs log 2 to those who do not know"
    assert dear["kl"] < 0.01
    assert dear["nll"] > 0.8 * 16 * np.log(2)
    assert members.std(1).max() < 0.1


def test_samples_differ_where_annotators_do_and_only_there():
    late, two = fit(by_chance, beta=1.0)
    assert 0.5 < late["kl"] < 3, "one bit is log 2; the prior has to cover both"
    drawn = two.mean((2, 3)) > 0.5
    assert (drawn.float().mean(1) - 0.5).abs().max() < 0.35, "some of either kind"
    assert ((two < 0.1) | (two > 0.9)).float().mean() > 0.8, "and hardly any in between"
    _, one = fit(always, beta=1.0)
    assert one.var(1).max() < 1e-3 < two.var(1).min()


# one annotator of many


@pytest.mark.parametrize("size", [(4, 4), (2, 3, 4)])
def test_one_of_those_who_drew_is_chosen_at_random(size):
    positive = torch.full((4, *size), 255, dtype=torch.uint8)
    for r in (0, 1, 3):
        positive[r].flatten()[r] = r  # one pixel is enough
    choose = RandAnnotatord("positive").set_random_state(seed=0)
    chosen = []
    for _ in range(600):
        item = choose({"positive": positive})
        chosen.append(item["chosen"])
        assert torch.equal(item["positive"], positive[item["chosen"]][None])
    assert np.bincount(chosen, minlength=4) / 600 == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.06)
    again = RandAnnotatord("positive")
    set_rnd(again, seed=0)
    assert [again({"positive": positive})["chosen"] for _ in range(20)] == chosen[:20], "as an epoch is seeded"


def test_nobody_drew():
    item = RandAnnotatord("positive")({"positive": np.full((3, 2, 2), 255, dtype=np.uint8)})
    assert item["chosen"] == -1
    assert item["positive"].shape == (1, 2, 2)
    assert (item["positive"] == 255).all()
    assert RandAnnotatord("positive", allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(KeyError, match="positive"):
        RandAnnotatord("positive")({"image": 1})


# what is said and refused


def watched(divergences, memory):
    """A monitor that has looked so often."""
    loss = SimpleNamespace(parts={})
    engine = Engine(lambda _, divergence: loss.parts.update(kl=torch.tensor(divergence)))
    LatentMonitor(loss, interval=1, memory=memory).attach(engine)
    engine.run(list(divergences))


@pytest.mark.parametrize(
    ("divergences", "warns"), [([0.001] * 6, True), ([0.001, 0.001, 0.1] * 2, False), ([0.001] * 2, False)]
)
def test_a_posterior_that_collapsed_is_told_once(divergences, warns, caplog):
    with caplog.at_level(logging.WARNING):
        watched(divergences, memory=3)
    assert [record.message for record in caplog.records] == (
        ["The latent variable tells 0.0010 nats of an annotation: the posterior has collapsed onto the prior, and all "
         "samples of an image are alike. That is as it should be where the annotators agree; otherwise lower beta or "
         "train for longer."] if warns else []
    )  # fmt: skip


def test_what_does_not_fit_is_refused():
    model, image = small(), torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="one annotation an image, got 5; RandAnnotatord draws one of many"):
        model(image, torch.zeros(1, 5, 8, 8))
    with pytest.raises(ValueError, match="one annotation an image, got none"):
        model(image)
    with pytest.raises(ValueError, match="latent_size and num_samples must be at least 1, got 0 and 8"):
        small(latent_size=0)
    with pytest.raises(ValueError, match="beta must not be negative, got -1"):
        EvidenceLoss(2, beta=-1)
    with pytest.raises(ValueError, match="takes a ProbabilisticUNet's output in training, and one annotation"):
        EvidenceLoss(2)(CoupledOutput(torch.zeros(1, 2, 3)), Annotations(torch.zeros(1, 1, 3)))
