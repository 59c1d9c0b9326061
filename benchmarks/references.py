"""What medcoarse is compared with, each written the way its users meet it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage import morphology
from torch import Tensor


def released_dhe_loss(logits: Tensor, matrices: Tensor, annotation: Tensor, trace_weight: float) -> Tensor:
    """The loss of "Disentangling Human Error from the Ground Truth" (NeurIPS 2020), Eq. 4, computed as in its release.

    Pixels are reshaped into a batch of ``L x L`` products (``bmm``), and the product, a probability already, goes
    through cross-entropy, hence through a second softmax. Our own wording of the equation; no line is theirs.

    Args:
        logits: ``(B, L, H, W)``.
        matrices: what the network gives for one annotator, ``(B, L * L, H, W)``; made positive, then normalized.
        annotation: ``(B, H, W)``, int64.
        trace_weight: λ.
    """
    batch, classes, height, width = logits.shape
    pixels = batch * height * width

    def by_pixel(values: Tensor) -> Tensor:
        return values.permute(0, 2, 3, 1).contiguous().view(pixels, classes, -1)

    cm = by_pixel(F.softplus(matrices))
    cm = cm / cm.sum(1, keepdim=True)
    said = torch.bmm(cm, by_pixel(logits.softmax(1)))
    said = said.view(batch, height, width, classes).permute(0, 3, 1, 2).contiguous()
    trace = torch.diagonal(cm, dim1=1, dim2=2).sum() / pixels
    return F.cross_entropy(said, annotation) + trace_weight * trace


def thicken_2d(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Over-segmentation with a disk, as one writes it with scikit-image."""
    grown: NDArray[np.bool_] = morphology.dilation(mask, morphology.disk(radius))
    return grown


def thin_2d(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Under-segmentation that keeps the skeleton, as one writes it with scikit-image."""
    eroded = morphology.erosion(mask, morphology.disk(radius))
    kept: NDArray[np.bool_] = eroded | morphology.skeletonize(mask)
    return kept
