"""Likelihoods of coarse drawings, given a segmentation and how its annotators err. One equation is one pure function.

Convention: ``log_probs (B, L, *S)`` are the segmenter's log-probabilities, annotations are integer maps with
``UNLABELED = 255`` where nothing was drawn; such pixels contribute nothing, in value and in gradient. An annotator who
drew nothing contributes exactly 0. All sums are in log space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medcoarse.confusion import UNLABELED, Confusion


def coarse_nll(log_probs: Tensor, confusion: Confusion, annotation: Tensor, balance: float = 0.0) -> Tensor:
    """Negative log-likelihood of positive drawings, ``-log sum_j A[y, j] p_j``.

    Args:
        log_probs: ``(B, L, *S)``.
        confusion: of R annotators.
        annotation: ``(B, R, *S)``, class drawn or 255.
        balance: of the classes drawn, see :func:`class_weights`.

    Returns:
        Scalar: the mean over the drawn pixels of each annotator, summed over the annotators, in nats.

    Source: CL Eq. 3; DHE Eq. 3.
    Deviates: from the code released with DHE, which applies a second softmax to these probabilities.

    Example:
        >>> from medcoarse.confusion import IdentityConfusion
        >>> log_probs = torch.tensor([0.2, 0.8]).log().view(1, 2, 1, 1)
        >>> coarse_nll(log_probs, IdentityConfusion(1), torch.tensor([[[[1]]]]))  # -log 0.8
        tensor(0.2231)
    """
    drawn = annotation != UNLABELED
    likelihood = confusion.log_likelihood(log_probs, annotation.masked_fill(~drawn, 0).long())
    return -_mean(likelihood, annotation, balance).sum()


def complementary_nll(log_probs: Tensor, confusion: Confusion, log_transition: Tensor, annotation: Tensor) -> Tensor:
    """Negative log-likelihood of negative drawings, ``-log sum_i M[c, i] u_i`` with ``u = A p``.

    Args:
        log_probs: ``(B, L, *S)``.
        confusion: of C negative annotators.
        log_transition: ``log M``, ``(L, L)``, ``-inf`` on the diagonal.
        annotation: ``(B, C, *S)``, class that the pixel is *not*, or 255.

    Returns:
        Scalar, as :func:`coarse_nll`.

    Source: CL Eq. 5.
    Deviates: uses ``M u``, not the printed ``M^T u``; see :func:`medcoarse.confusion.complement`.

    Example:
        >>> from medcoarse.confusion import IdentityConfusion, swap_transition
        >>> log_probs = torch.tensor([0.2, 0.3, 0.5]).log().view(1, 3, 1)
        >>> log_m = swap_transition(3).log()
        >>> nll = complementary_nll(log_probs, IdentityConfusion(1), log_m, torch.tensor([[[2]]]))
        >>> round(nll.exp().item(), 4)  # p("not 2") = (0.2 + 0.3) / 2
        4.0
    """
    likelihood = complementary_log_likelihood(log_transition, log_probs, confusion, annotation)
    return -mean_drawn(likelihood, annotation != UNLABELED).sum()


def complementary_log_likelihood(
    log_transition: Tensor, log_probs: Tensor, confusion: Confusion, annotation: Tensor
) -> Tensor:
    """``log sum_i M[c, i] u_i`` at every pixel, ``(B, C, *S)``; anything where nothing was drawn.

    The arguments are those of :func:`complementary_nll`, which is minus its mean over what was drawn.

    Example:
        >>> from medcoarse.confusion import IdentityConfusion, swap_transition
        >>> log_probs = torch.tensor([0.2, 0.8]).log().view(1, 2, 1)
        >>> not_1 = torch.tensor([[[1]]])
        >>> complementary_log_likelihood(swap_transition(2).log(), log_probs, IdentityConfusion(1), not_1).exp()
        tensor([[[0.2000]]])
    """
    drawn = annotation != UNLABELED
    observed = annotation.masked_fill(~drawn, 0).long()
    # A class that is never ruled out has a row of -inf, and 0 stands for undrawn: no NaN may flow back from there.
    rows = log_transition[observed].movedim(-1, 2).where(drawn[:, :, None], 0.0)  # (B, C, L, *S)
    return torch.logsumexp(rows + confusion.log_annotate(log_probs), 2)


def log_evidence(confusion: Confusion, annotation: Tensor) -> Tensor:
    """What all positive drawings together say of each class, ``log prod_r A_r[y_r, j]``.

    Args:
        confusion: of R annotators.
        annotation: ``(B, R, *S)``, class drawn or 255; who drew nothing at a pixel says nothing there.

    Returns:
        ``(B, L, *S)``, at most 0; 0 where nobody drew.

    Example:
        >>> from medcoarse.confusion import FullConfusion
        >>> two = FullConfusion(torch.tensor([[0.8, 0.3], [0.2, 0.7]]).log().view(1, 1, 2, 2, 1).expand(1, 2, 2, 2, 1))
        >>> log_evidence(two, torch.tensor([[[1], [1]]])).exp().flatten()  # 0.2², 0.7²
        tensor([0.0400, 0.4900])
    """
    drawn = annotation != UNLABELED
    rows = confusion.log_rows(annotation.masked_fill(~drawn, 0).long())
    return torch.where(drawn[:, :, None], rows, 0.0).sum(1)


def log_complementary_evidence(confusion: Confusion, log_transition: Tensor, annotation: Tensor) -> Tensor:
    """The same of negative drawings, ``log prod_r (M A_r)[c_r, j]``.

    Args:
        confusion: of C negative annotators.
        log_transition: ``log M``, ``(L, L)``, ``-inf`` on the diagonal.
        annotation: ``(B, C, *S)``, class that the pixel is *not*, or 255.

    Returns:
        ``(B, L, *S)``.

    Example:
        >>> from medcoarse.confusion import FullConfusion, swap_transition
        >>> one = FullConfusion(torch.tensor([[0.8, 0.3], [0.2, 0.7]]).log().view(1, 1, 2, 2, 1))
        >>> log_complementary_evidence(one, swap_transition(2).log(), torch.tensor([[[1]]])).exp().flatten()  # "not 1"
        tensor([0.8000, 0.3000])
    """
    drawn = annotation != UNLABELED
    observed = annotation.masked_fill(~drawn, 0).long()
    # What never happens gets a probability that float32 can still tell from 0: the sum of two zeros has no gradient.
    possible = log_transition.clamp_min(math.log(torch.finfo(torch.float32).tiny))
    parts = [
        possible[:, i][observed][:, :, None] + confusion.log_rows(torch.full_like(observed, i))
        for i in range(len(log_transition))
    ]
    rows = torch.logsumexp(torch.stack(parts), 0)
    return torch.where(drawn[:, :, None], rows, 0.0).sum(1)


def joint_nll(log_probs: Tensor, evidence: Tensor, drawn: Tensor) -> Tensor:
    """Negative log-likelihood of all drawings of an image together, ``-log sum_j p_j prod_r A_r[y_r, j]``.

    Given the true class, people are taken to err independently of each other. So where several drew a pixel, what one
    says of it tells how much the others can be trusted; :func:`coarse_nll` explains each drawing by itself. For one
    annotator they are the same; where R people drew different pixels this is 1/R of it, a mean and not a sum.

    Args:
        log_probs: ``(B, L, *S)``.
        evidence: ``(B, L, *S)``, sum of :func:`log_evidence` and :func:`log_complementary_evidence`.
        drawn: bool ``(B, 1, *S)``, where anybody drew.

    Returns:
        Scalar: the mean over the pixels where anybody drew, in nats.

    Source: Dawid and Skene 1979; Raykar et al., "Learning from crowds" (JMLR 2010), Eq. 6, with a matrix at each pixel.

    Example:
        >>> log_probs = torch.tensor([0.5, 0.5]).log().view(1, 2, 1)
        >>> evidence = torch.tensor([0.04, 0.49]).log().view(1, 2, 1)
        >>> joint_nll(log_probs, evidence, torch.tensor([[[True]]])).neg().exp()  # 0.5 * 0.04 + 0.5 * 0.49
        tensor(0.2650)
    """
    return mean_drawn(-torch.logsumexp(log_probs + evidence, 1, keepdim=True), drawn).sum()


def ruled_out_nll(log_probs: Tensor, confusion: Confusion, annotation: Tensor) -> Tensor:
    """Negative log-likelihood of a *set* of classes that one annotator rules out, ``-log(1 - sum_k u_k)``.

    Args:
        log_probs: ``(B, L, *S)``.
        confusion: of the one negative annotator; ``u = A p``.
        annotation: ``(B, C, *S)``, up to C classes that the pixel is *not*, or 255. A pixel where all L classes are
            ruled out says nothing.

    Returns:
        Scalar, the mean over the pixels where something was ruled out, in nats.

    Source: the complementary likelihood with uniform ``M``, extended to several labels at a pixel; for one label it
        differs from :func:`complementary_nll` by the constant ``log(L - 1)``.

    Example:
        >>> from medcoarse.confusion import IdentityConfusion
        >>> log_probs = torch.tensor([0.2, 0.3, 0.5]).log().view(1, 3, 1)
        >>> nll = ruled_out_nll(log_probs, IdentityConfusion(1), torch.tensor([[[2], [0]]]))
        >>> round(nll.neg().exp().item(), 4)  # neither 2 nor 0
        0.3
    """
    log_said = confusion.log_annotate(log_probs)[:, 0]
    ruled_out, drawn = ruled_out_classes(annotation, log_probs.shape[1])
    possible = log_said.masked_fill(ruled_out & drawn, -torch.inf)
    return -mean_drawn(torch.logsumexp(possible, 1, keepdim=True), drawn).sum()


def ruled_out_classes(annotation: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The classes ruled out by negative maps, and where that says something.

    Args:
        annotation: ``(B, C, *S)``, classes that the pixel is *not*, or 255.
        num_classes: L.

    Returns:
        bool ``(B, L, *S)`` and bool ``(B, 1, *S)``: one class at least, but not all of them.

    Example:
        >>> classes, told = ruled_out_classes(torch.tensor([[[2, 0, 255], [0, 255, 255]]]), num_classes=3)
        >>> classes[0].int().T.tolist(), told.flatten().tolist()
        ([[1, 0, 1], [1, 0, 0], [0, 0, 0]], [True, True, False])
    """
    classes = torch.arange(num_classes, device=annotation.device).view(1, 1, -1, *(1,) * (annotation.ndim - 2))
    ruled_out = (annotation[:, :, None] == classes).any(1)
    return ruled_out, ruled_out.any(1, keepdim=True) & ~ruled_out.all(1, keepdim=True)


