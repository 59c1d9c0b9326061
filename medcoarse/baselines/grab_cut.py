"""GrabCut: mixtures of colours for what is drawn and what is not, and a minimum cut of the pixels, in turn.

It uses all drawings that say one class. OpenCV has the algorithm: ``pip install opencv-python-headless``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.special import logsumexp
from skimage.morphology import convex_hull_image

from medcoarse.baselines.seeds import as_colors, drawn_classes, keep_drawn
from medcoarse.confusion import UNLABELED

Bytes = NDArray[np.uint8]
_OUTSIDE, _DRAWN, _LIKELY_NOT, _LIKELY = range(4)  # as OpenCV numbers them


class GrabCutError(RuntimeError):
    """OpenCV could not cut an image; says why."""


def grab_cut(
    image: NDArray[Any],
    partial: NDArray[Any],
    num_classes: int,
    spacing: Sequence[float] | None = None,
    iterations: int = 5,
    margin: float = 5.0,
) -> Bytes:
    """A label map out of a partial one.

    With two classes the greater is cut from the other. With more each is cut from all others; where several claim a
    pixel it gets the one whose mixture makes its colour most likely, where none does it stays 255. What was drawn of
    one class other than background alone is cut from everything that is more than ``margin`` pixels outside its convex
    hull.

    Args:
        image: ``(C, H, W)`` of one or three channels; a single one is repeated, each from 0 to 255 in steps of 1.
        partial: ``(H, W)``, 255 where nothing was drawn.
        num_classes: L.
        spacing: not used: the contrast between neighbours knows no distances but one and its diagonal.
        iterations: of mixtures and cuts in turn.
        margin: in pixels.

    Returns:
        uint8 ``(H, W)``: what was drawn stays. With nothing but background drawn, what was not drawn stays 255.

    Raises:
        ValueError: a volume, another number of channels; see also :func:`.seeds.drawn_classes`.
        GrabCutError: what OpenCV says, such as that no pixel is outside to start from; versions before 5 want at least
            as many pixels on either side as a mixture has components.
        ImportError: OpenCV is not there.

    Source: Rother, Kolmogorov and Blake, "GrabCut" (SIGGRAPH 2004); 5 components, γ = 50 and eight neighbours are those
        of OpenCV.
    Deviates: seeds are drawings in place of a box, so that what was not drawn starts as not the class. Volumes are not
        done: OpenCV's graph is flat, and cutting slice by slice would be another method.

    Example:
        >>> image = np.zeros((1, 12, 12))
        >>> image[0, 3:9, 3:9] = 1.0
        >>> partial = np.full((12, 12), 255)
        >>> partial[4:6, 4:8], partial[0] = 1, 0
        >>> bool((grab_cut(image, partial, num_classes=2) == image[0]).all())
        True
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"GrabCut is for images (C, H, W) of one or three channels, got {image.shape}")
    classes = drawn_classes(image, partial, num_classes)
    if not (partial == UNLABELED).any() or classes.tolist() in ([], [0]):
        return partial.astype(np.uint8)
    colors = np.rint(np.moveaxis(as_colors(image), 0, -1)).astype(np.uint8)
    pixels: Bytes = np.ascontiguousarray(np.broadcast_to(colors, (*partial.shape, 3)))
    if len(classes) == 1:
        found, _ = _cut(pixels, _within_hull(partial == classes[0], margin), iterations)
        return keep_drawn(np.where(found, classes[0], UNLABELED), partial)
    if len(classes) == 2:
        found, _ = _cut(pixels, _seeds(partial, classes[1]), iterations)
        return keep_drawn(np.where(found, classes[1], classes[0]), partial)
    cuts = [_cut(pixels, _seeds(partial, k), iterations) for k in classes]
    claims = np.stack([np.where(found, log_mixture(pixels, model), -np.inf) for found, model in cuts])
    nobody = np.isneginf(claims).all(0)
    return keep_drawn(np.where(nobody, UNLABELED, classes[claims.argmax(0)]), partial)


def _seeds(partial: NDArray[Any], k: int) -> Bytes:
    seeds = np.where(partial == k, _DRAWN, np.where(partial == UNLABELED, _LIKELY_NOT, _OUTSIDE))
    return seeds.astype(np.uint8)


def _within_hull(drawn: NDArray[np.bool_], margin: float) -> Bytes:
    hull = convex_hull_image(drawn)  # type: ignore[no-untyped-call]
    near = distance_transform_edt(~hull) <= margin
    return np.where(drawn, _DRAWN, np.where(near, _LIKELY, _OUTSIDE)).astype(np.uint8)


def _cut(pixels: Bytes, seeds: Bytes, iterations: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Where the class is, and the mixture of its colours as OpenCV lays it out."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError("GrabCut needs OpenCV: pip install opencv-python-headless") from error
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    found = seeds.copy()
    cv2.setRNGSeed(0)  # of this thread: the mixtures start from random pixels
    try:
        cv2.grabCut(pixels, found, (0, 0, 0, 0), background, foreground, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error as error:
        raise GrabCutError(str(error).strip()) from error
    return np.isin(found, (_DRAWN, _LIKELY)), foreground


def log_mixture(pixels: Bytes, model: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log density of colours ``(H, W, 3)`` under a mixture of five Gaussians, ``(H, W)``.

    Args:
        pixels: colours.
        model: ``(1, 65)``: five weights, five means, five covariances. A component of weight 0 is none.
    """
    weights, means, covariances = np.split(model[0], (5, 20))
    logs = []
    for weight, mean, covariance in zip(weights, means.reshape(5, 3), covariances.reshape(5, 3, 3), strict=True):
        if weight > 0:
            off = pixels - mean
            distance = np.einsum("hwi,ij,hwj->hw", off, np.linalg.inv(covariance), off)
            logs.append(np.log(weight) - 0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1]))
    density: NDArray[np.float64] = logsumexp(logs, axis=0)
    return density
