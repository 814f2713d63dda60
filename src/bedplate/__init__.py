"""Bedplate: one base model, many skins. The public API; each name is imported when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bedplate.core.errors import BedplateError
from bedplate.core.version import __version__

if TYPE_CHECKING:
    from bedplate.adaptation.ladder import adapt
    from bedplate.adaptation.postprocess.compare_skins import compare
    from bedplate.adaptation.postprocess.evaluate import evaluate
    from bedplate.adaptation.task.proposal import init
    from bedplate.economics import plan
    from bedplate.evaluation.task import Task
    from bedplate.hub.pull import pull
    from bedplate.inference.predict.loaded import load
    from bedplate.pretraining.run.pretrain import pretrain
    from bedplate.report.run_report import load_report
    from bedplate.serving.server.app import serve
    from bedplate.skins.skin import Skin


__all__ = [
    "BedplateError",
    "Skin",
    "Task",
    "__version__",
    "adapt",
    "compare",
    "evaluate",
    "init",
    "load",
    "load_report",
    "plan",
    "pretrain",
    "pull",
    "serve",
]

_MODULES: dict[str, str] = {
    "Skin": "bedplate.skins.skin",
    "Task": "bedplate.evaluation.task",
    "adapt": "bedplate.adaptation.ladder",
    "compare": "bedplate.adaptation.postprocess.compare_skins",
    "evaluate": "bedplate.adaptation.postprocess.evaluate",
    "init": "bedplate.adaptation.task.proposal",
    "load": "bedplate.inference.predict.loaded",
    "load_report": "bedplate.report.run_report",
    "plan": "bedplate.economics",
    "pretrain": "bedplate.pretraining.run.pretrain",
    "pull": "bedplate.hub.pull",
    "serve": "bedplate.serving.server.app",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'bedplate' has no attribute {name!r}; its names are {', '.join(__all__)}")
    from bedplate.core.progress import Progress

    with Progress(f"importing {module}", unit=""):  # the first that needs torch takes seconds
        value = getattr(__import__(module, fromlist=(name,)), name)  # as `from module import name`: `plan` is a module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
