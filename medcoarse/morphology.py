"""What a pen does to a shape: pure functions from mask to mask, in 2D and 3D, with lengths in mm.

Convention:
    A mask is a `bool` array of shape (H, W) or (H, W, D), without a channel axis. `spacing` is the size of a voxel
    in mm, one number for each axis (default 1). Distances run between voxel centres. The border of the image is not
    an outline: a structure that touches it is taken to go on outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import label
from scipy.sparse import csr_array
from skimage.morphology import skeletonize

from medcoarse.distance import squared_distances

Mask = NDArray[np.bool_]

# Two ways to compute one distance differ in the last bits; a voxel exactly at the radius belongs to the ball.
_ROUNDING = 1e-5


def as_mask(mask: Mask) -> Mask:
    """The mask itself, if it is one.

    Raises:
        ValueError: the array is not bool, not 2D or 3D.

    Example:
        >>> as_mask(np.zeros((2, 2)))
        Traceback (most recent call last):
        ValueError: mask must be a bool array with 2 or 3 axes, got float64 of shape (2, 2); pass label == k.
    """
    if mask.dtype != np.bool_ or mask.ndim not in (2, 3):
        raise ValueError(
            f"mask must be a bool array with 2 or 3 axes, got {mask.dtype} of shape {mask.shape}; pass label == k."
        )
    return mask


def as_spacing(spacing: Sequence[float] | float | None, spatial_dims: int) -> tuple[float, ...]:
    """One positive voxel size in mm for each axis.

    Args:
        spacing: nothing (1 mm), one number for all axes, or one number per axis.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: a wrong count, or a size that is not positive and finite.

    Example:
        >>> as_spacing(0.5, 3)
        (0.5, 0.5, 0.5)
    """
    sizes = np.asarray(1.0 if spacing is None else spacing, dtype=float)
    sizes = np.full(spatial_dims, sizes) if sizes.ndim == 0 else sizes
    if sizes.shape != (spatial_dims,) or not np.all(np.isfinite(sizes)) or np.any(sizes <= 0):
        raise ValueError(f"spacing must be {spatial_dims} positive numbers (mm per voxel), got {spacing!r}.")
    return tuple(sizes.tolist())


def squared_distance(
    mask: Mask, radius_mm: float, spacing: Sequence[float] | float | None = None
) -> NDArray[np.float32]:
    """Squared distance in mm² from every voxel to the nearest voxel of the mask, infinite beyond the radius.

    `d²(x) = min over y in mask of |x - y|²`, see :mod:`medcoarse.distance`.

    Args:
        mask: bool, 2D or 3D.
        radius_mm: how far to look, >= 0; the cost hardly depends on it.
        spacing: mm per voxel.

    Returns:
        float32 of the shape of the mask: 0 inside, infinite where the mask is further away than the radius.

    Raises:
        ValueError: the mask is not bool, not 2D or 3D, or the radius is negative.

    Example:
        >>> squared_distance(np.array([[True, False, False, False]]), 2)
        array([[ 0.,  1.,  4., inf]], dtype=float32)
    """
    return squared_distances(mask, _checked(mask, spacing), squared_limit(radius_mm))


def squared_limit(radius_mm: float) -> float:
    """The largest squared distance that counts as within the radius.

    Raises:
        ValueError: the radius is negative.

    Example:
        >>> squared_limit(0.0)
        0.0
    """
    if not radius_mm >= 0:
        raise ValueError(f"radius_mm must be >= 0, got {radius_mm!r}.")
    return radius_mm**2 * (1 + _ROUNDING)


def thin(mask: Mask, radius_mm: float, spacing: Sequence[float] | float | None = None, preserve: bool = False) -> Mask:
    """Take off every voxel whose distance to the outside is at most the radius.

    `thin(m) = {x in m : d(x, not m) > radius}`, together with the skeleton of `m` if `preserve`.

    Args:
        mask: bool, 2D or 3D.
        radius_mm: depth that is taken off, >= 0; 0 changes nothing.
        spacing: mm per voxel.
        preserve: keep the skeleton, so that no component vanishes and thin vessels stay connected.

    Returns:
        A new mask, part of the old one.

    Example:
        >>> thin(np.ones((1, 5), bool) & (np.arange(5) > 0), 1)
        array([[False, False,  True,  True,  True]])
    """
    kept = mask & np.isinf(squared_distance(~as_mask(mask), radius_mm, spacing))
    return kept | skeleton(mask) if preserve and radius_mm > 0 else kept


def thicken(mask: Mask, radius_mm: float, spacing: Sequence[float] | float | None = None) -> Mask:
    """Add every voxel within the radius: `thicken(m) = {x : d(x, m) <= radius}`.

    Args:
        mask: bool, 2D or 3D.
        radius_mm: depth that is put on, >= 0; 0 changes nothing.
        spacing: mm per voxel.

    Returns:
        A new mask that contains the old one.

    Example:
        >>> thicken(np.array([[True, False, False, False]]), 1.5)
        array([[ True,  True, False, False]])
    """
    return np.isfinite(squared_distance(mask, radius_mm, spacing))


def smooth_field(
    shape: Sequence[int],
    smoothness_mm: float,
    rng: np.random.Generator,
    spacing: Sequence[float] | float | None = None,
    uniform: bool = True,
) -> NDArray[np.float32]:
    """A smooth random field, uniform on [0, 1] at every voxel, or standard normal.

    White noise is smoothed by a Gaussian of standard deviation `smoothness_mm`, scaled to unit variance and sent
    through the normal distribution function. It is drawn on a grid of 1.5 standard deviations and evaluated at the
    voxels, so a smooth field costs less than a rough one.

    Args:
        shape: (H, W) or (H, W, D).
        smoothness_mm: standard deviation of the Gaussian, >= 0; 0 is white noise.
        rng: source of the noise.
        spacing: mm per voxel.
        uniform: `False` leaves out the distribution function, which is a third of the work: standard normal numbers.

    Returns:
        float32 of the given shape; in [0, 1] if uniform.

    Deviates:
        Not divided by its extremes but by its known variance: those depend on the size of the image.

    Example:
        >>> field = smooth_field((400, 300), 3.0, np.random.default_rng(0))
        >>> field.shape, abs(float(field.mean()) - 0.5) < 0.03
        ((400, 300), True)
    """
    sizes = as_spacing(spacing, len(shape))
    smoothers = [_smoother(length, smoothness_mm, size) for length, size in zip(shape, sizes, strict=True)]
    field = rng.standard_normal([smoother.shape[1] for smoother in smoothers], dtype=np.float32)
    for axis in reversed(range(len(shape))):
        nodes = np.moveaxis(field, axis, 0)
        voxels = smoothers[axis] @ nodes.reshape(len(nodes), -1)
        field = np.moveaxis(voxels.reshape(-1, *nodes.shape[1:]), 0, axis)
    return _uniform(field) if uniform else field


def swell(
    mask: Mask,
    radius_mm: float,
    strength_mm: float,
    field: NDArray[np.floating],
    spacing: Sequence[float] | float | None = None,
    uniform: bool = True,
) -> Mask:
    """Over-segment here and there: the outline bulges where a smooth field is high.

    `swell(m) = m or {x : 0 < r <= radius, field(x) > 1 - strength / r}` with `r = d(x, m)`. With a field that is
    uniform on [0, 1] a voxel at distance r is added with probability `min(1, strength / r)`.

    Args:
        mask: bool, 2D or 3D.
        radius_mm: how far a bulge may reach, >= 0.
        strength_mm: distance up to which every voxel is added, >= 0; 0 changes nothing.
        field: of the shape of the mask, numbers in [0, 1] if uniform, as from `smooth_field`.
        spacing: mm per voxel.
        uniform: `False` for a field that `smooth_field` left normal; only what is within reach is made uniform then.

    Returns:
        A new mask that contains the old one and lies within the radius of it.

    Raises:
        ValueError: the field has another shape than the mask, or the strength is negative.

    Deviates:
        Euclidean distance in mm, where the protocol it follows counts city-block steps in pixels.

    Example:
        >>> swell(np.array([[True, False, False]]), 2, 0.6, np.array([[0.0, 0.5, 0.5]]))
        array([[ True,  True, False]])
    """
    if field.shape != mask.shape:
        raise ValueError(f"field must have the shape of the mask {mask.shape}, got {field.shape}.")
    if not strength_mm >= 0:
        raise ValueError(f"strength_mm must be >= 0, got {strength_mm!r}.")
    squared = squared_distance(mask, radius_mm, spacing)
    swollen = mask.copy(order="C")
    reached = np.flatnonzero((squared > 0) & (squared < np.inf))
    numbers = field.ravel()[reached]
    gap = 1 - (numbers if uniform else _uniform(numbers))
    swollen.ravel()[reached] = squared.ravel()[reached] * (gap * gap) < np.float32(strength_mm**2)
    return swollen


def fracture(
    mask: Mask,
    centers: ArrayLike,
    directions: ArrayLike,
    width_mm: float,
    length_mm: float,
    spacing: Sequence[float] | float | None = None,
) -> Mask:
    """Cut gaps into a mask: straight strokes of an eraser in 2D, discs in 3D.

    A cut with centre c and unit direction u takes away `{x : |(x - c) . u| <= width / 2 and
    |(x - c) - ((x - c) . u) u| <= length / 2}`: a rectangle in 2D, a flat cylinder in 3D.

    Args:
        mask: bool, 2D or 3D.
        centers: (N, spatial_dims) voxel indices.
        directions: (N, spatial_dims) vectors in mm, of any length but 0, that point *across* the cut, along its width.
        width_mm: size along the direction, >= 0.
        length_mm: size perpendicular to it, >= 0.
        spacing: mm per voxel.

    Returns:
        A new mask, part of the old one.

    Raises:
        ValueError: centres and directions do not match each other or the mask, or a direction is 0.

    Example:
        >>> fracture(np.ones((1, 6), bool), [[0, 2]], [[0.0, 1.0]], width_mm=2, length_mm=4)
        array([[ True, False, False, False,  True,  True]])
    """
    sizes = _checked(mask, spacing)
    where = np.asarray(centers, dtype=np.intp).reshape(-1, mask.ndim)
    across = unit_vectors(directions, where.shape)
    offsets = cut_offsets(width_mm, length_mm, sizes)
    cut = mask.copy()
    arrays = (where, across, offsets, np.array(sizes), np.array(mask.shape))
    for _, voxels in cut_voxels(*arrays, width_mm, length_mm):
        cut[tuple(voxels.T)] = False
    return cut


def shrink_to_ratio(
    mask: Mask, ratio: float, centers: ArrayLike, spacing: Sequence[float] | float | None = None
) -> Mask:
    """Keep an exact share of a mask: its voxels nearest to a centre.

    `max(1, round(ratio * num_voxels))` voxels stay, those with the smallest Euclidean distance in mm to the nearest of
    the centres; of equally distant ones, those that come first in memory order.

    Args:
        mask: bool, 2D or 3D.
        ratio: share that is kept, in [0, 1]. One voxel stays at least, unless the ratio is 0 or the mask is empty.
        centers: (spatial_dims,) or (N, spatial_dims) voxel indices; with several of them several patches stay.
        spacing: mm per voxel.

    Returns:
        A new mask, part of the old one.

    Raises:
        ValueError: the ratio is outside [0, 1], or there is no centre.

    Example:
        >>> shrink_to_ratio(np.ones((1, 6), bool), 0.5, centers=[0, 1])
        array([[ True,  True,  True, False, False, False]])
    """
    sizes = np.array(_checked(mask, spacing))
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1], got {ratio!r}.")
    voxels = np.flatnonzero(mask)
    if ratio in (0, 1) or not len(voxels):
        return mask & (ratio > 0)
    points = np.asarray(centers, dtype=float).reshape(-1, mask.ndim)
    if not len(points):
        raise ValueError("shrink_to_ratio needs at least one centre, got none.")
    where = np.stack(np.unravel_index(voxels, mask.shape), axis=1)
    distance = np.full(len(voxels), np.inf)
    for point in points:
        np.minimum(distance, (np.square((where - point) * sizes)).sum(axis=1), out=distance)
    number = max(1, round(ratio * len(voxels)))
    limit = np.partition(distance, number - 1)[number - 1]
    nearer = distance < limit
    ties = np.flatnonzero(distance == limit)[: number - np.count_nonzero(nearer)]
    kept = np.zeros_like(mask)
    kept.flat[voxels[nearer]] = True
    kept.flat[voxels[ties]] = True
    return kept


def skeleton(mask: Mask) -> Mask:
    """The centre line of a mask, one voxel wide: thinning by Zhang and Suen (1984), in 3D by Lee et al. (1994).

    Args:
        mask: bool, 2D or 3D. Voxels count alike along all axes, whatever their spacing.

    Returns:
        A new mask, part of the old one, with at least one voxel of every component.

    Example:
        >>> skeleton(np.ones((3, 7), bool)).sum(axis=0)
        array([1, 1, 1, 1, 1, 1, 0])
    """
    thinned: Mask = skeletonize(as_mask(mask))  # type: ignore[no-untyped-call]
    if mask.ndim == 3:  # thinning in 3D deletes small blocks, such as 2 x 2 x 2: keep their first voxel
        components, number = label(mask, np.ones((3, 3, 3)))
        lost = np.bincount(components[thinned], minlength=number + 1) == 0
        voxels = np.flatnonzero(lost[components] & mask)
        thinned.flat[voxels[np.unique(components.flat[voxels], return_index=True)[1]]] = True
    return thinned


def scribble(mask: Mask, width_mm: float, spacing: Sequence[float] | float | None = None) -> Mask:
    """A stroke along the centre line: the skeleton, thickened to the width of the pen.

    `scribble(m) = {x : d(x, skeleton of m) <= width / 2}`. The pen may be wider than the structure.

    Args:
        mask: bool, 2D or 3D.
        width_mm: width of the stroke, >= 0; below two voxels it is the skeleton itself.
        spacing: mm per voxel.

    Returns:
        A new mask.

    Example:
        >>> scribble(np.ones((5, 9), bool), 1).sum(), scribble(np.ones((5, 9), bool), 3).sum()
        (np.int64(6), np.int64(26))
    """
    return thicken(skeleton(mask), width_mm / 2, spacing)


def complement(mask: Mask, within: Mask | None = None) -> Mask:
    """Everything else: `not mask`, or `within and not mask`.

    Args:
        mask: bool, 2D or 3D.
        within: bool of the same shape, for instance the field of view.

    Returns:
        A new mask.

    Example:
        >>> complement(np.array([[True, False]]))
        array([[False,  True]])
    """
    return ~as_mask(mask) if within is None else within & ~as_mask(mask)


def bounding_window(
    mask: Mask, margin_mm: float = 0.0, spacing: Sequence[float] | float | None = None
) -> tuple[slice, ...]:
    """The smallest box around a mask, widened by a margin and kept inside the image; empty slices for an empty mask.

    Args:
        mask: bool, 2D or 3D.
        margin_mm: width of the margin, >= 0.
        spacing: mm per voxel.

    Returns:
        One slice for each axis.

    Example:
        >>> bounding_window(np.array([[False, False, True, False]]), margin_mm=1)
        (slice(0, 1, None), slice(1, 4, None))
    """
    sizes = _checked(mask, spacing)
    used = [np.asarray(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)]
    return tuple(widened(one, margin_mm / size) for one, size in zip(used, sizes, strict=True))


def widened(used: NDArray[np.bool_], margin: float) -> slice:
    """From the first to the last place in use along an axis, a margin in voxels further, but within the axis.

    Example:
        >>> widened(np.array([False, False, True, False]), 0.5)
        slice(1, 4, None)
    """
    places = np.flatnonzero(used)
    steps = int(np.ceil(margin))
    return (
        slice(max(0, int(places[0]) - steps), min(len(used), int(places[-1]) + 1 + steps))
        if used.any()
        else slice(0, 0)
    )


@lru_cache(maxsize=512)  # the same few for all images of a data set; a handful of numbers for each row of voxels
def field_taps(length: int, smoothness_mm: float, size: float) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Which nodes of white noise make a smooth field at each voxel along an axis, and with what weights.

    Args:
        length: number of voxels.
        smoothness_mm: standard deviation of the Gaussian, >= 0.
        size: mm per voxel.

    Returns:
        Indices of nodes and weights, both (length, 6). The last index is the largest.

    Raises:
        ValueError: a negative smoothness.

    Example:
        >>> field_taps(1, 2.0, 1.0)[0]
        array([[0, 1, 2, 3, 4, 5]], dtype=int32)
    """
    if not smoothness_mm >= 0:
        raise ValueError(f"smoothness_mm must be >= 0, got {smoothness_mm!r}.")
    width = max(smoothness_mm / size, 0.3)
    step = max(1.0, 1.5 * width)
    position = np.arange(length) / step + 2
    node: NDArray[np.int32] = np.add.outer(np.floor(position).astype(np.int32), np.arange(-2, 4, dtype=np.int32))
    weight = np.exp(-0.5 * np.square((position[:, None] - node) * step / width))
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    return node, weight.astype(np.float32)


