"""Networks in bfloat16 on a processor: near to float32, and only where it was asked for."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet

from medcoarse.inferers import MixedPrecisionInferer, has_bfloat16


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return UNet(2, 1, 3, channels=[4, 8], strides=[2], num_res_units=1)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def gradients(network: torch.nn.Module, found: torch.Tensor) -> torch.Tensor:
    network.zero_grad()
    found.float().log_softmax(1)[:, 0].mean().backward()
    return torch.cat([weight.grad.ravel() for weight in network.parameters()])


def test_it_is_float32_but_for_rounding(network, image):
    """bfloat16 has 8 bits, so that a result is off by 1/256 of it, a few times over in a few layers."""
    plain, mixed = SimpleInferer()(image, network), MixedPrecisionInferer()(image, network)
    assert mixed.dtype == torch.bfloat16
    assert 0 < (mixed - plain).abs().max() < 0.05 * plain.abs().max()
    exact, rounded = gradients(network, plain), gradients(network, mixed)
    assert rounded.dtype == torch.float32, "weights stay as they are"
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.99


def test_it_leaves_nothing_switched_on(network, image):
    MixedPrecisionInferer()(image, network)
    assert not torch.is_autocast_enabled("cpu")
    assert network(image).dtype == torch.float32


def test_disabled_it_is_monais(network, image):
    found = MixedPrecisionInferer(enabled=False)(image, network)
    assert torch.equal(found, SimpleInferer()(image, network))
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, False),
        ({"avx512_bf16": False, "avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": 1}, True),
    ],
)
def test_processors_with_bfloat16(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bfloat16() is expected


def test_older_versions_of_pytorch_do_not_say(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bfloat16() is False
