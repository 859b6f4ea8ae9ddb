# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""benchmarks/gpt2_text.py: its text, its table, and the whole study on a tiny model."""

import json
import subprocess
import sys

import pytest

from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def reports(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpt2_text_report

    return gpt2_text_report


@pytest.fixture
def python_text(monkeypatch, tmp_path):
    """The module, with folders of our own for those of the interpreter."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import python_text

    folders = {"stdlib": tmp_path / "lib", "purelib": tmp_path / "lib" / "site"}
    monkeypatch.setattr(
        python_text.sysconfig, "get_path", lambda n: folders.get(n, folders["stdlib"])
    )
    contents = {"b.py": b"b = 2\n", "a.py": b"a = 1\n", "site/copy.py": b"a = 1\n"}
    contents |= {"site/latin.py": b"# \xe9\n", "site/z.py": "# é\n".encode(), "empty.py": b"\n"}
    contents |= {"note.txt": b"no source\n"}
    for name, content in contents.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return python_text


def test_text_is_sorted_and_of_each_content_once(python_text, tmp_path):
    counts = python_text.write(tmp_path / "text.jsonl")
    lines = (tmp_path / "text.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a = 1\n", "b = 2\n", "# é\n"]
    digest = counts.pop("sha256")
    wanted = {"files": 6, "documents": 3, "duplicates": 1, "not_utf8": 1, "empty": 1, "bytes": 17}
    assert counts == wanted
    (tmp_path / "lib" / "b.py").write_bytes(b"b = 3\n")
    assert python_text.write(tmp_path / "text.jsonl")["sha256"] != digest


def test_a_limit_ends_the_text(python_text, tmp_path):
    (tmp_path / "lib" / "a.py").write_bytes(b"#" * 7)  # over a twentieth
    counts = python_text.write(tmp_path / "text.jsonl", limit=120)
    assert (counts["documents"], counts["bytes"]) == (3, 17)
    assert python_text.write(tmp_path / "text.jsonl", limit=1)["documents"] == 0


def run_of(loss, rate, size, steps=40, data="same"):
    interval = {"value": loss, "low": loss - 0.1, "high": loss + 0.1}
    more = {"value": 0.01, "low": None, "high": None}
    return {
        "summary": {"steps": steps},
        "laps": [1.0, rate, rate],
        "validation": [[20, loss + 1], [40, loss]],
        "data_fingerprint": data,
        "evaluation": {"weights": {"master": {"loss": interval}, "fp4_e2m1": {"difference": more}}},
        "memory": {"memory_bytes": size, "peak_bytes": size // 2},
    }


def test_the_table_compares_with_bf16(reports):
    record = {
        "smoke": True,
        "together": False,
        "steps": 40,
        "commands": ["python -m one"],
        "device": "a GPU",
    }
    record |= {"text": {"bytes": 60_000_000, "documents": 5, "sha256": "ab" * 32}}
    record |= {"pqt_jax": "1", "jax": "2", "python": "3", "driver": "4"}
    record["runs"] = {"bf16": run_of(2.5, 1000.0, 2 * 10**9)}
    record["runs"]["gaussws"] = run_of(2.6, 800.0, 21 * 10**8)
    table = reports.markdown(record)
    assert "smoke test, whose numbers mean nothing" in table
    assert "| bf16 | 2.5000 | 1,000 | +0.00% | 2.000 GB | +0.00% | 1.000 GB |" in table
    assert "| gaussws | 2.6000 | 800 | +25.00% | 2.100 GB | +5.00% | 1.050 GB |" in table
    assert "| method | master weights | FP4 E2M1 |" in table
    assert "| gaussws | 2.6000 [2.5000, 2.7000] | +0.0100 |" in table
    table = reports.markdown(record | {"together": True})
    assert "without times" in table and "| bf16 | 2.5000 | — | — | 2.000 GB |" in table


def test_a_table_takes_the_place_of_the_one_before(reports, tmp_path):
    path = tmp_path / "results.md"
    path.write_text(f"# Results\n\n{reports.BEGIN}\nnothing yet\n{reports.END}\n\nafter\n")
    for table in ("one", "two"):
        reports.insert(path, table)
    between = f"{reports.BEGIN}\n\ntwo\n\n{reports.END}"
    assert path.read_text() == f"# Results\n\n{between}\n\nafter\n"
    reports.insert(tmp_path / "new.md", "one")
    assert "one" in (tmp_path / "new.md").read_text()


@pytest.mark.parametrize(
    "wrong, message", [({"steps": 39}, "39 steps"), ({"data": "b"}, "other data")]
)
def test_runs_that_do_not_compare_are_refused(reports, wrong, message):
    runs = {"bf16": run_of(2.5, 1.0, 1), "gaussws": run_of(2.5, 1.0, 1, **wrong)}
    with pytest.raises(ValueError, match=message):
        reports.check_paired(runs, 40)


def test_docs_have_a_place_for_the_table(reports):
    text = (BENCHMARKS.parent / "docs" / "results.md").read_text()
    assert text.count(reports.BEGIN) == text.count(reports.END) == 1


@pytest.mark.slow
def test_the_whole_study_runs_and_runs_nothing_twice(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpt2_text.py"), f"--runs={tmp_path / 'runs'}"]
    command += ["--smoke", f"--markdown={tmp_path / 'results.md'}", "--methods", "bf16", "gaussws"]
    run = lambda *more: subprocess.run([*command, *more], capture_output=True, text=True)  # noqa: E731
    first = run()
    assert first.returncode == 0, first.stdout + first.stderr
    record = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert list(record["runs"]) == ["bf16", "gaussws"]
    assert {found["summary"]["steps"] for found in record["runs"].values()} == {record["steps"]}
    assert record["rate"] > 0 and record["text"]["bytes"] >= 100_000
    for found in record["runs"].values():
        assert found["memory"]["memory_bytes"] > 0 and "fp4_e2m1" in found["evaluation"]["weights"]
    assert "| gaussws |" in (tmp_path / "results.md").read_text()
    second = run()
    assert second.returncode == 0 and "\n$ " in first.stdout and "\n$ " not in second.stdout
    other = run("--steps=9")
    assert other.returncode == 2 and "began with other options" in other.stderr
