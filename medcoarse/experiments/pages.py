"""A table's results as files: one line a run (CSV), everything (JSON), the table itself (Markdown), curves (PNG)."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcoarse.experiments.plans import Run
from medcoarse.experiments.provenance import as_text, command_text, source_version
from medcoarse.experiments.results import Cell, Result, Summary, look_up, reported_runs, summarize
from medcoarse.experiments.tables import Table
from medcoarse.files import write_atomically, write_json
from medcoarse.monitoring import machine
from medcoarse.report import Curve, curves_figure, save_figure

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
    summaries = summarize(table, results)
    written = {"command": command_text(arguments), "date": time.strftime("%Y-%m-%d"), **source_version()}
    write_json(
        folder / "results.json", as_json(table, results, summaries) | {"written": written | {"machine": machine()}}
    )
    _write_text(folder / "results.csv", as_csv(table, results))
    _write_text(folder / "results.md", as_markdown(table, results, summaries, written["command"]))
    if table.figure is not None:
        save_figure(as_figure(table, summaries), folder / "results.png")
    return results


def as_json(table: Table, results: Sequence[Result], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Everything: the table's rows with their numbers, and all runs with where they come from."""
    rows = [
        {
            "name": summary.row.name,
            "source": summary.row.source,
            "runs": {str(status): count for status, count in summary.counts.items()},
            "scores": {column: vars(cell) for column, cell in summary.cells.items()},
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
    header = ["", *(["source"] if with_source else []), *table.metrics, "n", "not in the numbers"]
    lines = [header, ["---"] * len(header)]
    for summary in summaries:
        n = summary.counts.get("done", 0)
        cells = [cell_text(cell, n) for cell in summary.cells.values()]
        source = [summary.row.source] if with_source else []
        lines.append([summary.row.name, *source, *cells, str(n), _left_out(summary)])
    if not any(line[-1] for line in lines[2:]):
        lines = [line[:-1] for line in lines]
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
    """One panel a column, one curve a series, mean and band of ± one deviation over ``x``."""
    assert table.figure is not None
    placed = [(summary.row.x, summary) for summary in summaries if summary.row.x is not None]
    placed.sort(key=lambda pair: pair[0])
    series = dict.fromkeys(summary.row.series for summary in summaries if summary.row.x is not None)
    panels: dict[str, list[Curve]] = {column: [] for column in table.metrics}
    for column, name in ((column, name) for column in panels for name in series):
        cells = [(x, summary.cells[column]) for x, summary in placed if summary.row.series == name]
        known = [(x, cell.mean, cell.std) for x, cell in cells if cell.mean is not None]
        if known:
            panels[column].append(Curve(name, *map(tuple, zip(*known, strict=True))))
    return curves_figure(panels, table.figure.x_label, log_x=table.figure.log_x, title=table.title)


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
    seconds = [sum(content["seconds"].values()) for content in done]
    return (
        f"Data: {_listed(data)}. Commit {_listed(versions)}. {' to '.join(dict.fromkeys((days[0], days[-1])))}. "
        f"{_listed(machines)}. {len(done)} runs, {sum(seconds) / len(done):.0f} s each on average."
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
