"""What more drawings would give, measured with those that there are: the same training on some of them, and on all."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from medcoarse.experiments.bundles import open_bundle
from medcoarse.experiments.plans import plan
from medcoarse.experiments.runner import run_table
from medcoarse.experiments.tables import parse_table
from medcoarse.files import write_json

NAME = "more_drawings"
"""Of the table, its file and its folder."""


def growth_table(
    number: int, shares: Collection[float], minutes: float, scores: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """The table of a bundle that `medcoarse train` made: a row for each share of its drawings.

    Args:
        number: of training images.
        shares: of them, above 0 and up to 1; each is rounded up to whole images, and all of them are added.
        minutes: that drawing on one image took.
        scores: names in the last validation of ``metrics.json``, the one that counts first.
        seeds: of weights, patches and the choice of images.

    Returns:
        What :func:`medcoarse.experiments.tables.parse_table` reads; ``x`` are hours of drawing.

    Raises:
        ValueError: no image, or a share or minutes that are out of range.

    Example:
        >>> table = growth_table(12, [0.25, 0.5], minutes=10, scores=["mean_dice"], seeds=[0])
        >>> [(row["name"], row["x"]) for row in table["rows"]]
        [('3 drawings', 0.5), ('6 drawings', 1.0), ('12 drawings', 2.0)]
    """
    if number < 1 or not all(0 < share <= 1 for share in shares) or not 0 < minutes < math.inf:
        raise ValueError(
            f"there must be images, shares above 0 and up to 1, and minutes above 0, got {number} images, "
            f"{list(shares)} and {minutes}"
        )
    counts = sorted({math.ceil(share * number) for share in shares} | {number})
    rows = [
        {"name": f"{count} drawings", "overrides": {"num_training": count}, "x": count * minutes / 60}
        | {"series": "drawings like these"}
        for count in counts
    ]
    return {
        "title": "What more drawings give",
        "bundle": ".",
        "config": ["configs/train.json"],
        "common": {"val_interval": "$@max_epochs"},
        "seeds": list(seeds),
        "metrics": {name: name for name in scores},
        "figure": {"x_label": "hours of drawing", "log_x": True},
        "note": f"{minutes:g} minutes an image. All rows have the same number of steps.",
        "rows": rows,
    }


def measure_growth(bundle: Path, table: dict[str, Any], jobs: int | None = None) -> tuple[Path, list[str]]:
    """Run it, or what is left of it, below ``budget/`` in the bundle's folder.

    Args:
        bundle: that `medcoarse train` made.
        table: see :func:`growth_table`.
        jobs: trainings at a time, see :func:`medcoarse.experiments.runner.run_table`.

    Returns:
        ``results.json``, and one line for each run that failed.

    Raises:
        TableError: a bundle that lacks what the table overrides.
        Stopped: by a signal; the same call goes on.
    """
    folder = bundle / "budget"
    parsed = parse_table(table, NAME)
    runs = plan(parsed, open_bundle(parsed, bundle), folder, dataset_dir=bundle)
    write_json(folder / f"{NAME}.json", table)
    results = run_table(runs, jobs, arguments=[f"budget/{NAME}.json", "--bundle_root", ".", "--dataset_dir", "."])
    failed = [f"{one.run.name}: see {one.run.work / 'run.log'}" for one in results if one.status != "done"]
    return folder / NAME / "results.json", failed
