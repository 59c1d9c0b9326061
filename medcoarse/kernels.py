"""Compiled loops behind :mod:`medcoarse.fused`: likelihood and trace of a group of annotators, with their slopes.

One pass reads every number once and writes every slope once. Pixels go through in blocks that fit a cache of the core;
inner loops run along the pixels of a block, one row of memory after the other, which lets the compiler use the
processor's vector units. Compiled by Numba at first use and kept on disk from then on.

Convention: a function works on ``scores[:, start:stop]`` of one image. Arrays are C-contiguous with the image axes
flattened: scores ``(L, N)``, matrices ``(R, observed, true, N)``, copies ``(R, L, N)``, habits ``(R, 1, L, N)``,
drawings ``(R, N)`` uint8. It writes the slopes of the objective, unless their arrays have length 0, and returns
``(nll, trace)``. ``weights (R, 256)`` are what one pixel of each class that an annotator drew counts, 0 of 255,
``reading[i, drawn] (L, 256)`` what a drawing claims: the chance of drawing this where class i is seen, 1 or 0 of a
positive drawing, ``M[drawn, i]`` of a negative one, 0 of 255. ``floor`` is the least share of the truth that is copied,
``trace_weight`` is λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from medcoarse.compilation import compiled

Array = NDArray[Any]

BLOCK_NUMBERS = 1 << 16  # matrix entries of a block, 256 kB in single precision
SMALLEST = 1e-30  # likelihoods below it are computed in log space
_UNLABELED = 255
VALUES = 256
"""That a drawing may hold: lookups by it need no look at whether a pixel was drawn."""


def fast_exp(x: Any) -> Any:
    """``exp(x)`` between 1e-38 and 1e38, to 3e-7 of its value in single precision; for compiled code only."""
    raise NotImplementedError


def fast_log(x: Any) -> Any:
    """``log(x)`` of a normal number above 0, to 2e-7 in single precision; for compiled code only."""
    raise NotImplementedError


@overload(fast_exp, inline="always")
def _exp_of_type(x: Any) -> Callable[[Any], Any]:
    return _exp_single if x is types.float32 else _exp_double


@overload(fast_log, inline="always")
def _log_of_type(x: Any) -> Callable[[Any], Any]:
    return _log_single if x is types.float32 else _log_double


def _exp_double(x: Any) -> Any:
    return math.exp(min(max(x, -700.0), 700.0))


def _exp_single(x: Any) -> Any:
    # exp(x) = 2^k exp(rest) with |rest| <= ln(2) / 2, and a polynomial for the rest: unlike a call of the C library it
    # runs in the vector units. Coefficients here and below: S. L. Moshier, Cephes Mathematical Library, expf and logf.
    near = np.float32(-87.0) if x < np.float32(-87.0) else x  # NaN compares as False and stays
    near = np.float32(88.0) if near > np.float32(88.0) else near
    k = np.floor(near * np.float32(1.44269504088896341) + np.float32(0.5))
    rest = near - k * np.float32(0.693359375) - k * np.float32(-2.12194440e-4)
    y = np.float32(1.9875691500e-4) * rest + np.float32(1.3981999507e-3)
    y = y * rest + np.float32(8.3334519073e-3)
    y = y * rest + np.float32(4.1665795894e-2)
    y = y * rest + np.float32(1.6666665459e-1)
    y = y * rest + np.float32(5.0000001201e-1)
    y = y * rest * rest + rest + np.float32(1.0)
    power = np.int32((np.int32(k) + np.int32(127)) << np.int32(23))
    return y * power.view(np.float32)


def _log_double(x: Any) -> Any:
    return math.log(x)


def _log_single(x: Any) -> Any:
    # x = 2^k (1 + rest) with 1 + rest between sqrt(1/2) and sqrt(2)
    bits = np.float32(x).view(np.int32) - np.int32(0x3F3504F3)
    k = np.float32(bits >> np.int32(23))
    rest = np.int32((bits & np.int32(0x7FFFFF)) + np.int32(0x3F3504F3)).view(np.float32) - np.float32(1.0)
    y = np.float32(7.0376836292e-2) * rest + np.float32(-1.1514610310e-1)
    y = y * rest + np.float32(1.1676998740e-1)
    y = y * rest + np.float32(-1.2420140846e-1)
    y = y * rest + np.float32(1.4249322787e-1)
    y = y * rest + np.float32(-1.6668057665e-1)
    y = y * rest + np.float32(2.0000714765e-1)
    y = y * rest + np.float32(-2.4999993993e-1)
    y = y * rest + np.float32(3.3333331174e-1)
    y = y * rest * rest * rest + k * np.float32(-2.12194440e-4) - np.float32(0.5) * rest * rest
    return x if np.isnan(x) else rest + y + k * np.float32(0.693359375)  # its bits would be read as a number


# Below, a value is loaded before it is chosen, and constants have the type of the arrays: a load behind a condition or
# a constant in double precision would keep a loop out of the vector units, and so would many arrays in one loop.


@compiled
def count_drawn(drawing: Array, num_classes: int) -> tuple[int, int]:
    """How many pixels ``(N,)`` were drawn, and how many hold neither a class nor 255."""
    drawn = wrong = 0
    for p in range(len(drawing)):
        here = drawing[p] != _UNLABELED
        drawn += here
        wrong += here & ((drawing[p] < 0) | (drawing[p] >= num_classes))
    return drawn, wrong


@compiled
def softmax(rows: Array, j: int, first: int, n: int, out: Array, scale: Array, top: Array) -> None:
    """``out = exp(rows[:, j] - max)`` and ``scale = 1 / sum``, of the pixels from ``first`` on. ``top`` is scratch."""
    zero, one = scale.dtype.type(0), scale.dtype.type(1)
    row, other = rows[0, j, first : first + n], rows[1, j, first : first + n]
    for p in range(n):
        top[p] = max(row[p], other[p])
    for k in range(2, len(rows)):
        row = rows[k, j, first : first + n]
        for p in range(n):
            top[p] = max(top[p], row[p])
    for p in range(n):
        scale[p] = zero
    for k in range(len(rows)):
        row, target = rows[k, j, first : first + n], out[k]
        for p in range(n):
            value = fast_exp(row[p] - top[p])
            target[p] = value
            scale[p] += value
    for p in range(n):
        scale[p] = one / scale[p]


@compiled
def _probabilities(rows: Array, first: int, n: int, out: Array, scale: Array, top: Array) -> None:
    """``out = softmax(rows)`` over the first axis; ``scale`` and ``top`` are overwritten."""
    softmax(rows.reshape(len(rows), 1, -1), 0, first, n, out, scale, top)
    for k in range(len(rows)):
        target = out[k]
        for p in range(n):
            target[p] *= scale[p]


@compiled
def _sum(rows: Array, n: int, out: Array) -> None:
    """``out = sum_k rows[k]``."""
    zero = out.dtype.type(0)
    for p in range(n):
        out[p] = zero
    for k in range(len(rows)):
        row = rows[k]
        for p in range(n):
            out[p] += row[p]


@compiled
def dot(a: Array, b: Array, n: int, out: Array) -> None:
    """``out = sum_k a[k] b[k]``."""
    zero = out.dtype.type(0)
    for p in range(n):
        out[p] = zero
    for k in range(len(a)):
        left, right = a[k], b[k]
        for p in range(n):
            out[p] += left[p] * right[p]


@compiled
def read(drawing: Array, class_weights: Array, reading: Array, claims: Array, weight: Array) -> bool:
    """What every pixel's drawing claims and weighs, 0 where nothing was drawn; whether anything was."""
    zero, one, number = weight.dtype.type(0), weight.dtype.type(1), 0
    for p in range(len(drawing)):
        number += drawing[p] != _UNLABELED
    if number == 0:
        return False
    for p in range(len(drawing)):
        weight[p] = class_weights[drawing[p]]
    for i in range(len(claims)):
        claim = claims[i]
        if len(reading):
            column = reading[i]
            for p in range(len(drawing)):
                claim[p] = column[drawing[p]]
        else:  # the same with the identity, several times as fast as lookups
            for p in range(len(drawing)):
                claim[p] = one if drawing[p] == i else zero
    return True


