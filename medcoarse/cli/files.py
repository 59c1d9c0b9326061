"""Which files a folder has, and which of them belong together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from medcoarse.cli.main import CommandError
from medcoarse.cli.references import drawn_on
from medcoarse.datalist import DataError
from medcoarse.readers.dicom import first_image, is_dicom, read_tags
from medcoarse.readers.formats import could_be_dicom, format_of, is_series
from medcoarse.writers.formats import IMAGE_SUFFIXES, stem_of

NAMES_FILE = "labels.txt"
"""Beside label maps, what their values are called."""

_LISTED = 5
_LEAVE_OUT = "pass --partial to leave them out"
_JOINED = (
    "; or put what each person drew into a folder of that person, and pass --annotators; or, where every image has "
    "several, make one of them with `medcoarse fuse` (of strokes with --mapping, see its --help) and train on what "
    "that makes, with --mapping unlabeled_255"
)
_SEPARATORS = ("_", "-", ".", " ")
_OTHER_DRAWINGS = (".json", ".geojson")


def find_images(places: Iterable[str | os.PathLike[str]], besides: str | os.PathLike[str] | None = None) -> list[Path]:
    """Image files, and folders that hold a DICOM series, below folders; sorted by name, hidden ones left out.

    Args:
        places: files and folders.
        besides: a folder that may lie among them and is none of them: where segmentations go. Bundles are left out too.

    Raises:
        CommandError: a place that is not there, or holds no image; a DICOM series beside other images.

    Example:
        >>> find_images(["/nowhere"])
        Traceback (most recent call last):
        medcoarse.cli.main.CommandError: /nowhere: no such file or folder
    """
    found: list[Path] = []
    made = None if besides is None else Path(besides).resolve()
    for place in map(Path, places):
        if not place.exists():
            raise CommandError(f"{place}: no such file or folder")
        images = _images_below(place, made) if place.is_dir() else [place]
        if not images:
            raise CommandError(f"{place}: holds no image; expected DICOM series or {', '.join(IMAGE_SUFFIXES)}")
        found += images
    return list(dict.fromkeys(found))


def find_drawings(folder: str | os.PathLike[str]) -> list[Path]:
    """Drawings in a folder: label maps, segmentations, outlines; of any format that is read. Images in DICOM, which may
    lie beside their structures, are none.

    Raises:
        CommandError: no such folder, or nothing in it.
    """
    place = Path(folder)
    if not place.is_dir():
        raise CommandError(f"{place}: no such folder")
    entries = sorted(entry for entry in place.rglob("*") if entry.is_file() and not _is_hidden(entry, place))
    found = [entry for entry in entries if (_is_image_name(entry) or _is_drawing(entry)) and not _is_dicom_image(entry)]
    if not found:
        raise CommandError(
            f"{place}: holds no drawing; expected NIfTI, NRRD, MetaImage, PNG, DICOM SEG, RTSTRUCT or outlines (.json)"
        )
    return found


def holds_structures_alone(folder: str | os.PathLike[str]) -> bool:
    """Whether all drawings in a folder are DICOM's segmentations and structure sets, which cannot be taken for images.

    Raises:
        CommandError: as `find_drawings`.
    """
    return all(could_be_dicom(file) and is_dicom(file) for file in find_drawings(folder))


def belonging(name: str, names: Iterable[str]) -> str | None:
    """The longest of some names that this one is, or begins with before a `_`, `-`, `.` or blank.

    Example:
        >>> belonging("a_1_seg", ["a", "a_1", "a_12"])
        'a_1'
    """
    fitting = (one for one in names if name == one or name.startswith(tuple(one + mark for mark in _SEPARATORS)))
    return max(fitting, key=len, default=None)


def match(
    segmentations: Sequence[Path], masks: Sequence[Path], names: Mapping[Path, str] = MappingProxyType({})
) -> tuple[dict[Path, Path], list[Path], list[Path]]:
    """Which mask belongs to which segmentation, by the rule of `pair`, whichever has the longer name; the same name
    counts more.

    Args:
        segmentations: files.
        masks: files.
        names: what some of them are called, in place of their names.

    Returns:
        Segmentation -> mask; segmentations without a mask; masks without a segmentation.

    Raises:
        CommandError: files of the same name, or one that could belong to two.

    Example:
        >>> found = match([Path("a_seg.png"), Path("b.png")], [Path("a.png"), Path("b_mask.png"), Path("c.png")])
        >>> [(ours.name, theirs.name) for ours, theirs in found[0].items()], found[1:]
        ([('a_seg.png', 'a.png'), ('b.png', 'b_mask.png')], ([], [PosixPath('c.png')]))
    """
    ours, theirs = by_stem(segmentations, names), by_stem(masks, names)
    same = ours.keys() & theirs.keys()
    longer = {(name, belonging(name, theirs)) for name in ours} | {(belonging(name, ours), name) for name in theirs}
    links = [(one, two) for one, two in longer if one and two and not {one, two} & same]
    for number in (0, 1):
        for name, times in Counter(link[number] for link in links).items():
            if times > 1:
                file = (ours, theirs)[number][name]
                both = [(theirs, ours)[number][link[1 - number]] for link in links if link[number] == name]
                raise CommandError(
                    f"{file.name} could belong to {listed(sorted(both))}; give it the name of the right one"
                )
    found = dict(links) | {name: name for name in same}
    pairs = {ours[name]: theirs[found[name]] for name in ours if name in found}
    return (
        pairs,
        [file for file in segmentations if file not in pairs],
        [file for file in masks if file not in pairs.values()],
    )


def by_stem(files: Sequence[Path], names: Mapping[Path, str] = MappingProxyType({})) -> dict[str, Path]:
    """Files by their names without endings, or by those that are given. Files of one name in several folders are called
    by where they lie below the folder of all: `patient1/CT`, `patient2/CT`.

    Raises:
        CommandError: two in one folder have the same.

    Example:
        >>> list(by_stem([Path("all/p1/CT.nii"), Path("all/p2/CT.nii"), Path("all/p2/MR.nii")]))
        ['p1/CT', 'p2/CT', 'MR']
    """
    stems = {file: names.get(file) or drawn_stem(file) for file in files}
    times = Counter(stems.values())
    top = os.path.commonpath([file.parent for file in files]) if files else ""
    found: dict[str, Path] = {}
    for file, stem in stems.items():
        place = "" if times[stem] == 1 or file in names else Path(os.path.relpath(file.parent, top)).as_posix()
        both = found.setdefault(stem if place in ("", ".") else f"{place}/{stem}", file)
        if both is not file:
            raise CommandError(f"{both} and {file} have the same name; give files of one folder different names")
    return found


def find_annotators(folder: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """Drawings of several people: name -> files, one folder a person below the folder.

    Raises:
        CommandError: fewer than two such folders, one without drawings, or a drawing beside them, of nobody.
    """
    place = Path(folder)
    if not place.is_dir():
        raise CommandError(f"{place}: no such folder")
    folders, loose = _parts(place)
    if len(folders) < 2:
        raise CommandError(f"{place}: has {len(folders)} folders, expected one for each of several annotators")
    if loose:
        raise CommandError(
            f"{loose[0]}: lies beside the folders of the annotators; move it into the folder of who drew it"
        )
    return {entry.name: find_drawings(entry) for entry in folders}


def _parts(place: Path) -> tuple[list[Path], list[Path]]:
    """Folders, and drawings beside them."""
    entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file()]
    return [entry for entry in entries if entry.is_dir()], [
        entry for entry in files if _is_image_name(entry) or _is_drawing(entry)
    ]


def pair_each(
    images: Sequence[Path], drawn: Mapping[str, Sequence[Path]], need_all: bool = True
) -> dict[Path, dict[str, Path]]:
    """Which drawings belong to which image, and whose they are; everybody may have drawn some of the images only.

    Args:
        images: files and folders.
        drawn: drawings of everybody, by name.
        need_all: whether every image must have one.

    Raises:
        CommandError: as `pair`, or an image that nobody drew.

    Example:
        >>> pair_each([Path("a.png"), Path("b.png")], {"Ada": [Path("Ada/a.png")], "Max": []}, need_all=False)
        {PosixPath('a.png'): {'Ada': PosixPath('Ada/a.png')}}
    """
    found: dict[Path, dict[str, Path]] = {image: {} for image in images}
    for name, files in drawn.items():
        for image, file in pair(images, files, "drawing", need_all=False).items():
            found[image][name] = file
    without = [image for image, by in found.items() if not by]
    if without and need_all:
        raise CommandError(
            f"{len(without)} of {len(images)} images have no drawing by anybody: {listed(without)}; {_LEAVE_OUT}"
        )
    return {image: by for image, by in found.items() if by}


def pair(images: Sequence[Path], others: Sequence[Path], what: str, need_all: bool = True) -> dict[Path, Path]:
    """Which drawing (or mask) belongs to which image: the names are the same, or the drawing's goes on after a `_`,
    `-`, `.` or blank; the longest name counts. One in DICOM may be called anything and belong to the series it
    names.

    Args:
        images: files and folders.
        others: what belongs to them.
        what: what the others are, for errors.
        need_all: whether every image must have one.

    Raises:
        CommandError: something has no partner, or several.

    Example:
        >>> found = pair([Path("a.nii.gz"), Path("a_1.png")], [Path("a_1_seg.nrrd"), Path("a.nii")], "drawing")
        >>> {image.name: drawing.name for image, drawing in found.items()}
        {'a.nii.gz': 'a.nii', 'a_1.png': 'a_1_seg.nrrd'}
    """
    referring, named = drawn_on(others, images), by_stem(images)
    found: dict[Path, Path] = {}
    alone: list[Path] = []
    for other in others:
        image = referring.get(other) or _named_after(other, named)
        if image is None:
            alone.append(other)
            continue
        if image in found:
            raise CommandError(
                f"{image.name} has two {what}s, {_below(found[image], other)} and {_below(other, found[image])}; keep "
                f"one in the folder{_JOINED if what == 'drawing' else ', or make one of them with `medcoarse fuse`'}"
            )
        found[image] = other
    without = [image for image in images if image not in found] if need_all else []
    if alone or without:
        none = f"{len(without)} of {len(images)} images have no {what}: {listed(without)}; {_LEAVE_OUT}"
        parts = [none] if without else []
        parts += [f"{len(alone)} of {len(others)} {what}s have no image: {listed(alone)}"] if alone else []
        raise CommandError(
            f"{'; '.join(parts)}. A {what} is named like its image, or like it and more after a _, such as "
            f"case1_{what}.nii.gz for case1.nii.gz; one in DICOM may have any name, and say on which series it lies"
        )
    return {image: found[image] for image in images if image in found}


def _named_after(other: Path, named: Mapping[str, Path]) -> Path | None:
    """The image that a drawing is named after, with as much of the way to it as names of images have."""
    depth = max((name.count("/") for name in named), default=0)
    folders = [folder.name for folder in other.parents[:depth] if folder.name]
    for number in range(len(folders), -1, -1):
        stem = belonging("/".join([*reversed(folders[:number]), drawn_stem(other)]), named)
        if stem is not None:
            return named[stem]
    return None


def _below(path: Path, other: Path) -> Path:
    """A name, with its folder where that tells it from another."""
    return Path(path.parent.name, path.name) if path.name == other.name else Path(path.name)


def listed(paths: Sequence[Path]) -> str:
    """Some names."""
    more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
    return ", ".join(path.name for path in paths[:_LISTED]) + more


def new_folder(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """A folder to write to.

    Raises:
        CommandError: there is something in it already, and nobody said that it may be overwritten, or it cannot be
            made.
    """
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise CommandError(f"{place}: is a file, expected a folder")
    if place.is_dir() and any(place.iterdir()) and not overwrite:
        raise CommandError(f"{place}: exists and is not empty; choose another folder, or pass --overwrite")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{place}: cannot be written to ({error.strerror}); choose another folder") from None
    return place


def _images_below(folder: Path, besides: Path | None) -> list[Path]:
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            made = entry.resolve() == besides or (entry / "configs" / "metadata.json").is_file()
            found += [] if made else _images_below(entry, besides)
        elif _is_image_name(entry) and not entry.name.lower().endswith(".dcm"):
            found.append(entry)
    if not is_series(folder) or _first_image(folder) is None:
        return found
    if any(entry.is_dir() or not is_dicom(entry) for entry in found):
        raise CommandError(f"{folder}: holds DICOM files beside other images; put the series in a folder of its own")
    return [folder if folder.name not in ("", "..") else folder.resolve()]  # it gives what is made of it its name


def _first_image(folder: Path) -> Path | None:
    """Of a series; folders of structures alone have none. What is damaged is named where it is read."""
    try:
        return first_image(folder)
    except DataError:
        return folder


def _is_dicom_image(path: Path) -> bool:
    if not could_be_dicom(path) or not path.is_file() or not is_dicom(path):
        return False
    try:
        return read_tags(path, ["Modality"])["Modality"] not in ("SEG", "RTSTRUCT", "")
    except DataError:  # damaged: it is named where it is read
        return False


def _is_hidden(entry: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in entry.relative_to(folder).parts)


def _is_image_name(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def _is_drawing(path: Path) -> bool:
    if path.suffix.lower() in _OTHER_DRAWINGS:
        try:
            return bool(format_of(path))
        except DataError:  # some other JSON
            return False
    return is_series(path)


def drawn_stem(path: Path) -> str:
    """The name of a drawing without its ending."""
    for ending in _OTHER_DRAWINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return stem_of(path)
