"""Label maps of several folders, on one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.cli.main import CommandError
from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError
from medcoarse.readers.drawing import Drawing, Grid
from medcoarse.readers.formats import read_drawing
from medcoarse.readers.placement import place

Labels = NDArray[np.uint8]


def read_labels(path: Path, class_names: Sequence[str] | None = None) -> tuple[Labels, Grid, bool]:
    """A label map *S, its grid, and whether the file holds segments; what lies in no segment is background.

    Args:
        path: of any format that is read.
        class_names: background first: a segment is the class of its name. Without them it is that of its number.

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
    table = np.zeros(int(values.max(initial=0)) + 1, np.uint8)
    for value in np.unique(values):
        if value and names.get(int(value), "") not in class_names:
            raise CommandError(f"{path}: segment {names.get(int(value), value)!r} is none of {list(class_names)}")
        table[value] = list(class_names).index(names[int(value)]) if value else 0
    return np.asarray(table[values])
