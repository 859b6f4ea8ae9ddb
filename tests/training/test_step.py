# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The pure training step: against its definition, and against recorded values."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax import param_transform
from pqt_jax.models import build_model
from pqt_jax.models.registry import model_config
from pqt_jax.numerics import bit_width, keys
from pqt_jax.training import methods
from pqt_jax.training import state as states
from pqt_jax.training.config import schema
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.loss import cross_entropy
from pqt_jax.training.methods import METHODS
from pqt_jax.training.methods.sampling_rules import KERNEL_PATTERNS
from pqt_jax.training.optimizer import count_fixed_steps, make_optimizer, make_schedule
from pqt_jax.training.phases import list_phases
from pqt_jax.training.step import build_train_step
from pqt_jax.transform import bit_state
from pqt_jax.transform.nnx_wrapper import BitParam
from pqt_jax.transform.tree_paths import map_paths, paths_and_leaves
from support import tiny
from support.paths import GOLDEN

pytestmark = pytest.mark.jax_version

GOLDEN_STEP = GOLDEN / "train_step.json"
INSIDE = [name for name, method in METHODS.items() if method.make_sampler is None]
FIRST = [pytest.param(n, marks=() if n == "gaussws" else pytest.mark.slow) for n in INSIDE]


def noise_key():
    return jax.random.key(7)


@functools.cache
def setup(method="gaussws", **fields):
    """Config, structure, initial state (as numpy: a step donates what it is given) and step."""
    config = tiny.get_config(tiny.GPT2 if method == "gpt2" else tiny.LLAMA2)
    config.method = "gaussws" if method == "gpt2" else method
    config.pqt.dtype = "float6_e3m2fn" if method == "ste" else "bfloat16"
    for name, value in fields.items():
        section, _, name = name.partition("__")
        config[section][name] = value
    optimizer = make_optimizer(config)
    graph, state = states.init_state(config, optimizer)
    state = jax.tree.map(np.asarray, state)
    return config, graph, state, build_train_step(config, graph, optimizer)


def batch(i=0):
    return (np.arange(4 * 17).reshape(4, 17) * (i + 3) % 101).astype(np.uint8)


def run(count, method="gaussws"):
    _, _, state, train_step = setup(method)
    out = []
    for i in range(count):
        state, measured = train_step(state, batch(i % 3), noise_key())
        out.append({name: float(value) for name, value in measured.items()})
    return out


def test_golden_training_step():
    """Three steps give the recorded values.

    The recorded values are those of jax 0.10.2. Compilers sum in different orders: jax 0.12 differs
    by 1e-7, and other instruction sets may by a little more, since Adam divides by a square root. A
    wrong key, rate, decay or clip moves the third loss by 1e-3 or more.
    """
    found = run(3)
    golden = json.loads(GOLDEN_STEP.read_text())
    assert len(golden) == 3
    for step, expected in zip(found, golden, strict=True):
        assert step.keys() == expected.keys()
        for name, value in expected.items():
            assert step[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        *(pytest.param(x.values[0], (), marks=x.marks) for x in FIRST),
        ("ste", (("pqt__round_share", 0.5), ("pqt__block", (8, 8)))),
    ],
)
def test_weights_of_a_step_are_those_of_its_key(method, fields):
    """Loss and gradient norm are those of the bare model under whole-tree samples."""
    config, _, state, train_step = setup(method, **dict(fields))
    bare, params = nnx.split(build_model(model_config(config), rngs=nnx.Rngs(config.seed)))
    transform = param_transform(methods.make_rules(config))
    bits = transform.init(params)
    tokens = jnp.asarray(batch(), jnp.int32)

    def loss(params):
        return cross_entropy(nnx.merge(bare, params)(tokens[:, :-1]), tokens[:, 1:])

    def sampled_loss(params, step):
        return loss(transform.sample(params, bits, keys.step_key(noise_key(), step)))

    losses = {float(jax.jit(loss)(params))}
    for at in (0, 5):
        start = state._replace(step=np.int32(at))
        expected, gradient = jax.jit(jax.value_and_grad(sampled_loss))(params, at)
        after, measured = train_step(start, batch(), noise_key())
        assert int(after.step) == at + 1
        norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient)))
        assert float(measured["loss"]) == pytest.approx(float(expected), rel=1e-6)
        assert float(measured["grad_norm"]) == pytest.approx(norm, rel=1e-4)
        if METHODS[method].learns_bits:
            assert [float(measured[f"bits_{n}"]) for n in ("mean", "min", "max")] == [6.0] * 3
        losses.add(float(expected))
    # Every method sees other weights than the masters; without noise it sees the same each time.
    assert len(losses) == (3 if METHODS[method].learns_bits or fields else 2)


