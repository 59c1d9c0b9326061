"""What annotators draw, how it is encoded, and how far the ready ones are from the truth."""

from __future__ import annotations

import gzip
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcoarse import annotators as a
from medcoarse import profiles
from medcoarse.morphology import (
    complement,
    fracture,
    scribble,
    shrink_to_ratio,
    skeleton,
    smooth_field,
    swell,
    thicken,
    thin,
)
from medcoarse.outlines import polygonize
from tests.reference import slow_morphology

OVER_1 = a.AnnotatorProfile(thicken_mm=1.0)
NEGATIVE = a.AnnotatorProfile(kind="negative")
U = a.UNLABELED


def row(*values: int) -> np.ndarray:
    return np.array([values], np.uint8)


def blob(size: int = 96, seed: int = 0) -> np.ndarray:
    field = smooth_field((size, size), size / 8, np.random.default_rng(seed))
    return (field > np.hypot(*(np.indices((size, size)) - size / 2)) / size * 2).astype(np.uint8)


def vessels(size: int = 128) -> np.ndarray:
    """Six winding lines, 3 pixels wide."""
    rows, columns = np.indices((size, size))
    lines = [np.abs(rows - 20 * k - 8 - 5 * np.sin(columns / 9 + k)) < 1.5 for k in range(6)]
    return np.any(lines, axis=0).astype(np.uint8)


def iou(drawn: np.ndarray, truth: np.ndarray) -> float:
    return float((drawn & truth).sum() / (drawn | truth).sum())


def target_iou(
    profile: a.AnnotatorProfile, label: np.ndarray, seed: int = 0, within: np.ndarray | None = None
) -> float:
    """IoU of the positive drawing, or of what the negative one leaves, with class 1."""
    annotation = a.draw(profile, label, seed=seed).annotation
    drawn = annotation == 1 if profile.kind == "positive" else annotation != 1
    inside = np.ones(label.shape, bool) if within is None else within
    return iou(drawn[inside], label[inside] == 1)


def real(name: str) -> Path:
    folder = Path(os.environ.get("MEDCOARSE_DATA", "")) / name
    if "MEDCOARSE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"set MEDCOARSE_DATA to a folder with {name} to test on real data")
    return folder


