"""Scores of many images: one number, the table for `metrics.json`, and MONAI metrics that count each image once.

There are two means. *image*: score every image, then average. *dataset*: sum the counts of all images, then score
once, as the Cityscapes benchmark does. They differ when images differ in size or content, so both are named.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.metrics.metric import CumulativeIterationMetric, Metric
from monai.utils.dist import evenly_divisible_all_gather
from torch import Tensor

from medcoarse.confusion import UNLABELED
from medcoarse.metrics import SCORES, class_mean, confusion_counts, dice, mean_iou, pixel_accuracy

Reduction = Literal["image", "dataset"]


# numbers and tables


def reduce_scores(
    counts: Tensor,
    metric: str = "iou",
    reduction: Reduction = "image",
    class_index: int | None = None,
    include_background: bool = True,
) -> Tensor:
    """One number out of the tables of many images.

    Args:
        counts: pixels (N, L, L), predicted by true class, one table an image.
        metric: one of `SCORES`: iou, dice, sensitivity, specificity, precision, accuracy.
        reduction: `"image"` averages over the images that have the score, `"dataset"` sums the counts first.
        class_index: the class to score; None averages over classes.
        include_background: whether class 0 takes part in that average.

    Returns:
        float64 scalar; NaN where no image has the score.

    Example:
        >>> counts = torch.tensor([[[6, 1], [1, 2]], [[9, 0], [0, 1]]])
        >>> reduce_scores(counts, "iou", "image", class_index=1)
        tensor(0.7500, dtype=torch.float64)
        >>> reduce_scores(counts, "iou", "dataset", class_index=1)
        tensor(0.6000, dtype=torch.float64)
    """
    if counts.ndim != 3:
        raise ValueError(f"counts must be (N, L, L), one table an image, got {tuple(counts.shape)}")
    _check_choice(metric, reduction, class_index, counts.shape[-1])
    per_class = SCORES[metric](counts if reduction == "image" else counts.sum(0, keepdim=True))
    if class_index is not None:
        return per_class[:, class_index].nanmean()
    return class_mean(per_class, include_background).nanmean()


def _check_choice(metric: str, reduction: str, class_index: int | None, num_classes: int) -> None:
    if metric not in SCORES:
        raise ValueError(f"metric must be one of {', '.join(SCORES)}, got {metric!r}")
    if reduction not in ("image", "dataset"):
        raise ValueError(f"reduction must be 'image' or 'dataset', got {reduction!r}")
    if class_index is not None and not 0 <= class_index < num_classes:
        raise ValueError(f"class_index must be in 0 .. {num_classes - 1} or None for the mean, got {class_index}")


def score_row(counts: Tensor, class_names: Sequence[str], include_background: bool = True) -> dict[str, float | None]:
    """All scores of one table under flat names: `mean_iou`, `mean_dice`, `pixel_accuracy`, `iou_vessel`, ...

    Args:
        counts: pixels (L, L), predicted by true class.
        class_names: L names.
        include_background: whether class 0 takes part in the two means.

    Returns:
        name -> score, None where undefined, so that it can be written as strict JSON.

    Example:
        >>> row = score_row(torch.tensor([[6, 1], [1, 2]]), ["background", "vessel"])
        >>> row["mean_iou"], row["iou_vessel"], row["sensitivity_background"] == 6 / 7
        (0.625, 0.5, True)
    """
    if counts.ndim != 2 or len(set(class_names)) != len(class_names) or len(class_names) != len(counts):
        raise ValueError(
            f"score_row needs counts (L, L) and L different class names, got {tuple(counts.shape)} and "
            f"{list(class_names)}"
        )
    row = {
        "mean_iou": mean_iou(counts, include_background).item(),
        "mean_dice": class_mean(dice(counts), include_background).item(),
        "pixel_accuracy": pixel_accuracy(counts).item(),
    }
    for metric, score in SCORES.items():
        row |= {f"{metric}_{name}": value for name, value in zip(class_names, score(counts).tolist(), strict=True)}
    return {name: None if math.isnan(value) else value for name, value in row.items()}


def score_table(
    counts: Tensor,
    class_names: Sequence[str],
    image_names: Sequence[str] | None = None,
    include_background: bool = True,
) -> dict[str, Any]:
    """The whole table of results, ready for `metrics.json`.

    Args:
        counts: pixels (N, L, L), predicted by true class, one table an image.
        class_names: L names.
        image_names: N names, entered as `name` in the rows.
        include_background: whether class 0 takes part in the means over classes.

    Returns:
        `num_images`; `dataset`, the scores of the summed counts; `image`, the mean over images of each score; and
        `images`, one row an image. All have the keys of `score_row`, with None where undefined.

    Example:
        >>> counts = torch.tensor([[[6, 1], [1, 2]], [[9, 0], [0, 1]]])
        >>> table = score_table(counts, ["background", "vessel"], ["a", "b"])
        >>> table["image"]["iou_vessel"], table["dataset"]["iou_vessel"], table["images"][1]["iou_vessel"]
        (0.75, 0.6, 1.0)
    """
    if counts.ndim != 3 or len(counts) == 0:
        raise ValueError(f"counts must be (N, L, L) with at least one image, got {tuple(counts.shape)}")
    if image_names is not None and len(image_names) != len(counts):
        raise ValueError(f"image_names must name {len(counts)} images, got {len(image_names)}")
    rows = [score_row(table, class_names, include_background) for table in counts]
    named = [{"name": name} for name in image_names] if image_names is not None else [{} for _ in rows]
    return {
        "num_images": len(rows),
        "dataset": score_row(counts.sum(0), class_names, include_background),
        "image": {key: _mean_of_known([row[key] for row in rows]) for key in rows[0]},
        "images": [name | row for name, row in zip(named, rows, strict=True)],
    }


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


# metrics of an engine


class _Choice:
    """Which number is read off the tables of counts; shared by the metric that counts and by its views."""

    def _choose(
        self,
        num_classes: int,
        metric: str,
        class_index: int | None,
        reduction: Reduction,
        include_background: bool,
    ) -> None:
        _check_choice(metric, reduction, class_index, num_classes)
        self.metric = metric
        self.class_index = class_index
        self.reduction: Reduction = reduction
        self.include_background = include_background

    def counts(self) -> Tensor:
        raise NotImplementedError

    def get_buffer(self) -> Tensor:
        """The metric of each image and class, float64 (N, L), as MONAI's `MetricsSaver` writes it."""
        return SCORES[self.metric](self.counts())

    def aggregate(self) -> Tensor:
        """The metric over all images seen since `reset`, float64 scalar."""
        counts = self.counts()
        if len(counts) == 0:
            raise ValueError(
                "no image has been scored since reset: call SegmentationScores with (y_pred, y) before aggregate, "
                "and attach a ScoreView to the engine of its source"
            )
        return reduce_scores(counts, self.metric, self.reduction, self.class_index, self.include_background)


