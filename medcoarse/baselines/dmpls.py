"""Dynamically mixed pseudo labels: two decoders, and labels drawn between what they say, for the pixels nobody drew.

DMPLS mixes hard labels and learns them by Dice, DMSPS soft ones by cross-entropy, and later takes what the network is
certain of for drawn. Drawings of both kinds are merged into one partial label map, as in :class:`.partial.PartialLoss`.

Source: Luo et al., "Scribble-Supervised Medical Image Segmentation via Dual-Branch Network and Dynamically Mixed Pseudo
    Labels Supervision" (MICCAI 2022); Han et al., "DMSPS: Dynamically mixed soft pseudo-label supervision for
    scribble-supervised medical image segmentation" (Medical Image Analysis 2024).
Deviates: the encoder and the main decoder are the network of every other row, MONAI's ``UNet``, to which a second
    decoder of the same shape is added for training; the answer is the main decoder's. Dice of pseudo labels is
    :func:`medcoarse.losses.partial_dice`, without background. The second stage goes on with the network of the first
    in place of a training of its own, within the same number of epochs; the length of the ramp is ours. The bundles'
    configurations add Dice of what was drawn with weight 0.5, as in every other row (``dice_weight``); the papers have
    none there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from ignite.engine import Engine
from monai.inferers import Inferer
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets import UNet
from torch import Tensor, nn

from medcoarse.baselines.epochs import EpochChance
from medcoarse.baselines.partial import PartialLoss
from medcoarse.baselines.soft_labels import HardLabels, Numbered, Relabelling, agreed_drawing, soft_nll
from medcoarse.confusion import UNLABELED, Annotations, CoupledOutput
from medcoarse.losses import CoupledLoss, partial_dice


class DualOutput(NamedTuple):
    """Class scores ``(B, L, *S)`` of both decoders."""

    main: Tensor
    auxiliary: Tensor


class DualBranchUNet(nn.Module):
    """A U-Net with a second decoder in training, which sees the encoder's features through dropout.

    Args:
        segmenter: MONAI's ``UNet``; it stays a module of its own, with as many parameters as it has without this one,
            and is all that is needed for inference.
        dropout: share of the features that the second decoder does not see.

    The second decoder starts with other weights than the first.

    Raises:
        ValueError: a share that is none; TypeError: a network that is no ``UNet``.

    Example:
        >>> unet = UNet(2, in_channels=1, out_channels=3, channels=(4, 8), strides=(2,))
        >>> model, image = DualBranchUNet(unet), torch.rand(2, 1, 8, 8)
        >>> model(image).auxiliary.shape
        torch.Size([2, 3, 8, 8])
        >>> torch.equal(model(image).main, model.eval()(image))
        True
    """

    def __init__(self, segmenter: UNet, dropout: float = 0.5) -> None:
        super().__init__()
        if not isinstance(segmenter, UNet):
            raise TypeError(f"two decoders are built for MONAI's UNet, got {type(segmenter).__name__}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.segmenter, self.dropout = segmenter, dropout
        self.auxiliary = nn.ModuleList(copy.deepcopy(up) for up in self._levels()[1])
        for module in self.auxiliary.modules():
            if hasattr(module, "reset_parameters"):
                cast(Any, module).reset_parameters()

    def forward(self, image: Tensor) -> DualOutput | Tensor:
        """Both decoders in training, the main one in evaluation."""
        if not self.training:
            logits: Tensor = self.segmenter(image)
            return logits
        downs, ups = self._levels()
        features = []
        for down in downs:
            image = down(image)
            features.append(image)
        dropped = [F.dropout(feature, self.dropout) for feature in features]
        return DualOutput(_decode(ups, features), _decode(self.auxiliary, dropped))

    def _levels(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Encoder, from the image to the bottom, and decoder, from the image's level downwards."""
        downs, ups, block = [], [], self.segmenter.model
        while isinstance(block, nn.Sequential) and len(block) == 3 and isinstance(block[1], SkipConnection):
            downs.append(block[0])
            ups.append(block[2])
            block = block[1].submodule
        return [*downs, block], ups


