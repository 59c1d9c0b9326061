from __future__ import annotations

import pytest
import torch

from medcoarse.confusion import (
    FullConfusion,
    IdentityConfusion,
    LowRankConfusion,
    annotate,
    check_transition,
    complement,
    compose,
    identity,
    sample_annotation,
    swap_transition,
    trace,
)


def test_orientation_is_observed_by_true():
    """The annotator draws 0 for everything. cm[observed, true] then has ones in its first row."""
    cm = torch.tensor([[1.0, 1.0, 1.0], [0, 0, 0], [0, 0, 0]]).view(1, 1, 3, 3, 1)
    probs = torch.tensor([0.2, 0.3, 0.5]).view(1, 3, 1)
    assert annotate(cm, probs).flatten().tolist() == [1.0, 0.0, 0.0]
    assert (sample_annotation(cm, torch.tensor([[[2]]])) == 0).all()
    logits = torch.full((1, 1, 3, 3, 1), -50.0)
    logits[:, :, 0] = 50.0  # index 2 of the tensor is the drawn class
    assert torch.allclose(FullConfusion(logits).dense(), cm)


def test_transition_orientation_by_hand():
    """METHOD: M[i, j] = p(complementary = i | true = j), so truth 1 reads column 1."""
    transition = torch.tensor([[0.0, 0.5, 0.2], [0.9, 0.0, 0.8], [0.1, 0.5, 0.0]])
    truth = torch.tensor([0.0, 1.0, 0.0]).view(1, 1, 3, 1)
    assert torch.allclose(complement(transition, truth).flatten(), torch.tensor([0.5, 0.0, 0.5]))


def test_sampling_reproduces_the_matrix():
    cm = torch.tensor([[0.7, 0.1, 0.2], [0.2, 0.6, 0.1], [0.1, 0.3, 0.7]]).view(1, 1, 3, 3, 1)
    label = torch.arange(3).repeat(20_000).view(1, 1, -1)
    drawn = sample_annotation(cm.expand(-1, -1, -1, -1, label.shape[-1]), label, torch.Generator().manual_seed(0))
    counts = torch.stack([torch.bincount(drawn[0, 0][label[0, 0] == k], minlength=3) for k in range(3)], 1)
    assert torch.allclose(counts / 20_000, cm.view(3, 3), atol=0.012)


def test_composition_and_trace():
    cm = torch.rand(1, 2, 3, 3, 4).softmax(2)
    probs = torch.rand(1, 3, 4).softmax(1)
    eye = identity(3).view(1, 1, 3, 3, 1).expand(1, 2, 3, 3, 4)
    assert torch.allclose(compose(eye, cm), cm)
    twice = annotate(cm[:, :1], annotate(cm[:, :1], probs)[:, 0])
    assert torch.allclose(annotate(compose(cm, cm)[:, :1], probs), twice, atol=1e-6)
    assert torch.allclose(trace(eye), torch.tensor(3.0))


def test_rank_one_spans_all_dominated_binary_matrices():
    """METHOD: exactly general enough for L = 2. Solve for (a, b) = (A00, A11) with a + b >= 1."""
    a, b = 0.8, 0.6
    copied = a + b - 1  # d_0 = d_1 = d and habit = ((1 - b) / (1 - d), ...)
    habit = torch.tensor([(1 - b) / (1 - copied), (1 - a) / (1 - copied)])
    confusion = LowRankConfusion(torch.full((1, 1, 2, 1), copied).logit(), habit.log().view(1, 1, 1, 2, 1))
    assert torch.allclose(confusion.dense().view(2, 2), torch.tensor([[a, 1 - b], [1 - a, b]]))


def test_swap_is_uniform_over_the_other_classes():
    for classes in (2, 5):
        matrix = swap_transition(classes)
        assert matrix.diagonal().abs().max() == 0
        assert torch.allclose(matrix.sum(0), torch.ones(classes))
        assert torch.equal(check_transition(matrix), matrix)


def test_softmax_over_a_middle_axis_survives_the_backward_pass():
    """torch 2.13 on CPU fails with "grad_input must be contiguous" when a softmax over a middle axis meets einsum."""
    logits = torch.randn(2, 2, 3, 3, 4, 5, requires_grad=True)
    probs = torch.randn(2, 3, 4, 5).softmax(1)
    annotate(FullConfusion(logits, 0.5).dense(), probs).square().sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.zeros(2, 3), r"square .* got \(2, 3\)"),
        (torch.eye(2), "zero diagonal"),
        (torch.tensor([[0.0, 0.5], [1.0, 0.0]]), "column sums"),
    ],
)
def test_bad_transition(matrix, message):
    with pytest.raises(ValueError, match=message):
        check_transition(matrix)


def test_identity_has_no_dense_form():
    with pytest.raises(ValueError, match="no dense form"):
        IdentityConfusion(1).dense()
