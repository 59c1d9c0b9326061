"""Slow, independent scores: plain loops over Python numbers, written from the definitions and never bent to fit."""

from __future__ import annotations

import itertools
import math

import numpy as np

NAN = float("nan")


def confusion_counts(
    pred: np.ndarray, label: np.ndarray, num_classes: int, mask: np.ndarray | None = None, ignore_index: int = 255
) -> list[list[list[int]]]:
    """Counts[b][predicted][true] of label maps (B, 1, *S), one voxel at a time."""
    table = [[[0] * num_classes for _ in range(num_classes)] for _ in range(len(label))]
    for b in range(len(label)):
        for position in itertools.product(*(range(n) for n in label.shape[2:])):
            if label[(b, 0, *position)] == ignore_index:
                continue
            if mask is not None and not mask[(b, 0, *position)]:
                continue
            table[b][int(pred[(b, 0, *position)])][int(label[(b, 0, *position)])] += 1
    return table


def argmax_map(scores: np.ndarray) -> np.ndarray:
    """Class with the largest score at each voxel, the lowest index on a tie: (B, L, *S) -> (B, 1, *S)."""
    out = np.zeros((len(scores), 1, *scores.shape[2:]), dtype=int)
    for b in range(len(scores)):
        for position in itertools.product(*(range(n) for n in scores.shape[2:])):
            values = [float(scores[(b, c, *position)]) for c in range(scores.shape[1])]
            out[(b, 0, *position)] = values.index(max(values))
    return out


def _ratio(a: float, b: float) -> float:
    return a / b if b else NAN


def class_scores(table: list[list[int]], c: int) -> dict[str, float]:
    """The six scores of class `c` from one table[predicted][true], from hits, false alarms, misses and the rest."""
    hit = false_alarm = miss = rest = 0
    for predicted, row in enumerate(table):
        for true, n in enumerate(row):
            if predicted == c and true == c:
                hit += n
            elif predicted == c:
                false_alarm += n
            elif true == c:
                miss += n
            else:
                rest += n
    absent = hit + miss == 0
    return {
        "iou": NAN if absent else hit / (hit + miss + false_alarm),
        "dice": NAN if absent else 2 * hit / (2 * hit + miss + false_alarm),
        "sensitivity": NAN if absent else hit / (hit + miss),
        "specificity": _ratio(rest, rest + false_alarm),
        "precision": _ratio(hit, hit + false_alarm),
        "accuracy": _ratio(hit + rest, hit + miss + false_alarm + rest),
    }


def mean(values: list[float]) -> float:
    """Mean of the numbers among `values`; NaN where there is none."""
    numbers = [v for v in values if not math.isnan(v)]
    return sum(numbers) / len(numbers) if numbers else NAN


def conditional_table(table: list[list[float]]) -> list[list[float]]:
    """table[observed][true] with each column divided by its sum; NaN in a column without counts."""
    size = len(table)
    sums = [sum(table[i][j] for i in range(size)) for j in range(size)]
    return [[_ratio(table[i][j], sums[j]) for j in range(size)] for i in range(size)]


def confusion_matrix_error(estimated: list[list[float]], true: list[list[float]], present: list[bool]) -> float:
    """Root of the mean squared difference over the entries of the columns that are present."""
    squares = [(estimated[i][j] - true[i][j]) ** 2 for i in range(len(true)) for j in range(len(true)) if present[j]]
    return math.sqrt(sum(squares) / len(squares)) if squares else NAN


def mean_confusion(cm: np.ndarray, label: np.ndarray) -> list[list[float]]:
    """Mean of cm (L, L, *S) over pixels, column j over those whose truth (*S) is j; NaN where there is none."""
    size = cm.shape[0]
    table = [[NAN] * size for _ in range(size)]
    for j in range(size):
        positions = [p for p in itertools.product(*(range(n) for n in label.shape)) if label[p] == j]
        for i in range(size):
            table[i][j] = mean([float(cm[(i, j, *p)]) for p in positions])
    return table


def drawing_errors(cm: np.ndarray, drawings: np.ndarray, label: np.ndarray) -> tuple[float, ...]:
    """(pooled, local) error of cm[observed][true] (L, L, *S) of one annotator, from drawings (N, *S) of one image."""
    size = len(cm)
    estimated, counted = np.zeros((size, size)), np.zeros((size, size))
    drawn_on, squares = [0] * size, []
    for position in itertools.product(*(range(n) for n in label.shape)):
        true = int(label[position])
        said = [int(drawing[position]) for drawing in drawings if drawing[position] != 255]
        if true == 255 or not said:
            continue
        for one in said:  # each drawn pixel of each drawing counts once
            counted[one, true] += 1
            estimated[:, true] += cm[(slice(None), true, *position)]
            drawn_on[true] += 1
        for _ in said:
            for i in range(size):
                squares.append((float(cm[(i, true, *position)]) - said.count(i) / len(said)) ** 2)
    columns = [t for t in range(size) if drawn_on[t]]
    pooled = [((estimated[i, t] - counted[i, t]) / drawn_on[t]) ** 2 for t in columns for i in range(size)]
    return tuple(math.sqrt(sum(s) / len(s)) if s else NAN for s in (pooled, squares))
