"""Prepare a data set case by case: resume, split by patient, datalist, provenance. For sets that must be converted.

A case is one scan. Its files go to ``cases/<name>/``, written aside and renamed into place when whole, with
``case.json``: checksums of the source files, sizes of the files made, and the items for the datalist. So a stopped run
goes on where it stopped, and a finished one is only looked through. ``provenance.json`` is there from the beginning and
tells whether the run is ``finished``; ``datalist.json`` is written in the end.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from tqdm import tqdm

from medcoarse import __version__
from medcoarse.datalist import DataError, Item
from medcoarse.files import write_json
from medcoarse.inspection import count, sha256_of

MAX_LINES = 20
"""Problems printed in one error; further ones are counted."""

SECTIONS = ("training", "validation", "test")
_CASE = "case.json"


@dataclass(frozen=True)
class Case:
    """One scan: what it is made of, and what makes its files.

    ``write`` gets an empty folder, fills it and returns items with file names relative to it; it raises `DataError` for
    a scan that cannot be used.
    """

    name: str
    patient: str
    files: tuple[Path, ...]
    write: Callable[[Path], list[Item]]


@dataclass(frozen=True)
class Split:
    """Which patients go where; see `split_patients`."""

    validation_ratio: float = 0.2
    test_ratio: float = 0.2
    seed: int = 0
    fold: int = 0


DEFAULT_SPLIT = Split()


# --- patients ----------------------------------------------------------------------------------------------------


def split_patients(patients: Iterable[str], split: Split) -> dict[str, list[str]]:
    """Put every patient in one section, so that nobody is both learned from and tested on.

    The sorted patients are shuffled with the seed and turned on by ``fold`` times the number of test patients; the
    first ones are for testing, the next for validation. With 5 patients, folds 0 to 4 are leave-one-out.

    Args:
        patients: their names; repetitions count once.
        split: ratios in (0, 1), rounded to whole patients, at least one; seed and fold.

    Returns:
        Names by section, sorted.

    Raises:
        DataError: fewer than three patients, or nobody is left for training.

    Example:
        >>> for fold in (0, 1):
        ...     print(split_patients("abcde", Split(fold=fold)))
        {'training': ['a', 'b', 'd'], 'validation': ['e'], 'test': ['c']}
        {'training': ['a', 'b', 'c'], 'validation': ['d'], 'test': ['e']}
    """
    names = sorted(set(patients))
    num_test = max(1, round(split.test_ratio * len(names)))
    num_validation = max(1, round(split.validation_ratio * len(names)))
    if len(names) < num_test + num_validation + 1:
        raise DataError(
            f"{count(len(names), 'patient')} found, of whom {num_test} would be for testing and {num_validation} for "
            "validation and nobody for training; add patients or lower --test_ratio and --validation_ratio"
        )
    shuffled = np.random.default_rng(split.seed).permutation(np.array(names))
    turned = np.roll(shuffled, -split.fold * num_test).tolist()
    parts = turned[num_test + num_validation :], turned[num_test : num_test + num_validation], turned[:num_test]
    return {section: sorted(part) for section, part in zip(SECTIONS, parts, strict=True)}


def by_section(items: Iterable[tuple[str, Item]], chosen: Mapping[str, Sequence[str]]) -> dict[str, list[Item]]:
    """Items of each section, given as (patient, item)."""
    pairs = list(items)
    return {section: [item for patient, item in pairs if patient in chosen[section]] for section in SECTIONS}


def file_name(path: Path, base: Path) -> str:
    """Name of a source file in records: relative to its base where it lies there, else its last part alone."""
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name


def load_nifti(path: Path) -> Any:
    """A NIfTI image, read to the last byte: nibabel alone would not look at the checksum of a compressed file.

    Raises:
        DataError: damaged, cut short or something else.
    """
    try:
        content = path.read_bytes()
        image: Any = nibabel.Nifti1Image.from_bytes(gzip.decompress(content) if path.suffix == ".gz" else content)
        image.get_fdata(caching="unchanged", dtype=np.float32)
    except Exception as error:  # nibabel promises no types
        raise DataError(f"{path}: damaged or no NIfTI file ({type(error).__name__}); unpack it again") from None
    return image


# --- a folder of our own -----------------------------------------------------------------------------------------


def recorded(folder: Path) -> dict[str, Any] | None:
    """The provenance of a folder; ``None`` if it has none that can be read."""
    try:
        found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """Begin or go on with a folder: it must be absent, empty, or of the very same data set and parameters.

    Raises:
        FileExistsError: anything else is there.
    """
    found = recorded(folder)
    if found is None and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and holds no data set of this script; choose another folder")
    plain = json.loads(json.dumps(facts))  # as it will be read back
    if found is None:
        write_json(folder / "provenance.json", {**plain, "finished": False})
        return
    for key, wanted in plain.items():
        if found.get(key) != wanted:
            raise FileExistsError(
                f"{folder} holds another data set: {key} is {found.get(key)!r}, wanted is {wanted!r}; choose another "
                "folder, or delete this one to have it made again"
            )


# --- case by case ------------------------------------------------------------------------------------------------


def prepare_cases(
    output_dir: Path,
    source_dir: Path,
    cases: Sequence[Case],
    facts: Mapping[str, Any],
    header: Mapping[str, Any],
    split: Split,
    problems: Sequence[str] = (),
    skip_incomplete: bool = False,
) -> Path:
    """Make what is missing of a data set, then its datalist and provenance.

    Args:
        output_dir: where it goes.
        source_dir: folder that recorded names of source files are relative to.
        cases: the scans, with different names.
        facts: what identifies the data set: name, official site, generator with its version, parameters.
        header: what stands in the datalist beside its sections.
        split: of the patients.
        problems: found before, e.g. scans that miss a file.
        skip_incomplete: leave out what cannot be used instead of refusing all; recorded as ``left_out``.

    Returns:
        ``output_dir``, resolved.

    Raises:
        DataError: every problem found.
        FileExistsError: ``output_dir`` holds something else.
    """
    output_dir = output_dir.resolve()
    require_none(problems, skip_incomplete)
    split_patients((case.patient for case in cases), split)  # too few are told before hours of work
    facts = {**facts, "parameters": {**facts["parameters"], "split": vars(split)}}
    claim(output_dir, facts)
    found, made = list(problems), 0
    items: dict[str, list[Item]] = {}
    for case in tqdm(cases, desc="scans", unit="scan", disable=None):
        folder = output_dir / "cases" / case.name
        try:
            there = _finished(folder, case, source_dir)
            items[case.name] = _make(folder, case, source_dir) if there is None else there
            made += there is None
        except DataError as error:
            found.append(str(error))
    require_none(found[len(problems) :], skip_incomplete)
    left_out = [text.replace(f"{source_dir}{os.sep}", "") for text in found]
    _finish(output_dir, cases, items, facts, header, split, left_out)
    kept = len(items) - made
    print(f"{output_dir}: {count(made, 'scan')} prepared, {kept} there already, {len(found)} left out")
    return output_dir


def require_none(problems: Sequence[str], skip_incomplete: bool) -> None:
    """One error for all problems, or a warning where they are to be skipped."""
    if not problems:
        return
    lines = [f"  - {problem}" for problem in problems[:MAX_LINES]]
    if len(problems) > MAX_LINES:
        lines.append(f"  ... and {len(problems) - MAX_LINES} more")
    text = "\n".join([f"{count(len(problems), 'problem')} in the data:", *lines])
    if not skip_incomplete:
        raise DataError(f"{text}\nPut these right, or leave them out with --skip-incomplete")
    print(f"warning: {text}\nleft out because of --skip-incomplete", file=sys.stderr)


def _finished(folder: Path, case: Case, source_dir: Path) -> list[Item] | None:
    """Items of a case that is there, whole, and made of files of the same names and sizes; else ``None``."""
    try:
        record = json.loads((folder / _CASE).read_text(encoding="utf-8"))
        sources = {name: facts["size"] for name, facts in record["source_files"].items()}
        made = all((folder / name).stat().st_size == size for name, size in record["files"].items())
        same = sources == {file_name(path, source_dir): path.stat().st_size for path in case.files}
        return list(record["items"]) if made and same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _make(folder: Path, case: Case, source_dir: Path) -> list[Item]:
    """Write a case aside and rename it into place."""
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
    draft.mkdir(parents=True)
    try:
        items = case.write(draft)
        record = {
            "source_files": {
                file_name(path, source_dir): {"size": path.stat().st_size, "sha256": sha256_of(path)}
                for path in sorted(case.files)
            },
            "files": {path.name: path.stat().st_size for path in sorted(draft.iterdir())},
            "items": items,
        }
        write_json(draft / _CASE, record)
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or of other source files
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return items


def _finish(
    output_dir: Path,
    cases: Sequence[Case],
    items: Mapping[str, Sequence[Item]],
    facts: Mapping[str, Any],
    header: Mapping[str, Any],
    split: Split,
    left_out: Sequence[str],
) -> None:
    """Write datalist and provenance, unless the very same are there."""
    used = [case for case in cases if case.name in items]
    listed = [(case.patient, _below(f"cases/{case.name}", item)) for case in used for item in items[case.name]]
    chosen = split_patients((patient for patient, _ in listed), split)  # of those who have any item
    write_if_new(output_dir / "datalist.json", datalist(header, by_section(listed, chosen)))
    records = {case.name: _summary(output_dir / "cases" / case.name / _CASE) for case in used}
    record = {**facts, "finished": True, "patients": chosen, "left_out": left_out, "cases": records}
    write_record(output_dir, record)


def datalist(header: Mapping[str, Any], sections: Mapping[str, Sequence[Item]]) -> dict[str, Any]:
    """Content of a datalist in MONAI's format."""
    numbers = {"numTraining": len(sections["training"]), "numTest": len(sections["test"])}
    return {**header, **numbers, **sections}


