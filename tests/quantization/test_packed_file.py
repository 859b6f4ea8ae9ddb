# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Packed files return the quantized weights bit for bit, and damage is refused."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from pqt_jax import Rule
from pqt_jax.errors import InputError
from pqt_jax.numerics.deterministic_rounding import round_parameter
from pqt_jax.numerics.formats import BF16, E2M1, E2M3, E3M2, E4M3, E4M7, E5M2, FloatFormat
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.quantization import codes, packed_file, quantize, sizes
from pqt_jax.quantization.quantize import plan_mixed, plan_uniform

RULES = [Rule(".*kernel"), Rule("attn", matrix_axes=(1, 2))]


def make_params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 70, 100)) * np.exp2(rng.integers(-20, 20, (2, 70, 1)))
    w[0, :32, :32] = 0  # a block of zeros, and one of small numbers
    w[0, 32:64, :32] *= 1e-38
    params = {"h": {"kernel": w}, "attn": rng.normal(size=(40, 3, 20)), "norm": np.ones(7)}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def check_same_bits(got, want):
    """Equal bits; of NaNs, only their places are compared."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape
    nan = np.isnan(want.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), nan)
    unsigned = np.uint16 if got.dtype.itemsize == 2 else np.uint32
    np.testing.assert_array_equal(got.view(unsigned)[~nan], want.view(unsigned)[~nan])


def check_codes(params, plan):
    """Codes come back, too, where some weights are no numbers."""
    leaves = {"h/kernel": params["h"]["kernel"], "attn": params["attn"]}
    kernel = leaves["h/kernel"].at[1, 0, 0].set(jnp.inf).at[1, 0, 40].set(jnp.nan)
    leaves["h/kernel"] = kernel.at[1, 40, 0].set(-jnp.inf)
    for name, w in leaves.items():
        encoded = codes.encode_parameter(w, plan[name])
        decoded = codes.decode_parameter(encoded, w.shape, plan[name])
        check_same_bits(decoded, round_parameter(w, plan[name]))


def check_file(path, params, plan):
    check_codes(params, plan)
    packed_file.write(path, params, plan, {"name": "some model"})
    loaded = packed_file.read(path)
    want = quantize.apply(plan, params)
    flat = {"h/kernel": want["h"]["kernel"], "attn": want["attn"], "norm": want["norm"]}
    assert loaded.params.keys() == flat.keys()
    for name, leaf in flat.items():
        check_same_bits(loaded.params[name], leaf)
    assert loaded.model == {"name": "some model"} and loaded.stream == 1
    for name, assigned in plan.items():
        assert loaded.plan[name].spec == assigned.spec or assigned.index is not None
        if assigned.index is not None:
            np.testing.assert_array_equal(loaded.plan[name].index, assigned.index)
    return loaded


SQUARE, ROW, COLUMN = (32, 32), (1, 32), (32, 1)
FORMATS = (E4M3, E5M2, E3M2, E2M3, E2M1, E4M7, FloatFormat(8, 3), BF16)


REPEATED = (E5M2, E2M3, E4M7, BF16)  # nothing of theirs depends on the rule alone


@pytest.mark.parametrize(
    "fmt, block, scale, dtype",
    [
        pytest.param(
            fmt,
            SQUARE,
            scale,
            "float32",
            marks=pytest.mark.slow if fmt in REPEATED and scale != "ceil" else (),
        )
        for fmt in FORMATS
        for scale in ("floor", "ceil", "exact")
    ]
    + [(E2M1, ROW, "ceil", "float32")]
    + [
        pytest.param(fmt, block, "ceil", "float32", marks=pytest.mark.slow)
        for fmt, block in ((E2M1, COLUMN), (E4M3, ROW), (E4M3, COLUMN))
    ]
    + [(E3M2, ROW, "exact", "float32"), (E3M2, SQUARE, "ceil", "bfloat16")],
    ids=str,
)
def test_one_format_comes_back_bit_for_bit(tmp_path, fmt, block, scale, dtype):
    params = make_params(dtype)
    plan = plan_uniform(params, RULES, fmt, block=block, scale=scale)
    check_file(tmp_path / "weights", params, plan)


@pytest.mark.parametrize("granularity", ["block", "tensor", "model"])
def test_mixed_formats_come_back_bit_for_bit(tmp_path, granularity):
    params = make_params()
    rng = np.random.default_rng(1)
    bits = {"h": {"kernel": rng.uniform(-1, 4, (2, 3, 4))}, "attn": rng.uniform(-1, 4, (2, 2))}
    plan = plan_mixed(params, bits, RULES, granularity=granularity, share=0.8)
    if granularity == "block":
        assert set(np.unique(plan["h/kernel"].index)) == set(range(len(MIXED_FORMATS)))
    check_file(tmp_path / "weights", params, plan)


def test_the_file_is_as_large_as_is_reported(tmp_path):
    params = {"kernel": jax.random.normal(jax.random.key(0), (4, 510, 700))}
    bits = {"kernel": jax.random.normal(jax.random.key(1), (4, 16, 22))}
    plans = [plan_uniform(params, RULES[:1], fmt) for fmt in (E4M3, E3M2, E2M3, E2M1, BF16)]
    for plan in (*plans, plan_mixed(params, bits, RULES[:1])):
        packed_file.write(tmp_path / "weights", params, plan)
        size = sizes.total_size(sizes.parameter_sizes(plan, params).values())
        on_disk = 8 * (tmp_path / "weights").stat().st_size
        assert size.bits <= on_disk < 1.01 * size.bits
        with safetensors.safe_open(tmp_path / "weights", "np") as file:
            stored = sum(8 * file.get_tensor(name).nbytes for name in file.keys())
        assert size.bits <= stored < size.bits + 8 * 6  # the rest of a last byte, in each tensor


def test_codes_can_be_read_without_this_package(tmp_path):
    """The layout as it is documented, in plain NumPy: E2M1, OCP's codes and scales."""
    w = jax.random.normal(jax.random.key(0), (64, 96))
    plan = plan_uniform({"kernel": w}, RULES[:1], E2M1)
    packed_file.write(tmp_path / "weights", {"kernel": w}, plan)
    tensors = safetensors.numpy.load_file(tmp_path / "weights")
    data = tensors["kernel:E2M1"]
    codes = np.stack([data & 15, data >> 4], axis=1).reshape(64, 96)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    scale = 2.0 ** (tensors["kernel:scale"].astype(int) - 127)
    got = table[codes] * np.kron(scale, np.ones((32, 32)))
    want = quantize.apply(plan, {"kernel": w})["kernel"]
    np.testing.assert_array_equal(got, want.astype(jnp.float32))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "weights"
    params = {"kernel": jax.random.normal(jax.random.key(0), (33, 40)), "bias": jnp.ones(3)}
    packed_file.write(path, params, plan_mixed(params, {"kernel": jnp.zeros((2, 2))}, RULES[:1]))
    return path, path.read_bytes()


