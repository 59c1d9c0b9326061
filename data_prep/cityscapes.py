"""Verify and list Cityscapes: street scenes with fine masks and with coarse drawings of 19 classes.

    python data_prep/cityscapes.py --folder data/cityscapes                               # as unpacked, listed in place
    python data_prep/cityscapes.py --folder /read/only/cityscapes --output_dir data/list  # listed elsewhere

Getting it. The data are licensed for non-commercial use and cannot be fetched by a script: register at
https://www.cityscapes-dataset.com with an institutional e-mail address, accept the licence and download
leftImg8bit_trainvaltest.zip (11 GB), gtFine_trainvaltest.zip (241 MB) and, for the drawings that people made,
gtCoarse.zip (1.3 GB); leftImg8bit_trainextra.zip (44 GB) has the images that have drawings only, and without it their
drawings, which are in gtCoarse.zip too, are left out. Unpack all in one folder:

    leftImg8bit/{train,val,test,train_extra}/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
    gtFine/{train,val,test}/<city>/<city>_<sequence>_<frame>_gtFine_{labelIds.png,polygons.json,...}
    gtCoarse/{train,val,train_extra}/<city>/<city>_<sequence>_<frame>_gtCoarse_{labelIds.png,polygons.json,...}

Other street scenes in this layout do as well, with some of the classes: those that the masks of ``train`` show are
trained on, all other label ids are unlabeled, as in the benchmark. Where there is no *_labelIds.png, it is painted from
the polygons.

The split is the official one: ``training`` and ``validation`` are ``train`` (whole cities held out at random),
``test`` is ``val``, on which papers report, because the masks of the official test images are not published.
``subset`` are 174 training images drawn with a fixed seed. ``datalist.json`` and ``provenance.json`` are written to
``--output_dir``; images and masks stay where they are.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import write_if_new, write_record
from tqdm import tqdm

from medcoarse.cityscapes import (
    KNOWN_IDS,
    SPLITS,
    SUBSET,
    datalist_content,
    find_frames,
    label_ids_of,
    make_sections,
    paint_polygons,
    stray_files,
)
from medcoarse.datalist import DataError, Item, provenance, verify_datalist
from medcoarse.inspection import count

PAGE = "https://www.cityscapes-dataset.com"
GENERATOR_VERSION = 1


def prepare(
    folder: Path,
    output_dir: Path | None = None,
    validation_ratio: float = 0.15,
    seed: int = 0,
    subset: int = SUBSET,
    shared_cities: bool = False,
    held_out: Sequence[str] | None = None,
    num_threads: int = 2,
) -> Path:
    """Verify a folder in Cityscapes' layout and write its datalist and provenance.

    Args:
        folder: where ``leftImg8bit`` and ``gtFine`` lie.
        output_dir: where the datalist goes; ``None`` for ``folder``.
        validation_ratio: share of the training images to hold out, whole cities at random.
        seed: of this and of the subset.
        subset: images in it, at most.
        shared_cities: accept cities that are in ``train`` and in ``val``.
        held_out: cities, or ``<city>_<sequence>``, to hold out instead of drawing them.
        num_threads: files decoded at a time.

    Returns:
        The folder with the datalist.

    Raises:
        DataError: every problem of the files.
    """
    root, target = folder.resolve(), (output_dir or folder).resolve()
    sections = make_sections(root, validation_ratio, seed, subset, shared_cities, held_out)
    _require_complete(root, sections)
    _require_writable(target)
    placed = {name: [_placed(item, root, target) for item in items] for name, items in sections.items()}
    found = {name: {path: label_ids_of(path) for path in _bar(paths)} for name, paths in _maps(placed, target).items()}
    _verify(placed, target, num_threads)
    write_if_new(target / "datalist.json", datalist_content(root.name, placed, _union(found["training"])))
    facts = {
        "dataset": "Cityscapes layout",
        "page": PAGE,
        "folder": root.name,
        "generator": "data_prep/cityscapes.py",
        "generator_version": GENERATOR_VERSION,
        "parameters": {
            "validation_ratio": validation_ratio,
            "seed": seed,
            "subset": subset,
            "shared_cities": shared_cities,
            "held_out": list(held_out) if held_out is not None else None,
        },
        "images": {name: len(items) for name, items in placed.items()},
        "label_ids": {name: sorted(_union(maps)) for name, maps in found.items()},
    }
    files = sorted({target / value for items in placed.values() for item in items for value in item.values()})
    written = provenance([Path(os.path.normpath(path)) for path in files])
    write_record(target, {**facts, "total_bytes": written["total_bytes"], "files": written["files"]})
    print(f"{target}: " + ", ".join(f"{name} {count(len(items), 'image')}" for name, items in placed.items()))
    return target


def _require_complete(root: Path, sections: Mapping[str, Sequence[Item]]) -> None:
    """Every image needs its mask or drawing, and the reverse; a split without any image folder is left out.

    gtCoarse.zip has the drawings of ``train_extra``, too, whose images are a large download of their own.
    """
    problems = []
    for name, items in sections.items():
        needed, package = ("coarse", "gtCoarse") if name == "extra" else ("label", "gtFine")
        problems += [
            f"{item['image']}: has neither {package}_labelIds.png nor {package}_polygons.json; unpack {package}*.zip"
            for item in items
            if needed not in item
        ]
        drawn = [item for item in items if "coarse" in item]
        if name in ("training", "validation") and drawn:
            problems += [
                f"{item['image']}: has no drawing in gtCoarse, though {len(drawn)} others have; unpack gtCoarse.zip"
                for item in items
                if "coarse" not in item
            ]
    for split in SPLITS.values():
        stray = stray_files(root, split, find_frames(root, split))
        if stray and not (root / "leftImg8bit" / split).is_dir():
            print(f"{root}: there is no leftImg8bit/{split}; {count(len(stray), 'drawing')} of its images left out")
            continue
        problems += [
            f"{name}: there is no image leftImg8bit/{split}/ for it; unpack leftImg8bit*.zip" for name in stray
        ]
    _raise(problems, root)


def _raise(problems: Sequence[str], root: Path) -> None:
    if problems:
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        lines = "".join(f"\n  - {problem}" for problem in problems[:20])
        raise DataError(f"{root}: {count(len(problems), 'problem')}:{lines}{more}")


def _placed(item: Item, root: Path, target: Path) -> Item:
    """Files relative to the datalist; label maps that are described by polygons only are painted beside it."""
    placed = {}
    for key, name in item.items():
        path = root / name
        if name.endswith("_polygons.json"):
            path = target / "painted" / name.replace("_polygons.json", "_labelIds.png")
            if not path.is_file():
                paint_polygons(root / name, path)
        placed[key] = Path(os.path.relpath(path, target)).as_posix()
    return placed


def _maps(sections: Mapping[str, Sequence[Item]], target: Path) -> dict[str, list[Path]]:
    """Label maps of each section: the masks, or drawings where there are no masks."""
    return {
        name: [Path(os.path.normpath(target / item["label" if "label" in item else "coarse"])) for item in items]
        for name, items in sections.items()
    }


def _union(maps: Mapping[Path, set[int]]) -> set[int]:
    return set().union(*maps.values()) if maps else set()


def _bar(paths: Sequence[Path]) -> Any:
    return tqdm(paths, desc="label maps", unit="file", disable=None)


def _verify(sections: Mapping[str, Sequence[Item]], target: Path, num_threads: int) -> None:
    """Decode everything and compare sizes; pictures of one section are of one size or not, as they come."""
    absolute = {
        name: [{key: os.path.normpath(target / value) for key, value in item.items()} for item in items]
        for name, items in sections.items()
        if name != "subset"  # of training, which is looked at anyway
    }
    verify_datalist(
        absolute,
        label_keys=("label", "coarse"),
        label_values=sorted(KNOWN_IDS),
        mask_keys=(),
        num_threads=num_threads,
    )


def _require_writable(target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{target}: cannot be made ({error.strerror}); choose another --output_dir") from error
    if not os.access(target, os.W_OK):
        raise DataError(f"{target}: cannot be written to; choose another --output_dir")


# --- command line ------------------------------------------------------------------------------------------------


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Verify and list street scenes in the layout of Cityscapes.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where leftImg8bit and gtFine lie")
    add("--output_dir", type=Path, help="where the datalist goes (default: --folder)")
    add("--validation_ratio", type=_ratio, default=0.15, help="training images to hold out (default: 0.15)")
    add("--held_out", nargs="+", help="cities or <city>_<sequence> to hold out instead of drawing them")
    add("--seed", type=int, default=0, help="of what is held out and of the subset (default: 0)")
    add("--subset", type=int, default=SUBSET, help=f"training images in the section subset (default: {SUBSET})")
    add("--shared-cities", action="store_true", help="accept cities that are in train and in val")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    args = _parser().parse_args(argv)
    try:
        root = prepare(
            args.folder,
            args.output_dir,
            args.validation_ratio,
            args.seed,
            args.subset,
            args.shared_cities,
            args.held_out,
        )
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    config = "bundles/cityscapes/train.json"
    print(
        f"next: python -m monai.bundle run training --config_file {config} --dataset_dir {shlex.quote(os.fspath(root))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
