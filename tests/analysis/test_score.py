# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Scoring: every byte once, each by what its window shows before it."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from pqt_jax.analysis import score
from pqt_jax.models import Llama2
from support import tiny


def texts(*lengths):
    rng = np.random.default_rng(0)
    return [score.Document(rng.integers(1, 256, n).astype(np.uint8), n - 1) for n in lengths]


@pytest.mark.parametrize("lengths", [(1, 2, 8, 9, 10, 17, 100), (33,), (2,)], ids=str)
def test_every_byte_but_the_first_is_a_target_once(lengths):
    documents = texts(*lengths)
    windows = score.make_windows(documents, 8)
    seen = {}
    for row, count, unit in zip(windows.tokens, windows.counts, windows.units, strict=True):
        assert 1 <= count <= 8 and not row[count + 1 :].any()
        seen.setdefault(0 if windows.units_are_chunks else unit, []).append(
            row[1 : count + 1].tobytes()
        )
    longer = [document.tokens.tobytes() for document in documents if len(document.tokens) > 1]
    assert [b"".join(rows) for rows in seen.values()] == [d[1:] for d in longer]
    assert windows.targets.sum() == sum(len(document) - 1 for document in longer)
    assert windows.units_are_chunks == (len(longer) == 1)
    np.testing.assert_allclose(windows.bytes, windows.targets)  # a token is a byte here


def test_one_document_is_cut_into_even_chunks_in_order():
    windows = score.make_windows(texts(8 * 120 + 1), 8)
    assert (np.diff(windows.units) >= 0).all() and windows.units.max() == score.MAX_CHUNKS - 1
    assert set(np.bincount(windows.units)) == {2, 3}
    assert len(score.make_windows(texts(20), 8).targets) == 3


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="no document has two tokens"):
        score.make_windows(texts(1, 0), 8)


def test_nats_are_those_of_the_model_window_by_window():
    graph, params = nnx.split(Llama2(tiny.LLAMA2, rngs=nnx.Rngs(0)))
    documents = texts(3, 8, 25, 30)
    forward, expected = jax.jit(lambda tokens: nnx.merge(graph, params)(tokens)), []
    for document in documents:
        tokens, nats = document.tokens.astype(int), 0.0
        for start in range(0, len(tokens) - 1, 8):
            window = tokens[start : start + 9]
            count = len(window) - 1
            padded = np.full((1, 8), 7)  # what follows is not seen
            padded[0, :count] = window[:-1]
            logits = np.asarray(forward(padded))[0, :count].astype(np.float64)
            chosen = logits[np.arange(count), window[1:]]
            nats += (np.log(np.exp(logits).sum(-1)) - chosen).sum()
        expected.append(nats)
    windows = score.make_windows(documents, 8)
    for batch in (1, 3, 100):
        results = score.make_scorer(graph, windows, batch)(params)
        assert results.dtype == np.float64
        np.testing.assert_allclose(results, expected, rtol=1e-6)


def test_measures():
    scored = np.array([100.0, 300.0, 200.0])
    master = np.array([150.0, 400.0, 310.0])
    windows = score.make_windows(texts(2, 2, 2), 8)
    windows = dataclasses.replace(windows, targets=scored, bytes=3 * scored)
    results = score.measure_losses(master + 0.01 * scored, master, windows)
    loss = results["loss"]
    assert loss.value == pytest.approx(860 / 600 + 0.01) and loss.low < loss.value < loss.high
    assert results["perplexity"] == pytest.approx([math.exp(x) for x in loss])
    assert results["bits_per_byte"] == pytest.approx([x / 3 / math.log(2) for x in loss])
    assert results["difference"] == pytest.approx([0.01] * 3)  # it is the same for every document


def test_windows_are_no_longer_than_the_longest_document():
    documents = texts(5, 3)
    wide, narrow = score.make_windows(documents, 1024), score.make_windows(documents, 4)
    assert wide.tokens.shape == narrow.tokens.shape == (2, 5)
    np.testing.assert_array_equal(wide.tokens, narrow.tokens)
