# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Counting in benchmarks/aot_gpu.py: what can be told without compiling for a GPU."""

import importlib.util
import subprocess
import sys

import jax
import pytest

from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def counts():
    spec = importlib.util.spec_from_file_location("aot_counts", BENCHMARKS / "aot_counts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STRAIGHT = """
        .section        .text.kernel,"ax",@progbits
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   S2R R0, SR_TID.X ;
        /*0020*/                   ULDC.64 UR4, c[0x0][0x118] ;
        /*0030*/                   LDG.E.128 R4, [R2.64] ;
        /*0040*/                   IMAD.SHL.U32 R8, R4, 0x2, RZ ;
        /*0050*/                   LOP3.LUT R9, R4, 0x80000000, R7, 0xf8, !PT ;
        /*0060*/                   ISETP.GE.U32.AND P0, PT, R8, 0xb00000, PT ;
        /*0070*/              @!P0 FADD R9, R9, R9 ;
        /*0080*/               @P1 BRA `(.L_x_0) ;
        /*0090*/                   FMNMX.NAN R9, R9, R5, !PT ;
        /*00a0*/                   SHFL.BFLY PT, R5, R9, 0x1, 0x1f ;
.L_x_0:
        /*00b0*/             @!UP0 UIADD3 UR5, UR5, 0x1, URZ ;
        /*00c0*/                   STG.E.64 [R2.64], R8 ;
        /*00d0*/                   EXIT ;
.L_x_1:
        /*00e0*/                   BRA `(.L_x_1);
        /*00f0*/                   NOP;
"""


def test_every_instruction_of_a_straight_listing_is_in_one_pipe(counts):
    found, loop = counts.count_sass(STRAIGHT)
    assert not loop
    assert found == {"alu": 4, "fma": 2, "memory": 2, "uniform": 2, "other": 2, "control": 2}


def test_an_opcode_that_nobody_knows_is_held_against_us(counts):
    assert counts.pipe("WHATEVER3") == "alu"


def test_a_branch_back_is_a_loop(counts):
    listing = STRAIGHT.replace("`(.L_x_1)", "`(.L_x_0)")
    assert counts.count_sass(listing)[1]


STEP = """HloModule jit_train_step

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %c = f32[8]{0} copy(%p)
}

%ahead.1 (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %one = f32[8]{0} fusion(%s), kind=kLoop, calls=%fused
  ROOT %out = (s32[], f32[8]{0}) tuple(%s, %one)
}

%back.2 (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %one = (bf16[8]{0}, f32[2]{0}) custom-call(%s), custom_call_target="mosaic_gpu_v2"
  %two = f32[8]{0} fusion(%one), kind=kInput, calls=%fused
  ROOT %out = (s32[], f32[8]{0}) tuple(%s, %two)
}

ENTRY %main.3 (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %a = f32[8]{0} copy(%x)
  %w = (s32[], f32[8]{0}) while(%a), condition=%c, body=%ahead.1, metadata={op_name="jvp()/while"}
  %v = (s32[], f32[8]{0}) while(%w), body=%back.2, metadata={op_name="transpose(jvp())/while"}
  %b = f32[8]{0} fusion(%v), kind=kLoop, calls=%fused
  ROOT %d = f32[8]{0} fusion(%b), kind=kLoop, calls=%fused
}
"""


def test_launches_are_counted_where_they_are(counts):
    assert counts.count_launches(STEP) == {"forward": 1, "backward": 2, "once": 3}


HLO = """HloModule jit_f, entry_computation_layout={(f32[64,32]{1,0})->bf16[64,32]{1,0}}

%fused (p: f32[64,32]) -> bf16[64,32] {
  %p = f32[64,32]{1,0} parameter(0)
  ROOT %c = bf16[64,32]{1,0} convert(%p)
}

ENTRY %main (w.1: f32[64,32]) -> (bf16[64,32], f32[2,1]) {
  %w.1 = f32[64,32]{1,0} parameter(0), metadata={op_name="w"}
  %k = u32[] constant(7)
  %pair = (bf16[64,32]{1,0}, f32[2,1]{1,0}) fusion(%w.1, %k), kind=kLoop, calls=%fused
  %first = bf16[64,32]{1,0} get-tuple-element(%pair), index=0
  %mask = pred[64]{0} custom-call(%first), custom_call_target="x"
  %copy.2 = bf16[64,32]{0,1} copy(%first)
  %second = f32[2,1]{1,0} get-tuple-element(%pair), index=1
  ROOT %out = (bf16[64,32]{0,1}, f32[2,1]{1,0}) tuple(%copy.2, %second)
}
"""


def test_traffic_is_what_the_entry_reads_and_writes(counts):
    w, w_hat, per_block = 64 * 32 * 4, 64 * 32 * 2, 2 * 4
    fusion, custom, copy = w + 4 + w_hat + per_block, w_hat + 64, 2 * w_hat
    assert counts.hlo_traffic(HLO) == fusion + custom + copy


def test_where_it_cannot_run_it_says_why_in_one_line():
    if jax.__version_info__ >= (0, 11) and importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("jax 0.11 and its CUDA plugin are installed, so the script runs")
    command = [sys.executable, BENCHMARKS / "aot_gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and " needs " in done.stderr
