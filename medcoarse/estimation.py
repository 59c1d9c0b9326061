"""How well the annotators' confusion matrices were estimated, against the drawings that were simulated.

The truth is not assumed but counted: the same mask is drawn many times with other seeds. How often each class was drawn
at a pixel is the column `p(drawn | true class here, this mask)` of the true matrix; its other columns cannot be known.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor
from tqdm import tqdm

from medcoarse import metrics, report
from medcoarse.confusion import compose, confusion_maps, identity
from medcoarse.files import add_to_json
from medcoarse.losses import CoupledLoss
from medcoarse.monitoring import middle, transition_of
from medcoarse.networks import CoupledModel
from medcoarse.panels import AnnotatorMaps, annotator_group, number_text
from medcoarse.transforms.array import OutsideToUnlabeled, SimulateCoarseBatch
from medcoarse.transforms.repeated import count_drawings

logger = logging.getLogger(__name__)


class Estimate(NamedTuple):
    """What the networks make of an image."""

    probs: Tensor  # (1, L, *S)
    cm: Tensor  # (1, R + C, observed, true, *S), positive annotators first


def estimate(model: CoupledModel, image: Tensor, inferer: Inferer) -> Estimate:
    """The class probabilities and the annotators' matrices that the networks estimate for an image of any size.

    Args:
        model: the coupled model.
        image: (1, C, *S) on its device.
        inferer: as for the segmenter; sliding windows are blended, and the columns of the matrices still sum to 1.

    Example:
        >>> from monai.inferers import SimpleInferer
        >>> from medcoarse.networks import AnnotatorNet
        >>> model = CoupledModel(torch.nn.Conv2d(1, 2, 1), AnnotatorNet(torch.nn.Conv2d(1, 4, 1), 2, 4, num_classes=2))
        >>> probs, cm = estimate(model, torch.rand(1, 1, 8, 8), SimpleInferer())
        >>> probs.shape, cm.shape
        (torch.Size([1, 2, 8, 8]), torch.Size([1, 2, 2, 2, 8, 8]))
    """
    num_classes = model.annotator.num_classes

    def everything(patch: Tensor) -> Tensor:
        output = model.couple(patch)
        groups = [group for group in (output.positive, output.negative) if group is not None]
        maps = [confusion_maps(group, num_classes, len(patch), output.logits.shape[2:]) for group in groups]
        cm = torch.cat([one.to(patch.device) for one in maps], 1).flatten(1, 3)
        return torch.cat([output.logits.float().softmax(1), cm], 1)

    with eval_mode(model):  # without gradients, too
        found = torch.as_tensor(inferer(image, everything))
    return Estimate(found[:, :num_classes], torch.unflatten(found[:, num_classes:], 1, (-1, num_classes, num_classes)))


def as_drawn(cm: Tensor, num_positive: int, transition: Tensor) -> Tensor:
    """What is seen of the matrices: `A` of positive annotators, `M A` of negative ones.

    Args:
        cm: (B, R + C, observed, true, *S), positive annotators first.
        num_positive: R.
        transition: M (L, L).

    Example:
        >>> as_drawn(torch.eye(2).expand(1, 2, 2, 2), 1, 1 - torch.eye(2))[0, :, 0].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    positive, negative = cm[:, :num_positive], cm[:, num_positive:]
    shaped = transition.to(cm.dtype).view(1, 1, *transition.shape, *(1,) * (cm.ndim - 4))
    return torch.cat([positive, compose(shaped, negative)], 1)


