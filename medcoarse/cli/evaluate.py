"""Compare segmentations with masks.

Files are paired by name and must lie on one grid. 255 in a mask is not scored. Scores go to the screen, and to
scores.json and scores.csv: Dice, IoU, sensitivity, specificity and precision of every class and image; their mean over
images, which leaves out images where a score is undefined; and of the voxels of all images together.
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

from medcoarse.cli.files import find_drawings, pair
from medcoarse.cli.label_maps import on_grid, read_labels
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
    add("masks", metavar="MASKS", help="folder of masks; those without a segmentation are an error, unless --partial")
    add("--output_dir", help="where scores.json and scores.csv go; by default PREDICTIONS")
    add("--class_names", nargs="+", metavar="NAME", help="background first; segments are recognized by them")
    add("--partial", action="store_true", help="score only the images that have both")


def run(options: argparse.Namespace) -> int:
    """Score all pairs."""
    predictions = find_drawings(options.predictions)
    masks = find_drawings(options.masks)
    if options.partial:
        stems = {stem_of(path) for path in masks}
        predictions = [path for path in predictions if stem_of(path) in stems]
    pairs = pair(predictions, masks, "mask") if not options.partial else pair(predictions, masks, "mask", False)
    if not pairs:
        raise CommandError("no segmentation has a mask of the same name")
    maps = {prediction: _both(prediction, mask, options.class_names) for prediction, mask in pairs.items()}
    table = scores(maps, options.class_names)
    output = Path(options.output_dir or options.predictions)
    write_json(output / "scores.json", table)
    write_atomically(output / "scores.csv", lambda file: file.write(_csv(table).encode()))
    print(_page(table))
    print(f"written to {output / 'scores.json'} and scores.csv")
    return 0


def scores(maps: Mapping[Path, tuple[Any, Any]], class_names: Sequence[str] | None) -> dict[str, Any]:
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
    return score_table(torch.stack(counts), names, [stem_of(path) for path in maps])


def _both(prediction: Path, mask: Path, class_names: Sequence[str] | None) -> tuple[Any, Any]:
    true, grid, segments = read_labels(mask, class_names)
    said, own, own_segments = read_labels(prediction, class_names)
    if segments and not own_segments:  # segments are cut to a box: the whole grid is the other's
        return said, on_grid(true, grid, own, mask, True)
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


def _page(table: Mapping[str, Any]) -> str:
    """Class by score, means over the images."""
    row = table["image"]
    names = [key.removeprefix("dice_") for key in row if key.startswith("dice_")]
    wide = max(len(name) for name in [*names, "mean"])
    lines = [f"{table['num_images']} images, means over them", " ".join([" " * wide, *(f"{s:>11}" for s in _SHOWN)])]
    for name in names:
        lines.append(" ".join([f"{name:<{wide}}", *(_number(row.get(f"{score}_{name}")) for score in _SHOWN)]))
    lines.append(f"mean Dice {_number(row['mean_dice']).strip()}, mean IoU {_number(row['mean_iou']).strip()}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-' if value is None or math.isnan(value) else format(value, '.4f'):>11}"
