"""The jinja environment that chat and prompt templates run in: nothing can be reached, and nothing can run away.

Templates come with checkpoints, so they are untrusted programs. Jinja's immutable sandbox stops them from reaching
Python's insides, but not from looping for hours or from building a terabyte of text. Three ways to stop them were
weighed: a watchdog thread cannot interrupt one long C call, signals work in the main thread only, and a subprocess
costs more than every honest rendering. So the budget is compiled into the template: each block of generated code
(every loop body, macro body and branch) first calls `environment.tick()`, and every operator, literal container, call,
filter and output passes through a check of how much text it could make *before* it is carried out. It works the same
in every thread, costs about a microsecond per step, and no single step can make more than `AMPLIFIED` characters. What
all steps have made together is counted in bytes, whether it is still held or not, so that no template holds more.

What the environment offers besides is what transformers' `apply_chat_template` offers: `trim_blocks`,
`lstrip_blocks`, loop controls, `tojson` that does not escape HTML, `raise_exception`, `strftime_now`, and
`{% generation %}` blocks (rendered as their body).
"""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes, runtime
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

OUTPUT_CHARACTERS = 4 * 1024 * 1024  # of one rendering, and of any value on the way
AMPLIFIED = 4 * OUTPUT_CHARACTERS  # what one call such as center or batch may make, where that is not known exactly
MADE_BYTES = 128 * 1024 * 1024  # by all of one rendering: its output, the buffers of macros, and values on the way
STEPS = 2_000_000
INTEGER_BITS = 4096

# fmt: off
_AMPLIFIERS = frozenset((
    "center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice", "replace", "join", "format",
    "wordwrap", "round", "translate",
))
# fmt: on
_REMOVED_FILTERS = ("pprint", "urlize", "xmlattr", "random")
_WIDE_PERCENT = re.compile(r"%[^%a-zA-Z]*(\d{5,}|\*)")
_WIDE_FORMAT = re.compile(r"\{[^{}]*(\d{5,}|\{)")


class Overrun(Exception):
    """A template went over its time, its steps or its size."""