def confusion_scores(
    estimated: Tensor, counts: Tensor, label: Tensor, annotator_names: Sequence[str]
) -> dict[str, float]:
    """How far the matrices of one image are from what was drawn, under flat names.

    Args:
        estimated: probability of what is drawn (1, R, observed, true, *S).
        counts: in how many drawings each class was drawn at each pixel (1, R, observed, *S).
        label: true classes (1, 1, *S), 255 where unknown.
        annotator_names: R names.

    Returns:
        `cm_error_<name>`, the error of the image's pooled matrix (`metrics.confusion_matrix_error`), and
        `cm_error_local_<name>`, that of its matrices pixel by pixel (`metrics.local_confusion_error`); `cm_error` and
        `cm_error_local`, their means over the annotators. NaN where nothing was drawn.

    Example:
        >>> counts = torch.tensor([[[[6, 0], [4, 10]]]])
        >>> scores = confusion_scores(torch.full((1, 1, 2, 2, 2), 0.5), counts, torch.tensor([[[0, 1]]]), ["positive"])
        >>> round(scores["cm_error"], 4)
        0.3606
    """
    pooled = metrics.mean_confusion(estimated, label, weight=counts.sum(2))
    errors = {
        "cm_error": metrics.confusion_matrix_error(pooled, metrics.repeated_confusion(counts, label))[0],
        "cm_error_local": metrics.local_confusion_error(estimated, counts, label)[0],
    }
    scores = {name: values.nanmean().item() for name, values in errors.items()}
    for name, values in errors.items():
        scores |= {f"{name}_{who}": value for who, value in zip(annotator_names, values.tolist(), strict=True)}
    return scores


COMPLEMENTARY = ("uniform", "biased", "learned")


def complementary_transition(kind: str, dataset: Any, num_classes: int) -> Tensor | None:
    """The fixed transition matrix to give the loss, for a way to read "not this class" among many.

    Args:
        kind: ``"uniform"``, every other class as likely to be ruled out; ``"biased"``, :func:`counted_transition`;
            ``"learned"``, where the model learns its own and the loss needs none.
        dataset: for ``"biased"``, see there.
        num_classes: L.

    Returns:
        ``(L, L)``, or ``None``, which a :class:`medcoarse.losses.CoupledLoss` takes for uniform.

    Raises:
        ValueError: another kind.

    Example:
        >>> complementary_transition("often", [], 3)
        Traceback (most recent call last):
        ValueError: complementary labels are read as uniform, biased or learned, got 'often'
    """
    if kind not in COMPLEMENTARY:
        raise ValueError(f"complementary labels are read as {', '.join(COMPLEMENTARY[:2])} or learned, got {kind!r}")
    return counted_transition(dataset, num_classes) if kind == "biased" else None


def counted_transition(dataset: Any, num_classes: int) -> Tensor:
    """Which classes negative drawings rule out where another one is true, ``(L, L)``, counted where masks are known.

    ``M[c, j] = (n[c, j] + 1) / sum_{i != j} (n[i, j] + 1)`` with ``n[c, j]`` pixels of class j that were drawn as "not
    c", and 0 where ``c = j``: errors of the drawing hand are not the transition's. The 1 keeps what did not happen on
    these images from being impossible.

    Args:
        dataset: items with ``"label"`` (1, *S) and ``"negative"`` (C, *S), few suffice.
        num_classes: L.

    Raises:
        ValueError: no item has both.

    Source: Yu et al., "Learning with biased complementary labels" (ECCV 2018), counts on examples of known class.

    Example:
        >>> item = {"label": torch.tensor([[2, 2, 2, 2]]), "negative": torch.tensor([[0, 0, 0, 1]])}
        >>> counted_transition([item], 3)[:, 2]  # 3 + 1 and 1 + 1 of 6
        tensor([0.6667, 0.3333, 0.0000])
    """
    total = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    found = [item for item in dataset if "label" in item and "negative" in item]
    if not found:
        raise ValueError("nothing to count: no item has both a mask and negative drawings; take uniform or learned")
    for item in found:
        drawn, label = (torch.as_tensor(item[key]).as_subclass(Tensor)[None] for key in ("negative", "label"))
        total += metrics.annotation_counts(drawn, label.long(), num_classes).sum((0, 1))
    shares = (total + 1) * (1 - torch.eye(num_classes))
    return (shares / shares.sum(0)).float()


