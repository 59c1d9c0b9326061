"""Draw rough annotations of masks: what an annotator of a given care would have drawn.

For each mask a label map of the same geometry, as `medcoarse train` reads it: what all profiles together say, where
they do not contradict each other. Value k is class k, 255 is nothing drawn. With --annotators a folder for each
profile, as `medcoarse train --annotators` reads them. With --separate a label map for each mask and profile: in a
negative profile k is "not class k". parameters.json has what was drawn with, to replay every drawing, and what the
classes are called.

Segments (3D Slicer's, DICOM SEG, ...) are matched by name. They keep their numbers if these mean the same in all files;
otherwise names are numbered in their order, which is said.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from medcoarse.cli.files import by_stem, find_drawings, new_folder
from medcoarse.cli.image_grids import find_grids, named_by_series
from medcoarse.cli.label_maps import (
    MaskReader,
    add_segments,
    binary_of,
    look,
    name_classes,
    only_named,
    require_order,
)
from medcoarse.cli.main import CommandError
from medcoarse.files import write_json
from medcoarse.readers.drawing import Grid
from medcoarse.writers.formats import suffix_of, write_segmentation
from medcoarse.writers.segmentation import make_segmentation

EXAMPLES = """examples:
  medcoarse simulate masks/ drawings/
  medcoarse train images/ drawings/ --output_dir run --mapping unlabeled_255
others who draw:
  medcoarse simulate masks/ strokes/ --profile stroke_positive stroke_negative --seed 1
several people, each with errors of their own, and what each of them gets wrong:
  medcoarse simulate masks/ annotators/ --profile dhe_good dhe_over dhe_under --annotators
  medcoarse train images/ annotators/ --output_dir people --annotators --mapping dense
  medcoarse report people
`medcoarse simulate --list` names the profiles; examples/annotations.md shows them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add(
        "masks",
        metavar="MASKS",
        nargs="?",
        help="folder of masks: 0 background, 1, 2, ... classes, 255 unlabeled; or 0 and 255 alone: 255 is class 1",
    )
    add("output_dir", metavar="OUT", nargs="?", help="where the drawings go")
    add("--profile", nargs="+", default=["coarse_positive", "coarse_negative"], help="who draws (default: %(default)s)")
    add(
        "--class_names",
        nargs="+",
        metavar="NAME",
        help="background first; segments are recognized by them; after the folders",
    )
    add_segments(add)
    add("--seed", type=int, default=0, help="the same seed gives the same drawings (default 0)")
    apart = parser.add_mutually_exclusive_group().add_argument
    apart(
        "--annotators",
        action="store_true",
        help="a folder for each profile, all of them positive: for `medcoarse train --annotators`",
    )
    apart(
        "--separate",
        action="store_true",
        help="a drawing for each mask and profile, which is not for `medcoarse train`",
    )
    add("--list", action="store_true", help="name the profiles")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")


def run(options: argparse.Namespace) -> int:
    """Draw mask after mask."""
    from medcoarse.profiles import PROFILES, as_profile

    if options.list:
        print("\n".join(f"{name} ({profile.kind})" for name, profile in PROFILES.items()))
        return 0
    if not options.masks or not options.output_dir:
        raise CommandError("pass a folder of masks and one for the drawings, or --list")
    profiles = {name: as_profile(name) for name in options.profile}
    negative = [name for name, profile in profiles.items() if profile.kind == "negative"]
    if options.annotators and negative:
        raise CommandError(
            f"--annotators: {', '.join(negative)} draws what is not the structure, in the same values; name positive "
            "profiles alone (`medcoarse simulate --list`)"
        )
    masks = find_drawings(options.masks)
    found = by_stem(masks, named_by_series(masks, options.images))
    stems = {mask: stem for stem, mask in found.items()}  # what drawings are called
    grids = find_grids({mask: [stem] for mask, stem in stems.items()}, options.images)
    shown = look(masks, grids)
    if options.only_named:
        shown, lacking = only_named(shown, options.class_names, {"masks": masks})
        print("\n".join(lacking))
    binary = binary_of([masks], shown)
    classes = name_classes(shown, binary, options.class_names)
    require_order(options.nested, bool(options.class_names), classes.names)
    read = MaskReader(classes.names, binary, options.nested, options.only_named, grids)
    output = new_folder(options.output_dir, options.overwrite)
    if classes.said:
        print(classes.said)
    record: dict[str, Any] = {"seed": options.seed, "profiles": list(profiles), "class_names": classes.names}
    record["masks"] = {}
    places = {"{name}/{stem}": options.annotators, "{stem}_{name}": options.separate}
    place = next((place for place, chosen in places.items() if chosen), None)
    for number, mask in enumerate(masks, 1):
        record["masks"][Path(stems[mask]).with_name(mask.name).as_posix()] = _draw(
            mask, stems[mask], read, profiles, options.seed, output, place
        )
        print(f"[{number}/{len(masks)}] {mask}", flush=True)
    write_json(output / "parameters.json", record)
    print(f"{len(masks) * (len(profiles) if place else 1)} drawings and parameters.json in {output}")
    return 0


def _draw(
    mask: Path, stem: str, read: MaskReader, profiles: dict[str, Any], seed: int, output: Path, place: str | None
) -> Any:
    """Write one drawing of all profiles, or each to its place; what was drawn with."""
    import torch
    from monai.data.meta_tensor import MetaTensor

    from medcoarse.transforms.dictionary import MergeStrokesd, SimulateCoarsed

    names = read.class_names
    labels, grid, _ = read(mask)
    highest = int(labels[labels != 255].max(initial=0))
    num_classes = max(highest + 1, 2)
    affine = None if grid.affine is None else torch.from_numpy(grid.affine)
    label = MetaTensor(torch.from_numpy(labels)[None], affine=affine)
    kinds = {kind: [name for name, p in profiles.items() if p.kind == kind] for kind in ("positive", "negative")}
    target = 1 if num_classes == 2 else None
    draw = SimulateCoarsed("label", kinds["positive"], kinds["negative"], target, num_classes, seed=seed)
    item = draw({"label": label})
    suffix = _suffix(mask, grid)
    if place is None:
        together = MergeStrokesd(merged_key="merged", num_classes=num_classes, allow_missing_keys=True)(item)["merged"]
        found = make_segmentation(together[0].numpy(), grid.affine, names)
        path = output / f"{stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_segmentation(path, found)
        return json.loads(item["coarse_parameters"])
    for kind, some in kinds.items():
        for index, who in enumerate(some):
            values = item[kind][index].numpy()
            path = output / (place.format(name=who, stem=stem) + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_segmentation(path, make_segmentation(values, grid.affine, names))
    return json.loads(item["coarse_parameters"])


def _suffix(mask: Path, grid: Grid) -> str:
    """The format of the mask, where that holds 255 and the mask's geometry."""
    known = mask.name.lower().endswith((".nii", ".nii.gz", ".nrrd", ".png"))
    suffix = suffix_of(mask) if known else ".png" if grid.affine is None else ".nii.gz"
    return ".nrrd" if suffix == ".seg.nrrd" else suffix
