"""How to train on images nobody has planned for: from facts about the data to a bundle's settings, by stated rules.

The rules are in the spirit of nnU-Net's (Isensee et al., Nature Methods 2021): the usual spacing, a patch as large as
memory allows, pooling until the smallest map has four voxels a side and only along axes that are fine enough.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.utils import ensure_tuple_rep

from medcoarse.grids import (
    SAME_SPACING,
    Facts,
    dims_of,
    have_same_spacing,
    lines_of,
    resampled_sides,
    target_spacing,
    turned,
    usual_orientation,
    usual_shape,
)

BYTES_PER_VOXEL = 3000
"""Of a residual U-Net with 16 channels at the top, forward and backward, 32 bit."""

BYTES_PER_ENTRY = 15
"""Of a confusion matrix at every voxel, forward and backward, 32 bit; 9 to 13 were measured (bundles/drawings/docs)."""

BYTES_PER_CHANNEL = 45
"""Of a head's class scores, forward and backward, 32 bit; half of it was measured forward."""

_EVEN = 10
"""Two zones alike gained nothing by balance; four classes of tumours and eleven of streets much."""

MOST_INDICES = 20000
"""Voxels of each class that the bundle remembers, to centre patches on."""

_MAX_POOLINGS = 4
_SMALLEST_SIDE = 4
_STEPS = 2000
_SIDES = (
    "left right lt rt lh rh dx sx links rechts linke rechte linker rechter linkes rechtes sin dex sinister dexter "
    "sinistra dextra sinistro destro destra gauche droite droit izquierda izquierdo derecha derecho"
)
_PATCHES_PER_EPOCH = 64
_MOST_VOXELS = {(2, False): 256 * 256, (2, True): 512 * 512, (3, False): 64 * 64 * 32, (3, True): 96**3}
"""By axes and whether there is a GPU; on CPUs time is the limit, not memory, for the patch and for the batch."""

WHOLE_RATIO = 0.9
"""Who draws more of an image than this says what all of it is (bundles/drawings/docs, several annotators)."""

_MOST_HEAD_CHANNELS = 64


@dataclass(frozen=True)
class Plan:
    """Settings of a bundle, and why: id -> value, and id -> reason."""

    settings: Mapping[str, Any]
    reasons: Mapping[str, str]


def num_heads(num_annotators: int, num_classes: int, drawn_ratio: float) -> tuple[int, str]:
    """How many heads the segmenter gets, one for each annotator or 0 for none, and why.

    Args:
        num_annotators: whose drawings are kept apart.
        num_classes: L, background included.
        drawn_ratio: how much of an image is drawn by who drew it, 0 to 1, in the mean.

    Example:
        >>> num_heads(5, 2, drawn_ratio=1.0)[0], num_heads(5, 2, drawn_ratio=0.1)[0]
        (5, 0)
    """
    if num_annotators < 2:
        return 0, ""
    if drawn_ratio <= WHOLE_RATIO:
        return 0, (
            f"of images {drawn_ratio:.0%} drawn one head learns what all drew: a head for each annotator needs whole "
            "drawings"
        )
    if num_annotators * num_classes > _MOST_HEAD_CHANNELS:
        return 0, f"a head for each annotator would be {num_annotators * num_classes} channels at every voxel"
    return num_annotators, "every annotator gets a head of the segmenter, which answers with their vote"


