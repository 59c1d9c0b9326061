"""Label descriptions of ITK-SNAP: what the values of label maps are called."""

from __future__ import annotations

import os
import re
from pathlib import Path

from medcoarse.datalist import DataError

_ROW = re.compile(r'\s*(\d+)(?:\s+[\d.]+){6}\s+"(.*)"\s*')


def read_label_descriptions(path: str | os.PathLike[str]) -> dict[int, str]:
    """Read value -> name.

    Raises:
        DataError: not such a file, or a value that has two names.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "labels.txt"
        >>> _ = file.write_text('# comment\\n 0 0 0 0 0 0 0 "Clear Label"\\n 2 9 9 9 1 1 1 "left kidney"\\n')
        >>> read_label_descriptions(file)
        {0: 'Clear Label', 2: 'left kidney'}
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}); export the label descriptions again"
        ) from None
    found: dict[int, str] = {}
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        row = _ROW.fullmatch(line)
        if row is None:
            raise DataError(
                f"{path}: {line.strip()[:80]!r} is no label description; expected: value red green blue opacity 1 1 "
                '"name"'
            )
        if found.setdefault(int(row[1]), row[2]) != row[2]:
            raise DataError(f"{path}: value {row[1]} is called {found[int(row[1])]!r} and {row[2]!r}; keep one")
    return found
