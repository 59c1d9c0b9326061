"""Images of one patient are trained on or validated on, never both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medcoarse.cli.main import CommandError
from medcoarse.cli.patients import patients_of, split
from tests.drawings import PATIENT, write_series


def places(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def test_names_say_whose_an_image_is() -> None:
    eyes = places("a/p1_left.png", "a/p1_right.png", "a/p12_left.png")
    assert patients_of(eyes, "^[^_]+", {}) == dict(zip(eyes, ["p1", "p1", "p12"], strict=True))
    assert patients_of(eyes, r"^p(\d+)_", {}) == dict(zip(eyes, ["1", "1", "12"], strict=True))
    assert len(set(patients_of(eyes, None, {}).values())) == 3


def test_dicom_says_whose_a_series_is(tmp_path: Path) -> None:
    for name, patient in (("s1", "A"), ("s2", "B"), ("s3", "A "), ("s4", "")):
        for data in write_series(tmp_path / name):
            data.PatientID = patient
            data.save_as(tmp_path / name / f"{data.InstanceNumber - 1}.dcm", enforce_file_format=True)
    images = [tmp_path / name for name in ("s1", "s2", "s3", "s4")]
    one, two, three, four = patients_of(images, None, {}).values()
    assert one == three != two
    assert four not in (one, two)
    assert set(patients_of(images, "s.", {}).values()) == {"s1", "s2", "s3", "s4"}


def test_patterns_that_find_nothing_or_are_none() -> None:
    with pytest.raises(CommandError, match=r"--patient '\^p': finds nothing in q.png"):
        patients_of(places("p.png", "q.png"), "^p", {})
    with pytest.raises(CommandError, match=r"finds nothing in p.png"):
        patients_of(places("p.png"), "^(x?)p", {})
    with pytest.raises(CommandError, match=r"--patient '\(': no regular expression"):
        patients_of(places("p.png"), "(", {})


def test_a_damaged_series_is_left_to_its_reader(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    for file in (tmp_path / "s").iterdir():
        file.write_bytes(file.read_bytes()[:140])
    (found,) = patients_of([tmp_path / "s"], None, {}).values()
    assert PATIENT not in found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_no_patient_is_on_both_sides(share: float, seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 6, 12)
    patients = {Path(f"{who}_{image}"): str(who) for who, size in enumerate(sizes) for image in range(size)}
    parts = split(patients, share, seed)
    sides = {name: {patients[image] for image in part} for name, part in parts.items()}
    assert not sides["training"] & sides["validation"]
    assert all(sides.values())
    assert sorted(parts["training"] + parts["validation"]) == sorted(patients)
    assert abs(len(parts["validation"]) - share * len(patients)) <= max(sizes)
    assert parts == split(patients, share, seed)


def test_images_of_as_many_patients_are_split_to_the_number() -> None:
    for number in range(3, 40):
        patients = {Path(str(index)): str(index) for index in range(number)}
        wanted = min(max(round(0.2 * number), 1), number - 1)
        chosen = np.random.default_rng(3).permutation(number)[:wanted]
        assert split(patients, 0.2, 3)["validation"] == [Path(str(index)) for index in sorted(chosen)]


def test_a_patient_with_most_of_the_images_is_trained_on() -> None:
    patients = {Path(str(index)): "a" if index < 8 else str(index) for index in range(11)}
    for seed in range(20):
        assert 1 <= len(split(patients, 0.2, seed)["validation"]) <= 2
    both = {Path(str(index)): str(index // 4) for index in range(12)}
    assert {len(split(both, 0.01, seed)["validation"]) for seed in range(5)} == {4}


@pytest.mark.parametrize(("names", "share"), [("ab", 0.5), ("aaaa", 0.5), ("aabb", 0.5), ("abc", 0.0), ("", 0.2)])
def test_too_few_to_validate_on(names: str, share: float) -> None:
    parts = split({Path(str(index)): name for index, name in enumerate(names)}, share, 0)
    assert (len(parts["training"]), parts["validation"]) == (len(names), [])


def test_two_patients_are_enough_where_a_share_is_asked_for() -> None:
    patients = dict(zip(places("a", "b", "c"), "xxy", strict=True))
    parts = split(patients, 0.5, 0, asked=True)
    assert sorted(map(len, parts.values())) == [1, 2]
    one = dict.fromkeys(patients, "x")
    assert split(one, 0.5, 0, asked=True)["validation"] == []
    assert split(patients, 0.0, 0, asked=True)["validation"] == []


@pytest.mark.parametrize("seed", range(10))
def test_images_with_masks_are_validated_on_first(seed: int) -> None:
    patients = {Path(str(index)): str(index // 2) for index in range(40)}
    masked = places("3", "9", "20")
    parts = split(patients, 0.2, seed, masked)
    assert set(masked) <= set(parts["validation"])
    assert len(parts["validation"]) == 8
    assert not {patients[image] for image in parts["training"]} & {patients[image] for image in parts["validation"]}
    assert set(split(patients, 0.05, seed, masked)["validation"]) & set(masked)
    assert split(patients, 0.2, seed, list(patients)) == split(patients, 0.2, seed), "as where nothing has a mask"
