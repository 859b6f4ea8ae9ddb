# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which process of a sweep trains which work unit. Other processes and their locks are real."""

import os
import shutil
import subprocess
import sys

import pytest

from pqt_jax.errors import InputError
from pqt_jax.lab import sweep, sweep_arms, sweep_table, work_units
from pqt_jax.training.run.workdir import SWEEP_RESULTS, WORK_UNITS
from support.paths import ROOT

SMOKE = str(ROOT / "configs" / "lab" / "smoke.py")
LOCK_UNITS = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for byte in sys.argv[2:]:
    fcntl.lockf(lock, fcntl.LOCK_EX, 1, int(byte))
print("locked", flush=True)
sys.stdin.read()
"""
IS_LOCKED = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]))
"""


@pytest.fixture
def units(tmp_path):
    """Two arms of three units each; none is done."""
    (tmp_path / WORK_UNITS).mkdir()
    return work_units.plan(sweep_arms.load_sweep(SMOKE, [("sweep.at_once", "2")]), tmp_path)


@pytest.fixture
def lock_units():
    """A function that starts a process which locks units, by their numbers."""
    processes = []

    def start(path, *numbers):
        command = [sys.executable, "-c", LOCK_UNITS, path, *(str(1 + n) for n in numbers)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == b"locked\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def lock(tmp_path):
    descriptor = os.open(tmp_path / "run.lock", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def never(unit, busy):
    return False


def claim_all(units, lock, waits=never):
    """Claim units until none is left; each is done at once. Returns their numbers in order."""
    order = []
    for unit in work_units.claim_units(units, lock, waits):
        order.append(unit.number)
        unit.path.write_text("")
    return order


def test_every_run_belongs_to_one_unit(units):
    assert [unit.number for unit in units] == list(range(6))
    assert [unit.path.name for unit in units[2:4]] == ["000-00004.jsonl", "001-00000.jsonl"]
    assert [len(unit.rates_and_seeds) for unit in units] == [2, 2, 1] * 2
    assert len({(unit.arm.name, *run) for unit in units for run in unit.rates_and_seeds}) == 10


def test_one_process_trains_the_missing_units_arm_by_arm(units, lock):
    units[1].path.write_text("")
    assert claim_all(units, lock) == [0, 2, 3, 4, 5]
    assert claim_all(units, lock) == []


def test_units_of_other_processes_are_left_and_their_arm_comes_last(
    units, lock, tmp_path, lock_units
):
    lock_units(tmp_path / "run.lock", 0)
    assert claim_all(units, lock) == [3, 4, 5, 1, 2]


def test_units_that_wait_come_last(units, lock, tmp_path, lock_units):
    """They share steps with a unit that is being trained."""
    lock_units(tmp_path / "run.lock", 0)
    numbers = []

    def waits(unit, busy):
        numbers.append([other.number for other in busy])
        return unit.number in (1, 3)

    assert claim_all(units, lock, waits) == [4, 5, 2, 1, 3]
    assert all(busy == [0] for busy in numbers)


def test_a_compiled_arm_is_finished_before_another_begins(units, lock, tmp_path, lock_units):
    order = []
    for unit in work_units.claim_units(units, lock, never):
        if not order:
            lock_units(tmp_path / "run.lock", 1)  # another process begins to train the same arm
        order.append(unit.number)
        unit.path.write_text("")
    assert order == [0, 2, 3, 4, 5]


def test_units_of_a_dead_process_are_free_again(units, lock, tmp_path, lock_units):
    other = lock_units(tmp_path / "run.lock", *range(6))
    assert claim_all(units, lock) == []
    other.kill()
    other.wait()
    assert claim_all(units, lock) == list(range(6))


def test_a_unit_is_locked_until_the_next_one_is_requested(units, lock, tmp_path):
    def is_locked(number):
        command = [sys.executable, "-c", IS_LOCKED, tmp_path / "run.lock", str(1 + number)]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0

    claimed = work_units.claim_units(units, lock, never)
    first = next(claimed)
    assert is_locked(first.number) and not is_locked(5)
    first.path.write_text("")
    second = next(claimed)
    assert not is_locked(first.number) and is_locked(second.number)


def change_a_number(first, second):
    second.write_text(second.read_text().replace('"final_loss": ', '"final_loss": 1', 1))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda first, second: first.write_text(""), "holds rows of other runs"),
        (shutil.copy, "holds rows of other runs"),
        (lambda first, second: second.write_text('{"arm": "E4M1"}\n'), "line 1 is not a row"),
        (lambda first, second: second.write_bytes(b"\xff\n"), "line 1 is not a row"),
        (change_a_number, "line 1 is not a row"),
    ],
    ids=["empty", "of another unit", "fields missing", "not text", "changed number"],
)
def test_damaged_rows_are_refused(sweep_copy, damage, message):
    units = work_units.plan(sweep_arms.load_sweep(SMOKE), sweep_copy)
    for unit in units:
        work_units.check_rows(unit)
    damage(*(unit.path for unit in units))
    with pytest.raises(InputError, match=message):
        for unit in units:
            work_units.check_rows(unit)


def test_the_process_of_the_last_unit_writes_the_table(
    swept, train_by_lookup, tmp_path, capsys, lock_units
):
    workdir = tmp_path / "run"
    command = ["--config", SMOKE, f"--workdir={workdir}"]
    workdir.mkdir()
    other = lock_units(workdir / "run.lock", 1)
    assert sweep.main(command) == 0
    out = capsys.readouterr().out
    assert "BF16: 5 runs" in out and "E4M1" not in out
    assert f"left to other processes: 1 of 2 work units; the last of them writes {workdir}" in out
    assert not (workdir / SWEEP_RESULTS).exists()
    other.kill()
    other.wait()
    assert sweep.main(command) == 0
    assert "E4M1: 5 runs" in capsys.readouterr().out
    assert (workdir / SWEEP_RESULTS).read_bytes() == (swept / SWEEP_RESULTS).read_bytes()


@pytest.mark.slow
def test_two_processes_train_one_sweep_to_the_table_of_one(tmp_path):
    """Each run is trained once, with the same bits."""
    command = [sys.executable, "-m", "pqt_jax.lab.sweep", "--config", SMOKE]
    command += ["--config.sweep.at_once=2", "--config.steps=10", "--config.sweep.sharpness_every=0"]

    def start(name):
        arguments = [*command, f"--workdir={tmp_path / name}"]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    both = [start("two"), start("two")]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    alone = start("one")
    alone.communicate(timeout=300)
    tables = [(tmp_path / name / SWEEP_RESULTS).read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1] and tables[0].count(b"\n") == 10
    arms = ("BF16", "E4M1")
    assert all(sum(f"{arm}: 5 runs" in out for out in outputs) >= 1 for arm in arms)
    assert len(sweep_table.read(tmp_path / "two").rows) == 10
