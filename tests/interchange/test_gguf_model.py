# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Models in GGUF files are those that were written, and what is no such model is refused."""

import dataclasses

import numpy as np
import pytest

from pqt_jax.errors import InputError
from pqt_jax.interchange import gguf_model, gguf_reader, gguf_tokenizer, gguf_writer
from pqt_jax.models import GPT2Config
from pqt_jax.numerics.formats import E2M1, E2M3
from support import gguf_files
from support.exported import OTHERS, each, flat

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


@pytest.mark.parametrize("name", OTHERS)
def test_what_llama_2_does_not_have_is_not_dropped(tmp_path, name):
    with pytest.raises(InputError, match=r"config.model.\w+=.*; in GGUF it must be .*, give anoth"):
        gguf_model.write(tmp_path / "a.gguf", OTHERS[name], [], tokenizer=BYTES, name="tiny")
    assert list(tmp_path.iterdir()) == []


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
    return gguf_model.TensorType(tensor.type).name


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


def edited(folder, name="llama", **changes):
    """A file with other metadata or tensors; a value of None leaves something out."""
    config, params = gguf_files.make(name)
    write(folder / "intact.gguf", config, params, lambda path, layer: None)
    file = gguf_reader.read(folder / "intact.gguf")
    metadata = {k: v for k, v in (file.metadata | changes).items() if v is not None}
    tensors = {}
    for name, tensor in file.tensors.items():
        kind = gguf_model.TensorType(tensor.type)
        data = gguf_reader.read_data(file, name, gguf_model.gguf_tensors.size(kind, tensor.shape))
        tensors[name] = (kind, tensor.shape, data)
    tensors |= changes
    tensors = {n: one for n, one in tensors.items() if isinstance(one, tuple)}
    metadata = {n: one for n, one in metadata.items() if not isinstance(one, tuple)}
    shapes = {name: shape for name, (_, shape, _) in tensors.items()}
    with gguf_writer.create(folder / "a.gguf", metadata, shapes) as store:
        for name, (kind, _, data) in tensors.items():
            store(name, kind, data)
    return folder / "a.gguf"


LLAMA_CHANGES = [
    ({"general.architecture": "qwen2"}, r"general\.architecture='qwen2'; it must be gpt2 or llama"),
    ({"general.architecture": None}, r"general\.architecture is missing; it must be gpt2 or llama"),
    ({"llama.block_count": None}, r"llama\.block_count is missing; it must be a whole number"),
    ({"llama.block_count": 3}, r"no tensor blk\.2\.attn_norm\.weight; the metadata say"),
    ({"llama.block_count": 2**31 - 1}, r"no tensor blk\.2\."),
    ({"llama.block_count": 0}, r"llama\.block_count=0; it must be a whole number above 0"),
    ({"llama.context_length": True}, r"llama\.context_length=True; it must be a whole number"),
    ({"llama.attention.head_count": 3}, r"head_count=3; it must be a divisor of .*length=32"),
    ({"llama.attention.head_count": 32}, r"head_count=32; .* into heads of even size"),
    ({"llama.attention.head_count_kv": 3}, r"head_count_kv=3; it must be a divisor"),
    ({"llama.attention.head_count_kv": np.ones(2, np.int32)}, r"head_count_kv=array"),
    ({"llama.attention.layer_norm_rms_epsilon": 0.0}, r"epsilon=0\.0; it must be a finite number"),
    ({"llama.rope.freq_base": float("nan")}, r"freq_base=nan; it must be a finite number"),
    ({"llama.rope.scaling.type": "yarn"}, r"scaling\.type='yarn'; it must be absent or none"),
    ({"llama.rope.dimension_count": 4}, r"dimension_count=4; it must be absent or 16"),
    ({"llama.attention.key_length": 8}, r"key_length=8; it must be absent or 16"),
    ({"llama.expert_count": 8}, r"llama\.expert_count=8; it must be absent or 0"),
    ({"llama.feed_forward_length": 96}, r"ffn_gate\.weight is 64×32; by the metadata it is 96×32"),
    ({"token_embd.weight": None}, r"no tensor token_embd\.weight; give a file of a whole model"),
    ({"blk.1.ffn_norm.weight": None}, r"no tensor blk\.1\.ffn_norm\.weight"),
    (
        {"blk.0.attn_q.bias": (0, (32,), np.zeros(32, np.float32))},
        r"tensor blk\.0\.attn_q\.bias is no part of the model that the metadata describe; give",
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


def test_what_a_file_need_not_say(tmp_path):
    names = ("vocab_size", "attention.head_count_kv", "rope.freq_base", "rope.dimension_count")
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
