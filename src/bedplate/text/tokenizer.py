"""Text to token ids and back, from a `tokenizer.json` or from a GGUF's own vocabulary.

The work is done by the `tokenizers` library. Special tokens written in plain text are matched unless
`parse_special=False`, which is for what users wrote: it never yields a control token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tokenizers

from bedplate.core.errors import DataError, TemplateError, TokenizerError, UsageError, need_failure
from bedplate.text import control_tokens
from bedplate.text import directory as tokenizer_files
from bedplate.text.chat_template import ChatTemplate, Message, plain, plain_messages
from bedplate.text.decoding import Decoding, StreamDecoder
from bedplate.text.directory import FILE, TokenizerParts, parts_from_directory, save_parts
from bedplate.text.gguf_fields import fields_from_parts, parts_from_fields
from bedplate.text.sandbox import MARK_VARIABLE

TextOrPair = str | tuple[str, str]


class EncoderInput(NamedTuple):
    """ids: tokens. types: of each, which of a pair's texts it is of; () for one text. cut: tokens left out."""

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    cut: int = 0


def encoder_input(encoding: Any, is_pair: bool, limit: int | None) -> EncoderInput:
    """What the tokenizers library made of a text or a pair, of at most `limit` tokens: special tokens stay, and the
    longer of two texts is cut first, at its end (the library's "longest_first")."""
    ids, types = encoding.ids, encoding.type_ids if is_pair else ()
    if limit is None or len(ids) <= limit:
        return EncoderInput(tuple(ids), tuple(types))
    owners = encoding.sequence_ids
    counts = [owners.count(0), owners.count(1)]
    budget = limit - (len(ids) - sum(counts))
    if budget < 1:
        raise UsageError(f"a limit of {limit} tokens leaves no room beside {limit - budget} special ones")
    quotas = _quotas(counts, budget)
    positions: list[int] = []
    used = [0, 0]
    for number, owner in enumerate(owners):
        if owner is not None:
            used[owner] += 1
            if used[owner] > quotas[owner]:
                continue
        positions.append(number)
    return EncoderInput(
        tuple(ids[number] for number in positions),
        tuple(types[number] for number in positions) if is_pair else (),
        len(ids) - len(positions),
    )


def _quotas(counts: Sequence[int], budget: int) -> tuple[int, int]:
    """How many tokens of each text stay of `budget`: what the longer one has over the shorter goes first, then half
    each, the odd one to the longer (to the second of two equals)."""
    short, long = min(counts), max(counts)
    if short + long > budget:
        long = max(short, budget - short)
        if short + long > budget:
            short = budget // 2
            long = budget - short
    return (long, short) if counts[0] > counts[1] else (short, long)


@dataclass(frozen=True)
class TrainingChat:
    """`ids`: the whole conversation. `assistant[i]`: ids[i] is the assistant's, its end token included: what
    instruction tuning puts its loss on. `spans`: the same as half-open ranges, one per assistant message; ids up to a
    span's start are exactly the prompt that inference gives for that answer."""

    ids: list[int]
    spans: tuple[tuple[int, int], ...]

    @property
    def assistant(self) -> list[bool]:
        mask = [False] * len(self.ids)
        for start, end in self.spans:
            mask[start:end] = [True] * (end - start)
        return mask


def _check_prefix(prefix: list[int], ids: list[int], prefix_name: str, why: str) -> None:
    if ids[: len(prefix)] != prefix:
        raise TemplateError(
            f"{prefix_name} is not a prefix of the whole conversation under this chat template, so it cannot be "
            "trained on as "
            f"it would be used ({why}); strip white space from the contents, or split the conversation at this answer"
        )


LONG = 10_000
"""Characters of a text that is encoded as a batch of one: only while it encodes a batch does the library let the
interpreter's other threads run."""


