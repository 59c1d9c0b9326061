"""Drawing for a whole batch at once, on the device where its label maps live.

Convention:
    Masks are bool tensors (B, *S), in 2D or 3D, on any device that has double precision; lengths are in mm. All images
    of a batch share their spacing. Functions do to each mask what their namesakes in `morphology` do to one. Chance
    comes from the same NumPy generators as in `annotators`; what is random is little, and is sent to the device.

Deviates:
    Skeletons and polygons have no parallel form that gives the same result: these two are made on the CPU, by as many
    threads as torch may use, and sent back.
    Distances are the exact minimum, where `morphology` may take one of two equal ones that differ by rounding (2e-7);
    a device may round the error function and matrix products in another way. That moves a voxel only where a comparison
    hangs on the last bit: none in the tests on the CPU, and expect less than one in 100 000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medcoarse import annotators, morphology, outlines
from medcoarse.annotators import AnnotatorProfile, Parameters, Pen
from medcoarse.compilation import in_threads, shares
from medcoarse.morphology import Mask, as_spacing

Seed = int | Sequence[int] | np.random.Generator
Window = tuple[slice, ...]
_Spacing = Sequence[float] | float | None

_WHOLE = 2.0**24  # whole numbers below are exact in single precision
_FIRST_RADIUS = 4  # voxels: what nobody drew is narrow as a rule


def draw_batch(
    profile: AnnotatorProfile,
    labels: Tensor,
    target: int | None = 1,
    spacing: _Spacing = None,
    seeds: Sequence[Seed] = (),
    num_classes: int = 2,
) -> tuple[Tensor, list[Parameters]]:
    """Simulate one annotation of each label map: item b is `annotators.draw` of label map b with seed b.

    Args:
        profile: who draws.
        labels: true label maps (B, *S) on any device, integers below `num_classes` or `UNLABELED`.
        target: the class that is drawn; None for every class in turn.
        spacing: mm per voxel, the same for all.
        seeds: B seeds of NumPy generators, or generators that move on.
        num_classes: L >= 2.

    Returns:
        The annotations (B, *S), uint8, on the device of the label maps, and the parameters of each.

    Raises:
        ValueError: the label maps or the target do not fit `num_classes`, or there is not one seed for each.

    Deviates:
        See :mod:`medcoarse.batched`.

    Example:
        >>> labels = torch.zeros(2, 16, 16, dtype=torch.uint8); labels[:, 4:12, 6:9] = 1
        >>> coarse = AnnotatorProfile(swell_mm=3.0, fracture_ratio=0.4)
        >>> drawn, parameters = draw_batch(coarse, labels, seeds=[3, 4])
        >>> bool((drawn[1].numpy() == annotators.draw(coarse, labels[1].numpy(), seed=4).annotation).all())
        True
    """
    labels = _checked(profile, labels, target, num_classes, "seeds", seeds)
    spatial_dims = labels.ndim - 1
    sizes = as_spacing(spacing, spatial_dims)
    classes = annotators.drawn_classes(target, num_classes)
    boundaries = [[0.0] * len(labels)] * len(classes)
    if annotators.cuts_by_ratio(profile):
        boundaries = [_boundary_sizes(annotators.region_of(profile, labels, k), sizes) for k in classes]
    parameters = [
        annotators.random_choices(profile, outline, spatial_dims, target, np.random.default_rng(seed), num_classes)
        for *outline, seed in zip(*boundaries, seeds, strict=True)
    ]
    return apply_batch(profile, labels, target, sizes, parameters), parameters


def apply_batch(
    profile: AnnotatorProfile,
    labels: Tensor,
    target: int | None,
    spacing: _Spacing,
    parameters: Sequence[Parameters],
) -> Tensor:
    """The annotations that follow from recorded parameters, as `annotators.apply` makes them one by one.

    Args:
        profile: who draws.
        labels: true label maps (B, *S) on any device.
        target: the class that is drawn; None for every class in turn.
        spacing: mm per voxel.
        parameters: B records, of `draw_batch` or of `annotators.draw`.

    Returns:
        uint8 annotations (B, *S) on the device of the label maps.

    Raises:
        ValueError: as for `draw_batch`.

    Example:
        >>> labels = torch.tensor([[[0, 1, 1, 0]]])
        >>> perfect = AnnotatorProfile()
        >>> apply_batch(perfect, labels, 1, None, draw_batch(perfect, labels, seeds=[0])[1])
        tensor([[[0, 1, 1, 0]]], dtype=torch.uint8)
    """
    num_classes = parameters[0]["num_classes"] if parameters else 2
    labels = _checked(profile, labels, target, num_classes, "parameters", parameters)
    sizes = as_spacing(spacing, labels.ndim - 1)
    masks = [
        _drawn(profile, annotators.region_of(profile, labels, k), sizes, choices)
        for k in annotators.drawn_classes(target, num_classes)
        for choices in [[annotators.choices_for(one, k) for one in parameters]]
    ]
    rngs = [np.random.default_rng(one["other_seed"]) for one in parameters]

    def chance(sample: annotators.Sample) -> Tensor:
        return torch.from_numpy(np.stack([sample(rng, labels.shape[1:]) for rng in rngs])).to(labels.device)

    annotation = labels.to(torch.uint8, copy=True)
    distance = partial(squared_distance, spacing=sizes)
    annotators.encode(profile, annotation, masks, target, num_classes, chance, distance, _radii(labels, sizes))
    return _swap(profile, annotation, annotators.swapped_classes(profile, target, num_classes), sizes, parameters)


def squared_distance(mask: Tensor, radius_mm: float, spacing: _Spacing = None) -> Tensor:
    """Squared distance in mm² from every voxel to the nearest one of the mask, infinite beyond the radius.

    Along one axis after the other, `d²(x) = min over k of f(x + k) + (s k)²`: two passes over the batch for each k
    within the radius, whatever the masks hold. The time grows with the radius, the memory does not.

    Args:
        mask: bool (B, *S).
        radius_mm: how far to look, >= 0.
        spacing: mm per voxel.

    Returns:
        float32 (B, *S).

    Raises:
        ValueError: a negative radius.

    Example:
        >>> squared_distance(torch.tensor([[[True, False, False, False]]]), 2)
        tensor([[[0., 1., 4., inf]]])
    """
    sizes, limit = as_spacing(spacing, mask.ndim - 1), morphology.squared_limit(radius_mm)
    whole = limit < _WHOLE and all(size.is_integer() for size in sizes)
    squared = torch.full(mask.shape, torch.inf, device=mask.device).masked_fill_(mask, 0.0)
    for axis in (len(sizes), *range(1, len(sizes))):  # the order of `morphology`: rounding is the same
        nearest = _nearest_along(squared if whole else squared.double(), axis, sizes[axis - 1], limit)
        squared = nearest.masked_fill_(nearest > limit, torch.inf).float()
    return squared


def thin(
    mask: Tensor,
    radius_mm: float,
    spacing: _Spacing = None,
    preserve: bool = False,
    windows: Sequence[Window] | None = None,
) -> Tensor:
    """Take off every voxel whose distance to the outside is at most the radius; `preserve` keeps the skeleton.

    Example:
        >>> thin(torch.tensor([[[False, True, True, True, True]]]), 1)
        tensor([[[False, False,  True,  True,  True]]])
    """
    kept = mask & squared_distance(~mask, radius_mm, spacing).isinf()
    return kept | skeleton(mask, windows) if preserve and radius_mm > 0 else kept


def thicken(mask: Tensor, radius_mm: float, spacing: _Spacing = None) -> Tensor:
    """Add every voxel within the radius.

    Example:
        >>> thicken(torch.tensor([[[True, False, False, False]]]), 1.5)
        tensor([[[ True,  True, False, False]]])
    """
    return squared_distance(mask, radius_mm, spacing).isfinite()


def skeleton(mask: Tensor, windows: Sequence[Window] | None = None) -> Tensor:
    """The centre line of each mask, one voxel wide, see `morphology.skeleton`; on the CPU.

    Args:
        mask: bool (B, *S).
        windows: for each mask, a box outside which it is empty; less work.

    Example:
        >>> skeleton(torch.ones(1, 3, 7, dtype=torch.bool)).sum(1)
        tensor([[1, 1, 1, 1, 1, 1, 0]])
    """
    return _one_by_one(morphology.skeleton, mask, windows)


def scribble(
    mask: Tensor, width_mm: float, spacing: _Spacing = None, windows: Sequence[Window] | None = None
) -> Tensor:
    """A stroke along the centre line: the skeleton, thickened to the width of the pen.

    Example:
        >>> scribble(torch.ones(1, 5, 9, dtype=torch.bool), 3).sum()
        tensor(26)
    """
    return thicken(skeleton(mask, windows), width_mm / 2, spacing)


def polygonize(
    mask: Tensor,
    tolerance_mm: float = 0.0,
    num_vertices: int | None = None,
    spacing: _Spacing = None,
    windows: Sequence[Window] | None = None,
) -> Tensor:
    """Redraw every outline with few vertices and fill it, see `outlines.polygonize`; on the CPU.

    Example:
        >>> bool(polygonize(torch.ones(1, 6, 6, dtype=torch.bool)).all())
        True
    """
    redraw = partial(
        outlines.polygonize,
        tolerance_mm=tolerance_mm,
        num_vertices=num_vertices,
        spacing=as_spacing(spacing, mask.ndim - 1),
    )
    return _one_by_one(redraw, mask, windows)


def smooth_field(
    shape: Sequence[int],
    smoothness_mm: float,
    rngs: Sequence[np.random.Generator],
    spacing: _Spacing = None,
    windows: Sequence[Window] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A smooth random field for each image, uniform on [0, 1] at every voxel.

    NumPy draws the white noise at the nodes of coarse grids; they are sent to the device and evaluated there.

    Args:
        shape: (H, W) or (H, W, D).
        smoothness_mm: standard deviation of the Gaussian, >= 0; 0 is white noise.
        rngs: B sources of noise.
        spacing: mm per voxel.
        windows: for each image, the box on which it has its field; the values outside mean nothing.
        device: where the fields shall live.

    Returns:
        float32 (B, *S).

    Example:
        >>> field = smooth_field((40, 30), 3.0, [np.random.default_rng(0)])
        >>> bool((field[0].numpy() == morphology.smooth_field((40, 30), 3.0, np.random.default_rng(0))).all())
        True
    """
    sizes = as_spacing(spacing, len(shape))
    noise: list[NDArray[np.float32]] = []
    taps: list[list[tuple[NDArray[Any], NDArray[Any]]]] = [[] for _ in shape]
    for rng, window in zip(rngs, windows or [tuple(map(slice, [0] * len(shape), shape))] * len(rngs), strict=True):
        own = [morphology.field_taps(w.stop - w.start, smoothness_mm, s) for w, s in zip(window, sizes, strict=True)]
        noise.append(rng.standard_normal([int(node[-1, -1]) + 1 for node, _ in own], dtype=np.float32))
        for axis, (w, (node, weight)) in enumerate(zip(window, own, strict=True)):
            voxel = np.clip(np.arange(shape[axis]) - w.start, 0, len(node) - 1)
            taps[axis].append((node[voxel], weight[voxel]))
    field = torch.from_numpy(_padded(noise)).to(device)
    for axis in range(len(shape) - 1, -1, -1):
        nodes, weights = (torch.from_numpy(np.stack(one)).to(device) for one in zip(*taps[axis], strict=True))
        field = _interpolated(field, axis + 1, nodes.long(), weights)
    return morphology.as_uniform(field)


