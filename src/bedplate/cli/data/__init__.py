"""Corpora to pretrain a base on: built from a recipe, with a funnel that says what was kept and why, and the fate of
every document."""

from __future__ import annotations

# As VERBS in cli/main.py: verb: (module with a function of that name, one line of help).
ACTIONS: dict[str, tuple[str, str]] = {
    "build": ("bedplate.cli.data.build", "Read, curate, tokenise: a recipe's sources become a corpus directory."),
    "funnel": ("bedplate.cli.data.funnel", "What each rule removed from a corpus, with examples; as a page too."),
    "explain": ("bedplate.cli.data.funnel", "What became of one document, and why."),
    "search-mixture": (
        "bedplate.cli.data.search_mixture",
        "The best mixture of a corpus's sources, by small runs and a fitted response.",
    ),
    "verify": ("bedplate.cli.data.funnel", "Whether every shard of a corpus is as it was written."),
}
