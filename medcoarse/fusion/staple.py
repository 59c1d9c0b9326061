"""STAPLE: the truth and how well each annotator draws, estimated together by expectation maximization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medcoarse.fusion._votes import SILENT, Patterns, check_annotations, vote_patterns


class Staple(NamedTuple):
    """What STAPLE estimates; ``N`` is the number of images, or 1 for a whole data set.

    Args:
        probs: posterior of the true class, float32 ``(B, L, *S)``; 0 for all classes where nobody said anything.
        cm: float32 ``(N, R, observed, true)``, columns sum to 1; NaN for an annotator who said nothing and for a class
            that is absent.
        prior: probability of each class before anybody has said anything, float32 ``(N, L)``; NaN, as ``cm``, where
            there is no voxel to estimate it from: nobody drew, or with ``disagreement_only`` all agree.
        iterations: int64 ``(N,)``.
        converged: bool ``(N,)``.
    """

    probs: Tensor
    cm: Tensor
    prior: Tensor
    iterations: Tensor
    converged: Tensor


class Estimate(NamedTuple):
    """Expectation maximization on patterns of votes, in float64 on the CPU.

    Args:
        posterior: ``(P, L)``; 0 where nobody said anything.
        cm: ``(R, observed, true)``; a column that no vote informs is as it started.
        known: which columns of ``cm`` votes inform, bool ``(R, true)``.
        prior: ``(L,)``.
        iterations: how many.
        converged: whether the posterior had stopped to change.
    """

    posterior: Tensor
    cm: Tensor
    known: Tensor
    prior: Tensor
    iterations: int
    converged: bool


def staple(
    annotations: Tensor,
    num_classes: int,
    scope: str = "image",
    prior: Tensor | Sequence[float] | None = None,
    disagreement_only: bool = False,
    initial_diagonal: float = 0.99999,
    tol: float = 1e-6,
    max_iterations: int = 1000,
) -> Staple:
    """Simultaneous truth and performance level estimation for any number of classes.

    Iterates ``W_x(s) ∝ π(s) prod_r θ_r(D_r(x) | s)`` and ``θ_r(i | s) = sum_{x : D_r(x) = i} W_x(s) / sum_x W_x(s)``,
    where annotators who said nothing at a voxel drop out of the product and of both sums. Voxels on which all
    annotators said the same share one posterior, so that an iteration costs nothing however large the image.

    Args:
        annotations: label maps ``(B, R, *S)``, 255 where an annotator said nothing.
        num_classes: L.
        scope: ``"image"`` estimates matrices for every image, ``"dataset"`` one set for all. Images of different size
            are pooled by padding them with 255.
        prior: π, ``(L,)``, sums to 1; by default the mean over voxels of the shares of votes. Annotators who all
            over-segment raise it.
        disagreement_only: leave voxels on which all who said anything agree out of the estimate, and take their word
            for the truth there. A large background that everybody finds otherwise decides all matrices.
        initial_diagonal: of θ at the start, in (0, 1); the rest of a column is shared equally.
        tol: stop when no posterior changes by as much.
        max_iterations: stop in any case; ``converged`` tells.

    Returns:
        :class:`Staple`. :func:`medcoarse.fusion.voting.hard_label` makes a label map of its ``probs``, and
        :func:`medcoarse.metrics.joint_table` scores of its ``cm``.

    Raises:
        ValueError: annotations or parameters out of range.

    Source: Warfield, Zou and Wells 2004 (STAPLE), its E and M steps; leaving out voxels with consensus follows Asman
        and Landman 2011 (COLLATE).
    Deviates: log domain and float64; no Markov field.

    Example:
        >>> truth = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> wrong = torch.tensor([1, 0, 0, 0, 1, 1, 1, 0])
        >>> result = staple(torch.stack([truth, truth, wrong])[None], num_classes=2)
        >>> result.probs[0, 1].round()
        tensor([0., 0., 0., 0., 1., 1., 1., 1.])
        >>> result.cm[0, 2].round(decimals=2)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])
    """
    annotations = check_annotations(annotations, num_classes)
    _check_options(scope, initial_diagonal, tol, max_iterations)
    given = None if prior is None else _checked_prior(prior, num_classes)
    probs = torch.empty((len(annotations), num_classes, *annotations.shape[2:]), device=annotations.device)
    step = 1 if scope == "image" else len(annotations)
    estimates = []
    for part, painted in zip(torch.split(annotations, step), torch.split(probs, step), strict=True):
        patterns = vote_patterns(part, num_classes)
        estimates.append(
            estimate_patterns(patterns, num_classes, given, disagreement_only, initial_diagonal, tol, max_iterations)
        )
        patterns.paint(estimates[-1].posterior, painted)
    return Staple(probs, *(x.to(probs.device) for x in _stacked(estimates)))


def _stacked(estimates: Sequence[Estimate]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matrices, priors, numbers of iterations and whether they converged."""
    cm = torch.stack([e.cm.masked_fill(~e.known[:, None], torch.nan) for e in estimates])
    prior = torch.stack([e.prior for e in estimates])
    iterations, converged = [e.iterations for e in estimates], [e.converged for e in estimates]
    return cm.float(), prior.float(), torch.tensor(iterations), torch.tensor(converged)


