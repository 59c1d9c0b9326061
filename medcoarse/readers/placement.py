"""Whether a drawing lies on the grid of an image, and bringing it there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medcoarse.datalist import DataError
from medcoarse.readers.drawing import Grid


class OtherGridError(DataError):
    """The grids differ, and nobody said that the nearest voxels would do."""


def place(
    maps: NDArray[np.uint8],
    source: Grid,
    target: Grid,
    name: Any,
    fills: Sequence[int],
    segments: bool = False,
    resample: bool = False,
    tolerance: float = 0.05,
) -> NDArray[np.uint8]:
    """Maps of a drawing on the grid of its image.

    The same voxels with their axes swapped or stored the other way round are the same grid.

    Args:
        maps: (N, *S), on the grid of the drawing.
        source: grid of the drawing.
        target: grid of the image. Pictures have no affine, and a plane has no place in a volume: where one of the two
            is a picture, or has two axes and the other a third of one slice, as ITK-SNAP and 3D Slicer save what
            is drawn on a picture, the shapes alone are compared, and which way the axes go if both say so.
        name: what to call the drawing in errors.
        fills: N values, for where the drawing has no voxels.
        segments: whether the file holds segments, which many formats cut to a box: these may lie anywhere on the same
            lattice, if all that is drawn is in the image.
        resample: take the nearest voxel where the grids differ.
        tolerance: in voxels, at the corners of the image.

    Returns:
        (N, *S) on the grid of the image.

    Raises:
        OtherGridError: another grid, unless `resample`.
        DataError: another frame of reference, even if `resample`; another shape of a picture; segments that
            are drawn outside the image.

    Example:
        >>> half = Grid((2, 2), np.diag([2.0, 2.0, 1.0, 1.0]))
        >>> maps = np.array([[[0, 1], [255, 255]]], dtype=np.uint8)
        >>> place(maps, half, Grid((3, 3), np.eye(4)), "a", [255], resample=True)[0].tolist()
        [[0, 1, 1], [255, 255, 255], [255, 255, 255]]
    """
    frames = source.frame_of_reference, target.frame_of_reference
    if all(frames) and frames[0] != frames[1]:
        raise DataError(
            f"{name}: was drawn in another DICOM frame of reference than the image's, so nobody knows where it lies; "
            "pass the series it was drawn on, or register the two first"
        )
    if source.affine is None or target.affine is None or len(source.shape) != len(target.shape):
        if _plane(source.shape) == _plane(target.shape):
            if source.affine is not None and target.affine is not None and not _same_turn(source.affine, target.affine):
                raise DataError(_difference(name, source, target))  # no nearest voxels would do
            return maps.reshape(len(maps), *target.shape)
        raise DataError(f"{name}: has shape {source.shape}, the image {target.shape}; pass the image it was drawn on")
    to_source = np.linalg.inv(source.affine) @ target.affine
    if source.shape == target.shape and _deviation(to_source, np.eye(4), target.shape) <= tolerance:
        return maps
    lattice = np.rint(to_source)
    turned = _is_lattice(lattice) and _deviation(to_source, lattice, target.shape) <= tolerance
    if turned and (segments or is_whole(lattice, target.shape, source.shape)):
        placed = _nearest(maps, lattice, target.shape, fills)
        inside = [
            sum(int(np.count_nonzero(one != fill)) for one, fill in zip(array, fills, strict=True))
            for array in (placed, maps)
        ]
        if inside[0] < inside[1]:
            raise DataError(f"{name}: {inside[1] - inside[0]} voxels are drawn outside the image; pass the whole image")
        return placed
    if resample:
        return _nearest(maps, to_source, target.shape, fills)
    raise OtherGridError(_difference(name, source, target))


def _plane(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of one slice, its two axes."""
    return shape[:2] if shape[2:] == (1,) else shape


