"""Outlines of LIDC's annotation files, worked by hand; matching of readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.measure import find_contours, points_in_poly

from medcoarse.datalist import DataError
from medcoarse.readers.lidc import Outline, enclosed, match_nodules, nodule_voxels, read_lidc_xml

# ---- golden outlines: '#' is the outline as drawn, 'o' the nodule by LIDC's definition ----

RING = """
. . . . . . .
. . # # # . .
. # o o o # .
. # o o o # .
. . # o # . .
. . . # . . .
"""
"""Eight-connected, as the readers' programs wrote them; the nodule is what the outline encloses."""

PINCHED = """
. # # # . . . .
# o o o # # # .
# o o # . # o #
. # # # . . # .
"""
"""Two rooms that share pixels of the outline, and a bay that is open to the outside."""

TINY = """
. # .
# o #
. # .
"""


def pixels(picture: str, sign: str) -> np.ndarray:
    rows = [line.split() for line in picture.strip().splitlines()]
    return np.array([(x, y) for y, row in enumerate(rows) for x, value in enumerate(row) if value == sign])


@pytest.mark.parametrize("picture", [RING, PINCHED, TINY])
@pytest.mark.parametrize("shift", [(0, 0), (300, 511)])
def test_what_an_outline_encloses(picture: str, shift: tuple[int, int]):
    inside = enclosed(pixels(picture, "#") + shift)
    assert inside.tolist() == (pixels(picture, "o") + shift).tolist()


def test_square_by_hand():
    square = [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (4, 3), (3, 3), (2, 3), (1, 3), (1, 2), (1, 1)]
    assert enclosed(np.array(square)).tolist() == [[2, 2], [3, 2]]


def test_corners_alone_are_joined_by_lines():
    corners = np.array([(1, 1), (6, 1), (6, 4), (1, 4)])
    assert enclosed(corners).tolist() == [[x, y] for y in (2, 3) for x in (2, 3, 4, 5)]
    triangle = np.array([(0, 0), (4, 0), (0, 4)])
    assert enclosed(triangle).tolist() == [[1, 1], [2, 1], [1, 2]]


def test_order_does_not_matter_where_neighbours_touch():
    ring = pixels(RING, "#")
    for seed in range(5):
        mixed = np.random.default_rng(seed).permutation(ring)
        assert enclosed(mixed).tolist() == pixels(RING, "o").tolist()


@pytest.mark.parametrize("points", [[(5, 5)], [(5, 5), (6, 6)], [(5, 5), (9, 5)], [(0, 0), (1, 0), (1, 1), (0, 1)]])
def test_nothing_is_enclosed(points: list[tuple[int, int]]):
    assert enclosed(np.array(points)).shape == (0, 2)


def test_against_a_polygon_test():
    """Independent: pixel centres strictly inside the polygon through the outline's pixels, for discs and blobs."""
    y, x = np.mgrid[:40, :40]
    for seed in range(5):
        a, b, phase = np.random.default_rng(seed).uniform([4, 1, 0], [9, 3, 6])
        angle = np.arctan2(y - 20, x - 20)
        blob = np.hypot(y - 20, x - 20) <= a + b * np.sin(3 * angle + phase)
        outside = np.round(find_contours(np.pad(blob, 1).astype(float), 0.01)[0] - 1).astype(int)[:, ::-1]
        found = np.zeros((40, 40), bool)
        found[tuple(enclosed(outside)[:, ::-1].T)] = True
        assert np.array_equal(found, blob), "an outline drawn just outside gives back what it was drawn around"
        polygon = points_in_poly(np.stack([x.ravel(), y.ravel()], -1), outside).reshape(40, 40)
        polygon[outside[:, 1], outside[:, 0]] = False
        assert np.array_equal(found, polygon)


# ---- nodules ----

UIDS, Z = ("a", "b", "c"), (-10.0, -7.5, -5.0)


def square(low: int, high: int, z_mm: float = -10.0, uid: str = "", inclusion: bool = True) -> Outline:
    side = range(low, high + 1)
    points = [(x, y) for x in side for y in side if x in (low, high) or y in (low, high)]
    return Outline(uid, z_mm, inclusion, np.array(points))


def test_exclusion_cuts_what_it_encloses_and_keeps_its_own_outline():
    voxels = nodule_voxels([square(0, 8), square(3, 5, inclusion=False)], UIDS, Z)
    kept = {(0, y, x) for y in range(1, 8) for x in range(1, 8)} - {(0, 4, 4)}
    assert set(map(tuple, voxels.tolist())) == kept
    assert voxels.tolist() == sorted(voxels.tolist())


def test_exclusion_cuts_in_its_own_slice_only():
    voxels = nodule_voxels([square(0, 4), square(0, 4, -7.5), square(1, 3, -7.5, inclusion=False)], UIDS, Z)
    assert [int((voxels[:, 0] == k).sum()) for k in range(3)] == [9, 8, 0]


def test_slices_are_found_by_uid_then_by_position():
    assert nodule_voxels([square(0, 2, 999.0, "c")], UIDS, Z).tolist() == [[2, 1, 1]]
    assert nodule_voxels([square(0, 2, -7.0, "unknown")], UIDS, Z).tolist() == [[1, 1, 1]]
    assert nodule_voxels([square(0, 2, -3.9)], UIDS[::-1], Z[::-1]).tolist() == [[0, 1, 1]]
    for nowhere in ([square(0, 2, float("nan"))], Z), ([square(0, 2)], [float("nan")] * len(Z)):
        with pytest.raises(DataError, match="no slice within half a step"):
            nodule_voxels(nowhere[0], UIDS, nowhere[1])
    with pytest.raises(DataError, match=r"at z = -3.5 mm, the series goes from -10 to -5 mm .* fetch the series again"):
        nodule_voxels([square(0, 2, -3.5)], UIDS, Z)


