"""A linear head on captured features: what a probe trains, and its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bedplate.adapters.tensor_files import read_tensors, tensor_bytes
from bedplate.core.errors import SkinError

if TYPE_CHECKING:
    from torch import Tensor

HEAD_FILE = "head.safetensors"


@dataclass(frozen=True, eq=False)
class Head:
    """Logits = W h + b. weight: float32 [C, D], bias: float32 [C], one row for each of the C labels, in order."""

    weight: Tensor
    bias: Tensor
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        finite = bool(self.weight.isfinite().all() and self.bias.isfinite().all())
        check_head(self.labels, self.weight.shape, self.bias.shape, finite)

    def __call__(self, features_ND: Tensor) -> Tensor:
        """Features [N, D] of any floating type → logits float32 [N, C]. SkinError when D is not the head's."""
        import torch.nn.functional as F

        if features_ND.shape[-1] != self.weight.shape[1]:
            raise SkinError(f"the head reads {self.weight.shape[1]} features, the base gives {features_ND.shape[-1]}")
        device = features_ND.device
        return F.linear(features_ND.float(), self.weight.to(device), self.bias.to(device))

    def to_bytes(self) -> bytes:
        """The content of `head.safetensors`: weight, bias. The labels are part of the skin's output."""
        return tensor_bytes({"weight": self.weight.float(), "bias": self.bias.float()})


def check_head(labels: Sequence[str], weight: Sequence[int], bias: Sequence[int], finite: bool) -> None:
    """SkinError unless these are the shapes of a head that tells the labels apart, and its numbers are finite."""
    count = len(labels)
    if count < 2 or len(set(labels)) != count:
        raise SkinError(f"a head needs at least two different labels, got {list(labels)}")
    if len(weight) != 2 or weight[0] != count or tuple(bias) != (count,):
        shapes = f"got {list(weight)} and {list(bias)}"
        raise SkinError(f"a head of {count} labels needs a weight [{count}, D] and a bias [{count}], {shapes}")
    if not finite:
        raise SkinError("the head's weights hold NaN or infinity")


def read_head(path: Path, labels: tuple[str, ...], content: bytes | None = None) -> Head:
    """Read a head. SkinError when the file is corrupt, has other tensors, or does not fit the labels."""
    tensors = read_tensors(path, content)
    if tensors.keys() != {"weight", "bias"}:
        raise SkinError(f"{path} must hold exactly 'weight' and 'bias', not {sorted(tensors)}")
    return Head(tensors["weight"], tensors["bias"], labels)
