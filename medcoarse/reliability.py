"""Whom to trust: what an estimated truth says of those who drew, image by image and all together.

The estimated truth are class probabilities, of a trained segmenter or of a fusion of the drawings. Annotators come in
the order positive, negative everywhere, R of them. Tables are counts, `counts[b, r, observed, true]` in voxels, so
that they can be added up over images and divided once; `observed` of a negative annotator is what was ruled out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from medcoarse.confusion import UNLABELED, Annotations
from medcoarse.metrics import conditional_table, soft_annotation_counts

Kind = Literal["positive", "negative"]


def kinds_of(annotations: Annotations) -> list[Kind]:
    """What each annotator draws, in order.

    Example:
        >>> kinds_of(Annotations(positive=torch.zeros(1, 2, 4), negative=torch.zeros(1, 1, 4)))
        ['positive', 'positive', 'negative']
    """
    positive = 0 if annotations.positive is None else annotations.positive.shape[1]
    negative = 0 if annotations.negative is None else annotations.negative.shape[1]
    kinds: list[Kind] = ["positive"] * positive
    return kinds + ["negative"] * negative


def drawings_of(annotations: Annotations) -> Tensor:
    """All drawings (B, R, *S), positive first.

    Raises:
        ValueError: there are none.
    """
    drawings = [one for one in annotations[:2] if one is not None]
    if not drawings:
        raise ValueError("there is nobody to judge: positive and negative drawings are both None")
    return torch.cat(drawings, 1)


# counts of one image


def expected_counts(cm: Tensor, probs: Tensor) -> Tensor:
    """How often each class would be drawn on each, `sum_x cm[o, t, x] p_t(x)`, everywhere and whoever drew.

    Args:
        cm: what is seen of the annotators' matrices (B, R, observed, true, *S).
        probs: estimated truth (B, L, *S).

    Returns:
        float64 (B, R, observed, true); its columns, divided by their sums, are the mean confusion matrix.

    Example:
        >>> cm = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).view(1, 1, 2, 2, 1).expand(1, 1, 2, 2, 10)
        >>> probs = torch.tensor([0.5, 0.5]).view(1, 2, 1).expand(1, 2, 10)
        >>> expected_counts(cm, probs)[0, 0]
        tensor([[4.5000, 1.0000],
                [0.5000, 4.0000]], dtype=torch.float64)
    """
    return torch.einsum("brotn,btn->brot", cm.flatten(4).double(), probs.flatten(2).double())


def error_probability(cm: Tensor, probs: Tensor, kinds: Sequence[Kind]) -> Tensor:
    """How likely each annotator errs at each voxel, `sum_t p_t(x) (1 - cm[t, t, x])`; of a negative one `cm[t, t, x]`.

    Args:
        cm: what is seen of the annotators' matrices (B, R, observed, true, *S).
        probs: estimated truth (B, L, *S).
        kinds: of the R annotators.

    Returns:
        (B, R, *S) in [0, 1].

    Example:
        >>> cm = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).view(1, 1, 2, 2, 1)
        >>> error_probability(cm, torch.tensor([[[0.5], [0.5]]]), ["positive"])
        tensor([[[0.1500]]])
    """
    diagonal = torch.diagonal(cm, dim1=2, dim2=3).movedim(-1, 2)
    positive = torch.tensor([kind == "positive" for kind in kinds]).view(-1, *[1] * (diagonal.ndim - 2))
    return (torch.where(positive, 1 - diagonal, diagonal) * probs[:, None]).sum(2)


def error_grid(errs: Tensor) -> Tensor:
    """Mean of each field of a coarse grid that lies over the image, whatever its size: 8 x 8, or 8 x 8 x 4 of a volume.

    Args:
        errs: :func:`error_probability` (B, R, *S).

    Example:
        >>> errs = torch.zeros(1, 1, 16, 24)
        >>> errs[..., :2, :3] = 0.5  # a corner
        >>> error_grid(errs)[0, 0, :2, :2]
        tensor([[0.5000, 0.0000],
                [0.0000, 0.0000]])
    """
    if errs.ndim == 4:
        return functional.adaptive_avg_pool2d(errs, (8, 8))
    return functional.adaptive_avg_pool3d(errs, (8, 8, 4))


def drawn_foreground(counts: Tensor, kinds: Sequence[Kind]) -> Tensor:
    """How many voxels anybody drew as foreground, added up over those who drew, (B,).

    A negative annotator of two classes draws it where background is ruled out; of more classes nobody can tell.

    Args:
        counts: :func:`drawn_counts` (B, R, L, L).
        kinds: of the R annotators.

    Example:
        >>> drawn_foreground(torch.tensor([[[[9.0, 1.0], [2.0, 3.0]]]]), ["positive"])
        tensor([5.])
    """
    said = counts.sum(-1)
    negative = torch.tensor([kind == "negative" for kind in kinds])
    ruled_out = said[..., 0] if said.shape[-1] == 2 else torch.zeros_like(said[..., 0])
    return torch.where(negative, ruled_out, said[..., 1:].sum(-1)).sum(-1)


def drawn_counts(annotations: Annotations, probs: Tensor) -> Tensor:
    """What was drawn against what is estimated to be true, `sum(p_t(x) : o drawn at x)`.

    Args:
        annotations: the drawings.
        probs: estimated truth (B, L, *S).

    Returns:
        float64 (B, R, observed, true); 0 for an annotator who drew nothing.

    Example:
        >>> probs = torch.tensor([[[0.9, 0.2], [0.1, 0.8]]])
        >>> drawn_counts(Annotations(positive=torch.tensor([[[1, 1]]])), probs)[0, 0]
        tensor([[0.0000, 0.0000],
                [1.1000, 0.9000]], dtype=torch.float64)
    """
    return soft_annotation_counts(drawings_of(annotations), probs)


_SMALL = 0.1
"""Of the median size of an annotator's structures: as much counts as drawn right besides, see `annotation_quality`."""


