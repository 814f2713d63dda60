"""Checks a family against its reference: tiny random models of transformers, loaded, run, trained, generated, exported.

`supported` finds out what each family supports, by building its tiny examples and asking them.

What is compared follows from what a model is (`CHECKS`); which configurations stands with each family (`examples`).
transformers is no dependency: it is imported when something is checked, and asked for by name where it is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.adapters.table import ADAPTERS
from bedplate.core.errors import UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Sampling
from bedplate.inference.native.allowed import refused_field
from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.conversion import read_parameters
from bedplate.models.checkpoints.export import export_base
from bedplate.models.checkpoints.safetensors import SafetensorsReader
from bedplate.models.families import FAMILIES, Family, in_format
from bedplate.models.families.multimodal import MULTIMODAL
from bedplate.models.inputs import Inputs
from bedplate.models.layers.linear import Linear
from bedplate.models.model import Model
from bedplate.models.specs.transformer import TransformerSpec

DType = Literal["float32", "float64"]
BOUNDS: Mapping[DType, float] = {"float32": 1e-5, "float64": 1e-6}
"""The largest difference that passes, as a share of the largest value."""
GENERATED = 32
_ROW, _SHORT = 24, (24, 15, 9)


@dataclass(frozen=True)
class ParityCheck:
    """One comparison. difference: the largest one, relative to the reference's largest value, or the share of what is
    not equal where all must be (bound 0)."""

    family: str
    example: int
    seed: int
    dtype: DType
    what: str
    difference: float
    bound: float

    @property
    def passes(self) -> bool:
        return self.difference <= self.bound

    def __str__(self) -> str:
        context = f"{self.family}, example {self.example}, seed {self.seed}, {self.dtype}"
        return f"{self.what} of {context}: {self.difference:.2g} (at most {self.bound:.2g})"


@dataclass
class Pair:
    """The reference and what was loaded of it. directory: theirs; others may be made beside it."""

    family: Family
    reference: Any
    base: Base
    directory: Path
    seed: int
    dtype: DType

    def tokens(self, rows: int, length: int) -> Tensor:
        """Random token ids [rows, length] that are no padding, of those that it reads and writes."""
        generator, spec = torch.Generator().manual_seed(self.seed), self.base.spec
        return torch.randint(3, min(spec.source_vocab_size, spec.vocab_size), (rows, length), generator=generator)


Differences = Iterator[tuple[str, float, float]]
Check = Callable[[Pair], Differences]


def read(family: Family, directory: Path, example: int, seed: int, dtype: DType = "float32") -> Iterator[ParityCheck]:
    """All readings of one example. directory: an empty one. UsageError without transformers."""
    reference = reference_of(family, family.examples[example], seed)
    directory.mkdir(parents=True, exist_ok=True)
    theirs = directory / "reference"
    reference.save_pretrained(theirs)
    base = load_base(theirs, dtype, "cpu")
    pair = Pair(family, reference.to(base.dtype), base, theirs, seed, dtype)
    for check in CHECKS[base.spec.kind]:
        for quantity, difference, bound in check(pair):
            yield ParityCheck(family.name, example, seed, dtype, quantity, difference, bound)


def reference_of(family: Family, example: Mapping[str, Any], seed: int) -> Any:
    """A random model of transformers; norms and biases are random too, since at their defaults they prove nothing."""
    transformers = _transformers()
    config = transformers.AutoConfig.for_model(family.name, **example)
    config._attn_implementation = config._experts_implementation = "eager"
    [name] = family.to_config(family.to_spec(config.to_dict()))["architectures"]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = getattr(transformers, name)(config)
        for stored in (*model.parameters(), *_stored_buffers(model)):
            if stored.requires_grad or not isinstance(stored, torch.nn.Parameter):  # others follow from a formula
                stored.add_(torch.randn_like(stored) * 0.1)
    return model.eval()


def _stored_buffers(model: Any) -> list[Tensor]:
    """What checkpoints hold beside parameters, such as the bias of a router's choice."""
    state, parameters = model.state_dict(keep_vars=True), {id(parameter) for parameter in model.parameters()}
    return [tensor for tensor in state.values() if id(tensor) not in parameters and tensor.is_floating_point()]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UsageError("families are checked against transformers; install bedplate[test]") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


