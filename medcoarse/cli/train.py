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
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medcoarse.cli.bundle import change_settings, config_of, make_bundle, run_bundle
from medcoarse.cli.files import find_drawings, find_images, listed, pair
from medcoarse.cli.main import CommandError
from medcoarse.files import write_json

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from medcoarse.cli.facts import Classes

EXAMPLES = """examples:
  drawn in ITK-SNAP; label 3 was used for background, 1 and 2 are structures, 0 is nothing drawn:
    medcoarse train images/ drawings/ --output_dir run --background 3 --class_names liver tumour
  drawn in 3D Slicer, segments "vessel" and "not vessel" (or "background"):
    medcoarse train images/ drawings/ --output_dir run
  scribbles of MONAI Label:
    medcoarse train images/ drawings/ --output_dir run --mapping monailabel_scribbles
  label maps with background 0 and 255 where nothing is drawn:
    medcoarse train images/ drawings/ --output_dir run --mapping unlabeled_255
  the same, and a line of background around what is to be segmented closes it in:
    medcoarse train images/ drawings/ --output_dir run --mapping unlabeled_255 --loops
  anything else:
    medcoarse train images/ drawings/ --output_dir run --mapping \\
        '{"0": null, "1": [1, "positive"], "2": [1, "negative"]}'
then:
    medcoarse predict run new_images/ --output_dir segmented

names: case1.nii.gz and case1.nii.gz, case1_drawn.nrrd, case1.seg.nrrd, ...; a DICOM series is called by its folder.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("images", metavar="IMAGES", help="folder of images: NIfTI, NRRD, MetaImage, pictures, DICOM series")
    add("drawings", metavar="DRAWINGS", help="folder of drawings, one for each image")
    add("--output_dir", required=True, metavar="OUT", help="the bundle that is made")
    add("--mapping", help="what values mean: itksnap, unlabeled_255, dense, monailabel_scribbles, names, or JSON")
    add("--background", metavar="VALUE", help="value or name that background was drawn with")
    add("--class_names", nargs="+", metavar="NAME", help="of the structures, in the order of their values")
    add(
        "--loops",
        action="store_true",
        help="a closed line of background says that all beyond it, on that slice, is too",
    )
    add("--labels", metavar="FOLDER", help="dense masks (values 0, 1, ..., 255 for unknown) of some images, for scores")
    add("--validation", type=float, default=0.2, metavar="SHARE", help="of the images, to validate on (default 0.2)")
    add("--seed", type=int, default=0, help="of the split and of training (default 0)")
    add("--epochs", type=int, help="in place of the planned number")
    add("--device_memory", type=float, metavar="GB", help="memory to plan for; by default that of the GPU, or 4")
    add("--plan_only", action="store_true", help="write the bundle, do not train")


def run(options: argparse.Namespace) -> int:
    """Plan, unless that was done, and train."""
    out = Path(options.output_dir)
    if not 0 <= options.validation < 1:
        raise CommandError(f"--validation must be a share from 0 to below 1, got {options.validation}")
    if options.epochs is not None and options.epochs < 1:
        raise CommandError(f"--epochs must be at least 1, got {options.epochs}")
    if options.device_memory is not None and options.device_memory <= 0:
        raise CommandError(f"--device_memory must be more than 0 GB, got {options.device_memory:g}")
    asked = _asked(options)
    if (out / "configs" / "plan.json").is_file():
        _require_same(out, asked)
        print(f"{out} is planned already (configs/plan.json)")
        if options.epochs is not None:
            change_settings(out, {"max_epochs": options.epochs})
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CommandError(f"{out}: exists, and is no training of this command; choose another folder")
    else:
        _plan(options, out, asked)
    if options.plan_only:
        return 0
    resume = (out / "models" / "full.pt").is_file()
    print("goes on where it stopped" if resume else "training", flush=True)
    run_bundle(out, ["train.json"], "training", resume=resume)
    print(f"trained: {out / 'models' / 'model.pt'}. Next: medcoarse predict {out} IMAGES --output_dir PREDICTIONS")
    return 0


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What decides about the plan, to recognize the same command."""
    keys = ("mapping", "background", "class_names", "validation", "seed")
    places = {
        key: os.path.abspath(getattr(options, key)) if getattr(options, key) else None  # noqa: PTH100
        for key in ("images", "drawings", "labels")
    }
    loops = {"loops": True} if options.loops else {}  # plans of before the option say nothing of it
    return places | {key: getattr(options, key) for key in keys} | loops


