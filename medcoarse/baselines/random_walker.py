"""Random walker: a pixel gets the class whose drawing a random walk from it reaches first most often.

It uses all drawings that say one class, as seeds; walks cross weak edges more often than strong ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import random_walker as walk

from medcoarse.baselines.seeds import drawn_classes, keep_drawn, relative_spacing
from medcoarse.confusion import UNLABELED


def random_walker(
    image: NDArray[Any],
    partial: NDArray[Any],
    num_classes: int,
    spacing: Sequence[float] | None = None,
    beta: float = 130.0,
    tolerance: float = 1e-3,
) -> NDArray[np.uint8]:
    """A label map out of a partial one.

    Of the potentials ``x_k`` that solve ``L x_k = 0`` where nothing was drawn, and are 1 where k and 0 where another
    class was drawn, the greatest names the class; L is the Laplacian of the grid with weights ``exp(-beta |grad|²)``.

    Args:
        image: ``(C, *S)``, 2D or 3D.
        partial: ``(*S)``, 255 where nothing was drawn.
        num_classes: L.
        spacing: mm per voxel; 1 by default.
        beta: how much edges in the image are in the way; scikit-image's, which divides the squared differences by ten
            times the standard deviation of the image.
        tolerance: relative residual at which conjugate gradients end. Of a photograph of 585,000 pixels, 70% of them
            open, a tenth of it turns 0.9% of the pixels and takes three times as long.

    Returns:
        uint8 ``(*S)``: what was drawn stays. With fewer than two classes there is nothing to decide, and what was not
        drawn stays 255.

    Raises:
        ValueError: see :func:`.seeds.drawn_classes`.

    Source: Grady, "Random walks for image segmentation" (PAMI 2006); the implementation is
        scikit-image's.

    Example:
        >>> image = np.array([[[0.0, 0.1, 0.0, 1.0, 1.1, 1.0]]]).repeat(3, 1)
        >>> partial = np.full((3, 6), 255)
        >>> partial[1, 0], partial[1, 5] = 0, 1
        >>> random_walker(image, partial, num_classes=2)[0]
        array([0, 0, 0, 1, 1, 1], dtype=uint8)
    """
    classes = drawn_classes(image, partial, num_classes)
    if len(classes) < 2 or not (partial == UNLABELED).any():
        return partial.astype(np.uint8)
    seeds = np.zeros(partial.shape, dtype=np.int32)
    for number, k in enumerate(classes, 1):
        seeds[partial == k] = number
    channels = np.moveaxis(image.astype(np.float64), 0, -1).copy()
    if not np.ptp(channels):  # flat: scikit-image would divide by its standard deviation
        channels.flat[0], beta = channels.flat[0] + 1, 0.0
    found = walk(
        channels, seeds, beta, mode="cg_j", tol=tolerance, prob_tol=np.inf,
        spacing=relative_spacing(spacing, partial.ndim), channel_axis=-1,
    )  # fmt: skip
    return keep_drawn(classes[found.astype(np.int64) - 1], partial)
