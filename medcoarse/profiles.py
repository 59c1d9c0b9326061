"""Ready annotators, and how a profile is found by its name or read from plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any

from medcoarse.annotators import AnnotatorProfile, Kind


def _negative(**operations: float) -> AnnotatorProfile:
    return AnnotatorProfile(kind="negative", **operations)  # type: ignore[arg-type]


GOOD = AnnotatorProfile()
OVER = AnnotatorProfile(thicken_mm=2.0)
UNDER = AnnotatorProfile(thin_mm=1.0)
WRONG = AnnotatorProfile(swell_mm=3.0, swell_strength_mm=1.0, fracture_ratio=0.8)
BLANK = AnnotatorProfile(blank=True, dense=False)

DHE_GOOD = AnnotatorProfile()
DHE_OVER = AnnotatorProfile(thicken_mm=2.0)
DHE_UNDER = AnnotatorProfile(thin_mm=1.0)
DHE_WRONG = AnnotatorProfile(thicken_mm=2.0, fracture_ratio=0.4)
DHE_SWAPPED = AnnotatorProfile(swap_ratio=0.4, num_parts=3)
DHE_BLANK = AnnotatorProfile(blank=True)

COARSE_POSITIVE = AnnotatorProfile(swell_mm=3.0, fracture_ratio=0.4)
COARSE_NEGATIVE = _negative(swell_mm=2.0, fracture_ratio=0.25)

MNIST_MILD_POSITIVE = AnnotatorProfile(swell_mm=3.0, swell_strength_mm=0.5, num_fractures=3)
MNIST_MILD_NEGATIVE = _negative(swell_mm=2.0, swell_strength_mm=0.65, num_fractures=3)
MNIST_HEAVY_POSITIVE = AnnotatorProfile(thicken_mm=2.0, num_fractures=3)
MNIST_HEAVY_NEGATIVE = _negative(thicken_mm=1.0, num_fractures=3)

STROKE_POSITIVE = AnnotatorProfile(dense=False, scribble_mm=7.0, swell_mm=2.0, ratio=0.3, num_parts=3)
STROKE_NEGATIVE = AnnotatorProfile(kind="negative", dense=False, scribble_mm=7.0, ratio=0.038, num_parts=3)
POLYGON = AnnotatorProfile(dense=False, thin_mm=3.0, preserve=False, polygon_tolerance_mm=4.0)

CITYSCAPES_POSITIVE = AnnotatorProfile(
    dense=False, thin_mm=3.0, preserve=False, polygon_tolerance_mm=5.0, ratio=0.66, num_parts=4
)
CITYSCAPES_NEGATIVE = AnnotatorProfile(
    kind="negative", dense=False, thin_mm=3.0, preserve=False, polygon_tolerance_mm=5.0, ratio=0.2, num_parts=4
)

LEVEL_1_POSITIVE = AnnotatorProfile(scribble_mm=1.0, fracture_ratio=0.4, ratio=0.3)
LEVEL_2_POSITIVE = AnnotatorProfile(swell_mm=3.0, swell_strength_mm=0.6, fracture_ratio=0.4, ratio=0.7)
LEVEL_3_POSITIVE = AnnotatorProfile(swell_mm=3.0, swell_strength_mm=0.6, fracture_ratio=0.4)
LEVEL_4_POSITIVE = AnnotatorProfile(swell_mm=2.0, swell_strength_mm=0.4, fracture_ratio=0.2)
LEVEL_5_POSITIVE = AnnotatorProfile(swell_mm=1.0, swell_strength_mm=0.2, fracture_ratio=0.1)
LEVEL_1_NEGATIVE = _negative(scribble_mm=3.0, fracture_ratio=0.6)
LEVEL_2_NEGATIVE = _negative(swell_mm=2.0, swell_strength_mm=0.6, fracture_ratio=0.6)
LEVEL_3_NEGATIVE = _negative(swell_mm=2.0, swell_strength_mm=0.6, fracture_ratio=0.25)
LEVEL_4_NEGATIVE = _negative(swell_mm=2.0, swell_strength_mm=0.4, fracture_ratio=0.1)
LEVEL_5_NEGATIVE = _negative(swell_mm=1.0, swell_strength_mm=0.2, fracture_ratio=0.05)

CITYSCAPES_WIDTH = 480
"""The two `cityscapes` profiles draw street scenes class by class (`target=None`) as the coarse annotations of that
data set are drawn: polygons of few vertices inside each class; borders, thin things and parts of large regions are left
out, so that about 63 % of the pixels are labelled. Lengths are in pixels of a frame of this width: give `spacing =
CITYSCAPES_WIDTH / width` for any other."""

DHE_BINARY = ("dhe_good", "dhe_over", "dhe_under", "dhe_wrong", "dhe_blank")
"""The five annotators whom DHE simulates on digits and lesions, dense and positive: a faithful one, one who paints too
much, one too little, one who paints too much and leaves gaps, and one who says background everywhere (`blank`, which is
not of them, says nothing). It gives no sizes: these are in pixels of a digit."""

DHE_MULTI_CLASS = ("dhe_good", "dhe_over", "dhe_under", "dhe_swapped", "dhe_blank")
"""The same where DHE has several classes, as on BraTS: the wrong one takes two fifths of the target class for another
and the reverse. Give the class they err about as `target`. Only the blank one changes the remaining classes."""

PROFILES: Mapping[str, AnnotatorProfile] = MappingProxyType(
    {name.lower(): value for name, value in tuple(globals().items()) if isinstance(value, AnnotatorProfile)}
)
"""Every ready annotator by its name in lower case."""


def as_profile(profile: AnnotatorProfile | str | Mapping[str, Any]) -> AnnotatorProfile:
    """A profile from its name, from its fields as a dictionary, or as it is.

    Raises:
        ValueError: an unknown name or field; the message lists the known ones.

    Example:
        >>> as_profile("coarse_positive") is COARSE_POSITIVE, as_profile({"thin_mm": 1.0}).thin_mm
        (True, 1.0)
    """
    if isinstance(profile, AnnotatorProfile):
        return profile
    if isinstance(profile, str):
        if profile not in PROFILES:
            raise ValueError(f"unknown annotator profile {profile!r}; known are {', '.join(PROFILES)}.")
        return PROFILES[profile]
    known = [f.name for f in fields(AnnotatorProfile)]
    unknown = sorted(set(profile) - set(known))
    if unknown:
        raise ValueError(f"unknown annotator field {unknown[0]!r}; known are {', '.join(known)}.")
    return AnnotatorProfile(**profile)


def as_dict(profile: AnnotatorProfile) -> dict[str, Any]:
    """The fields of a profile as plain data; `as_profile` reads them back.

    Example:
        >>> as_profile(as_dict(GOOD)) == GOOD
        True
    """
    return asdict(profile)


def level(n: int, kind: Kind = "positive") -> AnnotatorProfile:
    """Five grades of care, from 1 (little more than a scribble) to 5 (near the truth).

    Args:
        n: 1 to 5.
        kind: "positive" or "negative".

    Raises:
        ValueError: another level.

    Example:
        >>> level(5).swell_mm < level(3).swell_mm
        True
    """
    if n not in range(1, 6):
        raise ValueError(f"an annotator's level must be 1, 2, 3, 4 or 5, got {n!r}.")
    return PROFILES[f"level_{n}_{kind}"]
