"""Rules between Bedplate's parameters and another format's tensors: rename, fuse, split, stack, transpose, permute.

Plain data and small functions, without torch: a change uses nothing but the methods of the tensors that it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import Any, NamedTuple

from bedplate.core.errors import CheckpointError
from bedplate.models.specs import TextSpec, TransformerSpec

Tensors = Sequence[Any]
Change = Callable[[Tensors, Any], Tensors]
Sizes = Callable[[TransformerSpec], Sequence[int]]
Heads = Callable[[TransformerSpec], int]


def unchanged(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Rule:
    """One row: the tensors `theirs` hold what the parameters `ours` do.

    `{i}` stands for a layer's number and `{e}` for an expert's; `{m}` for that of a module that predicts further tokens
    (theirs count on from the layers). An index on both sides makes one row of each number; on one side only it
    stands for all of them in order, as where one tensor of theirs holds every expert.
    forward makes theirs of ours, inverse ours of theirs, each in the order of the names. rows: both only cut, join and
    reorder first dimensions, so that a matrix quantised along its rows can follow. turned: theirs is a matrix that is
    multiplied by from the other side, so that its rows are our columns. Rules with the same `ours` are ways
    in which checkpoints store them: one is read by that which fits, and written by the first.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    forward: Change = unchanged
    inverse: Change = unchanged
    rows: bool = False
    turned: bool = False


class BoundRule(NamedTuple):
    """A rule with its numbers filled in."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    rule: Rule


BODY = "model."
"""How transformers begins the names of a body's tensors where a head stands beside it."""


@dataclass(frozen=True)
class WeightMap:
    """The rows, the names that may be ignored (regular expressions), and optional prefixes of the other side.

    heads: how names begin that stand beside the body's; where there is such a head, the body's names are written with
    the first prefix. copies: names under which some files hold the token table once more.
    """

    rules: tuple[Rule, ...]
    ignorable: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()

    def steps(self, spec: TextSpec) -> Iterator[BoundRule]:
        """Every rule for every layer and expert of this spec; also those of parameters that its model does not have."""
        experts = spec.experts.count if spec.experts is not None else 0
        counts = {"{i}": spec.deepest, "{e}": experts, "{m}": spec.prediction_modules}
        for rule in self.rules:
            sides = "".join(rule.ours), "".join(rule.theirs)
            shared_indices = [index for index in counts if index in sides[0] and index in sides[1]]
            for numbers in product(*(range(counts[index]) for index in shared_indices)):
                numbering = dict(zip(shared_indices, numbers, strict=True))
                behind = numbering | {"{m}": numbering["{m}"] + spec.deepest} if "{m}" in numbering else numbering
                ours, theirs = (
                    tuple(name for template in side for name in _numbered(template, numbered, counts))
                    for side, numbered in ((rule.ours, numbering), (rule.theirs, behind))
                )
                yield BoundRule(ours, theirs, rule)

    def bare(self, name: str) -> str:
        """The other format's name as the rules have it: without a prefix that it may have, or with the one that files
        of a body without a head leave out (Qwen3-Embedding, bart-base)."""
        bare_name = next((name.removeprefix(prefix) for prefix in self.prefixes if name.startswith(prefix)), name)
        return (
            bare_name
            if self._name_pattern.fullmatch(bare_name) or not self._name_pattern.fullmatch(BODY + bare_name)
            else BODY + bare_name
        )

    @cached_property
    def _name_pattern(self) -> re.Pattern[str]:
        """Every name that the rules or the copies have."""
        names = {*(theirs for rule in self.rules for theirs in rule.theirs), *self.copies}
        numbers = re.compile(r"\\\{[iem]\\\}")
        return re.compile("|".join(numbers.sub(r"\\d+", re.escape(name)) for name in sorted(names)))

    def written(self, name: str, spec: TextSpec) -> str:
        """The name as a checkpoint of this spec has it, from the bare one."""
        headless = spec.classifier is None and spec.masked_head is None
        unprefixed = headless or not self.heads or name.startswith(self.heads)
        return name if unprefixed else self.prefixes[0] + name

    def to_external(self, name: str) -> str | None:
        """Bedplate's name → the other format's, or None where no tensor of theirs holds just this parameter."""
        return _translated(name, self._pairs)

    def from_external(self, name: str, candidates: Collection[str] | None = None) -> str | None:
        """The inverse of `to_external`; where several parameters stand for the tensor, the first among `candidates`. A
        known prefix may be present or not."""
        return _translated(self.bare(name), [(theirs, ours) for ours, theirs in self._pairs], candidates)

    def holder(self, name: str) -> str | None:
        """The other format's tensor that holds this parameter, alone or together with others; None where there is none,
        or several hold it."""
        return self.to_external(name) or _translated(name, self._groups)

    def is_group(self, name: str) -> bool:
        """Whether the other format's tensor holds several parameters."""
        return any(_pattern(theirs).fullmatch(name) is not None for _, theirs in self._groups)

    def is_turned(self, name: str) -> bool:
        """Whether the other format's tensor is multiplied by from the other side."""
        return any(rule.turned and _pattern(rule.theirs[0]).fullmatch(name) is not None for rule in self.rules)

    def is_ignorable(self, name: str) -> bool:
        """Whether the other format's tensor holds nothing that the model uses (derived tables, unused parts)."""
        return any(re.fullmatch(pattern, candidate) for pattern in self.ignorable for candidate in (name, BODY + name))

    @cached_property
    def _groups(self) -> list[tuple[str, str]]:
        """Names of ours, each with that of theirs that holds it together with others."""
        shared = ((ours, r.theirs[0]) for r in self.rules if len(r.theirs) == 1 < len(r.ours) for ours in r.ours)
        return [(a, b) for a, b in shared if all((index in a) == (index in b) for index in ("{i}", "{e}"))]

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        """Names of ours and theirs that stand for each other alone."""
        pairs = ((r.ours[0], r.theirs[0]) for r in self.rules if len(r.ours) == len(r.theirs) == 1)
        return [(a, b) for a, b in pairs if all((index in a) == (index in b) for index in ("{i}", "{e}"))]


