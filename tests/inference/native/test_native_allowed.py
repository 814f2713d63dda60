"""Every field of a spec is known to the kernel or refused by its name, and one that specs do not have yet as well."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

import pytest
import torch
from tests.inference.native.native_specs import encoder_of, spec_of

from bedplate.inference.native.allowed import ALLOWED, refused_field
from bedplate.inference.native.packed_weights import unsupported
from bedplate.models.specs.flat import flat_defaults
from bedplate.models.specs.parts import LatentAttention, SharedKeys, ShortConvolution
from bedplate.models.specs.position import LinearScaling, Llama3Scaling, RelativeBias, YarnScaling
from bedplate.models.specs.transformer import (
    Classifier,
    Experts,
    FullAttention,
    LongRopeScaling,
    MaskedHead,
    Rope,
    Scales,
    TransformerSpec,
)

LATENT = LatentAttention(kv_rank=16, nope_dim=8, rope_dim=8, value_dim=8)

GROWING = YarnScaling(4.0, 128, query_growth=0.1)
LONG = LongRopeScaling((1.0,) * 16, (2.0,) * 16, 128)

REFUSED: dict[str, tuple[Any, ...]] = {
    "rope": (Rope(scaling=LONG), Rope(scaling=GROWING)),
    "local_rope": (Rope(scaling=LONG),),
    "activation": ("clamped_silu",),
    "token_types": (2,),
    "position_offset": (2,),
    "relative_bias": (RelativeBias(),),
    "relative_projection": (True,),
    "latent": (LATENT,),
    "cross_size": (48,),
    "value_tables": (1,),
    "attention_gate": (True,),
    "state": (ShortConvolution(),),
    "state_layers": ((True, False),),
    "sinusoids": (True,),
    "head_bias": (True,),
}
"""Values of each field that the kernel does not run."""
ACCEPTED: dict[str, tuple[Any, ...]] = {
    "vocab_size": (7, 1000),
    "hidden_size": (64, 256),
    "layers": (1, 9),
    "heads": (2, 8),
    "kv_heads": (1, 6),
    "head_dim": (16, 64),
    "feedforward_size": (32, 320),
    "context_length": (1, 4096),
    "kind": ("encoder",),
    "norm": ("layer",),
    "norm_eps": (1e-6, 1e-3),
    "norm_placement": ("sandwich", "branch", "post"),
    "rope": (
        *(None, Rope(5e5), Rope(fraction=0.5), Rope(interleaved=True), Rope(1e4, LinearScaling(2.0))),
        *(Rope(1e4, Llama3Scaling(8.0, 1.0, 4.0, 64)), Rope(1e4, YarnScaling(4.0, 128))),
        Rope(fraction=0.25, proportional=True),
    ),
    "local_rope": (Rope(1e6),),
    "activation": ("gelu", "gelu_tanh", "relu", "relu2", "quick_gelu"),
    "gated": (False,),
    "attention_bias": (True,),
    "feedforward_bias": (True,),
    "tied_head": (False,),
    "pooling": ("first", "last"),
    "pooler": (True,),
    "classifier": (Classifier(("a", "b")),),
    "masked_head": (MaskedHead(),),
    "norm_bias": (False,),
    "norm_weight": (False,),
    "norm_offset": (1.0,),
    "position_rows": (0, 100),
    "windows": ((64,), (64, None), (None, None)),
    "rope_layers": ((True, False),),
    "key_bias": (False, True),
    "output_bias": (False, True),
    "qk_norm": ("head", "projection"),
    "embedding_norm": (False, True),
    "final_norm": (False, True),
    "first_norm": (False,),
    "parallel": (True,),
    "experts": (
        Experts(4, 2, 32),
        Experts(4, 2, 32, beside=True, router_scales=True),
        Experts(8, 2, 32, 64, 1, 1, True, True, True, True, "sigmoid", False, 2.0, 2, 1),
    ),
    "attention_sinks": (True,),
    "full": (FullAttention(head_dim=32), FullAttention(kv_heads=1, keys_are_values=True)),
    "shared_keys": (SharedKeys(1), SharedKeys(1, 320)),
    "value_norm": (True,),
    "output_scales": (True,),
    "layer_input_size": (32,),
    "prediction_modules": (1,),
    "scales": (Scales(), Scales(4.0, 0.1, 50.0, 30.0, 0.5, 0.2)),
}
"""Values that it does run, beside the defaults."""


def changed(field: str, value: Any) -> TransformerSpec:
    changes: dict[str, Any] = {"kv_heads": 6, "head_dim": 16} if field == "latent" else {}
    changes |= {"state": ShortConvolution()} if field == "state_layers" else {}
    return spec_of(**changes, **{field: value})


def test_every_field_is_in_the_list_and_here() -> None:
    names = set(spec_of().flat())
    assert names == set(ALLOWED) == set(REFUSED) | set(ACCEPTED)
    literal = {"kind", "norm", "norm_placement", "activation", "pooling", "qk_norm"}
    assert {name: set(REFUSED.get(name, ())) | set(ACCEPTED.get(name, ())) for name in literal} == {
        "kind": {"encoder"},  # a tower has no vocabulary, and is refused as one
        "norm": {"layer"},
        "norm_placement": {"post", "sandwich", "branch"},
        "activation": {"gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "clamped_silu"},
        "pooling": {"first", "last"},
        "qk_norm": {"head", "projection"},
    }
    for name, default in flat_defaults(TransformerSpec).items():
        if isinstance(default, bool):
            assert (not default,) in (REFUSED.get(name), ACCEPTED.get(name)), name


@pytest.mark.parametrize(("field", "value"), [(f, value) for f, values in REFUSED.items() for value in values])
def test_what_the_kernel_does_not_do_is_refused_by_name(field: str, value: Any) -> None:
    spec = changed(field, value)
    assert refused_field(spec) == field
    reason = unsupported(spec, torch.float32, torch.device("cpu"))
    assert reason is not None
    assert f"{field} = {value!r}" in reason


@pytest.mark.parametrize(("field", "value"), [(f, value) for f, values in ACCEPTED.items() for value in values])
def test_what_the_kernel_does_is_taken(field: str, value: Any) -> None:
    assert refused_field(changed(field, value)) is None


@dataclass(frozen=True)
class Wider(Experts):
    width: int = 1


def test_what_depends_on_other_fields() -> None:
    assert refused_field(spec_of(parallel=True, norm_placement="sandwich")) == "parallel"
    assert refused_field(spec_of(parallel=True, experts=Experts(4, 2, 32))) == "parallel"
    assert refused_field(spec_of(activation="clamped_silu", experts=Experts(4, 2, 32))) is None
    assert refused_field(spec_of(experts=Wider(4, 2, 32))) == "experts"
    assert refused_field(spec_of(norm_placement="branch", experts=Experts(4, 2, 32, beside=True))) == "experts"
    assert refused_field(spec_of(rope=Rope(scaling=LONG), context_length=128)) is None
    assert refused_field(encoder_of(token_types=2, position_offset=2, position_rows=310)) is None
    assert refused_field(encoder_of(scales=Scales())) == "scales"
    assert refused_field(encoder_of(shared_keys=SharedKeys(1))) == "shared_keys"


def test_defaults_are_taken_and_a_tower_is_not() -> None:
    assert refused_field(spec_of()) is None
    assert refused_field(spec_of(kind="tower", vocab_size=0)) == "kind"


def test_a_field_that_specs_do_not_have_yet_is_refused_at_every_value() -> None:
    @dataclass(frozen=True)
    class Later(TransformerSpec):
        residual_gates: bool = False

    for value in (False, True):
        assert refused_field(Later.from_fields(**spec_of().flat(), residual_gates=value)) == "residual_gates"


def test_a_part_that_says_more_than_the_kernel_knows_is_refused() -> None:
    @dataclass(frozen=True)
    class Turned(Rope):
        backwards: bool = False

    @dataclass(frozen=True)
    class Louder(Scales):
        values: float = 1.0

    @dataclass(frozen=True)
    class Stretched(LinearScaling):
        until: int = 0

    assert refused_field(spec_of(rope=Turned())) == "rope"
    assert refused_field(spec_of(rope=Rope(1e4, Stretched(2.0)))) == "rope"
    assert refused_field(spec_of(local_rope=Turned())) == "local_rope"
    assert refused_field(spec_of(scales=Louder())) == "scales"
    assert all(field.default is not MISSING for field in fields(Rope))
