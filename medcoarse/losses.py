"""Losses that learn a dense segmentation from coarse drawings: what stands beside their likelihood, and the whole.

Convention: ``log_probs (B, L, *S)`` are the segmenter's log-probabilities, annotations are integer maps with
``UNLABELED = 255`` where nothing was drawn; such pixels contribute nothing, in value and in gradient. An annotator who
drew nothing contributes exactly 0. All sums are float32 in log space, whatever the autocast.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medcoarse.appearance import appearance_nll
from medcoarse.confusion import (
    UNLABELED,
    Annotations,
    Confusion,
    CoupledOutput,
    IdentityConfusion,
    UpsampledConfusion,
    check_transition,
    swap_transition,
)
from medcoarse.evidence import evidence_and_trace
from medcoarse.fused import PixelConfusion, Terms, annotator_terms, drawn_counts
from medcoarse.likelihoods import (
    class_weights,
    coarse_nll,
    complementary_nll,
    joint_nll,
    mean_trace,
    ruled_out_classes,
    ruled_out_nll,
)

WARMUPS = ("consensus", "identity", "masks")


def dense_nll(log_probs: Tensor, label: Tensor, balance: float = 0.0) -> Tensor:
    """Cross-entropy on dense masks ``(B, 1, *S)``, mean over labelled pixels; 0 when the batch has none.

    Args:
        log_probs: ``(B, L, *S)``.
        label: ``(B, 1, *S)``, classes or 255.
        balance: of the classes, from 0 to 1, see :func:`medcoarse.likelihoods.class_weights`.

    Example:
        >>> log_probs = torch.tensor([0.2, 0.8]).log().view(1, 2, 1).expand(1, 2, 3)
        >>> label = torch.tensor([[[1, 1, 0]]])
        >>> round(dense_nll(log_probs, label).item(), 4)  # -(2 log 0.8 + log 0.2) / 3
        0.6852
        >>> round(dense_nll(log_probs, label, balance=1).item(), 4)  # -(log 0.8 + log 0.2) / 2
        0.9163
    """
    target = label[:, 0].long()
    if not balance:
        total = F.nll_loss(log_probs, target, ignore_index=UNLABELED, reduction="sum")
        return total / (label != UNLABELED).sum().clamp_min(1)
    weights = class_weights(label, log_probs.shape[1], balance)[0].to(log_probs)
    return F.nll_loss(log_probs, target, weights, ignore_index=UNLABELED, reduction="sum")


def partial_dice(probs: Tensor, label: Tensor, smooth: float = 1e-5) -> Tensor:
    """``1 - mean_k (2 sum p_k [y = k] + smooth) / (sum p_k + sum [y = k] + smooth)``, sums over labelled pixels.

    Args:
        probs: ``(B, L, *S)``.
        label: ``(B, 1, *S)``, classes or 255; pixels with 255 take part in no sum.
        smooth: keeps the ratio defined for a class that is neither drawn nor predicted.

    Returns:
        Scalar between 0 and 1: the mean over the classes but background, sums over the batch.

    Source: Isensee et al., nnU-Net (Nature Methods 2021), soft Dice with batch sums and an ignore label.

    Example:
        >>> probs = torch.tensor([[[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]])
        >>> round(partial_dice(probs, torch.tensor([[[1, 255, 0]]])).item(), 4)
        0.0
        >>> round(partial_dice(probs, torch.tensor([[[1, 0, 0]]])).item(), 4)  # 1 - 2 / 3
        0.3333
    """
    labelled = label != UNLABELED
    scores = []
    for k in range(1, probs.shape[1]):
        truth = (label == k).to(probs.dtype)
        predicted = probs[:, k : k + 1] * labelled
        scores.append((2 * (predicted * truth).sum() + smooth) / (predicted.sum() + truth.sum() + smooth))
    return 1 - torch.stack(scores).mean()


def personal_terms(logits: Sequence[Tensor], positive: Tensor, balance: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice of what each annotator would draw with what they drew, two sums over the annotators.

    Args:
        logits: for each of R annotators, of the images that they drew, ``(B_r, L, *S)``, in the order of the batch.
        positive: ``(B, R, *S)``; who drew nothing at all of an image has not drawn it.
        balance: of the classes, of each annotator's own, see :func:`dense_nll`.

    Example:
        >>> nothing, drawn = torch.empty(0, 2, 2), torch.tensor([[[0, 1], [255, 255]]])
        >>> [round(term.item(), 4) for term in personal_terms([torch.zeros(1, 2, 2), nothing], drawn)]
        [0.6931, 0.5]
    """
    nll = [torch.zeros((), device=positive.device, requires_grad=True)]  # where nobody drew anything
    dice = [nll[0]]
    for own, label, drew in zip(logits, positive.unbind(1), drawn_by(positive).unbind(1), strict=True):
        if drew.any():
            drawn = label[drew][:, None]
            nll.append(dense_nll(own.float().log_softmax(1), drawn, balance))
            dice.append(partial_dice(own.float().softmax(1), drawn))
    return torch.stack(nll).sum(), torch.stack(dice).sum()


def drawn_by(positive: Tensor) -> Tensor:
    """Who drew which image, bool ``(B, R)``."""
    return (positive != UNLABELED).flatten(2).any(2)


def consensus(annotations: Annotations, num_classes: int) -> Tensor:
    """The class that contradicts the fewest drawings, or 255 where several do.

    A positive drawing of k contradicts every class but k, a negative one only k. One drawing of each kind agrees or
    leaves the pixel open; several people are a majority vote. Where nothing was drawn all classes are as good.

    Args:
        annotations: ``positive`` ``(B, R, *S)`` and ``negative`` ``(B, C, *S)``.
        num_classes: L.

    Returns:
        ``(B, 1, *S)`` of the integer type of the drawings.

    Example:
        >>> positive = torch.tensor([[[1, 1, 0, 255]]])
        >>> negative = torch.tensor([[[0, 1, 1, 255]]])
        >>> consensus(Annotations(positive, negative), num_classes=2)  # agree, contradict, agree, nothing
        tensor([[[  1, 255,   0, 255]]])
        >>> consensus(Annotations(torch.tensor([[[1, 0], [1, 1], [0, 255]]])), num_classes=2)  # two of three, a draw
        tensor([[[  1, 255]]])
    """
    drawings = [drawing for drawing in annotations[:2] if drawing is not None]
    if not drawings:
        raise ValueError("consensus needs positive or negative drawings, got neither")
    label = torch.zeros_like(drawings[0][:, 0])
    most = _votes(annotations, 0)
    for k in range(1, num_classes):
        votes = _votes(annotations, k)
        better, draw = (votes > most).byte(), (votes == most).byte()
        label = label * (1 - better - draw) + better * k + draw * UNLABELED  # several times as fast as masked_fill
        most = torch.maximum(most, votes)
    return label[:, None]


def _votes(annotations: Annotations, k: int) -> Tensor:
    """Drawings for class k less those against it ``(B, *S)``: most where k contradicts the fewest."""
    voters = [
        (one, sign)
        for maps, sign in zip(annotations[:2], (1, -1), strict=True)
        if maps is not None
        for one in maps.unbind(1)
    ]
    votes = torch.zeros_like(voters[0][0], dtype=torch.int8 if len(voters) < 128 else torch.int32)
    for drawing, sign in voters:
        votes.add_((drawing == k).to(votes.dtype), alpha=sign)
    return votes


def _holds_labels(label: Tensor | None) -> bool:
    return label is not None and bool((label != UNLABELED).any())


def _whole_numbers(name: str, drawing: Tensor, num_classes: int) -> Tensor:
    """A map of classes of any type as one of integers; its values are looked at on a CPU, where that needs no wait."""
    drawing = drawing.as_subclass(Tensor)  # metadata costs time in every operation
    if drawing.is_floating_point():
        if not bool((drawing == drawing.round()).all()):
            raise ValueError(
                f"{name} must hold whole numbers, classes or {UNLABELED}, got fractions or NaN; "
                'resample it by nearest neighbour (mode="nearest" for its key)'
            )
        drawing = drawing.int()
    elif drawing.dtype == torch.bool:
        drawing = drawing.byte()
    elif drawing.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch compares few of these
        drawing = drawing.long()
    if drawing.numel():
        drawn_counts(drawing.flatten(2), num_classes, name)  # raises
    return drawing


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _terms(
    logits: Tensor,
    confusion: Confusion,
    annotation: Tensor,
    trace_weight: float,
    log_transition: Tensor | None = None,
    balance: float = 0.0,
) -> Terms:
    """Likelihood and trace of a group of annotators: fused where every pixel has a matrix, else by the equations."""
    if isinstance(confusion, PixelConfusion):
        return annotator_terms(logits, confusion, annotation, trace_weight, log_transition, balance)
    log_probs = logits.log_softmax(1)
    if log_transition is None:
        nll = coarse_nll(log_probs, confusion, annotation, balance)
    else:
        nll = complementary_nll(log_probs, confusion, log_transition, annotation)
    return _joined(nll, mean_trace(confusion, annotation, balance), trace_weight)


def _joined(nll: Tensor, trace: Tensor, trace_weight: float) -> Terms:
    return Terms(nll + trace_weight * trace, nll.detach(), trace.detach())


class CoupledLoss(nn.Module):
    """The whole loss of the coupled model.

    ``sum_o NLL(o) + sum_c NLL(c) + trace_weight (sum_o mean trace A(o) + sum_c mean trace A(c))
    + dice_weight Dice(consensus) + dense_weight (CE + dice_weight Dice)(masks) + appearance_weight * appearance``

    With ``joint`` one likelihood of all drawings stands for both sums, and the likeliest class for the consensus.
    Of a segmenter with heads (:class:`medcoarse.networks.AnnotatorHeads`) each learns the drawings of its annotator
    instead, by :func:`personal_terms`, and the matrices follow the vote without moving it.
    While the model trains no annotators (``CoupledOutput.positive`` and ``.negative`` are ``None``) the drawings are
    read without confusion matrices: on their consensus, or each as if it were the truth.

    Args:
        num_classes: L.
        trace_weight: λ, at most about 0.05, above 0.5 it warns. 0 because the trace makes neither the segmentation nor
            the matrices better where the warm-up has settled what the classes are.
        transition: fixed ``M`` as nested lists or tensor; ``None`` is uniform over the other classes (the swap at
            L = 2). Ignored where the model learns its own.
        warmup: what drawings say while there are no annotators: ``"consensus"`` what they agree on, ``"identity"`` each
            the truth, ``"masks"`` nothing in batches that hold masks and else the consensus. Where some images have
            masks, these settle what the classes are, and errors of drawings had better wait for the annotators.
        dense_weight: weight of cross-entropy on dense masks.
        dice_weight: weight of :func:`partial_dice`, on the :func:`consensus` of the drawings and on dense masks; 0
            leaves it out. It holds the size of a structure where the likelihood alone lets it grow into the pixels on
            which the drawings contradict each other.
        coupled_dice_weight: its weight on the consensus once the annotators are there; ``None`` is ``dice_weight``. 0
            suits images that one of several people drew each: that drawing is then the whole consensus, and its errors
            are what the annotators should explain.
        joint: once the annotators are there, explain all drawings of an image together (:func:`joint_nll`), and let
            Dice hold on to the class that is likeliest given all of them, the matrices and the segmentation, in place
            of the consensus, which counts every voice alike. For several people who drew the same images: who is wrong
            shows by what the others drew. Like STAPLE it sides with those who agree, so it can be led astray where two
            share a habit and differ from the others. Every matrix is written out at every pixel, ``R L^2`` numbers.
        balance: of the classes, from 0 to 1, see :func:`medcoarse.likelihoods.class_weights`: with many classes, of
            which some are rare, all pixels alike learn the rare ones late. In the warm-up, in
            masks, and in the likelihood of one annotator's drawings; not in that of several, whose errors would be told
            apart the worse for it, nor of negative ones of more than two classes, which say little of what is there.
            Where the annotators are fitted to a segmenter that is finished every pixel counts alike, because matrices
            should tell how often people err as they draw.
        negative_sets: the negative maps of an image are one annotator's and rule out a set of classes at each pixel,
            see :func:`ruled_out_nll`; the model then has one negative annotator and ``transition`` is not used.
        appearance_weight: weight of :func:`medcoarse.appearance.appearance_nll` beside drawings, where no mask is;
            0 leaves it out.
        appearance_sigma: its window in pixels; ``None`` is the whole image.
        appearance_smoothing: standard deviation in pixels of the Gaussian that smooths the image for it; 0 does not.

    Raises:
        ValueError: a weight that is negative, a balance beyond 0 and 1, an unknown warm-up, a matrix that is no
            transition; ``joint`` together with ``negative_sets``.

    Source: CL Eq. 6, DHE Eq. 4, with the warm-up that keeps classes from being permuted, Dice and the appearance prior.

    Example:
        >>> loss = CoupledLoss(num_classes=2)
        >>> output = CoupledOutput(torch.zeros(1, 2, 3))  # no annotators: warm-up
        >>> loss(output, Annotations(positive=torch.tensor([[[0, 1, 255]]])))
        tensor(0.6931)
        >>> loss.parts
        {'consensus': tensor(0.6931)}
    """

    log_transition: Tensor

    def __init__(
        self,
        num_classes: int,
        trace_weight: float = 0.0,
        transition: Tensor | list[list[float]] | None = None,
        warmup: str = "consensus",
        dense_weight: float = 1.0,
        negative_sets: bool = False,
        appearance_weight: float = 0.0,
        appearance_sigma: float | None = None,
        appearance_smoothing: float = 0.0,
        dice_weight: float = 0.0,
        coupled_dice_weight: float | None = None,
        joint: bool = False,
        balance: float = 0.0,
    ) -> None:
        super().__init__()
        coupled_dice_weight = dice_weight if coupled_dice_weight is None else coupled_dice_weight
        if min(trace_weight, dense_weight, dice_weight, coupled_dice_weight, appearance_weight) < 0:
            got = f"{trace_weight=}, {dense_weight=}, {dice_weight=}, {coupled_dice_weight=}, {appearance_weight=}"
            raise ValueError(f"weights must not be negative, got {got}")
        if trace_weight > 0.5:
            warnings.warn(
                f"trace_weight = {trace_weight}: above 0.5 the trace term outweighs the likelihood and the confusion "
                "matrices collapse; start from 0.05",
                stacklevel=2,
            )
        if appearance_smoothing < 0:
            raise ValueError(f"appearance_smoothing must not be negative, got {appearance_smoothing}")
        if warmup not in WARMUPS:
            raise ValueError(f"warmup must be one of {', '.join(WARMUPS)}, got {warmup!r}")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must be from 0 (all pixels alike) to 1 (all classes alike), got {balance}")
        if joint and negative_sets:
            raise ValueError("joint explains drawings one by one, negative_sets rule out a set of classes; choose one")
        matrix = swap_transition(num_classes) if transition is None else check_transition(torch.as_tensor(transition))
        if len(matrix) != num_classes:
            raise ValueError(f"the transition matrix is for {len(matrix)} classes, the loss for {num_classes}")
        self.num_classes = num_classes
        self.trace_weight = trace_weight
        self.warmup = warmup
        self.dense_weight = dense_weight
        self.negative_sets = negative_sets
        self.appearance_weight = appearance_weight
        self.appearance_sigma = appearance_sigma
        self.appearance_smoothing = appearance_smoothing
        self.dice_weight = dice_weight
        self.coupled_dice_weight = coupled_dice_weight
        self.joint = joint
        self.balance = balance
        self.register_buffer("log_transition", matrix.log(), persistent=False)
        self.parts: dict[str, Tensor] = {}

    def forward(self, output: CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss. Its unweighted terms stay in ``parts``, detached; the appearance's, a constant, does not."""
        target = self._checked(output, target)
        with _without_autocast(output.logits.device.type):
            logits = output.logits.float()
            warm = output.is_warmup
            if warm and self.warmup == "masks" and _holds_labels(target.label):
                target = target._replace(positive=None, negative=None)
            drawn = target.positive is not None or target.negative is not None
            agreed: Tensor | None = None
            if output.heads is not None and drawn:
                objectives, self.parts = self._head_terms(output.heads, logits.detach(), output, target)
            elif drawn and self.joint and not warm:
                objectives, self.parts, agreed = self._joint_terms(logits, output, target)
            else:
                agreed = self._agreed(warm, target) if drawn else None
                objectives, self.parts = self._coarse_terms(logits, output, target, agreed)
            if target.label is not None:
                self.parts["dense"] = dense_nll(logits.log_softmax(1), target.label, self.balance)
                objectives.append(self.dense_weight * self.parts["dense"])
            probs = logits.softmax(1)  # once for all terms: the pass over the pixels, and the one back
            objectives += self._dice_terms(probs, self._consensus_dice(warm), agreed, target.label)
            if self.appearance_weight > 0 and drawn:
                if target.image is None:
                    raise ValueError("appearance_weight > 0 needs Annotations.image; pass the image to the loss")
                unknown = None if target.label is None else target.label == UNLABELED
                appearance = appearance_nll(
                    probs, target.image.float(), self.appearance_sigma, self.appearance_smoothing, unknown
                )
                objectives.append(self.appearance_weight * appearance)
            self.parts = {name: value.detach() for name, value in self.parts.items()}
            return torch.stack(objectives).sum()

    def _agreed(self, warm: bool, target: Annotations) -> Tensor | None:
        """Consensus of the drawings, if a term asks for it."""
        needed = self._consensus_dice(warm) > 0 or (warm and self.warmup != "identity")
        return consensus(target, self.num_classes) if needed else None

    def _consensus_dice(self, warm: bool) -> float:
        return self.dice_weight if warm else self.coupled_dice_weight

    def _joint_terms(
        self, logits: Tensor, output: CoupledOutput, target: Annotations
    ) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
        """What the drawings add to the loss together, its unweighted parts, and the class that is likeliest."""
        evidence, traces, where = [], [], []
        for name, drawing in (("positive", target.positive), ("negative", target.negative)):
            if drawing is None:
                continue
            confusion: Confusion = getattr(output, name)
            if isinstance(confusion, UpsampledConfusion):
                confusion = confusion.full()  # once for all that follows
            if isinstance(confusion, IdentityConfusion):
                raise ValueError(
                    f'joint=True needs matrices, and the {name} annotators have structure "identity" (learn_transition '
                    "needs it): who never errs cannot contradict others; choose another structure, or joint=False"
                )
            log_transition: Tensor | None = None
            if name == "negative":
                fixed = self.log_transition.to(logits.device)
                log_transition = fixed if output.log_transition is None else output.log_transition
            trained = self.trace_weight > 0
            said, trace = evidence_and_trace(confusion, drawing, self.num_classes, log_transition, trained)
            evidence.append(said)
            traces.append(trace)
            where.append((drawing != UNLABELED).any(1, keepdim=True))
        drawn, said = torch.stack(where).any(0), torch.stack(evidence).sum(0)
        log_probs = logits.log_softmax(1)
        nll, trace = joint_nll(log_probs, said, drawn), torch.stack(traces).sum()
        likeliest = (log_probs + said).detach().argmax(1, keepdim=True).masked_fill(~drawn, UNLABELED)
        objective = nll + self.trace_weight * trace if self.trace_weight else nll
        return [objective], {"nll_joint": nll, "trace": trace}, likeliest

    def _head_terms(
        self, heads: Tensor, vote: Tensor, output: CoupledOutput, target: Annotations
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Each head learns its annotator's drawings; matrices, once there are any, are fitted to the vote."""
        assert target.positive is not None  # negative ones are refused
        drew = drawn_by(target.positive)
        own = [logits[who] for logits, who in zip(heads.unbind(1), drew.unbind(1), strict=True)]
        nll, dice = personal_terms(own, target.positive, self.balance)
        objectives, parts = [nll + self.dice_weight * dice], {"heads": nll, "heads_dice": dice}
        if not output.is_warmup:
            of_matrices, more = self._coarse_terms(vote, output, target, None)
            objectives, parts = objectives + of_matrices, parts | more
        return objectives, parts

    def _coarse_terms(
        self, logits: Tensor, output: CoupledOutput, target: Annotations, agreed: Tensor | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What the drawings add to the loss, and its unweighted parts."""
        positive, negative = target.positive, target.negative
        if positive is None and negative is None:
            return [], {}
        warm = output.is_warmup
        if warm and self.warmup != "identity":
            assert agreed is not None
            nll = dense_nll(logits.log_softmax(1), agreed, self.balance)
            return [nll], {"consensus": nll}
        trace_weight = 0.0 if warm else self.trace_weight
        groups: dict[str, Terms] = {}
        if positive is not None:
            confusion = output.positive or IdentityConfusion(positive.shape[1])
            groups["nll_positive"] = _terms(
                logits, confusion, positive, trace_weight, balance=self._balance_of(positive, output)
            )
        if negative is not None:
            groups["nll_negative"] = self._negative_terms(logits, output, negative, trace_weight)
        parts = {name: terms.nll for name, terms in groups.items()}
        if not warm:
            parts["trace"] = torch.stack([terms.trace for terms in groups.values()]).sum()
        return [terms.objective for terms in groups.values()], parts

    def _dice_terms(
        self, probs: Tensor, consensus_weight: float, agreed: Tensor | None, label: Tensor | None
    ) -> list[Tensor]:
        """Dice on the consensus of the drawings and on the masks."""
        objectives = []
        dense_weight = self.dense_weight * self.dice_weight
        for name, known, weight in (("consensus", agreed, consensus_weight), ("dense", label, dense_weight)):
            if known is not None and weight > 0:
                self.parts[f"{name}_dice"] = partial_dice(probs, known)
                objectives.append(weight * self.parts[f"{name}_dice"])
        return objectives

    def _negative_terms(self, logits: Tensor, output: CoupledOutput, negative: Tensor, trace_weight: float) -> Terms:
        if self.negative_sets:
            confusion = output.negative or IdentityConfusion(1)
            nll = ruled_out_nll(logits.log_softmax(1), confusion, negative)
            _, drawn = ruled_out_classes(negative, self.num_classes)
            told = negative.amin(1, keepdim=True).masked_fill(~drawn, UNLABELED)
            return _joined(nll, mean_trace(confusion, told), trace_weight)
        confusion = output.negative or IdentityConfusion(negative.shape[1])
        if output.log_transition is not None:  # learned, so it needs a gradient of its own
            nll = complementary_nll(logits.log_softmax(1), confusion, output.log_transition, negative)
            return _joined(nll, mean_trace(confusion, negative), trace_weight)
        if self.num_classes == 2:  # "not this one" names the other
            other = torch.where(negative < 2, 1 - negative, negative)
            return _terms(logits, confusion, other, trace_weight, balance=self._balance_of(other, output))
        return _terms(logits, confusion, negative, trace_weight, self.log_transition.to(logits.device))

    def _balance_of(self, drawing: Tensor, output: CoupledOutput) -> float:
        return self.balance if output.is_warmup or (drawing.shape[1] == 1 and not output.finished) else 0.0

    def _checked(self, output: CoupledOutput, target: Annotations) -> Annotations:
        """The target with maps of integers. What does not fit is said before torch would, in the warm-up already."""
        if not isinstance(output, CoupledOutput):
            raise TypeError(
                f"CoupledLoss takes the CoupledOutput of a CoupledModel in training, got {type(output).__name__}; in "
                "evaluation, model.couple(image) gives one"
            )
        if not isinstance(target, Annotations):
            raise TypeError(
                f"the target must be Annotations(positive=..., negative=..., label=..., image=...), got "
                f"{type(target).__name__}; in MONAI's engines medcoarse.workflow.PrepareBatchCoarse makes it of a batch"
            )
        given = {name: getattr(target, name) for name in ("positive", "negative", "label")}
        given = {name: one for name, one in given.items() if one is not None}
        for name, one in given.items():
            if not isinstance(one, Tensor):
                raise TypeError(f"{name} must be a tensor (B, annotators, *S), got {type(one).__name__}; convert it")
        self._check_shapes(output, target)
        return target._replace(**{name: _whole_numbers(name, one, self.num_classes) for name, one in given.items()})

    def _check_shapes(self, output: CoupledOutput, target: Annotations) -> None:
        logits = output.logits
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"the loss is for {self.num_classes} classes, the segmenter gives {logits.shape[1]}")
        if all(drawing is None for drawing in target[:3]):
            raise ValueError("there is nothing to learn from: positive, negative and label are all None")
        for name in ("positive", "negative", "label"):
            drawing = getattr(target, name)
            if drawing is not None and (drawing.shape[0], *drawing.shape[2:]) != (logits.shape[0], *logits.shape[2:]):
                raise ValueError(
                    f"{name} drawings must be (B, annotators, *S) with the batch and image size of the logits "
                    f"{tuple(logits.shape)}, got {tuple(drawing.shape)}"
                )
        if output.heads is not None and target.negative is not None:
            raise ValueError(
                "heads learn what each annotator draws a structure to be, and negative drawings have none; leave these "
                "out, or use a segmenter without AnnotatorHeads"
            )
        drew = 0 if target.positive is None else target.positive.shape[1]
        if output.heads is not None and drew not in (0, output.heads.shape[1]):
            raise ValueError(
                f"{drew} positive annotators drew and the segmenter has {output.heads.shape[1]} heads: build "
                f"AnnotatorHeads with num_annotators={drew}"
            )
        if target.label is not None and target.label.shape[1] != 1:
            raise ValueError(
                f"label must have one channel, got {target.label.shape[1]}: classes are values, not channels"
            )
        if output.is_warmup and output.num_annotators is None:
            return
        learned = [0 if one is None else one.num_annotators for one in (output.positive, output.negative)]
        for name, modelled in zip(("positive", "negative"), output.num_annotators or learned, strict=True):
            drawing = getattr(target, name)
            if drawing is None:
                continue
            drew = 1 if name == "negative" and self.negative_sets else drawing.shape[1]
            if modelled != drew:
                raise ValueError(
                    f"{drew} {name} annotators drew and the model has {modelled}: build the AnnotatorNet with "
                    f"num_{name}={drew}, or do not pass the drawings"
                )
