"""What a person sees of a training run: progress, warnings, scores and pictures, as plain ignite handlers."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import IgniteMetricHandler, from_engine
from monai.networks.utils import eval_mode
from monai.utils.misc import ensure_tuple_rep
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from medcoarse import guard, metrics, report
from medcoarse.confusion import UNLABELED, Confusion, CoupledOutput, IdentityConfusion, confusion_maps
from medcoarse.files import plain, write_json
from medcoarse.losses import CoupledLoss
from medcoarse.networks import AnnotatorHeads, CoupledModel
from medcoarse.scores import ScoreView, SegmentationScores, score_table

logger = logging.getLogger(__name__)


class Progress:
    """A progress bar over all iterations, with the loss parts and the latest scores; plain lines where no one watches.

    Args:
        loss: its ``parts`` are shown.
        evaluator: its key metric is shown in the bar, all of its metrics in the lines.
    """

    def __init__(self, loss: CoupledLoss, evaluator: Engine | None = None) -> None:
        self.loss = loss
        self.evaluator = evaluator
        self.bar: Any = None

    def attach(self, engine: Engine) -> None:
        """Follow the whole run."""
        if idist.get_rank() != 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._close_epoch)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _start(self, engine: Engine) -> None:
        if self.bar is None:
            total = engine.state.max_epochs * engine.state.epoch_length
            watched = sys.stderr.isatty()
            self.bar = tqdm(total=total, initial=engine.state.iteration, unit="step", disable=not watched)

    def _step(self, engine: Engine) -> None:
        self.bar.update()
        if not self.bar.disable and engine.state.iteration % 5 == 0:
            self.bar.set_description(f"epoch {engine.state.epoch}/{engine.state.max_epochs}")
            self.bar.set_postfix_str(self._text(engine, key_metric_only=True))

    def _close_epoch(self, engine: Engine) -> None:
        if self.bar.disable:
            logger.info("epoch %d/%d %s", engine.state.epoch, engine.state.max_epochs, self._text(engine))

    def _close(self, engine: Engine) -> None:
        if self.bar is not None:  # None after resuming a finished run
            self.bar.close()

    def _text(self, engine: Engine, key_metric_only: bool = False) -> str:
        parts = {"loss": engine.state.output["loss"], **self.loss.parts}
        shown = {name: part.item() for name, part in parts.items()}
        if self.evaluator is not None:
            state = self.evaluator.state
            names = [state.key_metric_name] if key_metric_only else list(state.metrics)
            shown |= {name: float(state.metrics[name]) for name in names if name in state.metrics}
        return " ".join(f"{name}={value:.3f}" for name, value in shown.items())


def summary_writer(log_dir: str | Path) -> SummaryWriter | None:
    """A TensorBoard writer in the first process, ``None`` in the others: two files in one folder would be mixed up."""
    return SummaryWriter(str(log_dir)) if idist.get_rank() == 0 else None


class LossCurves:
    """Write the loss and its parts to TensorBoard at every iteration.

    Args:
        loss: its ``parts`` are written.
        writer: see :func:`summary_writer`; ``None`` writes nothing.
    """

    def __init__(self, loss: CoupledLoss, writer: SummaryWriter | None) -> None:
        self.loss, self.writer = loss, writer

    def attach(self, engine: Engine) -> None:
        """Follow the whole run."""
        if self.writer is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        assert self.writer is not None
        for name, value in {"total": engine.state.output["loss"], **self.loss.parts}.items():
            self.writer.add_scalar(f"loss/{name}", value.item(), engine.state.iteration)


class AnnotatorMonitor:
    """Watch, from the drawings alone, for the ways in which training can fail; log what is seen and warn.

    Every ``interval`` iterations ``values`` is refreshed with :func:`medcoarse.guard.observe` and the norm of the
    gradient that reaches the segmenter. What :func:`medcoarse.guard.diagnose` makes of their averages, each over the
    last looks that gave it in this phase of training, is logged as a warning, each failure once.

    Args:
        interval: in iterations.
        model: the coupled model, for its gradients.
        writer: a TensorBoard ``SummaryWriter`` that gets the values.
        memory: looks that are averaged, so that one odd batch raises no alarm.
    """

    def __init__(
        self, interval: int = 20, model: CoupledModel | None = None, writer: Any = None, memory: int = 10
    ) -> None:
        self.interval, self.model, self.writer = interval, model, writer
        self.values: dict[str, float] = {}
        self.memory = memory
        self._recent: dict[str, deque[float]] = {}
        self._phase: tuple[bool, bool] | None = None
        self._warned: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Look at the training batch that was just used."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        output = engine.state.output["pred"]
        self.values = guard.observe(output, engine.state.output["label"])
        self._remember(phase=(output.positive is None, output.negative is None))
        gradients = [p.grad for p in self.model.segmenter.parameters() if p.grad is not None] if self.model else []
        if gradients:  # none where the segmenter is frozen
            self.values["gradient"] = torch.stack([g.norm() for g in gradients]).norm().item()
        self._say(engine)

    def _say(self, engine: Engine) -> None:
        for name, value in self.values.items():
            if self.writer is not None:
                self.writer.add_scalar(f"monitor/{name}", value, engine.state.iteration)
        self._warn()

    def _remember(self, phase: tuple[bool, bool]) -> None:
        """Not every batch has every kind of drawing; the warm-up says nothing about what comes after it."""
        if phase != self._phase:
            self._recent.clear()
        self._phase = phase
        for name, value in self.values.items():
            self._recent.setdefault(name, deque(maxlen=self.memory)).append(value)

    def _warn(self) -> None:
        means = {name: sum(seen) / len(seen) for name, seen in self._recent.items() if len(seen) == self.memory}
        for failure, message in guard.diagnose(means).items():
            if failure not in self._warned:
                self._warned.add(failure)
                logger.warning(message)


class LatentMonitor(AnnotatorMonitor):
    """Watch a network with a latent variable, and warn where that is of no use (a posterior collapse).

    Args:
        loss: its part ``kl`` is watched.
        interval: in iterations.
        writer: a TensorBoard ``SummaryWriter`` that gets the values.
        memory: looks that are averaged.
    """

    def __init__(self, loss: CoupledLoss, interval: int = 20, writer: Any = None, memory: int = 10) -> None:
        super().__init__(interval, writer=writer, memory=memory)
        self.loss = loss

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        self.values = {"kl": self.loss.parts["kl"].item()}
        self._remember(phase=(True, True))
        self._say(engine)


class MetricsJson:
    """Keep ``metrics.json``: what was trained on, how coarse the drawings were, and the scores of every validation.

    Args:
        path: file to write.
        evaluator: its metrics are taken whenever it finishes.
        facts: plain data that describes the run (supervision, seed, data set, ...).
        dataset: items with ``label`` and drawings; the drawings' own scores are measured once, see
            :func:`drawing_scores`.
        writer: a TensorBoard ``SummaryWriter`` that also gets the scores.
    """

    def __init__(
        self,
        path: str | Path,
        evaluator: Engine,
        facts: Mapping[str, Any] | None = None,
        dataset: Any = None,
        writer: Any = None,
    ) -> None:
        self.path = Path(path)
        self.evaluator, self.dataset, self.writer = evaluator, dataset, writer
        self.content: dict[str, Any] = {
            "facts": dict(facts or {}), "machine": machine(), "drawings": {}, "validation": [],
        }  # fmt: skip
        self.started = time.monotonic()

    def attach(self, engine: Engine) -> None:
        """Write after each validation of the trainer."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._start)
            self.evaluator.add_event_handler(Events.COMPLETED, lambda _: self._record(engine))

    def _start(self, engine: Engine) -> None:
        if engine.state.epoch > 0 and self.path.exists():  # resumed: keep what came before
            earlier = json.loads(self.path.read_text(encoding="utf-8")).get("validation", [])
            self.content["validation"] = [row for row in earlier if row["epoch"] <= engine.state.epoch]
            self.started -= max((row["seconds"] for row in self.content["validation"]), default=0)
        if self.dataset is not None:
            self.content["drawings"] = drawing_scores(self.dataset)
            for name, value in self.content["drawings"].items():
                logger.info("The drawings themselves: %s = %.3f", name, value)
        write_json(self.path, self.content)

    def _record(self, engine: Engine) -> None:
        scores = {name: plain(value) for name, value in self.evaluator.state.metrics.items()}
        seconds = round(time.monotonic() - self.started)
        self.content["validation"].append({"epoch": engine.state.epoch, "seconds": seconds, **scores})
        write_json(self.path, self.content)
        for name, value in scores.items():
            if self.writer is not None and value is not None:
                self.writer.add_scalar(f"validation/{name}", value, engine.state.epoch)


