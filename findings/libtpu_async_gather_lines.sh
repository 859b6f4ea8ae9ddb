#!/usr/bin/env bash
# The text of a program for TPUs names one asynchronous all-gather several times.
#
# Seen with jax 0.12.0.1 and libtpu 0.0.52 on Python 3.12, which compile for a topology without a TPU. A layer whose
# three matrices are sharded over eight chips gathers three times. `compiled.as_text()` has seven all-gather
# instructions, none of them all-gather-start or all-gather-done: where a gather runs beside other operations, a fusion
# that begins it, a fusion that ends it and each fusion that runs meanwhile have a line of it, with the same operand
# shapes and the same channel. So who counts lines, as one does for GPUs and CPUs, finds more gathers and more bytes the
# more operations a gather is hidden behind. Distinct values of channel_id are the gathers.
#
# Fails if that changes.
set -euo pipefail
for python in python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python; do
  if "$python" -c '' 2>/dev/null; then break; fi
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.12.0.1 jaxlib==0.12.0.1 libtpu==0.0.52
cat > "$folder/gathers.py" <<'PY'
import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

jax.config.update("jax_platforms", "cpu")
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
mesh = Mesh(np.array(topology.devices).reshape(8, 2), ("x", "y"))


def model(weights, x):
    def layer(h, w):
        up, down, last = w
        h = h + jnp.tanh(h @ up) @ down
        return h + jnp.tanh(h @ last), None

    return jax.lax.scan(layer, x, weights)[0]


def array(shape, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)


d = 2048
weights = (
    array((4, d, 4 * d), None, "x", "y"),
    array((4, 4 * d, d), None, "y", "x"),
    array((4, d, d), None, "x", None),
)
out = NamedSharding(mesh, PartitionSpec("x", None))
compiled = jax.jit(model, out_shardings=out).lower(weights, array((4096, d), "x", None)).compile()
lines = [line for line in compiled.as_text().splitlines() if re.search(r" all-gather(-start)?\(", line)]
channels = collections.Counter(re.search(r"channel_id=(\d+)", line)[1] for line in lines)
starts = sum("all-gather-start(" in line for line in lines)
print(f"{len(lines)} lines with an all-gather, {starts} of them a start; lines of each channel: {dict(channels)}")
assert len(channels) == 3 and len(lines) == 7 and not starts
PY
TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost "$folder/venv/bin/python" "$folder/gathers.py"
