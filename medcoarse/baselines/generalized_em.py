"""Generalized expectation maximization: a network and everybody's confusion matrix explain the annotations in turn."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medcoarse.baselines.soft_labels import Relabelling, SoftLabels
from medcoarse.confusion import UNLABELED
from medcoarse.fusion.voting import mean_label
from medcoarse.metrics import soft_annotation_counts

logger = logging.getLogger(__name__)


def log_evidence(annotation: Tensor, cm: Tensor) -> Tensor:
    """What the annotations say of each class, ``sum_r log A^r[y_r(x), k]``; who said nothing adds nothing.

    Args:
        annotation: ``(B, R, *S)``, 255 where an annotator said nothing.
        cm: everybody's matrix ``(R, observed, true)``.

    Returns:
        ``(B, L, *S)`` of the type of ``cm``.

    Example:
        >>> cm = torch.tensor([[[0.9, 0.2], [0.1, 0.8]]]).expand(2, 2, 2)
        >>> log_evidence(torch.tensor([[[1, 0], [1, 255]]]), cm).exp()  # by class and pixel
        tensor([[[0.0100, 0.9000],
                 [0.6400, 0.2000]]])
    """
    tables = cm.new_zeros(len(cm), UNLABELED + 1, cm.shape[2])
    tables[:, : cm.shape[1]] = cm.log()
    said = annotation.long().unbind(1)
    return torch.stack([table[one] for table, one in zip(tables, said, strict=True)]).sum(0).movedim(-1, 1)


def posterior(annotation: Tensor, cm: Tensor, log_prior: Tensor) -> Tensor:
    """E step, ``γ_k(x) ∝ p_k(x) prod_r A^r[y_r(x), k]``.

    Args:
        annotation: ``(B, R, *S)``, 255 where an annotator said nothing.
        cm: everybody's matrix ``(R, observed, true)``.
        log_prior: ``log p``, ``(B, L, *S)`` of the network, or ``(L,)`` for one prior everywhere.

    Returns:
        ``(B, L, *S)``, sums to 1 over classes; 0 for all of them where nobody said anything.

    Example:
        >>> cm = torch.tensor([[[0.9, 0.2], [0.1, 0.8]]])
        >>> posterior(torch.tensor([[[1, 255]]]), cm, torch.tensor([0.8, 0.2]).log())  # 0.08 and 0.16
        tensor([[[0.3333, 0.0000],
                 [0.6667, 0.0000]]])
    """
    nobody = (annotation == UNLABELED).all(1, keepdim=True)
    return _log_joint(annotation, cm, log_prior).softmax(1).masked_fill(nobody, 0)


def log_likelihood(annotation: Tensor, cm: Tensor, log_prior: Tensor) -> Tensor:
    """Of the annotations, ``sum_x log sum_k p_k(x) prod_r A^r[y_r(x), k]``: what EM raises. Arguments as there.

    Example:
        >>> cm = torch.tensor([[[0.9, 0.2], [0.1, 0.8]]])
        >>> log_likelihood(torch.tensor([[[1, 255]]]), cm, torch.tensor([0.8, 0.2]).log()).exp()  # 0.08 + 0.16
        tensor(0.2400)
    """
    return torch.logsumexp(_log_joint(annotation, cm, log_prior), 1).sum()


def _log_joint(annotation: Tensor, cm: Tensor, log_prior: Tensor) -> Tensor:
    """``log p_k(x) + sum_r log A^r[y_r(x), k]``, ``(B, L, *S)``."""
    if log_prior.ndim == 1:
        log_prior = log_prior.view(1, -1, *[1] * (annotation.ndim - 2))
    return log_prior + log_evidence(annotation, cm)


def smoothed_confusion(counts: Tensor, off_diagonal: float = 1.0, diagonal: float = 10.0) -> Tensor:
    """M step: confusion matrices of counts, to which some pixels are added (a Dirichlet prior on each column).

    Args:
        counts: pixels ``(..., observed, true)``.
        off_diagonal: pixels added for each error.
        diagonal: pixels added for each class drawn as itself; more than for errors, so that an annotator of whom
            little is known is taken to be right rather than wrong.

    Returns:
        ``(..., observed, true)``, columns sum to 1.

    Raises:
        ValueError: negative pixels.

    Example:
        >>> smoothed_confusion(torch.tensor([[80.0, 0.0], [9.0, 0.0]]))
        tensor([[0.9000, 0.0909],
                [0.1000, 0.9091]])
    """
    if min(off_diagonal, diagonal) < 0:
        raise ValueError(f"pixels that are added must not be negative, got {off_diagonal=}, {diagonal=}")
    added = torch.full(counts.shape[-2:], off_diagonal, dtype=counts.dtype).fill_diagonal_(diagonal)
    total = counts + added
    return total / total.sum(-2, keepdim=True)


class GeneralizedEM(Relabelling):
    """Generalized EM as a handler: now and then it replaces the soft labels that the network learns from.

    The labels start as the mean of the annotations, and the matrices as counted against them. At the start of some
    epochs, over all training items,

    ``γ_k ∝ p_k(x) prod_r A^r[y_r, k]`` and then ``A^r[s, k] = sum γ_k [y_r = s] / sum γ_k``,

    with the network's ``p`` as it is then; in between it learns ``γ`` by :class:`.soft_labels.SoftLabelLoss`.

    Args:
        network: the segmenter.
        dataset: items with an image ``(C, *S)`` and annotations ``(R, *S)``, 255 where someone said nothing, without
            random transforms, in the order of their numbers. All of it is looked at in every round: cache it.
        inferer: as for the segmenter.
        labels: where the soft labels go, by number of the item.
        num_classes: L.
        epochs: at whose start labels and matrices are estimated anew, from 1. Resuming keeps what was estimated.
        annotation_key: of the annotations.
        off_diagonal: see :func:`smoothed_confusion`.
        diagonal: see there.

    ``cm`` are the matrices ``(R, observed, true)``, float64, one for all pixels of all images.

    With one annotation an image the labels start as that annotation, the matrices as the identity, and both stay there:
    :class:`.bootstrapped_em.BootstrappedEM` is the answer to that.

    Source: Raykar et al. 2009 and 2010 (Learning from Crowds); DHE A.5.
    Deviates: the M step of the network is some epochs of the recipe, not until convergence.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Any,
        inferer: Inferer,
        labels: SoftLabels,
        num_classes: int,
        epochs: Collection[int],
        annotation_key: str = "positive",
        off_diagonal: float = 1.0,
        diagonal: float = 10.0,
    ) -> None:
        super().__init__(network, dataset, inferer, labels, num_classes, epochs)
        self.annotation_key = annotation_key
        self.added = {"off_diagonal": off_diagonal, "diagonal": diagonal}
        self.cm = torch.zeros(0, num_classes, num_classes, dtype=torch.float64)

    def initialize(self) -> None:
        """Labels are the mean of the annotations, matrices what was counted against them."""
        counts = torch.zeros((), dtype=torch.float64)
        for number in range(len(self.dataset)):
            annotation = self._annotation(self.dataset[number])
            counts = counts + self._replace(number, annotation, mean_label(annotation, self.num_classes))
        self.cm = smoothed_confusion(counts, **self.added)

    def relabel(self) -> None:
        """One round, and what came of it into the log."""
        self.estimate()
        diagonals = torch.diagonal(self.cm, dim1=1, dim2=2).tolist()
        said = "; ".join(" ".join(f"{share:.3f}" for share in shares) for shares in diagonals)
        logger.info("Labels estimated anew; annotators draw classes as themselves with a chance of %s", said)

    def estimate(self) -> None:
        """One round: labels from the network and the matrices, then matrices from the labels."""
        counts = torch.zeros((), dtype=torch.float64)
        for number, (annotation, log_probs) in enumerate(self._predicted()):
            counts = counts + self._replace(number, annotation, posterior(annotation, self.cm, log_probs))
        self.cm = smoothed_confusion(counts, **self.added)

    def state_dict(self) -> dict[str, Any]:
        """Matrices and labels."""
        return {"cm": self.cm, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved matrices and labels."""
        super().load_state_dict(state)
        self.cm = torch.as_tensor(state["cm"])

    def _replace(self, number: int, annotation: Tensor, soft: Tensor) -> Tensor:
        """Give an item another label ``(1, L, *S)``; what was drawn against it ``(R, observed, true)``."""
        self.labels[number] = soft[0]
        return soft_annotation_counts(annotation, soft)[0]

    def _annotation(self, item: Any) -> Tensor:
        """``(1, R, *S)``."""
        return torch.as_tensor(item[self.annotation_key]).as_subclass(Tensor)[None]

    def _predicted(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Annotations ``(1, R, *S)`` and the network's ``log p (1, L, *S)``, item after item, on the CPU."""
        for number in range(len(self.dataset)):
            item = self.dataset[number]
            yield self._annotation(item), self.log_probs(item)
