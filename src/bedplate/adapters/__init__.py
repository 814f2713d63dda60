"""Small trained parts that change a frozen base: low-rank updates, heads and soft prompts, and their files.

`ADAPTERS` names, for each kind, the class that describes it, as "module:class" (so that naming them loads no torch).
"""

ADAPTERS: dict[str, str] = {
    "lora": "bedplate.adapters.lora:LoraConfig",
    "dora": "bedplate.adapters.dora:Magnitude",
    "head": "bedplate.adapters.head:Head",
    "soft_prompt": "bedplate.adapters.soft_prompt:SoftPrompt",
}
