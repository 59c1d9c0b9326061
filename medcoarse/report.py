"""Pages for a person to look at: a case with its drawings, errors and matrices. The only place that draws.

Convention: shapes and colours are those of `pictures`. Of a volume the plane of its last axis with the most foreground
is shown. Pages take `indexing="xy"`, as MONAI's readers load files: axis 0 runs to the right and axis 1 down (orient
volumes to "LPS" to see them as radiologists do). For arrays with rows first say "ij".

Figures are made without pyplot and its global state, so that threads and machines without a screen can draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from medcoarse.files import write_atomically
from medcoarse.panels import (
    AnnotatorMaps,
    Indexing,
    Matrix,
    Panel,
    Style,
    annotator_panels,
    entries,
    matrix_groups,
    number_text,
    picture_panels,
)
from medcoarse.pictures import ArrayOrTensor, Colour, as_array, class_colours, fullest_plane, plane_of

INK, FAINT, EDGE, UNKNOWN = "#1f2430", "#6b7280", "#c9ced6", "#d5d8dd"
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
_SMALLEST_SLOT = 2.5  # inches for a matrix with numbers
_HEADING = 0.55  # inches, of a line of matrices

Group = tuple[str, list[Matrix]]
"""Matrices of an annotator, and what stands over them."""


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
class ConfusionCase:
    """An image, and what its annotators do to it.

    Args:
        name: heading of its rows.
        image: (C, *S).
        label: true classes (1, *S), 255 where unknown.
        annotators: who drew it.
    """

    name: str
    image: ArrayOrTensor
    label: ArrayOrTensor
    annotators: Sequence[AnnotatorMaps]


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
    m = as_array(matrix).astype(np.float64)
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
            ax.text(j, i, number_text(value, 2), ha="center", va="center", color=colour, fontsize=14 - size)
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
    style = Style(class_names, class_index, background, indexing, spacing, annotator)
    given = {name: x for name, x in maps.items() if x is not None}
    panels = picture_panels(image, given, style)
    matrices = matrix_groups(given, confusion_positive, confusion_negative, transition, style)
    return _page(title, _in_rows(panels, 3), matrices, style, columns=3)


def annotators_figure(
    image: ArrayOrTensor,
    expected: ArrayOrTensor,
    drawings: ArrayOrTensor | None = None,
    label: ArrayOrTensor | None = None,
    prediction: ArrayOrTensor | None = None,
    annotator_names: Sequence[str] | None = None,
    class_names: Sequence[str] = ("background", "foreground"),
    title: str = "",
    class_index: int | None = 1,
    background: int | None = 0,
    indexing: Indexing = "xy",
    spacing: Sequence[float] | None = None,
) -> Figure:
    """One case of several annotators on one page: truth, prediction, errors, and of each their drawing above what
    the model expects.

    Args:
        image: (H, W), channel-first (C, *S) or (H, W, 3).
        expected: the classes that each annotator would draw, (R, *S).
        drawings: what they drew, (R, *S), 255 undrawn.
        label: true classes, (H, W) or (1, *S), 255 unknown.
        prediction: predicted classes, alike.
        annotator_names: R names; by default numbers.
        class_names: L names.
        title: heading of the page.
        class_index: the class whose errors are shown; None for all together.
        background: the class that is not painted; None where class 0 is a thing like the others.
        indexing: "xy" where axis 0 of all arrays runs to the right, as MONAI loads files; "ij" where it runs down.
        spacing: size of a pixel along each spatial axis, any unit.

    Returns:
        Figure 1600 pixels wide; any part that is None is left out.

    Raises:
        ValueError: sizes of the parts do not match, or names of another number of annotators.

    Example:
        >>> square = np.pad(np.ones((4, 4), int), 2)
        >>> figure = annotators_figure(square / 2, np.stack([square, square]), annotator_names=["Ada", "Max"])
        >>> [ax.get_title("left") for ax in figure.axes]
        ['Image', 'Ada: expected', 'Max: expected']
    """
    style = Style(class_names, class_index, background, indexing, spacing)
    maps = {"label": label, "expected": expected, "drawings": drawings, "prediction": prediction}
    given = {name: x for name, x in maps.items() if x is not None}
    plane = fullest_plane([given[name] for name in ("label", "prediction", "expected") if name in given], background)
    flat = {name: plane_of(as_array(x), plane) for name, x in given.items()}
    whole: dict[str, ArrayOrTensor] = {name: flat[name] for name in ("label", "prediction") if name in flat}
    first = picture_panels(plane_of(as_array(image), plane), whole, style)
    rows = annotator_panels(flat["expected"], flat.get("drawings"), annotator_names, first[0].picture, style)
    return _page(title, [first, *rows], [], style)


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
    style = Style(class_names, class_index, background, indexing, spacing)
    rows: list[list[Panel]] = []
    for case in cases:
        maps = {"label": case.label, "prediction": case.prediction, "mask": case.mask}
        image, *others = picture_panels(case.image, {name: x for name, x in maps.items() if x is not None}, style)
        rows.append([replace(image, title=case.name), *others])
    legend = {entry: None for row in rows for entry in row[-1].legend}  # once, below the last
    rows = [[replace(panel, legend=()) for panel in row] for row in rows]
    rows[-1][-1] = replace(rows[-1][-1], legend=list(legend))
    return _page(title, rows, [], style, columns=4)


def confusion_sheet(
    cases: Sequence[ConfusionCase],
    matrices: Sequence[Group],
    class_names: Sequence[str] = ("background", "foreground"),
    title: str = "",
    background: int | None = 0,
    indexing: Indexing = "xy",
    spacing: Sequence[float] | None = None,
) -> Figure:
    """Confusion matrices pixel by pixel, one row an annotator: a drawing, each entry as estimated, and as it truly is.

    What is true of an entry can be known where the class of its column is; there the estimate has its full colour.

    Args:
        cases: what to show; three of two annotators fit on a screen.
        matrices: heading and matrices of each annotator, to stand below, see `panels.annotator_group`.
        class_names: L names.
        title: heading of the page.
        background: the class that is not painted; None where class 0 is a thing like the others.
        indexing: "xy" where axis 0 of all arrays runs to the right, as MONAI loads files; "ij" where it runs down.
        spacing: size of a pixel along each spatial axis, any unit.

    Returns:
        Figure 1600 pixels wide.

    Raises:
        ValueError: no case.

    Source: CL Fig. 2.

    Example:
        >>> drawn, half = np.eye(8, dtype=int), np.full((2, 2, 8, 8), 0.5)
        >>> case = ConfusionCase("one", np.eye(8)[None], drawn[None], [AnnotatorMaps("positive", drawn, half, half[0])])
        >>> [ax.get_title("left") for ax in confusion_sheet([case], [], ["a", "b"]).axes[2:4]]
        ['drawn: a\\ntrue: a', 'drawn: a\\ntrue: b']
    """
    if not cases:
        raise ValueError("confusion_sheet needs at least one case, got none")
    style = Style(class_names, None, background, indexing, spacing)
    rows = [(case, maps) for case in cases for maps in case.annotators]
    size = 2 + 2 * len(entries(cases[0].annotators[0], cases[0].label, style))
    width = (WIDTH - 2 * MARGIN - 2 * GAP - (size - 3) * 0.1) / size
    shown = style.upright(np.empty(cases[0].image.shape[1:3]), 0).shape
    height = width * min(1.3, shown[0] * style.aspect() / shown[1])
    lines, slot = _matrix_lines(matrices, len(class_names))
    top = 0.85 if title else 0.2
    line = 0.95 + height
    figure = new_figure(WIDTH, top + line * len(rows) + 0.75 + (slot + _HEADING) * len(lines))
    if title:
        _text(figure, MARGIN, 0.52, title, fontsize=20, weight="bold")
    for row, (case, maps) in enumerate(rows):
        _confusion_row(figure, top + row * line, (width, height), case, maps, style)
    _share_bar(figure, top + len(rows) * line + 0.2)
    _draw_matrices(figure, top + len(rows) * line + 0.7, slot, lines, class_names)
    return figure


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


def _in_rows(panels: Sequence[Panel], columns: int) -> list[Sequence[Panel]]:
    return [panels[i : i + columns] for i in range(0, len(panels), columns)]


def _page(
    title: str, rows: Sequence[Sequence[Panel]], matrices: Sequence[Group], style: Style, columns: int | None = None
) -> Figure:
    """Pictures in rows, the colours of the classes, and the matrices, from top to bottom."""
    num_classes = len(style.class_names)
    columns = columns or max(map(len, rows))
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns
    shapes = [panel.picture.shape for row in rows for panel in row]
    height = width * min(1.3, max(shape[0] * style.aspect() / shape[1] for shape in shapes))
    row_heights = [0.38 + height + (0.42 if any(panel.legend for panel in row) else 0.1) for row in rows]
    key_height = 0.24 * math.ceil(num_classes / KEY_COLUMNS) + 0.15 if num_classes > 2 else 0.0
    lines, slot = _matrix_lines(matrices, num_classes)
    top = 0.85 if title else 0.2
    figure = new_figure(WIDTH, top + sum(row_heights) + key_height + (slot + _HEADING) * len(lines) + 0.15)
    if title:
        _text(figure, MARGIN, 0.52, title, fontsize=20, weight="bold")
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, panel in enumerate(row):
            left = MARGIN + column * (width + GAP)
            _picture_panel(_axes(figure, left, top + 0.38, width, height), panel, style.aspect())
        top += row_height
    if key_height:
        _key(_axes(figure, MARGIN, top, WIDTH - 2 * MARGIN, 0.01), style)
    _draw_matrices(figure, top + key_height, slot, lines, style.class_names)
    return figure


def _confusion_row(
    figure: Figure,
    top: float,
    size: tuple[float, float],
    case: ConfusionCase,
    maps: AnnotatorMaps,
    style: Style,
) -> None:
    """Image and drawing, the estimated entries, and the true ones."""
    found = entries(maps, case.label, style)
    drawing = as_array(maps.drawing)[None]
    image, drawn = picture_panels(case.image, {"positive" if maps.positive else "negative": drawing}, style)[:2]
    pictures = [replace(image, title="image"), replace(drawn, title="drawing", legend=())]
    what = "A" if maps.positive else "M A"
    left = MARGIN
    headings = (f"{case.name}, {maps.name.replace('_', ' ')}", f"estimated {what}", f"true {what}")
    for heading, columns in zip(headings, (2, len(found), len(found)), strict=True):
        _text(figure, left, top + 0.2, heading, fontsize=12.5)
        y, end = _from_bottom(figure, top + 0.35), left + columns * (size[0] + 0.1) - 0.1
        figure.add_artist(Line2D([left / WIDTH, end / WIDTH], [y, y], color=EDGE, linewidth=0.8))
        for column in range(columns):
            ax = _axes(figure, left + column * (size[0] + 0.1), top + 0.75, *size)
            if heading == headings[0]:
                _picture_panel(ax, pictures[column], style.aspect())
            else:
                entry, estimated = found[column], heading == headings[1]
                alpha = np.where(np.isnan(entry.true), 0.25, 1.0) if estimated else None
                _share_panel(ax, entry.estimated if estimated else entry.true, alpha, style.aspect())
            title = pictures[column].title if heading == headings[0] else found[column].title
            ax.set_title(title, fontsize=8.5, color=INK, loc="left", pad=4)
        left = end + GAP


def _share_panel(ax: Axes, shares: Any, alpha: Any, aspect: float) -> None:
    """A map of probabilities, light to dark, faded by `alpha`, grey where there is none."""
    ax.imshow(
        np.ma.masked_invalid(shares), cmap=SHARES, vmin=0, vmax=1, alpha=alpha, interpolation="nearest", aspect=aspect
    )
    ax.set_facecolor(UNKNOWN)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(EDGE)


def _share_bar(figure: Figure, top: float) -> None:
    """What the colours of the maps mean."""
    ax = _axes(figure, MARGIN, top, 3.0, 0.16)
    ax.imshow(np.linspace(0, 1, 256)[None], cmap=SHARES, aspect="auto", extent=(0, 1, 0, 1))
    ax.set_yticks([])
    ax.set_xticks([0, 0.5, 1], ["0", "probability 0.5", "1"], fontsize=9, color=INK)
    ax.tick_params(length=0, pad=3)
    for spine in ax.spines.values():
        spine.set_color(EDGE)
    note = "grey and faded: another class is true there, so that the entry cannot be known"
    _text(figure, MARGIN + 3.3, top + 0.08, note, fontsize=10)


def _matrix_lines(matrices: Sequence[Group], num_classes: int) -> tuple[list[list[Group]], float]:
    """As many groups of matrices a line as can be read, and the room for a matrix, in inches."""
    room, printed = WIDTH - 2 * MARGIN + GAP, num_classes <= MAX_PRINTED_CLASSES
    most = room / _SMALLEST_SLOT if printed else 0
    lines: list[list[Group]] = []
    for group in matrices:
        if lines and sum(len(found) for _, found in [*lines[-1], group]) <= most:
            lines[-1].append(group)
        else:
            lines.append([group])
    longest = max((sum(len(found) for _, found in line) for line in lines), default=1)
    return lines, min(3.0 if printed else 4.0, room / max(longest, 1))


def _draw_matrices(
    figure: Figure, top: float, slot: float, lines: Sequence[Sequence[Group]], class_names: Sequence[str]
) -> None:
    """The matrices side by side in slots, under the headings of their groups."""
    width = figure.get_size_inches()[0]
    names = 0.95 if _names_turned(class_names) else 0.55  # room for them and for what the axis is
    side = slot - names - GAP
    for line in lines:
        left = MARGIN
        for heading, group in line:
            _text(figure, left, top + 0.3, heading, fontsize=12.5)
            y = _from_bottom(figure, top + 0.47)
            ends = [left / width, (left + slot * len(group) - GAP) / width]
            figure.add_artist(Line2D(ends, [y, y], color=EDGE, linewidth=0.8))
            for matrix in group:
                ax = _axes(figure, left + names, top + 0.8, side, side)
                matrix_panel(ax, matrix.values, class_names, matrix.title, matrix.row_label, matrix.column_label)
                left += slot
        top += slot + _HEADING


def _picture_panel(ax: Axes, panel: Panel, aspect: float) -> None:
    ax.imshow(panel.picture, aspect=aspect)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(EDGE)
    ax.set_title(panel.title, fontsize=12.5, color=INK, loc="left", pad=7)
    if panel.legend:
        _legend(ax, panel.legend, len(panel.legend))


def _key(ax: Axes, style: Style) -> None:
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
