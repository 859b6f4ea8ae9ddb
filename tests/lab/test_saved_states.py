# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A sweep goes on from saved states to the same bits, and steps that arms share are taken once."""

import json
import signal
import subprocess
import sys
import time

import pytest

from pqt_jax.errors import InputError
from pqt_jax.lab import runs, saved_states, sweep, sweep_arms, train_sweep, work_units
from pqt_jax.lab.programs import make_programs
from pqt_jax.lab.saved_states import SavedStates
from pqt_jax.training.run.workdir import STATES, SWEEP_RESULTS
from support.paths import ROOT
from support.session import shared_folder

SMOKE = ROOT / "configs" / "lab" / "smoke.py"
ROUNDED = ("method=ste", "pqt.dtype=float4_e2m1fn")
ARMS = (
    ("BF16", "method=bf16"),
    ("rounded from 40 %", *ROUNDED, "pqt.begin_at=0.4"),
    ("rounded from 80 %", *ROUNDED, "pqt.begin_at=0.8"),
    ("sampled", "method=gaussws"),
    ("sampled, then rounded", "method=gaussws", "pqt.round_at=0.6"),
)


class Stopped(Exception):
    pass


@pytest.fixture
def config(tmp_path):
    """The smoke sweep's 30 steps with phases, two seeds, and sharpness."""
    return write_config(tmp_path)


