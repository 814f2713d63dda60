"""A base, or a skin with its bases, from where it lies."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

from bedplate.core.errors import UsageError
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.predict.composed import LoadedCascade, open_skin
from bedplate.inference.predict.held_as import check_here, held_as
from bedplate.inference.predict.hosted import HostedPredictor
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.opening import Asked, Opened, open_as, open_base
from bedplate.inference.predict.predictor import Predictor
from bedplate.inference.ways.way import Kernel, Weights
from bedplate.skins.files import SKIN_FILE, read_skin
from bedplate.skins.skin import Skin


class LoadedSkin(Predictor):
    """A skin with its bases: what `bedplate.load` returns for a skin directory."""

    def __init__(
        self,
        model: LocalModel,
        skin: Skin,
        *,
        embedder: LocalModel | None = None,
        allow_other_weights: bool = False,
    ) -> None:
        engine = None if embedder is None else embedder.engine
        super().__init__(model.engine, skin, embedder=engine, allow_other_weights=allow_other_weights)
        self.model, self._embedder = model, embedder

    def close(self) -> None:
        """Stops the engines as well."""
        self.model.close()
        if self._embedder is not None:
            self._embedder.close()


Loaded: TypeAlias = LocalModel | LoadedSkin | HostedPredictor | LoadedCascade


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
        return open_base(source, Asked(dtype, weights, kernel), device).model()
    skin = read_skin(directory)
    if skin.is_remote or skin.cascade is not None:
        _only_as_written(skin, dtype, base, embedder, weights, kernel)
        return open_skin(skin, device=device, allow_other_weights=allow_other_weights)
    held = held_as(skin.evaluated_with, dtype=dtype, weights=weights, kernel=kernel)
    opened = open_as(base or skin.base.name, held, device)
    held = check_here(skin, opened.base, opened.held, kernel, allow_other_weights)
    with ExitStack() as stack:
        compute = ComputeLock()
        model = stack.enter_context(Opened(opened.base, held).model(compute))
        second = None
        if skin.embedder is not None:
            second = stack.enter_context(_embedder(skin, embedder, device, compute, allow_other_weights))
        found = LoadedSkin(model, skin, embedder=second, allow_other_weights=allow_other_weights)
        stack.pop_all()
        return found


def _only_as_written(skin: Skin, *asked: object) -> None:
    if any(one is not None for one in asked):
        raise UsageError(
            f"skin {skin.name!r} of kind {skin.kind!r} is loaded as it was judged, from where its bases were; dtype, "
            "weights, kernel, base and embedder do not go with it"
        )


def _embedder(
    skin: Skin, source: str | Path | None, device: str, compute: ComputeLock, allow_other_weights: bool
) -> LocalModel:
    assert skin.embedder is not None
    opened = open_as(source or skin.embedder.name, held_as(skin.embedded_with), device, "score")
    held = check_here(skin, opened.base, opened.held, None, allow_other_weights)
    return Opened(opened.base, held).model(compute)
