"""RUNG_TABLE, all ways to adapt, cheapest first: a new one is a file and a row here. Reading the table loads no torch;
`adaptation.rungs.RUNGS` gives the rungs themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bedplate.core.suggestions import did_you_mean, nearest


@dataclass(frozen=True)
class RungRow:
    """One rung. line: what it is, for `--help`. rung: "module:name" of its class, or of the rung where one class makes
    several; a module of `adaptation.rungs` begins with a dot."""

    line: str
    rung: str


RUNG_TABLE: dict[str, RungRow] = {
    "majority": RungRow("the most frequent answer: the floor", ".from_scratch:Majority"),
    "from_scratch": RungRow("a classical model of the labels alone, without a base", ".from_scratch:FromScratch"),
    "zero_shot": RungRow("the base and a prompt", ".zero_shot:ZeroShot"),
    "own_prompt": RungRow("your own prompt (adapt.prompt)", ".zero_shot:OwnPromptRung"),
    "few_shot": RungRow("a prompt with worked examples", ".few_shot:FewShot"),
    "knn_few_shot": RungRow("examples nearest to each call (dynamic few-shot)", ".knn_few_shot:KnnFewShot"),
    "retrieval": RungRow("a prompt with passages of your documents (RAG)", ".retrieval:RetrievalRung"),
    "prompt_search": RungRow("prompts found by a search (prompt optimisation)", ".prompt_search:PromptSearch"),
    "probe": RungRow("a linear head on the base's features (linear probing)", ".probe:Probe"),
    "soft_prompt": RungRow("trained vectors before the prompt (prompt tuning)", ".soft_prompt:SOFT_PROMPT"),
    "lora": RungRow("low-rank weights beside the base's (LoRA)", ".lora:LORA"),
    "dora": RungRow("the same with magnitudes of their own (DoRA)", ".lora:DORA"),
    "full": RungRow("every weight trained on the task (full fine-tuning)", ".full:FULL"),
    "continued_pretrain": RungRow(
        "raw text first, then climbed again (domain adaptation)", ".continued_pretrain:ContinuedPretrain"
    ),
    "hosted": RungRow("a remote model behind an API (adapt.hosted)", ".hosted:Hosted"),
    "cascade": RungRow("unsure cases go to a more expensive skin (model cascade)", ".cascade:Cascade"),
}


def check_rungs(rungs: Sequence[str]) -> None:
    """ValueError for an empty list, or a rung that is unknown or named twice."""
    if not rungs:
        raise ValueError("name at least one rung, or write auto")
    for name in rungs:
        if name not in RUNG_TABLE:
            hint = did_you_mean(nearest(name, RUNG_TABLE)) or f"there are {', '.join(RUNG_TABLE)}"
            raise ValueError(f"there is no rung {name!r}; {hint}")
    if len(set(rungs)) < len(rungs):
        raise ValueError("a rung is named twice")
