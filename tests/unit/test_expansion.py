"""Methods that make a label map of a partial one: each against something slow or worked by hand, and laws of all."""

from __future__ import annotations

import itertools
import logging
import sys
from functools import partial as bind

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor
from scipy.stats import multivariate_normal

from medcoarse.baselines.expansion import METHODS, ExpandDrawingd
from medcoarse.baselines.grab_cut import GrabCutError, _cut, grab_cut, log_mixture
from medcoarse.baselines.lazy_snapping import lazy_snapping, main_colors
from medcoarse.baselines.random_walker import random_walker
from medcoarse.baselines.scribblesup import propagate
from medcoarse.baselines.seeds import drawn_classes
from medcoarse.baselines.superpixels import METHODS as REGIONS
from medcoarse.baselines.superpixels import adjacency, region_means, superpixels
from medcoarse.confusion import Annotations
from medcoarse.losses import consensus

ALL = METHODS | {"scribblesup": propagate, "slic": bind(lazy_snapping, regions="slic")}
IN_3D = sorted(ALL.keys() - {"grab_cut"})
BY_REGION = {name: {"size": 1} for name in ("lazy_snapping", "scribblesup", "slic")}
"""What makes them exact: pixels for superpixels. Without a network, texture would cut a part's outline off."""
BY_REGION["scribblesup"]["texture_scale"] = 1e9


def disc(size=(40, 45), center=(20, 18), radius=9):
    grid = np.indices(size) - np.array(center).reshape(-1, *[1] * len(size))
    return (np.square(grid).sum(0) <= radius**2).astype(np.uint8)


