# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The report of a sweep: its page, tables and figures agree with the rows."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest

from pqt_jax.errors import InputError
from pqt_jax.lab import figures, prediction, report, report_page, sweep_table, tables
from pqt_jax.lab.prediction import evaluate_predictions, lead_time
from pqt_jax.lab.statistics import paired_difference
from support.command import refused

ARMS = {"BF16": 0.0, "gaussws 4": -0.02, "E8M3 <b>": 0.1}
RATES, SEEDS = (1e-3, 1e-2, 1e-1), tuple(range(8))


def make_row(arm, rate, seed):
    """The row of one run. At rate 0.1, BF16 diverges with two seeds and E8M3 with six of eight."""
    rng = np.random.default_rng([list(ARMS).index(arm), int(1e4 * rate), seed])
    diverging_seeds = {"BF16": 2, "E8M3 <b>": 6, "gaussws 4": 0}[arm] if rate == 1e-1 else 0
    diverges = seed < diverging_seeds
    offset = {1e-3: 0.5, 1e-2: 0.0, 1e-1: 0.3}[rate] + ARMS[arm] + 0.05 * seed
    losses = 2 + 3.5 * np.exp(-np.arange(60) / 15) + offset + rng.normal(0, 0.01, 60)
    if diverges:
        losses[40:] = 6.0
    late_factor = 8.0 if diverges else 1.2
    factors = np.where(np.arange(0, 300, 20) > 150, late_factor, 1.0) * (1 + 0.1 * seed)
    stuck = arm == "BF16" and rate == 1e-3 and seed == 7
    return {
        "arm": arm,
        "learning_rate": rate,
        "seed": seed,
        "steps": 300,
        "losses": losses.round(4).tolist(),
        "first_loss": 5.5,
        "final_loss": None if diverges and seed == 0 else float(losses[-3:].mean()),
        "unigram_loss": 3.2,
        "outcome": "diverged" if diverges else "stuck" if stuck else "learned",
        "held_out_losses": {
            "master": float(losses[-1]),
            "fp8_e4m3": float(losses[-1]) + 0.001,
            "fp6_e3m2": float(losses[-1]) + 0.01 + 0.001 * seed,
            "fp4_e2m1": None,
        },
        "bits_mean": 4.25 if arm == "gaussws 4" else None,
        "stored_bits": {"mixed": 8.5 if arm == "gaussws 4" else None},
        "diverged_at": 200 + seed if diverges else None,
        "spikes": seed % 2,
        "skipped": 0,
        "sharpness": [[20 * i, float(0.03 * factor)] for i, factor in enumerate(factors)],
        "sharpness_of_weights": [[20 * i, 5.0] for i in range(15)],
    }


