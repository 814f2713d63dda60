"""Quality heuristics for prose and code, with the outcomes of datatrove's filters.

Gopher (https://arxiv.org/abs/2112.11446, appendix A1.1), FineWeb (https://arxiv.org/abs/2406.17557, section 3.6), C4
(https://arxiv.org/abs/1910.10683, section 2.2; datatrove follows tensorflow_datasets' code), and for source code The
Stack and StarCoder (https://arxiv.org/abs/2305.06161, section 3; https://arxiv.org/abs/2107.03374, section 3.1).
Repetition is Gopher's table A1, over hashes of n-grams of words. Personal data is replaced by datatrove's patterns;
here each document begins with the first replacement, so that none depends on its neighbours.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from bedplate.core.config import Strict
from bedplate.data.corpus.curate.draft import PARAGRAPHS, DraftDocument, Rule, TextWords, Tools
from bedplate.data.corpus.repeated import longer


class LengthSettings(Strict):
    """Characters."""

    min_characters: int = 1
    max_characters: int = 10_000_000


def length(settings: LengthSettings, tools: Tools) -> Rule:
    """Too short to say anything, or so long that it is no document."""

    def rule(draft: DraftDocument) -> str | None:
        size = len(draft.text.strip())
        if size < settings.min_characters:
            return f"short: {size} characters" if size else "empty"
        too_long = size > settings.max_characters and not tools.cuts
        return f"long: {size} characters" if too_long else None

    return rule


class GopherSettings(Strict):
    """Gopher's thresholds."""

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3
    max_word_length: float = 10
    max_symbols_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_words_with_letter: float = 0.8
    min_stop_words: int = 2


def gopher(settings: GopherSettings, tools: Tools) -> Rule:
    """Words, symbols, bullets, ellipses, letters and stop words."""

    def rule(draft: DraftDocument) -> str | None:
        words, text = draft.words, draft.text
        real = words["length"][~words["symbol"]]
        if len(real) < settings.min_words:
            return f"few_words: {len(real)}"
        if len(real) > settings.max_words and not tools.cuts:
            return f"many_words: {len(real)}"
        mean = float(real.mean())
        if mean < settings.min_word_length:
            return f"short_words: {mean:.2f} characters on average"
        if mean > settings.max_word_length:
            return f"long_words: {mean:.2f} characters on average"
        hashes = text.count("#") / words.count
        if hashes > settings.max_symbols_per_word:
            return f"hashes: {hashes:.3f} a word"
        ellipses = (text.count("...") + text.count("…")) / words.count
        if ellipses > settings.max_symbols_per_word:
            return f"ellipses: {ellipses:.3f} a word"
        if "•" in text or "-" in text:
            lines = text.splitlines()
            bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
            if bullets > settings.max_bullet_lines:
                return f"bullets: {bullets:.3f} of lines"
        if ellipses:
            lines = text.splitlines()
            ends = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
            if ends > settings.max_ellipsis_lines:
                return f"ellipsis_lines: {ends:.3f} of lines"
        letters = int(words["alpha"].sum()) / words.count
        if letters < settings.min_words_with_letter:
            return f"few_letters: {letters:.3f} of words have one"
        stops = int(np.count_nonzero(np.bincount(words["stop"])[1:]))
        return f"stop_words: {stops} of 8" if stops < settings.min_stop_words else None

    return rule


class FineWebSettings(Strict):
    """FineWeb's thresholds."""

    min_punctuated_lines: float = 0.12
    punctuated_lines_may_be_none: bool = False
    max_short_lines: float = 0.67
    short_line: int = 30
    max_duplicate_characters: float = 0.01
    max_newlines_per_word: float = 0.3


