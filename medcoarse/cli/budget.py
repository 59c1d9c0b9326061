"""I have so many hours: what should I draw? Ways of drawing, the best first, by what they were measured to give.

Of a bundle that `medcoarse train` made it is measured how its scores grow with the drawings: the same training on a
quarter and a half of them, drawn at random, and on all, into BUNDLE/budget. That takes as long as three trainings;
--seeds 0,1,2 says how sure it is, --epochs shortens it, and the same command goes on after an interruption.

With --table ways of drawing are compared. The table is results.csv or results.json of `python -m medcoarse.experiments
street_cost`, or one of your own with these columns, one line a run: series (the way of drawing), x (the hours that it
took) and the score.

Between two measured points the score is taken to grow with the logarithm of the hours, and more drawings never to harm.
Past the dearest point the score is a lower bound ("at least"), below the cheapest one nothing is known. Mixtures of
ways were not measured, and a difference smaller than that between seeds is none.

Hours of a table are those of the people who drew for it; street_cost counts 7 minutes for a coarse image and 90 for a
fine one. Say how long yours take: the hours of series whose names begin with "coarse" or "fine" are then scaled.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcoarse.cli.bundle import config_of
from medcoarse.cli.main import CommandError
from medcoarse.experiments.more_drawings import growth_table, measure_growth
from medcoarse.experiments.processes import Stopped
from medcoarse.selftrain.budget import MINUTES, Forecast, measured_points, what_to_draw

EXAMPLES = """examples:
  medcoarse budget run --minutes 6                       what more drawings like those of `medcoarse train` would give
  medcoarse budget run --minutes 6 --hours 10            and what ten hours of them
  medcoarse budget --hours 10 --table runs/street_cost/results.csv
  medcoarse budget --hours 10 --table runs/street_cost/results.csv --minutes_coarse 4 --minutes_fine 60
  medcoarse budget --hours 2.5 --table mine.csv --score Dice
