"""What strokes say beyond themselves: background that nobody filled in, from how people draw it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_dst_type
from scipy import ndimage
from scipy.spatial import KDTree

from medcoarse.annotators import check_values
from medcoarse.confusion import UNLABELED
from medcoarse.distance import squared_distances
from medcoarse.transforms.array import spacing_of

Item = dict[Hashable, Any]

_BACKEND = [TransformBackends.NUMPY]
_MOST_STROKES, _MOST_VOXELS, _MOST_EDGES = 200, 2000, 50_000


def fill_beyond_loops(strokes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Strokes in which what lies beyond a closed line of background is background too, and beyond the last slices.

    On a slice, undrawn pixels are background if every way from them to a stroke of another class crosses background.
    Ways go to the four neighbours, so a line one pixel wide is closed also where it runs diagonally. Along the slices,
    if the last strokes of other classes lie within a closed line, the first slice past them on which somebody drew
    background says that the structures have ended: what is undrawn there and farther on is background. Any other slice
    without a stroke of another class stays as it is.

    Args:
        strokes: a label map of one slice (X, Y), or of slices along the last axis (X, Y, Z); 255 is undrawn.

    Returns:
        A new label map.

    Example:
        >>> row = np.array([[255, 0, 255, 1, 255, 255]], np.uint8)
        >>> fill_beyond_loops(row).tolist()
        [[0, 0, 255, 1, 255, 255]]
    """
    filled = strokes.copy()
    slices = np.moveaxis(filled, 2, 0) if strokes.ndim == 3 else filled[None]
    closed = np.array([_fill_beyond_the_loop(plane) for plane in slices])
    for step in (1, -1):
        _fill_beyond_the_end(slices[::step], closed[::step])
    return filled


def _fill_beyond_the_loop(plane: np.ndarray[Any, Any]) -> bool:
    """In place: (X, Y); returns whether background goes all around the strokes of other classes."""
    parts, _ = ndimage.label(plane != 0)
    holding = np.unique(parts[(plane != 0) & (plane != UNLABELED)])
    if not len(holding):
        return False
    plane[(parts > 0) & ~np.isin(parts, holding)] = 0
    border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return not np.isin(holding, border).any()


def _fill_beyond_the_end(slices: np.ndarray[Any, Any], closed: np.ndarray[Any, Any]) -> None:
    """In place: (Z, X, Y), in the order of looking, and on which slices a line is closed.

    Who draws on slices across another axis leaves no closed lines on these, and nothing is said.
    """
    holding = ((slices != 0) & (slices != UNLABELED)).any((1, 2))
    last = len(slices) - 1 - int(holding[::-1].argmax())
    if closed[last]:
        said = np.flatnonzero((slices[last + 1 :] == 0).any((1, 2)))
        if len(said):
            beyond = slices[last + 1 + said[0] :]
            beyond[beyond == UNLABELED] = 0


