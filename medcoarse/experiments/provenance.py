"""Where results come from, without the folders of the machine that they were made on."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def source_version() -> dict[str, Any]:
    """Commit of the repository that this code lies in and whether its files differ from it; ``None`` outside of git.

    Example:
        >>> sorted(source_version())
        ['commit', 'dirty']
    """
    inside = _git("ls-files", "--error-unmatch", Path(__file__).name)
    if inside is None:  # installed elsewhere: a repository around that place says nothing about this code
        return {"commit": None, "dirty": None}
    return {"commit": _git("rev-parse", "--short", "HEAD"), "dirty": bool(_git("status", "--porcelain", "-uno"))}


def as_text(version: dict[str, Any]) -> str:
    """A version in a line of text.

    Example:
        >>> as_text({"commit": "da71a14", "dirty": True}), as_text({"commit": None, "dirty": None})
        ('da71a14 with uncommitted changes', 'unknown')
    """
    return (version["commit"] or "unknown") + (" with uncommitted changes" if version["dirty"] else "")


def command_text(arguments: Sequence[str]) -> str:
    """The command as typed, with the last part of absolute paths only.

    Example:
        >>> command_text(["mnist", "--dataset_dir", "/home/me/data/MNIST", "--output_dir=/tmp/runs", "--rows", "a b"])
        "python -m medcoarse.experiments mnist --dataset_dir MNIST --output_dir=runs --rows 'a b'"
    """
    return shlex.join(["python", "-m", "medcoarse.experiments", *map(_without_folders, arguments)])


def _without_folders(argument: str) -> str:
    option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value).expanduser()
    outside = path.is_absolute() or ".." in path.parts
    return option + equals + (path.resolve().name if outside else value)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
