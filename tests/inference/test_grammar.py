"""Grammars: what is generated under them, against `jsonschema` and `re`; what is refused, and what it costs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedplate.core.errors import RequestError
from bedplate.inference.engine.grammar import CACHED, Grammars, Matcher, allowed_ids, mask_words, unpack, withhold
from bedplate.inference.engine.requests import Grammar, Sampling
from bedplate.inference.engine.row_state import RowState
from bedplate.inference.engine.sampler import sample
from bedplate.text.calls.call_grammar import call_grammar_source
from bedplate.text.calls.reading import CallReader
from bedplate.text.calls.tools import Tool
from bedplate.text.tokenizer import Tokenizer

END = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_dir)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size, [END])


def generated(
    grammars: Grammars, tokenizer: Tokenizer, grammar: Grammar, seed: int, limit: int = 400, **changes: Any
) -> tuple[str, str]:
    """Text and finish reason of a model whose logits are noise: whatever is allowed gets its turn."""
    noise = torch.Generator().manual_seed(seed)
    sampling = Sampling(**{"max_tokens": limit, "temperature": 1.0, "seed": seed, **changes})
    row = RowState(sampling, (1,), matcher=grammars.matcher(grammar), end_ids=frozenset({END}))
    reason = "length"
    while len(row.output) < limit:
        logits = torch.randn(1, tokenizer.vocab_size, generator=noise) * 3
        token = int(sample(logits, [row])[0])
        assert row.failure is None
        if row.ends(token):
            reason = "stop"
            break
        row.append(token)
        if row.complete:
            reason = "stop"
            break
    return b"".join(map(tokenizer.token_bytes, row.output)).decode("utf-8", errors="replace"), reason


# --- schemas that the grammar below makes, each of which has small values

NAMES = st.sampled_from(["a", "b c", "ключ", 'q"uote', "x-y"])
LEAVES = st.one_of(
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-50, 50),
        st.integers(0, 200),
    ),
    st.builds(
        lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span},
        st.integers(0, 4),
        st.integers(0, 4),
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.sampled_from(["yes", "no", 3, None, True, 1.5, "ü"]), min_size=1, max_size=3, unique_by=repr),
    ),
    st.builds(lambda value: {"const": value}, st.sampled_from(["c", 7, None, [1, "x"]])),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
            {"type": "string", "pattern": "^[A-Z]{2}\\d{1,3}$"},
            {"type": "string", "format": "date"},
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
        ]
    ),
)


def _object(names: list[str], schemas: list[Any], required: int) -> dict[str, Any]:
    properties = dict(zip(names, schemas, strict=False))
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:required],
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            _object,
            st.lists(NAMES, unique=True, max_size=4),
            st.lists(inner, min_size=4, max_size=4),
            st.integers(0, 4),
        ),
        st.builds(
            lambda item_schema, low, span: {
                "type": "array",
                "items": item_schema,
                "minItems": low,
                "maxItems": low + span,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda branches: {"anyOf": branches}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda first, second: {"type": "array", "prefixItems": [first, second], "items": False, "minItems": 2},
            inner,
            inner,
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_random_schemas_yield_what_jsonschema_accepts(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], seed: int
) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    text, reason = generated(grammars, tokenizer, Grammar("json_schema", json.dumps(schema)), seed)
    if reason == "length":  # numbers and strings may run long under noise; what there is, is a beginning
        return
    jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "boss": {"anyOf": [{"$ref": "#/$defs/boss"}, {"type": "null"}]},
    },
    "required": ["name", "age", "tags", "boss"],
    "additionalProperties": False,
    "$defs": {"boss": {"type": "object", "properties": {"id": {"type": "boolean"}}, "required": ["id"]}},
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bounded_schema_always_ends_and_validates(
    grammars: Grammars, tokenizer: Tokenizer, seed: int, temperature: float
) -> None:
    schema = {**PERSON, "$defs": {"boss": {**PERSON["$defs"]["boss"], "additionalProperties": False}}}  # type: ignore[index]
    text, reason = generated(
        grammars, tokenizer, Grammar("json_schema", json.dumps(schema)), seed, temperature=temperature
    )
    assert reason == "stop"
    jsonschema.validate(json.loads(text), schema)
    assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) or "\\" in text


def test_a_cut_text_is_a_beginning_of_a_valid_one(grammars: Grammars, tokenizer: Tokenizer) -> None:
    text, reason = generated(grammars, tokenizer, Grammar("json_schema", json.dumps(PERSON)), 3, limit=12)
    assert reason == "length"
    assert text.startswith('{"name":"')


def test_json_object_is_an_object(grammars: Grammars, tokenizer: Tokenizer) -> None:
    ended = 0
    for seed in range(20):
        text, reason = generated(grammars, tokenizer, Grammar("json_object"), seed)
        assert text.startswith("{")
        if reason == "stop":
            assert isinstance(json.loads(text), dict)
            ended += 1
    assert ended > 3


# Python counts the separators \x1c to \x1f as space, which Rust's regular expressions do not.
@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+b",
        r"\d{3}-[a-z]{2,5}",
        r"(yes|no)( maybe)?",
        r"[A-Z][a-z]*!",
        r"[^ab\s\x1c-\x1f]{3}",
        r"(foo|ba[rz]){1,3}",
        r"x?",
    ],
)
def test_regex_output_matches_whole(grammars: Grammars, tokenizer: Tokenizer, pattern: str) -> None:
    for seed in range(8):
        text, reason = generated(grammars, tokenizer, Grammar("regex", pattern), seed, limit=60)
        assert reason == "length" or re.fullmatch(pattern, text)
        assert reason == "stop" or pattern in {r"(a+)+b", r"[A-Z][a-z]*!"}


def test_choice(grammars: Grammars, tokenizer: Tokenizer) -> None:
    labels = ["positive", "negative", "pos", 'a "quoted" one', "two\nlines", "<|im_end|>", "ü"]
    grammar = Grammar("choice", json.dumps(labels))
    answers = {generated(grammars, tokenizer, grammar, seed) for seed in range(60)}
    assert {reason for _, reason in answers} == {"stop"}
    assert {text for text, _ in answers} <= set(labels)
    assert len(answers) > 3


def test_a_control_token_is_never_the_text_that_it_is_written_with(grammars: Grammars, tokenizer: Tokenizer) -> None:
    matcher = grammars.matcher(Grammar("choice", '["<|im_end|>"]'))
    allowed = np.zeros((1, mask_words(tokenizer.vocab_size)), dtype=np.int32)
    matcher.fill(allowed[0])
    assert END not in np.flatnonzero(unpack(allowed, tokenizer.vocab_size)[0])


def test_ebnf(grammars: Grammars, tokenizer: Tokenizer) -> None:
    rules = 'start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[1-9][0-9]?/'
    for seed in range(6):
        text, _ = generated(grammars, tokenizer, Grammar("ebnf", rules), seed, limit=30)
        assert re.fullmatch(r"[1-9][0-9]?(\+([1-9][0-9]?)?)*", text)


def test_ignored_ends_and_least_lengths_give_way_to_the_grammar(grammars: Grammars, tokenizer: Tokenizer) -> None:
    assert generated(grammars, tokenizer, Grammar("regex", "ab"), 0, min_tokens=50) == ("ab", "stop")
    assert generated(grammars, tokenizer, Grammar("regex", "a{3}"), 0, ignore_eos=True) == ("aaa", "stop")
    text, _ = generated(grammars, tokenizer, Grammar("regex", "a+"), 0, min_tokens=20, limit=40)
    assert len(text) >= 20


def test_only_constrained_rows_are_touched(grammars: Grammars, tokenizer: Tokenizer) -> None:
    logits = torch.randn(3, tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    rows = [RowState(Sampling(temperature=0), ()) for _ in range(3)]
    rows[1].matcher = grammars.matcher(Grammar("choice", '["z"]'))
    chosen = sample(logits, rows)
    assert torch.equal(logits, before)
    assert chosen.tolist() == [int(logits[0].argmax()), tokenizer.encode("z")[0], int(logits[2].argmax())]


def allows(matcher: Matcher, token: int, vocab_size: int) -> bool:
    """Whether the matcher's next mask has the token."""
    words = np.zeros((1, mask_words(vocab_size)), dtype=np.int32)
    matcher.fill(words[0])
    return bool(unpack(words, vocab_size)[0, token])


