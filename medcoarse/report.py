"""Pictures for a person to look at: drawings, errors and confusion matrices. The only place that draws.

Convention: one case at a time. Maps are (H, W) or channel-first (R, *S) with one channel an annotator; images are
(H, W), channel-first (C, *S) or photographs (H, W, 3), in any range. 255 means unlabeled and is see-through or grey.
Of a volume the plane of its last axis with the most foreground is shown.

Pictures are arrays with rows first. Pages take `indexing="xy"`, as MONAI's readers load files: axis 0 runs to the right
and axis 1 down (orient volumes to "LPS" to see them as radiologists do). For arrays with rows first say "ij".

Figures are made without pyplot and its global state, so that threads and machines without a screen can draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import ndimage

from medcoarse import metrics
from medcoarse.confusion import UNLABELED
from medcoarse.files import write_atomically

Picture = npt.NDArray[np.uint8]
ArrayOrTensor = npt.NDArray[Any] | torch.Tensor
Colour = tuple[int, int, int]
Indexing = Literal["xy", "ij"]

HIT, REST, FALSE_ALARM, MISSED = (255, 255, 255), (0, 0, 0), (230, 38, 38), (255, 214, 10)
MIXED_UP, LEFT_OUT = (45, 140, 255), (128, 128, 128)
POSITIVE, NEGATIVE = (0, 214, 224), (255, 64, 200)
INK, FAINT, EDGE = "#1f2430", "#6b7280", "#c9ced6"
SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#cfe3f3", "#5fa3d3", "#135a96", "#08305a"])
WIDTH, MARGIN, GAP, DPI = 16.0, 0.45, 0.28, 100  # inches, inches, inches, pixels an inch
KEY_COLUMNS = 8  # names of classes in a line
LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 10,
    "labelcolor": INK,
    "handlelength": 1,
    "handleheight": 1,
    "handletextpad": 0.45,
    "columnspacing": 1.1,
    "borderaxespad": 0.2,
    "borderpad": 0.2,
}
MAX_PRINTED_CLASSES = 8  # above it, the numbers of a matrix would be too small to read


@dataclass(frozen=True)
class Case:
    """A test case: what the network saw, what is true and what it said.

    Args:
        name: heading of the row.
        image: (H, W), (C, *S) or (H, W, 3).
        label: true classes (H, W) or (1, *S).
        prediction: predicted classes (H, W) or (1, *S).
        mask: field of view (H, W) or (1, *S).
    """

    name: str
    image: ArrayOrTensor
    label: ArrayOrTensor
    prediction: ArrayOrTensor
    mask: ArrayOrTensor | None = None


@dataclass(frozen=True)
class _Panel:
    """A picture on a page, and what its colours mean."""

    title: str
    picture: Picture
    legend: Sequence[tuple[str, Colour]] = ()


@dataclass(frozen=True)
class _Style:
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
class _Matrix:
    """A matrix on a page."""

    title: str
    values: npt.NDArray[Any]
    row_label: str = "drawn"
    column_label: str = "true"


# from arrays to pictures


def picture(image: ArrayOrTensor, plane: int | None = None) -> Picture:
    """An image in any range as red, green and blue bytes.

    Bytes and floats in [0, 1] are shown as they are. Anything else, such as standardized inputs, is stretched from
    its 0.5% to its 99.5% quantile. Images with neither 1, 3 nor 4 channels show their first.

    Args:
        image: (H, W), channel-first (C, *S), or a photograph (H, W, 3).
        plane: which plane of the last axis of a volume; by default the middle one.

    Returns:
        uint8 (H, W, 3).

    Example:
        >>> picture(np.array([[0.0, 1.0]])).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    x = _array(image)
    if x.ndim == 3 and x.shape[-1] in (3, 4) and x.shape[0] > 4:
        x = np.moveaxis(x, -1, 0)
    x = x[None] if x.ndim == 2 else x
    if x.ndim not in (3, 4):
        raise ValueError(f"image must be (H, W), (C, H, W), (C, X, Y, Z) or (H, W, 3), got {x.shape}; give one case")
    x = _plane(x, plane)
    x = x[:3] if x.shape[0] in (3, 4) else x[:1].repeat(3, axis=0)
    return np.ascontiguousarray(np.moveaxis(_to_bytes(x), 0, -1))


