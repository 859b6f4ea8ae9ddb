# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What does sampling buy? A small Llama that sees many tokens, its weights in few bits.

Command   python -m pqt_jax.lab.sweep --config configs/lab/payoff.py --workdir runs/payoff-300
Text      source files of the running Python's standard library; each byte is a token
Length    139,584 parameters; 40,000 steps are 293 tokens for each. For 3 and 29 tokens give
          --config.steps=400 and 4000, and a folder of its own
Hardware  a CPU core takes 70 to 110 minutes for an arm of four seeds at 40,000 steps
Expect    docs/payoff
"""

from ml_collections import ConfigDict

from pqt_jax.lab.sweep_config import default
from pqt_jax.models import Llama2Config

# b_t at which R's deviation is that of rounding normal weights to the format, in blocks of 32×32.
FP4, FP6, FP8 = 4.9, 6.2, 7.2


def fixed(bits: float) -> tuple[str, ...]:
    """Bits that stay as they are."""
    return f"pqt.target_bits={bits}", f"pqt.init_bits={bits}", "pqt.learning_rate=0"


def between(begin: float, end: float) -> tuple[str, ...]:
    """Steps that round a share of the blocks, between two shares of the steps."""
    return f"pqt.begin_at={begin}", f"pqt.round_all_at={end}"


def cool_down(share: float) -> tuple[str, ...]:
    """A rate that is constant, and falls by a line in the last share of the steps."""
    return "optimizer.schedule=wsd", f"optimizer.decay_share={share}"


def get_config() -> ConfigDict:
    """Defaults and changes; `python -m pqt_jax.lab.sweep --help` explains every field."""
    model = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=192, max_length=128)
    config = default(model)
    config.steps = 40_000
    config.data.length = 128
    config.data.batch = 8
    config.optimizer.warmup_steps = 500
    config.optimizer.final_learning_rate = 0.0
    config.pqt.learning_rate = 4e-3
    config.pqt.weight_decay = 1.0
    config.log.validation_batches = 64
    gauss, matched = "method=gaussws", fixed(FP4)
    learned = (gauss, "pqt.scale=mse")  # of formats by the learned bits
    by_matrix = "pqt.granularity=tensor"
    ste = ("method=ste", "pqt.dtype=float4_e2m1fn")
    mse = (*ste, "pqt.scale=mse")
    e2m3 = ("method=ste", "pqt.dtype=float6_e2m3fn", "pqt.scale=mse")
    e4m3 = ("method=ste", "pqt.dtype=float8_e4m3fn", "pqt.scale=mse")
    e2m0 = ("method=ste", "pqt.dtype=E2M0", "pqt.scale=mse")
    e1m1 = ("method=ste", "pqt.dtype=E1M1", "pqt.scale=mse")
    dither = ("pqt.dtype=float4_e2m1fn", "pqt.scale=floor")
    by_column = "pqt.block=32,1"  # as in the files of other software, see docs/exports.md
    some = "pqt.round_share=0.5"
    half = (*mse, some)
    last_5, last_10, last_30, last_50 = (
        (f"pqt.round_at={share}", "pqt.scale=mse") for share in (0.95, 0.9, 0.7, 0.5)
    )
    config.sweep.arms = (
        ("BF16", "method=bf16"),
        ("STE FP4", *ste),
        ("STE FP4, mse", *mse),
        ("BF16, STE in the last 5 %", *mse, "pqt.begin_at=0.95"),
        ("BF16, STE in the last 10 %", *mse, "pqt.begin_at=0.9"),
        ("BF16, STE in the last 15 %", *mse, "pqt.begin_at=0.85"),
        ("BF16, STE in the last 30 %", *mse, "pqt.begin_at=0.7"),
        ("BF16, STE in the last 50 %", *mse, "pqt.begin_at=0.5"),
        ("BF16, STE in the last 5 %, 32×1", *mse, by_column, "pqt.begin_at=0.95"),
        ("BF16, STE in the last 10 %, 32×1", *mse, by_column, "pqt.begin_at=0.9"),
        ("BF16, STE in the last 30 %, 32×1", *mse, by_column, "pqt.begin_at=0.7"),
        ("STE of half the blocks", *half),
        ("BF16, STE of 80 % in the last 30 %", *mse, "pqt.begin_at=0.7", "pqt.round_share=0.8"),
        ("BF16, STE of half in the last 30 %", *half, "pqt.begin_at=0.7"),
        *(
            (
                f"STE of half at {100 * begin:.0f} %, all at {100 * end:.0f} %",
                *half,
                *between(begin, end),
            )
            for begin, end in ((0.5, 0.9), (0.7, 0.9), (0.8, 0.9), (0.8, 0.93), (0.85, 0.95))
        ),
        ("STE of half, all at 90 %, 32×1", *half, *between(0.7, 0.9), by_column),
        ("STE of half, all at 95 %, 32×1", *half, *between(0.85, 0.95), by_column),
        ("STE E2M3 of half, all at 95 %", *e2m3, some, *between(0.85, 0.95)),
        ("STE E4M3 of half, all at 95 %", *e4m3, some, *between(0.85, 0.95)),
        ("BF16, cool-down of 30 %", "method=bf16", *cool_down(0.3)),
        ("BF16, STE in the cool-down of 30 %", *mse, *cool_down(0.3), "pqt.begin_at=0.7"),
        ("BF16, STE in the cool-down of 50 %", *mse, *cool_down(0.5), "pqt.begin_at=0.5"),
        ("BF16, STE E2M3 in the last 10 %", *e2m3, "pqt.begin_at=0.9"),
        ("BF16, STE E4M3 in the last 10 %", *e4m3, "pqt.begin_at=0.9"),
        ("BF16, STE E2M3 in the last 30 %", *e2m3, "pqt.begin_at=0.7"),
        ("BF16, STE E4M3 in the last 30 %", *e4m3, "pqt.begin_at=0.7"),
        ("BF16, STE E2M0 in the last 30 %", *e2m0, "pqt.begin_at=0.7"),
        ("BF16, STE E1M1 in the last 30 %", *e1m1, "pqt.begin_at=0.7"),
        ("gaussws 4", *learned),
        ("gaussws 5", *learned, "pqt.target_bits=5"),
        ("gaussws 3", *learned, "pqt.target_bits=3"),
        ("gaussws 4 by matrix", *learned, by_matrix),
        ("gaussws 5 by matrix", *learned, by_matrix, "pqt.target_bits=5"),
        ("gaussws 3 by matrix", *learned, by_matrix, "pqt.target_bits=3"),
        ("gaussws fixed 4.9", gauss, *matched),
        ("gaussws fixed 4.9 cast to FP4", gauss, "pqt.dtype=float4_e2m1fn", *matched),
        ("gaussws 6.2 cast to FP4, last 30 %", gauss, *dither, *fixed(FP6), "pqt.begin_at=0.7"),
        ("gaussws 4.9 in the last 30 %", gauss, *matched, "pqt.begin_at=0.7"),
        ("gaussws 4.9, STE in the last 10 %", gauss, *matched, *last_10),
        ("gaussws 4.9, STE in the last 30 %", gauss, *matched, *last_30),
        ("gaussws 4.9, STE in the last 50 %", gauss, *matched, *last_50),
        *(
            (
                f"gaussws {bits} at 85 %, STE at 95 %",
                gauss,
                *fixed(bits),
                *last_5,
                "pqt.begin_at=0.85",
            )
            for bits in (FP4, FP6)
        ),
        ("gaussws 6.2, STE in the last 30 %", gauss, *fixed(FP6), *last_30),
        (
            "gaussws 6.2, STE in cool-down of 30 %",
            *(gauss, *fixed(FP6), *last_30, *cool_down(0.3)),
        ),
        ("gaussws fixed 6.2", gauss, *fixed(FP6)),
        ("gaussws fixed 7.2", gauss, *fixed(FP8)),
        ("STE FP6", "method=ste", "pqt.dtype=float6_e3m2fn"),
        ("uniform fixed 3.9", "method=uniform", *fixed(3.9)),
        ("DiffQ", "method=diffq"),
    )
    config.sweep.seeds = (0, 1, 2, 3)
    config.sweep.learning_rates = (5e-3,)
    config.sweep.sharpness_every = 0
    config.sweep.record_every = 100
    config.sweep.weights = (
        "master",
        "fp8_e4m3/ceil",
        "fp6_e3m2/ceil",
        "fp6_e3m2/mse",
        "fp6_e2m3/ceil",
        "fp6_e2m3/mse",
        *(f"fp4_e2m1/{rule}" for rule in ("ceil", "floor", "exact", "mse")),
        *(f"fp4_e2m1/{rule}/matrix" for rule in ("ceil", "mse")),
        *(f"fp4_e2m1/{rule}/32x1" for rule in ("ceil", "floor", "exact", "mse")),
        *(f"{name}/{rule}" for name in ("E2M0", "E1M1") for rule in ("ceil", "mse")),
        *("mixed", "mixed/error", "mixed/tensor", "mixed/error/tensor"),
    )
    return config
