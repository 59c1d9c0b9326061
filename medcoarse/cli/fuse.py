"""Make one label map out of several annotators' of the same images.

One folder for each annotator, or one for all. Files of one image have the same name in each folder, or one goes on from
the other after a _, -, . or blank, or they differ in a last part that is no number: case1_ada.png and case1_ben.png are
of case1. In one folder for all the last part is who drew; where each has a folder, it is that if all files of the
folder end alike. An annotator may have left out images.

Files are taken for masks: 0 is background, and so is what lies in no segment; 255 is nothing drawn. But where the files
of an annotator have 0 and 255 and no other value, they are binary, and 255 is class 1. Segments (3D Slicer's, DICOM
SEG, ...) are matched by name. They keep their numbers if these mean the same in all files; otherwise names are numbered
in their order, which is said, and a label map beside them is refused without --class_names.

Outlines (RTSTRUCT, QuPath's GeoJSON) are filled on the voxels of their images: --images.

Of strokes 0, or what lies in no segment, is nothing drawn: pass --mapping, which says what values mean, as it does to
`medcoarse train`. The result has 0 for background, classes in the order of their values or names, and 255 where nobody
drew: `medcoarse train --mapping unlabeled_255` learns from it.

Where no class wins, and where nobody drew, the result is 255.

How everybody drew is told against the result, in which each one's own vote counts, too, over all images together: a
table is printed, and fusion.json has it with the confusion matrices [drawn class][true class], whose columns sum to 1.
For majority the truth are the label maps, so that a draw is not counted and two people alone always agree; for mean it
is the share of votes, for the others the probability that they estimate.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from medcoarse.cli.files import belonging, drawn_stem, find_drawings, listed, new_folder
from medcoarse.cli.image_grids import find_grids, named_by_series
from medcoarse.cli.label_maps import (
    Labels,
    MaskReader,
    add_segments,
    binary_of,
    common_grid,
    look,
    name_classes,
    on_grid,
    only_named,
    require_order,
)
from medcoarse.cli.main import CommandError
from medcoarse.confusion import UNLABELED
from medcoarse.files import write_json
from medcoarse.inspection import count
from medcoarse.readers.drawing import Grid
from medcoarse.writers.formats import write_segmentation
from medcoarse.writers.segmentation import make_segmentation

EXAMPLES = """examples:
  medcoarse fuse ada/ ben/ cleo/ --output_dir fused
  medcoarse fuse ada/ ben/ cleo/ --output_dir fused --method staple
  medcoarse fuse drawn/ --output_dir fused            case1_ada.nii.gz, case1_ben.nii.gz, ...
  medcoarse fuse drawn/ --output_dir fused --by_image            case1/ada.nii.gz, case1/ben.nii.gz, ...
contours of several readers (RTSTRUCT), without the body and the couch:
  medcoarse fuse ada/ ben/ --output_dir fused --images series/ --class_names background liver tumour --only_named
strokes of ITK-SNAP, label 3 was used for background:
  medcoarse fuse ada/ ben/ --output_dir fused --mapping itksnap --background 3
  medcoarse train images/ fused/ --output_dir run --mapping unlabeled_255
