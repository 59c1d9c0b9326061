"""Compiled loops: Numba with the settings that every one of them shares, and threads to run them side by side."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])
Part = TypeVar("Part")
Result = TypeVar("Result")

_LARGE_BYTES = 1 << 22
_MADV_HUGEPAGE = 14
_PARTS = 4  # for each thread: one that is kept waiting leaves the rest to the others

# Sums may be reordered; NaN and infinity keep their meaning, so that a training that diverges is seen.
_REORDER = {"reassoc", "contract", "arcp", "nsz"}


def compiled(function: Function) -> Function:
    """Compile at the first call, for the types it is called with, and keep the result on disk for the next process.

    A compiled function runs beside other Python threads and starts none.
    """
    settings: dict[str, Any] = {"nogil": True, "fastmath": _REORDER, "error_model": "numpy"}
    try:
        return cast(Function, njit(cache=True, **settings)(function))
    except RuntimeError:  # no folder that can be written to, as in some containers: every process compiles for itself
        return cast(Function, njit(**settings)(function))


def shares(total: int, smallest: int) -> list[range]:
    """Equal parts of ``range(total)``, a few for each thread that torch may use; none below the smallest useful size.

    Data loaders give their workers one thread, so that processes times threads do not outnumber the cores.

    Example:
        >>> shares(10, smallest=20)
        [range(0, 10)]
    """
    threads = torch.get_num_threads()
    number = max(1, min(_PARTS * threads, total // max(1, smallest))) if threads > 1 else 1
    return [range(total * i // number, total * (i + 1) // number) for i in range(number)]


def in_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``[work(part) for part in parts]``, by this thread and others that take part after part.

    After an error no further part is begun, and when it is raised nobody is at work any more.

    Example:
        >>> in_threads(sum, [range(3), range(5)])
        [3, 10]
    """
    todo = deque(enumerate(parts))
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def take() -> None:
        try:
            while True:
                try:
                    index, part = todo.popleft()
                except IndexError:
                    return
                results[index] = work(part)
        except BaseException as error:
            stop(error)

    def stop(error: BaseException) -> None:
        todo.clear()
        errors.append(error)

    _side_by_side(take, min(torch.get_num_threads(), len(parts)), stop)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(parts))]


def _side_by_side(work: Callable[[], None], number: int, stop: Callable[[BaseException], None]) -> None:
    """``work()`` by at most so many threads, this one among them. ``stop`` gets what handlers of signals raise."""
    team = _team() if number > 1 and not _forked else None
    if team is not None:
        _by_team(team, work, number, stop)
        return
    helpers = [_helpers().submit(work) for _ in range(number - 1)]
    work()
    while True:
        try:
            wait([helper for helper in helpers if not helper.cancel()])  # nobody waits for one that has not begun
            return
        except BaseException as error:
            stop(error)


def _by_team(team: Any, work: Callable[[], None], number: int, stop: Callable[[BaseException], None]) -> None:
    """What a handler of signals, Ctrl-C's too, raises as C calls back, ctypes would only report.

    Handlers run in the main thread alone.
    """

    def called(_: Any) -> None:
        work()

    def keep(what: Any) -> None:
        ours = what.object is called or (what.object is None and repr(called) in (what.err_msg or ""))  # from 3.13 on
        if ours and what.exc_value is not None:
            stop(what.exc_value)
        else:
            report(what)

    if threading.current_thread() is not threading.main_thread():
        team(_Task(called), None, number, 0)
        return
    report = sys.unraisablehook
    try:
        sys.unraisablehook = keep
        team(_Task(called), None, number, 0)
    finally:
        sys.unraisablehook = report


_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@lru_cache(maxsize=1)
def _team() -> Any:
    """The function that lets the threads of torch's own OpenMP work, where it is GNU's or speaks like it.

    After an operation they look for more work for some milliseconds before they sleep. Threads of our own would have to
    share the cores with them; these are there at once.
    """
    library = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(library)).GOMP_parallel  # looked for in what the library is linked with
    except (OSError, AttributeError):  # another system or another OpenMP: threads of our own
        return None
    function.argtypes = [_Task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor to be filled, in pages of 2 MB where it is large and the system grants them.

    What is larger than some 30 MB comes fresh from the system at every call, and to hand it out in pages of 4 KB takes
    longer than to compute what is written there.

    Example:
        >>> empty_like(torch.zeros(2, 3).T).stride()
        (2, 1)
    """
    fresh = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    advise = _madvise() if fresh.device.type == "cpu" and fresh.nbytes >= _LARGE_BYTES else None
    if advise is not None:
        start = -(-fresh.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        # An advice: where it is not taken, all works as it does without.
        advise(start, fresh.data_ptr() + fresh.nbytes - start, _MADV_HUGEPAGE)
    return fresh


@lru_cache(maxsize=1)
def _madvise() -> Any:
    """The C library's, on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


@lru_cache(maxsize=1)
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="medcoarse")


_forked = False


def _after_fork() -> None:
    """A forked process has none of the threads of its parent, but its OpenMP counts on them: it starts its own."""
    global _forked
    _forked = True
    _helpers.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