class TestProfile:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"kind": "both"}, "kind must be 'positive' or 'negative', got 'both'"),
            ({"kind": None}, "kind must be 'positive' or 'negative', got None"),
            ({"thin_mm": -1.0}, "thin_mm must be a finite number >= 0, got -1.0"),
            ({"thicken_mm": float("inf")}, "thicken_mm must be a finite number >= 0, got inf"),
            ({"swell_mm": "3"}, "swell_mm must be a finite number >= 0, got '3'"),
            ({"scribble_mm": None}, "scribble_mm must be a finite number >= 0, got None"),
            ({"polygon_tolerance_mm": True}, "polygon_tolerance_mm must be a finite number >= 0, got True"),
            ({"swell_strength_mm": 1j}, "swell_strength_mm must be a finite number >= 0, got 1j"),
            ({"swell_smoothness_mm": [3.0]}, r"swell_smoothness_mm must be a finite number >= 0, got \[3.0\]"),
            ({"fracture_width_mm": float("nan")}, "fracture_width_mm must be a finite number >= 0, got nan"),
            ({"fracture_ratio": float("nan")}, "fracture_ratio must be a finite number >= 0, got nan"),
            ({"fracture_length_mm": -1}, "fracture_length_mm must be a finite number >= 0, got -1"),
            (
                {"fracture_ratio": 0.1, "fracture_length_mm": 0},
                "fracture_length_mm must be > 0 where fracture_ratio > 0, got 0",
            ),
            ({"ratio": 1.5}, r"ratio must be a number in \[0, 1\], got 1.5"),
            ({"ratio": "1"}, r"ratio must be a number in \[0, 1\], got '1'"),
            ({"num_parts": 0}, "num_parts must be an integer >= 1, got 0"),
            ({"num_parts": None}, "num_parts must be an integer >= 1, got None"),
            ({"swap_ratio": -0.1}, r"swap_ratio must be a number in \[0, 1\], got -0.1"),
            ({"swap_class": -1}, "swap_class must be None or an integer >= 0, got -1"),
            ({"swap_class": 1.0}, "swap_class must be None or an integer >= 0, got 1.0"),
            ({"num_fractures": -1}, "num_fractures must be None or an integer >= 0, got -1"),
            ({"num_fractures": 3.0}, "num_fractures must be None or an integer >= 0, got 3.0"),
            ({"num_fractures": False}, "num_fractures must be None or an integer >= 0, got False"),
            ({"polygon_vertices": 2}, "polygon_vertices must be 0 or an integer >= 3, got 2"),
            ({"polygon_vertices": "5"}, "polygon_vertices must be 0 or an integer >= 3, got '5'"),
            ({"dense": 1}, "dense must be True or False, got 1"),
            ({"blank": "no"}, "blank must be True or False, got 'no'"),
            ({"preserve": None}, "preserve must be True or False, got None"),
        ],
    )
    def test_errors(self, fields, message):
        with pytest.raises(ValueError, match=f"^an annotator's {message}"):
            a.AnnotatorProfile(**fields)

    @pytest.mark.parametrize(
        "fields",
        [
            {"thin_mm": np.float32(1.5), "num_parts": np.int64(2)},
            {"thin_mm": 1, "polygon_vertices": 3, "num_fractures": 0, "ratio": 0},
            {"fracture_length_mm": 0.0},
        ],
    )
    def test_any_kind_of_number_will_do(self, fields):
        assert {name: getattr(a.AnnotatorProfile(**fields), name) for name in fields} == fields

    def test_scaled_multiplies_lengths_only(self):
        twice = a.scaled(profiles.COARSE_NEGATIVE, 2.0)
        assert twice.swell_mm == 2 * profiles.COARSE_NEGATIVE.swell_mm
        assert twice.fracture_length_mm == 2 * profiles.COARSE_NEGATIVE.fracture_length_mm
        assert (twice.fracture_ratio, twice.kind) == (profiles.COARSE_NEGATIVE.fracture_ratio, "negative")
        with pytest.raises(ValueError, match="factor must be > 0"):
            a.scaled(profiles.GOOD, 0.0)

    @pytest.mark.parametrize(
        "profile", [profiles.COARSE_POSITIVE, profiles.COARSE_NEGATIVE], ids=["positive", "negative"]
    )
    def test_scaling_goes_with_magnification(self, profile):
        label = vessels()
        magnified = np.kron(label, np.ones((3, 3), np.uint8))
        grades = [
            np.mean([target_iou(one, image, seed) for seed in range(8)])
            for one, image in ((profile, label), (a.scaled(profile, 3.0), magnified), (profile, magnified))
        ]
        assert abs(grades[1] - grades[0]) < 0.6 * abs(grades[2] - grades[0])

    def test_scaling_and_spacing_cancel(self):
        label = blob()
        for profile in profiles.PROFILES.values():
            finer = a.draw(a.scaled(profile, 0.5), label, spacing=0.5, seed=2).annotation
            assert (finer == a.draw(profile, label, seed=2).annotation).all()


