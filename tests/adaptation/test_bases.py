"""Several bases in one task: small against large, decoder against encoder, open against hosted, in one table."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.adaptation.conftest import NATIVE_SHAPE, write_rows, write_task
from tests.homes import new_home
from tests.inference.fake_labeller import Labeller
from tests.inference.fake_server import fake_server
from tests.serving.conformance.conftest import write_tiny_encoder
from tests.tiny import write_tiny_base

from bedplate.adaptation.context.bases import Bases, suffixes_of
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.postprocess.reproduce import reproduce
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs import RUNGS, probe
from bedplate.adaptation.rungs.linear_head import OneOf, tempered
from bedplate.adaptation.search.guards import children
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.adapters.head import Head
from bedplate.core.errors import ConfigError, DataError, UsageError
from bedplate.core.files import read_jsonl
from bedplate.evaluation.examples import load_examples
from bedplate.inference.predict.hosted_predictor import HostedPredictor
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.skins.catalog import Catalog

PICK = ["majority", "zero_shot", "probe"]
FEW_GROUPS = 24
"""So few that nothing is shown: for what does not depend on the rows."""


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("larger") / "tiny-large", seed=3, layers=3, **NATIVE_SHAPE)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "reader")


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, larger: Path, encoder: Path
) -> tuple[Report, Path, Path]:
    """A large decoder first, a small one, and an encoder."""
    directory = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(directory / "home")))
        task = write_task(directory, larger, bases=[str(larger), str(tiny_base), str(encoder)], groups=40, rungs=PICK)
        report = adapt(task, directory / "out")
    return report, directory, task


def test_one_table_one_opening_and_each_row_says_its_base(
    run: tuple[Report, Path, Path], tiny_base: Path, larger: Path, encoder: Path
):
    report, directory, _ = run
    bases = {row["rung"]: row["base"] for row in report.rungs}
    assert bases == {
        "majority": None,
        "zero_shot": str(larger),
        "probe": str(larger),
        "zero_shot@tiny": str(tiny_base),
        "probe@tiny": str(tiny_base),
        "zero_shot@reader": str(encoder),
        "probe@reader": str(encoder),
    }
    skipped = report.row("zero_shot@reader")
    assert (skipped["status"], skipped["reason"]) == ("skipped", f"zero_shot needs a decoder; {encoder} is an encoder")
    assert {row["status"] for row in report.rungs if row["rung"] != "zero_shot@reader"} == {"done"}
    assert len(read_jsonl(directory / "home" / "ledger" / "test-openings.jsonl")) == 1
    base_types = {base["name"]: base["kind"] for base in report.data["lineage"]["bases"]}
    assert base_types == {str(larger): "decoder", str(tiny_base): "decoder", str(encoder): "encoder"}


def test_small_bases_are_climbed_first(run: tuple[Report, Path, Path]):
    names = list(dict.fromkeys(row["rung"] for row in run[0].rungs))
    assert names[0] == "majority"
    assert names.index("probe@tiny") < names.index("zero_shot")


def test_skins_belong_to_their_bases_and_answer_as_the_report_says(run: tuple[Report, Path, Path], encoder: Path):
    report, directory, path = run
    task, _ = load_adapt_task(path)
    valid = load_examples(task).valid
    names = {name: row["skin"] for name in ("probe", "probe@tiny", "probe@reader") if (row := report.row(name))}
    assert len(set(names.values())) == 3
    for name, place in names.items():
        with load(directory / "out" / place) as skin:
            assert isinstance(skin, LoadedSkin)
            answers = [p.output for p in skin.predict([e.inputs for e in valid])]
        rows = report.data["rows"]["valid"][name]
        assert answers == [row["prediction"] for row in rows], name
    with load(directory / "out" / names["probe@reader"]) as skin:
        assert isinstance(skin, LoadedSkin)
        assert skin.skin.base.name == str(encoder)
        assert skin.skin.name == "toy-sentiment-probe-reader"


def test_all_bases_are_in_the_catalogue(run: tuple[Report, Path, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BEDPLATE_HOME", str(run[1] / "home"))
    with Catalog.open() as catalog:
        assert {base.name for base in catalog.entries("base")} == {"tiny-large", "tiny", "reader"}
        assert len(catalog.entries("skin")) == 5


def test_the_same_command_fits_nothing_again(run: tuple[Report, Path, Path], monkeypatch: pytest.MonkeyPatch):
    report, directory, task = run
    monkeypatch.setenv("BEDPLATE_HOME", str(directory / "home"))

    def refuse(*_: object) -> object:
        raise AssertionError("a finished rung was fitted again")

    for name in PICK:
        monkeypatch.setattr(type(RUNGS[name]), "fit", refuse)
    rerun = adapt(task, directory / "out")
    assert rerun.data["rungs"] == report.data["rungs"]
    assert rerun.verdict == report.verdict


def test_a_killed_rung_of_the_second_base_goes_on_there(
    tmp_path: Path, tiny_base: Path, larger: Path, monkeypatch: pytest.MonkeyPatch
):
    bases = [str(larger), str(tiny_base)]
    task = write_task(tmp_path, larger, bases=bases, groups=FEW_GROUPS, rungs=["majority", "zero_shot"])
    rung_class, fitted = type(RUNGS["zero_shot"]), list[str]()
    fit = rung_class.fit

    def killed(self, context, plan, directory):
        fitted.append(context.suffix)
        if not context.suffix and fitted.count("") == 1:
            raise KeyboardInterrupt
        return fit(self, context, plan, directory)

    monkeypatch.setattr(rung_class, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        adapt(task, tmp_path / "out")
    report = adapt(task, tmp_path / "out")
    assert fitted == ["tiny", "", ""]
    assert {row["status"] for row in report.rungs} == {"done"}


def test_where_memory_is_short_one_base_at_a_time_is_loaded(
    tmp_path: Path, tiny_base: Path, larger: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bedplate.adaptation.context.bases.free_on", lambda device: 1)
    bases = Bases([str(larger), str(tiny_base)], [str(larger), str(tiny_base)])
    first_base, two = bases.all
    first = first_base.model
    assert first_base.facts.architecture == "decoder"
    _ = two.model
    assert (first_base.loaded, two.loaded) == (False, True)
    assert not first.engine.alive
    facts = first_base.facts  # known without loading it again
    assert not first_base.loaded
    assert first_base.model.engine.weights == facts.weights
    assert two.loaded is False
    bases.close()
    monkeypatch.setattr("bedplate.adaptation.context.bases.free_on", lambda device: None)
    bases = Bases([str(larger), str(tiny_base)], [str(larger), str(tiny_base)])
    assert bases.all[0].model.engine.alive
    assert bases.all[1].model.engine.alive
    assert all(base.loaded for base in bases.all)
    bases.close()
    rungs = ["zero_shot"]
    task = write_task(tmp_path, larger, bases=[str(larger), str(tiny_base)], groups=FEW_GROUPS, rungs=rungs)
    monkeypatch.setattr("bedplate.adaptation.context.bases.free_on", lambda device: 1)
    report = adapt(task, tmp_path / "out")
    assert {row["status"] for row in report.rungs} == {"done"}


def test_an_encoder_alone_will_do_for_labels(tmp_path: Path, encoder: Path):
    report = adapt(write_task(tmp_path, encoder, groups=40, rungs=["majority", "zero_shot", "probe"]), tmp_path / "out")
    assert report.row("probe")["status"] == "done"
    assert report.data["details"]["probe"]["pooling"] in {"mean", "first"}
    assert {row["name"].partition(", ")[2] for row in report.data["search"]["probe"]} == {"mean", "first"}


def test_rows_too_long_for_one_base_leave_that_base_out(tmp_path: Path, tiny_base: Path):
    small = write_tiny_base(tmp_path / "small", seed=7, context_length=24)
    rows = write_rows(tmp_path / "rows.jsonl", FEW_GROUPS)
    task = write_task(tmp_path / "task", tiny_base, rows=rows, bases=[str(tiny_base), str(small)], rungs=["zero_shot"])
    report = adapt(task, tmp_path / "out")
    row = report.row("zero_shot@small")
    assert row["status"] == "skipped"
    assert "more than the context of" in row["reason"]
    assert report.row("zero_shot")["status"] == "done"
    with pytest.raises(DataError, match="more than the context"):
        adapt(write_task(tmp_path / "alone", small, rows=rows, rungs=["zero_shot"]), tmp_path / "alone-out")


def test_the_same_base_twice_is_refused(tmp_path: Path, tiny_base: Path):
    (tmp_path / "other").symlink_to(tiny_base)
    with pytest.raises(ConfigError, match="named twice"):
        load_adapt_task(write_task(tmp_path / "a", tiny_base, bases=[str(tiny_base)] * 2))
    task = write_task(tmp_path / "b", tiny_base, bases=[str(tiny_base), str(tmp_path / "other")])
    with pytest.raises(UsageError, match="are the same base"):
        adapt(task, tmp_path / "out")


def test_names_are_short_distinct_and_stable():
    names = ["a/base", "hf:owner/model one", "b/base.gguf", "c/base", "///", "d/base"]
    assert suffixes_of(names) == ["", "model-one", "base-2", "base-3", "base-5", "base-4"]
    assert suffixes_of(["x", "y"], reserved=["y"]) == ["", "y-2"]
    assert suffixes_of([]) == []


def test_features_are_pooled_as_the_engine_pools_them(tmp_path: Path, tiny_base: Path, encoder: Path):
    """The probe's own batches against one request each, for every pooling, on a decoder and on an encoder."""
    from bedplate.adaptation.context.clock import Clock
    from bedplate.adaptation.context.context import Context
    from bedplate.inference.engine.requests import Embed, Embedding

    for base in (tiny_base, encoder):
        task, spec = load_adapt_task(write_task(tmp_path / base.name, base))
        data = load_examples(task)
        bases = Bases([str(base)], [str(base)])
        context = Context(
            task, spec, bases.all[0], data.train, data.valid, data.hashes, data.test.n, tmp_path, Clock(None)
        )
        rows, names = data.valid[:20], ["layers.1", "layers.2"]
        pooled = probe.features_of(context, rows, names, ("last", "mean", "first"))
        prompt, _ = context.default_prompt()
        for number, example in enumerate(rows):
            text = prompt.text(example.inputs)
            ids = prompt.tokens(context.model.tokenizer, example.inputs)
            if not context.backbone.writes:
                ids = context.model.text_tokens(str(text))
            for (name, pooling), features in pooled.items():
                request = Embed(tuple(ids), pooling, int(name[-1]), normalise=False)
                result = context.model.engine.run([request])[0]
                assert isinstance(result, Embedding)
                np.testing.assert_allclose(features[number], result.vector, atol=2e-4, err_msg=f"{name} {pooling}")
        bases.close()


