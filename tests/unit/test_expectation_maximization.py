"""Soft labels, and the two methods that estimate them from a network and everybody's confusion matrix in turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import CacheDataset
from monai.inferers import SimpleInferer
from monai.transforms import Compose, RandFlipd
from torch import nn

from medcoarse.baselines.bootstrapped_em import BootstrappedEM
from medcoarse.baselines.generalized_em import GeneralizedEM, log_likelihood, posterior, smoothed_confusion
from medcoarse.baselines.soft_labels import SoftLabelLoss, SoftLabels, soft_nll
from medcoarse.confusion import Annotations, CoupledOutput, sample_annotation
from medcoarse.fusion.staple import staple
from medcoarse.fusion.voting import mean_label
from medcoarse.losses import CoupledLoss
from medcoarse.metrics import soft_annotation_counts
from tests.shown import Shown

EXACT = {"off_diagonal": 0.0, "diagonal": 0.0}


def run(method, items, classes, network=None, epochs=(), **options):
    labels = SoftLabels()
    return method(network or Shown(), items, SimpleInferer(), labels, classes, epochs, **options), labels


def random_cm(annotators, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(annotators, classes, classes, generator=generator)
    return 0.6 * torch.eye(classes) + 0.4 * noise / noise.sum(1, keepdim=True)


def annotated(label, cm, generator):
    maps = cm[None].view(1, *cm.shape, *[1] * (label.ndim - 2)).expand(len(label), *cm.shape, *label.shape[2:])
    return sample_annotation(maps, label, generator)


# the steps


def loops(annotation, cm, prior):
    """Posterior and log-likelihood, pixel by pixel."""
    gamma, total = np.zeros_like(prior), 0.0
    for b, *x in np.ndindex(len(annotation), *annotation.shape[2:]):
        said = [(r, annotation[(b, r, *x)]) for r in range(annotation.shape[1])]
        said = [(r, s) for r, s in said if s != 255]
        joint = [prior[(b, k, *x)] * np.prod([cm[r, s, k] for r, s in said]) for k in range(prior.shape[1])]
        total += np.log(sum(joint))
        if said:
            gamma[(b, slice(None), *x)] = np.array(joint) / sum(joint)
    return gamma, total


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)])
def test_posterior_and_likelihood_equal_those_of_loops(size):
    rng = np.random.default_rng(0)
    annotation = np.where(rng.random((2, 4, *size)) < 0.3, 255, rng.integers(3, size=(2, 4, *size)))
    annotation[0, :, 0] = 255  # nobody
    prior = np.moveaxis(rng.dirichlet(np.ones(3), (2, *size)), -1, 1)
    cm = random_cm(4, 3).double()
    gamma, total = loops(annotation, cm.numpy(), prior)
    given = torch.from_numpy(annotation), cm, torch.from_numpy(prior).log()
    np.testing.assert_allclose(posterior(*given).numpy(), gamma, atol=1e-12)
    assert log_likelihood(*given).item() == pytest.approx(total)
    one = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    everywhere = one.view(1, 3, *[1] * len(size)).expand(2, 3, *size)
    gamma, total = loops(annotation, cm.numpy(), everywhere.numpy())
    np.testing.assert_allclose(posterior(*given[:2], one.log()).numpy(), gamma, atol=1e-12)
    assert log_likelihood(*given[:2], one.log()).item() == pytest.approx(total)


def test_a_thousand_annotators_do_not_underflow():
    annotation = torch.tensor([0, 1]).repeat(500).view(1, 1000, 1)
    cm = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).expand(1000, 2, 2)
    prior = torch.tensor([0.3, 0.7], dtype=torch.float64)
    assert torch.allclose(posterior(annotation, cm, prior.log())[0, :, 0], prior)


def test_pixels_that_are_added_to_counts():
    counts = torch.tensor([[[6.0, 0.0], [3.0, 0.0]]])
    added = smoothed_confusion(counts, off_diagonal=1, diagonal=2)
    assert torch.allclose(added, torch.tensor([[[8 / 12, 1 / 3], [4 / 12, 2 / 3]]]))
    with pytest.raises(ValueError, match="must not be negative, got off_diagonal=-1"):
        smoothed_confusion(counts, off_diagonal=-1)


def test_the_likelihood_never_falls_with_exact_steps():
    """``p`` is a table: one distribution for each of four kinds of pixels, whose exact M step is a mean."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 4, (1, 1, 600), generator=generator)
    truth = torch.tensor([0, 1, 2, 2])[kind]
    truth[..., ::7] = 1
    annotation = annotated(truth, random_cm(3, 3), generator).long()
    annotation[:, 1, :50] = 255
    gamma, seen = mean_label(annotation, 3).double(), []
    for _ in range(25):
        cm = smoothed_confusion(soft_annotation_counts(annotation, gamma)[0], **EXACT)
        table = torch.stack([gamma[..., kind[0, 0] == j].mean(-1)[0] for j in range(4)], 1)
        log_p = table.log()[None][..., kind[0, 0]]
        seen.append(log_likelihood(annotation, cm, log_p).item())
        gamma = posterior(annotation, cm, log_p)
    assert min(np.diff(seen)) > -1e-9
    assert seen[-1] > seen[0] + 1


