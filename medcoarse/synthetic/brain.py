"""A drawn brain in magnetic resonance: tissue, MS lesions or a tumour, and what the scanner makes of them.

Convention: lengths are in mm, axes are right, anterior, superior; volumes are (X, Y, Z), images (X, Y, Z, modalities).
The brain fills the field of view whatever its size, so a small volume shows a small brain; MS lesions keep their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medcoarse.synthetic.fields import column, norm, positions, streams, waves

Bools = NDArray[np.bool_]

OUTSIDE, FLUID, GREY, WHITE, LESION, CORE, OEDEMA, ENHANCING = range(8)
"""Tissues; the last three are those of a tumour."""

CONTRAST: Mapping[str, Sequence[float]] = {
    "FLAIR": (0, 0.15, 0.55, 0.45, 0.85, 0.50, 0.80, 0.70),
    "T1": (0, 0.20, 0.55, 0.80, 0.50, 0.35, 0.55, 0.55),
    "T1ce": (0, 0.20, 0.55, 0.80, 0.50, 0.35, 0.55, 0.95),
    "T2": (0, 0.95, 0.60, 0.45, 0.75, 0.85, 0.75, 0.65),
    "PD": (0, 0.55, 0.75, 0.55, 0.80, 0.70, 0.75, 0.70),
}
"""How bright each tissue is, by the name of the modality."""

NOISE = 0.06
"""Standard deviation of the scanner's noise, on the scale of `CONTRAST`."""

_SHADING = 0.15  # largest deviation of the receiving coil's sensitivity from its mean
_BLUR_MM = 0.6  # standard deviation of the scanner's point spread


