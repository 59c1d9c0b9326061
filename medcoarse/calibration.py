"""Whether predicted probabilities can be believed: calibration error, Brier score and likelihood of labels.

Convention:
    Count first, divide once. `reliability_table` and `scoring_sums` give one table an image that can be added up; the
    score of a table is that of all the pixels in it. So `expected_calibration_error(tables)` is one number an image and
    `expected_calibration_error(tables.sum(0))` that of the data set. Pixels labelled 255 or outside the field of view
    are in no table.

`monai.metrics.CalibrationErrorMetric` (MONAI 1.6) averages the errors of images and classes, each of which weighs the
same however few pixels it has, and it can't leave out unlabeled pixels: a one-hot label of zeros counts there as a
miss of every class. It counts in single precision, which ends at 16.7 million pixels a bin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medcoarse.confusion import UNLABELED

PIXELS, PROBABILITY, HITS = range(3)  # last axis of a reliability table
BRIER, NLL = 1, 2  # last axis of scoring sums; the first are again the pixels

TEMPERATURES = (0.02, 50.0)
"""A temperature is looked for between these; where every pixel is right, or wrong, there is none that is best."""

_BISECTIONS = 40
_TOLERANCE = 1e-3  # how far the probabilities of a pixel may be from a sum of 1, unless their type is coarser


def reliability_table(
    probs: Tensor,
    label: Tensor,
    num_bins: int = 15,
    class_index: int | None = None,
    mask: Tensor | None = None,
    softmax: bool = False,
) -> Tensor:
    """Pixels by their probability: how many, how sure, and how many of them right; one table an image.

    Bin `i` of `n` holds the probabilities in `[i / n, (i + 1) / n)`, the last one 1 as well.

    Args:
        probs: class probabilities (B, L, *S).
        label: true classes (B, 1, *S), 255 where unknown.
        num_bins: n, at least 1.
        class_index: the class whose probability is looked at, which is right where that class is true. By default it
            is the largest probability of each pixel, the confidence; where most pixels are background, it says little
            of anything else.
        mask: field of view (B, 1, *S); pixels where it is zero are left out.
        softmax: `probs` are logits.

    Returns:
        float64 (B, num_bins, 3): number of pixels, sum of their probabilities, number of hits.

    Raises:
        ValueError: shapes do not match, a class or bin number out of range, or numbers that are no probabilities.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.

    Example:
        >>> vessel = torch.tensor([[0.9, 0.8, 0.8, 0.1]])
        >>> probs, label = torch.stack([1 - vessel, vessel], 1), torch.tensor([[[1, 1, 0, 255]]])
        >>> reliability_table(probs, label, num_bins=2, class_index=1)
        tensor([[[0.0000, 0.0000, 0.0000],
                 [3.0000, 2.5000, 2.0000]]], dtype=torch.float64)
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    probs, label, keep = _checked(probs, label, mask)
    if class_index is not None and not 0 <= class_index < probs.shape[1]:
        raise ValueError(f"class_index must be in 0 .. {probs.shape[1] - 1} or None for the largest, got {class_index}")
    table = torch.zeros((len(label), 3, num_bins), dtype=torch.float64, device=probs.device)
    for b in range(len(label)):  # image by image, so that what is in double precision is one image
        pixels, true = _known(probs[b], label[b], keep[b])
        p = _probabilities(pixels, softmax, probs.dtype)
        chosen, said = p.max(0) if class_index is None else (p[class_index], class_index)
        place = (chosen * num_bins).long().clamp_(max=num_bins - 1)
        for row, values in enumerate((torch.ones_like(chosen), chosen, (true == said).double())):
            table[b, row].index_add_(0, place, values)
    return table.mT


def expected_calibration_error(table: Tensor) -> Tensor:
    """Expected calibration error: by how much the probabilities are off on average, each bin by its pixels.

    `sum_i (n_i / N) |mean probability_i - share of hits_i| = sum_i |summed probability_i - hits_i| / N`

    Args:
        table: (..., num_bins, 3) of `reliability_table`, or a sum of such.

    Returns:
        float64 (...) in [0, 1]; NaN where no pixel was counted.

    Raises:
        ValueError: no such table.

    Source: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.

    Example:
        >>> tables = torch.tensor([[[4.0, 1.0, 2.0], [6.0, 5.0, 5.0]], [[4.0, 2.0, 1.0], [0.0, 0.0, 0.0]]])
        >>> expected_calibration_error(tables), expected_calibration_error(tables.sum(0))
        (tensor([0.1000, 0.2500]), tensor(0.))
    """
    _check_table("table", table)
    return (table[..., PROBABILITY] - table[..., HITS]).abs().sum(-1) / table[..., PIXELS].sum(-1)


