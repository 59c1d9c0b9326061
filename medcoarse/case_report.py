"""A report of what a network says of some cases: outlines, how unsure it is, sizes with an interval, where it is from.

Convention: probabilities are those of the network at a temperature, see :func:`medcoarse.calibration.fit_temperature`.
Without masks of other images there is no telling whether they can be believed, and the report says so.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from json import loads
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor
from tqdm import tqdm

from medcoarse import calibration, reliability
from medcoarse.case_page import Slice, case_page
from medcoarse.confusion import UNLABELED, Annotations
from medcoarse.estimation import as_drawn, estimate
from medcoarse.files import plain, write_atomically, write_json
from medcoarse.inspection import sha256_of
from medcoarse.losses import CoupledLoss, consensus
from medcoarse.metrics import conditional_table
from medcoarse.monitoring import transition_of
from medcoarse.networks import CoupledModel

logger = logging.getLogger(__name__)

COVERAGE = 0.95
NUM_BINS = 10

_SHOWN_VALUES = ("--config_file", "--config-file", "--meta_file")


class CaseReport:
    """Report on some cases: `case_report.html`, one file that shows everything, and `case_report.json`.

    The JSON holds the numbers of the page: of each case the size of every class (see :func:`class_sizes`), the mean
    entropy, the slices that are shown and why; of the annotators who drew the case how each is estimated to err; the
    temperature, with calibration error, Brier score and likelihood at it and without it; and where it all is from.

    Nothing says whose images these are: cases are numbered, folders and files are not named, nor are the values of the
    command's options. A name that is burnt into an image is shown with the image.

    Args:
        network: gives logits (B, L, *S), with trained weights by the time it is called; a
            :class:`medcoarse.networks.CoupledModel` for the annotators as well.
        dataset: the cases; items with an image (C, *S); a field of view `mask` (1, *S), outside which nothing counts,
            where there is one; and, for the annotators, drawings `positive` and `negative`.
        inferer: as for the network.
        class_names: of the L classes.
        directory: where the two files are written.
        held_out: items with image and `label_key`, neither trained on nor in `dataset`, that the temperature is fitted
            to. Nothing or no item leaves the probabilities as they are.
        spacing: "mm" for images whose affine is in mm, as of NIfTI and DICOM; mm per pixel of the file along each axis
            for others, as photographs; ``None`` where it is not known: sizes are then in pixels or voxels of the file.
        weights: the file of the weights, for its checksum.
        metadata: the bundle's `metadata.json`, for its name and version.
        shown_key: the image to show where it is not the one that the network gets.
        loss: holds the fixed transition matrix of negative annotators.
        annotator_names: R + C names, positive first.
        num_slices: of a volume, so many with most structure and as many with most uncertainty.
        show_names: name files, and the values of the command's options. Names may be those of patients.
        label_key: of the classes (1, *S) of held-out items, 255 where unknown; several channels are drawings of as many
            people, and count where most of them agree.
        held_out_kind: "masks", or "drawings": what is drawn is rarely where a network errs, and the page says so.

    Raises:
        ValueError: when called, no case, or a network with another number of classes.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        dataset: Any,
        inferer: Inferer,
        class_names: Sequence[str],
        directory: str | Path,
        held_out: Any = None,
        spacing: str | Sequence[float] | None = None,
        weights: str | Path | None = None,
        metadata: str | Path | None = None,
        shown_key: str = "image",
        loss: CoupledLoss | None = None,
        annotator_names: Sequence[str] | None = None,
        num_slices: int = 2,
        show_names: bool = False,
        label_key: str = "label",
        held_out_kind: str = "masks",
    ) -> None:
        self.network, self.dataset, self.inferer = network, dataset, inferer
        self.class_names, self.directory = tuple(class_names), Path(directory)
        self.held_out, self.spacing, self.weights, self.metadata = held_out, spacing, weights, metadata
        self.shown_key, self.loss, self.annotator_names = shown_key, loss, annotator_names
        self.num_slices, self.show_names = num_slices, show_names
        self.label_key, self.held_out_kind = label_key, held_out_kind

    def __call__(self) -> dict[str, Any]:
        """See the class; returns what the JSON holds."""
        if not len(self.dataset):
            raise ValueError("there is nothing to report: the data set is empty")
        calibrated = self._calibrate()
        cases, slices = [], []
        for n in tqdm(range(len(self.dataset)), "Reporting", disable=not sys.stderr.isatty()):
            case, shown = self._case(n, calibrated["temperature"])
            cases.append(case)
            slices.append(shown)
        content = {
            "class_names": list(self.class_names),
            "coverage": COVERAGE,
            "calibration": calibrated,
            "cases": cases,
            "provenance": self._provenance(),
        }
        page = case_page(content, slices).encode()
        write_json(self.directory / "case_report.json", plain(content))
        write_atomically(self.directory / "case_report.html", lambda file: file.write(page))
        logger.info("The report is in %s", self.directory / "case_report.html")
        return content

    def _logits(self, image: Any) -> Tensor:
        """(1, L, *S) on the CPU."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        with eval_mode(self.network):  # without gradients, too
            logits = self.inferer(_tensor(image)[None].float().to(device), self.network)
        if not isinstance(logits, Tensor) or logits.shape[1] != len(self.class_names):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the network must give {len(self.class_names)} classes, one a class name, got {got}")
        return logits.as_subclass(Tensor).float().cpu()

    def _calibrate(self) -> dict[str, Any]:
        """The temperature, and what it is worth: measured on each image with that of the others, where there are."""
        held_out = () if self.held_out is None else self.held_out
        items = [held_out[n] for n in range(len(held_out))]
        seen = [(self._logits(item["image"]), self._drawn_or_masked(item)) for item in items]
        known = [(scores, label) for scores, label in seen if (label != UNLABELED).any()]
        if not known:
            return {"calibrated": False, "temperature": 1.0, "num_images": 0}
        logits, labels = ([pair[n] for pair in known] for n in (0, 1))
        temperature = calibration.fit_temperature(logits, labels)
        used = [temperature]
        if len(known) > 1:
            others = [[pair for pair in known if pair is not one] for one in known]
            used = [calibration.fit_temperature(*zip(*rest, strict=True)) for rest in others]
        low, high = calibration.TEMPERATURES
        return {
            "calibrated": True,
            "against": self.held_out_kind,
            "temperature": temperature,
            "at_limit": not 1.01 * low < temperature < high / 1.01,
            "num_images": len(known),
            "num_pixels": int(sum((label != UNLABELED).sum() for label in labels)),
            "measured_on": "left out" if len(known) > 1 else "fitted",
            "before": self._quality(logits, labels, [1.0] * len(known)),
            "after": self._quality(logits, labels, used),
        }

    def _drawn_or_masked(self, item: Any) -> Tensor:
        return consensus(Annotations(_tensor(item[self.label_key])[None]), len(self.class_names))

    def _quality(self, logits: Sequence[Tensor], labels: Sequence[Tensor], temperatures: Sequence[float]) -> Any:
        """Calibration error, Brier score and likelihood over all pixels, each image at its temperature."""
        class_index = 1 if len(self.class_names) == 2 else None
        table, sums = torch.zeros(NUM_BINS, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for z, label, t in zip(logits, labels, temperatures, strict=True):
            table += calibration.reliability_table(z / t, label, NUM_BINS, class_index, softmax=True)[0]
            sums += calibration.scoring_sums(z / t, label, softmax=True)[0]
        return {
            "ece": calibration.expected_calibration_error(table).item(),
            "brier": calibration.brier_score(sums).item(),
            "nll": calibration.negative_log_likelihood(sums).item(),
            "bins": [{"pixels": int(n), "probability": p / n, "hits": hits / n} for n, p, hits in table.tolist() if n],
        }

    def _case(self, index: int, temperature: float) -> tuple[dict[str, Any], list[Slice]]:
        item = self.dataset[index]
        image = item["image"]
        probs = (self._logits(image)[0] / temperature).softmax(0)
        inside = _tensor(item["mask"])[0] != 0 if "mask" in item else torch.ones(probs.shape[1:], dtype=torch.bool)
        entropy, classes = entropy_of(probs) * inside, probs.argmax(0) * inside
        voxel, unit = self._voxel(image)
        chosen = chosen_slices(classes != 0, entropy, self.num_slices)
        aspect = voxel[1] / voxel[0]
        slices = [
            Slice(_cut(_tensor(item[self.shown_key]), n), _cut(classes, n), _cut(entropy, n), aspect, why, n)
            for n, why in chosen
        ]
        files = _files(image)
        case = {
            "name": f"case {index + 1}" + (f": {Path(files[0]).name}" if self.show_names and files else ""),
            "image_sha256": [sha256_of(Path(file)) for file in files if Path(file).is_file()],
            "shape": list(classes.shape),
            "voxel": voxel,
            "unit": unit,
            "field_of_view": inside.double().mean().item(),
            "mean_entropy": _mean_where(entropy, inside),
            "entropy_of_structure": _mean_where(entropy, classes != 0),
            "classes": [
                {"name": name} | size
                for name, size in zip(self.class_names, class_sizes(probs[:, inside], math.prod(voxel)), strict=True)
            ],
            "slices": [{"slice": n, "why": why} for n, why in chosen],
            "annotators": self._annotators(item, probs),
        }
        return case, slices

    def _voxel(self, image: Any) -> tuple[list[float], str]:
        """Size of a voxel of the network's grid along each axis, and the unit of its area or volume."""
        dims = image.ndim - 1
        scale = image.pixdim.tolist()[:dims] if isinstance(image, MetaTensor) else [1.0] * dims
        if self.spacing is None:
            return scale, ("pixels", "voxels")[dims - 2]
        if isinstance(self.spacing, str):
            if self.spacing != "mm" or not isinstance(image, MetaTensor):
                raise ValueError(
                    f"spacing must be 'mm' for images with an affine, mm along each axis, or None, got {self.spacing!r}"
                )
            return scale, ("mm²", "mm³")[dims - 2]
        if len(self.spacing) != dims:
            raise ValueError(f"spacing must have {dims} numbers, one an axis, got {list(self.spacing)}")
        return [mm * s for mm, s in zip(self.spacing, scale, strict=True)], ("mm²", "mm³")[dims - 2]

    def _annotators(self, item: Mapping[str, Any], probs: Tensor) -> list[dict[str, Any]]:
        """How each who drew the case is estimated to err on it, and what was counted of the drawing."""
        drawings = {key: _tensor(item[key])[None] for key in ("positive", "negative") if key in item}
        if not drawings or not isinstance(self.network, CoupledModel):
            return []
        annotations, annotator = Annotations(**drawings), self.network.annotator
        kinds = reliability.kinds_of(annotations)
        if kinds != ["positive"] * annotator.num_positive + ["negative"] * annotator.num_negative:
            raise ValueError(f"the network knows other annotators than the case has drawings by, which are {kinds}")
        if annotator.num_negative and self.loss is None:
            raise ValueError("negative annotators need the loss, which holds the transition matrix")
        device = next(self.network.parameters()).device
        cm = estimate(self.network, _tensor(item["image"])[None].float().to(device), self.inferer).cm.cpu()
        if self.loss is not None:
            cm = as_drawn(cm, annotator.num_positive, transition_of(self.network, self.loss))
        expected = conditional_table(reliability.expected_counts(cm, probs[None])[0])
        drawn = reliability.drawn_counts(annotations, probs[None])[0]
        names = self.annotator_names or [f"{kind} {r + 1}" for r, kind in enumerate(kinds)]
        return [
            {
                "name": name,
                "kind": kind,
                "drew": bool(drawn[r].sum() > 0),
                "confusion": expected[r].tolist(),
                "counted": conditional_table(drawn[r]).tolist(),
            }
            for r, (name, kind) in enumerate(zip(names, kinds, strict=True))
        ]

    def _provenance(self) -> dict[str, Any]:
        bundle = loads(Path(self.metadata).read_text(encoding="utf-8")) if self.metadata else {}
        return {
            "bundle": bundle.get("name"),
            "version": bundle.get("version"),
            "weights_sha256": sha256_of(Path(self.weights)) if self.weights else None,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shown_command(sys.argv, self.show_names),
            "software": {name: version(name) for name in ("medcoarse", "monai", "torch")},
        }


