"""Cut lung nodules out of LIDC-IDRI: 1 mm, 180 x 180 pixels, one mask for each of the four readers.

    python data_prep/lidc.py --folder data/LIDC-IDRI --output_dir data/LIDC
    python data_prep/lidc.py --folder data/LIDC-IDRI --xml_folder data/LIDC-XML-only --skip-incomplete

Needs pydicom: pip install pydicom.

How to get the data: the collection LIDC-IDRI of The Cancer Imaging Archive (TCIA): CT images (about 125 GB) and, as a
second download or together with them, the radiologists' annotations in XML. Read its usage policy. Nothing is
downloaded here: the archive has a program of its own for it (NBIA Data Retriever).

Layout: every folder with .dcm files is a series; annotation files (.xml) may lie beside the slices or anywhere below
``--xml_folder``, and are matched by the series UID they state. Series that are no CT, and annotations of radiographs,
are passed over. Series are sorted by position, never by name.

What is read how (medcoarse/readers/lidc.py has the details): outlines lie *outside* a nodule, what they enclose is the
nodule, ``inclusion`` FALSE cuts out; nodules below 3 mm are single points and are ignored. Nodules of different readers
are the same one if they share a voxel or their centroids are at most ``--max_distance_mm`` apart.

For every nodule that any reader outlined, the slices (1 mm apart) that any of its masks reaches become items:

    image      NIfTI, one slice, Hounsfield units, interpolated linearly; -1024 outside the scan
    positive   four NIfTI files, reader 1 to 4: 1 = lesion, 0 = none, 255 = this scan was not read by so many
    marked     four numbers, 1 if that reader outlined this nodule; where 0, the mask is background
    spacing    1 mm
    case       scan, patient (the collection's public, anonymous number), nodule and slice

Readers are in the file's order: the collection does not tell whether reader 1 of two scans is one person. Other nodules
that happen to lie in a crop are lesions in the masks of those who outlined them; ``--neighbours background`` keeps them
out, as some published protocols do. A slice is stored as a volume of one slice: LoadImaged and EnsureChannelFirstd give
(1, 180, 180, 1) and (4, 180, 180, 1), and SqueezeDimd(keys, dim=-1) makes them 2D.

Nothing of the DICOM headers is written or printed but geometry, the collection's patient number and checksums.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from cases import DEFAULT_SPLIT, Case, Split, add_split_arguments, prepare_cases, run, split_of
from tqdm import tqdm

from medcoarse.datalist import DataError, Item
from medcoarse.readers.dicom import (
    AIR_HU,
    Series,
    first_index,
    nifti_affine,
    pydicom_module,
    read_series,
    read_tags,
    resample,
)
from medcoarse.readers.lidc import Reading, match_nodules, nodule_voxels, read_lidc_xml

SITE = "The Cancer Imaging Archive (TCIA), collection LIDC-IDRI"
LICENCE = "Creative Commons Attribution 3.0 Unported, and TCIA's data usage policy"
NUM_READERS = 4
UNREAD = 255
"""In masks of readers who did not read the scan: nothing is known, which is not background."""

GENERATOR_VERSION = 1

_PATIENT = re.compile(r"LIDC-IDRI-\d{4}")
_nibabel: Any = nibabel  # has no types

Voxels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """How nodules are matched and cut out."""

    size: int = 180
    spacing_mm: float = 1.0
    max_distance_mm: float = 3.0
    neighbours: str = "lesion"


DEFAULT_OPTIONS = Options()


@dataclass(frozen=True)
class Scan:
    """A CT series with its annotations."""

    patient: str
    series_uid: str
    slices: tuple[Path, ...]
    xml: Path


# --- the files ---------------------------------------------------------------------------------------------------


def find_series(folder: Path) -> tuple[dict[str, tuple[str, tuple[Path, ...]]], list[str]]:
    """CT series below a folder: patient and slices by series UID, and what cannot be used, in words.

    One header a folder is looked at; a folder that mixes series is found when its slices are read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; get the collection from {SITE} and name its folder")
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*.dcm")):
        by_folder[path.parent].append(path)
    found: dict[str, tuple[str, tuple[Path, ...]]] = {}
    problems = []
    for where, paths in tqdm(sorted(by_folder.items()), desc="series", unit="series", disable=None):
        try:
            tags = read_tags(paths[0], ("SeriesInstanceUID", "Modality", "PatientID"))
        except DataError as error:
            problems.append(str(error))
            continue
        if tags["Modality"] != "CT":
            continue
        if not _PATIENT.fullmatch(tags["PatientID"]):
            problems.append(f"{where}: its PatientID is not like LIDC-IDRI-0001; only the public collection is read")
        elif (other := found.setdefault(tags["SeriesInstanceUID"], (tags["PatientID"], tuple(paths))))[1][0] != paths[
            0
        ]:
            problems.append(f"{where}: the same series as {other[1][0].parent}; keep one of them")
    if not found and not problems:
        raise DataError(
            f"{folder}: no CT series (.dcm) below it; get the collection from {SITE} with the archive's own program"
        )
    return found, problems


