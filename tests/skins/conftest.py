"""A tiny byte-level tokenizer with control tokens and a chat template, a tiny base, and one skin of each kind."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from bedplate.adapters.bank import Bank
from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.models.checkpoints.identity import Identity, WeightsHash
from bedplate.models.decoder import Decoder
from bedplate.models.specs.transformer import AttentionSpec, FeedForwardSpec, PositionSpec, Rope, TransformerSpec
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.prompt import Demonstration
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, LoraPart, ProbePart, Provenance, Skin
from bedplate.text.tokenizer import Tokenizer

LABELS = ("negative", "positive")
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = ["Decide whether the review is positive or negative.", "Review: a good one\nSentiment: positive"] * 20


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    import json

    directory = tmp_path_factory.mktemp("tokenizer")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "chat_template": CHAT}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_directory(directory)


@dataclass
class TinyBase:
    spec: TransformerSpec
    model: Decoder
    identity: Identity
    dtype: torch.dtype = torch.float32

    @property
    def embedding_size(self) -> int:
        return self.spec.hidden_size


@pytest.fixture(scope="session")
def base(tokenizer) -> TinyBase:
    torch.manual_seed(0)
    spec = TransformerSpec(
        kind="decoder",
        vocab_size=400,
        hidden_size=16,
        layers=2,
        context_length=256,
        attention=AttentionSpec(heads=2, kv_heads=1, head_dim=8),
        feedforward=FeedForwardSpec(size=24),
        position=PositionSpec(rope=Rope()),
    )
    model = Decoder(spec).requires_grad_(False).eval()
    digest = WeightsHash()
    for name, tensor in model.named_parameters():
        digest.add(name, tensor)
    return TinyBase(spec, model, Identity(digest.hexdigest(), tokenizer.identity, tokenizer.chat.identity))


def make_skin(base: TinyBase, skin_type: str, name: str = "sentiment", parents: tuple[str, ...] = ()) -> Skin:
    lora = probe = None
    if skin_type == "lora":
        bank = Bank(base.model)
        config = LoraConfig(r=2, alpha=4, targets=("q", "down"))
        torch.manual_seed(1)
        tensors = {k: torch.randn(v.shape) for k, v in bank.state(bank.add(config)).items()}
        lora = LoraPart(config, tensors)
    if skin_type == "probe":
        probe = ProbePart(Head(torch.randn(2, 16), torch.randn(2), LABELS), "layers.1", "last")
    return Skin(
        name=name,
        bases={"main": BaseReference.of("tiny", "llama", base.identity)},
        inputs={"review": InputField()},
        output=LabelOutput(labels=LABELS, continuations=default_continuations(LABELS), bias=(0.25, -0.5)),
        prompt=default_prompt("reviews-sentiment", "Decide.", ["review"], LABELS),
        demonstrations=(Demonstration({"review": "bäd\n"}, " negative"), Demonstration({"review": "ok"}, " positive")),
        lora=lora,
        probe=probe,
        provenance=Provenance(task="reviews-sentiment", seed=0, data={"rows": "0" * 64}, parents=parents),
        evaluated_with=EvaluatedWith(weights="float32"),
    )


@pytest.fixture(params=["prompt", "lora", "probe"])
def skin(request, base) -> Skin:
    return make_skin(base, request.param)


@pytest.fixture
def lora_skin(base) -> Skin:
    return make_skin(base, "lora")


@pytest.fixture(scope="session")
def build_skin():
    return make_skin
