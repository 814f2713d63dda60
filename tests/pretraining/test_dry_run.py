"""What a run takes: against the published run of a large one, and against what this machine holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.data.corpus.made import write_corpus
from tests.pretraining.runs import run_values, tiny_run
from tests.tiny import write_tiny_base

from bedplate.cli.main import main
from bedplate.core.errors import ConfigError, DataError, UnsupportedModelError, UsageError
from bedplate.data.corpus.recipe import load_recipe
from bedplate.pretraining.plan import dry_run
from bedplate.pretraining.plan.dry_run import plan_run
from bedplate.pretraining.run.directory import read_record
from bedplate.pretraining.run.pretrain import pretrain
from bedplate.pretraining.runfile.file import load_run

EXAMPLES = Path(__file__).parents[2] / "examples" / "pretrain"
EXAMPLE = EXAMPLES / "llama-3.1-8b.yaml"
RUNS = sorted(path.stem for path in EXAMPLES.glob("*.yaml") if "run" in yaml.safe_load(path.read_text("utf-8")))


def test_llama_on_64_devices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(EXAMPLE), "--dry-run", "--json"])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == 8_030_261_248
    assert report["bytes_per_device"] < report["memory_bytes"] == 80e9
    assert report["layout"] == "shard 64, micro-batch 1 of a rank's 8 rows, recompute none"
    assert {"weights", "gradients", "optimizer", "activations", "logits", "gathered blocks"} <= report["bytes"].keys()
    assert report["bytes"]["optimizer"] == pytest.approx(8 * 8_030_261_248 / 64)
    assert report["usd"] > 0
    # torchtitan's measured 6,667 tokens/s on each of 8 H100, compiled (https://arxiv.org/abs/2410.06511)
    assert report["tokens_per_second"] / 64 == pytest.approx(6667, rel=0.35)


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


def test_the_mixture_of_a_built_corpus_is_checked_and_its_passes_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mixture that the run would refuse is refused here too, before a machine is rented."""
    texts = {
        name: [f"{name} says {n} and {n}"] * count for n, (name, count) in enumerate({"web": 400, "code": 100}.items())
    }
    write_corpus(tmp_path / "corpus", texts, valid=4)
    run = tiny_run(tmp_path, data={"corpus": "corpus"})
    plan = plan_run(run)
    assert plan["passes"].keys() == {"web", "code"}
    equal = plan_run(tiny_run(tmp_path, data={"corpus": "corpus", "mixture": {"weights": {"web": 1, "code": 1}}}))
    assert equal["passes"]["code"] > equal["passes"]["web"]
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(tmp_path / "run.yaml"), "--dry-run"])
    assert ended.value.code == 0
    assert "passes" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no source"):
        plan_run(tiny_run(tmp_path, data={"corpus": "corpus", "mixture": {"weights": {"books": 1}}}))
    with pytest.raises(ConfigError, match="no source"):
        pretrain(load_run(tmp_path / "run.yaml"), out=tmp_path / "run")
    assert read_record(tmp_path / "run")["status"].startswith("refused: ")
    with pytest.raises(DataError, match="epochs allowed give"):
        plan_run(tiny_run(tmp_path, data={"corpus": "corpus", "mixture": {"epochs": {"web": 0.01, "code": 0.01}}}))


def test_it_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", str(EXAMPLE), "--dry-run"])
    output = capsys.readouterr().out
    assert "--" not in output, "options that this verb does not have"
    for shown in ("8.03 B", "64 × ", "layout", "cost", "a device holds", "optimizer"):
        assert shown in output


def test_what_cannot_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path)
    plan = plan_run(run)
    assert plan["memory_bytes"] is None or plan["bytes_per_device"] < plan["memory_bytes"]
    assert plan["steps"] == 9
    monkeypatch.setattr(dry_run, "free_on", lambda device: 10_000)
    with pytest.raises(UsageError, match="does not fit this machine"):
        plan_run(run)
    large = {"model": {"preset": "llama-3.1-405b"}, "batch": {"tokens": "1M", "sequence": 8192}, "tokens": "1B"}
    with pytest.raises(UsageError, match="does not fit"):
        plan_run(tiny_run(tmp_path, **large, hardware={"device": "h100", "devices": 2}))
    with pytest.raises(UsageError, match=r"does not fit 8 × .* on a device .* recompute: full"):
        layout(
            tmp_path,
            model={"preset": "llama-3.1-8b", "context": 32_768},
            batch={"tokens": "1M", "micro_tokens": 131_072},
        )
    with pytest.raises(ConfigError, match="say which one"):
        plan_run(tiny_run(tmp_path, hardware={"devices": 2}))
    with pytest.raises(ConfigError, match=r"hardware\.device=h100 hardware\.devices=2"):
        plan_run(tiny_run(tmp_path, parallel={"tensor": 2}))


def layout(directory: Path, devices: int = 8, **changes: Any) -> dict[str, Any]:
    hardware = {"device": "h100", "devices": devices}
    common: dict[str, Any] = {
        "model": {"preset": "llama-3.2-1b", "context": 4096},
        "batch": {"tokens": 65_536, "micro_tokens": 8192},
    }
    return plan_run(tiny_run(directory, **{**common, "tokens": "1B", "hardware": hardware, **changes}))


def test_memory_follows_the_layout(tmp_path: Path) -> None:
    whole, sharded = layout(tmp_path, parallel={"data": 8}), layout(tmp_path)
    assert sharded["bytes"]["optimizer"] == pytest.approx(whole["bytes"]["optimizer"] / 8)
    assert "gathered blocks" not in whole["bytes"]
    tensor = layout(tmp_path, parallel={"tensor": 4, "shard": 2})
    assert tensor["bytes"]["activations"] < 0.6 * sharded["bytes"]["activations"]
    assert sharded["bytes"]["optimizer"] < tensor["bytes"]["optimizer"] < whole["bytes"]["optimizer"]
    recomputed = layout(tmp_path, recompute="full")
    assert recomputed["bytes"]["activations"] < 0.3 * sharded["bytes"]["activations"]
    muon = layout(tmp_path, optimizer={"name": "muon", "settings": {"ema": 0.999}})
    assert muon["bytes"]["optimizer"] < 0.75 * sharded["bytes"]["optimizer"]
    assert muon["bytes"]["average"] == sharded["bytes"]["weights"]
    with pytest.raises(ConfigError, match="steps of 16 rows, and 64 ranks have data of their own"):
        layout(tmp_path, devices=64)
    with pytest.raises(UnsupportedModelError, match="key-value heads are not a multiple"):
        layout(tmp_path, devices=16, parallel={"tensor": 16, "shard": 1})
    with pytest.raises(UsageError, match=r"data 1 x shard 3 .* is for 3 processes, and there are 8"):
        layout(tmp_path, parallel={"shard": 3})


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


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpora/notes").mkdir(parents=True)
    for name, problem in (("nots", "nots does not exist; did you mean .*notes'"), ("notes", "it has no corpus.json")):
        values = run_values(data={"corpus": f"corpora/{name}"})
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
        with pytest.raises(DataError, match=problem):
            plan_run(load_run(tmp_path / "run.yaml"))


def test_a_step_larger_than_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch.tokens is 4,096, and the whole run has 2,304 tokens; lower it"):
        plan_run(tiny_run(tmp_path, batch={"tokens": 4096}))
