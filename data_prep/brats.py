"""Turn BraTS into axial slices or volumes of four modalities with classes 0 to 3, split by patient.

    python data_prep/brats.py --folder data/MICCAI_BraTS_2019_Data_Training --output_dir data/BraTS
    python data_prep/brats.py --folder data/ASNR-MICCAI-BraTS2023-GLI --output_dir data/BraTS-3D --volumes

How to get the data: register with the Brain Tumor Segmentation challenge (BraTS; until 2020 at CBICA, University of
Pennsylvania, since 2021 at Synapse, Sage Bionetworks), accept its terms and unpack the *training* archive; validation
and test archives have no segmentations. Nothing is downloaded here.

Layout, as the archives are known to be; folders above the files (HGG, LGG, the patient's) are free, .nii or .nii.gz:

    BraTS19_2013_10_1_flair.nii.gz    also _t1, _t1ce, _t2, _seg; Brats17 to BraTS2021
    BraTS-GLI-00000-000-t2f.nii.gz    also -t1n, -t1c, -t2w, -seg; since 2023; 00000 is the patient, 000 the visit

One patient of 2020 has its segmentation under another name (W39_1998.09.19_Segm.nii); it is found.

Classes: 0 background, 1 necrotic or non-enhancing core, 2 oedema, 3 enhancing tumour. The latter is stored as 4 in the
older sets and as 3 in the newer; a file with both is refused (BraTS 2024 has a fifth class, resection cavity).

Items of the datalist, all under ``cases/``:

    image     NIfTI, four channels FLAIR, T1, T1 with contrast, T2; axes right, anterior, superior; values as published
    label     NIfTI, 0 to 3
    spacing   in mm, of the header
    case      scan, patient and number of the slice

A slice is stored as a volume of one slice, so that position and spacing stay right: LoadImaged and EnsureChannelFirstd
give (4, 192, 192, 1), and SqueezeDimd(keys, dim=-1) makes it 2D. Images are cropped or padded with 0 around the middle
to 192 x 192 pixels in the axial plane; slices where all modalities are 0 there, i.e. without brain, are left out (not
of volumes).

``bundles/brats`` trains on slices. Volumes (``--volumes``) are for 3D code of your own, and for ``bundles/ms_lesions``
with the overrides that bundles/brats/docs/README.md names.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from cases import DEFAULT_SPLIT, Case, Split, add_split_arguments, load_nifti, prepare_cases, run, split_of

from medcoarse.datalist import DataError, Item

SITE = "Brain Tumor Segmentation challenge (BraTS): CBICA, University of Pennsylvania, or Synapse, Sage Bionetworks"
KEYS = ("flair", "t1", "t1ce", "t2", "seg")
GENERATOR_VERSION = 1

_OLD = re.compile(r"(?i:(brats\d+_.+))_(flair|t1|t1ce|t2|seg)\.nii(?:\.gz)?")
_NEW = re.compile(r"(BraTS-[A-Za-z]+-\d+-\d+)-(t2f|t1n|t1c|t2w|seg)\.nii(?:\.gz)?")
_NEW_KEYS = dict(zip(("t2f", "t1n", "t1c", "t2w", "seg"), KEYS, strict=True))
_ODD_SEGMENTATION = "W39_1998.09.19_Segm.nii"

Array = npt.NDArray[Any]
_nibabel: Any = nibabel  # has no types


# --- the files ---------------------------------------------------------------------------------------------------


def find_scans(folder: Path) -> dict[str, dict[str, Path]]:
    """Files of every scan by modality, wherever they lie below a folder.

    Raises:
        DataError: no such folder, none of the files in it, or one of them twice.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; unpack a training archive of the {SITE} and name its folder")
    scans: dict[str, dict[str, Path]] = {}
    for path in sorted(path for path in folder.rglob("*.nii*") if path.is_file()):
        old, new = _OLD.fullmatch(path.name), _NEW.fullmatch(path.name)
        if not (match := new or old):
            continue
        key = _NEW_KEYS[match[2]] if new else match[2]
        if (other := scans.setdefault(match[1], {}).setdefault(key, path)) != path:
            raise DataError(f"{path}: the same file as {other}; keep one of them")
    if not scans:
        raise DataError(
            f"{folder}: no file like BraTS19_2013_10_1_flair.nii.gz or BraTS-GLI-00000-000-t2f.nii.gz below it; unpack "
            f"a training archive of the {SITE} there (registration is needed, so it is not downloaded here)"
        )
    for files in scans.values():
        odd = next(iter(files.values())).with_name(_ODD_SEGMENTATION)
        for path in (odd, odd.with_name(odd.name + ".gz")):
            if "seg" not in files and path.is_file():
                files["seg"] = path
    return scans


