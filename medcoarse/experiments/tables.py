"""A table of a paper as data: a bundle, rows of overrides, seeds, and the scores that are its columns.

Convention: overrides are MONAI's, ``{"a#b#c": any JSON value or expression}``. What all rows share stands in
``common``; a row's own override of the same id wins. A table's file:

    {
        "title": "Table 1",
        "source": "the paper that it follows",
        "bundle": "bundles/mnist",
        "config": ["configs/train.json"],
        "common": {"max_epochs": 60},
        "seeds": [0, 1, 2],
        "metrics": {"mIoU": "mean_iou"},
        "rows": [
            {"name": "dense masks", "source": "the ceiling", "overrides": {"supervision": "dense"}},
            {"name": "rate 0.1", "overrides": {"annotator_def#reduction": 4}, "x": 0.1, "series": "ours"},
            {"name": "another network", "config": ["configs/another.json"]}
        ],
        "evaluate": {"config": ["configs/evaluate.json"], "overrides": {"section": "test"}},
        "figure": {"x_label": "rate", "log_x": true, "level": "dense masks"}
    }

Rows that are every case with every method are written once, as a grid among the other rows. These make "clean: A",
"clean: B", "noisy: A" and "noisy: B"; where cases have an ``x``, each method is a series of the figure:

    {
        "vary": [{"name": "clean", "overrides": {"noise": "none"}}, {"name": "noisy", "overrides": {"noise": "mild"}}],
        "methods": [{"name": "A"}, {"name": "B", "config": ["configs/b.json"], "source": "the paper of B"}]
    }

``common``, ``source``, ``note``, ``evaluate`` and ``figure`` may be left out, of a row all but its name. A row's own
configuration files are merged over those of the table, and those of ``evaluate`` over both. Without
``evaluate`` the metrics are names in the last validation of ``metrics.json``; with it they are ids in
``evaluation.json``, such as ``image#iou_vessel``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tables"
"""The tables that come with the package."""

Overrides = Mapping[str, Any]


class TableError(ValueError):
    """A table that cannot be run as it is written; the text says where and what to do."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        name: heading of the row.
        overrides: what it changes in the bundle's configuration.
        config: configuration files that are merged over those of the table.
        source: where the row comes from, e.g. the paper's own name for it.
        x: position on the x axis of the figure; ``None`` keeps the row out of it.
        series: which curve of the figure it belongs to.
    """

    name: str
    overrides: Overrides = field(default_factory=dict)
    config: tuple[str, ...] = ()
    source: str = ""
    x: float | None = None
    series: str = ""

    @property
    def slug(self) -> str:
        """The name as that of a folder.

        Example:
            >>> Row("CMs, λ = 0.05").slug
            'cms-λ-0-05'
        """
        return re.sub(r"[\W_]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Evaluation:
    """The final scoring of the last epoch's weights, in a process of its own.

    Args:
        config: configuration files that are merged over those of the row's training.
        overrides: beside those of the row, e.g. ``{"section": "test"}``.
        run_id: the id that is run.
        file: the JSON with the scores that it leaves in ``output_dir``.
    """

    config: tuple[str, ...]
    overrides: Overrides = field(default_factory=dict)
    run_id: str = "evaluating"
    file: str = "evaluation.json"


@dataclass(frozen=True)
class Curves:
    """The figure: every metric against the rows' ``x``; the row ``level``, which has none, is a line all along."""

    x_label: str
    log_x: bool = False
    level: str = ""


@dataclass(frozen=True)
class Table:
    """A table as it stands in its file.

    Args:
        name: names the folder of its runs.
        title: heading.
        bundle: folder of the bundle.
        config: its configuration files for training.
        seeds: every row is run with each.
        metrics: column -> name of the score, ``a#b`` where the scores' JSON is nested.
        rows: from top to bottom.
        common: overrides of all rows.
        evaluation: ``None`` takes the scores of the training's last validation.
        figure: ``None`` draws none.
        source: paper and table that it follows.
        note: a sentence that is printed below it.
    """

    name: str
    title: str
    bundle: str
    config: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, str]
    rows: tuple[Row, ...]
    common: Overrides = field(default_factory=dict)
    evaluation: Evaluation | None = None
    figure: Curves | None = None
    source: str = ""
    note: str = ""

    def overrides(self, row: Row) -> dict[str, Any]:
        """Those of all rows and of this one."""
        return {**self.common, **row.overrides}


