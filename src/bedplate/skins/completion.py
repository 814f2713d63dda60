"""Prompts with their answers, as text and as tokens: what tuning teaches, what demonstrations show, and what scoring
and generation are then asked for."""

from __future__ import annotations

from collections.abc import Sequence

from bedplate.core.errors import ContextLengthExceeded
from bedplate.core.values import Values
from bedplate.skins.output import Output
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.text.tokenizer import Tokenizer


def answer_text(prompt: Prompt, output: Output, target: str) -> str:
    """The text that follows `prompt` when `target` is the right answer; JSON stands as its grammar writes it."""
    return output.answer_text(target, prompt.lead_in)


def prompt_and_longest_answer(
    prompt: Prompt,
    tokenizer: Tokenizer,
    inputs: Values,
    output: Output,
    demonstrations: Sequence[Demonstration] = (),
    *,
    limit: int | None = None,
) -> tuple[list[int], int]:
    """Ids of the prompt, and how many tokens its answer may have. ContextLengthExceeded for a prompt (with the labels'
    texts, where these are scored) of more than `limit`."""
    if output.label_texts:
        ids, answers = prompt.label_tokens(tokenizer, inputs, demonstrations, output, limit=limit)
        return ids, max(map(len, answers))
    return prompt.tokens(tokenizer, inputs, demonstrations, limit=limit), output.token_limit


def target_tokens(
    prompt: Prompt, tokenizer: Tokenizer, inputs: Values, output: Output, target: str, *, limit: int | None = None
) -> tuple[list[int], Sequence[int]]:
    """Ids of the prompt and of the right answer, exactly as scoring and generation meet them: the label's text, or the
    written answer with the token that ends it."""
    if output.label_texts:
        ids, answers = prompt.label_tokens(tokenizer, inputs, (), output, limit=limit)
        return ids, answers[output.all_labels.index(target)]
    return completion_tokens(prompt, tokenizer, inputs, answer_text(prompt, output, target), limit=limit)


def completion_tokens(
    prompt: Prompt,
    tokenizer: Tokenizer,
    inputs: Values,
    answer: str,
    demonstrations: Sequence[Demonstration] = (),
    *,
    limit: int | None = None,
) -> tuple[list[int], list[int]]:
    """Ids of the prompt, exactly as generation is given them, and of the answer with the token that ends it.

    plain: the answer's ids are those of the joined text where it begins with the prompt's, else the answer's own; an
    encoder–decoder's answer is a text of its own. chat: as the template writes an answer. ContextLengthExceeded for
    more than `limit` in all, TemplateError where the chat template writes the prompt differently before an answer.
    """
    rendered = prompt.text(inputs, demonstrations)
    if isinstance(rendered, str) and tokenizer.answers_apart:
        return prompt.tokens(tokenizer, inputs, demonstrations, limit=limit), tokenizer.encode_answer(answer)
    if isinstance(rendered, str):
        ids = prompt.tokens(tokenizer, inputs, demonstrations)
        start = len(tokenizer.prompt_start)
        joined = tokenizer.encode(rendered + answer, parse_special=False)
        shares_prefix = joined[: len(ids) - start] == ids[start:]
        answer_ids = joined[len(ids) - start :] if shares_prefix else tokenizer.encode(answer, parse_special=False)
        ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        answer_ids = [*answer_ids, *ends]
    else:
        whole = tokenizer.encode_conversation([*rendered, {"role": "assistant", "content": answer}])
        start, end = whole.spans[-1]
        ids, answer_ids = whole.ids[:start], whole.ids[start:end]
    if limit is not None and len(ids) + len(answer_ids) > limit:
        raise ContextLengthExceeded(
            f"the prompt has {len(ids):,} tokens and its answer {len(answer_ids):,}, more than the {limit:,} that fit; "
            "shorten the input (nothing is cut off silently)",
            param="input",
        )
    return ids, answer_ids