def mean_trace(confusion: Confusion, annotation: Tensor, balance: float = 0.0) -> Tensor:
    """Mean trace of the confusion matrices over the drawn pixels, summed over the annotators.

    Minimizing it selects, among the matrices that explain the drawings, the least reliable annotators, which makes the
    pair of segmentation and confusion identifiable.

    Args:
        confusion: of R annotators.
        annotation: ``(B, R, *S)``; pixels with 255 are left out, as they are in the likelihood.
        balance: of the classes drawn: pixels weigh what they do in the likelihood.

    Returns:
        Scalar between 0 and ``R L``.

    Source: CL Eq. 6; DHE Eq. 4 and Theorem 1.

    Example:
        >>> from medcoarse.confusion import FullConfusion
        >>> mean_trace(FullConfusion(torch.zeros(1, 1, 2, 2, 3)), torch.tensor([[[0, 1, 255]]]))
        tensor(1.)
    """
    drawn = annotation != UNLABELED
    diagonal = confusion.diagonal()
    traces = diagonal.to(drawn.device, torch.promote_types(diagonal.dtype, torch.float32)).sum(2)
    traces = traces.view(*traces.shape[:2], *(1,) * (drawn.ndim - traces.ndim), *traces.shape[2:])
    return _mean(traces.expand(drawn.shape), annotation, balance).sum()


