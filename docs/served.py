"""Serve the skins of the worked examples from one process, ask each of them something, and show it in their page.

usage: docs/served.py [RUNS]        RUNS is runs/ by default, with the runs that docs/examples.py reads
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
from examples import GROUPS, PAGE, ROOT

BEGIN, END = "<!-- served -->", "<!-- /served -->"
BASES = ("smollm2-135m", "minilm-l6")
FUNCTION = '''def read_scores(path, least=0):
    """The scores of a file that are at least so high."""
    scores = [float(line) for line in open(path)]
    if not scores:
        raise ValueError(f"{path} is empty")
    return [score for score in scores if score >= least]'''
ARTICLE = (
    "The town council has decided to close the old bridge over the river for two years from next spring. Engineers "
    "found that rust had weakened four of its nine arches, and said that lorries could no longer be let onto it. "
    "Drivers will have to go round by the motorway, which adds about six miles, while people on foot and on bicycles "
    "can cross by a temporary walkway. The work will cost 14 million pounds. Shopkeepers in the High Street fear that "
    "they will lose customers and have asked for their business rates to be lowered while it lasts."
)
PROMPTS = {
    "reviews": "The hinge snapped within a week and nobody answers my letters.",
    "extraction": FUNCTION,
    "questions": "is a tomato a fruit",
    "summaries": ARTICLE,
    "code": "class Counter:\n    def __init__(self):\n        self.total = 0\n\n    def add(self, amount):\n",
}


def main() -> None:
    runs = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs"
    skins = [(name, _skin(runs / name)) for name in GROUPS]
    skins.insert(3, ("questions", runs / "questions" / "skins" / "retrieval"))  # it has the other base to look up with
    command = ["bedplate", "serve", BASES[0], BASES[1]]
    for _, skin in skins:
        command += ["--skin", str(skin.relative_to(ROOT))]
    program = [sys.executable, "-m", "bedplate.cli.main", *command[1:], "--port", "0", "--json"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            shown = _transcript(json.loads(server.stdout.readline())["url"], skins)
        finally:
            server.terminate()
    before, tail = PAGE.read_text(encoding="utf-8").split(BEGIN)
    lines = " \\\n  ".join([" ".join(command[:4]), *(" ".join(command[i : i + 2]) for i in range(4, len(command), 2))])
    text = f"{BEGIN}\n```sh\n{lines}\n```\n\n{shown}\n{END}"
    PAGE.write_text(f"{before}{text}{tail.split(END)[1]}", encoding="utf-8")


def _skin(run: Path) -> Path:
    """The skin that passed, or the best nominee where none did."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    rung = report["verdict"]["rung"] or report["nominees"]["primary"]
    if rung is None:
        sys.exit(f"error: {run} has no nominee; its verdict: {report['verdict']['reason']}")
    return run / next(row["skin"] for row in report["rungs"] if row["rung"] == rung and row["status"] == "done")


def _transcript(url: str, skins: list[tuple[str, Path]]) -> str:
    client = openai.OpenAI(base_url=url, api_key="none")
    by_name = {json.loads((skin / "skin.json").read_text(encoding="utf-8"))["name"]: name for name, skin in skins}
    assert set(by_name) <= {model.id for model in client.models.list()}
    lines = ["| model | asked | answers | tokens read, from the cache | ms |", "|---|---|---|---|---|"]
    for model, name in by_name.items():
        for text in ("Hello.", PROMPTS[name]):  # the first call computes the skin's own prompt
            reply = client.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": text}], temperature=0
            )
        answer = reply.parse()
        usage: Any = answer.usage
        cached = 0 if usage.prompt_tokens_details is None else usage.prompt_tokens_details.cached_tokens
        choice: Any = answer.choices[0]
        output = _cell((choice.message.content or "").strip())
        looked_up = (getattr(choice, "bedplate", None) or {}).get("passages", ())
        if looked_up:
            output += f", having read *{', '.join(passage['document'] for passage in looked_up)}*"
        cells = (f"`{model}`", _cell(PROMPTS[name]), output, f"{usage.prompt_tokens}, {cached}")
        lines.append(f"| {' | '.join(cells)} | {reply.elapsed.total_seconds() * 1000:.0f} |")
    return "\n".join(lines)


def _cell(text: str, limit: int = 240) -> str:
    text = text if len(text) <= limit else f"{text[:limit].rsplit(maxsplit=1)[0]} …"
    return "<br>".join(f"`{line}`" for line in text.replace("|", "\\|").splitlines() if line.strip())


if __name__ == "__main__":
    main()
