"""What every reader gives back: a drawing as layers of named values on a grid; and the limits of what is read.

Convention: arrays are indexed as MONAI's LoadImage does, (x, y) or (x, y, z); an affine leads from indices to
millimetres in RAS coordinates (right, anterior, superior). A picture has no affine: (x, y) are column and row.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medcoarse.datalist import DataError

MAX_VOXELS = 1 << 30
"""More than any scanner makes: a whole body of 512 x 512 x 2000 voxels is half of it."""

_MAX_INFLATION = 1100
"""Deflate, which NIfTI, NRRD, MetaImage and PNG use, shrinks data to 1/1032 at best."""

_HIGHEST_VALUE = 65535
_MAX_LAYERS = 64


class NoGridError(DataError):
    """Outlines, and nothing that says on which voxels."""


@dataclass(frozen=True)
class Grid:
    """Where voxels lie.

    Args:
        shape: *S, two or three axes.
        affine: (4, 4), index to RAS mm; None for a picture.
        frame_of_reference: DICOM's UID of the coordinate system, where it is known.
        name: file name of the image, for formats that describe several images.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64] | None = None
    frame_of_reference: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Layer:
    """A label map *S, and the names of its values; a value without a name is called by its number."""

    values: NDArray[Any]
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    """What a file says.

    Args:
        grid: where it lies.
        layers: label maps of unsigned integers; what overlaps is in different layers.
        segments: whether 0 means "in no segment of this layer", which claims nothing. In a plain label map 0 is a value
            like others and may be background or nothing drawn: only who made it knows.
        unplaced: names of contours that do not lie on the grid, and how; they are an error unless nobody wants them.
    """

    grid: Grid
    layers: tuple[Layer, ...]
    segments: bool
    unplaced: Mapping[str, str] = field(default_factory=dict)


def as_affine(affine: ArrayLike) -> NDArray[np.float64]:
    """A 3 x 3 affine of two axes, or a 4 x 4 one, as 4 x 4.

    Example:
        >>> as_affine([[2, 0, 5], [0, 3, 6], [0, 0, 1]]).tolist()
        [[2.0, 0.0, 0.0, 5.0], [0.0, 3.0, 0.0, 6.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    given = np.asarray(affine, dtype=np.float64)
    full = np.eye(4)
    axes = len(given) - 1
    full[:axes, :axes] = given[:axes, :axes]
    full[:axes, 3] = given[:axes, axes]
    return full


def lps_affine(path: Path, axes: ArrayLike, origin: ArrayLike) -> NDArray[np.float64]:
    """RAS affine of a grid that is given in LPS, as ITK and DICOM do.

    Args:
        path: for the error.
        axes: (N, N), column i is the step of index i in mm.
        origin: (N,), of index 0.

    Raises:
        DataError: numbers that are not finite, or axes that do not span the space.

    Example:
        >>> lps_affine(Path("a.mha"), np.diag([1, 2, 3]), [4, 5, 6]).tolist()
        [[-1.0, 0.0, 0.0, -4.0], [0.0, -2.0, 0.0, -5.0], [0.0, 0.0, 3.0, 6.0], [0.0, 0.0, 0.0, 1.0]]
    """
    steps, start = np.asarray(axes, dtype=np.float64), np.asarray(origin, dtype=np.float64)
    affine = np.eye(len(start) + 1)
    affine[:-1, :-1], affine[:-1, -1] = steps, start
    affine[:2] *= -1
    affine += 0.0  # no -0
    return checked_affine(path, as_affine(affine))


def checked_affine(path: Path, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine, if it is finite and invertible.

    Raises:
        DataError: it is not.

    Example:
        >>> checked_affine(Path("a.nrrd"), np.zeros((4, 4)))
        Traceback (most recent call last):
        medcoarse.datalist.DataError: a.nrrd: its axes and origin define no place in space...
    """
    with np.errstate(all="ignore"):
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        sound = np.isfinite(affine).all() and (np.abs(affine) < 1e7).all() and (steps > 1e-6).all()
        sound = sound and abs(np.linalg.det(affine[:3, :3] / steps)) > 1e-3
    if not sound:
        raise DataError(
            f"{path}: its axes and origin define no place in space (not finite, of no length, or in one plane); export "
            "it again"
        )
    return affine


