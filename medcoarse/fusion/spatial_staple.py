"""Spatial STAPLE: how well each annotator draws, estimated around every voxel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medcoarse.confusion import UNLABELED
from medcoarse.fusion._votes import check_annotations
from medcoarse.fusion.staple import check_stopping, staple

_PIECE = 2**20  # voxels whose posterior is normalized at a time


class SpatialStaple(NamedTuple):
    """What Spatial STAPLE estimates.

    Args:
        probs: posterior of the true class, float32 ``(B, L, *S)``; 0 for all classes where nobody said anything.
        cm: float32 ``(B, R, observed, true, *S)`` if asked for, columns sum to 1; NaN for an annotator who said
            nothing in the image and for a class that is absent.
        global_cm: those of STAPLE, from which it set out and to which they are pulled, ``(B, R, observed, true)``.
        prior: probability of each class before anybody has said anything, float32 ``(B, L)``.
        window: voxels along each axis over which the matrices were pooled.
        iterations: int64 ``(B,)``.
        converged: bool ``(B,)``.
    """

    probs: Tensor
    cm: Tensor | None
    global_cm: Tensor
    prior: Tensor
    window: tuple[int, ...]
    iterations: Tensor
    converged: Tensor


def spatial_staple(
    annotations: Tensor,
    num_classes: int,
    window_mm: float | Sequence[float] | None = None,
    spacing: float | Sequence[float] | None = None,
    bias: float = 4.0,
    prior: Tensor | Sequence[float] | None = None,
    tol: float = 1e-4,
    max_iterations: int = 50,
    return_cm: bool = False,
) -> SpatialStaple:
    """STAPLE with a confusion matrix for every voxel, pooled in a window around it and pulled to the global one.

    ``θ_r,x(i | s) = (mean_{y near x} W_y(s) [D_r(y) = i] + κ_rs θ_r(i | s)) / (mean_{y near x} W_y(s) [r drew y] +
    κ_rs)``, with θ_r from :func:`medcoarse.fusion.staple.staple`, in turn with the posteriors ``W``. The pull to the
    global matrix is measured by what a window holds on average, ``κ_rs = κ mean_y W_y(s) [r drew y]`` over the image
    with ``W`` of STAPLE, because a rare class fills no window. Where the pull is weak (κ < 2) classes are free to swap
    from window to window. Who draws well where shows by what others drew: an image of which no two annotators drew the
    same voxel is left as STAPLE has it.

    Memory beyond inputs and results is about that of two more ``probs`` and a few maps, for any number of annotators;
    the matrices themselves (``R L^2`` maps) exist only if asked for.

    Args:
        annotations: label maps ``(B, R, *S)``, 2D or 3D, 255 where an annotator said nothing.
        num_classes: L.
        window_mm: side of the window, one number or one for each axis; by default a quarter of the image's. It is
            rounded to voxels, and at the border it is moved inside the image, so that all windows are equally large.
        spacing: mm per voxel, one number or one for each axis; by default 1.
        bias: κ, not negative; the weight of the global matrix, in windows that hold as much of a class as the image
            does on average.
        prior: probability of each class ``(L,)``; by default the mean over voxels of the shares of votes.
        tol: stop when no posterior changes by as much.
        max_iterations: stop in any case; ``converged`` tells.
        return_cm: whether to return the matrices at every voxel, ``4 R L^2`` bytes a voxel.

    Returns:
        :class:`SpatialStaple`.

    Raises:
        ValueError: annotations or parameters out of range.

    Source: Asman and Landman 2012, Formulating spatially varying performance in the statistical fusion framework.
    Deviates: windows do not shrink at the border; the pull is measured in what a window holds, so that one value serves
        images of any size and classes of any share.

    Example:
        >>> truth = (torch.arange(32) % 8 < 4).long()
        >>> upside_down = torch.where(torch.arange(32) < 16, truth, 1 - truth)  # right on the left half only
        >>> noisy = [truth.roll(1), truth.roll(-1), truth]
        >>> annotations = torch.stack([upside_down, *noisy])[None, :, None].expand(1, 4, 8, 32)
        >>> result = spatial_staple(annotations, num_classes=2, window_mm=8, bias=1, return_cm=True)
        >>> result.cm[0, 0, 1, 1, 4, [3, 28]].round(decimals=2)  # how often it finds class 1, left and right
        tensor([0.7500, 0.2500])
    """
    annotations = check_annotations(annotations, num_classes)
    window = _window(annotations.shape[2:], window_mm, spacing)
    if not 0 <= bias < math.inf:
        raise ValueError(f"bias must be a finite number >= 0, got {bias}; without spatial variation take staple")
    check_stopping(tol, max_iterations)
    start = staple(annotations, num_classes, prior=prior)
    sides = (1,) * (3 - len(window)) + window
    fields, iterations, converged = [], [], []
    for said, soft, cm, pi in zip(
        _as_volumes(annotations), _as_volumes(start.probs), start.cm, start.prior, strict=True
    ):
        image = _Image(said, cm, pi, sides, bias * _mean_drawn(said, soft))
        alone = bool(((said != UNLABELED).sum(0) < 2).all())
        number, change = 0, 0.0 if alone else math.inf
        while number < max_iterations and change >= tol:
            number, change = number + 1, image.improve(soft)
        soft.masked_fill_((said == UNLABELED).all(0), 0)
        iterations.append(number)
        converged.append(change < tol)
        if return_cm:
            fields.append(image.fields(soft).view(*cm.shape, *annotations.shape[2:]))
    return SpatialStaple(
        start.probs,
        torch.stack(fields) if return_cm else None,
        start.cm,
        start.prior,
        window,
        torch.tensor(iterations, device=start.probs.device),
        torch.tensor(converged, device=start.probs.device),
    )


def _mean_drawn(said: Tensor, soft: Tensor) -> Tensor:
    """How much of each class an annotator drew on, as a share of the image, ``(R, L)``."""
    drew = (said != UNLABELED).flatten(1)
    return torch.stack([torch.stack([(probs * own).mean() for probs in soft.flatten(1)]) for own in drew])


def _as_volumes(maps: Tensor) -> Tensor:
    """``(B, C, *S) -> (B, C, depth, height, width)``, a view, with depth 1 in 2D."""
    return maps.view(*maps.shape[:2], *(1,) * (5 - maps.ndim), *maps.shape[2:])


class _Image(NamedTuple):
    """One image: the label maps ``said (R, D, H, W)`` and what the matrices at its voxels depend on.

    Args:
        said: 255 where an annotator said nothing.
        cm: the global matrices ``(R, L, L)``.
        prior: ``(L,)``.
        window: its sides in voxels, three of them.
        pull: κ of each annotator and class ``(R, L)``.
    """

    said: Tensor
    cm: Tensor
    prior: Tensor
    window: tuple[int, ...]
    pull: Tensor

    def improve(self, soft: Tensor) -> float:
        """One M and one E step: replace the posteriors ``(L, D, H, W)`` and return by how much they changed."""
        log_soft = torch.empty_like(soft)
        for s, total in enumerate(log_soft):
            total.fill_(self.prior[s].log())
            for r, columns in self._matrices(soft[s], s):
                for i, theta in enumerate(columns):
                    log_theta = self._spread(theta.clamp_(min=torch.finfo(theta.dtype).tiny).log_())  # never -inf
                    total.addcmul_(log_theta, self._drew(r, i))
        change = 0.0
        pieces = (torch.split(x.flatten(1), _PIECE, 1) for x in (soft, log_soft))
        for old, new in zip(*pieces, strict=True):
            current = new.softmax(0)
            change = max(change, (current - old).abs().max().item())
            old.copy_(current)
        return change

    def fields(self, soft: Tensor) -> Tensor:
        """The matrices at every voxel, ``(R, L, L, D, H, W)``."""
        fields = soft.new_full((*self.cm.shape, *soft.shape[1:]), torch.nan)
        for s in range(len(soft)):
            for r, columns in self._matrices(soft[s], s):
                for i, theta in enumerate(columns):
                    fields[r, i, s] = self._spread(theta)
        return fields

    def _matrices(self, soft: Tensor, s: int) -> Iterator[tuple[int, Tensor]]:
        """``θ_r(. | s)`` in every window that lies inside the image: r and L maps, one annotator after the other."""
        for r, matrix in enumerate(self.cm):
            overall = matrix[:, s].view(-1, 1, 1, 1)
            if overall.isnan().any():  # said nothing, or the class is absent
                continue
            found = torch.stack([self._pooled(soft * self._drew(r, i)) for i in range(len(matrix))])
            drawn, pull = found.sum(0), self.pull[r, s].item()
            found.add_(overall, alpha=pull).div_(drawn + pull)
            yield r, found if pull > 0 else torch.where(drawn > 0, found, overall)

    def _drew(self, r: int, i: int) -> Tensor:
        """1.0 where annotator r said class i, 0.0 elsewhere: products are several times faster than choices."""
        return (self.said[r] == i).to(self.cm.dtype)

    def _pooled(self, values: Tensor) -> Tensor:
        """Mean in every window that lies inside the image."""
        for axis in (2, 1, 0):
            values = _moving_sum(values, axis, self.window[axis])
        return values.div(math.prod(self.window)).clamp_(min=0)

    def _spread(self, pooled: Tensor) -> Tensor:
        """To every voxel the window around it, near the border the outermost one."""
        padding = [n for width in reversed(self.window) for n in ((width - 1) // 2, width // 2)]
        return F.pad(pooled[None, None], padding, mode="replicate")[0, 0]


def _moving_sum(values: Tensor, axis: int, width: int) -> Tensor:
    """Sum of ``width`` neighbours along an axis, where all of them exist.

    Example:
        >>> _moving_sum(torch.tensor([[[1.0, 3.0, 5.0, 1.0]]]), axis=2, width=2)
        tensor([[[4., 8., 6.]]])
    """
    if width == 1:
        return values
    number = values.shape[axis] - width + 1
    total = _cumulative(values, axis)
    sums = total.narrow(axis, width - 1, number).clone()
    sums.narrow(axis, 1, number - 1).sub_(total.narrow(axis, 0, number - 1))
    return sums


def _cumulative(values: Tensor, axis: int) -> Tensor:
    """``cumsum``; slice by slice along all axes but the last, which is several times faster on a CPU."""
    if axis == values.ndim - 1 or values.is_cuda:
        return values.cumsum(axis)
    total = torch.empty_like(values, memory_format=torch.contiguous_format)
    total.select(axis, 0).copy_(values.select(axis, 0))
    for n in range(1, values.shape[axis]):
        torch.add(total.select(axis, n - 1), values.select(axis, n), out=total.select(axis, n))
    return total


def _window(
    shape: Sequence[int], window_mm: float | Sequence[float] | None, spacing: float | Sequence[float] | None
) -> tuple[int, ...]:
    """Side of the window in voxels along each axis, from 1 to the image's."""
    if len(shape) not in (2, 3):
        raise ValueError(f"annotations must be (B, R, H, W) or (B, R, D, H, W), got {len(shape)} spatial axes")
    voxel = _for_each_axis(1.0 if spacing is None else spacing, len(shape), "spacing")
    side = [n * v / 4 for n, v in zip(shape, voxel, strict=True)]
    if window_mm is not None:
        side = _for_each_axis(window_mm, len(shape), "window_mm")
    return tuple(min(n, max(1, round(w / v))) for n, w, v in zip(shape, side, voxel, strict=True))


def _for_each_axis(value: float | Sequence[float], number: int, name: str) -> list[float]:
    values = [float(value)] * number if isinstance(value, int | float) else [float(v) for v in value]
    if len(values) != number or not all(0 < v < math.inf for v in values):
        raise ValueError(f"{name} must be one positive number, or {number}, one for each axis, got {value!r}")
    return values
