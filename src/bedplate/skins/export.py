"""A skin's parts for other programs: its weights in PEFT's layout, its head as ONNX and numpy arrays, and what is asked
as one JSON file."""

from __future__ import annotations

import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.adapters.head import Head
from bedplate.adapters.soft_prompt import prompt_peft_files
from bedplate.adapters.table import ADAPTERS
from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_directory
from bedplate.core.version import __version__
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.classical import VOCABULARY_FILE, WORD, Classical
from bedplate.skins.files import skin_files
from bedplate.skins.skin import Skin
from bedplate.skins.verify import verify_skin

PROMPT_JSON = "prompt.json"


def export_skin(skin: Skin, out: Path, *, base: str | Path | None = None, replace: bool = False) -> list[str]:
    """Writes the new directory `out`, and returns the names of its files.

    Every kind gives `prompt.json`; LoRA weights and soft prompts also the files that peft loads; probes and classical
    models those of `head_files`. base: where the skin's base is, when not where it was made; only a soft prompt needs
    it, because peft wants to know its heads and layers. UsageError for a cascade, for a skin that looks something up in
    each call, for LoRA weights with a soft prompt, where the package onnx is needed and missing, and where `out` holds
    something that it is not to `replace`.
    """
    if skin.cascade is not None:
        raise UsageError(f"skin {skin.name!r} is a cascade: export its two skins, in first and second")
    if skin.index is not None:
        retrieved = "demonstrations" if skin.passages is None else "passages"
        message = f"skin {skin.name!r} chooses its {retrieved} for each call, for which other programs have no form;"
        raise UsageError(f"{message} its index/ holds their vectors and texts")
    if skin.lora is not None and skin.soft_prompt is not None:
        raise UsageError(
            f"skin {skin.name!r} has LoRA weights and a soft prompt, and peft reads one of them from a directory: merge"
            " the weights with `bedplate skins merge`, and take the vectors from soft_prompt.safetensors"
        )
    files = {PROMPT_JSON: (json.dumps(prompt_fields(skin), indent=2, ensure_ascii=False) + "\n").encode()}
    if skin.lora is not None:
        contents = skin_files(skin)
        files |= {name: contents[name] for name in ADAPTERS["lora"].files}
    if skin.soft_prompt is not None:
        loaded = load_base(base or skin.base.name, device="cpu")
        verify_skin(skin, loaded, allow_other_weights=True)
        files |= prompt_peft_files(skin.soft_prompt, loaded.spec, base_name=skin.base.name)
    if skin.head is not None:
        files |= head_files(skin)
    with atomic_directory(out, replace) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)
    return sorted(files)


def prompt_fields(skin: Skin) -> dict[str, Any]:
    """What is asked of the base, as JSON: a jinja template over the inputs, and a chat's `messages` before it."""
    prompt = skin.prompt
    fields: dict[str, Any] = {
        "name": skin.name,
        "kind": skin.kind,
        "base": skin.bases["main"].name if "main" in skin.bases else None,
        "inputs": list(skin.inputs),
        "format": prompt.format,
        "system": prompt.system,
        "template": prompt.template,
        "demonstrations": [
            {"inputs": dict(example.inputs), "answer": example.answer} for example in skin.demonstrations
        ],
        "output": skin.output.model_dump(mode="json"),
        "generation": dict(skin.generation),
    }
    if skin.head is not None:
        fields["head"] = head_fields(skin)
    if prompt.format == "chat":
        before = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
        for demonstration in skin.demonstrations:
            # The last message of a demonstration's own conversation is its input as the template writes it.
            user_message = prompt.text(demonstration.inputs)[-1]
            before += [user_message, {"role": "assistant", "content": demonstration.answer}]
        fields["messages"] = [*before, {"role": "user", "content": prompt.template}]
    return fields


ONNX_FILE, WEIGHTS_FILE, RECIPE_FILE = "model.onnx", "weights.npz", "recipe.py"
RUNTIME_WORD = r"[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s\p{Z}\x0b\x1c-\x1f\x85]"
"""`WORD` as RE2 writes it, whose \\w and \\s are of ASCII alone."""
OPSET, IR = 17, 8
"""ONNX versions of 2022: what has been current since reads them."""


def head_files(skin: Skin) -> dict[str, bytes]:
    """File name → content for a skin with a head. UsageError where the package onnx is missing."""
    head, model = skin.head, skin.classical
    assert head is not None
    arrays = _arrays(head, skin.output) | ({} if model is None else {"idf": model.idf})
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)
    contents = {
        ONNX_FILE: _graph(skin, arrays),
        WEIGHTS_FILE: packed.getvalue(),
        RECIPE_FILE: (resources.files("bedplate.skins") / "export_recipe.py").read_bytes(),
    }
    return contents | ({} if model is None else {VOCABULARY_FILE: model.files()[VOCABULARY_FILE]})


def head_fields(skin: Skin) -> dict[str, Any]:
    if skin.classical is not None:
        model = skin.classical
        return {"word": WORD, "lower_case": True, "words": list(model.words), "sublinear": model.sublinear}
    assert skin.probe is not None
    return {"layer": int(skin.probe.layer.removeprefix("layers.")), "pooling": skin.probe.pooling}


def _arrays(head: Head | Classical, output: Any) -> dict[str, NDArray[np.float32]]:
    """weight [C, F] and bias [C], what the output adds to each label's score included."""
    bias = np.asarray(head.bias, np.float64)
    if output.is_one_label:
        bias = bias + np.asarray(output.bias)
    return {"weight": np.asarray(head.weight, np.float32), "bias": bias.astype(np.float32)}


