"""Builds the site: writes cli.md from `--help`, then every Markdown page of this folder to site/ as HTML."""

from __future__ import annotations

import contextlib
import html
import importlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = (
    "index",
    "python-api",
    "cli",
    "task-file",
    "report-json",
    "skin-format",
    "serving",
    "operations",
    "batches-and-feedback",
)
STYLE = (
    "body{max-width:46rem;margin:2rem auto;padding:0 1rem;font:16px/1.55 system-ui,sans-serif;color:#1b1f24}"
    "pre{background:#f4f5f7;padding:.8rem;overflow-x:auto}code{font-size:.92em}"
    "table{border-collapse:collapse}td,th{border-bottom:1px solid #d5d9de;padding:.25rem .7rem;text-align:left}"
    "nav a{margin-right:1rem}"
)


def command_line() -> str:
    """cli.md: the help of `bedplate` and of each verb, 100 columns wide."""
    from bedplate.cli.main import VERBS

    parts = ["# Command line", "", "Written by `make docs` from `--help`.", ""]
    for arguments in ([], *_commands(VERBS)):
        title = " ".join(["bedplate", *arguments])
        parts += [f"## {title}", "", "```text", _help(arguments).strip(), "```", ""]
    return "\n".join(parts)


def _commands(table: Mapping[str, tuple[str, str]]) -> Iterator[list[str]]:
    """Each verb of a table, followed by its own verbs where it has some."""
    for verb, (module, _) in table.items():
        yield [verb]
        for inner in _commands(getattr(importlib.import_module(module), "ACTIONS", {})):
            yield [verb, *inner]


def _help(arguments: list[str]) -> str:
    from bedplate.cli.main import main

    said = io.StringIO()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "TERMINAL_WIDTH")}
    os.environ.update(COLUMNS="100", TERMINAL_WIDTH="100")
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*arguments, "--help"])
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    return "\n".join(line.rstrip() for line in said.getvalue().splitlines())


def build(site: Path) -> None:
    """Every page of PAGES, links between them rewritten."""
    from markdown_it import MarkdownIt

    site.mkdir(parents=True, exist_ok=True)
    links = "".join(f'<a href="{page}.html">{page}</a>' for page in PAGES)
    for page in PAGES:
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        body = re.sub(r'href="([\w-]+)\.md"', r'href="\1.html"', MarkdownIt("commonmark").enable("table").render(text))
        title = html.escape(text.splitlines()[0].lstrip("# "))
        (site / f"{page}.html").write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
            f"<nav>{links}</nav>{body}</html>\n",
            encoding="utf-8",
        )
    for picture in (*DOCS.glob("*.svg"), *DOCS.glob("*.png")):
        shutil.copy(picture, site / picture.name)


if __name__ == "__main__":
    (DOCS / "cli.md").write_text(command_line(), encoding="utf-8")
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS.parent / "site"
    build(target)
    print(f"{len(PAGES)} pages written to {target}")