# What is compared


def _decoder_passes(pair: Pair) -> Differences:
    """Compares logits, loss and gradients of whole rows."""
    tokens = pair.tokens(3, _ROW)
    labels = tokens.clone()
    labels[:, :3] = -100
    with _uncast(pair.reference):
        theirs = pair.reference(tokens, labels=labels)
    ours = _logits(pair, Inputs(tokens))
    loss = F.cross_entropy(ours[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    yield "logits", relative_difference(ours, theirs.logits), BOUNDS[pair.dtype]
    yield "loss", relative_difference(loss, theirs.loss), BOUNDS[pair.dtype]
    yield _gradients(pair, loss, theirs.loss)


def _encoder_passes(pair: Pair) -> Differences:
    """Compares hidden states, and gradients of their squares."""
    tokens = pair.tokens(3, _ROW)
    with _uncast(pair.reference):
        theirs = pair.reference(tokens).last_hidden_state
    ours: Tensor = _trainable(pair)(Inputs(tokens)).hidden
    yield "states", relative_difference(ours, theirs), BOUNDS[pair.dtype]
    yield _gradients(pair, ours.square().mean(), theirs.square().mean())


def _padded(pair: Pair) -> Differences:
    """Rows of several lengths, padded on either side, against the reference on each row alone. (With a mask it lets
    what it pads on the left into convolutions, where projections have biases, and is NaN there in float64.)"""
    if pair.dtype != "float32":
        return
    tokens, lengths = pair.tokens(len(_SHORT), _ROW), torch.tensor(_SHORT)[:, None]
    at, causal = torch.arange(_ROW), pair.base.spec.kind == "decoder"
    for side, mask in (("right", at < lengths), ("left", at >= _ROW - lengths)):
        inputs = Inputs(tokens, segments=torch.where(mask, 1, -1))
        expected: list[Tensor] = []
        with torch.no_grad():
            ours = _logits(pair, inputs) if causal else pair.base.model(inputs).hidden
            for row, inside in zip(tokens, mask, strict=True):
                theirs = pair.reference(row[inside][None])
                expected.append((theirs.logits if causal else theirs.last_hidden_state)[0])
        yield f"rows padded {side}", relative_difference(ours[mask], torch.cat(expected)), BOUNDS[pair.dtype]


def _generated(pair: Pair) -> Differences:
    """Greedy tokens of the engine, from its caches, beside another sequence."""
    if pair.dtype != "float32":  # caches are the same code in every dtype, and greedy choices are made in float32
        return
    transformers = _transformers()
    [prompt] = pair.tokens(1, 5 + 4 * pair.seed)
    how = transformers.GenerationConfig(max_new_tokens=GENERATED, do_sample=False, pad_token_id=0, eos_token_id=None)
    pair.reference.generation_config = how  # its own knows tokens that end a text
    with torch.no_grad():
        [theirs] = pair.reference.generate(prompt[None])
    expected = theirs[len(prompt) :].tolist()
    sampling = Sampling(max_tokens=GENERATED, ignore_eos=True)
    with Engine(pair.base, weights="float32", kernel="torch", speculate=False) as engine:
        ours, _ = engine.run([Generate(tuple(ids.tolist()), sampling) for ids in (prompt, prompt.flip(0))])
    assert isinstance(ours, Generation)
    wrong = sum(a != b for a, b in zip(ours.token_ids, expected, strict=True))
    yield f"{GENERATED} generated tokens", wrong / GENERATED, 0.0


def _exported(pair: Pair) -> Differences:
    """Export, and what transformers and Bedplate read of it: the same weights, bit for bit."""
    if pair.dtype != "float32" or pair.seed > 1:  # bits are moved, whatever they are
        return
    out = export_base(pair.base, pair.directory.with_name("export"))
    theirs = type(pair.reference).from_pretrained(out).state_dict()
    state = pair.reference.state_dict()
    equal_names = [name for name in state.keys() & theirs.keys() if torch.equal(theirs[name], state[name])]
    yield "exported weights", 1 - len(equal_names) / len(state.keys() | theirs.keys()), 0.0
    reloaded, base = load_base(out, device="cpu"), pair.base
    changed = (reloaded.spec, reloaded.identity.weights_id) != (base.spec, base.identity.weights_id)
    yield "base read again", float(changed), 0.0


def _both_sides(pair: Pair) -> Differences:
    """Compares an encoder–decoder: logits, loss and gradients of whole rows, and of rows packed into one."""
    source, labels = pair.tokens(3, _ROW), pair.tokens(3, _ROW - 7).flip(1)
    with _uncast(pair.reference):
        theirs = pair.reference(source, labels=labels)
    start = torch.full((len(labels), 1), pair.reference.config.decoder_start_token_id)
    tokens = torch.cat((start, labels[:, :-1]), dim=1)
    ours = _logits(pair, Inputs(tokens, encoder=Inputs(source)))
    loss = F.cross_entropy(ours.flatten(0, 1), labels.flatten())
    yield "logits", relative_difference(ours, theirs.logits), BOUNDS[pair.dtype]
    yield "loss", relative_difference(loss, theirs.loss), BOUNDS[pair.dtype]
    yield _gradients(pair, loss, theirs.loss)
    packed, sources = (_packed(tensor, order) for tensor, order in ((tokens, (0, 1, 2)), (source, (2, 0, 1))))
    [ours] = _logits(pair, Inputs(*packed, encoder=Inputs(*sources)))
    yield "packed rows", relative_difference(ours.unflatten(0, tokens.shape), theirs.logits), BOUNDS[pair.dtype]


def _packed(tokens: Tensor, order: Sequence[int]) -> tuple[Tensor, None, Tensor]:
    """Rows behind each other in this order, under their numbers from 1, as `Inputs` takes them."""
    numbers = torch.tensor(order)
    return tokens[numbers].reshape(1, -1), None, (numbers + 1).repeat_interleave(tokens.shape[1])[None]


def _both_sides_padded(pair: Pair) -> Differences:
    """Texts of several lengths that the encoder reads, padded on the right, against the reference with a mask."""
    if pair.dtype != "float32":  # as `_padded`
        return
    source, tokens = pair.tokens(len(_SHORT), _ROW), pair.tokens(len(_SHORT), 9)
    mask = torch.arange(_ROW) < torch.tensor(_SHORT)[:, None]
    with torch.no_grad():
        theirs = pair.reference(source, attention_mask=mask.long(), decoder_input_ids=tokens).logits
        read = Inputs(source, segments=torch.where(mask, 1, -1))
        ours = _logits(pair, Inputs(tokens, segments=torch.ones_like(tokens), encoder=read))
    yield "sources padded right", relative_difference(ours, theirs), BOUNDS[pair.dtype]


CHECKS: Mapping[str, tuple[Check, ...]] = {
    "encoder–decoder": (_both_sides, _both_sides_padded, _exported),
    "decoder": (_decoder_passes, _padded, _generated, _exported),
    "encoder": (_encoder_passes, _padded, _exported),
}
"""By the kind of spec."""


# How


@contextmanager
def _uncast(reference: Any) -> Generator[None]:
    """While it is open, transformers' casts to float32 leave float64 as it is: those in norms, softmax and losses,
    which a float64 model has too. Rotary angles are made in float32 as ever, as ours are."""
    tensor: Any = Tensor
    float_, to, softmax = tensor.float, tensor.to, F.softmax

    def to_float(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x if x.dtype == torch.float64 else float_(x, *args, **kwargs)

    def sent(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        narrow = torch.float32 in (*args, *kwargs.values()) and x.dtype == torch.float64
        return x if narrow else to(x, *args, **kwargs)

    def softened(x: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        return softmax(x, *args, dtype=None if x.dtype == torch.float64 else dtype, **kwargs)

    def patch(*_: Any) -> None:
        tensor.float, tensor.to, F.softmax = to_float, sent, softened

    def restore(*_: Any) -> None:
        tensor.float, tensor.to, F.softmax = float_, to, softmax

    rotary = [module for module in reference.modules() if "Rotary" in type(module).__name__]
    hooks = [module.register_forward_pre_hook(restore) for module in rotary]
    hooks += [module.register_forward_hook(patch) for module in rotary]
    patch()
    try:
        yield
    finally:
        restore()
        for hook in hooks:
            hook.remove()


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest of theirs; infinite where a number is not finite."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    if ours.shape != theirs.shape or not bool(ours.isfinite().all()):
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _trainable(pair: Pair) -> Any:
    """The model, its parameters with gradients."""
    return pair.base.model.requires_grad_(True)


def _logits(pair: Pair, inputs: Inputs) -> Tensor:
    model = _trainable(pair)
    hidden = model(inputs).hidden
    return model.head(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])


def _gradients(pair: Pair, loss: Tensor, their_loss: Tensor) -> tuple[str, float, float]:
    """The largest of all parameters' differences, each relative to the parameter's own largest gradient (or to a
    hundredth of the largest of all, where it should vanish, as that of a bias of keys). Theirs come to our names as
    weights do: saved in the weights' place, and read through the family's rules."""
    their_loss.backward()
    loss.backward()
    copy = deepcopy(pair.reference)
    for parameter, original in zip(copy.parameters(), pair.reference.parameters(), strict=True):
        parameter.data = torch.zeros_like(original) if original.grad is None else original.grad
    place = pair.directory.with_name("gradients")
    copy.save_pretrained(place)
    parameters, state = dict(pair.base.model.named_parameters()), pair.base.model.state_dict(keep_vars=True)
    with SafetensorsReader(place) as reader:
        read = read_parameters(pair.base.family, pair.base.spec, reader.names, reader.get, state, "the gradients")
        gradients = {name: tensor for name, tensor in read if name in parameters}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    worst = 0.0
    for name, theirs in gradients.items():
        grad = parameters[name].grad
        ours = torch.zeros_like(theirs) if grad is None else grad
        scale = max(float(theirs.abs().max()), 1e-2 * largest)
        worst = max(worst, float((ours - theirs).abs().max()) / scale)
    return "gradients", worst, max(BOUNDS[pair.dtype], pair.family.noise)


@dataclass(frozen=True)
class Support:
    """The support of one family. can: what its outputs are for. adapters: those that attach to its models. kernel: None
    where the native CPU kernel runs every example, otherwise the field of a spec that it has no answer for. gguf: its
    name there, None where no file of it can be read or written. text_of: the multimodal checkpoints of which the text
    model is loaded as this family."""

    family: str
    kind: str
    can: tuple[str, ...]
    adapters: tuple[str, ...]
    kernel: str | None
    gguf: str | None
    text_of: tuple[str, ...]


def supported() -> Iterator[Support]:
    """Every family of Hugging Face's format, in the order of their table."""
    for (format_, _), family in FAMILIES.items():
        if format_ == "hf":
            yield _support(family)


def _support(family: Family) -> Support:
    specs = [family.to_spec(example) for example in family.examples]
    models = [build(spec, device="meta") for spec in specs]
    fields = [refused_field(spec) if isinstance(spec, TransformerSpec) else "encoder" for spec in specs]
    gguf = in_format(family, "gguf")
    return Support(
        family=family.name,
        kind=specs[0].kind,
        can=tuple(sorted(frozenset.intersection(*(model.can for model in models)))),
        adapters=tuple(name for name in ADAPTERS if all(_attaches(name, model) for model in models)),
        kernel=next((field for field in fields if field is not None), None),
        gguf=None if gguf is None else gguf.key[1],
        text_of=tuple(outer.name for outer in MULTIMODAL.values() if family.key[1] in outer.texts),
    )


def _attaches(name: str, model: Model) -> bool:
    on = ADAPTERS[name].on
    if on == "linears":
        return any(isinstance(module, Linear) for module in model.modules())
    if on == "inputs":  # before what a decoder continues
        return model.writes and not model.has_encoder
    return "embed" in model.can
