"""Whose images are whose, and a split in training and validation that parts no patient's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from medcoarse.cli.channels import Channels, files_of
from medcoarse.cli.files import listed
from medcoarse.cli.main import CommandError
from medcoarse.datalist import DataError
from medcoarse.readers.dicom import first_image, read_tags
from medcoarse.readers.formats import is_series


def patients_of(images: Sequence[Path], pattern: str | None, channels: Channels) -> dict[Path, str]:
    """Image -> patient. DICOM says whose it is; of other files their names do, by a pattern, or each is of another.

    Args:
        images: files, and folders of series.
        pattern: regular expression that is searched for in the names; what it matches is the patient, or what its
            first group does, if it has one. It counts for DICOM too.
        channels: the files of images that have several.

    Raises:
        CommandError: no regular expression, or names in which it finds nothing.

    Example:
        >>> eyes = [Path("p1_left.png"), Path("p1_right.png"), Path("p2_left.png")]
        >>> list(patients_of(eyes, "^[^_]+", {}).values())
        ['p1', 'p1', 'p2']
    """
    if pattern is None:
        return {image: _by_header(files_of(image, channels)[0]) or f"/{image}" for image in images}
    try:
        found = {image: re.search(pattern, image.name) for image in images}
    except re.error as error:
        raise CommandError(f"--patient {pattern!r}: no regular expression ({error})") from None
    names = {image: match[1 if match.re.groups else 0] for image, match in found.items() if match}
    without = [image for image in images if not names.get(image)]
    if without:
        raise CommandError(f"--patient {pattern!r}: finds nothing in {listed(without)}")
    return names


def _by_header(image: Path) -> str:
    """The patient's id, which goes no further than the split; nothing where the header has none, or is damaged."""
    if not is_series(image):
        return ""
    try:
        file = first_image(image) if image.is_dir() else image
        return "" if file is None else read_tags(file, ["PatientID"])["PatientID"]
    except DataError:  # it is said when the image is read
        return ""


def split(
    patients: Mapping[Path, str], share: float, seed: int, masked: Collection[Path] = (), asked: bool = False
) -> dict[str, list[Path]]:
    """Training and validation images, the same for the same seed; with two patients or fewer all are for training.

    Args:
        patients: image -> patient; all images of one are on one side.
        share: of the images, to validate on; about, where patients have several.
        seed: of the choice.
        masked: images with masks to score with: patients who have one are validated on before others are.
        asked: whether the share was asked for: then two patients are enough.

    Example:
        >>> parts = split({Path(str(number)): str(number // 2) for number in range(10)}, 0.2, 0)
        >>> [[path.name for path in part] for part in parts.values()]
        [['0', '1', '2', '3', '6', '7', '8', '9'], ['4', '5']]
    """
    sizes = Counter(patients.values())
    names = list(sizes)
    enough = len(names) > (1 if asked else 2)
    wanted = max(round(share * len(patients)), 1) if share > 0 and enough else 0
    chosen: set[str] = set()
    taken = 0
    scored = {patients[image] for image in masked}
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    drawn = sorted(order, key=lambda name: name not in scored)[:-1]  # one is trained on
    for name in drawn:
        if wanted and taken + sizes[name] / 2 <= wanted:  # no farther from what is wanted than without
            chosen.add(name)
            taken += sizes[name]
    if wanted and not chosen:
        chosen.add(min(drawn, key=sizes.__getitem__))
    parts: dict[str, list[Path]] = {"training": [], "validation": []}
    for image, name in patients.items():
        parts["validation" if name in chosen else "training"].append(image)
    return parts
