"""`bedplate export` and `bedplate convert`: write a base out in a form that transformers or llama.cpp loads, checked by
reading it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bedplate.cli import paths
from bedplate.cli.options import BaseSource, Overwrite
from bedplate.core.errors import UsageError

if TYPE_CHECKING:
    from bedplate.models.checkpoints.base import Base


def export(
    base: BaseSource,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The directory, or .gguf file, to write.", callback=paths.new)
    ],
    file_format: Annotated[
        Literal["hf", "gguf"] | None,
        typer.Option("--format", help="hf: a directory for transformers; gguf: one file. Default: by the name of OUT."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="hf: data type of the weights. Default: the stored one; float32 for a GGUF.")
    ] = None,
    matrix_type: Annotated[
        str | None,
        typer.Option("--type", help="gguf: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1.", show_default="f16"),
    ] = None,
    shard_gb: Annotated[float, typer.Option(help="hf: largest weights file, in GB.")] = 5.0,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a base as a Hugging Face directory or a GGUF file, read it back, and show who it is."""
    _write_out(base, out, file_format or _format_of(out), dtype, matrix_type, shard_gb, overwrite, as_json)


def convert(
    source: BaseSource,
    destination: Annotated[
        Path, typer.Argument(help="What to write: NAME.gguf, or else a Hugging Face directory.", callback=paths.new)
    ],
    dtype: Annotated[
        str | None,
        typer.Option(help="Data type of a directory's weights. Default: as stored; float32 for a GGUF."),
    ] = None,
    matrix_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="A GGUF's matrices: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1.",
            show_default="f16",
        ),
    ] = None,
    shard_gb: Annotated[float, typer.Option(help="Largest weights file of a directory, in GB.")] = 5.0,
    long_context: Annotated[
        bool,
        typer.Option(
            "--long-context",
            help="With LongRoPE (Phi-3, Phi-4-mini): the extended context, with the long factors at every "
            "position; skins are then to be made anew.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Convert a checkpoint: Hugging Face directory (one file, shards; GPTQ, AWQ, float8 and ONNX become plain) or GGUF.

    The result is read back, and the values are compared with the source's: equal, or rounded by so much.
    """
    _write_out(
        source, destination, _format_of(destination), dtype, matrix_type, shard_gb, overwrite, as_json, long_context
    )


def _format_of(path: Path) -> Literal["hf", "gguf"]:
    return "gguf" if path.suffix == ".gguf" else "hf"


def _write_out(
    base: str,
    out: Path,
    file_format: Literal["hf", "gguf"],
    dtype: str | None,
    matrix_type: str | None,
    shard_gb: float,
    overwrite: bool,
    as_json: bool,
    long_context: bool = False,
) -> None:
    """Writes it, reads it back, compares the values, and prints what it is."""
    _check(base, out, file_format, dtype, matrix_type, shard_gb, overwrite)
    from bedplate.models.checkpoints.base import load_base
    from bedplate.models.checkpoints.checkpoint import locate
    from bedplate.models.checkpoints.export import export_base, export_gguf
    from bedplate.models.checkpoints.long_context import with_long_context

    # A GGUF's values are exact in float32 only, so nothing is rounded unless --dtype asks for it.
    exact = "float32" if file_format == "gguf" or locate(base).is_file() else "auto"
    loaded = load_base(base, dtype=exact, device="cpu")
    if long_context:
        loaded = with_long_context(loaded)
    if file_format == "gguf":
        export_gguf(loaded, out, matrix_type or "f16", replace=overwrite)
        written = load_base(out.absolute(), dtype="float32", device="cpu")
    else:
        export_base(loaded, out, dtype=dtype, shard_bytes=max(1, int(shard_gb * 1e9)), replace=overwrite)
        written = load_base(out.absolute(), device="cpu")
    facts = _facts(loaded, written, out)
    if as_json:
        print(json.dumps(facts))
        return
    print(f"{facts['out']}: {facts['parameters']:,} parameters, {facts['family']}, {facts['stored']}")
    print(f"files          {', '.join(facts['files'])} ({facts['size_bytes'] / 1e6:,.1f} MB)")
    for key in ("weights_id", "tokenizer_id", "template_id", "equivalent_of"):
        if facts[key] is not None:
            print(f"{key:<14} {facts[key]}")
    rounded = f"rounded to {facts['stored']}, by {facts['largest_change']:.2g} of a matrix's largest value at most"
    print("values         " + ("equal to the source's" if facts["same_values"] else rounded))


def _check(
    base: str, out: Path, file_format: str, dtype: str | None, matrix_type: str | None, shard_gb: float, overwrite: bool
) -> None:
    """What can be known to fail is refused before a model is loaded."""
    if file_format == "gguf" and dtype is not None:
        raise UsageError("--dtype is for --format hf; a GGUF file takes --type")
    if file_format == "hf" and matrix_type is not None:
        raise UsageError("--type is for --format gguf; a Hugging Face directory takes --dtype")
    if not shard_gb > 0:
        raise UsageError(f"--shard-gb is {shard_gb}; it must be above 0")
    paths.free(out, overwrite, None if file_format == "gguf" else "base.json")
    if out.exists() and Path(base).exists() and out.samefile(base):
        raise UsageError(f"{out} is the base itself; choose another name")
    if (file_format == "gguf") != (out.suffix == ".gguf"):
        raise UsageError(f"{out}: a GGUF file's name must end in .gguf, and a directory's must not")


def _facts(source: Base, written: Base, out: Path) -> dict[str, Any]:
    from bedplate.models.checkpoints.base import parameter_count
    from bedplate.models.checkpoints.conversion import largest_change

    files = [out] if out.is_file() else sorted(path for path in out.iterdir() if path.is_file())
    identity = written.identity
    unchanged = identity.weights_id == source.identity.weights_id
    return {
        "out": str(out),
        "format": written.family.key[0],
        "family": written.family.key[1],
        "parameters": parameter_count(written.model),
        "stored": written.stored_dtype,
        "files": [path.name for path in files],
        "size_bytes": sum(path.stat().st_size for path in files),
        "weights_id": identity.weights_id,
        "tokenizer_id": identity.tokenizer_id,
        "template_id": identity.template_id,
        "equivalent_of": identity.equivalent_of,
        "same_values": unchanged,
        "largest_change": 0.0 if unchanged else largest_change(source.model, written.model),
    }
