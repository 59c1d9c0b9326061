"""Plain data and atomic files: a kill at any time leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def plain(value: Any) -> Any:
    """JSON-ready form of a metric: tensors to floats, NaN to ``None``.

    Example:
        >>> import torch
        >>> plain(torch.tensor(0.5)), plain(float("nan")), plain({"a": torch.tensor([1.0])})
        (0.5, None, {'a': [1.0]})
    """
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def write_atomically(path: Path, write: Callable[[Any], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
