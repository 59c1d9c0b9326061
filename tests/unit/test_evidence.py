"""Fused evidence of several annotators against the plain equations: values, slopes, and where the loops branch."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from medcoarse import evidence, fused
from medcoarse.confusion import FullConfusion, GlobalConfusion, LowRankConfusion, swap_transition
from medcoarse.evidence import evidence_and_trace
from medcoarse.likelihoods import log_complementary_evidence, log_evidence, mean_trace

R = 3


def problem(classes=3, image=(7, 9), batch=2, drawn=0.8, floor=0.5, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(classes)
    table = scale * torch.randn(batch, R, classes, classes, *image, generator=generator, dtype=torch.float64)
    drawing = torch.randint(0, classes, (batch, R, *image), generator=generator, dtype=torch.uint8)
    drawing[torch.rand(drawing.shape, generator=generator) >= drawn] = 255
    upstream = torch.randn(batch, classes, *image, generator=generator, dtype=torch.float64)
    return table.to(dtype).requires_grad_(), drawing, upstream.to(dtype), floor


def transition(classes):
    """Biased: some classes are ruled out more often than others, and none by itself."""
    matrix = torch.rand(classes, classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix.fill_diagonal_(0)
    return (matrix / matrix.sum(0)).log()


def plain(confusion, drawing, log_transition=None):
    if log_transition is None:
        said = log_evidence(confusion, drawing)
    else:
        said = log_complementary_evidence(confusion, log_transition, drawing)
    return said, mean_trace(confusion, drawing)


def slopes(said, trace, upstream, table):
    return torch.autograd.grad((said * upstream).sum() + 0.3 * trace, table)[0]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("drawn", [1.0, 0.8, 0.1, 0.0])
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_equal_to_the_equations(kind, classes, floor, drawn, threads, monkeypatch):
    monkeypatch.setattr(fused, "THREAD_PIXELS", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    table, drawing, upstream, floor = problem(classes, (19, 31), drawn=drawn, floor=floor)
    log_transition = transition(classes) if kind == "negative" else None
    confusion = FullConfusion(table, floor)
    said, trace = evidence_and_trace(confusion, drawing, classes, log_transition)
    expected = plain(confusion, drawing, log_transition)
    assert torch.allclose(said, expected[0], rtol=1e-9, atol=1e-12)
    assert trace.item() == pytest.approx(expected[1].item(), rel=1e-9)
    if drawn:
        wanted = slopes(*expected, upstream, table)
        assert torch.allclose(slopes(said, trace, upstream, table), wanted, rtol=1e-7, atol=1e-12)
    else:
        assert not said.any()
        assert not slopes(said, trace, upstream, table).any()


@pytest.mark.parametrize("scale", [25.0, 100.0, 400.0])
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_what_is_all_but_impossible_is_exact(kind, floor, scale):
    """In single precision too, where a chance of exp(-400) is 0."""
    exact, drawing, upstream, floor = problem(floor=floor, scale=scale)
    log_transition = transition(3) if kind == "negative" else None
    expected = plain(FullConfusion(exact, floor), drawing, log_transition)
    wanted = slopes(*expected, upstream, exact)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        table = exact.detach().to(dtype).requires_grad_()
        said, trace = evidence_and_trace(FullConfusion(table, floor), drawing, 3, log_transition)
        assert torch.allclose(said.double(), expected[0], rtol=tolerance, atol=10 * tolerance)
        slope = slopes(said, trace, upstream.to(dtype), table)
        assert torch.allclose(slope.double(), wanted, rtol=20 * tolerance, atol=20 * tolerance)


def test_volumes_and_single_voxels():
    for image in ((3, 4, 5), (1, 1), (1,)):
        table, drawing, upstream, floor = problem(image=image)
        confusion = FullConfusion(table, floor)
        said, trace = evidence_and_trace(confusion, drawing, 3)
        wanted = slopes(*plain(confusion, drawing), upstream, table)
        assert torch.allclose(slopes(said, trace, upstream, table), wanted)


def test_one_who_drew_nothing_says_nothing_and_learns_nothing():
    table, drawing, upstream, floor = problem()
    drawing[:, 1] = 255
    said, trace = evidence_and_trace(FullConfusion(table, floor), drawing, 3)
    others = FullConfusion(table[:, ::2], floor)
    assert torch.allclose(said, log_evidence(others, drawing[:, ::2]))
    slope = slopes(said, trace, upstream, table)
    assert not slope[:, 1].any()
    assert slope[:, ::2].flatten(2).any(2).all()


def test_parameters_with_gaps_in_memory():
    table, drawing, upstream, floor = problem()
    wide = table.detach().repeat_interleave(2, -1).requires_grad_()
    confusion = FullConfusion(wide[..., ::2], floor)
    wanted = slopes(*plain(confusion, drawing), upstream, wide)
    assert torch.allclose(slopes(*evidence_and_trace(confusion, drawing, 3), upstream, wide), wanted)


def test_a_class_that_is_never_ruled_out_keeps_slopes_finite():
    never = torch.tensor([[0, 0, 0.0], [0.5, 0, 1.0], [0.5, 1.0, 0]], dtype=torch.float64).log()
    table, drawing, upstream, floor = problem(drawn=1.0)
    confusion = FullConfusion(table, floor)
    said, trace = evidence_and_trace(confusion, drawing, 3, never)
    expected = plain(confusion, drawing, never)
    assert said.min() < -80
    assert torch.allclose(said, expected[0])
    assert torch.allclose(slopes(said, trace, upstream, table), slopes(*expected, upstream, table))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_is_seen(dtype):
    table, drawing, _upstream, floor = problem(drawn=1.0, dtype=dtype)
    broken = table.detach().clone()
    broken[0, 0, 0, 0, 0, 0] = torch.nan
    said, _ = evidence_and_trace(FullConfusion(broken, floor), drawing, 3)
    assert said.isnan().any()


def test_other_matrices_take_the_plain_equations(monkeypatch):
    """A learned transition needs a slope of its own; structures without a loop, and one matrix for all pixels."""
    monkeypatch.setattr(evidence, "_Evidence", None)
    table, drawing, upstream, floor = problem(dtype=torch.float32)
    learned = swap_transition(3).log().requires_grad_()
    said, _ = evidence_and_trace(FullConfusion(table, floor), drawing, 3, learned)
    assert torch.autograd.grad((said * upstream).sum(), learned)[0].any()
    rank_one = LowRankConfusion(table[:, :, 0], table[:, :, :1], None, floor)
    for confusion in (rank_one, GlobalConfusion(table[0, :, :, :, 0, 0], floor)):
        said, trace = evidence_and_trace(confusion, drawing, 3)
        assert torch.equal(said, log_evidence(confusion, drawing))
        assert trace > 0


def test_what_does_not_fit_is_refused():
    table, drawing, _, floor = problem()
    confusion = FullConfusion(table, floor)
    with pytest.raises(
        ValueError, match=r"drawings \(2, 2, 7, 9\) of pixels need matrices \(2, 2, 3, 3, 7, 9\), got \(2, 3, 3,"
    ):
        evidence_and_trace(confusion, drawing[:, :2], 3)
    with pytest.raises(ValueError, match="drawings must hold classes below 3, or 255"):
        evidence_and_trace(confusion, drawing.clamp(max=3), 3)
    with pytest.raises(ValueError, match=r"log_transition must be \(3, 3\) of 3 classes, got \(4, 4\)"):
        evidence_and_trace(confusion, drawing, 3, swap_transition(4).log())
    with pytest.raises(ValueError, match=r"drawings \(0, 3, 7, 9\) of pixels need matrices"):
        evidence_and_trace(FullConfusion(table[:0], floor), drawing[:0], 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    table, drawing, upstream, floor = problem(dtype=dtype)
    said, trace = evidence_and_trace(FullConfusion(table, floor), drawing, 3)
    assert said.dtype == torch.float32
    assert torch.allclose(said, log_evidence(FullConfusion(table.float(), floor), drawing), atol=1e-5)
    assert slopes(said, trace, upstream.float(), table).dtype == dtype


def test_tensors_of_monai():
    table, drawing, upstream, floor = problem()
    said, trace = evidence_and_trace(FullConfusion(MetaTensor(table), floor), MetaTensor(drawing), 3)
    expected = plain(FullConfusion(table, floor), drawing)
    assert torch.allclose(torch.as_tensor(said).as_subclass(torch.Tensor), expected[0])
    assert torch.allclose(slopes(said, trace, upstream, table), slopes(*expected, upstream, table))


def test_drawings_that_change_before_the_backward_pass_are_refused():
    table, drawing, upstream, floor = problem()
    said, _ = evidence_and_trace(FullConfusion(table, floor), drawing, 3)
    drawing.fill_(255)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (said * upstream).sum().backward()


def test_nothing_is_kept_of_a_trace_that_nobody_asks_slopes_of():
    table, drawing, _, floor = problem()
    rank_one = LowRankConfusion(table[:, :, 0], table[:, :, :1], None, floor)
    assert evidence_and_trace(rank_one, drawing, 3)[1].requires_grad
    assert not evidence_and_trace(rank_one, drawing, 3, trace_slopes=False)[1].requires_grad


def test_second_derivatives_are_refused():
    table, drawing, _, floor = problem()
    said, _ = evidence_and_trace(FullConfusion(table, floor), drawing, 3)
    with pytest.raises(RuntimeError, match="no second derivatives; build the loss of"):
        torch.autograd.grad(said.sum(), table, create_graph=True)
