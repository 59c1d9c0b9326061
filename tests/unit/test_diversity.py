"""Sets of segmentations against sets of annotations, while an engine evaluates."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from torch import nn

from medcoarse import diversity
from medcoarse.baselines.per_annotator import PerAnnotator
from medcoarse.baselines.probabilistic_unet import ProbabilisticUNet
from medcoarse.diversity import DistributionReport, label_maps, members
from medcoarse.networks import AnnotatorNet, CoupledModel
from tests.reference.distribution_reference import energy_distance


class Fixed(nn.Module):
    """A segmenter whose members say the same everywhere: class probabilities (N, L)."""

    def __init__(self, shares):
        super().__init__()
        self.shares = nn.Parameter(torch.tensor(shares))

    def forward(self, image):
        return self.members(image).mean(1).log()

    def members(self, image):
        shape = (*self.shares.shape, *image.shape[2:])
        spread = self.shares.view(*self.shares.shape, *(1,) * (image.ndim - 2)).expand(shape)
        return spread.expand(len(image), *shape)


def coupled(segmenter, annotators=5, classes=2, spatial_dims=2, structure="full", reduction=1):
    channels = 4
    backbone = nn.Conv2d(1, channels, 1) if spatial_dims == 2 else nn.Conv3d(1, channels, 1)
    net = AnnotatorNet(
        None if structure in ("global", "identity") else backbone, spatial_dims, channels, classes, annotators, 0,
        structure=structure, reduction=reduction, diagonal_floor=0.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():  # annotators who err
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return CoupledModel(segmenter, net)


def items(number=3, annotators=4, classes=2, size=(6, 7)):
    generator = torch.Generator().manual_seed(0)
    for n in range(number):
        image = MetaTensor(torch.rand(1, *size, generator=generator), meta={"filename_or_obj": f"folder/{n}.png"})
        positive = torch.randint(0, classes, (annotators, *size), generator=generator, dtype=torch.uint8)
        positive[0, 0] = 255
        mask = torch.rand(1, *size, generator=generator) < 0.8
        yield {"image": image, "positive": positive, "mask": mask}


def report(model, data, path, inferer=None, classes=2, **options):
    """What the report writes of an evaluation of these items, one a batch."""
    found = DistributionReport(model, inferer or SimpleInferer(), classes, path, **options)
    engine = Engine(lambda *_: None)
    found.attach(engine)
    engine.run([[item] for item in data])
    return json.loads(path.read_text())["distribution"]


@pytest.mark.parametrize(
    ("structure", "reduction", "size", "classes"),
    [("full", 1, (6, 7), 2), ("full", 2, (6, 8), 3), ("low_rank", 1, (3, 4, 5), 3), ("global", 1, (6, 7), 2)],
)
def test_members_of_coupled_networks_are_what_each_annotator_would_draw(structure, reduction, size, classes):
    segmenter = (nn.Conv2d if len(size) == 2 else nn.Conv3d)(1, classes, 1)
    model = coupled(segmenter, 3, classes, len(size), structure, reduction)
    image = torch.rand(2, 1, *size)
    with torch.no_grad():
        output = model.couple(image)
        probs, cm = output.logits.softmax(1), output.positive.dense()
        found = members(model, image)
    cm = cm.view(*cm.shape, *(1,) * (4 + len(size) - cm.ndim)).expand(2, 3, classes, classes, *size)
    expected = torch.zeros_like(found)
    for observed in range(classes):
        for true in range(classes):
            expected[:, :, observed] += cm[:, :, observed, true] * probs[:, None, true]
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_segmenter_that_has_several_is_asked_itself():
    image = torch.rand(2, 1, 8, 8)
    networks = (
        PerAnnotator(lambda: nn.Conv2d(1, 2, 1), 3),
        ProbabilisticUNet(2, 1, 2, channels=(4, 8), strides=(2,), num_samples=7),
    )
    for network, number in zip(networks, (3, 7), strict=True):
        model = coupled(network).eval()
        assert torch.equal(members(model, image), network.members(image))
        assert members(model, image).shape == (2, number, 2, 8, 8)


def test_who_errs_by_no_matrix_draws_the_segmentation():
    model = coupled(UNet(2, 1, 2, channels=(4, 8), strides=(2,)), structure="identity")
    image = torch.rand(1, 1, 8, 8)
    assert torch.equal(label_maps(members(model, image)), model.segmenter(image).argmax(1)[:, None].expand(1, 5, 8, 8))


@pytest.mark.parametrize("overlap", ["dice", "iou"])
def test_distances_are_those_of_plain_loops(tmp_path, overlap):
    model = coupled(nn.Conv2d(1, 3, 1), annotators=2, classes=3).eval()
    data = list(items(classes=3))
    found = report(model, data, tmp_path / "evaluation.json", classes=3, mask_key="mask")
    expected = []
    for item in data:
        with torch.no_grad():
            output = model.couple(item["image"].as_tensor()[None])
            probs, cm = output.logits.softmax(1)[0].numpy(), output.positive.dense()[0].numpy()
        drawn = np.einsum("rot...,t...->ro...", cm, probs).argmax(1)
        sets = drawn, item["positive"].numpy()
        expected.append(energy_distance(*sets, [1] * 2, [1] * 4, False, 3, overlap, False, item["mask"][0].numpy()))
    assert [one[f"ged_{overlap}"] for one in found["images"]] == pytest.approx(expected)
    assert found["image"][f"ged_{overlap}"] == pytest.approx(np.mean(expected))
    assert (found["num_images"], found["images"][1]["name"]) == (3, "1.png")
    assert (found["images"][0]["num_segmentations"], found["images"][0]["num_annotations"]) == (2, 4)


def test_who_draws_as_the_annotators_do_is_at_no_distance(tmp_path):
    """Also in other proportions of the numbers: what counts is the distribution."""
    item = next(items(size=(4, 4), annotators=3))
    item["positive"] = torch.stack([torch.full((4, 4), k, dtype=torch.uint8) for k in (0, 1, 1)])
    same, other = Fixed([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]] * 2), Fixed([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    distances = [report(coupled(one), [item], tmp_path / "e.json")["image"]["ged_iou"] for one in (same, other)]
    assert distances == pytest.approx([0, 2 * (1 / 3) ** 2])  # 2 (p - q)²: of each set, which share is empty


def test_windows_are_blended_before_label_maps_are_made(tmp_path):
    segmenter = nn.Conv2d(1, 2, 1)
    model, data = coupled(segmenter, 2), list(items(size=(12, 12)))
    whole = report(model, data, tmp_path / "a.json")
    windows = report(model, data, tmp_path / "b.json", SlidingWindowInferer((8, 8), overlap=0.5, mode="gaussian"))
    assert windows == whole, "networks of 1 x 1 convolutions see the same in a window"


def test_what_the_file_holds_stays(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text('{"image": {"mean_iou": 0.5}}')
    report(coupled(nn.Conv2d(1, 2, 1)), items(), path)
    assert json.loads(path.read_text())["image"] == {"mean_iou": 0.5}


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_samples_keep_the_probabilities_of_each_pixel(classes):
    probs = torch.rand(2, 3, classes, 4, 5, generator=torch.Generator().manual_seed(0)).softmax(2)
    drawn = label_maps(probs, num_samples=3 * 4096).unflatten(1, (3, 4096))
    shares = torch.stack([(drawn == k).float().mean(2) for k in range(classes)], 2)
    assert torch.allclose(shares, probs, atol=6e-3)
    assert drawn.dtype == torch.uint8


def test_what_is_unsure_changes_as_a_whole():
    """Of two classes: a pixel that is foreground takes along all that are likelier to be."""
    shares = torch.rand(40, generator=torch.Generator().manual_seed(0))
    [drawn] = label_maps(torch.stack([1 - shares, shares])[None, None], num_samples=64)
    sizes = drawn.sum(1)
    assert torch.equal(drawn[:, shares.argsort(descending=True)], (torch.arange(40) < sizes[:, None]).to(torch.uint8))
    assert len(sizes.unique()) > 20


def test_members_that_are_alike_are_sampled_apart():
    probs = torch.rand(1, 1, 2, 50, generator=torch.Generator().manual_seed(0)).softmax(2).expand(1, 3, 2, 50)
    first, second, third = label_maps(probs, num_samples=60)[0].unflatten(0, (3, 20))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_matrices_that_nobody_trained_say_nothing_of_annotators(tmp_path):
    """Taken at their word they would let a tenth of the people see no digit at all."""
    segmenter = Fixed([[0.0, 1.0]])
    segmenter.members = None  # gives one segmentation
    segmenter.forward = lambda image: (
        torch.tensor([-50.0, 50.0]).view(1, 2, 1, 1).expand(len(image), 2, *image.shape[2:])
    )
    model = CoupledModel(segmenter, AnnotatorNet(None, 2, 0, 2, 5, 0, structure="global")).eval()
    image = torch.rand(1, 1, 8, 8)
    assert label_maps(members(model, image), 100).unique().tolist() == [0, 1]
    assert members(model, image, learned=False).shape == (1, 1, 2, 8, 8)
    assert label_maps(members(model, image, learned=False), 100).unique().tolist() == [1]
    found = [
        report(model, items(1), tmp_path / "e.json", num_samples=100, learned=one)["image"] for one in (False, True)
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("classes", [2, 4])
def test_samples_are_the_likeliest_classes_however_many_are_made_at_once(monkeypatch, at_once, classes):
    probs = torch.rand(2, 3, classes, 5, 4).softmax(2)
    probs[:, :, 0, 0] = 0  # what is impossible stays so
    chances = []

    def seen(scores, dim):
        chances.append(scores)
        return likeliest(scores, dim)

    likeliest = diversity._likeliest
    monkeypatch.setattr(diversity, "_BLOCK_NUMBERS", at_once * probs[:, :, 0].numel())
    monkeypatch.setattr(diversity, "_likeliest", seen)
    samples = label_maps(probs, num_samples=30)
    assert len(chances) == -(-10 // at_once)
    assert (samples.view(2, 3, 10, 5, 4) == torch.cat(chances, 2).argmax(3)).all()
    assert (samples[:, :, 0] != 0).all()


def test_every_member_has_as_many_samples():
    """As many as fit, and what is certain is never sampled otherwise."""
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])[None, :, :, None]
    drawn = label_maps(probs, num_samples=41)
    assert drawn.shape == (1, 40, 1)
    assert drawn[0, :20].unique().tolist() == [0, 1, 2]
    assert drawn[0, 20:].unique().tolist() == [2]
    for few in (None, 1, 2, 3):
        assert label_maps(probs, few).flatten().tolist() == [1, 2], "the most likely"
    assert torch.equal(drawn, label_maps(probs, 41, seed=0))
    assert not torch.equal(drawn, label_maps(probs, 41, seed=1))
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        label_maps(probs, num_samples=0)


def test_samples_of_an_evaluation_are_those_of_the_seed(tmp_path):
    model = coupled(nn.Conv2d(1, 2, 1))
    seeds = (0, 0, 1)
    found = [report(model, items(), tmp_path / "e.json", num_samples=39, seed=seed) for seed in seeds]
    assert found[0] == found[1] != found[2]
    assert found[0]["images"][0]["num_segmentations"] == 35


def test_every_image_has_chances_of_its_own(tmp_path):
    torch.manual_seed(0)
    twice = [next(items(1)) for _ in range(2)]
    model = coupled(nn.Conv2d(1, 2, 1))
    first, second = report(model, twice, tmp_path / "e.json", num_samples=30)["images"]
    assert first["ged_iou"] != second["ged_iou"]


def test_what_is_certain_stays_so_whatever_the_chances(monkeypatch):
    """Also where the sequence holds an exact 0 or 1."""
    for value in (0.0, 1.0):
        engine = SimpleNamespace(draw=lambda n, value=value: torch.full((n, 2), value))
        monkeypatch.setattr(torch.quasirandom, "SobolEngine", lambda *_, engine=engine, **__: engine)
        assert label_maps(torch.tensor([0.0, 1.0]).view(1, 1, 2, 1), num_samples=4).tolist() == [[[1]] * 4]


def test_what_is_not_there_is_said(tmp_path):
    data = [{key: value for key, value in item.items() if key != "positive"} for item in items(1)]
    with pytest.raises(
        ValueError, match="the evaluated items have no 'positive' to compare with, they have image, mask;"
    ):
        report(coupled(nn.Conv2d(1, 2, 1)), data, tmp_path / "e.json")
    net = AnnotatorNet(None, 2, 0, 2, num_positive=0, num_negative=1, structure="identity")
    with pytest.raises(ValueError, match="no positive annotators: there is only one segmentation of an image"):
        members(CoupledModel(nn.Conv2d(1, 2, 1), net), torch.rand(1, 1, 4, 4))
