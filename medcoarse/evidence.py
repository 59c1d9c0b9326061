"""What all drawings of an image together say of each class, evaluated together with its gradients.

The same numbers as :func:`medcoarse.likelihoods.log_evidence`, :func:`medcoarse.likelihoods.log_complementary_evidence`
and :func:`medcoarse.likelihoods.mean_trace`, the reference that tests compare with. What differs is the cost: compiled
loops go over the pixels in blocks that fit a cache, once for the values and once for the slopes, and leave nothing in
between. They are for full matrices on a processor; everywhere else the plain equations run.

Convention of the loops: as in :mod:`medcoarse.kernels`, with ``evidence (L, N)``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medcoarse import kernels
from medcoarse.compilation import compiled, empty_like, in_threads
from medcoarse.confusion import Confusion, FullConfusion
from medcoarse.fused import check_log_transition, drawn_counts, pixel_shares, readings, refuse_second_derivatives
from medcoarse.kernels import claims_of, dot, fast_log, log_softmax, log_sum, read, softmax
from medcoarse.likelihoods import log_complementary_evidence, log_evidence, mean_trace

Array = NDArray[Any]


def evidence_and_trace(
    confusion: Confusion,
    annotation: Tensor,
    num_classes: int,
    log_transition: Tensor | None = None,
    trace_slopes: bool = True,
) -> tuple[Tensor, Tensor]:
    """What one group of annotators says of each class, and the mean trace of its matrices.

    Args:
        confusion: of R annotators.
        annotation: ``(B, R, *S)``, class drawn or 255; who drew nothing at a pixel says nothing there.
        num_classes: L.
        log_transition: ``log M (L, L)`` of negative annotators; ``None`` for positive ones.
        trace_slopes: whether anybody asks for gradients of the trace.

    Returns:
        ``(B, L, *S)`` and a scalar: see :func:`medcoarse.likelihoods.log_evidence` and
        :func:`medcoarse.likelihoods.mean_trace`.

    Raises:
        ValueError: a drawing with a value that is neither a class nor 255, or of another shape than the matrices; a
            transition of another number of classes.

    Source: Dawid and Skene 1979, as in :func:`medcoarse.likelihoods.joint_nll`. Fusing value and gradient is ours.
    Deviates: second derivatives of full matrices are not available on a processor, take the plain functions for them.

    Example:
        >>> two = FullConfusion(torch.tensor([[0.8, 0.3], [0.2, 0.7]]).log().view(1, 1, 2, 2, 1).expand(1, 2, 2, 2, 1))
        >>> evidence, trace = evidence_and_trace(two, torch.tensor([[[1], [1]]]), num_classes=2)
        >>> evidence.exp().flatten(), trace  # 0.2², 0.7²; 2 (0.8 + 0.7)
        (tensor([0.0400, 0.4900]), tensor(3.))
    """
    check_log_transition(log_transition, num_classes)
    if isinstance(confusion, FullConfusion):  # compiled loops would read beside the arrays
        expected = (*annotation.shape[:2], num_classes, num_classes, *annotation.shape[2:])
        shape = tuple(confusion.logits.shape)
        if shape != expected or 0 in shape:
            raise ValueError(f"drawings {tuple(annotation.shape)} of pixels need matrices {expected}, got {shape}")
    counts = drawn_counts(annotation.flatten(2), num_classes)  # says what is no class
    learned = log_transition is not None and log_transition.requires_grad
    if isinstance(confusion, FullConfusion) and confusion.logits.device.type == "cpu" and not learned:
        plan = _Plan(annotation, confusion.floor, log_transition, counts)
        logits = confusion.logits
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return _Evidence.apply(plan, logits)  # type: ignore[no-untyped-call, no-any-return]
    said = (
        log_evidence(confusion, annotation)
        if log_transition is None
        else log_complementary_evidence(confusion, log_transition, annotation)
    )
    with torch.set_grad_enabled(torch.is_grad_enabled() and trace_slopes):
        return said, mean_trace(confusion, annotation)


class _Plan(NamedTuple):
    annotation: Tensor
    floor: float
    log_transition: Tensor | None
    counts: Tensor  # pixels that each annotator drew

    def arrays(self, table: Tensor) -> tuple[Array, Array, Array]:
        """Drawings ``(B, R, N)``, and weights and readings by their values."""
        drawings = self.annotation.to(torch.uint8).flatten(2).contiguous().numpy()
        weights = torch.zeros(len(self.counts), kernels.VALUES).to(table)
        weights[:, : table.shape[2]] = self.counts.clamp_min(1).to(table).reciprocal()[:, None]
        least = math.log(torch.finfo(torch.float32).tiny)  # what never happens, as in the plain equations
        possible = None if self.log_transition is None else self.log_transition.clamp_min(least)
        return drawings, weights.numpy(), readings(possible, table)


class _Evidence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.plan = plan
        ctx.save_for_backward(table, plan.annotation)  # which torch watches for changes in between
        batch, num_classes, size = table.shape[0], table.shape[2], table.shape[4:]
        evidence = torch.empty((batch, num_classes, *size), dtype=table.dtype)
        drawings, weights, reading = plan.arrays(table)
        tables, out = table.flatten(4).contiguous().numpy(), evidence.flatten(2).numpy()

        def evaluate(part: list[tuple[int, int, int]]) -> float:
            return sum(
                full_evidence(tables[b], drawings[b], weights, reading, plan.floor, start, stop, out[b])
                for b, start, stop in part
            )

        trace = sum(in_threads(evaluate, pixel_shares(batch, math.prod(size), 1)))
        return evidence, torch.tensor(trace, dtype=table.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, pull: Tensor) -> tuple[None, Tensor | None]:
        refuse_second_derivatives()
        if not ctx.needs_input_grad[1]:
            return None, None
        table, _ = ctx.saved_tensors
        plan: _Plan = ctx.plan
        grad = empty_like(table)
        drawings, weights, reading = plan.arrays(table)
        tables, slopes = table.flatten(4).contiguous().numpy(), grad.flatten(4).numpy()
        wanted = upstream.flatten(2).contiguous().numpy()

        def evaluate(part: list[tuple[int, int, int]]) -> None:
            for b, start, stop in part:
                arrays = (tables[b], drawings[b], weights, reading)
                full_evidence_slopes(*arrays, plan.floor, pull.item(), start, stop, wanted[b], slopes[b])

        in_threads(evaluate, pixel_shares(len(tables), tables.shape[-1], 1))
        return None, grad


@compiled
def full_evidence(
    table: Array, drawing: Array, weights: Array, reading: Array, floor: float, start: int, stop: int, evidence: Array
) -> float:
    """``evidence[j] = sum_r log e_rj`` with ``e_rj = floor m_rj + (1 - floor) sum_i m_ri S_rij``; returns the trace."""
    num_classes, number = len(evidence), evidence.dtype.type
    low, room, smallest, one, zero = number(floor), number(1 - floor), number(kernels.SMALLEST), number(1), number(0)
    size = max(32, min(512, kernels.BLOCK_NUMBERS // num_classes))
    column = np.empty((num_classes, size), evidence.dtype)
    claims = np.empty((num_classes, size), evidence.dtype)
    vectors = np.empty((4, size), evidence.dtype)
    weight, scale, top, said = vectors[0], vectors[1], vectors[2], vectors[3]
    trace = 0.0
    for first in range(start, stop, size):
        n = min(size, stop - first)
        for j in range(num_classes):
            evidence[j, first : first + n] = 0
        for r in range(len(table)):
            if not read(drawing[r, first : first + n], weights[r], reading, claims, weight):
                continue
            for j in range(num_classes):
                softmax(table[r], j, first, n, column, scale, top)
                dot(claims, column, n, said)
                target, claim, diagonal = evidence[j, first : first + n], claims[j], column[j]
                num_small, total = 0, zero
                for p in range(n):
                    chance = low * claim[p] + room * scale[p] * said[p]
                    silent = weight[p] == zero
                    small = (chance < smallest) & (not silent)
                    said[p] = one if small or silent else chance
                    top[p] = one if small else zero
                    num_small += small
                    total += weight[p] * (low + room * scale[p] * diagonal[p])
                trace += total
                for p in range(n):
                    target[p] += fast_log(said[p])
                for p in range(n if num_small else 0):
                    if top[p]:
                        target[p] += _log_chance(table[r, :, j, first + p], drawing[r, first + p], j, reading, floor)[0]
    return trace


@compiled
def full_evidence_slopes(
    table: Array,
    drawing: Array,
    weights: Array,
    reading: Array,
    floor: float,
    pull: float,
    start: int,
    stop: int,
    upstream: Array,
    slopes: Array,
) -> None:
    """``slopes[r, i, j] = g_j (1 - floor) S_rij (m_ri - d_rj) / e_rj + pull w (1 - floor) S_rjj ([i = j] - S_rij)``.

    With ``g`` the slopes ``upstream`` along the evidence and ``d_rj = sum_i m_ri S_rij``.
    """
    num_classes, number = len(upstream), upstream.dtype.type
    low, room, smallest, one, zero = number(floor), number(1 - floor), number(kernels.SMALLEST), number(1), number(0)
    tug = number(pull * (1 - floor))
    size = max(32, min(512, kernels.BLOCK_NUMBERS // num_classes))
    column = np.empty((num_classes, size), upstream.dtype)
    claims = np.empty((num_classes, size), upstream.dtype)
    vectors = np.empty((6, size), upstream.dtype)
    weight, scale, top, said, gain, away = (vectors[0], vectors[1], vectors[2], vectors[3], vectors[4], vectors[5])
    for first in range(start, stop, size):
        n = min(size, stop - first)
        for r in range(len(table)):
            if not read(drawing[r, first : first + n], weights[r], reading, claims, weight):
                slopes[r, :, :, first : first + n] = 0
                continue
            for j in range(num_classes):
                softmax(table[r], j, first, n, column, scale, top)
                dot(claims, column, n, said)
                given, claim, diagonal = upstream[j, first : first + n], claims[j], column[j]
                num_small = 0
                for p in range(n):
                    said[p] *= scale[p]
                for p in range(n):
                    chance = low * claim[p] + room * said[p]
                    silent = weight[p] == zero
                    small = (chance < smallest) & (not silent)
                    off = small or silent
                    gain[p] = zero if off else room * given[p] / (one if off else chance)
                    top[p] = one if small else zero
                    num_small += small
                for p in range(n):
                    away[p] = tug * weight[p] * scale[p] * diagonal[p]
                for p in range(n):
                    said[p] = scale[p] * (gain[p] * said[p] + away[p])
                for p in range(n):
                    gain[p] *= scale[p]
                for i in range(num_classes):
                    slope, entry, claim = slopes[r, i, j, first : first + n], column[i], claims[i]
                    for p in range(n):
                        slope[p] = entry[p] * (gain[p] * claim[p] - said[p])
                slope = slopes[r, j, j, first : first + n]
                for p in range(n):
                    slope[p] += away[p]
                for p in range(n if num_small else 0):
                    if top[p]:
                        drawn = drawing[r, first + p]
                        free, share, mine = _log_chance(table[r, :, j, first + p], drawn, j, reading, floor)[1:]
                        for i in range(num_classes):
                            slopes[r, i, j, first + p] += given[p] * mine * (share[i] - free[i])


@compiled
def _log_chance(logits: Array, drawn: int, j: int, reading: Array, floor: float) -> tuple[float, Array, Array, float]:
    """Of one pixel, annotator and column in log space: ``log e_j``, and what the slopes need.

    These are ``S_ij``, the shares ``m_i S_ij / d_j`` and the share of what is not copied, ``(1 - floor) d_j / e_j``.
    """
    log_claims = np.log(claims_of(drawn, reading, len(logits)))
    log_free = log_softmax(logits)
    log_said = log_sum(log_claims + log_free)
    log_rest = log_said + math.log(1 - floor)
    log_own = log_claims[j] + (math.log(floor) if floor > 0 else -np.inf)
    log_chance = log_sum(np.array([log_rest, log_own]))
    return log_chance, np.exp(log_free), np.exp(log_claims + log_free - log_said), math.exp(log_rest - log_chance)
