"""What stands between a command and its first token: only what the answer needs is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.made import made_base
from tests.tiny import tiny_spec

from bedplate.core import libraries
from bedplate.models.checkpoints.export import export_gguf

NEEDLESS = (
    *("transformers", "peft", "scipy", "sklearn", "pandas", "sympy", "torch._dynamo", "torch._inductor"),
    *("pydantic", "bedplate.skins", "bedplate.models.specs.presets"),
    *("gguf", "yaml"),
    *("requests", "pypi_simple", "bs4", "huggingface_hub", "starlette", "uvicorn", "jsonschema"),
)
OF_TORCH = ("torch._prims", "torch._refs", "torch.ao.quantization", "torch.masked.maskedtensor")
"""What other versions than the tested one of torch import with it."""
OPENED = """
import sys
from bedplate.core.libraries import leave_parts

leave_parts()
from tests.made import made_base
from tests.tiny import tiny_spec
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.inference.predict.opening import open_base
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.execution.calibration import plan_timings
from bedplate.inference.execution.plan import float_plans
from bedplate.models.checkpoints.base import load_base

plan_timings(tiny_spec(), float_plans("float32")[:1], brief="generate")
with LocalModel(made_base(tiny_spec()), kernel="torch") as model:
    assert model.engine.run([Generate((1, 2, 3), Sampling(max_tokens=2))])[0].token_ids
assert load_base(sys.argv[1]).model
assert callable(open_base)
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""


def test_a_first_token_loads_nothing_it_does_not_need(tmp_path: Path) -> None:
    """Of a file as they mostly are: matrices in blocks, vectors in float32."""
    path = export_gguf(made_base(tiny_spec(hidden_size=64, heads=8)), tmp_path / "tiny.gguf", "q8_0")
    needless = (*NEEDLESS, *OF_TORCH) if torch.__version__.startswith("2.13.") else NEEDLESS
    command = [sys.executable, "-c", OPENED, str(path), *needless]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == []


DEFERRED = """
import inspect, sys, threading
from bedplate.core.libraries import LATER, complete_torch, leave_parts

leave_parts()
import torch
assert (torch.ones(64, 64) @ torch.ones(64, 64)).sum() == 64**3

def absent():
    return {"torch._prims", "torch.ao.quantization", "torch.masked.maskedtensor"} - set(sys.modules)

tried = torch.__version__.startswith("2.13.")
assert len(absent()) == (3 if tried else 0)
if tried:
    [(path, name)] = inspect.modulesbyfile.items()  # it was not looked through all modules
    assert sys.modules[name].__file__ == path
from bedplate.models.build import build
from bedplate.models.families import FAMILIES

for (format, _), family in FAMILIES.items():
    for example in family.examples[:1] if format == "hf" else ():
        build(family.to_spec(dict(example)), torch.bfloat16, "meta").requires_grad_(False)
assert len(absent()) == (3 if tried else 0)
found = []
asking = [threading.Thread(target=lambda: found.append(torch.masked.MaskedTensor)) for _ in range(4)]
for one in asking:
    one.start()
for one in asking:
    one.join()
assert len(found) == 4 and len(set(found)) == 1
import torch._decomp  # as torch's compiler does
assert torch._meta_registrations.meta_index_Tensor and "torch._prims" in sys.modules
assert torch.ops.aten.gelu_backward.default in torch._decomp.decomposition_table
complete_torch()
assert not absent() and all(type(sys.modules[name]) is type(sys) for name in LATER if name in sys.modules)
assert torch.distributions.Normal(0.0, 1.0).mean == 0 and torch.nn.quantized.Linear and torch.export.export
"""


@pytest.mark.slow
def test_modules_of_torch_that_no_answer_needs_are_imported_when_they_are_asked_for() -> None:
    process = subprocess.run([sys.executable, "-c", DEFERRED], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_torch_of_a_version_that_was_not_tried_is_imported_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "version.py").write_text("__version__ = '2.99.0'\n")
    monkeypatch.setattr(libraries, "_torch_directory", lambda: tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    count = len(sys.meta_path)
    libraries.leave_parts()
    assert len(sys.meta_path) == count
    (tmp_path / "version.py").write_text("__version__ = '2.13.1+cu130'\n")
    libraries.leave_parts()
    assert len(sys.meta_path) == count + 1


def test_answers_that_are_there_are_scored_without_torch() -> None:
    code = "import sys; import bedplate.evaluation.harness; print(*({'torch', 'scipy', 'sklearn'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == []
