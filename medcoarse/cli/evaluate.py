"""Compare segmentations with masks.

Files are paired by name (the same, or one goes on after a _, -, . or blank) and must lie on one grid. Where masks
have 0 and 255 and no other value, in whatever format, they are binary and 255 is class 1; otherwise 255 is not scored.
The same goes for the segmentations.

Scores go to the screen, and to scores.json and scores.csv: Dice, IoU, sensitivity, specificity and precision of every
class and image; their mean over images, which leaves out images where a score is undefined; and of the voxels of all
images together. Means over classes leave the background out, which is easily right.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcoarse.cli.files import find_drawings, listed, match
from medcoarse.cli.label_maps import are_binary, common_grid, on_grid, read_labels
from medcoarse.cli.main import CommandError
from medcoarse.files import write_atomically, write_json
from medcoarse.writers.formats import stem_of

EXAMPLES = """examples:
  medcoarse evaluate segmented/ masks/
  medcoarse evaluate segmented/ masks/ --class_names background liver tumour --output_dir scores
"""
_SHOWN = ("dice", "iou", "sensitivity", "specificity", "precision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("predictions", metavar="PREDICTIONS", help="folder of segmentations")
    add("masks", metavar="MASKS", help="folder of masks, one for each segmentation")
    add("--output_dir", help="where scores.json and scores.csv go; by default PREDICTIONS")
    add("--class_names", nargs="+", metavar="NAME", help="background first; segments are recognized by them")
    add("--include_background", action="store_true", help="count class 0 in the means over classes")
    add(
        "--partial",
        action="store_true",
        help="score the images that have both, and list what was left out; without it that is an error",
    )


def run(options: argparse.Namespace) -> int:
    """Score all pairs."""
    predictions = find_drawings(options.predictions)
    masks = find_drawings(options.masks)
    pairs, unmasked, unsaid = match(predictions, masks)
    alone = [f"{len(unmasked)} segmentations without a mask: {listed(unmasked)}"] if unmasked else []
    alone += [f"{len(unsaid)} masks without a segmentation: {listed(unsaid)}"] if unsaid else []
    if not pairs:
        raise CommandError("no segmentation has a mask of its name, or of one that goes on after a _")
    if alone and not options.partial:
        raise CommandError(f"{'; '.join(alone)}; pass --partial to leave them out")
    binary = are_binary(list(pairs)), are_binary(list(pairs.values()))
    maps = {prediction: _both(prediction, mask, options.class_names, binary) for prediction, mask in pairs.items()}
    table = scores(maps, options.class_names, options.include_background)
    output = Path(options.output_dir or options.predictions)
    write_json(output / "scores.json", table)
    write_atomically(output / "scores.csv", lambda file: file.write(_csv(table).encode()))
    print("\n".join([*(f"left out: {line}" for line in alone), _page(table, options.include_background)]))
    print(f"written to {output / 'scores.json'} and scores.csv")
    return 0


def scores(
    maps: Mapping[Path, tuple[Any, Any]], class_names: Sequence[str] | None, include_background: bool = False
) -> dict[str, Any]:
    """The table of `medcoarse.scores.score_table`, of segmentation and mask by file."""
    import torch

    from medcoarse.metrics import confusion_counts
    from medcoarse.scores import score_table

    highest = max(int(values[values != 255].max(initial=0)) for both in maps.values() for values in both)
    names = list(class_names) if class_names else ["background", *(f"class {k}" for k in range(1, max(highest, 1) + 1))]
    if highest >= len(names):
        raise CommandError(
            f"a file holds class {highest}, --class_names has {len(names)} names; name all, background too"
        )
    counts = []
    for path, (said, true) in maps.items():
        if ((said == 255) & (true != 255)).any():
            raise CommandError(f"{path}: has unlabeled voxels (255), which cannot be scored; it is no segmentation")
        said = np.where(true == 255, 0, said)
        tensors = [torch.from_numpy(values)[None, None] for values in (said, true)]
        counts.append(confusion_counts(tensors[0], tensors[1], len(names))[0])
    return score_table(torch.stack(counts), names, [stem_of(path) for path in maps], include_background)


def _both(
    prediction: Path, mask: Path, class_names: Sequence[str] | None, binary: tuple[bool, bool]
) -> tuple[Any, Any]:
    said, own, own_segments = read_labels(prediction, class_names, binary[0])
    true, grid, segments = read_labels(mask, class_names, binary[1])
    if segments and not own_segments:  # segments are cut to a box: the whole grid is the other's
        return said, on_grid(true, grid, own, mask, True)
    if segments and own_segments:
        whole = common_grid(grid, own)
        return on_grid(said, own, whole, prediction, True), on_grid(true, grid, whole, mask, True)
    return on_grid(said, own, grid, prediction, own_segments), true


def _csv(table: Mapping[str, Any]) -> str:
    buffer = io.StringIO()
    keys = ["name", *table["dataset"]]
    writer = csv.DictWriter(buffer, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table["images"])
    writer.writerow({"name": "mean over images", **table["image"]})
    writer.writerow({"name": "all voxels", **table["dataset"]})
    return buffer.getvalue()


def _page(table: Mapping[str, Any], include_background: bool) -> str:
    """Class by score, means over the images."""
    row = table["image"]
    names = [key.removeprefix("dice_") for key in row if key.startswith("dice_")]
    wide = max(len(name) for name in [*names, "mean"])
    lines = [f"{table['num_images']} images, means over them", " ".join([" " * wide, *(f"{s:>11}" for s in _SHOWN)])]
    for name in names:
        lines.append(" ".join([f"{name:<{wide}}", *(_number(row.get(f"{score}_{name}")) for score in _SHOWN)]))
    over = "all classes" if include_background else f"the classes but {names[0]}"
    dice, iou = (_number(row[key]).strip() for key in ("mean_dice", "mean_iou"))
    lines.append(f"mean over {over}: Dice {dice}, IoU {iou}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-' if value is None or math.isnan(value) else format(value, '.4f'):>11}"
