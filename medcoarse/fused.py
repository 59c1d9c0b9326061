"""Likelihood and trace of a group of annotators, evaluated together with their gradients.

The same numbers as the plain equations of :mod:`medcoarse.likelihoods`, the reference that tests compare with.
What differs is the cost: value *and* gradient of a pixel are computed in one pass and leave nothing behind but the
gradient. On a processor compiled loops do that for the usual structures (:mod:`medcoarse.kernels`); everywhere else
autograd runs on some pixels at a time. A loss that is scaled afterwards (accumulation, a GradScaler) needs the
gradients twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medcoarse import interpolation, kernels
from medcoarse.compilation import empty_like, in_threads, shares
from medcoarse.confusion import UNLABELED, FullConfusion, LowRankConfusion, UpsampledConfusion
from medcoarse.likelihoods import class_weights, complementary_log_likelihood

PixelConfusion = FullConfusion | LowRankConfusion | UpsampledConfusion
"""The structures with a matrix at every pixel."""

CHUNK_BYTES = 1 << 22  # of matrix parameters that autograd sees at a time: small enough for the processor's cache
GPU_CHUNK_BYTES = 1 << 26  # there, launching an operation costs more than leaving the cache
THREAD_PIXELS = 1 << 12  # fewer of them are not worth a thread
SLAB_PIXELS = 1 << 14  # whose parameters are interpolated at a time

Array = NDArray[Any]
Kernel = Callable[..., tuple[float, float]]


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
    log_transition: Tensor | None = None,
    balance: float = 0.0,
) -> Terms:
    """Negative log-likelihood and mean trace of annotators, fused with their gradients.

    Args:
        logits: class scores of the segmenter, ``(B, L, *S)``, float32.
        confusion: of R annotators.
        annotation: ``(B, R, *S)``, class drawn or 255; 255 costs nothing where little was drawn.
        trace_weight: λ; 0 leaves the trace out of the objective.
        log_transition: ``log M (L, L)`` of negative annotators, whose drawn class is what a pixel is *not*, CL Eq. 5;
            ``None`` for positive ones, whose drawn class is what they see, CL Eq. 3. It gets no gradient.
        balance: of the classes drawn, see :func:`medcoarse.likelihoods.class_weights`.

    Returns:
        :class:`Terms`, equal to :func:`medcoarse.likelihoods.coarse_nll` or
        :func:`medcoarse.likelihoods.complementary_nll`, and :func:`medcoarse.likelihoods.mean_trace`.

    Raises:
        ValueError: shapes that do not fit each other or the number of classes, or a drawing with a value that is
            neither a class nor 255.
        RuntimeError: in a backward pass with ``create_graph=True``. Second derivatives are not available, take the
            plain functions for them.

    Source: CL Eq. 3, 5 and 6. Fusing value and gradient is ours.

    Example:
        >>> logits = torch.tensor([0.2, 0.8]).log().view(1, 2, 1)
        >>> confusion = FullConfusion(torch.zeros(1, 1, 2, 2, 1), floor=0.5)
        >>> terms = annotator_terms(logits, confusion, torch.tensor([[[1]]]), trace_weight=0.1)
        >>> [round(term.item(), 4) for term in terms]  # -log(0.25 * 0.2 + 0.75 * 0.8), 2 * 0.75
        [0.5808, 0.4308, 1.5]
    """
    kernel = _kernel(logits, confusion)
    if isinstance(confusion, UpsampledConfusion) and kernel is None:
        confusion = confusion.full()
    coarse, size = confusion if isinstance(confusion, UpsampledConfusion) else (confusion, None)
    check_log_transition(log_transition, logits.shape[1])
    fields = [field.to(logits.dtype) for field in _fields(coarse).values()]
    _check(logits, coarse, fields, annotation, size)
    num_wanted = 1 + len(fields) if any(field.requires_grad for field in fields) else int(logits.requires_grad)
    num_wanted *= torch.is_grad_enabled()
    plan = _Plan(coarse, annotation, trace_weight, log_transition, balance, num_wanted, kernel)
    return Terms(*_Fused.apply(plan, logits, *fields))  # type: ignore[no-untyped-call]


class _Plan(NamedTuple):
    """Everything about one evaluation that is not differentiated."""

    confusion: FullConfusion | LowRankConfusion
    annotation: Tensor
    trace_weight: float
    log_transition: Tensor | None
    balance: float
    num_wanted: int  # gradients: none, of the logits, or of the confusion's parameters too
    kernel: Kernel | None  # compiled loop for this case


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wanted = inputs[: plan.num_wanted]
        grads = [empty_like(tensor) for tensor in wanted]
        terms = _evaluate(plan, list(inputs), grads or None)
        ctx.save_for_backward(*grads)
        nll, trace = terms.unbind()
        ctx.mark_non_differentiable(nll, trace)
        return nll + plan.trace_weight * trace, nll, trace

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        # The usual scale is 1; on the processor a look is free and saves a pass over all gradients.
        same = scale.device.type == "cpu" and scale.item() == 1
        grads = [grad if same else grad * scale for grad in ctx.saved_tensors]
        return None, *grads, *[None] * (len(ctx.needs_input_grad) - 1 - len(grads))


def refuse_second_derivatives() -> None:
    """In a backward pass whose gradients are constants: what is made of them would be wrong in silence.

    Raises:
        RuntimeError: it was asked for ``create_graph=True``.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph=True: the likelihood of annotators has no second derivatives; build the loss of "
            "medcoarse.likelihoods (coarse_nll, complementary_nll, joint_nll, mean_trace), or pass create_graph=False"
        )


