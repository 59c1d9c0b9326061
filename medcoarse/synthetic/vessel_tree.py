"""Retinal vessel trees: where the optic disc, the fovea, the arteries and the veins of a drawn eye lie.

Convention: lengths are in units of the radius of the field of view, the origin is its centre, a point is a complex
number x + iy with y downwards, and a heading is an angle in radians.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Points = NDArray[np.complex128]

STEP = 0.012
CAPILLARY_RADIUS = 0.0028
AVASCULAR_RADIUS = 0.12
PERSONAL_SPACE = 0.13


@dataclass(frozen=True)
class Eye:
    """What differs from eye to eye: places, and how thick and crooked the vessels are.

    Args:
        disc: centre of the optic disc.
        disc_radius: its radius.
        hub: where the vessels enter, nasal of the disc's centre.
        fovea: centre of the macula, where no vessel runs.
        temporal: +1 where the fovea is right of the disc, else -1.
        calibre: factor on the vessels' radii.
        tortuosity: factor on the vessels' random curvature.
        aperture: radius of the camera's aperture; above 1 the frame cuts it off flat at the top and the bottom.
    """

    disc: complex
    disc_radius: float
    hub: complex
    fovea: complex
    temporal: float
    calibre: float
    tortuosity: float
    aperture: float


@dataclass(frozen=True)
class Vessel:
    """A stretch of vessel between two branchings: points (n,) of its centreline and the radii (n,) there."""

    points: Points
    radii: Floats


@dataclass(order=True)
class _Bud:
    """The growing end of a vessel. Buds sort thickest first, so thick vessels take their place before thin ones."""

    order: tuple[float, int]
    at: complex
    heading: float
    radius: float
    side: float = 1.0
    trunk: bool = False
    inward: bool = False


def draw_eye(rng: np.random.Generator) -> Eye:
    """Random anatomy: mostly centred on the disc as LES-AV is, one in six nearer to the macula."""
    temporal = float(rng.choice([-1.0, 1.0]))
    aside = -temporal * rng.uniform(0.35, 0.55) if rng.random() < 1 / 6 else 0.0
    disc = complex(*rng.normal(0, 0.1, 2)) + aside
    disc_radius = rng.uniform(0.18, 0.24)
    return Eye(
        disc=disc,
        disc_radius=disc_radius,
        hub=disc + disc_radius * complex(-0.25 * temporal + rng.normal(0, 0.07), rng.normal(0, 0.07)),
        fovea=disc + rng.uniform(0.95, 1.1) * complex(temporal, rng.uniform(0.0, 0.25)),
        temporal=temporal,
        calibre=rng.uniform(0.82, 1.15),
        tortuosity=rng.uniform(0.6, 1.5),
        aperture=rng.uniform(1.0, 1.02),
    )


def murray_split(radius: float, ratio: float) -> tuple[float, float]:
    """Radii of two daughter vessels, r0^3 = r1^3 + r2^3 with r2 = ratio * r1.

    Args:
        radius: radius r0 of the parent.
        ratio: thinner over thicker daughter, in (0, 1].

    Source: Murray, The physiological principle of minimum work, PNAS 12 (1926), 207-214.

    Example:
        >>> r1, r2 = murray_split(1.0, 0.5)
        >>> round(r1**3 + r2**3, 12), r2 / r1
        (1.0, 0.5)
    """
    thick = radius / (1 + ratio**3) ** (1 / 3)
    return thick, ratio * thick


def murray_angles(ratio: float) -> tuple[float, float]:
    """Angles (rad) by which the thicker and the thinner daughter leave the parent's direction.

    cos a1 = (r0^4 + r1^4 - r2^4) / (2 r0^2 r1^2), and the same with 1 and 2 exchanged.

    Args:
        ratio: thinner over thicker daughter, in (0, 1].

    Source: Murray, The physiological principle of minimum work applied to the angle of branching of arteries,
    J. Gen. Physiol. 9 (1926), 835-841.

    Example:
        >>> [round(float(np.degrees(angle)), 1) for angle in murray_angles(1.0)]
        [37.5, 37.5]
    """
    thick, thin = murray_split(1.0, ratio)
    cos_thick = (1 + thick**4 - thin**4) / (2 * thick**2)
    cos_thin = (1 + thin**4 - thick**4) / (2 * thin**2)
    return float(np.arccos(cos_thick)), float(np.arccos(cos_thin))


def grow_tree(rng: np.random.Generator, eye: Eye, vein: bool) -> list[Vessel]:
    """Arteries or veins of one eye. Vessels of one tree shun each other; only an artery and a vein may cross.

    Args:
        rng: source of all randomness.
        eye: where the tree grows.
        vein: veins are thicker than arteries.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> tree = grow_tree(rng, draw_eye(rng), vein=True)
        >>> bool(0.01 < max(vessel.radii.max() for vessel in tree) < 0.03)
        True
    """
    buds = _buds_on_disc(rng, eye, vein)
    heapq.heapify(buds)
    count = len(buds)
    tree: list[Vessel] = []
    taken: Points = np.empty(0, complex)
    while buds:
        bud = heapq.heappop(buds)
        points, heading, alive = _walk(rng, eye, bud, taken)
        tree.append(Vessel(points, _taper(bud.radius, points, ends=not alive)))
        taken = np.concatenate([taken, points])
        for child in _branch(rng, eye, bud, complex(points[-1]), heading, count) if alive else []:
            heapq.heappush(buds, child)
            count += 1
    return tree


def _buds_on_disc(rng: np.random.Generator, eye: Eye, vein: bool) -> list[_Bud]:
    """Two trunks, up and down, that soon fork into the arcades, and small vessels to the sides, from one hub."""
    radius = (0.0178 if vein else 0.0136) * eye.calibre
    buds: list[_Bud] = []
    for vertical in (-np.pi / 2, np.pi / 2):
        thickness = radius * rng.uniform(0.85, 1.1)
        thicker_side = np.sign(vertical) * eye.temporal  # the fork's thicker arm runs to the temporal side
        heading = vertical + rng.normal(0, 0.25)
        buds.append(_Bud((-thickness, len(buds)), eye.hub, heading, thickness, thicker_side, trunk=True))
    for _ in range(rng.integers(2, 6)):
        thickness = radius * rng.uniform(0.22, 0.45)
        heading = rng.uniform(-0.7, 0.7) + np.pi * rng.integers(2)
        start = eye.hub + 0.2 * eye.disc_radius * complex(*rng.normal(size=2))
        buds.append(_Bud((-thickness, len(buds)), start, heading, thickness))
    return buds


def _course(eye: Eye, at: complex, inward: bool) -> complex:
    """Direction a vessel tends to: away from the disc, arching round the fovea; inward twigs make for it."""
    out = (at - eye.hub) / (abs(at - eye.hub) + 1e-9)
    from_fovea = (at - eye.fovea) / (abs(at - eye.fovea) + 1e-9)
    if inward:
        return 0.5 * out - 0.8 * from_fovea
    nearness = abs(at - eye.fovea) / abs(eye.disc - eye.fovea)
    below = 1.0 if from_fovea.imag > 0 else -1.0
    arch = -1j * below * eye.temporal * from_fovea
    return complex(out + 1.6 * np.exp(-((nearness / 0.95) ** 2)) * arch + np.exp(-4 * nearness**2) * from_fovea)


def _avoid(at: complex, heading: float, taken: Points) -> tuple[float, float]:
    """Turning rate away from the nearest vessel ahead, and the distance to it."""
    ahead = (taken - at) * np.exp(-1j * heading)
    distance = np.where(ahead.real > 0, np.abs(ahead), np.inf)
    if distance.min(initial=np.inf) > PERSONAL_SPACE:
        return 0.0, np.inf
    nearest = distance.argmin()
    crowding = 1 - distance[nearest] / PERSONAL_SPACE
    return float(-np.sign(ahead[nearest].imag) * 12 * crowding), float(distance[nearest])


def _walk(rng: np.random.Generator, eye: Eye, bud: _Bud, taken: Points) -> tuple[Points, float, bool]:
    """Centreline from a bud to its next branching; the last value is False where the vessel ends or leaves."""
    length = rng.uniform(0.02, 0.16) if bud.trunk else rng.uniform(0.14, 0.4)
    at, heading, curvature = bud.at, bud.heading, 0.0
    points = [at]
    for kick in rng.normal(size=int(length / STEP)):
        # The curvature is an Ornstein-Uhlenbeck process with a correlation length of 0.06.
        curvature += -curvature * STEP / 0.06 + 4.0 * eye.tortuosity * np.sqrt(2 * STEP / 0.06) * kick
        turn, gap = _avoid(at, heading, taken)
        lag = float(np.angle(_course(eye, at, bud.inward) * np.exp(-1j * heading)))
        heading += STEP * (curvature + turn + 4.0 * np.sin(lag))
        at += STEP * complex(np.cos(heading), np.sin(heading))
        points.append(at)
        blocked = len(points) > 4 and gap < 2 * bud.radius + 0.01
        if blocked or abs(at) > 1.05 or abs(at - eye.fovea) < AVASCULAR_RADIUS:
            return np.array(points), heading, False
    return np.array(points), heading, True


def _taper(radius: float, points: Points, ends: bool) -> Floats:
    """Radii along a vessel: a little thinner along the way; one that ends inside the field thins out."""
    last = 0.5 * (radius + CAPILLARY_RADIUS) if ends and abs(points[-1]) < 1 else 0.97 * radius
    return np.linspace(radius, min(last, radius), len(points))


def _branch(rng: np.random.Generator, eye: Eye, bud: _Bud, at: complex, heading: float, count: int) -> list[_Bud]:
    """Two daughters by Murray's law; mostly a vessel that goes on and a twig, the twigs on alternating sides.

    Deviates: the angles are three quarters of Murray's, which are wider than those seen on the retina.
    """
    even = bud.trunk or rng.random() < 0.2
    ratio = rng.uniform(0.7, 0.95) if even else rng.uniform(0.3, 0.58)
    side = bud.side if bud.trunk or rng.random() < 0.25 else -bud.side
    children: list[_Bud] = []
    radii, angles = murray_split(0.97 * bud.radius, ratio), murray_angles(ratio)
    for radius, angle, sign in zip(radii, angles, (-side, side), strict=True):
        if radius > CAPILLARY_RADIUS:
            towards = heading + 0.75 * sign * angle
            faces_fovea = np.cos(np.angle(eye.fovea - at) - towards) > 0.3 and abs(eye.fovea - at) < 0.9
            inward = bud.inward or bool(faces_fovea and radius < 0.006)
            order = (-radius, count + len(children))
            children.append(_Bud(order, at, towards, radius, side, inward=inward))
    return children
