"""Cost against the number of classes and of annotators, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from medcoarse.report import save_figure


def draw_curves(results: dict[str, Any], path: Path) -> None:
    """Two panels: milliseconds against classes, milliseconds against annotators."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for way, points in results["against_classes"].items():
        _curve(left, points, "classes", way)
    left.legend(frameon=False)
    _curve(right, results["against_annotators"], "annotators", "diagonal + rank-1")
    for axes, what in ((left, "classes L (one annotator)"), (right, "annotators R (4 classes)")):
        axes.set(xlabel=what, ylabel="ms, forward + backward", xlim=(0, None), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _curve(axes: Axes, points: list[dict[str, Any]], key: str, name: str) -> None:
    axes.plot([p[key] for p in points], [p["median"] * 1e3 for p in points], "o-", label=name)
