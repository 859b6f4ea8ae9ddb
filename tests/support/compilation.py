# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Count the programs that JAX compiles."""

import contextlib

import jax


@contextlib.contextmanager
def count_compilations():
    """Record each program that is compiled or read from the cache, also one for an eager operation.

    Yields:
      A list that grows by the seconds that each program took.
    """
    programs = []

    def listen(name, seconds, **_):
        if "backend_compile" in name:
            programs.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