"""
Points = Mapping[str, Sequence[tuple[float, float]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("bundle", nargs="?", metavar="BUNDLE", help="folder that `medcoarse train` wrote, in place of --table")
    add("--hours", type=float, help="that there are for drawing, of all people together")
    add("--table", help="measured scores and hours, .csv or .json")
    add("--score", help="column of the table (mIoU; of a bundle its first score, mean_dice where there are masks)")
    add("--minutes", type=float, help="that drawing on one image of BUNDLE took")
    add("--shares", default="0.25,0.5", metavar="A,B", help="of BUNDLE's drawings to train on, beside all (0.25,0.5)")
    add("--seeds", default="0", metavar="A,B", help="of trainings on BUNDLE's drawings, one after the other (0)")
    add("--epochs", type=int, help="of each, in place of BUNDLE's")
    add("--jobs", type=int, help="trainings at a time (one on each physical core; one with a GPU)")
    for kind, minutes in MINUTES.items():
        add(
            f"--minutes_{kind}",
            type=float,
            metavar="MINUTES",
            help=f"that a {kind} image takes you, in place of {minutes:g}",
        )


def run(options: argparse.Namespace) -> int:
    """Print the ways of drawing, or what more drawings give."""
    if (options.bundle is None) == (options.table is None):
        raise CommandError("pass either BUNDLE, a folder that `medcoarse train` wrote, or --table")
    if options.bundle is not None:
        return _grow(Path(options.bundle), options)
    if options.hours is None:
        raise CommandError("pass --hours, those that there are for drawing")
    minutes = {kind: getattr(options, f"minutes_{kind}") for kind in MINUTES}
    wrong = [f"--minutes_{kind}" for kind, value in minutes.items() if value is not None and not 0 < value < math.inf]
    if wrong or not 0 < options.hours < math.inf:
        raise CommandError(f"{(wrong or ['--hours'])[0]} must be a number above 0")
    try:
        score = options.score or "mIoU"
        measured = measured_points(options.table, score)
    except FileNotFoundError as error:
        raise CommandError(f"{options.table}: no such file; `medcoarse budget --help` says how to make one") from error
    if not measured:
        raise CommandError(f"{options.table}: no finished run with an 'x' (hours) and a {score}")
    print("\n".join(_lines(what_to_draw(_scaled(measured, minutes), options.hours), score, minutes)))
    return 0


def _grow(bundle: Path, options: argparse.Namespace) -> int:
    """Measure what more drawings of a bundle give, and print it."""
    shares, seeds = _numbers("--shares", options.shares, float), _numbers("--seeds", options.seeds, int)
    if options.minutes is None:
        raise CommandError("pass --minutes, those that drawing on one image took")
    if not 0 < options.minutes < math.inf or not 0 < (options.hours or 1) < math.inf or (options.epochs or 1) < 1:
        raise CommandError("--minutes, --hours and --epochs must be numbers above 0")
    number = len(_listed(bundle)["training"])
    scores = _scores_of(bundle)
    score = options.score or scores[0]
    if score not in scores:
        raise CommandError(f"--score must be one of {', '.join(scores)}, got {score}")
    try:
        table = growth_table(number, shares, options.minutes, scores, seeds)
    except ValueError as error:
        raise CommandError(f"--shares: {error}") from error
    if options.epochs:
        table["common"]["max_epochs"] = options.epochs
    try:
        results, failed = measure_growth(bundle.resolve(), table, options.jobs)
    except Stopped as stopped:
        return 128 + stopped.signal_number
    if failed:
        raise CommandError("; ".join(failed))
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    print("\n".join([*_table_of(rows, scores), *_gain(rows, scores, score)]))
    if options.hours:
        print("\n".join(_lines(what_to_draw(measured_points(results, score), options.hours), score, {})))
    print(f"{results.with_suffix('.md')} has it with its provenance, {results.with_suffix('.png').name} the curve")
    return 0


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(one) for one in text.split(",")]
    except ValueError:
        raise CommandError(f"{option} must be numbers with commas between, got {text!r}") from None


def _listed(bundle: Path) -> dict[str, Any]:
    config_of(bundle, "train.json")
    path = bundle / "datalist.json"
    if not path.is_file():
        raise CommandError(f"{bundle}: has no datalist.json; pass what `medcoarse train` wrote")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _scores_of(bundle: Path) -> list[str]:
    """Those of its last validation, the one that counts first."""
    path = bundle / "output" / "metrics.json"
    validation = json.loads(path.read_text(encoding="utf-8"))["validation"] if path.is_file() else []
    if not validation:
        raise CommandError(f"{bundle}: not trained yet; run `medcoarse train` with images to validate on")
    names = [name for name in validation[-1] if name.endswith("_dice") and name != "mean_dice"]
    return ["mean_dice", *names] if "mean_dice" in validation[-1] else ["drawn_agreement"]


def _table_of(rows: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> list[str]:
    lines = [["", "hours", *scores]]
    for row in rows:
        found = [row["scores"][name] for name in scores]
        shown = [f"{s['mean']:.3f}" + (f" ± {s['std']:.3f}" if s["std"] is not None else "") for s in found]
        lines.append([row["name"], f"{row['x']:.1f}", *shown])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def _gain(rows: Sequence[Mapping[str, Any]], scores: Sequence[str], score: str) -> list[str]:
    """What the last drawings gave, and to which class most."""
    if len(rows) < 2:
        return []
    gains = {name: rows[-1]["scores"][name]["mean"] - rows[-2]["scores"][name]["mean"] for name in scores}
    best = max((name for name in scores if name != "mean_dice"), key=gains.__getitem__)
    most = f", most for {best.removesuffix('_dice')} ({gains[best]:+.3f})" if len(scores) > 2 else ""
    seeds = rows[-1]["scores"][score]["n"]
    unsure = "; one seed each, so that a few hundredths may be chance: --seeds 0,1,2 tells" if seeds == 1 else ""
    return [f"from {rows[-2]['name']} to {rows[-1]['name']} {score} changed by {gains[score]:+.3f}{most}{unsure}"]


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
