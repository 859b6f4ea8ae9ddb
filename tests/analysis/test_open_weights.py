# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Weights that are read one at a time are those that are read at once."""

import re

import numpy as np
import pytest
from flax import nnx

from pqt_jax import console, export
from pqt_jax.analysis import load, open_weights
from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface, safetensors_io
from pqt_jax.quantization import packed_file
from pqt_jax.training.run import checkpoint
from pqt_jax.transform import bit_state
from pqt_jax.transform.tree_paths import paths_and_leaves
from support.exported import CONFIGS, make


def opened(argument, use):
    parser = console.Parser(prog="test")
    load.add_model_options(parser)
    return open_weights.use_model(parser.parse_args([argument]), use)


def test_a_run_is_read_parameter_by_parameter(trained_run):
    run = load.load_run(trained_run)
    whole = paths_and_leaves(bit_state.weights(run.params))

    def check(model):
        assert (
            model.config == run.config.model and model.origin == f"{trained_run}, step {run.step}"
        )
        shapes = paths_and_leaves(model.params)
        assert shapes.keys() == whole.keys()
        for path in reversed(whole):  # in any order
            assert model.read(path).tobytes() == np.asarray(whole[path]).tobytes()
            assert shapes[path].shape == whole[path].shape
        ours, theirs = bit_state.collect_bits(model.params), bit_state.collect_bits(run.params)
        for path, b_i in paths_and_leaves(theirs).items():
            assert np.array_equal(paths_and_leaves(ours)[path], b_i)
        return "done"

    assert opened(f"--workdir={trained_run}", check) == "done"


def test_damage_that_is_found_late_begins_anew_with_an_older_step(run_copy, capsys):
    seen = []

    def use(model):
        seen.append(model.origin)
        model.read("embed/embedding")
        if model.origin.endswith("step 8"):
            raise checkpoint.DamagedError("what was read next was damaged")
        return model.origin

    assert opened(f"--workdir={run_copy}", use) == f"{run_copy}, step 4"
    assert seen == [f"{run_copy}, step 8", f"{run_copy}, step 4"]
    assert capsys.readouterr().err == (
        "checkpoint of step 8 is damaged (what was read next was damaged); reading step 4\n"
    )


@pytest.mark.parametrize("name", ["gpt2 without biases", "llama of few kv heads"])
def test_a_folder_is_read_parameter_by_parameter(name, tmp_path):
    config, model = make(CONFIGS[name])
    huggingface.save(tmp_path / "m", config, nnx.state(model), dtype="float32", shard_bytes=9000)
    _, params = huggingface.load(tmp_path / "m")
    whole = paths_and_leaves(params)

    def check(model):
        assert paths_and_leaves(model.params).keys() == whole.keys()
        for path in whole:
            np.testing.assert_array_equal(model.read(path), whole[path])

    opened(f"--hf={tmp_path / 'm'}", check)


def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(tmp_path, capsys):
    config, model = make(CONFIGS["llama"])
    state = nnx.state(model)
    path, value = "h/mlp/up/kernel", float("nan")
    kernel = paths_and_leaves(state)[path].at[1, 2, 3].set(value)
    nnx.update(model, {"h": {"mlp": {"up": {"kernel": kernel}}}})
    huggingface.save(tmp_path / "m", config, nnx.state(model), dtype="float32")
    for layout in ("packed", "huggingface"):
        arguments = [f"--hf={tmp_path / 'm'}", "--format=bf16", f"--out={tmp_path / 'out'}"]
        # Seen when the parameter is read, which may be after the first ones were rounded.
        assert export.main([*arguments, f"--layout={layout}"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert f"{path} has nan at [1, 2, 3]; its training diverged" in err
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    with pytest.raises(InputError, match=re.escape(f"{path} has nan at [1, 2, 3]")):
        load.load_model(export.parse([*arguments, "--layout=huggingface"]))


def test_the_rest_has_a_dtype_of_its_own_and_files_their_size(trained_run, tmp_path, capsys):
    whole = paths_and_leaves(bit_state.weights(load.load_run(trained_run).params))
    arguments = [f"--workdir={trained_run}", "--format=fp4_e2m1", "--layout=huggingface"]
    for rest, dtype in (([], "BF16"), (["--rest=float32"], "F32"), (["--dtype=float32"], "F32")):
        out = tmp_path / "-".join(rest or ["plain"])
        assert export.main([*arguments, f"--out={out}", "--sharded-size=40KB", *rest]) == 0
        found = safetensors_io.find_tensors(out)
        assert {t.dtype for name, t in found.items() if "_proj" not in name} == {dtype}
        matrices = "F32" if rest == ["--dtype=float32"] else "BF16"
        assert {t.dtype for name, t in found.items() if "_proj" in name} == {matrices}
        assert len({t.path for t in found.values()}) > 1
        for path in out.glob("*.safetensors"):
            names = [name for name, tensor in found.items() if tensor.path == path]
            assert path.stat().st_size <= 44_000 or len(names) == 1
        if dtype == "F32":
            embedding = huggingface.open_folder(out).read("embed/embedding")
            np.testing.assert_array_equal(embedding, whole["embed/embedding"])
        assert f"in {'bfloat16' if dtype == 'BF16' else 'float32'}, which no rule covers" in (
            capsys.readouterr().out
        )
    out = tmp_path / "packed"
    assert export.main([*arguments[:2], f"--out={out}", "--rest=bfloat16"]) == 0
    packed = packed_file.read(out / packed_file.FILE)
    others = {path: x for path, x in packed.params.items() if path not in packed.plan}
    assert others and {x.dtype.name for x in others.values()} == {"bfloat16"}
    for path, x in others.items():
        np.testing.assert_array_equal(x, np.asarray(whole[path]).astype(x.dtype))
