"""One network per annotator, trained on the labels of that annotator alone; the mean of their softmaxes is the answer.

Source: DHE, the baseline of separate CNNs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.losses import CoupledLoss, drawn_by, personal_terms


class PerAnnotator(nn.Module):
    """R networks of one definition, which start differently and share nothing.

    In training each sees the images that its annotator drew, and no others.

    Args:
        build: gives a new network ``(B, channels, *S) -> (B, L, *S)`` at every call.
        num_annotators: R.

    Raises:
        ValueError: fewer than one annotator; in training, annotations of another number of annotators, or none.

    Example:
        >>> model = PerAnnotator(lambda: nn.Conv2d(1, 2, 1), num_annotators=3)
        >>> image, positive = torch.rand(4, 1, 8, 8), torch.randint(0, 2, (4, 3, 8, 8))
        >>> positive[1:, 2] = 255  # of whom there is one image
        >>> [len(logits) for logits in model(image, positive)]
        [4, 4, 1]
        >>> model.eval()(image).exp().sum(1).allclose(torch.ones(4, 8, 8))
        True
    """

    def __init__(self, build: Callable[[], nn.Module], num_annotators: int) -> None:
        super().__init__()
        if num_annotators < 1:
            raise ValueError(f"at least one annotator is needed, got num_annotators={num_annotators}")
        self.networks = nn.ModuleList(build() for _ in range(num_annotators))

    def forward(self, image: Tensor, positive: Tensor | None = None) -> tuple[Tensor, ...] | Tensor:
        """In training each network's logits of the images drawn for it; in evaluation ``log mean_r softmax_r``.

        Args:
            image: ``(B, channels, *S)``.
            positive: who drew what ``(B, R, *S)``, in training.
        """
        if not self.training:
            log_probs = torch.stack([network(image).float().log_softmax(1) for network in self.networks])
            return log_probs.logsumexp(0) - math.log(len(self.networks))
        if positive is None or positive.shape[1] != len(self.networks):
            got = "none" if positive is None else positive.shape[1]
            raise ValueError(f"training needs the annotations of {len(self.networks)} annotators, got {got}")
        return tuple(
            network(image[drawn]) if drawn.any() else image.new_empty(0)
            for network, drawn in zip(self.networks, drawn_by(positive).unbind(1), strict=True)
        )

    def members(self, image: Tensor) -> Tensor:
        """Each network's class probabilities ``(B, R, L, *S)``: what its annotator would draw."""
        return torch.stack([network(image).float().softmax(1) for network in self.networks], 1)


class PerAnnotatorLoss(CoupledLoss):
    """Cross-entropy + Dice of each network on its annotator's labels, summed: as many trainings at once.

    Takes the place of :class:`medcoarse.losses.CoupledLoss` in a bundle. An annotator of whom a batch has no drawing
    adds nothing, and its network gets no gradient.

    Args:
        num_classes: L.
        dice_weight: of :func:`medcoarse.losses.partial_dice`; 0 leaves it out.
        balance: of the classes, see :func:`medcoarse.losses.dense_nll`.

    Raises:
        ValueError: a negative weight, a balance beyond 0 and 1.

    Example:
        >>> loss, positive = PerAnnotatorLoss(num_classes=2, dice_weight=0), torch.tensor([[[0, 1], [255, 255]]])
        >>> round(loss((torch.zeros(1, 2, 2), torch.empty(0)), Annotations(positive)).item(), 4)  # log 2
        0.6931
    """

    def __init__(self, num_classes: int, dice_weight: float = 0.5, balance: float = 0.0) -> None:
        super().__init__(num_classes, dice_weight=dice_weight, balance=balance)

    def forward(self, output: tuple[Tensor, ...] | CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss; ``nll`` and ``dice``, sums over the annotators, stay in ``parts`` (detached)."""
        if isinstance(output, CoupledOutput) or target.positive is None:
            raise ValueError("PerAnnotatorLoss takes the logits of a PerAnnotator in training, and positive drawings")
        nll, dice = personal_terms(output, target.positive, self.balance)
        self.parts = {"nll": nll.detach(), "dice": dice.detach()}
        return nll + self.dice_weight * dice
