"""The grammars that generated answers are held to, by what a skin answers with."""

from __future__ import annotations

import json

from bedplate.inference.engine.sampling import Grammar
from bedplate.skins.output import JsonOutput, LabelsOutput, Output, TextOutput
from bedplate.text.json_form import labels_rules

ORDERED_LABELS = 90
"""A grammar of two rules for each label holds as many to their order (`grammar.RULES`); more are only held to be
labels."""


def grammar_of(output: Output) -> Grammar | None:
    """What text generated for this output is held to; None where anything goes, or where nothing is generated."""
    if isinstance(output, JsonOutput):
        return Grammar("json_schema", output.schema_text)
    if isinstance(output, LabelsOutput) and output.threshold is None:
        if len(output.labels) <= ORDERED_LABELS:
            return Grammar("ebnf", labels_rules(output.labels))
        label_schema = {"enum": list(output.labels)}
        return Grammar(
            "json_schema", json.dumps({"type": "array", "items": label_schema, "maxItems": len(output.labels)})
        )
    if isinstance(output, TextOutput) and output.choices:
        # After a prompt like "Answer:" the natural token begins with a space, which `parse` takes away.
        return Grammar("choice", json.dumps([space + choice for choice in output.choices for space in ("", " ")]))
    return None
