"""What runs left behind, and the numbers of a table: means and sample standard deviations over seeds."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medcoarse.experiments.plans import Run
from medcoarse.experiments.tables import Row, Table, TableError
from medcoarse.files import write_json

Status = Literal["done", "failed", "outdated", "not run"]


@dataclass(frozen=True)
class Result:
    """What there is of a run.

    Args:
        run: which.
        status: ``outdated`` is a result of another definition than the run's present one.
        content: that of ``result.json`` or ``failure.json``.
    """

    run: Run
    status: Status
    content: Mapping[str, Any]

    def score(self, metric: str) -> float | None:
        """A score of a run that is done; ``None`` where it is undefined or there is none."""
        value = self.content["scores"].get(metric) if self.status == "done" else None
        return None if value is None else float(value)


@dataclass(frozen=True)
class Cell:
    """A score over the seeds of a row.

    Args:
        mean: ``None`` without any value.
        std: sample standard deviation (n - 1); ``None`` below two values.
        n: number of values.
    """

    mean: float | None
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Cell:
        """Mean and deviation of values.

        Example:
            >>> Cell.of([1.0, 2.0, 3.0]), Cell.of([0.5]).std
            (Cell(mean=2.0, std=1.0, n=3), None)
        """
        mean = statistics.fmean(values) if values else None
        return cls(mean, statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Summary:
    """A row of the table with its numbers.

    Args:
        row: as the table defines it.
        cells: column -> numbers.
        counts: how many of its runs have which status.
        seconds: of training alone, without the evaluation after it.
    """

    row: Row
    cells: Mapping[str, Cell]
    counts: Mapping[Status, int]
    seconds: Cell


def summarize(table: Table, results: Sequence[Result]) -> list[Summary]:
    """The rows of the table in its order. Only runs that are done count; the others are counted apart."""
    return [_summary(table, row, [r for r in results if r.run.row == row]) for row in table.rows]


def _summary(table: Table, row: Row, results: Sequence[Result]) -> Summary:
    cells = {}
    for column, metric in table.metrics.items():
        scores = [result.score(metric) for result in results]
        cells[column] = Cell.of([score for score in scores if score is not None])
    states = [result.status for result in results]
    seconds = Cell.of([result.content["seconds"]["training"] for result in results if result.status == "done"])
    return Summary(row, cells, {status: states.count(status) for status in dict.fromkeys(states)}, seconds)


def settle(run: Run) -> str | None:
    """Let ``result.json`` be that of the run's present definition, if there ever was one.

    A result of another definition is kept as ``result.<its fingerprint>.json``.

    Returns:
        What was moved, for people; ``None`` where nothing was.
    """
    current = read_json(run.folder / "result.json")
    if current is not None and current["fingerprint"] == run.fingerprint:
        return None
    moved = []
    if current is not None:
        kept = run.folder / f"result.{current['fingerprint']}.json"
        (run.folder / "result.json").replace(kept)
        moved.append(f"its definition has changed, the earlier result is kept as {kept.name}")
    earlier = run.folder / f"result.{run.fingerprint}.json"
    if earlier.is_file():
        earlier.replace(run.folder / "result.json")
        moved.append("the result of the same definition was there and is used again")
    return f"{run.name}: {'; '.join(moved)}" if moved else None


def look_up(run: Run) -> Result:
    """What there is of a run, from its files alone."""
    done = read_json(run.folder / "result.json")
    if done is not None and done["fingerprint"] == run.fingerprint:
        return Result(run, "done", done)
    failed = read_json(run.folder / "failure.json")
    if failed is not None and failed["fingerprint"] == run.fingerprint:
        return Result(run, "failed", failed)
    return Result(run, "not run", {}) if done is None else Result(run, "outdated", done)


def collect(run: Run) -> dict[str, Any]:
    """The scores of a finished training, and of its evaluation if it has one.

    Returns:
        ``scores`` under flat names, and what ``metrics.json`` says of the training.

    Raises:
        ValueError: no scores, scores of an epoch before the last, or a metric of the table is not among them.
    """
    metrics = read_json(run.work / "output" / "metrics.json") or {}
    validation = (metrics.get("validation") or [{}])[-1]
    last, epoch = metrics.get("facts", {}).get("max_epochs"), validation.get("epoch")
    evaluation = run.table.evaluation
    if evaluation is not None:
        name, scores = evaluation.file, flat(read_json(run.work / "output" / evaluation.file) or {})
    else:
        name, scores = "the last validation in metrics.json", flat(validation)
        if None not in (last, epoch) and epoch < last:  # after the last, the annotators alone are fitted
            raise ValueError(f"{name} is of epoch {epoch}, training ends at {last}; validate the last epoch too")
    missing = [metric for metric in run.table.metrics.values() if metric not in scores]
    if missing:
        raise ValueError(f"{name} has no {', '.join(map(repr, missing))}; it has {', '.join(scores) or 'nothing'}")
    parts = {key: metrics.get(key) for key in ("facts", "drawings", "machine")}
    return {"scores": scores, "validation": validation, **parts}


def flat(content: Mapping[str, Any]) -> dict[str, float | None]:
    """Numbers of nested JSON under ids; lists, such as the scores of single images, are left out.

    Example:
        >>> flat({"image": {"mean_iou": 0.5, "iou_vessel": None}, "num_images": 4, "images": [{}]})
        {'image#mean_iou': 0.5, 'image#iou_vessel': None, 'num_images': 4}
    """
    found: dict[str, float | None] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= {f"{key}#{name}": number for name, number in flat(value).items()}
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[key] = value
    return found


def record_failure(run: Run, stage: str, exit_code: int | None, message: str) -> None:
    """Keep what went wrong beside the run, so that tables that are written later show it."""
    content = {"fingerprint": run.fingerprint, "stage": stage, "exit_code": exit_code, "message": message}
    write_json(run.folder / "failure.json", content)


def reported_runs(runs: Sequence[Run]) -> list[Run]:
    """All runs that a table has to show: its rows with its seeds, with those asked for, and with those found on disk.

    Args:
        runs: those asked for, at least one.
    """
    table, any_run = runs[0].table, runs[0]
    seeds = sorted({*table.seeds, *(run.seed for run in runs), *_seeds_on_disk(any_run)})
    return [replace(any_run, row=row, seed=seed) for row in table.rows for seed in seeds]


def _seeds_on_disk(run: Run) -> set[int]:
    folders = [run.output_dir / run.table.name / row.slug for row in run.table.rows]
    names = [path.parent.name for folder in folders for path in folder.glob("seed-*/result.json")]
    return {int(name[5:]) for name in names if re.fullmatch(r"seed-\d+", name)}


def with_recorded_data(runs: Sequence[Run]) -> list[Run]:
    """Runs on the data that their results were made with, where no one says which.

    Raises:
        TableError: the results are of different data.
    """
    contents = [read_json(run.folder / "result.json") for run in runs]
    found = [content["definition"]["training"]["data"] for content in contents if content is not None]
    different = [data for i, data in enumerate(found) if data not in found[:i]]
    if len(different) > 1:
        names = ", ".join(f"{data['name']} ({str(data['datalist'])[:8]})" for data in different)
        raise TableError(f"the results are of different data: {names}; pass the right ones as --dataset_dir")
    return [replace(run, data=different[0]) for run in runs] if different else list(runs)


def read_json(path: Path) -> Any:
    """The content of a JSON file; ``None`` if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
