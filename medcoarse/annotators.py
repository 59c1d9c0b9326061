"""Who draws: an annotator as plain data, and the drawing that follows from it, a label map and a seed.

Convention:
    A *positive* annotator paints the target class, value k means "this is class k". A *negative* annotator paints
    everything else, value k means "this is NOT class k". A *dense* annotation says something at every voxel, a sparse
    one leaves `UNLABELED` (255) where nothing was drawn. Unknown voxels of the label map (255) stay unknown.
    Drawing goes in three steps: random parameters are drawn, recorded as plain data, then applied without chance.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcoarse import morphology, outlines
from medcoarse.confusion import UNLABELED
from medcoarse.morphology import Mask

Kind = Literal["positive", "negative"]
Parameters = dict[str, Any]
LabelMap = NDArray[np.uint8]
Values = Any
"""A NumPy array or a torch tensor: rules that serve both, one label map (*S) or a batch of them (B, *S)."""
Sample = Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]
Chance = Callable[[Sample], Values]
Distance = Callable[[Values, float], Values]
_Spacing = Sequence[float] | float | None

_PLACES = 2**32  # a random place in a list of any length is recorded as an integer below this
_TIE = 1 + 1e-6  # equal squared distances differ by less: they are rounded to single precision


def _is_number(value: Any, largest: float = sys.float_info.max) -> bool:
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and bool(0 <= value <= largest)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


_Rule = tuple[str, Callable[[Any], bool]]
_LENGTH: _Rule = ("a finite number >= 0", _is_number)
_SWITCH: _Rule = ("True or False", lambda value: isinstance(value, bool))
_RULES: Mapping[str, _Rule] = {
    "kind": ("'positive' or 'negative'", lambda value: value in ("positive", "negative")),
    "dense": _SWITCH,
    "blank": _SWITCH,
    "preserve": _SWITCH,
    "polygon_vertices": ("0 or an integer >= 3", lambda value: _is_count(value, 0) and value not in (1, 2)),
    "num_fractures": ("None or an integer >= 0", lambda value: value is None or _is_count(value, 0)),
    "ratio": ("a number in [0, 1]", lambda value: _is_number(value, 1.0)),
    "num_parts": ("an integer >= 1", lambda value: _is_count(value, 1)),
    "swap_ratio": ("a number in [0, 1]", lambda value: _is_number(value, 1.0)),
    "swap_class": ("None or an integer >= 0", lambda value: value is None or _is_count(value, 0)),
}
"""What a field of a profile must be, in words and as a test; all others are lengths."""


@dataclass(frozen=True, kw_only=True)
class AnnotatorProfile:
    """How one annotator draws. The operations are applied in the order of the fields; those left at 0 do nothing.

    Args:
        kind: "positive" paints the target class, "negative" paints its complement.
        dense: say something at every voxel; otherwise what is not drawn stays unlabeled.
        blank: draw nothing at all: a sparse annotation says nothing, a dense positive one says background everywhere.
        thin_mm: depth taken off all around.
        preserve: thinning keeps the skeleton, so that thin structures survive.
        thicken_mm: depth put on all around.
        polygon_tolerance_mm: how far a polygon may stray from the outline it replaces.
        polygon_vertices: number of vertices of each polygon, instead of a tolerance; 0 means by tolerance.
        scribble_mm: width of a stroke along the centre line.
        swell_mm: reach of local over-segmentation.
        swell_strength_mm: a voxel at distance r is added with probability `swell_strength_mm / r`.
        swell_smoothness_mm: size of the bulges: standard deviation of the Gaussian that smooths the random field.
        fracture_ratio: summed length of the cuts over that of the outline; in 3D, summed squared length over surface.
        num_fractures: number of cuts, instead of the ratio.
        fracture_width_mm: width of a cut.
        fracture_length_mm: length of a cut in 2D, diameter in 3D.
        ratio: drawn voxels over voxels of the true region, at most; in [0, 1]. What is kept lies around random centres.
        num_parts: number of these centres.
        swap_ratio: share of what was said to be the target that is called another class, and share of what was said to
            be that class that is called the target; in [0, 1]. Each share is exact and lies around `num_parts` random
            centres of its own. Without a target, so are all classes, see `swapped_classes`.
        swap_class: that other class; None for the next one, see `swapped_classes`.

    Raises:
        ValueError: a field of the wrong type or out of range; cuts by ratio that have no length.

    Example:
        >>> AnnotatorProfile(kind="negative", thicken_mm=1.0).kind
        'negative'
    """

    kind: Kind = "positive"
    dense: bool = True
    blank: bool = False
    thin_mm: float = 0.0
    preserve: bool = True
    thicken_mm: float = 0.0
    polygon_tolerance_mm: float = 0.0
    polygon_vertices: int = 0
    scribble_mm: float = 0.0
    swell_mm: float = 0.0
    swell_strength_mm: float = 0.6
    swell_smoothness_mm: float = 3.0
    fracture_ratio: float = 0.0
    num_fractures: int | None = None
    fracture_width_mm: float = 2.4
    fracture_length_mm: float = 10.0
    ratio: float = 1.0
    num_parts: int = 1
    swap_ratio: float = 0.0
    swap_class: int | None = None

    def __post_init__(self) -> None:
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            rule, is_valid = _RULES.get(name, _LENGTH)
            if not is_valid(value):
                raise ValueError(f"an annotator's {name} must be {rule}, got {value!r}.")
        if self.fracture_ratio > 0 and not self.fracture_length_mm > 0:
            got = self.fracture_length_mm
            raise ValueError(f"an annotator's fracture_length_mm must be > 0 where fracture_ratio > 0, got {got!r}.")

    @property
    def reach_mm(self) -> float:
        """How far outside the true region this annotator may draw."""
        return self.thicken_mm + self.polygon_tolerance_mm + self.scribble_mm / 2 + self.swell_mm


class Drawing(NamedTuple):
    """An annotation and the random choices that made it."""

    annotation: LabelMap
    parameters: Parameters


def scaled(profile: AnnotatorProfile, factor: float) -> AnnotatorProfile:
    """The same annotator at another magnification: every length times the factor, ratios and counts as they are.

    Swelling comes out a little stronger on finer voxels: the first of them lie closer to the outline, where it is sure.

    Args:
        profile: an annotator.
        factor: > 0, for instance 2 for images with twice as many pixels along each axis.

    Example:
        >>> scaled(AnnotatorProfile(thicken_mm=1.5), 2.0).thicken_mm
        3.0
    """
    if not factor > 0:
        raise ValueError(f"factor must be > 0, got {factor!r}.")
    lengths = {f.name: getattr(profile, f.name) * factor for f in fields(profile) if f.name.endswith("_mm")}
    return replace(profile, **lengths)


def sample_parameters(
    profile: AnnotatorProfile,
    label: NDArray[Any],
    target: int | None,
    spacing: _Spacing,
    rng: np.random.Generator,
    num_classes: int = 2,
) -> Parameters:
    """Draw all random choices of one annotation, as data that JSON can hold.

    Args:
        profile: who draws.
        label: true label map (*S), integers below `num_classes` or `UNLABELED`.
        target: the class that is drawn; None draws every class in turn.
        spacing: mm per voxel.
        rng: the only source of chance.
        num_classes: L >= 2.

    Returns:
        Seeds of the random fields; for each cut, its direction (a unit vector across it) and its place; the places of
        the parts that are kept. A place p stands for voxel number `p * n // 2**32` of the n voxels drawn up to then, in
        memory order. With `target=None`, "classes" holds one such dictionary for each class. An annotator who swaps
        classes has "swap_places", those of each pair of `swapped_classes`.

    Raises:
        ValueError: the label map, the target or the swapped class does not fit `num_classes`.

    Example:
        >>> label = np.zeros((9, 9), np.uint8); label[4, 2:7] = 1
        >>> sorted(sample_parameters(AnnotatorProfile(), label, 1, None, np.random.default_rng(0)))
        ['cut_directions', 'cut_places', 'field_seed', 'num_classes', 'other_seed', 'part_places']
    """
    label = _checked(profile, label, target, num_classes)
    regions = [region_of(profile, label, k) for k in drawn_classes(target, num_classes)]
    sizes = [outlines.boundary_size(region, spacing) if cuts_by_ratio(profile) else 0.0 for region in regions]
    return random_choices(profile, sizes, label.ndim, target, rng, num_classes)


def apply(
    profile: AnnotatorProfile, label: NDArray[Any], target: int | None, spacing: _Spacing, parameters: Parameters
) -> LabelMap:
    """The annotation that follows from recorded parameters; no chance is left.

    Dense positive: pixels of the target that are left out become background (for target 0: the other class if there
    are two, otherwise unlabeled), over-drawn ones become the target, the rest keeps its class. Dense negative: where
    "not k" is not drawn stands the other class if there are two, otherwise one of the other classes at random.
    Without a target, every class is drawn in turn. Positive: later classes lie on top, and a dense annotation gives
    what nobody drew to the nearest drawn class, of equally near ones to the last. Negative: one of the classes ruled
    out at a voxel, each equally likely. Swaps come last: they change what is said, not where.

    Args:
        profile: who draws.
        label: true label map (*S).
        target: the class that is drawn; None for every class in turn.
        spacing: mm per voxel.
        parameters: from `sample_parameters` for the same label map, also after a trip through JSON.

    Returns:
        uint8 annotation (*S).

    Raises:
        ValueError: as for `sample_parameters`.

    Example:
        >>> label = np.array([[0, 1, 1, 0]], np.uint8)
        >>> perfect = AnnotatorProfile()
        >>> apply(perfect, label, 1, None, sample_parameters(perfect, label, 1, None, np.random.default_rng(0)))
        array([[0, 1, 1, 0]], dtype=uint8)
    """
    num_classes = parameters["num_classes"]
    label = _checked(profile, label, target, num_classes)
    rng = np.random.default_rng(parameters["other_seed"])
    sizes = morphology.as_spacing(spacing, label.ndim)
    masks = [
        _drawn(profile, region_of(profile, label, k), sizes, choices_for(parameters, k))
        for k in drawn_classes(target, num_classes)
    ]
    radii = (diagonal(label.shape, sizes),) if target is None else ()
    distance = partial(morphology.squared_distance, spacing=sizes)
    annotation: LabelMap = label.astype(np.uint8)

    def chance(sample: Sample) -> NDArray[Any]:
        return sample(rng, label.shape)

    encode(profile, annotation, masks, target, num_classes, chance, distance, radii)
    return _swap(profile, annotation, swapped_classes(profile, target, num_classes), sizes, parameters)


def draw(
    profile: AnnotatorProfile,
    label: NDArray[Any],
    target: int | None = 1,
    spacing: _Spacing = None,
    seed: int | np.random.Generator = 0,
    num_classes: int = 2,
) -> Drawing:
    """Simulate one annotation of a label map.

    Args:
        profile: who draws.
        label: true label map (*S), integers below `num_classes` or `UNLABELED`.
        target: the class that is drawn; None for every class in turn.
        spacing: mm per voxel.
        seed: an integer, or a generator that moves on.
        num_classes: L >= 2.

    Returns:
        The uint8 annotation (*S) and its parameters.

    Raises:
        ValueError: the label map or the target does not fit `num_classes`.

    Example:
        >>> label = np.zeros((32, 32), np.uint8); label[8:24, 14:18] = 1
        >>> coarse = AnnotatorProfile(swell_mm=3.0, fracture_ratio=0.4)
        >>> annotation, parameters = draw(coarse, label, seed=3)
        >>> bool((apply(coarse, label, 1, None, parameters) == annotation).all())
        True
    """
    parameters = sample_parameters(profile, label, target, spacing, np.random.default_rng(seed), num_classes)
    return Drawing(apply(profile, label, target, spacing, parameters), parameters)


def merge_strokes(positive: NDArray[Any], negative: NDArray[Any], num_classes: int = 2) -> LabelMap:
    """One partial label map from strokes of both kinds.

    A voxel gets the class that the strokes agree on, and `UNLABELED` where nothing was drawn or strokes contradict each
    other. With two classes "not k" says the other one. With more it says no class: it only takes away a positive k.

    Args:
        positive: (R, *S) positive annotations, R >= 0.
        negative: (C, *S) negative annotations, C >= 0.
        num_classes: L >= 2.

    Returns:
        (1, *S) uint8. Of dense annotations with two classes it is their consensus.

    Raises:
        ValueError: the spatial shapes differ, or values are neither classes nor 255.

    Example:
        >>> merge_strokes(np.array([[1, 1, 255, 255]]), np.array([[1, 255, 1, 255]]))
        array([[255,   1,   0, 255]], dtype=uint8)
    """
    if positive.shape[1:] != negative.shape[1:]:
        raise ValueError(f"positive and negative must share (*S), got {positive.shape} and {negative.shape}.")
    check_values(positive, None, num_classes, "positive")
    check_values(negative, None, num_classes, "negative")
    merged = np.full(positive.shape[1:], UNLABELED, np.uint8)
    contradicted = np.zeros(merged.shape, bool)
    for k in range(num_classes):
        said, denied = (positive == k).any(axis=0), (negative == k).any(axis=0)
        if num_classes == 2:
            said |= (negative == 1 - k).any(axis=0)
        contradicted |= said & (denied | (merged != UNLABELED))
        merged[said] = k
    merged[contradicted] = UNLABELED
    return merged[None]


def check_values(label: Values, target: int | None, num_classes: int, name: str = "label") -> None:
    """Raise for a target or values of a label map that are no classes.

    Example:
        >>> check_values(np.array([[2]]), 1, num_classes=2)
        Traceback (most recent call last):
        ValueError: label values must be whole numbers below num_classes=2, or 255, got 2; of more classes pass...
    """
    if target is not None and not 0 <= target < num_classes:
        raise ValueError(f"target must be None or a class below num_classes={num_classes}, got {target!r}.")
    fractions = "float" in str(label.dtype)
    if 0 in label.shape or (not fractions and label.max() < num_classes and label.min() >= 0):  # most are: quick
        return
    wrong = (label < 0) | ((label >= num_classes) & (label != UNLABELED))
    if fractions:
        wrong = wrong | (label != label.round())  # NaN, too
    if wrong.any():
        raise ValueError(
            f"{name} values must be whole numbers below num_classes={num_classes}, or {UNLABELED}, got "
            f"{label[wrong][0]}; of more classes pass num_classes, and move label maps by the nearest voxel."
        )


def region_of(profile: AnnotatorProfile, label: Values, target: int) -> Values:
    """What a perfect annotator of this kind would paint; as all that says `Values`, of arrays and tensors alike.

    Example:
        >>> region_of(AnnotatorProfile(kind="negative"), np.array([[0, 1, 255]]), 1)
        array([[ True, False, False]])
    """
    region = label == target if profile.kind == "positive" else (label != target) & (label != UNLABELED)
    return region & False if profile.blank else region


def drawn_classes(target: int | None, num_classes: int) -> Sequence[int]:
    """The classes that are drawn, in turn.

    Example:
        >>> drawn_classes(1, 3), list(drawn_classes(None, 3))
        ([1], [0, 1, 2])
    """
    return range(num_classes) if target is None else [target]


def swapped_classes(profile: AnnotatorProfile, target: int | None, num_classes: int) -> list[tuple[int, int]]:
    """Pairs (said, called instead) of the classes that this annotator mixes up; empty for one who doesn't.

    The target and `swap_class`, both ways. By default that is the next class, and after the last one the first that
    is not the background; with two classes the other one. Without a target every class but the background goes to the
    next one; with two classes both.

    Raises:
        ValueError: the swapped class is the target or none of the classes, or there is no target to swap it with.

    Example:
        >>> swapped_classes(AnnotatorProfile(swap_ratio=0.5), 3, num_classes=4)
        [(3, 1), (1, 3)]
        >>> swapped_classes(AnnotatorProfile(swap_ratio=0.5), None, num_classes=4)
        [(1, 2), (2, 3), (3, 1)]
    """
    other = profile.swap_class
    if not profile.swap_ratio or profile.blank:
        return []
    if target is None and other is None:
        return [(k, _next_class(k, num_classes)) for k in range(0 if num_classes == 2 else 1, num_classes)]
    if target is None or other == target or (other is not None and other >= num_classes):
        raise ValueError(
            f"swap_class must be a class below num_classes={num_classes} other than the target, got {other} for target "
            f"{target}; leave it None for the next class."
        )
    other = _next_class(target, num_classes) if other is None else other
    return [(target, other), (other, target)]


def choices_for(parameters: Parameters, target: int) -> Parameters:
    """The part of recorded parameters that one drawn class needs.

    Example:
        >>> choices_for({"classes": [{"field_seed": 1}, {"field_seed": 2}]}, 1)
        {'field_seed': 2}
    """
    choices: Parameters = parameters["classes"][target] if "classes" in parameters else parameters
    return choices


def cuts_by_ratio(profile: AnnotatorProfile) -> bool:
    """Whether the number of cuts depends on the size of the outline.

    Example:
        >>> cuts_by_ratio(AnnotatorProfile(num_fractures=3))
        False
    """
    return profile.num_fractures is None and profile.fracture_ratio > 0


def random_choices(
    profile: AnnotatorProfile,
    boundary_sizes: Sequence[float],
    spatial_dims: int,
    target: int | None,
    rng: np.random.Generator,
    num_classes: int,
) -> Parameters:
    """What `sample_parameters` returns, from the size of the outline of each drawn class (only for `cuts_by_ratio`).

    Swaps are drawn last, so that an annotator who swaps classes draws the same shapes as one who doesn't.

    Example:
        >>> random_choices(AnnotatorProfile(num_fractures=1), [0.0], 2, 1, np.random.default_rng(0), 2)["cut_places"]
        [323153949]
    """
    common = {"num_classes": num_classes, "other_seed": int(rng.integers(_PLACES))}
    choices = [_choices_of_one(profile, _num_cuts(profile, b, spatial_dims), spatial_dims, rng) for b in boundary_sizes]
    pairs = swapped_classes(profile, target, num_classes)
    swaps = {"swap_places": rng.integers(_PLACES, size=(len(pairs), profile.num_parts)).tolist()} if pairs else {}
    return common | ({"classes": choices} if target is None else choices[0]) | swaps


class Pen(NamedTuple):
    """Functions of `morphology` and `outlines`, or those that do the same to a batch."""

    thin: Callable[..., Values]
    thicken: Callable[..., Values]
    polygonize: Callable[..., Values]
    scribble: Callable[..., Values]


_PEN = Pen(morphology.thin, morphology.thicken, outlines.polygonize, morphology.scribble)


def redraw(profile: AnnotatorProfile, mask: Values, spacing: tuple[float, ...], pen: Pen) -> Values:
    """The systematic part of a drawing: thin, thicken, polygon, scribble.

    Example:
        >>> redraw(AnnotatorProfile(thicken_mm=1.0), np.array([[True, False, False]]), (1.0, 1.0), _PEN)
        array([[ True,  True, False]])
    """
    if profile.thin_mm:
        mask = pen.thin(mask, profile.thin_mm, spacing, profile.preserve)
    if profile.thicken_mm:
        mask = pen.thicken(mask, profile.thicken_mm, spacing)
    if profile.polygon_vertices or profile.polygon_tolerance_mm:
        mask = pen.polygonize(mask, profile.polygon_tolerance_mm, profile.polygon_vertices or None, spacing)
    if profile.scribble_mm:
        mask = pen.scribble(mask, profile.scribble_mm, spacing)
    return mask


def num_kept(profile: AnnotatorProfile, drawn: int, region: int) -> int:
    """How many of the drawn voxels stay, where the true region has so many.

    Example:
        >>> num_kept(AnnotatorProfile(ratio=0.5), drawn=30, region=20)
        10
    """
    wanted = max(1, round(profile.ratio * region)) if profile.ratio else 0
    return drawn if profile.ratio == 1 else min(drawn, wanted)


def num_swapped(profile: AnnotatorProfile, said: int) -> int:
    """How many voxels of a class are called another one: the share that is swapped, but at least one if there is one.

    Example:
        >>> [num_swapped(AnnotatorProfile(swap_ratio=0.3), said) for said in (20, 1, 0)]
        [6, 1, 0]
    """
    return min(said, max(1, round(profile.swap_ratio * said)))


def diagonal(shape: Sequence[int], sizes: Sequence[float]) -> float:
    """A length in mm that no distance in an image exceeds.

    Example:
        >>> diagonal((3, 4), (1.0, 1.0))
        5.0
    """
    return float(np.linalg.norm(np.multiply(shape, sizes)))


def encode(
    profile: AnnotatorProfile,
    annotation: Values,
    masks: Sequence[Values],
    target: int | None,
    num_classes: int,
    chance: Chance,
    distance: Distance,
    radii: Sequence[float],
) -> None:
    """Write what drawn masks say over the label map, see `apply`.

    Args:
        profile: who has drawn.
        annotation: uint8 label map; changed in place.
        masks: what was drawn of each of the `drawn_classes`, bool.
        target: as for `apply`.
        num_classes: as for `apply`.
        chance: gets a function from a generator and a shape (*S) to an array; returns what it gives, as the masks are.
        distance: from a mask and a radius in mm to squared distances, infinite beyond the radius.
        radii: in mm, growing, the last one no shorter than the image: how far to look for the nearest drawn class.

    Example:
        >>> annotation = np.array([[0, 1, 1]], np.uint8)
        >>> drawn = [np.array([[True, True, False]])]
        >>> encode(AnnotatorProfile(), annotation, drawn, 1, 2, lambda sample: None, lambda mask, radius: None, ())
        >>> annotation
        array([[1, 1, 0]], dtype=uint8)
    """
    unknown = annotation == UNLABELED
    if profile.blank and profile.dense and profile.kind == "positive":
        annotation[...] = 0
    elif target is None and profile.kind == "positive":
        _layer(annotation, masks, profile.dense, distance, radii)
    elif target is None:
        _rule_out(annotation, masks, chance)
    elif not profile.dense:
        annotation[...] = UNLABELED
    elif profile.kind == "positive":
        _leave_out(annotation, target, num_classes)
    else:
        annotation[...] = 1 - target if num_classes == 2 else _others(annotation, target, num_classes, chance)
    if target is not None:
        _paint(annotation, masks[0], target)  # of a blank annotator it is empty
    _paint(annotation, unknown, UNLABELED)


def _checked(profile: AnnotatorProfile, label: NDArray[Any], target: int | None, num_classes: int) -> NDArray[Any]:
    if label.ndim not in (2, 3) or label.dtype.kind not in "iu":
        raise ValueError(f"label must hold integers and have 2 or 3 axes, got {label.dtype} of shape {label.shape}.")
    check_values(label, target, num_classes)
    swapped_classes(profile, target, num_classes)
    return label


def _next_class(k: int, num_classes: int) -> int:
    return 1 - k if num_classes == 2 else k % (num_classes - 1) + 1


def _choices_of_one(profile: AnnotatorProfile, cuts: int, spatial_dims: int, rng: np.random.Generator) -> Parameters:
    directions = rng.standard_normal((cuts, spatial_dims))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return {
        "field_seed": int(rng.integers(_PLACES)),
        "cut_places": rng.integers(_PLACES, size=cuts).tolist(),
        "cut_directions": directions.round(4).tolist(),
        "part_places": rng.integers(_PLACES, size=profile.num_parts if profile.ratio < 1 else 0).tolist(),
    }


def _num_cuts(profile: AnnotatorProfile, boundary_size: float, spatial_dims: int) -> int:
    if not cuts_by_ratio(profile):
        return profile.num_fractures or 0
    return round(profile.fracture_ratio * boundary_size / profile.fracture_length_mm ** (spatial_dims - 1))


def _voxels_at(places: list[int], mask: Mask) -> NDArray[np.intp]:
    """Voxels (N, d) of the mask at these places of its list of voxels, which is stretched to a length of 2**32."""
    voxels = np.flatnonzero(mask)
    picked = voxels[np.array(places, dtype=np.uint64) * np.uint64(len(voxels)) >> np.uint64(32)]
    return np.stack(np.unravel_index(picked, mask.shape), axis=1)


def _drawn(profile: AnnotatorProfile, region: Mask, sizes: tuple[float, ...], parameters: Parameters) -> Mask:
    """The region as this annotator paints it. Only the box that the drawing can reach is worked on."""
    window = morphology.bounding_window(region, profile.reach_mm + max(sizes), sizes)
    drawn = np.zeros_like(region)
    if region.any():
        mask = _roughen(profile, redraw(profile, region[window], sizes, _PEN), sizes, parameters)
        drawn[window] = _shrink(profile, _cut(profile, mask, sizes, parameters), region, sizes, parameters)
    return drawn


def _roughen(profile: AnnotatorProfile, mask: Mask, spacing: tuple[float, ...], parameters: Parameters) -> Mask:
    """Local over-segmentation along a random field."""
    if not profile.swell_mm or not profile.swell_strength_mm:
        return mask
    rng = np.random.default_rng(parameters["field_seed"])
    field = morphology.smooth_field(mask.shape, profile.swell_smoothness_mm, rng, spacing, uniform=False)
    return morphology.swell(mask, profile.swell_mm, profile.swell_strength_mm, field, spacing, uniform=False)


def _cut(profile: AnnotatorProfile, mask: Mask, spacing: tuple[float, ...], parameters: Parameters) -> Mask:
    """Fractures, centred on what has been drawn so far."""
    if not parameters["cut_places"] or not mask.any():
        return mask
    centers = _voxels_at(parameters["cut_places"], mask)
    width, length = profile.fracture_width_mm, profile.fracture_length_mm
    return morphology.fracture(mask, centers, parameters["cut_directions"], width, length, spacing)


def _shrink(
    profile: AnnotatorProfile, mask: Mask, region: Mask, spacing: tuple[float, ...], parameters: Parameters
) -> Mask:
    """Stop when the share of the true region is reached."""
    drawn = int(np.count_nonzero(mask))
    number = num_kept(profile, drawn, int(np.count_nonzero(region)))
    if number == drawn:
        return mask
    return morphology.shrink_to_ratio(mask, number / drawn, _voxels_at(parameters["part_places"], mask), spacing)


def _swap(
    profile: AnnotatorProfile,
    annotation: LabelMap,
    pairs: Sequence[tuple[int, int]],
    spacing: tuple[float, ...],
    parameters: Parameters,
) -> LabelMap:
    """Call a share of each class another one, all at once."""
    swapped = annotation.copy() if pairs else annotation
    for (said, instead), places in zip(pairs, parameters.get("swap_places", ()), strict=True):
        mask = annotation == said
        if number := int(np.count_nonzero(mask)):
            share = num_swapped(profile, number) / number
            _paint(swapped, morphology.shrink_to_ratio(mask, share, _voxels_at(places, mask), spacing), instead)
    return swapped


def _paint(annotation: Values, where: Values, value: int) -> None:
    """``annotation[where] = value``, but for NumPy faster."""
    if isinstance(annotation, np.ndarray):
        np.putmask(annotation, where, value)
    else:
        annotation.masked_fill_(where, value)


def _leave_out(annotation: Values, target: int, num_classes: int) -> None:
    """A dense positive before anything is drawn: the target is not there."""
    if target:
        _paint(annotation, annotation == target, 0)
    else:
        _paint(annotation, annotation == 0, 1 if num_classes == 2 else UNLABELED)


def _others(annotation: Values, target: int, num_classes: int, chance: Chance) -> Values:
    """One of the other classes at every voxel."""
    other = chance(lambda rng, shape: rng.integers(num_classes - 1, size=shape, dtype=np.uint8))
    return other + (other >= target)


def _layer(
    annotation: Values, masks: Sequence[Values], dense: bool, distance: Distance, radii: Sequence[float]
) -> None:
    known = annotation != UNLABELED
    annotation[...] = UNLABELED
    for k, mask in enumerate(masks):
        _paint(annotation, mask, k)
    said = [annotation == k for k in range(len(masks) if dense else 0)]
    for radius in radii if any(mask.any() for mask in said) else ():
        if not (known & (annotation == UNLABELED)).any():
            break
        nearest = math.inf
        for k, mask in enumerate(said):
            squared = distance(mask, radius)
            _paint(annotation, (squared <= nearest * _TIE) & (squared < math.inf), k)
            nearest = squared.clip(max=nearest)


def _rule_out(annotation: Values, masks: Sequence[Values], chance: Chance) -> None:
    annotation[...] = UNLABELED
    seen = annotation ^ annotation
    for k, mask in enumerate(masks):
        seen += mask  # reservoir sampling: the n-th candidate replaces the choice with probability 1 / n
        share = chance(lambda rng, shape: rng.random(shape, dtype=np.float32))
        _paint(annotation, mask & (share * seen < 1), k)
