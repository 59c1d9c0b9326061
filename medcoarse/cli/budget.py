"""I have so many hours: what should I draw? Ways of drawing, the best first, by what they were measured to give.

The table is results.csv or results.json of `python -m medcoarse.experiments street_cost`, or one of your own with these
columns, one line a run: series (the way of drawing), x (the hours that it took) and the score. Between two measured
points the score is taken to grow with the logarithm of the hours, and more drawings never to harm. Past the dearest
point the score is a lower bound ("at least"), below the cheapest one nothing is known. Mixtures of ways were not
measured, and a difference smaller than that between seeds is none.

Hours are those of the people who drew for the table; street_cost counts 7 minutes for a coarse image and 90 for a fine
one. Say how long yours take: the hours of series whose names begin with "coarse" or "fine" are then scaled.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence

from medcoarse.cli.main import CommandError
from medcoarse.selftrain.budget import MINUTES, Forecast, measured_points, what_to_draw

EXAMPLES = """examples:
  medcoarse budget --hours 10 --table runs/street_cost/results.csv
  medcoarse budget --hours 10 --table runs/street_cost/results.csv --minutes_coarse 4 --minutes_fine 60
  medcoarse budget --hours 2.5 --table mine.csv --score Dice
"""
Points = Mapping[str, Sequence[tuple[float, float]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("--hours", type=float, required=True, help="that there are for drawing, of all people together")
    add("--table", required=True, help="measured scores and hours, .csv or .json")
    add("--score", default="mIoU", help="column of the table (mIoU)")
    for kind, minutes in MINUTES.items():
        add(
            f"--minutes_{kind}",
            type=float,
            metavar="MINUTES",
            help=f"that a {kind} image takes you, in place of {minutes:g}",
        )


def run(options: argparse.Namespace) -> int:
    """Print the ways of drawing."""
    minutes = {kind: getattr(options, f"minutes_{kind}") for kind in MINUTES}
    wrong = [f"--minutes_{kind}" for kind, value in minutes.items() if value is not None and not 0 < value < math.inf]
    if wrong or not 0 < options.hours < math.inf:
        raise CommandError(f"{(wrong or ['--hours'])[0]} must be a number above 0")
    try:
        measured = measured_points(options.table, options.score)
    except FileNotFoundError as error:
        raise CommandError(f"{options.table}: no such file; `medcoarse budget --help` says how to make one") from error
    if not measured:
        raise CommandError(f"{options.table}: no finished run with an 'x' (hours) and a {options.score}")
    print("\n".join(_lines(what_to_draw(_scaled(measured, minutes), options.hours), options.score, minutes)))
    return 0


def _kind_of(series: str) -> str | None:
    return next((kind for kind in MINUTES if series.lower().startswith(kind)), None)


def _scaled(measured: Points, minutes: Mapping[str, float | None]) -> Points:
    """The same images in hours of people who need so many minutes for one."""
    factors = {kind: 1.0 if own is None else own / MINUTES[kind] for kind, own in minutes.items()}
    by_series = {series: factors.get(_kind_of(series) or "", 1.0) for series in measured}
    return {series: [(by_series[series] * x, score) for x, score in points] for series, points in measured.items()}


def _lines(forecasts: Sequence[Forecast], score: str, minutes: Mapping[str, float | None]) -> list[str]:
    """A table; how many images it takes stands where the minutes for one are given."""
    rows = [("", score, "hours", "images" if any(minutes.values()) else "")]
    for one in forecasts:
        unknown, own = math.isnan(one.score), minutes.get(_kind_of(one.kind) or "")
        value = "not measured" if unknown else f"{'' if one.known else 'at least '}{one.score:.3f}"
        images = "" if own is None or unknown else f"{one.hours * 60 / own:.0f}"
        rows.append((one.kind, value, "" if unknown else f"{one.hours:.1f}", images))
    width = max(len(row[0]) for row in rows)
    return [f"{kind:{width}}  {value:>14}  {hours:>8}  {images:>8}".rstrip() for kind, value, hours, images in rows]