@pytest.mark.parametrize("method", FIRST)
def test_every_method_learns(method):
    measured = run(60, method)
    assert measured[0]["loss"] > 4.5 and measured[-1]["loss"] < 1.5
    if not METHODS[method].learns_bits:
        assert measured[0].keys() == {"loss", "grad_norm", "skipped", "in_a_row"}
    else:
        assert measured[0]["bits_mean"] == 6.0 and measured[-1]["bits_mean"] < 5.95


def test_bit_widths_are_found_by_parameter_path():
    config, _, state, _ = setup()
    b_t = bit_state.bit_widths(state.params, methods.make_rules(config))
    assert b_t["h"]["attn"]["q"]["kernel"].shape == (2, 1, 1)
    assert b_t["h"]["mlp"]["down"]["kernel"].shape == (2, 2, 1)
    assert float(bit_width.statistics(b_t)["min"]) == 6.0
    assert set(b_t) == {"h"}


def test_the_optimizer_knows_weights_from_bits():
    """One step of zero gradient moves weights and bits by their own decay alone."""
    config = tiny.get_config()
    config.optimizer.warmup_steps = 0
    state = setup()[2]  # of a config that has another rate only
    zeros = jax.tree.map(np.zeros_like, state.params)
    updates, _ = jax.jit(make_optimizer(config).update)(zeros, state.opt_state, state.params)
    old, new = (nnx.to_pure_dict(tree)["h"] for tree in (state.params, updates))
    kernel = ("attn", "q", "kernel")
    at = lambda tree, path: tree[path[0]][path[1]][path[2]]  # noqa: E731
    np.testing.assert_allclose(at(new, kernel), -1e-2 * 0.1 * at(old, kernel), rtol=1e-5)
    b_i = at(new["pqt_bits"], kernel)
    np.testing.assert_allclose(b_i, -config.pqt.learning_rate * config.pqt.weight_decay, rtol=1e-5)
    assert not np.asarray(new["attn_norm"]["scale"]).any()


def close(a, b, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), a, b)


@pytest.mark.slow
def test_a_step_in_parts_is_the_step():
    """The same noise, the same loss and gradients; sums in another order.

    ŵ is float32 here: the gradient of a bfloat16 one is rounded in each microbatch.
    """
    like = {"pqt__dtype": "float32"}
    _, _, state, train_step = setup("gaussws", **like)
    whole, expected = train_step(state, batch(), noise_key())
    for fields in (
        {"data__microbatches": 4, "data__loss_chunk": 4},
        {"data__loss_chunk": 2, "model__remat": True},
        {"data__loss_chunk": 16},
    ):
        _, _, state, train_step = setup("gaussws", **like, **fields)
        after, measured = train_step(state, batch(), noise_key())
        assert measured.keys() == expected.keys()
        close(dict(measured), dict(expected), rtol=2e-6)
        moments = lambda state: jax.tree.leaves(state.opt_state)  # noqa: E731
        for got, want in zip(moments(after), moments(whole), strict=True):
            scale = np.abs(np.asarray(want)).max()
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("penalty", ["none", "average"])
def test_bits_get_their_gradient_once_for_all_microbatches_of_one_noise(penalty):
    fields = {"pqt__pattern": "h/(attn/q|mlp/down)/kernel", "pqt__dtype": "float32"}
    fields |= {"pqt__penalty": penalty, "pqt__penalty_weight": 3.0, "pqt__average_bits": 2.0}

    def loop_carries(**split):
        _, _, state, train_step = setup("gaussws", **fields, **split)
        jaxpr = jax.make_jaxpr(train_step.__wrapped__)(state, batch(), noise_key())
        loops = [x for x in jaxpr.eqns if x.primitive.name == "scan"]
        carried = [v.aval.shape for x in loops for v in x.outvars]
        after, measured = train_step(state, batch(), noise_key())
        return carried, after, measured

    grids = [
        x.shape for x in jax.tree.leaves(nnx.filter_state(setup("gaussws")[2].params, BitParam))
    ]
    _, whole, expected = loop_carries()
    carried, after, measured = loop_carries(data__microbatches=2)
    assert carried and not set(carried) & set(grids)
    several, _, _ = loop_carries(data__microbatches=2, pqt__noise_per="microbatch")
    assert set(several) & set(grids)
    close(dict(measured), dict(expected), rtol=2e-6)
    for got, want in zip(*map(jax.tree.leaves, (after.opt_state, whole.opt_state)), strict=True):
        scale = np.abs(np.asarray(want)).max()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("method", FIRST)