def _same_turn(affine: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether the first two axes go the same way in space, whatever their spacing."""
    tilted = [bool(np.abs(one[2, :2]).max() > 1e-3 * np.abs(one[:, :2]).max()) for one in (affine, other)]
    if tilted[0] != tilted[1]:
        # One was made flat by dropping its third axis, and kept the first two rows as they were; or lies otherwise.
        return bool(np.allclose(affine[:2, :2], other[:2, :2], rtol=1e-3, atol=1e-3 * np.abs(affine[:2, :2]).max()))
    ours, theirs = (one[:3, :2] / np.linalg.norm(one[:3, :2], axis=0) for one in (affine, other))
    return bool(np.allclose(ours, theirs, atol=0.05))


def _deviation(affine: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """The largest distance between where two affines put a corner, along any axis of the grid."""
    axes = len(shape)
    corners = np.array(list(product(*((0, size - 1) for size in shape))), dtype=np.float64)
    difference = affine - other
    return float(np.abs(corners @ difference[:axes, :axes].T + difference[:axes, 3]).max())


def is_whole(affine: NDArray[np.float64], shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether an affine leads from a grid to all of another: the same voxels in another order.

    Args:
        affine: (4, 4), from indices to indices.
        shape: of the grid, *S.
        whole: shape of the other one.

    Example:
        >>> mirrored = np.array([[-1.0, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        >>> is_whole(mirrored, (3, 4), (3, 4)), is_whole(mirrored, (2, 4), (3, 4))
        (True, False)
    """
    return _is_lattice(affine) and _corners(affine, shape) == _corners(np.eye(4), whole)


def on_lattice(grid: Grid, other: Grid, tolerance: float = 0.05) -> bool:
    """Whether the voxels of a grid are voxels of another that went on for ever: it was cut, padded or turned at most.

    Args:
        grid: with an affine.
        other: with an affine.
        tolerance: in voxels, at the corners of the grid.

    Example:
        >>> shifted = np.eye(4); shifted[0, 3] = 2
        >>> on_lattice(Grid((3, 3), shifted), Grid((9, 9), np.eye(4)))
        True
        >>> on_lattice(Grid((3, 3), shifted / 2), Grid((9, 9), np.eye(4)))
        False
    """
    assert grid.affine is not None
    assert other.affine is not None
    moved = np.linalg.inv(other.affine) @ grid.affine
    lattice = np.rint(moved)
    return _is_lattice(lattice) and _deviation(moved, lattice, grid.shape) <= tolerance


def _corners(affine: NDArray[np.float64], shape: tuple[int, ...]) -> list[list[float]]:
    """The lowest and the highest index that an affine leads to from a grid."""
    axes = len(shape)
    ends = affine[:axes, :axes] @ np.diag(np.array(shape) - 1.0)
    low, high = (affine[:axes, 3] + part.sum(1) for part in (ends.clip(max=0), ends.clip(min=0)))
    return [low.tolist(), high.tolist()]


def _is_lattice(affine: NDArray[np.float64]) -> bool:
    """Whether axes are at most turned by 90 degrees, swapped and mirrored."""
    axes = np.abs(affine[:3, :3])
    return bool((axes.sum(axis=0) == 1).all() and (axes.sum(axis=1) == 1).all())


def _nearest(
    maps: NDArray[np.uint8], affine: NDArray[np.float64], shape: tuple[int, ...], fills: Sequence[int]
) -> NDArray[np.uint8]:
    axes = len(shape)
    matrix, offset = affine[:axes, :axes], affine[:axes, 3]
    placed = np.empty((len(maps), *shape), dtype=np.uint8)
    for values, fill, output in zip(maps, fills, placed, strict=True):
        ndimage.affine_transform(values, matrix, offset, shape, output, order=0, mode="grid-constant", cval=fill)
    return placed


def _difference(name: Any, source: Grid, target: Grid) -> str:
    facts = [(grid.shape, *_facts(grid)) for grid in (source, target)]
    differing = "; ".join(
        f"{what} {ours}, the image's {theirs}"
        for what, ours, theirs in zip(("shape", "spacing", "origin", "orientation"), *facts, strict=True)
        if ours != theirs
    )
    return (
        f"{name}: lies on another grid than the image: {differing or 'axes at another angle'}; pass the image it was "
        "drawn on, or save the drawing on the image's grid"
    )


def _facts(grid: Grid) -> tuple[Any, Any, str]:
    """Spacing, origin and orientation as people read them."""
    assert grid.affine is not None
    axes = len(grid.shape)
    spacing, origin = np.linalg.norm(grid.affine[:3, :axes], axis=0), grid.affine[:axes, 3]
    codes = nib.aff2axcodes(grid.affine)[:axes]  # type: ignore[no-untyped-call]
    return tuple(spacing.round(3).tolist()), tuple(origin.round(3).tolist()), "".join(map(str, codes))
