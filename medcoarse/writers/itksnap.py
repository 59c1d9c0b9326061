"""Label descriptions of ITK-SNAP: what the values of label maps are called, and their colours, as a text file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medcoarse.files import write_atomically
from medcoarse.writers.segmentation import segments_of

_HEAD = """################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# IDX is the value, RGB its colour, A how opaque it is, VIS and MSH whether it is shown in slices and in 3D
################################################
"""


def write_label_descriptions(path: str | os.PathLike[str], class_names: Sequence[str]) -> None:
    """Write the names of classes for ITK-SNAP (Segmentation, Import Label Descriptions).

    Args:
        path: of the file, by custom `labels.txt`.
        class_names: background first, with the colours of the other writers.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "labels.txt"
        >>> write_label_descriptions(file, ["background", "liver"])
        >>> print(file.read_text().splitlines()[-1])
            1   128  174  128        1  1  1    "liver"
    """
    rows = [(0, (0, 0, 0), class_names[0])]
    rows += [(segment.number, segment.colour, segment.name) for segment in segments_of(class_names)]
    lines = [
        f'{number:5d} {red:5d}{green:5d}{blue:5d} {shown:8d}{shown:3d}{shown:3d}    "{_plain(name)}"\n'
        for number, (red, green, blue), name in rows
        for shown in [int(number > 0)]
    ]
    write_atomically(Path(path), lambda file: file.write((_HEAD + "".join(lines)).encode()))


def _plain(name: str) -> str:
    """In one line, without the mark that ends it."""
    return " ".join(name.replace('"', "'").split())
