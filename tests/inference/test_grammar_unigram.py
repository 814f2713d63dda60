"""Grammars on Unigram vocabularies (SentencePiece), where tokens begin with a space that the text does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import jsonschema
import pytest
import transformers
from tests.seq2seq import write_tiny_t5

from bedplate.core.errors import RequestError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.grammar import Grammars
from bedplate.inference.engine.requests import Generate, Generation, Grammar, Sampling
from bedplate.models.checkpoints.base import load_base
from bedplate.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a b", "ключ"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "n"],
    "additionalProperties": False,
}
TEXTS = ('{"kind":"a b","n":12}', '{"kind": "ключ", "n": 40} 3 5 6 7 8 9', "yes no a/b maybe  two", "one\nline: [x]")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_t5(tmp_path_factory.mktemp("t5") / "t5", TEXTS * 4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_valid_and_what_allows_all_changes_nothing(directory: Path, temperature: float) -> None:
    base = load_base(directory)
    tokenizer = base.need_tokenizer()
    prompts = [tuple(tokenizer.encode_prompt(f"yes {number} maybe")) for number in range(3, 10)]
    sampling = [Sampling(max_tokens=60, temperature=temperature, seed=seed) for seed in range(len(prompts))]

    with Engine(base) as engine:

        def run(grammar: Grammar | None) -> list[Generation]:
            pairs = zip(prompts, sampling, strict=True)
            return cast("list[Generation]", engine.run([Generate(ids, how, grammar) for ids, how in pairs]))

        for answer in run(Grammar("json_schema", json.dumps(SCHEMA))):
            assert answer.finish_reason == "stop"
            jsonschema.validate(json.loads(answer.text), SCHEMA)
        assert {answer.text for answer in run(Grammar("choice", '["yes", "two maybe"]'))} <= {"yes", "two maybe"}
        free = run(None)
        for answer, constrained in zip(free, run(Grammar("regex", r"(.|\n)*")), strict=True):
            first = tokenizer.id_to_token(answer.token_ids[0]) if answer.token_ids else ""
            if first and first.startswith("▁"):  # as every text is tokenised
                assert constrained.token_ids == answer.token_ids


def test_texts_are_accepted_as_they_are_tokenised(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [1])
    schema = Grammar("json_schema", json.dumps(SCHEMA))
    assert grammars.accepts(schema, '{"kind":"a b","n":12}')
    assert not grammars.accepts(schema, '{"kind":"a","n":12}')
    for grammar_type, source, right, wrong in (
        ("regex", "[a-y]+( two)?", "yes two", "yes one"),
        ("choice", '["yes", "no"]', "no", "maybe"),
        ("ebnf", 'start: "yes" rest\nrest: " no"', "yes no", "yesno"),
    ):
        assert grammars.accepts(Grammar(grammar_type, source), right)
        assert not grammars.accepts(Grammar(grammar_type, source), wrong)
    with pytest.raises(RequestError, match="that this base's tokens can write"):
        grammars.compile(Grammar("choice", '["Ω"]'))


def test_tokens_in_the_midst_of_a_text_spell_it(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert tokenizer.drops_space
    for text in ('"n":12}', " ключ", "a b  two", "maybe"):
        ids = tokenizer.spelled(text)
        assert ids is not None
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
        assert theirs.decode([*theirs("yes", add_special_tokens=False).input_ids, *ids]) == f"yes{text}"
    assert tokenizer.spelled("Ω") is None
