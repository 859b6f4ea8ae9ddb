# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""benchmarks/aot_tpu.py: what can be told without compiling for a TPU."""

import importlib.util
import subprocess
import sys

import pytest

from support.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "aot_tpu.py"

HLO = """
  %w = f32[1,64,256]{2,1,0:T(8,128)} parameter(0)
  %copy-start = (f32[1,64,256]{2,1,0:T(8,128)S(1)}, f32[1,64,256]{2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w)
  %copy-done = f32[1,64,256]{2,1,0:T(8,128)S(1)} copy-done(%copy-start)
  %back = (bf16[64,256]{1,0:T(8,128)(2,1)}, bf16[64,256]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%x)
"""  # noqa: E501


def test_copies_into_vmem_are_found_in_the_module():
    spec = importlib.util.spec_from_file_location("aot_tpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.bytes_copied_to_vmem(HLO) == 4 * 64 * 256 * 4


def test_without_libtpu_it_says_so_in_one_line():
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed, so the script runs")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and " needs libtpu" in done.stderr


def test_a_size_that_is_no_multiple_of_32_is_refused():
    done = subprocess.run([sys.executable, SCRIPT, "--size=100"], capture_output=True, text=True)
    assert done.returncode == 2 and "multiple of 32" in done.stderr
