"""Whether a network's probabilities can be believed, counted while an evaluation runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import decollate_batch
from monai.engines.utils import IterationEvents
from torch import Tensor

from medcoarse.calibration import (
    PIXELS,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_table,
    scoring_sums,
)
from medcoarse.files import add_to_json

logger = logging.getLogger(__name__)


class CalibrationReport:
    """While an evaluation runs, compare probabilities with the true label maps: `calibration` in its JSON.

    The JSON gets `num_images`, `num_pixels` and, over all the pixels of the data set whose class is known, `ece` (of
    the class that each pixel is given), `ece_CLASS` of each class but background, `brier` and `nll` (nats), see
    :mod:`medcoarse.calibration`. It looks at what the inferer gives, before the engine's postprocessing makes label
    maps of it, so the network runs once.

    Args:
        class_names: of the L classes, background first.
        json_path: gets the scores; what it holds already stays.
        mask_key: key of a field of view (1, *S) in the batch, outside of which nothing is compared.
        postprocessing: where labels are on another grid than the network's: makes of an item with `image`, `label` and
            class scores `pred` (L, *S) one whose `pred` is the probabilities at the label's pixels. By default `pred`
            goes through a softmax.
        num_bins: of probabilities.

    Raises:
        ValueError: while it runs, class names that are not as many as the classes, or shapes that do not match.

    Example:
        >>> import json, tempfile
        >>> from monai.engines import SupervisedEvaluator
        >>> class Unsure(torch.nn.Module):
        ...     def forward(self, image): return torch.zeros(len(image), 2, *image.shape[2:])
        >>> batch = {"image": torch.zeros(1, 1, 2, 2), "label": torch.tensor([[[[0, 1], [1, 255]]]])}
        >>> file = Path(tempfile.mkdtemp()) / "evaluation.json"
        >>> report = CalibrationReport(["background", "vessel"], file)
        >>> SupervisedEvaluator(torch.device("cpu"), [batch], Unsure(), val_handlers=[report]).run()
        >>> scores = json.loads(file.read_text())["calibration"]
        >>> scores["num_pixels"], round(scores["ece_vessel"], 3), scores["brier"]  # two of three were a vessel
        (3, 0.167, 0.5)
    """

    def __init__(
        self,
        class_names: Sequence[str],
        json_path: str | Path,
        mask_key: str | None = None,
        postprocessing: Callable[[Any], Mapping[str, Any]] | None = None,
        num_bins: int = 15,
    ) -> None:
        self.class_names, self.json_path = tuple(class_names), Path(json_path)
        self.mask_key, self.postprocessing, self.num_bins = mask_key, postprocessing, num_bins
        self._start()

    def attach(self, engine: Engine) -> None:
        """Follow a MONAI evaluator; list it behind the handler that writes the JSON."""
        engine.add_event_handler(Events.STARTED, lambda _: self._start())
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._count)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self) -> None:
        self.num_images = 0
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.tables = torch.zeros(len(self.class_names), self.num_bins, 3, dtype=torch.float64)  # first the confidence

    def _count(self, engine: Engine) -> None:
        masks = None if self.mask_key is None else engine.state.batch[self.mask_key]
        for n, item in enumerate(decollate_batch(engine.state.output)):
            scores = item["pred"] if self.postprocessing is None else self.postprocessing(item)["pred"]
            mask = None if masks is None else torch.as_tensor(masks[n])[None]
            self._add(torch.as_tensor(scores).float()[None], torch.as_tensor(item["label"])[None], mask)

    def _add(self, scores: Tensor, label: Tensor, mask: Tensor | None) -> None:
        if scores.shape[1] != len(self.class_names):
            raise ValueError(
                f"class_names has {len(self.class_names)} names ({', '.join(self.class_names)}), the network gives "
                f"{scores.shape[1]} classes; name each, background first"
            )
        softmax = self.postprocessing is None
        self.num_images += 1
        self.sums += scoring_sums(scores, label, mask, softmax)[0].cpu()
        for k in range(len(self.class_names)):
            self.tables[k] += reliability_table(scores, label, self.num_bins, k or None, mask, softmax)[0].cpu()

    def _write(self, engine: Engine) -> None:
        errors = expected_calibration_error(self.tables)
        scores = {
            "ece": errors[0],
            **{f"ece_{name}": error for name, error in zip(self.class_names[1:], errors[1:], strict=True)},
            "brier": brier_score(self.sums),
            "nll": negative_log_likelihood(self.sums),
        }
        found = {"num_images": self.num_images, "num_pixels": int(self.sums[PIXELS]), **scores}
        add_to_json(self.json_path, "calibration", found)
        for name, value in scores.items():
            logger.info("%s = %.4f", name, value)
