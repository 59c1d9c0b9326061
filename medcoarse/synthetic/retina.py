"""Pixels of a drawn eye: blood, tissue and camera, each a function from geometry to an array of light.

Convention: colours are red, green, blue on the 0..255 scale; lengths are in units of the radius of the field of view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medcoarse.synthetic.vessel_tree import Eye, Floats, Points, Vessel

THINNEST_PIXELS = 0.25
"""Vessels with a smaller radius (pixels) are lost between the pixels: neither drawn nor in the mask."""
BLOOD_ABSORPTION = np.array([7.2, 15.5, 13.0])
"""Of red, green and blue light, per unit of length."""


@dataclass(frozen=True)
class Blood:
    """Half the thickness of blood (H, W) under every pixel, and nearness to the vessel's axis, 1 on it."""

    depth: Floats
    axis: Floats


def pixel_positions(size: tuple[int, int]) -> Points:
    """Where the pixels' centres are, as complex numbers (H, W); the shorter side of the frame is 2 long.

    Example:
        >>> pixel_positions((2, 2)).tolist()
        [[(-0.5-0.5j), (0.5-0.5j)], [(-0.5+0.5j), (0.5+0.5j)]]
    """
    height, width = size
    y, x = np.ogrid[:height, :width]
    return np.asarray((x - (width - 1) / 2 + 1j * (y - (height - 1) / 2)) * 2 / min(size), dtype=np.complex128)


def rasterize(tree: list[Vessel], size: tuple[int, int]) -> Blood:
    """Paint every vessel as a chain of round-ended tubes, each within a window of its own.

    Args:
        tree: arteries or veins.
        size: (height, width) in pixels.
    """
    blood = Blood(np.zeros(size), np.zeros(size))
    scale = min(size) / 2
    centre = complex(size[1] - 1, size[0] - 1) / 2
    for vessel in tree:
        points = vessel.points * scale + centre
        radii = np.maximum(vessel.radii * scale, 0.6)  # narrower lines would have gaps
        for i in np.flatnonzero(vessel.radii[:-1] * scale > THINNEST_PIXELS):
            _paint_tube(blood, points[i : i + 2], radii[i : i + 2], vessel.radii[i])
    return blood


def _paint_tube(blood: Blood, ends: Points, radii: Floats, depth: float) -> None:
    reach = radii.max() + 1
    (y0, y1), (x0, x1) = (
        (max(int(side.min() - reach), 0), max(int(side.max() + reach) + 1, 0)) for side in (ends.imag, ends.real)
    )
    window = blood.depth[y0:y1, x0:x1], blood.axis[y0:y1, x0:x1]
    rows, columns = window[0].shape
    offset = np.arange(x0, x0 + columns) - ends[0].real + 1j * (np.arange(y0, y0 + rows)[:, None] - ends[0].imag)
    tube = ends[1] - ends[0]
    along = np.clip((offset * np.conj(tube)).real / abs(tube) ** 2, 0, 1)
    relative = np.abs(offset - along * tube) / (radii[0] + along * (radii[1] - radii[0]))
    profile = depth * np.sqrt(np.maximum(1 - relative**2, 0))
    deeper = profile > window[0]
    window[0][deeper] = profile[deeper]
    window[1][deeper] = np.exp(-((relative[deeper] / 0.32) ** 2))


def transmission(arteries: Blood, veins: Blood, density: Floats) -> Floats:
    """Share of the light that passes the blood (Beer-Lambert), brighter along the arteries: their central reflex.

    Args:
        arteries: rasterized arteries.
        veins: rasterized veins, whose blood is darker.
        density: factor on the absorption, a number or (H, W).
    """
    blood = 1.6 * arteries.depth * (1 - 0.6 * arteries.axis) + 2.1 * veins.depth * (1 - 0.15 * veins.axis)
    passed: Floats = np.exp(-(density * blood)[..., None] * BLOOD_ABSORPTION)
    return passed


def _noise(rng: np.random.Generator, at: Points, cell: float) -> Floats:
    """Smooth random field of unit variance at every pixel, with bumps about two cells wide.

    Cubic B-splines on a grid of normal numbers that repeats every 2.6 units; being separable it is two matrix products.
    """
    num_cells = int(np.ceil(2.6 / cell))
    grid = rng.normal(size=(num_cells, num_cells))
    rows, columns = (_spline_weights(axis / cell, num_cells) for axis in (at[:, 0].imag, at[0].real))
    field: Floats = rows @ grid @ columns.T
    return field / 0.479  # the standard deviation of the splines' sum