def _fields(confusion: FullConfusion | LowRankConfusion) -> dict[str, Tensor]:
    """The parameters of a structured matrix, which are named tuples of tensors, numbers and ``None``."""
    fields: dict[str, Any] = confusion._asdict()
    return {name: value for name, value in fields.items() if isinstance(value, Tensor)}


def _kernel(logits: Tensor, confusion: PixelConfusion) -> Kernel | None:
    """The compiled loop for this structure, if there is one."""
    structure = confusion.coarse if isinstance(confusion, UpsampledConfusion) else confusion
    if logits.device.type != "cpu":
        return None
    if isinstance(structure, FullConfusion):
        return kernels.full_terms
    return kernels.rank_one_terms if structure.weights is None else None


def _check(
    logits: Tensor, confusion: PixelConfusion, fields: list[Tensor], annotation: Tensor, size: tuple[int, ...] | None
) -> None:
    """Say what does not fit; costs no pass over the pixels. Compiled loops would read and write beside the arrays."""
    batch, num_classes, *image = logits.shape
    rank = fields[1].shape[2] if len(fields) == 3 else 1
    full = isinstance(confusion, FullConfusion)
    tables = [(num_classes, num_classes)] if full else [(num_classes,), (rank, num_classes), (rank, num_classes)]
    grid = image if size is None else fields[0].shape[-len(image) :]
    expected = (batch, annotation.shape[1])
    fits = all(field.shape == (*expected, *table, *grid) for field, table in zip(fields, tables, strict=False))
    fits = fits and size in (None, tuple(image)) and annotation.shape == (*expected, *image)
    if not fits or not annotation.numel() or 0 in grid:
        raise ValueError(
            "logits (B, L, *S), confusion parameters (B, R, ..., *S) of L classes and drawings (B, R, *S) must fit and "
            f"hold pixels, got {', '.join(str(tuple(tensor.shape)) for tensor in (logits, *fields, annotation))}"
        )


def _evaluate(plan: _Plan, inputs: list[Tensor], grads: list[Tensor] | None) -> Tensor:
    """``(nll, trace)``; the gradients of the objective are written to ``grads``."""
    spatial_dims = inputs[0].ndim - 2
    annotation = plan.annotation.flatten(2)
    num_classes = inputs[0].shape[1]
    weights = drawn_counts(annotation, num_classes).clamp_min(1).to(inputs[0].dtype).reciprocal()
    weights = weights[:, None].expand(-1, num_classes)
    if plan.balance:
        weights = class_weights(annotation, num_classes, plan.balance).to(inputs[0])
    if plan.kernel is not None:
        return _by_kernel(plan.kernel, plan, inputs, weights, grads or [])
    inputs = [tensor.flatten(-spatial_dims) for tensor in inputs]
    targets = None if grads is None else [grad.flatten(-spatial_dims) for grad in grads]
    return _by_autograd(plan, inputs, annotation, weights, targets)


def _by_autograd(
    plan: _Plan, inputs: list[Tensor], annotation: Tensor, weights: Tensor, targets: list[Tensor] | None
) -> Tensor:
    """Some pixels of one annotator at a time."""
    # Picking the drawn pixels out pays where they are few; on a GPU it would make the processor wait.
    few = annotation.device.type == "cpu" and ((annotation != UNLABELED).float().mean((0, 2)) < 0.5).tolist()
    terms = inputs[0].new_zeros(2)
    if targets is not None:
        targets[0].zero_()
    for annotator in range(annotation.shape[1]):
        one = slice(annotator, annotator + 1)
        for images, pixels in _chunks([field[:, one] for field in inputs[1:]]):
            drawing = annotation[images, one, pixels]
            some = _drawn_pixels(drawing) if few and few[annotator] else None
            views = _cut(inputs, images, one, pixels)
            slots = None if targets is None else _cut(targets, images, one, pixels)  # as many as there are gradients
            if some is None:
                terms += _autograd_chunk(plan, views, drawing, weights[annotator], slots)
                continue
            for slot in (slots or [])[1:]:
                slot.zero_()
            if len(some):
                packed = [view[..., some] for view in views]
                slopes = None if slots is None else [torch.zeros_like(view) for view in packed[: len(slots)]]
                terms += _autograd_chunk(plan, packed, drawing[..., some], weights[annotator], slopes)
                for slot, slope in zip(slots or (), slopes or (), strict=True):
                    slot.index_add_(-1, some, slope)
    return terms