def _numbered(name: str, numbers: dict[str, int], counts: dict[str, int]) -> Iterator[str]:
    """The name with the given numbers, once for each number of an index that is not given."""
    for index, number in numbers.items():
        name = name.replace(index, str(number))
    open_ = next((index for index in counts if index in name), None)
    if open_ is None:
        yield name
        return
    for number in range(counts[open_]):
        yield from _numbered(name, {open_: number}, counts)


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{e\}", r"(?P<e>\d+)"))


def _translated(name: str, table: Sequence[tuple[str, str]], candidates: Collection[str] | None = None) -> str | None:
    matches = ((_pattern(source).fullmatch(name), target) for source, target in table)
    names = (template.format(**match.groupdict()) for match, template in matches if match is not None)
    return next((candidate for candidate in names if candidates is None or candidate in candidates), None)


# Rules and changes that families share


PARTS = ("weight", "bias")
LAYER = "layers.{i}."


def renamed(ours: str, theirs: str) -> Rule:
    return Rule((ours,), (theirs,))


def renames(*pairs: tuple[str, str], ours: str = "", theirs: str = "", parts: Sequence[str] = PARTS) -> Iterable[Rule]:
    """Weights and biases of modules under other names, each pair behind `ours` and `theirs`; parameters that a model
    does not have are passed over."""
    return (renamed(f"{ours}{a}.{part}", f"{theirs}{b}.{part}") for a, b in pairs for part in parts)


