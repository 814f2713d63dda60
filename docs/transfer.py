"""Ask the skins of four domains for one another's test rows, and fill the table of the page of worked examples.

usage: docs/transfer.py [RUNS]        RUNS is runs/ by default; a domain's run is RUNS/sentiment-DOMAIN
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from bedplate.adaptation.postprocess.evaluate import evaluate
from bedplate.core.progress import Progress
from bedplate.evaluation.evaluated import compare
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.harness import Evaluation, load_predictor
from bedplate.evaluation.task import load_task

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "examples.md"
DOMAINS = {"amazon": "products", "movies": "movies", "tweets": "tweets", "news": "news"}
SKINS = ("probe",)
BEGIN, END = "<!-- transfer -->", "<!-- /transfer -->"


def main() -> None:
    runs = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs"
    evaluations: dict[tuple[str, str, str], Evaluation] = {}
    with Progress("transfer", len(SKINS) * len(DOMAINS) ** 2, "skins and domains") as bar:
        tasks = {domain: load_task(runs / f"sentiment-{domain}" / "task.yaml") for domain in DOMAINS}
        data = {domain: load_examples(task) for domain, task in tasks.items()}
        for skin in SKINS:
            for learned in DOMAINS:
                predictor: Any = load_predictor(runs / f"sentiment-{learned}" / "skins" / skin)
                with closing(predictor):
                    for domain, task in tasks.items():
                        evaluations[skin, learned, domain] = evaluate(predictor, task, split="test", data=data[domain])
                        bar.advance(1)
    before, tail = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{_table(evaluations)}{END}{tail.split(END)[1]}", encoding="utf-8")
    print(f"{PAGE} holds the accuracies of {len(evaluations)} pairs")


def _table(evaluations: dict[tuple[str, str, str], Evaluation]) -> str:
    """Accuracy on a domain's test rows; for a skin of another domain, how far that is from the domain's own skin."""
    sizes = {domain: evaluations[SKINS[0], domain, domain].n for domain in DOMAINS}
    lines = [
        "| skin | adapted on | " + " | ".join(f"on {DOMAINS[domain]} ({n} rows)" for domain, n in sizes.items()) + " |",
        "|---" * (2 + len(DOMAINS)) + "|",
    ]
    for skin in SKINS:
        for learned, named in DOMAINS.items():
            cells: list[str] = []
            for domain in DOMAINS:
                evaluation = evaluations[skin, learned, domain]
                if learned == domain:
                    low, high = evaluation.interval
                    cells.append(f"**{evaluation.estimate:.3f}** ({low:.3f} to {high:.3f})")
                    continue
                pair = compare(evaluation, evaluations[skin, domain, domain])
                low, high = pair.interval
                cells.append(f"{evaluation.estimate:.3f}, {pair.difference:+.3f} ({low:+.3f} to {high:+.3f})")
            lines.append(f"| `{skin}` | {named} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
