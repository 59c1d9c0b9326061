"""Pictures as arrays: photographs, label maps, drawings and errors in the colours that mean something.

Convention: one case at a time. Maps are (H, W) or channel-first (R, *S) with one channel an annotator; images are
(H, W), channel-first (C, *S) or photographs (H, W, 3), in any range. 255 means unlabeled and is see-through or grey.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from medcoarse.confusion import UNLABELED

Picture = npt.NDArray[np.uint8]
ArrayOrTensor = npt.NDArray[Any] | torch.Tensor
Colour = tuple[int, int, int]

HIT, REST, FALSE_ALARM, MISSED = (255, 255, 255), (0, 0, 0), (230, 38, 38), (255, 214, 10)
MIXED_UP, LEFT_OUT = (45, 140, 255), (128, 128, 128)
POSITIVE, NEGATIVE = (0, 214, 224), (255, 64, 200)


def picture(image: ArrayOrTensor, plane: int | None = None) -> Picture:
    """An image in any range as red, green and blue bytes.

    Bytes and floats in [0, 1] are shown as they are. Anything else, such as standardized inputs, is stretched from
    its 0.5% to its 99.5% quantile. Images with neither 1, 3 nor 4 channels show their first.

    Args:
        image: (H, W), channel-first (C, *S), or a photograph (H, W, 3).
        plane: which plane of the last axis of a volume; by default the middle one.

    Returns:
        uint8 (H, W, 3).

    Example:
        >>> picture(np.array([[0.0, 1.0]])).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    x = as_array(image)
    if x.ndim == 3 and x.shape[-1] in (3, 4) and x.shape[0] > 4:
        x = np.moveaxis(x, -1, 0)
    x = x[None] if x.ndim == 2 else x
    if x.ndim not in (3, 4):
        raise ValueError(f"image must be (H, W), (C, H, W), (C, X, Y, Z) or (H, W, 3), got {x.shape}; give one case")
    x = plane_of(x, plane)
    x = x[:3] if x.shape[0] in (3, 4) else x[:1].repeat(3, axis=0)
    return np.ascontiguousarray(np.moveaxis(_to_bytes(x), 0, -1))


def label_picture(label: ArrayOrTensor, num_classes: int = 2, background: int | None = 0) -> Picture:
    """A label map in the colours of its classes: white on black for two, unlabeled pixels grey.

    Args:
        label: classes (H, W) or (1, H, W).
        num_classes: L.
        background: the class that is black; None where class 0 is a thing like the others.

    Returns:
        uint8 (H, W, 3).

    Example:
        >>> label_picture(np.array([[0, 1, 255]]))[0, :, 0].tolist()
        [0, 255, 128]
    """
    x = label_map(label, "label", num_classes=num_classes)
    table = np.full((256, 3), LEFT_OUT, np.uint8)
    table[:num_classes] = class_colours(num_classes, background)
    out: Picture = table[x]
    return out


def class_colours(num_classes: int, background: int | None = 0) -> Picture:
    """Colours (L, 3) of the classes: black and white for two, else well separated hues in turning brightness.

    Example:
        >>> class_colours(2).tolist()
        [[0, 0, 0], [255, 255, 255]]
    """
    if num_classes == 2 and background is not None:
        colours = np.full((2, 3), 255, np.uint8)
    else:
        k = np.arange(num_classes)
        hsv = np.stack([(0.08 + k * 0.618034) % 1, 0.9 - 0.25 * (k % 2), 1 - 0.22 * (k % 3)], axis=1)
        colours = np.round(np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv.tolist()]) * 255).astype(np.uint8)
    if background is not None:
        colours[background] = REST
    return colours


