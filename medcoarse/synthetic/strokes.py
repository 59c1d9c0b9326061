"""Handwritten digits as strokes of a pen: how each is written, how hands differ, and the pixels of the ink.

Convention: a point is a complex number x + iy with y downwards. A written digit is a chain of `NUM_POINTS` points; the
pen is up on some of the stretches between them. Written forms stand in a box of height 1, pixels count from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Points = NDArray[np.complex64]

SIDE = 28
"""Pixels along each side of the picture."""
BOX = 20
"""Pixels along the longer side of the digit, as in MNIST."""
NUM_POINTS = 36
NUM_NORMAL, NUM_UNIFORM = 16, 6
"""Random numbers that a digit takes."""
_AT_A_TIME = 16  # digits rasterized together: their distances stay in the processor's cache


def _arc(x: float, y: float, width: float, height: float, start: float, end: float) -> NDArray[np.complex128]:
    """Part of an ellipse, angles in degrees: 0 is right, 90 is down."""
    angle = np.radians(np.linspace(start, end, 40))
    return x + 0.5 * width * np.cos(angle) + 1j * (y + 0.5 * height * np.sin(angle))


def _stroke(*parts: complex | NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Points and arcs joined by straight lines."""
    return np.concatenate([np.atleast_1d(np.asarray(part, complex)) for part in parts])


_SIX = _stroke(_arc(0.82, 0.64, 1.2, 1.24, -105, -180), _arc(0.5, 0.72, 0.56, 0.52, 180, -170))
_FORMS = (
    ((_stroke(_arc(0.5, 0.5, 0.66, 1.0, -70, -440)),), (_stroke(_arc(0.5, 0.5, 0.84, 1.0, -100, -455)),)),
    (
        (_stroke(0.5, 0.5 + 1j),),
        (_stroke(0.3 + 0.24j, 0.52, 0.52 + 1j),),
        (_stroke(0.3 + 0.24j, 0.5, 0.5 + 1j), _stroke(0.22 + 1j, 0.78 + 1j)),
    ),
    (
        (_stroke(_arc(0.48, 0.28, 0.6, 0.56, -165, 35), 0.16 + 0.97j, 0.88 + 0.95j),),
        (_stroke(_arc(0.5, 0.28, 0.56, 0.56, -170, 50), _arc(0.27, 0.86, 0.26, 0.22, 0, 290), 0.92 + 0.94j),),
    ),
    (
        (_stroke(_arc(0.46, 0.25, 0.56, 0.5, -160, 85), _arc(0.46, 0.74, 0.66, 0.52, -85, 155)),),
        (_stroke(0.2 + 0.05j, 0.78 + 0.05j, 0.44 + 0.4j, _arc(0.46, 0.7, 0.66, 0.6, -80, 160)),),
    ),
    (
        (_stroke(0.24, 0.16 + 0.52j, 0.82 + 0.5j), _stroke(0.74 + 0.04j, 0.68 + 1j)),
        (_stroke(0.64, 0.1 + 0.66j, 0.9 + 0.64j), _stroke(0.64, 0.62 + 1j)),
    ),
    (
        (
            _stroke(0.32 + 0.04j, 0.26 + 0.44j, _arc(0.44, 0.7, 0.64, 0.6, -120, 150)),
            _stroke(0.32 + 0.04j, 0.88 + 0.02j),
        ),
        (_stroke(0.84 + 0.03j, 0.34 + 0.05j, 0.27 + 0.45j, _arc(0.44, 0.71, 0.6, 0.58, -115, 140)),),
    ),
    ((_SIX,), (_stroke(0.5, _arc(0.48, 0.7, 0.6, 0.6, -175, -360), _arc(0.48, 0.7, 0.6, 0.5, 0, -150)),)),
    (
        (_stroke(0.16 + 0.06j, 0.82 + 0.04j, 0.58 + 0.5j, 0.44 + 1j),),
        (_stroke(0.14 + 0.1j, 0.84 + 0.03j, 0.5 + 0.52j, 0.36 + 1j), _stroke(0.3 + 0.54j, 0.76 + 0.5j)),
    ),
    (
        (
            _stroke(
                _arc(0.5, 0.26, 0.5, 0.5, -30, -270),
                _arc(0.5, 0.75, 0.58, 0.5, -90, 270),
                _arc(0.5, 0.26, 0.5, 0.5, 90, -30),
            ),
        ),
        (
            _stroke(
                _arc(0.52, 0.25, 0.46, 0.46, -45, -230),
                0.66 + 0.6j,
                _arc(0.46, 0.78, 0.5, 0.42, -20, 200),
                0.72 + 0.1j,
            ),
        ),
    ),
    (
        (_stroke(_arc(0.48, 0.27, 0.58, 0.52, -20, -375), 0.74 + 0.5j, 0.7 + 1j),),
        (_stroke(_arc(0.5, 0.28, 0.56, 0.54, -30, -365), _arc(0.42, 0.6, 0.72, 0.78, 0, 110)),),
    ),
)
"""Ways to write each of the ten digits; a way is one or two strokes."""


