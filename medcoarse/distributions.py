"""How well a set of segmentations matches a set of annotations of the same image, as pure functions.

Where annotators disagree, the truth is a distribution over label maps. A model that can give several segmentations is
judged by the distance between two distributions: what it gives and what the annotators drew.

Convention:
    A set is a tensor (B, N, *S) of label maps, one channel a member, with 255 where a member says nothing. Two members
    are compared on the pixels where both say something. Pairs are counted, not formed: no tensor is larger than a
    block of pixels of all members.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from medcoarse.confusion import UNLABELED

Overlap = Literal["dice", "iou"]

_BLOCK_NUMBERS = 1 << 22  # one-hot numbers held at a time, 16 MB in single precision, in which they count exactly


class OverlapCounts(NamedTuple):
    """Pixels of each pair of members and each class, on which both members say something."""

    intersection: Tensor
    """int64 (B, N, M, L): pixels that both give to the class."""
    first: Tensor
    """int64 (B, N, M, L): pixels that the first gives to the class."""
    second: Tensor
    """int64 (B, N, M, L): pixels that the second gives to the class."""


def overlap_counts(first: Tensor, second: Tensor, num_classes: int, mask: Tensor | None = None) -> OverlapCounts:
    """Pixels of every class in every pair of two sets of label maps.

    `intersection[b, n, m, k] = #{x : first_n(x) = k, second_m(x) = k}`, and the pixels of class k in `first_n` and in
    `second_m`, all three over `{x : first_n(x) != 255, second_m(x) != 255, mask(x)}`.

    Args:
        first: label maps (B, N, *S), whole numbers of any dtype, 255 where nothing is said.
        second: label maps (B, M, *S).
        num_classes: L, at least 2.
        mask: field of view (B, 1, *S); pixels where it is zero are left out.

    Returns:
        Three counts, each int64 (B, N, M, L).

    Raises:
        ValueError: shapes do not match, or a value is no class.

    Example:
        >>> counts = overlap_counts(torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[1, 0, 1, 255]]]), num_classes=2)
        >>> [count.flatten().tolist() for count in counts]  # background and foreground
        [[0, 1], [1, 2], [1, 2]]
    """
    first, second = (_checked(name, x, num_classes) for name, x in (("first", first), ("second", second)))
    if first.shape[0] != second.shape[0] or first.shape[2:] != second.shape[2:]:
        raise ValueError(
            f"first and second must agree in batch and space, got {tuple(first.shape)} and {tuple(second.shape)}; "
            "resample one to the other"
        )
    if mask is not None and mask.shape != (len(first), 1, *first.shape[2:]):
        raise ValueError(f"mask must be {(len(first), 1, *first.shape[2:])} to match, got {tuple(mask.shape)}")
    shape = (len(first), first.shape[1], second.shape[1], num_classes)
    counts = OverlapCounts(*(torch.zeros(shape, dtype=torch.int64, device=first.device) for _ in range(3)))
    for b in range(shape[0]):
        inside = slice(None) if mask is None else mask[b, 0].as_subclass(Tensor).flatten().to(first.device) != 0
        sets = first[b].flatten(1)[:, inside], second[b].flatten(1)[:, inside]
        block = max(1, _BLOCK_NUMBERS // (num_classes * max(1, shape[1] + shape[2])))
        for one, other in zip(*(torch.split(x, block, dim=1) for x in sets), strict=True):
            for total, part in zip(counts, _block_counts(one, other, num_classes), strict=True):
                total[b] += part
    return counts


def pairwise_distance(
    first: Tensor,
    second: Tensor,
    num_classes: int,
    overlap: Overlap = "dice",
    include_background: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Distance of every pair of two sets of label maps: the mean over classes of one minus Dice or IoU.

    `d(s, y) = mean_k (1 - 2 |s_k y_k| / (|s_k| + |y_k|))`, or with `|s_k y_k| / (|s_k| + |y_k| - |s_k y_k|)`. A class
    that neither has is no difference, 0; one that only one of them has is the largest, 1.

    Args:
        first: label maps (B, N, *S), 255 where nothing is said.
        second: label maps (B, M, *S).
        num_classes: L, at least 2.
        overlap: "dice" or "iou".
        include_background: whether class 0 takes part in the mean.
        mask: field of view (B, 1, *S).

    Returns:
        float64 (B, N, M) in [0, 1]; NaN for two that have no pixel in common.

    Raises:
        ValueError: as for `overlap_counts`; another overlap.

    Example:
        >>> first, second = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 0]]]), torch.tensor([[[1, 0, 0, 0]]])
        >>> pairwise_distance(first, second, num_classes=2).flatten()
        tensor([0.3333, 1.0000], dtype=torch.float64)
        >>> pairwise_distance(first, second, num_classes=2, overlap="iou").flatten()
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    if overlap not in ("dice", "iou"):
        raise ValueError(f"overlap must be 'dice' or 'iou', got {overlap!r}")
    counts = overlap_counts(first, second, num_classes, mask)
    both, sizes = counts.intersection.double(), (counts.first + counts.second).double()
    shared, possible = (2 * both, sizes) if overlap == "dice" else (both, sizes - both)
    distance = torch.where(sizes > 0, 1 - shared / possible, 0.0)
    distance = (distance if include_background else distance[..., 1:]).mean(-1)
    return torch.where(counts.first.sum(-1) > 0, distance, math.nan)


def generalized_energy_distance(
    segmentations: Tensor,
    annotations: Tensor,
    num_classes: int,
    overlap: Overlap = "dice",
    include_background: bool = False,
    segmentation_weights: Tensor | None = None,
    annotation_weights: Tensor | None = None,
    mask: Tensor | None = None,
    unbiased: bool = False,
) -> Tensor:
    """Squared generalized energy distance between a set of segmentations and a set of annotations of each image.

    `2 E d(S, Y) - E d(S, S') - E d(Y, Y')` with `d` of `pairwise_distance`; S and S' are drawn independently from the
    segmentations, Y and Y' from the annotations. By default all pairs take part, that of a member with itself too (the
    V-statistic): the sets themselves are taken for the two distributions, the distance of a set from itself is 0, and
    one segmentation alone is a distribution without spread. With `unbiased` the two inner means are over pairs of
    different members (the U-statistic): they estimate the spread of what the members were sampled from, whatever their
    number; the result can be below 0, and needs two of each. With weights that differ it is no longer unbiased.

    Annotators who said nothing about an image (255 everywhere) have no part in it. Pixels left out by one member only
    are missing from its own pairs only: give `mask` for what lies outside the field of view of all.

    Args:
        segmentations: label maps (B, N, *S).
        annotations: label maps (B, M, *S), 255 where nothing was drawn.
        num_classes: L, at least 2.
        overlap: "dice" or "iou".
        include_background: whether class 0 takes part in the distances.
        segmentation_weights: (N,) or (B, N), >= 0, of any sum; by default all alike.
        annotation_weights: (M,) or (B, M) likewise.
        mask: field of view (B, 1, *S).
        unbiased: leave out the pairs of a member with itself.

    Returns:
        float64 (B,); NaN where there is no pair to average.

    Raises:
        ValueError: as for `pairwise_distance`; weights of another shape, negative or not finite.

    Source: Szekely and Rizzo, Energy statistics, 2013; with 1 - IoU in Kohl et al., A Probabilistic U-Net, NeurIPS
        2018; DHE, experiments.
    Deviates: the code released with DHE does not give 0 for identical sets but 1.69.

    Example:
        >>> drawn = torch.tensor([[[1, 1, 0, 0], [1, 1, 1, 1]]])
        >>> generalized_energy_distance(drawn, drawn, num_classes=2)
        tensor([0.], dtype=torch.float64)
        >>> generalized_energy_distance(drawn[:, :1], drawn, num_classes=2)  # 2 (0 + 1/3) / 2 - 0 - (2/3) / 4
        tensor([0.1667], dtype=torch.float64)
    """
    sets = {"segmentation": (segmentations, segmentation_weights), "annotation": (annotations, annotation_weights)}
    (s, v), (y, w) = ((x, _weights(name, weights, x)) for name, (x, weights) in sets.items())

    def mean_distance(a: Tensor, a_weights: Tensor, b: Tensor, b_weights: Tensor, inner: bool) -> Tensor:
        distance = pairwise_distance(a, b, num_classes, overlap, include_background, mask)
        pairs = a_weights[:, :, None] * b_weights[:, None] * ~distance.isnan()
        if inner and unbiased:
            pairs = pairs * (1 - torch.eye(pairs.shape[1], dtype=pairs.dtype, device=pairs.device))
        return (pairs * distance.nan_to_num()).sum((1, 2)) / pairs.sum((1, 2))

    spread = mean_distance(s, v, s, v, inner=True) + mean_distance(y, w, y, w, inner=True)
    return 2 * mean_distance(s, v, y, w, inner=False) - spread


def _checked(name: str, labels: Tensor, num_classes: int) -> Tensor:
    """The label maps as uint8, without MONAI's meta data."""
    if not 2 <= num_classes <= UNLABELED:
        raise ValueError(f"num_classes must be in 2 .. {UNLABELED}, got {num_classes}; count the background as a class")
    labels = labels.detach().as_subclass(Tensor)
    if labels.ndim < 3:
        raise ValueError(f"{name} must be (B, N, *S), one channel a label map, got {tuple(labels.shape)}")
    wrong = ~((labels >= 0) & (labels < num_classes) | (labels == UNLABELED))
    if labels.is_floating_point():
        wrong |= labels != labels.round()
    if wrong.any():
        raise ValueError(
            f"{name} must hold classes 0 .. {num_classes - 1} or {UNLABELED}, got {labels[wrong][0].item():g}; take "
            "the argmax of network outputs first"
        )
    return labels.to(torch.uint8)


def _block_counts(first: Tensor, second: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three counts (N, M, L) of some pixels, of label maps (N, P) and (M, P)."""
    classes = torch.arange(num_classes, dtype=torch.uint8, device=first.device)[:, None, None]
    one, other = ((x == classes).float() for x in (first, second))  # (L, members, pixels)
    said_one, said_other = ((x != UNLABELED).float() for x in (first, second))
    products = one @ other.mT, one @ said_other.T, said_one @ other.mT
    both, in_first, in_second = (product.long().movedim(0, -1) for product in products)
    return both, in_first, in_second


def _weights(name: str, weights: Tensor | None, members: Tensor) -> Tensor:
    """Weights (B, members) in double precision."""
    shape = tuple(members.shape[:2])
    if weights is None:
        return torch.ones(shape, dtype=torch.float64, device=members.device)
    if tuple(weights.shape) not in (shape, shape[1:]) or not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError(
            f"{name}_weights must be finite numbers >= 0 of shape {shape[1:]} or {shape}, one a member, got "
            f"{tuple(weights.shape)} {weights.flatten()[:4].tolist()}"
        )
    return weights.as_subclass(Tensor).double().to(members.device).expand(shape)
