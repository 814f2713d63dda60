"""Recurrent token mixers, in place of attention: short convolutions, gated delta networks, Mamba-2.

The state of the last two is one matrix per head, which decays at every token; it is computed token by token or in
chunks:

    S_t = e^{g_t} S_{t-1} + k_t u_tᵀ        o_t = S_tᵀ q_t

Without `beta`, u_t = v_t: Mamba-2 (https://arxiv.org/abs/2405.21060) and gated linear attention. With it, u_t =
beta_t (v_t − (e^{g_t} S_{t-1})ᵀ k_t): the gated delta rule (https://arxiv.org/abs/2412.06464); all u of a chunk are
computed at once by solving a triangular system (https://arxiv.org/abs/2406.06484).

Shapes: S sequences, L tokens, C features, H heads, G groups of heads that share keys, K features of a query and a key
(N of Mamba's state), V of a value, c tokens of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.layers.attention import Attend
from bedplate.models.layers.attention_options import State
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import GatedNorm
from bedplate.models.layers.positions import Rotation
from bedplate.models.precision import Device
from bedplate.models.specs.parts import DeltaRule, Mamba2, ShortConvolution
from bedplate.models.specs.transformer import TransformerSpec

CHUNK = 64
L2_EPS = 1e-6
"""Added to a query's and a key's squared length."""


def recurrent(
    q_SLHK: Tensor, k_SLHK: Tensor, v_SLHV: Tensor, g_SLH: Tensor, beta_SLH: Tensor | None, state_SHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs [S, L, H, V] and the last state, token by token: the formula written out."""
    out: list[Tensor] = []
    for t in range(q_SLHK.shape[1]):
        state_SHKV = state_SHKV * g_SLH[:, t].exp()[..., None, None]
        u, k = v_SLHV[:, t], k_SLHK[:, t, ..., None]
        if beta_SLH is not None:
            u = (u - (state_SHKV * k).sum(2)) * beta_SLH[:, t, :, None]
        state_SHKV = state_SHKV + k * u[:, :, None]
        out.append((state_SHKV * q_SLHK[:, t, ..., None]).sum(2))
    return torch.stack(out, dim=1), state_SHKV


def chunked(
    q_SLHK: Tensor,
    k_SLHK: Tensor,
    v_SLHV: Tensor,
    g_SLH: Tensor,
    beta_SLH: Tensor | None,
    state_SHKV: Tensor,
    size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """`recurrent` as matrix products over chunks of `size` tokens: attention inside a chunk, the state between
    chunks."""
    L = q_SLHK.shape[1]
    size = min(size, L)
    q, k, v, g = (_chunks(x, size) for x in (q_SLHK, k_SLHK, v_SLHV, g_SLH[..., None]))
    g = g[..., 0]
    sums, decay = g.cumsum(-1), _decay(g)
    scores = (q @ k.mT) * decay
    reads: Tensor | None = None
    if beta_SLH is not None:
        beta = _chunks(beta_SLH[..., None], size)
        right_side = torch.cat((beta * v, beta * k * sums.exp()[..., None]), dim=-1)
        solved = torch.linalg.solve_triangular((beta * k @ k.mT) * decay, right_side, upper=False, unitriangular=True)
        v, reads = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    q = q * sums.exp()[..., None]
    k = k * (sums[..., -1:] - sums).exp()[..., None]
    whole = sums[..., -1].exp()[..., None, None]
    out: list[Tensor] = []
    for n in range(q.shape[2]):
        u = v[:, :, n] if reads is None else v[:, :, n] - reads[:, :, n] @ state_SHKV
        out.append(q[:, :, n] @ state_SHKV + scores[:, :, n] @ u)
        state_SHKV = state_SHKV * whole[:, :, n] + k[:, :, n].mT @ u
    return torch.cat(out, dim=2)[:, :, :L].transpose(1, 2), state_SHKV


def _decay(g: Tensor) -> Tensor:
    """The factor by which the update of token j has decayed at token i: e^{g_{j+1} + … + g_i} [..., c, c], 0 above the
    diagonal.

    Each sum is computed separately: differences of two long sums cancel, and their gradients more so.
    """
    size = g.shape[-1]
    written = torch.ones(size, size, dtype=torch.bool, device=g.device).tril()
    log_decay = g[..., None].expand(*g.shape, size).masked_fill(~written.tril(-1), 0).cumsum(-2)
    return log_decay.masked_fill(~written, -torch.inf).exp()


def _chunks(x_SLHD: Tensor, size: int) -> Tensor:
    """[S, H, chunks, size, D], padded with zeros, which write nothing and decay nothing."""
    x = F.pad(x_SLHD, (0, 0, 0, 0, 0, -x_SLHD.shape[1] % size))
    return x.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4)


