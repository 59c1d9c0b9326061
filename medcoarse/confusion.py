"""The algebra of confusion and transition matrices, and the one place that states their orientation.

Convention:
    ``cm[b, r, observed, true, *S] = p(annotator r draws "observed" | the truth is "true")``: every column, a sum over
    ``observed``, is 1. ``transition[complementary, true] = p("not complementary" is drawn | the class is "true")``:
    the diagonal is 0 and every column sums to 1. Predicted drawings are therefore ``cm @ probs`` and predicted
    complementary drawings ``transition @ cm @ probs``.

Networks hand a *structured* matrix to the losses, one of the named tuples below, so that an ``L x L`` product is never
formed where it is not needed. All of them work in log space and offer the same methods (:class:`Confusion`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

UNLABELED = 255
"""Nothing was drawn here. One value in memory and on disk (uint8), never counted as background."""

OBSERVED, TRUE = 2, 3  # axes of a dense cm (B, R, observed, true, *S)


def annotate(cm: Tensor, probs: Tensor) -> Tensor:
    """Distribution of what each annotator draws: ``sum_j cm[i, j] p_j``.

    Args:
        cm: confusion matrices ``(B, R, L, L, *S)``, columns sum to 1.
        probs: class probabilities ``(B, L, *S)``.

    Returns:
        ``(B, R, L, *S)``, sums to 1 over axis 2.

    Source: CL Eq. 1; DHE Eq. 2.

    Example:
        >>> cm = torch.tensor([[0.9, 0.3], [0.1, 0.7]]).view(1, 1, 2, 2, 1, 1)  # columns: true class
        >>> annotate(cm, torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)).flatten()  # the truth is class 1
        tensor([0.3000, 0.7000])
    """
    return torch.einsum("brot...,bt...->bro...", cm, probs)


def complement(transition: Tensor, probs: Tensor) -> Tensor:
    """Distribution of the complementary label: ``sum_i transition[c, i] probs_i``.

    Args:
        transition: ``(L, L)``, zero diagonal, columns sum to 1.
        probs: probabilities with the class axis third from the left, ``(B, R, L, *S)``.

    Returns:
        ``(B, R, L, *S)``.

    Source: CL Eq. 4.
    Deviates: CL prints the transposed matrix, which is the same only where the matrix is symmetric; with the
        entries as CL defines them the product below is the one that is a probability.

    Example:
        >>> transition = torch.tensor([[0.0, 0.5, 0.2], [0.9, 0.0, 0.8], [0.1, 0.5, 0.0]])
        >>> truth_is_2 = torch.tensor([0.0, 0.0, 1.0]).view(1, 1, 3, 1)
        >>> complement(transition, truth_is_2).flatten()
        tensor([0.2000, 0.8000, 0.0000])
    """
    return torch.einsum("ci,bri...->brc...", transition, probs)


def compose(second: Tensor, first: Tensor) -> Tensor:
    """One confusion after another: ``sum_k second[i, k] first[k, j]``, both ``(B, R, L, L, *S)``.

    Example:
        >>> swap = swap_transition(2).view(1, 1, 2, 2, 1)
        >>> torch.equal(compose(swap, swap), identity(2).view(1, 1, 2, 2, 1))
        True
    """
    return torch.einsum("brok...,brkt...->brot...", second, first)


def trace(cm: Tensor) -> Tensor:
    """Sum of the diagonal at every pixel, ``(B, R, L, L, *S) -> (B, R, *S)``; L for a perfect annotator.

    Example:
        >>> trace(identity(3).view(1, 1, 3, 3, 1)).item()
        3.0
    """
    return torch.diagonal(cm, dim1=OBSERVED, dim2=TRUE).sum(-1)


def identity(num_classes: int) -> Tensor:
    """The annotator who never errs, ``(L, L)``.

    Example:
        >>> identity(2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    return torch.eye(num_classes)


def swap_transition(num_classes: int) -> Tensor:
    """Complementary labels drawn uniformly among the other classes, ``(L, L)``; for ``L = 2`` it is the swap.

    Source: CL Section 3.3 (unbiased complementary labels).

    Example:
        >>> swap_transition(3)
        tensor([[0.0000, 0.5000, 0.5000],
                [0.5000, 0.0000, 0.5000],
                [0.5000, 0.5000, 0.0000]])
    """
    check_num_classes(num_classes)
    return (1 - torch.eye(num_classes)) / (num_classes - 1)


def check_transition(transition: Tensor | Sequence[Sequence[float]]) -> Tensor:
    """Return a valid transition matrix ``(L, L)`` as float32 or say what is wrong with it.

    Raises:
        ValueError: not square, negative entries, a non-zero diagonal or columns that do not sum to 1.

    Example:
        >>> check_transition([[0.0, 1.0], [1.0, 0.0]])
        tensor([[0., 1.],
                [1., 0.]])
    """
    transition = torch.as_tensor(transition, dtype=torch.float32)
    if transition.ndim != 2 or transition.shape[0] != transition.shape[1]:
        raise ValueError(
            f"the transition matrix must be square (num_classes, num_classes), got {tuple(transition.shape)}"
        )
    if transition.diagonal().any():
        raise ValueError(
            "the transition matrix must have a zero diagonal (a complementary label names a class that the pixel is "
            f"not), got diagonal {transition.diagonal().tolist()}"
        )
    if (transition < 0).any() or not torch.allclose(transition.sum(0), torch.ones(len(transition)), atol=1e-4):
        raise ValueError(
            "columns of the transition matrix (axis 0 = complementary label) must be non-negative and sum to 1, got "
            f"column sums {transition.sum(0).tolist()}; pass the transpose if its rows sum to 1"
        )
    return transition


def plain_tensor(x: Any) -> Tensor:
    """A tensor without MONAI's meta data, whose bookkeeping costs more than the counting; arrays of any layout too.

    Example:
        >>> plain_tensor(np.array([[1, 2]], dtype=">u2")[:, ::-1])
        tensor([[2, 1]])
    """
    if isinstance(x, np.ndarray):
        wide = x.dtype.kind == "u" and x.dtype.itemsize > 1  # torch counts with few of these
        x = np.ascontiguousarray(x, dtype=np.int64 if wide else x.dtype.newbyteorder("="))
    return torch.as_tensor(x).detach().as_subclass(Tensor)


def check_num_classes(num_classes: int) -> None:
    """Raise ``ValueError`` unless there are 2 to 254 classes (255 means unlabeled)."""
    if not 2 <= num_classes < UNLABELED:
        raise ValueError(
            f"num_classes must be between 2 and {UNLABELED - 1} ({UNLABELED} means unlabeled), got {num_classes}"
        )


def sample_annotation(cm: Tensor, label: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw annotations from known confusion matrices.

    Args:
        cm: ``(B, R, L, L, *S)``, columns sum to 1.
        label: true classes ``(B, 1, *S)``, integer; 255 stays 255.
        generator: source of randomness.

    Returns:
        ``(B, R, *S)`` uint8.

    Example:
        >>> label = torch.tensor([[[0, 1, 1, 255]]])
        >>> sample_annotation(swap_transition(2).view(1, 1, 2, 2, 1).expand(1, 1, 2, 2, 4), label)
        tensor([[[  1,   0,   0, 255]]], dtype=torch.uint8)
    """
    unlabeled = label == UNLABELED
    known = label.masked_fill(unlabeled, 0).long()
    index = known[:, :, None, None].expand(-1, cm.shape[1], cm.shape[OBSERVED], 1, *label.shape[2:])
    cumulative = cm.gather(TRUE, index).squeeze(TRUE).cumsum(OBSERVED)
    uniform = torch.rand(label.shape[:1] + cm.shape[1:2] + label.shape[2:], generator=generator, device=cm.device)
    drawn = (uniform[:, :, None] >= cumulative[:, :, :-1]).sum(OBSERVED)
    return drawn.masked_fill(unlabeled, UNLABELED).to(torch.uint8)


class Confusion(Protocol):
    """What every structured confusion matrix offers; R annotators, L classes."""

    @property
    def num_annotators(self) -> int:
        """R, read off a shape: nothing is computed."""

    def log_annotate(self, log_probs: Tensor) -> Tensor:
        """``log sum_j A[i, j] p_j`` for every i: ``(B, L, *S) -> (B, R, L, *S)``."""

    def log_likelihood(self, log_probs: Tensor, observed: Tensor) -> Tensor:
        """``log sum_j A[observed, j] p_j``: ``(B, L, *S), (B, R, *S) -> (B, R, *S)``, ``observed`` in 0..L-1."""

    def log_rows(self, observed: Tensor) -> Tensor:
        """``log A[observed, j]`` for every j: ``(B, R, *S) -> (B, R, L, *S)``, ``observed`` in 0..L-1."""

    def diagonal(self) -> Tensor:
        """Probability that each class is drawn as itself, ``(B, R, L, *S)``."""

    def dense(self) -> Tensor:
        """The matrices written out, ``(B, R, L, L, *S)``."""


def gather_class(values: Tensor, observed: Tensor) -> Tensor:
    """Pick ``values[b, r, observed[b, r, *S], *S]`` from ``(B, R, L, *S)``; result ``(B, R, *S)``.

    Example:
        >>> gather_class(torch.tensor([[[[1.0], [2.0]]]]), torch.tensor([[[1]]])).item()
        2.0
    """
    return values.gather(2, observed[:, :, None]).squeeze(2)


class IdentityConfusion(NamedTuple):
    """An annotator who never errs. With it the coarse likelihood is plain cross-entropy.

    Example:
        >>> log_probs = torch.tensor([0.2, 0.8]).log().view(1, 2, 1)
        >>> IdentityConfusion(1).log_likelihood(log_probs, torch.tensor([[[1]]])).exp().item()
        0.800000011920929
    """

    num_annotators: int

    def log_annotate(self, log_probs: Tensor) -> Tensor:
        """See :meth:`Confusion.log_annotate`."""
        return log_probs[:, None].expand(-1, self.num_annotators, *(-1,) * (log_probs.ndim - 1))

    def log_likelihood(self, log_probs: Tensor, observed: Tensor) -> Tensor:
        """See :meth:`Confusion.log_likelihood`."""
        return log_probs.gather(1, observed)

    def log_rows(self, observed: Tensor) -> Tensor:
        """Not defined: the number of classes is not stored."""
        raise ValueError("IdentityConfusion has no rows: the number of classes is not stored")

    def diagonal(self) -> Tensor:
        """See :meth:`Confusion.diagonal`; one value stands for all pixels and classes."""
        return torch.ones(1, self.num_annotators, 1, 1)

    def dense(self) -> Tensor:
        """Not defined: the number of classes is not stored."""
        raise ValueError("IdentityConfusion has no dense form; use medcoarse.confusion.identity(num_classes)")


def confusion_maps(confusion: Confusion, num_classes: int, batch: int, size: Sequence[int]) -> Tensor:
    """The matrices at every pixel, ``(B, R, L, L, *S)``, also of annotators who err alike everywhere, or never.

    Example:
        >>> confusion_maps(IdentityConfusion(1), num_classes=2, batch=3, size=(4, 4)).shape
        torch.Size([3, 1, 2, 2, 4, 4])
    """
    if isinstance(confusion, IdentityConfusion):
        cm = identity(num_classes).expand(1, confusion.num_annotators, -1, -1)
    else:
        cm = confusion.dense()
    return cm.view(*cm.shape[:4], *(cm.shape[4:] or (1,) * len(size))).expand(batch, -1, -1, -1, *size)


class FullConfusion(NamedTuple):
    """``A = floor I + (1 - floor) softmax(logits)``, one free matrix per pixel.

    Args:
        logits: ``(B, R, L, L, *S)``, normalized over axis 2 (observed).
        floor: lower bound of the diagonal in [0, 1). Above 0.5 every column, and with L = 2 every row, is dominated by
            its diagonal, so that classes cannot be permuted.

    Source: CL Eq. 2; DHE Section 3. The floor is ours.

    Example:
        >>> cm = FullConfusion(torch.zeros(1, 1, 2, 2, 1), floor=0.5).dense()
        >>> cm.view(2, 2)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])
    """

    logits: Tensor
    floor: float = 0.0

    @property
    def num_annotators(self) -> int:
        """See :attr:`Confusion.num_annotators`."""
        return self.logits.shape[1]

    def log_annotate(self, log_probs: Tensor) -> Tensor:
        """See :meth:`Confusion.log_annotate`."""
        free = torch.logsumexp(self.logits - self._column_sums() + log_probs[:, None, None], TRUE)
        return _mix_floor(free, log_probs[:, None], self.floor)

    def log_likelihood(self, log_probs: Tensor, observed: Tensor) -> Tensor:
        """See :meth:`Confusion.log_likelihood`. Only the observed row is gathered."""
        free = torch.logsumexp(self._free_rows(observed) + log_probs[:, None], 2)
        return _mix_floor(free, log_probs.gather(1, observed), self.floor)

    def log_rows(self, observed: Tensor) -> Tensor:
        """See :meth:`Confusion.log_rows`."""
        return _mix_floor(self._free_rows(observed), _log_drawn(observed, self.logits.shape[TRUE]), self.floor)

    def diagonal(self) -> Tensor:
        """See :meth:`Confusion.diagonal`."""
        own = torch.diagonal(self.logits, dim1=OBSERVED, dim2=TRUE).movedim(-1, 2)
        return self.floor + (1 - self.floor) * (own - self._column_sums().squeeze(OBSERVED)).exp()

    def dense(self) -> Tensor:
        """See :meth:`Confusion.dense`."""
        free = (1 - self.floor) * (self.logits - self._column_sums()).exp()
        eye = torch.eye(self.logits.shape[TRUE], device=free.device, dtype=free.dtype)
        return free + self.floor * eye.view(*eye.shape, *(1,) * (free.ndim - 4))

    def _free_rows(self, observed: Tensor) -> Tensor:
        index = observed[:, :, None, None].expand(-1, -1, 1, self.logits.shape[TRUE], *observed.shape[2:])
        return (self.logits.gather(OBSERVED, index) - self._column_sums()).squeeze(OBSERVED)

    def _column_sums(self) -> Tensor:
        return torch.logsumexp(self.logits, OBSERVED, keepdim=True)


class LowRankConfusion(NamedTuple):
    """``A[i, j] = d_j [i = j] + (1 - d_j) sum_k W[i, k] H[k, j]``: copy the truth, or else one of K habits.

    ``d = floor + (1 - floor) sigmoid(copy)``, ``W`` is a softmax over the drawn class and ``H`` over the habits. With
    K = 1 this is "diagonal + rank-1": ``2 L`` channels instead of ``L^2``, and exactly as general as a full matrix with
    ``A[0, 0] + A[1, 1] >= 1`` at L = 2.

    Args:
        copy: ``(B, R, L, *S)``, logit of the share that is copied.
        habits: ``(B, R, K, L, *S)``, logits over the drawn class (axis 3).
        weights: ``(B, R, K, L, *S)``, logits over the habits (axis 2) for each true class; ``None`` when K = 1.
        floor: lower bound of the copied share, hence of the diagonal.

    Source: DHE Section 3.3 (low-rank approximation).
    Deviates: DHE normalizes a rank-1 product; a matrix near identity is then out of reach. Here the diagonal is kept
        apart and every factor is stochastic, so that columns sum to 1 without a normalization.

    Example:
        >>> cm = LowRankConfusion(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 1, 3, 1)).dense()
        >>> torch.allclose(cm.sum(2), torch.ones(3, 1))  # columns
        True
    """

    copy: Tensor
    habits: Tensor
    weights: Tensor | None = None
    floor: float = 0.0

    @property
    def num_annotators(self) -> int:
        """See :attr:`Confusion.num_annotators`."""
        return self.copy.shape[1]

    def log_annotate(self, log_probs: Tensor) -> Tensor:
        """See :meth:`Confusion.log_annotate`."""
        mass = self._log_habit_mass(log_probs)
        habit = torch.logsumexp(self._log_habits() + mass[:, :, :, None], 2)
        return torch.logaddexp(self._log_copy() + log_probs[:, None], habit)

    def log_likelihood(self, log_probs: Tensor, observed: Tensor) -> Tensor:
        """See :meth:`Confusion.log_likelihood`."""
        habit = torch.logsumexp(self._habits_of(observed) + self._log_habit_mass(log_probs), 2)
        copied = gather_class(self._log_copy(), observed) + log_probs.gather(1, observed)
        return torch.logaddexp(copied, habit)

    def log_rows(self, observed: Tensor) -> Tensor:
        """See :meth:`Confusion.log_rows`."""
        habits = self._habits_of(observed)[:, :, :, None]  # (B, R, K, 1, *S)
        if self.weights is not None:
            habits = habits + self.weights - torch.logsumexp(self.weights, 2, keepdim=True)
        habit = torch.logsumexp(habits, 2) + F.logsigmoid(-self.copy) + math.log1p(-self.floor)
        return torch.logaddexp(self._log_copy() + _log_drawn(observed, self.copy.shape[2]), habit)

    def diagonal(self) -> Tensor:
        """See :meth:`Confusion.diagonal`."""
        copied = self._log_copy().exp()
        return copied + (1 - copied) * (self._log_habits().exp() * self._share()).sum(2)

    def dense(self) -> Tensor:
        """See :meth:`Confusion.dense`."""
        copied = self._log_copy().exp()
        habit = torch.einsum("brko...,brkt...->brot...", self._log_habits().exp(), self._share())
        eye = torch.eye(self.copy.shape[2], device=copied.device, dtype=copied.dtype)
        eye = eye.view(*eye.shape, *(1,) * (copied.ndim - 3))
        return eye * copied[:, :, None] + habit * (1 - copied)[:, :, None]

    def _habits_of(self, observed: Tensor) -> Tensor:
        """``log W[observed, k]``, ``(B, R, K, *S)``."""
        index = observed[:, :, None, None].expand(-1, -1, self.habits.shape[2], 1, *observed.shape[2:])
        return self._log_habits().gather(3, index).squeeze(3)

    def _log_copy(self) -> Tensor:
        free = F.logsigmoid(self.copy)
        return free if self.floor == 0 else _mix_floor(free, torch.zeros_like(free), self.floor)

    def _log_habits(self) -> Tensor:
        return self.habits - torch.logsumexp(self.habits, 3, keepdim=True)

    def _share(self) -> Tensor:
        if self.weights is None:
            return torch.ones_like(self.habits)
        return (self.weights - torch.logsumexp(self.weights, 2, keepdim=True)).exp()

    def _log_habit_mass(self, log_probs: Tensor) -> Tensor:
        """``log sum_j H[k, j] (1 - d_j) p_j``, ``(B, R, K, *S)``."""
        mass = F.logsigmoid(-self.copy) + math.log1p(-self.floor) + log_probs[:, None]
        if self.weights is None:
            return torch.logsumexp(mass, 2, keepdim=True)
        log_share = self.weights - torch.logsumexp(self.weights, 2, keepdim=True)
        return torch.logsumexp(log_share + mass[:, :, None], 3)


class UpsampledConfusion(NamedTuple):
    """Matrices whose parameters are known on a coarser grid and interpolated linearly to the image.

    The loss interpolates them piece by piece (:mod:`medcoarse.fused`), so that they never exist at every pixel.

    Args:
        coarse: parameters ``(B, R, ..., *S')``.
        size: ``S``, size of the image.

    Source: ours.

    Example:
        >>> coarse = FullConfusion(torch.zeros(1, 1, 2, 2, 4, 4), floor=0.5)
        >>> UpsampledConfusion(coarse, (8, 8)).dense().shape
        torch.Size([1, 1, 2, 2, 8, 8])
    """

    coarse: FullConfusion | LowRankConfusion
    size: tuple[int, ...]

    @property
    def num_annotators(self) -> int:
        """See :attr:`Confusion.num_annotators`."""
        return self.coarse.num_annotators

    def full(self) -> FullConfusion | LowRankConfusion:
        """The matrices with parameters at every pixel."""
        fields: dict[str, Any] = {name: self._interpolated(value) for name, value in self.coarse._asdict().items()}
        return self.coarse._replace(**fields)

    def log_annotate(self, log_probs: Tensor) -> Tensor:
        """See :meth:`Confusion.log_annotate`."""
        return self.full().log_annotate(log_probs)

    def log_likelihood(self, log_probs: Tensor, observed: Tensor) -> Tensor:
        """See :meth:`Confusion.log_likelihood`."""
        return self.full().log_likelihood(log_probs, observed)

    def log_rows(self, observed: Tensor) -> Tensor:
        """See :meth:`Confusion.log_rows`."""
        return self.full().log_rows(observed)

    def diagonal(self) -> Tensor:
        """See :meth:`Confusion.diagonal`."""
        return self.full().diagonal()

    def dense(self) -> Tensor:
        """See :meth:`Confusion.dense`."""
        return self.full().dense()

    def _interpolated(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        spatial_dims = len(self.size)
        channels = value.flatten(1, -spatial_dims - 1)
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[spatial_dims]
        values = F.interpolate(channels, self.size, mode=mode, align_corners=False)
        return torch.unflatten(values, 1, value.shape[1:-spatial_dims])


class GlobalConfusion(NamedTuple):
    """``A = floor I + (1 - floor) softmax(logits)``, one matrix per annotator for all pixels of all images.

    Args:
        logits: ``(R, L, L)``, normalized over axis 1 (observed).
        floor: lower bound of the diagonal in [0, 1).

    Source: DHE Table 6 ("global" confusion matrix).

    Example:
        >>> GlobalConfusion(torch.zeros(2, 3, 3)).dense().shape  # one value along each of the image axes
        torch.Size([1, 2, 3, 3])
    """

    logits: Tensor
    floor: float = 0.0

    @property
    def num_annotators(self) -> int:
        """See :attr:`Confusion.num_annotators`."""
        return len(self.logits)

    def log_annotate(self, log_probs: Tensor) -> Tensor:
        """See :meth:`Confusion.log_annotate`."""
        table = self._log_free().view(1, *self.logits.shape, *(1,) * (log_probs.ndim - 2))
        return _mix_floor(torch.logsumexp(table + log_probs[:, None, None], TRUE), log_probs[:, None], self.floor)

    def log_likelihood(self, log_probs: Tensor, observed: Tensor) -> Tensor:
        """See :meth:`Confusion.log_likelihood`."""
        free = torch.logsumexp(self._free_rows(observed) + log_probs[:, None], 2)
        return _mix_floor(free, log_probs.gather(1, observed), self.floor)

    def log_rows(self, observed: Tensor) -> Tensor:
        """See :meth:`Confusion.log_rows`."""
        return _mix_floor(self._free_rows(observed), _log_drawn(observed, self.logits.shape[-1]), self.floor)

    def diagonal(self) -> Tensor:
        """See :meth:`Confusion.diagonal`; ``(1, R, L, 1)``, the same for all pixels."""
        own = torch.diagonal(self._log_free(), dim1=1, dim2=2)
        return (self.floor + (1 - self.floor) * own.exp())[None, :, :, None]

    def dense(self) -> Tensor:
        """See :meth:`Confusion.dense`; ``(1, R, L, L)``, the same for all pixels."""
        eye = torch.eye(self.logits.shape[-1], device=self.logits.device)
        return (self.floor * eye + (1 - self.floor) * self._log_free().exp())[None]

    def _free_rows(self, observed: Tensor) -> Tensor:
        annotator = torch.arange(len(self.logits), device=observed.device).view(1, -1, *(1,) * (observed.ndim - 2))
        return self._log_free()[annotator, observed].movedim(-1, 2)

    def _log_free(self) -> Tensor:
        return self.logits - torch.logsumexp(self.logits, 1, keepdim=True)


def _log_drawn(observed: Tensor, num_classes: int) -> Tensor:
    """Rows of an annotator who never errs: 0 for the class that was drawn, ``-inf`` for the others."""
    classes = torch.arange(num_classes, device=observed.device).view(1, 1, -1, *(1,) * (observed.ndim - 2))
    return torch.where(classes == observed[:, :, None], 0.0, -torch.inf)


def _mix_floor(log_free: Tensor, log_own: Tensor, floor: float) -> Tensor:
    """``log((1 - floor) e^free + floor e^own)`` without leaving log space."""
    if floor == 0:
        return log_free
    return torch.logaddexp(log_free + math.log1p(-floor), log_own.to(log_free) + math.log(floor))


class CoupledOutput(NamedTuple):
    """What the coupled model hands to the loss.

    Args:
        logits: the segmenter's class scores, ``(B, L, *S)``.
        positive: confusion of the R positive annotators; ``None`` while the annotators are not trained (warm-up).
        negative: confusion of the C negative annotators.
        log_transition: learned ``log M``, ``(L, L)``; ``None`` when M is fixed.
        finished: whether the segmenter stays as it is, and the annotators are fitted to it.
        heads: class scores of what each positive annotator would draw, ``(B, R, L, *S)``, while a segmenter learns
            that predicts it (:class:`medcoarse.networks.AnnotatorHeads`); else ``None``.
        num_annotators: R and C of the model in the warm-up, so that drawings which will not fit are noticed at once.
    """

    logits: Tensor
    positive: Confusion | None = None
    negative: Confusion | None = None
    log_transition: Tensor | None = None
    finished: bool = False
    heads: Tensor | None = None
    num_annotators: tuple[int, int] | None = None

    @property
    def is_warmup(self) -> bool:
        """Whether no annotators are trained."""
        return self.positive is None and self.negative is None


class Annotations(NamedTuple):
    """What is known about a batch; anything may be ``None`` and any pixel, or a whole map, ``UNLABELED``.

    Args:
        positive: ``(B, R, *S)``, value k = "drawn: this is class k".
        negative: ``(B, C, *S)``, value k = "drawn: this is NOT class k".
        label: dense masks where some images have them, ``(B, 1, *S)``.
        image: ``(B, channels, *S)``, for appearance terms.
        confusion: matrices of the positive annotators where they are known, ``(B, R L L, *S)`` in the order annotator,
            observed, true; for :class:`medcoarse.baselines.oracle.OracleLoss`.
        synthetic: ``(B,)``, which images are drawn by a program and not taken; for
            :class:`medcoarse.selftrain.boundary.BoundaryLoss`.
    """

    positive: Tensor | None = None
    negative: Tensor | None = None
    label: Tensor | None = None
    image: Tensor | None = None
    confusion: Tensor | None = None
    synthetic: Tensor | None = None
