"""Outlines of lung nodules by up to four readers, in the XML format of LIDC-IDRI.

Convention: an outline (``edgeMap``) lies *outside* the nodule: its pixels are the first ones that do not belong to it,
and the nodule is what they enclose. A region with ``inclusion`` FALSE is cut out, read by the same rule: what its
outline encloses is cut, the outline's own pixels stay. Coordinates count pixels from (0, 0), the centre of the upper
left one; x is the column.

Source: McNitt-Gray et al., Academic Radiology 14, 2007; Armato et al., Medical Physics 38, 2011, and the documentation
of the XML files that goes with the collection. That documentation does not say whether the outline of a cut-out region
is part of the nodule; the rule above is this package's choice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from medcoarse.datalist import DataError

_CODE = np.array([1 << 40, 1 << 20, 1])
"""Makes one number of a voxel's three indices."""

_LARGEST = 1024
"""No slice of the collection has more rows or columns, most have 512; bounds what an outline may cost."""

_QUOTED = 120
"""Characters of a file that an error shows, at most."""

_CT, _RADIOGRAPH = "LidcReadMessage", "IdriReadMessage"


@dataclass(frozen=True)
class Outline:
    """One outline in one slice: points (N, 2), integer (x, y)."""

    sop_uid: str
    z_mm: float
    inclusion: bool
    points: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """What a file says: for every reader the nodules, for every nodule its outlines."""

    series_uid: str
    readers: tuple[tuple[tuple[Outline, ...], ...], ...]


# --- the file ----------------------------------------------------------------------------------------------------


def read_lidc_xml(path: str | os.PathLike[str]) -> Reading | None:
    """Read one annotation file.

    Every ``readingSession`` is one reader, in file order; the collection does not tell whether the first reader of two
    scans is the same person. Objects that are no nodules (``nonNodule``) are left out. Nodules below 3 mm are one
    point each; they are kept here and enclose no pixel, see `enclosed`.

    Args:
        path: the XML file.

    Returns:
        The reading; ``None`` if the file is about a chest radiograph (``IdriReadMessage``), which the collection has
        as well.

    Raises:
        DataError: no XML, cut short, or something else.
    """
    path = Path(path)
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two for what it says of its encoding
        raise DataError(f"{path}: no XML file or cut short ({str(error)[:_QUOTED]}); fetch it again") from None
    kind = _local(root)
    if kind == _RADIOGRAPH:
        return None
    if kind != _CT:
        raise DataError(f"{path}: expected {_CT}, got {kind[:_QUOTED]}; is it an annotation file of LIDC-IDRI?")
    try:
        header = _all(root, "ResponseHeader")[0]
        series_uid = next(
            _text(header, name) for name in ("SeriesInstanceUid", "SeriesInstanceUID") if _all(header, name)
        )
        readers = tuple(_nodules(session) for session in _all(root, "readingSession"))
    except (StopIteration, IndexError, ValueError) as error:
        problem = str(error)[:_QUOTED] or "no series UID"
        raise DataError(f"{path}: not in LIDC's format ({problem}); fetch it again") from None
    return Reading(series_uid, readers)


def _local(element: ElementTree.Element) -> str:
    """Name without namespace: files state http://www.nih.gov, copies of them do not always."""
    return str(element.tag).rpartition("}")[2]


def _all(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [child for child in element if _local(child) == name]


def _text(element: ElementTree.Element, name: str, default: str | None = None) -> str:
    """Text of the only child of that name."""
    found = _all(element, name)
    if not found and default is not None:
        return default
    if len(found) != 1:
        raise ValueError(f"{_local(element)} with {len(found)} {name}, expected 1")
    return (found[0].text or "").strip()


def _nodules(session: ElementTree.Element) -> tuple[tuple[Outline, ...], ...]:
    nodules = (_all(nodule, "roi") for nodule in _all(session, "unblindedReadNodule"))
    return tuple(tuple(_outline(roi) for roi in rois) for rois in nodules if rois)


def _outline(roi: ElementTree.Element) -> Outline:
    inclusion = _text(roi, "inclusion", "TRUE").upper()
    if inclusion not in ("TRUE", "FALSE"):
        raise ValueError("inclusion is neither TRUE nor FALSE")
    points = [(_coordinate(edge, "xCoord"), _coordinate(edge, "yCoord")) for edge in _all(roi, "edgeMap")]
    if not points:
        raise ValueError("roi without edgeMap")
    z_mm = _number(roi, "imageZposition")
    return Outline(_text(roi, "imageSOP_UID", ""), z_mm, inclusion == "TRUE", np.array(points))


def _number(element: ElementTree.Element, name: str) -> float:
    """A finite one; an error does not quote what is there, for nobody knows what it is."""
    try:
        value = float(_text(element, name))
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"{_local(element)} without one {name} that is a number")
    return value


def _coordinate(edge: ElementTree.Element, name: str) -> int:
    """In pixels; an outline lies outside its nodule, so it may leave the slice by one."""
    value = _number(edge, name)
    if value != int(value) or not -1 <= value <= _LARGEST:
        raise ValueError(f"{name} is no pixel of a CT slice")
    return int(value)


# --- pixels ------------------------------------------------------------------------------------------------------


