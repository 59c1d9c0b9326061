from __future__ import annotations

import re

import pytest
import torch
from monai.networks.nets import BasicUNet, BasicUNetPlusPlus, DynUNet, UNet
from torch import nn

from medcoarse.confusion import Annotations
from medcoarse.losses import CoupledLoss
from medcoarse.networks import STRUCTURES, AnnotatorNet, CoupledModel


def unet(spatial_dims: int, out_channels: int) -> UNet:
    return UNet(spatial_dims, 1, out_channels, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)


def coupled(spatial_dims=2, classes=3, **arguments) -> CoupledModel:
    annotator = AnnotatorNet(unet(spatial_dims, 5), spatial_dims, 5, classes, **arguments)
    return CoupledModel(unet(spatial_dims, classes), annotator)


def columns(confusion, spatial):
    cm = confusion.dense()
    return cm.view(*cm.shape[:4], *(cm.shape[4:] or (1,) * spatial)).sum(2)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("structure", "rank"), [("full", 1), ("low_rank", 1), ("low_rank", 4), ("global", 1)])
def test_starts_near_identity_stays_stochastic_and_above_the_floor(spatial_dims, structure, rank):
    torch.manual_seed(0)
    image = torch.rand(2, 1, *(8,) * spatial_dims)
    model = coupled(spatial_dims, structure=structure, rank=rank, num_positive=2, num_negative=1, diagonal_floor=0.5)
    start = model(image)
    assert start.positive.diagonal().shape[1:3] == (2, 3)
    assert start.negative.diagonal().shape[1:3] == (1, 3)
    low, high = start.positive.diagonal().aminmax()
    assert 0.87 < low <= high < 0.93
    with torch.no_grad():
        for parameter in model.annotator.parameters():
            parameter.add_(torch.randn_like(parameter))
    for confusion in model(image)[1:3]:
        assert torch.allclose(columns(confusion, spatial_dims), torch.ones(()), atol=1e-5)
        assert confusion.diagonal().min() >= 0.5
        dense = torch.diagonal(confusion.dense(), dim1=2, dim2=3).movedim(-1, 2)
        assert torch.allclose(confusion.diagonal().flatten(), dense.flatten(), atol=1e-5)


@pytest.mark.parametrize("structure", ["full", "low_rank", "global"])
def test_every_parameter_gets_a_gradient(structure):
    torch.manual_seed(0)
    model = coupled(structure=structure, rank=2)
    for _ in range(2):  # the head starts at zero, so the backbone learns from the second step on
        drawing = torch.randint(0, 3, (2, 1, 8, 8))
        loss = CoupledLoss(3)(model(torch.rand(2, 1, 8, 8)), Annotations(drawing, drawing))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.sub_(gradient)
    names = [n for n, _ in model.named_parameters()]
    # a bias before an instance norm has no effect by construction
    dead = [n for n, g in zip(names, gradients, strict=True) if g.abs().max() == 0 and not n.endswith("conv.bias")]
    assert not dead


def test_inference_is_the_segmenter_alone():
    model = coupled().eval()
    image = torch.rand(1, 1, 8, 8)
    model.annotator.forward = None  # calling it would fail
    assert torch.equal(model(image), model.segmenter(image))


def test_warm_up_runs_no_annotator():
    model = coupled()
    model.annotating = False
    model.annotator.forward = None
    output = model(torch.rand(1, 1, 8, 8))
    assert output.positive is None
    assert output.negative is None
    assert output.num_annotators == (1, 1)
    assert output.is_warmup


def test_annotators_that_do_not_learn_get_no_gradient():
    model = coupled()
    model.annotator_learns = False
    image, drawing = torch.rand(1, 1, 8, 8), torch.randint(0, 3, (1, 1, 8, 8))
    output = model(image)
    assert output.positive.diagonal().shape == (1, 1, 3, 8, 8)
    CoupledLoss(3)(output, Annotations(drawing, (drawing + 1) % 3)).backward()
    assert all(p.grad is None for p in model.annotator.parameters())
    assert all(p.grad is not None for p in model.segmenter.parameters())


@pytest.mark.parametrize("shared", [None, "0"])
def test_a_segmenter_that_does_not_learn_stays_as_it_is(shared):
    torch.manual_seed(0)
    segmenter = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
    annotator = AnnotatorNet(nn.Identity() if shared else nn.Conv2d(1, 2, 1), 2, 2, num_classes=2)
    model = CoupledModel(segmenter, annotator, shared_layer=shared)
    model.segmenter_learns = False
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    image, drawing = torch.rand(2, 1, 8, 8), torch.randint(0, 2, (2, 1, 8, 8))
    output = model(image)
    assert output.finished
    CoupledLoss(2)(output, Annotations(drawing, drawing)).backward()
    assert torch.equal(output.logits, segmenter.eval()(image))
    assert all(p.grad is None for p in segmenter.parameters())
    assert annotator.head.weight.grad is not None
    assert all(torch.equal(before[name], value) for name, value in segmenter.state_dict().items())


