"""Data sets of drawn volumes on disk, in the layout of ``data_prep/ms_lesions.py``, ``brats.py`` and ``lidc.py``.

A case is one scan of one patient; its files are NIfTI below ``cases/<name>/``, axes right, anterior, superior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from medcoarse.files import write_dataset, write_json
from medcoarse.synthetic.brain import ms_scan, tumour_scan
from medcoarse.synthetic.lung import READERS, nodule_crop
from medcoarse.synthetic.pelvis import CLASS_NAMES, pelvis_scan

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other voxels, so that a data set drawn by an older version is not reused."""

Item = dict[str, Any]
_nibabel: Any = nibabel  # has no types

README = """{name}. NOT patients: every voxel was drawn by {generator}.

cases/<patient>/   NIfTI files of a patient: image, label with the true classes
datalist.json      training, validation and test items in MONAI's decathlon format, paths relative to this folder
provenance.json    version and parameters of the generator
"""


def write_ms_dataset(
    folder: str | Path,
    num_training: int = 16,
    num_validation: int = 3,
    num_test: int = 8,
    shape: Sequence[int] = (64, 64, 24),
    spacing: Sequence[float] = (0.8, 0.8, 2.2),
    seed: int = 0,
) -> Path:
    """Write drawn MRI of MS lesions in the layout of ``data_prep/ms_lesions.py``; reuse the data set if it is there.

    Items have ``image`` (four files: FLAIR, T1, PD, T2), ``label`` (the true lesions, which no real data have),
    ``spacing`` and ``case``, and no raters: drawings are simulated from the label.

    Args:
        folder: where the data set goes; made with its parents.
        num_training: patients for training.
        num_validation: for validation.
        num_test: for testing; they are the same whatever the other numbers are.
        shape: voxels along each axis.
        spacing: mm per voxel along each axis.
        seed: of the whole data set.

    Returns:
        The folder.

    Raises:
        ValueError: for numbers below 1 or a negative seed, and as `medcoarse.synthetic.brain.ms_scan`.
        FileExistsError: if the folder holds anything but this very data set.

    Example:
        >>> import json, tempfile
        >>> folder = write_ms_dataset(Path(tempfile.mkdtemp()) / "ms", 1, 1, 1, shape=(16, 16, 8))
        >>> json.loads((folder / "datalist.json").read_text())["test"][0]["label"]
        'cases/synthetic01/label.nii.gz'
    """
    header = {
        "name": "Synthetic MRI of MS lesions",
        "tensorImageSize": "3D",
        "modality": {"0": "FLAIR", "1": "MPRAGE", "2": "PD", "3": "T2"},
        "labels": {"0": "background", "1": "lesion"},
    }

    def write(case: Path, own_seed: int) -> list[Item]:
        scan = ms_scan(own_seed, shape, spacing)
        affine = _affine(shape, spacing)
        images = [
            _save(case / f"{modality}.nii.gz", scan.image[..., channel], affine)
            for channel, modality in enumerate(("flair", "mprage", "pd", "t2"))
        ]
        label = _save(case / "label.nii.gz", scan.label, affine)
        return [{"image": images, "label": label, "case": {"patient": case.name, "visit": 1}}]

    numbers = {"num_training": num_training, "num_validation": num_validation, "num_test": num_test}
    return _write(folder, "write_ms_dataset", header, numbers, shape, spacing, seed, {}, write)