def follow(matcher: Matcher, tokens: Sequence[int], vocab_size: int) -> int:
    """How many of the tokens are allowed in turn; the matcher takes them."""
    for count, token in enumerate(tokens):
        if not allows(matcher, token, vocab_size):
            return count
        matcher.advance(token)
    return len(tokens)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_schema", json.dumps({"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 9})),
        Grammar("json_object", ""),
        Grammar("regex", r"[a-z]{2,5}@[a-z]+\.com"),
        Grammar("choice", json.dumps(["red", "green", "reddish brown", "blue sky"])),
        Grammar("ebnf", 'start: "a" [start] "b" | /[0-9]+/'),
    ],
    ids=lambda grammar: grammar.syntax,
)
def test_what_is_told_without_a_mask_is_what_the_mask_leaves(
    grammars: Grammars, tokenizer: Tokenizer, grammar: Grammar
) -> None:
    """Every token at every step of some texts: where tokens are forced the mask leaves the first of them alone, and
    elsewhere a token is told to be allowed just where the mask has it."""
    noise = np.random.default_rng(0)
    allowed = np.zeros((1, mask_words(tokenizer.vocab_size)), dtype=np.int32)
    checks = 0
    for _ in range(3):
        matcher = grammars.matcher(grammar)
        for _ in range(12):
            matcher.fill(allowed[0])
            bits = unpack(allowed, tokenizer.vocab_size)[0]
            assert allowed_ids(allowed[0]).tolist() == np.flatnonzero(bits).tolist()
            forced = matcher.forced()
            assert not forced or np.flatnonzero(bits).tolist() == forced[:1]
            for token in set(range(tokenizer.vocab_size)) - {END}:
                expected = forced[0] if forced else token if bits[token] else None
                assert matcher.without_mask(token) == expected, (token, forced)
                checks += 1
            texts = np.flatnonzero(bits)[np.flatnonzero(bits) != END]
            if not len(texts):
                break
            matcher.advance(int(noise.choice(texts)))
            if matcher.complete:
                break
    assert checks > tokenizer.vocab_size


