"""Multimodal checkpoints whose text model is a family of its own: where it lies in them, as data. Free of torch.

Names and defaults are those of transformers' `...ForConditionalGeneration`
(https://huggingface.co/docs/transformers/model_doc/gemma3, gemma4, mistral3, qwen3_5); some files have older spellings.
Of tokens alone the class computes what the text model does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields

_HEAD = "lm_head.weight"
_OUTSIDE = ("quantization_config", "auto_map")
"""What a config says of all its parts, and the text model has to know."""


@dataclass(frozen=True)
class Multimodal:
    """One `model_type` with a text model inside.

    texts: the types that this may have, the first where the files do not say. prefixes: how names of its tensors begin,
    and how they do in a checkpoint of its own; the first that fits is meant. parts: how names of the other tensors
    begin, and what they are called. media: fields of the config that say nothing of text. sizes: what `text_config` may
    leave out. unread: fields of it that the class passes over, unlike the text model's own. tied: whether the head is
    the token table where the config does not say, and the files hold no head.
    """

    name: str
    texts: tuple[str, ...]
    prefixes: tuple[tuple[str, str], ...]
    parts: tuple[tuple[str, str], ...]
    media: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...] = ()
    unread: tuple[str, ...] = ()
    tied: bool = True

    def text_config(self, config: Mapping[str, Any], origin: str) -> dict[str, Any]:
        """The text model's config. UnsupportedModelError, naming it, for a field outside that could change it."""
        fields = Fields(config, f"{origin} ({self.name})")
        inside = fields.need("text_config")
        if not isinstance(inside, Mapping):
            raise CheckpointError(f"{origin}: text_config must be an object, not {inside!r}")
        text: dict[str, Any] = {**dict(self.sizes), **inside}
        text.setdefault("model_type", self.texts[0])
        if text["model_type"] not in self.texts:
            raise UnsupportedModelError(
                f"{origin}: of {self.name} the text model {text['model_type']!r} is not supported (only "
                f"{' or '.join(map(repr, self.texts))})"
            )
        for name in self.unread:
            Fields(inside, f"{origin} ({self.name}, text_config)").only(name, None)
        text |= {name: config[name] for name in _OUTSIDE if config.get(name) is not None}
        # The class ties its own head, whatever the text model's config says.
        text.pop("tie_word_embeddings", None)
        tied = fields.pop("tie_word_embeddings")
        if tied is not None:
            text["tie_word_embeddings"] = tied
        fields.ignore((*HF_BOOKKEEPING, *_OUTSIDE, *self.media))
        fields.finish()
        return text

    def with_head(self, config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        """The text model's config, with whether its head is the token table, where only the tensors' names say it."""
        return {"tie_word_embeddings": self.tied and _HEAD not in names, **config}

    def text_name(self, name: str) -> str | None:
        """A tensor's name in a checkpoint of the text model alone; None for one of another part."""
        matches = ((theirs, alone) for theirs, alone in self.prefixes if name.startswith(theirs))
        return next((alone + name.removeprefix(theirs) for theirs, alone in matches), None)

    def part_of(self, name: str) -> str | None:
        """Which other part a tensor is of; None for one that is of none."""
        return next((part for theirs, part in self.parts if name.startswith(theirs)), None)


def _parts(*names: str, prefixes: tuple[str, ...] = ("model.", "")) -> tuple[tuple[str, str], ...]:
    return tuple((f"{before}{name}.", name) for name in names for before in prefixes)


_LLAVA = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
)
_INSIDE = (("model.language_model.", "model."), ("lm_head.", "lm_head."))
_IMAGES = ("vision_config", "image_token_index", "image_token_id")

MULTIMODAL: dict[str, Multimodal] = {
    "gemma3": Multimodal(
        "gemma3",
        ("gemma3_text",),
        _LLAVA,
        _parts("vision_tower", "multi_modal_projector"),
        (*_IMAGES, "mm_tokens_per_image", "boi_token_index", "eoi_token_index"),
        # The published configs name only the sizes that differ from the class's own.
        (
            *(("vocab_size", 262_208), ("hidden_size", 2304), ("intermediate_size", 9216)),
            *(("num_hidden_layers", 26), ("num_attention_heads", 8), ("num_key_value_heads", 4)),
        ),
        ("final_logit_softcapping",),
    ),
    "gemma4": Multimodal(
        "gemma4",
        ("gemma4_text",),
        _INSIDE,
        _parts("vision_tower", "audio_tower", "embed_vision", "embed_audio"),
        (
            *(*_IMAGES, "audio_config", "video_token_id", "audio_token_id", "vision_soft_tokens_per_image"),
            *("boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index"),
        ),
    ),
    "mistral3": Multimodal(
        "mistral3",
        ("mistral", "ministral3"),
        _LLAVA,
        _parts("vision_tower", "multi_modal_projector"),
        (
            *(*_IMAGES, "projector_hidden_act", "vision_feature_layer", "multimodal_projector_bias"),
            "spatial_merge_size",
        ),
    ),
    "qwen3_5": Multimodal(
        "qwen3_5",
        ("qwen3_5_text",),
        _INSIDE,
        (*_parts("visual"), *_parts("mtp", prefixes=("",))),
        (*_IMAGES, "video_token_id", "vision_start_token_id", "vision_end_token_id", "language_model_only"),
        tied=False,
    ),
}


def find_multimodal(config: Mapping[str, Any]) -> Multimodal | None:
    """What a config.json says a checkpoint has around its text model; None for one of a text model alone."""
    # What a damaged config calls its type can be anything, a list too.
    return MULTIMODAL.get(str(config.get("model_type")))
