"""A SentencePiece vocabulary of scores (Llama-2, Mistral, Gemma) as a `tokenizers` one, and back.

SentencePiece (Kudo and Richardson, https://arxiv.org/abs/1808.06226) joins the two neighbours whose union has the best
score, again and again; spaces are `▁`, and a character without a token is its bytes. As a table of merges that is
every way to cut every token in two, in the order of the tokens' scores. Two cuts of one token have one score: of those
the one with the longer left part comes first, as a run of one character is joined from the left.

Unigram vocabularies (T5; Kudo, https://arxiv.org/abs/1804.10959) cut a text into the pieces whose scores have the
largest sum, after characters are replaced by a table that the vocabulary's trainer compiled.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bedplate.core.errors import TokenizerError

SPACE = "▁"
_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPENDED = {"type": "Prepend", "prepend": SPACE}


def build(
    tokens: Sequence[str], scores: Sequence[float], joined: Collection[int], unknown: str | None, prefix: bool
) -> Tokenizer:
    """The tokenizer, without its added tokens. joined: ids that characters may be joined to; control tokens and bytes
    are not. unknown: the token of what has neither a token nor bytes. prefix: a space is put before every piece of
    text."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _merges([tokens[index] for index in joined], [scores[index] for index in joined])
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    backend.decoder = decoders.Sequence([*_decoding(), decoders.Strip(" ", 1, 0)] if prefix else _decoding())
    return backend


def build_merged(tokens: Sequence[str], merges: Sequence[tuple[str, str]], unknown: str | None) -> Tokenizer:
    """One with merges in the place of scores, as Gemma 4's files have it: lines are apart from the runs of newlines
    between them, and a run that is a token is that one, whatever merges lead to."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    runs = [token for token in tokens if token and not token.strip("\n")]

    def assemble(whole: bool) -> Tokenizer:
        options = {"fuse_unk": True, "byte_fallback": True, "ignore_merges": whole}
        backend = Tokenizer(models.BPE(vocabulary, list(merges), unk_token=unknown, **options))
        backend.normalizer = normalizers.Replace(" ", SPACE)
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
        backend.decoder = decoders.Sequence(_decoding())
        return backend

    plain = assemble(False)
    # Where merges do not lead to every run, words that are tokens are taken whole: lines too, which merges lead to.
    return plain if all(plain.encode(run).ids == [vocabulary[run]] for run in runs) else assemble(True)


def _decoding() -> list[Any]:
    return [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]


def _merges(vocabulary: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that joins to a third, ordered by the third's score: the first tokens of the vocabulary have
    scores, and those that share one keep their order; of one token's pairs the one with the longer left part is
    first."""
    tokens = set(vocabulary)
    merges: list[tuple[str, str]] = []
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        token = vocabulary[index]
        for cut in range(len(token) - 1, 0, -1):
            if token[:cut] in tokens and token[cut:] in tokens:
                merges.append((token[:cut], token[cut:]))
    return merges


def byte_tokens() -> list[str]:
    """What the tokens of single bytes are called."""
    return [f"<0x{byte:02X}>" for byte in range(256)]


def is_one(content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer (its JSON) has the shape of `build`, so that scores could say what it does."""
    model = content["model"]
    return model["type"] == "BPE" and bool(model.get("byte_fallback")) and _prefix(content) is not None


def _prefix(content: Mapping[str, Any]) -> bool | None:
    """Whether a space is put before every piece of text; None for another normalisation than SentencePiece's."""
    step, before = content["normalizer"], content["pre_tokenizer"]
    # Gemma's tokenizer.json also splits at spaces, when none are left
    idle = before is None or (before["type"] == "Split" and before["pattern"] == {"String": " "})
    if not idle or step is None:
        return None
    steps = step["normalizers"] if step["type"] == "Sequence" else [step]
    return {1: False, 2: True}[len(steps)] if steps in ([_REPLACED], [_PREPENDED, _REPLACED]) else None


def scores_of(content: Mapping[str, Any], tokens: Sequence[str], source: str) -> tuple[list[float], bool]:
    """A score for each token, and whether there is a prefix, from a tokenizer's JSON. TokenizerError where its merges
    are not those that any scores give."""
    merges = [(left, right) for left, right in content["model"]["merges"]]
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    scores = [float(-ranks[token]) if token in ranks else 0.0 for token in tokens]
    vocabulary = list(dict.fromkeys((*ranks, *chain.from_iterable(merges))))
    if _merges(vocabulary, [-float(rank) for rank in ranks.values()]) != merges:
        raise TokenizerError(
            f"{source}: its merges do not follow from a score of each token, which is all that a SentencePiece "
            "vocabulary in GGUF can say; export a Hugging Face directory instead"
        )
    return scores, bool(_prefix(content))


_SPACES = [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": space} for space in (" ", "▁")]
_END = {"type": "Strip", "strip_left": False, "strip_right": True}


def build_unigram(
    tokens: Sequence[str], scores: Sequence[float], unknown: int, table: bytes, prefix: bool, one_space: bool
) -> Tokenizer:
    """The tokenizer, without its added tokens. unknown: the id of what has no piece. table: the compiled one of
    characters, empty where there is none. prefix: a space is put before every text; one_space: of several only one is
    left, and none at a text's end."""
    backend = Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), unknown, False))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(table)] if table else []
    if one_space:
        steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    scheme = "always" if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return backend


def is_unigram(content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer, as its JSON says it, is of this kind."""
    return content["model"]["type"] == "Unigram"


def unigram_fields(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The inverse of `build_unigram`: what a GGUF file says of it. TokenizerError where it cannot.
    (Older conversions of T5's vocabulary keep a space at the end of a text, which SentencePiece itself drops; the file
    means SentencePiece.)"""
    steps = content["normalizer"]
    steps = [] if steps is None else steps["normalizers"] if steps["type"] == "Sequence" else [steps]
    tables = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    spaces = [step for step in steps if step in _SPACES]
    ends = [step for step in steps if step == _END]
    before = content["pre_tokenizer"] or {}
    scheme = before.get("prepend_scheme")
    if (
        len(tables) > 1
        or len(tables) + len(spaces) + len(ends) != len(steps)
        or len(ends) > len(spaces)
        or before.get("type") != "Metaspace"
        or scheme not in ("always", "never")
        or content["model"].get("byte_fallback")
    ):
        raise TokenizerError(
            f"{source}: of Unigram tokenizers only those can be written into a GGUF file that replace characters by a "
            "compiled table, join spaces and mark them as SentencePiece does; export a Hugging Face directory instead"
        )
    fields: dict[str, Any] = {
        "model": "t5",
        "pre": "default",
        "add_space_prefix": scheme == "always",
        "remove_extra_whitespaces": bool(spaces),
        "unknown_token_id": content["model"]["unk_id"],
    }
    return fields | ({"precompiled_charsmap": base64.b64decode(tables[0])} if tables else {})


def unigram_table(value: Any) -> bytes:
    """The compiled table out of a file's array, whose numbers may have signs."""
    numbers = value.tolist() if hasattr(value, "tolist") else value
    return bytes(int(number) & 0xFF for number in numbers or ())
