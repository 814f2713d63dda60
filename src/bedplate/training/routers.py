"""Router losses, load statistics and selection biases of models with experts.

All are sums over tokens or documents, so that micro-batches, packing and ranks do not change them. The auxiliary loss
of a document is E Σ_e f_e P_e, with f_e the share of its choices that fell on expert e and P_e its mean score (Switch
Transformer, https://arxiv.org/abs/2101.03961, equations 4 to 6). Without a loss, each step moves an expert's selection
bias towards the mean load (https://arxiv.org/abs/2408.15664).

Shapes: N tokens of a micro-batch, L layers with experts, E experts, k of them per token, S documents.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.core.errors import TrainingError, UsageError
from bedplate.models.device_memory import integers, sent
from bedplate.models.inputs import Inputs
from bedplate.models.layers.experts import Router, Routing
from bedplate.models.packed.placement import Placement
from bedplate.training.batch import MicroBatch
from bedplate.training.config import RouterConfig
from bedplate.training.objectives.objective import AnyModel, Term
from bedplate.training.ranks import ALONE, Ranks

TERM = "router"
_STATE = "selection_bias/"


class Routers:
    """The routers of the model that is trained, with their loads since the last step."""

    def __init__(self, routers: Sequence[Router], config: RouterConfig, ranks: Ranks) -> None:
        self._routers, self._config, self._ranks = routers, config, ranks
        self._load: dict[Router, Tensor] = {}

    @classmethod
    def of(
        cls, model: AnyModel, config: RouterConfig, trained: Iterable[nn.Parameter], ranks: Ranks = ALONE
    ) -> Routers | None:
        """The routers of a model; None without experts. UsageError for settings that do not apply to the model, or that
        would change a frozen base."""
        routers = [module for module in model.modules() if isinstance(module, Router)]
        if not routers:
            if config != RouterConfig():
                raise UsageError("router is for models with experts, and this one has none; leave it out")
            return None
        if config.bias_rate:
            base_ids = {id(parameter) for parameter in model.parameters()}
            if any(router.selection_bias is None for router in routers):
                raise UsageError("router.bias_rate needs routers with a selection bias; use router.balance instead")
            if not any(id(parameter) in base_ids for parameter in trained):
                raise UsageError("router.bias_rate changes the base, of which this run trains nothing; leave it out")
        return cls(routers, config, ranks)

    def weights(self, batch: MicroBatch) -> dict[str, float]:
        """The number of tokens, those of a shared prefix once for each document that begins with it."""
        documents = _placement(batch.inputs).documents
        return {TERM: float(sum(document.whole for document in documents if document.segment))}

    def terms(self, routings: Sequence[Routing], batch: MicroBatch) -> dict[str, Term]:
        """The losses over one micro-batch, with statistics: `balance` (and by layer), `z`, `entropy` relative to its
        maximum, and each expert's share of the choices, `load/e`; means over layers."""
        by_router = {routing.router: routing for routing in routings}
        layer_routings = [by_router[router] for router in self._routers if router in by_router]
        inside = RoutedDocuments(_placement(batch.inputs), batch.inputs.tokens.device)
        if not layer_routings or any(len(routing.logits_NE) != len(inside.counts_N) for routing in layer_routings):
            raise TrainingError("router losses are of one pass over the batch's tokens, which this objective lacks")
        self._count(layer_routings, inside.counts_N)
        statistics = _statistics(layer_routings, inside)
        loss = self._config.balance * statistics["balance"] + self._config.z * statistics["z"]
        metrics = {name: statistic.detach() for name, statistic in statistics.items()}
        return {TERM: Term(loss, self.weights(batch)[TERM], metrics)}

    @torch.no_grad()
    def _count(self, layer_routings: Sequence[Routing], counts_N: Tensor) -> None:
        if not self._config.bias_rate:
            return
        for routing in layer_routings:
            each_M = counts_N.repeat_interleave(routing.chosen_Nk.shape[1])
            load_E = self._load_of(routing.router).scatter_add(0, routing.chosen_Nk.reshape(-1), each_M)
            self._load[routing.router] = load_E

    def _load_of(self, router: Router) -> Tensor:
        """Tokens that chose each expert since the last step, int64 [E]."""
        zeros_E = torch.zeros(router.part.count, dtype=torch.int64, device=router.weight.device)
        return self._load.get(router, zeros_E)

    @torch.no_grad()
    def step(self, void: Tensor) -> None:
        """Updates the selection biases after an optimizer step, from the loads of all ranks, some of which may have had
        no tokens. void: a scalar on the device; 1: no update."""
        if not self._config.bias_rate:
            return
        load_RE = self._ranks.device_sum(torch.stack([self._load_of(router) for router in self._routers]))
        move_RE = (load_RE.sum(1, keepdim=True) - load_RE.shape[1] * load_RE).sign() * self._config.bias_rate
        for router, move_E in zip(self._routers, move_RE, strict=True):
            assert router.selection_bias is not None
            router.selection_bias += (move_E * (1 - void)).to(router.selection_bias.dtype)
        self._load = {}

    def tensors(self) -> dict[str, Tensor]:
        """The selection biases, for the saved state."""
        biases = {f"{_STATE}{router.layer}": router.selection_bias for router in self._routers}
        return {name: bias.clone() for name, bias in biases.items() if bias is not None}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the result of `tensors`."""
        for router in self._routers:
            if router.selection_bias is not None:
                router.selection_bias.copy_(tensors[f"{_STATE}{router.layer}"])


def _placement(inputs: Inputs) -> Placement:
    """The documents' places in these rows; without a placement, each row is one document."""
    return inputs.placed() or Placement.of(torch.ones_like(inputs.tokens))


