"""Scores of segmentations and of annotator models, as pure functions: count the pixels first, divide once.

Convention: `counts[..., predicted, true]` and `cm[..., observed, true]`. What was said is the row, what is true the
column, as for the annotators' confusion matrices. Pixels labelled 255 or outside the field of view are in no table.

A score is NaN where it is undefined, and means leave NaN out. A class that is absent from the truth has no IoU, Dice or
sensitivity; what was wrongly predicted of it lowers its specificity and the scores of the classes it covers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from medcoarse.confusion import UNLABELED, plain_tensor

# counting pixels


def confusion_counts(
    pred: Tensor, label: Tensor, num_classes: int, mask: Tensor | None = None, ignore_index: int = UNLABELED
) -> Tensor:
    """Number of pixels for each pair of predicted and true class, one table an image.

    `counts[b, i, j] = #{x : pred(x) = i, label(x) = j, label(x) != ignore_index, mask(x)}`

    Args:
        pred: label map (B, 1, *S), or logits or probabilities (B, L, *S) whose largest channel is taken.
        label: true classes (B, 1, *S), whole numbers of any dtype.
        num_classes: L, at least 2.
        mask: field of view (B, 1, *S); pixels where it is zero are left out.
        ignore_index: label of the pixels that are left out.

    Returns:
        int64 (B, L, L), predicted class by true class.

    Raises:
        ValueError: shapes do not match, a class is outside 0 .. L - 1, or a network's output is NaN.

    Example:
        >>> pred, label = torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[1, 0, 0, 255]]])
        >>> confusion_counts(pred, label, num_classes=2)
        tensor([[[1, 0],
                 [1, 1]]])
    """
    pred, label = plain_tensor(pred), plain_tensor(label)
    _check_shapes(pred, label, num_classes, mask)
    keep = label != ignore_index
    if mask is not None:
        keep &= plain_tensor(mask).to(label.device) != 0
    counts = torch.zeros((len(label), num_classes**2), dtype=torch.int64, device=label.device)
    for b in range(len(label)):  # image by image, so that the temporary maps are those of one image
        said = _classes(_label_map(pred[b]), keep[b, 0], num_classes, "pred")
        true = _classes(label[b, 0], keep[b, 0], num_classes, "label")
        code = torch.where(keep[b, 0], said * num_classes + true, num_classes**2)
        counts[b] = torch.bincount(code.flatten(), minlength=num_classes**2 + 1)[:-1]
    return counts.reshape(-1, num_classes, num_classes)


def annotation_counts(annotation: Tensor, label: Tensor, num_classes: int, mask: Tensor | None = None) -> Tensor:
    """Number of drawn pixels for each pair of drawn and true class, one table an annotator and image.

    Args:
        annotation: label maps (B, R, *S), 255 where nothing was drawn. For negative annotations the value is the
            class that was ruled out, so the table is that of the complementary labels.
        label: true classes (B, 1, *S), 255 where unknown.
        num_classes: L.
        mask: field of view (B, 1, *S).

    Returns:
        int64 (B, R, L, L), drawn class by true class.

    Example:
        >>> drawn, label = torch.tensor([[[1, 1, 255, 0]]]), torch.tensor([[[1, 0, 0, 0]]])
        >>> annotation_counts(drawn, label, num_classes=2).tolist()
        [[[[1, 0], [1, 1]]]]
    """
    annotation, label = plain_tensor(annotation), plain_tensor(label)
    if annotation.ndim < 3 or label.shape != (len(annotation), 1, *annotation.shape[2:]):
        raise ValueError(
            f"annotation must be (B, R, *S) and label (B, 1, *S), got {tuple(annotation.shape)} and "
            f"{tuple(label.shape)}; add the batch and channel axes, and crop or resample them together"
        )
    drawn = annotation != UNLABELED
    if mask is not None:
        drawn = drawn & (plain_tensor(mask) != 0)
    tables = [
        confusion_counts(annotation[:, r, None], label, num_classes, drawn[:, r, None])
        for r in range(annotation.shape[1])
    ]
    return torch.stack(tables, dim=1)


def soft_annotation_counts(annotation: Tensor, probs: Tensor) -> Tensor:
    """What was drawn against a truth that is known by its probabilities only, `sum(p_t(x) : o drawn at x)`.

    Args:
        annotation: label maps (B, R, *S), 255 where nothing was drawn.
        probs: probability of each true class (B, L, *S).

    Returns:
        float64 (B, R, L, L), drawn class by true class; 0 for an annotator who drew nothing.

    Example:
        >>> probs = torch.tensor([[[0.9, 0.2], [0.1, 0.8]]])
        >>> soft_annotation_counts(torch.tensor([[[1, 1]]]), probs)[0, 0]
        tensor([[0.0000, 0.0000],
                [1.1000, 0.9000]], dtype=torch.float64)
    """
    drawings, truth = plain_tensor(annotation).flatten(2), plain_tensor(probs).flatten(2).double()
    rows = [torch.einsum("brn,btn->brt", (drawings == k).double(), truth) for k in range(truth.shape[1])]
    return torch.stack(rows, 2)


def _check_shapes(pred: Tensor, label: Tensor, num_classes: int, mask: Tensor | None) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}; count the background as a class")
    if label.ndim < 3 or label.shape[1] != 1:
        raise ValueError(
            f"label must be (B, 1, *S), got {tuple(label.shape)}; one-hot labels need an argmax "
            "first, and one image a batch axis, label[None]"
        )
    if pred.ndim != label.ndim or pred.shape[0] != label.shape[0] or pred.shape[2:] != label.shape[2:]:
        raise ValueError(
            f"pred and label must agree in batch and space, got {tuple(pred.shape)} and {tuple(label.shape)}; "
            "resample the prediction to the label"
        )
    if pred.shape[1] not in (1, num_classes):
        raise ValueError(
            f"pred must have 1 channel (a label map) or {num_classes} (one a class), got {pred.shape[1]}; "
            "check num_classes"
        )
    if mask is not None and mask.shape != label.shape:
        raise ValueError(
            f"mask must have the shape of label, {tuple(label.shape)}, got {tuple(mask.shape)}; "
            "load and crop it with the label"
        )


def _label_map(pred: Tensor) -> Tensor:
    """Label map (*S) of a channel-first label map (1, *S) or of class scores (L, *S)."""
    if pred.shape[0] == 1:
        return pred[0]
    best = pred.max(dim=0)  # several times faster than argmax on a CPU, and it carries NaN along
    if pred.is_floating_point() and best.values.isnan().any():
        raise ValueError("pred holds NaN; the network has diverged, or its input holds NaN")
    return best.indices


def _classes(values: Tensor, keep: Tensor, num_classes: int, name: str) -> Tensor:
    """Class numbers where `keep`, 0 elsewhere, in a dtype that just holds the codes of all pairs."""
    kept = torch.where(keep, values, 0)
    if kept.numel() == 0:
        return kept.to(torch.uint8)
    low, high = kept.aminmax()
    if not (low >= 0 and high < num_classes):
        raise ValueError(
            f"{name} must hold classes 0 .. {num_classes - 1}, got values from {low.item():g} to {high.item():g}; "
            "map them to class numbers, and unknown pixels of the label to the ignore index"
        )
    if kept.is_floating_point() and (kept != kept.round()).any():
        raise ValueError(
            f"{name} must hold whole class numbers, got fractions; resample labels by nearest neighbour, and "
            "take a threshold of probabilities"
        )
    num_codes = num_classes**2 + 1
    return kept.to(torch.uint8 if num_codes <= 2**8 else torch.int16 if num_codes <= 2**15 else torch.int32)


# scores of a table


def _totals(counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hits, predicted and true pixels of each class, (..., L), and all pixels, (..., 1), in float64."""
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2]:
        raise ValueError(f"counts must be (..., L, L), predicted by true class, got {tuple(counts.shape)}")
    n = counts.double()
    return n.diagonal(dim1=-2, dim2=-1), n.sum(-1), n.sum(-2), n.sum((-2, -1)).unsqueeze(-1)


