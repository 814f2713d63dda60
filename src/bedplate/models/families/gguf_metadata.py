"""What the metadata of GGUF files shares from one architecture to the next: sizes, norms, rotary positions.

The keys are llama.cpp's (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), here without the architecture that
they begin with. The reader adds three of its own: `tensor_names`, `embedding_rows` and `tables`, the values of the
small tensors that say how positions turn; a reader of headers alone has no tables.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.decoders import shortest
from bedplate.models.families.field_map import Field, Values, converted
from bedplate.models.families.fields import Fields, shown
from bedplate.models.specs.position import LinearScaling, Llama3Scaling, Scaling, YarnScaling, yarn_scale
from bedplate.models.specs.transformer import LongRopeScaling, Rope, TransformerSpec

FREQUENCIES, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
TABLES = (FREQUENCIES, SHORT, LONG)
POOLING = "pooling_type"
"""How vectors are made of a text's states: nothing that a spec says."""
_CLOSE = 1e-5
"""How far a table may be from what a scaling makes: it is stored in single precision."""


class Metadata(Fields):
    """An architecture's own keys, without its name. names: of the file's tensors; token_rows: of its token table;
    tables: by name, None where only a header was read."""

    def __init__(self, config: Mapping[str, Any], architecture: str) -> None:
        begin = f"{architecture}."
        keys = {key.removeprefix(begin): value for key, value in config.items() if key.startswith(begin)}
        keys.pop(POOLING, None)
        super().__init__(keys, f"GGUF metadata ({architecture})")
        self.names: Collection[str] = config.get("tensor_names", ())
        self.token_rows = int(config.get("embedding_rows", 0))
        self.tables: Mapping[str, Sequence[float]] | None = config.get("tables")

    def per_layer(self, name: str, layers: int) -> Sequence[int]:
        """What each layer has: a list, or one number for all. The first stays for whoever reads the key as one."""
        value = self._unread.get(name, 0)
        sizes = value if isinstance(value, list | tuple) else [value] * layers
        self._unread[name] = sizes[0]
        return sizes


