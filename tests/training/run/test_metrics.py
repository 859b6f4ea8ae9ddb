# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Records of a run: whole lines, dropped beyond a step, shown as lines or as a bar."""

import errno
import io
import json
import os
import pty
import re
import sys
import termios
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from pqt_jax.training.run import metrics


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert metrics.read(path) == []
    records = [{"step": i, "loss": 1 / (i + 1), "bits_mean": None} for i in range(5)]
    for record in records:
        metrics.append(path, record)
    assert metrics.read(path) == records
    assert len(path.read_text().splitlines()) == 5


def test_what_is_not_a_number_is_null_in_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics.append(path, {"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    refuse = lambda name: pytest.fail(f"{name} is not JSON")  # noqa: E731
    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record == {"step": 1, "loss": None, "grad_norm": None}


def test_what_is_no_number_is_absent(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ('{"step": 1, "loss": "x", "lr": 0.5}', '{"step": 2, "loss": {}, "lr": null}')
    large = '{"step": 3, "loss": 1' + "0" * 400 + "}"
    path.write_text("\n".join((*lines, large, '{"step": true}', '{"step": 4, "lr": NaN}')) + "\n")
    assert metrics.read(path) == [
        {"step": 1, "lr": 0.5},
        {"step": 2, "lr": None},
        {"step": 3},
        {"step": 4},
    ]


def test_truncation_drops_later_steps_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (2, 4, 4, 6):
        metrics.append(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 8, "lo')
    assert [r["step"] for r in metrics.read(path)] == [2, 4, 4, 6]
    assert metrics.truncate(path, 4) == 1
    assert metrics.truncate(path, 4) == 0
    assert [r["step"] for r in metrics.read(path)] == [2, 4, 4]
    metrics.append(path, {"step": 5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 4, 5]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_plain_lines_can_be_parsed(capsys):
    with metrics.progress(0, 10) as (advance, report):
        report({"step": 10, "loss": 2.25, "tokens": 2048, "bits_mean": None})
        advance(10)
    fields = dict(part.split("=") for part in capsys.readouterr().out.split())
    assert fields == {"step": "10", "loss": "2.25", "tokens": "2048"}


def test_the_terminal_that_mpirun_makes_gets_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with metrics.progress(0, 10) as (advance, report):
        report({"step": 10, "loss": 2.25})
        advance(10)
    assert capsys.readouterr().out == "step=10 loss=2.25\n"


@pytest.mark.parametrize("columns", [0, 100])
def test_a_terminal_without_columns_gets_lines(monkeypatch, columns):
    """`srun --pty` makes one whose text goes to a file, and so do containers."""
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, columns))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with metrics.progress(0, 10) as (_, report):
            report({"step": 10, "loss": 2.25})
        monkeypatch.undo()
        shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert ("10/10" in shown and "\x1b" in shown) == bool(columns)
    assert (shown == "step=10 loss=2.25\r\n") == (not columns)


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with metrics.progress(3, 10) as (advance, report):
        report({"step": 7, "loss": 2.25, "bits_mean": 5.5, "tokens_per_s": 12345.6})
        report({"step": 7, "validation_loss": 2.5})
        advance(7)
    shown = capsys.readouterr().out
    assert "7/10" in shown
    assert "loss 2.250  validation 2.500  bits 5.50  tokens/s 12,346" in shown
    assert "step=7" not in shown


def test_broken_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    deep = b"[" * 100_000
    path.write_bytes(
        deep + b"\n" + b'{"step": 1}\n{"step": 2, "lo\n\x00\xff\n3\n{"loss": 1}\n{"step": 4}\n'
    )
    assert metrics.read(path) == [{"step": 1}, {"step": 4}]
    assert metrics.truncate(path, 3) == 5
    assert path.read_text() == '{"step": 1}\n'


def test_what_is_kept_is_kept_as_it_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1,"note":"mine"}\n{"step": 1%s}\n\n{"step": 2}' % ("0" * 30))
    assert [r["step"] for r in metrics.read(path)] == [
        1,
        2,
    ]  # the last lacks its line break alone
    assert metrics.truncate(path, 2) == 1  # no step has 31 digits
    assert path.read_text() == '{"step":1,"note":"mine"}\n{"step": 2}\n'


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_narrow_terminal_keeps_the_counter_whole(capsys, monkeypatch, width):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    with metrics.progress(3, 800) as (_, report):
        report({"step": 100, "loss": 2.25, "bits_mean": 5.5, "tokens_per_s": 12345.6})
        report({"step": 100, "validation_loss": 2.5})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert "step 100/800" in shown and "…" not in shown
    assert "loss 2.250" in shown
    assert ("loss 2.250  validation 2.500" in shown) == (width >= 80)
    assert ("tokens/s" in shown.rpartition("step")[2]) == (width == 120)


@pytest.mark.slow
def test_the_peak_of_memory_says_whose_it_is():
    device = lambda **stats: SimpleNamespace(memory_stats=lambda: stats or None)  # noqa: E731
    gpus = [device(peak_bytes_in_use=n, bytes_limit=9) for n in (2_000_000_000, 3_500_000_000)]
    assert metrics.peak_memory(gpus) == {"device_peak_gb": 3.5}
    found = metrics.peak_memory([device()])
    assert found.keys() == {"process_peak_gb"}
    held = np.ones(int((found["process_peak_gb"] + 0.2) * 1e9 / 8))  # more than ever before
    assert metrics.peak_memory([device()])["process_peak_gb"] >= held.nbytes / 1e9 > 0.2


def test_hours_are_those_of_the_steps_of_this_part():
    timer = metrics.Timer(before=50.0, stepping=10.0, tokens=1000)
    timer.stepping += 1.0
    timer.tokens += 1000  # on ten times as many devices
    assert timer.hours(3_600_000) == pytest.approx(1.0)
    assert timer.rate() == pytest.approx(2000 / 11)
    assert 0 <= timer.seconds_since_resume() < 50 <= timer.seconds()


def test_a_terminal_that_goes_away_ends_nothing(monkeypatch):
    class Terminal(io.StringIO):
        gone = False

        def isatty(self):
            return True

        def write(self, text):
            if self.gone:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().write(text)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with metrics.progress(0, 10) as (advance, report):
        report({"step": 1, "loss": 3.0})
        terminal.gone = True
        print("a line")
        report({"step": 2, "loss": 2.0})
        advance(3)
    assert "0/10" in terminal.getvalue()


def test_many_lines_are_cut_in_little_time_and_memory(tmp_path):
    """A resume after weeks: most blocks of lines are copied and not parsed."""
    path, count = tmp_path / "metrics.jsonl", 300_000
    with path.open("w") as file:
        for step in range(1, count + 1):
            file.write(f'{{"step": {step}, "loss": 2.5, "tokens": {step * 64}, "lr": 0.001}}\n')
            if step in (7, 200_000):
                file.write('{"step": 3, "lo\n')
    tracemalloc.start()
    began = time.process_time()
    assert metrics.truncate(path, count - 5) == 2
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6 and seconds < 6  # and under tracemalloc
    lines = path.read_text().splitlines()
    assert len(lines) == count - 5 and json.loads(lines[-1])["step"] == count - 5


def test_lines_that_only_look_whole_are_parsed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "a": 1}', '{"step": 2, "a": }', '{"step": 3, "a": [1]}', '{"a": 1}']
    path.write_text("\n".join([*lines, '{"step": 4, "a": "x"}', '{"step": 5']))
    assert metrics.truncate(path, 4) >= 2
    assert path.read_text().splitlines()[0] == lines[0]
    assert all(json.loads(line)["step"] <= 4 for line in path.read_text().splitlines())
