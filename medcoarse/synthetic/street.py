"""Street scenes seen from a car, with pixel-exact masks in Cityscapes' label ids.

A street in perspective: the road, pavements, verges and rows of houses are traced through every pixel, then trees,
vehicles, people, poles and signs are painted from far to near, so that the near hide the far.

Convention: metres; x to the right of the camera, y up from the ground, z ahead. Images are (H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medcoarse.cityscapes import CLASSES, LABELS, datalist_content
from medcoarse.files import write_dataset, write_json
from medcoarse.synthetic.things import THINGS, Thing, paint

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other pixels, so that a data set drawn by an older version is not reused."""

CAMERA_HEIGHT = 1.5
_FAR = 160.0
_HAZE = 260.0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StreetScene:
    """A picture and what is in it.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) uint8, label ids of Cityscapes.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class _Street:
    """What a street is like: metres, and colours from 0 to 1."""

    focal: float  # pixels
    horizon: float  # row
    centre: float  # column of the vanishing point
    bend: float  # metres aside at 100 m
    left: float  # edges of the road
    right: float
    pavement: float  # width
    verge: float
    light: Floats  # colour of the light
    sun: float  # which side is brighter, -1 to 1


def street_scene(seed: int, size: tuple[int, int] = (256, 512)) -> StreetScene:
    """Draw a street as a camera behind a windscreen sees it.

    Args:
        seed: non-negative integer; the same seed and size give the same pixels, and the same street at any size.
        size: (height, width) in pixels, each at least 32.

    Returns:
        Picture and label ids.

    Raises:
        ValueError: a negative seed or a size below 32.

    Example:
        >>> scene = street_scene(0, (48, 96))
        >>> scene.image.shape, scene.label.dtype, bool({7, 23} <= set(scene.label.ravel().tolist()))
        ((48, 96, 3), dtype('uint8'), True)
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if len(size) != 2 or min(size) < 32:
        raise ValueError(f"size must be (height, width) with at least 32 pixels each, got {tuple(size)}")
    for_street, for_houses, for_things, for_sky, for_ground, for_camera = np.random.default_rng(seed).spawn(6)
    street = _street(for_street, size)
    label = np.full(size, LABELS["sky"], np.uint8)
    colour = _sky(for_sky, street, size)
    depth = np.full(size, np.inf, np.float32)
    _houses(for_houses, street, label, colour, depth)
    _ground(for_ground, street, label, colour, depth)
    clean = colour * street.light
    haze = np.exp(-depth / _HAZE)[..., None]
    clean = haze * clean + (1 - haze) * _horizon_colour(street)
    for thing in sorted(_things(for_things, street), key=lambda thing: -thing.z):
        _place(thing, street, label, clean)
    _bonnet(for_street, label, clean)
    return StreetScene(_expose(for_camera, clean), label)


# --- the street --------------------------------------------------------------------------------------------------


def _street(rng: np.random.Generator, size: tuple[int, int]) -> _Street:
    height, width = size
    lanes = rng.uniform(2.8, 3.6, 2)
    brightness, warmth = rng.uniform(0.75, 1.1), rng.uniform(-0.06, 0.08)
    return _Street(
        focal=width * rng.uniform(0.9, 1.15),
        horizon=height * rng.uniform(0.38, 0.5),
        centre=width * rng.uniform(0.44, 0.56),
        bend=rng.normal(0, 5.0),
        left=float(-lanes[0] * rng.choice([0.6, 1.5, 2.4])),
        right=float(lanes[1] * rng.choice([0.6, 1.1, 1.6])),
        pavement=rng.uniform(1.8, 4.0),
        verge=float(rng.choice([0.0, 0.0, rng.uniform(1.0, 4.0)])),
        light=(brightness * np.array([1 + warmth, 1.0, 1 - warmth])).astype(np.float32),
        sun=rng.uniform(-1, 1),
    )


def _horizon_colour(street: _Street) -> Floats:
    return np.asarray(np.array([0.80, 0.85, 0.90], np.float32) * street.light)


def _noise(rng: np.random.Generator, size: tuple[int, int], grain: float) -> Floats:
    """A smooth random field around 0 with spots of this size, as a share of the width."""
    coarse = [max(2, round(length / (grain * size[1])) + 1) for length in size]
    field = rng.standard_normal(coarse).astype(np.float32)
    zoom = [length / n for length, n in zip(size, coarse, strict=True)]
    return np.asarray(ndimage.zoom(field, zoom, order=1, grid_mode=True, mode="nearest")[: size[0], : size[1]])


