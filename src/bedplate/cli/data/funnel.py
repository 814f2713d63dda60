"""`bedplate data funnel`, `explain` and `verify`: what each rule took away of a corpus, what became of one document,
and whether the shards are whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from bedplate.cli.options import AllColumns, CorpusDirectory, PageFile, write_page
from bedplate.core.progress import console
from bedplate.core.tables import Column, numbers
from bedplate.core.tables import show as table


def funnel(
    directory: CorpusDirectory,
    page: PageFile = None,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What each rule removed from a corpus, in order, with the reasons, and what came out by source.

    --page writes one page with examples of what was dropped and lengths before and after.
    """
    from bedplate.data.corpus.fates import read_funnel

    report = read_funnel(directory)
    if page is not None:
        from bedplate.report.html import corpus_page

        write_page(page, corpus_page(report))
    if as_json:
        print(json.dumps(report))
    else:
        show(report)


def show(report: Mapping[str, Any]) -> None:
    screen = console()
    rows: list[tuple[str, ...]] = [("read", "", "", f"{report['documents']:,}", f"{report['bytes'] / 1e6:,.1f} MB")]
    for step in report["steps"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in step["reasons"].items())
        rows.append((step["rule"], f"{step['in']:,}", f"{step['dropped']:,}", f"{step['out']:,}", reasons))
    rows.append(("kept", "", "", f"{report['kept']:,}", f"{report['kept_bytes'] / 1e6:,.1f} MB"))
    columns = ("step", *numbers("in", "dropped", "out"), Column("why", prose=True))
    table(columns, rows, title=f"{report['corpus']}: what was kept")
    screen.print()
    rows = []
    for name, source in report["sources"].items():
        splits = (f"{source['splits'].get(split, 0):,}" for split in ("train", "valid"))
        counts = f"{source['documents']:,}", f"{source['kept']:,}", *splits, f"{source['tokens']:,}"
        rows.append((name, *counts, f"{source['bytes_per_token']:.2f}"))
    table(("source", *numbers("read", "kept", "train", "valid", "tokens", "bytes per token")), rows, title="By source")
    if (cut := report.get("cut", {})).get("texts"):
        screen.print(f"Long texts: {cut['texts']:,} were cut into {cut['documents']:,} documents", highlight=False)
    if report["changed"]:
        changed = ", ".join(f"{rule} {count:,}" for rule, count in report["changed"].items())
        screen.print(f"Documents that were kept with a changed text: {changed}", highlight=False)


def explain(
    directory: CorpusDirectory,
    id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="The document: its path in its source, or what its row is named by; or a folder or source.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What became of one document, and why: kept in a split, or dropped by a rule with what it measured."""
    from bedplate.data.corpus.fates import fates_of

    fates = fates_of(directory, id)
    if as_json:
        print(json.dumps([{**asdict(fate), "kept": fate.rule is None} for fate in fates]))
        return
    if not any(fate.is_called(id) for fate in fates):  # a folder or source
        counts, pieces = Counter[str](), Counter[str]()
        for fate in fates:
            outcome = f"{fate.source}: {id}: {fate.reason}"
            counts[outcome] += 1
            pieces[outcome] += len(fate.pieces)
        for outcome, count in counts.most_common():
            cut = f", cut into {pieces[outcome]:,}" if pieces[outcome] else ""
            print(f"{outcome}: {count:,} document{'s' * (count > 1)}{cut}")
        return
    for fate in fates:
        print(fate.line)


def verify(directory: CorpusDirectory) -> None:
    """Whether every shard of a corpus is as it was written: all is read and held against the hashes in corpus.json."""
    from bedplate.data.corpus.shards import Corpus

    corpus = Corpus.open(directory, verify="hashes")
    count = sum(1 for _ in corpus.manifest.shards())
    tokens = sum(source.tokens for source in corpus.manifest.sources)
    print(f"{directory}: {count} shards with {tokens:,} tokens are whole; the corpus is {corpus.sha256}")
