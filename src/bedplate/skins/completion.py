"""The answer that should follow a prompt, as text and as tokens, where the model writes it: what tuning teaches, what
demonstrations show, and what generation is then asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeAlias

from bedplate.core.errors import ContextLengthExceeded
from bedplate.core.values import Values
from bedplate.skins.output import JsonOutput, LabelsOutput, TextOutput
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.text.json_form import schema_form
from bedplate.text.tokenizer import Tokenizer

GeneratedOutput: TypeAlias = TextOutput | JsonOutput | LabelsOutput


def answer_text(prompt: Prompt, output: GeneratedOutput, target: str) -> str:
    """The text that follows `prompt` when `target` is the right answer.

    JSON stands as its grammar writes it. Text comes bare in a chat, after a space where a plain prompt ends in a word
    or a colon, and untouched where the prompt ends in white space or in the input itself, which it continues.
    """
    if isinstance(output, JsonOutput):
        return schema_form(output.json_schema, json.loads(target))
    if isinstance(output, LabelsOutput):
        return target
    if prompt.format == "chat":
        return target.strip()
    return target if prompt.template.endswith(("}", *" \t\n")) else f" {target.strip()}"


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
