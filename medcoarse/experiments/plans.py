"""From a table to its runs: one run is a row with a seed, and its fingerprint says what exactly was run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcoarse.experiments.bundles import Bundle, digest
from medcoarse.experiments.tables import Row, Table, TableError, check_seeds


@dataclass(frozen=True)
class Run:
    """A row with a seed.

    ``definition`` holds everything that the scores depend on, apart from the code: hashes of the configurations,
    overrides, seed and data. No folder of this machine is in it.

    Args:
        table: the table it belongs to.
        bundle: that of the table.
        row: what is overridden.
        seed: of weights, drawings and patches.
        data: name and hash of the data, see :func:`data_identity`.
        output_dir: the run's files are in ``TABLE/ROW/seed-N`` below it.
        dataset_dir: ``None`` leaves the data to the bundle.
    """

    table: Table
    bundle: Bundle
    row: Row
    seed: int
    data: Mapping[str, Any]
    output_dir: Path
    dataset_dir: Path | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.row.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Holds ``result.json`` and, under the fingerprint of the training, weights and log."""
        return self.output_dir / self.table.name / self.row.slug / f"seed-{self.seed}"

    @property
    def work(self) -> Path:
        """What one training writes. Another definition gets another folder: nothing is mixed up or overwritten."""
        return self.folder / _short(self.definition["training"])

    @property
    def definition(self) -> dict[str, Any]:
        """What the training is, and what its evaluation is."""
        bundle = self.bundle.of(self.row)
        training = {
            "config": digest(bundle.training),
            "overrides": self.table.overrides(self.row),
            "seed": self.seed,
            "data": dict(self.data),
        }
        scored = self.table.evaluation
        if scored is None:
            return {"training": training, "evaluation": None}
        evaluation = {
            "config": digest(bundle.evaluation),
            "overrides": dict(scored.overrides),
            "run_id": scored.run_id,
            "file": scored.file,
        }
        return {"training": training, "evaluation": evaluation}

    @property
    def fingerprint(self) -> str:
        """Twelve digits of the hash of the definition."""
        return _short(self.definition)


def plan(
    table: Table,
    bundle: Bundle,
    output_dir: str | Path,
    dataset_dir: str | Path | None = None,
    rows: Iterable[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Run]:
    """The runs of a table, seed by seed, so that early on there is one of each row.

    Args:
        table: what to run.
        bundle: that of the table.
        output_dir: where runs are kept.
        dataset_dir: folder with the data; ``None`` leaves them to the bundle.
        rows: names (or slugs) of rows; ``None`` for all.
        seeds: in place of the table's.

    Raises:
        TableError: unknown rows, seeds that are no seeds, no such folder, or a bundle that takes none.
    """
    data = data_identity(bundle, dataset_dir)
    folder = None if dataset_dir is None else Path(dataset_dir).resolve()
    chosen = choose_rows(table, rows)
    return [
        Run(table, bundle, row, seed, data, Path(output_dir).resolve(), folder)
        for seed in check_seeds(table.seeds if seeds is None else seeds)
        for row in chosen
    ]


def choose_rows(table: Table, names: Iterable[str] | None = None) -> list[Row]:
    """The rows of these names or slugs, in the order of the table; ``None`` for all.

    Raises:
        TableError: there is no such row.
    """
    if names is None:
        return list(table.rows)
    wanted = set(names)
    unknown = wanted - {row.name for row in table.rows} - {row.slug for row in table.rows}
    if unknown or not wanted:
        known = ", ".join(row.slug for row in table.rows)
        raise TableError(f"no row {', '.join(sorted(unknown))!r} in the table {table.name}; it has {known}")
    return [row for row in table.rows if wanted & {row.name, row.slug}]


def data_identity(bundle: Bundle, dataset_dir: str | Path | None) -> dict[str, Any]:
    """Which data, without where they lie: the folder's name and the hash of the split.

    The split is the folder's ``datalist.json``, else the bundle's own; paths that lead out of the folder are part of
    its hash. Without a folder the data are those that the bundle makes, and its configuration says which.

    Raises:
        TableError: no such folder, or a bundle without ``dataset_dir``.
    """
    if dataset_dir is None:
        return {"name": "the bundle's own", "datalist": None}
    folder = Path(dataset_dir).resolve()
    if not folder.is_dir():
        raise TableError(f"no folder {str(dataset_dir)!r}: pass the data's as --dataset_dir")
    if "dataset_dir" not in bundle.training:
        raise TableError(f"the bundle {bundle.root.name} has no dataset_dir: leave --dataset_dir out")
    splits = [folder / "datalist.json", bundle.root / "configs" / "datalist.json"]
    found = [hashlib.sha256(path.read_bytes()).hexdigest() for path in splits if path.is_file()]
    return {"name": folder.name, "datalist": found[0] if found else None}


def _short(content: Any) -> str:
    return digest(content)[:12]
