"""Plain Python functions as JavaScript, so that a page computes what Python does, and nothing is written twice.

1. `script` takes what a page needs: values, formulas, functions.
2. A function is read from its source and translated statement by statement; the functions, classes and constants of its
   module that it names come along. Classes keep their fields, properties and methods.
3. Lists, tuples and sets become arrays, dicts become Maps, None is null. Builtins, subscripts, truth and formats are
   `py` in pages/python.js, which keeps Python's meaning where JavaScript's differs.

What has no translation raises TypeError with its file and line. `==` is for numbers, texts and None; generators are
lists; keyword arguments are for functions and classes that are known by name.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, cast

from bedplate.economics.numbers.formula import FUNCTIONS, Formula

_OPERATORS: dict[type[ast.operator], str] = {ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_EQUALITY: dict[type[ast.cmpop], str] = {ast.Eq: "===", ast.Is: "===", ast.NotEq: "!==", ast.IsNot: "!=="}
_ORDER: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_COMPARISONS = _EQUALITY | _ORDER
_BUILTINS = {len, sorted, min, max, sum, any, all, list, tuple, set, enumerate, zip, map, range, next, int, replace}
_MATH = {abs, math.ceil, math.floor, math.log2, math.log10, math.sqrt}
_METHODS = {"append", "capitalize", "count", "get", "index", "items", "join", "keys", "pop", "rstrip", "values"}
_RESERVED = {
    *("arguments", "case", "catch", "const", "default", "delete", "do", "enum", "export", "extends", "function"),
    *("instanceof", "interface", "new", "package", "private", "protected", "public", "static", "super", "switch"),
    *("this", "throw", "typeof", "var", "void"),
}


def script(**exports: object) -> str:
    """A script that defines each name: a value, a formula, a function or a class; of other objects the public
    attributes. Whatever these need is defined too, out of sight."""
    program = _Program()
    values = ", ".join(f"{name}: {program.literal(value)}" for name, value in exports.items())
    lines = [f"const {{ {', '.join(exports)} }} = (() => {{", f"const {{ {', '.join(FUNCTIONS)} }} = Math;"]
    return "\n".join([*lines, *program.definitions.values(), f"return {{ {values} }};", "})();"])


class _Program:
    """What has been translated so far: the text of each global by its name."""

    def __init__(self) -> None:
        self.definitions: dict[str, str] = {}
        self._globals: dict[str, object] = {}

    def literal(self, value: Any) -> str:
        """A value as an expression."""
        match value:
            case None | bool():
                return {None: "null", True: "true", False: "false"}[value]
            case int() | float():
                return repr(value).replace("inf", "Infinity")
            case str():
                return json.dumps(value).replace("<", "\\u003c")  # so that no text ends the page's script
            case Formula():
                return f"(v) => {value.text}"
            case FunctionType() | type():
                return self.define(value.__name__, value)
            case _ if is_dataclass(value):
                values = [getattr(value, field.name) for field in fields(value)]
                return f"new {self.define(type(value).__name__, type(value))}({self._literals(values)})"
            case Mapping():
                return f"new Map([{self._literals(cast('Mapping[object, object]', value).items())}])"
            case Collection():
                return f"[{self._literals(cast('Collection[object]', value))}]"
            case _ if hasattr(value, "__dict__"):
                public = {name: part for name, part in vars(value).items() if not name.startswith("_")}
                return f"{{ {', '.join(f'{name}: {self.literal(part)}' for name, part in public.items())} }}"
            case _:
                raise TypeError(f"JavaScript cannot be made of {value!r}")

    def _literals(self, values: Iterable[object]) -> str:
        return ", ".join(map(self.literal, values))

    def define(self, name: str, value: object) -> str:
        """The name of a global, which is translated where it is new. TypeError where two have one name."""
        if self._globals.setdefault(name, value) is not value:
            raise TypeError(f"two things are called {name}; a page's functions need names of their own")
        if name not in self.definitions:
            self.definitions[name] = ""  # it may name itself
            if isinstance(value, FunctionType):
                text = f"function {_Function(self, value).text}"
            else:
                text = self._class(value) if isinstance(value, type) else f"const {name} = {self.literal(value)};"
            del self.definitions[name]
            self.definitions[name] = text  # after what it needs
        return name

    def _class(self, cls: type) -> str:
        members: list[str] = []
        if is_dataclass(cls):
            defaults = {field.name: field.default for field in fields(cls)}
            values = {name: "" if value is MISSING else f" = {self.literal(value)}" for name, value in defaults.items()}
            parameters = ", ".join(f"{name}{value}" for name, value in values.items())
            members.append(f"constructor({parameters}) {{ Object.assign(this, {{ {', '.join(values)} }}); }}")
        for name, member in vars(cls).items():
            getter = member.fget if isinstance(member, property) else getattr(member, "func", None)
            if isinstance(getter, FunctionType):
                members.append(f"get {_Function(self, getter, name).text}")
            elif isinstance(member, FunctionType) and not name.startswith("__"):
                members.append(_Function(self, member, name).text)
            elif isinstance(member, FunctionType) and name == "__init__" and not members:
                members.append(_Function(self, member, "constructor").text)
        return "\n".join([f"class {cls.__name__} {{", *members, "}"])


class _Function:
    """One function on its way to JavaScript, or the method of this name. text: `name(parameters) { … }`."""

    def __init__(self, program: _Program, function: FunctionType, method: str | None = None) -> None:
        self.program, self.function = program, function
        self.scopes: list[set[str]] = []
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        self.text = self._definition(cast("ast.FunctionDef", definition), method)

    def _error(self, node: ast.AST, reason: str) -> TypeError:
        code = self.function.__code__
        place = f"{code.co_filename}:{code.co_firstlineno + getattr(node, 'lineno', 1) - 1}"
        return TypeError(f"{place}: JavaScript cannot be made of `{ast.unparse(node)}`: {reason}")

    # --- names

    def _is_local(self, name: str) -> bool:
        return any(name in scope for scope in self.scopes)

    def _constant(self, node: ast.expr) -> object:
        """The global object that an expression names, also as `module.name` or `list[float]`; else None."""
        match node:
            case ast.Name(name) if not self._is_local(name):
                return self.function.__globals__.get(name, getattr(builtins, name, None))
            case ast.Attribute(owner, name) if isinstance(module := self._constant(owner), ModuleType):
                return getattr(module, name)
            case ast.Subscript(owner, _) if isinstance(constant := self._constant(owner), type):
                return constant
            case _:
                return None

    def _global(self, node: ast.expr, name: str) -> str:
        value = self._constant(node)
        if isinstance(value, BuiltinFunctionType | FunctionType | type) and value in _MATH | _BUILTINS:
            return f"{'Math' if value in _MATH else 'py'}.{value.__name__}"
        if value is None or isinstance(value, BuiltinFunctionType | ModuleType) or value in vars(builtins).values():
            raise self._error(node, "there is no such name on a page")
        return self.program.define(name, value) if isinstance(node, ast.Name) else self.program.literal(value)

    # --- statements

    def _definition(self, node: ast.FunctionDef, method: str | None = None) -> str:
        parameters = [parameter.arg for parameter in node.args.args]
        assigned = {name for statement in node.body for name in _assigned(statement)} - set(parameters)
        inner = {part.name for part in ast.walk(node) if isinstance(part, ast.FunctionDef) and part is not node}
        if reserved := _RESERVED & {*parameters, *assigned, *inner}:
            raise self._error(node, f"{', '.join(sorted(reserved))} is a word of JavaScript's own")
        self.scopes.append({*parameters, *assigned, *inner})
        lines = [f"{method or node.name}({self._parameters(node.args, first=int(method is not None))}) {{"]
        lines += ["const self = this;"] if method else []
        lines += [f"let {', '.join(sorted(assigned))};"] if assigned else []
        lines += [self._block(node.body), "}"]
        self.scopes.pop()
        return "\n".join(lines)

    def _parameters(self, arguments: ast.arguments, first: int = 0) -> str:
        if arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg:
            raise self._error(arguments, "parameters are plain ones")
        plain: list[None] = [None] * (len(arguments.args) - len(arguments.defaults))
        pairs = zip(arguments.args, [*plain, *arguments.defaults], strict=True)
        texts = [name.arg + ("" if default is None else f" = {self._value(default)}") for name, default in pairs]
        return ", ".join(texts[first:])

    def _block(self, statements: Iterable[ast.stmt]) -> str:
        return "\n".join(filter(None, map(self._statement, statements)))

    def _statement(self, node: ast.stmt) -> str:
        value, block = self._value, self._block
        match node:
            case ast.Expr(ast.Constant()) | ast.Pass() | ast.AnnAssign(_, _, None):
                return ""
            case ast.Expr(expression):
                return f"{value(expression)};"
            case ast.Return(result):
                return f"return {'null' if result is None else value(result)};"
            case ast.Assign([ast.Subscript(owner, place)], expression):
                return f"py.put({value(owner)}, {value(place)}, {value(expression)});"
            case ast.Assign([target], expression) | ast.AnnAssign(target, _, ast.expr() as expression):
                return f"{value(target)} = {value(expression)};"
            case ast.AugAssign(target, operator, operand):
                operation = ast.copy_location(ast.BinOp(target, operator, operand), node)
                return self._statement(ast.copy_location(ast.Assign([target], operation), node))
            case ast.If(test, body, otherwise):
                return f"if ({self._test(test)}) {{ {block(body)} }} else {{ {block(otherwise)} }}"
            case ast.For(target, values, body, []):
                return f"for ({value(target)} of {self._sequence(values)}) {{ {block(body)} }}"
            case ast.While(test, body, []):
                return f"while ({self._test(test)}) {{ {block(body)} }}"
            case ast.Break() | ast.Continue():
                return f"{ast.unparse(node)};"
            case ast.Raise(ast.Call(_, [message])):
                return f"throw new Error({value(message)});"
            case ast.FunctionDef():
                return f"function {self._definition(node)}"
            case _:
                raise self._error(node, "there is no translation of this statement")

    # --- expressions

    def _value(self, node: ast.expr) -> str:
        value, values = self._value, self._values
        match node:
            case ast.Constant(constant):
                return self.program.literal(constant)
            case ast.Name(name) if self._is_local(name):
                return name
            case ast.Name(name):
                return self._global(node, name)
            case ast.Attribute(_, name) if self._constant(node) is not None:
                return self._global(node, name)
            case ast.Attribute(owner, name) if not isinstance(self._constant(owner), type):
                return f"{value(owner)}.{name}"
            case ast.BinOp(left, ast.Add(), right):
                return f"py.add({value(left)}, {value(right)})"
            case ast.BinOp(left, operator, right) if type(operator) in _OPERATORS:
                return f"({value(left)} {_OPERATORS[type(operator)]} {value(right)})"
            case ast.UnaryOp(ast.USub(), operand):
                return f"(-{value(operand)})"
            case ast.UnaryOp(ast.Not()) | ast.Compare():
                return self._test(node)
            case ast.BoolOp(_, operands) if all(isinstance(operand, ast.Compare) for operand in operands):
                return self._test(node)
            case ast.BoolOp(operator, [first, *others]):
                name = "or" if isinstance(operator, ast.Or) else "and"
                return f"py.{name}({value(first)}{''.join(f', () => {value(operand)}' for operand in others)})"
            case ast.IfExp(test, body, otherwise):
                return f"({self._test(test)} ? {value(body)} : {value(otherwise)})"
            case ast.List(elements) | ast.Tuple(elements) | ast.Set(elements):
                return f"[{values(elements)}]"
            case ast.Dict(keys, entries) if None not in keys:
                pairs = zip(cast("list[ast.expr]", keys), entries, strict=True)
                return f"new Map([{', '.join(f'[{values(pair)}]' for pair in pairs)}])"
            case ast.Starred(operand, context):
                return f"...{value(operand) if isinstance(context, ast.Store) else self._sequence(operand)}"
            case ast.Subscript(owner, ast.Slice(lower, upper, step)):
                bounds = ["null" if bound is None else value(bound) for bound in (lower, upper, step)]
                return f"py.slice({value(owner)}, {', '.join(bounds)})"
            case ast.Subscript(owner, place):
                return f"py.at({value(owner)}, {value(place)})"
            case ast.JoinedStr(parts):
                return f"`{''.join(map(self._part, parts))}`"
            case ast.Lambda(arguments, body):
                self.scopes.append({parameter.arg for parameter in arguments.args})
                text = f"(({self._parameters(arguments)}) => {value(body)})"
                self.scopes.pop()
                return text
            case ast.ListComp(element, loops) | ast.GeneratorExp(element, loops):
                return self._loops(loops, lambda: value(element))
            case ast.SetComp(element, loops):
                return f"py.set({self._loops(loops, lambda: value(element))})"
            case ast.DictComp(key, entry, loops):
                return f"new Map({self._loops(loops, lambda: f'[{value(key)}, {value(entry)}]')})"
            case ast.Call():
                return self._call(node)
            case _:
                raise self._error(node, "there is no translation of this expression")

    def _values(self, nodes: Iterable[ast.expr]) -> str:
        return ", ".join(map(self._value, nodes))

    def _sequence(self, node: ast.expr) -> str:
        return f"py.each({self._value(node)})"

    def _part(self, node: ast.expr) -> str:
        """One part of a formatted text."""
        match node:
            case ast.Constant(str(text)):
                return json.dumps(text)[1:-1].replace('\\"', '"').replace("`", "\\`").replace("$", "\\$")
            case ast.FormattedValue(value, -1, form):
                return f"${{{self._value(value) if form is None else f'py.format({self._values([value, form])})'}}}"
            case _:
                raise self._error(node, "only a value and its format are written on a page")

    def _test(self, node: ast.expr) -> str:
        """An expression's truth."""
        match node:
            case ast.BoolOp(operator, operands):
                return f"({(' || ' if isinstance(operator, ast.Or) else ' && ').join(map(self._test, operands))})"
            case ast.UnaryOp(ast.Not(), operand):
                return f"!{self._test(operand)}"
            case ast.Compare(left, operators, rights):
                sides = zip([left, *rights[:-1]], rights, operators, strict=True)
                return f"({' && '.join(self._comparison(*side) for side in sides)})"
            case _:
                return f"py.truth({self._value(node)})"

    def _comparison(self, left: ast.expr, right: ast.expr, operator: ast.cmpop) -> str:
        if isinstance(operator, ast.In | ast.NotIn):
            return f"{'' if isinstance(operator, ast.In) else '!'}py.contains({self._values([right, left])})"
        return f"{self._value(left)} {_COMPARISONS[type(operator)]} {self._value(right)}"

    def _loops(self, loops: Sequence[ast.comprehension], element: Callable[[], str]) -> str:
        """What a comprehension makes, as an array."""
        loop, *inner = loops
        text = self._sequence(loop.iter)
        self.scopes.append(_assigned(loop.target))
        target = self._value(loop.target)
        text += "".join(f".filter(({target}) => {self._test(condition)})" for condition in loop.ifs)
        step, body = ("flatMap", self._loops(inner, element)) if inner else ("map", element())
        self.scopes.pop()
        return f"{text}.{step}(({target}) => {body})"

    def _call(self, node: ast.Call) -> str:
        function, constant = node.func, self._constant(node.func)
        texts = [self._value(argument) for argument in node.args]
        keywords = {keyword.arg: self._value(keyword.value) for keyword in node.keywords}
        if constant is None and isinstance(function, ast.Attribute) and function.attr in _METHODS and not keywords:
            return f"py.{function.attr}({', '.join([self._value(function.value), *texts])})"
        if isinstance(constant, BuiltinFunctionType) or (isinstance(constant, Callable) and constant in _BUILTINS):
            texts += [f"{{ {', '.join(f'{name}: {text}' for name, text in keywords.items())} }}"] if keywords else []
        elif isinstance(constant, FunctionType | type):  # its arguments in the order of its parameters
            for name in list(inspect.signature(constant).parameters)[len(texts) :] if keywords else ():
                texts.append(keywords.pop(name, "undefined"))  # which takes a default
        elif keywords:
            raise self._error(node, "keyword arguments are for what is known by name")
        function = function.value if isinstance(function, ast.Subscript) and constant is not None else function
        new = "new " if isinstance(constant, type) and constant not in _BUILTINS else ""
        return f"{new}{self._value(function)}({', '.join(texts)})"


def _assigned(node: ast.AST) -> set[str]:
    """Names that a statement or a target assigns, without those of functions and comprehensions within."""
    if isinstance(node, ast.FunctionDef | ast.Lambda | ast.comprehension):
        return set()
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    return {name for child in ast.iter_child_nodes(node) for name in _assigned(child)}