class Budget:
    """What one rendering may spend."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.steps = 0
        self.allocated_bytes = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > STEPS:
            raise Overrun(f"it took more than {STEPS:,} steps")
        if self.steps % 16 == 0 and time.monotonic() > self.deadline:
            raise Overrun(f"it took more than {self.seconds:g} seconds")

    def allocate(self, size: int) -> None:
        self.allocated_bytes += size
        if self.allocated_bytes > MADE_BYTES:
            raise Overrun(f"it made more than {MADE_BYTES:,} bytes of text and lists on its way")


BUDGET: ContextVar[Budget | None] = ContextVar("bedplate_template_budget", default=None)


def tick(written: int = 0) -> None:
    """Count one step of the rendering in progress, and the bytes that it writes (into the output, or into the buffer of
    a macro or a `set` block)."""
    budget = BUDGET.get()
    if budget is not None:
        budget.step()
        budget.allocate(written)


def charged(value: Any, *, of_text: bool = False) -> Any:
    """The value itself, counted as one that was just made. of_text: the texts in it were made with it; otherwise it
    only holds what was there."""
    budget = BUDGET.get()
    if budget is not None and isinstance(value, (str, bytes, list, tuple, dict)):
        budget.allocate(sys.getsizeof(value))
        if isinstance(value, (list, tuple)):
            budget.allocate(sum(sys.getsizeof(part) for part in value if of_text or isinstance(part, (list, tuple))))
    return value


_CONTAINER = 8  # what an empty list weighs: about its share of memory, and a bound on how many are walked


def weigh(value: Any) -> int:
    """Characters and elements of a nested value, as if it were written out (a list that holds one string twice weighs
    it twice). Stops soon after the most that a value may have."""
    total = 0
    stack: list[Any] = [value]
    while stack:
        node = stack.pop()
        total += 1
        if isinstance(node, (str, bytes)):
            total += len(node)
        elif isinstance(node, int):
            total += node.bit_length() // 3
        elif isinstance(node, Mapping):
            total += len(node) + _CONTAINER
            stack.extend(node.keys())
            stack.extend(node.values())
        elif isinstance(node, (list, tuple, set, frozenset)):
            total += _CONTAINER
            stack.extend(node)
        if total > OUTPUT_CHARACTERS or len(stack) > OUTPUT_CHARACTERS:
            return OUTPUT_CHARACTERS + 1
    return total


def checked(value: Any) -> Any:
    """The value itself, when it is small enough to be written out."""
    tick()
    if weigh(value) > OUTPUT_CHARACTERS:
        raise Overrun(f"a value of more than {OUTPUT_CHARACTERS:,} characters")
    return value


def written(value: Any) -> Any:
    """What each `{{ expression }}` goes through."""
    checked(value)
    text = value if isinstance(value, str) else str(value)
    tick(sys.getsizeof(text))
    return text


def _check_call(name: str, arguments: Sequence[Any]) -> None:
    tick()
    product = 1
    for position, argument in enumerate(arguments):
        weight = weigh(argument)
        if weight > OUTPUT_CHARACTERS:
            raise Overrun(f"{name}() was given a value of more than {OUTPUT_CHARACTERS:,} characters")
        if isinstance(argument, int) and position > 0:
            weight = abs(argument)
        if name in _AMPLIFIERS:
            product *= weight + 1
    size = _exactly(name, arguments)
    if product > AMPLIFIED if size is None else size > OUTPUT_CHARACTERS:
        raise Overrun(f"{name}() could make more than {AMPLIFIED if size is None else OUTPUT_CHARACTERS:,} characters")


def _exactly(name: str, arguments: Sequence[Any]) -> int | None:
    """How many characters a call makes at most, where honest ones of large texts would look dear by their product."""
    match name, *arguments:
        case "replace", str(text), str(old), str(new), *_:
            count = text.count(old) if old else len(text) + 1
            return len(text) + count * max(len(new) - len(old), 0)
        case "join", str(separator), list(parts) | tuple(parts), *_:
            return weigh(parts) + len(separator) * len(parts)
        case "join", list(parts) | tuple(parts), str(separator), *_:
            return weigh(parts) + len(separator) * len(parts)
        case "indent", str(text), int(width), *_:
            return len(text) + (text.count("\n") + 1) * abs(width)
        case "center" | "ljust" | "rjust" | "zfill", str(text), int(width), *_:
            return max(len(text), width)
        case _:
            return None


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks what it is given; jinja's marks for context-taking filters are kept by `wraps`."""
    skip = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if name in _AMPLIFIERS and not isinstance(args[skip], (str, bytes, list, tuple, Mapping)):
            args = (*args[:skip], _finite(args[skip]), *args[skip + 1 :])
        if name == "format" and _WIDE_PERCENT.search(str(args[skip])):
            raise Overrun("a format with a very wide field")
        _check_call(name, (*args[skip:], *kwargs.values()))
        result = function(*args, **kwargs)
        return result if result is args[skip] else charged(result, of_text=isinstance(args[skip], str))

    return guarded


def _finite(value: Any) -> Any:
    """Lazy iterables are counted while they are read, so that their weight is known before it is multiplied."""
    if not hasattr(value, "__next__") and not isinstance(value, (range, Mapping)):
        return value
    collected: list[Any] = []
    weight = 0
    for member in value:
        tick()
        weight += weigh(member)
        if weight > OUTPUT_CHARACTERS:
            raise Overrun(f"a sequence of more than {OUTPUT_CHARACTERS:,} characters")
        collected.append(member)
    return collected


def _literal_bytes(block: Iterable[nodes.Node]) -> int:
    outputs = (node for node in block if isinstance(node, nodes.Output))
    texts = (part.data for node in outputs for part in node.nodes if isinstance(part, nodes.TemplateData))
    return sum(len(text) * (1 if text.isascii() else 4) for text in texts)


