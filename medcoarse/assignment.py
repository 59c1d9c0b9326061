"""Who drew which image: any pattern from everyone for every image to one person for each.

Convention:
    Annotators have numbers 0 .. R - 1, the channels of an annotation (R, *S), and may have names. An assignment lists
    the numbers of those who drew each image, ascending. In a datalist it is the key `annotators` of an item,
    `"annotators": [0, 3]` or `"annotators": ["Ada", "Max"]`; an item without the key was drawn by everyone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import WeightedRandomSampler

Assignment: TypeAlias = Sequence[Sequence[int]]
Annotators: TypeAlias = "int | Sequence[str]"
"""How many annotators there are, or their names, whose order gives the numbers."""

ANNOTATORS_KEY = "annotators"


def assign_annotators(
    num_images: int, num_annotators: int, per_image: int | Sequence[int] = 1, seed: int = 0
) -> list[list[int]]:
    """Draw who annotates which image, so that everyone gets the same number of images, give or take one.

    Image by image, in random order, those who have the fewest so far are chosen, at random among equals. So who works
    on an image with whom is random as well.

    Args:
        num_images: how many images.
        num_annotators: R, at least 1.
        per_image: how many annotators each image gets, or one such number for each image; in 0 .. R. 1 is the setting
            with one annotation an image, R that in which everyone labels everything.
        seed: >= 0; the same seed gives the same assignment.

    Returns:
        For each image the numbers of its annotators, ascending.

    Raises:
        ValueError: a number out of range, or not one for each image.

    Example:
        >>> assign_annotators(num_images=4, num_annotators=3, per_image=2, seed=1)
        [[0, 2], [1, 2], [0, 1], [0, 1]]
    """
    if num_images < 0 or num_annotators < 1 or seed < 0:
        raise ValueError(
            "num_images and seed must be >= 0 and num_annotators >= 1, got "
            f"num_images={num_images}, num_annotators={num_annotators}, seed={seed}"
        )
    wanted = [per_image] * num_images if isinstance(per_image, int | np.integer) else list(per_image)
    if len(wanted) != num_images or not all(0 <= k <= num_annotators for k in wanted):
        raise ValueError(
            f"per_image must be in 0 .. {num_annotators}, one number for all or for each of {num_images} images, got "
            f"{per_image!r}"
        )
    rng = np.random.default_rng(seed)
    load = np.zeros(num_annotators, dtype=np.int64)
    assignment: list[list[int]] = [[] for _ in range(num_images)]
    for image in rng.permutation(num_images):
        chosen = np.lexsort((rng.random(num_annotators), load))[: wanted[image]]
        load[chosen] += 1
        assignment[image] = sorted(chosen.tolist())
    return assignment


def with_annotators(
    items: Sequence[Mapping[str, Any]],
    assignment: Assignment,
    names: Sequence[str] | None = None,
    key: str = ANNOTATORS_KEY,
) -> list[dict[str, Any]]:
    """Items of a datalist with who drew them written in.

    Args:
        items: entries of a datalist.
        assignment: for each of them the numbers of its annotators.
        names: what to write in place of the numbers.
        key: where to write it.

    Returns:
        New items; those given stay as they are.

    Raises:
        ValueError: not one list for each item, or a number that has no name.

    Example:
        >>> with_annotators([{"image": "a.png"}, {"image": "b.png"}], [[0], [0, 1]], names=["Ada", "Max"])
        [{'image': 'a.png', 'annotators': ['Ada']}, {'image': 'b.png', 'annotators': ['Ada', 'Max']}]
    """
    if len(items) != len(assignment):
        raise ValueError(f"assignment must list the annotators of each of {len(items)} items, got {len(assignment)}")
    drew = [annotator_numbers(numbers, names) for numbers in assignment]
    return [
        {**item, key: numbers if names is None else [names[r] for r in numbers]}
        for item, numbers in zip(items, drew, strict=True)
    ]


def assignment_of(
    items: Sequence[Mapping[str, Any]], annotators: Annotators, key: str = ANNOTATORS_KEY
) -> list[list[int]]:
    """Who drew each item of a datalist, as numbers.

    Args:
        items: entries of a datalist.
        annotators: how many there are, or their names.
        key: where it is written; an item without it was drawn by everyone.

    Returns:
        For each item the numbers of its annotators, ascending.

    Raises:
        ValueError: an item that lists something else.

    Example:
        >>> assignment_of([{"annotators": ["Max"]}, {"image": "b.png"}], ["Ada", "Max"])
        [[1], [0, 1]]
    """
    everyone = list(range(_how_many(annotators)))
    return [annotator_numbers(item[key], annotators) if key in item else everyone for item in items]


def who_drew(
    items: Sequence[Mapping[str, Any]],
    annotators: Annotators,
    per_image: int | Sequence[int] = 1,
    seed: int = 0,
    key: str = ANNOTATORS_KEY,
) -> list[list[int]]:
    """Who drew each item: as a datalist says, and where it says nothing of any item, drawn by `assign_annotators`.

    Args:
        items: entries of a datalist.
        annotators: how many there are, or their names.
        per_image: how many annotators each image gets, if the datalist does not say who.
        seed: of the draw.
        key: where it is written.

    Returns:
        For each item the numbers of its annotators, ascending.

    Raises:
        ValueError: as `assignment_of` and `assign_annotators` do.

    Example:
        >>> who_drew([{"annotators": [1]}, {"annotators": [0, 1]}], annotators=2)
        [[1], [0, 1]]
        >>> who_drew([{}, {}], annotators=2, per_image=2)
        [[0, 1], [0, 1]]
    """
    if any(key in item for item in items):
        return assignment_of(items, annotators, key)
    return assign_annotators(len(items), _how_many(annotators), per_image, seed)


def annotator_numbers(drew: Any, annotators: Annotators | None = None) -> list[int]:
    """The numbers of those who drew an image, ascending.

    Args:
        drew: their numbers, their names, or a bool array with one yes or no for each annotator.
        annotators: how many there are, or their names; None leaves open how many.

    Raises:
        ValueError: no such list, an unknown number or name, or one that is listed twice.

    Example:
        >>> annotator_numbers(["Max", "Ada"], ["Ada", "Eva", "Max"]), annotator_numbers(np.array([False, True]))
        ([0, 2], [1])
    """
    if getattr(drew, "ndim", 0) == 1:
        drew = np.asarray(drew)
        if drew.dtype == bool and annotators is not None and len(drew) != _how_many(annotators):
            raise ValueError(f"annotators says yes or no {len(drew)} times, but there are {_how_many(annotators)}")
        drew = (np.flatnonzero(drew) if drew.dtype == bool else drew).tolist()
    if isinstance(drew, str) or not isinstance(drew, Sequence):
        raise ValueError(f"annotators must list who drew the image, such as [0, 3], got {drew!r}")
    numbers = [_number(one, annotators) for one in drew]
    twice = [one for one, n in Counter(numbers).items() if n > 1]
    if twice:
        raise ValueError(f"annotators lists {drew[numbers.index(twice[0])]!r} twice, got {list(drew)!r}")
    return sorted(numbers)


def image_weights(assignment: Assignment, num_annotators: int) -> NDArray[np.float64]:
    """How often to sample each image, so that no annotator is favoured for having drawn more of them.

    `w_i ~ mean of 1 / n_r over the annotators r of image i`, where r drew `n_r` images; 0 for an image that nobody
    drew. With one annotation an image everyone's share of what is sampled is exactly the same; so it is where everyone
    drew everything. Between the two it is not exact: the shares come closer to each other as a rule, and where one drew
    every image together with one of two others, no weights can be exact. `annotator_shares` tells.

    Args:
        assignment: for each image the numbers of its annotators.
        num_annotators: R.

    Returns:
        float64, one a image, sum 1; for `torch.utils.data.WeightedRandomSampler`.

    Raises:
        ValueError: an unknown annotator, or nobody drew anything.

    Example:
        >>> weights = image_weights([[0], [0], [0], [1]], num_annotators=2)
        >>> weights.round(3).tolist(), annotator_shares([[0], [0], [0], [1]], 2, weights).tolist()
        ([0.167, 0.167, 0.167, 0.5], [0.5, 0.5])
        >>> from torch.utils.data import WeightedRandomSampler
        >>> sampler = WeightedRandomSampler(weights.tolist(), num_samples=4)
    """
    drew = _table(assignment, num_annotators)
    if not drew.any():
        raise ValueError("nobody drew any of the images, so there is nothing to sample; check the assignment")
    rarity = 1 / np.maximum(drew.sum(0), 1)
    weights: NDArray[np.float64] = drew @ rarity / np.maximum(drew.sum(1), 1)
    weights /= weights.sum()
    return weights


def fair_sampler(items: Sequence[Mapping[str, Any]], annotators: Annotators) -> WeightedRandomSampler | None:
    """A sampler of the items that favours nobody for having drawn more of them, see `image_weights`.

    Args:
        items: entries of a datalist.
        annotators: how many there are, or their names.

    Returns:
        None where all items are to be sampled alike, because all drew as many: then none need be left out of an epoch.

    Raises:
        ValueError: as `assignment_of` and `image_weights` do.

    Example:
        >>> fair_sampler([{"annotators": [0]}, {"annotators": [0]}, {"annotators": [1]}], annotators=2).weights
        tensor([0.2500, 0.2500, 0.5000], dtype=torch.float64)
        >>> fair_sampler([{"annotators": [0]}, {"annotators": [1]}], annotators=2) is None
        True
    """
    weights = image_weights(assignment_of(items, annotators), _how_many(annotators))
    if np.allclose(weights, weights[0]):
        return None
    return WeightedRandomSampler(weights.tolist(), len(items))


def annotator_shares(
    assignment: Assignment, num_annotators: int, weights: Sequence[float] | NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Which share of the annotations that are sampled comes from each annotator, in expectation.

    `share_r = sum of w_i over the images of r / sum of w_i times the number of annotators of i`

    Args:
        assignment: for each image the numbers of its annotators.
        num_annotators: R.
        weights: how often each image is sampled, >= 0, of any sum; by default all alike.

    Returns:
        float64 (R,), sum 1.

    Raises:
        ValueError: an unknown annotator, not one weight for each image, or nothing would be sampled.

    Example:
        >>> annotator_shares([[0], [0], [0, 1]], num_annotators=2).tolist()
        [0.75, 0.25]
    """
    drew = _table(assignment, num_annotators)
    chance = np.ones(len(drew)) if weights is None else np.asarray(weights, dtype=float)
    if chance.shape != (len(drew),) or not (chance >= 0).all():
        raise ValueError(f"weights must be one number >= 0 for each of {len(drew)} images, got {chance!r}")
    shares: NDArray[np.float64] = chance @ drew
    if not shares.any():
        raise ValueError("no annotation would be sampled; check the assignment and the weights")
    shares /= shares.sum()
    return shares


