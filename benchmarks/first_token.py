"""How soon `bedplate generate` says its first token of a base that it has never seen: a whole process, from its start.

Each process has a home of its own, in which the base lies as it was pulled and the native kernel is compiled, and
nothing is known of the base: no way measured, nothing hashed. The base's file is in the system's page cache, and byte
code is on disk, as pip leaves it. Beside it the same in a home where an earlier process has been, and (reported only)
llama.cpp from the same file.

usage: first_token.py [--base smollm2-135m] [--repeats 7]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from bedplate.core.files import bedplate_home
from bedplate.models.checkpoints.checkpoint import locate
from comparison import Row, report, start
from goals import FIRST_TOKEN

CODE = Path(tempfile.gettempdir()) / "first-token-code"
PROMPT = "The capital of France is"
PEER = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), verbose=False)
for piece in model(sys.argv[3], max_tokens=1, temperature=0, stream=True):
    print(piece["choices"][0]["text"], end="", flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=7)
    started = start(parser)
    base, repeats = started.options.base, started.options.repeats
    path, ours = locate(base), [sys.executable, "-m", "bedplate.cli.main", "generate", base, PROMPT, "--max-tokens=1"]
    peer = [sys.executable, "-c", PEER, str(path), str(started.machine.threads), PROMPT]
    has_peer = importlib.util.find_spec("llama_cpp") is not None
    unseen, cached, theirs = list[float](), list[float](), list[float]()
    with fresh_home(bedplate_home()) as compiled:
        first_output(ours, compiled)  # compiles the kernel where it is not yet, and the byte code of both
        if has_peer:
            first_output(peer, compiled)
        for _ in range(repeats):
            with fresh_home(compiled) as home:
                warm(path)
                unseen.append(first_output(ours, home))
                cached.append(first_output(ours, home))
                if has_peer:
                    theirs.append(first_output(peer, home))
    print(f"{base}, {repeats} processes each, medians; cached: the file's pages, the compiled kernel")
    for name, seconds in (("never seen", unseen), ("seen before", cached), ("llama.cpp", theirs)):
        if seconds:
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            print(f"{name}: {statistics.median(seconds):.2f} s to the first token ({spread})")
    goal = FIRST_TOKEN.get(base)
    rows = [Row(f"first_token_{base}", statistics.median(unseen), goal, "s", "goal", "-", 1.0, True)] if goal else []
    if theirs:
        medians = statistics.median(unseen), statistics.median(theirs)
        rows.append(
            Row(f"first_token_{base}_llama", *medians, "s", "llama.cpp", version("llama-cpp-python"), None, True)
        )
    report(rows)


@contextmanager
def fresh_home(of: Path) -> Generator[Path]:
    """A home that has what was pulled and compiled for another, and nothing else. The other is not written to: its
    kernel may be in use, and a library that is written anew takes its users down."""
    with tempfile.TemporaryDirectory(prefix="first-token-") as place:
        home = Path(place)
        (home / "hub").symlink_to((of / "hub").resolve())
        if (of / "native").is_dir():
            shutil.copytree(of / "native", home / "native")
        yield home


def warm(path: Path) -> None:
    """Reads the files of a base, so that they are in memory."""
    for file in [path] if path.is_file() else sorted(candidate for candidate in path.rglob("*") if candidate.is_file()):
        with file.open("rb") as content:
            while content.read(1 << 22):
                pass


def first_output(command: list[str], home: Path) -> float:
    """Seconds from the start of a process to the first text that it writes."""
    environment = {**os.environ, "BEDPLATE_HOME": str(home), "PYTHONPYCACHEPREFIX": str(CODE)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = os.read(process.stdout.fileno(), 1 << 16)
        seconds = time.perf_counter() - began
        process.stdout.read()
    if process.returncode or not output.strip():
        sys.exit(f"{' '.join(command)} ended with {process.returncode} and said {output!r}")
    return seconds


if __name__ == "__main__":
    main()
