# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Models in GGUF files are those that were written, and what is no such model is refused."""

import dataclasses

import numpy as np
import pytest

from pqt_jax.errors import InputError
from pqt_jax.interchange import (
    gguf_model,
    gguf_reader,
    gguf_tensors,
    gguf_tokenizer,
    gguf_writer,
    huggingface_tensors,
)
from pqt_jax.interchange.gguf_tensors import TensorType
from pqt_jax.models import GPT2Config
from pqt_jax.numerics.formats import E2M1, E2M3
from support import gguf_files
from support.exported import flat
from support.gguf_files import each

BYTES = gguf_tokenizer.describe("bytes", b"", 256, begin=None, end=256)


def write(path, config, params, formats=gguf_files.mixed, **options):
    values, rounded = gguf_files.encode_model(config, params, formats)
    gguf_model.write(path, config, values, tokenizer=BYTES, name="tiny", **options)
    return rounded


@each
def test_a_file_gives_back_what_was_written(tmp_path, name):
    config, params = gguf_files.make(name)
    rounded = write(tmp_path / "a.gguf", config, params)
    read, found = gguf_model.load(tmp_path / "a.gguf")
    expected = dataclasses.replace(config, dtype="float32")
    if isinstance(config, GPT2Config):  # as llama.cpp wants it
        expected = dataclasses.replace(expected, bias=True)
    assert read == expected
    found = flat(found)
    for path, array in found.items():
        np.testing.assert_array_equal(array, rounded.get(path, np.zeros(array.shape, np.float32)))
    assert found.keys() >= rounded.keys()


@each
def test_the_gguf_package_finds_the_same_numbers(tmp_path, name):
    gguf = pytest.importorskip("gguf", reason="needs the extra 'peers'")
    config, params = gguf_files.make(name)
    write(tmp_path / "a.gguf", config, params)
    file, types = gguf_reader.read(tmp_path / "a.gguf"), set()
    for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors:
        kind, shape, _ = file.tensors[tensor.name]
        kind = TensorType(kind)
        data = gguf_reader.read_data(file, tensor.name, gguf_tensors.size(kind, shape))
        found = gguf_tensors.decode(kind, data, shape)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert found.shape == expected.shape and found.tobytes() == expected.tobytes()
        types.add(kind)
    assert types == {TensorType.F32, TensorType.BF16, TensorType.MXFP4, TensorType.Q8_0}


def test_types_and_names(tmp_path):
    config, params = gguf_files.make("llama")
    write(tmp_path / "a.gguf", config, params)
    file = gguf_reader.read(tmp_path / "a.gguf")
    types = {name: type_name(tensor) for name, tensor in file.tensors.items()}
    assert types == {
        **{"token_embd.weight": "BF16", "output_norm.weight": "F32", "output.weight": "BF16"},
        **{f"blk.{i}.{n}_norm.weight": "F32" for i in range(2) for n in ("attn", "ffn")},
        **{f"blk.{i}.attn_{n}.weight": "MXFP4" for i in range(2) for n in "qv"},
        **{"blk.0.attn_k.weight": "MXFP4", "blk.1.attn_k.weight": "Q8_0"},
        **{f"blk.{i}.attn_output.weight": "Q8_0" for i in range(2)},
        **{f"blk.{i}.ffn_{n}.weight": "MXFP4" for i in range(2) for n in ("gate", "down")},
        **{f"blk.{i}.ffn_up.weight": "BF16" for i in range(2)},
    }
    assert file.tensors["blk.0.ffn_up.weight"].shape == (64, 32)
    config, params = gguf_files.make("gpt2")
    write(tmp_path / "b.gguf", config, params)
    file = gguf_reader.read(tmp_path / "b.gguf")
    qkv = [type_name(file.tensors[f"blk.{i}.attn_qkv.weight"]) for i in range(2)]
    assert qkv == ["MXFP4", "Q8_0"]  # of the second, k alone has a wider format
    assert file.tensors["blk.0.attn_qkv.weight"].shape == (96, 32)
    assert type_name(file.tensors["position_embd.weight"]) == "BF16"
    assert type_name(file.tensors["blk.1.attn_qkv.bias"]) == "F32"
    assert "output.weight" not in file.tensors


