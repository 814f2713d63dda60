"""Whether a skin belongs on a base, as that base is held: checked before it answers anything."""

from __future__ import annotations

from bedplate.adapters.lora import match_targets
from bedplate.adapters.modules import adaptable, check_tensors, hf_module_name
from bedplate.core.errors import SkinError
from bedplate.models.checkpoints.base import Base
from bedplate.models.precision import DTYPES, dtype_name
from bedplate.models.specs import TextSpec
from bedplate.skins.files import family_of
from bedplate.skins.prompt import Format
from bedplate.skins.skin import BaseReference, EvaluatedWith, Skin

_UNPROVEN = "its measured quality may not hold. Load the base"


def verify_skin(
    skin: Skin,
    base: Base,
    *,
    embedder: bool = False,
    weights: str | None = None,
    kernel: str | None = None,
    weights_version: int = 1,
    allow_other_weights: bool = False,
) -> list[str]:
    """Check that a skin belongs on this base, running with these weights. SkinError says what differs.

    embedder: `base` is the second one, which embedded the skin's pool. `weights` is how the base's weights are held
    (default: its dtype's name), `kernel` what computes with them, `weights_version` how often they were loaded or
    updated. Other ones than the skin was judged with are an error, or with `allow_other_weights` a warning in the
    returned list.
    """
    mine, judged, prompt_format = skin.embedder, skin.embedded_with, "plain"
    if not embedder or mine is None:
        mine, judged, prompt_format = skin.base, skin.evaluated_with, skin.prompt.format
    check_base(skin.name, mine, prompt_format, base)
    check_parts = _check_pool if embedder else _check_parts
    check_parts(skin, base)
    dtype, warnings = dtype_name(base.dtype), list[str]()
    if weights_version > 1:
        warnings.append(f"the weights of the base of skin {skin.name!r} were updated after loading")
        if not allow_other_weights:
            raise SkinError(f"{warnings[0]}: {_UNPROVEN} again, or allow other weights explicitly")
    return warnings + check_judged(skin.name, judged, weights or dtype, kernel, allow_other_weights, dtype)


def check_base(name: str, mine: BaseReference, prompt_format: Format, base: Base) -> None:
    """SkinError unless the skin `name` was made for these weights, this tokenizer, and (for a chat) this template."""
    its = base.identity
    if not mine.has_weights_of(its):
        message = f"skin {name!r} belongs to the base {mine.name} (weights {mine.weights_id[:12]}…),"
        raise SkinError(f"{message} this base has the weights {its.weights_id[:12]}…; load the skin's own base")
    if mine.tokenizer_id != its.tokenizer_id:
        message = f"skin {name!r} was made with the tokenizer {mine.tokenizer_id[:12]}…,"
        raise SkinError(f"{message} this base has {its.tokenizer_id[:12]}…; the same text would become other tokens")
    if prompt_format == "chat" and mine.template_id != its.template_id:
        message = f"skin {name!r} was made with the chat template {mine.template_id[:12]}…,"
        raise SkinError(f"{message} this base has {its.template_id[:12]}…; restore the base's own template")


def check_judged(
    name: str,
    judged: EvaluatedWith | None,
    weights: str,
    kernel: str | None,
    allow_other_weights: bool,
    dtype: str | None = None,
) -> list[str]:
    """What differs between how a skin was judged and how it would run: SkinError, or where allowed, warnings. dtype: of
    the base beneath, which counts where its weights are quantised."""
    if judged is None:
        return []
    differences: list[str] = []
    if judged.weights != weights:
        differences.append(f"skin {name!r} was judged with {judged.weights} weights and would run with {weights}")
    elif weights not in DTYPES and dtype is not None and dtype != (judged.dtype or "bfloat16"):
        beneath = judged.dtype or "bfloat16"
        differences.append(f"skin {name!r} was judged with {weights} made from {beneath}, and this base is {dtype}")
    if kernel is not None and judged.kernel != kernel:
        differences.append(f"skin {name!r} was judged with the {judged.kernel} kernel and would run with {kernel}")
    if differences and not allow_other_weights:
        raise SkinError(
            f"{'; '.join(differences)}: {_UNPROVEN} as it was judged "
            f"(weights {judged.weights}, kernel {judged.kernel}"
            f"{'' if judged.dtype is None else f', dtype {judged.dtype}'}), which a server does that starts with the "
            "skin in its skins directory, or allow other weights explicitly"
        )
    return differences


def _check_parts(skin: Skin, base: Base) -> None:
    spec = base.spec
    if spec.kind == "encoder" and set(skin.parts) - {"lora"} not in ({"probe"}, {"embed"}):
        raise SkinError(f"skin {skin.name!r} of kind {skin.kind!r} needs a decoder; this base is an encoder")
    if skin.lora is not None:
        weights = family_of(skin.base.family).of(spec).weights
        modules = adaptable(base.model)
        paths = match_targets(skin.lora.config.targets, modules, lambda path: hf_module_name(weights, path))
        check_tensors(skin.lora.config, {path: modules[path] for path in paths}, skin.lora.tensors)
    if skin.soft_prompt is not None:
        if skin.soft_prompt.size != spec.hidden_size:
            raise _sizes(skin.name, f"vectors of size {skin.soft_prompt.size}", spec.hidden_size)
        if len(skin.soft_prompt) >= spec.context_length:
            raise SkinError(
                f"skin {skin.name!r} puts {len(skin.soft_prompt)} vectors before its prompt, which fill the base's "
                f"context of {spec.context_length}"
            )
    if skin.probe is not None:
        _check_depth(skin.name, int(skin.probe.layer.rsplit(".", 1)[1]), spec)
        if skin.probe.head.weight.shape[1] != spec.hidden_size:
            raise _sizes(skin.name, f"a head for features of size {skin.probe.head.weight.shape[1]}", spec.hidden_size)
    if skin.embedder is None:
        _check_pool(skin, base)
    embedding = skin.output.as_embedding
    if embedding is not None:
        _check_depth(skin.name, embedding.depth or 0, spec)
        size = embedding.full_size(base.embedding_size, spec.hidden_size)
        if (embedding.dimensions or 0) > size:
            raise _sizes(skin.name, f"embeddings of {embedding.dimensions} dimensions", size)


def _check_pool(skin: Skin, base: Base) -> None:
    pool = skin.index
    if pool is None:
        return
    _check_depth(skin.name, pool.depth or 0, base.spec)
    size = base.embedding_size if pool.pooling == "own" else base.spec.hidden_size
    own_size = pool.vectors.shape[1]
    if own_size != size:
        raise _sizes(skin.name, f"an index of vectors of size {own_size}", size)


def _check_depth(name: str, depth: int, spec: TextSpec) -> None:
    if depth > spec.layers:
        raise SkinError(f"skin {name!r} reads layers.{depth}, the base has {spec.layers} layers")


def _sizes(name: str, description: str, size: int) -> SkinError:
    return SkinError(f"skin {name!r} has {description}, the base's features have size {size}")