def label_picture(label: ArrayOrTensor, num_classes: int = 2, background: int | None = 0) -> Picture:
    """A label map in the colours of its classes: white on black for two, unlabeled pixels grey.

    Args:
        label: classes (H, W) or (1, H, W).
        num_classes: L.
        background: the class that is black; None where class 0 is a thing like the others.

    Returns:
        uint8 (H, W, 3).

    Example:
        >>> label_picture(np.array([[0, 1, 255]]))[0, :, 0].tolist()
        [0, 255, 128]
    """
    x = _classes(_map(label, "label"), "label", num_classes)
    table = np.full((256, 3), LEFT_OUT, np.uint8)
    table[:num_classes] = class_colours(num_classes, background)
    out: Picture = table[x]
    return out


def class_colours(num_classes: int, background: int | None = 0) -> Picture:
    """Colours (L, 3) of the classes: black and white for two, else well separated hues in turning brightness.

    Example:
        >>> class_colours(2).tolist()
        [[0, 0, 0], [255, 255, 255]]
    """
    if num_classes == 2 and background is not None:
        colours = np.full((2, 3), 255, np.uint8)
    else:
        k = np.arange(num_classes)
        hsv = np.stack([(0.08 + k * 0.618034) % 1, 0.9 - 0.25 * (k % 2), 1 - 0.22 * (k % 3)], axis=1)
        colours = np.round(hsv_to_rgb(hsv) * 255).astype(np.uint8)
    if background is not None:
        colours[background] = REST
    return colours


def error_map(
    pred: ArrayOrTensor,
    label: ArrayOrTensor,
    mask: ArrayOrTensor | None = None,
    class_index: int | None = 1,
    background: int | None = 0,
) -> Picture:
    """Where a prediction is right and wrong about a class.

    White: found (true positive). Black: rightly left (true negative). Red: said and not true (false positive).
    Yellow: true and not said (false negative). Grey: label 255 or outside the field of view.

    Args:
        pred: predicted classes (H, W) or (1, H, W).
        label: true classes of the same size.
        mask: field of view of the same size.
        class_index: the class; None takes every class but the background as one, and shows in blue where one such
            class was said for another.
        background: that background; None where there is none.

    Returns:
        uint8 (H, W, 3).

    Example:
        >>> error_map(np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 255]]))[0].tolist()
        [[255, 255, 255], [230, 38, 38], [255, 214, 10], [128, 128, 128]]
    """
    p, t = _map(pred, "pred"), _map(label, "label")
    keep = t != UNLABELED
    if mask is not None:
        keep &= _map(mask, "mask", like=t) != 0
    if p.shape != t.shape:
        raise ValueError(f"pred and label must have the same size, got {p.shape} and {t.shape}; resample pred")
    said, true = (p != background, t != background) if class_index is None else (p == class_index, t == class_index)
    out = np.full((*t.shape, 3), REST, np.uint8)
    out[said & true] = HIT
    out[said & ~true] = FALSE_ALARM
    out[~said & true] = MISSED
    if class_index is None:
        out[said & true & (p != t)] = MIXED_UP
    out[~keep] = LEFT_OUT
    return out


