# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Runs of several phases: steps are those of the phases' methods, and bits wait for theirs."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from pqt_jax.training import state as states
from pqt_jax.training.config import schema
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.optimizer import count_fixed_steps, make_optimizer
from pqt_jax.training.phases import list_phases, phase_index
from pqt_jax.training.step import build_train_step
from pqt_jax.transform import bit_state
from pqt_jax.transform.nnx_wrapper import BitParam
from support import tiny
from support.command import main, saved_leaves

TOKENS = (np.arange(4 * 17).reshape(4, 17) * 3 % 101).astype(np.uint8)


def make(method="gaussws", **pqt):
    config = tiny.get_config()
    config.method = method
    for name, value in pqt.items():
        config.pqt[name] = value
    return from_values(schema.RunConfig, config.to_dict())


def first_step(config, phase=None):
    optimizer = make_optimizer(config)
    graph, state = states.init_state(config, optimizer)
    before = jax.tree.map(np.asarray, state.params)
    graph = graph if phase is None else states.make_graph(phase.config)
    state, measured = build_train_step(config, graph, optimizer, phase=phase)(
        state, TOKENS, jax.random.key(7)
    )
    return before, state.params, measured


@pytest.mark.parametrize(
    "begin, rounding, wanted",
    [
        (0.0, 1.0, [(0, "gaussws", True)]),
        (0.5, 1.0, [(0, "bf16", False), (30, "gaussws", True)]),
        (0.0, 0.9, [(0, "gaussws", True), (54, "ste", False)]),
        (0.1, 0.9, [(0, "bf16", False), (6, "gaussws", True), (54, "ste", False)]),
        (0.0, 0.999, [(0, "gaussws", True)]),  # no step is left for it
    ],
)
def test_phases_follow_each_other(begin, rounding, wanted):
    phases = list_phases(make(begin_at=begin, round_at=rounding, round_to="fp6_e3m2"))
    assert [(phase.first, phase.config.method, phase.is_own) for phase in phases] == wanted
    firsts = [first for first, _, _ in wanted]
    for number in range(1, 61):
        assert firsts[phase_index(phases, number)] == max(x for x in firsts if x < number)
    assert all(p.config.pqt.dtype == "fp6_e3m2" for p in phases if p.config.method == "ste")


@pytest.mark.parametrize(
    "method, fields, wanted",
    [
        ("ste", {"round_all_at": 0.9}, [(0, "ste", 0.5), (54, "ste", 1)]),
        ("ste", {}, [(0, "ste", 0.5)]),
        (
            "ste",
            {"begin_at": 0.7, "round_all_at": 0.9},
            [(0, "bf16"), (42, "ste", 0.5), (54, "ste", 1)],
        ),
        ("ste", {"begin_at": 0.7, "round_all_at": 0.5}, [(0, "bf16"), (42, "ste", 1)]),
        (
            "bf16",
            {"round_at": 0.7, "round_all_at": 0.9},
            [(0, "bf16"), (42, "ste", 0.5), (54, "ste", 1)],
        ),
        ("gaussws", {"round_at": 0.9, "round_all_at": 0.7}, [(0, "gaussws"), (54, "ste", 1)]),
        (
            "bf16",
            {"round_at": 0.7, "round_all_at": 0.9, "round_share": 1},
            [(0, "bf16"), (42, "ste", 1)],
        ),
        (
            "ste",
            {"round_at": 0.7, "round_all_at": 0.9},
            [(0, "ste", 0.5), (42, "ste", 0.5), (54, "ste", 1)],
        ),
        (
            "ste",
            {"round_at": 0.7, "round_all_at": 0.5},
            [(0, "ste", 0.5), (30, "ste", 1), (42, "ste", 1)],
        ),
    ],
)
def test_all_blocks_are_rounded_at_last(method, fields, wanted):
    fields = {"round_share": 0.5, "dtype": "fp4_e2m1", "round_to": "fp6_e3m2"} | fields
    found = []
    for first, config in (
        (phase.first, phase.config) for phase in list_phases(make(method, **fields))
    ):
        share = (config.pqt.round_share,) if config.method == "ste" else ()
        found.append((first, config.method, *share))
        last = first >= 60 * fields.get("round_at", 1) or method != "ste"
        if config.method == "ste":
            assert config.pqt.dtype == ("fp6_e3m2" if last else "fp4_e2m1")
    assert found == wanted