def patient_of(scan: str) -> str:
    """The patient a scan is of: visits share it.

    Example:
        >>> [patient_of(scan) for scan in ("BraTS-GLI-00012-001", "BraTS19_2013_10_1", "BraTS20_Training_001")]
        ['BraTS-GLI-00012', 'BraTS19_2013_10', 'BraTS20_Training_001']
    """
    if scan.startswith("BraTS-"):
        return scan.rpartition("-")[0]
    return re.sub(r"^(brats1[789]_.+_.+)_\d+$", r"\1", scan, flags=re.IGNORECASE)


def missing_files(scan: str, files: Mapping[str, Path]) -> str:
    """What is missing of a scan, in words; empty if nothing is."""
    missing = [key for key in KEYS if key not in files]
    if not missing:
        return ""
    names = {key: name for name, key in _NEW_KEYS.items()} if scan.startswith("BraTS-") else {key: key for key in KEYS}
    hint = ", or is it a validation or test archive? only training archives have seg" if missing == ["seg"] else ""
    return f"{scan}: no {', no '.join(names[key] for key in missing)}; unpack the archive again{hint}"


# --- arrays ------------------------------------------------------------------------------------------------------


def classes(stored: Array, scan: str) -> npt.NDArray[np.uint8]:
    """Classes 0 to 3 of a stored segmentation.

    Args:
        stored: values 0, 1, 2 and either 3 or 4; sets named BraTS-... have no 4.
        scan: its name.

    Raises:
        DataError: any other value, or both 3 and 4.

    Example:
        >>> classes(np.array([0, 1, 2, 4]), "BraTS19_2013_10_1").tolist()
        [0, 1, 2, 3]
    """
    values = set(np.unique(stored).tolist())
    if not (values <= {0, 1, 2, 3} or (values <= {0, 1, 2, 4} and not scan.startswith("BraTS-"))):
        expected = "0, 1, 2, 3" if scan.startswith("BraTS-") else "0, 1, 2 and either 3 or 4"
        found = ", ".join(f"{value:g}" for value in sorted(values)[:8])
        raise DataError(
            f"{scan}: segmentation holds {found}, expected {expected}; unpack it again (the five classes of BraTS 2024 "
            "are not read)"
        )
    return np.where(stored == 4, 3, stored).astype(np.uint8)