def swell(mask: Tensor, radius_mm: float, strength_mm: float, field: Tensor, spacing: _Spacing = None) -> Tensor:
    """Over-segment here and there: the outline bulges where a smooth field is high.

    Example:
        >>> swell(torch.tensor([[[True, False, False]]]), 2, 0.6, torch.tensor([[[0.0, 0.5, 0.5]]]))
        tensor([[[ True,  True, False]]])
    """
    squared = squared_distance(mask, radius_mm, spacing).mul_((1 - field).square())
    return mask | (squared < strength_mm**2)


def fracture(
    mask: Tensor, centers: Tensor, directions: ArrayLike, width_mm: float, length_mm: float, spacing: _Spacing = None
) -> Tensor:
    """Cut gaps into masks, see `morphology.fracture`.

    Args:
        mask: bool (B, *S).
        centers: (N, 1 + spatial_dims): the image of each cut, and its centre.
        directions: (N, spatial_dims) vectors in mm that point across the cuts.
        width_mm: size along the direction, >= 0.
        length_mm: size perpendicular to it, >= 0.
        spacing: mm per voxel.

    Raises:
        ValueError: not as many directions as centres, or one of them is 0.

    Example:
        >>> fracture(torch.ones(1, 1, 6, dtype=torch.bool), torch.tensor([[0, 0, 2]]), [[0.0, 1.0]], 2, 4)
        tensor([[[ True, False, False, False,  True,  True]]])
    """
    sizes = as_spacing(spacing, mask.ndim - 1)
    image, where = centers[:, 0], centers[:, 1:]
    arrays = (
        morphology.unit_vectors(directions, tuple(where.shape)),
        morphology.cut_offsets(width_mm, length_mm, sizes),
        np.array(sizes),
        np.array(mask.shape[1:]),
    )
    across, offsets, steps, shape = (torch.from_numpy(one).to(mask.device) for one in arrays)
    cut = mask.clone()
    for stroke, voxels in morphology.cut_voxels(where, across, offsets, steps, shape, width_mm, length_mm):
        cut[(image[stroke], *voxels.unbind(1))] = False
    return cut


