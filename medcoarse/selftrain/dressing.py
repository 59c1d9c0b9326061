"""Synthetic images that look like real ones: every region shows pixels of its class from where people drew it."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils.type_conversion import convert_to_dst_type
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, signal

from medcoarse.confusion import UNLABELED
from medcoarse.files import write_atomically
from medcoarse.pictures import label_picture, picture

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_ENOUGH = 0.95  # of the best overlap; among such places the nearest is taken, so that light and depth stay right


class Source(NamedTuple):
    """A real image ``(C, *S)`` and what was drawn on it, ``(*S)``, classes or 255."""

    image: Floats
    drawing: Labels


def cover(where: Mask, source: Source, drawn: Mask) -> Floats:
    """Values for a region, from the pixels of a real image that were drawn.

    The region is moved, as little as need be, to where it meets nearly as many drawn pixels as it can anywhere. What
    still meets none takes what is as far behind the nearest drawn pixel as it is before it, as in a mirror, and the
    nearest drawn pixel itself if nobody drew there. Distances are counted in pixels.

    Args:
        where: ``(*S)``, the region, not empty.
        source: a real image, of any size.
        drawn: ``(*T)``, which of its pixels may be taken, not none.

    Returns:
        ``(C, n)``, for the n pixels of the region in their order.

    Example:
        >>> real = Source(np.array([[1, 2, 3, 4, 5]], np.float32), np.array([255, 255, 0, 0, 255], np.uint8))
        >>> cover(np.array([True, True, True, False, False]), real, real.drawing == 0).tolist()
        [[4.0, 3.0, 4.0]]
    """
    box = ndimage.find_objects(where.astype(np.uint8))[0]
    region = where[box]
    overlap = np.rint(signal.fftconvolve(drawn.astype(np.float32), region[(slice(None, None, -1),) * region.ndim]))
    places = np.argwhere(overlap >= _ENOUGH * overlap.max()) - (np.array(region.shape) - 1)
    home = np.array([one.start for one in box])
    step = places[np.argmin(np.square(places - home).sum(1))]
    last = np.array(drawn.shape)[:, None] - 1
    points = np.clip((np.argwhere(region) + step).T, 0, last)
    nearest = ndimage.distance_transform_edt(~drawn, return_distances=False, return_indices=True)[:, *points]
    mirrored = np.clip(2 * nearest - points, 0, last)
    taken = np.where(drawn[*mirrored], mirrored, nearest)
    return np.asarray(source.image[:, *taken])


def dress(
    image: Floats, label: Labels, sources: Sequence[Source], rng: np.random.Generator, min_pixels: int = 32
) -> Floats:
    """Show each region of a mask with pixels of its class from a real image.

    Every connected region takes a random one of the sources on which enough of its class is drawn, see :func:`cover`;
    regions of fewer pixels than that take one together. Where classes meet, the result is blurred a little, as a lens
    would.

    Args:
        image: ``(C, *S)``, kept where nobody drew the class, and where the mask is 255.
        label: ``(*S)``, classes or 255.
        sources: real images with as many channels, at the same scale, and their drawings.
        rng: which source a region takes.
        min_pixels: of a class that make an image a source of it.

    Returns:
        ``(C, *S)``, a new one.

    Raises:
        ValueError: images that differ in their number of channels or of dimensions.

    Source: none; the synthetic images of LCC (Das et al., WACV 2023) were rendered by a game, and look like streets.

    Example:
        >>> real = Source(np.array([[5, 6, 7, 8]], np.float32), np.array([0, 0, 1, 1], np.uint8))
        >>> mask = np.array([1, 1, 2, 255], np.uint8)
        >>> dress(np.zeros((1, 4), np.float32), mask, [real], np.random.default_rng(0), min_pixels=1).round().tolist()
        [[7.0, 6.0, 1.0, 0.0]]
    """
    for source in sources:
        if len(source.image) != len(image) or source.drawing.ndim != label.ndim:
            got = f"{image.shape} and {source.image.shape}"
            raise ValueError(f"a synthetic image and a real one need as many channels and dimensions, got {got}")
    result = image.copy()
    for k in np.unique(label[label != UNLABELED]):
        drawn = [source.drawing == k for source in sources]
        able = [n for n, one in enumerate(drawn) if np.count_nonzero(one) >= min_pixels]
        if not able:
            continue
        for where in _regions(label == k, min_pixels):
            n = int(rng.choice(able))
            result[:, where] = cover(where, sources[n], drawn[n])
    return _blurred(result, label)


def _regions(where: Mask, min_pixels: int) -> list[Mask]:
    """The connected parts, the small ones in one."""
    parts, number = ndimage.label(where)
    sizes = np.bincount(parts.ravel(), minlength=number + 1)
    large = [k for k in range(1, number + 1) if sizes[k] >= min_pixels]
    small = where & ~np.isin(parts, large)
    return [parts == k for k in large] + ([small] if small.any() else [])


def _blurred(image: Floats, label: Labels) -> Floats:
    """The image, smooth where a neighbour has another class."""
    border = ndimage.maximum_filter(label, 3) != ndimage.minimum_filter(label, 3)
    smooth = ndimage.gaussian_filter(image, (0, *[0.6] * label.ndim))
    return np.where(border, smooth, image)


class DressSyntheticd(MapTransform):
    """Dress synthetic items in what people drew on real ones, see :func:`dress`.

    The same mask is always dressed alike: which source a region takes comes from (seed, CRC-32 of the mask), so the
    transform is not random to MONAI and ``CacheDataset`` caches it. The real items are read when the first synthetic
    one comes.

    Args:
        keys: image ``(C, *S)``; one.
        sources: a data set of real items on the same scale, with the image and what was drawn, without random
            transforms. Their masks, if they have any, are not looked at.
        label_key: mask ``(1, *S)`` of a synthetic item, classes or 255.
        drawing_key: annotations ``(R, *S)`` of a real item, classes or 255; of several people's, the pixels
            on which all agree.
        flag_key: of a boolean; items for which it is false or missing pass unchanged.
        num_sources: real items that are read, at most, at random; bounds memory.
        min_pixels: drawn pixels of a class that make an item a source of it.
        seed: >= 0.

    Raises:
        ValueError: several keys, no sources, numbers below 1, a negative seed; when called, as :func:`dress`.

    Example:
        >>> real = {"image": np.array([[[9.0, 8.0, 7.0]]]), "positive": np.array([[[0, 0, 255]]])}
        >>> item = {"image": np.zeros((1, 1, 3)), "label": np.zeros((1, 1, 3)), "synthetic": True}
        >>> DressSyntheticd("image", [real], min_pixels=1)(item)["image"].tolist()
        [[[9.0, 8.0, 9.0]]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        sources: Sequence[Mapping[Hashable, Any]],
        label_key: Hashable = "label",
        drawing_key: Hashable = "positive",
        flag_key: Hashable = "synthetic",
        num_sources: int = 100,
        min_pixels: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 1 or len(sources) == 0 or min(num_sources, min_pixels) < 1 or seed < 0:
            got = f"keys {self.keys}, {len(sources)} sources, {num_sources=}, {min_pixels=}, {seed=}"
            raise ValueError(f"dressing needs one key, sources, numbers of at least 1 and a seed from 0, got {got}")
        self.sources, self.seed, self.min_pixels = sources, seed, min_pixels
        self.label_key, self.drawing_key, self.flag_key = label_key, drawing_key, flag_key
        self.num_sources = num_sources

    @cached_property
    def _read(self) -> list[Source]:
        number = min(self.num_sources, len(self.sources))
        chosen = np.random.default_rng(self.seed).permutation(len(self.sources))[:number]
        return [self._source(self.sources[int(n)]) for n in sorted(chosen)]

    def _source(self, item: Mapping[Hashable, Any]) -> Source:
        drawings = np.asarray(item[self.drawing_key], np.uint8)
        agreed = np.where((drawings == drawings[:1]).all(0), drawings[0], np.uint8(UNLABELED))
        return Source(np.asarray(item[self.keys[0]], np.float32), agreed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item, dressed if it is synthetic."""
        item = dict(data)
        if item.get(self.flag_key, False):
            key, label = self.keys[0], np.ascontiguousarray(item[self.label_key], np.uint8)[0]
            rng = np.random.default_rng([self.seed, zlib.crc32(label.tobytes())])
            dressed = dress(np.asarray(item[key], np.float32), label, self._read, rng, self.min_pixels)
            item[key] = convert_to_dst_type(dressed, item[key])[0]
        return item


class SyntheticSheet:
    """Save a picture of the synthetic images that training will see, with their masks, when training begins.

    Args:
        dataset: synthetic items with ``image`` and ``label``.
        path: of the PNG; its folder is made.
        num_classes: L.
        number: of items shown, the first ones.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "synthetic.png"
        >>> SyntheticSheet([{"image": np.zeros((3, 6, 4)), "label": np.zeros((1, 6, 4))}], path, 2)(None)
        >>> Image.open(path).size  # columns are axis 0, as MONAI's readers have it
        (12, 4)
    """

    def __init__(
        self, dataset: Sequence[Mapping[Hashable, Any]], path: str | Path, num_classes: int, number: int = 8
    ) -> None:
        self.dataset, self.path, self.num_classes, self.number = dataset, Path(path), num_classes, number

    def attach(self, engine: Engine) -> None:
        """Draw once, before the first epoch."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine | None) -> None:
        """Draw."""
        rows = []
        for n in range(min(self.number, len(self.dataset))):
            item = self.dataset[n]
            pair = picture(item["image"]), label_picture(item["label"], self.num_classes, background=None)
            rows.append(np.concatenate([one.swapaxes(0, 1) for one in pair], 1))
        if rows:
            sheet = Image.fromarray(np.concatenate(rows))
            write_atomically(self.path, lambda file: sheet.save(file, format="PNG"))
