"""BoxSup: boxes around what was drawn, and in turn a region for each box and a network that learns the regions.

It uses the positive drawings, and of them only the bounding boxes; what was said of other pixels is left out.

Source: Dai, He and Sun, "BoxSup: Exploiting Bounding Boxes to Supervise Convolutional Networks for Semantic
    Segmentation" (ICCV 2015), after its description, with lambda = 3 and k = 5.
Deviates: boxes come from drawings. In place of MCG's proposals stand merged superpixels and levels of the intensity,
    sought in the box and half its size around it; they say nothing of the class. The cost of the network is the mean
    over the box. A box in which there is nothing to propose stays a rectangle. Dice stands beside cross-entropy unless
    it is left out.
"""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.inferers import Inferer
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import slic
from torch import nn

from medcoarse.baselines.soft_labels import HardLabels, Numbered, Relabelling, agreed_drawing
from medcoarse.confusion import UNLABELED


class Box(NamedTuple):
    """A class and where it is."""

    class_index: int
    place: tuple[slice, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Along every axis, in pixels."""
        return tuple(part.stop - part.start for part in self.place)


class Regions(NamedTuple):
    """Candidates of a box, each a union of parts: what they cost is summed up over parts, not over pixels.

    Args:
        parts: number of the part at every pixel of the box and what is around it, from 0.
        members: bool ``(N, parts)``, which parts a candidate has.
        place: of the box in ``parts``.
    """

    parts: NDArray[np.integer[Any]]
    members: NDArray[np.bool_]
    place: tuple[slice, ...]

    @property
    def inner(self) -> NDArray[np.integer[Any]]:
        """The parts in the box."""
        return np.asarray(self.parts[self.place])

    def masks(self) -> NDArray[np.bool_]:
        """What they are in the box, ``(N, *box)``."""
        return np.asarray(self.members[:, self.inner])


def boxes_of(label: NDArray[Any], num_classes: int, per_class: bool = False) -> list[Box]:
    """Bounding boxes of all classes but background.

    Args:
        label: ``(*S)``, classes or 255.
        num_classes: L.
        per_class: one box for all that is of a class; otherwise one for each component, by faces, edges and corners.

    Example:
        >>> [(box.class_index, box.size) for box in boxes_of(np.array([[1, 0, 0], [0, 1, 255], [0, 0, 2]]), 3)]
        [(1, (2, 2)), (2, (1, 1))]
        >>> len(boxes_of(np.array([1, 0, 1]), 2)), len(boxes_of(np.array([1, 0, 1]), 2, per_class=True))
        (2, 1)
    """
    neighbours = np.ones((3,) * label.ndim)
    found = []
    for k in range(1, num_classes):
        parts = (label == k).astype(np.int64) if per_class else ndimage.label(label == k, neighbours)[0]
        found += [Box(k, place) for place in ndimage.find_objects(parts)]
    return found


def around(place: tuple[slice, ...], size: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """A box with half its size around it, within the image, and where in that the box is.

    What reaches out of the box is hardly the object in it: without a look around, background would be as good.

    Example:
        >>> around((slice(1, 5),), (20,))
        ((slice(0, 7, None),), (slice(1, 5, None),))
    """
    outer = []
    for part, length in zip(place, size, strict=True):
        margin = -(-(part.stop - part.start) // 2)
        outer.append(slice(max(0, part.start - margin), min(length, part.stop + margin)))
    inner = (slice(part.start - out.start, part.stop - out.start) for part, out in zip(place, outer, strict=True))
    return tuple(outer), tuple(inner)


def propose(
    image: NDArray[Any],
    place: tuple[slice, ...],
    num_levels: int = 9,
    num_segments: int = 48,
    sigma: float = 1.0,
) -> list[Regions]:
    """Candidates of one box: what is above or below a level of the intensity, and merged superpixels.

    Args:
        image: of the box and what is around it, ``(channels, *size)``.
        place: of the box in it.
        num_levels: quantiles of the mean of the channels.
        num_segments: superpixels at most; those that look most alike are merged until one is left.
        sigma: standard deviation in pixels of the Gaussian that smooths the image first.

    Returns:
        Each differs from nothing and from everything in the box; no list element without candidates.

    Example:
        >>> image, everywhere = np.array([[[0.0, 0.0, 1.0, 1.0]] * 4]), (slice(0, 4), slice(0, 4))
        >>> levels, merged = propose(image, everywhere, num_levels=1, num_segments=4, sigma=0)
        >>> levels.masks()[:, 0].tolist()
        [[False, False, True, True], [True, True, False, False]]
        >>> len(merged.members)  # four superpixels, and two steps of merging
        6
    """
    image = np.asarray(image, dtype=np.float64)
    if math.prod(part.stop - part.start for part in place) < 4:
        return []
    smooth = ndimage.gaussian_filter(image, (0, *[sigma] * (image.ndim - 1)), mode="nearest")
    low, high = smooth.min(), smooth.max()
    if high == low:
        return []
    smooth = (smooth - low) / (high - low)
    families = [
        _proper(*_levels(smooth.mean(0), num_levels), place),
        _proper(*_merged(smooth, num_segments), place),
    ]
    return [regions for regions in families if len(regions.members)]


_Parts = tuple[NDArray[np.integer[Any]], NDArray[np.bool_]]


def _levels(intensity: NDArray[np.float64], number: int) -> _Parts:
    """Above and below each of the quantiles."""
    levels = np.unique(np.quantile(intensity, np.linspace(0, 1, number + 2)[1:-1]))
    parts = np.digitize(intensity, levels)
    above = np.arange(len(levels) + 1) >= np.arange(1, len(levels) + 1)[:, None]
    return parts, np.concatenate([above, ~above])


def _merged(image: NDArray[np.float64], number: int) -> _Parts:
    """Superpixels and what arises when the two neighbours most alike, by Ward's distance, are merged in turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of images with one pixel along an axis
        parts = slic(
            np.moveaxis(image, 0, -1), number, compactness=0.1, channel_axis=-1, convert2lab=False, start_label=0
        )
    count = int(parts.max()) + 1
    sizes = np.bincount(parts.ravel(), minlength=count).astype(np.float64)
    means = np.stack([np.bincount(parts.ravel(), one.ravel(), count) for one in image], 1) / sizes[:, None]
    touching = _touching(parts, count)
    members, current = [np.eye(count, dtype=np.bool_)], np.eye(count, dtype=np.bool_)
    for _ in range(count - 1):
        apart = ((means[:, None] - means) ** 2).sum(2) * sizes[:, None] * sizes / (sizes[:, None] + sizes)
        apart[~touching] = np.inf
        one, other = sorted(np.unravel_index(int(apart.argmin()), apart.shape))
        means[one] = (means[one] * sizes[one] + means[other] * sizes[other]) / (sizes[one] + sizes[other])
        sizes[one] += sizes[other]
        current[one] |= current[other]
        touching[one] |= touching[other]
        touching[:, one] |= touching[:, other]
        touching[one, one] = False
        touching[other], touching[:, other] = False, False
        members.append(current[[one]])
    return parts, np.concatenate(members)


def _touching(parts: NDArray[np.integer[Any]], count: int) -> NDArray[np.bool_]:
    """Which parts have a common face."""
    touching = np.zeros((count, count), dtype=np.bool_)
    for axis in range(parts.ndim):
        length = parts.shape[axis]
        first, second = (parts.take(range(start, start + length - 1), axis) for start in (0, 1))
        touching[first, second] = True
    touching |= touching.T
    np.fill_diagonal(touching, False)
    return touching


def _proper(parts: NDArray[np.integer[Any]], members: NDArray[np.bool_], place: tuple[slice, ...]) -> Regions:
    """Without candidates that are nothing or everything in the box, and each of them once."""
    everywhere, inside = (np.bincount(one.ravel(), minlength=members.shape[1]) > 0 for one in (parts, parts[place]))
    number = members[:, inside].sum(1)
    members = (members & everywhere)[(number > 0) & (number < inside.sum())]
    _, first = np.unique(members, axis=0, return_index=True)
    return Regions(parts.astype(np.int16), members[np.sort(first)], place)


def overlap_costs(regions: Regions) -> NDArray[np.float64]:
    """``E_o = 1 - IoU(box, bounding box of the candidate)``, for each candidate; no class of its own, so all agree.

    Example:
        >>> members = np.array([[True, False, True], [False, True, False]])
        >>> overlap_costs(Regions(np.array([0, 1, 1, 2]), members, (slice(0, 4),)))
        array([0. , 0.5])
        >>> overlap_costs(Regions(np.array([0, 1, 1, 1]), np.array([[False, True]]), (slice(0, 2),)))  # 1 pixel of 4
        array([0.75])
    """
    places = ndimage.find_objects(regions.parts.astype(np.int64) + 1, regions.members.shape[1])
    nowhere = tuple(slice(size, 0) for size in regions.parts.shape)
    ends = np.array([[(part.start, part.stop) for part in place or nowhere] for place in places])  # (parts, axes, 2)
    chosen = regions.members[:, :, None]
    start = np.where(chosen, ends[..., 0], np.array(regions.parts.shape)).min(1)
    stop = np.where(chosen, ends[..., 1], 0).max(1)
    box = np.array([(part.start, part.stop) for part in regions.place])
    common = (np.minimum(stop, box[:, 1]) - np.maximum(start, box[:, 0])).clip(0).prod(1)
    either = (stop - start).prod(1) + regions.inner.size - common
    return np.asarray(1 - common / either, dtype=np.float64)


def regression_costs(
    regions: Regions, inside: NDArray[np.float64], outside: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``E_r``: the network's cross-entropy for each candidate as the label of the box, mean over the box, in nats.

    Args:
        regions: N candidates.
        inside: ``-log p`` of the class of the box, ``(*box)``.
        outside: ``-log p`` of background.

    Example:
        >>> regions = Regions(np.array([0, 1]), np.array([[True, False], [False, True]]), (slice(0, 2),))
        >>> regression_costs(regions, np.array([0.1, 2.0]), np.array([3.0, 0.2]))  # (0.1 + 0.2) / 2 and (3 + 2) / 2
        array([0.15, 2.5 ])
    """
    count = regions.members.shape[1]
    sums = [np.bincount(regions.inner.ravel(), one.ravel(), count) for one in (inside, outside)]
    return np.asarray((regions.members @ sums[0] + ~regions.members @ sums[1]) / regions.inner.size)


def choose(
    families: list[Regions],
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    rng: np.random.Generator,
    regression_weight: float = 3.0,
    num_best: int = 5,
) -> NDArray[np.bool_]:
    """One candidate of a box, drawn uniformly among the ``k`` of the least ``E_o + lambda E_r``.

    Args:
        families: the candidates; with none of them the answer is the whole box.
        inside: see :func:`regression_costs`.
        outside: see there.
        rng: source of randomness.
        regression_weight: lambda.
        num_best: k; 1 takes the best.

    Returns:
        bool ``(*box)``.
    """
    if not families:
        return np.ones(inside.shape, dtype=np.bool_)
    costs = np.concatenate(
        [overlap_costs(one) + regression_weight * regression_costs(one, inside, outside) for one in families]
    )
    best = np.argsort(costs, kind="stable")[:num_best]
    number = int(best[rng.integers(len(best))])
    for regions in families:
        if number < len(regions.members):
            return np.asarray(regions.members[number][regions.inner])
        number -= len(regions.members)
    raise AssertionError("the number of a candidate is that of one of them")


class BoxSup(Relabelling):
    """BoxSup as a handler: at the start of epochs each box gets another region, which the network learns.

    In the first epoch the boxes are full: their rectangles are the regions. Outside all regions is background. Where
    boxes overlap, the smaller lies on top. An image on which nobody drew anything has no label.

    Args:
        network: the segmenter.
        dataset: items with an image ``(C, *S)`` and drawings, without random transforms.
        inferer: as for the segmenter.
        labels: where the labels go, by number of the item.
        num_classes: L.
        annotation_key: of the positive drawings ``(R, *S)``; several people's are a majority vote.
        per_class: see :func:`boxes_of`.
        regression_weight: lambda of :func:`choose`.
        num_best: k of it.
        interval: in epochs, from one choice to the next.
        seed: of the choice, which depends on seed, epoch and item alone, so that a resumed run repeats it.

    Raises:
        ValueError: a negative weight, or a number below 1.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Numbered,
        inferer: Inferer,
        labels: HardLabels,
        num_classes: int,
        annotation_key: str = "positive",
        per_class: bool = False,
        regression_weight: float = 3.0,
        num_best: int = 5,
        interval: int = 1,
        seed: int = 0,
    ) -> None:
        if regression_weight < 0 or min(num_best, interval) < 1:
            got = f"{regression_weight=}, {num_best=}, {interval=}"
            raise ValueError(f"need regression_weight >= 0, num_best >= 1 and interval >= 1, got {got}")
        super().__init__(network, dataset, inferer, labels, num_classes)
        self.annotation_key, self.per_class = annotation_key, per_class
        self.regression_weight, self.num_best, self.interval = regression_weight, num_best, interval
        self.seed, self.epoch = seed, 0

    @cached_property
    def boxes(self) -> list[list[tuple[Box, list[Regions]]]]:
        """Of every item, the largest first, with what is proposed for each; they follow from the data."""
        found = []
        for _, item in self.dataset.each():
            boxes = boxes_of(self._drawn(item), self.num_classes, self.per_class)
            boxes = sorted(boxes, key=lambda box: -math.prod(box.size))
            found.append([(box, _proposed(np.asarray(item["image"]), box)) for box in boxes])
        return found

    def is_due(self, epoch: int) -> bool:
        """See the class."""
        self.epoch = epoch
        return epoch > 1 and (epoch - 2) % self.interval == 0

    def initialize(self) -> None:
        """Regions are the boxes."""
        for number, item in self.dataset.each():
            full = [(box, np.ones(box.size, dtype=np.bool_)) for box, _ in self.boxes[number]]
            self.labels[number] = torch.as_tensor(painted(full, self._drawn(item)))

    def relabel(self) -> None:
        """See the class."""
        for number, item in self.dataset.each():
            costs = -self.log_probs(item)[0].numpy()
            rng = np.random.default_rng([self.seed, self.epoch, number])
            regions = [(box, self._chosen(box, families, costs, rng)) for box, families in self.boxes[number]]
            self.labels[number] = torch.as_tensor(painted(regions, self._drawn(item)))

    def _chosen(
        self, box: Box, families: list[Regions], costs: NDArray[Any], rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        inside, outside = costs[box.class_index][box.place], costs[0][box.place]
        return choose(families, inside, outside, rng, self.regression_weight, self.num_best)

    def _drawn(self, item: Any) -> NDArray[Any]:
        """What the positive drawings say, ``(*S)``."""
        if self.annotation_key not in item:
            raise KeyError(f"BoxSup takes its boxes from {self.annotation_key!r}, the items have {', '.join(item)}")
        return np.asarray(agreed_drawing([item[self.annotation_key], None], self.num_classes))


def _proposed(image: NDArray[Any], box: Box) -> list[Regions]:
    outer, inner = around(box.place, image.shape[1:])
    return propose(image[(slice(None), *outer)], inner)


def painted(regions: list[tuple[Box, NDArray[np.bool_]]], drawn: NDArray[Any]) -> NDArray[np.uint8]:
    """A label map ``(1, *S)`` of regions, later ones on top; the rest is background, unless nothing was drawn at all.

    Example:
        >>> painted([(Box(2, (slice(1, 3),)), np.array([True, False]))], np.array([255, 2, 2, 0])).tolist()
        [[0, 2, 0, 0]]
    """
    nothing = bool((drawn == UNLABELED).all())
    label = np.full((1, *drawn.shape), UNLABELED if nothing else 0, dtype=np.uint8)
    for box, region in regions:
        label[0][box.place][region] = box.class_index
    return label
