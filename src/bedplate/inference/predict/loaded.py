"""A base, or a skin with its bases, from where it lies."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

from bedplate.core.arguments import checked
from bedplate.core.errors import UsageError
from bedplate.core.progress import Progress
from bedplate.inference.execution.calibration import Use
from bedplate.inference.execution.plan import Kernel, Weights
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.predict.callable_skin import CascadePredictor, SkinPredictor
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.hosted_predictor import HostedPredictor
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.opening import (
    Opened,
    OpenOptions,
    SkinExecution,
    check_here,
    held_as,
    open_as,
    open_base,
)
from bedplate.inference.predict.predictor import Predictor
from bedplate.skins.files import SKIN_FILE, read_skin
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


Loaded: TypeAlias = LocalModel | LoadedSkin | HostedPredictor | CascadePredictor | ClassicalPredictor


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


@checked
def load(
    source: str | Path,
    *,
    dtype: str | None = None,
    device: str = "auto",
    base: str | Path | None = None,
    embedder: str | Path | None = None,
    weights: Weights | None = None,
    kernel: Kernel | None = None,
    allow_other_weights: bool = False,
) -> Loaded:
    """Loads a base (catalogue name, directory, .gguf file, hf:owner/name), or a skin's directory with its base.

    dtype: "float32", "bfloat16", …, or "auto". weights: what products read ("auto", "float32", "bfloat16", "int8",
    "int4"), and kernel: what computes them ("auto", "torch", "native"). By default a base is opened in the fastest way
    on this machine that keeps what its checkpoint stores, and a skin's as it was judged. base, embedder: where a skin's
    base and the one that embeds for it are, when not where it was made; the second is always held as it was for the
    skin's pool. Raises HubError, CheckpointError, SkinError; UsageError where this machine or base cannot do what was
    asked.
    """
    directory = Path(source)
    if not (directory / SKIN_FILE).is_file():
        return open_base(source, OpenOptions(dtype, weights, kernel), device).model()
    skin = read_skin(directory)
    if skin.is_remote or skin.cascade is not None or skin.classical is not None:
        _only_as_written(skin, dtype, base, embedder, weights, kernel)
    if skin.classical is not None:
        return ClassicalPredictor(skin)
    if skin.is_remote and skin.cascade is None:
        return HostedPredictor(skin)
    with ExitStack() as unfinished, Progress(f"opening {skin.name}", unit=""):
        bases = unfinished.enter_context(_Bases(device, allow_other_weights))
        if skin.cascade is not None:
            first, second = bases.answers(skin.cascade.first), bases.answers(skin.cascade.second)
            loaded_skin = CascadePredictor(skin, first, second, bases)
        else:
            load_format = held_as(skin.evaluated_with, dtype=dtype, weights=weights, kernel=kernel)
            model = bases.model(skin, skin.base, load_format, base, kernel)
            second = bases.embedder(skin, embedder)
            loaded_skin = LoadedSkin(model, skin, bases, embedder=second, allow_other_weights=allow_other_weights)
        unfinished.pop_all()
        return loaded_skin


def _only_as_written(skin: Skin, *options: object) -> None:
    if any(option is not None for option in options):
        how = "is loaded as it was judged, from where its bases were"
        how = how if skin.classical is None else "answers without a base"
        raise UsageError(f"skin {skin.name!r} of kind {skin.kind!r} {how}: leave base, dtype and the like out")
