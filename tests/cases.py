"""Small cases that several test files share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def random_case(
    seed: int, size: tuple[int, ...], num_classes: int, num_images: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, label with unknown pixels and without its last class in the first image, field of view."""
    rng = np.random.default_rng(seed)
    pred = rng.integers(0, num_classes, (num_images, 1, *size))
    label = rng.integers(0, num_classes, (num_images, 1, *size))
    label[0][label[0] == num_classes - 1] = 0
    label[rng.random(label.shape) < 0.2] = 255
    return pred, label, rng.random(label.shape) < 0.8


def disc(shape: tuple[int, ...] = (24, 30), shift: int = 0) -> npt.NDArray[np.int64]:
    grid = np.indices(shape)
    centre = [n // 2 for n in shape]
    centre[0] += shift
    distance = sum((x - c) ** 2 for x, c in zip(grid, centre, strict=True))
    return (distance < 36).astype(np.int64)


def colours(picture: npt.NDArray[np.uint8]) -> set[tuple[int, ...]]:
    codes = np.unique(picture.reshape(-1, 3).astype(int) @ [65536, 256, 1])  # much faster than unique rows
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()}
