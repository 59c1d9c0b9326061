"""Label maps in pictures without loss: grey values, or the indices of a palette."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from medcoarse.datalist import DataError
from medcoarse.readers.drawing import (
    Drawing,
    Grid,
    Layer,
    checked_shape,
    damaged,
    existing,
    label_values,
    require_bytes,
)

_ORIENTATION = 274
"""EXIF's tag."""

_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "F")


def read_png(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read a label map in PNG; of a palette picture the indices, not the colours.

    Args:
        path: a .png file.
        reference: not needed.

    Raises:
        DataError: damaged, absurd, or in true colour.

    Example:
        >>> import tempfile
        >>> file = tempfile.mkdtemp() + "/drawing.png"
        >>> Image.fromarray(np.array([[0, 2, 1]], dtype=np.uint8)).save(file)
        >>> read_png(file).layers[0].values.tolist()
        [[0], [2], [1]]
    """
    return _read(existing(path), "PNG")


def read_tiff(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read a label map in TIFF, see `read_png`; of several pages the first."""
    return _read(existing(path), "TIFF")


def read_bmp(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read a label map in BMP, see `read_png`."""
    return _read(existing(path), "BMP")


def require_upright(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Refuse a picture that viewers turn or mirror when they show it, so that what is drawn on it lies elsewhere.

    Of TIFF too: Pillow turns it by itself, but not all kinds of it rightly.

    Args:
        image: opened, and not yet loaded.
        path: is named in the error.

    Raises:
        DataError: its EXIF orientation is not 1.

    Example:
        >>> require_upright(Image.new("L", (3, 2)), "a.png")
    """
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except (
        SyntaxError,
        struct.error,
    ):  # Pillow's words for EXIF that cannot be read; viewers turn nothing by it either
        turn = 1
    if turn in range(2, 9):
        raise DataError(
            f"{path}: is shown turned or mirrored (EXIF orientation {turn}), so drawings of it do not lie on its "
            "pixels as stored; save it upright (`mogrify -auto-orient`, or PIL.ImageOps.exif_transpose)"
        )


def _read(path: Path, format: str) -> Drawing:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=[format]) as image:
                require_upright(image, path)
                if image.mode not in _MODES:
                    raise DataError(
                        f"{path}: is in colour ({image.mode}), and colours are no label values; save it with a palette "
                        "or in grey"
                    )
                shape = checked_shape(path, image.size)
                require_bytes(path, shape[0] * shape[1] // 8, compressed=True)
                values = label_values(path, np.ascontiguousarray(np.asarray(image).T))
    except DataError:
        raise
    except Exception as error:  # PIL promises no types
        raise damaged(path, f"{format} file", error) from None
    return Drawing(Grid(shape), (Layer(values),), segments=False)