def run(
    q_SLHK: Tensor, k_SLHK: Tensor, v_SLHV: Tensor, g_SLH: Tensor, beta_SLH: Tensor | None, state_SHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """`recurrent` for single tokens, `chunked` for more: the faster form."""
    form = recurrent if q_SLHK.shape[1] == 1 else chunked
    return form(q_SLHK, k_SLHK, v_SLHV, g_SLH, beta_SLH, state_SHKV)


class CausalConvolution(nn.Module):
    """A depthwise causal convolution: y_t = Σ_w weight[:, w] · x_{t−W+1+w} + bias. Inputs before the beginning are
    zero."""

    bias: nn.Parameter | None

    def __init__(self, features: int, width: int, bias: bool, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(features, width, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(features, device=device, dtype=dtype)) if bias else None
        )
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, x_SLC: Tensor, lengths_S: Tensor | None, before_SwC: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs [S, L, C] and the last W − 1 inputs. before: the last W − 1 inputs of the previous piece (see
        `Recurrence`)."""
        (S, L, C), w = x_SLC.shape, self.width - 1
        x = torch.cat((x_SLC.new_zeros(S, w, C) if before_SwC is None else before_SwC, x_SLC), dim=1)
        # A sum over weights gives the same values for any number of tokens, and is as fast as a kernel for so few.
        y = x[:, w:] * self.weight[:, w]
        for at in range(w):
            y = y + x[:, at : at + L] * self.weight[:, at]
        if lengths_S is None:
            last = x[:, L:]
        else:
            index = (lengths_S[:, None] + torch.arange(w, device=x.device))[..., None].expand(S, w, C)
            last = x.gather(1, index)
        return (y if self.bias is None else y + self.bias), last


class ConvolutionMixer(nn.Module):
    """LFM2's mixer (https://arxiv.org/abs/2511.23404): `out(c ⊙ convolution(b ⊙ x))`, where b, c and x are projections
    of the input."""

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        part, D = spec.state.mixer, spec.hidden_size
        assert isinstance(part, ShortConvolution)
        self.layer = layer
        self.input = Linear(D, 3 * D, part.bias, device, dtype)
        self.convolution = CausalConvolution(D, part.width, part.bias, device, dtype)
        self.output = Linear(D, D, part.bias, device, dtype)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        b, c, x = self.input(x_BTD).chunk(3, dim=-1)
        return self.output(c * attend.recur(self.layer, self._run, b * x))

    def _run(self, x_SLC: Tensor, lengths_S: Tensor | None, before: State | None) -> tuple[Tensor, State]:
        y, last = self.convolution(x_SLC, lengths_S, None if before is None else before[0])
        return y, (last,)


class DeltaRuleMixer(nn.Module):
    """A gated delta network (https://arxiv.org/abs/2412.06464), as in Qwen3-Next and Qwen3.5: linear attention whose
    state decays by a gate and is corrected toward each value.

    Queries, keys and values pass a short convolution; queries and keys are unit vectors; each value head has a rate
    `sigmoid(rate x)` and a decay `−exp(log_decay) · softplus(step x + step_bias)`. The output is normalised over each
    head and gated.
    """

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        part, D = spec.state.mixer, spec.hidden_size
        assert isinstance(part, DeltaRule)
        self.layer, self.part = layer, part
        self.qkv = Linear(D, part.channels, False, device, dtype)
        self.gate = Linear(D, part.heads * part.value_dim, False, device, dtype)
        self.rate = Linear(D, part.heads, False, device, dtype)
        self.step = Linear(D, part.heads, False, device, dtype)
        self.convolution = CausalConvolution(part.channels, part.width, False, device, dtype)
        self.step_bias = nn.Parameter(torch.ones(part.heads, device=device, dtype=dtype))
        self.log_decay = nn.Parameter(torch.zeros(part.heads, device=device, dtype=dtype))
        self.norm = GatedNorm(part.value_dim, spec.norm.eps, device, dtype)
        self.output = Linear(part.heads * part.value_dim, D, False, device, dtype)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        x = torch.cat((self.qkv(x_BTD), self.rate(x_BTD), self.step(x_BTD)), dim=-1)
        read, gate = attend.recur(self.layer, self._run, x), self.gate(x_BTD)
        shape = (*x_BTD.shape[:2], self.part.heads, self.part.value_dim)
        return self.output(self.norm(read.view(shape), gate.view(shape)).flatten(2))

    def _run(self, x_SLC: Tensor, lengths_S: Tensor | None, before: State | None) -> tuple[Tensor, State]:
        (S, L, _), part = x_SLC.shape, self.part
        compute_dtype = torch.promote_types(x_SLC.dtype, torch.float32)
        qkv, rate, step = x_SLC.split((part.channels, part.heads, part.heads), dim=-1)
        qkv, last = self.convolution(qkv, lengths_S, None if before is None else before[0])
        key = part.key_heads * part.key_dim
        q, k, v = F.silu(qkv).to(compute_dtype).split((key, key, part.heads * part.value_dim), dim=-1)
        q, k = (self._unit(tensor.view(S, L, part.key_heads, part.key_dim)) for tensor in (q, k))
        beta = rate.sigmoid().to(compute_dtype)
        g = -self.log_decay.to(compute_dtype).exp() * F.softplus(step.to(compute_dtype) + self.step_bias)
        if lengths_S is not None:
            inside = (torch.arange(L, device=x_SLC.device) < lengths_S[:, None])[..., None]
            beta, g = beta * inside, g * inside
        state = x_SLC.new_zeros(S, *part.state_shape, dtype=compute_dtype) if before is None else before[1]
        y, state = run(q * part.key_dim**-0.5, k, v.view(S, L, part.heads, -1), g, beta, state)
        return y.flatten(2).to(x_SLC.dtype), (last, state)

    def _unit(self, x: Tensor) -> Tensor:
        """Normalises to length 1, and repeats for each value head that shares the key head."""
        x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)
        return x.repeat_interleave(self.part.heads // self.part.key_heads, dim=2)


class Mamba2Mixer(nn.Module):
    """Mamba-2 (https://arxiv.org/abs/2405.21060): a state space model whose decay and input depend on the token.

    x, b and c pass a short convolution; with dt = softplus(step + step_bias) a head's state [N, P] becomes
    `exp(−exp(log_decay) dt) · state + dt b xᵀ`, and its output `stateᵀ c + skip · x`, gated and then normalised.
    """

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        part, D = spec.state.mixer, spec.hidden_size
        assert isinstance(part, Mamba2)
        self.layer, self.part = layer, part
        self.input = Linear(D, part.inner + part.channels + part.heads, part.bias, device, dtype)
        self.convolution = CausalConvolution(part.channels, part.width, part.convolution_bias, device, dtype)
        self.step_bias = nn.Parameter(torch.ones(part.heads, device=device, dtype=dtype))
        self.log_decay = nn.Parameter(torch.zeros(part.heads, device=device, dtype=dtype))
        self.skip = nn.Parameter(torch.ones(part.heads, device=device, dtype=dtype))
        self.norm = GatedNorm(part.inner, spec.norm.eps, device, dtype, groups=part.groups, gate_first=True)
        self.output = Linear(part.inner, D, part.bias, device, dtype)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        gate, x = self.input(x_BTD).tensor_split((self.part.inner,), dim=-1)
        return self.output(self.norm(attend.recur(self.layer, self._run, x), gate))

    def _run(self, x_SLC: Tensor, lengths_S: Tensor | None, before: State | None) -> tuple[Tensor, State]:
        (S, L, _), part = x_SLC.shape, self.part
        compute_dtype = torch.promote_types(x_SLC.dtype, torch.float32)
        xbc, step = x_SLC.split((part.channels, part.heads), dim=-1)
        xbc, last = self.convolution(xbc, lengths_S, None if before is None else before[0])
        shared = part.groups * part.state_dim
        x, b, c = F.silu(xbc).to(compute_dtype).split((part.inner, shared, shared), dim=-1)
        x = x.view(S, L, part.heads, part.head_dim)
        sharing = part.heads // part.groups  # heads that have a group's features
        b, c = (x.view(S, L, part.groups, part.state_dim).repeat_interleave(sharing, dim=2) for x in (b, c))
        low, high = part.step_limits
        dt = F.softplus(step.to(compute_dtype) + self.step_bias).clamp(low, high)
        if lengths_S is not None:
            dt = dt * (torch.arange(L, device=x_SLC.device) < lengths_S[:, None])[..., None]
        state = x_SLC.new_zeros(S, *part.state_shape, dtype=compute_dtype) if before is None else before[1]
        g = -self.log_decay.to(compute_dtype).exp() * dt
        y, state = run(c, b, x * dt[..., None], g, None, state)
        y = y + x * self.skip.to(compute_dtype)[:, None]
        return y.flatten(2).to(x_SLC.dtype), (last, state)
