"""Scores worked out by hand, with the working in the comments."""

from __future__ import annotations

import math

import pytest
import torch

from medcoarse import metrics
from medcoarse.scores import reduce_scores

# Two images of twelve pixels each, three classes, 255 = unknown. Counted by eye, row = predicted, column = true:
#
#   first   pred 0 0 0 1   label 0 0 0 0      0 said: true 0, 0, 0, 1, 1     -> [3, 2, 0]
#                0 0 1 1         1 1 1 1      1 said: true 0, 1, 1, 2        -> [1, 2, 1]
#                2 2 1 2         2 2 2 255    2 said: true 2, 2; one unknown -> [0, 0, 2]
#
#   second  pred 0 0 0 0   label 0 0 0 0      0 said: true 0 six times       -> [6, 0, 0]
#                0 0 2 2         0 0 0 1      1 said: true 1 four times      -> [0, 4, 0]
#                1 1 1 1         1 1 1 1      2 said: true 0 and 1           -> [1, 1, 0]
PRED = torch.tensor([[[[0, 0, 0, 1], [0, 0, 1, 1], [2, 2, 1, 2]]], [[[0, 0, 0, 0], [0, 0, 2, 2], [1, 1, 1, 1]]]])
LABEL = torch.tensor([[[[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 255]]], [[[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]]])
COUNTS = torch.tensor([[[3, 2, 0], [1, 2, 1], [0, 0, 2]], [[6, 0, 0], [0, 4, 0], [1, 1, 0]]])
NAN = math.nan

# First image, eleven pixels:        TP FP FN TN
#   class 0                           3  2  1  5
#   class 1                           2  2  2  5
#   class 2                           2  0  1  8
# Second image, twelve pixels, without class 2 in the truth:
#   class 0                           6  0  1  5
#   class 1                           4  0  1  7
#   class 2                           0  2  0 10
BY_HAND = {
    "iou": [[3 / 6, 2 / 6, 2 / 3], [6 / 7, 4 / 5, NAN]],
    "dice": [[6 / 9, 4 / 8, 4 / 5], [12 / 13, 8 / 9, NAN]],
    "sensitivity": [[3 / 4, 2 / 4, 2 / 3], [6 / 7, 4 / 5, NAN]],
    "specificity": [[5 / 7, 5 / 7, 8 / 8], [5 / 5, 7 / 7, 10 / 12]],
    "precision": [[3 / 5, 2 / 4, 2 / 2], [6 / 6, 4 / 4, 0 / 2]],
    "accuracy": [[8 / 11, 7 / 11, 10 / 11], [11 / 12, 11 / 12, 10 / 12]],
}


def close(actual: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), equal_nan=True)


def test_counts() -> None:
    assert torch.equal(metrics.confusion_counts(PRED, LABEL, num_classes=3), COUNTS)


def test_rows_are_what_was_said_and_columns_what_is_true() -> None:
    """Three background pixels called vessel stand in row 1, column 0, as in the annotators' matrices."""
    counts = metrics.confusion_counts(torch.ones(1, 1, 3), torch.zeros(1, 1, 3), num_classes=2)
    assert counts.tolist() == [[[0, 0], [3, 0]]]


@pytest.mark.parametrize("metric", list(BY_HAND))
def test_scores_of_each_class(metric: str) -> None:
    close(metrics.SCORES[metric](COUNTS), BY_HAND[metric])


def test_mean_iou_an_image_and_over_the_data_set() -> None:
    # First (1/2 + 1/3 + 2/3) / 3 = 1/2; second (6/7 + 4/5) / 2 = 29/35.
    close(metrics.mean_iou(COUNTS), [1 / 2, 29 / 35])
    # Summed: class 0 TP 9 FP 2 FN 2; class 1 TP 6 FP 2 FN 3; class 2 TP 2 FP 2 FN 1. (9/13 + 6/11 + 2/5) / 3.
    close(metrics.mean_iou(COUNTS.sum(0)), (9 / 13 + 6 / 11 + 2 / 5) / 3)
    # Without the background: first (1/3 + 2/3) / 2, second 4/5.
    close(metrics.mean_iou(COUNTS, include_background=False), [1 / 2, 4 / 5])


def test_one_number_of_both_images() -> None:
    close(reduce_scores(COUNTS, "iou", "image"), (1 / 2 + 29 / 35) / 2)
    close(reduce_scores(COUNTS, "dice", "image", class_index=2), 4 / 5)  # the second image has no say
    close(reduce_scores(COUNTS, "dice", "dataset", class_index=2), 4 / 7)  # but its false alarms count here
    close(metrics.pixel_accuracy(COUNTS), [7 / 11, 10 / 12])


def test_confusion_of_a_drawing() -> None:
    # The first prediction taken as a drawing: of four true 0 three were drawn 0; of four true 1 two were drawn 0 and
    # two 1; of three true 2 one was drawn 1 and two 2. On the second image class 2 is absent.
    cm = metrics.empirical_confusion(PRED, LABEL, num_classes=3)
    close(cm[0, 0], [[3 / 4, 2 / 4, 0], [1 / 4, 2 / 4, 1 / 3], [0, 0, 2 / 3]])
    close(cm[1, 0], [[6 / 7, 0, NAN], [0, 4 / 5, NAN], [1 / 7, 1 / 5, NAN]])


def test_undrawn_is_not_background() -> None:
    # A stroke over two vessel pixels, one of them background in truth; the other four pixels say nothing.
    drawn = torch.tensor([[[255, 255, 1, 1, 255, 255]]])
    label = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    assert metrics.annotation_counts(drawn, label, num_classes=2).tolist() == [[[[0, 0], [1, 1]]]]


def test_confusion_matrix_error() -> None:
    # Differences 0.1, -0.1 in the first column and 0.3, -0.3 in the second: squares 0.01, 0.01, 0.09, 0.09.
    # Both columns: sqrt(0.2 / 4) = 0.2236; the second alone: sqrt(0.18 / 2) = 0.3.
    estimated = torch.tensor([[0.9, 0.5], [0.1, 0.5]], dtype=torch.float64)
    true = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64)
    close(metrics.confusion_matrix_error(estimated, true), math.sqrt(0.05))
    close(metrics.confusion_matrix_error(estimated, true, present=torch.tensor([False, True])), 0.3)
    assert metrics.confusion_matrix_error(true, true) == 0


def test_mean_confusion_of_three_pixels() -> None:
    # p(drawn 1 | true 0) = 0.1, 0.2, 0.6 and p(drawn 1 | true 1) = 0.9, 0.5, 0.7 at three pixels that are 0, 0, 1.
    # Plain means 0.3 and 0.7. Where the class is: (0.1 + 0.2) / 2 = 0.15 and 0.7.
    said_1 = torch.tensor([[0.1, 0.2, 0.6], [0.9, 0.5, 0.7]], dtype=torch.float64)
    cm = torch.stack([1 - said_1, said_1])[None, None]
    close(metrics.mean_confusion(cm)[0, 0], [[0.7, 0.3], [0.3, 0.7]])
    close(metrics.mean_confusion(cm, torch.tensor([[[0, 0, 1]]]))[0, 0], [[0.85, 0.3], [0.15, 0.7]])