def make_plan(
    facts: Facts,
    gpu: bool = False,
    memory_gb: float = 4.0,
    num_training: int | None = None,
    num_classes: int = 2,
    num_annotators: int = 1,
    ram_gb: float | None = None,
    num_heads: int = 0,
) -> Plan:
    """Settings of the bundle `drawings` for a set of images.

    Args:
        facts: about the images.
        gpu: whether there is one.
        memory_gb: for training.
        num_training: how many of the images are trained on, by default all.
        num_classes: L, background included.
        num_annotators: whose drawings are kept apart; of several, blocks of voxels that they look at are planned too.
        ram_gb: main memory that is free; of it at most half is planned to keep images in. None plans nothing of it.
        num_heads: of the segmenter, see the function of that name.

    Raises:
        ValueError: no images, or some with two axes and some with three.

    Example:
        >>> plan = make_plan(Facts([(64, 64, 20)] * 5, [(1.0, 1.0, 4.0)] * 5, 1, "MR"))
        >>> plan.settings["network_def#strides"], plan.settings["patch_size"]
        ([[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]], [64, 64, 20])
    """
    dims = dims_of(facts)
    orientation, why_orientation = usual_orientation(facts)
    facts = turned(facts, orientation)
    spacing, why_spacing = target_spacing(facts)
    same = spacing is not None and have_same_spacing(facts)
    resampled_to = None if same else spacing
    images = num_training or len(facts.shapes)
    intensity, why_intensity = choose_intensity(facts)
    matrices = BYTES_PER_ENTRY * num_annotators * num_classes**2
    fine = num_annotators > 1 and 2 * matrices <= BYTES_PER_VOXEL
    each = BYTES_PER_VOXEL + BYTES_PER_CHANNEL * num_heads * num_classes + matrices * fine
    network = _plan_network(facts, resampled_to, gpu, memory_gb, each)
    strides = network.settings["network_def#strides"]
    parts = [
        Plan(
            {
                "spatial_dims": dims,
                "in_channels": facts.num_channels,
                "orientation": orientation,
                "spacing": spacing,
                "spacing_tolerance": SAME_SPACING if same else 0.0,
                "intensity": intensity,
            },
            {
                "spatial_dims": f"the images have {dims} axes of more than one voxel",
                "orientation": why_orientation,
                "spacing": why_spacing,
                "intensity": why_intensity,
            },
        ),
        Plan({"ct_window": window(facts)} if intensity == "ct" else {}, {}),
        network,
        _plan_epochs(images, network.settings["batch_size"], 3 if num_annotators > 1 else 10),
    ]
    if num_annotators > 1:
        why = (
            f"matrices of {num_annotators} annotators and {num_classes} classes take {matrices} bytes a voxel, "
            f"{'at most' if fine else 'over'} half of the segmenter's {BYTES_PER_VOXEL}, so annotators look at "
            f"{'every voxel' if fine else 'averages over blocks of so many'}"
        )
        parts.append(_setting("annotator_def#reduction", [1] * dims if fine else block_size(strides, dims), why))
    if ram_gb is not None:
        kept = cached_images(facts, resampled_to, images, num_classes, num_annotators, ram_gb)
        parts.append(_setting("cache_num", *kept))
    return Plan(
        {key: value for part in parts for key, value in part.settings.items()},
        {key: why for part in parts for key, why in part.reasons.items()},
    )


def _setting(key: str, value: Any, why: str) -> Plan:
    return Plan({key: value}, {key: why})


def _plan_network(
    facts: Facts, spacing: Sequence[float] | None, gpu: bool, memory_gb: float, bytes_per_voxel: float
) -> Plan:
    """Patch, network and batch, for images that are resampled to a spacing or not."""
    shape, steps = usual_shape(facts, spacing)
    most_voxels = memory_gb * 1e9 / bytes_per_voxel
    voxels = min(_MOST_VOXELS[dims_of(facts), gpu], int(most_voxels / 2))
    sides = fitting_box(shape, steps, voxels)
    strides = choose_strides(sides, steps)
    patch = _rounded(sides, strides)
    most = most_voxels if gpu else 2 * voxels
    settings = {
        "patch_size": patch,
        "network_def#channels": [min((32 if gpu else 16) * 2**level, 256) for level in range(len(strides) + 1)],
        "network_def#strides": strides,
        "batch_size": int(np.clip(most / math.prod(patch), 2, 8)),
    }
    reasons = {
        "patch_size": f"the largest box, as near to a {_equal_sided(facts)} as the usual image {shape} allows, of at "
        f"most {voxels} voxels ({'GPU' if gpu else 'CPU'}, {memory_gb:g} GB), rounded to what the network divides by",
        "network_def#strides": "each axis is halved while it keeps four voxels and is not yet twice as coarse as the "
        f"finest; at most {_MAX_POOLINGS} times",
        "network_def#channels": "doubled at each halving, at most 256",
        "batch_size": f"as many patches as {'fit into memory' if gpu else f'have {most} voxels'}, from 2 to 8",
    }
    return Plan(settings, reasons)