@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_weights_that_are_sampled_once_are_those_of_every_microbatch(method, remat):
    """The same ŵ, losses and gradients, and no sampling in a loop."""

    def first_step(**fields):
        split = {"data__microbatches": 2, "model__remat": remat, **fields}
        _, _, state, train_step = setup(method, **split)
        jaxpr = jax.make_jaxpr(train_step.__wrapped__)(state, batch(), noise_key())
        (loop,) = [str(x) for x in jaxpr.eqns if x.primitive.name == "scan"]
        return "custom_vjp_call" in loop, train_step(state, batch(), noise_key())

    samples_in_loop, (expected, losses) = first_step()
    assert samples_in_loop
    samples_in_loop, (found, measured) = first_step(pqt__sample_once=True)
    assert not samples_in_loop
    close(dict(measured), dict(losses), rtol=1e-6)
    close(found.params, expected.params, rtol=1e-5, atol=1e-6)


def test_weights_that_are_sampled_once_are_those_of_the_phase():
    """BF16, then the method, then rounding: each as where every microbatch samples."""
    fields = {"pqt__begin_at": 0.3, "pqt__round_at": 0.6, "pqt__round_to": "float4_e2m1fn"}
    fields |= {"data__microbatches": 2, "pqt__round_share": 0.5, "pqt__block": (8, 8)}
    config, _, state, _ = setup(**fields)
    config = from_values(schema.RunConfig, config.to_dict())
    once = dataclasses.replace(config, pqt=dataclasses.replace(config.pqt, sample_once=True))
    losses = []
    for phase, kept in zip(list_phases(config), list_phases(once), strict=True):
        graph, found = states.make_graph(phase.config), []
        for run, part in ((config, phase), (once, kept)):
            step = build_train_step(run, graph, phase=part)
            found.append(float(step(state, batch(), noise_key())[1]["loss"]))
        assert found[1] == pytest.approx(found[0], rel=1e-6)
        losses.append(found[0])
    assert len(set(losses)) == 3


def test_noise_of_a_microbatch_is_that_of_its_key():
    fields = {"data__microbatches": 2, "pqt__pattern": "h/(attn/q|mlp/down)/kernel"}
    fields |= {"pqt__init_bits": 1.0, "pqt__target_bits": 1.0}  # noise as large as the weights
    _, graph, state, train_step = setup("gaussws", **fields, pqt__noise_per="microbatch")
    _, measured = train_step(state, batch(), noise_key())

    @jax.jit
    def loss(tokens, key):
        logits = nnx.merge(graph, state.params)(tokens[:, :-1], pqt_key=key)
        return cross_entropy(logits, tokens[:, 1:])

    tokens, losses = jnp.asarray(batch(), jnp.int32), []
    for part in range(2):
        key = jax.random.fold_in(keys.step_key(noise_key(), 0), part)
        losses.append(float(loss(tokens[part::2], key)))
    assert float(measured["loss"]) == pytest.approx(np.mean(losses), rel=1e-6)
    with_one_key = [float(loss(tokens[part::2], key)) for part in range(2)]
    assert np.mean(with_one_key) != pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.slow
def test_chunks_of_the_loss_and_microbatches_take_less_memory():
    def peak(**fields):
        model = dataclasses.replace(tiny.LLAMA2, vocab_size=16384, max_length=512)
        config = tiny.get_config(model)
        config.data.batch, config.data.length = 8, 512
        config.data.update(fields)
        optimizer = make_optimizer(config)
        graph, state = states.init_state(config, optimizer)
        step = build_train_step(config, graph, optimizer)
        shape = jax.ShapeDtypeStruct((8, 513), jnp.int32)
        return step.lower(state, shape, noise_key()).compile().memory_analysis().temp_size_in_bytes

    whole = peak()
    logits = 8 * 512 * 16384 * 4
    assert whole > logits
    assert peak(loss_chunk=32) < whole - logits and peak(loss_chunk=32) < whole / 2
    assert peak(microbatches=8) < whole / 3


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_warm_up_and_fall_to_the_last_rate(schedule):
    config = tiny.get_config()
    config.optimizer.schedule, config.optimizer.warmup_steps = schedule, 9
    config.steps = 49
    top, last = config.optimizer.learning_rate, config.optimizer.final_learning_rate
    rate = make_schedule(config)
    found = [float(rate(step)) for step in (0, 5, 9, 19, 29, 49)]
    half = (top + last) / 2
    at_19 = {"linear": top - (top - last) / 4}.get(
        schedule, last + (top - last) * (1 + np.cos(np.pi / 4)) / 2
    )
    np.testing.assert_allclose(found, [top / 10, top * 6 / 10, top, at_19, half, last], rtol=1e-5)


