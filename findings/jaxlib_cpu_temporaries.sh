#!/usr/bin/env bash
# On a CPU each call of a compiled JAX program faults in the pages of its temporary arrays anew.
#
# Seen with jax and jaxlib 0.10.2 on Python 3.11, glibc 2.36. XLA's CPU client allocates one buffer for all
# temporaries of a program at each call and frees it after the call. glibc takes so large a buffer by mmap and
# gives it back by munmap, so that the kernel clears each of its pages in every call, whatever the number of calls:
# 32 MB of temporaries are 8,192 page faults a call. With mmap and trimming switched off by mallopt before JAX is
# imported, the same program has an eighth to three quarters of them, by chance. In a training step of a small model
# they were a third of the time.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat > "$folder/faults.py" <<'PY'
import ctypes
import resource
import sys

if "keep" in sys.argv:
    libc = ctypes.CDLL(None)
    # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    assert all(libc.mallopt(name, value) for name, value in ((-8, 1), (-3, 2**31 - 1), (-1, 2**31 - 1)))

import jax
import jax.numpy as jnp


@jax.jit
def program(x):
    for _ in range(3):
        x = jnp.sort(jnp.sin(x), axis=1)[::-1]
    return jnp.sum(x)


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


x = jax.random.normal(jax.random.key(0), (4096, 1024))
temporaries = program.lower(x).compile().memory_analysis().temp_size_in_bytes
pages = temporaries / resource.getpagesize()
for _ in range(3):
    program(x).block_until_ready()
before, calls = faults(), 4
for _ in range(calls):
    program(x).block_until_ready()
share = (faults() - before) / calls / pages
print(f"{' '.join(sys.argv[1:]) or 'as it is':9} temporaries {temporaries:,} bytes, faults a call {share:.3f} of their pages")
assert share < 0.95 if "keep" in sys.argv else share > 0.9, share
PY
"$folder/venv/bin/python" "$folder/faults.py"
"$folder/venv/bin/python" "$folder/faults.py" keep
