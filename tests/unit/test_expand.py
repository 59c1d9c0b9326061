"""What strokes say beyond themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medcoarse.transforms import expand
from medcoarse.transforms.expand import (
    FillBeyondLoopsd,
    SpreadBackgroundd,
    count_loops,
    fill_beyond_loops,
    losing_ratios,
    safe_ratio,
    spread_background,
)


def loop(side: int = 9) -> np.ndarray:
    """A diamond of background around a stroke of class 1."""
    plane = np.full((side, side), 255, np.uint8)
    middle = side // 2
    apart = np.abs(np.indices(plane.shape) - middle).sum(0)
    plane[apart == middle - 1] = 0
    plane[middle, middle] = 1
    return plane


def test_beyond_a_closed_loop_is_background():
    """By hand: everything farther from the middle than the line, whose corners touch diagonally."""
    plane = loop()
    apart = np.abs(np.indices(plane.shape) - 4).sum(0)
    filled = fill_beyond_loops(plane)
    assert (filled[apart >= 3] == 0).all()
    assert (filled[apart == 1] == 255).all()
    assert filled[4, 4] == 1
    assert np.array_equal(plane, loop()), "what came in stays as it is"


def test_an_open_loop_and_a_slice_without_the_structure_say_nothing_more():
    gap = loop()
    gap[4, 1] = 255
    assert np.array_equal(fill_beyond_loops(gap), gap)
    empty = loop()
    empty[4, 4] = 255
    assert np.array_equal(fill_beyond_loops(empty), empty)
    nothing = np.full((4, 5), 255, np.uint8)
    assert np.array_equal(fill_beyond_loops(nothing), nothing)


def test_a_structure_beyond_the_loop_opens_it():
    """Two structures, a loop around one of them: nothing is known of what surrounds the other."""
    plane = loop()
    plane[0, 0] = 2
    assert np.array_equal(fill_beyond_loops(plane), plane)


def stack(letters: str) -> np.ndarray:
    """Slices of 9 x 9: o a loop round a stroke, 1 a stroke alone, b a dab of background, . nothing."""
    alone, dab = np.full((2, 9, 9), 255, np.uint8)
    alone[4, 4], dab[0, 0] = 1, 0
    kinds = {"o": loop(), "1": alone, "b": dab, ".": np.full((9, 9), 255, np.uint8)}
    return np.stack([kinds[letter] for letter in letters], axis=2)


@pytest.mark.parametrize(
    ("drawn", "ended"),
    [
        (".b.o.b.", "xx...xx"),  # the first past either end, and all beyond it
        ("o..b.b.", "...xxxx"),
        ("o.b.o..", "......."),  # between structures nothing is said
        ("..b....", "......."),  # nor without any
        ("o.1.b..", "......."),  # nor where no line is closed round the last strokes
    ],
)
def test_background_alone_past_the_last_loop_says_that_the_structure_has_ended(drawn, ended):
    filled = fill_beyond_loops(stack(drawn))
    assert [bool((filled[:, :, k] == 0).all()) for k in range(7)] == [letter == "x" for letter in ended]
    for k in range(7):
        if ended[k] == ".":
            assert np.array_equal(filled[:, :, k], fill_beyond_loops(stack(drawn)[:, :, k])), "read by itself"


def test_loops_drawn_across_another_axis_say_nothing():
    volume = np.moveaxis(stack("...o..."), 2, 0)
    across = np.ascontiguousarray(volume)  # (Z, X, Y): slices of the third axis cut the loop
    assert np.array_equal(fill_beyond_loops(across) == 1, across == 1)
    assert (fill_beyond_loops(across) == 0).sum() == (across == 0).sum()


def test_loops_are_counted_on_slices_with_the_structure():
    gap = loop()
    gap[4, 1] = 255
    empty = np.where(loop() == 1, 255, loop()).astype(np.uint8)
    assert count_loops(np.stack([loop(), gap, empty, loop()], axis=2)) == (3, 2)
    assert count_loops(loop()) == (1, 1)
    assert count_loops(np.full((4, 4, 2), 255, np.uint8)) == (0, 0)
    dense = np.where(loop() == 255, 0, loop()).astype(np.uint8)
    assert count_loops(dense) == (1, 0), "beyond the line nothing is left to speak for"
    inside = dense.copy()
    inside[4, 5] = 255
    assert count_loops(inside) == (1, 0)


def test_slices_are_read_one_by_one():
    volume = np.stack([loop(), np.full((9, 9), 255, np.uint8)], axis=2)
    filled = fill_beyond_loops(volume)
    assert np.array_equal(filled[:, :, 0], fill_beyond_loops(loop()))
    assert (filled[:, :, 1] == 255).all()
    item = FillBeyondLoopsd("positive")({"positive": MetaTensor(torch.from_numpy(volume[None]))})
    assert np.array_equal(np.asarray(item["positive"][0]), filled)
    assert item["positive"].dtype == torch.uint8


# --- nearer to background than to any structure ------------------------------------------------------------------


def spread_slowly(strokes: np.ndarray, spacing: list[float], ratio: float) -> np.ndarray:
    """By the words of the definition, voxel by voxel."""
    places = np.stack(np.meshgrid(*map(np.arange, strokes.shape), indexing="ij"), -1) * np.asarray(spacing)
    background, structures = places[strokes == 0], places[(strokes != 0) & (strokes != 255)]
    result = strokes.copy()
    if len(background) and len(structures):
        for voxel in np.argwhere(strokes == 255):
            here = places[tuple(voxel)]
            near, far = (np.sqrt(((here - drawn) ** 2).sum(1)).min() for drawn in (background, structures))
            if near <= ratio * far * (1 + 1e-6):
                result[tuple(voxel)] = 0
    return result


def scribbled(shape: tuple[int, ...], seed: int, share: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 3, shape)
    return np.where(rng.random(shape) < share, drawn, 255).astype(np.uint8)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    ("shape", "spacing"), [((17, 12), [1.0, 1.0]), ((9, 14), [0.5, 2.0]), ((8, 9, 5), [0.7, 0.7, 3.0]), ((11,), [1.0])]
)
def test_background_spreads_as_defined(shape, spacing, ratio):
    for seed in range(3):
        strokes = scribbled(shape, seed)
        before = strokes.copy()
        assert np.array_equal(spread_background(strokes, spacing, ratio), spread_slowly(strokes, spacing, ratio))
        assert np.array_equal(strokes, before), "what came in stays as it is"


def test_what_is_spread_grows_with_the_ratio_and_leaves_what_was_drawn():
    strokes = scribbled((20, 20, 6), seed=7)
    added = [spread_background(strokes, [1.0, 1.0, 2.0], ratio) for ratio in (0.0, 0.4, 0.6, 0.8, 1.0)]
    assert np.array_equal(added[0], strokes)
    sizes = [(one == 0).sum() for one in added]
    assert sizes == sorted(set(sizes)), "more with each"
    assert all(np.array_equal(one[strokes != 255], strokes[strokes != 255]) for one in added)
    assert all(set(np.unique(one[strokes == 255])) <= {0, 255} for one in added)


@pytest.mark.parametrize("values", [(255,), (0, 255), (1, 255), (0,), (2,)])
def test_nothing_is_added_where_structures_or_background_were_not_drawn(values):
    strokes = np.resize(np.array(values, np.uint8), (5, 6))
    assert np.array_equal(spread_background(strokes, [1.0, 1.0], 1.0), strokes)


def test_spreading_takes_the_spacing_of_the_image_and_each_annotator_for_himself():
    """By hand: background at 0, a structure at 4 in rows of 1 mm; at ratio 0.5 a voxel at most 1.33 mm away follows."""
    row = np.array([0, 255, 255, 255, 1], np.uint8)
    silent = np.full(5, 255, np.uint8)
    strokes = torch.from_numpy(np.stack([row, silent])[:, :, None])  # (R, 5, 1)
    assert SpreadBackgroundd("a")({"a": strokes})["a"][:, :, 0].tolist() == [[0, 0, 255, 255, 1], silent.tolist()]
    upright = torch.from_numpy(np.array([[[255, 0, 255, 255], [1, 255, 255, 255]]], np.uint8))  # (1, 2, 4)
    image = MetaTensor(upright, affine=torch.diag(torch.tensor([9.0, 1.0, 1.0, 1.0])))
    assert SpreadBackgroundd("a")({"a": image})["a"][0].tolist() == [[0, 0, 0, 0], [1, 255, 255, 255]]
    even = SpreadBackgroundd("a", spacing=1.0)({"a": image})["a"]
    assert even[0].tolist() == [[255, 0, 0, 255], [1, 255, 255, 255]]
    spread = SpreadBackgroundd("a")({"a": image})["a"]
    assert isinstance(spread, MetaTensor)
    assert spread.dtype == torch.uint8
    assert torch.equal(spread.affine, image.affine)
    assert SpreadBackgroundd("a", allow_missing_keys=True)({}) == {}


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), None, "0.3", [0.3], True])
def test_a_ratio_that_makes_no_sense_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio must be a number from 0"):
        SpreadBackgroundd("strokes", ratio)


@pytest.mark.parametrize("value", [0.5, -1, 300, np.nan])
@pytest.mark.parametrize("transform", [FillBeyondLoopsd("strokes"), SpreadBackgroundd("strokes")])
def test_strokes_that_were_interpolated_do_not_become_background(transform, value):
    strokes = torch.tensor([[[0.0, 255, value, 255, 1]]])
    with pytest.raises(ValueError, match="'strokes' values must be whole numbers below num_classes=255, or 255"):
        transform({"strokes": strokes})


def test_a_stroke_far_from_the_others_is_lost_early():
    """By hand, in a row of 1 mm: the third stroke has background 2 mm away, and the next stroke 21 mm."""
    row = np.full(40, 255, np.uint8)
    row[[2, 3, 8, 9, 30]] = 1
    row[[28, 34]] = 0
    first, second = 26 / 6, 19 / 6  # half of two voxels is the one that is lost first
    for spacing in (1.0, 3.0):
        assert losing_ratios(row[:, None], [spacing, 1.0]) == pytest.approx([first, second, 2 / 21])


def test_what_is_lost_is_what_would_be_spread_over():
    """The definition, by spreading: without a stroke, half of its voxels become background from its ratio on."""
    strokes = scribbled((14, 12, 4), seed=3, share=0.04)
    spacing = [1.0, 1.0, 2.5]
    parts, _ = ndimage.label((strokes != 0) & (strokes != 255), np.ones((3, 3, 3)))
    for part, ratio in enumerate(losing_ratios(strokes, spacing), 1):
        without = np.where(parts == part, 255, strokes).astype(np.uint8)
        for at, lost in ((1.001 * ratio, True), (0.999 * ratio, False)):
            called = spread_background(without, spacing, at)[parts == part] == 0
            assert (called.mean() >= 0.5) == lost


def test_a_stroke_is_lost_once_half_of_it_is():
    """A line that leads away from background, 1 to 20 mm, with the other stroke 40 mm beside all of it."""
    strokes = np.full((41, 22), 255, np.uint8)
    strokes[0, 1:21], strokes[40, 1:21], strokes[0, 0] = 1, 1, 0
    assert losing_ratios(strokes, [1.0, 1.0])[0] == pytest.approx(10 / 40)


def test_of_many_and_large_strokes_some_are_looked_at(monkeypatch):
    """A square of 30, and eight dots beside it; nothing is far off, and no stroke lost sight of."""
    strokes = np.full((60, 60), 255, np.uint8)
    strokes[:30, :30], strokes[:60:8, 55], strokes[55, ::9] = 1, 2, 0
    exact = losing_ratios(strokes, [1.0, 1.0])
    assert len(exact) == 9
    monkeypatch.setattr(expand, "_MOST_EDGES", 40)
    monkeypatch.setattr(expand, "_MOST_VOXELS", 100)
    assert losing_ratios(strokes, [1.0, 1.0]) == pytest.approx(exact, rel=0.2)
    monkeypatch.setattr(expand, "_MOST_STROKES", 4)
    assert losing_ratios(strokes, [1.0, 1.0]) == pytest.approx(exact[::3], rel=0.2)


def test_where_everything_is_drawn_nothing_is_left_out():
    drawn = (scribbled((9, 9), seed=1, share=1.0) > 0).astype(np.uint8)
    assert losing_ratios(drawn, [1.0, 1.0]) == []


def test_one_stroke_says_nothing_of_what_is_left_out():
    one = np.full((6, 6), 255, np.uint8)
    assert losing_ratios(one, [1.0, 1.0]) == []
    one[2, 2:4] = 1
    one[3, 4] = 2  # touches: one stroke of what is no background
    one[0, 0] = 0
    assert losing_ratios(one, [1.0, 1.0]) == []
    one[one == 0] = 255
    one[5, 0] = 1
    assert losing_ratios(one, [1.0, 1.0]) == [], "without background nothing spreads"


@pytest.mark.parametrize(
    ("losing", "ratio"),
    [
        ([0.9] * 5, 0.5),  # never more than that
        ([0.35] * 40, 0.3),
        ([0.3] * 40, 0.2),  # at 0.3 they are lost
        ([0.1] * 2 + [0.9] * 38, 0.5),  # two of forty
        ([0.1] * 3 + [0.9] * 38, 0.0),  # three of 41
        ([0.01], 0.0),
        ([], 0.3),
    ],
)
def test_the_ratio_loses_one_stroke_in_twenty_at_most(losing, ratio):
    assert safe_ratio(losing) == ratio
    assert safe_ratio(losing, looped=True) == min(ratio, 0.3)
    assert sum(one <= ratio for one in losing) <= len(losing) / 20
