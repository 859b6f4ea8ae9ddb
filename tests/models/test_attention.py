# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The implementation of attention is chosen in the open: by devices, dtype and width of heads."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import pytest
from flax import nnx

from pqt_jax.errors import InputError
from pqt_jax.models import GPT2, Llama2
from pqt_jax.models.attention import choose, resolved
from pqt_jax.models.llama2 import LLAMA2_1B
from support import tiny


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
        ({}, [TPU], "cudnn needs a GPU, and JAX finds none"),
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
