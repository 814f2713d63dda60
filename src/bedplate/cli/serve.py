"""`bedplate serve`: a base and its skins behind an OpenAI-compatible API."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bedplate.cli import paths
from bedplate.cli.options import duration, input_directory, input_file, whole
from bedplate.core.errors import UsageError
from bedplate.core.memory import left_alone
from bedplate.core.progress import Progress

if TYPE_CHECKING:
    from bedplate.serving.request.server_state import ServerState
    from bedplate.serving.settings.server_config import ServerConfig

BESIDE_CONFIG = frozenset(("base", "more", "config", "skin", "as_json"))
"""Parameters that also go with a server's file."""


def serve(
    context: typer.Context,
    base: Annotated[
        str | None,
        typer.Argument(help="Catalogue name, directory, .gguf file or hf:owner/name.", callback=paths.base_or_value),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BASE|KEY=VALUE",
            help="More bases, each under its own name. With --config: values that override the file's.",
        ),
    ] = None,
    config: Annotated[
        Path | None, input_file(help="A server's YAML file, in place of BASE and all options but --skin and --json.")
    ] = None,
    skin: Annotated[
        list[str] | None,
        typer.Option(
            help="A skin's directory, served under the skin's name. Repeatable.", callback=paths.skin_directories
        ),
    ] = None,
    skins_directory: Annotated[
        Path | None, input_directory(help="Serve every skin below it; more can be added while the server runs.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; the default is this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The base's model name. Default: its own.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or auto. Default: what the skins were judged with.")
    ] = None,
    weights: Annotated[
        Literal["auto", "fastest", "float32", "bfloat16", "int8", "int4"],
        typer.Option(help="Format of the weights. auto: as skins were judged, else the fastest without loss."),
    ] = "auto",
    kernel: Annotated[
        Literal["auto", "torch", "native"],
        typer.Option(help="torch, or the compiled decoder for CPUs. auto: as skins were judged, else the faster."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    max_rows: Annotated[int, whole(help="Generations that run at once.", shown=True)] = 16,
    max_waiting: Annotated[int, whole(help="Queued requests; more are refused with status 429.", shown=True)] = 256,
    max_body_bytes: Annotated[
        int, whole(help="Larger requests are refused with status 413.", minimum=1024, shown=True)
    ] = 2 * 1024 * 1024,
    grace: Annotated[float, duration(help="How long running requests may take at shutdown. Default: 10s.")] = 10.0,
    allow_other_weights: Annotated[
        bool, typer.Option(help="Serve skins with other weights than they were judged with.")
    ] = False,
    keys: Annotated[Path | None, input_file(help="The file of API keys (`bedplate keys`).")] = None,
    open_to_all: Annotated[bool, typer.Option("--open", help="Serve other machines without API keys.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address and the models as JSON.")] = False,
) -> None:
    """Serve bases and skins: each is a model of an OpenAI-compatible API. Stops on Ctrl-C or SIGTERM.

    A classical skin (from_scratch) needs no base.

    \b
      bedplate serve smollm2-135m --skin runs/x/skins/lora
      bedplate serve smollm2-135m minilm-l6 --skin runs/x/skins/retrieval
      bedplate serve --skin runs/x/skins/from_scratch
      bedplate serve --config server.yaml port=8080
    """
    from bedplate.core.config import load_config
    from bedplate.serving.settings.server_config import ServerConfig

    words = [word for word in (base, *(more or ())) if word is not None]
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    bases = [word for word in words if word not in overrides]
    skins_alone = config is None and bool(skin or skins_directory)
    if bool(bases) == (config is not None) and not skins_alone:
        raise UsageError("give a base or a skin to serve, or a server's file with --config, and not both")
    for source in bases:
        paths.base(source)
    settings = None
    if config is not None:
        for parameter in context.command.params:  # options are not dropped unread
            source = context.get_parameter_source(parameter.name or "")
            if source is not None and source.name == "COMMANDLINE" and parameter.name not in BESIDE_CONFIG:
                raise UsageError(f"{parameter.opts[0]} cannot be combined with --config; set it in the file")
        settings = load_config(config, ServerConfig, overrides)
        for base_config in settings.bases:
            paths.base(base_config.source)
        paths.skin_directories([str(skin_config.source) for skin_config in settings.skins])
        paths.existing_directory(settings.skins_directory)
        paths.existing(settings.keys)
    elif overrides:
        raise UsageError(f"{overrides[0]} is a value of a server's file; give it with --config, or use the options")
    try:
        from bedplate.serving.server import app
    except ModuleNotFoundError as error:
        raise UsageError(f"serving needs the package {error.name}; install bedplate[serve]") from error
    if settings is None:
        settings = app.server_config(
            *bases,
            skins_directory=skins_directory,
            host=host,
            port=port,
            grace_seconds=grace,
            name=name,
            dtype=dtype,
            weights=weights,
            kernel=kernel,
            device=device,
            max_rows=max_rows,
            max_waiting=max_waiting,
            body_limit=max_body_bytes,
            allow_other_weights=allow_other_weights,
            keys=keys,
            open=open_to_all,
        )
    _run(app.serve, settings, skin or (), as_json)


def _run(run: Callable[..., bool], settings: ServerConfig, skins: Sequence[str], as_json: bool) -> None:
    """Serves until a signal comes, and says where once the server is ready."""
    from bedplate.inference.execution.threads import use_cores
    from bedplate.serving.settings.server_config import write_logs

    use_cores()
    write_logs(settings.logs)
    starting = contextlib.ExitStack()

    def announce(url: str, state: ServerState) -> None:
        starting.close()
        models = list(state.registry.models)
        remainder = f" and {len(models) - 20} more" if len(models) > 20 else ""
        routes = list(settings.routes)
        led = f", and the {'route' if len(routes) == 1 else 'routes'} {', '.join(routes)}," if routes else ""
        asked = "; it asks for an API key" if settings.keys else ""
        line = f"serving {', '.join(models[:20])}{remainder}{led} at {url}{asked}"
        fields = {"url": url, "models": models, "routes": routes, "keys": settings.keys is not None}
        print(json.dumps(fields) if as_json else line, flush=True)

    with starting:
        # a look through all that was loaded stops every call for a third of a second
        starting.enter_context(left_alone())
        starting.enter_context(Progress("starting the server", unit=""))
        ended = run(settings, skins, on_ready=announce)
    if not ended:
        # A thread still loads weights or hangs in a step: it takes as long as it takes, and has nothing to write.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
