"""vLLM in a virtual environment of its own, which must not change ours; installed while other parts run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

_SCRIPT = """
import subprocess, sys
subprocess.run([sys.argv[1], "-m", "pip", "install", "-q", "vllm"], check=True)
open(sys.argv[2], "w").close()
"""


class Installation:
    """Begins at once, and leaves a file `installed` or what pip said in `log`."""

    def __init__(self, place: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        place.mkdir(parents=True, exist_ok=True)
        if (place / "installed").is_file():
            return
        script = (
            "import subprocess, sys; subprocess.run([sys.argv[1], '-m', 'pip', 'install', '-q', 'vllm'], check=True); "
        )
        script += "open(sys.argv[2], 'w').close()"
        venv.create(place / "venv", with_pip=True, clear=True)
        with (place / "log").open("wb") as log:
            command = [sys.executable, "-c", _SCRIPT, str(python_of(place)), str(place / "installed")]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def stop(self) -> None:
        """Nobody waits for it any more."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def python_of(place: Path) -> Path:
    return place / "venv/bin/python"
