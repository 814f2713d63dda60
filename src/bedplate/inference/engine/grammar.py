"""Compiles grammars that constrain generated text, and creates a matcher for each row.

A matcher consumes the tokens of one row and computes at each step which tokens may come next. Text is matched as bytes,
so the tokenizer must define the exact bytes of each token (byte-level, byte-fallback and SentencePiece vocabularies).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from bedplate.inference.engine.grammar_rules import TokenVocabulary, compiled, first_line, refused
from bedplate.inference.engine.sampling import Grammar
from bedplate.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

    from bedplate.inference.engine.grammar_trial import GrammarTrial

CACHED = 128
"""Size of the cache of compiled grammars."""
ROW_SECONDS, STEP_SECONDS = 0.25, 0.01
"""CPU seconds that one row's masks may take: an initial allowance, and an addition for each token."""


class Grammars:
    """Compiles grammars for one tokenizer, and caches the latest `CACHED` and those still referenced. Thread-safe."""

    trial: GrammarTrial | None = None
    """The child process that compiles new grammars first, if any."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_ids: Iterable[int]) -> None:
        """vocab_size: number of the model's logits, at least the tokenizer's. eos_ids: tokens that end a text."""
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._eos_ids = sorted(index for index in eos_ids if 0 <= index < vocab_size)
        self._lock = threading.Lock()
        self._recent: OrderedDict[bytes, _CompiledGrammar] = OrderedDict()
        self._live: WeakValueDictionary[bytes, _CompiledGrammar] = WeakValueDictionary()
        self._vocabulary: tuple[TokenVocabulary, llguidance.LLTokenizer] | None = None

    def compile(self, grammar: Grammar) -> Callable[[], Matcher]:
        """A factory of matchers that start at the beginning of a text. RequestError (code invalid_grammar) for a
        grammar that is malformed, unsupported, too costly or that no text matches."""
        compiled_grammar = self._cached_grammar(grammar)
        return lambda: Matcher(compiled_grammar.matcher.deep_copy())

    def precompile(self, grammar: Grammar, tenant: str = "") -> Grammar:
        """The grammar with its compiled form attached, which keeps it cached. Raises as `compile` does."""
        return replace(grammar, compiled=self._cached_grammar(grammar, tenant))

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of a text. Raises as `compile` does."""
        return self.compile(grammar)()

    def accepts(self, grammar: Grammar, text: str) -> bool:
        """Whether a model under the grammar could generate exactly this text. Raises as `compile` does."""
        matcher = self.matcher(grammar)
        assert self._tokenizer is not None
        return matcher.matches(self._tokenizer.encode(text, parse_special=False))

    def __len__(self) -> int:
        return len(self._recent)

    def _cached_grammar(self, grammar: Grammar, tenant: str = "") -> _CompiledGrammar:
        key = hashlib.sha256(f"{grammar.syntax}\n{grammar.source}".encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            cached = self._live.get(key)
            if cached is not None:
                if key in self._recent:
                    self._recent.move_to_end(key)
                return cached
            vocabulary, opened = self._open()
        tried = self.trial is not None and self.trial.check(vocabulary, grammar, tenant)
        compiled_grammar = _CompiledGrammar(compiled(vocabulary, opened, grammar, timed=not tried))
        with self._lock:
            compiled_grammar = self._live.setdefault(key, compiled_grammar)  # another thread's, if that was faster
            self._recent[key] = compiled_grammar
            while len(self._recent) > CACHED:
                self._recent.popitem(last=False)
        return compiled_grammar

    def _open(self) -> tuple[TokenVocabulary, llguidance.LLTokenizer]:
        """The vocabulary in llguidance's form, made on first use."""
        if self._vocabulary is None:
            if self._tokenizer is None or not self._tokenizer.exact_bytes:
                raise refused("this base's tokenizer has no exact bytes for its tokens, so it supports no grammars")
            if not self._eos_ids:
                raise refused("this base has no end token, so its output cannot be constrained by a grammar")
            vocabulary = TokenVocabulary.of(self._tokenizer, self._vocab_size, self._eos_ids)
            self._vocabulary = vocabulary, vocabulary.opened(self._tokenizer)
        return self._vocabulary


class _CompiledGrammar:
    """A compiled grammar: a matcher at the beginning of a text, which is never advanced, only copied."""

    __slots__ = ("__weakref__", "matcher")

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self.matcher = matcher


class Matcher:
    """Tracks one row's position in a compiled grammar. A grammar that becomes too costly fails its own row only."""

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self._inner = inner
        self._remaining_seconds = ROW_SECONDS

    def fill(self, allowed_W: NDArray[np.int32]) -> None:
        """Sets the bits of the tokens that may come next, in a contiguous row of ⌈V/32⌉ words; all bits once the
        matcher has failed."""
        if self.failure is None:
            begin = time.thread_time()
            self._inner.unsafe_compute_mask_ptr(allowed_W.ctypes.data, allowed_W.nbytes)
            self._remaining_seconds += STEP_SECONDS - (time.thread_time() - begin)
        if self.failure is not None:
            allowed_W.fill(-1)

    def without_mask(self, token: int) -> int | None:
        """The token that greedy selection under the mask would choose, where it is known at a hundredth of the mask's
        cost; None where the mask is needed.

        That is the first forced token, or else `token`, the likeliest, where it is allowed and ends no text.
        """
        if self.failure is not None:
            return None
        begin = time.thread_time()
        forced = self._inner.compute_ff_tokens()
        allowed_token = forced[0] if forced else token if self._inner.validate_tokens([token]) == 1 else None
        self._remaining_seconds -= time.thread_time() - begin
        if allowed_token is not None:  # where a mask is made, its own call grants the step's time
            self._remaining_seconds += STEP_SECONDS
        return allowed_token

    def advance(self, token: int) -> None:
        """Consumes a token that the last mask allowed."""
        begin = time.thread_time()
        self._inner.consume_token(token)
        self._remaining_seconds -= time.thread_time() - begin

    def matches(self, tokens: list[int]) -> bool:
        """Whether the tokens form a complete text of the grammar."""
        return self._inner.consume_tokens(tokens) and self._inner.is_accepting()

    @property
    def complete(self) -> bool:
        """Whether the text matches and nothing may follow it."""
        return self._inner.is_stopped() and not self._inner.is_error()

    @property
    def failure(self) -> str | None:
        """Why the row cannot continue; None where it can."""
        if self._remaining_seconds < 0:
            return "it takes too long"
        return first_line(self._inner.get_error()) if self._inner.is_error() else None

    def forced(self) -> list[int]:
        """The tokens that must come next, for which the model need not be run."""
        return self._inner.compute_ff_tokens()


def mask_words(vocab_size: int) -> int:
    """W: the number of 32-bit words in one row's mask."""
    return (vocab_size + 31) // 32


def allowed_ids(allowed_W: NDArray[np.int32]) -> NDArray[np.int64]:
    """The ids that one row's mask allows, ascending."""
    words = allowed_W.nonzero()[0]
    bits = np.unpackbits(allowed_W[words].view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    at, bit = bits.nonzero()
    return words[at] * 32 + bit


def withhold(allowed_W: NDArray[np.int32], ids: Iterable[int]) -> bool:
    """Clears ids in a row's mask. Returns False, and leaves the mask unchanged, where no token would remain."""
    before = allowed_W.copy()
    words_W = allowed_W.view(np.uint32)
    for index in ids:
        words_W[index >> 5] &= np.uint32(~(1 << (index & 31)) & 0xFFFFFFFF)
    if allowed_W.any():
        return True
    allowed_W[:] = before
    return False


def unpack(allowed_CW: NDArray[np.int32], vocab_size: int) -> NDArray[np.bool_]:
    """Unpacks bit masks to booleans [C, V]."""
    bits = np.unpackbits(allowed_CW.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    return bits.view(np.bool_)
