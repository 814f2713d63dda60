"""GGUF files of T5: read back as what was written, run by llama.cpp with its logits, and texts cut as it cuts."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.seq2seq import unigram, write_tiny_t5
from tokenizers import Regex, Tokenizer, normalizers

from bedplate.core.errors import TokenizerError, UnsupportedModelError
from bedplate.hub import cache
from bedplate.hub.catalog import CATALOG
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_gguf
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.text.directory import TokenizerParts
from bedplate.text.gguf_fields import fields_from_parts, parts_from_fields

TEXTS = ["the cat sat on the mat", "a dog ran to the old barn", "birds sing in the trees at dawn"] * 4
STRINGS = (
    *("Fix the flaky login test, then re-run CI!", "ﬁne  ｆｕｌｌ width — “quotes”…", "naïve Ünïcode é", "日本語"),
    *("  two  spaces  ", "tabs\tand\nlines", "50% of £3.20 = £1.60", "under_score/slash\\back", "▁mark", "a </s> b"),
)
ROLES = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """With the normalisation that a GGUF file can say, but for the table that a trainer compiles."""
    steps = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def tiny(directory: Path, flan: bool) -> Base:
    write_tiny_t5(directory, TEXTS, flan=flan, size=64)
    file = str(directory / "tokenizer.json")
    plain(Tokenizer.from_file(file)).save(file)
    return load_base(directory)


@pytest.mark.parametrize("flan", [True, False])
def test_a_file_is_read_back_as_the_same_base(flan: bool, tmp_path: Path) -> None:
    base = tiny(tmp_path / "hf", flan)
    reloaded = load_base(export_gguf(base, tmp_path / "x.gguf", "f32"), dtype="float32")
    assert reloaded.spec == base.spec
    assert reloaded.identity.weights_id == base.identity.weights_id
    assert reloaded.decoder_start == base.decoder_start == (0,)
    assert reloaded.text_ends == base.text_ends == {1}
    with LocalModel(base) as original, LocalModel(reloaded) as restored:
        for text in TEXTS[:3]:
            assert original.tokenizer.encode_prompt(text) == restored.tokenizer.encode_prompt(text)
            assert original.generate(text, max_tokens=8).token_ids == restored.generate(text, max_tokens=8).token_ids
    # The tables of biases stay whole.
    half = load_base(export_gguf(base, tmp_path / "f16.gguf", "f16"), dtype="float32").model.state_dict()
    name, ours = "encoder.relative_positions.weight", base.model.state_dict()
    assert torch.equal(half[name], ours[name])
    assert torch.equal(half["embedding.weight"], ours["embedding.weight"].half().float())


def test_what_the_format_cannot_say_is_refused() -> None:
    family = FAMILIES["gguf", "t5"]
    example: dict[str, Any] = dict(family.examples[0])
    for field, value, named in (
        ("relative_attention_max_distance", 64, "relative_bias"),
        ("feed_forward_proj", "gated-silu", "activation"),
        ("tie_word_embeddings", False, "scales|tied_head"),
    ):
        spec = FAMILIES["hf", "t5"].to_spec(example | {field: value, "scale_decoder_outputs": True})
        with pytest.raises(UnsupportedModelError, match=rf"GGUF's t5 cannot say that the encoder's ({named}) is"):
            family.to_config(spec)
    with pytest.raises(TokenizerError, match="of Unigram tokenizers only those can be written"):
        fields_from_parts(TokenizerParts(unigram(TEXTS), ROLES, (1,), None, "x"))


BACKEND = plain(unigram(TEXTS))


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("abcdeghimnorst  ▁,.é\n<>s/"), max_size=40))
def test_a_vocabulary_goes_there_and_back(text: str) -> None:
    parts = TokenizerParts(BACKEND, ROLES, (1,), None, "x")
    restored = parts_from_fields(fields_from_parts(parts))
    assert restored.roles == ROLES
    assert restored.eos_ids == (1,)
    for special in (False, True):
        ids = BACKEND.encode(text, add_special_tokens=special).ids
        assert restored.backend.encode(text, add_special_tokens=special).ids == ids
    assert restored.backend.decode(ids) == BACKEND.decode(ids)


# --- llama.cpp


class LlamaCpp:
    """Its encoder and decoder, through its C interface: the binding's own class runs decoders alone."""

    def __init__(self, path: Path, vocabulary_only: bool = False) -> None:
        self.lib = pytest.importorskip("llama_cpp")
        params = self.lib.llama_model_default_params()
        params.vocab_only = vocabulary_only
        self.quiet = self.lib.llama_log_callback(lambda *_: None)
        self.lib.llama_log_set(self.quiet, ctypes.c_void_p(0))
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        assert self.model

    def tokens(self, text: str) -> list[int]:
        vocabulary, raw = self.lib.llama_model_get_vocab(self.model), text.encode()
        room = (self.lib.llama_token * (2 * len(raw) + 8))()
        count = self.lib.llama_tokenize(vocabulary, raw, len(raw), room, len(room), True, True)
        assert count >= 0
        return list(room[:count])

    def logits(self, read: list[int], written: list[int]) -> torch.Tensor:
        lib, params = self.lib, self.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = 0
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED  # which computes in half precision
        context = lib.llama_init_from_model(self.model, params)
        for run, ids in ((lib.llama_encode, read), (lib.llama_decode, written)):
            batch = lib.llama_batch_init(len(ids), 0, 1)
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            assert run(context, batch) == 0
            lib.llama_batch_free(batch)
        size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        outputs = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(written), size)).copy()
        lib.llama_free(context)
        return torch.from_numpy(outputs)


def logits(base: Base, read: list[int], written: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        states = base.model(Inputs(torch.tensor([written]), encoder=Inputs(torch.tensor([read])))).hidden[0]
        return base.model.head(states)


@pytest.mark.slow
@pytest.mark.parametrize("flan", [True, False])
def test_llamacpp_computes_the_same(flan: bool, tmp_path: Path) -> None:
    base = tiny(tmp_path / "hf", flan)
    theirs = LlamaCpp(export_gguf(base, tmp_path / "x.gguf", "f32"))
    tokenizer = base.need_tokenizer()
    read, written = tokenizer.encode_prompt(" ".join(TEXTS)), [0, *tokenizer.encode_prompt(TEXTS[2])]
    assert len(read) > 150  # beyond the bias's last bucket
    expected = theirs.logits(read, written)
    ours = logits(base, read, written) / (1 if flan else 64**-0.5)  # it does not scale the first T5's head
    # It looks gelu up in half precision.
    assert float((ours - expected).norm() / expected.norm()) < (1e-3 if flan else 1e-5)


@pytest.mark.slow
@pytest.mark.real
def test_a_real_one_is_cut_and_run_as_llamacpp_does(tmp_path: Path) -> None:
    base = load_base(cache.ensure(CATALOG["flan-t5-small-titles"], quiet=True))
    path = export_gguf(base, tmp_path / "x.gguf", "f32")
    theirs, tokenizer = LlamaCpp(path), load_base(path).need_tokenizer()
    strings = [*TEXTS[:3], *STRINGS]
    differ = [text for text in strings if tokenizer.encode_prompt(text) != theirs.tokens(text)]
    assert not differ
    read, written = tokenizer.encode_prompt(" ".join(strings)), [0, *tokenizer.encode_prompt(strings[3])]
    ours, expected = logits(base, read, written), theirs.logits(read, written)
    assert float((ours - expected).norm() / expected.norm()) < 5e-3
    assert bool((ours.argmax(-1) == expected.argmax(-1)).all())
