from __future__ import annotations

import logging
from itertools import combinations

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from medcoarse import profiles
from medcoarse.annotators import draw
from medcoarse.confusion import (
    Annotations,
    CoupledOutput,
    FullConfusion,
    GlobalConfusion,
    IdentityConfusion,
    sample_annotation,
)
from medcoarse.guard import (
    contradiction,
    diagnose,
    disagreement,
    dominance,
    drawn_areas,
    estimated_error,
    observe,
    swap,
)
from medcoarse.losses import CoupledLoss
from medcoarse.monitoring import AnnotatorMonitor
from medcoarse.networks import AnnotatorNet, CoupledModel
from medcoarse.synthetic import fundus_photograph


def scores(label: torch.Tensor, num_classes: int = 2, sharpness: float = 20.0) -> torch.Tensor:
    return sharpness * torch.nn.functional.one_hot(label[:, 0], num_classes).movedim(-1, 1).float()


def certain(cm: list[list[float]], number: int = 1) -> GlobalConfusion:
    return GlobalConfusion(torch.tensor(cm).clamp_min(1e-6).log().expand(number, -1, -1))


@pytest.fixture
def scene():
    """A disc, a drawing of it that is too large, and a drawing of the outside that is too large as well."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    radius = (y - 16).square() + (x - 16).square()
    truth, large, small = ((radius < r * r).long()[None, None] for r in (8, 11, 6))
    return truth, Annotations(positive=large, negative=1 - small), generator


def test_a_training_that_goes_well_raises_no_alarm(scene):
    truth, target, _ = scene
    errors = [(large != truth).float().mean().item() for large in (target.positive, 1 - target.negative)]
    honest = [[[1 - e, e], [e, 1 - e]] for e in errors]
    output = CoupledOutput(scores(truth), certain(honest[0]), certain(honest[1]))
    seen = observe(output, target)
    assert seen["error_positive"] == pytest.approx(errors[0], abs=1e-4)
    assert seen["contradiction"] == pytest.approx(sum(errors), abs=1e-6)  # large beyond the truth, small within it
    assert diagnose(seen) == {}


def test_permutation(scene):
    truth, target, _ = scene
    swapped = [[0.05, 0.95], [0.95, 0.05]]
    output = CoupledOutput(scores(1 - truth), certain(swapped), certain(swapped))
    found = diagnose(observe(output, target))
    assert "permutation" in found
    assert "classes are swapped" in found["permutation"]


def test_drawings_that_are_much_too_large_are_no_permutation():
    truth = (torch.arange(100) < 10).long().view(1, 1, 10, 10)
    drawn = (torch.arange(100) < 40).long().view(1, 1, 10, 10)  # only a quarter of what was drawn is right
    assert diagnose(observe(CoupledOutput(scores(truth)), Annotations(positive=drawn, negative=1 - drawn))) == {}


def test_identity_collapse(scene):
    _, target, _ = scene
    output = CoupledOutput(
        scores(target.positive), certain([[0.999, 0.001], [0.001, 0.999]]), certain([[0.999, 0.001], [0.001, 0.999]])
    )
    found = diagnose(observe(output, target))
    assert list(found) == ["identity"]
    assert "learning their errors. Raise the annotators'" in found["identity"]


def test_annotators_who_agree_may_be_perfect(scene):
    truth, _, _ = scene
    perfect = certain([[0.999, 0.001], [0.001, 0.999]])
    assert diagnose(observe(CoupledOutput(scores(truth), perfect, perfect), Annotations(truth, 1 - truth))) == {}


ERRING, SURE = [[0.7, 0.3], [0.3, 0.7]], [[0.999, 0.001], [0.001, 0.999]]


@pytest.fixture
def five(scene):
    """Five people who draw the disc, each wrong at 30 % of the pixels."""
    truth, _, generator = scene
    cm = torch.tensor(ERRING).view(1, 1, 2, 2, 1, 1).expand(1, 5, 2, 2, 32, 32)
    return truth, sample_annotation(cm, truth, generator)


def test_identity_collapse_of_several_annotators(five):
    truth, drawn = five
    seen = observe(CoupledOutput(scores(truth), certain(SURE, 5)), Annotations(drawn))
    assert seen["disagreement"] == pytest.approx(2 * 0.3 * 0.7, abs=0.02)
    assert seen["error_of_two"] == pytest.approx(0.002, abs=1e-4)
    found = diagnose(seen)
    assert list(found) == ["identity"]
    assert "draw different classes at 4" in found["identity"]
    assert "to err on 0.2% together: the segmentation is learning their errors. Raise the annotators'" in str(found)
    assert diagnose(observe(CoupledOutput(scores(truth), certain(ERRING, 5)), Annotations(drawn))) == {}


def test_one_drawing_a_pixel_cannot_be_checked(five):
    """Of five, each drew some rows that nobody else did; and merged, as strokes are."""
    truth, drawn = five
    rows = torch.arange(32)[:, None].expand(32, 32) % 5
    alone = torch.where(rows == torch.arange(5)[:, None, None], drawn, 255)
    for single in (alone, alone.amin(1, keepdim=True)):
        seen = observe(CoupledOutput(scores(truth), certain(SURE, single.shape[1])), Annotations(single))
        assert not {"disagreement", "error_of_two"} & set(seen)
        assert diagnose(seen) == {}


def test_disagreement_against_every_pair():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 4, (2, 4, 5, 3), generator=generator)
    drawn[drawn == 3] = 255
    confusion = FullConfusion(torch.randn(2, 4, 3, 3, 5, 3, generator=generator))
    logits = torch.randn(2, 3, 5, 3, generator=generator)
    right = torch.einsum("brkkhw,bkhw->brhw", confusion.dense(), logits.softmax(1))
    differ, wrong = [], []
    for a, b in combinations(range(4), 2):
        both = (drawn[:, a] != 255) & (drawn[:, b] != 255)
        differ.append((drawn[:, a] != drawn[:, b])[both])
        wrong.append((2 - right[:, a] - right[:, b])[both])
    expected = {"disagreement": torch.cat(differ).float().mean().item(), "error_of_two": torch.cat(wrong).mean().item()}
    assert disagreement(logits, confusion, drawn) == pytest.approx(expected)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("alike", [False, True])
def test_true_matrices_are_no_identity_collapse(num_classes, alike):
    """Whoever draws, and though they err together: the error of two is no less than their disagreement."""
    generator = torch.Generator().manual_seed(num_classes)
    for _ in range(20):
        diagonal = 12 * torch.rand(1, generator=generator) * torch.eye(num_classes)
        cm = (torch.randn(1, 3, num_classes, num_classes, generator=generator) + diagonal).softmax(2)
        truth = torch.randint(0, num_classes, (1, 1, 64, 64), generator=generator)
        drawn = sample_annotation(cm[..., None, None].expand(*cm.shape, 64, 64), truth, generator)
        if alike:  # the second copies most of what the first did
            cm[:, 1] = cm[:, 0]
            drawn[:, 1, :48] = drawn[:, 0, :48]
        drawn[torch.rand(drawn.shape, generator=generator) < 0.3] = 255
        seen = observe(CoupledOutput(scores(truth, num_classes, 40), GlobalConfusion(cm[0].log())), Annotations(drawn))
        assert seen["disagreement"] < seen["error_of_two"] + 0.02
        assert "identity" not in diagnose(seen)


@pytest.mark.parametrize("pinned", [True, False])
def test_training_that_takes_everybody_for_faultless_warns(pinned, caplog):
    torch.manual_seed(0)
    truth = torch.randint(0, 2, (4, 1, 16, 16))
    image = truth + 0.1 * torch.randn(4, 1, 16, 16)
    drawn = sample_annotation(torch.tensor(ERRING).view(1, 1, 2, 2, 1, 1).expand(4, 5, 2, 2, 16, 16), truth)
    floor, start = (0.998, 0.999) if pinned else (0.0, 0.9)
    annotator = AnnotatorNet(None, 2, 0, 2, 5, 0, structure="global", diagonal_floor=floor, initial_diagonal=start)
    model, loss, target = CoupledModel(torch.nn.Conv2d(1, 2, 1), annotator), CoupledLoss(2), Annotations(drawn)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)

    def step(engine: Engine, batch: int) -> dict[str, object]:
        optimizer.zero_grad()
        output = model(image)
        loss(output, target).backward()
        optimizer.step()
        return {"pred": output, "label": target}

    trainer = Engine(step)
    AnnotatorMonitor(interval=5, model=model).attach(trainer)
    with caplog.at_level(logging.WARNING):
        trainer.run(range(100))
    told = [record.getMessage().partition(" draw ")[0] for record in caplog.records]
    assert told == pinned * ["Two positive annotators of a pixel"]


def test_uniform_collapse(scene):
    truth, target, _ = scene
    output = CoupledOutput(scores(truth), certain([[0.5, 0.5], [0.5, 0.5]]), certain([[0.9, 0.2], [0.1, 0.8]]))
    found = diagnose(observe(output, target))
    assert list(found) == ["uniform"]
    assert "The positive drawings are taken to be no better than chance (wrong at 50%" in found["uniform"]


def test_indifference(scene):
    """Where a class is not present its column is free to say what was drawn anyway: nothing is learned there."""
    truth, target, _ = scene
    anyway, honest = certain([[0.97, 0.97], [0.03, 0.03]]), certain([[0.9, 0.2], [0.1, 0.8]])
    found = diagnose(observe(CoupledOutput(scores(truth), honest, anyway), target))
    assert list(found) == ["indifference"]
    assert "another class explains the negative drawings as well" in found["indifference"]
    assert diagnose({"undominated_positive": 0.5}) == {}
    assert list(diagnose({"undominated_positive": 1.0, "swap_positive": 0.1})) == ["permutation"]  # says it already


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_swap_finds_any_pair(num_classes):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, num_classes, (1, 1, 9, 9), generator=generator)
    assert swap(scores(truth, num_classes), truth) == -1
    order = torch.arange(num_classes)
    order[[0, num_classes - 1]] = order[[num_classes - 1, 0]]
    assert swap(scores(order[truth], num_classes), truth) == 1


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        # Drawn as 0: 9 of 10 are called 1, 8 more than 0. Drawn as 1: 4 are called 0, 2 fewer than 1.
        ([[1, 9], [4, 6]], -0.2),
        # 0 and 1: by 0.5 and 0.2; 0 and 2: by -0.1 and 0.2; 1 and 2: by -0.1 and -0.4
        ([[2, 7, 1], [5, 3, 2], [6, 0, 4]], 0.2),
    ],
)
def test_swap_by_hand(shares, expected):
    table = torch.tensor(shares)
    pairs = table.nonzero().repeat_interleave(table[table > 0], 0)
    drawn, called = pairs.T[:, None, None]
    assert swap(scores(called, len(shares)), drawn) == pytest.approx(expected)


def test_numbers_by_hand():
    """Rows, not columns, are dominated; chance depends on the number of classes; "not k" is agreed to by another."""
    careless = dominance(certain([[0.9, 0.8], [0.1, 0.2]]))  # 0 is drawn for nearly everything
    assert careless == pytest.approx({"diagonal_mean": 0.55, "diagonal_min": 0.2, "undominated": 0.0})
    assert dominance(certain([[0.6, 0.4, 0.1], [0.3, 0.4, 0.5], [0.1, 0.2, 0.4]]))["undominated"] == pytest.approx(
        1 / 3
    )
    assert dominance(certain([[0.5, 0.5], [0.5, 0.5]]))["undominated"] == 1  # as large is large enough
    confusion = certain([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    segmented = torch.tensor([[[0, 1, 2, 2]]])
    target = Annotations(positive=torch.tensor([[[0, 1, 0, 255]]]), negative=torch.tensor([[[1, 1, 1, 0]]]))
    seen = observe(CoupledOutput(scores(segmented, 3), confusion, confusion), target)
    assert seen["agreement_positive"] == pytest.approx(2 / 3)
    assert seen["agreement_negative"] == pytest.approx(3 / 4)
    assert seen["chance_positive"] == seen["chance_negative"] == pytest.approx(2 / 3)
    assert seen["error_positive"] == pytest.approx(0.2)


def test_numbers_that_nothing_can_be_said_about():
    nothing = torch.full((1, 1, 4, 4), 255)
    logits = torch.zeros(1, 3, 4, 4)
    seen = observe(CoupledOutput(logits, IdentityConfusion(1), IdentityConfusion(1)), Annotations(nothing, nothing))
    assert seen == diagnose(seen) == {}
    confusion = certain([[0.5, 0.5], [0.5, 0.5]])
    ones = torch.ones(1, 1, 4, 4, dtype=torch.long)
    seen = observe(CoupledOutput(logits[:, :2], confusion, confusion), Annotations(nothing, ones))
    assert {name.rpartition("_")[2] for name in seen} == {"negative"}  # a blank drawing is none
    assert observe(CoupledOutput(logits), Annotations()) == {}


def test_error_and_contradiction_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    confusion = FullConfusion(torch.tensor([[0.8, 0.4], [0.2, 0.6]]).log().view(1, 1, 2, 2, 1).expand(1, 1, 2, 2, 2))
    assert estimated_error(logits, confusion, torch.tensor([[[1, 255]]])) == pytest.approx(0.3)  # 1 - (0.8 + 0.6) / 2
    positive, negative = torch.tensor([[[2, 2, 2, 255]]]), torch.tensor([[[2, 0, 255, 1]]])
    assert contradiction(Annotations(positive, negative), num_classes=3) == 0.5


def test_drawn_areas_by_hand():
    """Only what was drawn in both ways counts; of several annotators the mean of what each drew there."""
    positive = torch.tensor([[[1, 0, 0, 0, 255], [1, 1, 255, 0, 255]]])
    negative = torch.tensor([[[0, 0, 0, 1, 0]]])
    assert drawn_areas(Annotations(positive, negative)) == pytest.approx((3 / 7, 3 / 4))
    assert drawn_areas(Annotations(positive, torch.full_like(negative, 255))) is None
    assert drawn_areas(Annotations(positive=positive)) is drawn_areas(Annotations(negative=negative)) is None


@pytest.mark.parametrize(("level", "left_out"), [(1, True), (2, True), (3, False), (4, False), (5, False)])
def test_drawings_that_leave_much_out_are_said_to(level, left_out):
    vessels = fundus_photograph(seed=1, size=(240, 260)).vessels.astype(np.uint8)
    maps = [draw(profiles.level(level, kind), vessels, seed=0).annotation for kind in ("positive", "negative")]
    target = Annotations(*(torch.from_numpy(one)[None, None] for one in maps))
    found = diagnose(observe(CoupledOutput(scores(torch.from_numpy(vessels).long()[None, None])), target))
    assert ("left out" in found) == left_out
    if left_out:
        assert "Where structures are left out, train with loss#balance 0.5" in found["left out"]


def test_many_classes_are_not_asked_for_areas():
    drawing = torch.tensor([[[1, 2, 0]]])
    assert "claimed" not in observe(CoupledOutput(torch.zeros(1, 3, 3)), Annotations(drawing, drawing))
