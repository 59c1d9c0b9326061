"""A loss that asks a segmentation to change class where the mask does."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medcoarse.confusion import UNLABELED, Annotations, CoupledOutput
from medcoarse.losses import CoupledLoss

_FLAT = 1e-8  # a slope above it is a boundary


def slopes(memberships: Tensor) -> Tensor:
    """How steeply each class begins or ends, ``Γ_l = ‖∇ y_l‖₂`` by central differences.

    Args:
        memberships: ``(B, L, *S)``, of every class at every pixel; beyond the border the image goes on as it ends.

    Returns:
        ``(B, L, *S)``; where it is 0 it has no gradient either.

    Example:
        >>> slopes(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]))
        tensor([[[0.0000, 0.5000, 0.5000, 0.0000]]])
    """
    squares = torch.zeros_like(memberships)
    for axis in range(2, memberships.ndim):
        squares = squares + ((_shifted(memberships, axis, 1) - _shifted(memberships, axis, -1)) / 2).square()
    steep = squares > 0
    return squares.where(steep, 1.0).sqrt().where(steep, 0.0)  # the root of 0 has no finite slope


def boundary_loss(memberships: Tensor, label: Tensor) -> Tensor:
    """How far the class boundaries of a segmentation are from those of a mask.

    ``½ mean |Γ - Γ*|`` over the boundary of the mask (``Γ* > 1e-8``) ``+ ½ mean |Γ - Γ*|`` over that of the
    segmentation (``Γ > 1e-8``), with :func:`slopes` Γ of the segmentation and Γ* of the mask.

    Args:
        memberships: ``(B, L, *S)``, one-hot.
        label: ``(B, 1, *S)``, classes or 255. Slopes that would need a pixel with 255 are left out.

    Returns:
        Scalar >= 0; 0 for a segmentation equal to the mask. A mean over no boundary is 0.

    Source: Das et al. (WACV 2023), boundary loss with λ1 = λ2 = ½; Takikawa et al., Gated-SCNN (ICCV 2019), dual task.
    Deviates: the papers do not say what is differentiated when there are several classes; here each class has a
        boundary of its own, so that one between the wrong classes does not count as found.

    Example:
        >>> mask = torch.tensor([[[0, 0, 1, 1]]])
        >>> one_hot = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]])
        >>> boundary_loss(one_hot, mask), boundary_loss(one_hot.roll(1, 1), mask)  # a swap has the same boundary
        (tensor(0.), tensor(0.))
        >>> boundary_loss(torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]]]), mask)  # a pixel off
        tensor(0.2500)
    """
    num_classes = memberships.shape[1]
    known = label != UNLABELED
    wanted = F.one_hot(label[:, 0].masked_fill(~known[:, 0], 0).long(), num_classes).movedim(-1, 1).to(memberships)
    for axis in range(2, label.ndim):
        known = known & _shifted(label, axis, 1).ne(UNLABELED) & _shifted(label, axis, -1).ne(UNLABELED)
    found, true = slopes(memberships), slopes(wanted)
    error = (found - true).abs()
    return 0.5 * _mean(error, (true > _FLAT) & known) + 0.5 * _mean(error, (found.detach() > _FLAT) & known)


def _shifted(values: Tensor, axis: int, step: int) -> Tensor:
    """The neighbour of every pixel, one step along an axis; at the border the pixel itself."""
    last = values.shape[axis] - 1
    places = (torch.arange(last + 1, device=values.device) + step).clamp(0, last)
    return values.index_select(axis, places)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return values.where(where, 0.0).sum() / where.sum().clamp_min(1)


class BoundaryLoss(CoupledLoss):
    """The coupled loss, and beside synthetic images their boundaries; takes the place of ``CoupledLoss``.

    The segmentation is sampled, ``argmax(z + Gumbel noise)``, with the gradient of the softmax of the same (straight
    through). ``Annotations.synthetic``, ``(B,)``, says which images are synthetic; without it none is.

    Args:
        num_classes: L.
        boundary_weight: of :func:`boundary_loss`; 0 leaves it out.
        temperature: of the softmax; small is close to the sample and has a rough gradient.
        options: of :class:`medcoarse.losses.CoupledLoss`.

    Raises:
        ValueError: a negative weight, a temperature that is not above 0, or synthetic images without masks.

    Source: Das et al. (WACV 2023). The weight of the term is not given there.

    Example:
        >>> loss = BoundaryLoss(num_classes=2)
        >>> target = Annotations(label=torch.tensor([[[0, 0, 1, 1]]]), synthetic=torch.tensor([True]))
        >>> _ = loss(CoupledOutput(torch.zeros(1, 2, 4)), target)
        >>> sorted(loss.parts)
        ['boundary', 'dense']
    """

    def __init__(
        self, num_classes: int, boundary_weight: float = 1.0, temperature: float = 1.0, **options: Any
    ) -> None:
        super().__init__(num_classes, **options)
        if boundary_weight < 0:
            raise ValueError(f"boundary_weight must not be negative, got {boundary_weight}")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.boundary_weight, self.temperature = boundary_weight, temperature

    def forward(self, output: CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss; its unweighted terms stay in ``parts``, detached."""
        value = super().forward(output, target)
        which = None if target.synthetic is None else target.synthetic.flatten().bool()
        if self.boundary_weight == 0 or which is None or not which.any():
            return value
        if target.label is None:
            raise ValueError("synthetic images need a mask, Annotations.label; let the loss see the key label")
        sampled = F.gumbel_softmax(output.logits[which].float(), tau=self.temperature, hard=True, dim=1)
        boundary = boundary_loss(sampled, target.label[which])
        self.parts["boundary"] = boundary.detach()
        return value + self.boundary_weight * boundary