class TestEncoding:
    label = row(0, 0, 1, 1, 2, 2, U)

    def drawn(self, profile: a.AnnotatorProfile, target: int | None = 1, num_classes: int = 3) -> list[int]:
        return a.draw(profile, self.label, target, num_classes=num_classes).annotation[0].tolist()

    def test_positive_sparse(self):
        assert self.drawn(replace(OVER_1, dense=False)) == [U, 1, 1, 1, 1, U, U]

    def test_positive_dense_keeps_the_other_classes(self):
        assert self.drawn(OVER_1) == [0, 1, 1, 1, 1, 2, U]

    def test_positive_dense_makes_background_of_what_is_left_out(self):
        assert self.drawn(a.AnnotatorProfile(thin_mm=5.0, preserve=False)) == [0, 0, 0, 0, 2, 2, U]

    def test_left_out_background_is_the_other_class_of_two_and_unknown_among_more(self):
        thinned = a.AnnotatorProfile(thin_mm=1.0, preserve=False)
        assert a.draw(thinned, row(0, 0, 1, 1), target=0).annotation.tolist() == [[0, 1, 1, 1]]
        assert self.drawn(thinned, target=0) == [0, U, 1, 1, 2, 2, U]

    def test_negative_sparse(self):
        assert self.drawn(replace(NEGATIVE, dense=False)) == [1, 1, U, U, 1, 1, U]

    def test_negative_dense_of_two_classes_says_that_the_rest_is_the_target(self):
        thick = replace(NEGATIVE, thicken_mm=1.0)
        assert a.draw(thick, row(0, 0, 1, 1, 1, U)).annotation.tolist() == [[1, 1, 1, 0, 0, U]]

    def test_negative_dense_of_more_classes_rules_out_another_one_at_random(self):
        annotation = a.draw(NEGATIVE, np.full((100, 100), 1, np.uint8), num_classes=4, seed=1).annotation
        share = np.bincount(annotation.ravel(), minlength=4) / annotation.size
        assert share == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.03)

    def test_absent_class(self):
        assert self.drawn(profiles.COARSE_POSITIVE, target=3, num_classes=4) == self.label[0].tolist()
        assert self.drawn(replace(profiles.COARSE_POSITIVE, dense=False), target=3, num_classes=4) == [U] * 7
        assert self.drawn(replace(NEGATIVE, dense=False), target=3, num_classes=4) == [3] * 6 + [U]

    def test_blank(self):
        assert self.drawn(profiles.BLANK) == [U] * 7
        assert self.drawn(profiles.BLANK, target=None) == [U] * 7
        assert self.drawn(replace(profiles.BLANK, kind="negative"), target=0) == [U] * 7

    @pytest.mark.parametrize("target", [0, 1, 2, None])
    def test_dense_and_blank_is_background_everywhere(self, target):
        assert self.drawn(profiles.DHE_BLANK, target) == [0] * 6 + [U]
        assert self.drawn(replace(profiles.DHE_BLANK, swap_ratio=1.0, thicken_mm=2.0), target) == [0] * 6 + [U]

    def test_dense_negative_blank_rules_nothing_out(self):
        nothing_ruled_out = a.draw(replace(profiles.DHE_BLANK, kind="negative"), row(0, 1, U)).annotation
        assert nothing_ruled_out.tolist() == [[0, 0, U]]  # "not background" everywhere

    @pytest.mark.parametrize(
        ("label", "target", "message"),
        [
            (row(0, 3), 1, "label values must be whole numbers below num_classes=2, or 255, got 3"),
            (row(0, 1).astype(np.int16) - 1, 1, "must be whole numbers below num_classes=2, or 255, got -1"),
            (row(0, 1).astype(float), 1, "label must hold integers and have 2 or 3 axes, got float64"),
            (row(0, 1)[0], 1, r"2 or 3 axes, got uint8 of shape \(2,\)"),
            (row(0, 1), 2, "target must be None or a class below num_classes=2, got 2"),
        ],
    )
    def test_errors(self, label, target, message):
        with pytest.raises(ValueError, match=message):
            a.draw(profiles.GOOD, label, target)


