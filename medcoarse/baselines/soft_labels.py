"""Learning from label maps that give every class a probability, and that may change while the network learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.fusion.voting import hard_label
from medcoarse.likelihoods import balanced_weights
from medcoarse.losses import CoupledLoss, consensus, partial_dice


def soft_nll(log_probs: Tensor, soft: Tensor, balance: float = 0.0) -> Tensor:
    """Cross-entropy with soft labels, ``-sum_l t_l log p_l``, mean over the pixels that have one.

    Args:
        log_probs: ``(B, L, *S)``.
        soft: ``(B, L, *S)``, sums to 1 over classes, or is 0 for all of them where nothing is known.
        balance: of the classes, from 0 to 1, as in :func:`medcoarse.losses.dense_nll`; a class has as many pixels as
            its labels add up to.

    Returns:
        Scalar in nats; 0 when nothing is known.

    Example:
        >>> log_probs = torch.tensor([0.2, 0.8]).log().view(1, 2, 1).expand(1, 2, 2)
        >>> soft_nll(log_probs, torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]))  # -log 0.8; nothing is known of the other
        tensor(0.2231)
    """
    pixels = (0, *range(2, soft.ndim))
    return -(log_probs * soft).sum(pixels) @ balanced_weights(soft.sum(pixels), balance).to(log_probs)


class SoftLabelLoss(CoupledLoss):
    """Cross-entropy with soft labels, and Dice with the most likely class; takes the place of ``CoupledLoss``.

    Labels ``Annotations.label`` are ``(B, L, *S)`` here. Only the segmenter learns. With labels that are certain it is
    what :class:`medcoarse.losses.CoupledLoss` makes of masks, so that a method that makes soft labels stands on equal
    footing with one that makes hard ones.

    Args:
        num_classes: L.
        dice_weight: of the Dice term; 0 leaves it out.
        balance: of the classes, see :func:`soft_nll`.

    Example:
        >>> target = Annotations(label=torch.tensor([[[0.5, 1.0], [0.5, 0.0]]]))
        >>> SoftLabelLoss(num_classes=2)(CoupledOutput(torch.zeros(1, 2, 2)), target)
        tensor(0.6931)
    """

    def __init__(self, num_classes: int, dice_weight: float = 0.0, balance: float = 0.0) -> None:
        super().__init__(num_classes, dice_weight=dice_weight, balance=balance)

    def forward(self, output: CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss; its unweighted terms stay in ``parts`` (detached) for logging."""
        logits, soft = output.logits.float(), target.label
        if soft is None or soft.shape != logits.shape:
            got = "none" if soft is None else tuple(soft.shape)
            raise ValueError(f"soft labels must have the shape of the logits, {tuple(logits.shape)}, got {got}")
        nll = soft_nll(logits.log_softmax(1), soft, self.balance)
        self.parts = {"soft nll": nll.detach()}
        if self.dice_weight == 0:
            return nll
        dice = partial_dice(logits.softmax(1), hard_label(soft))
        self.parts["dice"] = dice.detach()
        return nll + self.dice_weight * dice


