# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Each example runs and shows what it says that it shows."""

import importlib.util
import json

import jax
import numpy as np
import pytest
from flax import nnx

from pqt_jax import BitParam
from pqt_jax.interchange import huggingface
from support.paths import ROOT

EXAMPLES = ROOT / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test():
    assert {path.stem for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} == {
        "huggingface_train_export",
        "linen_train_state",
        "nnx_loop_orbax",
        "param_tree_mesh",
        "what_noise_does",
    }


@pytest.mark.slow
def test_a_resumed_nnx_loop_ends_with_the_bits_of_a_straight_one(tmp_path, monkeypatch):
    example = load("nnx_loop_orbax")
    monkeypatch.setattr(example, "STEPS", 8)
    monkeypatch.setattr(example, "STOP", 3)
    straight, resumed = example.main(tmp_path)
    a, b = (jax.tree.leaves(nnx.state(model)) for model in (straight, resumed))
    assert all(map(np.array_equal, a, b))
    first, _ = example.make_model()
    assert not np.array_equal(a[0], jax.tree.leaves(nnx.state(first))[0])
    assert jax.tree.leaves(nnx.state(resumed, BitParam))


def test_a_linen_train_state_updates_weights_and_bits(monkeypatch, capsys):
    example = load("linen_train_state")
    monkeypatch.setattr(example, "STEPS", 25)
    before, after = example.make_state(), example.main()
    for old, new in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True):
        assert not np.array_equal(old, new)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[:2]]
    assert losses[1] < losses[0] / 2


@pytest.mark.slow
def test_a_plain_tree_has_the_same_bits_on_a_mesh(monkeypatch):
    example = load("param_tree_mesh")
    monkeypatch.setattr(example, "STEPS", 2)
    one, eight = example.main()
    assert len(eight["layer0"]["kernel"].sharding.device_set) == 8
    assert all(map(np.array_equal, *map(jax.tree.leaves, (one, eight))))
    first = example.make_variables()["params"]["layer0"]["kernel"]
    assert not np.array_equal(one["layer0"]["kernel"], first.astype("bfloat16"))


@pytest.mark.slow
def test_a_hugging_face_folder_is_trained_on_and_exported(tmp_path):
    out = load("huggingface_train_export").main(tmp_path, steps=4)
    _, start = huggingface.load(tmp_path / "start")
    _, trained = huggingface.load(out)
    a, b = (jax.tree.leaves(params) for params in (start, trained))
    assert [x.shape for x in a] == [x.shape for x in b]
    assert not any(map(np.array_equal, a, b))
    assert (tmp_path / "packed" / "weights.safetensors").is_file()


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "show", lambda: (drawn.append(pyplot.gcf()), pyplot.close()))
    notebook = json.loads((EXAMPLES / "what_noise_does.ipynb").read_text())
    names = {}
    for number, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        assert not cell["outputs"]
    assert len(drawn) == 4
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("largest distance of R from a whole number: ")
    assert float(said[0].split()[-1]) < 1e-3
    assert said[1] == "True"
