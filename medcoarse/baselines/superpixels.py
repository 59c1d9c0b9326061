"""An image as a graph of small regions: superpixels, in volumes supervoxels, and which of them touch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_gradient_magnitude
from skimage.segmentation import felzenszwalb, slic, watershed

from medcoarse.baselines.seeds import as_colors, relative_spacing

METHODS = ("slic", "watershed", "felzenszwalb")
Regions = NDArray[np.int64]


def superpixels(
    image: NDArray[Any], size: float, method: str = "slic", spacing: Sequence[float] | None = None
) -> Regions:
    """Numbers of regions, from 0 without gaps.

    Args:
        image: ``(C, *S)``, 2D or 3D; each channel is brought to 0 to 1.
        size: pixels in a region, on average; with ``"felzenszwalb"``, the fewest. 1 or less: every pixel is a region.
        method: ``"slic"`` (with a compactness that adapts to each region), ``"watershed"`` of the image's slope at one
            pixel from as many seeds, spread evenly, or ``"felzenszwalb"`` (2D).
        spacing: mm per voxel; 1 by default.

    Returns:
        ``(*S)``.

    Raises:
        ValueError: an unknown method, or one that does not know volumes.

    Source: Achanta et al. 2012 (SLIC); Vincent and Soille 1991; Felzenszwalb and Huttenlocher 2004; all of
        scikit-image.

    Example:
        >>> superpixels(np.array([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]]), size=4).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    shape = image.shape[1:]
    if size <= 1:
        return np.arange(np.prod(shape)).reshape(shape)
    image, lengths = as_colors(image) / 255, relative_spacing(spacing, len(shape))
    if method == "felzenszwalb":
        if len(shape) != 2:
            raise ValueError(f"felzenszwalb is for images, got a volume of size {shape}; take slic or watershed")
        found = felzenszwalb(np.moveaxis(image, 0, -1), scale=1, sigma=0.8, min_size=round(size), channel_axis=-1)
    elif method == "watershed":
        slope = sum(gaussian_gradient_magnitude(channel, 1 / np.asarray(lengths)) for channel in image)
        found = watershed(slope, markers=_number(shape, size))  # type: ignore[no-untyped-call]
    else:
        found = slic(
            np.moveaxis(image, 0, -1), _number(shape, size), slic_zero=True, spacing=lengths, convert2lab=False,
            start_label=0, channel_axis=-1,
        )  # fmt: skip
    return numbered(found)


def _number(shape: tuple[int, ...], size: float) -> int:
    """How many regions."""
    return max(1, round(float(np.prod(shape)) / size))


def numbered(regions: NDArray[Any]) -> Regions:
    """The same regions, numbered from 0 without gaps.

    Example:
        >>> numbered(np.array([[7, 7, 3]])).tolist()
        [[1, 1, 0]]
    """
    return np.unique(regions, return_inverse=True)[1].reshape(regions.shape).astype(np.int64)


def adjacency(regions: Regions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which regions share a side of a pixel ``(E, 2)``, smaller number first, and how many sides ``(E,)``.

    Example:
        >>> edges, sides = adjacency(np.array([[0, 0, 1], [2, 2, 1]]))
        >>> edges.tolist(), sides.tolist()
        ([[0, 1], [0, 2], [1, 2]], [1, 2, 1])
    """
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for axis in range(regions.ndim):
        behind, ahead = (np.moveaxis(regions, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        differ = behind != ahead
        pairs.append(np.sort(np.stack([behind[differ], ahead[differ]], 1), 1))
    number = int(regions.max(initial=0)) + 1
    first, second = np.concatenate(pairs).T
    keys, sides = np.unique(first * number + second, return_counts=True)  # far faster than rows
    return np.stack(np.divmod(keys, number), 1), sides


def region_means(values: NDArray[Any], regions: Regions) -> NDArray[np.float64]:
    """Mean of each channel ``(C, *S)`` over each region, ``(N, C)``.

    Example:
        >>> region_means(np.array([[[1.0, 3.0, 5.0]]]), np.array([[0, 0, 1]])).tolist()
        [[2.0], [5.0]]
    """
    flat = regions.ravel()
    pixels = np.bincount(flat)
    return np.stack([np.bincount(flat, channel.ravel()) / pixels for channel in values], 1)
