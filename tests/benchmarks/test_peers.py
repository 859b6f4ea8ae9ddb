# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""benchmarks/peers.py: its arithmetic, its rows on a tiny model, and what it refuses."""

import json
import subprocess
import sys

import jax
import pytest

from support.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "peers.py"


def run(*options):
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import peers_table

    return peers_table


def make_row(name, seconds, *, base="bf16", is_peer=True, loss=2.0, memory=100):
    row = {"name": name, "version": "", "what": "", "base": base, "is_peer": is_peer}
    row |= {"seconds": seconds, "cpu_seconds": [2 * second for second in seconds]}
    return row | {"loss": loss, "memory_bytes": memory}


class TestTable:
    def test_time_is_compared_within_a_round(self, table):
        """The second round took twice as long for all, as on a machine that others use."""
        added = table.added_time([1.1, 2.2, 1.1], [1.0, 2.0, 1.0])
        assert added["added"] == pytest.approx(0.1)
        assert added["quartiles"] == pytest.approx([0.1, 0.1])
        assert added["milliseconds"] == pytest.approx(1100)

    def test_rows_are_compared_with_the_base_of_their_framework(self, table):
        rows = [
            make_row("bf16", [1.0, 1.0], loss=1.0),
            make_row("gaussws", [1.1, 1.1], is_peer=False, memory=110),
            make_row("torch bf16", [2.0, 2.0], base="torch bf16", loss=3.0, memory=50),
            make_row("far", [3.0, 3.0], base="torch bf16", memory=100),
            make_row("near", [2.2, 2.2], base="torch bf16"),
            make_row("less", [1.9, 1.9], base="torch bf16"),
        ]
        done = {row["name"]: row for row in table.complete(rows)}
        assert done["gaussws"]["added_memory"] == pytest.approx(0.1)
        assert done["far"]["added"] == pytest.approx(0.5)
        assert done["far"]["added_cpu"] == pytest.approx(0.5)
        assert done["far"]["added_memory"] == pytest.approx(1)
        assert done["far"]["factor"] == pytest.approx(5) and done["far"]["goal"] == "met"
        assert done["near"]["factor"] == pytest.approx(1) and done["near"]["goal"] == "missed"
        assert done["less"]["factor"] is None and done["less"]["goal"] == "missed"
        assert all("goal" not in done[name] for name in ("bf16", "torch bf16", "gaussws"))
        text = table.lines(list(done.values()))
        assert text[-1] == (
            "A peer adds at least 3 times the time of ours: met for 1 (far), missed for 2 (near; "
            "less). Less than ours add 1 (less)."
        )

    @pytest.mark.parametrize(
        "ours, peer, goal",
        [
            ([0.125, 0.125], [0.375, 0.375], "met"),
            ([0.1, 0.1], [0.29, 0.4], "open"),
            ([0.1, 0.2], [0.5, 0.5], "open"),
            ([0.1, 0.2], [0.2, 0.29], "missed"),
            ([-0.1, 0.0], [0.01, 0.02], "met"),
            ([-0.1, 0.1], [0.01, 0.02], "open"),
            ([-0.1, 0.1], [-0.02, -0.01], "missed"),
        ],
    )
    def test_the_goal_is_judged_by_quartiles(self, table, ours, peer, goal):
        ours, peer = ({"added": sum(q) / 2, "quartiles": q} for q in (ours, peer))
        assert table.judge(peer, ours)["goal"] == goal

    def test_a_peer_that_changes_nothing_is_no_result(self, table):
        rows = [make_row("bf16", [1.0, 1.0]), make_row("idle", [1.0, 1.0])]
        idle = table.complete(rows)[1]
        assert "changes nothing" in idle["why"] and "added" not in idle

    def test_a_row_without_its_base_says_so(self, table):
        (row,) = table.complete([make_row("alone", [1.0, 1.0])])
        assert row["why"] == "there is no bf16 to compare with"
        assert row["why"] in table.lines([row])[2]

    def test_what_is_not_installed_is_named(self, table):
        assert table.missing("json no_such_package") == "not installed: no_such_package"
        assert table.versions("no_such_package") == ""


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="measures a CPU")
def test_every_row_is_measured_or_says_why(tmp_path):
    out = tmp_path / "record.json"
    done = run("--smoke", f"--out={out}")
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    for name in ("bf16", "gaussws", "uniform", "ste fp6", "ste fp4", "our DiffQ", "flax FP8"):
        assert "why" not in rows[name], rows[name]
    for row in rows.values():
        assert row["name"] in done.stdout
        if "why" in row:
            known = ("not installed", "no code for it here", "there is no torch bf16 to compare")
            assert row["why"].startswith(known), row
            continue
        assert row["quartiles"][0] <= row["added"] <= row["quartiles"][1]
        assert row["memory_bytes"] > 0 and row["last_loss"] < row["loss"]
    assert "these figures mean nothing" in done.stdout
    assert "TransformerEngine" in rows and "A peer adds at least 3 times" in done.stdout


def test_a_process_that_fails_is_the_reason_of_its_rows(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import peers

    rows = peers.measure_torch("no such model", 2, with_compiled=False)
    assert {"torch bf16", "diffq"} <= {row["name"] for row in rows}
    assert all("invalid choice: 'no such model'" in row["why"] for row in rows)


@pytest.mark.parametrize(
    "option, message",
    [
        ("--no-such-option", "unrecognized arguments: --no-such-option"),
        ("--model=7B", "invalid choice: '7B'"),
        ("--rounds=1", "1: it must be a whole number, 2 or more"),
    ],
)
def test_an_option_that_cannot_be_is_refused(monkeypatch, capsys, option, message):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import peers

    monkeypatch.setattr(sys, "argv", ["peers.py", option])
    with pytest.raises(SystemExit) as exit:
        peers.main()
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out and message in printed.err.strip().split("\n")[-1]
