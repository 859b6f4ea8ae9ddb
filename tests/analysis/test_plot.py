# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The command that compares runs: what it reads, draws, writes and refuses."""

import html.parser
import json
import os
import re
import shutil

import pytest

from pqt_jax import plot
from pqt_jax.analysis import comparison, load, run_reader
from pqt_jax.errors import InputError
from pqt_jax.training import methods
from pqt_jax.training.run import bit_history
from support.command import refused
from support.runs import make_run

PNG = b"\x89PNG"


class Reader(html.parser.HTMLParser):
    """Tags that are not closed, addresses, and the text of every cell."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.cells = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.sources += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data")
        ]
        if tag not in ("html", "meta", "img"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def state_of(folder):
    """Every file of a run with its content and times."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in files]


def page_of(folder):
    text = (folder / "report.html").read_text()
    read = Reader(text)
    assert not read.open  # every tag is closed
    assert read.sources and all(s.startswith("data:image/png;base64,") for s in read.sources)
    assert not re.search(r"https?:|@import|url\(|<script|<link|<base", text)
    return text, read.cells


@pytest.mark.slow
def test_a_real_run_by_default_in_its_own_folder(run_copy, capsys):
    record = run_copy / "bits.jsonl"
    taken = record.read_bytes()
    record.unlink()  # as in a run of an older version
    before = state_of(run_copy)
    assert plot.main([str(run_copy)]) == 0
    out = run_copy / "plot"
    assert capsys.readouterr().out == f"written: {out}/report.html\n"
    assert sorted(os.listdir(out)) == ["bits.png", "formats.png", "loss.png", "report.html"]
    assert [one for one in state_of(run_copy) if one[0].parent != out] == before
    text, cells = page_of(out)
    summary = json.loads((run_copy / "summary.json").read_text())
    assert {"1 run", "37k", "gaussws", "8 of 8", "512", f"{summary['master']:.4f}"} <= set(cells)
    distance = summary["fp4_e2m1"] - summary["master"]
    assert f"{summary['fp4_e2m1']:.4f}{distance:+.4f}" in cells
    assert "<h1>Run run</h1>" in text and "Without bits.jsonl" in text
    assert {"config.data.batch", "config.optimizer.learning_rate"} <= set(cells)
    # With the record of its bits there is everything; and what was written is replaced.
    record.write_bytes(taken)
    run = load.load_run(run_copy)
    measured = bit_history.measure(run.params, methods.make_rules(run.config))
    last = bit_history.read(record)[-1]
    assert (last.step, last.tokens, last.formats) == (8, 512, measured["formats"])
    assert plot.main([str(run_copy)]) == 0
    assert set(os.listdir(out)) == {"report.html", *comparison.PICTURES}
    assert all((out / name).read_bytes().startswith(PNG) for name in comparison.PICTURES)
    assert "Without bits.jsonl" not in page_of(out)[0]


