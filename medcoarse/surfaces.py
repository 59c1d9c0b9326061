"""How far the surface of a segmented structure lies from the true one, in mm."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from torch import Tensor

from medcoarse.confusion import UNLABELED
from medcoarse.files import add_to_json
from medcoarse.monitoring import short_names

logger = logging.getLogger(__name__)


def surface_distances(pred: Tensor, label: Tensor, class_index: int, spacing: Sequence[float]) -> dict[str, float]:
    """Mean distance between two surfaces, and the 95th percentile of the distances, both ways.

    ``surface_mm = mean of d(s, T) over s in S and of d(t, S) over t in T``; ``surface95_mm`` is the greater of the two
    95th percentiles (a robust Hausdorff distance).

    Args:
        pred: label map ``(*S)``.
        label: true label map ``(*S)``; voxels with 255 belong to neither structure.
        class_index: the class whose surface it is.
        spacing: mm per voxel.

    Returns:
        Both lengths in mm: NaN where there is no true structure, the diagonal of the image where there is one and
        nothing was found.

    Source: MONAI's ``compute_average_surface_distance`` and ``compute_hausdorff_distance``.
    Deviates: MONAI gives infinity or NaN where nothing was found.

    Example:
        >>> label = torch.zeros(9, 9); label[2:5, 2:5] = 1
        >>> surface_distances(label.roll(2, 1), label, 1, spacing=(1.0, 0.5))["surface95_mm"]
        1.0
    """
    known = label != UNLABELED
    masks = [((one == class_index) & known)[None, None] for one in (pred, label)]
    names = ("surface_mm", "surface95_mm")
    if not masks[1].any():
        return dict.fromkeys(names, math.nan)
    if not masks[0].any():
        worst = math.hypot(*(length * size for length, size in zip(label.shape, spacing, strict=True)))
        return dict.fromkeys(names, worst)
    found, true, sizes = *masks, list(spacing)
    mean = compute_average_surface_distance(found, true, include_background=True, symmetric=True, spacing=sizes)
    most = compute_hausdorff_distance(found, true, include_background=True, percentile=95, spacing=sizes)
    return dict(zip(names, (mean.item(), most.item()), strict=True))


class SurfaceReport:
    """Add the distances of every image and class to what ``EvaluationReport`` wrote.

    Args:
        class_names: of the L classes, background first, which is left out.
        json_path: gets the distances under ``surfaces``; what it holds already stays.
    """

    def __init__(self, class_names: Sequence[str], json_path: str | Path) -> None:
        self.class_names, self.json_path = tuple(class_names), Path(json_path)
        self.paths: list[str] = []
        self.rows: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        """Measure while the engine runs, write when it is through: list it after ``EvaluationReport``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _measure(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            image, label = item["shown"], output["label"]
            spacing = [float(size) for size in image.pixdim] if isinstance(image, MetaTensor) else [1.0] * image.ndim
            pred, label = (torch.as_tensor(one)[0].cpu() for one in (output["pred"], label))
            row: dict[str, float] = {}
            for k, name in enumerate(self.class_names[1:], start=1):
                distances = surface_distances(pred, label, k, spacing[: label.ndim])
                row |= {f"{kind}_{name}": value for kind, value in distances.items()}
            self.paths.append(str(image.meta["filename_or_obj"]))
            self.rows.append(row)

    def _write(self, engine: Engine) -> None:
        mean = {key: torch.tensor([row[key] for row in self.rows]).nanmean().item() for key in self.rows[0]}
        named = [{"name": name, **row} for name, row in zip(short_names(self.paths), self.rows, strict=True)]
        add_to_json(self.json_path, "surfaces", {"image": mean, "images": named})
        for name, value in mean.items():
            logger.info("%s = %.2f mm", name, value)
