"""Fusing five annotators of a volume, against SimpleITK on the same volume."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import SimpleITK
import torch
from numpy.typing import NDArray

from benchmarks.timing import Timing, peak_bytes, take_turns
from medcoarse.fusion.spatial_staple import spatial_staple
from medcoarse.fusion.staple import staple
from medcoarse.fusion.voting import majority_vote

SIDES = (128, 256)
ANNOTATORS = 5
PAIRS = {"STAPLE": ("SimpleITK, STAPLE", "STAPLE"), "majority": ("SimpleITK, label voting", "majority")}
WAYS = tuple(way for pair in PAIRS.values() for way in pair)
SPATIAL = "Spatial STAPLE, one iteration"
CONVERGED = "Spatial STAPLE, until it converges"


def balls(side: int) -> NDArray[np.uint8]:
    """A ball as each annotator draws it: a little larger than the one before, and somewhere else; ``(R, *S)``."""
    axes = np.ogrid[:side, :side, :side]
    drawn = []
    for r in range(ANNOTATORS):
        shift = [(r * step % ANNOTATORS - 2) * side / 50 for step in (1, 2, 3)]
        distance = sum((axis - side / 2 - s) ** 2 for axis, s in zip(axes, shift, strict=True))
        drawn.append(distance < (side * (0.3 + 0.015 * r)) ** 2)
    return np.stack(drawn).astype(np.uint8)


def case(tiny: bool, way: str, side: int) -> Callable[[], Any]:
    """A function that fuses once; all inputs are made here, the way that its users hold them."""
    drawn = balls(8 if tiny else side)
    if way.startswith("SimpleITK"):
        images = [SimpleITK.GetImageFromArray(volume) for volume in drawn]
        if way.endswith("voting"):
            return lambda: SimpleITK.LabelVoting(images, 255)
        method = SimpleITK.STAPLEImageFilter()
        method.SetForegroundValue(1)
        method.SetMaximumIterations(1000)
        return lambda: method.Execute(images)
    annotations = torch.from_numpy(drawn)[None]
    if way in (SPATIAL, CONVERGED):
        most = {"max_iterations": 1} if way == SPATIAL else {}
        return lambda: spatial_staple(annotations, 2, **most)
    if way == "majority":
        return lambda: majority_vote(annotations, 2)
    return lambda: staple(annotations, 2)


def run(seconds: float, sides: Sequence[int] = SIDES) -> dict[str, Any]:
    """Times and memory of every way, and how far the two estimates by STAPLE are apart."""
    table = []
    for side in sides:
        ways = (*WAYS, SPATIAL)
        times = take_turns({way: case(False, way, side) for way in ways}, seconds, warmup=1)
        for way, timing in times.items():
            table.append({"side": side, "way": way, **timing._asdict(), "peak_bytes": peak_bytes(case, way, side)})
        table.append({"side": side, "way": CONVERGED, **_once(case(False, CONVERGED, side)), "peak_bytes": None})
    return {"table": table, "difference": difference(min(sides))}


def _once(fuse: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of one call, and of how many iterations: minutes, where a few per cent are of no account."""
    start = time.perf_counter()
    fused = fuse()
    seconds = time.perf_counter() - start
    if not bool(fused.converged.all()):
        raise RuntimeError(f"Spatial STAPLE did not converge in {int(fused.iterations.max())} iterations")
    return {**Timing(seconds, seconds, seconds, 1)._asdict(), "iterations": int(fused.iterations.max())}


def difference(side: int) -> float:
    """Largest difference of the foreground's probability between SimpleITK's STAPLE and ours."""
    theirs, ours = (case(False, way, side)() for way in PAIRS["STAPLE"])
    return float(np.abs(SimpleITK.GetArrayFromImage(theirs) - ours.probs[0, 1].numpy()).max())


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table of the README."""
    lines = [["volume", "way", "s (median, range)", "times as fast as SimpleITK", "peak memory, MB"]]
    reference = {ours: theirs for theirs, ours in PAIRS.values()}
    medians = {(row["side"], row["way"]): row["median"] for row in results["table"]}
    for row in results["table"]:
        theirs = medians.get((row["side"], reference.get(row["way"], "")))
        lines.append(
            [
                f"{ANNOTATORS} x {row['side']}^3",
                row["way"] + (f" ({row['iterations']} iterations)" if "iterations" in row else ""),
                f"{row['median']:.3f} ({row['low']:.3f}-{row['high']:.3f})",
                f"{theirs / row['median']:.1f}" if theirs else "",
                "as one iteration" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
            ]
        )
    return lines
