"""The glue between medcoarse and MONAI engines: batches, warm-up, reproducible epochs, checkpoints, resuming, and the
data that a bundle trains on.

Handlers are plain ignite ones and batches a MONAI ``PrepareBatch``, for a stock ``SupervisedTrainer`` with
``decollate=False``. Files are written by the first process only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor, set_rnd
from monai.engines import Evaluator, PrepareBatch
from monai.handlers import ValidationHandler
from monai.utils import set_determinism
from torch import Tensor
from tqdm import tqdm

from medcoarse import synthetic
from medcoarse.cityscapes import KNOWN_IDS
from medcoarse.confusion import UNLABELED, Annotations
from medcoarse.datalist import DataError, verify_les_av, verify_prepared
from medcoarse.files import load_weights, write_atomically
from medcoarse.networks import CoupledModel
from medcoarse.synthetic import digits, street, volumes

logger = logging.getLogger(__name__)


class _Supervision(dict[str, tuple[str, ...]]):
    def __missing__(self, name: object) -> NoReturn:
        raise ValueError(f"supervision must be one of {', '.join(self)}, got {name!r}")


SUPERVISION = _Supervision(
    coarse=("positive", "negative"),
    positive=("positive",),
    negative=("negative",),
    dense=("label",),
    semi=("positive", "negative", "label"),
    strokes=("positive",),
)
"""What the loss may see of a batch. ``dense`` is the ceiling that coarse drawings are compared with; ``strokes`` are
drawings of both kinds merged into one map, :class:`medcoarse.transforms.dictionary.MergeStrokesd`."""


class PrepareBatchCoarse(PrepareBatch):
    """Turn a dictionary batch into ``(image, Annotations)`` for :class:`medcoarse.losses.CoupledLoss`.

    Args:
        supervision: a name from :data:`SUPERVISION`, or the names of the keys that the loss may see. Keys that a batch
            lacks are left out, as long as one is there.

    Raises:
        ValueError: an unknown supervision, or a batch without an image or with nothing that the loss may see.

    Example:
        >>> batch = {"image": torch.zeros(1, 3, 4, 4), "positive": torch.full((1, 1, 4, 4), 255)}
        >>> image, target = PrepareBatchCoarse("positive")(batch)
        >>> target.positive.shape, target.negative
        (torch.Size([1, 1, 4, 4]), None)
    """

    def __init__(self, supervision: str | Sequence[str] = "coarse") -> None:
        if isinstance(supervision, str):
            supervision = SUPERVISION[supervision]
        self.keys = tuple(supervision)

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Annotations]:
        """See the class."""
        seen = [key for key in self.keys if key in batchdata]
        if "image" not in batchdata or not seen:
            wanted = f"image and {' or '.join(self.keys)}"
            raise ValueError(f"the batch must have {wanted}, it has {', '.join(map(str, batchdata))}")

        def move(key: str) -> Tensor:
            value = batchdata[key]
            value = value.as_tensor() if isinstance(value, MetaTensor) else value
            return value.to(device=device, non_blocking=non_blocking, **kwargs)

        image = move("image")
        return image, Annotations(**{key: move(key) for key in seen}, image=image)


class PrepareBatchAnnotated(PrepareBatch):
    """As :class:`PrepareBatchCoarse` for networks that look at annotations in training, ``network(image, positive)``.

    Args:
        supervision: as there; with negative drawings it is ``network(image, positive, negative)``, ``None`` for a kind
            that the batch lacks.

    Example:
        >>> batch = {"image": torch.zeros(1, 3, 4, 4), "positive": torch.full((1, 5, 4, 4), 255)}
        >>> image, target, (positive,), _ = PrepareBatchAnnotated()(batch)
        >>> positive is target.positive
        True
    """

    def __init__(self, supervision: str | Sequence[str] = "positive") -> None:
        self.prepare = PrepareBatchCoarse(supervision)
        self.kinds = 2 if "negative" in self.prepare.keys else 1

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Annotations, tuple[Tensor | None, ...], dict[str, Any]]:
        """Image, target, and the network's further arguments."""
        image, target = self.prepare(batchdata, device, non_blocking, **kwargs)
        return image, target, target[: self.kinds], {}


