"""Drawings of strokes as label maps: what is not drawn says nothing, and is 255."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from medcoarse.cli.facts import find_classes, in_order_of_classes
from medcoarse.cli.label_maps import Labels, Shown, read_file
from medcoarse.cli.main import CommandError
from medcoarse.datalist import DataError
from medcoarse.readers.claims import KINDS, Claims, as_claims, claimed, folded, outside
from medcoarse.readers.drawing import Grid
from medcoarse.transforms.array import MergeStrokes


@dataclass(frozen=True)
class Strokes:
    """How the drawings of a command are read, all alike.

    Args:
        names: of the classes, background first.
        claims: what their values or names mean.
        nested: whether later classes cover earlier ones where segments overlap; otherwise nothing is drawn there.
        grids: of the images of outlines, see `medcoarse.cli.image_grids`.
    """

    names: list[str]
    claims: Claims
    nested: bool = False
    grids: Mapping[Path, Grid] = field(default_factory=dict)

    def read(self, path: Path) -> tuple[Labels, Grid, bool, int]:
        """A label map *S, 255 where nothing is drawn or the drawing contradicts itself; its grid, whether the file
        holds segments, and what it says where it has no voxels.

        Raises:
            CommandError: damaged, or something drawn that the mapping does not have.
        """
        drawing = read_file(path, self.grids)
        try:
            maps = claimed(drawing, self.claims, path, "last" if self.nested else "unlabeled")
        except DataError as error:
            raise CommandError(str(error)) from None
        beyond = [np.array(outside(drawing, self.claims, kind), np.uint8)[:, None] for kind in KINDS]
        merge = MergeStrokes(len(self.names))
        labels: Any = merge(*(maps[kind] for kind in KINDS))
        fill: Any = merge(*beyond)
        return labels[0], drawing.grid, drawing.segments, int(fill[0, 0])


def understand_strokes(
    shown: Mapping[Path, Shown],
    mapping: str,
    background: str | None,
    class_names: Sequence[str] | None,
    only_named: bool = False,
    nested: bool = False,
    grids: Mapping[Path, Grid] = MappingProxyType({}),
) -> Strokes:
    """What drawings say, by the rules of `medcoarse train`.

    Args:
        shown: what each of them shows.
        mapping: one of `medcoarse.readers.claims.PRESETS`, a JSON object, or a file of one.
        background: value or name of what is drawn as background.
        class_names: background first.
        only_named: whether names that are none of these say nothing.
        nested: whether segments lie in one another, later classes in earlier ones.
        grids: of the images of outlines.

    Raises:
        CommandError: a mapping that does not fit the drawings.
    """
    if class_names and (len(class_names) < 2 or len(set(class_names)) != len(class_names)):
        raise CommandError(f"--class_names must be different names, background first, got {' '.join(class_names)}")
    found = set[str]().union(
        *(one.names | one.unplaced if one.segments else map(str, one.values) for one in shown.values())
    )
    named = any(one.segments for one in shown.values())
    structures = class_names[1:] if class_names else None
    classes = find_classes(found, named, mapping, background, structures, only_named)
    if nested:
        classes = in_order_of_classes(classes, structures)
    try:
        claims = as_claims(classes.mapping, len(classes.names))
    except ValueError as error:
        raise CommandError(f"--mapping: {error}") from None
    names = list(class_names) if class_names else classes.names
    return Strokes(names, claims, nested, grids)


def require_masks(shown: Mapping[Path, Shown]) -> None:
    """Refuse files that say themselves that they are strokes: of what a structure is not, or of background beside
    voxels that nobody drew.

    Raises:
        CommandError: as said.
    """
    for path, one in shown.items():
        if stroke := _stroke(one.names, one.bare):
            raise CommandError(
                f"{path}: has a segment {stroke!r} and voxels in no segment; are these strokes, and nothing is drawn "
                "there? then pass --mapping slicer; --mapping dense if all that lies in no segment is background"
            )


def _stroke(names: Iterable[str], bare: bool) -> str | None:
    said = (name for name in sorted(names) if folded(name) == "background" or folded(name).startswith("not "))
    return next(said, None) if bare else None