class Size(NamedTuple):
    """Of a class: area or volume."""

    segmented: float
    expected: float
    low: float
    high: float
    std_if_independent: float


def class_sizes(probs: Tensor, voxel: float = 1.0, coverage: float = COVERAGE) -> list[dict[str, float]]:
    """How large each class is, and between which sizes it lies if the probabilities can be believed.

    - `segmented`: of the pixels whose most likely class it is.
    - `expected`: `sum_x p_k(x)`.
    - `low`, `high`: the quantiles of the size where all pixels err together: one number u, uniform in [0, 1], decides
      for all, and the class is where `p_k > u`. So they are the sizes at the thresholds (1 + coverage) / 2 and
      (1 - coverage) / 2. Errors of a segmentation go together over whole structures; independent ones would cancel out.
    - `std_if_independent`: standard deviation of the size where each pixel errs by itself,
      `sqrt(sum_x p_k (1 - p_k))`: the other end, which no segmentation comes near.

    Args:
        probs: (L, *S).
        voxel: area or volume of a pixel.
        coverage: of the interval, in (0, 1).

    Returns:
        One dictionary a class.

    Example:
        >>> class_sizes(torch.tensor([[0.99, 0.9, 0.01], [0.01, 0.1, 0.99]]), voxel=2.0)[1]["high"]
        4.0
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage}")
    p = probs.double().flatten(1)
    most = p.argmax(0)
    return [
        Size(
            voxel * int((most == k).sum()),
            voxel * p[k].sum().item(),
            voxel * int((p[k] >= (1 + coverage) / 2).sum()),
            voxel * int((p[k] >= (1 - coverage) / 2).sum()),
            voxel * (p[k] * (1 - p[k])).sum().sqrt().item(),
        )._asdict()
        for k in range(len(p))
    ]


def entropy_of(probs: Tensor) -> Tensor:
    """Entropy (*S) of class probabilities (L, *S), as a share of the largest there can be, log L.

    Example:
        >>> entropy_of(torch.tensor([[0.5, 1.0], [0.5, 0.0]]))
        tensor([1., 0.])
    """
    entropy: Tensor = torch.special.entr(probs).sum(0) / math.log(len(probs))
    return entropy


def chosen_slices(structure: Tensor, uncertainty: Tensor, number: int) -> list[tuple[int | None, str]]:
    """The slices along the last axis with most structure and those with most uncertainty, and which they are.

    Neighbours show the same, so slices stay a twelfth of the volume apart where there is room for it.

    Args:
        structure: bool (X, Y, Z); of a picture (X, Y) there is one slice, None.
        uncertainty: alike.
        number: of each kind.

    Example:
        >>> filled = torch.zeros(2, 2, 4, dtype=torch.bool)
        >>> filled[..., 2] = True
        >>> chosen_slices(filled, torch.arange(16.0).reshape(2, 2, 4), 1)
        [(2, 'most structure'), (3, 'most uncertainty')]
    """
    if structure.ndim == 2:
        return [(None, "")]
    found: dict[int, str] = {}
    apart = structure.shape[-1] // 12
    for values, why in ((structure.double(), "most structure"), (uncertainty.double(), "most uncertainty")):
        sums = values.sum((0, 1))
        own: list[int] = []
        for n in sums.argsort(descending=True, stable=True).tolist():
            if len(own) < number and sums[n] > 0 and all(abs(n - other) > apart for other in own):
                own.append(n)
                found[n] = f"{found[n]} and {why.split()[-1]}" if n in found else why
    if not found:  # nothing segmented, and sure of it
        found[structure.shape[-1] // 2] = "the middle"
    return sorted(found.items())


def shown_command(arguments: Sequence[str], show_values: bool) -> str:
    """The command, without the values of its options, which may name patients.

    Example:
        >>> shown_command(["a/report.py", "run", "--config_file", "b.json", "--dataset_dir", "/Nora"], False)
        'report.py run --config_file b.json --dataset_dir …'
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.parent if spec and Path(arguments[0]).name == "__main__.py" else None
    shown, option = [f"python -m {module}" if module else Path(arguments[0]).name], ""
    for argument in arguments[1:]:
        if argument.startswith("--"):
            option, equals, _ = argument.partition("=")
            hidden = equals and not show_values and option not in _SHOWN_VALUES
            shown.append(f"{option}=…" if hidden else argument)
        else:
            shown.append(argument if show_values or option in ("", *_SHOWN_VALUES) else "…")
    return " ".join(shown)


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values).as_subclass(Tensor).cpu()


def _cut(values: Tensor, plane: int | None) -> np.ndarray[Any, Any]:
    return (values if plane is None else values[..., plane]).numpy()


def _files(image: Any) -> list[str]:
    named = getattr(image, "meta", {}).get("filename_or_obj", [])
    return [str(named)] if isinstance(named, str | Path) else [str(name) for name in named]


def _mean_where(values: Tensor, where: Tensor) -> float:
    """NaN where there is nothing."""
    return values[where].double().mean().item()
