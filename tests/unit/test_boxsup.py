"""Boxes, their candidate regions, and how one of them is chosen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.inferers import SimpleInferer
from torch import nn

from medcoarse.baselines.boxsup import (
    Box,
    BoxSup,
    Regions,
    around,
    boxes_of,
    choose,
    overlap_costs,
    painted,
    propose,
    regression_costs,
)
from medcoarse.baselines.soft_labels import HardLabels, Numbered
from tests.cases import disc


def slow_costs(mask, place, inside, outside, weight):
    """``E_o + lambda E_r`` pixel by pixel."""
    tight, box = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
    tight[tuple(slice(one.min(), one.max() + 1) for one in np.nonzero(mask))] = True
    box[place] = True
    overlap = (tight & box).sum() / (tight | box).sum()
    mask = mask[place]
    entropy = np.mean([inside[x] if mask[x] else outside[x] for x in np.ndindex(mask.shape)])
    return 1 - overlap + weight * entropy


def whole(size):
    return tuple(slice(0, n) for n in size)


def picture(shape, seed=0, noise=0.3):
    """A noisy disc, and the disc."""
    rng = np.random.default_rng(seed)
    mask = disc(shape)
    return mask + noise * rng.standard_normal(shape), mask


def boxed(noise=0.3):
    """The box of the disc with what is around it, its place in that, and the disc."""
    image, mask = picture((24, 30), noise=noise)
    (place,) = [box.place for box in boxes_of(mask, 2)]
    outer, inner = around(place, mask.shape)
    return image[outer], inner, mask[outer]


@pytest.mark.parametrize("size", [(9, 11), (4, 5, 6), (30, 3)])
def test_costs_are_those_of_the_masks(size):
    rng = np.random.default_rng(0)
    for place in (whole(size), tuple(slice(1, n - 1) for n in size)):
        box = tuple(part.stop - part.start for part in place)
        inside, outside = rng.random(box), rng.random(box)
        for regions in propose(rng.random((2, *size)), place):
            found = overlap_costs(regions) + 3 * regression_costs(regions, inside, outside)
            masks = regions.members[:, regions.parts]
            assert found == pytest.approx([slow_costs(mask, place, inside, outside, 3) for mask in masks])
            assert np.array_equal(regions.masks(), masks[(slice(None), *place)])


@pytest.mark.parametrize("size", [(20, 24), (7, 8, 9)])
def test_candidates_are_regions_that_differ(size):
    image, _ = picture(size)
    families = propose(image[None], tuple(slice(2, n - 1) for n in size))
    assert len(families) == 2
    for regions in families:
        masks = regions.masks().reshape(len(regions.members), -1)
        assert masks.any(1).all()
        assert not masks.all(1).any()
        assert len(np.unique(regions.members, axis=0)) == len(masks)
        assert regions.parts.shape == size


@pytest.mark.parametrize("family", [0, 1])
def test_one_of_the_candidates_is_the_object(family):
    image, place, mask = boxed(noise=0.15)
    found, mask = propose(image[None], place)[family].masks(), mask[place]
    overlap = [(one & (mask == 1)).sum() / (one | (mask == 1)).sum() for one in found]
    assert max(overlap) > 0.8


def test_merging_is_that_of_all_pairs():
    """Each step merges the neighbours whose union adds least to the variance within regions."""
    image, _ = picture((12, 12))
    merged = propose(image[None], whole((12, 12)), num_levels=3, num_segments=9, sigma=0)[-1]
    smooth = (image - image.min()) / (image.max() - image.min())
    groups = [frozenset([part]) for part in range(merged.members.shape[1])]
    wanted = set(groups)

    def values(group):
        return smooth[np.isin(merged.parts, list(group))]

    def touch(one, other):
        masks = [np.isin(merged.parts, list(group)) for group in (one, other)]
        return any((np.roll(masks[0], 1, axis) & masks[1]).any() for axis in (0, 1)) or any(
            (np.roll(masks[1], 1, axis) & masks[0]).any() for axis in (0, 1)
        )

    def cost(pair):
        one, other = pair
        return ((values(one | other) - values(one | other).mean()) ** 2).sum() - sum(
            ((values(group) - values(group).mean()) ** 2).sum() for group in pair
        )

    inner = merged.parts  # np.roll wraps around; regions at opposite edges must not count as neighbours
    padded = np.pad(inner, 1, constant_values=-1)
    merged = Regions(padded, merged.members, merged.place)
    smooth = np.pad(smooth, 1)
    while len(groups) > 1:
        one, other = min((pair for pair in itertools.combinations(groups, 2) if touch(*pair)), key=cost)
        groups = [group for group in groups if group not in (one, other)] + [one | other]
        wanted.add(one | other)
    wanted.discard(frozenset(range(merged.members.shape[1])))
    assert {frozenset(np.flatnonzero(row).tolist()) for row in merged.members} == wanted


def test_what_reaches_out_of_the_box_costs_more_than_what_fills_it():
    """Disc and surroundings touch the same sides of the box; only outside it can they be told apart."""
    _, place, mask = boxed()
    disc_, rest = overlap_costs(Regions(mask, np.array([[False, True], [True, False]]), place))
    assert disc_ == 0
    assert rest == pytest.approx(1 - mask[place].size / mask.size)


def test_without_the_network_the_tightest_candidate_is_chosen():
    parts = np.arange(12).reshape(3, 4)
    members = np.zeros((3, 12), dtype=bool)
    members[0, [5, 6]] = True
    members[1, [0, 11]] = True  # reaches from corner to corner
    members[2, [0, 1, 2]] = True
    regions, rng = Regions(parts, members, whole((3, 4))), np.random.default_rng(0)
    unknown = np.full((3, 4), 9.0)
    chosen = choose([regions], unknown, 0 * unknown, rng, regression_weight=0, num_best=1)
    assert np.array_equal(chosen, members[1][parts])
    by_network = choose([regions], unknown, 0 * unknown, rng, regression_weight=100, num_best=1)
    assert by_network.sum() == 2


def test_the_choice_is_uniform_among_the_best_of_all_families():
    rng = np.random.default_rng(0)
    inside, outside = rng.random((6, 7)), rng.random((6, 7))
    families = propose(rng.random((1, 6, 7)), whole((6, 7)))
    masks = np.concatenate([regions.masks() for regions in families])
    costs = [slow_costs(mask, whole((6, 7)), inside, outside, 3) for mask in masks]
    best = [masks[n].tobytes() for n in np.argsort(costs, kind="stable")[:5]]
    draws = [choose(families, inside, outside, rng).tobytes() for _ in range(1000)]
    counts = [draws.count(one) for one in dict.fromkeys(best)]
    assert sum(counts) == 1000
    assert min(counts) > 140
    one = {choose(families, inside, outside, np.random.default_rng(s), num_best=1).tobytes() for s in range(20)}
    assert one == {best[0]}, "k = 1 is deterministic"


def test_as_the_network_learns_the_truth_is_chosen():
    image, place, mask = boxed()
    truth = Regions(mask, np.array([[False, True]]), place)
    families, overlaps, mask = [*propose(image[None], place, num_levels=5), truth], [], mask[place]
    for sharpness in (0.0, 0.5, 1.0, 3.0):
        logits = sharpness * (2 * mask - 1)
        inside, outside = np.log1p(np.exp(-logits)), np.log1p(np.exp(logits))
        chosen = [choose(families, inside, outside, np.random.default_rng(s), num_best=1) for s in range(3)]
        overlaps.append(np.mean([(c & (mask == 1)).sum() / (c | (mask == 1)).sum() for c in chosen]))
    assert overlaps == sorted(overlaps)
    assert overlaps[0] < overlaps[-1] == 1


def test_boxes_of_components_and_of_classes():
    label = np.zeros((6, 8), dtype=np.uint8)
    label[0, 0] = label[1, 1] = label[4, 5] = 1  # the first two touch at a corner
    label[5, 0:3] = 2
    label[0, 7] = 255
    found = boxes_of(label, 4)
    assert found == [
        Box(1, (slice(0, 2), slice(0, 2))),
        Box(1, (slice(4, 5), slice(5, 6))),
        Box(2, (slice(5, 6), slice(0, 3))),
    ]
    assert boxes_of(label, 4, per_class=True) == [Box(1, (slice(0, 5), slice(0, 6))), found[2]]
    assert boxes_of(np.full((2, 2, 2), 255), 2) == boxes_of(np.zeros((2, 2, 2)), 2) == []
    volume = np.zeros((3, 4, 5))
    volume[1, 1:3, 2] = 1
    assert boxes_of(volume, 2) == [Box(1, (slice(1, 2), slice(1, 3), slice(2, 3)))]


@pytest.mark.parametrize("image", [np.ones((1, 5, 5)), np.random.default_rng(0).random((2, 1, 3)), np.ones((1, 1, 1))])
def test_nothing_to_propose_leaves_the_rectangle(image):
    assert propose(image, whole(image.shape[1:])) == []
    rectangle = choose([], image[0], image[0], np.random.default_rng(0))
    assert rectangle.shape == image.shape[1:]
    assert rectangle.all()


def test_the_smaller_box_lies_on_top_and_undrawn_images_have_no_label():
    drawn = np.zeros((3, 3), dtype=np.uint8)
    outer, inner = Box(1, (slice(0, 3), slice(0, 3))), Box(2, (slice(1, 2), slice(1, 3)))
    label = painted([(outer, np.ones((3, 3), bool)), (inner, np.array([[True, False]]))], drawn)
    assert label[0].tolist() == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]
    assert (painted([], np.full((2, 2), 255)) == 255).all()
    assert (painted([], np.array([[255, 0]])) == 0).all()


class Shown(nn.Module):
    """A segmenter for images that show their logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image):
        return torch.cat([-self.scale * image, self.scale * image], 1)


