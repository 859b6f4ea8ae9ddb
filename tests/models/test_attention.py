# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The implementation of attention is chosen in the open: by devices, dtype and width of heads."""

import dataclasses
import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.errors import InputError
from pqt_jax.models import GPT2, Llama2, document_mask, partitioning, splash
from pqt_jax.models.attention import choose, resolved
from pqt_jax.models.llama2 import LLAMA2_1B
from support import kernels, tiny


def gpu(capability="9.0", kind="NVIDIA H100 80GB HBM3"):
    return SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)


CPU, TPU = (SimpleNamespace(platform=name, device_kind=name) for name in ("cpu", "tpu"))
T4 = gpu("7.5", "Tesla T4")
MI300 = gpu("gfx942", "AMD Instinct MI300X")


@pytest.mark.parametrize(
    "changes, devices, reason",
    [
        ({}, [gpu()], None),
        ({}, [gpu("8.0"), gpu("12.0")], None),
        ({"dtype": "float16", "d_model": 8 * 16}, [gpu("10.0")], None),
        ({}, [CPU], "cudnn needs a GPU, and JAX finds none"),
        ({}, [TPU, CPU], "cudnn needs a GPU, and JAX finds none"),
        ({}, [T4], "an NVIDIA GPU of compute capability 8.0, and there is Tesla T4"),
        ({}, [gpu(), T4], "and there is Tesla T4"),
        ({}, [MI300], "and there is AMD Instinct MI300X"),
        ({"dtype": "float32"}, [gpu()], "config.model.dtype=bfloat16 or float16, and it is float3"),
        ({"d_model": 12 * 16}, [gpu()], "8 divides, 128 at most, and .* is 12$"),
        ({"d_model": 136 * 16}, [gpu()], "128 at most, .* is 136$"),
        ({"d_model": 136 * 16, "head_dim": 128}, [gpu()], None),
        ({"head_dim": 136}, [gpu()], "128 at most, and config.model.head_dim is 136$"),
    ],
)
def test_auto_is_cudnn_where_it_can_work_and_else_xla_with_the_reason(changes, devices, reason):
    model = dataclasses.replace(LLAMA2_1B, **changes)
    choice = choose(model, devices)
    assert choice.implementation == ("xla" if reason else "cudnn")
    if not reason:
        assert f"{model.dtype} and heads of {model.head_width} allow it" in choice.reason
        assert choose(dataclasses.replace(model, attention="cudnn"), devices)[0] == "cudnn"
        return
    assert re.search(reason, choice.reason)
    assert choose(dataclasses.replace(model, attention="xla"), devices).implementation == "xla"


def test_cudnn_where_it_cannot_work_is_one_line_with_the_reason():
    asked = dataclasses.replace(LLAMA2_1B, attention="cudnn")
    for changes, device, reason in (
        ({}, CPU, "it needs a GPU, and JAX finds none; give auto or xla"),
        ({}, T4, "it needs an NVIDIA GPU of compute capability 8.0, and there is Tesla T4; give"),
        ({"dtype": "float32"}, gpu(), "it needs config.model.dtype=bfloat16 or float16, and it is"),
        ({"d_model": 160 * 16}, gpu("8.9"), "128 at most"),
        ({"d_model": 320 * 16}, gpu("9.0"), "256 at most"),
    ):
        with pytest.raises(InputError, match=f"config.model.attention='cudnn'; .*{reason}") as e:
            choose(dataclasses.replace(asked, **changes), [device])
        assert "\n" not in str(e.value)
    wide = dataclasses.replace(asked, d_model=160 * 16)  # as Hopper can, if it is asked for
    assert choose(wide, [gpu("9.0")]).implementation == "cudnn"