def test_the_temperature_is_the_likeliest_one():
    """Logits that are three times too sure: dividing by 3 gives back the rates that labels were drawn with."""
    import torch

    rng = np.random.default_rng(0)
    logit = rng.normal(0, 1.5, 4000)
    codes = (rng.random(4000) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    head = Head(torch.tensor([[0.0], [3.0]]), torch.zeros(2), ("a", "b"))
    cooled, temperature = tempered(head, logit.astype(np.float32)[:, None], OneOf(codes, ("a", "b")))
    assert temperature == pytest.approx(3.0, rel=0.1)
    torch.testing.assert_close(cooled.weight * temperature, head.weight)


# --- hosted


def endpoint(server: Labeller, model: str = "ok", name: str = "remote", **fields: object) -> dict[str, object]:
    return {
        "name": name,
        "url": server.url,
        "model": model,
        "usd_per_million_input": 100.0,
        "usd_per_million_cached_input": 10.0,
        "usd_per_million_output": 400.0,
        "as_of": "2026-11-24",
        "max_usd": 50.0,
        "retries": 0,
        **fields,
    }


def test_hosted_models_stand_in_the_same_table(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with fake_server(Labeller()) as server:
        assert isinstance(server, Labeller)
        hosted = [
            endpoint(server),
            endpoint(server, "nonsense", "babbler"),
            endpoint(server, "unauthorised", "locked"),
            endpoint(server, name="keyless", api_key_env="NO_SUCH_KEY"),
        ]
        rungs = ["majority", "zero_shot", "hosted"]
        task = write_task(tmp_path, tiny_base, groups=40, hosted=hosted, rungs=rungs)
        report = adapt(task, tmp_path / "out")
        request_count = len(server.requests)
        rerun = adapt(task, tmp_path / "out")
        assert {body["model"] for body in server.requests[request_count:]} == {
            "unauthorised"
        }  # what had failed is tried again
        with load(tmp_path / "out" / report.row("hosted")["skin"]) as skin:
            assert isinstance(skin, HostedPredictor)
            assert skin("this product works well") == "positive"
        made_again = reproduce(tmp_path / "out" / report.row("hosted")["skin"], tmp_path / "again")
    assert rerun.verdict == report.verdict
    assert (made_again.status, made_again.rows) == ("identical", 0)  # nobody is paid to be compared
    assert made_again.estimate == report.row("hosted")["estimate"]
    row = report.row("hosted", "test")
    assert row["base"] == "remote"
    assert row["estimate"] > 0.9
    assert report.row("hosted@babbler")["estimate"] == 0.0
    assert "answers could not be read" in report.row("hosted@babbler")["reason"]
    assert report.row("hosted@locked")["status"] == "failed"
    assert "refuses the API key" in report.row("hosted@locked")["reason"]
    assert report.row("hosted@keyless")["status"] == "skipped"
    assert "NO_SUCH_KEY, which is not set" in report.row("hosted@keyless")["reason"]
    assert report.row("zero_shot")["status"] == "done"


def test_a_hosted_call_costs_its_tokens_and_not_this_machine(tmp_path: Path, tiny_base: Path):
    with fake_server(Labeller()) as server:
        assert isinstance(server, Labeller)
        task = write_task(tmp_path, tiny_base, groups=FEW_GROUPS, hosted=[endpoint(server)], rungs=["hosted"])
        report = adapt(task, tmp_path / "out")
    answers = read_jsonl(tmp_path / "out" / "answers" / "remote.jsonl")
    valid = len(report.data["rows"]["valid"]["hosted"])
    assert len(answers) == valid + len(report.data["rows"]["test"]["hosted"])
    costs = [
        (a["prompt_tokens"] - a["cached_tokens"]) * 1e-4 + a["cached_tokens"] * 1e-5 + a["completion_tokens"] * 4e-4
        for a in (row["answer"] for row in answers)
    ]
    assert report.row("hosted")["usd_per_1k_calls"] == pytest.approx(1000 * np.mean(costs[:valid]))
    assert report.data["timing"]["usd"] >= sum(costs[:valid])


def test_a_cap_that_would_not_last_for_test_fails_the_rung(tmp_path: Path, tiny_base: Path):
    with fake_server(Labeller()) as server:
        assert isinstance(server, Labeller)
        for max_usd, message in ((0.035, "past max_usd"), (0.1, "with test it would be about")):
            hosted = [endpoint(server, max_usd=max_usd, concurrency=1)]
            task = write_task(tmp_path, tiny_base, groups=50, hosted=hosted, rungs=["majority", "hosted"])
            report = adapt(task, tmp_path / "out")
            assert report.row("hosted")["status"] == "failed"
            assert message in report.row("hosted")["reason"]
            spent = sum(row["usd"] for row in read_jsonl(tmp_path / "out" / "answers" / "remote.jsonl"))
            assert 0 < spent <= max_usd
        request_count = len(server.requests)
        hosted = [endpoint(server, max_usd=5.0)]
        report = adapt(
            write_task(tmp_path, tiny_base, groups=50, hosted=hosted, rungs=["majority", "hosted"]), tmp_path / "out"
        )
        assert report.row("hosted")["status"] == "done"
        assert len(server.requests) == request_count + len(report.data["rows"]["test"]["hosted"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "ftp://x"}, "is not a server's address"),
        ({"usd_per_million_output": None}, "usd_per_million_output"),
        ({"name": "a/b"}, "hosted.0.name"),
        ({"as_of": "yesterday"}, "as_of"),
        ({"max_usd": 0}, "max_usd"),
        ({"key": "sk-1"}, "'key'"),
    ],
)
def test_endpoints_that_cannot_be(tmp_path: Path, tiny_base: Path, change: dict, message: str):
    values = endpoint(Labeller(url="http://127.0.0.1:9")) | change
    values = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        load_adapt_task(write_task(tmp_path, tiny_base, hosted=[values]))


