"""Whatever is wrong with a checkpoint: one clear line, a non-zero exit, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.tiny import write_tiny_base

from bedplate.cli.main import main
from bedplate.core.errors import BedplateError
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_gguf
from bedplate.models.families import FAMILIES


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def edit_index(path: Path, content: str) -> None:
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(content)


def pickle_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def truncate(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


SUPPORTED = "supported are: " + ", ".join(sorted(name for format_, name in FAMILIES if format_ == "hf"))
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda p: (p / "config.json").unlink(), "has no config.json"),
    "a run, not its base": (
        lambda p: [p.rename(p.parent / "base"), p.mkdir(), (p.parent / "base").rename(p / "base")],
        "has no config.json; a base directory needs one (Hugging Face layout); did you mean ",
    ),
    "config not JSON": (lambda p: (p / "config.json").write_text("{"), "not valid JSON"),
    "config not UTF-8": (lambda p: (p / "config.json").write_bytes(b'{"a": "\xff"}'), "not UTF-8"),
    "config a list": (lambda p: (p / "config.json").write_text("[]"), "JSON object"),
    "unsupported": (
        lambda p: edit_config(p, model_type="mamba"),
        f"'mamba' is not supported; {SUPPORTED}",
    ),
    "no model_type": (lambda p: edit_config(p, model_type=None), SUPPORTED),
    "odd model_type": (lambda p: edit_config(p, model_type=["llama"]), SUPPORTED),
    "unknown field": (lambda p: edit_config(p, sliding_window=64), "'sliding_window'"),
    "wrong kind": (lambda p: edit_config(p, hidden_size="big"), "wrong kind"),
    "odd scaling": (lambda p: edit_config(p, rope_parameters="yarn"), "wrong kind"),
    "no layers": (lambda p: edit_config(p, num_hidden_layers=0), "at least 1"),
    "far too many layers": (lambda p: edit_config(p, num_hidden_layers=10**9), "1000000000 layers"),
    "other shape": (lambda p: edit_config(p, intermediate_size=100), "the config asks for"),
    "huge": (lambda p: edit_config(p, vocab_size=10**14, hidden_size=4 * 10**14), "sizes"),
    "beyond numbers": (lambda p: edit_config(p, vocab_size=2**62), "a finite number under"),
    "a layer missing": (lambda p: edit_config(p, num_hidden_layers=4), "lacks"),
    "a layer too many": (lambda p: edit_config(p, num_hidden_layers=2), "has no place"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "a pickle": (pickle_only, "is a pickle"),
    "truncated": (truncate, "not a readable safetensors file"),
    "empty": (lambda p: (p / "model.safetensors").write_bytes(b""), "not a readable safetensors file"),
    "shard missing": (
        lambda p: edit_index(p, '{"weight_map": {"norm.weight": "model-00001-of-00002.safetensors"}}'),
        "model-00001-of-00002.safetensors is missing",
    ),
    "shard outside": (lambda p: edit_index(p, '{"weight_map": {"w": "../x.safetensors"}}'), "outside the directory"),
    "index odd": (lambda p: edit_index(p, '{"weight_map": {"w": 3}}'), "not a safetensors index"),
    "index a list": (lambda p: edit_index(p, '{"weight_map": [1]}'), "not a safetensors index"),
    "tokenizer damaged": (lambda p: (p / "tokenizer.json").write_text("{}"), "tokenizer.json"),
}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_directory_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    base = write_tiny_base(tmp_path / "tiny")
    hurt, message = DAMAGE[damage]
    hurt(base)
    code, _, error = run(capsys, "export", base, tmp_path / "out")
    assert code != 0
    assert message in error
    assert "unexpected" not in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("source", "message"),
    [("absent/dir", "no such file"), ("smollm3", "smollm2-135m"), ("{tmp}/x.bin", "neither a model directory")],
)
def test_a_base_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    code, _, error = run(capsys, "export", source.replace("{tmp}", str(tmp_path)), tmp_path / "out")
    assert code == 2
    assert message in error


def test_output_under_a_file_and_output_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_tiny_base(tmp_path / "tiny")
    (tmp_path / "file").write_text("mine")
    for out, extra in ((tmp_path / "file" / "b", ()), (tmp_path / "file" / "b.gguf", ("--format", "gguf"))):
        code, _, error = run(capsys, "export", base, out, *extra)
        assert code == 2
        assert f"cannot write {out}" in error
    code, _, error = run(capsys, "export", base, tmp_path / "file")
    assert (code, "exists already" in error) == (2, True)
    code, _, _ = run(capsys, "export", base, tmp_path / "good")
    assert code == 0  # the second run works
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "good", "tiny"]


# --- any damage to a header, found by hypothesis: a BedplateError or a model, never anything else


@cache
def whole(fmt: str, scratch: Path) -> tuple[Path, bytes, int]:
    """A base, the bytes of its file, and how many of them are the header."""
    directory = write_tiny_base(scratch / f"fuzz-{fmt}", tokenizer=False)
    if fmt == "safetensors":
        path = directory / "model.safetensors"
        content = path.read_bytes()
        return path, content, 8 + struct.unpack("<Q", content[:8])[0]
    path = scratch / "fuzz.gguf"
    if not path.exists():
        export_gguf(load_base(directory), path, "f32")
    import gguf

    first = min(tensor.data_offset for tensor in gguf.GGUFReader(path).tensors)
    return path, path.read_bytes(), int(first)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def load_damaged(path: Path, content: bytes) -> None:
    path.unlink()  # a new file: the old one may still be memory-mapped
    path.write_bytes(content)
    with contextlib.suppress(BedplateError):
        load_base(path.parent if path.suffix == ".safetensors" else path, dtype="float32", device="cpu")


FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.filterwarnings("ignore")  # numpy warns of overflows on damaged numbers
@pytest.mark.parametrize("fmt", ["safetensors", "gguf"])
@FUZZ
@given(part=st.floats(0, 1, exclude_max=True))
@example(part=0.0)
def test_any_truncation_is_an_error(scratch: Path, fmt: str, part: float) -> None:
    path, content, _ = whole(fmt, scratch)
    path.unlink(missing_ok=True)
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(BedplateError):
        load_base(path.parent if fmt == "safetensors" else path, dtype="float32", device="cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fmt", ["safetensors", "gguf"])
@FUZZ
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_header_bytes_never_crash(scratch: Path, fmt: str, flips: list[tuple[float, int]]) -> None:
    path, content, header = whole(fmt, scratch)
    damaged = bytearray(content)
    for position, mask in flips:
        damaged[int(position * header)] ^= mask
    load_damaged(path, bytes(damaged))
