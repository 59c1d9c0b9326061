"""Tables: what they may say, what is run, what is run again, and that the numbers are those of the runs."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import shutil
import signal
import statistics
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medcoarse.curves import Curve, curves_figure
from medcoarse.experiments import processes, runner
from medcoarse.experiments.__main__ import main
from medcoarse.experiments.bundles import digest, open_bundle
from medcoarse.experiments.pages import as_figure
from medcoarse.experiments.plans import plan
from medcoarse.experiments.processes import Command, run_side_by_side
from medcoarse.experiments.provenance import command_text
from medcoarse.experiments.results import look_up, summarize
from medcoarse.experiments.tables import TableError, load_table, parse_table, table_names
from medcoarse.networks import AnnotatorNet

TRAINING = {
    "imports": ["$import json", "$import os", "$import pathlib", "$import subprocess", "$import time"],
    "seed": 0,
    "output_dir": "",
    "ckpt_dir": "",
    "dataset_dir": "",
    "resume": False,
    "base": 0.5,
    "fail": 0,
    "max_epochs": 3,
    "last_validated": "$@max_epochs",
    "network": {"_target_": "UNet", "spatial_dims": 2, "strides": [2, 2]},
    "training": [
        "$[pathlib.Path(folder).mkdir(parents=True, exist_ok=True) for folder in (@output_dir, @ckpt_dir)]",
        "$pathlib.Path(@output_dir, 'calls').open('a').write(str(@resume) + '\\n')",
        "$print('about to divide by', 1 - @fail, flush=True)",
        "$1 / (1 - @fail)",
        "$pathlib.Path(@output_dir, 'pids').write_text(str(os.getpid()) + ' ' + str(subprocess.Popen(['sleep', "
        "os.environ.get('PAUSE', '0')]).pid))",
        "$pathlib.Path(@ckpt_dir, 'full.pt').write_text('weights')",
        "$time.sleep(float(os.environ.get('PAUSE', '0')))",
        "$pathlib.Path(@output_dir, 'metrics.json').write_text(json.dumps({'facts': {'max_epochs': @max_epochs}, "
        "'validation': [{'epoch': 1, 'iou': 0.99}, "
        "{'epoch': @last_validated, 'iou': @base + [0, 0.1, 0.3][@seed], 'dice': float(@seed)}]}))",
    ],
}
EVALUATION = {
    "section": "validation",
    "evaluating": [
        "$1 / (1 - int(bool(os.environ.get('BROKEN'))))",
        "$os.environ.get('SILENT') or pathlib.Path(@output_dir, 'evaluation.json').write_text(json.dumps("
        "{'image': {'iou': @base / 2}, 'section': @section, 'images': [{'iou': 1.0}]}))",
    ],
}
IMITATION = """
import json, re, sys  # MONAI's command for expressions of the simplest kind, without the seconds that it needs to start
given = json.load(open(sys.argv[sys.argv.index("--args_file") + 1]))
config = {}
for file in given.pop("config_file"):
    config.update(json.load(open(file)))
config.update(given)
for line in config["imports"]:
    exec(line[1:])
def value(text):
    expression = isinstance(text, str) and text.startswith("$")
    return eval(re.sub(r"@(\\w+)", r"value(config['\\1'])", text[1:])) if expression else text
for line in config[config["run_id"]]:
    value(line)
