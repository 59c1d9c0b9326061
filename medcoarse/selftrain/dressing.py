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
from monai.utils.type_conversion import convert_to_dst_type, convert_to_numpy
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, signal

from medcoarse.confusion import UNLABELED
from medcoarse.files import write_atomically
from medcoarse.pictures import label_picture, picture, plane_of

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_ENOUGH = 0.95  # of the best overlap; among such places the nearest is taken, so that light and depth stay right


class Source(NamedTuple):
    """A real image ``(C, *S)`` and what was drawn on it, ``(*S)``, classes or 255."""

    image: Floats
    drawing: Labels


def cover(where: Mask, source: Source, drawn: Mask, nearest: NDArray[np.int32] | None = None) -> Floats:
    """Values for a region, from the pixels of a real image that were drawn.

    The region is moved, as little as need be, to where it meets nearly as many drawn pixels as it can anywhere. Beyond
    its borders the image goes on mirrored. What still meets no drawn pixel takes what is as far behind the nearest one
    as it is before it, and the nearest one itself if nobody drew there. Distances are counted in pixels.

    Args:
        where: ``(*S)``, the region, not empty.
        source: a real image, of any size.
        drawn: ``(*T)``, which of its pixels may be taken, not none.
        nearest: `nearest_drawn` of it, to have it once for several regions.

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
    shape = np.array(drawn.shape)[:, None]
    points = _folded((np.argwhere(region) + step).T, shape)
    closest = (nearest_drawn(drawn) if nearest is None else nearest)[:, *points]
    mirrored = _folded(2 * closest - points, shape)
    taken = np.where(drawn[*mirrored], mirrored, closest)
    return np.asarray(source.image[:, *taken])


def nearest_drawn(drawn: Mask) -> NDArray[np.int32]:
    """Index of the nearest drawn pixel at every pixel, ``(number of axes, *T)``."""
    found: NDArray[np.int32] = ndimage.distance_transform_edt(~drawn, return_distances=False, return_indices=True)
    return found


def _folded(points: NDArray[Any], shape: NDArray[Any]) -> NDArray[Any]:
    """Points beyond the borders, mirrored into the image as often as need be."""
    points = np.mod(points, 2 * shape)
    return np.where(points < shape, points, 2 * shape - 1 - points)


def dress(
    image: Floats, label: Labels, sources: Sequence[Source], rng: np.random.Generator, min_pixels: int = 32
) -> Floats:
    """Show each region of a mask with pixels of its class from a real image.

    Every connected region takes a random one of the sources on which enough of its class is drawn, see :func:`cover`;
    regions of fewer pixels than that take one together. Where a region that was dressed meets another class, the result
    is blurred a little, as a lens would. Every region costs a Fourier transform of its source: a picture takes a tenth
    of a second, a volume of 100^3 voxels seconds.

    Args:
        image: ``(C, *S)``, kept where nobody drew the class, and where the mask is 255.
        label: ``(*S)``, classes or 255.
        sources: real images with as many channels, at the same scale, and their drawings.
        rng: which source a region takes.
        min_pixels: of a class that make an image a source of it.

    Returns:
        ``(C, *S)``, a new one.

    Raises:
        ValueError: images that differ in their number of channels or of dimensions, or an image in size from its mask
            or drawing.

    Source: none; the synthetic images of LCC (Das et al., WACV 2023) were rendered by a game, and look like streets.

    Example:
        >>> real = Source(np.array([[5, 6, 7, 8]], np.float32), np.array([0, 0, 1, 1], np.uint8))
        >>> mask = np.array([1, 1, 255, 2], np.uint8)
        >>> dress(np.zeros((1, 4), np.float32), mask, [real], np.random.default_rng(0), min_pixels=1).tolist()
        [[7.0, 8.0, 0.0, 0.0]]
    """
    if any(len(one.image) != len(image) or one.image.ndim != image.ndim for one in sources):
        got = f"{image.shape} and {sorted({one.image.shape for one in sources})}"
        raise ValueError(f"a synthetic image and real ones need as many channels and dimensions, got {got}")
    for shown, labels in ((image, label), *sources):
        if shown.shape[1:] != labels.shape:
            raise ValueError(f"an image and its mask or drawing must be of one size, got {shown.shape}, {labels.shape}")
    result, dressed = image.copy(), np.zeros(label.shape, bool)
    for k in np.unique(label[label != UNLABELED]):
        drawn = [source.drawing == k for source in sources]
        able = [n for n, one in enumerate(drawn) if np.count_nonzero(one) >= min_pixels]
        nearest: dict[int, NDArray[np.int32]] = {}
        for where in _regions(label == k, min_pixels) if able else ():
            n = int(rng.choice(able))
            if n not in nearest:
                nearest[n] = nearest_drawn(drawn[n])
            result[:, where] = cover(where, sources[n], drawn[n], nearest[n])
            dressed |= where
    return _blurred(result, label, dressed)


def _regions(where: Mask, min_pixels: int) -> list[Mask]:
    """The connected parts, the small ones in one."""
    parts, number = ndimage.label(where)
    sizes = np.bincount(parts.ravel(), minlength=number + 1)
    large = [k for k in range(1, number + 1) if sizes[k] >= min_pixels]
    small = where & ~np.isin(parts, large)
    return [parts == k for k in large] + ([small] if small.any() else [])


def _blurred(image: Floats, label: Labels, dressed: Mask) -> Floats:
    """The image, smooth where what was dressed has a neighbour of another class, and none without."""
    highest = ndimage.maximum_filter(label, 3)
    border = (highest != ndimage.minimum_filter(label, 3)) & (highest != UNLABELED)
    border &= ndimage.maximum_filter(dressed, 3)
    smooth = ndimage.gaussian_filter(image, 0.6, axes=tuple(range(1, image.ndim)), radius=1)
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
        ValueError: several keys, no sources, numbers below 1, a negative seed; when called, as :func:`dress`, maps that
            hold no classes 0 to 255, a real item on which nobody could draw.

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
        drawings = _classes(item, self.drawing_key)
        if len(drawings) == 0:
            raise ValueError(
                f"dressing takes pixels from where people drew, and {self.drawing_key!r} has no annotators"
            )
        agreed = np.where((drawings == drawings[:1]).all(0), drawings[0], np.uint8(UNLABELED))
        return Source(_floats(item[self.keys[0]]), agreed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item, dressed if it is synthetic."""
        item = dict(data)
        if item.get(self.flag_key, False):
            key, label = self.keys[0], _classes(item, self.label_key)[0]
            rng = np.random.default_rng([self.seed, zlib.crc32(label.tobytes())])
            dressed = dress(_floats(item[key]), label, self._read, rng, self.min_pixels)
            whole = not np.issubdtype(convert_to_numpy(item[key]).dtype, np.floating)
            item[key] = convert_to_dst_type(np.rint(dressed) if whole else dressed, item[key])[0]
        return item


