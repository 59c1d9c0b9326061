"""Threads that share work, and distances that are computed by them."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from scipy.ndimage import distance_transform_edt

from medcoarse import compilation, distance
from medcoarse.compilation import compiled, in_threads, shares


@pytest.fixture(params=["torch's", "own"])
def three_threads(request, monkeypatch):
    """On any machine, of either kind."""
    helpers = compilation._helpers
    monkeypatch.setattr(compilation, "_forked", request.param == "own")
    helpers.cache_clear()
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    yield
    helpers.cache_clear()


@pytest.mark.usefixtures("three_threads")
def test_every_part_is_worked_on_once_and_results_keep_their_order():
    seen: list[int] = []

    def work(part: int) -> int:
        time.sleep(0.001 * (part % 3))
        seen.append(part)
        return part * part

    assert in_threads(work, range(40)) == [part * part for part in range(40)]
    assert sorted(seen) == list(range(40))


@pytest.mark.usefixtures("three_threads")
def test_several_threads_work():
    meeting = threading.Barrier(3, timeout=10)
    names = set(in_threads(lambda _: (meeting.wait(), threading.current_thread().name)[1], range(3)))
    assert len(names) == 3
    assert threading.current_thread().name in names


@pytest.mark.usefixtures("three_threads")
def test_an_error_of_any_thread_is_raised():
    def work(part: int) -> None:
        if part == 4:
            raise ValueError("part 4")

    with pytest.raises(ValueError, match="part 4"):
        in_threads(work, range(9))


@pytest.mark.usefixtures("three_threads")
def test_after_an_error_nobody_works_on():
    """The caller may give its arrays away."""
    here, others_began, begun, ended = threading.current_thread(), threading.Event(), [], []

    def work(part: int) -> None:
        begun.append(part)
        if threading.current_thread() is here:
            assert others_began.wait(10)
            raise ValueError("here")
        others_began.set()
        time.sleep(0.05)
        ended.append(part)

    with pytest.raises(ValueError, match="here"):
        in_threads(work, range(200))
    assert len(begun) - 1 == len(ended) < 100  # all but the one that failed


@pytest.mark.usefixtures("three_threads")
def test_nobody_waits_for_a_helper_that_has_not_begun(monkeypatch):
    class Busy:
        """A pool whose threads are all taken."""

        def submit(self, work):
            return Future()

    monkeypatch.setattr(compilation, "_forked", True)
    monkeypatch.setattr(compilation, "_helpers", Busy)
    assert in_threads(lambda part: part, range(5)) == list(range(5))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch's threads are borrowed on Linux only")
def test_the_threads_are_those_of_torch(monkeypatch):
    """Whatever torch and the loops do in turn, the process has no more threads than torch needs."""
    if "backend: OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch has no OpenMP, whose threads could be borrowed")
    monkeypatch.setattr(compilation, "_forked", False)
    monkeypatch.setattr(compilation, "_helpers", None)  # nobody may ask for threads of our own
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.ones(1 << 20).exp_()
        alive = len(list(Path("/proc/self/task").iterdir()))
        meeting = threading.Barrier(3, timeout=10)
        assert len(set(in_threads(lambda _: (meeting.wait(), threading.get_native_id())[1], range(3)))) == 3
        assert len(list(Path("/proc/self/task").iterdir())) == alive
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch's threads are borrowed on Linux only")
def test_no_interruption_is_lost(monkeypatch):
    """What the handler of a signal raises, as that of Ctrl-C does, comes out of the call, wherever it hits."""
    monkeypatch.setattr(compilation, "_forked", False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    raised = caught = 0

    def interrupt(*_) -> None:
        nonlocal raised
        raised += 1
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        while raised < 60:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + raised * 1e-5)
                while raised == caught:
                    assert in_threads(abs, range(-6, 0)) == [6, 5, 4, 3, 2, 1]
                break  # it was lost
            except InterruptedError:
                caught += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught == raised


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
@pytest.mark.parametrize("own", [False, True], ids=["torch's threads", "our own"])
def test_when_an_interruption_comes_out_nobody_is_at_work(own: bool, monkeypatch):
    monkeypatch.setattr(compilation, "_forked", own)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    begun, ended = [], []

    def work(seconds: float) -> None:
        begun.append(seconds)
        time.sleep(seconds)
        ended.append(seconds)

    def interrupt(*_) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        with pytest.raises(InterruptedError):
            in_threads(work, [0.1, 0.4, 0.4, 0.4, 0.4])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    found = len(begun), len(ended)
    time.sleep(0.5)
    assert (len(begun), len(ended)) == found
    assert len(begun) <= 4, "of those that were left none was begun"


def test_somebody_elses_callback_keeps_its_error(monkeypatch):
    """What another callback from C loses while the team works is reported as ever, and not raised here."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: reported.append(str(what.exc_value)))

    def lose(_: Any) -> None:
        raise ValueError("somebody else's")

    other = ctypes.CFUNCTYPE(None, ctypes.c_int)(lose)
    in_threads(lambda _: other(0), range(4))
    assert reported == ["somebody else's"] * 4


