"""Data that needs no download: fundus photographs with pixel-exact vessel masks here, digits in `digits`."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medcoarse.files import write_dataset, write_json
from medcoarse.synthetic.retina import blood_density, expose, pixel_positions, rasterize, tissue, transmission
from medcoarse.synthetic.vessel_tree import draw_eye, grow_tree

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other pixels, so that a data set drawn by an older version is not reused."""


@dataclass(frozen=True)
class FundusPhotograph:
    """A colour photograph of the retina, its vessels and the part of the frame that shows the retina.

    Args:
        image: (H, W, 3) uint8, black outside the field of view.
        vessels: (H, W) bool, arteries and veins, exact to the pixel.
        field_of_view: (H, W) bool.
    """

    image: NDArray[np.uint8]
    vessels: NDArray[np.bool_]
    field_of_view: NDArray[np.bool_]


def fundus_photograph(seed: int, size: tuple[int, int] = (722, 810)) -> FundusPhotograph:
    """Draw a colour fundus photograph: vessel trees, optic disc, macula, choroid, illumination and camera.

    The scene depends on the seed only, so the same eye is seen at every size; vessels too thin for the pixel grid
    are left out of the image and of the mask.

    Args:
        seed: non-negative integer; the same seed and size give the same pixels.
        size: (height, width) in pixels, each at least 64. LES-AV photographs are 1444 x 1620, the default is half that.

    Returns:
        Image, vessel mask and field of view.

    Raises:
        ValueError: for a negative seed or a size below 64.

    Example:
        >>> photograph = fundus_photograph(seed=0, size=(96, 108))
        >>> photograph.image.shape, photograph.image.dtype
        ((96, 108, 3), dtype('uint8'))
        >>> bool((photograph.vessels & ~photograph.field_of_view).any())
        False
    """
    _check(seed, size)
    height, width = size
    for_eye, for_vessels, for_tissue, for_camera = np.random.default_rng(seed).spawn(4)
    eye = draw_eye(for_eye)
    arteries, veins = (rasterize(grow_tree(for_vessels, eye, vein), (height, width)) for vein in (False, True))
    at = pixel_positions((height, width))
    field_of_view = np.abs(at) <= eye.aperture
    density = blood_density(eye, at, clarity=for_vessels.uniform(0.75, 1.35))
    scene = tissue(for_tissue, eye, at) * transmission(arteries, veins, density)
    image = expose(for_camera, scene, at) * field_of_view[..., None]
    vessels = ((arteries.depth > 0) | (veins.depth > 0)) & field_of_view
    return FundusPhotograph(image, vessels, field_of_view)


def _check(seed: int, size: tuple[int, int]) -> None:
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if len(size) != 2 or min(size) < 64:
        raise ValueError(f"size must be (height, width) with at least 64 pixels each, got {tuple(size)}")


README = """Synthetic colour fundus photographs. NOT patients, NOT LES-AV: every pixel was drawn by
medcoarse.synthetic.write_fundus_dataset, in the folder layout of LES-AV.

images/<id>.png                 colour photograph, 8 bits a channel, black outside the field of view
vessel-segmentations/<id>.png   arteries and veins together: 255, everything else 0; exact to the pixel
masks/<id>_mask.gif             field of view: 1, outside 0
datalist.json                   the split, in MONAI's decathlon format, paths relative to this folder
provenance.json                 version and parameters of the generator, seed of every photograph
"""


def write_fundus_dataset(
    folder: str | Path,
    num_images: int = 22,
    size: tuple[int, int] = (722, 810),
    seed: int = 0,
    num_test: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic data set in the layout of LES-AV, with a MONAI datalist; reuse it if it is already there.

    The data set is written beside the folder and then renamed, so it is whole or absent; several processes may ask for
    the same one at the same time.

    Args:
        folder: where the data set goes; made with its parents.
        num_images: photographs in all.
        size: (height, width) in pixels.
        seed: of the whole data set; photograph i is the same whatever num_images is.
        num_test: how many of the photographs, the last ones, form the test split.
        progress: called with (photographs done, photographs in all) after each one.

    Returns:
        The folder.

    Raises:
        ValueError: for impossible counts, size or seed.
        FileExistsError: if the folder holds anything but this very data set, whole.

    Example:
        >>> import tempfile
        >>> folder = write_fundus_dataset(Path(tempfile.mkdtemp()) / "fundus", num_images=2, size=(64, 72), num_test=1)
        >>> sorted(entry.name for entry in folder.iterdir())
        ['README.txt', 'datalist.json', 'images', 'masks', 'provenance.json', 'vessel-segmentations']
    """
    folder = Path(folder)
    _check(seed, size)
    if not 0 <= num_test < num_images:
        raise ValueError(f"num_test must be at least 0 and below num_images, got {num_test} of {num_images}")
    provenance = _provenance(num_images, size, seed, num_test)
    paths = ["datalist.json", *(path for name in provenance["photograph_seeds"] for path in _item(name).values())]

    def write(draft: Path) -> None:
        _write_photographs(draft, provenance, progress)

    return write_dataset(folder, provenance, paths, "synthetic fundus data set", write)


def _provenance(num_images: int, size: tuple[int, int], seed: int, num_test: int) -> dict[str, Any]:
    # A seed sequence, because seed + index would make neighbouring data sets share photographs.
    seeds = {
        f"{index + 1:03d}": int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        for index in range(num_images)
    }
    return {
        "generator": "medcoarse.synthetic.write_fundus_dataset",
        "generator_version": GENERATOR_VERSION,
        "parameters": {"num_images": num_images, "size": list(size), "seed": seed, "num_test": num_test},
        "photograph_seeds": seeds,
    }


def _item(name: str) -> dict[str, str]:
    return {
        "image": f"images/{name}.png",
        "label": f"vessel-segmentations/{name}.png",
        "mask": f"masks/{name}_mask.gif",
    }


def _write_photographs(draft: Path, provenance: dict[str, Any], progress: Callable[[int, int], None] | None) -> None:
    for name in ("images", "vessel-segmentations", "masks"):
        (draft / name).mkdir()
    seeds, parameters = provenance["photograph_seeds"], provenance["parameters"]

    def write(name: str) -> None:
        photograph = fundus_photograph(seeds[name], tuple(parameters["size"]))
        paths = {key: draft / path for key, path in _item(name).items()}
        Image.fromarray(photograph.image).save(paths["image"])
        Image.fromarray(photograph.vessels.astype(np.uint8) * 255).save(paths["label"])
        mask = Image.fromarray(photograph.field_of_view.astype(np.uint8)).convert("P")
        mask.putpalette([0, 0, 0, 255, 255, 255])
        mask.save(paths["mask"], optimize=False)  # optimizing could renumber the palette

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy and Pillow let go of the interpreter while they work
        for done, _ in enumerate(pool.map(write, seeds), start=1):
            if progress:
                progress(done, len(seeds))
    datalist = _datalist(list(seeds), parameters["num_test"])
    (draft / "README.txt").write_text(README, encoding="utf-8")
    write_json(draft / "datalist.json", datalist)


def _datalist(names: list[str], num_test: int) -> dict[str, Any]:
    items = [_item(name) for name in names]
    return {
        "name": "synthetic fundus photographs",
        "description": "drawn by medcoarse.synthetic.write_fundus_dataset; vessel masks exact to the pixel",
        "labels": {"0": "background", "1": "vessel"},
        "training": items[: len(items) - num_test],
        "test": items[len(items) - num_test :],
    }
