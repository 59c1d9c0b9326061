"""Bundles: where the one for one's own drawings lies, copies of it that a plan has been written into, running them."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import medcoarse
from medcoarse.bundle_files import OVERLAYS, sync
from medcoarse.cli.main import CommandError
from medcoarse.files import write_json

_PLACE = "bundles/drawings/configs/train.json"
_UNPLANNED = frozenset(OVERLAYS.values())
"""What is merged over a plan by MONAI Label, and must not be overwritten by it."""

_PAGE = """# Segmentation learned from rough drawings

Made by `medcoarse train`. Research software, not a medical device.

Classes:

{classes}

- `configs/plan.json` says what was chosen, and why; `configs/metadata.json` what goes in and comes out.
- `models/model.pt` are the weights of the last epoch; `output/` has scores, pictures and curves.

```bash
medcoarse predict . IMAGES --output_dir PREDICTIONS   # typed in this folder; DICOM series too
medcoarse report .                                    # the drawings, and who drew them
medcoarse report . --pool IMAGES                      # the same, and which of these to draw next
medcoarse report . --cases IMAGES                     # outlines, uncertainty, sizes
python -m monai.bundle run inferring --config_file configs/inference.json --dataset_dir IMAGES --output_dir PREDICTIONS
torchrun --nproc_per_node=2 -m monai.bundle run training \\
    --config_file "['configs/train.json','configs/multi_gpu_train.json']"   # on two GPUs, or in two processes
```
"""


def shipped_bundle() -> Path:
    """The bundle `drawings`: beside the package in a clone, else where pip put it.

    Raises:
        CommandError: it is nowhere.
    """
    clone = Path(medcoarse.__file__).parents[1] / "bundles" / "drawings"
    if (clone / "configs" / "train.json").is_file():
        return clone
    for file in importlib.metadata.files("medcoarse") or ():
        if file.as_posix().endswith(_PLACE):
            return Path(str(file.locate())).resolve().parents[1]
    raise CommandError("the bundle 'drawings' is not installed; install medcoarse again")


def make_bundle(folder: Path, settings: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """A copy of the shipped bundle with a plan written into it: complete, and independent of the original.

    Args:
        folder: of the copy.
        settings: ids and values, `a#b` for a nested one; each configuration gets those that it has.
        metadata: what to change in metadata.json.
    """
    source = shipped_bundle()
    for file in sorted((source / "configs").iterdir()):
        target = folder / "configs" / file.name
        if file.suffix != ".json" or file.name in _UNPLANNED:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        changes = metadata if file.name == "metadata.json" else settings
        if file.name == "inference.json":  # there `datalist` is a list of images, and heads are those of the weights
            changes = {key: value for key, value in settings.items() if key not in ("datalist", "num_heads")}
            changes |= {"planned_heads": settings["num_heads"]} if "num_heads" in settings else {}
        write_json(target, _changed(content, changes, add=file.name == "metadata.json"))
    shutil.copyfile(source / "LICENSE", folder / "LICENSE")
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "README.md").write_text(_PAGE.format(classes=_listed_classes(settings)), encoding="utf-8")
    sync(folder)


def _listed_classes(settings: Mapping[str, Any]) -> str:
    return "\n".join(f"{number}. {name}" for number, name in enumerate(settings["class_names"]))


def require_text(what: str, value: Any) -> None:
    """Refuse text that MONAI would not read as text: what is written into a configuration, `$...` is run as Python.

    Names come from files as well, of segments say, and files from other people.

    Args:
        what: is named in the error.
        value: any JSON; keys are looked at too.

    Raises:
        CommandError: some text begins with `$`, `@` or `%`, or holds a `#`.

    Example:
        >>> require_text("the names of classes", ["liver", "tumour (2)"])
    """
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, str | Path):
        text = str(value)
        if text.startswith(("$", "@", "%")) or "#" in text:
            raise CommandError(f"{what}: {text[:60]!r} begins with $, @ or %, or holds a #; rename it")
    elif isinstance(value, Sequence):
        for one in value:
            require_text(what, one)


def change_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write further values into the configurations of a bundle."""
    for file in sorted((folder / "configs").glob("*.json")):
        if file.name not in {"metadata.json", "plan.json", *_UNPLANNED}:
            write_json(file, _changed(json.loads(file.read_text(encoding="utf-8")), settings, add=False))
    sync(folder)


def _changed(content: dict[str, Any], changes: Mapping[str, Any], add: bool) -> dict[str, Any]:
    for key, value in changes.items():
        place, *rest = key.split("#")
        inner = content
        while rest and isinstance(inner.get(place), dict):
            inner, (place, *rest) = inner[place], rest
        if not rest and (add or place in inner):
            inner[place] = value
    return content


def config_of(bundle: Path, name: str) -> dict[str, Any]:
    """A configuration of a bundle.

    Raises:
        CommandError: there is none, or it is damaged.
    """
    path = bundle / "configs" / name
    if not path.is_file():
        raise CommandError(f"{bundle}: no bundle, it has no configs/{name}; pass what `medcoarse train` wrote")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise CommandError(f"{path}: damaged; restore it") from None
    return content


def run_bundle(bundle: Path, names: list[str], run_id: str, **settings: Any) -> None:
    """What `python -m monai.bundle run RUN_ID` does, in this process.

    Args:
        bundle: its folder.
        names: of configurations.
        run_id: what to run.
        settings: overrides; they are text, numbers and lists, and nothing to evaluate.

    Raises:
        CommandError: as `require_text`.
    """
    from monai.bundle import ConfigWorkflow  # takes seconds

    bundle = bundle.absolute()
    for given in (bundle, *settings.values()):
        require_text("a path", given)
    configs = bundle / "configs"
    logs = configs / "logging.conf"
    workflow = ConfigWorkflow(
        [str(configs / name) for name in names],
        meta_file=str(configs / "metadata.json") if (configs / "metadata.json").is_file() else None,
        logging_file=str(logs) if logs.is_file() else False,
        run_id=run_id,
        bundle_root=str(bundle),
        **settings,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    logging.shutdown()


def class_names_of(bundle: Path) -> list[str]:
    """Names of the classes that a bundle tells apart, background first, from its metadata.

    Raises:
        CommandError: the metadata does not name them.
    """
    metadata = config_of(bundle, "metadata.json")
    try:
        named = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        return [str(named[key]) for key in sorted(named, key=int)]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CommandError(f"{bundle}: metadata.json does not name the classes (channel_def of pred)") from None
