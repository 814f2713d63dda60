"""Commands that are forked off the process of the tests are as those of a process of their own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, logging, sys
from multiprocessing import forkserver
from pathlib import Path
from tests import forked
logging.root.addHandler(logging.NullHandler())
sys.stdout.write = None  # as where output is captured
forked.PRELOADED.clear()
forked.start()
server = forkserver._forkserver._forkserver_pid
forked.start()
command = forked.Command(Path(sys.argv[1]), "an argument", main="tests.cli.test_forked:describe", NAME="value")
assert command.wait() == 3, command.errors
assert server == forkserver._forkserver._forkserver_pid
assert command.errors == "a warning\\n", command.errors
sys.stderr.write(command.output)
"""


def describe() -> None:
    """In the command's process."""
    print(json.dumps([sys.argv[1:], os.environ["NAME"], len(logging.root.handlers)]))
    logging.getLogger("any").warning("a warning")
    sys.exit(3)


def test_a_command_has_nothing_of_the_process_that_it_is_forked_off(tmp_path: Path) -> None:
    """Its own arguments, environment and files; no handler of what was logged, nor what output was replaced by."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stderr) == [["an argument"], "value", 0]
