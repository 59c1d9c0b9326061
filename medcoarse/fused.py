"""Likelihood and trace of a group of annotators, evaluated together with their gradients in cache-sized chunks.

The same numbers as the plain equations of :mod:`medcoarse.losses`, which stay the reference that tests compare with.
What differs is the cost: a chunk of pixels is read once, stays in the processor's cache while value *and* gradient are
computed, and leaves nothing behind but its gradient. Beyond inputs and gradients the memory is that of one chunk; a
loss that is scaled afterwards (accumulation, a GradScaler) needs the gradients twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medcoarse.confusion import UNLABELED, Confusion, FullConfusion, LowRankConfusion

LogLikelihood = Callable[[Tensor, Confusion, Tensor], Tensor]
"""``(log_probs (B, L, N), confusion, annotation (B, R, N)) -> (B, R, N)``, anything where nothing was drawn.

It is given some pixels in a row, not the image: what it says of a pixel may depend on that pixel only.
"""

PixelConfusion = FullConfusion | LowRankConfusion
"""The structures with a matrix at every pixel."""

SMALLEST = 1e-30  # likelihoods below it are computed in log space
CHUNK_BYTES = (
    1 << 21
)  # of matrix parameters, for each thread; larger leaves the cache, smaller spends its time between operations
GPU_CHUNK_BYTES = 1 << 26  # there, launching an operation costs more than leaving the cache


class Terms(NamedTuple):
    """Objective of one group of annotators.

    Args:
        objective: ``nll + trace_weight * trace``; the one that is differentiable.
        nll: mean over the drawn pixels of each annotator, summed over the annotators, in nats.
        trace: mean trace over the same pixels, summed over the annotators.
    """

    objective: Tensor
    nll: Tensor
    trace: Tensor


def annotator_terms(
    logits: Tensor,
    confusion: PixelConfusion,
    annotation: Tensor,
    trace_weight: float,
    log_likelihood: LogLikelihood | None = None,
) -> Terms:
    """Negative log-likelihood and mean trace of annotators, fused with their gradients.

    Args:
        logits: class scores of the segmenter, ``(B, L, *S)``, float32.
        confusion: of R annotators.
        annotation: ``(B, R, *S)``, class drawn or 255; 255 costs nothing where little was drawn.
        trace_weight: λ; 0 leaves the trace out of the objective.
        log_likelihood: how a drawing is read; ``None`` reads the drawn class as what was observed, CL Eq. 3.

    Returns:
        :class:`Terms`, equal to :func:`medcoarse.losses.coarse_nll` and :func:`medcoarse.losses.mean_trace`.

    Raises:
        ValueError: shapes that do not fit each other, or a drawing with a value that is neither a class nor 255.

    Source: CL Eq. 3 and 6. Fusing value and gradient is ours.
    Deviates: second derivatives are not available, take the plain functions for them. On a GPU a likelihood counts as
        1e-30 at least.

    Example:
        >>> logits = torch.tensor([0.2, 0.8]).log().view(1, 2, 1)
        >>> confusion = FullConfusion(torch.zeros(1, 1, 2, 2, 1), floor=0.5)
        >>> terms = annotator_terms(logits, confusion, torch.tensor([[[1]]]), trace_weight=0.1)
        >>> [round(term.item(), 4) for term in terms]  # -log(0.25 * 0.2 + 0.75 * 0.8), 2 * 0.75
        [0.5808, 0.4308, 1.5]
    """
    fields = [field.to(logits.dtype) for field in _fields(confusion).values()]
    _check(logits, fields, annotation)
    num_wanted = 1 + len(fields) if any(field.requires_grad for field in fields) else int(logits.requires_grad)
    plan = _Plan(confusion, annotation, trace_weight, log_likelihood, num_wanted * torch.is_grad_enabled())
    return Terms(*_Fused.apply(plan, logits, *fields))  # type: ignore[no-untyped-call]


class _Plan(NamedTuple):
    """Everything about one evaluation that is not differentiated."""

    confusion: PixelConfusion
    annotation: Tensor
    trace_weight: float
    log_likelihood: LogLikelihood | None
    num_wanted: int  # gradients: none, of the logits, or of the confusion's parameters too


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wanted = inputs[: plan.num_wanted]
        grads = [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in wanted]
        if grads:
            grads[0].zero_()
        terms = _evaluate(plan, list(inputs), grads or None)
        ctx.save_for_backward(*grads)
        nll, trace = terms.unbind()
        ctx.mark_non_differentiable(nll, trace)
        return nll + plan.trace_weight * trace, nll, trace

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # The usual scale is 1; on the processor a look is free and saves a pass over all gradients.
        same = scale.device.type == "cpu" and scale.item() == 1
        grads = [grad if same else grad * scale for grad in ctx.saved_tensors]
        return None, *grads, *[None] * (len(ctx.needs_input_grad) - 1 - len(grads))


def _fields(confusion: PixelConfusion) -> dict[str, Tensor]:
    """The parameters of a structured matrix, which are named tuples of tensors, numbers and ``None``."""
    fields: dict[str, Any] = confusion._asdict()
    return {name: value for name, value in fields.items() if isinstance(value, Tensor)}


def _check(logits: Tensor, fields: list[Tensor], annotation: Tensor) -> None:
    """Say what does not fit; costs no pass over the pixels."""
    batch, image = logits.shape[0], logits.shape[2:]
    expected = (batch, annotation.shape[1])
    fits = all(field.shape[:2] == expected and field.shape[-len(image) :] == image for field in fields)
    if not fits or annotation.shape != (*expected, *image) or not annotation.numel():
        raise ValueError(
            "logits (B, L, *S), confusion parameters (B, R, ..., *S) and drawings (B, R, *S) must fit and hold pixels, "
            f"got {', '.join(str(tuple(tensor.shape)) for tensor in (logits, *fields, annotation))}"
        )


def _evaluate(plan: _Plan, inputs: list[Tensor], grads: list[Tensor] | None) -> Tensor:
    """``(nll, trace)``; the gradients of the objective are added to the first of ``grads`` and written to the rest."""
    spatial_dims = inputs[0].ndim - 2
    inputs = [tensor.flatten(-spatial_dims) for tensor in inputs]
    targets = None if grads is None else [grad.flatten(-spatial_dims) for grad in grads]
    annotation = plan.annotation.flatten(2)
    counts = _drawn_counts(annotation, inputs[0].shape[1])
    weights = counts.clamp_min(1).to(inputs[0].dtype).reciprocal()
    # Picking the drawn pixels out pays where they are few; on a GPU it would make the processor wait.
    few = annotation.device.type == "cpu" and (2 * counts < annotation[:, 0].numel()).tolist()
    evaluate = _evaluator(plan)
    terms = inputs[0].new_zeros(2)
    for annotator in range(annotation.shape[1]):
        one = slice(annotator, annotator + 1)
        for images, pixels in _chunks([field[:, one] for field in inputs[1:]]):
            drawing = annotation[images, one, pixels]
            some = _drawn_pixels(drawing) if few and few[annotator] else None
            views = _cut(inputs, images, one, pixels)
            slots = None if targets is None else _cut(targets, images, one, pixels)  # as many as there are gradients
            if some is None:
                terms += evaluate(plan, views, drawing, weights[annotator], slots)
                continue
            for slot in (slots or [])[1:]:
                slot.zero_()
            if len(some):
                packed = [view[..., some] for view in views]
                slopes = None if slots is None else [torch.zeros_like(view) for view in packed[: len(slots)]]
                terms += evaluate(plan, packed, drawing[..., some], weights[annotator], slopes)
                for slot, slope in zip(slots or (), slopes or (), strict=True):
                    slot.index_add_(-1, some, slope)
    return terms


def _drawn_counts(annotation: Tensor, num_classes: int) -> Tensor:
    """How many pixels each annotator drew, ``(R,)``."""
    counts = (annotation != UNLABELED).sum((0, 2))
    if annotation.device.type != "cpu":  # there, looking classes up checks them without a wait
        return counts
    classes = (annotation < num_classes).sum() - (annotation < 0).sum() * annotation.dtype.is_signed
    if counts.sum() != classes:
        raise ValueError(
            f"drawings must hold classes below {num_classes}, or {UNLABELED} where nothing was drawn; "
            f"{int(counts.sum() - classes)} pixels hold something else"
        )
    return counts


def _evaluator(plan: _Plan) -> Callable[..., Tensor]:
    """Slopes written down for the usual structures, autograd for the rest."""
    confusion = plan.confusion
    if plan.log_likelihood is not None:
        return _any_chunk
    if isinstance(confusion, FullConfusion):
        two = confusion.logits.shape[2] == 2 and confusion.logits.device.type == "cpu"  # it looks no class up
        return _two_class_chunk if two else _full_chunk
    rank_one = isinstance(confusion, LowRankConfusion) and confusion.weights is None
    return _rank_one_chunk if rank_one else _any_chunk


def _chunks(fields: list[Tensor]) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch and of the pixels that keep the parameters of one annotator below the limit."""
    limit = CHUNK_BYTES * torch.get_num_threads() if fields[0].device.type == "cpu" else GPU_CHUNK_BYTES
    batch, pixels = fields[0].shape[0], fields[0].shape[-1]
    size = max(256, limit // sum(field[0, ..., 0].numel() * field.element_size() for field in fields))
    images = max(1, size // pixels)
    size = -(-pixels // -(-pixels // size))  # all of about one size: a small rest costs as many operations
    for first in range(0, batch, images):
        for start in range(0, pixels, size):
            yield slice(first, first + images), slice(start, start + size)


def _cut(tensors: list[Tensor], images: slice, annotator: slice, pixels: slice) -> list[Tensor]:
    scores, *fields = tensors
    return [scores[images, :, pixels], *(field[images, annotator, ..., pixels] for field in fields)]


def _drawn_pixels(drawing: Tensor) -> Tensor:
    return (drawing != UNLABELED).flatten(0, 1).any(0).nonzero().squeeze(1)


def _any_chunk(plan: _Plan, views: list[Tensor], drawing: Tensor, weight: Tensor, slots: list[Tensor] | None) -> Tensor:
    """Any structure and any reading, by the plain equations and autograd."""
    with torch.set_grad_enabled(slots is not None):
        views = [view.detach().requires_grad_(slots is not None) for view in views]
        log_probs = views[0].log_softmax(1)
        fields: dict[str, Any] = dict(zip(_fields(plan.confusion), views[1:], strict=True))
        confusion = plan.confusion._replace(**fields)
        drawn = drawing != UNLABELED
        if plan.log_likelihood is None:
            likelihood = confusion.log_likelihood(log_probs, drawing.masked_fill(~drawn, 0).long())
        else:
            likelihood = plan.log_likelihood(log_probs, confusion, drawing)
        nll = -likelihood.where(drawn, 0.0).sum() * weight
        trace = confusion.diagonal().sum(2).where(drawn, 0.0).sum() * weight
        if slots is not None:
            slopes = torch.autograd.grad(nll + plan.trace_weight * trace, views[: len(slots)])
            slots[0].add_(slopes[0])
            for slot, slope in zip(slots[1:], slopes[1:], strict=True):
                slot.copy_(slope)
    return torch.stack([nll, trace]).detach()


def _read(drawing: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of every pixel, 0 where nothing was drawn, and a class to look up, any where nothing was drawn."""
    drawn = drawing != UNLABELED
    return drawn.to(weight.dtype).mul_(weight), drawing.masked_fill(~drawn, 0).long()


def _underflows(likelihood: Tensor, right: Tensor) -> bool:
    """Whether the chunk has to be computed in log space.

    A GPU would have to wait for the answer. There a likelihood below ``SMALLEST`` is raised to it, as if the drawn
    class had that much more probability: 69 nats at most, with the gradient of a drawing that is right.
    """
    if likelihood.device.type == "cpu":
        return bool(likelihood.min() < SMALLEST)
    missing = (SMALLEST - likelihood).clamp_(min=0)
    right.add_(missing)
    likelihood.add_(missing)
    return False


def _full_chunk(
    plan: _Plan, views: list[Tensor], drawing: Tensor, weight: Tensor, slots: list[Tensor] | None
) -> Tensor:
    """Full matrices with the drawn class as what was observed: the slopes are written down.

    With ``p`` the segmentation, ``S`` the free matrix, ``q_j = (1 - floor) S[drawn, j] p_j / likelihood`` and ``w`` the
    pixel's weight, the slope along ``logits[i, j]`` is ``w (S_ij - [i = drawn]) q_j`` from the likelihood and
    ``w trace_weight (1 - floor) S_jj ([i = j] - S_ij)`` from the trace; along the segmenter's logit j it is
    ``w (p_j - q_j - [j = drawn] floor p_j / likelihood)``.
    """
    scores, table = views[0], views[1].squeeze(1)  # (B, L, N), (B, observed, true, N)
    floor = plan.confusion.floor
    num_classes = table.shape[2]
    pixel_weight, observed = _read(drawing, weight)
    entry = observed[:, :, None].expand(-1, -1, num_classes, -1)

    probs = scores.softmax(1)
    learns = slots is not None and len(slots) > 1
    matrix = slots[1].squeeze(1) if slots is not None and learns else torch.empty_like(table)
    torch.sub(table, table.amax(1, keepdim=True), out=matrix).exp_()
    columns = matrix.sum(1).reciprocal_()  # the free matrix is matrix * columns; it is multiplied once, at the end
    posterior = matrix.gather(1, entry).squeeze(1).mul_(columns).mul_(probs).mul_(1 - floor)
    own = probs.gather(1, observed).mul_(floor)
    likelihood = posterior.sum(1, keepdim=True).add_(own)
    if _underflows(likelihood, own):
        return _any_chunk(plan, views, drawing, weight, slots)
    diagonal = matrix.diagonal(dim1=1, dim2=2).movedim(-1, 1) * columns
    trace = diagonal.sum(1, keepdim=True).mul_(1 - floor).add_(floor * num_classes).mul_(pixel_weight).sum()
    odds = pixel_weight / likelihood
    terms = torch.stack([-likelihood.log_().mul_(pixel_weight).sum(), trace])
    if slots is None:
        return terms

    posterior.mul_(odds)
    slots[0].addcmul_(probs, pixel_weight).sub_(posterior)
    slots[0].scatter_add_(1, observed, own.mul_(odds).neg_())
    if not learns:
        return terms
    pull = diagonal.mul_(pixel_weight.mul_(plan.trace_weight * (1 - floor)))
    matrix.mul_((posterior - pull).mul_(columns)[:, None])
    matrix.scatter_add_(1, entry, posterior.neg_()[:, None])
    matrix.diagonal(dim1=1, dim2=2).movedim(-1, 1).add_(pull)
    return terms


def _two_class_chunk(
    plan: _Plan, views: list[Tensor], drawing: Tensor, weight: Tensor, slots: list[Tensor] | None
) -> Tensor:
    """:func:`_full_chunk` for two classes, where a softmax is a sigmoid of a difference and slopes come in pairs.

    With ``t_j = logits[1, j] - logits[0, j]`` and ``s = 1`` where class 1 was drawn, else -1, ``S[drawn, j]`` is
    ``sigmoid(s t_j)``.
    """
    scores, table = views[0], views[1].squeeze(1)  # (B, 2, N), (B, 2, 2, N)
    room = 1 - plan.confusion.floor
    pixel_weight = (drawing != UNLABELED).to(scores.dtype).mul_(weight)
    upper = (drawing == 1).to(scores.dtype)
    sign = (upper * 2).sub_(1)

    row = (table[:, 1] - table[:, 0]).mul_(sign).sigmoid_()  # S[drawn, j]
    probs = torch.empty_like(scores)
    torch.sub(scores[:, 1:], scores[:, :1], out=probs[:, 1:])
    torch.neg(probs[:, 1:], out=probs[:, :1])
    probs.sigmoid_()  # both, because 1 - sigmoid loses small probabilities
    posterior = (row * probs).mul_(room)
    own = torch.where(drawing == 1, probs[:, 1:], probs[:, :1]).mul_(1 - room)
    likelihood = posterior[:, 1:] + own
    likelihood.add_(posterior[:, :1])
    if _underflows(likelihood, own):
        return _any_chunk(plan, views, drawing, weight, slots)
    trace = (row[:, 1:] - row[:, :1]).mul_(sign).mul_(room).add_(2 - room).mul_(pixel_weight).sum()
    odds = pixel_weight / likelihood
    terms = torch.stack([-likelihood.log_().mul_(pixel_weight).sum(), trace])
    if slots is None:
        return terms

    posterior.mul_(odds)
    slope = (probs[:, 1:] * pixel_weight).sub_(posterior[:, 1:]).sub_(own.mul_(odds).mul_(upper))
    slots[0][:, 1:].add_(slope)
    slots[0][:, :1].sub_(slope)
    if len(slots) == 1:
        return terms
    pull = pixel_weight.mul_(plan.trace_weight * room)
    slope = posterior.mul_(sign.neg_())
    slope[:, 1:].addcmul_(row[:, 1:], pull)
    slope[:, :1].addcmul_(row[:, :1], pull, value=-1)
    target = slots[1].squeeze(1)
    torch.mul(slope, row.neg_().add_(1), out=target[:, 1])
    torch.neg(target[:, 1], out=target[:, 0])
    return terms


def _rank_one_chunk(
    plan: _Plan, views: list[Tensor], drawing: Tensor, weight: Tensor, slots: list[Tensor] | None
) -> Tensor:
    """Diagonal + rank-1 with the drawn class ``y`` as what was observed; ``O(L)`` work and memory.

    With ``p`` the segmentation, ``d`` the copied share, ``b`` the habit and ``m = sum_j (1 - d_j) p_j``, the likelihood
    is ``d_y p_y + b_y m`` and the trace ``L - sum_j (1 - d_j) (1 - b_j)``.
    """
    scores, copy, habit = views[0], views[1].squeeze(1), views[2].squeeze(1).squeeze(1)  # (B, L, N) each
    room = 1 - plan.confusion.floor
    pixel_weight, observed = _read(drawing, weight)

    # Softmaxes stay unnormalized, p = P / P_sum and b = H / H_sum: one division a pixel in place of one a class.
    probs, habit = (torch.sub(x, x.amax(1, keepdim=True)).exp_() for x in (scores, habit))
    per_prob, per_habit = probs.sum(1, keepdim=True).reciprocal_(), habit.sum(1, keepdim=True).reciprocal_()
    free, slack = copy.sigmoid(), copy.neg().sigmoid_()  # d = 1 - room slack; 1 - sigmoid would lose small ones
    mass = (slack * probs).sum(1, keepdim=True).mul_(per_prob).mul_(room)
    own = probs.gather(1, observed).mul_(per_prob)
    right = free.gather(1, observed).mul_(room).add_(1 - room).mul_(own)
    drawn_habit = habit.gather(1, observed).mul_(per_habit)
    likelihood = torch.addcmul(right, drawn_habit, mass)
    if _underflows(likelihood, right):
        return _any_chunk(plan, views, drawing, weight, slots)
    moved = (slack * habit).sum(1, keepdim=True).mul_(per_habit)
    trace = (moved - slack.sum(1, keepdim=True)).mul_(room).add_(scores.shape[1]).mul_(pixel_weight).sum()
    odds = pixel_weight / likelihood
    terms = torch.stack([-likelihood.log_().mul_(pixel_weight).sum(), trace])
    if slots is None:
        return terms

    pull = pixel_weight * (plan.trace_weight * room)
    blame = drawn_habit.mul_(odds)
    factor = torch.addcmul(pixel_weight * per_prob, slack, blame * per_prob, value=-room)
    slots[0].addcmul_(factor, probs).scatter_add_(1, observed, right.mul_(odds).neg_())
    if len(slots) == 1:
        return terms
    slope = torch.addcmul(pull, probs, blame * per_prob * room, out=slots[1].squeeze(1))
    slope.addcmul_(habit, pull * per_habit, value=-1).scatter_add_(1, observed, own.mul_(odds).mul_(-room))
    slope.mul_(slack).mul_(free)
    blame.mul_(mass)
    slope = torch.addcmul(blame - pull * moved, slack, pull, out=slots[2].squeeze(1).squeeze(1))
    slope.mul_(habit.mul_(per_habit)).scatter_add_(1, observed, blame.neg_())
    return terms
