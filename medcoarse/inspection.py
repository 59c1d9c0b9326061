"""What decoding the files of a data set shows, and what of it stands against training."""

from __future__ import annotations

import hashlib
import math
import os
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Sections: TypeAlias = Mapping[str, Sequence[dict[str, Any]]]

PIL_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")
"""Decoded by Pillow, as training does; every other suffix is left to `monai.transforms.LoadImage`."""


@dataclass(frozen=True)
class Facts:
    """What decoding one file showed."""

    shape: tuple[int, ...] = ()
    num_channels: int = 1
    num_not_finite: int = 0
    values: tuple[float, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Rules:
    """What is expected of an item."""

    image_key: str
    label_keys: tuple[str, ...]
    mask_keys: tuple[str, ...]
    label_values: frozenset[float]
    mask_values: frozenset[float]
    required_keys: tuple[str, ...] = ()
    allow_missing_annotation: bool = False


def count(number: int, noun: str) -> str:
    """A number with its noun, which gets an s unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def files_of(item: dict[str, Any], key: str) -> list[str]:
    """The files under a key: none, one, or one a channel."""
    value = item.get(key)
    return [os.fspath(v) for v in (value if isinstance(value, list) else [value]) if v]


def structure_problems(sections: Mapping[str, Any], rules: Rules) -> Iterator[str]:
    """What is no datalist: sections that are no lists, items that are no objects, names that are no text."""
    keys = (rules.image_key, *rules.label_keys, *rules.mask_keys)
    for name, part in sections.items():
        if isinstance(part, str) or not isinstance(part, Sequence):
            yield f"section {name!r} is {reprlib.repr(part)}; list its items"
            continue
        for index, item in enumerate(part):
            if not isinstance(item, Mapping):
                yield f"{name}[{index}] is {reprlib.repr(item)}; write an object with file names"
                continue
            for key in keys:
                if not _is_file_names(item.get(key)):
                    found = reprlib.repr(item[key])
                    yield f"{name}[{index}]: {key!r} is {found}; write a file name or a list of file names"


def _is_file_names(value: Any) -> bool:
    """A file name, some of them, or nothing."""
    names = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(name, str | os.PathLike) for name in names)


def inspect_all(sections: Sections, rules: Rules, num_threads: int) -> dict[tuple[str, bool], Facts]:
    """Facts of every distinct (file, is it a map of classes?), in datalist order."""
    wanted: dict[tuple[str, bool], None] = {}
    for item in (item for part in sections.values() for item in part):
        wanted.update({(f, False): None for f in files_of(item, rules.image_key)})
        wanted.update({(f, True): None for key in (*rules.label_keys, *rules.mask_keys) for f in files_of(item, key)})
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        return dict(zip(wanted, pool.map(lambda key: _inspect(Path(key[0]), is_map=key[1]), wanted), strict=True))


def _inspect(path: Path, is_map: bool) -> Facts:
    """Decode one file; whatever the decoder objects to becomes the file's problem."""
    try:
        if absent := _absent(path):
            return Facts(problem=absent)
        array, shape = _decode(path)
    except PermissionError as error:
        return Facts(problem=f"not readable ({error.strerror}); correct the permissions of the file")
    except Exception as error:  # decoders raise a dozen types, none of them promised; all are reported
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:160]
        return Facts(problem=f"damaged, cut short or of unknown format ({reason}); fetch the file again")
    not_finite = 0 if array.dtype.kind in "biu" else int(array.size - np.count_nonzero(np.isfinite(array)))
    num_channels = array.size // max(1, math.prod(shape))
    return Facts(shape, num_channels, not_finite, _distinct(array) if is_map else ())


def _absent(path: Path) -> str:
    """Why there is nothing to decode; empty if there is something."""
    if not path.exists():
        return "no such file; restore it or take it off the datalist"
    if path.is_dir() and not any(path.iterdir()):
        return "an empty folder, expected an image; restore it or take it off the datalist"
    return "0 bytes long; fetch the file again" if path.is_file() and path.stat().st_size == 0 else ""


def _decode(path: Path) -> tuple[npt.NDArray[Any], tuple[int, ...]]:
    """All samples of a file and its spatial shape in MONAI's axis order, width first."""
    if path.suffix.lower() in PIL_SUFFIXES:
        with Image.open(path) as image:
            image.verify()  # checks the chunk checksums, which decoding alone does not
        with Image.open(path) as image:
            return np.asarray(image), image.size
    from monai.transforms.io.array import LoadImage  # seconds of import, for volumes only

    # Without a name it would try the DICOM reader's plugins, which speak up, for every file.
    reader = "NibabelReader" if path.name.lower().endswith((".nii", ".nii.gz")) else None
    volume = LoadImage(reader, image_only=True, dtype=None)(path)
    return np.asarray(volume), tuple(int(n) for n in volume.meta["spatial_shape"])


def _distinct(array: npt.NDArray[Any]) -> tuple[float, ...]:
    """Distinct values, ascending; one pass where they fit a byte, as labels do."""
    with np.errstate(invalid="ignore"):
        small = array.astype(np.uint8)
    if np.array_equal(small, array):
        return tuple(np.flatnonzero(np.bincount(small.ravel(), minlength=256)).tolist())
    return tuple(np.unique(array).tolist())


