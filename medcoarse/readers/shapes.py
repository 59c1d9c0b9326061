"""Outlines and strokes of points -> the pixels they draw.

Convention: coordinates are indices, so pixel (i, j) has its centre at (i, j) and reaches half a pixel further. Formats
that count from the corner of the first pixel, as screens do, are moved by half a pixel before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_STEPS = 4_000_000_000
"""What the shapes of a file may cost, in steps of about ten nanoseconds."""

_CHUNK = 1_000_000
_PER_SHAPE, _PER_CROSSING, _PER_PIXEL = 5000, 20, 3

Points = NDArray[np.float64]
Piece = tuple[tuple[slice, ...], NDArray[np.bool_]]
"""A box of an array, and what is drawn in it."""


class Budget:
    """What the shapes of a file may still cost: a file of any content is read or refused in bounded time and memory.

    Example:
        >>> Budget().spend(10**10)
        Traceback (most recent call last):
        ValueError: more or larger shapes than people draw
    """

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def spend(self, steps: float) -> None:
        """Take steps, or raise ValueError."""
        self.left -= int(min(steps, 2 * MAX_STEPS))
        if self.left < 0:
            raise ValueError("more or larger shapes than people draw")


def as_points(points: Any, minimum: int = 1) -> Points:
    """Coordinates from a file as an array (N, 2).

    Raises:
        ValueError: no pairs of finite numbers, or fewer than asked for.

    Example:
        >>> as_points([[1, 2.5], [3, float("nan")]])
        Traceback (most recent call last):
        ValueError: coordinates that are not finite numbers below a billion
    """
    if not isinstance(points, list | tuple | np.ndarray):
        raise ValueError("a shape without points")
    array = np.array([tuple(point)[:2] for point in points])
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf" or len(array) < minimum:
        raise ValueError(f"a shape of {len(points)} points, expected at least {minimum} pairs of numbers")
    numbers = array.astype(np.float64)
    if not (np.abs(numbers) < 1e9).all():
        raise ValueError("coordinates that are not finite numbers below a billion")
    return numbers


def fill(outlines: Sequence[Points], shape: Sequence[int], budget: Budget) -> Piece:
    """Pixels whose centre lies inside an odd number of outlines: rings in rings are holes.

    A ray from every centre towards lower y counts the edges that it crosses. The cost grows with the edges and with the
    pixels, not with their product as it does for scikit-image's `polygon`.

    Args:
        outlines: (N, 2) each, index coordinates; closed from the last point to the first.
        shape: (X, Y) of the image; what lies outside is cut.
        budget: what it may cost.

    Returns:
        The box of the outlines, and bool of its shape. A centre exactly on an edge belongs to one side, so neighbours
        share no pixel and leave none out.

    Raises:
        ValueError: more than the budget.

    Example:
        >>> box, drawn = fill([np.array([[0.5, 0.5], [3.5, 0.5], [3.5, 2.5], [0.5, 2.5]])], (5, 4), Budget())
        >>> box, drawn.shape, bool(drawn.all())
        ((slice(1, 4, None), slice(1, 3, None)), (3, 2), True)
    """
    box = _box(np.concatenate(outlines), shape, budget)
    origin, width, height = (box[0].start, box[1].start), *(side.stop - side.start for side in box)
    counts = np.zeros((width, height + 1), dtype=np.int32)
    for points in outlines:
        start, end = points - origin, np.roll(points, -1, axis=0) - origin
        low = np.clip(np.ceil(np.minimum(start, end)[:, 0]), 0, width).astype(np.int64)
        high = np.clip(np.ceil(np.maximum(start, end)[:, 0]), 0, width).astype(np.int64)  # low <= x < high are crossed
        cumulated = np.cumsum(high - low)
        budget.spend(_PER_CROSSING * (int(cumulated[-1]) + len(points)))
        cuts = np.searchsorted(cumulated, np.arange(_CHUNK, cumulated[-1], _CHUNK))
        for part in np.split(np.arange(len(points)), cuts):
            _count_crossings(counts, start[part], end[part], low[part], high[part])
    np.cumsum(counts, axis=1, out=counts)
    return box, (counts[:, :height] & 1).astype(bool)


def _box(points: Points, shape: Sequence[int], budget: Budget) -> tuple[slice, slice]:
    """The box of the image that holds all points; empty if they lie outside."""
    ends = [
        np.clip([np.ceil(low), np.floor(high) + 1], 0, size).astype(int)
        for low, high, size in zip(points.min(axis=0), points.max(axis=0), shape, strict=True)
    ]
    x, y = (slice(int(low), int(max(low, high))) for low, high in ends)
    budget.spend(_PER_SHAPE + _PER_PIXEL * (x.stop - x.start) * (y.stop - y.start))
    return x, y


def _count_crossings(
    counts: NDArray[np.int32], start: Points, end: Points, low: NDArray[np.int64], high: NDArray[np.int64]
) -> None:
    """Add one where each edge crosses each row of centres."""
    number = high - low
    edge = np.repeat(np.arange(len(number)), number)
    x = np.arange(len(edge)) - np.repeat(np.cumsum(number) - number, number) + low[edge]
    along = (x - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
    y = start[edge, 1] + along * (end[edge, 1] - start[edge, 1])
    np.add.at(counts, (x, np.clip(np.ceil(y), 0, counts.shape[1] - 1).astype(np.int64)), 1)


def stroke(points: Points, shape: Sequence[int], budget: Budget) -> Piece:
    """Pixels along an open line, a single point included, one pixel wide.

    Args:
        points: (N, 2), index coordinates.
        shape: (X, Y) of the image; what lies outside is cut.
        budget: what it may cost.

    Returns:
        The box of the line, and bool of its shape.

    Raises:
        ValueError: more than the budget.

    Example:
        >>> stroke(np.array([[0.0, 0.0], [2.0, 2.0]]), (3, 4), Budget())[1].astype(int)
        array([[1, 0, 0],
               [0, 1, 0],
               [0, 0, 1]])
    """
    box = _box(np.floor(points + 0.5), shape, budget)
    steps = np.ceil(np.abs(np.diff(points, axis=0)).max(axis=1, initial=0)).astype(np.int64)
    nodes = np.concatenate([[0], np.cumsum(steps)])
    budget.spend(_PER_CROSSING * (float(nodes[-1]) + len(points)))
    drawn = np.zeros(tuple(side.stop - side.start for side in box), dtype=bool)
    for first in range(0, int(nodes[-1]) + 1, _CHUNK):  # points at whole steps along the line
        position = np.arange(first, min(first + _CHUNK, nodes[-1] + 1))
        line = np.stack([np.interp(position, nodes, points[:, axis]) for axis in (0, 1)], axis=1)
        pixels = np.floor(line + 0.5).astype(np.int64) - (box[0].start, box[1].start)
        pixels = pixels[((pixels >= 0) & (pixels < drawn.shape)).all(axis=1)]
        drawn[pixels[:, 0], pixels[:, 1]] = True
    return box, drawn


def circle(centre: Points, radius: float) -> Points:
    """Outline of a circle, within a hundredth of its radius.

    Example:
        >>> circle(np.array([1.0, 2.0]), 3.0)[0].tolist()
        [4.0, 2.0]
    """
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
