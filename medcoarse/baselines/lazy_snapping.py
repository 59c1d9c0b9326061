"""Lazy Snapping: a minimum cut of the graph of an image's regions, by the colours of what was drawn.

It uses all drawings that say one class: their pixels keep it, and their colours are what the class looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans
from scipy.spatial import cKDTree

from medcoarse.baselines.graph_cut import alpha_expansion
from medcoarse.baselines.seeds import as_colors, drawn_classes, keep_drawn
from medcoarse.baselines.superpixels import adjacency, numbered, region_means, superpixels
from medcoarse.confusion import UNLABELED

_MOST_COLORS = 10_000


def lazy_snapping(
    image: NDArray[Any],
    partial: NDArray[Any],
    num_classes: int,
    spacing: Sequence[float] | None = None,
    smoothness: float = 300.0,
    size: float = 4.0,
    regions: str = "watershed",
    num_colors: int = 64,
    by_length: bool = False,
    solver: str = "scipy",
) -> NDArray[np.uint8]:
    """A label map out of a partial one.

    Minimizes ``sum_i E1(y_i) + smoothness sum_(i, j) [y_i != y_j] / (|C_i - C_j|² + 1)`` over regions i of colour
    ``C_i`` with ``E1(k) = d_k / sum_l d_l``, where ``d_k`` is the distance to the nearest of the colours that k was
    drawn on.

    Args:
        image: ``(C, *S)``, 2D or 3D; colours are each channel from 0 to 255.
        partial: ``(*S)``, 255 where nothing was drawn.
        num_classes: L.
        spacing: mm per voxel; 1 by default.
        smoothness: λ, by default what served noisy drawn digits; the squared difference of two regions' colours is in
            the hundreds there, from noise alone, so that a λ of 1 smooths nothing.
        size: pixels in a region, see :func:`.superpixels.superpixels`.
        regions: how they are made, see there.
        num_colors: clusters of each class's colours.
        by_length: each pair of neighbours counts once for every side of a pixel that they share.
        solver: of the cut, see :mod:`.graph_cut`.

    Returns:
        uint8 ``(*S)``: what was drawn stays. With fewer than two classes there is nothing to decide, and what was not
        drawn stays 255.

    Raises:
        ValueError: see :func:`.seeds.drawn_classes` and :func:`.superpixels.superpixels`.

    Source: Li, Sun, Tang and Shum, "Lazy Snapping" (SIGGRAPH 2004). It gives no λ.
    Deviates: regions are split where classes, or drawn and not drawn, meet in them; more than two classes by
        alpha-expansion; the watershed starts from evenly spread seeds; outlines are not edited by hand.

    Example:
        >>> image = np.array([[[0.0, 0.0, 0.0, 9.0, 9.0, 9.0]]]).repeat(3, 1)
        >>> partial = np.full((3, 6), 255)
        >>> partial[1, 0], partial[1, 5] = 0, 1
        >>> lazy_snapping(image, partial, num_classes=2)[0]
        array([0, 0, 0, 1, 1, 1], dtype=uint8)
    """
    classes = drawn_classes(image, partial, num_classes)
    if len(classes) < 2 or not (partial == UNLABELED).any():
        return partial.astype(np.uint8)
    colors = as_colors(image)
    parts = numbered(superpixels(colors, size, regions, spacing) * (UNLABELED + 1) + partial)
    means = region_means(colors, parts)
    costs = color_costs(means, [colors[:, partial == k].T for k in classes], num_colors)
    drawn = np.full(len(means), UNLABELED)
    drawn[parts.ravel()] = partial.ravel()  # one value in each part
    costs[(drawn != UNLABELED)[:, None] & (drawn[:, None] != classes)] = np.inf
    edges, sides = adjacency(parts)
    weights = smoothness / (np.square(means[edges[:, 0]] - means[edges[:, 1]]).sum(1) + 1)
    labels = alpha_expansion(costs, edges, weights * sides if by_length else weights, solver=solver)
    return keep_drawn(classes[labels][parts], partial)


def color_costs(colors: NDArray[Any], seeds: Sequence[NDArray[Any]], num_colors: int = 64) -> NDArray[np.float64]:
    """``d_k / sum_l d_l`` with the distance ``d_k`` of a colour to the nearest one of class k.

    Args:
        colors: ``(N, C)``.
        seeds: the colours of each class ``(n_k, C)``.
        num_colors: clusters that a class's colours are reduced to.

    Returns:
        ``(N, L)``, sums to 1 over classes.

    Example:
        >>> color_costs(np.array([[1.0], [0.0]]), [np.array([[0.0]]), np.array([[4.0], [9.0]])]).tolist()
        [[0.25, 0.75], [0.0, 1.0]]
    """
    far = np.stack([cKDTree(main_colors(one, num_colors)).query(colors)[0] for one in seeds], 1)
    total = far.sum(1, keepdims=True)
    return np.where(total > 0, far / np.where(total > 0, total, 1), 1 / len(seeds))


def main_colors(colors: NDArray[Any], number: int) -> NDArray[np.float64]:
    """At most so many cluster centres of colours ``(n, C)``, by K-means from evenly picked ones; always the same.

    Example:
        >>> main_colors(np.array([[0.0], [0.0], [2.0], [8.0], [9.0]]), 2).tolist()
        [[0.6666666666666666], [8.5]]
    """
    colors = colors[np.lexsort(colors.T)]
    colors = colors[:: -(-len(colors) // _MOST_COLORS)]  # of many, evenly picked ones
    different = np.unique(colors, axis=0)
    if len(different) <= number:
        return different
    start = different[np.linspace(0, len(different) - 1, number).round().astype(int)]
    centers: NDArray[np.float64] = kmeans(colors, start, thresh=0.1)[0]
    return centers
