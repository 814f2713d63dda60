"""Fill the page of worked examples, and draw its pictures, from finished runs of examples/*/task.yaml.

usage: docs/examples.py [RUNS]        RUNS is runs/ by default; a run's directory has its example's name
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from demo import picture, table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "examples.md"
GROUPS = {
    "reviews": "reviews",
    "extraction": "modules",
    "questions": "articles",
    "summaries": "articles",
    "code": "modules",
}


def main() -> None:
    runs = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs"
    page = PAGE.read_text(encoding="utf-8")
    for name, groups in GROUPS.items():
        file = runs / name / "report.json"
        if not file.exists():
            print(f"{name}: no {file}; its part of the page is left as it is")
            continue
        report = json.loads(file.read_text(encoding="utf-8"))
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, tail = page.split(begin)
        drawn = f"example-{name}.svg"
        (PAGE.parent / drawn).write_text(picture(report), encoding="utf-8")
        shown = f"{table(report, groups)}\n![Quality against cost of each rung]({drawn})\n"
        page = f"{before}{begin}\n{shown}{end}{tail.split(end)[1]}"
        print(f"{name}: {report['verdict']['status']}")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
