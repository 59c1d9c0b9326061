"""What a table needs to know of its bundle: the merged configurations, and which ids can be overridden."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver

from medcoarse.experiments.tables import Overrides, Row, Table, TableError

REQUIRED = ("training", "seed", "output_dir", "ckpt_dir")
PLACED = ("seed", "output_dir", "ckpt_dir", "resume", "dataset_dir", "bundle_root")
"""Ids that the runner sets itself."""


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and its configurations, merged as MONAI merges them but not evaluated.

    Args:
        root: its folder.
        training: the configuration of the training.
        evaluation: that of the evaluation; ``None`` where the table has none.
        variants: the same with the configuration files that some rows add.
    """

    root: Path
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None = None
    variants: Mapping[tuple[str, ...], Bundle] = field(default_factory=dict)

    def of(self, row: Row) -> Bundle:
        """With the configuration files of a row."""
        return self.variants[row.config] if row.config else self


def open_bundle(table: Table, root: str | Path | None = None) -> Bundle:
    """Read the bundle of a table and check that it has everything that the table overrides.

    Args:
        table: what to run.
        root: the bundle's folder in place of the table's.

    Raises:
        TableError: no such bundle or file, or an override of something that is not there.
    """
    folder = _find(table.bundle, root)
    variants = {row.config: _merge(table, folder, row.config) for row in table.rows if row.config}
    bundle = replace(_merge(table, folder), variants=variants)
    check_overrides("common", table.common, bundle.training)
    for row in table.rows:
        check_overrides(f"row {row.name!r}", table.overrides(row), bundle.of(row).training)
    return bundle


def _merge(table: Table, folder: Path, row_config: tuple[str, ...] = ()) -> Bundle:
    """The table's configurations with those of a row."""
    training = _merged(folder, table.config + row_config)
    missing = [key for key in REQUIRED if key not in training]
    if missing:
        raise TableError(f"the configuration of {table.bundle} lacks {', '.join(missing)}: they are set for every run")
    if table.evaluation is None:
        return Bundle(folder, training)
    evaluation = _merged(folder, table.config + row_config + table.evaluation.config)
    if table.evaluation.run_id not in evaluation:
        raise TableError(f"the configuration of {table.bundle} has no {table.evaluation.run_id!r} to evaluate with")
    check_overrides("evaluate", table.evaluation.overrides, evaluation)
    return Bundle(folder, training, evaluation)


def check_overrides(where: str, overrides: Overrides, config: Mapping[str, Any]) -> None:
    """Stop at an id that would change nothing because the configuration does not have it.

    Raises:
        TableError: such an id, or one that the runner sets.

    Example:
        >>> check_overrides("common", {"lerning_rate": 1}, {"learning_rate": 0.1})
        Traceback (most recent call last):
        medcoarse.experiments.tables.TableError: common overrides 'lerning_rate', which the bundle does not have; ...
    """
    for key in overrides:
        parts = ReferenceResolver.split_id(key)
        if parts[0] in PLACED:
            raise TableError(f"{where} overrides {key!r}, which the runner sets itself; leave it out")
        if not has_id(config, parts):
            raise TableError(
                f"{where} overrides {key!r}, which the bundle does not have; see its configuration files for the ids"
            )


def has_id(config: Any, parts: Sequence[str]) -> bool:
    """Whether an id is there, or is an argument that the component there takes.

    Example:
        >>> config = {"net": {"_target_": "UNet", "spatial_dims": 2, "strides": [2, 2]}}
        >>> [has_id(config, id.split("#")) for id in ("net#strides#1", "net#strides#2", "net#dropout", "net#rank")]
        [True, False, True, False]
    """
    for i, part in enumerate(parts):
        if isinstance(config, list):
            if not (part.isdigit() and int(part) < len(config)):
                return False
            config = config[int(part)]
        elif isinstance(config, dict) and part in config:
            config = config[part]
        else:
            return i == len(parts) - 1 and isinstance(config, dict) and _takes(config, part)
    return True


def digest(content: Any) -> str:
    """SHA-256 of plain data, whatever the order of keys and the white space in its file.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _takes(component: Mapping[str, Any], argument: str) -> bool:
    if not isinstance(component.get("_target_"), str):
        return False
    found = ConfigComponent(component, locator=ConfigParser().locator)
    target: Any = locate(found.resolve_module_name())  # type: ignore[no-untyped-call]
    if not callable(target):
        return False
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return argument in parameters or takes_any or argument in ConfigComponent.non_arg_keys


def _find(name: str, root: str | Path | None) -> Path:
    """The bundle's folder: as told, below the working directory, or in the repository that the package lies in."""
    repository = Path(__file__).parents[2]
    places = [Path(root)] if root is not None else [Path(name), repository / name]
    found = [place for place in places if place.is_dir()]
    if not found:
        raise TableError(f"no bundle {str(places[0])!r}: start at the root of the repository or pass --bundle_root")
    return found[0].resolve()


def _merged(folder: Path, files: Sequence[str]) -> dict[str, Any]:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise TableError(f"the bundle {folder.name} has no {missing[0]}")
    return dict(ConfigParser.load_config_files([str(folder / file) for file in files]))
