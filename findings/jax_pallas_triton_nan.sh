#!/usr/bin/env bash
# A minimum in a Pallas Triton kernel loses NaN on a GPU, and keeps it in the interpreter.
#
# Seen with jax and jaxlib 0.10.2 on Python 3.11, and with 0.12.0.1 on 3.12; no GPU is needed to see it. lax.min and lax.max, and with them
# jnp.minimum, jnp.maximum and jnp.clip, return NaN where an operand is NaN: under jit, in Pallas' interpreter, and in
# Mosaic GPU. Pallas lowers them for Triton to arith.minnumf and arith.maxnumf, which return the other operand;
# they become min.f32 and max.f32 in PTX, without the .NaN of Mosaic's. So a test in the interpreter cannot see that
# a kernel which clips its values turns NaN into the bound.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat > "$folder/minimum.py" <<'PY'
import contextlib
import io
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from jax.experimental.pallas import triton


def kernel(x_ref, low_ref, high_ref):
    low_ref[...] = jnp.minimum(x_ref[...], 1.0)
    high_ref[...] = jnp.maximum(x_ref[...], -1.0)


def call(x, interpret):
    return pl.pallas_call(
        kernel, out_shape=(x, x), interpret=interpret, debug=not interpret,
        compiler_params=None if interpret else triton.CompilerParams(num_warps=1),
    )(x)


x = jnp.array([jnp.nan, 0.5] * 64, jnp.float32)
interpreted = [np.isnan(y[0]).item() for y in call(x, True)]
jitted = [np.isnan(y[0]).item() for y in (jax.jit(jnp.minimum)(x, 1.0), jax.jit(jnp.maximum)(x, -1.0))]
print("minimum and maximum of NaN are NaN: jit", jitted, "interpreter", interpreted)
assert all(interpreted + jitted)

device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
printed = io.StringIO()
with jax.sharding.use_abstract_mesh(mesh), contextlib.redirect_stdout(printed):
    jax.jit(lambda x: call(x, False)).trace(x).lower(lowering_platforms=("cuda",))
operations = re.findall(r"arith\.(?:min|max)\w+", printed.getvalue())
print("Triton gets", operations)
assert operations == ["arith.minnumf", "arith.maxnumf"], operations
PY
"$folder/venv/bin/python" "$folder/minimum.py"