def annotation_overlay(
    image: ArrayOrTensor,
    positive: ArrayOrTensor | None,
    negative: ArrayOrTensor | None,
    annotator: int = 0,
    num_classes: int = 2,
    background: int | None = 0,
) -> Picture:
    """What was drawn, over the photograph in grey: positive in cyan, negative in magenta.

    With more than two classes the outlines have those colours, and the areas those of their classes, negative ones
    striped. Undrawn pixels and those of the background class are see-through.

    Args:
        image: (H, W), (C, H, W) or (H, W, 3).
        positive: "this is class k", (H, W) or (R, H, W); None for none.
        negative: "this is not class k", alike.
        annotator: which of the R annotators.
        num_classes: L.
        background: the class that is not painted; None where class 0 is a thing like the others.

    Returns:
        uint8 (H, W, 3).

    Example:
        >>> drawn = np.array([[1, 255]])
        >>> annotation_overlay(np.zeros((1, 2)), drawn, None)[0].tolist()
        [[0, 184, 193], [0, 0, 0]]
    """
    base = picture(image).astype(np.float32)
    out = 0.8 * base.mean(-1, keepdims=True) + 0.2 * base  # nearly grey, so that only drawings have a strong colour
    colours = class_colours(num_classes, background)
    for name, drawing, colour in (("positive", positive, POSITIVE), ("negative", negative, NEGATIVE)):
        if drawing is not None:
            x = _classes(_map(drawing, name, annotator, like=base[..., 0]), name, num_classes)
            drawn = _foreground(x, background)
            _paint(out, x, drawn, colour, colours if num_classes > 2 else None, striped=name == "negative")
    painted: Picture = np.round(out).astype(np.uint8)
    return painted