def section_problems(
    name: str, items: Sequence[dict[str, Any]], rules: Rules, facts: Mapping[tuple[str, bool], Facts]
) -> Iterator[str]:
    """Problems of items: what they lack, and how their files fit together."""
    optional = rules.allow_missing_annotation or not set(rules.label_keys).isdisjoint(rules.required_keys)
    used_masks = [key for key in rules.mask_keys if any(files_of(item, key) for item in items)]
    for index, item in enumerate(items):
        images = files_of(item, rules.image_key)
        where = f"{name}[{index}] ({images[0] if images else 'no image'})"
        if not images:
            yield f"{where}: key {rules.image_key!r} is missing or empty; name an image file"
        for key in rules.required_keys:
            if not files_of(item, key):
                yield f"{where}: no {key!r}, which every item must have; add the file or leave the image out"
        if not optional and not any(files_of(item, key) for key in rules.label_keys):
            keys = " and ".join(map(repr, rules.label_keys))
            yield (
                f"{where}: no annotation, {keys} is missing or empty; add one, take the item off the datalist, or pass "
                "allow_missing_annotation=True"
            )
        for key in used_masks:
            if key not in rules.required_keys and not files_of(item, key):
                yield f"{where}: no {key!r}, which other items have; add it here or drop it everywhere"
        yield from _file_problems(item, images, rules, facts)


def _file_problems(
    item: dict[str, Any], images: Sequence[str], rules: Rules, facts: Mapping[tuple[str, bool], Facts]
) -> Iterator[str]:
    """Problems of the readable files of one item."""
    first = facts[images[0], False] if images else Facts(problem="no image")
    for path in images:
        fact = facts[path, False]
        if fact.num_not_finite:
            yield f"{path}: {count(fact.num_not_finite, 'sample')} NaN or infinite; replace them by numbers"
        yield from _grid_problem(path, fact, images[0], first)
    for key in (*rules.label_keys, *rules.mask_keys):
        is_mask = key in rules.mask_keys
        for path in files_of(item, key):
            yield from _map_problems(path, facts[path, True], is_mask, rules)
            if images:
                yield from _grid_problem(path, facts[path, True], images[0], first)


def _map_problems(path: str, fact: Facts, is_mask: bool, rules: Rules) -> Iterator[str]:
    """A label or mask must have one channel and expected values; a mask must not be blank."""
    if fact.problem:
        return
    what, expected = ("mask", rules.mask_values) if is_mask else ("label", rules.label_values)
    if fact.num_channels > 1:
        yield f"{path}: {what} of {fact.num_channels} channels, expected 1; save it in greyscale or with a palette"
    elif not expected.issuperset(fact.values):
        yield (
            f"{path}: {what} holds the values {_listed(fact.values)}, expected only {_listed(sorted(expected))}; "
            f"correct the file (no smoothing, no lossy format) or state its coding with {what}_values"
        )
    elif is_mask and not any(fact.values):
        yield f"{path}: mask is 0 everywhere, so nothing of the image would count; draw it again or drop the item"


def _listed(values: Sequence[float], limit: int = 8) -> str:
    """Values as a set in braces, long ones cut."""
    shown = ", ".join(f"{v:g}" for v in values[:limit])
    return "{" + shown + (f", ... {len(values)} in all" if len(values) > limit else "") + "}"


def _grid_problem(path: str, fact: Facts, image: str, image_fact: Facts) -> Iterator[str]:
    """Two readable files of one item must have the same size."""
    if not fact.problem and not image_fact.problem and not _same_grid(fact.shape, image_fact.shape):
        got, expected = ("x".join(map(str, shape)) for shape in (fact.shape, image_fact.shape))
        yield f"{path}: size {got}, but its image {image} is {expected}; export both on the same grid"


def _same_grid(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Equal up to a channel axis, first or last, that only one of them has (plain arrays do not say)."""
    short, long = sorted((a, b), key=len)
    return short == long or (len(long) == len(short) + 1 and short in (long[1:], long[:-1]))


def channel_problems(sections: Sections, image_key: str, facts: Mapping[tuple[str, bool], Facts]) -> Iterator[str]:
    """Images whose number of channels is not that of most: a network takes one number only."""
    num_channels: dict[str, int] = {}
    for item in (item for part in sections.values() for item in part):
        found = [facts[path, False] for path in files_of(item, image_key)]
        if found and not any(fact.problem for fact in found):
            num_channels[files_of(item, image_key)[0]] = sum(fact.num_channels for fact in found)
    usual = max(Counter(num_channels.values()).items(), key=lambda pair: pair[1], default=(0, 0))[0]
    for path, number in num_channels.items():
        if number != usual:
            yield f"{path}: {count(number, 'channel')}, but most images have {usual}; convert it to the same kind"


def leaks(sections: Sections, image_key: str) -> Iterator[str]:
    """Images with the same content in two sections; only files of equal length are hashed."""
    by_size: dict[int, list[tuple[str, str]]] = defaultdict(list)
    listed = dict.fromkeys((f, name) for name, part in sections.items() for i in part for f in files_of(i, image_key))
    for path, name in listed:
        if Path(path).is_file():
            by_size[Path(path).stat().st_size].append((path, name))
    for group in (group for group in by_size.values() if len({name for _, name in group}) > 1):
        first: dict[str, tuple[str, str]] = {}
        for path, name in group:
            other, other_name = first.setdefault(sha256_of(path), (path, name))
            if other_name != name:
                yield (
                    f"{path} in {name!r} is the same image as {other} in {other_name!r}; keep it in one of them, or "
                    "results will look better than they are"
                )


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
