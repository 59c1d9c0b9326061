"""The annotators of a data set, reviewed from their drawings and what the networks learned: whom to trust, which
drawings to send back, whom to ask next. Nothing here needs a dense mask.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers import Inferer
from monai.networks.utils import one_hot
from torch import Tensor
from tqdm import tqdm

from medcoarse import reliability
from medcoarse.confusion import UNLABELED, Annotations
from medcoarse.estimation import Estimate, as_drawn, estimate
from medcoarse.files import plain, short_names, write_atomically, write_json
from medcoarse.inspection import PIL_SUFFIXES
from medcoarse.losses import CoupledLoss
from medcoarse.metrics import conditional_table
from medcoarse.monitoring import transition_of
from medcoarse.networks import CoupledModel
from medcoarse.review_page import Shown, review_page
from medcoarse.transforms.array import spacing_of
from medcoarse.transforms.planted import PLANTED_KEY

logger = logging.getLogger(__name__)


class AnnotatorReview:
    """Review who drew the images of a data set: `annotators.json` and `annotators.html`.

    The JSON, and the page that shows it, hold for each annotator the mean confusion matrix (`confusion`: estimated by
    the networks, on all images; `counted`: of what was drawn against the likeliest class); from what was drawn, the
    reliability with the bounds between which 95% of resampled sets of images lie, frequent errors in words, and by how
    much the drawings are too large or too small (`tendency`); the drawings that fit the estimated truth least, going
    half by what is usual of who drew them, with the regions that are likely wrong; and which image to draw next, and
    whom to ask (`ask_next`), of the data set and of a pool that nobody has drawn. The bounds say how much the images
    matter, not how far the estimated truth is from the truth. Lengths are in one `unit`: "mm", or "pixels" or "voxels"
    where nothing says how large these are, as in PNG.

    Where each is expected to err is shown on the three images with the most drawn foreground, one a case where file
    names tell (`case_of`), and is in the JSON as `error_grid`: the mean chance of an error over all images, in the
    fields of a grid that lies over each of them, 8 x 8, or 8 x 8 x 4 of volumes, along the axes of the image.

    Drawings that were made wrong on purpose, by :func:`medcoarse.transforms.planted.plant_errors`, tell how good the
    ranking is: `planted` in the JSON is :func:`medcoarse.reliability.planted_found`. The ranking does not look at them.

    Args:
        model: the coupled model, with trained weights by the time it is called.
        loss: holds the fixed transition matrix.
        dataset: items with an image and drawings `positive` and `negative` (at least one of them), such as the training
            images; one item an image.
        inferer: as for the segmenter.
        class_names: of the L classes.
        directory: where the two files are written.
        annotator_names: R + C names, positive first; by default "positive", "negative", or numbered.
        spacing: mm per voxel along each axis; by default that of each image, where it is a MetaTensor and its file no
            picture.
        num_worst: so many drawings are shown.
        num_questions: so many questions are listed.
        shown_key: the image to show where it is not the one that the networks get.
        seed: of the resampling.
        pool: items with an image alone, which nobody has drawn yet; ranked with the others to ask next.

    Raises:
        ValueError: names that do not match the model's annotators; drawings that do not, or none, when it is called;
            images with and without a spacing.
    """

    def __init__(
        self,
        model: CoupledModel,
        loss: CoupledLoss,
        dataset: Any,
        inferer: Inferer,
        class_names: Sequence[str],
        directory: str | Path,
        annotator_names: Sequence[str] | None = None,
        spacing: Sequence[float] | None = None,
        num_worst: int = 12,
        num_questions: int = 20,
        shown_key: str = "image",
        seed: int = 0,
        pool: Any = (),
    ) -> None:
        self.model, self.loss, self.dataset, self.inferer = model, loss, dataset, inferer
        self.class_names, self.directory = tuple(class_names), Path(directory)
        self.num_worst, self.num_questions = num_worst, num_questions
        self.spacing, self.shown_key, self.seed, self.pool = spacing, shown_key, seed, pool
        number = model.annotator.num_annotators
        self.names = tuple(
            annotator_names or _default_names(model.annotator.num_positive, model.annotator.num_negative)
        )
        if len(self.names) != number or len(set(self.names)) != number:
            raise ValueError(f"annotator_names must be {number} different names, got {', '.join(self.names)}")

    def __call__(self) -> None:
        """See the class."""
        numbers = range(len(self.dataset))
        if not numbers:
            raise ValueError("there is nothing to review: the data set is empty")
        looks = [self._look(n) for n in tqdm(numbers, "Reviewing", disable=not sys.stderr.isatty())]
        _require_one_unit(looks)
        undrawn = [self._glance(n) for n in tqdm(range(len(self.pool)), "Pool", disable=not sys.stderr.isatty())]
        names = short_names([look.file for look in looks] + [glance.file for glance in undrawn])
        quality = reliability.annotation_quality(torch.stack([look.drawn for look in looks]), self._kinds())
        suspicion = reliability.suspicion(quality)
        places = reliability.most_suspicious(suspicion, self.num_worst).tolist()
        worst = [divmod(place, quality.shape[1]) for place in places]
        content = self._content(looks, quality) | {
            "worst": [self._entry(names[n], quality[:, r], n, r) for n, r in worst],
            "ask_next": self._ask_next(looks, undrawn, names),
        }
        if any(errors := [look.planted for look in looks]):
            content["planted"] = reliability.planted_found(suspicion, errors)
        shown = [self._show(n, r, names[n]) for n, r in worst]
        for entry, one in zip(content["worst"], shown, strict=True):
            entry["regions"] = [region._asdict() for region in one.regions]
        erring = [self._show(n, None, names[n]) for n in self._most_drawn(looks)]
        write_json(self.directory / "annotators.json", plain(content))
        page = review_page(content, shown, erring).encode()
        write_atomically(self.directory / "annotators.html", lambda file: file.write(page))
        for one in content["annotators"]:
            logger.info("%s: reliability %.3f (%.3f to %.3f)", one["name"], *one["reliability"].values())
        for name, value in content.get("planted", {}).items():
            logger.info("planted %s: %s", name, value)
        logger.info("The review of the annotators is in %s", self.directory / "annotators.html")

    def _estimate(self, item: Mapping[str, Any]) -> tuple[Estimate, Annotations]:
        """What is estimated of an item, on the CPU and as it would be drawn, and what was drawn."""
        drawings = {key: _tensor(item[key])[None] for key in ("positive", "negative") if key in item}
        annotations, annotator = Annotations(**drawings), self.model.annotator
        drew = reliability.kinds_of(annotations)
        if drew != self._kinds():
            raise ValueError(
                f"the model has {annotator.num_positive} positive and {annotator.num_negative} negative annotators, "
                f"{_name(item)} has drawings by {drew.count('positive')} and {drew.count('negative')}"
            )
        return self._networks(item), annotations

    def _networks(self, item: Mapping[str, Any]) -> Estimate:
        image, annotator = _tensor(item["image"])[None].float(), self.model.annotator
        probs, cm = estimate(self.model, image.to(next(self.model.parameters()).device), self.inferer)
        transition = transition_of(self.model, self.loss)
        return Estimate(probs.cpu(), as_drawn(cm.cpu(), annotator.num_positive, transition))

    def _look(self, index: int) -> _Look:
        item = self.dataset[index]
        (probs, cm), annotations = self._estimate(item)
        kinds = reliability.kinds_of(annotations)
        likeliest = one_hot(probs.argmax(1, keepdim=True), probs.shape[1])
        return _Look(
            _file(item),
            reliability.expected_counts(cm, probs)[0],
            # not of the probabilities: a rare class has most of its own far from it, a percent at each voxel
            reliability.drawn_counts(annotations, likeliest)[0],
            reliability.error_grid(reliability.error_probability(cm, probs, kinds))[0],
            reliability.uncertainty(probs)[0],
            self._tendencies(probs, annotations, kinds, self._spacing(item)[0]),
            self._spacing(item)[1],
            item.get(PLANTED_KEY, {}).get("error"),
        )

    def _glance(self, index: int) -> _Glance:
        item = self.pool[index]
        probs, cm = self._networks(item)
        return _Glance(_file(item), reliability.expected_counts(cm, probs)[0], reliability.uncertainty(probs)[0])

    def _spacing(self, item: Mapping[str, Any]) -> tuple[Sequence[float], str]:
        """Of the image, whose grid is that of the drawings, and its unit."""
        image = item["image"]
        if self.spacing is not None:
            return self.spacing, "mm"
        if isinstance(image, MetaTensor) and not _file(item).lower().endswith(PIL_SUFFIXES):
            return spacing_of(image, None), "mm"
        return (1.0,) * (image.ndim - 1), "pixels" if image.ndim == 3 else "voxels"

    def _tendencies(
        self, probs: Tensor, annotations: Annotations, kinds: Sequence[str], spacing: Sequence[float]
    ) -> Tensor:
        """Lengths (R, L); NaN where a drawing has no outline of that class, as strokes have not."""
        truth, drawings = probs[0].argmax(0).numpy(), reliability.drawings_of(annotations)[0].numpy()
        found = torch.full((len(kinds), len(self.class_names)), math.nan, dtype=torch.float64)
        for r, kind in enumerate(kinds):
            if kind == "negative" and len(self.class_names) > 2:
                continue  # what is not ruled out is no structure
            for k in range(1, len(self.class_names)):
                meant = drawings[r] == k if kind == "positive" else drawings[r] == 0
                found[r, k] = reliability.tendency_mm(meant, truth == k, spacing, drawings[r] != UNLABELED)
        return found

    def _most_drawn(self, looks: Sequence[_Look], number: int = 3) -> list[int]:
        """The images with the most drawn foreground: one of each case, where names tell cases apart."""
        drawn = reliability.drawn_foreground(torch.stack([look.drawn for look in looks]), self._kinds()).tolist()
        order = sorted(range(len(looks)), key=lambda n: -drawn[n])
        first = set({case_of(looks[n].file): n for n in reversed(order)}.values())
        return sorted(order, key=lambda n: n not in first)[:number]

    def _show(self, index: int, who: int | None, name: str) -> Shown:
        """An image of the page: a drawing that fits badly, or where each annotator is expected to err."""
        item = self.dataset[index]
        (probs, cm), annotations = self._estimate(item)
        drawings, kinds = reliability.drawings_of(annotations)[0], reliability.kinds_of(annotations)
        errs = reliability.error_probability(cm, probs, kinds)[0]
        regions = []
        if who is not None:
            regions = reliability.suspicious_regions(drawings[who], probs[0], kinds[who], self._spacing(item)[0])
        image = _tensor(item[self.shown_key]).cpu()
        return Shown(name, self.names, kinds, who, image, drawings, probs[0], errs, regions)

    def _entry(self, image: str, quality: Tensor, n: int, r: int) -> dict[str, Any]:
        """A drawing that is likely wrong; `quality` is that of all drawings of its annotator."""
        return {
            "image": image,
            "annotator": self.names[r],
            "quality": quality[n].item(),
            "usual": quality.nanmedian().item(),
        }

    def _content(self, looks: Sequence[_Look], quality: Tensor) -> dict[str, Any]:
        expected, drawn = (torch.stack([getattr(look, name) for look in looks]) for name in ("expected", "drawn"))
        kinds = self._kinds()
        errs = torch.stack([look.errs for look in looks]).mean(0)
        trust = reliability.reliability(drawn, kinds, seed=self.seed)
        tendency = torch.stack([look.tendency for look in looks])
        annotators = [
            {
                "name": name,
                "kind": kinds[r],
                "num_images": int((~quality[:, r].isnan()).sum()),
                "reliability": {"score": trust[r].score, "low": trust[r].low, "high": trust[r].high},
                "confusion": conditional_table(expected[:, r].sum(0)).tolist(),
                "counted": trust[r].confusion.tolist(),
                "quality": quality[:, r].nanmedian().item(),
                "error_grid": errs[r].tolist(),
                "habits": [
                    habit._asdict() | {"text": habit_text(habit, self.class_names)}
                    for habit in (reliability.habits(drawn[:, r].sum(0)) if kinds[r] == "positive" else [])
                ],
                "tendency": self._tendency_of(tendency[:, r]),
            }
            for r, name in enumerate(self.names)
        ]
        return {
            "class_names": list(self.class_names),
            "unit": looks[0].unit,
            "num_images": len(looks),
            "annotators": sorted(annotators, key=_least_reliable_last),
        }

    def _ask_next(
        self, looks: Sequence[_Look], undrawn: Sequence[_Glance], names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Whom to ask about which image, with the names of those who drew it; nobody has drawn those of the pool."""
        seen = [_Glance(look.file, look.expected, look.uncertainty) for look in looks] + list(undrawn)
        drawn = torch.zeros(len(seen), len(self.names), dtype=torch.bool)
        drawn[: len(looks)] = torch.stack([look.drawn.sum((-2, -1)) > 0 for look in looks])
        uncertainties, counts = (
            torch.stack([one.uncertainty for one in seen]),
            torch.stack([one.expected for one in seen]),
        )
        return [
            one._asdict()
            | {"image": names[one.image], "annotator": self.names[one.annotator]}
            | {"drawn_by": [name for name, drew in zip(self.names, drawn[one.image], strict=True) if drew]}
            for one in reliability.next_questions(uncertainties, counts, self._kinds(), drawn)[: self.num_questions]
        ]

    def _kinds(self) -> list[reliability.Kind]:
        annotator = self.model.annotator
        kinds: list[reliability.Kind] = ["positive"] * annotator.num_positive
        return kinds + ["negative"] * annotator.num_negative

    def _tendency_of(self, values: Tensor) -> dict[str, dict[str, float]]:
        """Mean and spread over the images by class, of the classes that had an outline somewhere."""
        found = {}
        for k, name in enumerate(self.class_names):
            known = values[:, k][~values[:, k].isnan()]
            if len(known):
                found[name] = {"mean": known.mean().item(), "std": known.std(correction=0).item()}
        return found


