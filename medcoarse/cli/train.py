"""Learn to segment from a folder of images and a folder of rough drawings of them.

Nothing has to be configured. Images and drawings are paired by name, inspected, and split into training and validation;
spacing, patch size, network, batch size and epochs are planned from them by stated rules. OUT becomes a whole MONAI
bundle: configs/plan.json says what was chosen and why, models/model.pt are the weights of the last epoch (without
masks there is nothing to choose a better one by), output/ has scores, pictures and curves.

The same command goes on where it stopped.

Background has to be drawn too, somewhere, or nothing tells where a structure ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from medcoarse.cli.bundle import change_settings, config_of, require_text, run_bundle
from medcoarse.cli.channels import files_of
from medcoarse.cli.files import holds_structures_alone, listed
from medcoarse.cli.main import CommandError
from medcoarse.cli.plan import VALIDATION, paired, share, without_warmup, write_plan

EXAMPLES = """examples:
  drawn in ITK-SNAP; label 3 was used for background, 1 and 2 are structures, 0 is nothing drawn:
    medcoarse train images/ drawings/ --output_dir run --background 3 --class_names liver tumour
  drawn in 3D Slicer, segments "vessel" and "not vessel" (or "background"), which is --mapping slicer:
    medcoarse train images/ drawings/ --output_dir run
  scribbles of MONAI Label:
    medcoarse train images/ drawings/ --output_dir run --mapping monailabel_scribbles
  label maps with background 0 and 255 where nothing is drawn:
    medcoarse train images/ drawings/ --output_dir run --mapping unlabeled_255
  the same, and a line of background around what is to be segmented closes it in:
    medcoarse train images/ drawings/ --output_dir run --mapping unlabeled_255 --loops
  a few strokes of background here and there, and a stroke on every structure of an image:
    medcoarse train images/ drawings/ --output_dir run --background 3 --spread_background
  folders drawings/Ada and drawings/Max, who drew some of the images each and err in ways of their own:
    medcoarse train images/ drawings/ --output_dir run --annotators --background 3
    medcoarse report run                                              what each of them gets wrong
  masks of some images, drawings of the others:
    medcoarse train images/ drawings/ --output_dir run --background 3 --labels masks/ --learn_labels
  anything else:
    medcoarse train images/ drawings/ --output_dir run --mapping \\
        '{"0": null, "1": [1, "positive"], "2": [1, "negative"]}'
then:
    medcoarse predict run new_images/ --output_dir segmented

