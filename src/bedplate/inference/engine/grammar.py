"""Grammars that generated text is held to: compiled once, then a matcher for each row.

The automata are llguidance's; what it may be asked, and how much a grammar may cost, is decided here. A matcher follows
one row's tokens and says at each step which tokens may come next. Text is matched as the bytes of the base's tokens, so
the tokenizer must have exact ones (byte-level, byte-fallback and SentencePiece's vocabularies). Where tokens begin with
a space that their text does not have, the grammar begins with one as well.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import RequestError, UsageError
from bedplate.inference.engine.kinds.sampling import Grammar
from bedplate.text.call_grammar import call_grammar
from bedplate.text.json_schema import INVALID, SOURCE_BYTES, check_pattern, parse_schema
from bedplate.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

CACHED = 128
"""Compiled grammars that are kept."""
CHOICES = 10_000
RULES = 200
"""The library follows references between the rules of a grammar recursively, on the thread's own stack."""
TRIAL_STEPS = 4
TRIAL_SECONDS = 0.5
ROW_SECONDS, STEP_SECONDS = 0.25, 0.01
"""Processor time that one row's masks may take: so much, and so much more for each token."""

# One pass in which no place is looked at twice: repetitions give nothing back, and what has no end ends the search.
_RULE_PARTS = re.compile(
    r"""(?://|\#)[^\n]*+ | "(?:\\.|[^"\\\n])*+" | /(?:\\.|[^/\\])++/ | (?P<open>["/]) | %\s*+(?P<directive>\w++)
    | (?P<double>::) | (?P<rule>:)""",
    re.VERBOSE,
)


class Grammars:
    """Compiles grammars for one tokenizer, and keeps the latest `CACHED`. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_ids: Iterable[int]) -> None:
        """vocab_size: of the model's logits, which may be more than the tokenizer's. eos_ids: what ends a text."""
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._eos_ids = sorted(index for index in eos_ids if 0 <= index < vocab_size)
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, llguidance.LLMatcher] = OrderedDict()
        self._vocabulary: llguidance.LLTokenizer | None = None

    def compile(self, grammar: Grammar) -> Callable[[], Matcher]:
        """What gives matchers at the start of a text, however many other grammars are compiled meanwhile. Raises
        RequestError (code invalid_grammar) for a grammar that is malformed, unsupported, too costly or that no text
        matches."""
        template = self._template(grammar)
        return lambda: Matcher(template.deep_copy())

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the start of a text. Raises as `compile` does."""
        return self.compile(grammar)()

    def accepts(self, grammar: Grammar, text: str) -> bool:
        """Whether the whole text is one that the grammar lets a model write. Raises as `compile` does."""
        matcher = self.matcher(grammar)
        assert self._tokenizer is not None
        return matcher.takes(self._tokenizer.encode(text, parse_special=False))

    def __len__(self) -> int:
        return len(self._known)

    def _template(self, grammar: Grammar) -> llguidance.LLMatcher:
        key = hashlib.sha256(f"{grammar.kind}\n{grammar.source}".encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
            vocabulary = self._open()
        behind = self._tokenizer is not None and self._tokenizer.drops_space
        try:
            source = _source(grammar)
        except ValueError as error:  # what the library's own JSON reader does not take
            raise _error(f"the grammar cannot be used: {_first_line(str(error))}") from None
        source = _behind_a_space(source) if behind else source
        made = _compiled(vocabulary, source, self._vocab_size, behind)
        with self._lock:
            self._known[key] = made
            while len(self._known) > CACHED:
                self._known.popitem(last=False)
        return made

    def _open(self) -> llguidance.LLTokenizer:
        """The vocabulary as the library wants it, made when it is first needed."""
        if self._vocabulary is None:
            if self._tokenizer is None or not self._tokenizer.exact_bytes:
                raise _error("this base's tokenizer has no exact bytes for its tokens, so its output cannot be held to")
            if not self._eos_ids:
                raise _error("this base has no end token, so its output cannot be held to a grammar")
            try:
                import llguidance
            except ImportError:
                raise UsageError('grammars need llguidance; install it with: pip install "bedplate[serve]"') from None
            wrapped = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size, self._eos_ids[0]))
            self._vocabulary = llguidance.LLTokenizer(wrapped, n_vocab=self._vocab_size, eos_token=self._eos_ids)
        return self._vocabulary