def write_sweep(folder, keep=lambda row: True, change=lambda row: row):
    """The files of a sweep with the rows that `keep` accepts, each after `change`."""
    (folder / "parts").mkdir(parents=True)
    sweep = {"arms": [[arm] for arm in ARMS], "record_every": 5, "window": 20, "margin": 0.5}
    sweep |= {"seeds": SEEDS, "learning_rates": RATES}
    metadata = {"config": {"sweep": sweep, "steps": 300}, "data_fingerprint": "f"}
    metadata |= {"stream_version": 1, "versions": {"jax": "0.0", "pqt_jax": "0.1"}}
    (folder / "run.json").write_text(json.dumps(metadata))
    for number, arm in enumerate(ARMS):
        rows = [make_row(arm, rate, seed) for rate in RATES for seed in SEEDS]
        lines = [sweep_table.encode_row(change(row)) for row in rows if keep(row)]
        (folder / "parts" / f"{number:03d}-00000.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("swept") / "run")


@pytest.fixture(scope="module")
def table(folder):
    return sweep_table.read(folder)


def remove_sweep_section(folder):
    metadata = json.loads((folder / "run.json").read_text())
    del metadata["config"]["sweep"]
    (folder / "run.json").write_text(json.dumps(metadata))


def words_of(html):
    """The words of a page, or of its text before the first figure."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def compose(table):
    return report_page.compose(table, scores=[], pictures=[], usable=0.25)


def test_the_page_agrees_with_the_rows(folder, capsys):
    assert report.main([str(folder)]) == 0
    page = (folder / "report" / report.PAGE).read_text()
    words = words_of(page.split("<img", 1)[0])
    assert "72 runs: 3 ways to train, 3 learning rates, 8 seeds each" in words
    assert "BF16 24 8% [1%, 27%] 4% [0%, 21%] 0.01" in words  # 2 and 1 of 24
    assert "25% [10%, 47%]" in words and "0% [0%, 14%]" in words  # 6 of 24, none of 24
    best = [make_row("BF16", 1e-2, seed)["final_loss"] for seed in SEEDS]
    assert f"{np.mean(best):.4f} [" in words
    others = [make_row("E8M3 <b>", 1e-2, seed)["final_loss"] for seed in SEEDS]
    difference = np.mean(np.subtract(others, best))
    assert f"{difference:+.4f}* [" in words and "of 8" in words and "of 2" in words
    assert "E8M3 &lt;b&gt;" in page and "<b>" not in page
    added = paired_difference([0.01 + 0.001 * seed for seed in SEEDS], [0.0] * 8)
    assert f"{added.value:+.4f}* [{added.low:+.4f}, {added.high:+.4f}] —" in words
    assert "gaussws 4 0.01 4.25" in words and "BF16 0.01 — " in words
    assert page.count("data:image/png;base64,") == 1 + len(report_page.FIGURES)
    assert 'src="http' not in page and "<script" not in page
    last_section = words_of(page[page.rindex("How early") :])
    # 0.0612 = 1.2 · 0.03 · (1 + 0.1 · 7), the largest sharpness of a run that does not diverge
    assert "sharpness 0.0612 100% [63%, 100%] 42" in last_section
    files = {path.name for path in (folder / "report").iterdir()}
    figure_files = {report_page.PREDICTION_FIGURE.file, *report_page.FIGURES}
    assert files == {report.PAGE, report.CSV, *figure_files}
    assert capsys.readouterr().out.startswith("written: ")


def test_the_csv_has_every_run(table):
    runs = list(csv.DictReader(sweep_table.as_csv(table).splitlines()))
    assert len(runs) == 72
    (run,) = (r for r in runs if (r["arm"], r["learning_rate"], r["seed"]) == ("BF16", "0.01", "3"))
    row = make_row("BF16", 1e-2, 3)
    assert float(run["final_loss"]) == row["final_loss"] and run["diverged_at"] == ""
    assert float(run["held_out_fp8_e4m3"]) == row["held_out_losses"]["fp8_e4m3"]
    assert {r["bits_mixed"] for r in runs if r["arm"] == "gaussws 4"} == {"8.5"}
    assert {r["bits_mixed"] for r in runs if r["arm"] != "gaussws 4"} == {""}


def test_ranges_of_rates_by_hand(table):
    """At rate 0.1 BF16 diverges with two seeds; with the others it ends 0.3 above rate 0.01."""
    level = tables.usable_level(table, 0.2)
    best = np.median([make_row("BF16", 1e-2, seed)["final_loss"] for seed in SEEDS])
    assert level == pytest.approx(best + 0.2)
    words = words_of(tables.rate_range_table(table, level))
    # gaussws never diverges, so its range is wider; the range of E8M3 is narrower.
    assert re.search(r"gaussws 4 \+0\.\d+\*?", words)
    assert re.search(r"E8M3 &lt;b&gt; -0\.\d+\*?", words)


def test_the_table_finds_each_run(table):
    assert table.arms == list(ARMS) and table.rates == list(RATES) and table.seeds == list(SEEDS)
    assert table.diverged("E8M3 <b>").sum(0).tolist() == [0, 0, 6]
    assert table.values("BF16", "final_loss")[3, 1] == make_row("BF16", 1e-2, 3)["final_loss"]
    assert np.isnan(table.values("BF16", "final_loss")[0, 2])
    assert table.values("BF16", "held_out_losses.fp8_e4m3").shape == (8, 3)
    assert table.has_outcome("BF16", "stuck").tolist()[7] == [True, False, False]
    assert [table.rates[table.best_rate_index(arm)] for arm in table.arms] == [1e-2] * 3
    assert table.loss_curves("BF16", 1e-3).shape == (8, 60)
    steps, values = table.sharpness_curves("BF16", 1e-3, "sharpness")
    assert steps[-1] == 280 and values.shape == (8, 15)


def test_predictions_use_only_runs_that_have_not_diverged(table):
    scores = prediction.scores_of(table)
    assert list(scores) == ["sharpness", "sharpness of weights", "loss", "learning rate"]
    predictions = {
        name: evaluate_predictions(table.rows.values(), score) for name, score in scores.items()
    }
    by_step = {p.step: p for p in predictions["sharpness"]}
    assert by_step[0].diverging == 8 and by_step[0].stable == 64
    assert by_step[0].roc.area.value < 0.7 < by_step[160].roc.area.value == 1.0
    # Of one arm and rate, the lowest seeds diverge; at first they have the least sharpness.
    assert by_step[0].within.value == 0.0 and by_step[160].within.value == 1.0
    constant = predictions["sharpness of weights"]
    assert all(p.within.value == p.roc.area.value == 0.5 for p in constant)
    assert predictions["learning rate"][0].roc.area.value > 0.85
    assert predictions["learning rate"][0].within.value == 0.5
    assert max(by_step) == 200  # runs diverge at steps 200 to 205, so none is left at 220


def test_lead_times():
    scores = [(0, 0.1), (20, 0.5), (40, 0.2), (60, 3.0)]
    assert lead_time(scores, 61, 0.4) == 41 and lead_time(scores, 61, 1.0) == 1
    assert lead_time(scores, 60, 1.0) is None and lead_time(scores, 20, 0.4) is None


def test_the_loss_score_is_the_median_of_the_steps_before(table):
    row = table.rows["BF16", 1e-2, 3]
    score = dict(prediction.scores_of(table)["loss"](row))
    assert 0 not in score and score[20] == np.median(row["losses"][:4])
    assert score[280] == np.median(row["losses"][52:56])


def test_a_running_sweep_has_a_page(tmp_path):
    folder = write_sweep(tmp_path / "run", lambda row: row["arm"] == "BF16" and row["seed"] == 0)
    words = words_of(compose(sweep_table.read(folder)))
    assert "3 runs: 1 way to train, 3 learning rates, 1 seed each (69 to come)" in words


def test_a_sweep_without_sharpness_has_no_figures_of_it(tmp_path):
    nothing = {"sharpness": [], "sharpness_of_weights": []}
    folder = write_sweep(tmp_path / "run", change=lambda row: row | nothing)
    assert report.main([str(folder), f"--out={tmp_path / 'out'}"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        report.PAGE,
        report.CSV,
        *(file for file in report_page.FIGURES if not file.startswith("sharpness")),
    }


def test_ranges_wait_until_a_seed_has_every_rate(tmp_path):
    def is_trained(row):
        if row["arm"] == "gaussws 4":
            return row["seed"] == 0 or row["learning_rate"] < 1e-2
        return row["arm"] == "BF16"

    table = sweep_table.read(write_sweep(tmp_path / "run", is_trained))
    words = words_of(tables.rate_range_table(table, 2.0))
    assert re.search(r"gaussws 4 [+-]\d\.\d+ [+-]\d\.\d+ $", words)  # seed 0, without interval
    assert "gaussws 4" in compose(table)


def test_figures_mark_runs_that_diverged(table):
    texts = [text.get_text() for ax in figures.draw_heat_maps(table).axes for text in ax.texts]
    assert texts.count("×") == 8 and texts.count("○") == 1
    losses = figures.draw_final_losses(table).axes[0]
    last = [line.get_ydata()[-1] for line in losses.lines]
    assert np.isnan(last[2]) or last[2] > last[0]  # most runs of E8M3 diverged there


def test_too_short_is_a_rule_of_what_was_measured(tmp_path, table):
    """The page says so where the baseline has not learned more than token frequencies."""
    assert not tables.is_too_short(table) and "Too short" not in compose(table)

    def shorten(row):
        return row | {"unigram_loss": 1.5, "outcome": "stuck"}

    short = sweep_table.read(write_sweep(tmp_path / "run", change=shorten))
    assert tables.is_too_short(short)
    words = words_of(compose(short))
    assert f"has a final loss of {short.best_final_loss('BF16'):.4f} at its best rate" in words
    assert "The token frequencies alone give 1.5000." in words


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_legends_have_what_is_in_view(tmp_path, table):
    arms, near = list(ARMS), {"unigram_loss": 2.4}
    one = sweep_table.read(write_sweep(tmp_path / "a", change=lambda row: row | near))
    assert legend_of(figures.draw_final_losses(one)) == [*arms, "token frequencies alone"]
    assert legend_of(figures.draw_final_losses(table)) == arms
    diverged = {"outcome": "diverged", "diverged_at": 7, "final_loss": None, "losses": [None] * 60}

    def change(row):
        return row | {"unigram_loss": 9.0} | (diverged if row["arm"] == arms[1] else {})

    other = sweep_table.read(write_sweep(tmp_path / "run", change=change))
    assert legend_of(figures.draw_final_losses(other)) == arms  # all are at right
    assert legend_of(figures.draw_losses(other)) == [arms[0], arms[2]]
    assert figures.draw_heat_maps(other)._supxlabel.get_text() == "× diverged     ○ stuck"
    learned = sweep_table.read(write_sweep(tmp_path / "b", lambda row: row["outcome"] == "learned"))
    assert figures.draw_heat_maps(learned)._supxlabel is None


@pytest.mark.parametrize(
    ("keep", "title"),
    [
        (lambda row: row["seed"] == 0, "one seed, so no interval"),
        (lambda row: row["seed"] < 3 or row["arm"] == "BF16", "median of 3 to 8 seeds"),
        (lambda row: True, "median of 8 seeds"),
    ],
)
def test_final_losses_say_of_how_many_seeds_they_are(tmp_path, keep, title):
    table = sweep_table.read(write_sweep(tmp_path / "run", keep))
    losses = figures.draw_final_losses(table).axes[0]
    assert losses.get_title() == title
    for line, arm in zip(losses.lines, ARMS, strict=False):  # runs to come count for nothing
        rows = [make_row(arm, 1e-2, seed) for seed in SEEDS]
        want = np.median([row["final_loss"] for row in rows if keep(row)])
        assert line.get_ydata()[1] == pytest.approx(want)


def test_axes_of_runs_that_all_diverged_have_no_scale(tmp_path):
    diverged = {"outcome": "diverged", "diverged_at": 7, "final_loss": None}
    diverged |= {"losses": [None] * 60, "sharpness": [[0, None]], "sharpness_of_weights": []}

    def change(row):
        return row | diverged if row["learning_rate"] == 1e-1 else row

    one_rate = sweep_table.read(write_sweep(tmp_path / "a", change=change))
    for draw in (figures.draw_losses, figures.draw_sharpness, figures.draw_weight_sharpness):
        *others, empty = draw(one_rate).axes
        assert not len(empty.get_xticks()) and not len(empty.get_yticks())
        assert [text.get_text()[:9] for text in empty.texts] == ["no finite"]
        assert all(len(ax.get_yticks()) and not ax.texts for ax in others)
    (text,) = figures.draw_predictions(predictions_of(one_rate)).axes[1].texts
    assert text.get_text() == "no arm and rate has runs of both outcomes"
    every = sweep_table.read(write_sweep(tmp_path / "b", change=lambda row: row | diverged))
    losses, shares = figures.draw_final_losses(every).axes
    assert [text.get_text() for text in losses.texts] == ["every run diverged"]
    assert not len(losses.get_yticks()) and len(shares.get_yticks())
    assert len(figures.draw_heat_maps(every).axes) == 3  # without a scale of colors


def predictions_of(table):
    scores = prediction.scores_of(table)
    found = {
        name: evaluate_predictions(table.rows.values(), score) for name, score in scores.items()
    }
    return {name: by_step for name, by_step in found.items() if by_step}


def test_colors_of_final_losses_span_a_tenth_of_a_nat(tmp_path):
    close = {"final_loss": 2.5, "outcome": "learned"}
    folder = write_sweep(tmp_path / "run", change=lambda row: row | close)
    figure = figures.draw_heat_maps(sweep_table.read(folder))
    low, high = figure.axes[0].images[0].get_clim()
    assert low == pytest.approx(2.45) and high == pytest.approx(2.55)


def test_logarithmic_scales_span_a_factor_of_three(table):
    for ax in figures.draw_weight_sharpness(table).axes:  # it is 5 % always
        low, high = ax.get_ylim()
        assert high / low >= 2.99 and low < 5 < high


def test_amounts_agree_with_their_nouns(table):
    options = dataclasses.replace(table.options, margin=1.0, window=1)
    table = dataclasses.replace(table, options=options)
    words = words_of(report_page.compose(table, scores=[], pictures=[], usable=1.0))
    assert "median of the 1 loss from it on are more than 1 nat above" in words
    assert ", 1 nat above the median of BF16" in words


def test_a_sweep_in_which_every_run_diverged_has_a_report(tmp_path):
    diverged = {"outcome": "diverged", "diverged_at": 7, "final_loss": None}
    diverged |= {"losses": [None] * 60, "sharpness": [[0, None]], "sharpness_of_weights": []}
    folder = write_sweep(tmp_path / "run", change=lambda row: row | diverged)
    assert report.main([str(folder)]) == 0
    words = words_of((folder / "report" / report.PAGE).read_text().split("<img", 1)[0])
    assert "No rate of BF16 is best" in words and "nan" not in words and "0.000" not in words


def test_quantiles_between_two_runs_are_interpolated():
    low, middle, high = figures._quantiles_over_runs(np.array([[1.0], [2.0], [4.0], [np.nan]]))
    assert middle == [3.0] and low == pytest.approx([1.3]) and np.isnan(high)
    low, middle, high = figures._quantiles_over_runs(np.array([[1.0], [np.nan], [np.nan]]))
    assert np.isnan(middle) and np.isnan(high) and np.isnan(low)


def test_files_that_are_not_a_report_stay(folder, tmp_path, capsys):
    (tmp_path / "runs.csv").write_text("mine")
    assert "holds files and no report.html" in refused(
        report.main, [folder, f"--out={tmp_path}"], capsys
    )
    assert (tmp_path / "runs.csv").read_text() == "mine"


def rows_file(folder, number=0):
    return write_sweep(folder) / f"parts/{number:03d}-00000.jsonl"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: remove_sweep_section(write_sweep(d)), "is not of a sweep"),
        (lambda d: rows_file(d).write_bytes(b"\xff"), "is not a row"),
        (lambda d: None, "does not exist"),
        (lambda d: d.mkdir(), "holds no run.json"),
        (lambda d: write_sweep(d, lambda row: False), "holds no runs of a sweep yet"),
        (lambda d: rows_file(d).write_text("{}\n"), "is not a row"),
        (lambda d: rows_file(d, 1).write_text("[1\n"), "line 1 is not a row"),
    ],
)
def test_a_folder_without_a_sweep_is_refused(tmp_path, make, message):
    make(tmp_path / "d")
    with pytest.raises(InputError, match=message):
        sweep_table.read(tmp_path / "d")


def test_the_command_refuses_a_folder_and_writes_nothing(tmp_path, capsys):
    rows_file(tmp_path / "d").write_text("{}\n")
    assert "is not a row" in refused(report.main, [tmp_path / "d"], capsys)
    assert not (tmp_path / "d" / "report").exists()