def named(architecture: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keys as a file has them; those without a value are left out."""
    return {f"{architecture}.{key}": value for key, value in fields.items() if value is not None}


def take_sizes(fields: Metadata, values: Values, layers: int | None = None) -> dict[str, Any]:
    """The fields of a spec that are sizes, its tied head, and the norms' epsilon. layers: if they were read before."""
    heads, hidden = uniform(fields, "attention.head_count"), fields.size("embedding_length")
    head_dim = fields.whole("attention.key_length") or hidden // heads
    fields.only("attention.value_length", head_dim)
    fields.ignore(("vocab_size",))  # written by some converters; it repeats the number of token rows
    kv_heads = fields.pop("attention.head_count_kv")
    return {
        "kind": "decoder",
        "vocab_size": fields.token_rows,
        "hidden_size": hidden,
        "layers": fields.layers("block_count") if layers is None else layers,
        "heads": heads,
        "kv_heads": _uniform_number(kv_heads, "attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "feedforward_size": uniform(fields, "feed_forward_length"),
        "context_length": fields.size("context_length"),
        "tied_head": "output.weight" not in fields.names,
        "norm_eps": decimal(fields.real("attention.layer_norm_rms_epsilon", 1e-6)),
    }


def size_fields(flat: Values, spec: TransformerSpec) -> dict[str, Any]:
    """The inverse of `take_sizes`."""
    return {
        "vocab_size": flat["vocab_size"],
        "context_length": flat["context_length"],
        "embedding_length": flat["hidden_size"],
        "block_count": flat["layers"],
        "feed_forward_length": flat["feedforward_size"],
        "attention.head_count": flat["heads"],
        "attention.head_count_kv": flat["kv_heads"],
        "attention.key_length": flat["head_dim"],
        "attention.value_length": flat["head_dim"],
        "attention.layer_norm_rms_epsilon": flat["norm_eps"],
    }


SIZES = Field(take_sizes, size_fields)


def _read_biases(fields: Metadata, values: Values) -> Values:
    queries, outputs = "blk.0.attn_q.bias" in fields.names, "blk.0.attn_output.bias" in fields.names
    return {
        "attention_bias": queries,
        "output_bias": None if outputs == queries else outputs,
        "feedforward_bias": "blk.0.ffn_up.bias" in fields.names,
    }


BIASES = Field(_read_biases)
"""Which projections have biases, which only the names of tensors say."""


def uniform(fields: Fields, name: str) -> int:
    """A number that a file may give for each layer: only one and the same for all is supported."""
    return _uniform_number(fields.need(name), name)


def _uniform_number(value: Any, name: str) -> int:
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            raise UnsupportedModelError(f"{name} differs from layer to layer ({shown(value)}), which is not supported")
        value = value[0]
    return Fields({name: value}, "GGUF metadata").whole(name) or 0


def decimal(value: float) -> float:
    """A decimal number that went through single precision."""
    return float(f"{value:.7g}")


def number(name: str, ours: str, default: float | None = None) -> Field:
    """A decimal number; default: where there is none, or it is 0."""

    def read(fields: Fields, name: str, values: Values) -> float | None:
        value = fields.real(name) or default
        return None if value is None else decimal(value)

    return converted(name, ours, read)


# --- windows


def windows(pattern: int, size: int | None = None) -> Field:
    """The window of each layer. pattern: of so many layers the last sees everything, where the file does not say which;
    size: of the window, where the file does not say."""

    def read(fields: Metadata, values: Values) -> Values:
        return {"windows": take_windows(fields, values["layers"], pattern, size)}

    return Field(read, lambda flat, spec: window_fields(spec, pattern))


def take_windows(fields: Fields, layers: int, pattern: int, size: int | None = None) -> tuple[int | None, ...]:
    window = fields.whole("attention.sliding_window") or size or 0
    layer_pattern: Any = fields.pop("attention.sliding_window_pattern", pattern)
    if not window:
        return ()
    slides = layer_pattern
    if not isinstance(slides, list | tuple):
        slides = [layer % layer_pattern < layer_pattern - 1 for layer in range(layers)]
    if len(slides) != layers:
        raise UnsupportedModelError(f"attention.sliding_window_pattern is of {len(slides)} layers, not {layers}")
    return shortest([window if slides[layer] else None for layer in range(layers)], None)


def window_fields(spec: TransformerSpec, pattern: int) -> dict[str, Any]:
    """The inverse: the size, and which layers have it where that is not the architecture's own pattern."""
    windows = [spec.window(layer) for layer in range(spec.layers)]
    sizes = {window for window in windows if window is not None}
    if len(sizes) > 1:
        raise UnsupportedModelError(f"windows of {sorted(sizes)} tokens: GGUF can say only one size")
    if not sizes:
        return {"attention.sliding_window": None}
    default_slides = [layer % pattern < pattern - 1 for layer in range(spec.layers)]
    slides = [window is not None for window in windows]
    return {
        "attention.sliding_window": next(iter(sizes)),
        "attention.sliding_window_pattern": None if slides == default_slides else slides,
    }


# --- rotary positions


def rope(*, is_extended: bool = False) -> Field:
    """The rope of a model. is_extended: the context is that after LongRoPE has extended it."""

    def read(fields: Metadata, values: Values) -> Values:
        longest = values["context_length"] if is_extended else None
        return {"rope": take_rope(fields, values["head_dim"], fields.tables, longest)}

    return Field(read, rope_fields)


def take_rope(
    fields: Metadata, head_dim: int, stored: Mapping[str, Sequence[float]] | None, longest: int | None = None
) -> Rope:
    """The rope of a model. stored: its tables, read back as the scaling that they were made from; longest: the context
    after LongRoPE has extended it."""
    base, original = decimal(fields.real("rope.freq_base", 10_000.0)), "rope.scaling.original_context_length"
    turned = fields.whole("rope.dimension_count") or head_dim
    tables, scaling_type = stored or {}, fields.text("rope.scaling.type", "none")
    before, factor = fields.whole(original), fields.real("rope.scaling.factor") or 1.0
    fields.ignore(("rope.scaling.finetuned",))  # how it was trained
    if (SHORT in tables) != (LONG in tables):
        raise UnsupportedModelError(f"of the tensors {SHORT} and {LONG} there is only one; they belong together")
    if not before and (SHORT in tables or (scaling_type == "yarn" and FREQUENCIES not in tables)):
        before = fields.size(original)  # which says that it is missing
    scaling: Scaling | None = None
    if before and SHORT in tables:
        attention = fields.pop("rope.scaling.attn_factor")
        scaling = _longrope(tables, before, (longest or before) / before, attention)
    elif FREQUENCIES in tables:
        scaling = scaling_of(tables[FREQUENCIES], base, turned)
    elif before and scaling_type == "yarn":
        _check_repeated(fields, yarn_scale(factor))
        fast, slow = (fields.pop(f"rope.scaling.yarn_beta_{name}") for name in ("fast", "slow"))
        scaling = YarnScaling(factor, before, decimal(fast or 32.0), decimal(slow or 1.0))
    else:
        # Of LongRoPE a header alone says nothing.
        known = ("none", "linear", "yarn", *(("longrope",) if stored is None else ()))
        Fields({"rope.scaling.type": scaling_type}, "GGUF metadata").only("rope.scaling.type", *known)
        scaling = LinearScaling(factor) if scaling_type == "linear" and factor != 1.0 else None
    return Rope(base, scaling, turned / head_dim)


def _check_repeated(fields: Fields, usual: float) -> None:
    """Converters write YaRN's own factors once more (Olmo 3's), where a config does."""
    for name, value in (("attn_factor", usual), ("yarn_attn_factor", usual), ("yarn_ext_factor", 1.0)):
        stored_factor = fields.pop(f"rope.scaling.{name}")
        if stored_factor is not None and not math.isclose(stored_factor, value, rel_tol=_CLOSE):
            raise UnsupportedModelError(f"rope.scaling.{name} = {stored_factor:g} is not supported (only {value:g})")


def _longrope(
    tables: Mapping[str, Sequence[float]], original: int, factor: float, attention: float | None
) -> LongRopeScaling:
    short, long = (tuple(map(decimal, tables[name])) for name in (SHORT, LONG))
    scaling = LongRopeScaling(short, long, original, factor)
    if attention is None or math.isclose(attention, scaling.applied_factor, rel_tol=_CLOSE):
        return scaling
    return replace(scaling, attention_factor=decimal(attention))


def rope_fields(flat: Values, spec: TransformerSpec) -> dict[str, Any]:
    """The inverse of `take_rope`, without the tables."""
    rope = flat["rope"] or Rope()
    metadata: dict[str, Any] = {"rope.dimension_count": spec.rotary_dim, "rope.freq_base": rope.theta}
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    elif isinstance(scaling, YarnScaling):
        metadata |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": scaling.factor,
            "rope.scaling.original_context_length": scaling.original_context,
            "rope.scaling.yarn_beta_fast": scaling.beta_fast,
            "rope.scaling.yarn_beta_slow": scaling.beta_slow,
        }
    elif isinstance(scaling, LongRopeScaling):
        metadata |= {
            "rope.scaling.original_context_length": scaling.original_context,
            "rope.scaling.attn_factor": scaling.applied_factor,
        }
    return metadata


def rope_tables(spec: TransformerSpec) -> dict[str, list[float]]:
    """The tensors that say how positions turn, where metadata cannot."""
    scaling = None if spec.position.rope is None else spec.position.rope.scaling
    if spec.position.rope is not None and isinstance(scaling, Llama3Scaling):
        return {FREQUENCIES: llama3_factors(scaling, spec.position.rope.theta, spec.rotary_dim)}
    if isinstance(scaling, LongRopeScaling):
        return {SHORT: list(scaling.short), LONG: list(scaling.long)}
    return {}


def divisors_of(spec: TransformerSpec) -> list[float] | None:
    """What each pair's frequency is divided by, where that is the same at every position."""
    scaling = None if spec.position.rope is None else spec.position.rope.scaling
    if isinstance(scaling, LongRopeScaling) and scaling.is_uniform and scaling.attention_factor == 1.0:
        return list(scaling.short)
    return rope_tables(spec).get(FREQUENCIES)


def llama3_factors(scaling: Llama3Scaling, theta: float, turned: int) -> list[float]:
    """What each pair's frequency is divided by in Llama-3's scaling (https://arxiv.org/abs/2407.21783)."""
    divisors: list[float] = []
    for turns in _turns(theta, turned):
        smooth = (scaling.original_context * turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        divisors.append(1 / ((1 - min(max(smooth, 0), 1)) / scaling.factor + min(max(smooth, 0), 1)))
    return divisors


def scaling_of(factors: Sequence[float], theta: float, turned: int) -> Scaling:
    """The scaling that makes these factors: Llama-3's, up to a common multiple of its lengths (its low_freq_factor is
    taken to be 1, as in every published model), or else the factors themselves, as LongRoPE says them."""
    highest = max(factors)
    # Between its two bounds, Llama-3's blend of 1 and `highest` is a line over the pair's turns per token.
    blended = [
        (turns, (1 / factor - 1 / highest) / (1 - 1 / highest))
        for turns, factor in zip(_turns(theta, turned), factors, strict=True)
        if 1 + _CLOSE < factor < highest * (1 - _CLOSE)
    ]
    if len(blended) > 1:
        (first, top), (last, bottom) = blended[0], blended[-1]
        slope = (top - bottom) / (first - last)
        low = last - bottom / slope if slope > 0 else 0.0
        context = round(1 / low) if low > 0 else 0
        if context:
            scaling = Llama3Scaling(_short(highest), 1.0, _short((low + 1 / slope) / low), context)
            divisors = llama3_factors(scaling, theta, turned)
            if all(
                math.isclose(divisor, expected_factor, rel_tol=_CLOSE)
                for divisor, expected_factor in zip(divisors, factors, strict=True)
            ):
                return scaling
    exact = tuple(map(decimal, factors))
    return LongRopeScaling(exact, exact, original_context=1, attention_factor=1.0)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _turns(theta: float, turned: int) -> list[float]:
    """Turns per token of each pair of features."""
    return [theta ** (-2 * pair / turned) / (2 * math.pi) for pair in range(turned // 2)]
