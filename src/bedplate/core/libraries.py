"""How torch is imported by a process that answers once: its libraries while Python does something else, and of its
modules those that the answer needs.

Loading the libraries takes a sixth of a second, in which the interpreter is free to import what needs no torch. A third
of the rest of `import torch` goes into modules that only training, compiling and exporting need.
"""

from __future__ import annotations

import ctypes
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
from typing import Any, ClassVar, cast

_TORCH = (("libtorch_global_deps.so", ctypes.RTLD_GLOBAL), ("libtorch_cpu.so", ctypes.DEFAULT_MODE))
"""In the order, and seen by others, as `import torch` loads them."""
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
_TRIED = re.compile(r"^__version__ = '2\.13\.", re.MULTILINE)
"""Torch's modules import each other in circles, which another order may break: what has not been tried is imported as
it stands."""

_MODULE_LOCK = ("<frozen importlib._bootstrap>", "acquire")
"""Where a thread waits for another one that imports a module."""
_PAUSE = 0.02
"""Seconds between two looks at what a thread waits for that executes a module."""


def torch_beside() -> threading.Thread | None:
    """Begins to load the libraries that `import torch` will need; None where it was imported already, or where they do
    not lie as on Linux. What goes wrong is left for that import to say."""
    place = _torch()
    if place is None or not all((place / "lib" / name).is_file() for name, _ in _TORCH):
        return None
    loading = threading.Thread(target=_load, args=(place / "lib",), name="bedplate-libraries")
    loading.start()
    return loading


def _torch() -> Path | None:
    """Where torch lies; None where it was imported already, or is not there."""
    spec = None if "torch" in sys.modules else importlib.util.find_spec("torch")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _load(place: Path) -> None:
    """The second needs what the first has loaded."""
    try:
        for name, mode in _TORCH:
            ctypes.CDLL(str(place / name), mode)
    except OSError:
        return


def leave_parts() -> None:
    """From now on `import torch` leaves the modules of `LATER` for whoever first asks for something of them. Nothing is
    left where torch was imported already, or is of a version that this was not tried with.

    It is for processes that compute on a CPU, or else call `complete_torch`.
    """
    place = _torch()
    try:
        tried = place is not None and _TRIED.search((place / "version.py").read_text("utf-8")) is not None
    except OSError:
        tried = False
    if place is not None and tried:
        sys.meta_path.insert(0, _FINDER)
        inspect.modulesbyfile[str(place.joinpath(*_DEFINING[1:]).with_suffix(".py"))] = ".".join(_DEFINING)


def complete_torch() -> None:
    """Nothing is left any more: what `leave_parts` has left is imported now."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    for module in [sys.modules[name] for name in LATER if name in sys.modules]:
        vars(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        following = fullname.startswith("torch.") and _LAST in sys.modules and _is_left(_REGISTRATIONS)
        if not following and fullname not in LATER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Following(spec.loader) if following else _Leaving(spec.loader)
        return spec


_FINDER = _Finder()


class _State:
    """Whether a module that was left has been begun, and by which thread."""

    waiting: ClassVar[dict[int, _State]] = {}
    """What a thread waits for here."""

    def __init__(self) -> None:
        self.lock, self.begun, self.thread = threading.RLock(), False, 0

    def enter(self) -> bool:
        """Waits for a thread that executes the module; False where that one waits for this one, as it does where it
        comes to import what this thread is importing. Python's own locks of modules give way in the same manner."""
        me = threading.get_ident()
        try:
            while not self.lock.acquire(timeout=_PAUSE):
                self.waiting[me] = self
                if self._waits_for(me):
                    return False
        finally:
            self.waiting.pop(me, None)
        self.thread = me
        return True

    def _waits_for(self, me: int) -> bool:
        frames, thread, visited = cast("Any", sys)._current_frames(), self.thread, set[int]()
        while thread not in visited and thread != me:
            visited.add(thread)
            awaited, frame = self.waiting.get(thread), frames.get(thread)
            if awaited is not None:
                thread = awaited.thread
            elif frame is not None and (frame.f_code.co_filename, frame.f_code.co_name) == _MODULE_LOCK:
                thread = getattr(frame.f_locals.get("self"), "owner", None) or 0
        return thread == me


class _LazyModule(ModuleType):
    """A module that is executed when something of it is first asked for, by whichever thread: the others wait."""

    def __getattribute__(self, name: str) -> Any:
        get_attribute = super().__getattribute__
        if name not in ("__class__", "__file__", "__name__", "__spec__"):
            spec = get_attribute("__spec__")
            state = spec.loader_state
            if state.enter():
                try:
                    _execute(self, spec, state)
                finally:
                    state.lock.release()
        return get_attribute(name)


def _execute(module: ModuleType, spec: importlib.machinery.ModuleSpec, state: _State) -> None:
    if state.begun:
        return
    state.begun = True  # what it asks of itself meanwhile is there as far as it has come
    try:
        assert spec.loader is not None  # as it was found
        spec.loader.exec_module(module)
    except BaseException:
        state.begun = False
        raise
    module.__class__ = ModuleType


def _is_left(name: str) -> bool:
    module = sys.modules.get(name)
    return type(module) is _LazyModule and not cast("Any", module).__spec__.loader_state.begun


class _Around(Loader):
    """Does with a module what its own loader does, at another time."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)


class _Leaving(_Around):
    """Leaves a module unexecuted. (The standard library's LazyLoader is disturbed by `inspect`, which asks every module
    for its file, and in Python 3.11 by a second thread.)"""

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None  # the import system sets it
        spec.loader = module.__loader__ = self._loader
        spec.loader_state = _State()
        module.__class__ = _LazyModule


class _Following(_Around):
    """Lets the registrations be imported first, and this module by them."""

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None  # the import system sets it
        module.__spec__.loader = module.__loader__ = self._loader
        del sys.modules[module.__name__]
        vars(sys.modules[_REGISTRATIONS])
        if module.__name__ not in sys.modules:
            sys.modules[module.__name__] = module
            self._loader.exec_module(module)
