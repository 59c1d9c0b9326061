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
import math
import os
import shlex
import shutil
import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcoarse.cli.bundle import change_settings, config_of, make_bundle, require_text, run_bundle
from medcoarse.cli.channels import Channels, are_channels, files_of, join_channels
from medcoarse.cli.files import find_annotators, find_drawings, find_images, listed, pair, pair_each
from medcoarse.cli.main import CommandError
from medcoarse.cli.patients import patients_of, split
from medcoarse.files import write_json
from medcoarse.inspection import count

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from medcoarse.cli.facts import Classes
    from medcoarse.planning import Facts

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

names: case1.nii.gz and case1.nii.gz, case1_drawn.nrrd, case1.seg.nrrd, ...; a DICOM series is called by its folder.
Where case1_0000.nii.gz, case1_0001.nii.gz, ... are the channels of one image, its drawing is case1.nii.gz or goes on
from that: case1_drawn.nii.gz.
"""


_VALIDATION = 0.2


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
        help=f"of the images, to validate on, first of those with a mask of --labels (default {_VALIDATION}, of three "
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
        "default 0, and none where names of classes tell sides",
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
            print(f"max_epochs {options.epochs}: as asked for{_without_warmup(options.epochs)}")
            change_settings(out, {"max_epochs": options.epochs})
    elif not differing and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CommandError(f"{out}: exists, and is no training of this command; choose another folder")
    else:
        if differing:
            print(f"{out}: nothing was trained by the plan there, {differing}; planned anew")
        _plan(options, out, asked)
    if options.plan_only:
        print(f"planned: {out / 'configs' / 'plan.json'}. Next: the same command without --plan_only trains by it")
    else:
        _train(out)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what needs no look into files."""
    if not 0 <= _share(options) < 1:
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
    if options.learn_labels and not options.labels:
        raise CommandError("--learn_labels: of which masks? pass --labels FOLDER")
    folders = {"IMAGES": options.images, "DRAWINGS": options.drawings, "--labels": options.labels}
    for one, other in combinations((name for name, folder in folders.items() if folder), 2):
        if os.path.realpath(folders[one]) == os.path.realpath(folders[other]):
            raise CommandError(f"{one} and {other} are one folder, {folders[one]}; keep each in a folder of its own")


def _share(options: argparse.Namespace) -> float:
    """Of the images, to validate on."""
    return _VALIDATION if options.validation is None else float(options.validation)


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
    return places | {key: getattr(options, key) for key in keys} | {"validation": _share(options)} | given


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
        drawn, _, _, channels, _ = _paired(options)
    except CommandError as error:
        return [f"  THE FOLDERS HAVE CHANGED since it was planned: {error}; what was planned is trained on"]
    new = [image for image in drawn if not {os.path.realpath(file) for file in files_of(image, channels)} <= known]
    return [f"  NEW since it was planned, and not trained on: {listed(new)}; another folder plans anew"] if new else []


def _paired(
    options: argparse.Namespace,
) -> tuple[dict[Path, dict[str, Path]], list[Path], dict[Path, Path], Channels, list[str]]:
    """Image -> who drew it -> the drawing; images that are left out; image -> mask; the files of an image and their
    numbers, if its channels are apart."""
    images, drawings = find_images([options.images]), find_drawings(options.drawings)
    channels, numbers = join_channels(images) if are_channels(images, drawings) else ({}, [])
    images = list(channels) or images
    drawn = _drawn(images, drawings, options)
    undrawn = [image for image in images if image not in drawn]
    masks = pair(images, find_drawings(options.labels), "mask", need_all=False) if options.labels else {}
    if options.learn_labels:
        drawn, undrawn = _with_masked(drawn, undrawn, masks, options.partial)
    return drawn, undrawn, masks, channels, numbers


