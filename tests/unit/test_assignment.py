"""Who drew what: balanced, reproducible, checked, and sampled without favour."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from medcoarse.assignment import (
    annotator_numbers,
    annotator_shares,
    assign_annotators,
    assignment_of,
    assignment_problems,
    image_weights,
    with_annotators,
)


def loads(assignment: list[list[int]], num_annotators: int) -> list[int]:
    return [sum(r in numbers for numbers in assignment) for r in range(num_annotators)]


class TestAssign:
    @pytest.mark.parametrize("num_images", [0, 1, 2, 7, 100])
    @pytest.mark.parametrize("num_annotators", [1, 2, 5, 13])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_everyone_gets_the_same_number_give_or_take_one(self, num_images, num_annotators, seed) -> None:
        for per_image in sorted({0, 1, 2, num_annotators - 1, num_annotators} & set(range(num_annotators + 1))):
            assignment = assign_annotators(num_images, num_annotators, per_image, seed)
            assert len(assignment) == num_images
            assert all(numbers == sorted(set(numbers)) and len(numbers) == per_image for numbers in assignment)
            drawn = loads(assignment, num_annotators)
            assert max(drawn) - min(drawn) <= 1
            assert sum(drawn) == num_images * per_image

    def test_a_number_for_each_image(self) -> None:
        wanted = [0, 1, 5, 2, 2, 3, 0, 1, 4, 2]
        assignment = assign_annotators(10, 5, wanted, seed=3)
        assert [len(numbers) for numbers in assignment] == wanted
        assert loads(assignment, 5) == [4] * 5

    def test_everyone_labels_everything(self) -> None:
        assert assign_annotators(3, 4, 4) == [[0, 1, 2, 3]] * 3

    def test_same_seed_same_result_and_another_seed_another_one(self) -> None:
        one, two, other = (assign_annotators(50, 5, 2, seed) for seed in (4, 4, 5))
        assert one == two != other

    def test_chance_favours_nobody_and_no_pair(self) -> None:
        pairs: dict[tuple[int, ...], int] = dict.fromkeys(itertools.combinations(range(4), 2), 0)
        first = np.zeros(4)
        for seed in range(300):
            assignment = assign_annotators(6, 4, 2, seed)
            first[assignment[0]] += 1
            for numbers in assignment:
                pairs[tuple(numbers)] += 1
        assert first / 300 == pytest.approx([0.5] * 4, abs=0.1)
        assert np.array(list(pairs.values())) / 1800 == pytest.approx([1 / 6] * 6, abs=0.03)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((-1, 2), "num_images and seed must be >= 0 and num_annotators >= 1, got num_images=-1"),
            ((3, 0), "num_annotators=0"),
            ((3, 2, 1, -1), "seed=-1"),
            ((3, 2, 3), r"per_image must be in 0 .. 2, one number for all or for each of 3 images, got 3"),
            ((3, 2, -1), r"per_image must be in 0 .. 2"),
            ((3, 2, [1, 2]), r"for each of 3 images, got \[1, 2\]"),
            ((3, 2, [1, 2, 3]), r"got \[1, 2, 3\]"),
        ],
    )
    def test_errors(self, arguments: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            assign_annotators(*arguments)


class TestLists:
    @pytest.mark.parametrize(
        "drew",
        [
            [3, 0],
            (0, 3),
            range(0, 4, 3),
            ["d", "a"],
            ["a", 3],
            np.array([3, 0]),
            np.array([True, False, False, True]),
            torch.tensor([0, 3]),
            torch.tensor([True, False, False, True]),
            [np.int64(3), np.int32(0)],
        ],
    )
    def test_any_way_to_say_it(self, drew: Any) -> None:
        assert annotator_numbers(drew, ["a", "b", "c", "d"]) == [0, 3]

    @pytest.mark.parametrize("drew", [[], (), np.array([], int), np.zeros(4, bool)])
    def test_nobody(self, drew: Any) -> None:
        assert annotator_numbers(drew, 4) == []

    @pytest.mark.parametrize(
        ("drew", "annotators", "message"),
        [
            ("Ada", ["Ada"], "annotators must list who drew the image, such as [0, 3], got 'Ada'"),
            (2, 4, "annotators must list who drew the image, such as [0, 3], got 2"),
            (None, 4, "annotators must list who drew the image, such as [0, 3], got None"),
            ([0, 4], 4, "annotators lists 4, but there are 4, numbered from 0"),
            ([-1], 4, "annotators must list numbers >= 0 or names, got -1"),
            ([1.0], 4, "annotators must list numbers >= 0 or names, got 1.0"),
            ([True, False], 2, "annotators must list numbers >= 0 or names, got True"),
            ([1, 2, 1], 4, "annotators lists 1 twice, got [1, 2, 1]"),
            (["Max", "Max"], ["Ada", "Max"], "annotators lists 'Max' twice, got ['Max', 'Max']"),
            (["Eva"], ["Ada", "Max"], "annotators names 'Eva', known are Ada, Max"),
            (["Eva"], 2, "annotators names 'Eva', but no names are known; pass the names of all annotators"),
            (np.ones(3, bool), 4, "annotators says yes or no 3 times, but there are 4"),
        ],
    )
    def test_errors(self, drew: Any, annotators: Any, message: str) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            annotator_numbers(drew, annotators)

    def test_into_a_datalist_and_back(self) -> None:
        items = [{"image": f"{i}.png"} for i in range(9)]
        assignment = assign_annotators(9, 3, 2)
        names = ["Ada", "Max", "Eva"]
        assert assignment_of(with_annotators(items, assignment), 3) == assignment
        named = with_annotators(items, assignment, names, "who")
        assert set(named[0]) == {"image", "who"}
        assert assignment_of(named, names, "who") == assignment
        assert assignment_of(items, names) == [[0, 1, 2]] * 9
        assert items == [{"image": f"{i}.png"} for i in range(9)]
        with pytest.raises(ValueError, match="must list the annotators of each of 9 items, got 8"):
            with_annotators(items, assignment[:-1])
        with pytest.raises(ValueError, match="annotators lists 2, but there are 2"):
            with_annotators(items[:1], [[2]], ["Ada", "Max"])


class TestProblems:
    def test_a_good_datalist_has_none(self) -> None:
        items = with_annotators([{}] * 6, assign_annotators(6, 3))
        for annotators in (3, None):
            assert list(assignment_problems({"training": items, "test": [{}, {}]}, annotators)) == []
        assert list(assignment_problems({"training": [{}]}, 3)) == []
        named = [{"annotators": ["Max"]}, {"annotators": ["Ada", "Max"]}]
        for names in (["Ada", "Max"], None):
            assert list(assignment_problems({"training": named}, names)) == []

    @pytest.mark.parametrize(
        ("items", "annotators", "expected"),
        [
            (
                [{"annotators": [0, 1]}, {}],
                2,
                ["a[1]: no 'annotators', which other items have; list who drew it, all of them if all did"],
            ),
            (
                [{"annotators": [0, 2]}, {"annotators": [1]}],
                2,
                ["a[0]: annotators lists 2, but there are 2, numbered from 0", "annotator 0 drew no image; correct"],
            ),
            ([{"annotators": ["Ada"]}], ["Ada", "Max"], ["annotator 'Max' drew no image; correct the datalist, or"]),
            ([{"annotators": [1, 1]}], None, ["a[0]: annotators lists 1 twice, got [1, 1]"]),
            ([{"annotators": ["Ada", "Ada"]}], None, ["a[0]: annotators lists 'Ada' twice"]),
            ([{"annotators": ["Ada", 1]}], None, ["a[0]: annotators mixes names and numbers, got ['Ada', 1]"]),
            ([{"annotators": "Ada"}], None, ["a[0]: annotators must list who drew the image, such as [0, 3], got"]),
            ([{"annotators": 3}], None, ["a[0]: annotators must list who drew the image, such as [0, 3], got 3"]),
            ([{"annotators": [0.5]}], None, ["a[0]: annotators must list numbers >= 0 or names, got 0.5"]),
        ],
    )
    def test_problems(self, items: Any, annotators: Any, expected: list[str]) -> None:
        found = list(assignment_problems({"a": items}, annotators))
        assert len(found) == len(expected)
        assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


class TestWeights:
    def slow_shares(self, assignment: list[list[int]], num_annotators: int, weights: Any) -> list[float]:
        seen = [0.0] * num_annotators
        for weight, numbers in zip(weights, assignment, strict=True):
            for r in numbers:
                seen[r] += weight
        return [s / sum(seen) for s in seen]

    @pytest.mark.parametrize("seed", range(4))
    def test_one_annotation_an_image_is_exact(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        drew = [[int(r)] for r in rng.choice(4, 50, p=[0.7, 0.2, 0.06, 0.04])] + [[r] for r in range(4)]
        weights = image_weights(drew, 4)
        assert weights.sum() == pytest.approx(1)
        assert annotator_shares(drew, 4, weights) == pytest.approx([0.25] * 4)
        assert np.ptp(annotator_shares(drew, 4)) > 0.3

    def test_by_hand(self) -> None:
        # n = (2, 2, 1): image 0 by 0: 1/2; image 1 by 0 and 1: (1/2 + 1/2) / 2; image 2 by 1 and 2: (1/2 + 1) / 2.
        drew = [[0], [0, 1], [1, 2], []]
        weights = image_weights(drew, 3)
        assert weights == pytest.approx(np.array([0.5, 0.5, 0.75, 0]) / 1.75)
        assert annotator_shares(drew, 3, weights) == pytest.approx(np.array([1, 1.25, 0.75]) / 3)
        assert annotator_shares(drew, 3) == pytest.approx([0.4, 0.4, 0.2])

    def test_everyone_drew_everything(self) -> None:
        drew = assign_annotators(7, 3, 3)
        assert image_weights(drew, 3) == pytest.approx([1 / 7] * 7)
        assert annotator_shares(drew, 3) == pytest.approx([1 / 3] * 3)

    def test_a_balanced_assignment_needs_hardly_any(self) -> None:
        for per_image in (1, 2, 3):
            drew = assign_annotators(60, 4, per_image)
            assert image_weights(drew, 4) == pytest.approx([1 / 60] * 60)

    def test_one_who_drew_nothing_has_no_share(self) -> None:
        drew = [[0], [0], [2]]
        weights = image_weights(drew, 3)
        assert weights.tolist() == [0.25, 0.25, 0.5]
        assert annotator_shares(drew, 3, weights).tolist() == [0.5, 0, 0.5]

    def test_shares_equal_the_definition(self) -> None:
        rng = np.random.default_rng(0)
        drew = [sorted(rng.choice(5, rng.integers(1, 6), replace=False).tolist()) for _ in range(30)]
        weights = rng.random(30)
        assert annotator_shares(drew, 5, weights) == pytest.approx(self.slow_shares(drew, 5, weights))
        assert annotator_shares(drew, 5) == pytest.approx(self.slow_shares(drew, 5, [1] * 30))

    def test_sampled_by_torch(self) -> None:
        drew = [[0]] * 30 + [[1]] * 9 + [[2]]
        generator = torch.Generator().manual_seed(0)
        sampler = WeightedRandomSampler(image_weights(drew, 3).tolist(), 6000, generator=generator)
        found = np.bincount([drew[image][0] for image in sampler], minlength=3) / 6000
        assert found == pytest.approx([1 / 3] * 3, abs=0.02)

    @pytest.mark.parametrize(
        ("function", "arguments", "message"),
        [
            (image_weights, ([[], []], 2), "nobody drew any of the images, so there is nothing to sample; check the"),
            (image_weights, ([], 2), "nobody drew any of the images"),
            (image_weights, ([[2]], 2), "annotators lists 2, but there are 2"),
            (annotator_shares, ([[0]], 2, [0.0]), "no annotation would be sampled; check the assignment and the weigh"),
            (annotator_shares, ([[0]], 2, [1.0, 1.0]), "weights must be one number >= 0 for each of 1 images"),
            (annotator_shares, ([[0]], 2, [-1.0]), "weights must be one number >= 0 for each of 1 images"),
            (annotator_shares, ([[0]], 2, [float("nan")]), "weights must be one number >= 0 for each of 1 images"),
        ],
    )
    def test_errors(self, function: Any, arguments: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            function(*arguments)
