"""Training a mixture of experts against the dense model of equal active work: tokens per second of whole steps.

Both are decoders of one width; the mixture has `--experts` experts of which `--per-token` see a token, each as much
narrower as there are of them for a token. A step is a packed batch forwards and backwards, the clipping and AdamW over
all of the model's parameters, of which the mixture has several times as many. transformers' Mixtral of the same sizes
is reported beside it, with torch's grouped products and with a loop, whichever is faster here.

usage: experts.py [--dtype float32] [--experts 8] [--per-token 2] [--tokens 4096] [--repeats 7]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from bedplate.models.decoder import Decoder
from bedplate.models.precision import DTYPES
from bedplate.models.specs.transformer import (
    AttentionSpec,
    Experts,
    FeedForwardSpec,
    NormSpec,
    PositionSpec,
    Rope,
    TransformerSpec,
)
from bedplate.training.batch import TrainingExample, pack_examples
from bedplate.training.config import TrainConfig
from bedplate.training.objectives.language import NextToken
from bedplate.training.optimizers import Optimization
from comparison import Row, best_seconds, interleaved, need, report, start
from peers import THREADS

GOAL = 0.7
LENGTH, VOCABULARY = 512, 8192
CONFIG = TrainConfig(learning_rate=1e-4)
DENSE = TransformerSpec(
    kind="decoder",
    vocab_size=VOCABULARY,
    hidden_size=512,
    layers=4,
    context_length=LENGTH,
    attention=AttentionSpec(heads=8, kv_heads=4, head_dim=64),
    feedforward=FeedForwardSpec(size=1536),
    norm=NormSpec(eps=1e-5),
    position=PositionSpec(rope=Rope()),
    tied_head=True,
)


def documents(tokens: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, VOCABULARY, (LENGTH,), generator=generator).tolist() for _ in range(tokens // LENGTH)]


def our_step(spec: TransformerSpec, dtype: torch.dtype, rows: list[list[int]]) -> Callable[[], None]:
    """A step of the training loop's parts on one batch."""
    torch.manual_seed(0)
    model = Decoder(spec, dtype=dtype).train()
    optimization, objective = Optimization(model.named_parameters(), CONFIG), NextToken()
    loss = (False, *(True,) * (LENGTH - 1))
    batch = pack_examples([TrainingExample(tuple(ids), loss, str(n)) for n, ids in enumerate(rows)])
    weights, void = objective.weights(batch), torch.zeros(())

    def step() -> None:
        terms = objective({"policy": model}, batch)
        sum(term.total / weights[name] for name, term in terms.items()).backward()  # type: ignore[union-attr]
        optimization.collect()
        optimization.clip()
        optimization.step(CONFIG.learning_rate, void)

    return step


def their_step(part: Experts, dtype: torch.dtype, rows: list[list[int]], products: str) -> Callable[[], None]:
    """The same of transformers, rows unpadded, with torch's own AdamW."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": DENSE.hidden_size,
        "num_hidden_layers": DENSE.layers,
        "num_attention_heads": DENSE.attention.heads,
        "num_key_value_heads": DENSE.attention.kv_heads,
        "intermediate_size": part.feedforward_size,
        "num_local_experts": part.count,
        "num_experts_per_tok": part.per_token,
        "tie_word_embeddings": True,
        "use_cache": False,
    }
    torch.manual_seed(0)
    config: Any = MixtralConfig(**sizes)
    config._experts_implementation = products
    model: Any = MixtralForCausalLM(config)
    model.to(dtype).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=CONFIG.learning_rate, fused=True)
    tokens = torch.tensor(rows)

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--per-token", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    options = start(parser).options
    torch.set_num_threads(THREADS)
    peer_version = need("transformers", "transformers")
    dtype, rows = DTYPES[options.dtype], documents(options.tokens)
    part = Experts(options.experts, options.per_token, DENSE.feedforward.size // options.per_token)
    ours, dense = our_step(DENSE.with_(experts=part), dtype, rows), our_step(DENSE, dtype, rows)
    theirs = {name: their_step(part, dtype, rows, name) for name in ("grouped_mm", "eager")}
    setting = min(theirs, key=lambda name: best_seconds(theirs[name]))
    seconds = interleaved({"ours": ours, "dense": dense, "theirs": theirs[setting]}, options.repeats)
    speeds = {name: len(rows) * LENGTH / duration for name, duration in seconds.items()}
    print(
        f"{part.count} experts of {part.feedforward_size}, {part.per_token} a token, against {DENSE.feedforward.size} "
        f"dense; {len(rows) * LENGTH} tokens a step, {options.dtype}, {THREADS} threads, medians of {options.repeats}"
    )
    report(
        [
            Row("experts_training", speeds["ours"], speeds["dense"], "tok/s", "dense", "-", GOAL),
            Row(
                "experts_training_transformers",
                speeds["ours"],
                speeds["theirs"],
                "tok/s",
                "transformers",
                peer_version,
                peer_setting=setting,
            ),
        ]
    )


if __name__ == "__main__":
    main()
