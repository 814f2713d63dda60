"""Encodes kept texts into token shards, with a tokenizer that is trained on them or loaded.

A long text is cut here into documents of about a stated length, at the ends of paragraphs, lines or, in texts without
line breaks, sentences nearest to it: rules, deduplication, decontamination and the held-out split see the whole text,
so that its pieces (`ID#1`, `ID#2`, …) stay together.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import ConfigError, TokenizerError
from bedplate.core.files import atomic_write
from bedplate.data.corpus.filter_part import SiftedPart
from bedplate.data.corpus.recipe import CutSettings, TokenizerChoice
from bedplate.data.corpus.shards import INDEX, SPLITS, ShardEntry, ShardWriter, TokenizerEntry
from bedplate.text.tokenizer import Tokenizer

LONGEST = 1.5
"""Lengths that a piece may have at most; the least is a half."""
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_WORDS = re.compile(r"\s*[^\s。！？]+[。！？]*[」』”’）]*|\s*[。！？]+[」』”’）]*|\s+")
"""White space goes before a word; Chinese and Japanese sentences end without any."""
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»」』）)\]]*$")
_PARAGRAPH, _LINE, _SENTENCE, _WORD, _CHARACTER = range(5)
"""What ends where a text may be cut, the better place first."""


def cut_text(text: str, length: int, sizes_of: Callable[[Sequence[str]], Sequence[int]]) -> list[str]:
    """The text in pieces of between a half and one and a half of `length`, which together are the text. Of the places
    that leave such pieces the nearest to `length` is taken among the ends of paragraphs, else of lines, else of
    sentences, else of words. sizes_of: the sizes of some stretches of text, in the unit of `length`."""
    pairs = list(_stretches(text, max(1, length // 4)))  # of which a character has at most 4 tokens
    stretches, ends = [stretch for stretch, _ in pairs], [end for _, end in pairs]
    at = [0, *accumulate(sizes_of(stretches))]
    cuts = [0]
    while at[-1] - at[cuts[-1]] > LONGEST * length:
        target = at[cuts[-1]] + length
        first = max(cuts[-1] + 1, bisect_left(at, target - length / 2))
        last = max(first + 1, bisect_right(at, min(target + length / 2, at[-1] - length / 2)))
        cuts.append(min(range(first, last), key=lambda n: (ends[n - 1], abs(at[n] - target))))
    return ["".join(stretches[start:stop]) for start, stop in zip(cuts, [*cuts[1:], len(stretches)], strict=True)]


def _stretches(text: str, longest: int) -> Iterator[tuple[str, int]]:
    """Lines, or the words of those that are longer than `longest` characters, and what ends behind each."""
    lines = _LINES.findall(text)
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        line_end = _PARAGRAPH if following.strip() and not line.strip() else _LINE
        words = [line] if len(line) <= longest else _WORDS.findall(line)
        for number, word in enumerate(words, start=1):
            inside = _SENTENCE if _SENTENCE_END.search(word) else _WORD
            word_end = line_end if number == len(words) else inside
            for start in range(0, len(word), longest):
                yield word[start : start + longest], word_end if start + longest >= len(word) else _CHARACTER


TRAIN, VALID, COPY = 0, 1, 2
"""Where a document of a part that was kept by the rules goes: one number each, in `split.npy`."""
_TOGETHER = 256


@dataclass(frozen=True)
class ShardGroup:
    """Parts whose documents become one shard of each split."""

    source: str
    number: int
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.source}-{self.number:05}"


def make_tokenizer(
    choice: TokenizerChoice,
    work: Path,
    parts: Sequence[tuple[str, NDArray[np.int8]]],
    train_bytes: int,
    directory: Path,
) -> Tokenizer:
    """Trained on an even draw of the training split, or taken. directory: where the recipe's paths begin. ConfigError
    or TokenizerError for one that has no end token or cannot be read."""
    if choice.train is None:
        return resolve_tokenizer(str(choice.use), directory)
    from bedplate.text.bpe import train_bpe

    texts = _drawn(work, parts, min(1.0, choice.train.sample_mb * 1e6 / max(1, train_bytes)))
    return train_bpe(texts, choice.train.vocab_size, "the trained tokenizer", choice.train.special)


def _drawn(work: Path, parts: Sequence[tuple[str, NDArray[np.int8]]], share: float) -> Iterator[str]:
    for name, split in parts:
        part = SiftedPart(work / "parts" / name)
        chance = part.array("hashes")[:, 1].astype(np.float64) / 2.0**64
        for (_, text), place, draw in zip(part.texts(), split.tolist(), chance.tolist(), strict=True):
            if place == TRAIN and draw < share:
                yield text


def resolve_tokenizer(name: str, relative_to: Path) -> Tokenizer:
    """The tokenizer that a recipe names: of a directory, seen from `relative_to`, or of a base. ConfigError and
    TokenizerError as `make_tokenizer`."""
    from bedplate.hub.pull import resolve

    path = relative_to / Path(name).expanduser()
    directory = path if (path / "tokenizer.json").is_file() else resolve(name)
    if directory.suffix == ".gguf":
        raise ConfigError(
            f"tokenizer.use: {name} is a GGUF file; write its tokenizer out with `bedplate export {name} DIRECTORY` "
            "and name that directory"
        )
    tokenizer = Tokenizer.from_directory(directory)
    if tokenizer.eos_id is None:
        raise TokenizerError(f"{directory} names no eos_token, which must end each document of a corpus")
    return tokenizer


def encode(work: str, out: str, group: Mapping[str, Any], key: str, cut: Mapping[str, Any] | None = None) -> str:
    """A job. Writes a group's shards into `out`, and their entries to `groups/NAME.json` below the work folder; returns
    its name. cut: how long texts are cut."""
    parts, name = Path(work) / "parts", f"{group['source']}-{group['number']:05}"
    tokenizer = Tokenizer.from_directory(Path(out))
    tokenizer_meta = TokenizerEntry.of(tokenizer)
    placements = Path(work) / "splits"
    splits = [(SiftedPart(parts / part), np.load(placements / f"{part}.npy")) for part in group["parts"]]
    settings, cuts = None if cut is None else CutSettings.model_validate(cut), dict[str, dict[int, list[int]]]()
    with ExitStack() as stack:
        writers: dict[int, ShardWriter] = {}
        for number, split in enumerate(SPLITS):
            if any((places == number).any() for _, places in splits):
                file = f"shards/{group['source']}-{split}-{group['number']:05}.ds"
                writer = ShardWriter(Path(out), file, tokenizer_meta, tokenizer_meta.dtype)
                writers[number] = stack.enter_context(writer)
        for part, places in splits:
            texts = ((at, text) for at, (_, text) in enumerate(part.texts()) if places[at] != COPY)
            while batch := list(islice(texts, _TOGETHER)):
                ids = tokenizer.encode_batch([text for _, text in batch], parse_special=False)
                for (at, text), token_ids in zip(batch, ids, strict=True):
                    pieces = [(text, token_ids)] if settings is None else _cut(text, token_ids, settings, tokenizer)
                    for piece, piece_ids in pieces:
                        writers[int(places[at])].write(piece_ids, len(piece.encode()))
                    if len(pieces) > 1:
                        cuts.setdefault(part.directory.name, {})[at] = [len(piece) for piece, _ in pieces]
    entries = {SPLITS[number]: writer.shard.model_dump(mode="json") for number, writer in writers.items()}
    record = {"key": key, "entries": entries, "cuts": cuts}
    atomic_write(Path(work) / "groups" / f"{name}.json", json.dumps(record, indent=1))
    return name


def _cut(text: str, ids: list[int], settings: CutSettings, tokenizer: Tokenizer) -> Sequence[tuple[str, list[int]]]:
    """A text's documents, each with its ids."""
    encode_all = partial(tokenizer.encode_batch, parse_special=False)
    length, in_tokens = settings.tokens or settings.characters or 1, settings.tokens is not None
    if len(ids if in_tokens else text) <= LONGEST * length:
        return [(text, ids)]
    pieces = cut_text(text, length, lambda texts: list(map(len, encode_all(texts) if in_tokens else texts)))
    return list(zip(pieces, encode_all(pieces), strict=True))


Cuts = Mapping[str, Mapping[int, tuple[int, ...]]]
"""Of each part the texts that were cut, by their place among those that the rules kept: characters of each piece."""


def encoded(work: Path, out: Path, name: str, key: str) -> tuple[dict[str, ShardEntry], Cuts] | None:
    """A group that was done before and whose shards lie there whole, by split, with its cuts; else None."""
    path = work / "groups" / f"{name}.json"
    if not path.is_file():
        return None
    values = json.loads(path.read_text("utf-8"))
    entries = {split: ShardEntry.model_validate(shard) for split, shard in values["entries"].items()}
    complete = all((out / f"{shard.file}{end}").is_file() for shard in entries.values() for end in ("", INDEX))
    cuts = {
        part: {int(at): tuple(sizes) for at, sizes in texts.items()} for part, texts in values.get("cuts", {}).items()
    }
    return (entries, cuts) if values["key"] == key and complete else None
