"""`bedplate export` and `bedplate generate` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.tiny import write_tiny_base

from bedplate.cli.main import main
from bedplate.core.files import sha256_file
from bedplate.inference.predict.opening import Opened
from bedplate.models.checkpoints.base import load_base


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_base(tmp_path / "tiny", dtype=torch.bfloat16)


def test_a_directory_keeps_its_dtype_and_a_gguf_becomes_float32(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, _ = run(capsys, "export", tiny, tmp_path / "b", "--json")
    facts = json.loads(printed)
    assert (code, facts["stored"], facts["same_values"]) == (0, "bfloat16", True)
    assert facts["weights_id"] == load_base(tiny).identity.weights_id
    code, _, error = run(capsys, "export", tiny, tmp_path / "b")
    assert (code, "b exists already; choose another name, or replace it with --overwrite" in error) == (2, True)
    code, _, error = run(capsys, "export", tmp_path / "b", tmp_path / "b", "--overwrite")
    assert (code, "is the base itself" in error) == (2, True)
    code, printed, _ = run(capsys, "export", tiny, tmp_path / "b", "--dtype", "float32", "--overwrite", "--json")
    assert (code, json.loads(printed)["stored"]) == (0, "float32")
    code, printed, _ = run(capsys, "export", tiny, tmp_path / "c.gguf", "--format", "gguf", "--type", "bf16")
    assert code == 0
    assert "equal to the source's" in printed
    command = ("export", tiny, tmp_path / "c.gguf", "--format", "gguf", "--type", "bf16")
    assert [run(capsys, *command, *flags)[0] for flags in ((), ("--overwrite",))] == [2, 0]
    code, printed, _ = run(capsys, "export", tmp_path / "c.gguf", tmp_path / "d", "--json")
    facts = json.loads(printed)
    assert (code, facts["stored"], facts["same_values"]) == (0, "float32", True)
    assert facts["equivalent_of"] == sha256_file(tmp_path / "c.gguf")


def test_shards_and_a_dtype_of_choice(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(
        capsys, "export", tiny, tmp_path / "b", "--shard-gb", "0.00005", "--dtype", "float32", "--json"
    )
    facts = json.loads(printed)
    assert code == 0
    assert facts["same_values"]  # bfloat16 widens exactly
    assert "model.safetensors.index.json" in facts["files"]
    assert len([name for name in facts["files"] if name.endswith(".safetensors")]) > 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "gguf", "--dtype", "float32"), "--dtype is for"),
        (("--type", "q8_0"), "--type is for"),
        (("--dtype", "int3"), "not known"),
        (("--shard-gb", "0"), "must be above 0"),
        (("--format", "gguf"), "must end in .gguf"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, _, error = run(capsys, "export", tiny, tmp_path / "b", *arguments)
    assert code == 2
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_the_name_of_a_gguf_file_says_what_is_written(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, _ = run(capsys, "export", tiny, tmp_path / "b.gguf", "--json")
    assert (code, json.loads(printed)["format"]) == (0, "gguf")
    assert (tmp_path / "b.gguf").read_bytes()[:4] == b"GGUF"
    code, _, error = run(capsys, "export", tiny, tmp_path / "c.gguf", "--format", "hf")
    assert code == 2
    assert "must end in .gguf" in error


def test_generate_streams_what_json_reports(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--max-tokens", "6", "--dtype", "float32")
    code, printed, _ = run(capsys, "generate", tiny, "the answer is", *options)
    assert code == 0
    _, reported, _ = run(capsys, "generate", tiny, "the answer is", *options, "--json")
    fields = json.loads(reported)
    assert printed == fields["text"] + "\n"
    assert 0 < fields["completion_tokens"] <= 6
    code, _, error = run(capsys, "generate", tiny, "x", "--system", "be brief")
    assert code == 2
    assert "--chat" in error


def test_an_answer_waits_for_no_trial(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed_before: list[str] = []
    monkeypatch.setattr(Opened, "time_plans", lambda opened: printed_before.append(capsys.readouterr().out))
    for options in ((), ("--json",)):
        assert run(capsys, "generate", tiny, "the answer is", "--max-tokens", "3", *options)[0] == 0
    text, fields = printed_before
    assert text == json.loads(fields)["text"] + "\n"


def test_convert_tells_the_layout_by_the_name_and_what_was_rounded(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, _ = run(capsys, "convert", tiny, tmp_path / "b.gguf", "--type", "bf16", "--json")
    facts = json.loads(printed)
    assert (code, facts["format"], facts["same_values"], facts["largest_change"]) == (0, "gguf", True, 0.0)
    code, printed, _ = run(capsys, "convert", tmp_path / "b.gguf", tmp_path / "c", "--dtype", "bfloat16", "--json")
    facts = json.loads(printed)
    assert (code, facts["format"], facts["same_values"]) == (0, "hf", True)
    assert facts["weights_id"] == load_base(tiny).identity.weights_id
    code, printed, _ = run(capsys, "convert", tmp_path / "c", tmp_path / "d", "--dtype", "float16")
    assert code == 0
    assert "of a matrix's largest value at most" in printed or "equal to the source's" in printed
    full_precision, rounded = load_base(tiny, dtype="float32"), load_base(tmp_path / "d", dtype="float32")
    changes = [
        float((a - b).abs().max() / a.abs().max())
        for a, b in zip(full_precision.model.parameters(), rounded.model.parameters(), strict=True)
    ]
    code, printed, _ = run(capsys, "convert", tmp_path / "c", tmp_path / "e", "--dtype", "float16", "--json")
    assert json.loads(printed)["largest_change"] == pytest.approx(max(changes), abs=1e-9)
    code, _, error = run(capsys, "convert", tmp_path / "c", tmp_path / "f.gguf", "--dtype", "float16")
    assert code == 2
    assert "--dtype is for" in error