def _sky(rng: np.random.Generator, street: _Street, size: tuple[int, int]) -> Floats:
    """Brighter towards the horizon, with clouds or overcast."""
    up = np.clip(1 - np.arange(size[0], dtype=np.float32) / street.horizon, 0, 1)[:, None, None]
    zenith = (
        np.array([0.42, 0.60, 0.86], np.float32) if rng.random() < 0.5 else np.array([0.72, 0.75, 0.79], np.float32)
    )
    colour = (1 - up) * np.array([0.88, 0.91, 0.94], np.float32) + up * zenith
    cover = rng.uniform(0, 0.5)
    clouds = np.clip(_noise(rng, size, 0.2) + 0.5 * _noise(rng, size, 0.07), 0, 1)[..., None]
    return np.asarray(colour + cover * clouds * (0.97 - colour))


def _bent(street: _Street, z: Floats) -> Floats:
    """How far the street has gone aside at this distance."""
    return np.asarray(street.bend * (z / 100) ** 2, np.float32)


def _houses(rng: np.random.Generator, street: _Street, label: NDArray[np.uint8], colour: Floats, depth: Floats) -> None:
    """A row on either side, and whatever ends the street."""
    far, *sides = rng.spawn(3)  # textures take as many numbers as there are pixels: nothing must follow them
    _background(far, street, label, colour, depth)
    columns = np.arange(label.shape[1], dtype=np.float32)
    for side, rng in zip((-1, 1), sides, strict=True):
        edge = street.right if side > 0 else -street.left
        aside = edge + street.pavement + street.verge + rng.uniform(0.5, 4.0)
        # The bend is small where houses are near, so their distance is found without it and then once more with it.
        offset = side * (columns - street.centre)
        seen = offset > street.focal * aside / _FAR
        z = np.where(seen, street.focal * aside / np.maximum(offset, 1e-3), _FAR).astype(np.float32)
        z = np.clip(street.focal * np.maximum(aside + side * _bent(street, z), 2) / np.maximum(offset, 1e-3), 0, _FAR)
        _facades(rng, street, side, seen, z.astype(np.float32), label, colour, depth)


_STYLES: Mapping[str, float] = {"building": 0.66, "vegetation": 0.2, "wall": 0.07, "fence": 0.07}
"""What a plot beside the street has, and how often."""


def _facades(
    rng: np.random.Generator,
    street: _Street,
    side: int,
    seen: NDArray[np.bool_],
    z: Floats,
    label: NDArray[np.uint8],
    colour: Floats,
    depth: Floats,
) -> None:
    """Paint column by column what stands along one side: each plot has one style, height and colour."""
    ends = np.cumsum(rng.uniform(7, 22, 24))
    names = list(_STYLES)
    style = rng.choice(len(names), 25, p=list(_STYLES.values()))
    low = np.array([6.0, 4.0, 1.2, 1.0])[style]
    heights = low * rng.uniform(1, np.array([3.2, 3.0, 2.0, 1.6])[style])
    paints = rng.uniform(0.32, 0.78, 25)[:, None] * (1 + rng.uniform(-0.12, 0.12, (25, 3)) + [0.07, 0.0, -0.07])
    paints[style == 1] = rng.uniform(0.16, 0.34, ((style == 1).sum(), 1)) * [0.75, 1.0, 0.5]
    floor, bay, brick = rng.uniform(2.8, 3.6, 25), rng.uniform(1.8, 3.4, 25), rng.uniform(0.0, 0.2, 25)
    x = np.flatnonzero(seen)
    if not len(x):
        return
    plot = np.searchsorted(ends, z[x])
    rows = np.arange(label.shape[0], dtype=np.float32)[:, None]
    y = CAMERA_HEIGHT + (street.horizon - rows) * z[x] / street.focal
    top = heights[plot] + np.where(style[plot] == 1, 0.9, 0.0) * np.sin(z[x] * 1.3 + np.cos(z[x] * 3.1) * 2)
    inside = (y >= 0) & (y <= top)
    if not inside.any():
        return
    along, story = (z[x] / bay[plot]) % 1, (y / floor[plot]) % 1
    window = (np.abs(along - 0.5) < 0.24) & (np.abs(story - 0.55) < 0.25) & (style[plot] == 0) & (y < top - 0.7)
    shop = (
        (y < floor[plot] * 0.85) & (np.abs(along - 0.5) < 0.42) & (style[plot] == 0) & (brick[plot] > 0.1) & (y > 0.4)
    )
    leaf = rng.standard_normal(y.shape).astype(np.float32)
    shade = np.where(style[plot] == 1, 0.28, 0.04) * ndimage.gaussian_filter(leaf, 0.7) * 1.6
    bars = (style[plot] == 3) & ((z[x] * 2.5) % 1 < 0.5)
    lit = 0.86 + 0.16 * side * street.sun
    painted = paints[plot][None] * (lit * (1 + shade) * (0.92 + 0.08 * np.minimum(y / 3, 1)))[..., None]
    dark = (
        np.array([0.16, 0.19, 0.23])
        + 0.16 * (np.floor(z[x] / bay[plot] * 7.3 + y / floor[plot] * 3.1) % 3 == 0)[..., None]
    )
    painted = np.where((window | shop)[..., None], dark, painted)
    painted = np.where(bars[None, :, None], 0.55 * painted, painted)
    where = np.zeros(label.shape, bool)
    where[:, x] = inside
    numbers = np.array([LABELS[name] for name in names], np.uint8)
    label[where] = np.broadcast_to(numbers[style[plot]], y.shape)[inside]
    colour[where] = painted[inside]
    depth[where] = np.broadcast_to(z[x], y.shape)[inside]


