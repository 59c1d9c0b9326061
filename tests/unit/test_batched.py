"""A batch drawn at once against its items drawn one by one: the same voxels, the same record."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from medcoarse import annotators as a
from medcoarse import batched, morphology, outlines, profiles

U = a.UNLABELED
SHAPES = {2: (37, 26), 3: (13, 16, 9)}
SPACINGS = {2: (0.7, 1.6), 3: (0.8, 0.8, 2.5)}
SOME = {
    "polygon of vertices": a.AnnotatorProfile(polygon_vertices=6, dense=False),
    "all at once": a.AnnotatorProfile(
        thin_mm=1.0, thicken_mm=2.0, polygon_tolerance_mm=0.7, swell_mm=2.5, num_fractures=4, ratio=0.6, num_parts=2
    ),
    "nothing stays": a.AnnotatorProfile(ratio=0.0, dense=False),
    "white noise": a.AnnotatorProfile(swell_mm=4.0, swell_smoothness_mm=0.0),
    "thinned, nothing preserved": a.AnnotatorProfile(thin_mm=1.5, preserve=False, num_fractures=2),
    "blank but dense": a.AnnotatorProfile(blank=True, num_fractures=2),
    "swaps": a.AnnotatorProfile(swap_ratio=0.4, num_parts=2, swell_mm=2.0),
    "swaps all of the strokes": a.AnnotatorProfile(swap_ratio=1.0, dense=False, ratio=0.5),
    "swaps what is ruled out": a.AnnotatorProfile(kind="negative", swap_ratio=0.2),
    "sparse with gaps": a.AnnotatorProfile(kind="negative", thin_mm=2.0, preserve=False, swell_mm=1.0),
}
ALL = {**profiles.PROFILES, **SOME}


def classes(dims: int, seed: int, num_classes: int = 2) -> np.ndarray:
    field = morphology.smooth_field(SHAPES[dims], 2.0, np.random.default_rng(seed))
    return np.digitize(field, np.linspace(0.6, 0.9, num_classes - 1)).astype(np.uint8)


def batch(dims: int, num_classes: int = 2) -> np.ndarray:
    """Blobs; blobs in a corner with unknown pixels; the last class is absent; empty; full; unknown."""
    labels = np.stack([classes(dims, seed, num_classes) for seed in range(6)])
    labels[1, labels.shape[1] // 2 :] = 0
    labels[1][classes(dims, 9) == 1] = U
    labels[2][labels[2] == num_classes - 1] = 0
    labels[2, 3:6, 4:7] = 1
    labels[3], labels[4], labels[5] = 0, 1, U
    return labels


def both_ways(profile, labels, target=1, spacing=None, num_classes=2, seed=0):
    seeds = range(seed, seed + len(labels))
    drawn, parameters = batched.draw_batch(profile, torch.from_numpy(labels), target, spacing, seeds, num_classes)
    one_by_one = [
        a.draw(profile, label, target, spacing, s, num_classes) for label, s in zip(labels, seeds, strict=True)
    ]
    assert parameters == [one.parameters for one in one_by_one]
    assert drawn.dtype == torch.uint8
    return drawn.numpy(), np.stack([one.annotation for one in one_by_one])


class TestDrawing:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("name", ALL)
    def test_equals_drawing_one_by_one(self, name, dims):
        for spacing in (None, SPACINGS[dims]):
            for target, num_classes in ((1, 2), (0, 2), (1, 3), (None, 3), (None, 2)):
                drawn, expected = both_ways(ALL[name], batch(dims, num_classes), target, spacing, num_classes)
                assert (drawn == expected).all(), (spacing, target, num_classes)

    @pytest.mark.parametrize("name", ["coarse_positive", "coarse_negative", "stroke_positive", "wrong"])
    def test_many_seeds(self, name):
        for seed in range(0, 40, 4):
            labels = np.stack([classes(2, s) for s in range(seed, seed + 4)])
            drawn, expected = both_ways(ALL[name], labels, seed=seed)
            assert (drawn == expected).all()
            assert (drawn != labels).any()

    @pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1, 2)])
    def test_thin_images_and_a_batch_of_one(self, shape):
        label = np.ones((1, *shape), np.uint8)
        label[(0,) * label.ndim] = 0
        for profile in ALL.values():
            for target in (1, None):
                drawn, expected = both_ways(profile, label, target)
                assert (drawn == expected).all()

    def test_no_image_at_all(self):
        drawn, parameters = batched.draw_batch(profiles.WRONG, torch.zeros(0, 4, 5, dtype=torch.uint8))
        assert (drawn.shape, parameters) == ((0, 4, 5), [])

    def test_replay_and_determinism(self):
        labels = torch.from_numpy(batch(2)).long()
        before = labels.clone()
        first, parameters = batched.draw_batch(profiles.WRONG, labels, seeds=range(6))
        again = batched.apply_batch(profiles.WRONG, labels, 1, None, json.loads(json.dumps(parameters)))
        assert torch.equal(first, again)
        assert torch.equal(labels, before)
        other = batched.draw_batch(profiles.WRONG, labels, seeds=range(1, 7))[0]
        assert not torch.equal(first, other)

    def test_any_integers_and_generators(self):
        labels = torch.from_numpy(batch(2))
        expected = batched.draw_batch(profiles.WRONG, labels, seeds=[[3, b] for b in range(6)])[0]
        rngs = [np.random.default_rng([3, b]) for b in range(6)]
        assert torch.equal(batched.draw_batch(profiles.WRONG, labels.short(), seeds=rngs)[0], expected)
        for dtype in (torch.int32, torch.uint16):  # PyTorch can do little with the latter
            seeds = [[3, b] for b in range(6)]
            assert torch.equal(batched.draw_batch(profiles.WRONG, labels.to(dtype), seeds=seeds)[0], expected)

    @pytest.mark.parametrize(
        ("labels", "seeds", "message"),
        [
            (torch.zeros(2, 4, 4), [0, 1], r"labels must hold integers and have shape \(B, \*S\).* got torch.float32"),
            (torch.zeros(4, 4).int(), [0] * 4, r"2 or 3 spatial axes, got torch.int32 of shape \(4, 4\)"),
            (torch.zeros(2, 4, 4).int(), [0], "seeds must be one for each of the 2 label maps, got 1"),
            (torch.full((1, 4, 4), 7), [0], "label values must be whole numbers below num_classes=2, or 255, got 7"),
            (torch.full((1, 4, 4), -1, dtype=torch.int8), [0], "below num_classes=2, or 255, got -1"),
        ],
    )
    def test_errors(self, labels, seeds, message):
        with pytest.raises(ValueError, match=message):
            batched.draw_batch(profiles.GOOD, labels, seeds=seeds)

    def test_more_errors(self):
        label = torch.zeros(1, 4, 4).int()
        with pytest.raises(ValueError, match="target must be None or a class below num_classes=2, got 2"):
            batched.draw_batch(profiles.GOOD, label, 2, seeds=[0])
        with pytest.raises(ValueError, match="spacing must be 2 positive numbers"):
            batched.draw_batch(profiles.GOOD, label, spacing=(1.0, 1.0, 1.0), seeds=[0])
        with pytest.raises(
            ValueError, match="swap_class must be a class below num_classes=2 other than the target, got 2"
        ):
            batched.draw_batch(a.AnnotatorProfile(swap_ratio=0.5, swap_class=2), label, seeds=[0])
        with pytest.raises(ValueError, match="parameters must be one for each of the 1 label maps, got 0"):
            batched.apply_batch(profiles.GOOD, label, 1, None, [])

    def test_ties_between_classes_go_to_the_later_one(self):
        label = np.array([[0, 0, 0, 0, 1, 1, 1, 1]], np.uint8)
        thinned = a.AnnotatorProfile(thin_mm=1.0, preserve=False)
        drawn, expected = both_ways(replace(thinned, thin_mm=2.0), label[None], None)
        assert drawn.tolist() == expected.tolist() == label[None].tolist()
        three = np.array([[0, 0, 1, 2, 2]], np.uint8)  # nobody draws the one in the middle
        assert both_ways(thinned, three[None], None, num_classes=3)[0].tolist() == [[[0, 0, 2, 2, 2]]]


class TestOperations:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("uneven", [False, True])
    def test_distance(self, dims, uneven):
        masks = np.stack([classes(dims, seed) == 1 for seed in range(3)])
        masks[1] = False
        masks[1][(2,) * dims] = True
        spacing = SPACINGS[dims] if uneven else None
        for radius in (0.0, 1.0, 2.3, 5.0, 1e4):
            found = batched.squared_distance(torch.from_numpy(masks), radius, spacing).numpy()
            other = np.stack([morphology.squared_distance(mask, radius, spacing) for mask in masks])
            assert found == pytest.approx(other, rel=2.5e-7, abs=0)
            exact = np.stack([distance_transform_edt(~mask, sampling=spacing) for mask in masks]) ** 2
            within = exact <= radius**2 * (1 + 1e-6)
            assert (np.isfinite(found) == within).all()
            assert found[within] == pytest.approx(exact[within], rel=1e-6)

    def test_distance_is_rounded_once_for_each_axis(self):
        mask = torch.zeros(1, 40, 30, dtype=torch.bool)
        mask[0, 0, 0] = True
        across, along = (size * size * np.arange(length) ** 2 for size, length in ((0.7, 40), (1.6, 30)))
        expected = (across[:, None] + along.astype(np.float32)).astype(np.float32)
        assert (batched.squared_distance(mask, 1e3, (0.7, 1.6))[0].numpy() == expected).all()

    def test_distance_to_nothing_and_errors(self):
        assert batched.squared_distance(torch.zeros(1, 3, 4, dtype=torch.bool), 5.0).isinf().all()
        with pytest.raises(ValueError, match="radius_mm must be >= 0, got -1"):
            batched.squared_distance(torch.zeros(1, 3, 4, dtype=torch.bool), -1)
        with pytest.raises(ValueError, match="smoothness_mm must be >= 0, got -1"):
            batched.smooth_field((3, 4), -1, [np.random.default_rng(0)])
        with pytest.raises(ValueError, match="a centre and a direction other than 0, got 1 and"):
            batched.fracture(torch.ones(1, 3, 4).bool(), torch.tensor([[0, 1, 1]]), [[0.0, 0.0]], 1, 1)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_each_operation_equals_its_namesake(self, dims):
        masks = np.stack([classes(dims, seed) == 1 for seed in range(3)])
        tensor, sizes = torch.from_numpy(masks), SPACINGS[dims]
        rngs = [[np.random.default_rng(seed) for seed in range(3)] for _ in range(2)]
        fields = np.stack([morphology.smooth_field(SHAPES[dims], 1.5, rng, sizes) for rng in rngs[0]])
        field = batched.smooth_field(SHAPES[dims], 1.5, rngs[1], sizes)
        assert (field.numpy() == fields).all()
        swollen = batched.swell(tensor, 3.0, 1.0, field, sizes).numpy()
        centers, directions = [[5] * dims, [6] * dims], [[1.0, 2.0, 0.5][:dims], [-1.0, 0.3, 0.0][:dims]]
        image = torch.tensor([[2, *centers[0]], [0, *centers[1]]])
        cut = batched.fracture(tensor, image, directions, 2.0, 6.0, sizes).numpy()
        shrunk = batched.shrink_to_number(tensor, [9] * 3, torch.tensor([centers] * 3), sizes).numpy()
        simple = {
            name: getattr(batched, name)(tensor, 2.0, spacing=sizes).numpy()
            for name in ("thin", "thicken", "scribble", "polygonize")
        }
        for b, mask in enumerate(masks):
            for name, result in simple.items():
                one = getattr(outlines if name == "polygonize" else morphology, name)
                assert (result[b] == one(mask, 2.0, spacing=sizes)).all(), name
            assert (swollen[b] == morphology.swell(mask, 3.0, 1.0, fields[b], sizes)).all()
            own = {0: 1, 2: 0}.get(b)
            own_cut = mask if own is None else morphology.fracture(mask, centers[own], directions[own], 2.0, 6.0, sizes)
            assert (cut[b] == own_cut).all()
            assert (shrunk[b] == morphology.shrink_to_ratio(mask, 9 / mask.sum(), centers, sizes)).all()
        assert (cut != masks).any()

    def test_rounding_in_the_last_bit_moves_hardly_a_voxel(self, monkeypatch):
        """What another device may do: errors of one unit in the last place in the random field."""
        labels = torch.from_numpy(np.stack([np.kron(classes(2, seed), np.ones((6, 6), np.uint8)) for seed in range(8)]))
        exact = batched.draw_batch(profiles.WRONG, labels, seeds=range(8))[0]
        plain = morphology.as_uniform
        monkeypatch.setattr(morphology, "as_uniform", lambda x: torch.nextafter(plain(x), torch.tensor(2.0)))
        moved = batched.draw_batch(profiles.WRONG, labels, seeds=range(8))[0]
        assert (moved != exact).float().mean() <= 1e-5
