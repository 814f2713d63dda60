"""What a run takes: against the published run of a large one, and against what this machine holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.pretraining.runs import run_values, tiny_run
from tests.tiny import write_tiny_base

from bedplate.cli.main import main
from bedplate.core.errors import ConfigError, UsageError
from bedplate.data.corpus.recipe import load_recipe
from bedplate.pretraining.plan import here
from bedplate.pretraining.plan.dry_run import plan_run
from bedplate.pretraining.plan.here import device_bytes
from bedplate.pretraining.plan.sizes import sizes_of
from bedplate.pretraining.plan.spec import spec_of
from bedplate.pretraining.runfile.file import load_run
from bedplate.training.config import TrainConfig
from bedplate.training.optimizers import Optimization

EXAMPLES = Path(__file__).parents[2] / "examples" / "pretrain"
EXAMPLE = EXAMPLES / "llama-3.1-8b.yaml"
RUNS = sorted(path.stem for path in EXAMPLES.glob("*.yaml") if "run" in yaml.safe_load(path.read_text("utf-8")))


def test_llama_on_64_devices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(EXAMPLE), "--dry-run", "--json"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 8_030_261_248
    assert found["bytes_per_device"] < found["memory_bytes"] == 80e9
    assert "data" in found["layout"]
    assert found["usd"] > 0
    # torchtitan's measured 6,667 tokens/s on each of 8 H100, compiled (https://arxiv.org/abs/2410.06511)
    assert found["tokens_per_second"] / 64 == pytest.approx(6667, rel=0.35)


@pytest.mark.parametrize("name", RUNS)
def test_every_example_is_planned(name: str, tmp_path: Path) -> None:
    """Where a file names what another command makes first, that corpus's recipe, or a tiny base, stands for it."""
    path = EXAMPLES / f"{name}.yaml"
    run = load_run(path)
    if run.data.corpus is not None and run.hardware.device is None:
        recipe = EXAMPLES / f"{Path(run.data.corpus).name}-data.yaml"
        if (use := load_recipe(recipe).tokenizer.use) is not None:  # another corpus's tokenizer
            recipe = EXAMPLES / f"{Path(use).name}-data.yaml"
        run = load_run(path, ["data.corpus=null", f"data.recipe={recipe.name}"])
    if run.base is not None:
        run = load_run(path, [f"base={write_tiny_base(tmp_path / 'base')}", "batch.sequence=64"])
    plan = plan_run(run)
    assert plan["tokens"] >= plan["batch_tokens"]
    assert plan["parameters"] > 0
    assert plan["seconds"] > 0


def test_it_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", str(EXAMPLE), "--dry-run"])
    said = capsys.readouterr().out
    assert "--" not in said, "options that this verb does not have"
    for shown in ("8.03 B", "64 × ", "layout", "cost", "a device holds", "optimizer"):
        assert shown in said


def test_what_cannot_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path)
    plan = plan_run(run)
    assert plan["memory_bytes"] is None or plan["bytes_per_device"] < plan["memory_bytes"]
    assert plan["steps"] == 9
    monkeypatch.setattr(here, "free_on", lambda device: 10_000)
    with pytest.raises(UsageError, match="does not fit this machine"):
        plan_run(run)
    with pytest.raises(UsageError, match="does not fit"):
        plan_run(tiny_run(tmp_path, model={"preset": "llama-3.1-405b"}, hardware={"device": "h100", "devices": 2}))
    with pytest.raises(ConfigError, match="say which one"):
        plan_run(tiny_run(tmp_path, hardware={"devices": 2}))


def test_states_are_what_the_optimizer_holds(tmp_path: Path) -> None:
    """Weights, masters and moments of a built model, counted tensor by tensor."""
    run = tiny_run(tmp_path)
    assert run.model is not None
    spec, _ = spec_of(run.model, 300)
    sizes = sizes_of(run, spec, None)
    from bedplate.pretraining.run.model import new_model

    for dtype in (torch.float32, torch.bfloat16):
        model = new_model(spec, 0).to(dtype)
        held = device_bytes(run, spec, sizes, str(dtype).removeprefix("torch."))
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        assert held["weights"] == weights
        optimization = Optimization(model.named_parameters(), TrainConfig())
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimization.collect()
        optimization.step(1e-3, torch.zeros(()))
        kept = sum(t.numel() * t.element_size() for n, t in optimization.tensors().items() if not n.startswith("step/"))
        # in bfloat16 the base's own float32 weights are kept aside as well, and masters stand for the weights
        beside = weights if dtype == torch.float32 else -4 * sizes.parameters
        assert kept == held["optimizer"] + beside


def test_a_base_is_trained_on_its_texts_once(tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "base")

    def planned(**source: Any) -> dict[str, Any]:
        data = {"sources": [{"name": "a", "source": "text.txt", **source}], "weights": {"a": 2.0}}
        values = run_values(base="./base", data=data, tokens=None, batch={})
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if k != "model"}))
        return plan_run(load_run(tmp_path / "run.yaml"))

    assert planned(tokens="3k")["tokens"] == 6000
    with pytest.raises(ConfigError, match="say how many tokens they are, for example tokens=2M"):
        planned()


def test_a_step_larger_than_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch.tokens is 4,096, and the whole run has 2,304 tokens; lower it"):
        plan_run(tiny_run(tmp_path, batch={"tokens": 4096}))
