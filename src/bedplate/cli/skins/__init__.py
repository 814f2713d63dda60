"""Skins: which there are, what one consists of and came from, whether it is whole and fits a base; and one written out
for other programs."""

from __future__ import annotations

_LINES = {
    "list": "The catalogue's skins, after recording what lies in given directories.",
    "show": "What a skin consists of, and what the catalogue knows of its lineage.",
    "trace": "What a skin came from and what came from it, from data to report and back.",
    "reproduce": "Make a skin again from what it recorded, and compare.",
    "compare": "Two skins on the same fresh rows: quality, time and price.",
    "verify": "Whether every file is as it was written, and fits a base.",
    "export": "Write a skin out for peft and other programs.",
    "merge": "Add LoRA weights to the base's, for transformers.",
}
# As VERBS in cli/main.py: verb: (module with a function of that name, one line of help).
ACTIONS = {verb: ("bedplate.cli.skins.artefacts", line) for verb, line in _LINES.items()}
