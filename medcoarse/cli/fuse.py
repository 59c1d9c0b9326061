"""Make one label map out of several annotators' of the same images.

One folder for each annotator, files of the same name (or one that begins with it) in each; an annotator may have left
out images. 255 is nothing drawn. Where no class wins, and where nobody drew, the result is 255.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from medcoarse.cli.files import find_drawings, new_folder
from medcoarse.cli.label_maps import on_grid, read_labels
from medcoarse.cli.main import CommandError
from medcoarse.files import write_json
from medcoarse.readers.drawing import Grid
from medcoarse.writers.formats import stem_of, write_segmentation
from medcoarse.writers.segmentation import make_segmentation

EXAMPLES = """examples:
  medcoarse fuse ada/ ben/ cleo/ --output_dir fused
  medcoarse fuse ada/ ben/ cleo/ --output_dir fused --method staple
"""
METHODS = ("majority", "mean", "staple", "spatial_staple")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("folders", metavar="FOLDER", nargs="+", help="two or more folders of label maps, one for each annotator")
    add("--output_dir", required=True, help="where the label maps go, and fusion.json")
    add(
        "--method",
        choices=METHODS,
        default="majority",
        help="mean: the class with most votes, the lowest of equal ones",
    )
    add("--format", choices=("nii.gz", "nrrd", "png"), help="by default PNG for pictures, else NIfTI")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")


def run(options: argparse.Namespace) -> int:
    """Fuse image after image."""
    if len(options.folders) < 2:
        raise CommandError("fusion needs the folders of two or more annotators")
    annotators = [{stem_of(path): path for path in find_drawings(folder)} for folder in options.folders]
    names = sorted(set().union(*annotators))
    lonely = [name for name in names if sum(name in files for files in annotators) < 2]
    if lonely:
        raise CommandError(
            f"{len(lonely)} of {len(names)} images have one annotator only, first {lonely[0]!r}; files of one image "
            "have the same name in each folder"
        )
    output = new_folder(options.output_dir, options.overwrite)
    record: dict[str, Any] = {"method": options.method, "annotators": options.folders, "images": {}}
    for number, name in enumerate(names, 1):
        values, grid = _stack([files.get(name) for files in annotators])
        fused, facts = _fuse(values, options.method, grid)
        suffix = "." + (options.format or ("png" if grid.affine is None else "nii.gz"))
        classes = ["background", *(f"class {k}" for k in range(1, _num_classes(values)))]
        write_segmentation(output / f"{name}{suffix}", make_segmentation(fused, grid.affine, classes))
        record["images"][name] = facts
        print(f"[{number}/{len(names)}] {name}", flush=True)
    write_json(output / "fusion.json", record)
    return 0


def _stack(paths: list[Path | None]) -> tuple[Any, Grid]:
    """(R, *S), 255 for annotators who left the image out."""
    read = [(path, *read_labels(path)) for path in paths if path is not None]
    target = next((grid for _, _, grid, segments in read if not segments), read[0][2])
    placed = {path: on_grid(labels, grid, target, path, segments) for path, labels, grid, segments in read}
    nothing = np.full(target.shape, 255, np.uint8)
    return np.stack([nothing if path is None else placed[path] for path in paths]), target


def _num_classes(values: Any) -> int:
    return max(int(values[values != 255].max(initial=0)) + 1, 2)


def _fuse(values: Any, method: str, grid: Grid) -> tuple[Any, dict[str, Any]]:
    """The fused label map *S, and what was estimated of the annotators."""
    import torch

    from medcoarse.files import plain
    from medcoarse.fusion.spatial_staple import spatial_staple
    from medcoarse.fusion.staple import staple
    from medcoarse.fusion.voting import hard_label, majority_vote, mean_label

    maps, number = torch.from_numpy(values)[None], _num_classes(values)
    if method == "majority":
        return majority_vote(maps, number)[0, 0].numpy(), {}
    if method == "mean":
        return hard_label(mean_label(maps, number))[0, 0].numpy(), {}
    if method == "staple":
        found = staple(maps, number)
        return hard_label(found.probs)[0, 0].numpy(), {"confusion": plain(found.cm[0])}
    steps = np.ones(3) if grid.affine is None else np.linalg.norm(grid.affine[:3, :3], axis=0)
    local = spatial_staple(maps, number, spacing=steps[: values.ndim - 1].tolist())
    return hard_label(local.probs)[0, 0].numpy(), {"confusion": plain(local.global_cm[0])}
