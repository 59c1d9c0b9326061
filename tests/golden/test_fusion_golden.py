"""Fusion worked out by hand, with the working in the comments."""

from __future__ import annotations

import torch

from medcoarse.fusion.spatial_staple import spatial_staple
from medcoarse.fusion.staple import staple
from medcoarse.fusion.voting import majority_vote, mean_label

# Two annotators, eight pixels: both say 1 on three, the first says 1 and the second 0 on one, both say 0 on four.
FIRST = [1, 1, 1, 1, 0, 0, 0, 0]
SECOND = [1, 1, 1, 0, 0, 0, 0, 0]
SAID = torch.tensor([[FIRST, SECOND]])

# Both are right with probability 0.8 at the start and both classes are equally likely, so that after one E step
#   W(1 | 1, 1) = 0.64 / (0.64 + 0.04) = 16 / 17,   W(1 | 1, 0) = 1 / 2,   W(1 | 0, 0) = 1 / 17.
POSTERIOR = [16 / 17] * 3 + [1 / 2] + [1 / 17] * 4
# All in all W(1) = 48/17 + 1/2 + 4/17 = 121/34 and W(0) = 8 - 121/34 = 151/34. The first said 1 where W(1) sums to
# 48/17 + 1/2 = 113/34, the second where it sums to 48/17 = 96/34; 0 was said where W(0) sums to 64/17 = 128/34 by the
# first and to 64/17 + 1/2 = 145/34 by the second.
SENSITIVITY = [113 / 121, 96 / 121]
SPECIFICITY = [128 / 151, 145 / 151]


def close(actual: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected))


def test_votes() -> None:
    close(mean_label(SAID, 2)[0, 1], [1, 1, 1, 0.5, 0, 0, 0, 0])
    assert majority_vote(SAID, 2).flatten().tolist() == [1, 1, 1, 255, 0, 0, 0, 0]


def test_one_iteration_of_staple() -> None:
    result = staple(SAID, 2, prior=[0.5, 0.5], initial_diagonal=0.8, max_iterations=1)
    close(result.probs[0, 1], POSTERIOR)
    close(result.cm[0, :, 1, 1], SENSITIVITY)
    close(result.cm[0, :, 0, 0], SPECIFICITY)
    close(result.cm[0, :, 0, 1], [8 / 121, 25 / 121])  # row 0, column 1: vessel drawn as background


def test_prior_is_the_mean_share_of_votes() -> None:
    close(staple(SAID, 2).prior[0], [9 / 16, 7 / 16])  # seven of sixteen votes


def test_prior_counts_a_pixel_once_however_many_looked_at_it() -> None:
    said = torch.tensor([[[1, 0, 255, 255], [1, 0, 0, 255], [1, 1, 255, 255]]])
    close(staple(said, 2).prior[0], [(0 + 2 / 3 + 1) / 3, (1 + 1 / 3 + 0) / 3])


def test_one_window_of_spatial_staple() -> None:
    """Three annotators agree but for one pixel of four, on which the last one is wrong; STAPLE is sure of that."""
    said = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]])[:, :, None]
    result = spatial_staple(said, 2, window_mm=2, bias=2.0, max_iterations=1, return_cm=True)
    torch.testing.assert_close(result.probs[0, 1, 0], torch.tensor([1.0, 1.0, 0.0, 0.0]), atol=1e-3, rtol=0)
    # Globally the last one finds one of two. Windows of two pixels hold pixels 0-1, 1-2, 2-3, and again 2-3 at the
    # border. Half of the image is of class 1, so the pull is 2 / 2 = 1: (1/2 + 1/2) / (1 + 1), (0 + 1/2) / (1/2 + 1),
    # (0 + 1/2) / (0 + 1).
    expected = torch.tensor([1 / 2, 1 / 3, 1 / 2, 1 / 2])
    torch.testing.assert_close(result.cm[0, 2, 1, 1, 0], expected, atol=1e-3, rtol=0)
