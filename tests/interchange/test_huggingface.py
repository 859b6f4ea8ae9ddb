# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Exports and imports: bit for bit without torch, and as transformers computes them, with it."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from pqt_jax import Rule
from pqt_jax.errors import InputError, OutputError
from pqt_jax.interchange import huggingface, safetensors_io, safetensors_writer
from pqt_jax.models import GPT2Config
from support import tiny
from support.exported import ALL, CONFIGS, each_of_all, flat, make


@each_of_all
def test_a_round_trip_is_bit_for_bit(tmp_path, name):
    config, model = make(ALL[name])
    huggingface.save(tmp_path / "out", config, nnx.state(model), dtype="float32")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    again, params = huggingface.load(tmp_path / "out")
    changed = {"dtype": "float32"} | ({"bias": True} if isinstance(config, GPT2Config) else {})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] in name
    assert again == dataclasses.replace(config, **changed)
    saved, loaded = flat(nnx.state(model)), flat(params)
    for path in loaded.keys() | saved.keys():
        # Biases that were not there are zeros.
        expected = saved.get(path, np.zeros_like(loaded[path]))
        assert path in saved or path.endswith("/bias")
        assert loaded[path].dtype == np.float32
        np.testing.assert_array_equal(loaded[path], expected, err_msg=path)


@pytest.mark.parametrize("name", ["gpt2", "llama of few kv heads"])
def test_models_take_what_was_loaded(tmp_path, name):
    config, model = make(ALL[name])
    huggingface.save(tmp_path / "out", config, nnx.state(model), dtype="float32")
    config, params = huggingface.load(tmp_path / "out")
    other = type(model)(config, rngs=nnx.Rngs(7))
    tokens = jnp.arange(16)[None] * 37 % 256
    graph = nnx.split(other)[0]
    nnx.update(other, params)
    np.testing.assert_array_equal(other(tokens), model(tokens))
    np.testing.assert_array_equal(nnx.merge(graph, params)(tokens), model(tokens))


def test_a_qwen3_without_a_bias_of_the_output_is_written_with_zeros(tmp_path):
    config, model = make(dataclasses.replace(tiny.OTHERS, attention_bias="qkv"))
    huggingface.save(tmp_path / "out", config, nnx.state(model), dtype="float32")
    again, params = huggingface.load(tmp_path / "out")
    assert again.attention_bias == "all"
    loaded = flat(params)
    assert not loaded.pop("h/attn/out/bias").any()
    assert loaded.keys() == flat(nnx.state(model)).keys()


def test_the_state_of_a_wrapped_model_is_exported_without_its_bits(tmp_path):
    config, model = make(tiny.LLAMA2, [Rule("h/.*/kernel")])
    huggingface.save(tmp_path / "out", config, nnx.state(model), dtype="float32")
    loaded = flat(huggingface.load(tmp_path / "out")[1])
    for path, leaf in flat(nnx.state(model)).items():
        np.testing.assert_array_equal(loaded.pop(path), leaf)
    assert not loaded


