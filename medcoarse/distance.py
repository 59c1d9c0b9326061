"""Squared Euclidean distances to a mask in linear time, as compiled loops.

One axis after the other: along the last axis, two scans find the nearest voxel of the mask in each row. Along every
further axis the distances of a line, ``d²(x) = min over y of f(y) + (s (x - y))²``, are the lower envelope of
parabolas, found in one scan. The time depends neither on the shape of the mask nor, but for voxels out of reach that
are left out, on the radius.

Source: P. Felzenszwalb and D. Huttenlocher, "Distance transforms of sampled functions" (Theory of Computing 2012).
Deviates: nothing beyond a radius is looked at; lines of strided axes are handled some at a time, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.compilation import compiled, in_threads, shares

Array = NDArray[Any]

_LINES = 16  # side by side: a cache line of single precision
_THREAD_VOXELS = 1 << 16  # fewer of them are not worth a thread


def squared_distances(mask: NDArray[np.bool_], sizes: Sequence[float], limit: float) -> NDArray[np.float32]:
    """Squared distance from every voxel to the nearest one of the mask.

    Args:
        mask: bool, any number of axes.
        sizes: mm per voxel along each axis.
        limit: in mm²; what is further away counts as infinitely far.

    Example:
        >>> squared_distances(np.array([[True, False, False, False]]), (1.0, 1.0), limit=4.0)
        array([[ 0.,  1.,  4., inf]], dtype=float32)
    """
    squared = np.empty(mask.shape, np.float32)
    if not mask.size:
        return squared
    rows = np.ascontiguousarray(mask).reshape(-1, mask.shape[-1])
    targets = squared.reshape(rows.shape)

    def along_rows(part: range) -> None:
        _along_rows(rows[part.start : part.stop], sizes[-1], limit, targets[part.start : part.stop])

    in_threads(along_rows, shares(len(rows), _THREAD_VOXELS // rows.shape[1]))
    for axis, size in enumerate(sizes[:-1]):
        lines = squared.reshape(-1, mask.shape[axis], int(np.prod(mask.shape[axis + 1 :])))
        groups = len(lines) * -(-lines.shape[2] // _LINES)
        parts = shares(groups, _THREAD_VOXELS // (lines.shape[1] * _LINES))
        in_threads(partial(_along_some, lines, float(size), limit), parts)
    return squared


@compiled
def _along_rows(mask: Array, size: float, limit: float, squared: Array) -> None:
    length = mask.shape[1]
    reach = int(np.sqrt(limit) / size) + 1 if limit < (size * length) ** 2 else length
    for r in range(len(mask)):
        row, target = mask[r], squared[r]
        nearest = -reach - 1
        for x in range(length):
            if row[x]:
                nearest = x
            target[x] = x - nearest
        nearest = length + reach
        for x in range(length - 1, -1, -1):
            if row[x]:
                nearest = x
            steps = min(np.int64(target[x]), nearest - x)
            distance = (steps * size) ** 2
            target[x] = distance if steps <= reach and distance <= limit else np.inf


def _along_some(lines: Array, size: float, limit: float, groups: range) -> None:
    _along_lines(lines, size, limit, groups.start, groups.stop)


@compiled
def _along_lines(squared: Array, size: float, limit: float, start_group: int, stop_group: int) -> None:
    """Lines along the middle axis of ``(outer, length, inner)``, in place, some groups of neighbours of them."""
    length, inner = squared.shape[1:]
    per_outer = -(-inner // _LINES)
    values = np.empty((_LINES, length), squared.dtype)
    apex = np.empty(length, np.int64)
    start = np.empty(length)  # where the parabola of an apex becomes the lowest
    unit = size * size
    for group in range(start_group, stop_group):
        o, first = group // per_outer, group % per_outer * _LINES
        number = min(_LINES, inner - first)
        found = False
        for x in range(length):
            for i in range(number):
                values[i, x] = squared[o, x, first + i]
                found |= values[i, x] <= limit
        for i in range(number if found else 0):
            _envelope(values[i], unit, limit, apex, start)
        for x in range(length if found else 0):
            for i in range(number):
                squared[o, x, first + i] = values[i, x]


@compiled
def _envelope(values: Array, unit: float, limit: float, apex: Array, start: Array) -> None:
    """``values[x] = min over y of values[y] + unit (x - y)²``, infinite above the limit."""
    length, last = len(values), -1
    for x in range(length):
        if values[x] <= limit:
            begin = -np.inf
            while last >= 0:
                y = apex[last]
                begin = ((values[x] - values[y]) / unit / (x - y) + x + y) / 2
                if begin > start[last]:
                    break
                last -= 1
            if last < 0:
                begin = -np.inf
            last += 1
            apex[last], start[last] = x, begin
    if last < 0:
        return
    heights = np.empty(last + 1)
    for k in range(last + 1):
        heights[k] = values[apex[k]]
    k = 0
    for x in range(length):
        while k < last and start[k + 1] < x:
            k += 1
        distance = heights[k] + unit * (x - apex[k]) ** 2
        values[x] = distance if distance <= limit else np.inf
