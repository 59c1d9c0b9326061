"""Compare what the application left with the bundles' own inference, pixel by pixel: `python compare.py FOLDER`.

Run by check.py, in the environment of the application.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from compare_series import acceptance as acceptance_of_series
from compare_series import compare_series
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from synthetic_dicom import SECRETS

PACKAGES = ("monai-deploy-app-sdk", "holoscan-cu13", "monai", "torch", "highdicom", "pydicom", "numpy", "pillow")
BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "les_av"
SEGMENT = {
    "label": "Retinal vessels",
    "category": ("91723000", "SCT"),
    "type": ("59820001", "SCT"),
    "regions": [("5665001", "SCT")],
    "algorithm_type": "AUTOMATIC",
    "family": ("123110", "DCM"),
    "version": json.loads((BUNDLE / "configs" / "metadata.json").read_text())["version"],
}
"""Anatomical structure, blood vessel, retina, artificial intelligence."""

COPIED = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "StudyInstanceUID",
    "AccessionNumber",
    "Rows",
    "Columns",
    "FrameOfReferenceUID",
)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask picture; it has to be of one channel, 0 and 255."""
    with Image.open(path) as picture:
        mask = np.asarray(picture)
    if mask.ndim != 2 or not np.isin(mask, (0, 255)).all():
        raise SystemExit(f"{path.name} is no mask of 0 and 255: shape {mask.shape}, values {np.unique(mask)[:5]}")
    return mask > 0


def compare_masks(expected: Path, found: Path) -> tuple[dict[str, Any], list[str]]:
    """All masks of one folder with those of the other: facts about each, and what is wrong."""
    facts, faults = {}, []
    names = [{path.name for path in folder.glob("*.png")} for folder in (expected, found)]
    if names[0] != names[1] or not names[0]:
        faults.append(f"{expected.name} has the masks {sorted(names[0])}, {found.name} has {sorted(names[1])}")
    for name in sorted(names[0] & names[1]):
        one, other = read_mask(expected / name), read_mask(found / name)
        same_shape = one.shape == other.shape
        differing = int((one != other).sum()) if same_shape else None
        facts[name] = {"size": list(one.shape), "vessel_ratio": float(one.mean()), "differing_pixels": differing}
        if differing != 0:
            faults.append(f"{found.name}/{name}: {differing} pixels differ, shapes {one.shape} and {other.shape}")
        if not 0 < one.sum() < one.size:
            faults.append(f"{expected.name}/{name} does not contain both classes, so that it shows nothing")
    return facts, faults


def code(item: Any) -> tuple[str, str]:
    """Value and scheme of a coded term."""
    return str(item.value), str(item.scheme_designator)


def describe(segmentation: hd.seg.Segmentation) -> dict[str, Any]:
    """What a segmentation says about its only segment, in the words of `SEGMENT`."""
    segment = segmentation.get_segment_description(1)
    algorithm = segment.algorithm_identification
    return {
        "label": segment.segment_label,
        "category": code(segment.segmented_property_category),
        "type": code(segment.segmented_property_type),
        "regions": [code(region) for region in segment.anatomic_regions],
        "algorithm_type": segment.algorithm_type.value,
        "family": algorithm and code(algorithm.family),
        "version": algorithm and algorithm.version,
    }


def locations_preserved(segmentation: hd.seg.Segmentation) -> str:
    """Whether each pixel of the segmentation lies where that of its source lies, in the words of the standard."""
    derivation = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    return str(derivation.SourceImageSequence[0].SpatialLocationsPreserved)


def compare_segmentation(path: Path, source: Dataset, mask: NDArray[np.bool_]) -> list[str]:
    """A segmentation with its photograph and its mask: what is wrong."""
    segmentation = hd.seg.segread(path)
    uid = source.SOPInstanceUID
    checks = {
        "number of segments": (segmentation.number_of_segments, 1),
        "segment": (describe(segmentation), SEGMENT),
        "references": (
            [tuple(map(str, row)) for row in segmentation.get_source_image_uids()],
            [(source.StudyInstanceUID, source.SeriesInstanceUID, uid)],
        ),
        "locations preserved": (locations_preserved(segmentation), "YES"),
        **{name: (segmentation.get(name), source.get(name)) for name in COPIED},
    }
    faults = [f"{path.name}: {name} is {got}, not {wanted}" for name, (got, wanted) in checks.items() if got != wanted]
    pixels = segmentation.get_pixels_by_source_instance([uid], combine_segments=True)
    if pixels.shape != (1, *mask.shape) or (pixels[0] != mask).any():
        faults.append(f"{path.name}: its pixels are not those of the mask")
    return faults


def compare_segmentations(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """A segmentation for every photograph, and no other."""
    instances = json.loads((folder / "instances.json").read_text())
    written = {path.name for path in (folder / "app_dicom").glob("*.dcm")}
    wanted = {f"{uid}_vessel.dcm" for uid in instances}
    faults = [] if written == wanted else [f"segmentations {sorted(written)}, not {sorted(wanted)}"]
    for uid, facts in instances.items():
        path = folder / "app_dicom" / f"{uid}_vessel.dcm"
        if path.is_file():
            mask = read_mask(folder / "bundle_references" / f"{uid}_vessel.png")
            facts["faults"] = compare_segmentation(path, dcmread(folder / "dicom" / facts["file"]), mask)
            faults += facts["faults"]
    return instances, faults


def leaks(folder: Path) -> list[str]:
    """What the application printed of that which identifies a patient."""
    printed = "".join(path.read_text() for path in sorted(folder.glob("app_*.log")))
    return [
        f"the application printed {secret!r}, which identifies a patient" for secret in SECRETS if secret in printed
    ]


def acceptance(folder: Path) -> list[str]:
    """The photograph and the picture that should have been refused, and the good ones beside them."""
    wanted = {
        "broken": ("PatientBirthDate being invalid", {"1.2.5_vessel.png", "1.2.5_vessel.dcm"}),
        "damaged": ("picture 1, in the order of names, is damaged or no picture", {"good_vessel.png"}),
    }
    faults = []
    for kind, (sentence, files) in wanted.items():
        told = sentence in (folder / f"app_{kind}.log").read_text()
        left = {path.name for path in (folder / f"app_{kind}").glob("*")}
        if not told or left != files:
            faults.append(f"one of {kind} beside a good one: told why: {told}, files: {sorted(left)}")
    return faults


def compare_photographs(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Pictures and DICOM: what goes into the report, and what is wrong."""
    pictures, faults = compare_masks(folder / "bundle_pictures", folder / "app_pictures")
    photographs, more = compare_masks(folder / "bundle_references", folder / "app_dicom")
    with disable_value_validation():  # one of them has an invalid UID on purpose
        segmentations, most = compare_segmentations(folder)
    facts = {"pictures": pictures, "dicom": photographs, "segmentations": segmentations}
    return facts, faults + more + most + acceptance(folder)


def main(folder: Path) -> None:
    """Write `report.json`; exit with 1 where anything differs."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    report: dict[str, Any] = {"versions": versions}
    faults: list[str] = []
    if (folder / "photographs").is_dir():
        facts, faults = compare_photographs(folder / "photographs")
        report |= facts
    if (folder / "series").is_dir():
        report["series"], more = compare_series(folder / "series")
        faults += more + acceptance_of_series(folder / "series")
    faults += [fault for part in ("photographs", "series") for fault in leaks(folder / part)]
    report["faults"] = faults
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    counts = ", ".join(f"{len(facts)} {name}" for name, facts in report.items() if name not in ("versions", "faults"))
    print("\n".join(faults) or f"equal: {counts}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
