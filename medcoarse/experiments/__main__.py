"""Run a table: ``python -m medcoarse.experiments TABLE [--dataset_dir DIR] [--output_dir DIR] ...``.

The same command goes on after an interruption, does nothing when everything is done, and runs again what has changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from medcoarse.experiments.bundles import open_bundle
from medcoarse.experiments.pages import restore_results, rewrite_results, write_results
from medcoarse.experiments.plans import Run, plan
from medcoarse.experiments.processes import Stopped
from medcoarse.experiments.results import look_up, reported_runs, with_recorded_data
from medcoarse.experiments.runner import resumable, run_table
from medcoarse.experiments.tables import TableError, load_table, table_names


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module. Returns the exit code: 1 if a run failed, 2 for a wrong table, 128 + signal when stopped."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        return _list() if options.list else _run(options, given)
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        return 128 + stopped.signal_number


def _run(options: argparse.Namespace, given: Sequence[str]) -> int:
    if options.table is None:
        raise TableError(f"which table? Pass a JSON file, or one of {', '.join(table_names())}")
    table = load_table(options.table)
    if options.rewrite is not None:
        rewrite_results(table, options.rewrite)
        print(options.rewrite.with_suffix(".md").read_text(encoding="utf-8"))
        return 0
    bundle = open_bundle(table, options.bundle_root)
    runs = plan(table, bundle, options.output_dir, options.dataset_dir, options.rows, options.seeds)
    for kept in options.restore:
        print(f"{restore_results(runs, kept)} runs restored from {kept.name}")
    if options.report_only and options.dataset_dir is None:
        runs = with_recorded_data(reported_runs(runs))
    if options.dry_run:
        return _preview(runs)
    if options.report_only:
        write_results(runs, given)
        _show(runs)
        return 0
    results = run_table(runs, options.jobs, arguments=given)
    _show(runs)
    asked = {run.folder for run in runs}
    return int(any(result.status != "done" for result in results if result.run.folder in asked))


def _show(runs: Sequence[Run]) -> None:
    folder = runs[0].output_dir / runs[0].table.name
    print((folder / "results.md").read_text(encoding="utf-8"))
    print(f"Written to {folder}/results.md, .csv and .json")


def _preview(runs: Sequence[Run]) -> int:
    for run in runs:
        status = look_up(run).status
        going_on = ", goes on from its checkpoint" if status != "done" and resumable(run) else ""
        overrides = [f"--{key} {json.dumps(value)}" for key, value in run.table.overrides(run.row).items()]
        changes = " ".join([*run.row.config, *overrides])
        print(f"{run.name} [{run.fingerprint}] {status}{going_on}: {changes or 'no overrides'}")
    return 0


def _list() -> int:
    for name in table_names():
        table = load_table(name)
        print(f"{name}: {table.title} ({len(table.rows)} rows, {len(table.seeds)} seeds, {table.bundle})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m medcoarse.experiments", description="Run a table of a paper.")
    add = parser.add_argument
    add("table", nargs="?", help="a JSON file, or a name that --list shows")
    add("--bundle_root", "--bundle-root", type=Path, help="folder of the bundle, in place of the table's")
    add("--dataset_dir", type=Path, help="folder of the data; the bundle's own data without it")
    add("--output_dir", type=Path, default=Path("runs"), help="runs and results are kept in TABLE below it (runs)")
    add("--rows", type=_names, help="only these, as names or folder names, with commas between")
    add("--seeds", type=_numbers, help="in place of the table's, with commas between")
    add("--jobs", type=_count, help="runs side by side (one on each physical core; one with a GPU)")
    add("--dry_run", action="store_true", help="check the table, show what would be run, and stop")
    add("--report_only", action="store_true", help="run nothing, write the results of what is there")
    add("--rewrite", type=Path, metavar="JSON", help="write the pages beside a kept results.json again from it alone")
    add(
        "--restore",
        type=Path,
        metavar="JSON",
        action="append",
        default=[],
        help="take what is done in a kept results.json, of this table or of another, as done here, and run the rest",
    )
    add("--list", action="store_true", help="show the tables that come with the package")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _names(text)]


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