def _plan_epochs(num_training: int, batch_size: int, annotator_part: int) -> Plan:
    """How long to train; an `annotator_part`-th of it follows for the annotators alone."""
    per_epoch = num_training * math.ceil(_PATCHES_PER_EPOCH / num_training)  # each image as often
    steps = per_epoch // batch_size  # what is left over is dropped
    epochs = int(np.clip(math.ceil(_STEPS / steps), 30, 200))
    why = (
        f"{epochs * steps} steps; {_STEPS} are meant, in 30 to 200 epochs of about {_PATCHES_PER_EPOCH} patches, from "
        f"each of {num_training} images as many; {epochs // annotator_part} more epochs are for the annotators alone"
    )
    return Plan({"patches_per_epoch": _PATCHES_PER_EPOCH, "max_epochs": epochs}, {"max_epochs": why})


def cached_images(
    facts: Facts,
    spacing: Sequence[float] | None,
    num_training: int,
    num_classes: int,
    num_annotators: int,
    ram_gb: float,
) -> tuple[int, str]:
    """How many images to train on, and as many of those to validate on, fit into half of the memory; and why.

    Resampled, a training image is kept in 32 bits with one byte a voxel for each annotator, and with the places of
    drawn voxels; one to validate on has its label too, and a channel that is shown. The largest images are counted
    first, for nothing is known of their order.

    Args:
        facts: about the images.
        spacing: in mm, that they are resampled to, or None.
        num_training: how many are trained on. Where that is all, they are validated on as well, and kept twice.
        num_classes: L, background included.
        num_annotators: whose drawings are kept apart.
        ram_gb: memory that is free.

    Example:
        >>> facts = Facts([(500, 500, 200)] * 50, [(1.0, 1.0, 1.0)] * 50, 1, "CT")
        >>> cached_images(facts, None, 40, 2, 1, ram_gb=16)[0], cached_images(facts, None, 40, 2, 1, ram_gb=64)[0]
        (11, 50)
    """
    voxels = np.sort(resampled_sides(facts, spacing)[0].prod(axis=1))[::-1]
    images, people = len(voxels), max(1, num_annotators)
    learned = voxels * (4 * facts.num_channels + people) + 8 * np.minimum(voxels, MOST_INDICES * (num_classes + 1))
    scored = voxels * (4 * (facts.num_channels + 1) + 1 + people)
    learned, scored = (np.append(0, np.cumsum(each) / 1e9) for each in (learned, scored))
    number = np.arange(images + 1)
    used = learned[np.minimum(number, num_training)] + scored[np.minimum(number, images - num_training or images)]
    kept = int(np.searchsorted(used, ram_gb / 2, side="right")) - 1
    half = f"at most half of the {ram_gb:.1f} GB of memory that are free"
    if kept == images:
        return kept, f"all images, resampled, take {used[kept]:.1f} GB, {half}"
    return kept, (
        f"so many of the images to train on, and of those to validate on, take {used[kept]:.1f} GB resampled, {half}; "
        f"all would take {used[-1]:.1f} GB. The others ARE READ ANEW for every patch, which is slow"
    )


