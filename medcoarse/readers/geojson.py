"""Annotations of QuPath, exported as GeoJSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcoarse.datalist import DataError
from medcoarse.readers.drawing import Drawing, Grid
from medcoarse.readers.json_files import Pieces, drawn_on, explained, read_json
from medcoarse.readers.shapes import Budget, Points, as_points, fill, stroke

UNCLASSIFIED = "unclassified"
"""What annotations without a class and a name are called."""

_WHAT = "GeoJSON file of QuPath"


def read_geojson(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read polygons with their holes, lines and points in pixels of the image.

    The name is that of the classification, or of the annotation, or "unclassified".

    Args:
        path: a .geojson or .json file: a collection of features, a list of them, or one.
        reference: grid of the picture, whose size the format does not state.

    Raises:
        DataError: damaged, no reference, a geometry of another kind, or one that reaches beyond the picture by more
            than a pixel and a fiftieth of its side, as on a smaller copy of the one it was drawn on.

    Example:
        >>> import json, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.geojson"
        >>> square = {"type": "Polygon", "coordinates": [[[1, 0], [3, 0], [3, 1], [1, 1], [1, 0]]]}
        >>> feature = {"type": "Feature", "geometry": square, "properties": {"classification": {"name": "Tumor"}}}
        >>> _ = file.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        >>> read_geojson(file, Grid((4, 2))).layers[0].values.T.tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    path, content = read_json(path, _WHAT, features=True)
    with explained(path, _WHAT):
        features = content["features"] if content["type"] == "FeatureCollection" else [content]
        return drawn_on(path, None, reference, lambda grid: _pieces(path, features, grid.shape))


def _pieces(path: Path, features: Sequence[Mapping[str, Any]], size: tuple[int, ...]) -> Pieces:
    budget = Budget()
    for feature in features:
        name = _name(feature["properties"])
        kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
        single = not kind.startswith("Multi")
        for part in [coordinates] if single else coordinates:
            rings = _rings(kind.removeprefix("Multi"), part)
            _require_inside(path, rings, size)
            filled = kind.endswith("Polygon")
            yield name, *(fill(rings, size, budget) if filled else stroke(rings[0], size, budget))


def _name(properties: Mapping[str, Any]) -> str:
    """QuPath's class of an annotation; older versions write a list of nested classes."""
    classification = properties.get("classification") or {}
    name = classification.get("name") or ": ".join(classification.get("names") or []) or properties.get("name")
    return str(name or UNCLASSIFIED)


def _require_inside(path: Path, rings: Sequence[Points], size: tuple[int, ...]) -> None:
    """Refuse what lies clearly outside: the file does not state the size of the picture that it was drawn on."""
    points = np.concatenate(rings)
    beyond = np.maximum(-0.5 - points, points - (np.array(size) - 0.5)).max()
    if beyond > 1 + 0.02 * max(size):
        raise DataError(
            f"{path}: reaches {beyond:.4g} pixels beyond the picture, which has {size[0]} x {size[1]}; pass the "
            "picture it was drawn on, at its full size"
        )


def _rings(kind: str, part: Any) -> list[Points]:
    """Points of one geometry; QuPath counts from the corner of the first pixel."""
    if kind not in ("Polygon", "LineString", "Point"):
        raise ValueError(f"a geometry {kind[:20]!r}; draw polygons, lines or points")
    lists = part if kind == "Polygon" else [part] if kind == "LineString" else [[part]]
    if not lists:
        raise ValueError("an empty geometry")
    return [as_points(points) - 0.5 for points in lists]
