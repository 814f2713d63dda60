"""Families of encoders, with their classifiers, against transformers: outputs, loss, gradients, padding, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.encoders import ENCODERS, converted
from tests.near import assert_near

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.conversion import write_parameters
from bedplate.models.checkpoints.export import export_base
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.models.model import Model
from bedplate.models.specs.transformer import Rope

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}


def outputs(model: Model, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the reference gives: logits of a classifier, or the states of real tokens."""
    head = model.spec.classifier
    if head is None:
        return hidden[mask]
    if head.pooling == "mean":
        pooled = torch.stack([row[row_mask].mean(0) for row, row_mask in zip(hidden, mask, strict=True)])
    else:
        pooled = hidden[torch.arange(len(mask)), mask.int().argmax(1)]
    return model.label_logits(pooled)


@pytest.mark.parametrize(("dtype", "seed"), [(torch.float32, 0), (torch.float64, 1), (torch.float32, 2)])
@pytest.mark.parametrize("name", ENCODERS)
def test_outputs_loss_and_gradients(name: str, dtype: torch.dtype, seed: int) -> None:
    shape = {} if seed else {"hidden_size": 24, "num_attention_heads": 2}
    reference = ENCODERS[name].random_model(seed, dtype, **shape)
    ours, family = converted(reference, dtype)
    tokens = torch.randint(5, 97, (3, 40))
    everything = torch.ones_like(tokens, dtype=torch.bool)
    output = outputs(ours, ours(Inputs(tokens)).hidden, everything)
    if ours.spec.classifier is None:
        expected = reference(tokens).last_hidden_state[everything]
        their_loss, loss = expected.square().mean(), output.square().mean()
    else:
        labels = torch.randint(0, len(ours.spec.classifier.labels), (3,))
        regression = ours.spec.classifier.problem == "score"
        reply = reference(tokens, labels=labels.to(dtype) if regression else labels)
        expected, their_loss = reply.logits, reply.loss
        loss = F.mse_loss(output[:, 0], labels.to(dtype)) if regression else F.cross_entropy(output, labels)
    assert_near(output, expected, rel=TOLERANCE[dtype])
    assert_near(loss, their_loss, rel=TOLERANCE[dtype])
    their_loss.backward()
    loss.backward()
    theirs = {n: p.grad for n, p in reference.named_parameters()}
    grads = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert grads.keys() >= {n for n, _ in ours.named_parameters() if not n.startswith("pooler.")}
    # Without rotary positions the gradient of a key's bias is rounding: it adds the same to all of a query's scores.
    noise = 1e-7 * max(float(gradient.abs().max()) for gradient in theirs.values() if gradient is not None)
    for their_name, gradient in write_parameters(family, ours.spec, grads):
        deviation = float((gradient - theirs[their_name]).abs().max())
        assert deviation <= 1e-4 * float(theirs[their_name].abs().max()) + noise, their_name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ENCODERS)
