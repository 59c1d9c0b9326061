"""Drawing simulated annotations: a fundus mask, ten thousand digits, volumes."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import references
from benchmarks.timing import take_turns, times_text
from medcoarse import morphology, profiles
from medcoarse.annotators import AnnotatorProfile, draw
from medcoarse.batched import draw_batch
from medcoarse.synthetic import fundus_photograph

MORPHO_MNIST = {"fundus": 0.2, "digit": 0.016}
"""Seconds of one operation of Morpho-MNIST's own code on one thread, measured once on another day and quoted here: the
quickest on a full LES-AV mask (0.2 to 0.5), and one 28 x 28 digit."""
RADII = (2.0, 4.0, 8.0, 16.0)
SIDES = (64, 96, 128, 192, 256)
NUM_DIGITS = 10_000
BATCH = 8


def fundus_mask() -> NDArray[np.uint8]:
    """Vessels of a synthetic photograph of LES-AV's size."""
    return fundus_photograph(seed=0, size=(1444, 1620)).vessels.astype(np.uint8)


def ball(side: int) -> NDArray[np.uint8]:
    """A ball in a cube, three quarters as wide."""
    axes = np.ogrid[:side, :side, :side]
    distance = sum((axis - side / 2) ** 2 for axis in axes)
    return (distance < (side * 3 / 8) ** 2).astype(np.uint8)


def both(label: NDArray[np.uint8], seed: int = 0, digit: bool = False) -> None:
    """One positive and one negative annotation."""
    positive = profiles.MNIST_MILD_POSITIVE if digit else profiles.COARSE_POSITIVE
    negative = profiles.MNIST_MILD_NEGATIVE if digit else profiles.COARSE_NEGATIVE
    draw(positive, label, seed=seed)
    draw(negative, label, seed=seed + 1)


def digits() -> NDArray[np.uint8] | None:
    """MNIST's test digits from the folder in ``MEDCOARSE_DATA``, or nothing."""
    root = os.environ.get("MEDCOARSE_DATA")
    path = Path(root or ".") / "MNIST" / "t10k-images-idx3-ubyte.gz"
    if root is None or not path.is_file():
        return None
    pixels = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    return (pixels > 127).astype(np.uint8)[:NUM_DIGITS]


def draw_digits(masks: NDArray[np.uint8]) -> None:
    """Both annotations of many digits, one after the other."""
    for seed, mask in enumerate(masks):
        both(mask, 2 * seed, digit=True)


def batch_ways() -> dict[str, Callable[[], Any]]:
    """Both annotations of a batch of fundus masks at half size: one by one on the CPU, and at once on each device."""
    masks = np.stack([np.roll(fundus_mask()[::2, ::2], 10 * shift, axis=1) for shift in range(BATCH)])

    def at_once(labels: torch.Tensor) -> None:
        draw_batch(profiles.COARSE_POSITIVE, labels, seeds=range(BATCH))
        draw_batch(profiles.COARSE_NEGATIVE, labels, seeds=range(BATCH))
        if labels.is_cuda:
            torch.cuda.synchronize()

    ways: dict[str, Callable[[], Any]] = {
        "one by one, cpu": lambda: [both(mask, seed) for seed, mask in enumerate(masks)]
    }
    for device in ["cpu", "cuda"][: 1 + torch.cuda.is_available()]:
        ways[f"at once, {device}"] = partial(at_once, torch.from_numpy(masks).to(device))
    return ways


def run(seconds: float) -> dict[str, Any]:
    """Times of whole drawings and of single operations."""
    mask = fundus_mask()
    vessels = mask.astype(bool)
    operations: dict[str, Callable[[], Any]] = {
        "both annotations": lambda: both(mask),
        "thicken": lambda: morphology.thicken(vessels, 3.0),
        "thicken, scikit-image": lambda: references.thicken_2d(vessels, 3),
        "thin": lambda: morphology.thin(vessels, 2.0, preserve=True),
        "thin, scikit-image": lambda: references.thin_2d(vessels, 2),
    }
    wide = AnnotatorProfile
    results: dict[str, Any] = {
        "fundus": _plain(take_turns(operations, seconds)),
        "radius": _plain(take_turns({str(r): lambda r=r: draw(wide(thicken_mm=r), mask) for r in RADII}, seconds)),
        "volume": _plain(take_turns({str(side): _volume(side) for side in SIDES}, seconds, warmup=1)),
        "batch": _plain(take_turns(batch_ways(), seconds, warmup=1)),
        "digits": None,
    }
    masks = digits()
    if masks is not None:
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            parts = np.array_split(masks, 4 * (os.cpu_count() or 1))
            ways = {"one process": lambda: draw_digits(masks), "all cores": lambda: list(pool.map(draw_digits, parts))}
            results["digits"] = _plain(take_turns(ways, seconds, warmup=1))
    slope = np.polyfit(*np.log([[s**3 for s in SIDES], [results["volume"][str(s)]["low"] for s in SIDES]]), 1)[0]
    return results | {"volume_slope": float(slope)}


def _volume(side: int) -> Callable[[], None]:
    label = ball(side)
    return lambda: both(label)


def _plain(times: dict[str, Any]) -> dict[str, Any]:
    return {name: timing._asdict() for name, timing in times.items()}


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table of the README."""
    lines = [["what", "ms (median, range)", "against"]]

    def add(what: str, timing: dict[str, Any], against: str = "") -> None:
        spread = f"{timing['median'] * 1e3:.0f} ({timing['low'] * 1e3:.0f}-{timing['high'] * 1e3:.0f})"
        lines.append([what, spread, against])

    fundus = results["fundus"]
    both_seconds = fundus["both annotations"]["median"]
    operations = 4  # swelling and fractures, for each of the two
    quoted = f"{operations} operations of Morpho-MNIST (quoted)"
    against = f"{times_text(operations * MORPHO_MNIST['fundus'] / both_seconds)}x faster than {quoted}"
    add("fundus mask 1444 x 1620, both annotations", fundus["both annotations"], against)
    for name in ("thicken", "thin"):
        ratio = fundus[f"{name}, scikit-image"]["median"] / fundus[name]["median"]
        add(f"fundus mask, {name}", fundus[name], f"{times_text(ratio)}x faster than scikit-image's operations")
    for side in SIDES:
        add(f"volume {side}^3, both annotations", results["volume"][str(side)])
    for radius, timing in results["radius"].items():
        add(f"fundus mask, thicken by {radius} pixels, with its random choices", timing)
    batch = results.get("batch", {})
    for way, timing in batch.items():
        ratio = batch["one by one, cpu"]["median"] / timing["median"]
        against = "" if way.startswith("one") else f"{ratio:.2g} times the speed of one by one"
        add(f"{BATCH} fundus masks 722 x 810, both annotations, {way}", timing, against)
    if results["digits"] is not None:
        for way, timing in results["digits"].items():
            ratio = operations * NUM_DIGITS * MORPHO_MNIST["digit"] / timing["median"]
            against = f"{times_text(ratio)}x faster than {quoted}" if way == "one process" else ""
            add(f"{NUM_DIGITS} digits, both annotations, {way}", timing, against)
    return lines