def shrink_to_number(mask: Tensor, numbers: Sequence[int], centers: Tensor, spacing: _Spacing = None) -> Tensor:
    """Keep so many voxels of each mask: those nearest to a centre, of equally near ones the first in memory.

    Args:
        mask: bool (B, *S).
        numbers: B numbers of voxels, none more than its mask has.
        centers: (B, P, spatial_dims) voxel indices.
        spacing: mm per voxel.

    Example:
        >>> shrink_to_number(torch.ones(1, 1, 6, dtype=torch.bool), [3], torch.tensor([[[0, 1]]]))
        tensor([[[ True,  True,  True, False, False, False]]])
    """
    sizes = as_spacing(spacing, mask.ndim - 1)
    nearest = torch.full(mask.shape, torch.inf, dtype=torch.float64, device=mask.device)
    for center in centers.unbind(1):
        distance = torch.zeros((), dtype=torch.float64, device=mask.device)
        for axis, size in enumerate(sizes):
            line = torch.arange(mask.shape[axis + 1], dtype=torch.float64, device=mask.device) - center[:, axis, None]
            shape = [-1 if a in (0, axis + 1) else 1 for a in range(mask.ndim)]
            shape[0] = len(mask)
            distance = distance + (line * size).square().view(shape)
        nearest = torch.minimum(nearest, distance)
    order = nearest.masked_fill_(~mask, torch.inf).flatten(1).argsort(dim=1, stable=True)
    first = torch.arange(order.shape[1], device=mask.device) < torch.tensor(numbers, device=mask.device)[:, None]
    return torch.zeros_like(first).scatter_(1, order, first).view(mask.shape)