# generalized EM


def test_known_matrices_are_recovered():
    generator = torch.Generator().manual_seed(0)
    label, cm = torch.randint(0, 3, (6, 1, 40, 40), generator=generator), random_cm(3, 3)
    annotation = annotated(label, cm, generator)
    shown = torch.full((6, 3, 40, 40), 0.15).scatter(1, label, 0.7).log()
    items = [{"image": image, "positive": drawn} for image, drawn in zip(shown, annotation, strict=True)]
    em, labels = run(GeneralizedEM, items, 3)
    em.initialize()
    first = (em.cm - cm).abs().max()
    for _ in range(15):
        em.estimate()
    assert (em.cm - cm).abs().max() < 0.03 < first
    found = torch.stack([labels({"number": n})["label"].argmax(0) for n in range(6)])
    votes = mean_label(annotation, 3).argmax(1)
    assert (found == label[:, 0]).float().mean() > (votes == label[:, 0]).float().mean() + 0.05


def test_with_a_prior_in_place_of_the_network_it_is_staple():
    generator = torch.Generator().manual_seed(1)
    label = (torch.rand(2, 1, 20, 20, generator=generator) < 0.3).long()
    annotation = annotated(label, random_cm(4, 2), generator)
    annotation[0, 2] = 255
    prior = torch.tensor([0.65, 0.35])
    image = prior.log().view(2, 1, 1).expand(2, 20, 20)
    em, labels = run(GeneralizedEM, [{"image": image, "positive": one} for one in annotation], 2, **EXACT)
    em.initialize()
    for _ in range(300):
        em.estimate()
    expected = staple(annotation, 2, scope="dataset", prior=prior, tol=1e-12)
    assert torch.allclose(em.cm.float(), expected.cm[0], atol=1e-5)
    for n in range(2):
        assert torch.allclose(labels({"number": n})["label"], expected.probs[n], atol=1e-3)  # half precision


def test_labels_start_as_the_mean_of_the_annotations():
    annotation = torch.tensor([[[0, 1, 255]], [[1, 1, 255]]])
    em, labels = run(GeneralizedEM, [{"image": torch.zeros(2, 1, 3), "positive": annotation}], 2, **EXACT)
    em.initialize()
    assert labels({"number": 0})["label"].tolist() == [[[0.5, 0, 0]], [[0.5, 1, 0]]]
    assert em.cm[0].tolist() == [[1, pytest.approx(1 / 3)], [0, pytest.approx(2 / 3)]]


# model-bootstrapped EM