def scoring_sums(probs: Tensor, label: Tensor, mask: Tensor | None = None, softmax: bool = False) -> Tensor:
    """What `brier_score` and `negative_log_likelihood` are divided out of: sums over the pixels of each image.

    Args:
        probs: class probabilities (B, L, *S).
        label: true classes (B, 1, *S), 255 where unknown.
        mask: field of view (B, 1, *S); pixels where it is zero are left out.
        softmax: `probs` are logits; a likelihood too small for a probability is finite then.

    Returns:
        float64 (B, 3): number of pixels, sum of `sum_k (p_k - [label = k])^2`, sum of `-log p_label`.

    Raises:
        ValueError: shapes do not match, or numbers that are no probabilities.

    Example:
        >>> probs, label = torch.tensor([[[0.5, 0.2], [0.5, 0.8]]]), torch.tensor([[[1, 255]]])
        >>> scoring_sums(probs, label)
        tensor([[1.0000, 0.5000, 0.6931]], dtype=torch.float64)
    """
    probs, label, keep = _checked(probs, label, mask)
    sums = torch.zeros((len(label), 3), dtype=torch.float64, device=probs.device)
    for b in range(len(label)):
        pixels, true = _known(probs[b], label[b], keep[b])
        p = _probabilities(pixels, softmax, probs.dtype)
        log_p = pixels.log_softmax(0) if softmax else p.log()
        brier = p.square().sum(0) + 1 - 2 * p.gather(0, true[None])[0]
        sums[b] = torch.stack([brier.new_tensor(brier.numel()), brier.sum(), -log_p.gather(0, true[None]).sum()])
    return sums


def brier_score(sums: Tensor) -> Tensor:
    """Brier score: mean squared distance of the probabilities from the one-hot truth.

    `mean_x sum_k (p_k(x) - [label(x) = k])^2`, 0 at best, 2 at worst. With two classes it is twice the score that looks
    at one of them only.

    Args:
        sums: (..., 3) of `scoring_sums`, or a sum of such.

    Returns:
        (...); NaN where no pixel was counted.

    Source: Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.

    Example:
        >>> brier_score(torch.tensor([4.0, 1.0, 2.0]))
        tensor(0.2500)
    """
    _check_table("sums", sums)
    return sums[..., BRIER] / sums[..., PIXELS]


def negative_log_likelihood(sums: Tensor) -> Tensor:
    """Negative log-likelihood of a pixel's label in nats, `mean_x -log p_label(x)`.

    Args:
        sums: (..., 3) of `scoring_sums`, or a sum of such.

    Returns:
        (...) >= 0; infinite where a label was given probability 0, NaN where no pixel was counted.

    Example:
        >>> negative_log_likelihood(torch.tensor([4.0, 1.0, 2.0]))
        tensor(0.5000)
    """
    _check_table("sums", sums)
    return sums[..., NLL] / sums[..., PIXELS]


