"""Measure and report: ``python -m benchmarks [loss step simulation data scale fusion streets volume]``.

Writes ``benchmarks/results/<name>.json`` (figures with hardware, versions and commit), ``RESULTS.md`` with all tables,
and ``curves.png``. Quiet machine, please: everything that runs beside it is measured too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.curves import draw_curves
from medcoarse.files import write_atomically, write_json
from medcoarse.monitoring import machine

NAMES = ("loss", "step", "simulation", "data", "scale", "fusion", "streets", "volume")
RESULTS = Path(__file__).parent / "results"


def _commit() -> str:
    """The commit that is measured; ``-dirty`` where anything but the results themselves differs from it."""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    changed = git("status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def _measure(name: str, seconds: float) -> dict[str, Any]:
    command = f"python -m benchmarks {name} --seconds {seconds:g}"
    provenance = {"command": command, "commit": _commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    return {**provenance, "results": importlib.import_module(f"benchmarks.{name}").run(seconds)}


def _markdown(name: str, measured: dict[str, Any]) -> str:
    header, *lines = importlib.import_module(f"benchmarks.{name}").rows(measured["results"])
    table = [header, ["---"] * len(header), *lines]
    hardware, versions = measured["machine"], measured["machine"]["versions"]
    source = (
        f"`{measured['command']}`, commit {measured['commit']}, {measured['date']}, {hardware['cpu']}, "
        f"{hardware['threads']} threads, torch {versions['torch']}"
    )
    return "\n".join([f"## {name}", "", *("| " + " | ".join(line) + " |" for line in table), "", source, ""])


def as_page(stored: dict[str, dict[str, Any]]) -> str:
    """All tables as Markdown."""
    return "\n".join(["# Measurements\n", *(_markdown(name, measured) for name, measured in stored.items())])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"what to measure: {', '.join(NAMES)}; default all")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each comparison (default 10)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; known are {', '.join(NAMES)}")
    for name in arguments.names or NAMES:
        measured = _measure(name, arguments.seconds)
        write_json(arguments.output / f"{name}.json", measured)
        print(_markdown(name, measured), flush=True)
    stored = {n: json.loads(p.read_text()) for n in NAMES if (p := arguments.output / f"{n}.json").is_file()}
    write_atomically(arguments.output / "RESULTS.md", lambda file: file.write(as_page(stored).encode()))
    if "loss" in stored:
        draw_curves(stored["loss"]["results"], arguments.output / "curves.png")


if __name__ == "__main__":
    main()
