"""A table's results as files: one line a run (CSV), everything (JSON), the table itself (Markdown), curves (PNG)."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medcoarse.curves import Curve, curves_figure
from medcoarse.experiments.bundles import Bundle
from medcoarse.experiments.plans import Run
from medcoarse.experiments.provenance import as_text, command_text, source_version
from medcoarse.experiments.results import Cell, Result, Summary, look_up, read_json, reported_runs, settle, summarize
from medcoarse.experiments.tables import Table, TableError
from medcoarse.files import write_atomically, write_json
from medcoarse.monitoring import machine
from medcoarse.report import save_figure

NOTHING = "–"


def write_results(runs: Sequence[Run], arguments: Sequence[str] = ()) -> list[Result]:
    """Write ``results.*`` of a table into its folder, from what its runs left there and nothing else.

    Args:
        runs: those asked for; the others of the table are shown too.
        arguments: of the command line, for the record.

    Returns:
        All that the table shows.
    """
    table, folder = runs[0].table, runs[0].output_dir / runs[0].table.name
    results = [look_up(run) for run in reported_runs(runs)]
    written = {"command": command_text(arguments), "date": time.strftime("%Y-%m-%d"), **source_version()}
    _write(table, results, written | {"machine": machine()}, folder / "results")
    return results


def rewrite_results(table: Table, path: Path) -> None:
    """Write the pages beside a ``results.json`` anew, and itself, from what it holds: its runs need not be there.

    Shown are the rows that there were when it was written, under the title, the columns and the notes that the table
    has now. Command, date and version remain those of that time.

    Raises:
        TableError: no such file, not one of results, or a row that the table does not have.
    """
    shown, results, written = _kept(table, path)
    _write(shown, results, written, path.parent / path.stem)


def restore_results(runs: Sequence[Run], path: Path) -> int:
    """Put what is done in a ``results.json`` back where a command looks for it, so that only the rest is run.

    Results count that are of the same definition, whatever the row or the table was called: configuration, seed, data
    and evaluation. Of the table's own results the others come back too, to be run again when they are asked for.

    Args:
        runs: any of the table; all of its rows and seeds are looked for.
        path: the file.

    Returns:
        How many there are now that were not.

    Raises:
        TableError: no such file, or not one of results.
    """
    table, kept = runs[0].table, [run for run in _read(path)["runs"] if run["status"] == "done"]
    same = {run["fingerprint"]: _content(run) for run in kept}
    wanted = [run for run in reported_runs(runs) if run.fingerprint in same and look_up(run).status != "done"]
    for run in wanted:
        run.folder.mkdir(parents=True, exist_ok=True)
        settle(run)  # what another definition left is kept
        write_json(run.folder / "result.json", same[run.fingerprint] | {"table": table.name, "row": run.row.name})
    rows = {row.name: row for row in table.rows}
    own = [one for one in kept if one["table"] == table.name and one["row"] in rows]
    others = [(replace(runs[0], row=rows[one["row"]], seed=one["seed"]), one) for one in own]
    missing = [(run, one) for run, one in others if not (run.folder / "result.json").exists()]
    for run, one in missing:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.folder / "result.json", _content(one))
    return len(wanted) + len(missing)


def _read(path: Path) -> dict[str, Any]:
    """A ``results.json``."""
    content = read_json(path)
    if content is None:
        raise TableError(f"no results {path.name!r}: pass the results.json that a table left")
    if not isinstance(content, dict) or not {"rows", "runs", "written"} <= content.keys():
        raise TableError(f"{path.name} is no results.json of a table")
    return content


def _kept(table: Table, path: Path) -> tuple[Table, list[Result], dict[str, Any]]:
    """The part of a table that a ``results.json`` holds, its results, and when it was written."""
    content = _read(path)
    names = [row["name"] for row in content["rows"]]
    unknown = [name for name in names if name not in [row.name for row in table.rows]]
    if unknown:
        raise TableError(
            f"the results have a row {unknown[0]!r}, which the table does not have; take that of their time"
        )
    shown = replace(table, rows=tuple(row for row in table.rows if row.name in names))
    rows, unbundled = {row.name: row for row in shown.rows}, Bundle(Path(), {})
    results = [
        Result(Run(shown, unbundled, rows[run["row"]], run["seed"], {}, Path()), run["status"], _content(run))
        for run in content["runs"]
    ]
    return shown, results, content["written"]


def _content(run: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's entry in ``results.json``, what the run itself had left."""
    return {key: value for key, value in run.items() if key not in ("status", "folder")}


