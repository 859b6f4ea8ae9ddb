#!/usr/bin/env bash
# JAX's detection of Slurm names a host that is not in the job, if text follows the brackets of the list of nodes.
#
# Seen with jax 0.10.2 on Python 3.11 (0.12.0.1 has the same code). Slurm writes the nodes of a step as a list in brackets. It may
# have more than one pair of brackets, or a suffix. JAX reads up to the first bracket and the first number in it: of
# "node[1-2]-ib" the address of process 0 becomes node1, where scontrol show hostnames has node1-ib, and of "rack[1-2]n[1-3]"
# rack1, where it has rack1n1. jax.distributed.initialize then waits for a host that does not exist, or that is another's.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat > "$folder/detect.py" <<'PY'
import os

import jax
from jax._src import clusters  # what jax.distributed.initialize asks; nothing public tells the address

print("jax", jax.__version__)
os.environ |= {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
for nodes, found in (("node[1-2]", "node1"), ("node[1-2]-ib", "node1"), ("rack[1-2]n[1-3]", "rack1")):
    os.environ["SLURM_STEP_NODELIST"] = nodes
    address, *_ = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 1)
    print(f"{nodes:16s} -> process 0 at {address}")
    assert address.split(":")[0] == found
PY
"$folder/venv/bin/python" "$folder/detect.py"
