"""What values and names mean in a mask: all of an image is drawn, and every voxel is one class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError
from medcoarse.readers.claims import class_named, drawn_names
from medcoarse.readers.drawing import Drawing

_LISTED = 10
_FEW_SLICES = 3


def mask_labels(
    drawing: Drawing,
    class_names: Sequence[str],
    source: Any,
    binary: bool = False,
    nested: bool = False,
    only_named: bool = False,
) -> NDArray[np.uint8]:
    """The label map *S of a mask: value k is class k, 255 is unlabeled.

    A segment is the class of its name, in capitals or not, and what lies in no segment is background. Segments of
    background give way to the others: people paint it over all, and a structure into it.

    Args:
        drawing: from a reader.
        class_names: L names, background first.
        source: what to call the mask in errors.
        binary: whether 255 is class 1 in a label map, as in pictures of masks; in files of segments it never is.
        nested: whether segments may lie in one another: the class that comes later covers the earlier one.
        only_named: whether segments that are no class are left out, as the body and the couch of an RTSTRUCT.

    Raises:
        DataError: values or, unless `only_named`, segments that are no class, segments that overlap unless `nested`,
            a binary mask with both 1 and 255, contours that do not lie on the image, or a structure in segments that
            is drawn on every other slice of a volume.

    Example:
        >>> from medcoarse.readers.drawing import Grid, Layer
        >>> layers = Layer(np.array([1, 1, 1, 0]), {1: "background"}), Layer(np.array([0, 1, 0, 0]), {1: "Liver"})
        >>> mask_labels(Drawing(Grid((4,)), layers, segments=True), ["background", "liver"], "a").tolist()
        [0, 1, 0, 0]
        >>> mask_labels(Drawing(Grid((3,)), (Layer(np.array([0, 1, 255])),), False), ["a", "b"], "m.png", binary=True)
        Traceback (most recent call last):
        medcoarse.datalist.DataError: m.png: shows both 1 and 255, and where masks are binary 255 is class 1; ...
    """
    if drawing.segments:
        return _of_segments(drawing, class_names, source, nested, only_named)
    shown = drawn_names(drawing.layers[0])
    known = {0, 1, UNLABELED} if binary else {*range(len(class_names)), UNLABELED}
    if unknown := [name for value, name in shown.items() if value not in known]:
        raise _unknown(unknown, class_names, source, f"number them so, {UNLABELED} where nobody knows")
    if binary and {1, UNLABELED} <= shown.keys():
        raise DataError(
            f"{source}: shows both 1 and {UNLABELED}, and where masks are binary {UNLABELED} is class 1; is it "
            "unlabeled here? write all masks of a folder alike: 0 and 255, or 0, 1, ... and 255 for unlabeled"
        )
    values = drawing.layers[0].values
    return np.asarray(values > 0 if binary else values, np.uint8)


def _of_segments(
    drawing: Drawing, class_names: Sequence[str], source: Any, nested: bool, only_named: bool
) -> NDArray[np.uint8]:
    shown = [{value: name for value, name in drawn_names(layer).items() if value} for layer in drawing.layers]
    classes = {name: class_named(name, class_names) for names in shown for name in names.values()}
    for name, why in drawing.unplaced.items():
        if not only_named or class_named(name, class_names) is not None:
            raise DataError(why)
    unknown = sorted(name for name, label in classes.items() if label is None)
    if unknown and not only_named:
        raise _unknown(
            unknown,
            class_names,
            source,
            "name its segments so or, to leave out those that are none of them, say so (only_named=True in Python, "
            "--only_named of the commands)",
        )
    labels = np.zeros(drawing.layers[0].values.shape, np.uint8)
    for layer, names in zip(drawing.layers, shown, strict=True):
        table = np.zeros(max(names, default=0) + 1, np.uint8)
        table[list(names)] = [classes[name] or 0 for name in names.values()]
        said = table[layer.values]
        if not nested and ((labels > 0) & (said > 0) & (labels != said)).any():
            raise DataError(
                f"{source}: its segments overlap, and a mask has one class at a voxel; cut them or, where structures "
                "lie in one another, say so (contradictions='last' in Python, --nested of the commands)"
            )
        np.maximum(labels, said, out=labels)
    for label, name in enumerate(class_names):
        if label and _has_gaps(labels == label):
            raise DataError(
                f"{source}: {name!r} is drawn on every other slice or fewer, and what lies between would be "
                "background; fill it (3D Slicer: Fill between slices), or pass the file as a drawing, not as a mask"
            )
    return labels


def _has_gaps(mask: NDArray[np.bool_]) -> bool:
    """Whether a structure is drawn in slices, of the third axis, of which no two are neighbours, and goes on from most
    of them to the next.
    """
    if mask.ndim < 3:
        return False
    slices = np.flatnonzero(mask.any(axis=(0, 1)))
    if len(slices) < _FEW_SLICES or np.diff(slices).min() == 1:
        return False
    going_on = sum(bool((mask[..., one] & mask[..., other]).any()) for one, other in pairwise(slices))
    return 2 * going_on > len(slices) - 1


def _unknown(shown: Sequence[str], class_names: Sequence[str], source: Any, what_to_do: str) -> DataError:
    listed = ", ".join(repr(name[:80]) for name in shown[:_LISTED])
    classes = ", ".join(f"{label} {name}" for label, name in enumerate(class_names))
    return DataError(f"{source}: the mask shows {listed}, and the classes are {classes}; {what_to_do}")