def fineweb(settings: FineWebSettings, tools: Tools) -> Rule:
    """Ends of lines, short lines, repeated lines, lists."""
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    def rule(draft: DraftDocument) -> str | None:
        lines = draft.lines
        if not lines:
            return "empty"
        punctuated = sum(line[-1] in TERMINAL_PUNCTUATION for line in lines) / len(lines)
        if punctuated < settings.min_punctuated_lines and (punctuated or not settings.punctuated_lines_may_be_none):
            return f"punctuated_lines: {punctuated:.3f}"
        short = sum(len(line) <= settings.short_line for line in lines) / len(lines)
        if short > settings.max_short_lines:
            return f"short_lines: {short:.3f}"
        breaks = draft.text.count("\n")
        repeated = repeats(lines)[1] / (len(draft.text) - breaks)
        if repeated > settings.max_duplicate_characters:
            return f"duplicate_lines: {repeated:.3f} of characters"
        if breaks <= settings.max_newlines_per_word * draft.least_words:
            return None
        newlines = breaks / draft.words.count
        return f"list: {newlines:.3f} newlines a word" if newlines > settings.max_newlines_per_word else None

    return rule


def repeats(segments: list[str]) -> tuple[int, int]:
    """How many came before, and their characters."""
    if len(set(segments)) == len(segments):
        return 0, 0
    unique: set[str] = set()
    count = characters = 0
    for segment in segments:
        if segment in unique:
            count += 1
            characters += len(segment)
        else:
            unique.add(segment)
    return count, characters


_CITATIONS = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_ENDS = (".", "?", "!", '"', "'")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_PARTS = ("cookie", "terms of use", "privacy policy")
"""Each policy has one of these."""


class C4Settings(Strict):
    """C4's thresholds. FineWeb keeps lines that end in no punctuation (`punctuated` false)."""

    punctuated: bool = True
    min_sentences: int = 5
    min_words_per_line: int = 3
    max_word: int = 1000
    citations: bool = True
    lorem_ipsum: bool = True
    javascript: bool = True
    curly_bracket: bool = True
    policies: bool = True


def c4(settings: C4Settings, tools: Tools) -> Rule:
    """Lines that end like no sentence, that speak of cookies or JavaScript; then documents with few sentences."""

    def rule(draft: DraftDocument) -> str | None:
        lines: list[str] = []
        everywhere = draft.text.lower()  # what is nowhere is looked for in no line
        lorem = settings.lorem_ipsum and "lorem ipsum" in everywhere
        javascript = settings.javascript and "javascript" in everywhere
        speaks = settings.policies and any(part in everywhere for part in _PARTS)
        policies = [policy for policy in _POLICIES if speaks and policy in everywhere]
        watched = lorem or javascript or bool(policies)
        bracket = settings.curly_bracket and "{" in draft.text
        for whole in draft.text.splitlines():
            line = whole.strip()
            if len(line) > settings.max_word and any(len(word) > settings.max_word for word in whole.split()):
                continue
            if settings.citations and "[" in line:
                line = _CITATIONS.sub("", line)
            if settings.punctuated and (not line.endswith(_ENDS) or line.endswith("...")):
                continue
            if len(whole.split(None, settings.min_words_per_line)) < settings.min_words_per_line:
                continue
            lower = line.lower() if watched else ""
            if lorem and "lorem ipsum" in lower:
                return "lorem_ipsum"
            if javascript and "javascript" in lower:
                continue
            if bracket and "{" in line:
                return "curly_bracket"
            if policies and any(policy in lower for policy in policies):
                continue
            lines.append(line)
        count = _sentences(lines, settings.min_sentences, tools)
        if count < settings.min_sentences:
            return f"few_sentences: {count} in {len(lines)} lines that were kept"
        draft.text = "\n".join(lines).strip()
        return None

    return rule


def _sentences(lines: list[str], minimum: int, tools: Tools) -> int:
    """How many there are, counted no further than must be: every line that says something has one."""
    plain = sum(1 for line in lines if line.strip())
    return plain if plain >= minimum else sum(map(tools.vocabulary.sentences, lines))


_GENERATED = re.compile(
    r"auto[- ]?generated|generated (?:automatically|by|from)|do not (?:edit|modify)|this file (?:is|was) generated",
    re.I,
)
_HEX = re.compile(r"(?:\\x[0-9a-fA-F]{2}|0x[0-9a-fA-F]{2}\s*,|[0-9a-fA-F]{64,}|[A-Za-z0-9+/]{200,}={0,2})")


