"""Noisy digits: drawn ones that need no download, and the files in which these and MNIST's are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medcoarse.files import write_dataset, write_json
from medcoarse.synthetic import strokes

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other pixels, so that a data set drawn by an older version is not reused."""

NOISE = 0.3
"""Standard deviation of the noise, for digits of intensity 0 to 1."""


@dataclass(frozen=True)
class StrokeDigits:
    """Digits as a pen writes them.

    Args:
        images: (N, 28, 28) float32, 0 without ink, 1 in the middle of a stroke.
        classes: (N,) int, from 0 to 9.
    """

    images: NDArray[np.float32]
    classes: NDArray[np.int64]


def stroke_digits(seeds: Sequence[int], classes: Sequence[int] | None = None) -> StrokeDigits:
    """Write digits as MNIST shows them: 28 x 28 pixels, the digit in a box of 20, its centre of mass in the middle.

    A digit is one of two or three ways to write it, bent, slanted and stretched at random, with a pen of random width
    and uneven pressure. It depends on its own seed only, not on the others in the call.

    Args:
        seeds: N non-negative integers; the same seed gives the same digit.
        classes: N numbers from 0 to 9, what to write; ``None`` leaves that to the seeds.

    Returns:
        Images and what they show. The mask is, as for MNIST, where the intensity is above 0.5.

    Raises:
        ValueError: for a negative seed, another class or another number of classes.

    Example:
        >>> digits = stroke_digits([0, 1, 2], classes=[7, 1, 0])
        >>> digits.images.shape, digits.images.dtype, digits.classes.tolist()
        ((3, 28, 28), dtype('float32'), [7, 1, 0])
        >>> bool(0.03 < (digits.images > 0.5).mean() < 0.3)
        True
    """
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"seeds must be 0 or more, got {min(seeds)}")
    given = None if classes is None else np.asarray(classes, dtype=np.int64)
    if given is not None and (len(given) != len(seeds) or not np.isin(given, np.arange(10)).all()):
        raise ValueError(
            f"classes must be {len(seeds)} numbers from 0 to 9, one for each seed, got {list(classes or [])}"
        )
    streams = [np.random.default_rng(seed) for seed in seeds]
    drawn = np.array([stream.integers(10) for stream in streams], dtype=np.int64)
    normal = np.array([stream.normal(size=strokes.NUM_NORMAL) for stream in streams])
    uniform = np.array([stream.random(strokes.NUM_UNIFORM) for stream in streams])
    chosen = drawn if given is None else given
    if not len(seeds):
        return StrokeDigits(np.empty((0, strokes.SIDE, strokes.SIDE), np.float32), chosen)
    return StrokeDigits(strokes.rasterize(strokes.write(chosen, normal, uniform)), chosen)


def add_noise(clean: NDArray[Any], index: int, seed: int = 0, noise: float = NOISE) -> NDArray[np.float64]:
    """A clean image and Gaussian noise, clipped: ``clip(clean + N(0, noise), 0, 1)``.

    Args:
        clean: intensities from 0 to 1.
        index: number of the image in its data set; its noise depends on this and the seed alone.
        seed: of the data set.
        noise: standard deviation.

    Example:
        >>> add_noise(np.zeros((1, 3)), index=0).round(3).tolist()
        [[0.038, 0.0, 0.192]]
    """
    rng = np.random.default_rng([seed, index])
    noisy: NDArray[np.float64] = np.clip(clean + rng.normal(0, noise, clean.shape), 0, 1)
    return noisy


# ---- the data set on disk ---------------------------------------------------------------------------------------

README = """
images/<number>.png   the digit and Gaussian noise, clipped: clip(clean + N(0, {noise}), 0, 1), stored as 0 to 255
labels/<number>.png   255 where the clean intensity is above 0.5, everything else 0
datalist.json         training, validation and test images in MONAI's decathlon format, paths relative to this folder
provenance.json       where the digits come from, and the parameters that the data set depends on

Storing intensities in steps of 1/255 is an error of standard deviation 0.001. The clean images are not part of the data
set.
"""

Splits = Mapping[str, Sequence[int]]
"""Section of the datalist -> numbers of its images."""


def _item(number: int) -> dict[str, str]:
    return {"image": f"images/{number:05d}.png", "label": f"labels/{number:05d}.png"}


