"""A drawn pelvis in magnetic resonance (T2): a prostate of two zones, organs that look like it, and strokes on it.

Convention: lengths are in mm, axes are right, anterior, superior; volumes are (X, Y, Z). Organs keep their size,
whatever the size of the volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medcoarse.annotators import AnnotatorProfile, draw
from medcoarse.confusion import UNLABELED
from medcoarse.synthetic.fields import Floats, column, norm, positions, streams, waves

CLASS_NAMES = ("background", "peripheral zone", "central gland")

FAT, MUSCLE, BONE, MARROW, URINE, BOWEL, GAS, CENTRAL, PERIPHERAL = range(9)
"""Tissues."""

BRIGHTNESS: Mapping[int, float] = {
    FAT: 0.85, MUSCLE: 0.22, BONE: 0.08, MARROW: 0.6, URINE: 1.0, BOWEL: 0.4, GAS: 0.05, CENTRAL: 0.42,
    PERIPHERAL: 0.72,
}  # fmt: skip
"""How bright each is in T2: the central gland as the wall of the bowel, the peripheral zone nearly as fat."""

NOISE = 0.05
"""Standard deviation of the scanner's noise, on the scale of `BRIGHTNESS`."""

STROKES = (
    (0, AnnotatorProfile(dense=False, scribble_mm=2.0, ratio=0.02, num_parts=2)),
    (0, AnnotatorProfile(dense=False, ratio=0.02, num_parts=8)),
    (1, AnnotatorProfile(dense=False, scribble_mm=3.0, ratio=0.15, num_parts=2)),
    (2, AnnotatorProfile(dense=False, scribble_mm=2.0, swell_mm=1.5, swell_strength_mm=0.4, ratio=0.08)),
)
"""What is drawn on a slice, class by class: of the background a loop half way to the border and dabs anywhere, a
seventh of the peripheral zone, and a dab in the central gland."""

_SHADING = 0.2  # largest deviation of the receiving coil's sensitivity from its mean
_BLUR_MM = 0.7  # standard deviation of the scanner's point spread


