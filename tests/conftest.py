"""What every test stands on: isolation from the user's files, one thread per worker, the real checkpoints."""

from __future__ import annotations

import ast
import atexit
import functools
import gc
import heapq
import itertools
import os
import signal
import ssl
import subprocess
import sys
from collections import Counter, defaultdict

# before torch, tokenizers, matplotlib and huggingface_hub are imported by anyone
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["BEDPLATE_DATA_LEDGER"] = "off"  # tests that share data know nothing of each other
os.environ["TRITON_INTERPRET"] = "1"  # where Triton is installed: tests run on CPU tensors
# A shell starts background jobs with SIGINT ignored, and children inherit that: the tests of Ctrl-C need it back.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.homes import link_machine
from tests.interpreted import NO_TRITON

from bedplate.core.errors import LicenceError, UnreachableError
from bedplate.core.files import bedplate_home


def _parsing_again(parse: Any) -> Any:
    """CPython before 3.11.8 counts the depth of syntax trees in one place for all threads (python/cpython#106905).

    While a tree is built no other thread runs, unless a collection of garbage calls Python, as each does once
    hypothesis times them. Where another thread then parses as well, as writing a traceback does, the first one raises
    SystemError.
    """

    @functools.wraps(parse)
    def retrying(*arguments: Any, **named: Any) -> Any:
        for _ in range(5):
            try:
                return parse(*arguments, **named)
            except SystemError:
                pass
        return parse(*arguments, **named)

    return retrying


ast.parse = _parsing_again(ast.parse)
# Until all tests are collected: what is imported and collected stays, some two million objects, and to go through them
# takes most of a second each time (`pytest_runtestloop`).
gc.disable()
REAL_HOME = bedplate_home()  # the user's own, taken before any test is isolated
_LOUD = "REAL CHECKPOINT MISSING"
_NO_BROWSER = "NO CHROMIUM"
_SLOWEST_FILES = 25
_MANY_TESTS = 500
COLLECT_AFTER = (10_000, 20, 10)
"""New objects before the youngest are looked through for cycles, and so on; with Python's own 700 that takes four
hundredths of the time of all tests, hypothesis' timing of each collection included."""
_ended_workers: list[pytest.Config] = []


@atexit.register  # among the first, so that it is called among the last
def _end_at_once() -> None:
    if _ended_workers:
        os._exit(0)


@pytest.fixture(scope="session")
def of_this_machine(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> dict[str, Path]:
    """Folders for what depends on no test. Kernels are named after their source, compiler and flags, and to compile
    those of all levels takes a minute and more: they are kept from run to run, where pytest keeps anything. This
    machine is measured once for all tests and workers of a run, whose folders lie side by side in the run's."""
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)  # `-p no:cacheprovider`: there is none
    native = run / "native" if cache is None else cache.mkdir("native")
    folders = {"native": native, "machine": run / "of-this-machine"}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    return folders


