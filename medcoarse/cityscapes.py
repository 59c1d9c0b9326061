"""Cityscapes' classes and folders: from its files to a datalist.

Convention: a *label id* is what Cityscapes stores (0 to 33, and -1), a *class* is what a network predicts: the place of
a label id among those that are trained on. All others are unlabeled (255), as in the benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError, Item, PathLike
from medcoarse.files import write_atomically
from medcoarse.readers.cityscapes import read_cityscapes

LABELS: Mapping[str, int] = {
    "unlabeled": 0,
    "ego vehicle": 1,
    "rectification border": 2,
    "out of roi": 3,
    "static": 4,
    "dynamic": 5,
    "ground": 6,
    "road": 7,
    "sidewalk": 8,
    "parking": 9,
    "rail track": 10,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "guard rail": 14,
    "bridge": 15,
    "tunnel": 16,
    "pole": 17,
    "polegroup": 18,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "caravan": 29,
    "trailer": 30,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
    "license plate": -1,
}
"""Label id of every name in the polygon files."""

CLASSES: Mapping[str, int] = {
    name: number
    for name, number in LABELS.items()
    if number in {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
}
"""The 19 that the benchmark scores, in the order of its train ids."""

KNOWN_IDS = frozenset(number for number in LABELS.values() if number >= 0) | {UNLABELED}
"""What a label map may hold; -1 is stored as 255."""

SPLITS = {"training": "train", "test": "val", "extra": "train_extra"}
"""Section of the datalist -> folder. The 500 images of ``val`` are those on which papers report; what development looks
at is held out of ``train``."""

SECTIONS = ("training", "validation", "test", "subset", "extra")
SUBSET = 174

_IMAGE = "_leftImg8bit.png"


class Frame(NamedTuple):
    """One picture: its city, its sequence within it, and its files by key, relative to the folder."""

    city: str
    sequence: str
    files: dict[str, str]


def class_table(label_ids: Sequence[int]) -> list[int]:
    """Class of each value of a label map, for `PIL.Image.Image.point`; 255 for what is not trained on.

    Args:
        label_ids: label id of each class.

    Raises:
        ValueError: an id that Cityscapes does not have, or twice the same.

    Example:
        >>> table = class_table(list(CLASSES.values()))
        >>> len(table), table[7], table[33], table[0]
        (256, 0, 18, 255)
    """
    wrong = [number for number in label_ids if number not in KNOWN_IDS - {UNLABELED}]
    if wrong or len(set(label_ids)) != len(label_ids):
        raise ValueError(f"label_ids must be different ids of Cityscapes, 0 to 33, got {list(label_ids)}")
    table = np.full(256, UNLABELED)
    table[list(label_ids)] = np.arange(len(label_ids))
    return [int(value) for value in table]


def listed_classes(datalist: PathLike) -> dict[str, int]:
    """The classes of a datalist in their order: name -> label id.

    Raises:
        DataError: a datalist of something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "datalist.json"
        >>> _ = path.write_text('{"labels": {"0": "road", "1": "car"}, "label_ids": [7, 26]}')
        >>> listed_classes(path)
        {'road': 7, 'car': 26}
    """
    try:
        content = json.loads(Path(datalist).read_text(encoding="utf-8"))
        names, numbers = content["labels"], content["label_ids"]
        return {str(names[str(k)]): int(number) for k, number in enumerate(numbers)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{datalist}: names no classes of Cityscapes ({type(error).__name__}: {error}); write it with "
            "data_prep/cityscapes.py"
        ) from error


# --- folders -----------------------------------------------------------------------------------------------------


def find_frames(root: Path, split: str) -> list[Frame]:
    """All pictures of one split with the masks and drawings that are there, sorted.

    Args:
        root: the folder with ``leftImg8bit``.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"train_extra"``.

    Raises:
        DataError: a picture that is not named ``<city>_<sequence>_<frame>_leftImg8bit.png`` in the folder of its city.
    """
    found = []
    for path in sorted((root / "leftImg8bit" / split).glob("*/*.png")):
        parts = path.name.removesuffix(_IMAGE).rsplit("_", 2)
        if not path.name.endswith(_IMAGE) or len(parts) != 3 or parts[0] != path.parent.name:
            raise DataError(
                f"{path}: expected <city>_<sequence>_<frame>{_IMAGE} in the folder of its city; restore the official "
                "name"
            )
        stem = f"{path.parent.name}/{path.name.removesuffix(_IMAGE)}"
        files = {"image": f"leftImg8bit/{split}/{stem}{_IMAGE}"}
        for key, package in (("label", "gtFine"), ("coarse", "gtCoarse")):
            for ending in ("labelIds.png", "polygons.json"):
                name = f"{package}/{split}/{stem}_{package}_{ending}"
                if key not in files and (root / name).is_file():
                    files[key] = name
        found.append(Frame(parts[0], parts[1], files))
    return found


def stray_files(root: Path, split: str, frames: Sequence[Frame]) -> list[str]:
    """Masks and drawings of a split that belong to no picture.

    Example:
        >>> stray_files(Path("/nowhere"), "train", [])
        []
    """
    images = {frame.files["image"].removeprefix(f"leftImg8bit/{split}/").removesuffix(_IMAGE) for frame in frames}
    stray = []
    for package in ("gtFine", "gtCoarse"):
        ending = f"_{package}_labelIds.png"
        for path in sorted((root / package / split).glob(f"*/*{ending}")):
            if f"{path.parent.name}/{path.name.removesuffix(ending)}" not in images:
                stray.append(path.relative_to(root).as_posix())
    return stray


def hold_out(frames: Sequence[Frame], ratio: float, seed: int) -> set[str]:
    """Which cities of the training pictures are held out for development; sequences, where there is one city.

    Whole ones, in random order: each is taken that brings the share nearer to what is asked for, at least one and
    never all of them.

    Args:
        frames: all training pictures.
        ratio: the share of pictures, in [0, 1); 0 holds out none.
        seed: of the draw.

    Returns:
        Names as `group_of` gives them.

    Example:
        >>> frames = [Frame(city, "000000", {}) for city in "aabbbbcc"]
        >>> hold_out(frames, 0.2, seed=0)
        {'c'}
    """
    by_city = len({frame.city for frame in frames}) > 1
    groups = [group_of(frame, by_city) for frame in frames]
    sizes = {name: groups.count(name) for name in sorted(set(groups))}
    if not ratio or len(sizes) < 2:
        return set()
    wanted, chosen = ratio * len(frames), set[str]()
    for name in np.random.default_rng(seed).permutation(list(sizes)).tolist():
        taken = sum(sizes[one] for one in chosen)
        if abs(taken + sizes[name] - wanted) < abs(taken - wanted) and len(chosen) < len(sizes) - 1:
            chosen.add(name)
    return chosen or {min(sizes, key=lambda name: sizes[name])}


def group_of(frame: Frame, by_city: bool) -> str:
    """City, or city and sequence.

    Example:
        >>> group_of(Frame("aachen", "000001", {}), by_city=False)
        'aachen_000001'
    """
    return frame.city if by_city else f"{frame.city}_{frame.sequence}"


def make_sections(
    root: Path,
    validation_ratio: float = 0.15,
    seed: int = 0,
    subset: int = SUBSET,
    shared_cities: bool = False,
    held_out: Iterable[str] | None = None,
) -> dict[str, list[Item]]:
    """Sections of a datalist from the official folders.

    ``training`` is ``train`` without what is held out, ``validation`` what is held out, ``test`` is ``val``, ``subset``
    some of ``training`` drawn at random, ``extra`` is ``train_extra``, which has coarse drawings only. Sections that
    have no pictures are left out.

    Args:
        root: the folder with ``leftImg8bit`` and ``gtFine``.
        validation_ratio: share of the training pictures to hold out, see `hold_out`.
        seed: of this and of the subset.
        subset: pictures in it, at most.
        shared_cities: accept cities that are in ``train`` and in ``val``; the same picture never.
        held_out: cities or ``<city>_<sequence>`` to hold out, instead of drawing them.

    Raises:
        DataError: no such folders, no pictures, a city in two splits.
    """
    missing = [name for name in ("leftImg8bit/train", "leftImg8bit/val", "gtFine") if not (root / name).is_dir()]
    if missing:
        found = sorted(path.name for path in root.iterdir())[:8] if root.is_dir() else "no such folder"
        raise DataError(
            f"{root}: expected the folders {', '.join(missing)} of Cityscapes, got {found}; unpack "
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there"
        )
    frames = {section: find_frames(root, split) for section, split in SPLITS.items()}
    for section in ("training", "test"):
        if not frames[section]:
            raise DataError(f"{root / 'leftImg8bit' / SPLITS[section]}: holds no picture <city>/*{_IMAGE}")
    _check_cities(root, frames, shared_cities)
    drawn = set(held_out) if held_out is not None else hold_out(frames["training"], validation_ratio, seed)
    _check_held_out(drawn, frames["training"])
    held = [bool({group_of(frame, True), group_of(frame, False)} & drawn) for frame in frames["training"]]
    training = [frame.files for frame, out in zip(frames["training"], held, strict=True) if not out]
    picked = sorted(np.random.default_rng(seed).permutation(len(training))[:subset].tolist())
    sections = {
        "training": training,
        "validation": [frame.files for frame, out in zip(frames["training"], held, strict=True) if out],
        "test": [frame.files for frame in frames["test"]],
        "subset": [training[i] for i in picked],
        "extra": [frame.files for frame in frames["extra"]],
    }
    return {name: [dict(item) for item in items] for name, items in sections.items() if items}


def _check_cities(root: Path, frames: Mapping[str, Sequence[Frame]], shared_cities: bool) -> None:
    cities = {section: {frame.city for frame in part} for section, part in frames.items()}
    for section in ("training", "extra"):
        both = sorted(cities[section] & cities["test"])
        if both and not shared_cities:
            raise DataError(
                f"{root}: {', '.join(both)} is in {SPLITS[section]} and in val; cities must not be shared, move its "
                "pictures or, for data in this layout that is not split by city, pass --shared-cities"
            )
        names = [{Path(frame.files["image"]).name for frame in frames[part]} for part in (section, "test")]
        if same := sorted(names[0] & names[1]):
            raise DataError(f"{root}: {same[0]} is in {SPLITS[section]} and in val; delete one of them")


def _check_held_out(names: set[str], frames: Sequence[Frame]) -> None:
    known = {group_of(frame, by_city) for frame in frames for by_city in (True, False)}
    if wrong := sorted(names - known):
        raise DataError(f"{wrong[0]} is no city or <city>_<sequence> of train; these are {', '.join(sorted(known))}")


# --- masks and drawings ------------------------------------------------------------------------------------------


def paint_polygons(source: Path, target: Path) -> None:
    """Write the label map that a polygon file describes, by the rules of the data set.

    Names that end in ``group`` and are no label of their own count as what they are a group of; what has a negative id
    is not painted, so a licence plate is what it is fixed to.

    Raises:
        DataError: a damaged file, or a name that Cityscapes does not have.
    """
    skipped = [name + end for name, number in LABELS.items() if number < 0 for end in ("", "group")]
    layer = read_cityscapes(source, skipped=skipped).layers[0]
    table = np.zeros(int(max(layer.names, default=0)) + 1, dtype=np.uint8)
    for number, name in layer.names.items():
        known = name if name in LABELS else name.removesuffix("group")
        if known not in LABELS:
            raise DataError(f"{source}: {name!r} is no label of Cityscapes")
        table[number] = LABELS[known]
    picture = Image.fromarray(table[layer.values].T.copy())
    write_atomically(target, lambda file: picture.save(file, format="PNG"))


def label_ids_of(path: Path) -> set[int]:
    """The ids in a label map.

    Raises:
        DataError: no label map with one channel of 8 bits, or ids that Cityscapes does not have.
    """
    try:
        with Image.open(path) as image:
            mode, counts = image.mode, image.histogram() if image.mode in ("L", "P") else []
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be decoded ({type(error).__name__}: {error}); unpack it again") from error
    if not counts:
        raise DataError(f"{path}: has mode {mode}, expected one channel of 8 bits; is it *_color.png?")
    found = {value for value, number in enumerate(counts) if number}
    if unknown := sorted(found - KNOWN_IDS):
        raise DataError(
            f"{path}: holds the label ids {', '.join(map(str, unknown))}, Cityscapes has 0 to 33; pass *_labelIds.png "
            "and not *_labelTrainIds.png or *_instanceIds.png"
        )
    return found


def datalist_content(name: str, sections: Mapping[str, Sequence[Item]], present: Iterable[int]) -> dict[str, Any]:
    """Content of ``datalist.json``; its classes are those of the benchmark that are present.

    Raises:
        DataError: fewer than two classes.

    Example:
        >>> content = datalist_content("a", {"training": [], "test": []}, [0, 7, 26])
        >>> content["labels"], content["label_ids"]
        ({'0': 'road', '1': 'car'}, [7, 26])
    """
    there = set(present)
    classes = {label: number for label, number in CLASSES.items() if number in there}
    if len(classes) < 2:
        raise DataError(f"{name}: the masks of training show {len(classes)} of the benchmark's classes, expected 2")
    return {
        "name": name,
        "tensorImageSize": "2D",
        "modality": {"0": "R", "1": "G", "2": "B"},
        "labels": {str(k): label for k, label in enumerate(classes)},
        "label_ids": list(classes.values()),
        "numTraining": len(sections["training"]),
        "numTest": len(sections["test"]),
        **sections,
    }
