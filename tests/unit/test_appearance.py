"""The appearance prior against its definition, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medcoarse.appearance import appearance_nll
from medcoarse.confusion import Annotations, CoupledOutput
from medcoarse.losses import CoupledLoss


def slope_of(function, probs):
    """With means over the whole image the prior's value is always one half: what it says is in its slope."""
    probs = probs.detach().requires_grad_()
    return torch.autograd.grad(function(probs), probs)[0]


def slow_appearance(probs, image, windows):
    """What each class costs at each pixel, by the definition; ``windows[x]`` are the weights of all pixels around x."""
    number, channels = probs.shape[1], len(image)
    costs = np.zeros(probs.shape)
    means = np.array([[windows @ (p * c) / (windows @ p) for c in image] for p in probs])  # (L, channels, N)
    distance = (image[None] - means) ** 2
    inside = np.zeros((channels, number))  # about the means around x, not around each pixel of the window
    for k, c, x in np.ndindex(means.shape):
        inside[c, x] += windows[x] @ (probs[k] * (image[c] - means[k, c, x]) ** 2)
    variance = inside / np.array([windows @ p for p in probs]).sum(0)
    for x in range(number):
        for k in range(len(probs)):
            costs[k, x] = (distance[k, :, x] / (2 * variance[:, x])).mean()
    return costs


@pytest.mark.parametrize("sigma", [None, 2.0])
def test_appearance_equals_its_definition(sigma):
    rng = np.random.default_rng(0)
    number = 30
    probs, image = rng.dirichlet(np.ones(3), number).T, rng.normal(size=(2, number))
    steps = np.abs(np.subtract.outer(np.arange(number), np.arange(number)))
    windows = np.ones((number, number)) if sigma is None else np.exp(-0.5 * (steps / sigma) ** 2) * (steps <= 3 * sigma)
    seen, costs = torch.from_numpy(image)[None], slow_appearance(probs, image, windows)
    value = appearance_nll(torch.from_numpy(probs)[None], seen, sigma)
    assert value.item() == pytest.approx((probs * costs).sum() / number, rel=1e-5)
    slope = slope_of(lambda p: appearance_nll(p, seen, sigma), torch.from_numpy(probs)[None])[0]
    assert slope.numpy() == pytest.approx(costs / number, rel=1e-5)


@pytest.mark.parametrize("sigma", [None, 2.0])
@pytest.mark.parametrize("image", [(9, 8), (5, 6, 7)])
def test_appearance_is_as_strong_as_the_image_is_telling(sigma, image):
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(1, 1, *image, generator=generator) > 0.5).float()
    noise = torch.randn(1, 1, *image, generator=generator)
    right = torch.cat([1 - truth, truth], 1)
    probs = (0.8 * right + 0.1).requires_grad_()

    def push(contrast, scale=1.0):
        """How much more wrong classes cost than right ones."""
        value = appearance_nll(probs, scale * (contrast * truth + noise), sigma)
        (slope,) = torch.autograd.grad(value, probs)
        return (slope * (1 - 2 * right)).sum().item()

    assert push(3.0) > 3 * push(0.3)
    assert push(3.0, scale=50.0) == pytest.approx(push(3.0), rel=1e-4)  # units of the image do not matter
    flipped = appearance_nll(probs.flip(1), truth + noise, sigma)
    assert flipped.item() == pytest.approx(appearance_nll(probs, truth + noise, sigma).item())  # which class is which


@pytest.mark.parametrize("image", [(9, 8), (5, 6, 7)])
def test_smoothing_is_a_gaussian_mean_of_the_pixels_that_there_are(image):
    """SciPy's, by a quotient: the image is not continued beyond its border."""
    probs, values = torch.rand(2, 2, *image).softmax(1), torch.rand(2, 3, *image)

    def gaussian(x):
        return ndimage.gaussian_filter(x, 0.5, mode="constant", axes=range(2, x.ndim), radius=2)

    smoothed = torch.from_numpy(gaussian(values.numpy()) / gaussian(np.ones_like(values)))
    expected = slope_of(lambda p: appearance_nll(p, smoothed), probs)
    assert not torch.allclose(slope_of(lambda p: appearance_nll(p, values), probs), expected, rtol=1e-2)
    assert torch.allclose(slope_of(lambda p: appearance_nll(p, values, smoothing=0.5), probs), expected, rtol=1e-4)
    loss = CoupledLoss(2, appearance_weight=1.0, appearance_smoothing=0.5)
    alone = CoupledLoss(2)
    target = Annotations(torch.zeros(2, 1, *image).long(), image=values)
    with_prior, without = (
        slope_of(lambda p, one=one: one(CoupledOutput(p.log()), target), probs) for one in (loss, alone)
    )
    through_softmax = slope_of(lambda p: appearance_nll(p.log().softmax(1), smoothed), probs)
    assert torch.allclose(with_prior - without, through_softmax, atol=1e-6)