def _require_same(out: Path, asked: Mapping[str, Any]) -> None:
    before = config_of(out, "plan.json").get("asked", {})
    differing = [key for key in (*asked, *before) if before.get(key) != asked.get(key)]
    if differing:
        key = differing[0]
        raise CommandError(
            f"{out}: holds a training with {key} {before.get(key)!r}, not {asked.get(key)!r}; choose another folder"
        )


def _plan(options: argparse.Namespace, out: Path, asked: Mapping[str, Any]) -> None:
    images, drawings = find_images([options.images]), find_drawings(options.drawings)
    pairs = pair(images, drawings, "drawing")
    labels = pair(images, find_images([options.labels]), "mask", need_all=False) if options.labels else {}

    import torch

    from medcoarse.cli.facts import inspect
    from medcoarse.planning import make_plan

    draft = _draft(out)
    try:
        facts, classes = inspect(pairs, options.mapping, options.background, options.class_names)
        gpu = torch.cuda.is_available()
        memory = options.device_memory or (torch.cuda.get_device_properties(0).total_memory / 1e9 if gpu else 4.0)
        plan = make_plan(facts, gpu, memory)
        settings = {**plan.settings, **_settings(options, classes)}
        reasons = {**plan.reasons, **({"max_epochs": "as asked for"} if options.epochs else {})}
        sections = split(list(pairs), options.validation, options.seed)
        for line in _said(classes, pairs, sections, settings, reasons):
            print(line)
        record = {"asked": dict(asked), "images": len(pairs), "classes": classes.said}
        make_bundle(draft, settings, _metadata(classes.names, settings))
        write_json(
            draft / "datalist.json",
            {
                name: [_item(image, pairs[image], labels.get(image), out) for image in part]
                for name, part in sections.items()
            },
        )
        write_json(draft / "configs" / "plan.json", {**record, "settings": settings, "reasons": reasons})
        if out.is_dir():
            out.rmdir()  # it is empty
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
        "seed": options.seed,
    }
    return settings | ({"max_epochs": options.epochs} if options.epochs else {})


def split(images: Sequence[Path], share: float, seed: int) -> dict[str, list[Path]]:
    """Training and validation images, the same for the same seed; with two images or fewer all are for training.

    Example:
        >>> parts = split([Path(str(number)) for number in range(10)], 0.2, 0)
        >>> len(parts["training"]), len(parts["validation"])
        (8, 2)
    """
    number = min(max(round(share * len(images)), 1), len(images) - 1) if share > 0 and len(images) > 2 else 0
    chosen = set(np.random.default_rng(seed).permutation(len(images))[:number].tolist())
    parts: dict[str, list[Path]] = {"training": [], "validation": []}
    for index, image in enumerate(images):
        parts["validation" if index in chosen else "training"].append(image)
    return parts


def _item(image: Path, drawing: Path, label: Path | None, out: Path) -> dict[str, str]:
    files = {"image": image, "drawing": drawing} | ({"label": label} if label else {})
    return {key: os.path.relpath(path.resolve(), out.resolve()) for key, path in files.items()}


def _metadata(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What metadata.json says of this model: its input, and the names of its classes."""
    dims = settings["spatial_dims"]
    shape = list(settings["patch_size"])
    channels = settings["in_channels"]
    listed_names = ", ".join(f"{index} {name}" for index, name in enumerate(names))
    common = {"type": "image", "spatial_shape": shape, "dtype": "float32", "is_patch_data": True}
    image = {**common, "format": "magnitude", "modality": "n/a", "num_channels": channels, "value_range": []}
    pred = {**common, "format": "segmentation", "num_channels": len(names), "value_range": []}
    image["channel_def"] = {str(index): f"channel {index}" for index in range(channels)}
    pred["channel_def"] = {str(index): name for index, name in enumerate(names)}
    return {
        "name": "Segmentation learned from drawings",
        "task": f"Segmentation of {', '.join(names[1:])} in {dims}D images, learned from rough drawings",
        "label_classes": f"{listed_names}, 255 unlabeled",
        "pred_classes": listed_names,
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _said(
    classes: Classes,
    pairs: Mapping[Path, Path],
    sections: Mapping[str, Sequence[Path]],
    settings: Mapping[str, Any],
    reasons: Mapping[str, str],
) -> list[str]:
    parts = ", ".join(f"{len(part)} for {name}" for name, part in sections.items())
    lines = [f"{len(pairs)} images with drawings: {parts}", f"classes ({classes.said}): {', '.join(classes.names)}"]
    lines += [f"  NOTHING IS DRAWN in {listed([Path(name) for name in classes.silent])}"] if classes.silent else []
    lines += [f"  {key!s} -> {'nothing drawn' if claim is None else claim}" for key, claim in classes.mapping.items()]
    return lines + [f"{key} {settings[key]}: {reason}" for key, reason in reasons.items()]
