"""Progress over the runs of a table: a bar where someone watches, and a line for each finished run everywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from medcoarse.experiments.results import Result


class Progress:
    """A context that knows how many runs there are.

    Args:
        total: number of runs.
        jobs: how many run at a time.
        say: gets the lines; ``None`` for standard output.
    """

    def __init__(self, total: int, jobs: int, say: Callable[[str], None] | None = None) -> None:
        self.total, self.jobs = total, jobs
        self.seconds: list[float] = []
        self.done = 0
        self._say = say
        self._bar: Any = None
        self._drawn = 0.0

    def __enter__(self) -> Progress:
        self._bar = tqdm(total=self.total, unit="run", disable=not sys.stderr.isatty())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._say is not None:
            self._say(line)
        else:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def skip(self, count: int) -> None:
        """Runs that were done before."""
        if count:
            self.say(f"{count} of {self.total} runs are done already")
        self.done += count
        self._bar.initial = count  # they say nothing about the time that the others take
        self._bar.n = count

    def show(self, running: Sequence[str]) -> None:
        """What is running now; drawn once a second."""
        if not self._bar.disable and time.monotonic() - self._drawn > 1:
            self._drawn = time.monotonic()
            self._bar.set_postfix_str("; ".join(running))

    def finish(self, result: Result, problem: str | None) -> None:
        """A run has ended."""
        self.done += 1
        self._bar.update()
        if result.status == "done":
            self.seconds.append(sum(result.content["seconds"].values()))
        self.say(f"[{self.done}/{self.total}] {result.run.name}: {problem or self._scores(result)}")

    def _scores(self, result: Result) -> str:
        values = {column: result.score(metric) for column, metric in result.run.table.metrics.items()}
        text = ", ".join(f"{column} {'undefined' if v is None else f'{v:.3f}'}" for column, v in values.items())
        return f"{text} ({duration(self.seconds[-1])}{self._remaining()})"

    def _remaining(self) -> str:
        """An estimate from the runs that have ended; they may be of very different length."""
        left = self.total - self.done
        mean = sum(self.seconds) / len(self.seconds)
        rounds = left / min(self.jobs, left) if left else 0
        return f"; {left} left, about {duration(mean * rounds)}" if left else ""


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(42.4), duration(600), duration(9000)
        ('42 s', '10 min', '2 h 30 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
