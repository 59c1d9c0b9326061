"""ScribbleSup: its energy by loops, laws of its cuts, and the handler that changes masks between epochs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import CacheDataset
from monai.inferers import SimpleInferer
from monai.transforms import Compose, RandFlipd

from medcoarse.baselines.graph_cut import expand, potts_energy
from medcoarse.baselines.scribblesup import (
    RegionGraph,
    ScribbleSup,
    network_costs,
    propagate,
    region_graph,
    region_histograms,
    stroke_costs,
)
from medcoarse.baselines.soft_labels import HardLabels
from medcoarse.confusion import UNLABELED
from tests.shown import Shown


def blobs(seed=0, size=(24, 26), classes=3, noise=0.3, ratio=0.04):
    """A truth of several classes, its noisy image and a few strokes of each."""
    rng = np.random.default_rng(seed)
    truth = (np.indices(size).sum(0) // 9) % classes
    image = np.stack([truth == k for k in range(classes)]) + noise * rng.normal(size=(classes, *size))
    partial = np.where(rng.random(size) < ratio, truth, 255).astype(np.uint8)
    partial.flat[:3] = truth.flat[:3]
    return truth, image, partial


def certain(truth, classes=3, least=1e-9):
    probs = np.full((classes, *truth.shape), least)
    np.put_along_axis(probs, truth[None], 1.0, 0)
    return np.log(probs)


def test_histograms_by_numpy():
    rng = np.random.default_rng(0)
    channels, regions = rng.random((2, 6, 7)), rng.integers(0, 4, (6, 7))
    found = region_histograms(channels, regions, 5, (0, 1))
    for n in range(4):
        expected = [np.histogram(one[regions == n], 5, (0, 1))[0] for one in channels]
        assert np.allclose(found[n], np.concatenate(expected) / (2 * (regions == n).sum()))
    assert region_histograms(np.array([[[0.0, 1.0]]]), np.array([[0, 1]]), 2, (0, 1)).tolist() == [[1, 0], [0, 1]]


def test_weights_by_hand():
    """Three superpixels in a row, whose values fall into three of 25 bins, and no slope but across."""
    image = np.array([[[0.0, 0.5, 1.0]]])
    graph = region_graph(image, size=1, color_scale=2.0, texture_scale=1e9)
    assert graph.edges.tolist() == [[0, 1], [1, 2]]
    assert np.allclose(graph.weights, np.exp(-2 / 4))  # two bins differ by 1 each
    textured = region_graph(image, size=1, color_scale=1e9, texture_scale=1.0)
    assert np.allclose(textured.weights, 1), "the slope is the same everywhere"


@pytest.mark.parametrize("seed", range(4))
def test_the_cut_has_the_least_energy_of_all_labellings(seed):
    """Two classes, of ten superpixels: strokes, network and neighbours pixel by pixel."""
    rng = np.random.default_rng(seed)
    image, log_probs = rng.random((1, 4, 5)), np.log(rng.dirichlet([1, 1], (4, 5))).transpose(2, 0, 1)
    partial = np.full((4, 5), 255)
    partial[0, 0], partial[3, 4], partial[0, 1] = 0, 1, 1
    regions = np.array([[0, 0, 1, 1, 2], [3, 3, 1, 2, 2], [4, 5, 5, 6, 7], [4, 8, 9, 9, 9]])
    graph = region_graph(image, size=1)
    pairs = sorted(
        {tuple(sorted((int(regions[p]), int(regions[q])))) for p, q in _sides((4, 5))} - {(n, n) for n in range(10)}
    )
    weights = rng.random(len(pairs))
    graph = RegionGraph(regions, np.array(pairs), weights)

    def energy(labels):
        total = 0.0
        for n, label in enumerate(labels):
            drawn = set(partial[regions == n].tolist()) - {255}
            total += np.log(2) if not drawn else 0 if label in drawn else np.inf
            total -= log_probs[label][regions == n].mean()
        return total + sum(w for (i, j), w in zip(pairs, weights, strict=True) if labels[i] != labels[j])

    least = min(itertools.product((0, 1), repeat=10), key=energy)
    expected = np.where(partial == 255, np.array(least)[regions], partial)
    assert np.array_equal(propagate(image, partial, 2, log_probs, graph), expected)


def _sides(size):
    for y, x in np.ndindex(*size):
        for other in ((y + 1, x), (y, x + 1)):
            if other[0] < size[0] and other[1] < size[1]:
                yield (y, x), other


@pytest.mark.parametrize("regions", ["felzenszwalb", "slic", "watershed"])
def test_a_network_that_knows_the_truth_is_followed_up_to_superpixels(regions):
    truth, image, partial = blobs()
    graph = region_graph(image, regions=regions)
    found = propagate(image, partial, 3, certain(truth), graph)
    counts = np.stack([np.bincount(graph.regions.ravel(), (truth == k).ravel()) for k in range(3)], 1)
    pure = (counts > 0).sum(1) == 1
    assert pure.mean() > 0.5
    assert np.array_equal(found[pure[graph.regions]], truth[pure[graph.regions]])
    assert np.array_equal(propagate(image, partial, 3, certain(truth), size=1), truth), "exactly, where they are pixels"


@pytest.mark.parametrize("seed", range(5))
def test_strokes_stay_absent_classes_stay_away_and_no_expansion_raises_the_energy(seed):
    truth, image, partial = blobs(seed)
    partial[partial == 1] = 255
    found = propagate(image, partial, 4, certain(truth, 4))
    assert np.array_equal(found[partial != 255], partial[partial != 255])
    assert set(np.unique(found)) == {0, 2}, "even where the network is certain of class 1"
    assert (found[truth == 2] == 2).mean() > 0.8
    _, image, partial = blobs(seed)
    graph = region_graph(image)
    costs = stroke_costs(partial, graph.regions, np.arange(3))
    labels, energies = costs.argmin(1), []
    for alpha in (0, 1, 2, 0, 1, 2):
        energies.append(potts_energy(labels, costs, graph.edges, graph.weights))
        labels = expand(labels, alpha, costs, graph.edges, graph.weights)
    assert max(np.diff(energies)) <= 1e-6
    assert energies[-1] < energies[0]


def test_improbable_classes_cost_no_more_than_the_least_probability():
    log_probs = np.array([[-np.inf, -np.inf], [0.0, 0.0]])
    assert np.allclose(network_costs(log_probs, np.array([0, 0])), [[-np.log(1e-6), 0]])


# the handler


def items(number=3):
    made = []
    for seed in range(number):
        truth, image, partial = blobs(seed, classes=2, size=(12, 10), noise=0.6, ratio=0.15)
        negative = np.where(partial == 0, 1, 255)
        positive = np.where(partial == 1, 1, 255)
        made.append(
            {
                "image": torch.from_numpy(image),
                "positive": torch.from_numpy(positive)[None],
                "negative": torch.from_numpy(negative)[None],
                "truth": truth,
                "partial": partial,
            }
        )
    return made


def handler(data, epochs=(), network=None, **options):
    masks = HardLabels()
    return ScribbleSup(network or Shown(), data, SimpleInferer(), masks, 2, epochs, **options), masks


def test_masks_start_without_the_network_and_are_then_made_anew_with_it():
    data = items()
    sup, masks = handler(data, epochs=[2, 3])
    seen = []
    engine = Engine(lambda engine, batch: seen.append([masks({"number": n})["label"] for n in range(3)]))
    sup.attach(engine)
    engine.run([0], max_epochs=3)
    for n, item in enumerate(data):
        image, partial = item["image"].numpy(), item["partial"]
        assert np.array_equal(seen[0][n][0], propagate(image, partial, 2))
        log_probs = item["image"].log_softmax(0).numpy()
        assert np.array_equal(seen[1][n][0], propagate(image, partial, 2, log_probs))
        assert seen[0][n].dtype == torch.uint8
    assert not all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    assert sup.remake(with_network=True) == 0, "the network has not changed"


def test_the_network_is_left_as_it_was():
    class Remembers(Shown):
        def forward(self, image):
            assert not self.training
            assert not torch.is_grad_enabled()
            assert image.dtype == torch.float32
            return super().forward(image)

    network = Remembers().train()
    sup, _ = handler(items(), network=network)
    sup.relabel()
    assert network.training


def test_what_was_made_is_saved_and_kept_when_resuming(tmp_path):
    sup, masks = handler(items())
    assert sup.remake(with_network=False) == 1
    torch.save(sup.state_dict(), tmp_path / "sup.pt")
    again, loaded = handler(items())
    again.load_state_dict(torch.load(tmp_path / "sup.pt", weights_only=True))
    again.initialize = None  # not called
    again._start(None)
    for n in range(3):
        assert torch.equal(loaded({"number": n})["label"], masks({"number": n})["label"])
    with pytest.raises(KeyError, match="item 3 has no soft label yet"):
        loaded({"number": 3})


def test_a_cache_does_not_keep_masks_that_change():
    data = [{"image": torch.arange(4.0).view(1, 2, 2), "number": n} for n in range(2)]
    masks = HardLabels()
    dataset = CacheDataset(
        data, Compose([masks, RandFlipd(["image", "label"], prob=1.0, spatial_axis=1)]), progress=False
    )
    for value in (UNLABELED, 1):
        for n in range(2):
            masks[n] = torch.tensor([[[0, value], [0, 0]]])
        assert dataset[1]["label"].tolist() == [[[value, 0], [0, 0]]]


def test_one_kind_of_drawing_or_none():
    data = items(1)
    del data[0]["negative"]
    sup, masks = handler(data, options={"size": 1})
    sup.relabel()
    assert set(masks({"number": 0})["label"].unique().tolist()) == {1, 255}, "nobody said what is not 1"
    with pytest.raises(ValueError, match="needs positive or negative drawings"):
        handler([{"image": data[0]["image"]}])[0].relabel()


def test_the_network_is_asked_about_the_classes_that_were_drawn():
    """Classes 0 and 2 of three."""
    partial, truth = np.array([[0, 255, 255, 2]]), np.array([[0, 0, 2, 2]])
    assert np.array_equal(propagate(np.zeros((1, 1, 4)), partial, 3, certain(truth), size=1), truth)
