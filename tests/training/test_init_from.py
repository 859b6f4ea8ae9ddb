# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Runs that start from the weights of a Hugging Face folder."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.data import pipeline, source
from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface
from pqt_jax.training import init_from
from pqt_jax.training import state as states
from pqt_jax.training.loss import cross_entropy
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.run import metrics
from pqt_jax.transform import bit_state
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import tiny
from support.command import main
from support.exported import flat, make

# So small that float32 weights stay as they are.
STILL = ("optimizer.learning_rate", "optimizer.final_learning_rate", "pqt.learning_rate")
STILL = [f"--config.{name}=1e-30" for name in STILL]

QUICK = ("--config.steps=4", "--config.method=bf16")  # the sooner compiled


def export(folder, config=tiny.LLAMA2, **options):
    config, model = make(config)
    huggingface.save(folder, config, nnx.state(model), dtype="float32", **options)
    return config, model


def config_for(model, folder):
    config = tiny.get_config(model)
    config.init_from = str(folder)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("config", [tiny.LLAMA2, tiny.OTHERS], ids=["llama", "qwen3"])
def test_a_run_starts_at_the_loss_of_the_imported_model(tmp_path, config):
    _, model = export(tmp_path / "hf", config)
    given = [f"--config.init_from={tmp_path / 'hf'}"]
    for field in dataclasses.fields(config):
        if (value := getattr(config, field.name)) != getattr(tiny.LLAMA2, field.name):
            given.append(f"--config.model.{field.name}={value}")
    assert main(tmp_path, *[x.replace("True", "true") for x in given], *STILL, *QUICK) == 0
    (loss,) = (
        r["validation_loss"]
        for r in metrics.read(tmp_path / "run" / "metrics.jsonl")
        if "validation_loss" in r
    )
    text = source.load(str(tmp_path / "text.txt"))
    batches = pipeline.validation_batches(text.validation, count=2, length=16, batch=4)
    tokens = jnp.asarray(batches, int).reshape(-1, 17)
    logits = nnx.jit(lambda model, tokens: model(tokens))(model, tokens[:, :-1])
    expected = float(cross_entropy(logits, tokens[:, 1:]))
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "param_dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"]
)
def test_weights_are_those_of_the_folder_and_bits_are_new(tmp_path, param_dtype):
    _, model = export(tmp_path)
    config = config_for(tiny.LLAMA2, tmp_path)
    config.model.param_dtype = param_dtype
    optimizer = make_optimizer(config)
    _, state = states.init_state(config, optimizer, init_from.read(config).params)
    expected = flat(nnx.state(model))
    found = flat(state.params)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == param_dtype
        np.testing.assert_array_equal(found[path], leaf.astype(found[path].dtype))
    bits = paths_and_leaves(bit_state.collect_bits(state.params))
    assert len(bits) == 7 and all((leaf == 1).all() for leaf in bits.values())
    _, new = states.init_state(config, optimizer)
    assert (flat(new.params)["h/attn/q/kernel"] != found["h/attn/q/kernel"]).any()


@pytest.mark.slow
def test_a_folder_that_changed_is_refused_by_name(tmp_path, capsys):
    config, model = export(tmp_path / "hf")
    given = f"--config.init_from={tmp_path / 'hf'}"
    assert main(tmp_path, given, *QUICK) == 0
    meta = json.loads((tmp_path / "run" / "run.json").read_text())
    # Other files with the same weights are the same start.
    params = nnx.state(model)
    options = {"dtype": "float32", "overwrite": True}
    huggingface.save(tmp_path / "hf", config, params, shard_bytes=9000, **options)
    assert main(tmp_path, given, *QUICK) == 0
    (tmp_path / "hf").rename(tmp_path / "elsewhere")  # the checkpoints have what was in it
    assert main(tmp_path, given, *QUICK) == 0
    (tmp_path / "run").rename(tmp_path / "old")
    assert main(tmp_path, given, *QUICK) == 2  # and a new run needs it
    (tmp_path / "old").rename(tmp_path / "run")
    (tmp_path / "elsewhere").rename(tmp_path / "hf")
    model.norm.scale[...] = model.norm.scale[...].at[3].add(1e-3)
    huggingface.save(tmp_path / "hf", config, nnx.state(model), **options)
    capsys.readouterr()
    assert main(tmp_path, given, *QUICK) == 2
    before = meta["init_fingerprint"][:12]
    err = capsys.readouterr().err
    assert f"belongs to another run: init_fingerprint was {before} and is " in err
    assert "(it is of the weights in config.init_from); give another --workdir\n" in err
    assert main(tmp_path, *QUICK) == 2
    assert "config.init_from was '" in capsys.readouterr().err


