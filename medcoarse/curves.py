"""The figure of a table: scores against a setting, a curve for each series of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medcoarse.pictures import class_colours
from medcoarse.report import EDGE, FAINT, INK, LEGEND, MARGIN, new_figure

_WIDTH, _HEIGHT, _KEY_WIDTH = 5.0, 3.9, 2.7  # inches: of a panel, and of names that would cover one
_FEW = 6  # curves whose names find room in a panel
_FAR = 3.0  # spreads (of the middle half of all points) below that half, from where a point is left to the table


@dataclass(frozen=True)
class Curve:
    """A score against a setting.

    Args:
        name: entry in the legend; empty for none.
        x: settings in rising order; a single NaN for a score that has none: a level all along the axis.
        mean: scores there; NaN leaves a gap.
        std: half the height of the band; None where there is a single value.
    """

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    std: Sequence[float | None]

    @property
    def is_level(self) -> bool:
        """Whether it is one score for any setting."""
        return len(self.x) == 1 and math.isnan(self.x[0])


def curves_figure(panels: Mapping[str, Sequence[Curve]], x_label: str, log_x: bool = False, title: str = "") -> Figure:
    """Scores against a setting, one panel a score: means as lines, bands of one standard deviation to either side.

    Points far below the others would press those into a line; the axis ends above them, and says how many there are.

    Args:
        panels: name of the score -> curves; equal names have equal colours in all panels.
        x_label: what the setting is, with its unit.
        log_x: logarithmic axis, for settings above 0.
        title: heading of the page.

    Returns:
        Figure with at most three panels in a row.

    Raises:
        ValueError: no panel.

    Example:
        >>> figure = curves_figure({"IoU": [Curve("ours", [1, 2], [0.6, 0.8], [0.1, None])]}, "annotators")
        >>> figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()
        ('IoU', 'annotators')
    """
    if not panels:
        raise ValueError("curves_figure needs at least one panel, got none")
    names = list(dict.fromkeys(c.name for curves in panels.values() for c in curves if not c.is_level))
    colours = dict(zip(names, (class_colours(len(names), background=None) / 255).tolist(), strict=True))
    columns, rows = min(3, len(panels)), math.ceil(len(panels) / 3)
    key_width, heading = _KEY_WIDTH * (len(names) > _FEW), 0.6 if title else 0.1
    width, height = columns * _WIDTH + key_width, heading + rows * _HEIGHT
    figure = new_figure(width, height)
    if title:
        figure.text(MARGIN / width, 1 - 0.35 / height, title, color=INK, va="center", fontsize=14, weight="bold")
    for i, (score, curves) in enumerate(panels.items()):
        left, bottom = (i % columns) * _WIDTH + 0.8, height - heading - (i // columns + 1) * _HEIGHT + 0.7
        ax = figure.add_axes((left / width, bottom / height, (_WIDTH - 1.05) / width, (_HEIGHT - 0.85) / height))
        ax.set_xscale("log" if log_x else "linear")
        _draw(ax, curves, colours)
        if log_x:
            _ticks_where_measured(ax, curves)
        ax.set_xlabel(x_label, fontsize=10, color=FAINT)
        ax.set_ylabel(score, fontsize=10, color=FAINT)
        if any(curve.name for curve in curves) and (not key_width or i == columns - 1):
            place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1)} if key_width else {"loc": "best"}
            ax.legend(**{**LEGEND, **place, "frameon": not key_width, "handlelength": 2})
    return figure


def _draw(ax: Axes, curves: Sequence[Curve], colours: Mapping[str, Any]) -> None:
    for curve in curves:
        if curve.is_level:
            ax.axhline(curve.mean[0], color=FAINT, linestyle="--", linewidth=1, label=curve.name or None)
            continue
        mean = np.asarray(curve.mean, np.float64)
        std = np.array([math.nan if value is None else value for value in curve.std])  # no band where there is none
        ax.fill_between(curve.x, mean - std, mean + std, color=colours[curve.name], alpha=0.2, linewidth=0)
        ax.plot(curve.x, mean, "o-", color=colours[curve.name], label=curve.name or None, markersize=4)
    ax.grid(color=EDGE, linewidth=0.5, alpha=0.6)
    ax.tick_params(colors=INK, labelsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(EDGE)
    _leave_out_far_points(ax, np.array([value for curve in curves for value in curve.mean if not math.isnan(value)]))


def _leave_out_far_points(ax: Axes, means: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """End the axis above points that lie far below the others, which are few by what far means."""
    if means.size == 0:
        return
    low, high = np.percentile(means, [25, 75])
    far = means < low - _FAR * (high - low)
    if not far.any():
        return
    kept = means[~far]
    margin = 0.08 * (kept.max() - kept.min())
    ax.set_ylim(kept.min() - margin, kept.max() + margin)
    text = f"{far.sum()} lower, down to {means.min():.2f}"
    ax.text(0.01, 0.015, text, transform=ax.transAxes, color=FAINT, fontsize=8)


def _ticks_where_measured(ax: Axes, curves: Sequence[Curve]) -> None:
    """At settings that were measured, in plain numbers; those too near to the last are left out."""
    places = sorted({float(x) for curve in curves if not curve.is_level for x in curve.x})
    ticks: list[float] = []
    for place in places:
        if not ticks or math.log(place / ticks[-1]) > 0.09 * math.log(places[-1] / places[0]):
            ticks.append(place)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