def test_padded_batches(name: str, side: str) -> None:
    reference = ENCODERS[name].random_model(0, torch.float32)
    ours, _ = converted(reference, torch.float32)
    lengths = torch.tensor([30, 17, 1])
    mask = torch.arange(30) < lengths[:, None]
    mask = mask.flip(1) if side == "left" else mask
    tokens = torch.randint(5, 97, (3, 30)).masked_fill(~mask, reference.config.pad_token_id)
    hidden = ours(Inputs(tokens, segments=torch.where(mask, 1, -1))).hidden
    # Left of a text transformers' BERT counts padding as positions, and every classifier reads the row's first token.
    places = (mask.cumsum(1) - 1).clamp(min=0) + ours.spec.position.offset
    positions = {} if ours.spec.position.rope is not None else {"position_ids": places}
    body = getattr(reference, reference.base_model_prefix, reference)
    states = body(tokens, attention_mask=mask.long(), **positions).last_hidden_state
    assert_near(hidden[mask], states[mask], rel=1e-5)
    if ours.spec.classifier is not None and side == "right":
        assert_near(outputs(ours, hidden, mask), reference(tokens, attention_mask=mask.long()).logits, rel=1e-5)
    # Unpadded: all texts in one row, each seeing itself alone.
    packed = Inputs(tokens[mask][None], segments=(torch.arange(3)[:, None].expand_as(mask)[mask] + 1)[None])
    assert_near(ours(packed).hidden[0], hidden[mask], rel=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_files_both_ways(name: str, tmp_path: Path) -> None:
    reference = ENCODERS[name].random_model(0, torch.float32)
    reference.save_pretrained(tmp_path / "theirs")
    base = load_base(tmp_path / "theirs")
    export_base(base, tmp_path / "ours")
    reread = type(reference).from_pretrained(tmp_path / "ours")
    state = reread.state_dict()
    assert state.keys() == reference.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in reference.state_dict().items())
    assert reread.config.id2label == reference.config.id2label
    reloaded = load_base(tmp_path / "ours")
    assert (reloaded.spec, reloaded.identity) == (base.spec, base.identity)


def refused(config: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedModelError, match=match):
        FAMILIES["hf", config["model_type"]].to_spec(config)


def test_configs_that_are_refused() -> None:
    def config(name: str, **changes: Any) -> dict[str, Any]:
        return ENCODERS[name].random_model(0, torch.float32).config.to_dict() | changes

    classifier = ["ModernBertForSequenceClassification"]
    refused(config("bert", architectures=["BertForTokenClassification"]), "head of BertForTokenClassification is not")
    refused(config("roberta", position_embedding_type="relative_key"), "position_embedding_type = 'relative_key'")
    refused(config("bert", is_decoder=True), "is_decoder = True")
    refused(config("modernbert", layer_types=["full_attention"]), "1 layer_types for 4 layers")
    refused(config("modernbert", layer_types=["linear_attention"] * 4), "layer_types = 'linear_attention'")
    scaled = {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}
    refused(config("modernbert", rope_parameters=scaled), "rope_parameters.full_attention: rope_type = 'yarn'")
    refused(config("modernbert", architectures=classifier, classifier_pooling="max"), "classifier_pooling = 'max'")
    refused(config("modernbert", architectures=classifier, id2label={0: "a", 2: "b"}), "without a gap")
    refused(config("modernbert", architectures=classifier, id2label={0: "a", 1: "a"}), "labels must differ")
    refused(config("modernbert", architectures=classifier, problem_type="ranking"), "problem_type = 'ranking'")
    odd = {"activation_fn": "my.module.Softplus"}
    refused(
        config("modernbert", architectures=classifier, sentence_transformers=odd), "activation 'my.module.Softplus'"
    )
    refused(config("modernbert", some_new_field=3), "unsupported field 'some_new_field'")


def test_older_spelling_of_modernbert() -> None:
    config = ENCODERS["modernbert"].random_model(0, torch.float32).config.to_dict()
    spec = FAMILIES["hf", "modernbert"].to_spec(config)
    for name in ("layer_types", "rope_parameters"):
        del config[name]
    older = {"global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
    assert FAMILIES["hf", "modernbert"].to_spec(config | older) == spec
    assert FAMILIES["hf", "modernbert"].to_spec(config | older | {"local_rope_theta": 99.0}) == spec.with_(
        local_rope=Rope(99.0)
    )


def test_labels_that_are_not_the_heads(tmp_path: Path) -> None:
    ENCODERS["bert, three labels"].random_model(0, torch.float32).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "no", "1": "yes"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"the head has 3 rows, but the config names 2 labels: no, yes"):
        load_base(tmp_path)


def test_a_sentence_encoder_saved_as_a_classifier_has_no_head(tmp_path: Path) -> None:
    ENCODERS["bert"].random_model(0, torch.float32).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_base(tmp_path).spec.classifier is None