def test_the_zero_of_the_image_does_not_matter():
    """CT numbers start at -1024: squares of such values would swallow the contrast."""
    probs, image = torch.rand(1, 2, 16, 16).softmax(1), torch.rand(1, 1, 16, 16)
    expected = slope_of(lambda p: appearance_nll(p, image), probs)
    moved = slope_of(lambda p: appearance_nll(p, image - 4096), probs)
    assert (moved - expected).abs().max() < 0.02 * expected.abs().max()  # -4096.5 and its like are stored to 0.0005


def test_appearance_is_asked_where_no_mask_is_known():
    probs = torch.rand(2, 2, 6, 5).softmax(1).requires_grad_()
    image = (probs[:, 1:].detach() > 0.5) + 0.1 * torch.rand(2, 1, 6, 5)  # it has something to say: a clear slope
    label = torch.randint(0, 2, (2, 1, 6, 5))
    label[1] = 255
    loss = CoupledLoss(2, appearance_weight=1.0)
    loss(CoupledOutput(probs.log()), Annotations(label=label))
    assert set(loss.parts) == {"dense"}  # masks alone: there is nothing to settle
    loss = CoupledLoss(2, appearance_weight=1.0)
    target = Annotations(positive=label, label=label, image=image)
    asked = slope_of(lambda p: loss(CoupledOutput(p.log()), target), probs)
    alone = slope_of(lambda p: CoupledLoss(2)(CoupledOutput(p.log()), target), probs)
    only = slope_of(lambda p: appearance_nll(p.log().softmax(1), image[1:]), probs[1:])
    assert torch.allclose((asked - alone)[1:], only, atol=1e-6)
    assert (asked - alone)[0].abs().max() < 1e-6 < only.abs().max() / 100
    value = appearance_nll(probs, image, where=label[:1] == 255)
    assert (value.item(), torch.autograd.grad(value, probs)[0].abs().max().item()) == (0, 0)  # asked about none


def test_appearance_of_a_flat_image_says_nothing():
    probs = torch.full((1, 2, 6, 6), 0.5, requires_grad=True)
    value = appearance_nll(probs, torch.ones(1, 1, 6, 6))
    assert value.item() == 0
    assert torch.autograd.grad(value, probs)[0].abs().max() == 0


@pytest.mark.parametrize("sigma", [None, 2.0])
@pytest.mark.parametrize("level", [0.0, 0.3, -1.7, 1000.0])
def test_appearance_does_not_take_rounding_for_a_difference(level, sigma):
    """Means of a constant image under two classes differ in the last bit, and so do the distances to them."""
    probs = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0)).softmax(1).requires_grad_()
    value = appearance_nll(probs, torch.full((1, 1, 32, 32), level), sigma)
    assert 0 <= value.item() < 1e-3
    assert torch.autograd.grad(value, probs)[0].abs().max() * 32**2 < 1e-3


def test_classes_vary_by_a_hundredth_of_the_image_at_least():
    """Two flat classes, two images, two channels of other contrasts: 1 / (0.01 * 0.25) / 2 for each wrong pixel."""
    truth = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    contrast = torch.tensor([[1.0, 10.0], [0.1, 3.0]])[..., None]
    probs = torch.stack([1 - truth, truth]).expand(2, -1, -1).clone().requires_grad_()
    (slope,) = torch.autograd.grad(appearance_nll(probs, 5 + contrast * truth), probs)
    assert torch.allclose(12 * slope, 200 * (1 - probs), rtol=1e-3, atol=1e-3)  # mean of 12 pixels
