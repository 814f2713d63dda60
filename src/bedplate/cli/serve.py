"""`bedplate serve`: a base and its skins behind an OpenAI-compatible API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.core.errors import UsageError

if TYPE_CHECKING:
    from bedplate.serving.house import House


def serve(
    base: Annotated[
        str, typer.Argument(help="Catalogue name, directory, .gguf file or hf:owner/name.", show_default=False)
    ],
    skin: Annotated[
        list[str] | None, typer.Option(help="A skin's directory, served under the skin's name. Repeatable.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; the default is this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The base's model name. Default: its own.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or auto. Default: what the skins were judged with.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    max_rows: Annotated[int, typer.Option(min=1, help="Generations that run at once.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=1, help="Queued requests; more are answered 429.")] = 256,
    max_body_bytes: Annotated[int, typer.Option(min=1024, help="Larger requests are answered 413.")] = 2 * 1024 * 1024,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running requests get at the end.")] = 10.0,
    allow_other_weights: Annotated[
        bool, typer.Option(help="Serve skins with other weights than they were judged with.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address and the models as JSON.")] = False,
) -> None:
    """Serve a base and its skins: each is a model of an OpenAI-compatible API. Stops on Ctrl-C or SIGTERM."""
    import logging

    try:
        from bedplate.serving.app import serve as run
    except ModuleNotFoundError as error:
        raise UsageError(f"serving needs the package {error.name}; install bedplate[serve]") from error

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("bedplate").setLevel(logging.INFO)

    def announce(url: str, house: House) -> None:
        models = list(house.registry.models)
        if as_json:
            print(json.dumps({"url": url, "models": models}), flush=True)
        else:
            print(f"serving {', '.join(models)} at {url}", flush=True)

    run(
        base,
        skin or (),
        host=host,
        port=port,
        grace_seconds=grace,
        on_ready=announce,
        name=name,
        dtype=dtype,
        device=device,
        max_rows=max_rows,
        max_waiting=max_waiting,
        body_limit=max_body_bytes,
        allow_other_weights=allow_other_weights,
    )