names: case1.nii.gz and case1.nii.gz, case1_drawn.nrrd, case1.seg.nrrd, ...; a DICOM series is called by its folder,
and what is drawn in DICOM may have any name, if it says on which series.
Where case1_0000.nii.gz, case1_0001.nii.gz, ... are the channels of one image, its drawing is case1.nii.gz or goes on
from that: case1_drawn.nii.gz.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("images", metavar="IMAGES", help="folder of images: NIfTI, NRRD, MetaImage (with ITK), pictures, DICOM series")
    add("drawings", metavar="DRAWINGS", help="folder of drawings, one for each image")
    add("--output_dir", required=True, metavar="OUT", help="the bundle that is made")
    add("--mapping", help="what values mean: itksnap, unlabeled_255, dense, monailabel_scribbles, slicer, or JSON")
    add("--background", metavar="VALUE", help="value or name that background was drawn with")
    add(
        "--class_names",
        nargs="+",
        metavar="NAME",
        help="of the structures, in the order of their values; after the folders",
    )
    add(
        "--only_named",
        action="store_true",
        help="leave out segments that are none of --class_names, nor background, as the body and the couch of an "
        "RTSTRUCT, in drawings and masks",
    )
    add(
        "--nested",
        action="store_true",
        help="segments lie in one another, as a tumour in a liver: the class that comes later in --class_names covers "
        "the earlier one, in drawings and masks; without it nothing is learned where segments overlap",
    )
    add(
        "--loops",
        action="store_true",
        help="a closed line of background says that all beyond it, on that slice (of the third axis), is too; "
        "background alone, on a slice past the last of these lines, says so of that slice and all beyond",
    )
    add(
        "--spread_background",
        type=float,
        nargs="?",
        const=True,  # as planned
        metavar="RATIO",
        help="every structure in an image got a stroke, so what nobody drew is background where it is at most RATIO "
        "times as far from drawn background as from any of them; without a number, after the folders, as far as the "
        "strokes allow",
    )
    add(
        "--annotators",
        action="store_true",
        help="every folder in DRAWINGS is of another person, called like it: their drawings stay separate",
    )
    add("--partial", action="store_true", help="leave images out that nobody has drawn yet, and masks of them")
    add(
        "--resample",
        action="store_true",
        help="bring drawings and masks on another grid to that of their image, by the nearest voxel",
    )
    add(
        "--labels",
        metavar="FOLDER",
        help="dense masks of some images, for scores: 0, 1, ..., 255 for unknown; 0 and 255 alone: 255 is class 1; or "
        "segments called as the classes",
    )
    add(
        "--learn_labels",
        action="store_true",
        help="learn from these masks too, of images to train on; an image that has one needs no drawing",
    )
    add(
        "--validation",
        type=float,
        metavar="SHARE",
        help=f"of the images, to validate on, first of those with a mask of --labels (default {VALIDATION}, of three "
        "images or patients and more)",
    )
    add(
        "--patient",
        metavar="REGEX",
        help="whose an image is, in its name: '^[^_]+' for p1_left.png and p1_right.png; images of one are trained or "
        "validated on together (DICOM says so itself)",
    )
    add(
        "--flip_axes",
        nargs="+",
        metavar="AXIS",
        help="along which images are mirrored for training: 0 1 for the first two, or none; after the folders. By "
        "default left and right, of pictures the first axis, and none where names of classes tell sides",
    )
    add("--seed", type=int, default=0, help="of the split and of training (default 0)")
    add("--epochs", type=int, help="in place of the planned number")
    add("--device_memory", type=float, metavar="GB", help="memory to plan for; by default that of the GPU, or 4")
    add("--plan_only", action="store_true", help="write the bundle, do not train")