def _decode(ups: Any, features: list[Tensor]) -> Tensor:
    decoded = features[-1]
    for up, feature in zip(reversed(ups), reversed(features[:-1]), strict=True):
        decoded = up(torch.cat([feature, decoded], 1))
    return decoded


def ramp_up(progress: float) -> float:
    """From nearly nothing to 1, ``exp(-5 (1 - t)²)`` with ``t`` between 0 and 1.

    Example:
        >>> [round(ramp_up(t), 4) for t in (-1, 0, 0.5, 1, 2)]
        [0.0067, 0.0067, 0.2865, 1.0, 1.0]
    """
    return math.exp(-5 * (1 - min(max(progress, 0.0), 1.0)) ** 2)


def mixed_probs(output: DualOutput, alpha: float | Tensor) -> Tensor:
    """``alpha p_1 + (1 - alpha) p_2``, ``(B, L, *S)``, without gradient.

    Example:
        >>> output = DualOutput(torch.tensor([[[0.0], [0.0]]]), torch.tensor([[[100.0], [0.0]]]))
        >>> mixed_probs(output, 0.5).flatten()
        tensor([0.7500, 0.2500])
    """
    main, auxiliary = (logits.detach().float().softmax(1) for logits in output)
    return alpha * main + (1 - alpha) * auxiliary


