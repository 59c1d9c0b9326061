"""Laws that hold for every operation on masks and for every ready annotator, in 2D and 3D, at the edges as well."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from medcoarse import morphology as m
from medcoarse import outlines
from medcoarse.annotators import UNLABELED, AnnotatorProfile, apply, draw
from medcoarse.morphology import smooth_field
from medcoarse.profiles import PROFILES

SPACINGS = {2: [None, (0.7, 1.6)], 3: [None, (0.8, 0.8, 2.5)]}


def shape_of(dims: int) -> tuple[int, ...]:
    return (37, 26) if dims == 2 else (15, 17, 9)


def blobs(dims: int, seed: int = 0) -> np.ndarray:
    return smooth_field(shape_of(dims), 2.0, np.random.default_rng(seed)) > 0.75


def edge_masks(dims: int) -> dict[str, np.ndarray]:
    dot = np.zeros(shape_of(dims), bool)
    dot[(0,) * dims] = True
    thin_image = np.ones((1,) * (dims - 1) + (7,), bool)
    return {
        "empty": np.zeros(shape_of(dims), bool),
        "full": np.ones(shape_of(dims), bool),
        "single voxel": dot,
        "all but one": ~dot,
        "one voxel image": np.ones((1,) * dims, bool),
        "thin image": thin_image & (np.arange(7) > 2),
    }


CASES = [(dims, spacing) for dims in (2, 3) for spacing in SPACINGS[dims]]
EDGES = [(dims, name) for dims in (2, 3) for name in edge_masks(2)]

# name: operation of a mask, a size and a spacing; all do nothing at size 0
BY_SIZE = {
    "thin": m.thin,
    "thin, preserving": lambda mask, size, spacing: m.thin(mask, size, spacing, preserve=True),
    "thicken": m.thicken,
    "swell": lambda mask, size, spacing: m.swell(mask, size, 0.8, _field(mask), spacing),
    "swell by strength": lambda mask, size, spacing: m.swell(mask, 3.0, size, _field(mask), spacing),
    "fracture": lambda mask, size, spacing: m.fracture(mask, *_cuts(mask, 0 if size == 0 else 3), size, size, spacing),
    "polygonize": lambda mask, size, spacing: outlines.polygonize(mask, size, spacing=spacing),
}
GROWING = ["thicken", "swell", "swell by strength"]
SHRINKING = ["thin", "thin, preserving", "fracture"]


def _field(mask: np.ndarray) -> np.ndarray:
    return smooth_field(mask.shape, 1.5, np.random.default_rng(1))


def _cuts(mask: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.integers(0, mask.shape, (number, mask.ndim)), rng.standard_normal((number, mask.ndim))


class TestOperations:
    @pytest.mark.parametrize("name", BY_SIZE)
    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_size_zero_is_the_identity(self, name, dims, spacing):
        mask = blobs(dims)
        assert (BY_SIZE[name](mask, 0.0, spacing) == mask).all()

    @pytest.mark.parametrize("name", GROWING + SHRINKING)
    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_monotone_in_size(self, name, dims, spacing):
        mask = blobs(dims)
        results = [BY_SIZE[name](mask, size, spacing) for size in (0.0, 0.9, 1.7, 2.6, 4.0, 11.0)]
        ordered = results if name in GROWING else results[::-1]
        assert all((small <= large).all() for small, large in pairwise(ordered))
        assert (results[-1] != mask).any()

    @pytest.mark.parametrize("name", BY_SIZE)
    @pytest.mark.parametrize(("dims", "edge"), EDGES)
    def test_edge_masks_keep_shape_and_type(self, name, dims, edge):
        mask = edge_masks(dims)[edge]
        before = mask.copy()
        for size in (0.0, 1.0, 30.0):
            result = BY_SIZE[name](mask, size, None)
            assert (result.shape, result.dtype) == (mask.shape, np.dtype(bool))
            assert mask.any() or not result.any()
        assert (mask == before).all()  # pure: the input is left alone

    @pytest.mark.parametrize(("dims", "spacing", "axis"), [(*case, axis) for case in CASES for axis in range(case[0])])
    def test_flips_commute_with_what_has_no_direction(self, dims, spacing, axis):
        mask, field = blobs(dims), _field(blobs(dims))
        for operation in (m.thin, m.thicken):
            assert (operation(np.flip(mask, axis), 1.8, spacing) == np.flip(operation(mask, 1.8, spacing), axis)).all()
        swollen = m.swell(mask, 2.5, 0.8, field, spacing)
        assert (m.swell(np.flip(mask, axis), 2.5, 0.8, np.flip(field, axis), spacing) == np.flip(swollen, axis)).all()

    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_axes_commute_together_with_their_spacing(self, dims, spacing):
        mask, sizes = blobs(dims), m.as_spacing(spacing, dims)
        for operation in (m.thin, m.thicken):
            turned = operation(mask.T, 1.8, sizes[::-1])
            assert (turned == operation(mask, 1.8, sizes).T).all()
        cuts = _cuts(mask, 3)
        turned = m.fracture(mask.T, cuts[0][:, ::-1], cuts[1][:, ::-1], 1.5, 5.0, sizes[::-1])
        assert (turned == m.fracture(mask, *cuts, 1.5, 5.0, sizes).T).all()

    @pytest.mark.parametrize("name", [*SHRINKING, "thicken", "polygonize"])
    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_lengths_and_spacing_have_one_unit(self, name, dims, spacing):
        mask, sizes = blobs(dims), np.array(m.as_spacing(spacing, dims))
        assert (BY_SIZE[name](mask, 1.8, sizes) == BY_SIZE[name](mask, 3.6, 2 * sizes)).all()
        swollen = m.swell(mask, 2.6, 0.8, _field(mask), sizes)
        assert (m.swell(mask, 5.2, 1.6, _field(mask), 2 * sizes) == swollen).all()

    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_thinning_is_thickening_of_the_complement(self, dims, spacing):
        mask = blobs(dims)
        for radius in (1.0, 2.4):
            thinned = m.complement(m.thicken(m.complement(mask), radius, spacing))
            assert (m.thin(mask, radius, spacing) == thinned).all()

    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_thickening_twice_stays_within_the_sum(self, dims, spacing):
        mask = blobs(dims)
        twice = m.thicken(m.thicken(mask, 1.3, spacing), 1.9, spacing)
        assert (twice <= m.thicken(mask, 3.2, spacing)).all()

    def test_complement_is_its_own_inverse(self):
        assert (m.complement(m.complement(blobs(3))) == blobs(3)).all()

    @pytest.mark.parametrize("dims", [2, 3])
    def test_ratio_is_exact_and_grows_from_the_centre(self, dims):
        mask = blobs(dims)
        center = np.argwhere(mask)[7]
        kept = [m.shrink_to_ratio(mask, ratio, center) for ratio in np.linspace(0, 1, 9)]
        assert [k.sum() for k in kept] == [round(r * mask.sum()) for r in np.linspace(0, 1, 9)]
        assert all((small <= large).all() for small, large in pairwise(kept))
        assert kept[1][tuple(center)]


@pytest.mark.parametrize("name", PROFILES)
class TestAnnotators:
    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_same_seed_same_drawing_and_replay_after_json(self, name, dims, spacing):
        profile, label = PROFILES[name], blobs(dims).astype(np.uint8)
        first, second, other = (draw(profile, label, 1, spacing, seed) for seed in (4, 4, 5))
        assert (first.annotation == second.annotation).all()
        assert first.parameters == second.parameters != other.parameters
        again = apply(profile, label, 1, spacing, json.loads(json.dumps(first.parameters)))
        assert (again == first.annotation).all()

    def test_chance_has_an_effect_exactly_where_it_should(self, name):
        profile, label = (
            PROFILES[name],
            np.kron(blobs(2), np.ones((8, 8))).astype(np.uint8),
        )  # more than thinning takes
        drawings = [draw(profile, label, seed=seed).annotation for seed in range(4)]
        swaps = profile.swap_ratio and profile.swap_ratio < 1
        random = profile.swell_mm or profile.num_fractures or profile.fracture_ratio or profile.ratio < 1 or swaps
        assert any((d != drawings[0]).any() for d in drawings) == bool(random)

    @pytest.mark.parametrize(("dims", "edge"), EDGES)
    def test_edges(self, name, dims, edge):
        label = edge_masks(dims)[edge].astype(np.uint8)
        for target in (0, 1, None):
            annotation = draw(PROFILES[name], label, target, seed=1).annotation
            assert (annotation.shape, annotation.dtype) == (label.shape, np.uint8)
            says_all = PROFILES[name].dense and (target is not None or PROFILES[name].blank)
            allowed = {0, 1} if says_all else {0, 1, UNLABELED}
            assert set(np.unique(annotation)) <= allowed

    @pytest.mark.parametrize("dims", [2, 3])
    def test_unknown_stays_unknown_and_is_drawn_by_nobody(self, name, dims):
        label = blobs(dims).astype(np.uint8)
        unknown = blobs(dims, seed=9)
        label[unknown] = UNLABELED
        annotation = draw(PROFILES[name], label, seed=2).annotation
        assert (annotation[unknown] == UNLABELED).all()
        assert PROFILES[name].dense == (annotation[~unknown] != UNLABELED).all()

    def test_nothing_of_the_label_map_is_changed(self, name):
        label = blobs(2).astype(np.uint8)
        before = label.copy()
        draw(PROFILES[name], label)
        assert (label == before).all()


class TestSwaps:
    """An annotator who takes a share of one class for another and the reverse."""

    def profile(self, ratio: float, parts: int = 2) -> AnnotatorProfile:
        return AnnotatorProfile(swap_ratio=ratio, num_parts=parts)

    def label(self, dims: int) -> np.ndarray:
        return (blobs(dims) + 2 * (blobs(dims, seed=5) & ~blobs(dims))).astype(np.uint8)

    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_ratio_0_is_nothing_ratio_1_is_all_and_between_it_grows(self, dims, spacing):
        label = self.label(dims)
        drawn = [draw(self.profile(r), label, 1, spacing, 3, 4).annotation for r in (0.0, 0.2, 0.5, 0.9, 1.0)]
        changed = [d != label for d in drawn]
        assert not changed[0].any()
        assert all((few <= many).all() for few, many in pairwise(changed))
        assert (drawn[-1] == np.array([0, 2, 1, 3], np.uint8)[label]).all()

    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_shares_are_exact_and_nothing_else_changes(self, dims, spacing):
        label = self.label(dims)
        label[blobs(dims, seed=9)] = UNLABELED
        drawn = draw(self.profile(0.3), label, 1, spacing, 3, 4).annotation
        for k in (1, 2):
            n = int((label == k).sum())
            assert (drawn[label == k] == 3 - k).sum() == round(0.3 * n) > 3
        other = (label != 1) & (label != 2)
        assert (drawn[other] == label[other]).all()

    @pytest.mark.parametrize("dims", [2, 3])
    def test_the_shapes_are_those_of_one_who_does_not_swap(self, dims):
        plain = AnnotatorProfile(swell_mm=2.0, fracture_ratio=0.4, ratio=0.8, num_parts=2)
        swaps = replace(plain, swap_ratio=0.4)
        label = self.label(dims)
        for target in (1, None):
            shapes, swapped = (draw(p, label, target, None, 7, 3).annotation for p in (plain, swaps))
            assert ((shapes == 0) == (swapped == 0)).all()
            assert (shapes != swapped).any()


@pytest.mark.parametrize("name", [name for name, profile in PROFILES.items() if not profile.dense])
def test_sparse_annotations_say_one_thing_only(name):
    annotation = draw(PROFILES[name], blobs(2).astype(np.uint8), seed=2).annotation
    assert set(np.unique(annotation)) <= {1, UNLABELED}
