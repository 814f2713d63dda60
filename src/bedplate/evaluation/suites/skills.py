"""Small suites of single skills that a base may have or not while it learns: grammar, facts, arithmetic, code.

Each is a set of multiple-choice questions written for this project, the same every time, and nothing is downloaded.
They are small enough to be asked at checkpoints: a curve over training, not a benchmark's score. Chance is one over the
number of choices. grammar: minimal pairs in the manner of BLiMP (https://arxiv.org/abs/1912.00582), what follows a
sentence's first words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources

import yaml

from bedplate.core.files import sha256_bytes, sha256_json
from bedplate.evaluation.suites.question_sets import Question, accuracies
from bedplate.evaluation.suites.suite import SampleSet

SOURCE = "written for this project"
_DATA = yaml.safe_load((resources.files("bedplate.evaluation.suites") / "skills.yaml").read_text("utf-8"))
_Exercise = tuple[str, Sequence[str], str]
"""Context, choices (the right one first), and what the item is of: items of one kind are alike."""

_NOUNS = (
    *(("dog", "dogs"), ("teacher", "teachers"), ("car", "cars"), ("child", "children"), ("book", "books")),
    *(("woman", "women"), ("house", "houses"), ("river", "rivers"), ("story", "stories"), ("friend", "friends")),
)
_VERBS = (("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"))
_ENDS = ("here", "known to us", "something new", "that again")


def _grammar() -> Iterator[_Exercise]:
    for singular_noun, plural_noun in _NOUNS:
        for (singular, plural), end in zip(_VERBS, _ENDS, strict=True):
            yield "The", (f"{singular_noun} {singular} {end}.", f"{singular_noun} {plural} {end}."), "agreement of one"
            yield "The", (f"{plural_noun} {plural} {end}.", f"{plural_noun} {singular} {end}."), "agreement of many"
        yield "I saw", (f"these {plural_noun}.", f"these {singular_noun}."), "determiner of many"
        yield "I saw", (f"this {singular_noun}.", f"this {plural_noun}."), "determiner of one"
        yield "She", (f"has seen the {singular_noun}.", f"has saw the {singular_noun}."), "participle"
        yield "They", (f"will find the {singular_noun}.", f"will found the {singular_noun}."), "infinitive"
        yield "We", (f"wanted to see the {singular_noun}.", f"wanted see to the {singular_noun}."), "order"
    for subject, reflexive, mismatch in (
        ("He", "himself", "herself"),
        ("She", "herself", "himself"),
        ("They", "themselves", "itself"),
    ):
        for verb in ("saw", "hurt", "asked", "blamed"):
            yield subject, (f"{verb} {reflexive}.", f"{verb} {mismatch}."), "reflexive"


def _facts() -> Iterator[_Exercise]:
    relations = (
        ("The capital of {} is", _DATA["capitals"], "capitals"),
        ("The opposite of {} is", _DATA["opposites"], "opposites"),
        ("The word {} is the name of a kind of", _DATA["categories"], "kinds"),
    )
    for wording, pairs, group in relations:
        answers = list(pairs.values())
        for place, (subject, right) in enumerate(pairs.items()):
            wrong = [answers[(place + step) % len(answers)] for step in (1, 4, 7)]
            yield wording.format(subject), (right, *wrong), group


def _arithmetic() -> Iterator[_Exercise]:
    draw = random.Random(0)
    for number in range(120):
        limit = (9, 9, 20, 99)[number % 4]
        a, b = draw.randint(0, limit), draw.randint(0, limit)
        sign = draw.choice("+-*" if limit == 9 else "+-")
        if sign == "-" and b > a:
            a, b = b, a
        right = {"+": a + b, "-": a - b, "*": a * b}[sign]
        distractors = [right + step for step in (1, -1, 2, 10, -2, 3) if right + step >= 0]
        yield f"{a} {sign} {b} =", (str(right), *(str(distractor) for distractor in distractors[:3])), f"up to {limit}"


EXERCISES: Mapping[str, Callable[[], Iterator[_Exercise]]] = {
    "grammar": _grammar,  # sentences against the same with one mistake
    "facts": _facts,  # capitals, opposites, kinds of things
    "arithmetic": _arithmetic,  # sums, differences and products of small numbers against near ones
    # how a line of Python goes on: with what its syntax and names ask for, or not
    "code": lambda: ((context, (right, wrong), group) for context, right, wrong, group in _DATA["code"]),
}


def skill_items(name: str, limit: int | None) -> SampleSet[Question]:
    """Questions of one of EXERCISES in the order of their hashes, so that the first ones are of all groups; where the
    right choice stands is drawn by it as well."""
    questions: dict[str, Question] = {}
    for context, choices, group in EXERCISES[name]():
        if len(set(choices)) < len(choices):
            continue
        digest = sha256_bytes(json.dumps([name, context, list(choices)]).encode())
        gold = int(digest[:8], 16) % len(choices)
        placed = [*choices[1:]]
        placed.insert(gold, choices[0])
        questions[digest] = Question(digest[:16], name, context, tuple(placed), gold, f"{group}: {context}")
    ordered = [questions[digest] for digest in sorted(questions)]
    return SampleSet(tuple(ordered[:limit]), SOURCE, sha256_json(sorted(questions)), 0, accuracies)
