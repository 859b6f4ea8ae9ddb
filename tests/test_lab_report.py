# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The page about a sweep: what it says is what the rows say."""

import json
import re

import numpy as np
import pytest
from command import refused

from pqt_jax.lab import cells as tables
from pqt_jax.lab import panels, report
from pqt_jax.lab.statistics import landmarks

ARMS = {"BF16": 0.0, "E8M3 <b>": 0.1, "gaussws 4": -0.02}
RATES, SEEDS = (1e-3, 1e-2, 1e-1), tuple(range(8))


def row_of(arm, rate, seed):
    """At the highest rate BF16 diverges with two seeds, and E8M3 with all but two."""
    rng = np.random.default_rng([list(ARMS).index(arm), int(1e4 * rate), seed])
    end = {"BF16": 2, "E8M3 <b>": 6, "gaussws 4": 0}[arm] if rate == 1e-1 else 0
    bad = seed < end
    offset = {1e-3: 0.5, 1e-2: 0.0, 1e-1: 0.3}[rate] + ARMS[arm] + 0.05 * seed
    losses = 2 + 3.5 * np.exp(-np.arange(60) / 15) + offset + rng.normal(0, 0.01, 60)
    if bad:
        losses[40:] = 6.0
    rise = np.where(np.arange(0, 300, 20) > 150, 8.0 if bad else 1.2, 1.0)
    return {
        "arm": arm,
        "learning_rate": rate,
        "seed": seed,
        "steps": 300,
        "losses": losses.round(4).tolist(),
        "first_loss": 5.5,
        "final_loss": None if bad and seed == 0 else float(losses[-3:].mean()),
        "validation_loss": float(losses[-1]),
        "diverged_at": 200 + seed if bad else None,
        "spikes": seed % 2,
        "skipped": 0,
        "sharpness": [[20 * i, float(x * (1 + 0.1 * seed))] for i, x in enumerate(0.03 * rise)],
    }


def write_sweep(folder, keep=lambda row: True):
    (folder / "parts").mkdir(parents=True)
    sweep = {"arms": {arm: [] for arm in ARMS}, "record_every": 5, "window": 20, "margin": 0.5}
    about = {"config": {"sweep": sweep, "steps": 300}, "data_fingerprint": "f", "stream_version": 1}
    (folder / "run.json").write_text(
        json.dumps({**about, "versions": {"jax": "0.0", "pqt_jax": "0.1"}})
    )
    for number, arm in enumerate(ARMS):
        rows = [row_of(arm, rate, seed) for rate in RATES for seed in SEEDS]
        lines = [json.dumps(row) + "\n" for row in rows if keep(row)]
        (folder / "parts" / f"{number:03d}-00000.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("swept") / "run")


def plain(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.split("<img", 1)[0]))


def test_the_page_says_what_the_rows_say(folder, capsys):
    assert report.main([str(folder)]) == 0
    page = (folder / "report" / report.PAGE).read_text()
    words = plain(page)
    assert "72 runs: 3 ways to train, 3 learning rates, 8 seeds each" in words
    assert "BF16 8% [1%, 27%] 0.01" in words  # 2 of 24
    assert "25% [10%, 47%]" in words and "0% [0%, 14%]" in words  # 6 of 24, none of 24
    best = np.mean([row_of("BF16", 1e-2, s)["final_loss"] for s in SEEDS])
    assert f"{best:.4f} [" in words
    pairs = [
        row_of("E8M3 <b>", 1e-2, s)["final_loss"] - row_of("BF16", 1e-2, s)["final_loss"]
        for s in SEEDS
    ]
    assert f"{np.mean(pairs):+.4f}* [" in words and "of 8" in words and "of 2" in words
    assert "E8M3 &lt;b&gt;" in page and "<b>" not in page and "0.001, 0.01, 0.1" in words
    assert page.count("data:image/png;base64,") == len(report.PICTURES)
    assert 'src="http' not in page and "<script" not in page
    assert "8 of the 8 that did are told before they do" in re.sub(r"\s+", " ", page)
    names = {path.name for path in (folder / "report").iterdir()}
    assert names == {report.PAGE, *report.PICTURES}
    assert capsys.readouterr().out.startswith("written: ")


def test_cells_are_where_they_belong(folder):
    cells = tables.read(folder)
    assert cells.arms == list(ARMS) and cells.rates == list(RATES) and cells.seeds == list(SEEDS)
    assert cells.diverged("E8M3 <b>").sum(0).tolist() == [0, 0, 6]
    assert cells.grid("BF16", "final_loss")[3, 1] == row_of("BF16", 1e-2, 3)["final_loss"]
    assert np.isnan(cells.grid("BF16", "final_loss")[0, 2])
    assert cells.curves("BF16", 1e-3).shape == (8, 60)
    steps, values = cells.sharpness("BF16", 1e-3)
    assert steps[-1] == 280 and values.shape == (8, 15)


def test_forecasts_are_of_runs_that_are_still_whole(folder):
    marks = {mark.step: mark for mark in landmarks(tables.read(folder))}
    assert marks[0].bad == 8 and marks[0].good == 64
    assert marks[0].roc.area.value < 0.7 < marks[160].roc.area.value == 1.0
    assert max(marks) == 200  # 201 to 205 diverge after it; at 220 none is left


def test_a_sweep_at_work_and_one_that_measures_nothing_have_a_page(tmp_path):
    some = write_sweep(tmp_path / "a", lambda row: row["arm"] == "BF16" and row["seed"] == 0)
    assert report.main([str(some), f"--out={tmp_path / 'out'}"]) == 0
    assert "3 runs: 1 ways to train" in plain((tmp_path / "out" / report.PAGE).read_text())
    none = write_sweep(tmp_path / "b")
    for path in (none / "parts").iterdir():
        rows = [json.loads(line) | {"sharpness": []} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert report.main([str(none)]) == 0
    assert {path.name for path in (none / "report").iterdir()} == {
        report.PAGE,
        *(name for name in report.PICTURES if name not in ("sharpness.png", "warning.png")),
    }


def test_pictures_show_what_diverged(folder):
    cells = tables.read(folder)
    texts = [t.get_text() for ax in panels.heat(cells).axes for t in ax.texts]
    assert texts.count("×") == 8
    figure = panels.finals(cells)
    heights = [line.get_ydata()[-1] for line in figure.axes[0].lines]
    assert np.isnan(heights[1]) or heights[1] > heights[0]  # most of E8M3's are worse than any


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: None, "does not exist"),
        (lambda d: d.mkdir(), "holds no run.json"),
        (lambda d: write_sweep(d, lambda row: False), "holds no runs of a sweep yet"),
        (lambda d: (write_sweep(d) / "parts/000-00000.jsonl").write_text("{}\n"), "no row"),
        (lambda d: (write_sweep(d) / "parts/001-00000.jsonl").write_text("[1\n"), "line 1 is no"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, capsys, make, message):
    make(tmp_path / "d")
    line = refused(report.main, [tmp_path / "d"], capsys)
    assert message in line and not (tmp_path / "d" / "report").exists()
