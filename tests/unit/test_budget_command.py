"""`medcoarse budget`: hours in, ways of drawing out, and what it says where something is wrong."""

from __future__ import annotations

import json

import pytest

from medcoarse.cli.main import main
from medcoarse.selftrain.budget import measured_points

LINES = [
    "row,series,x,seed,status,mIoU",
    'a,"coarse, LCC",2,0,done,0.4',
    'a,"coarse, LCC",2,1,done,0.6',
    'b,"coarse, LCC",8,0,done,0.7',
    "c,fine masks,6,0,done,0.45",
    "d,fine masks,150,0,not run,",
    "e,fine masks,96,0,done,0.85",
    "f,,,0,done,0.9",
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("\n".join(LINES) + "\n")
    return path


def said(capsys, *words):
    assert main(["budget", *map(str, words)]) == 0
    return [line.split("  ") for line in capsys.readouterr().out.splitlines()]


def cells(lines):
    return [[cell.strip() for cell in line if cell.strip()] for line in lines]


def test_ways_of_drawing_by_what_they_would_give(table, capsys):
    """By hand: half way from 2 to 8 and a quarter of the way from 6 to 96, in the logarithm."""
    found = cells(said(capsys, "--hours", 4, "--table", table))
    assert found == [["mIoU", "hours"], ["coarse, LCC", "0.600", "4.0"], ["fine masks", "not measured"]]
    found = cells(said(capsys, "--hours", 12, "--table", table))
    assert found[1:] == [["coarse, LCC", "at least 0.700", "8.0"], ["fine masks", "0.550", "12.0"]]


def test_hours_of_other_people(table, capsys):
    """Who needs 14 minutes in place of 7 has drawn half as much: 8 hours are 4 of the table's, and 34 images."""
    found = cells(said(capsys, "--hours", 8, "--table", table, "--minutes_coarse", 14, "--minutes_fine", 45))
    assert found[0] == ["mIoU", "hours", "images"]
    assert found[1] == ["coarse, LCC", "0.600", "8.0", "34"]
    assert found[2][0::3] == ["fine masks", "11"]
    assert float(found[2][1]) == pytest.approx(0.45 + 0.4 * 0.3538, abs=1e-3), (
        "16 of the table's hours: log 16/6 of 96/6"
    )


def test_both_files_of_a_table_say_the_same(table, tmp_path):
    points = measured_points(table)
    rows = [{"series": k, "x": x, "scores": {"mIoU": {"mean": y}}} for k, own in points.items() for x, y in own]
    rows += [{"series": "fine masks", "x": 150, "scores": {"mIoU": {"mean": None}}}]
    rows += [{"series": "", "x": None, "scores": {"mIoU": {"mean": 0.9}}}]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    assert measured_points(tmp_path / "results.json") == points


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        (["--hours", "0"], None, "--hours must be a number above 0"),
        (["--hours", "nan"], None, "--hours must be a number above 0"),
        (["--hours", "3", "--minutes_fine", "-1"], None, "--minutes_fine must be a number above 0"),
        (["--hours", "3", "--score", "Dice"], None, "results.csv has no column 'Dice'; it has row, series, x"),
        (["--hours", "3"], "a,b\n1,2\n", "results.csv has no column 'series'; it has a, b"),
        (["--hours", "3"], "", "results.csv has no column 'series'; it has none"),
        (["--hours", "3"], LINES[0], "no finished run with an 'x' (hours) and a mIoU"),
        (["--hours", "3"], LINES[0] + "\na,fine,two,0,done,0.5\n", "x and mIoU must be numbers, got 'two' and '0.5'"),
        (["--hours", "3"], LINES[0] + "\na,fine,0,0,done,0.5\n", "'fine' needs points with hours above 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(table, capsys, words, content, message):
    if content is not None:
        table.write_text(content)
    assert main(["budget", "--table", str(table), *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("medcoarse: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"rows": []}', '{"rows": [{"scores": {"mIoU": {"mean": 1}}}]}'])
def test_json_that_is_no_table(tmp_path, capsys, content):
    (tmp_path / "mine.json").write_text(content)
    assert main(["budget", "--table", str(tmp_path / "mine.json"), "--hours", "3"]) == 1
    assert "mine.json is no results.json of a table whose rows have an x" in capsys.readouterr().err
    assert main(["budget", "--table", str(tmp_path / "none.csv"), "--hours", "3"]) == 1
    assert "none.csv: no such file" in capsys.readouterr().err