def error_map(
    pred: ArrayOrTensor,
    label: ArrayOrTensor,
    mask: ArrayOrTensor | None = None,
    class_index: int | None = 1,
    background: int | None = 0,
) -> Picture:
    """Where a prediction is right and wrong about a class.

    White: found (true positive). Black: rightly left (true negative). Red: said and not true (false positive).
    Yellow: true and not said (false negative). Grey: label 255 or outside the field of view.

    Args:
        pred: predicted classes (H, W) or (1, H, W).
        label: true classes of the same size.
        mask: field of view of the same size.
        class_index: the class; None takes every class but the background as one, and shows in blue where one such
            class was said for another.
        background: that background; None where there is none.

    Returns:
        uint8 (H, W, 3).

    Example:
        >>> error_map(np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 255]]))[0].tolist()
        [[255, 255, 255], [230, 38, 38], [255, 214, 10], [128, 128, 128]]
    """
    p, t = label_map(pred, "pred"), label_map(label, "label")
    keep = t != UNLABELED
    if mask is not None:
        keep &= label_map(mask, "mask", like=t) != 0
    if p.shape != t.shape:
        raise ValueError(f"pred and label must have the same size, got {p.shape} and {t.shape}; resample pred")
    said, true = (p != background, t != background) if class_index is None else (p == class_index, t == class_index)
    out = np.full((*t.shape, 3), REST, np.uint8)
    out[said & true] = HIT
    out[said & ~true] = FALSE_ALARM
    out[~said & true] = MISSED
    if class_index is None:
        out[said & true & (p != t)] = MIXED_UP
    out[~keep] = LEFT_OUT
    return out


def annotation_overlay(
    image: ArrayOrTensor,
    positive: ArrayOrTensor | None,
    negative: ArrayOrTensor | None,
    annotator: int = 0,
    num_classes: int = 2,
    background: int | None = 0,
) -> Picture:
    """What was drawn, over the photograph in grey: positive in cyan, negative in magenta.

    With more than two classes the outlines have those colours, and the areas those of their classes, negative ones
    striped. Undrawn pixels and those of the background class are see-through; where background was drawn beside what
    nobody drew, its border is black.

    Args:
        image: (H, W), (C, H, W) or (H, W, 3).
        positive: "this is class k", (H, W) or (R, H, W); None for none.
        negative: "this is not class k", alike.
        annotator: which of the R annotators.
        num_classes: L.
        background: the class that is not painted; None where class 0 is a thing like the others.

    Returns:
        uint8 (H, W, 3).

    Example:
        >>> drawn = np.array([[1, 255]])
        >>> annotation_overlay(np.zeros((1, 2)), drawn, None)[0].tolist()
        [[0, 184, 193], [0, 0, 0]]
    """
    base = picture(image).astype(np.float32)
    out = 0.8 * base.mean(-1, keepdims=True) + 0.2 * base  # nearly grey, so that only drawings have a strong colour
    colours = class_colours(num_classes, background)
    for name, drawing, colour in (("positive", positive, POSITIVE), ("negative", negative, NEGATIVE)):
        if drawing is not None:
            x = label_map(drawing, name, annotator, like=base[..., 0], num_classes=num_classes)
            drawn = _foreground(x, background)
            if background is not None:
                _blend(out, (x == background) & ndimage.binary_dilation(x == UNLABELED), np.asarray(REST), 0.8)
            _paint(out, x, drawn, colour, colours if num_classes > 2 else None, striped=name == "negative")
    painted: Picture = np.round(out).astype(np.uint8)
    return painted


