# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false
"""The rows of `peers.py` that run in PyTorch, in a process of their own: torchao's QAT, and diffq.

    python benchmarks/peers_torch.py --model small --rounds 9 --out FILE.json

All train transformers' Llama under `torch.autocast` in bfloat16, with float32 master weights,
clipped gradients and the fused AdamW, and change the linear layers of its blocks. Rows named
"compiled" go through `torch.compile`, and so does the BF16 step that they are compared with.

Memory is what a step holds at most: parameters, buffers and moments, and the largest sum of what is
allocated in the step and not yet freed; on a CPU PyTorch's profiler lists the allocations. As with
JAX, scratch memory inside of the libraries of products does not count.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers_table import CASES, Case, missing, reason, time_steps, versions

PACKAGES = "torch transformers"
PENALTY = 1e-3  # of diffq's size in MB, which is part of its loss


def torchao(make_config: Callable[[], Any]) -> Callable[[Any], None]:
    """A function that makes the blocks' linear layers quantize their weights while they train."""

    def change(model):
        import torch
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig

        def in_blocks(module, name):
            return isinstance(module, torch.nn.Linear) and ".layers." in name

        config = QATConfig(weight_config=make_config(), step="prepare")
        quantize_(model, config, filter_fn=in_blocks)

    return change


def integers(bits: int, **options: Any) -> Callable[[], Any]:
    """The configuration of torchao for integers of 4 or 8 bits."""

    def make():
        import torch
        from torchao.quantization.qat import IntxFakeQuantizeConfig

        return IntxFakeQuantizeConfig(getattr(torch, f"int{bits}"), **options)

    return make


def float8() -> Any:
    """The configuration of torchao for E4M3, a scale for each output."""
    from torchao.quantization.qat import Float8FakeQuantizeConfig

    return Float8FakeQuantizeConfig()


def make_rows() -> dict[str, tuple[str, str, Any]]:
    """Packages, what it does, and the change to the model, for each row; "diffq" is special."""
    int8, int4 = integers(8, granularity="per_channel"), integers(4, group_size=32)
    rows = {
        "torch bf16": ("", "casts to BF16", None),
        "torchao int8, channel": ("torchao", "rounds to int8, a scale for each output", int8),
        "torchao float8, channel": ("torchao", "rounds to E4M3, a scale for each output", float8),
        "torchao int4, 1×32": ("torchao", "rounds to int4, groups of 32", int4),
        "diffq": ("diffq", "normal noise, learned bits, groups of 8", "diffq"),
    }
    rows |= {f"{name}, compiled": row for name, row in rows.items()}
    return rows


def make_step(case: Case, change: Any, is_compiled: bool) -> dict[str, Any]:
    """The model, its optimizer, and a function that takes one step and returns the loss."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(
        vocab_size=case.vocab_size,
        hidden_size=case.d_model,
        intermediate_size=case.d_ff,
        num_hidden_layers=case.num_layers,
        num_attention_heads=case.num_heads,
        max_position_embeddings=case.length,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(device).train()
    tokens = torch.randint(0, case.vocab_size, (case.batch, case.length + 1), device=device)
    if callable(change):
        torchao(change)(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    quantizer = None
    if change == "diffq":
        from diffq import DiffQuantizer

        exclude = ["*embed_tokens*", "*lm_head*"]
        quantizer = DiffQuantizer(model, group_size=8, min_size=0, exclude=[*exclude, "*norm*"])
        quantizer.setup_optimizer(optimizer)
    call = torch.compile(model) if is_compiled else model

    def advance():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = call(input_ids=tokens[:, :-1]).logits
        logits, targets = logits.float().flatten(0, 1), tokens[:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits, targets)
        total = loss + PENALTY * quantizer.model_size() if quantizer else loss
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()  # waits for a GPU

    return {"model": model, "optimizer": optimizer, "advance": advance}


def measure_memory(model: Any, optimizer: Any, advance: Callable[[], float]) -> int:
    """Bytes that a step holds at most, after steps that made the optimizer's state."""
    import torch

    optimizer.zero_grad(set_to_none=True)
    moments = [x for state in optimizer.state.values() for x in state.values()]
    tensors = [*model.parameters(), *model.buffers(), *filter(torch.is_tensor, moments)]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        advance()
        return held + torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        advance()
    events = profiler.profiler.kineto_results.events()
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return held + peak


def measure(case: Case, rounds: int, *, with_compiled: bool) -> list[dict[str, Any]]:
    """The rows as `peers_table.complete` wants them."""
    rows, steps = [], {}
    for name, (package, what, change) in make_rows().items():
        is_compiled = name.endswith("compiled")
        if is_compiled and not with_compiled:
            continue
        packages = f"{PACKAGES} {package}"
        base = "torch bf16, compiled" if is_compiled else "torch bf16"
        row: dict[str, Any] = {
            "name": name,
            "version": versions(package or PACKAGES),
            "what": what,
            "base": base,
        }
        row["is_peer"] = True
        rows.append(row)
        if why := missing(packages):
            row["why"] = why
            continue
        try:
            made = make_step(case, change, is_compiled)
            row["loss"] = made["advance"]()
            row["memory_bytes"] = measure_memory(**made)
            steps[name] = made["advance"]
        except Exception as error:  # a compiler, a device or a version that cannot run it
            row["why"] = reason(error)
    for name, times in time_steps(steps, rounds).items():
        row = next(row for row in rows if row["name"] == name)
        row |= times | {"last_loss": steps[name]()}
    return rows


def main() -> None:
    """Measure, and write the rows."""
    parser = argparse.ArgumentParser(description="Rows of peers.py in PyTorch.")
    parser.add_argument("--model", choices=CASES, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--no-compiled", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    case = CASES[options.model]
    rows = measure(case, options.rounds, with_compiled=not options.no_compiled)
    options.out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
