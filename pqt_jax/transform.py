# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Being written; public surface:

Rule(pattern, target_bits=4.0, **options)          options: fields of perturb.Spec
param_transform(rules, *, prefix="", strict=False) -> ParamTransform(init, sample, bit_widths, quantize, summary)
pqt_transform(model, rules, *, prefix="", strict=False) -> model
BitParam(nnx.Param)
"""
