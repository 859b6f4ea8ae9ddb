# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rules for Flax's own layers, and what a model samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from pqt_jax import (
    Rule,
    param_transform,
    pqt_transform,
    presets,
    quantize_model,
    summary,
)

pytestmark = pytest.mark.jax_version

X = np.random.default_rng(1).normal(size=(2, 6, 64)).astype(np.float32)


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = x + linen.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
        x = linen.LayerNorm()(x)
        return x + linen.Dense(64, name="down")(linen.gelu(linen.Dense(96, name="up")(x)))


class LinenTransformer(linen.Module):
    scanned: bool = False

    @linen.compact
    def __call__(self, x):
        table = self.param("pos_embed", linen.initializers.ones, (6, 64))
        x = x + linen.Embed(7, 64)(jnp.arange(6)) + table
        if self.scanned:
            stack = linen.scan(
                lambda block, x, _: (block(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            x, _ = stack(LinenBlock(name="h"), x, None)
        else:
            x = LinenBlock(name="h_0")(x)
        mixed = self.param("mixer", linen.initializers.lecun_normal(), (2, 64, 32))
        x = jnp.concatenate([x @ mixed[0], x @ mixed[1]], -1)
        return linen.Conv(64, (3,), feature_group_count=64, name="depthwise")(x)


class NnxTransformer(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 64, 64, decode=False, rngs=rngs)
        self.embed = nnx.Embed(7, 64, rngs=rngs)
        self.up = nnx.Linear(64, 96, rngs=rngs)
        self.conv = nnx.Conv(96, 64, (3,), rngs=rngs)

    def __call__(self, x):
        return self.conv(self.up(self.attention(x + self.embed(jnp.arange(6)))))


def make_key():
    return jax.random.key(5)


@pytest.mark.parametrize("scanned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_linen_transformer_is_wrapped_by_one_line(scanned):
    bare = LinenTransformer(scanned)
    shapes = jax.eval_shape(bare.init, make_key(), X)["params"]
    model = pqt_transform(bare, presets.flax(shapes, target_bits=3))
    variables = model.init(make_key(), X)
    stack = (3,) if scanned else ()
    bits = variables["pqt"]["bits"]
    got = {k: v.shape for k, v in jax.tree_util.tree_leaves_with_path(bits)}
    name = "h" if scanned else "h_0"
    attention = bits[name]["attention"]
    # Heads and the width of a head are one side of the matrix of a projection.
    assert all(attention[p]["kernel"].shape == (*stack, 2, 2) for p in attention)
    assert bits[name]["up"]["kernel"].shape == (*stack, 2, 3)
    assert len(got) == 6
    sampled = model.apply(variables, X, rngs={"pqt": make_key()})
    assert (sampled != model.apply(variables, X)).any()
    table = summary(model, variables)
    sampled_rows, rest = table.split("no rule decides about")
    assert "pos_embed" in rest and "probably an embedding" in rest
    assert "mixer" in rest and "probably a stack of matrices" in rest
    assert "depthwise" not in rest and "h" in sampled_rows


def test_an_nnx_transformer_is_wrapped_by_one_line():
    bare = NnxTransformer(nnx.Rngs(0))
    model = pqt_transform(bare, presets.flax(bare), strict=True)
    assert (model(X, pqt_key=make_key()) != model(X)).any()
    assert "no rule decides about" not in summary(model)
    rounded = quantize_model(model)
    assert type(rounded) is NnxTransformer and not hasattr(rounded, "pqt_bits")
    params = nnx.to_pure_dict(nnx.state(bare, nnx.Param))
    transform = param_transform(presets.flax(bare))
    want = transform.quantize(params, transform.init(params))
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(rounded, nnx.Param)), want
    )
    np.testing.assert_array_equal(model(X), bare(X))


def test_a_linen_model_is_rounded_by_its_bits():
    model = pqt_transform(LinenBlock(), [Rule(".*(up|down)/kernel", 3)])
    variables = model.init(make_key(), X)
    rounded = quantize_model(model, variables)
    assert rounded.keys() == {"params"}
    transform = param_transform([Rule(".*(up|down)/kernel", 3)])
    want = transform.quantize(variables["params"], variables["pqt"]["bits"])
    jax.tree.map(np.testing.assert_array_equal, rounded["params"], want)
    np.testing.assert_array_equal(model.apply(rounded, X), LinenBlock().apply(rounded, X))


def test_a_module_that_holds_wrapped_ones_is_summed_up_and_rounded():
    parts = [nnx.Linear(64, 64, rngs=nnx.Rngs(i)) for i in range(2)]
    model = nnx.Sequential(*(pqt_transform(part, [Rule("kernel")]) for part in parts))
    assert summary(model).count("kernel") == 2 and "layers/0" in summary(model)
    rounded = quantize_model(model)
    assert {type(layer) for layer in rounded.layers} == {nnx.Linear}
    assert (rounded.layers[1].kernel[...] != parts[1].kernel[...]).any()


def test_a_model_with_a_weight_that_is_not_finite_is_not_rounded():
    linear = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
    linear.kernel[...] = linear.kernel[...].at[3, 3].set(jnp.inf)
    model = pqt_transform(linear, [Rule("m/kernel")], prefix="m")
    with pytest.raises(ValueError, match="m/kernel: 1 of 4096 weights are Inf or NaN"):
        quantize_model(model)
    graph, state = nnx.split(model)
    traced = jax.jit(lambda state: nnx.state(quantize_model(nnx.merge(graph, state))))(state)
    assert jnp.isnan(traced["kernel"][...]).sum() == 32 * 32

    layer = pqt_transform(LinenBlock(), [Rule(".*(up|down)/kernel", 3)])
    variables = layer.init(make_key(), X)
    ones = jax.tree.map(jnp.ones_like, variables)
    quantize_model(layer, ones)
    spoilt = {**ones, "params": jax.tree.map(lambda w: w * jnp.nan, ones["params"])}
    with pytest.raises(ValueError, match="down/kernel: .* weights are Inf or NaN"):
        quantize_model(layer, spoilt)


def test_names_and_shapes_that_disagree_are_undecided():
    ones = jnp.ones
    params = {
        "a": {"query": {"kernel": ones((64, 2, 32))}, "out": {"kernel": ones((2, 32, 64))}},
        "b": {"query": {"kernel": ones((3, 64, 64))}, "out": {"kernel": ones((64, 64))}},
        "c": {"query": {"kernel": ones((64, 64))}},
    }
    kinds = presets.classify(params)
    assert kinds == {
        "a/query/kernel": "projection to heads",
        "a/out/kernel": "projection from heads",
        "b/query/kernel": "undecided",
        "b/out/kernel": "matrix",
        "c/query/kernel": "matrix",
    }
    shapes = {k: b.shape for k, b in _leaves(param_transform(presets.flax(params)).init(params))}
    assert shapes == {
        "a/query/kernel": (2, 2),
        "a/out/kernel": (2, 2),
        "b/out/kernel": (2, 2),
        "c/query/kernel": (2, 2),
    }


def classify(*names, **shapes):
    """Classify the weights of one module, layer → shape, in the order of `names`."""
    params = {layer: {"kernel": jnp.ones(shape)} for layer, shape in shapes.items()}
    return [presets.classify(params)[f"{name}/kernel"] for name in names]


TO, FROM = "projection to heads", "projection from heads"


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_attention_with_one_head_is_sampled(heads, stack):
    to, back = (*stack, 64, heads, 32), (*stack, heads, 32, 64)
    got = classify("query", "key", "value", "out", query=to, key=to, value=to, out=back)
    assert got == [TO, TO, TO, FROM]


def test_flax_attention_with_one_head_is_wrapped_by_one_line():
    bare = nnx.MultiHeadAttention(1, 64, decode=False, rngs=nnx.Rngs(0))
    rules = presets.flax(bare)
    bits = param_transform(rules).init(nnx.to_pure_dict(nnx.state(bare, nnx.Param)))
    assert set(bits) == {"query", "key", "value", "out"}
    assert {b["kernel"].shape for b in bits.values()} == {(2, 2)}


@pytest.mark.parametrize("name", ["kernel", "w"])
def test_attention_of_others_is_known_by_its_shapes(name):
    shapes = {
        "to_q": (64, 4, 16),
        "to_k": (48, 2, 16),
        "to_v": (48, 1, 16),
        "to_out_0": (4, 16, 64),
    }
    params = {"block": {layer: {name: jnp.ones(shape)} for layer, shape in shapes.items()}}
    assert presets.classify(params) == {
        f"block/to_q/{name}": TO,
        f"block/to_k/{name}": TO,
        f"block/to_v/{name}": TO,
        f"block/to_out_0/{name}": FROM,
    }
    bits = param_transform(presets.flax(params)).init(params)["block"]
    assert bits["to_q"][name].shape == (2, 2) and bits["to_out_0"][name].shape == (2, 2)


def test_convolutions_and_stacks_are_not_taken_for_attention():
    assert classify("a", "b", a=(3, 3, 3, 32), b=(3, 3, 32, 3)) == ["matrix"] * 2
    assert classify("a", "b", a=(3, 3, 32), b=(3, 32, 3)) == ["matrix"] * 2
    assert classify("up", "down", up=(64, 64, 96), down=(64, 96, 64)) == ["matrix"] * 2
    assert classify("up", "down", up=(4, 64, 96), down=(4, 96, 64)) == ["matrix"] * 2


def test_a_bias_of_two_axes_tells_a_projection_to_heads():
    def kind(kernel, bias):
        return presets.classify({"kernel": jnp.ones(kernel), "bias": jnp.ones(bias)})["kernel"]

    assert kind((64, 2, 32), (2, 32)) == TO
    assert kind((3, 64, 2, 32), (3, 2, 32)) == TO
    assert kind((3, 64, 32), (3, 32)) == "matrix"  # a stack of dense layers
    assert kind((64, 64, 32), (64, 32)) == "matrix"  # either
    assert kind((5, 64, 32), (32,)) == "matrix"  # a convolution


def test_a_wide_kernel_with_one_row_is_no_depthwise_convolution():
    assert classify("a", "b", "c", a=(7, 1, 64), b=(64, 1, 32), c=(1, 64)) == [
        "not sampled",
        "undecided",
        "not sampled",
    ]
    assert "depthwise" in presets.describe("conv/w", (3, 3, 1, 64))
    assert "depthwise" not in presets.describe("k_proj/w", (64, 1, 32))
    assert "vector" in presets.describe("first", (1, 1, 64))


def _leaves(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [("/".join(entry.key for entry in path), leaf) for path, leaf in leaves]


def test_errors():
    with pytest.raises(ValueError, match="no parameter has the name and shape.*by hand, for w"):
        presets.flax({"w": jnp.ones((4, 4))})
    many = {f"w{i}": jnp.ones((4, 4)) for i in range(200)} | {"embedding": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match=r"w0, w1, .*… \(200 in all\)"):
        presets.flax(many)
    linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    for function in (summary, quantize_model):
        with pytest.raises(TypeError, match="nothing in Linear is wrapped"):
            function(linear)
        with pytest.raises(TypeError, match="LinenBlock is not wrapped"):
            function(LinenBlock(), {})
        with pytest.raises(TypeError, match="a Linen module needs its variables"):
            function(pqt_transform(LinenBlock(), [Rule(".*kernel")]))


@pytest.mark.parametrize("option", ["matrix_axes", "target", "pattern"])
def test_an_option_that_is_not_of_every_rule_is_refused(option):
    takes = "it takes target_bits, init_bits, block, noise, dtype, scale, round_share. A rule"
    with pytest.raises(TypeError, match=f"presets.flax has no option '{option}'; {takes}"):
        presets.flax({"a": {"kernel": jnp.ones((4, 4))}}, **{option: (1, 1)})


def test_a_linen_module_is_told_to_give_the_shapes_of_its_parameters():
    with pytest.raises(
        TypeError, match=r"Dense is a Linen module.*jax.eval_shape\(model.init, key"
    ):
        presets.flax(linen.Dense(3))