def iou(counts: Tensor) -> Tensor:
    """Intersection over union of each class, `TP / (TP + FP + FN)`.

    Args:
        counts: pixels (..., L, L), predicted by true class.

    Returns:
        float64 (..., L); NaN for a class that is absent from the truth of that table.

    Example:
        >>> iou(torch.tensor([[6, 1], [1, 2]]))
        tensor([0.7500, 0.5000], dtype=torch.float64)
    """
    hits, predicted, true, _ = _totals(counts)
    return torch.where(true > 0, hits / (predicted + true - hits), math.nan)


def dice(counts: Tensor) -> Tensor:
    """Dice coefficient of each class, `2 TP / (2 TP + FP + FN)`, the F1 score of its pixels.

    Args:
        counts: pixels (..., L, L), predicted by true class.

    Returns:
        float64 (..., L); NaN for a class that is absent from the truth of that table.

    Example:
        >>> dice(torch.tensor([[6, 1], [1, 3]]))[1]
        tensor(0.7500, dtype=torch.float64)
    """
    hits, predicted, true, _ = _totals(counts)
    return torch.where(true > 0, 2 * hits / (predicted + true), math.nan)


def sensitivity(counts: Tensor) -> Tensor:
    """Share of the true pixels of each class that were found, `TP / (TP + FN)`, also called recall.

    Args:
        counts: pixels (..., L, L), predicted by true class.

    Returns:
        float64 (..., L); NaN for a class that is absent from the truth.

    Example:
        >>> sensitivity(torch.tensor([[6, 1], [1, 3]]))[1]
        tensor(0.7500, dtype=torch.float64)
    """
    hits, _, true, _ = _totals(counts)
    return hits / true


