"""Two steps: several people's annotations become one label map, which is then learned from as if it were the truth.

Source: DHE, the baselines "CNN on mode labels", "CNN on STAPLE labels" and "CNN on Spatial STAPLE labels".
Deviates: the network is trained on the most likely class, with the schedule, network and loss of every other row.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor

from medcoarse.fusion.spatial_staple import spatial_staple
from medcoarse.fusion.staple import staple
from medcoarse.fusion.voting import hard_label, majority_vote
from medcoarse.metrics import annotation_counts, conditional_table, soft_annotation_counts
from medcoarse.transforms.array import spacing_of

METHODS = ("majority", "staple", "spatial_staple")


def fuse(
    annotations: Tensor, num_classes: int, method: str = "staple", spacing: Sequence[float] | None = None
) -> Tensor:
    """One label map out of several.

    Args:
        annotations: label maps ``(B, R, *S)``, 255 where an annotator said nothing.
        num_classes: L.
        method: ``"majority"``, ``"staple"`` or ``"spatial_staple"``, with the defaults of :mod:`medcoarse.fusion`.
        spacing: mm per voxel, for the window of Spatial STAPLE.

    Returns:
        uint8 ``(B, 1, *S)``, 255 where nobody said anything or a vote is a draw.

    Raises:
        ValueError: an unknown method.

    Example:
        >>> fuse(torch.tensor([[[0, 1, 1], [0, 1, 0], [1, 1, 255]]]), num_classes=2, method="majority")
        tensor([[[  0,   1, 255]]], dtype=torch.uint8)
    """
    _check_method(method)
    if method == "majority":
        return majority_vote(annotations, num_classes)
    return hard_label(_posterior(annotations, num_classes, method, spacing))


def fused_confusion(
    dataset: Any,
    num_classes: int,
    method: str = "staple",
    annotation_key: str = "positive",
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """What a method of fusion makes of each annotator: one confusion matrix, counted over all images of a data set.

    ``A^r[i, j] = sum_x W_x(j) [y_r(x) = i] / sum_x W_x(j)``, with the posteriors W of STAPLE or Spatial STAPLE, so that
    the matrices are STAPLE's own, pooled over the images, or with the fused label map of a majority.

    Args:
        dataset: items with annotations ``(R, *S)``, 255 where someone said nothing.
        num_classes: L.
        method: see :func:`fuse`.
        annotation_key: of the annotations.
        spacing: mm per voxel, for the window of Spatial STAPLE.

    Returns:
        float64 ``(R, observed, true)``, columns sum to 1; NaN for an annotator who said nothing and for a class that
        is in no fused label.

    Raises:
        ValueError: an unknown method.

    Example:
        >>> items = [{"positive": torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]])}]
        >>> fused_confusion(items, num_classes=2, method="majority")[2]
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    _check_method(method)
    counts = torch.zeros((), dtype=torch.float64)
    for n in range(len(dataset)):
        annotations = torch.as_tensor(dataset[n][annotation_key]).as_subclass(Tensor)[None]
        if method == "majority":
            label = majority_vote(annotations, num_classes)
            counts = counts + annotation_counts(annotations, label, num_classes)[0]
        else:
            truth = _posterior(annotations, num_classes, method, spacing)
            counts = counts + soft_annotation_counts(annotations, truth)[0]
    return conditional_table(counts)


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


def _posterior(annotations: Tensor, num_classes: int, method: str, spacing: Sequence[float] | None) -> Tensor:
    run = staple if method == "staple" else partial(spatial_staple, spacing=spacing)
    return run(annotations, num_classes).probs


class FuseAnnotationsd(MapTransform):
    """Put the fusion of an item's annotations in the place of its label, see :func:`fuse`.

    Args:
        keys: annotations ``(R, *S)``.
        label_key: where the label map ``(1, *S)`` is written.
        num_classes: L.
        method: see :func:`fuse`.
        spacing: mm per voxel; by default that of the MetaTensor, otherwise 1.
        overwrite: ``False`` leaves a label that is there as it is.
        allow_missing_keys: skip missing annotations.

    Raises:
        ValueError: an unknown method, when called.

    Example:
        >>> item = FuseAnnotationsd("positive", method="majority")({"positive": torch.tensor([[0, 1], [0, 1], [1, 1]])})
        >>> item["label"]
        tensor([[0, 1]], dtype=torch.uint8)
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str = "label",
        num_classes: int = 2,
        method: str = "staple",
        spacing: Sequence[float] | None = None,
        overwrite: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.overwrite = overwrite
        self.label_key, self.num_classes, self.method, self.spacing = label_key, num_classes, method, spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the fused label."""
        item = dict(data)
        if self.label_key in item and not self.overwrite:
            return item
        for key in self.key_iterator(item):
            annotations = torch.as_tensor(item[key]).as_subclass(Tensor)[None]
            spacing = spacing_of(item[key], self.spacing)
            fused = fuse(annotations, self.num_classes, self.method, spacing)[0]
            item[self.label_key] = convert_to_dst_type(fused, item[key], dtype=fused.dtype)[0]
        return item
