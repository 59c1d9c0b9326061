"""Is training going wrong? What the drawings alone tell, without any true mask.

Four ways are known in which two coupled networks explain drawings and miss the truth:

- *permutation*: the segmentation swaps classes and the confusion matrices swap them back;
- *identity collapse*: the matrices say that nobody errs, and the segmentation learns the errors;
- *uniform collapse*: the matrices say that drawings mean nothing, and the segmentation hears nothing;
- *indifference*: at most pixels the matrices explain what was drawn by two classes alike, as `[[1, 1], [0, 0]]` does,
  and the segmentation is free to choose.

And one in which a network with a latent variable can: *posterior collapse*, where that says nothing of the annotation.

One more thing is no failure of training but of the drawings: *left out*, where the positive ones claim much less of a
structure than the negative ones leave open. Either the ones leave much out, and rare classes should count more, or the
others leave too much open, and they should not: the drawings alone do not say which, whoever looks at them sees it.

That somebody errs shows where drawings contradict each other: a positive and a negative one, or those of several
people who drew the same pixels. Where each image has one person's drawing of one kind, as merged strokes are, an
identity collapse cannot be told from faultless drawings.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medcoarse.confusion import UNLABELED, Annotations, Confusion, CoupledOutput, IdentityConfusion
from medcoarse.losses import consensus

_NEARLY_CHANCE = 0.9  # share of the error of someone who draws at random
_WORTH_EXPLAINING = 0.02  # share of pixels that contradict each other
_COLLAPSED = 0.01  # nats an image
_LEFT_OUT = 0.75  # vessels and digits: 0.37 to 0.64 where much is left out, 1.02 to 2.1 in the drawings by default
_MOSTLY = 0.5  # noisy digits, matrices without a floor: 0 to 0.42 in runs that learned, 0.62 to 1 in those that did not


@torch.no_grad()
def observe(output: CoupledOutput, target: Annotations) -> dict[str, float]:
    """Numbers about one batch, by name; kinds of drawings that are absent, or blank, are left out.

    Args:
        output: of the coupled model.
        target: drawings of the same batch.

    Returns:
        For each ``KIND`` of drawing, ``positive`` and ``negative``: ``agreement_KIND`` and ``swap_KIND``; where
        matrices are estimated, also ``error_KIND`` (share of drawn pixels taken to be wrong), ``chance_KIND`` (that
        share for someone who draws at random) and the numbers of :func:`dominance`; where two or more drew positively
        on the same pixels, ``disagreement`` and ``error_of_two``, see :func:`disagreement`. With both kinds,
        ``contradiction``, and with two classes the areas ``claimed`` and ``left_open``, see
        :func:`drawn_areas`.

    Example:
        >>> logits = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])  # class 0 twice
        >>> target = Annotations(positive=torch.tensor([[[0, 1]]]), negative=torch.tensor([[[1, 1]]]))
        >>> observe(CoupledOutput(logits), target)["contradiction"]
        0.5
    """
    seen = agreement(output.logits, target)
    num_classes = output.logits.shape[1]
    drawn = {name: getattr(target, name) for name in ("positive", "negative") if f"agreement_{name}" in seen}
    for name, drawing in drawn.items():
        confusion = getattr(output, name)
        if name == "positive" or num_classes == 2:
            says = drawing if name == "positive" else torch.where(drawing < 2, 1 - drawing, drawing)
            seen[f"swap_{name}"] = swap(output.logits, says)
        if confusion is not None and not isinstance(confusion, IdentityConfusion):
            seen |= {f"{key}_{name}": value for key, value in dominance(confusion).items()}
            seen[f"error_{name}"] = estimated_error(output.logits, confusion, drawing)
            seen[f"chance_{name}"] = 1 - 1 / num_classes
            if name == "positive":
                seen |= disagreement(output.logits, confusion, drawing)
    if len(drawn) == 2:
        seen["contradiction"] = contradiction(target, num_classes)
        if num_classes == 2 and (areas := drawn_areas(target)):
            seen |= dict(zip(("claimed", "left_open"), areas, strict=True))
    return seen


def diagnose(seen: Mapping[str, float]) -> dict[str, str]:
    """What is wrong, by the name of the failure, each with its remedy; empty when all is well.

    Args:
        seen: numbers of :func:`observe`, better their means over some batches; or ``kl``, the divergence of a latent
            variable's posterior from its prior in nats.

    Example:
        >>> list(diagnose({"swap_positive": 0.4})), diagnose({"swap_positive": -0.4})
        (['permutation'], {})
    """
    found = {}
    for name in ("positive", "negative"):
        if seen.get(f"swap_{name}", -1.0) > 0:
            found["permutation"] = (
                f"The segmentation calls most pixels of two classes by each other's name, going by the {name} drawings "
                f"(it agrees with {seen.get(f'agreement_{name}', 0.0):.0%} of them): the classes are swapped. Lengthen "
                "the warm-up, set diagonal_floor to 0.5 and lower the annotators' learning rate."
            )
        if seen.get(f"error_{name}", 0.0) > _NEARLY_CHANCE * seen.get(f"chance_{name}", 1.0):
            found["uniform"] = (
                f"The {name} drawings are taken to be no better than chance (wrong at {seen[f'error_{name}']:.0%} of "
                "the drawn pixels), so that nothing is learned from them. Lower trace_weight and the annotators' "
                "learning rate, or lengthen the warm-up."
            )
        if not found and seen.get(f"undominated_{name}", 0.0) > _MOSTLY:
            found["indifference"] = (
                f"At {seen[f'undominated_{name}']:.0%} of the pixels and classes another class explains the {name} "
                "drawings as well as the class that was drawn: the segmentation is free to choose. Set diagonal_floor "
                "to 0.5, lower trace_weight and lengthen the warm-up."
            )
    if identity := _identity(seen):
        found["identity"] = identity
    if seen.get("claimed", 1.0) < _LEFT_OUT * seen.get("left_open", 0.0):
        found["left out"] = (
            f"Of the pixels drawn in both ways the positive drawings claim {seen['claimed']:.1%}, the negative ones "
            f"leave {seen['left_open']:.1%} open: much of the structure is left out, or far too much left open. "
            "Look at some. Where structures are left out, train with loss#balance 0.5; where too much is open, do not."
        )
    if seen.get("kl", _COLLAPSED) < _COLLAPSED:
        found["collapse"] = (
            f"The latent variable tells {seen['kl']:.4f} nats of an annotation: the posterior has collapsed onto the "
            "prior, and all samples of an image are alike. That is as it should be where the annotators agree; "
            "otherwise lower beta or train for longer."
        )
    return found


def _identity(seen: Mapping[str, float]) -> str | None:
    """What tells that the drawings hold more errors than the matrices admit, if anything does."""
    explained = [seen[key] for key in ("error_positive", "error_negative") if key in seen]
    contradictory, differing = seen.get("contradiction", 0.0), seen.get("disagreement", 0.0)
    if len(explained) == 2 and contradictory > _WORTH_EXPLAINING and sum(explained) < contradictory / 2:
        said = (
            f"Positive and negative drawings contradict each other on {contradictory:.1%} of the pixels, but the "
            f"annotators are taken to err on {explained[0]:.1%} and {explained[1]:.1%} only"
        )
    elif differing > _WORTH_EXPLAINING and seen["error_of_two"] < differing / 2:
        said = (
            f"Two positive annotators of a pixel draw different classes at {differing:.1%} of the pixels, but are "
            f"taken to err on {seen['error_of_two']:.1%} together"
        )
    else:
        return None
    return (
        f"{said}: the segmentation is learning their errors. Raise the annotators' learning rate, use more "
        "augmentation or train for fewer epochs."
    )


def agreement(logits: Tensor, target: Annotations) -> dict[str, float]:
    """Share of the drawn pixels that the segmentation does not contradict, for each kind of drawing.

    Args:
        logits: ``(B, L, *S)``.
        target: drawings of the same batch.

    Returns:
        ``{"agreement_positive": ..., "agreement_negative": ...}`` in [0, 1]; kinds that are absent are left out.

    Example:
        >>> logits = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])  # class 0 twice
        >>> agreement(logits, Annotations(positive=torch.tensor([[[0, 1]]]), negative=torch.tensor([[[1, 255]]])))
        {'agreement_positive': 0.5, 'agreement_negative': 1.0}
    """
    predicted = logits.argmax(1, keepdim=True)
    shares = {}
    for name, drawing in (("positive", target.positive), ("negative", target.negative)):
        if drawing is not None and (drawn := drawing != UNLABELED).any():
            same = (predicted == drawing)[drawn].float().mean().item()
            shares[f"agreement_{name}"] = same if name == "positive" else 1 - same
    return shares


def swap(logits: Tensor, drawing: Tensor) -> float:
    """How clearly two classes are called by each other's name: above 0 for a pair that is swapped.

    With ``C[k, j]`` the share of pixels drawn as k that are segmented as j, it is the largest
    ``min(C[k, j] - C[k, k], C[j, k] - C[j, j])`` over all pairs. Drawings that are merely too large move one class.

    Args:
        logits: ``(B, L, *S)``.
        drawing: ``(B, R, *S)``, classes or 255.

    Returns:
        A number in [-1, 1]; -1 when fewer than two classes were drawn.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]])
        >>> swap(logits, torch.tensor([[[0, 0, 1]]])), swap(logits, torch.tensor([[[1, 1, 0]]]))
        (1.0, -1.0)
    """
    num_classes = logits.shape[1]
    predicted = logits.argmax(1, keepdim=True).expand(drawing.shape)
    drawn = drawing != UNLABELED
    pairs = num_classes * drawing[drawn].long() + predicted[drawn]
    counts = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).double()
    known = counts.sum(1) > 0
    shares = counts[known][:, known] / counts[known].sum(1, keepdim=True)
    lead = shares - shares.diagonal()[:, None]
    lead.fill_diagonal_(-1)
    return float(torch.minimum(lead, lead.T).max()) if len(lead) > 1 else -1.0


def estimated_error(logits: Tensor, confusion: Confusion, drawing: Tensor) -> float:
    """Share of drawn pixels that the model takes to be wrong: the mean of ``1 - sum_j A[j, j] p_j``.

    Example:
        >>> from medcoarse.confusion import FullConfusion
        >>> confusion = FullConfusion(torch.zeros(1, 1, 2, 2, 3), floor=0.5)
        >>> estimated_error(torch.zeros(1, 2, 3), confusion, torch.tensor([[[0, 1, 255]]]))
        0.25
    """
    drawn = drawing != UNLABELED
    return float(_errors(logits, confusion, drawing)[drawn].mean()) if drawn.any() else 0.0


def _errors(logits: Tensor, confusion: Confusion, drawing: Tensor) -> Tensor:
    """Probability that what each annotator draws is wrong, (B, R, *S) as the drawing."""
    diagonal = confusion.diagonal()  # of a matrix for all pixels, one value along the image axes
    diagonal = diagonal.view(*diagonal.shape, *(1,) * (logits.ndim + 1 - diagonal.ndim))
    return 1 - (diagonal * logits.softmax(1)[:, None]).sum(2).expand(drawing.shape)


def disagreement(logits: Tensor, confusion: Confusion, drawing: Tensor) -> dict[str, float]:
    """How often two people who drew the same pixel differ, and how often the model takes one of the two to be wrong.

    Of two who differ one errs at least: ``P(a != b) <= P(a is wrong) + P(b is wrong)``, whatever the truth is and
    however their errors hang together. Both sides are means over all pairs of annotators and the pixels where both
    drew.

    Args:
        logits: ``(B, L, *S)``.
        confusion: of the R annotators.
        drawing: ``(B, R, *S)``, classes or 255.

    Returns:
        ``disagreement``, the left side in [0, 1], and ``error_of_two``, what the model takes the right side to be, in
        [0, 2]; nothing where no two drew the same pixel.

    Example:
        >>> from medcoarse.confusion import GlobalConfusion
        >>> sure = GlobalConfusion(torch.zeros(3, 2, 2), floor=0.875)  # each wrong at 1 of 16 pixels
        >>> drawing = torch.tensor([[[0, 1, 255], [0, 0, 1], [0, 0, 255]]])
        >>> disagreement(torch.zeros(1, 2, 3), sure, drawing)  # 2 of 6 pairs
        {'disagreement': 0.3333333333333333, 'error_of_two': 0.125}
    """
    drawn = drawing != UNLABELED
    people = drawn.sum(1)
    pairs = (people * (people - 1)).sum().item() / 2
    if not pairs:
        return {}
    # n people are in n (n - 1) / 2 pairs, those of them who drew the same class are no pairs that differ
    alike = sum(((of_class := (drawing == k).sum(1)) * (of_class - 1)).sum().item() / 2 for k in range(logits.shape[1]))
    errors = _errors(logits, confusion, drawing).masked_fill(~drawn, 0).sum(1)
    return {
        "disagreement": (pairs - alike) / pairs,
        "error_of_two": ((people - 1).clamp_min(0) * errors).double().sum().item() / pairs,
    }


def contradiction(target: Annotations, num_classes: int) -> float:
    """Share of the pixels drawn in both ways on which the drawings leave more than one class, see `losses.consensus`.

    Where two people cannot both be right, one of them errs: their errors add up to this at least.

    Example:
        >>> target = Annotations(positive=torch.tensor([[[1, 1, 0, 255]]]), negative=torch.tensor([[[0, 1, 1, 1]]]))
        >>> contradiction(target, num_classes=2)  # the second of three
        0.3333333432674408
    """
    if target.positive is None or target.negative is None:
        return 0.0
    both = (target.positive != UNLABELED).any(1) & (target.negative != UNLABELED).any(1)
    contradictory = consensus(target, num_classes)[:, 0] == UNLABELED
    return float(contradictory[both].float().mean()) if both.any() else 0.0


def drawn_areas(target: Annotations) -> tuple[float, float] | None:
    """Of the pixels drawn in both ways, the shares that are claimed for class 1 and left open for it; two classes.

    Means over the annotators of a kind. Where far less is claimed than left open, the positive drawings leave much of
    the structure out and the negative ones show it, or the negative ones leave too much open.

    Args:
        target: ``positive`` and ``negative`` drawings.

    Returns:
        Two shares, or ``None`` where no pixel was drawn in both ways.

    Example:
        >>> target = Annotations(positive=torch.tensor([[[1, 0, 0, 255]]]), negative=torch.tensor([[[0, 0, 1, 1]]]))
        >>> [round(share, 2) for share in drawn_areas(target)]
        [0.33, 0.67]
    """
    if target.positive is None or target.negative is None:
        return None
    drawn = [maps != UNLABELED for maps in (target.positive, target.negative)]
    both = (drawn[0].any(1) & drawn[1].any(1))[:, None]
    if not both.any():
        return None
    claimed, left_open = (
        float(((maps == value) & both).sum() / (known & both).sum())
        for maps, value, known in zip(target[:2], (1, 0), drawn, strict=True)
    )
    return claimed, left_open


def dominance(confusion: Confusion) -> dict[str, float]:
    """How far confusion matrices are from swapping classes.

    Returns:
        Mean and minimum of the diagonals, and the share of rows that hold an entry as large as their diagonal: there,
        what is drawn is not the most likely explanation of itself, and the truth is not identifiable.

    Example:
        >>> from medcoarse.confusion import GlobalConfusion
        >>> careless = GlobalConfusion(torch.tensor([[[0.9, 0.8], [0.1, 0.2]]]).log())  # draws 0 for nearly everything
        >>> {name: round(value, 2) for name, value in dominance(careless).items()}
        {'diagonal_mean': 0.55, 'diagonal_min': 0.2, 'undominated': 0.0}
    """
    cm = confusion.dense()
    diagonal = torch.diagonal(cm, dim1=2, dim2=3).movedim(-1, 2)
    eye = torch.eye(cm.shape[2], dtype=torch.bool, device=cm.device).view(*cm.shape[2:4], *(1,) * (cm.ndim - 4))
    largest_other = cm.masked_fill(eye, 0).amax(3)
    return {
        "diagonal_mean": diagonal.mean().item(),
        "diagonal_min": diagonal.min().item(),
        "undominated": (largest_other >= diagonal).float().mean().item(),
    }
