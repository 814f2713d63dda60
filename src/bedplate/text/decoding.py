"""Token ids back to bytes, whole or one at a time.

Which bytes a token stands for depends on the tokenizer's decoder:

- *byte-level* (GPT-2 BPE): each character of the token stands for one byte;
- *byte fallback* (SentencePiece): `▁` is a space, `<0x0A>` is one byte, and the first space of a text is stripped where
  the decoder says so;
- *words* (WordPiece, Metaspace, none): a token's text depends only on whether it comes first (`##ing` joins, ` word`
  starts with a space except at the start). Text made of such tokens is not always what was encoded: WordPiece does
  not remember the spaces. Metaspace (T5's and other Unigram vocabularies) does: there, too, `▁` is a space.
- *whole*: any other decoder, which sees the whole sequence; a stream of such a tokenizer gives all its text at the end.

Decoding is the concatenation of the pieces, then UTF-8 with replacement characters; so a stream that holds back
incomplete characters yields exactly what decoding the whole gives.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from typing import Any, Literal

import tokenizers

DecoderType = Literal["byte_level", "byte_fallback", "words", "whole"]


def byte_alphabet() -> dict[int, str]:
    """GPT-2's map from bytes to printable characters: printable Latin-1 stays, the other 68 follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(unprintable)}


BYTE_OF = {character: byte for byte, character in byte_alphabet().items()}


def state(step: Any) -> Any:
    """One step of a tokenizer (decoder, pre-tokenizer …) as its JSON, without writing the vocabulary out."""
    return None if step is None else json.loads(step.__getstate__())


def _decoder_type(decoder: dict[str, Any] | None) -> tuple[DecoderType, int]:
    """The kind, and how many leading spaces of a text are stripped."""
    if decoder is None:
        return "words", 0
    parts: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    names = [part["type"] for part in parts]
    if names == ["ByteLevel"]:
        return "byte_level", 0
    if names in (["WordPiece"], ["Metaspace"]):
        return "words", 0
    if names in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        strip = parts[-1] if names[-1] == "Strip" else {"content": " ", "start": 0, "stop": 0}
        if parts[0]["pattern"] == {"String": "▁"} and parts[0]["content"] == " " and strip["content"] == " ":
            return ("byte_fallback", int(strip["start"])) if strip["stop"] == 0 else ("whole", 0)
    return "whole", 0


class Decoding:
    """The bytes of each token of one tokenizer."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._added = dict(backend.get_added_tokens_decoder())
        self.special = frozenset(index for index, token in self._added.items() if token.special)
        self.decoder_type, self.strip = _decoder_type(state(backend.decoder))
        step = state(backend.decoder)
        metaspace = step if step is not None and step["type"] == "Metaspace" and step["replacement"] == "▁" else None
        self.exact = self.decoder_type in {"byte_level", "byte_fallback"} or metaspace is not None
        """Whether a text is the bytes of its tokens one after the other, but for the space that it may begin with."""
        self.drops_space = self.strip == 1 or (metaspace is not None and metaspace.get("prepend_scheme") != "never")
        """Whether the space is dropped that tokens of a text begin with."""
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._anchor = self._anchor_id() if self.decoder_type == "words" else 0

    def piece(self, index: int, first: bool) -> bytes:
        """The bytes that a token adds to a text, at its start or later."""
        key = (index, first)
        content = self._pieces.get(key)
        if content is None:
            content = self._pieces[key] = self._token_bytes(index, first)
        return content

    def text(self, ids: Iterable[int], skip_special_tokens: bool, marks: frozenset[int] = frozenset()) -> str:
        skipped = self.special - marks if skip_special_tokens else frozenset[int]()
        visible_ids = [index for index in ids if index not in skipped]
        if self.decoder_type == "whole":
            return self._backend.decode(visible_ids, skip_special_tokens=False)
        joined = b"".join(self.piece(index, position == 0) for position, index in enumerate(visible_ids))
        for _ in range(self.strip):
            joined = joined.removeprefix(b" ")
        return joined.decode("utf-8", errors="replace")

    def _token_bytes(self, index: int, first: bool) -> bytes:
        added = self._added.get(index)
        if added is not None and self.decoder_type != "words":
            return added.content.encode("utf-8")
        token = self._backend.id_to_token(index)
        if token is None:
            return b""
        if self.decoder_type == "byte_level" and all(character in BYTE_OF for character in token):
            return bytes(BYTE_OF[character] for character in token)
        if self.decoder_type == "byte_fallback":
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                return bytes.fromhex(token[3:5])
            return token.replace("▁", " ").encode("utf-8")
        if self.decoder_type == "words":
            decode = self._backend.decode
            if first:
                return decode([index], skip_special_tokens=False).encode("utf-8")
            before = decode([self._anchor], skip_special_tokens=False)
            return decode([self._anchor, index], skip_special_tokens=False)[len(before) :].encode("utf-8")
        return token.encode("utf-8")

    def spelled(self, text: str) -> list[int] | None:
        """Tokens whose bytes are the text's, in the midst of one: nothing is normalised, no space put before it. None
        where there are none such. For vocabularies in which `▁` is a space."""
        ids = [token.id for token in self._backend.model.tokenize(text.replace(" ", "▁"))]
        return ids if b"".join(self.piece(index, first=False) for index in ids) == text.encode() else None

    def _anchor_id(self) -> int:
        """A token with text of its own, to see what another adds behind it."""
        for token, index in self._backend.get_vocab(with_added_tokens=False).items():
            if index not in self._added and token.isalnum():
                return index
        return 0


class StreamDecoder:
    """Text of token ids that come one at a time. Never emits half a character: the bytes of an incomplete one wait
    for the next token. The emitted pieces, `flush()` included, concatenate to `decode` of all the ids."""

    def __init__(
        self, decoding: Decoding, skip_special_tokens: bool = True, marks: frozenset[int] = frozenset()
    ) -> None:
        self._decoding = decoding
        self._skipped = decoding.special - marks if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True
        self._strip = decoding.strip
        self._pending: list[int] = []

    def push(self, index: int) -> str:
        """The text that this token completes; often empty in the middle of a character."""
        if index in self._skipped:
            return ""
        if self._decoding.decoder_type == "whole":
            self._pending.append(index)
            return ""
        piece = self._decoding.piece(index, self._first)
        self._first = False
        while self._strip and piece:
            if not piece.startswith(b" "):
                self._strip = 0
                break
            piece = piece[1:]
            self._strip -= 1
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """The rest: an incomplete character becomes U+FFFD. The decoder can then be used for a new text."""
        remainder = self._utf8.decode(b"", final=True)
        if self._pending:
            remainder += self._decoding.text(self._pending, skip_special_tokens=False)
        self._utf8.reset()
        self._first, self._strip, self._pending = True, self._decoding.strip, []
        return remainder
