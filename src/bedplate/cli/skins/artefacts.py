"""`bedplate skins`: what the catalogue and the files of skins say, and two skins, or one made twice, compared."""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Overwrite, input_file, output_directory, output_file
from bedplate.core import tables

if TYPE_CHECKING:
    from bedplate.adaptation.postprocess.reproduce import Reproduction
    from bedplate.skins.lineage import LineageNode
    from bedplate.skins.skin import Skin

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_target = typer.Argument(help="A directory, or a name or id in the catalogue.", callback=paths.catalog_target)
Target = Annotated[str, _target]
Directory = Annotated[str, typer.Argument(help="A skin's directory.", callback=paths.skin_directory)]
Base = Annotated[str | None, typer.Option(help="Where the skin's base is now.", callback=paths.base)]
Out = Annotated[Path, output_directory(help="The directory to write.")]

_BRANCH, _BELOW = {False: "├── ", True: "└── "}, {False: "│   ", True: "    "}
_DETAIL_KEYS = ("kind", "rung", "seed", "code_version", "parent")


def list(
    directories: Annotated[
        builtins.list[Path] | None,
        typer.Argument(help="Directories to look through and record.", callback=paths.directories),
    ] = None,
    all_columns: AllColumns = False,
    as_json: Json = False,
) -> None:
    """List the catalogue's skins; what lies below the given directories is recorded first."""
    from bedplate.skins.catalog import Catalog

    with Catalog.open() as catalog:
        problems = catalog.add(directories).problems if directories else []
        entries = catalog.entries("skin")
    if as_json:
        print(json.dumps({"skins": [record.to_json() for record in entries], "problems": problems}))
        return
    rows: builtins.list[tuple[str, ...]] = []
    for record in entries:
        cells = (str(record.details.get(key) or "") for key in ("kind", "task", "base"))
        missing_note = "" if record.path and Path(record.path).is_dir() else " (gone)"
        rows.append((record.name, *cells, record.id[:12], f"{record.path}{missing_note}"))
    tables.show(("name", "kind", "task", "base", "id", "path"), rows)
    for problem in problems:
        print(f"not recorded: {problem}")


