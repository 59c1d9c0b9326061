"""LC-MIL, adapted: its classifier, its bags, and what becomes of wrong labels; label maps made before training."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
from monai.data import Dataset
from monai.networks.nets import MILModel
from torch import nn

from medcoarse.baselines.lc_mil import LCMIL, PatchClassifiers, _bags, _padded, _patches, _windows
from medcoarse.baselines.pseudo_labels import PseudoLabeld, prepare_pseudo_labels
from medcoarse.confusion import Annotations
from tests.cases import disc

QUICK = {"patch_size": 3, "num_bags": 200}


def classifiers(num=3, shape=(2, 3, 3), width=8):
    """Each with weights of its own, biases included."""
    generator = torch.Generator().manual_seed(0)
    made = PatchClassifiers(num, shape, width, generator)
    for one in (*made.weights, *made.biases):
        one.data = torch.randn(one.shape, generator=generator) * 0.5
    return made


def case(num=1, size=(24, 30), noise=0.1, seed=0):
    """Discs, brighter than what is around them."""
    truth = torch.stack([torch.from_numpy(disc(size, shift=n)) for n in range(num)])[:, None]
    generator = torch.Generator().manual_seed(seed)
    return truth + noise * torch.randn(truth.shape, generator=generator), truth


# the classifier


def test_attention_and_score_are_those_of_monai():
    classify = classifiers()
    patches = torch.rand(3, 4, 5, 2, 3, 3)
    with torch.no_grad():
        features = torch.unflatten(classify.features(patches.flatten(1, 2)), 1, (4, 5))
        found = classify.bags(features, torch.ones(4, 5, dtype=torch.bool))
    for n in range(3):
        layers = [nn.Linear(18, 8), nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(2, 1)]
        backbone = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU())
        model = MILModel(1, "att", backbone=backbone, backbone_num_features=8)
        model.attention = nn.Sequential(layers[2], nn.Tanh(), layers[3])
        for layer, weight, bias in zip([*layers, model.myfc], classify.weights, classify.biases, strict=True):
            layer.weight.data, layer.bias.data = weight[n].T, bias[n, 0]
        assert torch.allclose(found[n], model(patches[n])[:, 0], atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 6), (5, 4, 6)])
def test_a_bag_of_one_patch_has_the_score_of_that_patch_in_the_map(size, stride):
    classify = classifiers(shape=(2, *[3] * len(size)))
    images = torch.rand(3, 2, *size)
    padded = _padded(images, 1)
    scores = classify.score_map(padded, stride).flatten(1)
    windows = _windows(padded, 3, stride)
    numbers = torch.arange(scores.shape[1]).expand(3, -1)
    features = classify.features(_patches(windows, numbers))
    bags = classify.bags(features[:, :, None], torch.ones(scores.shape[1], 1, dtype=torch.bool))
    assert torch.allclose(bags, scores, atol=1e-5)


def test_patches_that_are_not_in_a_bag_do_not_count():
    classify = classifiers()
    features = torch.rand(3, 2, 4, 8)
    there = torch.tensor([[True, True, False, False], [True, True, True, True]])
    short = classify.bags(features[:, :1, :2], there[:1, :2])
    assert torch.allclose(classify.bags(features, there)[:, :1], short, atol=1e-6)


def test_a_patch_is_what_surrounds_its_pixel():
    image = torch.arange(30.0).view(1, 1, 5, 6)
    patches = _patches(_windows(_padded(image, 1), 3, 2), torch.arange(9)[None])
    assert patches[0, 4, 0].tolist() == [[7, 8, 9], [13, 14, 15], [19, 20, 21]], "around row 2, column 2"
    assert patches[0, 0, 0].tolist() == [[7, 6, 7], [1, 0, 1], [7, 6, 7]], "mirrored at the border"
    assert _padded(torch.ones(1, 1, 1, 2), 4).shape == (1, 1, 9, 10)


# bags


def test_bags_hold_ten_patches_on_average_of_their_own_side():
    inside = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    sides = [(side.byte().argsort(stable=True, dim=1, descending=True), side.sum(1)) for side in (inside, ~inside)]
    chosen, there = _bags(sides, 4000, torch.Generator().manual_seed(0))
    assert there.sum(1).float().mean().item() == pytest.approx(10, abs=0.1)
    assert there.sum(1).float().var().item() == pytest.approx(5, abs=0.4)
    for n in range(2):
        for half, side in zip(chosen[n].chunk(2), (inside, ~inside), strict=True):
            counts = torch.bincount(half.flatten(), minlength=6) / half.numel()
            assert torch.allclose(counts, side[n] / side[n].sum(), atol=0.01)


# what it is for


def test_of_labels_a_fifth_of_which_is_wrong_most_are_put_right():
    image, truth = case()
    flipped = torch.rand(truth.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    given = torch.where(flipped, 1 - truth, truth)
    (refined,) = LCMIL(patch_size=3)([image[0]], [Annotations(given[0])])
    right = [(one == truth[0]).float().mean().item() for one in (given[0], refined)]
    assert right[0] == pytest.approx(0.8, abs=0.03)
    assert right[1] > 0.97


def test_no_image_enters_anothers():
    image, truth = case(3)
    drawn = [Annotations(one.roll(2, 2)) for one in truth]
    refine = LCMIL(**QUICK)
    together = refine(list(image), drawn)
    for n in range(3):
        assert torch.equal(together[n], refine([image[n]], [drawn[n]])[0])
    other = refine([image[0], 1 - image[1], torch.zeros_like(image[2])], drawn)
    assert torch.equal(other[0], together[0])
    assert not torch.equal(other[1], together[1])


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_positive_and_negative_drawings_of_volumes_and_images(stride):
    image, truth = case(2, size=(21, 24))
    drawings = [Annotations(torch.cat([one, one.roll(1, 1)]), 1 - one.roll(1, 2)) for one in truth]
    refined = LCMIL(patch_size=3, stride=stride)(list(image), drawings)
    wrong = [(one != other).float().mean() for one, other in zip(refined, truth, strict=True)]
    assert max(wrong) < (0.04, 0.06, 0.08)[stride - 1]
    volume, mask = image[0, :, :8, None].expand(-1, -1, 4, -1), truth[0, :, :8, None].expand(-1, -1, 4, -1)
    (found,) = LCMIL(patch_size=3, num_bags=60, stride=stride)([volume], [Annotations(mask)])
    assert found.shape == mask.shape


def test_classes_are_refined_one_against_the_rest():
    image, truth = case(1)
    classes = truth * (1 + (torch.arange(30) >= 15)).view(1, 1, 1, -1)
    shown = torch.cat([image[0], 2 * image[0] * (classes[0] == 2)])
    drawn = classes[0].roll(2, 1)
    (refined,) = LCMIL(3, patch_size=3)([shown], [Annotations(drawn)])
    assert set(refined.unique().tolist()) == {0, 1, 2}
    assert (refined != classes[0]).sum() < 0.5 * (drawn != classes[0]).sum()


@pytest.mark.parametrize("value", [0, 1, 255])
def test_where_there_is_nothing_to_tell_apart_the_drawing_stays(value):
    image, truth = case(2)
    drawn = [Annotations(torch.full_like(truth[0], value)), Annotations(truth[1])]
    refined = LCMIL(**QUICK)(list(image), drawn)
    assert (refined[0] == value).all()
    assert (refined[1] == truth[1]).float().mean() > 0.95


def test_images_of_several_sizes_down_to_a_pixel():
    images = [torch.rand(1, *size) for size in ((5, 7), (1, 1), (1, 9), (5, 7))]
    drawn = [Annotations((one > 0.5).long()) for one in images]
    found = LCMIL(patch_size=5, num_bags=40)(images, drawn)
    assert [one.shape for one in found] == [one.shape for one in images]
    with pytest.raises(ValueError, match="must be odd, got 4"):
        LCMIL(patch_size=4)


# label maps made before training


@dataclass(frozen=True)
class Copied:
    """Counts how often it is asked."""

    offset: int = 0

    def __call__(self, images, known):
        calls.append(len(images))
        return [one.positive + self.offset for one in known]


calls: list[int] = []


def drawn_dataset(value=0):
    def draw(item):
        image = torch.full((1, 2), float(item["image"][0] == "b"))
        return {"image": image, "positive": torch.tensor([[value, 1]])}

    return Dataset([{"image": "a.png"}, {"image": "b.png"}], draw)


def test_label_maps_are_made_once_for_each_setting_and_each_drawing(tmp_path):
    calls.clear()
    first = prepare_pseudo_labels(drawn_dataset(), Copied(), tmp_path)
    assert list(first) == ["a.png", "b.png"]
    assert first["a.png"].tolist() == [[0, 1]]
    again = prepare_pseudo_labels(drawn_dataset(), Copied(), tmp_path)
    assert (calls, again.keys()) == ([2], first.keys())
    assert prepare_pseudo_labels(drawn_dataset(), Copied(3), tmp_path)["a.png"].tolist() == [[3, 4]]
    assert prepare_pseudo_labels(drawn_dataset(7), Copied(), tmp_path)["a.png"].tolist() == [[7, 1]]
    assert calls == [2, 2, 2]
    names = sorted(path.name.rsplit("_", 1)[0] for path in tmp_path.iterdir())
    assert names == ["Copied_offset=0", "Copied_offset=0", "Copied_offset=3"]


def test_a_kill_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_pseudo_labels(drawn_dataset(), Copied(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_item_gets_its_own_label_map():
    give = PseudoLabeld({"a.png": torch.tensor([[1]])})
    item = give({"source": "a.png", "label": torch.tensor([[0]])})
    assert item["label"].tolist() == [[1]]
    item["label"][:] = 5
    assert give({"source": "a.png"})["label"].tolist() == [[1]]
    with pytest.raises(KeyError, match=r"no label map was made of b\.png"):
        give({"source": "b.png"})
