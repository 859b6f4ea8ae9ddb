# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The undocumented parts of Flax that `flax_internals` uses: one contract per function."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from pqt_jax.transform import flax_internals

pytestmark = pytest.mark.jax_version


def make_key():
    return jax.random.key(0)


def changed(what):
    """The message of a failed contract."""
    return f"Flax {flax.__version__} has changed {what}; adapt pqt_jax/transform/flax_internals.py"


def test_variables_and_linen_metadata_are_boxes():
    boxes = [nnx.Param(jnp.ones(2)), linen.Partitioned(jnp.ones(2), names=(None,))]
    boxes.append(linen.LogicallyPartitioned(jnp.ones(2), names=(None,)))
    for box in boxes:
        assert flax_internals.is_box(box), changed(f"the base class of {type(box).__name__}")
    assert not flax_internals.is_box({"kernel": jnp.ones(2)})
    assert not flax_internals.is_box(nnx.State({}))


class Plain(nnx.Module):
    pass


class NoPytree(nnx.Module, pytree=False):
    pass


def test_a_class_says_whether_it_is_a_pytree():
    message = changed("nnx.Module._pytree__is_pytree")
    for cls, is_pytree in ((Plain, True), (NoPytree, False), (nnx.Linear, True)):
        assert getattr(cls, "_pytree__is_pytree", None) is is_pytree, message
        assert flax_internals.is_pytree_class(cls) is is_pytree, message


def test_a_subclass_does_not_inherit_that_it_is_no_pytree():
    class Below(NoPytree):
        pass

    # If this becomes False, the option in nnx_wrapper is no longer needed.
    assert flax_internals.is_pytree_class(Below), changed("what `pytree=False` does to subclasses")


@pytest.mark.parametrize("option", ["ref", "hijax"])
def test_a_variable_says_whether_it_holds_a_reference(option):
    message = changed(f"nnx.Variable.{option}")
    plain = nnx.Param(jnp.ones(2))
    assert hasattr(plain, option), message
    assert not flax_internals.holds_reference(plain), message
    assert flax_internals.holds_reference(nnx.Param(jnp.ones(2), **{option: True})), message


def test_the_raw_value_of_a_variable_is_what_it_holds():
    message = changed("nnx.Variable.get_raw_value or _raw_value")
    array, box = jnp.ones(2), linen.Partitioned(jnp.ones(2), names=(None,))
    assert flax_internals.get_raw_value(nnx.Param(array)) is array, message
    assert flax_internals.get_raw_value(nnx.Param(box)) is box, message
    variable = nnx.Param(array)
    flax_internals.set_raw_value(variable, other := jnp.zeros(2))
    assert flax_internals.get_raw_value(variable) is other, message
    np.testing.assert_array_equal(variable[...], other, err_msg=message)


def test_setting_the_raw_value_avoids_the_check_of_the_trace_level():
    variable, message = nnx.Param(jnp.ones(2)), changed("nnx.Variable._raw_value")

    @jax.jit
    def double(x):
        with pytest.raises(flax.errors.TraceContextError):  # the check that set_raw_value avoids
            variable.set_value(x)
        before = flax_internals.get_raw_value(variable)
        flax_internals.set_raw_value(variable, x)
        try:
            return variable[...] * 2
        finally:
            flax_internals.set_raw_value(variable, before)

    np.testing.assert_array_equal(double(jnp.full(2, 3.0)), [6, 6], err_msg=message)
    np.testing.assert_array_equal(variable[...], [1, 1], err_msg=message)


class Overlaying(linen.Module):
    """A layer in an overlaid scope, which counts its calls."""

    @linen.compact
    def __call__(self, x):
        linen.Dense(4, name="dense")(x)
        self.make_rng("dropout")
        scope = flax_internals.overlay_scope(
            self.scope, {"params": {"dense": {"kernel": jnp.ones((4, 4))}}}, hide="pqt"
        )
        inner = Counting(parent=scope)
        return inner(x), inner.scope, self.scope


class Counting(linen.Module):
    @linen.compact
    def __call__(self, x):
        count = self.variable("counts", "n", lambda: 0)
        count.value += 1
        drawn = jax.random.key_data(self.make_rng("dropout"))
        return linen.Dense(4, use_bias=False, name="dense")(x), drawn