class Matcher:
    """Follows one row. A grammar that is too costly to follow makes it fail; that row's neighbours do not wait."""

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self._inner = inner
        self._left = ROW_SECONDS

    def fill(self, allowed_W: NDArray[np.int32]) -> None:
        """Sets the bits of the tokens that may come next, in a contiguous row of ⌈V/32⌉ words. All bits are set where
        the matcher has failed."""
        if self.failure is None:
            begin = time.thread_time()
            self._inner.unsafe_compute_mask_ptr(allowed_W.ctypes.data, allowed_W.nbytes)
            self._left += STEP_SECONDS - (time.thread_time() - begin)
        if self.failure is not None:
            allowed_W.fill(-1)

    def without_mask(self, token: int) -> int | None:
        """What a mask would leave of all tokens, if that can be told without one, at a hundredth of the cost: the only
        one where the next are forced (others that spell the same are left out), or `token`, the likeliest and no end of
        a text, where it is allowed. None: a mask must tell."""
        if self.failure is not None:
            return None
        begin = time.thread_time()
        forced = self._inner.compute_ff_tokens()
        if forced:
            found = forced[0]
        else:
            found = token if self._inner.validate_tokens([token]) == 1 else None
        self._left -= time.thread_time() - begin
        self._left += (
            0.0 if found is None else STEP_SECONDS
        )  # where a mask is made, its own call grants the step's time
        return found

    def advance(self, token: int) -> None:
        """Takes a token that the last mask allowed."""
        begin = time.thread_time()
        self._inner.consume_token(token)
        self._left -= time.thread_time() - begin

    def takes(self, tokens: list[int]) -> bool:
        """Whether the tokens are a text that matches."""
        return self._inner.consume_tokens(tokens) and self._inner.is_accepting()

    @property
    def complete(self) -> bool:
        """The text matches, and nothing more can follow it."""
        return self._inner.is_stopped() and not self._inner.is_error()

    @property
    def failure(self) -> str | None:
        """Why the row cannot go on."""
        if self._left < 0:
            return "it takes too long"
        return _first_line(self._inner.get_error()) if self._inner.is_error() else None

    def forced(self) -> list[int]:
        """The tokens that must come next, so that no model needs to be asked for them."""
        return self._inner.compute_ff_tokens()


def mask_words(vocab_size: int) -> int:
    """W: 32-bit words of one row's mask."""
    return (vocab_size + 31) // 32


