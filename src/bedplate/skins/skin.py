"""The skin as data: what turns a base into one product feature. `skins.files` writes and reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.core import display
from bedplate.core.config import Grown, Strict
from bedplate.core.endpoint_spec import EndpointSpec, api_address
from bedplate.core.errors import SkinError
from bedplate.data.rows import check_input_kind
from bedplate.models.specs import TextSpec
from bedplate.skins.classical import Classical
from bedplate.skins.lookup_index import Neighbours, Passages
from bedplate.skins.output import Output
from bedplate.skins.prompt import Demonstration, Prompt

if TYPE_CHECKING:  # a skin may have no need of torch
    from torch import Tensor

    from bedplate.adapters.soft_prompt import SoftPrompt
    from bedplate.models.checkpoints.identity import Identity

PARTS = ("cascade", "hosted", "classical", "lora", "soft_prompt", "knn", "retrieval", "probe", "embed")
"""What a skin may have besides its prompt, in the order in which its kind names them."""
ADAPTED = frozenset(("lora", "soft_prompt"))
"""Parts with weights that an engine holds under a key."""
_EXCLUSIONS = (
    ("cascade", PARTS, "its two skins have parts, and it has none of its own"),
    ("hosted", PARTS, "an endpoint is given a prompt, and nothing besides"),
    ("classical", PARTS, "a bag-of-words model answers alone, without a base"),
    ("knn", ("retrieval",), "a skin looks up one index"),
    ("embed", ("knn", "retrieval", "probe"), "a vector is of the text alone"),
)
"""A part, what it does not go with, and why."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class InputField(Strict):
    """One named input and its kind, a row of `data.rows.INPUTS`."""

    kind: Annotated[str, AfterValidator(check_input_kind)] = "text"


class BaseReference(Strict):
    """The base that a skin belongs to: how it was called, its family (for weight names), and who it is."""

    name: str
    family: str
    weights_id: str
    tokenizer_id: str = "none"
    template_id: str = "none"
    equivalent_of: str | None = None

    @classmethod
    def of(cls, name: str, family: str, identity: Identity) -> BaseReference:
        """`family` is the Hugging Face model type, whatever file format the base was loaded from."""
        return cls(name=name, family=family, **asdict(identity))

    def has_weights_of(self, identity: Identity) -> bool:
        """Whether this is the same model, in this or another form whose equality was verified."""
        mine = {self.weights_id, self.equivalent_of} - {None}
        return bool(mine & {identity.weights_id, identity.equivalent_of})


def _checked(url: str) -> str:
    api_address(url)
    return url


class EndpointReference(EndpointSpec):
    """A remote model as a skin's base. UsageError for a url that is no server's address, or that holds a password."""

    url: Annotated[str, AfterValidator(_checked)]

    @property
    def name(self) -> str:
        return f"{self.model} at {self.url}"

    def has_weights_of(self, identity: Identity) -> bool:
        """Nobody knows what a remote model's weights are."""
        return False


class Provenance(Strict):
    """Where a skin comes from. Hashes are sha256; `parents` are the ids of the skins it was made from."""

    task: str | None = None
    rung: str | None = None
    data: dict[str, str] = Field(default_factory=dict)
    splits: dict[str, str] = Field(default_factory=dict)
    seed: int | None = None
    code_version: str = ""
    parents: tuple[str, ...] = ()
    report: str | None = None


class EvaluatedWith(Grown):
    """The weights' storage type and the kernels that a skin was judged with. dtype: of the base that quantised weights
    were made from, where that was not bfloat16; keys and values are kept in it."""

    LATE = ("dtype",)

    weights: str
    kernel: str = "torch"
    dtype: str | None = None


class Limits(Strict):
    """What a skin accepts: at most this many prompt tokens (None: what the base's context holds)."""

    max_prompt_tokens: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, eq=False)
class LoraPart:
    """LoRA weights by our names: `{module path}.lora_A` [r, in], `.lora_B` [out, r]; with DoRA also
    `.lora_magnitude_vector` [out]. spec: of the base, which is needed where its family's files keep several of the
    adapted projections in one matrix."""

    config: LoraConfig
    tensors: Mapping[str, Tensor]
    spec: TextSpec | None = None


@dataclass(frozen=True, eq=False)
class ProbePart:
    """A head on the hidden state `layer` ("layers.20" is after 20 blocks), pooled over the prompt's tokens."""

    head: Head
    layer: str
    pooling: Literal["last", "mean", "first"] = "last"


@dataclass(frozen=True, eq=False)
class CascadePart:
    """`first` answers; where its own label's probability is below `threshold`, what `second` answers counts."""

    first: Skin
    second: Skin
    threshold: float


def name_parts(
    bases: Mapping[str, BaseReference | EndpointReference], output: Output, **parts: object | None
) -> tuple[str, ...]:
    """Names out of PARTS: what of `parts` there is, and what bases and output say."""
    has = {name: part is not None for name, part in parts.items()}
    has["hosted"] = not has["cascade"] and isinstance(bases.get("main"), EndpointReference)
    has["embed"] = output.answered_by == "embed"
    return tuple(part for part in PARTS if has[part])