def _background(
    rng: np.random.Generator, street: _Street, label: NDArray[np.uint8], colour: Floats, depth: Floats
) -> None:
    """Trees and roofs where the street ends."""
    columns = np.arange(label.shape[1], dtype=np.float32)
    scale = street.focal / _FAR
    crest = 6 + 3 * np.sin(columns / (12 * scale) + rng.uniform(0, 6)) + 2 * np.sin(columns / (5 * scale))
    rows = np.arange(label.shape[0], dtype=np.float32)[:, None]
    above = (street.horizon - rows) / scale
    where = (above < crest * rng.uniform(0.6, 1.6)) & (above > -2)
    tree = rng.random() < 0.6
    label[where] = LABELS["vegetation" if tree else "building"]
    leaf = 1 + 0.25 * rng.standard_normal(label.shape)[where][:, None]
    colour[where] = np.array([0.24, 0.33, 0.18] if tree else [0.5, 0.46, 0.43]) * leaf
    depth[where] = _FAR


def _ground(rng: np.random.Generator, street: _Street, label: NDArray[np.uint8], colour: Floats, depth: Floats) -> None:
    """Road with lines, kerbs, pavement and what lies beyond it."""
    first = int(np.floor(street.horizon)) + 1
    rows = np.arange(first, label.shape[0], dtype=np.float32)[:, None]
    z = (street.focal * CAMERA_HEIGHT / (rows - street.horizon)).astype(np.float32)
    x = (np.arange(label.shape[1], dtype=np.float32) - street.centre) * z / street.focal - _bent(street, z)
    before = (z < depth[first:]) & (z < _FAR)
    beyond = np.maximum(street.left - x, x - street.right)
    verge = "terrain" if rng.random() < 0.8 else "sidewalk"
    kinds = np.select(
        [beyond <= 0, beyond <= street.pavement, beyond <= street.pavement + street.verge],
        [LABELS["road"], LABELS["sidewalk"], LABELS[verge]],
        LABELS["sidewalk"] if street.verge == 0 else LABELS[verge],
    ).astype(np.uint8)
    grey, slab = rng.uniform(0.26, 0.42), rng.uniform(0.45, 0.62)
    paints = {
        LABELS["road"]: np.array([grey, grey, grey * 1.03]),
        LABELS["sidewalk"]: np.array([slab * 1.03, slab, slab * 0.96]),
        LABELS["terrain"]: np.array([0.33, 0.42, 0.2]) * rng.uniform(0.8, 1.2),
    }
    painted = np.zeros((*x.shape, 3), np.float32)
    for number, paint_of in paints.items():
        painted[kinds == number] = paint_of
    middle, dashes = (street.left + street.right) / 2, (z % 9) < 4.5
    lines = (np.abs(x - middle) < 0.07) & dashes | (np.abs(beyond + 0.25) < 0.06) & (rng.random() < 0.5)
    painted[lines] = 0.78
    painted[(beyond > 0) & (beyond < 0.14)] = 0.62
    joints = ((x * 1.1) % 1 < 0.06) & (beyond > 0.2) & (kinds == LABELS["sidewalk"]) & (z < 25)
    painted[joints] *= 0.85
    size = (label.shape[0], label.shape[1])
    texture = 0.05 * _noise(rng, size, 0.03)[first:] + 0.03 * rng.standard_normal(x.shape)
    shadow = 1 - 0.28 * np.clip(street.sun, 0, 1) * ((x > 0) & (np.sin(z * 0.35 + 1.7 * np.sin(z * 0.11)) > 0.1))
    painted *= (1 + texture)[..., None] * shadow[..., None]
    label[first:][before], colour[first:][before] = kinds[before], painted[before]
    depth[first:] = np.where(before, z, depth[first:])


