"""Linear interpolation of parameters to some rows of a finer image, and its adjoint, as compiled loops.

Parameters on a coarse grid need never exist at every pixel: a few rows at a time are interpolated, used while they are
in the processor's cache, and their slopes added to the coarse grid.

Convention: coarse arrays are ``(..., depth, height, width)`` with length 1 along axes that an image lacks, fine ones
``(..., rows * width)``; rows of the fine image are counted along height, then depth. Values are those of
``torch.nn.functional.interpolate`` with ``align_corners=False``: both grids lie evenly on the same image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcoarse.compilation import compiled

Array = NDArray[Any]


class Axis(NamedTuple):
    """Where the voxels of a fine axis lie between those of a coarse one.

    Args:
        left: coarse neighbour before each fine voxel.
        right: the one after it, the same at the border.
        share: weight of the right one.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    share: Array


Axes = tuple[Axis, Axis, Axis]
"""Depth, height and width; one voxel where an image has fewer axes."""


def axes(coarse: Sequence[int], fine: Sequence[int], dtype: Any) -> Axes:
    """Neighbours and weights along every axis.

    Args:
        coarse: image size of the parameters, 1 to 3 axes.
        fine: that of the image, as many.
        dtype: of the parameters.

    Example:
        >>> axes([2], [4], np.float32)[-1].share
        array([0.  , 0.25, 0.75, 0.25], dtype=float32)
    """
    missing = [(1, 1)] * (3 - len(fine))
    deep, high, wide = (_axis(*lengths, dtype) for lengths in [*missing, *zip(coarse, fine, strict=True)])
    return deep, high, wide


def _axis(coarse: int, fine: int, dtype: Any) -> Axis:
    place = np.maximum((np.arange(fine) + 0.5) * (coarse / fine) - 0.5, 0)
    left = np.minimum(place.astype(np.int64), coarse - 1)
    return Axis(left, np.minimum(left + 1, coarse - 1), (place - left).astype(dtype))


def rows(coarse: Array, axes: Axes, first: int, last: int) -> Array:
    """Rows ``first`` to ``last`` of the fine image.

    Example:
        >>> rows(np.array([[[0.0, 1.0]]]), axes([2], [4], float), 0, 1)
        array([0.  , 0.25, 0.75, 1.  ])
    """
    stack = coarse.reshape(-1, *coarse.shape[-3:])
    fine = np.empty((len(stack), (last - first) * len(axes[-1].left)), coarse.dtype)
    _interpolate(stack, axes, first, fine)
    return fine.reshape(*coarse.shape[:-3], -1)


def add_rows(fine: Array, axes: Axes, first: int, coarse: Array) -> None:
    """Add to ``coarse`` what slopes of the rows from ``first`` on mean for it: the adjoint of :func:`rows`.

    Example:
        >>> slopes = np.zeros((1, 1, 2))
        >>> add_rows(np.ones(4), axes([2], [4], float), 0, slopes)
        >>> slopes
        array([[[2., 2.]]])
    """
    _spread(fine.reshape(-1, fine.shape[-1]), axes, first, coarse.reshape(-1, *coarse.shape[-3:]))


@compiled
def _interpolate(coarse: Array, axes: Axes, first: int, fine: Array) -> None:
    """``(C, depth, height, width) -> (C, rows * width)``, as many rows as ``fine`` holds."""
    deep, high, wide = axes
    width, line = len(wide.left), np.empty(coarse.shape[3], coarse.dtype)
    one = coarse.dtype.type(1)
    for row in range(fine.shape[1] // width):
        z, y = (first + row) // len(high.left), (first + row) % len(high.left)
        back, down = deep.share[z], high.share[y]
        for c in range(len(coarse)):
            a, b = coarse[c, deep.left[z], high.left[y]], coarse[c, deep.left[z], high.right[y]]
            d, e = coarse[c, deep.right[z], high.left[y]], coarse[c, deep.right[z], high.right[y]]
            for i in range(len(line)):
                line[i] = (one - back) * ((one - down) * a[i] + down * b[i])
            for i in range(len(line)):
                line[i] += back * ((one - down) * d[i] + down * e[i])
            target = fine[c, row * width : (row + 1) * width]
            for p in range(width):
                target[p] = (one - wide.share[p]) * line[wide.left[p]] + wide.share[p] * line[wide.right[p]]


@compiled
def _spread(fine: Array, axes: Axes, first: int, coarse: Array) -> None:
    """``(C, rows * width)``, added to ``(C, depth, height, width)``: whole lines first, along them at the end."""
    deep, high, wide = axes
    height, width, one = len(high.left), len(wide.left), coarse.dtype.type(1)
    last = first + fine.shape[1] // width - 1
    z0, z1, y0, y1 = deep.left[first // height], deep.right[last // height], 0, coarse.shape[2] - 1
    if first // height == last // height:
        y0, y1 = high.left[first % height], high.right[last % height]
    lines = np.empty((z1 - z0 + 1, y1 - y0 + 1, width), coarse.dtype)
    for c in range(len(coarse)):
        lines[:] = 0
        for row in range(first, last + 1):
            z, y = row // height, row % height
            slope = fine[c, (row - first) * width : (row - first + 1) * width]
            for k in range(4):
                far, low = k // 2, k % 2
                weight = deep.share[z] if far else one - deep.share[z]
                weight *= high.share[y] if low else one - high.share[y]
                if weight != 0:
                    line = lines[(deep.right if far else deep.left)[z] - z0, (high.right if low else high.left)[y] - y0]
                    for p in range(width):
                        line[p] += weight * slope[p]
        for z in range(lines.shape[0]):
            for y in range(lines.shape[1]):
                line, target = lines[z, y], coarse[c, z0 + z, y0 + y]
                for p in range(width):
                    target[wide.left[p]] += (one - wide.share[p]) * line[p]
                    target[wide.right[p]] += wide.share[p] * line[p]
