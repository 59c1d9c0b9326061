"""A training set that grows from round to round by what is chosen to be annotated next."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor, nn
from torch.utils.data import Sampler

from medcoarse.files import write_json
from medcoarse.selftrain.label_files import source_of
from medcoarse.selftrain.rounds import round_of
from medcoarse.selftrain.selection import balanced_choice, class_content, images_per_class, uniform_choice

logger = logging.getLogger(__name__)


def require_undressed(dressed: bool) -> None:
    """Refuse synthetic images in pixels of real ones (:mod:`.dressing`), on some of which nobody has drawn yet.

    Raises:
        ValueError: they are asked for.

    Example:
        >>> require_undressed(True)
        Traceback (most recent call last):
        ValueError: dressed synthetic images would show images that are not annotated yet; leave dressed false
    """
    if dressed:
        raise ValueError("dressed synthetic images would show images that are not annotated yet; leave dressed false")


class DrawnSampler(Sampler[int]):
    """Random order of the items that are annotated so far, of the same length whatever their number.

    An epoch has ``num_samples`` items: each of them once, then each once more, and so on.

    Args:
        size: of the data set.
        num_samples: length of an epoch; ``None`` for the whole data set's.

    Set ``chosen`` to what may be drawn; at first that is everything.

    Example:
        >>> sampler = DrawnSampler(4, num_samples=5)
        >>> sampler.chosen = [1, 3]
        >>> {1: 2, 3: 2}.items() <= {n: min(2, list(sampler).count(n)) for n in (1, 3)}.items(), len(sampler)
        (True, 5)
    """

    def __init__(self, size: int, num_samples: int | None = None) -> None:
        self.chosen = list(range(size))
        self.num_samples = size if num_samples is None else num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        order: list[int] = []
        while len(order) < self.num_samples:
            order += torch.randperm(len(self.chosen)).tolist()
        return iter([self.chosen[n] for n in order[: self.num_samples]])


class Growth:
    """Choose at the start of every round which further images are annotated, by what the model sees in them.

    Round 0 has images at random. Later the network says what the images hold that nobody drew on, and those are taken
    after which every class is in nearly as many images as any other, :func:`.selection.balanced_choice`. Of the images
    chosen before, the drawings say what they hold.

    Args:
        network: the segmenter.
        dataset: all images, without random transforms, in the order of the training set; ``data`` are a datalist's
            entries. Drawings of images that are not chosen are not looked at.
        inferer: as for the segmenter.
        sampler: learns what was chosen.
        num_classes: L.
        numbers: of images annotated in each round; rounds behind the last one have as many.
        round_epochs: length of a round.
        path: JSON with what was chosen and what it holds.
        method: ``"balanced"``, or ``"uniform"`` for images at random.
        least: share of an image's pixels above which a class counts as seen.
        always: how many items behind those of ``dataset`` are in every round, such as synthetic ones.
        drawing_key: of the drawings.
        seed: of what is chosen at random.

    Source: Das et al. (WACV 2023), model-based sampling: 1000 images at random, then 2000, 4000 and 8000.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Any,
        inferer: Inferer,
        sampler: DrawnSampler,
        num_classes: int,
        numbers: Sequence[int],
        round_epochs: int,
        path: str | Path,
        method: str = "balanced",
        least: float = 0.001,
        always: int = 0,
        drawing_key: Hashable = "positive",
        seed: int = 0,
    ) -> None:
        size = len(dataset.data)
        if not numbers or list(numbers) != sorted(numbers) or not 1 <= numbers[0] <= numbers[-1] <= size:
            raise ValueError(f"numbers must grow from at least 1 to at most the {size} images, got {list(numbers)}")
        if method not in ("balanced", "uniform"):
            raise ValueError(f'method must be "balanced" or "uniform", got {method!r}')
        self.network, self.dataset, self.inferer, self.sampler = network, dataset, inferer, sampler
        self.num_classes, self.numbers, self.round_epochs = num_classes, list(numbers), round_epochs
        self.path, self.method, self.least, self.always = Path(path), method, least, always
        self.drawing_key, self.seed = drawing_key, seed
        self.chosen: list[int] = []

    def attach(self, engine: Engine) -> None:
        """Run at the start of rounds; list it behind the handler that resumes and before that of pseudo labels."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        number, epoch = round_of(engine.state.epoch, self.round_epochs, len(self.numbers) - 1)
        if number > 0 and epoch == 1:
            self.grow(self.numbers[number])

    def grow(self, number: int) -> None:
        """Choose until so many images are annotated."""
        rest = [n for n in range(len(self.dataset.data)) if n not in set(self.chosen)]
        more = number - len(self.chosen)
        if self.method == "uniform" or not self.chosen:
            picked = uniform_choice(len(rest), more, self.seed + len(self.chosen))
        else:
            drawn = images_per_class([self._drawn(n) for n in self.chosen], range(len(self.chosen)), self.least)
            seen = [seen_content(self.dataset[n]["image"], self.network, self.inferer, self.num_classes) for n in rest]
            picked = balanced_choice(seen, more, drawn, self.least, self.seed)
        self.chosen += [rest[n] for n in picked]
        self._hand_over()

    def state_dict(self) -> dict[str, Any]:
        """What was chosen."""
        return {"chosen": list(self.chosen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved choice."""
        self.chosen = [int(n) for n in state["chosen"]]

    def _start(self, engine: Engine) -> None:
        if engine.state.epoch == 0:
            self.chosen = []
            self.grow(self.numbers[0])
        self._hand_over()

    def _hand_over(self) -> None:
        size = len(self.dataset.data)
        self.sampler.chosen = [*self.chosen, *range(size, size + self.always)]
        held = images_per_class([self._drawn(n) for n in self.chosen], range(len(self.chosen)), self.least)
        images = [Path(source_of(self.dataset.data[n])).name for n in self.chosen]
        write_json(self.path, {"method": self.method, "images": images, "images_per_class": held})
        logger.info("%d images are annotated; images per class: %s", len(images), " ".join(map(str, held)))

    def _drawn(self, number: int) -> Any:
        drawn = torch.as_tensor(self.dataset[number][self.drawing_key]).as_subclass(Tensor)
        return class_content(drawn, self.num_classes).numpy()


