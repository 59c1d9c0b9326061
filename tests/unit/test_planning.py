"""Plans worked out by hand."""

from __future__ import annotations

import math

import pytest
from torch.utils.data import DataLoader

from medcoarse.grids import Facts, target_spacing, usual_shape
from medcoarse.planning import (
    balance,
    cached_images,
    choose_intensity,
    choose_strides,
    fitting_box,
    make_plan,
    mirrored_axes,
    sided_names,
    window,
)


def volumes(spacings: list[tuple[float, ...]], shape: tuple[int, ...] = (100, 100, 50)) -> Facts:
    return Facts([shape] * len(spacings), spacings, 1)


@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        ([(1, 1, 3)] * 3, [1.0, 1.0, 3.0]),
        ([(1, 1, 3), (1.04, 1, 3), (1, 1, 3)], [1.0, 1.0, 3.0]),  # within 5%
        ([(0.0001234567, 1, 1)], [0.0001235, 1.0, 1.0]),
        ([(1, 1, 1), (1, 1, 2), (1, 1, 2), (1.2, 1.2, 3)], [1.0, 1.0, 2.0]),  # the median
        # 1, 5, 5, 6, 8: the median of 5 is over three times 1; the tenth percentile is 1 + 0.4 * 4 = 2.6
        ([(1, 1, 1), (1, 1, 5), (1, 1, 5), (1, 1, 6), (1, 1, 8)], [1.0, 1.0, 2.6]),
        # never finer than the other axes: the tenth percentile of 0.2, 9, 9, 9, 9 is 3.72; of 0.2, 0.2, 9, 9, 9 0.2
        ([(1, 1, 0.2), (1, 1, 0.2), (1, 1, 9), (1, 1, 9), (1, 1, 9)], [1.0, 1.0, 1.0]),
    ],
)
def test_spacing(spacings: list[tuple[float, ...]], expected: list[float] | None) -> None:
    assert target_spacing(volumes(spacings))[0] == expected


@pytest.mark.parametrize(
    "name",
    [
        "left kidney",
        "Kidney-Right",
        "l_lung",
        "lh.cortex",
        "ctx-rh-x",
        "rene dx",
        "lung (R)",
        "lungL",
        "LLung",
        "linke Niere",
        "rechts",
        "A. renalis dex.",
    ],
)
def test_names_that_tell_sides(name: str) -> None:
    assert sided_names([name]) == [name]
    axes, why = mirrored_axes(["background", "spine", name])
    assert axes == []
    assert repr(name) in why


def test_names_that_differ_by_their_side_alone() -> None:
    assert sided_names(["background", "Lkidney", "Rkidney", "lib"]) == ["Lkidney", "Rkidney"]
    assert sided_names(["kidneyl", "kidneyr"]) == ["kidneyl", "kidneyr"]
    assert not sided_names(["L3", "R4", "lr", "rrr", "glass", "grass"])


@pytest.mark.parametrize(
    "name", ["liver", "L3 vertebra", "leftover", "bright spot", "r", "type L tumour", "LV", "sinus"]
)
def test_names_that_tell_no_sides(name: str) -> None:
    assert not sided_names([name, "rib"])
    assert mirrored_axes(["background", name])[0] == [0]


@pytest.mark.parametrize(
    ("orientation", "axis", "line"),
    [("LPS", 0, "0 (left and right)"), ("PIR", 2, "2 (left and right)"), (None, 0, "0 (the first)")],
)
def test_it_is_left_and_right_that_are_mirrored(orientation: str | None, axis: int, line: str) -> None:
    axes, why = mirrored_axes(["background", "liver"], orientation)
    assert axes == [axis]
    assert line in why
    assert "pass --flip_axes none" in why


def test_one_structure_is_not_balanced() -> None:
    assert balance([900, 2]) == (0.0, "there is one structure, and none to balance it with")


@pytest.mark.parametrize("facts", [Facts([(9, 9)] * 2, None, 1, "picture"), Facts([(9, 9)], [(1, 2)], 1)])
def test_pictures_and_slices_are_taken_as_they_are(facts: Facts) -> None:
    settings = make_plan(facts).settings
    assert [settings[key] for key in ("orientation", "spacing", "spacing_tolerance")] == [None, None, 0]


def test_only_where_spacings_differ_all_are_resampled() -> None:
    assert make_plan(volumes([(1, 1, 1), (1, 1, 2), (1, 1, 2)])).settings["spacing_tolerance"] == 0


