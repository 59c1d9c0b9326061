"""Distances between sets of label maps: against exact fractions, laws, and the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcoarse import distributions
from medcoarse.distributions import generalized_energy_distance, overlap_counts, pairwise_distance
from medcoarse.metrics import confusion_counts, dice, iou
from tests.reference import distribution_reference as reference

NAN, U = math.nan, 255
CASES = [((7, 5), 2), ((4, 3, 5), 3), ((1, 1), 2), ((3, 1, 1), 4), ((6, 5), 19)]
OPTIONS = [("dice", False), ("iou", False), ("dice", True)]


def sets(size: tuple[int, ...], num_classes: int, n: int = 3, m: int = 4, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Two sets for two images: with unknown pixels, an absent class, a member who said nothing, one all background."""
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(0, num_classes, (2, k, *size)) for k in (n, m))
    first[0, 0][first[0, 0] == num_classes - 1] = 0
    second[0][second[0] == num_classes - 1] = 0
    second[rng.random(second.shape) < 0.2] = U
    second[1, 0], second[0, 1] = U, 0
    return first, second, rng.random((2, 1, *size)) < 0.8


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(a) for a in arrays]


def same(actual: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(
        actual, torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-12, atol=1e-12
    )


class TestPairs:
    @pytest.mark.parametrize(("size", "num_classes"), CASES)
    @pytest.mark.parametrize(("overlap", "background"), OPTIONS)
    @pytest.mark.parametrize("masked", [False, True])
    def test_equals_the_reference(self, size, num_classes, overlap, background, masked) -> None:
        first, second, mask = sets(size, num_classes)
        expected = [
            [
                [reference.distance(a, b, num_classes, overlap, background, mask[i, 0] if masked else None) for b in y]
                for a in x
            ]
            for i, (x, y) in enumerate(zip(first, second, strict=True))
        ]
        numbers = [[[NAN if d is None else float(d) for d in row] for row in image] for image in expected]
        x, y, inside = tensors(first, second, mask)
        same(pairwise_distance(x, y, num_classes, overlap, background, inside if masked else None), numbers)

    def test_rule_for_absent_classes(self) -> None:
        nothing, something = torch.tensor([[[0, 0, 0]]]), torch.tensor([[[0, 0, 2]]])
        for overlap in ("dice", "iou"):
            assert pairwise_distance(nothing, nothing, 3, overlap).item() == 0  # neither has class 1 or 2
            assert pairwise_distance(nothing, something, 3, overlap).item() == 0.5  # class 1: 0, class 2: 1
            assert pairwise_distance(something, nothing, 3, overlap).item() == 0.5

    def test_is_one_minus_the_score_of_a_count_table(self) -> None:
        rng = np.random.default_rng(3)
        x, y = tensors(*rng.integers(0, 3, (2, 2, 1, 9, 8)))
        counts = confusion_counts(x, y, 3)
        for overlap, score in (("dice", dice), ("iou", iou)):
            expected = 1 - score(counts)[:, 1:].mean(-1)
            torch.testing.assert_close(pairwise_distance(x, y, 3, overlap)[:, 0, 0], expected)

    @pytest.mark.parametrize("numbers", [1, 40, 1000])
    def test_blocks_change_nothing_and_bound_the_memory(self, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
        x, y, mask = tensors(*sets((9, 11), 3))
        expected = overlap_counts(x, y, 3, mask)
        sizes = []
        plain = distributions._block_counts

        def watched(one: torch.Tensor, other: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, ...]:
            sizes.append((len(one) + len(other)) * num_classes * one.shape[1])
            return plain(one, other, num_classes)

        monkeypatch.setattr(distributions, "_BLOCK_NUMBERS", numbers)
        monkeypatch.setattr(distributions, "_block_counts", watched)
        for a, b in zip(overlap_counts(x, y, 3, mask), expected, strict=True):
            assert a.dtype == torch.int64
            assert torch.equal(a, b)
        assert max(sizes) <= max(numbers, 7 * 3)  # at least one pixel of seven members and three classes

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
    def test_any_type_and_layout(self, dtype: torch.dtype) -> None:
        x, y, _ = tensors(*sets((6, 5), 3))
        expected = pairwise_distance(x, y, 3)
        turned = [MetaTensor(a.to(dtype).transpose(2, 3).contiguous()).transpose(2, 3) for a in (x, y)]
        found = pairwise_distance(*turned, 3)
        assert type(found) is torch.Tensor
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())

    def test_bool_masks_are_label_maps_of_two_classes(self) -> None:
        x = torch.tensor([[[True, True, False]]])
        assert pairwise_distance(x, x & False, 2).item() == 1

    @pytest.mark.parametrize(
        ("first", "second", "num_classes", "message"),
        [
            (torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), 2, r"must agree in batch and space, got \(1, 2, 3\) and"),
            (torch.zeros(1, 2, 3), torch.zeros(2, 2, 3), 2, "must agree in batch and space"),
            (torch.zeros(1, 3), torch.zeros(1, 3), 2, r"first must be \(B, N, \*S\), one channel a label map, got"),
            (torch.zeros(1, 1, 3), torch.full((1, 1, 3), 2), 2, "second must hold classes 0 .. 1 or 255, got 2; take"),
            (torch.full((1, 1, 3), 0.5), torch.zeros(1, 1, 3), 2, "first must hold classes 0 .. 1 or 255, got 0.5"),
            (torch.full((1, 1, 3), NAN), torch.zeros(1, 1, 3), 2, "first must hold classes 0 .. 1 or 255, got nan"),
            (torch.full((1, 1, 3), -1), torch.zeros(1, 1, 3), 2, "got -1"),
            (torch.zeros(1, 1, 3), torch.zeros(1, 1, 3), 1, r"num_classes must be in 2 .. 255, got 1; count"),
        ],
    )
    def test_errors(self, first, second, num_classes, message) -> None:
        with pytest.raises(ValueError, match=message):
            pairwise_distance(first, second, num_classes)

    def test_more_errors(self) -> None:
        x = torch.zeros(1, 2, 3)
        with pytest.raises(ValueError, match=r"mask must be \(1, 1, 3\) to match, got \(1, 3\)"):
            pairwise_distance(x, x, 2, mask=torch.ones(1, 3))
        with pytest.raises(ValueError, match="overlap must be 'dice' or 'iou', got 'jaccard'"):
            pairwise_distance(x, x, 2, "jaccard")  # type: ignore[arg-type]