class Tokenizer:
    """One tokenizer. Immutable; safe to share between threads."""

    answers_apart: ClassVar[bool] = False
    """Whether an answer is a text of its own, for a decoder beside the encoder that reads the prompt."""

    def __init__(self, made_of: TokenizerParts) -> None:
        self._parts = made_of
        self._backend = made_of.backend
        self._decoding = Decoding(made_of.backend)
        self.bos_id = made_of.role_id("bos_token")
        self.eos_id = made_of.role_id("eos_token")
        self.pad_id = made_of.role_id("pad_token")
        self.unk_id = made_of.role_id("unk_token")
        self.eos_ids: tuple[int, ...] = made_of.eos_ids
        self.special_ids: frozenset[int] = self._decoding.special
        self.chat: ChatTemplate | None = None
        if made_of.template is not None:
            self.chat = ChatTemplate(made_of.template, tokens=made_of.roles)

    @classmethod
    def from_directory(cls, directory: Path | str, file: str = FILE) -> Tokenizer:
        """From a Hugging Face directory. Raises TokenizerError for files that are missing or corrupt."""
        return cls(parts_from_directory(Path(directory), file))

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the post-processor sets before and behind a text."""
        inside, whole = self.encode("a"), self.encode("a", add_special_tokens=True)
        places = range(len(whole) - len(inside) + 1)
        at = next((i for i in places if whole[i : i + len(inside)] == inside), 0)
        return tuple(whole[:at]), tuple(whole[at + len(inside) :])

    @property
    def reading(self) -> Tokenizer:
        """The one of the texts that are read: this one, but where there are two vocabularies."""
        return self

    def unneeded(self, size: int) -> tuple[str, ...]:
        """The control tokens that a table of so many rows has none for, where nothing needs them; () where they are not
        all that is behind its end."""
        return tokenizer_files.unneeded(self._parts, size)

    def without(self, tokens: Sequence[str]) -> Tokenizer:
        """The same without some of its control tokens, which are then the characters that they are written with."""
        return Tokenizer(tokenizer_files.without(self._parts, tokens))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Tokenizer:
        """From GGUF metadata (`tokenizer.ggml.*`, `tokenizer.chat_template`) as Python values."""
        return cls(parts_from_fields(fields))

    def to_fields(self) -> dict[str, Any]:
        """The GGUF metadata, where the format can express this tokenizer; otherwise TokenizerError."""
        return fields_from_parts(self._parts)

    def save(self, directory: Path | str, *, types: bool = False) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads. types: the model
        tells a pair's texts apart."""
        save_parts(self._parts, Path(directory), types)

    @cached_property
    def identity(self) -> str:
        """sha256 of what decides ids: equal for a GGUF's tokenizer and for its export."""
        return tokenizer_files.identity(self._parts)

    # --- vocabulary

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        if self._parts.size is not None:
            return self._parts.size
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def max_length(self) -> int | None:
        """How many tokens its files say a text should have at most."""
        declared = self._parts.config.get("model_max_length")
        # Where there is no limit, transformers writes one of 10³⁰.
        return int(declared) if isinstance(declared, int | float) and declared < 10**9 else None

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def id_to_token(self, index: int) -> str | None:
        return self._backend.id_to_token(index) if index >= 0 else None

    def token_bytes(self, index: int) -> bytes:
        """The bytes that the token adds to a text, not at its start. See `bedplate.text.decoding` for what that means:
        exact for byte-level and byte-fallback vocabularies; WordPiece word starts carry the space before them."""
        return self._decoding.piece(self._check_id(index), first=False)

    @property
    def exact_bytes(self) -> bool:
        """Whether a text is the bytes of its tokens, one after the other, but for the space of `drops_space`."""
        return self._decoding.exact

    @property
    def drops_space(self) -> bool:
        """Whether the tokens of a text begin with a space that the text does not have (SentencePiece)."""
        return self._decoding.drops_space

    def spelled(self, text: str) -> list[int] | None:
        """Tokens whose bytes are exactly the text's, in the midst of a longer one; None where there are none such."""
        return self._decoding.spelled(text) if self.drops_space else self.encode(text, parse_special=False)

    # --- encoding

    def encode(self, text: str, *, add_special_tokens: bool = False, parse_special: bool = True) -> list[int]:
        """Ids of a text. `add_special_tokens`: what the post-processor adds (BOS, [CLS] …). `parse_special=False`:
        control tokens in the text are encoded as the characters they are written with."""
        backend = self._backend if parse_special else self._user_backend
        valid = _valid(text)
        try:
            if len(text) > LONG:
                return backend.encode_batch_fast([valid], add_special_tokens=add_special_tokens)[0].ids
            return backend.encode(valid, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            raise self._failed(error) from error

    @cached_property
    def prompt_start(self) -> tuple[int, ...]:
        """The ids that a plain prompt begins with: BOS where the post-processor sets it, else nothing. (An end token
        that a post-processor sets does not belong in a prompt that is continued.)"""
        starts = self.encode("a", add_special_tokens=True)[:1]
        return (self.bos_id,) if self.bos_id is not None and starts == [self.bos_id] else ()

    @property
    def prompt_end(self) -> tuple[int, ...]:
        """The ids that a plain prompt ends with: none, unless an encoder reads it as a whole text."""
        return ()

    def encode_prompt(self, text: str, *, parse_special: bool = True) -> list[int]:
        """The ids of a plain prompt: of the text, and what begins and ends it."""
        return [*self.prompt_start, *self.reading.encode(text, parse_special=parse_special), *self.prompt_end]

    def encode_answer(self, text: str) -> list[int]:
        """The ids of an answer that is a text of its own, with the token that ends it."""
        return [*self.encode(text.strip(), parse_special=False), *self.end]

    @property
    def end(self) -> tuple[int, ...]:
        """The token that ends a text, where there is one."""
        return () if self.eos_id is None else (self.eos_id,)

    def encode_completion(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """The ids of a plain prompt that users wrote, exactly as generation is given them, and of its answer with the
        token that ends it: those of the joined text where it begins with the prompt's, else the answer's own."""
        ids, joined = (self.encode_prompt(text, parse_special=False) for text in (prompt, prompt + answer))
        shares_prefix = joined[: len(ids)] == ids
        return ids, [*(joined[len(ids) :] if shares_prefix else self.encode(answer, parse_special=False)), *self.end]

    def split_continuation(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of a prompt and of the text behind it, tokenised together: what merges at the border is the text's,
        and neither may be empty."""
        alone, whole = self.encode_prompt(prompt), self.encode_prompt(prompt + continuation)
        shared_length = common_length(alone, whole)
        return whole[:shared_length], whole[shared_length:]

    def beside(self, answer: int) -> int:
        """The places that an answer of so many tokens takes where its prompt stands."""
        return answer

    def common_start(self, prompts: Sequence[list[int]]) -> list[int]:
        """The ids that these prompts begin with and that mean the same in each, less one for safety."""
        first, last = min(prompts), max(prompts)
        return first[: max(common_length(first, last) - 1, 0)]

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = False, parse_special: bool = True
    ) -> list[list[int]]:
        """`encode` of each text, in parallel threads."""
        backend = self._backend if parse_special else self._user_backend
        valid = [_valid(text) for text in texts]
        try:
            encodings = backend.encode_batch(valid, add_special_tokens=add_special_tokens)
        except BaseException as error:
            raise self._failed(error) from error
        return [encoding.ids for encoding in encodings]

    def encoder_inputs(self, inputs: Sequence[TextOrPair], limit: int | None = None) -> list[EncoderInput]:
        """Texts, or pairs of texts, as an encoder reads them, in parallel threads: with the special tokens that are set
        around them; control tokens in a text are the characters they are written with. limit: cut to so many tokens."""
        for text_or_pair in inputs:
            for text in (text_or_pair,) if isinstance(text_or_pair, str) else text_or_pair:
                _valid(text)
        try:
            encodings = self._user_backend.encode_batch_fast(list(inputs), add_special_tokens=True)
        except BaseException as error:
            raise self._failed(error) from error
        return [
            encoder_input(encoding, not isinstance(encoder_text, str) and self._tells_types, limit)
            for encoder_text, encoding in zip(inputs, encodings, strict=True)
        ]

    @cached_property
    def _tells_types(self) -> bool:
        """Whether its model is given the types that it sets."""
        names = self._parts.config.get("model_input_names")
        return names is None or "token_type_ids" in names

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        begun: str = "",
        trusted_text: control_tokens.TemplateText | None = None,
        **extra: Any,
    ) -> list[int]:
        """Ids of a conversation: control tokens come from the template only, never from what the messages or tools
        say. BOS is there if the template writes it; none is added. begun: how the answer begins. trusted_text: of
        `own_text`, what spelled texts in the messages whose control tokens are read as such too."""
        if self.chat is None:
            raise TokenizerError(f"{self._parts.source}: it has no chat template; give the prompt as plain text")
        originals = (plain_messages(messages), plain(tools), plain(extra), begun)
        mark = self._control_tokens.choose_mark(originals, self.chat.source)
        marked = tuple(self._control_tokens.mark(originals, mark))
        marked_messages, marked_tools, marked_extra, marked_begun = marked
        clean = originals == marked and (trusted_text is None or not trusted_text.used)
        variables: dict[str, Any] = marked_extra if clean else {**marked_extra, MARK_VARIABLE: mark}
        variables |= {"add_generation_prompt": add_generation_prompt, "tools": marked_tools}
        rendered = self.chat.render(marked_messages, **variables) + marked_begun
        if clean:
            return self.encode(rendered)
        named = self._control_tokens.rename(rendered, mark)
        return self.encode(named if trusted_text is None else trusted_text.named(named), parse_special=False)

    def own_text(self) -> control_tokens.TemplateText:
        """For one conversation: what spells the texts that this program itself writes into its contents, for
        `encode_chat`."""
        return control_tokens.TemplateText(self._control_tokens)

    def encode_conversation(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None, **extra: Any
    ) -> TrainingChat:
        """A whole conversation for instruction tuning: ids, and which are the assistant's. For each assistant message,
        its prompt (the messages before it and the generation prompt) must be a prefix of the whole conversation, and so
        must the conversation up to and including it: training would else see other ids than inference (TemplateError).
        """
        messages = plain_messages(messages)

        def encode(count: int, prompt: bool) -> list[int]:
            return self.encode_chat(messages[:count], add_generation_prompt=prompt, tools=tools, **extra)

        ids, spans = encode(len(messages), False), list[tuple[int, int]]()
        for position, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            if position == 0:
                raise TemplateError("the conversation begins with an assistant message; there is no prompt to answer")
            prompt, upto = encode(position, True), encode(position + 1, False)
            why = "it starts with text that merges with the prompt"
            _check_prefix(prompt, ids, f"the prompt of message {position}", why)
            why = "the template rewrites earlier messages"
            _check_prefix(upto, ids, f"the conversation up to message {position}", why)
            end = len(upto)
            # the end token belongs to the answer, a line break that the template sets behind it does not
            last = next((i for i in range(end - 1, len(prompt) - 1, -1) if ids[i] in self.special_ids), None)
            if last is not None and not self.decode(ids[last + 1 : end], skip_special_tokens=False).strip():
                end = last + 1
            if end <= len(prompt):
                raise TemplateError(f"message {position}: the template writes nothing for this answer")
            spans.append((len(prompt), end))
        if not spans:
            raise TemplateError("the conversation has no assistant message, so nothing in it can be learned")
        return TrainingChat(ids, tuple(spans))

    # --- decoding

    def decode(
        self, ids: Iterable[int], *, skip_special_tokens: bool = True, marks: frozenset[int] = frozenset()
    ) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. Nothing is cleaned up. marks: special tokens that are
        not skipped."""
        return self._decoding.text([self._check_id(index) for index in ids], skip_special_tokens, marks)

    def stream(self, *, skip_special_tokens: bool = True, marks: frozenset[int] = frozenset()) -> StreamDecoder:
        """A decoder for ids that come one at a time. marks: special tokens that are not skipped."""
        return StreamDecoder(self._decoding, skip_special_tokens, marks)

    # --- inside

    def _failed(self, error: BaseException) -> TokenizerError:
        """What stands for an error of the library, and for a panic in it: a pattern that goes back without end, a rule
        that cannot be followed, a word without a token where there is none for unknown ones. Others are raised."""
        need_failure(error)
        return TokenizerError(f"{self._parts.source}: this tokenizer cannot encode the text: {error}")

    @cached_property
    def _user_backend(self) -> tokenizers.Tokenizer:
        return control_tokens.without_control_tokens(self._backend)

    @cached_property
    def _control_tokens(self) -> control_tokens.ControlTokens:
        added = self._backend.get_added_tokens_decoder()
        special = {token.content: index for index, token in added.items() if token.special}
        return control_tokens.ControlTokens(special, (token.content for token in added.values() if not token.special))

    def _check_id(self, index: int) -> int:
        if not 0 <= index < self.vocab_size:
            raise TokenizerError(f"there is no token {index}; the vocabulary has {self.vocab_size} ids")
        return index


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids the two begin with alike."""
    unlike = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(unlike, min(len(first), len(second)))


def _valid(text: str) -> str:
    """Text that can be UTF-8, or DataError naming the position of the lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is "
            "not Unicode text; decode the input as UTF-8 (or UTF-16) before it comes here"
        ) from error
    return text
