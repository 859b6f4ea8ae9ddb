# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Calls in a thread give what they return or raise, and leave no thread behind."""

import gc
import threading

import pytest

from pqt_jax.training.background import call_in_thread, no_garbage_collection


def test_a_call_runs_beside_its_caller_and_its_thread_ends():
    go_on = threading.Event()

    def call():
        assert go_on.wait(20)
        return threading.current_thread()

    wait = call_in_thread(call)
    go_on.set()  # never, if the call had to end before
    thread = wait()
    thread.join(20)
    assert thread is not threading.current_thread() and not thread.is_alive()


def test_what_a_call_raises_is_raised_where_it_is_waited_for():
    wait = call_in_thread(lambda: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        wait()


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_as_before(enabled):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(KeyError), no_garbage_collection():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
