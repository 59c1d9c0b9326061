"""What several annotators said at every voxel: checked, and counted by pattern.

A *pattern* is what the R annotators said at a voxel together. Fusion without an image treats voxels of one pattern
alike, and a volume of millions of voxels has few patterns: five annotators and two classes make 3^5 at most.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from medcoarse.confusion import UNLABELED, check_num_classes, plain_tensor

SILENT = 0
"""Vote of an annotator who said nothing; class k is vote k + 1."""

_MANY = 64  # more annotators than this of fewer images are rather the first axis of a single one
_FEW = 2**22  # so many codes are counted in a table; more than that are sorted
_PIECE = 2**14  # voxels looked at at a time: they stay in the processor's cache, and one thread does them


class Patterns(NamedTuple):
    """The distinct patterns of votes and where they are.

    Args:
        votes: int64 ``(P, R)``, 0 where an annotator said nothing, ``k + 1`` for class k.
        counts: int64 ``(P,)``, number of voxels.
        places: pattern of every voxel, int32 or int64 ``(voxels,)``, image after image.
    """

    votes: Tensor
    counts: Tensor
    places: Tensor

    def paint(self, table: Tensor, out: Tensor) -> None:
        """Write the values of the patterns ``(P, L)`` to every voxel of ``out``, ``(B, L, *S)`` in one piece."""
        for k, values in enumerate(table.to(out).T.contiguous()):
            for image, where in zip(out[:, k].flatten(1), self.places.view(len(out), -1), strict=True):
                torch.index_select(values, 0, where, out=image)


def vote_patterns(annotations: Tensor, num_classes: int) -> Patterns:
    """Count the patterns of votes in label maps ``(B, R, *S)``, all images together.

    Codes of ``R`` digits in base ``L + 1`` are counted; where there would be too many of them, those met so far are
    numbered anew before the next annotator's digit is put behind.

    Example:
        >>> patterns = vote_patterns(torch.tensor([[[0, 1, 1, 255], [0, 1, 0, 255]]], dtype=torch.uint8), 2)
        >>> patterns.votes.tolist(), patterns.counts.tolist(), patterns.places.tolist()
        ([[0, 0], [1, 1], [2, 1], [2, 2]], [1, 1, 1, 1], [1, 3, 2, 0])
    """
    base, annotators = num_classes + 1, annotations.shape[1]
    voxels = annotations[:, 0].numel()
    size, first, largest = 1, 0, max(_FEW, voxels * base)
    index = torch.zeros(voxels, dtype=torch.int32 if largest < 2**31 else torch.int64, device=annotations.device)
    votes = torch.zeros((1, 0), dtype=torch.int64, device=annotations.device)
    counts = torch.full((1,), voxels, device=annotations.device)
    while first < annotators:
        last, size = first + 1, size * base
        while last < annotators and size * base <= _FEW:
            last, size = last + 1, size * base
        _append_digits(index, annotations[:, first:last], base)
        codes, counts, index = _renumbered(index, size)
        digits = [codes // base**place % base for place in reversed(range(last - first))]
        votes = torch.cat([votes[codes // base ** (last - first)], torch.stack(digits, 1)], 1)
        size, first = len(codes), last
    return Patterns(votes, counts, index)


def _append_digits(index: Tensor, annotations: Tensor, base: int) -> None:
    """``index <- index * base + vote`` for one annotator after the other, in place."""
    for maps, codes in zip(annotations.flatten(2), index.view(len(annotations), -1), strict=True):
        for said, code in zip(torch.split(maps, _PIECE, 1), torch.split(codes, _PIECE), strict=True):
            for vote in said + 1:  # uint8: 255 becomes 0
                code.mul_(base).add_(vote.to(code.dtype))


def _renumbered(codes: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The codes in ``range(size)`` that occur, ascending, how often, and which of them is where."""
    if size > _FEW:
        present, inverse, counts = torch.unique(codes, return_inverse=True, return_counts=True)
        return present.long(), counts, inverse.to(codes.dtype)
    table = torch.bincount(codes, minlength=size)
    present = table.nonzero().squeeze(1)
    position = torch.zeros(size, dtype=codes.dtype, device=codes.device)
    position[present] = torch.arange(len(present), dtype=codes.dtype, device=codes.device)
    return present, table[present], position.index_select(0, codes)


def check_annotations(annotations: Tensor, num_classes: int) -> Tensor:
    """The label maps as uint8 ``(B, R, *S)`` without MONAI's meta data, or what is wrong with them.

    Raises:
        ValueError: fewer than 2 or more than 254 classes, a missing or empty axis, or a value that is no class.

    Example:
        >>> check_annotations(torch.tensor([[[0.0, 1.0, 255.0]]]), num_classes=2)
        tensor([[[  0,   1, 255]]], dtype=torch.uint8)
    """
    check_num_classes(num_classes)
    annotations = plain_tensor(annotations)
    if annotations.ndim < 3 or 0 in annotations.shape:
        raise ValueError(
            f"annotations must be (B, R, *S), none of them 0, got {tuple(annotations.shape)}; stack the label maps of "
            "the annotators on axis 1 and add the batch axis"
        )
    if annotations.shape[1] > _MANY > len(annotations) > 1:
        warnings.warn(
            f"annotations {tuple(annotations.shape)} are taken as (B, R, *S), of {annotations.shape[1]} annotators; "
            "label maps (R, *S) of one image lack the batch axis: pass annotations[None]",
            stacklevel=3,
        )
    if annotations.shape[1] == 1 < len(annotations):
        warnings.warn(
            f"annotations {tuple(annotations.shape)} are of one annotator, so there is nothing to fuse; label maps "
            "(1, *S) of several are joined by torch.cat([...])[None], or torch.stack([...], 1) of batches",
            stacklevel=3,
        )
    if annotations.dtype == torch.bool:
        return annotations.to(torch.uint8)
    for said in torch.split(annotations.flatten(), _PIECE):
        _check_values(said, num_classes)
    return annotations.to(torch.uint8)


def _check_values(said: Tensor, num_classes: int) -> None:
    if said.dtype == torch.uint8 and (said + 1 <= num_classes).all():  # 255 + 1 is 0
        return
    wrong = said[~((said >= 0) & (said < num_classes) | (said == UNLABELED))]
    if len(wrong):
        raise ValueError(
            f"annotations must hold classes 0 .. {num_classes - 1}, or {UNLABELED} where nothing was said, got "
            f"{wrong[0].item():g}; check num_classes, or map the labels to class numbers"
        )
    if said.is_floating_point() and (said != said.round()).any():
        raise ValueError("annotations must hold whole class numbers, got fractions; resample by nearest neighbour")