def _floats(image: Any) -> Floats:
    return np.asarray(convert_to_numpy(image), np.float32)


def _classes(item: Mapping[Hashable, Any], key: Hashable) -> Labels:
    """A map of an item, (channels, *S)."""
    if key not in item:
        raise ValueError(f"dressing needs {key!r}, the item has {sorted(map(str, item))}")
    values = convert_to_numpy(item[key])
    found = values.astype(np.uint8)
    if not np.array_equal(found, values):
        raise ValueError(f"{key!r} must hold classes from 0 to 254, or 255, got {values.min()} to {values.max()}")
    return np.ascontiguousarray(found)


class SyntheticSheet:
    """Save a picture of the synthetic images that training will see, with their masks, when training begins.

    Args:
        dataset: synthetic items with ``image`` ``(C, *S)`` and ``label`` ``(1, *S)``; of a volume the middle plane of
            its last axis is shown.
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
            image, label = (convert_to_numpy(self.dataset[n][key]) for key in ("image", "label"))
            pair = picture(image), label_picture(plane_of(label, None), self.num_classes, background=None)
            rows.append(np.concatenate([one.swapaxes(0, 1) for one in pair], 1))
        if rows:
            width = max(row.shape[1] for row in rows)
            sheet = Image.fromarray(
                np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows])
            )
            write_atomically(self.path, lambda file: sheet.save(file, format="PNG"))