@pytest.fixture(scope="session", autouse=True)
def shared_home(tmp_path_factory: pytest.TempPathFactory, of_this_machine: dict[str, Path]) -> Iterator[None]:
    """What outlives a test, such as a server that many share, has no business in the user's own files either."""
    home = tmp_path_factory.mktemp("shared-home")
    link_machine(home, of_this_machine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(home))
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Files wait for no disk: no test cuts the power, and processes that are killed leave what they have written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def certificates_read_once() -> Iterator[None]:
    """Each client of httpx reads all certificates that it would trust, for which it takes longer than a request does.
    No server of a test has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders for homes, each new. The factory numbers its own by looking through all that it has made, which for the
    home of every test would take longer and longer."""
    root = tmp_path_factory.mktemp("homes")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def isolated_home(
    homes: Iterator[Path], of_this_machine: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A fresh BEDPLATE_HOME for each test; one marked `real` sees the user's hub cache, so as not to pull twice."""
    home = next(homes)
    home.mkdir()
    link_machine(home, of_this_machine)
    if request.node.get_closest_marker("real"):
        (REAL_HOME / "hub").mkdir(parents=True, exist_ok=True)
        (home / "hub").symlink_to(REAL_HOME / "hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(home))
        patch.delenv("COLUMNS", raising=False)  # tables are as wide as where they go
        yield home


@pytest.fixture
def own_machine(isolated_home: Path) -> Path:
    """A home in which nothing was measured yet."""
    (isolated_home / "machine").unlink()
    return isolated_home


def _real(name: str) -> Path:
    """A catalogue item in the user's cache, shared by workers and runs; skips loudly when the index is unreachable."""
    from bedplate.hub.pull import pull

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(REAL_HOME))
        try:
            return pull(name, quiet=True).path
        except (UnreachableError, LicenceError) as error:
            pytest.skip(f"{_LOUD}: {name}: {error}")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The SmolLM2-135M-Instruct GGUF file."""
    return _real("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """The Gemma 3 270M GGUF file, where its licence was accepted on this machine."""
    return _real("gemma3-270m")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The all-MiniLM-L6-v2 directory."""
    return _real("minilm-l6")


@pytest.fixture(scope="session")
def vader_amazon() -> Path:
    """The rated product-review sentences, a tab-separated file."""
    return _real("vader-amazon")


@pytest.fixture(scope="session")
def vader_news() -> Path:
    """Rated editorial sentences: prose, a tab-separated file."""
    return _real("vader-news")


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """Plays as text, a directory."""
    return _real("shakespeare")


@pytest.fixture(scope="session")
def lid_176() -> Path:
    """fastText's model of 176 languages."""
    return _real("lid-176")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """What is there before the first test is never looked through again, what comes later seldom, and where there are
    many tests the processes of some start with it."""
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    gc.enable()
    if "tests.forked" in sys.modules and len(session.items) > _MANY_TESTS:
        sys.modules["tests.forked"].start()


def pytest_unconfigure(config: pytest.Config) -> None:
    """At the end of the process everything goes: compiled libraries tell of what stays. A worker just ends: to take
    down what it has collected and imported would take it eight seconds."""
    if hasattr(config, "workerinput"):
        _ended_workers.append(config)
    else:
        gc.unfreeze()


def _build_kernels(config: pytest.Config) -> None:
    """What collecting tests asks of a kernel is built where tests have theirs, not in the user's own home. Where all
    tests run, in several workers, it is built beside them, and no worker waits for another's compiler."""
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is None:
        return
    home = str(cache.mkdir("native").parent)
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        os.environ["BEDPLATE_HOME"] = home
    elif config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        code = "from bedplate.inference.native.library import load; load()"
        environment = {**os.environ, "BEDPLATE_HOME": home}
        builder = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=environment)
        config.add_cleanup(builder.wait)


def pytest_configure(config: pytest.Config) -> None:
    import hypothesis

    _build_kernels(config)
    # as many examples as a test says; of those that say nothing, more where the slow tests run as well. No deadline: a
    # busy machine is no failure
    max_examples = 40 if "not slow" in config.getoption("-m") else 100
    hypothesis.settings.register_profile("unhurried", max_examples=max_examples, deadline=None)
    hypothesis.settings.load_profile("unhurried")

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _tell_slowest_files(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds by file, its fixtures' included: time that is spread over many quick tests shows in no list of tests."""
    seconds, tests = defaultdict[str, float](float), Counter[str]()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            file = report.nodeid.partition("::")[0]
            seconds[file] += report.duration
            tests[file] += report.when == "call"
    if len(seconds) > _SLOWEST_FILES:
        terminalreporter.section(
            f"slowest {_SLOWEST_FILES} of {len(seconds)} files, {sum(seconds.values()):.0f}s in all"
        )
        for file, spent in heapq.nlargest(_SLOWEST_FILES, seconds.items(), key=lambda pair: pair[1]):
            terminalreporter.line(f"{spent:.2f}s in {tests[file]:3d} tests {file}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    _tell_slowest_files(terminalreporter)
    reasons = [
        str(report.longrepr) for report in terminalreporter.stats.get("skipped", []) if _LOUD in str(report.longrepr)
    ]
    if reasons:
        terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.line(
            f"{len(reasons)} tests on real checkpoints were skipped: the package index cannot be reached, or a licence "
            "is still to be accepted."
        )
        for reason in sorted({reason[reason.index(_LOUD) :] for reason in reasons}):
            terminalreporter.line(reason)
    uncompiled = [report for report in terminalreporter.stats.get("skipped", []) if NO_TRITON in str(report.longrepr)]
    if uncompiled:
        terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.line(
            f"{len(uncompiled)} tests of CUDA kernels were skipped: install Triton (the extra bench has it)."
        )
    unseen = [report for report in terminalreporter.stats.get("skipped", []) if _NO_BROWSER in str(report.longrepr)]
    if unseen:
        terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(unseen)} tests of the web page were skipped: install the package chromium.")