def _spline_weights(position: Floats, num_cells: int) -> Floats:
    distance = np.abs(position[:, None] % num_cells - np.arange(num_cells))
    distance = np.minimum(distance, num_cells - distance)
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
    weights: Floats = np.where(distance < 1, near, far)
    return weights


def _warped_noise(rng: np.random.Generator, at: Points, cell: float) -> Floats:
    """Like `_noise`, at points that need not form a grid."""
    num_cells = int(np.ceil(2.6 / cell))
    grid = rng.normal(size=(num_cells, num_cells))
    where = [at.imag / cell, at.real / cell]
    field: Floats = ndimage.map_coordinates(grid, where, order=3, mode="grid-wrap", prefilter=False)
    return field / 0.479


def _step(distance: Floats, softness: float) -> Floats:
    """From 1 inside (negative distance) to 0 outside, over about four times the softness."""
    edge: Floats = 1 / (1 + np.exp(np.clip(distance / softness, -30, 30)))
    return edge


def _mix(below: Floats, above: Floats, opacity: Floats) -> Floats:
    return below + opacity[..., None] * (above - below)


def blood_density(eye: Eye, at: Points, clarity: float) -> Floats:
    """How dark blood looks: less in a hazy eye, more on the disc, where no light comes back from below the vessel.

    Args:
        eye: where the disc is.
        at: positions (H, W) of the pixels.
        clarity: 1 for a middling eye.
    """
    return clarity * (1 + 0.7 * _step(np.abs(at - eye.disc) - eye.disc_radius, 0.02))


def tissue(rng: np.random.Generator, eye: Eye, at: Points) -> Floats:
    """Colour (H, W, 3) of the retina without vessels: pigment, choroid, macula and optic disc in even light.

    Args:
        rng: source of all randomness.
        eye: where disc and fovea are.
        at: positions (H, W) of the pixels.
    """
    red = float(np.exp(rng.normal(np.log(116), 0.24)))
    pigment = red * np.array([1.0, 1 / rng.uniform(2.0, 2.9), 1 / rng.uniform(4.2, 6.0)])
    choroid = _choroid(rng, at)
    macula = -rng.uniform(0.2, 0.4) * np.exp(-((np.abs(at - eye.fovea) / 0.2) ** 2))
    grain = 0.015 * _noise(rng, at, 0.065) + 0.015 * _noise(rng, at, 0.018) + 0.022 * _noise(rng, at, 0.0065)
    shade = 0.07 * _noise(rng, at, 0.28) + macula + grain
    colour = np.stack([shade + choroid, 0.8 * shade + 0.45 * choroid, 0.7 * shade + 0.3 * choroid], axis=-1)
    return _optic_disc(rng, eye, at, pigment * np.exp(colour))


def _choroid(rng: np.random.Generator, at: Points) -> Floats:
    """Choroidal vessels that shine through: a net of bright ridges, patchy and drawn out, in most eyes faint."""
    strength = 0.02 + 0.4 * rng.beta(0.6, 2.4)
    drawn_out = at * np.exp(1j * rng.uniform(-np.pi, np.pi))
    drawn_out = drawn_out.real + 0.75j * drawn_out.imag + 0.04 * (_noise(rng, at, 0.13) + 1j * _noise(rng, at, 0.13))
    ridges = sum(np.exp(-np.abs(_warped_noise(rng, drawn_out, cell)) / 0.4) for cell in (0.09, 0.065, 0.04))
    patches = _step(-_noise(rng, at, 0.45), 0.6)
    net: Floats = strength * patches * (ridges - 1.2)
    return net


def _optic_disc(rng: np.random.Generator, eye: Eye, at: Points, retina: Floats) -> Floats:
    """Lay the disc over the retina: halo and atrophy around it, rim (pinker on the nasal side), bright cup."""
    offset = (at - eye.disc) * eye.temporal  # the temporal side is to the right
    angle = np.angle(offset)
    wave = 0.03 * rng.normal() * np.cos(3 * angle) + 0.02 * rng.normal() * np.sin(4 * angle)
    outside = np.abs(offset) - eye.disc_radius * (1 - 0.05 * np.cos(2 * angle) + wave)
    mottle = _noise(rng, at, 0.04)
    pale = _disc_colour(rng, float(np.median(retina[..., 0])))
    retina = _surroundings(rng, retina, pale, angle, outside + 0.02 * mottle)
    nasal = (1 - np.cos(angle)) / 2
    rim = rng.uniform(0.4, 0.75) - rng.uniform(0.0, 0.3) * nasal + 0.04 * mottle
    ring = rng.uniform(0, 0.3) * np.exp(-(((outside + 0.015) / 0.015) ** 2))
    disc = _mix(retina, pale, (rim + ring) * _step(outside, 0.01))
    cup_centre = eye.disc_radius * complex(rng.uniform(0.0, 0.15), rng.uniform(-0.05, 0.05))
    cup = np.abs(offset - cup_centre) - eye.disc_radius * rng.uniform(0.4, 0.75) * (1 + 0.05 * mottle)
    shine = np.exp(0.05 * mottle + 0.1 * _noise(rng, at, 0.12))[..., None]
    bright = pale * shine * rng.uniform(1.05, 1.3) * np.array([1.0, 1.1, 1.15])
    return _mix(disc, bright, 0.95 * _step(cup, rng.uniform(0.008, 0.03)) * _step(outside + 0.01, 0.011))


