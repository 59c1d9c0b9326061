"""L2G, adapted: a network for whole images learns where small crops were recognized, inside boxes.

A local classifier learns from random crops which classes they show. What it looked at, restricted to the boxes, is what
the global network has to find in the whole image; the global network's maps above a threshold are the label maps that
the segmenter is trained on. Uses boxes around the connected parts of the true masks (``region="box"``), or what the
drawings agree on (``region="coarse"``, :func:`medcoarse.losses.consensus`): boxes and no drawing, or drawings and no
mask.

Source: Jiang, Yang, Hou and Wei, L2G: A Simple Local-to-Global Knowledge Transfer Framework for Weakly Supervised
    Semantic Segmentation, CVPR 2022.
Deviates: boxes or drawn regions in the place of image-level labels and saliency; they also say which classes a crop
    shows; what no class is found at is background, everywhere (the paper's last channel is what is not salient); crops
    are a quarter of the image and not two thirds, so that some of them miss the structure; three layers at full
    resolution, started from nothing, Adam, and a number of steps stand for a pretrained network and ten epochs; the
    global network's maps are its class probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from scipy import ndimage
from torch import Tensor, nn

from medcoarse.confusion import Annotations
from medcoarse.losses import consensus

REGIONS = ("box", "coarse")
_SEEN = 1e-3  # of a local map's maximum: more than that was looked at
_COVERED = 0.05  # of a crop: more than that, and it shows the class
_KD_WEIGHT = 10.0


def boxes(mask: Tensor) -> Tensor:
    """The bounding boxes of a mask's connected parts (diagonals connect), filled, bool ``(*S)``.

    Example:
        >>> boxes(torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]) > 0).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 0],
                [0, 0, 0, 1]], dtype=torch.int32)
    """
    filled = torch.zeros_like(mask, dtype=torch.bool)
    parts, _ = ndimage.label(mask.numpy(), structure=np.ones([3] * mask.ndim))
    for box in ndimage.find_objects(parts):
        filled[box] = True
    return filled


def class_maps(scores: Tensor, present: Tensor) -> Tensor:
    """Class activation maps: what is positive, divided by its maximum; 0 for classes that are absent.

    Args:
        scores: of the K classes but background, ``(B, K, *S)``.
        present: which are there, ``(B, K)``.

    Returns:
        ``(B, K, *S)`` in [0, 1].

    Example:
        >>> class_maps(torch.tensor([[[-1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]]), torch.tensor([[True, False]]))
        tensor([[[0.0000, 0.5000, 1.0000],
                 [0.0000, 0.0000, 0.0000]]])
    """
    maps = scores.relu().flatten(2)
    maps = maps / maps.amax(2, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return (maps * present[..., None]).view_as(scores)


def local_target(scores: Tensor, present: Tensor, region: Tensor) -> Tensor:
    """What the global network is to find at a crop: the class that the local one looked at most, inside its region.

    Args:
        scores: the local classifier's, ``(B, K, *S)``.
        present: classes that the crop shows, ``(B, K)``.
        region: where each may be, bool ``(B, K, *S)``.

    Returns:
        0 and 1, ``(B, K + 1, *S)``, background first; sums to 1 over classes.

    Example:
        >>> scores, region = torch.tensor([[[2.0, 1.0, -1.0]]]), torch.tensor([[[True, False, True]]])
        >>> local_target(scores, torch.tensor([[True]]), region)
        tensor([[[0., 1., 1.],
                 [1., 0., 0.]]])
    """
    maps = class_maps(scores, present)
    most, best = maps.max(1, keepdim=True)
    found = torch.zeros_like(maps).scatter_(1, best, (most > _SEEN).to(maps.dtype)) * region
    return torch.cat([1 - found.sum(1, keepdim=True), found], 1)


def transfer_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Knowledge transfer, ten times the mean squared error of the global network's probabilities.

    Args:
        logits: of the global network at the crop, ``(B, K + 1, *S)``.
        target: of the local one, :func:`local_target`.

    Example:
        >>> transfer_loss(torch.zeros(1, 2, 1), torch.tensor([[[0.0], [1.0]]]))  # 10 (1/4 + 1/4) / 2
        tensor(2.5000)
    """
    return _KD_WEIGHT * F.mse_loss(logits.softmax(1), target)


@dataclass(frozen=True)
class L2G:
    """L2G, adapted: label maps of images and the boxes or drawings in them.

    Args:
        num_classes: L.
        region: ``"box"``, of the masks, or ``"coarse"``, the consensus of the drawings.
        num_crops: of an image in a step.
        crop_ratio: side of a crop over that of the image, or of the window.
        window_size: side of the part that is looked at of a larger image, chosen at random in every step.
        batch_size: images of a step.
        steps: of both networks.
        width: channels of their layers.
        learning_rate: of Adam, a tenth after half of the steps.
        threshold: of the global maps.
        seed: of initial weights, images, windows and crops.

    Raises:
        ValueError: an unknown region; a number below 1; when called, an image without what its region comes from.

    Example:
        >>> image = torch.zeros(1, 16, 16); image[:, 3:6, 3:12] = 1; image[:, 3:12, 3:6] = 1
        >>> (found,) = L2G(steps=100, crop_ratio=0.3)([image], [Annotations(label=image.byte())])
        >>> bool(found[0, 12:].any() or found[0, :, 12:].any())  # outside the box
        False
    """

    num_classes: int = 2
    region: str = "box"
    num_crops: int = 6
    crop_ratio: float = 0.25
    window_size: int = 128
    batch_size: int = 4
    steps: int = 1000
    width: int = 16
    learning_rate: float = 3e-3
    threshold: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.region not in REGIONS:
            raise ValueError(f"region must be one of {', '.join(REGIONS)}, got {self.region!r}")
        if min(self.num_crops, self.window_size, self.batch_size, self.steps, self.width) < 1:
            raise ValueError(f"numbers of crops, images, steps, channels and pixels must be at least 1, got {self}")

    def __call__(self, images: Sequence[Tensor], known: Sequence[Annotations]) -> list[Tensor]:
        """Images ``(C, *S)`` and what is known of them to label maps ``(1, *S)``, uint8."""
        regions = [self.regions(one) for one in known]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            shape = images[0].ndim - 1, images[0].shape[0], self.width
            local, whole = (_network(*shape, number) for number in (self.num_classes - 1, self.num_classes))
            self._learn(local, whole, images, regions)
        with torch.no_grad():
            return [
                self.label_map(whole(image[None]), region[None])[0]
                for image, region in zip(images, regions, strict=True)
            ]

    def regions(self, known: Annotations) -> Tensor:
        """Where each class but background may be, bool ``(K, *S)``; what is unknown is in no region."""
        drawn = [one for one in (known[:2] if self.region == "coarse" else known[2:3]) if one is not None]
        if not drawn:
            wanted = "a mask" if self.region == "box" else "a drawing"
            raise ValueError(f'region "{self.region}" comes from {wanted}, and there is none')
        if self.region == "box":
            return torch.stack([boxes(drawn[0][0] == k) for k in range(1, self.num_classes)])
        batched = Annotations(*(one if one is None else one[None] for one in known[:2]))
        agreed = consensus(batched, self.num_classes)[0, 0]
        return torch.stack([agreed == k for k in range(1, self.num_classes)])

    def label_map(self, logits: Tensor, region: Tensor) -> Tensor:
        """The global network's maps, cut at the threshold, inside the regions.

        Args:
            logits: ``(B, K + 1, *S)``.
            region: bool ``(B, K, *S)``.

        Returns:
            uint8 ``(B, 1, *S)``.
        """
        inside = logits.softmax(1)[:, 1:] * region
        most, best = class_maps(inside, region.flatten(2).any(2)).max(1, keepdim=True)
        return ((best + 1) * (most > self.threshold)).to(torch.uint8)

    def _learn(self, local: nn.Module, whole: nn.Module, images: Sequence[Tensor], regions: Sequence[Tensor]) -> None:
        sides = [min(self.window_size, *sizes) for sizes in zip(*(image.shape[1:] for image in images), strict=True)]
        small = [max(1, round(self.crop_ratio * side)) for side in sides]
        optimizer = torch.optim.Adam([*local.parameters(), *whole.parameters()], self.learning_rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, self.steps // 2))
        for _ in range(self.steps):
            chosen = torch.randint(len(images), (self.batch_size,)).tolist()
            windows = [(n, _corner(images[n].shape[1:], sides)) for n in chosen]
            image = torch.stack([_cut(images[n], corner, sides) for n, corner in windows])
            region = torch.stack([_cut(regions[n], corner, sides) for n, corner in windows])
            crops = [(b, _corner(sides, small)) for b in range(len(image)) for _ in range(self.num_crops)]
            seen, allowed, logits = (
                torch.stack([_cut(values[b], corner, small) for b, corner in crops])
                for values in (image, region, whole(image))
            )
            shown = allowed.flatten(2).float().mean(2) > _COVERED
            scores = local(seen)
            target = local_target(scores.detach(), shown, allowed)
            recognized = F.multilabel_soft_margin_loss(scores.flatten(2).mean(2), shown.to(scores.dtype))
            loss = recognized + transfer_loss(logits, target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _network(spatial_dims: int, in_channels: int, width: int, out_channels: int) -> nn.Module:
    """Class scores at every pixel, whose mean over an image are those of the image."""
    convolution = Conv[Conv.CONV, spatial_dims]
    sizes = [in_channels, width, width, width]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [convolution(before, after, kernel_size=3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, convolution(width, out_channels, kernel_size=1))


def _corner(sizes: Sequence[int], sides: Sequence[int]) -> list[int]:
    """Of a random window."""
    return [int(torch.randint(size - side + 1, ())) for size, side in zip(sizes, sides, strict=True)]


def _cut(values: Tensor, corner: Sequence[int], sides: Sequence[int]) -> Tensor:
    """A window of ``(C, *S)``."""
    return values[(slice(None), *(slice(start, start + side) for start, side in zip(corner, sides, strict=True)))]