def balance(drawn: Sequence[int]) -> tuple[float, str]:
    """How far classes are balanced (`medcoarse.losses.CoupledLoss`), and why.

    Args:
        drawn: voxels of each class in the drawings to train on, background first.

    Example:
        >>> balance([900, 40, 400])[0], balance([900, 39, 400])[0]
        (0.0, 0.5)
    """
    if len(drawn) == 2:
        return 0.0, "there is one structure, and none to balance it with"
    least, most = min(drawn[1:]), max(drawn[1:])
    if most <= _EVEN * least:
        return 0.0, f"of no structure was drawn over {_EVEN} times as much as of another ({least} and {most} voxels)"
    return 0.5, f"of one structure {most} voxels were drawn, of another {least}: rare ones count more than their voxels"


def mirrored_axes(class_names: Sequence[str], orientation: str | None = None) -> tuple[list[int], str]:
    """Along which axes images are mirrored for training, and why: left and right, or along the first axis where nobody
    knows which that is; none where names of classes tell sides.

    Args:
        class_names: background too.
        orientation: of the images, where it is known.

    Example:
        >>> mirrored_axes(["background", "kidney"], "PIR")[0], mirrored_axes(["background", "kidney, left"])[0]
        ([2], [])
    """
    if sided := sided_names(class_names):
        return [], f"images are not mirrored, for {sided[0]!r} is of one side; --flip_axes 0 mirrors the first axis"
    axis = lines_of(orientation).index(0) if orientation else 0
    line = "left and right" if orientation else "the first"
    return [axis], (
        f"every second patch is mirrored along axis {axis} ({line}), and so does not tell that side from the other; "
        "where that matters pass --flip_axes none"
    )


def sided_names(names: Sequence[str]) -> list[str]:
    """Names that say left or right: as a word, as the letter l or r before or behind it, or because another differs
    from it by l and r alone.

    Example:
        >>> sided_names(["Left kidney", "kidney_r", "LKidney", "linke Niere", "L3", "leftover", "lh.cortex"])
        ['Left kidney', 'kidney_r', 'LKidney', 'linke Niere', 'lh.cortex']
        >>> sided_names(["Hippocampus_L_ant", "Hippocampus_R_ant", "stem"])
        ['Hippocampus_L_ant', 'Hippocampus_R_ant']
    """
    return [name for name in names if _tells_side(name) or any(_mirror_each_other(name, other) for other in names)]


def _tells_side(name: str) -> bool:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)  # kidneyL, LKidney
    words = [word.casefold() for word in re.findall(r"[^\W_]+", apart)]
    return not set(_SIDES.split()).isdisjoint(words) or (
        len(words) > 1 and not {"l", "r"}.isdisjoint((words[0], words[-1]))
    )


def _mirror_each_other(one: str, other: str) -> bool:
    """Lkidney and Rkidney, not glass and grass: they differ by one l and r at an end of a word."""
    if len(one) != len(other):
        return False
    apart = [i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]
    if len(apart) != 1 or {one[apart[0]].casefold(), other[apart[0]].casefold()} != {"l", "r"}:
        return False
    (i,) = apart
    return not (one[i - 1 : i].isalpha() and one[i + 1 : i + 2].isalpha())


def factors(strides: Sequence[int | Sequence[int]], spatial_dims: int) -> list[int]:
    """By how much a network with these strides makes an image smaller, for each axis.

    Example:
        >>> factors([[2, 2, 1], 2], 3)
        [4, 4, 2]
    """
    steps = [ensure_tuple_rep(stride, spatial_dims) for stride in strides]
    return [math.prod(step[axis] for step in steps) for axis in range(spatial_dims)]


def block_size(strides: Sequence[int | Sequence[int]], spatial_dims: int) -> list[int]:
    """Blocks of voxels that the annotators look at: what the segmenter's first two steps put together.

    Example:
        >>> block_size([[2, 2, 1], [2, 2, 2], [2, 2, 2]], 3)
        [4, 4, 2]
    """
    return factors(strides[:2], spatial_dims)


def _equal_sided(facts: Facts) -> str:
    return ("square" if dims_of(facts) == 2 else "cube") + (" in mm" if facts.spacings is not None else "")