@each_of_all
def test_bfloat16_is_rounded_to_nearest(tmp_path, name):
    config, model = make(ALL[name])
    huggingface.save(tmp_path / "out", config, nnx.state(model))
    stored = safetensors_io.find_tensors(tmp_path / "out")
    assert {tensor.dtype for tensor in stored.values()} == {"BF16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    loaded = flat(huggingface.load(tmp_path / "out")[1])
    for path, leaf in flat(nnx.state(model)).items():
        expected = np.asarray(jnp.asarray(leaf).astype(jnp.bfloat16), np.float32)
        np.testing.assert_array_equal(loaded[path], expected, err_msg=path)


def test_ties_infinities_and_nan_survive_the_rounding(tmp_path):
    config, model = make(tiny.LLAMA2)
    ulp = 2.0**-7
    given = np.float32([1 + ulp / 2, 1 + 3 * ulp / 2, -1 - ulp / 2, np.inf, -np.inf, np.nan, -0.0])
    wanted = np.float32([1, 1 + 2 * ulp, -1, np.inf, -np.inf, np.nan, -0.0])
    model.norm.scale[...] = model.norm.scale[...].at[:7].set(given)
    huggingface.save(tmp_path / "out", config, nnx.state(model))
    found = huggingface.load(tmp_path / "out")[1]["norm"]["scale"][:7]
    np.testing.assert_array_equal(found, wanted)
    assert np.signbit(found[6])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_models_come_in_shards(tmp_path, dtype):
    config, model = make(CONFIGS["gpt2"])
    huggingface.save(tmp_path / "one", config, nnx.state(model), dtype=dtype)
    huggingface.save(tmp_path / "many", config, nnx.state(model), dtype=dtype, shard_bytes=9000)
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    sizes = {}
    for shard in shards:
        with safe_open(shard, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118, it is no dict
                assert index["weight_map"].pop(name) == shard.name
        found = [
            t for t in safetensors_io.find_tensors(tmp_path / "many").values() if t.path == shard
        ]
        sizes[shard] = [int(np.prod(t.shape)) * (4 if dtype == "float32" else 2) for t in found]
        assert sum(sizes[shard]) <= 9000 or len(sizes[shard]) == 1
    assert not index["weight_map"]
    assert index["metadata"]["total_size"] == sum(map(sum, sizes.values()))
    one, many = (flat(huggingface.load(tmp_path / name)[1]) for name in ("one", "many"))
    assert one.keys() == many.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(many[path], leaf)


def test_an_export_does_not_replace_another_unasked(tmp_path):
    config, model = make(tiny.GPT2)
    huggingface.save(tmp_path, config, nnx.state(model))
    with pytest.raises(InputError, match="exists and holds config.json"):
        huggingface.save(tmp_path, config, nnx.state(model))
    huggingface.save(tmp_path, config, nnx.state(model), dtype="float32", overwrite=True)
    assert safetensors_io.find_tensors(tmp_path)["transformer.wte.weight"].dtype == "F32"


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="model.safetensors: no space left on device; free some"):
        zeros = np.zeros(30_000, np.float32)
        specs = {"a": safetensors_writer.TensorSpec("F32", zeros.shape)}
        safetensors_writer.write_stream(tmp_path, specs, [("a", zeros)])

    write = safetensors_writer._write_all

    def fill(file, data):
        write(file, data)
        if Path(file.name).name.startswith("model-00002"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors_writer, "_write_all", fill)
    config, model = make(tiny.GPT2)
    with pytest.raises(OutputError, match="no space left on device; free some"):
        huggingface.save(tmp_path / "out", config, nnx.state(model), shard_bytes=9000)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_parameters_of_another_model_are_named(tmp_path):
    config, model = make(tiny.GPT2)
    params = nnx.to_pure_dict(nnx.state(model))
    with pytest.raises(ValueError, match=r"'embed/embedding' is \(256, 32\), the model's \(300, "):
        huggingface.save(tmp_path, dataclasses.replace(config, vocab_size=300), params)
    with pytest.raises(ValueError, match="'head/kernel' is missing, the model's"):
        huggingface.save(tmp_path, dataclasses.replace(config, tie_embeddings=False), params)
    params["more"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"'more' is \(3,\), the model's none"):
        huggingface.save(tmp_path, config, params)
    with pytest.raises(ValueError, match="dtype='int8'; it must be bfloat16 or float32"):
        huggingface.save(tmp_path, config, params, dtype="int8")
    assert list(tmp_path.iterdir()) == []


def write_plain(folder, values, fields):
    """A folder as others write it, by the format's own words."""
    header, data = {}, b""
    codes = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8", "bool": "BOOL"}
    for name, value in values.items():
        start, data = len(data), data + np.ascontiguousarray(value).tobytes()
        header[name] = {
            "dtype": codes[value.dtype.name],
            "shape": value.shape,
            "data_offsets": [start, len(data)],
        }
    text = json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text(json.dumps(fields))


def read_plain(folder):
    """(tensors, fields) of a folder."""
    values = {
        name: safetensors_io.read_tensor(tensor)
        for name, tensor in safetensors_io.find_tensors(folder).items()
    }
    return values, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_files_without_prefix_with_buffers_and_in_other_dtypes(tmp_path, dtype):
    config, model = make(CONFIGS["gpt2"])
    huggingface.save(tmp_path, config, nnx.state(model), dtype="float32")
    values, fields = read_plain(tmp_path)
    values = {n.removeprefix("transformer."): v.astype(dtype) for n, v in values.items()}
    values["h.0.attn.bias"] = np.ones((1, 1, 8, 8), bool)
    values["h.1.attn.masked_bias"] = np.float32(-1e4).reshape(())
    values["lm_head.weight"] = values["wte.weight"]  # as some save it though it is tied
    del fields["tie_word_embeddings"], fields["n_inner"]
    with pytest.raises(InputError, match="h.0.mlp.c_fc.weight is 32×64; by config.js"):
        write_plain(tmp_path, values, fields)
        huggingface.load(tmp_path)
    fields["n_inner"] = 64
    write_plain(tmp_path, values, fields)
    loaded = flat(huggingface.load(tmp_path)[1])
    for path, leaf in flat(nnx.state(model)).items():
        np.testing.assert_array_equal(loaded[path], leaf.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": None},
        {"rope_theta": None},
        {"rope_parameters": None, "rope_scaling": {"type": "default"}},
        {"rope_theta": 1.0, "head_dim": None},
    ],
)
def test_the_base_of_the_rotary_wavelengths_is_found(tmp_path, change):
    config, model = make(dataclasses.replace(tiny.LLAMA2, rope_theta=500.0))
    huggingface.save(tmp_path, config, nnx.state(model))
    values, fields = read_plain(tmp_path)
    fields = {k: v for k, v in (fields | change).items() if v is not None}
    write_plain(tmp_path, values, fields)
    assert huggingface.load(tmp_path)[0].rope_theta == 500.0


