"""Label maps in NRRD, and 3D Slicer's segmentations (.seg.nrrd) with their names and overlapping segments."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoarse.datalist import DataError
from medcoarse.readers.drawing import (
    Drawing,
    Grid,
    Layer,
    checked_affine,
    checked_shape,
    damaged,
    existing,
    label_values,
    require_bytes,
)

_TO_RAS = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
_TYPES = {
    **dict.fromkeys(("signed char", "int8"), "i1"),
    **dict.fromkeys(("unsigned char", "uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "signed short", "int16"), "i2"),
    **dict.fromkeys(("unsigned short", "ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "signed", "int32"), "i4"),
    **dict.fromkeys(("unsigned", "uint", "uint32"), "u4"),
    **dict.fromkeys(("long long", "longlong", "signed long long", "int64"), "i8"),
    **dict.fromkeys(("unsigned long long", "ulonglong", "uint64"), "u8"),
    **{"float": "f4", "double": "f8"},
}
_INSTALL = "pip install pynrrd"


def read_nrrd(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read a label map in NRRD or a segmentation of 3D Slicer, which is an NRRD file with segments in its header.

    Args:
        path: a .nrrd or .seg.nrrd file.
        reference: not needed.

    Returns:
        Of a segmentation the layers as they are stored, with the names of their segments.

    Raises:
        DataError: damaged, absurd, no label map, or pynrrd is not installed.

    Example:
        >>> import nrrd, tempfile
        >>> file = tempfile.mkdtemp() + "/drawing.seg.nrrd"
        >>> header = {"space": "left-posterior-superior", "space directions": np.diag([1, 1, 3]),
        ...     "space origin": [0, 0, 0], "Segment0_ID": "s", "Segment0_Name": "vessel", "Segment0_LabelValue": "4",
        ...     "Segment0_Layer": "0"}
        >>> _ = nrrd.write(file, np.full((2, 2, 1), 4, np.uint8), header)
        >>> read_nrrd(file).layers[0].names
        {4: 'vessel'}
    """
    path = existing(path)
    try:
        import nrrd
    except ImportError:
        raise DataError(f"{path}: NRRD files are read with pynrrd, which is not installed; {_INSTALL}") from None
    try:
        head, data = re.split(rb"\r?\n\r?\n", path.read_bytes(), maxsplit=1)
        header = nrrd.read_header(iter(head.decode("utf-8", "replace").splitlines()))
        stored = _stored(path, header, data)
        segments = _segments(header)
        if not segments and stored.ndim == 4:
            raise DataError(f"{path}: has several channels but no segments; export one label map")
        layered = stored.ndim == 4
        parts = list(stored) if layered else [stored]
        affine = _affine(path, header, layered, parts[0].ndim)
        layers = [Layer(label_values(path, part), {}) for part in parts]
        for number, (name, layer, value) in enumerate(segments):
            place = layer if layer is not None else number if layered else 0
            layers[place] = Layer(layers[place].values, {**layers[place].names, 1 if value is None else value: name})
    except DataError:
        raise
    except Exception as error:  # pynrrd promises no types
        raise damaged(path, "NRRD file", error) from None
    return Drawing(Grid(parts[0].shape, affine), tuple(layers), segments=bool(segments))


def _stored(path: Path, header: Mapping[str, Any], data: bytes) -> NDArray[Any]:
    """The voxels in NRRD's order of axes; inflated here, for pynrrd has no limit to it."""
    if {"data file", "datafile"} & set(header):
        raise DataError(f"{path}: its voxels are in another file; save it as one .nrrd file")
    encoding = str(header["encoding"]).lower()
    compressed = encoding in ("gz", "gzip")
    if not compressed and encoding != "raw":
        raise DataError(f"{path}: encoding {encoding[:20]!r}, expected gzip or raw; save it with one of these")
    sizes = [int(size) for size in header["sizes"]]
    layers = sizes.pop(0) if len(sizes) == 4 else 1
    if not 1 <= layers <= 1024:
        raise DataError(f"{path}: {layers} layers, expected 1 to 1024; is it a segmentation, and whole?")
    shape = checked_shape(path, sizes)
    dtype = _dtype(header)
    declared = layers * int(np.prod(shape)) * dtype.itemsize
    require_bytes(path, declared, compressed)
    if int(header.get("line skip", 0)) or int(header.get("byte skip", 0)):
        raise DataError(f"{path}: skips a part of its data; save it without line skip and byte skip")
    if compressed:
        data = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, declared)
    if len(data) < declared:
        raise DataError(f"{path}: {len(data)} bytes of voxels, expected {declared}; cut short? export it again")
    full = (layers, *shape) if len(header["sizes"]) == 4 else shape
    return np.frombuffer(data[:declared], dtype).reshape(full, order="F")


def _dtype(header: Mapping[str, Any]) -> np.dtype[Any]:
    name = str(header["type"]).removesuffix("_t").replace(" int", "")
    return np.dtype(_TYPES[name]).newbyteorder(">" if header.get("endian") == "big" else "<")


def _segments(header: Mapping[str, Any]) -> list[tuple[str, int | None, int | None]]:
    """Name, layer and value of every segment; layer and value are not there in files of old versions."""
    found: list[tuple[str, int | None, int | None]] = []
    while f"Segment{len(found)}_ID" in header:
        start = f"Segment{len(found)}_"
        name = str(header.get(start + "Name", header[start + "ID"]))
        layer, value = (header.get(start + key) for key in ("Layer", "LabelValue"))
        numbers = [None if number is None else int(number) for number in (layer, value)]
        if any(number is not None and number < 0 for number in numbers):
            raise ValueError("negative")
        found.append((name, numbers[0], numbers[1]))
    return found


def _affine(path: Path, header: Mapping[str, Any], layered: bool, axes: int) -> NDArray[np.float64]:
    space = str(header.get("space", "lps" if axes == 2 else "")).lower()  # ITK names no space of two axes
    if space not in _TO_RAS:
        raise DataError(
            f"{path}: does not say where left is (space {space[:40]!r}, expected one of {list(_TO_RAS)}); "
            "export it with its orientation"
        )
    affine = np.eye(4)
    directions = np.asarray(header["space directions"], dtype=np.float64)
    directions = directions[1:] if layered else directions
    affine[: directions.shape[1], :axes] = directions.T
    affine[: directions.shape[1], 3] = np.asarray(header["space origin"], dtype=np.float64)
    affine[:3] *= np.array(_TO_RAS[space])[:, None]
    return checked_affine(path, affine)
