"""Sentence encoders and cross-encoders against sentence-transformers, from directories that the library wrote."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tests.encoders import ENCODERS

from bedplate.core.errors import CheckpointError, ContextLengthExceeded, RequestError, UnsupportedModelError
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_base

TEXTS = ["a small red fox", "Fox", "the fox and the lazy dog " * 9, "dog dog a the and small, lazy? FOX!", "x"]
WORDS = ("a", "the", "and", "small", "red", "lazy", "fox", "dog", "is", "query", "passage", ":", ",", "!", "?")


def write_tokenizer(directory: Path, tokenizer_class: str = "BertTokenizer") -> None:
    """A WordPiece vocabulary, as BERT's, of a few words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *WORDS, *(f"##{letter}" for letter in "abcdefghijklmnop"), *"bcdefghijklmnopqrstuvwxyz"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({token: number for number, token in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **roles)
    tokenizer.save_pretrained(directory)
    # transformers' own class for BERT gives the types of a pair's texts, and the one that it wrote here does not
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": tokenizer_class}))


def write_body(directory: Path, name: str, **changes: Any) -> Path:
    ENCODERS[name].random_model(0, torch.float32, **changes).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_body(tmp_path_factory.mktemp("body"), "bert")


def saved(body: Path, directory: Path, *modules: Any, length: int = 24, **settings: Any) -> SentenceTransformer:
    """A sentence encoder of the library's, written to a directory."""
    encoder = SentenceTransformer(modules=[Transformer(str(body)), *modules], device="cpu", **settings)
    encoder.max_seq_length = length
    encoder.save(str(directory))
    return encoder


def assert_same_vectors(directory: Path, theirs: SentenceTransformer, **options: Any) -> None:
    with LocalModel(load_base(directory)) as model:
        ours = model.embed(TEXTS, truncate=True, **options)
        expected = theirs.encode(TEXTS, **options)
        assert ours.shape == expected.shape == (len(TEXTS), model.base.embedding_size)
        np.testing.assert_allclose(ours, expected, atol=2e-6 * np.abs(expected).max())


MODES = ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.mark.parametrize(
    "mode",
    [*(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES), ("mean", "cls"), tuple(reversed(MODES))],
    ids=str,
)
def test_poolings(body: Path, tmp_path: Path, mode: Any) -> None:
    theirs = saved(body, tmp_path / "theirs", Pooling(48, mode))
    assert_same_vectors(tmp_path / "theirs", theirs)
    export_base(load_base(tmp_path / "theirs"), tmp_path / "ours")
    assert_same_vectors(tmp_path / "ours", SentenceTransformer(str(tmp_path / "ours"), device="cpu"))


def test_dense_normalise_and_prompts(body: Path, tmp_path: Path) -> None:
    """The prompt is before each text; its tokens are not pooled where the pooling says so."""
    dense = [Dense(48, 20), Normalize(), Dense(20, 12, bias=False, activation_function=torch.nn.Identity())]
    prompts = {"query": "query: ", "document": "passage: a "}
    pooling = Pooling(48, "weightedmean", include_prompt=False)
    theirs = saved(body, tmp_path / "theirs", pooling, *dense, prompts=prompts, default_prompt_name="query")
    assert_same_vectors(tmp_path / "theirs", theirs)
    assert_same_vectors(tmp_path / "theirs", theirs, prompt_name="document")
    base = load_base(tmp_path / "theirs")
    assert base.sentence is not None
    export_base(base, tmp_path / "ours")
    reloaded = load_base(tmp_path / "ours")
    assert reloaded.sentence is not None
    assert (reloaded.identity, reloaded.sentence.spec) == (base.identity, base.sentence.spec)
    assert_same_vectors(tmp_path / "ours", SentenceTransformer(str(tmp_path / "ours"), device="cpu"))
    without = load_base(body).identity.weights_id
    assert base.identity.weights_id != without  # what stands behind the model is part of what it computes
    with LocalModel(base) as model, pytest.raises(RequestError, match="no prompt 'title'; it has document, query"):
        model.embed(["a"], prompt_name="title")


def test_longer_texts_are_cut_where_that_is_asked_for(body: Path, tmp_path: Path) -> None:
    theirs = saved(body, tmp_path, Pooling(48, "mean"), Normalize(), length=16)
    with LocalModel(load_base(tmp_path)) as model:
        long = "fox " * 40
        whole = model.embed([long])
        np.testing.assert_allclose(model.embed([long], truncate=True), theirs.encode([long]), atol=1e-6)
        theirs.max_seq_length = 9
        np.testing.assert_allclose(model.embed([long], truncate=9), theirs.encode([long]), atol=1e-6)
        assert not np.allclose(whole, theirs.encode([long]), atol=1e-3)
        with pytest.raises(ContextLengthExceeded, match="input 0 has 102 tokens"):
            model.embed(["fox " * 100])


def test_small_letters(tmp_path: Path) -> None:
    write_body(tmp_path, "bert")
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    saved(tmp_path, tmp_path / "st", Pooling(48, "mean"))
    texts = {"max_seq_length": 24, "do_lower_case": True, "unpad_inputs": False}
    (tmp_path / "st" / "sentence_bert_config.json").write_text(json.dumps(texts))
    with LocalModel(load_base(tmp_path / "st")) as model:
        small = model.embed([text.lower() for text in TEXTS], truncate=True)
        np.testing.assert_allclose(model.embed(TEXTS, truncate=True), small, atol=1e-6)


