"""Options that several verbs have: how a skin's base is held and computed."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

JudgedWeights = Annotated[
    Literal["auto", "bfloat16", "int8", "int4"] | None,
    typer.Option(help="What products read. By default what the skin was judged with.", show_default=False),
]
JudgedKernel = Annotated[
    Literal["auto", "torch", "native"] | None,
    typer.Option(help="What computes. By default what the skin was judged with.", show_default=False),
]
AllowOtherWeights = Annotated[
    bool,
    typer.Option(
        "--allow-other-weights", help="Other weights, or another kernel, than the skin was judged with only warn."
    ),
]