# --- things ------------------------------------------------------------------------------------------------------


def _things(rng: np.random.Generator, street: _Street) -> list[Thing]:
    """What stands and moves in the street, each with its place."""
    found = []

    def add(name: str, x: float, z: float) -> None:
        found.append(Thing(name, float(x), float(z), int(rng.integers(2**32))))

    for side in (-1, 1):
        edge = street.right if side > 0 else street.left
        kerb, far = edge + 0.5 * side, edge + side * street.pavement
        for z in np.cumsum(rng.uniform(5, 28, 6)) + rng.uniform(2, 9):
            add("tree", far + side * rng.uniform(-0.8, 2.0), z)
        for z in np.cumsum(rng.uniform(8, 26, 6)) + rng.uniform(3, 12):
            add(str(rng.choice(["lamp", "sign", "light", "lamp"])), kerb, z)
        parked = rng.random() < 0.6
        for z in np.cumsum(rng.uniform(5.5, 12, 8 if parked else 1)) + rng.uniform(5, 15):
            add(str(rng.choice(["car", "car", "car", "truck"], p=[0.4, 0.3, 0.25, 0.05])), edge - side * 1.0, z)
        for _ in range(int(rng.poisson(3))):
            add("person", edge + side * rng.uniform(0.3, street.pavement), rng.uniform(6, 40))
        for _ in range(int(rng.poisson(0.8))):
            add(str(rng.choice(["bicycle", "motorcycle"])), kerb + side * 0.3, rng.uniform(6, 25))
        if rng.random() < 0.25:
            for z in np.arange(6, 30, 2.0):
                add("fence", kerb, z)
    for _ in range(int(rng.poisson(2.2))):
        name = rng.choice(
            ["car", "truck", "bus", "train", "cyclist", "motorcyclist"], p=[0.5, 0.1, 0.1, 0.08, 0.14, 0.08]
        )
        add(str(name), rng.uniform(street.left + 1.2, street.right - 1.0), rng.uniform(9, 60))
    if rng.random() < 0.3:
        add("person", rng.uniform(street.left, street.right), rng.uniform(8, 30))
    return found


def _place(thing: Thing, street: _Street, label: NDArray[np.uint8], clean: Floats) -> None:
    """Paint one thing, as large as its distance makes it, with a shadow below it."""
    width, height = THINGS[thing.name].size
    scale = street.focal / thing.z
    column = street.centre + (thing.x + float(_bent(street, np.float32(thing.z)))) * scale  # type: ignore[arg-type]
    ground = street.horizon + CAMERA_HEIGHT * scale
    haze = float(np.exp(-thing.z / _HAZE))
    light, far = haze * street.light, (1 - haze) * _horizon_colour(street)
    paint(thing, label, clean, (ground, column), (height * scale, width * scale), light, far)


def _bonnet(rng: np.random.Generator, label: NDArray[np.uint8], clean: Floats) -> None:
    """The own car's bonnet, in half of the scenes."""
    if rng.random() < 0.5:
        return
    height, width = label.shape
    across = (np.arange(width) / width - 0.5) * 2
    edge = height * (1 - rng.uniform(0.04, 0.1) * np.sqrt(np.clip(1 - (across / 1.05) ** 2, 0, 1)))
    where = np.arange(height)[:, None] > edge
    label[where] = LABELS["ego vehicle"]
    clean[where] = rng.uniform(0.08, 0.2)


