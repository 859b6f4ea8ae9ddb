# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Checkpoints: everything comes back bit for bit, and a workdir belongs to one run."""

import json
import os

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from pqt_jax import BitParam, checkpoint
from pqt_jax import step as steps
from pqt_jax.data import pipeline
from pqt_jax.data.source import Text
from pqt_jax.errors import InputError

TEXT = Text(np.arange(256, dtype=np.uint8), np.arange(64, dtype=np.uint8), "0123", "made up")


def batches():
    return pipeline.train_batches(TEXT.train, length=4, batch=2, seed=0)


def fresh(config):
    return steps.init_state(config, steps.make_optimizer(config))[1]


def test_state_data_and_metadata_come_back(tmp_path):
    config = tiny.get_config()
    # Values that differ from those of a fresh state in every leaf, the integers included.
    state = jax.tree.map(lambda x: x + 1, fresh(config))
    data = batches()
    next(data), next(data)
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 2, state, data, {"time": {"before": 1.5}})
    expected = next(data)

    with checkpoint.open_manager(tmp_path) as manager:
        resumed = batches()
        found, meta = checkpoint.restore(manager, manager.latest_step(), fresh(config), resumed)
    assert meta == {"time": {"before": 1.5}}
    np.testing.assert_array_equal(next(resumed), expected)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]  # noqa: E731
    assert dtypes(found) == dtypes(state)
    variables = jax.tree.leaves(found.params, is_leaf=lambda v: isinstance(v, nnx.Variable))
    assert {type(v) for v in variables} == {nnx.Param, BitParam}


def test_the_newest_two_are_kept(tmp_path):
    state = fresh(tiny.get_config())
    with checkpoint.open_manager(tmp_path) as manager:
        for step in (1, 2, 3):
            checkpoint.save(manager, step, state, batches(), {})
        assert list(manager.all_steps()) == [2, 3]


def test_a_save_that_orbax_declines_is_an_error(tmp_path):
    state = fresh(tiny.get_config())
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 5, state, batches(), {})
        with pytest.raises(RuntimeError, match="step 4 was not saved; the newest is 5"):
            checkpoint.save(manager, 4, state, batches(), {})


def claim(workdir, config=None, text=TEXT):
    config = config or tiny.get_config()
    os.close(checkpoint.claim(workdir, config, checkpoint.describe(config, text)))


def test_a_workdir_is_claimed_once_and_again(tmp_path):
    workdir = tmp_path / "a" / "b"
    claim(workdir)
    meta = json.loads((workdir / "run.json").read_text())
    assert meta["config"]["steps"] == 60
    assert meta["stream_version"] == 1 and meta["data_fingerprint"] == "0123"
    assert meta["versions"]["jax"] == jax.__version__
    config = tiny.get_config()
    config.log.every = 3
    claim(workdir, config)


def test_a_workdir_of_another_run_is_refused_and_left_alone(tmp_path):
    claim(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    other = tiny.get_config()
    other.model.d_ff = 96
    with pytest.raises(InputError, match="config.model.d_ff was 64 and is 96; give another"):
        claim(tmp_path, other)
    other.seed = 9
    with pytest.raises(InputError, match=r"config.model.d_ff was 64 and is 96 \(and 1 more\)"):
        claim(tmp_path, other)
    with pytest.raises(InputError, match="another run: config.model"):
        claim(tmp_path, tiny.get_config(tiny.GPT2))
    with pytest.raises(InputError, match="data_fingerprint was 0123 and is 4567"):
        claim(tmp_path, text=TEXT._replace(fingerprint="4567"))
    assert (tmp_path / "run.json").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "run.lock"}


def test_another_noise_stream_is_refused(tmp_path, monkeypatch):
    claim(tmp_path)
    monkeypatch.setattr(checkpoint.bits, "STREAM_VERSION", 2)
    with pytest.raises(InputError, match="stream_version was 1 and is 2"):
        claim(tmp_path)


def test_unusable_workdirs_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run cannot be written: Not a directory"):
        claim(tmp_path / "file" / "run")
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(InputError, match="holds metrics.jsonl but no run.json"):
        claim(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"
    for damaged in ("{", "{}", "[]", '{"config": {}}'):
        (tmp_path / "run.json").write_text(damaged)
        with pytest.raises(InputError, match="run.json in it is damaged"):
            claim(tmp_path)
    with pytest.raises(InputError, match="file is not a directory"):
        claim(tmp_path / "file")


def test_a_workdir_serves_one_run_at_a_time(tmp_path):
    config = tiny.get_config()
    lock = checkpoint.claim(tmp_path, config, checkpoint.describe(config, TEXT))
    with pytest.raises(InputError, match="is in use by another run"):
        claim(tmp_path)
    os.close(lock)
    claim(tmp_path)


def damage(folder):
    """Cut the largest file of a saved step in half."""
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_a_damaged_step_gives_way_to_the_one_before(tmp_path, capsys):
    state = fresh(tiny.get_config())
    marked = jax.tree.map(lambda x: x + 1, state)
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, marked, batches(), {"saved": 1})
        checkpoint.save(manager, 2, state, batches(), {"saved": 2})
    damage(tmp_path / "checkpoints" / "2")
    with checkpoint.open_manager(tmp_path) as manager:
        step, found, meta = checkpoint.restore_newest(manager, state, batches())
        assert step == 1 and meta == {"saved": 1}
        jax.tree.map(np.testing.assert_array_equal, found, marked)
        err = capsys.readouterr().err
        assert err.startswith("checkpoint of step 2 cannot be read (") and err.count("\n") == 1
        assert err.endswith("going on from step 1\n")
        checkpoint.save(manager, 2, state, batches(), {"saved": 3})
    with checkpoint.open_manager(tmp_path) as manager:
        assert checkpoint.restore_newest(manager, state, batches())[2] == {"saved": 3}
    for name in "12":
        damage(tmp_path / "checkpoints" / name)
    with checkpoint.open_manager(tmp_path) as manager:
        with pytest.raises(InputError, match=f"no checkpoint in {tmp_path}.* delete that folder"):
            checkpoint.restore_newest(manager, state, batches())
        assert list(manager.all_steps()) == [1, 2]
