"""What a skin is asked with: its inputs by name, checked."""

from __future__ import annotations

from bedplate.core.errors import RequestError
from bedplate.core.values import TaskInput, Value, Values, as_text
from bedplate.skins.skin import Skin


def inputs_of(skin: Skin, row: TaskInput) -> Values:
    """A row's inputs by name; one alone is a skin's only one. RequestError for missing, unknown or other ones."""
    names = list(skin.inputs)
    if isinstance(row, Value):
        if len(names) != 1:
            raise RequestError(
                f"skin {skin.name!r} takes the inputs {', '.join(names)}; give a mapping of them, not one text"
            )
        row = {names[0]: row}
    missing, unknown = sorted(set(names) - row.keys()), sorted(row.keys() - set(names))
    if missing or unknown:
        problem = f"lacks the input {missing[0]!r}" if missing else f"has an unknown input {unknown[0]!r}"
        raise RequestError(f"the row {problem}; skin {skin.name!r} takes: {', '.join(names)}", param="input")
    wrong = next((name for name in names if type(as_text(row[name])) is not str), None)
    if wrong is not None:
        raise RequestError(f"the input {wrong!r} is not a text but {row[wrong]!r}", param="input")
    return row
