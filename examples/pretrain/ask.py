"""Serves the completion skin that an adaptation ended in, asks it for the next line of some code, and stops the server.

usage: ask.py BASE RUN        the base's directory, and that of the adaptation (of completion.yaml)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx

CODE = (
    "    def __init__(self, path):\n        self.path = path\n",
    "def main():\n    parser = argparse.ArgumentParser()\n",
    "    try:\n        value = int(text)\n    except ValueError:\n",
)


def skin_of(run: Path) -> Path:
    """The skin that passed, or the best nominee where none did."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    rung = report["verdict"]["rung"] or report["nominees"]["primary"]
    if rung is None:
        sys.exit(f"error: {run} has no skin to serve: {report['verdict']['reason']}")
    return run / next(row["skin"] for row in report["rungs"] if row["rung"] == rung and row["status"] == "done")


def main() -> None:
    base, skin = Path(sys.argv[1]), skin_of(Path(sys.argv[2]))
    name = json.loads((skin / "skin.json").read_text(encoding="utf-8"))["name"]
    command = ["bedplate", "serve", str(base), "--skin", str(skin), "--port", "0", "--json"]
    print(*command, flush=True)
    program = [sys.executable, "-m", "bedplate.cli.main", *command[1:]]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            announcement = server.stdout.readline()
            if not announcement:
                sys.exit("error: the server has ended; what it said stands above")
            url = json.loads(announcement)["url"]
            for code in CODE:
                body = {"model": name, "messages": [{"role": "user", "content": code}], "temperature": 0}
                answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60).raise_for_status()
                print(f"{code}→ {answer.json()['choices'][0]['message']['content']}\n")
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
