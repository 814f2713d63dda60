"""Limits the size and cost of grammars: checks before llguidance compiles one, and a timed trial of its first steps."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bedplate.core.errors import RequestError, UsageError
from bedplate.inference.engine.sampling import Grammar
from bedplate.text.calls.call_grammar import call_grammar
from bedplate.text.json_schema import INVALID, SOURCE_BYTES, check_pattern, parse_schema
from bedplate.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

CHOICES = 10_000
RULES = 200
"""Maximum numbers of choices and of rules: llguidance follows references between rules by recursion on the stack."""
TRIAL_STEPS = 4
TRIAL_SECONDS = 0.5
"""CPU seconds to compile a grammar and to try its first steps: about five times those of the largest legitimate ones. A
grammar that exceeds them is measured once more, since on a busy machine the same work takes longer."""

# Linear time: possessive repetitions never backtrack, and an unterminated text or expression ends the scan.
_RULE_PARTS = re.compile(
    r"""(?://|\#)[^\n]*+ | "(?:\\.|[^"\\\n])*+" | /(?:\\.|[^/\\])++/ | (?P<open>["/]) | %\s*+(?P<directive>\w++)
    | (?P<double>::) | (?P<rule>:)""",
    re.VERBOSE,
)


@dataclass(frozen=True, eq=False)
class TokenVocabulary:
    """A base's tokens as bytes, with its end tokens and special tokens. behind_a_space: the tokenizer puts a space
    before a text, which decoding removes."""

    tokens: Sequence[bytes]
    eos_ids: Sequence[int]
    special_ids: Sequence[int]
    behind_a_space: bool

    @staticmethod
    def of(tokenizer: Tokenizer, size: int, eos_ids: Sequence[int]) -> TokenVocabulary:
        """The vocabulary of a tokenizer. size: number of logits of the model."""
        vocab_size = tokenizer.vocab_size
        tokens = [tokenizer.token_bytes(index) if index < vocab_size else b"" for index in range(size)]
        if tokenizer.drops_space:  # the first token of a text may lose all that it begins with
            tokens = [b"" if token.startswith(b"  ") else token for token in tokens]
        special = sorted(index for index in tokenizer.special_ids if index < size)
        return TokenVocabulary(tokens, eos_ids, special, tokenizer.drops_space)

    def opened(self, tokenizer: Tokenizer | None = None) -> llguidance.LLTokenizer:
        """The vocabulary in llguidance's form. UsageError where llguidance is not installed."""
        try:
            import llguidance
        except ImportError:
            raise UsageError('grammars need llguidance; install it with: pip install "bedplate[serve]"') from None
        wrapped = llguidance.TokenizerWrapper(_Wrapped(self, tokenizer))
        return llguidance.LLTokenizer(wrapped, n_vocab=len(self.tokens), eos_token=list(self.eos_ids))


class _Wrapped:
    """Adapts a vocabulary to the tokenizer interface that llguidance expects."""

    def __init__(self, vocabulary: TokenVocabulary, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self.tokens, self.special_token_ids = list(vocabulary.tokens), list(vocabulary.special_ids)
        self._special = frozenset(self.special_token_ids)
        self.eos_token_id, self.bos_token_id = vocabulary.eos_ids[0], None

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of text whose tokens are forced. TypeError for bytes, which tells llguidance that it takes strings."""
        if isinstance(text, bytes):
            raise TypeError("text, not bytes")
        spelled = None if self._tokenizer is None else self._tokenizer.spelled(text)
        return spelled or self._longest(text.encode())

    def _longest(self, rest: bytes) -> list[int]:
        """Tokenizes greedily, the longest token first, as far as that goes."""
        ids = {token: index for index, token in enumerate(self.tokens) if token and index not in self._special}
        longest, token_ids = max(map(len, ids)), list[int]()
        while rest:
            part = next((rest[:n] for n in range(min(longest, len(rest)), 0, -1) if rest[:n] in ids), None)
            if part is None:
                break
            token_ids.append(ids[part])
            rest = rest[len(part) :]
        return token_ids


def _behind_a_space(source: str) -> str:
    """A grammar, in llguidance's form, of the same texts each preceded by a space."""
    inner: dict[str, Any] = {"lark_grammar": source}
    if source.startswith('{"grammars"'):
        [inner] = json.loads(source)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": 'start: " " @text'}, {**inner, "name": "text"}]})


def compiled(
    vocabulary: TokenVocabulary, opened: llguidance.LLTokenizer, grammar: Grammar, *, timed: bool = True
) -> llguidance.LLMatcher:
    """A matcher at the beginning of a text. Raises as `Grammars.compile` does. timed: False skips the time limit, for a
    grammar known to be quick."""
    try:
        source = _source(grammar)
    except ValueError as error:  # llguidance's own JSON parser has rejected it
        raise refused(f"the grammar cannot be used: {first_line(str(error))}") from None
    source = _behind_a_space(source) if vocabulary.behind_a_space else source
    for _ in range(2):
        begin = time.thread_time()
        matcher = _tried(opened, source, len(vocabulary.tokens), vocabulary.behind_a_space)
        if not timed or time.thread_time() - begin <= TRIAL_SECONDS:
            return matcher
    raise refused("the grammar takes too long to compile; make it smaller, or its counts and alternatives fewer")


def _tried(vocabulary: llguidance.LLTokenizer, source: str, vocab_size: int, behind: bool) -> llguidance.LLMatcher:
    """A matcher at the beginning of a text, after a trial of a few steps: excessive cost and impossible texts show in
    the first masks. behind: texts are preceded by a space."""
    import llguidance

    limits = llguidance.LLParserLimits(
        initial_lexer_fuel=500_000, step_lexer_fuel=50_000, max_lexer_states=50_000, verbose_errors=False
    )
    matcher = llguidance.LLMatcher(vocabulary, source, log_level=0, limits=limits)
    allowed_W = np.zeros((vocab_size + 31) // 32, dtype=np.int32)
    for step in range(TRIAL_STEPS):
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(allowed_W.ctypes.data, allowed_W.nbytes)
        if matcher.is_error():
            raise refused(_explained(matcher.get_error(), first=step <= behind))
        if matcher.is_stopped():
            break
        words = np.flatnonzero(allowed_W)
        word = int(allowed_W[words[-1]]) & 0xFFFFFFFF
        matcher.consume_token(int(words[-1]) * 32 + word.bit_length() - 1)
    matcher.reset()
    return matcher


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's own form."""
    import llguidance

    size = len(_text(grammar.source).encode())
    if size > SOURCE_BYTES:
        raise refused(f"the grammar has {size:,} bytes; at most {SOURCE_BYTES:,} are accepted")
    options: Any = {"whitespace_flexible": False}
    match grammar.syntax:
        case "json_schema":
            schema = parse_schema(grammar.source)
            if schema is False:
                raise refused("no value satisfies the JSON schema false")
            text = "{}" if schema is True else grammar.source
            return llguidance.LLMatcher.grammar_from_json_schema(text, overrides=options)
        case "json_object":
            return llguidance.LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=options)
        case "regex":
            check_pattern(grammar.source, "the regular expression")
            return llguidance.LLMatcher.grammar_from_regex(grammar.source)
        case "choice":
            return llguidance.LLMatcher.grammar_from_lark(_text(_choice_rules(grammar.source)))
        case "ebnf":
            _check_rules(grammar.source)
            return llguidance.LLMatcher.grammar_from_lark(grammar.source)
        case "tool_calls":
            return llguidance.LLMatcher.grammar_from_lark(_text(call_grammar(grammar.source)))


def _text(source: str) -> str:
    """The text without lone surrogates, which llguidance refuses."""
    try:
        source.encode()
    except UnicodeEncodeError as error:
        problem = f"the lone surrogate U+{ord(source[error.start]):04X} at character {error.start}"
        raise refused(f"the grammar holds {problem}, which is not valid text") from None
    return source


def _choice_rules(source: str) -> str:
    texts: Any = json.loads(source)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise refused("the choices must be a list of at least one text, none of them empty")
    if len(texts) > CHOICES:
        raise refused(f"there are {len(texts):,} choices; at most {CHOICES:,} are accepted")
    # One terminal: llguidance matches a terminal's alternatives at no cost each, but tries those of a rule in turn.
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _check_rules(source: str) -> None:
    rules = 0
    for part in _RULE_PARTS.finditer(source):
        directive = part["directive"]
        if directive is not None and directive not in {"import", "ignore"}:
            raise refused(f"the grammar uses %{directive[:80]}; only %import and %ignore are supported")
        if part["open"] is not None:
            construct = "text" if part["open"] == '"' else "regular expression"
            raise refused(
                f"a {construct} of the grammar, begun in line {source.count(chr(10), 0, part.start()) + 1}, has no end"
            )
        rules += part["rule"] is not None
    if rules > RULES:
        raise refused(f"the grammar has {rules:,} rules; at most {RULES:,} are accepted")


def _explained(error: str, first: bool) -> str:
    if first and "NoExtension" in error:
        return "no text matches the grammar, of those that this base's tokens can write"
    if "oneOf constraints" in error:
        return "oneOf is supported only where at most one branch can match, told apart by a const; use anyOf"
    return f"the grammar cannot be used: {first_line(error)}"


def first_line(error: str) -> str:
    """llguidance's message, without its drawing of the position."""
    lines = [line.strip() for line in error.splitlines() if line.strip() and not line.strip().startswith("<")]
    reason = next((line for line in lines if line.startswith("error:")), None)
    return (reason or (lines[0] if lines else "the grammar failed")).removeprefix("error: ")[:300]


def refused(message: str) -> RequestError:
    return RequestError(message, param="grammar", code=INVALID)
