# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Pictures of a sweep: cells → figures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pqt_jax.analysis.intervals import Interval
from pqt_jax.analysis.plot_style import look
from pqt_jax.lab.prediction import Landmark
from pqt_jax.lab.statistics import share
from pqt_jax.lab.sweep_table import Cells

_BAND = (0.1, 0.5, 0.9)  # quantiles over seeds
_POINTS = 80  # of a curve; more are drawn as their means


def heat(cells: Cells) -> Figure:
    """Final loss of every run, a map for each arm: seeds by learning rates."""
    figure, axes = _panels(len(cells.arms), 2.3 + 0.22 * len(cells.rates), 3.0)
    finals = {arm: cells.grid(arm, "final_loss") for arm in cells.arms}
    whole = np.concatenate([cells.whole(arm, "final_loss").ravel() for arm in cells.arms])
    whole = whole[np.isfinite(whole)]  # what diverges has no place in the scale
    low, high = (whole.min(), np.quantile(whole, 0.9)) if whole.size else (0.0, 1.0)
    image = None
    for arm, ax in zip(cells.arms, axes, strict=False):
        values = np.where(cells.known(arm) & ~np.isfinite(finals[arm]), high, finals[arm])
        image = ax.imshow(
            values, vmin=low, vmax=max(high, low + 1e-9), cmap="cividis", aspect="auto"
        )
        for what, mark in (("diverged", "×"), ("stuck", "○")):
            for row, column in np.argwhere(cells.became(arm, what)):
                ax.text(column, row, mark, ha="center", va="center", color="#d9302a", fontsize=11)
        ax.set_title(_shown(arm), fontsize=10)
        ax.set_xticks(range(len(cells.rates)), [f"{rate:g}" for rate in cells.rates], fontsize=8)
        ax.set_yticks(range(len(cells.seeds)), [str(seed) for seed in cells.seeds], fontsize=7)
        ax.set_xlabel("learning rate", fontsize=8)
    axes[0].set_ylabel("seed", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="final loss, nats", shrink=0.8)
    figure.supxlabel("× diverged     ○ stuck", fontsize=9, color="#d9302a")
    return figure


