"""Annotations of QuPath, exported as GeoJSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from medcoarse.readers.drawing import Drawing, Grid
from medcoarse.readers.json_files import Pieces, drawn_on, explained, read_json
from medcoarse.readers.shapes import Budget, Points, as_points, fill, stroke

_WHAT = "GeoJSON file of QuPath"


def read_geojson(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read polygons with their holes, lines and points in pixels of the image; the name is that of the classification.

    Args:
        path: a .geojson or .json file.
        reference: grid of the picture, whose size the format does not state.

    Raises:
        DataError: damaged, no reference, an annotation without a class or name, or a geometry of another kind.

    Example:
        >>> import json, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.geojson"
        >>> square = {"type": "Polygon", "coordinates": [[[1, 0], [3, 0], [3, 1], [1, 1], [1, 0]]]}
        >>> feature = {"type": "Feature", "geometry": square, "properties": {"classification": {"name": "Tumor"}}}
        >>> _ = file.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        >>> read_geojson(file, Grid((4, 2))).layers[0].values.T.tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    path, content = read_json(path, _WHAT)
    with explained(path, _WHAT):
        features = content["features"] if content["type"] == "FeatureCollection" else [content]
        return drawn_on(path, None, reference, lambda grid: _pieces(features, grid.shape))


def _pieces(features: Sequence[Mapping[str, Any]], size: tuple[int, ...]) -> Pieces:
    budget = Budget()
    for feature in features:
        name = _name(feature["properties"])
        kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
        single = not kind.startswith("Multi")
        for part in [coordinates] if single else coordinates:
            rings = _rings(kind.removeprefix("Multi"), part)
            filled = kind.endswith("Polygon")
            yield name, *(fill(rings, size, budget) if filled else stroke(rings[0], size, budget))


def _name(properties: Mapping[str, Any]) -> str:
    """QuPath's class of an annotation; older versions write a list of nested classes."""
    classification = properties.get("classification") or {}
    name = classification.get("name") or ": ".join(classification.get("names") or []) or properties.get("name")
    if not name:
        raise ValueError("an annotation without a class or name; give it a class in QuPath")
    return str(name)


def _rings(kind: str, part: Any) -> list[Points]:
    """Points of one geometry; QuPath counts from the corner of the first pixel."""
    if kind not in ("Polygon", "LineString", "Point"):
        raise ValueError(f"a geometry {kind[:20]!r}; draw polygons, lines or points")
    lists = part if kind == "Polygon" else [part] if kind == "LineString" else [[part]]
    if not lists:
        raise ValueError("an empty geometry")
    return [as_points(points) - 0.5 for points in lists]
