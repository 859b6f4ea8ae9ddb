# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Eight fake CPU devices, set before JAX starts; compiled programs are kept."""

import pathlib

import chex
import jax

ROOT = pathlib.Path(__file__).parents[1]

chex.set_n_cpu_devices(8)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
