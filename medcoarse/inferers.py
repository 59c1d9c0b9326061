"""Segmentation of large pictures: windows of bounded memory, several scales, mirrored or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers.inferer import Inferer, SlidingWindowInferer
from monai.transforms import Resize
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def scaled_views(
    image: Tensor,
    predict: Callable[[Tensor], Tensor],
    scales: Sequence[float] = (0.5, 1.0, 2.0),
    flip_axes: Sequence[int] = (0,),
    resize: Callable[[Tensor, float], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Logits of an image at several scales, each as it is and mirrored, back on the image's own grid.

    Args:
        image: ``(B, C, *S)``, 2D or 3D.
        predict: logits ``(B, L, *S)`` of such an image, of any size.
        scales: of the image's sides.
        flip_axes: spatial axes that are mirrored; every combination of them is a view, so n axes make ``2^n`` views a
            scale. Images that Pillow read have their columns in axis 0.
        resize: the image at a scale; ``None`` interpolates linearly, without smoothing.

    Yields:
        ``len(scales) * 2 ** len(flip_axes)`` maps of logits.

    Raises:
        ValueError: a scale that is not above 0, or an axis that the image does not have.

    Deviates: MONAI's ``TestTimeAugmentation`` draws its views at random, and brings them back by nearest neighbour.

    Example:
        >>> image = torch.arange(4.0).view(1, 1, 4)
        >>> [view.flatten().tolist() for view in scaled_views(image, lambda x: x, scales=[1])]
        [[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]]
    """
    dims = image.ndim - 2
    if min(scales, default=0) <= 0:
        raise ValueError(f"scales must be above 0, got {list(scales)}")
    if any(not 0 <= axis < dims for axis in flip_axes):
        raise ValueError(f"flip_axes must be spatial axes from 0 to {dims - 1}, got {list(flip_axes)}")
    size = tuple(image.shape[2:])
    for scale in scales:
        resized = (resize or _interpolated_by)(image, scale)
        for flips in product((False, True), repeat=len(flip_axes)):
            axes = [2 + axis for axis, flip in zip(flip_axes, flips, strict=True) if flip]
            logits = predict(resized.flip(axes) if axes else resized)
            yield _interpolated(logits.flip(axes) if axes else logits, size)


def _interpolated_by(image: Tensor, scale: float) -> Tensor:
    return _interpolated(image, [max(1, round(scale * side)) for side in image.shape[2:]])


def _interpolated(values: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return F.interpolate(values, tuple(size), mode=_INTERPOLATION[values.ndim - 2], align_corners=False)


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
        longest = self.longest_side or max(inputs.shape[2:])

        def predict(seen: Tensor) -> Tensor:
            return torch.as_tensor(self.windows(seen, network, *args, **kwargs))

        def resize(picture: Tensor, scale: float) -> Tensor:
            return _resized(picture, round(scale * longest))

        return scaled_views(inputs, predict, self.scales, (0,) if self.flip else (), resize)


def _resized(inputs: Tensor, longest: int) -> Tensor:
    """As the transforms of the bundle do it: smoothed before it is made smaller."""
    if longest == max(inputs.shape[2:]):
        return torch.as_tensor(inputs)
    resize = Resize(longest, size_mode="longest", mode="bilinear", anti_aliasing=True)
    return torch.stack([torch.as_tensor(resize(picture)) for picture in torch.as_tensor(inputs)])
