"""One label map drawn again and again: how often each class is drawn at each pixel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medcoarse.transforms.array import SimulateCoarseBatch, checksum, spacing_of

_PIXELS = 2**22  # drawn at a time


def count_drawings(simulate: SimulateCoarseBatch, label: Tensor, num_draws: int) -> Tensor:
    """In how many of `num_draws` drawings of a mask each class was drawn at each pixel.

    Args:
        simulate: who draws. Its seed and the mask decide which drawings are made; none of them is the one that
            `SimulateCoarsed` makes of the mask.
        label: label map (1, *S), whole numbers; drawn at the spacing of a MetaTensor where `simulate` has none of its
            own.
        num_draws: N >= 1.

    Returns:
        int64 (R + C, L, *S), positive annotators first; for negative ones, the class that was ruled out.

    Raises:
        ValueError: no drawing asked for.

    Example:
        >>> label = torch.zeros(1, 16, 16, dtype=torch.uint8); label[:, 4:12, 6:9] = 1
        >>> counts = count_drawings(SimulateCoarseBatch("coarse_positive"), label, num_draws=8)
        >>> counts.shape, counts.sum(1).unique()
        (torch.Size([1, 2, 16, 16]), tensor([8]))
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    spacing = spacing_of(label, simulate.positive.spacing)
    label = torch.as_tensor(label).as_subclass(Tensor).to(torch.uint8)
    seeds = np.random.default_rng(checksum(label)).integers(2**32, 2**63, size=num_draws).tolist()  # a CRC-32 is below
    at_a_time = max(1, _PIXELS // label.numel())
    num_classes = simulate.positive.num_classes
    counts = torch.zeros((), dtype=torch.int64)
    for start in range(0, num_draws, at_a_time):
        own = seeds[start : start + at_a_time]
        drawn = torch.cat(simulate(label.expand(len(own), *label.shape)[:, :1], own, spacing), 1)
        counts = counts + torch.stack([(drawn == k).sum(0) for k in range(num_classes)], 1)
    return counts