@pytest.mark.parametrize(
    ("image", "reduction", "seen"), [((8, 12), 4, (2, 3)), ((9, 7), 2, (5, 4)), ((6, 5), (1, 3), (6, 2))]
)
def test_reduced_annotators_see_the_mean_of_blocks(image, reduction, seen):
    backbone = nn.Conv2d(1, 4, 1)
    inputs_seen = []
    backbone.register_forward_hook(lambda module, inputs, output: inputs_seen.append(inputs[0]))
    net = AnnotatorNet(backbone, 2, 4, num_classes=2, reduction=reduction)
    pixels = torch.rand(1, 1, *image)
    positive, _ = net(pixels)
    assert tuple(inputs_seen[0].shape[2:]) == seen
    assert torch.allclose(inputs_seen[0], nn.functional.adaptive_avg_pool2d(pixels, seen))
    assert positive.dense().shape == (1, 1, 2, 2, *image)


def test_reduction_is_checked():
    with pytest.raises(ValueError, match="reduction must be at least 1, got 0"):
        AnnotatorNet(nn.Identity(), 2, 1, num_classes=2, reduction=0)


def test_shared_layer_feeds_the_annotators_and_leaves_no_hook():
    segmenter = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ConvTranspose2d(6, 2, 2, stride=2))
    annotator = AnnotatorNet(nn.Identity(), 2, 6, num_classes=2, structure="low_rank")
    model = CoupledModel(segmenter, annotator, shared_layer="0")
    nn.init.normal_(annotator.head.weight)
    image = torch.rand(1, 1, 8, 8)
    positive = model(image).positive
    assert torch.equal(positive.dense(), annotator(segmenter[0](image), (8, 8))[0].dense())
    assert not segmenter[0]._forward_hooks
    with pytest.raises(ValueError, match="the segmenter has no layer 'top'; it has 0, 1"):
        CoupledModel(segmenter, annotator, shared_layer="top")


def test_images_of_other_axes_are_refused():
    for reduction in (1, 2):
        net = AnnotatorNet(nn.Conv2d(1, 4, 1), 2, 4, num_classes=2, reduction=reduction)
        with pytest.raises(ValueError, match=r"of 2 axes \(spatial_dims\), got \(1, 1, 4, 4, 4\)"):
            net(torch.rand(1, 1, 4, 4, 4))


def test_features_of_another_number_are_refused():
    several = nn.Identity()
    several.forward = lambda image: [image]
    backbones = {"Tensor(1, 3, 4, 4)": nn.Conv2d(1, 3, 1), "Tensor(1, 16)": nn.Flatten(), "list()": several}
    for given, backbone in backbones.items():
        net = AnnotatorNet(backbone, 2, 4, num_classes=2)
        expected = f"must give features (B, 4, *S) (feature_channels), got {given}"
        with pytest.raises(ValueError, match=re.escape(expected)):
            net(torch.rand(1, 1, 4, 4))


class Checkpointed(nn.Sequential):
    def __init__(self, reentrant: bool) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
        self.reentrant = reentrant

    def forward(self, image):
        return torch.utils.checkpoint.checkpoint(super().forward, image, use_reentrant=self.reentrant)


def test_a_shared_layer_without_gradients_is_refused():
    """Of a reentrant checkpoint; another one, a frozen layer and evaluation are as they should be."""
    annotator = AnnotatorNet(nn.Identity(), 2, 4, num_classes=2)
    image = torch.rand(1, 1, 4, 4, requires_grad=True)
    model = CoupledModel(Checkpointed(reentrant=True), annotator, shared_layer="0")
    with pytest.raises(ValueError, match=r"the layer '0' runs without gradients.*use_reentrant=False"):
        model(image)
    with torch.no_grad():
        model.couple(image)
    model.segmenter[0].requires_grad_(False)
    model(image)
    without = CoupledModel(Checkpointed(reentrant=True), annotator, shared_layer="0")
    without.segmenter[0] = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    without.shared_layer = "0.1"
    with pytest.raises(ValueError, match=r"the layer '0.1' runs without gradients.*share a layer that has parameters"):
        without(image)
    without.shared_layer = "0.0"
    without.segmenter[0].requires_grad_(False)
    without(image)
    CoupledModel(Checkpointed(reentrant=False), annotator, shared_layer="0")(image)