def schedule_config(schedule, **optimizer):
    config = tiny.get_config()
    config.steps, config.optimizer.schedule, config.optimizer.warmup_steps = 40, schedule, 3
    config.optimizer.update({"learning_rate": 1.0, "final_learning_rate": 0.1, **optimizer})
    return config


def fixed_steps(config):
    return count_fixed_steps(from_values(schema.RunConfig, config.to_dict()))


@pytest.mark.parametrize(("schedule", "falling"), [("constant", 0), ("wsd", 10)])
def test_schedules_whose_first_steps_do_not_depend_on_their_number(schedule, falling):
    config = schedule_config(schedule, decay_share=0.25)
    rates = [float(make_schedule(config)(step)) for step in range(41)]
    assert rates[:3] == [0.25, 0.5, 0.75]
    assert rates[3 : 41 - falling] == [1.0] * (38 - falling)
    line = np.linspace(1, 0.1 if falling else 1, 1 + falling)
    np.testing.assert_allclose(rates[40 - falling :], line, rtol=1e-6)
    fixed = fixed_steps(config)
    assert fixed == 40 - falling
    config.steps = 80
    assert [float(make_schedule(config)(step)) for step in range(fixed)] == rates[:fixed]


def test_fixed_steps_end_where_bits_snap_and_the_falling_schedules_have_none():
    config = schedule_config("wsd")
    config.pqt.snap_at = 0.5
    assert fixed_steps(config) == 20
    config.method = "bf16"  # no bits
    assert fixed_steps(config) == 32
    assert fixed_steps(schedule_config("wsd", decay_share=1e-9)) == 39
    assert {fixed_steps(schedule_config(name)) for name in ("cosine", "linear")} == {0}


@pytest.mark.parametrize("schedule", [name for name in schema.SCHEDULES if name != "constant"])
def test_the_last_step_has_the_rate_before_the_final_one(schedule):
    """As docs/train.md says: a final rate of 0 would waste the last step."""
    config = schedule_config(schedule, warmup_steps=0)
    rate = make_schedule(config)
    assert float(rate(39)) > float(rate(40)) == pytest.approx(0.1)


@pytest.mark.slow
def test_names_of_kernels_mean_what_they_say():
    parts = {"attn": "q k v out", "mlp": "gate up down"}
    every = {f"h/{part}/{x}/kernel" for part, names in parts.items() for x in names.split()}
    expected = {
        "all": "q k v out gate up down",
        "attention": "q k v out",
        "mlp": "gate up down",
        "qk": "q k",
        "qkv": "q k v",
        "out": "out",
        "up": "gate up",
        "down": "down",
        "out_down": "out down",
    }
    assert KERNEL_PATTERNS.keys() == expected.keys()
    for name, layers in expected.items():
        config = tiny.get_config()
        config.pqt.pattern = name
        _, state = states.init_state(config, make_optimizer(config))
        (rule,) = methods.make_rules(config)
        found = {
            path for path in paths_and_leaves(state.params) if re.fullmatch(rule.pattern, path)
        }
        assert found == {path for path in every if path.split("/")[2] in layers.split()}
        bits = paths_and_leaves(bit_state.collect_bits(state.params))
        assert bits.keys() == found


@pytest.mark.slow
def test_adam_mini_learns_and_decays_its_bits():
    _, _, state, train_step = setup("gaussws", optimizer__name="adam_mini")
    losses = []
    for i in range(60):
        state, measured = train_step(state, batch(i % 3), noise_key())
        losses.append(float(measured["loss"]))
    assert losses[0] > 4.5 and losses[-1] < 1.5 and float(measured["bits_mean"]) < 5.95


