"""Skins on bases of this machine: each base is opened once, as the skin was judged where nothing else is asked."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bedplate.inference.execution.calibration import Use
from bedplate.inference.execution.names import Kernel
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.predict.callable_skin import CascadePredictor, SkinPredictor
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.hosted_predictor import HostedPredictor
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.opening import Opened, SkinExecution, check_here, held_as, open_as
from bedplate.inference.predict.predictor import Predictor
from bedplate.skins.skin import BaseReference, Skin


class LoadedSkin(Predictor):
    """A skin with its bases: what `bedplate.load` returns for a skin directory."""

    def __init__(
        self,
        model: LocalModel,
        skin: Skin,
        opened: ExitStack,
        *,
        embedder: LocalModel | None = None,
        allow_other_weights: bool = False,
    ) -> None:
        engine = None if embedder is None else embedder.engine
        super().__init__(model.engine, skin, embedder=engine, allow_other_weights=allow_other_weights)
        self.model, self._opened = model, opened

    def close(self) -> None:
        """Stops the engines as well."""
        self._opened.close()


class _Bases(ExitStack):
    """Bases by what they are and how they are held, each loaded once, on one compute lock; closing it stops them."""

    def __init__(self, device: str, allow_other_weights: bool) -> None:
        super().__init__()
        self._device, self._allowed = device, allow_other_weights
        self._compute = ComputeLock()
        self._models: dict[tuple[str, SkinExecution], LocalModel] = {}

    def model(
        self,
        skin: Skin,
        base: BaseReference,
        load_format: SkinExecution,
        source: str | Path | None = None,
        kernel: Kernel | None = None,
        use: Use = "generate",
    ) -> LocalModel:
        """One of a skin's bases. source: where it is, when not where the skin was made."""
        key = (base.weights_id, load_format)
        if key not in self._models:
            opened = open_as(source or base.name, load_format, self._device, use)
            load_format = check_here(skin, opened.base, opened.load_format, kernel, self._allowed)
            self._models[key] = self.enter_context(Opened(opened.base, load_format).model(self._compute))
        return self._models[key]

    def embedder(self, skin: Skin, source: str | Path | None = None) -> LocalModel | None:
        """A skin's second base, if it has one."""
        if skin.embedder is None:
            return None
        return self.model(skin, skin.embedder, held_as(skin.embedded_with), source, use="score")

    def answers(self, skin: Skin) -> SkinPredictor:
        """One of the two skins in a cascade, as it was judged."""
        if skin.is_remote:
            return self.enter_context(HostedPredictor(skin))
        if skin.classical is not None:
            return ClassicalPredictor(skin)
        main = self.model(skin, skin.base, held_as(skin.evaluated_with))
        second = self.embedder(skin)
        return self.enter_context(main.predictor(skin, embedder=second, allow_other_weights=self._allowed))


def open_skin(
    skin: Skin, device: str, allowed: bool, base: str | Path | None, embedder: str | Path | None, **form: Any
) -> LoadedSkin | CascadePredictor:
    """A skin with its bases, or a cascade with those of its two skins, as `load` describes it. form: dtype, weights and
    kernel."""
    with ExitStack() as unfinished:
        bases = unfinished.enter_context(_Bases(device, allowed))
        if skin.cascade is not None:
            first, second = bases.answers(skin.cascade.first), bases.answers(skin.cascade.second)
            loaded_skin = CascadePredictor(skin, first, second, bases)
        else:
            load_format = held_as(skin.evaluated_with, **form)
            model = bases.model(skin, skin.base, load_format, base, form["kernel"])
            second = bases.embedder(skin, embedder)
            loaded_skin = LoadedSkin(model, skin, bases, embedder=second, allow_other_weights=allowed)
        unfinished.pop_all()
        return loaded_skin
