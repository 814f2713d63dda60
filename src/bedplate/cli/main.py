"""The `bedplate` command: finds the verb's module, and turns every error into one line and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bedplate.core.errors import BedplateError, UsageError, is_interrupt, need_failure
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.core.version import __version__

# verb: (module, one line of help). One row per verb. The module has a typer command function of the verb's name, or a
# table ACTIONS of such rows for the verb's own verbs (`bedplate plan train`).
VERBS: dict[str, tuple[str, str]] = {
    "adapt": ("bedplate.cli.adapt", "Find the cheapest adaptation of a base that provably meets the bar (threshold)."),
    "chat": ("bedplate.cli.chat", "Talk with a base, a skin or a running server on the terminal."),
    "completion": ("bedplate.cli.completion", "Print a script that completes verbs and options in your shell."),
    "convert": ("bedplate.cli.export", "Convert a checkpoint to another layout, checked by reading it back."),
    "data": ("bedplate.cli.data", "Build a corpus to pretrain on; what each rule kept, and the fate of a document."),
    "doctor": ("bedplate.cli.doctor", "What this machine can do with a base: its roofs, execution plans, the choice."),
    "evaluate": ("bedplate.cli.evaluate", "Score a skin on a split of a task or on new rows, or a base on suites."),
    "export": ("bedplate.cli.export", "Write a base out for transformers (a directory) or llama.cpp (a GGUF file)."),
    "families": ("bedplate.cli.families", "The published families of models that are supported, and their proof."),
    "feedback": ("bedplate.cli.feedback", "List, export or purge what a server kept of replies and what users said."),
    "generate": ("bedplate.cli.generate", "Let a base continue a text or answer a message."),
    "init": ("bedplate.cli.init", "Look at a file of rows and write a task file for it."),
    "keys": ("bedplate.cli.keys", "The API keys of a server: create, list, revoke, rotate."),
    "plan": ("bedplate.cli.plan", "What it costs: to train, to serve, and whether to prompt, tune, buy or build."),
    "predict": ("bedplate.cli.predict", "Answer every row of a file with a skin; resumes where it stopped."),
    "pretrain": ("bedplate.cli.pretrain", "Train a base from texts or a corpus; resumes where it stopped."),
    "pull": ("bedplate.cli.pull", "Fetch a base, an encoder or data: catalogue name, hf:owner/name, or a path."),
    "serve": ("bedplate.cli.serve", "Serve a base and its skins behind an OpenAI-compatible API."),
    "skins": ("bedplate.cli.skins", "List, trace, reproduce, compare, verify skins; write one out for peft."),
}

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_SPIN_COUNT = 2000
"""Rounds, some microseconds, for which torch's threads spin before they sleep (libgomp: 300,000, some milliseconds).
Threads that spin take the cores from those they wait for where others compute as well (LOG.md, 2026-12-01)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_COUNT))  # read when torch loads
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            need_failure(error)
        if os.environ.get("BEDPLATE_TRACEBACK", "") not in {"", "0"}:
            traceback.print_exc()
        if is_interrupt(error):
            goes_on = _goes_on(arguments)
            message = "interrupted" if goes_on is None else f"interrupted; {goes_on}"
            code = _fail(message, "interrupted", _INTERRUPTED, arguments)
        elif isinstance(error, BedplateError):
            code = _fail(error.message, error.code, error.exit_code, arguments)
        else:
            message = f"unexpected {type(error).__name__}: {error} (BEDPLATE_TRACEBACK=1 shows where)"
            code = _fail(message, "internal_error", 1, arguments)
    sys.exit(code)


def _goes_on(arguments: Sequence[str]) -> str | None:
    """How an interrupted command goes on, where the same command does: GOES_ON of its module."""
    table, goes_on = VERBS, None
    for argument in arguments[:2]:  # a verb of a group stands in the group's own table
        module = sys.modules.get(table.get(argument, ("", ""))[0])
        table, goes_on = getattr(module, "ACTIONS", {}), getattr(module, "GOES_ON", goes_on)
    return goes_on


def _run(arguments: list[str]) -> int:
    if "_BEDPLATE_COMPLETE" in os.environ:  # a shell asks what may follow the words so far
        from bedplate.cli.completion import answer_shell

        answer_shell(VERBS, command_of)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"bedplate {__version__}")
        return 0
    return _run_verb(VERBS, arguments, "bedplate")


def _run_verb(table: Mapping[str, tuple[str, str]], arguments: list[str], program: str) -> int:
    """Run the verb that `arguments` begin with; `program` is what stands before it on the command line."""
    verb = arguments[0]
    if verb not in table:
        noun = "option" if verb.startswith("-") else "verb"
        hint = did_you_mean(nearest(verb, table)) or f"the verbs are {', '.join(table)}"
        raise UsageError(f"there is no {noun} {verb!r}; {hint} (`{program} --help`)")
    name, line = table[verb]
    module = importlib.import_module(name)
    actions: Mapping[str, tuple[str, str]] | None = getattr(module, "ACTIONS", None)
    if actions is not None:
        return _run_group(f"{program} {verb}", module.__doc__ or line, actions, arguments[1:])
    return _run_command(getattr(module, verb.replace("-", "_")), line, f"{program} {verb}", arguments[1:])


def _run_group(program: str, about: str, actions: Mapping[str, tuple[str, str]], arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(
            f"Usage: {program} VERB [OPTIONS] …\n\n{about.strip()}\n\n"
            f"Verbs (`{program} VERB --help` says more):\n{_rows(actions)}"
        )
        return 0 if arguments else 2
    return _run_verb(actions, arguments, program)


def _run_command(function: Callable[..., object], line: str, program: str, arguments: list[str]) -> int:
    import typer

    # typer keeps its own copy of click from some version on, so its usage errors are named through what typer exports
    usage_error: Any = typer.BadParameter.__mro__[1]
    try:
        command = command_of(function, line, program.rpartition(" ")[2])
        result = command.main(arguments, prog_name=program, standalone_mode=False)
    except usage_error as error:
        message = error.format_message().replace("Value error, ", "")  # pydantic's words, which newer typers pass on
        raise UsageError(f"{message} (`{program} --help`)") from error
    except typer.Abort:
        raise KeyboardInterrupt from None
    if result == _INTERRUPTED:  # newer versions of typer answer Ctrl-C with this code, older ones with Abort
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def command_of(function: Callable[..., object], line: str, name: str) -> Any:
    """A verb's function as a click command; `line` is its help where it has no docstring."""
    import typer
    import typer.main

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name=name, help=function.__doc__ or line)(function)
    return typer.main.get_command(app)


def _rows(table: Mapping[str, tuple[str, str]]) -> str:
    width = max(map(len, table))
    return "\n".join(f"  {verb:<{width}}  {line}" for verb, (_, line) in table.items())


def _help() -> str:
    from importlib.resources import files

    return (files("bedplate.cli") / "main.txt").read_text("utf-8").format(verbs=_rows(VERBS))


def _fail(message: str, code: str, exit_code: int, arguments: Sequence[str]) -> int:
    """One `error: …` on stderr; under --json the error object on stdout too."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    if "--json" in arguments:
        print(json.dumps({"error": {"message": message, "code": code}}), flush=True)
    return exit_code


if __name__ == "__main__":
    main()
