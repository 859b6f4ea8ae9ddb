# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The training step against its definition, and the command as a user runs it."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from flax import nnx

from pqt_jax import bitwidth, evaluate, keys, metrics, param_transform, plot, train
from pqt_jax import config as configs
from pqt_jax import step as steps
from pqt_jax.config import MODELS, model_config
from pqt_jax.data import pipeline
from pqt_jax.loss import cross_entropy
from pqt_jax.quantize import quantize

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "train_step.json"
KEY = jax.random.key(7)


@functools.cache
def setup(method="gaussws"):
    """Config, structure, initial state (as numpy: a step donates what it is given) and step."""
    config = tiny.get_config()
    config.method = method
    optimizer = steps.make_optimizer(config)
    graph, state = steps.init_state(config, optimizer)
    state = jax.tree.map(np.asarray, state)
    return config, graph, state, steps.make_train_step(graph, optimizer, configs.rules(config))


def batch(i=0):
    return (np.arange(4 * 17).reshape(4, 17) * (i + 3) % 101).astype(np.uint8)


def run(count, method="gaussws"):
    _, _, state, train_step = setup(method)
    out = []
    for i in range(count):
        state, measured = train_step(state, batch(i % 3), KEY)
        out.append({name: float(value) for name, value in measured.items()})
    return out


def test_golden_training_step():
    """Three steps give the recorded values.

    The recorded values are those of jax 0.10.2. Compilers sum in different orders: jax 0.12 differs
    by 1e-7, and other instruction sets may by a little more, since Adam divides by a square root. A
    wrong key, rate, decay or clip moves the third loss by 1e-3 or more.
    """
    found = run(3)
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 3
    for step, expected in zip(found, golden, strict=True):
        assert step.keys() == expected.keys()
        for name, value in expected.items():
            assert step[name] == pytest.approx(value, rel=1e-5), name


def test_noise_of_a_step_is_that_of_its_key():
    """Loss and gradient norm are those of the bare model under whole-tree samples."""
    config, _, state, train_step = setup()
    _, cls = MODELS[config.model.name]
    bare, params = nnx.split(cls(model_config(config), rngs=nnx.Rngs(config.seed)))
    transform = param_transform(configs.rules(config))
    bits = transform.init(params)
    tokens = jnp.asarray(batch(), jnp.int32)

    def loss(params, step):
        sampled = transform.sample(params, bits, keys.step_key(KEY, step))
        return cross_entropy(nnx.merge(bare, sampled)(tokens[:, :-1]), tokens[:, 1:])

    losses = []
    for at in (0, 5):
        start = state._replace(step=np.int32(at))
        expected, gradient = jax.jit(jax.value_and_grad(loss))(params, at)
        after, measured = train_step(start, batch(), KEY)
        assert int(after.step) == at + 1
        norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient)))
        assert float(measured["loss"]) == pytest.approx(float(expected), rel=1e-6)
        assert float(measured["grad_norm"]) == pytest.approx(norm, rel=1e-4)
        assert [float(measured[f"bits_{n}"]) for n in ("mean", "min", "max")] == [6.0, 6.0, 6.0]
        losses.append(float(expected))
    assert losses[0] != losses[1]


@pytest.mark.parametrize("method", list(configs.METHODS))
def test_every_method_learns(method):
    measured = run(60, method)
    assert measured[0]["loss"] > 4.5 and measured[-1]["loss"] < 1.5
    if method == "bf16":
        assert measured[0].keys() == {"loss", "grad_norm"}
    else:
        assert measured[0]["bits_mean"] == 6.0 and measured[-1]["bits_mean"] < 5.95


def test_evaluation_rounds_what_the_rules_name():
    config, graph, state, _ = setup()
    batches = np.stack([batch(0), batch(1)])
    loss = evaluate.make_loss(graph, batches)
    losses = evaluate.table(config, loss, state.params)

    @jax.jit
    def by_hand(params):
        model = nnx.merge(graph, params)
        parts = [cross_entropy(model(b[:, :-1]), b[:, 1:]) for b in batches.astype(np.int32)]
        return sum(parts) / 2

    assert losses["master"] == pytest.approx(float(by_hand(state.params)), rel=1e-6)
    rounded = quantize(steps.weights(state.params), configs.rules(config), "float4_e2m1fn")
    rounded = nnx.merge_state(state.params, rounded)
    assert losses["fp4_e2m1"] == pytest.approx(float(by_hand(rounded)), rel=1e-6)
    names = ["master", "bf16", "fp8_e4m3", "fp6_e3m2", "fp4_e2m1", "mixed"]
    # At b_t = 6 every block takes E4M7, whose mantissa is that of BF16.
    assert losses["mixed"] == pytest.approx(losses["bf16"], rel=1e-5)
    assert len({losses[name] for name in names[:5]}) == 5
    assert losses["mean_bits"] == 6.0 and losses["formats"] == {"E4M7": 1.0}
    shown = evaluate.format_table(losses)
    assert all(f"{losses[name]:.4f}" in shown for name in names)


