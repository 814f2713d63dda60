"""Families of GGUF's format: the names of tensors, experts, and metadata that is read back as soon as it is written, so
that what an architecture has no key for is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.family import Family
from bedplate.models.families.field_map import Field, FieldMap, Values
from bedplate.models.families.gguf_metadata import TABLES, Metadata, divisors_of, named, rope_tables
from bedplate.models.families.weights import PARTS, Rule, Tensors, WeightMap, interleaved, need_alike, renamed
from bedplate.models.specs import TextSpec
from bedplate.models.specs.transformer import Experts, TransformerSpec

# --- tensors

PRE_NORMS = (("attention_norm", "attn_norm"), ("feedforward_norm", "ffn_norm"))
SANDWICH_NORMS = (
    *PRE_NORMS,
    ("attention_after_norm", "post_attention_norm"),
    ("feedforward_after_norm", "post_ffw_norm"),
)
GATED = tuple((f"feedforward.{name}", f"ffn_{name}") for name in ("gate", "up", "down"))
LAYER = (
    *((f"attention.{name}", f"attn_{name}") for name in "qkv"),
    ("attention.o", "attn_output"),
    ("attention.q_norm", "attn_q_norm"),
    ("attention.k_norm", "attn_k_norm"),
    *GATED,
    ("feedforward.router", "ffn_gate_inp"),
)
"""Our names and theirs of what layers have in most architectures; those that a model does not have are passed over."""


def decoder_weights(
    *pairs: tuple[str, str],
    norms: Sequence[tuple[str, str]] = PRE_NORMS,
    offset: float = 0.0,
    turned: bool = False,
    more: Iterable[Rule] = (),
) -> WeightMap:
    """The weights of a decoder: the tables and the head, of each layer the norms and these pairs of our names and
    theirs, and `more` rules; without pairs those of `LAYER` and experts.

    offset: what norms are stored with beside ours (Gemma: 1). turned: rows of queries and keys are stored for
    interleaved pairs, as llama.cpp's first architectures have them.
    """
    experts = () if pairs else expert_rules()
    layers = ((f"layers.{{i}}.{ours}", f"blk.{{i}}.{theirs}") for ours, theirs in (*(pairs or LAYER), *norms))
    rules = (
        renamed("embedding.weight", "token_embd.weight"),
        *(
            _rule(ours, theirs, part, offset, turned)
            for ours, theirs in (("norm", "output_norm"), *layers)
            for part in PARTS
        ),
        renamed("lm_head.weight", "output.weight"),
    )
    # The tables say what the spec does already.
    return WeightMap((*rules, *experts, *more), tuple(map(re.escape, TABLES)))


def _rule(ours: str, theirs: str, part: str, offset: float, turned: bool) -> Rule:
    ours, theirs, parameter_name = f"{ours}.{part}", f"{theirs}.{part}", ours.rpartition(".")[2]
    if offset and part == "weight" and parameter_name.endswith("norm"):
        return shifted(ours, theirs, offset)
    if turned and parameter_name in ("q", "k"):
        return interleaved(
            ours, theirs, attrgetter("attention.heads" if parameter_name == "q" else "attention.kv_heads")
        )
    return renamed(ours, theirs)


def shifted(ours: str, theirs: str, by: float) -> Rule:
    """A vector that they store with a number added, in single precision."""

    def forward(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [tensor.float() + by for tensor in tensors]

    def inverse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [tensor - by for tensor in tensors]

    return Rule((ours,), (theirs,), forward, inverse)


def expert_rules(prefix: str = "layers.{i}.feedforward.experts") -> tuple[Rule, ...]:
    """All experts' gates in one tensor, their other products in another; ours are one, the gates of each on top."""
    pair = ("blk.{i}.ffn_gate_exps", "blk.{i}.ffn_up_exps")
    return tuple(
        rule
        for part in PARTS
        for rule in (
            Rule((f"{prefix}.gate_up.{part}",), tuple(f"{name}.{part}" for name in pair), _halves, _on_top, rows=True),
            renamed(f"{prefix}.down.{part}", f"blk.{{i}}.ffn_down_exps.{part}"),
        )
    )


