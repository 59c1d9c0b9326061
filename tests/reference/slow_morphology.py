"""Masks by brute force: every voxel against every other one, from the definitions alone."""

from __future__ import annotations

import itertools

import numpy as np


def distance_mm(a, b, spacing):
    return sum(((p - q) * s) ** 2 for p, q, s in zip(a, b, spacing, strict=True)) ** 0.5


def distance_to(voxels, x, spacing):
    return min((distance_mm(x, y, spacing) for y in voxels), default=float("inf"))


def _every(mask):
    return itertools.product(*map(range, mask.shape))


def _built(mask, belongs):
    result = np.zeros(mask.shape, bool)
    for x in _every(mask):
        result[x] = belongs(x)
    return result


def thin(mask, radius, spacing):
    outside = [x for x in _every(mask) if not mask[x]]
    return _built(mask, lambda x: bool(mask[x]) and distance_to(outside, x, spacing) > radius + 1e-6)


def thicken(mask, radius, spacing):
    inside = [x for x in _every(mask) if mask[x]]
    return _built(mask, lambda x: distance_to(inside, x, spacing) <= radius + 1e-6)


def swell(mask, radius, strength, field, spacing):
    inside = [x for x in _every(mask) if mask[x]]

    def belongs(x):
        r = distance_to(inside, x, spacing)
        return r == 0 or (r <= radius + 1e-6 and field[x] > 1 - strength / r)

    return _built(mask, belongs)


def fracture(mask, centers, directions, width, length, spacing):
    def is_cut(x):
        for center, direction in zip(centers, directions, strict=True):
            norm = sum(u * u for u in direction) ** 0.5
            step = [(p - c) * s for p, c, s in zip(x, center, spacing, strict=True)]
            depth = sum(d * u / norm for d, u in zip(step, direction, strict=True))
            aside = sum((d - depth * u / norm) ** 2 for d, u in zip(step, direction, strict=True)) ** 0.5
            if abs(depth) <= width / 2 and aside <= length / 2:
                return True
        return False

    return _built(mask, lambda x: bool(mask[x]) and not is_cut(x))


def shrink_to_ratio(mask, ratio, centers, spacing):
    voxels = [x for x in _every(mask) if mask[x]]
    number = max(1, round(ratio * len(voxels))) if ratio and voxels else 0
    nearest = sorted(voxels, key=lambda x: (round(distance_to(centers, x, spacing), 9), x))
    kept = set(nearest[:number])
    return _built(mask, lambda x: x in kept)


def inside_polygons(shape, polygons):
    """Even-odd rule by a ray to the left from every pixel."""

    def is_inside(x):
        row, column = x
        crossings = 0
        for polygon in polygons:
            for (r0, c0), (r1, c1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
                if (r0 >= row) != (r1 >= row) and c0 + (row - r0) * (c1 - c0) / (r1 - r0) <= column:
                    crossings += 1
        return crossings % 2 == 1

    return _built(np.zeros(shape), is_inside)


def swap(annotation, pairs, ratio, places, spacing):
    """Of each class said, the voxels nearest to any of the centres are called the other class of its pair."""
    swapped = annotation.copy()
    for (said, instead), own in zip(pairs, places, strict=True):
        voxels = [x for x in _every(annotation) if annotation[x] == said]
        centers = [voxels[place * len(voxels) // 2**32] for place in own if voxels]
        voxels.sort(key=lambda x: min(distance_mm(x, c, spacing) for c in centers))  # stable: ties in memory order
        for x in voxels[: max(1, round(ratio * len(voxels)))]:
            swapped[x] = instead
    return swapped
