"""What a page says of a case: its pictures with headings and legends, and the matrices of its annotators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from medcoarse import metrics
from medcoarse.pictures import (
    FALSE_ALARM,
    HIT,
    LEFT_OUT,
    MISSED,
    MIXED_UP,
    NEGATIVE,
    POSITIVE,
    ArrayOrTensor,
    Colour,
    Picture,
    annotation_overlay,
    as_array,
    error_map,
    fullest_plane,
    label_map,
    label_picture,
    picture,
    plane_of,
)

Indexing = Literal["xy", "ij"]

_MOST_IN_A_ROW = 5
_LONGEST_NAME = 18  # characters that fit over a picture of a fifth of the page


@dataclass(frozen=True)
class Panel:
    """A picture on a page, and what its colours mean."""

    title: str
    picture: Picture
    legend: Sequence[tuple[str, Colour]] = ()


@dataclass(frozen=True)
class Style:
    """What all pictures of a page have in common."""

    class_names: Sequence[str]
    class_index: int | None
    background: int | None
    indexing: Indexing
    spacing: Sequence[float] | None
    annotator: int = 0

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise ValueError(f"class_names must name at least 2 classes, got {list(self.class_names)}")
        for name, k in (("class_index", self.class_index), ("background", self.background)):
            if k is not None and not 0 <= k < len(self.class_names):
                raise ValueError(f"{name} must be in 0 .. {len(self.class_names) - 1} or None, got {k}")
        if self.indexing not in ("xy", "ij"):
            raise ValueError(f"indexing must be 'xy' or 'ij', got {self.indexing!r}")

    def upright(self, x: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
        """The array with its rows at axis `rows` and its columns behind them."""
        return x.swapaxes(rows, rows + 1) if self.indexing == "xy" else x

    def aspect(self) -> float:
        """Height of a pixel over its width."""
        if self.spacing is None:
            return 1.0
        first, second = self.spacing[:2]
        return second / first if self.indexing == "xy" else first / second


@dataclass(frozen=True)
class Matrix:
    """A matrix on a page."""

    title: str
    values: npt.NDArray[Any]
    row_label: str = "drawn"
    column_label: str = "true"


@dataclass(frozen=True)
class AnnotatorMaps:
    """What an annotator does to a case, pixel by pixel.

    Args:
        name: "positive", "negative_2" and the like; what it begins with is the kind.
        drawing: one of the drawings (*S), 255 undrawn.
        estimated: probability of what is drawn, or ruled out, (observed, true, *S).
        share: share of the true drawings in which each class was drawn, or ruled out, (observed, *S); NaN where none.
    """

    name: str
    drawing: ArrayOrTensor
    estimated: ArrayOrTensor
    share: ArrayOrTensor

    @property
    def positive(self) -> bool:
        """Whether it says what a thing is."""
        return self.name.startswith("positive")


@dataclass(frozen=True)
class Entry:
    """An entry of a matrix at every pixel: estimated everywhere, true where the class of its column is."""

    title: str
    estimated: npt.NDArray[np.float64]
    true: npt.NDArray[np.float64]


def entries(maps: AnnotatorMaps, label: ArrayOrTensor, style: Style) -> list[Entry]:
    """The entries of an annotator's matrix as maps, row by row.

    With more than two classes, only the column of the true class at each pixel, and of the classes the four with most
    pixels.

    Args:
        maps: what was estimated and what was drawn.
        label: true classes (1, *S), 255 unknown.
        style: names the classes.

    Example:
        >>> eye = np.eye(2)[:, :, None, None].repeat(3, -1)
        >>> maps = AnnotatorMaps("positive", np.array([[0, 1, 1]]), eye, np.array([[[1, 0, 0.5]], [[0, 1, 0.5]]]))
        >>> found = entries(maps, np.array([[[0, 1, 1]]]), Style(["a", "b"], 1, 0, "ij", None))
        >>> [(entry.title, entry.true.tolist()) for entry in found[2:]]
        [('drawn: b\\ntrue: a', [[0.0, nan, nan]]), ('drawn: b\\ntrue: b', [[nan, 1.0, 0.5]])]
    """
    plane, names = fullest_plane([label], style.background), list(style.class_names)
    size, said = len(names), "drawn" if maps.positive else "ruled out"
    flat = [as_array(x) for x in (label, maps.estimated, maps.share)]
    flat = [style.upright(plane_of(x.reshape(-1, *flat[0].shape[1:]), plane), -2) for x in flat]
    truth, estimated, share = flat[0][0], flat[1].reshape(size, size, *flat[0].shape[1:]), flat[2]
    if size == 2:
        return [
            Entry(f"{said}: {names[i]}\ntrue: {names[j]}", estimated[i, j], np.where(truth == j, share[i], np.nan))
            for i in range(2)
            for j in range(2)
        ]
    known = truth < size
    here = np.take_along_axis(estimated, np.where(known, truth, 0)[None, None], 1)[:, 0]
    most = np.bincount(truth[known], minlength=size).argsort(kind="stable")[-4:]
    return [
        Entry(f"{said}: {names[i]}", np.where(known, here[i], np.nan), np.where(known, share[i], np.nan))
        for i in sorted(most.tolist())
    ]


def picture_panels(image: ArrayOrTensor, maps: dict[str, ArrayOrTensor], style: Style) -> list[Panel]:
    """The pictures of one case that there is something for, in reading order.

    Args:
        image: (H, W), channel-first (C, *S) or (H, W, 3).
        maps: what there is of positive, negative, label, prediction and mask, (H, W) or (R, *S).
        style: what the pictures have in common.

    Example:
        >>> maps = {"label": np.eye(4), "prediction": np.eye(4)}
        >>> [panel.title for panel in picture_panels(np.eye(4), maps, Style(["a", "b"], 1, 0, "ij", None))]
        ['Image', 'Truth', 'Prediction', 'Errors: b   IoU 1.000   Dice 1.000']
    """
    names, background = style.class_names, style.background
    telling = [maps[name] for name in ("label", "positive", "negative", "prediction") if name in maps]
    plane = fullest_plane(telling, background)
    photograph = style.upright(picture(image, plane), 0)
    flat = {name: style.upright(plane_of(as_array(x), plane), -2) for name, x in maps.items()}
    panels = [Panel("Image", photograph)]
    for name, colour, says in (("positive", POSITIVE, "is"), ("negative", NEGATIVE, "is not")):
        if name in flat:
            positive, negative = (flat[name] if name == kind else None for kind in ("positive", "negative"))
            overlay = annotation_overlay(photograph, positive, negative, style.annotator, len(names), background)
            thing = f"{names[1]}”" if len(names) == 2 else "…”, in the colour of the class"
            panels.append(Panel(f"{name.capitalize()} drawing", overlay, [(f"“this {says} {thing}", colour)]))
    for title, name in (("Truth", "label"), ("Prediction", "prediction")):
        if name in flat:
            shown = label_map(flat[name], name, like=photograph[..., 0], num_classes=len(names))
            panels.append(Panel(title, label_picture(shown, len(names), background)))
    if "label" in flat and "prediction" in flat:
        wrong = error_map(flat["prediction"], flat["label"], flat.get("mask"), style.class_index, background)
        panels.append(Panel(_score_line(maps, style), wrong, _error_legend(wrong, style)))
    return panels


def annotator_panels(
    expected: npt.NDArray[Any],
    drawings: npt.NDArray[Any] | None,
    names: Sequence[str] | None,
    like: Picture,
    style: Style,
) -> list[list[Panel]]:
    """Rows of pictures: what annotators drew, and below what is expected of them; some of them a row.

    Args:
        expected: classes (R, H, W).
        drawings: alike, 255 undrawn; None leaves them out.
        names: of the annotators; None numbers them.
        like: the picture of the image.
        style: what the pictures have in common.

    Raises:
        ValueError: another number of names or drawings, or another size than the image.

    Example:
        >>> undrawn, picture = np.full((1, 4, 4), 255), np.zeros((4, 4, 3), np.uint8)
        >>> rows = annotator_panels(np.eye(4)[None], undrawn, ["Ada"], picture, Style(["a", "b"], 1, 0, "ij", None))
        >>> [[panel.title for panel in row] for row in rows]
        [['Ada: no drawing'], ['Ada: expected']]
    """
    number, size = len(expected), len(style.class_names)
    names = [f"annotator {r}" for r in range(1, number + 1)] if names is None else list(names)
    if len(names) != number or (drawings is not None and len(drawings) != number):
        raise ValueError(f"{number} annotators are expected to draw, but there are {len(names)} names{_many(drawings)}")

    def shown(maps: npt.NDArray[Any], r: int, says: str) -> Panel:
        upright = label_map(style.upright(maps, -2), says, r, like[..., 0], size)
        what = says if (upright < size).any() else "no drawing"
        return Panel(f"{_shortened(names[r])}: {what}", label_picture(upright, size, style.background))

    kinds = [(maps, says) for maps, says in ((drawings, "drawing"), (expected, "expected")) if maps is not None]
    parts = [range(start, min(start + _MOST_IN_A_ROW, number)) for start in range(0, number, _MOST_IN_A_ROW)]
    return [[shown(maps, r, says) for r in part] for part in parts for maps, says in kinds]


def _many(drawings: npt.NDArray[Any] | None) -> str:
    return "" if drawings is None else f" and {len(drawings)} drawings"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def matrix_groups(
    maps: dict[str, ArrayOrTensor],
    confusion_positive: ArrayOrTensor | None,
    confusion_negative: ArrayOrTensor | None,
    transition: ArrayOrTensor | None,
    style: Style,
) -> list[tuple[str, list[Matrix]]]:
    """A heading and the matrices of each annotator: what was estimated, and what can be counted.

    Args:
        maps: what there is of positive, negative, label and mask, (H, W) or (R, *S).
        confusion_positive: estimated matrix A of the positive annotator, (L, L) or (L, L, *S).
        confusion_negative: estimated matrix A of the negative annotator, alike.
        transition: matrix M to complementary labels, (L, L).
        style: names the classes and the annotator.

    Raises:
        ValueError: a matrix does not fit the classes.

    Example:
        >>> maps = {"positive": np.eye(4, dtype=int), "label": np.eye(4, dtype=int)}
        >>> groups = matrix_groups(maps, np.eye(2), None, None, Style(["a", "b"], 1, 0, "ij", None))
        >>> [(heading, [matrix.title for matrix in group]) for heading, group in groups]
        [('Positive annotator   RMSE 0.000', ['estimated A', 'counted'])]
    """
    num_classes = len(style.class_names)
    given = {
        "transition": transition,
        "confusion_positive": confusion_positive,
        "confusion_negative": confusion_negative,
    }
    for name, x in given.items():
        if x is not None and tuple(x.shape[:2]) != (num_classes, num_classes):
            raise ValueError(
                f"{name} must be (L, L, ...) for the classes {list(style.class_names)}, got {tuple(x.shape)}"
            )
    known = {name: _batched(x, style.annotator if name in ("positive", "negative") else 0) for name, x in maps.items()}
    label, mask = known.get("label"), known.get("mask")
    m = None if transition is None else as_array(transition).astype(np.float64)
    groups = []
    for name, cm, to_drawn in (("positive", confusion_positive, None), ("negative", confusion_negative, m)):
        estimated, counted = None if cm is None else _mean_matrix(cm, label, mask), None
        if name in known and label is not None:
            counted = metrics.empirical_confusion(known[name], label, num_classes, mask)[0, 0].numpy()
        groups.append(annotator_group(name, estimated, to_drawn, counted))
    return [group for group in groups if group[1]]


def annotator_group(
    name: str,
    estimated: npt.NDArray[np.float64] | None,
    to_drawn: npt.NDArray[np.float64] | None,
    counted: npt.NDArray[np.float64] | None,
) -> tuple[str, list[Matrix]]:
    """Heading and matrices of one annotator.

    Args:
        name: "positive" or "negative".
        estimated: matrix A (L, L).
        to_drawn: turns what was meant into what was drawn, the transition matrix M of negative annotators.
        counted: matrix of what was drawn (L, L).

    Example:
        >>> annotator_group("positive", np.eye(2), None, np.eye(2))[0]
        'Positive annotator   RMSE 0.000'
    """
    heading, said = f"{name.capitalize()} annotator", "drawn" if name == "positive" else "ruled out"
    group = []
    if estimated is not None:
        group.append(Matrix("estimated A", estimated, said if to_drawn is None else "meant"))
    if to_drawn is not None:
        group.append(Matrix("transition M", to_drawn, said, "meant"))
        if estimated is not None:
            estimated = to_drawn @ estimated
            group.append(Matrix("estimated M A", estimated, said))
    if counted is not None:
        group.append(Matrix("counted", counted, said))
        if estimated is not None:
            error = metrics.confusion_matrix_error(torch.from_numpy(estimated), torch.from_numpy(counted))
            heading += f"   RMSE {number_text(error, 3)}"
    return heading, group


def number_text(value: torch.Tensor | float, digits: int) -> str:
    """A number with so many digits behind the point, and a dash for one that is undefined.

    Example:
        >>> number_text(0.123, 2), number_text(math.nan, 2)
        ('0.12', '–')
    """
    return "–" if math.isnan(value) else f"{float(value):.{digits}f}"


def _score_line(maps: dict[str, ArrayOrTensor], style: Style) -> str:
    """Heading of the errors: scores of the whole case, all planes of a volume."""
    whole = {name: _batched(maps[name]) for name in ("prediction", "label", "mask") if name in maps}
    counts = metrics.confusion_counts(whole["prediction"], whole["label"], len(style.class_names), whole.get("mask"))
    k = style.class_index
    if k is None:
        return f"Errors   mean IoU {number_text(metrics.mean_iou(counts), 3)}"
    iou, dice = (number_text(score(counts)[0, k], 3) for score in (metrics.iou, metrics.dice))
    return f"Errors: {style.class_names[k]}   IoU {iou}   Dice {dice}"


def _error_legend(wrong: Picture, style: Style) -> list[tuple[str, Colour]]:
    """Names of the error colours that can occur, and of the rarer ones where they do."""
    entries = [("found", HIT)]
    if style.class_index is not None or style.background is not None:
        entries += [("false alarm", FALSE_ALARM), ("missed", MISSED)]
    rare = [("mixed up", MIXED_UP), ("left out", LEFT_OUT)]
    return entries + [(name, colour) for name, colour in rare if (wrong == colour).all(-1).any()]


def _batched(x: ArrayOrTensor, annotator: int = 0) -> torch.Tensor:
    """Map (1, 1, *S) of one annotator, out of (H, W) or (R, *S)."""
    x = as_array(x)
    return torch.from_numpy(np.ascontiguousarray(x if x.ndim == 2 else x[annotator]))[None, None]


def _mean_matrix(cm: ArrayOrTensor, label: torch.Tensor | None, mask: torch.Tensor | None) -> npt.NDArray[np.float64]:
    """One matrix (L, L) out of (L, L) or (L, L, *S)."""
    x = torch.from_numpy(as_array(cm).astype(np.float64))
    mean = x if x.ndim == 2 else metrics.mean_confusion(x[None, None], label, mask)[0, 0]
    return np.asarray(mean)