def test_truncated_files_are_refused(written, tmp_path):
    _, data = written
    for length in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        (tmp_path / "weights").write_bytes(data[:length])
        with pytest.raises(InputError, match="weights is not a complete safetensors file"):
            packed_file.read(tmp_path / "weights")
    (tmp_path / "weights").write_bytes(data.replace(b'"F32"', b'"\\n2"'))
    with pytest.raises(InputError, match="is not a complete safetensors file") as caught:
        packed_file.read(tmp_path / "weights")
    assert "\n" not in str(caught.value)
    (tmp_path / "weights").write_bytes(data + b"\0")
    with pytest.raises(InputError, match="is not a complete safetensors file"):
        packed_file.read(tmp_path / "weights")


def test_a_flipped_bit_is_found_wherever_it_is(written, tmp_path):
    path, data = written
    whole = packed_file.read(path).params
    refused = 0
    for at in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "weights").write_bytes(damaged)
        try:
            loaded = packed_file.read(tmp_path / "weights").params
        except InputError as error:
            assert str(error).startswith(f"{tmp_path}/weights") and "\n" not in str(error)
            refused += 1
        else:  # a space of the header's padding, say
            assert loaded.keys() == whole.keys()
            for name in whole:
                check_same_bits(loaded[name], whole[name])
    assert refused > 0.95 * len(data) / 5


