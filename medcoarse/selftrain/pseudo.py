"""Pseudo labels: the class on which a network agrees with itself, written only where nobody drew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from medcoarse.confusion import UNLABELED


def agreement(views: Iterable[Tensor], threshold: float = 0.9) -> Tensor:
    """The class that all views of an image name, where their mean is sure of it.

    ``argmax z_1 = ... = argmax z_V = k`` and ``softmax(mean_v z_v)_k > threshold``, else 255.

    Args:
        views: logits ``(B, L, *S)`` of one image as seen in several ways, turned back to the same grid; they are looked
            at one after the other, so that a generator needs the memory of two.
        threshold: in [0, 1]; 0 asks for agreement alone.

    Returns:
        uint8 ``(B, 1, *S)``, classes or 255.

    Raises:
        ValueError: no view, a threshold out of range, or more classes than a label map can hold.

    Source: Das et al. (WACV 2023), pseudo labels of six views, threshold 0.9.

    Example:
        >>> first = torch.tensor([[[3.0, 3.0, 0.1], [0.0, 0.0, 0.0]]])  # two classes, three pixels
        >>> second = torch.tensor([[[3.0, -1.0, 0.1], [0.0, 0.0, 0.0]]])
        >>> agreement([first, second])  # sure, contradicts itself, not sure: 1 / (1 + exp(-0.1)) = 0.52
        tensor([[[  0, 255, 255]]], dtype=torch.uint8)
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    remaining = iter(views)
    view = next(remaining, None)
    if view is None:
        raise ValueError("agreement needs at least one view, got none")
    total, count, first = view.float().clone(), 1, view.argmax(1, keepdim=True)
    agree = torch.ones_like(first, dtype=torch.bool)
    for view in remaining:
        total, count = total.add_(view), count + 1
        agree &= view.argmax(1, keepdim=True) == first
    if total.shape[1] > UNLABELED:
        raise ValueError(f"label maps hold up to {UNLABELED} classes, got {total.shape[1]}")
    confidence = (total / count).softmax(1).amax(1, keepdim=True)
    return first.where(agree & (confidence > threshold), UNLABELED).to(torch.uint8)


def fill(drawn: Tensor, pseudo: Tensor) -> Tensor:
    """A pseudo label where nothing was drawn; what people drew stays as it is.

    Args:
        drawn: label map, 255 where nothing was drawn.
        pseudo: of the same shape, 255 where it says nothing.

    Returns:
        Of the type of ``drawn``.

    Raises:
        ValueError: maps of different shapes.

    Example:
        >>> fill(torch.tensor([1, 255, 255]), torch.tensor([0, 0, 255]))
        tensor([  1,   0, 255])
    """
    if drawn.shape != pseudo.shape:
        raise ValueError(
            f"drawing and pseudo label must have one shape, got {tuple(drawn.shape)}, {tuple(pseudo.shape)}"
        )
    return torch.where(drawn == UNLABELED, pseudo.to(drawn), drawn)
