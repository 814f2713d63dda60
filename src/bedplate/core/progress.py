"""Progress for people: a bar on stderr when it is a terminal, and few lines elsewhere; output that honours NO_COLOR."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    import rich.console
    import rich.progress
    import rich.table
    import rich.text

T = TypeVar("T")

_MARGIN = re.compile(r"\s*(?:- )?")
_SPEED_SECONDS = 600.0  # what the time left is estimated from: pauses such as evaluations are part of it
_AFTER = 0.3
"""Seconds after which a bar is shown: what is over sooner does not flicker."""
LINE_SECONDS = 30.0
"""Between two lines of progress where there is no terminal."""
_PIPE_WIDTH = 120  # rich assumes 80 columns where there is no terminal, which folds our tables


def console(stderr: bool = False) -> rich.console.Console:
    """A rich console on stdout (or stderr): colours only on a terminal and without NO_COLOR in the environment. Lines
    are wrapped between words; a word that is longer than the terminal is wide, such as a path, stays whole."""
    import rich.console

    class Console(rich.console.Console):
        def print(self, *objects: Any, **how: Any) -> None:
            whole: dict[str, Any] = {"overflow": "ignore", "no_wrap": True, "crop": False, "highlight": False, **how}
            if len(objects) == 1 and isinstance(objects[0], str) and not how.get("soft_wrap"):
                markup = how.get("markup", True)
                objects = tuple(_lines(self.render_str(objects[0], markup=markup, highlight=False), self.width))
                whole["sep"] = "\n"
            super().print(*objects, **whole)

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Console(stderr=stderr, width=width)


def _lines(text: rich.text.Text, width: int) -> Iterator[rich.text.Text]:
    """A text in lines that are broken at spaces alone; those that go on begin below the first word, behind a dash of
    a list."""
    import rich.text

    for line in text.split("\n", allow_blank=True):
        words = [(match.start(), match.end()) for match in re.finditer(r"\S+", line.plain)]
        margin = len(_MARGIN.match(line.plain)[0])  # pyright: ignore[reportOptionalSubscript]
        start, before = 0, ""
        for (_, last), (at, end) in pairwise(words):
            if len(before) + end - start > width:
                yield rich.text.Text(before).append_text(line[start:last])
                start, before = at, " " * margin
        yield rich.text.Text(before).append_text(line[start:])


def progress(iterable: Iterable[T], description: str, total: float | None = None, unit: str = "it") -> Iterator[T]:
    """Yield from `iterable` under a progress bar; `total` defaults to its length where it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(description, total, unit) as bar:
        for value in iterable:
            yield value
            bar.advance(1)


_silent: ContextVar[bool] = ContextVar("silent", default=False)


def notice(text: str) -> None:
    """Prints a line on stderr, also where that is no terminal: of a long wait, or of what cannot be taken back."""
    if not _silent.get():
        print(text, file=sys.stderr, flush=True)
        for bar in _open:
            bar.line_at = time.monotonic()


def log_line(text: str) -> None:
    """Prints a line on stderr where that is no terminal, which shows bars in its place."""
    if not sys.stderr.isatty():
        notice(text)


@contextmanager
def silent(enabled: bool = True) -> Generator[None]:
    """No bars while it is open, where that is enabled: of several processes on one terminal one shows its own."""
    before = _silent.set(enabled or _silent.get())
    try:
        yield
    finally:
        _silent.reset(before)


_open: list[Progress] = []
"""Bars that are open, the innermost last."""


class Progress:
    """One bar, used as a context. Bars may nest and may run in several threads: they share one live display. In a log,
    where there is no terminal, what takes longer has a line every LINE_SECONDS. done: units before a resumption."""

    def __init__(
        self, description: str, total: float | None = None, unit: str = "it", *, quiet: bool = False, done: int = 0
    ) -> None:
        self._description = description
        self._total = total
        self._unit = unit
        self._quiet = quiet
        self._first, self._done = done, float(done)
        self._begun = self.line_at = time.monotonic()  # line_at: when the log had its last line, by what is open
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        self.line_at = _open[-1].line_at if _open else self.line_at
        _open.append(self)
        if not self._quiet and not _silent.get() and sys.stderr.isatty():
            display = _display.acquire()
            if display is not None:
                fields: dict[str, Any] = {"unit": self._unit, "metrics": "", "of_time": isinstance(self, Countdown)}
                self._task = display.add_task(self._description, total=self._total, completed=self._first, **fields)
        return self

    def __exit__(self, *error: object) -> None:
        _open.remove(self)
        if self._task is not None:
            _display.release(self._task)
            self._task = None

    def advance(self, n: float = 1, **metrics: float | str) -> None:
        """Move on by `n` units and show the metrics beside the bar."""
        self._done += n
        shown = [f"{name} {v if isinstance(v, str) else format(v, '.4g')}" for name, v in metrics.items()]
        if self._task is None or _display.live is None:
            self._log(shown)
        elif shown:
            _display.live.update(self._task, advance=n, metrics="  ".join(shown))
        else:
            _display.live.advance(self._task, n)

    def _log(self, metrics: Sequence[str]) -> None:
        now, new = time.monotonic(), self._done - self._first
        if self._quiet or self._total is None or new <= 0 or now - self.line_at < LINE_SECONDS:
            return
        left = (now - self._begun) / new * (self._total - self._done)
        parts = (
            f"{self._done:,.0f} of {self._total:,.0f} {self._unit}",
            *metrics,
            f"{timedelta(seconds=round(left))} left",
        )
        log_line(f"{self._description}: {', '.join(parts)}")


