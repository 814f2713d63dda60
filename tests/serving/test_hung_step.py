"""A step that never ends holds neither the end of the grace nor a second signal up: the process ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from .conftest import Server
from .test_lifecycle import ENDLESS, everything, send

HANGING = """
import sys, threading
import bedplate.inference.engine.runner as runner
def hangs(logits, rows):
    print("hangs", flush=True)
    threading.Event().wait()
runner.sample = hangs
from bedplate.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("grace", "signals"), [("0.5", 1), ("600", 2)])
def test_a_hung_step_does_not_keep_the_process(files, grace, signals):
    line = [sys.executable, "-c", HANGING, "serve", str(files.base), "--port", "0", "--json", "--grace", grace]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"].removesuffix("/v1")
        with send(Server(url, None, {}), {**ENDLESS, "stream": True}) as connection:  # type: ignore[arg-type]
            assert process.stdout.readline() == b"hangs\n"
            began = time.monotonic()
            for number in range(signals):
                time.sleep(0.5 * number)
                process.send_signal(signal.SIGTERM)
            assert b"shutting_down" in everything(connection)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 12
        assert b"has not ended" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
