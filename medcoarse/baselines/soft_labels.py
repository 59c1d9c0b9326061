"""Learning from label maps that give every class a probability, and that may change while the network learns."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.fusion.voting import hard_label
from medcoarse.losses import CoupledLoss, partial_dice


def soft_nll(log_probs: Tensor, soft: Tensor) -> Tensor:
    """Cross-entropy with soft labels, ``-sum_l t_l log p_l``, mean over the pixels that have one.

    Args:
        log_probs: ``(B, L, *S)``.
        soft: ``(B, L, *S)``, sums to 1 over classes, or is 0 for all of them where nothing is known.

    Returns:
        Scalar in nats; 0 when nothing is known.

    Example:
        >>> log_probs = torch.tensor([0.2, 0.8]).log().view(1, 2, 1).expand(1, 2, 2)
        >>> soft_nll(log_probs, torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]))  # -log 0.8; nothing is known of the other
        tensor(0.2231)
    """
    known = soft.sum(1) > 0
    return -(soft * log_probs).sum() / known.sum().clamp_min(1)


class SoftLabelLoss(CoupledLoss):
    """Cross-entropy with soft labels, and Dice with the most likely class; takes the place of ``CoupledLoss``.

    Labels ``Annotations.label`` are ``(B, L, *S)`` here. Only the segmenter learns. With labels that are certain it is
    what :class:`medcoarse.losses.CoupledLoss` makes of masks, so that a method that makes soft labels stands on equal
    footing with one that makes hard ones.

    Args:
        num_classes: L.
        dice_weight: of the Dice term; 0 leaves it out.

    Example:
        >>> target = Annotations(label=torch.tensor([[[0.5, 1.0], [0.5, 0.0]]]))
        >>> SoftLabelLoss(num_classes=2)(CoupledOutput(torch.zeros(1, 2, 2)), target)
        tensor(0.6931)
    """

    def __init__(self, num_classes: int, dice_weight: float = 0.0) -> None:
        super().__init__(num_classes, trace_weight=0, dice_weight=dice_weight)

    def forward(self, output: CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss; its unweighted terms stay in ``parts`` (detached) for logging."""
        logits, soft = output.logits.float(), target.label
        if soft is None or soft.shape != logits.shape:
            got = "none" if soft is None else tuple(soft.shape)
            raise ValueError(f"soft labels must have the shape of the logits, {tuple(logits.shape)}, got {got}")
        nll = soft_nll(logits.log_softmax(1), soft)
        self.parts = {"soft nll": nll.detach()}
        if self.dice_weight == 0:
            return nll
        dice = partial_dice(logits.softmax(1), hard_label(soft))
        self.parts["dice"] = dice.detach()
        return nll + self.dice_weight * dice


class SoftLabels:
    """The soft labels of a data set by the number of the item; as a transform it hands an item its own.

    It is no MONAI ``Transform``, so that ``CacheDataset`` calls it anew each time: labels may be replaced between
    epochs. Random transforms that turn the image come after it.

    Args:
        label_key: where the label ``(L, *S)``, float32, is written.
        number_key: of the item's number.

    Labels are kept in half precision.

    Example:
        >>> labels = SoftLabels()
        >>> labels[3] = torch.tensor([[0.25], [0.75]])
        >>> labels({"number": 3})["label"].tolist()
        [[0.25], [0.75]]
    """

    def __init__(self, label_key: Hashable = "label", number_key: Hashable = "number") -> None:
        self.label_key, self.number_key = label_key, number_key
        self.maps: dict[int, Tensor] = {}

    def __setitem__(self, number: int, soft: Tensor) -> None:
        self.maps[number] = soft.half()

    def __len__(self) -> int:
        return len(self.maps)

    def __call__(self, item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its label."""
        number = int(item[self.number_key])
        if number not in self.maps:
            raise KeyError(f"item {number} has no soft label yet; estimate them before the first epoch")
        return {**item, self.label_key: self.maps[number].float()}

    def state_dict(self) -> dict[int, Tensor]:
        """The labels by number."""
        return dict(self.maps)

    def load_state_dict(self, state: Mapping[int, Tensor]) -> None:
        """Take over saved labels."""
        self.maps = {int(number): torch.as_tensor(soft) for number, soft in state.items()}
