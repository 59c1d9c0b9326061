"""JSON files of drawings, with limits: what all the formats of outlines share."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medcoarse.datalist import DataError
from medcoarse.readers.drawing import Drawing, Grid, NoGridError, checked_shape, damaged, existing, pack

MAX_BYTES = 256 << 20
MAX_PIXELS = 1 << 27
"""Of a picture: a few bytes may state any size, so it has to be bounded."""

Pieces: TypeAlias = Iterable[tuple[str, tuple[slice, ...], NDArray[np.bool_]]]


def read_json(path: str | os.PathLike[str], what: str, features: bool = False) -> tuple[Path, dict[str, Any]]:
    """The object in a JSON file.

    Args:
        path: of the file.
        what: it should be, for errors.
        features: whether a list is one of GeoJSON's features, as QuPath writes them, and not an error.

    Raises:
        DataError: no such file, too large, not JSON, or something else than an object.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.json"
        >>> _ = file.write_text("[" * 100_000)
        >>> read_json(file, "labelme file")
        Traceback (most recent call last):
        medcoarse.datalist.DataError: ...a.json: damaged or no labelme file (RecursionError); export it again
    """
    path = existing(path)
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes, at most {MAX_BYTES} are read; split it by image")
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise damaged(path, what, error) from None
    if features and isinstance(content, list):
        content = {"type": "FeatureCollection", "features": content}
    if not isinstance(content, dict):
        raise damaged(path, what)
    return path, content


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are not JSON


@contextlib.contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Make one clear error of anything that a malformed content causes.

    Example:
        >>> with explained(Path("a.json"), "labelme file"):
        ...     {}["shapes"]
        Traceback (most recent call last):
        medcoarse.datalist.DataError: a.json: not in the format of a labelme file (KeyError: 'shapes'); export it again
    """
    try:
        yield
    except DataError:
        raise
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        text = f"{type(error).__name__}: {error}"[:120]
        raise DataError(f"{path}: not in the format of a {what} ({text}); export it again") from None


def drawn_on(
    path: Path, size: Iterable[int] | None, reference: Grid | None, pieces: Callable[[Grid], Pieces]
) -> Drawing:
    """Draw named shapes on a picture.

    Args:
        path: for errors.
        size: width and height that the file states, if it does.
        reference: grid of the image; needed where the file states no size.
        pieces: what to draw, given the grid.

    Raises:
        DataError: neither size nor image, another size than the image's, too many pixels, or an image of three axes.
    """
    stated = checked_shape(path, size) if size is not None else None
    if reference is None and stated is None:
        raise NoGridError(f"{path}: does not state the size of its image; pass the image")
    grid = reference if reference is not None else Grid(stated or ())
    if len(grid.shape) != 2:
        raise DataError(f"{path}: has outlines in a picture, the image has shape {grid.shape}; pass a picture (X, Y)")
    if stated is not None and stated != grid.shape:
        turned = "; its axes are (y, x): load it as LoadImaged does by default" if stated == grid.shape[::-1] else ""
        raise DataError(
            f"{path}: was drawn on a picture of {stated[0]} x {stated[1]} pixels, the image has "
            f"{grid.shape[0]} x {grid.shape[1]}; pass the picture it was drawn on{turned}"
        )
    if checked_shape(path, grid.shape)[0] * grid.shape[1] > MAX_PIXELS:
        raise DataError(
            f"{path}: is for a picture of {grid.shape[0]} x {grid.shape[1]} pixels, at most {MAX_PIXELS} are drawn on; "
            "export it for a smaller picture"
        )
    return Drawing(grid, pack(grid.shape, pieces(grid)), segments=True)


def whole(number: Any) -> int:
    """An integer of a JSON file, from 0 to a billion.

    Raises:
        ValueError: something else, true and false included.

    Example:
        >>> whole(True)
        Traceback (most recent call last):
        ValueError: expected a whole number from 0 to a billion
    """
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1e9 or number % 1:
        raise ValueError("expected a whole number from 0 to a billion")
    return int(number)
