"""Slow distances between sets of label maps and calibration scores: loops over pixels, from the definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

NAN = float("nan")


def distance(
    first: np.ndarray,
    second: np.ndarray,
    num_classes: int,
    overlap: str,
    include_background: bool,
    mask: np.ndarray | None = None,
) -> Fraction | None:
    """Exact mean over classes of 1 - Dice or 1 - IoU of two label maps (*S); None if they share no pixel."""
    pixels = [p for p in np.ndindex(first.shape) if first[p] != 255 and second[p] != 255]
    pixels = [p for p in pixels if mask is None or mask[p]]
    if not pixels:
        return None
    terms = []
    for k in range(0 if include_background else 1, num_classes):
        a = {p for p in pixels if first[p] == k}
        b = {p for p in pixels if second[p] == k}
        if not a and not b:
            terms.append(Fraction(0))
        elif overlap == "dice":
            terms.append(1 - Fraction(2 * len(a & b), len(a) + len(b)))
        else:
            terms.append(1 - Fraction(len(a & b), len(a | b)))
    return sum(terms, Fraction(0)) / len(terms)


def energy_distance(
    first: np.ndarray,
    second: np.ndarray,
    first_weights: list[int],
    second_weights: list[int],
    unbiased: bool,
    num_classes: int,
    overlap: str,
    include_background: bool,
    mask: np.ndarray | None = None,
) -> float:
    """Energy distance of sets (N, *S) and (M, *S) of label maps with whole weights, in exact fractions."""

    def mean(a: np.ndarray, v: list[int], b: np.ndarray, w: list[int], skip_same: bool) -> Fraction | None:
        total, weight = Fraction(0), 0
        for i, one in enumerate(a):
            for j, other in enumerate(b):
                d = distance(one, other, num_classes, overlap, include_background, mask)
                if d is not None and not (skip_same and i == j):
                    total += v[i] * w[j] * d
                    weight += v[i] * w[j]
        return total / weight if weight else None

    cross = mean(first, first_weights, second, second_weights, False)
    inner = [mean(x, w, x, w, unbiased) for x, w in ((first, first_weights), (second, second_weights))]
    if cross is None or None in inner:
        return NAN
    return float(2 * cross - inner[0] - inner[1])


def _known(label: np.ndarray, mask: np.ndarray | None) -> list[tuple[int, ...]]:
    return [p for p in np.ndindex(label.shape) if label[p] != 255 and (mask is None or mask[p])]


def reliability(
    probs: np.ndarray, label: np.ndarray, num_bins: int, class_index: int | None, mask: np.ndarray | None = None
) -> list[list[float]]:
    """[pixels, summed probability, hits] of each bin, of probabilities (L, *S) and a label map (*S)."""
    table = [[0.0, 0.0, 0.0] for _ in range(num_bins)]
    for p in _known(label, mask):
        values = [float(probs[(k, *p)]) for k in range(len(probs))]
        k = values.index(max(values)) if class_index is None else class_index
        edges = [i / num_bins for i in range(1, num_bins)]
        row = table[sum(values[k] >= edge for edge in edges)]
        row[0] += 1
        row[1] += values[k]
        row[2] += int(label[p]) == k
    return table


def calibration_error(table: list[list[float]]) -> float:
    """Mean over pixels of the gap between mean probability and share of hits in the pixel's bin."""
    total = sum(n for n, _, _ in table)
    return sum(n / total * abs(p / n - hits / n) for n, p, hits in table if n) if total else NAN


def brier_and_nll(probs: np.ndarray, label: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
    """Mean Brier score and negative log-likelihood of probabilities (L, *S) against a label map (*S)."""
    brier, nll = [], []
    for p in _known(label, mask):
        values = [float(probs[(k, *p)]) for k in range(len(probs))]
        true = int(label[p])
        brier.append(sum((v - (k == true)) ** 2 for k, v in enumerate(values)))
        nll.append(-math.log(values[true]) if values[true] else math.inf)
    return (sum(brier) / len(brier), sum(nll) / len(nll)) if brier else (NAN, NAN)