def _plan(options: argparse.Namespace, out: Path, asked: Mapping[str, Any]) -> None:
    """Inspect, decide, say what was decided, and write the bundle: whole, or not at all."""
    drawn, undrawn, masks, channels, numbers = _paired(options)
    labels = {image: mask for image, mask in masks.items() if image in drawn}
    patients = patients_of(list(drawn), options.patient, channels)

    from medcoarse.cli.facts import inspect
    from medcoarse.planning import seen_spacings

    draft = _draft(out)
    try:
        facts, classes = inspect(
            {image: list(by.values()) for image, by in drawn.items()},
            options.mapping,
            options.background,
            options.class_names,
            options.resample,
            channels,
            options.loops,
            labels,
        )
        scored = [] if options.learn_labels else labels
        sections = split(patients, _share(options), options.seed, scored, options.validation is not None)
        _require_drawn(classes, sections["training"], options.learn_labels)
        if options.learn_labels and not any(image in labels for image in sections["training"]):
            raise CommandError(
                "--learn_labels: no image to train on has a mask; add masks of some to --labels, or pass "
                "another --seed, or --validation 0"
            )
        given = {
            "supervision": "semi" if options.learn_labels else "strokes",
            "binary_labels": classes.binary_masks,
            "annotators": _annotators(drawn, sections["training"]),
        }
        settings, reasons = _decided(options, facts, classes, sections["training"], given)
        heads, why = _heads(drawn, sections["training"], facts, classes, settings)
        settings, reasons = settings | {"num_heads": heads}, reasons | ({"num_heads": why} if why else {})
        for line in _said(classes, patients, labels, sections, settings, reasons):
            print(line)
        if not sections["validation"]:
            print(_said_of_nothing(patients, _share(options)))
        if undrawn:
            unused = len(masks) - len(labels)
            of_masks = f", with {unused} mask{'s' * (unused > 1)}" if unused else ""
            print(f"  LEFT OUT, for nobody has drawn them yet: {len(undrawn)}, {listed(undrawn)}{of_masks}")
        items = {
            name: [_item(image, drawn[image], labels.get(image), out, channels, options.annotators) for image in part]
            for name, part in sections.items()
        }
        plan = {"asked": dict(asked), "images": len(drawn), "classes": classes.said}
        plan |= {"channels": numbers} if numbers else {}
        plan |= {"slice_spacings": seen} if (seen := seen_spacings(facts)) else {}
        make_bundle(draft, settings, _metadata(classes.names, settings, facts.modality))
        write_json(draft / "datalist.json", items)
        write_json(draft / "configs" / "plan.json", {**plan, "settings": settings, "reasons": reasons})
        if out.is_dir():
            shutil.rmtree(out)  # it is empty, or a bare plan
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _with_masked(
    drawn: Mapping[Path, dict[str, Path]], undrawn: Sequence[Path], masks: Mapping[Path, Path], partial: bool
) -> tuple[dict[Path, dict[str, Path]], list[Path]]:
    """Images with masks that nobody drew among the others; and images without anything."""
    found = {**drawn, **{image: {} for image in undrawn if image in masks}}
    without = [image for image in undrawn if image not in masks]
    if without and not partial:
        raise CommandError(
            f"{len(without)} images have no drawing and no mask: {listed(without)}; pass --partial to leave them out"
        )
    return found, without