def _write(table: Table, results: Sequence[Result], written: Mapping[str, Any], stem: Path) -> None:
    summaries = summarize(table, results)

    def place(ending: str) -> Path:
        return stem.with_name(stem.name + ending)  # a name may hold dots

    write_json(place(".json"), as_json(table, results, summaries) | {"written": dict(written)})
    _write_text(place(".csv"), as_csv(table, results))
    _write_text(place(".md"), as_markdown(table, results, summaries, written["command"]))
    if table.figure is not None:
        save_figure(as_figure(table, summaries), place(".png"))


def as_json(table: Table, results: Sequence[Result], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Everything: the table's rows with their numbers, and all runs with where they come from."""
    rows = [
        {
            "name": summary.row.name,
            "source": summary.row.source,
            "series": summary.row.series,
            "x": summary.row.x,
            "runs": {str(status): count for status, count in summary.counts.items()},
            "scores": {column: vars(cell) for column, cell in summary.cells.items()},
            "training_seconds": vars(summary.seconds),
        }
        for summary in summaries
    ]
    runs = [
        {
            "row": result.run.row.name,
            "seed": result.run.seed,
            "status": result.status,
            "folder": result.run.folder.relative_to(result.run.output_dir).as_posix(),
            **result.content,
        }
        for result in results
    ]
    about = {"title": table.title, "source": table.source, "bundle": table.bundle, "metrics": dict(table.metrics)}
    return {**about, "scored": _scored(table), "rows": rows, "runs": runs}


def as_csv(table: Table, results: Sequence[Result]) -> str:
    """One line a run; scores that there are not are left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "series", "x", "seed", "status", *table.metrics, "seconds", "fingerprint", "commit"])
    for result in results:
        run, content = result.run, result.content if result.status == "done" else {}
        x = "" if run.row.x is None else run.row.x
        scores = [result.score(metric) for metric in table.metrics.values()]
        version = " ".join(as_text(version) for version in content.get("versions", ()))
        seconds = round(sum(content["seconds"].values())) if content else ""
        writer.writerow(
            [run.row.name, run.row.series, x, run.seed, result.status, *("" if s is None else s for s in scores),
             seconds, result.content.get("fingerprint", ""), version]
        )  # fmt: skip
    return text.getvalue()


def as_markdown(table: Table, results: Sequence[Result], summaries: Sequence[Summary], command: str) -> str:
    """The table for people."""
    with_source = any(summary.row.source for summary in summaries)
    header = ["", *(["source"] if with_source else []), *table.metrics, "n", "not in the numbers", "training, s"]
    lines = [header, ["---"] * len(header)]
    for summary in summaries:
        n = summary.counts.get("done", 0)
        cells = [cell_text(cell, n) for cell in summary.cells.values()]
        source = [summary.row.source] if with_source else []
        seconds_text = NOTHING if summary.seconds.mean is None else f"{summary.seconds.mean:.0f}"
        lines.append([summary.row.name, *source, *cells, str(n), _left_out(summary), seconds_text])
    if not any(line[-2] for line in lines[2:]):
        lines = [[*line[:-2], line[-1]] for line in lines]
    body = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
    below = [*([table.note] if table.note else []), _convention(table), _origin(results), f"`{command}`"]
    heading = [f"# {table.title}", *([table.source] if table.source else [])]
    return "\n\n".join([*heading, "\n".join(body), *below]) + "\n"


def cell_text(cell: Cell, num_runs: int) -> str:
    """Mean ± sample standard deviation; how many values, where runs lack some.

    Example:
        >>> cell_text(Cell.of([0.5, 0.7]), 2), cell_text(Cell.of([0.5]), 1), cell_text(Cell.of([]), 0)
        ('0.600 ± 0.141', '0.500', '–')
        >>> cell_text(Cell.of([0.5, 0.7]), 3)
        '0.600 ± 0.141 (n = 2)'
    """
    if cell.mean is None:
        return "undefined" if num_runs else NOTHING
    deviation = "" if cell.std is None else f" ± {cell.std:.3f}"
    return f"{cell.mean:.3f}{deviation}" + ("" if cell.n == num_runs else f" (n = {cell.n})")


def as_figure(table: Table, summaries: Sequence[Summary]) -> Any:
    """One panel a column, one curve a series, mean and band of ± one deviation over ``x``; a level is a line."""
    figure = table.figure
    assert figure is not None
    series: dict[str, list[Summary]] = {}
    for summary in summaries:
        row = summary.row
        if row.x is not None or row.name == figure.level:
            series.setdefault(row.name if row.x is None else row.series, []).append(summary)
    panels = {column: [_curve(name, rows, column) for name, rows in series.items()] for column in table.metrics}
    shown = {column: [curve for curve in curves if curve.x] for column, curves in panels.items()}
    return curves_figure(shown, figure.x_label, log_x=figure.log_x, title=table.title)


def _curve(name: str, summaries: Sequence[Summary], column: str) -> Curve:
    cells = [(math.nan if s.row.x is None else s.row.x, s.cells[column]) for s in summaries]
    known = sorted(((x, cell) for x, cell in cells if cell.mean is not None), key=lambda pair: pair[0])
    return Curve(
        name,
        [x for x, _ in known],
        [cell.mean for _, cell in known if cell.mean is not None],
        [cell.std for _, cell in known],
    )


def _scored(table: Table) -> str:
    if table.evaluation is None:
        return "the training's last validation"
    settings = ", ".join(f"{key} = {value}" for key, value in table.evaluation.overrides.items())
    return f"{table.evaluation.run_id} after training" + (f" ({settings})" if settings else "")


def _convention(table: Table) -> str:
    return (
        "Mean ± sample standard deviation over n seeds. Scored are the weights of the last epoch, by "
        f"{_scored(table)}; nothing is selected by these scores."
    )


def _origin(results: Sequence[Result]) -> str:
    """Data, code, days and machines of the runs that are in the numbers."""
    done = [result.content for result in results if result.status == "done"]
    if not done:
        return "No run is finished."
    data = {content["definition"]["training"]["data"]["name"] for content in done}
    versions = {as_text(version) for content in done for version in content["versions"]}
    days = sorted({content["date"] for content in done})
    machines = {_machine_text(content["machine"]) for content in done}
    seconds = {stage: [content["seconds"].get(stage, 0) for content in done] for stage in ("training", "evaluation")}
    means = {stage: sum(values) / len(values) for stage, values in seconds.items()}
    return (
        f"Data: {_listed(data)}. Commit {_listed(versions)}. {' to '.join(dict.fromkeys((days[0], days[-1])))}.\n\n"
        f"Hardware: {_listed(machines)}. {len(done)} runs, {means['training']:.0f} s of training and "
        f"{means['evaluation']:.0f} s of evaluation each on average, by the wall clock, so that a busy machine takes "
        "longer. The column is the mean over a row's seeds of training alone."
    )


def _machine_text(facts: Mapping[str, Any]) -> str:
    where = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores a run"
    return f"{where}, torch {facts['versions']['torch']}"


def _left_out(summary: Summary) -> str:
    return ", ".join(f"{count} {status}" for status, count in summary.counts.items() if status != "done")


def _listed(texts: set[str]) -> str:
    return "; ".join(sorted(texts))


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
