"""What one process does for all."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from bedplate.training.parallel.launch import Processes


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("no space left")])
def test_an_error_is_said_also_where_nobody_is_left_to_hear_it(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C, where the launcher has ended the other processes already."""

    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("[gloo] connection closed by peer")

    def fails() -> None:
        raise failure

    monkeypatch.setattr(dist, "broadcast_object_list", lost)
    processes = Processes()
    monkeypatch.setattr(processes, "_group", object())
    with pytest.raises(type(failure)):
        processes.broadcast(fails)
    with pytest.raises(RuntimeError, match="gloo"):
        processes.broadcast(lambda: None)
