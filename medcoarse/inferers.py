"""Segmentation of large pictures: windows of bounded memory, several scales, mirrored or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers.inferer import Inferer, SlidingWindowInferer
from monai.transforms import Resize
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor


class MultiScaleInferer(Inferer):
    """Look at a picture at several scales, mirrored or not, window by window, and average the class probabilities.

    Args:
        roi_size: of a window, at each scale; what is smaller is padded.
        longest_side: pixels along the longest side of the picture at scale 1, the size that the network was trained on;
            ``None`` takes pictures as they are.
        scales: factors > 0, relative to that.
        flip: also mirrored along the first spatial axis, which in MONAI's arrays of photographs is left to right.
        sw_batch_size: windows at a time.
        overlap: of neighbouring windows.

    Raises:
        ValueError: no scale, or one that is not above 0.

    Example:
        >>> inferer = MultiScaleInferer([8, 8], scales=[0.5, 1.0], flip=True)
        >>> probs = inferer(torch.rand(1, 3, 12, 10), torch.nn.Conv2d(3, 4, 1))
        >>> probs.shape, bool(torch.allclose(probs.sum(1), torch.ones(1, 12, 10)))
        (torch.Size([1, 4, 12, 10]), True)
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        longest_side: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        sw_batch_size: int = 1,
        overlap: float = 0.25,
    ) -> None:
        super().__init__()
        if not scales or not min(scales) > 0:
            raise ValueError(f"scales must be one or more numbers above 0, got {list(scales)}")
        self.longest_side, self.scales, self.flip = longest_side, tuple(scales), flip
        self.windows = SlidingWindowInferer(roi_size, sw_batch_size, overlap, mode="gaussian")

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Mean of the class probabilities over all views, ``(B, L, *S)``."""
        total: Tensor | None = None
        for logits in self.views(inputs, network, *args, **kwargs):
            probs = logits.softmax(1)
            total = probs if total is None else total.add_(probs)
        assert total is not None
        mean: Tensor = convert_to_dst_type(total.div_(self.num_views), inputs)[0]  # with the name of the picture
        return mean

    @property
    def num_views(self) -> int:
        """How many `views` there are."""
        return len(self.scales) * (1 + self.flip)

    def views(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Iterator[Tensor]:
        """Class scores ``(B, L, *S)`` of one view after the other, each on the grid of the picture."""
        size = tuple(inputs.shape[2:])
        longest = self.longest_side or max(size)
        for scale in self.scales:
            resized = _resized(inputs, round(scale * longest))
            for mirrored in (False, True)[: 1 + self.flip]:
                seen = resized.flip(2) if mirrored else resized
                logits = torch.as_tensor(self.windows(seen, network, *args, **kwargs))
                logits = logits.flip(2) if mirrored else logits
                if tuple(logits.shape[2:]) != size:
                    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
                yield logits


def _resized(inputs: Tensor, longest: int) -> Tensor:
    """As the transforms of the bundle do it: smoothed before it is made smaller."""
    if longest == max(inputs.shape[2:]):
        return torch.as_tensor(inputs)
    resize = Resize(longest, size_mode="longest", mode="bilinear", anti_aliasing=True)
    return torch.stack([torch.as_tensor(resize(picture)) for picture in torch.as_tensor(inputs)])
