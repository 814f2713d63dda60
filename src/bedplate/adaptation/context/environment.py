"""What a run computes with: versions of this code and of the libraries whose arithmetic it is, and of the machine."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from bedplate.core.files import sha256_file, sha256_json
from bedplate.core.version import PACKAGE, __version__

_LIBRARIES = ("numpy", "scikit-learn", "scipy", "tokenizers", "torch")


@cache
def code_hash() -> str:
    """sha256 (hex) of this package's source files: its version says less than that between two releases."""
    root = PACKAGE
    return sha256_json({path.relative_to(root).as_posix(): sha256_file(path) for path in sorted(root.rglob("*.py"))})


def environment() -> dict[str, str]:
    """Name → version, of what a skin's numbers may depend on. threads: torch's; sums are made in their order."""
    versions = {"bedplate": __version__, "code": code_hash(), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # of a build that carries no metadata
            versions[name] = "unknown"
    processor = "cuda" if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return versions | {"processor": f"{platform.machine()} {processor}", "threads": str(torch.get_num_threads())}