class DualBranchLoss(CoupledLoss):
    """``(P(p_1) + P(p_2)) / 2 + w (Q(p_1, q) + Q(p_2, q)) / 2``; takes the place of ``CoupledLoss``.

    P is the partial cross-entropy on what was drawn, ``q = alpha p_1 + (1 - alpha) p_2`` with one ``alpha ~ U(0, 1)`` a
    step, detached. With hard labels (DMPLS) Q is Dice with the most likely class of q, with soft ones (DMSPS)
    cross-entropy with q; both over all pixels.

    It is a handler as well: attached to the engine it draws alpha by seed and epoch, so that a resumed run repeats it.

    Args:
        num_classes: L.
        soft: labels; ``False`` is DMPLS, ``True`` DMSPS.
        pseudo_weight: w; the papers' 0.5 for hard labels, 8 for soft ones.
        ramp_epochs: w grows to its full value over this many epochs; 0 has it at once. Needs the handler.
        dice_weight: of Dice in P; the papers have none.
        balanced: see :class:`.partial.PartialLoss`.
        seed: of alpha.

    Raises:
        ValueError: a negative weight or number of epochs.

    Source: Luo et al. 2022; Han et al. 2024, with the weight's ramp.

    Example:
        >>> loss = DualBranchLoss(num_classes=2)
        >>> output = DualOutput(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
        >>> loss(output, Annotations(positive=torch.tensor([[[0, 1, 255]]])))  # log 2 + 0.5, as q finds no foreground
        tensor(1.1931)
    """

    def __init__(
        self,
        num_classes: int,
        soft: bool = False,
        pseudo_weight: float = 0.5,
        ramp_epochs: int = 0,
        dice_weight: float = 0.0,
        balanced: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        if min(pseudo_weight, ramp_epochs) < 0:
            raise ValueError(f"weight and ramp must not be negative, got {pseudo_weight=}, {ramp_epochs=}")
        self.partial = PartialLoss(num_classes, dice_weight, balanced)
        self.soft, self.pseudo_weight, self.ramp_epochs = soft, pseudo_weight, ramp_epochs
        self.chance = EpochChance(seed)

    def attach(self, engine: Engine) -> None:
        """Follow the epochs."""
        self.chance.attach(engine)

    def forward(self, output: DualOutput | CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss; the mean terms of both decoders, unweighted, stay in ``parts`` (detached)."""
        if not isinstance(output, DualOutput):
            raise TypeError(f"DualBranchLoss takes a DualBranchUNet's output in training, got {type(output)}")
        partial, pseudo, self.parts = [], [], {}
        mixed = mixed_probs(output, float(torch.rand((), generator=self.chance.generator)))
        for logits in output:
            partial.append(self.partial(CoupledOutput(logits), target))
            for name, part in self.partial.parts.items():
                self.parts[name] = self.parts.get(name, 0) + part / 2
            pseudo.append(self._pseudo(logits.float(), mixed))
        supervised, pseudo_term = torch.stack(partial).mean(), torch.stack(pseudo).mean()
        self.parts["pseudo"] = pseudo_term.detach()
        return supervised + self.weight() * pseudo_term

    def weight(self) -> float:
        """w in this epoch."""
        if self.ramp_epochs == 0:
            return self.pseudo_weight
        return self.pseudo_weight * ramp_up(self.chance.epoch / self.ramp_epochs)

    def _pseudo(self, logits: Tensor, mixed: Tensor) -> Tensor:
        if self.soft:
            return soft_nll(logits.log_softmax(1), mixed)
        return partial_dice(logits.softmax(1), mixed.argmax(1, keepdim=True))


def expanded(drawn: Tensor, log_probs: Tensor, max_entropy: float = 0.1) -> Tensor:
    """Drawn labels, and the most likely class of undrawn pixels where the entropy is below ``max_entropy``.

    Args:
        drawn: ``(B, 1, *S)``, classes or 255; none of them changes.
        log_probs: ``(B, L, *S)``.
        max_entropy: in nats.

    Returns:
        As ``drawn``.

    Source: Han et al. 2024, the second stage.

    Example:
        >>> log_probs = torch.tensor([[[0.99, 0.99, 0.6], [0.01, 0.01, 0.4]]]).log()
        >>> expanded(torch.tensor([[[1, 255, 255]]]), log_probs)
        tensor([[[  1,   0, 255]]])
    """
    entropy = -torch.xlogy(log_probs.exp(), log_probs.exp()).sum(1, keepdim=True)
    found = log_probs.argmax(1, keepdim=True).to(drawn.dtype)
    return torch.where((drawn == UNLABELED) & (entropy < max_entropy), found, drawn)


class ExpandedSeeds(Relabelling):
    """The second stage of DMSPS as a handler: what the network is certain of is learned as if it had been drawn.

    Labels start as the :func:`medcoarse.losses.consensus` of the drawings. At the start of some epochs they become the
    :func:`expanded` ones, from the drawings and the network as it is then.

    Args:
        network: the segmenter.
        dataset: items with an image ``(C, *S)`` and ``positive`` or ``negative`` drawings, without random transforms.
        inferer: as for the segmenter.
        labels: where the labels go, by number of the item.
        num_classes: L.
        epochs: at whose start labels are expanded, from 1. Resuming keeps those that were made.
        max_entropy: in nats.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Numbered,
        inferer: Inferer,
        labels: HardLabels,
        num_classes: int,
        epochs: Any,
        max_entropy: float = 0.1,
    ) -> None:
        super().__init__(network, dataset, inferer, labels, num_classes, epochs)
        self.max_entropy = max_entropy

    def initialize(self) -> None:
        """Labels are what the drawings agree on."""
        for number, item in self.dataset.each():
            self.labels[number] = self._drawn(item)[0]

    def relabel(self) -> None:
        """See the class."""
        for number, item in self.dataset.each():
            self.labels[number] = expanded(self._drawn(item), self.log_probs(item), self.max_entropy)[0]

    def _drawn(self, item: Mapping[str, Any]) -> Tensor:
        """What the drawings agree on, ``(1, 1, *S)``."""
        return agreed_drawing([item.get("positive"), item.get("negative")], self.num_classes)[None, None]
