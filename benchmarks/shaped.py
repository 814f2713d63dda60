"""One llama-shaped model with random weights, as ours, transformers' and litgpt's build it, and how the two peers train
it on a CPU: what pretraining is compared with."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from bedplate.models.decoder import Decoder
from bedplate.models.specs.transformer import (
    AttentionSpec,
    FeedForwardSpec,
    NormSpec,
    PositionSpec,
    Rope,
    TransformerSpec,
)


@dataclass(frozen=True)
class Sizes:
    """length: tokens of a row. The head is the token table where `tied`."""

    vocabulary: int
    length: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feedforward: int
    tied: bool = False


def our_spec(sizes: Sizes) -> TransformerSpec:
    return TransformerSpec(
        kind="decoder",
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        layers=sizes.layers,
        context_length=sizes.length,
        attention=AttentionSpec(heads=sizes.heads, kv_heads=sizes.kv_heads, head_dim=sizes.hidden // sizes.heads),
        feedforward=FeedForwardSpec(size=sizes.feedforward),
        norm=NormSpec(eps=1e-5),
        position=PositionSpec(rope=Rope()),
        tied_head=sizes.tied,
    )


def our_model(sizes: Sizes) -> Decoder:
    torch.manual_seed(0)
    return Decoder(our_spec(sizes))


def transformers_model(sizes: Sizes) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            intermediate_size=sizes.feedforward,
            max_position_embeddings=sizes.length,
            tie_word_embeddings=sizes.tied,
            use_cache=False,
        )
    )


def litgpt_model(sizes: Sizes, fabric: Any) -> Any:
    """With the first weights that its `pretrain` gives."""
    config_file, model_file, pretrain = (
        importlib.import_module(f"litgpt.{name}") for name in ("config", "model", "pretrain")
    )
    torch.manual_seed(0)
    config = config_file.Config(
        block_size=sizes.length,
        n_layer=sizes.layers,
        n_embd=sizes.hidden,
        n_head=sizes.heads,
        n_query_groups=sizes.kv_heads,
        head_size=sizes.hidden // sizes.heads,
        intermediate_size=sizes.feedforward,
        vocab_size=sizes.vocabulary,
        padded_vocab_size=sizes.vocabulary,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = model_file.GPT(config)
    if sizes.tied:
        model.transformer.wte.weight = model.lm_head.weight
    pretrain.initialize_weights(fabric, model, n_layer=config.n_layer, n_embd=config.n_embd)
    return model


def trainer_arguments(out: str, rows: int, dtype: str, **overrides: Any) -> Any:
    """The Trainer's, for one pass over its data in steps of so many rows. overrides: further fields."""
    from transformers import TrainingArguments

    return TrainingArguments(
        out,
        per_device_train_batch_size=rows,
        num_train_epochs=1,
        use_cpu=True,
        bf16=dtype == "bfloat16",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **overrides,
    )


def litgpt_fabric(dtype: str) -> Any:
    precision = "bf16-mixed" if dtype == "bfloat16" else "32-true"
    return importlib.import_module("lightning").Fabric(accelerator="cpu", devices=1, precision=precision)


def litgpt_step(fabric: Any, model: Any, optimizer: Any, rows_BT: torch.Tensor, max_norm: float) -> float:
    """A step of its `pretrain` on rows of one token more than the model reads; the loss."""
    utils = importlib.import_module("litgpt.utils")
    logits = model(rows_BT[:, :-1].contiguous())
    loss = utils.chunked_cross_entropy(logits, rows_BT[:, 1:].contiguous())
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss)
