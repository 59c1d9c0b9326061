"""Compiled loops: Numba with the settings that every one of them shares, and threads to run them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import torch
from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])
Part = TypeVar("Part")
Result = TypeVar("Result")

# Sums may be reordered; NaN and infinity keep their meaning, so that a training that diverges is seen.
_REORDER = {"reassoc", "contract", "arcp", "nsz"}


def compiled(function: Function) -> Function:
    """Compile at the first call, for the types it is called with, and keep the result on disk for the next process.

    A compiled function runs beside other Python threads. It starts none, so a data loader may fork at any time.
    """
    return cast(Function, njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")(function))


def shares(total: int, smallest: int) -> list[range]:
    """Equal parts of ``range(total)``, one for each thread that torch may use; none below the smallest useful size.

    Data loaders give their workers one thread, so that processes times threads do not outnumber the cores.

    Example:
        >>> shares(10, smallest=20)
        [range(0, 10)]
    """
    number = max(1, min(torch.get_num_threads(), total // max(1, smallest)))
    return [range(total * i // number, total * (i + 1) // number) for i in range(number)]


def in_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``[work(part) for part in parts]``, each in a thread of its own that is gone afterwards.

    Example:
        >>> in_threads(sum, [range(3), range(5)])
        [3, 10]
    """
    if len(parts) == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(work, parts))