class BudgetedCode(CodeGenerator):
    """Compiles the budget into the template."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        block = list(nodes)
        self.writeline(f"environment.tick({_literal_bytes(block)})")
        super().blockvisit(block, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._checked(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._checked(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._checked(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._checked(super().visit_Getitem, node, frame, by="made")
        else:
            super().visit_Getitem(node, frame)

    def _checked(
        self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame, by: str = "checked"
    ) -> None:
        self.write(f"environment.{by}(")
        visit(node, frame)
        self.write(")")


class GenerationBlocks(Extension):
    """`{% generation %} … {% endgeneration %}`, which mark assistant text in some templates: rendered as the body."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own interface)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _DictType:
    """`dict(...)` without the attributes of the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """`namespace()` that takes no underscore names."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportSelfClsParameterName]
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _Namespace._check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, checked(value))

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold the underscore name {name!r}")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with a budget. `intercepted_binops` go through `call_binop`."""

    code_generator_class = BudgetedCode
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constant folding would run before there is a budget
            finalize=written,
            extensions=[GenerationBlocks, "jinja2.ext.loopcontrols"],
        )
        for name in _REMOVED_FILTERS:
            self.filters.pop(name, None)
        self.globals.pop("lipsum", None)
        filters: dict[str, Any] = self.filters
        filters["tojson"] = tojson
        for name, function in list(filters.items()):
            filters[name] = _guarded(name, function)
        offered: dict[str, Any] = self.globals
        offered |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        offered |= {"dict": _DictType(), "namespace": _Namespace}

    tick, checked, made = staticmethod(tick), staticmethod(checked), staticmethod(charged)

    def concatenated(self, parts: tuple[Any, ...]) -> str:
        checked(parts)
        return charged(runtime.str_join(parts))

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        tick()
        size = weigh(left) + weigh(right)
        if operator == "*":
            sized = left if not isinstance(left, (int, float)) else right
            count = right if sized is left else left
            if isinstance(sized, int) and isinstance(count, int):
                if sized.bit_length() + count.bit_length() > INTEGER_BITS:
                    raise Overrun(f"a number of more than {INTEGER_BITS} bits")
            elif isinstance(count, int) and not isinstance(sized, float):
                size = weigh(sized) * max(count, 1)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > INTEGER_BITS:
                raise Overrun(f"a number of more than {INTEGER_BITS} bits")
        elif operator == "%" and isinstance(left, str) and _WIDE_PERCENT.search(left):
            raise Overrun("a format with a very wide field")
        if size > OUTPUT_CHARACTERS:
            raise Overrun(f"`{operator}` would make more than {OUTPUT_CHARACTERS:,} characters")
        return charged(checked(super().call_binop(context, operator, left, right)))

    def call(self, _context: runtime.Context, _function: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template. A method's receiver counts as its first argument. (Named as jinja's callers pass
        them: by position.)"""
        receiver = getattr(_function, "__self__", None)
        if isinstance(receiver, (str, bytes, list, tuple, dict)):
            if args and _function.__name__ == "join":
                args = (_finite(args[0]), *args[1:])
            _check_call(str(_function.__name__), (receiver, *args, *kwargs.values()))
            result = checked(super().call(_context, _function, *args, **kwargs))
            return result if result is receiver else charged(result, of_text=isinstance(receiver, (str, bytes)))
        _check_call("call", (*args, *kwargs.values()))
        result = super().call(_context, _function, *args, **kwargs)
        return result if isinstance(result, str) else charged(result)  # a macro's text was counted as it was written

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _WIDE_FORMAT.search(value.__self__):
            raise Overrun("a format with a very wide field")
        return wrapped


def raise_exception(message: str) -> None:
    """What templates call to refuse a conversation."""
    raise jinja2.exceptions.TemplateError(message)


def strftime_now(format: str) -> str:
    """Now, in local time."""
    if len(format) > 256 or _WIDE_PERCENT.search(format):
        raise Overrun("a date format with a very wide field")
    return datetime.now().strftime(format)


@jinja2.pass_context
def tojson(
    context: runtime.Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' `tojson` writes it: not escaped for HTML. A mark of `bedplate.text.control_tokens` in the
    value stays a mark when `ensure_ascii` would spell it as an escape."""
    if isinstance(indent, int) and (indent > 64 or (indent > 0 and _indented(value, indent) > OUTPUT_CHARACTERS)):
        raise Overrun("tojson with a very wide indent")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    mark = context.get(MARK_VARIABLE)
    if ensure_ascii and mark:
        text = text.replace(json.dumps(mark)[1:-1], mark)
    return checked(text)


def _indented(value: Any, indent: int, depth: int = 1) -> int:
    """Characters of the white space that indents a nested value."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return sum(indent * depth + 1 + _indented(child, indent, depth + 1) for child in inner)


MARK_VARIABLE = "_bedplate_mark"
