"""Next-token prediction: on documents (`NextToken`), or on completions only (`Sft`), optionally of several tokens
ahead.

Shapes: N loss positions, D features, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bedplate.core.errors import ConfigError, DataError, UsageError
from bedplate.models.decoder import Decoder
from bedplate.models.device_memory import sent
from bedplate.models.layers.attention import Attend
from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.objective import AnyModel, Models, Term, TextObjective
from bedplate.training.objectives.token_term import targets_term, token_losses


@dataclass(frozen=True)
class MultiTokenPrediction:
    """Prediction of tokens after the next, by the model's `modules` for it (DeepSeek-V3,
    https://arxiv.org/abs/2412.19437, equation 25): the mean of their losses, times `weight`, is added."""

    modules: int
    weight: float = 0.3

    def terms(self, batch: PackedBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """For each module's term, the positions of its targets in the flattened rows, and the targets."""
        return {f"further_{number}": batch.further_targets(number) for number in range(1, self.modules + 1)}


class NextToken(TextObjective):
    """Predicts every token of a document from those before it. The head runs only where there is a target."""

    name: ClassVar[str] = "next_token"
    architectures: ClassVar[tuple[str, ...]] = ("decoder",)
    likelihood: ClassVar[bool] = True

    def __init__(self, further: MultiTokenPrediction | None = None, z: float = 0.0) -> None:
        """z: weight of the z-loss, the squared log-sum-exp of the logits, which keeps the softmax's divisor near 1."""
        if not 0 <= z < float("inf"):
            raise ConfigError(f"{self.name}: z is {z}: it must be 0 or a positive number")
        self._multi_token, self._z = further, z

    def weights(self, batch: PackedBatch) -> dict[str, float]:
        """The number of targets of each term."""
        further_terms = {} if self._multi_token is None else self._multi_token.terms(batch)
        further_weights = {name: float(len(learned)) for name, (learned, _) in further_terms.items()}
        return {self.name: float(batch.target_count), **further_weights}

    def __call__(self, models: Models, batch: PackedBatch) -> dict[str, Term]:
        model = models["policy"]
        inputs = batch.inputs
        attend = inputs.layout(causal=True)
        hidden_BTD = model(inputs, attend).hidden
        terms = {self.name: targets_term(model, hidden_BTD, batch, z=self._z)}
        return terms if self._multi_token is None else terms | self._further_terms(model, batch, hidden_BTD, attend)

    def _further_terms(
        self, model: AnyModel, batch: PackedBatch, hidden_BTD: Tensor, attend: Attend
    ) -> dict[str, Term]:
        multi_token = self._multi_token
        assert multi_token is not None
        if not isinstance(model, Decoder) or len(model.predictions) != multi_token.modules:
            raise UsageError(f"{multi_token.modules} modules are to predict further tokens; this model has others")
        states, terms = model.predict_ahead(hidden_BTD, batch.inputs, attend), multi_token.terms(batch)
        losses: dict[str, Term] = {}
        for state_BTD, (name, positions_and_targets) in zip(states, terms.items(), strict=True):
            learned, targets_N = (sent(tensor, hidden_BTD.device) for tensor in positions_and_targets)
            hidden_ND = state_BTD.reshape(-1, state_BTD.shape[-1]).index_select(0, learned)
            loss = token_losses(model, hidden_ND, targets_N)
            total = loss * (multi_token.weight / multi_token.modules)
            losses[name] = Term(total, float(len(learned)), {"unweighted": loss.detach()})
        return losses


class Sft(NextToken):
    """Supervised fine-tuning: the same loss, where every example must have a completion."""

    name: ClassVar[str] = "sft"

    def weights(self, batch: PackedBatch) -> dict[str, float]:
        """The number of targets. DataError for an example without any."""
        for name, losses in zip(batch.ids, batch.losses, strict=True):
            if not losses:
                raise DataError(f"example {name!r}: no token carries loss, so nothing can be learned from it")
        return super().weights(batch)
