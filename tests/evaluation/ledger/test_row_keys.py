"""What a row is known by again, and what is not taken for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from bedplate.data.splits import row_hash
from bedplate.evaluation.ledger.row_keys import Keys, keys_of, matching_rows, words_of

WORDS = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in ("nt", "rl", "sk", "m", "th")]
Inputs = Mapping[str, str]


def texts(count: int, seed: int, words: tuple[int, int] = (6, 40)) -> list[Inputs]:
    draw = random.Random(seed)
    return [{"text": " ".join(draw.choices(WORDS, k=draw.randint(*words))) + "."} for _ in range(count)]


def keys(rows: Sequence[Inputs], ids: Sequence[str] | None = None) -> Keys:
    return keys_of(zip(ids or [f"line {i}" for i in range(len(rows))], rows, strict=True))


def ledger_line(row_keys: Keys) -> dict[str, Any]:
    return {
        "rows": list(row_keys.old),
        "exact": row_keys.all_exact,
        "like": row_keys.all_weak,
        "alike": row_keys.alike,
    }


def count_known(rows: Sequence[Inputs], before: Sequence[Inputs]) -> int:
    return len(matching_rows(keys(rows), ledger_line(keys(before))))


def test_marks_accents_case_and_what_does_not_show_are_left_aside() -> None:
    assert words_of("Ça va?  “Really”\u200b\t- \ufeff１２,5 ﬁne\ufe0f\u3164!") == words_of("ca VA really 12 5 fine")
    assert words_of("c++ 👍 $5") == ["c++", "👍", "$5"]  # symbols say something
    assert keys([{"a": "!!!"}]).exact != keys([{"a": "..."}]).exact


@pytest.mark.parametrize(
    "change",
    [
        lambda text: {"body": text},
        lambda text: {"body": text, "shop": "books"},
        lambda text: {"text": text + "."},
        lambda text: {"text": f"  {text.upper()} "},
        lambda text: {"text": text.replace("a", "a\u200b").replace(" ", "\u00a0")},
        lambda text: {"text": text.replace("a", "á")},
    ],
    ids=["renamed", "added", "full stop", "case and space", "zero width", "accents"],
)
@pytest.mark.parametrize("words", [(1, 2), (6, 40)])
def test_every_row_is_known_whatever_its_columns_and_marks_are(
    change: Callable[[str], Inputs], words: tuple[int, int]
) -> None:
    before = list({row["text"]: row for row in texts(80, 1, words)}.values())
    after = [change(row["text"]) for row in reversed(before)]
    assert count_known(after, before) == len(before)
    assert count_known(before, after) == len(before)


def test_one_word_changed_is_nearly_the_same_text() -> None:
    before = texts(200, 2)
    after: list[Inputs] = []
    for row in before:
        words = row["text"].split()
        words[len(words) // 2] = "zebra"
        after.append({"text": " ".join(words)})
    assert count_known(after, before) >= 180
    assert count_known(after[:4], before) >= 3


def test_an_id_is_a_key_of_a_text_that_says_something_like_it() -> None:
    ids = [f"r{i}" for i in range(60)]
    before = texts(60, 3, (3, 3))
    after = [{"text": f"{row['text'].split()[0]} {row['text'].split()[1]} zebra crossing"} for row in before]
    assert len(matching_rows(keys(after, ids), ledger_line(keys(before, ids)))) >= 30
    assert not matching_rows(
        keys(texts(60, 4, (3, 3)), ids), ledger_line(keys(before, ids))
    )  # ids that another file counts again


def cut(text: str) -> Inputs:
    words = text.split()
    return {"head": " ".join(words[: len(words) // 2]), "rest": " ".join(words[len(words) // 2 :])}


LOOKS = str.maketrans("aeopcxyi", "аеорсхуі")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: {"text": text.translate(LOOKS)},
        lambda text: {"text": text.replace("o", "0").replace("l", "1")},
        lambda text: {"text": text.replace("a", "&#97;").replace(" ", "&nbsp;")},
        lambda text: {"rest": cut(text)["rest"], "head": cut(text)["head"]},
        cut,
        lambda text: {"text": f"Here is what a customer wrote to us today: {text} (end of the message)"},
        lambda text: {"text": text, "shop": "a shop of books and of other things"},
        lambda text: {"text": " ".join(reversed(text.split()))},
    ],
    ids=["other alphabet", "digits", "entities", "cut and turned", "cut", "template", "one column more", "turned"],
)
@pytest.mark.parametrize("words", [(4, 6), (6, 14), (16, 40)])
def test_a_row_is_known_by_what_a_reader_sees(change: Callable[[str], Inputs], words: tuple[int, int]) -> None:
    before = texts(24, 9, words)
    after = [change(row["text"]) for row in before]
    assert count_known(after, before) == len(before)
    assert count_known(before, after) == len(before)
    fresh = [change(row["text"]) for row in texts(24, 10, words)]
    assert count_known(fresh, before) == count_known(fresh, after) == count_known(before, fresh) == 0


@pytest.mark.parametrize("words", [(2, 3), (6, 14), (16, 60)])
def test_fresh_rows_are_fresh(words: tuple[int, int]) -> None:
    assert count_known(texts(300, 5, words), texts(300, 6, words)) == 0


def messages(count: int, seed: int) -> list[Inputs]:
    """Short messages of one domain, no two of them equal, many of them equal but for a word."""
    draw = random.Random(seed)
    parts = [WORDS[i : i + 12] for i in range(0, 240, 60)]
    drawn = dict[str, None]()
    while len(drawn) < count:
        drawn[" ".join(map(draw.choice, parts))] = None
    return [{"text": text} for text in drawn]


@pytest.mark.parametrize(("new", "earlier"), [(200, 200), (60, 400), (300, 100)])
def test_fresh_messages_of_one_domain_are_fresh_and_edited_ones_are_known(new: int, earlier: int) -> None:
    before = messages(new + earlier, 3)
    fresh, before = before[:new], before[new:]
    weak = keys(before)
    by_any = sum(bool(row & {*weak.all_exact, *weak.all_weak}) for row in keys(fresh).weak)
    assert by_any >= new // 10  # a tenth and more of them has a key by chance
    assert count_known(fresh, before) == 0
    edited = [{"text": " ".join([*row["text"].split()[:3], "zebra"])} for row in before]
    assert count_known(edited, before) >= 0.6 * len(before)


NUMBERS: Mapping[str, Callable[[float], str]] = {
    "thousands": lambda value: f"{value:,.2f}",
    "decimals": lambda value: f"{value:.4f}",
    "exponent": lambda value: f"{value:.9e}",
    "capital": lambda value: f"{value:.6E}",
}


def numbers(count: int, seed: int, shape: Callable[[float], str]) -> list[Inputs]:
    draw = random.Random(seed)
    return [{f"x{i}": shape(round(draw.lognormvariate(6, 2), 2)) for i in range(4)} for _ in range(count)]


@pytest.mark.parametrize("shape", NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_known_by_their_value(shape: Callable[[float], str]) -> None:
    before = numbers(60, 1, lambda value: f"{value:.2f}")
    assert count_known(numbers(60, 1, shape), before) == 60
    assert count_known(numbers(60, 2, shape), before) == 0
    whole = [{"text": f"{1000 + 7 * n} parts in box {n}"} for n in range(30)]
    again = [{"text": f"{1000 + 7 * n:,} parts in box {n}.0"} for n in range(30)]
    assert all(len(matching_rows(keys([row]), ledger_line(keys(whole)))) == 1 for row in again)


@pytest.mark.parametrize(
    "shape",
    [lambda v: f"{100 * v:.2f}", lambda v: f"{v / 1000:.5f}", lambda v: f"{v:.3g}", lambda v: f"{100 * v:.1e}"],
    ids=["hundredfold", "thousandth", "rounded", "rounded exponent"],
)
def test_rows_of_rescaled_or_rounded_numbers_are_known(shape: Callable[[float], str]) -> None:
    before = numbers(60, 1, lambda value: f"{value:.2f}")
    assert count_known(numbers(60, 1, shape), before) >= 40
    assert count_known(numbers(300, 2, shape), before) == 0


@pytest.mark.parametrize("words", [(16, 24), (25, 60)])
@pytest.mark.parametrize("share", [0.5, 0.35])
def test_rows_that_are_cut_in_two_are_known(words: tuple[int, int], share: float) -> None:
    before, halves = texts(100, 9, words), list[Inputs]()
    for row in before:
        parts = row["text"].split()
        at = round(share * len(parts))
        halves += [{"text": " ".join(parts[:at])}, {"text": " ".join(parts[at:])}]
    assert count_known(halves, before) >= 130
    assert count_known(before, halves) >= 80
    assert count_known(texts(100, 10, words), halves) == 0


def test_rows_of_one_template_are_told_apart() -> None:
    template = (
        "the parcel number {} was sent on day {} and the customer who asked for it still waits for an answer of ours"
    )
    first, second = ([{"text": template.format(n, n * 7)} for n in range(at, at + 50)] for at in (0, 50))
    assert count_known(second, first) == 0
    assert count_known(first[:20], first) == 20


def test_a_text_that_many_rows_share_is_no_key_but_what_tells_them_apart_is() -> None:
    passage = "a passage that is long enough to be known by itself"
    first, second = ([{"passage": passage, "ask": f"why {n} then"} for n in range(at, at + 30)] for at in (0, 30))
    assert count_known(second, first) == 0
    assert count_known([{"q": row["ask"], "p": row["passage"]} for row in first], first) == 30


def test_short_texts_count_where_a_tenth_of_the_rows_agrees() -> None:
    before = [{"name": f"shop {n}", "kind": "food"} for n in range(100)]
    after = [{"name": f"shop {n}"} for n in range(97, 197)]
    assert count_known(after, before) == 0
    assert count_known([{"name": f"shop {n}"} for n in range(88, 188)], before) == 12


def test_what_ledgers_knew_before_is_known() -> None:
    rows = texts(3, 7)
    old = {"rows": [row_hash(rows[1])]}
    assert matching_rows(keys(rows), old) == {1}


def test_the_order_of_rows_does_not_change_what_is_kept() -> None:
    rows = texts(30, 8)
    assert keys(rows).digest == keys(rows[::-1]).digest != keys(rows[1:]).digest


def cells(*columns: Callable[[random.Random], object]) -> list[Inputs]:
    draw = random.Random(1)
    rows: list[Inputs] = [{str(number): str(column(draw)) for number, column in enumerate(columns)} for _ in range(700)]
    return list({tuple(row.values()): row for row in rows}.values())[:600]


TABLES: dict[str, list[Inputs]] = {
    "sensors": cells(
        lambda draw: round(draw.gauss(22, 1.5), 1),
        lambda draw: round(draw.gauss(50, 5), 1),
        lambda draw: round(draw.gauss(1013, 8), 1),
        lambda draw: round(draw.gauss(430, 30)),
    ),
    "answers from 1 to 5": cells(*[lambda draw: draw.randint(1, 5)] * 20),
    "flags": cells(*[lambda draw: draw.randint(0, 1)] * 30),
    "houses": cells(
        lambda draw: draw.randint(1950, 2020),
        lambda draw: draw.randint(2, 6),
        lambda draw: draw.randint(1, 4),
        lambda draw: round(draw.gauss(1500, 300)),
        lambda draw: round(draw.lognormvariate(12.5, 0.3)),
    ),
    "cells that run together": cells(*[lambda draw: draw.choice((1, 2, 11, 12, 21, 22))] * 9),
}


@pytest.mark.parametrize("table", TABLES)
def test_new_rows_of_numbers_in_a_narrow_range_are_fresh(table: str) -> None:
    rows = TABLES[table]
    assert count_known(rows[300:], rows[:300]) == 0
    again = [{f"renamed {name}": value for name, value in row.items()} for row in reversed(rows[:300])]
    assert count_known(again, rows[:300]) == 300


def test_long_numbers_that_differ_in_a_late_digit_are_different_rows() -> None:
    rows: list[Inputs] = [{"id": "7" * 36 + f"{number:04}"} for number in range(200)]
    assert count_known(rows[100:], rows[:100]) == 0