def find_annotations(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Annotation files of CT scans below a folder by series UID, and what cannot be used, in words."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; get the annotations (XML) of {SITE}")
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.rglob("*.xml")):
        try:
            reading = read_lidc_xml(path)
        except DataError as error:
            problems.append(str(error))
            continue
        if reading is None:
            continue
        other = found.setdefault(reading.series_uid, path)
        if other != path and other.read_bytes() != path.read_bytes():
            problems.append(f"{path}: annotates the same series as {other} but differs; keep one of them")
    if not found and not problems:
        raise DataError(
            f"{folder}: no annotation file (.xml) of a CT scan below it; get them from {SITE} and name their folder "
            "with --xml_folder"
        )
    return found, problems


def pair(
    series: Mapping[str, tuple[str, tuple[Path, ...]]], annotations: Mapping[str, Path]
) -> tuple[list[Scan], list[str]]:
    """Series with their annotations, and series without, in words.

    Annotations of series that are not here are no fault: a part of the collection is enough.
    """
    scans = [Scan(who, uid, slices, annotations[uid]) for uid, (who, slices) in series.items() if uid in annotations]
    problems = [
        f"{slices[0].parent}: no annotation file states this series ({who}); get the XML files of {SITE}, or name "
        "their folder with --xml_folder"
        for uid, (who, slices) in series.items()
        if uid not in annotations
    ]
    return sorted(scans, key=lambda scan: (scan.patient, scan.series_uid)), problems


def case_names(scans: Sequence[Scan]) -> list[str]:
    """A name for every scan: its patient's, numbered where a patient has several."""
    total: dict[str, int] = defaultdict(int)
    for scan in scans:
        total[scan.patient] += 1
    seen: dict[str, int] = defaultdict(int)
    names = []
    for scan in scans:
        seen[scan.patient] += 1
        names.append(scan.patient if total[scan.patient] == 1 else f"{scan.patient}_{seen[scan.patient]}")
    return names


# --- one scan ----------------------------------------------------------------------------------------------------


def write_scan(folder: Path, name: str, scan: Scan, options: Options) -> list[Item]:
    """Write the crops of all nodules of a scan and return their items.

    Raises:
        DataError: slices or annotations cannot be used.
    """
    reading = read_lidc_xml(scan.xml)
    if reading is None or not 1 <= len(reading.readers) <= NUM_READERS:
        number = 0 if reading is None else len(reading.readers)
        raise DataError(f"{scan.xml}: {number} readers, expected 1 to {NUM_READERS}; get it again from {SITE}")
    series = read_series(scan.slices)
    try:
        nodules, readers = outlined(reading, series)
    except DataError as error:
        raise DataError(f"{scan.xml}: {error}") from None
    groups = match_nodules(nodules, readers, series.spacing_mm, options.max_distance_mm)
    everything = reader_bits(series.volume.shape, nodules, readers)
    items = []
    for number, group in enumerate(groups, start=1):
        one = [nodules[index] for index in group]
        bits = reader_bits(series.volume.shape, one, [readers[index] for index in group])
        shown = everything if options.neighbours == "lesion" else bits
        case = {"scan": name, "patient": scan.patient, "nodule": number}
        marked = [int(reader in {readers[index] for index in group}) for reader in range(NUM_READERS)]
        items += _write_nodule(
            folder, series, np.concatenate(one), bits, shown, len(reading.readers), marked, case, options
        )
    return items


def outlined(reading: Reading, series: Series) -> tuple[list[Voxels], list[int]]:
    """Voxels of all nodules that enclose any, i.e. those of at least 3 mm, and who outlined them."""
    nodules, readers = [], []
    for reader, drawn in enumerate(reading.readers):
        for outlines in drawn:
            voxels = nodule_voxels(outlines, series.sop_uids, series.z_mm)
            if not len(voxels):
                continue
            if voxels.min() < 0 or (voxels.max(axis=0) >= series.volume.shape).any():
                raise DataError("an outline lies outside the slices; it belongs to another series")
            nodules.append(voxels)
            readers.append(reader)
    return nodules, readers


def reader_bits(shape: tuple[int, ...], nodules: Sequence[Voxels], readers: Sequence[int]) -> npt.NDArray[np.uint8]:
    """All readers' masks in one volume: bit r is set where reader r sees a nodule.

    Example:
        >>> reader_bits((1, 1, 3), [np.array([[0, 0, 1]]), np.array([[0, 0, 1], [0, 0, 2]])], [0, 2]).tolist()
        [[[0, 5, 4]]]
    """
    bits = np.zeros(shape, dtype=np.uint8)
    for voxels, reader in zip(nodules, readers, strict=True):
        bits[tuple(voxels.T)] |= np.uint8(1 << reader)
    return bits


