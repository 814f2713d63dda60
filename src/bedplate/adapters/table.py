"""ADAPTERS, the table of all kinds of adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bedplate.adapters.head import HEAD_FILE
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.tensor_files import CONFIG_FILE, SOFT_PROMPT_FILE, TENSORS_FILE

if TYPE_CHECKING:
    from bedplate.adapters.linear_adapter import AdapterConfig


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
