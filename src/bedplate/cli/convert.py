"""`bedplate convert`: converts a checkpoint to another layout, checked by reading it back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bedplate.cli import paths
from bedplate.cli.export import write_out
from bedplate.cli.options import BaseSource, Overwrite


def convert(
    source: BaseSource,
    destination: Annotated[
        Path, typer.Argument(help="What to write: NAME.gguf, or else a Hugging Face directory.", callback=paths.new)
    ],
    dtype: Annotated[
        str | None, typer.Option(help="Of a directory's weights; by default as stored, float32 for a GGUF.")
    ] = None,
    matrix_type: Annotated[
        str | None,
        typer.Option(
            "--type", help="Of a GGUF's matrices: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1.", show_default="f16"
        ),
    ] = None,
    shard_gb: Annotated[float, typer.Option(help="The size of one weights file of a directory at most, in GB.")] = 5.0,
    long_context: Annotated[
        bool,
        typer.Option(
            "--long-context",
            help="Of a base with LongRoPE (Phi-3 and Phi-4-mini): the extended context, with the long factors at every "
            "position; skins are then to be made anew.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Convert a checkpoint: Hugging Face directory (one file, shards; GPTQ, AWQ, float8 and ONNX become plain) or GGUF.

    The result is read back, and the values are compared with the source's: equal, or rounded by so much.
    """
    to_gguf = destination.suffix == ".gguf"
    form: Literal["hf", "gguf"] = "gguf" if to_gguf else "hf"
    write_out(source, destination, form, dtype, matrix_type, shard_gb, overwrite, as_json, long_context)
