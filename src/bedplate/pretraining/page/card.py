"""The model card of a base, written from its run: what it is, what it was trained on, what it can do, its limits.

After Mitchell et al. (https://arxiv.org/abs/1810.03993), with the metadata block that the Hugging Face Hub reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from bedplate.core.quantities import shown_count
from bedplate.pretraining.page.page import target_of
from bedplate.report.formatting import cell, table

_TASKS = {
    "decoder": ("text-generation", "It continues text"),
    "encoder": ("fill-mask", "It says which tokens are hidden in a text"),
    "encoder–decoder": ("text2text-generation", "It writes what is missing in a text"),
}
"""What a base of such a kind is for: the Hub's name of it, and in words."""
_EMBEDS = ("feature-extraction", "It makes a vector of a text, near those of texts like it")
"""The same of one that learned to tell pairs apart, of any kind."""


def model_card(record: Mapping[str, Any], last: Mapping[str, Any] | None, parent: str | None) -> str:
    """README.md of a base. record: pretraining.json; last: the last checkpoint's row."""
    sources = record["data"]["sources"]
    licences = {source["licence"] for source in sources.values()}
    task, capability = _EMBEDS if _target(last) == "pair" else _TASKS[record["kind"]]
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["bedplate", record["family"]],
    }
    if parent is not None:
        head["base_model"] = parent
    lines = [f"---\n{yaml.safe_dump(head, sort_keys=False)}---", "", f"# {record['run']}", ""]
    start = f"trained further from {cell(parent)}" if parent else "trained from scratch"
    lines += [
        f"A {record['family']} base of {shown_count(record['parameters'])} parameters, {start} on "
        f"{shown_count(record['tokens_seen'])} tokens with the objective {record['objective']}. Written by Bedplate "
        f"{record['machine']['code_version']} from its run; `base.json` has the hashes.",
        "",
        "## What it read",
        "",
        *table(
            ("source", "documents", "tokens", "tokens seen", "licence", "sha256"),
            (
                (
                    name,
                    source_record["documents"],
                    source_record["tokens"],
                    record["seen"].get(name, 0),
                    source_record["licence"] or "not stated",
                    source_record["sha256"][:12],
                )
                for name, source_record in sources.items()
            ),
        ),
        "",
    ]
    if None in licences:
        lines += ["The run file does not state the licence of some of it: clarify it before you pass this base on.", ""]
    lines += _judged(record, last)
    lines += [
        "## How it was trained",
        "",
        *table(("setting", "value"), record["settings"].items()),
        "",
        *table(("machine", "value"), record["machine"].items()),
        "",
        f"{record['seconds'] / 3600:.2f} hours in training steps.",
        "",
        "## Limitations",
        "",
        f"{capability}; nobody taught it to follow instructions, to refuse, or to say that it does not know. It "
        "repeats what its sources say, their mistakes and views included. Nothing but what stands above was measured.",
        "",
    ]
    return "\n".join(lines)


def _target(last: Mapping[str, Any] | None) -> str:
    """What the run's losses were counted by."""
    return next((target_of(score) for score in (last or {"held_out": {}})["held_out"].values()), "token")


def _judged(record: Mapping[str, Any], last: Mapping[str, Any] | None) -> list[str]:
    if last is None or not last["held_out"]:
        return []
    baselines = record.get("baselines") or {}
    names = list(dict.fromkeys(name for scores in baselines.values() for name in scores))
    rows = [
        (
            *(name, score["documents"], _bits(score), f"{score['nats_per_token']:.3f}"),
            *(f"{baselines[name][baseline]:.3f}" if name in baselines else "–" for baseline in names),
        )
        for name, score in last["held_out"].items()
    ]
    lines = [
        "## On texts that were kept from it",
        "",
        *table(("text", "documents", "bits a byte", f"nats a {_target(last)}", *names), rows),
        "",
    ]
    if last["suites"]:
        suites = (
            (name, suite["measure"], f"{suite['value']:.3f}", suite["n"]) for name, suite in last["suites"].items()
        )
        lines += ["## Skills", "", *table(("suite", "measure", "value", "items"), suites), ""]
    return lines


def _bits(score: Mapping[str, Any]) -> str:
    return "–" if score["bits_per_byte"] is None else f"{score['bits_per_byte']:.3f}"
