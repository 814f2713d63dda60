"""`bedplate skins merge`: LoRA weights added to the base's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import Overwrite


def merge(
    skin: Annotated[str, typer.Argument(help="A skin's directory.", callback=paths.skin_directory)],
    out: Annotated[Path, typer.Option(help="The directory to write.", callback=paths.directory)],
    base: Annotated[str | None, typer.Option(help="Where the skin's base is now.", callback=paths.base)] = None,
    dtype: Annotated[str, typer.Option(help="How the weights are stored.")] = "auto",
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