def test_images_are_planned_for_as_they_are_turned() -> None:
    """Two of three are stored alike, the third the other way round and with its axes exchanged."""
    alike = Facts([(100, 100, 20)] * 3, [(1.0, 1.0, 5.0)] * 3, 1, orientations=["LPS"] * 3)
    shapes, spacings = [(100, 100, 20), (20, 100, 100), (100, 100, 20)], [(1, 1, 5), (5, 1, 1), (1, 1, 5)]
    stored = Facts(shapes, spacings, 1, orientations=["LPS", "IAR", "LPS"])
    plan = make_plan(stored)
    assert plan.settings == make_plan(alike).settings
    assert plan.settings["orientation"] == "LPS"
    assert plan.reasons["orientation"] == (
        "to the left, the back, the head, as the axes of 2 of 3 images lead; the others are turned so"
    )
    assert "all images lead; new ones are turned so" in make_plan(alike).reasons["orientation"]


def test_shape_after_resampling() -> None:
    # 100 * 1 / 2 = 50 and 100 * 3 / 2 = 150; the median of 50, 150, 150
    facts = Facts([(100, 10, 10)] * 3, [(1, 1, 1), (3, 1, 1), (3, 1, 1)], 1)
    assert usual_shape(facts, [2.0, 1.0, 1.0])[0] == [150, 10, 10]


@pytest.mark.parametrize(
    ("shape", "spacing", "most", "expected"),
    [
        ((512, 512), (1, 1), 256 * 256, [256, 256]),
        ((512, 100), (1, 1), 100 * 200, [200, 100]),
        ((512, 512, 100), (0.5, 0.5, 2.0), 64 * 64 * 16, [64, 64, 16]),  # 32 mm each way
        ((7, 5, 3), (1, 1, 1), 1000, [7, 5, 3]),
        ((1000, 1, 1), (1, 1, 9), 10, [10, 1, 1]),
    ],
)
def test_box(shape: tuple[int, ...], spacing: tuple[float, ...], most: int, expected: list[int]) -> None:
    assert fitting_box(shape, spacing, most) == expected


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((256, 256), (1, 1), [[2, 2]] * 4),  # four at most
        ((16, 16), (1, 1), [[2, 2]] * 2),  # 16, 8, 4
        ((15, 15), (1, 1), [[2, 2]]),  # 7.5 is not twice 4
        ((64, 64, 4), (1, 1, 1), [[2, 2, 1]] * 4),  # too thin
        ((64, 64, 32), (1, 1, 4), [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]),  # 1, 2, then 4 like the slices
        ((64, 64, 32), (1, 1, 1.9), [[2, 2, 2]] * 3 + [[2, 2, 1]]),  # 32, 16, 8, 4: the slices are at their end
        ((5, 5), (1, 1), [[1, 1]]),
    ],
)
def test_strides(shape: tuple[int, ...], spacing: tuple[float, ...], expected: list[list[int]]) -> None:
    assert choose_strides(shape, spacing) == expected


def test_the_plan_of_a_ct_on_a_cpu() -> None:
    facts = Facts([(512, 512, 60)] * 10, [(0.8, 0.8, 5.0)] * 10, 1, "CT", -1024, 2000, 300, (-50, 150))
    settings = make_plan(facts).settings
    # a cube of s mm: (s / 0.8)^2 * s / 5 = 131072 voxels, s = 74.9 mm, so 93 x 93 x 14 voxels
    # halving: 0.8, 1.6, 3.2: at 3.2 the slices of 5 mm join in, 14 -> 7, and 93 -> 5 after four
    assert settings["network_def#strides"] == [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 1]]
    assert settings["patch_size"] == [80, 80, 14]
    assert settings["network_def#channels"] == [16, 32, 64, 128, 256]
    assert (settings["intensity"], settings["ct_window"]) == ("ct", [-50, 150])
    assert (settings["spacing"], settings["spacing_tolerance"]) == ([0.8, 0.8, 5.0], 0.05)
    assert settings["batch_size"] == 2  # 2 * 131072 / 89600 = 2.9
    assert settings["max_epochs"] == 58  # each image 7 times, 70 patches, 35 steps an epoch; 2000 / 35 = 57.1


