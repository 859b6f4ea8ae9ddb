# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rules: order, matching of whole paths, and every error by name."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import pytest

from pqt_jax import Rule
from pqt_jax.numerics import keys
from pqt_jax.transform.perturb import Spec
from pqt_jax.transform.rules import check_rules, first_match, resolve


def shapes(**leaves):
    return {
        path.replace("__", "/"): jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in leaves.items()
    }


def test_first_full_match_wins():
    rules = [Rule("h/out", None), Rule("h/.*", 3), Rule(".*", 5)]
    specs = resolve(rules, shapes(h__out=(4, 4), h__up=(4, 4), head=(4, 4)))
    assert {path: spec.target_bits for path, spec in specs.items()} == {"h/up": 3, "head": 5}


def test_the_pattern_must_match_the_whole_path():
    assert first_match([Rule("kernel")], "h/kernel") is None
    assert first_match([Rule(".*kernel")], "h/kernel/extra") is None


def test_vectors_scalars_and_empty_arrays_are_never_sampled():
    specs = resolve([Rule(".*")], shapes(a=(3, 3), b=(3,), c=(), d=(0, 4)))
    assert list(specs) == ["a"]


def test_strict_names_the_parameter_that_no_rule_decides_about():
    tree = shapes(h__kernel=(4, 4), head__kernel=(4, 4), norm__scale=(4,))
    with pytest.raises(ValueError, match="no rule decides about 'head/kernel'"):
        resolve([Rule("h/.*")], tree, strict=True)
    resolve([Rule("h/.*"), Rule("head/.*", None)], tree, strict=True)


@pytest.mark.parametrize("target", [4, None])
def test_a_rule_that_matches_nothing_is_named(target):
    with pytest.raises(ValueError, match=r"Rule\('x/y'.*\) matches no parameter; the paths are a"):
        resolve([Rule(".*"), Rule("x/y", target)], shapes(a=(3, 3)))


def test_a_rule_hidden_behind_an_earlier_one_is_named():
    with pytest.raises(ValueError, match=r"Rule\('a'\) comes after rules that decide about a$"):
        resolve([Rule(".*"), Rule("a")], shapes(a=(3, 3)))


def test_the_second_of_two_equal_rules_is_hidden():
    with pytest.raises(ValueError, match=r"Rule\('a'\) comes after rules that decide about a$"):
        resolve([Rule("a"), Rule("a")], shapes(a=(3, 3)))


def test_a_sampling_rule_that_matches_only_vectors_is_named():
    with pytest.raises(
        ValueError, match=r"Rule\('.*scale'\) matches only what is never sampled .*norm/scale"
    ):
        resolve([Rule(".*scale")], shapes(norm__scale=(4,)))


def test_a_parameter_that_its_rule_does_not_fit_is_named():
    rule = Rule("q", matrix_axes=(1, 2))
    with pytest.raises(ValueError, match=r"Rule\('q'\) at 'q': matrix_axes=\(1, 2\)"):
        resolve([rule], shapes(q=(4, 4)))


def test_a_dtype_that_cannot_be_sampled_is_named():
    tree = {"table": jax.ShapeDtypeStruct((4, 4), jnp.int32)}
    with pytest.raises(TypeError, match=r"Rule\('.*'\) matches 'table' of dtype int32"):
        resolve([Rule(".*")], tree)


def test_paths_whose_keys_collide_are_refused():
    # Two ASCII strings with the same CRC-32.
    first, second = "plumless", "buckeroo"
    assert keys.path_id(first) == keys.path_id(second)
    with pytest.raises(ValueError, match="same CRC-32"):
        resolve([Rule(".*")], shapes(plumless=(4, 4), buckeroo=(4, 4)))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("(",), {}, r"Rule\('\('\): the pattern does not compile"),
        (("a{99999999999999999999}",), {}, r"Rule\('a{9+}'\): the pattern does not compile"),
        (("(" * 9999 + ")" * 9999,), {}, "the pattern does not compile"),
        (
            (
                "a",
                6,
            ),
            {"init_bits": 4},
            r"Rule\('a'\): target_bits=6, init_bits=4",
        ),
        (("a", 0.5), {}, "1 <= target_bits"),
        (("a", "4"), {}, "target_bits='4', init_bits=6.0; they must be numbers, 1 <="),
        (("a", True), {}, "target_bits=True"),
        (("a",), {"init_bits": None}, "init_bits=None"),
        (("a",), {"matrix_axes": 3}, "matrix_axes=3"),
        (("a",), {"block": (0, 32)}, r"block=\(0, 32\)"),
        (("a",), {"block": (24, 32)}, r"block=\(24, 32\).*divide 32"),
        (("a",), {"block": 32}, "block=32"),
        (("a",), {"noise": "normal"}, "noise='normal'; it must be one of gauss, uniform, none"),
        (("a",), {"dtype": "float5"}, "dtype='float5' names no format"),
        (("a",), {"scale": "up"}, "scale='up'"),
        (("a",), {"matrix_axes": (0, 1)}, r"matrix_axes=\(0, 1\)"),
        (("a", None), {"block": (16, 16)}, "samples nothing"),
    ],
)
def test_bad_options_are_refused_when_the_rule_is_made(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Rule(*arguments, **options)


def test_options_are_those_of_a_spec():
    options = [
        f.name for f in dataclasses.fields(Spec) if f.name != "encoded"
    ]  # set by perturb_encoded
    assert list(inspect.signature(Rule).parameters) == ["pattern", *options]
    values = (3, 5, (1, 32), "uniform", "float8_e5m2", "floor", (1, 2))
    assert Rule("a", *values).spec == Spec(*values)
    assert Rule("a").spec == Spec()


def test_a_list_of_rules_is_needed():
    with pytest.raises(TypeError, match="rules is of type Rule; give a list"):
        check_rules(Rule("a"))
    with pytest.raises(TypeError, match="no Rule"):
        check_rules(["a"])


def test_a_pattern_is_a_string():
    with pytest.raises(TypeError, match=r"Rule\(b'k'\): the pattern must be a string"):
        Rule(b"k")