def rewrite(data, change):
    """The same file with other metadata, and the digest that belongs to it."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    content = json.loads(header["__metadata__"]["pqt_jax"])
    change(content)
    text = json.dumps(content).replace('"deep"', "[" * 100_000 + "]" * 100_000)
    digest = hashlib.sha256(text.encode()).hexdigest()
    header["__metadata__"] = {"pqt_jax": text, "sha256": digest}
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + data[8 + size :]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["parameters"]["kernel"].update(shape=[1e400]), "kernel cannot be unpacked"),
        (lambda c: c.update(model="deep"), "makes no sense: .*nested too deep"),
        (lambda c: c.update(version=2), "has layout version 2, and this reads 1"),
        (lambda c: c.pop("version"), "has layout version None"),
        (lambda c: c["ladder"].pop(), "its formats are E2M1, E3M2, E4M3, E4M7, which this"),
        (lambda c: c["parameters"]["kernel"].update(shape=[33, 41]), "kernel cannot be unpacked"),
        (lambda c: c["parameters"]["kernel"].update(shape=[64, 64]), "kernel cannot be unpacked"),
        (lambda c: c["parameters"]["kernel"].update(block=[16, 16]), "kernel cannot be unpacked"),
        (lambda c: c["parameters"].update(kernel=[]), "its metadata makes no sense: TypeError"),
        (lambda c: c["parameters"]["kernel"].update(shape=None), "its metadata makes no sense"),
        (lambda c: c["ladder"][0].__setitem__(1, 99), "makes no sense: .*exponent_bits=99"),
        (lambda c: c["digests"].pop("bias"), "bias was not written with it"),
        (lambda c: c["digests"].update(other="0"), "other is missing"),
    ],
)
def test_files_of_another_version_or_shape_are_refused_by_name(written, tmp_path, change, message):
    (tmp_path / "weights").write_bytes(rewrite(written[1], change))
    with pytest.raises(InputError, match=message):
        packed_file.read(tmp_path / "weights")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file or directory; give a folder that"):
        packed_file.read(tmp_path / "weights")
    safetensors.numpy.save_file({"w": np.ones(3, np.float32)}, tmp_path / "weights")
    with pytest.raises(InputError, match="has no pqt_jax metadata"):
        packed_file.read(tmp_path / "weights")


def test_dtypes_that_are_not_stored_are_refused(tmp_path):
    params = {"kernel": jnp.ones((32, 32)), "count": jnp.ones(3, jnp.int32)}
    with pytest.raises(TypeError, match="count has dtype int32; only float32 and bfloat16"):
        packed_file.write(tmp_path / "weights", params, plan_uniform(params, RULES[:1], E2M1))


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad):
    w = jnp.ones((64, 64)).at[40, 40].set(bad)
    params = {"h": {"kernel": w}, "mask": jnp.full(3, -jnp.inf)}  # what is not rounded may be Inf
    with pytest.raises(ValueError, match="h/kernel: 1 of 4096 weights are Inf or NaN"):
        packed_file.write(tmp_path / "weights", params, plan_uniform(params, RULES[:1], E2M1))
    assert not (tmp_path / "weights").exists()
    packed_file.write(tmp_path / "weights", params, {})


def test_formats_without_a_whole_number_of_codes_in_eight_bytes_are_refused(tmp_path):
    params = {"kernel": jnp.ones((32, 32))}
    plan = plan_uniform(params, RULES[:1], FloatFormat(4, 4))
    with pytest.raises(ValueError, match="codes of 9 bits are not packed"):
        packed_file.write(tmp_path / "weights", params, plan)


def test_blocks_larger_than_a_matrix_cost_nothing_and_change_nothing(tmp_path):
    params = {"kernel": jax.random.normal(jax.random.key(0), (40, 70))}
    plans = [
        plan_uniform(params, RULES[:1], E2M1, block=block) for block in ((64, 96), (2**15, 2**15))
    ]
    files = [check_file_of(tmp_path / str(i), params, plan) for i, plan in enumerate(plans)]
    check_same_bits(*(loaded.params["kernel"] for loaded in files))
    small, large = (sizes.parameter_sizes(plan, params) for plan in plans)
    assert small == large


def check_file_of(path, params, plan):
    packed_file.write(path, params, plan)
    loaded = packed_file.read(path)
    check_same_bits(loaded.params["kernel"], quantize.apply(plan, params)["kernel"])
    return loaded


def test_a_path_that_could_be_a_part_of_another_is_refused(tmp_path):
    params = {"kernel": jnp.ones((32, 32)), "kernel:scale": jnp.ones(1)}
    with pytest.raises(ValueError, match="kernel:scale could be a tensor of kernel"):
        packed_file.write(tmp_path / "weights", params, plan_uniform(params, RULES[:1], E2M1))
