"""What the values and names in drawings mean."""

from __future__ import annotations

import pytest

from medcoarse.cli.facts import PRESETS, find_classes
from medcoarse.cli.main import CommandError
from medcoarse.readers import claims


def test_ready_mappings_have_one_name_everywhere() -> None:
    assert set(PRESETS) == set(claims.PRESETS)
    found = find_classes({"vessel", "not vessel"}, True, "slicer")
    assert found.mapping == {"not vessel": [1, "negative"], "vessel": [1, "positive"]}
    assert found.mapping == find_classes({"vessel", "not vessel"}, True).mapping
    with pytest.raises(CommandError, match=r"'names' is none of .*slicer"):
        find_classes({"vessel", "not vessel"}, True, "names")
    with pytest.raises(CommandError, match="the drawings name nothing, their values are '0', '1'"):
        find_classes({"0", "1"}, False, "slicer")


@pytest.mark.parametrize(
    ("found", "background", "names", "mapping"),
    [
        (
            {"Vessel", "Background"},
            None,
            ["background", "Vessel"],
            {"Background": [0, "positive"], "Vessel": [1, "positive"]},
        ),
        (
            {"vessel", "Not Vessel"},
            None,
            ["background", "vessel"],
            {"Not Vessel": [1, "negative"], "vessel": [1, "positive"]},
        ),
        ({"NOT  Vessel "}, None, ["background", "Vessel"], {"NOT  Vessel ": [1, "negative"]}),
        (
            {"vessel", "Vessel", "rest"},
            "Rest",
            ["background", "Vessel"],
            {"Vessel": [1, "positive"], "vessel": [1, "positive"], "rest": [0, "positive"]},
        ),
        (
            {"b", "Not A", "not background"},
            None,
            ["background", "A", "b"],
            {"Not A": [1, "negative"], "b": [2, "positive"], "not background": [0, "negative"]},
        ),
    ],
)
def test_segments_are_recognized_in_capitals_or_not(
    found: set[str], background: str | None, names: list[str], mapping: dict[str, list[object]]
) -> None:
    classes = find_classes(found, True, None, background)
    assert classes.names == names
    assert classes.mapping == mapping


def test_given_names_are_recognized_in_capitals_or_not() -> None:
    classes = find_classes({"tumour", "LIVER", "background"}, True, None, None, ["Liver", "Tumour"])
    assert classes.names == ["background", "Liver", "Tumour"]
    assert classes.mapping == {"LIVER": [1, "positive"], "tumour": [2, "positive"], "background": [0, "positive"]}
    for given in (["liver"], ["liver", "Liver", "tumour"]):
        with pytest.raises(CommandError, match="name all but background, each once"):
            find_classes({"tumour", "LIVER", "background"}, True, None, None, given)


def test_background_is_not_named() -> None:
    with pytest.raises(CommandError, match="--class_names: leave 'Background' out; it is class 0 in any case"):
        find_classes({"tumour", "LIVER", "background"}, True, None, None, ["liver", "tumour", "Background"])
    with pytest.raises(CommandError, match="leave 'rest' out"):
        find_classes({"tumour", "rest"}, True, None, "Rest", ["rest", "tumour"])
    with pytest.raises(CommandError, match="leave 'background' out"):
        find_classes({"0", "1", "3"}, False, None, "3", ["background", "liver"])
