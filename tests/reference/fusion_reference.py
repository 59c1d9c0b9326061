"""Slow, independent fusion of several annotators: loops over voxels, plain probabilities, Python floats.

One image: ``said[r][x]``, voxels in a flat list, 255 where annotator r said nothing.
"""

from __future__ import annotations

import itertools
import math

UNLABELED = 255


def shares(said, num_classes):
    """share[x][l] of those who said something; all 0 where nobody did."""
    table = []
    for votes in zip(*said, strict=True):
        spoken = [v for v in votes if v != UNLABELED]
        table.append([spoken.count(k) / len(spoken) if spoken else 0.0 for k in range(num_classes)])
    return table


def majority(said, num_classes, ties):
    labels = []
    for share in shares(said, num_classes):
        best = [k for k in range(num_classes) if share[k] == max(share)]
        if max(share) == 0 or (len(best) > 1 and ties == "unlabeled"):
            labels.append(UNLABELED)
        else:
            labels.append(best[0])
    return labels


def start_matrix(num_classes, diagonal):
    aside = (1 - diagonal) / (num_classes - 1)
    return [[diagonal if i == j else aside for j in range(num_classes)] for i in range(num_classes)]


def likelihood(votes, true, matrices):
    return math.prod(m[v][true] for v, m in zip(votes, matrices, strict=True) if v != UNLABELED)


def e_step(voxels, prior, matrices):
    """matrices(x) are those of the annotators at voxel x."""
    posterior = {}
    for x, votes in voxels.items():
        joint = [prior[s] * likelihood(votes, s, matrices(x)) for s in range(len(prior))]
        posterior[x] = [value / sum(joint) for value in joint]
    return posterior


def m_step(voxels, posterior, previous):
    num_classes = len(previous[0])
    matrices = []
    for r, old in enumerate(previous):
        matrix = [[0.0] * num_classes for _ in range(num_classes)]
        for s in range(num_classes):
            total = sum(posterior[x][s] for x, votes in voxels.items() if votes[r] != UNLABELED)
            for i in range(num_classes):
                found = sum(posterior[x][s] for x, votes in voxels.items() if votes[r] == i)
                matrix[i][s] = found / total if total > 0 else old[i][s]
        matrices.append(matrix)
    return matrices


def staple(said, num_classes, iterations, diagonal=0.99999, prior=None, disagreement_only=False):
    """(posterior[x][s], matrices[r][observed][true], prior[s]) after a number of iterations."""
    every = dict(enumerate(zip(*said, strict=True)))
    voxels = {x: votes for x, votes in every.items() if set(votes) != {UNLABELED}}
    if disagreement_only:
        voxels = {x: votes for x, votes in voxels.items() if len(set(votes) - {UNLABELED}) > 1}
    share = shares(said, num_classes)
    if prior is None:
        prior = [sum(share[x][s] for x in voxels) / len(voxels) for s in range(num_classes)]
    matrices = [start_matrix(num_classes, diagonal) for _ in said]
    for _ in range(iterations):
        current = matrices
        posterior = e_step(voxels, prior, lambda x, current=current: current)
        matrices = m_step(voxels, posterior, matrices)
    full = []
    for x, votes in every.items():
        spoken = set(votes) - {UNLABELED}
        agreed = [1.0 if spoken == {s} else 0.0 for s in range(num_classes)]
        full.append(posterior[x] if x in voxels else agreed)
    return full, matrices, prior


def log_likelihood(said, prior, matrices):
    total = 0.0
    for votes in zip(*said, strict=True):
        if set(votes) != {UNLABELED}:
            total += math.log(sum(prior[s] * likelihood(votes, s, matrices) for s in range(len(prior))))
    return total


def neighbours(x, shape, window):
    """All voxels of the window around x, moved inside the image."""
    sides = []
    for position, length, width in zip(x, shape, window, strict=True):
        first = min(max(position - (width - 1) // 2, 0), length - width)
        sides.append(range(first, first + width))
    return list(itertools.product(*sides))


def average_content(r, s, places, voxels, posterior):
    """Of class s, what annotator r drew on in a voxel of the image on average."""
    return sum(posterior[y][s] for y in places if y in voxels and voxels[y][r] != UNLABELED) / len(places)


def local_matrices(x, voxels, posterior, overall, shape, window, pull):
    around = neighbours(x, shape, window)
    size, num_classes = len(around), len(overall[0])
    matrices = []
    for r, everywhere in enumerate(overall):
        matrix = [[0.0] * num_classes for _ in range(num_classes)]
        for s in range(num_classes):
            drawn = sum(posterior[y][s] for y in around if y in voxels and voxels[y][r] != UNLABELED) / size
            for i in range(num_classes):
                found = sum(posterior[y][s] for y in around if y in voxels and voxels[y][r] == i) / size
                below = drawn + pull[r][s]
                matrix[i][s] = (found + pull[r][s] * everywhere[i][s]) / below if below > 0 else everywhere[i][s]
        matrices.append(matrix)
    return matrices


def spatial_staple(said, num_classes, shape, window, bias, iterations, global_iterations):
    """(posterior[x], matrices at every voxel x of the last posterior); x is a tuple of coordinates."""
    places = list(itertools.product(*(range(n) for n in shape)))
    flat, overall, prior = staple(said, num_classes, global_iterations)
    every = dict(zip(places, zip(*said, strict=True), strict=True))
    voxels = {x: votes for x, votes in every.items() if set(votes) != {UNLABELED}}
    posterior = dict(zip(places, flat, strict=True))

    pull = [
        [bias * average_content(r, s, places, voxels, posterior) for s in range(num_classes)]
        for r in range(len(overall))
    ]

    def fields():
        return {x: local_matrices(x, voxels, posterior, overall, shape, window, pull) for x in places}

    for _ in range(iterations):
        matrices = fields()
        posterior = e_step(voxels, prior, lambda x, matrices=matrices: matrices[x])
        posterior |= {x: [0.0] * num_classes for x in places if x not in voxels}
    return [posterior[x] for x in places], fields()
