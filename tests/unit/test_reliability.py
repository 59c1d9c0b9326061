from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from medcoarse.confusion import Annotations
from medcoarse.reliability import (
    annotation_quality,
    drawings_of,
    drawn_counts,
    drawn_foreground,
    error_probability,
    expected_counts,
    habits,
    kinds_of,
    most_suspicious,
    next_questions,
    reliability,
    suspicion,
    suspicious_regions,
    tendency_mm,
    uncertainty,
)

SIZES = [(7, 5), (4, 5, 3)]


def one_hot(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Certain probabilities (B, L, *S) of a label map (B, *S)."""
    return torch.stack([(label == k).float() for k in range(num_classes)], 1)


def random_case(size, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(2, num_classes, *size, generator=generator).softmax(1)
    positive = torch.randint(0, num_classes, (2, 2, *size), generator=generator)
    positive[torch.rand(positive.shape, generator=generator) < 0.3] = 255
    negative = torch.randint(0, num_classes, (2, 1, *size), generator=generator)
    return probs, Annotations(positive, negative)


@pytest.mark.parametrize("size", SIZES)
def test_counts_agree_with_loops_over_voxels(size):
    probs, annotations = random_case(size)
    drawings = torch.cat([annotations.positive, annotations.negative], 1)
    assert torch.equal(drawings_of(annotations), drawings)
    assert kinds_of(annotations) == ["positive", "positive", "negative"]
    cm = torch.rand(2, 3, 3, 3, *size, generator=torch.Generator().manual_seed(1)).softmax(2)
    drawn, expected = drawn_counts(annotations, probs), expected_counts(cm, probs)
    slow_drawn, slow_expected = np.zeros((2, 3, 3, 3)), np.zeros((2, 3, 3, 3))
    for b in range(2):
        for x in np.ndindex(*size):
            for r in range(3):
                for t in range(3):
                    slow_expected[b, r, :, t] += cm[(b, r, slice(None), t, *x)].numpy() * float(probs[(b, t, *x)])
                    o = int(drawings[(b, r, *x)])
                    if o != 255:
                        slow_drawn[b, r, o, t] += float(probs[(b, t, *x)])
    assert np.allclose(drawn, slow_drawn)
    assert np.allclose(expected, slow_expected)


@pytest.mark.parametrize("size", SIZES)
def test_chance_of_an_error_agrees_with_loops_over_voxels(size):
    probs, _ = random_case(size)
    cm = torch.rand(2, 2, 3, 3, *size, generator=torch.Generator().manual_seed(1)).softmax(2)
    found = error_probability(cm, probs, ["positive", "negative"])
    for b in range(2):
        for x in np.ndindex(*size):
            same = [[float(cm[(b, r, t, t, *x)]) for t in range(3)] for r in range(2)]
            p = probs[(b, slice(None), *x)].tolist()
            assert float(found[(b, 0, *x)]) == pytest.approx(sum(p[t] * (1 - same[0][t]) for t in range(3)), abs=1e-6)
            assert float(found[(b, 1, *x)]) == pytest.approx(sum(p[t] * same[1][t] for t in range(3)), abs=1e-6)


def test_what_is_drawn_as_foreground():
    """Of two classes whoever rules background out draws it; of three nobody can tell what is meant."""
    drawn = Annotations(torch.tensor([[[0, 1, 1, 255]]]), torch.tensor([[[0, 0, 0, 1]]]))
    counts = drawn_counts(drawn, torch.full((1, 2, 4), 0.5))
    assert drawn_foreground(counts, ["positive", "negative"]).tolist() == [2 + 3]
    counts = drawn_counts(drawn, torch.full((1, 3, 4), 1 / 3))
    assert drawn_foreground(counts, ["positive", "negative"]).tolist() == pytest.approx([2])


def test_nobody_to_judge():
    with pytest.raises(ValueError, match="there is nobody to judge"):
        drawings_of(Annotations(label=torch.zeros(1, 1, 4)))


def test_quality_is_dice_of_the_foreground():
    label = torch.tensor([[0, 0, 1, 1, 2, 2]])
    probs = one_hot(label, 3)
    drawn = torch.tensor([[[0, 1, 1, 1, 2, 0], [0, 0, 1, 1, 2, 2], [0] * 6, [255] * 6]])
    found = annotation_quality(drawn_counts(Annotations(drawn), probs), ["positive"] * 4)[0].tolist()
    assert found[0] == pytest.approx((2 * 3 + 0.8) / (4 + 4 + 0.8)), "a tenth of what is covered, on both sides"
    assert found[1] == 1
    assert found[2] == pytest.approx(2 / (4 + 2)), "one voxel of who never drew any"
    assert math.isnan(found[3])


def test_a_few_voxels_of_the_estimate_do_not_make_an_empty_drawing_wrong():
    """Ten images with a structure of 100 voxels, and 20 without any, where 0 to 6 voxels are estimated."""
    truth = torch.zeros(31, 400, dtype=torch.long)
    truth[:11, :100] = 1
    for n in range(20):
        truth[11 + n, : n % 7] = 1
    drawn = torch.where(torch.arange(31)[:, None] < 10, truth, 0)  # on the eleventh nothing is drawn by mistake
    counts = drawn_counts(Annotations(drawn[:, None]), one_hot(truth, 2))
    quality = annotation_quality(counts, ["positive"])[:, 0]
    assert quality.argmin() == 10
    assert quality[10] == pytest.approx(20 / 120)
    assert quality[11:].min() == pytest.approx(20 / 26)
    assert quality[:10].tolist() == [1.0] * 10
    alone = annotation_quality(counts[11:12], ["positive"])
    assert alone.item() == 1, "nothing anywhere"


def test_quality_of_negative_drawings():
    """Two classes: not background where the thing is. Three: everything but the class that is ruled out."""
    label = torch.tensor([[0, 0, 0, 1]])
    ruled_out = torch.tensor([[[1, 1, 0, 0]]])
    quality = annotation_quality(drawn_counts(Annotations(negative=ruled_out), one_hot(label, 2)), ["negative"])
    assert quality.item() == pytest.approx((2 * 1 + 0.3) / (2 + 1 + 0.3))
    right, wrong = torch.tensor([[[1, 2, 1, 0]]]), torch.tensor([[[0, 0, 0, 1]]])
    for drawing, expected in ((right, (2 * 4 + 1.2) / (12 + 1.2)), (wrong, 0.8 / (8 + 0.8))):
        counts = drawn_counts(Annotations(negative=drawing), one_hot(label, 3))
        assert annotation_quality(counts, ["negative"]).item() == pytest.approx(expected)


def test_uncertainty_is_the_entropy():
    probs = torch.tensor([[[0.25, 1.0], [0.75, 0.0]], [[0.5, 0.5], [0.5, 0.5]]])
    first = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / 2
    assert uncertainty(probs).tolist() == pytest.approx([first, math.log(2)])


@pytest.mark.parametrize("size", [(41, 41), (21, 21, 21)])
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_tendency_of_a_ball_that_grows(size, radius):
    grid = np.stack(np.meshgrid(*[np.arange(n) - n // 2 for n in size], indexing="ij"))
    distance = np.sqrt((grid**2).sum(0))
    ball, larger = distance <= 5, distance <= 5 + radius
    spacing = (0.5,) * len(size)
    assert tendency_mm(larger, ball, spacing) == pytest.approx(0.5 * radius, abs=0.19)
    assert tendency_mm(ball, larger, spacing) == pytest.approx(-0.5 * radius, abs=0.19)
    assert tendency_mm(ball, ball, spacing) == 0


def test_tendency_follows_the_spacing():
    truth, drawing = np.zeros((2, 20, 20), bool)
    truth[8:12] = True
    drawing[6:14] = True  # a band: two voxels too wide on both sides along the first axis
    assert tendency_mm(drawing, truth, (3.0, 1.0)) == pytest.approx(6)
    assert tendency_mm(drawing.T, truth.T, (3.0, 1.0)) == pytest.approx(2)


def test_tendency_is_the_mean_of_both_ways():
    """A stray line six rows above the structure: (0 + 0 + 6) / 3 from the drawing, 0 from the truth."""
    truth = np.zeros((20, 20), bool)
    truth[8:12] = True
    drawing = truth.copy()
    drawing[2] = True
    assert tendency_mm(drawing, truth, (1, 1)) == pytest.approx(1)
    assert tendency_mm(truth, drawing, (1, 1)) == pytest.approx(-1)


def test_tendency_needs_two_outlines():
    some, full, empty = np.zeros((8, 8), bool), np.ones((8, 8), bool), np.zeros((8, 8), bool)
    some[2:4, 2:4] = True
    for other in (full, empty):
        assert math.isnan(tendency_mm(other, some, (1, 1)))
        assert math.isnan(tendency_mm(some, other, (1, 1)))
    assert math.isnan(tendency_mm(some, some, (1, 1), known=some))  # a stroke: what is beside it is unknown
    with pytest.raises(ValueError, match="one shape and the spacing its length"):
        tendency_mm(some, some, (1, 1, 1))


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_suspicious_regions_find_what_was_planted(kind):
    label = torch.zeros(30, 40, dtype=torch.long)
    label[5:12, 6:20] = 1
    drawing = label.clone()
    drawing[20:24, 30:38] = 1  # 32 pixels
    drawing[5:8, 6:9] = 0  # 9 pixels
    drawing[0, :] = 255
    drawing = drawing if kind == "positive" else torch.where(drawing < 2, 1 - drawing, drawing)
    probs = 0.9 * one_hot(label[None], 2)[0] + 0.05
    regions = suspicious_regions(drawing, probs, kind, spacing=(0.5, 2.0))
    assert [region.box for region in regions] == [((20, 24), (30, 38)), ((5, 8), (6, 9))]
    assert [region.size for region in regions] == pytest.approx([32 * 0.95, 9 * 0.95])
    assert len(suspicious_regions(drawing, probs, kind, (1, 1), num_regions=1)) == 1
    assert suspicious_regions(torch.full_like(drawing, 255), probs, kind, (1, 1)) == []


def test_reliability_of_known_tables():
    """Images differ, so that the bounds are not empty; pooled, the tables are the ones given."""
    rates = torch.tensor([[0.1, 0.4], [0.3, 0.2]])  # how often background, thing are taken for the other
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(200, 2, 2, 2)
    for n in range(200):
        for r in range(2):
            for t, size in enumerate((300, 100)):
                wrong = torch.binomial(torch.tensor(float(size)), rates[r, t], generator=generator)
                counts[n, r, :, t] = (
                    torch.stack([size - wrong, wrong]) if t == 0 else torch.stack([wrong, size - wrong])
                )
    found = reliability(counts, ["positive", "positive"])

    def width(rate):
        """Of the mean of two shares, counted in 60,000 and 20,000 voxels."""
        return 2 * 1.96 * ((rate * (1 - rate) / torch.tensor([60_000.0, 20_000.0])).sum() / 4).sqrt().item()

    for r, one in enumerate(found):
        assert torch.allclose(one.confusion.sum(0), torch.ones(2, dtype=torch.float64))
        assert one.score == pytest.approx(1 - rates[r].mean().item(), abs=0.01)
        assert one.low < one.score < one.high
        assert one.high - one.low == pytest.approx(width(rates[r]), rel=0.2)
    again = reliability(counts, ["positive", "positive"])
    assert [one[:3] for one in again] == [one[:3] for one in found]
    wider = reliability(counts[:20], ["positive", "positive"])
    assert wider[0].high - wider[0].low > 1.5 * (found[0].high - found[0].low)


def test_reliability_of_a_negative_annotator_and_of_absent_classes():
    counts = torch.tensor([[[[1.0, 8.0, 0.0], [9.0, 2.0, 0.0], [0.0, 0.0, 0.0]]]])
    (one,) = reliability(counts, ["negative"], num_resamples=10)
    assert one.score == pytest.approx(((1 - 0.1) + (1 - 0.2)) / 2)
    assert one.confusion[:, 2].isnan().all()
    with pytest.raises(ValueError, match=r"counts must be \(N, 2, L, L\) with at least one image, got \(1, 1, 3, 3\)"):
        reliability(counts, ["positive", "positive"])


def test_habits_by_name():
    good = torch.diag(torch.tensor([1000.0, 100.0, 100.0]))
    assert habits(good) == []
    swapped = good[[0, 2, 1]]
    assert [(h.name, h.drawn, h.true, h.share) for h in habits(swapped)] == [("swaps", 2, 1, 1.0)]
    fifths = torch.tensor([[1000.0, 0, 0], [0, 62, 44], [0, 38, 56]])  # nobody draws half of a class as another
    assert [(h.name, h.drawn, h.true, h.share) for h in habits(fifths)] == [("confuses", 2, 1, pytest.approx(0.41))]
    for other, names in ((0.25, ["confuses"]), (0.24, ["mistakes", "mistakes"]), (0.19, ["mistakes"])):
        uneven = torch.tensor([[1000.0, 0, 0], [0, 50, 100 * other], [0, 50, 100 * (1 - other)]])
        assert [habit.name for habit in habits(uneven)] == names, "similar: the smaller share is half of the larger"
    ring = 0.6 * torch.eye(4) + 0.4 * torch.eye(4)[[0, 3, 1, 2]]  # 1 is drawn as 2, 2 as 3, 3 as 1
    ring[:, 0] = torch.eye(4)[0]
    assert [(h.name, h.ring, h.share) for h in habits(100 * ring)] == [("confuses", (1, 2, 3), pytest.approx(0.4))]
    ring[1, 3] = 0
    assert [(h.name, h.drawn, h.true) for h in habits(100 * ring)] == [("mistakes", 2, 1), ("mistakes", 3, 2)]
    misses = good.clone()
    misses[0, 1], misses[1, 1] = 60.0, 40.0
    assert [(h.name, h.drawn, h.true) for h in habits(misses)] == [("misses", 0, 1)]
    adds = good.clone()
    adds[2, 0] = 100.0
    assert [(h.name, h.drawn, h.true, h.share) for h in habits(adds)] == [("adds", 2, 0, 0.5)]
    mistakes = good.clone()
    mistakes[2, 1], mistakes[1, 1] = 30.0, 70.0
    assert [(h.name, h.drawn, h.true) for h in habits(mistakes)] == [("mistakes", 2, 1)]


def test_questions_go_to_the_best_who_has_not_drawn():
    diagonals = torch.tensor([[0.9, 0.7, 0.8], [0.6, 0.7, 0.8], [0.9, 0.9, 0.9]])  # of image, annotator
    counts = torch.stack(
        [torch.stack([100 * torch.tensor([[d, 1 - d], [1 - d, d]]) for d in row]) for row in diagonals]
    )
    drawn = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    asked = next_questions(torch.tensor([0.2, 0.1, 0.9]), counts, ["positive"] * 3, drawn)
    assert [(q.image, q.annotator) for q in asked] == [(0, 2), (1, 2)]
    assert [q.accuracy for q in asked] == pytest.approx([0.8, 0.8])


def test_planted_bad_drawings_are_found():
    """Of 300 drawings of blobs 30 belong to another image; the quality ranks them last."""
    rng = np.random.default_rng(0)
    fields = np.stack([ndimage.gaussian_filter(rng.standard_normal((32, 32)), 3) for _ in range(100)])
    label = torch.from_numpy(fields > np.quantile(fields, 0.8, axis=(1, 2), keepdims=True)).long()
    probs = one_hot(label, 2)
    drawings = torch.stack(
        [label, torch.from_numpy(ndimage.binary_dilation(label, np.ones((1, 3, 3)))).long(), label], 1
    )
    planted = rng.permutation(300)[:30]
    for place in planted:
        n, r = divmod(place, 3)
        drawings[n, r] = label[(n + 37) % 100]
    quality = annotation_quality(drawn_counts(Annotations(drawings), probs), ["positive"] * 3)
    worst = quality.flatten().argsort()[:30].tolist()
    assert len(set(worst) & set(planted.tolist())) / 30 >= 0.9


def test_suspicion_goes_half_by_what_is_usual():
    rng = np.random.default_rng(0)
    quality = rng.random((9, 3))
    quality[rng.random((9, 3)) < 0.4] = np.nan
    quality[:, 2] = np.nan
    found = suspicion(torch.from_numpy(quality))
    for r in range(2):
        drawn = sorted(quality[~np.isnan(quality[:, r]), r])
        usual = drawn[(len(drawn) - 1) // 2]
        np.testing.assert_allclose(found[:, r].numpy(), usual / 2 - quality[:, r])
    assert found[:, 2].isnan().all()
    assert (
        most_suspicious(found, 100).tolist()
        == np.argsort(-np.nan_to_num(found.numpy(), nan=-np.inf), axis=None)[: int((~found.isnan()).sum())].tolist()
    )


def test_a_wrong_drawing_of_a_faithful_one_comes_before_the_usual_ones_of_others():
    """One draws too large, one is always wrong, one is right but for the last image."""
    quality = torch.tensor([[0.9, 0.55, 0.0], [0.85, 0.6, 0.0], [0.95, 0.5, 0.0], [0.55, 0.6, 0.0]])
    assert most_suspicious(suspicion(quality), 4).sort().values.tolist() == [2, 5, 8, 11]
    assert most_suspicious(suspicion(quality), 5)[-1] == 9
    assert quality.flatten().argsort()[4] != 9, "the quality alone would name another one"