def fused(ours: tuple[str, ...], theirs: str, sizes: Sizes) -> Rule:
    """Parameters of ours that stand in one tensor below each other, of so many rows each."""

    def split(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        rows, (whole,) = list(sizes(spec)), tensors
        if sum(rows) != len(whole):
            raise CheckpointError(f"a tensor of {len(whole)} rows cannot be cut into {rows}")
        # Copies, because views would keep all of it for as long as one is used.
        return [part.clone() for part in whole.split(rows)]

    return Rule(ours, (theirs,), join, split, rows=True)


def qkv_rows(spec: TransformerSpec) -> tuple[int, int, int]:
    """Rows of queries, keys and values that are one tensor."""
    keys = spec.attention.kv_heads * spec.attention.head_dim
    return spec.attention.heads * spec.attention.head_dim, keys, keys


def halves(spec: TransformerSpec) -> tuple[int, int]:
    """Rows of a feed-forward's gate and its other product that are one tensor."""
    return spec.feedforward.size, spec.feedforward.size


def fused_heads(ours: tuple[str, ...], theirs: str, heads: Heads) -> Rule:
    """Projections of as many heads each, that stand in one tensor head by head: the first's rows of head 0, the
    second's of head 0, …, the first's of head 1 (GPT-NeoX)."""

    def forward(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        [whole], head_count = join(tensors, spec), heads(spec)
        return [whole.reshape(len(tensors), head_count, -1, *whole.shape[1:]).transpose(0, 1).reshape(whole.shape)]

    def inverse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        (whole,), head_count, parts = tensors, heads(spec), len(ours)
        if len(whole) % (head_count * parts):
            raise CheckpointError(f"a tensor of {len(whole)} rows cannot be {parts} projections of {head_count} heads")
        split = whole.reshape(head_count, parts, -1, *whole.shape[1:]).transpose(0, 1)
        return [part.reshape(-1, *whole.shape[1:]).clone() for part in split]

    return Rule(ours, (theirs,), forward, inverse, rows=True)


def turned(rule: Rule) -> Rule:
    """The same, in a matrix that they multiply by from the other side."""

    def forward(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return transpose(rule.forward(tensors, spec), spec)

    def inverse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return rule.inverse(transpose(tensors, spec), spec)

    return Rule(rule.ours, rule.theirs, forward, inverse, turned=True)


def transposed(ours: str, theirs: str) -> Rule:
    """A matrix that they multiply by from the other side."""
    return Rule((ours,), (theirs,), transpose, transpose, turned=True)


def interleaved(ours: str, theirs: str, heads: Heads) -> Rule:
    """Rows of a query or key projection: rotary pairs (2i, 2i+1) of a head in theirs, (i, i + D/2) in ours."""

    def forward(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [_turned(tensor, heads(spec), (2, -1)) for tensor in tensors]

    def inverse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [_turned(tensor, heads(spec), (-1, 2)) for tensor in tensors]

    return Rule((ours,), (theirs,), forward, inverse, rows=True)


def join(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """Several tensors below each other, as one."""
    need_alike(tensors, 1)
    whole = tensors[0].new_empty((sum(len(tensor) for tensor in tensors), *tensors[0].shape[1:]))
    begin = 0
    for part in tensors:
        whole[begin : begin + len(part)] = part
        begin += len(part)
    return [whole]


def need_alike(tensors: Tensors, begin: int = 0) -> None:
    """CheckpointError where tensors that are to be one differ in a size, from dimension `begin` on: an assignment would
    spread the smaller one over the larger one's place."""
    if len({tensor.shape[begin:] for tensor in tensors}) > 1:
        raise CheckpointError("they are of different sizes")


def stack(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """Tensors of one shape as one, with their number as its first dimension."""
    return [tensor.view(len(tensors), *tensors[0].shape) for tensor in join(tensors, spec)]


def unstack(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """The inverse of `stack`."""
    return [tensor.clone() for tensor in tensors[0]]


def transpose(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """Each with its last two dimensions exchanged."""
    return [tensor.transpose(-1, -2).contiguous() for tensor in tensors]


def _turned(tensor: Any, heads: int, pairs: tuple[int, int]) -> Any:
    if len(tensor) % (2 * heads):
        raise CheckpointError(f"a projection of {len(tensor)} rows cannot be {heads} heads of rotary pairs")
    return tensor.reshape(heads, *pairs, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
