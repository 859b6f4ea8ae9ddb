# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Checkpoints: everything comes back bit for bit, and damaged or foreign ones do not."""

import contextlib
import errno
import gc
import os
import re
import shutil
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from pqt_jax import BitParam
from pqt_jax.data.source import Text
from pqt_jax.errors import InputError, OutputError
from pqt_jax.models import partitioning
from pqt_jax.training import state as states
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.run import checkpoint, digests, orbax_errors, run_metadata
from support import tiny

pytestmark = pytest.mark.jax_version

TEXT = Text(np.arange(256, dtype=np.uint8), np.arange(64, dtype=np.uint8), "0123", "made up")


def meta_of(config):
    return {**run_metadata.make_metadata(config, TEXT), "time": {}}


META = meta_of(tiny.get_config())


def fresh(config):
    return states.init_state(config, make_optimizer(config))[1]


@pytest.fixture(autouse=True)
def quiet():
    """As in a training run."""
    with orbax_errors.quiet_orbax():
        yield


@contextlib.contextmanager
def opened(run, **options):
    manager = checkpoint.open_manager(run, **options)
    yield manager
    checkpoint.close(manager)


def test_state_and_metadata_come_back(tmp_path):
    config = tiny.get_config()
    # Values that differ from those of a fresh state in every leaf, the integers included.
    state = jax.tree.map(lambda x: x + 1, fresh(config))
    with opened(tmp_path) as manager:
        checkpoint.save(manager, 2, state, META)

    with opened(tmp_path) as manager:
        found, meta = checkpoint.restore(manager, 2, fresh(config), META)
    assert (
        meta.pop("digests") == digests.array_digests(state._asdict())
        and len(meta.pop("digest")) == 64
    )
    assert meta == {**META, "step": 2}
    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]  # noqa: E731
    assert dtypes(found) == dtypes(state)
    variables = jax.tree.leaves(found.params, is_leaf=lambda v: isinstance(v, nnx.Variable))
    assert {type(v) for v in variables} == {nnx.Param, BitParam}


def test_what_a_save_copied_may_be_given_away_at_once(tmp_path):
    state = fresh(tiny.get_config())
    before = jax.tree.map(np.array, state)
    change = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)
    with opened(tmp_path) as manager:
        checkpoint.save(manager, 1, state, META)
        state = change(state)
    with opened(tmp_path) as manager:
        jax.tree.map(
            np.testing.assert_array_equal, checkpoint.restore(manager, 1, state, META)[0], before
        )


def test_digests_are_of_values_and_places_and_the_same_on_every_mesh():
    x = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    (whole,) = digests.array_digests([x]).values()
    for split in (dict(data=2, fsdp=2, tensor=2), dict(data=8, fsdp=1, tensor=1)):
        axes = jax.sharding.PartitionSpec(None, ("fsdp", "data"), "tensor")
        placed = jax.device_put(
            x, jax.sharding.NamedSharding(partitioning.make_mesh(**split), axes)
        )
        assert list(digests.array_digests([placed]).values()) == [whole]
    others = [x.copy() for _ in range(40)]
    rng = np.random.default_rng(1)
    for other in others:  # one bit, or two elements exchanged
        flat, (i, j) = other.reshape(-1), rng.choice(x.size, 2, replace=False)
        flat.view(np.uint32)[i] ^= np.uint32(1 << rng.integers(32))
    for other in others[:20]:
        flat, (i, j) = other.reshape(-1), rng.choice(x.size, 2, replace=False)
        flat[:] = x.reshape(-1)
        flat[[i, j]] = flat[[j, i]]
    found = list(digests.array_digests(others).values())
    assert whole not in found and len(set(found)) == 40
    narrow = [np.arange(5, dtype=d) for d in (np.int8, np.int16, np.int32, np.float32)]
    assert (
        len(set(digests.array_digests(narrow).values())) == 2
    )  # integers of the same value are alike


def test_digests_of_the_host_are_those_of_devices_in_every_shape(monkeypatch):
    monkeypatch.setattr(digests, "_CHUNK", 7)
    cube = np.arange(30.0, dtype=np.float32).reshape(2, 3, 5)
    arrays = [cube, cube.astype(ml_dtypes.bfloat16), cube.astype(np.int8)[:, ::2]]
    arrays += [np.float32(3), np.zeros((0, 2), np.float32), np.arange(14, dtype=np.uint32) + 2**31]
    on_devices = [[int(half) for half in halves] for halves in digests._sums(arrays)]
    assert digests._sums_on_host(arrays) == on_devices


def test_the_newest_two_are_kept(tmp_path):
    state = fresh(tiny.get_config())
    with opened(tmp_path) as manager:
        for step in (1, 2, 3):
            checkpoint.save(manager, step, state, {})
    assert list(manager.all_steps()) == [2, 3]


