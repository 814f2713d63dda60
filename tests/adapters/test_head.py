"""Heads: logits, their file, refusals."""

import pytest
import safetensors.torch
import torch

from bedplate.adapters.head import Head, read_head
from bedplate.core.errors import SkinError


def test_logits_and_the_file(tmp_path):
    head = Head(torch.randn(3, 8), torch.randn(3), ("a", "b", "c"))
    x = torch.randn(5, 8)
    torch.testing.assert_close(head(x), x @ head.weight.T + head.bias)
    path = tmp_path / "head.safetensors"
    path.write_bytes(head.to_bytes())
    loaded = read_head(path, head.labels)
    assert torch.equal(loaded.weight, head.weight)
    assert torch.equal(loaded.bias, head.bias)
    assert head.to_bytes() == loaded.to_bytes()
    with pytest.raises(SkinError, match="reads 8 features, the base gives 9"):
        head(torch.randn(5, 9))
    with pytest.raises(SkinError, match="2 labels"):
        read_head(path, ("a", "b"))
    safetensors.torch.save_file({"weight": head.weight}, path)
    with pytest.raises(SkinError, match="exactly"):
        read_head(path, head.labels)


def test_refusals():
    with pytest.raises(SkinError, match="different labels"):
        Head(torch.zeros(2, 4), torch.zeros(2), ("a", "a"))
    with pytest.raises(SkinError, match="NaN"):
        Head(torch.full((2, 4), torch.inf), torch.zeros(2), ("a", "b"))