def crop_or_pad(array: Array, size: int) -> tuple[Array, list[int]]:
    """Bring the first two axes to a size around the middle; also where the result begins in the array.

    Example:
        >>> array, start = crop_or_pad(np.arange(5)[:, None] * np.ones((1, 2)), 4)
        >>> array[:, 1].tolist(), start
        ([0.0, 1.0, 2.0, 3.0], [0, -1])
    """
    start = [(length - size) // 2 for length in array.shape[:2]]
    for axis, first in enumerate(start):
        array = array.take(range(max(0, first), min(array.shape[axis], first + size)), axis)
        before = max(0, -first)
        width = [(0, 0)] * array.ndim
        width[axis] = (before, size - before - array.shape[axis])
        array = np.pad(array, width)
    return array, start


def _load(path: Path) -> tuple[Array, Array]:
    """Values and affine, axes right, anterior, superior."""
    image = _nibabel.as_closest_canonical(load_nifti(path))
    array = np.asarray(image.dataobj)
    if array.ndim != 3 or not np.isfinite(array).all():
        raise DataError(f"{path}: expected a volume of numbers, got {array.ndim} axes or NaN; unpack it again")
    return array, image.affine


def read_scan(scan: str, files: Mapping[str, Path]) -> tuple[Array, npt.NDArray[np.uint8], Array]:
    """Image (X, Y, Z, 4), classes (X, Y, Z) and affine of a scan.

    Raises:
        DataError: a damaged file, files on different grids, or unexpected classes.
    """
    loaded = {key: _load(files[key]) for key in KEYS}
    first, affine = loaded["flair"]
    for key, (array, other) in loaded.items():
        if array.shape != first.shape or not np.allclose(other, affine, atol=1e-3):
            raise DataError(f"{files[key]}: not on the grid of {files['flair'].name}; use the files of one archive")
    image = np.stack([loaded[key][0] for key in KEYS[:4]], axis=-1)
    whole = np.array_equal(image, image.astype(np.int16))
    return image.astype(np.int16 if whole else np.float32), classes(loaded["seg"][0], scan), affine


# --- what is written ---------------------------------------------------------------------------------------------


def write_scan(folder: Path, scan: str, files: Mapping[str, Path], size: int, volumes: bool) -> list[Item]:
    """Write slices or the volume of a scan and return their items.

    Args:
        folder: an empty one.
        scan: its name.
        files: by modality.
        size: width and height in pixels.
        volumes: write one volume instead of slices.

    Raises:
        DataError: see `read_scan`, or no brain at all.
    """
    image, label, affine = read_scan(scan, files)
    (image, start), (label, _) = crop_or_pad(image, size), crop_or_pad(label, size)
    brain = np.flatnonzero(image.any(axis=(0, 1, 3)))
    if not len(brain):
        raise DataError(f"{scan}: all modalities are 0 everywhere; unpack it again")
    affine = _moved(affine, [*start, 0])
    case = {"scan": scan, "patient": patient_of(scan)}
    if volumes:
        return [_write(folder, "", image, label, affine, case)]
    return [
        _write(
            folder,
            f"_{k:03d}",
            image[:, :, k : k + 1],
            label[:, :, k : k + 1],
            _moved(affine, [0, 0, k]),
            {**case, "slice": k},
        )
        for k in brain.tolist()
    ]


def _moved(affine: Array, index: Sequence[int]) -> Array:
    """The affine of a part that begins at an index."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array(index)
    return moved


def _write(folder: Path, suffix: str, image: Array, label: Array, affine: Array, case: dict[str, Any]) -> Item:
    for name, array in (("image", image), ("label", label)):
        _nibabel.save(_nibabel.Nifti1Image(array, affine), folder / f"{name}{suffix}.nii.gz")
    spacing = np.linalg.norm(affine[:3, :3], axis=0).round(6).tolist()
    names = {name: f"{name}{suffix}.nii.gz" for name in ("image", "label")}
    return {**names, "spacing": spacing, "case": case}


def prepare(
    folder: Path,
    output_dir: Path,
    size: int = 192,
    volumes: bool = False,
    split: Split = DEFAULT_SPLIT,
    skip_incomplete: bool = False,
) -> Path:
    """Make the data set, or what is missing of it.

    Args:
        folder: where the training archive is unpacked.
        output_dir: where the data set goes.
        size: width and height of slices and volumes in pixels.
        volumes: keep volumes instead of slices.
        split: of the patients.
        skip_incomplete: leave out scans that cannot be used instead of refusing the data.

    Returns:
        ``output_dir``, resolved.

    Raises:
        DataError: files are missing or damaged, or do not fit together.
        FileExistsError: ``output_dir`` holds something else.
    """
    folder = folder.resolve()
    scans = find_scans(folder)
    problems = [text for scan, files in scans.items() if (text := missing_files(scan, files))]
    cases = [
        Case(
            scan,
            patient_of(scan),
            tuple(files.values()),
            partial(write_scan, scan=scan, files=files, size=size, volumes=volumes),
        )
        for scan, files in sorted(scans.items())
        if not missing_files(scan, files)
    ]
    facts = {
        "dataset": "BraTS",
        "site": SITE,
        "licence": "the terms you accepted when you registered for the data",
        "generator": "data_prep/brats.py",
        "generator_version": GENERATOR_VERSION,
        "parameters": {"size": size, "volumes": volumes},
    }
    header = {
        "name": "BraTS",
        "tensorImageSize": "3D" if volumes else "2D",
        "modality": {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"},
        "labels": {"0": "background", "1": "necrotic or non-enhancing core", "2": "oedema", "3": "enhancing tumour"},
    }
    return prepare_cases(output_dir, folder, cases, facts, header, split, problems, skip_incomplete)


# --- command line ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Turn BraTS into axial slices or volumes of four modalities with classes 0 to 3.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where a training archive of BraTS is unpacked")
    add("--output_dir", type=Path, default=Path("data/BraTS"), help="where the data set goes (default: data/BraTS)")
    add("--size", type=_size, default=192, help="width and height in pixels (default: 192)")
    add("--volumes", action="store_true", help="keep volumes instead of slices")
    add_split_arguments(parser)
    return parser


def _size(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of pixels")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    args = _parser().parse_args(argv)
    return run(
        lambda: prepare(args.folder, args.output_dir, args.size, args.volumes, split_of(args), args.skip_incomplete)
    )


if __name__ == "__main__":
    sys.exit(main())
