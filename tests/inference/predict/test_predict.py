"""Skins on an engine: labels, texts, adapters and heads, in batches and one by one; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import write_tiny_base

import bedplate
from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.core.errors import ContextLengthExceeded, RequestError, SkinError
from bedplate.inference.engine.answers import Answers
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.inference.native.library import load as load_library
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.predictor import Predictor
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.files import write_skin
from bedplate.skins.lookup_index import Neighbours
from bedplate.skins.output import LabelOutput, TextOutput
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, LoraPart, ProbePart, Skin, cascaded

LABELS = LabelOutput(labels=("negative", "positive"), continuations=(" negative", " positive"), bias=(0.0, 0.5))
PROMPT = Prompt("the product was asked about by the user\nReview: {{ review }}\nSentiment:")
ROWS = ["great and works well", "it broke", "terrible quality", "x", "the answer is no 你好"]


def _skin(model: LocalModel, directory: Path, variant: str) -> Skin:
    base = model.base
    generator = torch.Generator().manual_seed(0)
    lora = probe = None
    output: LabelOutput | TextOutput = LABELS
    if variant == "lora":
        tensors = {}
        for path, linear in block_linears(base.model).items():
            tensors[f"{path}.lora_A"] = torch.randn(2, linear.in_features, generator=generator) * 0.3
            tensors[f"{path}.lora_B"] = torch.randn(linear.out_features, 2, generator=generator) * 0.3
        lora = LoraPart(LoraConfig(r=2), tensors)
    if variant == "probe":
        head = Head(torch.randn(2, 48, generator=generator), torch.zeros(2), LABELS.labels)
        output, probe = LabelOutput(labels=LABELS.labels), ProbePart(head, "layers.2")
    if variant == "text":
        output = TextOutput(max_tokens=9, stop=("\n",))
    return Skin(
        name=f"reviews-{variant}",
        bases={"main": BaseReference.of(str(directory), "llama", base.identity)},
        inputs={"review": InputField()},
        output=output,
        prompt=PROMPT,
        lora=lora,
        probe=probe,
        evaluated_with=EvaluatedWith(weights="float32"),
    )


@pytest.mark.parametrize("variant", ["label", "lora", "probe", "text"])
def test_batches_equal_single_calls_and_the_constant_prompt_is_cached(
    model: LocalModel, tiny_dir: Path, variant: str
) -> None:
    with model.predictor(_skin(model, tiny_dir, variant)) as predictor:
        together = predictor.predict(ROWS)
        alone = predictor.predict([{"review": row} for row in ROWS], one_by_one=True)
        assert [p.output for p in together] == [p.output for p in alone]
        assert all(p.cached_tokens > 10 for p in alone)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(list(a.scores.values()), list(b.scores.values()), atol=1e-4)
            if variant != "text":
                assert sum(np.exp(list(a.scores.values()))) == pytest.approx(1.0)
                assert a.output == max(a.scores, key=lambda label: a.scores[label])
        assert predictor(ROWS[0]) == together[0].output


def test_a_skin_answers_requests_in_its_name_on_its_weights(model: LocalModel, tiny_dir: Path) -> None:
    with model.predictor(_skin(model, tiny_dir, "lora")) as predictor:
        skin: Answers = predictor
        facts = skin.describe()
        assert (facts.name, facts.can) == (predictor.skin.name, model.describe().can)
        asked = Generate(tuple(skin.tokenize("the review")), Sampling(max_tokens=4, ignore_eos=True))
        stream = skin.submit(asked)
        assert (stream.request.adapter, stream.request.skin) == (predictor.adapter, predictor.skin.name)
        assert stream.result(60).text == skin.run([asked])[0].text  # type: ignore[attr-defined]
        assert skin.alive


def test_a_text_says_why_it_ended(model: LocalModel, tiny_dir: Path) -> None:
    with model.predictor(_skin(model, tiny_dir, "text")) as predictor:
        results = predictor.engine.run(predictor.requests(ROWS))
        predictions = [predictor.read(result) for result in results]
        assert [p.finish_reason for p in predictions] == [result.finish_reason for result in results]  # type: ignore[union-attr]
        assert "length" in {p.finish_reason for p in predictions}
    with model.predictor(_skin(model, tiny_dir, "label")) as predictor:
        assert predictor.predict(ROWS[:1])[0].finish_reason is None


def test_label_scores_are_the_bases_own_with_the_bias(model: LocalModel, tiny_dir: Path) -> None:
    with model.predictor(_skin(model, tiny_dir, "label")) as predictor:
        for row in ROWS:
            text = PROMPT.text({"review": row})
            assert isinstance(text, str)
            totals = np.array(model.score(text, LABELS.continuations)) + np.array(LABELS.bias)
            expected = totals - np.logaddexp.reduce(totals)
            np.testing.assert_allclose(list(predictor.predict([row])[0].scores.values()), expected, atol=1e-4)


def test_a_skins_directory_loads_and_is_called(model: LocalModel, tiny_dir: Path, tmp_path: Path) -> None:
    skin = _skin(model, tiny_dir, "lora")
    write_skin(skin, tmp_path / "skin")
    with model.predictor(skin) as predictor, bedplate.load(tmp_path / "skin") as loaded:
        assert isinstance(loaded, LoadedSkin)
        assert [loaded(row) for row in ROWS] == [p.output for p in predictor.predict(ROWS)]
    with pytest.raises(SkinError, match="judged with float32"):
        bedplate.load(tmp_path / "skin", dtype="bfloat16")
    with bedplate.load(tmp_path / "skin", dtype="bfloat16", allow_other_weights=True) as overridden:
        assert isinstance(overridden, LoadedSkin)
        assert "bfloat16" in overridden.warnings[0]


def test_closing_takes_the_adapter_out(model: LocalModel, tiny_dir: Path) -> None:
    skin = _skin(model, tiny_dir, "lora")
    for _ in range(3):  # the same adapter again, which would be refused if it were still there
        with model.predictor(skin) as predictor:
            first = predictor(ROWS[0])
    assert first in LABELS.labels
    bank = model.engine.bank
    assert bank is not None
    assert bank.slots == ()


def test_inputs_that_do_not_fit_are_refused(model: LocalModel, tiny_dir: Path) -> None:
    with model.predictor(_skin(model, tiny_dir, "label")) as predictor:
        with pytest.raises(RequestError, match="lacks the input 'review'"):
            predictor.predict([{}])
        with pytest.raises(RequestError, match="unknown input 'text'"):
            predictor.predict([{"review": "x", "text": "y"}])
        with pytest.raises(RequestError, match="not a text"):
            predictor.predict([{"review": 3}])  # type: ignore[dict-item]
        with pytest.raises(ContextLengthExceeded, match="512"):
            predictor("word " * 600)
        assert predictor(ROWS[0]) in LABELS.labels


@pytest.fixture(scope="module")
def native_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bfloat16 whose sizes the native kernel takes."""
    sizes = {"hidden_size": 96, "head_dim": 16, "feedforward_size": 160}
    return write_tiny_base(tmp_path_factory.mktemp("base") / "native", dtype=torch.bfloat16, **sizes)