def _decided(
    options: argparse.Namespace,
    facts: Facts,
    classes: Classes,
    training: Sequence[Path],
    given: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """All settings of the bundle, and the reasons for those that were chosen."""
    import torch

    from medcoarse.planning import balance, make_plan

    gpu = torch.cuda.is_available()
    memory = options.device_memory or (torch.cuda.get_device_properties(0).total_memory / 1e9 if gpu else 4.0)
    sizes = (len(training), len(classes.names), len(given["annotators"]))
    plan = make_plan(facts, gpu, memory, *sizes, free_memory_gb())
    settings, reasons = {**plan.settings, **_settings(options, classes), **given}, dict(plan.reasons)
    texts = ("class_names", "annotators", "mapping", "dataset_dir")
    require_text("names of classes, segments, annotators and folders", [settings[key] for key in texts])
    losing = [ratio for image in training for ratio in classes.losing[image]]
    settings["spread_background"], reasons["spread_background"] = _spreading(options, losing)
    settings["flip_axes"], reasons["flip_axes"] = _mirroring(options, classes, settings)
    voxels = [sum(classes.drawn[image].get(k, 0) for image in training) for k in range(len(classes.names))]
    settings["loss#balance"], reasons["loss#balance"] = balance(voxels)
    asked = {"max_epochs": f"as asked for{_without_warmup(options.epochs)}"} if options.epochs else {}
    return settings, reasons | asked


def _heads(
    drawn: Mapping[Path, Mapping[str, Path]],
    training: Sequence[Path],
    facts: Facts,
    classes: Classes,
    settings: Mapping[str, Any],
) -> tuple[int, str]:
    """How many heads the segmenter gets, and why; none beside masks or loops, which were not tried with them."""
    from medcoarse.planning import num_heads

    if settings["supervision"] == "semi" or settings.get("loops"):
        return 0, ""
    sizes = dict(zip(drawn, map(math.prod, facts.shapes), strict=True))
    ratios = [sum(classes.drawn[image].values()) / (sizes[image] * len(drawn[image])) for image in training]
    people = len(settings["annotators"])
    by_everyone = all(len(drawn[image]) == people for image in training)
    return num_heads(people, len(classes.names), by_everyone, statistics.fmean(ratios))


def _without_warmup(epochs: int) -> str:
    """What so few epochs leave out; the bundle takes a third of them, in whole epochs, for the warm-up."""
    return "" if epochs // 3 else ", which leaves NO WARM-UP: annotators learn from the start; 3 epochs have one"


def free_memory_gb() -> float | None:
    """Main memory that is free or can be freed; where the system does not tell, all there is, or None."""
    try:
        facts = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 / 1e9 for line in facts if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _drawn(
    images: Sequence[Path], drawings: Sequence[Path], options: argparse.Namespace
) -> dict[Path, dict[str, Path]]:
    """Image -> who drew it (nobody named, unless they are kept apart) -> the drawing."""
    need_all = not options.partial and not options.learn_labels  # there it may have a mask
    if options.annotators:
        return pair_each(images, find_annotators(options.drawings), need_all)
    return {image: {"": file} for image, file in pair(images, drawings, "drawing", need_all).items()}


def _annotators(drawn: Mapping[Path, Mapping[str, Path]], training: Sequence[Path]) -> list[str]:
    """Their names; none unless they are kept apart."""
    names = sorted({name for by in drawn.values() for name in by if name})
    learned = {name for image in training for name in drawn[image]}
    if idle := [name for name in names if name not in learned]:
        raise CommandError(
            f"{', '.join(idle)}: drew only images to validate on; pass another --seed, or --validation 0"
        )
    return names


def _require_drawn(classes: Classes, training: Sequence[Path], masks_too: bool) -> None:
    """Every class, background too, has to be drawn on an image to train on, or shown by a mask that is learned from."""
    masked = classes.masked if masks_too else {}
    shown = {image: {*own, *masked.get(image, ())} for image, own in classes.drawn.items()}
    learned = {number for image in training for number in shown[image]}
    or_masked = " or masked" * masks_too
    for number, name in enumerate(classes.names):
        images = [image for image, numbers in shown.items() if number in numbers]
        if not images:
            raise CommandError(
                f"{name}: is drawn{or_masked} nowhere; draw it, or correct --mapping, --background or --class_names if "
                "it is"
            )
        if number not in learned:
            raise CommandError(
                f"{name}: is drawn{or_masked} only on images to validate on ({listed(images)}); correct the drawing if "
                "that is a slip, or pass another --seed, or --validation 0"
            )


def _draft(out: Path) -> Path:
    """A folder beside the one to be, made before the images are inspected, which may take long."""
    draft = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise CommandError(f"{out}: cannot be written to ({error.strerror}); choose another folder") from None
    return draft


def _settings(options: argparse.Namespace, classes: Classes) -> dict[str, Any]:
    """What the bundle has to know and no plan decides."""
    settings = {
        "bundle_root": ".",
        "datalist": "$@bundle_root + '/datalist.json'",
        "dataset_dir": os.path.abspath(options.images),  # noqa: PTH100
        "pattern": "*",
        "mapping": classes.mapping,
        "num_classes": len(classes.names),
        "class_names": classes.names,
        "loops": options.loops,
        "resample": options.resample,
        "seed": options.seed,
    }
    return settings | ({"max_epochs": options.epochs} if options.epochs else {})


def _spreading(options: argparse.Namespace, losing: Sequence[float]) -> tuple[float, str]:
    """How far strokes of background speak for what lies around them, and why."""
    from medcoarse.transforms.expand import safe_ratio

    asked = options.spread_background
    ratio = asked if isinstance(asked, float) else safe_ratio(losing, options.loops)
    lost = f"{sum(one <= ratio for one in losing)} of {len(losing)} strokes, each left out in turn, would be background"
    most = ", and at most one in 20 should be"
    if asked is None:
        advice = f"; IF EVERY STRUCTURE IN AN IMAGE GOT A STROKE, pass --spread_background, which is {ratio:g} ({lost})"
        return 0, "background is what was drawn as background" + (advice if losing and ratio else "")
    if isinstance(asked, float):
        safe = f"{most}: {safe_ratio(losing, options.loops):g} is safe"
        return ratio, "as asked for" + (f"; {lost}{safe}" if losing and ratio else "")
    alone = "in no image could a stroke be left out: it has one only, no background, or nothing undrawn"
    return ratio, f"{lost}{most}" if losing else alone


def _mirroring(options: argparse.Namespace, classes: Classes, settings: Mapping[str, Any]) -> tuple[list[int], str]:
    """Along which axes images are mirrored, and why."""
    from medcoarse.planning import mirrored_axes

    if options.flip_axes is None:
        return mirrored_axes(classes.names, settings["orientation"])
    axes = sorted({int(axis) for axis in options.flip_axes if axis != "none"})
    dims = settings["spatial_dims"]
    if beyond := [axis for axis in axes if axis >= dims]:
        raise CommandError(f"--flip_axes {beyond[0]}: the images have the axes {', '.join(map(str, range(dims)))}")
    return axes, "as asked for" + ("; images are not mirrored" if not axes else "")


def _item(
    image: Path, drawn: Mapping[str, Path], label: Path | None, out: Path, channels: Channels, apart: bool
) -> dict[str, str | list[str]]:
    def there(path: Path) -> str:
        return os.path.relpath(path.resolve(), out.resolve())

    files = [there(file) for file in files_of(image, channels)]
    item: dict[str, str | list[str]] = {"image": files if len(files) > 1 else files[0]}
    if list(drawn) == [""]:
        item["drawing"] = there(drawn[""])
    elif drawn:
        item |= {"drawing": [there(path) for path in drawn.values()]}
    if apart:
        item |= {"annotators": list(drawn)}
    return item | ({"label": there(label)} if label else {})


def _metadata(names: Sequence[str], settings: Mapping[str, Any], modality: str) -> dict[str, Any]:
    """What metadata.json says of this model: its input, and the names of its classes. Whose it is nobody said."""
    dims = settings["spatial_dims"]
    shape = list(settings["patch_size"])
    channels = settings["in_channels"]
    listed_names = ", ".join(f"{index} {name}" for index, name in enumerate(names))
    common = {"type": "image", "spatial_shape": shape, "dtype": "float32", "is_patch_data": True}
    kind = "CT" if settings["intensity"] == "ct" else modality or "unknown"
    image = {**common, "format": "magnitude", "modality": kind, "num_channels": channels, "value_range": []}
    pred = {**common, "format": "segmentation", "num_channels": len(names), "value_range": []}
    image["channel_def"] = {str(index): f"channel {index}" for index in range(channels)}
    pred["channel_def"] = {str(index): name for index, name in enumerate(names)}
    return {
        "name": "Segmentation learned from drawings",
        "changelog": {"0.1.0": "Trained by `medcoarse train`."},
        "authors": "unknown",
        "copyright": "unknown",
        "data_source": "The images and drawings in datalist.json",
        "data_type": "image",
        "image_classes": f"{count(channels, 'channel')}, modality {kind}, intensities: {settings['intensity']}",
        "task": f"Segmentation of {', '.join(names[1:])} in {dims}D images, learned from rough drawings",
        "description": f"A residual U-Net in {dims}D that `medcoarse train` trained from drawings, together with a "
        "second network that estimates how they err at every voxel.",
        "label_classes": f"{listed_names}, 255 unlabeled",
        "pred_classes": listed_names,
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _said(
    classes: Classes,
    patients: Mapping[Path, str],
    labelled: Collection[Path],
    sections: Mapping[str, Sequence[Path]],
    settings: Mapping[str, Any],
    reasons: Mapping[str, str],
) -> list[str]:
    parts = ", ".join(f"{len(part)} for {name}" for name, part in sections.items())
    people = len(set(patients.values()))
    of_people = f" of {people} patient{'s' * (people > 1)}" if people < len(patients) else ""
    or_masks = " or masks" if settings["supervision"] == "semi" else ""
    lines = [f"{len(patients)} images{of_people} with drawings{or_masks}: {parts}"]
    lines += [f"classes ({classes.said}): {', '.join(classes.names)}"]
    if settings["supervision"] == "semi":
        learned = sum(image in labelled for image in sections["training"])
        lines += [f"masks to learn from, of images to train on: {learned}"]
    elif labelled:
        lines += [_said_of_masks(labelled, sections["validation"])]
    if settings["annotators"]:
        lines += [f"annotators, kept apart: {', '.join(settings['annotators'])}"]
    for number, name in enumerate(classes.names):
        shown = [image for image, own in classes.drawn.items() if number in own]
        if len(shown) == 1 < sum(map(bool, classes.drawn.values())) - 1:
            lines += [f"  {name} IS DRAWN IN {shown[0].name} ALONE: a slip, if that is not what you meant"]
    lines += [f"  NOTHING IS DRAWN in {listed([Path(name) for name in classes.silent])}"] if classes.silent else []
    lines += [f"  ONE VALUE EVERYWHERE in {listed([Path(name) for name in classes.blank])}"] if classes.blank else []
    lines += _said_of_loops(*classes.loops, settings["loops"])
    lines += [f"  {key!s} -> {'nothing drawn' if claim is None else claim}" for key, claim in classes.mapping.items()]
    return lines + [f"{key} {settings[key]}: {reason}" for key, reason in reasons.items()]


def _said_of_nothing(patients: Mapping[Path, str], share: float) -> str:
    """Why no image is held back."""
    few = {1: "there is one image, or all are of one patient", 2: "there are two, --validation 0.5 takes one of them"}
    why = f" ({few[len(set(patients.values()))]})" if share else ""
    return f"  NO IMAGE IS HELD BACK to validate on{why}: scores are of those that are trained on"


def _said_of_masks(labelled: Collection[Path], validated: Sequence[Path]) -> str:
    scored = sum(image in labelled for image in validated)
    if validated and not scored:
        return "masks for scores: NONE of an image to validate on, so there will be no Dice"
    where = "to validate on" if validated else "to train on, which are scored as nothing is held back"
    return f"masks for scores: {scored if validated else len(labelled)} of images {where}"


def _said_of_loops(slices: int, closed: int, read: bool) -> list[str]:
    most = f"goes round strokes, and leaves something undrawn beyond it, on {closed} of {slices} slices"
    if 2 * closed >= slices > 0 and not read:
        return [f"  A CLOSED LINE OF BACKGROUND {most}: if it means that all beyond it is background, pass --loops"]
    return [f"  --loops: a closed line of background {most} only"] if read and 2 * closed < slices else []
