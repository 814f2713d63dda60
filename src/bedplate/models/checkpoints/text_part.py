"""The tensors of the text model inside a multimodal checkpoint, by the names of a checkpoint of its own."""

from __future__ import annotations

import logging
from collections import Counter

from torch import Tensor

from bedplate.core.errors import CheckpointError
from bedplate.models.checkpoints.directory import Reader
from bedplate.models.families.multimodal import Multimodal

log = logging.getLogger("bedplate.models")


class TextPart:
    """A view of `files`. left_out: bytes of each other part, whose tensors are not read. CheckpointError, naming it,
    for a tensor that is of no part, or that is stored twice."""

    def __init__(self, files: Reader, outer: Multimodal, origin: str) -> None:
        self._files = files
        self._stored_names: dict[str, str] = {}
        sizes: Counter[str] = Counter()
        for name in files.names:
            text = outer.text_name(name)
            if text is None:
                sizes[_part(outer, name, origin)] += files.nbytes(name)
            elif text in self._stored_names:
                raise CheckpointError(
                    f"{origin}: {self._stored_names[text]!r} and {name!r} are both the text model's {text!r}"
                )
            else:
                self._stored_names[text] = name
        self.left_out = dict(sorted(sizes.items()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored_names)

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The same tensors, as the files name them."""
        return tuple(self._stored_names.values())

    def get(self, name: str) -> Tensor:
        """One tensor, in the file's dtype."""
        return self._files.get(self._stored_names[name])

    def log_omitted(self, source: str, outer: Multimodal) -> None:
        """What is not loaded, in one line."""
        parts = ", ".join(f"{part} ({size:,} bytes)" for part, size in self.left_out.items()) or "nothing"
        log.warning("%s: of this %s checkpoint the text model alone is loaded; left out: %s", source, outer.name, parts)


def _part(outer: Multimodal, name: str, origin: str) -> str:
    part_name = outer.part_of(name)
    if part_name is None:
        part_names = ", ".join(dict.fromkeys(part for _, part in outer.parts))
        raise CheckpointError(
            f"{origin}: the checkpoint holds {name!r}, which is neither of the text model nor of another part of "
            f"{outer.name} ({part_names})"
        )
    return part_name