class TestSwaps:
    label = row(0, 1, 1, 1, 1, 2, 2, 3, U)

    def drawn(self, label: np.ndarray | None = None, target: int | None = 1, num_classes: int = 4, **fields) -> list:
        profile = a.AnnotatorProfile(**{"swap_ratio": 0.5} | fields)
        return a.draw(profile, self.label if label is None else label, target, num_classes=num_classes).annotation

    def test_by_hand(self):
        """The second of the ones is the centre of their part, the second of the twos is that of theirs."""
        profile = a.AnnotatorProfile(swap_ratio=0.5)
        parameters = a.draw(profile, self.label, 1, num_classes=4).parameters | {"swap_places": [[2**30], [2**31]]}
        assert a.apply(profile, self.label, 1, None, parameters).tolist() == [[0, 2, 2, 1, 1, 2, 1, 3, U]]

    def test_all_of_them(self):
        swapped = {1: [0, 2, 2, 2, 2, 1, 1, 3, U], 2: [0, 1, 1, 1, 1, 3, 3, 2, U], 3: [0, 3, 3, 3, 3, 2, 2, 1, U]}
        for target, expected in swapped.items():
            assert self.drawn(target=target, swap_ratio=1.0).tolist() == [expected]
        assert self.drawn(target=1, swap_ratio=1.0, swap_class=0).tolist() == [[1, 0, 0, 0, 0, 2, 2, 3, U]]
        assert self.drawn(target=None, swap_ratio=1.0).tolist() == [[0, 2, 2, 2, 2, 3, 3, 1, U]]
        for target in (0, 1, None):
            assert self.drawn(row(0, 0, 1, U), target, 2, swap_ratio=1.0).tolist() == [[1, 1, 0, U]]

    def test_pairs(self):
        profile = a.AnnotatorProfile(swap_ratio=0.1)
        found = [a.swapped_classes(profile, target, n) for target, n in ((0, 2), (0, 4), (2, 3), (None, 2), (None, 3))]
        assert found == [
            [(0, 1), (1, 0)],
            [(0, 1), (1, 0)],
            [(2, 1), (1, 2)],
            [(0, 1), (1, 0)],
            [(1, 2), (2, 1)],
        ]
        assert a.swapped_classes(profiles.GOOD, 1, 4) == []

    def test_absent_class_and_single_voxel(self):
        assert self.drawn(row(0, 0, 1, 1), 1, 3).tolist() in ([[0, 0, 2, 1]], [[0, 0, 1, 2]])
        assert self.drawn(row(0, 0), 1, 3).tolist() == [[0, 0]]
        assert self.drawn(row(0, 1), 1, 3, swap_ratio=0.01).tolist() == [[0, 2]]
        assert self.drawn(row(U, U), 1, 3).tolist() == [[U, U]]

    def test_what_was_drawn_is_swapped_not_what_is_true(self):
        assert self.drawn(row(0, 1, 0, 0, 0, 2), swap_ratio=1.0, thicken_mm=1.0).tolist() == [[2, 2, 2, 0, 0, 1]]
        assert self.drawn(swap_ratio=1.0, dense=False).tolist() == [[U, 2, 2, 2, 2, U, U, U, U]]
        negative = self.drawn(row(0, 0, 1), 1, 2, swap_ratio=1.0, kind="negative")
        assert negative.tolist() == [[0, 0, 1]]

    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("spaced", [False, True])
    def test_equals_the_reference(self, dims, spaced):
        shape, spacing = ((13, 11), (0.75, 1.5)) if dims == 2 else ((6, 5, 7), (0.75, 0.5, 2.0))
        spacing = spacing if spaced else (1.0,) * dims
        for seed in range(6):
            label = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
            label[np.random.default_rng(seed + 100).random(shape) < 0.1] = U
            for target in (1, 3, None):
                profile = a.AnnotatorProfile(swap_ratio=0.35, num_parts=3)
                drawing = a.draw(profile, label, target, spacing, seed, num_classes=4)
                pairs, places = a.swapped_classes(profile, target, 4), drawing.parameters["swap_places"]
                expected = slow_morphology.swap(label, pairs, 0.35, places, spacing)
                assert (drawing.annotation == expected).all()
                assert (drawing.annotation != label).any()

    @pytest.mark.parametrize(
        ("swap_class", "target", "message"),
        [
            (
                1,
                1,
                "swap_class must be a class below num_classes=4 other than the target, got 1 for target 1; leave it",
            ),
            (4, 1, "swap_class must be a class below num_classes=4 other than the target, got 4 for target 1"),
            (2, None, "got 2 for target None; leave it None for the next class"),
        ],
    )
    def test_errors(self, swap_class, target, message):
        with pytest.raises(ValueError, match=message):
            self.drawn(target=target, swap_class=swap_class)


