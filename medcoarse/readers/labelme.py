"""Outlines and strokes of labelme."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from medcoarse.readers.drawing import Drawing, Grid
from medcoarse.readers.json_files import Pieces, drawn_on, explained, read_json, whole
from medcoarse.readers.shapes import Budget, Piece, as_points, circle, fill, stroke

_WHAT = "labelme file"


def read_labelme(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read a file of labelme: polygons, rectangles and circles are filled, lines and points are one pixel wide.

    Args:
        path: a .json file.
        reference: grid of the picture, to compare with the size that the file states.

    Raises:
        DataError: damaged, another picture's size, or a shape of another type.

    Example:
        >>> import json, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.json"
        >>> shape = {"label": "vessel", "shape_type": "rectangle", "points": [[1, 0], [3, 1]]}
        >>> _ = file.write_text(json.dumps({"shapes": [shape], "imageWidth": 4, "imageHeight": 2}))
        >>> read_labelme(file).layers[0].values.T.tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    path, content = read_json(path, _WHAT)
    with explained(path, _WHAT):
        size = (whole(content["imageWidth"]), whole(content["imageHeight"]))
        shapes = content["shapes"]
        return drawn_on(path, size, reference, lambda grid: _pieces(shapes, grid.shape))


def _pieces(shapes: list[Mapping[str, Any]], size: tuple[int, ...]) -> Pieces:
    budget = Budget()
    for shape in shapes:
        yield str(shape["label"]), *_piece(shape, size, budget)


def _piece(shape: Mapping[str, Any], size: tuple[int, ...], budget: Budget) -> Piece:
    kind = shape.get("shape_type") or "polygon"
    points = as_points(shape["points"]) - 0.5  # labelme counts from the corner of the first pixel
    if kind == "polygon":
        return fill([points], size, budget)
    if kind in ("linestrip", "line", "point"):
        return stroke(points, size, budget)
    if kind in ("rectangle", "circle") and len(points) == 2:
        first, second = points
        if kind == "circle":
            return fill([circle(first, float(np.hypot(*(second - first))))], size, budget)
        return fill([np.array([first, (first[0], second[1]), second, (second[0], first[1])])], size, budget)
    raise ValueError(f"a shape {str(kind)[:20]!r} of {len(points)} points; draw polygons, rectangles, circles or lines")
