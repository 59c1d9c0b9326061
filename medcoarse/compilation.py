"""Compiled loops: Numba with the settings that every one of them shares, and threads to run them side by side."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
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
    """``[work(part) for part in parts]``, by this thread and helpers that take part after part.

    Nobody waits for a helper that has not begun: other libraries keep threads of their own awake for a while. After an
    error no further part is begun, and when it is raised nobody is at work any more.

    Example:
        >>> in_threads(sum, [range(3), range(5)])
        [3, 10]
    """
    todo = deque(enumerate(parts))
    results: dict[int, Result] = {}

    def take() -> None:
        while todo:
            try:
                index, part = todo.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                results[index] = work(part)
            except BaseException:
                todo.clear()
                raise

    helpers = [_helpers().submit(take) for _ in range(min(torch.get_num_threads(), len(parts)) - 1)]
    try:
        take()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
    for helper in begun:
        helper.result()
    return [results[index] for index in range(len(parts))]


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


# A forked process has none of the threads of its parent: it starts its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)