def kind_of(parts: Sequence[str]) -> str:
    """What a skin with these parts is called: "lora", "lora+retrieval", or "prompt" where it has none."""
    return "+".join(parts) or "prompt"


def check_parts(name: str, bases: Mapping[str, object], parts: Sequence[str]) -> None:
    """SkinError for a skin without a main base, unless it needs none, or with parts that do not go together."""
    if "classical" in parts and bases:
        raise SkinError(f"skin {name!r} is a bag-of-words model, which has no use for a base {min(bases)!r}")
    if "main" not in bases and not {"classical", "cascade"} & set(parts):
        raise SkinError(f"skin {name!r} names no main base")
    for part, excluded, why in _EXCLUSIONS:
        odd = [candidate for candidate in parts if candidate in excluded and candidate != part]
        if part in parts and odd:
            raise SkinError(f"skin {name!r} cannot have {part} together with {' and '.join(odd)}: {why}")


@dataclass(frozen=True, eq=False, repr=False)
class Skin(display.Displayable):
    """One product feature on one base, a remote model, or none: a prompt, and what else it has, alone or together.

    demonstrations: examples in the prompt. lora: adapter weights. soft_prompt: vectors before the prompt. probe: a head
    on the prompt's features, which answers. neighbours: demonstrations that are chosen for each call from a pool, by
    the vectors of the base "embedder" (without one, of the main base, without this skin's weights); passages: pieces of
    documents that are chosen in that way. cascade: two skins, of which the second is asked where the first is not sure
    (`cascaded` makes one). classical: a bag-of-words model, which answers to what the prompt's template makes of the
    inputs; `bases` is then empty. Where the main base is an endpoint a remote model answers; where the output is an
    embedding, the prompt's vector. Raises SkinError for parts that do not go together.
    """

    name: str
    bases: Mapping[str, BaseReference | EndpointReference]
    inputs: Mapping[str, InputField]
    output: Output
    prompt: Prompt
    demonstrations: tuple[Demonstration, ...] = ()
    lora: LoraPart | None = None
    probe: ProbePart | None = None
    soft_prompt: SoftPrompt | None = None
    neighbours: Neighbours | None = None
    passages: Passages | None = None
    cascade: CascadePart | None = None
    classical: Classical | None = None
    provenance: Provenance = field(default_factory=Provenance)
    generation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    limits: Limits = field(default_factory=Limits)
    evaluated_with: EvaluatedWith | None = None
    embedded_with: EvaluatedWith | None = None
    """How the embedder was held when it embedded the pool or the documents."""
    directory: Path | None = None
    """Where it was read from."""

    def __post_init__(self) -> None:
        if not self.name or self.name in {".", ".."} or any(c in self.name for c in "/\\:\0\n"):
            raise SkinError(f"a skin cannot be called {self.name!r}, as a model is; use letters and dashes")
        check_parts(self.name, self.bases, self.parts)
        if not self.inputs:
            raise self._wrong("has no inputs")
        self._check_output()
        self._check_pool()
        self._check_cascade()
        self.prompt.check(list(self.inputs), self.demonstrations)
        self._check_inputs("demonstration", self.demonstrations)

    def _wrong(self, message: str) -> SkinError:
        return SkinError(f"skin {self.name!r} {message}")

    def _check_inputs(self, what: str, rows: Sequence[Demonstration]) -> None:
        for number, row in enumerate(rows):
            if row.inputs.keys() != self.inputs.keys():
                theirs = sorted(row.inputs)
                raise self._wrong(f"has the inputs {sorted(self.inputs)}, and its {what} {number} has {theirs}")

    def _check_pool(self) -> None:
        roles = {"main"} | ({"embedder"} if self.index else set()) | ({"second"} if self.cascade else set())
        odd = sorted(self.bases.keys() - roles)
        if odd:
            raise self._wrong(f"of kind {self.kind!r} has no use for a base {odd[0]!r}")
        if self.embedded_with is not None and self.embedder is None:
            raise self._wrong("says how its embedder was held, but has none")
        loops = "passages" in self.prompt.variables - self.inputs.keys()
        if loops != (self.passages is not None):
            raise self._wrong("has passages, or a prompt that loops over `passages`, and not both")
        if self.neighbours is None:
            return
        if self.demonstrations:
            raise self._wrong("chooses its demonstrations from a pool; it has none of its own")
        self.prompt.check(list(self.inputs), self.neighbours.rows[:1])
        self._check_inputs("pool's row", self.neighbours.rows)

    def _check_cascade(self) -> None:
        if self.cascade is None:
            return
        first, second = self.cascade.first, self.cascade.second
        if self.bases != _bases_of(first, second) or self.prompt != first.prompt:
            raise self._wrong("is a cascade: a cascade's bases and prompt are those of its two skins")
        for part in (first, second):
            if part.cascade is not None or not part.output.is_one_label:
                raise self._wrong(f"is a cascade of {part.name!r}, which does not choose one label")
            if part.inputs != self.inputs or not self.output.is_one_label:
                raise self._wrong(f"is a cascade: its inputs are not those of {part.name!r}")
            if part.output.all_labels != self.output.all_labels:
                raise self._wrong(f"is a cascade: its labels are not those of {part.name!r}, in the same order")
        if not 0 < self.cascade.threshold <= 1:
            raise self._wrong(f"is a cascade: the threshold {self.cascade.threshold} is not a probability above 0")

    def _check_output(self) -> None:
        output, head, is_form = self.output, self.head, not self.demonstrations and self.prompt.format != "chat"
        if output.answered_by == "embed" and not is_form:
            raise self._wrong("embeds texts: its prompt is plain and has no demonstrations")
        if self.classical is not None and (not is_form or self.evaluated_with):
            raise self._wrong(
                "is a bag-of-words model: its prompt is plain, it has no demonstrations, and no base's weights that it "
                "was judged with"
            )
        if head is None:
            if output.probability_threshold is not None:
                raise self._wrong("has a threshold for its labels' probabilities, but no head")
            scored = not {"hosted", "cascade"} & set(self.parts)
            if scored and output.is_one_label and not output.label_texts:
                raise self._wrong("scores labels by their text, but has no continuations for them")
        elif not output.scored_labels:
            raise self._wrong("answers by a head, so its output must be one of some labels, or any by a threshold")
        elif head.labels != output.scored_labels:
            labels = list(output.scored_labels)
            raise self._wrong(f"has output labels {labels}, and its head was made for the labels {list(head.labels)}")

    @property
    def parts(self) -> tuple[str, ...]:
        """What it has besides its prompt, by name, out of PARTS."""
        index = {"knn": self.neighbours, "retrieval": self.passages}
        own = {name: getattr(self, name) for name in ("cascade", "classical", "lora", "soft_prompt", "probe")}
        return name_parts(self.bases, self.output, **own, **index)

    @property
    def kind(self) -> str:
        """The names of its parts, joined by "+"; "prompt" where it has none."""
        return kind_of(self.parts)

    @property
    def index(self) -> Neighbours | Passages | None:
        """What is looked up for each call, where something is."""
        return self.neighbours if self.passages is None else self.passages

    @property
    def head(self) -> Head | Classical | None:
        """What tells the labels apart: a probe's, or a bag-of-words model's."""
        if self.classical is not None:
            return self.classical
        return None if self.probe is None else self.probe.head

    @property
    def base(self) -> BaseReference:
        """The main base. SkinError where a remote model answers, or none has to be asked."""
        reference = self.bases.get("main")
        if reference is None:
            raise self._wrong(f"of kind {self.kind!r} answers without a base: it fits none, and needs none")
        if isinstance(reference, EndpointReference):
            raise self._wrong(f"is answered by {reference.name}: it has no base on this machine")
        return reference

    @property
    def embedder(self) -> BaseReference | None:
        """The base that embeds, where it is another than the main one."""
        reference = self.bases.get("embedder")
        return reference if isinstance(reference, BaseReference) else None

    @property
    def is_remote(self) -> bool:
        """Whether a remote model answers, always or at times."""
        return any(isinstance(reference, EndpointReference) for reference in self.bases.values())

    @property
    def facts(self) -> dict[str, str]:
        """What it is, in a few words each: for people."""
        answer_form, output = self.output.kind, self.output
        if output.all_labels:
            answer_form = f"{'one' if output.is_one_label else 'any'} of {display.join_names(output.all_labels)}"
        return {
            "name": self.name,
            "kind": self.kind,
            "bases": ", ".join(base.name for base in self.bases.values()) or "no base",
            "answers": f"{display.join_names(list(self.inputs))} → {answer_form}",
        }

    def without_weights(self) -> Skin:
        """The same without the adapter's tensors: what is left to keep once an engine holds them."""
        return self if self.lora is None else replace(self, lora=replace(self.lora, tensors={}))


def cascaded(name: str, first: Skin, second: Skin, threshold: float, provenance: Provenance | None = None) -> Skin:
    """The cascade of two skins that choose among the same labels; its parents are these. SkinError."""
    return Skin(
        name=name,
        bases=_bases_of(first, second),
        inputs=first.inputs,
        output=second.output.bare(),
        prompt=first.prompt,
        cascade=CascadePart(first, second, threshold),
        provenance=provenance or Provenance(),
    )


def _bases_of(first: Skin, second: Skin) -> dict[str, BaseReference | EndpointReference]:
    """A cascade's: those of its two skins, where they have any."""
    return {role: part.bases["main"] for role, part in (("main", first), ("second", second)) if "main" in part.bases}