PAIRS = [(a, b) for a in TEXTS for b in TEXTS]


@pytest.mark.parametrize("activation", ["Sigmoid", pytest.param("Identity", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert, three labels", {"num_labels": 1}),
        ("roberta, a cross-encoder", {}),
        ("modernbert, three labels", {"num_labels": 1}),
    ],
)
def test_cross_encoders(tmp_path: Path, name: str, changes: dict[str, Any], activation: str) -> None:
    write_body(tmp_path / "body", name, **changes)
    theirs = CrossEncoder(str(tmp_path / "body"), device="cpu", activation_fn=getattr(torch.nn, activation)())
    theirs.save_pretrained(str(tmp_path / "theirs"))
    expected = theirs.predict(PAIRS)
    base = load_base(tmp_path / "theirs")
    export_base(base, tmp_path / "ours")
    for directory in (tmp_path / "theirs", tmp_path / "ours"):
        with LocalModel(load_base(directory)) as model:
            (label,) = theirs.model.config.id2label.values()
            scores = [row_scores[label] for row_scores in model.classify(PAIRS, truncate=True)]
            np.testing.assert_allclose(scores, expected, atol=2e-6 * max(1, np.abs(expected).max()))
    np.testing.assert_allclose(CrossEncoder(str(tmp_path / "ours"), device="cpu").predict(PAIRS), expected, atol=1e-5)


def test_classifiers(tmp_path: Path) -> None:
    """One of several labels: softmax. Any of them: each its own sigmoid. Numbers: as they are."""
    write_body(tmp_path, "bert, three labels", id2label={0: "bad", 1: "fair", 2: "good"})
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = reference(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")).logits
    base = load_base(tmp_path)
    head = base.spec.classifier
    assert head is not None
    for problem, expected in (("one", logits.softmax(-1)), ("any", logits.sigmoid()), ("score", logits)):
        base.spec = base.spec.with_(classifier=replace(head, problem=problem))
        with LocalModel(base) as model:
            distributions = model.classify(TEXTS, truncate=True)
            assert list(distributions[0]) == ["bad", "fair", "good"]
            np.testing.assert_allclose(
                [list(distribution.values()) for distribution in distributions], expected, atol=1e-5
            )
    plain = load_base(write_body(tmp_path / "plain", "bert"))
    with LocalModel(plain) as model, pytest.raises(RequestError, match="has no labels of its own"):
        model.classify(["a"])


@pytest.fixture
def directory(body: Path, tmp_path: Path) -> Path:
    saved(body, tmp_path / "st", Pooling(48, "mean"), Dense(48, 8), Normalize())
    return tmp_path / "st"


MODULE, POOLING, DENSE, CONFIG = (
    "modules.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "config_sentence_transformers.json",
)
LIBRARY = "sentence_transformers.models"
REFUSED = [
    (MODULE, {1: {"type": f"{LIBRARY}.WeightedLayerPooling"}}, "a WeightedLayerPooling after the Transformer"),
    (MODULE, {2: {"type": f"{LIBRARY}.LSTM"}}, "the module LSTM is not supported"),
    (MODULE, {2: {"type": "custom_st.MyDense"}}, "custom_st.MyDense is code of the checkpoint's own"),
    (MODULE, {2: {"path": "../other"}}, "a module outside the directory: '../other'"),
    (MODULE, {0: {"path": "0_Transformer"}}, "must be a Transformer in the directory itself"),
    (POOLING, {"pooling_mode": "attention"}, "pooling_mode = 'attention' is not supported"),
    (POOLING, {"embedding_dimension": 32}, "pools 32 features, but the model has 48"),
    (POOLING, {"pooling_mode_median": True}, "unsupported field 'pooling_mode_median'"),
    (DENSE, {"activation_function": "torch.nn.modules.activation.Softsign"}, "activation_function = .*Softsign"),
    (DENSE, {"in_features": 40}, "a Dense of 40 inputs cannot follow on 48"),
    (DENSE, {"out_features": 9}, r"size mismatch for dense\.0\.weight: .*\[8, 48\].*\[9, 48\]"),
    (DENSE, {"use_residual": True}, "use_residual = True"),
    (CONFIG, {"default_prompt_name": "title"}, "default prompt 'title'"),
    (CONFIG, {"similarity_fn_name": "maxsim"}, "similarity_fn_name = 'maxsim'"),
]


@pytest.mark.parametrize(("file", "changes", "match"), REFUSED)
def test_refused(directory: Path, file: str, changes: dict[Any, Any], match: str) -> None:
    content = json.loads((directory / file).read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    (directory / file).write_text(json.dumps(content))
    with pytest.raises((CheckpointError, UnsupportedModelError), match=match):
        load_base(directory)


def test_a_pickled_dense_is_refused(directory: Path) -> None:
    (directory / "2_Dense" / "model.safetensors").rename(directory / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_base(directory)
    shutil.rmtree(directory / "2_Dense")
    with pytest.raises(CheckpointError, match=r"2_Dense/config\.json is missing"):
        load_base(directory)


@pytest.mark.real
def test_minilm_is_what_its_library_makes_of_it(minilm_dir: Path) -> None:
    theirs = SentenceTransformer(str(minilm_dir), device="cpu").encode([*TEXTS, "word " * 300])
    with LocalModel(load_base(minilm_dir)) as model:
        ours = model.embed([*TEXTS, "word " * 300], truncate=True)
    assert (np.sum(ours * theirs, axis=1) >= 0.9999).all()
