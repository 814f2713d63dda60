"""Draw the learning curves of a finished run of `adapt --curve`, and say in the page of examples what they say.

usage: docs/curve.py [RUN]        RUN is runs/reviews-curve by default; writes docs/learning-curve.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bedplate.report.plots import learning_curve

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "learning-curve.svg"
PAGE = ROOT / "docs" / "examples.md"
BEGIN, END = "<!-- curve -->", "<!-- /curve -->"


def main() -> None:
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "reviews-curve"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    if report["curve"] is None:
        sys.exit(
            f"error: {run} has no learning curve; `bedplate adapt TASK.yaml --out {run} --curve 50,100,200` adds it"
        )
    PICTURE.write_text(learning_curve(report["curve"], report["target"]["value"]), encoding="utf-8")
    statements = [*report["curve"]["says"], *report["curve"]["left_out"]]
    picture = f"![Accuracy against labels of each rung]({PICTURE.name})"
    shown = "\n".join([picture, "", *(f"- {statement}" for statement in statements)])
    before, tail = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{shown}\n{END}{tail.split(END)[1]}", encoding="utf-8")
    print("\n".join([*statements, f"drawn in {PICTURE}"]))


if __name__ == "__main__":
    main()
