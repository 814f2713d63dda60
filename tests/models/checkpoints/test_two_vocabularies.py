"""An encoder–decoder that writes other tokens than it reads, with a tokenizer for each, against transformers'."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.seq2seq import SPECIAL, unigram
from transformers import AutoTokenizer, MarianConfig, MarianMTModel, PreTrainedTokenizerFast

from bedplate.core.errors import CheckpointError, RequestError
from bedplate.evaluation.suites.general_text import GeneralText
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.text.directory import TARGET_FILE

ENGLISH = ["the cat sat on the mat", "a dog ran to the old barn", "birds sing in the trees at dawn"] * 4
GERMAN = ["die Katze saß auf der Matte", "ein Hund lief zur alten Scheune", "Vögel singen im Morgengrauen"] * 4


def write(directory: Path) -> MarianMTModel:
    directory.mkdir(parents=True)
    source, target = unigram(ENGLISH, 60), unigram(GERMAN, 70)
    assert source.get_vocab_size() < target.get_vocab_size()
    config = MarianConfig(
        vocab_size=source.get_vocab_size(),
        decoder_vocab_size=target.get_vocab_size(),
        share_encoder_decoder_embeddings=False,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        init_std=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MarianMTModel(config).eval()
    model.save_pretrained(directory)
    source.save(str(directory / "tokenizer.json"))
    target.save(str(directory / TARGET_FILE))
    roles = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles})
    )
    return model


def written(model: Any, ids: Sequence[int]) -> list[int]:
    with torch.no_grad():
        generated = model.generate(torch.tensor([list(ids)]), max_new_tokens=12, do_sample=False, num_beams=1)
    return generated[0, 1:].tolist()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MarianMTModel]:
    directory = tmp_path_factory.mktemp("marian") / "base"
    return directory, write(directory)


def test_each_side_has_its_tokens(pair: tuple[Path, MarianMTModel]) -> None:
    directory, theirs = pair
    source = AutoTokenizer.from_pretrained(directory)
    target = PreTrainedTokenizerFast(tokenizer_file=str(directory / TARGET_FILE))
    with LocalModel(load_base(directory)) as model:
        tokenizer = model.tokenizer
        assert tokenizer.encode_prompt("the old cat") == source("the old cat").input_ids
        assert tokenizer.encode_answer("die alte Katze") == target("die alte Katze").input_ids
        assert [list(encoder_input.ids) for encoder_input in tokenizer.encoder_inputs(["the dog"])] == [
            source("the dog").input_ids
        ]
        for text in ENGLISH[:3]:
            expected = written(theirs, source(text).input_ids)
            generation = model.generate(text, max_tokens=12)
            assert list(generation.token_ids) == [token for token in expected if token != 1]
            assert generation.text == target.decode(expected, skip_special_tokens=True)
        # Scored as an answer of the other vocabulary.
        ids = target("ein Hund").input_ids
        with torch.no_grad():
            read = torch.tensor([source("a dog").input_ids])
            loss = theirs(input_ids=read, labels=torch.tensor([ids])).loss
        assert model.score("a dog", ["ein Hund"])[0] == pytest.approx(-float(loss) * len(ids), rel=1e-4)
        highest = model.base.spec.source_vocab_size
        with pytest.raises(RequestError, match=f"token id {highest} is outside the vocabulary of {highest}"):
            model.generate([highest], max_tokens=2)
        document = GeneralText("a", ENGLISH[0])
        [request] = document.requests(model)
        half = len(tokenizer.reading.encode(ENGLISH[0])) // 2
        continuation = tokenizer.reading.decode(tokenizer.reading.encode(ENGLISH[0])[half:])
        assert request.continuations == (tuple(tokenizer.encode(continuation)),)


def test_both_are_exported_and_read_again(pair: tuple[Path, MarianMTModel], tmp_path: Path) -> None:
    directory, theirs = pair
    base = load_base(directory)
    out = export_base(base, tmp_path / "out")
    reloaded = load_base(out)
    assert reloaded.identity == base.identity
    assert reloaded.spec == base.spec
    read = MarianMTModel.from_pretrained(out).state_dict()
    assert all(torch.equal(read[name], value) for name, value in theirs.state_dict().items())
    base_tokenizer, reloaded_tokenizer = base.need_tokenizer(), reloaded.need_tokenizer()
    assert base_tokenizer.encode_prompt(ENGLISH[1]) == reloaded_tokenizer.encode_prompt(ENGLISH[1])
    assert base_tokenizer.encode_answer(GERMAN[1]) == reloaded_tokenizer.encode_answer(GERMAN[1])


def test_vocabularies_that_do_not_fit_the_config_are_refused(pair: tuple[Path, MarianMTModel], tmp_path: Path) -> None:
    directory, _ = pair
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    paths = tmp_path / "tokenizer.json", tmp_path / TARGET_FILE
    source, target = (file.read_bytes() for file in paths)
    paths[0].write_bytes(target)
    with pytest.raises(CheckpointError, match="it is another model's tokenizer"):
        load_base(tmp_path)
    paths[0].write_bytes(source)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=f"tells of two vocabularies, but there is no {TARGET_FILE}"):
        load_base(tmp_path)
    paths[1].write_bytes(target)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"share_encoder_decoder_embeddings": True}))
    with pytest.raises(CheckpointError, match="decoder_vocab_size"):
        load_base(tmp_path)