class CodeSettings(Strict):
    """max_line, max_mean_line: characters; min_letters_digits: share of characters; generated_lines: how many lines are
    looked through for what programs say of their output; max_data: share of characters in encoded bytes."""

    min_characters: int = 100
    max_characters: int = 1_000_000
    max_line: int = 1000
    max_mean_line: float = 100
    min_letters_digits: float = 0.25
    generated_lines: int = 5
    max_data: float = 0.5


def code(settings: CodeSettings, tools: Tools) -> Rule:
    """Minified, generated, data that is written as code, or hardly any text."""

    def rule(draft: DraftDocument) -> str | None:
        text = draft.text
        if len(text) < settings.min_characters:
            return f"short: {len(text)} characters"
        if len(text) > settings.max_characters:
            return f"long: {len(text)} characters"
        lines = text.splitlines()
        longest = max(map(len, lines))
        if longest > settings.max_line:
            return f"long_line: {longest} characters"
        mean = sum(map(len, lines)) / len(lines)
        if mean > settings.max_mean_line:
            return f"long_lines: {mean:.0f} characters on average"
        share = sum(map(str.isalnum, text)) / len(text)
        if share < settings.min_letters_digits:
            return f"few_letters: {share:.2f} of characters are letters or digits"
        for number, line in enumerate(lines[: settings.generated_lines], start=1):
            if _GENERATED.search(line):
                return f"generated: line {number} says {line.strip()[:80]!r}"
        data = sum(match.end() - match.start() for match in _HEX.finditer(text)) / len(text)
        return f"data: {data:.2f} of characters are encoded bytes" if data > settings.max_data else None

    return rule


class RepetitionSettings(Strict):
    """Shares that may be repetition: of lines, paragraphs and their characters, and of characters in the most frequent
    n-gram (`top`) or in n-grams that came before (`duplicate`), by n."""

    lines: float = 0.3
    paragraphs: float = 0.3
    line_characters: float = 0.2
    paragraph_characters: float = 0.2
    top: Mapping[int, float] = {2: 0.2, 3: 0.18, 4: 0.16}
    duplicate: Mapping[int, float] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def repetition(settings: RepetitionSettings, tools: Tools) -> Rule:
    """Lines, paragraphs and n-grams said again."""

    def rule(draft: DraftDocument) -> str | None:
        text = draft.text
        if not text:
            return "empty"
        inner = text.strip()
        paragraphs = PARAGRAPHS.split(inner) if "\n\n" in inner else [inner]
        count, characters = repeats(paragraphs)
        if count / len(paragraphs) > settings.paragraphs:
            return f"paragraphs: {count} of {len(paragraphs)} were there before, over {settings.paragraphs:g}"
        if characters / len(text) > settings.paragraph_characters:
            return f"paragraph_characters: {characters / len(text):.3f}"
        lines = _lines(text)
        count, characters = repeats(lines)
        if count / len(lines) > settings.lines:
            return f"lines: {count} of {len(lines)} were there before, over {settings.lines:g}"
        if characters / len(text) > settings.line_characters:
            return f"line_characters: {characters / len(text):.3f}"
        return _n_grams(draft.words, len(text), settings)

    return rule


def _lines(text: str) -> list[str]:
    """As split by runs of newlines: an empty one before the first run, and behind the last, at the text's ends."""
    lines = [line for line in text.split("\n") if line]
    return [*([""] if text[0] == "\n" else []), *lines, *([""] if text[-1] == "\n" else [])]