def write_config(folder):
    old = '(("BF16",), ("E4M1", "simulate.dtype=E4M1"))'
    text = SMOKE.read_text().replace(old, repr(ARMS)).replace("(0, 1, 2, 3, 4)", "(0, 1)")
    path = folder / "phases.py"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The table of the sweep that nothing stopped."""

    def make(folder):
        train(write_config(folder), folder / "run")

    folder = shared_folder(tmp_path_factory, "phases", make)
    return (folder / "run" / SWEEP_RESULTS).read_bytes()


@pytest.fixture
def steps_taken(monkeypatch):
    """A list to which every step of training adds its number."""
    numbers, take = [], runs._Progress.take

    def counted(self, *arguments):
        take(self, *arguments)
        numbers.append(self.steps)

    monkeypatch.setattr(runs._Progress, "take", counted)
    return numbers


def train(config, workdir):
    assert sweep.main(["--config", str(config), f"--workdir={workdir}"]) == 0
    return (workdir / SWEEP_RESULTS).read_bytes()


def fingerprints(config, *changes, runs=((3e-3, 0),), arms=len(ARMS)):
    arms = sweep_arms.load_sweep(str(config), changes).arms[:arms]
    return [make_programs(arm).fingerprints(runs, "uint8") for arm in arms]


@pytest.mark.slow
def test_shared_steps_are_taken_once_and_change_no_bit(
    config, whole, tmp_path, steps_taken, monkeypatch
):
    steps_taken.clear()
    assert train(config, tmp_path / "together") == whole
    # 30 of BF16, 18 and 6 after it; 30 of gaussws, 12 after them.
    assert len(steps_taken) == 30 + 18 + 6 + 30 + 12
    assert not (tmp_path / "together" / STATES).exists()
    steps_taken.clear()
    monkeypatch.setattr(SavedStates, "read_last", lambda self: (0, {}))
    assert train(config, tmp_path / "alone") == whole
    assert len(steps_taken) == 5 * 30
    rows = [json.loads(line) for line in whole.splitlines()]
    assert len({row["held_out_losses"]["master"] for row in rows}) == 10


@pytest.mark.slow
def test_a_sweep_that_stops_within_a_unit_goes_on_from_its_last_state(
    config, whole, tmp_path, steps_taken, monkeypatch
):
    steps_taken.clear()
    monkeypatch.setattr(runs, "_SAVE_SECONDS", 0.0)  # after every step
    take = runs._Progress.take

    def stopped(self, *arguments):
        if len(steps_taken) == 17:
            raise Stopped
        take(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(runs._Progress, "take", stopped)
        with pytest.raises(Stopped):
            train(config, tmp_path / "run")
    # The last state, and that after which arms part.
    assert [path.name[:8] for path in sorted((tmp_path / "run" / STATES).iterdir())] == [
        "00000012",
        "00000017",
    ]
    assert train(config, tmp_path / "run") == whole
    assert steps_taken[:18] == [*range(1, 18), 18] and len(steps_taken) == 96


@pytest.mark.slow
def test_a_killed_process_leaves_states_to_go_on_from(config, whole, tmp_path):
    program = "from pqt_jax.lab import runs, sweep; import sys\n"
    program += "runs._SAVE_SECONDS = 0.0; sys.exit(sweep.main())"
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", program, "--config", str(config), f"--workdir={workdir}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(workdir.glob("states/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and list(workdir.glob("states/*"))
    assert train(config, workdir) == whole


def test_a_fingerprint_stands_for_all_that_the_bits_depend_on(config):
    bf16, from_40, from_80, sampled, then_rounded = fingerprints(config)
    assert [last for last, _ in from_40] == [12, 30] and [last for last, _ in bf16] == [30]
    assert bf16[0][1] == from_40[0][1] == from_80[0][1] != sampled[0][1] == then_rounded[0][1]
    assert from_40[1][1] != from_80[1][1]  # the same program, after other states
    count = saved_states.count_shared_steps
    assert count(bf16, from_40) == count(from_40, from_80) == 12 and count(bf16, from_80) == 24
    assert count(sampled, then_rounded) == 18 and count(bf16, sampled) == 0
    changes = [("steps", "40"), ("data.batch", "2"), ("optimizer.b2", "0.9"), ("model.d_ff", "32")]
    others = [fingerprints(config, change, arms=1) for change in changes]
    others += [fingerprints(config, runs=[run], arms=1) for run in ((3e-3, 1), (1e-3, 0))]
    assert len({bf16[0][1], *(first[0][1] for (first,) in others)}) == 7


def test_states_are_found_by_their_fingerprints(tmp_path):
    recipe = SavedStates(tmp_path / STATES, [(70, "a" * 64), (100, "b" * 64)], frozenset({70}))
    bf16 = SavedStates(tmp_path / STATES, [(100, "a" * 64)], frozenset({70}))
    assert recipe.read_last() == (0, {})
    for steps in (60, 70, 80):
        bf16.write(steps, {"x": {"y": steps}})
    assert len(list((tmp_path / STATES).iterdir())) == 2  # 60 is needed by none
    assert recipe.read_last() == (70, {"x": {"y": 70}}) and bf16.read_last()[0] == 80
    recipe.write(90, {})
    assert recipe.read_last() == (90, {}) and bf16.read_last()[0] == 80
    recipe.remove(before=100)
    assert recipe.read_last()[0] == 70


@pytest.mark.parametrize("content", [b"", b"short", None], ids=["empty", "short", "changed"])
def test_a_damaged_state_is_set_aside_for_the_one_before(tmp_path, capsys, content):
    states = SavedStates(tmp_path / STATES, [(100, "a" * 64)], frozenset({30}))
    states.write(30, {"x": "a text"})
    states.write(60, {"x": "a long text"})
    _, path = sorted((tmp_path / STATES).iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"?" if content is None else content)
    assert states.read_last() == (30, {"x": "a text"})
    said = f"warning: {path} is damaged and set aside; an earlier state is used\n"
    assert capsys.readouterr().err == said
    assert states.read_last()[0] == 30 and capsys.readouterr().err == ""
    assert sorted(p.name for p in path.parent.iterdir())[1] == f"{path.name}.damaged"


def test_other_files_among_the_states_are_left_alone(tmp_path):
    states = SavedStates(tmp_path / STATES, [(100, "a" * 64)], frozenset())
    states.write(60, {"x": 1})
    for name in ("notes-old.txt", ".DS_Store", "00000070-foreign", "00000070", "1-2"):
        (tmp_path / STATES / name).write_text("")
    assert states.read_last() == (60, {"x": 1})
    states.remove(before=100)
    assert len(list((tmp_path / STATES).iterdir())) == 5
    (tmp_path / STATES / f"00000050-{'a' * 32}").mkdir()
    with pytest.raises(InputError, match="cannot be read: Is a directory; move it away"):
        states.read_last()


def test_an_arm_waits_for_steps_that_another_process_is_taking(config, tmp_path):
    units = work_units.plan(sweep_arms.load_sweep(str(config)), tmp_path)
    bf16, from_40, from_80, sampled, then_rounded = units
    programs = {unit.arm.name: make_programs(unit.arm) for unit in units}
    states_of = train_sweep.make_states_of(units, programs.__getitem__, tmp_path / STATES, "uint8")
    assert states_of(bf16).shared == {12, 24} and states_of(from_40).shared == {12}

    def waiting(*busy):
        free = [unit for unit in units if unit not in busy]
        return [unit.number for unit in free if train_sweep.waits(states_of, unit, busy)]

    assert waiting() == [] and waiting(bf16) == [1, 2] and waiting(sampled) == [4]
    states_of(bf16).write(12, {})
    assert waiting(bf16, sampled) == [2, 4]
    assert waiting(from_40) == [] and waiting(then_rounded) == [3]
