"""A spec's fields as its hashes have them: those hashes must not change when a spec learns to say more."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Fields of parts that a spec has learned since its hashes were first saved, with what they say by default.
_SCALING = {"attention_factor": None, "truncate": True, "query_growth": 0.0}
_LATER: dict[tuple[str, ...], dict[str, Any]] = {
    ("rope",): {"fraction": 1.0, "interleaved": False, "proportional": False},
    ("rope", "scaling"): _SCALING,
    ("local_rope",): {"interleaved": False, "proportional": False},
    ("local_rope", "scaling"): _SCALING,
    ("scales",): {"residual": 1.0},
    ("experts",): {
        "scoring": "softmax",
        "renormalise": True,
        "scale": 1.0,
        "groups": 1,
        "groups_chosen": 1,
        "beside": False,
        "router_scales": False,
    },
}


def hashed_fields(spec: DataclassInstance, first: str) -> dict[str, Any]:
    """The fields as plain data. Those from `first` on, and parts' fields that came later, are left out where they say
    nothing new."""
    values = asdict(spec)
    names = [field.name for field in fields(spec)]
    for field in fields(spec)[names.index(first) :]:
        if getattr(spec, field.name) == field.default:
            del values[field.name]
    for part, later in _LATER.items():
        inside = values
        for name in part:
            inside = (inside or {}).get(name)
        for name, default in later.items():
            if inside and name in inside and inside[name] == default:
                del inside[name]
    return values