class PrepareBatchTargeted(PrepareBatchCoarse):
    """As :class:`PrepareBatchCoarse` for networks that look at all drawings in training, ``network(image, target)``.

    Example:
        >>> batch = {"image": torch.zeros(1, 3, 4, 4), "positive": torch.full((1, 1, 4, 4), 255)}
        >>> image, target, (seen,), _ = PrepareBatchTargeted("positive")(batch)
        >>> seen is target
        True
    """

    def __call__(  # type: ignore[override]
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Annotations, tuple[Annotations], dict[str, Any]]:
        """Image, target, and the network's further arguments."""
        image, target = super().__call__(batchdata, device, non_blocking, **kwargs)
        return image, target, (target,), {}


class AnnotatorSchedule:
    """Train the segmenter alone for the first epochs, then both networks, in the end the annotators alone.

    While both learn, annotators that learn fast can explain away what the segmenter could learn, and slow ones hardly
    leave their start. So they are slow then, and are fitted to the finished segmenter afterwards, which can no longer
    change. It depends on the epoch and the iteration alone, so a resumed run is in the right phase.

    Args:
        model: the coupled model (not its DDP wrapper).
        warmup_epochs: length of the warm-up; 0 starts coupled at once.
        interval: the annotators learn at every ``interval``-th iteration only. In between their matrices are used as
            they are, without the cost of a backward pass. With gradient accumulation, leave it at 1.
        last_epoch: both networks learn up to this epoch, after it the annotators alone, at every iteration. ``None``
            lets both learn to the end.

    Raises:
        TypeError: a model that is no :class:`.CoupledModel`, such as its DDP wrapper.
        ValueError: an interval below 1; when training starts, annotators that are to learn alone and have nothing to
            learn, as with ``structure="identity"``.

    Example:
        >>> from medcoarse.networks import AnnotatorNet
        >>> model = CoupledModel(torch.nn.Conv2d(1, 2, 1), AnnotatorNet(torch.nn.Conv2d(1, 4, 1), 2, 4, num_classes=2))
        >>> schedule = AnnotatorSchedule(model, warmup_epochs=1, last_epoch=2)
        >>> for epoch in (1, 2, 3):
        ...     schedule.start(epoch)
        ...     print(model.annotating, model.segmenter_learns)
        False True
        True True
        True False
    """

    def __init__(
        self, model: CoupledModel, warmup_epochs: int, interval: int = 1, last_epoch: int | None = None
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        if not hasattr(model, "annotating"):  # compiled models have it
            raise TypeError(f"the schedule is of a CoupledModel, got {type(model).__name__}; of a wrapper pass .module")
        self.model = model
        self.warmup_epochs = warmup_epochs
        self.interval = interval
        self.last_epoch = last_epoch

    def attach(self, engine: Engine) -> None:
        """Run before every iteration, and at the start of every epoch, before other handlers look at the phase."""
        engine.add_event_handler(Events.STARTED, self._check)
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def _check(self, engine: Engine) -> None:
        self._require_learners(engine.state.max_epochs or 0)

    def _require_learners(self, epoch: int) -> None:
        """In an epoch in which the annotators learn alone."""
        if self.last_epoch is None or epoch <= self.last_epoch:
            return
        if all(name.startswith("segmenter.") for name, _ in self.model.named_parameters()):
            raise ValueError(
                f"after epoch {self.last_epoch} of {epoch} the annotators learn alone, and these have nothing to "
                "learn; end with that epoch (annotator_epochs 0) or give them another structure"
            )

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        self.start(engine.state.epoch, engine.state.iteration)

    def start(self, epoch: int, iteration: int = 0) -> None:
        """Put the model into the phase of an epoch, from 1, and an iteration: what a loop without ignite calls."""
        self._require_learners(epoch)
        alone = self.last_epoch is not None and epoch > self.last_epoch
        self.model.annotating = alone or epoch > self.warmup_epochs
        self.model.segmenter_learns = not alone
        self.model.annotator_learns = alone or iteration % self.interval == 0


class SeedEpoch:
    """Make every epoch a function of ``(seed, epoch)`` alone, so that a resumed run repeats what it would have done.

    Args:
        seed: any integer.
        data_loader: the training loader; the random transforms of its data set and its sampler are seeded too.
    """

    def __init__(self, seed: int, data_loader: Any) -> None:
        self.seed = seed
        self.data_loader = data_loader

    def attach(self, engine: Engine) -> None:
        """Run before anything else at the start of every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        # One stream per epoch and process; processes must not draw the same patches.
        seed = (self.seed * 1_000_003 + engine.state.epoch) * 1_009 + idist.get_rank()
        set_determinism(seed % 2**32, use_deterministic_algorithms=None)
        set_rnd(self.data_loader.dataset, seed % 2**32)
        if hasattr(self.data_loader.sampler, "set_epoch"):
            self.data_loader.sampler.set_epoch(engine.state.epoch)


def share(items: Sequence[Any], repeats: int, rank: int, num_processes: int, seed: int = 0) -> list[Any]:
    """What one of several processes trains on: parts of one length, each of few different items, to be cached.

    The items are shuffled, each is repeated, and the row is cut into parts. Where it cannot be cut evenly, neighbours
    have a place of the row in common, so that nothing is left out.

    Args:
        items: entries of a datalist.
        repeats: how often each is taken in an epoch.
        rank: of this process, from 0.
        num_processes: how many there are.
        seed: of the shuffle; the same for all processes.

    Example:
        >>> [share(["a", "b", "c"], 2, rank, 2) for rank in range(2)]
        [['c', 'c', 'a'], ['a', 'b', 'b']]
    """
    order = np.random.default_rng(seed).permutation(len(items))
    row = [items[index] for index in order for _ in range(repeats)]
    start, length = rank * len(row) // num_processes, -(-len(row) // num_processes)
    return row[start : start + length]


class PolynomialDecay:
    """Learning rate ``initial * (1 - (epoch - 1) / max_epochs) ** power``, for every parameter group.

    It depends on the epoch alone, so a run that is resumed with more epochs goes on at the rate of the longer schedule.

    Args:
        optimizer: its groups may have different initial rates.
        power: 0 keeps the rate constant.
        last_epoch: the schedule is through after this epoch, in place of the last one, and the epochs that follow have
            one of their own, from ``second_rate`` in every group.
        second_rate: see there.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        power: float = 0.9,
        last_epoch: int | None = None,
        second_rate: float = 0.0,
    ) -> None:
        self.optimizer = optimizer
        self.power = power
        self.last_epoch = last_epoch
        self.second_rate = second_rate
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def attach(self, engine: Engine) -> None:
        """Run at the start of every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        done, total = engine.state.epoch - 1, engine.state.max_epochs
        first = total if self.last_epoch is None else min(self.last_epoch, total)
        second = done >= first
        remaining = 1 - ((done - first) / (total - first) if second else done / first)
        for group in self.optimizer.param_groups:
            group["lr"] = (self.second_rate if second else group["initial_lr"]) * remaining**self.power


class Validate(ValidationHandler):
    """MONAI's ``ValidationHandler``, which also validates the weights of the last epoch.

    With several processes, each validates on images of its own, and one for which none are left still takes part.

    Args:
        interval: in epochs.
        validator: the evaluator to run.
    """

    def __init__(self, interval: int, validator: Evaluator) -> None:
        super().__init__(interval=interval, validator=validator, epoch_level=True)

    def attach(self, engine: Engine) -> None:
        """Validate at the interval and at the end."""
        super().attach(engine)

        def last(engine: Engine, epoch: int) -> bool:
            return bool(epoch == engine.state.max_epochs and epoch % self.interval)

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=last), self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        validator = self.validator
        assert validator is not None
        if idist.get_world_size() == 1 or validator.state.epoch_length != 0:
            super().__call__(engine)
            return
        # MONAI does not run an evaluator without images, and the others would wait forever for what this one counted.
        validator.state.epoch = engine.state.epoch
        validator.fire_event(Events.EPOCH_STARTED)
        validator.fire_event(Events.EPOCH_COMPLETED)


class SaveCheckpoint:
    """Write state dictionaries at the end of every epoch, atomically: a kill at any time leaves a whole file.

    MONAI's own ``CheckpointSaver`` does not write atomically.

    Args:
        objects: name -> object with ``state_dict()``.
        path: file to write.
        flat: write the state of the only object as it is, the form that MONAI Label, Deploy and the model zoo expect of
            ``model.pt``; otherwise the states are written under their names, with the engine's as ``"trainer"``.
        interval: in epochs; the last epoch is always written.

    Raises:
        ValueError: ``flat`` with several objects.
        FloatingPointError: weights that are not finite: training came apart. The file stays as the last epoch left it.
    """

    def __init__(self, objects: Mapping[str, Any], path: str | Path, flat: bool = False, interval: int = 1) -> None:
        if flat and len(objects) != 1:
            raise ValueError(f"a flat checkpoint holds one object, got {', '.join(objects)}")
        self.objects = dict(objects)
        self.path = Path(path)
        self.flat = flat
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Run after the other handlers of the epoch: list it last."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        due = engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs
        if not due:
            return
        objects = self.objects if self.flat else self.objects | {"trainer": engine}
        states = {name: item.state_dict() for name, item in objects.items()}
        self._require_finite(states, engine.state.epoch)  # in every process: one that stops alone keeps others waiting
        if idist.get_rank() != 0:
            return
        content = next(iter(states.values())) if self.flat else states
        write_atomically(self.path, lambda file: torch.save(content, file))

    def _require_finite(self, states: Mapping[str, Any], epoch: int) -> None:
        """Weights that are no numbers would be trained on, exported and used: nothing downstream looks again."""
        for state in states.values():
            for name, values in state.items():
                if isinstance(values, Tensor) and not values.isfinite().all():
                    kept = f"{self.path} keeps those of an earlier epoch" if self.path.exists() else "nothing was saved"
                    raise FloatingPointError(
                        f"training came apart: after epoch {epoch} the weights {name} are not finite ({kept}). Look "
                        "for images with nan or huge values, lower learning_rate, or leave mixed precision (amp) out"
                    )


class Resume:
    """Continue from a full checkpoint of :class:`SaveCheckpoint` when asked to and when there is one.

    Args:
        objects: name -> object with ``load_state_dict()``, as given to the saver.
        path: file to read, with weights only: nothing in it is executed.
        enabled: ``False`` starts anew.
    """

    def __init__(self, objects: Mapping[str, Any], path: str | Path, enabled: bool = True) -> None:
        self.objects = dict(objects)
        self.path = Path(path)
        self.enabled = enabled

    def attach(self, engine: Engine) -> None:
        """Run once, before the first epoch; list it before handlers that look at the epoch."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        if not self.enabled:
            return
        if not self.path.exists():
            logger.warning("Nothing to resume from: %s does not exist. Training starts at epoch 1.", self.path)
            return
        states = load_weights(self.path)
        max_epochs = engine.state.max_epochs
        length = states.get("trainer", {}).get("epoch_length", engine.state.epoch_length)
        if length != engine.state.epoch_length:
            raise ValueError(
                f"{self.path} was trained with {length} iterations an epoch, now there are "
                f"{engine.state.epoch_length}; resume with the same data, batch size and number of processes"
            )
        for name, item in (self.objects | {"trainer": engine}).items():
            if name not in states:
                raise ValueError(f"{self.path} holds {', '.join(states)} but not {name}; it is not a full checkpoint")
            item.load_state_dict(states[name])
        engine.state.max_epochs = max_epochs
        if engine.state.epoch >= max_epochs:
            logger.warning(
                "%s has been trained for %d epochs already, of %d; to go on, raise max_epochs "
                "(medcoarse train: --epochs)", self.path, engine.state.epoch, max_epochs,
            )  # fmt: skip
        else:
            logger.info("Resumed from %s after epoch %d of %d", self.path, engine.state.epoch, max_epochs)


