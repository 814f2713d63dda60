"""`bedplate adapt` interrupted in each phase, killed while it trains, and given bad input."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from tests.adaptation.conftest import NATIVE_SHAPE, write_rows, write_task
from tests.forked import Command
from tests.tiny import write_tiny_base

from bedplate.cli.adapt import EXIT_CODES
from bedplate.cli.main import main
from bedplate.models.families import FAMILIES


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny", layers=2, **NATIVE_SHAPE)


def start(task: Path, out: Path, *arguments: str) -> Command:
    return Command(task.parent / "said", "adapt", task, "--out", out, *arguments)


def stop_when(process: Command, sign: Path, number: signal.Signals) -> tuple[int, str]:
    """Send a signal as soon as a file is there; the exit code and what was said on stderr."""
    deadline = time.monotonic() + 120
    while not sign.exists():
        assert process.poll() is None, f"ended before {sign.name} was there: {process.errors}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(), process.errors


GROUP_COUNT = 60
"""Groups of rows: enough for a verdict. What is tested here does not depend on how many there are."""
PHASES = ("rungs/probe/plan.json", "rungs/lora/seed-0/state.safetensors")


def test_ctrl_c_in_each_phase_and_the_next_run_goes_on(tmp_path: Path, base: Path):
    task, out = write_task(tmp_path, base, groups=GROUP_COUNT), tmp_path / "out"
    finished: dict[Path, int] = {}
    rungs = ("--rungs", "majority,from_scratch,zero_shot,probe,lora")
    for phase in (*PHASES, "test/majority.json"):
        code, stderr = stop_when(start(task, out, *rungs), out / phase, signal.SIGINT)
        assert code == 130, stderr
        assert "\nerror: interrupted; give the same command again to go on: what is finished is kept" in f"\n{stderr}"
        assert not (out / "report.json").exists()
        assert all(path.stat().st_mtime_ns == at for path, at in finished.items()), "a finished rung was done again"
        assert not list(out.rglob("*.tmp")), "something half-written was left"
        finished = {path: path.stat().st_mtime_ns for path in out.glob("rungs/*/result.json")}
    assert {path.parent.name for path in finished} == set(rungs[1].split(","))
    last = start(task, out, *rungs)
    assert last.wait() in EXIT_CODES.values(), last.errors
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())
    report = json.loads((out / "report.json").read_text())
    assert {row["status"] for row in report["rungs"]} == {"done"}
    assert report["ledger"]["number"] == 1  # the interrupted opening and the last one are one verdict


@pytest.mark.slow
def test_killed_while_tuning_then_the_same_command_ends_with_the_same_weights(tmp_path: Path, base: Path):
    task = write_task(tmp_path, base, groups=GROUP_COUNT)
    rungs = ("--rungs", "lora")
    whole = start(task, tmp_path / "whole", *rungs)
    assert whole.wait() in EXIT_CODES.values(), whole.errors
    out = tmp_path / "broken"
    code, _ = stop_when(start(task, out, *rungs), out / "rungs/lora/seed-0/state.safetensors", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (out / "rungs/lora/result.json").exists()
    resumed = start(task, out, *rungs)
    assert resumed.wait() in EXIT_CODES.values(), resumed.errors
    fits = sorted(path.name for path in (out / "rungs" / "lora").glob("seed-*"))
    assert len(fits) == 3
    for fit in fits:
        names = [f"rungs/lora/{fit}/skin/{name}" for name in ("adapter_model.safetensors", "skin.json")]
        for name in (*names, "skins/lora/adapter_model.safetensors"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    reports = [json.loads((d / "report.json").read_text()) for d in (tmp_path / "whole", out)]
    for split in ("valid", "test"):
        answers = [[row["prediction"] for row in report["rows"][split]["lora"]] for report in reports]
        assert answers[0] == answers[1]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    with pytest.raises(SystemExit) as error:
        main(["adapt", *map(str, arguments)])
    assert isinstance(error.value.code, int)
    return error.value.code, capsys.readouterr().err


def change(task: Path, before: str, after: str) -> Path:
    text = task.read_text()
    assert before in text
    task.write_text(text.replace(before, after))
    return task


@pytest.mark.parametrize(
    ("before", "after", "message", "code"),
    [
        ("- negative\n  - positive", "- yes\n  - no", "quote it", 2),
        ("metric: accuracy", "metirc: accuracy", "did you mean 'metric'", 2),
        ("  - positive", "  - neutral", "is not one of the task's labels", 1),
        ("kind: label", "kind: image", "not supported yet", 2),
    ],
)
def test_a_bad_task_file(
    tmp_path: Path,
    base: Path,
    capsys: pytest.CaptureFixture[str],
    before: str,
    after: str,
    message: str,
    code: int,
):
    task = change(write_task(tmp_path, base), before, after)
    assert refused(capsys, task, "--out", tmp_path / "out")[0] == code
    assert message in refused(capsys, task, "--out", tmp_path / "out")[1]
    assert not (tmp_path / "out").exists()


def test_missing_files(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    code, stderr = refused(capsys, tmp_path / "no.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert "does not exist" in stderr
    task = write_task(tmp_path, base)
    code, stderr = refused(capsys, change(task, str(tmp_path / "rows.jsonl"), "gone.jsonl"), "--out", tmp_path / "out")
    assert code != 0
    assert "gone.jsonl" in stderr
    assert not (tmp_path / "out").exists()


def _no_config(directory: Path) -> str:
    (directory / "config.json").unlink()
    return "has no config.json"


def _other_type(directory: Path) -> str:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    return f"supported are: {', '.join(sorted(name for format_, name in FAMILIES if format_ == 'hf'))}; of"


def _truncated(directory: Path) -> str:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return "model.safetensors"


def _no_tokenizer(directory: Path) -> str:
    (directory / "tokenizer.json").unlink()
    return "has no tokenizer"


@pytest.mark.parametrize("spoil", [_no_config, _other_type, _truncated, _no_tokenizer])
def test_a_bad_base(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object):
    base = write_tiny_base(tmp_path / "base")
    assert callable(spoil)
    message = str(spoil(base))
    code, stderr = refused(capsys, write_task(tmp_path / "task", base), "--out", tmp_path / "out")
    assert code == 1
    assert message in stderr
    assert not (tmp_path / "out").exists()


def test_bad_rows(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    rows = write_rows(tmp_path / "few.jsonl", groups=2, rows_per_group=6)
    code, stderr = refused(capsys, write_task(tmp_path / "a", base, rows=rows), "--out", tmp_path / "out")
    assert code == 1
    assert "split is empty" in stderr
    rows = write_rows(tmp_path / "latin.jsonl")
    rows.write_bytes(rows.read_bytes().replace(b"product", b"produ\xe7t"))
    code, stderr = refused(capsys, write_task(tmp_path / "b", base, rows=rows), "--out", tmp_path / "out")
    assert code == 1
    assert "is not UTF-8" in stderr
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("mine")
    code, stderr = refused(capsys, write_task(tmp_path, base), "--out", tmp_path / "file" / "out")
    assert code == 2
    assert "cannot write" in stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_then_a_second_run_works(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    """The same place, after the mistake was mended."""
    task = write_task(tmp_path, base, groups=40)
    assert refused(capsys, task, "--out", tmp_path / "out", "adapt.target.value=2")[0] == 2
    with pytest.raises(SystemExit) as raised:
        main(["adapt", str(task), "--out", str(tmp_path / "out"), "--rungs", "majority,zero_shot", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert raised.value.code == EXIT_CODES[report["verdict"]["status"]]
    assert [row["rung"] for row in report["rungs"] if row["split"] == "valid"] == ["majority", "zero_shot"]
    assert "rows" not in report