def _expose(rng: np.random.Generator, clean: Floats) -> NDArray[np.uint8]:
    """Lens and sensor: blur, darker corners, contrast, noise."""
    height, width = clean.shape[:2]
    blurred = ndimage.gaussian_filter(clean, (0.55, 0.55, 0))
    row, column = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    blurred *= (1 - rng.uniform(0.05, 0.2) * (row**2 + column**2) / 2)[..., None]
    exposed = np.clip(blurred, 0, 1) ** rng.uniform(0.9, 1.35) + rng.normal(0, 0.012, clean.shape)
    image: NDArray[np.uint8] = np.round(np.clip(exposed, 0, 1) * 255).astype(np.uint8)
    return image


# --- data sets ---------------------------------------------------------------------------------------------------

README = """Synthetic street scenes. NOT Cityscapes, NOT photographs: every pixel was drawn by
medcoarse.synthetic.street.write_street_dataset, in the folder layout of Cityscapes.

leftImg8bit/<train|val>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png       colour picture, 8 bits a channel
gtFine/<train|val>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png        label ids, exact to the pixel
datalist.json        training, validation (both in train) and test (in val), in MONAI's format
provenance.json      version and parameters of the generator
"""

_CITIES = {"training": ("train", "drawnham"), "validation": ("train", "sketchford"), "test": ("val", "paintbury")}


def write_street_dataset(
    folder: str | Path,
    num_training: int = 80,
    num_validation: int = 12,
    num_test: int = 24,
    size: tuple[int, int] = (256, 512),
    seed: int = 0,
) -> Path:
    """Write drawn street scenes in the layout of Cityscapes, with a MONAI datalist; reuse them if they are there.

    Args:
        folder: where the data set goes; made with its parents.
        num_training: scenes for training.
        num_validation: for validation; a city of ``train`` of its own.
        num_test: for testing, in ``val``; they are the same whatever the other numbers are.
        size: (height, width) in pixels.
        seed: of the whole data set.

    Returns:
        The folder.

    Raises:
        ValueError: for numbers below 1, and as `street_scene`.
        FileExistsError: if the folder holds anything but this very data set, whole.

    Example:
        >>> import json, tempfile
        >>> folder = write_street_dataset(Path(tempfile.mkdtemp()) / "streets", 1, 1, 1, size=(32, 64))
        >>> json.loads((folder / "datalist.json").read_text())["test"][0]["label"]
        'gtFine/val/paintbury/paintbury_000000_000000_gtFine_labelIds.png'
    """
    numbers = {"training": num_training, "validation": num_validation, "test": num_test}
    if min(numbers.values()) < 1 or seed < 0:
        raise ValueError(f"numbers of scenes must be at least 1 and seed 0 or more, got {numbers}, {seed=}")
    parameters = {**{f"num_{name}": n for name, n in numbers.items()}, "size": list(size), "seed": seed}
    provenance = {
        "generator": "medcoarse.synthetic.street.write_street_dataset",
        "generator_version": GENERATOR_VERSION,
        "parameters": parameters,
    }
    sections = {name: [_item(*_CITIES[name], i) for i in range(number)] for name, number in numbers.items()}
    paths = ["datalist.json", *(path for items in sections.values() for item in items for path in item.values())]

    def write(draft: Path) -> None:
        for order, name in enumerate(("test", "validation", "training")):
            for i, item in enumerate(sections[name]):
                # A seed sequence, because seed + number would make neighbouring data sets share scenes.
                own = int(np.random.SeedSequence([seed, order, i]).generate_state(1)[0])
                _save(draft, item, street_scene(own, size))
        content = datalist_content("Synthetic street scenes", sections, CLASSES.values())
        (draft / "README.txt").write_text(README, encoding="utf-8")
        write_json(draft / "datalist.json", content)

    return write_dataset(Path(folder), provenance, paths, "set of synthetic street scenes", write)


def _item(split: str, city: str, number: int) -> dict[str, Any]:
    stem = f"{split}/{city}/{city}_000000_{number:06d}"
    return {"image": f"leftImg8bit/{stem}_leftImg8bit.png", "label": f"gtFine/{stem}_gtFine_labelIds.png"}


def _save(folder: Path, item: Mapping[str, str], scene: StreetScene) -> None:
    for key, array in (("image", scene.image), ("label", scene.label)):
        path = folder / item[key]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, compress_level=1)