def prepare_fundus(
    dataset_dir: str | Path | None, datalist: str | Path, synthetic_dir: str | Path, **synthetic_options: Any
) -> str:
    """The verified folder to train on: LES-AV where one is given, else synthetic photographs.

    Args:
        dataset_dir: folder in LES-AV's layout; empty or ``None`` draws synthetic photographs.
        datalist: the split to use where the folder has none.
        synthetic_dir: where synthetic photographs are drawn, or were drawn before.
        synthetic_options: how many and how large, see :func:`medcoarse.synthetic.write_fundus_dataset`.

    Raises:
        SystemExit: files that cannot be trained on, with one line for each. It is no ``Exception`` because MONAI would
            bury the message under the traceback of its configuration parser.
    """

    def draw() -> Path:
        _say_what_is_drawn("fundus photographs", synthetic_dir, "LES-AV folder", "les_av")
        return _synthetic_fundus(Path(synthetic_dir), synthetic_options)

    return _prepare(dataset_dir, draw, lambda folder: verify_les_av(folder, datalist))


class _DataSet(NamedTuple):
    """What it is called, who draws one like it, and what its files must be like."""

    what: str
    draw: Callable[..., Path]
    rules: Mapping[str, Any]


DATA_SETS = {
    "mnist": _DataSet("digits", digits.write_digit_dataset, {"label_values": (0, 255), "required_keys": ("label",)}),
    "cityscapes": _DataSet(
        "street scenes",
        street.write_street_dataset,
        {"label_keys": ("label", "coarse"), "label_values": sorted(KNOWN_IDS), "mask_keys": ()},
    ),
    "ms_lesions": _DataSet(
        "MRI of MS lesions",
        volumes.write_ms_dataset,
        {"label_keys": ("label", "positive"), "label_values": (0, 1, UNLABELED), "mask_keys": ()},
    ),
    "brats": _DataSet(
        "MRI of brain tumours",
        volumes.write_brats_dataset,
        {"label_values": (0, 1, 2, 3, UNLABELED), "mask_keys": (), "required_keys": ("label",)},
    ),
    "lidc": _DataSet(
        "CT of lung nodules",
        volumes.write_lidc_dataset,
        {
            "label_keys": ("label", "positive"),
            "label_values": (0, 1, UNLABELED),
            "mask_keys": (),
            "required_keys": ("positive",),
        },
    ),
}
"""By the name of the script in ``data_prep/`` that makes the real ones."""


