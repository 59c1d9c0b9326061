"""What to annotate next: images after which every class has been seen in nearly as many as any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medcoarse.confusion import UNLABELED


def class_content(label: Tensor, num_classes: int) -> Tensor:
    """Share of an image that each class takes up.

    Args:
        label: ``(1, *S)`` or ``(B, 1, *S)`` flattened to any shape, e.g. a network's segmentation; 255 is left out.
        num_classes: L.

    Returns:
        float64 ``(L,)``, sums to 1; 0 everywhere if all is 255.

    Example:
        >>> class_content(torch.tensor([[0, 0, 2, 255]]), 3)
        tensor([0.6667, 0.0000, 0.3333], dtype=torch.float64)
    """
    counts = torch.bincount(label[label != UNLABELED].flatten().long(), minlength=num_classes).double()
    return counts / counts.sum().clamp_min(1)


def balanced_choice(
    content: ArrayLike, number: int, drawn: ArrayLike | None = None, least: float = 0.0, seed: int = 0
) -> list[int]:
    """Choose images so that every class is in nearly equally many.

    One image after the other: of the classes that are still to be had, the one in the fewest images so far is looked
    for, of several the one that fewest images are left of. Among the images that show it the one is taken that leaves
    the counts of all classes least uneven (smallest variance), then the one with the largest share of that class, then
    one at random.

    Args:
        content: ``(N, L)``, share of each class in each image of the pool, e.g. by :func:`class_content` of what a
            model that was trained on some images says of the others.
        number: how many to choose, at most N.
        drawn: ``(L,)``, in how many images that are annotated already each class is; ``None`` for none.
        least: a class is in an image if its share is above it; a little above 0 keeps out a model's specks.
        seed: settles draws.

    Returns:
        Positions in the pool, in the order of choice. Images that show no class at all come last.

    Raises:
        ValueError: content that is no table, more images than there are, or counts of another length.

    Source: Das et al. (WACV 2023), sampling by a model's estimate of the classes; how images are found that make the
        counts nearly equal is not said there, so the greedy rule is ours.

    Example:
        >>> content = [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0.6, 0.3, 0.1]]
        >>> balanced_choice(content, 2)  # the one with the rarest class comes first
        [3, 2]
    """
    shares = np.asarray(content, dtype=np.float64)
    if shares.ndim != 2:
        raise ValueError(f"content must be a table (images, classes), got shape {shares.shape}")
    if not 0 <= number <= len(shares):
        raise ValueError(f"number must be from 0 to the {len(shares)} images of the pool, got {number}")
    counts = np.zeros(shares.shape[1]) if drawn is None else np.array(drawn, dtype=np.float64)
    if counts.shape != (shares.shape[1],):
        raise ValueError(f"drawn must count {shares.shape[1]} classes, got shape {counts.shape}")
    shown = shares > least
    shares = shares + 1e-9 * np.random.default_rng(seed).random((len(shares), 1))  # below any pixel's share
    left = np.ones(len(shares), dtype=bool)
    chosen: list[int] = []
    for _ in range(number):
        chosen.append(_next(shares, shown, left, counts))
        left[chosen[-1]] = False
        counts = counts + shown[chosen[-1]]
    return chosen


def _next(shares: NDArray[Any], shown: NDArray[Any], left: NDArray[Any], counts: NDArray[Any]) -> int:
    """The image to take now."""
    remaining = shown[left].sum(0)
    if not remaining.any():
        return int(np.flatnonzero(left)[0])
    rarest = int(np.lexsort((remaining, np.where(remaining > 0, counts, np.inf)))[0])
    candidates = np.flatnonzero(left & shown[:, rarest])
    uneven = (counts + shown[candidates]).var(1).round(9)
    return int(candidates[np.lexsort((-shares[candidates, rarest], uneven))[0]])


def uniform_choice(size: int, number: int, seed: int = 0) -> list[int]:
    """What balance is compared with: images of the pool at random.

    Example:
        >>> sorted(uniform_choice(3, 3))
        [0, 1, 2]
    """
    if not 0 <= number <= size:
        raise ValueError(f"number must be from 0 to the {size} images of the pool, got {number}")
    return [int(n) for n in np.random.default_rng(seed).permutation(size)[:number]]


def images_per_class(content: ArrayLike, chosen: Sequence[int], least: float = 0.0) -> list[int]:
    """In how many of the chosen images each class is.

    Example:
        >>> images_per_class([[1, 0], [0.5, 0.5]], [0, 1])
        [2, 1]
    """
    shown = np.asarray(content, dtype=np.float64)[list(chosen)] > least
    return [int(n) for n in shown.sum(0)]