def enclosed(points: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The pixels that an outline encloses, its own left out.

    An outline of neighbouring pixels is taken as it is, in any order. Where consecutive points are further apart, it is
    closed with straight lines, unless that leaves less inside: then the points merely were not in order.

    Args:
        points: (N, 2), integer (x, y).

    Returns:
        (M, 2), integer (x, y), sorted by y, then x; empty for a single point.

    Example:
        >>> diamond = np.array([(2, 0), (3, 1), (4, 2), (3, 3), (2, 4), (1, 3), (0, 2), (1, 1)])
        >>> enclosed(diamond).tolist()
        [[2, 1], [1, 2], [2, 2], [3, 2], [2, 3]]
    """
    low = points.min(axis=0)
    columns, rows = (points - low).T
    dotted = np.zeros((rows.max() + 1, columns.max() + 1), dtype=bool)
    dotted[rows, columns] = True
    inside = ndimage.binary_fill_holes(dotted) & ~dotted
    following = np.roll(points, -1, axis=0)
    steps = np.abs(following - points).max(axis=1)
    if steps.max() > 1:
        drawn = dotted.copy()
        for index in np.flatnonzero(steps > 1):
            line = np.rint(np.linspace(points[index], following[index], steps[index] + 1)).astype(int) - low
            drawn[line[:, 1], line[:, 0]] = True
        inside = max(inside, ndimage.binary_fill_holes(drawn) & ~drawn, key=np.count_nonzero)
    return np.asarray(np.argwhere(inside)[:, ::-1] + low)


def nodule_voxels(outlines: Sequence[Outline], sop_uids: Sequence[str], z_mm: Sequence[float]) -> npt.NDArray[np.int64]:
    """The voxels of one nodule: what inclusions enclose, less what exclusions enclose.

    An outline belongs to the slice with its ``imageSOP_UID``; where no slice has it, to the nearest one in
    ``imageZposition``, which must be within half the distance of slices.

    Args:
        outlines: of one nodule.
        sop_uids: of the slices.
        z_mm: ImagePositionPatient's third component of the slices, in the same order.

    Returns:
        (M, 3), integer (slice, y, x), sorted; empty for a nodule below 3 mm.

    Raises:
        DataError: an outline whose slice is not there.
    """
    parts: dict[bool, list[npt.NDArray[np.int64]]] = {True: [], False: []}
    for outline in outlines:
        pixels = enclosed(outline.points)
        index = np.full((len(pixels), 1), _slice_of(outline, sop_uids, z_mm))
        parts[outline.inclusion].append(np.hstack([index, pixels[:, ::-1]]))
    nothing = np.empty((0, 3), dtype=np.int64)
    included, excluded = (np.unique(np.concatenate([nothing, *part]), axis=0) for part in parts.values())
    return included[~np.isin(included @ _CODE, excluded @ _CODE)]


def _slice_of(outline: Outline, sop_uids: Sequence[str], z_mm: Sequence[float]) -> int:
    if outline.sop_uid in sop_uids:
        return list(sop_uids).index(outline.sop_uid)
    distances = np.abs(np.asarray(z_mm) - outline.z_mm)
    nearest = int(distances.argmin())
    step = abs(z_mm[-1] - z_mm[0]) / (len(z_mm) - 1) if len(z_mm) > 1 else 1.0
    if not distances[nearest] <= step / 2:  # nor where a position is no number
        raise DataError(
            f"an outline is at z = {outline.z_mm:g} mm, the series goes from {min(z_mm):g} to {max(z_mm):g} mm and has "
            "no slice within half a step of it; fetch the series again"
        )
    return nearest


# --- readers -----------------------------------------------------------------------------------------------------


def match_nodules(
    voxels: Sequence[npt.NDArray[np.int64]],
    readers: Sequence[int],
    spacing_mm: Sequence[float] | npt.NDArray[np.float64],
    max_distance_mm: float = 3.0,
) -> list[list[int]]:
    """Which nodules of different readers are the same one.

    Two nodules of different readers are linked if they share a voxel, or if their centroids are at most
    ``max_distance_mm`` apart: outlines of very small nodules may miss each other. What is linked, directly or through
    others, is one nodule; so two pieces of one reader are one nodule if another reader saw them as one.

    Args:
        voxels: of every nodule, (M, 3) with M > 0, indices.
        readers: who outlined it.
        spacing_mm: of the voxels.
        max_distance_mm: see above, >= 0.

    Returns:
        Groups of positions in ``voxels``, each ascending, ordered by their first.

    Example:
        >>> first, second, other = np.array([[0, 5, 5], [0, 5, 6]]), np.array([[0, 5, 6]]), np.array([[9, 50, 50]])
        >>> match_nodules([first, other, second], [0, 0, 1], [1.0, 1.0, 1.0])
        [[0, 2], [1]]
    """
    if len(voxels) == 0:
        return []
    number = len(voxels)
    codes = [nodule @ _CODE for nodule in voxels]
    centroids = np.stack([nodule.mean(axis=0) * np.asarray(spacing_mm) for nodule in voxels])
    linked = np.zeros((number, number), dtype=bool)
    for a in range(number):
        for b in range(a):
            close = float(np.linalg.norm(centroids[a] - centroids[b])) <= max_distance_mm
            linked[a, b] = readers[a] != readers[b] and (close or bool(np.isin(codes[a], codes[b]).any()))
    _, labels = connected_components(csr_array(linked), directed=False)
    return [np.flatnonzero(labels == label).tolist() for label in dict.fromkeys(labels.tolist())]
