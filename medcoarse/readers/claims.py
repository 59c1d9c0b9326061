"""What values and names mean: an explicit mapping to (class, positive or negative, annotator), and ready ones.

Convention: "positive" says "this is class k", "negative" says "this is not class k". Nothing is assumed: a value or
name that the mapping does not have is an error, and None is how to say "nothing drawn". Positive and negative claims of
one number are one person's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError
from medcoarse.readers.drawing import Drawing, Layer

Kind = Literal["positive", "negative"]
KINDS: tuple[Kind, Kind] = ("positive", "negative")
PRESETS = ("dense", "unlabeled_255", "itksnap", "slicer", "monailabel_scribbles")

_LISTED = 20


class ContradictionError(DataError):
    """Somebody says two things of one voxel."""


@dataclass(frozen=True)
class Claim:
    """What drawing something says: of which class, that it is or isn't that, and who says so (a number from 0)."""

    label: int
    kind: Kind = "positive"
    annotator: int = 0


Claims = Mapping[str, "Claim | None"]
Maps = dict[Kind, NDArray[np.uint8]]


def preset(name: str, num_classes: int, class_names: Sequence[str] | None = None) -> dict[int | str, Claim | None]:
    """A ready mapping; change or extend it as any dictionary.

    dense: every value k is class k, 0 included: all of the image is drawn, and 0 is background.
    unlabeled_255: as dense, and 255 is nothing drawn: strokes in which background is drawn as 0.
    itksnap: 0 ("clear label") is nothing drawn, k is class k.
    slicer: segments by name: that of a class, or "not" and that of a class ("vessel", "not vessel").
    monailabel_scribbles: n + 1 is the scribble of background, read as "not class n", n + 2 that of foreground, read as
    "class n", for n = num_classes - 1; 0 is nothing drawn. With several classes of foreground it depends on what the
    scribbler had chosen: write the mapping.

    Args:
        name: see above.
        num_classes: L >= 2, background included.
        class_names: L names, background first; for slicer only.

    Raises:
        ValueError: no such preset, names are missing or needless, or scribbles of several classes.

    Example:
        >>> preset("monailabel_scribbles", 2)
        {0: None, 2: Claim(label=1, kind='negative', annotator=0), 3: Claim(label=1, kind='positive', annotator=0)}
        >>> list(preset("slicer", 2, ["background", "vessel"]))
        ['background', 'not background', 'vessel', 'not vessel']
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}, expected one of {PRESETS} or a mapping such as {{2: (1, 'positive')}}.")
    if name == "slicer":
        if class_names is None or len(class_names) != num_classes:
            raise ValueError(f"preset 'slicer' needs class_names, {num_classes} names, got {class_names}.")
        pairs = [(start + label, kind) for label in class_names for start, kind in (("", KINDS[0]), ("not ", KINDS[1]))]
        return {text: Claim(index // 2, kind) for index, (text, kind) in enumerate(pairs)}
    if name == "monailabel_scribbles":
        if num_classes != 2:
            raise ValueError(
                f"preset {name!r} is for one class of foreground, got num_classes {num_classes}; which class was "
                f"chosen is not in the file: write a mapping such as {{0: None, {num_classes}: (1, 'negative'), "
                f"{num_classes + 1}: (1, 'positive')}}."
            )
        return {0: None, 2: Claim(1, "negative"), 3: Claim(1)}
    found: dict[int | str, Claim | None] = {label: Claim(label) for label in range(num_classes)}
    return found | {"dense": {}, "unlabeled_255": {255: None}, "itksnap": {0: None}}[name]


def as_claims(mapping: Mapping[Any, Any], num_classes: int) -> dict[str, Claim | None]:
    """A mapping as users and JSON files write it, checked; keys become text.

    Args:
        mapping: value or name -> a Claim, (class, kind), (class, kind, annotator), or None for nothing drawn.
        num_classes: L >= 2.

    Raises:
        ValueError: anything else, a class that is none, or a key that is there twice, as number and as text.

    Example:
        >>> as_claims({1: (1, "positive"), "edge": [1, "negative", 2], 0: None}, 2)["edge"]
        Claim(label=1, kind='negative', annotator=2)
    """
    claims = {str(key): _as_claim(key, value, num_classes) for key, value in mapping.items()}
    if len(claims) != len(mapping):
        raise ValueError(f"the mapping has a key twice, as number and as text: {list(mapping)}.")
    if not any(claims.values()):
        raise ValueError(f"the mapping says nothing, got {dict(mapping)}; map a value or name to (class, 'positive').")
    return claims


def _as_claim(key: Any, value: Any, num_classes: int) -> Claim | None:
    if value is None or value == "null":  # JSON's, as MONAI's command line hands it on
        return None
    try:
        claim = value if isinstance(value, Claim) else Claim(*(() if isinstance(value, str) else value))
        sound = (
            0 <= claim.label < min(num_classes, UNLABELED) and claim.kind in KINDS and 0 <= claim.annotator < UNLABELED
        )
        sound = sound and claim.label == int(claim.label) and claim.annotator == int(claim.annotator)
    except TypeError:
        sound = False
    if not sound:
        raise ValueError(
            f"{key!r} is mapped to {value!r}, expected None (nothing drawn) or (class, 'positive' or 'negative', "
            f"annotator) with classes 0 to {num_classes - 1} and annotators from 0."
        )
    return claim


def num_annotators(claims: Claims, kind: Kind) -> int:
    """How many annotators of a kind a mapping knows.

    Example:
        >>> num_annotators(as_claims({1: (1, "positive", 2)}, 2), "positive")
        3
    """
    return max((claim.annotator + 1 for claim in claims.values() if claim and claim.kind == kind), default=0)


def claimed(drawing: Drawing, claims: Claims, source: Any, contradictions: str = "error") -> Maps:
    """Positive (R, *S) and negative (C, *S) maps of a drawing, on its own grid; 255 where nothing is drawn.

    Args:
        drawing: from a reader.
        claims: from `as_claims`.
        source: what to call the drawing in errors.
        contradictions: what to do where one annotator says that a voxel is two classes, that it is and isn't a class,
            or that it isn't two classes (which one map cannot hold): "error"; "unlabeled" for 255; or "last", for
            structures in one another: what comes later in `claims` covers what comes earlier.

    Raises:
        DataError: something drawn that the mapping does not have, or contradictions.

    Example:
        >>> from medcoarse.readers.drawing import Grid
        >>> drawing = Drawing(Grid((3,)), (Layer(np.array([0, 1, 2])),), segments=False)
        >>> maps = claimed(drawing, as_claims({0: None, 1: (1, "positive"), 2: (1, "negative")}, 2), "a")
        >>> maps["positive"].tolist(), maps["negative"].tolist()
        ([[255, 1, 255]], [[255, 255, 1]])
        >>> claimed(drawing, as_claims({1: (1, "positive")}, 2), "a.nii.gz")
        Traceback (most recent call last):
        medcoarse.datalist.DataError: a.nii.gz: '0' (1 voxels), '2' (1 voxels) are drawn, but not in the mapping...
    """
    _require_mapped(drawing, claims, source)
    for name, why in drawing.unplaced.items():
        if claims.get(name, True):
            raise DataError(f"{why}; or map it to None, which leaves it out")
    shape = drawing.layers[0].values.shape
    maps = {kind: np.full((num_annotators(claims, kind), *shape), UNLABELED, np.uint8) for kind in KINDS}
    if contradictions == "last":
        _add_outside(maps, drawing, claims)
        _paint(maps, drawing, claims)
        return maps
    clashes: dict[int, NDArray[np.bool_]] = {}
    for layer in drawing.layers:
        for kind in KINDS:
            for annotator, table in enumerate(_tables(layer, claims, kind, drawing.segments)):
                if (table != UNLABELED).any():
                    _add(maps[kind], annotator, table[layer.values], clashes)
    _add_outside(maps, drawing, claims)
    for annotator in range(min(map(len, maps.values()))):
        positive, negative = (maps[kind][annotator] for kind in KINDS)
        _clash(clashes, annotator, (positive == negative) & (positive != UNLABELED))
    if clashes and contradictions == "error":
        raise ContradictionError(_contradiction(clashes, source))
    for annotator, clash in clashes.items():
        for values in maps.values():
            if annotator < len(values):
                values[annotator][clash] = UNLABELED
    return maps


def outside(drawing: Drawing, claims: Claims, kind: Kind) -> list[int]:
    """What each annotator of a kind says where the file has no voxels: that of "in no segment", if it is mapped."""
    claim = claims.get("0") if drawing.segments else None
    number = num_annotators(claims, kind)
    return [
        claim.label if claim and (claim.kind, claim.annotator) == (kind, annotator) else UNLABELED
        for annotator in range(number)
    ]


def drawn_names(layer: Layer) -> dict[int, str]:
    """The values that occur in a layer, and what they are called.

    Example:
        >>> drawn_names(Layer(np.array([0, 2, 2]), {1: "a", 2: "b"}))
        {0: '0', 2: 'b'}
    """
    seen = np.zeros(int(layer.values.max(initial=0)) + 1, dtype=bool)
    seen[layer.values] = True
    return {int(value): layer.names.get(int(value), str(value)) for value in np.flatnonzero(seen)}


def folded(name: str) -> str:
    """A name as it is compared: without capitals, and any blanks as one.

    Example:
        >>> folded(" Central  Gland")
        'central gland'
    """
    return " ".join(name.casefold().split())


def class_named(name: str, class_names: Sequence[str]) -> int | None:
    """The class of a name: that is called so, or the only one that is but for capitals and blanks.

    Example:
        >>> class_named("Liver", ["background", "liver"]), class_named("t1", ["T1", "t1"]), class_named("X", ["a"])
        (1, 1, None)
    """
    same = [label for label, other in enumerate(class_names) if folded(other) == folded(name)]
    return list(class_names).index(name) if name in class_names else same[0] if len(same) == 1 else None


def _require_mapped(drawing: Drawing, claims: Claims, source: Any) -> None:
    unmapped: dict[str, int] = {}
    for layer in drawing.layers:
        for value, name in drawn_names(layer).items():
            if name not in claims and not (drawing.segments and value == 0):
                unmapped[name] = unmapped.get(name, 0) + int(np.count_nonzero(layer.values == value))
                if len(unmapped) > _LISTED:
                    break
    if unmapped:
        listed = ", ".join(f"{name[:80]!r} ({number} voxels)" for name, number in list(unmapped.items())[:_LISTED])
        more = " and more" if len(unmapped) > _LISTED else ""
        first = next(iter(unmapped))[:80]
        raise DataError(
            f"{source}: {listed}{more} are drawn, but not in the mapping, which has {list(claims)[:_LISTED]}; map each "
            f"to a class, as in {{{first!r}: (class, 'positive')}} for \"this is it\" or "
            f"{{{first!r}: (class, 'negative')}} "
            f'for "this is not it", or to None for "nothing drawn"'
        )


def _tables(layer: Layer, claims: Claims, kind: Kind, segments: bool) -> NDArray[np.uint8]:
    """For every annotator of a kind: value in the layer -> class, or 255."""
    names = drawn_names(layer)
    tables = np.full((num_annotators(claims, kind), max(names, default=0) + 1), UNLABELED, np.uint8)
    for value, name in names.items():
        claim = claims.get(name)
        if claim and claim.kind == kind and not (segments and value == 0):
            tables[claim.annotator, value] = claim.label
    return tables


def _add(
    maps: NDArray[np.uint8], annotator: int, said: NDArray[np.uint8], clashes: dict[int, NDArray[np.bool_]]
) -> None:
    before = maps[annotator]
    speaks = said != UNLABELED
    _clash(clashes, annotator, speaks & (before != UNLABELED) & (before != said))
    before[speaks] = said[speaks]


def _paint(maps: Maps, drawing: Drawing, claims: Claims) -> None:
    """One claim over the other, in their order."""
    shown: dict[str, list[tuple[int, int]]] = {}
    for number, layer in enumerate(drawing.layers):
        for value, name in drawn_names(layer).items():
            if value or not drawing.segments:
                shown.setdefault(name, []).append((number, value))
    for name, claim in claims.items():
        for number, value in shown.get(name, ()) if claim else ():
            assert claim
            where = drawing.layers[number].values == value
            maps[claim.kind][claim.annotator][where] = claim.label
            for others in (others for kind, others in maps.items() if kind != claim.kind):
                if claim.annotator < len(others):
                    denied = others[claim.annotator]
                    denied[where & (denied == claim.label)] = UNLABELED


def _clash(clashes: dict[int, NDArray[np.bool_]], annotator: int, where: NDArray[np.bool_]) -> None:
    if where.any():
        clashes[annotator] = clashes[annotator] | where if annotator in clashes else where


def _add_outside(maps: Maps, drawing: Drawing, claims: Claims) -> None:
    """Where no layer has a segment, and "in no segment" means something."""
    claim = claims.get("0")
    if claim and drawing.segments:
        nothing = np.all([layer.values == 0 for layer in drawing.layers], axis=0)
        maps[claim.kind][claim.annotator][nothing] = claim.label


def _contradiction(clashes: Mapping[int, NDArray[np.bool_]], source: Any) -> str:
    listed = ", ".join(
        f"annotator {annotator} at {np.count_nonzero(where)} voxels, first {tuple(map(int, np.argwhere(where)[0]))}"
        for annotator, where in clashes.items()
    )
    return (
        f"{source}: contradicts itself: {listed}; correct the drawing, map its parts to different annotators, or pass "
        "contradictions='unlabeled' (or 'last', where structures lie in one another)"
    )
