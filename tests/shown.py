"""A network whose output tests can choose."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Shown(nn.Module):
    """A segmenter for images that show their logits; it has one weight, so that it can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.scale * image
