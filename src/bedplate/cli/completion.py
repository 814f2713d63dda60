"""`bedplate completion`: a script that completes verbs, options and their values in a shell."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Your shell.", show_default=False)],
) -> None:
    """Print a script that completes verbs, options and their values; file names are completed as always.

    \b
      bash   source <(bedplate completion bash)       in ~/.bashrc
      zsh    source <(bedplate completion zsh)        in ~/.zshrc
      fish   bedplate completion fish | source        in ~/.config/fish/config.fish
    """
    from bedplate.cli.main import VERBS

    places = list(_places(VERBS))
    print(_fish(places) if shell == "fish" else _bash(places, zsh=shell == "zsh"))


@dataclass(frozen=True)
class _Place:
    """What may follow some words: verbs with their help, or options with theirs and, by option, its values."""

    path: tuple[str, ...]
    verbs: Mapping[str, str]
    options: Mapping[str, str]
    values: Mapping[str, tuple[str, ...]]


def _places(table: Mapping[str, tuple[str, str]], path: tuple[str, ...] = ()) -> Iterator[_Place]:
    yield _Place(path, {verb: line for verb, (_, line) in table.items()}, {"--help": "Show this text."}, {})
    for verb, (module, line) in table.items():
        command_module = importlib.import_module(module)
        actions = getattr(command_module, "ACTIONS", None)
        if actions is not None:
            yield from _places(actions, (*path, verb))
        else:
            yield _command((*path, verb), getattr(command_module, verb.replace("-", "_")), line)


def _command(path: tuple[str, ...], function: Any, line: str) -> _Place:
    from bedplate.cli.main import command_of

    options: dict[str, str] = {}
    values: dict[str, tuple[str, ...]] = {}
    words: dict[str, str] = {}
    hints = typing.get_type_hints(function)
    for parameter in command_of(function, line, path[-1]).params:
        choices = _choices(hints.get(parameter.name))
        names = [*parameter.opts, *parameter.secondary_opts]
        if getattr(parameter, "hidden", False):
            continue
        if parameter.param_type_name == "option":
            options.update(dict.fromkeys(names, (parameter.help or "").partition(". ")[0]))
            values.update(dict.fromkeys(names, choices) if choices else {})
        else:
            words.update(dict.fromkeys(choices, ""))
    return _Place(path, words, {**options, "--help": "Show this text."}, values)


def _choices(hint: Any) -> tuple[str, ...]:
    """What a parameter may be, where its type lists it; how typer holds it differs from version to version."""
    if typing.get_origin(hint) is Literal:
        return tuple(map(str, typing.get_args(hint)))
    return tuple(choice for inner in typing.get_args(hint) for choice in _choices(inner))


def _bash(places: list[_Place], *, zsh: bool) -> str:
    paths, words, values = [], [], []
    for place in places:
        path = " ".join(place.path)
        if path:
            paths.append(f'      "{path}") path="{path}" ;;')
        words.append(f'    "{path}") words="{" ".join((*place.verbs, *place.options))}" ;;')
        values += [f'    "{path} {name}") words="{" ".join(choices)}" ;;' for name, choices in place.values.items()]
    before = ["autoload -U +X bashcompinit && bashcompinit"] if zsh else []
    return "\n".join(
        [
            *before,
            "_bedplate() {",
            '  local word path="" words="" at',
            "  for ((at = 1; at < COMP_CWORD; at++)); do",
            '    word="${path:+$path }${COMP_WORDS[at]}"',
            '    case "$word" in',
            *paths,
            "    esac",
            "  done",
            '  case "$path" in',
            *words,
            "  esac",
            '  case "$path ${COMP_WORDS[COMP_CWORD-1]}" in',
            *values,
            "  esac",
            '  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))',
            "}",
            "complete -o default -F _bedplate bedplate",
        ]
    )


def _fish(places: list[_Place]) -> str:
    lines: list[str] = []
    for place in places:
        condition = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in place.path)
        first = "__fish_use_subcommand" if not place.path else condition
        exclusion = (
            ""
            if not place.path or not place.verbs
            else f"; and not __fish_seen_subcommand_from {' '.join(place.verbs)}"
        )
        for verb, line in place.verbs.items():
            lines.append(f"complete -c bedplate -f -n '{first}{exclusion}' -a {verb} -d {_quoted(line)}")
        for name, line in place.options.items():
            choices = place.values.get(name)
            value = f" -x -a '{' '.join(choices)}'" if choices else ""
            flag = "-l " + name[2:] if name.startswith("--") else "-s " + name[1:]
            lines.append(f"complete -c bedplate -n '{first}' {flag}{value} -d {_quoted(line)}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