def _checked(
    profile: AnnotatorProfile, labels: Tensor, target: int | None, num_classes: int, name: str, one_each: Sequence[Any]
) -> Tensor:
    if labels.ndim not in (3, 4) or labels.is_floating_point() or labels.dtype == torch.bool:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"labels must hold integers and have shape (B, *S) with 2 or 3 spatial axes, got {got}.")
    if len(one_each) != len(labels):
        raise ValueError(f"{name} must be one for each of the {len(labels)} label maps, got {len(one_each)}.")
    labels = labels if labels.dtype == torch.uint8 else labels.long()  # 255 wraps around in int8
    annotators.check_values(labels, target, num_classes)
    annotators.swapped_classes(profile, target, num_classes)
    return labels


def _boundary_sizes(region: Tensor, sizes: tuple[float, ...]) -> list[float]:
    faces = [region.diff(dim=axis).flatten(1).sum(1) for axis in range(1, region.ndim)]
    return [outlines.size_of_faces(one, sizes) for one in torch.stack(faces, 1).tolist()]


def _drawn(
    profile: AnnotatorProfile, region: Tensor, sizes: tuple[float, ...], parameters: Sequence[Parameters]
) -> Tensor:
    """The regions as this annotator paints them. Only the box that the drawings can reach is worked on."""
    drawn = torch.zeros_like(region)
    reached = _windows(region, profile.reach_mm + max(sizes), sizes)
    used = [window for window in reached if window[0].stop]
    if not used:
        return drawn
    box = tuple(slice(min(w.start for w in along), max(w.stop for w in along)) for along in zip(*used, strict=True))
    windows = [_moved(window if window[0].stop else box, box) for window in reached]
    pen = Pen(
        partial(thin, windows=windows),
        thicken,
        partial(polygonize, windows=windows),
        partial(scribble, windows=windows),
    )
    mask = annotators.redraw(profile, region[(slice(None), *box)], sizes, pen)
    mask = _cut(profile, _roughen(profile, mask, sizes, parameters, windows), sizes, parameters)
    drawn[(slice(None), *box)] = _shrink(profile, mask, region, sizes, parameters)
    return drawn