def test_a_point_is_no_nodule():
    small = Outline("a", -10.0, True, np.array([(5, 5)]))
    assert nodule_voxels([small], UIDS, Z).shape == (0, 3)


# ---- readers ----


def box(z: int, y: int, x: int, size: int = 3) -> np.ndarray:
    return np.argwhere(np.ones((size, size, size))) + np.array([z, y, x])


def test_overlap_matches_readers_and_never_one_reader_with_himself():
    voxels = [box(0, 0, 0), box(2, 2, 2), box(1, 1, 1), box(0, 50, 0)]
    assert match_nodules(voxels, [0, 0, 0, 0], [5, 5, 5]) == [[0], [1], [2], [3]]
    assert match_nodules(voxels, [0, 1, 2, 3], [5, 5, 5], 0) == [[0, 1, 2], [3]]


def test_two_pieces_of_one_reader_are_joined_by_another():
    voxels = [box(0, 0, 0), box(0, 0, 10), np.concatenate([box(0, 0, k) for k in range(0, 11, 3)])]
    assert match_nodules(voxels, [0, 0, 1], [1, 1, 1], 0) == [[0, 1, 2]]


def test_distance_is_in_millimetres():
    voxels = [box(0, 0, 0), box(4, 0, 0)]  # no common voxel, centroids 4 slices apart
    assert match_nodules(voxels, [0, 1], [0.7, 5, 5]) == [[0, 1]]
    assert match_nodules(voxels, [0, 1], [0.8, 0.1, 0.1]) == [[0], [1]]
    assert match_nodules(voxels, [0, 1], [0.8, 1, 1], max_distance_mm=3.2) == [[0, 1]]
    assert match_nodules([], [], [1, 1, 1]) == []


# ---- the file ----

HEAD = '<?xml version="1.0"?><LidcReadMessage uid="x" xmlns="http://www.nih.gov">'
RESPONSE = "<ResponseHeader><Version>1.8</Version><SeriesInstanceUid>1.2.3</SeriesInstanceUid></ResponseHeader>"


def roi(points: str, inclusion: str = "TRUE") -> str:
    edges = "".join(
        f"<edgeMap><xCoord>{p.split(',')[0]}</xCoord><yCoord>{p.split(',')[1]}</yCoord></edgeMap>"
        for p in points.split()
    )
    place = "<imageZposition>-10.5 </imageZposition><imageSOP_UID>9.8</imageSOP_UID>"
    return f"<roi>{place}<inclusion>{inclusion}</inclusion>{edges}</roi>"


def session(*nodules: str) -> str:
    inside = "".join(f"<unblindedReadNodule><noduleID>n</noduleID>{nodule}</unblindedReadNodule>" for nodule in nodules)
    other = (
        "<nonNodule><imageZposition>1</imageZposition><locus><xCoord>1</xCoord><yCoord>2</yCoord></locus></nonNodule>"
    )
    return f"<readingSession><servicingRadiologistID>anon</servicingRadiologistID>{inside}{other}</readingSession>"


def test_readers_nodules_and_outlines(tmp_path: Path):
    text = (
        HEAD + RESPONSE + session(roi("1,2 3,4") + roi("5,6", "FALSE"), roi("7,8")) + session() + "</LidcReadMessage>"
    )
    (tmp_path / "a.xml").write_text(text)
    (tmp_path / "b.xml").write_text(
        text.replace(' xmlns="http://www.nih.gov"', "").replace("InstanceUid", "InstanceUID")
    )
    for name in ("a.xml", "b.xml"):
        reading = read_lidc_xml(tmp_path / name)
        assert reading is not None
        assert reading.series_uid == "1.2.3"
        assert [[len(nodule) for nodule in reader] for reader in reading.readers] == [[2, 1], []]
        first, second = reading.readers[0][0]
        assert (first.points.tolist(), first.inclusion, first.z_mm, first.sop_uid) == (
            [[1, 2], [3, 4]],
            True,
            -10.5,
            "9.8",
        )
        assert (second.points.tolist(), second.inclusion) == ([[5, 6]], False)


def test_radiographs_are_passed_over(tmp_path: Path):
    (tmp_path / "a.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov/idri"></IdriReadMessage>')
    assert read_lidc_xml(tmp_path / "a.xml") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a.xml: no XML file or cut short \(no element found.*\); fetch it again"),
        ((HEAD + RESPONSE)[:-30], "no XML file or cut short"),
        ("<html/>", "expected LidcReadMessage, got html; is it an annotation file of LIDC-IDRI?"),
        (HEAD + "</LidcReadMessage>", "not in LIDC's format"),
        (HEAD + "<ResponseHeader/></LidcReadMessage>", r"not in LIDC's format \(no series UID\)"),
        (
            HEAD + RESPONSE + session(roi("1,2", "MAYBE")) + "</LidcReadMessage>",
            "inclusion is neither TRUE nor FALSE",
        ),
        (HEAD + RESPONSE + session(roi("1,x")) + "</LidcReadMessage>", "edgeMap without one yCoord that is a number"),
        (HEAD + RESPONSE + session(roi("")) + "</LidcReadMessage>", "roi without edgeMap"),
        (HEAD + RESPONSE + session("<roi/>") + "</LidcReadMessage>", "roi without edgeMap"),
        (
            HEAD + RESPONSE + session(roi("1,2").replace("imageZposition", "z")) + "</LidcReadMessage>",
            "roi without one imageZposition that is a number",
        ),
    ],
)
def test_what_is_no_annotation_file(text: str, message: str, tmp_path: Path):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_lidc_xml(tmp_path / "a.xml")
