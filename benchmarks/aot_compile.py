# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Compile for GPUs that this machine lacks, and keep everything that the compilers write."""

import importlib.util
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

_LIMITS = """threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_address_bits: 64 driver_version: "13.0.0" runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0" """
GPUS = {  # architecture → name and what XLA wants to know of it
    80: (
        "NVIDIA A100-SXM4-80GB",
        """shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 core_count: 108
  fpus_per_core: 64 memory_bandwidth: 2039040000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41
  device_memory_size: 85100068864 cuda_compute_capability { major: 8 }""",
    ),
    90: (
        "NVIDIA H100 80GB HBM3",
        """shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 core_count: 132
  fpus_per_core: 128 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }""",
    ),
}


def tools() -> Path:
    """The folder in which Triton's wheel has ptxas, nvdisasm and libdevice."""
    spec = importlib.util.find_spec("triton")
    assert spec and spec.origin
    return Path(spec.origin).parent / "backends" / "nvidia"


def prepare(root: Path) -> dict[str, str]:
    """Make a CUDA folder whose ptxas keeps its input; return the variables that name the folder."""
    (root / "cuda/bin").mkdir(parents=True)
    (root / "cuda/nvvm").mkdir()
    (root / "cuda/nvvm/libdevice").symlink_to(tools() / "lib")
    (root / "kept").mkdir()
    ptxas, kept = (shlex.quote(str(path)) for path in (tools() / "bin/ptxas", root / "kept"))
    wrapper = root / "cuda/bin/ptxas"
    # XLA's first argument is the file; questions about the version begin with a dash.
    wrapper.write_text(f'#!/bin/sh\n[ -f "$1" ] && cp "$1" {kept}/$$.ptx\nexec {ptxas} "$@"\n')
    wrapper.chmod(0o755)
    flags = [
        f"--xla_gpu_cuda_data_dir={root / 'cuda'}",
        f"--xla_dump_to={root / 'kept'}",
        "--xla_gpu_enable_libnvptxcompiler=false",  # else no ptxas is called
        "--xla_gpu_enable_libnvjitlink=false",
        "--xla_gpu_autotune_level=0",
    ]
    return {
        "PATH": os.pathsep.join((str(tools() / "bin"), os.environ["PATH"])),  # Mosaic looks there
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "MOSAIC_GPU_DUMP_TO": str(root / "kept"),
    }


def compile_for(
    arch: int, function: Callable[..., Any], operands: Sequence[Any]
) -> jax.stages.Compiled:
    """The compiled program; what the compilers write is in the folder of `prepare`.

    Args:
      arch: one of `GPUS`, the same in every call: Mosaic keeps it for the process.
      function: what to compile.
      operands: its operands, trees of `jax.ShapeDtypeStruct`.
    """
    from jax.experimental.mosaic.gpu import utils

    # What it asks of the default device, here a CPU.
    setattr(utils, "_infer_arch", lambda: divmod(arch, 10))  # noqa: B010
    name, limits = GPUS[arch]
    config = f"""gpu_device_info {{ {_LIMITS} {limits} name: "{name}" }} platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}" """
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=config, topology="1x1x1"
    )
    placed = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def place(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)

    operands = jax.tree.map(place, tuple(operands))
    abstract = AbstractDevice(device_kind=name, num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=abstract)
    with jax.sharding.use_abstract_mesh(mesh):  # by which Pallas knows the GPU
        return jax.jit(function).lower(*operands).compile()