class SegmentationScores(_Choice, CumulativeIterationMetric):
    """MONAI metric that counts each image once and keeps its table; every score is read off the tables.

    It works alone and as `monai.handlers.IgniteMetricHandler(metric_fn=..., output_transform=from_engine(["pred",
    "label"]))`, which passes no field of view on: there, set the label to 255 outside it. For more numbers from the
    same counts, attach a `ScoreView` of it, or give `counts()` to `score_table`. Tables of all processes are gathered,
    so the result is that of one process, provided no sampler hands an image out twice (`even_divisible=False`).

    Args:
        num_classes: L.
        metric: what `aggregate` returns, one of `SCORES`.
        class_index: the class to score; None averages over classes.
        reduction: `"image"` or `"dataset"`, see `reduce_scores`.
        include_background: whether class 0 takes part in that average.
        ignore_index: label of pixels that are left out.

    Raises:
        ValueError: an unknown metric, reduction or class; `aggregate` before any image.

    Example:
        >>> vessel_iou = SegmentationScores(num_classes=2, class_index=1)
        >>> _ = vessel_iou(torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[1, 0, 0, 255]]]))
        >>> vessel_iou.aggregate()
        tensor(0.5000, dtype=torch.float64)
        >>> vessel_iou.counts().tolist()
        [[[1, 0], [1, 1]]]
    """

    def __init__(
        self,
        num_classes: int,
        metric: str = "iou",
        class_index: int | None = None,
        reduction: Reduction = "image",
        include_background: bool = True,
        ignore_index: int = UNLABELED,
    ) -> None:
        super().__init__()
        self._choose(num_classes, metric, class_index, reduction, include_background)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._left_out = False  # whether labels said of some pixels that nobody knows their class

    def reset(self) -> None:
        """Forget all images."""
        super().reset()  # type: ignore[no-untyped-call]
        self._left_out = False

    def aggregate(self) -> Tensor:
        """The metric over all images seen since `reset`, float64; warns where the labels seem to be 0/255 masks."""
        counts = self.counts()
        if self._left_out and len(counts) and not counts[:, :, 1:].any():
            warnings.warn(
                f"no label has a class but 0, and some have {self.ignore_index}, which is not scored: 0/255 masks? map "
                "them with MapLabelValued(keys, [0, 255], [0, 1])",
                stacklevel=2,
            )
        return super().aggregate()

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if y is None:
            raise ValueError("SegmentationScores needs the label: call it with (y_pred, y)")
        counts = confusion_counts(y_pred, y, self.num_classes, kwargs.get("mask"), self.ignore_index)
        self._left_out |= kwargs.get("mask") is None and int(counts.sum()) < y.numel()
        return counts

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Tensor:
        """Images of different sizes come as lists; MONAI's own loop would drop the tail of the longer list."""
        masks = kwargs.get("mask")
        lengths = [None if x is None else len(x) for x in (y_pred, y)] + ([] if masks is None else [len(masks)])
        if len(set(lengths)) > 1:
            raise ValueError(f"y_pred, y and mask must list the same images, got lengths {lengths}")
        tables = [
            self._compute_tensor(p[None], t[None], mask=None if m is None else m[None])
            for p, t, m in zip(y_pred, y, [None] * len(y) if masks is None else masks, strict=True)
        ]
        return torch.cat(tables)

    def _sync(self) -> None:
        """Gather the tables; a process that saw no image takes part too, or the others would wait for it forever."""
        if self._buffers is None and not self._synced:
            none = torch.zeros((0, self.num_classes, self.num_classes), dtype=torch.int64)
            self._synced_tensors = [evenly_divisible_all_gather(none, concat=True)]
            self._synced = True
        super()._sync()  # type: ignore[no-untyped-call]

    def counts(self) -> Tensor:
        """Tables of all images of all processes, int64 (N, L, L)."""
        counts: Tensor = CumulativeIterationMetric.get_buffer(self)  # type: ignore[no-untyped-call]
        return counts


