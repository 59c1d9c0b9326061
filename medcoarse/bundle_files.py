"""Copies of a bundle's files where others look for them: MONAI beside a configuration, MONAI Label in its folder.

``python -m monai.bundle run --config_file bundles/<name>/train.json`` reads ``metadata.json`` and ``logging.conf``
beside the configuration, while ``monai.bundle.load``, MONAI Label and MONAI Deploy read ``configs/``.

    python -m medcoarse.bundle_files bundles/les_av

keeps the copies at the bundle's root identical to what is edited in ``configs/``, and

    python -m medcoarse.bundle_files --monailabel apps/monaibundle/model bundles/les_av

puts a bundle where MONAI Label serves it from, with a ``train.json`` that learns from what a reader scribbled.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

MIRRORED = ("train.json", "metadata.json", "logging.conf")
OVERLAYS = {
    "train.json": "monailabel.json",
    "inference.json": "monailabel_inference.json",
    "metadata.json": "monailabel_metadata.json",
}


def sync(bundle: Path) -> list[str]:
    """Copy the mirrored files of ``configs/`` to the bundle's root; return the names of those that differed.

    Raises:
        FileNotFoundError: the folder is no bundle.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "configs").mkdir()
        >>> for name in MIRRORED:
        ...     _ = (root / "configs" / name).write_text(name)
        >>> sync(root), sync(root)
        (['train.json', 'metadata.json', 'logging.conf'], [])
    """
    if not (bundle / "configs").is_dir():
        raise FileNotFoundError(f"{bundle} is no bundle: it has no folder configs")
    changed = []
    for name in MIRRORED:
        source, copy = bundle / "configs" / name, bundle / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            shutil.copyfile(source, copy)
            changed.append(name)
    return changed


def serve(bundle: Path, models: Path, **overrides: Any) -> Path:
    """Copy a bundle to where MONAI Label looks for it, its configurations merged with those meant for MONAI Label.

    MONAI Label knows no overlays: it reads ``configs/train.json`` and ``configs/inference.json``. So the one is merged
    with ``monailabel.json`` and the other, where there is that, with ``monailabel_inference.json``; the metadata with
    ``monailabel_metadata.json``, where labels are stored under other numbers than the network's channels. It trains
    into ``models/model.pt`` of the copy, so the weights of the bundle itself stay as they are. No other weights are
    copied: MONAI Label would serve those with the shortest name.

    Args:
        bundle: the folder of the bundle.
        models: folder ``model`` of MONAI Label's app.
        overrides: id -> value, over ``train.json``.

    Returns:
        The copy, ``models`` / name of the bundle.

    Raises:
        FileNotFoundError: the folder is no bundle, or it has no ``configs/monailabel.json``.
        FileExistsError: there is a copy already, which may have been trained.
        ValueError: the bundle has no such setting as one of ``overrides``.
    """
    configs, copy = bundle / "configs", models / bundle.resolve().name
    if not (configs / OVERLAYS["train.json"]).is_file():
        raise FileNotFoundError(f"{bundle} cannot be served: it has no configs/{OVERLAYS['train.json']}")
    if copy.exists():
        raise FileExistsError(f"{copy} exists and may have been trained; move it away to have it copied anew")
    merged = {name: _merged(configs / name, configs / overlay) for name, overlay in OVERLAYS.items()}
    for key, value in overrides.items():
        if key not in merged["train.json"]:
            raise ValueError(f"{bundle} has no setting {key!r} in MONAI Label; leave it out")
        merged["train.json"][key] = value
    (copy / "configs").mkdir(parents=True)
    for name, content in merged.items():
        (copy / "configs" / name).write_text(json.dumps(content.get(), indent=4) + "\n")
    shutil.copyfile(configs / "logging.conf", copy / "configs" / "logging.conf")
    weights = bundle / "models" / "model.pt"
    if weights.is_file():
        (copy / "models").mkdir()
        shutil.copyfile(weights, copy / "models" / "model.pt")
    return copy


def _merged(file: Path, overlay: Path) -> ConfigParser:
    return ConfigParser(ConfigParser.load_config_files([str(path) for path in (file, overlay) if path.is_file()]))


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--monailabel", type=Path, metavar="FOLDER", help="folder `model` of MONAI Label's app")
    parser.add_argument(
        "--undrawn_is_background",
        action="store_true",
        help="what a reader leaves out is background: for finished masks; by default it is unknown, as of scribbles",
    )
    given = parser.parse_args(arguments)
    overrides = {"undrawn_is_background": True} if given.undrawn_is_background else {}
    for bundle in given.bundles:
        if given.monailabel is None:
            print(bundle, *(sync(bundle) or ["is in sync"]))
        else:
            print(serve(bundle, given.monailabel, **overrides))


if __name__ == "__main__":
    main()