def strokes(truth, every=7):
    """A few pixels of every class."""
    partial = np.full(truth.shape, 255, np.uint8)
    for k in np.unique(truth):
        places = np.argwhere(truth == k)[:: max(1, (truth == k).sum() // every)]
        partial[tuple(places.T)] = k
    return partial


def shown(truth, noise=0.0, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return truth[None].astype(float).repeat(channels, 0) + noise * rng.normal(size=(channels, *truth.shape))


# laws of all methods


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(ALL))
def test_two_flat_parts_are_found(name, channels):
    """Exactly by methods of pixels, and by those of superpixels but for superpixels in both parts."""
    truth = disc()
    image, drawn = shown(truth, channels=channels), strokes(truth)
    found = ALL[name](image, drawn, 2)
    assert found.dtype == np.uint8
    if name in BY_REGION:
        assert (found == truth).mean() > 0.98
        found = ALL[name](image, drawn, 2, **BY_REGION[name])
    assert np.array_equal(found, truth)


@pytest.mark.parametrize("name", sorted(ALL))
def test_three_flat_parts_are_found(name):
    truth = disc() + 2 * disc(center=(20, 36), radius=6)
    image = np.stack([truth == 1, truth == 2, truth == 0]).astype(float)
    found = ALL[name](image, strokes(truth, every=30), 3)
    if name in BY_REGION:
        assert (found == truth).mean() > 0.97
        found = ALL[name](image, strokes(truth, every=30), 3, **BY_REGION[name])
    assert np.array_equal(found, truth)


@pytest.mark.parametrize("name", IN_3D)
def test_a_volume_with_thick_slices(name):
    truth = disc((7, 22, 25), (3, 11, 12), 6)
    image, drawn = shown(truth), strokes(truth, every=25)
    found = ALL[name](image, drawn, 2, spacing=(3.0, 1.0, 1.0))
    if name in BY_REGION:
        assert (found == truth).mean() > 0.95
        found = ALL[name](image, drawn, 2, spacing=(3.0, 1.0, 1.0), **BY_REGION[name])
    assert np.array_equal(found, truth)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("seed", range(5))
def test_drawings_stay_and_classes_that_were_not_drawn_stay_away(name, seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(3, 20, size=2))
    image = rng.normal(size=(1, *size))
    partial = rng.choice([0, 2, 3, 255], size=size, p=[0.1, 0.1, 0.1, 0.7]).astype(np.uint8)
    before = image.copy(), partial.copy()
    found = ALL[name](image, partial, 5)
    assert np.array_equal(found[partial != 255], partial[partial != 255])
    allowed = set(np.unique(partial)) if name == "grab_cut" else set(np.unique(partial)) - {255}
    if len(set(np.unique(partial)) - {255}) > 1:
        assert set(np.unique(found)) <= allowed
    assert np.array_equal(found, ALL[name](image, partial, 5)), "the same every time"
    assert np.array_equal(image, before[0])
    assert np.array_equal(partial, before[1])
    assert np.array_equal(found, ALL[name](image.astype(np.float32), partial.astype(np.int64), 5)) or name != "grab_cut"


@pytest.mark.parametrize("name", sorted(ALL))
def test_drawings_that_leave_nothing_open_or_nothing_to_decide(name):
    truth = disc()
    image = shown(truth, 0.3)
    assert np.array_equal(ALL[name](image, truth, 2), truth), "perfect annotations are the masks themselves"
    nothing = np.full(truth.shape, 255, np.uint8)
    assert np.array_equal(ALL[name](image, nothing, 2), nothing)
    background = np.where(strokes(truth) == 0, 0, 255).astype(np.uint8)
    assert np.array_equal(ALL[name](image, background, 2), background)
    only = np.where(strokes(truth) == 1, 1, 255).astype(np.uint8)
    if name != "grab_cut":
        assert np.array_equal(ALL[name](image, only, 2), only)
    for pixel in (0, 255):
        one = np.full((1, 1), pixel, np.uint8)
        assert np.array_equal(ALL[name](np.zeros((1, 1, 1)), one, 2), one)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("size", [(1, 9), (9, 1), (2, 2)])
def test_images_that_are_flat_or_narrow(name, size):
    partial = np.full(size, 255, np.uint8)
    partial.flat[0], partial.flat[-1] = 0, 1
    for image in (np.zeros((1, *size)), np.random.default_rng(0).normal(size=(1, *size))):
        found = ALL[name](image, partial, 2)
        assert found.flat[0] == 0
        assert found.flat[-1] == 1
        assert set(np.unique(found)) == {0, 1}


def test_drawings_that_do_not_fit():
    with pytest.raises(ValueError, match=r"differ in size: \(1, 3, 3\) and \(3, 4\)"):
        random_walker(np.zeros((1, 3, 3)), np.zeros((3, 4)), 2)
    with pytest.raises(ValueError, match=r"drawn were the values \[0, 2\], but the classes are 0 to 1"):
        lazy_snapping(np.zeros((1, 1, 2)), np.array([[0, 2]]), 2)
    assert drawn_classes(np.zeros((1, 1, 2)), np.array([[255, 255]]), 2).tolist() == []


# random walker


@pytest.mark.parametrize(("size", "spacing"), [((5, 6), (1.0, 1.0)), ((3, 4, 4), (2.0, 1.0, 1.0))])
def test_random_walks_by_a_linear_system(size, spacing):
    """The Laplacian built pixel by pixel, the potentials of three classes by elimination."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, *size))
    partial = rng.choice([0, 1, 2, 255], size=size, p=[0.07, 0.07, 0.06, 0.8])
    partial.flat[:3] = 0, 1, 2
    n = partial.size
    laplacian = np.zeros((n, n))
    for place in np.ndindex(*size):
        for axis in range(len(size)):
            other = tuple(p + (a == axis) for a, p in enumerate(place))
            if other[axis] < size[axis]:
                slope = (image[(0, *place)] - image[(0, *other)]) / spacing[axis]
                weight = np.exp(-130 * slope**2 / (10 * image.std()))
                i, j = np.ravel_multi_index(place, size), np.ravel_multi_index(other, size)
                laplacian[[i, j, i, j], [i, j, j, i]] += np.array([1, 1, -1, -1]) * (weight + 1e-10)
    flat = partial.ravel()
    free = flat == 255
    seeds = np.stack([flat[~free] == k for k in range(3)], 1).astype(float)
    potentials = np.linalg.solve(laplacian[np.ix_(free, free)], -laplacian[np.ix_(free, ~free)] @ seeds)
    expected = flat.copy()
    expected[free] = potentials.argmax(1)
    found = random_walker(image, partial, 3, spacing, tolerance=1e-10)
    assert np.array_equal(found.ravel(), expected)


# Lazy Snapping


@pytest.mark.parametrize("seed", range(4))
def test_lazy_snapping_of_single_pixels_has_the_least_energy_of_all_labellings(seed):
    rng = np.random.default_rng(seed)
    image = rng.random((2, 3, 4))
    partial = np.full((3, 4), 255)
    partial[0, :2], partial[2, 2:] = 0, 1
    span = [channel.max() - channel.min() for channel in image]
    colors = np.stack([(c - c.min()) / s * 255 for c, s in zip(image, span, strict=True)], -1)
    near = [
        np.min([np.linalg.norm(colors - colors[tuple(p)], axis=-1) for p in np.argwhere(partial == k)], axis=0)
        for k in range(2)
    ]

    def energy(labels):
        total = 0.0
        for y, x in np.ndindex(3, 4):
            if partial[y, x] == 255:
                total += near[labels[y, x]][y, x] / (near[0][y, x] + near[1][y, x])
            for other in ((y + 1, x), (y, x + 1)):
                if other[0] < 3 and other[1] < 4 and labels[y, x] != labels[other]:
                    total += 2000 / (np.square(colors[y, x] - colors[other]).sum() + 1)
        return total

    candidates = []
    for choice in itertools.product((0, 1), repeat=8):
        labels = partial.copy()
        labels[partial == 255] = choice
        candidates.append(labels)
    found = lazy_snapping(image, partial, 2, smoothness=2000, size=1)
    assert np.array_equal(found, min(candidates, key=energy))


def test_smoothness_and_lengths_shorten_outlines():
    truth = disc()
    image, drawn = shown(truth, 0.5), strokes(truth, every=20)

    def length(**options):
        found = lazy_snapping(image, drawn, 2, **options)
        return sum((np.diff(found.astype(int), axis=axis) != 0).sum() for axis in (0, 1))

    assert length(smoothness=0) > length(smoothness=300) > length(smoothness=300, by_length=True)


def test_main_colors_of_many():
    rng = np.random.default_rng(0)
    colors = np.concatenate([rng.normal(0, 1, (30_000, 3)), rng.normal(100, 1, (30_000, 3))])
    assert np.allclose(main_colors(colors, 2), [[0] * 3, [100] * 3], atol=0.2)
    assert main_colors(colors[:1].repeat(9, 0), 64).tolist() == colors[:1].tolist()


# GrabCut


def test_grab_cut_of_a_disc_with_a_long_stroke():
    truth = disc((100, 120), (50, 60), 30)
    drawn = np.full(truth.shape, 255)
    drawn[45:55, 35:85] = 1
    drawn[:, :3] = 0
    found = grab_cut(shown(truth, 0.05), drawn, 2)
    assert np.array_equal(found, truth)
    for kind in (np.uint8, np.int32, np.float32):
        assert np.array_equal(grab_cut(shown(truth, 0.05), drawn.astype(kind), 2), found)


def test_grab_cut_of_what_was_drawn_of_one_class_alone():
    truth = disc((60, 60), (30, 30), 15)
    drawn = np.full(truth.shape, 255)
    drawn[30, 18:43] = drawn[18:43, 30] = 1
    found = grab_cut(shown(truth, 0.02), drawn, 2, margin=10)
    assert np.array_equal(found == 1, truth == 1)
    assert set(np.unique(found)) == {1, 255}, "what it is not, nobody said"


def test_of_three_classes_the_more_likely_gets_what_two_claim():
    truth = disc() + 2 * disc(center=(20, 36), radius=6)
    found = grab_cut(shown(truth, 0.1), strokes(truth, every=40), 3)
    assert (found == truth).mean() > 0.97


def test_the_mixture_is_one_of_gaussians():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (30, 20, 3)).astype(np.uint8)
    seeds = np.full((30, 20), 2, np.uint8)
    seeds[:12] = 1
    _, model = _cut(pixels, seeds, 2)
    weights, means, spreads = model[0, :5], model[0, 5:20].reshape(5, 3), model[0, 20:].reshape(5, 3, 3)
    assert weights.sum() == pytest.approx(1)
    density = sum(
        w * multivariate_normal(m, s).pdf(pixels) for w, m, s in zip(weights, means, spreads, strict=True) if w > 0
    )
    assert np.allclose(log_mixture(pixels, model), np.log(density))


def test_grab_cut_says_what_it_cannot_do(monkeypatch):
    drawn = np.full((4, 5), 255)
    drawn[0, 0] = 1
    with pytest.raises(GrabCutError, match="bgdSamples"):
        grab_cut(np.zeros((1, 4, 5)), drawn, 2, margin=100)
    with pytest.raises(ValueError, match=r"one or three channels, got \(2, 4, 5\)"):
        grab_cut(np.zeros((2, 4, 5)), drawn, 2)
    with pytest.raises(ValueError, match=r"GrabCut is for images .* got \(1, 4, 5, 6\)"):
        grab_cut(np.zeros((1, 4, 5, 6)), np.zeros((4, 5, 6)), 2)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"GrabCut needs OpenCV: pip install opencv-python-headless"):
        grab_cut(np.zeros((1, 4, 5)), drawn, 2)


# superpixels


@pytest.mark.parametrize("method", REGIONS)
def test_superpixels_of_an_image(method):
    image = shown(disc(), 0.1, channels=2)
    regions = superpixels(image, 9, method)
    assert regions.shape == image.shape[1:]
    assert np.array_equal(np.unique(regions), np.arange(regions.max() + 1))
    sizes = np.bincount(regions.ravel())
    assert sizes.min() >= 9 if method == "felzenszwalb" else 6 < sizes.mean() < 14
    assert np.array_equal(superpixels(10 * image + 3, 9, method), regions), "whatever the scale"


@pytest.mark.parametrize("size", [(9, 8), (4, 5, 3)])
def test_neighbours_by_loops(size):
    regions = np.random.default_rng(0).integers(0, 6, size)
    expected = {}
    for place in np.ndindex(*size):
        for axis in range(len(size)):
            other = tuple(p + (a == axis) for a, p in enumerate(place))
            if other[axis] < size[axis] and regions[place] != regions[other]:
                pair = tuple(sorted((int(regions[place]), int(regions[other]))))
                expected[pair] = expected.get(pair, 0) + 1
    edges, sides = adjacency(regions)
    assert dict(zip(map(tuple, edges.tolist()), sides.tolist(), strict=True)) == expected
    means = region_means(regions[None].astype(float), regions)
    assert np.allclose(means[:, 0], np.arange(6))


def test_superpixels_that_there_are_not():
    with pytest.raises(ValueError, match="method must be one of slic, watershed, felzenszwalb, got 'magic'"):
        superpixels(np.zeros((1, 3, 3)), 4, "magic")
    with pytest.raises(ValueError, match=r"a volume of size \(3, 3, 3\); take slic or watershed"):
        superpixels(np.zeros((1, 3, 3, 3)), 4, "felzenszwalb")
    edges, sides = adjacency(superpixels(np.zeros((1, 1, 1)), 4))
    assert edges.shape == (0, 2)
    assert sides.shape == (0,)


# the transform


def drawings(truth):
    """Strokes of both kinds, which contradict each other at one pixel."""
    positive, negative = strokes(truth, every=20), strokes(1 - truth, every=20)
    positive[truth == 0], negative[truth == 1] = 255, 255
    positive[1, 1], negative[1, 1] = 1, 1
    return torch.from_numpy(positive)[None], torch.from_numpy(negative)[None]


@pytest.mark.parametrize("method", METHODS)
def test_both_drawings_make_the_label_that_a_cache_keeps(method):
    truth = disc()
    positive, negative = drawings(truth)
    item = {"image": MetaTensor(torch.from_numpy(shown(truth))), "positive": positive, "negative": negative, "label": 0}
    expand = ExpandDrawingd(method=method)
    label = CacheDataset([item], expand, progress=False)[0]["label"]
    assert label.shape == (1, 40, 45)
    assert label.dtype == torch.uint8
    partial = consensus(Annotations(positive[None], negative[None]), 2)[0, 0].numpy()
    assert partial[1, 1] == 255
    assert np.array_equal(label[0].numpy(), METHODS[method](shown(truth), partial, 2))
    assert (label[0].numpy() == truth).mean() > 0.98
    one = ExpandDrawingd(method=method, allow_missing_keys=True)({"image": item["image"], "positive": positive})
    assert set(np.unique(one["label"])) <= {1, 255}
    neither = ExpandDrawingd(method=method, allow_missing_keys=True)({"image": item["image"], "label": 3})
    assert neither["label"] == 3
    assert expand.failures == []


def test_options_and_the_spacing_of_the_image_reach_the_method(monkeypatch):
    seen = []

    def remember(image, partial, num_classes, spacing, **options):
        seen.append((image.shape, partial.shape, num_classes, tuple(spacing), options))
        return partial

    monkeypatch.setitem(METHODS, "lazy_snapping", remember)
    image = MetaTensor(torch.zeros(1, 2, 3, 4), affine=torch.diag(torch.tensor([3.0, 1.0, 2.0, 1.0])))
    item = {"image": image, "positive": torch.zeros(2, 2, 3, 4, dtype=torch.uint8), "negative": torch.zeros(0, 2, 3, 4)}
    found = ExpandDrawingd(method="lazy_snapping", num_classes=4, options={"smoothness": 5})(item)
    assert isinstance(found["label"], MetaTensor)
    assert seen == [((1, 2, 3, 4), (2, 3, 4), 4, (3.0, 1.0, 2.0), {"smoothness": 5})]


def test_what_grab_cut_cannot_cut_keeps_its_drawings_and_is_counted(caplog):
    positive = torch.full((1, 4, 5), 255, dtype=torch.uint8)
    positive[0, 0, 0] = 1
    expand = ExpandDrawingd(method="grab_cut", options={"margin": 100}, allow_missing_keys=True)
    with caplog.at_level(logging.WARNING):
        labels = [expand({"image": torch.zeros(1, 4, 5), "positive": positive})["label"] for _ in range(2)]
    assert all(torch.equal(label, positive) for label in labels)
    assert len(expand.failures) == 2
    assert "GrabCut failed on 2 images so far" in caplog.messages[-1]
    with pytest.raises(ValueError, match="got 'grabcut'"):
        ExpandDrawingd(method="grabcut")
    with pytest.raises(ValueError, match="keys must name the positive and the negative drawings"):
        ExpandDrawingd("positive")