@dataclass(frozen=True)
class Scan:
    """A scan and its true classes.

    Args:
        image: (X, Y, Z, modalities) int16, 0 outside the brain and above 0 within, as of a brain cut out of its skull.
        label: (X, Y, Z) uint8.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]


def ms_scan(seed: int, shape: Sequence[int] = (64, 64, 24), spacing: Sequence[float] = (0.8, 0.8, 2.2)) -> Scan:
    """Draw FLAIR, T1, PD and T2 of a brain with MS lesions: some ten of them, most of them beside the ventricles.

    Their radii vary from less than one voxel to some, so that the volume has both lesions that nobody overlooks and
    lesions of a few voxels.

    Args:
        seed: >= 0; the same seed, shape and spacing give the same voxels.
        shape: voxels along each axis, at least 8.
        spacing: mm per voxel along each axis.

    Returns:
        Image of four modalities; label 0 background, 1 lesion.

    Raises:
        ValueError: a negative seed, too few voxels or a spacing that is not positive.

    Example:
        >>> scan = ms_scan(seed=0)
        >>> scan.image.shape, scan.label.shape, bool(0.002 < scan.label.mean() < 0.05)
        ((64, 64, 24, 4), (64, 64, 24), True)
    """
    for_brain, for_lesions, for_scanner = streams(seed, shape, spacing)
    tissue = brain_tissue(for_brain, shape, spacing)
    lesions = ms_lesions(for_lesions, tissue, spacing)
    tissue[lesions] = LESION
    return Scan(acquire(for_scanner, tissue, spacing, ("FLAIR", "T1", "PD", "T2")), lesions.astype(np.uint8))


def tumour_scan(seed: int, shape: Sequence[int] = (64, 64, 16), spacing: Sequence[float] = (1.0, 1.0, 3.0)) -> Scan:
    """Draw FLAIR, T1, T1 with contrast and T2 of a brain with a tumour of three nested parts.

    Args:
        seed: >= 0; the same seed, shape and spacing give the same voxels.
        shape: voxels along each axis, at least 8.
        spacing: mm per voxel along each axis.

    Returns:
        Image of four modalities; label 0 background, 1 necrotic core, 2 oedema, 3 enhancing tumour, the ring around the
        core.

    Raises:
        ValueError: a negative seed, too few voxels or a spacing that is not positive.

    Example:
        >>> scan = tumour_scan(seed=0)
        >>> scan.image.shape, np.unique(scan.label).tolist()
        ((64, 64, 16, 4), [0, 1, 2, 3])
    """
    for_brain, for_tumour, for_scanner = streams(seed, shape, spacing)
    tissue = brain_tissue(for_brain, shape, spacing)
    label = tumour(for_tumour, tissue, spacing)
    tissue = np.where(label > 0, np.array([OUTSIDE, CORE, OEDEMA, ENHANCING])[label], tissue)
    return Scan(acquire(for_scanner, tissue, spacing, ("FLAIR", "T1", "T1ce", "T2")), label)


# --- anatomy -----------------------------------------------------------------------------------------------------


def brain_tissue(rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]) -> NDArray[np.intp]:
    """Tissue of every voxel of a brain without lesions: fluid around and in the ventricles, folded grey, white matter.

    Args:
        rng: source of all randomness.
        shape: voxels along each axis.
        spacing: mm per voxel.

    Example:
        >>> np.unique(brain_tissue(np.random.default_rng(0), (32, 32, 16), (1.6, 1.6, 3.2))).tolist()
        [0, 1, 2, 3]
    """
    half = np.multiply(shape, spacing) * 0.46
    at = positions(shape, spacing)
    folds = waves(rng, shape, 1.5, spacing)
    radius = norm(at / column(half * rng.uniform(0.93, 1.0, 3))) * (1 + 0.04 * waves(rng, shape, 6.0, spacing))
    tissue = np.full(tuple(shape), WHITE)
    tissue[radius > 0.78 + 0.06 * folds] = GREY
    tissue[radius > 0.95 + 0.02 * folds] = FLUID
    tissue[radius > 1] = OUTSIDE
    for side in (-1, 1):
        centre = half * np.array([side * rng.uniform(0.13, 0.18), rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.1)])
        bend = 0.25 * np.abs(at[1]) / half[1] * half[0] * side  # the horns diverge
        moved = at - column(centre)
        moved[0] -= bend
        tissue[norm(moved / column(half * np.array([0.09, 0.42, 0.26]) * rng.uniform(0.85, 1.25))) < 1] = FLUID
    return tissue


def ms_lesions(rng: np.random.Generator, tissue: NDArray[np.intp], spacing: Sequence[float]) -> Bools:
    """Where a brain has MS lesions: bent ellipsoids in the white matter, the likelier the nearer to the ventricles.

    Args:
        rng: source of all randomness.
        tissue: as `brain_tissue` gives it.
        spacing: mm per voxel.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> tissue = brain_tissue(rng, (32, 32, 16), (1.6, 1.6, 3.2))
        >>> lesions = ms_lesions(rng, tissue, (1.6, 1.6, 3.2))
        >>> bool(lesions.any()), np.unique(tissue[lesions]).tolist()
        (True, [3])
    """
    at = positions(tissue.shape, spacing)
    white = tissue == WHITE
    distance = ndimage.distance_transform_edt(~_ventricles(tissue), sampling=spacing)
    chance = np.exp(-distance[white] / 4.0)
    number = int(rng.integers(7, 14))
    centres = at[:, white][:, rng.choice(chance.size, number, p=chance / chance.sum())].T
    bent = 1 + 0.3 * waves(rng, tissue.shape, 2.0, spacing)
    found = np.zeros(tissue.shape, bool)
    for centre in centres:
        radius = float(np.clip(2.0 * np.exp(0.45 * rng.normal()), 0.9, 5.0))
        axes = radius * np.exp(0.25 * rng.normal(size=3))
        found |= norm((at - column(centre)) / column(axes)) * bent < 1
    lesions: Bools = found & white
    return lesions


def tumour(rng: np.random.Generator, tissue: NDArray[np.intp], spacing: Sequence[float]) -> NDArray[np.uint8]:
    """Classes of a tumour in a brain: a necrotic core (1), the enhancing ring around it (3), oedema (2) around both.

    Args:
        rng: source of all randomness.
        tissue: as `brain_tissue` gives it.
        spacing: mm per voxel.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> tissue = brain_tissue(rng, (32, 32, 16), (2, 2, 3))
        >>> label = tumour(rng, tissue, (2, 2, 3))
        >>> bool((label == 2).sum() > (label == 3).sum() > 0), bool((label[tissue == 0] == 0).all())
        (True, True)
    """
    at = positions(tissue.shape, spacing)
    half = np.multiply(tissue.shape, spacing) * 0.46
    direction = rng.normal(size=3) * (1, 1, 0.5)
    centre = half * (0.45 * direction / np.linalg.norm(direction))
    size = half.min() * rng.uniform(0.38, 0.55)
    outer = size * np.exp(0.15 * rng.normal(size=3))
    inner = outer * rng.uniform(0.6, 0.75)
    shift = rng.normal(size=3) * 0.1 * size
    whole = norm((at - column(centre)) / column(outer)) * (1 + 0.25 * waves(rng, tissue.shape, 3.0, spacing)) < 1
    depth = norm((at - column(centre + shift)) / column(inner)) * (1 + 0.2 * waves(rng, tissue.shape, 2.0, spacing))
    label = np.zeros(tissue.shape, np.uint8)
    label[whole] = 2
    label[depth < 1] = 3
    label[depth < rng.uniform(0.55, 0.7)] = 1
    label[(tissue == OUTSIDE) | _ventricles(tissue)] = 0
    return label


def _ventricles(tissue: NDArray[np.intp]) -> Bools:
    """Fluid that no path of fluid or air joins to the outside."""
    open_space, _ = ndimage.label((tissue == FLUID) | (tissue == OUTSIDE))
    inside: Bools = (tissue == FLUID) & (open_space != open_space[0, 0, 0])
    return inside if inside.any() else tissue == FLUID


# --- scanner -----------------------------------------------------------------------------------------------------


def acquire(
    rng: np.random.Generator, tissue: NDArray[np.intp], spacing: Sequence[float], modalities: Sequence[str]
) -> NDArray[np.int16]:
    """What a scanner shows of tissue: blurred, unevenly lit, noisy, in units that differ from scan to scan.

    Args:
        rng: source of all randomness.
        tissue: (X, Y, Z), as `brain_tissue` gives it, with lesions.
        spacing: mm per voxel.
        modalities: names in `CONTRAST`.

    Returns:
        int16 (X, Y, Z, modalities), 0 where there is no brain.

    Example:
        >>> tissue = np.full((8, 8, 8), WHITE); tissue[0] = OUTSIDE
        >>> image = acquire(np.random.default_rng(0), tissue, (1, 1, 1), ["T1", "T2"])
        >>> image.shape, bool((image[0] == 0).all()), bool((image[1:] > 0).all())
        ((8, 8, 8, 2), True, True)
    """
    brain = tissue != OUTSIDE
    image = np.zeros((*tissue.shape, len(modalities)), np.int16)
    for channel, name in enumerate(modalities):
        bright = np.asarray(CONTRAST[name])[tissue]
        bright = ndimage.gaussian_filter(bright, _BLUR_MM / np.asarray(spacing, dtype=np.float64))
        lit = bright * (1 + _SHADING * waves(rng, tissue.shape, 12.0, spacing))
        noisy = lit + rng.normal(0, NOISE, tissue.shape)
        gain = 1000 * rng.uniform(0.7, 1.4)
        image[..., channel] = np.where(brain, np.maximum(np.round(gain * noisy), 1), 0)
    return image