def test_ten_runs_of_every_kind(tmp_path, monkeypatch, capsys):
    """Different models and batches, finished or not, with bits, without, and diverged."""
    base, gpt2 = tmp_path / "runs", {"model__num_layers": 3, "data__batch": 8}
    make_run(base / "whole")
    make_run(base / "bf16", bits=False, method="bf16")
    make_run(base / "deeper", **gpt2)
    make_run(base / "at work", done=90)
    make_run(base / "begun", done=1)
    make_run(base / "nothing yet", done=0)
    make_run(base / "diverged", nan_from=70)
    make_run(base / "nan from the start", nan_from=1, steps=20, done=20)
    make_run(base / "a$b_$ <i>&amp;\u540d")
    make_run(tmp_path / "other" / "whole", seed=7)
    with (base / "at work" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 80, "spike": 9.5}\n{"step": 81, "skipped": true}\n')
        file.write('{"step": 82, "spike": "x", "note": {"a": [1]}}\n{"step": 91, "lo')
    (base / "bf16" / "run.json").write_text(  # of a version that had one field less
        re.sub(r'"num_heads": \d+, ', "", (base / "bf16" / "run.json").read_text())
    )
    runs = [*sorted(base.iterdir()), tmp_path / "other" / "whole"]
    before = {run: state_of(run) for run in runs}
    monkeypatch.chdir(tmp_path)
    assert plot.main([*map(str, runs)]) == 0
    assert {run: state_of(run) for run in runs} == before
    assert capsys.readouterr().out == "written: plot/report.html\n"
    files = {"report.html", comparison.DIFFERENCE, *comparison.PICTURES}
    assert set(os.listdir("plot")) == files
    text, cells = page_of(tmp_path / "plot")
    assert "7 of 10 finished" in text and "10 runs" in text
    training, losses, minus, fields = (rows_of(table) for table in tables_of(text))
    names = [f"{i + 1} {escaped_name(run, base)}" for i, run in enumerate(runs)]
    assert training[0][-4:] == ["mean bt", "tokens/s", "spikes", "skipped"]
    assert losses[0][:3] == ["run", "master weights", "BF16"] and "FP6 E3M2" in losses[0]
    assert [row[0] for row in training[1:]] == [row[0] for row in losses[1:]] == names
    assert fields[0][1:] == names
    trained, scored = (
        {row[0].split(" ", 1)[1]: row for row in table[1:]} for table in (training, losses)
    )
    assert trained["at work"][5] == "90 of 200not finished" and trained["at work"][-2:] == [
        "2",
        "1",
    ]
    assert trained["nothing yet"][5] == "0 of 200not finished"
    assert trained["runs/whole"][-1] == "–" and trained["runs/whole"][6] == "12.8k"
    assert trained["diverged"][7] == "4.00" and trained["bf16"][7] == "–"
    assert trained["bf16"][2] == "–" and trained["deeper"][1] == "llama23 layers, 32 wide"
    assert trained["deeper"][6] == "25.6k"
    assert scored["at work"][1] == "3.4000at 80"
    assert scored["begun"][1] == scored["nothing yet"][1] == "–"
    assert scored["runs/whole"][2] == "1.0100+0.0100"
    # The bf16 run is the baseline, though it is not the first. Two runs of a seed are no sample.
    assert minus[1][0].endswith("bf16baseline") and minus[1][1] == "1.0000"
    found = {(row[0][-11:], row[1]) for row in minus[2:]}  # one has other batches
    assert found == {("no interval", "+0.0000"), ("r of tokens", "–")}
    assert "config.model.num_heads" in cells and "fields that all have in common" in text


def escaped_name(run, base):
    return f"{run.parent.name}/whole" if run.name == "whole" else run.name


def tables_of(text):
    """The HTML of each table that is not folded away."""
    return re.findall(
        r"<table.*?</table>", re.sub(r"<details>.*?</details>", "", text, flags=re.S), re.S
    )


def rows_of(table):
    """The cells of each row of a table."""
    return [Reader(f"{row}</tr>").cells for row in re.findall(r"(<tr>.*?)</tr>", table, re.S)]


def test_no_table_and_no_picture_is_cut(tmp_path, monkeypatch):
    """Each is in a box that scrolls, and those of a few runs fit into 1200 pixels."""
    runs = [make_run(tmp_path / f"a-run-with-a-name-{i}", seed=i) for i in range(3)]
    runs.append(make_run(tmp_path / "bf16", bits=False, method="bf16"))
    monkeypatch.chdir(tmp_path)
    assert plot.main([*map(str, runs)]) == 0
    text, _ = page_of(tmp_path / "plot")
    assert ".wide { overflow-x: auto;" in text and "img { max-width: 100%" in text
    inner = re.findall(r"<(?:table|img)", text)
    boxed = re.findall(r'<div class="wide"><(?:table|img)', text)
    assert len(inner) == len(boxed) > 5
    assert all(int(width) <= 660 for width in re.findall(r"min-width: (\d+)px", text))
    assert len(re.findall(r"min-width: \d+px", text)) == text.count("<img")
    for table in tables_of(text)[:3]:
        columns = zip(*rows_of(table), strict=True)
        # A digit of 13 px is 8 px wide; long headers wrap, and cells have 16 px of padding.
        width = sum(8 * max(map(len, column[1:])) + 16 for column in columns)
        assert 400 < width < 1100


def test_the_baseline_is_chosen_by_option_and_named(tmp_path, monkeypatch, capsys):
    runs = [make_run(tmp_path / "runs" / f"gauss-{i}", seed=i) for i in range(3)]
    runs += [make_run(tmp_path / "runs" / f"bf16-{i}", method="bf16", seed=i) for i in range(2)]
    monkeypatch.chdir(tmp_path)
    for option, caption in (
        ([], "4, 5  bf16 (the first run with method bf16; --baseline=RUN chooses another)"),
        (["--baseline=runs/gauss-1/"], "1, 2, 3  gauss (as --baseline says)"),
    ):
        assert plot.main([*map(str, runs), *option]) == 0
        assert f"The baseline is {caption}; below zero" in page_of(tmp_path / "plot")[0]
    assert "minus the baseline" not in make_page_of(runs[:3])
    wrong = [*map(str, runs[:4]), f"--baseline={runs[4]}"]
    line = refused(plot.main, wrong, capsys)
    assert f"--baseline={runs[4]} is not among the runs; give one of them" in line


