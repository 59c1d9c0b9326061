"""Label maps of several folders, on one grid, and what 255 means in them.

Masks that belong together are read alike. Where they have 0 and 255 and no other value, they are binary, as pictures of
masks are, and 255 is class 1; otherwise classes are numbered and 255 is unlabeled, also where there is nothing but 255.
That goes for any format, for the values mean the same in all. In drawings 255 is always nothing drawn, and in files of
segments a segment like others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.cli.main import CommandError
from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError
from medcoarse.readers.claims import folded
from medcoarse.readers.drawing import Drawing, Grid
from medcoarse.readers.formats import read_drawing
from medcoarse.readers.placement import place

Labels = NDArray[np.uint8]


def are_binary(masks: Sequence[Path]) -> bool:
    """Whether masks that belong together have the structure as 255, see above.

    Raises:
        CommandError: what `read_labels` says, or some have classes without any 255 and others 255 without classes.
    """
    marked, numbered = list[Path](), list[Path]()
    for mask in masks:
        labels, _, segments = read_labels(mask)
        ground, top = bool((labels == 0).any()), bool((labels == UNLABELED).any())
        classes = bool(((labels > 0) & (labels < UNLABELED)).any())
        if not segments and classes and top:
            return False
        if not segments and (classes or (ground and top)):
            (numbered if classes else marked).append(mask)
    if marked and numbered:
        raise CommandError(
            f"{marked[0].name} has 255 and no class, {numbered[0].name} has classes and no 255; is 255 the structure "
            "or unlabeled? write all masks of a folder alike: 0 and 255, or 0, 1, ... and 255 for unlabeled"
        )
    return bool(marked)


def read_labels(
    path: Path, class_names: Sequence[str] | None = None, binary: bool = False
) -> tuple[Labels, Grid, bool]:
    """A label map *S, its grid, and whether the file holds segments; what lies in no segment is background.

    Args:
        path: of any format that is read.
        class_names: background first: a segment is the class of its name, in capitals or not. Without them it is that
            of its number.
        binary: whether 255 is class 1, see `are_binary`; in files of segments it never is.

    Raises:
        CommandError: damaged, no label map, segments that overlap or have other names.
    """
    try:
        drawing = read_drawing(path)
    except DataError as error:
        raise CommandError(str(error)) from None
    if len(drawing.layers) != 1:
        raise CommandError(f"{path}: its segments overlap; a label map has one class at a voxel")
    values = drawing.layers[0].values
    if drawing.segments and class_names:
        values = _by_name(path, drawing, class_names)
    if values.max(initial=0) > UNLABELED:
        raise CommandError(f"{path}: holds values up to {values.max()}, at most 254 classes are compared")
    if binary and not drawing.segments:
        values = values == UNLABELED
    return np.asarray(values, np.uint8), drawing.grid, drawing.segments


def on_grid(labels: Labels, grid: Grid, target: Grid, path: Path, segments: bool) -> Labels:
    """A label map on the grid of another, if that is the same or the file holds segments, which are cut to a box.

    Raises:
        CommandError: another grid.
    """
    try:
        placed: Labels = place(labels[None], grid, target, path, [0], segments=segments)[0]
        return placed
    except DataError as error:
        raise CommandError(str(error)) from None


def _by_name(path: Path, drawing: Drawing, class_names: Sequence[str]) -> NDArray[Any]:
    names: Mapping[int, str] = drawing.layers[0].names
    values = drawing.layers[0].values
    classes = {folded(name): label for label, name in enumerate(class_names)}
    table = np.zeros(int(values.max(initial=0)) + 1, np.uint8)
    for value in filter(None, np.unique(values).tolist()):
        if folded(names.get(value, "")) not in classes:
            raise CommandError(f"{path}: segment {names.get(value, value)!r} is none of {list(class_names)}")
        table[value] = classes[folded(names[value])]
    return np.asarray(table[values])
