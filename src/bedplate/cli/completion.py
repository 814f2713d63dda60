"""`bedplate completion`: Typer's script that completes verbs, options and their values in a shell."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer
import typer.core

VARIABLE = "_BEDPLATE_COMPLETE"
"""The environment variable by which the script asks for completions."""


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Your shell.")]) -> None:
    """Print a script that completes verbs, options and their values; file names are completed as always.

    \b
      bash   source <(bedplate completion bash)       in ~/.bashrc
      zsh    source <(bedplate completion zsh)        in ~/.zshrc
      fish   bedplate completion fish | source        in ~/.config/fish/config.fish
    """
    from typer.completion import get_completion_script

    print(get_completion_script(prog_name="bedplate", complete_var=VARIABLE, shell=shell))


class VerbGroup(typer.core.TyperGroup):
    """The verbs of a table as a group of commands, each imported when it is asked for. build: from a verb's function,
    its line of help and its name to its command."""

    def __init__(self, name: str, table: Mapping[str, tuple[str, str]], build: Callable[..., Any]) -> None:
        super().__init__(name=name)
        self._table, self._build = table, build

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self._table:
            return None
        name, line = self._table[cmd_name]
        module = importlib.import_module(name)
        actions = getattr(module, "ACTIONS", None)
        if actions is not None:
            return VerbGroup(cmd_name, actions, self._build)
        return self._build(getattr(module, cmd_name.replace("-", "_")), line, cmd_name)


def answer_shell(table: Mapping[str, tuple[str, str]], build: Callable[..., Any]) -> None:
    """Answers the script, as the environment asks, and exits. table, build: see `VerbGroup`."""
    from typer.completion import completion_init

    completion_init()
    VerbGroup("bedplate", table, build).main([], prog_name="bedplate", complete_var=VARIABLE)
