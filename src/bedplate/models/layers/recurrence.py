"""Recurrences whose state is one matrix a head, decayed at every token: token by token, and in chunks.

    S_t = e^{g_t} S_{t-1} + k_t u_tᵀ        o_t = S_tᵀ q_t

Without `beta`, u_t = v_t: Mamba-2 (https://arxiv.org/abs/2405.21060) and gated linear attention. With it, u_t =
beta_t (v_t − (e^{g_t} S_{t-1})ᵀ k_t): the gated delta rule (https://arxiv.org/abs/2412.06464), of whose chunks all u
are found at once by solving a triangular system (https://arxiv.org/abs/2406.06484).

Shapes: S sequences, L tokens, H heads, K features of a query and a key, V of a value, c tokens of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def recurrent(
    q_SLHK: Tensor, k_SLHK: Tensor, v_SLHV: Tensor, g_SLH: Tensor, beta_SLH: Tensor | None, state_SHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs [S, L, H, V] and the last state, token by token, as the formula stands."""
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
    """The same as products over `size` tokens at a time: inside a chunk as attention, from chunk to chunk by state."""
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
    """How much of what token j wrote is left at token i: e^{g_{j+1} + … + g_i} [..., c, c], 0 above the diagonal.

    Each sum is made by itself: differences of two long ones cancel, and their gradients more so.
    """
    size = g.shape[-1]
    written = torch.ones(size, size, dtype=torch.bool, device=g.device).tril()
    log_decay = g[..., None].expand(*g.shape, size).masked_fill(~written.tril(-1), 0).cumsum(-2)
    return log_decay.masked_fill(~written, -torch.inf).exp()


def _chunks(x_SLHD: Tensor, size: int) -> Tensor:
    """[S, H, chunks, size, D], with zeros behind the end, which write nothing and decay nothing."""
    x = F.pad(x_SLHD, (0, 0, 0, 0, 0, -x_SLHD.shape[1] % size))
    return x.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4)


def run(
    q_SLHK: Tensor, k_SLHK: Tensor, v_SLHV: Tensor, g_SLH: Tensor, beta_SLH: Tensor | None, state_SHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Whichever of the two is faster: single tokens as they come, longer pieces in chunks."""
    form = recurrent if q_SLHK.shape[1] == 1 else chunked
    return form(q_SLHK, k_SLHK, v_SLHV, g_SLH, beta_SLH, state_SHKV)