def test_bit_widths_are_found_by_parameter_path():
    config, _, state, _ = setup()
    b_t = steps.bit_widths(state.params, configs.rules(config))
    assert b_t["h"]["attn"]["q"]["kernel"].shape == (2, 1, 1)
    assert b_t["h"]["mlp"]["down"]["kernel"].shape == (2, 2, 1)
    assert float(bitwidth.statistics(b_t)["min"]) == 6.0
    assert set(b_t) == {"h"}


# The command.


def start(*arguments):
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests"),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "pqt_jax.train", "--config", "tests/tiny.py"]
    return subprocess.Popen(
        [*command, *map(str, arguments)], cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True
    )


def end(process, code=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return out, err


def wait_for(process, text):
    """Read lines until one begins with a text."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if line.startswith(text):
            return
        assert line, process.stderr.read()
    raise AssertionError(f"no {text!r} in time")


def saved_leaves(workdir):
    """Every array and number of the newest checkpoint, read without the trainer."""
    with ocp.CheckpointManager((workdir / "checkpoints").absolute()) as manager:
        step = manager.latest_step()
        items = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = manager.restore(step, args=items)["state"]
    position = next((workdir / "checkpoints" / str(step) / "data").iterdir()).read_text()
    leaves = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(state)}
    return step, leaves, json.loads(position)


def timeless(records):
    return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records]


@pytest.mark.slow  # five processes that train
def test_interrupted_and_killed_runs_end_where_a_straight_run_does(tmp_path):
    text = f"--config.data.files={tiny.write_text(tmp_path / 'text.txt')}"
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    long = "--config.steps=40"
    whole = start("--workdir", straight, text, long)

    first = start("--workdir", broken, text, long)
    wait_for(first, "step=5 ")
    first.send_signal(signal.SIGTERM)
    out, _ = end(first, 128 + signal.SIGTERM)
    assert "run the command again to go on" in out
    stopped = int(out.split("stopped at step ")[1].split()[0])
    assert 5 <= stopped < 40
    assert max(r["step"] for r in metrics.read(broken / "metrics.jsonl")) == stopped

    second = start("--workdir", broken, text, long)
    wait_for(second, f"resumed from step {stopped} of 40")
    wait_for(second, f"step={min(stopped + 6, 38)} ")
    second.kill()
    second.communicate()
    killed = metrics.read(broken / "metrics.jsonl")[-1]["step"]

    third = start("--workdir", broken, text, long)
    out, _ = end(third)
    resumed = int(out.split("resumed from step ")[1].split()[0])
    assert stopped <= resumed <= killed

    whole_out, _ = end(whole)
    step, leaves, position = saved_leaves(straight)
    other_step, other_leaves, other_position = saved_leaves(broken)
    assert step == other_step == 40 and position == other_position
    assert leaves.keys() == other_leaves.keys() and len(leaves) > 40
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, other_leaves[path], err_msg=path)
    records = [timeless(metrics.read(w / "metrics.jsonl")) for w in (straight, broken)]
    assert records[0] == records[1]
    check_outputs(straight, whole_out, 40)

    out, _ = end(start("--workdir", broken, text, long))
    assert "finished: all 40 steps are done" in out and "learned mixed bits" in out
    assert "step=" not in out
    _, err = end(start("--workdir", broken, text, long, "--config.seed=1"), 2)
    assert err.startswith("error: --workdir") and "config.seed was 0 and is 1" in err


def check_outputs(workdir, out, count):
    records = metrics.read(workdir / "metrics.jsonl")
    logged = [r for r in records if "loss" in r]
    assert [r["step"] for r in logged] == list(range(1, count + 1))
    names = "step loss tokens tokens_per_s lr grad_norm bits_mean bits_min bits_max"
    assert all(set(r) == set(names.split()) for r in logged)
    assert [r["tokens"] for r in logged] == [64 * i for i in range(1, count + 1)]
    assert logged[0]["lr"] == pytest.approx(1e-2 / 3)
    assert max(r["lr"] for r in logged) == pytest.approx(1e-2)
    assert logged[-1]["loss"] < logged[0]["loss"] - 1
    assert logged[0]["bits_mean"] == 6.0 > logged[-1]["bits_mean"]
    validated = [r for r in records if "validation_loss" in r]
    assert [r["step"] for r in validated] == list(range(4, count + 1, 4))
    summary = json.loads((workdir / "summary.json").read_text())
    losses = "master bf16 fp8_e4m3 fp6_e3m2 fp4_e2m1 mixed mean_bits formats"
    assert set(summary) == {*losses.split(), "method", "steps", "seconds", "tokens_per_s", "config"}
    assert summary["master"] == pytest.approx(validated[-1]["validation_loss"])
    assert summary["steps"] == count and summary["tokens_per_s"] > 0
    for name in ("loss.png", "bits.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert f"config.steps={count}\n" in out
    assert "BF16" in out and f"{summary['fp4_e2m1']:.4f}" in out
    assert json.loads((workdir / "run.json").read_text())["config"]["steps"] == count


def test_bf16_and_gpt2_run_to_the_end_in_process(tmp_path, capsys):
    text = tiny.write_text(tmp_path / "text.txt")
    (tmp_path / "gpt2.py").write_text(
        "import tiny\ndef get_config(): return tiny.get_config(tiny.GPT2)\n"
    )
    code = train.main(
        [
            f"--config={tmp_path / 'gpt2.py'}",
            f"--workdir={tmp_path / 'run'}",
            f"--config.data.files={text}",
            "--config.method=bf16",
            "--config.steps=5",
            "--config.log.every=2",
        ]
    )
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mixed"] is summary["mean_bits"] is summary["formats"] is None
    assert summary["fp4_e2m1"] != summary["master"]
    logged = [r for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in logged] == [2, 4, 5]
    assert logged[0]["bits_mean"] is None
    assert not (tmp_path / "run" / "bits.png").exists()
    assert "FP4 E2M1" in capsys.readouterr().out


def main(tmp_path, *arguments):
    text = tiny.write_text(tmp_path / "text.txt")
    config = f"--config={ROOT / 'tests' / 'tiny.py'}"
    given = [config, f"--workdir={tmp_path / 'run'}", f"--config.data.files={text}", *arguments]
    return train.main(given)


def test_a_run_that_diverged_ends_with_a_summary(tmp_path, capsys):
    arguments = ("--config.steps=6", "--config.optimizer.learning_rate=1e30")
    assert main(tmp_path, *arguments) == 0
    assert " nan" in capsys.readouterr().out
    refuse = lambda name: pytest.fail(f"{name} is not JSON")  # noqa: E731
    summary = (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(summary, parse_constant=refuse)["master"] is None
    for name in ("loss.png", "bits.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    assert main(tmp_path, *arguments) == 0
    out = capsys.readouterr().out
    assert "finished: all 6 steps are done" in out and "learned mixed bits" in out


def test_pictures_of_nothing(tmp_path):
    plot.loss(tmp_path / "loss.png", [], "nothing")
    plot.bits(tmp_path / "bits.png", [{"step": 1, "bits_mean": 4.0}], {}, "nothing")
    assert all((tmp_path / n).read_bytes().startswith(b"\x89PNG") for n in ("loss.png", "bits.png"))


def test_damaged_files_of_a_finished_run_are_made_again(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(tmp_path, "--config.steps=8") == 0
    before, records = json.loads((run / "summary.json").read_text()), run / "metrics.jsonl"
    (run / "summary.json").write_text("{")
    files = [p for p in (run / "checkpoints" / "8").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    records.write_text("broken\n" + records.read_text())
    capsys.readouterr()
    assert main(tmp_path, "--config.steps=8") == 0
    out, err = capsys.readouterr()
    assert "checkpoint of step 8 cannot be read (" in err and "going on from step 4" in err
    assert "resumed from step 4 of 8" in out
    assert [r["step"] for r in metrics.read(records) if "loss" in r] == list(range(1, 9))
    assert len(metrics.read(records)) == len(records.read_text().splitlines())
    after = json.loads((run / "summary.json").read_text())
    assert {k: v for k, v in after.items() if k not in ("seconds", "tokens_per_s")} == {
        k: v for k, v in before.items() if k not in ("seconds", "tokens_per_s")
    }

    for path in (run / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    (run / "summary.json").unlink()
    assert main(tmp_path, "--config.steps=8") == 2
    assert f"error: no checkpoint in {run / 'checkpoints'} can be read" in capsys.readouterr().err


def test_a_signal_during_preparation_ends_the_run_in_order(tmp_path, capsys, monkeypatch):
    def interrupt(function):
        def interrupted(*args, **options):
            signal.raise_signal(signal.SIGTERM)
            return function(*args, **options)

        return interrupted

    with monkeypatch.context() as patch:
        patch.setattr(steps, "init_state", interrupt(steps.init_state))
        assert main(tmp_path) == 128 + signal.SIGTERM
    out = capsys.readouterr().out
    assert "stopped at step 0 of 60" in out and "ready" not in out
    monkeypatch.setattr(steps, "make_train_step", interrupt(steps.make_train_step))
    assert main(tmp_path) == 128 + signal.SIGTERM
    assert "stopped at step 1 of 60" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()


def test_format_shares_count_weights():
    config = tiny.get_config()
    config.model.d_ff, config.pqt.block, config.pqt.target_bits = 96, (64, 64), 2.0
    _, state = steps.init_state(config, steps.make_optimizer(config))
    params = nnx.to_pure_dict(state.params)
    bits = params["h"]["pqt_bits"]["mlp"]["down"]
    # down is 96 × 32: a block of 64 rows, sent to E2M1 in both layers, and one of 32.
    bits["kernel"] = jnp.asarray(bits["kernel"]).at[:, 0].set(0.0)
    nnx.replace_by_pure_dict(state.params, params)
    share = 2 * 64 * 32 / (2 * (4 * 32 * 32 + 3 * 32 * 96))
    found = evaluate.format_shares(config, state.params)
    assert found == pytest.approx({"E2M1": share, "E4M7": 1 - share})


BAD = {
    "no such file": "--config.data.files=/nowhere/text.txt",
    "no match": "--config.data.files=/nowhere/*.txt",
    "typo": "--config.optimizer.learnin_rate=1",
    "method": "--config.method=int4",
    "pattern": "--config.pqt.pattern=layers/.*",
    "vectors": "--config.pqt.pattern=norm/scale",
    "everything": "--config.pqt.pattern=.*",
    "stacked vectors": "--config.pqt.pattern=.*norm.*",
    "no GPU": "--config.model.attention=cudnn",
    "workdir": "--workdir=/dev/null/run",
    "config": "--config=configs/missing.py",
}


@pytest.mark.parametrize("argument", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_compiles_nothing(tmp_path, capsys, argument):
    compiled = []
    listen = lambda name, seconds, **_: compiled.append(name)  # noqa: E731
    text = tiny.write_text(tmp_path / "text.txt")
    workdir = tmp_path / "run"
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        code = train.main(
            [
                f"--config={ROOT / 'tests' / 'tiny.py'}",
                f"--workdir={workdir}",
                f"--config.data.files={text}",
                argument,
            ]
        )
    finally:
        jax.monitoring.clear_event_listeners()
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    if "pattern" in argument:
        assert err.startswith("error: config.pqt.pattern=")
    assert not [name for name in compiled if "backend_compile" in name]
    assert not workdir.exists()


def test_short_and_empty_text_in_a_process_of_its_own(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    tiny.write_text(tmp_path / "short.txt", 100)  # its last twentieth is shorter than a sequence
    run = f"--workdir={tmp_path / 'run'}"
    processes = {
        "is empty": start(run, f"--config.data.files={tmp_path / 'empty.txt'}"),
        "the validation text has only 5 bytes": start(
            run, f"--config.data.files={tmp_path / 'short.txt'}"
        ),
    }
    for message, process in processes.items():
        out, err = end(process, 2)
        assert out == "" and err.startswith("error: config.data.") and message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_optimizer_knows_weights_from_bits():
    """One step of zero gradient moves weights and bits by their own decay alone."""
    config = tiny.get_config()
    config.optimizer.warmup_steps = 0
    optimizer = steps.make_optimizer(config)
    _, state = steps.init_state(config, optimizer)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    updates, _ = jax.jit(optimizer.update)(zeros, state.opt_state, state.params)
    old, new = (nnx.to_pure_dict(tree)["h"] for tree in (state.params, updates))
    kernel = ("attn", "q", "kernel")
    at = lambda tree, path: tree[path[0]][path[1]][path[2]]  # noqa: E731
    np.testing.assert_allclose(at(new, kernel), -1e-2 * 0.1 * at(old, kernel), rtol=1e-5)
    b_i = at(new["pqt_bits"], kernel)
    np.testing.assert_allclose(b_i, -config.pqt.learning_rate * config.pqt.weight_decay, rtol=1e-5)
    assert not np.asarray(new["attn_norm"]["scale"]).any()


def test_batches_of_a_run_are_those_of_its_seed(tmp_path):
    tokens = np.frombuffer(tiny.write_text(tmp_path / "text.txt").read_bytes(), np.uint8)
    first = [next(pipeline.train_batches(tokens, length=16, batch=4, seed=s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(first[0], first[1])
    assert (first[0] != first[2]).any()
