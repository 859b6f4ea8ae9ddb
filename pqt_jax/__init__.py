# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Gaussian weight sampling for JAX: train models whose weights survive few bits.

key(seed, step, path) → Philox draws → R → block scale → w + R·scale → cast → model(ŵ) → loss
"""

from pqt_jax import _start  # noqa: F401
from pqt_jax.numerics import cast, formats, keys
from pqt_jax.numerics.formats import FloatFormat
from pqt_jax.numerics.spec import Spec
from pqt_jax.quantization import quantize
from pqt_jax.transform import optim, presets, recipes
from pqt_jax.transform.inspection import quantize_model, summary
from pqt_jax.transform.model import pqt_transform
from pqt_jax.transform.nnx_wrapper import BitParam, with_key
from pqt_jax.transform.param_transform import ParamTransform, param_transform
from pqt_jax.transform.perturb import perturb
from pqt_jax.transform.perturb_encoded import perturb_encoded
from pqt_jax.transform.rules import Rule

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
    "presets",
    "quantize",
    "quantize_model",
    "recipes",
    "summary",
    "with_key",
]