def run(options: argparse.Namespace) -> int:
    """Plan, unless that was done, and train."""
    out = Path(options.output_dir)
    _check(options)
    asked = _asked(options)
    differing = _differing(out, asked)
    if differing and not _is_bare_plan(out):
        raise CommandError(f"{out}: holds a training {differing}; choose another folder")
    if not differing and (out / "configs" / "plan.json").is_file():
        print(f"{out} is planned already (configs/plan.json)")
        for line in _said_of_new(out, options):
            print(line)
        if options.epochs is not None:
            print(f"max_epochs {options.epochs}: as asked for{without_warmup(options.epochs)}")
            change_settings(out, {"max_epochs": options.epochs})
    elif not differing and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CommandError(f"{out}: exists, and is no training of this command; choose another folder")
    else:
        if differing:
            print(f"{out}: nothing was trained by the plan there, {differing}; planned anew")
        write_plan(options, out, asked)
    if options.plan_only:
        print(f"planned: {out / 'configs' / 'plan.json'}. Next: the same command without --plan_only trains by it")
    else:
        _train(out)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what needs no look into files."""
    if not 0 <= share(options) < 1:
        raise CommandError(f"--validation must be a share from 0 to below 1, got {options.validation}")
    if options.epochs is not None and options.epochs < 1:
        raise CommandError(f"--epochs must be at least 1, got {options.epochs}")
    if isinstance(options.spread_background, float) and not 0 <= options.spread_background <= 1:
        raise CommandError(f"--spread_background must be a ratio from 0 to 1, got {options.spread_background:g}")
    if options.flip_axes not in (None, ["none"]) and not set(options.flip_axes) <= {"0", "1", "2"}:
        raise CommandError(f"--flip_axes must be axes of 0, 1 and 2, or none, got {' '.join(options.flip_axes)}")
    if options.device_memory is not None and options.device_memory <= 0:
        raise CommandError(f"--device_memory must be more than 0 GB, got {options.device_memory:g}")
    require_text("--output_dir", Path(options.output_dir).absolute())
    if options.only_named and not options.class_names:
        raise CommandError("--only_named: which segments? pass --class_names, without background")
    if options.learn_labels and not options.labels:
        raise CommandError("--learn_labels: of which masks? pass --labels FOLDER")
    folders = {"IMAGES": options.images, "DRAWINGS": options.drawings, "--labels": options.labels}
    for one, other in combinations((name for name, folder in folders.items() if folder), 2):
        same = os.path.realpath(folders[one]) == os.path.realpath(folders[other])
        if same and not (one == "IMAGES" and holds_structures_alone(folders[other])):
            raise CommandError(f"{one} and {other} are one folder, {folders[one]}; keep each in a folder of its own")


def _train(out: Path) -> None:
    resume = (out / "models" / "full.pt").is_file()
    print("goes on where it stopped" if resume else "training", flush=True)
    run_bundle(out, ["train.json"], "training", resume=resume)
    following = f"medcoarse predict {shlex.quote(str(out))} IMAGES --output_dir PREDICTIONS"
    print(f"trained: {out / 'models' / 'model.pt'}. Next: {following}")


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What decides about the plan, to recognize the same command."""
    keys = ("mapping", "background", "class_names", "seed")
    places = {
        key: os.path.abspath(getattr(options, key)) if getattr(options, key) else None  # noqa: PTH100
        for key in ("images", "drawings", "labels")
    }
    later = (
        "only_named",
        "nested",
        "loops",
        "spread_background",
        "resample",
        "annotators",
        "patient",
        "device_memory",
        "learn_labels",
        "flip_axes",
    )
    given = {key: getattr(options, key) for key in later if getattr(options, key)}  # older plans lack them
    return places | {key: getattr(options, key) for key in keys} | {"validation": share(options)} | given


def _differing(out: Path, asked: Mapping[str, Any]) -> str:
    """What the plan in a folder was asked for otherwise, the first of it in words; nothing where it is the same."""
    if not (out / "configs" / "plan.json").is_file():
        return ""
    before = config_of(out, "plan.json").get("asked", {})
    for key in (*asked, *before):
        if before.get(key) != asked.get(key):
            name = key.upper() if key in ("images", "drawings") else f"--{key}"
            then, now = (_with(name, given.get(key)) for given in (before, asked))
            return f"made {then} and asked for now {now}"
    return ""


def _with(name: str, value: object) -> str:
    return f"without {name}" if value is None else f"with {name}" if value is True else f"with {name} {value!r}"


def _is_bare_plan(out: Path) -> bool:
    """Whether a folder holds only what planning wrote, none of it newer than the plan: it can be replaced."""
    planned = (out / "configs" / "plan.json").stat().st_mtime_ns
    return not any(
        (path.is_file() and path.stat().st_mtime_ns > planned) or path == out / "models" for path in out.rglob("*")
    )


def _said_of_new(out: Path, options: argparse.Namespace) -> list[str]:
    """Images with drawings that came after the plan, or what else became of the folders."""
    datalist = json.loads((out / "datalist.json").read_text(encoding="utf-8"))
    listed_images = [item["image"] for part in datalist.values() for item in part]
    names = [name for image in listed_images for name in (image if isinstance(image, list) else [image])]
    known = {os.path.realpath(out / name) for name in names}
    try:
        found = paired(options)
    except CommandError as error:
        return [f"  THE FOLDERS HAVE CHANGED since it was planned: {error}; what was planned is trained on"]
    files = {image: {os.path.realpath(file) for file in files_of(image, found.channels)} for image in found.drawn}
    new = [image for image in found.drawn if not files[image] <= known]
    return [f"  NEW since it was planned, and not trained on: {listed(new)}; another folder plans anew"] if new else []