class _Image(NamedTuple):
    """Arrays of one image.

    Args:
        scores: ``(L, N)``.
        fields: parameters ``(R, ..., N)``, or ``(R, ..., depth, height, width)`` of a coarser grid.
        drawing: ``(R, N)`` uint8.
        slopes: of the scores and of the fields, as many as are wanted.
    """

    scores: Array
    fields: list[Array]
    drawing: Array
    slopes: list[Array]


def _by_kernel(kernel: Kernel, plan: _Plan, inputs: list[Tensor], weights: Tensor, grads: list[Tensor]) -> Tensor:
    """The pixels of all images, shared among the threads that torch may use."""
    size, coarse = (tuple(tensor.shape[2 - inputs[0].ndim :]) for tensor in inputs[:2])
    axes = None if size == coarse else interpolation.axes(coarse, size, weights.numpy().dtype)
    images = _images(plan, inputs, grads, flat=axes is None)
    settings = (_by_value(weights), readings(plan.log_transition, inputs[0]), plan.confusion.floor, plan.trace_weight)

    def evaluate(part: list[tuple[int, int, int]]) -> tuple[NDArray[np.float64], list[tuple[int, list[Array]]]]:
        terms, partial_slopes = np.zeros(2), []
        for index, start, stop in part:
            if axes is None:
                terms += _terms_of_pixels(kernel, images[index], settings, start, stop)
                continue
            slopes = [np.zeros_like(slope) for slope in images[index].slopes[1:]]
            terms += _terms_of_rows(kernel, images[index], settings, axes, start, stop, slopes)
            partial_slopes.append((index, slopes))
        return terms, partial_slopes

    results = in_threads(evaluate, pixel_shares(len(images), math.prod(size), 1 if axes is None else size[-1]))
    for _, partial_slopes in results:
        for index, slopes in partial_slopes:
            for total, slope in zip(images[index].slopes[1:], slopes, strict=True):
                total += slope
    return torch.from_numpy(np.sum([terms for terms, _ in results], axis=0)).to(weights.dtype)


def check_log_transition(log_transition: Tensor | None, num_classes: int) -> None:
    """Say that it does not fit; compiled loops would read beside it."""
    if log_transition is not None and log_transition.shape != (num_classes, num_classes):
        raise ValueError(
            f"log_transition must be ({num_classes}, {num_classes}) of {num_classes} classes, got "
            f"{tuple(log_transition.shape)}"
        )


def readings(log_transition: Tensor | None, like: Tensor) -> Array:
    """``[i, drawn]``: the chance that this is drawn where class i is seen; nothing for positive drawings."""
    if log_transition is None:
        return torch.empty((0, kernels.VALUES), dtype=like.dtype).numpy()
    return _by_value(log_transition.exp().to(like).T)


def _by_value(table: Tensor) -> Array:
    """``(rows, L)`` of what depends on the drawn class, with 0 for what is no class."""
    return F.pad(table, (0, kernels.VALUES - table.shape[1])).contiguous().numpy()


def _images(plan: _Plan, inputs: list[Tensor], grads: list[Tensor], flat: bool) -> list[_Image]:
    """The arrays behind the tensors; only what is not in one piece is copied."""
    spatial_dims = inputs[0].ndim - 2
    drawings = plan.annotation.to(torch.uint8).flatten(2).contiguous().numpy()
    for grad in [] if flat else grads[1:]:
        grad.zero_()

    def arrays(tensors: list[Tensor], index: int) -> list[Array]:
        parts = [tensor[index].contiguous() for tensor in tensors]
        parts[:1] = [part.flatten(1) for part in parts[:1]]
        for k, part in enumerate(parts[1:], 1):
            lead, image = part.shape[:-spatial_dims], part.shape[-spatial_dims:]
            parts[k] = part.flatten(-spatial_dims) if flat else part.view(*lead, *(1,) * (3 - spatial_dims), *image)
        return [part.numpy() for part in parts]

    images = []
    for index, drawing in enumerate(drawings):
        scores, *fields = arrays(inputs, index)
        images.append(_Image(scores, fields, drawing, arrays(grads, index)))
    return images


