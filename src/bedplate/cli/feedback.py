"""`bedplate feedback`: what a server kept of replies and what users said, to list, export as task data, or purge."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Overwrite, input_directory, input_file, output_file
from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write
from bedplate.core.tables import numbers, show

if TYPE_CHECKING:
    from bedplate.serving.durable.feedback_store import FeedbackStore


def feedback(
    action: Annotated[Literal["list", "export", "purge"], typer.Argument(help="What to do.")],
    skin: Annotated[
        str | None, typer.Argument(help="export, purge: the model name that the skin was served under.")
    ] = None,
    out: Annotated[Path | None, output_file(help="export: the .jsonl file to write.")] = None,
    task: Annotated[
        Path | None, input_file(help="export: the task file whose columns the rows get. Default: the input names.")
    ] = None,
    target: Annotated[str, typer.Option(help="export: the target's column, where no task names it.")] = "target",
    id: Annotated[list[str] | None, typer.Option(help="purge: a reply's id. Repeatable.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="purge: everything of a tenant. Repeatable.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="purge: all that was kept of the skin.")] = False,
    state: Annotated[
        Path | None, input_directory(help="The server's state directory. Default: serve/ in BEDPLATE_HOME.")
    ] = None,
    overwrite: Overwrite = False,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what was kept of each skin, export corrected and accepted replies as task data, or purge ids and tenants."""
    if action == "export":
        if skin is None or out is None:
            raise UsageError("`bedplate feedback export` takes a skin and --out FILE.jsonl")
        if out.suffix != ".jsonl":
            raise UsageError(f"{out}: task data is written as .jsonl; give such a name")
        paths.free(out, overwrite)
    from bedplate.serving.durable.feedback_store import DIRECTORY, FeedbackStore
    from bedplate.serving.settings.server_config import state_directory

    store = FeedbackStore(state_directory(state) / DIRECTORY)
    if action == "list":
        summary = store.summary()
        columns = ("model", *numbers("replies", "with texts", "feedback", "corrections"))
        if as_json:
            print(json.dumps({"models": summary}))
        elif not summary:
            print(f"{store.root} holds nothing; --state names the `state` of the server's file, where it is another")
        else:
            show(columns, [tuple(map(str, row.values())) for row in summary])
    elif action == "export":
        assert skin is not None
        assert out is not None
        _export(store, skin, out, task, target, as_json)
    else:
        _purge(store, skin, id or [], tenant or [], everything, as_json)


def _export(store: FeedbackStore, skin: str, out: Path, task: Path | None, target: str, as_json: bool) -> None:
    if skin not in store.models():
        served_models = ", ".join(store.models()) or "none"
        raise UsageError(f"{store.root} holds nothing of {skin!r}; there is feedback of: {served_models} (--state?)")
    columns, group = None, None
    if task is not None:
        from bedplate.evaluation.task import load_task

        read = load_task(task)
        columns = {name: spec.column for name, spec in read.inputs.items()}
        target, group = read.data.target, next(iter(read.data.group_columns), None)
    exported = store.export(skin, columns, target, group)
    skipped = {reason: count for reason, count in exported.skipped.items() if count}
    if not exported.rows:
        why = ", ".join(f"{reason}: {count:,}" for reason, count in skipped.items())
        raise UsageError(
            f"no reply of {skin!r} became a row of task data ({why or 'none was kept'}); no file is written"
        )
    atomic_write(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in exported.rows))
    if as_json:
        print(json.dumps({"out": str(out), "rows": len(exported.rows), "skipped": skipped}))
        return
    print(f"{len(exported.rows)} rows written to {out}")
    for reason, count in skipped.items():
        print(f"left out: {count} ({reason})")


def _purge(
    store: FeedbackStore, skin: str | None, ids: list[str], tenants: list[str], everything: bool, as_json: bool
) -> None:
    from bedplate.serving.durable.feedback_store import plain_id

    if not ids and not tenants and not everything:
        raise UsageError("say what to purge: --id of a reply, --tenant, or --everything of a skin")
    if everything and skin is None:
        raise UsageError("--everything needs the name of the skin")
    plain_ids: set[str] = set()
    for reply_id in ids:
        parsed = plain_id(reply_id)
        if parsed is None:
            raise UsageError(f"{reply_id!r} is not a reply's id; it ends in 32 hexadecimal digits")
        plain_ids.add(parsed)
    purged = store.purge(plain_ids, set(tenants), () if skin is None else (skin,), everything=everything)
    print(json.dumps({"lines": purged}) if as_json else f"{purged:,} lines of feedback files deleted")
    if not purged:
        searched = "every model" if skin is None else skin
        print(f"warning: {store.root} has no such line of {searched}; nothing was deleted", file=sys.stderr)