class SoftLabels:
    """The soft labels of a data set by the number of the item; as a transform it hands an item its own.

    It is no MONAI ``Transform``, so that ``CacheDataset`` calls it anew each time: labels may be replaced between
    epochs. Random transforms that turn the image come after it.

    Args:
        label_key: where the label ``(L, *S)``, float32, is written.
        number_key: of the item's number.

    Labels are kept in half precision.

    Example:
        >>> labels = SoftLabels()
        >>> labels[3] = torch.tensor([[0.25], [0.75]])
        >>> labels({"number": 3})["label"].tolist()
        [[0.25], [0.75]]
    """

    def __init__(self, label_key: Hashable = "label", number_key: Hashable = "number") -> None:
        self.label_key, self.number_key = label_key, number_key
        self.maps: dict[int, Tensor] = {}

    def __setitem__(self, number: int, soft: Tensor) -> None:
        self.maps[number] = soft.half()

    def __len__(self) -> int:
        return len(self.maps)

    def __call__(self, item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its label."""
        number = int(item[self.number_key])
        if number not in self.maps:
            raise KeyError(f"item {number} has no soft label yet; estimate them before the first epoch")
        return {**item, self.label_key: self.maps[number].float()}

    def state_dict(self) -> dict[int, Tensor]:
        """The labels by number."""
        return dict(self.maps)

    def load_state_dict(self, state: Mapping[int, Tensor]) -> None:
        """Take over saved labels."""
        self.maps = {int(number): torch.as_tensor(soft) for number, soft in state.items()}


class HardLabels(SoftLabels):
    """Label maps ``(1, *S)``, classes or 255, in the place of soft labels; kept and handed out as uint8.

    Example:
        >>> labels = HardLabels()
        >>> labels[3] = torch.tensor([[1, 255]])
        >>> labels({"number": 3})["label"]
        tensor([[  1, 255]], dtype=torch.uint8)
    """

    def __setitem__(self, number: int, label: Tensor) -> None:
        self.maps[number] = label.to(torch.uint8)

    def __call__(self, item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its label."""
        labelled = super().__call__(item)
        return {**labelled, self.label_key: labelled[self.label_key].to(torch.uint8)}


class Numbered:
    """Items that know their numbers, of a data set that holds the same items once or several times over.

    Args:
        dataset: of n items, then the same n again, and so on.
        num_items: n.
        number_key: where the number goes.

    Raises:
        ValueError: a data set that does not hold every item equally often.

    Example:
        >>> items = Numbered([{"image": 5}, {"image": 7}] * 2, num_items=2)
        >>> len(items), items[3], list(items.each())
        (4, {'image': 7, 'number': 1}, [(0, {'image': 5}), (1, {'image': 7})])
    """

    def __init__(self, dataset: Any, num_items: int, number_key: Hashable = "number") -> None:
        if num_items < 1 or len(dataset) % num_items:
            raise ValueError(f"{len(dataset)} items are not {num_items} ones, each equally often")
        self.dataset, self.num_items, self.number_key = dataset, num_items, number_key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[Hashable, Any]:
        return {**self.dataset[index], self.number_key: index % self.num_items}

    def each(self) -> Iterator[tuple[int, Any]]:
        """Every item once, with its number."""
        for number in range(self.num_items):
            yield number, self.dataset[number]


class Relabelling(ABC):
    """A handler that makes the labels a network learns: before the first epoch, and anew at the start of some.

    Args:
        network: the segmenter.
        dataset: items without random transforms, in the order of their numbers. All are looked at whenever labels are
            made: cache them.
        inferer: as for the segmenter.
        labels: where the labels go, by number of the item.
        num_classes: L.
        epochs: at whose start labels are made anew, from 1. Resuming keeps those that were made.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Any,
        inferer: Inferer,
        labels: SoftLabels,
        num_classes: int,
        epochs: Collection[int] = (),
    ) -> None:
        self.network, self.dataset, self.inferer, self.labels = network, dataset, inferer, labels
        self.num_classes, self.epochs = num_classes, frozenset(epochs)

    @abstractmethod
    def initialize(self) -> None:
        """Make the labels of the first epoch, from the drawings."""

    @abstractmethod
    def relabel(self) -> None:
        """Make them anew, with what the network says now."""

    def attach(self, engine: Engine) -> None:
        """Run at the start of epochs; list it behind the handler that resumes."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def _start(self, engine: Engine) -> None:
        if len(self.labels) == 0:
            self.initialize()

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        if self.is_due(engine.state.epoch):
            self.relabel()

    def is_due(self, epoch: int) -> bool:
        """Whether labels are made anew at the start of an epoch."""
        return epoch in self.epochs

    def state_dict(self) -> dict[str, Any]:
        """The labels."""
        return {"labels": self.labels.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved labels."""
        self.labels.load_state_dict(state["labels"])

    def log_probs(self, item: Mapping[str, Any]) -> Tensor:
        """What the network says of an item's image now, see :func:`predicted_log_probs`."""
        return predicted_log_probs(self.network, self.inferer, item["image"])


def predicted_log_probs(network: nn.Module, inferer: Inferer, image: Any) -> Tensor:
    """What a network says of one image ``(C, *S)``: float64 ``log p (1, L, *S)`` on the CPU, without gradients."""
    seen = torch.as_tensor(image).as_subclass(Tensor)[None].float().to(next(network.parameters()).device)
    with eval_mode(network):  # without gradients, too
        logits = torch.as_tensor(inferer(seen, network))
    return logits.double().log_softmax(1).cpu()


def agreed_drawing(drawings: Sequence[Any], num_classes: int) -> Tensor:
    """The consensus of an item's positive ``(R, *S)`` and negative drawings ``(C, *S)``, on the CPU: ``(*S)``.

    Either may be ``None``.

    Example:
        >>> agreed_drawing([torch.tensor([[1, 255, 0]]), torch.tensor([[0, 1, 0]])], num_classes=2)
        tensor([  1,   0, 255])
    """
    maps = [None if one is None else torch.as_tensor(one).as_subclass(Tensor).cpu()[None] for one in drawings]
    return consensus(Annotations(*maps), num_classes)[0, 0]
