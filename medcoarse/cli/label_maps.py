"""Label maps of several folders, on one grid, and what their values and names mean.

Masks that belong together are read alike. Where they have 0 and 255 and no other value, they are binary, as pictures of
masks are, and 255 is class 1; otherwise classes are numbered and 255 is unlabeled, also where there is nothing but 255.
That goes for any format, for the values mean the same in all. In drawings 255 is always nothing drawn, and in files of
segments a segment like others.

Files of segments name what they hold, and a name means the same in all files of a command. Numbers need not: 3D Slicer
counts segments as they are made. Where they do they are kept; otherwise names are numbered in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.cli.main import CommandError
from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError
from medcoarse.readers.claims import class_named, drawn_names, folded
from medcoarse.readers.drawing import MAX_VOXELS, Drawing, Grid, NoGridError
from medcoarse.readers.formats import read_drawing
from medcoarse.readers.masks import mask_labels
from medcoarse.readers.placement import place

Labels = NDArray[np.uint8]

_BACKGROUND = "background"
_COMMON_IMAGE = 1 << 27  # voxels: 512 x 512 x 512
_MOST_TIMES = 100


@dataclass(frozen=True)
class Shown:
    """What a file shows.

    Args:
        segments: whether it holds segments.
        values: that occur in a label map; none of segments.
        named: number and name of the segments that are not empty.
        bare: whether voxels lie in no segment.
        unplaced: names of contours that do not lie on the image.
    """

    segments: bool
    values: frozenset[int] = frozenset()
    named: frozenset[tuple[int, str]] = frozenset()
    bare: bool = False
    unplaced: frozenset[str] = frozenset()

    @property
    def names(self) -> set[str]:
        """Of the segments that are not empty."""
        return {name for _, name in self.named}

    def highest(self, binary: bool) -> int:
        """The highest class of a label map; 255 is class 1 where it is binary, and otherwise none."""
        return max((1 if binary else value for value in self.values - ({0} if binary else {UNLABELED})), default=0)


@dataclass(frozen=True)
class Classes:
    """What the files of a command show.

    Args:
        names: of the classes, background first.
        said: what a person has to know of how they were found, or nothing.
    """

    names: list[str]
    said: str = ""


def add_segments(add: Callable[..., Any]) -> None:
    """The options of a command that reads segments, and outlines in DICOM or of QuPath."""
    add("--nested", action="store_true", help="where segments overlap, the class that comes later counts")
    add(
        "--only_named",
        action="store_true",
        help="leave out segments that are none of --class_names, as the body and the couch of an RTSTRUCT",
    )
    add("--images", metavar="FOLDER", help="of outlines (RTSTRUCT, GeoJSON): the images that they were drawn on")


def require_order(nested: bool, named: bool, class_names: Sequence[str]) -> None:
    """Refuse structures in one another of which nobody said which lies in which.

    Args:
        nested: whether they lie so.
        named: whether somebody named the classes in their order.
        class_names: background first.

    Raises:
        CommandError: as said.

    Example:
        >>> require_order(True, False, ["background", "liver", "tumour"])
        Traceback (most recent call last):
        medcoarse.cli.main.CommandError: --nested: which of liver, tumour lies in which? Pass --class_names, ...
    """
    if nested and not named and len(class_names) > 2:
        raise CommandError(
            f"--nested: which of {', '.join(class_names[1:])} lies in which? Pass --class_names, background first, "
            "then the outer ones"
        )


def look(paths: Iterable[Path], grids: Mapping[Path, Grid] = MappingProxyType({})) -> dict[Path, Shown]:
    """What files show; each is read and let go.

    Args:
        paths: the files.
        grids: of the images of outlines, see `medcoarse.cli.image_grids`.

    Raises:
        CommandError: a file that is damaged, or a label map of more than 255 values.
    """
    return {path: _shown(path, read_file(path, grids)) for path in dict.fromkeys(paths)}


def _shown(path: Path, drawing: Drawing) -> Shown:
    found = [drawn_names(layer) for layer in drawing.layers]
    if drawing.segments:
        named = frozenset((value, name) for names in found for value, name in names.items() if value)
        bare = bool(np.all([layer.values == 0 for layer in drawing.layers], axis=0).any())
        return Shown(True, named=named, bare=bare, unplaced=frozenset(drawing.unplaced))
    if max(found[0], default=0) > UNLABELED:
        raise CommandError(f"{path}: holds values up to {max(found[0])}, at most 254 classes are compared")
    return Shown(False, frozenset(found[0]))


def are_binary(masks: Mapping[Path, Shown]) -> bool:
    """Whether masks that belong together have the structure as 255, see above.

    Args:
        masks: what each of them shows.

    Raises:
        CommandError: some have classes without any 255 and others 255 without classes.

    Example:
        >>> are_binary({Path("a.png"): Shown(False, frozenset([0, 255])), Path("b.png"): Shown(False, frozenset([0]))})
        True
    """
    marked, numbered = list[Path](), list[Path]()
    for mask, shown in masks.items():
        classes, top = bool(shown.values - {0, UNLABELED}), UNLABELED in shown.values
        if classes and top:
            return False
        if classes or (0 in shown.values and top):
            (numbered if classes else marked).append(mask)
    if marked and numbered:
        raise CommandError(
            f"{marked[0].name} has 255 and no class, {numbered[0].name} has classes and no 255; is 255 the structure "
            "or unlabeled? write all masks of a folder alike: 0 and 255, or 0, 1, ... and 255 for unlabeled"
        )
    return bool(marked)


def binary_of(groups: Iterable[Collection[Path]], shown: Mapping[Path, Shown]) -> set[Path]:
    """The files that have the structure as 255, of groups that are read alike each.

    Raises:
        CommandError: what `are_binary` says.
    """
    found = set[Path]()
    for group in groups:
        maps = {path: shown[path] for path in group if not shown[path].segments}
        found |= maps.keys() if are_binary(maps) else set()
    return found


def name_classes(
    shown: Mapping[Path, Shown],
    binary: Collection[Path] = (),
    class_names: Sequence[str] | None = None,
) -> Classes:
    """The classes of all files of a command: those that are given, or else from names and numbers, see above.

    Args:
        shown: what each of them shows.
        binary: those that have the structure as 255.
        class_names: background first.

    Raises:
        CommandError: classes that the given names lack; names that may mean two classes; or a label map beside segments
            that are numbered in several ways.

    Example:
        >>> def slicer(*names):
        ...     return Shown(True, named=frozenset(enumerate(names, 1)))
        >>> name_classes({Path("a"): slicer("vessel", "edge"), Path("b"): slicer("Vessel")}).names
        ['background', 'Vessel', 'edge']
        >>> name_classes({Path("a"): slicer("vessel", "edge"), Path("b"): slicer("edge")})
        Classes(names=['background', 'edge', 'vessel'], said='segments are matched by name, ...: 1 edge, 2 vessel')
    """
    maps = {path: one.highest(path in binary) for path, one in shown.items() if not one.segments}
    if class_names:
        _require_named(shown, maps, class_names)
        return Classes(list(class_names))
    highest = max(maps.values(), default=0)
    segments = {path: one for path, one in shown.items() if one.named}
    if not segments:
        return Classes(_numbered({}, highest))
    names = _told_apart([one.names for one in segments.values()])
    kept = _kept(segments, names, highest)
    if kept:
        said = (
            f"label maps are read by the numbers of the segments beside them: {_listed(kept)}; pass --class_names if "
            "theirs mean something else"
        )
        return Classes(kept, said if highest else "")
    if highest:
        first = next(path for path, top in maps.items() if top)
        raise CommandError(
            f"{first}: is a label map, and the segments beside it have no numbers that mean the same in all files, so "
            f"nobody knows what its values mean; pass --class_names {_BACKGROUND} ..., in the order of its values"
        )
    found = _numbered(dict(enumerate(names, 1)), 0)
    said = f"segments are matched by name, for their numbers do not mean the same in all files: {_listed(found)}"
    return Classes(found, said)


def with_all_named(names: Sequence[str], shown: Mapping[Path, Shown], binary: Collection[Path] = ()) -> list[str]:
    """Names of classes, and of what files show beyond them: values of label maps, then segments.

    Args:
        names: background first.
        shown: what each file shows.
        binary: files in which 255 is class 1.

    Example:
        >>> segment = Shown(True, named=frozenset([(1, "Liver"), (2, "cyst")]))
        >>> with_all_named(["rest", "liver"], {Path("a"): segment, Path("b"): Shown(False, frozenset([0, 2]))})
        ['rest', 'liver', 'class 2', 'cyst']
    """
    highest = max((one.highest(path in binary) for path, one in shown.items() if not one.segments), default=0)
    found = [*names, *(f"class {number}" for number in range(len(names), highest + 1))]
    others = sorted({name for one in shown.values() for name in one.names if class_named(name, found) is None})
    return found + others


def _require_named(shown: Mapping[Path, Shown], maps: Mapping[Path, int], class_names: Sequence[str]) -> None:
    if len(set(class_names)) != len(class_names) or len(class_names) < 2:
        raise CommandError(f"--class_names must be different names, background first, got {' '.join(class_names)}")
    for path, highest in maps.items():
        if highest >= len(class_names):
            raise CommandError(
                f"{path}: holds class {highest}, --class_names has {len(class_names)} names; name all, background too"
            )
    for path, one in shown.items():
        if unknown := sorted(name for name in one.names if class_named(name, class_names) is None):
            raise CommandError(
                f"{path}: segment {unknown[0]!r} is none of --class_names {' '.join(class_names)}; name "
                "it there, or pass --only_named to leave out those that are none of them"
            )


def _told_apart(files: Sequence[set[str]]) -> list[str]:
    """The names of structures, in their order. Those that differ in capitals or blanks alone are one, unless a file
    shows both.
    """
    spelt: dict[str, list[str]] = {}
    for name in sorted(set().union(*files)):
        spelt.setdefault(folded(name), []).append(name)
    spelt.pop(_BACKGROUND, None)
    found = list[str]()
    for _, same in sorted(spelt.items()):
        both = set().union(*(file & set(same) for file in files if len(file & set(same)) > 1))
        found += sorted(both) or [" ".join(same[0].split())]
    if len(found) >= UNLABELED:
        raise CommandError(f"the files name {len(found)} segments, at most 254 classes are compared")
    return found


def _kept(segments: Mapping[Path, Shown], names: Sequence[str], highest: int) -> list[str] | None:
    """Names at the numbers that they have in all files; None where a number or a name has two meanings, or a number
    that no class can have, as 0 is that of background.
    """
    numbers = set[tuple[int, str]]()
    for path, one in segments.items():
        for number, name in one.named:
            if folded(name) == _BACKGROUND:
                return None
            label = class_named(name, names)
            if label is None:
                raise CommandError(
                    f"{path}: segment {name!r} may be any of those that differ in capitals or blanks alone; name it as "
                    "one of them, or pass --class_names"
                )
            numbers.add((number, names[label]))
    table = dict(numbers)
    found = _numbered(table, highest) if max(table) < UNLABELED else []
    alike = len(table) == len(numbers) and len(set(found)) == len(found)
    return found if alike and found else None


def _numbered(table: Mapping[int, str], highest: int) -> list[str]:
    top = max(*table, highest, 1) if table else max(highest, 1)
    return [_BACKGROUND, *(table.get(number, f"class {number}") for number in range(1, top + 1))]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(names) if number)


@dataclass(frozen=True)
class MaskReader:
    """How the masks of a command are read; what lies in no segment is background.

    Args:
        class_names: background first: a segment is the class of its name, in capitals or not, and those of background
            give way to the others.
        binary: files in which 255 is class 1, see `are_binary`; in files of segments it never is.
        nested: whether later classes cover earlier ones where segments overlap.
        only_named: whether segments that are no class are left out.
        grids: of the images of outlines, see `medcoarse.cli.image_grids`.
    """

    class_names: Sequence[str]
    binary: Collection[Path] = ()
    nested: bool = False
    only_named: bool = False
    grids: Mapping[Path, Grid] = field(default_factory=dict)

    def __call__(self, path: Path) -> tuple[Labels, Grid, bool]:
        """A label map *S, its grid, and whether the file holds segments.

        Raises:
            CommandError: damaged, no label map, classes or segments without a name, segments that overlap, or both 1
                and 255 in a binary one.
        """
        drawing = read_file(path, self.grids)
        try:
            labels = mask_labels(drawing, self.class_names, path, path in self.binary, self.nested, self.only_named)
        except DataError as error:
            raise CommandError(str(error)) from None
        return labels, drawing.grid, drawing.segments


def read_file(path: Path, grids: Mapping[Path, Grid]) -> Drawing:
    """A drawing, outlines on the grid of their image.

    Raises:
        CommandError: damaged, outlines without an image, or in another DICOM frame of reference than it.
    """
    try:
        drawing = read_drawing(path, grids.get(path))
    except NoGridError:
        raise CommandError(
            f"{path}: holds outlines, and nothing in it says on which voxels; pass --images, the folder of the images "
            "that they were drawn on"
        ) from None
    except DataError as error:
        raise CommandError(str(error)) from None
    frames = [grid.frame_of_reference for grid in (grids.get(path), drawing.grid) if grid]
    if len(set(filter(None, frames))) > 1:
        raise CommandError(
            f"{path}: was drawn in another DICOM frame of reference than its image's, so nobody knows where it lies; "
            "pass the series it was drawn on"
        )
    return drawing


def only_named(
    shown: Mapping[Path, Shown], class_names: Sequence[str] | None, groups: Mapping[str, Collection[Path]]
) -> tuple[dict[Path, Shown], list[str]]:
    """What files show of some classes; other segments, as the body and the couch of an RTSTRUCT, are left out. And
    lines for people, of files in which a class may be missing for its name alone.

    Args:
        shown: what each of them shows.
        class_names: background first.
        groups: what they are called -> files that belong together; what files of segments in a group lack altogether
            is a slip.

    Raises:
        CommandError: no names, no segments, or a name that no file of a group has.

    Example:
        >>> shown = {Path("a"): Shown(True, named=frozenset([(1, "Liver"), (2, "couch")]))}
        >>> only_named(shown, ["background", "liver"], {"masks": [Path("a")]})[0][Path("a")].names
        {'Liver'}
    """
    if not class_names:
        raise CommandError("--only_named: which segments? pass --class_names, background first")
    segments = {path: one for path, one in shown.items() if one.segments}
    if not segments:
        raise CommandError("--only_named: the files hold no segments, and values of label maps are not left out")
    kept = {
        path: replace(one, named=frozenset(pair for pair in one.named if class_named(pair[1], class_names) is not None))
        for path, one in shown.items()
    }
    said = list[str]()
    for what, files in groups.items():
        of_segments = [path for path in files if path in segments]
        for label, name in list(enumerate(class_names))[1:] if of_segments else []:
            lacking = [path for path in of_segments if not _has_class(kept[path], label, class_names)]
            others = set[str]().union(
                *(segments[path].names - kept[path].names | segments[path].unplaced for path in lacking)
            )
            if others and len(lacking) == len(files):
                raise CommandError(
                    f"--only_named: none of the {what} has a segment {name!r}; there are "
                    f"{listed_names(others.union(*(segments[path].names for path in lacking)))}"
                )
            if others:
                said.append(
                    f"NO {name!r} in {len(lacking)} of {len(of_segments)} {what}, and background there: "
                    f"{', '.join(path.name for path in lacking[:5])}; left out of these: {listed_names(others)}"
                )
    return kept, said


def _has_class(shown: Shown, label: int, class_names: Sequence[str]) -> bool:
    return any(class_named(name, class_names) == label for name in shown.names | shown.unplaced)


def listed_names(found: Collection[str]) -> str:
    """Some names, in quotes."""
    return ", ".join(repr(name[:40]) for name in sorted(found)[:10])


def common_grid(grids: Mapping[Path, Grid]) -> Grid:
    """A grid on the lattice of the first that all lie in, as files of segments are cut to boxes.

    Raises:
        CommandError: boxes so far apart that they can hardly belong to one image.

    Example:
        >>> far = np.eye(4)
        >>> far[0, 3] = -2
        >>> both = common_grid({Path("a"): Grid((3, 4, 5), np.eye(4)), Path("b"): Grid((2, 6, 5), far)})
        >>> both.shape, both.affine[:3, 3].tolist()
        ((5, 6, 5), [-2.0, 0.0, 0.0])
    """
    first, *others = grids.values()
    axes = len(first.shape)
    low, high = np.zeros(axes), np.array(first.shape) - 1.0
    for other in others:
        if first.affine is None or other.affine is None or len(other.shape) != axes:
            return first
        steps = np.rint(np.linalg.inv(first.affine) @ other.affine)
        ends = steps[:axes, :axes] * (np.array(other.shape) - 1)
        low = np.minimum(low, steps[:axes, 3] + ends.clip(max=0).sum(1))
        high = np.maximum(high, steps[:axes, 3] + ends.clip(min=0).sum(1))
    _require_near(grids, high - low + 1)
    if first.affine is None:
        return first
    shift = np.eye(4)
    shift[:axes, 3] = low
    return replace(first, shape=tuple(int(size) for size in high - low + 1), affine=first.affine @ shift)


def _require_near(grids: Mapping[Path, Grid], sizes: NDArray[np.float64]) -> None:
    """Refuse boxes that span what no image has, or far more than they hold and most images do: it would fill the
    memory with background.
    """
    spanned, held = float(np.prod(sizes)), sum(float(np.prod(grid.shape)) for grid in grids.values())
    if spanned > MAX_VOXELS or (spanned > _COMMON_IMAGE and spanned > _MOST_TIMES * held):
        raise CommandError(
            f"{', '.join(map(str, grids))}: their segments are cut to boxes of {held:.0f} voxels, so far apart that "
            f"they span {' x '.join(f'{size:.0f}' for size in sizes)}; do they belong to one image? if so, save one of "
            "them as a label map of the whole image"
        )


def on_grid(labels: Labels, grid: Grid, target: Grid, path: Path, segments: bool, outside: int = 0) -> Labels:
    """A label map on the grid of another, if that is the same or the file holds segments, which are cut to a box.

    Args:
        labels: *S.
        grid: where it lies.
        target: where it goes.
        path: for errors.
        segments: whether the file holds segments.
        outside: the class of what lies in no box of segments.

    Raises:
        CommandError: another grid.
    """
    try:
        placed: Labels = place(labels[None], grid, target, path, [outside], segments=segments)[0]
        return placed
    except DataError as error:
        raise CommandError(str(error)) from None