def test_low_resolution_backbone_is_interpolated():
    net = AnnotatorNet(nn.Conv3d(1, 4, 2, stride=2), 3, 4, num_classes=2)
    positive, _ = net(torch.rand(1, 1, 6, 8, 4))
    assert positive.dense().shape == (1, 1, 2, 2, 6, 8, 4)


@pytest.mark.parametrize(("num_positive", "num_negative"), [(3, 0), (0, 2)])
def test_one_kind_of_annotator_only(num_positive, num_negative):
    output = coupled(num_positive=num_positive, num_negative=num_negative)(torch.rand(1, 1, 8, 8))
    assert (output.positive is None) == (num_positive == 0)
    assert (output.negative is None) == (num_negative == 0)


def test_learned_transition_keeps_a_zero_diagonal_and_starts_uniform():
    annotator = AnnotatorNet(None, 2, 0, num_classes=3, num_positive=1, num_negative=1, structure="identity")
    model = CoupledModel(unet(2, 3), annotator, learn_transition=True)
    assert torch.allclose(model.log_transition().exp(), (1 - torch.eye(3)) / 2)
    optimizer = torch.optim.SGD([model.transition_logits], lr=100.0)
    drawing = torch.randint(0, 3, (1, 1, 8, 8))
    before = model.log_transition().exp()
    CoupledLoss(3)(model(torch.rand(1, 1, 8, 8)), Annotations(drawing, drawing)).backward()
    optimizer.step()
    after = model.log_transition().exp()
    assert after.diagonal().abs().max() == 0
    assert torch.allclose(after.sum(0), torch.ones(3))
    assert not torch.allclose(before, after)


def test_any_monai_network_serves():
    segmenter = BasicUNet(2, 3, 2, features=(4, 4, 8, 8, 8, 4))
    model = CoupledModel(segmenter, AnnotatorNet(BasicUNet(2, 3, 6, features=(4, 4, 8, 8, 8, 4)), 2, 6, num_classes=2))
    assert model(torch.rand(1, 3, 32, 32)).positive.dense().shape == (1, 1, 2, 2, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "sparse"}, "one of full, low_rank, global, identity, got 'sparse'"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"diagonal_floor": 0.95}, "diagonal_floor < initial_diagonal"),
        ({"num_positive": 0, "num_negative": 0}, "at least one annotator"),
        ({"num_classes": 1}, "between 2 and 254"),
        ({"backbone": None}, "needs a backbone"),
        ({"structure": "low_rank", "initial_diagonal": 0.6, "diagonal_floor": 0.5}, "out of reach"),
    ],
)
def test_bad_arguments(arguments, message):
    defaults = {"backbone": nn.Identity(), "spatial_dims": 2, "feature_channels": 1, "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        AnnotatorNet(**(defaults | arguments))


@pytest.mark.parametrize("structure", [s for s in STRUCTURES if s != "identity"])
def test_transition_and_confusion_are_not_learned_together(structure):
    annotator = AnnotatorNet(nn.Identity(), 2, 1, num_classes=2, structure=structure)
    with pytest.raises(ValueError, match="only the product"):
        CoupledModel(nn.Identity(), annotator, learn_transition=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("annotating", [True, False])
def test_segmenters_of_several_outputs(training, annotating):
    """A list of one is as good as the one; of several nobody knows which to learn from."""
    shape = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}

    def run(segmenter: nn.Module):
        model = CoupledModel(segmenter, AnnotatorNet(nn.Conv2d(1, 4, 1), 2, 4, num_classes=2)).train(training)
        model.annotating = annotating
        found = model(torch.rand(1, 1, 32, 32))
        return found.logits if training else found

    features = (4, 4, 8, 8, 8, 4)
    assert run(BasicUNetPlusPlus(**shape, features=features)).shape == (1, 2, 32, 32)
    with pytest.raises(ValueError, match=r"got \(1, 2, 32, 32\), \(1, 2, 32, 32\).*deep_supervision=False"):
        run(BasicUNetPlusPlus(**shape, features=features, deep_supervision=True))

    class Named(nn.Module):
        def forward(self, image):
            return {"out": image}

    with pytest.raises(ValueError, match=r"got dict; let it give them alone"):
        run(Named())
    if training:  # DynUNet gives its main output in evaluation
        sizes = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3}
        deep = DynUNet(**shape, **sizes, deep_supervision=True)
        with pytest.raises(ValueError, match=r"for an image \(1, 1, 32, 32\), got \(1, 2, 2, 32, 32\)"):
            run(deep)
