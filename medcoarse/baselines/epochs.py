"""What several methods need of the epoch: how far training is, and chance that a resumed run repeats."""

from __future__ import annotations

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events


class EpochChance:
    """A handler with a generator that every epoch starts anew, from ``(seed, epoch)`` alone.

    Args:
        seed: any integer; two methods in one training want different ones.

    ``generator`` is on the CPU; ``epoch`` is the number of the epoch, from 1, and ``0`` before there is one.

    Example:
        >>> chance = EpochChance(seed=0)
        >>> engine = Engine(lambda engine, batch: float(torch.rand((), generator=chance.generator)))
        >>> chance.attach(engine)
        >>> first = engine.run([0, 0], max_epochs=1).output
        >>> second = engine.run([0, 0], max_epochs=2).output
        >>> first != second, chance.epoch
        (True, 2)
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.epoch = seed, 0
        self.generator = torch.Generator()
        self.start(0)

    def attach(self, engine: Engine) -> None:
        """Run at the start of every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        self.start(engine.state.epoch)

    def start(self, epoch: int) -> None:
        """Begin an epoch; processes of one training draw different numbers."""
        self.epoch = epoch
        self.generator.manual_seed(((self.seed * 1_000_003 + epoch) * 1_009 + idist.get_rank()) % 2**63)