def _surroundings(rng: np.random.Generator, retina: Floats, pale: Floats, angle: Floats, outside: Floats) -> Floats:
    """Halo of thick nerve fibres around the disc, and a crescent of atrophy, mostly on the temporal side."""
    halo = rng.uniform(0.1, 0.35) * np.exp(-((np.maximum(outside, 0) / 0.25) ** 2))
    crescent = rng.uniform(0, 0.6) * (0.5 + 0.5 * np.cos(angle - rng.normal(0, 0.8))) ** 2
    atrophy = crescent * _step(outside - rng.uniform(0.01, 0.09), 0.012)
    return _mix(retina * np.exp(halo[..., None] * np.array([0.8, 1.0, 1.0])), 0.85 * pale, atrophy)


def _disc_colour(rng: np.random.Generator, retina_red: float) -> Floats:
    green = rng.uniform(0.58, 0.78)
    return retina_red * rng.uniform(1.45, 1.8) * np.array([1.0, green, green**2 * rng.uniform(0.65, 0.95)])


def expose(rng: np.random.Generator, scene: Floats, at: Points) -> NDArray[np.uint8]:
    """Photograph the scene: uneven light, stray light at the edge, blur (more of it in colour), sensor noise.

    Args:
        rng: source of all randomness.
        scene: colours (H, W, 3) in even light.
        at: positions (H, W) of the pixels.

    Returns:
        (H, W, 3) uint8.
    """
    scale = min(at.shape) / 2
    lit = scene * _illumination(rng, at)[..., None] ** np.array([1.0, 0.95, 0.93])
    lit = lit + _stray_light(rng, at) + rng.uniform(5, 15) * np.array([0.85, 1.0, 0.75])
    softness = rng.uniform(0.0012, 0.0028) * scale
    lit = ndimage.gaussian_filter(lit, (softness, softness, 0))
    grey = lit.mean(axis=-1, keepdims=True)
    colour = ndimage.gaussian_filter(lit - grey, (1.0, 1.0, 0))  # as chroma subsampling does
    noise = rng.normal(0, 1.0, grey.shape) + rng.normal(0, 0.8, lit.shape)
    bright = np.maximum(grey + colour, 0)
    exposed = bright / (1 + (bright / 255) ** 4) ** 0.25  # highlights saturate gently
    photograph: NDArray[np.uint8] = np.clip(exposed + noise, 0, 255).astype(np.uint8)
    return photograph


def _illumination(rng: np.random.Generator, at: Points) -> Floats:
    """Smooth light, dim towards the edge and mostly much darker on one side."""
    direction = np.exp(1j * (rng.normal(0, 0.5) + np.pi * rng.integers(2)))
    across = (at * np.conj(direction)).real + 0.08 * _noise(rng, at, 0.5)
    drop = rng.uniform(0.2, 0.9) * _step(rng.uniform(0.4, 0.85) - across, rng.uniform(0.12, 0.22))
    middle = complex(*rng.normal(0, 0.2, 2))
    log_light = 0.1 - rng.uniform(0.2, 0.6) * np.abs(at - middle) ** 2 - 0.2 * across
    light: Floats = np.exp(log_light) * (1 - drop)
    return light


def _stray_light(rng: np.random.Generator, at: Points) -> Floats:
    """Greenish crescent at the edge of the field, as a pupil that is off centre lets in."""
    strength = 0.6 * rng.beta(0.7, 1.8)
    towards = np.cos(np.angle(at) - rng.normal(0, 0.6) - np.pi * rng.integers(2))
    crescent = strength * np.maximum(towards, 0) ** 2 * np.exp((np.abs(at) - 1) / rng.uniform(0.06, 0.2))
    glare: Floats = crescent[..., None] * np.array([95.0, 125.0, 85.0])
    return glare