def losses(cells: Cells) -> Figure:
    """Training loss by step: median over seeds and the band of the middle eighty percent."""
    figure, axes = _panels(len(cells.rates), 4.4, 3.3)
    every = cells.about["config"]["sweep"]["record_every"]
    lows, starts = [], []
    for rate, ax in zip(cells.rates, axes, strict=False):
        for i, arm in enumerate(cells.arms):
            curves = cells.curves(arm, rate)
            some = max(1, curves.shape[1] // _POINTS)
            count = curves.shape[1] // some
            curves = curves[:, : count * some].reshape(len(curves), count, some).mean(2)
            steps = every * some * (1 + np.arange(count))
            low, middle, high = _quantiles(curves)
            _band(ax, steps, low, middle, high, i, arm)
            lows.extend(low[np.isfinite(low)])
            starts.extend(row["first_loss"] for row in cells.of(arm, rate) if row["first_loss"])
        ax.set_title(f"learning rate {rate:g}", fontsize=10)
        ax.set_xlabel("step")
    for ax in axes:
        if lows and starts and max(starts) > min(lows):  # what diverges leaves the picture
            room = max(starts) - min(lows)
            ax.set_ylim(min(lows) - 0.05 * room, max(starts) + 0.3 * room)
    axes[0].set_ylabel("loss, nats per token")
    return _legend(figure, axes[0])


def finals(cells: Cells) -> Figure:
    """Final loss by learning rate: median over all seeds, runs that diverged with them."""
    figure, (ax, other) = _two()
    for i, arm in enumerate(cells.arms):
        values, known = cells.whole(arm, "final_loss"), cells.known(arm)
        low, middle, high = _quantiles(np.where(np.isfinite(values), values, np.inf))
        _band(ax, np.array(cells.rates), low, middle, high, i, arm, marked=True)
        counts = zip(cells.diverged(arm).sum(0).tolist(), known.sum(0).tolist(), strict=True)
        shares = [share(bad, n) if n else Interval(*[np.nan] * 3) for bad, n in counts]
        shift = 1.04 ** (i - len(cells.arms) / 2)
        middle = np.array([s.value for s in shares])
        errors = [[s.value - s.low for s in shares], [s.high - s.value for s in shares]]
        style = look(i)
        x = np.array(cells.rates) * shift
        other.errorbar(
            x, middle, errors, color=style.color, fmt=style.marker, ms=4, lw=1, capsize=2
        )
    known = np.concatenate([cells.whole(arm, "final_loss").ravel() for arm in cells.arms])
    known = known[np.isfinite(known)]
    if known.size:
        ax.set_ylim(known.min() - 0.1, min(known.max(), known.min() + 4) + 0.1)
    ax.axhline(_unigram_loss(cells), color="#888", lw=1, ls=":", label="token frequencies alone")
    for axes in (ax, other):
        axes.set_xscale("log")
        axes.set_xticks(cells.rates, [f"{rate:g}" for rate in cells.rates])
        axes.set_xlim(min(cells.rates) / 1.6, max(cells.rates) * 1.6)
        axes.minorticks_off()
        axes.set_xlabel("learning rate")
        axes.grid(alpha=0.3)
    ax.set_ylabel("final loss, nats per token")
    other.set_ylabel("share of seeds that diverged")
    other.set_ylim(-0.03, 1.03)
    return _legend(figure, ax)


def sharpness(cells: Cells) -> Figure:
    """Sharpness of the last token's logits by step, median and band over seeds."""
    return _measured(cells, "sharpness", "sharpness, %")


def sharpness_of_weights(cells: Cells) -> Figure:
    """Sharpness in the space of weights by step, median and band over seeds."""
    return _measured(cells, "sharpness_of_weights", "sharpness of weights, %")


def warning(found: Mapping[str, Sequence[Landmark]]) -> Figure:
    """Whether scores tell, at each step, which of the runs still whole will diverge.

    Args:
      found: name of a score → its landmarks; the first has its ROC drawn.
    """
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    ax, within, curves = figure.subplots(1, 3)
    for i, (name, marks) in enumerate(found.items()):
        style, steps = look(i), [mark.step for mark in marks]
        stroke = {"color": style.color, "ls": style.dash, "marker": style.marker, "ms": 3}
        area = np.array([mark.roc.area for mark in marks]).reshape(-1, 3).T
        ax.fill_between(steps, area[1], area[2], color=style.color, alpha=0.12, lw=0)
        ax.plot(steps, area[0], label=name, **stroke)
        if i == 0:
            chance = np.array([mark.within for mark in marks]).reshape(-1, 3).T
            within.fill_between(steps, chance[1], chance[2], color="#888", alpha=0.2, lw=0)
        if name != "learning rate":  # it is the same for all of a kind
            within.plot(steps, [mark.within.value for mark in marks], **stroke)
    for panel, of in ((ax, "all runs"), (within, "runs of one arm and rate")):
        panel.axhline(0.5, color="#888", lw=1, ls=":")
        panel.set_ylim(0, 1.02)
        panel.set_xlabel("step at which it is measured")
        panel.set_ylabel(f"area under the ROC, {of}")
    first, marks = next(iter(found.items()))
    curves.set_title(f"ROC of {first}", fontsize=10)
    for i, mark in enumerate(marks[len(marks) // 4 :: max(1, len(marks) // 4)][:3]):
        label = f"step {mark.step}: {mark.bad} of {mark.bad + mark.good} diverge later"
        style = look(i + len(found))
        curves.plot(mark.roc.false_alarms, mark.roc.hits, color=style.color, label=label)
    curves.plot([0, 1], [0, 1], color="#888", lw=1, ls=":")
    curves.set_xlabel("false alarms, share of the others")
    curves.set_ylabel("hits, share of runs that diverge")
    curves.legend(fontsize=8, loc="best")
    return _legend(figure, ax)


def _measured(cells: Cells, name: str, label: str) -> Figure:
    figure, axes = _panels(len(cells.rates), 4.4, 3.3)
    for rate, ax in zip(cells.rates, axes, strict=False):
        drawn = False
        for i, arm in enumerate(cells.arms):
            steps, values = cells.measured(arm, rate, name)
            low, middle, high = _quantiles(np.where(values > 0, values, np.nan))
            _band(ax, steps, low, middle, high, i, arm)
            drawn |= bool(np.isfinite(middle).any())
        ax.set_title(f"learning rate {rate:g}", fontsize=10)
        ax.set_xlabel("step")
        if drawn:
            ax.set_yscale("log")
    axes[0].set_ylabel(label)
    return _legend(figure, axes[0])


def _unigram_loss(cells: Cells) -> float:
    return next(iter(cells.rows.values()))["unigram_loss"]


def _panels(count: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, list(axes[:count])


def _two() -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    return figure, figure.subplots(1, 2)


def _quantiles(values: np.ndarray) -> np.ndarray:
    """[3, points] over the runs; of NaN, which come from divergence, the worst is made."""
    if not values.size:
        return np.full((3, values.shape[1]), np.nan)
    worst = np.sort(np.where(np.isnan(values), np.inf, values), axis=0)
    place = np.array(_BAND) * (len(worst) - 1)
    below, above = worst[np.floor(place).astype(int)], worst[np.ceil(place).astype(int)]
    share = (place % 1)[:, None]
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        found = np.where(above == below, below, below + share * (above - below))
    return np.where(np.isfinite(found), found, np.nan)


def _band(
    ax: Axes, x: np.ndarray, low, middle, high, i: int, arm: str, marked: bool = False
) -> None:
    style = look(i)
    marker = style.marker if marked or len(x) == 1 else None
    ax.plot(
        x, middle, color=style.color, ls=style.dash, marker=marker, ms=4, lw=1.4, label=_shown(arm)
    )
    ax.fill_between(
        x, low, np.where(np.isnan(high), middle, high), color=style.color, alpha=0.12, lw=0
    )


def _shown(arm: str) -> str:
    return arm.replace("$", r"\$")


def _legend(figure: Figure, ax: Axes) -> Figure:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure
