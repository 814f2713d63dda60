"""POST /tokenize and /detokenize, GET /tokenizer_info: a model's tokenizer, as evaluation harnesses ask for it.

Reference: vLLM's tokenizer API, which lm-eval's remote tokenizer speaks.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.responses import Response

from bedplate.core.errors import RequestError, UnknownModelError
from bedplate.inference.engine.requests import LookupContext
from bedplate.serving.models.served import Served
from bedplate.serving.request.lifecycle import ApiCall, answers
from bedplate.serving.schemas.http_errors import LoadingError
from bedplate.serving.schemas.openai_fields import ChatRequest, read_fields
from bedplate.serving.schemas.request_fields import TOKEN_LIMIT, RequestFields, openapi_queries
from bedplate.serving.schemas.strict_json import json_response, large_json_response
from bedplate.serving.schemas.tool_fields import conversation_tokens
from bedplate.text.tokenizer import Tokenizer

router = APIRouter()


class TokenizeRequest(RequestFields):
    """POST /tokenize, of a text (`prompt`) or of a conversation (`messages`, as /v1/chat/completions takes them).

    model: the main base by default. add_special_tokens: what the tokenizer sets around a text (default true); a
    conversation's come from its template. With a skin as model, `messages` give the prompt that the skin makes of them.
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        if self.messages is not None and self.add_special_tokens:
            raise ValueError("add_special_tokens: only for a prompt; a template writes a conversation's")
        if self.messages is None and (self.add_generation_prompt is not None or self.tools is not None):
            raise ValueError("messages: add_generation_prompt and tools belong to messages")
        return self


class DetokenizeRequest(RequestFields):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=TOKEN_LIMIT)]], Field(max_length=1_000_000)]


@router.post("/tokenize")
@answers("tokenize")
async def tokenize(call: ApiCall, request: TokenizeRequest) -> Response:
    served = await choose(call, request.model)
    tokenizer = served.tokenizer

    def reply(terms: LookupContext) -> Response:
        tokens = _tokens(served, tokenizer, request, terms)
        strings = [tokenizer.id_to_token(token) or "" for token in tokens] if request.return_token_strs else None
        context = served.answerer.describe().context_length
        body = {"count": len(tokens), "max_model_len": context, "tokens": tokens, "token_strs": strings}
        return large_json_response(body)

    return await call.off_loop(reply)


@router.post("/detokenize")
@answers("detokenize")
async def detokenize(call: ApiCall, request: DetokenizeRequest) -> Response:
    served = await choose(call, request.model)
    tokenizer = served.tokenizer

    def reply(_: LookupContext) -> Response:
        bad = next((token for token in request.tokens if token >= tokenizer.vocab_size), None)
        if bad is not None:
            message = f"there is no token {bad}; the vocabulary has {tokenizer.vocab_size} ids"
            raise RequestError(message, param="tokens")
        return json_response({"prompt": tokenizer.reading.decode(request.tokens, skip_special_tokens=False)})

    return await call.off_loop(reply)


@router.get("/tokenizer_info", openapi_extra=openapi_queries(model={"type": "string"}))
@answers("tokenizer_info")
async def tokenizer_info(call: ApiCall) -> Response:
    served = await choose(call, call.request.query_params.get("model"))
    tokenizer = served.tokenizer
    roles = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    named = {f"{role}_token": None if token is None else tokenizer.id_to_token(token) for role, token in roles.items()}
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "chat_template": None if tokenizer.chat is None else tokenizer.chat.source,
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": served.answerer.describe().context_length,
        "tokenizer_id": tokenizer.identity,
    }
    return json_response(described)


async def choose(call: ApiCall, name: str | None) -> Served:
    """The model of this name, or where none is given the first that the caller may use."""
    if name is None:
        if call.server.registry.loading:
            raise LoadingError("the server is loading its models; name one that it serves already, or try again soon")
        visible = call.server.registry.visible(call.caller)
        if not visible:
            raise UnknownModelError("there is no model here that this key may use", param="model")
        name = visible[0].name
    return await call.choose(name)


def _tokens(served: Served, tokenizer: Tokenizer, request: TokenizeRequest, terms: LookupContext) -> list[int]:
    if request.prompt is not None:
        return tokenizer.reading.encode(request.prompt, add_special_tokens=request.add_special_tokens is not False)
    tools = {} if request.tools is None else {"tools": request.tools}
    chat = read_fields(ChatRequest, {"model": served.name, "messages": request.messages, **tools})
    if request.add_generation_prompt is False:
        if served.describe()["kind"] != "base":
            message = f"{served.name!r} is a skin: its prompt always ends where the answer begins"
            raise RequestError(message, param="add_generation_prompt")
        messages = [message.plain() for message in chat.messages]
        return conversation_tokens(tokenizer, messages, chat.usable_tools, answer=False)
    return list(served.chat(chat, terms).requests[0].tokens)
