"""Pictures for a person to look at: drawings, errors and confusion matrices. The only place that draws.

Convention: one case at a time. Maps are (H, W) or channel-first (R, *S) with one channel an annotator; images are
(H, W), channel-first (C, *S) or photographs (H, W, 3), in any range. Axis 0 of a picture points down. Of a volume the
plane of its last axis with the most foreground is shown. 255 means unlabeled and is see-through or grey.

Figures are made without pyplot and its global state, so that threads and machines without a screen can draw.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy import ndimage

from medcoarse import metrics
from medcoarse.confusion import UNLABELED

Picture = npt.NDArray[np.uint8]
ArrayOrTensor = npt.NDArray[Any] | torch.Tensor

HIT, REST, FALSE_ALARM, MISSED = (255, 255, 255), (0, 0, 0), (230, 38, 38), (255, 214, 10)
MIXED_UP, LEFT_OUT = (45, 140, 255), (128, 128, 128)
POSITIVE, NEGATIVE = (0, 214, 224), (255, 64, 200)
INK, FAINT = "#1f2430", "#6b7280"
SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#cfe3f3", "#5fa3d3", "#135a96", "#08305a"])
WIDTH, MARGIN, GAP, DPI = 16.0, 0.45, 0.28, 100  # inches, inches, inches, pixels an inch
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
    x = _map(label, "label")
    known = x[x != UNLABELED]
    if known.size and not 0 <= known.min() <= known.max() < num_classes:
        raise ValueError(
            f"label must hold classes 0 .. {num_classes - 1} or {UNLABELED}, got values from {known.min()} to "
            f"{known.max()}; check class_names or num_classes"
        )
    table = np.full((256, 3), LEFT_OUT, np.uint8)
    table[:num_classes] = class_colours(num_classes, background)
    return table[x]


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
        [[0, 193, 202], [0, 0, 0]]
    """
    base = picture(image).astype(np.float32)
    out = 0.8 * base.mean(-1, keepdims=True) + 0.2 * base  # nearly grey, so that only drawings have a strong colour
    rows, columns = np.indices(base.shape[:2], sparse=True)
    width = max(1, round(max(base.shape[:2]) / 500))  # of outlines, so that a figure still shows them
    colours = class_colours(num_classes, background)
    for drawing, colour, name in ((positive, POSITIVE, "positive"), (negative, NEGATIVE, "negative")):
        if drawing is None:
            continue
        x = _map(drawing, name, annotator, like=base[..., 0])
        drawn = (x != UNLABELED) & (x != (UNLABELED if background is None else background))
        outline = drawn & ~ndimage.binary_erosion(drawn, iterations=width, border_value=1)
        if num_classes == 2:
            _blend(out, drawn, np.asarray(colour), 0.5)
        else:
            stripe = (rows + columns) // (4 * width) % 2 == 0
            area = drawn if name == "positive" else drawn & stripe
            _blend(out, area, colours[x[area]], 0.6)
        _blend(out, outline, np.asarray(colour), 0.8)
    return np.round(out).astype(np.uint8)


def _blend(out: npt.NDArray[np.float32], where: npt.NDArray[np.bool_], colour: npt.NDArray[Any], share: float) -> None:
    out[where] = (1 - share) * out[where] + share * colour


def _array(x: ArrayOrTensor) -> npt.NDArray[Any]:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def _to_bytes(x: npt.NDArray[Any]) -> Picture:
    if x.dtype == np.uint8:
        return x
    x = np.nan_to_num(x.astype(np.float32))
    low, high = (0.0, 1.0) if x.size and 0 <= x.min() and x.max() <= 1 else np.quantile(x, [0.005, 0.995])
    return np.round(np.clip((x - low) / max(high - low, 1e-8), 0, 1) * 255).astype(np.uint8)


def _map(
    x: ArrayOrTensor, name: str, channel: int = 0, like: npt.NDArray[Any] | None = None
) -> npt.NDArray[np.int64]:
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
            foreground = (volume != UNLABELED) & (volume != (UNLABELED if background is None else background))
            areas = foreground.sum((0, 1))
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
        raise ValueError(f"matrix must be ({len(class_names)}, {len(class_names)}) for {list(class_names)}, got {m.shape}")
    ax.imshow(np.ma.masked_invalid(m), cmap=SHARES, vmin=0, vmax=1, interpolation="nearest")
    ax.set_facecolor("#eceef1")
    size = len(class_names)
    small = size > MAX_PRINTED_CLASSES
    if not small:
        for (i, j), value in np.ndenumerate(m):
            text = "–" if math.isnan(value) else f"{value:.2f}"
            colour = "white" if value > 0.55 else INK
            ax.text(j, i, text, ha="center", va="center", color=colour, fontsize=14 - size)
    names = [name if len(name) <= 12 else name[:11] + "…" for name in class_names]
    ax.set_xticks(range(size), names, fontsize=6 if small else 9.5, rotation=90 if size > 3 else 0)
    ax.set_yticks(range(size), names, fontsize=6 if small else 9.5, rotation=0 if size > 3 else 90, va="center")
    ax.tick_params(length=0, colors=INK, pad=4)
    ax.set_xlabel(column_label, fontsize=10, color=FAINT)
    ax.set_ylabel(row_label, fontsize=10, color=FAINT)
    ax.set_title(title, fontsize=11, color=INK, pad=6)
    for edge in range(1, size):
        ax.axhline(edge - 0.5, color="white", linewidth=1.5)
        ax.axvline(edge - 0.5, color="white", linewidth=1.5)
    for spine in ax.spines.values():
        spine.set_color("#c9ced6")