def specificity(counts: Tensor) -> Tensor:
    """Share of the pixels of the other classes that were not taken for this one, `TN / (TN + FP)`.

    Args:
        counts: pixels (..., L, L), predicted by true class.

    Returns:
        float64 (..., L); NaN for a class that is all of the truth, or where nothing was counted.

    Example:
        >>> specificity(torch.tensor([[6, 1], [2, 3]]))[1]
        tensor(0.7500, dtype=torch.float64)
    """
    hits, predicted, true, total = _totals(counts)
    return (total - predicted - true + hits) / (total - true)


def precision(counts: Tensor) -> Tensor:
    """Share of the pixels predicted as each class that are of that class, `TP / (TP + FP)`.

    Args:
        counts: pixels (..., L, L), predicted by true class.

    Returns:
        float64 (..., L); NaN for a class that was never predicted.

    Example:
        >>> precision(torch.tensor([[6, 2], [1, 3]]))
        tensor([0.7500, 0.7500], dtype=torch.float64)
    """
    hits, predicted, _, _ = _totals(counts)
    return hits / predicted


def accuracy(counts: Tensor) -> Tensor:
    """Share of all pixels on which prediction and truth agree about each class, `(TP + TN) / N`.

    With two classes it is the same for both, and is the share of right pixels.

    Args:
        counts: pixels (..., L, L), predicted by true class.

    Returns:
        float64 (..., L); NaN where nothing was counted.

    Example:
        >>> accuracy(torch.tensor([[6, 1], [1, 2]]))
        tensor([0.8000, 0.8000], dtype=torch.float64)
    """
    hits, predicted, true, total = _totals(counts)
    return (total - predicted - true + 2 * hits) / total


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Share of all pixels whose class is right, `sum_i counts[i, i] / N`.

    Args:
        counts: pixels (..., L, L), predicted by true class.

    Returns:
        float64 (...); NaN where nothing was counted.

    Example:
        >>> pixel_accuracy(torch.tensor([[2, 1, 0], [0, 1, 0], [0, 0, 0]]))
        tensor(0.7500, dtype=torch.float64)
    """
    hits, _, _, total = _totals(counts)
    return hits.sum(-1) / total.squeeze(-1)


def mean_iou(counts: Tensor, include_background: bool = True) -> Tensor:
    """Mean over classes of the intersection over union, without the classes that are absent from the truth.

    `mean_iou(counts)` gives one value an image; `mean_iou(counts.sum(0))` the value of the data set.

    Args:
        counts: pixels (..., L, L), predicted by true class.
        include_background: whether class 0 takes part.

    Returns:
        float64 (...); NaN where no class is present.

    Example:
        >>> counts = torch.tensor([[[6, 1], [1, 2]], [[10, 0], [0, 0]]])
        >>> mean_iou(counts)
        tensor([0.6250, 1.0000], dtype=torch.float64)
        >>> mean_iou(counts.sum(0))
        tensor(0.6944, dtype=torch.float64)
    """
    return class_mean(iou(counts), include_background)


def class_mean(scores: Tensor, include_background: bool = True) -> Tensor:
    """Mean over the classes that have a score.

    Args:
        scores: one value a class (..., L), NaN where undefined.
        include_background: whether class 0 takes part.

    Returns:
        (...); NaN where no class has a score.

    Example:
        >>> class_mean(torch.tensor([0.5, math.nan, 1.0])), class_mean(torch.tensor([0.5, 1.0]), False)
        (tensor(0.7500), tensor(1.))
    """
    return (scores if include_background else scores[..., 1:]).nanmean(-1)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "iou": iou,
    "dice": dice,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "precision": precision,
    "accuracy": accuracy,
}
"""The scores that have one value a class, by name."""


# confusion of those who draw


def conditional_table(counts: Tensor) -> Tensor:
    """Confusion matrix of a count table, `cm[i, j] = p(observed = i | true = j) = counts[i, j] / sum_i counts[i, j]`.

    Args:
        counts: pixels (..., observed, true).

    Returns:
        float64 (..., observed, true), columns sum to 1; NaN in the column of a class that was not counted.

    Example:
        >>> conditional_table(torch.tensor([[3, 0], [1, 0]]))
        tensor([[0.7500,    nan],
                [0.2500,    nan]], dtype=torch.float64)
    """
    n = counts.double()
    return n / n.sum(-2, keepdim=True)


def joint_table(cm: Tensor, prior: Tensor) -> Tensor:
    """Table that an annotator is expected to draw, `joint[i, j] = p(observed = i, true = j) = cm[i, j] prior[j]`.

    It takes the place of counts in the scores: `sensitivity` of it is the diagonal of the matrix, `specificity` how
    often a class is not drawn where it is not, and `precision` its predictive value, the probability that what is
    drawn as a class is that class.

    Args:
        cm: conditional tables (..., R, observed, true), columns sum to 1.
        prior: probability of each class (..., true), one for all annotators.

    Returns:
        float64 (..., R, observed, true); 0 in the column of a class whose prior is 0, NaN for an annotator without
        matrix.

    Example:
        >>> cm, prior = torch.tensor([[[0.9, 0.3], [0.1, 0.7]]]), torch.tensor([0.8, 0.2])
        >>> sensitivity(joint_table(cm, prior))
        tensor([[0.9000, 0.7000]], dtype=torch.float64)
        >>> precision(joint_table(cm, prior))  # 0.72 / (0.72 + 0.06), 0.14 / (0.14 + 0.08)
        tensor([[0.9231, 0.6364]], dtype=torch.float64)
    """
    if cm.ndim < 3 or cm.shape[-1] != cm.shape[-2] or prior.shape[-1:] != cm.shape[-1:]:
        raise ValueError(
            f"cm must be (..., R, L, L) and prior (..., L), got {tuple(cm.shape)} and {tuple(prior.shape)}; average "
            "matrices over pixels first"
        )
    absent = (prior == 0)[..., None, None, :] & ~cm.isnan().all((-2, -1), keepdim=True)
    return (cm.double() * prior.double()[..., None, None, :]).masked_fill(absent, 0)


def empirical_confusion(annotation: Tensor, label: Tensor, num_classes: int, mask: Tensor | None = None) -> Tensor:
    """Confusion matrix of drawings, counted where something was drawn and the truth is known.

    For a negative annotation it is the table of complementary labels, `p(ruled out = i | true = j)`: compare it with
    the transition matrix times the annotator's matrix.

    Args:
        annotation: label maps (B, R, *S), 255 where nothing was drawn.
        label: true classes (B, 1, *S), 255 where unknown.
        num_classes: L.
        mask: field of view (B, 1, *S).

    Returns:
        float64 (B, R, observed, true); NaN in the column of a class on which nothing was drawn.

    Example:
        >>> drawn, label = torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[1, 0, 0, 0]]])
        >>> empirical_confusion(drawn, label, num_classes=2)[0, 0]
        tensor([[0.6667, 0.0000],
                [0.3333, 1.0000]], dtype=torch.float64)
    """
    return conditional_table(annotation_counts(annotation, label, num_classes, mask))


def repeated_confusion(counts: Tensor, label: Tensor) -> Tensor:
    """Confusion matrix of one image drawn again and again: `empirical_confusion` of all its drawings together.

    `cm[i, j] = sum(counts[i, x] : label(x) = j) / sum(counts[k, x] : label(x) = j, all k)`

    Args:
        counts: in how many drawings each class was drawn at each pixel (B, R, observed, *S).
        label: true classes (B, 1, *S), 255 where unknown.

    Returns:
        float64 (B, R, observed, true); NaN in the column of a class on which nothing was drawn.

    Example:
        >>> counts = torch.tensor([[4, 1], [0, 1]])  # four drawings of one pixel, two of the other
        >>> repeated_confusion(counts[None, None], label=torch.tensor([[[0, 1]]])).squeeze()
        tensor([[1.0000, 0.5000],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    _check_counts(counts, label)
    n, true = (
        plain_tensor(counts).double().flatten(3),
        _is_class(plain_tensor(label), counts.shape[2]).double().flatten(2),
    )
    return conditional_table(torch.einsum("bron,btn->brot", n, true))


def local_confusion_error(cm: Tensor, counts: Tensor, label: Tensor) -> Tensor:
    """Root mean squared error of confusion matrices pixel by pixel, against how often each class was drawn there.

    At a pixel one column can be known, that of its true class, and it is if the same image is drawn many times:
    `sqrt(sum_x n(x) mean_i (cm[i, label(x), x] - counts[i, x] / n(x))^2 / sum_x n(x))`, `n(x) = sum_i counts[i, x]`.
    A pixel counts as often as it was drawn: what was never drawn says nothing. The frequencies themselves are off by
    up to `1 / (2 sqrt(n))`, which a perfect matrix is charged with.

    Args:
        cm: confusion matrices (B, R, observed, true, *S).
        counts: in how many drawings each class was drawn at each pixel (B, R, observed, *S).
        label: true classes (B, 1, *S), 255 where unknown.

    Returns:
        float64 (B, R); NaN where nothing was drawn.

    Example:
        >>> cm = torch.tensor([[0.9, 0.3], [0.1, 0.7]]).view(1, 1, 2, 2, 1)
        >>> local_confusion_error(cm, counts=torch.tensor([[[[6], [4]]]]), label=torch.tensor([[[1]]]))
        tensor([[0.3000]], dtype=torch.float64)
    """
    _check_counts(counts, label)
    if cm.shape != (*counts.shape[:3], *counts.shape[2:]):
        raise ValueError(
            f"cm must be (B, R, L, L, *S) for counts (B, R, L, *S), got {tuple(cm.shape)} and {tuple(counts.shape)}"
        )
    true = _is_class(plain_tensor(label), counts.shape[2]).double().flatten(2)
    column = torch.einsum("brotn,btn->bron", plain_tensor(cm).double().flatten(4), true)
    n = plain_tensor(counts).double().flatten(3) * true.sum(1)[:, None, None]  # none where the truth is unknown
    drawn = n.sum(2)
    squares = (column - n / drawn.clamp(min=1)[:, :, None]).square().mean(2)
    return ((squares * drawn).sum(-1) / drawn.sum(-1)).sqrt()


def _is_class(label: Tensor, num_classes: int) -> Tensor:
    """Where each class is true, bool (B, L, *S), of a label map (B, 1, *S)."""
    return label == torch.arange(num_classes, device=label.device).reshape(-1, *[1] * (label.ndim - 2))


def _check_counts(counts: Tensor, label: Tensor) -> None:
    if counts.ndim < 4 or label.shape != (len(counts), 1, *counts.shape[3:]):
        raise ValueError(
            f"counts must be (B, R, L, *S) and label (B, 1, *S), got {tuple(counts.shape)} and {tuple(label.shape)}; "
            "count the drawings of each annotator and class, and crop them with the label"
        )


def mean_confusion(
    cm: Tensor, label: Tensor | None = None, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """One matrix out of a confusion matrix at every pixel.

    Without `label` the plain mean over pixels. With it, `mean(cm[:, j, x] : label(x) = j)`, each column where its
    class is: the matrix that counting the drawings would show, and so the one to compare with `empirical_confusion`.

    Args:
        cm: confusion matrices (B, R, observed, true, *S).
        label: true classes (B, 1, *S), 255 where unknown.
        mask: field of view (B, 1, *S).
        weight: how much each pixel counts (B, R, *S), such as in how many drawings it was drawn; by default all alike.

    Returns:
        (B, R, observed, true), columns sum to 1; NaN where there is no pixel to average.

    Example:
        >>> hit = torch.tensor([1.0, 0.5])  # at two pixels
        >>> cm = torch.stack([torch.stack([hit, 1 - hit]), torch.stack([1 - hit, hit])])
        >>> mean_confusion(cm[None, None]).squeeze()
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])
        >>> mean_confusion(cm[None, None], label=torch.tensor([[[0, 1]]])).squeeze()
        tensor([[1.0000, 0.5000],
                [0.0000, 0.5000]])
    """
    cm = plain_tensor(cm)
    if cm.ndim < 5 or cm.shape[2] != cm.shape[3]:
        raise ValueError(f"cm must be (B, R, L, L, *S), got {tuple(cm.shape)}; add the batch and annotator axes")
    shape = (len(cm), 1, *cm.shape[4:])
    for name, x in (("label", label), ("mask", mask)):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} must be {shape} to match cm, got {tuple(x.shape)}; crop them together")
    if weight is not None and weight.shape != (*cm.shape[:2], *cm.shape[4:]):
        raise ValueError(f"weight must be (B, R, *S) to match cm {tuple(cm.shape)}, got {tuple(weight.shape)}")
    keep = torch.ones(shape, dtype=torch.bool, device=cm.device) if mask is None else plain_tensor(mask) != 0
    true = label is None or _is_class(plain_tensor(label), cm.shape[3])
    keep = (keep & true).expand(-1, cm.shape[3], *shape[2:])
    share = keep[:, None].to(cm.dtype).flatten(3)  # (B, 1 or R, true, pixels)
    if weight is not None:
        share = share * plain_tensor(weight).to(cm.dtype).flatten(2)[:, :, None]
    total = torch.einsum("brotn,brtn->brot", cm.flatten(4), share)
    return total / share.sum(-1)[:, :, None]


def confusion_matrix_error(estimated: Tensor, true: Tensor, present: Tensor | None = None) -> Tensor:
    """Root mean squared error between two confusion matrices, over the columns of the classes that are present.

    `sqrt(mean_{i, j present} (estimated[i, j] - true[i, j])^2)`, one value a matrix.

    Args:
        estimated: conditional tables (..., observed, true).
        true: conditional tables that broadcast against it.
        present: which columns count, bool (..., true); by default those of `true` without NaN.

    Returns:
        (...), 0 for equal tables; NaN where no class is present.

    Source: DHE, the CM estimation error of its experiments.
    Deviates: both tables are conditional on the true class. The released code compares a joint table with a
        conditional one, which is not 0 for a perfect estimate.

    Example:
        >>> estimated, true = torch.tensor([[0.9, 0.3], [0.1, 0.7]]), torch.tensor([[0.8, 0.3], [0.2, 0.7]])
        >>> confusion_matrix_error(estimated, true)
        tensor(0.0707)
        >>> confusion_matrix_error(estimated, true, present=torch.tensor([True, False]))
        tensor(0.1000)
    """
    if estimated.ndim < 2 or true.ndim < 2 or estimated.shape[-2:] != true.shape[-2:]:
        raise ValueError(
            f"estimated and true must both be (..., observed, true), got {tuple(estimated.shape)} and "
            f"{tuple(true.shape)}; average over pixels first"
        )
    present = ~true.isnan().any(-2) if present is None else present
    if present.dtype != torch.bool or present.shape[-1:] != true.shape[-1:]:
        raise ValueError(
            f"present must be a bool tensor with one entry for each of {true.shape[-1]} classes, "
            f"got {present.dtype} {tuple(present.shape)}"
        )
    squares = (estimated - true) ** 2
    column = squares.mean(-2)
    present = present.expand(column.shape)
    return (torch.where(present, column, 0).sum(-1) / present.sum(-1)).sqrt()