def estimate_patterns(
    patterns: Patterns,
    num_classes: int,
    prior: Tensor | None,
    disagreement_only: bool,
    initial_diagonal: float,
    tol: float,
    max_iterations: int,
) -> Estimate:
    """:func:`staple` of one image or data set whose votes have been counted."""
    votes, counts = patterns.votes.cpu(), patterns.counts.cpu().double()
    shares = torch.stack([(votes == k + 1).sum(1) for k in range(num_classes)], 1).double()
    shares /= shares.sum(1, keepdim=True).clamp_min(1)
    used = shares.sum(1) > 0 if not disagreement_only else (shares > 0).sum(1) > 1
    weight = counts[used]
    if prior is None:
        prior = weight @ shares[used] / weight.sum()
    start = torch.full((num_classes, num_classes), (1 - initial_diagonal) / (num_classes - 1), dtype=torch.float64)
    cm = start.fill_diagonal_(initial_diagonal).expand(votes.shape[1], -1, -1)
    known = torch.zeros(votes.shape[1], num_classes, dtype=torch.bool)
    posterior = shares.where(shares == 1, 0)  # the word of all, and 0 where nobody said anything
    iterations, converged = 0, not used.any()
    previous = torch.full_like(posterior[used], torch.inf)
    while not converged and iterations < max_iterations:
        current = _posterior(votes[used], prior, cm)
        cm, known = _confusion(votes[used], current * weight[:, None], cm)
        converged = bool((current - previous).abs().max() < tol)
        previous, iterations = current, iterations + 1
    posterior[used] = previous
    return Estimate(posterior, cm, known, prior, iterations, converged)


def _posterior(votes: Tensor, prior: Tensor, cm: Tensor) -> Tensor:
    """E step: ``W_p(s) ∝ π(s) prod_r θ_r(votes[p, r] | s)``, ``(P, L)``."""
    log_posterior = prior.log().expand(len(votes), -1).clone()
    for said, matrix in zip(votes.T, cm.log(), strict=True):
        log_posterior += torch.cat([torch.zeros_like(matrix[:1]), matrix])[said]  # row 0: said nothing
    return log_posterior.softmax(1)


def _confusion(votes: Tensor, mass: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
    """M step from the mass of each pattern and class ``(P, L)``; columns without any stay as they were."""
    num_classes = mass.shape[1]
    table = mass.new_zeros(votes.shape[1], num_classes + 1, num_classes)
    for said, matrix in zip(votes.T, table, strict=True):
        matrix.index_add_(0, said, mass)
    said = table[:, SILENT + 1 :]
    total = said.sum(1, keepdim=True)
    return torch.where(total > 0, said / total, previous), (total > 0).squeeze(1)


def _check_options(scope: str, initial_diagonal: float, tol: float, max_iterations: int) -> None:
    if scope not in ("image", "dataset"):
        raise ValueError(f'scope must be "image" or "dataset", got {scope!r}')
    if not 0 < initial_diagonal < 1:
        raise ValueError(
            f"initial_diagonal must lie between 0 and 1, got {initial_diagonal}; an annotator who cannot err cannot be "
            "corrected, take 0.99999"
        )
    check_stopping(tol, max_iterations)


def check_stopping(tol: float, max_iterations: int) -> None:
    """Raise ``ValueError`` unless the iteration begins and can end."""
    if tol < 0 or max_iterations < 1:
        raise ValueError(
            f"tol must not be negative and max_iterations at least 1, got {tol} and {max_iterations}; with tol = 0 "
            "every iteration is made"
        )


def _checked_prior(prior: Tensor | Sequence[float], num_classes: int) -> Tensor:
    prior = torch.as_tensor(prior, dtype=torch.float64).cpu()
    if prior.shape != (num_classes,) or not (prior >= 0).all() or abs(prior.sum().item() - 1) > 1e-4:
        raise ValueError(
            f"prior must be {num_classes} probabilities that sum to 1, one for each class, got {prior.tolist()}"
        )
    return prior