def _terms_of_pixels(kernel: Kernel, image: _Image, settings: tuple[Any, ...], start: int, stop: int) -> Array:
    arrays = [image.scores, *image.fields]
    slopes = image.slopes + [array[:0] for array in arrays[len(image.slopes) :]]
    return np.array(kernel(*arrays, image.drawing, *settings, start, stop, *slopes))


def _terms_of_rows(
    kernel: Kernel,
    image: _Image,
    settings: tuple[Any, ...],
    axes: interpolation.Axes,
    start: int,
    stop: int,
    slopes: list[Array],
) -> Array:
    """Whole rows of an image, some at a time: interpolate the parameters, evaluate, add up their slopes."""
    width = len(axes[-1].left)
    step = width * max(1, SLAB_PIXELS // width)
    terms = np.zeros(2)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        fields = [interpolation.rows(field, axes, first // width, last // width) for field in image.fields]
        scores = np.ascontiguousarray(image.scores[:, first:last])
        wanted = [np.empty_like(array) for array in [scores, *fields][: len(image.slopes)]]
        slab = _Image(scores, fields, np.ascontiguousarray(image.drawing[:, first:last]), wanted)
        terms += _terms_of_pixels(kernel, slab, settings, 0, last - first)
        for score_slopes in wanted[:1]:
            image.slopes[0][:, first:last] = score_slopes
        for fine, coarse in zip(wanted[1:], slopes, strict=True):
            interpolation.add_rows(fine, axes, first // width, coarse)
    return terms


def pixel_shares(num_images: int, num_pixels: int, unit: int) -> list[list[tuple[int, int, int]]]:
    """``(image, start, stop)`` for each thread: about equal numbers of pixels, in multiples of a unit."""
    parts = []
    for units in shares(num_images * num_pixels // unit, THREAD_PIXELS // unit):
        first, last = units.start * unit, units.stop * unit
        images = range(first // num_pixels, -(-last // num_pixels))
        starts = [(index, index * num_pixels) for index in images]
        parts.append([(i, max(first - at, 0), min(last - at, num_pixels)) for i, at in starts])
    return parts


def drawn_counts(annotation: Tensor, num_classes: int, name: str = "drawings") -> Tensor:
    """How many pixels each annotator drew ``(B, R, N)``: ``(R,)``.

    Raises:
        ValueError: on a CPU, a value that is neither a class nor 255.
    """
    if annotation.device.type != "cpu":  # there, looking classes up checks them without a wait
        return (annotation != UNLABELED).sum((0, 2))
    array = np.ascontiguousarray(annotation.numpy())
    drawn, wrong = np.array([[kernels.count_drawn(own, num_classes) for own in image] for image in array]).sum(0).T
    if wrong.any():
        raise ValueError(
            f"{name} must hold classes below {num_classes}, or {UNLABELED} where nothing was drawn; "
            f"{wrong.sum()} pixels hold something else"
        )
    return torch.from_numpy(drawn)


def _chunks(fields: list[Tensor]) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch and of the pixels that keep the parameters of one annotator below the limit."""
    limit = CHUNK_BYTES if fields[0].device.type == "cpu" else GPU_CHUNK_BYTES
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


def _autograd_chunk(
    plan: _Plan, views: list[Tensor], drawing: Tensor, weights: Tensor, slots: list[Tensor] | None
) -> Tensor:
    """Any structure and any reading, by the plain equations and autograd."""
    with torch.set_grad_enabled(slots is not None):
        views = [view.detach().requires_grad_(slots is not None) for view in views]
        log_probs = views[0].log_softmax(1)
        fields: dict[str, Any] = dict(zip(_fields(plan.confusion), views[1:], strict=True))
        confusion = plan.confusion._replace(**fields)
        drawn = drawing != UNLABELED
        observed = drawing.masked_fill(~drawn, 0).long()
        if plan.log_transition is None:
            likelihood = confusion.log_likelihood(log_probs, observed)
        else:
            log_transition = plan.log_transition.to(log_probs)
            likelihood = complementary_log_likelihood(log_transition, log_probs, confusion, drawing)
        weight = weights[observed]
        nll = -(likelihood * weight).where(drawn, 0.0).sum()
        trace = (confusion.diagonal().sum(2) * weight).where(drawn, 0.0).sum()
        if slots is not None:
            slopes = torch.autograd.grad(nll + plan.trace_weight * trace, views[: len(slots)])
            slots[0].add_(slopes[0])
            for slot, slope in zip(slots[1:], slopes[1:], strict=True):
                slot.copy_(slope)
    return torch.stack([nll, trace]).detach()