def test_more_are_kept_if_asked_for(tmp_path):
    state = fresh(tiny.get_config())
    with opened(tmp_path, keep=1, keep_every=3) as manager:
        for step in range(1, 9):
            checkpoint.save(manager, step, state, {})
    assert list(manager.all_steps()) == [3, 6, 8]


def test_one_step_is_kept_if_asked_for(tmp_path):
    state = fresh(tiny.get_config())
    with opened(tmp_path, keep=1, keep_step=2) as manager:
        for step in range(1, 6):
            checkpoint.save(manager, step, state, {})
    assert list(manager.all_steps()) == [2, 5]


def test_a_save_that_orbax_declines_is_an_error(tmp_path):
    state = fresh(tiny.get_config())
    with opened(tmp_path) as manager:
        checkpoint.save(manager, 5, state, {})
        with pytest.raises(RuntimeError, match="step 4 was not saved; the newest is 5"):
            checkpoint.save(manager, 4, state, {})


def damage(folder):
    """Cut the largest file of a saved step in half."""
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_a_damaged_step_gives_way_to_the_one_before(tmp_path, capsys):
    state = fresh(tiny.get_config())
    marked = jax.tree.map(lambda x: x + 1, state)
    with opened(tmp_path) as manager:
        checkpoint.save(manager, 1, marked, {**META, "saved": 1})
        checkpoint.save(manager, 2, state, {**META, "saved": 2})
    damage(tmp_path / "checkpoints" / "2")
    with opened(tmp_path) as manager:
        step, found, meta = checkpoint.restore_newest(manager, state, META)
        assert step == 1 and meta["saved"] == 1
        jax.tree.map(np.testing.assert_array_equal, found, marked)
        err = capsys.readouterr().err
        assert re.fullmatch(
            r"checkpoint of step 2 cannot be read \(.+\) and was moved to "
            rf"{re.escape(str(tmp_path))}/damaged/2; resuming from step 1\n",
            err,
        )
        checkpoint.save(manager, 2, state, {**META, "saved": 3})
    with opened(tmp_path) as manager:
        assert checkpoint.restore_newest(manager, state, META)[2]["saved"] == 3
    for name in "12":
        damage(tmp_path / "checkpoints" / name)
    with opened(tmp_path) as manager:
        every = r"\(step 2: .*; step 1: .*\)"
        with pytest.raises(InputError, match=f"no checkpoint in .* {every}; put a copy back"):
            checkpoint.restore_newest(manager, state, META)
        assert list(manager.all_steps()) == [1, 2]


def test_an_array_that_is_not_listed_any_more_is_damage(tmp_path):
    state = fresh(tiny.get_config())
    with opened(tmp_path) as manager:
        checkpoint.save(manager, 1, state, META)
    listing = tmp_path / "checkpoints" / "1" / "state" / "_METADATA"
    listing.write_text(listing.read_text().replace('"key": "q"', '"key": "x"'))
    with pytest.raises(InputError, match=r"step 1: \['params'\].*\['q'\].* is missing"):
        checkpoint.read_params(tmp_path, state.params, META)


def test_a_pipe_in_a_checkpoint_is_damage(tmp_path):
    (tmp_path / "checkpoints" / "2" / "state").mkdir(parents=True)
    os.mkfifo(tmp_path / "checkpoints" / "2" / "state" / "manifest")
    with pytest.raises(InputError, match="step 2: manifest in it is not a regular file"):
        checkpoint.read_params(tmp_path, {}, META)


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "changed": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "zeroed": lambda content: bytes(len(content)),
    "deleted": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_any_file_is_found_or_does_no_harm(tmp_path, capfd, kind):
    """Never other values, never a traceback; and what holds values is always found."""
    config = tiny.get_config()
    state = fresh(config)
    with opened(tmp_path) as manager:
        checkpoint.save(manager, 1, state, META)
    folder, harmless = tmp_path / "checkpoints" / "1", set()
    paths = [p for p in folder.rglob("*") if p.is_file()]
    for path in paths:
        content = path.read_bytes()
        if not content:
            continue
        path.unlink() if DAMAGE[kind] is None else path.write_bytes(DAMAGE[kind](content))
        manager = checkpoint.open_manager(tmp_path)
        try:
            found, _ = checkpoint.restore(manager, 1, state, META)
            jax.tree.map(np.testing.assert_array_equal, found, state)
            harmless.add(path.relative_to(folder).as_posix())
        except checkpoint.DamagedError as error:
            assert "\n" not in str(error)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert folder / "meta" / "metadata" in paths and "meta/metadata" not in harmless
    gc.collect()
    assert "Traceback" not in capfd.readouterr().err