class ScoreView(_Choice, Metric):
    """Another number from the counts of a `SegmentationScores`, at no cost per image.

    Attach it like any metric, to the engine to which its source is attached: `__call__` and `reset` do nothing,
    because the source counts and forgets.

    Args:
        source: the metric that counts.
        metric: what `aggregate` returns, one of `SCORES`.
        class_index: the class to score; None averages over classes.
        reduction: `"image"` or `"dataset"`, see `reduce_scores`.
        include_background: whether class 0 takes part in that average.

    Raises:
        ValueError: an unknown metric, reduction or class; `aggregate` before the source has seen an image.

    Example:
        >>> vessel_iou = SegmentationScores(num_classes=2, class_index=1)
        >>> vessel_dice = ScoreView(vessel_iou, "dice", class_index=1)
        >>> _ = vessel_iou(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]]))
        >>> vessel_dice.aggregate()
        tensor(0.6667, dtype=torch.float64)
    """

    def __init__(
        self,
        source: SegmentationScores,
        metric: str = "iou",
        class_index: int | None = None,
        reduction: Reduction = "image",
        include_background: bool = True,
    ) -> None:
        super().__init__()
        self._choose(source.num_classes, metric, class_index, reduction, include_background)
        self.source = source

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the source has counted the image."""

    def reset(self) -> None:
        """Nothing: the source forgets."""

    def counts(self) -> Tensor:
        """Tables of the source, int64 (N, L, L)."""
        return self.source.counts()