class TestEveryClass:
    label = np.kron(np.array([[0, 1], [2, 1]], np.uint8), np.ones((12, 12), np.uint8))

    def test_good_annotators_repeat_the_label(self):
        for dense in (True, False):
            profile = a.AnnotatorProfile(dense=dense)
            assert (a.draw(profile, self.label, None, num_classes=3).annotation == self.label).all()

    def test_later_classes_lie_on_top(self):
        drawn = a.draw(OVER_1, row(0, 0, 1, 1, 1, 2, 2), None, num_classes=3).annotation
        assert drawn.tolist() == [[0, 1, 1, 1, 2, 2, 2]]

    def test_what_nobody_drew_is_unlabeled_or_goes_to_the_nearest_class(self):
        sparse = a.draw(profiles.POLYGON, self.label, None, num_classes=3).annotation
        dense = a.draw(replace(profiles.POLYGON, dense=True), self.label, None, num_classes=3).annotation
        said = sparse != U
        assert 0.3 < said.mean() < 0.9
        assert (sparse[said] == self.label[said]).all()
        assert (dense[said] == sparse[said]).all()
        assert (dense != U).all()
        assert (dense == self.label).mean() > 0.9

    def test_negative_rules_out_each_other_class_equally_often(self):
        label = np.full((120, 120), 2, np.uint8)
        annotation = a.draw(NEGATIVE, label, None, num_classes=4, seed=3).annotation
        share = np.bincount(annotation.ravel(), minlength=4) / annotation.size
        assert share == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.03)

    def test_replay(self):
        drawing = a.draw(profiles.WRONG, self.label, None, (1.0, 2.0), seed=3, num_classes=3)
        parameters = json.loads(json.dumps(drawing.parameters))
        assert (a.apply(profiles.WRONG, self.label, None, (1.0, 2.0), parameters) == drawing.annotation).all()
        assert (drawing.annotation != self.label).any()


class TestRatio:
    @pytest.mark.parametrize("ratio", [0.5, 0.3, 0.1, 0.02])
    @pytest.mark.parametrize("kind", ["positive", "negative"])
    def test_is_exact(self, kind, ratio):
        label = blob()
        profile = a.AnnotatorProfile(kind=kind, dense=False, ratio=ratio, num_parts=2)
        region = label == 1 if kind == "positive" else label == 0
        annotation = a.draw(profile, label, seed=1).annotation
        assert (annotation == 1).sum() == round(ratio * region.sum())
        assert (annotation[~region] == U).all()

    def test_strokes_over_the_edge_count_too(self):
        profile = a.AnnotatorProfile(dense=False, thicken_mm=3.0, ratio=0.5)
        assert (a.draw(profile, blob()).annotation == 1).sum() == round(0.5 * blob().sum())

    def test_ratio_zero_draws_nothing_and_a_single_voxel_is_kept(self):
        dot = np.pad(row(1), 3)
        assert (a.draw(a.AnnotatorProfile(dense=False, ratio=0.0), dot).annotation == U).all()
        assert (a.draw(a.AnnotatorProfile(dense=False, ratio=0.01), dot).annotation == 1).sum() == 1


class TestFractures:
    def test_number_follows_the_outline_in_2d_and_the_surface_in_3d(self):
        profile = a.AnnotatorProfile(fracture_ratio=0.5, fracture_length_mm=4.0)
        square = np.pad(np.ones((40, 40), np.uint8), 5)
        cube = np.pad(np.ones((12, 12, 12), np.uint8), 5)
        for label, expected in ((square, 0.5 * np.pi / 4 * 160 / 4), (cube, 0.5 * 2 / 3 * 6 * 144 / 16)):
            assert len(a.draw(profile, label).parameters["cut_places"]) == round(expected)
            half = a.draw(a.scaled(profile, 0.5), label, spacing=0.5).parameters
            assert len(half["cut_places"]) == round(expected)

    def test_a_fixed_number_wins(self):
        drawing = a.draw(a.AnnotatorProfile(num_fractures=3, fracture_ratio=5.0), blob())
        assert len(drawing.parameters["cut_places"]) == len(drawing.parameters["cut_directions"]) == 3
        assert not a.draw(a.AnnotatorProfile(num_fractures=0, fracture_ratio=5.0), blob()).parameters["cut_places"]

    def test_cuts_are_centred_on_what_was_drawn(self):
        label = np.pad(np.ones((40, 3), np.uint8), 10)
        for seed in range(20):
            profile = a.AnnotatorProfile(num_fractures=1, fracture_width_mm=0.5, fracture_length_mm=0.5)
            assert (a.draw(profile, label, seed=seed).annotation != label).sum() == 1

    def test_every_drawn_voxel_is_as_likely_to_be_a_centre(self):
        profile = a.AnnotatorProfile(num_fractures=20000, fracture_width_mm=0.5, fracture_length_mm=0.5)
        label = row(0, 1, 1, 1, 1, 0)
        places = a.draw(profile, label).parameters["cut_places"]
        centers = a._voxels_at(places, label == 1)[:, 1]
        assert np.bincount(centers, minlength=6) / 20000 == pytest.approx([0, 0.25, 0.25, 0.25, 0.25, 0], abs=0.02)


