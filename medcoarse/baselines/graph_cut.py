"""Labels of the nodes of a graph with the least energy: a minimum cut for two labels, alpha-expansion for several.

Convention: ``costs (N, L)`` is what each label costs each node, ``inf`` where it is not allowed; ``edges (E, 2)`` are
pairs of nodes, each of which costs its ``weights (E,) >= 0`` where its two nodes differ.

``E(y) = sum_i costs[i, y_i] + sum_(i, j) weights_ij [y_i != y_j]``

The cut is SciPy's maximum flow. ``solver="maxflow"`` takes PyMaxflow, which is faster on large graphs; it is licensed
under the GPL, so nothing needs it: ``pip install PyMaxflow``.

Source: Boykov, Veksler and Zabih, "Fast approximate energy minimization via graph cuts" (PAMI 2001); Kolmogorov and
Zabih, "What energy functions can be minimized via graph cuts?" (PAMI 2004), for the arcs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SOLVERS = ("scipy", "maxflow")


def potts_energy(labels: NDArray[Any], costs: NDArray[Any], edges: NDArray[Any], weights: NDArray[Any]) -> float:
    """What a labelling costs, the equation above.

    Example:
        >>> costs, edges = np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([[0, 1]])
        >>> potts_energy(np.array([0, 1]), costs, edges, np.array([0.5]))
        0.5
    """
    differ = labels[edges[:, 0]] != labels[edges[:, 1]]
    return float(costs[np.arange(len(costs)), labels].sum() + weights[differ].sum())


def minimum_cut(
    costs: NDArray[Any],
    edges: NDArray[Any],
    weights: NDArray[Any],
    backward: NDArray[Any] | None = None,
    solver: str = "scipy",
) -> Ints:
    """The labelling with the least energy of all, for two labels.

    Args:
        costs: ``(N, 2)``, may be negative; ``inf`` for a label that a node must not have.
        edges: ``(E, 2)`` nodes.
        weights: ``(E,)``, paid where an edge goes from 0 to 1.
        backward: ``(E,)``, paid where it goes from 1 to 0; ``weights`` by default.
        solver: ``"scipy"`` or ``"maxflow"``.

    Returns:
        ``(N,)`` of 0 and 1; of labellings that cost the same the one with the fewest 1.

    Raises:
        ValueError: negative weights, a node without a possible label, an unknown solver.
        ImportError: PyMaxflow was asked for and is not there.

    Deviates: SciPy's flow is one of integers: capacities are rounded to 2^-30 of the largest.

    Example:
        >>> costs = np.array([[0.0, np.inf], [0.4, 0.6], [0.6, 0.4], [np.inf, 0.0]])
        >>> edges = np.array([[0, 1], [1, 2], [2, 3]])
        >>> minimum_cut(costs, edges, np.array([1.0, 0.1, 1.0])).tolist()
        [0, 0, 1, 1]
    """
    backward = weights if backward is None else backward
    _check(costs, edges, weights, solver)
    if backward.shape != weights.shape or (backward < 0).any():
        raise ValueError("backward weights must be as many as edges and not negative")
    labels: Ints = np.isinf(costs[:, 0]).astype(np.int64)
    free = np.isfinite(costs).all(1)
    tails, heads = np.concatenate([edges, edges[:, ::-1]]).T
    paid = np.concatenate([weights, backward]).astype(np.float64)  # where the tail is 0 and the head is 1
    # Who has no choice leaves the graph: an arc to such a node is a cost of its neighbour's.
    one = paid * (~free[tails] & free[heads] & (labels[tails] == 0))
    zero = paid * (free[tails] & ~free[heads] & (labels[heads] == 1))
    excess = np.zeros(len(costs))
    excess[free] = costs[free, 1] - costs[free, 0]
    excess += np.bincount(heads, one, len(costs)) - np.bincount(tails, zero, len(costs))
    inside = free[tails] & free[heads]
    number = np.cumsum(free) - 1
    arcs = number[tails[inside]], number[heads[inside]], paid[inside]
    solve = _scipy_cut if solver == "scipy" else _maxflow_cut
    if free.any():
        labels[free] = solve(excess[free], *arcs)
    return labels


def _scipy_cut(excess: Floats, tails: Ints, heads: Ints, paid: Floats) -> NDArray[np.bool_]:
    """Nodes with label 1; ``excess`` is how much more that costs than 0."""
    n = len(excess)
    source, sink, nodes = n, n + 1, np.arange(n)
    rows = np.concatenate([tails, np.full(n, source), nodes])
    columns = np.concatenate([heads, nodes, np.full(n, sink)])
    capacity = coo_array((np.concatenate([paid, excess.clip(0), (-excess).clip(0)]), (rows, columns)), (n + 2, n + 2))
    graph = capacity.tocsr()  # sums what is there several times
    # An arc and its reverse, together, have to fit into 32 bits.
    largest = graph.data.max(initial=0)
    graph.data = np.rint(graph.data / (largest if largest > 0 else 1) * (2**30 - 1)).astype(np.int32)
    left = graph - maximum_flow(graph, source, sink).flow
    left.data = (left.data > 0).astype(np.int32)
    left.eliminate_zeros()
    ones = np.zeros(n + 2, dtype=np.bool_)
    ones[breadth_first_order(left.T.tocsr(), sink, return_predecessors=False)] = True  # what can still reach the sink
    return ones[:n]


def _maxflow_cut(excess: Floats, tails: Ints, heads: Ints, paid: Floats) -> NDArray[np.bool_]:
    """As :func:`_scipy_cut`, by PyMaxflow."""
    try:
        import maxflow
    except ImportError as error:
        raise ImportError('solver="maxflow" needs PyMaxflow: pip install PyMaxflow, or take solver="scipy"') from error
    graph = maxflow.Graph[float](len(excess), len(paid))
    nodes = graph.add_grid_nodes(len(excess))
    graph.add_grid_tedges(nodes, excess.clip(0), (-excess).clip(0))
    graph.add_edges(nodes[tails], nodes[heads], paid, np.zeros_like(paid))
    graph.maxflow()
    ones: NDArray[np.bool_] = graph.get_grid_segments(nodes)
    return ones


def alpha_expansion(
    costs: NDArray[Any],
    edges: NDArray[Any],
    weights: NDArray[Any],
    labels: NDArray[Any] | None = None,
    solver: str = "scipy",
) -> Ints:
    """A labelling with little energy: one minimum cut after the other, each about who turns to one label.

    With two labels it has the least energy of all. With more its energy is no higher than that of any labelling with
    the pairs counted twice, and no step raises it.

    Args:
        costs: ``(N, L)``; ``inf`` for a label that a node must not have.
        edges: ``(E, 2)`` nodes.
        weights: ``(E,)``.
        labels: where to start, allowed labels; by default the cheapest of each node.
        solver: ``"scipy"`` or ``"maxflow"``.

    Returns:
        ``(N,)`` labels.

    Raises:
        ValueError: negative weights, a node without a possible label, an unknown solver.

    Source: Boykov, Veksler and Zabih 2001, Fig. 3 and Theorem 6.1.

    Example:
        >>> costs = np.array([[0, 9, 9], [2, 2, 1], [9, 0, 9], [9, 0, 9]])
        >>> edges = np.array([[0, 1], [1, 2], [1, 3]])
        >>> alpha_expansion(costs, edges, np.ones(3)).tolist()  # two neighbours say 1: 2 + 1 is less than 1 + 3
        [0, 1, 1, 1]
    """
    costs = costs.astype(np.float64)
    _check(costs, edges, weights, solver)
    if costs.shape[1] == 2:
        return minimum_cut(costs, edges, weights, solver=solver)
    labels = costs.argmin(1) if labels is None else labels.astype(np.int64)
    energy = potts_energy(labels, costs, edges, weights)
    candidates = np.flatnonzero(np.isfinite(costs).any(0))
    unchanged, turn = 0, 0
    while unchanged < len(candidates):
        expanded = expand(labels, int(candidates[turn % len(candidates)]), costs, edges, weights, solver)
        lower = potts_energy(expanded, costs, edges, weights)
        better = lower < energy - 1e-9 * max(1.0, abs(energy))  # and not by rounding alone
        labels, energy = (expanded, lower) if better else (labels, energy)
        unchanged, turn = 0 if better else unchanged + 1, turn + 1
    return labels


def expand(
    labels: NDArray[Any],
    alpha: int,
    costs: NDArray[Any],
    edges: NDArray[Any],
    weights: NDArray[Any],
    solver: str = "scipy",
) -> Ints:
    """The best of all labellings in which every node keeps its label or turns to ``alpha``. Arguments as there."""
    nodes = np.arange(len(costs))
    first, second = labels[edges[:, 0]], labels[edges[:, 1]]
    # Both keep, the second turns, the first turns; nothing where both turn.
    neither, one, other = (weights * differ for differ in (first != second, first != alpha, second != alpha))
    turning = costs[:, alpha].astype(np.float64)
    turning += np.bincount(edges[:, 0], other - neither, len(costs)) - np.bincount(edges[:, 1], other, len(costs))
    turning[labels == alpha] = np.inf  # they have it already
    choice = np.stack([costs[nodes, labels], turning], 1)
    turn = minimum_cut(choice, edges, one + other - neither, np.zeros(len(edges)), solver)
    return np.where(turn == 1, alpha, labels).astype(np.int64)


def _check(costs: NDArray[Any], edges: NDArray[Any], weights: NDArray[Any], solver: str) -> None:
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if weights.shape != edges.shape[:1] or (weights < 0).any():
        raise ValueError("weights must be as many as edges and not negative")
    if np.isnan(costs).any() or np.isneginf(costs).any() or np.isposinf(costs).all(1).any():
        raise ValueError("every node must have a label that it may have, and no cost may be NaN or -inf")
