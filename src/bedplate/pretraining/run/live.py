"""A run on the terminal and in TensorBoard while it lasts: readers of its metrics log, which may fail without harm to
it."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bedplate.core.progress import console
from bedplate.pretraining.page.page import TOKENS_PREFIX, measure_of
from bedplate.pretraining.runfile.counts import shown

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from bedplate.core.errors import UsageError

_RECENT = 20
_BARS = "▁▂▃▄▅▆▇█"


class LiveView:
    """As a context: a panel that is drawn anew once a second, where stderr is a terminal; nothing elsewhere."""

    def __init__(self, title: str, steps: int, *, shown_here: bool | None = None) -> None:
        self._title, self._steps = title, steps
        self._shown = sys.stderr.isatty() if shown_here is None else shown_here
        self._live: Live | None = None
        self._last: Mapping[str, Any] = {}
        self._judged: Mapping[str, Any] = {}
        self._token_counts: dict[str, int] = {}
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        self._losses: list[float] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._shown:
            import rich.live

            live = rich.live.Live(console=console(stderr=True), refresh_per_second=1, get_renderable=self.drawn)
            live.start()
            self._live = live
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, row: Mapping[str, Any]) -> None:
        with self._lock:
            self._last = row
            if row["loss"] is not None:  # of a step that was skipped
                self._losses.append(row["loss"])
            seconds = row["tokens"] / row["tokens_per_second"] if row["tokens_per_second"] else 0.0
            self._recent.append((row["tokens"], seconds))
            for name, count in row.items():
                if name.startswith(TOKENS_PREFIX):
                    self._token_counts[name.removeprefix(TOKENS_PREFIX)] = (
                        self._token_counts.get(name.removeprefix(TOKENS_PREFIX), 0) + count
                    )

    def judged(self, row: Mapping[str, Any]) -> None:
        with self._lock:
            self._judged = row

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last steps; None before the first."""
        if not self._recent:
            return None
        return (self._steps - self._last["step"]) * sum(s for _, s in self._recent) / len(self._recent)

    def drawn(self) -> RenderableType:
        """The panel as it is now."""
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            table = Table.grid(padding=(0, 2))
            for name, value in self._facts():
                table.add_row(Text(name, style="dim"), Text(value))
        return Panel(table, title=self._title, title_align="left")

    def _facts(self) -> list[tuple[str, str]]:
        row, seconds_left = self._last, self.seconds_left
        if not row:
            return [("", "waiting for the first steps")]
        seconds = sum(s for _, s in self._recent)
        speed = sum(t for t, _ in self._recent) / seconds if seconds else 0.0
        facts = [
            ("step", f"{row['step']:,} of {self._steps:,} ({row['step'] / self._steps:.0%})"),
            ("loss", f"{self._losses[-1]:.4f}  {sparkline(self._losses)}" if self._losses else "not finite"),
            ("learning rate", f"{row['learning_rate']:.3g}   gradient norm {_shown(row['gradient_norm'])}"),
            ("tokens a second", f"{speed:,.0f}" + (f"   MFU {row['mfu']:.1%}" if row.get("mfu") else "")),
            ("time left", "" if seconds_left is None else f"{clock(seconds_left)}, until {_at(seconds_left)}"),
        ]
        if self._token_counts:
            facts.append(
                ("tokens seen", ", ".join(f"{name} {shown(count)}" for name, count in self._token_counts.items()))
            )
        for name, score in self._judged.get("held_out", {}).items():
            measure, value = measure_of(score)
            facts.append((f"held out: {name}", f"{value:.3f} {measure} at step {self._judged['step']:,}"))
        if self._judged.get("suites"):
            facts.append(
                ("suites", ", ".join(f"{n} {suite['value']:.2f}" for n, suite in self._judged["suites"].items()))
            )
        for sample in self._judged.get("samples", ())[:1]:
            facts.append(("sample", f"{sample['prompt']}{sample['text']}"[:400]))
        return facts


def sparkline(values: list[float], width: int = 40) -> str:
    """The course of some values in one line of text."""
    if len(values) < 2:
        return ""
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]
    low, high = min(means), max(means)
    return "".join(_BARS[round((mean - low) / (high - low or 1) * (len(_BARS) - 1))] for mean in means)


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def clock(seconds: float) -> str:
    """A span of time as people say it."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {remainder:02d} s" if minutes else f"{remainder} s"


def _at(seconds: float) -> str:
    return time.strftime("%H:%M", time.localtime(time.time() + seconds))


logger = logging.getLogger("bedplate.pretraining")
Row = Mapping[str, Any]
_INTERVAL = 1.0


class Follower:
    """As a context: gives every new line of a metrics log to each of `takers`, in a thread of its own; what is there
    already is given first. A step is given once, also where the log is cut back to a saved state and grows again. A
    taker that fails is reported once and left out."""

    def __init__(self, path: Path, takers: Sequence[Callable[[Row], None]], interval: float = _INTERVAL) -> None:
        self._path, self._takers, self._interval = path, list(takers), interval
        self._position = self._step = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bedplate-follow", daemon=True)

    def __enter__(self) -> Self:
        if self._takers:
            self._thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._takers:
            self._stop.set()
            self._thread.join()
            self._read()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._read()

    def _read(self, retried: bool = False) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            if size < self._position:  # cut back to a saved state
                self._position = 0
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                if retried:
                    raise
                self._position = 0  # the log was cut back, and has grown past this place since
                self._read(retried=True)
                return
            if row["step"] > self._step:
                self._step = row["step"]
                self._deliver(row)

    def _deliver(self, row: Row) -> None:
        for taker in list(self._takers):
            try:
                taker(row)
            except Exception as error:
                self._takers.remove(taker)
                logger.warning("%s no longer follows the run: %s", type(taker).__name__, error)


class TensorBoard:
    """Scalars for TensorBoard, from the step on that a run goes on at (what an earlier process wrote stays). UsageError
    where it is not installed."""

    def __init__(self, directory: Path, first: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError("TensorBoard is not installed: pip install 'bedplate[data]'") from error
        self._writer = SummaryWriter(str(directory), purge_step=first + 1 if first else None)
        self._first = first

    @classmethod
    def where_installed(cls, directory: Path, first: int) -> TensorBoard | None:
        """One, or None where TensorBoard is not installed: the run's own page shows the same."""
        try:
            return cls(directory, first)
        except UsageError:
            return None

    def __call__(self, row: Row) -> None:
        if row["step"] <= self._first:
            return
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(_tag(name), value, row["step"])

    def judged(self, row: Row) -> None:
        """What a checkpoint was judged to be."""
        for name, score in row["held_out"].items():
            measure, value = measure_of(score)
            tag = f"held_out/{name}/{measure.replace(' a ', '_per_')}"
            self._writer.add_scalar(tag, value, row["step"])
        for name, suite in row["suites"].items():
            self._writer.add_scalar(f"suites/{name}", suite["value"], row["step"])
        for number, sample in enumerate(row["samples"]):
            self._writer.add_text(f"sample {number}", f"{sample['prompt']}{sample['text']}", row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _tag(name: str) -> str:
    return name if "/" in name else f"train/{name}"
