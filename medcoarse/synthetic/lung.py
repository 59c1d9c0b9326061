"""A drawn lung nodule in computed tomography, and what four readers outline of it.

Convention: lengths are in mm, axes are right, anterior, superior; volumes are (X, Y, Z). The nodule lies in the middle,
as in crops that are made around what readers outlined, and keeps its size whatever the size of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit

from medcoarse.annotators import AnnotatorProfile, draw
from medcoarse.synthetic.fields import Floats, column, norm, positions, streams, waves

AIR, PARENCHYMA, VESSEL, WALL, SOLID = -1000.0, -850.0, 0.0, 40.0, 30.0
"""Hounsfield units of air, aerated lung, vessels, chest wall and a nodule without any air."""

NOISE = 30.0
"""Standard deviation of the scanner's noise, in Hounsfield units."""

READERS = (
    AnnotatorProfile(swell_mm=1.0, swell_strength_mm=0.2),
    AnnotatorProfile(thicken_mm=2.0),
    AnnotatorProfile(thin_mm=1.0),
    AnnotatorProfile(swell_mm=2.0, swell_strength_mm=0.4),
)
"""How the four outline what they see: one faithfully, one 2 mm too large, one 1 mm too small, one with bulges."""

MISS_RATIO = (0.0, 0.0, 0.0, 0.4)
"""Share of the nodules that each of them does not see: the last one overlooks two of five."""

_BLUR_MM = 0.6  # standard deviation of the scanner's point spread


