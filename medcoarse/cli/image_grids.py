"""The grids of images, for outlines: RTSTRUCT and the GeoJSON of QuPath do not say on which voxels they lie."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medcoarse.cli.files import belonging, by_stem, find_images
from medcoarse.cli.main import CommandError
from medcoarse.cli.references import drawn_on
from medcoarse.datalist import DataError
from medcoarse.readers.drawing import Grid
from medcoarse.readers.formats import needs_image, read_drawing

_FIRST = "_0000"
_NUMBERED = re.compile(r"_\d{4}$")


def find_grids(names: Mapping[Path, Sequence[str]], folder: str | None) -> dict[Path, Grid]:
    """The grids on which outlines are drawn, those of their images.

    Args:
        names: file -> what its image may be called, or more; files that say on which voxels they lie may be among
            them.
        folder: of the images; where nobody names it, there are none.

    Raises:
        CommandError: a file of no format that is read, outlines without an image, or an image that cannot be read.

    Example:
        >>> find_grids({Path("a.nii.gz"): ["a"]}, None)
        {}
    """
    outlines = [file for file in names if folder and _needs_image(file)]
    if not outlines or not folder:
        return {}
    images = by_stem(find_images([folder]))
    found = dict[Path, Path]()
    for file in outlines:
        image = next((image for name in names[file] if (image := _image_called(name, images))), None)
        if image is None:
            raise CommandError(
                f"{file}: no image in {folder} is called {names[file][0]!r}, or as what precedes a _ in it; give it "
                "the name of its image"
            )
        found[file] = image
    grids = {image: _grid(image) for image in dict.fromkeys(found.values())}
    return {file: grids[image] for file, image in found.items()}


def named_by_series(files: Sequence[Path], folder: str | None) -> dict[Path, str]:
    """The names of the images of DICOM drawings that say on which series they were drawn.

    Args:
        files: drawings of any format.
        folder: of the images; where nobody names it, there are none.

    Example:
        >>> named_by_series([Path("RS.1.2.3.dcm")], None)
        {}
    """
    if not folder:
        return {}
    images = by_stem(find_images([folder]))
    stems = {image: stem for stem, image in images.items()}
    return {file: stems[image] for file, image in drawn_on(files, list(stems)).items()}


def grids_beside(partners: Mapping[Path, Path]) -> dict[Path, Grid]:
    """The grids on which outlines in pictures are drawn, those of label maps beside them. A label map of a volume may
    be cut, or have other slices than the series that contours were drawn on, and segments may be cut to a box.

    Args:
        partners: file -> the one beside it.

    Raises:
        CommandError: a file that cannot be read.
    """
    found = dict[Path, Grid]()
    for file, partner in partners.items():
        if _needs_image(file) and not _needs_image(partner):
            try:
                drawing = read_drawing(partner)
            except DataError as error:
                raise CommandError(str(error)) from None
            found |= {file: drawing.grid} if not drawing.segments and drawing.grid.affine is None else {}
    return found


def _needs_image(file: Path) -> bool:
    try:
        return needs_image(file)
    except DataError as error:
        raise CommandError(str(error)) from None


def _image_called(name: str, images: Mapping[str, Path]) -> Path | None:
    """The image that a name is of, or its first channel, `<case>_0000`."""
    stem = belonging(name, images)
    if stem is None and not _NUMBERED.search(name):
        channels = {one.removesuffix(_FIRST): one for one in images if one.endswith(_FIRST)}
        case = belonging(name, channels)
        stem = None if case is None else channels[case]
    return None if stem is None else images[stem]


def _grid(image: Path) -> Grid:
    from medcoarse.cli.facts import load_image  # takes seconds
    from medcoarse.transforms.drawn import grids_of

    return grids_of(load_image(image))[1]
