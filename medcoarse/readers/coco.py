"""Outlines and uncompressed masks in COCO's format."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.readers.drawing import Drawing, Grid, checked_shape
from medcoarse.readers.json_files import Pieces, drawn_on, explained, read_json, whole
from medcoarse.readers.shapes import Budget, as_points, fill

_WHAT = "COCO file"


def read_coco(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read the annotations of one image: of the only one in the file, or of the one with the name of the reference.

    Args:
        path: a .json file with ``images``, ``annotations`` and ``categories``.
        reference: grid of the picture with its name, to pick it and to compare its size.

    Raises:
        DataError: damaged, no such image or several of its name, another size, or compressed masks.

    Example:
        >>> import json, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.json"
        >>> square = {"image_id": 1, "category_id": 7, "segmentation": [[1, 0, 3, 0, 3, 1, 1, 1]]}
        >>> content = {"images": [{"id": 1, "file_name": "a.png", "width": 4, "height": 2}],
        ...     "categories": [{"id": 7, "name": "vessel"}], "annotations": [square]}
        >>> _ = file.write_text(json.dumps(content))
        >>> read_coco(file).layers[0].values.T.tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    path, content = read_json(path, _WHAT)
    with explained(path, _WHAT):
        image = _image(content["images"], reference)
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        found = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        size = checked_shape(path, (whole(image["width"]), whole(image["height"])))
        return drawn_on(path, size, reference, lambda grid: _pieces(found, names, grid.shape))


def _image(images: Sequence[Mapping[str, Any]], reference: Grid | None) -> Mapping[str, Any]:
    name = reference.name if reference is not None else None
    named = [image for image in images if name and PurePath(str(image["file_name"])).name == name]
    found = named or (images if not name or len(images) == 1 else [])
    if len(found) != 1:
        raise ValueError(f"{len(found)} of {len(images)} images match; pass the image, by the file name in the list")
    return found[0]


def _pieces(items: Sequence[Mapping[str, Any]], names: Mapping[Any, str], size: tuple[int, ...]) -> Pieces:
    budget = Budget()
    for item in items:
        parts = item["segmentation"]
        name = names[item["category_id"]]
        if isinstance(parts, dict):
            budget.spend(10 * size[0] * size[1])
            yield name, tuple(slice(0, side) for side in size), _run_lengths(parts, size)
            continue
        for part in parts:
            points = as_points(list(zip(part[::2], part[1::2], strict=True)))
            yield name, *fill([points - 0.5], size, budget)


def _run_lengths(mask: Mapping[str, Any], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Lengths of undrawn and drawn pixels in turn, down the columns."""
    if isinstance(mask["counts"], str):
        raise ValueError("a compressed mask; export polygons or uncompressed counts")
    counts = np.array(mask["counts"])
    if list(mask["size"]) != [size[1], size[0]] or counts.dtype.kind not in "iu" or counts.ndim != 1:
        raise ValueError("a mask that does not fit the image")
    if (counts < 0).any() or (counts > size[0] * size[1]).any() or counts.sum() != size[0] * size[1]:
        raise ValueError("counts that do not add up to the pixels of the image")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size)
