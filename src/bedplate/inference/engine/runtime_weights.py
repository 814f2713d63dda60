"""Loads, updates and unloads weights while the engine runs: adapters, soft prompts, pinned prefixes, and new weights of
the base itself.

Called by the holder of the engine's compute lock, that is between two steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.linear_adapter import AdapterConfig
from bedplate.core.errors import UsageError
from bedplate.inference.engine.adapter_table import Adapters
from bedplate.inference.engine.checks import check_vectors
from bedplate.inference.engine.runner import Runner
from bedplate.inference.forward.batch import LoadedAdapter
from bedplate.inference.forward.radix import RadixTree
from bedplate.inference.forward.torch import Forward, TorchForward
from bedplate.models.checkpoints.base import Base

if TYPE_CHECKING:
    from bedplate.adapters.lora import LoraConfig


class RuntimeWeights:
    """Loads into the adapter bank and the prefix cache (`tree`). adapters: the loaded ones by key. capacity: maximum
    number of them; the bank has as many slots again, for older versions that running requests still use. forward: the
    engine's forward pass; plain: its torch implementation, against whose weights adapters are checked."""

    def __init__(
        self,
        base: Base,
        bank: Bank,
        forward: Forward,
        plain: TorchForward,
        tree: RadixTree,
        runner: Runner,
        capacity: int,
    ) -> None:
        self._base, self._bank, self._forward, self._torch = base, bank, forward, plain
        self._tree, self._runner, self._capacity = tree, runner, capacity
        self.adapters = Adapters(self._free)

    def load_adapter(self, key: str, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
        """Loads an adapter under `key`. UsageError where the key is taken, or all slots are in use."""
        self.adapters.check_new(key)
        self.adapters.sweep()
        if len(self._bank.slots) >= self._capacity:
            raise UsageError(f"all {self._capacity} adapter slots are in use; unload one, or open more (adapters)")
        self.adapters.add(LoadedAdapter(key, self._add(config, tensors), config=config))

    def _add(self, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> int:
        """Writes the adapter into a slot of the bank; returns the slot."""
        self._torch.complete()  # an adapter is checked against the weights that it changes
        slot = self._bank.add(config, tensors)
        try:
            self._forward.add_adapter(slot)
        except BaseException:
            self._bank.remove(slot)
            raise
        return slot

    def update(self, key: str, tensors: Mapping[str, Tensor]) -> int:
        """Loads the next version of an adapter, and computes its pinned prefixes anew; returns the version. UsageError
        for a soft prompt, an adapter that a soft prompt depends on, or one that is unloaded meanwhile."""
        older = self.adapters.get(key)
        if older.config is None:
            raise UsageError(f"{key!r} is a soft prompt: unload it, and load the new one")
        if self.adapters.has_children(older):
            raise UsageError(f"a soft prompt depends on the adapter {key!r}; unload the soft prompt first")
        self.adapters.sweep()
        updated = LoadedAdapter(key, self._add(older.config, tensors), config=older.config, version=older.version + 1)
        try:
            for prefix, public in self._tree.pinned_keys(older):
                self._runner.compute_prefix(updated, prefix, public=public)
            self.adapters.replace(older, updated)
        except BaseException:
            self._free(updated)
            raise
        self.adapters.sweep()
        return updated.version

    def update_base(self, tensors: Mapping[str, Tensor]) -> int:
        """Replaces the base's tensors of these names; returns the version. UsageError, with nothing changed, where the
        engine cannot take them."""
        if self._forward is not self._torch or self._forward.weights != str(self._base.dtype).removeprefix("torch."):
            raise UsageError(
                f"this engine computes with {self._forward.weights} weights and the {self._forward.name} kernel, made "
                "from the base's once; to update the base, open it with kernel='torch' and its own dtype"
            )
        self.adapters.sweep()
        if len(self.adapters) or self.adapters.retired_in_use or self._tree.pinned:
            raise UsageError(
                "adapters or pinned prefixes belong to the base's current weights; remove them first, and let the "
                "requests end that run on unloaded ones"
            )
        parameters = dict(self._base.model.named_parameters())
        for name, tensor in tensors.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                shape = list(parameters[name].shape) if name in parameters else "no such tensor"
                raise UsageError(f"{name} {list(tensor.shape)} does not fit {self._base.name}, which has {shape}")
        self._runner.recompute_running()
        self._tree.close()
        base = self.adapters.base
        base.fingerprint = _digest([("before", self.fingerprint(None)), *sorted(tensors.items())])
        for name, tensor in tensors.items():
            parameter = parameters[name]  # replaced, not written to: its memory may be mapped pages of the file
            parameter.data = tensor.detach().to(parameter.device, parameter.dtype, copy=True)
        self._torch.weights_changed()
        base.version += 1
        return base.version

    def fingerprint(self, key: str | None) -> str:
        """SHA-256 of the weights that new requests with this key run on. key: None is the base."""
        loaded = self.adapters.get(key)
        if loaded.fingerprint is None:
            if loaded is self.adapters.base:
                loaded.fingerprint = self._base.identity.weights_id
            else:
                loaded.fingerprint = _digest([("config", repr(loaded.config)), *self._bank.state(loaded.slot).items()])
        return loaded.fingerprint

    def check_soft_prompts(self) -> None:
        """UsageError for a base that takes no soft prompts."""
        if not self._base.writes:
            raise UsageError(f"{self._base.name} writes no text; soft prompts are for decoders that do")
        if self._base.has_encoder:
            raise UsageError(f"{self._base.name} is an encoder–decoder; soft prompts are for decoders alone")

    def load_soft_prompt(self, key: str, vectors: Tensor, adapter: str | None) -> None:
        """Loads a soft prompt on the base or an adapter. UsageError where the key is taken, the vectors [P, D] do not
        fit, or `adapter` is a soft prompt itself."""
        self.adapters.check_new(key)
        vectors = check_vectors(self._base, vectors)
        if len(vectors) % self._tree.block:
            raise UsageError(f"on this device a soft prompt must have a multiple of {self._tree.block} vectors")
        parent = self.adapters.get(adapter)
        if parent.virtual:
            raise UsageError(f"{adapter!r} is a soft prompt itself; give the LoRA adapter to combine this one with")
        parent = self.adapters.acquire(adapter)
        loaded = LoadedAdapter(key, parent.slot, len(vectors), parent)
        try:
            parent_fingerprint = "" if adapter is None else self.fingerprint(adapter)
            loaded.fingerprint = _digest([("on", parent_fingerprint), ("soft", vectors)])
            self._runner.compute_prefix(loaded, loaded.virtual_tokens, vectors)
            self.adapters.add(loaded)
        except BaseException:
            self._tree.drop(loaded)
            self.adapters.release(parent)
            raise

    def _free(self, loaded: LoadedAdapter) -> None:
        """Frees the prefixes of an unused adapter version, and its slot if it has one of its own."""
        self._tree.drop(loaded)
        for layers in range(self._base.spec.deepest + 1):
            self._tree.drop((loaded, layers))
        if loaded.parent is None:
            self._forward.forget(loaded.slot)
            self._bank.remove(loaded.slot)

    def pin(self, tokens: Sequence[int], adapter: str | None, *, public: bool) -> None:
        """Computes and pins a prefix that is not pinned yet. UsageError where no such adapter is loaded."""
        loaded = self.adapters.get(adapter)
        key = (*loaded.virtual_tokens, *tokens)
        if not self._tree.is_pinned(loaded, key, public=public):
            self._runner.compute_prefix(loaded, key, public=public)

    def unpin(self, tokens: Sequence[int], adapter: str | None, *, public: bool) -> None:
        """Unpins a prefix; does nothing where it is not pinned."""
        if tokens and (adapter is None or adapter in self.adapters):
            loaded = self.adapters.get(adapter)
            self._tree.unpin(loaded, (*loaded.virtual_tokens, *tokens), public=public)


def _digest(parts: Sequence[tuple[str, Tensor | str]]) -> str:
    """SHA-256 of named tensors and texts, in their order."""
    digest = hashlib.sha256()
    for name, part in parts:
        digest.update(f"{name}\n".encode())
        if isinstance(part, Tensor):
            values = part.detach().to("cpu", torch.float32).contiguous()
            digest.update(str(list(values.shape)).encode())
            digest.update(values.numpy().data)
        else:
            digest.update(part.encode())
    return digest.hexdigest()