def annotation_quality(counts: Tensor, kinds: Sequence[Kind]) -> Tensor:
    """How well each drawing fits the estimated truth: Dice of what was drawn, over all foreground classes together.

    A positive drawing of k should cover k, a negative one everything but k. With two classes the background, which
    always fits, is left out. Where there is nothing to draw, a few voxels of the estimate would decide; so a tenth of
    the size that structures have in the median, where the annotator drew any, is added to both sides of the fraction
    (one voxel for who never drew any). Nothing drawn where nothing is has 1.

    Args:
        counts: :func:`drawn_counts` of N images (N, R, L, L), best of the likeliest classes: of probabilities a rare
            class has most of its own far from it.
        kinds: of the R annotators.

    Returns:
        float64 (N, R) in [0, 1]; NaN where nothing was drawn.

    Source: ours. Shares from 0.01 to 0.2 rank drawn tumours with errors planted among them alike.

    Example:
        >>> counts = torch.tensor([[6.0, 1.0], [1.0, 2.0]]).view(1, 1, 2, 2)
        >>> round(annotation_quality(counts, ["positive"]).item(), 3)  # (2 * 2 + 0.6) / (3 + 3 + 0.6)
        0.697
    """
    counts = counts.double()
    rows, columns, hit = counts.sum(-1), counts.sum(-2), torch.diagonal(counts, dim1=-2, dim2=-1)
    total = rows.sum(-1, keepdim=True)
    negative = torch.tensor([kind == "negative" for kind in kinds], device=counts.device)[:, None]
    right = torch.where(negative, rows - hit, hit)
    truth = torch.where(negative, total - columns, columns)
    classes = torch.arange(counts.shape[-1], device=counts.device)
    background = torch.where(negative, classes == (1 if len(classes) == 2 else len(classes)), classes == 0)
    covered, sizes, drawn = ((values * ~background).sum(-1) for values in (2 * right, rows + truth, rows))
    little = (_SMALL * sizes.where(drawn > 0, torch.nan).nanmedian(0).values).nan_to_num(2.0)
    return torch.where(total[..., 0] > 0, (covered + little) / (sizes + little), torch.nan)


def suspicion(quality: Tensor) -> Tensor:
    """What drawings are ranked by, the most likely wrong first: half of what is usual less the quality.

    `usual_r / 2 - q_nr`, with the median of each annotator's qualities. Someone who draws everything too large fits the
    truth half as well as someone faithful, and so does the faithful one's drawing of a wrong image: going half by what
    is usual tells the two apart, while drawings of someone who is always wrong still come first.

    Args:
        quality: :func:`annotation_quality` of N images (N, R), NaN where nothing was drawn.

    Returns:
        Float64 (N, R), NaN where nothing was drawn.

    Source: ours. The half was chosen on MNIST drawings of three annotators with a tenth of them planted wrong, where
        the quality alone does nearly as well.

    Example:
        >>> quality = torch.tensor([[0.9, 0.5], [0.9, 0.5], [0.6, torch.nan]])  # the second one draws too large
        >>> suspicion(quality)
        tensor([[-0.4500, -0.2500],
                [-0.4500, -0.2500],
                [-0.1500,     nan]], dtype=torch.float64)
    """
    quality = quality.double()
    return quality.nanmedian(0).values / 2 - quality


