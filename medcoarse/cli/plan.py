"""The plan of `medcoarse train`: which images have drawings, what is done with them and why, as a MONAI bundle."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcoarse.cli.bundle import make_bundle, require_text
from medcoarse.cli.channels import Channels, are_channels, files_of, join_channels
from medcoarse.cli.files import find_annotators, find_drawings, find_images, listed, pair, pair_each
from medcoarse.cli.main import CommandError
from medcoarse.cli.patients import patients_of, split
from medcoarse.files import write_json
from medcoarse.inspection import count

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from medcoarse.cli.facts import Classes
    from medcoarse.grids import Facts
    from medcoarse.planning import Plan

VALIDATION = 0.2
"""Share of the images that is validated on."""


def share(options: argparse.Namespace) -> float:
    """Of the images, to validate on."""
    return VALIDATION if options.validation is None else float(options.validation)


@dataclass(frozen=True)
class Folders:
    """What the folders hold.

    Args:
        drawn: image -> who drew it (nobody named, unless they are kept apart) -> the drawing; none of an image whose
            mask is learned from.
        undrawn: images that are left out.
        masks: image -> mask.
        channels: the files of each image, if they are apart.
        numbers: of these.
    """

    drawn: dict[Path, dict[str, Path]]
    undrawn: list[Path]
    masks: dict[Path, Path]
    channels: Channels
    numbers: list[str]

    @property
    def labels(self) -> dict[Path, Path]:
        """The masks of images that are not left out."""
        return {image: mask for image, mask in self.masks.items() if image in self.drawn}


def paired(options: argparse.Namespace) -> Folders:
    """Which files belong together, by their names."""
    images, drawings = find_images([options.images]), find_drawings(options.drawings)
    channels, numbers = join_channels(images) if are_channels(images, drawings) else ({}, [])
    images = list(channels) or images
    drawn = _drawn(images, drawings, options)
    undrawn = [image for image in images if image not in drawn]
    masks = pair(images, find_drawings(options.labels), "mask", need_all=False) if options.labels else {}
    if options.learn_labels:
        drawn, undrawn = _with_masked(drawn, undrawn, masks, options.partial)
    return Folders(drawn, undrawn, masks, channels, numbers)


def _drawn(
    images: Sequence[Path], drawings: Sequence[Path], options: argparse.Namespace
) -> dict[Path, dict[str, Path]]:
    """Image -> who drew it (nobody named, unless they are kept apart) -> the drawing."""
    need_all = not options.partial and not options.learn_labels  # there it may have a mask
    if options.annotators:
        return pair_each(images, find_annotators(options.drawings), need_all)
    return {image: {"": file} for image, file in pair(images, drawings, "drawing", need_all).items()}


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


def write_plan(options: argparse.Namespace, out: Path, asked: Mapping[str, Any]) -> None:
    """Inspect, decide, say what was decided, and write the bundle: whole, or not at all."""
    found = paired(options)
    patients = patients_of(list(found.drawn), options.patient, found.channels)

    from medcoarse.cli.facts import Reading, inspect

    draft = _draft(out)
    try:
        facts, classes = inspect(
            {image: list(by.values()) for image, by in found.drawn.items()},
            Reading(**{one.name: getattr(options, one.name) for one in fields(Reading)}),
            found.channels,
            found.labels,
        )
        if options.annotators:
            found = replace(found, drawn=_without_silent(found.drawn, classes.silent))
        scored = [] if options.learn_labels else found.labels
        sections = split(patients, share(options), options.seed, scored, options.validation is not None)
        _require_learnable(options, found, classes, sections["training"])
        plan = _decided(options, found, facts, classes, sections["training"])
        for line in _said(classes, patients, found, sections, plan):
            print(line)
        if not sections["validation"]:
            print(_said_of_nothing(patients, share(options)))
        _write(draft, out, found, facts, classes, sections, plan, asked)
        if out.is_dir():
            shutil.rmtree(out)  # it is empty, or a bare plan
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(
    draft: Path,
    out: Path,
    found: Folders,
    facts: Facts,
    classes: Classes,
    sections: Mapping[str, Sequence[Path]],
    plan: Plan,
    asked: Mapping[str, Any],
) -> None:
    """The bundle, its datalist with paths from where it will be, and the plan."""
    from medcoarse.grids import seen_spacings

    apart = bool(plan.settings["annotators"])
    items = {name: [_item(image, found, out, apart) for image in part] for name, part in sections.items()}
    said: dict[str, Any] = {"asked": dict(asked), "images": len(found.drawn), "classes": classes.said}
    said |= {"channels": found.numbers} if found.numbers else {}
    said |= {"slice_spacings": seen} if (seen := seen_spacings(facts)) else {}
    make_bundle(draft, plan.settings, _metadata(classes.names, plan.settings, facts.modality))
    write_json(draft / "datalist.json", items)
    write_json(draft / "configs" / "plan.json", {**said, "settings": plan.settings, "reasons": plan.reasons})


def _draft(out: Path) -> Path:
    """A folder beside the one to be, made before the images are inspected, which may take long."""
    draft = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise CommandError(f"{out}: cannot be written to ({error.strerror}); choose another folder") from None
    return draft


def _remedy(options: argparse.Namespace) -> str:
    """What brings an image that is validated on among those to train on."""
    if not options.labels or options.learn_labels:
        return "pass another --seed, or --validation 0"
    return "leave masks of these out of --labels, for images with masks are validated on first, or pass --validation 0"


def _without_silent(drawn: Mapping[Path, Mapping[str, Path]], silent: Collection[Path]) -> dict[Path, dict[str, Path]]:
    """Who drew nothing on an image has not drawn it, where somebody else has."""
    names = {name for by in drawn.values() for name in by}
    if idle := names - {name for by in drawn.values() for name, file in by.items() if file not in silent}:
        raise CommandError(
            f"{', '.join(sorted(idle))}: nothing is drawn in any file; leave the folder out, or correct --mapping or "
            "--background"
        )
    found = {}
    for image, by in drawn.items():
        found[image] = {name: file for name, file in by.items() if file not in silent} or dict(by)
    return found


def _annotators(found: Folders) -> list[str]:
    """Their names; none unless they are kept apart."""
    return sorted({name for by in found.drawn.values() for name in by if name})


def _require_learnable(options: argparse.Namespace, found: Folders, classes: Classes, training: Sequence[Path]) -> None:
    """Refuse a split that leaves somebody, some class or all masks to validation."""
    remedy = _remedy(options)
    _require_drawn(classes, training, options.learn_labels, remedy)
    if options.learn_labels and not any(image in found.masks for image in training):
        raise CommandError(
            f"--learn_labels: no image to train on has a mask; add masks of some to --labels, or {remedy}"
        )
    learned = {name for image in training for name, file in found.drawn[image].items() if file not in classes.silent}
    if idle := [name for name in _annotators(found) if name not in learned]:
        raise CommandError(f"{', '.join(idle)}: drew only images to validate on; {remedy}")


def _require_drawn(classes: Classes, training: Sequence[Path], masks_too: bool, remedy: str) -> None:
    """Every class, background too, has to be drawn on an image to train on, or shown by a mask that is learned from."""
    masked = classes.masked if masks_too else {}
    shown = {image: {*own, *masked.get(image, ())} for image, own in classes.drawn.items()}
    learned = {number for image in training for number in shown[image]}
    or_masked = " or masked" * masks_too
    for number, name in enumerate(classes.names):
        images = [image for image, numbers in shown.items() if number in numbers]
        if not images:
            nested = f"; {_said_of_contradictions(classes)}" if classes.contradicted else ""
            raise CommandError(
                f"{name}: is drawn{or_masked} nowhere; draw it, or correct --mapping, --background or --class_names if "
                f"it is{nested}"
            )
        if number not in learned:
            raise CommandError(
                f"{name}: is drawn{or_masked} only on images to validate on ({listed(images)}); correct the drawing if "
                f"that is a slip, or {remedy}"
            )


def _decided(
    options: argparse.Namespace, found: Folders, facts: Facts, classes: Classes, training: Sequence[Path]
) -> Plan:
    """All settings of the bundle, and the reasons for those that were chosen."""
    import torch

    from medcoarse.planning import Plan, balance, make_plan

    gpu = torch.cuda.is_available()
    memory = options.device_memory or (torch.cuda.get_device_properties(0).total_memory / 1e9 if gpu else 4.0)
    annotators = _annotators(found)
    heads, why_heads = _heads(found, training, facts, classes, len(annotators), options.loops)
    sizes = (len(training), len(classes.names), len(annotators))
    plan = make_plan(facts, gpu, memory, *sizes, free_memory_gb(), heads)
    settings, reasons = {**plan.settings, **_settings(options, classes)}, dict(plan.reasons)
    settings |= {"annotators": annotators, "num_heads": heads}
    texts = ("class_names", "annotators", "mapping", "dataset_dir")
    require_text("names of classes, segments, annotators and folders", [settings[key] for key in texts])
    losing = [ratio for image in training for ratio in classes.losing[image]]
    settings["spread_background"], reasons["spread_background"] = _spreading(options, losing)
    settings["flip_axes"], reasons["flip_axes"] = _mirroring(options, classes, settings)
    voxels = [sum(classes.drawn[image].get(k, 0) for image in training) for k in range(len(classes.names))]
    settings["loss#balance"], reasons["loss#balance"] = balance(voxels)
    reasons |= {"num_heads": why_heads} if why_heads else {}
    reasons |= {"max_epochs": f"as asked for{without_warmup(options.epochs)}"} if options.epochs else {}
    return Plan(settings, reasons)


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
        "supervision": "semi" if options.learn_labels else "strokes",
        "binary_labels": classes.binary_masks,
        "loops": options.loops,
        "contradictions": "last" if options.nested else "unlabeled",
        "only_named": options.only_named,
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


def _heads(
    found: Folders, training: Sequence[Path], facts: Facts, classes: Classes, people: int, loops: bool
) -> tuple[int, str]:
    """How many heads the segmenter gets, and why; none where background is read beyond lines that were drawn."""
    from medcoarse.planning import num_heads

    if loops:
        return 0, ""
    sizes = dict(zip(found.drawn, map(math.prod, facts.shapes), strict=True))
    drawn = {image: sum(classes.drawn[image].values()) / sizes[image] for image in training}
    ratios = [ratio / len(found.drawn[image]) for image, ratio in drawn.items() if ratio]  # nobody drew the others
    return num_heads(people, len(classes.names), statistics.fmean(ratios or [0]))


def without_warmup(epochs: int) -> str:
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


def _item(image: Path, found: Folders, out: Path, apart: bool) -> dict[str, str | list[str]]:
    def there(path: Path) -> str:
        return os.path.relpath(path.resolve(), out.resolve())

    drawn, label = found.drawn[image], found.masks.get(image)
    files = [there(file) for file in files_of(image, found.channels)]
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
    found: Folders,
    sections: Mapping[str, Sequence[Path]],
    plan: Plan,
) -> list[str]:
    settings = plan.settings
    parts = ", ".join(f"{len(part)} for {name}" for name, part in sections.items())
    people = len(set(patients.values()))
    of_people = f" of {people} patient{'s' * (people > 1)}" if people < len(patients) else ""
    or_masks = " or masks" if settings["supervision"] == "semi" else ""
    lines = [f"{len(patients)} images{of_people} with drawings{or_masks}: {parts}"]
    lines += [f"classes ({classes.said}): {', '.join(classes.names)}"]
    labelled = found.labels
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
    apart = settings["annotators"]
    silent = [Path(f"{file.parent.name}: {file.name}") if apart else file for file in classes.silent]
    lines += [f"  NOTHING IS DRAWN in {listed(silent)}"] if silent else []
    lines += [f"  ONE VALUE EVERYWHERE in {listed([Path(name) for name in classes.blank])}"] if classes.blank else []
    lines += [f"  {_said_of_contradictions(classes)}"] if classes.contradicted else []
    lines += [f"  {line}" for line in classes.lacking]
    lines += _said_of_loops(*classes.loops, settings["loops"])
    lines += [f"  {key!s} -> {'nothing drawn' if claim is None else claim}" for key, claim in classes.mapping.items()]
    lines += [f"{key} {settings[key]}: {reason}" for key, reason in plan.reasons.items()]
    if found.undrawn:
        unused = len(found.masks) - len(labelled)
        of_masks = f", with {unused} mask{'s' * (unused > 1)}" if unused else ""
        many = f"{len(found.undrawn)}, {listed(found.undrawn)}{of_masks}"
        lines += [f"  LEFT OUT, for nobody has drawn them yet: {many}"]
    return lines


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


def _said_of_contradictions(classes: Classes) -> str:
    where = f"TWO THINGS ARE SAID OF A VOXEL in {listed(classes.contradicted)}, and nothing is learned there"
    return f"{where}: if structures lie in one another, pass --nested"


def _said_of_loops(slices: int, closed: int, read: bool) -> list[str]:
    most = f"goes round strokes, and leaves something undrawn beyond it, on {closed} of {slices} slices"
    if 2 * closed >= slices > 0 and not read:
        return [f"  A CLOSED LINE OF BACKGROUND {most}: if it means that all beyond it is background, pass --loops"]
    return [f"  --loops: a closed line of background {most} only"] if read and 2 * closed < slices else []
