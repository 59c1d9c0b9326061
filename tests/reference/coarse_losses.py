"""Slow, independent statements of the losses: loops over pixels, plain probabilities, float64."""

from __future__ import annotations

import itertools
import math


def positive_nll(probs, cm, annotation, balance=0):
    """probs[b][j][s], cm[b][r][i][j][s], annotation[b][r][s] with 255 for undrawn; lists or arrays, s flattened."""
    total = 0.0
    for r in range(len(annotation[0])):
        terms = {}
        for b, s in itertools.product(range(len(probs)), range(len(probs[0][0]))):
            drawn = int(annotation[b][r][s])
            if drawn != 255:
                chance = sum(cm[b][r][drawn][j][s] * probs[b][j][s] for j in range(len(probs[0])))
                terms.setdefault(drawn, []).append(-math.log(chance))
        total += mean_over_classes(terms, balance)
    return total


def mean_over_classes(terms, balance):
    """The mean of each class, of which one of n pixels counts n^(1 - balance) times."""
    counts = {k: len(own) ** (1 - balance) for k, own in terms.items()}
    return sum(counts[k] * sum(own) / len(own) for k, own in terms.items()) / sum(counts.values()) if terms else 0.0


def negative_nll(probs, cm, transition, annotation):
    classes = range(len(probs[0]))
    total = 0.0
    for r in range(len(annotation[0])):
        terms = []
        for b, s in itertools.product(range(len(probs)), range(len(probs[0][0]))):
            ruled_out = int(annotation[b][r][s])
            if ruled_out != 255:
                said = [sum(cm[b][r][i][j][s] * probs[b][j][s] for j in classes) for i in classes]
                terms.append(-math.log(sum(transition[ruled_out][i] * said[i] for i in classes)))
        total += sum(terms) / len(terms) if terms else 0.0
    return total


def joint_posterior(probs, pairs, b, s):
    """p_j times what every drawing at a pixel says of class j, for every j, and whether anybody drew.

    pairs: of (cm, annotation, transition), transition None for positive drawings.
    """
    shares, anybody = [float(p[s]) for p in probs[b]], False
    for cm, annotation, transition in pairs:
        for r in range(len(annotation[b])):
            drawn = int(annotation[b][r][s])
            if drawn == 255:
                continue
            anybody = True
            for j in range(len(shares)):
                column = [cm[b][r][i][j][s] for i in range(len(shares))]
                if transition is None:
                    shares[j] *= column[drawn]
                else:
                    shares[j] *= sum(transition[drawn][i] * column[i] for i in range(len(shares)))
    return shares, anybody


def joint_nll(probs, pairs):
    """The mean over the pixels where anybody drew, and the likeliest class of each, 255 where nobody did."""
    terms, labels = [], []
    for b, s in itertools.product(range(len(probs)), range(len(probs[0][0]))):
        shares, anybody = joint_posterior(probs, pairs, b, s)
        labels.append(shares.index(max(shares)) if anybody else 255)
        if anybody:
            terms.append(-math.log(sum(shares)))
    return sum(terms) / len(terms) if terms else 0.0, labels


def mean_trace(cm, annotation, balance=0):
    total = 0.0
    for r in range(len(annotation[0])):
        terms = {}
        for b, s in itertools.product(range(len(annotation)), range(len(annotation[0][r]))):
            if annotation[b][r][s] != 255:
                trace = sum(cm[b][r][i][i][s] for i in range(len(cm[b][r])))
                terms.setdefault(int(annotation[b][r][s]), []).append(trace)
        total += mean_over_classes(terms, balance)
    return total


def consensus(positive, negative, num_classes):
    """positive[r][s], negative[c][s] of one image."""
    labels = []
    for s in range(len(positive[0])):
        votes = dict.fromkeys(range(num_classes), 0)
        for row in positive:
            for k in votes:
                votes[k] -= row[s] not in (k, 255)
        for row in negative:
            if row[s] != 255:
                votes[row[s]] -= 1
        first, second = sorted(votes, key=votes.get, reverse=True)[:2]
        labels.append(first if votes[first] > votes[second] else 255)
    return labels
