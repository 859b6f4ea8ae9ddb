# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The rules that say which parameters are sampled, or quantized after training, by `config.pqt`."""

from typing import TYPE_CHECKING, Any

from pqt_jax.transform.rules import Rule

if TYPE_CHECKING:  # the schema imports the methods, for their names
    from pqt_jax.training.config.schema import RunConfig

KERNEL_PATTERNS = {  # short names for patterns in config.pqt.pattern
    "all": "h/.*/kernel",
    "attention": "h/attn/.*/kernel",
    "mlp": "h/mlp/.*/kernel",
    "qk": "h/attn/[qk]/kernel",
    "qkv": "h/attn/[qkv]/kernel",
    "out": "h/attn/out/kernel",
    "up": "h/mlp/(gate|up)/kernel",
    "down": "h/mlp/down/kernel",
    "out_down": "h/(attn/out|mlp/down)/kernel",
}


def sampling_rules(config: "RunConfig", **changes: Any) -> list[Rule]:
    """Return the rules of the section `config.pqt`.

    Args:
      config: the run's configuration.
      changes: options of `Rule` that a method changes.
    """
    pqt = config.pqt
    options: dict[str, Any] = {"target_bits": pqt.target_bits, "init_bits": pqt.init_bits}
    options |= {"block": pqt.block, "dtype": pqt.dtype, "scale": pqt.scale, **changes}
    return [Rule(KERNEL_PATTERNS.get(pqt.pattern, pqt.pattern), **options)]


def quantization_rules(config: "RunConfig") -> list[Rule]:
    """Return the rules that say what is quantized after training: the same for every method."""
    return sampling_rules(config, noise="gauss", dtype="bfloat16")  # a plan has its own formats
