"""The card of a corpus, from its recipe and its funnel: what it is of, what was done, what is known of rights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.data.corpus.manifest import Manifest
from bedplate.data.corpus.recipe import Recipe


def card(recipe: Recipe, funnel: Mapping[str, Any], manifest: Manifest) -> str:
    """Markdown."""
    lines = [
        f"# {recipe.corpus}",
        "",
        f"{funnel['tokens']:,} tokens of {funnel['kept']:,} documents ({funnel['kept_bytes'] / 1e6:,.1f} MB of text), "
        f"kept of {funnel['documents']:,} ({funnel['bytes'] / 1e6:,.1f} MB).",
        "",
        "## Sources",
        "",
        "| source | kind | licence | documents read | kept | tokens | bytes per token | train / valid |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for source in recipe.sources:
        one = funnel["sources"][source.name]
        splits = f"{one['splits'].get('train', 0):,} / {one['splits'].get('valid', 0):,}"
        lines.append(
            f"| {source.name} | {source.kind} | {source.licence or 'not stated'} | {one['documents']:,} | "
            f"{one['kept']:,} | {one['tokens']:,} | {one['bytes_per_token']:.2f} | {splits} |"
        )
    lines += ["", "## What was left out", ""]
    if not funnel["steps"]:
        lines.append("Nothing.")
    for step in funnel["steps"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in step["reasons"].items())
        lines.append(f"- {step['rule']}: {step['dropped']:,} of {step['in']:,} ({reasons})")
    for rule, count in funnel["changed"].items():
        lines.append(f"- {rule} changed the text of {count:,} documents that were kept")
    against = ", ".join(recipe.decontaminate.against)
    lines += [
        "",
        "## How it was made",
        "",
        f"- preset {recipe.preset}, language {recipe.language}",
        f"- copies: exact {'dropped' if recipe.dedup.exact else 'kept'}, near "
        f"{'kept' if recipe.dedup.minhash is None else 'dropped (MinHash)'}",
        f"- evaluations looked for: {against or 'none'}"
        + (f" ({recipe.decontaminate.words} words in a row)" if against else ""),
        f"- tokenizer: {manifest.tokenizer.vocab_size:,} ids, {manifest.tokenizer.tokenizer_id}",
        f"- recipe and content: {manifest.recipe}",
        "",
        "`recipe.yaml` makes it again; `bedplate data explain` tells what became of a document.",
        "",
    ]
    return "\n".join(lines)