@pytest.mark.parametrize("method", ["bf16", "ste"])
def test_a_step_is_that_of_the_method_of_its_phase(method):
    """Loss and weights are those of a run of that method, and the bits do not move."""
    fields = {"bf16": {"begin_at": 0.5}, "ste": {"round_at": 0.5, "round_to": "fp4_e2m1"}}[method]
    config = make(**fields)
    phase = next(p for p in list_phases(config) if p.config.method == method)
    before, after, measured = first_step(config, phase)
    alone = make(method, dtype="fp4_e2m1" if method == "ste" else "bfloat16")
    _, wanted, expected = first_step(alone)
    assert float(measured["loss"]) == float(expected["loss"])
    jax.tree.map(np.testing.assert_array_equal, bit_state.weights(after), wanted)
    assert float(measured["bits_mean"]) == 6.0
    bits = [nnx.filter_state(params, BitParam) for params in (before, after)]
    assert len(jax.tree.leaves(bits[0])) > 5
    jax.tree.map(np.testing.assert_array_equal, *bits)
    _, own, sampled = first_step(config)
    assert float(sampled["loss"]) != float(measured["loss"])
    assert all((leaf != 1).any() for leaf in jax.tree.leaves(nnx.filter_state(own, BitParam)))


@pytest.mark.slow
def test_diffq_waits_for_its_phase_too():
    config = make("diffq", begin_at=0.5)
    before, after, measured = first_step(config, list_phases(config)[0])
    _, wanted, expected = first_step(make("bf16"))
    assert float(measured["loss"]) == float(expected["loss"])
    jax.tree.map(np.testing.assert_array_equal, bit_state.weights(after), wanted)
    logits = [nnx.filter_state(params, BitParam) for params in (before, after)]
    assert len(jax.tree.leaves(logits[0])) > 5
    jax.tree.map(np.testing.assert_array_equal, *logits)


@pytest.mark.slow
def test_bits_may_have_a_constant_rate():
    """The decay of a step is the same at the first one, in the warm-up, as later."""
    moved = {}
    for schedule in ("weights", "constant"):
        before, after, _ = first_step(make(schedule=schedule, learning_rate=1e-2))
        old, new = (jax.tree.leaves(nnx.filter_state(p, BitParam)) for p in (before, after))
        moved[schedule] = np.concatenate([np.ravel(a - b) for a, b in zip(old, new, strict=True)])
    np.testing.assert_allclose(moved["weights"] * 3, moved["constant"], rtol=1e-4)  # 2 of warm-up


def test_the_steps_that_a_longer_run_shares_end_where_the_method_changes():
    config = tiny.get_config()
    config.optimizer.schedule = "constant"
    config.pqt.begin_at = 0.25
    assert count_fixed_steps(from_values(schema.RunConfig, config.to_dict())) == 15
    config.method, config.pqt.begin_at = "ste", 0.0
    config.pqt.round_share, config.pqt.round_all_at = 0.5, 0.4
    assert count_fixed_steps(from_values(schema.RunConfig, config.to_dict())) == 24


@pytest.mark.slow
@pytest.mark.jax_version
def test_a_run_that_is_resumed_in_any_phase_ends_where_a_straight_run_does(tmp_path, capsys):
    given = ["--config.steps=12", "--config.pqt.begin_at=0.25", "--config.pqt.round_at=0.75"]
    given += ["--config.log.checkpoint_every=2", "--config.log.keep=9"]
    assert main(tmp_path, *given) == 0
    out = capsys.readouterr().out
    for first, method in ((1, "bf16"), (4, "gaussws"), (10, "ste")):
        assert f"from step {first}: method {method}" in out
    step, wanted = saved_leaves(tmp_path / "run")
    assert step == 12
    for stop in (2, 4, 8, 10):
        run = shutil.copytree(tmp_path / "run", tmp_path / f"run{stop}")
        for later in range(stop + 2, 13, 2):
            shutil.rmtree(run / "checkpoints" / str(later))
        assert main(tmp_path, *given, f"--workdir={run}") == 0
        assert f"resumed from step {stop} of 12" in capsys.readouterr().out
        _, leaves = saved_leaves(run)
        for path, leaf in wanted.items():
            np.testing.assert_array_equal(leaf, leaves[path], err_msg=f"{stop} {path}")
