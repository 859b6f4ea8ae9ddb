# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""DiffQ, against its formulas in float64 NumPy, one weight at a time, and as a run."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from pqt_jax import BitParam, evaluate, export, generate
from pqt_jax.models import Llama2, partitioning
from pqt_jax.numerics import keys
from pqt_jax.quantization.diffq_sizes import diffq_sizes
from pqt_jax.training import methods
from pqt_jax.training import state as states
from pqt_jax.training.loss import cross_entropy
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.run import metrics
from pqt_jax.training.step import build_train_step
from pqt_jax.transform import bit_state, diffq
from pqt_jax.transform.tree_paths import map_paths, paths_and_leaves
from support import tiny
from support.command import main, refused

perturb = jax.jit(diffq.perturb, static_argnums=(3, 4))
quantize = jax.jit(diffq.quantize, static_argnums=2)
SHAPES = [(16, 6), (19, 5), (3, 20, 4), (2, 3, 7, 3)]  # whole groups; a ragged last one; stacks
SLOWER = [*(pytest.param(s, marks=pytest.mark.slow) for s in SHAPES[:2]), *SHAPES[2:]]


def noise_key():
    return jax.random.key(11)


def width(logit, low=2.0, high=15.0):
    s = 1 / (1 + math.exp(-logit))
    return s * high + (1 - s) * low