def habit_text(habit: reliability.Habit, class_names: Sequence[str]) -> str:
    """A frequent error in words.

    Example:
        >>> habit_text(reliability.Habit("misses", 0, 1, 0.4), ["background", "vessel"])
        'leaves out 40% of vessel'
        >>> habit_text(reliability.Habit("swaps", 2, 1, 0.8), ["background", "core", "edema"])
        'swaps edema and core (80%)'
        >>> habit_text(reliability.Habit("confuses", 2, 1, 0.4, (1, 2)), ["background", "core", "edema"])
        'takes core for edema and the reverse on 40%'
    """
    drawn, true, share = class_names[habit.drawn], class_names[habit.true], f"{habit.share:.0%}"
    if len(habit.ring) > 2 or habit.name == "confuses":
        pairs = [f"{class_names[k]} for {class_names[o]}" for k, o in itertools.pairwise((*habit.ring, habit.ring[0]))]
        last = "the reverse" if len(pairs) == 2 else pairs[-1]
        return f"takes {', '.join(pairs[:-1])} and {last} on {share}"
    return {
        "swaps": f"swaps {drawn} and {true} ({share})",
        "mistakes": f"draws {drawn} on {share} of {true}",
        "misses": f"leaves out {share} of {true}",
        "adds": f"{share} of what is drawn as {drawn} is {true}",
    }[habit.name]


