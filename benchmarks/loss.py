"""Forward and backward pass of the loss of one annotator, against the released formulation and cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.references import released_dhe_loss
from benchmarks.timing import peak_bytes, take_turns
from medcoarse.confusion import Confusion, FullConfusion, LowRankConfusion, swap_transition
from medcoarse.fused import annotator_terms
from medcoarse.likelihoods import coarse_nll, mean_trace

SHAPES = {2: (2, 512, 512), 4: (4, 192, 192), 19: (1, 256, 512)}
"""Classes -> (batch, height, width), the sizes of a fundus photograph, a brain slice and a street scene."""
TRACE_WEIGHT = 0.05
WAYS = (
    "released DHE",
    "equations, full",
    "full",
    "full, negative",
    "diagonal + rank-1",
    "diagonal + rank-1, negative",
    "cross-entropy",
)


def case(tiny: bool, way: str, classes: int, shape: tuple[int, int, int], annotators: int = 1) -> Callable[[], Any]:
    """A function that computes the loss of one way and its gradients; all inputs are made here."""
    torch.manual_seed(0)
    batch, *image = (1, 8, 8) if tiny else shape
    logits = torch.randn(batch, classes, *image, requires_grad=True)
    annotation = torch.randint(0, classes, (batch, annotators, *image), dtype=torch.uint8)
    if way == "cross-entropy":
        wanted = annotation[:, 0].long()
        return _backward(lambda: F.cross_entropy(logits, wanted), [logits])
    if way == "released DHE":
        wanted = annotation[:, 0].long()
        matrices = torch.randn(batch, classes**2, *image, requires_grad=True)
        return _backward(lambda: released_dhe_loss(logits, matrices, wanted, TRACE_WEIGHT), [logits, matrices])
    fields = [torch.randn(batch, annotators, *size, *image, requires_grad=True) for size in _fields(way, classes)]
    rank_one = len(fields) > 1
    log_transition = swap_transition(classes).log() if way.endswith("negative") else None
    confusion: Confusion = LowRankConfusion(*fields, None, 0.5) if rank_one else FullConfusion(fields[0], 0.5)
    if way.startswith("equations"):

        def plain() -> Tensor:
            log_probs = logits.log_softmax(1)
            nll = coarse_nll(log_probs, confusion, annotation)
            return nll + TRACE_WEIGHT * mean_trace(confusion, annotation)

        return _backward(plain, [logits, *fields])
    terms = partial(annotator_terms, logits, confusion, annotation, TRACE_WEIGHT, log_transition)
    return _backward(lambda: terms().objective, [logits, *fields])


def _fields(way: str, classes: int) -> list[tuple[int, ...]]:
    return [(classes,), (1, classes)] if way.startswith("diagonal + rank-1") else [(classes, classes)]


def _backward(loss: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(loss(), inputs)


def run(seconds: float) -> dict[str, Any]:
    """Times and memory of every way at the usual sizes, and the cost against classes and annotators."""
    table = []
    for classes, shape in SHAPES.items():
        times = take_turns({way: case(False, way, classes, shape) for way in WAYS}, seconds)
        for way, timing in times.items():
            peak = peak_bytes(case, way, classes, shape)
            table.append({"classes": classes, "shape": shape, "way": way, **timing._asdict(), "peak_bytes": peak})
    against_classes = {
        way: _curve([(way, classes, (1, 128, 128), 1) for classes in (2, 4, 8, 16, 32, 50)], seconds)
        for way in ("full", "diagonal + rank-1")
    }
    against_annotators = _curve([("diagonal + rank-1", 4, (1, 256, 256), r) for r in (1, 2, 5, 10, 20)], seconds)
    return {"table": table, "against_classes": against_classes, "against_annotators": against_annotators}


def _curve(cases: list[tuple[str, int, tuple[int, int, int], int]], seconds: float) -> list[dict[str, Any]]:
    times = take_turns({str(index): case(False, *arguments) for index, arguments in enumerate(cases)}, seconds)
    return [
        {"classes": classes, "annotators": annotators, **timing._asdict()}
        for (_, classes, _, annotators), timing in zip(cases, times.values(), strict=True)
    ]


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table of the README."""
    lines = [["classes, image", "way", "ms (median, range)", "times the released", "peak memory, MB"]]
    for classes in SHAPES:
        own = [row for row in results["table"] if row["classes"] == classes]
        released = next(row for row in own if row["way"] == "released DHE")
        for row in own:
            batch, height, width = row["shape"]
            lines.append(
                [
                    f"{classes}, {batch} x {height} x {width}",
                    row["way"],
                    f"{row['median'] * 1e3:.1f} ({row['low'] * 1e3:.1f}-{row['high'] * 1e3:.1f})",
                    f"1/{released['median'] / row['median']:.1f}",
                    f"{row['peak_bytes'] / 2**20:.0f} (1/{released['peak_bytes'] / max(row['peak_bytes'], 1):.1f})",
                ]
            )
    return lines
