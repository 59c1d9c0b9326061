"""How ready annotators are found."""

from __future__ import annotations

import json

import pytest

from medcoarse.profiles import (
    DHE_BINARY,
    DHE_MULTI_CLASS,
    LEVEL_2_NEGATIVE,
    LEVEL_3_POSITIVE,
    STROKE_NEGATIVE,
    as_dict,
    as_profile,
    level,
)


def test_by_name_dictionary_or_itself():
    assert as_profile("level_3_positive") is LEVEL_3_POSITIVE
    assert as_profile(json.loads(json.dumps(as_dict(STROKE_NEGATIVE)))) == STROKE_NEGATIVE
    with pytest.raises(ValueError, match=r"unknown annotator profile 'coarse'; known are good, over, .*coarse_posit"):
        as_profile("coarse")
    with pytest.raises(ValueError, match="unknown annotator field 'thicken'; known are kind, dense"):
        as_profile({"thicken": 1.0})


def test_the_annotators_of_dhe_are_found_by_name():
    for names in (DHE_BINARY, DHE_MULTI_CLASS):
        found = [as_profile(name) for name in names]
        assert len(set(found)) == 5
        assert all(profile.dense and profile.kind == "positive" for profile in found)
    assert as_profile("dhe_blank") != as_profile("blank")


def test_level():
    assert level(2, "negative") is LEVEL_2_NEGATIVE
    with pytest.raises(ValueError, match="level must be 1, 2, 3, 4 or 5, got 6"):
        level(6)
