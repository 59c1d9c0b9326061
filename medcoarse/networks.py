"""Annotator networks and the coupled model; any MONAI network of one output serves as segmenter and as backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from monai.networks.utils import eval_mode
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from medcoarse.confusion import (
    Confusion,
    CoupledOutput,
    FullConfusion,
    GlobalConfusion,
    IdentityConfusion,
    LowRankConfusion,
    UpsampledConfusion,
    check_num_classes,
)

STRUCTURES = ("full", "low_rank", "global", "identity")
_is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]  # TorchScript leaves out what is not for it


class AnnotatorNet(nn.Module):
    """Predicts, from the image, how each annotator errs at every pixel.

    A backbone computes features; a 1 x 1 convolution turns them into the parameters of the confusion matrices of all
    annotators. The convolution starts at zero with a bias for ``initial_diagonal``, so that training starts near the
    identity everywhere. Parameters of lower resolution than the image are interpolated linearly.

    Args:
        backbone: any module ``(B, channels, *S) -> (B, feature_channels, *S')``; ``None`` with ``"global"`` and
            ``"identity"``, which do not look at the image. ``torch.nn.Identity()`` leaves only the convolution, for
            features that the segmenter computes anyway (``shared_layer`` of :class:`CoupledModel`).
        spatial_dims: 2 or 3.
        feature_channels: channels that the backbone returns.
        num_classes: L.
        num_positive: R, annotators who draw what a structure is.
        num_negative: C, annotators who draw what it is not.
        structure: ``"full"`` (``L^2`` channels an annotator), ``"low_rank"`` (``L + rank L``, or ``L + 2 rank L``
            when rank > 1), ``"global"`` (one matrix for all pixels) or ``"identity"`` (no errors).
        rank: number of habits of ``"low_rank"``; 1 is "diagonal + rank-1".
        diagonal_floor: lower bound of the diagonal; 0.5 rules out a permutation of the classes, which a warm-up does as
            well.
        initial_diagonal: diagonal at the start, between the floor and 1.
        reduction: the backbone sees the image averaged over blocks of this many voxels along every axis, or along each.
            Annotators err on the scale of a pen's stroke, not of a voxel: a coarser look costs little accuracy and
            saves nearly all of the annotators' cost.

    Raises:
        ValueError: an unknown structure or an argument out of range.

    Source: CL Section 3.2; DHE Section 3. The reduction is ours.

    Example:
        >>> net = AnnotatorNet(nn.Conv2d(3, 4, 3, padding=1), 2, 4, num_classes=2, num_positive=1, num_negative=1)
        >>> positive, negative = net(torch.rand(1, 3, 8, 8))
        >>> positive.diagonal().shape, round(positive.diagonal().mean().item(), 3)
        (torch.Size([1, 1, 2, 8, 8]), 0.9)
    """

    def __init__(
        self,
        backbone: nn.Module | None,
        spatial_dims: int,
        feature_channels: int,
        num_classes: int,
        num_positive: int = 1,
        num_negative: int = 1,
        structure: str = "full",
        rank: int = 1,
        diagonal_floor: float = 0.0,
        initial_diagonal: float = 0.9,
        reduction: int | Sequence[int] = 1,
    ) -> None:
        super().__init__()
        check_num_classes(num_classes)
        _check_annotator_arguments(structure, rank, diagonal_floor, initial_diagonal, num_positive, num_negative)
        self.reduction = ensure_tuple_rep(reduction, spatial_dims)
        if min(self.reduction) < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}")
        self.num_classes, self.num_positive, self.num_negative = num_classes, num_positive, num_negative
        self.structure, self.rank, self.diagonal_floor = structure, rank, diagonal_floor
        self.backbone: nn.Module | None = None
        bias = self._initial_parameters(initial_diagonal)
        if structure == "global":
            self.table = nn.Parameter(bias)
        elif structure != "identity":
            if backbone is None:
                raise ValueError(f'structure "{structure}" looks at the image and needs a backbone, got None')
            self.backbone = backbone
            self.head = Conv[Conv.CONV, spatial_dims](feature_channels, bias.numel(), kernel_size=1)
            nn.init.zeros_(self.head.weight)
            with torch.no_grad():
                self.head.bias.copy_(bias.flatten())

    @property
    def num_annotators(self) -> int:
        """R + C."""
        return self.num_positive + self.num_negative

    def forward(self, image: Tensor, size: Sequence[int] | None = None) -> tuple[Confusion | None, Confusion | None]:
        """Confusion of the positive and of the negative annotators; ``None`` where there are none.

        Args:
            image: ``(B, channels, *S)``, or features of it.
            size: image size of the matrices; ``None`` is that of ``image``.
        """
        if self.structure == "identity":
            groups: list[Confusion] = [IdentityConfusion(number) for number in self._numbers]
        elif self.structure == "global":
            groups = [
                GlobalConfusion(part, self.diagonal_floor) for part in torch.split(self.table.float(), self._numbers)
            ]
        else:
            wanted = tuple(image.shape[2:] if size is None else size)
            groups = [self._structured(part, wanted) for part in self._group_parameters(image)]
        positive, negative = (group if number else None for group, number in zip(groups, self._numbers, strict=True))
        return positive, negative

    @property
    def _numbers(self) -> list[int]:
        return [self.num_positive, self.num_negative]

    def _group_parameters(self, image: Tensor) -> tuple[Tensor, ...]:
        """Of the positive and of the negative annotators, ``(B, R, parameters, *S')``, float32."""
        assert self.backbone is not None
        if image.ndim != len(self.reduction) + 2:
            raise ValueError(
                f"the annotators see images (B, channels, *S) of {len(self.reduction)} axes (spatial_dims), got "
                f"{tuple(image.shape)}"
            )
        if max(self.reduction) > 1:
            blocks = [-(-length // block) for length, block in zip(image.shape[2:], self.reduction, strict=True)]
            image = F.interpolate(image, blocks, mode="area")
        features = self.backbone(image)
        shape = tuple(features.shape) if isinstance(features, Tensor) else ()
        if len(shape) != image.ndim or shape[1] != self.head.in_channels:
            raise ValueError(
                f"the annotators' backbone must give features (B, {self.head.in_channels}, *S) (feature_channels), got "
                f"{type(features).__name__}{shape}"
            )
        values = self.head(features).float()
        return torch.split(torch.unflatten(values, 1, (self.num_annotators, -1)), self._numbers, 1)

    def _structured(self, values: Tensor, size: tuple[int, ...]) -> Confusion:
        """Matrices ``(B, R, ..., *size)`` from parameters ``(B, R, parameters, *S')``."""
        confusion: FullConfusion | LowRankConfusion
        if self.structure == "full":
            table = torch.unflatten(values, 2, (self.num_classes, self.num_classes))
            confusion = FullConfusion(table, self.diagonal_floor)
        else:
            copy, rest = torch.split(values, [self.num_classes, values.shape[2] - self.num_classes], 2)
            factors = torch.unflatten(rest, 2, (-1, self.rank, self.num_classes)).unbind(2)
            confusion = LowRankConfusion(copy, factors[0], factors[1] if self.rank > 1 else None, self.diagonal_floor)
        return confusion if values.shape[3:] == size else UpsampledConfusion(confusion, size)

    def _initial_parameters(self, diagonal: float) -> Tensor:
        """Logits that give every class the same diagonal, ``(R + C, ...)``."""
        share = (diagonal - self.diagonal_floor) / (1 - self.diagonal_floor)
        odds = math.log(share / (1 - share))
        if self.structure != "low_rank":
            table = torch.eye(self.num_classes) * (odds + math.log(self.num_classes - 1))
            return table.expand(self.num_annotators, -1, -1).clone()
        # What is not copied is drawn at random and so hits the truth in 1 of L cases.
        copied = (diagonal - 1 / self.num_classes) / (1 - 1 / self.num_classes)
        share = (copied - self.diagonal_floor) / (1 - self.diagonal_floor)
        if share <= 0:
            raise ValueError(
                f"initial_diagonal {diagonal} is out of reach of low-rank matrices with diagonal_floor "
                f"{self.diagonal_floor}: raise the one or lower the other"
            )
        copy = torch.full((self.num_annotators, self.num_classes), math.log(share / (1 - share)))
        factors = torch.zeros(self.num_annotators, (1 if self.rank == 1 else 2) * self.rank, self.num_classes)
        if self.rank > 1:  # habits that differ from the start; equal ones would stay equal for ever
            factors[:, : self.rank] = torch.eye(self.num_classes).repeat(self.rank // self.num_classes + 1, 1)[
                : self.rank
            ]
        return torch.cat([copy, factors.flatten(1)], 1)


def _check_annotator_arguments(
    structure: str, rank: int, floor: float, diagonal: float, num_positive: int, num_negative: int
) -> None:
    if structure not in STRUCTURES:
        raise ValueError(f"structure must be one of {', '.join(STRUCTURES)}, got {structure!r}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if not 0 <= floor < diagonal < 1:
        raise ValueError(
            f"need 0 <= diagonal_floor < initial_diagonal < 1, got diagonal_floor={floor}, initial_diagonal={diagonal}"
        )
    if min(num_positive, num_negative) < 0 or num_positive + num_negative == 0:
        raise ValueError(f"at least one annotator is needed, got {num_positive=}, {num_negative=}")


def _scores(network: nn.Module, image: Tensor) -> Tensor:
    """Of a network whose output may be a list of one."""
    found = network(image)
    if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != image.ndim:
        given = found if isinstance(found, list | tuple) else [found]
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in given]
        raise ValueError(
            f"the segmenter must give class scores (B, L, *S) for an image {tuple(image.shape)}, got "
            f"{', '.join(map(str, shapes)) or 'nothing'}; let it give them alone, without deep supervision "
            "(deep_supervision=False) or other outputs"
        )
    return found


class AnnotatorHeads(nn.Module):
    """A segmenter that learns what each annotator would draw, and answers with their vote.

    For images that not everyone drew, down to one person each. There a drawing is all that is known of an image, and
    its errors cannot be told from the truth by what others drew. A network that is trained on all drawings alike
    learns their mixture, contradictions included; one network for each annotator sees a fraction of the images. Here
    all share the network but its last channels: every image teaches it what there is to see, and each drawing only what
    its annotator makes of it. That is R opinions on every image, and a vote.

    Args:
        network: any module ``(B, channels, *S) -> (B, R L, *S)``, such as a MONAI network with ``out_channels`` R L;
            the classes of the first annotator come first.
        num_annotators: R.
        voters: numbers of those whose heads vote, ``None`` for all. Who has drawn nothing must not vote: a head
            that has not learned says anything. The weights remember it.

    Called, it gives class scores ``(B, L, *S)`` like any segmenter, ``R log mean_r softmax_r``: the class that most
    would draw, the surer the more they are. The mean itself is what a random one of them would draw, so one of five who
    overlooks a structure would leave it at 0.8 where all others see it, and matrices that are fitted to that
    would blame them for it.

    Raises:
        ValueError: fewer than one annotator, voters that are none of them; when called, channels that are no multiple
            of R.

    Source: ours; one head a person as in Guan et al., Who Said What (AAAI 2018), on every pixel.

    Example:
        >>> heads = AnnotatorHeads(nn.Conv2d(1, 6, 1), num_annotators=3)
        >>> heads(torch.rand(4, 1, 8, 8)).shape
        torch.Size([4, 2, 8, 8])
        >>> heads.members(torch.rand(4, 1, 8, 8)).shape
        torch.Size([4, 3, 2, 8, 8])
    """

    def __init__(self, network: nn.Module, num_annotators: int, voters: Sequence[int] | None = None) -> None:
        super().__init__()
        if num_annotators < 1:
            raise ValueError(f"at least one annotator is needed, got num_annotators={num_annotators}")
        chosen = set(range(num_annotators)) if voters is None else set(voters)
        if not chosen or not chosen <= set(range(num_annotators)):
            raise ValueError(f"voters must be some of 0 to {num_annotators - 1}, got {voters}")
        self.network = network
        self.num_annotators = num_annotators
        self.votes: Tensor  # told here, for TorchScript does not read annotations of the class
        self.register_buffer("votes", torch.tensor([float(r in chosen) for r in range(num_annotators)]))

    def forward(self, image: Tensor) -> Tensor:
        """``R log mean_r softmax_r``, ``(B, L, *S)``."""
        return self.vote(self.heads(image))

    def heads(self, image: Tensor) -> Tensor:
        """Class scores of what each annotator would draw, ``(B, R, L, *S)``."""
        found = self.network(image) if _is_scripting() else _scores(self.network, image)
        if found.shape[1] % self.num_annotators:
            raise ValueError(
                f"the network gives {found.shape[1]} channels, which {self.num_annotators} annotators cannot share; "
                "build it with out_channels = annotators * classes"
            )
        return torch.unflatten(found, 1, (self.num_annotators, -1))

    def members(self, image: Tensor) -> Tensor:
        """The same as probabilities, of those who vote, ``(B, voters, L, *S)``."""
        return self.heads(image).float().softmax(2)[:, self.votes > 0]

    def vote(self, heads: Tensor) -> Tensor:
        """``R log mean_r softmax_r`` over the R who vote, ``(B, L, *S)``, float32."""
        scores = heads.float().log_softmax(2).flatten(2) + self.votes.log().view(1, -1, 1)  # -inf of who does not vote
        voters = self.votes.sum()
        return voters * (scores.logsumexp(1) - voters.log()).view_as(heads[:, 0])


def heads_of(
    network: Callable[..., nn.Module],
    num_annotators: int,
    voters: Sequence[int] | None = None,
    *,
    out_channels: int,
    **options: Any,
) -> AnnotatorHeads:
    """A network of some kind with a head for each annotator, for configurations that say what a network is made of.

    Args:
        network: a class, or a function, of networks that takes ``out_channels``, such as MONAI's ``UNet``.
        num_annotators: R.
        voters: see :class:`AnnotatorHeads`.
        out_channels: L, of what comes out.
        options: what else the network is made of.

    Example:
        >>> from monai.networks.nets import UNet
        >>> options = dict(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))
        >>> heads_of(UNet, 3, **options)(torch.rand(4, 1, 8, 8)).shape
        torch.Size([4, 2, 8, 8])
    """
    return AnnotatorHeads(network(out_channels=num_annotators * out_channels, **options), num_annotators, voters)


class CoupledModel(nn.Module):
    """Segmenter and annotators in one module: both in training, the segmenter alone in evaluation.

    Args:
        segmenter: any module ``(B, channels, *S) -> (B, L, *S)`` of class scores. Of a network that makes a list, as
            ``BasicUNetPlusPlus`` does, the list may hold one: deep supervision is not for this loss.
        annotator: an :class:`AnnotatorNet`.
        learn_transition: learn the transition matrix ``M`` of the negative annotators, with zero diagonal and uniform
            start. Only the product ``M A`` is identifiable: the annotator must then have structure ``"identity"``.
        shared_layer: name of a layer of the segmenter (as in ``segmenter.named_modules()``) whose output the annotators
            see instead of the image, as the layers after it leave it; the encoder is then paid for once. The gradients
            of the annotators reach the segmenter through it. ``None`` gives them the image.

    ``annotating`` is the one switch between warm-up (``False``: only the segmenter runs) and coupled training;
    ``annotator_learns = False`` uses the annotators as they are, without gradients; ``segmenter_learns = False`` does
    so with the segmenter, as in evaluation.

    Raises:
        ValueError: ``learn_transition`` together with learned confusion matrices, or with no negative annotator; a
            ``shared_layer`` that the segmenter does not have or does not use; when called, a segmenter with several
            outputs.

    Source: CL Fig. 1; the transition matrix, CL Eq. 4.

    Example:
        >>> annotator = AnnotatorNet(nn.Conv2d(1, 4, 1), 2, 4, num_classes=2)
        >>> model = CoupledModel(nn.Conv2d(1, 2, 1), annotator)
        >>> model(torch.rand(1, 1, 8, 8)).positive.dense().shape
        torch.Size([1, 1, 2, 2, 8, 8])
        >>> model.eval()(torch.rand(1, 1, 8, 8)).shape  # inference: class scores, the segmenter alone
        torch.Size([1, 2, 8, 8])
    """

    def __init__(
        self,
        segmenter: nn.Module,
        annotator: AnnotatorNet,
        learn_transition: bool = False,
        shared_layer: str | None = None,
    ) -> None:
        super().__init__()
        layers = [name for name, _ in segmenter.named_modules() if name]
        if shared_layer is not None and shared_layer not in layers:
            raise ValueError(f"the segmenter has no layer {shared_layer!r}; it has {', '.join(layers)}")
        self.segmenter = segmenter
        self.annotator = annotator
        self.annotating = True
        self.annotator_learns = True
        self.segmenter_learns = True
        self.shared_layer = shared_layer
        self.transition_logits: nn.Parameter | None = None
        if learn_transition:
            if annotator.structure != "identity" or annotator.num_negative == 0:
                raise ValueError(
                    "only the product of transition and confusion matrix is identifiable: learn_transition=True needs "
                    f'negative annotators with structure="identity", got structure="{annotator.structure}", '
                    f"num_negative={annotator.num_negative}"
                )
            self.transition_logits = nn.Parameter(torch.zeros(annotator.num_classes, annotator.num_classes))

    def log_transition(self) -> Tensor | None:
        """The learned ``log M``, ``(L, L)``, columns sum to 1 with ``-inf`` on the diagonal; ``None`` if fixed."""
        if self.transition_logits is None:
            return None
        diagonal = torch.eye(len(self.transition_logits), dtype=torch.bool, device=self.transition_logits.device)
        return self.transition_logits.float().masked_fill(diagonal, -torch.inf).log_softmax(0)

    def forward(self, image: Tensor) -> CoupledOutput | Tensor:
        """``CoupledOutput`` in training, class scores ``(B, L, *S)`` in evaluation."""
        if not self.training:
            return _scores(self.segmenter, image)
        if self.annotating:
            return self.couple(image)
        logits, heads = self._scores_and_heads(image)
        numbers = self.annotator.num_positive, self.annotator.num_negative
        return CoupledOutput(logits, heads=heads, num_annotators=numbers)

    def couple(self, image: Tensor) -> CoupledOutput:
        """Both networks, in training and in evaluation: class scores and how the annotators err."""
        if self.segmenter_learns:
            logits, heads, seen = self._segment(image)
        else:
            with eval_mode(self.segmenter):  # without gradients, too
                logits, heads, seen = self._segment(image)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.annotator_learns):
            positive, negative = self.annotator(seen, logits.shape[2:])
        finished = not self.segmenter_learns
        return CoupledOutput(logits, positive, negative, self.log_transition(), finished, heads)

    def _scores_and_heads(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class scores, and what they are the vote of where the segmenter has heads that learn."""
        if isinstance(self.segmenter, AnnotatorHeads) and self.segmenter.training:
            heads = self.segmenter.heads(image)
            return self.segmenter.vote(heads), heads
        return _scores(self.segmenter, image), None

    def _segment(self, image: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Class scores, what they are the vote of, and what the annotators see."""
        if self.shared_layer is None:
            return *self._scores_and_heads(image), image
        seen: list[Tensor] = []
        learns = torch.is_grad_enabled()
        layer = self.segmenter.get_submodule(self.shared_layer)

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            trained = list(layer.parameters()) or list(self.segmenter.parameters())
            if learns and not torch.is_grad_enabled() and any(one.requires_grad for one in trained):
                raise ValueError(
                    f"the layer {self.shared_layer!r} runs without gradients, so that those of the annotators may be "
                    "lost on the way to it; pass use_reentrant=False to torch.utils.checkpoint or, where all before it "
                    "is frozen, share a layer that has parameters"
                )
            seen.append(output)

        # Hooked for one call only: a lasting hook would follow the segmenter into its exports and copies.
        hook = layer.register_forward_hook(keep)
        try:
            logits, heads = self._scores_and_heads(image)
        finally:
            hook.remove()
        if not seen:
            raise ValueError(f"the segmenter has a layer {self.shared_layer!r} but did not use it")
        return logits, heads, seen[-1]
