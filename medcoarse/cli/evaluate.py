"""Compare segmentations with masks.

Files are paired by name (the same, or one goes on after a _, -, . or blank) and must lie on one grid. Where masks
have 0 and 255 and no other value, in whatever format, they are binary and 255 is class 1; otherwise 255 is not scored.
The same goes for the segmentations.

Segments (3D Slicer's, DICOM SEG, ...) are matched by name. They keep their numbers if these mean the same in all files;
otherwise names are numbered in their order, which is said. A label map is read by the names in labels.txt, where
PREDICTIONS has it (`medcoarse predict` writes it), or by --class_names. Without them it is read by the numbers of the
segments beside it, which is said, or refused if these do not mean the same in all files.

Outlines (RTSTRUCT, QuPath's GeoJSON) do not say on which voxels they lie: pass their images with --images. Those in
pictures are otherwise filled on the label map that they are compared with, which has to be as large.

Two files of segments are compared within the smallest box that holds both, as nobody knows how large the image is:
there specificity, pixel accuracy and all scores of background depend on how tightly the files were cut; Dice, IoU,
sensitivity and precision of structures do not.

Scores go to the screen, and to scores.json and scores.csv: Dice, IoU, sensitivity, specificity and precision of every
class and image; their mean over images, which leaves out images where a score is undefined; and of the voxels of all
images together. Means over classes leave the background out, which is easily right.

With --surface also how far the surfaces of every structure lie apart on each image, in mm, or in pixels of pictures:
the 95th percentile (HD95) and the mean (ASSD), both ways. They are undefined where the segmentation or the mask lacks
the structure, so their means say nothing of what was missed: sensitivity does.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcoarse.cli.files import NAMES_FILE, by_stem, drawn_stem, find_drawings, listed, match
from medcoarse.cli.image_grids import find_grids, grids_beside, named_by_series
from medcoarse.cli.label_maps import (
    MaskReader,
    Shown,
    add_segments,
    binary_of,
    common_grid,
    look,
    name_classes,
    on_grid,
    only_named,
    require_order,
    with_all_named,
)
from medcoarse.cli.main import CommandError
from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError
from medcoarse.files import write_atomically, write_json
from medcoarse.readers.drawing import Grid
from medcoarse.readers.itksnap import read_label_descriptions

EXAMPLES = """examples:
  medcoarse evaluate segmented/ masks/
  medcoarse evaluate segmented/ masks/ --class_names background liver tumour --output_dir scores
  medcoarse evaluate segmented/ masks/ --surface
masks in DICOM RTSTRUCT, two of their regions, one in the other:
  medcoarse evaluate segmented/ masks/ --images series/ --class_names background liver tumour --only_named --nested
