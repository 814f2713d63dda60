"""The funnel of a corpus: what went in, what each rule took away, what came out, as a JSON value and as a page."""

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
from bedplate.data.corpus.recipe import CorpusRecipe

ORDER = ("unreadable", *RULES, "contaminated", "exact_duplicate", "near_duplicate")
"""In which what drops documents is applied."""


def funnel_of(recipe: CorpusRecipe, tallies: Mapping[str, Tally], manifest: CorpusManifest) -> dict[str, Any]:
    """Of all sources together and of each."""
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
