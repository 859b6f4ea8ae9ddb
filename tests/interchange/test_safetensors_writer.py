# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tensors are written as they are made; the safetensors package reads the same values."""

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from pqt_jax.interchange import safetensors_io
from pqt_jax.interchange.safetensors_writer import TensorSpec, write_stream

SPECS = {
    "a": TensorSpec("F32", (2, 3)),
    "b": TensorSpec("BF16", (4,)),
    "c": TensorSpec("F8_E4M3", (5,)),
    "d": TensorSpec("U32", (2, 1)),
    "e": TensorSpec("U8", ()),
}
VALUES = {
    "a": np.arange(6, dtype=np.float32).reshape(3, 2).T,  # not contiguous
    "b": np.arange(4).astype(ml_dtypes.bfloat16),
    "c": np.arange(5).astype(ml_dtypes.float8_e4m3fn),
    "d": np.array([[7], [2**31]], np.uint32),
    "e": np.array(3, np.uint8),
}


@pytest.mark.parametrize("shard_bytes", [10**9, 24, 1])
def test_any_order_gives_the_same_files(tmp_path, shard_bytes):
    for name, order in (("one", "abcde"), ("two", "daebc")):
        (tmp_path / name).mkdir()
        write_stream(tmp_path / name, SPECS, ((n, VALUES[n]) for n in order), shard_bytes)
    found = safetensors_io.find_tensors(tmp_path / "one")
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        n: (s.dtype, s.shape) for n, s in SPECS.items()
    }
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == {10**9: 1, 24: 3, 1: 6}[shard_bytes]
    for file in files:
        content = (tmp_path / "one" / file).read_bytes()
        assert content == (tmp_path / "two" / file).read_bytes()
        assert not file.endswith(".tmp")
    for name, stored in found.items():
        start = stored.offset
        raw = stored.path.read_bytes()[start : start + SPECS[name].nbytes]
        assert raw == np.ascontiguousarray(VALUES[name]).tobytes()
        with safe_open(stored.path, "numpy") as file:
            if stored.dtype in ("F32", "U32", "U8"):  # NumPy has no others
                np.testing.assert_array_equal(file.get_tensor(name), VALUES[name])


def test_values_that_are_not_those_of_the_specs_are_errors(tmp_path):
    specs = {"a": TensorSpec("F32", (2,)), "b": TensorSpec("U8", (2,))}
    ok, wrong = np.zeros(2, np.float32), np.zeros(2, np.uint8)
    for values, message in [
        ([("a", ok)], "no values of b"),
        ([("a", wrong)], "a is uint8"),
        ([("a", np.zeros((1, 2), np.float32))], "a is float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_stream(tmp_path, specs, values)
    with pytest.raises(KeyError):
        write_stream(tmp_path, specs, [("a", ok), ("b", wrong), ("a", ok)])
