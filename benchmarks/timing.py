"""Median times of functions that take turns, and the peak memory of one, both on equal footing."""

from __future__ import annotations

import multiprocessing
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Wall seconds of one call."""

    median: float
    low: float
    high: float
    runs: int


def take_turns(functions: Mapping[str, Callable[[], Any]], seconds: float = 10.0, warmup: int = 2) -> dict[str, Timing]:
    """Time functions in turn, so that a drift of the machine's speed meets all of them alike.

    Every round has an order of its own: what a call leaves behind (memory to be given back, threads that still wait)
    must not always meet the same one.

    Args:
        functions: name -> what to time.
        seconds: budget of all runs together; at least 5 rounds are made.
        warmup: rounds that do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(warmup):
        for function in functions.values():
            function()
    end = time.perf_counter() + seconds
    rounds = 0
    order, rng = list(functions.items()), random.Random(0)
    while rounds < 5 or (time.perf_counter() < end and rounds < 200):
        rng.shuffle(order)
        for name, function in order:
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: Timing(statistics.median(v), min(v), max(v), len(v)) for name, v in times.items()}


def times_text(ratio: float) -> str:
    """So many times as fast, one decimal below 20: 9.69 is not 10.

    Example:
        >>> times_text(9.69), times_text(74.3)
        ('9.7', '74')
    """
    return f"{ratio:.1f}" if ratio < 20 else f"{ratio:.0f}"


def peak_bytes(build: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Resident memory that one call adds at its peak, beyond what ``build(tiny, *arguments)`` has made before it.

    A fresh process makes the call, after one on ``tiny`` inputs has loaded the libraries.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, build, arguments))
    process.start()
    sender.close()
    try:
        result: int = receiver.recv()
    finally:
        process.join()
    return result


def _child(sender: Any, build: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    build(True, *arguments)()
    function = build(False, *arguments)
    before = _reset_peak()
    kept = function()  # what a call returns is alive at its peak
    sender.send(_peak_resident_bytes() - before)
    del kept


def _reset_peak() -> int:
    """Forget how much memory was used before, where the system can (Linux); what is in use now."""
    forget = Path("/proc/self/clear_refs")
    if forget.is_file():
        forget.write_text("5")
    return _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # a new process inherits the resource usage of its parent on Linux, but not this
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
