"""How much of a prompt is left for what a rung puts into it."""

from __future__ import annotations

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.task.task_prompt import TaskOutput
from bedplate.skins.output import LabelOutput
from bedplate.skins.prompt import Prompt


def prompt_limit(context: Context) -> int:
    """Tokens that a prompt may have, with its answer where that follows it: those of the budget, at most the base's
    context."""
    budget = context.spec.budget.max_prompt_tokens
    context_length = context.model.base.spec.context_length
    return context_length if budget is None else min(budget, context_length)


def room_beside(context: Context, prompt: Prompt, output: TaskOutput) -> int:
    """Prompt tokens that are left beside the longest input of valid and its answer."""
    longest = max(context.valid, key=lambda e: sum(map(len, e.texts.values())))
    tokenizer = context.model.tokenizer
    if isinstance(output, LabelOutput):
        prompt_tokens, answers = prompt.label_tokens(tokenizer, longest.inputs, (), output)
        answer = max(map(len, answers))
    else:
        prompt_tokens, answer = prompt.tokens(tokenizer, longest.inputs), output.max_tokens
    return prompt_limit(context) - len(prompt_tokens) - (0 if tokenizer.answers_apart else answer)
