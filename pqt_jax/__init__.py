# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Gaussian weight sampling for JAX: train models whose weights survive few bits.

key(seed, step, path) → bits → R → block scale → w + R·scale → cast → model(ŵ) → loss
"""

from pqt_jax import cast, formats, keys, optim, quantize
from pqt_jax.formats import FloatFormat
from pqt_jax.perturb import perturb, perturb_encoded
from pqt_jax.rules import Rule
from pqt_jax.spec import Spec
from pqt_jax.transform import ParamTransform, param_transform, pqt_transform
from pqt_jax.wrap_nnx import BitParam

__version__ = "0.1.0"

__all__ = [
    "BitParam",
    "FloatFormat",
    "ParamTransform",
    "Rule",
    "Spec",
    "cast",
    "formats",
    "keys",
    "optim",
    "param_transform",
    "perturb",
    "perturb_encoded",
    "pqt_transform",
    "quantize",
]