class AnnotatorReport:
    """After an evaluation, score the annotators' matrices and show them: `annotators` in its JSON, and a PNG.

    The JSON gets `num_images`, `num_draws`, `image` (mean over the images of each of `confusion_scores`), `identity`
    (the same for matrices that claim that nobody errs, as a scale) and `images`. Of a negative annotator what was ruled
    out can be counted, so `M A` is scored. Matrices are scored as they are, also those that training never touched.

    Args:
        model: the coupled model, its weights loaded by the time the evaluation is through.
        loss: holds the fixed transition matrix.
        dataset: items with image, label and drawings at the size that the networks see.
        simulate: draws what the data set's drawings were drawn by.
        inferer: as for the segmenter.
        class_names: of the L classes.
        json_path: gets the scores; what it holds already stays.
        sheet_path: PNG with estimated and true matrices pixel by pixel.
        num_draws: drawings of each mask.
        num_images: the first so many; ``None`` for all.
        max_cases: images on the sheet.
        size: side in pixels of the square in their middle that the sheet shows.
        mask_key: key of the field of view outside of which nothing is scored.
        shown_key: the image to show where it is not the one that the networks get.
        tables: matrices (R + C, observed, true) that are scored in place of the networks': of a method that estimates
            one for each annotator, whatever the image. NaN, also as a single number, where it estimates none: such
            annotators have no score.

    Raises:
        ValueError: `simulate` has not as many annotators as the model, or there are not as many tables.
    """

    def __init__(
        self,
        model: CoupledModel,
        loss: CoupledLoss,
        dataset: Any,
        simulate: SimulateCoarseBatch,
        inferer: Inferer,
        class_names: Sequence[str],
        json_path: str | Path,
        sheet_path: str | Path,
        num_draws: int = 64,
        num_images: int | None = None,
        max_cases: int = 3,
        size: int = 160,
        mask_key: str | None = None,
        shown_key: str = "image",
        tables: Tensor | float | None = None,
    ) -> None:
        self.model, self.loss, self.dataset, self.simulate, self.inferer = model, loss, dataset, simulate, inferer
        self.class_names = tuple(class_names)
        self.json_path, self.sheet_path = Path(json_path), Path(sheet_path)
        self.num_draws, self.num_images, self.max_cases, self.size = num_draws, num_images, max_cases, size
        self.mask_key, self.shown_key = mask_key, shown_key
        modelled = (model.annotator.num_positive, model.annotator.num_negative)
        drawing = (len(simulate.positive.profiles), len(simulate.negative.profiles))
        if modelled != drawing:
            raise ValueError(
                "the model must have as many positive and negative annotators as those who draw, got "
                f"{modelled} and {drawing}; give both the same profiles"
            )
        self.names = [*_names("positive", modelled[0]), *_names("negative", modelled[1])]
        self.tables = None if tables is None else self._checked(torch.as_tensor(tables))

    def _checked(self, tables: Tensor) -> Tensor:
        """Float32 (R + C, L, L)."""
        shape = (len(self.names), len(self.class_names), len(self.class_names))
        if tables.ndim > 0 and tables.shape != shape:
            raise ValueError(f"tables must be one matrix for each annotator, {shape}, got {tuple(tables.shape)}")
        return tables.float().expand(shape)

    def attach(self, engine: Engine) -> None:
        """Run when the evaluation is through; list it behind the handler that writes the JSON."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """See the class."""
        available = len(self.dataset)
        number = available if self.num_images is None else min(self.num_images, available)
        found = [
            self._measure(index) for index in tqdm(range(number), "Drawing again", disable=not sys.stderr.isatty())
        ]
        image = _mean([one.scores for one in found])
        scores = {
            "num_images": number,
            "num_draws": self.num_draws,
            "image": image,
            "identity": _mean([one.identity_scores for one in found]),
            "images": [{"name": one.name, **one.scores} for one in found],
        }
        add_to_json(self.json_path, "annotators", scores)
        report.save_figure(self._figure(found, image), self.sheet_path)
        for name, value in image.items():
            logger.info("%s = %.4f", name, value)
        logger.info("How the annotators' matrices were estimated is in %s and %s", self.json_path, self.sheet_path)

    def _measure(self, index: int) -> _Measured:
        item = self.dataset[index]
        label, counts = item["label"], count_drawings(self.simulate, item["label"], self.num_draws)[None]
        if self.mask_key is not None:  # only now: drawings are made of the whole mask
            label = OutsideToUnlabeled()(label, item[self.mask_key])
        label = torch.as_tensor(label).as_subclass(Tensor)[None].long()
        cm = self._estimated(item["image"])
        never_errs = identity(cm.shape[2]).view(*cm.shape[2:4], *(1,) * (cm.ndim - 4)).expand_as(cm)
        tables = [metrics.mean_confusion(cm.double(), label, weight=counts.sum(2))]
        tables.append(metrics.repeated_confusion(counts, label))
        drawn = self._as_drawn(cm)
        name = Path(str(item["image"].meta["filename_or_obj"])).name
        return _Measured(
            name,
            confusion_scores(drawn, counts, label, self.names),
            confusion_scores(self._as_drawn(never_errs), counts, label, self.names),
            torch.cat(tables),
            self._case(name, item, label, counts, drawn) if index < self.max_cases else None,
        )

    def _estimated(self, image: Any) -> Tensor:
        """The matrices that are scored, (1, R + C, observed, true, *S)."""
        image = torch.as_tensor(image).as_subclass(Tensor)[None].float()
        if self.tables is not None:
            size = image.shape[2:]
            return self.tables.view(1, *self.tables.shape, *(1,) * len(size)).expand(1, *self.tables.shape, *size)
        return estimate(self.model, image.to(next(self.model.parameters()).device), self.inferer).cm.cpu()

    @property
    def transition(self) -> Tensor:
        """M as it is now: a learned one changes when weights are loaded."""
        return transition_of(self.model, self.loss)

    def _as_drawn(self, cm: Tensor) -> Tensor:
        """What is seen of the matrices: `A` of positive annotators, `M A` of negative ones."""
        return as_drawn(cm, self.model.annotator.num_positive, self.transition)

    def _case(
        self, name: str, item: Mapping[str, Any], label: Tensor, counts: Tensor, drawn: Tensor
    ) -> report.ConfusionCase:
        spatial_dims = label.ndim - 2

        def cut(values: Any) -> Tensor:
            values = torch.as_tensor(values).as_subclass(Tensor)
            flat = middle(values.flatten(0, -spatial_dims - 1), self.size, 1)
            return torch.unflatten(flat, 0, values.shape[:-spatial_dims]).clone()  # a view would keep the whole alive

        drawings = [one for key in ("positive", "negative") if key in item for one in cut(item[key])]
        share = counts / counts.sum(2, keepdim=True)
        maps = [AnnotatorMaps(*one) for one in zip(self.names, drawings, cut(drawn[0]), cut(share[0]), strict=True)]
        return report.ConfusionCase(name, cut(item[self.shown_key]), cut(label[0]), maps)

    def _figure(self, found: Sequence[_Measured], scores: Mapping[str, float]) -> Any:
        estimated, counted = torch.stack([one.tables for one in found]).nanmean(0).numpy()
        groups = []
        for name, a, true in zip(self.names, estimated, counted, strict=True):
            kind = name.split("_")[0]
            to_drawn = None if kind == "positive" else self.transition.double().numpy()
            _, matrices = annotator_group(kind, a, to_drawn, true)
            errors = (number_text(scores[f"{score}_{name}"], 3) for score in ("cm_error", "cm_error_local"))
            whose = f"{kind.capitalize()} annotator{name.removeprefix(kind).replace('_', ' ')}"
            heading = "{}   RMSE {}, pixel by pixel {}".format(whose, *errors)
            groups.append((heading, matrices))
        title = f"Annotators, estimated and true: {self.num_draws} drawings of each mask, {len(found)} images"
        cases = [one.case for one in found if one.case is not None]
        return report.confusion_sheet(cases, groups, self.class_names, title)


class _Measured(NamedTuple):
    """What is kept of an image."""

    name: str
    scores: dict[str, float]
    identity_scores: dict[str, float]
    tables: Tensor  # (estimated A or true of what was drawn, R + C, L, L)
    case: report.ConfusionCase | None


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over images of each score, where it is defined."""
    means = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64).nanmean(0)
    return dict(zip(rows[0], means.tolist(), strict=True))


def _names(kind: str, number: int) -> list[str]:
    return [kind] if number == 1 else [f"{kind}_{r + 1}" for r in range(number)]