LIMITS = ("low_freq_factor", "high_freq_factor")
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"rope_scaling": {"type": "linear", "factor": 1}}, {}),
        ({"rope_parameters": {"rope_type": "default", "factor": 1.0}}, {}),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": 1.0}}, {}),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"factor": 3}},
            {"rope_scaling": "linear", "rope_factor": 2.0},
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}},
            {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_length": 64},
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "original_max_position_embeddings": 32,
                    **LLAMA3,
                }
            },
            {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_length": 32},
        ),
    ],
)
def test_scaled_positions_are_found(tmp_path, change, expected):
    config, model = make(tiny.LLAMA2)
    huggingface.save(tmp_path, config, nnx.state(model))
    values, fields = read_plain(tmp_path)
    write_plain(tmp_path, values, fields | change)
    assert huggingface.load(tmp_path)[0] == dataclasses.replace(config, **expected)


REFUSED = {  # (model, change of config.json, message)
    "unknown model": (
        "gpt2",
        {"model_type": "mamba"},
        "model_type='mamba'; it must be gpt2, llama, mist",
    ),
    "no model": (
        "gpt2",
        {"model_type": None},
        "=None; it must be gpt2, llama, mistral, qwen2 or q",
    ),
    "activation": ("gpt2", {"activation_function": "relu"}, "='relu'; it must be gelu_new or gelu"),
    "unscaled": (
        "gpt2",
        {"scale_attn_weights": False},
        "scale_attn_weights=False; it must be True",
    ),
    "by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "idx=True; it must be False"),
    "reordered": ("gpt2", {"reorder_and_upcast_attn": True}, "attn=True; it must be False"),
    "cross": ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True; it must be False"),
    "quantized": ("gpt2", {"quantization_config": {"bits": 4}}, "={'bits': 4}; it must be absent"),
    "text": ("gpt2", {"n_embd": "32"}, "n_embd='32'; it must be a whole number above 0"),
    "bool": ("gpt2", {"n_layer": True}, "n_layer=True; it must be a whole number above 0"),
    "zero": ("gpt2", {"n_layer": 0}, "n_layer=0; it must be a whole number above 0"),
    "many layers": ("gpt2", {"n_layer": 2**31 - 1}, "no tensor h.2.ln_1.weight; config.json says"),
    "missing": ("gpt2", {"n_layer": ...}, "config.json: n_layer is missing; it must be a whole"),
    "eps": (
        "gpt2",
        {"layer_norm_epsilon": float("nan")},
        "=nan; it must be a finite number above 0",
    ),
    "heads": ("gpt2", {"n_head": 3}, "n_head=3; it must be a divisor of n_embd=32"),
    "tied": ("gpt2", {"tie_word_embeddings": "no"}, "'no'; it must be true or false"),
    "untied": (
        "gpt2",
        {"tie_word_embeddings": False},
        "no tensor lm_head.weight; config.json says",
    ),
    "wider": ("gpt2", {"n_embd": 64}, "wte.weight is 256×32; by config.json it is 256×64"),
    "huge": ("gpt2", {"vocab_size": 2**31 - 1}, "is 256×32; by config.json it is 2147483647×32"),
    "silu": ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'; it must be silu or swish"),
    "bias": ("llama", {"attention_bias": 1}, "attention_bias=1; it must be true or false"),
    "biases": ("llama", {"attention_bias": True}, "no tensor layers.0.self_attn.q_proj.bias; con"),
    "no biases": ("qwen2", {"model_type": "llama"}, "0.self_attn.k_proj.bias (and 5 more) is no"),
    "no norms": ("qwen3", {"model_type": "llama"}, "tensor layers.0.self_attn.k_norm.weight (an"),
    "window": ("mistral", {"sliding_window": 4096}, "sliding_window=4096; it must be null"),
    "no word of a window": (
        "mistral",
        {"sliding_window": ...},
        "sliding_window=4096; it must be n",
    ),
    "window of a qwen": ("qwen2", {"use_sliding_window": True}, "window=True; it must be False"),
    "windows by layer": (
        "qwen3",
        {"layer_types": ["full_attention", "sliding_attention"]},
        "'sliding_attention']; it must be full_attention in every layer",
    ),
    "layers": ("qwen3", {"layer_types": 3}, "layer_types=3; it must be full_attention in every"),
    "default heads": ("mistral", {"num_key_value_heads": ...}, "num_key_value_heads=8; it must be"),
    "default width": ("qwen3", {"head_dim": ...}, "self_attn.q_proj.weight is 48×32; by config"),
    "mlp bias": ("llama", {"mlp_bias": True}, "mlp_bias=True; it must be False"),
    "rope": (
        "llama",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_scaling={'type': 'dynamic', 'factor': 2.0}; it must be absent or of rope_type defau",
    ),
    "rope 5": ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters={'rope_type"),
    "rope by layer": (
        "llama",
        {"rope_parameters": {"full": {}}},
        "={'full': {}}; it must be absent",
    ),
    "a kind of rope without a name": (
        "llama",
        {"rope_scaling": {"factor": 2.0}},
        "rope_scaling={'factor': 2.0}; it must be absent or of rope_type default",
    ),
    "rope factor": ("llama", {"rope_scaling": {"type": "linear"}}, "scaling.factor is missing; it"),
    "rope limit": (
        "llama 3",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
        "rope_scaling.low_freq_factor is missing; it must be a finite number, 0 or more",
    ),
    "rope limits": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8, **dict.fromkeys(LIMITS, 1)}},
        "rope_parameters.high_freq_factor=1; it must be a finite number above low_freq_factor=1",
    ),
    "partial rope": (
        "llama",
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "rope_parameters={'partial_rotary_factor': 0.5}; it must be absent or of rope_type",
    ),
    "rope text": ("llama", {"rope_scaling": "linear"}, "rope_scaling='linear'; it must be absent"),
    "partial": (
        "llama",
        {"partial_rotary_factor": 0.5},
        "partial_rotary_factor=0.5; it must be 1.0",
    ),
    "theta": ("llama", {"rope_parameters": {"rope_theta": -1}}, "rope_theta=-1; it must be a fin"),
    "large theta": ("llama", {"rope_parameters": {"rope_theta": 10**400}}, "it must be a finite"),
    "head_dim": ("llama", {"head_dim": 8}, "q_proj.weight is 32×32; by config.json it is 16×32"),
    "odd head_dim": ("llama", {"head_dim": 7}, "head_dim=7; it must be an even number"),
    "odd heads": (
        "llama",
        {"num_attention_heads": 32, "head_dim": None},
        "=32; it must be a divisor of hidden_size=",
    ),
    "kv heads": ("llama", {"num_key_value_heads": 3}, "=3; it must be a divisor of num_attention"),
    "llama tied": (
        "llama",
        {"tie_word_embeddings": True},
        "lm_head.weight differs from embed_tokens",
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    names = {name for name, *_ in REFUSED.values()}
    for name in names:
        config, model = make(ALL[name])
        huggingface.save(folder / name, config, nnx.state(model), dtype="float32")
    return {name: read_plain(folder / name) for name in names}


def refused(folder, message):
    with pytest.raises(InputError) as caught:
        huggingface.load(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name, change, message", REFUSED.values(), ids=REFUSED)
def test_fields_that_our_models_do_not_cover_are_refused(tmp_path, exported, name, change, message):
    values, fields = exported[name]
    fields = {k: v for k, v in (fields | change).items() if v is not ...}
    write_plain(tmp_path, values, fields)
    refused(tmp_path, message)


def without(name):
    return lambda values: values.pop(name)


DAMAGED = {
    "missing": (without("transformer.h.1.mlp.c_fc.bias"), "no tensor h.1.mlp.c_fc.bias; config"),
    "extra": (
        lambda v: v.update({"transformer.h.2.ln_1.weight": np.zeros(32, np.float32)}),
        "tensor h.2.ln_1.weight is no part of the model that config.json describes",
    ),
    "two extra": (
        lambda v: v.update(a=np.zeros(1, np.float32), b=np.zeros(1, np.float32)),
        "tensor a (and 1 more) is no part of the model",
    ),
    "shape": (
        lambda v: v.update({"transformer.wpe.weight": v["transformer.wpe.weight"].T}),
        "wpe.weight is 32×64; by config.json it is 64×32",
    ),
    "dtype": (
        lambda v: v.update({"transformer.ln_f.bias": np.zeros(32, np.uint8)}),
        "ln_f.bias is U8; it must be F32, F16, BF16",
    ),
    "both prefixes": (
        lambda v: v.update({"ln_f.bias": v["transformer.ln_f.bias"]}),
        "has tensors with and without 'transformer.'",
    ),
}


@pytest.mark.parametrize("change, message", DAMAGED.values(), ids=DAMAGED)
def test_other_tensors_are_refused_by_name(tmp_path, exported, change, message):
    values, fields = exported["gpt2"]
    values = dict(values)
    change(values)
    write_plain(tmp_path, values, fields)
    refused(tmp_path, message)


def test_damaged_files_are_refused_by_name(tmp_path, exported):
    write_plain(tmp_path, *exported["llama"])
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for content in (
        b"",
        whole[:5],
        whole[:100],
        whole[:-1],
        whole + b"x",
        b"\xff" * 64 + whole[64:],
    ):
        path.write_bytes(content)
        refused(tmp_path, "model.safetensors is damaged (")
    path.write_bytes(whole.replace(b'"F32"', b'"F99"', 1))
    refused(tmp_path, "model.safetensors is damaged (")
    path.unlink()
    path.mkdir()
    refused(tmp_path, "model.safetensors")


def test_folders_that_hold_no_model_are_refused(tmp_path, exported):
    refused(tmp_path / "gone", "gone is missing; give a folder with config.json")
    refused(tmp_path, "holds no config.json; give a folder of a saved model")
    config = tmp_path / "config.json"
    for content in ("{", "", "\xff", "[" * 100_000):
        config.write_text(content)
        refused(tmp_path, "config.json is not JSON (")
    config.write_text("[]")
    refused(tmp_path, "config.json must hold a JSON object")
    refused(config, "config.json is not a folder; give a folder with config.json")
    config.write_text(json.dumps(exported["gpt2"][1]))
    refused(tmp_path, "holds neither model.safetensors nor model.safetensors.index.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "holds pytorch_model.bin and no model.safetensors; convert it to safetensors")
    config.unlink()
    config.mkdir()
    refused(tmp_path, "config.json: Is a directory")


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path):
    config, model = make(tiny.LLAMA2)
    huggingface.save(tmp_path, config, nnx.state(model), shard_bytes=9000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    where = index["weight_map"]
    for change, message in (
        ({}, None),
        ({"model.norm.weight": "gone.safetensors"}, "names gone.safetensors, which is missing"),
        ({"model.norm.weight": "../x"}, "'../x'; it must be a file in the same folder"),
        ({"model.norm.weight": where["lm_head.weight"]}, "model.norm.weight is not in model-0"),
        ({"more": where["lm_head.weight"]}, "index.json: more is not in model-0"),
    ):
        path.write_text(json.dumps(index | {"weight_map": where | change}))
        if message is None:
            huggingface.load(tmp_path)
        else:
            refused(tmp_path, message)
    for wrong in ({}, [], None):
        path.write_text(json.dumps({"weight_map": wrong}))
        refused(tmp_path, f"weight_map={wrong!r}; it must say where tensors are")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    path.write_text(json.dumps(index))
    second.write_bytes(first.read_bytes())
    refused(tmp_path, f"{second.name} holds ")
    first.unlink()
    refused(tmp_path, f"names {first.name}, which is missing; put it there")
