"""Default prompts: a few ways to say the same task, to be chosen between on valid.

Plain completion in the style of a filled-in form works best on small bases (zero-shot, SmolLM2-135M on review
sentiment: 0.78 against 0.53 to 0.57 through the chat template), so it is the default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from bedplate.core.errors import UsageError
from bedplate.skins.prompt import RESERVED_VARIABLES, Format, Prompt
from bedplate.text.json_schema import Schema, schema_fields, type_words

# name → (does it open with the instructions?, the line that asks for the answer: {cue} is made from the task's name,
# {instructions} is the task's own sentence)
PHRASINGS: dict[str, tuple[bool, str]] = {
    "form": (True, "{cue}:"),
    "answer": (True, "Answer:"),
    "bare": (False, "{cue}:"),
    "question": (False, "Question: {instructions}\nAnswer:"),
}
BELOW = "below"
"""The phrasing of a text task whose answer begins on the line below the cue, as some bases break it first."""

CONTINUATION = "continuation"
"""The phrasing that is nothing but the one input of a text task: the answer is how it goes on."""


def default_prompt(
    task_name: str,
    instructions: str,
    inputs: Sequence[str],
    labels: Sequence[str],
    format: Format = "plain",
    phrasing: str = "form",
) -> Prompt:
    """A prompt for a label task, with a place for demonstrations.

    plain: instructions, then each input on a line under its name, then the cue that the label completes. chat: the
    same body as the user's message, with the labels spelled out; `phrasing` does not matter there.
    Pair it with `default_continuations`. Raises UsageError for an unknown phrasing.
    """
    if phrasing not in PHRASINGS:
        raise UsageError(f"there is no phrasing {phrasing!r}; there are: {', '.join(PHRASINGS)}")
    instruction_text = _literal(instructions.strip())
    if format == "chat":
        choice = _literal(", ".join(labels))
        return Prompt(f"{instruction_text}\nAnswer with one of: {choice}.\n\n{_form(inputs, None)}", "chat")
    opens, cue_template = PHRASINGS[phrasing]
    cue = cue_template.replace("{cue}", _literal(_cue(task_name))).replace("{instructions}", instruction_text)

    def form(owner: str | None) -> str:
        return f"{_form(inputs, owner)}\n{cue}"

    opening = f"{instruction_text}\n\n" if opens and instruction_text else ""
    loop = f"{{% for shown in demonstrations %}}\n{form('shown')}{{{{ shown.answer }}}}\n\n{{% endfor %}}\n"
    return Prompt(f"{opening}{loop}{form(None)}", "plain")


def generation_prompt(
    task_name: str,
    instructions: str,
    inputs: Sequence[str],
    schema: Schema | None = None,
    format: Format = "plain",
    phrasing: str = "form",
) -> Prompt:
    """A prompt for a task whose answer is written by the model: text, or JSON of `schema`.

    As `default_prompt`; where instructions open it, a schema's fields are named under them, and JSON begins on a line
    of its own. Raises UsageError for an unknown phrasing, or CONTINUATION of several inputs.
    """
    if phrasing == CONTINUATION and len(inputs) == 1 and schema is None and format == "plain":
        shown = f"{_field(inputs[0], 'shown')}{{{{ shown.answer }}}}"
        return Prompt(f"{{% for shown in demonstrations %}}{shown}\n\n{{% endfor %}}{_field(inputs[0], None)}")
    if phrasing not in (*PHRASINGS, BELOW):
        names = ", ".join((*PHRASINGS, BELOW, CONTINUATION))
        about = f"there are: {names} (of one input, continued as text)"
        raise UsageError(f"there is no phrasing {phrasing!r} for this task; {about}")
    asked = [instructions.strip(), "" if schema is None else _fields_line(schema)]
    instruction_text = _literal("\n".join(filter(None, asked)))
    if format == "chat":
        return Prompt("\n\n".join(filter(None, [instruction_text, _form(inputs, None)])), "chat")
    opens, cue_template = PHRASINGS["form" if phrasing == BELOW else phrasing]
    cue = cue_template.replace("{cue}", "JSON" if schema is not None else _literal(_cue(task_name)))
    cue = cue.replace("{instructions}", _literal(instructions.strip()))
    if schema is not None or phrasing == BELOW:
        cue += '{{ "\\n" }}'  # written so, because a template's last line break is dropped
    opening = f"{instruction_text}\n\n" if opens and instruction_text else ""
    shown = f"{_form(inputs, 'shown')}\n{cue}{{{{ shown.answer }}}}"
    return Prompt(f"{opening}{{% for shown in demonstrations %}}{shown}\n\n{{% endfor %}}{_form(inputs, None)}\n{cue}")


def _fields_line(schema: Schema) -> str:
    """`Answer as JSON with the fields: unit (string: what is counted), number (number).`"""
    fields = schema_fields(schema)
    if not fields:
        return f"Answer as JSON: {type_words(schema, schema)}."
    named = [f"{name} ({types}{f': {about}' if about else ''})" for name, types, about in fields]
    return f"Answer as JSON with the field{'s' if len(named) > 1 else ''}: {', '.join(named)}."


def _form(inputs: Sequence[str], owner: str | None) -> str:
    return "\n".join(f"{_title(name)}: {_field(name, owner)}" for name in inputs)


def text_prompt(inputs: Sequence[str]) -> Prompt:
    """The inputs and nothing else, for a base that reads and does not write; several each under its name."""
    return Prompt(_field(inputs[0], None) if len(inputs) == 1 else _form(inputs, None))


def values_prompt(inputs: Sequence[str]) -> Prompt:
    """The inputs as they are, each on a line, for what counts their words: as `neighbours.text_of` writes them."""
    return Prompt("\n".join(_field(name, None) for name in inputs))


def default_continuations(labels: Sequence[str], format: Format = "plain") -> tuple[str, ...]:
    """The text scored for each label: after a plain cue with the space that belongs to the word, bare in a chat."""
    return tuple(f" {label}" if format == "plain" else label for label in labels)


def _title(name: str) -> str:
    """`customer_review` → `Customer review`, as template text."""
    words = re.sub(r"[_\-\s]+", " ", name).strip()
    return _literal(words[:1].upper() + words[1:])


def _cue(task_name: str) -> str:
    """The last word of the task's name: `reviews-sentiment` → `Sentiment`."""
    words = re.findall(r"[^\W\d_]+", task_name)
    return words[-1].capitalize() if words else "Answer"


def _field(name: str, owner: str | None) -> str:
    reserved = RESERVED_VARIABLES | {"shown"} | _KEYWORDS
    if owner is None and name.isascii() and name.isidentifier() and name not in reserved:
        return f"{{{{ {name} }}}}"
    place = "inputs" if owner is None else f"{owner}.inputs"
    return f"{{{{ {place}[{json.dumps(name, ensure_ascii=False)}] }}}}"


def _literal(text: str) -> str:
    """Text as a template that renders to it."""
    if re.search(r"\{[{%#]|[{%#]\}", text) is None:
        return text
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"


# names that mean something else in a template
# fmt: off
_KEYWORDS = frozenset((
    "and", "else", "if", "elif", "in", "is", "not", "or", "true", "false", "none", "True", "False", "None", "for",
    "loop", "self", "super", "caller", "varargs", "kwargs", "block", "extends", "macro", "set", "range", "dict",
    "cycler", "joiner", "namespace", "raise_exception", "strftime_now",
))
# fmt: on
