# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Memory that a process frees stays with the process, so that a step does not wait for new pages.

XLA allocates the temporary arrays of a program anew at each call. glibc returns large ones to the
system, which has to clear each page that the next call touches: a third of the time of a sweep's
step on one CPU core (LOG.md, 2026-11-29).
"""

import ctypes

# Parameters of `mallopt` in malloc.h: one heap for all threads, since others end at 64 MB; no
# allocation by a mapping of its own; no free memory returned from the end of the heap.
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory in this process until it ends; call it before JAX starts its threads.

    Returns:
      Whether the C library can; glibc can, others go on as before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _NEVER), (_TRIM_THRESHOLD, _NEVER))
    return all([mallopt(option, value) == 1 for option, value in options])
