"""The grids of a set of images, and the one to bring them to: shape, spacing, and where the axes lead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME_SPACING = 0.05
"""Voxels whose sides differ by less, as a ratio, are taken as they are."""

_ANISOTROPIC = 3.0
_LEADS_TO = {"L": "the left", "R": "the right", "P": "the back", "A": "the front", "I": "the feet", "S": "the head"}


@dataclass(frozen=True)
class Facts:
    """What is known of a set of images.

    Args:
        shapes: of each image, as stored; two axes for pictures and single slices, three for volumes.
        spacings: of each image in mm, or None for pictures.
        num_channels: of every image.
        modality: "CT", "MR", "picture", or "" where it is not known.
        low: the median over images of the lowest intensity.
        high: the median over images of the highest.
        usual: the median over images of the 99th percentile.
        drawn_range: from the lowest 0.5th to the highest 99.5th percentile of what is drawn as a structure, one after
            the other; None where nothing is.
        orientations: where the axes of each image lead, as stored, such as "RAS" (to the right, the front, the head);
            None for pictures and single slices.
    """

    shapes: Sequence[Sequence[int]]
    spacings: Sequence[Sequence[float]] | None
    num_channels: int
    modality: str = ""
    low: float = 0.0
    high: float = 1.0
    usual: float = 1.0
    drawn_range: tuple[float, float] | None = None
    orientations: Sequence[str] | None = None


def dims_of(facts: Facts) -> int:
    """How many axes the images have, 2 or 3.

    Raises:
        ValueError: no images, or some with two axes and some with three.

    Example:
        >>> dims_of(Facts([(9, 9)], None, 1))
        2
    """
    axes = {len(shape) for shape in facts.shapes}
    if len(axes) != 1 or not axes <= {2, 3}:
        raise ValueError(f"the images have {sorted(axes)} axes; plan for pictures or for volumes, not for both")
    return axes.pop()


def usual_orientation(facts: Facts) -> tuple[str | None, str]:
    """Where the axes of most images lead, and why all are turned so; None for pictures and single slices.

    Example:
        >>> usual_orientation(Facts([(9, 9, 5)] * 3, [(1, 1, 2)] * 3, 1, orientations=["LAS", "RAS", "LAS"]))
        ('LAS', 'to the left, the front, the head, as the axes of 2 of 3 images lead; the others are turned so')
    """
    if facts.orientations is None:
        return None, "pictures and single slices are taken as they are stored"
    usual, number = Counter(facts.orientations).most_common(1)[0]
    images = len(facts.orientations)
    whose = "all images lead; new ones" if number == images else f"{number} of {images} images lead; the others"
    return usual, f"to {', '.join(_LEADS_TO[code] for code in usual)}, as the axes of {whose} are turned so"


def turned(facts: Facts, orientation: str | None) -> Facts:
    """What is known of images once their axes lead where those of an orientation do.

    Example:
        >>> turned(Facts([(9, 8, 5)], [(1, 2, 3)], 1, orientations=["SAL"]), "RAS").shapes
        [[5, 8, 9]]
    """
    if facts.orientations is None or facts.spacings is None or orientation is None:
        return facts
    orders = [[lines_of(codes).index(line) for line in lines_of(orientation)] for codes in facts.orientations]
    shapes = [[shape[axis] for axis in order] for shape, order in zip(facts.shapes, orders, strict=True)]
    spacings = [[steps[axis] for axis in order] for steps, order in zip(facts.spacings, orders, strict=True)]
    return replace(facts, shapes=shapes, spacings=spacings, orientations=[orientation] * len(orders))


def lines_of(codes: str) -> list[int]:
    """Along which line each axis leads, whichever way: 0 left and right, 1 back and front, 2 down and up.

    Example:
        >>> lines_of("LPS"), lines_of("SRA")
        ([0, 1, 2], [2, 0, 1])
    """
    return ["LRPAIS".index(code) // 2 for code in codes]


def target_spacing(facts: Facts) -> tuple[list[float] | None, str]:
    """The spacing to resample to, or None to take voxels as they are; and why.

    It is the median along each axis. Where that is coarser along one axis by a factor of over three, the tenth
    percentile is taken along it, so that the finer images keep their slices. Where all images have the same it is kept
    for those that the network meets later.

    Example:
        >>> target_spacing(Facts([(9, 9, 9)] * 3, [(1, 1, 1), (1, 1, 2), (1, 1, 2)], 1))[0]
        [1.0, 1.0, 2.0]
    """
    if facts.spacings is None:
        return None, "pictures have no size in mm"
    if dims_of(facts) == 2:
        return None, "single slices are taken as they are"
    found = np.asarray(facts.spacings, dtype=np.float64)
    median = np.median(found, axis=0)
    if have_same_spacing(facts):
        within = f" within {SAME_SPACING:.0%}" if (found != median).any() else ""
        return _in_mm(median), (
            f"all images have the same spacing, {_text(median)} mm{within}, and keep their voxels; images of another "
            "are resampled to it"
        )
    coarsest = int(median.argmax())
    why = f"the median spacing; the images have {_text(found.min(axis=0))} to {_text(found.max(axis=0))} mm"
    if median[coarsest] > _ANISOTROPIC * median.min():
        median[coarsest] = max(np.percentile(found[:, coarsest], 10), np.delete(median, coarsest).max())
        why += f"; along axis {coarsest}, the coarsest, the tenth percentile"
    return _in_mm(median), why


def seen_spacings(facts: Facts) -> tuple[list[float], list[float]] | None:
    """The smallest and largest spacing along each axis of single slices, which are not resampled; None of others.

    Example:
        >>> seen_spacings(Facts([(9, 9)] * 2, [(1.0, 2.0), (1.5, 1.5)], 1))
        ([1.0, 1.5], [1.5, 2.0])
    """
    if facts.spacings is None or dims_of(facts) == 3:
        return None
    found = np.asarray(facts.spacings, dtype=np.float64)
    return _in_mm(found.min(axis=0)), _in_mm(found.max(axis=0))


def is_unseen(spacing: Sequence[float], seen: Sequence[Sequence[float]]) -> bool:
    """Whether a slice has voxels of another size than those that were trained on.

    Example:
        >>> seen = [[1.0, 1.0], [1.5, 1.0]]
        >>> is_unseen([0.97, 1.0], seen), is_unseen([0.5, 0.5], seen)
        (False, True)
    """
    low, high = np.asarray(seen)
    return bool((low > np.multiply(spacing, 1 + SAME_SPACING)).any() or (spacing > high * (1 + SAME_SPACING)).any())


def have_same_spacing(facts: Facts) -> bool:
    """Whether no image has another spacing than the median, by more than is left as it is.

    Example:
        >>> have_same_spacing(Facts([(9, 9)] * 2, [(1, 1), (1, 1.04)], 1))
        True
    """
    found = np.asarray(facts.spacings, dtype=np.float64)
    return bool((np.abs(found / np.median(found, axis=0) - 1) <= SAME_SPACING).all())


def _in_mm(spacing: NDArray[np.float64]) -> list[float]:
    """To 0.1 micrometres, or four digits of what is smaller than a micrometre."""
    return [round(value, 4) if value >= 0.001 else float(f"{value:.4g}") for value in spacing.tolist()]


def _text(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in np.round(values, 4))


def usual_shape(facts: Facts, spacing: Sequence[float] | None) -> tuple[list[int], list[float]]:
    """The median shape after resampling, and the spacing it has.

    Example:
        >>> usual_shape(Facts([(10, 10, 10), (20, 20, 20)], [(2, 2, 2), (1, 1, 1)], 1), [1.0, 1.0, 1.0])
        ([20, 20, 20], [1.0, 1.0, 1.0])
    """
    shapes, steps = resampled_sides(facts, spacing)
    return [max(1, round(side)) for side in np.median(shapes, axis=0)], [float(step) for step in steps]


def resampled_sides(facts: Facts, spacing: Sequence[float] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sides of each image after resampling to a spacing, or as they are for None, and the spacing they have.

    Example:
        >>> resampled_sides(Facts([(10, 10)], [(2.0, 1.0)], 1), [1.0, 1.0])[0].tolist()
        [[20.0, 10.0]]
    """
    shapes = np.asarray(facts.shapes, dtype=np.float64)
    if facts.spacings is None:
        return shapes, np.ones(shapes.shape[1])
    given = np.asarray(facts.spacings, dtype=np.float64)
    if spacing is None:
        return shapes, np.median(given, axis=0)
    steps = np.asarray(spacing, dtype=np.float64)
    return shapes * given / steps, steps