def choose_next(
    dataset: Any,
    network: nn.Module,
    inferer: Inferer,
    num_classes: int,
    number: int,
    path: str | Path,
    drawn: Sequence[int] | None = None,
    least: float = 0.001,
) -> dict[str, Any]:
    """Write down which images of a pool to annotate next, by what a trained network sees in them.

    Args:
        dataset: the pool: items with an image, whose ``data`` are a datalist's entries. Nothing else of them is used.
        network: trained on some drawings.
        inferer: gives its logits of an image of any size.
        num_classes: L.
        number: how many.
        path: JSON to write.
        drawn: in how many images that are annotated already each class is.
        least: share of an image's pixels above which a class counts as seen.

    Returns:
        What is written: ``images``, files, the first one first, and ``images_per_class``, in how many of them each
        class is, as far as the network sees.

    Example:
        >>> import tempfile
        >>> from monai.data import Dataset
        >>> from monai.inferers import SimpleInferer
        >>> level = {"a.png": 0.0, "b.png": 0.0, "c.png": 1.0}
        >>> load = lambda item: {"image": torch.ones(1, 2) * level[item["image"]]}
        >>> pool = Dataset([{"image": name} for name in level], load)
        >>> network = nn.Conv1d(1, 2, 1)
        >>> network.weight.data, network.bias.data = torch.tensor([[[-1.0]], [[1.0]]]), torch.tensor([0.5, 0.0])
        >>> choose_next(pool, network, SimpleInferer(), 2, 2, Path(tempfile.mkdtemp()) / "next.json", drawn=[5, 0])
        {'images': ['c.png', 'a.png'], 'images_per_class': [1, 1]}
    """
    content = [seen_content(dataset[n]["image"], network, inferer, num_classes) for n in range(len(dataset.data))]
    chosen = balanced_choice(content, number, drawn, least)
    images = [source_of(dataset.data[n]) for n in chosen]
    found = {"images": images, "images_per_class": images_per_class(content, chosen, least)}
    write_json(Path(path), found)
    return found


def seen_content(image: Any, network: nn.Module, inferer: Inferer, num_classes: int) -> Any:
    """Share of an image ``(C, *S)`` that each class takes up in a network's eyes, ``(L,)``."""
    device = next(network.parameters()).device
    batch = torch.as_tensor(image).as_subclass(Tensor)[None].float().to(device)
    with eval_mode(network):  # without gradients, too
        logits = torch.as_tensor(inferer(batch, network))
    return class_content(logits.argmax(1).cpu(), num_classes).numpy()
