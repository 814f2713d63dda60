"""Skins: which there are, what one consists of and came from, whether it is whole and fits a base; and one written out
for other programs."""

from __future__ import annotations

# As VERBS in cli/main.py: verb: (module with a function of that name, one line of help).
ACTIONS: dict[str, tuple[str, str]] = {
    "list": ("bedplate.cli.skins.list", "The catalogue's skins, after recording what lies in given directories."),
    "show": ("bedplate.cli.skins.show", "What a skin consists of, and what the catalogue knows of its lineage."),
    "trace": ("bedplate.cli.skins.trace", "What a skin came from and what came from it, from data to report and back."),
    "reproduce": ("bedplate.cli.skins.reproduce", "Make a skin again from what it recorded, and compare."),
    "compare": ("bedplate.cli.skins.compare", "Two skins on the same fresh rows: quality, time and price."),
    "verify": ("bedplate.cli.skins.verify", "Whether every file is as it was written, and fits a base."),
    "export": ("bedplate.cli.skins.export", "Write a skin out for peft and other programs."),
    "merge": ("bedplate.cli.skins.merge", "Add LoRA weights to the base's, for transformers."),
}
