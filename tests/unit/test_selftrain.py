"""Mixing, boundaries, agreement and choice against slow references, and their laws."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, set_rnd
from monai.transforms import Compose, RandFlipd

from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.inferers import scaled_views
from medcoarse.losses import CoupledLoss
from medcoarse.selftrain.boundary import BoundaryLoss, boundary_loss, slopes
from medcoarse.selftrain.mixing import RandMixClassesd, mix
from medcoarse.selftrain.pseudo import agreement, fill
from medcoarse.selftrain.selection import balanced_choice, class_content, images_per_class, uniform_choice

SHAPES = pytest.mark.parametrize("shape", [(5, 6), (3, 4, 2), (1, 1)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_label(shape, classes=4, unlabeled=0.2, seed=0):
    label = torch.randint(0, classes, shape, generator=generator(seed), dtype=torch.uint8)
    return label.masked_fill(torch.rand(shape, generator=generator(seed + 1)) < unlabeled, 255)


# --- agreement ---------------------------------------------------------------------------------------------------


def slow_agreement(views, threshold):
    number, batch, classes, *size = views.shape
    found = np.full((batch, 1, *size), 255)
    for b in range(batch):
        for x in np.ndindex(*size):
            scores = [[float(views[(v, b, k, *x)]) for k in range(classes)] for v in range(number)]
            named = {one.index(max(one)) for one in scores}
            mean = [sum(one[k] for one in scores) / number for k in range(classes)]
            top = math.exp(max(mean)) / sum(math.exp(z) for z in mean)
            if len(named) == 1 and top > threshold:
                found[(b, 0, *x)] = named.pop()
    return found


@SHAPES
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_agreement_equals_that_of_loops(shape, classes):
    common = 3 * torch.randn(1, 2, classes, *shape, generator=generator(1))
    views = common + torch.randn(6, 2, classes, *shape, generator=generator())
    for threshold in (0.0, 0.5, 0.9):
        np.testing.assert_array_equal(agreement(views, threshold).numpy(), slow_agreement(views, threshold))


def test_agreement_by_hand():
    views = torch.tensor([[[2.0, 2.0, 4.0], [0.0, 0.0, 0.0]], [[2.0, 0.0, 2.0], [0.0, 1.0, 0.0]]])[:, None]
    # Means 2, 0.5 and 3 ahead of class 1: 0.881, a contradiction, 0.953.
    assert agreement(views, 0.9).tolist() == [[[255, 255, 0]]]
    assert agreement(views, 0.88).tolist() == [[[0, 255, 0]]]


def test_agreement_is_stricter_than_any_view():
    views = torch.randn(6, 2, 3, 8, 8, generator=generator()) + 2 * torch.randn(2, 3, 8, 8, generator=generator(1))
    together = agreement(views, 0.5) != 255
    assert together.any()
    for view in views:
        assert (agreement(views, 0.5)[together] == view.argmax(1, keepdim=True)[together]).all()
        assert (agreement(view[None], 0)[together] == agreement(views, 0.5)[together]).all()
    assert together.sum() < min((agreement(view[None], 0.5) != 255).sum() for view in views)
    more = [int((agreement(views, threshold) != 255).sum()) for threshold in (0, 0.5, 0.9, 1)]
    assert more == sorted(more, reverse=True)
    assert more[-1] == 0
    assert (agreement([torch.tensor([[[200.0], [0.0]]])], 1) == 255).all(), "above the threshold, not at it"


def test_a_network_that_fails_has_no_pseudo_labels():
    assert (agreement([torch.full((1, 2, 3), math.nan)], 0) == 255).all()


def test_what_agreement_does_not_take():
    with pytest.raises(ValueError, match="at least one view"):
        agreement([])
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 2"):
        agreement([torch.zeros(1, 2, 3)], 2)
    with pytest.raises(ValueError, match="up to 255 classes, got 256"):
        agreement([torch.zeros(1, 256, 3)])


def test_agreement_asks_for_one_view_at_a_time_and_changes_none():
    views = torch.randn(3, 1, 2, 4, generator=generator())
    kept = views.clone()
    assert torch.equal(agreement(view for view in views), agreement(views))
    assert torch.equal(views, kept)


@SHAPES
def test_pseudo_labels_never_change_a_drawn_pixel(shape):
    drawn, pseudo = random_label((2, 1, *shape), seed=1), random_label((2, 1, *shape), seed=5)
    filled = fill(drawn, pseudo)
    assert filled.dtype == drawn.dtype
    for x in np.ndindex(*drawn.shape):
        assert filled[x] == (drawn[x] if drawn[x] != 255 else pseudo[x])
    with pytest.raises(ValueError, match="must have one shape"):
        fill(drawn, pseudo[:1])


# --- views -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5), (4, 6, 3)])
def test_views_of_a_pointwise_network_that_scaling_leaves_alone_are_all_alike(shape):
    image = torch.ones(1, 1, *shape)
    axes = range(len(shape))
    views = list(scaled_views(image, lambda x: torch.cat([x, -x], 1), [0.5, 1, 2], axes))
    assert len(views) == 3 * 2 ** len(shape)
    assert all(torch.allclose(view, torch.cat([image, -image], 1)) for view in views)


def test_views_are_turned_back_and_the_network_sees_them_mirrored_and_scaled():
    image = torch.rand(1, 2, 6, 4, generator=generator())
    seen = []

    def predict(x):
        seen.append(x)
        return 2 * x

    views = list(scaled_views(image, predict, [1, 0.5], [0]))
    assert torch.equal(seen[1], image.flip(2))
    assert [tuple(x.shape[2:]) for x in seen] == [(6, 4), (6, 4), (3, 2), (3, 2)]
    assert all(torch.equal(view, 2 * image) for view in views[:2])
    assert torch.allclose(views[2], views[3], atol=1e-6)
    position = torch.arange(6.0).view(1, 1, 6, 1).expand(1, 1, 6, 4)
    left, mirrored = scaled_views(image, lambda x: position, [1], [0])
    assert torch.equal(mirrored, left.flip(2)), "what a network says of a place goes back to that place"


def test_pixels_stay_where_they_are_at_other_scales():
    """Twice as many pixels on the same line have their centres a quarter to the left and right of the old ones."""
    seen = []
    list(scaled_views(torch.tensor([[[0.0, 4.0, 8.0]]]), lambda x: seen.append(x) or x, [2], []))
    assert seen[0].flatten().tolist() == [0, 1, 3, 5, 7, 8]


def test_what_views_do_not_take():
    with pytest.raises(ValueError, match="scales must be above 0"):
        list(scaled_views(torch.zeros(1, 1, 4, 4), lambda x: x, [1, 0]))
    with pytest.raises(ValueError, match="spatial axes from 0 to 1"):
        list(scaled_views(torch.zeros(1, 1, 4, 4), lambda x: x, [1], [2]))


# --- boundaries --------------------------------------------------------------------------------------------------


def slow_slope(values, known, x, size):
    """Length of the gradient of one class at one pixel; None where it needs an unknown pixel."""
    total = 0.0
    for axis in range(len(size)):
        ahead, behind = list(x), list(x)
        ahead[axis], behind[axis] = min(x[axis] + 1, size[axis] - 1), max(x[axis] - 1, 0)
        if not (known[tuple(ahead)] and known[tuple(behind)] and known[x]):
            return None
        total += ((values[tuple(ahead)] - values[tuple(behind)]) / 2) ** 2
    return math.sqrt(total)


def slow_boundary_loss(memberships, label):
    batch, classes, *size = memberships.shape
    of_mask, of_segmentation = [], []
    for b, k in itertools.product(range(batch), range(classes)):
        known = label[b, 0] != 255
        for x in np.ndindex(*size):
            true = slow_slope((label[b, 0] == k).astype(float), known, x, size)
            found = slow_slope(memberships[b, k], known | True, x, size)
            if true is None:
                continue
            of_mask += [abs(found - true)] if true > 1e-8 else []
            of_segmentation += [abs(found - true)] if found > 1e-8 else []
    return sum(sum(one) / max(1, len(one)) / 2 for one in (of_mask, of_segmentation))


@SHAPES
@pytest.mark.parametrize("unlabeled", [0.0, 0.1, 1.0])
def test_boundary_loss_equals_that_of_loops(shape, unlabeled):
    label = random_label((2, 1, *shape), 3, unlabeled)
    found = random_label((2, *shape), 3, 0, seed=9)
    one_hot = torch.nn.functional.one_hot(found.long(), 3).movedim(-1, 1).double()
    expected = slow_boundary_loss(one_hot.numpy(), label.numpy())
    assert boundary_loss(one_hot, label).item() == pytest.approx(expected, abs=1e-12)
    assert expected > 0 or unlabeled == 1.0 or shape == (1, 1)


def test_boundaries_by_hand():
    corner = torch.zeros(1, 1, 4, 4)
    corner[..., 2:, 2:] = 1
    half = 0.5
    expected = [[0, 0, 0, 0], [0, 0, half, half], [0, half, math.sqrt(0.5), half], [0, half, half, 0]]
    assert torch.allclose(slopes(corner)[0, 0], torch.tensor(expected))
    assert slopes(corner.expand(1, 3, 4, 4)[..., :1, :1]).tolist() == [[[[0.0]]] * 3]


def test_a_perfect_segmentation_has_the_boundaries_of_the_mask():
    label = random_label((2, 1, 6, 5), 4, 0)
    one_hot = torch.nn.functional.one_hot(label[:, 0].long(), 4).movedim(-1, 1).float()
    assert boundary_loss(one_hot, label).item() == 0
    other = one_hot.roll(1, 3)
    assert boundary_loss(other, label).item() > 0


def boundary_problem(logits_scale=1.0, synthetic=(True, False)):
    logits = (logits_scale * torch.randn(2, 3, 8, 8, generator=generator())).requires_grad_()
    label = random_label((2, 1, 8, 8), 3, 0)
    return logits, Annotations(label=label, synthetic=torch.tensor(synthetic))


def test_the_gradient_goes_straight_through_to_synthetic_images_only():
    logits, target = boundary_problem()
    torch.manual_seed(0)
    whole = BoundaryLoss(3)(CoupledOutput(logits), target)
    plain = CoupledLoss(3)(CoupledOutput(logits), target)
    (slope,) = torch.autograd.grad(whole - plain, logits)
    assert slope.isfinite().all()
    assert slope[0].abs().sum() > 0
    assert slope[1].abs().sum() == 0


def test_the_boundary_term_is_that_of_the_sample():
    logits, target = boundary_problem()
    loss = BoundaryLoss(3, boundary_weight=0.7)
    torch.manual_seed(3)
    value = loss(CoupledOutput(logits), target).item()
    torch.manual_seed(3)
    noise = -torch.empty_like(logits[:1]).exponential_().log()
    sampled = torch.nn.functional.one_hot((logits[:1] + noise).argmax(1), 3).movedim(-1, 1).double()
    expected = slow_boundary_loss(sampled.numpy(), target.label[:1].numpy())
    assert loss.parts["boundary"].item() == pytest.approx(expected, rel=1e-5)
    assert value == pytest.approx(CoupledLoss(3)(CoupledOutput(logits), target).item() + 0.7 * expected, rel=1e-5)


def test_a_sure_and_right_network_has_no_boundary_loss():
    label = random_label((1, 1, 8, 8), 3, 0)
    logits = 1e4 * torch.nn.functional.one_hot(label[:, 0].long(), 3).movedim(-1, 1).float()
    loss = BoundaryLoss(3)
    loss(CoupledOutput(logits), Annotations(label=label, synthetic=torch.ones(1)))
    assert loss.parts["boundary"] == 0


@pytest.mark.parametrize("synthetic", [None, torch.tensor([False, False])])
def test_without_synthetic_images_it_is_the_coupled_loss(synthetic):
    logits, target = boundary_problem()
    target = target._replace(synthetic=synthetic)
    loss = BoundaryLoss(3)
    assert loss(CoupledOutput(logits), target) == CoupledLoss(3)(CoupledOutput(logits), target)
    assert "boundary" not in loss.parts


def test_what_the_boundary_loss_does_not_take():
    for options, words in (({"boundary_weight": -1}, "must not be negative"), ({"temperature": 0}, "above 0")):
        with pytest.raises(ValueError, match=words):
            BoundaryLoss(2, **options)
    target = Annotations(positive=torch.zeros(1, 1, 4, 4), synthetic=torch.ones(1))
    with pytest.raises(ValueError, match="synthetic images need a mask"):
        BoundaryLoss(2)(CoupledOutput(torch.zeros(1, 2, 4, 4)), target)


# --- mixing ------------------------------------------------------------------------------------------------------


@SHAPES
def test_mixing_equals_that_of_loops(shape):
    image, donor = torch.rand(3, *shape, generator=generator()), torch.rand(3, *shape, generator=generator(1))
    donor_label, label = random_label((1, *shape)), random_label((1, *shape), seed=4)
    drawing = random_label((2, *shape), unlabeled=0.5, seed=7)
    (mixed,), (mixed_label,), (mixed_drawing,) = mix([image], [donor], donor_label, [0, 3, 255], [label], [drawing])
    for x in np.ndindex(*shape):
        pasted = int(donor_label[(0, *x)]) in (0, 3)
        assert torch.equal(mixed[(slice(None), *x)], (donor if pasted else image)[(slice(None), *x)])
        assert mixed_label[(0, *x)] == (donor_label if pasted else label)[(0, *x)]
        for r in range(2):
            assert mixed_drawing[(r, *x)] == (255 if pasted else drawing[(r, *x)])


def test_nothing_is_pasted_of_no_class_and_all_of_all():
    image, donor = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    donor_label, label = random_label((1, 4, 4), 2, 0), random_label((1, 4, 4), unlabeled=0.5)
    assert torch.equal(mix([image], [donor], donor_label, [], [label])[1][0], label)
    assert torch.equal(mix([image], [donor], donor_label, [7], [label])[0][0], image), "a class the donor lacks"
    assert torch.equal(mix([image], [donor], donor_label, [0, 1], [label])[1][0], donor_label)


def test_mixing_refuses_what_does_not_fit():
    image, label = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    with pytest.raises(ValueError, match=r"sizes \[\(3, 4\), \(4, 4\)\]"):
        mix([image], [image[:, :3]], label, [0])
    with pytest.raises(ValueError, match="1 images, 0 donors"):
        mix([image], [], label, [0])
    with pytest.raises(ValueError, match="at least one donor"):
        RandMixClassesd("image", [])


def donors(number=5, size=(6, 6)):
    return [
        {"image": torch.full((1, *size), 10.0 + n), "label": random_label((1, *size), 3, 0.1, seed=n)}
        for n in range(number)
    ]


def items(number=8):
    return [
        {"image": torch.zeros(1, 5, 6), "positive": random_label((1, 5, 6), 3, 0.5, seed=50 + n), "synthetic": n == 0}
        for n in range(number)
    ]


def test_a_record_repeats_what_was_drawn_and_synthetic_items_receive_nothing():
    transform = RandMixClassesd("image", donors(), prob=0.5).set_random_state(0)
    drawn, pasted = [], 0
    for item in items(8) * 8:
        mixed = transform(item)
        if mixed["mixed"]:
            record = json.loads(mixed["mixed"])
            drawn.append(record["donor"])
            again = transform.apply(item, record)
            assert all(torch.equal(again[key], mixed[key]) for key in ("image", "positive", "label"))
            assert mixed["label"].dtype == torch.uint8
            on = mixed["label"] != 255
            pasted += int(on.any())
            assert (mixed["image"][on] == 10.0 + record["donor"]).all()
            assert (mixed["positive"][on] == 255).all()
            assert torch.equal(mixed["positive"][~on], item["positive"][~on])
        else:
            assert "label" not in mixed
        assert not (item["synthetic"] and mixed["mixed"])
    assert 20 <= len(drawn) <= 36, "half of 56"
    assert set(drawn) == set(range(5)), "the whole set of donors is drawn from"
    assert pasted > 10


@pytest.mark.parametrize("workers", [0, 2])
def test_mixing_is_the_same_again_for_the_same_seed(workers):
    chain = Compose([RandMixClassesd("image", donors()), RandFlipd(["image", "positive"], prob=0.5)])
    data = Dataset([item | {"label": torch.full((1, 5, 6), 255)} for item in items()], chain)

    def epoch(seed):
        set_rnd(data, seed)
        torch.manual_seed(seed)
        return [batch["mixed"] for batch in DataLoader(data, batch_size=2, num_workers=workers)]

    assert epoch(1) == epoch(1) != epoch(2)


# --- what to annotate next ---------------------------------------------------------------------------------------


def slow_choice(content, number, least=0.0):
    """The rule in words, without ties left to chance."""
    counts, left, chosen = [0] * len(content[0]), set(range(len(content))), []
    for _ in range(number):
        having = {k: [n for n in left if content[n][k] > least] for k in range(len(counts))}
        open_classes = [k for k in having if having[k]]
        if not open_classes:
            chosen.append(min(left))
        else:
            rarest = min(open_classes, key=lambda k: (counts[k], len(having[k]), k))

            def cost(n, k=rarest, counts=tuple(counts)):
                after = [c + (content[n][j] > least) for j, c in enumerate(counts)]
                mean = sum(after) / len(after)
                return round(sum((a - mean) ** 2 for a in after) / len(after), 9), -content[n][k]

            chosen.append(min(having[rarest], key=cost))
        left.remove(chosen[-1])
        counts = [c + (content[chosen[-1]][j] > least) for j, c in enumerate(counts)]
    return chosen


def pool(number=60, seed=0):
    """Every image shows class 0, and ever fewer the others."""
    rng = np.random.default_rng(seed)
    shares = rng.random((number, 5)) * (rng.random((number, 5)) < [1, 0.8, 0.4, 0.15, 0.08])
    return shares / shares.sum(1, keepdims=True)


@pytest.mark.parametrize("least", [0.0, 0.1])
def test_choice_equals_that_of_loops(least):
    content = pool()
    assert balanced_choice(content, 25, least=least) == slow_choice(content.tolist(), 25, least)


def test_choice_makes_the_counts_of_the_classes_more_equal_than_chance():
    content = pool(400)
    balanced = images_per_class(content, balanced_choice(content, 40))
    chance = np.mean([images_per_class(content, uniform_choice(400, 40, seed)) for seed in range(20)], 0)
    assert np.std(balanced[1:]) < 0.4 * np.std(chance[1:])
    assert min(balanced) > 2 * min(chance)
    one_each = np.eye(4)[np.repeat(range(4), [50, 20, 10, 5])]
    assert images_per_class(one_each, balanced_choice(one_each, 20)) == [5, 5, 5, 5]
    assert images_per_class(one_each, balanced_choice(one_each, 9, drawn=[3, 3, 3, 0])) == [1, 1, 2, 5]


def test_choice_takes_each_image_once_and_blank_ones_last():
    content = np.vstack([np.zeros((3, 5)), pool(10)])
    chosen = balanced_choice(content, 13)
    assert sorted(chosen) == list(range(13))
    assert sorted(chosen[-3:]) == [0, 1, 2]
    assert balanced_choice(content, 13) == chosen
    assert balanced_choice(content, 0) == []


def test_what_choice_does_not_take():
    with pytest.raises(ValueError, match="from 0 to the 2 images of the pool, got 3"):
        balanced_choice(np.ones((2, 2)), 3)
    with pytest.raises(ValueError, match="must be a table"):
        balanced_choice([1, 2], 1)
    with pytest.raises(ValueError, match="must count 2 classes"):
        balanced_choice(np.ones((2, 2)), 1, drawn=[1, 2, 3])
    with pytest.raises(ValueError, match="from 0 to the 2 images"):
        uniform_choice(2, 3)


def test_content_of_nothing_is_nothing():
    assert class_content(torch.full((1, 3, 3), 255), 4).tolist() == [0, 0, 0, 0]
