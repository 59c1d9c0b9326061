"""Gaussian blur and one global threshold: what an image gives away without any learning to speak of."""

from __future__ import annotations

import torch
from monai.networks.layers.simplelayers import GaussianFilter
from torch import Tensor, nn


class BlurThreshold(nn.Module):
    """Two numbers in place of a network: ``logit of class 1 = steepness (blur(x) - threshold)``.

    Args:
        spatial_dims: 2 or 3.
        sigma: standard deviation of the blur in pixels.
        threshold: where it starts; both numbers are learned.
        steepness: where it starts.

    The image must have one channel, in which class 1 is brighter (or, with a negative steepness, darker).

    Source: any textbook.

    Example:
        >>> network = BlurThreshold(spatial_dims=2, sigma=1.0)
        >>> network(torch.tensor([[[[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]]]).expand(1, 1, 9, 6)).argmax(1)[0, 4]
        tensor([0, 0, 0, 1, 1, 1])
    """

    def __init__(self, spatial_dims: int, sigma: float = 1.0, threshold: float = 0.5, steepness: float = 10.0) -> None:
        super().__init__()
        self.blur = GaussianFilter(spatial_dims, sigma)
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        self.steepness = nn.Parameter(torch.tensor(float(steepness)))

    def forward(self, image: Tensor) -> Tensor:
        """``(B, 1, *S) -> (B, 2, *S)``."""
        if image.shape[1] != 1:
            raise ValueError(f"BlurThreshold looks at one channel, got {image.shape[1]}")
        score = self.steepness * (self.blur(image) - self.threshold) / 2
        return torch.cat([-score, score], 1)
