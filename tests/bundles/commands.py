"""The command medcoarse in tests: its words, and how it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medcoarse.cli.main import main
from tests.cases_folders import BACKGROUND


def text(*words: Any) -> list[str]:
    return [str(word) for word in words]


def refused(capfd: pytest.CaptureFixture[str], *words: Any) -> str:
    """One line, exit code 1, no traceback."""
    capfd.readouterr()
    assert main(text(*words)) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("medcoarse: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0]


def train_words(folder: Path, *more: Any) -> list[str]:
    words = text("train", folder / "images", folder / "drawings", "--output_dir", folder / "run", "--plan_only")
    return words + text("--background", BACKGROUND, *more)