@dataclass(frozen=True)
class PelvisScan:
    """A scan, its true classes and the strokes of a person who looked at some slices.

    Args:
        image: (X, Y, Z) int16, in units that differ from scan to scan.
        label: (X, Y, Z) uint8, see `CLASS_NAMES`.
        strokes: (X, Y, Z) uint8, a class or 255 where nothing was drawn.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    strokes: NDArray[np.uint8]


def pelvis_scan(
    seed: int,
    shape: Sequence[int] = (72, 72, 16),
    spacing: Sequence[float] = (1.25, 1.25, 3.6),
    loop_mm: float | None = None,
) -> PelvisScan:
    """Draw T2 of a prostate between bladder, bowel, muscles and bones, and strokes on every other slice of it.

    Args:
        seed: >= 0; the same seed, shape and spacing give the same voxels.
        shape: voxels along each axis, at least 8.
        spacing: mm per voxel along each axis.
        loop_mm: see `draw_strokes`.

    Returns:
        Image, true classes and strokes.

    Raises:
        ValueError: a negative seed, too few voxels or a spacing that is not positive.

    Example:
        >>> scan = pelvis_scan(seed=0)
        >>> np.unique(scan.label).tolist(), bool(0.002 < (scan.strokes != 255).mean() < 0.02)
        ([0, 1, 2], True)
    """
    for_anatomy, for_scanner, for_person = streams(seed, shape, spacing)
    tissue = pelvis_tissue(for_anatomy, shape, spacing)
    label = np.select([tissue == PERIPHERAL, tissue == CENTRAL], [1, 2], 0).astype(np.uint8)
    strokes = draw_strokes(for_person, label, spacing, loop_mm=loop_mm)
    return PelvisScan(acquire(for_scanner, tissue, spacing), label, strokes)


def pelvis_tissue(rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]) -> NDArray[np.intp]:
    """Tissue of every voxel.

    Args:
        rng: source of all randomness.
        shape: voxels along each axis.
        spacing: mm per voxel.

    Example:
        >>> tissue = pelvis_tissue(np.random.default_rng(0), (72, 72, 16), (1.25, 1.25, 3.6))
        >>> set(range(9)) == set(np.unique(tissue).tolist())
        True
    """
    at = positions(shape, spacing)
    at += 2.0 * np.stack([waves(rng, shape, 9.0, spacing) for _ in range(3)])  # no organ is an ellipsoid
    centre = rng.uniform((-4, -4, -4), (4, 4, 4))
    half = rng.uniform((19, 14, 16), (26, 19, 22))
    tissue = np.full(tuple(shape), FAT)

    def fill(kind: int, middle: Sequence[float], axes: Sequence[float] | Floats, within: int | None = None) -> None:
        inside = norm((at - column(centre + middle)) / column(axes)) < 1
        tissue[inside if within is None else inside & (tissue == within)] = kind

    for side in (-1, 1):
        out = half[0] + rng.uniform(9, 12)
        fill(MUSCLE, (side * out, -4, -4), (6, 22, 34))
        fill(BONE, (side * (out + 12), 8, 4), (10, 20, 30))
        fill(MARROW, (side * (out + 12), 8, 4), (7.5, 17, 27))
    fill(MUSCLE, (0, half[1] + 12, -6), (16, 7, 16))
    fill(URINE, (0, 6, half[2] + 14), (24, 20, 16))
    behind = -half[1] - rng.uniform(8, 11)
    fill(BOWEL, (rng.uniform(-3, 3), behind, 0), (13, 9, 60))
    fill(GAS, (rng.uniform(-3, 3), behind, rng.uniform(-10, 10)), (6, 4, rng.uniform(8, 20)))
    fill(MUSCLE, (0, 0, 0), half + 1.5)  # the capsule
    fill(PERIPHERAL, (0, 0, 0), half)
    share = rng.uniform((0.72, 0.66, 0.74), (0.86, 0.8, 0.9))
    fill(CENTRAL, (0, half[1] * (0.97 - share[1]), half[2] * 0.12), half * share, within=PERIPHERAL)
    return tissue


def acquire(rng: np.random.Generator, tissue: NDArray[np.intp], spacing: Sequence[float]) -> NDArray[np.int16]:
    """What a scanner shows of tissue: nodules in the central gland, a coil's shading, blur and noise.

    Args:
        rng: source of all randomness.
        tissue: (X, Y, Z), as `pelvis_tissue` gives it.
        spacing: mm per voxel.

    Example:
        >>> image = acquire(np.random.default_rng(0), np.full((8, 8, 8), FAT), (1, 1, 1))
        >>> image.dtype, bool((image >= 0).all())
        (dtype('int16'), True)
    """
    bright: Floats = np.array([BRIGHTNESS[kind] for kind in range(len(BRIGHTNESS))])[tissue]
    bright[tissue == CENTRAL] += 0.3 * waves(rng, tissue.shape, 3.0, spacing)[tissue == CENTRAL]
    bright[tissue == PERIPHERAL] += 0.15 * waves(rng, tissue.shape, 4.0, spacing)[tissue == PERIPHERAL]
    bright[tissue == FAT] += 0.25 * waves(rng, tissue.shape, 4.0, spacing)[tissue == FAT]  # vessels, ligaments
    bright = ndimage.gaussian_filter(bright, _BLUR_MM / np.asarray(spacing, dtype=np.float64))
    lit = bright * (1 + _SHADING * waves(rng, tissue.shape, 20.0, spacing))
    noisy = lit + rng.normal(0, NOISE, tissue.shape)
    gain = 500 * rng.uniform(0.6, 1.6)
    return np.maximum(np.round(gain * noisy), 0).astype(np.int16)


def draw_strokes(
    rng: np.random.Generator,
    label: NDArray[np.uint8],
    spacing: Sequence[float],
    step: int = 2,
    loop_mm: float | None = None,
) -> NDArray[np.uint8]:
    """Strokes of a person on every `step`-th axial slice that shows the organ, and on the one slice on either side.

    Each slice is drawn on by itself, as in a viewer. Where strokes cross, the later class lies on top.

    Args:
        rng: source of all randomness.
        label: (X, Y, Z), see `CLASS_NAMES`.
        spacing: mm per voxel.
        step: 1 draws on every slice.
        loop_mm: on slices that show the organ, draw the background as one closed line around it, about so far away (a
            third nearer or farther in places), in place of the open one and the dabs. Positive.

    Returns:
        (X, Y, Z) uint8, a class or 255.

    Raises:
        ValueError: for a loop that is no distance.

    Example:
        >>> label = np.zeros((32, 32, 5), np.uint8); label[8:24, 8:24, 2] = 1
        >>> strokes = draw_strokes(np.random.default_rng(0), label, (2, 2, 4), step=1)
        >>> [np.unique(plane).tolist() for plane in np.moveaxis(strokes, 2, 0)]
        [[255], [0, 255], [0, 1, 255], [0, 255], [255]]
    """
    if loop_mm is not None and not loop_mm > 0:
        raise ValueError(f"loop_mm must be a positive distance or None, got {loop_mm}")
    shown = np.flatnonzero((label > 0).any((0, 1)))
    strokes = np.full(label.shape, UNLABELED, np.uint8)
    if not len(shown):
        return strokes
    first, last = int(shown[0]), int(shown[-1])
    slices = {*range(first, last + 1, step), first - 1, last + 1} & set(range(label.shape[2]))
    for k in sorted(slices):
        looped = loop_mm is not None and bool((label[:, :, k] > 0).any())
        if loop_mm is not None and looped:
            strokes[:, :, k][closed_loop(rng, label[:, :, k] > 0, spacing[:2], loop_mm)] = 0
        for number, profile in STROKES:
            if looped and number == 0:
                continue
            drawn, _ = draw(profile, label[:, :, k], number, spacing[:2], rng, num_classes=len(CLASS_NAMES))
            strokes[:, :, k][drawn == number] = number
    return strokes


def closed_loop(
    rng: np.random.Generator, organ: NDArray[np.bool_], spacing: Sequence[float], distance_mm: float
) -> NDArray[np.bool_]:
    """A closed line, one pixel wide, around an organ; where it would leave the picture it runs along the border.

    Args:
        rng: source of all randomness.
        organ: (X, Y), not empty.
        spacing: mm per pixel along each axis.
        distance_mm: mean distance from the organ; it strays by a third of that, in bumps of four times that.

    Example:
        >>> organ = np.zeros((9, 9), bool); organ[4, 4] = True
        >>> line = closed_loop(np.random.default_rng(0), organ, (1, 1), 3.0)
        >>> bool(line[4, 4]), int(ndimage.label(~line)[1])
        (False, 2)
    """
    strayed = distance_mm * (1 + waves(rng, organ.shape, 4 * distance_mm, spacing) / 3)
    away = ndimage.distance_transform_edt(~organ, sampling=tuple(spacing))
    inside = away < np.maximum(strayed, 1.5 * max(spacing))  # never across the organ
    return np.asarray(inside & ~ndimage.binary_erosion(inside, structure=np.ones((3, 3))) & ~organ)