def _resample(strokes: Sequence[NDArray[np.complex128]]) -> tuple[NDArray[np.complex128], NDArray[np.bool_]]:
    """`NUM_POINTS` points spread evenly over the strokes, and where the pen is down between them."""
    lengths = [np.concatenate([[0.0], np.abs(np.diff(stroke)).cumsum()]) for stroke in strokes]
    shares = np.cumsum([length[-1] for length in lengths]) / sum(length[-1] for length in lengths)
    last = np.round(shares * NUM_POINTS).astype(int)
    numbers = np.diff(last, prepend=0)
    points = [
        np.interp(np.linspace(0, length[-1], number), length, stroke)
        for stroke, length, number in zip(strokes, lengths, numbers, strict=True)
    ]
    down = np.ones(NUM_POINTS - 1, bool)
    down[last[:-1] - 1] = False
    return np.concatenate(points), down


_WAYS = [[_resample(strokes) for strokes in forms] for forms in _FORMS]
_NUM_WAYS = np.array([len(ways) for ways in _WAYS])
_FIRST_WAY = np.concatenate([[0], _NUM_WAYS.cumsum()[:-1]])
_POINTS = np.array([points for ways in _WAYS for points, _ in ways])
_DOWN = np.array([down for ways in _WAYS for _, down in ways])


@dataclass(frozen=True)
class Ink:
    """N written digits: points (N, P) in pixels, the pen's radius (N, P - 1) between them, -inf where it is up, and the
    width (N,) of the ink's soft edge."""

    points: Points
    radii: Floats
    edges: Floats


def write(classes: NDArray[np.int64], normal: NDArray[np.float64], uniform: NDArray[np.float64]) -> Ink:
    """Write digits by hands that differ: the way of writing, bends, slant, proportions, pen and pressure.

    The digits are made to fit a square of `BOX` pixels and centred by their centre of mass, as those of MNIST are.

    Args:
        classes: (N,) from 0 to 9.
        normal: (N, `NUM_NORMAL`), numbers of a standard normal distribution.
        uniform: (N, `NUM_UNIFORM`), numbers in [0, 1).

    Example:
        >>> ink = write(np.array([1]), np.zeros((1, NUM_NORMAL)), np.zeros((1, NUM_UNIFORM)))
        >>> ink.points.shape, bool(np.ptp(ink.points.imag) > np.ptp(ink.points.real))
        ((1, 36), True)
    """
    way = _FIRST_WAY[classes] + (uniform[:, 0] * _NUM_WAYS[classes]).astype(int)
    down = _DOWN[way]
    points = _slant(_bend(_POINTS[way] - (0.5 + 0.5j), normal, uniform), normal)
    thickness = 1.2 * np.exp(0.24 * normal[:, 15])
    phase = np.linspace(0, 5, NUM_POINTS - 1) + 2 * np.pi * uniform[:, 4:5]
    radii = thickness[:, None] * (1 + 0.16 * np.sin(phase))
    points = _fit(points, down, BOX / 2 - thickness)
    edges = 0.8 + 0.5 * uniform[:, 5]
    return Ink(points.astype(np.complex64), np.where(down, radii, -np.inf).astype(np.float32), edges.astype(np.float32))


