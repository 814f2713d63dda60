"""The hf: source against a local hub that serves the real routes; huggingface_hub reads its settings at import."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bedplate.core.errors import UsageError
from bedplate.hub.huggingface import Reference, parse

MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"---\nlicense: apache-2.0\n---\n# Tiny\n",
    "LICENSE": b"the text",
    "onnx/model.onnx": b"x",
}

CODE = """
import json, sys
from bedplate.core.errors import BedplateError
from bedplate.hub.pull import pull
try:
    p = pull(sys.argv[1])
    print(json.dumps({"path": str(p.path), "licence": p.licence, "sha256": p.sha256, "source": p.source}))
except BedplateError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


def run(source: str, endpoint: str, offline: bool = False) -> dict[str, str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "1" if offline else "0"}
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE, source],
        env={**environment, "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return json.loads(process.stdout)


def test_snapshot_then_offline(hub: Any, isolated_home: Path) -> None:
    hub.repos["tiny/llama"] = MODEL
    first = run("hf:tiny/llama", hub.url)
    path = Path(first["path"])
    assert path.is_relative_to(isolated_home)
    contents = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    expected_names = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "LICENSE"}
    assert contents == {name: MODEL[name] for name in expected_names}
    assert first["licence"] == "apache-2.0"
    hashes = {name: hashlib.sha256(MODEL[name]).hexdigest() for name in expected_names}
    canonical = json.dumps(hashes, sort_keys=True, separators=(",", ":")).encode()
    assert first["sha256"] == hashlib.sha256(canonical).hexdigest()
    before = hub.requests.total()
    assert run("hf:tiny/llama", hub.url, offline=True) == first
    assert hub.requests.total() == before  # HF_HUB_OFFLINE asks nobody
    assert run("hf:tiny/llama@main", "http://127.0.0.1:9")["path"] == first["path"]  # no network: the cache serves


@pytest.mark.slow
def test_gguf_repositories(hub: Any) -> None:
    hub.repos["tiny/one"] = {"m.Q4.gguf": b"GGUF1", "README.md": b"# No licence\n"}
    hub.repos["tiny/many"] = {"m.Q4.gguf": b"GGUF4", "m.Q8.gguf": b"GGUF8"}
    snapshot = run("hf:tiny/one", hub.url)
    assert Path(snapshot["path"]).read_bytes() == b"GGUF1"
    assert snapshot["licence"] == "not stated"
    assert "hf:tiny/many/m.Q4.gguf, hf:tiny/many/m.Q8.gguf" in run("hf:tiny/many", hub.url)["message"]
    assert Path(run("hf:tiny/many/m.Q8.gguf", hub.url)["path"]).read_bytes() == b"GGUF8"
    assert not hub.requests["GET /tiny/many/resolve/c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeeabcd/m.Q4.gguf"]
    assert "the repository has m.Q4.gguf, m.Q8.gguf" in run("hf:tiny/many/m.Q9.gguf", hub.url)["message"]


@pytest.mark.parametrize(
    ("source", "offline", "error", "part"),
    [
        ("hf:tiny/none", False, "UnknownItemError", "no such repository"),
        ("hf:tiny/llama@v9", False, "UnknownItemError", "no revision 'v9'"),
        ("hf:tiny/gated", False, "HubError", "gated"),
        ("hf:tiny/pickle", False, "HubError", "neither config.json with safetensors nor one GGUF"),
        ("hf:tiny/llama", True, "UnreachableError", "HF_HUB_OFFLINE is set"),
    ],
)
def test_errors(hub: Any, source: str, offline: bool, error: str, part: str) -> None:
    hub.repos["tiny/llama"] = MODEL
    hub.repos["tiny/pickle"] = {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}
    hub.gated.add("tiny/gated")
    answer = run(source, hub.url, offline)
    assert answer["error"] == error
    assert part in answer["message"]
    assert source in answer["message"]


def test_unreachable() -> None:
    answer = run("hf:tiny/llama", "http://127.0.0.1:9")
    assert answer["error"] == "UnreachableError"
    assert "the Hub cannot be reached" in answer["message"]


def test_source_forms() -> None:
    assert parse("hf:a/b") == Reference("a/b", None, None)
    assert parse("hf:a/b@refs/pr/1") == Reference("a/b", "refs/pr/1", None)
    assert parse("hf:a/b/c/d.gguf@main") == Reference("a/b", "main", "c/d.gguf")
    for bad in ("hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/b@", "hf:a/b/../x.gguf", "hf:a/b c", "hf:https://x/y"):
        with pytest.raises(UsageError, match="write hf:owner/name"):
            parse(bad)