"""
_ENDING = re.compile(r"(.+)[_\-. ](?=[^_\-. ]*[^\d_\-. ])[^_\-. ]+")
Reader = Callable[[Path], tuple[Labels, Grid, bool, int]]
"""Label map, its grid, whether the file holds segments, and what it says where it has no voxels."""

METHODS = ("majority", "mean", "staple", "spatial_staple")
_SLAB = 16  # planes or columns that are counted at a time, in double precision
_MOST = 8  # classes in the printed table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add("folders", metavar="FOLDER", nargs="+", help="of label maps: one for each annotator, or one for all")
    add("--output_dir", required=True, help="where the label maps go, and fusion.json")
    add(
        "--method",
        choices=METHODS,
        default="majority",
        help="mean: the class with most votes, the lowest of equal ones",
    )
    add("--format", choices=("nii.gz", "nrrd", "png"), help="by default PNG for pictures, else NIfTI")
    add("--partial", action="store_true", help="leave out images of which there is one label map alone")
    add(
        "--by_image",
        action="store_true",
        help="every folder in FOLDER is of an image, and its files of who drew: case1/ada.png, case1/case1_ada.png or "
        "case1/ada_case1.png",
    )
    add(
        "--mapping",
        help="of strokes, what values mean: itksnap, unlabeled_255, monailabel_scribbles, slicer, or JSON; dense: they "
        "are masks, which is so without it, but then files that look like strokes are refused or warned of",
    )
    add("--background", metavar="VALUE", help="of strokes: value or name that background was drawn with")
    add(
        "--class_names",
        nargs="+",
        metavar="NAME",
        help="background first; segments are recognized by them; after the folders",
    )
    add_segments(add)
    add("--overwrite", action="store_true", help="write into a folder that is not empty")


def run(options: argparse.Namespace) -> int:
    """Fuse image after image."""
    _require_different(options.folders)
    files = {folder: find_drawings(folder) for folder in options.folders}
    if options.by_image:
        named = in_folders_of_images(files)
    else:
        if len(files) == 1:
            _require_one_place(options.folders[0], files[options.folders[0]])
        everybody = [file for of_folder in files.values() for file in of_folder]
        named = by_name(files, named_by_series(everybody, options.images) if len(files) > 1 else {})
    drawn = by_annotator(named, options.partial)
    if len(files) == 1 or options.by_image:
        drawn = dict(sorted(drawn.items()))
    used = {file for by in drawn.values() for file in by.values()}
    left_out = [file for of_folder in files.values() for file in of_folder if file not in used]
    if left_out:
        print(f"LEFT OUT, for there is no other of their images: {len(left_out)}, {listed(left_out)}")
    annotators = list(drawn.values())
    names = sorted(set().union(*annotators))
    grids = find_grids({file: [image] for by in annotators for image, file in by.items()}, options.images)
    read, classes = _understood(annotators, options, grids)
    output = new_folder(options.output_dir, options.overwrite)
    record: dict[str, Any] = {"method": options.method, "annotators": list(drawn), "class_names": classes, "images": {}}
    record["left_out"] = [str(file) for file in left_out]
    counts: Any = 0
    sizes = np.zeros((2, len(classes)))
    for number, name in enumerate(names, 1):
        values, grid = _stack([files.get(name) for files in annotators], read)
        fused, tables, facts = _fuse(values, options.method, len(classes), grid)
        counts += tables
        sizes += _sizes(values, fused, len(classes))
        suffix = "." + (options.format or ("png" if grid.affine is None else "nii.gz"))
        write_segmentation(output / f"{name}{suffix}", make_segmentation(fused, grid.affine, classes))
        record["images"][name] = facts | {"files": [str(files[name]) for files in annotators if name in files]}
        print(f"[{number}/{len(names)}] {name}", flush=True)
    num_images = {who: len(files) for who, files in drawn.items()}
    record["reliability"] = reliability(counts, num_images, classes)
    write_json(output / "fusion.json", record)
    print(_page(record["reliability"], len(names), classes))
    if not options.mapping and (warning := lost(classes, *sizes)):
        print(warning)
    return 0


def _understood(
    annotators: Sequence[Mapping[str, Path]], options: argparse.Namespace, grids: Mapping[Path, Grid]
) -> tuple[Reader, list[str]]:
    """How files are read, as strokes or as masks, and the classes, of all together, so that every image has the
    same.
    """
    from medcoarse.cli.stroke_maps import require_masks, understand_strokes  # takes seconds

    shown = look((file for files in annotators for file in files.values()), grids)
    if options.mapping not in (None, "dense"):
        strokes = understand_strokes(
            shown, options.mapping, options.background, options.class_names, options.only_named, options.nested, grids
        )
        return strokes.read, strokes.names
    if options.background:
        raise CommandError("--background is of strokes: pass --mapping too, such as itksnap or slicer")
    if options.only_named:
        shown, lacking = only_named(shown, options.class_names, {"files": list(shown)})
        print("\n".join(lacking))
    if options.mapping is None:
        require_masks(shown)
    binary = binary_of([files.values() for files in annotators], shown)
    classes = name_classes(shown, binary, options.class_names)
    if classes.said:
        print(classes.said)
    require_order(options.nested, bool(options.class_names), classes.names)
    masks = MaskReader(classes.names, binary, options.nested, options.only_named, grids)
    return lambda path: (*masks(path), 0), classes.names


def _require_different(folders: Sequence[str]) -> None:
    """Refuse a folder that is named twice: it would count as two people who agree."""
    times = Counter(Path(folder).resolve() for folder in folders)
    if twice := [folder for folder in folders if times[Path(folder).resolve()] > 1]:
        raise CommandError(f"{twice[0]}: is named {len(twice)} times; name the folder of each annotator once")


def _require_one_place(folder: str, files: Sequence[Path]) -> None:
    """Refuse folders in the only folder: each may be of an annotator, or of an image, and names do not tell."""
    places = sorted({str(file.parent) for file in files})
    if len(places) > 1:
        more = " ..." if len(places) > 3 else ""
        raise CommandError(
            f"{folder}: holds label maps in {len(places)} places; name the folder of each annotator: medcoarse fuse "
            f"{' '.join(map(shlex.quote, places[:3]))}{more}, or put the files of all into one; or pass --by_image if "
            "each of these folders is of an image"
        )


def in_folders_of_images(folders: Mapping[str, Sequence[Path]]) -> list[tuple[str | None, str, Path]]:
    """Image, annotator and file, where each folder in those that are given is of an image: its files are called as who
    drew, with the name of the image before or after it or not.

    Args:
        folders: folder -> files.

    Raises:
        CommandError: a file elsewhere, or two folders of one image.

    Example:
        >>> files = [Path("all/p1/p1_ada.png"), Path("all/p1/ben.png"), Path("all/p2/ada_p2.png")]
        >>> [found[:2] for found in in_folders_of_images({"all": files})]
        [('p1', 'ada'), ('p1', 'ben'), ('p2', 'ada')]
    """
    found = list[tuple[str | None, str, Path]]()
    places: dict[str, Path] = {}
    for folder, files in folders.items():
        for file in files:
            if file.parent.parent != Path(folder) or file.parent == Path(folder):
                raise CommandError(
                    f"{file}: with --by_image every file lies in a folder of its image, and that in {folder}, such as "
                    f"{Path(folder, 'case1', file.name)}; move it, or pass the folder that holds those of the images"
                )
            image = file.parent.name
            if places.setdefault(image, file.parent) != file.parent:
                raise CommandError(
                    f"{places[image]} and {file.parent} are both of {image!r}; give different images different names, "
                    "or put all files of one image into one folder"
                )
            found.append((image, _without(drawn_stem(file), image), file))
    return found


def _without(stem: str, image: str) -> str:
    """Who drew: a name without that of the image at its start or its end."""
    start, end = (rf"{re.escape(image)}(?:[_\-. ]|$)", rf"(?:^|[_\-. ]){re.escape(image)}$")
    if re.match(start, stem):
        return re.sub(f"^{start}", "", stem)
    return re.sub(end, "", stem)


def by_name(
    folders: Mapping[str, Sequence[Path]], called: Mapping[Path, str] = MappingProxyType({})
) -> list[tuple[str | None, str, Path]]:
    """Image, annotator and file, where an annotator is a folder, or the end of a name in the only one; where no other
    file is of it the image is None.

    Args:
        folders: folder -> files.
        called: what some files are called, in place of their names.

    Example:
        >>> [found[:2] for found in by_name({"all": [Path("a_1_ada.png"), Path("a_1_ben.png"), Path("b.png")]})]
        [('a_1', 'ada'), ('a_1', 'ben'), (None, '')]
    """
    stems = {file: called.get(file) or drawn_stem(file) for files in folders.values() for file in files}
    images = image_names([[stems[file] for file in files] for files in folders.values()])
    found = list[tuple[str | None, str, Path]]()
    for folder, files in folders.items():
        for file in files:
            stem = stems[file]
            image = belonging(stem, images)
            ending = "" if image is None else stem[len(image) + 1 :]
            found.append((image, folder if len(folders) > 1 else ending, file))
    return found


def by_annotator(named: Sequence[tuple[str | None, str, Path]], partial: bool = False) -> dict[str, dict[str, Path]]:
    """Who drew what: annotator -> image -> file.

    Args:
        named: image, annotator and file.
        partial: whether to leave out what only one annotator has, unless that is all there is.

    Raises:
        CommandError: files of an image that one annotator has, or two of one annotator.

    Example:
        >>> by_annotator([("a", "ada", Path("1.png")), ("a", "ben", Path("2.png"))])["ben"]["a"].name
        '2.png'
    """
    found: dict[str, dict[str, Path]] = {}
    for image, who, file in named:
        both = found.setdefault(who, {}).setdefault(image, file) if image is not None else file
        if both is not file:
            raise CommandError(
                f"{both} and {file} are both of {image!r} by one annotator; keep one, or name the folder of each "
                "annotator"
            )
    times = Counter(image for drawn in found.values() for image in drawn)
    alone = [file for image, _, file in named if image is None or times[image] < 2]
    shared = any(number > 1 for number in times.values())
    if alone and not (partial and shared):
        leave_out = "; pass --partial to leave them out" if shared else ""
        raise CommandError(
            f"{len(alone)} of {len(named)} files are the only ones of their images: {listed(alone)}{leave_out}. Files "
            "of one image have the same name in each folder, or the same but for who drew, such as case1_ada.png and "
            "case1_ben.png"
        )
    found = {who: {name: file for name, file in drawn.items() if times[name] > 1} for who, drawn in found.items()}
    return {who: drawn for who, drawn in found.items() if drawn}


def image_names(folders: Sequence[Sequence[str]]) -> set[str]:
    """What images are called: names that two folders have, that another goes on from, or that two share but for a last
    part that is no number. Of several folders that part has to be the same in all of a folder, and none that images
    end with which two folders have: it tells who drew, and not, say, which eye.

    Example:
        >>> sorted(image_names([["a", "b", "c_ada"], ["a", "b_2", "c_ben"]]))
        ['a', 'b', 'c']
        >>> sorted(image_names([["a_left", "a_right", "b_left"], ["a_left", "a_right", "b_right"]]))
        ['a_left', 'a_right']
    """
    times = Counter(name for names in folders for name in set(names))
    images = {name for name, number in times.items() if number > 1}
    taken = {ending for name in images if (ending := _parted(name)[1])}
    begun = {belonging(name, times.keys() - {name}) for name in times.keys() - images}
    images |= {name for name in begun if name}
    starts = Counter[str]()
    for names in folders:
        parts = [_parted(name) for name in names if belonging(name, images) is None]
        endings = {ending for _, ending in parts if ending}
        if len(folders) == 1 or (len(endings) == 1 and not endings & taken):
            starts.update(start for start, ending in parts if ending)
    return images | {name for name, number in starts.items() if number > 1}


def _parted(name: str) -> tuple[str, str]:
    """A name without its last part, and that part, if it is no number."""
    found = _ENDING.fullmatch(name)
    return (found[1], name[len(found[1]) + 1 :]) if found else (name, "")


def _stack(paths: list[Path | None], read: Reader) -> tuple[Any, Grid]:
    """(R, *S), 255 for annotators who left the image out."""
    found = {path: read(path) for path in paths if path is not None}
    grids = {path: grid for path, (_, grid, _, _) in found.items()}
    whole = [grid for _, grid, segments, _ in found.values() if not segments]  # files of segments are cut to boxes
    target = whole[0] if whole else common_grid(grids)
    placed = {
        path: on_grid(labels, grid, target, path, segments, outside)
        for path, (labels, grid, segments, outside) in found.items()
    }
    nothing = np.full(target.shape, UNLABELED, np.uint8)
    return np.stack([nothing if path is None else placed[path] for path in paths]), target


def _sizes(values: Any, fused: Any, num_classes: int) -> Any:
    """Voxels of each class (2, L): drawn by the mean of those who drew, and fused."""
    drew = [one for one in values if (one != UNLABELED).any()]
    drawn = [np.bincount(one.ravel(), minlength=UNLABELED + 1)[:num_classes] for one in (*drew, fused)]
    return np.stack([np.mean(drawn[:-1], axis=0) if drew else np.zeros(num_classes), drawn[-1]])


def _fuse(values: Any, method: str, num_classes: int, grid: Grid) -> tuple[Any, Any, dict[str, Any]]:
    """The fused label map *S, counts (R, drawn, true), and the matrices of this image where the method has them."""
    import torch

    from medcoarse.files import plain
    from medcoarse.fusion.spatial_staple import spatial_staple
    from medcoarse.fusion.staple import staple
    from medcoarse.fusion.voting import hard_label, majority_vote, mean_label
    from medcoarse.metrics import annotation_counts

    maps, facts = torch.from_numpy(values)[None], dict[str, Any]()
    if method == "majority":
        label = majority_vote(maps, num_classes)
        return label[0, 0].numpy(), annotation_counts(maps, label, num_classes)[0], facts
    if method == "mean":
        probs = mean_label(maps, num_classes)
    elif method == "staple":
        found = staple(maps, num_classes)
        probs, facts = found.probs, {"confusion": plain(found.cm[0])}
    else:
        steps = np.ones(3) if grid.affine is None else np.linalg.norm(grid.affine[:3, :3], axis=0)
        local = spatial_staple(maps, num_classes, spacing=steps[: values.ndim - 1].tolist())
        probs, facts = local.probs, {"confusion": plain(local.global_cm[0])}
    return hard_label(probs)[0, 0].numpy(), _soft_counts(maps, probs), facts


def _soft_counts(maps: Any, probs: Any) -> Any:
    """What each annotator drew against the probabilities of what is true, slab by slab: (R, drawn, true)."""
    from medcoarse.metrics import soft_annotation_counts

    slabs = zip(maps.split(_SLAB, 2), probs.split(_SLAB, 2), strict=True)
    return sum(soft_annotation_counts(drawn, true)[0] for drawn, true in slabs)


def lost(names: Sequence[str], drawn: Sequence[float], kept: Sequence[float], share: float = 1 / 3) -> str | None:
    """A warning of structures of which little is left, as of strokes that are taken for masks.

    Args:
        names: of L classes, background first.
        drawn: voxels (L,), by the mean annotator of every image.
        kept: voxels (L,) in what was fused.
        share: that has to be left.

    Example:
        >>> lost(["background", "liver", "cyst"], [90, 9, 6], [100, 1, 5])
        'WARNING: little is left of liver (11%): ...'
        >>> lost(["background", "liver"], [90, 9], [91, 8])
    """
    found = [
        f"{name} ({left / said:.0%})"
        for name, said, left in list(zip(names, drawn, kept, strict=True))[1:]
        if said and left < share * said
    ]
    if not found:
        return None
    return (
        f"WARNING: little is left of {', '.join(found)}: those who drew hardly agree. If these are strokes, 0 or what "
        "lies in no segment was taken for background: pass --mapping, such as itksnap with --background VALUE, or "
        "slicer; --mapping dense if they are masks"
    )


def reliability(counts: Any, num_images: Mapping[str, int], class_names: Sequence[str]) -> dict[str, Any]:
    """How every annotator drew, from counts over all images that are divided once.

    Args:
        counts: voxels (R, drawn, true).
        num_images: that each annotator drew, by name.
        class_names: background first.

    Returns:
        For each annotator ``num_images``; ``accuracy``, the share of all voxels that is drawn as what they are;
        ``sensitivity``, the same of each class; and ``confusion``, ``[drawn][true]``, columns sum to 1. ``None`` where
        nothing was counted.

    Example:
        >>> import torch
        >>> found = reliability(torch.tensor([[[6, 1], [0, 1]]]), {"ada": 2}, ["background", "class 1"])["ada"]
        >>> found["accuracy"], found["sensitivity"], found["confusion"]
        (0.875, {'background': 1.0, 'class 1': 0.5}, [[1.0, 0.5], [0.0, 0.5]])
    """
    from medcoarse.files import plain
    from medcoarse.metrics import conditional_table

    cm, hits = conditional_table(counts), counts.diagonal(dim1=-2, dim2=-1).sum(-1)
    accuracy = hits.double() / counts.sum((-2, -1))
    return {
        who: {
            "num_images": num_images[who],
            "accuracy": plain(accuracy[r]),
            "sensitivity": dict(zip(class_names, plain(cm[r].diagonal()), strict=True)),
            "confusion": plain(cm[r]),
        }
        for r, who in enumerate(num_images)
    }


def _page(rows: Mapping[str, Any], num_images: int, class_names: Sequence[str]) -> str:
    """Annotator by score."""
    shown = class_names[:_MOST]
    wide = max(map(len, rows))
    lines = [
        f"against what was fused, over {count(num_images, 'image')}: accuracy, and sensitivity of each class",
        " ".join([" " * wide, *(f"{title:>11}" for title in ("images", "accuracy", *shown))]),
    ]
    for who, row in rows.items():
        found = [row["accuracy"], *(row["sensitivity"][name] for name in shown)]
        numbers = ["-" if value is None else f"{value:.4f}" for value in found]
        lines.append(" ".join([f"{who:<{wide}}", *(f"{text:>11}" for text in (row["num_images"], *numbers))]))
    if len(shown) < len(class_names):
        lines.append(f"fusion.json has all {len(class_names)} classes")
    return "\n".join(lines)