def test_a_round_of_the_bootstrap_by_hand():
    """Four pixels taken for 0, 0, 1, 1; the last was not annotated and does not count."""
    shown = torch.tensor([[[3.0, 2.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 9.0]]])
    annotation = torch.tensor([[[0, 1, 1, 255]]])
    em, labels = run(BootstrappedEM, [{"image": shown, "positive": annotation}], 2, off_diagonal=1, diagonal=1)
    em.estimate()
    assert torch.allclose(em.cm[0], torch.tensor([[2 / 4, 1 / 3], [2 / 4, 2 / 3]]).double())
    q = [(2 + 1) / 5, (1 + 1) / 5]
    said_0, said_1 = ([q[k] * em.cm[0, s, k].item() for k in range(2)] for s in range(2))
    expected = [[row[k] / sum(row) for row in (said_0, said_1, said_1)] + [0] for k in range(2)]
    assert torch.allclose(labels({"number": 0})["label"][:, 0], torch.tensor(expected), atol=1e-3)


def test_the_two_differ_by_the_prior_alone():
    generator = torch.Generator().manual_seed(0)
    annotation = torch.randint(0, 3, (4, 2, 6, 6), generator=generator)
    shown = torch.randn(4, 3, 6, 6, generator=generator)
    items = [{"image": image, "positive": one} for image, one in zip(shown, annotation, strict=True)]
    bootstrapped, hard = run(BootstrappedEM, items, 3)
    bootstrapped.estimate()
    shares = torch.bincount(shown.argmax(1).flatten(), minlength=3).double() + 1
    q = (shares / shares.sum()).float()
    says_q = [one | {"image": q.log().view(3, 1, 1).expand(3, 6, 6)} for one in items]
    generalized, soft = run(GeneralizedEM, says_q, 3)
    generalized.cm = bootstrapped.cm
    generalized.estimate()
    other, own = run(GeneralizedEM, items, 3)
    other.cm = bootstrapped.cm
    other.estimate()
    for n in range(4):
        with_q, with_p = (one({"number": n})["label"] for one in (hard, own))
        assert torch.allclose(with_q, soft({"number": n})["label"], atol=1e-3)
        moved = with_q * shown[n].softmax(0) / q.view(3, 1, 1)
        assert torch.allclose(with_p, moved / moved.sum(0), atol=3e-3)


