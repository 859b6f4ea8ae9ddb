# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Text that a run prints before its first step, in two columns.

    format_summary        model, rules, mesh, attention and memory of the state; before compilation
    format_remaining      steps, tokens and hours that are left
    format_step_memory    memory of the compiled step on each device

All functions except `gather_facts` are pure.
"""

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from pqt_jax.console import format_quantity
from pqt_jax.models import attention
from pqt_jax.models.registry import model_config
from pqt_jax.numerics import blocks
from pqt_jax.training import flops, methods
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.state import abstract_state
from pqt_jax.transform.bit_state import weights
from pqt_jax.transform.rules import Rule, first_match, resolve
from pqt_jax.transform.tree_paths import paths_and_leaves

WIDTH, COLUMN = 100, 13


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts that the summary shows apart from the config.

    Attributes:
      data: one line about the text.
      workdir: the run's folder.
      shapes: shapes of the parameters, by path.
      state_bytes: bytes of the state on each device.
      axes: devices along each axis of the mesh; empty for one device.
      processes: number of processes.
      device_kind: name of the devices in JAX.
      attention: the implementation, and why.
    """

    data: str
    workdir: Path
    shapes: Mapping[str, Any]
    state_bytes: flops.StateBytes
    axes: Mapping[str, int]
    processes: int
    device_kind: str
    attention: attention.Choice


def gather_facts(config: RunConfig, mesh: Any, data: str, workdir: Path) -> Facts:
    """Collect the facts of a run, whose mesh must be active. No array is made.

    Args:
      config: a checked configuration.
      mesh: the active device mesh, or None for one device.
      data: one line about the text.
      workdir: the run's folder.
    """
    _, state = abstract_state(config, make_optimizer(config))
    return Facts(
        data=data,
        workdir=workdir,
        shapes=paths_and_leaves(weights(state.params)),
        state_bytes=flops.state_bytes(state),
        axes={} if mesh is None else dict(mesh.shape),
        processes=jax.process_count(),
        device_kind=jax.devices()[0].device_kind,
        attention=attention.choose(model_config(config), jax.devices()),
    )


def format_summary(config: RunConfig, facts: Facts) -> str:
    """Describe a run before compilation.

    Args:
      config: a checked configuration.
      facts: from `gather_facts`.

    Returns:
      Lines `name: value`, `WIDTH` wide at most unless a path in them is wider.
    """
    rows = [
        ("data", facts.data),
        ("model", f"{config.model.name}, {_weights(facts.shapes.values()):,} parameters"),
        ("shape", _shape(config)),
        ("method", _method(config)),
        ("sampled", _sampled(config, facts.shapes)),
        *(("rule", line) for line in describe_rules(methods.make_rules(config), facts.shapes)),
        ("mesh", _mesh(facts)),
        ("attention", f"{facts.attention.implementation}: {facts.attention.reason}"),
        ("step", _step(config)),
        ("memory", _memory(facts.state_bytes)),
    ]
    last = f"{'workdir:':{COLUMN}}{facts.workdir}"  # whole, however long
    return "\n".join([*(_row(name, value) for name, value in rows), last])


def format_remaining(config: RunConfig, step: int, rate: float) -> str:
    """One line: steps, tokens and time that are left.

    Example:
      >>> from pqt_jax.models import Llama2Config
      >>> from pqt_jax.training.config.schema import default
      >>> config = default(Llama2Config(256, 64, 2, 4, 128))
      >>> print(format_remaining(config, step=400, rate=2048.0))
      to go:       600 of 1,000 steps, 1,228,800 tokens: 0.17 h at 2,048 tokens/s

    Args:
      config: a checked configuration.
      step: the last one taken.
      rate: tokens per second of the steps so far; 0 if there are none.
    """
    left = config.steps - step
    tokens = left * config.data.batch * config.data.length
    at = (
        f"{tokens / rate / 3600:.2f} h at {rate:,.0f} tokens/s"
        if rate
        else "the log estimates the hours"
    )
    return _row("to go", f"{left:,} of {config.steps:,} steps, {tokens:,} tokens: {at}")


def format_step_memory(memory: Any, limit: int) -> str:
    """One line: memory of the compiled step on each device.

    Args:
      memory: what `memory_analysis()` of the compiled step returns.
      limit: bytes of the device, from `flops.device_memory`.
    """
    if memory is None:
        return _row("compiled", "XLA does not say what memory the step takes")
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    takes = f"{format_bytes(arguments)} arguments + {format_bytes(temporaries)} temporaries"
    whole = f"{format_bytes(arguments + temporaries)} of {format_bytes(limit)} on each device"
    return _row("compiled", f"{takes} = {whole}")