def fitting_box(shape: Sequence[int], spacing: Sequence[float], most_voxels: int) -> list[int]:
    """The largest box of at most so many voxels within a shape, as near to a cube in mm as the shape allows.

    Example:
        >>> fitting_box([100, 100, 10], [1.0, 1.0, 5.0], 16000)
        [43, 43, 8]
        >>> fitting_box([100, 100], [1.0, 1.0], 10**6)
        [100, 100]
    """
    sides, steps = np.asarray(shape, dtype=np.float64), np.asarray(spacing, dtype=np.float64)
    low, high = 0.0, float((sides * steps).max())
    if sides.prod() <= most_voxels:
        return [int(side) for side in sides]
    for _ in range(60):  # halving the interval of the cube's side
        middle = (low + high) / 2
        fits = np.minimum(sides, np.maximum(middle / steps, 1)).prod() <= most_voxels
        low, high = (middle, high) if fits else (low, middle)
    return [int(side) for side in np.floor(np.minimum(sides, np.maximum(low / steps, 1)) + 1e-6)]


def choose_strides(shape: Sequence[int], spacing: Sequence[float]) -> list[list[int]]:
    """By how much each level of the network halves each axis.

    Example:
        >>> choose_strides([32, 32, 8], [1.0, 1.0, 3.0])
        [[2, 2, 1], [2, 2, 2], [2, 2, 1]]
    """
    sides, steps = np.asarray(shape, dtype=np.float64), np.asarray(spacing, dtype=np.float64)
    strides: list[list[int]] = []
    while len(strides) < _MAX_POOLINGS:
        large = sides >= 2 * _SMALLEST_SIDE
        if not large.any():
            break
        halved = large & (steps < 2 * steps[large].min())
        strides.append([2 if halve else 1 for halve in halved])
        factor = np.where(halved, 2, 1)
        sides, steps = sides / factor, steps * factor
    return strides or [[1] * len(sides)]


def _rounded(sides: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Down to a multiple of what the segmenter divides by, and of what the annotators' network does, which halves the
    blocks of the first two levels once more; at least one of it.
    """
    dims = len(sides)
    divisors = [
        math.lcm(whole, 2 * block)
        for whole, block in zip(factors(strides, dims), block_size(strides, dims), strict=True)
    ]
    return [max(side // divisor, 1) * divisor for side, divisor in zip(sides, divisors, strict=True)]


def choose_intensity(facts: Facts) -> tuple[str, str]:
    """How intensities are brought to one scale, and why.

    Example:
        >>> choose_intensity(Facts([(8, 8, 8)], [(1, 1, 1)], 1, "", -1024.0, 3071.0, 900.0))[0]
        'ct'
    """
    if facts.modality == "CT" or (not facts.modality and facts.num_channels == 1 and facts.low <= -900):
        known = "DICOM says so" if facts.modality == "CT" else f"the lowest value is {facts.low:g}"
        return "ct", f"Hounsfield units of CT ({known}): a window of what is drawn"
    if facts.modality == "picture":
        return "unit", "pictures: from the lowest to the highest value of each"
    if facts.high - facts.low > 5 * (facts.usual - facts.low):
        return "percentile", f"a few voxels are far brighter ({facts.high:g}) than 99% are (below {facts.usual:g})"
    return "zscore", "no fixed unit, as in MRI: each image by its mean and standard deviation"


def window(facts: Facts) -> list[float]:
    """Hounsfield units that are told apart: those of what is drawn, at least 100 of them, else soft tissue.

    Example:
        >>> window(Facts([(8, 8, 8)], None, 1, drawn_range=(30.0, 60.0)))
        [-5.0, 95.0]
    """
    low, high = facts.drawn_range or (-160.0, 240.0)
    missing = max(0.0, 100.0 - (high - low)) / 2
    return [round(low - missing, 1), round(high + missing, 1)]
