"""LC-MIL, adapted: a coarse region of one image is refined by multiple-instance learning on the patches of that image.

Bags of patches from inside the region are taken to hold the class, bags from outside not to. A classifier with
attention learns to tell the bags apart; a single patch is then a bag of its own, and the map of their scores is the
refined region. Uses what all drawings, positive and negative, agree on (:func:`medcoarse.losses.consensus`): patches
around a pixel on which they do not, or where nothing is drawn, are in no bag, and are scored as all others. Where there
is nothing to tell apart, because a class is drawn nowhere in an image or alone, the drawing stays.

Source: Wang, Popel and Sulam, Label Cleaning Multiple Instance Learning: Refining Coarse Annotations on Single Whole-
    Slide Images, IEEE TMI 2022; attention of Ilse et al. 2018; focal loss of Lin et al. 2017.
Deviates: patches of a few pixels; three layers, the first as large as the patch, learned from the bags, stand for a
    pretrained network, so that learning rate and weight decay are larger; images are worked on side by side, each with
    weights of its own, and no image enters another's; several classes are refined one against the rest, the likeliest
    above the threshold wins; the segmenter is trained on the refined maps as every other row is on its labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.losses import FocalLoss
from torch import Tensor

from medcoarse.confusion import UNLABELED, Annotations
from medcoarse.losses import consensus

_BAG_TRIALS = 20  # of the binomial distribution of a bag's length, whose mean is 10
_CHUNK = 2**21  # pixels that are worked on side by side


class PatchClassifiers:
    """N classifiers of patches, one for each image, with attention over the patches of a bag.

    All start from the same weights, so that what becomes of an image does not depend on its place in a batch.

    Args:
        num_images: N.
        patch_shape: ``(C, *patch)``.
        width: channels of the features; a quarter of them in the attention.
        generator: of the initial weights.

    Example:
        >>> classify = PatchClassifiers(2, (1, 3, 3), width=8, generator=torch.Generator().manual_seed(0))
        >>> features = classify.features(torch.rand(2, 5, 1, 3, 3))  # a bag of five patches of each image
        >>> classify.bags(features[:, None], torch.ones(1, 5, dtype=torch.bool)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self, num_images: int, patch_shape: Sequence[int], width: int, generator: torch.Generator | None = None
    ) -> None:
        self.patch_shape = tuple(patch_shape)
        sizes = [
            (torch.Size(patch_shape).numel(), width),
            (width, width),
            (width, width // 4),
            (width // 4, 1),
            (width, 1),
        ]
        self.weights, self.biases = [], []
        for before, after in sizes:
            weight = torch.randn(before, after, generator=generator) * (2 / before) ** 0.5
            self.weights.append(weight.expand(num_images, -1, -1).clone().requires_grad_())
            self.biases.append(torch.zeros(num_images, 1, after).requires_grad_())

    def features(self, patches: Tensor) -> Tensor:
        """``(N, P, C, *patch) -> (N, P, width)``."""
        return self._deepen(self._layer(0, patches.flatten(2)))

    def bags(self, features: Tensor, there: Tensor) -> Tensor:
        """Scores of bags, before the sigmoid.

        Args:
            features: of their patches, ``(N, bags, patches, width)``.
            there: which of the patches a bag has, ``(bags, patches)``; one at least.

        Returns:
            ``(N, bags)``.
        """
        flat = features.flatten(1, 2)
        attention = self._layer(3, self._layer(2, flat).tanh()).view(features.shape[:3])
        shares = attention.masked_fill(~there, -torch.inf).softmax(2)
        return self._layer(4, (shares[..., None] * features).sum(2))[..., 0]

    def score_map(self, images: Tensor, stride: int) -> Tensor:
        """Scores of every patch as a bag of its own, ``(N, C, *S)`` to ``(N, *S // stride)``.

        The first layer is a convolution with the patch as its kernel, one group for each image.
        """
        num, spatial = len(images), images.ndim - 2
        kernel = self.weights[0].mT.reshape(-1, *self.patch_shape)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        first = convolve(images.flatten(0, 1)[None], kernel, stride=stride, groups=num)[0]
        maps = torch.unflatten(first, 0, (num, -1))
        features = self._deepen(maps.flatten(2).mT + self.biases[0])
        return self._layer(4, features)[..., 0].view(num, *maps.shape[2:])

    def _deepen(self, first: Tensor) -> Tensor:
        return self._layer(1, first.relu()).relu()

    def _layer(self, number: int, values: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[number], values, self.weights[number])


@dataclass(frozen=True)
class LCMIL:
    """LC-MIL, adapted: refined label maps of images and their drawings.

    Args:
        num_classes: L; each class but the background is refined against the rest.
        patch_size: side of a patch, odd.
        stride: pixels between patches; scores in between are interpolated.
        num_bags: shown to an image's classifier in all, half of them from inside the region.
        batch_size: bags of a step.
        epochs: times that each bag is shown.
        width: channels of the features.
        learning_rate: of Adam; multiplied by 0.9 after each epoch.
        weight_decay: of Adam. With the published 1e-4 networks that start from nothing learn a rough drawing by heart.
        threshold: of the score, between 0 and 1.
        seed: of initial weights and bags.

    Raises:
        ValueError: an even patch.

    Example:
        >>> image = torch.zeros(1, 16, 16); image[:, 4:12, 4:12] = 1
        >>> drawn = torch.zeros(1, 16, 16, dtype=torch.long); drawn[:, 4:12, 6:14] = 1  # too far right
        >>> (refined,) = LCMIL(patch_size=3)([image], [Annotations(drawn)])
        >>> wrong = [int((one != (image > 0.5)).sum()) for one in (drawn, refined)]
        >>> wrong[1] < wrong[0]
        True
    """

    num_classes: int = 2
    patch_size: int = 9
    stride: int = 1
    num_bags: int = 1000
    batch_size: int = 20
    epochs: int = 5
    width: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    threshold: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patch_size % 2 == 0:
            raise ValueError(f"a patch has a pixel in its middle: patch_size must be odd, got {self.patch_size}")

    def __call__(self, images: Sequence[Tensor], drawings: Sequence[Annotations]) -> list[Tensor]:
        """Images ``(C, *S)`` and drawings ``(R, *S)`` of any sizes, to label maps ``(1, *S)``, uint8."""
        refined: list[Tensor] = []
        for chunk in self._chunks(images):
            group = torch.stack([images[n] for n in chunk])
            drawn = torch.cat([consensus(_batched(drawings[n]), self.num_classes) for n in chunk])
            refined += self._refine(group, drawn).unbind(0)
        return refined

    def _chunks(self, images: Sequence[Tensor]) -> Iterator[list[int]]:
        """Numbers of neighbours of one size, of so many pixels in all."""
        chunk: list[int] = []
        for n, image in enumerate(images):
            other = chunk and (image.shape != images[n - 1].shape or (len(chunk) + 1) * image.numel() > _CHUNK)
            if other:
                yield chunk
                chunk = []
            chunk.append(n)
        if chunk:
            yield chunk

    def _refine(self, images: Tensor, drawn: Tensor) -> Tensor:
        """``(N, C, *S)`` and the consensus ``(N, 1, *S)`` to label maps ``(N, 1, *S)``."""
        heat, known = zip(*(self.heat(images, drawn, k) for k in range(1, self.num_classes)), strict=True)
        best, label = torch.stack(heat, 1).max(1, keepdim=True)
        refined = ((label + 1) * (best > self.threshold)).to(torch.uint8)
        some = torch.stack(known).any(0).view(-1, *[1] * (images.ndim - 1))
        return torch.where(some, refined, drawn.to(torch.uint8))

    def heat(self, images: Tensor, drawn: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The heat maps of class k, between 0 and 1, ``(N, *S)``, and which of them were learned ``(N,)``.

        Args:
            images: ``(N, C, *S)``.
            drawn: ``(N, 1, *S)``, classes or 255.
            k: the class.
        """
        heat = (drawn[:, 0] == k).float()
        grid = (slice(None), slice(None), *[slice(None, None, self.stride)] * (images.ndim - 2))
        inside, outside = (side[grid].flatten(1) for side in (drawn == k, (drawn != k) & (drawn != UNLABELED)))
        both = inside.any(1) & outside.any(1)
        if both.any():
            padded = _padded(images[both], self.patch_size // 2)
            classify = self._learned(padded, inside[both], outside[both])
            with torch.no_grad():
                coarse = classify.score_map(padded, self.stride).sigmoid()[:, None]
            mode = "nearest" if self.stride == 1 else ("linear", "bilinear", "trilinear")[images.ndim - 3]
            heat[both] = _enlarged(coarse, images.shape[2:], self.stride, mode)
        return heat, both

    def _learned(self, padded: Tensor, inside: Tensor, outside: Tensor) -> PatchClassifiers:
        """Classifiers that tell bags from inside from bags from outside."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (padded.shape[1], *[self.patch_size] * (padded.ndim - 2))
        classify = PatchClassifiers(len(padded), shape, self.width, generator)
        parameters = [*classify.weights, *classify.biases]
        optimizer = torch.optim.Adam(parameters, self.learning_rate, weight_decay=self.weight_decay)
        windows = _windows(padded, self.patch_size, self.stride)
        sides = [(side.byte().argsort(stable=True, dim=1, descending=True), side.sum(1)) for side in (inside, outside)]
        truth = torch.tensor([1.0, 0.0]).repeat_interleave(self.batch_size // 2)
        focal = FocalLoss(reduction="none")
        # Every epoch draws the same bags: there are so many of them, and no more.
        for step in range(self.epochs * self.num_bags // self.batch_size):
            epoch, within = divmod(step, self.num_bags // self.batch_size)
            optimizer.param_groups[0]["lr"] = self.learning_rate * 0.9**epoch
            generator.manual_seed((self.seed + 1) * 1_000_003 + within)
            chosen, there = _bags(sides, len(truth), generator)
            patches = _patches(windows, chosen.flatten(1))
            features = torch.unflatten(classify.features(patches), 1, chosen.shape[1:])
            score = classify.bags(features, there)
            loss = focal(score.flatten()[:, None], truth.repeat(len(score))[:, None])
            optimizer.zero_grad()
            (loss.sum() / len(truth)).backward()  # a sum over images: each learns as if it were alone
            optimizer.step()
        return classify


def _batched(drawings: Annotations) -> Annotations:
    return Annotations(*(one if one is None else one[None] for one in drawings[:2]))


def _padded(images: Tensor, margin: int) -> Tensor:
    """Mirrored at the borders, as far as there is something to mirror; beyond that the border is repeated."""
    for axis in range(2, images.ndim):
        length = images.shape[axis]
        index = torch.arange(-margin, length + margin).abs()
        index = (length - 1 - (length - 1 - index).abs()).clamp(0, length - 1)
        images = images.index_select(axis, index)
    return images


def _windows(padded: Tensor, size: int, stride: int) -> Tensor:
    """Views of all patches, ``(N, C, *S // stride, *patch)``; nothing is copied."""
    for axis in range(2, padded.ndim):
        padded = padded.unfold(axis, size, stride)
    return padded


def _patches(windows: Tensor, chosen: Tensor) -> Tensor:
    """Patches ``(N, P, C, *patch)`` by their number on the grid, ``(N, P)``."""
    spatial = (windows.ndim - 2) // 2
    where = torch.unravel_index(chosen, windows.shape[2 : 2 + spatial])
    own = torch.arange(len(windows))[:, None]
    return windows.movedim(1, 1 + spatial)[(own, *where)]


def _bags(sides: Sequence[tuple[Tensor, Tensor]], number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches of bags, the first half from inside: their numbers ``(N, bags, length)``, and which a bag has.

    The same random numbers serve all images, so that an image's bags do not depend on what is beside it.

    Args:
        sides: for inside and outside the numbers of an image's patches, its own first, ``(N, P)``, and how many there
            are.
        number: of bags.
        generator: source of randomness.
    """
    draws = torch.rand(number, _BAG_TRIALS, generator=generator, dtype=torch.float64)
    trials = torch.rand(number, _BAG_TRIALS, generator=generator) < 0.5
    lengths = trials.sum(1, keepdim=True).clamp_min(1)
    chosen = []
    for (order, count), draw in zip(sides, draws.chunk(2), strict=True):
        place = (draw.flatten() * count[:, None]).long()
        chosen.append(torch.unflatten(order.gather(1, place), 1, draw.shape))
    return torch.cat(chosen, 1), torch.arange(_BAG_TRIALS) < lengths


def _enlarged(coarse: Tensor, size: torch.Size, stride: int, mode: str) -> Tensor:
    """Scores ``(N, 1, *S // stride)`` of every so many pixels, at every pixel, ``(N, *S)``."""
    if stride == 1:
        return coarse[:, 0]
    # The grid starts at the first pixel: enlarge to where its last point falls, and repeat that to the border.
    reach = [stride * (length - 1) + 1 for length in coarse.shape[2:]]
    full = F.interpolate(coarse, reach, mode=mode, align_corners=True)
    beyond = [pair for have, want in zip(reversed(reach), reversed(size), strict=True) for pair in (0, want - have)]
    return F.pad(full, beyond, mode="replicate")[:, 0]
