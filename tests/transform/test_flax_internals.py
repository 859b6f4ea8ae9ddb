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


class Rewinding(linen.Module):
    """Takes a name in its scope, and rewinds the scope."""

    @linen.compact
    def __call__(self, x):
        y = linen.Dense(4, name="dense")(x)
        rewound = flax_internals.rewound_scope(self.scope)
        kernel = rewound.variables()["params"]["dense"]["kernel"]
        return y, kernel, self.scope.name_reserved("dense"), rewound.name_reserved("dense")


def test_a_rewound_scope_has_no_names_taken_and_the_same_variables():
    message = changed("flax.core.Scope.rewound")
    x = jnp.ones((2, 4))
    variables = Rewinding().init(make_key(), x)
    _, kernel, taken, taken_after = Rewinding().apply(variables, x)
    assert taken and not taken_after, message
    assert kernel is variables["params"]["dense"]["kernel"], message


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
    @linen.nowrap
    def unwrapped(self):
        pass

    def wrapped(self):
        pass


def test_nowrap_marks_a_method():
    message = changed("the attribute that linen.nowrap sets")
    assert flax_internals.is_nowrap(Methods.unwrapped), message
    assert not flax_internals.is_nowrap(Methods.wrapped), message
