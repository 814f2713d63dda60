"""Every rung's name with one line on it, cheapest first: for `--help` and a first look at a task file, without torch.

`adaptation.rungs.RUNGS` is the table of the rungs themselves, in the same order.
"""

from __future__ import annotations

RUNG_LINES: dict[str, str] = {
    "majority": "the most frequent answer: the floor",
    "from_scratch": "a classical model of the labels alone, without a base",
    "zero_shot": "the base and a prompt",
    "own_prompt": "your own prompt (adapt.prompt)",
    "few_shot": "a prompt with worked examples",
    "knn_few_shot": "examples nearest to each call (dynamic few-shot)",
    "retrieval": "a prompt with passages of your documents (RAG)",
    "prompt_search": "prompts found by a search (prompt optimisation)",
    "probe": "a linear head on the base's features (linear probing)",
    "soft_prompt": "trained vectors before the prompt (prompt tuning)",
    "lora": "low-rank weights beside the base's (LoRA)",
    "dora": "the same with magnitudes of their own (DoRA)",
    "full": "every weight trained on the task (full fine-tuning)",
    "continued_pretrain": "raw text first, then climbed again (domain adaptation)",
    "hosted": "a remote model behind an API (adapt.hosted)",
    "cascade": "unsure cases go to a more expensive skin (model cascade)",
}
