"""Fill the page of pretraining's worked examples, and draw its curves, from finished runs of examples/pretrain.

usage: docs/pretraining_examples.py [RUNS]        RUNS is runs/ by default; the page names each run's directory
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from bedplate.core.files import read_jsonl
from bedplate.core.quantities import shown_count as shown
from bedplate.pretraining.page.page import curve, means
from bedplate.pretraining.run.directory import evaluations, read_record

DOCS = Path(__file__).parent
PAGE = DOCS / "pretraining-examples.md"
SEEDS = (0, 1, 2)
Points = list[tuple[float, float]]


class Run:
    """A finished run's directory, read."""

    def __init__(self, path: Path) -> None:
        self.record = read_record(path)
        if self.record.get("status") != "finished":
            raise FileNotFoundError(f"{path} holds no finished run")
        self.judged, self.rows = evaluations(path), read_jsonl(path / "metrics.jsonl")

    def heldout_curve(self, name: str, measure: str = "bits_per_byte") -> Points:
        """A held-out text's curve over the tokens that were trained on: of checkpoints, which read the same part of it.
        The run's end, which reads more, is `last`."""
        part = self.judged[0]["held_out"][name]["documents"]
        return [
            (row["tokens"], row["held_out"][name][measure])
            for row in self.judged
            if row["held_out"][name]["documents"] == part
        ]

    def last(self, name: str, measure: str = "bits_per_byte") -> float:
        return self.judged[-1]["held_out"][name][measure]

    def minutes(self, points: Points) -> Points:
        """The same curve over the minutes of training, without what was spent on judging and saving."""
        spent, tokens, minutes_at = 0.0, 0, dict[int, float]()
        for row in self.rows:
            tokens, spent = tokens + row["tokens"], spent + row["tokens"] / row["tokens_per_second"]
            minutes_at[tokens] = spent / 60
        return [(minutes_at[int(at)], value) for at, value in points]

    @property
    def facts(self) -> list[str]:
        """Parameters, tokens and the time of training, as every table has them."""
        record = self.record
        return [shown(record["parameters"]), shown(record["tokens_seen"]), f"{record['seconds'] / 60:.1f}"]

    @property
    def machine(self) -> str:
        hardware = self.record["machine"]
        threads = "one thread" if hardware["threads"] == 1 else f"{hardware['threads']} threads"
        return f"{hardware['device']}, {threads}, {self.record['arithmetic']['dtype']}"


