"""Attention of packed rows in a pass without a cache: one entry point for training and for reading, on any device.

On a CUDA device torch's varlen kernel does what it can, and flex attention the rest. Each is tried once there, forwards
and backwards, against the dense blocks; where one fails the next stands in for it. Anywhere else it is the blocks,
which support every option.

Shapes: B rows, T tokens a row, N tokens of the flattened rows, H query heads, G key-value heads, D features of one
head, V of its value, S documents, X distances, b blocks of tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bedplate.core.errors import BedplateError, UnsupportedModelError
from bedplate.models.device_memory import sent
from bedplate.models.layers.attention import distances, whole_attention
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, Recurrence, State
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.packed.placement import PlacedDocument, Placement

if TYPE_CHECKING:  # it brings much of torch's compiler along
    from torch.nn.attention.flex_attention import BlockMask

MAX_HEAD_DIM = 256
"""The most features of a head that the kernel takes."""


class VarlenAttention:
    """As `BlockAttention`, for documents that share no prefix, by torch's kernel for sequences of unequal lengths
    (`torch.nn.attention.varlen`, which is FlashAttention-2, https://arxiv.org/abs/2307.08691): half precision, on CUDA
    devices. It is told where each document begins among the tokens that are no padding. UnsupportedModelError, by name,
    for what the kernel cannot do. kernel: with the signature of torch's `varlen_attn`."""

    def __init__(self, placement: Placement, causal: bool = True, kernel: Callable[..., Any] | None = None) -> None:
        if any(document.shared for document in placement.documents):
            raise UnsupportedModelError("attention behind a shared prefix is not supported by varlen_attn")
        self._placement, self._causal, self._kernel = placement, causal, kernel or varlen_kernel()
        self._device_places: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        options.check_supported("varlen_attn", "scale", "window")
        if self._kernel is None:
            raise UnsupportedModelError("this build of torch has no varlen_attn; it came with torch 2.10")
        edges_S, tokens = self._places(q_BTHD.device)
        q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BTGD, v_BTGV))
        if self._placement.padded:
            q, k, v = (x.index_select(0, tokens) for x in (q, k, v))
        out_NHV = self._kernel(
            *(q, k, v, edges_S, edges_S, self._placement.longest, self._placement.longest),
            scale=options.scale,
            window_size=self._window(options),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        if self._placement.padded:
            padded = out_NHV.new_zeros(q_BTHD.shape[0] * q_BTHD.shape[1], *out_NHV.shape[1:])
            out_NHV = padded.index_copy(0, tokens, out_NHV)
        return out_NHV.view(*q_BTHD.shape[:3], v_BTGV.shape[3])

    def _window(self, options: AttentionOptions) -> tuple[int, int]:
        """How many tokens before and after its own a query sees, as the kernel takes it; −1: all."""
        left = -1 if options.window is None else options.window - 1 if self._causal else options.window // 2
        return left, 0 if self._causal else left

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each document begins among the tokens that are no padding, and where the last one ends, int32 [S + 1];
        and where those tokens stand in the rows."""
        if device not in self._device_places:
            lengths = torch.tensor([0, *(document.token_count for document in self._placement.documents)])
            tokens = (self._placement.numbers_N >= 0).nonzero().squeeze(1)
            edges_S = lengths.cumsum(0).to(torch.int32)
            self._device_places[device] = sent(edges_S, device), sent(tokens, device)
        return self._device_places[device]


@cache
def varlen_kernel() -> Callable[..., Any] | None:
    """torch's `varlen_attn`, or None where this build has none."""
    try:
        return importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None


SIZE = 128
"""Tokens of a block: what flex attention's kernels are made for."""


class FlexAttention:
    """As `BlockAttention`, by torch's flex attention (https://arxiv.org/abs/2412.05496): one compiled kernel for all
    `AttentionOptions`, told of documents as a mask of blocks that is made of plain numbers. On a CPU it has no backward
    pass.

    Blocks of `SIZE` tokens that no document has in common are not computed; those in which every query sees every key
    need no mask. Neither the mask nor anything else is as large as all pairs of tokens. A sink takes its share of what
    the sum of the weights is without it: out · sigmoid(log-sum − sink).
    """

    def __init__(self, placement: Placement, causal: bool = True) -> None:
        self._placement, self._causal = placement, causal
        self._masks: dict[tuple[int | None, torch.device], BlockMask] = {}
        self._places: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        from torch.nn.attention.flex_attention import AuxRequest

        q, k, v = (x.flatten(0, 1).transpose(0, 1)[None] for x in (q_BTHD, k_BTGD, v_BTGV))
        # Torch's compiler makes no CPU kernel of masks and scores that depend on numbers that change.
        kernel, device = _compiled(not q.is_cpu), q.device
        result: Any = kernel(
            q,
            k,
            v,
            score_mod=self._scores(options, device),
            block_mask=self._mask(options.window, device),
            scale=options.scale,
            enable_gqa=q.shape[1] != k.shape[1],
            return_aux=None if options.sinks is None else AuxRequest(lse=True),
        )
        if options.sinks is not None:
            out, aux = result
            result = out * torch.sigmoid(aux.lse - options.sinks[:, None].to(aux.lse.dtype))[..., None].to(out.dtype)
        out_BTHV = result[0].transpose(0, 1).reshape(*q_BTHD.shape[:3], v_BTGV.shape[3])
        if not self._placement.padded:
            return out_BTHV
        inside_BT = (self._place(device)[0][: q.shape[2]] >= 0).view(q_BTHD.shape[:2])
        return torch.where(inside_BT[..., None, None], out_BTHV, 0)

    def _place(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """For each token, up to whole blocks: its document's number (−1: padding), its position, and the number of the
        prefix that it stands behind (−2: none)."""
        if device not in self._places:
            documents = self._placement.documents
            number = {(document.row, document.segment): n for n, document in enumerate(documents)}
            behind = [number[member.row, 0] if member.shared else -2 for member in documents]
            numbers_N = self._placement.numbers_N
            behind_N = torch.tensor([*behind, -2])[numbers_N]
            room = -len(numbers_N) % SIZE
            columns = (numbers_N, -1), (self._placement.positions_N, 0), (behind_N, -2)
            document_numbers, two, three = (
                torch.nn.functional.pad(x, (0, room), value=fill).to(device) for x, fill in columns
            )
            self._places[device] = document_numbers, two, three
        return self._places[device]

    def _scores(self, options: AttentionOptions, device: torch.device) -> Callable[..., Tensor] | None:
        """What becomes of a scaled score."""
        if options.softcap is None and options.bias is None:
            return None
        cap, table_HX, longest = options.softcap, None, self._placement.longest
        positions_N = self._place(device)[1]
        if options.bias is not None:
            table_HX = options.bias(torch.arange(1 - longest, longest, device=device)[None, None])[0, :, 0]

        def changed(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            if cap is not None:
                score = cap * torch.tanh(score / cap)
            if table_HX is not None:
                # What is masked anyway may lie farther apart than anything in one document.
                score = score + table_HX[h, (positions_N[kv] - positions_N[q] + longest - 1).clamp(0, 2 * longest - 2)]
            return score

        return changed

    def _mask(self, window: int | None, device: torch.device) -> BlockMask:
        if window is not None and (window if self._causal else window // 2) >= self._placement.longest:
            window = None
        if (window, device) not in self._masks:
            self._masks[window, device] = self._block_mask(window, device)
        return self._masks[window, device]

    def _block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        from torch.nn.attention.flex_attention import BlockMask

        numbers_N, positions_N, behind_N = self._place(device)
        causal, back = self._causal, None if window is None else (window - 1 if self._causal else window // 2)

        def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            allowed = (numbers_N[q] == numbers_N[kv]) | (behind_N[q] == numbers_N[kv])
            distance = positions_N[kv] - positions_N[q]
            if causal:
                allowed = allowed & (distance <= 0)
            return allowed if back is None else allowed & (distance.abs() <= back)

        some_bb, all_bb = self._blocks(back)
        partly_bb = some_bb & ~all_bb
        parts: list[Tensor] = []
        for which_bb in (partly_bb, all_bb):
            order = which_bb.to(torch.int32).argsort(dim=1, descending=True, stable=True).to(torch.int32)
            parts += [which_bb.sum(1, dtype=torch.int32)[None, None].to(device), order[None, None].to(device)]
        N = self._placement.shape[0] * self._placement.shape[1]
        return BlockMask.from_kv_blocks(*parts, BLOCK_SIZE=SIZE, mask_mod=visible, seq_lengths=(N, N))

    def _blocks(self, back: int | None) -> tuple[Tensor, Tensor]:
        """Which blocks of keys a block of queries sees any of, and which of those wholly: bool [b, b], on the CPU."""
        numbers_N, positions_N, behind_N = (x.cpu() for x in self._place(torch.device("cpu")))
        numbers, positions, behind = (x.view(-1, SIZE) for x in (numbers_N, positions_N, behind_N))
        low, high = numbers.amin(1), numbers.amax(1)
        lowest = torch.where(numbers < 0, torch.iinfo(torch.int64).max, numbers).amin(1)  # of documents, not padding
        overlap = (lowest[:, None] <= high) & (lowest <= high[:, None])  # their ranges of documents meet
        for n in set(behind_N.tolist()) - {-2}:
            overlap |= (behind == n).any(1)[:, None] & (numbers == n).any(1)
        first, last = positions.amin(1), positions.amax(1)
        single = (low == high) & (low >= 0)
        whole = single[:, None] & single & (low[:, None] == low)
        if self._causal:
            at = torch.arange(len(numbers))
            overlap &= at <= at[:, None]
            whole &= last <= first[:, None]
        if back is not None:
            in_window = torch.maximum(last[:, None] - first, last - first[:, None]) <= back
            whole &= in_window
        return overlap, whole


@cache
def _compiled(shapes_change: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=None if shapes_change else False)


Backend = Literal["varlen", "flex", "blocks"]
BACKENDS: dict[Backend, Callable[[Placement, bool], Callable[..., Tensor]]] = {
    "varlen": VarlenAttention,
    "flex": FlexAttention,
    "blocks": BlockAttention,
}
_TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""How far two backends may differ, by dtype; 1e-3 for others, since kernels may multiply in TF32."""


class PackedAttention:
    """Each token of packed rows sees its own document, behind the prefix that its row shares."""

    is_cached = False

    def __init__(self, placement: Placement, causal: bool = True) -> None:
        self._placement, self._causal = placement, causal
        self._shared = any(document.shared for document in placement.documents)
        self._backends: dict[Backend, Callable[..., Tensor]] = {}

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        backend = choose_backend(q_BTHD, v_BTGV, options, self._shared)
        if backend not in self._backends:
            self._backends[backend] = BACKENDS[backend](self._placement, self._causal)
        return self._backends[backend](layer, q_BTHD, k_BTGD, v_BTGV, options)

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._documents.recur(run, x_BTC)

    @cached_property
    def _documents(self) -> PackedDocuments:
        return PackedDocuments(self._placement)


def choose_backend(q_BTHD: Tensor, v_BTGV: Tensor, options: AttentionOptions, shared: bool) -> Backend:
    """The backend for these tensors. shared: whether documents stand behind a prefix."""
    device, dtype, (D, V) = q_BTHD.device, q_BTHD.dtype, (q_BTHD.shape[-1], v_BTGV.shape[-1])
    if device.type != "cuda":
        return "blocks"
    if not shared and D == V <= MAX_HEAD_DIM and options.fits_sdpa and works("varlen", device, dtype, D):
        return "varlen"
    return "flex" if works("flex", device, dtype, D) else "blocks"


@cache
def works(backend: Backend, device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether a backend gives what the blocks give there for heads of this size, forwards and backwards."""
    generator, placement = torch.Generator().manual_seed(0), Placement.of_lengths([0, 5, 130, 9])
    shapes = ((1, 144, heads, size) for heads in (4, 2, 2, 4))
    outcomes: list[list[Tensor]] = []
    with torch.inference_mode(False), torch.enable_grad():
        q, k, v, weight = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
        try:
            for layout in (BACKENDS[backend], BlockAttention):
                leaves = [x.detach().requires_grad_() for x in (q, k, v)]
                out = layout(placement, True)(0, leaves[0], leaves[1], leaves[2])
                outcomes.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
        except (RuntimeError, NotImplementedError, TypeError, ValueError, BedplateError):  # not for this device
            return False
    tolerance = _TOLERANCES.get(dtype, 1e-3)
    return all(bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance)) for a, b in zip(*outcomes, strict=True))


LENGTH_RATIO = 0.75
"""Documents run together that have at least so many tokens of the longest of them."""


@dataclass(frozen=True)
class _Group:
    """Documents that run together. gather: int64 [S, L], flat numbers of their tokens; behind a document's end its
    first stands. lengths: int64 [S]; None: all are equal. back: int64, where their tokens are in the flattened group.
    prefix: of which row's prefix they go on from the state; prefix_row: which row's prefix it is itself."""

    gather_SL: Tensor
    lengths_S: Tensor | None
    back: Tensor
    prefix: int | None
    prefix_row: int | None


class PackedDocuments:
    """The documents of a placement as sequences, for layers that keep a state: each by itself, behind what its row
    shares.

    Documents of about one length run together, so that little is padded: a quarter of what a document takes at most.
    What a row shares is read once, and its documents go on from the state behind it. Shapes: S documents of a group, L
    tokens of its longest, C features that go in, E that come out."""

    def __init__(self, placement: Placement) -> None:
        self._groups = [list(group) for group in _length_groups(placement.documents)]
        self._device_groups: dict[torch.device, tuple[list[_Group], Tensor]] = {}

    def recur(self, run: Recurrence, x_BTC: Tensor) -> Tensor:
        """Each document by itself, [B, T, E]; padding's outputs are zero."""
        B, T, C = x_BTC.shape
        groups, tokens = self._on(x_BTC.device)
        flat, outputs, states = x_BTC.reshape(B * T, C), list[Tensor](), dict[int, State]()
        for group in groups:
            S, L = group.gather_SL.shape
            before: State | None = None
            if group.prefix is not None:
                before = tuple(state.expand(S, *state.shape[1:]) for state in states[group.prefix])
            x_SLC = flat.index_select(0, group.gather_SL.reshape(-1)).view(S, L, C)
            y_SLE, state = run(x_SLC, group.lengths_S, before)
            if group.prefix_row is not None:
                states[group.prefix_row] = state
            outputs.append(y_SLE.reshape(S * L, -1).index_select(0, group.back))
        y = torch.cat(outputs)
        return y.new_zeros(B * T, y.shape[1]).index_copy(0, tokens, y).view(B, T, -1)

    def _on(self, device: torch.device) -> tuple[list[_Group], Tensor]:
        """The groups, and the flat numbers of their tokens in their order."""
        if device not in self._device_groups:
            tokens = [torch.arange(document.start, document.stop) for group in self._groups for document in group]
            self._device_groups[device] = [_on(group, device) for group in self._groups], torch.cat(tokens).to(device)
        return self._device_groups[device]


def _length_groups(documents: Sequence[PlacedDocument]) -> Iterator[list[PlacedDocument]]:
    """Prefixes, each by itself, and then groups of documents of about one length behind one of them, or behind none."""
    yield from ([prefix] for prefix in documents if prefix.segment == 0)
    remaining = [candidate for candidate in documents if candidate.segment != 0]
    remaining.sort(key=lambda placed: (placed.row if placed.shared else -1, -placed.token_count))
    group: list[PlacedDocument] = []
    for document in remaining:
        if group and (
            _prefix(document) != _prefix(group[0]) or document.token_count < LENGTH_RATIO * group[0].token_count
        ):
            yield group
            group = []
        group.append(document)
    if group:
        yield group


def _prefix(document: PlacedDocument) -> int | None:
    return document.row if document.shared else None


def _on(group: Sequence[PlacedDocument], device: torch.device) -> _Group:
    starts, lengths = torch.tensor([[document.start, document.token_count] for document in group]).unbind(1)
    at_L = torch.arange(int(lengths.max()))
    inside_SL = at_L < lengths[:, None]
    gather_SL = torch.where(inside_SL, starts[:, None] + at_L, starts[:, None])
    return _Group(
        gather_SL.to(device),
        None if bool(inside_SL.all()) else lengths.to(device),
        inside_SL.reshape(-1).nonzero().squeeze(1).to(device),
        _prefix(group[0]),
        group[0].row if group[0].segment == 0 else None,
    )


_LONGEST = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 32}
"""Up to how many tokens a text's attention is two products, by dtype; longer ones, and others, go to torch's kernel."""


class WholeTexts:
    """Attention within whole texts that lie one after the other in one row, for passes without a cache.

    Texts of one length side by side are a block without padding or copies, so nothing is masked, and short ones are two
    batched products. Measured on an EPYC core in bfloat16, 1,024 tokens of 12 heads of 32: torch's flash kernel takes
    1.8, 2.8 and 4.3 ms at lengths 32, 64 and 128, the products 0.9, 1.5 and 2.5 ms; in float32 1.4, 2.1 and 3.6 against
    1.2, 2.1 and 4.5 ms.

    Each token of the row sees its own text. lengths: of the texts, in their order; equal ones side by side are
    computed together."""

    is_cached = False

    def __init__(self, lengths: Sequence[int]) -> None:
        self._runs = [(length, len(list(group))) for length, group in groupby(lengths)]
        self._distances: dict[int, Tensor] = {}

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        outputs: list[Tensor] = []
        begin = 0
        for length, count in self._runs:
            end = begin + length * count
            q, k, v = (x[0, begin:end].view(count, length, *x.shape[2:]) for x in (q_BTHD, k_BTGD, v_BTGV))
            outputs.append(
                self._attend_texts(q, k, v, options).reshape(end - begin, *q_BTHD.shape[2:3], v_BTGV.shape[3])
            )
            begin = end
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None]

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        raise UnsupportedModelError("layers that keep a state do not read whole texts at once")

    def _attend_texts(self, q_SLHD: Tensor, k_SLGD: Tensor, v_SLGV: Tensor, options: AttentionOptions) -> Tensor:
        (S, L, H, D), V = q_SLHD.shape, v_SLGV.shape[3]
        if options.is_plain and q_SLHD.is_cpu and k_SLGD.shape[2] == H and _LONGEST.get(q_SLHD.dtype, 0) >= L:
            q, k, v = (x.transpose(1, 2).reshape(S * H, L, x.shape[3]) for x in (q_SLHD, k_SLGD, v_SLGV))
            scores = torch.bmm(q * (D**-0.5 if options.scale is None else options.scale), k.transpose(1, 2))
            return torch.bmm(scores.softmax(-1), v).view(S, H, L, V).transpose(1, 2)
        if not options.is_plain and L not in self._distances:
            # One for all layers: what a layer makes of it, all of them may use.
            self._distances[L] = distances(L, q_SLHD.device)
        return whole_attention(q_SLHD, k_SLGD, v_SLGV, options, causal=False, distance=self._distances.get(L))