class RoutedDocuments:
    """The documents of a micro-batch's rows, for sums over each one with its row's shared prefix, as if it stood alone.
    Nothing is read from the device.

    counts_N: the number of documents to which each token of the flattened rows belongs; 0: padding.
    """

    def __init__(self, placement: Placement, device: torch.device) -> None:
        documents = placement.documents
        prefixes = {document.row: number for number, document in enumerate(documents) if not document.segment}
        in_row = Counter(document.row for document in documents if document.segment)
        # Two entries follow the documents': padding, and an absent prefix, whose sums stay 0.
        self._padding, no_prefix = len(documents), len(documents) + 1
        fields_3S = [
            [prefixes.get(document.row, no_prefix) for document in documents],
            [1 if document.segment else in_row[document.row] for document in documents],
            [min(document.segment, 1) for document in documents],
        ]
        self._prefix_S, counts_S, self._is_document_S = integers(np.array(fields_3S, np.int64), device)
        self._number_N = sent(placement.numbers_N % no_prefix, device)
        self.counts_N = F.pad(counts_S, (0, 1)).index_select(0, self._number_N)

    def sums(self, values_LNE: Tensor) -> Tensor:
        """Sums over each document's tokens, [L, S, E]; zeros in places without a document."""
        L, _, E = values_LNE.shape
        own_LSE = values_LNE.new_zeros(L, self._padding + 2, E).index_add(1, self._number_N, values_LNE)
        with_prefix_LSE = own_LSE[:, : self._padding] + own_LSE.index_select(1, self._prefix_S)
        return with_prefix_LSE * self._is_document_S[:, None]


def _statistics(layer_routings: Sequence[Routing], inside: RoutedDocuments) -> dict[str, Tensor]:
    """The statistics that `Routers.terms` names, summed over tokens."""
    logits_LNE = torch.stack([routing.logits_NE for routing in layer_routings])
    scores_LNE = torch.stack([routing.scores_NE for routing in layer_routings])
    scores_LNE = scores_LNE / scores_LNE.sum(-1, keepdim=True)
    (L, N, E), chosen_LNk = scores_LNE.shape, torch.stack([routing.chosen_Nk for routing in layer_routings])
    counts_N = inside.counts_N.to(scores_LNE.dtype)
    falls_LNE = torch.zeros_like(scores_LNE).scatter_(2, chosen_LNk, 1.0)
    tokens_1S1 = inside.sums(scores_LNE.new_ones(1, N, 1)).clamp(min=1)
    balance_L = E * (inside.sums(falls_LNE) * inside.sums(scores_LNE) / tokens_1S1).sum((1, 2))
    load_E = (falls_LNE * counts_N[:, None]).sum((0, 1)) / (L * chosen_LNk.shape[2])
    entropy_LN = torch.special.entr(scores_LNE.detach()).sum(-1) * counts_N
    return {
        "balance": balance_L.mean(),
        "z": (logits_LNE.logsumexp(-1).square() * counts_N).sum() / L,
        "entropy": entropy_LN.sum() / (L * math.log(max(E, 2))),
        **{
            f"balance/{routing.router.layer}": balance
            for routing, balance in zip(layer_routings, balance_L, strict=True)
        },
        **{f"load/{e}": load for e, load in enumerate(load_E.unbind())},
    }