def _halves(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    (whole,) = tensors
    return [half.clone() for half in whole.chunk(2, dim=1)]


def _on_top(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    need_alike(tensors)
    gate, up = tensors
    rows = gate.shape[1]
    whole = gate.new_empty((gate.shape[0], 2 * rows, *gate.shape[2:]))
    whole[:, :rows], whole[:, rows:] = gate, up
    return [whole]


LAYER_WEIGHTS = decoder_weights()


# --- experts

WIDTH = "expert_feed_forward_length"


def experts(*, as_dense: bool = False, width: str = WIDTH, **features: Any) -> Field:
    """The experts, where the file has any. as_dense: they are of the feed-forward's size, where the file need not say
    another; width: the key under which their size is written; features: of the spec's part."""

    def read(fields: Metadata, values: Values) -> Values:
        size = values["feedforward_size"] if as_dense else None
        return {"experts": take_experts(fields, size, **features)}

    def write(flat: Values, spec: TransformerSpec) -> Values:
        part = flat["experts"]
        if part is None:
            return {}
        return {"expert_count": part.count, "expert_used_count": part.per_token, width: part.feedforward_size}

    return Field(read, write)


def take_experts(fields: Metadata, size: int | None = None, **features: Any) -> Experts | None:
    """The experts; None where the file has none. size: of one, where the file need not say it; features: of the spec's
    part."""
    count, chosen, width = (fields.whole(name) or 0 for name in ("expert_count", "expert_used_count", WIDTH))
    if not count:
        return None
    return Experts(count, chosen, width or size or fields.size(WIDTH), **features)


# --- families

_SINGLE = 1e-5
"""Relative precision of the numbers in metadata, and of what is computed from them."""


def gguf_family(
    architecture: str,
    rows: Sequence[Field],
    *partners: str,
    weights: WeightMap = LAYER_WEIGHTS,
    needs_head: bool = False,
    tables: Callable[[Any], Mapping[str, Any]] = rope_tables,
    make: Callable[..., Any] = TransformerSpec.from_fields,
    **options: Any,
) -> Family:
    """A family of GGUF's format. rows: of its metadata; partners: its names in Hugging Face's format; needs_head:
    llama.cpp does not load the architecture with a tied head; tables: the tensors that say how positions turn; make:
    the spec of its flat fields."""
    field_map = FieldMap(lambda config: Metadata(config, architecture), tuple(rows), make)

    def to_gguf(spec: TextSpec) -> dict[str, Any]:
        if needs_head and spec.tied_head:
            raise UnsupportedModelError(f"GGUF's {architecture} needs a head of its own; this model's is its embedding")
        metadata = named(architecture, field_map.to_config(spec))
        names, stored_tables = _telling_names(spec), tables(spec)
        stored = {**metadata, "tensor_names": names, "embedding_rows": spec.vocab_size, "tables": stored_tables}
        for (owner, original), read_back in zip(
            _stacks(spec).items(), _stacks(field_map.to_spec(stored)).values(), strict=True
        ):
            for name, value in read_back.flat().items():
                meant = original.flat()[name]
                if not _is_close(value, meant) and not (name == "rope" and _turns_alike(read_back, original)):
                    raise UnsupportedModelError(
                        f"GGUF's {architecture} cannot say that {owner}{name} is {meant!r}: it would be {value!r}. "
                        "Export a Hugging Face directory instead"
                    )
        return metadata

    hf = tuple(("hf", name) for name in partners)
    return Family(("gguf", architecture), field_map.to_spec, to_gguf, weights, hf, tables=tables, **options)


def _stacks(spec: TextSpec) -> dict[str, TransformerSpec]:
    """The stacks of a model, by whose fields a message says that they are."""
    if isinstance(spec, TransformerSpec):
        return {"": spec}
    return {"the encoder's ": spec.stack, "the decoder's ": spec.decoder}


def _turns_alike(first: TransformerSpec, second: TransformerSpec) -> bool:
    """Whether two ropes, one of them of Llama-3's scaling, divide the frequencies by the same numbers."""
    divisors = [divisors_of(spec) for spec in (first, second)]
    ropes = [spec.position.rope for spec in (first, second)]
    equal_theta = len({None if rope is None else rope.theta for rope in ropes}) == 1 and None not in ropes
    return equal_theta and divisors[0] is not None and _is_close(*(tuple(factors or ()) for factors in divisors))


def _telling_names(spec: TextSpec) -> set[str]:
    """The tensors whose presence says what metadata does not."""
    spec = spec.main
    presence = {
        "output.weight": not spec.tied_head,
        "blk.0.attn_q.bias": spec.attention.bias,
        "blk.0.attn_k.bias": spec.has_key_bias,
        "blk.0.attn_output.bias": spec.has_output_bias,
        "dec.blk.0.ffn_gate.weight": spec.feedforward.gated,
        "blk.0.ffn_up.bias": spec.feedforward.bias,
        "blk.0.layer_output_scale.weight": spec.output_scales,
        "blk.0.exp_probs_b.bias": spec.experts is not None and spec.experts.selection_bias,
        **{f"blk.{layer}.attn_v.weight": not spec.keys_are_values(layer) for layer in range(spec.layers)},
    }
    return {name for name, is_there in presence.items() if is_there}


def _is_close(first: Any, second: Any) -> bool:
    """Equal, but for what single precision loses."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=_SINGLE)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_is_close, first, second))
    if is_dataclass(first) and type(first) is type(second):
        return all(_is_close(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    return bool(first == second)