def checked_shape(path: Path, shape: Iterable[int]) -> tuple[int, ...]:
    """The shape, if it is one that an image can have.

    Raises:
        DataError: not two or three axes of at least one voxel, or over 2^30 voxels.

    Example:
        >>> checked_shape(Path("a.nii"), (10, 10, 10**9))
        Traceback (most recent call last):
        medcoarse.datalist.DataError: a.nii: declares 10 x 10 x 1000000000 voxels...
    """
    sizes = tuple(int(size) for size in shape)
    if len(sizes) not in (2, 3) or min(sizes) < 1 or np.prod([float(size) for size in sizes]) > MAX_VOXELS:
        text = " x ".join(map(str, sizes[:8])) or "no"
        raise DataError(
            f"{path}: declares {text} voxels, expected two or three axes and at most {MAX_VOXELS} voxels; is it a "
            "label map, and whole?"
        )
    return sizes


def require_bytes(path: Path, declared: int, compressed: bool) -> None:
    """Refuse a file that cannot hold what it declares, before memory is taken for it.

    Raises:
        DataError: too few bytes.
    """
    have = path.stat().st_size
    if declared > have * (_MAX_INFLATION if compressed else 1):
        raise DataError(
            f"{path}: declares {declared} bytes of voxels, but has {have} bytes; cut short? export it again"
        )


def existing(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there.

    Raises:
        DataError: it is not.

    Example:
        >>> existing("nowhere.png")
        Traceback (most recent call last):
        medcoarse.datalist.DataError: nowhere.png: no such file; correct the path
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; correct the path")
    return path


def damaged(path: Path, what: str, error: Exception | None = None) -> DataError:
    """The error of a file that its format's library cannot read; what the library says may quote the file, and people.

    Example:
        >>> damaged(Path("a.png"), "PNG file", OSError("secret"))
        DataError('a.png: damaged or no PNG file (OSError); export it again')
    """
    kind = f" ({type(error).__name__})" if error else ""
    return DataError(f"{path}: damaged or no {what}{kind}; export it again")


def label_values(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    """An array as label values, uint8 or uint16.

    Raises:
        DataError: fractions, or values below 0 or above 65535.

    Example:
        >>> label_values(Path("a.nii"), np.array([0.0, 3.0]))
        array([0, 3], dtype=uint8)
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: values are of type {array.dtype}, not label values; export label values")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= 0 and high <= _HIGHEST_VALUE):  # also of NaN
        raise DataError(
            f"{path}: values from {low:g} to {high:g}, label values are 0 to {_HIGHEST_VALUE}; is it an image?"
        )
    labels = array.astype(np.uint8 if high < 256 else np.uint16)
    if array.dtype.kind == "f" and not np.array_equal(labels, array):
        raise DataError(
            f"{path}: values with fractions, label values are integers; is it an image or a probability map?"
        )
    return labels


def pack(
    shape: tuple[int, ...], pieces: Iterable[tuple[str, tuple[slice, ...], NDArray[np.bool_]]]
) -> tuple[Layer, ...]:
    """Layers of named pieces: one goes to the first layer where it overlaps nothing of another name.

    Args:
        shape: *S.
        pieces: name, box of *S, and what is drawn in the box; pieces of one name are one segment.

    Raises:
        ValueError: over 65535 names, or over 64 layers.

    Example:
        >>> a, b, c = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)
        >>> whole = (slice(0, 3),)
        >>> layers = pack((3,), [("a", whole, a), ("b", whole, b), ("c", whole, c)])
        >>> [(layer.values.tolist(), layer.names) for layer in layers]
        [([1, 1, 3], {1: 'a', 2: 'b', 3: 'c'}), ([0, 2, 2], {1: 'a', 2: 'b', 3: 'c'})]
    """
    numbers: dict[str, int] = {}
    layers = [np.zeros(shape, np.uint16)]
    for name, box, mask in pieces:
        number = numbers.setdefault(name, len(numbers) + 1)
        place = next((layer for layer in layers if _is_free(layer[box][mask], number)), None)
        if place is None:
            place = np.zeros(shape, np.uint16)
            layers.append(place)
        if number > _HIGHEST_VALUE or len(layers) > _MAX_LAYERS:
            raise ValueError(f"over {_HIGHEST_VALUE} segments, or over {_MAX_LAYERS} that overlap at one place")
        place[box][mask] = number
    names = {number: name for name, number in numbers.items()}
    return tuple(Layer(layer, names) for layer in layers)


def _is_free(values: NDArray[np.uint16], number: int) -> bool:
    return bool(((values == 0) | (values == number)).all())