def write_brats_dataset(
    folder: str | Path,
    num_training: int = 12,
    num_validation: int = 3,
    num_test: int = 6,
    shape: Sequence[int] = (64, 64, 16),
    spacing: Sequence[float] = (1.0, 1.0, 3.0),
    seed: int = 0,
    volumes: bool = False,
) -> Path:
    """Write drawn MRI of brain tumours in the layout of ``data_prep/brats.py``; reuse the data set if it is there.

    Items have ``image`` (one file, channels FLAIR, T1, T1ce, T2), ``label`` (0 background, 1 necrotic core, 2 oedema,
    3 enhancing tumour), ``spacing`` and ``case``. By default each is an axial slice, stored as a volume of one slice;
    those without brain are left out.

    Args:
        folder: where the data set goes; made with its parents.
        num_training: patients for training.
        num_validation: for validation.
        num_test: for testing; they are the same whatever the other numbers are.
        shape: voxels of a patient's volume along each axis.
        spacing: mm per voxel along each axis.
        seed: of the whole data set.
        volumes: one item a patient instead of one a slice.

    Returns:
        The folder.

    Raises:
        ValueError: for numbers below 1 or a negative seed, and as `medcoarse.synthetic.brain.tumour_scan`.
        FileExistsError: if the folder holds anything but this very data set.

    Example:
        >>> import json, tempfile
        >>> folder = write_brats_dataset(Path(tempfile.mkdtemp()) / "brats", 1, 1, 1, shape=(16, 16, 8))
        >>> json.loads((folder / "datalist.json").read_text())["test"][3]["image"]
        'cases/synthetic01/image_003.nii.gz'
    """
    header = {
        "name": "Synthetic MRI of brain tumours",
        "tensorImageSize": "3D" if volumes else "2D",
        "modality": {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"},
        "labels": {"0": "background", "1": "necrotic or non-enhancing core", "2": "oedema", "3": "enhancing tumour"},
    }

    def write(case: Path, own_seed: int) -> list[Item]:
        scan = tumour_scan(own_seed, shape, spacing)
        affine, who = _affine(shape, spacing), {"scan": case.name, "patient": case.name}
        if volumes:
            return [_save_pair(case, "", scan.image, scan.label, affine) | {"case": who}]
        items = []
        for k in np.flatnonzero(scan.image.any(axis=(0, 1, 3))).tolist():
            image, label = scan.image[:, :, k : k + 1], scan.label[:, :, k : k + 1]
            one = _save_pair(case, f"_{k:03d}", image, label, _lifted(affine, k))
            items.append(one | {"case": {**who, "slice": k}})
        return items

    numbers = {"num_training": num_training, "num_validation": num_validation, "num_test": num_test}
    return _write(folder, "write_brats_dataset", header, numbers, shape, spacing, seed, {"volumes": volumes}, write)


def write_lidc_dataset(
    folder: str | Path,
    num_training: int = 20,
    num_validation: int = 4,
    num_test: int = 12,
    shape: Sequence[int] = (64, 64, 28),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    seed: int = 0,
) -> Path:
    """Write drawn CT of lung nodules in the layout of ``data_prep/lidc.py``; reuse the data set if it is there.

    Items have ``image`` (Hounsfield units), ``positive`` (four files, reader 1 to 4: 1 lesion, 0 none), ``marked``
    (four numbers, 1 if that reader outlined the nodule), ``spacing``, ``case`` and ``label``, the true extent, which no
    real data have. A patient has one nodule. Each item is one of the axial slices that any reader's mask reaches,
    stored as a volume of one slice. Here reader 1 is one person throughout, and so are the others.

    Args:
        folder: where the data set goes; made with its parents.
        num_training: patients for training.
        num_validation: for validation.
        num_test: for testing; they are the same whatever the other numbers are.
        shape: voxels of a crop along each axis.
        spacing: mm per voxel along each axis.
        seed: of the whole data set.

    Returns:
        The folder.

    Raises:
        ValueError: for numbers below 1 or a negative seed, and as `medcoarse.synthetic.lung.nodule_crop`.
        FileExistsError: if the folder holds anything but this very data set.

    Example:
        >>> import json, tempfile
        >>> folder = write_lidc_dataset(Path(tempfile.mkdtemp()) / "lidc", 1, 1, 1, shape=(16, 16, 8))
        >>> json.loads((folder / "datalist.json").read_text())["test"][1]["positive"][3]
        'cases/synthetic01/01_002_reader4.nii.gz'
    """
    header = {
        "name": "Synthetic CT of lung nodules",
        "tensorImageSize": "2D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "lesion", "255": "not read"},
        "annotators": [f"reader {reader + 1}" for reader in range(len(READERS))],
    }

    def write(case: Path, own_seed: int) -> list[Item]:
        nodule, affine = nodule_crop(own_seed, shape, spacing), _affine(shape, spacing)
        marked = nodule.readers.any(axis=(1, 2, 3)).astype(int).tolist()
        items = []
        for number, k in enumerate(np.flatnonzero(nodule.readers.any(axis=(0, 1, 2))).tolist(), start=1):
            arrays: dict[str, NDArray[Any]] = {"image": nodule.image, "label": nodule.label}
            arrays |= {f"reader{reader}": mask for reader, mask in enumerate(nodule.readers, start=1)}
            files = {
                name: _save(case / f"01_{number:03d}_{name}.nii.gz", array[:, :, k : k + 1], _lifted(affine, k))
                for name, array in arrays.items()
            }
            readers = [file for name, file in files.items() if name.startswith("reader")]
            who = {"scan": case.name, "patient": case.name, "nodule": 1, "slice": number}
            one = {"image": files["image"], "label": files["label"], "positive": readers}
            items.append(one | {"case": who, "marked": marked})
        return items

    numbers = {"num_training": num_training, "num_validation": num_validation, "num_test": num_test}
    return _write(folder, "write_lidc_dataset", header, numbers, shape, spacing, seed, {}, write)


def write_pelvis_dataset(
    folder: str | Path,
    num_training: int = 8,
    num_validation: int = 3,
    num_test: int = 6,
    shape: Sequence[int] = (72, 72, 16),
    spacing: Sequence[float] = (1.25, 1.25, 3.6),
    seed: int = 0,
    loop_mm: float | None = None,
) -> Path:
    """Write drawn MRI of the prostate with strokes, as somebody has it who draws in ITK-SNAP; reuse it if it is there.

    Items have ``image``, ``drawing`` (0 nothing drawn, 1 peripheral zone, 2 central gland, 3 neither of them) and
    ``label``, the true classes (0 background), which real data have for scoring at most.

    Args:
        folder: where the data set goes; made with its parents.
        num_training: patients for training.
        num_validation: for validation.
        num_test: for testing; they are the same whatever the other numbers are.
        shape: voxels along each axis.
        spacing: mm per voxel along each axis. Every other patient has voxels larger by a tenth, and fewer of them.
        seed: of the whole data set.
        loop_mm: ``None`` or how far from the organ a closed line of background runs around it, see
            `medcoarse.synthetic.pelvis.draw_strokes`.

    Returns:
        The folder.

    Raises:
        ValueError: for numbers below 1 or a negative seed, and as `medcoarse.synthetic.pelvis.pelvis_scan`.
        FileExistsError: if the folder holds anything but this very data set.

    Example:
        >>> import json, tempfile
        >>> folder = write_pelvis_dataset(Path(tempfile.mkdtemp()) / "mri", 1, 1, 1, (24, 24, 12), (4, 4, 5))
        >>> json.loads((folder / "datalist.json").read_text())["test"][0]["drawing"]
        'cases/synthetic01/strokes.nii.gz'
    """
    header = {
        "name": "Synthetic MRI of the prostate with strokes",
        "tensorImageSize": "3D",
        "modality": {"0": "T2"},
        "labels": {str(k): name for k, name in enumerate(CLASS_NAMES)},
    }

    def write(case: Path, own_seed: int) -> list[Item]:
        coarser = 1.1 if own_seed % 2 else 1.0
        sizes = [coarser * size for size in spacing]
        scan = pelvis_scan(own_seed, [round(number / coarser) for number in shape], sizes, loop_mm)
        affine = _affine(scan.label.shape, sizes)
        in_file = np.array([len(CLASS_NAMES), *range(1, len(CLASS_NAMES)), *[0] * (256 - len(CLASS_NAMES))], np.uint8)
        arrays = {"image": scan.image, "drawing": in_file[scan.strokes], "label": scan.label}
        names = {"image": "t2", "drawing": "strokes", "label": "label"}
        files = {key: _save(case / f"{names[key]}.nii.gz", array, affine) for key, array in arrays.items()}
        return [{**files, "spacing": sizes}]

    numbers = {"num_training": num_training, "num_validation": num_validation, "num_test": num_test}
    return _write(
        folder,
        "write_pelvis_dataset",
        header,
        numbers,
        shape,
        spacing,
        seed,
        {} if loop_mm is None else {"loop_mm": loop_mm},
        write,
    )


def _write(
    folder: str | Path,
    function: str,
    header: Mapping[str, Any],
    numbers: Mapping[str, int],
    shape: Sequence[int],
    spacing: Sequence[float],
    seed: int,
    more: Mapping[str, Any],
    write_case: Callable[[Path, int], list[Item]],
) -> Path:
    """A whole data set: every patient's files, datalist, README and provenance."""
    if min(numbers.values()) < 1 or seed < 0:
        raise ValueError(f"numbers of patients must be at least 1 and seed 0 or more, got {dict(numbers)}, {seed=}")
    generator = f"medcoarse.synthetic.volumes.{function}"
    sizes = {"shape": list(shape), "spacing": list(spacing)}

    def write(draft: Path) -> None:
        sections: dict[str, list[Item]] = {"training": [], "validation": [], "test": []}
        for section, number in _patients(numbers):
            case = draft / "cases" / f"synthetic{number + 1:02d}"
            case.mkdir(parents=True)
            # A seed sequence, because seed + number would make neighbouring data sets share patients.
            own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            for item in write_case(case, own_seed):
                listed = _below(f"cases/{case.name}", item)
                listed.setdefault("spacing", list(spacing))
                sections[section].append(listed)
        counts = {"numTraining": len(sections["training"]), "numTest": len(sections["test"])}
        write_json(draft / "datalist.json", {**header, **counts, **sections})
        (draft / "README.txt").write_text(README.format(name=header["name"], generator=generator), encoding="utf-8")

    provenance = {
        "generator": generator,
        "generator_version": GENERATOR_VERSION,
        "parameters": {**numbers, **sizes, "seed": seed, **more},
    }
    return write_dataset(Path(folder), provenance, ["README.txt", "datalist.json"], "synthetic data set", write)


def _patients(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    """Section and number of every patient, those for testing first."""
    order = ("test", "validation", "training")
    sections = [section for section in order for _ in range(numbers[f"num_{section}"])]
    return [(section, number) for number, section in enumerate(sections)]


def _affine(shape: Sequence[int], spacing: Sequence[float]) -> NDArray[np.float64]:
    """The middle of the volume is the origin."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -0.5 * (np.array(shape) - 1) * spacing
    return affine


def _lifted(affine: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """That of the k-th slice alone."""
    lifted = affine.copy()
    lifted[:3, 3] += k * affine[:3, 2]
    return lifted


def _save_pair(case: Path, suffix: str, image: Any, label: Any, affine: NDArray[np.float64]) -> Item:
    arrays = {"image": image, "label": label}
    return {name: _save(case / f"{name}{suffix}.nii.gz", array, affine) for name, array in arrays.items()}


def _save(path: Path, array: Any, affine: NDArray[np.float64]) -> str:
    image = _nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    _nibabel.save(image, path)
    return path.name


def _below(folder: str, item: Item) -> Item:
    """The item with its files, texts and lists of texts, below a folder."""

    def join(value: Any) -> Any:
        if isinstance(value, list):
            return [join(part) for part in value]
        return f"{folder}/{value}" if isinstance(value, str) else value

    return {key: join(value) for key, value in item.items()}
