"""Verify and list the ISBI 2015 longitudinal MS lesion challenge: brain MRI with lesions outlined by two raters.

    python data_prep/ms_lesions.py --folder data/ISBI-2015                     # datalist.json goes there too
    python data_prep/ms_lesions.py --folder data/ISBI-2015 --fold 2            # other patients for testing

How to get the data: register at the challenge's site ("Longitudinal MS Lesion Segmentation Challenge",
smart-stats-tools at Johns Hopkins University), accept its terms and unpack the training archive. Nothing is downloaded
here, converted or copied: the datalist names the official files. A second run compares checksums and changes nothing.

Layout, as the training archive is known to be; folders above a patient's, and whether files are compressed, are free:

    training01/preprocessed/training01_01_flair_pp.nii(.gz)    flair, mprage, pd and t2 of patient 01, visit 01
    training01/masks/training01_01_mask1.nii(.gz)              rater 1; mask2 is rater 2

The five patients have four or five visits each. Files of ``orig/`` and of the test archive, whose outlines are kept
by the challenge, are not used.

Items of the datalist:

    image      four files, read as channels: FLAIR, MPRAGE (T1), PD, T2
    positive   two files, read as channels: rater 1, rater 2; 1 = lesion, 0 = none
    spacing    in mm, as the header states it (the challenge's preprocessed images are 1 mm isotropic)
    case       patient and visit

All visits of a patient are in one section. Images of a visit must lie on one grid. Where a mask states another position
in space than its image, a note says so: MONAI goes by the image's.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import (
    DEFAULT_SPLIT,
    Split,
    add_split_arguments,
    by_section,
    datalist,
    load_nifti,
    recorded,
    require_none,
    run,
    split_of,
    split_patients,
    write_if_new,
    write_record,
)

from medcoarse.datalist import DataError, Item, provenance, verify_datalist
from medcoarse.inspection import count

SITE = "Longitudinal MS Lesion Segmentation Challenge (ISBI 2015), smart-stats-tools, Johns Hopkins University"
MODALITIES = ("flair", "mprage", "pd", "t2")
RATERS = ("mask1", "mask2")
GENERATOR_VERSION = 1

_FILE = re.compile(r"(training\d\d)_(\d\d)_(?:(flair|mprage|pd|t2)_pp|(mask[12]))\.nii(?:\.gz)?")

_HEADER = {
    "name": "ISBI 2015 longitudinal MS lesion challenge",
    "tensorImageSize": "3D",
    "modality": {str(index): name.upper() for index, name in enumerate(MODALITIES)},
    "labels": {"0": "background", "1": "lesion"},
    "annotators": ["rater 1", "rater 2"],
}

Visit = tuple[str, int]
"""Patient and visit."""


def find_visits(folder: Path) -> dict[Visit, dict[str, Path]]:
    """Files of every visit, by modality and rater, wherever they lie below a folder.

    Raises:
        DataError: no such folder, none of the files in it, or one of them twice.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; unpack the training archive of the {SITE} and name its folder")
    visits: dict[Visit, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*.nii*")):
        if not (match := _FILE.fullmatch(path.name)):
            continue
        patient, visit, modality, rater = match.groups()
        files = visits.setdefault((patient, int(visit)), {})
        if (other := files.setdefault(modality or rater, path)) != path:
            raise DataError(f"{path}: the same file as {other}; keep one of them")
    if not visits:
        raise DataError(
            f"{folder}: no file like training01_01_flair_pp.nii below it; unpack the training archive of the {SITE} "
            "there (registration is needed, so it is not downloaded here)"
        )
    return visits


def missing_files(visits: Mapping[Visit, Mapping[str, Path]]) -> dict[Visit, str]:
    """What is missing, in words, for every visit that is not complete."""
    problems = {}
    for (patient, visit), files in visits.items():
        stem = f"{patient}_{visit:02d}"
        names = [f"preprocessed/{stem}_{key}_pp.nii" for key in MODALITIES if key not in files]
        names += [f"masks/{stem}_{key}.nii" for key in RATERS if key not in files]
        if names:
            problems[patient, visit] = (
                f"{patient}, visit {visit}: no {', no '.join(names)} (nor .nii.gz); unpack the training archive again"
            )
    return problems


def check_geometry(files: Mapping[str, Path]) -> tuple[list[float], list[str]]:
    """Spacing of a visit in mm, and notes on masks that state another position.

    Raises:
        DataError: a file that cannot be read, or images on different grids.
    """
    headers = {key: _header(files[key]) for key in (*MODALITIES, *RATERS)}
    for key, (shape, affine, _) in headers.items():
        first = MODALITIES[0] if key in MODALITIES else RATERS[0]  # files that are read as channels of one image
        if shape != headers[first][0] or not np.allclose(affine, headers[first][1], atol=1e-3):
            raise DataError(
                f"{files[key]}: other size, position or spacing than {files[first].name}; use the files of one archive"
            )
    _, affine, spacing = headers[MODALITIES[0]]
    if np.allclose(headers[RATERS[0]][1], affine, atol=1e-3):
        return spacing, []
    return spacing, [f"{files[RATERS[0]]}: states another position than {files[MODALITIES[0]].name}; not used"]


def _header(path: Path) -> tuple[tuple[int, ...], Any, list[float]]:
    image = load_nifti(path)
    return tuple(image.shape), image.affine, [round(float(value), 6) for value in image.header.get_zooms()[:3]]


def prepare(
    folder: Path, output_dir: Path | None = None, split: Split = DEFAULT_SPLIT, skip_incomplete: bool = False
) -> Path:
    """Verify the challenge's training data and write its datalist and provenance.

    Args:
        folder: where the training archive is unpacked.
        output_dir: where datalist and provenance go; ``None`` for ``folder``.
        split: of the patients.
        skip_incomplete: leave out visits that miss a file instead of refusing the data.

    Returns:
        Where datalist and provenance are, resolved.

    Raises:
        DataError: files are missing or damaged, or do not fit together.
        FileExistsError: there is a datalist that this script has not made.
    """
    folder = folder.resolve()
    root = (output_dir or folder).resolve()
    visits = find_visits(folder)
    missing = missing_files(visits)
    require_none(list(missing.values()), skip_incomplete)
    whole = {visit: files for visit, files in sorted(visits.items()) if visit not in missing}
    chosen = split_patients((patient for patient, _ in whole), split)
    _require_own(root)
    record = _record(folder, whole, split, chosen, list(missing.values()))
    if _unchanged(root, record):
        print(f"{root}: {count(len(whole), 'visit')}, unchanged since they were verified")
        return root
    items = [(patient, _item(patient, visit, files)) for (patient, visit), files in whole.items()]
    sections = by_section(items, chosen)
    num_files = verify_datalist(
        sections, label_keys=("positive",), label_values=(0, 1), required_keys=("positive",), mask_keys=()
    )
    write_if_new(root / "datalist.json", datalist(_HEADER, _relative(sections, root)))
    write_record(root, record)
    num_patients = len({patient for patient, _ in whole})
    print(f"{root}: {count(len(whole), 'visit')} of {count(num_patients, 'patient')}", end=", ")
    print(f"{count(num_files, 'file')} decoded and verified")
    return root


def _require_own(root: Path) -> None:
    """A datalist of somebody else is not overwritten."""
    if (root / "datalist.json").exists() and (recorded(root) or {}).get("generator") != "data_prep/ms_lesions.py":
        raise FileExistsError(f"{root / 'datalist.json'} was not made by this script; move it, or name --output_dir")


def _record(
    folder: Path,
    visits: Mapping[Visit, Mapping[str, Path]],
    split: Split,
    chosen: Mapping[str, Sequence[str]],
    left_out: Sequence[str],
) -> dict[str, Any]:
    files = [path for found in visits.values() for path in found.values()]
    return {
        "dataset": "ISBI 2015 longitudinal MS lesion challenge, training data",
        "site": SITE,
        "licence": "the terms you accepted when you registered for the data",
        "generator": "data_prep/ms_lesions.py",
        "generator_version": GENERATOR_VERSION,
        "parameters": {"split": vars(split)},
        "patients": dict(chosen),
        "left_out": list(left_out),
        "files": provenance(files, folder)["files"],
    }


def _unchanged(root: Path, record: Mapping[str, Any]) -> bool:
    """Is everything as it was when it was verified?"""
    found = recorded(root) or {}
    return (root / "datalist.json").is_file() and {key: found.get(key) for key in record} == record


def _item(patient: str, visit: int, files: Mapping[str, Path]) -> Item:
    """Item of a visit; file names absolute."""
    spacing, notes = check_geometry(files)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return {
        "image": [os.fspath(files[key]) for key in MODALITIES],
        "positive": [os.fspath(files[key]) for key in RATERS],
        "spacing": spacing,
        "case": {"patient": patient, "visit": visit},
    }


def _relative(sections: Mapping[str, Sequence[Item]], root: Path) -> dict[str, list[Item]]:
    """The same items, file names relative to a folder."""

    def names(paths: Sequence[str]) -> list[str]:
        return [Path(os.path.relpath(path, root)).as_posix() for path in paths]

    return {
        name: [{**item, "image": names(item["image"]), "positive": names(item["positive"])} for item in part]
        for name, part in sections.items()
    }


# --- command line ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Verify the ISBI 2015 longitudinal MS lesion challenge and write a MONAI datalist of it.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where the challenge's training archive is unpacked")
    add("--output_dir", type=Path, help="where datalist.json and provenance.json go (default: the folder)")
    add_split_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    args = _parser().parse_args(argv)
    return run(lambda: prepare(args.folder, args.output_dir, split_of(args), args.skip_incomplete))


if __name__ == "__main__":
    sys.exit(main())