def mean_drawn(values: Tensor, drawn: Tensor) -> Tensor:
    """Mean over the drawn pixels of each annotator, 0 where nothing was drawn.

    Args:
        values: ``(B, R, *S)``; what they are where nothing was drawn is of no account.
        drawn: bool ``(B, R, *S)``.

    Returns:
        ``(R,)``.

    Example:
        >>> mean_drawn(torch.tensor([[[1.0, 3.0, torch.nan]]]), torch.tensor([[[True, True, False]]]))
        tensor([2.])
    """
    axes = (0, *range(2, values.ndim))
    total = torch.where(drawn, values, 0.0).sum(axes)
    return total / drawn.sum(axes).clamp_min(1)


def class_weights(annotation: Tensor, num_classes: int, balance: float) -> Tensor:
    """What one drawn pixel of each class weighs; over the pixels of an annotator the weights add up to 1.

    Args:
        annotation: ``(B, R, *S)``, class drawn or 255.
        num_classes: L.
        balance: what a class counts altogether, ``n^(1 - balance)`` for n pixels of it in the batch: at 0 every pixel
            counts alike, at 1 every class that was drawn does.

    Returns:
        ``(R, L)``, float32; 0 for a class that was not drawn.

    Source: inverse frequencies to a power, a common remedy for rare classes; which power, and where, is ours.
    Deviates: the papers count every pixel alike. With balance, what the matrices estimate is how people err among
    drawings in which the classes are that much more even: errors towards rare classes come out too frequent.

    Example:
        >>> class_weights(torch.tensor([[[1, 1, 1, 1, 0, 255]]]), num_classes=3, balance=0.5)  # 2 to 1, of 4 and of 1
        tensor([[0.3333, 0.1667, 0.0000]])
    """
    drawings = annotation.movedim(1, 0).flatten(1).long()
    return balanced_weights(torch.stack([own.bincount(minlength=UNLABELED)[:num_classes] for own in drawings]), balance)