def write_if_new(path: Path, content: Any) -> bool:
    """Write JSON unless the file holds the same already; was it written?"""
    text = json.dumps(content, indent=2) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_json(path, content)
    return True


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write provenance, with time and tool, unless it says the same already."""
    found = recorded(folder) or {}
    plain = json.loads(json.dumps(record))
    if {key: value for key, value in found.items() if key not in ("created", "tool")} == plain:
        return
    stamp = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "tool": f"medcoarse {__version__}"}
    write_json(folder / "provenance.json", {**plain, **stamp})


def _below(folder: str, item: Item) -> Item:
    """An item with its file names, texts and lists of texts, put below a folder."""

    def join(value: Any) -> Any:
        if isinstance(value, list):
            return [join(part) for part in value]
        return f"{folder}/{value}" if isinstance(value, str) else value

    return {key: join(value) for key, value in item.items()}


def _summary(path: Path) -> dict[str, Any]:
    """What provenance tells of a case; the checksum is that of its ``case.json``, which lists all files."""
    sources = json.loads(path.read_text(encoding="utf-8"))["source_files"]
    total = sum(facts["size"] for facts in sources.values())
    return {"num_source_files": len(sources), "source_bytes": total, "case_json_sha256": sha256_of(path)}


# --- command line ------------------------------------------------------------------------------------------------


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `split_of` reads, and ``--skip-incomplete``."""
    add = parser.add_argument
    default = DEFAULT_SPLIT
    add(
        "--test_ratio", type=_ratio, default=default.test_ratio, help="share of the patients for testing (default: 0.2)"
    )
    add("--validation_ratio", type=_ratio, default=default.validation_ratio, help="and for validation (default: 0.2)")
    add("--seed", type=int, default=default.seed, help="of the shuffling of patients (default: 0)")
    add(
        "--fold",
        type=int,
        default=default.fold,
        help="turn of the shuffled patients; other folds test others (default: 0)",
    )
    add("--skip-incomplete", action="store_true", help="leave out scans that cannot be used instead of stopping")


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def split_of(args: argparse.Namespace) -> Split:
    """The split that the command line asks for."""
    return Split(args.validation_ratio, args.test_ratio, args.seed, args.fold)


def run(prepare: Callable[[], Path]) -> int:
    """Prepare and report; returns the exit status: 0 done, 1 a problem with the data, 130 stopped by the user."""
    try:
        root = prepare()
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"next: medcoarse.datalist.load_datalist({os.fspath(root / 'datalist.json')!r}, 'training') lists the items")
    return 0
