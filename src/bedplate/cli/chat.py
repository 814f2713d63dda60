"""`bedplate chat`: a conversation with a base, a skin, or a model of a running server."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllowOtherWeights, JudgedDtype, JudgedKernel, JudgedWeights, duration, whole
from bedplate.core.errors import EndpointError, UsageError

KEY = "BEDPLATE_API_KEY"


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="SKIN|BASE",
            help="A skin's directory, or a base: catalogue name, directory, .gguf file or hf:owner/name. With --url a "
            "served model's name (by default the first).",
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"Talk to a running server; its key is read from {KEY}.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Default: 0.7 for a base here; else the skin's or server's own.")
    ] = None,
    max_tokens: Annotated[
        int | None, whole(help="Default: 1024 for a base here; else the skin's or server's own.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Where the skin's base is, when not where it was made.", callback=paths.base)
    ] = None,
    dtype: JudgedDtype = None,
    weights: JudgedWeights = None,
    kernel: JudgedKernel = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    allow_other_weights: AllowOtherWeights = False,
    timeout: Annotated[float, duration(help="How long a server may send nothing. Default: 10m.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each line that is read.")] = False,
) -> int:
    """Chat with a base, a skin, or a running server. Piped lines are turns; on a terminal /help lists the commands."""
    if url is None:
        paths.skin_or_base(model)
    from bedplate.inference.chat import ChatEndpoint, Conversation, open_local, pipe, talk

    with contextlib.ExitStack() as stack:
        if url is not None:
            from bedplate.inference.remote.endpoint import Endpoint

            key = os.environ.get(KEY) or None
            endpoint = stack.enter_context(Endpoint(url, key=key, timeout=timeout))
            try:
                partner = ChatEndpoint(endpoint, model)
            except EndpointError as error:
                if error.status == 401 and key is None:
                    raise UsageError(f"{url} asks for an API key; set the environment variable {KEY}") from error
                raise
        else:
            from bedplate.inference.execution.threads import use_cores  # loads torch, as a server's model does not

            use_cores()
            options = {"dtype": dtype, "weights": weights, "kernel": kernel, "device": device, "base": base}
            partner = open_local(model, **options, allow_other_weights=allow_other_weights)
        stack.callback(partner.close)
        settings = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        conversation = Conversation(partner, system=system, settings=settings)
        if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
            return pipe(conversation, sys.stdin, as_json=as_json)
        talk(conversation)
    return 0
