"""The card of a corpus, from its recipe and its funnel: what it is of, what was done, what is known of rights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.data.corpus.manifest import CorpusManifest
from bedplate.data.corpus.recipe import CorpusRecipe, Source
from bedplate.report.markdown import cell, table


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
