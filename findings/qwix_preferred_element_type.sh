#!/usr/bin/env bash
# A weight-only rule of qwix changes the dtype of every product, also of two activations.
#
# Seen with qwix 0.1.8, jax 0.10.2 and flax 0.12.8 on Python 3.11. QtProvider replaces lax.dot_general in
# every module that a rule matches. With QuantizationRule(weight_qtype="int8") a product of two activations is not quantized, and
# yet its preferred_element_type is dropped: float32 sums of bfloat16 operands come back in bfloat16, off by up to
# 0.25 here. The product with the weight comes back in bfloat16, too. So a rule that matches a whole attention layer
# rounds the scores of its attention.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  qwix==0.1.8 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cat > "$folder/products.py" <<'PY'
import jax
import jax.numpy as jnp
import qwix
from flax import nnx


class Products(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (64, 8), jnp.bfloat16))

    def __call__(self, x):
        def dot(a, b, axis):
            axes = (((1,), (axis,)), ((), ()))
            return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)

        return dot(x, x, 1), dot(x, self.kernel[...], 0)


x = jax.random.normal(jax.random.key(1), (4, 64), jnp.bfloat16)
bare = Products()
rule = qwix.QuantizationRule(weight_qtype="int8")
ruled = qwix.quantize_model(bare, qwix.QtProvider([rule]), x)
(scores, y), (scores_ruled, y_ruled) = bare(x), ruled(x)
off = jnp.abs(scores - scores_ruled.astype(jnp.float32)).max()
print("bare:", scores.dtype, y.dtype, " with a rule on weights:", scores_ruled.dtype, y_ruled.dtype)
print("the product of two activations is off by", float(off))
assert scores.dtype == y.dtype == jnp.float32
assert scores_ruled.dtype == y_ruled.dtype == jnp.bfloat16 and off > 0.01
PY
"$folder/venv/bin/python" "$folder/products.py"