def as_array(x: ArrayOrTensor) -> npt.NDArray[Any]:
    """The NumPy array of an array, or of a tensor on any device.

    Example:
        >>> as_array(torch.ones(2, requires_grad=True))
        array([1., 1.], dtype=float32)
    """
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def label_map(
    x: ArrayOrTensor,
    name: str,
    channel: int = 0,
    like: npt.NDArray[Any] | None = None,
    num_classes: int | None = None,
) -> npt.NDArray[np.int64]:
    """One checked label map (H, W) out of (H, W) or (R, H, W).

    Args:
        x: class numbers and 255.
        name: what it is called in error messages.
        channel: which of the R annotators.
        like: an array whose shape it must have.
        num_classes: L, if the values are to be checked too.

    Raises:
        ValueError: another shape, annotator or class.

    Example:
        >>> label_map(np.array([[[0, 1]], [[1, 255]]]), "positive", channel=1)
        array([[  1, 255]])
    """
    x = as_array(x)
    if x.ndim not in (2, 3):
        raise ValueError(f"{name} must be (H, W) or (R, H, W), got {x.shape}; give one case, and one plane of a volume")
    if x.ndim == 3 and not 0 <= channel < len(x):
        raise ValueError(f"{name} has {len(x)} annotators, so annotator must be in 0 .. {len(x) - 1}, got {channel}")
    x = x[channel] if x.ndim == 3 else x
    if like is not None and x.shape != like.shape:
        raise ValueError(f"{name} must be {like.shape} like the picture, got {x.shape}; crop or resample them together")
    x = x.astype(np.int64)
    if num_classes is None:
        return x
    known = x[x != UNLABELED]
    if known.size and not 0 <= known.min() <= known.max() < num_classes:
        raise ValueError(
            f"{name} must hold classes 0 .. {num_classes - 1} or {UNLABELED}, got values from {known.min()} to "
            f"{known.max()}; check class_names or num_classes"
        )
    return x


def plane_of(x: npt.NDArray[Any], plane: int | None) -> npt.NDArray[Any]:
    """The plane (C, H, W) of a volume (C, X, Y, Z) along its last axis, by default the middle one; flat arrays pass.

    Example:
        >>> plane_of(np.arange(3).reshape(1, 1, 1, 3), None)
        array([[[1]]])
    """
    if x.ndim < 4:
        return x
    return x[..., x.shape[-1] // 2 if plane is None else plane]


def fullest_plane(maps: Sequence[ArrayOrTensor], background: int | None = 0) -> int | None:
    """The plane in which the first of the given volumes has most foreground; None for flat maps.

    Example:
        >>> fullest_plane([np.array([[[[0, 255, 1]]]])])
        2
    """
    for x in maps:
        if x.ndim == 4:
            volume = as_array(x)[0]
            areas = _foreground(volume, background).sum((0, 1))
            return int(areas.argmax()) if areas.any() else volume.shape[-1] // 2
    return None


def _paint(
    out: npt.NDArray[np.float32],
    x: npt.NDArray[np.int64],
    drawn: npt.NDArray[np.bool_],
    colour: Colour,
    colours_of_classes: Picture | None,
    striped: bool,
) -> None:
    """Lay the drawn areas over a picture: a wash, and an outline that tells a thin stroke from its surroundings."""
    width = max(1, round(max(drawn.shape) / 500))  # of outlines, so that a figure still shows them
    if colours_of_classes is None:
        _blend(out, drawn, np.asarray(colour), 0.5 if drawn.mean() < 0.5 else 0.3)
    else:
        diagonal = np.add.outer(np.arange(drawn.shape[0]), np.arange(drawn.shape[1]))
        area = drawn & (diagonal // (4 * width) % 2 == 0) if striped else drawn
        _blend(out, area, colours_of_classes[x[area]], 0.6)
    outline = drawn & ~ndimage.binary_erosion(drawn, iterations=width, border_value=1)
    _blend(out, outline, np.asarray(colour), 0.8)


def _blend(out: npt.NDArray[np.float32], where: npt.NDArray[np.bool_], colour: npt.NDArray[Any], share: float) -> None:
    out[where] = (1 - share) * out[where] + share * colour


def _foreground(x: npt.NDArray[Any], background: int | None) -> npt.NDArray[np.bool_]:
    """Where a map names a class that is painted."""
    known: npt.NDArray[np.bool_] = x != UNLABELED
    return known if background is None else known & (x != background)


def _to_bytes(x: npt.NDArray[Any]) -> Picture:
    if x.dtype == np.uint8:
        return x
    x = np.nan_to_num(x.astype(np.float32))
    low, high = (0.0, 1.0) if x.size and x.min() >= 0 and x.max() <= 1 else np.quantile(x, [0.005, 0.995])
    return np.round(np.clip((x - low) / max(high - low, 1e-8), 0, 1) * 255).astype(np.uint8)