@pytest.mark.parametrize(
    "model",
    [
        tiny.OTHERS,
        pytest.param(
            dataclasses.replace(
                tiny.LLAMA2, attention_bias="qkv", rope_scaling="linear", rope_factor=2.0
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["qwen3", "qwen2"],
)
def test_a_step_moves_every_parameter_of_other_models(model):
    config = tiny.get_config(model)
    config.optimizer.name, config.pqt.pattern = "adam_mini", "qk"
    optimizer = make_optimizer(config)
    graph, state = states.init_state(config, optimizer)
    before = paths_and_leaves(jax.tree.map(np.asarray, state.params))
    after, measured = build_train_step(config, graph, optimizer)(state, batch(), noise_key())
    assert np.isfinite(float(measured["loss"])) and not measured["skipped"]
    for path, leaf in paths_and_leaves(jax.tree.map(np.asarray, after.params)).items():
        assert np.isfinite(leaf).all() and (leaf != before[path]).any(), path
    moments = {path: x.shape for path, x in paths_and_leaves(after.opt_state).items()}
    shapes = [shape for path, shape in moments.items() if path.endswith("nu/h/attn/q/kernel")]
    assert (2, 1, model.num_heads) in shapes  # one for each head


UNKNOWN = 200  # a token whose vector is not finite: batches with it have no finite loss


def spoiled(state):
    def spoil(path, leaf):
        if path != "embed/embedding":
            return leaf
        leaf = leaf.copy()
        leaf[UNKNOWN] = np.nan
        return leaf

    return state._replace(params=map_paths(spoil, state.params))


def test_a_step_that_is_not_finite_changes_nothing_but_counts():
    _, _, state, train_step = setup()
    bad = batch()
    bad[0, 3] = UNKNOWN
    state, _ = train_step(spoiled(state), batch(), noise_key())
    before = jax.tree.map(np.asarray, state)
    for count in (1, 2):
        state, measured = train_step(state, bad, noise_key())
        assert not np.isfinite(measured["loss"])
        assert (measured["skipped"], measured["in_a_row"]) == (count, count)
    assert (state.step, state.skipped, state.in_a_row) == (3, 2, 2)
    jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, before.opt_state)
    # Then as if they had not been: the next step is that of the same state at step 3.
    other = before._replace(step=np.int32(3))
    state, measured = train_step(state, batch(1), noise_key())
    other, _ = train_step(other, batch(1), noise_key())
    assert (measured["skipped"], measured["in_a_row"]) == (2, 0)
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, other.opt_state)


@pytest.mark.slow
def test_a_bit_width_that_is_not_finite_is_skipped_too(monkeypatch):
    """Its weights and loss may still be finite for one step, its gradient is not."""
    config, graph, state, _ = setup()

    def penalty(params):
        b_i = jax.tree.leaves(nnx.filter_state(params, BitParam))[0]
        return jnp.sum(jnp.sqrt(b_i - b_i))  # 0, of infinite slope

    method = dataclasses.replace(methods.get_method(config), make_penalty=lambda config: penalty)
    monkeypatch.setitem(methods.METHODS, config.method, method)
    train_step = build_train_step(config, graph)
    state, measured = train_step(state, batch(), noise_key())
    assert np.isfinite(measured["loss"]) and measured["skipped"] == 1


def test_with_granularity_tensor_each_matrix_learns_one_bit_width():
    """After a step its blocks have equal b_i, and matrices have different ones."""
    config, graph, state, _ = setup(pqt__granularity="tensor")
    train_step = build_train_step(config, graph)
    for i in range(2):
        state, _ = train_step(state, batch(i), noise_key())
    grids = [b_i for b_i in jax.tree.leaves(bit_state.collect_bits(state.params))]
    matrices = [grid for b_i in grids for grid in np.asarray(b_i)]  # of all layers
    assert max(grid.size for grid in matrices) > 1
    assert all(np.ptp(grid) == 0 for grid in matrices)
    assert len({float(grid.flat[0]) for grid in matrices}) > len(matrices) / 2


@pytest.mark.slow
def test_bits_snap_at_the_same_update_after_skipped_steps():
    config, graph, state, _ = setup(pqt__snap_at=0.05)
    snap = methods.snap_step(config)
    assert snap == 3
    train_step = build_train_step(config, graph)
    bad = batch()
    bad[0, 3] = UNKNOWN
    state, means = spoiled(state), []
    for tokens in (batch(), bad, batch(), bad, batch(), bad, batch(), batch()):
        state, measured = train_step(state, tokens, noise_key())
        means.append(float(measured["bits_mean"]))
    assert 5.8 < means[4] < 6 and means[5] > 8.9  # to E4M7, after three updates
    assert means[5] == means[6] == means[7]
