"""ADAPTERS, the table of all kinds of adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.adapters.head import HEAD_FILE
from bedplate.adapters.linear_adapter import AdapterConfig
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.peft import CONFIG_FILE, TENSORS_FILE
from bedplate.adapters.soft_prompt import SOFT_PROMPT_FILE


@dataclass(frozen=True)
class Adapter:
    """One kind. on: what it changes, the linears inside the blocks, the embedded inputs, or captured features. files:
    what a directory keeps it in. config: of those on linears, as it is by default; a bank takes it."""

    on: Literal["linears", "inputs", "features"]
    files: tuple[str, ...]
    config: AdapterConfig | None = None


ADAPTERS: dict[str, Adapter] = {
    "lora": Adapter("linears", (CONFIG_FILE, TENSORS_FILE), LoraConfig()),
    "dora": Adapter("linears", (CONFIG_FILE, TENSORS_FILE), LoraConfig(dora=True)),
    "soft_prompt": Adapter("inputs", (SOFT_PROMPT_FILE,)),
    "head": Adapter("features", (HEAD_FILE,)),
}