def learned(method, noise=0.3):
    """A linear segmenter that learns from one annotation an image, by one of three who err alike."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (60, 1, 12, 12), generator=generator)
    image = label + 0.35 * torch.randn(label.shape, generator=generator)
    errs = torch.tensor([[1 - noise, noise], [noise, 1 - noise]])
    annotation = annotated(label, errs.expand(3, 2, 2), generator)
    for n in range(60):
        annotation[n, [r for r in range(3) if r != n % 3]] = 255
    items = [
        {"image": one, "positive": drawn, "number": n}
        for n, (one, drawn) in enumerate(zip(image, annotation, strict=True))
    ]
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 1)
    em, labels = run(method, items, 2, network, epochs=(9, 17))
    optimizer, loss = torch.optim.Adam(network.parameters(), 0.1), SoftLabelLoss(2)

    def step(engine, numbers):
        batch = [labels(items[n]) for n in numbers]
        image, label = (torch.stack([item[key] for item in batch]) for key in ("image", "label"))
        optimizer.zero_grad()
        loss(CoupledOutput(network(image)), Annotations(label=label)).backward()
        optimizer.step()

    trainer = Engine(step)
    em.attach(trainer)
    trainer.run([range(start, start + 20) for start in (0, 20, 40)], max_epochs=24)
    return em, errs


def test_one_annotation_an_image_is_enough_for_the_bootstrap_but_not_without_it():
    em, errs = learned(BootstrappedEM)
    assert (em.cm - errs).abs().max() < 0.03
    em, errs = learned(GeneralizedEM)
    assert (em.cm - torch.eye(2)).abs().max() < 0.1, "annotations explain themselves"


# soft labels


def test_labels_that_are_replaced_reach_the_cache_and_turn_with_the_image():
    labels = SoftLabels()
    keys = ["image", "label"]
    items = [{"image": torch.arange(4.0).view(1, 2, 2), "number": n} for n in range(2)]
    dataset = CacheDataset(items, Compose([labels, RandFlipd(keys, prob=1.0, spatial_axis=1)]), progress=False)
    for shift in (0, 1):
        for n in range(2):
            labels[n] = torch.arange(4.0).view(1, 2, 2) + 10 * n + shift
        for n in range(2):
            assert torch.equal(
                torch.as_tensor(dataset[n]["label"] - dataset[n]["image"]), torch.full((1, 2, 2), 10.0 * n + shift)
            )


def test_what_was_estimated_is_saved_and_read_with_weights_only(tmp_path):
    items = [{"image": torch.zeros(2, 1, 3), "positive": torch.tensor([[[0, 1, 1]]])}]
    em, labels = run(GeneralizedEM, items, 2)
    em.initialize()
    em.estimate()
    torch.save(em.state_dict(), tmp_path / "em.pt")
    again, loaded = run(GeneralizedEM, items, 2)
    again.load_state_dict(torch.load(tmp_path / "em.pt", weights_only=True))
    again._start(None)  # what was estimated stays
    assert torch.equal(again.cm, em.cm)
    assert torch.equal(loaded({"number": 0})["label"], labels({"number": 0})["label"])
    with pytest.raises(KeyError, match="item 1 has no soft label yet"):
        loaded({"number": 1})


@pytest.mark.parametrize("balance", [0, 0.5, 1])
def test_certain_labels_are_learned_as_masks_are(balance):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator, requires_grad=True)
    label = torch.randint(0, 3, (2, 1, 4, 5), generator=generator)
    label[0, :, 0] = 255
    soft = torch.cat([label == k for k in range(3)], 1).float()
    masks = CoupledLoss(3, dice_weight=0.5, balance=balance)(CoupledOutput(logits), Annotations(label=label))
    found = SoftLabelLoss(3, dice_weight=0.5, balance=balance)(CoupledOutput(logits), Annotations(label=soft))
    assert found.item() == pytest.approx(masks.item(), rel=1e-6)
    slopes = [torch.autograd.grad(value, logits)[0] for value in (masks, found)]
    assert torch.allclose(*slopes, atol=1e-7)
    assert SoftLabelLoss(3)(CoupledOutput(logits), Annotations(label=0 * soft)).item() == 0


def test_soft_cross_entropy_equals_that_of_loops():
    rng = np.random.default_rng(0)
    soft = np.moveaxis(rng.dirichlet(np.ones(3), (2, 4)), -1, 1)
    soft[1, :, 2] = 0
    p = np.moveaxis(rng.dirichlet(np.ones(3), (2, 4)), -1, 1)
    costs = [-sum(soft[b, k, x] * np.log(p[b, k, x]) for k in range(3)) for b in range(2) for x in range(4)]
    found = soft_nll(torch.from_numpy(p).log(), torch.from_numpy(soft))
    assert found.item() == pytest.approx(sum(costs) / 7)
    each = [-(soft * np.log(p))[:, k].sum() / soft[:, k].sum() for k in range(3)]  # of a class, all its pixels
    found = soft_nll(torch.from_numpy(p).log(), torch.from_numpy(soft), balance=1)
    assert found.item() == pytest.approx(np.mean(each), rel=1e-6)
    with pytest.raises(ValueError, match=r"shape of the logits, \(2, 3, 4\), got \(2, 1, 4\)"):
        SoftLabelLoss(3)(CoupledOutput(torch.zeros(2, 3, 4)), Annotations(label=torch.zeros(2, 1, 4)))
