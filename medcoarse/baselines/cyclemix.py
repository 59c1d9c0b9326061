"""CycleMix: images mixed by what is salient in them, with a hole, turned; and predictions that do not mind.

Drawings of both kinds are merged into one partial label map, as in :class:`.partial.PartialLoss`, and mixed with the
images: what was not drawn stays unlabeled.

Source: Zhang and Zhuang, "CycleMix: A Holistic Strategy for Medical Image Segmentation from Scribble Supervision" (CVPR
    2022); Kim, Choo and Song, "Puzzle Mix" (ICML 2020), for the saliency.
Deviates: saliency CutMix in the place of Puzzle Mix: the box of the partner in which its saliency is largest is pasted
    where it was, with no graph cut and no transport. The hole has no label. Images turn by right angles, in the plane
    of their first two axes, so that the turn can be undone exactly. Weights are those of the published code, 0.1.
    The bundles' configuration adds Dice of what was drawn with weight 0.5, as in every other row (``dice_weight``); the
    paper has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from medcoarse.baselines.epochs import EpochChance
from medcoarse.baselines.partial import PartialLoss
from medcoarse.confusion import UNLABELED, Annotations, CoupledOutput
from medcoarse.losses import CoupledLoss, consensus, dense_nll


class CycleMixOutput(NamedTuple):
    """What :class:`CycleMix` gives in training.

    Args:
        logits: of the images as they are, ``(B, L, *S)``.
        mixed: of the mixed images, turned back.
        label: what was drawn of the mixed images ``(B, 1, *S)``, 255 in the hole.
        blended: the probabilities of the images as they are, mixed as the images were, ``(B, L, *S)``.
        visible: ``(B, 1, *S)``, 0 in the hole.
    """

    logits: Tensor
    mixed: Tensor
    label: Tensor
    blended: Tensor
    visible: Tensor


def saliency(logits: Tensor, image: Tensor, label: Tensor) -> Tensor:
    """How much the partial cross-entropy depends on each pixel, ``sqrt(mean_c (d CE / d x_c)²)``, ``(B, 1, *S)``.

    Args:
        logits: of the image, with their graph, which stays.
        image: ``(B, channels, *S)`` that requires a gradient.
        label: ``(B, 1, *S)``, classes or 255.

    Example:
        >>> image = torch.tensor([[[1.0, 2.0, 3.0]]], requires_grad=True)
        >>> logits = torch.cat([image, -image], 1)
        >>> saliency(logits, image, torch.tensor([[[255, 1, 255]]])).gt(0)
        tensor([[[False,  True, False]]])
    """
    (slope,) = torch.autograd.grad(dense_nll(logits.float().log_softmax(1), label), image, retain_graph=True)
    return slope.float().square().mean(1, keepdim=True).sqrt()


def salient_box(saliency: Tensor, ratio: float) -> Tensor:
    """The box, ``1 - ratio`` of the image in size and of its shape, that holds most of the saliency.

    Args:
        saliency: ``(B, 1, *S)``.
        ratio: share of the image outside the box, between 0 and 1.

    Returns:
        bool ``(B, 1, *S)``, true in the box.

    Example:
        >>> salient_box(torch.tensor([[[0.0, 0.0, 1.0, 2.0]]]), 0.5)
        tensor([[[False, False,  True,  True]]])
    """
    size = saliency.shape[2:]
    box = [round(length * (1 - ratio) ** (1 / len(size))) for length in size]
    sums = saliency
    for axis, length in enumerate(box, 2):
        sums = F.pad(sums.movedim(axis, -1).cumsum(-1), (1, 0))
        sums = (sums[..., length:] - sums[..., : sums.shape[-1] - length]).movedim(-1, axis)
    best = sums.flatten(1).argmax(1)
    corners = torch.stack(torch.unravel_index(best, sums.shape[2:]), 1)
    return boxes(corners, box, size)


def boxes(corners: Tensor, box: Sequence[int], size: Sequence[int]) -> Tensor:
    """Boxes of one size by their first corners ``(B, axes)`` as bool ``(B, 1, *size)``.

    Example:
        >>> boxes(torch.tensor([[0, 1]]), (1, 2), (2, 3)).int()
        tensor([[[[0, 1, 1],
                  [0, 0, 0]]]], dtype=torch.int32)
    """
    inside = torch.ones(len(corners), 1, *size, dtype=torch.bool, device=corners.device)
    for axis, (length, total) in enumerate(zip(box, size, strict=True)):
        shape = [1] * len(size)
        shape[axis] = total
        place = torch.arange(total, device=corners.device).view(1, 1, *shape)
        start = corners[:, axis].view(-1, 1, *[1] * len(size))
        inside = inside & (place >= start) & (place < start + length)
    return inside


def paste(maps: Tensor, order: Tensor, box: Tensor) -> Tensor:
    """Each item with its partner's values in the partner's box: images, labels and probabilities alike.

    Args:
        maps: ``(B, channels, *S)``.
        order: each item's partner ``(B,)``.
        box: of the partner, bool ``(B, 1, *S)``.

    Example:
        >>> paste(torch.tensor([[[1, 1]], [[2, 255]]]), torch.tensor([1, 0]), torch.tensor([[[False, True]]] * 2))
        tensor([[[  1, 255]],
        <BLANKLINE>
                [[  2,   1]]])
    """
    return torch.where(box, maps[order], maps)


class CycleMix(nn.Module):
    """A segmenter that sees every batch twice in training: as it is, and mixed, with a hole, turned.

    Args:
        segmenter: any module ``(B, channels, *S) -> (B, L, *S)``.
        num_classes: L.
        mix_ratio: share of an image that stays its own; ``None`` draws ``~ Beta(1/2, 1/2)`` for every batch.
        hole_ratio: length of the hole as a share of the image's along every axis; 0 leaves it out.
        turn: by a random number of right angles; images that are not square turn by none or two.
        seed: of the draws, which follow seed and epoch where ``chance`` is among the handlers.

    In evaluation it is the segmenter. The hole of the paper, 32 of 224 pixels, is a share of 0.15.

    Raises:
        ValueError: a share outside [0, 1]; in training, no drawings.

    Example:
        >>> model = CycleMix(nn.Conv2d(1, 2, 1), num_classes=2)
        >>> target = Annotations(positive=torch.randint(0, 2, (3, 1, 8, 8)))
        >>> model(torch.rand(3, 1, 8, 8), target).mixed.shape, model.eval()(torch.rand(3, 1, 8, 8)).shape
        (torch.Size([3, 2, 8, 8]), torch.Size([3, 2, 8, 8]))
    """

    def __init__(
        self,
        segmenter: nn.Module,
        num_classes: int,
        mix_ratio: float | None = None,
        hole_ratio: float = 0.15,
        turn: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= hole_ratio <= 1 or (mix_ratio is not None and not 0 <= mix_ratio <= 1):
            raise ValueError(f"mix_ratio and hole_ratio must be from 0 to 1, got {mix_ratio} and {hole_ratio}")
        self.segmenter, self.num_classes = segmenter, num_classes
        self.mix_ratio, self.hole_ratio, self.turn = mix_ratio, hole_ratio, turn
        self.chance = EpochChance(seed)

    def forward(self, image: Tensor, target: Annotations | None = None) -> CycleMixOutput | Tensor:
        """In training with what was drawn, a batch seen twice; class scores in evaluation.

        Args:
            image: ``(B, channels, *S)``.
            target: drawings or masks, in training.
        """
        if not self.training:
            scores: Tensor = self.segmenter(image)
            return scores
        label = known_label(target, self.num_classes)
        image = image.detach().requires_grad_()
        logits = self.segmenter(image)
        order = torch.randperm(len(image), generator=self.chance.generator).to(image.device)
        box = salient_box(saliency(logits, image, label), self._ratio())[order]
        visible, turns = ~self._hole(image), self._turns(image)
        mixed = paste(image.detach(), order, box) * visible
        seen = self.segmenter(torch.rot90(mixed, turns, (2, 3)) if turns else mixed)
        return CycleMixOutput(
            logits,
            torch.rot90(seen, -turns, (2, 3)) if turns else seen,
            paste(label, order, box).masked_fill(~visible, UNLABELED),
            paste(logits.float().softmax(1), order, box),
            visible,
        )

    def _uniform(self, number: int) -> Tensor:
        return torch.rand(number, generator=self.chance.generator)

    def _ratio(self) -> float:
        drawn = math.sin(math.pi / 2 * float(self._uniform(1))) ** 2  # the distribution function of Beta(1/2, 1/2)
        return drawn if self.mix_ratio is None else self.mix_ratio

    def _hole(self, image: Tensor) -> Tensor:
        size = image.shape[2:]
        hole = [round(self.hole_ratio * length) for length in size]
        places = [
            (self._uniform(len(image)) * (length - cut + 1)).long() for length, cut in zip(size, hole, strict=True)
        ]
        return boxes(torch.stack(places, 1).to(image.device), hole, size)

    def _turns(self, image: Tensor) -> int:
        drawn = int(self._uniform(1) * 4)
        if not self.turn or image.ndim < 4:
            return 0
        return drawn if image.shape[2] == image.shape[3] else drawn // 2 * 2


def known_label(target: Annotations | None, num_classes: int) -> Tensor:
    """What is known of the classes, ``(B, 1, *S)``: masks, and the consensus of the drawings where there is no mask."""
    if target is None or (target.positive is None and target.negative is None and target.label is None):
        raise ValueError("training needs drawings or masks to mix, got neither")
    if target.positive is None and target.negative is None:
        assert target.label is not None
        return target.label
    drawn = consensus(target, num_classes)
    return drawn if target.label is None else torch.where(target.label == UNLABELED, drawn, target.label)


def dissimilarity(first: Tensor, second: Tensor) -> Tensor:
    """``1 - cos``, of whole maps ``(B, L, *S)``, mean over the batch.

    Example:
        >>> dissimilarity(torch.tensor([[[3.0], [4.0]]]), torch.tensor([[[4.0], [3.0]]]))  # 1 - 24 / 25
        tensor(0.0400)
    """
    return 1 - F.cosine_similarity(first.flatten(1), second.flatten(1)).mean()


def largest_components(probs: Tensor) -> Tensor:
    """The most likely classes with one component of each but background, the largest, as one-hot ``(B, L, *S)``.

    Pixels of other components become background. Components are connected by faces, edges and corners.

    Example:
        >>> probs = torch.tensor([[[0.1, 0.9, 0.1, 0.1], [0.9, 0.1, 0.9, 0.9]]])
        >>> largest_components(probs)[0, 1]
        tensor([0., 0., 1., 1.])
    """
    found = probs.detach().argmax(1).cpu().numpy()
    kept = torch.zeros(probs.shape, dtype=probs.dtype)
    neighbours = ndimage.generate_binary_structure(found.ndim - 1, found.ndim - 1)
    for b, classes in enumerate(found):
        for k in range(1, probs.shape[1]):
            parts, number = ndimage.label(classes == k, neighbours)
            if number:
                sizes = torch.bincount(torch.as_tensor(parts).flatten().long())
                kept[b, k] = torch.as_tensor(parts == int(sizes[1:].argmax()) + 1)
    kept[:, 0] = 1 - kept[:, 1:].sum(1)
    return kept.to(probs.device)


class CycleMixLoss(CoupledLoss):
    """``P(plain) + P(mixed) + w_i (1 - cos(p, largest components of p)) + w_c (1 - cos(p(mix), mix of p))``.

    P is the partial cross-entropy on what was drawn. Takes the place of ``CoupledLoss``, beside :class:`CycleMix`.

    Args:
        num_classes: L.
        mix_weight: of P on the mixed images.
        integrity_weight: w_i; a structure that is not in one piece, as vessels are, wants 0.
        consistency_weight: w_c, outside the hole.
        dice_weight: of Dice in P; the paper has none.
        balanced: see :class:`.partial.PartialLoss`.

    Raises:
        ValueError: a negative weight.

    Example:
        >>> loss, drawn = CycleMixLoss(num_classes=2), torch.tensor([[[1, 255]]])
        >>> even, all_ = torch.zeros(1, 2, 2), torch.ones(1, 1, 2)
        >>> loss(CycleMixOutput(even, even, drawn, even.softmax(1), all_), Annotations(drawn))  # 2 log 2 + 0.1 * 0.2929
        tensor(1.4156)
    """

    def __init__(
        self,
        num_classes: int,
        mix_weight: float = 1.0,
        integrity_weight: float = 0.1,
        consistency_weight: float = 0.1,
        dice_weight: float = 0.0,
        balanced: bool = False,
    ) -> None:
        super().__init__(num_classes)
        self.weights = {"mixed": mix_weight, "integrity": integrity_weight, "consistency": consistency_weight}
        if min(self.weights.values()) < 0:
            raise ValueError(f"weights must not be negative, got {self.weights}")
        self.partial = PartialLoss(num_classes, dice_weight, balanced)

    def forward(self, output: CycleMixOutput | CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss; its unweighted terms stay in ``parts`` (detached) for logging."""
        if not isinstance(output, CycleMixOutput):
            raise TypeError(f"CycleMixLoss takes a CycleMix's output in training, got {type(output)}")
        plain = self.partial(CoupledOutput(output.logits), target)
        parts = dict(self.partial.parts)
        terms = {"mixed": self.partial(CoupledOutput(output.mixed), Annotations(label=output.label))}
        if self.weights["integrity"] > 0:
            probs = output.logits.float().softmax(1)
            terms["integrity"] = dissimilarity(probs, largest_components(probs))
        if self.weights["consistency"] > 0:
            seen = output.mixed.float().softmax(1) * output.visible
            terms["consistency"] = dissimilarity(seen, output.blended * output.visible)
        self.parts = parts | {name: term.detach() for name, term in terms.items()}
        return torch.stack([plain, *(self.weights[name] * term for name, term in terms.items())]).sum()