def table_names() -> list[str]:
    """The tables that come with the package.

    Example:
        >>> "les_av_supervision" in table_names()
        True
    """
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_table(path: str | Path) -> Table:
    """Read a table.

    Args:
        path: a JSON file, or the name of a table that comes with the package.

    Raises:
        TableError: no such table, or one that is written wrongly.

    Example:
        >>> load_table("les_av_supervision").rows[0].name
        'dense masks'
    """
    file = FOLDER / f"{path}.json" if str(path) in table_names() else Path(path)
    if not file.is_file():
        raise TableError(f"no table {str(path)!r}: pass a JSON file, or one of {', '.join(table_names())}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
        return parse_table(content, file.stem)
    except (TableError, json.JSONDecodeError) as error:
        raise TableError(f"{file.name}: {error}") from error


def parse_table(content: Any, name: str) -> Table:
    """Check the content of a table's file.

    Example:
        >>> parse_table({"title": "Table 1", "rows": []}, "table_1")
        Traceback (most recent call last):
        medcoarse.experiments.tables.TableError: the table lacks 'bundle', 'config', 'seeds', 'metrics'
    """
    given = _checked(
        "the table", content, TABLE_KEYS, required=("title", "bundle", "config", "seeds", "metrics", "rows")
    )
    written = [_grid(i, row) for i, row in enumerate(_filled("rows", given.pop("rows")))]
    rows = tuple(_row(i, row) for i, row in enumerate(row for group in written for row in group))
    _distinct("row names (as names of folders)", [row.slug for row in rows])
    metrics = _filled("metrics", given.pop("metrics"))
    _texts("metrics", metrics.values())
    evaluation = given.pop("evaluate", None)
    figure = given.pop("figure", None)
    return Table(
        name=name,
        config=_texts("config", _filled("config", given.pop("config"))),
        seeds=check_seeds(given.pop("seeds")),
        metrics=metrics,
        rows=rows,
        evaluation=None if evaluation is None else _evaluation(evaluation),
        figure=None if figure is None else _figure(figure, rows),
        **given,
    )


def check_seeds(seeds: Sequence[Any]) -> tuple[int, ...]:
    """Seeds as they can be run: at least one, different, whole numbers from 0.

    Example:
        >>> check_seeds([0, 0])
        Traceback (most recent call last):
        medcoarse.experiments.tables.TableError: seeds must be different, got 0 twice
    """
    wrong = [seed for seed in seeds if type(seed) is not int or seed < 0]
    if wrong or not seeds:
        raise TableError(f"seeds must be whole numbers from 0, got {wrong[0] if wrong else 'none'!r}")
    _distinct("seeds", seeds)
    return tuple(seeds)


TEXT, NUMBER, OBJECT, LIST = (str,), (int, float), (dict,), (list,)
TABLE_KEYS: dict[str, tuple[type, ...]] = {
    "title": TEXT, "bundle": TEXT, "config": LIST, "seeds": LIST, "metrics": OBJECT, "rows": LIST, "common": OBJECT,
    "evaluate": OBJECT, "figure": OBJECT, "source": TEXT, "note": TEXT,
}  # fmt: skip
ROW_KEYS = {"name": TEXT, "overrides": OBJECT, "config": LIST, "source": TEXT, "x": NUMBER, "series": TEXT}
GRID_KEYS = {"vary": LIST, "methods": LIST}
CASE_KEYS = {"name": TEXT, "overrides": OBJECT, "x": NUMBER}
METHOD_KEYS = {"name": TEXT, "overrides": OBJECT, "config": LIST, "source": TEXT, "series": TEXT}
EVALUATION_KEYS = {"config": LIST, "overrides": OBJECT, "run_id": TEXT, "file": TEXT}
FIGURE_KEYS = {"x_label": TEXT, "log_x": (bool,), "level": TEXT}
JSON_NAMES = {str: "text", int: "a number", dict: "an object", list: "a list", bool: "true or false"}


def _grid(index: int, content: Any) -> list[Any]:
    """The rows that one entry stands for: itself, or every case of a grid with every method."""
    if not (isinstance(content, dict) and GRID_KEYS.keys() & content.keys()):
        return [content]
    where = f"the grid in place of row {index}"
    grid = _checked(where, content, GRID_KEYS, required=tuple(GRID_KEYS))
    cases, methods = (
        [_checked(f"{key}[{i}] of {where}", entry, keys, required=("name",)) for i, entry in enumerate(grid[key])]
        for key, keys in (("vary", CASE_KEYS), ("methods", METHOD_KEYS))
    )
    for key, entries in (("vary", cases), ("methods", methods)):
        _filled(f"{key} of {where}", entries)
    return [_crossed(where, case, method) for case in cases for method in methods]


def _crossed(where: str, case: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    first, second = case.get("overrides", {}), method.get("overrides", {})
    both = sorted(first.keys() & second.keys())
    if both:
        raise TableError(f"{where}: {case['name']!r} and {method['name']!r} both override {_quoted(both)}")
    placed = {"x": case["x"], "series": method["name"]} if "x" in case else {}
    return placed | method | {"name": f"{case['name']}: {method['name']}", "overrides": {**first, **second}}


def _row(index: int, content: Any) -> Row:
    given = _checked(f"row {index}", content, ROW_KEYS, required=("name",))
    row = Row(**{**given, "config": _texts(f"config of row {index}", given.get("config", ()))})
    if not row.slug:
        raise TableError(f"row {index} needs a name with letters or digits, got {row.name!r}")
    return row


def _evaluation(content: Any) -> Evaluation:
    given = _checked("evaluate", content, EVALUATION_KEYS, required=("config",))
    return Evaluation(
        **{**given, "config": _texts("config of evaluate", _filled("config of evaluate", given["config"]))}
    )


def _figure(content: Any, rows: Sequence[Row]) -> Curves:
    figure = Curves(**_checked("figure", content, FIGURE_KEYS, required=("x_label",)))
    placed = [row for row in rows if row.x is not None]
    if not placed:
        raise TableError("a figure needs rows with an 'x', got none")
    _distinct("positions in a series of the figure", [(row.series, row.x) for row in placed])
    if figure.level and figure.level not in [row.name for row in rows if row.x is None]:
        raise TableError(f"the level of the figure must be a row without an 'x', got {figure.level!r}")
    low = [row.name for row in placed if figure.log_x and row.x is not None and row.x <= 0]
    if low:
        raise TableError(f"with log_x every 'x' must be above 0, row {low[0]!r} is not")
    return figure


def _checked(
    what: str, content: Any, keys: Mapping[str, tuple[Any, ...]], required: Sequence[str]
) -> dict[str, Any]:  # fmt: skip
    """The content, if it is an object of these keys with values of these types."""
    if not isinstance(content, dict):
        raise TableError(f"{what} must be an object, got {content!r}")
    unknown = [key for key in content if key not in keys]
    if unknown:
        raise TableError(f"{what} has unknown keys {_quoted(unknown)}; known are {_quoted(keys)}")
    missing = [key for key in required if key not in content]
    if missing:
        raise TableError(f"{what} lacks {_quoted(missing)}")
    for key, value in content.items():
        if type(value) not in keys[key]:
            raise TableError(f"{key!r} of {what} must be {JSON_NAMES[keys[key][0]]}, got {value!r}")
    return dict(content)


def _filled(what: str, content: Any) -> Any:
    if not content:
        raise TableError(f"{what} must have at least one entry, got none")
    return content


def _texts(what: str, values: Iterable[Any]) -> tuple[str, ...]:
    values = tuple(values)
    wrong = [value for value in values if not isinstance(value, str) or not value]
    if wrong:
        raise TableError(f"{what} must be texts, got {wrong[0]!r}")
    return values


def _distinct(what: str, values: Sequence[Any]) -> None:
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise TableError(f"{what} must be different, got {twice[0]!r} twice")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON itself would keep the last of two equal keys and say nothing."""
    _distinct("the keys of an object", [key for key, _ in pairs])
    return dict(pairs)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