def main() -> None:
    runs = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS.parent / "runs"
    page = PAGE.read_text(encoding="utf-8")
    for name, part in PARTS.items():
        try:
            shown_part = part(runs)
        except FileNotFoundError as error:
            print(f"{name}: {error}; its part of the page is left as it is")
            continue
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, tail = page.split(begin)
        page = f"{before}{begin}\n{shown_part}\n{end}{tail.split(end)[1]}"
        print(f"{name}: filled")
    PAGE.write_text(page, encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def drawn(name: str, lines: Mapping[str, Points], x_label: str, up: str, label: str) -> str:
    """Draws the curves beside the page; returns what shows them in it."""
    file = f"pretraining-{name}.svg"
    (DOCS / file).write_text(curve(lines, x_label, up, label), encoding="utf-8")
    return f"![{label}]({file})"


# --- the parts


def base(runs: Path) -> str:
    """The base beside what counts and compressors reach, and the completion skin that was made of it."""
    run = Run(runs / "stdlib")
    baselines = run.record["baselines"]["stdlib"]
    row = [*run.facts, f"**{run.last('stdlib'):.3f}**", *(f"{bits:.3f}" for bits in baselines.values())]
    ends = (run.heldout_curve("stdlib")[0][0], run.heldout_curve("stdlib")[-1][0])
    lines = {
        "the base": run.heldout_curve("stdlib"),
        **{name: [(end, bits) for end in ends] for name, bits in baselines.items()},
    }
    completion = report(runs / "completion" / "report.json")
    rungs: list[Sequence[str]] = []
    for rung in completion["rungs"]:
        if rung["status"] == "done":
            low, high = rung["interval"]
            rungs.append([rung["rung"], rung["split"], f"{rung['estimate']:.3f} ({low:.3f} to {high:.3f})"])
    return "\n\n".join(
        [
            table(["parameters", "tokens", "minutes", "bits a byte, held out", *baselines], [row]),
            drawn("base", lines, "tokens", "bits a byte, held out", "A base of code"),
            table(["rung", "split", "chrF (95% interval)"], rungs),
            f"**{completion['verdict']['status']}**: {completion['verdict']['reason']} ({run.machine}.)",
        ]
    )


def characters(runs: Path) -> str:
    """Editorials, byte by byte."""
    return letters(Run(runs / "characters"), "characters", "editorials")


def plays(runs: Path) -> str:
    """Plays, byte by byte."""
    return letters(Run(runs / "plays"), "plays", "plays")


def letters(run: Run, name: str, text: str) -> str:
    """One text's row, its curve with what compressors and counts reach, and how the run's prompts go on."""
    baselines = run.record["baselines"]["text"]
    bits = run.last("text")
    row = [
        text,
        *run.facts,
        f"**{bits:.3f}** ({bits * math.log(2):.3f} nats)",
        *(f"{b:.3f}" for b in baselines.values()),
    ]
    points = run.heldout_curve("text")
    ends = (points[0][0], points[-1][0])
    lines = {text: points, **{name: [(end, bits) for end in ends] for name, bits in baselines.items()}}
    samples = "\n".join(
        f"{sample['prompt']}{sample['text']}".replace("\n", " ") for sample in run.judged[-1]["samples"]
    )
    return "\n\n".join(
        [
            table(["text", "parameters", "tokens (bytes)", "minutes", "bits a byte, held out", *baselines], [row]),
            drawn(name, lines, "tokens", "bits a byte, held out", name.capitalize()),
            f"Prompts of the run file, continued by the likeliest byte each time:\n\n```text\n{samples}\n```",
            f"({run.machine}.)",
        ]
    )


def experts(runs: Path) -> str:
    """Both models over tokens, and over minutes."""
    models = {name: Run(runs / name) for name in ("dense", "experts")}
    rows: list[Sequence[str]] = []
    for name, run in models.items():
        speed = run.record["tokens_seen"] / run.record["seconds"]
        rows.append([name, *run.facts, f"{speed:,.0f}", f"{run.last('stdlib'):.3f}"])
    dense, sparse = models["dense"], models["experts"]
    gain = dense.last("stdlib") - sparse.last("stdlib")
    reached = at_time(dense, sparse)
    summary = (
        f"At equal tokens the experts are {abs(gain):.3f} bits a byte {'better' if gain > 0 else 'worse'}. They took "
        f"{sparse.record['seconds'] / dense.record['seconds']:.2f} times as long; {reached}"
    )
    by_tokens = {name: run.heldout_curve("stdlib") for name, run in models.items()}
    by_minutes = {name: run.minutes(run.heldout_curve("stdlib")) for name, run in models.items()}
    return "\n\n".join(
        [
            table(["model", "parameters", "tokens", "minutes", "tokens a second", "bits a byte, held out"], rows),
            f"{summary} ({dense.machine}.)",
            drawn("experts-tokens", by_tokens, "tokens", "bits a byte, held out", "Dense and experts by tokens"),
            drawn("experts-minutes", by_minutes, "minutes", "bits a byte, held out", "Dense and experts by time"),
        ]
    )


def at_time(dense: Run, sparse: Run) -> str:
    """Where the experts stood at the dense model's last checkpoint, on the line between two of their own."""
    curve_of = sparse.minutes(sparse.heldout_curve("stdlib"))
    end = dense.minutes(dense.heldout_curve("stdlib"))[-1][0]
    if not curve_of[0][0] <= end <= curve_of[-1][0]:
        return "their times do not overlap, so that equal times are not compared."
    after = next(n for n, (minute, _) in enumerate(curve_of) if minute >= end)
    (a, low), (b, high) = curve_of[max(0, after - 1)], curve_of[after]
    sparse_bits = high if a == b else low + (high - low) * (end - a) / (b - a)
    dense_bits = dense.heldout_curve("stdlib")[-1][1]
    return (
        f"at the dense model's last checkpoint, after {end:.1f} minutes, it read {dense_bits:.3f} on the part of the "
        f"held-out text that checkpoints are judged on, and they {sparse_bits:.3f} (their learning rate had not "
        "yet fallen as far as its own)."
    )


def curation(runs: Path) -> str:
    """Three pairs of runs, judged on packages that neither corpus has."""
    corpus_runs = {
        (corpus, seed): Run(runs / f"code-{corpus}-{seed}") for corpus in ("curated", "raw") for seed in SEEDS
    }
    pairs = [
        (corpus_runs["curated", seed].last("packages"), corpus_runs["raw", seed].last("packages")) for seed in SEEDS
    ]
    gaps = [curated - raw for curated, raw in pairs]
    mean, half = statistics.mean(gaps), student.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / len(gaps) ** 0.5
    rows = [
        [str(seed), *(f"{bits:.3f}" for bits in pair), f"{pair[0] - pair[1]:+.3f}"]
        for seed, pair in zip(SEEDS, pairs, strict=True)
    ]
    sizes: list[Sequence[str]] = []
    for corpus, source in (("curated", "library"), ("raw", "tree")):
        read = corpus_runs[corpus, 0].record["data"]["sources"][source]
        sizes.append([corpus, f"{read['documents']:,}", shown(read["tokens"]), f"{read['bytes'] / read['tokens']:.2f}"])
    lines = {
        f"{corpus}, mean of {len(SEEDS)} seeds": _mean(
            [corpus_runs[corpus, seed].heldout_curve("packages") for seed in SEEDS]
        )
        for corpus in ("curated", "raw")
    }
    return "\n\n".join(
        [
            table(["corpus", "documents to learn from", "tokens", "bytes a token"], sizes),
            table(["seed", "curated", "raw", "difference"], rows),
            f"Bits a byte on the held-out packages after {shown(corpus_runs['raw', 0].record['tokens_seen'])} tokens. "
            f"Paired difference {mean:+.3f}, 95% interval {mean - half:+.3f} to {mean + half:+.3f} (Student's t, "
            f"{len(gaps)} pairs).",
            drawn("curation", lines, "tokens", "bits a byte, held-out packages", "Curated and raw"),
        ]
    )


def _mean(curves: Sequence[Points]) -> Points:
    return [(points[0][0], statistics.mean(value for _, value in points)) for points in zip(*curves, strict=True)]


def denoiser(runs: Path) -> str:
    """What was cut out, held out, over tokens; and the share of tokens that were right in training."""
    run = Run(runs / "denoiser")
    names = list(run.judged[-1]["held_out"])
    measure = "nats_per_token"
    rows = [
        [name, *(f"{run.heldout_curve(name, measure)[n][1]:.3f}" for n in (0, -1)), f"{run.last(name, measure):.3f}"]
        for name in names
    ]
    tokens = 0
    right: Points = []
    for row in run.rows:
        tokens += row["tokens"]
        right.append((tokens, row["span_corruption/accuracy"]))
    ends = means(right, 20)
    lines = {name: run.heldout_curve(name, measure) for name in names}
    parameters, token_count, minutes = run.facts
    return "\n\n".join(
        [
            table(["nats a token cut out, held out", "first checkpoint", "last checkpoint", "end, all of it"], rows),
            f"{parameters} parameters, {token_count} tokens, {minutes} minutes ({run.machine}). The likeliest token "
            f"was right for {ends[0][1]:.1%} of what was to be written in the first twentieth of training, and for "
            f"{ends[-1][1]:.1%} in the last; sentinels and ends, which are the easy ones, count among them.",
            drawn("denoiser", lines, "tokens", "nats a token cut out", "Denoiser"),
        ]
    )


def masked(runs: Path) -> str:
    """The loss of hidden tokens."""
    return hidden(Run(runs / "masked"), "masked", "code")


def embedder(runs: Path) -> str:
    """Crops told apart by the masked encoder, and search by it before any training, before this one, and after."""
    run = Run(runs / "embedder")
    rows: list[Sequence[str]] = []
    for title, name in (
        ("untrained", "search-masked-untrained"),
        ("after masked pretraining", "search-masked"),
        ("and then crops told apart", "search-embedder"),
    ):
        judged = report(runs / f"{name}.json")
        low, high = judged["interval"]
        rows.append([title, f"{judged['estimate']:.3f} ({low:.3f} to {high:.3f})"])
    right = means([(row["step"], row["contrastive/accuracy"]) for row in run.rows], 10)
    pairs = run.rows[-1]["targets"]
    lines = {"pieces of held-out modules": run.heldout_curve("stdlib", "nats_per_token")}
    return "\n\n".join(
        [
            f"{shown(run.record['tokens_seen'])} tokens of text, {run.facts[2]} minutes ({run.machine}). The right "
            f"crop was the likeliest of about {pairs} for {right[0][1]:.0%} of pairs in the first tenth and "
            f"for {right[-1][1]:.0%} in the last tenth of training.",
            drawn("embedder", lines, "tokens of text", "nats a pair", "Crops told apart"),
            table(["encoder", "nDCG@10 on valid (95% interval)"], rows),
        ]
    )


def probed(runs: Path) -> str:
    """The same on prose, and what a linear head on the states reads of reviews."""
    run = Run(runs / "masked-prose")
    rows: list[Sequence[str]] = []
    for title, name in (("untrained", "masked-prose-untrained"), ("after masked pretraining", "masked-prose")):
        for row in report(runs / f"reviews-{name}" / "report.json")["rungs"]:
            probe = row["rung"] == "probe"
            if row["status"] == "done" and row["split"] == "valid" and (probe or title == "untrained"):
                low, high = row["interval"]
                label = f"probe of the encoder, {title}" if probe else row["rung"]
                rows.append([label, f"{row['estimate']:.3f} ({low:.3f} to {high:.3f})"])
    return "\n\n".join([hidden(run, "probed", "text"), table(["", "accuracy on valid (95% interval)"], rows)])


def hidden(run: Run, name: str, content: str) -> str:
    """What hidden tokens cost, by held-out text, over tokens."""
    names = list(run.judged[-1]["held_out"])
    lines = {text: run.heldout_curve(text, "nats_per_token") for text in names}
    changes = "; ".join(f"{text} {points[0][1]:.3f} → {points[-1][1]:.3f}" for text, points in lines.items())
    parameters, token_count, minutes = run.facts
    return (
        f"{parameters} parameters, {token_count} tokens, {minutes} minutes ({run.machine}). Nats a hidden token of "
        f"held-out {content}, first and last checkpoint: {changes}.\n\n"
        + drawn(name, lines, "tokens", "nats a hidden token", f"Masked encoder of {content}")
    )


def report(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}")
    return json.loads(file.read_text("utf-8"))


def continued(runs: Path) -> str:
    """What is learned and what is forgotten, with and without replay."""
    variants = {"with replay": Run(runs / "further"), "without": Run(runs / "further-alone")}
    rows: list[Sequence[str]] = []
    lines: dict[str, Points] = {}
    for title, run in variants.items():
        cells: list[str] = []
        for text, label in (("editorials", "editorials"), ("stdlib", "code")):
            points = run.heldout_curve(text)
            cells.append(f"{points[0][1]:.3f} → {points[-1][1]:.3f}")
            lines[f"{label}, {title}"] = points
        rows.append([title, *run.facts[1:], *cells])
    return "\n\n".join(
        [
            table(["replay", "tokens", "minutes", "editorials, bits a byte", "code, bits a byte"], rows),
            drawn("further", lines, "tokens", "bits a byte, held out", "Domain and general text"),
        ]
    )


PARTS: dict[str, Callable[[Path], Any]] = {
    "base": base,
    "characters": characters,
    "plays": plays,
    "experts": experts,
    "curation": curation,
    "denoiser": denoiser,
    "masked": masked,
    "embedder": embedder,
    "probed": probed,
    "further": continued,
}


if __name__ == "__main__":
    main()
