"""How well the segmentations that a model gives of an image match the annotations that people would give of it.

One definition for all methods: a model has members, each with class probabilities at every pixel. Of coupled networks a
member is what an annotator would draw, `A_r p`; of one network per annotator, what that network says; of a
Probabilistic U-Net, one sample of the latent variable. Label maps of the members, the same number of each, are compared
with the annotations by the generalized energy distance. Both sets are taken for the distributions themselves. Samples
only stand for a distribution: of n random ones the distance is, on average, larger than that of the distribution by its
spread `E d(S, S')` over n, so take many.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor

from medcoarse.distributions import Overlap, generalized_energy_distance
from medcoarse.files import add_to_json
from medcoarse.networks import CoupledModel

logger = logging.getLogger(__name__)

_BLOCK_NUMBERS = 1 << 22  # numbers of a class held at a time, 16 MB in single precision


def members(model: CoupledModel, image: Tensor, learned: bool = True) -> Tensor:
    """Class probabilities of each member: the segmenter's own where it has several, else `A_r p` of each annotator.

    Args:
        model: the coupled model. A segmenter that has several gives them as `segmenter.members(image)`.
        image: (B, C, *S).
        learned: whether training touched the matrices. Where it did not, they say nothing of anybody, and there is one
            member, the segmentation.

    Returns:
        (B, N, L, *S), sums over L are 1.

    Raises:
        ValueError: there is no positive annotator.

    Example:
        >>> from medcoarse.networks import AnnotatorNet
        >>> segmenter, annotator = torch.nn.Conv2d(1, 2, 1), AnnotatorNet(None, 2, 0, 2, 5, 0, structure="global")
        >>> members(CoupledModel(segmenter, annotator), torch.rand(1, 1, 8, 8)).shape
        torch.Size([1, 5, 2, 8, 8])
    """
    own = getattr(model.segmenter, "members", None)
    if own is not None:
        probs: Tensor = own(image)
        return probs
    output = model.couple(image)
    if not learned:
        return output.logits.float().softmax(1)[:, None]
    if output.positive is None:
        raise ValueError("the model has no positive annotators: there is only one segmentation of an image")
    return output.positive.log_annotate(output.logits.float().log_softmax(1)).exp()


def label_maps(probs: Tensor, num_samples: int | None = None, seed: int = 0) -> Tensor:
    """The set of label maps that members stand for.

    One label map of a member is its most likely one. Several are samples in which all pixels share their chance:
    `argmax_k (log p_k(x) + g_k)` with one vector g of independent standard Gumbel numbers for all x. A pixel has class
    k in a share `p_k(x)` of them, and what is unsure changes as a whole, as a border that is drawn farther out or in;
    pixels that are sampled one by one make noise that nobody draws. The chances of a member are its own stretch of a
    scrambled Sobol sequence, which spreads a few samples more evenly than independent numbers.

    Args:
        probs: class probabilities of the members (B, N, L, *S).
        num_samples: of all members together, n = num_samples // N of each. Below 2 N, and with `None`, that is one of
            each, the most likely.
        seed: of the chances.

    Returns:
        uint8 (B, N n, *S), the n of a member side by side.

    Raises:
        ValueError: fewer than one sample.

    Source: Gumbel, Statistical Theory of Extreme Values, 1954; that the pixels share the vector is ours.

    Example:
        >>> probs = torch.tensor([[[[0.9, 0.7, 0.4], [0.1, 0.3, 0.6]]]])
        >>> label_maps(probs).tolist()
        [[[0, 0, 1]]]
        >>> label_maps(probs, num_samples=1000).float().mean(1).round(decimals=1)  # a pixel keeps its probabilities
        tensor([[0.1000, 0.3000, 0.6000]])
    """
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    each = max(1, (num_samples or 1) // probs.shape[1])
    if each == 1:
        return _likeliest(probs)
    sequence: Any = torch.quasirandom.SobolEngine  # has no types
    number, num_classes = probs.shape[1:3]
    uniform = sequence(num_classes, scramble=True, seed=seed).draw(number * each).clamp(1e-6, 1 - 1e-6)
    chances = -(-uniform.log()).log().to(probs)
    shaped = chances.view(number, each, num_classes, *(1,) * (probs.ndim - 3))
    at_once = max(1, _BLOCK_NUMBERS // probs[:, :, 0].numel())
    log_probs = probs.log()[:, :, None]
    blocks = [_likeliest(log_probs + block, dim=3) for block in shaped.split(at_once, dim=1)]
    return torch.cat(blocks, 2).flatten(1, 2)


def _likeliest(scores: Tensor, dim: int = 2) -> Tensor:
    """uint8 label maps, the first of the best; `argmax` over few, strided classes is several times slower."""
    best, *others = scores.unbind(dim)
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for k, one in enumerate(others, start=1):
        labels.masked_fill_(one > best, k)
        best = torch.maximum(best, one)
    return labels


class DistributionReport:
    """While an evaluation runs, compare sets of label maps with sets of annotations: `distribution` in its JSON.

    The JSON gets `num_images`, `image` (mean over the images of `ged_dice` and `ged_iou`, the squared distance by
    1 - Dice and by 1 - IoU of the classes but background) and `images` (the same of each, and the sizes of both sets).

    Args:
        model: the coupled model, its weights loaded by the time the evaluation starts.
        inferer: as for the segmenter; the members' probabilities are blended before label maps are made of them.
        num_classes: L.
        json_path: gets the scores; what it holds already stays.
        annotations_key: key of the annotations (R, *S) in a batch.
        mask_key: key of the field of view outside of which nothing is compared.
        num_samples: see :func:`label_maps`.
        learned: see :func:`members`.
        seed: of the samples; every image has its own.

    Source: Kohl et al., A Probabilistic U-Net, NeurIPS 2018; DHE, experiments.
    """

    def __init__(
        self,
        model: CoupledModel,
        inferer: Inferer,
        num_classes: int,
        json_path: str | Path,
        annotations_key: str = "positive",
        mask_key: str | None = None,
        num_samples: int | None = None,
        learned: bool = True,
        seed: int = 0,
    ) -> None:
        self.model, self.inferer, self.num_classes, self.json_path = model, inferer, num_classes, Path(json_path)
        self.annotations_key, self.mask_key, self.num_samples, self.seed = annotations_key, mask_key, num_samples, seed
        self.learned = learned
        self.images: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Follow the evaluation; list it behind the handler that writes the JSON."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self.images = []

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.batch:
            if self.annotations_key not in item:
                raise ValueError(
                    f"the evaluated items have no {self.annotations_key!r} to compare with, they have "
                    f"{', '.join(map(str, item))}; simulate or load annotations of them, too"
                )
            name = Path(str(item["image"].meta["filename_or_obj"])).name
            drawn, mask = self._batch(item, self.annotations_key), None
            if self.mask_key is not None:
                mask = self._batch(item, self.mask_key)
            segmented = self.segment(self._batch(item, "image").float())
            sizes = {"num_segmentations": segmented.shape[1], "num_annotations": drawn.shape[1]}
            scores = {
                f"ged_{overlap}": generalized_energy_distance(segmented, drawn, self.num_classes, overlap, mask=mask)
                for overlap in get_args(Overlap)
            }
            self.images.append({"name": name, **sizes, **{key: value.item() for key, value in scores.items()}})

    def _batch(self, item: Mapping[str, Any], key: str) -> Tensor:
        """An entry of an item as a batch of one, where the model is."""
        device = next(self.model.parameters()).device
        return torch.as_tensor(item[key]).as_subclass(Tensor)[None].to(device)

    def segment(self, image: Tensor) -> Tensor:
        """The set of label maps (1, N, *S) of an image (1, C, *S) of any size."""

        def flat(patch: Tensor) -> Tensor:
            return members(self.model, patch, self.learned).flatten(1, 2)

        with eval_mode(self.model):  # without gradients, too
            found = torch.as_tensor(self.inferer(image, flat)).as_subclass(Tensor)
        return label_maps(
            torch.unflatten(found, 1, (-1, self.num_classes)), self.num_samples, self.seed + len(self.images)
        )

    def _write(self, engine: Engine) -> None:
        numbers = torch.tensor([[one["ged_dice"], one["ged_iou"]] for one in self.images], dtype=torch.float64)
        mean = dict(zip(("ged_dice", "ged_iou"), numbers.nanmean(0).tolist(), strict=True))
        scores = {"num_images": len(self.images), "image": mean, "images": self.images}
        add_to_json(self.json_path, "distribution", scores)
        for name, value in mean.items():
            logger.info("%s = %.4f", name, value)
        logger.info("How segmentations match annotations, image by image, is in %s", self.json_path)
