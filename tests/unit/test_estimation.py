"""Errors of confusion matrices against drawings that are made many times."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer

from medcoarse import annotators, metrics, morphology
from medcoarse.confusion import UNLABELED, sample_annotation
from medcoarse.estimation import AnnotatorReport, confusion_scores, counted_transition, estimate
from medcoarse.losses import CoupledLoss
from medcoarse.networks import AnnotatorNet, CoupledModel
from medcoarse.panels import AnnotatorMaps
from medcoarse.profiles import PROFILES
from medcoarse.report import ConfusionCase, confusion_sheet
from medcoarse.transforms import repeated
from medcoarse.transforms.array import SimulateCoarse, SimulateCoarseBatch
from medcoarse.transforms.repeated import count_drawings
from tests.reference.metrics_reference import drawing_errors


def counts_of(drawings, num_classes):
    """(1, 1, L, *S) out of (N, *S)."""
    return torch.stack([(drawings == k).sum(0) for k in range(num_classes)])[None, None]


def bar(*shape):
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    label[0, 4:12, 6:9] = 1
    return label


# the equations


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 2)])
@pytest.mark.parametrize("undrawn", [0.0, 0.6])
def test_errors_equal_those_of_plain_loops(shape, undrawn):
    rng = np.random.default_rng(len(shape))
    drawings = np.where(rng.random((7, *shape)) < undrawn, UNLABELED, rng.integers(3, size=(7, *shape)))
    label = np.where(rng.random(shape) < 0.2, UNLABELED, rng.integers(3, size=shape))
    cm = rng.dirichlet(np.ones(3), (3, *shape))  # (true, *S, observed)
    cm = np.moveaxis(cm, -1, 0)
    counts, true = counts_of(torch.from_numpy(drawings), 3), torch.from_numpy(label)[None, None]
    scores = confusion_scores(torch.from_numpy(cm)[None, None], counts, true, ["a"])
    assert (scores["cm_error"], scores["cm_error_local"]) == pytest.approx(drawing_errors(cm, drawings, label))


def test_golden_two_pixels_of_each_class():
    label = torch.tensor([[[0, 0, 1, 1]]])
    counts = torch.tensor([[[[4, 2, 1, 0], [0, 2, 3, 4]]]])  # class 0, class 1; four drawings
    cm = torch.tensor([[0.8, 0.2], [0.2, 0.8]])[None, None, :, :, None].expand(-1, -1, -1, -1, 4)
    assert metrics.repeated_confusion(counts, label)[0, 0].tolist() == [[0.75, 0.125], [0.25, 0.875]]
    # Off by 0.2, 0.3, 0.05, 0.2 pixel by pixel and by 0.05 and 0.075 in the pooled columns.
    local = math.sqrt((0.2**2 + 0.3**2 + 0.05**2 + 0.2**2) / 4)
    scores = confusion_scores(cm, counts, label, ["positive"])
    assert scores["cm_error_local"] == scores["cm_error_local_positive"] == pytest.approx(local)
    assert scores["cm_error"] == scores["cm_error_positive"] == pytest.approx(math.sqrt((0.05**2 + 0.075**2) / 2))


def test_a_pixel_counts_as_often_as_it_was_drawn():
    label, counts = torch.tensor([[[1, 1, 1]]]), torch.tensor([[[[9, 0, 0], [0, 1, 0]]]])
    cm = torch.eye(2)[None, None, :, :, None].expand(-1, -1, -1, -1, 3)  # right at the second pixel only
    assert metrics.local_confusion_error(cm, counts, label).item() == pytest.approx(math.sqrt(0.9))
    assert confusion_scores(cm, counts, label, ["a"])["cm_error"] == pytest.approx(0.9)


def test_matrices_that_are_right_err_by_chance_alone():
    """As one over the square root of the number of drawings, by the standard error of a share."""
    hit = torch.tensor([0.7, 0.9])
    cm = torch.stack([torch.stack([hit[0], 1 - hit[1]]), torch.stack([1 - hit[0], hit[1]])])
    label = (torch.arange(2500) % 2).view(1, 1, 50, 50)
    cm = cm[None, None, :, :, None, None].expand(-1, -1, -1, -1, 50, 50)
    generator = torch.Generator().manual_seed(0)
    for num_draws in (16, 256):
        drawings = torch.cat([sample_annotation(cm, label, generator)[0] for _ in range(num_draws)])
        error = metrics.local_confusion_error(cm, counts_of(drawings, 2), label).item()
        assert error == pytest.approx(math.sqrt((hit * (1 - hit)).mean() / num_draws), rel=0.05)
        assert confusion_scores(cm, counts_of(drawings, 2), label, ["a"])["cm_error"] < 0.02


def test_claiming_that_nobody_errs_costs_the_rate_of_errors():
    label = bar(16, 16)[None].long()
    wrong = counts_of(1 - label[0], 2)
    eye = torch.eye(2)[None, None, :, :, None, None].expand(-1, -1, -1, -1, 16, 16)
    assert metrics.local_confusion_error(eye, wrong, label).item() == 1
    half = wrong + counts_of(label[0], 2)
    assert metrics.local_confusion_error(eye, half, label).item() == pytest.approx(0.5)


def test_absent_class_unknown_truth_and_nothing_drawn():
    label, eye = torch.tensor([[[0, 0, 255]]]), torch.eye(2)[None, None, :, :, None].expand(-1, 2, -1, -1, 3)
    counts = torch.tensor([[[[3, 1, 0], [0, 2, 4]], [[0, 0, 4], [0, 0, 0]]]])  # the second drew on the unknown only
    assert metrics.repeated_confusion(counts, label)[0, 0].isnan().tolist() == [[False, True], [False, True]]
    assert metrics.repeated_confusion(counts, label)[0, 1].isnan().all()
    scores = confusion_scores(eye, counts, label, ["a", "b"])
    assert math.isnan(scores["cm_error_b"])
    assert math.isnan(scores["cm_error_local_b"])
    assert scores["cm_error"] == scores["cm_error_a"] == pytest.approx(1 / 3)
    assert scores["cm_error_local"] == pytest.approx(math.sqrt((2 / 3) ** 2 / 2))


def test_weights_of_a_mean_confusion():
    cm = torch.stack([torch.eye(2), 1 - torch.eye(2)], -1)[None, None]
    mean = metrics.mean_confusion(cm, weight=torch.tensor([[[3, 1]]]))
    assert mean[0, 0].tolist() == [[0.75, 0.25], [0.25, 0.75]]
    with pytest.raises(ValueError, match=r"weight must be \(B, R, \*S\) to match cm"):
        metrics.mean_confusion(cm, weight=torch.ones(1, 2, 2))


def test_shapes_that_do_not_match_are_refused():
    counts, label = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 4)
    for equation in (metrics.repeated_confusion, lambda c, y: metrics.local_confusion_error(torch.ones(1), c, y)):
        with pytest.raises(ValueError, match=r"counts must be \(B, R, L, \*S\) and label \(B, 1, \*S\), got"):
            equation(counts, label[..., :3])
    with pytest.raises(ValueError, match=r"cm must be \(B, R, L, L, \*S\) for counts"):
        metrics.local_confusion_error(torch.ones(1, 1, 2, 2, 3), counts, label)


# the drawings


def test_drawings_are_repeated_at_the_spacing_of_the_mask():
    """In mm: someone who draws 2 mm too much does so whatever the voxels, unless the spacing is said."""
    label = bar(16, 16, 5).to(torch.uint8)
    meta = MetaTensor(label, affine=torch.diag(torch.tensor([1.0, 0.5, 3.0, 1.0])))
    for own, used in ((None, (1.0, 0.5, 3.0)), (1.0, (1.0, 1.0, 1.0))):
        drawn = count_drawings(SimulateCoarseBatch("dhe_over", spacing=own), meta, num_draws=2)[0, 1] == 2
        assert np.array_equal(drawn.numpy(), morphology.thicken(label[0].numpy() == 1, 2.0, used))
    slices = MetaTensor(label[..., 0], affine=meta.affine)
    drawn = count_drawings(SimulateCoarseBatch("dhe_over"), slices, num_draws=1)[0, 1] == 1
    assert np.array_equal(drawn.numpy(), morphology.thicken(label[0, ..., 0].numpy() == 1, 2.0, (1.0, 0.5)))


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3)])
def test_counts_are_those_of_drawing_one_after_the_other(shape, monkeypatch):
    seeds = []
    original = SimulateCoarseBatch.__call__
    simulate = SimulateCoarseBatch("coarse_positive", ["coarse_negative", "stroke_negative"], spacing=1.0)
    monkeypatch.setattr(SimulateCoarseBatch, "__call__", lambda *a: seeds.extend(a[2]) or original(*a))
    monkeypatch.setattr(repeated, "_PIXELS", 3 * math.prod(shape))  # three at a time
    label = bar(*shape)
    counts = count_drawings(simulate, label, num_draws=8)
    assert len(set(seeds)) == 8
    expected = np.zeros((3, 2, *shape), int)
    who = [("coarse_positive", (0, 0)), ("coarse_negative", (1, 0)), ("stroke_negative", (1, 1))]
    for seed in seeds:
        for r, (name, own) in enumerate(who):
            drawn = annotators.draw(PROFILES[name], label[0].numpy(), 1, 1.0, np.random.default_rng([0, seed, *own]))
            for k in range(2):
                expected[r, k] += drawn.annotation == k
    assert (counts.numpy() == expected).all()
    assert counts[:2].sum(1).unique().tolist() == [8]
    assert counts[2].sum(0).min() == 0, "strokes leave pixels undrawn"


def test_counts_depend_on_seed_and_mask_alone():
    def counts(label, seed=0):
        return count_drawings(SimulateCoarseBatch("mnist_mild_positive", seed=seed), label, 4)

    assert torch.equal(counts(bar(16, 16)), counts(MetaTensor(bar(16, 16).float())))
    assert not torch.equal(counts(bar(16, 16)), counts(bar(16, 16), seed=1))
    once = count_drawings(SimulateCoarseBatch("mnist_mild_positive"), bar(16, 16), 1)
    drawn = SimulateCoarse("mnist_mild_positive")(bar(16, 16))
    assert not torch.equal(once[0, 1], (drawn[0] == 1).long()), "the drawing that trains is not one of them"
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        count_drawings(SimulateCoarseBatch("good"), bar(16, 16), 0)


# the networks


def coupled(structure, num_positive=1, num_negative=1):
    torch.manual_seed(0)
    backbone = torch.nn.Conv2d(1, 4, 3, padding=1) if structure == "full" else None
    annotator = AnnotatorNet(backbone, 2, 4, 2, num_positive, num_negative, structure)
    return CoupledModel(torch.nn.Conv2d(1, 2, 1), annotator)


@pytest.mark.parametrize("structure", ["full", "global", "identity"])
def test_estimates_of_any_structure_and_size(structure):
    model, image = coupled(structure, 2, 1), torch.rand(1, 1, 19, 23)
    if structure == "full":
        torch.nn.init.normal_(model.annotator.head.weight)
    whole = estimate(model, image, SimpleInferer()).cm
    windows = estimate(model, image, SlidingWindowInferer((8, 8), overlap=0.25, mode="gaussian")).cm
    assert whole.shape == windows.shape == (1, 3, 2, 2, 19, 23)
    assert torch.allclose(windows.sum(2), torch.ones(1), atol=1e-5)
    assert model.training
    if structure != "full":
        assert torch.allclose(windows, whole, atol=1e-6)
        assert whole[0, :, 0, 0].mean().item() == pytest.approx({"global": 0.9, "identity": 1.0}[structure])


# the report


def items(simulate, *labels):
    for label in labels:
        drawings = zip(("positive", "negative"), simulate(label[None]), strict=True)
        image = MetaTensor(label.float(), meta={"filename_or_obj": "folder/one.png"})
        yield {"image": image, "label": label} | {kind: one[0] for kind, one in drawings if one.shape[1]}


def reported(tmp_path, data, model, simulate, **options):
    report = AnnotatorReport(
        model, CoupledLoss(2), data, simulate, SimpleInferer(), ["background", "bar"],
        tmp_path / "evaluation.json", tmp_path / "confusion.png", **options,
    )  # fmt: skip
    evaluator = Engine(lambda engine, batch: None)
    report.attach(evaluator)
    evaluator.run([0])
    return json.loads((tmp_path / "evaluation.json").read_text())


def test_report_adds_to_what_the_evaluation_wrote(tmp_path):
    (tmp_path / "evaluation.json").write_text('{"num_images": 9}')
    simulate = SimulateCoarseBatch("good", "mnist_heavy_negative", spacing=1.0)
    data = list(items(simulate, bar(24, 24), bar(24, 28), bar(24, 32)))
    content = reported(tmp_path, data, coupled("global"), simulate, num_draws=4, num_images=2)
    assert content["num_images"] == 9
    found = content["annotators"]
    assert (found["num_images"], found["num_draws"]) == (2, 4)
    assert [row.pop("name") for row in found["images"]] == ["one.png", "one.png"]
    # Who never errs, said to err in one pixel of ten.
    assert found["image"]["cm_error_positive"] == pytest.approx(0.1, abs=1e-6)
    assert found["image"]["cm_error_local_positive"] == pytest.approx(0.1, abs=1e-6)
    assert found["identity"]["cm_error_positive"] == 0
    for name, value in found["image"].items():
        assert value == pytest.approx(np.mean([row[name] for row in found["images"]]))
    assert (tmp_path / "confusion.png").stat().st_size > 10_000


def test_negative_annotators_are_scored_by_what_they_ruled_out(tmp_path):
    """A perfect one rules out the other class: `M A` with the swap."""
    simulate = SimulateCoarseBatch((), {"kind": "negative"}, spacing=1.0)
    data = list(items(simulate, bar(24, 24)))
    content = reported(tmp_path, data, coupled("identity", 0, 1), simulate, num_draws=2)
    assert list(content["annotators"]["image"].values()) == [0, 0, 0, 0]
    assert set(content["annotators"]["image"]) > {"cm_error_negative", "cm_error_local_negative"}


def test_several_annotators_have_numbers_and_blank_ones_no_score(tmp_path):
    simulate = SimulateCoarseBatch(["good", "blank"], (), spacing=1.0)
    content = reported(tmp_path, list(items(simulate, bar(24, 24))), coupled("identity", 2, 0), simulate, num_draws=2)
    found = content["annotators"]["image"]
    assert found["cm_error_positive_1"] == found["cm_error"] == 0
    assert found["cm_error_positive_2"] is found["cm_error_local_positive_2"] is None


def test_nothing_outside_the_field_of_view_is_scored(tmp_path):
    simulate = SimulateCoarseBatch("over", (), spacing=1.0)  # 2 pixels too thick everywhere
    [item] = items(simulate, bar(24, 24))
    for inside, error in ((item["label"] * 255, 0.0), (torch.ones(1, 24, 24), 0.2)):
        data = [{**item, "mask": inside}]
        content = reported(tmp_path, data, coupled("identity", 1, 0), simulate, num_draws=2, mask_key="mask")
        found = content["annotators"]["image"]["cm_error_local"]
        assert found == 0 if error == 0 else found > error


def test_tables_that_a_method_estimated_take_the_place_of_the_networks(tmp_path):
    """Too thick by two pixels: which share of the background is drawn differs from image to image."""
    simulate = SimulateCoarseBatch(["over", "good"], (), spacing=1.0)
    data = list(items(simulate, bar(24, 24), bar(24, 32)))
    tables = torch.tensor([[[0.7, 0.1], [0.3, 0.9]], [[1.0, 0.0], [0.0, 1.0]]])
    found = reported(tmp_path, data, coupled("global", 2, 0), simulate, num_draws=1, tables=tables)["annotators"]
    errors = []
    for item in data:
        drawn, label = item["positive"][0], item["label"][0]
        shares = [(drawn[label == k] == 1).float().mean().item() for k in (0, 1)]
        errors.append(np.sqrt(np.mean([(shares[0] - 0.3) ** 2] * 2 + [(shares[1] - 0.9) ** 2] * 2)))
    assert [row["cm_error_positive_1"] for row in found["images"]] == pytest.approx(errors, rel=1e-5)
    assert errors[0] != pytest.approx(errors[1], rel=0.01)
    assert found["image"]["cm_error_positive_2"] == 0


def test_a_method_without_matrices_has_no_score_and_half_a_matrix_none_either(tmp_path):
    simulate = SimulateCoarseBatch(["over", "good"], (), spacing=1.0)
    data = list(items(simulate, bar(24, 24)))
    found = reported(tmp_path, data, coupled("global", 2, 0), simulate, num_draws=1, tables=math.nan)["annotators"]
    assert set(found["image"].values()) == {None}, "empty, and not zero"
    assert found["identity"]["cm_error"] > 0
    half = torch.eye(2).repeat(2, 1, 1)
    half[0, :, 1] = math.nan  # a class that was in no fused label
    found = reported(tmp_path, data, coupled("global", 2, 0), simulate, num_draws=1, tables=half)["annotators"]
    assert (found["image"]["cm_error_positive_1"], found["image"]["cm_error_positive_2"]) == (None, 0)
    with pytest.raises(ValueError, match=r"one matrix for each annotator, \(2, 2, 2\), got \(1, 2, 2\)"):
        reported(tmp_path, data, coupled("global", 2, 0), simulate, tables=torch.eye(2)[None])


def test_other_annotators_than_the_model_has_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"as many .* as those who draw, got \(1, 1\) and \(2, 0\)"):
        reported(tmp_path, [], coupled("identity"), SimulateCoarseBatch(["good", "over"]))


# the sheet


@pytest.mark.parametrize(("shape", "num_classes", "columns"), [((12, 9), 2, 4), ((12, 9), 6, 4), ((8, 7, 5), 3, 3)])
def test_sheet_of_flat_images_volumes_and_many_classes(shape, num_classes, columns):
    rng = np.random.default_rng(0)
    label, drawing = rng.integers(num_classes, size=(1, *shape)), rng.integers(num_classes, size=shape)
    cm = np.full((num_classes, num_classes, *shape), 1 / num_classes)
    share = np.full((num_classes, *shape), 1 / num_classes)
    share[:, 0] = np.nan  # nothing was drawn there
    maps = [AnnotatorMaps(name, drawing, cm, share) for name in ("positive", "negative_2")]
    figure = confusion_sheet(
        [ConfusionCase("one", rng.random((1, *shape)), label, maps)], [], list("abcdef"[:num_classes])
    )
    figure.canvas.draw()
    assert len(figure.axes) == 2 * (2 + 2 * columns) + 1
    assert {text.get_text() for text in figure.texts} >= {"one, positive", "one, negative 2", "true A", "true M A"}
    titles = [figure.axes[2 + row * (2 + 2 * columns)].get_title("left")[:5] for row in range(2)]
    assert titles == ["drawn", "ruled"]
    true = figure.axes[2 + columns].images[0].get_array()
    assert true.shape == shape[1::-1], "axis 0 runs to the right"
    assert true.mask[:, 0].all()
    assert not true.mask.all()


def test_sheet_shows_what_it_is_given():
    label = np.array([[[0, 1]]]).repeat(6, 1)
    cm = np.array([[[[0.9, 0.8]], [[0.3, 0.2]]], [[[0.1, 0.2]], [[0.7, 0.8]]]]).repeat(6, 2)  # (observed, true, 6, 2)
    share = np.array([[[1.0, 0.25]], [[0.0, 0.75]]]).repeat(6, 1)
    case = ConfusionCase("one", np.zeros((1, 6, 2)), label, [AnnotatorMaps("positive", label[0], cm, share)])
    axes = confusion_sheet([case], [], ["a", "b"], indexing="ij").axes
    shown = {ax.get_title("left"): [] for ax in axes[2:10]}
    for ax in axes[2:10]:
        shown[ax.get_title("left")].append(ax.images[0].get_array()[:1].tolist())
    assert shown["drawn: b\ntrue: b"] == [[[0.7, 0.8]], [[None, 0.75]]]
    assert shown["drawn: a\ntrue: b"][1] == [[None, 0.25]]
    assert shown["drawn: b\ntrue: a"] == [[[0.1, 0.2]], [[0.0, None]]]
    with pytest.raises(ValueError, match="at least one case"):
        confusion_sheet([], [])


def test_what_negative_drawings_rule_out_is_counted_as_a_loop_would():
    rng, classes = np.random.default_rng(0), 4
    items = []
    for _ in range(3):
        label = rng.choice([0, 1, 2, 255], (1, 6, 5))  # 3 occurs nowhere
        negative = rng.choice([0, 1, 2, 3, 255], (2, 6, 5))
        items.append({"label": torch.as_tensor(label), "negative": torch.as_tensor(negative)})
    counts = np.ones((classes, classes))
    for item in items:
        for drawing in item["negative"].tolist():
            for row, true_row in zip(drawing, item["label"][0].tolist(), strict=True):
                for said, true in zip(row, true_row, strict=True):
                    if 255 not in (said, true):
                        counts[said, true] += 1
    np.fill_diagonal(counts, 0)
    found = counted_transition([*items, {"label": items[0]["label"]}], classes)
    np.testing.assert_allclose(found.numpy(), counts / counts.sum(0), rtol=1e-6)
    assert found[:3, 3].tolist() == pytest.approx([1 / 3] * 3), "of a class that was not seen nothing is known"
    CoupledLoss(classes, transition=found)
    with pytest.raises(ValueError, match="no item has both a mask and negative drawings"):
        counted_transition([{"label": items[0]["label"]}], classes)
