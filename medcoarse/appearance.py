"""The appearance prior: pixels of a class look alike, whatever was drawn on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LEAST_VARIANCE = 1e-2  # within the classes, as a share of the variance of the whole image


def appearance_nll(
    probs: Tensor,
    image: Tensor,
    sigma: float | None = None,
    smoothing: float = 0.0,
    where: Tensor | None = None,
) -> Tensor:
    """Appearance prior: pixels of a class look alike, ``sum_c p_c (x - mean_c)² / (2 v)``.

    A Gaussian for each class with one variance ``v`` for all, the one within the classes. Dividing by it makes the term
    as strong as the image is telling: where the classes look different it decides, where they do not it says little.
    Means and variance are taken under ``p``, over the image or in a Gaussian window, and detached; all pixels take part
    in them, drawn or not, inside a field of view or not.

    Args:
        probs: ``(B, L, *S)``.
        image: ``(B, channels, *S)``; every channel is divided by its own variance, then they are averaged.
        sigma: standard deviation of the window in pixels; ``None`` takes the whole image. The variance in a window is
            that about the mean in the same window.
        smoothing: standard deviation in pixels of a Gaussian that the image is averaged with. Pixel by pixel the prior
            asks the segmenter to follow the noise of the very pixel; half a pixel is enough to break that.
        where: ``(B, 1, *S)``, pixels that the prior is asked about; ``None`` for all.

    Returns:
        Scalar, the mean over these pixels, in nats; 0 where there are none. Taken over all pixels of an image that is
        not flat it is one half, by the choice of ``v``: to follow training, look at other numbers.

    Source: Li et al., "Minimization of region-scalable fitting energy" (IEEE TIP 2008), Eq. 7.
    Deviates: soft memberships in place of level sets, mean over pixels in place of the integral; variance and smoothing
        are ours.

    Example:
        >>> image = torch.tensor([[[0.0, 0.1, 0.0, 1.0, 0.9, 1.0]]])
        >>> right = torch.cat([image < 0.5, image > 0.5], 1).float()
        >>> probs = (0.9 * right + 0.05).requires_grad_()
        >>> (slope,) = torch.autograd.grad(appearance_nll(probs, image), probs)
        >>> bool((slope[:, 0] < slope[:, 1]).equal(image[:, 0] < 0.5))  # downhill is towards the right class
        True
    """
    if smoothing > 0:
        blur = _gaussian_window(smoothing)
        image = blur(image) / blur(torch.ones_like(image[:1, :1]))
    level = image.mean(tuple(range(2, image.ndim)), keepdim=True)
    image = image - level  # so that squares of it can be subtracted from each other
    spread = image.square().mean(tuple(range(2, image.ndim)), keepdim=True)
    smooth = _image_sum if sigma is None else _gaussian_window(sigma)
    parts = [membership[:, None] for membership in probs.detach().unbind(1)]  # (B, 1, *S) each
    masses = [smooth(part).clamp_min(torch.finfo(probs.dtype).tiny) for part in parts]
    means = [smooth(part * image) / mass for part, mass in zip(parts, masses, strict=True)]
    between = torch.stack([mass * mean.square() for mass, mean in zip(masses, means, strict=True)]).sum(0)
    variance = (smooth(image.square()) - between) / torch.stack(masses).sum(0)
    rounding = (64 * torch.finfo(probs.dtype).eps * level).square()  # all that differs within a constant image
    # Of a flat part, such as a black frame, and of a whole image that is flat.
    least = torch.maximum(_LEAST_VARIANCE * spread, rounding).clamp_min(torch.finfo(probs.dtype).tiny)
    precision = 0.5 / variance.maximum(least)
    scaled = torch.stack([((image - mean).square() * precision).mean(1) for mean in means], 1)
    costs = (probs * scaled).sum(1, keepdim=True)
    return costs.mean() if where is None else (costs * where).sum() / where.sum().clamp_min(1)


def _image_sum(values: Tensor) -> Tensor:
    return values.sum(tuple(range(2, values.ndim)), keepdim=True)


def _gaussian_window(sigma: float) -> Callable[[Tensor], Tensor]:
    """Separable Gaussian sum over the image axes, zero outside (the normalization cancels in the mean).

    Shifted copies are added up: for a narrow window several times as fast as a convolution of one channel.
    """
    radius = max(1, round(3 * sigma))
    line = torch.exp(-0.5 * (torch.arange(radius + 1) / sigma) ** 2)
    middle, *weights = (line / (2 * line.sum() - 1)).tolist()

    def smooth(values: Tensor) -> Tensor:
        for axis in range(2, values.ndim):
            total = middle * values
            for step, weight in enumerate(weights[: values.shape[axis] - 1], 1):
                length = values.shape[axis] - step
                ahead, behind = (values.narrow(axis, start, length) for start in (step, 0))
                total.narrow(axis, 0, length).add_(ahead, alpha=weight)
                total.narrow(axis, step, length).add_(behind, alpha=weight)
            values = total
        return values

    return smooth