def _paint(
    out: npt.NDArray[np.float32],
    x: npt.NDArray[np.int64],
    drawn: npt.NDArray[np.bool_],
    colour: Colour,
    colours_of_classes: Picture | None,
    striped: bool,
) -> None:
    """Lay the drawn areas over a picture: a wash, and an outline that tells a thin stroke from its surroundings."""
    width = max(1, round(max(drawn.shape) / 500))  # of outlines, so that a figure still shows them
    if colours_of_classes is None:
        _blend(out, drawn, np.asarray(colour), 0.5 if drawn.mean() < 0.5 else 0.3)
    else:
        diagonal = np.add.outer(np.arange(drawn.shape[0]), np.arange(drawn.shape[1]))
        area = drawn & (diagonal // (4 * width) % 2 == 0) if striped else drawn
        _blend(out, area, colours_of_classes[x[area]], 0.6)
    outline = drawn & ~ndimage.binary_erosion(drawn, iterations=width, border_value=1)
    _blend(out, outline, np.asarray(colour), 0.8)


def _blend(out: npt.NDArray[np.float32], where: npt.NDArray[np.bool_], colour: npt.NDArray[Any], share: float) -> None:
    out[where] = (1 - share) * out[where] + share * colour


def _foreground(x: npt.NDArray[Any], background: int | None) -> npt.NDArray[np.bool_]:
    """Where a map names a class that is painted."""
    known: npt.NDArray[np.bool_] = x != UNLABELED
    return known if background is None else known & (x != background)


def _array(x: ArrayOrTensor) -> npt.NDArray[Any]:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def _to_bytes(x: npt.NDArray[Any]) -> Picture:
    if x.dtype == np.uint8:
        return x
    x = np.nan_to_num(x.astype(np.float32))
    low, high = (0.0, 1.0) if x.size and x.min() >= 0 and x.max() <= 1 else np.quantile(x, [0.005, 0.995])
    return np.round(np.clip((x - low) / max(high - low, 1e-8), 0, 1) * 255).astype(np.uint8)


def _map(x: ArrayOrTensor, name: str, channel: int = 0, like: npt.NDArray[Any] | None = None) -> npt.NDArray[np.int64]:
    """One label map (H, W) out of (H, W) or (R, H, W)."""
    x = _array(x)
    if x.ndim not in (2, 3):
        raise ValueError(f"{name} must be (H, W) or (R, H, W), got {x.shape}; give one case, and one plane of a volume")
    if x.ndim == 3 and not 0 <= channel < len(x):
        raise ValueError(f"{name} has {len(x)} annotators, so annotator must be in 0 .. {len(x) - 1}, got {channel}")
    x = x[channel] if x.ndim == 3 else x
    if like is not None and x.shape != like.shape:
        raise ValueError(f"{name} must be {like.shape} like the picture, got {x.shape}; crop or resample them together")
    return x.astype(np.int64)


def _classes(x: npt.NDArray[np.int64], name: str, num_classes: int) -> npt.NDArray[np.int64]:
    known = x[x != UNLABELED]
    if known.size and not 0 <= known.min() <= known.max() < num_classes:
        raise ValueError(
            f"{name} must hold classes 0 .. {num_classes - 1} or {UNLABELED}, got values from {known.min()} to "
            f"{known.max()}; check class_names or num_classes"
        )
    return x


def _plane(x: npt.NDArray[Any], index: int | None) -> npt.NDArray[Any]:
    """The plane (C, H, W) of a volume (C, X, Y, Z); flat arrays pass."""
    if x.ndim < 4:
        return x
    return x[..., x.shape[-1] // 2 if index is None else index]


def _fullest_plane(maps: Sequence[ArrayOrTensor | None], background: int | None) -> int | None:
    """The plane in which the first of the given volumes has most foreground; None for flat maps."""
    for x in maps:
        if x is not None and x.ndim == 4:
            volume = _array(x)[0]
            areas = _foreground(volume, background).sum((0, 1))
            return int(areas.argmax()) if areas.any() else volume.shape[-1] // 2
    return None


# matrices


def matrix_panel(
    ax: Axes,
    matrix: ArrayOrTensor,
    class_names: Sequence[str],
    title: str = "",
    row_label: str = "drawn",
    column_label: str = "true",
) -> None:
    """Draw a conditional table with its numbers: shares of each column, light to dark.

    Args:
        ax: where to draw.
        matrix: (observed, true), columns sum to 1; NaN columns, of classes that are absent, are left blank.
        class_names: L names.
        title: heading.
        row_label: what the rows are.
        column_label: what the columns are.

    Example:
        >>> figure = new_figure(4, 4)
        >>> ax = figure.add_subplot()
        >>> matrix_panel(ax, np.eye(2), ["background", "vessel"], title="estimated")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('true', 'drawn')
    """
    m = _array(matrix).astype(np.float64)
    if m.shape != (len(class_names), len(class_names)):
        raise ValueError(
            f"matrix must be ({len(class_names)}, {len(class_names)}) for {list(class_names)}, got {m.shape}"
        )
    ax.imshow(np.ma.masked_invalid(m), cmap=SHARES, vmin=0, vmax=1, interpolation="nearest")
    ax.set_facecolor("#eceef1")
    size = len(class_names)
    if size <= MAX_PRINTED_CLASSES:
        for (i, j), value in np.ndenumerate(m):
            colour = "white" if value > 0.55 else INK
            ax.text(j, i, _number(value, 2), ha="center", va="center", color=colour, fontsize=14 - size)
    names = [name if len(name) <= 12 else name[:11] + "…" for name in class_names]
    turned = _names_turned(class_names)
    fontsize = 9.5 if not turned else 8 if size <= MAX_PRINTED_CLASSES else 6
    ax.set_xticks(range(size), names, rotation=90 if turned else 0, fontsize=fontsize)
    ax.set_yticks(range(size), names, rotation=0 if turned else 90, va="center", fontsize=fontsize)
    ax.tick_params(length=0, colors=INK, pad=4)
    ax.set_xlabel(column_label, fontsize=10, color=FAINT)
    ax.set_ylabel(row_label, fontsize=10, color=FAINT)
    ax.set_title(title, fontsize=11, color=INK, pad=6)
    for edge in range(1, size):
        ax.axhline(edge - 0.5, color="white", linewidth=1.5)
        ax.axvline(edge - 0.5, color="white", linewidth=1.5)
    for spine in ax.spines.values():
        spine.set_color(EDGE)


def _names_turned(class_names: Sequence[str]) -> bool:
    """Whether the names are too long to stand below their columns."""
    return len(class_names) * min(12, max(len(name) for name in class_names)) > 24


# figures


def new_figure(width: float, height: float) -> Figure:
    """A white figure of so many inches that can be written without a screen and without pyplot.

    Example:
        >>> new_figure(4, 3).get_size_inches().tolist()
        [4.0, 3.0]
    """
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def validation_figure(
    image: ArrayOrTensor,
    positive: ArrayOrTensor | None = None,
    negative: ArrayOrTensor | None = None,
    label: ArrayOrTensor | None = None,
    prediction: ArrayOrTensor | None = None,
    confusion_positive: ArrayOrTensor | None = None,
    confusion_negative: ArrayOrTensor | None = None,
    transition: ArrayOrTensor | None = None,
    class_names: Sequence[str] = ("background", "foreground"),
    title: str = "",
    mask: ArrayOrTensor | None = None,
    class_index: int | None = 1,
    annotator: int = 0,
    background: int | None = 0,
    indexing: Indexing = "xy",
    spacing: Sequence[float] | None = None,
) -> Figure:
    """One case on one page: photograph, drawings, truth, prediction, errors, and the matrices behind them.

    Matrices that were estimated stand beside those that counting drawings against the truth gives. What can be counted
    of a negative annotator is the complementary label, `M A`; so with `transition` that product is shown too.

    Args:
        image: (H, W), channel-first (C, *S) or (H, W, 3).
        positive: "this is class k", (H, W) or (R, *S), 255 undrawn.
        negative: "this is not class k", alike.
        label: true classes, (H, W) or (1, *S), 255 unknown.
        prediction: predicted classes, alike.
        confusion_positive: estimated matrix A of the positive annotator, (L, L), or (L, L, *S), which is averaged over
            pixels, each column where its class is true if `label` is there.
        confusion_negative: estimated matrix A of the negative annotator, alike.
        transition: matrix M to complementary labels, (L, L).
        class_names: L names.
        title: heading of the page.
        mask: field of view, (H, W) or (1, *S).
        class_index: the class whose errors are shown; None for all together.
        annotator: which of the R annotators.
        background: the class that is not painted; None where class 0 is a thing like the others.
        indexing: "xy" where axis 0 of all arrays runs to the right, as MONAI loads files; "ij" where it runs down.
        spacing: size of a pixel along each spatial axis, any unit.

    Returns:
        Figure 1600 pixels wide; any part that is None is left out.

    Raises:
        ValueError: sizes of the parts do not match.

    Example:
        >>> square = np.pad(np.ones((4, 4), int), 2)
        >>> figure = validation_figure(square / 2, label=square, prediction=square, confusion_positive=np.eye(2))
        >>> [ax.get_title("left") for ax in figure.axes[:4]]
        ['Image', 'Truth', 'Prediction', 'Errors: foreground   IoU 1.000   Dice 1.000']
    """
    maps = {"label": label, "prediction": prediction, "positive": positive, "negative": negative, "mask": mask}
    style = _Style(class_names, class_index, background, indexing, spacing, annotator)
    given = {name: x for name, x in maps.items() if x is not None}
    panels = _panels(image, given, style)
    matrices = _matrices(given, confusion_positive, confusion_negative, transition, style)
    return _page(title, panels, matrices, columns=3, style=style)


def prediction_sheet(
    cases: Sequence[Case],
    class_names: Sequence[str] = ("background", "foreground"),
    title: str = "",
    class_index: int | None = 1,
    background: int | None = 0,
    indexing: Indexing = "xy",
    spacing: Sequence[float] | None = None,
) -> Figure:
    """Test cases one below the other: image, truth, prediction and errors, with the scores of each.

    Args:
        cases: what to show; half a dozen fit on a screen.
        class_names: L names.
        title: heading of the page.
        class_index: the class that is scored and whose errors are shown; None for all together.
        background: the class that is not painted; None where class 0 is a thing like the others.
        indexing: "xy" where axis 0 of all arrays runs to the right, as MONAI loads files; "ij" where it runs down.
        spacing: size of a pixel along each spatial axis, any unit.

    Returns:
        Figure 1600 pixels wide.

    Raises:
        ValueError: no case, or sizes that do not match.

    Example:
        >>> square = np.pad(np.ones((4, 4), int), 2)
        >>> figure = prediction_sheet([Case("one", square / 2, square, square)])
        >>> len(figure.axes)
        4
    """
    if not cases:
        raise ValueError("prediction_sheet needs at least one case, got none")
    style = _Style(class_names, class_index, background, indexing, spacing)
    rows = []
    for case in cases:
        maps = {"label": case.label, "prediction": case.prediction, "mask": case.mask}
        image, *others = _panels(case.image, {name: x for name, x in maps.items() if x is not None}, style)
        rows.append([replace(image, title=case.name), *others])
    legend = {entry: None for row in rows for entry in row[-1].legend}  # once, below the last
    panels = [replace(panel, legend=()) for row in rows for panel in row]
    panels[-1] = replace(panels[-1], legend=list(legend))
    return _page(title, panels, [], columns=4, style=style)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: what to write.
        path: where, ending in `.png`; missing folders are made.

    Returns:
        The path.

    Raises:
        ValueError: another ending.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(new_figure(1, 1), f"{folder}/new/page.png").name
        'page.png'
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"figures are written as PNG, got {path.name!r}; end the name in .png")
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None}))
    return path


