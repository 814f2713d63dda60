"""A base, or a skin with its bases, from where it lies. What a skin has no need of is not imported for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bedplate.core.arguments import checked
from bedplate.core.errors import UsageError
from bedplate.core.progress import Progress
from bedplate.inference.execution.names import Kernel, Weights
from bedplate.inference.predict.callable_skin import CascadePredictor
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.skins.files import SKIN_FILE, read_skin
from bedplate.skins.skin import Skin

if TYPE_CHECKING:
    from bedplate.inference.predict.hosted_predictor import HostedPredictor
    from bedplate.inference.predict.local import LocalModel
    from bedplate.inference.predict.skin_bases import LoadedSkin

Loaded: TypeAlias = "LocalModel | LoadedSkin | HostedPredictor | CascadePredictor | ClassicalPredictor"


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
        with Progress("importing torch", unit=""):
            from bedplate.inference.predict.opening import OpenOptions, open_base

        return open_base(source, OpenOptions(dtype, weights, kernel), device).model()
    skin = read_skin(directory)
    if skin.is_remote or skin.cascade is not None or skin.classical is not None:
        _only_as_written(skin, dtype, base, embedder, weights, kernel)
    if skin.classical is not None:
        return ClassicalPredictor(skin)
    if skin.is_remote and skin.cascade is None:
        from bedplate.inference.predict.hosted_predictor import HostedPredictor

        return HostedPredictor(skin)
    with Progress(f"opening {skin.name}", unit=""):
        from bedplate.inference.predict.skin_bases import open_skin

        form = {"dtype": dtype, "weights": weights, "kernel": kernel}
        return open_skin(skin, device, allow_other_weights, base, embedder, **form)


def _only_as_written(skin: Skin, *options: object) -> None:
    if any(option is not None for option in options):
        how = "is loaded as it was judged, from where its bases were"
        how = how if skin.classical is None else "answers without a base"
        raise UsageError(f"skin {skin.name!r} of kind {skin.kind!r} {how}: leave base, dtype and the like out")
