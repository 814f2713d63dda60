"""The funnel of a corpus (what went in, what each rule removed, what came out) as JSON, and the corpus card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError
from bedplate.core.files import read_text
from bedplate.data.corpus.curate.presets import RULES
from bedplate.data.corpus.fates import EDGES, Tally
from bedplate.data.corpus.manifest import CorpusManifest
from bedplate.data.corpus.recipe import CorpusRecipe, Source
from bedplate.report.formatting import cell, table

ORDER = ("unreadable", *RULES, "contaminated", "exact_duplicate", "near_duplicate")
"""In which what drops documents is applied."""


def funnel_of(recipe: CorpusRecipe, tallies: Mapping[str, Tally], manifest: CorpusManifest) -> dict[str, Any]:
    """The funnel of all sources together and of each."""
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    total.check(recipe.corpus)
    return {
        "version": 1,
        "corpus": recipe.corpus,
        "recipe": manifest.recipe,
        "tokens": sum(source.tokens for source in manifest.sources),
        **_tally_json(total),
        "sources": {
            source.name: {
                "tokens": source.tokens,
                # end tokens are no part of a text
                "bytes_per_token": source.bytes / max(1, source.tokens - source.documents),
                "splits": {split: sum(s.documents for s in shards) for split, shards in source.splits.items()},
                "licence": source.licence,
                **_tally_json(tallies.get(source.name, Tally()), examples=False),
            }
            for source in manifest.sources
        },
        "edges": list(EDGES),
    }


def _tally_json(tally: Tally, examples: bool = True) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    remaining = tally.documents
    for rule in sorted(tally.dropped, key=ORDER.index):
        reasons = dict(sorted(tally.dropped[rule].items(), key=lambda pair: (-pair[1], pair[0])))
        dropped = sum(reasons.values())
        steps.append(
            {
                "rule": rule,
                "in": remaining,
                "dropped": dropped,
                "out": remaining - dropped,
                "bytes": tally.dropped_bytes.get(rule, 0),
                "reasons": reasons,
                **({"examples": tally.examples.get(rule, [])} if examples else {}),
            }
        )
        remaining -= dropped
    return {
        "documents": tally.documents,
        "bytes": tally.bytes,
        "kept": tally.kept,
        "kept_bytes": tally.kept_bytes,
        "changed": dict(sorted(tally.changed.items())),
        "steps": steps,
        "before": tally.before,
        "after": tally.after,
    }


def read_funnel(directory: Path) -> dict[str, Any]:
    """DataError where the directory has none."""
    path = directory / "funnel.json"
    if not path.is_file():
        raise DataError(f"{directory} has no funnel.json: it is not a corpus made by `bedplate data build`")
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; build the corpus again") from error


def card(recipe: CorpusRecipe, funnel: Mapping[str, Any], manifest: CorpusManifest) -> str:
    """Markdown."""
    lines = [
        f"# {recipe.corpus}",
        "",
        f"{funnel['tokens']:,} tokens of {funnel['kept']:,} documents ({funnel['kept_bytes'] / 1e6:,.1f} MB of text), "
        f"kept of {funnel['documents']:,} ({funnel['bytes'] / 1e6:,.1f} MB).",
        "",
        "## Sources",
        "",
        *table(
            ("source", "kind", "licence", "documents read", "kept", "tokens", "bytes per token", "train / valid"),
            (_source(source, funnel["sources"][source.name]) for source in recipe.sources),
        ),
    ]
    lines += ["", "## What was left out", ""]
    if not funnel["steps"]:
        lines.append("Nothing.")
    for step in funnel["steps"]:
        reasons = ", ".join(f"{cell(reason)} {count:,}" for reason, count in step["reasons"].items())
        lines.append(f"- {step['rule']}: {step['dropped']:,} of {step['in']:,} ({reasons})")
    for rule, count in funnel["changed"].items():
        lines.append(f"- {rule} changed the text of {count:,} documents that were kept")
    against = ", ".join(recipe.decontaminate.against)
    lines += [
        "",
        "## How it was made",
        "",
        f"- preset {recipe.preset}, language {cell(recipe.language)}",
        f"- copies: exact {'dropped' if recipe.dedup.exact else 'kept'}, near "
        f"{'kept' if recipe.dedup.minhash is None else 'dropped (MinHash)'}",
        f"- evaluations looked for: {cell(against) or 'none'}"
        + (f" ({recipe.decontaminate.words} words in a row)" if against else ""),
        f"- tokenizer: {manifest.tokenizer.vocab_size:,} ids, {manifest.tokenizer.tokenizer_id}",
        f"- recipe and content: {manifest.recipe}",
        "",
        "`recipe.yaml` makes it again; `bedplate data explain` tells what became of a document.",
        "",
    ]
    return "\n".join(lines)


def _source(source: Source, read: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        source.name,
        source.kind,
        source.licence or "not stated",
        f"{read['documents']:,}",
        f"{read['kept']:,}",
        f"{read['tokens']:,}",
        f"{read['bytes_per_token']:.2f}",
        f"{read['splits'].get('train', 0):,} / {read['splits'].get('valid', 0):,}",
    )
