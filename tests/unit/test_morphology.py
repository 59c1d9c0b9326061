"""Morphology against brute force, at the edges, and where a random field has to be what it is said to be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label as components_of
from scipy.special import ndtr, ndtri

from medcoarse import morphology as m
from medcoarse import outlines
from tests.reference import slow_morphology as slow

SPACINGS = {2: [(1.0, 1.0), (0.4, 1.3)], 3: [(1.0, 1.0, 1.0), (0.5, 0.5, 2.0)]}
SHAPES = {2: (9, 12), 3: (5, 7, 4)}
CASES = [(dims, spacing) for dims in (2, 3) for spacing in SPACINGS[dims]]


def random_mask(dims: int, density: float = 0.3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPES[dims]) < density


def disc(radius: float, size: int = 61) -> np.ndarray:
    return np.hypot(*(np.indices((size, size)) - size // 2)) <= radius


class TestDistance:
    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    @pytest.mark.parametrize("radius", [0.0, 0.4, 1.2, 2.0, 3.7, 20.0])  # 20 mm takes the distance transform
    def test_thin_and_thicken_equal_brute_force(self, dims, spacing, radius):
        for seed, density in enumerate((0.02, 0.3, 0.8)):
            mask = random_mask(dims, density, seed)
            assert (m.thicken(mask, radius, spacing) == slow.thicken(mask, radius, spacing)).all()
            assert (m.thin(mask, radius, spacing) == slow.thin(mask, radius, spacing)).all()

    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_squared_distance_equals_brute_force(self, dims, spacing):
        mask = random_mask(dims, 0.05)
        inside = np.argwhere(mask)
        for radius in (2.0, 30.0):
            found = m.squared_distance(mask, radius, spacing)
            for x in np.ndindex(mask.shape):
                expected = slow.distance_to(inside, x, spacing)
                assert found[x] == pytest.approx(expected**2 if expected <= radius + 1e-6 else np.inf, rel=1e-5)

    def test_a_radius_that_is_a_multiple_of_the_spacing_reaches_that_voxel(self):
        mask = np.arange(8) == 0
        assert m.thicken(mask[None], 1.2, (1, 0.4)).sum() == 4  # 3 * 0.4 is a little more than 1.2 in binary

    @pytest.mark.parametrize("radius", [1.0, 50.0])
    def test_empty_and_full(self, radius):
        empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
        assert not m.thicken(empty, radius).any()
        assert not m.thin(empty, radius).any()
        assert m.thin(full, radius).all()  # the border of the image is no outline
        assert m.thicken(full, radius).all()

    def test_thin_preserves_thin_structures_on_request(self):
        mask = np.zeros((20, 30), bool)
        mask[10, 3:27] = True
        mask[2:8, 2:8] = True
        assert not m.thin(mask, 1.0)[10].any()
        kept = m.thin(mask, 1.0, preserve=True)
        assert kept[10, 4:26].all()
        assert components_of(kept, np.ones((3, 3)))[1] == 2
        assert (kept <= mask).all()


class TestSmoothField:
    @pytest.mark.parametrize("smoothness", [0.0, 1.0, 3.0])
    def test_is_uniform_at_every_voxel(self, smoothness):
        rng = np.random.default_rng(0)
        fields = np.stack([m.smooth_field((16, 17), smoothness, rng) for _ in range(4000)])
        assert fields.dtype == np.float32
        assert fields.min() >= 0
        assert fields.max() <= 1
        for q in (0.1, 0.5, 0.9):  # each voxel alone: 4000 draws, so 5 standard errors are 0.04
            assert np.abs((fields < q).mean(axis=0) - q).max() < 0.04

    def test_correlation_falls_as_that_of_gaussian_noise_in_mm(self):
        rng = np.random.default_rng(1)
        spacing, smoothness = (0.5, 2.0), 4.0
        normal = ndtri(np.stack([m.smooth_field((40, 12), smoothness, rng, spacing) for _ in range(2000)]))
        for offset, distance in (((8, 0), 4.0), ((0, 2), 4.0), ((16, 0), 8.0)):
            here, there = normal[:, 10, 4], normal[:, 10 + offset[0], 4 + offset[1]]
            expected = np.exp(-(distance**2) / (4 * smoothness**2))
            assert np.corrcoef(here, there)[0, 1] == pytest.approx(expected, abs=0.06)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 6, 7)])
    def test_shapes_and_reproducibility(self, shape):
        first, second = (m.smooth_field(shape, 2.0, np.random.default_rng(5)) for _ in range(2))
        assert first.shape == shape
        assert (first == second).all()

    def test_negative_smoothness(self):
        with pytest.raises(ValueError, match="smoothness_mm must be >= 0, got -1"):
            m.smooth_field((4, 4), -1.0, np.random.default_rng(0))


class TestSwell:
    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_equals_brute_force(self, dims, spacing):
        mask = random_mask(dims, 0.05)
        field = np.random.default_rng(3).random(mask.shape)
        for radius, strength in ((2.0, 0.6), (3.0, 2.5), (0.0, 1.0)):
            expected = slow.swell(mask, radius, strength, field, spacing)
            assert (m.swell(mask, radius, strength, field, spacing) == expected).all()

    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_normal_field_swells_as_the_uniform_one(self, dims, spacing):
        mask = random_mask(dims, 0.05)
        uniform = m.smooth_field(mask.shape, 1.5, np.random.default_rng(4), spacing)
        normal = m.smooth_field(mask.shape, 1.5, np.random.default_rng(4), spacing, uniform=False)
        assert np.allclose(ndtr(normal), uniform, atol=1e-6)
        expected = m.swell(mask, 3.0, 0.8, uniform, spacing)
        assert (m.swell(mask, 3.0, 0.8, normal, spacing, uniform=False) == expected).all()
        assert (m.swell(mask, 3.0, 0.8, normal, spacing) != expected).any()

    def test_share_added_at_a_distance_is_strength_over_distance(self):
        mask = np.zeros((400, 400), bool)
        mask[:, ::20] = True
        field = m.smooth_field(mask.shape, 1.0, np.random.default_rng(0))
        swollen = m.swell(mask, 3.0, 0.6, field)
        for r in (1, 2, 3):
            assert swollen[:, r::20].mean() == pytest.approx(0.6 / r, abs=0.03)
        assert not swollen[:, 4:17:20].any()

    def test_field_of_ones_is_thicken_and_strength_zero_the_identity(self):
        mask = random_mask(2, 0.05)
        assert (m.swell(mask, 2.0, 0.6, np.ones(mask.shape)) == m.thicken(mask, 2.0)).all()
        assert (m.swell(mask, 2.0, 0.0, np.ones(mask.shape)) == mask).all()

    def test_errors(self):
        mask = random_mask(2)
        with pytest.raises(ValueError, match=r"field must have the shape of the mask \(9, 12\), got \(3, 3\)"):
            m.swell(mask, 1.0, 1.0, np.ones((3, 3)))
        with pytest.raises(ValueError, match="strength_mm must be >= 0"):
            m.swell(mask, 1.0, -1.0, np.ones(mask.shape))


class TestFracture:
    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    def test_equals_brute_force(self, dims, spacing):
        rng = np.random.default_rng(2)
        mask = np.ones(SHAPES[dims], bool)
        centers = rng.integers(0, mask.shape, (3, dims))
        directions = rng.standard_normal((3, dims))
        expected = slow.fracture(mask, centers, directions, 1.3, 4.1, spacing)
        assert 0 < expected.sum() < mask.size
        assert (m.fracture(mask, centers, directions, 1.3, 4.1, spacing) == expected).all()

    def test_a_cut_is_as_wide_and_long_as_asked_for(self):
        cut = ~m.fracture(np.ones((41, 41), bool), [[20, 20]], [[0.0, 2.0]], width_mm=3.0, length_mm=10.0)
        rows, columns = np.nonzero(cut)
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (11, 3)
        assert cut.sum() == 33

    def test_in_3d_a_cut_is_a_disc(self):
        cut = ~m.fracture(np.ones((21, 21, 21), bool), [[10, 10, 10]], [[0, 0, 1]], width_mm=1.0, length_mm=8.0)
        assert (cut.any(axis=(0, 1)) == (np.arange(21) == 10)).all()
        assert (cut[:, :, 10] == disc(4, 21)).all()

    def test_many_cuts_in_chunks_equal_one_by_one(self):
        rng = np.random.default_rng(0)
        mask = np.ones((30, 30, 30), bool)
        centers, directions = rng.integers(0, 30, (160, 3)), rng.standard_normal((160, 3))
        expected = mask
        for center, direction in zip(centers, directions, strict=True):
            expected = m.fracture(expected, center, direction, 2.0, 36.0)
        assert (m.fracture(mask, centers, directions, 2.0, 36.0) == expected).all()  # 37**3 offsets: 78 cuts a chunk

    def test_no_cut_at_all_and_errors(self):
        mask = random_mask(2)
        assert (m.fracture(mask, [], [], 2.0, 4.0) == mask).all()
        with pytest.raises(ValueError, match="a direction other than 0"):
            m.fracture(mask, [[1, 1]], [[0.0, 0.0]], 2.0, 4.0)
        with pytest.raises(ValueError, match="a centre and a direction"):
            m.fracture(mask, [[1, 1], [2, 2]], [[0.0, 1.0]], 2.0, 4.0)


class TestShrinkToRatio:
    @pytest.mark.parametrize(("dims", "spacing"), CASES)
    @pytest.mark.parametrize("ratio", [0.0, 0.001, 0.1, 0.5, 0.77, 1.0])
    def test_equals_brute_force_and_is_exact(self, dims, spacing, ratio):
        mask = random_mask(dims, 0.5)
        centers = np.argwhere(mask)[[3, 20]]
        kept = m.shrink_to_ratio(mask, ratio, centers, spacing)
        assert kept.sum() == (max(1, round(ratio * mask.sum())) if ratio else 0)
        assert (kept == slow.shrink_to_ratio(mask, ratio, centers, spacing)).all()

    def test_ties_go_to_the_first_voxels_in_memory(self):
        kept = m.shrink_to_ratio(np.ones((3, 3), bool), 3 / 9, [1, 1])
        assert kept.astype(int).tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]

    def test_edges(self):
        assert not m.shrink_to_ratio(np.zeros((3, 3), bool), 0.5, [1, 1]).any()
        with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\], got 1.5"):
            m.shrink_to_ratio(np.ones((3, 3), bool), 1.5, [1, 1])
        with pytest.raises(ValueError, match="at least one centre"):
            m.shrink_to_ratio(np.ones((3, 3), bool), 0.5, [])


class TestScribble:
    @pytest.mark.parametrize("seed", range(10))
    def test_skeleton_keeps_every_component(self, seed):
        rng = np.random.default_rng(seed)
        for mask in (rng.random((12, 13)) < 0.4, np.kron(rng.random((4, 4, 3)) < 0.2, np.ones((2, 2, 2))) > 0):
            components, number = components_of(mask, np.ones((3,) * mask.ndim))
            centre_line = m.skeleton(mask)
            assert (centre_line <= mask).all()
            assert len(np.unique(components[centre_line])) == number

    def test_two_cubes_that_thinning_alone_would_delete(self):
        volume = np.zeros((8, 8, 8), bool)
        volume[1:3, 1:3, 1:3] = volume[5:7, 5:7, 5:7] = True
        assert m.skeleton(volume).sum() == 2

    def test_stroke_has_the_width_of_the_pen(self):
        bar = np.zeros((21, 60), bool)
        bar[8:13, 5:55] = True
        for width in (1, 3, 5, 9):
            assert m.scribble(bar, width)[:, 30].sum() == width

    def test_single_voxel_and_empty(self):
        dot = np.pad(np.ones((1, 1, 1), bool), 2)
        assert (m.scribble(dot, 1.0) == dot).all()
        assert not m.scribble(np.zeros((3, 4), bool), 5.0).any()


class TestMeasures:
    def test_window_holds_the_mask_and_its_margin(self):
        mask = np.zeros((20, 30), bool)
        mask[5:8, 10:12] = True
        assert m.bounding_window(mask) == (slice(5, 8), slice(10, 12))
        assert m.bounding_window(mask, 3.0, (1.0, 2.0)) == (slice(2, 11), slice(8, 14))
        assert m.bounding_window(mask, 100.0) == (slice(0, 20), slice(0, 30))
        assert mask[m.bounding_window(np.zeros_like(mask), 5.0)].size == 0

    def test_complement(self):
        mask, within = random_mask(2), random_mask(2, 0.7, 1)
        assert (m.complement(mask) == ~mask).all()
        assert (m.complement(mask, within) == (within & ~mask)).all()


class TestErrors:
    @pytest.mark.parametrize(
        "operation",
        [
            lambda mask: m.thin(mask, 1.0),
            lambda mask: m.thicken(mask, 1.0),
            lambda mask: m.fracture(mask, [], [], 1.0, 1.0),
            lambda mask: m.shrink_to_ratio(mask, 0.5, [0, 0]),
            lambda mask: outlines.polygonize(mask, 1.0),
            lambda mask: m.scribble(mask, 1.0),
            m.skeleton,
            m.complement,
            outlines.boundary_size,
            m.bounding_window,
        ],
    )
    @pytest.mark.parametrize("mask", [np.zeros((4, 4), np.uint8), np.zeros(4, bool), np.zeros((2, 2, 2, 2), bool)])
    def test_a_label_map_is_not_a_mask(self, operation, mask):
        with pytest.raises(ValueError, match="mask must be a bool array with 2 or 3 axes, got"):
            operation(mask)

    @pytest.mark.parametrize("spacing", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0), (1.0, float("nan")), -1.0])
    def test_spacing(self, spacing):
        with pytest.raises(ValueError, match="spacing must be 2 positive numbers"):
            m.thicken(random_mask(2), 1.0, spacing)

    @pytest.mark.parametrize("radius", [-1.0, float("nan")])
    def test_radius(self, radius):
        with pytest.raises(ValueError, match="radius_mm must be >= 0"):
            m.thicken(random_mask(2), radius)
