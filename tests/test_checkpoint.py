# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Checkpoints: everything comes back bit for bit, and damaged or foreign ones do not."""

import errno
import gc
import logging
import os
import re
import shutil
import sys
import warnings

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from pqt_jax import BitParam, checkpoint, digests, quiet, workdir
from pqt_jax import step as steps
from pqt_jax.data import pipeline
from pqt_jax.data.source import Text
from pqt_jax.errors import InputError

TEXT = Text(np.arange(256, dtype=np.uint8), np.arange(64, dtype=np.uint8), "0123", "made up")


def meta_of(config):
    return {**workdir.describe(config, TEXT), "time": {}}


META = meta_of(tiny.get_config())


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
        checkpoint.save(manager, 2, state, data, META)
    expected = next(data)

    with checkpoint.open_manager(tmp_path) as manager:
        resumed = batches()
        found, meta = checkpoint.restore(manager, 2, fresh(config), resumed, META)
    assert meta == {**META, "step": 2}
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


def damage(folder):
    """Cut the largest file of a saved step in half."""
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_a_damaged_step_gives_way_to_the_one_before(tmp_path, capsys):
    state = fresh(tiny.get_config())
    marked = jax.tree.map(lambda x: x + 1, state)
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, marked, batches(), {**META, "saved": 1})
        checkpoint.save(manager, 2, state, batches(), {**META, "saved": 2})
    damage(tmp_path / "checkpoints" / "2")
    with checkpoint.open_manager(tmp_path) as manager:
        step, found, meta = checkpoint.restore_newest(manager, state, batches(), META)
        assert step == 1 and meta["saved"] == 1
        jax.tree.map(np.testing.assert_array_equal, found, marked)
        err = capsys.readouterr().err
        assert re.fullmatch(
            r"checkpoint of step 2 was damaged \(state/\S+: \d+ bytes, \d+ were written\) "
            "and is deleted; going on from step 1\n",
            err,
        )
        checkpoint.save(manager, 2, state, batches(), {**META, "saved": 3})
    with checkpoint.open_manager(tmp_path) as manager:
        assert checkpoint.restore_newest(manager, state, batches(), META)[2]["saved"] == 3
    for name in "12":
        damage(tmp_path / "checkpoints" / name)
    with checkpoint.open_manager(tmp_path) as manager:
        every = r"\(step 2: state/.* written; step 1: state/.* written\)"
        with pytest.raises(InputError, match=f"no checkpoint in .* {every}; put a copy back"):
            checkpoint.restore_newest(manager, state, batches(), META)
        assert list(manager.all_steps()) == [1, 2]


@pytest.mark.parametrize("kind", ["truncated", "deleted", "changed"])
def test_every_damaged_file_is_named(tmp_path, kind):
    folder = tmp_path / "checkpoints" / "1"
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, fresh(tiny.get_config()), batches(), META)
    assert digests.damage(folder) is None
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    assert len(names) > 9 and "digests.json.tmp" not in names
    for name in names:
        path, content = folder / name, (folder / name).read_bytes()
        if name == "digests.json" or not content:
            continue
        if kind == "deleted":
            path.unlink()
        else:
            last = bytes([content[-1] ^ 1]) if kind == "changed" else b""
            path.write_bytes(content[:-1] + last)
        assert digests.damage(folder).startswith(name)
        path.write_bytes(content)
    assert digests.damage(folder) is None
    for broken in ("", "[]", '{"a": 1}', "[" * 100_000):
        (folder / "digests.json").write_text(broken)
        assert digests.damage(folder) == "digests.json is not what was written"


def test_without_digests_orbax_fails_in_one_line(tmp_path, capfd):
    state = fresh(tiny.get_config())
    with checkpoint.open_manager(tmp_path) as manager:
        for step in (1, 2):
            checkpoint.save(manager, step, state, batches(), META)
    (tmp_path / "checkpoints" / "2" / "digests.json").unlink()
    damage(tmp_path / "checkpoints" / "2")
    with checkpoint.open_manager(tmp_path) as manager:
        assert checkpoint.restore_newest(manager, state, batches(), META)[0] == 1
    gc.collect()
    err = capfd.readouterr().err
    assert err.startswith("checkpoint of step 2 was damaged (") and err.count("\n") == 1


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    state, other = fresh(tiny.get_config()), tiny.get_config()
    other.seed, other.model.d_ff = 1, 96
    with checkpoint.open_manager(tmp_path) as manager:
        for step, config in ((1, tiny.get_config()), (2, other)):
            checkpoint.save(manager, step, fresh(config), batches(), meta_of(config))
        message = "checkpoints/2 belongs to another run: config.model.d_ff was 96 and is 64"
        with pytest.raises(InputError, match=message):
            checkpoint.restore_newest(manager, state, batches(), META)
        changed = {**META, "data_fingerprint": "4567"}
        with pytest.raises(InputError, match="checkpoints/1 .*data_fingerprint was 0123"):
            checkpoint.restore(manager, 1, state, batches(), changed)
        assert list(manager.all_steps()) == [1, 2]


def test_a_copy_of_another_step_is_not_taken_for_it(tmp_path, capsys):
    state = fresh(tiny.get_config())
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, state, batches(), META)
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2")
    with checkpoint.open_manager(tmp_path) as manager:
        assert checkpoint.restore_newest(manager, state, batches(), META)[0] == 1
        assert "step 2 was damaged (it holds step 1)" in capsys.readouterr().err
        checkpoint.save(manager, 2, state, batches(), META)


def test_a_failed_call_is_one_line_and_leaves_the_hooks(capfd):
    def fail():
        logging.getLogger("absl").error("noise")
        warnings.warn("noise", stacklevel=1)
        raise OSError(f"many words: {os.strerror(errno.ENOSPC)}: and more")

    hook, level = sys.unraisablehook, logging.root.manager.disable
    with pytest.raises(quiet.OrbaxError, match="^No space left on device$"):
        quiet.call(fail)
    assert (sys.unraisablehook, logging.root.manager.disable) == (hook, level)
    assert capfd.readouterr() == ("", "")