def digit_paths(splits: Splits) -> list[str]:
    """The files of a data set with these images, but for ``provenance.json``.

    Example:
        >>> digit_paths({"test": [7]})
        ['README.txt', 'datalist.json', 'images/00007.png', 'labels/00007.png']
    """
    pictures = (path for numbers in splits.values() for number in numbers for path in _item(number).values())
    return ["README.txt", "datalist.json", *pictures]


def write_digit_files(
    folder: Path,
    splits: Splits,
    clean: Iterable[NDArray[Any]],
    title: str,
    description: str,
    seed: int = 0,
    noise: float = NOISE,
) -> None:
    """Write images with noise, masks, datalist and README into a folder.

    Args:
        folder: an empty one.
        splits: which image is in which section.
        clean: the images without noise, intensities 0 to 1, in the order of ``splits``.
        title: what the data set is called.
        description: one line on it, for the datalist and the README.
        seed: of the noise.
        noise: standard deviation.
    """
    for name in ("images", "labels"):
        (folder / name).mkdir()
    numbers = [number for section in splits.values() for number in section]
    for number, image in zip(numbers, clean, strict=True):
        paths = _item(number)
        samples = np.round(255 * add_noise(image, number, seed, noise)).astype(np.uint8)
        Image.fromarray(samples).save(folder / paths["image"])
        Image.fromarray((image > 0.5).astype(np.uint8) * 255).save(folder / paths["label"])
    datalist = {
        "name": title,
        "description": description,
        "tensorImageSize": "2D",
        "modality": {"0": "intensity"},
        "labels": {"0": "background", "1": "digit"},
        **{section: [_item(number) for number in chosen] for section, chosen in splits.items()},
    }
    (folder / "README.txt").write_text(f"{title}: {description}\n{README.format(noise=noise)}", encoding="utf-8")
    write_json(folder / "datalist.json", datalist)


def write_digit_dataset(
    folder: str | Path,
    num_training: int = 400,
    num_validation: int = 100,
    num_test: int = 200,
    seed: int = 0,
    noise: float = NOISE,
) -> Path:
    """Write drawn digits in the layout of ``data_prep/mnist.py``; reuse the data set if it is already there.

    The data set is whole or absent; several processes may ask for the same one at the same time. The images are
    numbered from the test images on, so that these are the same whatever the number of training images.

    Args:
        folder: where the data set goes; made with its parents.
        num_training: training images.
        num_validation: validation images.
        num_test: test images.
        seed: of the whole data set; image i is the same whatever the numbers are.
        noise: standard deviation of the noise, for intensities from 0 to 1.

    Returns:
        The folder.

    Raises:
        ValueError: for numbers below 1, a negative seed or negative noise.
        FileExistsError: if the folder holds anything but this very data set, whole.

    Example:
        >>> import tempfile
        >>> folder = write_digit_dataset(Path(tempfile.mkdtemp()) / "digits", 3, 1, 1)
        >>> sorted(entry.name for entry in folder.iterdir())
        ['README.txt', 'datalist.json', 'images', 'labels', 'provenance.json']
    """
    numbers = {"num_training": num_training, "num_validation": num_validation, "num_test": num_test}
    if min(numbers.values()) < 1 or seed < 0 or noise < 0:
        raise ValueError(
            f"numbers of images must be at least 1, seed and noise 0 or more, got {numbers}, {seed=}, {noise=}"
        )
    test, validation, training = np.split(np.arange(sum(numbers.values())), np.cumsum([num_test, num_validation]))
    splits = {"training": training.tolist(), "validation": validation.tolist(), "test": test.tolist()}

    def write(draft: Path) -> None:
        # A seed sequence, because seed + index would make neighbouring data sets share digits.
        seeds = [
            int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            for chosen in splits.values()
            for number in chosen
        ]
        description = "drawn by medcoarse.synthetic.digits.write_digit_dataset, NOT from MNIST"
        write_digit_files(
            draft, splits, stroke_digits(seeds).images, "Synthetic noisy digits", description, seed, noise
        )

    provenance = {
        "generator": "medcoarse.synthetic.digits.write_digit_dataset",
        "generator_version": GENERATOR_VERSION,
        "parameters": {**numbers, "seed": seed, "noise": noise},
    }
    return write_dataset(Path(folder), provenance, digit_paths(splits), "synthetic data set of digits", write)
