# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which process of a sweep trains what: real processes, and locks held in them."""

import os
import subprocess
import sys

import pytest

from pqt_jax.lab import sweep, sweep_config, sweep_table, work_units
from pqt_jax.training.run.workdir import TABLE
from support.paths import ROOT

SMOKE = str(ROOT / "configs" / "lab" / "smoke.py")
HOLD = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for byte in sys.argv[2:]:
    fcntl.lockf(lock, fcntl.LOCK_EX, 1, int(byte))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def plan(tmp_path):
    """Two arms of three parts each, of which nothing is there."""
    (tmp_path / "parts").mkdir()
    wanted = sweep_config.load(SMOKE, [("sweep.at_once", "2")])
    return work_units.plan(wanted, tmp_path)


@pytest.fixture
def hold():
    """Holds parts in a process of their own."""
    processes = []

    def start(path, *numbers):
        command = [sys.executable, "-c", HOLD, path, *(str(1 + n) for n in numbers)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == b"held\n"
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


def test_parts_have_numbers_and_cells_of_their_own(plan):
    assert [unit.number for unit in plan] == list(range(6))
    assert [unit.path.name for unit in plan[2:4]] == ["000-00004.jsonl", "001-00000.jsonl"]
    assert [len(unit.rates_and_seeds) for unit in plan] == [2, 2, 1] * 2
    assert len({(unit.arm.name, *cell) for unit in plan for cell in unit.rates_and_seeds}) == 10


def taken(plan, lock):
    """Numbers of the parts in the order in which they are given; each is done at once."""
    order = []
    for unit in work_units.claim_units(plan, lock):
        order.append(unit.number)
        unit.path.write_text("")
    return order


def test_one_process_goes_arm_by_arm_and_takes_what_is_missing(plan, lock):
    plan[1].path.write_text("")
    assert taken(plan, lock) == [0, 2, 3, 4, 5]
    assert taken(plan, lock) == []


def test_what_others_are_at_is_left_to_them_and_their_arm_comes_last(plan, lock, tmp_path, hold):
    hold(tmp_path / "run.lock", 0)
    assert taken(plan, lock) == [3, 4, 5, 1, 2]


def test_an_arm_that_is_compiled_is_ended_before_another(plan, lock, tmp_path, hold):
    order = []
    for unit in work_units.claim_units(plan, lock):
        if not order:
            hold(tmp_path / "run.lock", 1)  # another comes to the same arm
        order.append(unit.number)
        unit.path.write_text("")
    assert order == [0, 2, 3, 4, 5]


def test_what_a_dead_process_had_is_free_again(plan, lock, tmp_path, hold):
    other = hold(tmp_path / "run.lock", *range(6))
    assert taken(plan, lock) == []
    other.kill()
    other.wait()
    assert taken(plan, lock) == list(range(6))


def test_a_part_that_is_not_done_is_given_once_while_it_is_held(plan, lock, tmp_path):
    """And is free once the next is asked for."""
    probe = "import fcntl,os,sys; l = os.open(sys.argv[1], os.O_RDWR)\n"
    probe += "fcntl.lockf(l, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]))"
    busy = lambda n: subprocess.run(  # noqa: E731
        [sys.executable, "-c", probe, tmp_path / "run.lock", str(1 + n)], stderr=subprocess.DEVNULL
    ).returncode
    given = work_units.claim_units(plan, lock)
    first = next(given)
    assert busy(first.number) and not busy(5)
    first.path.write_text("")
    second = next(given)
    assert not busy(first.number) and busy(second.number)


def test_a_sweep_says_what_others_are_at_and_leaves_the_table_to_them(tmp_path, capsys, hold):
    workdir = tmp_path / "run"
    given = ["--config", SMOKE, f"--workdir={workdir}", "--config.steps=10"]
    given += ["--config.sweep.record_every=1", "--config.sweep.sharpness_every=0"]
    workdir.mkdir()
    other = hold(workdir / "run.lock", 1)
    assert sweep.main(given) == 0
    out = capsys.readouterr().out
    assert "BF16: 5 runs" in out and "E4M1" not in out
    assert f"left to other processes: 1 of 2 work units; the last of them writes {workdir}" in out
    assert not (workdir / TABLE).exists()
    other.kill()
    other.wait()
    assert sweep.main(given) == 0
    assert "E4M1: 5 runs" in capsys.readouterr().out
    assert len((workdir / TABLE).read_text().splitlines()) == 10


@pytest.mark.slow
def test_two_processes_train_one_sweep_to_the_table_of_one(tmp_path):
    """Each run once, and the same bits."""
    given = [sys.executable, "-m", "pqt_jax.lab.sweep", "--config", SMOKE]
    given += ["--config.sweep.at_once=2", "--config.steps=10", "--config.sweep.sharpness_every=0"]
    run = lambda name: subprocess.Popen(  # noqa: E731
        [*given, f"--workdir={tmp_path / name}"], stdout=subprocess.PIPE, text=True
    )
    both = [run("two"), run("two")]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    one = run("one")
    one.communicate(timeout=300)
    tables = [(tmp_path / name / TABLE).read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1] and tables[0].count(b"\n") == 10
    arms = ("BF16", "E4M1")
    assert all(sum(f"{arm}: 5 runs" in out for out in said) >= 1 for arm in arms)
    assert len(sweep_table.read(tmp_path / "two").rows) == 10
