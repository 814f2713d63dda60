"""A checkpoint in shards is read tensor by tensor: while it loads there is hardly more in memory than in the end."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_spec, write_tiny_base

from bedplate.models.build import build
from bedplate.models.checkpoints.base import load_base, parameter_count
from bedplate.models.checkpoints.export import export_base
from bedplate.models.checkpoints.safetensors import SafetensorsReader, write_safetensors

MEASURE = """
import re, sys, threading
import torch
from bedplate.models.checkpoints.base import load_base

torch.set_num_threads(1)

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])

def watch(seen, done):
    while not done.wait(0.001):
        seen.append(anonymous())

for dtype in ("bfloat16", "float32"):
    load_base(sys.argv[1], dtype=dtype)  # what the first load brings with it
    before, seen, done = anonymous(), [0], threading.Event()
    watcher = threading.Thread(target=watch, args=(seen, done))
    watcher.start()
    base = load_base(sys.argv[2], dtype=dtype)
    done.set()
    watcher.join()
    print(max(seen) - before, sum(p.numel() * p.element_size() for p in base.model.parameters()))
    del base
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.slow
def test_the_peak_is_hardly_more_than_the_model(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 384, "layers": 12, "heads": 6, "head_dim": 64, "feedforward_size": 1_024}
    small = write_tiny_base(tmp_path / "small", dtype=torch.bfloat16)
    single_file = write_tiny_base(tmp_path / "one", dtype=torch.bfloat16, **sizes)
    large = export_base(load_base(single_file), tmp_path / "large", shard_bytes=8_000_000)
    assert len(list(large.glob("*.safetensors"))) > 4
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large)], capture_output=True, text=True, check=True
    )
    narrow, upcast = (tuple(map(int, line.split())) for line in process.stdout.splitlines())
    count = parameter_count(build(tiny_spec(**sizes), device="meta"))
    assert (narrow[1], upcast[1]) == (2 * count, 4 * count)
    # Values that stay as they are stored are not copied: they are the file's own pages.
    assert narrow[0] <= 0.15 * narrow[1]
    assert upcast[0] <= 1.15 * upcast[1]


def mapped() -> int:
    """Bytes of files in this process's memory."""
    return 1024 * int(re.findall(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_tensor_that_is_held_in_another_dtype_leaves_its_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_safetensors(tmp_path, [("a", torch.ones(8, 1 << 20))])
    with SafetensorsReader(tmp_path) as reader:
        values = reader.get("a")
        assert float(values.sum()) == values.numel()
        before = mapped()
        reader.release("a")
        assert before - mapped() > 0.9 * values.nbytes
        assert bool((values == 1).all())  # they are read again
    released: list[str] = []
    monkeypatch.setattr(SafetensorsReader, "release", lambda reader, name: released.append(name))
    base = write_tiny_base(tmp_path / "base", dtype=torch.bfloat16)
    load_base(base)
    assert not released
    load_base(base, dtype="float32")
    with SafetensorsReader(base) as reader:
        assert sorted(released) == sorted(reader.names)
