"""ScribbleSup: cuts of the superpixels' graph make masks of strokes, and the network that learns them has a say.

It uses all drawings that say one class; they stay as they are in every mask.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.utils.type_conversion import convert_to_numpy
from numpy.typing import NDArray
from torch import nn

from medcoarse.baselines.graph_cut import alpha_expansion
from medcoarse.baselines.seeds import as_colors, drawn_classes, keep_drawn, relative_spacing
from medcoarse.baselines.soft_labels import HardLabels, Relabelling, agreed_drawing
from medcoarse.baselines.superpixels import Regions, adjacency, region_means, superpixels
from medcoarse.confusion import UNLABELED
from medcoarse.transforms.array import spacing_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegionGraph:
    """Superpixels ``(*S)``, which of them touch ``(E, 2)``, and what it costs that two differ ``(E,)``."""

    regions: Regions
    edges: NDArray[np.int64]
    weights: NDArray[np.float64]


def region_graph(
    image: NDArray[Any],
    spacing: Sequence[float] | None = None,
    size: float = 4.0,
    regions: str | None = None,
    color_scale: float = 0.2,
    texture_scale: float = 0.4,
    num_colors: int = 25,
    num_slopes: int = 10,
) -> RegionGraph:
    """Superpixels and ``exp(-|h_c(i) - h_c(j)|² / color_scale² - |h_t(i) - h_t(j)|² / texture_scale²)`` where they
    touch.

    Args:
        image: ``(C, *S)``, 2D or 3D.
        spacing: mm per voxel; 1 by default.
        size: pixels in a superpixel, see :func:`.superpixels.superpixels`.
        regions: how they are made, see there; by default ``"felzenszwalb"``, in volumes ``"slic"``.
        color_scale: of the histograms of the channels' values, side by side, which sum to 1.
        texture_scale: of those of their differences along each axis.
        num_colors: bins of a channel's values.
        num_slopes: bins of its differences along an axis.

    Source: Lin et al. 2016, with 25 and 10 bins.
    Deviates: scales of 5 and 10, remembered as the paper's, would make all edges alike, since these histograms sum to
        1; their ratio is kept, and the scale is what served noisy drawn digits.
    """
    colors = as_colors(image) / 255
    found = superpixels(image, size, regions or ("felzenszwalb" if image.ndim == 3 else "slic"), spacing)
    edges, _ = adjacency(found)
    color = region_histograms(colors, found, num_colors, (0, 1))
    # An axis of one pixel has no slope.
    slopes = [
        np.gradient(channel, span, axis=axis)
        for channel in colors
        for axis, span in enumerate(relative_spacing(spacing, image.ndim - 1))
        if channel.shape[axis] > 1
    ]
    texture = region_histograms(np.stack(slopes or [np.zeros_like(colors[0])]), found, num_slopes, (-1, 1))
    off = np.square(color[edges[:, 0]] - color[edges[:, 1]]).sum(1) / color_scale**2
    off += np.square(texture[edges[:, 0]] - texture[edges[:, 1]]).sum(1) / texture_scale**2
    return RegionGraph(found, edges, np.exp(-off))


def region_histograms(
    channels: NDArray[Any], regions: Regions, num_bins: int, limits: tuple[float, float]
) -> NDArray[np.float64]:
    """Of each channel ``(C, *S)`` in each region; those of a region side by side, ``(N, C num_bins)``, sum to 1.

    Example:
        >>> region_histograms(np.array([[[0.1, 0.9, 0.2]]]), np.array([[0, 0, 1]]), 2, (0, 1)).tolist()
        [[0.5, 0.5], [1.0, 0.0]]
    """
    flat = regions.ravel()
    number = int(flat.max()) + 1
    low, high = limits
    bins = ((channels - low) / (high - low) * num_bins).astype(np.int64).clip(0, num_bins - 1)
    counts = [np.bincount(flat * num_bins + one.ravel(), minlength=number * num_bins) for one in bins]
    tables = np.concatenate([one.reshape(number, num_bins) for one in counts], 1)
    return tables / (len(channels) * np.bincount(flat)[:, None])


def stroke_costs(partial: NDArray[Any], regions: Regions, classes: NDArray[Any]) -> NDArray[np.float64]:
    """What strokes say of each region: 0 for classes that were drawn in it, ``inf`` for the others.

    Where nothing was drawn it is ``log |classes|`` for all of them.

    Args:
        partial: ``(*S)``, 255 where nothing was drawn.
        regions: ``(*S)``.
        classes: that were drawn in the image.

    Returns:
        ``(N, len(classes))``.

    Source: Lin et al. 2016; what costs ``inf`` for all regions, classes not drawn in the image, is left out.

    Example:
        >>> stroke_costs(np.array([1, 255, 255]), np.array([0, 0, 1]), np.array([0, 1])).round(2).tolist()
        [[inf, 0.0], [0.69, 0.69]]
    """
    number = int(regions.max(initial=-1)) + 1
    drawn = np.stack([np.bincount(regions[partial == k], minlength=number) > 0 for k in classes], 1)
    undrawn = ~drawn.any(1, keepdims=True)
    return np.where(drawn, 0.0, np.where(undrawn, np.log(len(classes)), np.inf))


def network_costs(log_probs: NDArray[Any], regions: Regions, least: float = 1e-6) -> NDArray[np.float64]:
    """What the network says, ``-log P``, mean over each region, ``(L, *S) -> (N, L)``.

    Probabilities below ``least`` count as that.

    Source: Lin et al. 2016.

    Example:
        >>> network_costs(np.log([[0.5, 0.125]]), np.array([0, 0])).round(3).tolist()  # of 1/4
        [[1.386]]
    """
    return region_means(-np.maximum(log_probs, np.log(least)), regions)


def propagate(
    image: NDArray[Any],
    partial: NDArray[Any],
    num_classes: int,
    log_probs: NDArray[Any] | None = None,
    graph: RegionGraph | None = None,
    solver: str = "scipy",
    **options: Any,
) -> NDArray[np.uint8]:
    """A label map out of a partial one: the labels of superpixels with little energy.

    ``sum_i stroke_costs + sum_i network_costs + sum_(i, j) [y_i != y_j] weights_ij``

    Args:
        image: ``(C, *S)``, 2D or 3D.
        partial: ``(*S)``, 255 where nothing was drawn.
        num_classes: L.
        log_probs: the network's, ``(L, *S)``; ``None`` before there is one.
        graph: of the image, where it is known.
        solver: of the cuts, see :mod:`.graph_cut`.
        options: arguments of :func:`region_graph`.

    Returns:
        uint8 ``(*S)``: what was drawn stays, and only classes that were drawn in the image appear. With fewer than two
        of them there is nothing to decide, and what was not drawn stays 255.

    Raises:
        ValueError: see :func:`.seeds.drawn_classes` and :func:`.superpixels.superpixels`.

    Source: Lin, Dai, Jia, He and Sun, "ScribbleSup" (CVPR 2016).
    Deviates: of a superpixel in which several classes were drawn the drawn pixels keep theirs; see also
        :func:`region_graph`.

    Example:
        >>> image = np.array([[[0.0, 0.0, 0.0, 9.0, 9.0, 9.0]]]).repeat(3, 1)
        >>> partial = np.full((3, 6), 255)
        >>> partial[1, 0], partial[1, 5] = 0, 1
        >>> propagate(image, partial, num_classes=2, size=1)[0]
        array([0, 0, 0, 1, 1, 1], dtype=uint8)
    """
    classes = drawn_classes(image, partial, num_classes)
    if len(classes) < 2 or not (partial == UNLABELED).any():
        return partial.astype(np.uint8)
    graph = graph or region_graph(image, **options)
    costs = stroke_costs(partial, graph.regions, classes)
    if log_probs is not None:
        costs = costs + network_costs(log_probs[classes], graph.regions)
    labels = alpha_expansion(costs, graph.edges, graph.weights, solver=solver)
    return keep_drawn(classes[labels][graph.regions], partial)


class ScribbleSup(Relabelling):
    """ScribbleSup as a handler: at the start of training, and of some epochs, it makes the masks to learn from anew.

    The first time by :func:`propagate` without the network, then with its log-probabilities as they are.

    Args:
        network: the segmenter.
        dataset: items with an image ``(C, *S)`` and drawings, without random transforms, in the order of their numbers.
        inferer: as for whole images.
        masks: where the masks go, by number of the item.
        num_classes: L.
        epochs: at whose start they are made anew, from 1. Resuming keeps what was made.
        keys: of the positive ``(R, *S)`` and of the negative ``(C, *S)`` drawings; an item may lack either.
        options: arguments of :func:`region_graph`, and ``solver``.

    Source: Lin et al. 2016, Section 3.2, which makes three rounds.
    Deviates: the network goes on learning with the schedule of the recipe, so that a round has its share of the epochs.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Any,
        inferer: Inferer,
        masks: HardLabels,
        num_classes: int,
        epochs: Collection[int],
        keys: Sequence[str] = ("positive", "negative"),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(network, dataset, inferer, masks, num_classes, epochs)
        self.keys, self.options = tuple(keys), dict(options or {})

    def initialize(self) -> None:
        """Masks without the network."""
        self.remake(with_network=False)

    def relabel(self) -> None:
        """Masks with the network's say."""
        changed = self.remake(with_network=True)
        logger.info("Masks made anew with the network's say: %.2f%% of the pixels changed", 100 * changed)

    def remake(self, with_network: bool) -> float:
        """Make all masks anew; the share of pixels that changed, 1 where there was none."""
        changed, pixels = 0, 0
        for number in range(len(self.dataset)):
            item = self.dataset[number]
            image, partial = item["image"], agreed_drawing([item.get(key) for key in self.keys], self.num_classes)
            found = propagate(
                convert_to_numpy(image), partial.numpy(), self.num_classes,
                self.log_probs(item)[0].numpy() if with_network else None,
                spacing=spacing_of(image, None), **self.options,
            )  # fmt: skip
            mask, before = torch.as_tensor(found)[None], self.labels.maps.get(number)
            changed += mask.numel() if before is None else int((mask != before).sum())
            pixels += mask.numel()
            self.labels[number] = mask
        return changed / max(1, pixels)
