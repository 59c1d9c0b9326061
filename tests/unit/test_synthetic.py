"""Synthetic fundus photographs: pixels, anatomy, and the data set on disk."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

from medcoarse.synthetic import FundusPhotograph, fundus_photograph, write_fundus_dataset
from medcoarse.synthetic.retina import pixel_positions, rasterize
from medcoarse.synthetic.vessel_tree import (
    AVASCULAR_RADIUS,
    STEP,
    Vessel,
    draw_eye,
    grow_tree,
    murray_angles,
    murray_split,
)

SMALL = {"num_images": 3, "size": (64, 72), "num_test": 1}


@pytest.fixture(scope="module")
def photographs() -> list[FundusPhotograph]:
    return [fundus_photograph(seed, (361, 405)) for seed in range(6)]


def share(photograph: FundusPhotograph) -> float:
    return float(photograph.vessels.sum() / photograph.field_of_view.sum())


# ---- Pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (65, 91), (91, 65), (128, 130)])
def test_any_size_from_64_pixels(size):
    photograph = fundus_photograph(3, size)
    assert photograph.image.shape == (*size, 3)
    assert photograph.image.dtype == np.uint8
    assert photograph.vessels.shape == photograph.field_of_view.shape == size
    assert photograph.vessels.dtype == photograph.field_of_view.dtype == bool
    assert 0.03 < share(photograph) < 0.2


def test_same_seed_same_pixels_and_other_seed_other_eye():
    first, again, other = (fundus_photograph(seed, (96, 101)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.vessels, again.vessels)
    assert (first.vessels != other.vessels).mean() > 0.05


def test_size_changes_resolution_but_not_the_eye():
    small, large = (fundus_photograph(2, size) for size in ((128, 144), (256, 288)))
    halved = large.image.reshape(128, 2, 144, 2, 3).mean(axis=(1, 3))
    inside = ndimage.binary_erosion(small.field_of_view, iterations=3)
    assert np.abs(halved - small.image)[inside].mean() < 4
    assert np.abs(halved - fundus_photograph(3, (128, 144)).image)[inside].mean() > 8


def test_field_of_view_is_a_disc_in_a_black_frame(photographs):
    for photograph in photographs:
        field = photograph.field_of_view
        assert field.mean() == pytest.approx(np.pi / 4 * 361 / 405, rel=0.04)
        assert not photograph.image[~field].any()
        assert (photograph.image[field].max(axis=-1) > 0).mean() > 0.99
        assert not (photograph.vessels & ~field).any()


def test_vessel_share_is_that_of_les_av(photographs):
    # LES-AV: mean 0.094, from 0.060 to 0.136.
    shares = [share(photograph) for photograph in photographs]
    assert 0.075 < np.mean(shares) < 0.115
    assert min(shares) > 0.05
    assert max(shares) < 0.15


def test_vessel_widths_are_those_of_les_av():
    # LES-AV halved to 722 x 810: median width 4.5 pixels, 95th percentile 10.0.
    widths = []
    for seed in (1, 2):
        vessels = fundus_photograph(seed).vessels
        widths.append(2 * ndimage.distance_transform_edt(vessels)[skeletonize(vessels)])
    median, thick = np.percentile(np.concatenate(widths), [50, 95])
    assert 3.5 < median < 5.5
    assert 8 < thick < 12


def test_vessels_are_darker_than_beside_them_and_thin_ones_fainter(photographs):
    for photograph in photographs:
        green = photograph.image[..., 1].astype(float)
        beside = ndimage.binary_erosion(photograph.field_of_view, iterations=12) & ~photograph.vessels
        weight = np.maximum(ndimage.gaussian_filter(beside.astype(float), 6), 1e-3)
        ratio = green / np.maximum(ndimage.gaussian_filter(green * beside, 6) / weight, 1)
        width = 2 * ndimage.distance_transform_edt(photograph.vessels)
        axis = skeletonize(photograph.vessels) & ndimage.binary_erosion(photograph.field_of_view, iterations=12)
        thin, thick = (float(np.median(ratio[axis & which])) for which in (width <= 2, width > 3.5))
        assert thick < 0.92
        assert thick < thin < 0.99


@pytest.mark.parametrize(
    ("seed", "size", "message"),
    [
        (-1, (64, 64), "seed must be 0 or more, got -1"),
        (0, (64, 63), r"size must be \(height, width\) with at least 64 pixels each, got \(64, 63\)"),
        (0, (64, 64, 64), r"got \(64, 64, 64\)"),
    ],
)
def test_impossible_requests_say_what_is_wrong(tmp_path, seed, size, message):
    with pytest.raises(ValueError, match=message):
        fundus_photograph(seed, size)
    with pytest.raises(ValueError, match=message):
        write_fundus_dataset(tmp_path / "fundus", seed=seed, size=size)
    assert not any(tmp_path.iterdir())


# ---- Anatomy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.3, 0.6, 1.0])
def test_branching_follows_murray(ratio):
    thick, thin = murray_split(0.7, ratio)
    assert thick**3 + thin**3 == pytest.approx(0.7**3)
    # Forces balance at the branching: Murray's angles are those for which r0^2 = r1^2 cos a1 + r2^2 cos a2 ...
    angles = murray_angles(ratio)
    assert thick**2 * np.cos(angles[0]) + thin**2 * np.cos(angles[1]) == pytest.approx(0.7**2)
    # ... and the sideways pulls cancel.
    assert thick**2 * np.sin(angles[0]) == pytest.approx(thin**2 * np.sin(angles[1]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("vein", [False, True])
def test_tree_is_connected_tapers_and_spares_the_fovea(seed, vein):
    rng = np.random.default_rng(seed)
    eye = draw_eye(rng)
    tree = grow_tree(rng, eye, vein)
    starts = [vessel.points[0] for vessel in tree]
    ends = [vessel.points[-1] for vessel in tree]
    on_disc = [abs(start - eye.hub) < eye.disc_radius for start in starts]
    assert all(near or start in ends for near, start in zip(on_disc, starts, strict=True))
    assert all((np.diff(vessel.radii) <= 0).all() for vessel in tree)
    points = np.concatenate([vessel.points for vessel in tree])
    assert np.abs(points).max() <= 1.05 + STEP
    assert np.abs(points - eye.fovea).min() >= AVASCULAR_RADIUS - STEP


def test_veins_are_thicker_than_arteries():
    eye = draw_eye(np.random.default_rng(0))
    arteries, veins = (grow_tree(np.random.default_rng(1), eye, vein) for vein in (False, True))
    assert max(vessel.radii.max() for vessel in veins) > 1.2 * max(vessel.radii.max() for vessel in arteries)


def test_a_straight_vessel_is_painted_exactly():
    size = (64, 80)
    at = pixel_positions(size)
    points = np.linspace(-0.5 - 0.1j, 0.5 - 0.1j, 9)
    blood = rasterize([Vessel(points, np.full(9, 0.15))], size)
    distance = np.abs(at - (np.clip(at.real, -0.5, 0.5) - 0.1j))
    np.testing.assert_array_equal(blood.depth > 0, distance < 0.15)
    np.testing.assert_allclose(blood.depth, np.sqrt(np.maximum(0.15**2 - distance**2, 0)), atol=1e-12)


# ---- The data set on disk --------------------------------------------------------------------------------------------


def test_dataset_has_the_layout_of_les_av(tmp_path):
    seen: list[tuple[int, int]] = []
    folder = write_fundus_dataset(tmp_path / "new" / "fundus", **SMALL, progress=lambda *count: seen.append(count))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["fundus"]
    for name in ("001", "002", "003"):
        image = Image.open(folder / "images" / f"{name}.png")
        vessels = Image.open(folder / "vessel-segmentations" / f"{name}.png")
        mask = Image.open(folder / "masks" / f"{name}_mask.gif")
        assert (image.mode, vessels.mode, mask.mode) == ("RGB", "L", "P")
        assert image.size == vessels.size == mask.size == (72, 64)
        assert set(np.unique(vessels)) == {0, 255}
        assert set(np.unique(mask)) == {0, 1}
        assert mask.getpalette()[:6] == [0, 0, 0, 255, 255, 255]
    assert "synthetic" in (folder / "README.txt").read_text().lower()


def test_files_hold_the_photographs_of_the_recorded_seeds(tmp_path):
    folder = write_fundus_dataset(tmp_path / "fundus", **SMALL)
    seeds = json.loads((folder / "provenance.json").read_text())["photograph_seeds"]
    photograph = fundus_photograph(seeds["002"], (64, 72))
    np.testing.assert_array_equal(Image.open(folder / "images" / "002.png"), photograph.image)
    np.testing.assert_array_equal(np.array(Image.open(folder / "masks" / "002_mask.gif")) > 0, photograph.field_of_view)
    label = np.array(Image.open(folder / "vessel-segmentations" / "002.png"))
    np.testing.assert_array_equal(label > 0, photograph.vessels)


def test_datalist_is_read_by_monai(tmp_path):
    folder = write_fundus_dataset(tmp_path / "fundus", **SMALL)
    assert json.loads((folder / "datalist.json").read_text())["labels"] == {"0": "background", "1": "vessel"}
    training, test = (load_decathlon_datalist(str(folder / "datalist.json"), True, key) for key in ("training", "test"))
    assert [Path(item["image"]).stem for item in training + test] == ["001", "002", "003"]
    assert len(test) == 1
    assert all(Path(item[key]).is_file() for item in training + test for key in ("image", "label"))


def test_photograph_does_not_depend_on_the_number_and_data_sets_share_none(tmp_path):
    seeds = {}
    for name, parameters in {"a": {}, "more": {"num_images": 4}, "b": {"seed": 1}}.items():
        folder = write_fundus_dataset(tmp_path / name, **{**SMALL, **parameters})
        seeds[name] = list(json.loads((folder / "provenance.json").read_text())["photograph_seeds"].values())
    assert seeds["more"][:3] == seeds["a"]
    assert not set(seeds["a"]) & set(seeds["b"])


def test_whole_dataset_is_reused(tmp_path):
    folder = write_fundus_dataset(tmp_path / "fundus", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_fundus_dataset(str(folder), **SMALL, progress=lambda *_: pytest.fail("drawn again")) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_parameters_are_refused(tmp_path):
    folder = write_fundus_dataset(tmp_path / "fundus", **SMALL)
    with pytest.raises(FileExistsError, match=r"'seed': 0.*, wanted is version 1 with .*'seed': 7.*; choose another"):
        write_fundus_dataset(folder, **SMALL, seed=7)


def test_incomplete_folder_is_refused(tmp_path):
    folder = write_fundus_dataset(tmp_path / "fundus", **SMALL)
    (folder / "masks" / "002_mask.gif").unlink()
    message = r"is incomplete: 1 files are missing, first masks/002_mask.gif; choose another folder, or delete this one"
    with pytest.raises(FileExistsError, match=message):
        write_fundus_dataset(folder, **SMALL)


@pytest.mark.parametrize("provenance", [None, "not JSON", "[]", "{}"])
def test_foreign_folder_is_refused_and_left_alone(tmp_path, provenance):
    (tmp_path / "mine.txt").write_text("keep")
    if provenance is not None:
        (tmp_path / "provenance.json").write_text(provenance)
    with pytest.raises(FileExistsError, match="exists but is not a synthetic fundus data set; choose another folder"):
        write_fundus_dataset(tmp_path, **SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_empty_folder_is_filled(tmp_path):
    folder = tmp_path / "fundus"
    folder.mkdir()
    assert (write_fundus_dataset(folder, **SMALL) / "datalist.json").is_file()


@pytest.mark.parametrize(("num_images", "num_test"), [(3, 3), (3, -1), (0, 0)])
def test_split_must_leave_training_photographs(tmp_path, num_images, num_test):
    with pytest.raises(ValueError, match=f"num_test must be .* got {num_test} of {num_images}"):
        write_fundus_dataset(tmp_path / "fundus", num_images=num_images, num_test=num_test)


def test_second_process_that_finishes_first_wins(tmp_path):
    folder = tmp_path / "fundus"

    def overtake(done: int, total: int) -> None:
        if done == total:
            write_fundus_dataset(folder, **SMALL)
            (folder / "README.txt").write_text("the other's")

    write_fundus_dataset(folder, **SMALL, progress=overtake)
    assert (folder / "README.txt").read_text() == "the other's"
    assert [entry.name for entry in tmp_path.iterdir()] == ["fundus"]


def test_many_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(write_fundus_dataset, tmp_path / "fundus", **SMALL) for _ in range(4)]
        assert {call.result() for call in calls} == {tmp_path / "fundus"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["fundus"]
    assert len(list((tmp_path / "fundus" / "images").iterdir())) == 3


def test_interrupted_drawing_leaves_nothing(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_fundus_dataset(tmp_path / "fundus", **SMALL, progress=interrupt)
    assert not any(tmp_path.iterdir())
