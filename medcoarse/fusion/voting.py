"""Mean label and majority vote: every annotator counts alike.

Where nobody said anything, soft labels are 0 for all classes (their sum over classes tells: 1 or 0) and hard labels
255. Annotators are label maps ``(B, R, *S)``, 255 where one of them said nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medcoarse.confusion import UNLABELED
from medcoarse.fusion._votes import check_annotations

TIES = ("unlabeled", "lowest", "random")
"""What becomes of a voxel with several best classes."""


def vote_counts(annotations: Tensor, num_classes: int) -> Tensor:
    """Number of annotators who said each class: ``n_l(x) = #{r : D_r(x) = l}``.

    Args:
        annotations: label maps ``(B, R, *S)``, 255 where an annotator said nothing.
        num_classes: L.

    Returns:
        ``(B, L, *S)``, uint8, or int32 for more than 255 annotators.

    Raises:
        ValueError: a missing or empty axis, or a value that is no class.

    Example:
        >>> vote_counts(torch.tensor([[[0, 1, 255], [1, 1, 255]]]), num_classes=2)
        tensor([[[1, 0, 0],
                 [1, 2, 0]]], dtype=torch.uint8)
    """
    annotations = check_annotations(annotations, num_classes)
    dtype = torch.uint8 if annotations.shape[1] < 2**8 else torch.int32
    shape = (len(annotations), num_classes, *annotations.shape[2:])
    counts = torch.zeros(shape, dtype=dtype, device=annotations.device)
    for said in annotations.unbind(1):
        for k in range(num_classes):
            counts[:, k] += said == k
    return counts


def mean_label(annotations: Tensor, num_classes: int) -> Tensor:
    """Share of the annotators who said each class: ``t_l(x) = n_l(x) / sum_k n_k(x)``.

    Args:
        annotations: label maps ``(B, R, *S)``, 255 where an annotator said nothing.
        num_classes: L.

    Returns:
        float32 ``(B, L, *S)``, sums to 1 over classes; 0 for all classes where nobody said anything.

    Raises:
        ValueError: a missing or empty axis, or a value that is no class.

    Example:
        >>> mean_label(torch.tensor([[[0, 1, 255], [1, 1, 255]]]), num_classes=2)
        tensor([[[0.5000, 0.0000, 0.0000],
                 [0.5000, 1.0000, 0.0000]]])
    """
    counts = vote_counts(annotations, num_classes)
    return counts / counts.sum(1, keepdim=True, dtype=torch.int32).clamp_min(1)


def majority_vote(
    annotations: Tensor, num_classes: int, ties: str = "unlabeled", generator: torch.Generator | None = None
) -> Tensor:
    """The class that most annotators said.

    Args:
        annotations: label maps ``(B, R, *S)``, 255 where an annotator said nothing.
        num_classes: L.
        ties: several classes said equally often become ``"unlabeled"`` (255), the ``"lowest"`` of them, or one of them
            at ``"random"``.
        generator: source of randomness for ``"random"``.

    Returns:
        uint8 ``(B, 1, *S)``; 255 where nobody said anything.

    Raises:
        ValueError: a missing or empty axis, a value that is no class, or an unknown rule for ties.

    Example:
        >>> annotations = torch.tensor([[[0, 1, 0, 255], [0, 1, 1, 255], [1, 1, 255, 255]]])
        >>> majority_vote(annotations, num_classes=2)
        tensor([[[  0,   1, 255, 255]]], dtype=torch.uint8)
    """
    return hard_label(vote_counts(annotations, num_classes), ties, generator)


def hard_label(scores: Tensor, ties: str = "lowest", generator: torch.Generator | None = None) -> Tensor:
    """The class with the largest score: votes, or the soft label of any method of fusion.

    Args:
        scores: ``(B, L, *S)``, not negative; 0 for all classes where nobody said anything.
        ties: several best classes become ``"unlabeled"`` (255), the ``"lowest"`` of them, or one of them at
            ``"random"``.
        generator: source of randomness for ``"random"``, on the device of the scores.

    Returns:
        uint8 ``(B, 1, *S)``; 255 where all scores are 0.

    Raises:
        ValueError: an unknown rule for ties.

    Example:
        >>> hard_label(torch.tensor([[[0.2, 0.5, 0.0], [0.8, 0.5, 0.0]]]))
        tensor([[[  1,   0, 255]]], dtype=torch.uint8)
    """
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(map(repr, TIES))}, got {ties!r}")
    best = scores.amax(1, keepdim=True)
    is_best = scores == best
    label = is_best.to(torch.uint8).argmax(1, keepdim=True).to(torch.uint8)  # the first one
    if ties != "lowest":
        tied = is_best.sum(1, keepdim=True) > 1
        label[tied] = UNLABELED if ties == "unlabeled" else _drawn(is_best, tied, generator)
    return label.masked_fill_(best == 0, UNLABELED)


def _drawn(is_best: Tensor, tied: Tensor, generator: torch.Generator | None) -> Tensor:
    """One of the best classes at every tied voxel, all equally likely; ``(voxels,)`` uint8."""
    candidates = is_best.movedim(1, -1)[tied[:, 0]].float()
    if len(candidates) == 0:
        return candidates.new_empty(0, dtype=torch.uint8)
    return torch.multinomial(candidates, 1, generator=generator).squeeze(1).to(torch.uint8)
