"""Functions run in several processes, which have to end."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def run_in_processes(number: int, target: Callable[..., None], *arguments: Any, seconds: float = 30) -> None:
    """Call ``target(rank, *arguments)`` in forked processes, ranks from 0; all must end in time, without an error."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target, args=(rank, *arguments)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=seconds)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung
    assert [process.exitcode for process in processes] == [0] * number