def assignment_problems(
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    annotators: Annotators | None = None,
    key: str = ANNOTATORS_KEY,
) -> Iterator[str]:
    """What is wrong with who drew what in the sections of a datalist, one line each.

    Args:
        sections: items by section.
        annotators: how many there are, or their names; None where nothing is known of them.
        key: where it is written.

    Example:
        >>> items = [{"annotators": [0]}, {"annotators": [2]}]
        >>> list(assignment_problems({"training": items}, annotators=2))
        ['training[1]: annotators lists 2, but there are 2, numbered from 0', 'annotator 1 drew no image; ...']
    """
    seen: set[int] = set()
    for name, items in sections.items():
        used = any(key in item for item in items)
        for index, item in enumerate(items if used else ()):
            if key not in item:
                yield f"{name}[{index}]: no {key!r}, which other items have; list who drew it, all of them if all did"
                continue
            try:
                known = annotators is not None
                seen.update(annotator_numbers(item[key], annotators) if known else _alike(item[key]))
            except ValueError as error:
                yield f"{name}[{index}]: {error}"
    if annotators is None or not any(key in item for items in sections.values() for item in items):
        return
    for r in sorted(set(range(_how_many(annotators))) - seen):
        who = r if isinstance(annotators, int) else repr(annotators[r])
        yield f"annotator {who} drew no image; correct the datalist, or leave them out of the annotators"


