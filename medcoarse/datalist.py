"""Read datalists in MONAI's JSON format and verify the files they name before training starts."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from medcoarse import __version__
from medcoarse.assignment import ANNOTATORS_KEY, Annotators, assign_annotators, assignment_problems, with_annotators
from medcoarse.files import write_json
from medcoarse.inspection import (
    PIL_SUFFIXES,
    Rules,
    channel_problems,
    count,
    inspect_all,
    leaks,
    section_problems,
    sha256_of,
    structure_problems,
)

PathLike: TypeAlias = "str | os.PathLike[str]"
Item: TypeAlias = dict[str, Any]
"""One datalist entry: key -> file, or list of files that are read as channels, or plain metadata."""

MAX_LINES = 20
"""Problems printed in one error; further ones are counted."""

_logger = logging.getLogger(__name__)


class DataError(ValueError):
    """The data set cannot be trained on as it stands; the text lists every problem with its remedy."""


# --- reading -----------------------------------------------------------------------------------------------------


def load_datalist(
    path: PathLike,
    section: str = "training",
    base_dir: PathLike | None = None,
    path_keys: Sequence[str] | None = None,
    num_items: int | None = None,
) -> list[Item]:
    """Read one section of a datalist and make its file names absolute.

    The format is MONAI's (Medical Segmentation Decathlon): ``{"training": [{"image": ..., "label": ...}], ...}``.
    An entry that is a bare string is an image without annotation. `monai.data.load_decathlon_datalist` completes
    ``image`` and ``label`` only and leaves any other missing file relative; here every listed file becomes absolute, so
    that a missing one is reported under its full name.

    Args:
        path: the JSON file.
        section: key of the section, e.g. ``"training"``.
        base_dir: folder the names are relative to; ``None`` for the folder of ``path``.
        path_keys: keys whose text is a file name; ``None`` for every key whose value is text or a list of texts, but
            for keys that end in ``annotators``: these name people.
        num_items: the first so many entries; ``None`` for all of them.

    Returns:
        The entries in file order, without keys of files that are null, empty or a list of nothing else.

    Raises:
        DataError: no such file, not JSON, no such section, empty section, an entry that is no object, or more entries
            wanted than there are.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "datalist.json").write_text('{"training": [{"image": "a.png", "label": "b.png", "fold": 0}]}')
        >>> item, = load_datalist(folder / "datalist.json")
        >>> item["image"] == str(folder.resolve() / "a.png"), item["fold"]
        (True, 0)
    """
    path = Path(path)
    folder = Path(base_dir if base_dir is not None else path.parent).resolve()
    entries = _section(_read_json(path), section, path)
    if num_items is not None and not 1 <= num_items <= len(entries):
        raise DataError(
            f"{path}: section {section!r} lists {len(entries)} items, {num_items} are wanted; ask for fewer"
        )
    return [_absolute(entry, folder, path_keys) for entry in entries[:num_items]]


def _read_json(path: Path) -> Any:
    """Parsed JSON, or a `DataError` that says what to do."""
    if not path.is_file():
        raise DataError(f"{path}: no such datalist; pass the path of a MONAI datalist JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); correct the file or write it again") from error


def _section(content: Any, section: str, path: Path) -> list[Item]:
    """The entries of one section, each as a dictionary."""
    if not isinstance(content, dict) or not isinstance(content.get(section), list):
        found = sorted(k for k, v in content.items() if isinstance(v, list)) if isinstance(content, dict) else []
        raise DataError(f"{path}: no section {section!r}, got {found}; name one of these or add the section")
    entries = [{"image": entry} if isinstance(entry, str) else entry for entry in content[section]]
    if not entries:
        raise DataError(f"{path}: section {section!r} is empty; list at least one image")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: entry {index} of {section!r} is {entry!r}; write an object with file names")
    return entries


def _absolute(entry: Item, folder: Path, path_keys: Sequence[str] | None) -> Item:
    """A copy of ``entry`` with its file names joined to ``folder``, without keys of files that name none.

    Null in a list stays, and "" becomes it: of several people that one drew nothing.
    """

    def join(value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(v, str | None) for v in value):
            return [join(v) or None for v in value]
        return os.path.normpath(folder / value) if isinstance(value, str) and value else value

    def holds_files(key: str) -> bool:
        return not key.endswith(ANNOTATORS_KEY) if path_keys is None else key in path_keys

    def names_none(value: Any) -> bool:
        return value is None or value == "" or (isinstance(value, list) and all(v is None or v == "" for v in value))

    kept = {k: v for k, v in entry.items() if v is not None and not (holds_files(k) and names_none(v))}
    return {k: join(v) if holds_files(k) else v for k, v in kept.items()}


def write_annotators(
    path: PathLike,
    annotators: Annotators,
    per_image: int = 1,
    seed: int = 0,
    section: str = "training",
    key: str = ANNOTATORS_KEY,
) -> list[list[int]]:
    """Draw who annotates which image of a datalist and write it into the file, in place of what stood there.

    Args:
        path: the JSON file; everything else in it stays.
        annotators: how many there are, or their names, which are written then.
        per_image: how many annotators each image gets.
        seed: >= 0.
        section: key of the section.
        key: where it is written.

    Returns:
        What `assign_annotators` drew.

    Raises:
        DataError: no such file, not JSON, or no such section.
        ValueError: as for `assign_annotators`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "datalist.json"
        >>> _ = path.write_text('{"training": ["a.png", "b.png"]}')
        >>> drawn = write_annotators(path, ["Ada", "Max"])
        >>> sorted(item["annotators"] for item in load_datalist(path))
        [['Ada'], ['Max']]
    """
    path = Path(path)
    content = _read_json(path)
    entries = _section(content, section, path)
    names = None if isinstance(annotators, int) else annotators
    number = annotators if isinstance(annotators, int) else len(annotators)
    assignment = assign_annotators(len(entries), number, per_image, seed)
    write_json(path, content | {section: with_annotators(entries, assignment, names, key)})
    return assignment


def verify_datalist(
    items: Sequence[Item] | Mapping[str, Sequence[Item]],
    image_key: str = "image",
    label_keys: Sequence[str] = ("label",),
    mask_keys: Sequence[str] = ("mask",),
    num_classes: int = 2,
    label_values: Iterable[float] | None = None,
    mask_values: Iterable[float] = (0, 1, 255),
    required_keys: Sequence[str] = (),
    allow_missing_annotation: bool = False,
    same_channels: bool = True,
    num_threads: int = 2,
    annotators: Annotators | None = None,
) -> int:
    """Decode every file of a datalist once and raise one error that lists all problems.

    Looked at: files exist and decode to the end; image, labels and masks have one size; labels and masks have one
    channel and only expected values; images hold no NaN or infinity and all have the same number of channels; every
    item has an annotation and the required keys; a mask is not blank; a key of ``mask_keys`` that one item has, all
    have; no image (by content) stands in two sections; who drew an image (key ``annotators``, where items have it) is a
    list of numbers or names, each once, and everyone drew something. A label without any foreground is fine: there may
    have been nothing to draw.

    Args:
        items: entries as `load_datalist` returns them, or several sections by name.
        image_key: key of the image.
        label_keys: keys of annotations; an item needs at least one.
        mask_keys: keys of optional masks (a field of view, a brain mask).
        num_classes: number of classes L; labels may then hold 0..L-1.
        label_values: the values a label may hold as stored, instead of 0..L-1, e.g. ``(0, 255)``; give 255 as well
            where it means unlabeled.
        mask_values: the values a mask may hold as stored.
        required_keys: keys of labels or masks that every item must have.
        allow_missing_annotation: accept items without any annotation.
        same_channels: refuse images whose number of channels differs from that of most.
        num_threads: files decoded at a time.
        annotators: how many annotators there are, or their names; ``None`` where only the form of the lists is checked.

    Returns:
        The number of files decoded.

    Raises:
        DataError: on any problem; at most `MAX_LINES` are printed, the rest is counted.

    Example:
        >>> verify_datalist({"training": [{"image": "/nowhere/a.png"}]})
        Traceback (most recent call last):
        ...
        medcoarse.datalist.DataError: 2 problems in the data (1 item, 1 file):
          - /nowhere/a.png: no such file; restore it or take it off the datalist
          - training[0] (/nowhere/a.png): no annotation, 'label' is missing or empty; add one, ...
    """
    sections = dict(items) if isinstance(items, Mapping) else {"items": items}
    values = frozenset(range(num_classes) if label_values is None else label_values)
    rules = Rules(
        image_key,
        tuple(label_keys),
        tuple(mask_keys),
        values,
        frozenset(mask_values),
        tuple(required_keys),
        allow_missing_annotation,
    )
    raise_problems(list(structure_problems(sections, rules)), f"{count(len(sections), 'section')}, no file looked at")
    facts = inspect_all(sections, rules, num_threads)
    problems = [f"section {name!r} is empty; list at least one image" for name, part in sections.items() if not part]
    problems += [f"{path}: {fact.problem}" for (path, _), fact in facts.items() if fact.problem]
    for name, part in sections.items():
        problems += section_problems(name, part, rules, facts)
    if same_channels:
        problems += channel_problems(sections, image_key, facts)
    problems += leaks(sections, image_key)
    problems += assignment_problems(sections, annotators)
    raise_problems(problems, f"{count(sum(map(len, sections.values())), 'item')}, {count(len(facts), 'file')}")
    return len(facts)


def raise_problems(problems: Sequence[str], looked_at: str) -> None:
    """One `DataError` for all problems, each once."""
    unique = list(dict.fromkeys(problems))
    if not unique:
        return
    lines = [f"  - {line}" for line in unique[:MAX_LINES]]
    if len(unique) > MAX_LINES:
        lines.append(f"  ... and {len(unique) - MAX_LINES} more")
    raise DataError("\n".join([f"{count(len(unique), 'problem')} in the data ({looked_at}):", *lines]))


# --- provenance --------------------------------------------------------------------------------------------------


def provenance(source: PathLike | Sequence[PathLike], base_dir: PathLike | None = None) -> dict[str, Any]:
    """Record which bytes a data set consists of.

    Args:
        source: a folder (all files below it, hidden ones, ``*.part`` and ``provenance.json`` left out) or some files.
        base_dir: folder the recorded names are relative to; ``None`` for the folder itself, or the common folder of
            the files.

    Returns:
        ``{"created": time in UTC, "tool": name and version, "total_bytes": int, "files": {name: {"size", "sha256"}}}``.

    Raises:
        DataError: nothing to record.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_bytes(b"abc")
        >>> record = provenance(folder)
        >>> record["total_bytes"], record["files"]["a.txt"]["sha256"][:8]
        (3, 'ba7816bf')
    """
    if isinstance(source, str | os.PathLike):
        base = Path(base_dir if base_dir is not None else source)
        paths = [p for p in sorted(Path(source).rglob("*")) if p.is_file() and _recorded(p.relative_to(source))]
    else:
        paths = [Path(p) for p in source]
        base = Path(base_dir if base_dir is not None else os.path.commonpath([str(p.parent) for p in paths] or ["."]))
    if not paths:
        raise DataError(f"{source}: no files to record; pass a folder that holds the data set")
    files = {p.relative_to(base).as_posix(): {"size": p.stat().st_size, "sha256": sha256_of(p)} for p in paths}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "tool": f"medcoarse {__version__}",
        "total_bytes": sum(p.stat().st_size for p in paths),
        "files": files,
    }


def _recorded(name: Path) -> bool:
    """Is a file part of the data, rather than hidden, half fetched or the record itself?"""
    hidden = any(part.startswith(".") for part in name.parts)
    return not hidden and name.suffix != ".part" and name.name != "provenance.json"


def verify_prepared(dataset_dir: PathLike, script: str, num_training: int | None = None, **rules: Any) -> int:
    """Verify the training, validation and test items of a folder that a script of ``data_prep/`` made.

    Args:
        dataset_dir: the folder with ``datalist.json``.
        script: the script, for the error.
        num_training: training items that are wanted; ``None`` takes what there is.
        rules: what the files must be like, see `verify_datalist`.

    Returns:
        The number of files decoded.

    Raises:
        DataError: no datalist, too few training items, or any problem of the files.
    """
    path = Path(dataset_dir) / "datalist.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `python {script}` and pass the folder it makes as dataset_dir")
    load_datalist(path, "training", num_items=num_training)
    sections = {name: load_datalist(path, name) for name in ("training", "validation", "test")}
    return verify_datalist(sections, **rules)


# --- LES-AV ------------------------------------------------------------------------------------------------------


def les_av_root(dataset_dir: PathLike) -> Path:
    """Find the folder with ``images/``: ``dataset_dir`` itself or the only one directly below it.

    Raises:
        DataError: no such folder, or none or several with ``images/`` and ``vessel-segmentations/``.
    """
    top = Path(dataset_dir).resolve()
    remedy = "run `python data_prep/les_av.py` or pass the LES-AV folder as dataset_dir"
    if not top.is_dir():
        raise DataError(f"{top}: no such folder; {remedy}")
    if (top / "images").is_dir():
        return top
    nested = [p.parent for p in sorted(top.glob("*/images")) if (p.parent / "vessel-segmentations").is_dir()]
    if len(nested) != 1:
        found = sorted(p.name for p in top.iterdir())[:8]
        raise DataError(
            f"{top}: expected images/ and vessel-segmentations/, got {found or 'an empty folder'}; {remedy}"
        )
    return nested[0]


def les_av_datalist(dataset_dir: PathLike) -> dict[str, Any]:
    """Make the datalist of a folder in LES-AV's layout from the files found there.

    An image ``images/<id>.*`` goes with ``vessel-segmentations/<id>.*`` and ``masks/<id>_mask.*``; what is not there is
    not listed. Ids are sorted numerically and every fifth one (positions 4, 9, 14, ... counted from 0) is a test image.

    Args:
        dataset_dir: the folder, or the one above it.

    Returns:
        The content of a datalist, file names relative to `les_av_root`.

    Raises:
        DataError: no images.
    """
    root = les_av_root(dataset_dir)
    images = sorted((p for p in (root / "images").iterdir() if p.suffix.lower() in PIL_SUFFIXES), key=_numerically)
    if not images:
        raise DataError(f"{root / 'images'}: holds no image ({', '.join(PIL_SUFFIXES)}); put the photographs there")
    entries = [_les_av_entry(root, image) for image in images]
    test = entries[4::5]
    training = [entry for index, entry in enumerate(entries) if index % 5 != 4]
    return {
        "name": root.name,
        "tensorImageSize": "2D",
        "modality": {"0": "R", "1": "G", "2": "B"},
        "labels": {"0": "background", "1": "vessel"},
        "numTraining": len(training),
        "numTest": len(test),
        "training": training,
        "test": test,
    }


def _numerically(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts 42 before 111."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem) if part]


def _les_av_entry(root: Path, image: Path) -> dict[str, str]:
    places = {"label": ("vessel-segmentations", image.stem), "mask": ("masks", f"{image.stem}_mask")}
    entry = {"image": f"images/{image.name}"}
    for key, (folder, stem) in places.items():
        names = (f"{folder}/{stem}{suffix}" for suffix in PIL_SUFFIXES)
        if found := next((name for name in names if (root / name).is_file()), None):
            entry[key] = found
    return entry


def les_av_items(dataset_dir: PathLike, datalist_path: PathLike | None = None, section: str = "training") -> list[Item]:
    """Items of a folder in LES-AV's layout, file names absolute; nothing is decoded.

    The split comes from ``datalist.json`` in the folder, else from ``datalist_path`` if more than half of the images it
    lists are there, else from `les_av_datalist` (own photographs in the same layout, some of which may happen to bear
    a listed name). So LES-AV with a missing image keeps its split, and `verify_les_av` names that image.

    Args:
        dataset_dir: the folder, or the one above it.
        datalist_path: the split to use where the folder has none.
        section: ``"training"`` or ``"test"``.

    Returns:
        Dictionaries with ``image``, ``label`` and ``mask``.

    Raises:
        DataError: no such folder, datalist or section.
    """
    root = les_av_root(dataset_dir)
    if (root / "datalist.json").is_file():
        return load_datalist(root / "datalist.json", section, root)
    if datalist_path is not None:
        items = load_datalist(datalist_path, section, root)
        if _fits(Path(datalist_path), root):
            return items
    entries = _section(les_av_datalist(root), section, root)
    return [_absolute(entry, root, None) for entry in entries]


def _fits(datalist: Path, root: Path) -> bool:
    """Does a folder hold most of the images that a split lists for training and testing? If not, say so."""
    sections = [name for name in ("training", "test") if _read_json(datalist).get(name)]
    items = [item for name in sections for item in load_datalist(datalist, name, root)]
    listed = [item["image"] for item in items if isinstance(item.get("image"), str)]
    missing = [name for name in listed if not Path(name).is_file()]
    if 2 * len(missing) < len(listed):
        return True
    _logger.warning(
        "%s: %d of its %d images are not in %s (first %s): every fifth image is used for testing",
        *(datalist, len(missing), len(listed), root, os.path.relpath(missing[0], root) if missing else "none"),
    )
    return False


def verify_les_av(dataset_dir: PathLike, datalist_path: PathLike | None = None, num_threads: int = 2) -> int:
    """Verify training and test items of a folder in LES-AV's layout (vessels stored as 0/255, masks as 0/1).

    Every item needs a label and a mask. Photographs may differ in their channels (grey, RGB, RGBA): the bundle reads
    all of them as RGB.

    Args:
        dataset_dir: the folder, or the one above it.
        datalist_path: the split to use where the folder has none.
        num_threads: files decoded at a time.

    Returns:
        The number of files decoded.

    Raises:
        DataError: every problem found, see `verify_datalist`.
    """
    sections = {name: les_av_items(dataset_dir, datalist_path, name) for name in ("training", "test")}
    required = ("label", "mask")
    return verify_datalist(
        sections, label_values=(0, 255), required_keys=required, same_channels=False, num_threads=num_threads
    )
