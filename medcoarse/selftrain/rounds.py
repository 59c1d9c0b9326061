"""Self-training in rounds, as ignite handlers: train, make pseudo labels, train again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from medcoarse.confusion import UNLABELED, Annotations
from medcoarse.inferers import scaled_views
from medcoarse.losses import consensus
from medcoarse.selftrain.label_files import Made, PseudoLabels, read_folder, source_of, write_folder
from medcoarse.selftrain.pseudo import agreement
from medcoarse.workflow import AnnotatorSchedule, PolynomialDecay

logger = logging.getLogger(__name__)


class SelfTraining:
    """At the start of every round but the first, give undrawn pixels the classes that the network is sure of.

    A round is ``round_epochs`` epochs; round 0 has the drawings alone. Pseudo labels, the :func:`.pseudo.agreement` of
    :func:`medcoarse.inferers.scaled_views`, stand beside the original drawings: those of the round before are
    forgotten. They are written to ``directory/round-N``, with their provenance, and ``labels`` hands them to the items.

    Args:
        network: the segmenter.
        dataset: what gets pseudo labels: items without random transforms with an image and drawings, whose ``data`` are
            a datalist's entries. Masks that they may hold are not looked at.
        inferer: gives logits of an image of any size, such as a sliding window.
        labels: takes the pseudo labels to the training items.
        num_classes: L.
        round_epochs: length of a round.
        num_rounds: rounds with pseudo labels; after the last one, training may go on.
        directory: where the rounds' folders go.
        threshold: see :func:`.pseudo.agreement`.
        scales: see :func:`medcoarse.inferers.scaled_views`.
        flip_axes: see there.
        drawing_keys: of the positive and the negative drawings. A pixel is drawn where they agree on a class,
            :func:`medcoarse.losses.consensus`; elsewhere, no class that a negative drawing rules out is a pseudo label.
        mask_key: of a region ``(1, *S)``, 0 outside; there are no pseudo labels outside, and items may lack it.
        restart: name -> object: models whose weights each round starts with as training did, and optimizers, which then
            forget their averages. Nothing goes on with what was learned.

    The state of training holds the number of the round and the digest of its files, so a resumed run goes on with the
    same pseudo labels or says that they are gone.

    Source: Das et al. (WACV 2023): pseudo labels are computed anew in each round from the original coarse labels.
    Deviates: whether a round starts from new weights is not said there; both are here.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Any,
        inferer: Inferer,
        labels: PseudoLabels,
        num_classes: int,
        round_epochs: int,
        num_rounds: int,
        directory: str | Path,
        threshold: float = 0.9,
        scales: Sequence[float] = (0.5, 1.0, 2.0),
        flip_axes: Sequence[int] = (0,),
        drawing_keys: tuple[str, str] = ("positive", "negative"),
        mask_key: Hashable = "mask",
        restart: Mapping[str, Any] | None = None,
    ) -> None:
        if round_epochs < 1 or num_rounds < 0:
            raise ValueError(
                f"rounds need at least one epoch, and no negative number, got {round_epochs=}, {num_rounds=}"
            )
        self.network, self.dataset, self.inferer, self.labels = network, dataset, inferer, labels
        self.num_classes, self.round_epochs, self.num_rounds = num_classes, round_epochs, num_rounds
        self.directory, self.threshold = Path(directory), threshold
        self.scales, self.flip_axes = list(scales), list(flip_axes)
        self.drawing_keys, self.mask_key = drawing_keys, mask_key
        self.restart = dict(restart or {})
        self.round, self.digest = 0, ""
        self.start = {name: _copied(one.state_dict()) for name, one in self._models().items()}

    def attach(self, engine: Engine) -> None:
        """Run at the start of rounds; list it behind the handler that resumes."""
        engine.add_event_handler(Events.STARTED, self._resume)
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        number, epoch = round_of(engine.state.epoch, self.round_epochs, self.num_rounds)
        if number > 0 and epoch == 1:
            self.begin(number)

    def begin(self, number: int) -> None:
        """Make the pseudo labels of a round and restart what is to be restarted."""
        if idist.get_rank() == 0:
            self.digest = write_folder(self._folder(number), self._made(), self._facts(number))
        idist.barrier()
        self.digest = idist.broadcast(self.digest, src=0) if idist.get_world_size() > 1 else self.digest
        self.round = number
        self._hand_over()
        for name, one in self.restart.items():
            if isinstance(one, torch.optim.Optimizer):
                one.state.clear()
            else:
                one.load_state_dict(self.start[name])

    def predict(self, image: Tensor) -> Tensor:
        """The pseudo label of an image ``(1, C, *S)``, drawings aside."""
        with eval_mode(self.network):  # without gradients, too
            views = scaled_views(image, self._logits, self.scales, self.flip_axes)
            return agreement(views, self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """The round, the digest of its files, and the weights to restart from."""
        return {"round": self.round, "digest": self.digest, "start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; the files are looked for when training starts."""
        self.round, self.digest = int(state["round"]), str(state["digest"])
        self.start = {name: _copied(weights) for name, weights in state["start"].items()}

    def _resume(self, engine: Engine) -> None:
        if engine.state.epoch == 0:  # anew, whatever was trained with these objects before
            self.round, self.digest, self.labels.files = 0, "", {}
        if self.round > 0:
            self._hand_over()

    def _hand_over(self) -> None:
        paths = read_folder(self._folder(self.round), self.digest)
        self.labels.files = dict(zip(map(source_of, self.dataset.data), paths, strict=True))

    def _folder(self, number: int) -> Path:
        return self.directory / f"round-{number}"

    def _models(self) -> dict[str, Any]:
        return {name: one for name, one in self.restart.items() if not isinstance(one, torch.optim.Optimizer)}

    def _logits(self, image: Tensor) -> Tensor:
        return torch.as_tensor(self.inferer(image, self.network))

    def _made(self) -> Iterator[Made]:
        """Name and pseudo label of every image, 255 where somebody drew and outside the region."""
        device = next(self.network.parameters()).device
        known = drawn = total = 0
        for number, entry in enumerate(self.dataset.data):
            item = self.dataset[number]
            image = torch.as_tensor(item["image"]).as_subclass(Tensor)[None].float().to(device)
            label = self.predict(image)[0].cpu()
            taken, ruled_out = self._said(item, label)
            label = label.masked_fill(taken | ruled_out, UNLABELED)
            if self.mask_key in item:
                label = label.masked_fill(torch.as_tensor(item[self.mask_key]).as_subclass(Tensor) == 0, UNLABELED)
            known, drawn = known + int((label != UNLABELED).sum()), drawn + int(taken.sum())
            total += label.numel()
            yield Made(source_of(entry), label, getattr(item["image"], "affine", None))
        logger.info("Pseudo labels of %d images: %d pixels beside %d that were drawn", number + 1, known, drawn)
        if drawn == total:
            logger.warning(
                "Every pixel is drawn, so rounds of pseudo labels change nothing; they are for strokes (profiles with "
                "'dense': False), or for drawings with 255 where nobody drew"
            )

    def _said(self, item: Mapping[Hashable, Any], label: Tensor) -> tuple[Tensor, Tensor]:
        """Where the drawings agree on a class, and where a negative one rules out that of a label ``(1, *S)``."""
        drawings = [item.get(key) for key in self.drawing_keys]
        maps = [None if one is None else torch.as_tensor(one).as_subclass(Tensor)[None] for one in drawings]
        nothing = torch.zeros_like(label, dtype=torch.bool)
        agreed = nothing if maps == [None, None] else consensus(Annotations(*maps), self.num_classes)[0] != UNLABELED
        return agreed, nothing if maps[1] is None else (maps[1][0] == label).any(0, keepdim=True)

    def _facts(self, number: int) -> dict[str, Any]:
        return {
            "round": number,
            "weights_sha256": weights_digest(self.network),
            "num_classes": self.num_classes,
            "threshold": self.threshold,
            "scales": self.scales,
            "flip_axes": self.flip_axes,
        }


def round_of(epoch: int, round_epochs: int, num_rounds: int) -> tuple[int, int]:
    """The round that an epoch is in, from 0, and the epoch within it, from 1; the last round has no end.

    Example:
        >>> [round_of(epoch, round_epochs=3, num_rounds=1) for epoch in (1, 3, 4, 7)]
        [(0, 1), (0, 3), (1, 1), (1, 4)]
    """
    number = min((epoch - 1) // round_epochs, num_rounds)
    return number, epoch - number * round_epochs


class _RoundEngine:
    """What a handler sees of an engine when every round is a training of its own: the epoch within the round."""

    def __init__(self, engine: Engine, round_epochs: int, num_rounds: int) -> None:
        self.engine, self.round_epochs, self.num_rounds = engine, round_epochs, num_rounds

    @property
    def state(self) -> SimpleNamespace:
        state = self.engine.state
        _, epoch = round_of(max(1, state.epoch), self.round_epochs, self.num_rounds)
        end = state.max_epochs - self.num_rounds * self.round_epochs
        return SimpleNamespace(epoch=epoch, iteration=state.iteration, max_epochs=end)

    def add_event_handler(self, event: Any, handler: Any) -> None:
        self.engine.add_event_handler(event, lambda _: handler(self))


class InRounds:
    """Give a handler of schedules the epoch within the round, so that its schedule is repeated in every round.

    Args:
        handler: looks at epoch, iteration and number of epochs only, as the schedules of :mod:`medcoarse.workflow` do.
        round_epochs: length of a round but the last.
        num_rounds: how many follow the first one.
    """

    def __init__(self, handler: Any, round_epochs: int, num_rounds: int) -> None:
        self.handler, self.round_epochs, self.num_rounds = handler, round_epochs, num_rounds

    def attach(self, engine: Engine) -> None:
        """As the handler attaches itself."""
        self.handler.attach(_RoundEngine(engine, self.round_epochs, self.num_rounds))


def in_rounds(handlers: Sequence[Any], round_epochs: int, num_rounds: int) -> list[Any]:
    """A bundle's handlers, the schedules among them repeated in every round: warm-up, coupled training, learning rate.

    Example:
        >>> optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
        >>> in_rounds([PolynomialDecay(optimizer), "another"], round_epochs=3, num_rounds=1)
        [<medcoarse.selftrain.rounds.InRounds object at ...>, 'another']
    """
    return [
        InRounds(one, round_epochs, num_rounds) if isinstance(one, AnnotatorSchedule | PolynomialDecay) else one
        for one in handlers
    ]


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of a network's state."""
    total = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
