"""How much of a prompt is left for what a rung puts into it."""

from __future__ import annotations

from bedplate.adaptation.context.context import Context
from bedplate.skins.completion import prompt_and_longest_answer
from bedplate.skins.output import Output
from bedplate.skins.prompt import Prompt


def prompt_limit(context: Context) -> int:
    """Tokens that a prompt may have, with its answer where that follows it: those of the budget, at most the base's
    context."""
    budget = context.spec.budget.max_prompt_tokens
    context_length = context.model.base.spec.context_length
    return context_length if budget is None else min(budget, context_length)


def room_beside(context: Context, prompt: Prompt, output: Output) -> int:
    """Prompt tokens that are left beside the longest input of valid and its answer."""
    longest = max(context.valid, key=lambda e: sum(map(len, e.texts.values())))
    tokenizer = context.model.tokenizer
    prompt_tokens, answer = prompt_and_longest_answer(prompt, tokenizer, longest.inputs, output)
    return prompt_limit(context) - len(prompt_tokens) - (0 if tokenizer.answers_apart else answer)
