"""Synthetic digits: pixels, and the data set on disk."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image
from scipy import ndimage

from medcoarse.synthetic.digits import add_noise, stroke_digits, write_digit_dataset
from medcoarse.synthetic.strokes import Ink, rasterize

SMALL = {"num_training": 3, "num_validation": 2, "num_test": 2}


@pytest.fixture(scope="module")
def digits():
    return stroke_digits(range(600), np.arange(600) % 10)


# ---- Pixels ----------------------------------------------------------------------------------------------------------


def test_intensities_and_classes(digits):
    assert digits.images.shape == (600, 28, 28)
    assert digits.images.dtype == np.float32
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    assert np.array_equal(digits.classes, np.arange(600) % 10)
    assert (digits.images.max((1, 2)) > 0.8).all()
    between = ((digits.images > 0.05) & (digits.images < 0.95)).sum() / (digits.images > 0.5).sum()
    assert 0.5 < between < 1.2, "soft edges, as in MNIST (0.82)"


def test_a_digit_depends_on_its_own_seed_only():
    alone, among = stroke_digits([5]), stroke_digits([7, 5, 6, *range(100, 140)])
    np.testing.assert_array_equal(alone.images[0], among.images[1])
    assert alone.classes[0] == among.classes[1]
    assert np.abs(among.images[0] - among.images[2]).mean() > 0.02
    first, second = stroke_digits([5, 6], [3, 3]).images
    assert np.abs(first - second).mean() > 0.02, "no two hands write alike"


def test_seeds_choose_all_classes():
    assert np.bincount(stroke_digits(range(400)).classes, minlength=10).min() > 20


def test_size_and_place_are_those_of_mnist(digits):
    # MNIST: within a box of 20 pixels, centre of mass in the middle; share of the mask 0.134, standard deviation 0.045.
    masks = digits.images > 0.5
    shares = masks.mean((1, 2))
    assert 0.12 < shares.mean() < 0.15
    assert 0.03 < shares.std() < 0.05
    assert shares[1::10].mean() < 0.1 < 0.14 < shares[8::10].mean()  # ones and eights
    longer = [max(np.ptp(np.argwhere(mask), axis=0)) + 1 for mask in masks]
    assert 18 <= min(longer) <= max(longer) <= 22
    centres = np.array([ndimage.center_of_mass(image) for image in digits.images])
    assert np.abs(centres - 13.5).max() < 1.5


def test_holes_are_those_of_the_digit(digits):
    """A zero and a six have one hole, an eight has two, a one has none, mostly."""
    holes = [ndimage.label(image < 0.5)[1] - 1 for image in digits.images]
    usual = [np.bincount(np.maximum(holes[digit::10], 0)).argmax() for digit in range(10)]
    assert [usual[digit] for digit in (0, 1, 3, 6, 7, 8, 9)] == [1, 0, 0, 1, 0, 2, 1]


def test_digits_resemble_their_class_more_than_others(digits):
    """The nearest class mean finds the class: they are the digits that they say they are."""
    means = np.array([digits.images[digit:300:10].mean(0) for digit in range(10)])
    rest = digits.images[300:]
    distances = ((rest[:, None] - means) ** 2).sum((2, 3))
    assert (distances.argmin(1) == digits.classes[300:]).mean() > 0.7


def test_a_lifted_pen_leaves_no_ink():
    points = np.array([[4 + 4j, 4 + 20j, 20 + 20j, 20 + 4j]], np.complex64)
    radii = np.array([[1.5, -np.inf, 1.5]], np.float32)
    image = rasterize(Ink(points, radii, np.ones(1, np.float32)))[0]
    assert image[12, 4] == image[12, 20] == 1
    assert not image[:, 8:17].any()


def test_thousands_take_seconds():
    start = time.process_time()
    stroke_digits(range(2000))
    assert time.process_time() - start < 4  # 0.5 s on an idle core


@pytest.mark.parametrize(
    ("seeds", "classes", "message"),
    [
        ([0, -1], None, "seeds must be 0 or more, got -1"),
        ([0, 1], [3], r"classes must be 2 numbers from 0 to 9, one for each seed, got \[3\]"),
        ([0], [10], r"got \[10\]"),
    ],
)
def test_impossible_requests_say_what_is_wrong(seeds, classes, message):
    with pytest.raises(ValueError, match=message):
        stroke_digits(seeds, classes)


def test_no_digits():
    assert stroke_digits([]).images.shape == (0, 28, 28)


def test_noise_is_gaussian_clipped_and_of_its_image():
    grey = np.full((100, 100), 0.5)
    noisy = add_noise(grey, index=3)
    assert noisy.min() == 0
    assert noisy.max() == 1
    for limit, beyond in ((1, 0.048), (0.8, 0.159)):  # 5/3 and 1 standard deviation
        assert (noisy >= limit).mean() == pytest.approx(beyond, abs=0.01)
    np.testing.assert_array_equal(noisy, add_noise(grey, index=3))
    for other in (add_noise(grey, index=4), add_noise(grey, index=3, seed=1)):
        assert abs(np.corrcoef(other.ravel(), noisy.ravel())[0, 1]) < 0.05
    np.testing.assert_array_equal(add_noise(grey, index=0, noise=0), grey)


# ---- The data set on disk --------------------------------------------------------------------------------------------


def test_files(tmp_path: Path):
    folder = write_digit_dataset(tmp_path / "new" / "digits", **SMALL)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["digits"]
    for section, number in (("training", 3), ("validation", 2), ("test", 2)):
        items = load_decathlon_datalist(str(folder / "datalist.json"), True, section)
        assert len(items) == number
        for item in items:
            image, label = (Image.open(item[key]) for key in ("image", "label"))
            assert (image.mode, label.mode, image.size, label.size) == ("L", "L", (28, 28), (28, 28))
            assert set(np.unique(label)) == {0, 255}
            inside = np.array(label) > 0
            assert np.array(image)[inside].mean() > np.array(image)[~inside].mean() + 80
    assert json.loads((folder / "datalist.json").read_text())["labels"] == {"0": "background", "1": "digit"}
    readme = (folder / "README.txt").read_text()
    assert "NOT from MNIST" in readme
    assert "N(0, 0.3)" in readme


def test_test_images_are_the_same_whatever_is_trained_on(tmp_path: Path):
    folders = [write_digit_dataset(tmp_path / str(n), **SMALL | {"num_training": n}) for n in (3, 5)]
    datalists = [json.loads((folder / "datalist.json").read_text()) for folder in folders]
    assert datalists[0]["test"] == datalists[1]["test"]
    assert datalists[0]["training"] == datalists[1]["training"][:3]
    for path in folders[0].rglob("*.png"):
        assert path.read_bytes() == (folders[1] / path.relative_to(folders[0])).read_bytes()


def test_data_sets_share_no_digit(tmp_path: Path):
    labels = [
        [path.read_bytes() for path in write_digit_dataset(tmp_path / str(seed), **SMALL, seed=seed).glob("labels/*")]
        for seed in (0, 1)
    ]
    assert len(set(labels[0] + labels[1])) == 14


def test_whole_dataset_is_reused_and_another_refused(tmp_path: Path):
    folder = write_digit_dataset(tmp_path / "digits", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_digit_dataset(str(folder), **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(FileExistsError, match=r"'seed': 0.*, wanted is version 1 with .*'seed': 7.*; choose another"):
        write_digit_dataset(folder, **SMALL, seed=7)


@pytest.mark.parametrize("wrong", [{"num_test": 0}, {"num_validation": 0}, {"seed": -1}, {"noise": -0.1}])
def test_impossible_data_sets(tmp_path: Path, wrong):
    with pytest.raises(ValueError, match="numbers of images must be at least 1, seed and noise 0 or more"):
        write_digit_dataset(tmp_path / "digits", **(SMALL | wrong))
    assert not any(tmp_path.iterdir())


def test_many_at_once(tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(write_digit_dataset, tmp_path / "digits", **SMALL) for _ in range(4)]
        assert {call.result() for call in calls} == {tmp_path / "digits"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]
    assert len(list((tmp_path / "digits" / "images").iterdir())) == 7