def test_splash_is_for_tpus_and_on_several_for_a_mesh_of_the_trainer():
    assert choose(LLAMA2_1B, [TPU]) == ("splash", "a TPU and bfloat16 allow it")
    asked = dataclasses.replace(LLAMA2_1B, attention="splash")
    assert choose(asked, [TPU]).implementation == "splash"
    for changes, devices, reason in (
        ({}, [CPU], "it needs a TPU, and JAX finds none; give auto or xla"),
        ({"dtype": "float16"}, [TPU], "it needs config.model.dtype=bfloat16 or float32, and it is"),
        ({}, [TPU, TPU], "it needs the mesh of the trainer on several devices"),
    ):
        with pytest.raises(InputError, match=f"config.model.attention='splash'; {reason}"):
            choose(dataclasses.replace(asked, **changes), devices)
        auto = dataclasses.replace(LLAMA2_1B, **changes)
        assert choose(auto, devices).implementation == "xla"
    with partitioning.use_mesh(partitioning.make_mesh(data=1, fsdp=4, tensor=2)):
        assert choose(LLAMA2_1B, [TPU] * 8).implementation == "splash"


def make_qkv(batch, length, heads, kv_heads, width):
    rng = np.random.default_rng(0)
    shapes = [(batch, length, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]


def attend_by_xla(q, k, v, segments=None):
    mask = None if segments is None else document_mask.attention_mask(segments)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="xla")


@pytest.mark.parametrize(
    ("shape", "has_segments", "mesh"),
    [
        ((2, 200, 4, 2, 64), False, {}),  # no whole tiles, and few keys and values
        ((2, 256, 4, 4, 32), True, {}),
        ((8, 128, 4, 2, 32), True, {"data": 2, "fsdp": 2, "tensor": 2}),
        ((3, 128, 3, 3, 32), False, {"data": 1, "fsdp": 4, "tensor": 2}),  # it divides neither
    ],
)
def test_splash_is_xlas_attention(shape, has_segments, mesh):
    """In Pallas' interpreter: the result and its gradients, to what bfloat16 rounds."""
    *qkv, cotangent = make_qkv(*shape)
    batch, length = shape[:2]
    cuts = np.sort(np.random.default_rng(1).integers(0, 3, (batch, length)), axis=1)
    segments = jnp.asarray(cuts) if has_segments else None

    def run(attend):
        value, back = jax.vjp(lambda *qkv: attend(*qkv, segments), *qkv)
        return value, *back(cotangent)

    want = run(attend_by_xla)
    with partitioning.use_mesh(partitioning.make_mesh(**mesh) if mesh else None):
        compiled = jax.jit(lambda: run(functools.partial(splash.attend, interpret=True)))
        got = jax.device_get(compiled())
    for one, other in zip(got, want, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=0, atol=0.02 * np.abs(other).max())


def test_a_model_on_a_tpu_calls_splash_and_keeps_no_scores(monkeypatch):
    """Lowered for a TPU: no array of the length squared is left."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    config = dataclasses.replace(tiny.LLAMA2, attention="splash", max_length=384)
    model = nnx.eval_shape(lambda: Llama2(config, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model)
    run = jax.jit(lambda params, x: nnx.merge(graph, params)(x))
    tokens = jax.ShapeDtypeStruct((1, 384), "int32")
    text = kernels.lower_for(kernels.TPUS[0], run, params, tokens)
    assert "tpu_custom_call" in text and "384x384" not in text


@pytest.mark.parametrize("cls, config", [(Llama2, tiny.LLAMA2), (GPT2, tiny.GPT2)])
def test_models_resolve_auto_and_hand_jax_a_name(monkeypatch, cls, config):
    assert config.attention == "auto" and resolved(config).attention == "xla"
    given = []
    attend = jax.nn.dot_product_attention

    def spy(*arguments, implementation=None, **options):
        given.append(implementation)
        return attend(*arguments, implementation=implementation, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    tokens = jax.ShapeDtypeStruct((1, 8), "int32")
    for asked, found in (("auto", "xla"), ("xla", "xla")):
        model = nnx.eval_shape(
            lambda a=asked: cls(dataclasses.replace(config, attention=a), rngs=nnx.Rngs(0))
        )
        assert model.config.attention == asked and model.h.attn.attention == found
        nnx.eval_shape(lambda m, x: m(x), model, tokens)
    assert set(given) == {"xla"}