# figures


@dataclass(frozen=True)
class _Panel:
    title: str
    picture: Picture
    legend: Sequence[tuple[str, tuple[int, int, int]]] = ()


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
        spacing: size of a pixel along each spatial axis, any unit.

    Returns:
        Figure 1600 pixels wide; any part that is None is left out.

    Raises:
        ValueError: sizes of the parts do not match.

    Example:
        >>> square = np.pad(np.ones((4, 4), int), 2)
        >>> figure = validation_figure(square / 2, label=square, prediction=square, confusion_positive=np.eye(2))
        >>> [ax.get_title() for ax in figure.axes]
        ['Image', 'Truth', 'Prediction', 'Errors: foreground   IoU 1.00   Dice 1.00', 'estimated A']
    """
    maps = {"positive": positive, "negative": negative, "label": label, "prediction": prediction, "mask": mask}
    plane = _fullest_plane([label, prediction, positive, negative], background)
    flat = {name: None if x is None else _flat(x, plane) for name, x in maps.items()}
    panels = _panels(picture(image, plane), flat, class_names, class_index, annotator, background)
    matrices = _matrices(maps, confusion_positive, confusion_negative, transition, len(class_names), annotator)
    return _page(title, panels, matrices, class_names, 3, spacing, background)


def prediction_sheet(
    cases: Sequence[Case],
    class_names: Sequence[str] = ("background", "foreground"),
    title: str = "",
    class_index: int | None = 1,
    background: int | None = 0,
    spacing: Sequence[float] | None = None,
) -> Figure:
    """Test cases one below the other: image, truth, prediction and errors, with the scores of each.

    Args:
        cases: what to show; half a dozen fit on a screen.
        class_names: L names.
        title: heading of the page.
        class_index: the class that is scored and whose errors are shown; None for all together.
        background: the class that is not painted; None where class 0 is a thing like the others.
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
    panels: list[_Panel] = []
    for case in cases:
        maps = {"label": case.label, "prediction": case.prediction, "mask": case.mask}
        plane = _fullest_plane([case.label, case.prediction], background)
        flat = {name: None if x is None else _flat(x, plane) for name, x in maps.items()}
        row = _panels(picture(case.image, plane), flat, class_names, class_index, 0, background)
        panels += [replace(row[0], title=case.name), *row[1:]]
    return _page(title, panels, [], class_names, 4, spacing, background)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.png")
    try:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"optimize": True})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# the pieces of a page


def _flat(x: ArrayOrTensor, plane: int | None) -> npt.NDArray[Any]:
    """Maps (R, H, W) of a volume (R, X, Y, Z); flat maps pass."""
    return _plane(_array(x), plane)


def _panels(
    image: Picture,
    maps: dict[str, npt.NDArray[Any] | None],
    class_names: Sequence[str],
    class_index: int | None,
    annotator: int,
    background: int | None,
) -> list[_Panel]:
    """The pictures of one case that there is something for, in reading order."""
    num_classes = len(class_names)
    panels = [_Panel("Image", image)]
    for name, colour, says in (("positive", POSITIVE, "is"), ("negative", NEGATIVE, "is not")):
        drawing = maps.get(name)
        if drawing is not None:
            pair = (drawing, None) if name == "positive" else (None, drawing)
            overlay = annotation_overlay(image, *pair, annotator, num_classes, background)
            thing = class_names[1] if num_classes == 2 else "this class"
            panels.append(_Panel(f"{name.capitalize()} drawing", overlay, [(f"“{says} {thing}”", colour)]))
    label, prediction, mask = maps["label"], maps["prediction"], maps["mask"]
    for name, x in (("Truth", label), ("Prediction", prediction)):
        if x is not None:
            shown = label_picture(_map(x, name, like=image[..., 0]), num_classes, background)
            panels.append(_Panel(name, shown))
    if label is not None and prediction is not None:
        wrong = error_map(prediction, label, mask, class_index, background)
        heading = _score_line(prediction, label, mask, class_names, class_index, background)
        panels.append(_Panel(heading, wrong, _error_legend(class_index, bool((wrong == LEFT_OUT).all(-1).any()))))
    return panels