def _bend(
    points: NDArray[np.complex128], normal: NDArray[np.float64], uniform: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """Move the points by a smooth random field: three plane waves."""
    bent = points.copy()
    for wave in range(3):
        kick = 0.038 * (normal[:, 4 * wave] + 1j * normal[:, 4 * wave + 1])
        vector = 4.5 * (normal[:, 4 * wave + 2] + 1j * normal[:, 4 * wave + 3])
        along = (points * np.conj(vector[:, None])).real + 2 * np.pi * uniform[:, 1 + wave, None]
        bent += kick[:, None] * np.sin(along)
    return bent


def _slant(points: NDArray[np.complex128], normal: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Random width over height, slant (mostly to the right) and rotation."""
    width = np.exp(0.16 * normal[:, 12])
    lean = 0.15 + 0.2 * normal[:, 13]
    slanted = (width[:, None] * points.real - lean[:, None] * points.imag) + 1j * points.imag
    turned: NDArray[np.complex128] = slanted * np.exp(0.1j * normal[:, 14])[:, None]
    return turned


def _fit(points: NDArray[np.complex128], down: NDArray[np.bool_], half: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Scale to a square of side ``2 half`` and move the ink's centre of mass to the middle of the picture."""
    longer = np.maximum(np.ptp(points.real, axis=1), np.ptp(points.imag, axis=1))
    points = points * (2 * half / longer)[:, None]
    lengths = np.abs(np.diff(points, axis=1)) * down
    middles = (points[:, :-1] + points[:, 1:]) / 2
    mass = (middles * lengths).sum(1) / lengths.sum(1)
    centred: NDArray[np.complex128] = points - mass[:, None] + (SIDE - 1) / 2 * (1 + 1j)
    return centred


def rasterize(ink: Ink) -> Floats:
    """Intensity (N, `SIDE`, `SIDE`) of the ink, 0 to 1: one half at the pen's radius, with a soft edge.

    Example:
        >>> line = Ink(np.array([[4 + 14j, 23 + 14j]], np.complex64), np.float32([[2.0]]), np.float32([1.0]))
        >>> rasterize(line)[0, 10:19, 10].tolist()
        [0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    axis = np.arange(SIDE, dtype=np.float32)
    pixels = np.stack([np.tile(axis, SIDE), np.repeat(axis, SIDE)])
    images = np.empty((len(ink.points), SIDE * SIDE), np.float32)
    for start in range(0, len(images), _AT_A_TIME):
        some = slice(start, start + _AT_A_TIME)
        outside = _distance_to_ink(pixels, ink.points[some], ink.radii[some])
        images[some] = np.clip(0.5 - outside / ink.edges[some, None], 0, 1)
    return images.reshape(-1, SIDE, SIDE)


def _distance_to_ink(pixels: Floats, points: Points, radii: Floats) -> Floats:
    """Distance (n, pixels) to the nearest stretch's edge, negative inside."""
    start, way = points[:, :-1], np.diff(points, axis=1)
    square = np.maximum(np.abs(way) ** 2, 1e-12)
    nearest = np.full((len(points), pixels.shape[1]), np.inf, np.float32)
    for k in range(start.shape[1]):  # over the stretches: the arrays stay small
        x, y = (p - s[:, None] for p, s in zip(pixels, (start[:, k].real, start[:, k].imag), strict=True))
        dx, dy = way[:, k, None].real, way[:, k, None].imag
        along = np.clip((x * dx + y * dy) / square[:, k, None], 0, 1)
        np.minimum(nearest, np.hypot(x - along * dx, y - along * dy) - radii[:, k, None], out=nearest)
    return nearest