@compiled
def claims_of(drawn: int, reading: Array, num_classes: int) -> Array:
    """Those of one pixel, in double precision."""
    if len(reading):
        return reading[:, drawn].astype(np.float64)
    claims = np.zeros(num_classes)
    claims[drawn] = 1.0
    return claims


@compiled
def _weigh(likelihood: Array, weight: Array, odds: Array, n: int) -> tuple[float, int]:
    """``odds = weight / likelihood``; returns the sum of ``-weight log(likelihood)``.

    A pixel that needs log space loses its weight here and is marked by a likelihood of -1; they are counted.
    """
    number = likelihood.dtype.type
    smallest, zero, one, nll = number(SMALLEST), number(0), number(1), number(0)
    num_small = 0
    for p in range(n):
        chance, share = likelihood[p], weight[p]
        small = chance < smallest
        rescued = small & (share > zero)
        share = zero if small else share
        chance = one if small else chance
        weight[p] = share
        odds[p] = share / chance
        nll -= share * fast_log(chance)
        likelihood[p] = -one if rescued else one
        num_small += rescued
    return nll, num_small


@compiled
def log_softmax(values: Array) -> Array:
    """Of a few numbers, in double precision."""
    exact = values.astype(np.float64)
    return exact - log_sum(exact)


@compiled
def log_sum(values: Array) -> float:
    """``log sum exp(values)``."""
    top = values.max()
    if top == -np.inf:  # a class that is never ruled out was ruled out
        return -np.inf
    return float(top + math.log(np.exp(values - top).sum()))


