"""`truncation: auto` of /v1/responses: the oldest turns are left out until a conversation fits the context."""

from __future__ import annotations

from bedplate.inference.engine.requests import LookupContext
from bedplate.serving.models.answer_plan import AnswerPlan
from bedplate.serving.models.served import Served
from bedplate.serving.schemas.fields import ChatRequest


def fitting_plan(served: Served, request: ChatRequest, terms: LookupContext) -> tuple[AnswerPlan, int]:
    """The plan of the longest end of a conversation that leaves room for the answer, and how many messages it leaves
    out; the whole conversation's where not even the last turn has room, so that the message is about all of it.

    A turn begins with the user's message: calls of tools stay with their results. What the system said stays. As many
    plans are made as a search by halves needs."""
    whole = served.chat(request, terms)
    begins = [i for i, message in enumerate(request.messages) if message.role == "user"][1:]
    if _fits(served, whole, request) or not begins:
        return whole, 0
    low, high, fitting = 0, len(begins) - 1, (whole, 0)
    while low <= high:
        middle = (low + high) // 2
        messages = [
            message
            for i, message in enumerate(request.messages)
            if i >= begins[middle] or message.role in {"system", "developer"}
        ]
        plan = served.chat(request.model_copy(update={"messages": messages}), terms)
        if _fits(served, plan, request):
            fitting, high = (plan, len(request.messages) - len(messages)), middle - 1
        else:
            low = middle + 1
    return fitting


def _fits(served: Served, plan: AnswerPlan, request: ChatRequest) -> bool:
    room = served.engine.base.spec.context_length
    return all(len(engine_request.tokens) + (request.token_limit or 1) <= room for engine_request in plan.requests)