def test_every_flipped_bit_of_the_values_is_found(tmp_path):
    state = fresh(tiny.get_config())
    with opened(tmp_path) as manager:
        checkpoint.save(manager, 1, state, META)
    data = [p for p in (tmp_path / "checkpoints" / "1" / "state").rglob("d/*") if p.is_file()]
    largest = max(data, key=lambda p: p.stat().st_size)
    content, rng = largest.read_bytes(), np.random.default_rng(0)
    for at in rng.integers(0, len(content), 12):
        changed = bytearray(content)
        changed[at] ^= 1 << rng.integers(8)
        largest.write_bytes(changed)
        manager = checkpoint.open_manager(tmp_path)
        try:
            found, _ = checkpoint.restore(manager, 1, state, META)
        except checkpoint.DamagedError:
            continue
        jax.tree.map(np.testing.assert_array_equal, found, state)  # it was of no value


def test_values_that_are_not_those_saved_are_named(tmp_path, monkeypatch):
    state = fresh(tiny.get_config())
    digests_of = digests.array_digests

    def other(tree):
        return {**digests_of(tree), "['step']": "0"}

    with monkeypatch.context() as patch, opened(tmp_path) as manager:
        patch.setattr(digests, "array_digests", other)
        checkpoint.save(manager, 1, state, META)
    with opened(tmp_path) as manager:
        with pytest.raises(checkpoint.DamagedError, match=r"\['step'\] holds other values than"):
            checkpoint.restore(manager, 1, state, META)


def test_metadata_that_was_changed_is_damage(tmp_path):
    state = fresh(tiny.get_config())
    with opened(tmp_path) as manager:
        checkpoint.save(manager, 1, state, META)
    path = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
    path.write_text(path.read_text().replace('"stream_version": ', '"stream_version": 1'))
    with opened(tmp_path) as manager:
        with pytest.raises(checkpoint.DamagedError, match="metadata is not what was written"):
            checkpoint.restore(manager, 1, state, META)


@pytest.mark.parametrize(
    "how", ["check", *(pytest.param(how, marks=pytest.mark.slow) for how in ("save", "close"))]
)
def test_a_save_that_fails_in_the_background_is_loud(tmp_path, monkeypatch, capfd, how):
    state = fresh(tiny.get_config())

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ask = {
        "check": checkpoint.check,
        "save": lambda manager: checkpoint.save(manager, 2, state, META),
        "close": checkpoint.close,
    }[how]
    manager = checkpoint.open_manager(tmp_path)
    monkeypatch.setattr(type(manager.directory), "rename", fail)
    with pytest.raises(OutputError, match="no space left on device; free some and run"):
        checkpoint.save(manager, 1, state, META)
        for _ in range(300):  # it is in the background that it fails
            ask(manager)
            time.sleep(0.1)
    gc.collect()
    assert capfd.readouterr().err == ""


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    state, other = fresh(tiny.get_config()), tiny.get_config()
    other.seed, other.model.d_ff = 1, 96
    with opened(tmp_path) as manager:
        for step, config in ((1, tiny.get_config()), (2, other)):
            checkpoint.save(manager, step, fresh(config), meta_of(config))
        message = "checkpoints/2 belongs to another run: config.model.d_ff was 96 and is 64"
        with pytest.raises(InputError, match=message):
            checkpoint.restore_newest(manager, state, META)
        changed = {**META, "data_fingerprint": "4567"}
        with pytest.raises(InputError, match="checkpoints/1 .*data_fingerprint was 0123"):
            checkpoint.restore(manager, 1, state, changed)
        assert list(manager.all_steps()) == [1, 2]


def test_a_copy_of_another_step_is_not_taken_for_it(tmp_path, capsys):
    state = fresh(tiny.get_config())
    with opened(tmp_path) as manager:
        checkpoint.save(manager, 1, state, META)
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2")
    with opened(tmp_path) as manager:
        assert checkpoint.restore_newest(manager, state, META)[0] == 1
        assert "step 2 cannot be read (it holds step 1)" in capsys.readouterr().err
        checkpoint.save(manager, 2, state, META)


def test_a_step_whose_reading_fails_is_kept_aside(tmp_path, monkeypatch, capsys):
    """Twice; the second copy gets a name of its own."""
    state, folder = fresh(tiny.get_config()), tmp_path / "checkpoints"
    read = checkpoint._read

    def fails(path, *rest):
        if path.name == "2":
            raise checkpoint.DamagedError(os.strerror(errno.EIO))
        return read(path, *rest)

    with opened(tmp_path) as manager:
        checkpoint.save(manager, 1, state, META)
    for aside in ("2", "2-1"):
        with opened(tmp_path) as manager:
            checkpoint.save(manager, 2, state, META)
        monkeypatch.setattr(checkpoint, "_read", fails)
        with opened(tmp_path) as manager:
            assert checkpoint.restore_newest(manager, state, META)[0] == 1
            assert list(manager.all_steps()) == [1]
        monkeypatch.setattr(checkpoint, "_read", read)
        assert f"{tmp_path}/damaged/{aside}; resuming" in capsys.readouterr().err
    shutil.move(tmp_path / "damaged" / "2", folder / "2")
    with opened(tmp_path) as manager:
        assert checkpoint.restore_newest(manager, state, META)[0] == 2
