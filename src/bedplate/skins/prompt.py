"""From inputs to tokens: one template, as plain completion or as a conversation, with demonstrations.

The prompt that is trained on, evaluated, priced and served is made here and nowhere else. What users wrote never
becomes a control token, and nothing is cut: an input that does not fit raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jinja2
import jinja2.meta

from bedplate.core.errors import ContextLengthExceeded, SkinError, TemplateError
from bedplate.core.values import Values
from bedplate.data.rows import text_in_prompt
from bedplate.skins.output import Output
from bedplate.text import sandbox
from bedplate.text.tokenizer import Tokenizer

Format = Literal["plain", "chat"]
Messages = list[dict[str, str]]

TEMPLATE_BYTES = 256 * 1024
RENDER_SECONDS = 5.0
RESERVED_VARIABLES = frozenset(("inputs", "demonstrations", "passages"))
# Two inputs differ in their first character whatever they are: the common prefix of these prompts is constant.
_PROBES = ("a", "7", " The", "\n", "中", "<", "…", "zebra zebra", "")


@dataclass(frozen=True)
class Demonstration:
    """A worked example. answer: exactly the text that follows the prompt. RequestError for inputs that are no texts."""

    inputs: Values
    answer: str

    def __post_init__(self) -> None:
        _texts(self.inputs)


@dataclass(frozen=True)
class Passage:
    """A piece of a document in a prompt, by its number from 1. start: of its first character in the document."""

    number: int
    text: str
    document: str = ""
    start: int = 0


@dataclass(frozen=True)
class Prompt:
    """A jinja template over the input fields, each by its name (`{{ review }}`) and all as `inputs`.

    plain: the rendered text is completed; the template places `demonstrations` itself (a list of objects with `inputs`
    and `answer`). chat: the rendered text is the user's message, each demonstration an earlier exchange, `system` the
    first message. In either the template may place `passages` (a list of objects with `number`, `text` and `document`).
    Raises TemplateError for a template that does not parse.
    """

    template: str
    format: Format = "plain"
    system: str | None = None

    def __post_init__(self) -> None:
        _compiled(self.template)
        if self.system is not None and self.format == "plain":
            raise TemplateError("a plain prompt has no system message; write it into the template")

    @property
    def variables(self) -> frozenset[str]:
        return _compiled(self.template)[1]

    def check(self, fields: Sequence[str], demonstrations: Sequence[Demonstration] = ()) -> None:
        """Raise SkinError when the template reads something that is no input field, or ignores demonstrations."""
        unknown = sorted(self.variables - set(fields) - RESERVED_VARIABLES)
        if unknown:
            message = f"the prompt template reads {unknown[0]!r}, which is not an input"
            raise SkinError(f"{message}; the inputs are: {', '.join(fields)}")
        if not self.variables & {*fields, "inputs"}:
            raise SkinError(f"the prompt template reads none of the inputs ({', '.join(fields)})")
        if demonstrations and self.format == "plain" and "demonstrations" not in self.variables:
            raise SkinError("the plain prompt template has no place for demonstrations: add a loop over them")

    def check_continuations(self, continuations: Sequence[str]) -> None:
        """Raise TemplateError where the text of a label would stand two spaces after a plain prompt."""
        if self.format == "plain" and self.template.endswith(" ") and any(c.startswith(" ") for c in continuations):
            raise TemplateError(
                "the prompt template ends with a space and a label's text begins with one; two spaces change every "
                "score: remove the one at the template's end"
            )

    def text(
        self, inputs: Values, demonstrations: Sequence[Demonstration] = (), passages: Sequence[Passage] = ()
    ) -> str | list[dict[str, str]]:
        """The prompt of one input: a text (plain), or messages (chat). Raises SkinError, TemplateError."""
        if self.format == "plain":
            self.check(list(inputs), demonstrations)
            return self._render(inputs, demonstrations, passages)
        self.check(list(inputs))
        messages: Messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for shown in demonstrations:
            messages.append({"role": "user", "content": self._render(shown.inputs)})
            messages.append({"role": "assistant", "content": shown.answer})
        messages.append({"role": "user", "content": self._render(inputs, (), passages)})
        return messages

    def lead_in(self, text: str) -> str:
        """The text as it follows the prompt: bare in a chat, after a space where a plain prompt ends in a word or a
        colon, and untouched where the prompt ends in white space or in the input itself, which it continues."""
        if self.format == "chat":
            return text.strip()
        return text if self.template.endswith(("}", *" \t\n")) else f" {text.strip()}"

    def tokens(
        self,
        tokenizer: Tokenizer,
        inputs: Values,
        demonstrations: Sequence[Demonstration] = (),
        passages: Sequence[Passage] = (),
        *,
        limit: int | None = None,
    ) -> list[int]:
        """Token ids of the prompt of one input. ContextLengthExceeded when there are more than `limit`."""
        rendered = self.text(inputs, demonstrations, passages)
        ids = self._encode(tokenizer, rendered)
        return _check_limit(ids, 0, limit)

    def label_tokens(
        self,
        tokenizer: Tokenizer,
        inputs: Values,
        demonstrations: Sequence[Demonstration],
        output: Output,
        passages: Sequence[Passage] = (),
        *,
        limit: int | None = None,
    ) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
        """Prompt ids, and the ids of each label's continuation, tokenised jointly with the prompt.

        Prompt ids followed by a continuation's are exactly the ids of the joined text. Where the two would merge at a
        white space, that space is moved into the continuations. For an encoder–decoder each continuation is a text of
        its own, with the token that ends it. ContextLengthExceeded when the prompt with the longest
        continuation has more than `limit` tokens.
        """
        rendered = self.text(inputs, demonstrations, passages)
        if not output.label_texts:
            raise SkinError("this output names no text to score for its labels; give it continuations")
        if isinstance(rendered, str):
            if tokenizer.answers_apart:
                prompt = self._encode(tokenizer, rendered)
                answers = tuple(tuple(tokenizer.encode_answer(c)) for c in output.label_texts)
                return _check_limit(prompt, 0, limit), answers
            self.check_continuations(output.label_texts)
            prompt, answers = _split_plain(lambda t: self._encode(tokenizer, t), rendered, output.label_texts)
        else:
            prompt, answers = _split_chat(tokenizer, rendered, output.label_texts)
        return _check_limit(prompt, max(map(len, answers)), limit), answers

    def constant_prefix(
        self,
        tokenizer: Tokenizer,
        demonstrations: Sequence[Demonstration] = (),
        fields: Sequence[str] | None = None,
        passages: Sequence[Passage] = (),
    ) -> list[int]:
        """The token ids with which the prompts of all inputs begin, less one for safety; [] where there is none.

        `fields`: the input names, when the template does not name each of them.
        """
        names = sorted(self.variables - RESERVED_VARIABLES) if fields is None else list(fields)
        names = names or sorted({name for shown in demonstrations for name in shown.inputs})
        prompts = [self.tokens(tokenizer, dict.fromkeys(names, probe), demonstrations, passages) for probe in _PROBES]
        return tokenizer.common_start(prompts)

    def _render(
        self, inputs: Values, demonstrations: Sequence[Demonstration] = (), passages: Sequence[Passage] = ()
    ) -> str:
        shown = [{"inputs": _texts(d.inputs), "answer": d.answer} for d in demonstrations]
        texts = _texts(inputs)
        passage_fields = [{"number": p.number, "text": p.text, "document": p.document} for p in passages]
        variables = {"passages": passage_fields, **texts, "inputs": texts, "demonstrations": shown}
        # in a context of its own, so that one rendering's budget is not another's
        return copy_context().run(_render, self.template, variables)

    def _encode(self, tokenizer: Tokenizer, prompt: str | list[dict[str, str]]) -> list[int]:
        if not isinstance(prompt, str):
            return tokenizer.encode_chat(prompt)
        _refuse_control_tokens(tokenizer, self.template)
        return tokenizer.encode_prompt(prompt, parse_special=False)


def _texts(inputs: Values) -> dict[str, str]:
    """RequestError for media."""
    return {name: text_in_prompt(value) for name, value in inputs.items()}


def _split_plain(
    encode: Callable[[str], list[int]], text: str, continuations: Sequence[str]
) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
    """Prompt ids and continuation ids of a plain text. TemplateError when no boundary between them keeps the ids."""
    bare = text.rstrip()
    for prompt_text in dict.fromkeys((text, bare)):
        prompt = encode(prompt_text)
        joined = [encode(text + continuation) for continuation in continuations]
        if all(ids[: len(prompt)] == prompt and len(ids) > len(prompt) for ids in joined):
            return prompt, tuple(tuple(ids[len(prompt) :]) for ids in joined)
    raise TemplateError(
        f"the prompt's end {text[-20:]!r} merges with a label's text ({', '.join(map(repr, continuations))}) into "
        "other tokens; end the prompt with a colon or a line break and begin the labels' texts with a space"
    )


def _split_chat(
    tokenizer: Tokenizer, messages: Messages, continuations: Sequence[str]
) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
    """Prompt ids and the ids of each answer, without the end token that the template sets behind it."""
    prompt = tokenizer.encode_chat(messages)
    answers: list[tuple[int, ...]] = []
    for continuation in continuations:
        answered = [*messages, {"role": "assistant", "content": continuation}]
        ids = tokenizer.encode_chat(answered, add_generation_prompt=False)
        if ids[: len(prompt)] != prompt:
            raise TemplateError(
                f"under this chat template the answer {continuation!r} merges with the prompt before it, so it cannot "
                "be scored as it would be generated; use the plain format, or an answer without white space around it"
            )
        answer = ids[len(prompt) :]
        end = next((i for i, index in enumerate(answer) if index in tokenizer.special_ids), len(answer))
        if end == 0:
            raise TemplateError(f"the chat template writes nothing for the answer {continuation!r}")
        answers.append(tuple(answer[:end]))
    return prompt, tuple(answers)


def _check_limit(ids: list[int], answer_tokens: int, limit: int | None) -> list[int]:
    if limit is not None and len(ids) + answer_tokens > limit:
        asked = f"{len(ids):,} tokens{f' and its answer up to {answer_tokens:,}' if answer_tokens else ''}"
        message = f"the prompt has {asked}, more than the {limit:,} that fit; shorten the input or show fewer examples"
        raise ContextLengthExceeded(f"{message} (nothing is cut off silently)", param="input")
    return ids


@lru_cache(maxsize=256)
def _refuse_control_tokens(tokenizer: Tokenizer, template: str) -> None:
    """A plain prompt is encoded as user text: control tokens written into it would silently become mere characters."""
    parsed, plain = tokenizer.encode(template), tokenizer.encode(template, parse_special=False)
    control_ids, plain_ids = ([i for i in ids if i in tokenizer.special_ids] for ids in (parsed, plain))
    if control_ids and control_ids != plain_ids:
        message = f"the plain prompt template contains the control token {tokenizer.id_to_token(control_ids[0])!r};"
        raise TemplateError(f"{message} use format: chat, which places control tokens itself")


@lru_cache(maxsize=1)
def _environment() -> sandbox.TemplateEnvironment:
    environment = sandbox.TemplateEnvironment()
    environment.undefined = jinja2.StrictUndefined  # a missing field must not render as nothing
    return environment


@lru_cache(maxsize=256)
def _compiled(source: str) -> tuple[jinja2.Template, frozenset[str]]:
    size = len(source.encode("utf-8", "surrogatepass"))
    if size > TEMPLATE_BYTES:
        raise TemplateError(f"the prompt template has {size:,} bytes; at most {TEMPLATE_BYTES:,} are accepted")
    try:
        environment = _environment()
        names = jinja2.meta.find_undeclared_variables(environment.parse(source)) - environment.globals.keys()
        return environment.from_string(source), frozenset(names)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the prompt template does not parse: line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise TemplateError(f"the prompt template does not compile: {error}") from error


def _render(source: str, variables: Mapping[str, Any]) -> str:
    sandbox.BUDGET.set(sandbox.Budget(RENDER_SECONDS))
    pieces: list[str] = []
    size = 0
    try:
        for piece in _compiled(source)[0].generate(variables):
            size += len(piece)
            if size > sandbox.OUTPUT_CHARACTERS:
                raise sandbox.Overrun(f"it wrote more than {sandbox.OUTPUT_CHARACTERS:,} characters")
            pieces.append(piece)
    except sandbox.Overrun as error:
        raise TemplateError(f"the prompt template was stopped: {error}") from error
    except RecursionError as error:
        raise TemplateError("the prompt template was stopped: it recurses too deeply") from error
    except Exception as error:  # a template is a program: whatever it does wrong is the template's error
        raise TemplateError(f"the prompt template failed: {type(error).__name__}: {error}") from error
    return "".join(pieces)


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
    if isinstance(rendered, str):
        _refuse_control_tokens(tokenizer, prompt.template)
        ids, answer_ids = tokenizer.encode_completion(rendered, answer)
    else:
        whole = tokenizer.encode_conversation([*rendered, {"role": "assistant", "content": answer}])
        start, end = whole.spans[-1]
        ids, answer_ids = whole.ids[:start], whole.ids[start:end]
    return _check_limit(ids, tokenizer.beside(len(answer_ids)), limit), answer_ids