@dataclass(frozen=True)
class Nodule:
    """A nodule, its true extent, and what was outlined of it.

    Args:
        image: (X, Y, Z) int16 in Hounsfield units.
        label: (X, Y, Z) uint8, 0 background, 1 nodule.
        readers: (4, X, Y, Z) uint8, likewise.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    readers: NDArray[np.uint8]


def nodule_crop(seed: int, shape: Sequence[int] = (64, 64, 28), spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Nodule:
    """Draw a nodule between vessels, in some crops near the chest wall, and four readers' outlines.

    Nodules differ in size (diameters from 4 to some 20 mm), in how ragged and how sharp their margin is, and in
    density, from a veil to solid.

    Args:
        seed: >= 0; the same seed, shape and spacing give the same voxels.
        shape: voxels along each axis, at least 8.
        spacing: mm per voxel along each axis.

    Raises:
        ValueError: a negative seed, too few voxels or a spacing that is not positive.

    Example:
        >>> nodule = nodule_crop(seed=0)
        >>> nodule.readers.shape, bool(nodule.label[32, 32, 14])
        ((4, 64, 64, 28), True)
        >>> faithful, large, small, _ = nodule.readers.sum((1, 2, 3))
        >>> bool(large > faithful > small)
        True
    """
    for_lung, for_nodule, for_scanner, for_readers = streams(seed, shape, spacing, 4)
    hounsfield = lung(for_lung, shape, spacing)
    tissue = nodule_share(for_nodule, shape, spacing)
    label = (tissue > 0.5).astype(np.uint8)
    density = tissue * for_nodule.uniform(0.5, 1.0)
    hounsfield = np.maximum(hounsfield, (1 - density) * hounsfield + density * SOLID)
    return Nodule(acquire_ct(for_scanner, hounsfield, spacing), label, read_nodule(for_readers, label, spacing))


def lung(rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]) -> Floats:
    """Hounsfield units of a lung without nodules: uneven parenchyma, vessels, in two of five cases the chest wall.

    Args:
        rng: source of all randomness.
        shape: voxels along each axis.
        spacing: mm per voxel.

    Example:
        >>> values = lung(np.random.default_rng(0), (32, 32, 16), (1, 1, 1))
        >>> bool(-900 <= values.min()), bool(values.max() in (VESSEL, WALL))
        (True, True)
    """
    at = positions(shape, spacing)
    half = np.multiply(shape, spacing) / 2
    values = PARENCHYMA + 50 * waves(rng, shape, 3.0, spacing)
    for _ in range(int(rng.integers(4, 9))):
        from_point = at - column(half * rng.uniform(-1, 1, 3))
        along = _direction(rng)
        beside = from_point - column(along) * (from_point * column(along)).sum(0)
        values[norm(beside) < rng.uniform(0.6, 2.0)] = VESSEL
    outwards, depth = _direction(rng), rng.uniform(0.6, 0.9) * half[:2].min()
    ribs = 2 * waves(rng, shape, 8.0, spacing)
    if rng.random() < 0.4:
        values[(at * column(outwards)).sum(0) + ribs > depth] = WALL
    return values


def nodule_share(rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]) -> Floats:
    """How much of each voxel is nodule, from 0 to 1: a bent ellipsoid around the middle voxel, blurred at its margin.

    Args:
        rng: source of all randomness.
        shape: voxels along each axis.
        spacing: mm per voxel.

    Example:
        >>> share = nodule_share(np.random.default_rng(0), (32, 32, 16), (1, 1, 1))
        >>> bool(share[16, 16, 8] > 0.5), bool(share[0, 0, 0] < 0.01)
        (True, True)
    """
    at = positions(shape, spacing)
    at -= at[(slice(None), *(slice(n // 2, n // 2 + 1) for n in shape))]
    radius = float(np.clip(4.5 * np.exp(0.4 * rng.normal()), 2.0, 9.0))
    axes = radius * np.exp(0.15 * rng.normal(size=3))
    ragged = rng.uniform(0.0, 0.5)
    depth = norm(at / column(axes)) * (1 + ragged * waves(rng, shape, 1.5, spacing))
    margin_mm = rng.uniform(0.2, 1.0)
    share: Floats = expit((1 - depth) * radius / margin_mm)
    return share


def read_nodule(rng: np.random.Generator, label: NDArray[np.uint8], spacing: Sequence[float]) -> NDArray[np.uint8]:
    """What the four readers outline of a nodule (4, *S), background everywhere where one does not see it.

    Args:
        rng: source of all randomness.
        label: true extent (*S), 0 or 1.
        spacing: mm per voxel.

    Example:
        >>> label = np.zeros((16, 16, 16), np.uint8); label[5:11, 5:11, 5:11] = 1
        >>> seen = [read_nodule(np.random.default_rng(seed), label, (1, 1, 1)).any((1, 2, 3)) for seed in range(20)]
        >>> np.mean(seen, 0).tolist()
        [1.0, 1.0, 1.0, 0.55]
    """
    outlined = []
    for profile, missed, own in zip(READERS, MISS_RATIO, rng.spawn(len(READERS)), strict=True):
        seen = own.random() >= missed
        mask = draw(profile, label, 1, tuple(spacing), own).annotation
        outlined.append(mask * np.uint8(seen))
    return np.stack(outlined)


def acquire_ct(rng: np.random.Generator, hounsfield: Floats, spacing: Sequence[float]) -> NDArray[np.int16]:
    """What a scanner shows of a body: blurred and noisy.

    Args:
        rng: source of all randomness.
        hounsfield: Hounsfield units (*S).
        spacing: mm per voxel.

    Example:
        >>> image = acquire_ct(np.random.default_rng(0), np.full((8, 8, 8), PARENCHYMA), (1, 1, 1))
        >>> image.dtype, bool(abs(image.mean() - PARENCHYMA) < 10)
        (dtype('int16'), True)
    """
    blurred = ndimage.gaussian_filter(hounsfield, _BLUR_MM / np.asarray(spacing, dtype=np.float64))
    noisy = blurred + rng.normal(0, NOISE, hounsfield.shape)
    image: NDArray[np.int16] = np.round(np.clip(noisy, -1024, 3071)).astype(np.int16)
    return image


def _direction(rng: np.random.Generator) -> Floats:
    vector = rng.normal(size=3)
    unit: Floats = vector / np.linalg.norm(vector)
    return unit