def test_a_plan_says_what_it_costs() -> None:
    few = make_plan(Facts([(28, 28)] * 5, None, 1, "picture", 0, 255, 250))
    assert (few.settings["patch_size"], few.settings["batch_size"]) == ([24, 24], 8)  # 2 * 65536 / 576 = 227
    assert few.reasons["max_epochs"].startswith("1600 steps;")  # 200 epochs, not 250, of 8: 5 * 13 = 65 patches
    assert "square as" in few.reasons["patch_size"]
    assert "have 131072 voxels" in few.reasons["batch_size"]
    many = make_plan(Facts([(512, 512, 60)] * 200, [(0.8, 0.8, 5.0)] * 200, 1), gpu=True, memory_gb=16)
    assert many.settings["batch_size"] == int(16e9 / 3000 / math.prod(many.settings["patch_size"]))
    assert "fit into memory" in many.reasons["batch_size"]
    assert "cube in mm as" in many.reasons["patch_size"]


@pytest.mark.parametrize(("images", "training"), [(5, 4), (33, 26), (100, 80), (40, None)])
def test_as_many_steps_are_planned_as_are_trained(images: int, training: int | None) -> None:
    """Counted as the bundle does: training images, repeated until there are enough patches, in whole batches."""
    plan = make_plan(Facts([(300, 300)] * images, None, 1, "picture", 0, 255, 250), num_training=training)
    settings, number = plan.settings, training or images
    repeats = -(-settings["patches_per_epoch"] // number)
    batches = len(DataLoader(range(number * repeats), settings["batch_size"], drop_last=True))
    epochs = settings["max_epochs"]
    assert plan.reasons["max_epochs"].startswith(f"{batches * epochs} steps;")
    assert batches * (epochs - 1) < 2000 <= batches * epochs


@pytest.mark.parametrize(
    ("annotators", "classes", "blocks"),
    [
        (25, 2, [1, 1, 1]),  # 25 * 4 * 15 bytes are half of 3000
        (26, 2, [4, 4, 1]),
        (6, 4, [1, 1, 1]),  # 6 * 16 = 96
        (7, 4, [4, 4, 1]),
    ],
)
def test_several_annotators_look_at_every_voxel_while_that_is_cheap(
    annotators: int, classes: int, blocks: list[int]
) -> None:
    facts = Facts([(64, 64, 20)] * 5, [(1.0, 1.0, 4.0)] * 5, 1, "MR")
    plan = make_plan(facts, num_classes=classes, num_annotators=annotators)
    assert plan.settings["annotator_def#reduction"] == blocks
    said = plan.reasons["annotator_def#reduction"]
    assert f"matrices of {annotators} annotators and {classes} classes take {15 * annotators * classes**2} byt" in said
    assert ("every voxel" in said) == (max(blocks) == 1)
    epochs = plan.settings["max_epochs"]
    assert f"; {epochs // 3} more epochs are for the annotators alone" in plan.reasons["max_epochs"]
    assert set(plan.reasons) <= set(plan.settings)


@pytest.mark.parametrize("annotators", [0, 1])
def test_nothing_is_planned_for_a_single_annotator(annotators: int) -> None:
    facts = Facts([(64, 64, 20)] * 5, [(1.0, 1.0, 4.0)] * 5, 1, "MR")
    plan = make_plan(facts, num_annotators=annotators)
    assert plan == make_plan(facts)
    assert "annotator_def#reduction" not in plan.settings
    assert f"; {plan.settings['max_epochs'] // 10} more epochs" in plan.reasons["max_epochs"]


def test_matrices_of_every_voxel_take_memory_from_the_batch() -> None:
    facts = Facts([(512, 512, 60)] * 200, [(0.8, 0.8, 5.0)] * 200, 1)
    one, several = (make_plan(facts, gpu=True, memory_gb=16, num_annotators=who).settings for who in (1, 20))
    voxels = math.prod(several["patch_size"])
    assert several["batch_size"] == int(16e9 / (3000 + 15 * 20 * 4) / voxels) < one["batch_size"]


def test_no_more_is_cached_than_half_of_the_memory_holds() -> None:
    """200 CTs of 512 x 512 x 300: 160 to train on, of 5 bytes a voxel, and 40 to validate on, of 10."""
    facts = Facts([(512, 512, 300)] * 200, [(0.8, 0.8, 1.0)] * 200, 1, "CT")
    one = 512 * 512 * 300 / 1e9
    plan = make_plan(facts, num_training=160, ram_gb=64)
    settings, reasons = plan.settings, plan.reasons
    # 40 * 15 * one = 47 GB are too much, so as many of either: 32 / (15 * one) = 27.1, less for indices of 0.5 MB
    assert settings["cache_num"] == 27
    assert f"take {27 * 15 * one:.1f} GB" in reasons["cache_num"]
    assert f"all would take {(160 * 5 + 40 * 10) * one:.1f} GB. The others ARE READ ANEW" in reasons["cache_num"]
    more = make_plan(facts, num_training=160, ram_gb=150).settings["cache_num"]
    assert more == int((75 - 40 * 10 * one) / (5 * one + 0.0005)) > 40
    whole = make_plan(facts, num_training=160, ram_gb=200)
    assert whole.settings["cache_num"] == 200
    assert whole.reasons["cache_num"].startswith("all images")
    assert make_plan(facts, num_training=160, ram_gb=0).settings["cache_num"] == 0
    assert "cache_num" not in make_plan(facts).settings


def test_images_are_cached_as_they_are_resampled_and_drawn() -> None:
    """Trained and validated on alike; the coarse ones keep their million voxels, of the fine ones an eighth is left."""
    facts = Facts([(100, 100, 100)] * 60, [(1.0, 1.0, 1.0)] * 30 + [(2.0, 2.0, 2.0)] * 30, 2)

    def kept(ram_gb: float, people: int = 1, spacing: list[float] | None = None) -> int:
        return cached_images(facts, spacing, 60, 2, people, ram_gb)[0]

    coarse = [2.0, 2.0, 2.0]
    of_two, of_many = (0.48 + (8 + people) + (12 + 1 + people) for people in (1, 40))  # MB, 60000 indices of 8 bytes
    assert kept(1.0, 1, coarse) == int(500 / of_two) == 21
    assert kept(1.0, 40, coarse) == int(500 / of_many) == 4
    assert kept(2.5, 1, coarse) == 60, "30 small ones beside the large ones"
    assert kept(2.5) == int(1250 / of_two) == 53


def test_the_plan_of_pictures() -> None:
    plan = make_plan(Facts([(700, 600)] * 100, None, 3, "picture", 0, 255, 250), gpu=True, memory_gb=16)
    settings = plan.settings
    assert (settings["spatial_dims"], settings["in_channels"], settings["spacing"]) == (2, 3, None)
    assert settings["patch_size"] == [512, 512]
    assert settings["network_def#channels"] == [32, 64, 128, 256, 256]
    assert settings["batch_size"] == 8
    assert settings["max_epochs"] == math.ceil(2000 / 12)  # 100 patches are 12 batches and a rest
    assert settings["intensity"] == "unit"
    assert "ct_window" not in settings
    assert set(plan.reasons) <= set(settings)


@pytest.mark.parametrize("shape", [(5, 5), (7, 6, 5), (33, 17, 9), (1000, 3), (24, 24, 1000)])
def test_every_patch_is_one_that_the_networks_take(shape: tuple[int, ...]) -> None:
    settings = make_plan(Facts([shape], [(1.0,) * len(shape)], 1)).settings
    strides = settings["network_def#strides"]
    assert len(settings["network_def#channels"]) == len(strides) + 1
    for axis, side in enumerate(settings["patch_size"]):
        steps = [stride[axis] for stride in strides]
        assert side % math.prod(steps) == 0
        assert side % (2 * math.prod(steps[:2])) == 0


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts([(9, 9, 9)], None, 1, "MR", 0, 4000, 900), "zscore"),
        (Facts([(9, 9, 9)], None, 1, "", 0, 40000, 900), "percentile"),
        (Facts([(9, 9, 9)], None, 1, "", -1000, 400, 300), "ct"),
        (Facts([(9, 9, 9)], None, 2, "", -1000, 400, 300), "zscore"),
        (Facts([(9, 9, 9)], None, 1, "MR", -1000, 400, 300), "zscore"),
    ],
)
def test_intensity(facts: Facts, expected: str) -> None:
    assert choose_intensity(facts)[0] == expected


def test_window_without_drawings() -> None:
    assert window(Facts([(9, 9, 9)], None, 1)) == [-160.0, 240.0]


@pytest.mark.parametrize("shapes", [[], [(5, 5), (5, 5, 5)], [(5,)]])
def test_no_plan_for_a_mixture(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="not for both"):
        make_plan(Facts(shapes, None, 1))


def test_heads_take_memory_of_their_own() -> None:
    """64 channels at 45 bytes are nearly as much as the network's 3000 bytes a voxel."""
    facts = volumes([(1, 1, 1)] * 4, (200, 200, 200))
    plans = [make_plan(facts, True, 2.0, num_classes=4, num_annotators=16, num_heads=heads) for heads in (0, 16)]
    without, with_heads = (math.prod(plan.settings["patch_size"]) * plan.settings["batch_size"] for plan in plans)
    assert with_heads * (3000 + 64 * 45) <= 2e9
    assert with_heads < 0.7 * without
