"""Minimum cuts and alpha-expansion against all labellings of small graphs, and one solver against the other."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from medcoarse.baselines.graph_cut import SOLVERS, alpha_expansion, expand, minimum_cut, potts_energy

SEEDS = range(25)


@pytest.fixture(params=SOLVERS)
def solver(request):
    if request.param == "maxflow":
        pytest.importorskip("maxflow", reason="PyMaxflow is an optional extra")
    return request.param


def random_graph(seed, num_labels, num_nodes=7, forbidden=0.15):
    """Edges may be there twice, in either direction; some labels are forbidden."""
    rng = np.random.default_rng(seed)
    costs = rng.normal(size=(num_nodes, num_labels)) * rng.choice([0.1, 1, 10])
    closed = rng.random(costs.shape) < forbidden
    closed[np.arange(num_nodes), rng.integers(num_labels, size=num_nodes)] = False
    costs[closed] = np.inf
    edges = rng.integers(num_nodes, size=(14, 2))
    edges = edges[edges[:, 0] != edges[:, 1]]
    return costs, edges, rng.exponential(size=len(edges))


def directed_energy(labels, costs, edges, weights, backward):
    """Node by node, edge by edge."""
    total = sum(costs[node][label] for node, label in enumerate(labels))
    for (i, j), forth, back in zip(edges, weights, backward, strict=True):
        total += forth if (labels[i], labels[j]) == (0, 1) else back if (labels[i], labels[j]) == (1, 0) else 0
    return total


def best(num_labels, energy, num_nodes=7):
    return min(itertools.product(range(num_labels), repeat=num_nodes), key=energy)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_labelling_of_two_labels_costs_less(seed, solver):
    costs, edges, weights = random_graph(seed, 2)
    for backward in (weights, np.random.default_rng(seed).exponential(size=len(edges))):
        found = minimum_cut(costs, edges, weights, backward, solver)
        least = best(2, lambda labels, back=backward: directed_energy(labels, costs, edges, weights, back))
        assert tuple(found) == least


@pytest.mark.parametrize("seed", SEEDS)
def test_expansions_never_raise_the_energy_and_end_within_the_bound(seed):
    costs, edges, weights = random_graph(seed, 3)
    costs -= costs.min(1, keepdims=True)  # the bound is for costs that are not negative

    def potts(labels):
        unequal = sum(w for (i, j), w in zip(edges, weights, strict=True) if labels[i] != labels[j])
        return sum(costs[node][label] for node, label in enumerate(labels)) + unequal

    labels = costs.argmin(1)
    for alpha in (0, 1, 2, 0, 1, 2):
        turned = expand(labels, alpha, costs, edges, weights)
        assert ((turned == labels) | (turned == alpha)).all()
        assert potts(turned) <= potts(labels) + 1e-7
        moves = itertools.product((False, True), repeat=len(costs))
        assert potts(turned) == pytest.approx(min(potts(np.where(move, alpha, labels)) for move in moves), abs=1e-7)
        labels = turned
    found, least = alpha_expansion(costs, edges, weights), best(3, potts)
    assert potts_energy(found, costs, edges, weights) == pytest.approx(potts(found))
    data = sum(costs[node][label] for node, label in enumerate(least))
    assert potts(least) - 1e-7 <= potts(found) <= data + 2 * (potts(least) - data) + 1e-7
    assert potts(alpha_expansion(costs, edges, weights, labels=costs.argmin(1))) <= potts(costs.argmin(1))


@pytest.mark.parametrize("num_labels", [2, 4])
def test_both_solvers_find_the_same_in_a_large_graph(num_labels):
    pytest.importorskip("maxflow", reason="PyMaxflow is an optional extra")
    rng = np.random.default_rng(0)
    grid = np.arange(40 * 50).reshape(40, 50)
    pairs = [(grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])]
    edges = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in pairs])
    costs, weights = rng.random((2000, num_labels)), rng.random(len(edges))
    costs[::17, 0] = np.inf
    first, second = (alpha_expansion(costs, edges, weights, solver=solver) for solver in SOLVERS)
    assert np.array_equal(first, second)
    assert len(np.unique(first)) == num_labels


def test_small_graphs():
    nothing = np.zeros((0, 2), int)
    assert minimum_cut(np.array([[1.0, 1.0]]), nothing, np.zeros(0)).tolist() == [0], "a draw is 0"
    assert minimum_cut(np.zeros((0, 2)), nothing, np.zeros(0)).tolist() == []
    settled = np.array([[np.inf, 3.0], [2.0, np.inf]])
    assert minimum_cut(settled, np.array([[0, 1]]), np.array([9.0])).tolist() == [1, 0]
    assert alpha_expansion(np.array([[2.0, np.inf, 1.0]]), nothing, np.zeros(0)).tolist() == [2]
    assert alpha_expansion(np.array([[5.0], [5.0]]), np.array([[0, 1]]), np.ones(1)).tolist() == [0, 0]


def test_large_differences_of_scale_are_not_lost():
    """Strong edges bind 1 to the seed; a weak one more or less decides nothing there."""
    costs = np.array([[0.0, np.inf], [0.0, 1e-3], [0.0, 1e-3], [np.inf, 0.0]])
    edges, weights = np.array([[0, 1], [1, 2], [2, 3]]), np.array([1e-6, 1e5, 1.0])
    assert minimum_cut(costs, edges, weights).tolist() == [0, 1, 1, 1]


def test_what_cannot_be_cut_is_said():
    costs, edges, weights = np.zeros((2, 2)), np.array([[0, 1]]), np.ones(1)
    with pytest.raises(ValueError, match="solver must be one of scipy, maxflow, got 'fast'"):
        minimum_cut(costs, edges, weights, solver="fast")
    with pytest.raises(ValueError, match="weights must be as many as edges and not negative"):
        alpha_expansion(costs, edges, -weights)
    with pytest.raises(ValueError, match="backward weights"):
        minimum_cut(costs, edges, weights, -weights)
    with pytest.raises(ValueError, match="every node must have a label"):
        minimum_cut(costs + np.inf, edges, weights)


def test_without_pymaxflow_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "maxflow", None)
    with pytest.raises(ImportError, match=r'pip install PyMaxflow, or take solver="scipy"'):
        minimum_cut(np.zeros((2, 2)), np.array([[0, 1]]), np.ones(1), solver="maxflow")
