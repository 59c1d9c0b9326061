"""Run what a table lacks: training and evaluation as processes of MONAI's own command, resumed where they stopped."""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from medcoarse.experiments.pages import write_results
from medcoarse.experiments.plans import Run
from medcoarse.experiments.processes import Command, Stopped, available_cores, run_side_by_side
from medcoarse.experiments.progress import Progress
from medcoarse.experiments.provenance import source_version
from medcoarse.experiments.results import Result, collect, look_up, read_json, record_failure, settle
from medcoarse.files import write_json
from medcoarse.monitoring import machine

LAUNCHER = (sys.executable, "-m", "monai.bundle", "run")
LOG_LINES = 15
"""Lines of a failed run's log that are shown."""


def run_table(
    runs: Sequence[Run],
    jobs: int | None = None,
    say: Callable[[str], None] | None = None,
    arguments: Sequence[str] = (),
) -> list[Result]:
    """Do all runs that are not done yet, ``jobs`` at a time, and write the table after each.

    Args:
        runs: see :func:`medcoarse.experiments.plans.plan`.
        jobs: at a time; ``None`` for one on each physical core, or one alone where there is a GPU. The cores are
            divided among them.
        say: gets a line for each finished run; ``None`` for standard output.
        arguments: of the command line, for the record.

    Returns:
        All that the table shows, including runs that were not asked for.

    Raises:
        Stopped: by a signal. No process is left, and the same call goes on.
        ValueError: no runs, or fewer than one job.
    """
    if jobs is None:
        jobs = 1 if torch.cuda.is_available() else available_cores()
    if not runs or jobs < 1:
        raise ValueError(f"run_table needs at least one run and one job, got {len(runs)} and {jobs}")
    with Progress(len(runs), jobs, say) as progress:
        for line in filter(None, map(settle, runs)):
            progress.say(line)
        open_runs = [run for run in runs if look_up(run).status != "done"]
        progress.skip(len(runs) - len(open_runs))
        threads = max(1, available_cores() // min(jobs, max(1, len(open_runs))))
        tasks = {run.folder: perform(run, threads) for run in open_runs}
        by_folder = {run.folder: run for run in open_runs}
        ended = run_side_by_side(tasks, jobs, lambda keys: progress.show([by_folder[key].name for key in keys]))
        try:
            with contextlib.closing(ended):
                for folder, problem in ended:
                    progress.finish(look_up(by_folder[folder]), problem)
                    write_results(runs, arguments)
        except Stopped:
            progress.say("Stopped; the same command goes on where it was.")
            raise
        finally:
            results = write_results(runs, arguments)
    return results


def perform(run: Run, threads: int) -> Generator[Command, int, str | None]:
    """Train, evaluate and record one run; what was done before is not done again.

    Yields:
        The commands, one after the other; their exit codes are sent back.

    Returns:
        What went wrong, ``None`` if nothing did.
    """
    with _lock(run.folder / ".lock") as lock:
        if lock is None:
            return "another process is at it; wait for it or end it"
        (run.folder / "failure.json").unlink(missing_ok=True)
        for stage in stages(run):
            code = yield from _perform_stage(run, stage, threads, lock)
            if code != 0:
                record_failure(run, stage, code, f"{stage} ended with exit code {code}")
                return f"{stage} ended with exit code {code}\n{_last_lines(run.work / 'run.log')}"
        try:
            scores = collect(run)
        except ValueError as error:
            record_failure(run, "scores", None, str(error))
            return str(error)
        _record(run, scores)
    return None


def stages(run: Run) -> list[str]:
    """What is left to do."""
    trained = _state(run)["trained"]
    return ([] if trained else ["training"]) + ([] if run.table.evaluation is None else ["evaluation"])


def arguments(run: Run, stage: str) -> dict[str, Any]:
    """The arguments of MONAI's ``run`` for a stage.

    The configuration's own defaults are for a single run; here seed, folders and resuming are set for each.
    """
    table, config = run.table, run.bundle.of(run.row).training
    files, overrides, run_id = table.config + run.row.config, table.overrides(run.row), "training"
    places: dict[str, Any] = {
        "seed": run.seed,
        "output_dir": str(run.work / "output"),
        "ckpt_dir": str(run.work / "models"),
    }
    if "bundle_root" in config:
        places["bundle_root"] = str(run.bundle.root)
    if run.dataset_dir is not None:
        places["dataset_dir"] = str(run.dataset_dir)
    if stage == "evaluation":
        assert table.evaluation is not None
        files, run_id = files + table.evaluation.config, table.evaluation.run_id
        overrides |= table.evaluation.overrides
    elif "resume" in config:
        places["resume"] = resumable(run)
    return {"run_id": run_id, "config_file": [str(run.bundle.root / file) for file in files], **overrides, **places}


def resumable(run: Run) -> bool:
    """Whether an interrupted training left a full checkpoint that the bundle can go on from."""
    return "resume" in run.bundle.of(run.row).training and (run.work / "models" / "full.pt").is_file()


def _perform_stage(run: Run, stage: str, threads: int, lock: int) -> Generator[Command, int, int]:
    file = run.work / f"{stage}.json"
    write_json(file, arguments(run, stage))
    if stage == "evaluation" and run.table.evaluation is not None:
        (run.work / "output" / run.table.evaluation.file).unlink(missing_ok=True)  # no earlier one is taken for it
    command = (*LAUNCHER, "--args_file", str(file))
    environment = {"OMP_NUM_THREADS": str(threads)}
    with (run.work / "run.log").open("a", encoding="utf-8") as log:
        log.write(f"$ OMP_NUM_THREADS={threads} {shlex.join(command)}\n")
    state, started, code = _state(run), time.monotonic(), None
    version = source_version()
    try:
        code = yield Command(command, run.work / "run.log", environment, (lock,))
    finally:  # also when it is stopped
        state["seconds"][stage] = round(state["seconds"].get(stage, 0) + time.monotonic() - started, 1)
        state["versions"] += [version] if version not in state["versions"] else []
        state["trained"] = state["trained"] or (stage == "training" and code == 0)
        write_json(run.work / "state.json", state)
    return code


def _state(run: Run) -> dict[str, Any]:
    """What has been done for a run so far, by all attempts."""
    return read_json(run.work / "state.json") or {"trained": False, "seconds": {}, "versions": []}


def _record(run: Run, scores: dict[str, Any]) -> None:
    """Write ``result.json``: from now on the run is done."""
    state = _state(run)
    content = {
        "fingerprint": run.fingerprint,
        "table": run.table.name,
        "row": run.row.name,
        "seed": run.seed,
        "definition": run.definition,
        **scores,
        "machine": scores["machine"] or machine(),
        "seconds": state["seconds"],
        "versions": state["versions"],
        "date": time.strftime("%Y-%m-%d"),
    }
    write_json(run.folder / "result.json", content)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int | None]:
    """Keep others away from a run; ``None`` if someone is at it.

    The processes of the run inherit the lock. So it holds as long as one of them is alive, even if this one is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(f"    {line}" for line in lines)