@settings(max_examples=60, deadline=None)
@given(ids=st.sets(st.integers(0, 99)), out=st.sets(st.integers(0, 99)))
def test_ids_are_taken_out_of_a_mask_unless_none_would_be_left(ids: set[int], out: set[int]) -> None:
    words = np.zeros(mask_words(100), dtype=np.int32)
    for index in ids:
        words.view(np.uint32)[index // 32] |= np.uint32(1 << index % 32)
    assert withhold(words, out) is bool(ids - out)
    assert allowed_ids(words).tolist() == sorted(ids - out or ids)


def test_a_likeliest_token_is_the_same_with_and_without_a_mask(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """What a row is told at once is what the sampler would have chosen over its whole mask."""
    noise = torch.Generator().manual_seed(3)
    schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 4}}, "required": ["a"]}
    row = RowState(
        Sampling(max_tokens=200, ignore_eos=True),
        (1,),
        matcher=grammars.matcher(Grammar("json_schema", json.dumps(schema))),
        end_ids=frozenset({END}),
    )
    permitted = forced = 0
    for _ in range(150):
        logits = torch.randn(1, tokenizer.vocab_size, generator=noise)
        likeliest, chosen = int(logits.argmax()), int(sample(logits, [row])[0])
        unmasked = row.without_mask(likeliest)
        if unmasked is not None:
            permitted, forced = permitted + (unmasked == likeliest), forced + (unmasked != likeliest)
            assert chosen == unmasked
        row.append(chosen)
        if row.complete:
            break
    assert permitted > 5
    assert forced > 3