def _write_nodule(
    folder: Path,
    series: Series,
    voxels: Voxels,
    bits: npt.NDArray[np.uint8],
    shown: npt.NDArray[np.uint8],
    num_readers: int,
    marked: Sequence[int],
    case: Mapping[str, Any],
    options: Options,
) -> list[Item]:
    """Crops of one nodule, centred on the box that holds all its outlines."""
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    depth = int(np.ceil((high[0] - low[0] + 1) * series.spacing_mm[0] / options.spacing_mm)) + 2
    centre, shape = (low + high) / 2, (depth, options.size, options.size)
    grid = (series.spacing_mm, centre, shape, options.spacing_mm)
    reached = resample(bits, *grid, order=0).any(axis=(1, 2))
    image = resample(series.volume, *grid, order=1, fill=AIR_HU)
    masks = resample(shown, *grid, order=0)
    start = first_index(*grid)
    step = options.spacing_mm / series.spacing_mm
    items: list[Item] = []
    for k in np.flatnonzero(reached).tolist():
        affine = nifti_affine(series, start + np.array([k, 0, 0]) * step, options.spacing_mm)
        arrays = [masks[k] >> reader & 1 if reader < num_readers else UNREAD for reader in range(NUM_READERS)]
        items.append(_write_slice(folder, image[k], arrays, affine, {**case, "slice": len(items) + 1}))
    spacing = [options.spacing_mm] * 3
    return [{**item, "marked": list(marked), "spacing": spacing} for item in items]


def _write_slice(
    folder: Path, image: npt.NDArray[np.int16], masks: Sequence[Any], affine: Any, case: Mapping[str, Any]
) -> Item:
    stem = f"{case['nodule']:02d}_{case['slice']:03d}"
    names = [f"{stem}_image.nii.gz", *(f"{stem}_reader{reader}.nii.gz" for reader in range(1, NUM_READERS + 1))]
    whole: list[npt.NDArray[Any]] = [image, *(np.broadcast_to(mask, image.shape).astype(np.uint8) for mask in masks)]
    for name, array in zip(names, whole, strict=True):
        _nibabel.save(_nibabel.Nifti1Image(array.T[:, :, None], affine), folder / name)  # columns first
    return {"image": names[0], "positive": names[1:], "case": dict(case)}


def prepare(
    folder: Path,
    output_dir: Path,
    xml_folder: Path | None = None,
    options: Options = DEFAULT_OPTIONS,
    split: Split = DEFAULT_SPLIT,
    skip_incomplete: bool = False,
) -> Path:
    """Make the data set, or what is missing of it.

    Args:
        folder: where the DICOM series lie.
        output_dir: where the data set goes.
        xml_folder: where the annotation files lie; ``None`` for ``folder``.
        options: how nodules are matched and cut out.
        split: of the patients.
        skip_incomplete: leave out scans that cannot be used instead of refusing the data.

    Returns:
        ``output_dir``, resolved.

    Raises:
        DataError: files are missing or damaged, or do not fit together.
        FileExistsError: ``output_dir`` holds something else.
    """
    pydicom_module()  # before a long look through the folders
    folder = folder.resolve()
    series, problems = find_series(folder)
    annotations, more = find_annotations((xml_folder or folder).resolve())
    scans, unpaired = pair(series, annotations)
    cases = [
        Case(name, scan.patient, (*scan.slices, scan.xml), partial(write_scan, name=name, scan=scan, options=options))
        for name, scan in zip(case_names(scans), scans, strict=True)
    ]
    facts = {
        "dataset": "LIDC-IDRI",
        "site": SITE,
        "licence": LICENCE,
        "generator": "data_prep/lidc.py",
        "generator_version": GENERATOR_VERSION,
        "parameters": vars(options),
    }
    header = {
        "name": "LIDC-IDRI",
        "tensorImageSize": "2D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "lesion", "255": "not read"},
        "annotators": [f"reader {reader}" for reader in range(1, NUM_READERS + 1)],
    }
    return prepare_cases(
        output_dir, folder, cases, facts, header, split, [*problems, *more, *unpaired], skip_incomplete
    )


# --- command line ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Cut lung nodules out of LIDC-IDRI, with one mask for each of the four readers.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    default = DEFAULT_OPTIONS
    add("--folder", type=Path, required=True, help="where the DICOM series of LIDC-IDRI lie")
    add("--xml_folder", type=Path, help="where the annotation files lie (default: beside the slices)")
    add("--output_dir", type=Path, default=Path("data/LIDC"), help="where the data set goes (default: data/LIDC)")
    add("--size", type=int, default=default.size, help="width and height in pixels (default: 180)")
    add("--spacing_mm", type=float, default=default.spacing_mm, help="of the pixels and between slices (default: 1)")
    add(
        "--max_distance_mm",
        type=float,
        default=default.max_distance_mm,
        help="between the centroids of what two readers outlined, to count as one nodule (default: 3)",
    )
    add(
        "--neighbours",
        choices=("lesion", "background"),
        default=default.neighbours,
        help="other nodules in a crop (default: lesion)",
    )
    add_split_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.size < 1 or args.spacing_mm <= 0 or args.max_distance_mm < 0:
        parser.error("--size and --spacing_mm must be positive, --max_distance_mm must not be negative")
    options = Options(args.size, args.spacing_mm, args.max_distance_mm, args.neighbours)
    return run(
        lambda: prepare(args.folder, args.output_dir, args.xml_folder, options, split_of(args), args.skip_incomplete)
    )


if __name__ == "__main__":
    sys.exit(main())
