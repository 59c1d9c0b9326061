"""Gated CRF: pixels that are near and look alike should have the same class, whether or not anything was drawn on them.

Drawings of both kinds are merged into one partial label map, as :class:`.partial.PartialLoss` does; the image does the
rest. Source: Obukhov, Georgoulis, Dai and Van Gool, "Gated CRF Loss for Weakly Supervised Semantic Image Segmentation"
(2019), with the kernel's widths, radius and weight that became usual for drawings in medical images.
Deviates: pairs that would reach over the edge of the image do not count; the image is rescaled to [0, 1], so that one
    width of the kernel serves images of any units; Dice stands beside the partial cross-entropy unless it is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medcoarse.baselines.partial import PartialLoss
from medcoarse.confusion import UNLABELED, Annotations, CoupledOutput
from medcoarse.losses import consensus

GATES = ("all", "undrawn")


def gated_crf(
    probs: Tensor,
    image: Tensor,
    source: Tensor | None = None,
    destination: Tensor | None = None,
    radius: int = 5,
    sigma_xy: float = 6.0,
    sigma_rgb: float = 0.1,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """Potts energy of a window, ``sum_i s_i sum_j d_j K(i, j) (1 - p_i . p_j) / sum_i s_i``.

    ``K(i, j) = exp(-|x_i - x_j|² / (2 sigma_xy²) - |c_i - c_j|² / (2 sigma_rgb²))`` for ``j`` within ``radius`` pixels
    of ``i`` along every axis, ``j != i``; ``x`` are places and ``c`` colours.

    The energy is quadratic in ``p``, so its slope is one sum over the window. It is computed beside the value and
    nothing of a single displacement is kept: memory is that of a few maps, whatever the radius.

    Args:
        probs: ``(B, L, *S)``.
        image: ``(B, channels, *S)``; no gradient flows to it.
        source: gate ``s``, ``(B, 1, *S)`` in [0, 1], of the pixels whose class is asked about; ``None`` for all.
        destination: gate ``d``, as ``source``, of those they are compared with. A field of view gates both.
        radius: in pixels.
        sigma_xy: width in pixels, or in the unit of ``spacing``.
        sigma_rgb: width in the units of the image.
        spacing: of the pixels along every axis; ``None`` is 1.

    Returns:
        Scalar >= 0; 0 where the gate is shut everywhere.

    Raises:
        ValueError: a radius below 1 or a width that is not positive; sizes that differ.

    Source: Obukhov et al. 2019, with one Gaussian kernel of weight 1 and Potts compatibility.

    Example:
        >>> probs = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> gated_crf(probs, torch.zeros(1, 1, 3), sigma_xy=1e6)  # of 6 directed pairs 4 disagree; 3 pixels
        tensor(1.3333)
        >>> gated_crf(probs, torch.tensor([[[0.0, 0.0, 9.0]]]), sigma_xy=1e6)  # they look different
        tensor(0.)
    """
    if radius < 1 or min(sigma_xy, sigma_rgb) <= 0:
        raise ValueError(f"need radius >= 1 and widths above 0, got {radius=}, {sigma_xy=}, {sigma_rgb=}")
    if (len(probs), *probs.shape[2:]) != (len(image), *image.shape[2:]):
        raise ValueError(
            f"probs and image must agree in batch and size, got {tuple(probs.shape)} and {tuple(image.shape)}"
        )
    scaled = image.detach() / (math.sqrt(2) * sigma_rgb)
    values = probs.detach()
    pull, most = torch.zeros_like(values), values.new_zeros(())
    for here, there, distance in _pairs(values.shape[2:], radius, spacing or [1.0] * (values.ndim - 2)):
        alike = scaled[here].sub(scaled[there]).square_().sum(1, keepdim=True)
        kernel = alike.add_(distance / (2 * sigma_xy**2)).neg_().exp_()
        kernel *= _gates(source, destination, here, there)
        most += kernel.sum()
        pull[here].addcmul_(kernel, values[there])
        pull[there].addcmul_(kernel, values[here])
    number = probs[:, :1].numel() if source is None else source.sum().clamp_min(1)
    # Every pair is in two of the sums of pull: the energy is most - p.pull / 2, its slope -pull.
    return ((most + 0.5 * (values * pull).sum()).detach() - (probs * pull).sum()) / number


def _pairs(
    size: Sequence[int], radius: int, spacing: Sequence[float]
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], float]]:
    """Both ends of every displacement but its opposite, as parts of the image, and its squared length."""
    reaches = [min(radius, length - 1) for length in size]
    for step in itertools.product(*[range(-reach, reach + 1) for reach in reaches]):
        if step <= (0,) * len(step):
            continue
        whole = (slice(None), slice(None))
        here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, size, strict=True))
        there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, size, strict=True))
        yield whole + here, whole + there, sum((s * mm) ** 2 for s, mm in zip(step, spacing, strict=True))


def _gates(
    source: Tensor | None, destination: Tensor | None, here: tuple[slice, ...], there: tuple[slice, ...]
) -> Tensor | float:
    """``s_i d_j + s_j d_i`` of pairs."""

    def directed(start: tuple[slice, ...], end: tuple[slice, ...]) -> Tensor | float:
        return (1.0 if source is None else source[start]) * (1.0 if destination is None else destination[end])

    return directed(here, there) + directed(there, here)


def rescaled(image: Tensor) -> Tensor:
    """Every channel of every image from 0 to 1; 0 where it is flat.

    Example:
        >>> rescaled(torch.tensor([[[-1.0, 0.0, 3.0], [2.0, 2.0, 2.0]]]))
        tensor([[[0.0000, 0.2500, 1.0000],
                 [0.0000, 0.0000, 0.0000]]])
    """
    axes = tuple(range(2, image.ndim))
    least, most = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    return (image - least) / (most - least).clamp_min(torch.finfo(image.dtype).tiny)


class GatedCRFLoss(PartialLoss):
    """:class:`.partial.PartialLoss` + ``crf_weight`` :func:`gated_crf`; takes the place of ``CoupledLoss``.

    Args:
        num_classes: L.
        dice_weight: see :class:`.partial.PartialLoss`; the paper has none.
        balanced: see there.
        crf_weight: of the energy; 0 leaves :class:`.partial.PartialLoss`.
        radius: see :func:`gated_crf`.
        sigma_xy: see there.
        sigma_rgb: see there, in shares of the range of each channel.
        spacing: see there.
        reduction: energy of images and probabilities averaged over blocks of this many pixels along every axis.
        gate: ``"all"`` pixels are asked about, or the ``"undrawn"`` ones, whose neighbours may be drawn.

    Raises:
        ValueError: a negative weight, an unknown gate, a reduction below 1; when called, no image.

    Example:
        >>> loss = GatedCRFLoss(num_classes=2, dice_weight=0)
        >>> target = Annotations(positive=torch.tensor([[[0, 1, 255]]]), image=torch.zeros(1, 1, 3))
        >>> round(loss(CoupledOutput(torch.zeros(1, 2, 3)), target).item(), 4)  # log 2 + 0.1 * energy
        0.7904
        >>> round(loss.parts["crf"].item(), 4)
        0.9728
    """

    def __init__(
        self,
        num_classes: int,
        dice_weight: float = 1.0,
        balanced: bool = False,
        crf_weight: float = 0.1,
        radius: int = 5,
        sigma_xy: float = 6.0,
        sigma_rgb: float = 0.1,
        spacing: Sequence[float] | None = None,
        reduction: int = 1,
        gate: str = "all",
    ) -> None:
        super().__init__(num_classes, dice_weight, balanced)
        if crf_weight < 0 or reduction < 1:
            raise ValueError(f"need crf_weight >= 0 and reduction >= 1, got {crf_weight=}, {reduction=}")
        if gate not in GATES:
            raise ValueError(f"gate must be one of {', '.join(GATES)}, got {gate!r}")
        self.crf_weight, self.reduction, self.gate = crf_weight, reduction, gate
        self.radius, self.sigma_xy, self.sigma_rgb, self.spacing = radius, sigma_xy, sigma_rgb, spacing

    def forward(self, output: CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss; its unweighted terms stay in ``parts`` (detached) for logging."""
        partial = super().forward(output, target)
        if self.crf_weight == 0:
            return partial
        if target.image is None:
            raise ValueError("the gated CRF looks at the image: pass Annotations.image to the loss")
        probs, image = output.logits.float().softmax(1), rescaled(target.image.float())
        source = self._undrawn(target).to(probs.dtype) if self.gate == "undrawn" else None
        source = None if source is None else self._reduced(source)
        window = self.radius, self.sigma_xy, self.sigma_rgb, self.spacing
        energy = gated_crf(self._reduced(probs), self._reduced(image), source, None, *window)
        self.parts["crf"] = energy.detach()
        return partial + self.crf_weight * energy

    def _undrawn(self, target: Annotations) -> Tensor:
        """Where nothing is known of the class, ``(B, 1, *S)``."""
        known = [] if target.label is None else [target.label != UNLABELED]
        if target.positive is not None or target.negative is not None:
            known.append(consensus(target, self.num_classes) != UNLABELED)
        return ~torch.stack(known).any(0)

    def _reduced(self, maps: Tensor) -> Tensor:
        if self.reduction == 1:
            return maps
        return F.interpolate(maps, [-(-length // self.reduction) for length in maps.shape[2:]], mode="area")