def test_two_endpoints_of_one_name_and_addresses_among_the_bases(tmp_path: Path, tiny_base: Path):
    remote = endpoint(Labeller(url="http://127.0.0.1:9"))
    with pytest.raises(ConfigError, match="two endpoints have one name"):
        load_adapt_task(write_task(tmp_path, tiny_base, hosted=[remote, remote]))
    with pytest.raises(ConfigError, match=r"remote models are named under `adapt.hosted`"):
        load_adapt_task(write_task(tmp_path, tiny_base, bases=["https://api.example.com/v1"]))


def test_the_resolved_task_file_holds_no_key(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with fake_server(Labeller()) as server:
        assert isinstance(server, Labeller)
        hosted = [endpoint(server, api_key_env="MY_KEY")]
        task = write_task(tmp_path, tiny_base, groups=FEW_GROUPS, hosted=hosted, rungs=["hosted"])
        adapt(task, tmp_path / "out")
        assert {body["key"] for body in server.requests} == {"Bearer sk-very-secret"}
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"sk-very-secret" not in path.read_bytes(), path
    assert json.loads((tmp_path / "out" / "report.json").read_text())["verdict"]["status"]


def test_a_cascade_is_guarded_where_its_parts_are():
    def outcome(child: str | None, parts: tuple[str, ...] = ()) -> Any:
        path = None if child is None else Path(child)
        return SimpleNamespace(child=path, result=SimpleNamespace(parts=parts))

    finished = {"probe": outcome(None), "full": outcome("children/full"), "cascade": outcome(None, ("probe", "full"))}
    candidates = {name: SimpleNamespace(context=None, climbed=rung_outcome) for name, rung_outcome in finished.items()}
    untyped_candidates: Any = candidates
    children_by_rung = {name: [path for _, path in children(untyped_candidates, name)] for name in finished}
    assert children_by_rung == {"probe": [], "full": [Path("children/full")], "cascade": [Path("children/full")]}
