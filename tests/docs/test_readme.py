"""What the documents say can be typed, imported and opened."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "examples/annotations.md",
        "examples/drawings.md",
        "examples/methods.md",
        "examples/training.md",
        "examples/deploy/README.md",
        "examples/monailabel.md",
        "benchmarks/README.md",
    )
]
PAGES += sorted(ROOT.glob("bundles/*/docs/README.md"))


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_documents_runs(page):
    names: dict[str, object] = {}  # later blocks of a page build on earlier ones
    for block in fenced(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_files_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"^  (\w+(?:\.py|/)) ", text, re.M):
        assert (ROOT / "medcoarse" / name).exists(), name


def test_commands_name_files_that_exist():
    for page in PAGES:
        for command in fenced(page, "bash"):
            for path in re.findall(r"(?:bundles|data_prep|examples)/[\w/.]+\.(?:json|py)", command):
                assert (ROOT / path).is_file(), path


def test_every_key_that_a_documented_command_overrides_is_in_the_configuration():
    for page in PAGES:
        for command in fenced(page, "bash"):
            for run in re.findall(r"monai\.bundle run (?:.*\\\n)*.*", command):
                bundle = re.search(r"bundles/\w+", run)[0]
                configs = "".join(path.read_text() for path in (ROOT / bundle / "configs").glob("*.json"))
                for key in re.findall(r"--(\w+)[ =]", run):
                    assert key in {"config_file"} or f'"{key}"' in configs, key


@pytest.mark.parametrize("name", ["annotations", "strokes"])
def test_scripts_draw_the_pictures_that_are_shown(name, tmp_path):
    runpy.run_path(str(ROOT / "examples" / f"draw_{name}.py"))["main"](tmp_path / f"{name}.png")
    kept_file = ROOT / "examples" / f"{name}.png"
    with Image.open(tmp_path / f"{name}.png") as again, Image.open(kept_file) as kept:
        assert again.size == kept.size
        difference = np.asarray(again.convert("L"), float) - np.asarray(kept.convert("L"), float)
    assert (np.abs(difference) > 32).mean() < 0.02  # other fonts and versions of Matplotlib may move a letter
    assert (tmp_path / f"{name}.png").stat().st_size < 300_000
    assert len(list(tmp_path.iterdir())) == 1
