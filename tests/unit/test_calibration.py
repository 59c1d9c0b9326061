"""Calibration and proper scores: against plain loops, laws, and the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import CalibrationErrorMetric

from medcoarse import calibration
from medcoarse.calibration import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_table,
    scoring_sums,
)
from tests.cases import random_case
from tests.reference import distribution_reference as reference

CASES = [((7, 5), 2), ((4, 3, 5), 3), ((1, 1), 2), ((6, 5), 19)]


def case(size: tuple[int, ...], num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of two images, some of them 0 and 1, labels with unknown pixels, and a field of view."""
    _, label, mask = random_case(seed, size, num_classes)
    rng = np.random.default_rng(seed + 1)
    probs = np.moveaxis(rng.dirichlet([0.5] * num_classes, (2, *size)), -1, 1)
    sure = rng.random((2, *size)) < 0.2
    probs = np.where(sure[:, None], np.eye(num_classes)[1].reshape(1, -1, *[1] * len(size)), probs)
    return probs, label, mask


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(a) for a in arrays]


def same(actual: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(
        actual, torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-12, atol=1e-12
    )


class TestReliability:
    @pytest.mark.parametrize(("size", "num_classes"), CASES)
    @pytest.mark.parametrize("num_bins", [1, 4, 15])
    @pytest.mark.parametrize("class_index", [None, 0, 1])
    @pytest.mark.parametrize("masked", [False, True])
    def test_equals_the_reference(self, size, num_classes, num_bins, class_index, masked) -> None:
        probs, label, mask = case(size, num_classes)
        fields = [m[0] if masked else None for m in mask]
        expected = [
            reference.reliability(probs[b], label[b, 0], num_bins, class_index, fields[b]) for b in range(len(label))
        ]
        p, y, inside = tensors(probs, label, mask)
        table = reliability_table(p, y, num_bins, class_index, inside if masked else None)
        same(table, expected)
        same(expected_calibration_error(table), [reference.calibration_error(one) for one in expected])
        same(table[..., 0].sum(-1), [((label != 255) & (mask | (not masked)))[b].sum() for b in range(2)])

    def test_tables_of_parts_add_up_to_that_of_all(self) -> None:
        p, y, _ = tensors(*case((8, 6), 3))
        whole, upper, lower = (
            reliability_table(a, b) for a, b in ((p, y), (p[:, :, :3], y[:, :, :3]), (p[:, :, 3:], y[:, :, 3:]))
        )
        torch.testing.assert_close(upper + lower, whole)
        sums = [scoring_sums(a, b) for a, b in ((p, y), (p[:, :, :3], y[:, :, :3]), (p[:, :, 3:], y[:, :, 3:]))]
        torch.testing.assert_close(sums[1] + sums[2], sums[0])

    def test_bins_hold_their_lower_edge_and_the_last_one_1(self) -> None:
        p = torch.tensor([[0.0, 0.25, 0.49, 0.5, 0.75, 1.0]], dtype=torch.float64)
        table = reliability_table(torch.stack([1 - p, p], 1), torch.ones(1, 1, 6), num_bins=4, class_index=1)
        assert table[0, :, 0].tolist() == [1, 2, 1, 2]

    def test_a_calibrated_forecast_has_no_error_and_an_overconfident_one_its_excess(self) -> None:
        p = torch.full((1, 2, 10), 0.2, dtype=torch.float64)
        p[:, 1] = 0.8
        label = torch.tensor([[[1] * 8 + [0] * 2]])
        for class_index in (None, 0, 1):
            assert expected_calibration_error(reliability_table(p, label, class_index=class_index)).item() < 1e-15
        sure = torch.stack([torch.zeros(1, 10), torch.ones(1, 10)], 1)
        assert expected_calibration_error(reliability_table(sure, label)).item() == pytest.approx(0.2)

    @pytest.mark.parametrize("num_classes", [2, 4])
    def test_one_image_without_unknown_pixels_is_that_of_monai(self, num_classes: int) -> None:
        probs, label, _ = case((16, 12), num_classes, seed=3)
        probs = np.clip(probs, 0.013, None)  # away from the edges of bins, which MONAI gives to the lower one
        probs /= probs.sum(1, keepdims=True)
        p, y = tensors(probs[:1], np.where(label == 255, 0, label)[:1])
        one_hot = torch.nn.functional.one_hot(y[:, 0], num_classes).movedim(-1, 1)
        metric = CalibrationErrorMetric(num_bins=20, metric_reduction="none")
        metric(p, one_hot)
        ours = [expected_calibration_error(reliability_table(p, y, 20, k)).item() for k in range(num_classes)]
        assert metric.aggregate()[0].tolist() == pytest.approx(ours, abs=1e-6)


class TestScores:
    @pytest.mark.parametrize(("size", "num_classes"), CASES)
    @pytest.mark.parametrize("masked", [False, True])
    def test_equals_the_reference(self, size, num_classes, masked) -> None:
        probs, label, mask = case(size, num_classes)
        expected = [
            reference.brier_and_nll(probs[b], label[b, 0], mask[b, 0] if masked else None) for b in range(len(label))
        ]
        p, y, inside = tensors(probs, label, mask)
        sums = scoring_sums(p, y, inside if masked else None)
        same(brier_score(sums), [brier for brier, _ in expected])
        same(negative_log_likelihood(sums), [nll for _, nll in expected])

    def test_are_proper(self) -> None:
        """Of all constant forecasts the true frequency scores best."""
        label = torch.tensor([[[1] * 3 + [0] * 7]])
        for score in (brier_score, negative_log_likelihood):
            scores = []
            for q in (0.1, 0.2, 0.3, 0.4, 0.5):
                p = torch.full((1, 2, 10), q, dtype=torch.float64)
                p[:, 0] = 1 - q
                scores.append(score(scoring_sums(p, label)).item())
            assert min(scores) == scores[2]

    def test_bounds(self) -> None:
        right, label = torch.eye(2)[None], torch.tensor([[[0, 1]]])
        assert brier_score(scoring_sums(right, label)).item() == 0
        assert negative_log_likelihood(scoring_sums(right, label)).item() == 0
        wrong = right.flip(1)
        assert brier_score(scoring_sums(wrong, label)).item() == 2
        assert negative_log_likelihood(scoring_sums(wrong, label)).item() == math.inf

    def test_brier_is_the_squared_error_of_torch(self) -> None:
        p, y, _ = tensors(*case((8, 6), 3))
        y = y.where(y != 255, 0)
        one_hot = torch.nn.functional.one_hot(y[:, 0].long(), 3).movedim(-1, 1).double()
        expected = 3 * torch.nn.functional.mse_loss(p, one_hot)
        torch.testing.assert_close(brier_score(scoring_sums(p, y).sum(0)), expected)


class TestInput:
    def test_logits(self) -> None:
        rng = np.random.default_rng(0)
        logits, label = (
            torch.from_numpy(rng.normal(0, 4, (2, 3, 6, 5))),
            torch.from_numpy(rng.integers(0, 3, (2, 1, 6, 5))),
        )
        probs = logits.softmax(1)
        torch.testing.assert_close(scoring_sums(logits, label, softmax=True), scoring_sums(probs, label))
        torch.testing.assert_close(reliability_table(logits, label, softmax=True), reliability_table(probs, label))
        nll = negative_log_likelihood(scoring_sums(logits, label, softmax=True).sum(0))
        torch.testing.assert_close(nll, torch.nn.functional.cross_entropy(logits, label[:, 0]))
        far = torch.tensor([[[2000.0], [0.0]]])
        assert negative_log_likelihood(scoring_sums(far, torch.tensor([[[1]]]), softmax=True)).item() == 2000

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_low_precision_and_meta_tensors(self, dtype: torch.dtype) -> None:
        probs, label, mask = case((8, 6), 2)
        p, y, inside = tensors(probs, label.astype(np.float32), mask)
        p = p.to(dtype)
        p[:, 0] = 1 - p[:, 1]
        table = reliability_table(MetaTensor(p), MetaTensor(y), mask=MetaTensor(inside))
        assert type(table) is torch.Tensor
        assert table.dtype == torch.float64
        assert not table.requires_grad
        for b in range(2):
            expected = reference.reliability(p[b].double().numpy(), label[b, 0], 15, None, mask[b, 0])
            same(table[b], expected)

    def test_nothing_known(self) -> None:
        p, y = torch.full((2, 2, 3, 3), 0.5), torch.full((2, 1, 3, 3), 255)
        assert reliability_table(p, y).sum() == 0
        assert expected_calibration_error(reliability_table(p, y)).isnan().all()
        assert brier_score(scoring_sums(p, y)).isnan().all()
        assert negative_log_likelihood(scoring_sums(p, y).sum(0)).isnan()
        p[:] = math.nan  # where nothing is known, nothing is looked at
        assert reliability_table(p, y).sum() == 0

    @pytest.mark.parametrize("function", [reliability_table, scoring_sums])
    @pytest.mark.parametrize(
        ("probs", "label", "message"),
        [
            (torch.rand(1, 2, 4) + 1, torch.zeros(1, 1, 4), "probs must be >= 0 and sum to 1 .* pass softmax=True"),
            (torch.tensor([[[1.5], [-0.5]]]), torch.zeros(1, 1, 1), "got numbers from -0.5 to 1.5"),
            (torch.tensor([[[math.nan], [0.5]]]), torch.zeros(1, 1, 1), "probs holds NaN; the network has diverged"),
            (torch.full((1, 2, 4), 0.5), torch.zeros(1, 4), r"label must be \(1, 1, 4\) to match probs, got \(1, 4\)"),
            (torch.full((1, 2, 4), 0.5), torch.full((1, 1, 4), 2), "label must hold classes 0 .. 1 or 255, got 2"),
            (torch.full((1, 2, 4), 0.5), torch.full((1, 1, 4), -1), "label must hold classes 0 .. 1 or 255, got -1"),
            (torch.full((1, 2, 4), 0.5), torch.full((1, 1, 4), 0.5), "label must hold classes .* got 0.5"),
            (torch.ones(1, 1, 4), torch.zeros(1, 1, 4), r"\(B, L, \*S\) with L >= 2, got torch.float32 \(1, 1, 4\)"),
            (torch.ones(1, 2, 4).long(), torch.zeros(1, 1, 4), "probs must be floating point"),
        ],
    )
    def test_errors(self, function, probs, label, message) -> None:
        with pytest.raises(ValueError, match=message):
            function(probs, label)

    def test_more_errors(self) -> None:
        p, y = torch.full((1, 2, 4), 0.5), torch.zeros(1, 1, 4)
        with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
            reliability_table(p, y, num_bins=0)
        with pytest.raises(ValueError, match=r"class_index must be in 0 .. 1 or None for the largest, got 2"):
            reliability_table(p, y, class_index=2)
        with pytest.raises(ValueError, match=r"mask must be \(1, 1, 4\) to match probs, got \(1, 1, 3\)"):
            scoring_sums(p, y, mask=torch.ones(1, 1, 3))
        with pytest.raises(ValueError, match=r"table must be floating point \(..., 3\), got torch.float32 \(2, 4\)"):
            expected_calibration_error(torch.zeros(2, 4))
        with pytest.raises(ValueError, match=r"sums must be floating point \(..., 3\), got torch.int64 \(3,\)"):
            brier_score(torch.zeros(3).long())


# --- temperature scaling


def said_by(probs, seed=0):
    """Labels drawn from the probabilities (1, L, N) themselves: what calibrated means."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(probs[0].T, 1, generator=generator).T[None]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_temperature_that_was_planted_is_recovered(temperature, num_classes):
    z = 2 * torch.randn(1, num_classes, 60_000, generator=torch.Generator().manual_seed(1))
    label = said_by(z.softmax(1))
    halves = [temperature * part for part in z.split([20_000, 40_000], -1)]  # of two sizes
    found = calibration.fit_temperature(halves, list(label.split([20_000, 40_000], -1)))
    assert found == pytest.approx(temperature, rel=0.03)


def slow_temperature(logits, label):
    """By looking at many: independent of slopes and bisections."""
    candidates = torch.logspace(-1.5, 1.5, 3001, base=10).tolist()
    return min(candidates, key=lambda t: float(torch.nn.functional.cross_entropy(logits / t, label)))


@pytest.mark.parametrize("seed", range(8))
def test_the_likelihood_never_gets_worse_on_what_it_was_fitted_to(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (0.1 + 4 * seed) * torch.randn(1, 3, 50, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (1, 1, 50), generator=generator)
    found = calibration.fit_temperature([logits], [label])
    before, after = (torch.nn.functional.cross_entropy(logits / t, label[:, 0]) for t in (1.0, found))
    assert after <= before
    slow = slow_temperature(logits, label[:, 0])
    if 0.04 < slow < 30:
        assert found == pytest.approx(slow, rel=2e-3)


def test_unlabeled_and_masked_pixels_do_not_count():
    logits = torch.randn(2, 2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 2, (2, 1, 4, 5, 3), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(label)
    label[:, :, :2], mask[..., 0] = 255, 0
    alone = calibration.fit_temperature([logits[:, :, 2:, :, 1:]], [label[:, :, 2:, :, 1:]])
    assert calibration.fit_temperature([logits], [label], [mask]) == pytest.approx(alone)


def test_where_no_temperature_is_best_it_stays_within_bounds():
    logits = torch.tensor([[[3.0, 3.0], [-3.0, -3.0]]])
    low, high = calibration.TEMPERATURES
    assert calibration.fit_temperature([logits], [torch.zeros(1, 1, 2)]) == pytest.approx(low, rel=1e-6)
    assert calibration.fit_temperature([logits], [torch.ones(1, 1, 2)]) == pytest.approx(high, rel=1e-6)
    assert calibration.fit_temperature([0 * logits], [torch.ones(1, 1, 2)]) == 1.0
    with pytest.raises(ValueError, match="no pixel whose class is known"):
        calibration.fit_temperature([logits], [torch.full((1, 1, 2), 255)])
