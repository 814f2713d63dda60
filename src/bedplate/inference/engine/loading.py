"""What is put between the base and requests, and taken away again: LoRA weights, soft prompts, pinned beginnings.

Called by whoever holds the engine's compute lock, so between two steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.core.errors import UsageError
from bedplate.inference.engine.checks import check_vectors
from bedplate.inference.engine.runner import Runner
from bedplate.inference.forward.adapters import Adapters, Loaded
from bedplate.inference.forward.radix import RadixTree
from bedplate.inference.forward.torch import Forward, TorchForward
from bedplate.models.checkpoints.base import Base

if TYPE_CHECKING:
    from bedplate.adapters.lora import LoraConfig


class Loading:
    """Loads into `bank` and `tree`. adapters: what is loaded, by its keys.

    forward: what computes; plain: the same in torch, whose weights LoRA's are checked against.
    """

    def __init__(
        self, base: Base, bank: Bank, forward: Forward, plain: TorchForward, tree: RadixTree, runner: Runner
    ) -> None:
        self._base, self._bank, self._forward, self._torch = base, bank, forward, plain
        self._tree, self._runner = tree, runner
        self.adapters = Adapters(self._free)

    def load_adapter(self, key: str, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
        """UsageError where the key is taken."""
        self.adapters.check_new(key)
        self.adapters.sweep()
        self._torch.complete()  # an adapter is checked against the weights that it changes
        slot = self._bank.add(config, tensors)
        try:
            self._forward.add_adapter(slot)
        except BaseException:
            self._bank.remove(slot)
            raise
        self.adapters.add(Loaded(key, slot))

    def check_soft_prompts(self) -> None:
        """UsageError where the base takes none."""
        if "generate" not in self._base.can:
            raise UsageError(f"{self._base.name} writes no text; soft prompts are for decoders that do")
        if "encode" in self._base.can:
            raise UsageError(f"{self._base.name} is an encoder–decoder; soft prompts are for decoders alone")

    def load_soft_prompt(self, key: str, vectors: Tensor, adapter: str | None) -> None:
        """UsageError where the key is taken, the vectors [P, D] do not fit, or `adapter` is a soft prompt itself."""
        self.adapters.check_new(key)
        vectors = check_vectors(self._base, vectors)
        if len(vectors) % self._tree.block:
            raise UsageError(f"on this device a soft prompt must have a multiple of {self._tree.block} vectors")
        parent = self.adapters.get(adapter)
        if parent.virtual:
            raise UsageError(f"{adapter!r} is a soft prompt itself; give the LoRA adapter that this one goes with")
        parent = self.adapters.acquire(adapter)
        loaded = Loaded(key, parent.slot, len(vectors), parent)
        try:
            self._runner.compute_prefix(loaded, loaded.virtual_tokens, vectors)
            self.adapters.add(loaded)
        except BaseException:
            self._tree.drop(loaded)
            self.adapters.release(parent)
            raise

    def _free(self, loaded: Loaded) -> None:
        """Nobody uses it any more: its prefixes go, and its slot if it is its own."""
        self._tree.drop(loaded)
        for layers in range(self._base.spec.deepest + 1):
            self._tree.drop((loaded, layers))
        if loaded.parent is None:
            self._forward.forget(loaded.slot)
            self._bank.remove(loaded.slot)

    def pin(self, tokens: Sequence[int], adapter: str | None, *, public: bool) -> None:
        """Computes a beginning where it is not pinned yet. UsageError where no such adapter is loaded."""
        loaded = self.adapters.get(adapter)
        key = (*loaded.virtual_tokens, *tokens)
        if not self._tree.is_pinned(loaded, key, public=public):
            self._runner.compute_prefix(loaded, key, public=public)

    def unpin(self, tokens: Sequence[int], adapter: str | None, *, public: bool) -> None:
        """Nothing happens where there is none."""
        if tokens and (adapter is None or adapter in self.adapters):
            loaded = self.adapters.get(adapter)
            self._tree.unpin(loaded, (*loaded.virtual_tokens, *tokens), public=public)
