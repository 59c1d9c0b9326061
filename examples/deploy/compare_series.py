"""What the application made of series, voxel by voxel beside the bundle's own inference; used by compare.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

COPIED = ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber", "FrameOfReferenceUID")


def sources_of(folder: Path) -> list[Dataset]:
    """The slices of a series, in the order of their UIDs: an order that says nothing."""
    return sorted((dcmread(path) for path in folder.iterdir()), key=lambda one: str(one.SOPInstanceUID))


def labels_on(path: Path, sources: list[Dataset]) -> NDArray[np.uint8]:
    """Labels (slice, row, column) that a segmentation gives to slices, which it refers to by their UIDs."""
    pixels = hd.seg.segread(path).get_pixels_by_source_instance(
        [one.SOPInstanceUID for one in sources], combine_segments=True, assert_missing_frames_are_empty=True
    )
    return np.asarray(pixels, np.uint8)


def places(sources: list[Dataset]) -> NDArray[np.float64]:
    """Where every pixel lies in DICOM's coordinates, from the headers of the slices alone: (slice, row, column, 3)."""
    found = []
    for one in sources:
        along_row, along_column = np.array(one.ImageOrientationPatient, dtype=float).reshape(2, 3)
        between_rows, between_columns = map(float, one.PixelSpacing)
        rows, columns = np.mgrid[: one.Rows, : one.Columns][..., None]
        across = columns * between_columns * along_row + rows * between_rows * along_column
        found.append(np.array(one.ImagePositionPatient, dtype=float) + across)
    return np.stack(found)


def looked_up(array: NDArray[Any], affine: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Values of an array at points, 0 outside; points have to lie on its voxels.

    Args:
        array: (I, J, K).
        affine: (4, 4), from its indices to the coordinates of the points.
        points: (..., 3).
    """
    exact = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    index = np.rint(exact).astype(int)
    if np.abs(exact - index).max() > 0.01:
        raise SystemExit(f"voxels lie beside each other, by up to {np.abs(exact - index).max():.3f} of their size")
    inside = np.all((index >= 0) & (index < array.shape), axis=-1, keepdims=True)
    i, j, k = np.moveaxis(np.where(inside, index, 0), -1, 0)
    return np.asarray(np.where(inside[..., 0], array[i, j, k], 0), np.uint8)


def in_space(path: Path, points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Labels at points by where the segmentation itself says that it lies; or by where a NIfTI file says."""
    if path.suffix == ".dcm":
        volume = hd.seg.segread(path).get_volume(combine_segments=True)
        return looked_up(volume.array, volume.affine, points)
    image: Any = nib.load(path)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    return looked_up(np.asarray(image.dataobj), lps, points)


def faults_of_header(path: Path, sources: list[Dataset], class_names: list[str]) -> list[str]:
    """What a segmentation says about itself and its source that is wrong."""
    found, source = hd.seg.segread(path), sources[0]
    numbers = range(1, found.number_of_segments + 1)
    referred = {str(uid) for _, _, uid in found.get_source_image_uids()}
    checks = {
        "segments": ([found.get_segment_description(number).segment_label for number in numbers], class_names[1:]),
        "kind": ({found.get_segment_description(number).algorithm_type.value for number in numbers}, {"AUTOMATIC"}),
        "references": (referred <= {str(one.SOPInstanceUID) for one in sources} and len(referred) > 0, True),
        "size": ((found.Rows, found.Columns), (source.Rows, source.Columns)),
        **{name: (found.get(name), source.get(name)) for name in COPIED},
    }
    return [f"{path.name}: {name} is {got}, not {wanted}" for name, (got, wanted) in checks.items() if got != wanted]


def compare_series(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Every series that was segmented: facts, and what is wrong."""
    metadata = json.loads((folder / "bundle" / "configs" / "metadata.json").read_text())
    named = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    class_names = [named[key] for key in sorted(named, key=int)]
    facts, faults, wanted = {}, [], set()
    for own in sorted((folder / "bundle_dicom").glob("*.dcm")):
        sources = sources_of(folder / "dicom" / own.stem)
        app = folder / "app_dicom" / f"{sources[0].SeriesInstanceUID}_seg.dcm"
        wanted.add(app.name)
        if not app.is_file():
            faults.append(f"{own.stem}: the application wrote no segmentation")
            continue
        expected, points = labels_on(own, sources), places(sources)
        others = {"application": labels_on(app, sources), "application, by place": in_space(app, points)}
        for reference in (folder / "bundle_nifti").glob(f"{own.stem}_*.nii.gz"):
            others["inference.json as it is"] = in_space(reference, points)
        differing = {name: int((labels != expected).sum()) for name, labels in others.items()}
        voxels = np.bincount(expected.ravel(), minlength=len(class_names)).tolist()
        facts[own.stem] = {"size": list(expected.shape), "voxels": voxels, "differing_voxels": differing}
        faults += [f"{own.stem}: {number} voxels differ, {name}" for name, number in differing.items() if number]
        faults += [f"{own.stem}: not every class is in it, so that it shows nothing: {voxels}"] * (0 in voxels)
        faults += faults_of_header(app, sources, class_names)
    written = {path.name for path in (folder / "app_dicom").iterdir()}
    if written != wanted or not wanted:
        faults.append(f"the application wrote {sorted(written)}, not {sorted(wanted)}")
    return facts, faults


def acceptance(folder: Path) -> list[str]:
    """The series with a gap, which should have been refused, and what was beside it: a localizer, and a good one."""
    log = folder / "app_broken.log"
    if not log.is_file():  # somebody's own series were compared
        return []
    good = sources_of(folder / "broken" / "mr")[0].SeriesInstanceUID
    left = [path.name for path in (folder / "app_broken").glob("*")]
    wanted = (
        "series 1.2.3 cannot be segmented: the slices of its source form no regular volume",
        "series 1.2.4 was left out: it is a localizer",
    )
    told = [sentence in log.read_text() for sentence in wanted]
    fine = all(told) and left == [f"{good}_seg.dcm"]
    return [] if fine else [f"a series with a gap and a localizer beside a good one: told why: {told}, files: {left}"]