def count_loops(strokes: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Slices with a stroke of another class than background, and how many of them have a closed line round it that
    speaks for something: beyond it lies what nobody drew.

    Args:
        strokes: as for `fill_beyond_loops`.

    Example:
        >>> count_loops(np.array([[255, 0, 0, 0, 255], [255, 0, 1, 0, 255], [255, 0, 0, 0, 255]], np.uint8))
        (1, 1)
    """
    slices = np.moveaxis(strokes, 2, 0) if strokes.ndim == 3 else strokes[None]
    holding = [plane for plane in slices if ((plane != 0) & (plane != UNLABELED)).any()]
    filled = [plane.copy() for plane in holding]
    closed = [_fill_beyond_the_loop(plane) for plane in filled]
    speaking = [bool((after != plane).any()) for plane, after in zip(holding, filled, strict=True)]
    return len(holding), sum(one and other for one, other in zip(closed, speaking, strict=True))


def spread_background(strokes: np.ndarray[Any, Any], spacing: Sequence[float], ratio: float) -> np.ndarray[Any, Any]:
    """Strokes in which what lies much nearer to background than to any other stroke is background too.

    An undrawn voxel becomes background if its distance to the nearest stroke of background is at most ``ratio`` times
    that to the nearest stroke of another class. Between them a margin stays undrawn: the border of the structure lies
    in it, if every structure in the image got a stroke that reaches most of its length. Where nothing but background
    was drawn, nothing is added.

    Args:
        strokes: a label map (*S) of one image in 2D or 3D; 255 is undrawn.
        spacing: mm of a voxel along each axis.
        ratio: from 0, nothing is added, to 1, no margin is left. Measured on strokes in prostates, a person's among
            them: at 0.5, 99.5 % and more of what is added is background (99.2 % where what lies beyond closed lines was
            added first), and half or more of the undrawn background is added.

    Returns:
        A new label map.

    Source: ours; it makes background of what is unlabeled, so it is for those who say that they draw so.

    Example:
        >>> row = np.array([0, 255, 255, 255, 255, 255, 1], np.uint8)
        >>> spread_background(row, spacing=[1.0], ratio=0.5).tolist()
        [0, 0, 0, 255, 255, 255, 1]
    """
    background = strokes == 0
    structures = ~background & (strokes != UNLABELED)
    if ratio == 0 or not (structures.any() and background.any()):
        return strokes.copy()
    near, far = (squared_distances(mask, spacing, np.inf) for mask in (background, structures))
    return np.where((strokes == UNLABELED) & (near <= ratio**2 * far), np.uint8(0), strokes)


def losing_ratios(strokes: np.ndarray[Any, Any], spacing: Sequence[float]) -> list[float]:
    """From which ratio on `spread_background` would call each stroke background, had it not been drawn.

    Each connected stroke of what is not background is left out in turn, and is lost once half of it lies at most the
    ratio times as far from background as from the nearest of the other strokes. Strokes in one compact structure are
    near each other and hard to lose; one stroke on each of some lesions, or of some vessels, is lost early, and so
    would be those that nobody touched. Several strokes on a lesion keep each other, and say nothing of other lesions.

    Args:
        strokes: a label map (*S); 255 is undrawn.
        spacing: mm of a voxel along each axis.

    Returns:
        One ratio for each stroke; none where there is but one, no background, or nothing undrawn. Of hundreds of
        strokes every n-th is left out, and of large ones every n-th voxel looked at, so that it takes seconds.

    Source: ours.

    Example:
        >>> losing_ratios(np.array([1, 255, 1, 255, 255, 255, 255, 255, 0, 1], np.uint8), [1.0])
        [4.0, 3.0, 0.14285714285714285]
    """
    structures = (strokes != 0) & (strokes != UNLABELED)
    parts, number = ndimage.label(structures, np.ones((3,) * strokes.ndim))
    if number < 2 or not (strokes == 0).any() or not (strokes == UNLABELED).any():
        return []
    near = squared_distances(strokes == 0, spacing, np.inf)
    # The nearest voxel of a stroke is one of its edge.
    edges = np.argwhere(structures & ~ndimage.binary_erosion(structures))
    firsts = np.unique(parts[tuple(edges.T)], return_index=True)[1]  # so that no stroke is lost sight of
    edges = edges[np.union1d(firsts, np.arange(0, len(edges), 1 + len(edges) // _MOST_EDGES))]
    owner, places = parts[tuple(edges.T)], edges * np.asarray(spacing)
    boxes, found = ndimage.find_objects(parts), []
    for part in range(1, number + 1, 1 + number // _MOST_STROKES):
        box = boxes[part - 1]
        own = np.argwhere(parts[box] == part) + [side.start for side in box]
        own = own[:: 1 + len(own) // _MOST_VOXELS]
        far, _ = KDTree(places[owner != part]).query(own * np.asarray(spacing))
        found.append(float(np.quantile(np.sqrt(near[tuple(own.T)]) / far, 0.5, method="inverted_cdf")))
    return found


def safe_ratio(losing: Sequence[float], looped: bool = False, unknown: float = 0.3) -> float:
    """The largest ratio for `spread_background`, in tenths, at which no more than one stroke in twenty is lost.

    It is at most 0.5, or 0.3 beside closed lines, which leave little but the border open: beyond that what is added
    reaches into structures, however compact (measured on drawn prostates).

    Args:
        losing: of all images, see `losing_ratios`.
        looped: whether what lies beyond closed lines of background is background.
        unknown: where no image has strokes to leave out.

    Example:
        >>> safe_ratio([0.2, *[0.45] * 30]), safe_ratio([0.04, 0.9]), safe_ratio([0.9], looped=True), safe_ratio([])
        (0.4, 0.0, 0.3, 0.3)
    """
    if not losing:
        return unknown
    first_kept = sorted(losing)[len(losing) // 20]
    tenths = math.ceil(10 * first_kept) - 1  # below it, not at it
    return min(0.3 if looped else 0.5, max(0, tenths) / 10)


def _checked(strokes: Any, key: Hashable) -> np.ndarray[Any, Any]:
    """As an array of classes and 255: a stroke that was interpolated would become one of background."""
    values = np.asarray(strokes)
    check_values(values, None, UNLABELED, repr(key))
    return values


class FillBeyondLoopsd(MapTransform):
    """Read a closed line of background around a structure, and background alone past its ends, as "all beyond is too".

    See `fill_beyond_loops`: for people who draw so. Who leaves out a structure on a slice and draws background there,
    past the last stroke of a class, should not use it.

    Args:
        keys: strokes (R, *S), one channel an annotator, with values of classes, 255 where nothing was drawn; slices lie
            along the third axis.
        allow_missing_keys: skip items without strokes.

    Raises:
        ValueError: when called, strokes with values that are neither whole numbers of classes nor 255.

    Example:
        >>> import torch
        >>> item = {"strokes": torch.tensor([[[255, 0, 255, 1]]], dtype=torch.uint8)}
        >>> FillBeyondLoopsd("strokes")(item)["strokes"]
        tensor([[[  0,   0, 255,   1]]], dtype=torch.uint8)
    """

    backend = _BACKEND

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with more background."""
        item = dict(data)
        for key in self.key_iterator(item):
            filled = np.stack([fill_beyond_loops(one) for one in _checked(item[key], key)])
            item[key] = convert_to_dst_type(filled, item[key], dtype=np.uint8)[0]
        return item


class SpreadBackgroundd(MapTransform):
    """Read background strokes as "and what is much nearer to these than to any structure", see `spread_background`.

    For people who touch every structure of an image that they draw on. Where some lesions got a stroke and others none,
    it calls these background.

    Args:
        keys: strokes (R, *S), one channel an annotator, with values of classes, 255 where nothing was drawn.
        ratio: how much nearer, from 0 (the strokes as they are) to 1.
        spacing: mm per voxel; by default that of the MetaTensor, otherwise 1.
        allow_missing_keys: skip items without strokes.

    Raises:
        ValueError: a ratio that is no number from 0 to 1; when called, as `FillBeyondLoopsd`.

    Example:
        >>> import torch
        >>> item = {"strokes": torch.tensor([[[0, 255, 255, 255, 1]]], dtype=torch.uint8)}
        >>> SpreadBackgroundd("strokes", ratio=0.5)(item)["strokes"].tolist()
        [[[0, 0, 255, 255, 1]]]
    """

    backend = _BACKEND

    def __init__(
        self,
        keys: KeysCollection,
        ratio: float = 0.5,
        spacing: Sequence[float] | float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be a number from 0, the strokes as they are, to 1, got {ratio!r}.")
        self.ratio = ratio
        self.spacing = spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with more background."""
        item = dict(data)
        for key in self.key_iterator(item):
            strokes = item[key]
            spacing = spacing_of(strokes, self.spacing)
            spread = np.stack([spread_background(one, spacing, self.ratio) for one in _checked(strokes, key)])
            item[key] = convert_to_dst_type(spread, strokes, dtype=np.uint8)[0]
        return item
