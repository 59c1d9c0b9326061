"""A segmenter with one head per annotator: each learns one person's drawings, all learn from every image."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from medcoarse.confusion import UNLABELED, Annotations, CoupledOutput
from medcoarse.losses import CoupledLoss, dense_nll, drawn_by, partial_dice, personal_terms
from medcoarse.networks import AnnotatorHeads, AnnotatorNet, CoupledModel


def heads(annotators, classes, spatial_dims=2, **options):
    return AnnotatorHeads(UNet(spatial_dims, 1, annotators * classes, (4, 8), (2,), **options), annotators)


def coupled(annotators, classes, spatial_dims=2, **options):
    annotator = AnnotatorNet(nn.Identity(), spatial_dims, 1, classes, annotators, 0)
    return CoupledModel(heads(annotators, classes, spatial_dims), annotator, **options)


def one_each(annotators, classes, size=(8, 8), number=6, seed=0):
    """Images, and drawings of one annotator each."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(number, 1, *size, generator=generator)
    drawn = torch.randint(0, classes, (number, *size), generator=generator)
    positive = torch.full((number, annotators, *size), UNLABELED)
    for index in range(number):
        positive[index, index % annotators] = drawn[index]
    return image, positive


@pytest.mark.parametrize(("size", "classes", "annotators"), [((8, 8), 2, 3), ((5, 6, 4), 4, 2), ((8, 8), 3, 1)])
def test_the_answer_is_the_mean_of_the_members(size, classes, annotators):
    torch.manual_seed(0)
    model = heads(annotators, classes, len(size)) if min(size) > 5 else AnnotatorHeads(
        nn.Conv3d(1, annotators * classes, 3, padding=1), annotators
    )  # fmt: skip
    image = torch.rand(2, 1, *size)
    members = model.members(image)
    assert members.shape == (2, annotators, classes, *size)
    assert torch.allclose(members.sum(2), torch.ones(()), atol=1e-6)
    assert torch.allclose(model(image), annotators * members.mean(1).log(), atol=1e-5)


def test_the_channels_of_the_first_annotator_come_first():
    class Fixed(nn.Module):
        def forward(self, image):
            return torch.tensor([[9.0, 0.0, 0.0, 9.0]]).view(1, 4, 1, 1).expand(len(image), 4, 2, 2)

    assert AnnotatorHeads(Fixed(), 2).members(torch.zeros(1, 1, 2, 2)).argmax(2)[0, :, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("annotating", [False, True])
@pytest.mark.parametrize("dice", [0.0, 0.5])
def test_loss_is_that_of_each_on_the_own_drawings(annotating, dice):
    torch.manual_seed(0)
    model = coupled(3, 2)
    model.annotating = annotating
    image, positive = one_each(3, 2)
    positive[0, 0, :3] = UNLABELED  # not all of it
    loss = CoupledLoss(2, dice_weight=dice)
    loss(model(image), Annotations(positive))
    expected, found = 0.0, model.segmenter.heads(image)
    for r in range(3):
        images = [i for i in range(6) if i % 3 == r]
        label = positive[images, r][:, None]
        expected += dense_nll(found[images, r].log_softmax(1), label)
    assert loss.parts["heads"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert ("nll_positive" in loss.parts) == annotating


def test_one_annotator_is_the_ordinary_training():
    torch.manual_seed(0)
    model = coupled(1, 3)
    model.annotating = False
    image, positive = one_each(1, 3)
    target = Annotations(positive)
    output = model(image)
    alone = CoupledLoss(3, dice_weight=0.5, balance=0.5)(CoupledOutput(output.logits), target)
    assert CoupledLoss(3, dice_weight=0.5, balance=0.5)(output, target).item() == pytest.approx(alone.item(), rel=1e-5)


def test_who_drew_nothing_moves_nothing_of_the_own():
    torch.manual_seed(0)
    model = CoupledModel(AnnotatorHeads(nn.Conv2d(1, 6, 1), 3), AnnotatorNet(None, 2, 0, 2, 3, 0, structure="global"))
    model.annotating = False
    image, positive = one_each(3, 2)
    positive[:, 1] = UNLABELED
    CoupledLoss(2, dice_weight=0.5)(model(image), Annotations(positive)).backward()
    moved = model.segmenter.network.weight.grad.flatten() != 0
    assert moved.tolist() == [True, True, False, False, True, True]


def test_matrices_are_fitted_to_the_vote_and_do_not_move_it():
    torch.manual_seed(0)
    image, positive = one_each(3, 2)
    gradients = []
    for annotating in (False, True):
        torch.manual_seed(1)
        model = coupled(3, 2)
        model.annotating = annotating
        CoupledLoss(2, dice_weight=0.5)(model(image), Annotations(positive)).backward()
        gradients.append([p.grad.clone() for p in model.segmenter.parameters() if p.grad is not None])
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(*gradients, strict=True))
    assert model.annotator.head.weight.grad.abs().sum() > 0


def test_nobody_drew_anything():
    model = coupled(3, 2)
    loss = CoupledLoss(2, dice_weight=0.5)(
        model(torch.rand(2, 1, 8, 8)), Annotations(torch.full((2, 3, 8, 8), UNLABELED))
    )
    loss.backward()
    assert loss.item() == 0


def test_personal_terms_by_hand():
    """Two of three drew: -(log 0.8) and -(log 0.5 + log 0.5) / 2; Dice 1 - 2 * 0.8 / 1.8 and 1 - 2 * 0.5 / 2."""
    first = torch.tensor([[[0.2], [0.8]]]).log()
    second = torch.zeros(1, 2, 2)[..., :1]
    positive = torch.tensor([[[1], [1], [255]]])
    nll, dice = personal_terms([first, second, torch.empty(0, 2, 1)], positive)
    assert nll.item() == pytest.approx(0.2231 + 0.6931, abs=1e-4)
    assert dice.item() == pytest.approx((1 - 1.6 / 1.8) + (1 - 1 / 1.5), abs=1e-4)
    assert drawn_by(positive).tolist() == [[True, True, False]]


def test_learns_each_habit_where_the_mixture_of_drawings_would_mislead():
    """Each image has one drawing. Two draw the bright pixels, one calls them background, one the class beside it:
    every head is right about its person, and the vote about the pixels."""
    torch.manual_seed(0)
    image = torch.rand(64, 1, 6, 6)
    truth = (image[:, 0] > 0.7).long()
    habits = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 0, 0], [0, 2, 1]])
    positive = torch.full((64, 4, 6, 6), UNLABELED)
    for index in range(64):
        positive[index, index % 4] = habits[index % 4][truth[index]]
    network = nn.Sequential(nn.Conv2d(1, 16, 1), nn.ReLU(), nn.Conv2d(16, 12, 1))
    model = CoupledModel(AnnotatorHeads(network, 4), AnnotatorNet(None, 2, 0, 3, 4, 0, structure="global"))
    model.annotating = False
    steps, loss = torch.optim.Adam(model.parameters(), 0.02), CoupledLoss(3)
    for _ in range(300):
        steps.zero_grad()
        loss(model(image), Annotations(positive)).backward()
        steps.step()
    model.eval()
    clear = (image[:, 0] - 0.7).abs() > 0.05
    said = model.segmenter.members(image).argmax(2)
    for r in range(4):
        assert (said[:, r] == habits[r][truth])[clear].float().mean() > 0.98
    assert (model(image).argmax(1) == truth)[clear].float().mean() > 0.98