def test_an_overlaid_scope_replaces_and_hides_collections():
    message = changed("flax.core.Scope: _variables, _mutable_collection, rewound or its arguments")
    x, rngs = jnp.ones((2, 4)), {"dropout": make_key(), "pqt": make_key()}
    params = linen.Dense(4).init(make_key(), x)["params"]
    variables = {"params": {"dense": params}, "pqt": {"bits": 1}}
    ((y, drawn), scope, below), after = Overlaying().apply(
        variables, x, rngs=rngs, mutable=["counts", "params"]
    )
    np.testing.assert_array_equal(y, jnp.full((2, 4), 4.0), err_msg=message)
    assert isinstance(scope, flax_internals.OverlaidScope), message  # also after the rewinding
    assert scope.path == below.path and not scope.has_rng("pqt"), message
    assert "pqt" not in scope.variables() and not scope.is_mutable_collection("params"), message
    assert after["counts"] == {"n": 1} and after["params"] == variables["params"], message
    # Random streams go on where those of the scope below are: this is the second draw.
    want = below.rngs["dropout"].create(below.rngs["dropout"], 2).as_jax_rng()
    np.testing.assert_array_equal(drawn, jax.random.key_data(want), err_msg=message)


class Held(linen.Module):
    """Looks at its place, and at what it holds."""

    own: linen.Module
    outside: linen.Module

    def __call__(self, x):
        return flax_internals.unbind_below(self), self.own(self.outside(x))


class Holding(linen.Module):
    def setup(self):
        self.outside = linen.Dense(4)
        self.held = Held(linen.Dense(4, parent=None), self.outside)

    def __call__(self, x):
        return self.held(x)[0], self.outside


def test_modules_that_were_taken_are_unbound_and_those_from_outside_stay():
    message = changed("linen.Module.clone or Scope.path")
    x = jnp.ones((2, 4))
    variables = Holding().init(make_key(), x)
    assert variables["params"]["held"].keys() == {"own"}, message
    fields, outside = Holding().apply(variables, x)
    assert fields["own"].scope is None and fields["own"].name is None, message
    assert fields["outside"] is outside, message


class Renamed(linen.Dense):
    pass


class Rebinding(linen.Module):
    @linen.compact
    def __call__(self, x):
        dense = linen.Dense(4)
        y = dense(x)
        return y, flax_internals.rebind(dense, Renamed)(x)


def test_a_bound_module_becomes_one_of_another_class_at_its_place():
    message = changed("linen.Module._state, or what else a bound module has")
    variables = Rebinding().init(make_key(), jnp.ones((2, 4)))
    assert variables["params"].keys() == {"Dense_0"}, message
    np.testing.assert_array_equal(*Rebinding().apply(variables, jnp.ones((2, 4))), err_msg=message)


class Drawing(linen.Module):
    @linen.compact
    def __call__(self, draws):
        for _ in range(draws):
            self.make_rng("pqt")
        return flax_internals.rng_of_scope(self.scope, "pqt")


def test_the_key_of_a_scope_does_not_depend_on_draws():
    message = changed("flax.core.scope.LazyRng or Scope.rngs")
    keys = [Drawing().apply({}, draws, rngs={"pqt": make_key()}) for draws in (0, 2)]
    data = [jax.random.key_data(key) for key in keys]
    np.testing.assert_array_equal(*data, err_msg=message)
    np.testing.assert_array_equal(data[0], jax.random.key_data(make_key()), err_msg=message)


class Methods(linen.Module):
    width: int = 4

    @linen.nowrap
    def unwrapped(self):
        pass

    def wrapped(self):
        pass


def test_methods_that_flax_wraps_are_known():
    message = changed("method_handler_wrapped, the mark of a module's method")
    assert flax_internals.is_module_method(Methods.wrapped), message
    assert flax_internals.is_module_method(linen.remat(Methods.wrapped)), message
    assert not flax_internals.is_module_method(Methods.unwrapped), message
    assert not flax_internals.is_module_method(4), message
    assert flax_internals.field_names(Methods()) == ["width"], message


class Intercepting:
    """Before a bare class in the order of bases, as `linen_wrapper.Wrapped` is."""

    def _call_wrapped_method(self, fun, args, kwargs):
        calls.append(fun.__name__)
        return super()._call_wrapped_method(fun, args, kwargs)

    def _try_setup(self, shallow=False):
        setups.append(shallow)
        return super()._try_setup(shallow)


calls, setups = [], []


class Intercepted(Intercepting, Methods):
    def lifted(self):
        return linen.remat(Methods.wrapped)(self)


def test_flax_calls_every_method_and_every_setup_through_one():
    model = Intercepted()
    model.apply({}, method=Methods.wrapped)  # by the bare class
    assert calls[-1] == "wrapped", changed("linen.Module._call_wrapped_method")
    setups.clear()
    model.apply({}, method="lifted")
    assert True in setups, changed("linen.Module._try_setup: shallow before a lifted function")


def test_the_modules_that_run_are_known():
    seen = []

    class Inner(linen.Module):
        def __call__(self):
            seen.extend(flax_internals.running_scopes())

    class Outer(linen.Module):
        @linen.compact
        def __call__(self):
            Inner(name="inner")()

    Outer().apply({})
    assert [scope.path for scope in seen] == [(), ("inner",)], changed("the stack of modules")
    assert flax_internals.running_scopes() == []