def most_suspicious(suspicion: Tensor, number: int) -> Tensor:
    """The places, in the flattened tensor, of so many drawings at most, first the one with the largest suspicion.

    Example:
        >>> most_suspicious(torch.tensor([[0.1, torch.nan], [0.3, 0.2]]), 5)
        tensor([2, 3, 0])
    """
    order = torch.argsort(suspicion.nan_to_num(-math.inf).flatten(), descending=True, stable=True)
    return order[: min(number, int((~suspicion.isnan()).sum()))]


def planted_found(suspicion: Tensor, errors: Sequence[str | None]) -> dict[str, Any]:
    """How well a ranking finds drawings that were made wrong on purpose.

    Args:
        suspicion: what the drawings of N images are ranked by, largest first (N, R), NaN where nothing was drawn.
        errors: what is wrong with the drawings of each image; ``None`` for nothing.

    Returns:
        The `number` of such drawings; `precision`, the share that is wrong among as many that are ranked first; and by
        error how many there are (`number`) and how many of them are among those (`found`).

    Example:
        >>> ranked_by = torch.tensor([[0.9, torch.nan], [torch.nan, 0.8], [0.7, torch.nan]])
        >>> found = planted_found(ranked_by, ["blank", None, "shifted"])
        >>> found["number"], found["precision"], found["errors"]["shifted"]
        (2, 0.5, {'number': 1, 'found': 0})
    """
    drawn = ~suspicion.isnan()
    wrong = {
        error: torch.tensor([one == error for one in errors])[:, None] & drawn
        for error in sorted({error for error in errors if error is not None})
    }
    number = sum(int(one.sum()) for one in wrong.values())
    first = torch.zeros(suspicion.numel(), dtype=torch.bool)
    first[most_suspicious(suspicion, number)] = True
    found = {error: int((one & first.view(suspicion.shape)).sum()) for error, one in wrong.items()}
    return {
        "number": number,
        "precision": sum(found.values()) / number if number else math.nan,
        "errors": {error: {"number": int(one.sum()), "found": found[error]} for error, one in wrong.items()},
    }


def uncertainty(probs: Tensor) -> Tensor:
    """Mean entropy of the estimated truth in nats, (B,).

    Example:
        >>> uncertainty(torch.tensor([[[0.5, 1.0], [0.5, 0.0]]]))
        tensor([0.3466], dtype=torch.float64)
    """
    p = probs.flatten(2).double()
    return torch.as_tensor(torch.special.entr(p).sum(1).mean(-1))


def tendency_mm(
    drawing: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing: Sequence[float],
    known: NDArray[np.bool_] | None = None,
) -> float:
    """By how much a drawing is too large (above 0) or too small all around, in mm.

    The mean of two signed distances: of the drawing's outline from the true one, positive outside, and of the true
    outline from the drawing's, positive inside. A drawing that is too large by d all around gets d, or a little more
    at its corners. An outline is where a mask meets a known voxel outside of it, so neither the image's border nor the
    edge of a stroke is one.

    Args:
        drawing: what was drawn (*S).
        truth: the structure (*S).
        spacing: mm per voxel along each axis.
        known: where the drawing says something (*S); by default everywhere.

    Returns:
        Millimetres; NaN where one of them has no outline.

    Raises:
        ValueError: shapes or spacing that do not match.

    Example:
        >>> small, large = np.zeros((2, 16, 16), bool)
        >>> small[6:10, 6:10] = True
        >>> large[4:12, 4:12] = True
        >>> round(tendency_mm(large, small, (0.5, 0.5)), 1), tendency_mm(small, small, (0.5, 0.5))
        (1.0, 0.0)
    """
    known = np.ones(drawing.shape, bool) if known is None else known
    if not drawing.shape == truth.shape == known.shape or len(spacing) != truth.ndim:
        got = f"{drawing.shape}, {truth.shape}, {known.shape} and spacing {tuple(spacing)}"
        raise ValueError(f"drawing, truth and known must have one shape and the spacing its length, got {got}")
    outlines = [_outline(mask & known, known) for mask in (drawing, truth)]
    if not all(outline.any() for outline in outlines):
        return float("nan")
    outside = _signed_distance(truth, outlines[1], spacing)[outlines[0]].mean()
    inside = -_signed_distance(drawing, outlines[0], spacing)[outlines[1]].mean()
    return float((outside + inside) / 2)


