"""Progress shows on a terminal only, and bars nest."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.core.clocks import set_monotonic

from bedplate.core import progress as module
from bedplate.core.errors import UsageError
from bedplate.core.progress import Countdown, Progress, console, progress, silent
from bedplate.inference.predict import loaded

CODE = """
import time
from bedplate.core.progress import Progress, progress
for _ in progress(range(2), "outer"):
    with Progress("inner", total=2, unit="MB") as bar:
        bar.advance(1)
        bar.advance(1, loss=0.123456, state="done")
        time.sleep(0.6)  # a bar is shown after 0.3 s, and the display refreshes five times a second
with Progress("unknown length") as bar:
    bar.advance(1)
    time.sleep(0.6)
with Progress("over soon") as bar:
    bar.advance(1)
for _ in progress((i for i in range(2)), "left early"):
    break
print("end")
"""


QUICKLY = """
import time
from bedplate.core import progress
sleep, progress._AFTER = time.sleep, 0.05
time.sleep = lambda seconds: sleep(seconds / 6)
"""
"""All of it in a sixth of the time: what is not drawn needs no time to be read."""


def run_on_terminal(code: str, **environment: str) -> tuple[int, str]:
    """Run code with stderr on a pseudo-terminal; its exit code and what the terminal got."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # EIO: the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    return child.wait(timeout=20), shown.decode()


def test_silent_when_not_a_terminal() -> None:
    code = f"{QUICKLY}{CODE}"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stderr == ""
    assert completed.stdout == "end\n"


def test_shows_bars_on_a_terminal_also_nested() -> None:
    code, shown = run_on_terminal(CODE)
    assert code == 0, shown
    for part in ("outer", "inner", "2/2", "MB", "loss 0.1235", "state done", "unknown length"):
        assert part in shown
    assert "over soon" not in shown
    assert "\x1b[" in shown


def test_the_first_use_of_a_name_that_takes_long_to_import_shows_it(tmp_path: Path) -> None:
    (tmp_path / "slow_one.py").write_text("import time; time.sleep(0.6); load = print")
    program = "import bedplate; bedplate._MODULES['load'] = 'slow_one'; bedplate.load('end')"
    code, shown = run_on_terminal(program, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert code == 0, shown
    assert "importing slow_one" in shown


def test_a_skin_that_is_opened_shows_it_until_its_engine_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_bars: list[str] = []

    class Bar(Progress):
        def __enter__(self) -> Bar:
            open_bars.append(self._description)
            return self

        def __exit__(self, *_: object) -> None:
            open_bars.pop()

    def engine(*_: object, **__: object) -> None:
        raise UsageError(f"as the engine is built: {open_bars}")

    (tmp_path / loaded.SKIN_FILE).touch()
    skin = SimpleNamespace(name="mine", is_remote=False, cascade=None, classical=None, evaluated_with=None, base=None)
    monkeypatch.setattr(loaded, "read_skin", lambda _: skin)
    monkeypatch.setattr("bedplate.inference.predict.skin_bases.held_as", lambda *_, **__: None)
    monkeypatch.setattr("bedplate.inference.predict.skin_bases._Bases.model", engine)
    monkeypatch.setattr(loaded, "Progress", Bar)
    with pytest.raises(UsageError, match=r"built: \['opening mine'\]"):
        loaded.load(tmp_path)
    assert open_bars == []


def test_foreign_live_display_is_left_alone() -> None:
    code, shown = run_on_terminal(
        "import rich.live, rich.console\n"
        "with rich.live.Live('theirs', console=rich.console.Console(stderr=True)):\n"
        "    from bedplate.core.progress import progress\n"
        "    assert list(progress(range(3), 'ours')) == [0, 1, 2]\n"
    )
    assert code == 0, shown
    assert "theirs" in shown


def test_yields_every_item_and_passes_errors_on() -> None:
    assert list(progress([1, 2, 3], "x")) == [1, 2, 3]
    with pytest.raises(KeyboardInterrupt), Progress("x"):
        raise KeyboardInterrupt


def test_console_without_terminal_has_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("[bold red]text[/]")
    console(stderr=True).print("other")
    captured = capsys.readouterr()
    assert captured.out == "text\n"
    assert captured.err == "other\n"


def test_a_log_has_a_line_of_a_long_job_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    set_monotonic(monkeypatch, module, lambda: now)
    with Progress("run", 50, "steps", done=10) as bar, Progress("quiet", 50, quiet=True) as quiet, silent(False):
        for step in range(11, 51):
            now += 2
            bar.advance(1, loss=step / 10, speed="fast")
            quiet.advance(1)
    with silent(), Progress("silent", 2) as bar:
        now += 60
        bar.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "run: 25 of 50 steps, loss 2.5, speed fast, 0:00:50 left",
        "run: 40 of 50 steps, loss 4, speed fast, 0:00:20 left",
    ]


def test_a_log_has_a_line_where_each_of_many_jobs_is_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of them took LINE_SECONDS, so that a search of many minutes said nothing."""
    now = 100.0
    set_monotonic(monkeypatch, module, lambda: now)
    with Progress("search"):
        for number in range(6):
            with Progress(f"job {number}", 2, "rows") as bar:
                now += 12
                bar.advance(1)
                if number == 4:
                    module.notice("job 4 is done")
    assert capsys.readouterr().err.splitlines() == [
        "job 2: 1 of 2 rows, 0:00:12 left",
        "job 4 is done",
    ]


def test_a_limit_of_time_shows_life_while_nothing_advances(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    set_monotonic(monkeypatch, module, lambda: now)
    with Countdown("adapt: time limit", 600.0) as limit, Progress("fitting: probe", unit=""):
        for _ in range(5):
            now += 11
            limit.beat()
    with Countdown("adapt: time limit", None) as limit:
        now += 31
        limit.beat()
    assert capsys.readouterr().err.splitlines() == [
        "adapt: time limit: 33 of 600 s; fitting: probe, 33 s",
        "adapt: time limit: 31 s",
    ]


def test_a_limit_of_time_beats_by_itself() -> None:
    code = (
        "import time\n"
        "from bedplate.core import progress\n"
        "progress.LINE_SECONDS = 0.02\n"
        "with progress.Countdown('adapt: time limit', 600.0):\n"
        "    time.sleep(1.0)\n"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "adapt: time limit: " in completed.stderr