def as_uniform(normal: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers sent through their distribution function; NumPy has no vectorized error function.

    Example:
        >>> as_uniform(torch.tensor([0.0]))
        tensor([0.5000])
    """
    return torch.mul(normal, 0.5**0.5).erf_().mul_(0.5).add_(0.5)


def _uniform(normal: NDArray[np.float32]) -> NDArray[np.float32]:
    uniform: NDArray[np.float32] = as_uniform(torch.from_numpy(normal)).numpy()
    return uniform


def unit_vectors(directions: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Directions of cuts with length 1, as many as there are centres.

    Raises:
        ValueError: another number, or a direction is 0.

    Example:
        >>> unit_vectors([[0.0, 2.0]], (1, 2))
        array([[0., 1.]])
    """
    across = np.asarray(directions, dtype=float).reshape(-1, shape[1])
    norm = np.linalg.norm(across, axis=1, keepdims=True)
    if len(across) != shape[0] or not np.all(norm > 0):
        raise ValueError(f"every cut needs a centre and a direction other than 0, got {shape[0]} and {across!r}.")
    unit: NDArray[np.float64] = across / norm
    return unit


def cut_offsets(width_mm: float, length_mm: float, sizes: Sequence[float]) -> NDArray[np.intp]:
    """Steps (P, d) from the centre of a cut to all voxels that it may reach, whatever its direction.

    Example:
        >>> cut_offsets(0.0, 2.0, (1.0, 3.0)).tolist()
        [[-1, 0], [0, 0], [1, 0]]
    """
    reach = (np.hypot(width_mm, length_mm) / 2 / np.asarray(sizes)).astype(np.intp)
    offsets: NDArray[np.intp] = np.indices(2 * reach + 1).reshape(len(reach), -1).T - reach
    return offsets


def cut_voxels(
    centers: Any, across: Any, offsets: Any, sizes: Any, shape: Any, width_mm: float, length_mm: float
) -> Iterator[tuple[Any, Any]]:
    """The voxels of many cuts, some of the cuts at a time, as `fracture` defines them; arrays or tensors.

    Args:
        centers: (N, d) voxel indices.
        across: (N, d) unit vectors in mm.
        offsets: (P, d) from `cut_offsets`.
        sizes: (d,) mm per voxel.
        shape: (d,) of the image, beyond which nothing is cut.
        width_mm: as for `fracture`.
        length_mm: as for `fracture`.

    Yields:
        For each voxel that is cut, which cut it is, (V,), and where, (V, d).

    Example:
        >>> arrays = [np.array(a) for a in ([[0, 0]], [[0.0, 1.0]], [[0, 0], [0, 1]], [1.0, 1.0], [4, 4])]
        >>> next(cut_voxels(*arrays, width_mm=2.0, length_mm=1.0))[1].tolist()
        [[0, 0], [0, 1]]
    """
    nonzero = torch.where if isinstance(across, torch.Tensor) else np.nonzero
    chunk = max(1, 4_000_000 // len(offsets))  # bounds the memory of large discs
    for start in range(0, len(centers), chunk):
        points, strokes = nonzero(_in_cut(offsets * sizes, across[start : start + chunk], width_mm, length_mm))
        strokes = strokes + start
        voxels = centers[strokes] + offsets[points]
        inside = ((voxels >= 0) & (voxels < shape)).all(1)
        yield strokes[inside], voxels[inside]


def _checked(mask: Mask, spacing: Sequence[float] | float | None) -> tuple[float, ...]:
    return as_spacing(spacing, as_mask(mask).ndim)


@lru_cache(maxsize=512)
def _smoother(length: int, smoothness_mm: float, size: float) -> csr_array:
    """Matrix (length, nodes) that smooths white noise at the nodes to a field of unit variance at the voxels."""
    node, weight = field_taps(length, smoothness_mm, size)
    rows = np.arange(0, node.size + 1, node.shape[1], dtype=np.int32)
    return csr_array((weight.ravel(), node.ravel(), rows), shape=(length, int(node[-1, -1]) + 1))


def _in_cut(points: Any, across: Any, width_mm: float, length_mm: float) -> Any:
    """Which of the points (P, d), relative to the centre, lie in each of the cuts (N, d): (P, N)."""
    depth = points @ across.T
    aside = (points**2).sum(1)[:, None] - depth**2
    return (abs(depth) <= width_mm / 2) & (aside <= (length_mm / 2) ** 2)