def describe_rules(rules: Sequence[Rule], shapes: Mapping[str, Any]) -> list[str]:
    """One line for each rule: what it matches, and how that is sampled.

    Example:
      >>> shapes = {"h/up/kernel": jax.ShapeDtypeStruct((4, 64, 128), "float32")}
      >>> describe_rules([Rule(".*kernel", target_bits=3)], shapes)
      ['.*kernel: 1 array, 4 matrices, 32,768 weights; gauss noise, 6 to 3 bits, 32x32, BF16']

    Args:
      rules: ordered rules.
      shapes: shapes of the parameters, by path.
    """
    specs, lines = resolve(rules, shapes), []
    for rule in rules:
        matched = [shapes[path] for path in shapes if first_match(rules, path) == rule]
        if (spec := rule.spec) is None:
            lines.append(f"{rule.pattern}: {format_quantity(len(matched), 'array')} left alone")
            continue
        sampled = [shapes[path] for path in specs if first_match(rules, path) == rule]
        matrices = sum(blocks.matrix_shape(x.shape, spec.matrix_axes)[0] for x in sampled)
        bits = f"{spec.init_bits:g} to {spec.target_bits:g} bits, "
        noise = "no noise, " if spec.noise == "none" else f"{spec.noise} noise, {bits}"
        lines.append(
            f"{rule.pattern}: {format_quantity(len(sampled), 'array')}, "
            f"{format_quantity(matrices, 'matrix')}, {_weights(sampled):,} weights; {noise}"
            f"{spec.block[0]}x{spec.block[1]}, {spec.rounding_label}"
        )
    return lines


def format_bytes(count: float) -> str:
    """Bytes in words, in powers of 1000.

    Example:
      >>> format_bytes(999), format_bytes(1_585_000_000)
      ('999 bytes', '1.58 GB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if float(f"{count:.3g}") < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3f} TB"


def _weights(shapes: Iterable[Any]) -> int:
    return sum(x.size for x in shapes)


def _sampled(config: RunConfig, shapes: Mapping[str, Any]) -> str:
    specs = resolve(methods.make_rules(config), shapes)
    noisy = [shapes[path] for path, spec in specs.items() if spec.noise != "none"]
    share = 100 * _weights(noisy) / _weights(shapes.values())
    return f"{_weights(noisy):,} parameters, {share:.1f} % of all" if noisy else "nothing"


def _shape(config: RunConfig) -> str:
    model = model_config(config)
    kv = getattr(model, "num_kv_heads", 0)
    heads = format_quantity(model.num_heads, "head") + (f" ({kv} of keys and values)" if kv else "")
    heads += f" of width {model.head_width}" if getattr(model, "head_dim", 0) else ""
    return (
        f"{format_quantity(model.num_layers, 'layer')}, width {model.d_model}, {heads}, "
        f"MLP {model.d_ff}, vocabulary {model.vocab_size:,}"
    )


def _method(config: RunConfig) -> str:
    dtype = config.model.param_dtype
    computes = f"computes in {config.model.dtype}, parameters and moments in {dtype}"
    return f"{config.method}, {config.optimizer.name}; {computes}"


def _mesh(facts: Facts) -> str:
    axes = " x ".join(f"{name}={count}" for name, count in facts.axes.items()) or "one device"
    return f"{axes}, {format_quantity(facts.processes, 'process')}, {facts.device_kind}"


def _step(config: RunConfig) -> str:
    data, count = config.data, config.data.microbatches
    split = f", in {count} microbatches" if count > 1 else ""
    return (
        f"{data.batch * data.length:,} tokens, {data.batch:,} sequences of {data.length:,}{split}"
    )


def _memory(state: flops.StateBytes) -> str:
    terms = " + ".join(f"{format_bytes(count)} {name}" for name, count in state._asdict().items())
    return f"{terms} = {format_bytes(sum(state))} on each device; activations come on top"


def _row(name: str, value: str) -> str:
    """A name and its value, in lines of the second column; no word is broken."""
    first, other = f"{f'{name}:':{COLUMN}}", " " * COLUMN
    return textwrap.fill(
        value,
        WIDTH,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
    )