@pytest.fixture
def judged(native_dir: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a skin judged with these weights and this kernel."""

    def write(weights: str, kernel: str) -> Path:
        with LocalModel(load_base(native_dir), kernel="torch") as model:
            skin = _skin(model, native_dir, "label")
        skin = dataclasses.replace(skin, evaluated_with=EvaluatedWith(weights=weights, kernel=kernel))
        return write_skin(skin, tmp_path / f"{weights}-{kernel}")

    return write


NATIVE = pytest.mark.skipif(isinstance(load_library(), str), reason=f"no native kernel here: {load_library()}")


@NATIVE
@pytest.mark.parametrize(
    ("weights", "kernel"), [("bfloat16", "native"), ("bfloat16", "torch"), ("int8", "native"), ("int4", "native")]
)
def test_a_skin_opens_as_it_was_judged(judged: Callable[[str, str], Path], weights: str, kernel: str) -> None:
    with bedplate.load(judged(weights, kernel)) as loaded:
        assert isinstance(loaded, LoadedSkin)
        assert (loaded.engine.weights, loaded.engine.kernel) == (weights, kernel)
        assert loaded.warnings == []
        assert loaded(ROWS[0]) in LABELS.labels


@NATIVE
def test_another_kernel_or_other_weights_are_never_silent(judged: Callable[[str, str], Path]) -> None:
    directory = judged("bfloat16", "native")
    for options, message in (
        ({"kernel": "torch"}, "torch"),
        ({"weights": "int8"}, "int8"),
        ({"dtype": "float32"}, "float32"),
    ):
        with pytest.raises(SkinError, match=message):
            bedplate.load(directory, **options)
        with bedplate.load(directory, **options, allow_other_weights=True) as loaded:
            assert isinstance(loaded, LoadedSkin)
            assert message in loaded.warnings[0]
    with pytest.raises(SkinError, match="judged with the torch kernel and would run with native"):
        bedplate.load(judged("bfloat16", "torch"), kernel="native")


def test_a_judged_kernel_that_cannot_be_had_here_names_the_flag(
    judged: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = judged("int4", "native")
    monkeypatch.setattr("bedplate.inference.native.packed_weights.load", lambda: "there is no C compiler")
    with pytest.raises(SkinError, match=r"there is no C compiler.*--allow-other-weights"):
        bedplate.load(directory)
    with bedplate.load(directory, allow_other_weights=True) as loaded:
        assert isinstance(loaded, LoadedSkin)
        assert (loaded.engine.weights, loaded.engine.kernel) == ("bfloat16", "torch")
        assert "int4" in loaded.warnings[0]
        assert "native" in loaded.warnings[1]


def test_an_embedder_that_cannot_be_held_as_for_the_pool_names_the_flag(
    model: LocalModel, tiny_dir: Path, native_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, skin = load_base(native_dir), _skin(model, tiny_dir, "label")
    rows = tuple(Demonstration({"review": f"row {i}"}, "positive") for i in range(3))
    skin = dataclasses.replace(
        skin,
        bases={**skin.bases, "embedder": BaseReference.of(str(native_dir), "llama", embedder.identity)},
        prompt=Prompt("{% for d in demonstrations %}{{ d.inputs.review }}:{{ d.answer }}\n{% endfor %}{{ review }}:"),
        neighbours=Neighbours(np.eye(3, 96, dtype=np.float32), rows, 2),
        embedded_with=EvaluatedWith(weights="int4", kernel="native"),
    )
    write_skin(skin, tmp_path / "skin")
    monkeypatch.setattr("bedplate.inference.native.packed_weights.load", lambda: "there is no C compiler")
    with pytest.raises(SkinError, match=r"there is no C compiler.*--allow-other-weights"):
        bedplate.load(tmp_path / "skin")
    with bedplate.load(tmp_path / "skin", allow_other_weights=True) as loaded:
        assert isinstance(loaded, LoadedSkin)
        assert "int4" in loaded.warnings[0]
        assert loaded(ROWS[0]) in LABELS.labels
    write_skin(cascaded("both", skin, skin, 0.9), tmp_path / "both")
    with pytest.raises(SkinError, match=r"there is no C compiler.*--allow-other-weights"):
        bedplate.load(tmp_path / "both")
    with bedplate.load(tmp_path / "both", allow_other_weights=True) as cascade:
        assert any("int4" in warning for warning in cascade.warnings)


def test_a_skin_from_before_kernels_were_recorded_runs_on_torch(judged: Callable[[str, str], Path]) -> None:
    directory = judged("bfloat16", "torch")
    fields = json.loads((directory / "skin.json").read_text("utf-8"))
    del fields["evaluated_with"]["kernel"]
    (directory / "skin.json").write_text(json.dumps(fields), "utf-8")
    with bedplate.load(directory) as loaded:
        assert isinstance(loaded, LoadedSkin)
        assert loaded.engine.kernel == "torch"
        assert loaded.warnings == []


def test_a_skin_is_refused_on_a_base_whose_weights_were_updated(tiny_dir: Path) -> None:
    with LocalModel(load_base(tiny_dir), kernel="torch") as model:
        skin = _skin(model, tiny_dir, "text")
        Predictor(model.engine, skin).close()
        name, parameter = next(iter(model.base.model.named_parameters()))
        assert model.engine.weights_version == 1
        model.engine.update(None, {name: parameter.detach() + 0.01})
        with pytest.raises(SkinError, match="were updated after loading"):
            Predictor(model.engine, skin)
        with Predictor(model.engine, skin, allow_other_weights=True) as allowed:
            assert any("were updated after loading" in warning for warning in allowed.warnings)
