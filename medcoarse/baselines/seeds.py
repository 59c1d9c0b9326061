"""What somebody drew in an image, as the seeds that a segmentation grows from: what such methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.confusion import UNLABELED


def drawn_classes(image: NDArray[Any], partial: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """The classes that were drawn, in ascending order; says what does not fit.

    Args:
        image: ``(C, *S)``.
        partial: label map ``(*S)``, 255 where nothing was drawn.
        num_classes: L.

    Raises:
        ValueError: the two differ in size, or a value is neither a class nor 255.

    Example:
        >>> drawn_classes(np.zeros((1, 2, 2)), np.array([[2, 255], [255, 0]]), num_classes=3).tolist()
        [0, 2]
    """
    if image.shape[1:] != partial.shape:
        raise ValueError(f"image (C, *S) and label map (*S) differ in size: {image.shape} and {partial.shape}")
    values = np.unique(partial)
    classes: NDArray[np.int64] = values[values != UNLABELED].astype(np.int64)
    if ((classes < 0) | (classes >= num_classes)).any():
        raise ValueError(
            f"drawn were the values {classes.tolist()}, but the classes are 0 to {num_classes - 1} (255: nothing drawn)"
        )
    return classes


def keep_drawn(found: NDArray[Any], partial: NDArray[Any]) -> NDArray[np.uint8]:
    """What a method found, and in its place what was drawn, where something was.

    Example:
        >>> keep_drawn(np.array([1, 1, 1]), np.array([0, 255, 1]))
        array([0, 1, 1], dtype=uint8)
    """
    return np.where(partial == UNLABELED, found, partial).astype(np.uint8)


def relative_spacing(spacing: Sequence[float] | None, spatial_dims: int) -> tuple[float, ...]:
    """Lengths of a voxel, in units of the shortest: where voxels are as long as wide, their size changes nothing.

    Example:
        >>> relative_spacing((3.0, 1.5), 2), relative_spacing(None, 3)
        ((2.0, 1.0), (1.0, 1.0, 1.0))
    """
    lengths = spacing or (1.0,) * spatial_dims
    return tuple(length / min(lengths) for length in lengths)


def as_colors(image: NDArray[Any]) -> NDArray[np.float64]:
    """Every channel from its least to its greatest value in the image, as 0 to 255; 0 where it is constant.

    Example:
        >>> as_colors(np.array([[[-1.0, 0.0, 1.0]], [[7.0, 7.0, 7.0]]])).tolist()
        [[[0.0, 127.5, 255.0]], [[0.0, 0.0, 0.0]]]
    """
    axes = tuple(range(1, image.ndim))
    image = image.astype(np.float64)
    least, greatest = image.min(axes, keepdims=True), image.max(axes, keepdims=True)
    span = np.where(greatest > least, greatest - least, 1)
    colors: NDArray[np.float64] = (image - least) / span * 255
    return colors
