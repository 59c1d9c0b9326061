"""The benchmark's score in its own words, pixel sets and all: written from its definition, slow."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def mean_iou_by_definition(pairs: Iterable[tuple[np.ndarray, np.ndarray]], evaluated: Iterable[int]) -> float:
    """IoU = TP / (TP + FP + FN) of each class over all images together, mean over the classes that occur.

    TP, FP and FN are pixels of label maps (predicted, true). Pixels whose true label is not evaluated count for no
    class. A class that is neither true nor predicted anywhere has no score and is left out of the mean.
    """
    ids = list(evaluated)
    counts = {k: [0, 0, 0] for k in ids}
    for predicted, true in pairs:
        for p, t in zip(predicted.ravel().tolist(), true.ravel().tolist(), strict=True):
            if t not in counts:
                continue
            if p == t:
                counts[t][0] += 1
            else:
                counts[t][2] += 1
                if p in counts:
                    counts[p][1] += 1
    scores = [tp / (tp + fp + fn) for tp, fp, fn in counts.values() if tp + fp + fn]
    return float(np.mean(scores))
