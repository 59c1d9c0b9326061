"""The fused terms against the plain equations, in float64: values, gradients, and wherever the fast path branches."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from monai.data import MetaTensor

from medcoarse import fused, kernels
from medcoarse.confusion import FullConfusion, LowRankConfusion, UpsampledConfusion, swap_transition
from medcoarse.fused import annotator_terms
from medcoarse.likelihoods import coarse_nll, complementary_nll, mean_trace

R = 2
WEIGHT = 0.3
BIASED = torch.tensor([[0, 0.2, 0.5], [0.4, 0, 0.5], [0.6, 0.8, 0]], dtype=torch.float64)


def problem(structure, classes=3, image=(7, 9), batch=3, drawn=0.9, floor=0.5, scale=1.0):
    generator = torch.Generator().manual_seed(classes)

    def normal(*shape):
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

    logits = normal(batch, classes, *image)
    drawing = torch.randint(0, classes, (batch, R, *image), generator=generator, dtype=torch.uint8)
    drawing[torch.rand(drawing.shape, generator=generator) >= drawn] = 255
    if structure == "full":
        return logits, FullConfusion(normal(batch, R, classes, classes, *image), floor), drawing
    rank = 1 if structure == "rank_one" else 2
    factors = [normal(batch, R, rank, classes, *image) for _ in range(rank)]
    return logits, LowRankConfusion(normal(batch, R, classes, *image), *factors, floor=floor), drawing


def tensors(logits, confusion):
    return [logits, *(field for field in confusion if isinstance(field, torch.Tensor))]


def plain(logits, confusion, drawing, balance=0.0):
    log_probs = logits.log_softmax(1)
    return coarse_nll(log_probs, confusion, drawing, balance) + WEIGHT * mean_trace(confusion, drawing, balance)


def assert_same(logits, confusion, drawing, value, expected):
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    slopes = torch.autograd.grad(value, tensors(logits, confusion))
    expected_slopes = torch.autograd.grad(expected, tensors(logits, confusion))
    for slope, wanted in zip(slopes, expected_slopes, strict=True):
        assert torch.allclose(slope, wanted, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("chunk_bytes", [1 << 10, 1 << 21])
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("drawn", [1.0, 0.9, 0.2, 0.0])
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("structure", ["full", "rank_one", "rank_two"])
def test_equal_to_the_equations(structure, classes, drawn, floor, chunk_bytes, monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_BYTES", chunk_bytes)
    logits, confusion, drawing = problem(structure, classes, image=(19, 23), drawn=drawn, floor=floor)
    terms = annotator_terms(logits, confusion, drawing, WEIGHT)
    assert_same(logits, confusion, drawing, terms.objective, plain(logits, confusion, drawing))
    assert terms.nll.item() == pytest.approx(coarse_nll(logits.log_softmax(1), confusion, drawing).item())
    assert terms.trace.item() == pytest.approx(mean_trace(confusion, drawing).item())


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("drawn", [0.9, 0.2, 0.0])
@pytest.mark.parametrize("balance", [0.5, 1.0])
@pytest.mark.parametrize("structure", ["full", "rank_one", "rank_two"])
def test_balanced_classes(structure, balance, drawn, scale):
    """Also where likelihoods are too small for any number, and where a class was not drawn."""
    logits, confusion, drawing = problem(structure, classes=4, image=(19, 23), drawn=drawn, scale=scale)
    drawing[(drawing == 0) & (torch.rand(drawing.shape) < 0.9)] = 1  # class 0 is rare
    drawing[drawing == 3] = 255
    terms = annotator_terms(logits, confusion, drawing, WEIGHT, balance=balance)
    assert_same(logits, confusion, drawing, terms.objective, plain(logits, confusion, drawing, balance))
    coarse = UpsampledConfusion(problem(structure, classes=4, image=(5, 6))[1], (19, 23))
    value = annotator_terms(logits, coarse, drawing, WEIGHT, balance=balance).objective
    assert_same(logits, coarse.coarse, drawing, value, plain(logits, coarse, drawing, balance))


@pytest.mark.parametrize("image", [(1, 1), (5,), (3, 4, 5), (1, 300, 2)])
@pytest.mark.parametrize("structure", ["full", "rank_one"])
def test_any_image_size(structure, image):
    logits, confusion, drawing = problem(structure, image=image, drawn=0.7)
    value = annotator_terms(logits, confusion, drawing, WEIGHT).objective
    assert_same(logits, confusion, drawing, value, plain(logits, confusion, drawing))


@pytest.mark.parametrize("structure", ["full", "rank_one"])
def test_only_one_annotator_drew_on_each_image(structure):
    logits, confusion, drawing = problem(structure, batch=2, drawn=1.0)
    drawing[0, 1] = drawing[1, 0] = 255
    value = annotator_terms(logits, confusion, drawing, WEIGHT).objective
    assert_same(logits, confusion, drawing, value, plain(logits, confusion, drawing))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 25.0, 400.0])  # the larger ones ask for log space
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("structure", ["full", "rank_one", "rank_two"])
def test_negative_drawings(structure, floor, scale, threads, monkeypatch):
    monkeypatch.setattr(fused, "THREAD_PIXELS", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    logits, confusion, drawing = problem(structure, image=(29, 23), drawn=0.6, floor=floor, scale=scale)
    value = annotator_terms(logits, confusion, drawing, WEIGHT, BIASED.log()).objective
    expected = complementary_nll(logits.log_softmax(1), confusion, BIASED.log(), drawing)
    assert_same(logits, confusion, drawing, value, expected + WEIGHT * mean_trace(confusion, drawing))


@pytest.mark.parametrize("structure", ["full", "rank_one"])
@pytest.mark.parametrize("classes", [4, 19])
def test_negative_drawings_of_any_class_on_a_coarser_grid(structure, classes):
    log_transition = swap_transition(classes).log().double()
    logits, coarse, drawing = problem(structure, classes, image=(12, 16))
    fields = [field[..., ::4, ::4].detach().requires_grad_() for field in tensors(logits, coarse)[1:]]
    coarse = coarse._replace(**dict(zip(fused._fields(coarse), fields, strict=True)))
    confusion = UpsampledConfusion(coarse, (12, 16))
    value = annotator_terms(logits, confusion, drawing, WEIGHT, log_transition).objective
    expected = complementary_nll(logits.log_softmax(1), confusion.full(), log_transition, drawing)
    assert_same(logits, coarse, drawing, value, expected + WEIGHT * mean_trace(confusion.full(), drawing))


@pytest.mark.parametrize("structure", ["full", "rank_one"])
def test_the_negative_drawing_of_a_class_that_is_never_ruled_out_is_impossible(structure):
    logits, confusion, drawing = problem(structure)
    never = torch.tensor([[0, 0, 0.0], [0.5, 0, 1.0], [0.5, 1.0, 0]]).log()
    assert annotator_terms(logits, confusion, drawing, WEIGHT, never).nll == torch.inf
    drawing[drawing == 0] = 255
    assert annotator_terms(logits, confusion, drawing, WEIGHT, never).nll.isfinite()


@pytest.mark.parametrize("scale", [8.0, 25.0, 40.0, 400.0])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("structure", ["full", "rank_one"])
def test_certain_and_wrong_stays_finite_and_exact(structure, floor, classes, scale):
    """Where probabilities lose their digits, and where they are too small for any number (log space takes over)."""
    logits, confusion, drawing = problem(structure, classes, (6, 5), drawn=1.0, floor=floor, scale=scale)
    value = annotator_terms(logits, confusion, drawing, WEIGHT).objective
    assert_same(logits, confusion, drawing, value, plain(logits, confusion, drawing))


@pytest.mark.parametrize("scale", [1.0, 5.0, 8.0, 15.0, 40.0])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("structure", ["full", "rank_one"])
def test_single_precision_is_enough(structure, floor, classes, scale):
    logits, confusion, drawing = problem(structure, classes, (20, 20), drawn=1.0, floor=floor, scale=scale)
    exact = tensors(logits, confusion)
    single = [tensor.detach().float().requires_grad_() for tensor in exact]
    rounded = confusion._replace(**dict(zip(fused._fields(confusion), single[1:], strict=True)))
    value = annotator_terms(single[0], rounded, drawing, WEIGHT).objective
    expected = plain(logits, confusion, drawing)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    weight = drawing[:, 0].numel()
    for slope, wanted in zip(torch.autograd.grad(value, single), torch.autograd.grad(expected, exact), strict=True):
        assert (weight * (slope - wanted)).abs().max() < 1e-3


def test_scaled_and_repeated_backward():
    logits, confusion, drawing = problem("full")
    value = annotator_terms(logits, confusion, drawing, WEIGHT).objective
    once = [slope.clone() for slope in torch.autograd.grad(value, tensors(logits, confusion), retain_graph=True)]
    thrice = torch.autograd.grad(3 * value, tensors(logits, confusion), retain_graph=True)
    again = torch.autograd.grad(value, tensors(logits, confusion))
    for a, b, c in zip(once, thrice, again, strict=True):
        assert torch.allclose(3 * a, b)
        assert torch.equal(a, c)


def test_second_derivatives_are_refused():
    """Also beside a term that has some, where what is differentiated would be that term alone."""
    logits, confusion, drawing = problem("full")
    value = annotator_terms(logits, confusion, drawing, WEIGHT).objective + logits.square().sum()
    with pytest.raises(RuntimeError, match="no second derivatives; build the loss of"):
        torch.autograd.grad(value, logits, create_graph=True)


def test_gradients_accumulate_in_leaves():
    logits, confusion, drawing = problem("rank_one")
    for _ in range(2):
        annotator_terms(logits, confusion, drawing, WEIGHT).objective.backward()
    expected = torch.autograd.grad(2 * plain(logits, confusion, drawing), tensors(logits, confusion))
    for tensor, slope in zip(tensors(logits, confusion), expected, strict=True):
        assert torch.allclose(tensor.grad, slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("structure", ["full", "rank_one"])
def test_nan_is_seen(structure, where, dtype):
    """A training that diverges must not look as if it went on."""
    logits, confusion, drawing = problem(structure, drawn=1.0)
    values = [tensor.detach().to(dtype) for tensor in tensors(logits, confusion)]
    values[where].flatten()[5] = torch.nan
    broken = confusion._replace(**dict(zip(fused._fields(confusion), values[1:], strict=True)))
    assert annotator_terms(values[0], broken, drawing, WEIGHT).nll.isnan()


def test_value_without_gradients():
    logits, confusion, drawing = problem("full")
    with torch.no_grad():
        terms = annotator_terms(logits, confusion, drawing, WEIGHT)
    assert not terms.objective.requires_grad
    assert terms.objective.item() == pytest.approx(plain(logits, confusion, drawing).item())


@pytest.mark.parametrize(("structure", "classes"), [("full", 2), ("full", 3), ("rank_one", 3), ("rank_two", 3)])
@pytest.mark.parametrize("drawn", [1.0, 0.2])
def test_gradient_of_the_segmenter_alone(structure, classes, drawn):
    """Annotators that do not learn: nothing is kept for them."""
    logits, confusion, drawing = problem(structure, classes, drawn=drawn)
    names = fused._fields(confusion)
    frozen = confusion._replace(**{name: field.detach() for name, field in names.items()})
    assert len(annotator_terms(logits, frozen, drawing, WEIGHT).objective.grad_fn.saved_tensors) == 1
    slope = torch.autograd.grad(annotator_terms(logits, frozen, drawing, WEIGHT).objective, logits)[0]
    assert torch.allclose(slope, torch.autograd.grad(plain(logits, confusion, drawing), logits)[0])


def test_parameters_with_gaps_in_memory():
    """As they come from a split of the annotators' channels."""
    logits, confusion, drawing = problem("full")
    wide = torch.randn(3, R + 2, 3, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    confusion = FullConfusion(wide[:, 1:-1], 0.5)
    value = annotator_terms(logits, confusion, drawing, WEIGHT).objective
    slope = torch.autograd.grad(value, wide)[0]
    assert torch.allclose(slope, torch.autograd.grad(plain(logits, confusion, drawing), wide)[0])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("structure", ["full", "rank_one", "rank_two"])
def test_transitions_of_other_classes_are_refused(structure, classes):
    logits, confusion, drawing = problem(structure, classes=3)
    with pytest.raises(ValueError, match=rf"log_transition must be \(3, 3\) of 3 classes, got \({classes}, {classes}"):
        annotator_terms(logits, confusion, drawing % 2, WEIGHT, swap_transition(classes).log())


@pytest.mark.parametrize("structure", ["full", "rank_one", "rank_two"])
@pytest.mark.parametrize("log_transition", [None, swap_transition(3).log()])
def test_tensors_of_monai(structure, log_transition):
    """A network that is called on a MetaTensor gives MetaTensors."""
    logits, confusion, drawing = problem(structure)
    expected = annotator_terms(logits, confusion, drawing, WEIGHT, log_transition)
    fields = {name: MetaTensor(field) for name, field in fused._fields(confusion).items()}
    arguments = (MetaTensor(logits), confusion._replace(**fields), MetaTensor(drawing))
    assert torch.equal(annotator_terms(*arguments, WEIGHT, log_transition).nll, expected.nll)


def test_swap_reads_the_other_class():
    logits, confusion, drawing = problem("full", classes=2)
    other = torch.where(drawing == 255, drawing, 1 - drawing)
    expected = partial(complementary_nll, logits.log_softmax(1), confusion, swap_transition(2).log())
    assert annotator_terms(logits, confusion, other, 0).nll.item() == pytest.approx(expected(drawing).item())


@pytest.mark.parametrize(("value", "dtype"), [(3, torch.uint8), (254, torch.uint8), (-1, torch.int64)])
@pytest.mark.parametrize("structure", ["full", "rank_one"])
def test_values_that_are_no_class_are_refused(structure, value, dtype):
    logits, confusion, drawing = problem(structure)
    drawing = drawing.to(dtype)
    drawing[0, 0, 0, :2] = value
    with pytest.raises(ValueError, match="classes below 3, or 255 where nothing was drawn; 2 pixels hold"):
        annotator_terms(logits, confusion, drawing, WEIGHT)


def test_shapes_that_do_not_fit_are_refused():
    logits, confusion, drawing = problem("full")
    for arguments in (
        (logits, confusion._replace(logits=confusion.logits[:1]), drawing),
        (logits, confusion, drawing[:, :1]),
        (logits, confusion, drawing[..., :-1]),
        (logits[:0], confusion._replace(logits=confusion.logits[:0]), drawing[:0]),
    ):
        with pytest.raises(ValueError, match="must fit and hold pixels, got"):
            annotator_terms(*arguments, WEIGHT)


@pytest.mark.parametrize("structure", ["full", "rank_one", "rank_two"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("upsampled", [False, True])
def test_matrices_of_other_classes_are_refused(structure, classes, upsampled):
    """The compiled loops would read and write beside them."""
    logits, _, drawing = problem(structure, classes=3)
    _, confusion, _ = problem(structure, classes=classes)
    if upsampled:
        confusion = UpsampledConfusion(confusion, tuple(logits.shape[2:]))
    with pytest.raises(ValueError, match=r"parameters .* of L classes"):
        annotator_terms(logits, confusion, drawing, WEIGHT)


def test_coarse_parameters_that_do_not_fit_each_other_are_refused():
    logits, confusion, drawing = problem("rank_one")
    size = tuple(logits.shape[2:])
    for wrong in (
        confusion._replace(habits=confusion.habits[..., :-1]),
        confusion._replace(copy=confusion.copy[..., :0], habits=confusion.habits[..., :0]),
        confusion._replace(habits=confusion.habits.expand(-1, -1, 2, -1, -1, -1)),  # two habits and no weights
    ):
        with pytest.raises(ValueError, match="must fit and hold pixels, got"):
            annotator_terms(logits, UpsampledConfusion(wrong, size), drawing, WEIGHT)


def test_compiled_loops_are_used_where_there_are_some():
    logits = torch.zeros(1, 3, 2)
    chosen = [fused._kernel(logits, problem(structure)[1]) for structure in ("full", "rank_one", "rank_two")]
    assert chosen == [kernels.full_terms, kernels.rank_one_terms, None]
    assert fused._kernel(logits, UpsampledConfusion(problem("full")[1], (4, 4))) is kernels.full_terms
    assert fused._kernel(logits.to("meta"), problem("full")[1]) is None


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("coarse", "image"), [
    ((4, 5), (16, 20)), ((3, 1), (7, 9)), ((5,), (11,)), ((2, 3, 4), (5, 6, 7)), ((6, 7), (3, 4)), ((1, 2), (40, 3)),
])  # fmt: skip
@pytest.mark.parametrize("structure", ["full", "rank_one", "rank_two"])
def test_parameters_of_a_coarser_grid(structure, coarse, image, threads, monkeypatch):
    """Interpolated piece by piece they give what they give when they are interpolated at once."""
    monkeypatch.setattr(fused, "SLAB_PIXELS", 30)
    monkeypatch.setattr(fused, "THREAD_PIXELS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    _, confusion, _ = problem(structure, image=coarse)
    logits, _, drawing = problem(structure, image=image, drawn=0.8)
    upsampled = UpsampledConfusion(confusion, image)
    value = annotator_terms(logits, upsampled, drawing, WEIGHT).objective
    assert_same(logits, confusion, drawing, value, plain(logits, upsampled, drawing))


def test_interpolation_is_that_of_torch():
    _, confusion, _ = problem("full", image=(4, 5))
    full = UpsampledConfusion(confusion, (9, 11)).full().logits
    expected = torch.nn.functional.interpolate(confusion.logits[:, 1, 2], (9, 11), mode="bilinear")
    assert torch.allclose(full[:, 1, 2], expected)


@pytest.mark.parametrize(("pixels", "unit", "threads"), [(12, 1, 5), (12, 4, 5), (7, 7, 2), (1, 1, 4), (30, 3, 4)])
def test_threads_share_every_pixel_once(pixels, unit, threads, monkeypatch):
    monkeypatch.setattr(fused, "THREAD_PIXELS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen = torch.zeros(3, pixels)
    parts = fused.pixel_shares(3, pixels, unit)
    for image, start, stop in [piece for part in parts for piece in part]:
        assert start % unit == stop % unit == 0
        seen[image, start:stop] += 1
    assert (seen == 1).all()
    assert len(parts) == min(4 * threads, 3 * pixels // unit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponential_and_logarithm(dtype):
    """The polynomials of the compiled loops, by way of a likelihood that is one exponential and one logarithm."""
    scores = torch.zeros(1, 2, 1001, dtype=dtype)
    scores[0, 1] = torch.linspace(-60, 60, 1001)
    drawing = torch.ones(1, 1, 1001, dtype=torch.uint8)
    sure = torch.full((1, 1, 2, 2, 1001), -60.0, dtype=dtype)
    sure[0, 0, [0, 1], [0, 1]] = 60
    slope = torch.zeros(1, 2, 1001, dtype=dtype, requires_grad=True)
    value = annotator_terms(slope + scores, FullConfusion(sure), drawing, 0).nll
    exact = -torch.nn.functional.logsigmoid(scores[0, 1].double()).mean()
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)


def test_chunks_cover_everything_once():
    field = torch.zeros(5, 1, 3, 3, 700)
    seen = torch.zeros(5, 700)
    sizes = []
    for images, pixels in fused._chunks([field]):
        seen[images, pixels] += 1
        sizes.append(seen[images, pixels].numel())
    assert (seen == 1).all()
    assert max(sizes) * 9 * 4 <= fused.CHUNK_BYTES
