"""Pseudo labels: the class on which a network agrees with itself, written only where nobody drew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from medcoarse.confusion import UNLABELED

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


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


def scaled_views(
    image: Tensor,
    predict: Callable[[Tensor], Tensor],
    scales: Sequence[float] = (0.5, 1.0, 2.0),
    flip_axes: Sequence[int] = (0,),
) -> Iterator[Tensor]:
    """Logits of an image at several scales, each as it is and mirrored, back on the image's own grid.

    Args:
        image: ``(B, C, *S)``, 2D or 3D.
        predict: logits ``(B, L, *S)`` of such an image, of any size.
        scales: of the image's sides.
        flip_axes: spatial axes that are mirrored; every combination of them is a view, so n axes make ``2^n`` views a
            scale. Images that Pillow read have their columns in axis 0.

    Yields:
        ``len(scales) * 2 ** len(flip_axes)`` maps of logits.

    Raises:
        ValueError: a scale that is not above 0, or an axis that the image does not have.

    Deviates: MONAI's ``TestTimeAugmentation`` draws its views at random, and brings them back by nearest neighbour.

    Example:
        >>> image = torch.arange(4.0).view(1, 1, 4)
        >>> [view.flatten().tolist() for view in scaled_views(image, lambda x: x, scales=[1])]
        [[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]]
    """
    dims = image.ndim - 2
    if min(scales, default=0) <= 0:
        raise ValueError(f"scales must be above 0, got {list(scales)}")
    if any(not 0 <= axis < dims for axis in flip_axes):
        raise ValueError(f"flip_axes must be spatial axes from 0 to {dims - 1}, got {list(flip_axes)}")
    size = tuple(image.shape[2:])
    for scale, flips in product(scales, product((False, True), repeat=len(flip_axes))):
        axes = [2 + axis for axis, flip in zip(flip_axes, flips, strict=True) if flip]
        seen = _resized(image, [max(1, round(scale * side)) for side in size]).flip(axes)
        yield _resized(predict(seen).flip(axes), size)


def _resized(values: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return F.interpolate(values, tuple(size), mode=_INTERPOLATION[values.ndim - 2], align_corners=False)
