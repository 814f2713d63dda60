"""Progress shows on a terminal only, and bars nest."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from bedplate.core.progress import Progress, console, progress

CODE = """
import time
from bedplate.core.progress import Countdown, Progress, progress
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
with Countdown("time limit", 60):
    time.sleep(1.4)
with Countdown("no limit", None):
    time.sleep(0.4)
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "end\n"


def test_shows_bars_on_a_terminal_also_nested() -> None:
    code, shown = run_on_terminal(CODE)
    assert code == 0, shown
    for part in ("outer", "inner", "2/2", "MB", "loss 0.1235", "state done", "unknown length", "1/60 s", "left"):
        assert part in shown
    assert "over soon" not in shown
    assert "no limit" not in shown
    assert "\x1b[" in shown


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