"""
TABLE = {
    "title": "Table 1",
    "bundle": "toy",
    "config": ["configs/train.json"],
    "seeds": [0, 1, 2],
    "metrics": {"IoU": "iou", "Dice": "dice"},
    "rows": [{"name": "plain"}, {"name": "higher", "source": "Eq. 3", "overrides": {"base": 0.6}}],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A bundle, a place for results, and a command that imitates MONAI's."""
    configs = tmp_path / "toy" / "configs"
    configs.mkdir(parents=True)
    (configs / "train.json").write_text(json.dumps(TRAINING))
    (configs / "evaluate.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "imitation.py").write_text(IMITATION)
    monkeypatch.setattr(runner, "LAUNCHER", (sys.executable, str(tmp_path / "imitation.py")))
    return tmp_path


def write_table(place: Path, **changes) -> str:
    (place / "table.json").write_text(json.dumps(TABLE | changes))
    return str(place / "table.json")


def run(place: Path, *options: str, **changes) -> int:
    table = write_table(place, **changes)
    return main([table, "--bundle_root", str(place / "toy"), "--output_dir", str(place / "out"), *options])


def results(place: Path):
    folder = place / "out" / "table"
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    return SimpleNamespace(
        csv=lines, json=json.loads((folder / "results.json").read_text()), md=(folder / "results.md").read_text()
    )


def calls(place: Path) -> dict[str, list[str]]:
    """Run -> the value of ``resume`` at each call of its training."""
    folder = place / "out" / "table"
    return {f"{path.parts[-5]}/{path.parts[-4]}": path.read_text().split() for path in folder.glob("*/*/*/*/calls")}


# the file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "the table has unknown keys 'colour'; known are 'title'"),
        ({"metrics": {}}, "metrics must have at least one entry, got none"),
        ({"metrics": {"IoU": 3}}, "metrics must be texts, got 3"),
        ({"rows": []}, "rows must have at least one entry"),
        ({"rows": [{"name": "A b"}, {"name": "a-b"}]}, r"row names .* must be different, got 'a-b' twice"),
        ({"rows": [{"overrides": {}}]}, "row 0 lacks 'name'"),
        ({"rows": [{"name": "a", "override": {}}]}, "row 0 has unknown keys 'override'"),
        ({"rows": [{"name": "..."}]}, r"row 0 needs a name with letters or digits, got '\.\.\.'"),
        ({"rows": [{"name": "a", "config": "b.json"}]}, r"'config' of row 0 must be a list, got 'b\.json'"),
        ({"rows": [{"name": "a", "config": [""]}]}, "config of row 0 must be texts, got ''"),
        ({"rows": [{"name": "a", "x": "1"}]}, "'x' of row 0 must be a number, got '1'"),
        ({"seeds": []}, "seeds must be whole numbers from 0, got 'none'"),
        ({"seeds": [True]}, "seeds must be whole numbers from 0, got True"),
        ({"seeds": [1, 1]}, "seeds must be different, got 1 twice"),
        ({"config": "train.json"}, "'config' of the table must be a list, got 'train.json'"),
        ({"evaluate": {}}, "evaluate lacks 'config'"),
        ({"figure": {"x_label": "rate"}}, "a figure needs rows with an 'x', got none"),
        (
            {"figure": {"x_label": "rate", "level": "a"}, "rows": [{"name": "a", "x": 1}]},
            "the level of the figure must be a row without an 'x', got 'a'",
        ),
        ({"figure": {"x_label": "rate", "log_x": True}, "rows": [{"name": "a", "x": 0}]}, "with log_x every 'x' must"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(changes, message):
    with pytest.raises(TableError, match=message):
        parse_table(TABLE | changes, "table")


CASES = [{"name": "low", "overrides": {"base": 0.1}, "x": 1}, {"name": "high", "overrides": {"base": 0.2}, "x": 2}]
METHODS = [{"name": "A", "source": "Eq. 1"}, {"name": "B", "overrides": {"fail": 1}, "config": ["own.json"]}]


def test_a_grid_is_every_case_with_every_method():
    first = {"name": "masks"}
    expanded = parse_table(TABLE | {"rows": [first, {"vary": CASES, "methods": METHODS}, {"name": "last"}]}, "t").rows
    by_hand = [
        first,
        {"name": "low: A", "overrides": {"base": 0.1}, "source": "Eq. 1", "x": 1, "series": "A"},
        {"name": "low: B", "overrides": {"base": 0.1, "fail": 1}, "config": ["own.json"], "x": 1, "series": "B"},
        {"name": "high: A", "overrides": {"base": 0.2}, "source": "Eq. 1", "x": 2, "series": "A"},
        {"name": "high: B", "overrides": {"base": 0.2, "fail": 1}, "config": ["own.json"], "x": 2, "series": "B"},
        {"name": "last"},
    ]
    assert expanded == parse_table(TABLE | {"rows": by_hand}, "t").rows
    placeless = [{"name": "low"}]
    (row,) = parse_table(TABLE | {"rows": [{"vary": placeless, "methods": METHODS[:1]}]}, "t").rows
    assert (row.name, row.x, row.series, row.overrides) == ("low: A", None, "", {})
    named = [{"name": "A", "series": "curve"}]
    assert parse_table(TABLE | {"rows": [{"vary": CASES[:1], "methods": named}]}, "t").rows[0].series == "curve"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"vary": CASES}, "the grid in place of row 0 lacks 'methods'"),
        ({"methods": METHODS}, "the grid in place of row 0 lacks 'vary'"),
        ({"vary": CASES, "methods": METHODS, "name": "x"}, "the grid in place of row 0 has unknown keys 'name'"),
        ({"vary": [], "methods": METHODS}, "vary of the grid in place of row 0 must have at least one entry"),
        ({"vary": CASES, "methods": [{}]}, r"methods\[0\] of the grid in place of row 0 lacks 'name'"),
        (
            {"vary": [{"name": "a", "config": []}], "methods": METHODS},
            r"vary\[0\] of the grid .* keys 'config'",
        ),
        ({"vary": CASES, "methods": [{"name": "A", "overrides": {"base": 1}}]}, "'low' and 'A' both override 'base'"),
        ({"vary": CASES, "methods": [*METHODS, {"name": "a"}]}, "must be different, got 'low-a' twice"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(grid, message):
    with pytest.raises(TableError, match=message):
        parse_table(TABLE | {"rows": [grid]}, "t")


def test_rows_that_were_written_out_once_are_what_the_grid_makes():
    """Results are found by the names of rows and the hash of their overrides: neither may change."""
    rows = load_table("mnist_methods_strokes").rows
    assert len(rows) == 23
    content = [[row.name, dict(row.overrides), list(row.config), row.source, row.x, row.series] for row in rows]
    assert digest(content) == "536a6ebb431fbbcea69a1b25716d0341595f2dd9776b9bdd0312eadd24c5b306", "as written out"
    (row,) = (row for row in rows if row.name == "noisy 0.3: CycleMix")
    assert row.overrides["supervision"] == "strokes"
    assert row.overrides["negative_profiles"][0]["swell_strength_mm"] == 0.65
    assert row.config == ("configs/cyclemix.json",)


def test_every_method_for_strokes_is_in_the_figure_of_ratios():
    methods = {row.name.partition(": ")[2] for row in load_table("mnist_methods_strokes").rows} - {""}
    placed = [row for row in load_table("mnist_methods_ratio").rows if row.x is not None]
    assert {(row.series, row.x) for row in placed} == {(name, x) for name in methods for x in (0.02, 0.1, 0.3, 0.8)}
    for row in placed:
        for kind in ("positive", "negative"):
            assert row.overrides[f"{kind}_profiles"][0]["ratio"] == row.x


def test_a_table_without_metrics_is_refused():
    with pytest.raises(TableError, match="the table lacks 'metrics'"):
        parse_table({key: value for key, value in TABLE.items() if key != "metrics"}, "table")


def test_files_that_are_no_tables(tmp_path, capsys):
    assert main([str(tmp_path / "none.json")]) == 2
    assert "pass a JSON file, or one of" in capsys.readouterr().err
    (tmp_path / "half.json").write_text('{"title": ')
    with pytest.raises(TableError, match=r"half\.json: Expecting value"):
        load_table(tmp_path / "half.json")
    (tmp_path / "twice.json").write_text('{"seeds": [1], "seeds": [2]}')
    with pytest.raises(TableError, match="the keys of an object must be different, got 'seeds' twice"):
        load_table(tmp_path / "twice.json")
    assert main([]) == 2


@pytest.mark.parametrize(
    ("where", "overrides", "message"),
    [
        ("common", {"bose": 1}, "common overrides 'bose', which the bundle does not have"),
        ("row", {"network#rank": 1}, "row 'plain' overrides 'network#rank', which the bundle does not have"),
        ("row", {"network#strides#2": 1}, "overrides 'network#strides#2'"),
        ("row", {"base#low": 1}, "overrides 'base#low'"),
        ("common", {"output_dir": "here"}, "common overrides 'output_dir', which the runner sets itself"),
    ],
)
def test_overrides_must_be_of_something(place, where, overrides, message):
    changes = {"common": overrides} if where == "common" else {"rows": [{"name": "plain", "overrides": overrides}]}
    with pytest.raises(TableError, match=message):
        open_bundle(parse_table(TABLE | changes, "table"), place / "toy")


def test_an_argument_that_a_component_takes_can_be_added(place):
    rows = [{"name": "plain", "overrides": {"network#dropout": 0.1, "network#strides#1": 1}}]
    open_bundle(parse_table(TABLE | {"rows": rows}, "table"), place / "toy")


def test_overrides_of_the_evaluation_are_checked_too(place):
    evaluate = {"config": ["configs/evaluate.json"], "overrides": {"sektion": "test"}}
    with pytest.raises(TableError, match="evaluate overrides 'sektion'"):
        open_bundle(parse_table(TABLE | {"evaluate": evaluate}, "table"), place / "toy")
    with pytest.raises(TableError, match=r"has no configs/evaluation\.json"):
        open_bundle(parse_table(TABLE | {"evaluate": {"config": ["configs/evaluation.json"]}}, "table"), place / "toy")


def test_bundles_that_are_not_there_or_lack_what_is_set(place, tmp_path):
    table = parse_table(TABLE, "table")
    with pytest.raises(TableError, match="no bundle 'toy': start at the root of the repository or pass --bundle_root"):
        open_bundle(table)
    (place / "toy" / "configs" / "train.json").write_text(json.dumps({"training": [], "seed": 0}))
    with pytest.raises(TableError, match="the configuration of toy lacks output_dir, ckpt_dir"):
        open_bundle(table, place / "toy")


@pytest.mark.parametrize("name", table_names())
def test_tables_of_the_package_fit_their_bundles(name):
    table = load_table(name)
    open_bundle(table)


def test_positions_of_low_rank_rows_are_the_numbers_that_an_annotator_has():
    table = load_table("brats_low_rank")
    for row in table.rows:
        own = {key.split("#")[1]: value for key, value in row.overrides.items()}
        net = AnnotatorNet(torch.nn.Identity(), 2, 1, num_classes=4, num_positive=5, num_negative=0, **own)
        found = 0 if net.backbone is None else net.head.out_channels / 5
        assert row.x == found
    assert [row.x for row in table.rows] == [4 * 4, 2 * 4, 4 + 2 * 2 * 4, 4 + 2 * 4 * 4, 0]
    placed = [row for row in load_table("street_structures").rows if row.x is not None]
    for row in placed:
        own = {"structure": "low_rank"} | {key.split("#")[1]: value for key, value in row.overrides.items()}
        net = AnnotatorNet(torch.nn.Identity(), 2, 1, num_classes=11, num_positive=1, num_negative=1, **own)
        assert row.x == (0 if net.backbone is None else net.head.out_channels / 2)
    assert [row.x for row in placed] == [11 * 11, 2 * 11, 11 + 2 * 2 * 11, 11 + 2 * 4 * 11, 0]


def with_own_config(place: Path, **content) -> dict[str, object]:
    """A table of three rows, of which the last has a configuration of its own."""
    (place / "toy" / "configs" / "own.json").write_text(json.dumps({"base": 0.8} | content))
    own = {"name": "own", "config": ["configs/own.json"]}
    return {"rows": [{"name": "plain"}, own, own | {"name": "more", "overrides": {"base": 0.9}}]}


def test_overrides_of_a_row_are_checked_with_its_own_configuration(place):
    changes = with_own_config(place, colour=1)
    for row, fits in zip(changes["rows"], (False, True, True), strict=True):
        table = parse_table(TABLE | {"rows": [row | {"overrides": {"colour": 2}}]}, "table")
        if fits:
            open_bundle(table, place / "toy")
        else:
            with pytest.raises(TableError, match="row 'plain' overrides 'colour', which the bundle does not have"):
                open_bundle(table, place / "toy")
    with pytest.raises(TableError, match=r"has no configs/none\.json"):
        open_bundle(parse_table(TABLE | {"rows": [{"name": "a", "config": ["configs/none.json"]}]}, "t"), place / "toy")


# the plan


def planned(place: Path, content=TABLE, **options):
    table = parse_table(content, "table")
    return plan(table, open_bundle(table, place / "toy"), place / "out", **options)


def test_one_seed_of_every_row_comes_first(place):
    runs = planned(place)
    assert [(r.row.name, r.seed) for r in runs] == [(n, s) for s in (0, 1, 2) for n in ("plain", "higher")]
    assert runs[3].folder == place / "out" / "table" / "higher" / "seed-1"
    assert [(r.row.name, r.seed) for r in planned(place, rows=["higher"], seeds=[7])] == [("higher", 7)]
    with pytest.raises(TableError, match="no row 'highest' in the table table; it has plain, higher"):
        planned(place, rows=["highest"])


def fingerprint(place: Path, overrides=None, common=None, name="plain", seed=0, **options) -> str:
    content = TABLE | {"common": common or {}, "rows": [{"name": name, "overrides": overrides or {}}]}
    return planned(place, content, seeds=[seed], **options)[0].fingerprint


def test_the_fingerprint_is_that_of_the_definition(place):
    first = fingerprint(place, {"base": 0.6})
    assert first == fingerprint(place, {"base": 0.6}, {"base": 0.1}) == fingerprint(place, common={"base": 0.6})
    assert first == fingerprint(place, {"base": 0.6}, name="another name")
    assert len({first, fingerprint(place), fingerprint(place, {"base": 0.6}, seed=1)}) == 3
    config = place / "toy" / "configs" / "train.json"
    config.write_text(json.dumps(TRAINING, indent=3))
    assert first == fingerprint(place, {"base": 0.6}), "white space"
    config.write_text(json.dumps(TRAINING | {"max_epochs": 4}))
    assert first != fingerprint(place, {"base": 0.6})


def test_the_fingerprint_knows_the_data_but_not_their_place(place):
    folders = [place / "a" / "data", place / "b" / "data", place / "c" / "data"]
    for folder, content in zip(folders, ("{}", "{}", "[]"), strict=True):
        folder.mkdir(parents=True)
        (folder / "datalist.json").write_text(content)
    one, same, other = (fingerprint(place, dataset_dir=folder) for folder in folders)
    assert one == same != other
    assert one != fingerprint(place)
    with pytest.raises(TableError, match="pass the data's as --dataset_dir"):
        fingerprint(place, dataset_dir=place / "nowhere")


def test_another_evaluation_needs_no_other_training(place):
    evaluate = {"config": ["configs/evaluate.json"], "overrides": {"section": "test"}}
    alone, scored = planned(place)[0], planned(place, TABLE | {"evaluate": evaluate})[0]
    assert alone.work == scored.work
    assert alone.fingerprint != scored.fingerprint


def test_the_configuration_of_a_row_is_part_of_its_definition_alone(place):
    before = planned(place)[0]
    first, own, _ = planned(place, TABLE | with_own_config(place), seeds=[0])
    assert first.fingerprint == before.fingerprint != own.fingerprint
    _, changed, _ = planned(place, TABLE | with_own_config(place, max_epochs=4), seeds=[0])
    assert own.fingerprint != changed.fingerprint


def test_a_dry_run_writes_nothing(place, capsys):
    assert run(place, "--dry_run", "--seeds", "1") == 0
    assert "higher, seed 1 [" in (shown := capsys.readouterr().out)
    assert "not run: --base 0.6" in shown
    run(place, "--dry_run", "--rows", "more", **with_own_config(place))
    assert "not run: configs/own.json --base 0.9" in capsys.readouterr().out
    assert not (place / "out").exists()


# runs


def test_numbers_are_means_and_sample_deviations_of_the_last_epoch(place):
    assert run(place, "--jobs", "2") == 0
    found = results(place)
    # 0.5, 0.6, 0.8: mean 0.6333, squared deviations 0.0178 + 0.0011 + 0.0278 over 2
    assert "| plain |  | 0.633 ± 0.153 | 1.000 ± 1.000 | 3 |" in found.md
    assert "| higher | Eq. 3 | 0.733 ± 0.153 | 1.000 ± 1.000 | 3 |" in found.md
    assert "not in the numbers" not in found.md
    assert [float(line["IoU"]) for line in found.csv] == pytest.approx([0.5, 0.6, 0.8, 0.6, 0.7, 0.9])
    assert {line["status"] for line in found.csv} == {"done"}
    cell = found.json["rows"][1]["scores"]["IoU"]
    assert cell == {"mean": pytest.approx(2.2 / 3), "std": pytest.approx(statistics.stdev([0.6, 0.7, 0.9])), "n": 3}
    run_of = found.json["runs"][0]
    assert run_of["definition"]["training"]["overrides"] == {}
    assert run_of["versions"][0].keys() == {"commit", "dirty"}
    assert {"cpu", "threads"} < set(run_of["machine"])
    assert run_of["seconds"]["training"] > 0


def test_one_seed_has_no_deviation(place):
    assert run(place, "--rows", "plain", seeds=[1]) == 0
    assert "| plain |  | 0.600 | 1.000 | 1 |  |" in results(place).md
    assert "| higher | Eq. 3 | – | – | 0 | 1 not run |" in results(place).md


def test_the_page_says_how_long_training_alone_took_and_on_what(place):
    evaluate = {"config": ["configs/evaluate.json"]}
    changes = {"seeds": [0, 1], "metrics": {"IoU": "image#iou"}, "evaluate": evaluate}
    run(place, "--rows", "plain", **changes)
    for seed, seconds in enumerate(({"training": 90.0, "evaluation": 30.0}, {"training": 120.0, "evaluation": 5.0})):
        path = place / "out" / "table" / "plain" / f"seed-{seed}" / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    assert run(place, "--report_only", **changes) == 0
    found = results(place)
    assert "|  | source | IoU | n | not in the numbers | training, s |" in found.md
    assert "| plain |  | 0.250 ± 0.000 | 2 |  | 105 |" in found.md
    assert "| higher | Eq. 3 | – | 0 | 2 not run | – |" in found.md
    machine = found.json["runs"][0]["machine"]
    assert f"Hardware: {machine['gpu'] or machine['cpu']}" in found.md
    assert "2 runs, 105 s of training and 18 s of evaluation each on average" in found.md
    assert found.json["rows"][0]["training_seconds"] == {"mean": 105, "std": pytest.approx(21.2, abs=0.02), "n": 2}
    assert found.json["rows"][1]["training_seconds"] == {"mean": None, "std": None, "n": 0}


def test_seeds_that_were_run_before_stay_in_the_table(place):
    run(place, "--rows", "plain", "--seeds", "2", seeds=[0])
    run(place, "--rows", "plain", seeds=[0])
    assert "| plain |  | 0.650 ± 0.212 | 1.000 ± 1.414 | 2 |  |" in results(place).md


def test_the_same_command_again_runs_nothing(place, capsys):
    run(place)
    before = results(place)
    capsys.readouterr()
    assert run(place) == 0
    assert "6 of 6 runs are done already" in capsys.readouterr().out
    assert set(map(tuple, calls(place).values())) == {("False",)}
    assert len(calls(place)) == 6
    assert results(place).md == before.md


def test_what_changed_is_run_again_and_what_was_is_kept(place, capsys):
    run(place, seeds=[0])
    first = json.loads((place / "out/table/higher/seed-0/result.json").read_text())
    changed = [{"name": "plain"}, {"name": "higher", "overrides": {"base": 0.7}}]
    run(place, "--report_only", seeds=[0], rows=changed)
    assert "| higher | – | – | 0 | 1 outdated |" in results(place).md
    capsys.readouterr()
    assert run(place, seeds=[0], rows=changed) == 0
    shown = capsys.readouterr().out
    kept = f"result.{first['fingerprint']}.json"
    assert f"higher, seed 0: its definition has changed, the earlier result is kept as {kept}" in shown
    assert "1 of 2 runs are done already" in shown
    assert json.loads((place / "out/table/higher/seed-0" / kept).read_text()) == first
    assert "| higher | 0.700 | 0.000 | 1 |" in results(place).md
    assert run(place, seeds=[0]) == 0  # and back
    assert "the result of the same definition was there and is used again" in capsys.readouterr().out
    assert "| higher | Eq. 3 | 0.600 | 0.000 | 1 |" in results(place).md
    assert len(list((place / "out/table/higher/seed-0").glob("*/output/calls"))) == 2


def test_a_failing_run_is_shown_and_stops_no_other(place, capsys):
    rows = [{"name": "bad", "overrides": {"fail": 1}}, *TABLE["rows"]]
    assert run(place, "--jobs", "1", rows=rows, seeds=[0]) == 1
    shown = capsys.readouterr().out
    assert "[1/3] bad, seed 0: training ended with exit code 1" in shown
    assert "    about to divide by 0" in shown
    assert "ZeroDivisionError" in shown
    found = results(place)
    assert "| bad |  | – | – | 0 | 1 failed |" in found.md
    assert [line["status"] for line in found.csv] == ["failed", "done", "done"]
    assert found.json["runs"][0]["stage"] == "training"
    assert run(place, rows=rows, seeds=[0]) == 1
    assert {name: len(resumed) for name, resumed in calls(place).items()} == {
        "bad/seed-0": 2, "plain/seed-0": 1, "higher/seed-0": 1,
    }  # fmt: skip


def test_the_evaluation_counts_where_there_is_one_and_is_repeated_alone(place, monkeypatch, capsys):
    changes = {
        "evaluate": {"config": ["configs/evaluate.json"], "overrides": {"section": "test"}},
        "metrics": {"IoU": "image#iou"}, "seeds": [0],
    }  # fmt: skip
    monkeypatch.setenv("BROKEN", "1")
    assert run(place, **changes) == 1
    assert "evaluation ended with exit code 1" in capsys.readouterr().out
    monkeypatch.delenv("BROKEN")
    assert run(place, **changes) == 0
    assert set(map(tuple, calls(place).values())) == {("False",)}, "trained once"
    for line in ("| plain |  | 0.250 | 1 |", "| higher | Eq. 3 | 0.300 | 1 |"):
        assert line in results(place).md, "the row's overrides hold"
    assert "by evaluating after training (section = test)" in results(place).md
    written = next((place / "out/table/plain/seed-0").glob("*/output/evaluation.json"))
    assert json.loads(written.read_text())["section"] == "test"
    assert "failure.json" not in {path.name for path in (place / "out/table/plain/seed-0").iterdir()}


def test_a_row_is_run_with_its_own_configuration(place):
    changes = with_own_config(place) | {"metrics": {"IoU": "image#iou"}, "seeds": [0]}
    assert run(place, **changes, evaluate={"config": ["configs/evaluate.json"]}) == 0
    for line in ("| plain | 0.250 | 1 |", "| own | 0.400 | 1 |", "| more | 0.450 | 1 |"):
        assert line in results(place).md
    written = json.loads(next((place / "out/table/own/seed-0").glob("*/output/metrics.json")).read_text())
    assert written["validation"][-1]["iou"] == 0.8, "in training and in evaluation"


def test_scores_of_an_earlier_evaluation_are_not_taken_for_those_of_this_one(place, monkeypatch, capsys):
    changes = {"metrics": {"IoU": "image#iou"}, "seeds": [0], "evaluate": {"config": ["configs/evaluate.json"]}}
    assert run(place, **changes) == 0
    monkeypatch.setenv("SILENT", "1")
    changes["evaluate"]["overrides"] = {"section": "test"}
    assert run(place, **changes) == 1
    assert "evaluation.json has no 'image#iou'; it has nothing" in capsys.readouterr().out


def test_a_metric_that_there_is_not_is_said_and_costs_no_training(place, capsys):
    assert run(place, seeds=[0], metrics={"IoU": "iuo"}) == 1
    assert "the last validation in metrics.json has no 'iuo'; it has epoch, iou, dice" in capsys.readouterr().out
    assert run(place, seeds=[0]) == 0
    assert set(map(tuple, calls(place).values())) == {("False",)}


def test_scores_of_an_epoch_before_the_last_are_refused(place, capsys):
    assert run(place, seeds=[0], common={"last_validated": 2}) == 1
    assert "is of epoch 2, training ends at 3; validate the last epoch too" in capsys.readouterr().out


def test_scores_after_the_annotators_were_fitted_are_those_of_the_last_epoch(place):
    assert run(place, seeds=[0], common={"last_validated": 4}) == 0


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_process_and_everything_to_go_on_with(place, monkeypatch, capsys, number):
    monkeypatch.setenv("PAUSE", "60")
    if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:  # as a shell has it in the background
        signal.signal(number, signal.default_int_handler)

    def interrupt() -> None:
        deadline = time.monotonic() + 20
        while len(list(place.glob("out/table/*/*/*/models/full.pt"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    assert run(place, "--jobs", "2") == 128 + number
    assert "the same command goes on where it was" in capsys.readouterr().out
    pids = [int(pid) for path in place.glob("out/table/*/*/*/output/pids") for pid in path.read_text().split()]
    assert len(pids) == 4, "two trainings and a process of each"
    assert not any(map(alive, pids))
    assert "| plain |  | – | – | 0 | 3 not run |" in results(place).md
    run(place, "--dry_run")
    assert "higher, seed 0" in (shown := capsys.readouterr().out)
    assert shown.count("goes on from its checkpoint") == 2
    monkeypatch.setenv("PAUSE", "0")
    assert run(place, "--jobs", "2") == 0
    resumed = calls(place)
    assert resumed["plain/seed-0"] == resumed["higher/seed-0"] == ["False", "True"]
    assert resumed["plain/seed-1"] == ["False"]
    assert "| plain |  | 0.633 ± 0.153 |" in results(place).md


def test_a_checkpoint_of_another_definition_is_not_gone_on_with(place):
    run(place, "--rows", "plain", seeds=[0])
    run(place, "--rows", "plain", seeds=[0], common={"base": 0.1})
    assert sorted(calls(place)) == ["plain/seed-0"]
    written = [path.read_text().split() for path in place.glob("out/table/plain/seed-0/*/output/calls")]
    assert written == [["False"], ["False"]]


def test_a_run_that_someone_is_at_is_left_alone(place, capsys):
    folder = place / "out" / "table" / "plain" / "seed-0"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(place, "--rows", "plain", seeds=[0]) == 1
    assert "plain, seed 0: another process is at it" in capsys.readouterr().out
    assert run(place, "--rows", "plain", seeds=[0]) == 0


def test_a_process_that_a_killed_runner_left_behind_still_keeps_others_away(place, monkeypatch):
    monkeypatch.setenv("PAUSE", "60")
    first = planned(place)[0]
    task = runner.perform(first, threads=1)
    process = processes._start(next(task))
    task.close()  # as if killed: what it held is released
    with (first.folder / ".lock").open("a") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_results_are_written_again_from_the_runs_alone(place, monkeypatch):
    data = place / "data"
    data.mkdir()
    (data / "datalist.json").write_text("{}")
    run(place, "--dataset_dir", str(data), seeds=[0])
    before = results(place)
    assert "Data: data." in before.md
    for path in (place / "out" / "table").glob("results.*"):
        path.unlink()
    monkeypatch.setattr(runner, "LAUNCHER", ("false",))
    assert run(place, "--report_only", seeds=[0]) == 0
    assert results(place).csv == before.csv
    assert results(place).json["rows"] == before.json["rows"]
    (place / "more").mkdir()
    monkeypatch.setattr(runner, "LAUNCHER", (sys.executable, str(place / "imitation.py")))
    run(place, "--dataset_dir", str(place / "more"), "--rows", "plain", "--seeds", "1", seeds=[0])
    assert run(place, "--report_only", seeds=[0]) == 2  # of which data?


def test_pages_are_written_again_from_committed_results(place, tmp_path, monkeypatch, capsys):
    """Without the runs: as at the time, of the rows that there were then."""
    rows = [{"name": f"at {x}", "x": x, "series": "ours", "overrides": {"base": x}} for x in (0.1, 0.2)]
    changes = {"rows": rows, "figure": {"x_label": "base"}, "seeds": [0, 1]}
    run(place, "--seeds", "0", **changes)
    written, kept = place / "out" / "table", place / "kept"
    kept.mkdir()
    (kept / "table.json").write_bytes((written / "results.json").read_bytes())
    monkeypatch.setattr(runner, "LAUNCHER", ("false",))
    changes["rows"] = [*rows, {"name": "of today", "x": 0.3}]
    command = [write_table(place, **changes), "--bundle_root", str(place / "nowhere"), "--rewrite"]
    assert main([*command, str(kept / "table.json")]) == 0
    for ending in ("csv", "md", "json"):
        assert (kept / f"table.{ending}").read_text() == (written / f"results.{ending}").read_text()
    assert (kept / "table.png").read_bytes().startswith(b"\x89PNG")
    (kept / "table.json").rename(kept / "table.v2.json")
    assert main([*command, str(kept / "table.v2.json")]) == 0
    assert (kept / "table.v2.md").read_text() == (kept / "table.md").read_text()
    (kept / "table.v2.json").rename(kept / "table.json")
    old = json.loads((kept / "table.json").read_text())
    del old["rows"][0]["training_seconds"]  # written before there was such a column
    (kept / "table.json").write_text(json.dumps(old))
    assert main([*command, str(kept / "table.json")]) == 0
    assert (kept / "table.md").read_text() == (written / "results.md").read_text()
    changes["rows"] = rows[1:]
    write_table(place, **changes)
    assert main([*command, str(kept / "table.json")]) == 2
    assert "the results have a row 'at 0.1', which the table does not have" in capsys.readouterr().err
    assert main([*command, str(place / "toy/configs/train.json")]) == 2
    assert "train.json is no results.json of a table" in capsys.readouterr().err
    assert main([*command, str(place / "none.json")]) == 2
    assert "no results 'none.json'" in capsys.readouterr().err


def test_kept_results_are_gone_on_with(place, monkeypatch, capsys):
    """On another machine, say: what they hold is not run again, and counts as if it had been."""
    run(place, seeds=[0, 1])
    whole = results(place)
    kept = place / "kept.json"
    run(place, "--report_only", seeds=[0, 1])
    shutil.rmtree(place / "out" / "table" / "plain" / "seed-1")
    run(place, "--report_only", seeds=[0, 1])
    kept.write_bytes((place / "out" / "table" / "results.json").read_bytes())
    shutil.rmtree(place / "out")
    capsys.readouterr()
    assert run(place, "--restore", str(kept), "--seeds", "0", seeds=[0, 1]) == 0
    assert "3 runs restored from kept.json" in capsys.readouterr().out
    assert not list((place / "out" / "table").glob("*/*/*/run.log")), "something was run"
    assert run(place, "--restore", str(kept), seeds=[0, 1]) == 0
    assert "0 runs restored from kept.json" in capsys.readouterr().out
    for row, was in zip(results(place).json["rows"], whole.json["rows"], strict=True):
        assert (row["name"], row["runs"], row["scores"]) == (was["name"], was["runs"], was["scores"])
    assert [path.parts[-4:-2] for path in (place / "out" / "table").glob("*/*/*/run.log")] == [("plain", "seed-1")]
    assert run(place, "--restore", str(place / "none.json"), seeds=[0, 1]) == 2
    assert "no results 'none.json'" in capsys.readouterr().err


def test_the_same_runs_of_another_table_are_not_run_again(place, capsys):
    """A row of another name counts if all that makes its numbers is the same; another seed or override does not."""
    rows = [{"name": "as it is"}, {"name": "weaker", "overrides": {"base": 0.25}}]
    run(place, seeds=[0, 1], rows=rows)
    whole = results(place)
    (place / "out" / "table").rename(place / "out" / "other")
    other = place / "out" / "other" / "results.json"
    text = other.read_text()
    other.write_text(text.replace('"table": "table"', '"table": "other"'))
    assert other.read_text() != text
    rows = [{"name": "renamed"}, {"name": "as it is", "overrides": {"base": 0.75}}]
    capsys.readouterr()
    assert run(place, "--restore", str(other), seeds=[1, 2], rows=rows) == 0
    assert "1 runs restored from results.json" in capsys.readouterr().out
    assert sorted(calls(place)) == ["as-it-is/seed-1", "as-it-is/seed-2", "renamed/seed-2"]
    found = {(one["row"], one["seed"]): one for one in results(place).json["runs"]}
    was = {(one["row"], one["seed"]): one for one in whole.json["runs"]}
    assert found["renamed", 1]["scores"] == was["as it is", 1]["scores"]
    assert (found["renamed", 1]["table"], found["renamed", 1]["folder"]) == ("table", "table/renamed/seed-1")
    assert found["renamed", 1]["fingerprint"] == was["as it is", 1]["fingerprint"]
    other.write_text(json.dumps(json.loads(other.read_text()) | {"runs": []}))
    assert run(place, "--report_only", "--restore", str(other), seeds=[1, 2], rows=rows) == 0
    assert "0 runs restored from results.json" in capsys.readouterr().out


def test_a_result_of_another_definition_gives_way_to_a_restored_one(place, capsys):
    rows = [{"name": "plain", "overrides": {"base": 0.6}}]
    run(place, seeds=[0], rows=rows)
    kept = place / "kept.json"
    kept.write_bytes((place / "out" / "table" / "results.json").read_bytes())
    run(place, seeds=[0], rows=[{"name": "plain"}])
    (set_aside,) = (place / "out" / "table" / "plain" / "seed-0").glob("result.*.json")
    set_aside.unlink()
    before, was = calls(place), results(place).json["runs"][0]["fingerprint"]
    capsys.readouterr()
    assert run(place, "--restore", str(kept), seeds=[0], rows=rows) == 0
    assert "1 runs restored from kept.json" in capsys.readouterr().out
    assert calls(place) == before
    assert set_aside.parent.joinpath(f"result.{was}.json").is_file(), "what the restored one took the place of is kept"
    assert results(place).json["runs"][0]["scores"] == json.loads(kept.read_text())["runs"][0]["scores"]


def test_no_folder_of_this_machine_gets_into_the_results(place):
    data = place / "data"
    data.mkdir()
    rows = [{"name": "bad", "overrides": {"fail": 1}}, {"name": "plain"}]
    run(place, "--dataset_dir", str(data), seeds=[0], rows=rows)
    written = [path for path in (place / "out" / "table").iterdir() if path.is_file()]
    written += (place / "out" / "table").glob("*/*/*.json")
    assert len(written) == 5
    assert not [path.name for path in written if str(place) in path.read_text() or str(Path.home()) in path.read_text()]
    assert command_text(["/a/t.json", "--dataset_dir=/b/c"]) == "python -m medcoarse.experiments t.json --dataset_dir=c"


def test_lines_for_those_who_watch_a_file(place, capsys):
    run(place, "--jobs", "1", seeds=[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[1/2] plain, seed 0: IoU 0.500, Dice 0.000 (")
    assert "; 1 left, about " in lines[0]
    assert lines[1].startswith("[2/2] higher, seed 0: IoU 0.600, Dice 0.000 (")


def test_curves_are_drawn_of_the_rows_that_have_a_place(place):
    rows = [
        {"name": f"{series} {x}", "x": x, "series": series, "overrides": {"base": base}}
        for series, x, base in (("ours", 0.1, 0.2), ("theirs", 0.01, 0.1), ("ours", 0.01, 0.3))
    ]
    changes = {"rows": [*rows, {"name": "no x"}], "figure": {"x_label": "rate", "log_x": True, "level": "no x"}}
    assert run(place, "--seeds", "0,1", **changes) == 0
    assert (place / "out" / "table" / "results.png").read_bytes().startswith(b"\x89PNG")
    runs = planned(place, TABLE | changes, seeds=[0, 1])
    figure = as_figure(runs[0].table, summarize(runs[0].table, list(map(look_up, runs))))
    ours, theirs, level = figure.axes[0].lines
    assert (level.get_label(), level.get_linestyle(), len(set(level.get_ydata()))) == ("no x", "--", 1)
    assert (ours.get_label(), ours.get_xdata().tolist()) == ("ours", [0.01, 0.1])
    assert ours.get_ydata().tolist() == pytest.approx([0.35, 0.25])  # base and base + 0.1
    assert theirs.get_ydata().tolist() == pytest.approx([0.15])


def test_a_curve_is_the_means_with_a_band_of_one_deviation():
    curve = Curve("ours", [1, 10], [0.5, 0.7], [0.1, None])
    figure = curves_figure({"IoU": [curve], "Dice": [curve]}, "rate", log_x=True)
    assert [ax.get_ylabel() for ax in figure.axes] == ["IoU", "Dice"]
    ax = figure.axes[0]
    assert ax.get_xscale() == "log"
    assert ax.lines[0].get_xydata().tolist() == [[1, 0.5], [10, 0.7]]
    band = ax.collections[0].get_paths()[0].vertices
    assert set(band[:, 0]) == {1.0}, "one value has no deviation"
    assert (min(band[:, 1]), max(band[:, 1])) == pytest.approx((0.4, 0.6))
    with pytest.raises(ValueError, match="at least one panel"):
        curves_figure({}, "rate")


def test_points_far_below_the_others_do_not_press_them_into_a_line():
    curves = [Curve(name, [0.02, 0.1, 0.8], [0.86, 0.88, 0.9], [None] * 3) for name in "abcdefg"]
    odd = Curve("odd", [0.02, 0.1, 0.8], [0.3, 0.5, 0.9], [None] * 3)
    level = Curve("masks", [math.nan], [0.92], [None])
    ax = curves_figure({"IoU": [level, *curves, odd]}, "ratio", log_x=True).axes[0]
    low, high = ax.get_ylim()
    assert 0.84 < low < 0.86
    assert 0.92 < high < 0.93
    assert [text.get_text() for text in ax.texts] == ["2 lower, down to 0.30"]
    assert ax.lines[0].get_ydata() == [0.92, 0.92]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.02", "0.1", "0.8"]
    assert ax.get_legend().get_bbox_to_anchor().x0 > ax.bbox.x1, "many names stand beside the panel"
    spread = curves_figure({"IoU": [Curve("a", [1, 2, 3, 4], [0.1, 0.3, 0.7, 0.9], [None] * 4)]}, "ratio").axes[0]
    assert not spread.texts
    assert spread.get_ylim()[0] < 0.1


# processes


def pausing(log: Path, program: str = "import time; time.sleep(0.3)"):
    yield Command((sys.executable, "-S", "-c", program), log)
    return "ended"


def test_as_many_side_by_side_as_told(tmp_path):
    seen: list[int] = []
    tasks = {name: pausing(tmp_path / name) for name in "abcde"}
    assert dict(run_side_by_side(tasks, 2, lambda keys: seen.append(len(keys)))) == dict.fromkeys("abcde", "ended")
    assert max(seen) == 2


def test_a_process_that_does_not_want_to_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    stubborn = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        time.sleep(60)
    """
    log = tmp_path / "log"

    def stop_when_it_runs(keys: list[str]) -> None:
        if log.exists() and log.read_text().strip():
            raise RuntimeError("anything")

    with pytest.raises(RuntimeError, match="anything"):
        list(run_side_by_side({"a": pausing(log, textwrap.dedent(stubborn))}, 1, stop_when_it_runs))
    assert not alive(int(log.read_text()))


# MONAI itself


def test_the_imitated_command_is_that_of_monai(place, monkeypatch):
    monkeypatch.undo()
    changes = {
        "evaluate": {"config": ["configs/evaluate.json"], "overrides": {"section": "test"}},
        "metrics": {"IoU": "image#iou"}, "seeds": [1], "rows": [{"name": "a", "overrides": {"base": "$0.25 + 0.25"}}],
    }  # fmt: skip
    assert runner.LAUNCHER[1:] == ("-m", "monai.bundle", "run")
    assert run(place, **changes) == 0, next(place.glob("out/table/*/*/*/run.log")).read_text()
    assert "| a | 0.250 | 1 |" in results(place).md
    assert results(place).json["runs"][0]["validation"] == {"epoch": 3, "iou": 0.6, "dice": 1.0}
