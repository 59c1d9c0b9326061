"""What annotation costs, and what to draw with the hours that there are."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

MINUTES = {"coarse": 7.0, "fine": 90.0}
"""Minutes that a street scene takes: coarse and fine annotation of Cityscapes, as Das et al. count them."""


class Forecast(NamedTuple):
    """What a way of drawing is expected to give.

    Args:
        kind: the way of drawing.
        score: expected; NaN where nothing measured says so.
        hours: that it needs for that, which may be fewer than there are.
        known: ``True`` between measured points, ``False`` below the cheapest one, where there is no score, and beyond
            the dearest one, where its score is a lower bound.
    """

    kind: str
    score: float
    hours: float
    known: bool


def hours_of(num_images: int, minutes_per_image: float) -> float:
    """Hours that drawing takes.

    Example:
        >>> hours_of(120, MINUTES["coarse"]), hours_of(12, MINUTES["fine"])
        (14.0, 18.0)
    """
    if num_images < 0 or minutes_per_image <= 0:
        raise ValueError(f"images must not be negative and minutes above 0, got {num_images}, {minutes_per_image}")
    return num_images * minutes_per_image / 60


def measured_points(path: str | Path, score: str = "mIoU") -> dict[str, list[tuple[float, float]]]:
    """The points of a table of results whose ``x`` are hours, such as ``street_cost``: mean over the seeds.

    Args:
        path: ``results.csv`` or ``results.json`` that ``python -m medcoarse.experiments`` wrote.
        score: its column.

    Returns:
        Series -> points (hours, score), for :func:`what_to_draw`; runs that are not done are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a table, no such column, or a value that is no number.
    """
    path = Path(path)
    rows = _json_rows(path, score) if path.suffix == ".json" else _csv_rows(path, score)
    found: dict[str, dict[float, list[float]]] = {}
    for series, x, value in rows:
        if x not in ("", None) and value not in ("", None):
            try:
                found.setdefault(series, {}).setdefault(float(x), []).append(float(value))
            except ValueError as error:
                raise ValueError(f"{path.name}: x and {score} must be numbers, got {x!r} and {value!r}") from error
    return {name: [(x, sum(all_) / len(all_)) for x, all_ in points.items()] for name, points in found.items()}


def _csv_rows(path: Path, score: str) -> list[tuple[str, Any, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = [name for name in ("series", "x", score) if name not in columns]
        if missing:
            raise ValueError(f"{path.name} has no column {missing[0]!r}; it has {', '.join(columns) or 'none'}")
        return [(row["series"], row["x"], row[score]) for row in reader]


def _json_rows(path: Path, score: str) -> list[tuple[str, Any, Any]]:
    """A row of the table each, with its mean over the seeds."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        if score not in (known := list(rows[0]["scores"])):
            raise ValueError(f"{path.name} has no column {score!r}; it has {', '.join(known)}")
        return [(row["series"], row["x"], row["scores"][score]["mean"]) for row in rows]
    except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path.name} is no results.json of a table whose rows have an x") from error


def what_to_draw(measured: Mapping[str, Sequence[tuple[float, float]]], hours: float) -> list[Forecast]:
    """Ways of drawing by what they would give in so many hours, the best first.

    Between two measured points the score is taken to grow in proportion to the logarithm of the hours:
    ``s = s_a + (s_b - s_a) log(h / h_a) / log(h_b / h_a)``.

    What this assumes, and a user should check:

    - Scores were measured on one test set, with one network and schedule trained to the end for every point, and hours
      by one clock, of people like those who will draw. A difference below the spread over seeds is none.
    - More drawings of one kind never make it worse: a measured score that a cheaper one surpasses is replaced by it.
    - Nothing is said of kinds that were not measured, of mixtures of kinds, or of data unlike those measured on.
    - It does not look beyond what was measured: past the dearest point the score stays (a lower bound, ``known``
      false), below the cheapest one it is NaN (``known`` false).

    Args:
        measured: kind -> points (hours, score), any number, hours above 0.
        hours: that there are, above 0.

    Returns:
        One forecast for each kind; those without a score come last.

    Raises:
        ValueError: no points of a kind, or hours that are not above 0.

    Source: Das et al. (WACV 2023), Fig. 3, compares such curves; reading a plan off them is ours.

    Example:
        >>> measured = {"coarse": [(2, 0.40), (8, 0.50)], "fine": [(6, 0.35), (24, 0.55)]}
        >>> [(one.kind, round(one.score, 3), one.known) for one in what_to_draw(measured, 4)]
        [('coarse', 0.45, True), ('fine', nan, False)]
        >>> [(one.kind, round(one.score, 3), one.hours, one.known) for one in what_to_draw(measured, 24)]
        [('fine', 0.55, 24.0, True), ('coarse', 0.5, 8.0, False)]
    """
    if not hours > 0:
        raise ValueError(f"hours must be above 0, got {hours}")
    forecasts = [_forecast(kind, points, hours) for kind, points in measured.items()]
    return sorted(forecasts, key=lambda one: (math.isnan(one.score), -one.score, one.hours))


def _forecast(kind: str, points: Sequence[tuple[float, float]], hours: float) -> Forecast:
    curve = _rising(kind, points)
    if hours < curve[0][0]:
        return Forecast(kind, math.nan, float(hours), False)
    if hours >= curve[-1][0]:
        return Forecast(kind, curve[-1][1], float(curve[-1][0]), hours == curve[-1][0])
    (h0, s0), (h1, s1) = next(pair for pair in pairwise(curve) if pair[0][0] <= hours < pair[1][0])
    return Forecast(kind, s0 + (s1 - s0) * math.log(hours / h0) / math.log(h1 / h0), float(hours), True)


def _rising(kind: str, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """By hours, one point for each, none worse than a cheaper one."""
    if not points or min(h for h, _ in points) <= 0:
        raise ValueError(f"{kind!r} needs points with hours above 0, got {list(points)}")
    curve: list[tuple[float, float]] = []
    for h, score in sorted(points):
        best = max(score, curve[-1][1]) if curve else score
        curve = [*(curve[:-1] if curve and curve[-1][0] == h else curve), (h, best)]
    return curve