def _windows(region: Tensor, margin_mm: float, sizes: tuple[float, ...]) -> list[Window]:
    """For each image, `bounding_window` of its region."""
    axes = range(1, region.ndim)
    used = [region.any(dim=[a for a in axes if a != axis]) for axis in axes]
    margins = [margin_mm / size for size in sizes]
    lines = np.split(torch.cat(used, 1).cpu().numpy(), np.cumsum(region.shape[1:])[:-1], axis=1)
    return [tuple(map(morphology.widened, image, margins)) for image in zip(*lines, strict=True)]


def _moved(window: Window, box: Window) -> Window:
    return tuple(slice(w.start - b.start, w.stop - b.start) for w, b in zip(window, box, strict=True))


def _roughen(
    profile: AnnotatorProfile,
    mask: Tensor,
    sizes: tuple[float, ...],
    parameters: Sequence[Parameters],
    windows: Sequence[Window],
) -> Tensor:
    """Local over-segmentation along a random field."""
    if not profile.swell_mm or not profile.swell_strength_mm:
        return mask
    rngs = [np.random.default_rng(one["field_seed"]) for one in parameters]
    field = smooth_field(mask.shape[1:], profile.swell_smoothness_mm, rngs, sizes, windows, mask.device)
    return swell(mask, profile.swell_mm, profile.swell_strength_mm, field, sizes)


def _cut(profile: AnnotatorProfile, mask: Tensor, sizes: tuple[float, ...], parameters: Sequence[Parameters]) -> Tensor:
    """Fractures, centred on what has been drawn so far."""
    directions = [one for choices in parameters for one in choices["cut_directions"]]
    if not directions:
        return mask
    centers = _voxels_at([one["cut_places"] for one in parameters], mask)
    return fracture(mask, centers, directions, profile.fracture_width_mm, profile.fracture_length_mm, sizes)


def _shrink(
    profile: AnnotatorProfile,
    mask: Tensor,
    region: Tensor,
    sizes: tuple[float, ...],
    parameters: Sequence[Parameters],
) -> Tensor:
    """Stop when the share of the true region is reached."""
    if profile.ratio == 1:
        return mask
    counts = torch.stack([one.flatten(1).sum(1) for one in (mask, region)], 1).tolist()
    centers = _voxels_at([one["part_places"] for one in parameters], mask)[:, 1:]
    numbers = [annotators.num_kept(profile, *both) for both in counts]
    return shrink_to_number(mask, numbers, centers.view(len(mask), -1, len(sizes)), sizes)