def items(number=3):
    made = []
    for n in range(number):
        image, mask = picture((20, 22), seed=n)
        drawn = np.zeros(mask.shape, dtype=np.uint8)
        rows, columns = np.nonzero(mask)
        drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
        made.append({"image": torch.tensor(image[None] - 0.5).float(), "positive": torch.tensor(drawn[None])})
    made.append({"image": torch.zeros(1, 20, 22), "positive": torch.full((1, 20, 22), 255, dtype=torch.uint8)})
    return made


def run(epochs, state=None, **options):
    data, labels, seen = Numbered(items(), 4), HardLabels(), []
    boxsup = BoxSup(Shown(), data, SimpleInferer(), labels, 2, **options)
    if state is not None:
        boxsup.load_state_dict(state)
    engine = Engine(lambda engine, _: seen.append(torch.stack([labels(data[n])["label"] for n in range(4)])))
    boxsup.attach(engine)
    if state is not None:
        engine.state.epoch = len(epochs)
        engine.load_state_dict({"epoch": epochs[0], "max_epochs": epochs[1], "epoch_length": 1})
    engine.run([0], max_epochs=epochs[1])
    return seen, boxsup.state_dict()


def test_rectangles_first_then_regions_that_change_and_can_be_resumed():
    whole, _ = run((0, 4))
    drawn = torch.stack([item["positive"] for item in items()])
    assert torch.equal(whole[0], drawn)
    for later in whole[1:]:
        assert (later[3] == 255).all(), "nobody drew on it"
        assert not (later[:3] > drawn[:3]).any(), "outside the boxes is background"
        masks = torch.stack([torch.tensor(picture((20, 22), seed=n)[1]) for n in range(3)])[:, None]
        overlap = ((later[:3] == 1) & (masks == 1)).sum() / ((later[:3] == 1) | (masks == 1)).sum()
        assert overlap > 0.6
    assert not torch.equal(whole[1], whole[2]), "drawn anew among the best"
    _, state = run((0, 2))
    resumed, _ = run((2, 4), state)
    assert len(resumed) == 2
    assert all(torch.equal(one, other) for one, other in zip(resumed, whole[2:], strict=True))
    best, _ = run((0, 3), num_best=1)
    assert torch.equal(best[1], best[2])
    rare, _ = run((0, 4), interval=2)
    assert torch.equal(rare[1], rare[2])
    assert not torch.equal(rare[2], rare[3])


def test_of_overlapping_boxes_the_smaller_keeps_its_pixels():
    drawn = torch.zeros(1, 7, 8, dtype=torch.uint8)
    drawn[0, 0, 0] = drawn[0, 6, 7] = 2
    drawn[0, 3, 3] = 1
    item = {"image": torch.zeros(1, 7, 8), "positive": drawn}  # flat: there is nothing to propose
    labels = HardLabels()
    boxsup = BoxSup(Shown(), Numbered([item], 1), SimpleInferer(), labels, 3, per_class=True)
    boxsup._start(Engine(lambda *_: None))
    expected = torch.full((1, 7, 8), 2, dtype=torch.uint8)
    expected[0, 3, 3] = 1
    assert torch.equal(labels.maps[0], expected)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="need regression_weight >= 0"):
        BoxSup(Shown(), Numbered([{}], 1), SimpleInferer(), HardLabels(), 2, num_best=0)
    boxsup = BoxSup(Shown(), Numbered([{"image": 0}], 1), SimpleInferer(), HardLabels(), 2)
    with pytest.raises(KeyError, match="takes its boxes from 'positive', the items have image"):
        boxsup._start(Engine(lambda *_: None))
