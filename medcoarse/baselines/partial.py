"""Cross-entropy and Dice over drawn pixels only, nothing else: how nnU-Net treats sparse labels.

Drawings of both kinds are merged into one partial label map, :func:`medcoarse.losses.consensus`: contradictions and
undrawn pixels teach nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.losses import CoupledLoss, consensus, dense_nll, partial_dice


class PartialLoss(CoupledLoss):
    """Cross-entropy + Dice where drawings say one class; takes the place of :class:`medcoarse.losses.CoupledLoss`.

    Only the segmenter learns: use it in warm-up (``warmup_epochs`` as many as there are), when no annotator runs.

    Args:
        num_classes: L.
        dice_weight: of the Dice term; 0 leaves it out.
        balanced: every class counts alike in the cross-entropy, however few of its pixels are drawn.

    Source: nnU-Net, which adds the two with weight 1; the balance is the usual answer to few foreground pixels.

    Example:
        >>> loss = PartialLoss(num_classes=2)
        >>> output = CoupledOutput(torch.zeros(1, 2, 3))
        >>> round(loss(output, Annotations(positive=torch.tensor([[[0, 1, 255]]]))).item(), 4)  # log 2 + 1 / 2
        1.1931
    """

    def __init__(self, num_classes: int, dice_weight: float = 1.0, balanced: bool = False) -> None:
        super().__init__(num_classes, dice_weight=dice_weight)
        self.balanced = balanced

    def forward(self, output: CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss; its unweighted terms stay in ``parts`` (detached) for logging."""
        target = self._checked(output, target)
        labels = {} if target.label is None else {"label": target.label}
        if target.positive is not None or target.negative is not None:
            labels["drawn"] = consensus(target, self.num_classes)
        logits = output.logits.float()
        log_probs, probs = logits.log_softmax(1), logits.softmax(1)
        objectives, self.parts = [], {}
        for name, label in labels.items():
            nll = dense_nll(log_probs, label, balance=float(self.balanced))
            dice = partial_dice(probs, label)
            objectives.append(nll + self.dice_weight * dice)
            self.parts |= {f"{name} nll": nll.detach(), f"{name} dice": dice.detach()}
        return torch.stack(objectives).sum()