class TestMergeStrokes:
    def test_two_classes_by_hand(self):
        positive, negative = row(1, 1, 1, U, U, 0, U), row(U, 1, 0, 1, 0, 1, U)
        assert a.merge_strokes(positive, negative).tolist() == [[1, U, 1, 0, 1, 0, U]]

    def test_several_annotators(self):
        positive = np.stack([[1, 1, U, 0], [1, 0, U, 0]])
        negative = np.stack([[U, U, U, 1], [0, U, 1, 0]])
        assert a.merge_strokes(positive, negative).tolist() == [[1, U, 0, U]]

    def test_more_classes_negatives_only_contradict(self):
        positive, negative = row(2, 2, 2, U, 0), row(U, 2, 1, 1, 2)
        assert a.merge_strokes(positive, negative, 3).tolist() == [[2, U, 2, U, 0]]

    def test_consensus_of_dense_annotations(self):
        label = blob()
        positive, negative = (
            a.draw(p, label, seed=4).annotation for p in (profiles.COARSE_POSITIVE, profiles.COARSE_NEGATIVE)
        )
        merged = a.merge_strokes(positive[None], negative[None])[0]
        assert (merged == np.where(positive == 1 - negative, positive, U)).all()
        assert (merged == U).any()

    def test_nobody_and_errors(self):
        assert a.merge_strokes(row(1, U), row(0, 0)[:0]).tolist() == [[1, U]]
        assert a.merge_strokes(row(0, 0)[:0], row(0, 0)[:0]).tolist() == [[U, U]]
        with pytest.raises(ValueError, match=r"must share \(\*S\), got \(1, 2\) and \(1, 3\)"):
            a.merge_strokes(row(1, 1), row(1, 1, 1))

    @pytest.mark.parametrize("value", [2, -1, 0.5, np.nan])
    def test_what_is_no_class_is_refused_and_not_left_out(self, value):
        strange, right = np.array([[0.0, value, 255.0]]), row(0, 1, U)
        for pair, name in (((strange, right), "positive"), ((right, strange), "negative")):
            with pytest.raises(ValueError, match=f"{name} values must be whole numbers below num_classes=2, or 255"):
                a.merge_strokes(*pair)
        if value == 2:
            assert a.merge_strokes(strange, row(U, U, U), 3).tolist() == [[0, 2, U]]