def _n_grams(words: TextWords, characters: int, settings: RepetitionSettings) -> str | None:
    before = np.concatenate([[0], np.cumsum(words["length"])])
    hashes = grams = words["hash"]
    for n in range(2, max((0, *settings.top, *settings.duplicate)) + 1):
        grams = longer(grams, hashes, n - 1)
        if not len(grams):
            return None
        if n not in settings.top and n not in settings.duplicate:
            continue
        repeat_count = _repeated(grams)
        longest = int((before[n:] - before[:-n]).max())
        # what no n-gram of these can reach is not counted
        if n in settings.top and (longest + n - 1) * (repeat_count + 1) / characters > settings.top[n]:
            at, count = _most_frequent(grams)
            share = (int(before[at + n] - before[at]) + n - 1) * count / characters
            if share > settings.top[n]:
                return f"top_{n}_gram: {share:.3f} of characters"
        if not repeat_count and n >= max((0, *settings.top)):
            return None  # nor does a longer one occur twice
        if n in settings.duplicate and longest * repeat_count / characters > settings.duplicate[n]:
            share = _said_again(grams, before, n) / characters
            if share > settings.duplicate[n]:
                return f"duplicate_{n}_grams: {share:.3f} of characters"
    return None


def _repeated(grams: NDArray[np.uint64]) -> int:
    """How many came before."""
    ordered = np.sort(grams)
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def _most_frequent(grams: NDArray[np.uint64]) -> tuple[int, int]:
    """Where it is first, and how often it occurs; of several so frequent the one that came first."""
    _, first, count = np.unique(grams, return_index=True, return_counts=True)
    largest = count.max()
    return int(first[count == largest].min()), int(largest)


def _said_again(grams: NDArray[np.uint64], before: NDArray[np.int64], n: int) -> int:
    """Characters in n-grams that came before, none counted twice. Only those that occur twice can be."""
    ordered = np.sort(grams)
    duplicates = ordered[1:][ordered[1:] == ordered[:-1]]
    at = np.minimum(np.searchsorted(duplicates, grams), len(duplicates) - 1)
    places = np.flatnonzero(duplicates[at] == grams)
    visited: set[int] = set()
    characters = free = 0
    for place, gram in zip(places.tolist(), grams[places].tolist(), strict=True):
        if place < free:
            continue
        if gram in visited:
            characters += int(before[place + n] - before[place])
            free = place + n
        else:
            visited.add(gram)
    return characters


_BYTE = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
_WORD = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_MAIL = re.compile(
    rf"\b{_WORD}(?:\.{_WORD})*@(?:(?:{_HOST}\.)+{_HOST}|\[(?:{_BYTE}\.){{3}}"
    r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?|[A-Za-z0-9-]*[A-Za-z0-9]:)])"
)
_ADDRESS = re.compile(rf"(?:{_BYTE}\.){{3}}{_BYTE}")
_INNER_OCTET = re.compile(r"\.[0-9]{1,3}\.[0-9]")
"""What every address has, and what is found faster."""


class PersonalSettings(Strict):
    """What is replaced, and by what, in turn."""

    mail: bool = True
    addresses: bool = True
    public_only: bool = True
    mail_replacements: tuple[str, ...] = ("email@example.com", "firstname.lastname@example.org")
    address_replacements: tuple[str, ...] = (
        *("22.214.171.124", "126.96.36.199", "188.8.131.52"),
        *("184.108.40.206", "220.127.116.11", "18.104.22.168"),
    )


def personal(settings: PersonalSettings, tools: Tools) -> Rule:
    """Replaces; never drops."""

    def rule(draft: DraftDocument) -> str | None:
        text = draft.text
        if settings.mail and "@" in text:
            text = _MAIL.sub(_in_turn(settings.mail_replacements), text)
        if settings.addresses and _INNER_OCTET.search(text):
            turn = _in_turn(settings.address_replacements)
            text = _ADDRESS.sub(lambda m: turn(m) if _is_meant(m[0], settings.public_only) else m[0], text)
        draft.text = text
        return None

    return rule


def _in_turn(replacements: tuple[str, ...]) -> Callable[[re.Match[str]], str]:
    turn = cycle(replacements)
    return lambda _: next(turn)


def _is_meant(text: str, public_only: bool) -> bool:
    try:
        return not public_only or ipaddress.ip_address(text).is_global
    except ValueError:
        return False
