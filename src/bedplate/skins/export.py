"""A skin's parts for other programs: its weights in PEFT's layout, its head as ONNX and numpy arrays, and what is asked
as one JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bedplate.adapters.soft_prompt import prompt_peft_files
from bedplate.adapters.table import ADAPTERS
from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_directory
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.export_head import head_fields, head_files
from bedplate.skins.files import skin_files
from bedplate.skins.skin import Skin
from bedplate.skins.verify import verify_skin

PROMPT_JSON = "prompt.json"


def export_skin(skin: Skin, out: Path, *, base: str | Path | None = None, replace: bool = False) -> list[str]:
    """Writes the new directory `out`, and returns the names of its files.

    Every kind gives `prompt.json`; LoRA weights and soft prompts also the files that peft loads; probes and classical
    models those of `head_files`. base: where the skin's base is, when not where it was made; only a soft prompt needs
    it, because peft wants to know its heads and layers. UsageError for a cascade, for a skin that looks something up in
    each call, for LoRA weights with a soft prompt, where the package onnx is needed and missing, and where `out` holds
    something that it is not to `replace`.
    """
    if skin.cascade is not None:
        raise UsageError(
            f"skin {skin.name!r} is a cascade: export its two skins, the directories first and second in it"
        )
    if skin.index is not None:
        retrieved = "demonstrations" if skin.passages is None else "passages"
        raise UsageError(
            f"skin {skin.name!r} chooses its {retrieved} for each call, for which other programs have no form; "
            "its index/ holds their vectors and texts"
        )
    if skin.lora is not None and skin.soft_prompt is not None:
        raise UsageError(
            f"skin {skin.name!r} has LoRA weights and a soft prompt, and peft reads one of them from a directory: merge"
            " the weights with `bedplate skins merge`, and take the vectors from soft_prompt.safetensors"
        )
    files = {PROMPT_JSON: (json.dumps(prompt_fields(skin), indent=2, ensure_ascii=False) + "\n").encode()}
    if skin.lora is not None:
        contents = skin_files(skin)
        files |= {name: contents[name] for name in ADAPTERS["lora"].files}
    if skin.soft_prompt is not None:
        loaded = load_base(base or skin.base.name, device="cpu")
        verify_skin(skin, loaded, allow_other_weights=True)
        files |= prompt_peft_files(skin.soft_prompt, loaded.spec, base_name=skin.base.name)
    if skin.head is not None:
        files |= head_files(skin)
    with atomic_directory(out, replace) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)
    return sorted(files)


def prompt_fields(skin: Skin) -> dict[str, Any]:
    """What is asked of the base, as JSON. `template` is jinja over the inputs; a chat has also its `messages`, the last
    of which is the template that the caller fills in."""
    prompt = skin.prompt
    fields: dict[str, Any] = {
        "name": skin.name,
        "kind": skin.kind,
        "base": skin.bases["main"].name if "main" in skin.bases else None,
        "inputs": list(skin.inputs),
        "format": prompt.format,
        "system": prompt.system,
        "template": prompt.template,
        "demonstrations": [
            {"inputs": dict(example.inputs), "answer": example.answer} for example in skin.demonstrations
        ],
        "output": skin.output.model_dump(mode="json"),
        "generation": dict(skin.generation),
    }
    if skin.head is not None:
        fields["head"] = head_fields(skin)
    if prompt.format == "chat":
        before = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
        for demonstration in skin.demonstrations:
            # The last message of a demonstration's own conversation is its input as the template writes it.
            user_message = prompt.text(demonstration.inputs)[-1]
            before += [user_message, {"role": "assistant", "content": demonstration.answer}]
        fields["messages"] = [*before, {"role": "user", "content": prompt.template}]
    return fields
