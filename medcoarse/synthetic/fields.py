"""What drawn volumes are made of: streams of random numbers, places in mm, smooth random fields.

Convention: volumes are (X, Y, Z), places (3, X, Y, Z) in mm from the middle of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medcoarse.morphology import smooth_field

Floats = NDArray[np.float64]


def streams(seed: int, shape: Sequence[int], spacing: Sequence[float], number: int = 3) -> list[np.random.Generator]:
    """Independent sources of randomness: a part of a volume that draws more of it leaves the other parts as they are.

    Args:
        seed: >= 0.
        shape: voxels along each axis, at least 8.
        spacing: mm per voxel.
        number: of sources; the first ones do not depend on how many there are.

    Raises:
        ValueError: a negative seed, too few voxels or a spacing that is not positive.

    Example:
        >>> one, two = (streams(0, (8, 8, 8), (1, 1, 1), number) for number in (3, 4))
        >>> bool(one[2].random() == two[2].random())
        True
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if len(shape) != 3 or min(shape) < 8:
        raise ValueError(f"shape must be three numbers of voxels, each at least 8, got {tuple(shape)}")
    if len(spacing) != 3 or not min(spacing) > 0:
        raise ValueError(f"spacing must be three lengths in mm above 0, got {tuple(spacing)}")
    return list(np.random.default_rng(seed).spawn(number))


def positions(shape: Sequence[int], spacing: Sequence[float]) -> Floats:
    """Where the voxels' centres are (3, *S), from the middle of the volume.

    Example:
        >>> positions((1, 1, 3), (1, 1, 2))[2].ravel().tolist()
        [-2.0, 0.0, 2.0]
    """
    grid = np.indices(tuple(shape), dtype=np.float64)
    return (grid - column((np.array(shape) - 1) / 2)) * column(spacing)


def column(values: Sequence[float] | Floats) -> Floats:
    """Three numbers so that they go with places.

    Example:
        >>> column([1, 2, 3]).shape
        (3, 1, 1, 1)
    """
    return np.asarray(values, dtype=np.float64).reshape(-1, 1, 1, 1)


def norm(vectors: Floats) -> Floats:
    """Lengths (*S) of vectors (3, *S).

    Example:
        >>> float(norm(column([3, 4, 0])).item())
        5.0
    """
    length: Floats = np.sqrt((vectors**2).sum(0))
    return length


def waves(rng: np.random.Generator, shape: Sequence[int], size_mm: float, spacing: Sequence[float]) -> Floats:
    """A smooth random field from -1 to 1 with bumps of this size.

    Example:
        >>> field = waves(np.random.default_rng(0), (16, 16, 8), 2.0, (1, 1, 2))
        >>> field.shape, bool(np.abs(field).max() <= 1)
        ((16, 16, 8), True)
    """
    return 2 * np.asarray(smooth_field(tuple(shape), size_mm, rng, tuple(spacing)), dtype=np.float64) - 1