def test_a_gpt2_trained_without_biases_goes_on_without(tmp_path):
    _, model = export(tmp_path / "zeros", tiny.GPT2)
    start = init_from.read(
        config_for(dataclasses.replace(tiny.GPT2, max_length=64), tmp_path / "zeros")
    )
    loaded = flat(start.params)
    assert loaded.keys() == flat(nnx.state(model)).keys()
    whole = dataclasses.replace(tiny.GPT2, max_length=64, bias=True)
    assert len(flat(init_from.read(config_for(whole, tmp_path / "zeros")).params)) > len(loaded)
    export(tmp_path / "biases", dataclasses.replace(tiny.GPT2, bias=True))
    with pytest.raises(InputError, match="config.model.bias=False; config.init_from=.*has True"):
        init_from.read(config_for(dataclasses.replace(whole, bias=False), tmp_path / "biases"))


def test_a_llama_may_be_trained_on_other_lengths(tmp_path):
    export(tmp_path)
    explicit = dataclasses.replace(
        tiny.LLAMA2, max_length=16, num_kv_heads=2, head_dim=16, remat=True
    )
    assert init_from.read(config_for(explicit, tmp_path)).params


@pytest.mark.parametrize(
    "change, message",
    [
        ({"d_model": 64}, "config.model.d_model=64; config.init_from={} has 32, and both must"),
        (
            {"vocab_size": 300, "d_ff": 96},
            "config.model.vocab_size=300; config.init_from={} has 256, and both must be the same; "
            "it also has d_ff=64",
        ),
        ({"num_kv_heads": 1}, "config.model.num_kv_heads=1; config.init_from={} has 2"),
        ({"norm_eps": 1e-6}, "config.model.norm_eps=1e-06; config.init_from={} has 1e-05"),
        ({"head_dim": 8}, "config.model.head_dim=8; config.init_from={} has 16, and both must"),
        ({"attention_bias": "qkv"}, "model.attention_bias='qkv'; config.init_from={} has 'none'"),
        (
            {"num_heads": 4, "tie_embeddings": True},
            "config.model.num_heads=4; config.init_from={} has 2, and both must be the same; it "
            "also has num_kv_heads=2, head_dim=16, tie_embeddings=false",
        ),
        ({"qk_norm": True}, "config.model.qk_norm=True; config.init_from={} has False"),
        ({"rope_scaling": "llama3"}, "rope_scaling='llama3'; config.init_from={} has 'none'"),
        ({"rope_theta": 5.0}, "config.model.rope_theta=5.0; config.init_from={} has 10000.0"),
        (
            {"tie_embeddings": True},
            "config.model.tie_embeddings=True; config.init_from={} has False",
        ),
        (None, "config.model.name='gpt2'; config.init_from={} has 'llama2'"),
    ],
)
def test_another_shape_is_refused_by_the_fields_that_differ(tmp_path, change, message):
    export(tmp_path)
    model = tiny.GPT2 if change is None else dataclasses.replace(tiny.LLAMA2, **change)
    with pytest.raises(InputError) as caught:
        init_from.read(config_for(model, tmp_path))
    assert message.format(tmp_path) in str(caught.value)


def test_a_folder_that_cannot_be_read_ends_the_run_before_it_begins(tmp_path, capsys):
    assert main(tmp_path, f"--config.init_from={tmp_path / 'gone'}") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: config.init_from: ") and "gone is missing; give a folder" in err
    assert err.count("\n") == 1 and not (tmp_path / "run").exists()
