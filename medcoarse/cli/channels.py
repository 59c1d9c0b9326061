"""Images of several files, one for each channel, as nnU-Net names them: <case>_0000, <case>_0001, ...

Such an image is called <case> with the ending of its files, as its drawing and its segmentation are; no file has that
name. Whether numbers are of channels or of images is seen from the drawings: case_0000_drawn is of an image case_0000.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medcoarse.cli.files import belonging, drawn_stem, listed
from medcoarse.cli.main import CommandError
from medcoarse.writers.formats import stem_of

Channels = Mapping[Path, Sequence[Path]]
"""Image -> its files, in the order of the channels. An image of one file of its own name is not in it."""

_NUMBERED = re.compile(r"(.+)_(\d{4})")


def files_of(image: Path, channels: Channels) -> list[Path]:
    """The files of an image."""
    return list(channels.get(image, [image]))


def are_channels(images: Sequence[Path], drawings: Sequence[Path]) -> bool:
    """Whether numbers at the end of names are of channels: a drawing is called like what precedes them, not a file.

    Example:
        >>> files = [Path("a_0000.nii"), Path("a_0001.nii")]
        >>> are_channels(files, [Path("a_drawn.nii")]), are_channels(files, [Path("a_0001_drawn.nii")])
        (True, False)
    """
    names = {stem_of(image) for image in images}
    cases = {found[1] for name in names if (found := _NUMBERED.fullmatch(name))}
    drawn = [drawn_stem(drawing) for drawing in drawings]
    return any(belonging(name, cases) and not belonging(name, names) for name in drawn)


def join_channels(images: Sequence[Path], wanted: Sequence[str] = ()) -> tuple[dict[Path, list[Path]], list[str]]:
    """Images of several files.

    Args:
        images: their files.
        wanted: numbers of the channels that every image has to have; by default those of the first one.

    Returns:
        The files of every image; the numbers of the channels.

    Raises:
        CommandError: images with other channels.

    Example:
        >>> found, numbers = join_channels([Path("a_0000.nii"), Path("a_0001.nii")])
        >>> [(image.name, [file.name for file in files]) for image, files in found.items()], numbers
        ([('a.nii', ['a_0000.nii', 'a_0001.nii'])], ['0000', '0001'])
    """
    cases: dict[Path, dict[str, Path]] = {}
    for file in images:
        numbered = _NUMBERED.fullmatch(stem_of(file))
        case, number = numbered.groups() if numbered else (stem_of(file), "no number")
        both = cases.setdefault(file.with_name(case), {}).setdefault(number, file)
        if both is not file:
            raise CommandError(f"{both} and {file} have the same name; give files of one folder different names")
    found: dict[Path, list[Path]] = {}
    kinds: dict[tuple[str, ...], list[Path]] = {}
    for case, files in cases.items():
        first = next(iter(files.values()))
        image = case.with_name(case.name + first.name[len(stem_of(first)) :])
        found[image] = [files[number] for number in sorted(files)]
        kinds.setdefault(tuple(sorted(files)), []).append(image)
    numbers = tuple(wanted) or next(iter(kinds))
    if set(kinds) != {numbers} or "no number" in numbers:
        parts = "; ".join(f"{', '.join(kind)}: {listed(some)}" for kind, some in sorted(kinds.items()))
        raise CommandError(
            f"images of several files must have the same channels, {', '.join(numbers)}, at the end of their names; "
            f"there are {parts}"
        )
    return found, list(numbers)
