from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceLoss
from scipy.ndimage import gaussian_filter

from medcoarse.baselines.blur_threshold import BlurThreshold
from medcoarse.baselines.fused_labels import METHODS, FuseAnnotationsd, fuse, fused_confusion
from medcoarse.baselines.partial import PartialLoss
from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.fusion.spatial_staple import spatial_staple
from medcoarse.fusion.staple import staple
from medcoarse.fusion.voting import majority_vote
from medcoarse.losses import CoupledLoss, dense_nll, partial_dice


def problem(classes=3, image=(6, 7), batch=2, drawn=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, *image, generator=generator, requires_grad=True)
    label = torch.randint(0, classes, (batch, 1, *image), generator=generator, dtype=torch.uint8)
    label[torch.rand(label.shape, generator=generator) > drawn] = 255
    return logits, label


@pytest.mark.parametrize("image", [(6, 7), (3, 4, 5)])
def test_dice_of_full_labels_is_monais(image):
    logits, label = problem(image=image, drawn=1.0)
    monai = DiceLoss(
        include_background=False, softmax=True, to_onehot_y=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    expected = monai(logits, label.long())
    assert partial_dice(logits.softmax(1), label).item() == pytest.approx(expected.item(), rel=1e-5)


def test_dice_of_some_pixels_is_dice_of_an_image_that_has_only_those():
    logits, label = problem()
    labelled = (label != 255).flatten()
    picked = logits.softmax(1).transpose(0, 1).flatten(1)[:, labelled][None]
    expected = partial_dice(picked, label.flatten()[labelled][None, None])
    assert partial_dice(logits.softmax(1), label).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("balanced", [False, True])
def test_undrawn_and_contradictory_pixels_teach_nothing(balanced):
    logits, _ = problem(classes=2, image=(1, 5), batch=1)
    positive = torch.tensor([[[[1, 0, 1, 255, 1]]]], dtype=torch.uint8)
    negative = torch.tensor([[[[0, 1, 1, 255, 255]]]], dtype=torch.uint8)
    loss = PartialLoss(2, balanced=balanced)
    value = loss(CoupledOutput(logits), Annotations(positive, negative))
    slope = torch.autograd.grad(value, logits)[0].abs().sum(1).flatten()
    assert (slope > 0).tolist() == [True, True, False, False, True]
    assert set(loss.parts) == {"drawn nll", "drawn dice"}


def test_without_balance_it_is_the_warm_up_with_dice():
    logits, label = problem(classes=2)
    target = Annotations(positive=label, label=label.flip(-1))
    ours = CoupledLoss(2, dice_weight=1.0)(CoupledOutput(logits), target)
    assert PartialLoss(2)(CoupledOutput(logits), target).item() == pytest.approx(ours.item(), rel=1e-6)


def test_masks_and_drawings_count_by_the_weight_of_dice():
    logits, drawn = problem(classes=2)
    _, label = problem(classes=2, drawn=0.3, seed=1)
    target = Annotations(positive=drawn, label=label)
    for balanced in (False, True):
        loss = PartialLoss(2, dice_weight=0.5, balanced=balanced)
        value = loss(CoupledOutput(logits), target)
        expected = [dense_nll(logits.log_softmax(1), one, balance=balanced) for one in (label, drawn)]
        dice = [partial_dice(logits.softmax(1), one) for one in (label, drawn)]
        assert value.item() == pytest.approx((sum(expected) + 0.5 * sum(dice)).item())
        names = ("label nll", "label dice", "drawn nll", "drawn dice")
        assert {name: loss.parts[name].item() for name in names} == pytest.approx(
            dict(zip(names, [expected[0].item(), dice[0].item(), expected[1].item(), dice[1].item()], strict=True))
        )


def test_nothing_drawn_costs_nothing():
    logits, label = problem(classes=2, drawn=0.0)
    value = PartialLoss(2, balanced=True)(CoupledOutput(logits), Annotations(positive=label))
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(value, logits)[0].abs().max() < 1e-6


def test_what_does_not_fit_is_refused():
    logits, label = problem(classes=2)
    with pytest.raises(ValueError, match="nothing to learn from"):
        PartialLoss(2)(CoupledOutput(logits), Annotations())
    with pytest.raises(ValueError, match="the loss is for 3 classes, the segmenter gives 2"):
        PartialLoss(3)(CoupledOutput(logits), Annotations(label))
    with pytest.raises(ValueError, match=r"must not be negative, got .*dice_weight=-1"):
        PartialLoss(2, dice_weight=-1)


def test_blur_and_threshold():
    rng = np.random.default_rng(0)
    image = rng.random((20, 30)).astype(np.float32)
    found = BlurThreshold(2, sigma=1.5, threshold=0.45)(torch.from_numpy(image)[None, None]).argmax(1)[0].numpy()
    blurred = gaussian_filter(image, 1.5, mode="constant", truncate=4)
    clear = np.abs(blurred - 0.45) > 1e-3
    assert (found == (blurred > 0.45))[clear].mean() > 0.999
    scores = BlurThreshold(2, sigma=1.5, threshold=0.45, steepness=8.0)(torch.ones(1, 1, 31, 31))[0, :, 15, 15]
    assert (scores[1] - scores[0]).item() == pytest.approx(8 * 0.55, rel=1e-3)  # the logit of class 1
    with pytest.raises(ValueError, match="one channel, got 3"):
        BlurThreshold(2)(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("size", [(9, 8), (5, 6, 4)])
def test_fused_labels_of_four_of_whom_one_errs(size):
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (1, 1, *size), generator=generator).to(torch.uint8)
    annotations = label.repeat(1, 4, *[1] * len(size))
    annotations[:, 3] = (annotations[:, 3] + 1) % 3
    annotations[:, 0].flatten()[:5] = 255
    for method in METHODS:
        assert torch.equal(fuse(annotations, 3, method), label), method
        fused = FuseAnnotationsd("positive", num_classes=3, method=method)({"positive": annotations[0]})
        assert torch.equal(fused["label"], label[0])


def test_a_label_that_is_there_can_be_left_alone():
    item = {"positive": torch.ones(3, 4, 4), "label": torch.zeros(1, 4, 4)}
    fused, kept = (FuseAnnotationsd("positive", method="majority", overwrite=o)(item)["label"] for o in (True, False))
    assert (fused == 1).all()
    assert kept is item["label"]
    missing = FuseAnnotationsd("positive", method="majority", overwrite=False)({"positive": item["positive"]})
    assert torch.equal(missing["label"], fused)


def test_a_fused_label_has_the_spacing_of_the_annotations(monkeypatch):
    """It decides how wide the window of Spatial STAPLE is, and what is simulated from the label afterwards."""
    seen = []

    def remember(annotations, num_classes, spacing):
        seen.append(spacing)
        return staple(annotations, num_classes)

    monkeypatch.setattr("medcoarse.baselines.fused_labels.spatial_staple", remember)
    affine = torch.diag(torch.tensor([0.5, 0.75, 3.0, 1.0], dtype=torch.float64))
    item = {"positive": MetaTensor(torch.randint(0, 2, (3, 6, 6, 4)), affine=affine)}
    label = FuseAnnotationsd("positive", method="spatial_staple")(item)["label"]
    assert seen == [pytest.approx((0.5, 0.75, 3.0))]
    assert torch.equal(label.affine, affine)
    assert label.dtype == torch.uint8
    FuseAnnotationsd("positive", method="spatial_staple", spacing=[1, 1, 2])(item)
    assert seen[1] == (1, 1, 2)


def test_fusion_with_what_it_does_not_know():
    with pytest.raises(ValueError, match="method must be one of majority, staple, spatial_staple, got 'mean'"):
        fuse(torch.zeros(1, 2, 4, 4), 2, "mean")
    nothing = torch.full((1, 3, 4, 4), 255)
    assert all((fuse(nothing, 2, method) == 255).all() for method in METHODS)


def annotated(seed, size=(12, 12)):
    """Three annotators who err; one of them says nothing of some voxels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (1, 1, *size), generator=generator)
    errs = torch.rand((1, 3, *size), generator=generator) < 0.25
    annotations = torch.where(errs, torch.randint(0, 3, errs.shape, generator=generator), label)
    annotations[:, 2, :3] = 255
    return annotations


@pytest.mark.parametrize("method", METHODS)
def test_matrices_of_a_fusion_are_counted_over_all_images(method):
    images = [annotated(seed) for seed in range(3)]
    counts = np.zeros((3, 3, 3))
    for drawn in images:
        if method == "majority":
            label = majority_vote(drawn, 3)
            truth = torch.cat([label == k for k in range(3)], 1).float()
        else:
            truth = (staple if method == "staple" else spatial_staple)(drawn, 3).probs
        for r, i, j in np.ndindex(3, 3, 3):
            counts[r, i, j] += truth[0, j][drawn[0, r] == i].double().sum().item()
    found = fused_confusion([{"positive": one[0]} for one in images], 3, method)
    np.testing.assert_allclose(found.numpy(), counts / counts.sum(1, keepdims=True), rtol=1e-6)


def test_matrices_of_one_image_are_staples_own():
    annotations = annotated(0)
    found = fused_confusion([{"positive": annotations[0]}], 3, "staple")
    assert torch.allclose(found.float(), staple(annotations, 3).cm[0], atol=1e-4)


def test_matrices_of_who_said_nothing_and_of_absent_classes():
    annotations = annotated(0)
    annotations[:, 1] = 255
    annotations[annotations == 2] = 1
    found = fused_confusion([{"positive": annotations[0]}], 3, "majority")
    assert found[1].isnan().all()
    assert found[0, :, 2].isnan().all()
    assert not found[0, :, :2].isnan().any()
    with pytest.raises(ValueError, match="method must be one of majority, staple, spatial_staple, got 'mean'"):
        fused_confusion([], 3, "mean")
