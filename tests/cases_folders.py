"""Small folders of images and drawings, as people have them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

OBLIQUE = np.array([[-1.0, 0.2, 0, 5], [0.2, 1.0, 0, 7], [0, 0, 3.0, -4], [0, 0, 0, 1]])
BACKGROUND = 3
"""The label that background is drawn with."""


def volume(seed: int, shape: tuple[int, ...] = (24, 22, 8)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright box in noise, its mask, and strokes of both."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(side // 4, side // 4 + side // 2) for side in shape)] = 1
    image = (100 * mask + generator.normal(0, 10, shape)).astype(np.float32)
    drawing = np.zeros(shape, np.uint8)
    drawing[shape[0] // 2, shape[1] // 4 + 1 : shape[1] // 2] = mask[shape[0] // 2, shape[1] // 4 + 1 : shape[1] // 2]
    drawing[1:3, 2:20] = BACKGROUND
    return image, mask, drawing


def write_volumes(folder: Path, number: int = 4, affine: np.ndarray = OBLIQUE) -> Path:
    """images/, drawings/, masks/"""
    for index in range(number):
        for name, values in zip(("images", "masks", "drawings"), volume(index), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            end = "_drawn" if name == "drawings" else ""
            nib.save(nib.Nifti1Image(values, affine), folder / name / f"case{index}{end}.nii.gz")
    return folder


def write_pictures(folder: Path, number: int = 3) -> Path:
    """The same as grey pictures; nothing drawn is 255, background 0."""
    for index in range(number):
        image, mask, drawing = volume(index, (40, 33))
        grey = np.clip(image + 50, 0, 255).astype(np.uint8)
        strokes = np.choose(drawing, [255, 1, 255, 0]).astype(np.uint8)
        for name, values in (("images", grey), ("drawings", strokes), ("masks", mask)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.T).save(folder / name / f"p{index}.png")
    return folder
