# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The noise stream: known answers of Random123, the order of rows, golden vectors of version 1."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics import keys, noise, philox
from support import oracle
from support.paths import GOLDEN

STREAM = json.loads((GOLDEN / "stream_v1.json").read_text())
ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [  # Random123, kat_vectors: philox4x32 10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, words):
    assert oracle.philox(counter, key) == words
    arrays = jax.jit(philox.philox4x32)(
        tuple(jnp.full((3,), k, jnp.uint32) for k in key),
        tuple(jnp.full((3,), c, jnp.uint32) for c in counter),
    )
    assert [word.tolist() for word in arrays] == [[word] * 3 for word in words]


@pytest.mark.parametrize("rounds", [0, 1, 7, 10])
def test_philox_of_random_counters(rounds):
    numbers = np.random.default_rng(0).integers(2**32, size=(6, 100), dtype=np.uint32)
    *counter, k0, k1 = numbers
    words = [jnp.asarray(word) for word in (*counter, k0, k1)]
    got = philox.philox4x32(tuple(words[4:]), tuple(words[:4]), rounds)
    *counter, k0, k1 = numbers.tolist()
    want = [
        oracle.philox(c, k, rounds)
        for c, k in zip(zip(*counter, strict=True), zip(k0, k1, strict=True), strict=True)
    ]
    assert np.stack(got, axis=1).tolist() == [list(words) for words in want]


def library_draws(key, offset, leads, runs, columns):
    """All draws, in the order of the docstring of `philox`: [leads, runs, s, q, columns]."""
    words = philox.stream_words(
        jnp.array(key, jnp.uint32), jnp.array(offset, jnp.uint32), leads, runs, columns
    )
    assert all(w.dtype == jnp.uint32 and w.shape == (leads, runs, 4, columns) for w in words)
    return np.stack([philox.draw(words, s) for s in range(8)], axis=2)


@pytest.mark.parametrize(
    "offset",
    [(0, 0, 0), (5, 0, 0), (0, 3, 0), (0, 0, 77), (2, 1000, 40000), (ONES, 2**27 - 3, ONES - 6)],
)
def test_row_law(offset):
    key = (0x01234567, 0x89ABCDEF)
    draws = library_draws(key, offset, 2, 3, 7).reshape(2, 96, 7)
    assert draws.dtype == np.uint32 and draws.max() < 2**16
    for lead, row, column in np.random.default_rng(1).integers((2, 96, 7), size=(300, 3)).tolist():
        want = oracle.draw(key, lead + offset[0], row + 32 * offset[1], column + offset[2])
        assert draws[lead, row, column] == want, (lead, row, column)


def test_an_offset_selects_a_window_of_the_same_stream():
    key = (11, 22)
    whole = library_draws(key, (0, 0, 0), 3, 4, 10)
    part = library_draws(key, (1, 2, 3), 2, 2, 5)
    np.testing.assert_array_equal(part, whole[1:, 2:, :, :, 3:8])


def test_golden_vectors():
    assert STREAM["stream_version"] == philox.STREAM_VERSION == 1
    seen = set()
    for case in STREAM["cases"]:
        key, (lead, row, column) = tuple(case["key"]), case["position"]
        assert oracle.draw(key, lead, row, column) == case["draw"]
        assert oracle.gauss(case["draw"]) == case["gauss"]
        words = philox.stream_words(
            jnp.array(key, jnp.uint32), jnp.array([lead, row // 32, column], jnp.uint32), 1, 1, 1
        )
        s = row % 32 // 4
        assert int(philox.draw(words, s)[0, 0, row % 4, 0]) == case["draw"]
        tile = noise.noise_tile("gauss", (noise.rounded_normal_codes(words),))
        assert int(tile[0, 0, s, row % 4, 0]) == case["gauss"]
        seen.add((case["gauss"], row % 32 // 4))
    assert {r for r, _ in seen} == {-2, -1, 0, 1, 2} and {s for _, s in seen} == set(range(8))


def test_golden_matrix():
    golden = STREAM["matrix"]
    key = jax.random.wrap_key_data(jnp.array(golden["key"], jnp.uint32))
    offset = jnp.zeros(3, jnp.uint32)
    codes = noise.noise_codes("gauss", keys.key_words(key), offset, 1, 1, 16)
    tile = np.asarray(noise.noise_tile("gauss", codes)).reshape(32, 16)
    assert tile.tolist() == golden["gauss"]
    assert oracle.noise("gauss", tuple(golden["key"]), (1, 32, 16))[0].tolist() == golden["gauss"]
