"""Heads written out: ONNX Runtime, and a recipe of numpy alone, give the skin's scores from the files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.skins.test_classical import ANSWERS, LABELS, TEXTS, fitted, skin
from tests.tiny import write_tiny_base

from bedplate.adapters.bank import Bank
from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.cli.main import main
from bedplate.core.errors import UsageError
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.classical import WORD
from bedplate.skins.export import RUNTIME_WORD, export_skin
from bedplate.skins.files import write_skin
from bedplate.skins.output import Abstain, LabelOutput, LabelsOutput, Output
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, LoraPart, ProbePart, Skin

CLOSE = 1e-5
OUTPUTS: dict[str, Output] = {
    "label": LabelOutput(labels=LABELS),
    "biased": LabelOutput(labels=LABELS, bias=(0.5, -0.25, 0.0)),
    "careful": LabelOutput(labels=LABELS, abstain=Abstain(below=0.6, answer="?")),
    "several": LabelsOutput(labels=LABELS, threshold=0.4),
}
ROWS = [*TEXTS, "?", " .\n", "never seen", "it it is is product", "a\tb\x0bc\x1cd\x85e\u2028f"]
# ONNX Runtime and PyTorch convert some numpy scalars in a way that numpy has deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime")


def exported(source_skin: Skin, out: Path) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    """The session of model.onnx, and what recipe.py defines."""
    export_skin(source_skin, out)
    onnx.checker.check_model(str(out / "model.onnx"))
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    code = (out / "recipe.py").read_text("utf-8")
    assert set(re.findall(r"^(?:from|import) (\S+)", code, re.M)) <= {
        "__future__",
        "collections",
        "json",
        "numpy",
        "pathlib",
        "re",
        "sys",
        "typing",
    }
    defined: dict[str, Any] = {"__file__": str(out / "recipe.py"), "__name__": "recipe"}
    exec(compile(code, "recipe.py", "exec"), defined)
    return session, defined


def run(session: onnxruntime.InferenceSession, inputs: np.ndarray) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: inputs}), strict=True))


def lower(rows: list[str]) -> np.ndarray:
    return np.array([row.lower() for row in rows], dtype=object)


def answers_of(outputs: dict[str, np.ndarray]) -> list[Any]:
    """The answers of a graph."""
    if "label" in outputs:
        return outputs["label"].tolist()
    return [[LABELS[i] for i in np.flatnonzero(row)] for row in outputs["chosen"]]


@pytest.mark.parametrize("output_type", OUTPUTS)
def test_a_classical_skin_in_onnx_runtime_and_in_numpy(output_type: str, tmp_path: Path) -> None:
    classical_skin = skin(fitted()[2], OUTPUTS[output_type])
    session, recipe = exported(classical_skin, tmp_path / "out")
    expected = ClassicalPredictor(classical_skin).predict(ROWS)
    scores = np.array([list(prediction.scores.values()) for prediction in expected])
    answers = [
        json.loads(prediction.output) if output_type == "several" else prediction.output for prediction in expected
    ]
    outputs = run(session, lower(ROWS))
    np.testing.assert_allclose(outputs["log_probabilities"], scores, atol=CLOSE)
    assert answers_of(outputs) == answers == recipe["answers"](ROWS)
    np.testing.assert_allclose(recipe["scores"](ROWS), scores, atol=CLOSE)
    manifest = json.loads((tmp_path / "out" / "prompt.json").read_text())
    assert (manifest["kind"], manifest["base"], manifest["template"]) == ("classical", None, "{{ review }}")


@pytest.mark.parametrize("words", [(1, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("sublinear", [True, False])
def test_the_graph_gives_scikit_learns_probabilities(words: tuple[int, int], sublinear: bool, tmp_path: Path) -> None:
    vectorizer, model, part = fitted(words=words, sublinear=sublinear)
    session, recipe = exported(skin(part), tmp_path / "out")
    expected = model.predict_log_proba(vectorizer.transform(ROWS))
    np.testing.assert_allclose(run(session, lower(ROWS))["log_probabilities"], expected, atol=CLOSE)
    np.testing.assert_allclose(recipe["scores"](ROWS), expected, atol=CLOSE)


@pytest.fixture(scope="module")
def tokenised() -> onnxruntime.InferenceSession:
    """The Tokenizer of the graph alone."""
    node = onnx.helper.make_node(
        "Tokenizer", ["t"], ["w"], domain="com.microsoft", mark=0, mincharnum=1, pad_value="", tokenexp=RUNTIME_WORD
    )
    graph_input = onnx.helper.make_tensor_value_info("t", onnx.TensorProto.STRING, ["N"])
    graph_output = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.STRING, ["N", "T"])
    sets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [graph_input], [graph_output]), opset_imports=sets, ir_version=8
    )
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


# "Cn": characters that one of the two tables may know and the other not yet; "Cs" is no text in UTF-8
assigned = st.text(st.characters(exclude_categories=("Cn", "Cs", "Co"), exclude_characters="\0"))


@settings(max_examples=200, deadline=None)
@given(assigned)
def test_the_graph_reads_the_same_words(tokenised: onnxruntime.InferenceSession, text: str) -> None:
    tokens = tokenised.run(None, {"t": np.array([text], dtype=object)})[0][0]
    assert [word for word in tokens.tolist() if word] == re.findall(WORD, text)


def test_the_recipe_is_a_program(tmp_path: Path) -> None:
    classical_skin = skin(fitted()[2])
    export_skin(classical_skin, tmp_path / "out")
    answers = subprocess.run(
        [sys.executable, "-I", tmp_path / "out" / "recipe.py", *TEXTS], capture_output=True, text=True, check=True
    )
    assert (
        answers.stdout.split()
        == ANSWERS
        == [prediction.output for prediction in ClassicalPredictor(classical_skin).predict(TEXTS)]
    )


# --- probes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def probe(source: Path, output: Output, pooling: Any, lora: LoraPart | None = None) -> Skin:
    base = load_base(source)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, base.spec.hidden_size, generator=generator) / 64  # scores as trained heads give them
    head = Head(weight, torch.randn(3, generator=generator), LABELS)
    return Skin(
        name="sentiment",
        bases={"main": BaseReference.of(str(source), "llama", base.identity)},
        inputs={"review": InputField()},
        output=output,
        prompt=Prompt("Review: {{ review }}\nSentiment:"),
        evaluated_with=EvaluatedWith(weights="float32"),
        probe=ProbePart(head, "layers.2", pooling),
        lora=lora,
    )


@pytest.mark.parametrize(
    ("output_type", "pooling"), [("label", "last"), ("biased", "mean"), ("careful", "first"), ("several", "last")]
)
def test_a_probe_on_the_states_that_transformers_gives(
    output_type: str, pooling: str, tiny: Path, tmp_path: Path
) -> None:
    probe_skin = probe(tiny, OUTPUTS[output_type], pooling)
    session, recipe = exported(probe_skin, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "prompt.json").read_text())
    assert manifest["head"] == {"layer": 2, "pooling": pooling}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    with LocalModel(load_base(tiny)) as model:
        predictor = model.predictor(probe_skin)
        expected = predictor.predict(TEXTS, one_by_one=True)
        features: list[np.ndarray] = []
        for text in TEXTS:
            ids = torch.tensor([predictor.request(text).tokens])
            with torch.no_grad():
                states = theirs(ids, output_hidden_states=True).hidden_states[manifest["head"]["layer"]][0]
            features.append(recipe["pooled"](states.numpy()))
    scores = np.array([list(prediction.scores.values()) for prediction in expected])
    outputs = run(session, np.stack(features))
    np.testing.assert_allclose(outputs["log_probabilities"], scores, atol=CLOSE)
    np.testing.assert_allclose(recipe["scores"](np.stack(features)), scores, atol=CLOSE)
    answers = [
        json.loads(prediction.output) if output_type == "several" else prediction.output for prediction in expected
    ]
    assert answers_of(outputs) == answers == recipe["answers"](np.stack(features))


def test_a_probe_on_adapted_states_comes_with_the_adapter(tiny: Path, tmp_path: Path) -> None:
    bank = Bank(load_base(tiny).model)
    config = LoraConfig(r=2, alpha=4, targets=("q",))
    lora = LoraPart(config, {name: torch.ones(x.shape) for name, x in bank.state(bank.add(config)).items()})
    bank.close()
    files = export_skin(probe(tiny, OUTPUTS["label"], "last", lora), tmp_path / "out")
    assert files == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "model.onnx",
        "prompt.json",
        "recipe.py",
        "weights.npz",
    ]


def test_without_the_package_the_extra_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_skin(skin(fitted()[2]), tmp_path / "skin")
    with pytest.raises(SystemExit) as stopped:
        main(["skins", "export", str(directory), "--out", str(tmp_path / "out"), "--json"])
    assert not stopped.value.code
    assert json.loads(capsys.readouterr().out)["files"] == [
        "model.onnx",
        "prompt.json",
        "recipe.py",
        "vocabulary.json",
        "weights.npz",
    ]
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"pip install 'bedplate\[onnx\]'"):
        export_skin(skin(fitted()[2]), tmp_path / "other")
    assert not (tmp_path / "other").exists()
