"""Label maps of several folders, on one grid, and what 255 means in them.

Masks that belong together are read alike. Where they have 0 and 255 and no other value, they are binary, as pictures of
masks are, and 255 is class 1; otherwise classes are numbered and 255 is unlabeled, also where there is nothing but 255.
That goes for any format, for the values mean the same in all. In drawings 255 is always nothing drawn, and in files of
segments a segment like others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.cli.main import CommandError
from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError
from medcoarse.readers.drawing import MAX_VOXELS, Drawing, Grid
from medcoarse.readers.formats import read_drawing
from medcoarse.readers.masks import mask_labels
from medcoarse.readers.placement import place

Labels = NDArray[np.uint8]


def are_binary(masks: Sequence[Path]) -> bool:
    """Whether masks that belong together have the structure as 255, see above.

    Raises:
        CommandError: what `read_labels` says, or some have classes without any 255 and others 255 without classes.
    """
    marked, numbered = list[Path](), list[Path]()
    for mask in masks:
        drawing = _read(mask)
        if drawing.segments:
            continue
        labels = _values(mask, drawing)
        ground, top = bool((labels == 0).any()), bool((labels == UNLABELED).any())
        classes = bool(((labels > 0) & (labels < UNLABELED)).any())
        if classes and top:
            return False
        if classes or (ground and top):
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
        class_names: background first: a segment is the class of its name, in capitals or not, and those of background
            give way to the others. Without them it is that of its number.
        binary: whether 255 is class 1, see `are_binary`; in files of segments it never is.

    Raises:
        CommandError: damaged, no label map, segments that overlap or have other names, or both 1 and 255 in a binary
            one.
    """
    drawing = _read(path)
    if drawing.segments and not class_names:
        return np.asarray(_values(path, drawing), np.uint8), drawing.grid, True
    try:
        names = class_names if class_names and drawing.segments else _numbered(path, drawing)
        return mask_labels(drawing, names, path, binary), drawing.grid, drawing.segments
    except DataError as error:
        raise CommandError(str(error)) from None


def _read(path: Path) -> Drawing:
    try:
        return read_drawing(path)
    except DataError as error:
        raise CommandError(str(error)) from None


def _values(path: Path, drawing: Drawing) -> NDArray[Any]:
    """The numbers in a file, of one layer."""
    if len(drawing.layers) > 1:
        raise CommandError(
            f"{path}: its segments lie in several layers, each with numbers of its own; save it as a label map, or "
            "pass --class_names to the commands that have it"
        )
    values = drawing.layers[0].values
    if values.max(initial=0) > UNLABELED:
        raise CommandError(f"{path}: holds values up to {values.max()}, at most 254 classes are compared")
    return values


def _numbered(path: Path, drawing: Drawing) -> list[str]:
    """Names of as many classes as there are numbers."""
    return [str(number) for number in range(int(_values(path, drawing).max(initial=0)) + 1)]


def common_grid(grid: Grid, other: Grid) -> Grid:
    """A grid on the lattice of the first that both lie in, as files of segments are cut to boxes.

    Example:
        >>> far = np.eye(4)
        >>> far[0, 3] = -2
        >>> both = common_grid(Grid((3, 4, 5), np.eye(4)), Grid((2, 6, 5), far))
        >>> both.shape, both.affine[:3, 3].tolist()
        ((5, 6, 5), [-2.0, 0.0, 0.0])
    """
    if grid.affine is None or other.affine is None or len(grid.shape) != len(other.shape):
        return grid
    axes = len(grid.shape)
    steps = np.rint(np.linalg.inv(grid.affine) @ other.affine)
    ends = steps[:axes, :axes] * (np.array(other.shape) - 1)
    low = np.minimum(0, steps[:axes, 3] + ends.clip(max=0).sum(1))
    high = np.maximum(np.array(grid.shape) - 1, steps[:axes, 3] + ends.clip(min=0).sum(1))
    shift = np.eye(4)
    shift[:axes, 3] = low
    if np.prod(high - low + 1) > MAX_VOXELS:  # they lie in no one image
        return grid
    return replace(grid, shape=tuple(int(size) for size in high - low + 1), affine=grid.affine @ shift)


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
