# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""benchmarks/aot_tpu.py and others for TPUs: what can be told without libtpu or a TPU."""

import importlib
import importlib.util
import json
import os
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


# A program of libtpu: a loop over the grid, in it a loop of three bundles, and two allocations.
BUNDLES = """
     0   :  { %s0_s1 = inlined_call_operand.hbm [shape: f32[64,256]] }
   0x1   :  { %10 = vsyncpa [#allocation6], 0 }
   0x2 LB: > { %s1_s2 = sadd.s32 1, %s0_s1 }
   0x3 LB: >> { %v1_v2 = vmul.u32 3, %v0_v1 /* a comment
of two lines */ }
   0x4   : >> { %v2_v3 = vadd.s32 %v1_v2, %v0_v1  ;;  %v3_v4 = vld [vmem:[%s1] sm:$0xff] }
   0x5   : >> { %7 = sbr.rel (!%p1) target = $region3 }
   0x6   : > { %8 = sbr.rel (!%p2) target = $region2 }
   0x7   :  { %9 = vhalt }
"""
ALLOCATIONS = """
  #allocation2 [shape = 'u32[144,128]{1,0:T(1,128)}', space=vmem, size = 0x12000, scoped, tag = 'x']
  #allocation3 [shape = 'u8[512]{0}', space=smem, size = 0x200, scoped, tag = 'in VMEM']
  #allocation7 [shape = 'u8[2097152]{0}', space=vmem, size = 0x200000, scoped, tag = 'y']
"""


def load(monkeypatch, name):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module(name)


def test_copies_into_vmem_are_found_in_the_module(monkeypatch):
    assert load(monkeypatch, "aot_tpu").bytes_copied_to_vmem(HLO) == 4 * 64 * 256 * 4


def test_bytes_of_hbm_are_those_of_arrays_without_a_memory_space(monkeypatch):
    text = """
%fused (p: f32[64,256]) -> bf16[64,256] {
  %p = f32[64,256]{1,0:T(8,128)} parameter(0)
  ROOT %c = bf16[64,256]{1,0:T(8,128)(2,1)} convert(%p)
}

ENTRY %main (w: f32[64,256]) -> (bf16[64,256], f32[2]) {
  %w = f32[64,256]{1,0:T(8,128)} parameter(0), sharding={mesh[], [{}]}
  %start = (f32[64,256]{1,0:T(8,128)S(1)}, f32[64,256]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w)
  %max = f32[2]{0:T(128)} fusion(%w), kind=kLoop, calls=%reduced
  %done = f32[64,256]{1,0:T(8,128)S(1)} copy-done(%start)
  %view = f32[2,32,256]{2,1,0:T(8,128)S(1)} bitcast(%done)
  %out = bf16[64,256]{1,0:T(8,128)(2,1)} fusion(%view, /*index=1*/%max), kind=kLoop, calls=%fused
  ROOT %both = (bf16[64,256]{1,0:T(8,128)(2,1)}, f32[2]{0:T(128)}) tuple(%out, %max)
}
"""
    count = load(monkeypatch, "hlo_traffic").bytes_of_hbm
    w = 4 * 64 * 256
    assert count(text) == w + (w + 8) + (8 + w // 2)  # copied ahead, reduced, rounded
    without_vmem = text.replace("S(1)", "")
    assert count(without_vmem) == 2 * w + (w + 8) + (w + 8 + w // 2)


def test_bundles_of_the_inner_loop_and_bytes_in_vmem_are_counted(monkeypatch):
    module = load(monkeypatch, "aot_tpu_kernels")
    assert module.count_bundles(BUNDLES) == 3
    assert module.count_vmem(ALLOCATIONS) == 0x212000


def test_collectives_are_counted_with_their_bytes(monkeypatch):
    text = """
  %a = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[4,64]{1,0}) all-gather-start(%x), dimensions={1}
  %b = bf16[4,64]{1,0} all-gather-done(%a)
  %c = (f32[16]{0:T(128)}, f32[2,3]{1,0}) all-reduce(%x, %y), to_apply=%sum
  %d = f32[] all-reduce(%z), to_apply=%sum
"""
    want = {"all-gather": {"count": 1, "bytes": 512}, "all-reduce": {"count": 2, "bytes": 92}}
    assert load(monkeypatch, "hlo_traffic").count_traffic(text) == want


def test_a_collective_that_is_spread_over_several_fusions_counts_once(monkeypatch):
    text = """
%begin (x: bf16[4,8]) -> (bf16[4,8], bf16[4,64], u32[]) {
  %a = bf16[4,64]{1,0} all-gather(%x), channel_id=7, replica_groups=[2,8]<=[16], dimensions={1}
}
%meanwhile (x: bf16[4,8], y: bf16[4,64], z: f32[4]) -> (bf16[4,8], bf16[4,64], f32[4]) {
  %b = bf16[4,64]{1,0} all-gather(%x), channel_id=7, replica_groups=[2,8]<=[16], dimensions={1}
}
ENTRY %main (x: bf16[4,8], y: f32[4]) -> bf16[4,64] {
  %c = bf16[4,64]{1,0} all-gather(%x), channel_id=77, replica_groups=[2,8]<=[16], dimensions={1}
}
"""
    want = {"all-gather": {"count": 2, "bytes": 1024}}
    assert load(monkeypatch, "hlo_traffic").count_traffic(text) == want


def run_tpu(*options):
    command = [sys.executable, str(SCRIPT.parent / "tpu.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_what_only_a_tpu_can_tell_is_refused_without_one():
    done = run_tpu()
    assert done.returncode == 2 and "no TPU; --smoke runs anywhere" in done.stderr


@pytest.mark.slow
def test_the_sections_for_a_tpu_run_in_a_smoke_test(tmp_path):
    """The section "train" is that of `gpu.py`, whose test runs it."""
    done = run_tpu("--smoke", "--only", "exact", "speed", "--out", str(tmp_path / "record.json"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert not record["exact"]["wrong"]
    assert {"mosaic_tpu", "xla"} <= {case.split(":")[0] for case in record["exact"]["cases"]}


def test_without_libtpu_it_says_so_in_one_line():
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed, so the script runs")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and " needs libtpu" in done.stderr


def test_a_size_that_is_no_multiple_of_32_is_refused():
    done = subprocess.run([sys.executable, SCRIPT, "--size=100"], capture_output=True, text=True)
    assert done.returncode == 2 and "multiple of 32" in done.stderr
