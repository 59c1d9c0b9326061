"""Plain data, atomic files and folders: a kill at any time leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
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


def short_names(files: Sequence[str]) -> list[str]:
    """The name of each file, with so many of its folders before it as tell it from the others.

    Example:
        >>> short_names(["data/ada/1/image.nii.gz", "data/ben/1/image.nii.gz", "data/scan.png", "data/scan.png"])
        ['ada/1/image.nii.gz', 'ben/1/image.nii.gz', 'scan.png', 'scan.png']
    """
    parts = {file: Path(file).parts for file in files}
    found: dict[str, str] = {}
    for depth in range(1, max(map(len, parts.values()), default=0) + 1):
        tails = {file: Path(*parts[file][-depth:]).as_posix() for file in parts if file not in found}
        counted = Counter(tails.values())
        found |= {file: tail for file, tail in tails.items() if counted[tail] == 1 or depth >= len(parts[file])}
    return [found[file] for file in files]


def add_to_json(path: Path, key: str, value: Any) -> None:
    """Put a value into the object that a JSON file holds, beside what is there; a new file where there is none.

    Args:
        path: of the file.
        key: of the value; what stood there is replaced.
        value: see :func:`plain`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "evaluation.json"
        >>> add_to_json(path, "a", torch.tensor(0.5))
        >>> add_to_json(path, "b", 1)
        >>> json.loads(path.read_text())
        {'a': 0.5, 'b': 1}
    """
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, content | {key: plain(value)})


def load_weights(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """What `torch.save` wrote, if it is tensors and plain data; nothing in the file is run.

    Args:
        path: of the file.
        map_location: where tensors go.

    Raises:
        FileNotFoundError: there is none.
        ValueError: something else than tensors and plain data, or a damaged file; torch's own text would advise to
            run it.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.pt"
        >>> torch.save({"weight": torch.ones(2)}, file)
        >>> load_weights(file)
        {'weight': tensor([1., 1.])}
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file can end in any
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is where it points in a file cut short
            raise
        raise ValueError(
            f"{path}: holds something else than weights, or is damaged ({type(error).__name__}), and nothing in it was "
            "run; take the file from where it was trained"
        ) from None


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


def holds_dataset(folder: Path, provenance: Mapping[str, Any], paths: Iterable[str], kind: str) -> bool:
    """Is a folder this very data set, whole? Anything else in it is an error: never mix, never overwrite.

    Args:
        folder: absent or empty means no.
        provenance: what its ``provenance.json`` must hold, with ``generator_version`` and ``parameters``.
        paths: the files that must be there, relative to the folder.
        kind: what the data set is, for the error.

    Raises:
        FileExistsError: something else, another version of it, or a part of it.

    Example:
        >>> holds_dataset(Path("/nowhere"), {"generator_version": 1, "parameters": {}}, [], "drawn data set")
        False
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = "choose another folder, or delete this one to have the data set drawn again"
    try:
        found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        version, parameters = found["generator_version"], found["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(f"{folder} exists but is not a {kind}; {remedy}") from None
    if found != provenance:
        raise FileExistsError(
            f"{folder} holds a data set drawn by generator version {version} with {parameters}, wanted is version "
            f"{provenance['generator_version']} with {provenance['parameters']}; {remedy}"
        )
    missing = [path for path in paths if not (folder / path).is_file()]
    if missing:
        raise FileExistsError(f"{folder} is incomplete: {len(missing)} files are missing, first {missing[0]}; {remedy}")
    return True


def write_dataset(
    folder: Path, provenance: Mapping[str, Any], paths: Iterable[str], kind: str, write: Callable[[Path], Any]
) -> Path:
    """Let ``write`` fill a draft beside the folder, then rename it into place; keep the folder if it is whole already.

    Several processes may ask for the same data set at the same time: the first to finish wins.

    Args:
        folder: where the data set goes; made with its parents.
        provenance: becomes ``provenance.json``, see `holds_dataset`.
        paths: the files that ``write`` makes, relative to the folder.
        kind: what the data set is, for errors.
        write: called with the draft, an empty folder.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds anything but this very data set, whole.

    Example:
        >>> import tempfile
        >>> facts = {"generator_version": 1, "parameters": {}}
        >>> folder = Path(tempfile.mkdtemp()) / "new"
        >>> _ = write_dataset(folder, facts, ["a"], "data set", lambda draft: (draft / "a").write_text("a"))
        >>> sorted(entry.name for entry in folder.iterdir())
        ['a', 'provenance.json']
    """
    paths = list(paths)
    if holds_dataset(folder, provenance, paths, kind):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        draft.mkdir()
        write(draft)
        write_json(draft / "provenance.json", provenance)
        with contextlib.suppress(OSError):  # an empty folder may be in the way of a rename; any other is left alone
            folder.rmdir()
        try:
            draft.rename(folder)
        except OSError:
            if not holds_dataset(folder, provenance, paths, kind):  # another process was first with the same data set
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
