# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The arithmetic and the text of `peers.py`'s table; imports neither JAX nor PyTorch.

added time   median over the rounds of (time of a step / time of its BF16 step in that round) − 1
CPU time     the same of the process's CPU time, which other work on the machine changes less
factor       added time of a peer / that of `gaussws`
"""

import importlib.metadata
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

OURS = "gaussws"
MARGIN = (
    3.0  # the goal: a peer that changes the weights adds at least this many times what ours adds
)


class Case(NamedTuple):
    """The shapes of a Llama and of its batch, the same for every row.

    Attributes:
      vocab_size, d_model, num_layers, num_heads, d_ff: as in `Llama2Config`.
      batch: sequences in a step.
      length: tokens in a sequence.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    batch: int
    length: int


CASES = {
    "tiny": Case(64, 64, 2, 2, 96, batch=2, length=16),
    "small": Case(1024, 512, 4, 8, 1408, batch=2, length=256),
    "134M": Case(32000, 768, 12, 12, 2048, batch=8, length=1024),
}


def missing(packages: str) -> str:
    """Why packages cannot be used, in words; "" if all are installed.

    Example:
      >>> missing("math"), missing("no_such_package")
      ('', 'not installed: no_such_package')
    """
    absent = [name for name in packages.split() if not importlib.util.find_spec(name)]
    return f"not installed: {', '.join(absent)}" if absent else ""


def versions(packages: str) -> str:
    """Names and versions of installed packages, for a table."""
    names = [name for name in packages.split() if importlib.util.find_spec(name)]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def reason(error: Exception) -> str:
    """An error as one line of a table."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first[:160]}"


def time_steps(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each step in each of `rounds` interleaved rounds.

    Args:
      steps: functions that return when the step is done.
      rounds: number of rounds. In each, every step runs twice, and the second run is timed, so that
        it does not matter what ran before.

    Returns:
      For each name, lists with one number for each round: seconds, and cpu_seconds of the process.
    """
    times: dict[str, dict[str, Any]] = {n: {"seconds": [], "cpu_seconds": []} for n in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()
            start, cpu_start = time.perf_counter(), time.process_time()
            step()
            times[name]["seconds"].append(time.perf_counter() - start)
            times[name]["cpu_seconds"].append(time.process_time() - cpu_start)
    return times


def added_time(seconds: list[float], base: list[float]) -> dict[str, Any]:
    """How much longer a step takes than the BF16 step of the same round.

    Example:
      >>> added_time([2.0, 3.0, 4.0], [2.0, 2.0, 2.0])
      {'milliseconds': 3000.0, 'added': 0.5, 'quartiles': [0.25, 0.75]}

    Args:
      seconds: of the step, one for each round; two rounds or more.
      base: of the BF16 step, likewise.

    Returns:
      The median of the step in milliseconds, the median of the ratios − 1, and their quartiles − 1.
    """
    ratios = [step / bf16 for step, bf16 in zip(seconds, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "milliseconds": statistics.median(seconds) * 1e3,
        "added": middle - 1,
        "quartiles": [low - 1, high - 1],
    }


def judge(peer: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Whether a peer adds at least `MARGIN` times the time that ours adds.

    Example:
      >>> ours = {"added": 0.1, "quartiles": [0.08, 0.12]}
      >>> judge({"added": 0.5, "quartiles": [0.4, 0.6]}, ours)["goal"]
      'met'
      >>> judge({"added": 0.1, "quartiles": [0.05, 0.2]}, ours)["goal"]
      'missed'
      >>> judge({"added": 0.3, "quartiles": [0.2, 0.4]}, ours)["goal"]
      'open'

    Args:
      peer, ours: from `added_time`.

    Returns:
      factor, the ratio of the medians, None unless both add something; and goal: "met" if the
      peer's lower quartile is beyond `MARGIN` times our upper one, "missed" if its upper quartile
      is below `MARGIN` times our lower one, else "open".
    """
    low, high = peer["quartiles"]
    both_add = min(peer["added"], ours["added"]) > 0
    factor = peer["added"] / ours["added"] if both_add else None
    goal = "open"
    if low > 0 and low >= MARGIN * ours["quartiles"][1]:
        goal = "met"
    elif high < MARGIN * max(ours["quartiles"][0], 0.0) or high <= 0:
        goal = "missed"
    return {"factor": factor, "goal": goal}


def complete(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the figures that compare them.

    Args:
      rows: dicts with name, version, what, base (the name of the BF16 row), is_peer, and either why
        or else seconds, cpu_seconds, memory_bytes, loss (of the first step) and last_loss. Every
        BF16 row comes with base equal to its name.

    Returns:
      New dicts. A row whose first loss is that of its BF16 step changes nothing: it gets a why.
    """
    done = {row["name"]: row for row in rows if "seconds" in row}
    result = [_compare(row, done.get(row["base"])) for row in rows]
    ours = next((row for row in result if row["name"] == OURS and "added" in row), None)
    for row in result:
        if ours and row["is_peer"] and "added" in row and row["name"] != row["base"]:
            row |= judge(row, ours)
    return result


def _compare(row: dict[str, Any], base: dict[str, Any] | None) -> dict[str, Any]:
    if "why" in row:
        return row
    if base is None:
        return row | {"why": f"there is no {row['base']} to compare with"}
    if row["loss"] == base["loss"] and row["name"] != base["name"]:
        return row | {"why": "its loss is that of BF16 to the last digit: it changes nothing"}
    added = added_time(row["seconds"], base["seconds"])
    added["added_cpu"] = added_time(row["cpu_seconds"], base["cpu_seconds"])["added"]
    return row | added | {"added_memory": row["memory_bytes"] / base["memory_bytes"] - 1}


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table in Markdown, and below it what became of the goal."""
    text = [
        "| | version | what it does | a step, ms | added time | CPU | memory | times ours | goal |",
        "|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        start = f"| {row['name']} | {row['version']} | {row['what']} |"
        if "why" in row:
            text.append(f"{start} | | | | | {row['why']} |")
            continue
        low, high = row["quartiles"]
        added = f"{row['added']:+.1%} ({low:+.1%} to {high:+.1%})"
        cpu, memory = f"{row['added_cpu']:+.1%}", f"{row['added_memory']:+.1%}"
        if row["name"] == row["base"]:
            added, cpu, memory = "1", "1", f"{row['memory_bytes'] / 1e6:.0f} MB"
        factor = "" if row.get("factor") is None else f"{row['factor']:.1f}"
        figures = f"{row['milliseconds']:.0f} | {added} | {cpu} | {memory} | {factor}"
        text.append(f"{start} {figures} | {row.get('goal', '')} |")
    return [*text, "", verdict(rows)]


def verdict(rows: list[dict[str, Any]]) -> str:
    """What became of the goal: of which peers it is met, and which add less than ours."""
    by_goal: dict[str, list[str]] = {"met": [], "missed": [], "open": []}
    cheaper, ours = [], [row["added"] for row in rows if row["name"] == OURS and "added" in row]
    for row in rows:
        if "goal" in row:
            by_goal[row["goal"]].append(row["name"])
            cheaper += [row["name"]] if row["added"] < ours[0] else []
    if not any(by_goal.values()):
        return "No peer was measured beside ours."
    parts = [f"{goal} for {len(n)} ({'; '.join(n)})" for goal, n in by_goal.items() if n]
    less = f" Less than ours add {len(cheaper)} ({'; '.join(cheaper)})." if cheaper else ""
    return f"A peer adds at least {MARGIN:g} times the time of ours: {', '.join(parts)}.{less}"
