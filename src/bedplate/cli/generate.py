"""`bedplate generate`: a base continues a text, or answers a message, printed token by token."""

from __future__ import annotations

import json
import sys
from typing import Annotated, cast

import typer

from bedplate.cli.options import BaseSource, Dtype, Kernel, Weights, whole
from bedplate.core.errors import UsageError
from bedplate.core.libraries import complete_torch, leave_parts
from bedplate.core.memory import left_alone


def generate(
    base: BaseSource,
    prompt: Annotated[str, typer.Argument(help="The text; - reads it from stdin.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Use the chat template; otherwise the text is continued.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="A system message (with --chat).")] = None,
    max_tokens: Annotated[int, whole(help="Most tokens to generate.", shown=True)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy decoding.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens with this total probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens less likely than this fraction of the likeliest.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text. Repeatable.")] = None,
    dtype: Dtype = "auto",
    weights: Weights = "auto",
    kernel: Kernel = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Continue a text, or answer a message with --chat, printing tokens as they come."""
    if system is not None and not chat:
        raise UsageError("--system needs --chat: a text to be continued has no system message")
    text = _read_stdin() if prompt == "-" else prompt
    with left_alone():
        leave_parts()
        from bedplate.inference.engine.requests import Generate, Generation, Sampling
        from bedplate.inference.execution.threads import use_cores
        from bedplate.inference.predict.opening import OpenOptions, open_base
        from bedplate.models.precision import resolve_device

        target = resolve_device(device)
        if target.type != "cpu":
            complete_torch()
        use_cores()
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            stop=tuple(stop or ()),
        )
        opened = open_base(base, OpenOptions(dtype, weights, kernel, at_once=True), target)
    with opened.model() as model:
        if chat:
            messages = [{"role": "user", "content": text}]
            if system is not None:
                messages.insert(0, {"role": "system", "content": system})
            tokens = model.tokenizer.encode_chat(messages)
        else:
            tokens = model.tokenizer.encode_prompt(text)
        stream = model.engine.submit(Generate(tuple(tokens), sampling))
        for step in stream:
            if not as_json:
                print(step.text, end="", flush=True)
        result = cast(Generation, stream.result())
    if as_json:
        fields = {
            "text": result.text,
            "finish_reason": result.finish_reason,
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "weights": model.engine.weights,
            "kernel": model.engine.kernel,
        }
        print(json.dumps(fields), flush=True)
    else:
        print(flush=True)
    opened.time_plans()


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 at byte {error.start}") from error