def _alike(drew: Any) -> list[int]:
    """Check a list of annotators of whom nothing is known: numbers or names, none of them twice."""
    names = [one for one in drew if isinstance(one, str)] if isinstance(drew, Sequence) else []
    if names and not isinstance(drew, str) and len(names) < len(drew):
        raise ValueError(f"annotators mixes names and numbers, got {list(drew)!r}")
    return annotator_numbers(drew, sorted(set(names)) or None)


def _how_many(annotators: Annotators) -> int:
    return annotators if isinstance(annotators, int | np.integer) else len(annotators)


def _number(one: Any, annotators: Annotators | None) -> int:
    """The number of one annotator, given by number or name."""
    if isinstance(one, str):
        if annotators is None or isinstance(annotators, int | np.integer):
            raise ValueError(f"annotators names {one!r}, but no names are known; pass the names of all annotators")
        if one not in annotators:
            raise ValueError(f"annotators names {one!r}, known are {', '.join(annotators)}")
        return list(annotators).index(one)
    if isinstance(one, bool) or not isinstance(one, int | np.integer) or one < 0:
        raise ValueError(f"annotators must list numbers >= 0 or names, got {one!r}")
    if annotators is not None and one >= _how_many(annotators):
        raise ValueError(f"annotators lists {one}, but there are {_how_many(annotators)}, numbered from 0")
    return int(one)


def _table(assignment: Assignment, num_annotators: int) -> NDArray[np.float64]:
    """1 where an annotator (column) drew an image (row), 0 elsewhere."""
    drew = np.zeros((len(assignment), num_annotators))
    for image, numbers in enumerate(assignment):
        drew[image, annotator_numbers(numbers, num_annotators)] = 1
    return drew