@compiled
def full_terms(
    scores: Array,
    table: Array,
    drawing: Array,
    weights: Array,
    reading: Array,
    floor: float,
    trace_weight: float,
    start: int,
    stop: int,
    score_slopes: Array,
    table_slopes: Array,
) -> tuple[float, float]:
    """Full matrices.

    With ``p`` the segmentation, ``S`` the free matrix, ``m`` the drawing's claims, ``d_j = sum_i m_i S_ij``, ``w`` the
    pixel's weight and ``q_j = w (1 - floor) p_j / likelihood``, the slope along ``table[i, j]`` is
    ``q_j S_ij (d_j - m_i)`` from the likelihood and ``w trace_weight (1 - floor) S_jj ([i = j] - S_ij)`` from the
    trace; along score j it is ``w p_j - q_j d_j - w floor m_j p_j / likelihood``.
    """
    num_classes = len(scores)
    number = scores.dtype.type
    low, room, pull = number(floor), number(1 - floor), number(trace_weight * (1 - floor))
    size = max(32, min(1024, BLOCK_NUMBERS // num_classes**2))
    matrix = np.empty((num_classes, num_classes, size), scores.dtype)  # [true, observed], S / scale
    scale = np.empty((num_classes, size), scores.dtype)
    probs = np.empty((num_classes, size), scores.dtype)
    claims = np.empty((num_classes, size), scores.dtype)
    posterior = np.empty((num_classes, size), scores.dtype)
    vectors = np.empty((5, size), scores.dtype)
    weight, likelihood, odds, own, gain = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]
    nll = trace = 0.0
    for first in range(start, stop, size):
        n = min(size, stop - first)
        _probabilities(scores, first, n, probs, odds, likelihood)
        for j in range(len(score_slopes)):
            score_slopes[j, first : first + n] = 0
        for r in range(len(table)):
            if not read(drawing[r, first : first + n], weights[r], reading, claims, weight):
                if len(table_slopes):
                    table_slopes[r, :, :, first : first + n] = 0
                continue
            dot(claims, probs, n, likelihood)
            for p in range(n):
                likelihood[p] *= low
            for j in range(num_classes):
                column, share, prob, part = matrix[j], scale[j], probs[j], posterior[j]
                softmax(table[r], j, first, n, column, share, odds)
                dot(claims, column, n, part)
                for p in range(n):
                    part[p] *= room * share[p] * prob[p]
                for p in range(n):
                    likelihood[p] += part[p]
            value, num_small = _weigh(likelihood, weight, odds, n)
            nll += value
            for j in range(num_classes):
                diagonal, share, total = matrix[j, j], scale[j], number(0)
                for p in range(n):
                    total += weight[p] * (low + room * diagonal[p] * share[p])
                trace += total
            if len(score_slopes):
                for j in range(num_classes):
                    slope, prob, part, claim = score_slopes[j, first : first + n], probs[j], posterior[j], claims[j]
                    for p in range(n):
                        part[p] *= odds[p]
                    for p in range(n):
                        slope[p] += prob[p] * (weight[p] - low * claim[p] * odds[p]) - part[p]
            if len(table_slopes):
                for j in range(num_classes):
                    part, share, prob, diagonal = posterior[j], scale[j], probs[j], matrix[j, j]
                    for p in range(n):
                        towards = pull * weight[p] * diagonal[p] * share[p]
                        own[p] = towards
                        gain[p] = room * odds[p] * prob[p] * share[p]
                        share[p] *= part[p] - towards
                    for i in range(num_classes):
                        slope, entry, claim = table_slopes[r, i, j, first : first + n], matrix[j, i], claims[i]
                        for p in range(n):
                            slope[p] = entry[p] * (share[p] - claim[p] * gain[p])
                    slope = table_slopes[r, j, j, first : first + n]
                    for p in range(n):
                        slope[p] += own[p]
            for p in range(n if num_small else 0):
                if likelihood[p] < 0:
                    drawn = drawing[r, first + p]
                    terms = _full_pixel(
                        scores,
                        table[r],
                        first + p,
                        claims_of(drawn, reading, num_classes),
                        weights[r, drawn],
                        floor,
                        trace_weight,
                        score_slopes,
                        table_slopes[r] if len(table_slopes) else table[r, :0],
                    )
                    nll, trace = nll + terms[0], trace + terms[1]
    return nll, trace


@compiled
def _full_pixel(
    scores: Array,
    table: Array,
    p: int,
    claims: Array,
    weight: float,
    floor: float,
    trace_weight: float,
    score_slopes: Array,
    table_slopes: Array,
) -> tuple[float, float]:
    """The same for one pixel of one annotator in log space."""
    num_classes = len(scores)
    log_probs = log_softmax(scores[:, p])
    log_claims = np.log(claims)
    log_free = np.empty((num_classes, num_classes))
    log_said = np.empty(num_classes)
    for j in range(num_classes):
        log_free[:, j] = log_softmax(table[:, j, p])
        log_said[j] = log_sum(log_claims + log_free[:, j])
    parts = log_said + log_probs + math.log(1 - floor)
    own = log_claims + log_probs + (math.log(floor) if floor > 0 else -np.inf)
    log_likelihood = log_sum(np.append(parts, own))
    parts, own = weight * np.exp(parts - log_likelihood), weight * np.exp(own - log_likelihood)
    trace = 0.0
    for j in range(num_classes):
        free = np.exp(log_free[:, j])
        claimed = (1 - floor) * np.exp(log_claims + log_free[:, j] + log_probs[j] - log_likelihood)
        trace += weight * (floor + (1 - floor) * free[j])
        pull = weight * trace_weight * (1 - floor) * free[j]
        if len(score_slopes):
            score_slopes[j, p] += weight * math.exp(log_probs[j]) - parts[j] - own[j]
        if len(table_slopes):
            for i in range(num_classes):
                table_slopes[i, j, p] = free[i] * (parts[j] - pull) - weight * claimed[i]
            table_slopes[j, j, p] += pull
    return -weight * log_likelihood, trace


@compiled
def rank_one_terms(
    scores: Array,
    copy: Array,
    habit: Array,
    drawing: Array,
    weights: Array,
    reading: Array,
    floor: float,
    trace_weight: float,
    start: int,
    stop: int,
    score_slopes: Array,
    copy_slopes: Array,
    habit_slopes: Array,
) -> tuple[float, float]:
    """Diagonal + rank-1. ``O(L)`` work and memory.

    With ``p`` the segmentation, ``d`` the copied share, ``b`` the habit, ``m`` the drawing's claims, ``a = m . b`` and
    ``r = sum_j (1 - d_j) p_j``, the likelihood is ``sum_j m_j d_j p_j + a r`` and the trace
    ``L - sum_j (1 - d_j) (1 - b_j)``.
    """
    num_classes = len(scores)
    number = scores.dtype.type
    zero, one, most = number(0), number(1), number(num_classes)
    low, room, pull = number(floor), number(1 - floor), number(trace_weight * (1 - floor))
    size = max(16, min(1024, BLOCK_NUMBERS // num_classes))
    probs = np.empty((num_classes, size), scores.dtype)
    habits = np.empty((num_classes, size), scores.dtype)
    claims = np.empty((num_classes, size), scores.dtype)
    slack = np.empty((num_classes, size), scores.dtype)  # d = 1 - room slack; 1 - d would lose small ones
    free = np.empty((num_classes, size), scores.dtype)  # 1 - slack
    vectors = np.empty((8, size), scores.dtype)
    weight, likelihood, odds, right = vectors[0], vectors[1], vectors[2], vectors[3]
    said, mass, moved, missing = vectors[4], vectors[5], vectors[6], vectors[7]
    nll = trace = 0.0
    for first in range(start, stop, size):
        n = min(size, stop - first)
        _probabilities(scores, first, n, probs, odds, likelihood)
        for j in range(len(score_slopes)):
            score_slopes[j, first : first + n] = 0
        for r in range(len(copy)):
            if not read(drawing[r, first : first + n], weights[r], reading, claims, weight):
                if len(copy_slopes):
                    copy_slopes[r, :, first : first + n] = 0
                    habit_slopes[r, 0, :, first : first + n] = 0
                continue
            _probabilities(habit[r, 0], first, n, habits, odds, likelihood)
            for p in range(n):
                right[p] = zero
            for j in range(num_classes):
                row, gap, rest = copy[r, j, first : first + n], slack[j], free[j]
                claim, prob = claims[j], probs[j]
                for p in range(n):
                    gap[p] = fast_exp(-row[p])
                for p in range(n):
                    rest[p] = one / (one + gap[p])
                for p in range(n):
                    gap[p] *= rest[p]
                for p in range(n):
                    right[p] += claim[p] * prob[p] * (low + room * rest[p])
            _sum(slack, n, missing)
            dot(slack, probs, n, mass)
            dot(slack, habits, n, moved)
            dot(claims, habits, n, said)
            for p in range(n):
                mass[p] *= room
            for p in range(n):
                likelihood[p] = right[p] + said[p] * mass[p]
            value, num_small = _weigh(likelihood, weight, odds, n)
            nll += value
            total = number(0)
            for p in range(n):
                total += weight[p] * (most + room * (moved[p] - missing[p]))
            trace += total
            if len(score_slopes):
                for j in range(num_classes):
                    slope, prob, gap, rest = score_slopes[j, first : first + n], probs[j], slack[j], free[j]
                    claim = claims[j]
                    for p in range(n):
                        slope[p] += prob[p] * (weight[p] - room * odds[p] * said[p] * gap[p])
                    for p in range(n):
                        slope[p] -= claim[p] * prob[p] * (low + room * rest[p]) * odds[p]
            if len(copy_slopes):
                for p in range(n):
                    mass[p] *= odds[p]
                for p in range(n):
                    odds[p] *= room
                for p in range(n):
                    weight[p] *= pull
                for j in range(num_classes):
                    share, gap, rest, prob, claim = habits[j], slack[j], free[j], probs[j], claims[j]
                    slope = copy_slopes[r, j, first : first + n]
                    for p in range(n):
                        slope[p] = weight[p] * (one - share[p]) + odds[p] * prob[p] * (said[p] - claim[p])
                    for p in range(n):
                        slope[p] *= gap[p] * rest[p]
                    slope = habit_slopes[r, 0, j, first : first + n]
                    for p in range(n):
                        slope[p] = share[p] * (mass[p] * (said[p] - claim[p]) + weight[p] * (gap[p] - moved[p]))
            for p in range(n if num_small else 0):
                if likelihood[p] < 0:
                    drawn = drawing[r, first + p]
                    terms = _rank_one_pixel(
                        scores,
                        copy[r],
                        habit[r, 0],
                        first + p,
                        claims_of(drawn, reading, num_classes),
                        weights[r, drawn],
                        floor,
                        trace_weight,
                        score_slopes,
                        copy_slopes[r] if len(copy_slopes) else copy[r, :0],
                        habit_slopes[r, 0] if len(habit_slopes) else habit[r, 0, :0],
                    )
                    nll, trace = nll + terms[0], trace + terms[1]
    return nll, trace


@compiled
def _rank_one_pixel(
    scores: Array,
    copy: Array,
    habit: Array,
    p: int,
    claims: Array,
    weight: float,
    floor: float,
    trace_weight: float,
    score_slopes: Array,
    copy_slopes: Array,
    habit_slopes: Array,
) -> tuple[float, float]:
    """The same for one pixel of one annotator in log space."""
    num_classes = len(scores)
    log_probs, log_habit = log_softmax(scores[:, p]), log_softmax(habit[:, p])
    log_claims = np.log(claims)
    exact = copy[:, p].astype(np.float64)
    log_free = -np.log1p(np.exp(-np.abs(exact))) + np.minimum(exact, 0.0)
    log_slack = log_free - exact
    room = 1 - floor
    log_kept = np.log(floor + room * np.exp(log_free)) if floor > 0 else log_free
    log_said = log_sum(log_claims + log_habit)
    parts = log_said + log_slack + log_probs + math.log(room)
    right = log_claims + log_kept + log_probs
    log_likelihood = log_sum(np.append(parts, right))
    blamed = np.exp(log_claims + log_habit - log_said)  # share of each class in what the habit says
    copied = weight * room * np.exp(log_claims + log_free + log_probs - log_likelihood)
    parts, right = weight * np.exp(parts - log_likelihood), weight * np.exp(right - log_likelihood)
    habits, slack, free = np.exp(log_habit), np.exp(log_slack), np.exp(log_free)
    pull = weight * trace_weight * room
    blame, moved = parts.sum(), (slack * habits).sum()
    for j in range(num_classes):
        if len(score_slopes):
            score_slopes[j, p] += weight * math.exp(log_probs[j]) - parts[j] - right[j]
        if len(copy_slopes):
            slope = free[j] * (parts[j] + slack[j] * pull * (1 - habits[j]))
            copy_slopes[j, p] = slope - slack[j] * copied[j]
            habit_slopes[j, p] = habits[j] * (blame + pull * (slack[j] - moved)) - blame * blamed[j]
    return -weight * log_likelihood, weight * (num_classes + room * (moved - slack.sum()))
