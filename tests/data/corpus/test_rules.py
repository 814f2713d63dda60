"""Rules against datatrove's own filters, on real text and on text made to be refused."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedplate.core.errors import ConfigError
from bedplate.data.corpus.curate.draft import DraftDocument, Rule, Tools
from bedplate.data.corpus.curate.presets import PRESETS, RULES, JudgedSettings, checked, judged, rules_of
from bedplate.data.corpus.curate.quality import (
    C4Settings,
    CodeSettings,
    FineWebSettings,
    GopherSettings,
    PersonalSettings,
    RepetitionSettings,
    c4,
    code,
    fineweb,
    gopher,
    personal,
    repetition,
)

pytest.importorskip("datatrove")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
ROOT = Path(__file__).parents[3]


def made_texts() -> list[str]:
    """Of every kind that a rule is for, each a few times."""
    draw = random.Random(0)
    words = [
        "the",
        "of",
        "and",
        "to",
        "that",
        "have",
        "with",
        "house",
        "don't",
        "U.S.",
        "river,",
        "(small)",
        "3.14",
        "run!",
        "café",
        "naïve",
        "…",
        "#tag",
        "-",
        "http://a.b/c",
    ]
    texts = ["", "one", "   \n\n ", "#" * 300, "• point\n" * 80, "wait...\n" * 70, "{ braces } " * 90]
    for size in (30, 60, 200, 600):
        for _ in range(5):
            text = " ".join(draw.choices(words, k=size))
            texts += [
                text,
                text.replace(" ", "\n", size // 3),
                f"{text}.\n{text}.\n\n{text}?",
                text.replace("the", "xyzzy"),
            ]
    line = "The quick brown fox jumps over the lazy dog and then it sleeps. "
    texts += [(line + "\n") * n + " ".join(draw.choices(words, k=120)) for n in range(1, 9)]
    texts += [
        "supercalifragilisticexpialidocious " * 80,
        "a b c d e f g h " * 40,
        "Lorem ipsum dolor sit amet today. " * 9,
    ]
    return texts


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """And real ones: the documentation, and modules of the standard library."""
    pages = [path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    library = [path.read_text("utf-8") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))[:4]]
    whole = [text[:10_000] for text in [*pages[:6], *library]]
    return made_texts() + whole + [part for text in pages for part in text.split("\n\n") if len(part) > 200][:80]


CASES: list[tuple[str, Callable[[], Rule], str, dict[str, Any]]] = [
    ("gopher_quality_filter.GopherQualityFilter", lambda: gopher(GopherSettings(), TOOLS), "gopher", {}),
    (
        "gopher_repetition_filter.GopherRepetitionFilter",
        lambda: repetition(RepetitionSettings(), TOOLS),
        "repetition",
        {},
    ),
    ("fineweb_quality_filter.FineWebQualityFilter", lambda: fineweb(FineWebSettings(), TOOLS), "fineweb", {}),
    ("c4_filters.C4QualityFilter", lambda: c4(C4Settings(), TOOLS), "c4", {}),
    (
        "c4_filters.C4QualityFilter",
        lambda: c4(C4Settings(punctuated=False), TOOLS),
        "c4 as FineWeb has it",
        {"filter_no_terminal_punct": False},
    ),
]
TOOLS = Tools()
REASONS = {
    "gopher_short_doc": "few_words", "gopher_above_avg_threshold": "long_words", "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses", "gopher_too_many_bullets": "bullets",
    "gopher_enough_stop_words": "stop_words",
    "gopher_too_many_end_ellipsis": "ellipsis_lines", "gopher_below_alpha_threshold": "few_letters",
    "gopher_below_avg_threshold": "short_words", "gopher_long_doc": "many_words", "dup_para_frac": "paragraphs",
    "dup_para_char_frac": "paragraph_characters", "dup_line_frac": "lines", "dup_line_char_frac": "line_characters",
    "line_punct_ratio": "punctuated_lines", "short_line_ratio": "short_lines", "char_dup_ratio": "duplicate_lines",
    "list_ratio": "list", "too_few_sentences": "few_sentences", "lorem_ipsum": "lorem_ipsum", "empty": "empty",
    "curly_bracket": "curly_bracket", **{f"top_{n}_gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_grams" for n in range(5, 11)},
}  # fmt: skip


@pytest.mark.parametrize(("name", "build_rule", "rule", "settings"), CASES, ids=[case[2] for case in CASES])
def test_the_outcome_and_the_reason_are_datatroves(
    texts: list[str], name: str, build_rule: Callable[[], Rule], rule: str, settings: dict[str, Any]
) -> None:
    import importlib

    from datatrove.data import Document

    module, _, class_name = name.partition(".")
    theirs = getattr(importlib.import_module(f"datatrove.pipeline.filters.{module}"), class_name)(**settings)
    ours = build_rule()
    reasons: set[str | None] = set()
    for text in texts:
        if not text.strip() and rule in {"gopher", "fineweb"}:
            continue  # theirs divides by no words
        document, draft = Document(text=text, id="x"), DraftDocument(text, {}, TOOLS)
        verdict, reason = theirs.filter(document), ours(draft)
        expected = None if verdict is True else REASONS[verdict[1]] if isinstance(verdict, tuple) else "dropped"
        assert (None if reason is None else reason.partition(":")[0]) == expected, (text[:200], reason, verdict)
        if expected is None:
            assert draft.text == document.text
        reasons.add(expected)
    assert None in reasons
    assert len(reasons) > 2


def test_sentences_are_counted_as_datatrove_has_spacy_count_them(texts: list[str]) -> None:
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    theirs = load_word_tokenizer("en")
    odd = ["", "...", "? Who", "A. b", "A.  b. .", "Wait... what?! No.", "Mr. Smith went. U.S. law!", "(He left.) She.",
           "a.\tb", "x\u00a0y. z", "«Oui.» Non。 Ja", "IS_ALPHA is. so", "1. 2. 3", "- . -", "end."]  # fmt: skip
    counted: set[int] = set()
    lines = [line.strip() for text in texts[-60:] for line in text.splitlines()[:4]]
    for line in [*odd, *lines, *(" ".join(text.split()) for text in texts[-40:])]:
        counted.add(TOOLS.vocabulary.sentences(line))
        assert TOOLS.vocabulary.sentences(line) == len(theirs.span_tokenize(line)), line
    assert len(counted) > 4


def test_personal_data_is_replaced_as_datatrove_does(texts: list[str]) -> None:
    from datatrove.pipeline.formatters.pii import PIIFormatter

    cases = ["write to jane.doe+x@mail.example.co.uk or to bob@site.org, now", "host 8.8.8.8 and 10.0.0.1",
             "v1.2.3.4 is not 999.1.1.1", "1.1.1.1 2.2.2.2 a@b.c d@[1.2.3.4]", *texts[-60:]]  # fmt: skip
    rule = personal(PersonalSettings(), TOOLS)
    for text in cases:
        draft = DraftDocument(text, {}, TOOLS)
        assert rule(draft) is None
        assert draft.text == PIIFormatter().format(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n" * 100, None),
        ("x = 1", "short"),
        ("a" * 2000 + "\n" + "x = 1\n" * 40, "long_line"),
        (("word " * 40 + "\n") * 30, "long_lines"),
        ("{}();[]\n" * 90, "few_letters"),
        ("# Generated by a program, do not edit\n" + "x = 1\n" * 100, "generated"),
        ('b"' + "\\x0f" * 20 + '"\n' + ('b"' + "\\x1a" * 20 + '"\n') * 30, "data"),
    ],
)
def test_rules_for_code(text: str, reason: str | None) -> None:
    outcome = code(CodeSettings(), TOOLS)(DraftDocument(text, {}, TOOLS))
    assert (outcome or "").partition(":")[0] == (reason or "")


def test_a_judge_is_handed_in() -> None:
    tools = Tools(judges={"good": lambda texts: [len(text) / 10 for text in texts]})
    rule = judged(JudgedSettings(skin="good", label="yes", characters=8), tools)
    assert rule(DraftDocument("12345678901234", {}, tools)) is None
    assert rule(DraftDocument("123", {}, tools)) == "yes: 0.300"
    with pytest.raises(ConfigError, match="'other' was not loaded"):
        judged(JudgedSettings(skin="other", label="yes"), tools)


def test_settings_over_a_preset() -> None:
    assert [name for name, _ in rules_of("code", {}, TOOLS)] == ["length", "code", "personal"]
    chosen = rules_of("code", {"personal": None, "code": {"max_line": 5}, "gopher": {}}, TOOLS)
    assert [name for name, _ in chosen] == ["length", "gopher", "code"]
    assert (chosen[2][1](DraftDocument("x = 1000\n" * 30, {}, TOOLS)) or "").startswith("long_line")
    applied = rules_of("code", {"gopher": {}, "c4": {"min_sentences": 9}, "personal": None}, TOOLS, recipes=False)
    assert [name for name, _ in applied] == ["length", "code"], "settings of another preset's rules add none"
    judging = Tools(judges={"s": lambda texts: [1.0 for _ in texts]})
    of_none = rules_of("code", {"judged": {"skin": "s", "label": "x"}}, judging, recipes=False)
    assert [name for name, _ in of_none] == ["length", "code", "judged", "personal"]
    assert set().union(*PRESETS.values()) <= set(RULES)
    for over, message in (
        ({"gofer": {}}, "no rule 'gofer'; did you mean 'gopher'"),
        ({"gopher": {"min_word": 3}}, r"rules.gopher: unknown key 'min_word'; did you mean 'min_words'"),
        ({"gopher": {"min_words": "many"}}, r"rules.gopher.min_words: Input should be a valid integer"),
    ):
        with pytest.raises(ConfigError, match=message):
            checked(over)