"""
_SHOWN = ("dice", "iou", "sensitivity", "specificity", "precision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("predictions", metavar="PREDICTIONS", help="folder of segmentations")
    add("masks", metavar="MASKS", help="folder of masks, one for each segmentation")
    add("--output_dir", help="where scores.json and scores.csv go; by default PREDICTIONS")
    add("--class_names", nargs="+", metavar="NAME", help="background first; segments are recognized by them")
    add_segments(add)
    add("--surface", action="store_true", help="how far surfaces lie apart, too: HD95 and ASSD")
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
    called = named_by_series([*predictions, *masks], options.images)
    pairs, unmasked, unsaid = match(predictions, masks, called)
    alone = [f"{len(unmasked)} segmentations without a mask: {listed(unmasked)}"] if unmasked else []
    alone += [f"{len(unsaid)} masks without a segmentation: {listed(unsaid)}"] if unsaid else []
    if not pairs:
        raise CommandError("no segmentation has a mask of its name, or of one that goes on after a _")
    if alone and not options.partial:
        raise CommandError(f"{'; '.join(alone)}; pass --partial to leave them out")
    grids = _grids(pairs, options.images, called)
    shown = look([*pairs, *pairs.values()], grids)
    binary, lacking = binary_of([pairs.keys(), pairs.values()], shown), list[str]()
    described, unread = (
        ([], "") if options.class_names else _described(options.predictions, [shown[one] for one in pairs])
    )
    if options.only_named:
        groups = {"segmentations": list(pairs), "masks": list(pairs.values())}
        shown, lacking = only_named(shown, options.class_names or described, groups)
    names = with_all_named(described, shown, binary) if described else options.class_names
    classes = name_classes(shown, binary, names)
    require_order(options.nested, bool(names) and (not described or names == described), classes.names)
    read = MaskReader(classes.names, binary, options.nested, options.only_named, grids)
    table = scores(pairs, read, options.include_background, options.surface)
    output = Path(options.output_dir or options.predictions)
    write_json(output / "scores.json", table)
    write_atomically(output / "scores.csv", lambda file: file.write(_csv(table).encode()))
    said = [
        *(f"left out: {line}" for line in alone),
        *lacking,
        *([unread] if unread and not options.class_names else []),
        *([classes.said] if classes.said else []),
        *_of_boxes(pairs, {path for path, one in shown.items() if one.segments} - grids.keys()),
    ]
    print("\n".join([*said, _page(table, options.include_background)]))
    print(f"written to {output / 'scores.json'} and scores.csv")
    return 0


def _grids(pairs: Mapping[Path, Path], images: str | None, called: Mapping[Path, str]) -> dict[Path, Grid]:
    """What outlines are drawn on: their images or, where nobody names these, the pictures they are compared with."""
    both = [*pairs.items(), *((mask, prediction) for prediction, mask in pairs.items())]
    if images:
        stems = {file: called.get(file) or drawn_stem(file) for file, _ in both}
        return find_grids({file: (stems[file], stems[partner]) for file, partner in both}, images)
    return grids_beside(dict(both))


def _described(folder: str, shown: Collection[Shown]) -> tuple[list[str], str]:
    """The names of classes, background first, that `medcoarse predict` left beside label maps; and why a file of that
    name is not used. Segments bring theirs.
    """
    file = Path(folder) / NAMES_FILE
    if not file.is_file() or all(one.segments for one in shown):
        return [], ""
    try:
        found = read_label_descriptions(file)
    except DataError as error:
        return [], f"not used: {error}"
    highest = max(found, default=0)
    if highest >= UNLABELED:
        return [], f"not used: {file}: describes value {highest}, at most 254 classes are compared"
    return [found.get(number, f"class {number}") for number in range(highest + 1)], ""


def scores(
    pairs: Mapping[Path, Path], read: MaskReader, include_background: bool = False, surface: bool = False
) -> dict[str, Any]:
    """The table of `medcoarse.scores.score_table`, of segmentations and their masks, read one after the other.

    Args:
        pairs: segmentation -> mask.
        read: how both are read.
        include_background: whether class 0 counts in the means over classes.
        surface: whether to add ``hd95_mm_...`` and ``assd_mm_...``, or ``..._pixels_...`` of pictures.

    Raises:
        CommandError: files that cannot be read, do not lie on one grid, or a segmentation with unlabeled voxels.
    """
    import torch

    from medcoarse.metrics import confusion_counts
    from medcoarse.scores import score_table

    class_names, names = read.class_names, {path: name for name, path in by_stem(list(pairs)).items()}
    counts, apart = [], list[dict[str, float | None]]()
    for prediction, mask in pairs.items():
        said, true, grid = _both(prediction, mask, read)
        if ((said == UNLABELED) & (true != UNLABELED)).any():
            raise CommandError(
                f"{prediction}: has unlabeled voxels (255), which cannot be scored; it is no segmentation"
            )
        said = np.where(true == UNLABELED, 0, said)
        tensors = [torch.from_numpy(values)[None, None] for values in (said, true)]
        counts.append(confusion_counts(tensors[0], tensors[1], len(class_names))[0])
        apart += [_distances(said, true, grid, class_names)] if surface else []
    table = score_table(torch.stack(counts), class_names, [names[path] for path in pairs], include_background)
    return _with_distances(table, apart) if surface else table


def _distances(said: Any, true: Any, grid: Grid, class_names: Sequence[str]) -> dict[str, float | None]:
    """Between the surfaces of each class, where both have it."""
    import torch

    from medcoarse.surfaces import surface_distances

    flat = said.shape[2:] == (1,)  # a picture in a volume of one slice, all of which would be surface
    found_map, true_map = (torch.from_numpy(values[..., 0] if flat else values) for values in (said, true))
    spacing = np.ones(3) if grid.affine is None else np.linalg.norm(grid.affine[:3, :3], axis=0)
    steps = spacing[: found_map.ndim].tolist()
    unit = "pixels" if grid.affine is None else "mm"
    found = dict[str, float | None]()
    for label, name in list(enumerate(class_names))[1:]:
        both = bool((found_map == label).any() and (true_map == label).any())
        apart = surface_distances(found_map, true_map, label, steps) if both else {}
        found |= {f"hd95_{unit}_{name}": apart.get("surface95_mm"), f"assd_{unit}_{name}": apart.get("surface_mm")}
    return found


def _with_distances(table: dict[str, Any], apart: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """The table, with distances and their means over images; those of all voxels together are none."""
    keys = list(dict.fromkeys(key for row in apart for key in row))
    for row, distances in zip(table["images"], apart, strict=True):
        row |= {key: distances.get(key) for key in keys}
    for key in keys:
        known = [row[key] for row in table["images"] if row[key] is not None]
        table["image"][key] = float(np.mean(known)) if known else None
        table["dataset"][key] = None
    return table


def _both(prediction: Path, mask: Path, read: MaskReader) -> tuple[Any, Any, Grid]:
    """Segmentation and mask, and the grid on which they lie."""
    said, own, own_segments = read(prediction)
    true, grid, segments = read(mask)
    if segments and not own_segments:  # segments are cut to a box: the whole grid is the other's
        return said, on_grid(true, grid, own, mask, True), own
    if segments and own_segments:
        whole = common_grid({mask: grid, prediction: own})
        return on_grid(said, own, whole, prediction, True), on_grid(true, grid, whole, mask, True), whole
    return on_grid(said, own, grid, prediction, own_segments), true, grid


def _of_boxes(pairs: Mapping[Path, Path], cut: Collection[Path]) -> list[str]:
    """What cannot be compared of files of segments, that do not say how large the image is."""
    boxes = [path for path, mask in pairs.items() if path in cut and mask in cut]
    if not boxes:
        return []
    return [
        f"{len(boxes)} of {len(pairs)} pairs are segments in both files, which may be cut to boxes: specificity, pixel "
        "accuracy and all scores of background depend on how tightly"
    ]


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
    lengths = [f"{kind}_{unit}" for unit in ("mm", "pixels") for kind in ("hd95", "assd")]
    shown = [*_SHOWN, *(kind for kind in lengths if any(f"{kind}_{name}" in row for name in names))]
    wide = max(len(name) for name in [*names, "mean"])
    lines = [f"{table['num_images']} images, means over them", " ".join([" " * wide, *(f"{s:>11}" for s in shown)])]
    for name in names:
        lines.append(" ".join([f"{name:<{wide}}", *(_number(row.get(f"{score}_{name}")) for score in shown)]))
    over = "all classes" if include_background else f"the classes but {names[0]}"
    dice, iou = (_number(row[key]).strip() for key in ("mean_dice", "mean_iou"))
    lines.append(f"mean over {over}: Dice {dice}, IoU {iou}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-' if value is None or math.isnan(value) else format(value, '.4f'):>11}"
