"""Rows against the context of each base, before time is spent."""

from __future__ import annotations

from collections.abc import Sequence

from bedplate.adaptation.context.context import Context
from bedplate.core.errors import DataError
from bedplate.skins.completion import answer_text, prompt_and_longest_answer


def check_lengths(contexts: Sequence[Context]) -> None:
    """DataError for a train or valid row that does not fit the context of the base. Where there are several bases, one
    that a row does not fit is left out, with that as the reason, unless no other remains."""
    for context in contexts:
        context.unfit = too_long(context)
    if all(context.unfit is not None for context in contexts):
        raise DataError(contexts[0].unfit or "")


def too_long(context: Context) -> str | None:
    """The first train or valid row that does not fit, as a sentence; None where all do."""
    if context.is_encoder and not context.task.output.labels:
        return f"{context.at.base_name} is an encoder, which writes no answer of kind {context.task.output.kind}"
    prompt, output = context.default_prompt()
    spec, tokenizer = context.at.facts, context.model.tokenizer
    base = context.model.base
    limit = base.spec.context_length
    for example in (*context.train, *context.valid):
        if output.answered_by == "score" and sum(map(len, example.texts.values())) < limit // 5:
            continue  # no token is shorter than a byte and no character longer than four; the prompt is short
        if context.is_encoder:
            prompt_tokens, max_answer = context.model.text_tokens(str(prompt.text(example.inputs))), 0
        else:
            prompt_tokens, max_answer = prompt_and_longest_answer(prompt, tokenizer, example.inputs, output)
            if output.answered_by == "generate":
                answer = answer_text(prompt, output, example.target)
                max_answer = max(max_answer, len(tokenizer.encode(answer, parse_special=False)) + 1)
        if len(prompt_tokens) > base.prompt_room(max_answer):
            answer_note = f" and its answer up to {max_answer:,}" if max_answer else ""
            limit_note = f"more than the context of {spec.name} holds ({limit:,})"
            if tokenizer.answers_apart:
                limit_note = f"but {spec.name} reads {limit:,} at most and writes {base.spec.main.context_length:,}"
            return (
                f"row {example.id}: its prompt has {len(prompt_tokens):,} tokens{answer_note}, {limit_note}; shorten "
                "or remove the row (nothing is cut off silently)"
            )
    return None