def prepare_volumes(
    name: str,
    dataset_dir: str | Path | None,
    synthetic_dir: str | Path,
    synthetic_options: Mapping[str, Any],
    num_training: int | None = None,
) -> str:
    """The verified folder to train on: real images, slices or volumes where one is given, else drawn ones.

    Args:
        name: a name from :data:`DATA_SETS`.
        dataset_dir: folder that the script of that name in ``data_prep/`` made; empty or ``None`` draws.
        synthetic_dir: where images are drawn, or were drawn before.
        synthetic_options: how many and how large, see :mod:`medcoarse.synthetic`.
        num_training: training items that are wanted; ``None`` takes what there is.

    Raises:
        SystemExit: files that cannot be trained on, see :func:`prepare_fundus`.
    """
    chosen, script = DATA_SETS[name], f"data_prep/{name}.py"

    def draw() -> Path:
        _say_what_is_drawn(chosen.what, synthetic_dir, "folder", name)
        return chosen.draw(synthetic_dir, **synthetic_options)

    return _prepare(dataset_dir, draw, lambda folder: verify_prepared(folder, script, num_training, **chosen.rules))


prepare_digits = partial(prepare_volumes, "mnist")
prepare_streets = partial(prepare_volumes, "cityscapes")


def _say_what_is_drawn(what: str, folder: str | Path, argument: str, script: str) -> None:
    logger.info(
        "No dataset_dir: training on synthetic %s in %s. For real ones pass --dataset_dir <%s>; "
        "python data_prep/%s.py prepares it.",
        what, folder, argument, script,
    )  # fmt: skip


def _prepare(dataset_dir: str | Path | None, draw: Callable[[], Path], verify: Callable[[Path], int]) -> str:
    """The folder that is given, else the one that is drawn, verified; what stands against it ends the program."""
    try:
        folder = Path(dataset_dir) if dataset_dir else draw()
        verify(folder)
    except (DataError, FileExistsError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    return str(folder)


def require_weights(path: str | Path) -> None:
    """Leave with one line (``SystemExit``, see :func:`prepare_fundus`) where there are no weights to evaluate, or
    something else poses as some.
    """
    if not Path(path).is_file():
        raise SystemExit(f"no weights at {path}: train first, or pass their folder as --ckpt_dir")
    try:
        load_weights(path)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def _synthetic_fundus(folder: Path, options: Mapping[str, Any]) -> Path:
    with tqdm(desc="Drawing photographs", unit="image", disable=idist.get_rank() != 0) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return synthetic.write_fundus_dataset(folder, progress=show, **options)
