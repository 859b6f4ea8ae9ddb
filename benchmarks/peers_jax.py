# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The rows of `peers.py` that run in JAX: ours, qwix, and flax's FP8 products.

All train the Llama of `pqt_jax.models` by the trainer's own step, in bfloat16 with float32 master
weights, and change the kernels of its blocks. What they change differs:

gaussws …  the trainer's methods; the model samples or rounds one layer at a time
qwix       weights alone are quantized, as `qwix.QtProvider` does it for training (forward only);
           its rules have no blocks of 32×32, so there `qwix.quantize` and `dequantize` make ŵ
flax       weights and activations in E4M3, gradients in E5M2, each by one scale that follows the
           maxima of steps before (delayed scaling); a CPU emulates these products
"""

import sys
from collections.abc import Callable
from typing import Any

import gpu_train
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from peers_table import Case, missing, reason, time_steps, versions
from perturb import qwix_fake_quantization

from pqt_jax.models import build_model
from pqt_jax.models.llama2 import Llama2Config
from pqt_jax.models.registry import model_config
from pqt_jax.training.config.schema import RunConfig, default
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.state import TrainState, init_state
from pqt_jax.training.step import build_train_step

HISTORY = 1024  # steps of which flax's FP8 products keep the maxima, its default

Prepared = tuple[Any, TrainState]  # the jitted step, and the state before the first one
Row = tuple[str, str, Callable[[RunConfig], Prepared]]  # packages, what it does, how it is made


class Overwritten(nnx.Param):
    """State whose gradient is its new value, as flax's FP8 products return it."""


class Fp8DotGeneral(nnx.Module):
    """flax's FP8 product, for a `dot_general` of NNX: flax itself has it for Linen alone.

    Args:
      layers: number of layers of the stack, each of which has scales and maxima of its own.
    """

    def __init__(self, layers: int):
        for name in ("lhs", "rhs", "grad"):
            setattr(self, f"{name}_scale", Overwritten(jnp.ones((layers, 1))))
            setattr(self, f"{name}_amax_history", Overwritten(jnp.zeros((layers, HISTORY))))

    def __call__(self, x: jax.Array, kernel: jax.Array, dimensions: Any, **_: Any) -> jax.Array:
        """The product of one layer, in the dtype of x."""
        from flax.linen import fp8_ops

        names = [
            f"{n}_{kind}" for n in ("lhs", "rhs", "grad") for kind in ("scale", "amax_history")
        ]
        state = {name: getattr(self, name)[...] for name in names}
        return fp8_ops.fp8_scaled_dot_general(
            x,
            kernel,
            dimensions,
            preferred_element_type=x.dtype,
            quantize_compute_type=x.dtype,
            **state,
        )