# the pieces of a page


def _panels(image: ArrayOrTensor, maps: dict[str, ArrayOrTensor], style: _Style) -> list[_Panel]:
    """The pictures of one case that there is something for, in reading order."""
    names, background = style.class_names, style.background
    plane = _fullest_plane(list(maps.values()), background)
    photograph = style.upright(picture(image, plane), 0)
    flat = {name: style.upright(_plane(_array(x), plane), -2) for name, x in maps.items()}
    panels = [_Panel("Image", photograph)]
    for name, colour, says in (("positive", POSITIVE, "is"), ("negative", NEGATIVE, "is not")):
        if name in flat:
            positive, negative = (flat[name] if name == kind else None for kind in ("positive", "negative"))
            overlay = annotation_overlay(photograph, positive, negative, style.annotator, len(names), background)
            thing = f"{names[1]}”" if len(names) == 2 else "…”, in the colour of the class"
            panels.append(_Panel(f"{name.capitalize()} drawing", overlay, [(f"“this {says} {thing}", colour)]))
    for title, name in (("Truth", "label"), ("Prediction", "prediction")):
        if name in flat:
            shown = _classes(_map(flat[name], name, like=photograph[..., 0]), name, len(names))
            panels.append(_Panel(title, label_picture(shown, len(names), background)))
    if "label" in flat and "prediction" in flat:
        wrong = error_map(flat["prediction"], flat["label"], flat.get("mask"), style.class_index, background)
        panels.append(_Panel(_score_line(maps, style), wrong, _error_legend(wrong, style)))
    return panels