def fit_temperature(logits: Sequence[Tensor], labels: Sequence[Tensor], masks: Sequence[Tensor] | None = None) -> float:
    """The temperature T at which `softmax(logits / T)` says most of the labels: one number for a network.

    The mean negative log-likelihood is convex in `1 / T`; its slope there, `mean_x (sum_k p_k z_k - z_label)`, is
    brought to zero by bisection. T = 1 is kept where nothing is better, so the likelihood never gets worse on what it
    was fitted to. Above 1, the network was too sure of itself. Which class is the most likely does not change.

    Args:
        logits: of each image, (B, L, *S); the images may differ in size.
        labels: true classes (B, 1, *S), 255 where unknown.
        masks: fields of view (B, 1, *S); pixels where it is zero are left out.

    Returns:
        T in `TEMPERATURES`.

    Raises:
        ValueError: shapes do not match, or no pixel whose class is known.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.

    Example:
        >>> logits = torch.log(torch.tensor([[[0.9] * 4, [0.1] * 4]])) * 3  # three times too sure that it is class 0
        >>> seen = torch.zeros(1, 1, 10)
        >>> seen[..., 0] = 1
        >>> round(fit_temperature([logits[..., :1].expand(1, 2, 10)], [seen]), 4)
        3.0
    """
    kept = [None] * len(logits) if masks is None else masks
    pixels, true = [], []
    for z, label, mask in zip(logits, labels, kept, strict=True):
        flat, classes, keep = _checked(z, label, mask)
        for b in range(len(classes)):
            known, said = _known(flat[b], classes[b], keep[b])
            pixels.append(known.float() if z.dtype != torch.float64 else known)
            true.append(said)
    number = sum(map(len, true))
    if not number:
        raise ValueError("there is no pixel whose class is known; temperature scaling needs masks")
    low, high = (math.log(1 / bound) for bound in reversed(TEMPERATURES))  # of log 1 / T
    # Where all are right, the slope vanishes in single precision before the bound is reached: hence <= below.
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _slope(pixels, true, math.exp(middle)) <= 0:
            low = middle
        else:
            high = middle
    found = math.exp((low + high) / 2)
    best = found if _likelihood(pixels, true, found) < _likelihood(pixels, true, 1.0) else 1.0
    return 1 / best


def _slope(pixels: Sequence[Tensor], true: Sequence[Tensor], scale: float) -> float:
    """Of the summed negative log-likelihood, in the factor of the logits."""
    return sum(
        float(((z * scale).softmax(0).mul(z).sum(0) - z.gather(0, said[None])[0]).double().sum())
        for z, said in zip(pixels, true, strict=True)
    )


def _likelihood(pixels: Sequence[Tensor], true: Sequence[Tensor], scale: float) -> float:
    """The summed negative log-likelihood."""
    return sum(
        float(-(z * scale).double().log_softmax(0).gather(0, said[None]).sum())
        for z, said in zip(pixels, true, strict=True)
    )


def _checked(probs: Tensor, label: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both with one axis of pixels and without MONAI's meta data, and which pixels count, bool (B, pixels)."""
    shape = (len(probs), 1, *probs.shape[2:])
    if probs.ndim < 3 or probs.shape[1] < 2 or not probs.is_floating_point():
        raise ValueError(
            f"probs must be floating point (B, L, *S) with L >= 2, got {probs.dtype} {tuple(probs.shape)}; give the "
            "background a channel of its own"
        )
    for name, x in (("label", label), ("mask", mask)):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} must be {shape} to match probs, got {tuple(x.shape)}; crop them together")
    probs, label = (x.detach().as_subclass(Tensor) for x in (probs, label))
    label = label.to(probs.device).flatten(1)
    keep = label != UNLABELED
    if mask is not None:
        keep &= mask.as_subclass(Tensor).to(probs.device).flatten(1) != 0
    return probs.flatten(2), label, keep


def _known(probs: Tensor, label: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (L, pixels) in double precision and true classes (pixels,) of the pixels that count."""
    pixels, values = probs[:, keep].double(), label[keep]
    true = values.long()
    wrong = (true != values) | (true < 0) | (true >= len(probs))
    if wrong.any():
        raise ValueError(
            f"label must hold classes 0 .. {len(probs) - 1} or {UNLABELED}, got {values[wrong][0].item():g}; check the "
            "number of channels of probs, and resample labels by nearest neighbour"
        )
    if pixels.isnan().any():
        raise ValueError("probs holds NaN; the network has diverged, or its input holds NaN")
    return pixels, true


def _probabilities(pixels: Tensor, softmax: bool, dtype: torch.dtype) -> Tensor:
    if softmax:
        return pixels.softmax(0)
    tolerance = max(_TOLERANCE, torch.finfo(dtype).eps)
    if pixels.numel() and not (pixels.min() >= 0 and (pixels.sum(0) - 1).abs().max() <= tolerance):
        low, high = pixels.aminmax()
        raise ValueError(
            f"probs must be >= 0 and sum to 1 over the classes, got numbers from {low.item():g} to {high.item():g}; "
            "pass softmax=True for logits"
        )
    return pixels


def _check_table(name: str, table: Tensor) -> None:
    if table.ndim < 1 or table.shape[-1] != 3 or not table.is_floating_point():
        raise ValueError(f"{name} must be floating point (..., 3), got {table.dtype} {tuple(table.shape)}")
