"""How many operations a piece of code starts, and how often it waits for a device: what a GPU would be asked for,
counted on CPU tensors."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = (
    "item",
    "tolist",
    "numpy",
    "cpu",
    "nonzero",
    "argwhere",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__array__",
)
"""Methods that give the host a tensor's values, or a shape that depends on them."""


class _Operations(TorchDispatchMode):
    """Counts operations below autograd. Views start nothing, nor does `detach_`."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if not func.is_view and not name.startswith("aten.detach"):
            self._counts[name] += 1
        if name == "aten.repeat_interleave.Tensor" and (kwargs or {}).get("output_size") is None:
            self._counts["how many there will be"] += 1
        return func(*args, **(kwargs or {}))


class _Waits(TorchFunctionMode):
    """Counts calls that wait for what was started, and copies that the host waits for."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in WAITS or func in (torch.nonzero, torch.tensor, torch.as_tensor):
            self._counts[name] += 1
        if func is torch.where and len(args) == 1:
            self._counts["where"] += 1
        return func(*args, **(kwargs or {}))


class Counted:
    """Within it, what is started and what is waited for, by name. `torch.tensor` waits as well: it copies from memory
    that is not pinned. So does whatever a boolean mask picks (`aten.nonzero`)."""

    def __init__(self) -> None:
        self.operations, self.waits = Counter[str](), Counter[str]()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(_Waits(self.waits))
        self._stack.enter_context(_Operations(self.operations))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        hidden = (
            "aten.item.default",
            "aten._local_scalar_dense.default",
            "aten.is_nonzero.default",
            "aten.nonzero.default",
            "aten.equal.default",
            "aten.unique_dim.default",
            "aten._unique2.default",
            "aten.masked_select.default",
            "aten.bincount.default",
            "how many there will be",
        )
        counted_waits = sum(self.waits[name] for name in WAITS)
        below = sum(self.operations[name] for name in hidden)
        # What the methods above ask for is seen twice.
        self.waits["below"] += max(below - counted_waits, 0)

    @property
    def started(self) -> int:
        """Operations, without what only reads a value back."""
        return self.operations.total()

    @property
    def waited(self) -> int:
        """Times that the host waited."""
        return self.waits.total()
