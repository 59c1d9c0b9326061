"""Processes side by side: start, wait, and leave none behind. Runs on Linux and macOS.

What is to be done one after the other is a generator of commands: it yields a :class:`Command`, gets the exit code of
it back, and returns what came of it all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")
POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0
"""How long a process may take to end before it is killed."""


@dataclass(frozen=True)
class Command:
    """One process.

    Args:
        arguments: program and arguments.
        log: file that its output is appended to.
        environment: variables beside those of this process.
        kept_open: file descriptors that it inherits.
    """

    arguments: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    kept_open: tuple[int, ...] = ()


Task = Generator[Command, int, T]


class Stopped(KeyboardInterrupt):
    """A signal arrived, all processes have been ended, and everything can be resumed."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


def run_side_by_side(
    tasks: Mapping[K, Task[T]], limit: int, tick: Callable[[list[K]], None]
) -> Generator[tuple[K, T], None, None]:
    """Run tasks, at most ``limit`` at a time; however this ends, no process of theirs goes on.

    Args:
        tasks: by key, in the order in which they are started.
        limit: how many at a time.
        tick: called several times a second with the keys of what is running.

    Yields:
        Key and outcome of each task as it ends.

    Raises:
        Stopped: SIGINT, SIGTERM or SIGHUP came.
    """
    waiting, active = deque(tasks.items()), dict[K, subprocess.Popen[bytes]]()
    with _signals() as received, _ended(active, tasks):
        while (waiting or active) and not received:
            codes: list[tuple[K, int | None]] = [(key, process.poll()) for key, process in active.items()]
            steps = [(key, code) for key, code in codes if code is not None]
            for key, code in steps or _next(waiting, limit - len(active)):
                active.pop(key, None)
                try:
                    active[key] = _start(tasks[key].send(code))  # type: ignore[arg-type]  # None starts a generator
                except StopIteration as end:
                    yield key, end.value
            tick(list(active))
            if active and not steps:
                time.sleep(POLL_SECONDS)
        if received:
            raise Stopped(received[0])


def available_cores() -> int:
    """Physical cores that this process may use; hyper-threads do not make training faster.

    Example:
        >>> 1 <= available_cores() <= os.cpu_count()
        True
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return os.cpu_count() or 1
    siblings = Path("/sys/devices/system/cpu")
    files = [siblings / f"cpu{cpu}/topology/thread_siblings_list" for cpu in os.sched_getaffinity(0)]
    return len({file.read_text() if file.is_file() else str(file) for file in files})


def _next(waiting: deque[tuple[K, Task[T]]], free: int) -> list[tuple[K, None]]:
    """The tasks that there is room for now."""
    return [(waiting.popleft()[0], None) for _ in range(min(free, len(waiting)))]


def _start(command: Command) -> subprocess.Popen[bytes]:
    """Start in a session of its own: a terminal's Ctrl-C reaches this process alone, which then ends whole groups."""
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("ab") as log:
        return subprocess.Popen(
            command.arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **command.environment},
            start_new_session=True,
            pass_fds=command.kept_open,
        )


@contextlib.contextmanager
def _ended(active: Mapping[K, subprocess.Popen[bytes]], tasks: Mapping[K, Task[T]]) -> Iterator[None]:
    """On the way out, ask all groups of processes to end, kill what does not, and close the tasks."""
    try:
        yield
    finally:
        for process in active.values():
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in active.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(process, signal.SIGKILL)  # its workers too
            process.wait()
        for task in tasks.values():
            task.close()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect signals instead of dying of them; a flag has no moment at which a new process could be overlooked."""
    received: list[int] = []
    previous = {}
    if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                previous[number] = signal.signal(number, lambda got, _: received.append(got))
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