def case_of(file: str) -> str:
    """The case of an image, where its name or folder numbers cases as well as slices: without its last number.

    Example:
        >>> case_of("cases/patient07/image_012.nii.gz") == case_of("cases/patient07/image_003.nii.gz")
        True
        >>> case_of("images/case_12.png"), case_of("images/case1_slice012.png")
        ('images/case_12.png', 'images/case1_slice.png')
    """
    path = Path(file)
    named = f"{path.parent.name}/{path.name}"
    numbers = list(re.finditer(r"\d+", named))
    if len(numbers) < 2 or numbers[-1].start() < len(path.parent.name):
        return named
    first, last = numbers[-1].span()
    return named[:first] + named[last:]


class _Look(NamedTuple):
    """What is kept of an image."""

    file: str  # of the image
    expected: Tensor  # (R, observed, true)
    drawn: Tensor  # (R, observed, true)
    errs: Tensor  # (R, 8, 8) or (R, 8, 8, 4)
    uncertainty: Tensor  # ()
    tendency: Tensor  # (R, L)
    unit: str  # of the tendency
    planted: str | None  # the error that was made on purpose


class _Glance(NamedTuple):
    """What is kept of an image to ask about."""

    file: str
    expected: Tensor  # (R, observed, true)
    uncertainty: Tensor  # ()


def _require_one_unit(looks: Sequence[_Look]) -> None:
    names: dict[str, str] = {}
    for look in looks:
        names.setdefault(look.unit, Path(look.file).name)
    if len(names) > 1:
        which = ", ".join(f"{name} in {unit}" for unit, name in names.items())
        raise ValueError(f"lengths must have one unit, got {which}; pass spacing, or images that all have one")


def _least_reliable_last(annotator: Mapping[str, Any]) -> float:
    """To sort by; who drew nothing comes last of all."""
    score: float = annotator["reliability"]["score"]
    return math.inf if math.isnan(score) else -score


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values).as_subclass(Tensor)


def _file(item: Mapping[str, Any]) -> str:
    return str(getattr(item["image"], "meta", {}).get("filename_or_obj", "image"))


def _name(item: Mapping[str, Any]) -> str:
    return Path(_file(item)).name


def _default_names(num_positive: int, num_negative: int) -> list[str]:
    numbers = {"positive": num_positive, "negative": num_negative}
    return [kind if n == 1 else f"{kind} {r + 1}" for kind, n in numbers.items() for r in range(n)]