def balanced_weights(counts: Tensor, balance: float) -> Tensor:
    """What one pixel of each class weighs where there are ``counts`` of them; see :func:`class_weights`.

    Args:
        counts: pixels of each class ``(..., L)``; shares of pixels add up like pixels.
        balance: from 0 to 1.

    Returns:
        ``(..., L)``, float32; the pixels' weights add up to 1, and a class without pixels weighs 0.

    Example:
        >>> balanced_weights(torch.tensor([1, 4, 0]), balance=0.5)
        tensor([0.3333, 0.1667, 0.0000])
    """
    counts = counts.float()
    weights = torch.where(counts > 0, counts.clamp_min(1) ** -balance, 0.0)
    return weights / (weights * counts).sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def _mean(values: Tensor, annotation: Tensor, balance: float) -> Tensor:
    """Over the drawn pixels of each annotator, ``(R,)``; :func:`mean_drawn`, with classes balanced."""
    drawn = annotation != UNLABELED
    if not balance:
        return mean_drawn(values, drawn)
    weights = class_weights(annotation, UNLABELED, balance).to(values)  # whatever the number of classes
    classes = annotation.masked_fill(~drawn, 0).long().movedim(1, -1)
    own = weights[torch.arange(len(weights), device=classes.device), classes].movedim(-1, 1)
    total: Tensor = torch.where(drawn, values * own, 0.0).sum((0, *range(2, values.ndim)))
    return total