def _swap(
    profile: AnnotatorProfile,
    annotation: Tensor,
    pairs: Sequence[tuple[int, int]],
    sizes: tuple[float, ...],
    parameters: Sequence[Parameters],
) -> Tensor:
    """Call a share of each class another one, all at once."""
    if not pairs or not len(annotation):
        return annotation
    swapped = annotation.clone()
    for pair, (said, instead) in enumerate(pairs):
        mask = annotation == said
        numbers = [annotators.num_swapped(profile, n) for n in mask.flatten(1).sum(1).tolist()]
        centers = _voxels_at([one["swap_places"][pair] for one in parameters], mask)[:, 1:]
        moved = shrink_to_number(mask, numbers, centers.view(len(mask), -1, len(sizes)), sizes)
        swapped.masked_fill_(moved, instead)
    return swapped


def _voxels_at(places: Sequence[Sequence[int]], mask: Tensor) -> Tensor:
    """(N, 1 + d): image and voxel at each place of each image's list of voxels, stretched to a length of 2**32."""
    image = torch.tensor([b for b, own in enumerate(places) for _ in own], device=mask.device)
    place = torch.tensor([place for own in places for place in own], device=mask.device)
    counts = mask.flatten(1).sum(1)
    before = counts.cumsum(0) - counts
    number = before[image] + (place * counts[image] >> 32)
    flat = torch.searchsorted(mask.flatten().cumsum(0), number + 1)
    found = torch.stack(torch.unravel_index(flat.clamp(max=mask.numel() - 1), mask.shape), 1)
    found[:, 0] = image  # an empty mask has no voxel: whatever is cut there, nothing is
    return found


def _one_by_one(operation: Callable[[Mask], Mask], mask: Tensor, windows: Sequence[Window] | None) -> Tensor:
    """A step that has no parallel form, on the CPU."""
    host = mask.cpu().numpy()
    result = np.zeros_like(host)

    def work(part: range) -> None:
        for b in part:
            window = windows[b] if windows else (...,)
            result[b][window] = operation(host[b][window])

    in_threads(work, shares(len(host), 1))
    return torch.from_numpy(result).to(mask.device)


def _nearest_along(squared: Tensor, axis: int, size: float, limit: float) -> Tensor:
    """``min over k of squared[x + k] + (size k)²`` along an axis, for all k within the limit."""
    length = squared.shape[axis]
    nearest = squared.clone()
    for k in range(1, length):
        cost = size * size * (k * k)
        if cost > limit:
            break
        for target, source in ((k, 0), (0, k)):
            part = nearest.narrow(axis, target, length - k)
            torch.minimum(part, squared.narrow(axis, source, length - k) + cost, out=part)
    return nearest


def _interpolated(field: Tensor, axis: int, node: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of nodes along an axis, one tap after the other; node and weight are (B, length, 6)."""
    nodes = field.movedim(axis, 1)
    image = torch.arange(len(nodes), device=field.device)[:, None]
    voxels = torch.zeros((), device=field.device)
    for tap in range(node.shape[2]):
        share = weight[..., tap].view(*weight.shape[:2], *[1] * (field.ndim - 2))
        voxels = voxels + nodes[image, node[..., tap]] * share
    return voxels.movedim(1, axis)


def _padded(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    largest = np.max([one.shape for one in arrays], axis=0)
    stacked = np.zeros((len(arrays), *largest), np.float32)
    for b, one in enumerate(arrays):
        stacked[b][tuple(map(slice, one.shape))] = one
    return stacked


def _radii(labels: Tensor, sizes: tuple[float, ...]) -> list[float]:
    """Growing distances, up to the size of the image."""
    longest, radii = annotators.diagonal(labels.shape[1:], sizes), [_FIRST_RADIUS * max(sizes)]
    while radii[-1] < longest:
        radii.append(4 * radii[-1])
    return radii
