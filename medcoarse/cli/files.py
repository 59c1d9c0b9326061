"""Which files a folder has, and which of them belong together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from medcoarse.cli.main import CommandError
from medcoarse.datalist import DataError
from medcoarse.readers.formats import format_of, is_dicom
from medcoarse.writers.formats import IMAGE_SUFFIXES, stem_of

_LISTED = 5
_SEPARATORS = ("_", "-", ".", " ")
_OTHER_DRAWINGS = (".json", ".geojson")


def find_images(places: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Image files, and folders that hold a DICOM series, below folders; sorted by name, hidden ones left out.

    Raises:
        CommandError: a place that is not there, or holds no image.

    Example:
        >>> find_images(["/nowhere"])
        Traceback (most recent call last):
        medcoarse.cli.main.CommandError: /nowhere: no such file or folder
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise CommandError(f"{place}: no such file or folder")
        images = _images_below(place) if place.is_dir() else [place]
        if not images:
            raise CommandError(f"{place}: holds no image; expected DICOM series or {', '.join(IMAGE_SUFFIXES)}")
        found += images
    return list(dict.fromkeys(found))


def find_drawings(folder: str | os.PathLike[str]) -> list[Path]:
    """Drawings in a folder: label maps, segmentations, outlines; of any format that is read.

    Raises:
        CommandError: no such folder, or nothing in it.
    """
    place = Path(folder)
    if not place.is_dir():
        raise CommandError(f"{place}: no such folder")
    entries = sorted(entry for entry in place.rglob("*") if entry.is_file() and not _is_hidden(entry, place))
    found = [entry for entry in entries if _is_image_name(entry) or _is_drawing(entry)]
    if not found:
        raise CommandError(
            f"{place}: holds no drawing; expected NIfTI, NRRD, MetaImage, PNG, DICOM or outlines (.json)"
        )
    return found


def pair(images: Sequence[Path], others: Sequence[Path], what: str, need_all: bool = True) -> dict[Path, Path]:
    """Which drawing (or mask) belongs to which image: the names are the same, or the drawing's goes on after a `_`,
    `-`, `.` or blank; the longest name counts.

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
    by_stem: dict[str, Path] = {}
    for image in images:
        if stem_of(image) in by_stem:
            both = by_stem[stem_of(image)]
            raise CommandError(f"{both} and {image} have the same name; give images of one folder different names")
        by_stem[stem_of(image)] = image
    found: dict[Path, Path] = {}
    alone: list[Path] = []
    for other in others:
        name = _drawn_stem(other)
        fitting = [
            stem for stem in by_stem if name == stem or name.startswith(tuple(stem + sep for sep in _SEPARATORS))
        ]
        if not fitting:
            alone.append(other)
            continue
        image = by_stem[max(fitting, key=len)]
        if image in found:
            raise CommandError(
                f"{image.name} has two {what}s, {found[image].name} and {other.name}; keep one in the folder"
            )
        found[image] = other
    without = [image for image in images if image not in found] if need_all else []
    if alone or without:
        parts = [f"{len(without)} of {len(images)} images have no {what}: {listed(without)}"] if without else []
        parts += [f"{len(alone)} of {len(others)} {what}s have no image: {listed(alone)}"] if alone else []
        raise CommandError(
            f"{'; '.join(parts)}. A {what} is named like its image, or like it and more after a _, such as "
            f"case1_{what}.nii.gz for case1.nii.gz"
        )
    return {image: found[image] for image in images if image in found}


def listed(paths: Sequence[Path]) -> str:
    """Some names."""
    more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
    return ", ".join(path.name for path in paths[:_LISTED]) + more


def new_folder(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """A folder to write to.

    Raises:
        CommandError: there is something in it already, and nobody said that it may be overwritten.
    """
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise CommandError(f"{place}: is a file, expected a folder")
    if place.is_dir() and any(place.iterdir()) and not overwrite:
        raise CommandError(f"{place}: exists and is not empty; choose another folder, or pass --overwrite")
    place.mkdir(parents=True, exist_ok=True)
    return place


def is_series(path: Path) -> bool:
    """Whether this is a folder with DICOM files, or one such file."""
    if path.is_dir():
        return any(entry.is_file() and _could_be_dicom(entry) and is_dicom(entry) for entry in sorted(path.iterdir()))
    return _could_be_dicom(path) and is_dicom(path)


def _images_below(folder: Path) -> list[Path]:
    if is_series(folder):
        return [folder]
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += _images_below(entry)
        elif _is_image_name(entry) and not entry.name.lower().endswith(".dcm"):
            found.append(entry)
    return found


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
    return _could_be_dicom(path) and is_dicom(path)


def _could_be_dicom(path: Path) -> bool:
    return path.suffix.lower() in ("", ".dcm", ".ima") or path.suffix[1:].isdigit()


def _drawn_stem(path: Path) -> str:
    for ending in _OTHER_DRAWINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return stem_of(path)
