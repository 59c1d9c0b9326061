"""L2G, adapted: boxes, what a crop teaches, and where label maps may be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.measure import label as components
from skimage.measure import regionprops
from torch import nn

from medcoarse.baselines.l2g import L2G, boxes, class_maps, local_target, transfer_loss
from medcoarse.confusion import Annotations

QUICK = {"steps": 30, "batch_size": 2, "num_crops": 2, "width": 4}


def strokes(num=4, size=(24, 22)):
    """Bright strokes at an angle, each in a box of its own."""
    image = torch.zeros(num, 1, *size)
    for n in range(num):
        for step in range(12):
            image[n, 0, 5 + step, 4 + n + step // 2 : 6 + n + step // 2] = 1
    return image, image.to(torch.uint8)


@pytest.mark.parametrize("size", [(9, 11), (5, 6, 4), (1, 1)])
def test_boxes_are_those_of_scikit_image(size):
    for share in (0.0, 0.1, 0.3, 1.0):
        mask = np.random.default_rng(0).random(size) < share
        expected = np.zeros(size, bool)
        for part in regionprops(components(mask, connectivity=len(size))):
            expected[part.slice] = True
        assert np.array_equal(boxes(torch.from_numpy(mask)).numpy(), expected)


def loops(scores, present, region):
    """The target pixel by pixel."""
    target = np.zeros((scores.shape[0], scores.shape[1] + 1, *scores.shape[2:]))
    for b, *x in np.ndindex(len(scores), *scores.shape[2:]):
        maps = []
        for k in range(scores.shape[1]):
            top = max(scores[b, k].max(), 0)
            maps.append(max(scores[(b, k, *x)], 0) / top if present[b, k] and top > 0 else 0)
        best = int(np.argmax(maps))
        found = maps[best] > 1e-3 and region[(b, best, *x)]
        target[(b, best + 1 if found else 0, *x)] = 1
    return target


def test_the_target_is_that_of_loops():
    rng = np.random.default_rng(0)
    scores, region = rng.normal(size=(3, 2, 4, 5)), rng.random((3, 2, 4, 5)) < 0.6
    present = np.array([[True, True], [False, True], [False, False]])
    scores[0, 1] = -1
    found = local_target(*(torch.from_numpy(one) for one in (scores, present, region)))
    np.testing.assert_array_equal(found.numpy(), loops(scores, present, region))
    assert (found.sum(1) == 1).all()


def test_classes_that_are_absent_have_no_target_and_no_map():
    scores = torch.rand(2, 3, 6, 6) + 1
    present = torch.tensor([[True, False, False], [False, False, False]])
    everywhere = torch.ones(2, 3, 6, 6, dtype=torch.bool)
    target = local_target(scores, present, everywhere)
    assert target[0, 1].all()
    assert not target[0, 2:].any()
    assert not target[1, 1:].any()
    assert target[1, 0].all()
    assert not class_maps(scores, present)[0, 1:].any()


def test_nothing_is_to_be_learned_where_global_equals_local():
    scores, region = torch.randn(2, 2, 5, 5), torch.rand(2, 2, 5, 5) < 0.7
    target = local_target(scores, torch.ones(2, 2, dtype=torch.bool), region)
    logits = (1e3 * target).requires_grad_()
    loss = transfer_loss(logits, target)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    wrong = transfer_loss(1e3 * target.roll(1, 1), target)
    assert wrong.item() == pytest.approx(10 * 2 / 3), "two of three channels are off by one, everywhere"


def test_label_maps_lie_inside_the_boxes():
    logits = torch.randn(3, 3, 8, 9)
    region = torch.rand(3, 2, 8, 9) < 0.4
    region[1] = False
    found = L2G(3, threshold=0.0).label_map(logits, region)
    for k in (1, 2):
        assert not ((found == k)[:, 0] & ~region[:, k - 1]).any()
    assert not found[1].any()
    assert found[0].any()


def test_the_threshold_is_a_share_of_the_largest_probability_inside():
    odds = torch.tensor([0.8, 0.19, 0.21, 0.95])
    logits = torch.stack([1 - odds, odds])[None].log()
    region = torch.tensor([[[True, True, True, False]]])
    assert L2G(threshold=0.25).label_map(logits, region).tolist() == [[[1, 0, 1, 0]]]


def test_strokes_are_found_inside_their_boxes():
    image, mask = strokes()
    found = torch.stack(L2G(steps=250, crop_ratio=0.2)(list(image), [Annotations(label=one) for one in mask]))
    box = torch.stack([boxes(one[0] == 1) for one in mask])[:, None]
    assert not (found.bool() & ~box).any()
    overlap = [((one & mask.bool()).sum() / (one | mask.bool()).sum()).item() for one in (box, found.bool())]
    assert overlap[1] > 1.2 * overlap[0]


def test_drawn_regions_take_the_place_of_boxes():
    _, mask = strokes(1)
    positive, negative = mask[0], 1 - mask[0]
    positive[0, :2] = 1  # contradicted by the negative one
    region = L2G(region="coarse").regions(Annotations(positive, negative, label=torch.ones_like(positive)))
    assert torch.equal(region, mask[0].bool() & (torch.arange(24) > 1).view(1, -1, 1))
    known = Annotations(label=torch.where(torch.arange(22) > 9, 255, mask[0]))
    assert not L2G().regions(known)[..., 10:].any(), "what is unknown is no class"
    with pytest.raises(ValueError, match='region "box" comes from a mask, and there is none'):
        L2G().regions(Annotations(positive))
    with pytest.raises(ValueError, match='region "coarse" comes from a drawing'):
        L2G(region="coarse").regions(Annotations(label=positive))


def test_a_crop_shows_a_class_that_covers_more_than_a_twentieth_of_it(monkeypatch):
    seen = []
    monkeypatch.setattr(
        nn.functional, "multilabel_soft_margin_loss", lambda scores, shown: seen.append(shown) or (0 * scores).sum()
    )
    image = torch.zeros(1, 10, 10)
    for width, expected in ((5, 0), (6, 1)):  # of 100 pixels
        label = torch.zeros(1, 10, 10, dtype=torch.uint8)
        label[0, 0, :width] = 1
        L2G(**QUICK | {"steps": 1}, crop_ratio=1.0)([image], [Annotations(label=label)])
        assert (seen[-1] == expected).all()


@pytest.mark.parametrize("size", [(9, 7), (1, 1), (6, 5, 4)])
def test_sizes_classes_and_images_without_any(size):
    images = [torch.rand(2, *size), torch.rand(2, *(length + 1 for length in size))]
    labels = [torch.randint(0, 3, (1, *image.shape[1:]), dtype=torch.uint8) for image in images]
    labels[1][:] = 0
    found = L2G(3, window_size=5, **QUICK)(images, [Annotations(label=one) for one in labels])
    assert [one.shape for one in found] == [one.shape for one in labels]
    assert not found[1].any()


def test_the_seed_decides_and_nothing_else_does():
    image, mask = strokes(2)
    known = [Annotations(label=one) for one in mask]
    torch.manual_seed(5)
    first = L2G(**QUICK)(list(image), known)
    after = torch.rand(())
    torch.manual_seed(6)
    assert all(map(torch.equal, first, L2G(**QUICK)(list(image), known)))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(())), "the stream of random numbers goes on as if nothing had been"


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="region must be one of box, coarse, got 'saliency'"):
        L2G(region="saliency")
    with pytest.raises(ValueError, match=r"must be at least 1, got .*steps=0"):
        L2G(steps=0)
    assert math.isclose(transfer_loss(torch.zeros(1, 2, 1), torch.tensor([[[0.0], [1.0]]])).item(), 2.5)