def overwrite(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that leaves `Overwritten` to its gradient, and has the rest from another."""

    def is_state(leaf):
        return isinstance(leaf, Overwritten)

    def without(grad):
        return grad.replace(grad[...] * 0) if is_state(grad) else grad

    def choose(new, grad, param):
        return grad.replace(grad[...] - param[...]) if is_state(grad) else new

    def update(updates, state, params=None):
        grads = updates
        rest = jax.tree.map(without, grads, is_leaf=is_state)
        updates, state = optimizer.update(rest, state, params)
        return jax.tree.map(choose, updates, grads, params, is_leaf=is_state), state

    return optax.GradientTransformation(optimizer.init, update)


def ours(method: str, **options: Any) -> Callable[[RunConfig], Prepared]:
    """A method of the trainer; options are those of `config.pqt`."""

    def prepare(config):
        config.method = method
        for name, value in options.items():
            setattr(config.pqt, name, value)
        optimizer = make_optimizer(config)
        graph, state = init_state(config, optimizer)
        return build_train_step(config, graph, optimizer), state

    return prepare


def changed(change: Callable[[Any], Any], wrap: Any = None) -> Callable[[RunConfig], Prepared]:
    """The bare model after `change`, which returns it; `wrap` changes the optimizer."""

    def prepare(config):
        optimizer = make_optimizer(config)
        optimizer = wrap(optimizer) if wrap else optimizer
        model = change(build_model(model_config(config), [], rngs=nnx.Rngs(config.seed)))
        graph, params = nnx.split(model)
        counts = [jnp.zeros((), jnp.int32) for _ in range(3)]
        state = TrainState(params, jax.jit(optimizer.init)(params), *counts)
        return build_train_step(config, graph, optimizer), state

    return prepare


def linear_layers(model: Any) -> list[nnx.Linear]:
    """The linear layers of the blocks, each a stack over the layers."""
    return [m for _, m in nnx.iter_modules(model.h) if isinstance(m, nnx.Linear)]


def qwix_rule(**options: Any) -> Callable[[RunConfig], Prepared]:
    """Quantization-aware training by qwix; options are those of `qwix.QtRule`."""

    def change(model):
        import qwix  # extra "bench"  # pyright: ignore[reportMissingImports]

        # Not the attention itself, path "h/attn": all products of a module that has a rule lose
        # their `preferred_element_type`, and attention's logits would be rounded to bfloat16.
        provider = qwix.QtProvider([qwix.QtRule(module_path="h/.*/.*", **options)])
        return qwix.quantize_model(model, provider, jnp.zeros((1, 8), jnp.int32))

    return changed(change)


def qwix_blocks(qtype: str) -> Callable[[RunConfig], Prepared]:
    """Blocks of 32×32 of every kernel through `qwix.quantize` and `qwix.dequantize`."""

    def change(model):
        fake = qwix_fake_quantization(qtype, 32)

        def promote(arrays, *, dtype):
            x, kernel, bias = arrays
            return x.astype(dtype), fake(kernel, None, None, None).astype(dtype), bias

        for layer in linear_layers(model):
            layer.promote_dtype = promote  # pyright: ignore[reportAttributeAccessIssue]
        return model

    return changed(change)


def use_fp8(model: Any) -> Any:
    """The model with flax's FP8 products in its blocks."""
    for layer in linear_layers(model):
        layer.dot_general = nnx.data(Fp8DotGeneral(model.config.num_layers))
    return model


def make_rows() -> dict[str, Row]:
    """Every row in JAX by its name; the first is the BF16 step."""
    rows: dict[str, Row] = {
        "bf16": ("jax flax", "casts to BF16", ours("bf16")),
        "gaussws": ("pqt_jax", "rounded normal noise, learned bits, 32×32", ours("gaussws")),
        "uniform": ("pqt_jax", "uniform noise, learned bits, 32×32", ours("uniform")),
        "ste fp6": ("pqt_jax", "rounds to E3M2, 32×32", ours("ste", dtype="fp6_e3m2")),
        "ste fp4": ("pqt_jax", "rounds to E2M1, 32×32", ours("ste", dtype="fp4_e2m1")),
        "our DiffQ": ("pqt_jax", "normal noise, learned bits, groups of 8", ours("diffq")),
    }
    for qtype in ("int8", "float8_e4m3fn", "int4"):
        name, what = f"qwix {qtype}", f"rounds to {qtype}"
        tensor = qwix_rule(weight_qtype=qtype, disable_channelwise_axes=True)
        rows[f"{name}, tensor"] = ("qwix", f"{what}, one scale", tensor)
        channel = qwix_rule(weight_qtype=qtype)
        rows[f"{name}, channel"] = ("qwix", f"{what}, a scale for each output", channel)
        rows[f"{name}, 32×32"] = ("qwix", f"{what}, 32×32", qwix_blocks(qtype))
    both = qwix_rule(weight_qtype="int8", act_qtype="int8")
    rows["qwix int8, activations too"] = ("qwix", "weights and activations to int8", both)
    fp8 = changed(use_fp8, overwrite)
    rows["flax FP8"] = ("flax", "products in FP8, delayed scales", fp8)
    return rows


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """The rows as `peers_table.complete` wants them."""
    shape = case._asdict()
    batch, length = shape.pop("batch"), shape.pop("length")
    tokens = np.random.default_rng(0).integers(0, case.vocab_size, (batch, length + 1), np.int32)
    data, key = jax.device_put(tokens), jax.random.key(0)
    rows, steps = [], {}
    for name, (packages, what, prepare) in make_rows().items():
        row: dict[str, Any] = {
            "name": name,
            "version": versions(packages),
            "what": what,
            "base": "bf16",
        }
        row["is_peer"] = packages != "pqt_jax"
        rows.append(row)
        if why := missing(packages):
            row["why"] = why
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            step, state = prepare(default(Llama2Config(**shape, max_length=length)))
            compiled = step.lower(state, data, key).compile()
            row |= gpu_train.memory(compiled)
            steps[name] = advance = make_advance(compiled, state, data, key)
            row["loss"] = advance()
        except Exception as error:  # a device or a version that cannot run it
            row["why"] = reason(error)
            steps.pop(name, None)
    for name, times in time_steps(steps, rounds).items():
        row = next(row for row in rows if row["name"] == name)
        row |= times | {"last_loss": steps[name]()}
    return rows


def make_advance(compiled: Any, state: TrainState, data: Any, key: Any) -> Callable[[], float]:
    """A function that takes one step, waits for it, and returns the loss."""
    held = [state]

    def advance():
        held[0], metrics = jax.block_until_ready(compiled(held[0], data, key))
        return float(metrics["loss"])

    return advance
