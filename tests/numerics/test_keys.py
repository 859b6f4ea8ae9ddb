# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Keys: the function of (seed, step, path) with golden values, refused keys, and key reuse."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics import keys
from pqt_jax.transform.perturb import Spec, perturb
from support import oracle

W = np.random.default_rng(0).normal(size=(33, 40)).astype(np.float32)
B = np.ones((2, 2), np.float32)

GOLDEN = [  # a change here changes the noise of every run
    (0, 0, "w", (0x2F11EC29, 0x4498D4A5)),
    (0, 7, "h/attn/q/kernel", (0xF2F46684, 0x0CD1EFAA)),
    (42, 600000, "h/mlp/fc/kernel", (0x884AF4EE, 0xD2EA3517)),
    (42, 600000, "h/mlp/proj/kernel", (0xB03CD0B5, 0x43112777)),
]


@pytest.mark.parametrize(("seed", "step", "path", "words"), GOLDEN)
def test_key_law(seed, step, path, words):
    key = keys.param_key(keys.step_key(jax.random.key(seed), step), path)
    assert tuple(keys.key_words(key).tolist()) == words
    step_words = oracle.threefry((0, seed), (0, step))
    assert oracle.threefry(step_words, (0, zlib.crc32(path.encode()))) == words


def test_path_id_is_crc32():
    assert keys.path_id("123456789") == 0xCBF43926  # the check value of CRC-32
    assert keys.path_id("é") == zlib.crc32(b"\xc3\xa9")


def test_step_may_be_traced():
    key = jax.random.key(3)
    traced = jax.jit(lambda step: jax.random.key_data(keys.step_key(key, step)))(jnp.int32(5))
    assert traced.tolist() == jax.random.key_data(keys.step_key(key, 5)).tolist()


def test_same_key_same_noise_and_typed_and_raw_agree():
    typed = perturb(W, B, jax.random.key(5))
    again = perturb(W, B, jax.random.key(5))
    raw = perturb(W, B, jax.random.PRNGKey(5))
    words = perturb(W, B, jnp.array([0, 5], jnp.uint32))
    other = perturb(W, B, jax.random.key(6))
    for same in (again, raw, words):
        np.testing.assert_array_equal(typed, same)
    assert (np.asarray(typed) != np.asarray(other)).mean() > 0.2


REFUSED = {
    "none": (lambda: None, "key is None; sampling needs a key, for example jax.random.key"),
    "int": (lambda: 0, "key is of type int; pass jax.random.key"),
    "numpy generator": (lambda: np.random.default_rng(0), "of type Generator; pass jax.random.key"),
    "rbg": (lambda: jax.random.key(0, impl="rbg"), "key<rbg>.*impl='threefry2x32'"),
    "raw rbg": (lambda: jax.random.PRNGKey(0, impl="rbg"), r"shape \(4,\).*impl='threefry2x32'"),
    "batch": (lambda: jax.random.split(jax.random.key(0)), r"shape \(2,\).* one threefry key"),
    "raw batch": (lambda: jnp.zeros((5, 2), jnp.uint32), r"shape \(5, 2\).* one threefry key"),
    "signed words": (lambda: jnp.zeros(2, jnp.int32), "dtype int32 .* one threefry key"),
}


@pytest.mark.parametrize("reuse", [False, True], ids=["", "reuse checked"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_keys(name, reuse):
    make, message = REFUSED[name]
    functions = [
        keys.key_words,
        lambda key: perturb(W, B, key),
        lambda key: keys.step_key(key, 1),
        lambda key: keys.param_key(key, "w"),
    ]
    with jax.debug_key_reuse(reuse):
        for function in functions:
            with pytest.raises(TypeError, match=message):
                function(make())


def test_a_cast_without_noise_needs_no_key():
    w_hat = perturb(W, None, None, Spec(noise="none"))
    assert w_hat.shape == W.shape


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_key_reuse_is_detected(compiled):
    function = jax.jit(perturb) if compiled else perturb
    with jax.debug_key_reuse(True):
        key = jax.random.key(1)
        function(W, B, key)
        with pytest.raises(jax.errors.KeyReuseError):
            function(W, B, key)
        used = jax.random.key(2)
        jax.random.normal(used)
        with pytest.raises(jax.errors.KeyReuseError):
            function(W, B, used)


def test_one_use_of_each_key_is_no_reuse():
    with jax.debug_key_reuse(True):
        step = keys.step_key(jax.random.key(1), 3)
        for path in ("a", "b"):
            key = keys.param_key(step, path)

            def loss(w, b, key=key):
                return perturb(w, b, key).astype(jnp.float32).sum()

            dw, db = jax.grad(loss, (0, 1))(
                W, B
            )  # the backward pass uses the same key words, which is no reuse
            assert dw.shape == W.shape and db.shape == B.shape


def test_a_step_is_a_whole_number():
    with pytest.raises(TypeError, match="step=1.5; it must be an integer"):
        keys.step_key(jax.random.key(0), 1.5)
