# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A process that keeps freed memory gets no new pages for arrays that it makes again."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import numpy as np
from pqt_jax.lab import allocator

def make_arrays():
    for _ in range(20):
        [np.ones(2**21) for _ in range(8)]  # 128 MiB, more than the heap of a thread may have

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=make_arrays)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1:]:
    assert allocator.keep_freed_memory()
new_pages()
print(new_pages())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_is_used_again():
    def new_pages(*arguments):
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert new_pages("keep") < 0.1 * new_pages()
