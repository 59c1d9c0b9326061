"""`medcoarse budget BUNDLE`: what more drawings of one's own would give, measured with those that there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medcoarse.cli.main import main
from medcoarse.experiments.more_drawings import growth_table
from tests.bundles.commands import refused, text
from tests.cases_folders import BACKGROUND, write_volumes


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = write_volumes(tmp_path_factory.mktemp("volumes"), 5)
    words = text("train", folder / "images", folder / "drawings", "--output_dir", folder / "run")
    words += text("--labels", folder / "masks", "--background", BACKGROUND, "--class_names", "box", "--epochs", 2)
    assert main(words) == 0
    return folder / "run"


def test_scores_grow_with_the_drawings_and_the_same_command_goes_on(trained, capfd):
    words = text("budget", trained, "--minutes", 15, "--hours", 3, "--shares", 0.5, "--epochs", 1)
    assert main(words) == 0
    out = capfd.readouterr().out
    found = json.loads((trained / "budget" / "more_drawings" / "results.json").read_text())
    assert [(row["name"], row["x"]) for row in found["rows"]] == [("2 drawings", 0.5), ("4 drawings", 1.0)]
    half, whole = (row["scores"]["mean_dice"]["mean"] for row in found["rows"])
    assert f"from 2 drawings to 4 drawings mean_dice changed by {whole - half:+.3f}" in out
    assert "drawings like these" in out
    assert f"at least {max(half, whole):.3f}" in out
    used = [run["definition"]["training"]["overrides"]["num_training"] for run in found["runs"]]
    assert sorted(used) == [2, 4]
    listed = [json.loads(path.read_text()) for path in trained.glob("budget/**/output/metrics.json")]
    assert len(listed) == 2
    assert main(words) == 0
    assert "2 of 2 runs are done already" in capfd.readouterr().out
    assert (trained / "budget" / "more_drawings" / "results.png").is_file()


def test_what_it_cannot_do(trained, tmp_path, capfd):
    assert "pass --minutes" in refused(capfd, "budget", trained)
    minutes = ("--minutes", 5)
    assert "--shares must be numbers" in refused(capfd, "budget", trained, *minutes, "--shares", "half")
    assert "shares above 0 and up to 1" in refused(capfd, "budget", trained, *minutes, "--shares", 2)
    assert "must be one of mean_dice, box_dice" in refused(capfd, "budget", trained, *minutes, "--score", "iou")
    assert "--minutes, --hours and --epochs" in refused(capfd, "budget", trained, "--minutes", -1)
    assert "no bundle" in refused(capfd, "budget", tmp_path, *minutes)
    assert "pass either BUNDLE" in refused(capfd, "budget")
    assert "pass --hours" in refused(capfd, "budget", "--table", "t.csv")


def test_shares_are_whole_images():
    table = growth_table(5, [0.01, 0.25, 0.5, 1.0], 30, ["mean_dice"], [0, 1])
    assert [row["overrides"]["num_training"] for row in table["rows"]] == [1, 2, 3, 5]
    assert [row["x"] for row in table["rows"]] == [0.5, 1.0, 1.5, 2.5]