def _graph(skin: Skin, arrays: dict[str, NDArray[np.float32]]) -> bytes:
    try:
        import onnx
    except ModuleNotFoundError:
        raise UsageError("writing ONNX needs the package onnx: pip install 'bedplate[onnx]'") from None
    graph = _Graph(onnx)
    if skin.classical is None:
        features = graph.add_input("features", "FLOAT", ["N", arrays["weight"].shape[1]])
    else:
        features = _tfidf(graph, graph.add_input("lower_case_text", "STRING", ["N"]), skin.classical)
    logits = graph.add("Gemm", features, graph.constant(arrays["weight"]), graph.constant(arrays["bias"]), transB=1)
    _outputs(graph, logits, skin.output)
    described = {"labels": skin.head and skin.head.labels, "head": head_fields(skin)}
    facts = {name: json.dumps(value, ensure_ascii=False) for name, value in described.items()}
    return graph.model(skin.name, {**facts, "template": skin.prompt.template})


def _tfidf(graph: _Graph, text: str, model: Classical) -> str:
    """[N] texts → [N, V] features of unit length."""
    how = {"mark": 0, "mincharnum": 1, "pad_value": "", "tokenexp": RUNTIME_WORD}
    words = graph.add("Tokenizer", text, domain="com.microsoft", **how)
    # one more column of no word, for texts that have none
    rows = graph.add("Concat", graph.add("Shape", text), graph.constant(np.array([1])), axis=0)
    none = graph.add("Expand", graph.constant(np.array([""], dtype=object)), rows)
    words = graph.add("Concat", words, none, axis=1)
    sizes = range(1, model.words[1] + 1)
    by_size = {n: [(i, t.split(" ")) for i, t in enumerate(model.terms) if t.count(" ") == n - 1] for n in sizes}
    starts = np.cumsum([0, *(n * len(by_size[n]) for n in sizes)])[:-1]
    counts = graph.add(
        "TfIdfVectorizer",
        words,
        mode="TF",
        min_gram_length=model.words[0],
        max_gram_length=model.words[1],
        max_skip_count=0,
        ngram_counts=starts.tolist(),
        ngram_indexes=[i for n in sizes for i, _ in by_size[n]],
        pool_strings=[word for n in sizes for _, several in by_size[n] for word in several],
    )
    if model.sublinear:  # 1 + log n, and 0 where n is 0
        unit = graph.constant(np.float32(1))
        counts = graph.add("Add", graph.add("Log", graph.add("Max", counts, unit)), graph.add("Min", counts, unit))
    weighed = graph.add("Mul", counts, graph.constant(model.idf))
    length = graph.add("ReduceL2", weighed, axes=[1], keepdims=1)
    return graph.add("Div", weighed, graph.add("Max", length, graph.constant(np.float32(1e-30))))


def _outputs(graph: _Graph, logits: str, output: Any) -> None:
    """`log_probabilities` [N, C]; and `chosen` [N, C], or `label` [N]."""
    labels: tuple[str, ...] = output.labels
    if output.probability_threshold is not None:
        scores = graph.add("Neg", graph.add("Softplus", graph.add("Neg", logits)))
        chosen = graph.add("GreaterOrEqual", scores, graph.constant(np.float32(np.log(output.probability_threshold))))
        graph.add_output(chosen, "chosen", "BOOL", ["N", len(labels)])
    else:
        scores = graph.add("LogSoftmax", logits, axis=1)
        best = graph.add("ArgMax", logits, axis=1, keepdims=0)
        label = graph.add("Gather", graph.constant(np.array(labels, dtype=object)), best)
        if output.abstain is not None:
            sure = graph.add("ReduceMax", scores, axes=[1], keepdims=0)
            unsure = graph.add("Less", sure, graph.constant(np.float32(np.log(output.abstain.below))))
            label = graph.add("Where", unsure, graph.constant(np.array([output.abstain.answer], dtype=object)), label)
        graph.add_output(label, "label", "STRING", ["N"])
    graph.add_output(scores, "log_probabilities", "FLOAT", ["N", len(labels)])


class _Graph:
    """Nodes as they are added, each with one output."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def add_input(self, name: str, dtype: str, shape: list[int | str]) -> str:
        self._inputs.append(self._value_info(name, dtype, shape))
        return name

    def constant(self, value: Any) -> str:
        """Its name. Texts are an array of objects."""
        name, array = f"constant_{len(self._constants)}", np.asarray(value)
        if array.dtype == object:
            texts = [text.encode() for text in array.tolist()]
            data_type = self._onnx.TensorProto.STRING
            self._constants.append(self._onnx.helper.make_tensor(name, data_type, array.shape, texts))
        else:
            self._constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def add_output(self, name: str, called: str, dtype: str, shape: list[int | str]) -> None:
        self._nodes.append(self._onnx.helper.make_node("Identity", [name], [called]))
        self._outputs.append(self._value_info(called, dtype, shape))

    def model(self, name: str, facts: dict[str, str]) -> bytes:
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._constants)
        sets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        producer = {"producer_name": "bedplate", "producer_version": __version__}
        proto = helper.make_model(graph, opset_imports=sets, ir_version=IR, **producer)
        helper.set_model_props(proto, facts)
        return proto.SerializeToString(deterministic=True)

    def _value_info(self, name: str, dtype: str, shape: list[int | str]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, dtype), shape)
