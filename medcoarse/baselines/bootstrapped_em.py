"""Model-bootstrapped expectation maximization: what the network learned stands in for the annotators there are not."""

from __future__ import annotations

import torch

from medcoarse.baselines.generalized_em import GeneralizedEM, posterior, smoothed_confusion
from medcoarse.confusion import UNLABELED
from medcoarse.metrics import annotation_counts


class BootstrappedEM(GeneralizedEM):
    """Model-bootstrapped EM: :class:`.generalized_em.GeneralizedEM`, but the network's classes count as the truth.

    A round takes ``t = argmax p(x)`` of the training images, counts every annotation against it,
    ``A^r[s, k] = #[y_r = s, t = k] / #[t = k]`` and ``q_k = #[t = k] / #``, over annotated pixels, and makes labels
    ``γ_k ∝ q_k prod_r A^r[y_r, k]``: with the share of each class in place of the network's ``p_k(x)``. So matrices can
    be estimated where each image has one annotation.

    Arguments are those of :class:`.generalized_em.GeneralizedEM`.

    Source: Khetan, Lipton and Anandkumar 2018 (Learning from noisy singly-labeled data), Algorithm 1; it makes two
        rounds.
    Deviates: the network goes on learning after a round and is not trained anew; some pixels are added to the counts,
        :func:`.generalized_em.smoothed_confusion`.
    """

    def estimate(self) -> None:
        """One round: matrices and shares of the classes from the network, then labels from those."""
        counts = torch.zeros((), dtype=torch.float64)
        pixels = torch.zeros(self.num_classes, dtype=torch.float64)
        annotations = []
        for annotation, log_probs in self._predicted():
            truth = log_probs.argmax(1, keepdim=True)
            counts = counts + annotation_counts(annotation, truth, self.num_classes)[0]
            annotated = (annotation != UNLABELED).any(1, keepdim=True)
            pixels += torch.bincount(truth[annotated], minlength=self.num_classes)
            annotations.append(annotation)
        self.cm = smoothed_confusion(counts, **self.added)
        log_shares = ((pixels + 1) / (pixels + 1).sum()).log()
        for number, annotation in enumerate(annotations):
            self._replace(number, annotation, posterior(annotation, self.cm, log_shares))
