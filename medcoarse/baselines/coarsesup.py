"""CoarseSup, adapted: a second network sees the drawings too, guesses the true classes, and teaches the segmenter.

``p(y | x)`` is the segmenter, ``q(y | x, c)`` the posterior network, which sees the image and the drawings c as
channels, and ``p(c | y)`` one confusion matrix for each annotator, the same for all pixels of all images. Uses all
drawings, positive and negative, sparse or dense; an annotator who did not draw an image is a blank channel. As q sees
the drawings it may take any annotator's word for the truth: the matrices do not tell who errs.

Source: Saha, Cheng and Maji, Improving Few-Shot Part Segmentation using Coarse Supervision, ECCV 2022.
Deviates: regions that are drawn roughly stand for figure-ground masks and key points, and confusion matrices for the
    networks that predict those from parts; the E and M step of a batch are one step of one optimizer; the confusion
    matrices learn from ``-log p(c | q)``, as q does; the entropy of q is subtracted, as in the evidence lower bound, so
    that q is kept from certainty, where the published sum can also be read as adding it; without masks to start from,
    both networks learn in the warm-up from what the drawings agree on; Dice beside cross-entropy, network and schedule
    are those of every other row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medcoarse.baselines.partial import PartialLoss
from medcoarse.baselines.soft_labels import SoftLabelLoss, soft_nll
from medcoarse.confusion import Annotations, Confusion, CoupledOutput
from medcoarse.losses import CoupledLoss
from medcoarse.networks import AnnotatorNet, CoupledModel


class CoarseSupOutput(NamedTuple):
    """What :class:`CoarseSup` gives in training: a :class:`medcoarse.confusion.CoupledOutput`, and q.

    Args:
        logits: of p, ``(B, L, *S)``.
        positive: confusion of the positive annotators; ``None`` in the warm-up.
        negative: confusion of the negative annotators.
        log_transition: learned ``log M``; ``None`` when M is fixed.
        posterior: logits of q, ``(B, L, *S)``.
        finished: whether the segmenter stays as it is.
    """

    logits: Tensor
    positive: Confusion | None
    negative: Confusion | None
    log_transition: Tensor | None
    posterior: Tensor
    finished: bool = False


class CoarseSup(CoupledModel):
    """Segmenter, annotators and posterior network in one module; in evaluation the segmenter alone.

    Args:
        segmenter: p, ``(B, channels, *S) -> (B, L, *S)``.
        annotator: an :class:`medcoarse.networks.AnnotatorNet` of structure ``"global"``, or ``"identity"``.
        posterior: q, ``(B, channels + (R + C) L, *S) -> (B, L, *S)``.

    Raises:
        ValueError: when called, drawings of another number of annotators.

    Example:
        >>> annotator = AnnotatorNet(None, 2, 0, num_classes=2, structure="global")
        >>> model = CoarseSup(nn.Conv2d(1, 2, 1), annotator, nn.Conv2d(1 + 2 * 2, 2, 1))
        >>> image, positive = torch.rand(3, 1, 8, 8), torch.randint(0, 2, (3, 1, 8, 8))
        >>> model(image, positive).posterior.shape, model.eval()(image).shape
        (torch.Size([3, 2, 8, 8]), torch.Size([3, 2, 8, 8]))
    """

    def __init__(self, segmenter: nn.Module, annotator: AnnotatorNet, posterior: nn.Module) -> None:
        super().__init__(segmenter, annotator)
        self.posterior = posterior

    def forward(  # type: ignore[override]
        self, image: Tensor, positive: Tensor | None = None, negative: Tensor | None = None
    ) -> CoarseSupOutput | CoupledOutput | Tensor:
        """In training all of it, in evaluation the segmenter's class scores.

        Args:
            image: ``(B, channels, *S)``.
            positive: drawings ``(B, R, *S)``, 255 where nothing is drawn; ``None`` for nothing at all.
            negative: drawings ``(B, C, *S)``.
        """
        output = super().forward(image)
        if not isinstance(output, CoupledOutput):
            return output
        logits = self.posterior(torch.cat([image, *self._channels(image, positive, negative)], 1))
        return CoarseSupOutput(*output[:4], posterior=logits, finished=output.finished)

    def _channels(self, image: Tensor, *drawings: Tensor | None) -> Iterator[Tensor]:
        """A channel for each class and annotator, 1 where it is drawn, ``(B, R L, *S)``."""
        classes = torch.arange(self.annotator.num_classes, device=image.device).view(1, 1, -1, *[1] * (image.ndim - 2))
        numbers = self.annotator.num_positive, self.annotator.num_negative
        for drawing, number in zip(drawings, numbers, strict=True):
            if drawing is None:
                yield image.new_zeros(len(image), number * self.annotator.num_classes, *image.shape[2:])
            elif drawing.shape[1] != number:
                raise ValueError(
                    f"the model is for {number} annotators of a kind, the drawings are of {drawing.shape[1]}"
                )
            else:
                yield (drawing[:, :, None] == classes).flatten(1, 2).to(image.dtype)


class CoarseSupLoss(CoupledLoss):
    """The E and the M step of :class:`CoarseSup` as one loss, in which neither network learns from the other's step.

    E step, of q and the confusion matrices: ``-log p(c | q) + prior_weight CE(q, p) - entropy_weight H(q)``, with p
    held. M step, of p: ``CE(p, q)``, with q held, and Dice with q's most likely class. In the warm-up p learns the
    consensus of the drawings, and ``-log p(c | q)`` is the cross-entropy with that. Masks, where there are any, are
    learned by p.

    Args:
        num_classes: L.
        prior_weight: of ``CE(q, p) = -sum_k q_k log p_k``.
        entropy_weight: of the entropy, which has the sign of the evidence lower bound: q is kept from certainty.
        dice_weight: of Dice in what p learns; 0 leaves it out.

    Raises:
        ValueError: a negative weight.
        TypeError: the output of another model.

    Source: Saha et al. 2022. The weights are the published ones.

    Example:
        >>> output = CoarseSupOutput(torch.zeros(1, 2, 3), None, None, None, torch.zeros(1, 2, 3))
        >>> loss = CoarseSupLoss(num_classes=2)
        >>> round(loss(output, Annotations(torch.tensor([[[0, 1, 255]]]))).item(), 4)  # (1 + 0.05 - 0.01 + 1) log 2
        1.414
        >>> sorted(loss.parts)
        ['drawn dice', 'drawn nll', 'posterior entropy', 'posterior nll', 'posterior prior']
    """

    def __init__(
        self, num_classes: int, prior_weight: float = 0.05, entropy_weight: float = 0.01, dice_weight: float = 0.0
    ) -> None:
        super().__init__(num_classes)
        if min(prior_weight, entropy_weight) < 0:
            raise ValueError(f"weights must not be negative, got {prior_weight=}, {entropy_weight=}")
        self.prior_weight, self.entropy_weight = prior_weight, entropy_weight
        self.partial, self.soft = PartialLoss(num_classes, dice_weight), SoftLabelLoss(num_classes, dice_weight)

    def forward(self, output: CoarseSupOutput | CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss; its unweighted terms stay in ``parts`` (detached) for logging."""
        if not isinstance(output, CoarseSupOutput):
            raise TypeError(f"CoarseSupLoss takes the output of a CoarseSup in training, got {type(output)}")
        expectation, parts = self._e_step(output, target)
        maximization, learned = self._m_step(output, target)
        self.parts = parts | learned
        return expectation + maximization

    def _e_step(self, output: CoarseSupOutput, target: Annotations) -> tuple[Tensor, dict[str, Tensor]]:
        log_q = output.posterior.float().log_softmax(1)
        prior = soft_nll(output.logits.detach().float().log_softmax(1), log_q.exp())
        entropy = soft_nll(log_q, log_q.exp())
        parts = {"posterior prior": prior.detach(), "posterior entropy": entropy.detach()}
        loss = self.prior_weight * prior - self.entropy_weight * entropy
        if target.positive is not None or target.negative is not None:
            guessed = CoupledOutput(output.posterior, *output[1:4])
            likelihood = super().forward(guessed, target._replace(label=None))
            parts["posterior nll"] = likelihood.detach()
            loss = loss + likelihood
        return loss, parts

    def _m_step(self, output: CoarseSupOutput, target: Annotations) -> tuple[Tensor, dict[str, Tensor]]:
        segmented = CoupledOutput(output.logits)
        if output.positive is None and output.negative is None:
            return self.partial(segmented, target), self.partial.parts
        guessed = output.posterior.detach().float().softmax(1)
        loss, parts = self.soft(segmented, Annotations(label=guessed)), self.soft.parts
        if target.label is not None:
            loss = loss + self.partial(segmented, Annotations(label=target.label))
            parts = parts | self.partial.parts
        return loss, parts