def _outline(mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of the mask beside a known one outside of it."""
    outline: NDArray[np.bool_] = mask & ndimage.binary_dilation(known & ~mask)
    return outline


def _signed_distance(
    mask: NDArray[np.bool_], outline: NDArray[np.bool_], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """Distance from the outline, negative inside the mask."""
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(~outline, sampling=spacing)
    return np.where(mask, -distance, distance)


class Region(NamedTuple):
    """A part of a drawing that is likely wrong."""

    box: tuple[tuple[int, int], ...]  # first voxel and the one after the last, along each axis
    size: float  # expected number of wrong voxels times their size, in mm² or mm³


def suspicious_regions(
    drawing: Tensor, probs: Tensor, kind: Kind, spacing: Sequence[float], num_regions: int = 3
) -> list[Region]:
    """The parts of a drawing that are most likely wrong, largest first.

    Where the drawing is wrong with a chance above one half, connected voxels are a region.

    Args:
        drawing: (*S), 255 where nothing was drawn.
        probs: estimated truth (L, *S).
        kind: what was drawn; "negative" is wrong where the class that it rules out is true.
        spacing: mm per voxel along each axis.
        num_regions: at most so many.

    Example:
        >>> probs = torch.tensor([0.1, 0.1, 0.9, 0.9]).repeat(3, 1)
        >>> drawn = torch.tensor([1, 0, 1, 0]).repeat(3, 1)
        >>> suspicious_regions(drawn, torch.stack([1 - probs, probs]), "positive", (1.0, 1.0), num_regions=1)
        [Region(box=((0, 3), (0, 1)), size=2.7)]
    """
    drawn = drawing != UNLABELED
    said = probs.gather(0, torch.where(drawn, drawing, 0).long()[None])[0]
    wrong = torch.where(drawn, 1 - said if kind == "positive" else said, 0).double().numpy()
    places, number = ndimage.label(wrong > 0.5)
    if number == 0:
        return []
    sizes = ndimage.sum_labels(wrong, places, np.arange(1, number + 1)) * float(np.prod(spacing))
    boxes = ndimage.find_objects(places)
    largest = np.argsort(-sizes, kind="stable")[:num_regions]
    return [Region(tuple((s.start, s.stop) for s in boxes[n]), round(float(sizes[n]), 4)) for n in largest]


# all images together


class Reliability(NamedTuple):
    """How far an annotator can be trusted."""

    score: float  # mean over the classes of the chance that a voxel of that class is drawn as it
    low: float  # 95% of resampled sets of images lie between low and high
    high: float
    confusion: Tensor  # (observed, true), columns sum to 1; NaN for a class that was never seen


def reliability(counts: Tensor, kinds: Sequence[Kind], num_resamples: int = 1000, seed: int = 0) -> list[Reliability]:
    """The reliability of each annotator, and how sure it is: images are drawn again with replacement.

    The score of a positive annotator is the mean diagonal of the table, of a negative one the chance that the true
    class is *not* ruled out, the mean of one minus the diagonal. Who never errs has 1.

    Args:
        counts: of N images (N, R, observed, true), :func:`expected_counts` or :func:`drawn_counts`.
        kinds: of the R annotators.
        num_resamples: sets of images that are drawn.
        seed: same seed, same bounds.

    Raises:
        ValueError: counts of another shape, or no image.

    Example:
        >>> counts = torch.tensor([[90.0, 2.0], [10.0, 8.0]]).expand(5, 1, 2, 2)
        >>> [round(value, 3) for value in reliability(counts, ["positive"])[0][:3]]
        [0.85, 0.85, 0.85]
    """
    if counts.ndim != 4 or counts.shape[1] != len(kinds) or len(counts) == 0:
        raise ValueError(f"counts must be (N, {len(kinds)}, L, L) with at least one image, got {tuple(counts.shape)}")
    counts = counts.double()
    shares = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), num_resamples)
    resampled = torch.einsum("sn,nrot->srot", torch.from_numpy(shares).double(), counts)
    tables = conditional_table(torch.cat([counts.sum(0, keepdim=True), resampled]))
    diagonals = torch.diagonal(tables, dim1=-2, dim2=-1)
    negative = torch.tensor([kind == "negative" for kind in kinds])[:, None]
    scores = torch.where(negative, 1 - diagonals, diagonals).nanmean(-1)
    bounds = torch.nanquantile(scores[1:], torch.tensor([0.025, 0.975], dtype=torch.float64), 0)
    return [
        Reliability(scores[0, r].item(), bounds[0, r].item(), bounds[1, r].item(), tables[0, r])
        for r in range(len(kinds))
    ]


class Habit(NamedTuple):
    """An error that an annotator makes often."""

    name: Literal["swaps", "confuses", "mistakes", "misses", "adds"]
    drawn: int
    true: int
    share: float
    ring: tuple[int, ...] = ()  # of "swaps" and "confuses": each class is drawn as the next one, the last as the first


def habits(counts: Tensor, least: float = 0.2) -> list[Habit]:
    """What a positive annotator does wrong often, the most frequent first.

    - "swaps": foreground classes are drawn as each other, two or a ring of more, on more than half of them. Each is
      mistaken most often for the next one, on `least` or more of it, and the smallest share is half of the largest one
      or more; `share` is their mean.
    - "confuses": the same on half of them or less.
    - "mistakes": a foreground class is drawn as another.
    - "misses": a foreground class is drawn as background.
    - "adds": of what is drawn as a class, this share is background.

    Args:
        counts: of all images together (observed, true).
        least: shares below are not mentioned.

    Example:
        >>> counts = torch.tensor([[100.0, 1.0, 0.0], [0.0, 1.0, 8.0], [0.0, 8.0, 2.0]])
        >>> [(habit.name, habit.drawn, habit.true) for habit in habits(counts)]
        [('swaps', 2, 1)]
    """
    table, drawn = conditional_table(counts), counts.double() / counts.double().sum(1, keepdim=True)
    found = _rings(table, least)
    swapped = {(ring[i - 1], ring[i]) for ring in (habit.ring for habit in found) for i in range(len(ring))}
    for a in range(1, len(counts)):
        if drawn[a, 0] >= least:
            found.append(Habit("adds", a, 0, drawn[a, 0].item()))
        for b in range(len(counts)):
            if a != b and table[b, a] >= least and (a, b) not in swapped:  # b drawn, a true
                found.append(Habit("mistakes" if b else "misses", b, a, table[b, a].item()))
    return sorted(found, key=lambda habit: -habit.share)


def _rings(table: Tensor, least: float) -> list[Habit]:
    """Classes that are drawn as each other, see `habits`."""
    wrong = table.nan_to_num(0).fill_diagonal_(0)
    wrong[0] = wrong[:, 0] = 0
    shares, drawn = wrong.max(0)
    found = []
    for start in range(1, len(table)):
        ring = [start]
        while (following := int(drawn[ring[-1]])) not in ring:
            ring.append(following)
        share = shares[ring]
        if following == start == min(ring) and len(ring) > 1 and share.min() >= max(least, share.max().item() / 2):
            mean = share.mean().item()
            found.append(Habit("swaps" if mean > 0.5 else "confuses", ring[1], start, mean, tuple(ring)))
    return found


class Question(NamedTuple):
    """Whom to ask about which image."""

    image: int
    annotator: int
    uncertainty: float
    accuracy: float


def next_questions(uncertainties: Tensor, counts: Tensor, kinds: Sequence[Kind], drawn: Tensor) -> list[Question]:
    """Whom to ask next, about which image: the most uncertain image first, the most reliable annotator on it.

    Only who has not drawn an image is asked about it; an image that all have drawn is left out.

    Args:
        uncertainties: (N,), see :func:`uncertainty`.
        counts: :func:`expected_counts` (N, R, observed, true): a matrix of each annotator on each image, drawn or not.
        kinds: of the R annotators.
        drawn: who has drawn what, bool (N, R).

    Source: DHE, active labelling: uncertainty picks the image, the estimated confusion matrices pick the annotator.

    Example:
        >>> counts = torch.tensor([[[8.0, 0.0], [2.0, 9.0]], [[9.0, 0.0], [1.0, 9.0]]]).expand(2, 2, 2, 2)
        >>> drawn = torch.tensor([[True, False], [False, True]])
        >>> for question in next_questions(torch.tensor([0.1, 0.4]), counts, ["positive"] * 2, drawn):
        ...     print(question)
        Question(image=1, annotator=0, uncertainty=0.4, accuracy=0.9)
        Question(image=0, annotator=1, uncertainty=0.1, accuracy=0.95)
    """
    diagonals = torch.diagonal(conditional_table(counts), dim1=-2, dim2=-1)
    negative = torch.tensor([kind == "negative" for kind in kinds])[:, None]
    accuracy = torch.where(negative, 1 - diagonals, diagonals).nanmean(-1).masked_fill(drawn, -1)
    best, who = accuracy.max(1)
    order = torch.argsort(uncertainties, descending=True, stable=True)
    return [
        Question(n, int(who[n]), round(uncertainties[n].item(), 6), round(best[n].item(), 6))
        for n in order.tolist()
        if best[n] >= 0
    ]
