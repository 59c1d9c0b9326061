"""Energy distance and calibration worked out by hand, with the working in the comments."""

from __future__ import annotations

import math

import pytest
import torch

from medcoarse.calibration import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_table,
    scoring_sums,
)
from medcoarse.distributions import generalized_energy_distance, pairwise_distance

U = 255
# Two segmentations and three annotations of six pixels, two classes; the third annotator left two pixels out.
#   s1 1 1 1 0 0 0     y1 1 1 0 0 0 0     1 - Dice:   y1        y2        y3
#   s2 1 1 1 1 0 0     y2 1 1 1 1 0 0        s1    1 - 4/5   1 - 6/7   1 - 4/5   (over the first four pixels: 3 and 2)
#                      y3 1 1 0 0 U U        s2    1 - 4/6     0       1 - 4/6   (4 and 2)
S = torch.tensor([[[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]])
Y = torch.tensor([[[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, U, U]]])
CROSS = [[1 / 5, 1 / 7, 1 / 5], [1 / 3, 0, 1 / 3]]
# s1 s2: 1 - 6/7. y1 y2: 1 - 4/6; y1 y3: 0; y2 y3: 1 - 4/6.
INNER_S = 1 / 7
INNER_Y = [1 / 3, 0, 1 / 3]


def test_pairs() -> None:
    torch.testing.assert_close(pairwise_distance(S, Y, 2)[0], torch.tensor(CROSS, dtype=torch.float64))
    # IoU: s1 y1 2/3, s1 y2 3/4, s2 y1 2/4
    iou = pairwise_distance(S, Y, 2, "iou")[0]
    expected = torch.tensor([[1 / 3, 1 / 4, 1 / 3], [1 / 2, 0, 1 / 2]], dtype=torch.float64)
    torch.testing.assert_close(iou, expected)


def test_energy_distance() -> None:
    cross = sum(map(sum, CROSS)) / 6
    # All ordered pairs: (s1 s2) and (s2 s1) of four; three pairs of annotators twice, of nine.
    biased = 2 * cross - 2 * INNER_S / 4 - 2 * sum(INNER_Y) / 9
    assert generalized_energy_distance(S, Y, 2).item() == pytest.approx(biased)
    unbiased = 2 * cross - INNER_S - sum(INNER_Y) / 3
    assert generalized_energy_distance(S, Y, 2, unbiased=True).item() == pytest.approx(unbiased)
    # Only s2 and y2 count, which are the same.
    weights = {"segmentation_weights": torch.tensor([0, 1]), "annotation_weights": torch.tensor([0, 2, 0])}
    assert generalized_energy_distance(S, Y, 2, **weights).item() == 0


def test_calibration() -> None:
    # Five pixels, the last one unknown. Confidence 0.9 right, 0.7 wrong, 0.6 right, 0.55 right.
    vessel = torch.tensor([[0.9, 0.3, 0.6, 0.45, 0.5]], dtype=torch.float64)
    probs, label = torch.stack([1 - vessel, vessel], 1), torch.tensor([[[1, 1, 1, 0, U]]])
    # Five bins, [0.4, 0.6): 0.55 of 1. [0.6, 0.8): 0.7 + 0.6, one hit of two. [0.8, 1]: 0.9 of 1.
    table = reliability_table(probs, label, num_bins=5)
    expected = [[0, 0, 0], [0, 0, 0], [1, 0.55, 1], [2, 1.3, 1], [1, 0.9, 1]]
    torch.testing.assert_close(table[0], torch.tensor(expected, dtype=torch.float64))
    assert expected_calibration_error(table).item() == pytest.approx((0.45 + 0.3 + 0.1) / 4)
    # The vessel's own probability: 0.3 in [0.2, 0.4) is a vessel, 0.45 in [0.4, 0.6) is none, 0.6 and 0.9 are.
    table = reliability_table(probs, label, num_bins=5, class_index=1)
    assert expected_calibration_error(table).item() == pytest.approx((0.7 + 0.45 + 0.4 + 0.1) / 4)
    sums = scoring_sums(probs, label)
    assert brier_score(sums).item() == pytest.approx(2 * (0.1**2 + 0.7**2 + 0.4**2 + 0.45**2) / 4)
    assert negative_log_likelihood(sums).item() == pytest.approx(-math.log(0.9 * 0.3 * 0.6 * 0.55) / 4)
