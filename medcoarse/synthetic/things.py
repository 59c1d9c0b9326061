"""What stands and moves in a drawn street: trees, vehicles, people, poles and signs, seen from behind or the front.

Convention: a thing is painted in a box of (height, width) pixels that stands on the ground; in it, u goes from -1
(left) to 1 (right) and v from 0 (ground) to 1 (top). A painter returns parts, each with a mask, a label and a colour;
later parts lie on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcoarse.cityscapes import LABELS

Plane = NDArray[np.float32]


class Thing(NamedTuple):
    """A thing of this name at this place on the ground (metres), painted with this seed."""

    name: str
    x: float
    z: float
    seed: int


class Part(NamedTuple):
    """Pixels of the box, what they are, and their colour (3,), or one for each pixel (h, w, 3)."""

    mask: NDArray[np.bool_]
    name: str
    colour: Any


class Kind(NamedTuple):
    """Width and height in metres, whether there is a shadow below, and the painter."""

    size: tuple[float, float]
    shadow: bool
    parts: Callable[[np.random.Generator, Plane, Plane], list[Part]]


def paint(
    thing: Thing,
    label: NDArray[np.uint8],
    image: Plane,
    foot: tuple[float, float],
    size: tuple[float, float],
    light: Plane,
    haze: Plane,
) -> None:
    """Paint a thing over a label map and a picture, as far as it lies in them.

    Args:
        thing: what, and the seed of its looks.
        label: (H, W); changed in place.
        image: (H, W, 3); changed in place.
        foot: row and column of the middle of its foot.
        size: (height, width) in pixels.
        light: colour that its own is multiplied with.
        haze: colour that is added.
    """
    bottom, column = foot
    height, width = size
    rows = np.arange(max(0, int(bottom - height)), min(label.shape[0], int(bottom + 0.06 * width) + 1))
    columns = np.arange(max(0, int(column - 0.6 * width)), min(label.shape[1], int(column + 0.6 * width) + 2))
    if not len(rows) or not len(columns) or height < 1:
        return
    v = ((bottom - rows[:, None] - 0.5) / height).astype(np.float32)
    u = (2 * (columns - column) / width).astype(np.float32)[None, :]
    box = np.ix_(rows, columns)
    kind = THINGS[thing.name]
    seen, names = image[box], label[box]
    if kind.shadow:
        seen[u**2 + (v * height / (0.1 * width)) ** 2 < 1] *= 0.45
    for part in kind.parts(np.random.default_rng(thing.seed), u, v):
        mask = part.mask & (v >= 0)
        names[mask] = LABELS[part.name]
        colour = np.broadcast_to(np.asarray(part.colour, np.float32), (*mask.shape, 3))[mask]
        seen[mask] = colour * light + haze
    image[box], label[box] = seen, names


def _box(u: Plane, v: Plane, left: float, right: float, low: float, high: float) -> NDArray[np.bool_]:
    return np.asarray((u >= left) & (u <= right) & (v >= low) & (v <= high))


def _ellipse(u: Plane, v: Plane, centre: tuple[float, float], radii: tuple[float, float]) -> NDArray[np.bool_]:
    return np.asarray(((u - centre[0]) / radii[0]) ** 2 + ((v - centre[1]) / radii[1]) ** 2 < 1)


def _coat(rng: np.random.Generator) -> Plane:
    """A colour as cars and clothes have it: often grey, sometimes not."""
    grey = rng.uniform(0.06, 0.85)
    tint = rng.normal(0, 0.16 if rng.random() < 0.45 else 0.02, 3)
    return np.asarray(np.clip(grey * (1 + tint) + 0.3 * tint, 0.02, 0.95), np.float32)


def _car(rng: np.random.Generator, u: Plane, v: Plane) -> list[Part]:
    coat = _coat(rng)
    from_behind = rng.random() < 0.6
    body = (np.abs(u) < 0.97 - 0.06 * v) & (v > 0.12) & (v < 0.62)
    cabin = (np.abs(u) < 0.93 - 0.75 * np.maximum(v - 0.55, 0)) & (v >= 0.6) & (v < 0.98 - 0.08 * u**2)
    glass = (np.abs(u) < 0.8 - 0.75 * np.maximum(v - 0.55, 0)) & (v > 0.64) & (v < 0.9)
    lamps = (np.abs(np.abs(u) - 0.82) < 0.11) & (np.abs(v - 0.48) < 0.06)
    tyres = (np.abs(np.abs(u) - 0.76) < 0.14) & (v < 0.2)
    shade = (0.75 + 0.35 * v)[..., None]
    return [
        Part(tyres, "car", 0.05),
        Part(body | cabin, "car", coat * shade),
        Part(glass, "car", (0.10 + 0.25 * v)[..., None] * np.array([0.9, 1.0, 1.1])),
        Part(_box(u, v, -0.85, 0.85, 0.12, 0.22), "car", 0.12),
        Part(lamps, "car", (0.6, 0.08, 0.06) if from_behind else (0.9, 0.9, 0.85)),
        Part(_box(u, v, -0.24, 0.24, 0.28, 0.36), "car", 0.8),
    ]


def _large(name: str) -> Callable[[np.random.Generator, Plane, Plane], list[Part]]:
    """Trucks, buses and trams: a box with a window."""

    def parts(rng: np.random.Generator, u: Plane, v: Plane) -> list[Part]:
        coat = _coat(rng) * 0.6 + 0.3
        window = (0.5, 0.88) if name != "truck" else ((0.5, 0.66) if rng.random() < 0.5 else (2, 2))
        return [
            Part((np.abs(np.abs(u) - 0.72) < 0.16) & (v < 0.14), name, 0.05),
            Part((np.abs(u) < 0.96) & (v > 0.06) & (v < 0.99 - 0.02 * u**2), name, coat * (0.8 + 0.25 * v)[..., None]),
            Part(_box(u, v, -0.84, 0.84, *window), name, (0.14, 0.17, 0.2)),
            Part((np.abs(np.abs(u) - 0.8) < 0.1) & (np.abs(v - 0.2) < 0.03), name, (0.6, 0.1, 0.08)),
            Part(_box(u, v, -0.5, 0.5, 0.9, 0.96) & (name != "truck"), name, (0.8, 0.6, 0.1)),
        ]

    return parts


def _body(rng: np.random.Generator, u: Plane, v: Plane, name: str, low: float) -> list[Part]:
    """Legs, trunk, arms and head of somebody who stands or sits above `low`."""
    scale = 1 - low
    top, legs, skin = _coat(rng), 0.6 * _coat(rng), np.array([0.72, 0.55, 0.45]) * rng.uniform(0.5, 1.15)
    stride = rng.uniform(0.1, 0.42)
    w = (v - low) / scale
    leg = (np.abs(np.abs(u) - stride * np.clip(1 - w / 0.48, 0, 1) - 0.14) < 0.17) & (w >= 0) & (w < 0.5)
    trunk = (np.abs(u) < 0.48 - 0.16 * np.abs(w - 0.7) * 2) & (w > 0.44) & (w < 0.84)
    arms = (np.abs(np.abs(u) - 0.52) < 0.12) & (w > 0.42) & (w < 0.8)
    return [
        Part(leg, name, legs),
        Part(trunk | arms, name, top),
        Part(_ellipse(u, w, (0, 0.92), (0.26, 0.085)), name, skin),
        Part(_ellipse(u, w, (0, 0.95), (0.27, 0.055)), name, skin * 0.3),
    ]


def _person(rng: np.random.Generator, u: Plane, v: Plane) -> list[Part]:
    return _body(rng, u, v * rng.uniform(1.0, 1.2), "person", 0.0)


def _cycle(name: str) -> Callable[[np.random.Generator, Plane, Plane], list[Part]]:
    """A parked two-wheeler from its side."""

    def parts(rng: np.random.Generator, u: Plane, v: Plane) -> list[Part]:
        frame = _coat(rng) * 0.7
        outer = [_ellipse(u, v, (side * 0.62, 0.34), (0.38, 0.34)) for side in (-1, 1)]
        inner = [_ellipse(u, v, (side * 0.62, 0.34), (0.28, 0.25)) for side in (-1, 1)]
        tyres = (outer[0] & ~inner[0]) | (outer[1] & ~inner[1])
        bars = (np.abs(v - 0.35 - 0.5 * (1 - np.abs(u + 0.1))) < 0.09) & (np.abs(u) < 0.62)
        seat = _box(u, v, -0.45, -0.1, 0.82, 0.92) | _box(u, v, 0.4, 0.6, 0.85, 1.0) | _box(u, v, 0.44, 0.52, 0.4, 1.0)
        if name == "bicycle":
            return [Part(tyres, name, 0.07), Part(bars | seat, name, frame)]
        tank = _ellipse(u, v, (0.05, 0.62), (0.5, 0.22)) | _box(u, v, -0.6, 0.5, 0.3, 0.6)
        return [Part(outer[0] | outer[1], name, 0.06), Part(tank | seat, name, frame)]

    return parts


def _ridden(name: str) -> Callable[[np.random.Generator, Plane, Plane], list[Part]]:
    """Somebody on a two-wheeler, from behind: two labels."""

    def parts(rng: np.random.Generator, u: Plane, v: Plane) -> list[Part]:
        wide = 0.1 if name == "bicycle" else 0.22
        wheel = (np.abs(u) < wide) & (v < 0.4)
        bars = (np.abs(u) < 0.6) & (np.abs(v - 0.58) < 0.025)
        rider = _body(rng, u * 1.15, v, "rider", 0.22)
        bulk = [Part(_ellipse(u, v, (0, 0.42), (0.5, 0.13)), name, _coat(rng))] if name == "motorcycle" else []
        return [*rider[:1], Part(wheel | bars, name, 0.07), *bulk, *rider[1:]]

    return parts


def _tree(rng: np.random.Generator, u: Plane, v: Plane) -> list[Part]:
    """A trunk and a crown of some blobs with leaves."""
    tall = rng.uniform(0.7, 1.0)
    crown = np.zeros(np.broadcast_shapes(u.shape, v.shape), bool)
    for _ in range(7):
        centre = (rng.uniform(-0.5, 0.5), tall * rng.uniform(0.5, 0.85))
        crown |= _ellipse(u, v, centre, (rng.uniform(0.25, 0.5), tall * rng.uniform(0.1, 0.2)))
    leaves = rng.standard_normal(crown.shape)
    ragged = crown & (leaves < 1.6)
    green = np.array([0.22, 0.33, 0.13]) * rng.uniform(0.6, 1.3) + rng.uniform(0, 0.08, 3)
    shade = (0.62 + 0.5 * v + 0.2 * leaves)[..., None]
    return [
        Part(_box(u, v, -0.06, 0.06, 0.0, 0.6 * tall), "vegetation", (0.24, 0.19, 0.15)),
        Part(ragged, "vegetation", np.clip(green * shade, 0.02, 1)),
    ]


def _lamp(rng: np.random.Generator, u: Plane, v: Plane) -> list[Part]:
    side = float(rng.choice([-1, 1]))
    arm = (np.abs(v - 0.97) < 0.012) & (u * side > 0) & (u * side < 0.9)
    return [Part((np.abs(u) < 0.085) & (v < 0.98) | arm, "pole", np.full(3, rng.uniform(0.2, 0.5)))]


def _sign(rng: np.random.Generator, u: Plane, v: Plane) -> list[Part]:
    post = Part((np.abs(u) < 0.09) & (v < 0.95), "pole", np.full(3, 0.45))
    plate = _ellipse(u, v, (0, 0.83), (0.9, 0.145)) if rng.random() < 0.5 else _box(u, v, -0.85, 0.85, 0.68, 0.97)
    rim, field = [
        ((0.75, 0.1, 0.1), 0.9),
        ((0.1, 0.25, 0.7), (0.15, 0.3, 0.75)),
        ((0.85, 0.75, 0.1), (0.9, 0.8, 0.15)),
    ][int(rng.integers(3))]
    inner = plate & _ellipse(u, v, (0, 0.83), (0.62, 0.1))
    return [post, Part(plate, "traffic sign", rim), Part(inner, "traffic sign", field)]


def _light(rng: np.random.Generator, u: Plane, v: Plane) -> list[Part]:
    lit = int(rng.integers(3))
    colours = [(0.9, 0.15, 0.1), (0.9, 0.6, 0.1), (0.15, 0.8, 0.4)]
    lamps = [
        Part(_ellipse(u, v, (0, 0.94 - 0.075 * k), (0.35, 0.03)), "traffic light", colours[k] if k == lit else 0.12)
        for k in range(3)
    ]
    case = Part(_box(u, v, -0.6, 0.6, 0.74, 1.0), "traffic light", 0.06)
    return [Part((np.abs(u) < 0.14) & (v < 0.8), "pole", np.full(3, 0.35)), case, *lamps]


def _fence(rng: np.random.Generator, u: Plane, v: Plane) -> list[Part]:
    rails = (np.abs(v - 0.55) < 0.05) | (np.abs(v - 0.95) < 0.05) | ((u * 4) % 1 < 0.3)
    return [Part(rails & (np.abs(u) <= 1) & (v <= 1), "fence", np.full(3, rng.uniform(0.3, 0.6)))]


THINGS: Mapping[str, Kind] = {
    "tree": Kind((5.0, 8.0), False, _tree),
    "lamp": Kind((1.6, 6.5), False, _lamp),
    "sign": Kind((0.7, 2.9), False, _sign),
    "light": Kind((0.5, 3.3), False, _light),
    "fence": Kind((2.0, 1.0), False, _fence),
    "person": Kind((0.62, 1.85), True, _person),
    "car": Kind((1.85, 1.5), True, _car),
    "truck": Kind((2.5, 3.4), True, _large("truck")),
    "bus": Kind((2.55, 3.1), True, _large("bus")),
    "train": Kind((2.5, 3.7), True, _large("train")),
    "bicycle": Kind((1.75, 1.05), True, _cycle("bicycle")),
    "motorcycle": Kind((2.0, 1.2), True, _cycle("motorcycle")),
    "cyclist": Kind((0.7, 1.8), True, _ridden("bicycle")),
    "motorcyclist": Kind((0.85, 1.7), True, _ridden("motorcycle")),
}
"""By name; sizes are (width, height)."""
