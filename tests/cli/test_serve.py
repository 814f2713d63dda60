"""`bedplate serve`: what the options become, on real bases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.forked import Command
from tests.tiny import write_tiny_base

from bedplate.cli.adapt import _from_here
from bedplate.cli.main import main
from bedplate.core.errors import SkinError, UsageError
from bedplate.inference.execution.calibration import PlanTimings
from bedplate.inference.execution.plan import ExecutionPlan
from bedplate.inference.native.library import load
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_gguf
from bedplate.serving.server import app
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.serving.settings.server_config import ServerConfig
from bedplate.skins.output import TextOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, Skin

BASE_SIZES = {"hidden_size": 64, "heads": 4, "head_dim": 16, "feedforward_size": 96}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["serve", *map(str, arguments)])
    return int(stop.value.code or 0), capsys.readouterr().err


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("bases")
    return [write_tiny_base(root / name, dtype=torch.bfloat16, **BASE_SIZES) for name in ("one", "two", "three")]


@pytest.fixture
def served_configs(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig]:
    """What the command would serve."""
    configs: list[ServerConfig] = []

    def serve(settings: ServerConfig, skins: object, **_: Any) -> bool:
        configs.append(settings)
        return True

    monkeypatch.setattr(app, "serve", serve)
    return configs


def test_weights_and_kernel_reach_the_engine(bases, served_configs, tmp_path, capsys, monkeypatch):
    if isinstance(load(), str):
        pytest.skip(f"no native kernel on this machine: {load()}")
    for weights in ("bfloat16", "int8", "int4"):
        assert run(capsys, bases[0], "--weights", weights, "--kernel", "native")[0] == 0
        with loaded_server(served_configs.pop()) as state:
            assert (state.registry.engines[0].weights, state.registry.engines[0].kernel) == (weights, "native")
    # Quantised weights are made from bfloat16, whatever the base is stored in.
    float32_base = write_tiny_base(tmp_path / "wide", dtype=torch.float32, **BASE_SIZES)
    assert run(capsys, float32_base, "--weights", "int4")[0] == 0
    with loaded_server(served_configs.pop()) as state:
        assert (state.registry.engines[0].weights, state.registry.engines[0].base.dtype) == ("int4", torch.bfloat16)
    # Without skins the default is the measured fastest way of those that keep what the checkpoint stores.
    export_gguf(load_base(bases[0]), tmp_path / "x.gguf", "q8_0")
    costs = {"int8": 1.0, "bfloat16": 2.0, "float32": 3.0}

    def fake(spec: object, weight_formats: Sequence[ExecutionPlan], **_: object) -> PlanTimings:
        return PlanTimings(
            {weight_format: {"prefill": costs[weight_format.weights]} for weight_format in weight_formats}
        )

    monkeypatch.setattr("bedplate.inference.execution.choice.plan_timings", fake)
    for options, weights in (((), "int8"), (("--weights", "fastest"), "int8"), (("--dtype", "float32"), "float32")):
        assert run(capsys, tmp_path / "x.gguf", *options)[0] == 0
        with loaded_server(served_configs.pop()) as state:
            assert state.registry.engines[0].weights == weights
    code, error = run(capsys, bases[0], "--weights", "fastest", "--kernel", "torch")
    assert (code, error.splitlines()[-1].startswith("error: weights: fastest measures")) == (2, True)
    with pytest.raises(UsageError, match=r"port: .*65535"):
        server_config(bases[0], port=70_000)
    assert run(capsys, bases[0], "--kernel", "torch")[0] == 0
    with loaded_server(served_configs.pop()) as state:
        assert (state.registry.engines[0].weights, state.registry.engines[0].kernel) == ("bfloat16", "torch")


def test_the_first_line_names_models_routes_and_whether_keys_are_asked_for(tmp_path, capsys):
    from types import SimpleNamespace

    from bedplate.cli.serve import _run
    from bedplate.serving.settings.server_config import RouteConfig

    state = SimpleNamespace(registry=SimpleNamespace(models={"tiny": None, "tuned": None}))

    def announced(as_json: bool, **settings: Any) -> str:
        def run(config: ServerConfig, skins: object, on_ready: Any) -> bool:
            on_ready("http://127.0.0.1:8000/v1", state)
            return True

        _run(run, server_config("tiny", **settings), (), as_json)
        return capsys.readouterr().out.strip()

    url, routes = "http://127.0.0.1:8000/v1", {"reviews": RouteConfig(versions={"tuned": 1})}
    assert announced(False) == f"serving tiny, tuned at {url}"
    guarded = announced(False, routes=routes, keys=tmp_path / "keys.yaml")
    assert guarded == f"serving tiny, tuned, and the route reviews, at {url}; it asks for an API key"
    fields = {"url": url, "models": ["tiny", "tuned"], "routes": ["reviews"], "keys": False}
    assert json.loads(announced(True, routes=routes)) == fields


def test_skins_judged_otherwise_are_served_with_these_weights_only_where_allowed(bases, served_configs, capsys):
    if isinstance(load(), str):
        pytest.skip(f"no native kernel on this machine: {load()}")
    skin = Skin(
        name="writer",
        bases={"main": BaseReference.of("one", "llama", load_base(bases[0]).identity)},
        inputs={"text": InputField()},
        output=TextOutput(),
        prompt=Prompt("{{ text }}"),
        evaluated_with=EvaluatedWith(weights="bfloat16", kernel="torch"),
    )
    assert run(capsys, bases[0])[0] == 0
    with loaded_server(served_configs.pop(), [skin]) as state:
        assert (state.registry.engines[0].weights, state.registry.engines[0].kernel) == ("bfloat16", "torch")
    assert run(capsys, bases[0], "--weights", "int4")[0] == 0
    with pytest.raises(SkinError, match="judged with bfloat16"), loaded_server(served_configs.pop(), [skin]):
        pass
    assert run(capsys, bases[0], "--weights", "int4", "--allow-other-weights")[0] == 0
    with loaded_server(served_configs.pop(), [skin]) as state:
        assert (state.registry.engines[0].weights, state.registry.engines[0].kernel) == ("int4", "native")


def test_several_bases_answer_under_their_names(bases, tmp_path):
    line = ("serve", bases[0], "--port", "0", "--json", bases[1], bases[2], "--kernel", "torch")
    process = Command(tmp_path, *line)
    try:
        announcement = json.loads(process.first_line())
        assert announcement["models"] == ["one", "two", "three"]
        for name in announcement["models"]:
            body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
            reply = httpx.post(f"{announcement['url']}/chat/completions", json=body, trust_env=False, timeout=30)
            assert (reply.status_code, reply.json()["model"]) == (200, name)
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("BASE", "--weights", "int3"), "int3"),
        (("BASE", "--kernel", "fast"), "fast"),
        (("--config", "FILE", "--weights", "int4"), "--weights cannot be combined with --config"),
        (("BASE", "--config", "FILE"), "and not both"),
        (("BASE", "port=1"), "port=1 is a value of a server's file"),
        (("--config", "FILE", "--no-allow-other-weights"), "--allow-other-weights cannot be combined with --config"),
        (("port=1",), "give a base or a skin to serve"),
        (("--skins-directory", "SHELF", "--weights", "int4"), "weights is a setting of a base, and none is served"),
        (("--skins-directory", "SHELF", "--config", "FILE"), "--skins-directory cannot be combined with --config"),
        (("port=none", "--config", "FILE"), "override 'port=none'"),
    ],
)
def test_options_that_do_not_fit_are_refused(bases, served_configs, tmp_path, capsys, arguments, message):
    file = tmp_path / "server.yaml"
    file.write_text(f"bases:\n  - source: {bases[0]}\n")
    names = {"BASE": str(bases[0]), "FILE": str(file), "SHELF": str(tmp_path)}
    code, error = run(capsys, *(names.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in error
    assert not served_configs
    assert run(capsys, "--config", file, "--json")[0] == 0
    assert served_configs[0].bases[0].source == str(bases[0])
    assert run(capsys, "--config", file, "port=8123", "--json")[0] == 0
    assert served_configs[1].port == 8123


def test_a_base_of_a_task_file_is_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `bedplate adapt` prints the command that serves what it made."""
    for place in ("runs/stdlib/base", "examples/pretrain", "here"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert _from_here("../../runs/stdlib/base", Path("examples/pretrain")) == "runs/stdlib/base"
    assert _from_here("smollm2-135m", Path("examples/pretrain")) == "smollm2-135m"
    assert _from_here(str(tmp_path / "runs/stdlib/base"), Path("here")) == str(tmp_path / "runs/stdlib/base")
