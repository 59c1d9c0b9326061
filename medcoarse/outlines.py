"""Outlines of masks: how long they are, and how a person redraws them with few vertices.

Convention: masks, spacing and lengths in mm are those of `morphology`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

from medcoarse.morphology import Mask, as_mask, as_spacing


def boundary_size(mask: Mask, spacing: Sequence[float] | float | None = None) -> float:
    """Length of the outline in mm (2D) or area of the surface in mm² (3D).

    The faces between mask and outside, times pi / 4 (2D) or 2 / 3 (3D): the factor that makes a staircase of random
    orientation as long as the line it follows.

    Args:
        mask: bool, 2D or 3D. A mask and its complement have the same boundary.
        spacing: mm per voxel.

    Returns:
        The size, >= 0.

    Example:
        >>> disc = np.hypot(*np.indices((101, 101)) - 50) <= 40
        >>> abs(boundary_size(disc) / (2 * np.pi * 40) - 1) < 0.02
        True
    """
    sizes = as_spacing(spacing, as_mask(mask).ndim)
    return size_of_faces([int(np.count_nonzero(np.diff(mask, axis=axis))) for axis in range(mask.ndim)], sizes)


def size_of_faces(faces: Sequence[int], sizes: Sequence[float]) -> float:
    """What `boundary_size` makes of the number of faces across each axis.

    Example:
        >>> size_of_faces([3, 3], (1.0, 1.0)) == 6 * np.pi / 4
        True
    """
    areas = np.prod(sizes) / np.array(sizes)
    return float(np.dot(faces, areas)) * (np.pi / 4 if len(sizes) == 2 else 2 / 3)


def polygonize(
    mask: Mask,
    tolerance_mm: float = 0.0,
    num_vertices: int | None = None,
    spacing: Sequence[float] | float | None = None,
) -> Mask:
    """Redraw every outline with few vertices and fill it.

    Each outline, also that of a hole, becomes a polygon; a voxel belongs to the result if an odd number of polygons
    contains it. A 3D mask is drawn slice by slice, as people do: across its coarsest axis, the last one among equals.

    Args:
        mask: bool, 2D or 3D.
        tolerance_mm: how far a polygon may stray from its outline, >= 0 (Douglas-Peucker); 0 changes nothing.
        num_vertices: if given, the polygon has this many vertices, at least 3, evenly spaced along the outline instead.
        spacing: mm per voxel.

    Returns:
        A new mask. Structures that are smaller than the tolerance vanish.

    Raises:
        ValueError: a negative tolerance or fewer than 3 vertices.

    Example:
        >>> square = np.zeros((8, 8), bool); square[2:6, 2:6] = True
        >>> bool((polygonize(square, 0) == square).all())
        True
    """
    sizes = as_spacing(spacing, as_mask(mask).ndim)
    if not tolerance_mm >= 0 or (num_vertices is not None and num_vertices < 3):
        raise ValueError(f"need tolerance_mm >= 0 and num_vertices >= 3, got {tolerance_mm!r} and {num_vertices!r}.")
    if mask.ndim == 2:
        return _filled_outlines(mask, tolerance_mm, num_vertices, sizes)
    axis = max(range(3), key=lambda a: (sizes[a], a))
    plane = tuple(size for a, size in enumerate(sizes) if a != axis)
    slices = [_filled_outlines(one, tolerance_mm, num_vertices, plane) for one in np.moveaxis(mask, axis, 0)]
    return np.stack(slices, axis=axis)


def _filled_outlines(mask: Mask, tolerance_mm: float, num_vertices: int | None, spacing: tuple[float, ...]) -> Mask:
    polygons = []
    for outline in find_contours(np.pad(mask, 1).astype(np.float32), 0.5):  # type: ignore[no-untyped-call]
        points = (outline - 1) * spacing
        points = points[_corners(points, tolerance_mm)] if num_vertices is None else _evenly(points, num_vertices)
        polygons.append(points / spacing)
    return _filled(polygons, mask.shape)


def _filled(polygons: list[NDArray[np.float64]], shape: tuple[int, ...]) -> Mask:
    """Pixels inside an odd number of closed polygons: every edge flips all pixels to its right, row by row."""
    if not polygons:
        return np.zeros(shape, bool)
    begin = np.concatenate(polygons)
    end = np.concatenate([np.roll(points, -1, axis=0) for points in polygons])
    first, last = np.ceil(np.minimum(begin[:, 0], end[:, 0])), np.ceil(np.maximum(begin[:, 0], end[:, 0]))
    rows_per_edge = (last - first).astype(np.intp)
    edge = np.repeat(np.arange(len(begin)), rows_per_edge)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(rows_per_edge) - rows_per_edge, rows_per_edge)
    slope = (end[edge, 1] - begin[edge, 1]) / (end[edge, 0] - begin[edge, 0])
    column = np.ceil(begin[edge, 1] + (row - begin[edge, 0]) * slope)
    flips = np.bincount((row * (shape[1] + 1) + column).astype(np.intp), minlength=shape[0] * (shape[1] + 1))
    odd = np.logical_xor.accumulate(flips.reshape(shape[0], -1) % 2 == 1, axis=1)
    return np.asarray(odd[:, :-1])


def _corners(points: NDArray[np.float64], tolerance: float) -> NDArray[np.intp]:
    """Douglas-Peucker, all pieces of a line at once: split each at its furthest point until none strays too far."""
    kept = np.array([0, len(points) - 1])
    while True:
        piece = np.repeat(np.arange(len(kept) - 1), np.diff(kept))
        start, chord = points[kept[:-1]][piece], np.diff(points[kept], axis=0)[piece]
        offset = points[:-1] - start
        along = (offset * chord).sum(1) / np.maximum(np.square(chord).sum(1), 1e-30)
        stray = np.square(offset - np.clip(along, 0, 1)[:, None] * chord).sum(1)
        furthest = np.maximum.reduceat(stray, kept[:-1])
        split = np.flatnonzero((stray == furthest[piece]) & (stray > tolerance**2))
        split = split[np.unique(piece[split], return_index=True)[1]]
        if not len(split):
            return kept
        kept = np.union1d(kept, split)


def _evenly(points: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """A number of points at equal steps along a closed line."""
    travelled = np.append(0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    stops = np.linspace(0, travelled[-1], number, endpoint=False)
    return np.stack([np.interp(stops, travelled, coordinate) for coordinate in points.T], axis=1)
