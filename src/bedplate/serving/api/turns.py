"""Assembles an assistant's turn as blocks (text, reasoning, tool calls), for the messages and responses APIs.

Requests to these APIs become a `ChatRequest`, so that bases, skins, tools and formats work as in chat completions.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from bedplate.inference.engine.requests import Step
from bedplate.serving.models.served import Answer, AnswerPlan, PlanResult
from bedplate.serving.request.lifecycle import ApiCall, CallInProgress
from bedplate.serving.schemas.openai_fields import ChatRequest
from bedplate.serving.schemas.tool_fields import Spoken
from bedplate.text.calls.reading import ReplyPiece

_BLOCK_TYPES: dict[str, Literal["text", "call", "reasoning"]] = {
    "content": "text",
    "reasoning": "reasoning",
    "name": "call",
    "arguments": "call",
}


@dataclass
class TurnBlock:
    """One part of a turn. text: its content or reasoning, or a call's arguments as JSON. id, name: of a call."""

    block_type: Literal["text", "call", "reasoning"]
    index: int
    id: str = ""
    name: str = ""
    text: str = ""


@dataclass(frozen=True)
class BlockGrowth:
    """New text of a block. begins: whether it is the block's first."""

    block: TurnBlock
    text: str
    begins: bool = False


@dataclass
class AssistantTurn:
    """A turn that grows as its text arrives. answer: None until it has ended."""

    spoken: Spoken
    blocks: list[TurnBlock] = field(default_factory=list[TurnBlock])
    answer: Answer | None = None

    @classmethod
    def of(cls, plan: AnswerPlan) -> AssistantTurn:
        return cls(Spoken(plan.form))

    def push(self, text: str) -> list[BlockGrowth]:
        return [self._grow(piece) for piece in self.spoken.push(text)]

    def end(self, answer: Answer) -> list[BlockGrowth]:
        """Ends the turn and returns the text that the parser held back. A turn without content gets an empty text."""
        self.answer = answer
        pieces = self.spoken.finish(answer.finish_reason)
        if not pieces and all(block.block_type == "reasoning" for block in self.blocks):
            pieces = [ReplyPiece("content", "")]
        return [self._grow(piece) for piece in pieces]

    @property
    def ended(self) -> Answer:
        assert self.answer is not None
        return self.answer

    @property
    def finish_reason(self) -> str:
        return self.spoken.finish_reason(self.ended.finish_reason)

    def message(self) -> dict[str, Any]:
        text = "".join(block.text for block in self.blocks if block.block_type == "text")
        calls = [
            {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.text}}
            for block in self.blocks
            if block.block_type == "call"
        ]
        head = {"role": "assistant", "content": text}
        reasoning = "".join(block.text for block in self.blocks if block.block_type == "reasoning")
        if reasoning:
            head["reasoning_content"] = reasoning
        return {**head, "tool_calls": calls} if calls else head

    def _grow(self, piece: ReplyPiece) -> BlockGrowth:
        last = self.blocks[-1] if self.blocks else None
        block_type = _BLOCK_TYPES[piece.section]
        if piece.section == "name" or last is None or last.block_type != block_type:
            block = TurnBlock(block_type, len(self.blocks))
            self.blocks.append(block)
            if piece.section == "name":
                block.id, block.name = self.spoken.id(piece.call), piece.text
                return BlockGrowth(block, "", begins=True)
            block.text = piece.text
            return BlockGrowth(block, piece.text, begins=True)
        last.text += piece.text
        return BlockGrowth(last, piece.text)


@dataclass(frozen=True)
class TurnPart:
    """The new text of a turn, and the engine steps that it came from."""

    growths: Sequence[BlockGrowth]
    steps: Sequence[Step]


async def take_turn(call: ApiCall, request: ChatRequest, plan: AnswerPlan, run: CallInProgress) -> AssistantTurn:
    """Waits for the whole turn and accounts for it."""
    result = (await call.results(run))[0]
    answer = _accounted(call, request, result, call.lease.served.answer(result))
    turn = AssistantTurn.of(plan)
    turn.push(answer.text)
    turn.end(answer)
    return turn


async def parts_of(
    turn: AssistantTurn, call: ApiCall, request: ChatRequest, run: CallInProgress
) -> AsyncGenerator[TurnPart]:
    """Yields the parts of the turn as they arrive; accounts for it at its end."""
    async with aclosing(call.arrivals(run)) as arriving:
        async for arrival in arriving:
            growths = turn.push(arrival.text)
            if arrival.result is not None and arrival.answer is not None:
                growths += turn.end(_accounted(call, request, arrival.result, arrival.answer))
            yield TurnPart(growths, arrival.steps)


def _accounted(call: ApiCall, request: ChatRequest, result: PlanResult, answer: Answer) -> Answer:
    call.account(request, [result], [answer])
    return answer


def extension_of(call: ApiCall, answer: Answer) -> dict[str, Any]:
    """The reply's `bedplate` field, if there are values for which its API has no field."""
    cost = {} if call.cost_usd is None else {"cost_usd": call.cost_usd}
    extension = {**(answer.extension or {}), **cost}
    return {"bedplate": extension} if extension else {}