class Countdown(Progress):
    """A bar of time: how many seconds of a limit have passed. It moves by itself (`Bars`); a log has a line of it where
    nothing else wrote any for LINE_SECONDS."""

    def __init__(self, description: str, seconds: float | None) -> None:
        super().__init__(description, seconds, "s", quiet=seconds is None)
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        if not _silent.get() and not sys.stderr.isatty():
            threading.Thread(target=self._watch, daemon=True).start()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        super().__exit__(*error)

    def _watch(self) -> None:
        while not self._ended.wait(LINE_SECONDS / 4):
            self.beat()

    def beat(self) -> None:
        """A line of the time that has passed and of what is being done, where the last line is old."""
        now, inner = time.monotonic(), [self, *_open][-1]  # another thread may close it meanwhile
        limit = "" if self._total is None else f" of {self._total:,.0f}"
        doing = "" if inner is self else f"; {inner._description}, {now - inner._begun:,.0f} s"
        if now - self.line_at >= LINE_SECONDS:
            log_line(f"{self._description}: {now - self._begun:,.0f}{limit} s{doing}")


class _Display:
    """The one live display of the process, started by its first bar and stopped with its last."""

    def __init__(self) -> None:
        self.live: rich.progress.Progress | None = None
        self._users = 0
        self._lock = threading.Lock()

    def acquire(self) -> rich.progress.Progress | None:
        with self._lock:
            if self.live is None:
                self.live = self._start()
            if self.live is not None:
                self._users += 1
            return self.live

    def release(self, task: rich.progress.TaskID) -> None:
        with self._lock:
            if self.live is None:
                return
            self._users -= 1
            if self._users == 0:
                self.live.stop()
                self.live = None
            else:
                self.live.remove_task(task)

    @staticmethod
    def _start() -> rich.progress.Progress | None:
        import rich.errors
        import rich.progress as bars
        import rich.text

        class Count(bars.ProgressColumn):
            """What is done of how much; nothing where that is not known."""

            def render(self, task: bars.Task) -> rich.text.Text:
                unit = f" {task.fields['unit']}" if task.fields["unit"] else ""
                if task.total is None:
                    return rich.text.Text(f"{task.completed:,.0f}{unit}" if task.completed else "")
                return rich.text.Text(f"{task.completed:,.0f}/{task.total:,.0f}{unit}")

        class Times(bars.ProgressColumn):
            """The time since it began, and that which is left."""

            max_refresh = 0.5

            def render(self, task: bars.Task) -> rich.text.Text:
                seconds = task.finished_time if task.finished else task.elapsed
                passed, remaining = f"{timedelta(seconds=round(seconds or 0.0))}", task.time_remaining
                if task.fields["of_time"]:
                    remaining = max((task.total or 0.0) - (task.elapsed or 0.0), 0.0)
                has_estimate = remaining is not None and task.total is not None and not task.finished
                left = timedelta(seconds=round(remaining or 0.0))
                return rich.text.Text(f"{passed}, {left} left" if has_estimate else passed)

        class Bars(bars.Progress):
            def make_tasks_table(self, tasks: Iterable[bars.Task]) -> rich.table.Table:
                for task in tasks:
                    if task.fields["of_time"]:
                        task.completed = min(task.elapsed or 0.0, task.total or 0.0)
                return super().make_tasks_table([task for task in tasks if (task.elapsed or 0.0) >= _AFTER])

        live = Bars(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=20),
            Count(),
            Times(),
            bars.TextColumn("{task.fields[metrics]}", markup=False),
            console=console(stderr=True),
            refresh_per_second=5,
            speed_estimate_period=_SPEED_SECONDS,
            redirect_stdout=sys.stdout.isatty(),  # what is piped stays in its pipe
            transient=True,
        )
        try:
            live.start()
        except rich.errors.LiveError:  # the caller's own live display is running: stay out of its way
            return None
        return live


_display = _Display()
