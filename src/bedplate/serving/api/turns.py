"""One assistant's turn, for the APIs whose replies are one turn in blocks: texts, and calls of tools.

Their requests become a `ChatRequest`, so that whatever chats (bases, skins, tools, formats) works behind them as well.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from bedplate.inference.engine.requests import Step
from bedplate.serving.call.call import ApiCall, UnderWay
from bedplate.serving.models.plan import AnswerPlan, PlanResult
from bedplate.serving.models.served import Answer
from bedplate.serving.wire.fields import ChatRequest
from bedplate.serving.wire.tools import Spoken
from bedplate.text.calls.reading import ReplyPiece

_KINDS: dict[str, Literal["text", "call", "reasoning"]] = {
    "content": "text",
    "reasoning": "reasoning",
    "name": "call",
    "arguments": "call",
}


@dataclass
class TurnBlock:
    """One part of a turn. text: what it says or reasons, or a call's arguments as JSON. id, name: of a call."""

    kind: Literal["text", "call", "reasoning"]
    index: int
    id: str = ""
    name: str = ""
    text: str = ""


@dataclass(frozen=True)
class BlockGrowth:
    """What is new of a block; the first growth of each block begins it."""

    block: TurnBlock
    text: str
    begins: bool = False


@dataclass
class AssistantTurn:
    """A turn as it comes. `answer` is there once it has ended."""

    spoken: Spoken
    blocks: list[TurnBlock] = field(default_factory=list[TurnBlock])
    answer: Answer | None = None

    @classmethod
    def of(cls, plan: AnswerPlan) -> AssistantTurn:
        return cls(Spoken(plan.form))

    def push(self, text: str) -> list[BlockGrowth]:
        return [self._grow(piece) for piece in self.spoken.push(text)]

    def end(self, answer: Answer) -> list[BlockGrowth]:
        """What was held back. A turn that says nothing is an empty text."""
        self.answer = answer
        held = self.spoken.finish(answer.finish_reason)
        if not held and all(block.kind == "reasoning" for block in self.blocks):
            held = [ReplyPiece("content", "")]
        return [self._grow(piece) for piece in held]

    @property
    def ended(self) -> Answer:
        assert self.answer is not None
        return self.answer

    @property
    def finish_reason(self) -> str:
        return self.spoken.finish_reason(self.ended.finish_reason)

    def message(self) -> dict[str, Any]:
        """As a chat's message."""
        text = "".join(block.text for block in self.blocks if block.kind == "text")
        calls = [
            {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.text}}
            for block in self.blocks
            if block.kind == "call"
        ]
        head = {"role": "assistant", "content": text}
        reasoning = "".join(block.text for block in self.blocks if block.kind == "reasoning")
        if reasoning:
            head["reasoning_content"] = reasoning
        return {**head, "tool_calls": calls} if calls else head

    def _grow(self, piece: ReplyPiece) -> BlockGrowth:
        last = self.blocks[-1] if self.blocks else None
        kind = _KINDS[piece.kind]
        if piece.kind == "name" or last is None or last.kind != kind:
            block = TurnBlock(kind, len(self.blocks))
            self.blocks.append(block)
            if piece.kind == "name":
                block.id, block.name = self.spoken.id(piece.call), piece.text
                return BlockGrowth(block, "", begins=True)
            block.text = piece.text
            return BlockGrowth(block, piece.text, begins=True)
        last.text += piece.text
        return BlockGrowth(last, piece.text)


@dataclass(frozen=True)
class TurnPart:
    """What newly arrived of a turn, and the steps behind it."""

    growths: Sequence[BlockGrowth]
    steps: Sequence[Step]


async def take_turn(call: ApiCall, asked: ChatRequest, plan: AnswerPlan, run: UnderWay) -> AssistantTurn:
    """The whole turn, told to whoever counts."""
    found = (await call.results(run))[0]
    answer = _accounted(call, asked, found, call.lease.served.answer(found))
    turn = AssistantTurn.of(plan)
    turn.push(answer.text)
    turn.end(answer)
    return turn


async def parts_of(turn: AssistantTurn, call: ApiCall, asked: ChatRequest, run: UnderWay) -> AsyncGenerator[TurnPart]:
    """The turn as it comes, told to whoever counts when it has ended."""
    async with aclosing(call.arrivals(run)) as arriving:
        async for one in arriving:
            growths = turn.push(one.text)
            if one.found is not None and one.answer is not None:
                growths += turn.end(_accounted(call, asked, one.found, one.answer))
            yield TurnPart(growths, one.steps)


def _accounted(call: ApiCall, asked: ChatRequest, found: PlanResult, answer: Answer) -> Answer:
    answer = call.noted(asked, answer)
    call.account(asked, [found], [answer])
    return answer


def extension_of(call: ApiCall, answer: Answer) -> dict[str, Any]:
    """The reply's `bedplate` field, where there is something to say that its API has no field for."""
    cost = {} if call.cost_usd is None else {"cost_usd": call.cost_usd}
    said = {**(answer.extension or {}), **cost}
    return {"bedplate": said} if said else {}
