"""Label maps in MetaImage (.mha), as ITK writes them.

Read here and not by ITK, which follows the file names that a header may hold and takes the memory it asks for.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from medcoarse.datalist import DataError
from medcoarse.readers.drawing import (
    Drawing,
    Grid,
    Layer,
    checked_shape,
    damaged,
    existing,
    label_values,
    lps_affine,
    require_bytes,
)

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_ALIASES = {
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
_MAX_HEADER = 1 << 16


def read_metaimage(path: str | os.PathLike[str], reference: Grid | None = None) -> Drawing:
    """Read a label map in MetaImage format, plain or compressed.

    Args:
        path: a .mha file, i.e. one with its voxels inside.
        reference: not needed.

    Raises:
        DataError: damaged, absurd, or no label map.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "drawing.mha"
        >>> head = "NDims = 2\\nDimSize = 2 1\\nElementType = MET_UCHAR\\nElementDataFile = LOCAL\\n"
        >>> _ = file.write_bytes(head.encode() + bytes([0, 7]))
        >>> read_metaimage(file).layers[0].values.tolist()
        [[0], [7]]
    """
    path = existing(path)
    try:
        with path.open("rb") as file:
            header = _header(path, file)
            shape = checked_shape(path, map(int, header["DimSize"].split()))
            axes = len(shape)
            if int(header["NDims"]) != axes or int(header.get("ElementNumberOfChannels", "1")) != 1:
                raise DataError(f"{path}: more or fewer axes than it says, or several channels; export one label map")
            values = _values(path, file, header, shape)
        steps = _numbers(header, "ElementSpacing", np.ones(axes))
        matrix = _numbers(header, "TransformMatrix", np.eye(axes).ravel()).reshape(axes, axes)  # one axis after another
        affine = lps_affine(path, matrix.T * steps, _numbers(header, "Offset", np.zeros(axes)))
    except DataError:
        raise
    except (KeyError, ValueError, OverflowError, MemoryError, zlib.error) as error:
        raise damaged(path, "MetaImage file", error) from None
    return Drawing(Grid(shape, affine), (Layer(values),), segments=False)


def _header(path: Path, file: BinaryIO) -> dict[str, str]:
    header: dict[str, str] = {}
    while "ElementDataFile" not in header:
        line = file.readline(_MAX_HEADER)
        name, sign, value = line.decode("latin-1").partition("=")
        if not sign or file.tell() > _MAX_HEADER:
            raise damaged(path, "MetaImage file")
        header[_ALIASES.get(name.strip(), name.strip())] = value.strip()
    if header["ElementDataFile"] != "LOCAL":
        raise DataError(f"{path}: its voxels are in another file; save it as one .mha file")
    if header.get("BinaryData", "True").lower() != "true":
        raise DataError(f"{path}: its voxels are written as text; save it as binary")
    return header


def _numbers(header: dict[str, str], name: str, default: NDArray[np.float64]) -> NDArray[np.float64]:
    if name not in header:
        return default
    numbers = np.array(header[name].split(), dtype=np.float64)
    if numbers.shape != default.shape:
        raise ValueError(name)
    return numbers


def _values(path: Path, file: BinaryIO, header: dict[str, str], shape: tuple[int, ...]) -> NDArray[np.integer]:
    big_endian = header.get("BinaryDataByteOrderMSB", "False").lower() == "true"
    dtype = np.dtype(_TYPES[header["ElementType"]]).newbyteorder(">" if big_endian else "<")
    declared = int(np.prod(shape)) * dtype.itemsize
    compressed = header.get("CompressedData", "False").lower() == "true"
    require_bytes(path, declared, compressed)
    data = zlib.decompressobj().decompress(file.read(), declared) if compressed else file.read(declared)
    if len(data) != declared:
        raise DataError(f"{path}: {len(data)} bytes of voxels, expected {declared}; cut short? export it again")
    return label_values(path, np.frombuffer(data, dtype).reshape(shape, order="F"))
