"""What every writer gets: a label map or probabilities on a grid, and what the classes are called and mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcoarse.confusion import UNLABELED
from medcoarse.readers.drawing import Grid

_COLOURS = (
    (128, 174, 128),
    (241, 214, 145),
    (177, 122, 101),
    (111, 184, 210),
    (216, 101, 79),
    (221, 130, 101),
    (144, 238, 144),
    (192, 104, 88),
    (220, 245, 20),
    (78, 63, 0),
)
"""Told apart on grey images; further classes go through hues."""


class WriteError(ValueError):
    """A segmentation cannot be written as it was asked for; the text says why and what to do."""


class Code(NamedTuple):
    """A coded term, such as ("SCT", "10200004", "Liver")."""

    scheme: str
    value: str
    meaning: str


_TISSUE = Code("SCT", "85756007", "Tissue")
_ANATOMY = Code("SCT", "123037004", "Anatomical Structure")
_LESION = Code("SCT", "49755003", "Morphologically Abnormal Structure")
_KNOWN: Mapping[str, tuple[Code, Code]] = {
    "vessel": (_ANATOMY, Code("SCT", "59820001", "Blood Vessel")),
    "artery": (_ANATOMY, Code("SCT", "51114001", "Artery")),
    "vein": (_ANATOMY, Code("SCT", "29092000", "Vein")),
    "brain": (_ANATOMY, Code("SCT", "12738006", "Brain")),
    "heart": (_ANATOMY, Code("SCT", "80891009", "Heart")),
    "kidney": (_ANATOMY, Code("SCT", "64033007", "Kidney")),
    "liver": (_ANATOMY, Code("SCT", "10200004", "Liver")),
    "lung": (_ANATOMY, Code("SCT", "39607008", "Lung")),
    "pancreas": (_ANATOMY, Code("SCT", "15776009", "Pancreas")),
    "prostate": (_ANATOMY, Code("SCT", "41216001", "Prostate")),
    "spleen": (_ANATOMY, Code("SCT", "78961009", "Spleen")),
    "lesion": (_LESION, Code("SCT", "52988006", "Lesion")),
    "nodule": (_LESION, Code("SCT", "27925004", "Nodule")),
    "tumor": (_LESION, Code("SCT", "108369006", "Neoplasm")),
    "tumour": (_LESION, Code("SCT", "108369006", "Neoplasm")),
    "edema": (_LESION, Code("SCT", "79654002", "Edema")),
}


@dataclass(frozen=True)
class Segment:
    """A class as a segment of a file.

    Args:
        number: the class, from 1.
        name: its name.
        colour: red, green, blue, 0 to 255.
        category: coded, such as "Anatomical Structure".
        type: coded, such as "Liver".
    """

    number: int
    name: str
    colour: tuple[int, int, int]
    category: Code = _TISSUE
    type: Code = _TISSUE


@dataclass(frozen=True)
class Segmentation:
    """Labels or probabilities and where they lie.

    Args:
        values: label map *S of unsigned integers, or probabilities (L, *S) as floating point numbers.
        grid: of *S, with an affine from indices to RAS mm, or None for a picture.
        segments: the classes from 1 to L - 1.
    """

    values: NDArray[Any]
    grid: Grid
    segments: tuple[Segment, ...]

    @property
    def is_probabilities(self) -> bool:
        """Whether there is one map for each class."""
        return self.values.dtype.kind == "f"


def make_segmentation(
    values: NDArray[Any],
    affine: NDArray[np.float64] | None,
    class_names: Sequence[str],
    codes: Mapping[str, Any] | None = None,
    colours: Mapping[str, Sequence[int]] | None = None,
    probabilities: bool = False,
) -> Segmentation:
    """A segmentation whose parts fit together.

    Args:
        values: label map *S of whole numbers, or probabilities (L, *S) between 0 and 1; two or three axes *S.
        affine: (4, 4), index to RAS mm; None for a picture.
        class_names: L names, background first.
        codes: name -> (category, type), each (scheme, value, meaning), or the type alone, which is then anatomy.
            Common names have codes; anything else is "Tissue", as in 3D Slicer.
        colours: name -> (red, green, blue), 0 to 255.
        probabilities: whether the values are that.

    Raises:
        WriteError: labels that are no class (255, nothing known, may be there), no probabilities, names that are empty
            or there twice, codes or colours of unknown names.

    Example:
        >>> found = make_segmentation(np.array([[0, 1]]), None, ["background", "vessel"])
        >>> found.values.dtype, found.segments[0].name, found.segments[0].type.meaning
        (dtype('uint8'), 'vessel', 'Blood Vessel')
    """
    names = [str(name).strip() for name in class_names]
    if len(names) < 2 or len(set(names)) != len(names) or not all(names):
        raise WriteError(f"class_names must be two or more different names, background first, got {list(class_names)}")
    for what, given in (("codes", codes), ("colours", colours)):
        unknown = sorted(set(given or {}) - set(names))
        if unknown:
            raise WriteError(f"{what} name {unknown}, which are no classes; the classes are {names}")
    array = np.asarray(values)
    checked = _probabilities(array, len(names)) if probabilities else _labels(array, len(names))
    shape = checked.shape[1:] if probabilities else checked.shape
    place = None if affine is None else np.asarray(affine, dtype=np.float64)
    return Segmentation(checked, Grid(shape, place), segments_of(names, codes, colours))


def segments_of(
    class_names: Sequence[str],
    codes: Mapping[str, Any] | None = None,
    colours: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Segment, ...]:
    """The classes from 1 on, see `make_segmentation`.

    Example:
        >>> [segment.type.meaning for segment in segments_of(["background", "liver", "shadow"])]
        ['Liver', 'Tissue']
    """
    return tuple(
        Segment(number, name, _colour(number, (colours or {}).get(name)), *_codes(name, (codes or {}).get(name)))
        for number, name in enumerate(class_names[1:], 1)
    )


def labels_only(segmentation: Segmentation, format: str) -> NDArray[Any]:
    """The label map, for formats that hold nothing else.

    Raises:
        WriteError: these are probabilities.
    """
    if segmentation.is_probabilities:
        raise WriteError(f"{format} holds labels, no probabilities; write probabilities as .nii.gz, .nrrd or .dcm")
    return segmentation.values


def _labels(array: NDArray[Any], num_classes: int) -> NDArray[Any]:
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf":
        raise WriteError(f"a label map has two or three axes of integers, got {array.dtype} {array.shape}")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise WriteError(
            f"labels with fractions; pass integers, or probabilities of all {num_classes} classes as (L, *S)"
        )
    found = np.unique(array)
    wrong = found[(found < 0) | ((found >= num_classes) & (found != UNLABELED))]
    if len(wrong):
        raise WriteError(f"label {wrong[0]:g} is none of the {num_classes} classes; pass the names of all classes")
    return np.asarray(array, np.uint8 if num_classes <= 256 else np.uint16)


def _probabilities(array: NDArray[Any], num_classes: int) -> NDArray[Any]:
    if array.dtype.kind != "f" or array.ndim not in (3, 4) or len(array) != num_classes:
        raise WriteError(f"probabilities are (L, *S) with {num_classes} classes, got {array.dtype} {array.shape}")
    if not (np.isfinite(array).all() and array.min(initial=0) >= 0 and array.max(initial=0) <= 1 + 1e-5):
        raise WriteError("probabilities must be from 0 to 1; apply softmax first")
    return np.asarray(np.minimum(array, 1), np.float32)


def _codes(name: str, given: Any) -> tuple[Code, Code]:
    if given is None:
        return _KNOWN.get(name.lower().removesuffix("s"), (_TISSUE, _TISSUE))
    try:
        pair = [] if isinstance(given, str) else list(given)
        pair = [_ANATOMY, pair] if len(pair) == 3 and isinstance(pair[0], str) else pair
        if any(isinstance(code, str) for code in pair):
            raise TypeError
        category, kind = (Code(*map(str, code)) for code in pair)
    except (TypeError, ValueError):
        raise WriteError(
            f"the code of {name!r} must be (scheme, value, meaning) or two of these, got {given}"
        ) from None
    return category, kind


def _colour(number: int, given: Sequence[int] | None) -> tuple[int, int, int]:
    if given is None:
        ring = _COLOURS[(number - 1) % len(_COLOURS)]
        turn = (number - 1) // len(_COLOURS)
        given = [(channel + 67 * turn) % 256 for channel in ring]
    if len(given) != 3 or not all(0 <= int(channel) <= 255 for channel in given):
        raise WriteError(f"a colour is (red, green, blue) from 0 to 255, got {tuple(given)}")
    red, green, blue = (int(channel) for channel in given)
    return red, green, blue