def _score_line(maps: dict[str, ArrayOrTensor], style: _Style) -> str:
    """Heading of the errors: scores of the whole case, all planes of a volume."""
    whole = {name: _batched(maps[name]) for name in ("prediction", "label", "mask") if name in maps}
    counts = metrics.confusion_counts(whole["prediction"], whole["label"], len(style.class_names), whole.get("mask"))
    k = style.class_index
    if k is None:
        return f"Errors   mean IoU {_number(metrics.mean_iou(counts), 3)}"
    iou, dice = (_number(score(counts)[0, k], 3) for score in (metrics.iou, metrics.dice))
    return f"Errors: {style.class_names[k]}   IoU {iou}   Dice {dice}"


def _number(value: torch.Tensor | float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{float(value):.{digits}f}"


def _error_legend(wrong: Picture, style: _Style) -> list[tuple[str, Colour]]:
    """Names of the error colours that can occur, and of the rarer ones where they do."""
    entries = [("found", HIT)]
    if style.class_index is not None or style.background is not None:
        entries += [("false alarm", FALSE_ALARM), ("missed", MISSED)]
    rare = [("mixed up", MIXED_UP), ("left out", LEFT_OUT)]
    return entries + [(name, colour) for name, colour in rare if (wrong == colour).all(-1).any()]


def _batched(x: ArrayOrTensor, annotator: int = 0) -> torch.Tensor:
    """Map (1, 1, *S) of one annotator, out of (H, W) or (R, *S)."""
    x = _array(x)
    return torch.from_numpy(np.ascontiguousarray(x if x.ndim == 2 else x[annotator]))[None, None]


def _matrices(
    maps: dict[str, ArrayOrTensor],
    confusion_positive: ArrayOrTensor | None,
    confusion_negative: ArrayOrTensor | None,
    transition: ArrayOrTensor | None,
    style: _Style,
) -> list[tuple[str, list[_Matrix]]]:
    """A group of matrices for each annotator: what was estimated, and what can be counted."""
    known = {name: _batched(x, style.annotator if name in ("positive", "negative") else 0) for name, x in maps.items()}
    label, mask = known.get("label"), known.get("mask")
    given = {
        "transition": transition,
        "confusion_positive": confusion_positive,
        "confusion_negative": confusion_negative,
    }
    for name, x in given.items():
        if x is not None and tuple(x.shape[:2]) != (len(style.class_names),) * 2:
            raise ValueError(
                f"{name} must be (L, L, ...) for the classes {list(style.class_names)}, got {tuple(x.shape)}"
            )
    m = None if transition is None else _array(transition).astype(np.float64)
    groups = []
    for name, cm, said in (("positive", confusion_positive, "drawn"), ("negative", confusion_negative, "ruled out")):
        estimate = None if cm is None else _mean_matrix(cm, label, mask)
        panels = []
        if estimate is not None:
            panels.append(_Matrix("estimated A", estimate, "meant" if name == "negative" and m is not None else said))
        if name == "negative" and m is not None:
            panels.append(_Matrix("transition M", m, said, "meant"))
            if estimate is not None:
                estimate = m @ estimate
                panels.append(_Matrix("estimated M A", estimate, said))
        heading = f"{name.capitalize()} annotator"
        if name in known and label is not None:
            counted = metrics.empirical_confusion(known[name], label, len(style.class_names), mask)[0, 0]
            panels.append(_Matrix("counted", counted.numpy(), said))
            if estimate is not None:
                error = metrics.confusion_matrix_error(torch.from_numpy(estimate), counted)
                heading += f"   RMSE {_number(error, 3)}"
        groups.append((heading, panels))
    return [group for group in groups if group[1]]


def _mean_matrix(cm: ArrayOrTensor, label: torch.Tensor | None, mask: torch.Tensor | None) -> npt.NDArray[np.float64]:
    x = torch.from_numpy(_array(cm).astype(np.float64))
    mean: npt.NDArray[np.float64] = (
        x if x.ndim == 2 else metrics.mean_confusion(x[None, None], label, mask)[0, 0]
    ).numpy()
    return mean


def _page(
    title: str,
    panels: Sequence[_Panel],
    matrices: Sequence[tuple[str, list[_Matrix]]],
    columns: int,
    style: _Style,
) -> Figure:
    """Pictures in rows, the colours of the classes, and the matrices, from top to bottom."""
    num_classes = len(style.class_names)
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns
    height = width * min(1.3, max(p.picture.shape[0] * style.aspect() / p.picture.shape[1] for p in panels))
    row_heights = [0.38 + height + (0.42 if any(panel.legend for panel in row) else 0.1) for row in rows]
    key_height = 0.24 * math.ceil(num_classes / KEY_COLUMNS) + 0.15 if num_classes > 2 else 0.0
    lines = [matrices] if num_classes <= MAX_PRINTED_CLASSES else [[group] for group in matrices]
    longest = max((sum(len(group) for _, group in line) for line in lines), default=1)
    slot = min(3.0 if len(lines) == 1 else 4.0, (WIDTH - 2 * MARGIN + GAP) / max(longest, 1))
    line_height = slot + 0.55
    top = 0.85 if title else 0.2
    figure = new_figure(WIDTH, top + sum(row_heights) + key_height + line_height * len(lines) * bool(matrices) + 0.15)
    if title:
        _text(figure, MARGIN, 0.52, title, fontsize=20, weight="bold")
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, panel in enumerate(row):
            left = MARGIN + column * (width + GAP)
            _picture_panel(_axes(figure, left, top + 0.38, width, height), panel, style.aspect())
        top += row_height
    if key_height:
        _key(_axes(figure, MARGIN, top, WIDTH - 2 * MARGIN, 0.01), style)
    for i, line in enumerate(lines):
        _matrix_line(figure, top + key_height + i * line_height, slot, line, style.class_names)
    return figure


def _matrix_line(
    figure: Figure,
    top: float,
    slot: float,
    matrices: Sequence[tuple[str, list[_Matrix]]],
    class_names: Sequence[str],
) -> None:
    """The matrices side by side in slots, under the headings of their groups."""
    left, width = MARGIN, figure.get_size_inches()[0]
    names = 0.95 if _names_turned(class_names) else 0.55  # room for them and for what the axis is
    side = slot - names - GAP
    for heading, group in matrices:
        _text(figure, left, top + 0.3, heading, fontsize=12.5)
        y = _from_bottom(figure, top + 0.47)
        ends = [left / width, (left + slot * len(group) - GAP) / width]
        figure.add_artist(Line2D(ends, [y, y], color=EDGE, linewidth=0.8))
        for matrix in group:
            ax = _axes(figure, left + names, top + 0.8, side, side)
            matrix_panel(ax, matrix.values, class_names, matrix.title, matrix.row_label, matrix.column_label)
            left += slot


def _picture_panel(ax: Axes, panel: _Panel, aspect: float) -> None:
    ax.imshow(panel.picture, aspect=aspect)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(EDGE)
    ax.set_title(panel.title, fontsize=12.5, color=INK, loc="left", pad=7)
    if panel.legend:
        _legend(ax, panel.legend, len(panel.legend))


def _key(ax: Axes, style: _Style) -> None:
    """The colours of the classes, and of pixels without one."""
    colours = class_colours(len(style.class_names), style.background).tolist()
    entries = [(name, (r, g, b)) for name, (r, g, b) in zip(style.class_names, colours, strict=True)]
    _legend(ax, entries, KEY_COLUMNS)
    ax.set_axis_off()


def _legend(ax: Axes, entries: Sequence[tuple[str, Colour]], columns: int) -> None:
    """Coloured squares with their names, below the axes."""
    patches = []
    for name, (red, green, blue) in entries:
        patches.append(Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor="#8a919c", label=name))
    ax.legend(handles=patches, ncols=columns, loc="upper left", bbox_to_anchor=(0, -0.01), **LEGEND)


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes placed in inches from the upper left corner."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, _from_bottom(figure, top + height), width / w, height / h))


def _text(figure: Figure, left: float, top: float, text: str, **options: Any) -> None:
    """Text whose middle is so many inches from the top."""
    x = left / figure.get_size_inches()[0]
    figure.text(x, _from_bottom(figure, top), text, color=INK, va="center", **options)


def _from_bottom(figure: Figure, top: float) -> float:
    return float(1 - top / figure.get_size_inches()[1])
