"""What stands between a command and its first token: only what the answer needs is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.made import made_base
from tests.tiny import tiny_spec

from bedplate.cli.generate import WITHOUT_TORCH
from bedplate.models.checkpoints.export import export_gguf

NEEDLESS = (
    *("transformers", "peft", "scipy", "sklearn", "pandas", "sympy", "torch._dynamo", "torch._inductor"),
    *("pydantic", "bedplate.skins", "bedplate.models.specs.presets"),
    *("gguf", "yaml"),
    *("requests", "pypi_simple", "bs4", "huggingface_hub", "starlette", "uvicorn", "jsonschema"),
)
OPENED = """
import sys
from tests.made import made_base
from tests.tiny import tiny_spec
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.inference.predict.opening import open_base
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.ways.calibrate import measured
from bedplate.inference.ways.way import float_ways
from bedplate.models.checkpoints.base import load_base

measured(tiny_spec(), float_ways("float32")[:1], brief="generate")
with LocalModel(made_base(tiny_spec()), kernel="torch") as model:
    assert model.engine.run([Generate((1, 2, 3), Sampling(max_tokens=2))])[0].token_ids
assert load_base(sys.argv[1]).model
assert callable(open_base)
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""


def test_a_first_token_loads_nothing_it_does_not_need(tmp_path: Path) -> None:
    """Of a file as they mostly are: matrices in blocks, vectors in float32."""
    path = export_gguf(made_base(tiny_spec(hidden_size=64, heads=8)), tmp_path / "tiny.gguf", "q8_0")
    command = [sys.executable, "-c", OPENED, str(path), *NEEDLESS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


BESIDE = """
import importlib, pathlib, sys
from bedplate.core.libraries import torch_beside

loading = torch_beside()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert "torch" not in sys.modules
if loading is not None:
    loading.join()
    assert "libtorch_cpu" in pathlib.Path("/proc/self/maps").read_text()
import torch
assert (torch.ones(64, 64) @ torch.ones(64, 64)).sum() == 64**3
assert torch_beside() is None
"""


def test_torchs_libraries_come_while_what_needs_no_torch_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", BESIDE, *WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_answers_that_are_there_are_scored_without_torch() -> None:
    code = "import sys; import bedplate.evaluation.harness; print(*({'torch', 'scipy', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