def by_weight(function, w, logits, group=8):
    """`function(weight, min, max, logit)` of every weight, float64."""
    out = np.empty(w.shape)
    for index in np.ndindex(*w.shape):
        *lead, i, j = index
        matrix = w[tuple(lead)]
        out[index] = function(w[index], matrix.min(), matrix.max(), logits[(*lead, i // group, j)])
    return out


def steps_of(w, logits, group=8):
    return by_weight(
        lambda x, low, high, logit: (high - low) / (2 ** width(logit) - 1), w, logits, group
    )


def inputs(shape, group=8, seed=0):
    rng = np.random.default_rng(seed)
    groups = (*shape[:-2], -(-shape[-2] // group), shape[-1])
    w = (rng.normal(size=shape) * 0.3 + 0.1).astype(np.float32)
    return w, rng.normal(size=groups).astype(np.float32) * 1.5


@pytest.mark.parametrize("noise", diffq.NOISES)
@pytest.mark.parametrize("shape", SLOWER)
def test_a_weight_moves_by_noise_times_the_step_of_its_group(shape, noise):
    w, logits = inputs(shape)
    options = diffq.Options(noise=noise)
    found = perturb(jnp.asarray(w), jnp.asarray(logits), noise_key(), options)
    assert found.dtype == jnp.float32
    draw = {"normal": lambda: jax.random.normal(noise_key(), shape) / 2}
    r = draw.get(noise, lambda: jax.random.uniform(noise_key(), shape) - 0.5)()
    wide = w.astype(np.float64)
    expected = wide + np.asarray(r, np.float64) * steps_of(wide, logits)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)
    rounded = perturb(jnp.asarray(w), jnp.asarray(logits), noise_key(), options, jnp.bfloat16)
    np.testing.assert_array_equal(rounded, found.astype(jnp.bfloat16))


def test_noise_has_the_laws_it_is_said_to_have():
    """Moments and range over 2^18 draws, within five standard errors."""
    w, n = jnp.zeros((512, 512)).at[0, 0].set(1.0), 2**18
    options = diffq.Options(min_bits=1.0)
    logits = jnp.full((64, 512), -jnp.inf)  # b is 1, and the step is the range, 1
    for noise, variance, fourth in (("normal", 1 / 4, 3 / 16), ("uniform", 1 / 12, 1 / 80)):
        r = perturb(w, logits, noise_key(), options._replace(noise=noise)) - w
        r = np.asarray(r, np.float64)
        assert abs(r.mean()) < 5 * (variance / n) ** 0.5
        assert abs((r**2).mean() - variance) < 5 * ((fourth - variance**2) / n) ** 0.5
        assert (np.abs(r).max() <= 0.5) == (noise == "uniform")
        within = np.mean(np.abs(r) < 0.25)  # half a standard deviation; half of the width
        expected = math.erf(0.5 / 2**0.5) if noise == "normal" else 0.5
        assert abs(within - expected) < 5 * 0.5 / n**0.5
        shifted = np.mean(r[:, 1:] * r[:, :-1])
        assert abs(shifted) < 5 * variance / n**0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_formulas(shape):
    """To the logits by differences in float64; to the weights straight, past the range."""
    w, logits = inputs(shape)
    c = np.random.default_rng(1).normal(size=shape)
    r = np.asarray(perturb(jnp.asarray(w), jnp.asarray(logits), noise_key()), np.float64) - w
    r /= steps_of(w.astype(np.float64), logits)

    def loss(w, logits):
        return jnp.sum(jnp.asarray(c, jnp.float32) * perturb(w, logits, noise_key()))

    to_w, to_logits = jax.grad(loss, (0, 1))(jnp.asarray(w), jnp.asarray(logits))
    np.testing.assert_array_equal(to_w, c.astype(np.float32))
    wide, h = logits.astype(np.float64), 1e-5
    above, below = (c * r * steps_of(w.astype(np.float64), wide + d) for d in (h, -h))
    expected = np.zeros(logits.shape)
    for index in np.ndindex(*shape):
        *lead, i, j = index
        expected[(*lead, i // 8, j)] += (above[index] - below[index]) / (2 * h)
    np.testing.assert_allclose(to_logits, expected, rtol=1e-3, atol=1e-5)


def test_bit_widths_stay_between_their_ends_and_start_at_the_first():
    logits = jnp.concatenate([jnp.linspace(-90, 90, 20001), jnp.linspace(10, 20, 20001)])
    for low, high in ((2.0, 15.0), (1.0, 16.0), (3.3, 7.7)):
        options = diffq.Options(init_bits=5.5, min_bits=low, max_bits=high)
        b = np.asarray(diffq.bit_width(logits, options))
        assert np.float32(low) <= b.min() and b.max() <= np.float32(high)
        expected = [width(float(x), low, high) for x in logits[:20001:97]]
        np.testing.assert_allclose(b[:20001:97], expected, rtol=2e-6)
        first = diffq.bit_width(diffq.init("kernel", (8, 2), options), options)
        np.testing.assert_allclose(first, 5.5, rtol=1e-6)


@pytest.mark.parametrize("group", [1, 3, 8, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_quantization_is_to_whole_levels_between_the_ends(shape, group):
    w, logits = inputs(shape, group)
    options = diffq.Options(group=group)

    def level(x, low, high, logit):
        step = (high - low) / (2 ** round(width(logit)) - 1)
        return low + step * np.round((x - low) / step)

    found = np.asarray(quantize(jnp.asarray(w), jnp.asarray(logits), options))
    expected = by_weight(level, w.astype(np.float64), logits, group)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    lead = (0,) * (len(shape) - 2)
    top = found[lead].max(), found[lead].min()
    np.testing.assert_allclose(top, (w[lead].max(), w[lead].min()), rtol=1e-6)


def test_there_are_two_to_the_b_levels():
    w = jnp.linspace(-1.0, 3.0, 4001).reshape(-1, 1)
    for b in (2, 3, 5, 8):
        logits = jnp.full((501, 1), math.log((b - 2.2) / (15 - b + 0.2)) if b > 2 else -jnp.inf)
        assert len(np.unique(quantize(w, logits).round(5))) == 2**b
    flat = jnp.full((8, 2), 0.3)
    for function in (quantize, lambda *x: perturb(*x, noise_key())):
        np.testing.assert_array_equal(function(flat, jnp.zeros((1, 2))), flat)


def test_sizes_count_each_weight_once():
    shapes = {"a": (16, 6), "b": (19, 5), "c": (3, 20, 4), "embedding": (10, 21)}
    rng, params, logits = np.random.default_rng(2), {}, {}
    for path, shape in shapes.items():
        params[path], first = jnp.ones(shape), diffq.init(path, shape)
        logits[path] = jnp.asarray(rng.normal(size=first.shape), jnp.float32)
    assert logits["embedding"].shape == (10, 3) and logits["c"].shape == (3, 3, 4)
    params["left"] = jnp.ones((4, 4))
    on_host = jax.tree.map(np.asarray, logits)  # one element of a JAX array takes 1 ms

    def logit(path, index):
        along = len(index) - (1 if path == "embedding" else 2)
        return float(on_host[path][(*index[:along], index[along] // 8, *index[along + 1 :])])

    each = {p: [logit(p, i) for i in np.ndindex(*shape)] for p, shape in shapes.items()}
    expected = sum(width(x) for values in each.values() for x in values) / 8 / 2**20
    assert float(diffq.size_mb(params, logits)) == pytest.approx(expected, rel=1e-6)
    gradient = jax.grad(lambda x: diffq.size_mb(params, x))(logits)
    s = 1 / (1 + math.exp(-logit("b", (18, 2))))  # a ragged group of three
    want = 3 * 13 * s * (1 - s) / 2**23
    assert float(gradient["b"][2, 2]) == pytest.approx(want, rel=1e-5)
    sizes = diffq_sizes(params, logits)
    for path, shape in shapes.items():
        assert sizes[path].weights == math.prod(shape)
        assert sizes[path].codes == sum(round(width(x)) for x in each[path])
        assert sizes[path].scales == 64 * (3 if path == "c" else 1)
        assert sizes[path].tags == 4 * logits[path].size
    narrow = diffq.Options(min_bits=2.0, max_bits=4.0, init_bits=3.0)
    assert diffq_sizes(params, logits, narrow)["a"].tags == 2 * logits["a"].size


def test_logits_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"logits of shape \(3, 5\) for w of shape \(16, 5\) in"):
        diffq.perturb(jnp.ones((16, 5)), jnp.ones((3, 5)), noise_key())


def test_noise_is_that_of_the_key_and_the_path_alone():
    """Neither other parameters nor more layers in a stack change it."""
    sample = jax.jit(diffq.sample)
    w, logits = (jnp.asarray(x) for x in inputs((3, 20, 4)))
    whole = sample({"a": {"w": w}, "b": w}, {"a": {"w": logits}, "b": logits}, noise_key())
    alone = perturb(w, logits, keys.param_key(noise_key(), "a/w"))
    np.testing.assert_array_equal(whole["a"]["w"], alone)
    assert (np.asarray(whole["b"]) != np.asarray(alone)).mean() > 0.9
    fewer = sample({"b": w[:2]}, {"b": logits[:2]}, noise_key())
    np.testing.assert_array_equal(fewer["b"], whole["b"][:2])
    assert (np.asarray(whole["b"][0] - w[0]) != np.asarray(whole["b"][1] - w[1])).mean() > 0.9


# A run.


def setup(model=tiny.LLAMA2, **fields):
    config = tiny.get_config(model)
    config.method = "diffq"
    config.update_from_flattened_dict({name.replace("__", "."): x for name, x in fields.items()})
    optimizer = make_optimizer(config)
    graph, state = states.init_state(config, optimizer)
    return config, graph, state, build_train_step(config, graph, optimizer)


def batch(i=0, rows=4):
    return (np.arange(rows * 17).reshape(rows, 17) * (i + 3) % 101).astype(np.uint8)


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("chunk, dtype", [(0, "float32"), (4, "bfloat16")])
def test_a_step_is_that_of_the_bare_model_under_sampled_weights(chunk, dtype):
    model = dataclasses.replace(tiny.LLAMA2, dtype=dtype)
    config, _, state, train_step = setup(model, data__loss_chunk=chunk, diffq__penalty=0.5)
    cls = Llama2
    bare, of_seed = nnx.split(cls(model, rngs=nnx.Rngs(config.seed)))
    params = bit_state.weights(state.params)
    for path, leaf in paths_and_leaves(of_seed).items():
        np.testing.assert_allclose(paths_and_leaves(params)[path], leaf, rtol=1e-6, atol=1e-8)
    state = jax.tree.map(jnp.copy, state)  # a step donates what it is given
    tokens, logits = jnp.asarray(batch(), jnp.int32), bit_state.collect_logits(state.params)

    def loss(params):
        hats = diffq.sample(params, logits, keys.step_key(noise_key(), 0))
        return cross_entropy(nnx.merge(bare, hats)(tokens[:, :-1]), tokens[:, 1:])

    expected, gradient = jax.jit(jax.value_and_grad(loss))(params)
    norm = float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))))
    _, measured = train_step(state, batch(), noise_key())
    assert float(measured["loss"]) == pytest.approx(float(expected), rel=1e-6)
    assert float(measured["grad_norm"]) == pytest.approx(norm, rel=2e-2 if chunk else 1e-5)
    stats = [float(measured[f"bits_{name}"]) for name in ("mean", "min", "max")]
    assert stats == pytest.approx([8.0] * 3, rel=1e-6)
    # 14 matrices at 8 bits, half a nat for each MB of 2^20 bytes
    weights = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    assert float(measured["penalty"]) == pytest.approx(0.5 * weights / 2**20, rel=1e-6)


@pytest.mark.slow
def test_logits_move_by_an_adam_of_their_own():
    """The first step of Adam is its rate: no warm-up, no decay, no share of the clipping.

    The penalty is large, so that no gradient is next to Adam's epsilon.
    """
    fields = {"diffq__learning_rate": 0.25, "diffq__penalty": 1e5}
    _, _, state, train_step = setup(**fields, optimizer__clip_norm=1e-6)
    before = paths_and_leaves(jax.device_get(bit_state.collect_logits(state.params)))
    after, _ = train_step(state, batch(), noise_key())
    for path, leaf in paths_and_leaves(bit_state.collect_logits(after.params)).items():
        assert leaf.shape == (2, before[path].shape[1], before[path].shape[2])
        np.testing.assert_allclose(leaf, before[path] - 0.25, rtol=1e-5)


@pytest.mark.slow
def test_it_learns_and_a_penalty_drives_its_bits_down():
    ends = {}
    for penalty in (0.0, 100.0):
        _, _, state, train_step = setup(diffq__penalty=penalty, diffq__learning_rate=0.05)
        for i in range(60):
            state, measured = train_step(state, batch(i % 3), noise_key())
        ends[penalty] = {name: float(value) for name, value in measured.items()}
        assert ends[penalty]["loss"] < 1.5
    assert "penalty" not in ends[0.0]
    assert ends[100.0]["bits_mean"] < 5.0 < ends[0.0]["bits_mean"]
    assert 2.0 <= ends[100.0]["bits_min"] and ends[0.0]["bits_max"] <= 15.0


@SLOW
def test_noise_of_a_microbatch_is_that_of_its_key():
    losses = {}
    for per in ("step", "microbatch"):
        _, graph, state, train_step = setup(data__microbatches=2, pqt__noise_per=per)
        losses[per] = float(train_step(state, batch(), noise_key())[1]["loss"])
    assert losses["step"] != losses["microbatch"]
    config, graph, state, _ = setup()
    expected = []
    for part in range(2):
        key = jax.random.fold_in(keys.step_key(noise_key(), 0), part)
        weights = methods.get_method(config).make_sampler(config)(state.params, key)
        tokens = jnp.asarray(batch()[part::2], jnp.int32)
        logits = jax.jit(lambda w, x: nnx.merge(graph, w)(x))(weights, tokens[:, :-1])
        expected.append(cross_entropy(logits, tokens[:, 1:]))
    assert losses["microbatch"] == pytest.approx(np.mean(expected), rel=1e-6)


def test_logits_are_no_bits_of_blocks():
    config, _, state, _ = setup(pqt__pattern="h/mlp/down/kernel|embed/embedding")
    assert bit_state.collect_bits(state.params) == {}
    assert bit_state.bit_widths(state.params, methods.make_rules(config)) == {}
    assert bit_state.has_bits(state.params)
    found = paths_and_leaves(bit_state.collect_logits(state.params))
    shapes = {path: leaf.shape for path, leaf in found.items()}
    assert shapes == {"h/mlp/down/kernel": (2, 8, 32), "embed/embedding": (256, 4)}
    assert not jax.tree.leaves(nnx.filter_state(bit_state.weights(state.params), BitParam))


SIZES = [pytest.param(n, marks=SLOW) for n in [(2, 2, 2)]]
WIDE = dataclasses.replace(tiny.LLAMA2, d_model=64, num_heads=4, d_ff=128, vocab_size=512)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_mesh_changes_neither_noise_nor_training(sizes):
    fields = {"data__batch": 8, "pqt__pattern": "h/.*/kernel|embed/embedding", "model__d_ff": 96}
    mesh = partitioning.make_mesh(*sizes)
    found = {}
    for name, on in (("alone", None), ("mesh", mesh)):
        with partitioning.use_mesh(on):
            config, _, state, train_step = setup(WIDE, **fields)
            sample = jax.jit(methods.get_method(config).make_sampler(config))
            # A step of 1: what is left is R alone, and w of 0 or 1.
            one = lambda path, x: jnp.zeros_like(x).at[..., 0, 0].set(1) if x.ndim > 1 else x  # noqa: E731
            hats = paths_and_leaves(sample(map_paths(one, state.params), noise_key()))
            w_hats = paths_and_leaves(sample(state.params, noise_key()))
            places = paths_and_leaves(bit_state.collect_logits(state.params))
            measured = []
            for i in range(3):
                state, values = train_step(
                    state, partitioning.put_batch(batch(i, 8), on), noise_key()
                )
                measured.append([float(values[n]) for n in ("loss", "grad_norm", "bits_min")])
        found[name] = jax.device_get((hats, w_hats)), measured
        if on is not None:
            for path, leaf in places.items():
                wanted = NamedSharding(mesh, partitioning.partition_spec(path, leaf.shape, mesh))
                assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), path
    for alone, split in zip(found["alone"][0], found["mesh"][0], strict=True):
        for path, leaf in alone.items():
            np.testing.assert_array_equal(split[path], leaf, err_msg=path)
    np.testing.assert_allclose(found["mesh"][1], found["alone"][1], rtol=1e-5)


def split_alike(path, shape):
    mesh = jax.sharding.AbstractMesh((1, 4, 2), partitioning.AXES)
    groups = diffq.init(path, shape).shape
    return partitioning.partition_spec(path, shape, mesh) == partitioning.partition_spec(
        f"pqt_bits/{path}", groups, mesh
    )


def test_logits_are_split_as_their_weights():
    assert split_alike("h/mlp/up/kernel", (2, 768, 3072))
    assert split_alike("h/mlp/down/kernel", (2, 3072, 768))
    assert split_alike("embed/embedding", (32000, 768))


DIFFQ = ("--config.method=diffq", "--config.diffq.penalty=100", "--config.diffq.learning_rate=0.1")


@pytest.mark.slow
def test_the_command_trains_resumes_and_prints_its_table(tmp_path, capsys):
    assert main(tmp_path, *DIFFQ, "--config.steps=12", "--config.diffq.group=5") == 0
    out = capsys.readouterr().out
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["method"] == "diffq" and summary["formats"] is None
    label = f"DiffQ's own bits ({summary['mean_bits']:.2f}: {summary['size_mb']:.4g} MB)"
    assert f"\n{label}" in out and f"{summary['mixed']:.4f}" in out and "learned mixed" not in out
    weights = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    groups = 2 * (6 * 7 * 32 + 13 * 32) + 2 * 7 * 64 * 2 - 2 * 2 * 7 * 32  # of five, ragged
    low = weights * 2 + 14 * 64 + 4 * groups
    assert low / 2**23 < summary["size_mb"] < (low + 13 * weights) / 2**23
    records = [r for r in metrics.read(run / "metrics.jsonl") if "loss" in r]
    assert records[0]["bits_mean"] == pytest.approx(8.0) and records[0]["penalty"] > 0
    assert records[-1]["bits_mean"] < 7.5
    assert (run / "bits.png").read_bytes().startswith(b"\x89PNG")

    # The same to the last bit after an interruption.
    (run / "summary.json").unlink()
    (run / "checkpoints" / "12").rename(tmp_path / "gone")
    assert main(tmp_path, *DIFFQ, "--config.steps=12", "--config.diffq.group=5") == 0
    assert "resumed from step 8 of 12" in capsys.readouterr().out
    again = json.loads((run / "summary.json").read_text())
    assert {k: v for k, v in again.items() if k not in ("seconds", "tokens_per_s")} == {
        k: v for k, v in summary.items() if k not in ("seconds", "tokens_per_s")
    }
    assert main(tmp_path, *DIFFQ, "--config.steps=12", "--config.diffq.group=5") == 0
    assert label in capsys.readouterr().out  # of a finished run

    given = [f"--workdir={run}", f"--json={tmp_path / 'a.json'}"]
    assert evaluate.main([*given, "--weights=mixed,fp4_e2m1"]) == 0
    out = capsys.readouterr().out
    assert "DiffQ's own bits " in out and "FP4 E2M1" in out
    losses = json.loads((tmp_path / "a.json").read_text())["weights"]
    assert len({losses[name]["loss"]["value"] for name in losses}) == 3
    assert generate.main([f"--workdir={run}", "--weights=mixed", "--tokens=4"]) == 0
    message = refused(
        export.main, [f"--workdir={run}", "--format=mixed", f"--out={tmp_path}/out"], capsys
    )
    assert message.startswith("error: --format=mixed: DiffQ's own bits are levels between a matrix")
    assert export.main([f"--workdir={run}", "--format=fp6_e3m2", f"--out={tmp_path}/out"]) == 0


@pytest.mark.slow
def test_a_run_that_diverged_ends_with_a_table(tmp_path, capsys):
    wild = ("--config.optimizer.learning_rate=1e30", "--config.diffq.learning_rate=1e30")
    assert main(tmp_path, *DIFFQ, "--config.steps=6", *wild) == 0
    out, err = capsys.readouterr()
    assert "DiffQ's own bits (" in out and "step 2 is skipped" in err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 2 <= summary["mean_bits"] <= 15 and summary["size_mb"] > 0