def show(skin: Target, as_json: Json = False) -> None:
    """Show what a skin consists of, and what the catalogue knows of its lineage."""
    from bedplate.skins.catalog import Catalog
    from bedplate.skins.files import read_skin, skin_id
    from bedplate.skins.lineage import trace as trace_lineage

    with Catalog.open() as catalog:
        read = read_skin(catalog.skin_directory(skin))
        lineage = trace_lineage(str(read.directory), catalog)
    trees = (lineage.came_from, lineage.became)
    ancestors, descendants = ([node for root in nodes for node in root.walk()] for nodes in trees)
    fields = {"name": read.name, "id": skin_id(read), **_parts(read)}
    fields |= {"ancestors": _known(ancestors), "descendants": _known(descendants)}
    fields["unrecorded"] = [node.id for node in (*ancestors, *descendants) if node.what == "unknown"]
    if as_json:
        print(json.dumps(fields))
        return
    for key, value in fields.items():
        if value not in (None, [], {}):
            print(f"{key:<16} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


def _parts(skin: Skin) -> dict[str, Any]:
    model, index = skin.classical, skin.index
    return {
        "kind": skin.kind,
        "path": str(skin.directory),
        "bases": {role: reference.model_dump() for role, reference in skin.bases.items()},
        "inputs": {name: field.model_dump() for name, field in skin.inputs.items()},
        "output": skin.output.model_dump(),
        "prompt": {"format": skin.prompt.format, "system": skin.prompt.system, "template": skin.prompt.template},
        "demonstrations": len(skin.demonstrations),
        "lora": skin.lora and skin.lora.config.model_dump(),
        "probe": skin.probe and {"layer": skin.probe.layer, "pooling": skin.probe.pooling},
        "classical": model and {"terms": len(model.terms), "words": [*model.words], "sublinear": model.sublinear},
        "index": None if index is None else {"rows": len(index), "k": index.k, "size": index.vectors.shape[1]},
        "evaluated_with": skin.evaluated_with and skin.evaluated_with.model_dump(),
        "provenance": skin.provenance.model_dump(),
    }


def _known(nodes: Sequence[LineageNode]) -> builtins.list[dict[str, Any]]:
    return [
        {"what": node.what, "id": node.id, "name": node.name, "path": node.path, **node.facts}
        for node in nodes
        if node.what != "unknown"
    ]


def trace(
    target: Annotated[
        str,
        typer.Argument(
            metavar="SKIN|HASH",
            help="A directory of a skin, base or run; a data file; or a name, id or hash in the catalogue.",
            callback=paths.catalog_target,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show what a skin came from (run, data, splits, bases, seeds, parents) and what came from it.

    It goes both ways from anything that has a hash: from a skin to its data, and from a data file, a split or a base
    to every skin that was made from it. Ids and hashes may be cut to their first six characters.

    What lies in directories is read there. What came after is what the catalogue knows: `bedplate adapt` records what
    it makes, and `bedplate skins list DIR` what lies below a directory.

    \b
      bedplate skins trace runs/x/skins/lora
      bedplate skins trace reviews.jsonl          # skins that were made from this file, as it is now
      bedplate skins trace smollm2-135m
    """
    from bedplate.skins import lineage
    from bedplate.skins.catalog import Catalog

    with Catalog.open() as catalog:
        provenance = lineage.trace(target, catalog)
    if as_json:
        print(json.dumps(provenance.to_json()))
        return
    print(_line(provenance.subject))
    for heading, nodes, last in (("came from", provenance.came_from, False), ("became", provenance.became, True)):
        print(f"{_BRANCH[last]}{heading}{'' if nodes else ' nothing that is known'}")
        _print_tree(nodes, _BELOW[last])


def _print_tree(nodes: Sequence[LineageNode], indent: str) -> None:
    """Lines are not cut to the width of the screen: paths and hashes are there to be copied."""
    for number, node in enumerate(nodes, 1):
        last = number == len(nodes)
        print(f"{indent}{_BRANCH[last]}{_line(node)}")
        _print_tree(node.nodes, indent + _BELOW[last])


def _line(node: LineageNode) -> str:
    parts = [node.what, "" if node.what == "unknown" else node.name, node.id[:12]]
    for key in _DETAIL_KEYS:
        if node.facts.get(key) not in (None, ""):
            parts.append(f"{key.replace('_', ' ')} {node.facts[key]}")
    if node.path is not None:
        parts.append(f"({node.path}{'' if node.here else ', gone or changed'})")
    return " ".join(filter(None, parts))


def verify(
    skin: Directory,
    base: Annotated[str | None, typer.Argument(help="A base that the skin must fit.", callback=paths.base)] = None,
    dtype: Annotated[str, typer.Option(help="Data type of the base's weights.")] = "auto",
    allow_other_weights: Annotated[
        bool,
        typer.Option("--allow-other-weights", help="Only warn about weights that it was not judged with."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that every file of a skin is as it was written, and that it fits a base."""
    from bedplate.skins.files import read_skin, skin_id
    from bedplate.skins.verify import verify_skin

    read = read_skin(skin)
    warnings: builtins.list[str] = []
    if base is not None:
        from bedplate.models.checkpoints.base import load_base

        warnings = verify_skin(read, load_base(base, dtype=dtype), allow_other_weights=allow_other_weights)
    if as_json:
        report = {"name": read.name, "id": skin_id(read), "files": "ok", "base": base, "warnings": warnings}
        print(json.dumps(report))
        return
    print(f"{read.name}: every file is as it was written{'' if base is None else f', and it fits {base}'}")
    for warning in warnings:
        print(f"warning: {warning}")


def export(skin: Directory, out: Out, base: Base = None, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Write a skin for other programs.

    prompt.json says what is asked: template, messages, output. For LoRA weights and soft prompts there is what peft
    loads; for probes and classical skins model.onnx, and numpy arrays with a recipe that needs nothing else.
    """
    paths.free(out, overwrite, "prompt.json")
    from bedplate.skins.export import export_skin
    from bedplate.skins.files import read_skin

    read = read_skin(skin)
    files = export_skin(read, out, base=base, replace=overwrite)
    if as_json:
        print(json.dumps({"name": read.name, "kind": read.kind, "out": str(out), "files": files}))
    else:
        print(f"{out}: {', '.join(files)}")


def merge(
    skin: Directory,
    out: Out,
    base: Base = None,
    dtype: Annotated[str, typer.Option(help="Data type of the stored weights.")] = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Add LoRA weights to the base's and write a Hugging Face directory that transformers loads.

    It says how far that is from base and adapter."""
    paths.free(out, overwrite, "base.json")
    from dataclasses import asdict

    from bedplate.skins.files import read_skin
    from bedplate.skins.merge import merge_skin

    merged = merge_skin(read_skin(skin), out, base=base, dtype=None if dtype == "auto" else dtype, overwrite=overwrite)
    if as_json:
        print(json.dumps(asdict(merged) | {"out": str(out)}))
        return
    print(f"{out}: the base with the skin's weights, stored as {merged.stored}")
    if merged.dequantised is not None:
        print(f"source     quantised ({merged.dequantised}): merged into the dequantised weights, not quantised again")
    print(f"weights_id {merged.weights_id}")
    drift = merged.drift
    print(
        f"drift      against base and adapter in float32, {drift.tokens} tokens: logits differ by at most "
        f"{drift.logit:.2g}, mean KL {drift.kl:.2g} nats, the likeliest token is the same at {drift.same_top:.1%}"
    )


TESTS = {
    "mcnemar_exact": "exact McNemar test",
    "sign_flip": "sign-flip test",
    "clustered_sign_flip": "sign-flip test of whole groups",
    "swap": "swap test",
    "clustered_swap": "swap test of whole groups",
}
"""How a comparison's test is called."""


def compare(
    a: Annotated[Path, typer.Argument(help="A skin's directory.", callback=paths.skin_directory)],
    b: Annotated[Path, typer.Argument(help="That of the skin it is compared with.", callback=paths.skin_directory)],
    rows: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.jsonl", help="New rows with targets: .jsonl, .csv, .tsv or .parquet.", callback=paths.existing
        ),
    ],
    task: Annotated[
        Path | None, input_file(help="The task file. Default: that of the run that made the first skin.")
    ] = None,
    usd_per_hour: Annotated[
        float | None, typer.Option(min=0, help="What an hour of this machine costs. Default: as the task file says.")
    ] = None,
    out: Annotated[Path | None, output_file(help="Write the result with all rows to this JSON file.")] = None,
    overwrite: Overwrite = False,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, without the rows.")] = False,
) -> None:
    """Compare two skins on the same rows: quality row by row with whole groups as units, and the time and price of
    single calls beside it.

    Rows that either skin was trained on, chosen by or judged by are left out and counted, whatever their case, white
    space and punctuation.
    The verdict is by the task's metric; the others are for orientation. It is recorded in the ledger: a further verdict
    on the same rows is exploratory and may spend less error.

    \b
      bedplate skins compare runs/x/skins/probe runs/x/skins/lora october.jsonl
    """
    paths.free(out, overwrite)
    from bedplate.adaptation.postprocess import compare_skins
    from bedplate.core.files import atomic_write

    result = compare_skins.compare(a, b, rows, task_file=task, usd_per_hour=usd_per_hour)
    report = result.to_json()
    if out is not None:
        atomic_write(out, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if as_json:
        for side in ("a", "b"):
            del report[side]["evaluation"]["rows"]
        print(json.dumps(report, allow_nan=False))
        return
    rows_shown: builtins.list[tuple[str, ...]] = []
    for side in (result.a, result.b):
        low, high = side.evaluation.interval
        price = "" if side.usd_per_1k_calls is None else f"{side.usd_per_1k_calls:.4f}"
        times = (f"{side.latency.p50 * 1000:.1f}", f"{side.latency.p95 * 1000:.1f}")
        rows_shown.append((side.name, f"{side.evaluation.estimate:.3f}", f"{low:.3f}-{high:.3f}", *times, price))
    columns = tables.numbers(result.comparison.metric, "interval", "p50 ms", "p95 ms", "$/1k calls")
    tables.show(("skin", *columns), rows_shown)
    of = result.comparison
    rows_of = f"{of.n} rows in {of.groups} groups" if of.groups < of.n else f"{of.n} rows"
    print(f"{rows_of}; {result.a.name} minus {result.b.name}:")
    for comparison in (result.comparison, *result.others):
        low, high = comparison.interval
        interval = f"({comparison.confidence:.1%} interval {low:+.3f} to {high:+.3f})"
        test = f"p = {comparison.p_value:.2g} ({TESTS[comparison.test]})"
        print(f"  {comparison.metric}: {comparison.difference:+.3f} {interval}, {test}")
    for side in (result.a, result.b):
        if side.too_long:
            print(f"note: {side.too_long} rows are too long for {side.name} and count as wrong")
    for note in result.notes:
        print(f"note: {note}")
    print(result.sentence)
    if out is not None:
        print(f"written to {out}")


def reproduce(
    skin: Target,
    out: Annotated[
        Path | None, output_directory(help="The new run's directory. By default the skin's name with -again, here.")
    ] = None,
    task: Annotated[
        Path | None, input_file(help="The task file, where the run is gone or its task file has moved.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a skin again from what it recorded (task, seed, plan of its rung), and compare the two.

    Only its rung is climbed, and what that builds on; test is not opened. It says what of data, splits, bases, parent,
    code and libraries is not what it was, which files are the same, by how much numbers differ, and how many answers on
    valid are the same. A hosted skin's endpoint is asked again, within the task's max_usd.

    \b
      identical     every file is the same, bit for bit
      equivalent    numbers in files differ, no answer on valid does
      different     something else differs                               exit code 1
      not_possible  data, splits, a base or the parent cannot be had     exit code 1

    Ctrl-C is safe: the same command resumes where it stopped.
    """
    from bedplate.adaptation.postprocess.reproduce import reproduce as again
    from bedplate.skins.catalog import Catalog
    from bedplate.skins.files import read_skin

    with Catalog.open() as catalog:
        directory = catalog.skin_directory(skin)
    reproduction = again(directory, out or Path(f"{read_skin(directory).name}-again"), task_file=task)
    if as_json:
        print(json.dumps(reproduction.to_json(), allow_nan=False))
    else:
        _show(reproduction)
    if not reproduction.reproduced:
        raise typer.Exit(1)


def _show(result: Reproduction) -> None:
    print(f"{result.skin}: {result.status.replace('_', ' ')}: {result.reason}")
    for change in result.differences:
        change_type = "changed" if change.decides else "note   "
        print(f"{change_type} {change.what}: was {change.was[:24]}, is {change.now[:24]}")
    for note in result.notes:
        print(f"note    {note}")
    for part in result.parts:
        by = "" if part.equal or part.largest is None else f" by at most {part.largest:.3g}"
        print(f"{'same   ' if part.equal else 'differs'} {part.name}{by}")
    if result.comparison is not None:
        c = result.comparison
        scores = f"{c.metric} {c.b:.3f}, now {c.a:.3f}"
        print(f"valid   {result.equal_answers} of {result.rows} answers are the same; {scores}")
    if result.recorded is not None and result.estimate is not None:
        print(f"then    {result.recorded:.3f} was recorded, {result.estimate:.3f} was measured in making it again")
    if result.directory is not None:
        print(f"skin    {result.directory}")