def allowed_ids(allowed_W: NDArray[np.int32]) -> NDArray[np.int64]:
    """The ids that one row's mask allows, ascending."""
    words = allowed_W.nonzero()[0]
    bits = np.unpackbits(allowed_W[words].view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    at, bit = bits.nonzero()
    return words[at] * 32 + bit


def withhold(allowed_W: NDArray[np.int32], ids: Iterable[int]) -> bool:
    """Takes ids out of a row's mask; leaves it as it is, and says False, where nothing would be left."""
    before = allowed_W.copy()
    words_W = allowed_W.view(np.uint32)
    for index in ids:
        words_W[index >> 5] &= np.uint32(~(1 << (index & 31)) & 0xFFFFFFFF)
    if allowed_W.any():
        return True
    allowed_W[:] = before
    return False


def unpack(allowed_CW: NDArray[np.int32], vocab_size: int) -> NDArray[np.bool_]:
    """Masks as booleans [C, V]."""
    bits = np.unpackbits(allowed_CW.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    return bits.view(np.bool_)


class _Vocabulary:
    """The base's tokenizer in the shape that the library asks for."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_id: int) -> None:
        self._tokenizer = tokenizer
        known = tokenizer.vocab_size
        self.tokens = [tokenizer.token_bytes(index) if index < known else b"" for index in range(vocab_size)]
        if tokenizer.drops_space:  # the first token of a text may lose all that it begins with
            self.tokens = [b"" if token.startswith(b"  ") else token for token in self.tokens]
        self.special_token_ids = sorted(index for index in tokenizer.special_ids if index < vocab_size)
        self._special = frozenset(self.special_token_ids)
        self.eos_token_id, self.bos_token_id = eos_id, None

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of text whose tokens are forced. (Asked with bytes, it says that it takes strings.)"""
        if isinstance(text, bytes):
            raise TypeError("text, not bytes")
        return self._tokenizer.spelled(text) or self._longest(text.encode())

    def _longest(self, rest: bytes) -> list[int]:
        """The text by the longest token at each place, as far as that goes."""
        ids = {token: index for index, token in enumerate(self.tokens) if token and index not in self._special}
        longest, found = max(map(len, ids)), list[int]()
        while rest:
            part = next((rest[:n] for n in range(min(longest, len(rest)), 0, -1) if rest[:n] in ids), None)
            if part is None:
                break
            found.append(ids[part])
            rest = rest[len(part) :]
        return found


def _behind_a_space(source: str) -> str:
    """A grammar in the library's form, of the same texts with a space before each."""
    inner: dict[str, Any] = {"lark_grammar": source}
    if source.startswith('{"grammars"'):
        [inner] = json.loads(source)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": 'start: " " @text'}, {**inner, "name": "text"}]})


def _compiled(vocabulary: llguidance.LLTokenizer, source: str, vocab_size: int, behind: bool) -> llguidance.LLMatcher:
    """A matcher at its start. A few steps are tried: costs and impossibilities show in the first masks. behind: the
    text stands behind a space."""
    import llguidance

    limits = llguidance.LLParserLimits(
        initial_lexer_fuel=500_000, step_lexer_fuel=50_000, max_lexer_states=50_000, verbose_errors=False
    )
    begin = time.thread_time()
    matcher = llguidance.LLMatcher(vocabulary, source, log_level=0, limits=limits)
    allowed_W = np.zeros(mask_words(vocab_size), dtype=np.int32)
    for step in range(TRIAL_STEPS):
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(allowed_W.ctypes.data, allowed_W.nbytes)
        if matcher.is_error():
            raise _error(_explained(matcher.get_error(), first=step <= behind))
        if matcher.is_stopped():
            break
        words = np.flatnonzero(allowed_W)
        word = int(allowed_W[words[-1]]) & 0xFFFFFFFF
        matcher.consume_token(int(words[-1]) * 32 + word.bit_length() - 1)
    if time.thread_time() - begin > TRIAL_SECONDS:
        raise _error("the grammar takes too long to compile; make it smaller, or its counts and alternatives fewer")
    matcher.reset()
    return matcher


def _source(grammar: Grammar) -> str:
    """The grammar in the library's own form."""
    import llguidance

    size = len(_text(grammar.source).encode())
    if size > SOURCE_BYTES:
        raise _error(f"the grammar has {size:,} bytes; at most {SOURCE_BYTES:,} are accepted")
    options: Any = {"whitespace_flexible": False}
    match grammar.kind:
        case "json_schema":
            schema = parse_schema(grammar.source)
            if schema is False:
                raise _error("no value satisfies the JSON schema false")
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
    """What the library can take: it knows no lone surrogates."""
    try:
        source.encode()
    except UnicodeEncodeError as error:
        what = f"the lone surrogate U+{ord(source[error.start]):04X} at character {error.start}"
        raise _error(f"the grammar holds {what}, which is not valid text") from None
    return source


def _choice_rules(source: str) -> str:
    texts: Any = json.loads(source)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise _error("the choices must be a list of at least one text, none of them empty")
    if len(texts) > CHOICES:
        raise _error(f"there are {len(texts):,} choices; at most {CHOICES:,} are accepted")
    # One terminal: the library follows alternatives inside it at no cost each, but the rules' one by one.
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _check_rules(source: str) -> None:
    rules = 0
    for part in _RULE_PARTS.finditer(source):
        directive = part["directive"]
        if directive is not None and directive not in {"import", "ignore"}:
            raise _error(f"the grammar uses %{directive[:80]}; only %import and %ignore are supported")
        if part["open"] is not None:
            what = "text" if part["open"] == '"' else "regular expression"
            raise _error(
                f"a {what} of the grammar, begun in line {source.count(chr(10), 0, part.start()) + 1}, has no end"
            )
        rules += part["rule"] is not None
    if rules > RULES:
        raise _error(f"the grammar has {rules:,} rules; at most {RULES:,} are accepted")


def _explained(error: str, first: bool) -> str:
    if first and "NoExtension" in error:
        return "no text matches the grammar, of those that this base's tokens can write"
    if "oneOf constraints" in error:
        return "oneOf is supported only where at most one branch can match, told apart by a const; use anyOf"
    return f"the grammar cannot be used: {_first_line(error)}"


def _first_line(error: str) -> str:
    """What the library says, without its drawings of where."""
    lines = [line.strip() for line in error.splitlines() if line.strip() and not line.strip().startswith("<")]
    reason = next((line for line in lines if line.startswith("error:")), None)
    return (reason or (lines[0] if lines else "the grammar failed")).removeprefix("error: ")[:300]


def _error(message: str) -> RequestError:
    return RequestError(message, param="grammar", code=INVALID)
