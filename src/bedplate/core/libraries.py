"""Speeds up `import torch` in a process that answers once, by leaving out modules that the answer does not need.

A third of `import torch` goes into modules that only training, compiling and exporting need. `leave_parts` has them
executed when something of them is first used.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import re
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, cast

_REGISTRATIONS = "torch._meta_registrations"
"""Shapes of operations in Python, for the compiler and a few operations on the device "meta"."""
_LAST = "torch._native"
"""Kernels in Python, all of them for CUDA: nothing is imported after it. Whatever of torch is imported from then on
counts on the registrations, which come first."""
LATER = (
    *(_REGISTRATIONS, _LAST),
    *("torch.distributions", "torch.export", "torch.masked"),
    *("torch.ao", "torch.quantization"),
    *(f"torch.nn.{name}" for name in ("intrinsic", "qat", "quantizable", "quantized")),
)
"""What `import torch` imports last, and nothing else of it asks for."""
_DEFINING = ("torch", "utils", "_debug_mode", "_mode")
"""It defines an operation in Python, for which torch asks `inspect` whose file this is; that would look through all
modules for the answer, which takes some 40 ms."""
_TESTED_VERSION = re.compile(r"^__version__ = '2\.13\.", re.MULTILINE)
"""Torch's modules import each other in circles, which another order may break: other versions are imported whole."""
_LOCK_SECONDS = 10.0
"""How long a thread waits for another one that executes a module. Two that wait for each other, as where one comes to
import what the other imports, then go on with what is there, as Python's own import locks let them."""


def leave_parts() -> None:
    """From now on `import torch` leaves the modules of `LATER` for whoever first asks for something of them. Nothing is
    left where torch was imported already, or is of a version that this was not tested with.

    For processes that compute on a CPU, or else call `complete_torch`.
    """
    place = _torch_directory()
    try:
        tested = place is not None and _TESTED_VERSION.search((place / "version.py").read_text("utf-8")) is not None
    except OSError:
        tested = False
    if place is not None and tested:
        sys.meta_path.insert(0, _FINDER)
        inspect.modulesbyfile[str(place.joinpath(*_DEFINING[1:]).with_suffix(".py"))] = ".".join(_DEFINING)


def _torch_directory() -> Path | None:
    """None where torch was imported already, or is not there."""
    spec = None if "torch" in sys.modules else importlib.util.find_spec("torch")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def complete_torch() -> None:
    """Imports now what `leave_parts` has left."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    for module in [sys.modules[name] for name in LATER if name in sys.modules]:
        vars(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        after_last = fullname.startswith("torch.") and _LAST in sys.modules and _is_deferred(_REGISTRATIONS)
        if not after_last and fullname not in LATER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegistrationsFirst(spec.loader) if after_last else _DeferringLoader(spec.loader)
        return spec


_FINDER = _Finder()


class _DeferredModule(ModuleType):
    """A module that is executed when something of it is first asked for, by whichever thread: the others wait."""

    def __getattribute__(self, name: str) -> Any:
        find = super().__getattribute__
        if name in ("__class__", "__file__", "__name__", "__spec__"):
            return find(name)
        spec = find("__spec__")
        lock: threading.RLock = spec.loader_state["lock"]
        acquired = lock.acquire(timeout=_LOCK_SECONDS)
        try:
            if acquired and not spec.loader_state["begun"]:
                spec.loader_state["begun"] = True  # what it asks of itself meanwhile is there as far as it has come
                try:
                    spec.loader.exec_module(self)
                except BaseException:
                    spec.loader_state["begun"] = False
                    raise
                cast("Any", self).__class__ = ModuleType
        finally:
            if acquired:
                lock.release()
        return find(name)


def _is_deferred(name: str) -> bool:
    module = sys.modules.get(name)
    return type(module) is _DeferredModule and not cast("Any", module).__spec__.loader_state["begun"]


class _DeferringLoader(Loader):
    """Leaves a module unexecuted. (The standard library's LazyLoader is disturbed by `inspect`, which asks every module
    for its file, and in Python 3.11 by a second thread.)"""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None  # the import system sets it
        spec.loader = module.__loader__ = self._loader
        spec.loader_state = {"lock": threading.RLock(), "begun": False}
        module.__class__ = _DeferredModule


class _RegistrationsFirst(_DeferringLoader):
    """Lets the registrations be imported first, and this module by them."""

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None  # the import system sets it
        module.__spec__.loader = module.__loader__ = self._loader
        del sys.modules[module.__name__]
        vars(sys.modules[_REGISTRATIONS])
        if module.__name__ not in sys.modules:
            sys.modules[module.__name__] = module
            self._loader.exec_module(module)