def test_nowhere_to_keep_compiled_code():
    """Numba refuses to cache what is not in a file, as it does where no folder can be written to."""
    names: dict[str, Any] = {}
    exec("def double(x):\n    return 2 * x", names)
    with pytest.raises(RuntimeError, match="cannot cache"):
        njit(cache=True)(names["double"])
    assert compiled(names["double"])(21) == 42


def _sum_in_threads(out) -> None:
    torch.get_num_threads = lambda: 3
    out.put(sum(in_threads(sum, [range(10)] * 6)))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.usefixtures("three_threads")
def test_a_forked_process_starts_threads_of_its_own():
    in_threads(sum, [range(3)] * 6)  # the parent has some
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    child = context.Process(target=_sum_in_threads, args=(out,))
    child.start()
    assert out.get(timeout=20) == 270
    child.join(20)
    assert child.exitcode == 0


def _meet(meeting: threading.Barrier) -> None:
    in_threads(lambda _: meeting.wait(), range(2))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_threads_of_a_forked_process_work(monkeypatch):
    """It must not count on those of its parent, which sit idle there and do not exist here."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    _meet(threading.Barrier(2, timeout=10))  # the parent has a helper
    time.sleep(0.2)  # and it is idle
    child = multiprocessing.get_context("fork").Process(target=_meet, args=(threading.Barrier(2, timeout=10),))
    child.start()
    child.join(30)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0  # two threads met


def test_shares_cover_everything_and_respect_the_smallest_useful_size(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for total, smallest, number in ((100, 1, 12), (100, 20, 5), (100, 1000, 1), (0, 1, 1), (2, 1, 2)):
        parts = shares(total, smallest)
        assert len(parts) == number
        assert [i for part in parts for i in part] == list(range(total))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # as in the workers of a data loader
    assert shares(100, 1) == [range(100)]


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("density", [0.0, 0.003, 0.05, 0.6, 1.0])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((40, 33), (1.0, 1.0)),
        ((13, 17, 19), (1.0, 0.7, 2.5)),
        ((1, 9), (2.0, 3.0)),
        ((7, 1, 5), (1.0, 1.0, 0.2)),
        ((1, 1), (1.0, 1.0)),
    ],
)
def test_distances_are_those_of_scipy(shape, sizes, density, monkeypatch):
    monkeypatch.setattr(distance, "_THREAD_VOXELS", 1)
    mask = np.random.default_rng(0).random(shape) < density
    exact = distance_transform_edt(~mask, sampling=sizes) ** 2 if mask.any() else np.full(shape, np.inf)
    for limit in (1e12, 9.01, 4.0, 2.01, 0.0):
        found = distance.squared_distances(mask, sizes, limit)
        expected = np.where(exact <= limit, exact, np.inf)
        assert np.array_equal(np.isinf(found), np.isinf(expected))
        reached = np.isfinite(expected)
        assert np.allclose(found[reached], expected[reached], rtol=1e-5, atol=1e-6)


def test_distances_of_a_mask_with_gaps_in_memory_and_of_an_empty_one():
    mask = np.random.default_rng(0).random((20, 30)) < 0.1
    assert np.array_equal(
        distance.squared_distances(mask.T, (1, 1), 99.0), distance.squared_distances(mask, (1, 1), 99.0).T
    )
    assert distance.squared_distances(np.zeros((0, 4), bool), (1, 1), 4.0).shape == (0, 4)


def test_large_tensors_ask_for_large_pages_of_their_own_memory_only(monkeypatch):
    asked = []
    monkeypatch.setattr(compilation, "_madvise", lambda: lambda *arguments: asked.append(arguments))
    small, large = (compilation.empty_like(torch.empty(size).T) for size in ((8, 8), (2048, 1024)))
    assert small.is_contiguous()
    assert large.shape == (1024, 2048)
    [(start, length, advice)] = asked
    assert start % mmap.PAGESIZE == 0
    assert large.data_ptr() <= start < start + length <= large.data_ptr() + large.nbytes
    assert advice == 14


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the system for large pages on Linux only")
def test_the_system_takes_the_advice():
    """The kernel marks memory that is advised so; one without large pages knows neither the advice nor the mark."""
    large = compilation.empty_like(torch.empty(4096, 1024))
    middle, marked = large.data_ptr() + large.nbytes // 2, None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in (span := line.split()[0]) and not span.endswith(":"):
            first, last = (int(end, 16) for end in span.split("-"))
            here = first <= middle < last
        elif here and line.startswith("VmFlags"):
            marked = "hg" in line.split()
    assert bool(marked) == Path("/sys/kernel/mm/transparent_hugepage").is_dir()
