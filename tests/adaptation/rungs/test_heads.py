"""Fits of heads leave the process as they found it."""

from __future__ import annotations

from threadpoolctl import threadpool_info, threadpool_limits

from bedplate.adaptation.rungs.linear_head import one_thread


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info()}


def test_fits_take_one_thread_of_every_pool_and_leave_others_what_they_had():
    with one_thread():
        pass  # all pools are there now
    for before in (3, 2):
        with threadpool_limits(before):
            with one_thread():
                assert threads() == {1}
            assert threads() == {before}