def test_a_missing_table_of_differences_is_said_in_one_line(tmp_path, capsys):
    whole, other = make_run(tmp_path / "whole"), make_run(tmp_path / "other", pqt__target_bits=5.0)
    early = make_run(tmp_path / "early", method="bf16", done=5)
    gone = make_run(tmp_path / "gone", pqt__target_bits=3.0, done=5)
    (gone / "metrics.jsonl").write_text('{"step": 90, "skipped": true, "in_a_row": 1000}\n')
    missing = "no table of differences: "
    for folders, baseline, reason in (
        ([whole, other, early], 2, "the baseline, 3  early, is not finished"),
        ([whole, other, gone], 2, "the baseline, 3  gone, has diverged"),
        ([whole, early], 0, "only the baseline is finished"),
        ([whole, other, early], 0, ""),
        ([early], 0, ""),
    ):
        page = make_page_of(folders, baseline)
        assert (f"<p>There is {missing}{reason}.</p>" in page) == bool(reason)
        assert (missing in page) == bool(reason)
    assert plot.main([str(early), str(whole), f"--out={tmp_path / 'plot'}"]) == 0
    reason = "the baseline, 1  early, is not finished"
    assert capsys.readouterr().err == f"warning: {missing}{reason}\n"


def make_page_of(folders, baseline=0):
    """The page of runs, from their numbers alone."""
    runs = dict(enumerate(run_reader.read_runs([*map(str, folders)])))
    return comparison.make_page(runs, baseline, [])


def bad(tmp_path):
    run = str(make_run(tmp_path / "run", done=20))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{}")
    (tmp_path / "file").write_text("")
    no_batch = shutil.copytree(run, tmp_path / "no batch")
    text = (no_batch / "run.json").read_text()
    (no_batch / "run.json").write_text(text.replace('"batch": 4', '"batch": "x"'))
    shutil.copytree(run, tmp_path / "folder")
    (tmp_path / "folder" / "metrics.jsonl").unlink()
    (tmp_path / "folder" / "metrics.jsonl").mkdir()
    (tmp_path / "folder" / "checkpoints").mkdir()
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    (tmp_path / "run" / "checkpoints" / "20").mkdir(parents=True)
    return run


BAD = {
    "nowhere": "nowhere does not exist; give the workdir of a training run",
    "home": "home holds no run.json; give the workdir",
    "file": "file is not a directory",
    "broken": "broken: run.json in it is damaged",
    "no batch": "no batch: run.json in it does not say config.data.batch",
    "folder": "folder: metrics.jsonl in it cannot be read: Is a directory",
    "link": "link is given twice; give each run once",
    "run/../run": "run/../run is given twice",
    "--out=home": "home holds thesis.tex, which does not belong to an earlier",
    "--out=run": "run holds bits.jsonl, which does not belong to an earlier",
    "--out=run/checkpoints": "run/checkpoints holds 20, which does not belong to an earlier",
    "--out=folder/checkpoints": "--out=folder/checkpoints is among a run's checkpoints",
    "--out=run/checkpoints/20/x": "is among a run's checkpoints; give another folder",
    "--out=file": "file is not a folder",
}


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    run = bad(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for argument, message in BAD.items():
        assert message in refused(plot.main, [run, argument], capsys), argument
    assert sorted(tmp_path.rglob("*")) == before


def test_options_that_cannot_be_used_are_refused():
    for arguments, message in (
        ([], "required: RUN"),
        (["run", "--out="], "--out= is empty"),
        (["run", "--ou=x"], "unrecognized arguments: --ou=x"),
    ):
        with pytest.raises(InputError, match=message):
            plot.parse(arguments)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "run", done=20)
    assert plot.main([str(run), "--out=/proc/plot"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: cannot write /proc/plot: ") and err.count("\n") == 1


def test_help_says_where_it_writes(capsys):
    with pytest.raises(SystemExit):
        plot.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "default: RUN/plot for one run, plot for several" in shown