class TestEnergy:
    @pytest.mark.parametrize(("size", "num_classes"), CASES)
    @pytest.mark.parametrize(("overlap", "background"), OPTIONS)
    @pytest.mark.parametrize("unbiased", [False, True])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_equals_the_reference(self, size, num_classes, overlap, background, unbiased, weighted) -> None:
        first, second, mask = sets(size, num_classes)
        v, w = ([[2, 1, 5], [0, 1, 1]], [[3, 0, 1, 1], [1, 1, 4, 1]]) if weighted else ([[1] * 3] * 2, [[1] * 4] * 2)
        expected = [
            reference.energy_distance(
                first[i], second[i], v[i], w[i], unbiased, num_classes, overlap, background, mask[i, 0]
            )
            for i in range(2)
        ]
        x, y, inside = tensors(first, second, mask)
        weights = [torch.tensor(one) for one in (v, w)] if weighted else [None, None]
        found = generalized_energy_distance(x, y, num_classes, overlap, background, *weights, inside, unbiased)
        same(found, expected)

    @pytest.mark.parametrize("size", [(7, 5), (3, 4, 5)])
    @pytest.mark.parametrize("overlap", ["dice", "iou"])
    def test_identical_sets_have_distance_zero(self, size: tuple[int, ...], overlap: str) -> None:
        x, y, _ = tensors(*sets(size, 3))
        for one in (x, y):
            assert torch.equal(generalized_energy_distance(one, one, 3, overlap), torch.zeros(2, dtype=torch.float64))
            turned = generalized_energy_distance(one, one.flip(1), 3, overlap)
            assert turned.abs().max() < 1e-15

    def test_symmetric_and_blind_to_order_and_repetition(self) -> None:
        x, y, _ = tensors(*sets((7, 5), 3))
        y = y.where(y != U, 0)
        expected = generalized_energy_distance(x, y, 3)
        assert (expected > 0).all()
        same(generalized_energy_distance(y, x, 3), expected.tolist())
        same(generalized_energy_distance(x.flip(1), y[:, [2, 0, 1, 3]], 3), expected.tolist())
        same(generalized_energy_distance(x.repeat(1, 2, 1, 1), y, 3), expected.tolist())
        same(generalized_energy_distance(x.flip(3), y.flip(3), 3), expected.tolist())

    def test_weights_are_repetitions(self) -> None:
        x, y, _ = tensors(*sets((7, 5), 3))
        repeated = generalized_energy_distance(x[:, [0, 1, 1, 1]], y, 3)
        same(generalized_energy_distance(x, y, 3, segmentation_weights=torch.tensor([1, 3, 0])), repeated.tolist())
        tenth = torch.tensor([[0.1, 0.3, 0.0]] * 2, dtype=torch.float64)
        same(generalized_energy_distance(x, y, 3, segmentation_weights=tenth), repeated.tolist())

    def test_one_against_one_is_twice_their_distance(self) -> None:
        x, y, _ = tensors(*sets((7, 5), 3))
        found = generalized_energy_distance(x[:, :1], y[:, 1:2], 3)
        same(found, (2 * pairwise_distance(x[:, :1], y[:, 1:2], 3)).flatten().tolist())

    def test_who_said_nothing_has_no_part(self) -> None:
        x, y, _ = tensors(*sets((7, 5), 3))
        more = torch.cat([y, torch.full_like(y[:, :2], U)], 1)
        for unbiased in (False, True):
            expected = generalized_energy_distance(x, y, 3, unbiased=unbiased)
            same(generalized_energy_distance(x, more, 3, unbiased=unbiased), expected.tolist())
        nobody = generalized_energy_distance(x, torch.full_like(y, U), 3)
        assert nobody.isnan().all()

    def test_unbiased_needs_two_of_each(self) -> None:
        x, y, _ = tensors(*sets((7, 5), 3))
        assert generalized_energy_distance(x[:, :1], y, 3, unbiased=True).isnan().all()
        assert generalized_energy_distance(x[:1, :2], y[:1, 1:3], 3, unbiased=True).isfinite().all()

    def test_unbiased_is_zero_on_average_where_the_distributions_agree(self) -> None:
        rng = torch.Generator().manual_seed(0)
        x = (torch.rand((400, 5, 30), generator=rng) < 0.4).long()
        unbiased, biased = (
            generalized_energy_distance(x[:, :2], x[:, 2:], 2, unbiased=choice) for choice in (True, False)
        )
        assert abs(unbiased.mean().item()) < 3 * unbiased.std().item() / 20
        assert biased.mean() > 0.2  # the spread of two and of three, counted with each member's distance from itself

    @pytest.mark.parametrize(
        ("weights", "got"), [([1.0, -1.0, 1.0], "-1.0"), ([1.0, NAN, 1.0], "nan"), ([1.0], r"\(1,\)")]
    )
    def test_errors_of_weights(self, weights: list[float], got: str) -> None:
        x, y, _ = tensors(*sets((7, 5), 3))
        with pytest.raises(ValueError, match=rf"segmentation_weights must be finite numbers >= 0 of shape.*{got}"):
            generalized_energy_distance(x, y, 3, segmentation_weights=torch.tensor(weights))
        with pytest.raises(ValueError, match=r"annotation_weights must be finite numbers >= 0 of shape \(4,\) or"):
            generalized_energy_distance(x, y, 3, annotation_weights=torch.tensor(weights))