def drawing_scores(dataset: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """How coarse binary drawings are, each score a mean over the images in which it is defined.

    - ``KIND_precision``: how much of what was drawn is right. A positive drawing (1) should lie in the structure, a
      negative one (1) outside.
    - ``KIND_coverage``: how much of the structure, or of the rest, was drawn.
    - Where something is said at every pixel, also the IoU with the structure: ``positive_iou``, and of what a negative
      drawing leaves over ``negative_complement_iou``.

    Args:
        dataset: items with ``label`` ``(1, *S)`` of classes 0 and 1, and ``positive`` / ``negative`` ``(R, *S)``.

    Returns:
        Numbers in [0, 1] by name; those that are defined in no image are left out.

    Example:
        >>> item = {"label": torch.tensor([[0, 0, 1, 1]]), "positive": torch.tensor([[0, 1, 1, 0]])}
        >>> {name: round(value, 3) for name, value in drawing_scores([item]).items()}
        {'positive_precision': 0.5, 'positive_coverage': 0.5, 'positive_iou': 0.333}
    """
    values: dict[str, list[float]] = {}
    for item in dataset:
        label = torch.as_tensor(item["label"])[0]
        for kind, region in (("positive", label == 1), ("negative", label == 0)):
            for drawing in torch.as_tensor(item[kind]) if kind in item else ():
                for name, value in _drawing_row(kind, drawing, region, label != UNLABELED).items():
                    values.setdefault(f"{kind}_{name}", []).append(value)
    return {name: float(np.nanmean(scores)) for name, scores in values.items() if not np.isnan(scores).all()}


def _drawing_row(kind: str, drawing: Tensor, region: Tensor, known: Tensor) -> dict[str, float]:
    """Scores of one drawing, NaN where undefined; all four ``(*S)``."""
    drawn = (drawing == 1) & known
    right = (drawn & region).sum()
    row = {"precision": right / drawn.sum(), "coverage": right / region.sum()}
    if (drawing != UNLABELED)[known].all():
        structure, said = (region, drawn) if kind == "positive" else (known & ~region, known & ~drawn)
        row["iou" if kind == "positive" else "complement_iou"] = (said & structure).sum() / (said | structure).sum()
    return {name: value.item() for name, value in row.items()}


def machine() -> dict[str, Any]:
    """Hardware and versions that a run was made with, as plain data."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("medcoarse", "monai", "torch", "numpy")},
    }


def _cpu_name() -> str:
    """Python itself does not know it on Linux."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def score_views(source: SegmentationScores, class_index: int, class_name: str) -> dict[str, Any]:
    """The scores that are reported beside the key metric, as metrics of an engine that attaches ``source`` too.

    Returns:
        Name -> ``IgniteMetricHandler``: Dice, sensitivity and specificity of the class (mean over the images), its IoU
        over the data set, and the mean IoU over the classes both ways.
    """
    own: dict[str, Any] = {"class_index": class_index}
    views = {
        f"{class_name}_dice": {"metric": "dice", **own},
        f"{class_name}_sensitivity": {"metric": "sensitivity", **own},
        f"{class_name}_specificity": {"metric": "specificity", **own},
        f"{class_name}_iou_dataset": {"reduction": "dataset", **own},
        "mean_iou": {},
        "mean_iou_dataset": {"reduction": "dataset"},
    }
    pair = from_engine(["pred", "label"])
    return {
        name: IgniteMetricHandler(cast(Any, ScoreView(source, **arguments)), output_transform=pair, save_details=False)
        for name, arguments in views.items()
    }


def drawing_metrics(
    labels: SegmentationScores | None, drawings: SegmentationScores, class_names: Sequence[str]
) -> dict[str, Any]:
    """What can be said of predictions where some images have labels, or none has: as metrics of one engine.

    Args:
        labels: counts predictions against labels; ``None`` where no image has one, and then no Dice is reported.
        drawings: counts predictions against what was drawn.
        class_names: of the L classes, background first.

    Returns:
        Name -> ``IgniteMetricHandler``, the key metric first: ``mean_dice`` and that of each class but background, from
        labels only; ``drawn_agreement``, the share of the voxels drawn as a class that are predicted to be it, mean
        over the classes. It says whether the drawings were learned, not whether the segmentation is right.
    """
    of_drawings = from_engine(["pred", "drawn"])
    agreement = IgniteMetricHandler(metric_fn=drawings, output_transform=of_drawings, save_details=False)
    if labels is None:
        return {"drawn_agreement": agreement}
    pair = from_engine(["pred", "label"])
    views = {
        f"{name}_dice": cast(Any, ScoreView(labels, "dice", class_index=k)) for k, name in enumerate(class_names) if k
    }
    handlers = {
        name: IgniteMetricHandler(metric_fn=metric, output_transform=pair, save_details=False)
        for name, metric in {"mean_dice": cast(Any, labels), **views}.items()
    }
    return {**handlers, "drawn_agreement": agreement}


class ValidationFigure:
    """Save a picture at every validation: image, drawings, truth, prediction's errors, estimated and true matrices; of
    several positive annotators what each of them drew and what the model expects of them in place of matrices.

    A square in the middle of one validation image is shown, so that strokes can be seen. Where the truth is not known,
    it is left out with all that needs it, and the matrices are averaged where the prediction has their classes.

    Args:
        model: the coupled model.
        dataset: validation items with image, label and drawings.
        directory: where ``epoch_0010.png`` and so on are written.
        evaluator: a picture is made whenever it finishes.
        class_names: of the L classes.
        case: index of the item to show.
        size: side of the square in pixels; smaller images are shown as far as ``divisor`` allows.
        divisor: the sides are multiples of it, because most networks halve the image several times; one number, or one
            for each axis. Of a shorter side all is shown, and filled up.
        loss: holds the fixed transition matrix.
        writer: a TensorBoard ``SummaryWriter`` that also gets the picture.
        shown_key: the image to show where it is not the one that the networks get.
        annotator_names: of the positive annotators, where there are several; by default numbers.
    """

    def __init__(
        self,
        model: CoupledModel,
        dataset: Any,
        directory: str | Path,
        evaluator: Engine,
        class_names: Sequence[str],
        loss: CoupledLoss,
        case: int = 0,
        size: int = 384,
        divisor: int | Sequence[int] = 32,
        writer: Any = None,
        shown_key: str = "image",
        annotator_names: Sequence[str] | None = None,
    ) -> None:
        self.model, self.dataset, self.loss = model, dataset, loss
        self.directory, self.evaluator, self.writer = Path(directory), evaluator, writer
        self.class_names, self.case = tuple(class_names), case
        self.size, self.divisor, self.shown_key = size, divisor, shown_key
        self.annotator_names = annotator_names

    def attach(self, engine: Engine) -> None:
        """Draw after each validation of the trainer."""
        if idist.get_rank() == 0:
            self.evaluator.add_event_handler(Events.COMPLETED, lambda _: self._draw(engine))

    def _draw(self, engine: Engine) -> None:
        shown = self.dataset[self.case]
        keys = {"image", "label", "positive", "negative", self.shown_key}
        present = [key for key in keys if key in shown]
        fill = {key: UNLABELED if key in ("label", "positive", "negative") else 0 for key in present}
        item = {key: middle(torch.as_tensor(shown[key]), self.size, self.divisor, fill[key]) for key in present}
        figure = self._figure(item, f"epoch {engine.state.epoch}")
        path = report.save_figure(figure, self.directory / f"epoch_{engine.state.epoch:04d}.png")
        if self.writer is not None:  # add_figure would draw it a second time
            with Image.open(path) as picture:
                self.writer.add_image("validation", np.asarray(picture), engine.state.epoch, dataformats="HWC")

    def _figure(self, item: Mapping[str, Tensor], title: str) -> Any:
        device = next(self.model.parameters()).device
        image = item["image"][None].float().to(device)
        with eval_mode(self.model):  # without gradients, too
            output = self.model.couple(image)
        prediction = output.logits.argmax(1).cpu()  # (1, *S): of a volume one plane is shown
        label = item["label"].long() if (item["label"] != UNLABELED).any() else None
        class_index = 1 if len(self.class_names) == 2 else None
        if output.positive is not None and output.positive.num_annotators > 1:
            return report.annotators_figure(
                image=item[self.shown_key],
                expected=self._expected(image, output),
                drawings=item.get("positive"),
                label=label,
                prediction=prediction,
                annotator_names=self.annotator_names,
                class_names=self.class_names,
                title=title,
                class_index=class_index,
            )
        classes = (prediction if label is None else label)[None]
        matrices = [self._pooled(confusion, classes) for confusion in (output.positive, output.negative)]
        return report.validation_figure(
            image=item[self.shown_key],
            positive=item.get("positive"),
            negative=item.get("negative"),
            label=label,
            prediction=prediction,
            confusion_positive=matrices[0],
            confusion_negative=matrices[1],
            transition=transition_of(self.model, self.loss) if self.model.annotator.num_negative else None,
            class_names=self.class_names,
            title=title,
            class_index=class_index,
        )

    def _expected(self, image: Tensor, output: CoupledOutput) -> Tensor:
        """What each annotator would draw, ``(R, *S)``: what their heads say, or else ``A_r p``."""
        segmenter = self.model.segmenter
        if isinstance(segmenter, AnnotatorHeads):
            with eval_mode(segmenter):
                return segmenter.heads(image)[0].argmax(1).cpu()
        assert output.positive is not None
        return output.positive.log_annotate(output.logits.float().log_softmax(1))[0].argmax(1).cpu()

    def _pooled(self, confusion: Confusion | None, label: Tensor) -> Tensor | None:
        """The first annotator's table that counting drawings would show, ``(L, L)``."""
        if confusion is None or isinstance(confusion, IdentityConfusion):
            return None
        cm = confusion_maps(confusion, len(self.class_names), len(label), label.shape[2:])
        return metrics.mean_confusion(cm.cpu(), label)[0, 0]


def transition_of(model: CoupledModel, loss: CoupledLoss) -> Tensor:
    """The transition matrix M that is used, ``(L, L)``: the learned one, otherwise that of the loss."""
    learned = model.log_transition()
    log_transition = loss.log_transition if learned is None else learned.detach()
    return log_transition.exp().cpu()


def middle(values: Tensor, size: int, divisor: int | Sequence[int], fill: float = 0) -> Tensor:
    """The middle of ``(channels, *S)``: sides of at most ``size`` that are multiples of ``divisor``.

    Args:
        values: of a class or an image.
        size: longest side, unless the divisor is longer.
        divisor: one number, or one for each axis.
        fill: what a side that is shorter than its divisor is filled up with, at its end.

    Example:
        >>> middle(torch.zeros(1, 100, 40), size=64, divisor=16).shape
        torch.Size([1, 64, 32])
        >>> middle(torch.zeros(1, 1, 3), size=64, divisor=[1, 4], fill=255)
        tensor([[[  0.,   0.,   0., 255.]]])
    """
    for axis, factor in enumerate(ensure_tuple_rep(divisor, values.ndim - 1), 1):
        available = values.shape[axis]
        length = max(min(size, available) // factor, 1) * factor
        if length > available:
            ends = [0, 0] * (values.ndim - 1 - axis) + [0, length - available]
            values = torch.nn.functional.pad(values, ends, value=fill)
        else:
            values = values.narrow(axis, (available - length) // 2, length)
    return values


def short_names(paths: Sequence[str]) -> list[str]:
    """What tells files apart: their names, with the folders below the one that they share.

    Example:
        >>> short_names(["a/b/1.png", "a/b/2.png"]), short_names(["a/b/flair.nii", "a/c/flair.nii"])
        (['1.png', '2.png'], ['b/flair.nii', 'c/flair.nii'])
    """
    shared = os.path.commonpath([Path(path).parent for path in paths]) if paths else ""
    return [Path(os.path.relpath(path, shared or None)).as_posix() for path in paths]


class EvaluationReport:
    """Write what an evaluation found: all scores, image by image, as JSON, and a sheet of pictures.

    Args:
        counts: the metric that counts; attach it to the same engine.
        class_names: of the L classes.
        json_path: scores, see :func:`medcoarse.scores.score_table`.
        sheet_path: PNG with image, truth, prediction and errors of the first images.
        image_key: key of the image that is shown.
        max_cases: number of images on the sheet.
        include_background: whether class 0 takes part in the means over classes.
    """

    def __init__(
        self,
        counts: SegmentationScores,
        class_names: Sequence[str],
        json_path: str | Path,
        sheet_path: str | Path,
        image_key: str = "image",
        max_cases: int = 6,
        include_background: bool = True,
    ) -> None:
        self.include_background = include_background
        self.counts, self.class_names = counts, tuple(class_names)
        self.json_path, self.sheet_path = Path(json_path), Path(sheet_path)
        self.image_key, self.max_cases = image_key, max_cases
        self.paths: list[str] = []
        self.shown: list[list[Tensor]] = []

    def attach(self, engine: Engine) -> None:
        """Collect while the engine runs, write when it is through.

        Raises:
            ValueError: several processes; each would see only some of the images.
        """
        if idist.get_world_size() > 1:
            raise ValueError(f"evaluate in one process, not in {idist.get_world_size()}: the report shows all images")
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            image = item[self.image_key]
            self.paths.append(str(image.meta["filename_or_obj"]))
            if len(self.shown) < self.max_cases:
                self.shown.append([torch.as_tensor(x).cpu() for x in (image, output["label"], output["pred"])])

    def _write(self, engine: Engine) -> None:
        names = short_names(self.paths)
        table = score_table(self.counts.counts(), self.class_names, names, self.include_background)
        write_json(self.json_path, table)
        cases = [report.Case(name, *shown) for name, shown in zip(names, self.shown, strict=False)]  # the first ones
        one = 1 if len(self.class_names) == 2 else None
        report.save_figure(report.prediction_sheet(cases, self.class_names, class_index=one), self.sheet_path)
        for name, value in engine.state.metrics.items():
            logger.info("%s = %.4f", name, value)
        logger.info("Scores of every image are in %s, pictures in %s", self.json_path, self.sheet_path)
