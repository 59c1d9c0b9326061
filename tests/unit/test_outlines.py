"""Outlines: their length, and polygons against brute force and at the edges."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from skimage.measure import find_contours

from medcoarse import outlines
from tests.reference import slow_morphology as slow


def disc(radius: float, size: int = 61) -> np.ndarray:
    return np.hypot(*(np.indices((size, size)) - size // 2)) <= radius


class TestBoundary:
    def test_boundary_of_a_disc_and_a_ball(self):
        assert outlines.boundary_size(disc(20), 0.5) == pytest.approx(2 * np.pi * 20 * 0.5, rel=0.03)
        ball = np.sqrt(np.square(np.indices((51, 51, 51)) - 25).sum(0)) <= 20
        assert outlines.boundary_size(ball) == pytest.approx(4 * np.pi * 20**2, rel=0.02)

    def test_boundary_counts_faces_in_mm(self):
        box = np.zeros((6, 6, 6), bool)
        box[2:4, 2:4, 2:4] = True
        faces = 2 * 4 * (2 * 3 + 1 * 3 + 1 * 2)  # pairs of sides, four voxel faces each, of 2x3, 1x3 and 1x2 mm²
        assert outlines.boundary_size(box, (1, 2, 3)) == pytest.approx(faces * 2 / 3)
        assert outlines.boundary_size(box) == outlines.boundary_size(~box)


class TestPolygonize:
    @pytest.mark.parametrize("seed", range(20))
    def test_tolerance_zero_is_the_identity(self, seed):
        rng = np.random.default_rng(seed)
        mask = rng.random(rng.integers(1, 20, 2)) < rng.random()
        assert (outlines.polygonize(mask, 0.0) == mask).all()
        volume = rng.random((5, 6, 4)) < 0.5
        assert (outlines.polygonize(volume, 0.0, spacing=(1, 3, 1)) == volume).all()

    def test_filling_equals_brute_force(self):
        rng = np.random.default_rng(0)
        polygons = [rng.uniform(-0.5, 11.5, (n, 2)) for n in (3, 4, 7)]
        assert (outlines._filled(polygons, (12, 13)) == slow.inside_polygons((12, 13), polygons)).all()

    def test_no_outline_strays_further_than_the_tolerance(self):
        mask = disc(22)
        for tolerance in (1.0, 3.0):
            (outline,) = find_contours(mask.astype(float), 0.5)
            corners = outlines._corners(outline, tolerance)
            assert len(corners) < len(outline) / 8
            for a, b in pairwise(corners):
                chord = (outline[b] - outline[a]) / np.linalg.norm(outline[b] - outline[a] + 1e-12)
                offset = outline[a:b] - outline[a]
                assert np.abs(offset[:, 0] * chord[1] - offset[:, 1] * chord[0]).max() <= tolerance + 1e-9
            assert (outlines.polygonize(mask, tolerance) ^ mask)[
                disc(22 - tolerance - 1) | ~disc(22 + tolerance + 1)
            ].sum() == 0

    def test_coarser_tolerance_needs_fewer_vertices(self):
        (outline,) = find_contours(disc(22).astype(float), 0.5)
        counts = [len(outlines._corners(outline, tolerance)) for tolerance in (0.0, 0.5, 1.0, 3.0, 10.0)]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] < 8

    def test_four_vertices_of_a_disc_make_a_square(self):
        drawn = outlines.polygonize(disc(20), num_vertices=4)
        assert drawn.sum() == pytest.approx(2 * 20**2, rel=0.06)
        assert outlines.polygonize(disc(20), num_vertices=60).sum() == pytest.approx(np.pi * 20**2, rel=0.02)

    def test_holes_stay_holes(self):
        ring = disc(25) & ~disc(12)
        drawn = outlines.polygonize(ring, 1.5)
        assert not drawn[disc(9)].any()
        assert drawn[disc(22) & ~disc(15)].all()

    def test_a_volume_is_drawn_slice_by_slice_across_its_coarsest_axis(self):
        volume = np.stack([disc(r, 31) for r in (4, 9, 13)], axis=1)
        drawn = outlines.polygonize(volume, 2.0, spacing=(1.0, 5.0, 1.0))
        for k in range(3):
            assert (drawn[:, k] == outlines.polygonize(volume[:, k], 2.0)).all()
        assert (drawn != volume).any()

    def test_tolerance_is_in_mm(self):
        mask = disc(20)
        assert (outlines.polygonize(mask, 1.0, spacing=0.5) == outlines.polygonize(mask, 2.0)).all()

    def test_what_is_smaller_than_the_tolerance_vanishes(self):
        assert not outlines.polygonize(np.pad(np.ones((1, 1), bool), 3), 1.0).any()
        assert not outlines.polygonize(np.zeros((4, 4), bool), 1.0).any()

    def test_errors(self):
        for tolerance, vertices in ((-1.0, None), (0.0, 2)):
            with pytest.raises(ValueError, match="need tolerance_mm >= 0 and num_vertices >= 3"):
                outlines.polygonize(disc(4), tolerance, vertices)
