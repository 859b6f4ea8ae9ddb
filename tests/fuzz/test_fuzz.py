# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The fuzzer finds each kind of fault where it is, and none in a few cases of real readers."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from fuzz import cases, inputs, workers
from fuzz.readers import ANY, READERS, SAME, Reader
from pqt_jax.errors import InputError
from support.paths import ROOT

LIGHT = [r for r in READERS if r.name.startswith(("documents", "tokens", "plot, t", "metrics"))]
LIGHT += [r for r in READERS if r.name.startswith(("data.files", "sweep_table", "train --config"))]


def read_rightly(folder):
    content = (folder / "file").read_bytes()
    if content != b"1, 2, 3":
        raise InputError("file is damaged")
    return content


def allocate(folder):
    np.ones(600 * 2**20 // 8)


# What a reader does → the kind of outcome that every case of it has.
PLANTED = {
    "refused": read_rightly,
    "traceback": lambda folder: {}["key"],
    "hang": lambda folder: time.sleep(60),
    "memory": allocate,
    "changed": lambda folder: b"1, 2, 4",
    "died": lambda folder: os.abort(),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """All intact files but those of weights, which take seconds to make."""
    folder = tmp_path_factory.mktemp("intact")
    inputs.make(folder, weights=False)
    (folder / "planted").mkdir()
    (folder / "planted" / "file").write_text("1, 2, 3")
    return folder


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_found(intact, tmp_path, kind):
    reader = Reader("planted", "planted", "*", PLANTED[kind], SAME)

    def prepare(number):
        case = cases.make_case(number, 0, [reader])
        return case, cases.damage(case, intact, cases.folder_of(tmp_path / "here"))[0]

    def work(number, prepared):
        return cases.judge(*prepared, b"1, 2, 3")

    limits = {"processes": 1, "seconds": 0.5 if kind == "hang" else 20, "logs": tmp_path}
    outcomes = dict(workers.run_cases(range(2), prepare, work, **limits))
    assert [outcomes[i].kind for i in range(2)] == [kind, kind], outcomes
    if kind in ("traceback", "hang", "died"):
        assert "test_fuzz.py" in outcomes[0].text


def test_a_case_is_repeated_by_its_number(intact, tmp_path):
    damages = []
    for name in ("a", "b"):
        folder = cases.folder_of(tmp_path / name)
        for number in range(40):
            case = cases.make_case(number, 3, LIGHT)
            here = cases.folder_of(folder / str(number))
            copy, done = cases.damage(case, intact, here)
            files = {p.name: p.read_bytes() for p in sorted(copy.rglob("*")) if p.is_file()}
            damages.append((case.reader.name, done, files))
    assert damages[:40] == damages[40:]
    assert len({done for _, done, _ in damages}) > 35


@pytest.mark.parametrize("reader", LIGHT, ids=lambda reader: reader.name)
def test_intact_files_are_accepted_and_a_few_damaged_ones_are_judged_right(
    reader, intact, tmp_path
):
    values = cases.read_intact(reader, intact, cases.folder_of(tmp_path / "intact"))
    if reader.expect not in (SAME, ANY):
        copy = tmp_path / "intact" / reader.source
        assert cases.freeze(reader.expect(copy)) == values
    for number in range(3):
        case = cases.make_case(number, 0, [reader])
        here = cases.folder_of(tmp_path / str(number))
        copy, done = cases.damage(case, intact, here)
        assert cases.judge(case, copy, values)[0] in ("refused", "accepted"), done


@pytest.mark.parametrize("reader", LIGHT, ids=lambda reader: reader.name)
def test_a_pipe_in_place_of_a_file_is_never_waited_for(reader, intact, tmp_path):
    """One that is waited for would hang here."""
    values = cases.read_intact(reader, intact, cases.folder_of(tmp_path / "intact"))
    source = intact / reader.source
    files = [p.relative_to(source) for p in source.glob(reader.files) if p.is_file()]
    for name in files:
        here = cases.folder_of(tmp_path / str(name).replace("/", " "))
        cases.read_intact(reader, intact, here)  # a copy
        (here / reader.source / name).unlink()
        os.mkfifo(here / reader.source / name)
        case = cases.make_case(0, 0, [reader])
        kind, text = cases.judge(case, here / reader.source, values)
        assert kind in ("refused", "accepted"), text


@pytest.mark.slow
def test_the_command_runs_all_readers(tmp_path):
    command = [sys.executable, "-m", "fuzz", "--cases=100", "--processes=1", "--seed=1"]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 1: 100 cases, 0 failures" in done.stdout