def test_forced_tokens_are_those_that_the_masks_leave(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = Grammar("regex", "the answer is (yes|no)")
    beginning = tokenizer.encode("the answer is")
    assert grammars.matcher(grammar).forced()[: len(beginning) - 1] == beginning[: len(beginning) - 1]
    assert follow(grammars.matcher(grammar), [*beginning, END], tokenizer.vocab_size) == len(beginning)


# --- refusals


EXPLODING = [
    {"anyOf": [{"properties": {f"p{i}": {"type": "integer"}}}, {"properties": {f"q{i}": {"type": "null"}}}]}
    for i in range(20)
]
CHAIN = "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(10_000)) + '\nr10000: "b"'
ENDLESS = '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}'
OVERLAPPING = '{"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}'
BAD: list[tuple[str, Grammar, str]] = [
    ("unknown keyword", Grammar("json_schema", '{"properties": {"a": {"minContainz": 1}}}'), "minContainz"),
    ("unsupported keyword", Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), "uniqueItems"),
    ("not", Grammar("json_schema", '{"not": {}}'), "not"),
    ("options of the library", Grammar("json_schema", '{"x-guidance": {"lenient": true}, "not": {}}'), "x-guidance"),
    ("remote $ref", Grammar("json_schema", '{"$ref": "http://127.0.0.1:9/x.json"}'), "nothing is fetched"),
    ("file $ref", Grammar("json_schema", '{"$ref": "file:///etc/passwd"}'), "nothing is fetched"),
    ("missing $ref", Grammar("json_schema", '{"$ref": "#/$defs/a"}'), "points at nothing"),
    ("stray $ref", Grammar("json_schema", '{"$ref": "#/default", "default": {"not": {}}}'), "not a schema"),
    ("20,000 deep", Grammar("json_schema", '{"items":' * 20_000 + "{}" + "}" * 20_000), "nested too deeply"),
    ("100 deep", Grammar("json_schema", '{"items":' * 100 + "{}" + "}" * 100), "nested deeper"),
    ("itself without end", Grammar("json_schema", ENDLESS), "without end"),
    ("only itself", Grammar("json_schema", '{"$ref": "#"}'), "without end"),
    ("no integer", Grammar("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'), "greater than"),
    ("false", Grammar("json_schema", "false"), "no value"),
    ("two types", Grammar("json_schema", '{"allOf": [{"type": "string"}, {"type": "integer"}]}'), "Unsatisfiable"),
    ("overlapping oneOf", Grammar("json_schema", OVERLAPPING), "anyOf"),
    ("100,000 values", Grammar("json_schema", json.dumps({"enum": list(range(100_000))})), "bytes"),
    (
        "too many properties",
        Grammar("json_schema", json.dumps({"properties": {f"p{i}": {} for i in range(4_000)}})),
        "450",
    ),
    ("costly multiples", Grammar("json_schema", '{"type": "integer", "multipleOf": 1000003}'), "multipleOf"),
    ("blowing up allOf", Grammar("json_schema", json.dumps({"allOf": EXPLODING})), "too large"),
    ("a number for a type", Grammar("json_schema", '{"type": 3}'), "the types are"),
    ("a list", Grammar("json_schema", "[]"), "must be a schema"),
    ("no JSON", Grammar("json_schema", "{"), "schema cannot be read"),
    ("NaN", Grammar("json_schema", '{"minimum": NaN}'), "not JSON"),
    ("bad pattern", Grammar("json_schema", '{"type": "string", "pattern": "("}'), "unclosed"),
    ("look-ahead", Grammar("regex", "(?=a)b"), "look-around"),
    ("back-reference", Grammar("regex", r"(a)\1"), "backreference"),
    ("deep regex", Grammar("regex", "(" * 20_000 + "a" + ")" * 20_000), "nest"),
    ("counts of counts", Grammar("regex", "((a{1,100}){1,100}){1,100}"), "counted"),
    ("nothing matches", Grammar("regex", r"[^\s\S]"), "no text matches"),
    ("no choices", Grammar("choice", "[]"), "at least one"),
    ("empty choice", Grammar("choice", '["a", ""]'), "empty"),
    ("unknown rule", Grammar("ebnf", 'start: "a" | foo'), "foo"),
    ("no start", Grammar("ebnf", 'begin: "a"'), "start"),
    ("10,000 rules", Grammar("ebnf", CHAIN), "rules"),
    ("deep rules", Grammar("ebnf", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000), "nested"),
    ("library directive", Grammar("ebnf", '%llguidance {"no_forcing": true}\nstart: "a"'), "%llguidance"),
    ("schema inside rules", Grammar("ebnf", 'start: %json {"not": {}}'), "%json"),
]


@pytest.mark.parametrize(("grammar", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_grammars_are_refused_quickly(grammars: Grammars, grammar: Grammar, message: str) -> None:
    begin = time.thread_time()
    with pytest.raises(RequestError) as raised:
        grammars.compile(grammar)
    assert time.thread_time() - begin < 1
    assert raised.value.code == "invalid_grammar"
    assert message in str(raised.value)
    assert len(str(raised.value)) < 600


def test_a_tokenizer_without_exact_bytes_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="no exact bytes"):
        Grammars(None, 10, [1]).compile(Grammar("json_object"))
    with pytest.raises(RequestError, match="no end token"):
        Grammars(tokenizer, tokenizer.vocab_size, []).compile(Grammar("json_object"))


def _compiled_memory(grammars: Grammars, count: int) -> Iterator[int]:
    process = psutil.Process()
    for number in range(count):
        schema = {"type": "object", "properties": {f"key{number}": {"type": "string", "maxLength": number % 50 + 1}}}
        grammars.matcher(Grammar("json_schema", json.dumps(schema)))
        if number % 500 == 499:
            yield process.memory_info().rss


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_stays_flat_over_distinct_schemas(tokenizer: Tokenizer, count: int) -> None:
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [END])
    sizes = list(_compiled_memory(grammars, count))
    assert len(grammars) == CACHED
    assert sizes[-1] - sizes[0] < 30 * 2**20


# --- tool calls

TOOLS = [
    Tool(
        "weather",
        "The weather in a city",
        {"properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"], "additionalProperties": False},
    ),
    Tool("now"),
]


@pytest.mark.parametrize("parallel", [False, True])
def test_required_calls_are_valid(grammars: Grammars, tokenizer: Tokenizer, parallel: bool) -> None:
    grammar = Grammar("tool_calls", call_grammar_source(TOOLS, required=True, parallel=parallel))
    for seed in range(6):
        text, reason = generated(grammars, tokenizer, grammar, seed, limit=800)
        assert reason == "stop"
        reader = CallReader()
        pieces = [*reader.push(text), *reader.finish()]
        assert reader.closed
        assert {piece.section for piece in pieces} == {"name", "arguments"}
        assert reader.calls == 1 or parallel
        for piece in pieces:
            if piece.section == "name":
                assert piece.text in {"weather", "now"}
        for call in range(reader.calls):
            name = next(p.text for p in pieces if p.section == "name" and p.call == call)
            arguments = json.loads("".join(p.text for p in pieces if p.section == "arguments" and p.call == call))
            jsonschema.validate(arguments, next(tool for tool in TOOLS if tool.name == name).schema)


def test_free_text_may_become_a_call_and_that_call_is_valid(grammars: Grammars, tokenizer: Tokenizer) -> None:
    matcher = grammars.matcher(Grammar("tool_calls", call_grammar_source(TOOLS, required=False, parallel=True)))
    tokens = tokenizer.encode('Let me look. <tool_call>\n{"name": "weather", "arguments": {"city": "')
    assert follow(matcher, tokens, tokenizer.vocab_size) == len(tokens)
    assert not allows(matcher, END, tokenizer.vocab_size)
    assert follow(matcher, tokenizer.encode('Paris"'), tokenizer.vocab_size) == 0
    assert follow(matcher, tokenizer.encode('Oslo"'), tokenizer.vocab_size) == len(tokenizer.encode('Oslo"'))


def test_plain_text_is_allowed_and_may_end_at_any_time(grammars: Grammars, tokenizer: Tokenizer) -> None:
    matcher = grammars.matcher(Grammar("tool_calls", call_grammar_source(TOOLS, required=False, parallel=True)))
    for token in tokenizer.encode("It is 3 < 4, <tool> and <tool_cal"):
        assert allows(matcher, END, tokenizer.vocab_size)
        matcher.advance(token)
    assert allows(matcher, END, tokenizer.vocab_size)


def test_parameters_that_cannot_be_enforced_name_their_tool(grammars: Grammars) -> None:
    tools = [Tool("odd", "", {"type": "object", "dependentRequired": {}})]
    with pytest.raises(RequestError, match=r"tool 'odd'.*dependentRequired") as raised:
        grammars.compile(Grammar("tool_calls", call_grammar_source(tools, required=True, parallel=False)))
    assert (raised.value.param, raised.value.code) == ("tools", "invalid_grammar")