def type_name(tensor):
    return TensorType(tensor.type).name


def test_metadata(tmp_path):
    config, params = gguf_files.make("llama of few kv heads")
    write(tmp_path / "a.gguf", config, params, lambda path, layer: E2M1)
    metadata = gguf_reader.read(tmp_path / "a.gguf").metadata
    wanted = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 38,
        "general.quantization_version": 2,
        "llama.vocab_size": 256,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-3),
        "llama.rope.freq_base": 500.0,
        "llama.rope.dimension_count": 8,
        "tokenizer.ggml.model": "gpt2",
    }
    assert {name: metadata[name] for name in wanted} == wanted
    config, params = gguf_files.make("gpt2")
    write(tmp_path / "a.gguf", config, params, lambda path, layer: E2M3)
    metadata = gguf_reader.read(tmp_path / "a.gguf").metadata
    assert metadata["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert metadata["general.file_type"] == 7 and "gpt2.rope.freq_base" not in metadata


def test_rows_of_q_and_k_are_pairs_of_what_were_halves(tmp_path):
    config, params = gguf_files.make("llama of few kv heads")
    for name in "qkv":
        kernel = params[f"h/attn/{name}/kernel"]
        rows = np.arange(kernel.shape[-1], dtype=np.float32)
        params[f"h/attn/{name}/kernel"] = np.broadcast_to(rows, kernel.shape).copy()
    write(tmp_path / "a.gguf", config, params, lambda path, layer: None, dtype="float32")
    file = gguf_reader.read(tmp_path / "a.gguf")

    def rows(name):
        shape = file.tensors[name].shape
        data = gguf_reader.read_data(file, name, 4 * shape[0] * shape[1])
        return data.view(np.float32).reshape(shape)[:, 0].tolist()

    pairs = [0, 4, 1, 5, 2, 6, 3, 7]  # a head has eight elements
    two = pairs + [8 + row for row in pairs]
    assert rows("blk.1.attn_k.weight") == two  # two heads
    assert rows("blk.1.attn_q.weight") == two + [16 + row for row in two]  # four
    assert rows("blk.1.attn_v.weight") == list(range(16))


def test_tensors_may_come_in_any_order_and_must_be_all(tmp_path):
    config, params = gguf_files.make("gpt2")
    values, rounded = gguf_files.encode_model(config, params, gguf_files.mixed)
    options = {"tokenizer": BYTES, "name": "tiny"}
    gguf_model.write(tmp_path / "a.gguf", config, reversed(values), **options)
    for path, array in flat(gguf_model.load(tmp_path / "a.gguf")[1]).items():
        np.testing.assert_array_equal(array, rounded[path])
    with pytest.raises(ValueError, match=r"no values of blk\.1\.ffn_down\.weight"):
        kept = [one for one in values if "mlp.c_proj.weight" not in one[0][0].name or not one[0][1]]
        gguf_model.write(tmp_path / "a.gguf", config, kept, **options)
    with pytest.raises(ValueError, match=r"attn_qkv\.weight has .* not \(96, 32\)"):
        wrong = [(place, parts[:2]) for place, parts in values]
        gguf_model.write(tmp_path / "a.gguf", config, wrong, **options)


def edited(folder, name="llama", options=None, **changes):
    """A file with other metadata or tensors; a value of None leaves something out."""
    config, params = gguf_files.make(name, **options or {})
    write(folder / "intact.gguf", config, params, lambda path, layer: None)
    file = gguf_reader.read(folder / "intact.gguf")
    metadata = {k: v for k, v in (file.metadata | changes).items() if v is not None}
    tensors = {}
    for name, tensor in file.tensors.items():
        kind = TensorType(tensor.type)
        data = gguf_reader.read_data(file, name, gguf_tensors.size(kind, tensor.shape))
        tensors[name] = (kind, tensor.shape, data)
    tensors |= changes
    tensors = {n: one for n, one in tensors.items() if isinstance(one, tuple)}
    metadata = {n: one for n, one in metadata.items() if not isinstance(one, tuple)}
    shapes = {name: shape for name, (_, shape, _) in tensors.items()}
    with gguf_writer.create(folder / "a.gguf", metadata, shapes) as store:
        for name, (kind, _, data) in tensors.items():
            store(name, kind, data)
    return folder / "a.gguf"


HEADS = {"llama.attention.key_length": None}
LLAMA_CHANGES = [
    (
        {"general.architecture": "bert"},
        r"general\.architecture='bert'; it must be gpt2, llama, qwen",
    ),
    ({"general.architecture": None}, r"general\.architecture is missing; it must be gpt2, ll"),
    ({"llama.block_count": None}, r"llama\.block_count is missing; it must be a whole number"),
    ({"llama.block_count": 3}, r"no tensor blk\.2\.attn_norm\.weight; the metadata say"),
    ({"llama.block_count": 2**31 - 1}, r"no tensor blk\.2\."),
    ({"llama.block_count": 0}, r"llama\.block_count=0; it must be a whole number above 0"),
    ({"llama.context_length": True}, r"llama\.context_length=True; it must be a whole number"),
    (HEADS | {"llama.attention.head_count": 3}, r"head_count=3; it must be a divisor"),
    (HEADS | {"llama.attention.head_count": 32}, r"head_count=32; .* into heads of even size"),
    ({"llama.attention.key_length": 15}, r"key_length=15; it must be an even number"),
    ({"llama.attention.head_count_kv": 3}, r"head_count_kv=3; it must be a divisor"),
    ({"llama.attention.head_count_kv": np.ones(2, np.int32)}, r"head_count_kv=array"),
    ({"llama.attention.layer_norm_rms_epsilon": 0.0}, r"epsilon=0\.0; it must be a finite number"),
    ({"llama.rope.freq_base": float("nan")}, r"freq_base=nan; it must be a finite number"),
    ({"llama.rope.scaling.type": "yarn"}, r"scaling\.type='yarn'; it must be absent, none or"),
    ({"llama.rope.dimension_count": 4}, r"dimension_count=4; it must be absent or 16"),
    ({"llama.attention.value_length": 8}, r"value_length=8; it must be absent or 16"),
    ({"llama.expert_count": 8}, r"llama\.expert_count=8; it must be absent or 0"),
    ({"llama.feed_forward_length": 96}, r"ffn_gate\.weight is 64×32; by the metadata it is 96×32"),
    ({"token_embd.weight": None}, r"no tensor token_embd\.weight; give a file of a whole model"),
    ({"blk.1.ffn_norm.weight": None}, r"no tensor blk\.1\.ffn_norm\.weight"),
    (
        {"blk.0.ffn_up.bias": (0, (64,), np.zeros(64, np.float32))},
        r"tensor blk\.0\.ffn_up\.bias is no part of the model that the metadata describe; give",
    ),
    (
        {"blk.0.attn_q.weight": (12, (32, 32), np.zeros(576, np.uint8))},
        r"attn_q\.weight is Q4_K; it must be F32, F16, Q8_0, BF16 or MXFP4",
    ),
]


@pytest.mark.parametrize(("changes", "message"), LLAMA_CHANGES)
def test_what_is_no_model_of_ours_is_refused(tmp_path, changes, message):
    path = edited(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as raised:
        gguf_model.load(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


OWN = dict.fromkeys(f"pqt_jax.rope_{name}" for name in ("factor", "low_freq_factor"))
OWN |= dict.fromkeys(f"pqt_jax.rope_{name}" for name in ("high_freq_factor", "original_length"))


@pytest.mark.parametrize("factor", [8.0, 32.0, 10.0])
def test_positions_scaled_as_in_llama_3_are_known_by_their_divisors(tmp_path, factor):
    scaled = {"rope_factor": factor, "rope_original_length": 8192, "rope_theta": 500000.0}
    path = edited(tmp_path, "llama 3", scaled | {"num_heads": 1, "num_kv_heads": 0}, **OWN)
    divisors = tensor_of(path, "rope_freqs.weight")
    assert divisors.shape == (16,) and divisors[0] == 1 and divisors[-1] == np.float32(factor)
    assert ((divisors > 1) & (divisors < factor)).any()
    read, _ = gguf_model.load(path)
    assert (read.rope_scaling, read.rope_original_length) == ("llama3", 8192)
    assert read.rope_factor == pytest.approx(factor)
    other = (0, (16,), divisors * np.float32(1.01))
    path = edited(
        tmp_path,
        "llama 3",
        scaled | {"num_heads": 1, "num_kv_heads": 0},
        **OWN,
        **{"rope_freqs.weight": other},
    )
    with pytest.raises(InputError, match=r"rope_freqs\.weight does not scale positions as Llama 3"):
        gguf_model.load(path)


def tensor_of(path, name):
    file = gguf_reader.read(path)
    kind, shape, _ = file.tensors[name]
    data = gguf_reader.read_data(file, name, gguf_tensors.size(TensorType(kind), shape))
    return gguf_tensors.decode(TensorType(kind), data, shape)


def test_linear_scaling(tmp_path):
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    read, _ = gguf_model.load(edited(tmp_path, **scaling))
    assert (read.rope_scaling, read.rope_factor) == ("linear", 4)
    for none in ({"llama.rope.scaling.factor": 1.0}, scaling | {"llama.rope.scaling.type": "none"}):
        assert gguf_model.load(edited(tmp_path, **none))[0].rope_scaling == "none"
    path = edited(tmp_path, "llama 3", **scaling)
    with pytest.raises(InputError, match=r"rope_freqs\.weight does not scale positions"):
        gguf_model.load(path)


def test_biases_that_only_transformers_has_are_left_out(tmp_path):
    config, params = gguf_files.make("qwen3 with biases of q, k and v")
    values, _ = gguf_files.encode_model(config, params, gguf_files.mixed)
    entries = huggingface_tensors.tensor_entries(config)
    bias = next(entry for entry in entries if entry.paths == ("h/attn/out/bias",))
    values += [((bias, layer), [np.zeros(32, np.float32)]) for layer in range(2)]
    gguf_model.write(tmp_path / "a.gguf", config, values, tokenizer=BYTES, name="tiny")
    names = gguf_reader.read(tmp_path / "a.gguf").tensors
    assert "blk.0.attn_q.bias" in names and "blk.0.attn_output.bias" not in names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"attention_bias": "all"},
            r"config\.model\.attention_bias=all together with .*qk_norm=Tr",
        ),
        ({"rope_scaling": "llama3"}, r"config\.model\.rope_scaling=llama3 together with"),
        (
            {"qk_norm": False, "attention_bias": "qkv", "head_dim": 8},
            r"config\.model\.head_dim=8, other than d_model / num_heads, together with",
        ),
    ],
)
def test_what_llama_cpp_has_no_model_for_is_refused(tmp_path, options, message):
    config, params = gguf_files.make("qwen3", **options)
    with pytest.raises(InputError, match=message):
        write(tmp_path / "a.gguf", config, params, lambda path, layer: None)
    assert not (tmp_path / "a.gguf").exists()


def test_what_a_file_need_not_say(tmp_path):
    names = ["vocab_size", "attention.head_count_kv", "rope.freq_base", "rope.dimension_count"]
    names += ["attention.key_length", "attention.value_length"]
    absent = dict.fromkeys([f"llama.{name}" for name in names])
    read, _ = gguf_model.load(edited(tmp_path, **absent))
    assert read == gguf_files.make("llama")[0]
    assert read.num_kv_heads == 0 and read.rope_theta == 1e4


def test_tensors_out_of_their_place_are_damage(tmp_path):
    path = edited(tmp_path)
    file = gguf_reader.read(path)
    content = path.read_bytes()
    name = "blk.1.attn_k.weight"
    at = content.index(name.encode()) + len(name) + 4 + 16 + 4
    offset = int.from_bytes(content[at : at + 8], "little")
    assert offset == file.tensors[name].offset - file.start
    for moved in (offset + 32, 0):
        path.write_bytes(content[:at] + moved.to_bytes(8, "little") + content[at + 8 :])
        with pytest.raises(InputError, match=r"is damaged \(blk\.1\.attn_k\.weight\)"):
            gguf_model.load(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = edited(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"is damaged \(it ends in .*\); put a whole copy there"):
        gguf_model.load(path)