def test_evaluation_and_the_finished_segmenter_have_no_heads_to_learn():
    model = coupled(2, 2)
    image = torch.rand(1, 1, 8, 8)
    assert model(image).heads.shape == (1, 2, 2, 8, 8)
    model.segmenter_learns = False
    assert model(image).heads is None
    assert model.eval()(image).shape == (1, 2, 8, 8)


def test_annotators_may_see_a_layer_of_the_network():
    model = coupled(2, 2, shared_layer="network.model.2")
    model.annotator.head = nn.Conv2d(4, model.annotator.head.out_channels, 1)
    assert model(torch.rand(1, 1, 8, 8)).heads.shape == (1, 2, 2, 8, 8)


def test_as_torchscript():
    model = heads(3, 2).eval()
    image = torch.rand(1, 1, 8, 8)
    assert torch.allclose(torch.jit.trace(model, image)(image), model(image), atol=1e-6)
    assert torch.allclose(torch.jit.script(model)(image), model(image), atol=1e-6)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Annotations(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)), "negative drawings have none"),
        (Annotations(torch.zeros(1, 3, 8, 8)), "3 positive annotators drew and the segmenter has 2 heads"),
    ],
)
def test_what_heads_cannot_learn_from_is_refused(target, message):
    model = coupled(2, 2)
    model.annotating = False
    with pytest.raises(ValueError, match=message):
        CoupledLoss(2)(model(torch.rand(1, 1, 8, 8)), target)


def test_masks_teach_the_vote():
    model = coupled(3, 2)
    model.annotating = False
    output, label = model(torch.rand(2, 1, 8, 8)), torch.randint(0, 2, (2, 1, 8, 8))
    expected = dense_nll(output.logits.log_softmax(1), label)
    assert CoupledLoss(2)(output, Annotations(label=label)).item() == pytest.approx(expected.item())


def test_who_does_not_vote_is_not_heard_and_the_weights_remember_it():
    torch.manual_seed(0)
    model, image = heads(3, 2), torch.rand(2, 1, 8, 8)
    two = AnnotatorHeads(model.network, 3, voters=[0, 2])
    members = model.members(image)[:, [0, 2]]
    assert torch.allclose(two.members(image), members)
    assert torch.allclose(two(image), 2 * members.mean(1).log(), atol=1e-5)
    again = heads(3, 2)
    again.load_state_dict(two.state_dict())
    assert torch.equal(again(image), two(image))
    two(image).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in two.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match="voters must be some of 0 to 1, got"):
        AnnotatorHeads(nn.Conv2d(1, 4, 1), 2, voters=[0, 2])
    with pytest.raises(ValueError, match="voters must be some of 0 to 1, got"):
        AnnotatorHeads(nn.Conv2d(1, 4, 1), 2, voters=[])
    with pytest.raises(ValueError, match="at least one annotator"):
        AnnotatorHeads(nn.Conv2d(1, 4, 1), 0)
    with pytest.raises(ValueError, match="7 channels, which 3 annotators cannot share"):
        AnnotatorHeads(nn.Conv2d(1, 7, 1), 3)(torch.rand(1, 1, 4, 4))


def test_dice_is_of_the_own_drawings():
    torch.manual_seed(0)
    logits, drawn = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 1, 8, 8))
    _, dice = personal_terms([logits], drawn)
    assert dice.item() == pytest.approx(partial_dice(logits.softmax(1), drawn).item())
