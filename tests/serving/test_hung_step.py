"""A step that never ends holds neither the end of the grace nor a second signal up: the process ends."""

from __future__ import annotations

import json
import signal
import time

import pytest
from tests.forked import Command

from .conftest import Server
from .test_lifecycle import ENDLESS, everything, send, wait_until


@pytest.mark.parametrize(("grace", "signals"), [("0.5", 1), ("600", 2)])
def test_a_hung_step_does_not_keep_the_process(files, tmp_path, grace, signals):
    line = ("serve", files.base, "--port", "0", "--json", "--grace", grace)
    process = Command(tmp_path, *line, main="tests.serving.process:hanging")
    try:
        url = json.loads(process.first_line())["url"].removesuffix("/v1")
        with send(Server(url, None, {}), {**ENDLESS, "stream": True}) as connection:  # type: ignore[arg-type]
            wait_until(lambda: process.output.endswith("hangs\n"), 60)
            began = time.monotonic()
            for number in range(signals):
                time.sleep(0.5 * number)
                process.send_signal(signal.SIGTERM)
            assert b"shutting_down" in everything(connection)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 12
        assert "has not ended" in process.errors
    finally:
        process.kill()