class TestHowGoodTheyAre:
    @pytest.mark.parametrize("kind", ["positive", "negative"])
    @pytest.mark.parametrize("label", [blob(), vessels()], ids=["blob", "vessels"])
    def test_levels_rise(self, kind, label):
        grades = [np.mean([target_iou(profiles.level(n, kind), label, seed) for seed in range(6)]) for n in range(1, 6)]
        assert grades == sorted(grades)
        assert np.diff(grades).min() > 0.01
        assert grades[0] < 0.35
        assert grades[-1] > 0.75

    def test_over_under_wrong(self):
        label = vessels()
        over, under, wrong = (
            a.draw(p, label, seed=2).annotation for p in (profiles.OVER, profiles.UNDER, profiles.WRONG)
        )
        assert (over >= label).all()
        assert (under <= label).all()
        assert (wrong > label).any()
        assert (wrong < label).any()
        assert over.sum() > 1.5 * label.sum()
        assert under.sum() < 0.7 * label.sum()

    def test_the_annotators_of_dhe(self):
        label = vessels()
        good, over, under, wrong, blank = (
            a.draw(profiles.as_profile(name), label, seed=2).annotation for name in profiles.DHE_BINARY
        )
        assert (good == label).all()
        assert ((over >= label).all(), over.sum() > 1.5 * label.sum()) == (True, True)
        assert ((under <= label).all(), under.sum() < 0.7 * label.sum()) == (True, True)
        assert (wrong <= over).all()  # too much, with gaps
        assert (wrong < label).sum() > 0.03 * label.sum()
        assert wrong.sum() > 1.2 * label.sum()
        assert (blank == 0).all()
        two = label + label * (np.indices(label.shape)[1] > 64)  # one half of the vessels is of another class
        drawn = [
            a.draw(profiles.as_profile(name), two, 1, seed=2, num_classes=3).annotation
            for name in profiles.DHE_MULTI_CLASS
        ]
        assert all(((d == 2) == (two == 2)).all() for d in drawn[:3:2])
        for k in (1, 2):
            assert (drawn[3][two == k] == 3 - k).mean() == pytest.approx(0.4, abs=0.01)
        assert ((drawn[3] == 0) == (two == 0)).all()
        assert (drawn[4] == 0).all()

    def test_strokes_on_a_blob_look_like_those_of_people(self):
        cover, precision = [], []
        for seed in range(12):
            label = blob(96, seed)
            drawn = a.draw(profiles.STROKE_POSITIVE, label, seed=seed).annotation == 1
            cover.append((drawn & (label == 1)).sum() / label.sum())
            precision.append((label[drawn] == 1).mean())
        assert 0.15 < np.median(cover) <= 0.3
        assert np.mean(precision) > 0.89

    def test_digits(self):
        raw = gzip.decompress((real("MNIST") / "t10k-images-idx3-ubyte.gz").read_bytes())
        digits = (np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)[:300] > 127).astype(np.uint8)
        for profile, expected in (
            (profiles.MNIST_MILD_POSITIVE, 0.48),
            (profiles.MNIST_MILD_NEGATIVE, 0.30),
            (profiles.MNIST_HEAVY_POSITIVE, 0.33),
            (profiles.MNIST_HEAVY_NEGATIVE, 0.20),
            (profiles.DHE_OVER, 0.39),
            (profiles.DHE_UNDER, 0.49),
            (profiles.DHE_WRONG, 0.34),
        ):
            found = np.mean([target_iou(profile, digit, seed) for seed, digit in enumerate(digits)])
            assert found == pytest.approx(expected, abs=0.015)

    def test_vessels_at_half_resolution(self):
        folder = real("LES-AV")
        files = sorted((folder / "vessel-segmentations").glob("*.png"))
        assert len(files) == 22
        grades = {"coarse_positive": [], "coarse_negative": []}
        for seed, file in enumerate(files):
            label = (np.asarray(Image.open(file)) > 0)[::2, ::2].astype(np.uint8)
            inside = np.asarray(Image.open(folder / "masks" / f"{file.stem}_mask.gif"))[::2, ::2] > 0
            for name, found in grades.items():
                found.append(target_iou(profiles.PROFILES[name], label, seed, inside))
        for found in grades.values():
            assert 0.55 <= np.mean(found) <= 0.60

    def test_strokes_on_vessels_are_wider_than_vessels(self):
        files = sorted((real("LES-AV") / "vessel-segmentations").glob("*.png"))[:4]
        labels = [(np.asarray(Image.open(file)) > 0)[::2, ::2].astype(np.uint8) for file in files]
        drawn = [a.draw(profiles.STROKE_POSITIVE, label, seed=i).annotation == 1 for i, label in enumerate(labels)]
        denied = [a.draw(profiles.STROKE_NEGATIVE, label, seed=i).annotation == 1 for i, label in enumerate(labels)]
        assert 0.47 <= np.mean([label[d].mean() for label, d in zip(labels, drawn, strict=True)]) <= 0.57
        assert np.mean([1 - label[d].mean() for label, d in zip(labels, denied, strict=True)]) > 0.97
        assert np.mean([d.sum() / (1 - label).sum() for label, d in zip(labels, denied, strict=True)]) < 0.045


class TestPage:
    """`examples/annotations.md` and its picture keep up with the code."""

    folder = Path(__file__).parents[2] / "examples"

    def test_names_every_annotator_and_operation(self):
        page = (self.folder / "annotations.md").read_text(encoding="utf-8")
        for name in profiles.PROFILES:
            assert f"`{name}`" in page
        masks = (
            thin,
            thicken,
            smooth_field,
            swell,
            fracture,
            shrink_to_ratio,
            polygonize,
            skeleton,
            scribble,
            complement,
        )
        for operation in masks:
            assert f"`{operation.__name__}(" in page

    def test_its_code_runs(self):
        page = (self.folder / "annotations.md").read_text(encoding="utf-8")
        names: dict[str, object] = {}
        for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(code, names)
        assert (names["again"] == names["annotation"]).all()
        assert names["drawn"]["positive"].shape == (2, 64, 64)
        assert names["five"].shape == (5, 64, 64)
