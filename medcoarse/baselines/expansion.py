"""Two steps: a classical method expands drawings to a mask, which is then learned from as if it were the truth.

It uses both kinds of drawings, by what they agree on (:func:`medcoarse.losses.consensus`): strokes that leave most
pixels open, or maps that cover every pixel, of which only what they contradict each other about is open.

Source: CL, the baselines "GrabCut + FCN" and "LazySnapping + FCN".
Deviates: cross-entropy and Dice, and the schedule and network of every other row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils.type_conversion import convert_to_dst_type, convert_to_numpy
from numpy.typing import NDArray

from medcoarse.baselines.grab_cut import GrabCutError, grab_cut
from medcoarse.baselines.lazy_snapping import lazy_snapping
from medcoarse.baselines.random_walker import random_walker
from medcoarse.baselines.soft_labels import agreed_drawing
from medcoarse.transforms.array import spacing_of

logger = logging.getLogger(__name__)

METHODS: dict[str, Callable[..., NDArray[Any]]] = {
    "random_walker": random_walker,
    "lazy_snapping": lazy_snapping,
    "grab_cut": grab_cut,
}


class ExpandDrawingd(MapTransform):
    """Put what a method makes of an item's image and drawings in the place of its label.

    What was drawn stays, where drawings agree. An image that GrabCut cannot cut keeps its drawings alone; there is a
    warning for each, and ``failures`` lists the reasons.

    Args:
        keys: of the positive ``(R, *S)`` and of the negative ``(C, *S)`` drawings, in this order.
        method: ``"random_walker"``, ``"lazy_snapping"`` or ``"grab_cut"``.
        num_classes: L.
        image_key: of the image ``(C, *S)``.
        label_key: where the label map ``(1, *S)``, uint8, is written; 255 where the method says nothing.
        spacing: mm per voxel; by default that of the MetaTensor, otherwise 1.
        options: further arguments of the method.
        allow_missing_keys: an item may carry only one kind of drawing; without any it stays as it is.

    Raises:
        ValueError: an unknown method, not two keys; what the method says.

    The result depends on the item alone: put it before the random transforms, and ``CacheDataset`` keeps it.

    Example:
        >>> item = {"image": torch.tensor([[[0.0, 0.1, 0.9, 1.0]]]), "positive": torch.tensor([[[0, 255, 255, 1]]])}
        >>> expand = ExpandDrawingd(("positive", "negative"), "random_walker", allow_missing_keys=True)
        >>> expand(item)["label"]
        tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    """

    def __init__(
        self,
        keys: KeysCollection = ("positive", "negative"),
        method: str = "random_walker",
        num_classes: int = 2,
        image_key: str = "image",
        label_key: str = "label",
        spacing: Sequence[float] | None = None,
        options: Mapping[str, Any] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if len(self.keys) != 2:
            raise ValueError(f"keys must name the positive and the negative drawings, got {self.keys}")
        self.method, self.num_classes, self.spacing, self.options = method, num_classes, spacing, dict(options or {})
        self.image_key, self.label_key = image_key, label_key
        self.failures: list[str] = []

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with another label."""
        item = dict(data)
        if not list(self.key_iterator(item)):
            return item
        partial = agreed_drawing([item.get(key) for key in self.keys], self.num_classes)
        image = item[self.image_key]
        found = self._expand(convert_to_numpy(image), partial.numpy(), spacing_of(image, self.spacing))
        label = torch.as_tensor(found)[None]
        item[self.label_key] = convert_to_dst_type(label, image, dtype=torch.uint8)[0]
        return item

    def _expand(self, image: NDArray[Any], partial: NDArray[Any], spacing: Sequence[float]) -> NDArray[Any]:
        try:
            return METHODS[self.method](image, partial, self.num_classes, spacing=spacing, **self.options)
        except GrabCutError as error:
            self.failures.append(str(error))
            logger.warning(
                "GrabCut failed on %d images so far, whose drawings alone are learned from; on this one: %s",
                len(self.failures), error,
            )  # fmt: skip
            return partial
