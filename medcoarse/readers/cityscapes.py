"""Outlines in Cityscapes' format (``*_polygons.json``)."""

from __future__ import annotations

import os
from collections.abc import Container

import numpy as np
from PIL import Image, ImageDraw

from medcoarse.readers.drawing import Drawing, Grid, Layer, checked_shape
from medcoarse.readers.json_files import drawn_on, explained, read_json, whole
from medcoarse.readers.shapes import Budget, as_points

_WHAT = "Cityscapes file"


def read_cityscapes(
    path: str | os.PathLike[str], reference: Grid | None = None, skipped: Container[str] = ()
) -> Drawing:
    """Read outlines that are painted one over the other, in the order of the file: later ones are nearer.

    Painted by PIL, as the data set's own label maps are, so the pixels on an outline belong to it.

    Args:
        path: a .json file with ``imgWidth``, ``imgHeight`` and ``objects``.
        reference: grid of the picture, to compare with the size that the file states.
        skipped: labels that are not painted: what lies below them stays.

    Raises:
        DataError: damaged, or another picture's size.

    Example:
        >>> import json, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a_polygons.json"
        >>> road = {"label": "road", "polygon": [[0, 0], [3, 0], [3, 1], [0, 1]]}
        >>> car = {"label": "car", "polygon": [[2, 0], [3, 0], [3, 0]]}
        >>> _ = file.write_text(json.dumps({"imgWidth": 4, "imgHeight": 2, "objects": [road, car]}))
        >>> read_cityscapes(file).layers[0].values.T.tolist(), read_cityscapes(file).layers[0].names
        ([[1, 1, 2, 2], [1, 1, 1, 1]], {1: 'road', 2: 'car'})
    """
    path, content = read_json(path, _WHAT)
    with explained(path, _WHAT):
        size = checked_shape(path, (whole(content["imgWidth"]), whole(content["imgHeight"])))
        objects = [item for item in content["objects"] if not item.get("deleted")]
        objects = [item for item in objects if str(item["label"]) not in skipped]
        grid = drawn_on(path, size, reference, lambda grid: []).grid
        budget = Budget()
        numbers = {str(item["label"]): 0 for item in objects}
        numbers = {name: number for number, name in enumerate(numbers, 1)}
        picture = Image.new("I", (size[0], size[1]))
        for item in objects:
            points = as_points(item["polygon"], minimum=3)
            rows = np.ptp(np.clip(points[:, 1], 0, size[1])) + 1
            budget.spend(5000 + rows * (len(points) + np.ptp(np.clip(points[:, 0], 0, size[0]))))
            ImageDraw.Draw(picture).polygon(points.ravel().tolist(), fill=numbers[str(item["label"])])
        values = np.asarray(picture).T.astype(np.uint16 if len(numbers) < 65536 else np.int32)
    return Drawing(grid, (Layer(values, {number: name for name, number in numbers.items()}),), segments=True)
