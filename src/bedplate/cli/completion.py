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
        found = importlib.import_module(module)
        actions = getattr(found, "ACTIONS", None)
        if actions is not None:
            yield from _places(actions, (*path, verb))
        else:
            yield _command((*path, verb), getattr(found, verb.replace("-", "_")), line)


def _command(path: tuple[str, ...], function: Any, line: str) -> _Place:
    from bedplate.cli.main import command_of

    options: dict[str, str] = {}
    values: dict[str, tuple[str, ...]] = {}
    words: dict[str, str] = {}
    hints = typing.get_type_hints(function)
    for one in command_of(function, line, path[-1]).params:
        choices = _choices(hints.get(one.name))
        names = [*one.opts, *one.secondary_opts]
        if getattr(one, "hidden", False):
            continue
        if one.param_type_name == "option":
            options.update(dict.fromkeys(names, (one.help or "").partition(". ")[0]))
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
    for one in places:
        path = " ".join(one.path)
        if path:
            paths.append(f'      "{path}") path="{path}" ;;')
        words.append(f'    "{path}") words="{" ".join((*one.verbs, *one.options))}" ;;')
        values += [f'    "{path} {name}") words="{" ".join(known)}" ;;' for name, known in one.values.items()]
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
    for one in places:
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in one.path)
        first = "__fish_use_subcommand" if not one.path else seen
        others = "" if not one.path or not one.verbs else f"; and not __fish_seen_subcommand_from {' '.join(one.verbs)}"
        for verb, line in one.verbs.items():
            lines.append(f"complete -c bedplate -f -n '{first}{others}' -a {verb} -d {_quoted(line)}")
        for name, line in one.options.items():
            known = one.values.get(name)
            value = f" -x -a '{' '.join(known)}'" if known else ""
            what = "-l " + name[2:] if name.startswith("--") else "-s " + name[1:]
            lines.append(f"complete -c bedplate -n '{first}' {what}{value} -d {_quoted(line)}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
