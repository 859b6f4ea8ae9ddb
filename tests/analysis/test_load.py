# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Trained weights are read as they were saved, and nothing in a run is changed by it."""

import dataclasses
import fcntl
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from pqt_jax import BitParam, console, evaluate, export, generate, param_transform
from pqt_jax.analysis import export_weights, load
from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface
from pqt_jax.models import GPT2, Llama2
from pqt_jax.quantization import packed_file
from pqt_jax.quantization.quantize import apply, quantize
from pqt_jax.training import methods, named_formats
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.training.run import workdir
from pqt_jax.transform.bit_state import collect_bits, weights
from pqt_jax.transform.rules import Rule
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import tiny


def listing(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def test_a_run_is_read_while_it_is_locked_and_nothing_changes(trained_run):
    before = listing(trained_run)
    with (trained_run / "run.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = load.load_run(trained_run)
    assert listing(trained_run) == before
    assert run.step == 8 and run.config.pqt.block == (32, 32)
    with ocp.CheckpointManager(trained_run.absolute() / "checkpoints") as manager:
        items = ocp.args.Composite(state=ocp.args.StandardRestore())
        saved = manager.restore(8, args=items)["state"]["params"]
    saved = {
        k: v["value"] if isinstance(v, dict) else v for k, v in paths_and_leaves(saved).items()
    }
    loaded = paths_and_leaves(run.params)
    assert loaded.keys() == {path.removesuffix("/value") for path in saved}
    for path, leaf in saved.items():
        np.testing.assert_array_equal(loaded[path.removesuffix("/value")], leaf)
    model = nnx.merge(run.graph, weights(run.params))  # the bare structure takes the weights
    assert model.config == tiny.LLAMA2 and not nnx.state(model, BitParam)
    assert collect_bits(run.params)["h"]["attn"]["q"]["kernel"].shape == (2, 1, 1)


def damage(folder):
    data = [p for p in (folder / "state").rglob("d/*") if p.is_file()]
    assert data  # which of them hold parameters is Orbax's affair
    for path in data:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_and_stays(run_copy, capsys):
    checkpoints = run_copy / "checkpoints"
    damage(checkpoints / "8")
    before = listing(run_copy)
    assert load.load_run(run_copy).step == 4
    err = capsys.readouterr().err
    assert err.startswith("checkpoint of step 8 is damaged (") and err.count("\n") == 1
    assert "reading step 4" in err and listing(run_copy) == before
    damage(checkpoints / "4")
    every = "no checkpoint in .* can be read .step 8: .*; step 4: "
    with pytest.raises(InputError, match=every):
        load.load_run(run_copy)
    shutil.rmtree(checkpoints)
    with pytest.raises(InputError, match="holds no checkpoint; train first"):
        load.load_run(run_copy)


def test_a_checkpoint_that_the_trainer_deletes_gives_way_to_its_next(run_copy, monkeypatch, capsys):
    folder, listed = run_copy / "checkpoints", workdir.saved_steps
    (folder / "8").rename(folder / "hidden")

    def trainer_at_work(path):
        steps = listed(path)
        if (folder / "4").exists():  # after the listing: step 8 is saved and step 4 deleted
            shutil.rmtree(folder / "4")
            (folder / "hidden").rename(folder / "8")
        return steps

    monkeypatch.setattr(workdir, "saved_steps", trainer_at_work)
    assert load.load_run(run_copy).step == 8
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "holds no run.json; give the workdir of a training run"),
        ("{", "run.json in it is damaged"),
        ("[1]", "run.json in it is damaged"),
        ("no width", "damaged or of another version: config.model.d_model is missing"),
        ("no steps", "checkpoints/8: config.steps was 8 and is 1000, which changes every step"),
        ("no model", "run.json in it is damaged or of another version: config.model.name=None"),
        ("odd model", "run.json in it is damaged or of another version: config.model"),
        ("no pattern", "damaged or of another version: config.pqt.pattern='x': .* no parameter"),
        ("infinite", "damaged or of another version: config.steps=inf; it must be a whole"),
        ("other seed", "checkpoints/8 belongs to another run: config.seed was 0 and is 1"),
    ],
)
def test_run_json_that_does_not_fit_is_one_line(run_copy, content, message):
    path = run_copy / "run.json"
    meta = json.loads(path.read_text())
    if content is None:
        path.unlink()
    else:
        changes = {
            "no width": lambda config: config["model"].pop("d_model"),
            "no steps": lambda config: config.pop("steps"),  # and so the default
            "no model": lambda config: config.pop("model"),
            "odd model": lambda config: config.update(model=3),
            "no pattern": lambda config: config["pqt"].update(pattern="x"),
            "infinite": lambda config: config.update(steps=float("inf")),
            "other seed": lambda config: config.update(seed=1),
        }
        if content in changes:
            changes[content](meta["config"])
            content = json.dumps(meta)
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load.load_run(run_copy)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_of_an_older_version_is_read(run_copy, capsys):
    """Its run.json lacks fields that exist now, which then have their defaults."""
    expected = load.load_run(run_copy).config.to_dict()
    path = run_copy / "run.json"
    meta = json.loads(path.read_text())
    for section, name in (("model", "remat"), ("pqt", "noise_per"), ("data", "tokens")):
        del meta["config"][section][name]
    del meta["config"]["init_from"]
    meta["config"]["model"]["attention"] = "xla"  # once the default
    path.write_text(json.dumps(meta))
    run = load.load_run(run_copy)
    assert run.step == 8 and run.config.to_dict() == expected
    text = tiny.write_text(run_copy.parent / "other.txt", 200)
    out = run_copy.parent / "packed"
    for command, options in (
        (export, ["--format=fp8_e4m3", f"--out={out}"]),
        (evaluate, [f"--data={text}", "--weights=fp8_e4m3"]),
        (generate, ["--prompt=the ", "--tokens=4"]),
    ):
        assert command.main([f"--workdir={run_copy}", *options]) == 0, capsys.readouterr().err


def test_what_is_no_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for name, message in (("none", "does not exist"), ("file", "is not a directory")):
        with pytest.raises(InputError, match=f"{name} {message}; give the workdir"):
            load.load_run(tmp_path / name)


def test_weights_are_rounded_as_the_run_says(trained_run):
    run = load.load_run(trained_run)
    rules = quantization_rules(run.config)
    master = weights(run.params)
    bits = collect_bits(run.params)
    expected = {name: quantize(master, rules, fmt) for name, fmt in named_formats.FORMATS.items()}
    transform = param_transform(methods.make_rules(run.config))
    expected |= {"master": master, "mixed": transform.quantize(master, bits)}
    assert expected.keys() == named_formats.LABELS.keys()
    for name, tree in expected.items():
        loaded = named_formats.round_by_plan(
            run.params, named_formats.make_plan(run.params, rules, name)
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("float32")}
        jax.tree.map(np.testing.assert_array_equal, loaded, tree)
    with pytest.raises(InputError, match="no bits were learned"):
        named_formats.make_plan(master, rules, "mixed")
    with pytest.raises(InputError, match="'int4'; it must be one of master, bf16"):
        named_formats.make_plan(master, rules, "int4")


def arguments(*given):
    parser = console.Parser(prog="test")
    load.add_model_options(parser)
    return parser.parse_args(given)


def test_a_hugging_face_folder(tmp_path):
    config = dataclasses.replace(tiny.GPT2, bias=True)  # as transformers has it
    model = GPT2(config, rngs=nnx.Rngs(3))
    huggingface.save(tmp_path / "gpt2", config, nnx.state(model), dtype="float32")
    loaded = load.load_model(arguments(f"--hf={tmp_path / 'gpt2'}"))
    assert loaded.run_config is None and loaded.origin == str(tmp_path / "gpt2")
    assert loaded.config == dataclasses.replace(config, dtype="float32")
    wanted = nnx.to_pure_dict(nnx.state(model))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(loaded.params), wanted)
    plan = named_formats.make_plan(loaded.params, loaded.rules, "fp4_e2m1")
    rounded = paths_and_leaves(named_formats.round_by_plan(loaded.params, plan))
    master = paths_and_leaves(loaded.params)
    changed = {path for path, leaf in rounded.items() if (leaf != master[path]).any()}
    assert changed and all(path.startswith("h/") and path.endswith("kernel") for path in changed)
    model.norm.scale[...] = jnp.full(32, jnp.nan)
    huggingface.save(tmp_path / "nan", config, nnx.state(model))
    with pytest.raises(InputError, match=r"norm/scale has nan at \[0\]; its training diverged"):
        load.load_model(arguments(f"--hf={tmp_path / 'nan'}"))
    with pytest.raises(InputError, match="none is missing; give a folder with config.json"):
        load.load_model(arguments(f"--hf={tmp_path / 'none'}"))


@pytest.mark.slow
def test_products_with_exact_scales_are_not_rounded_again(tmp_path):
    """They take float32, also where the parameters are bfloat16."""
    config = dataclasses.replace(tiny.LLAMA2, param_dtype="bfloat16")
    params = nnx.state(Llama2(config, rngs=nnx.Rngs(0)))
    plan = named_formats.make_plan(params, [Rule("h/.*/kernel")], "fp4_e2m1", scale="exact")
    want = apply(plan, weights(params))
    packed_file.write(
        tmp_path / packed_file.FILE, weights(params), plan, export_weights.describe_model(config)
    )
    for loaded in (named_formats.round_by_plan(params, plan), load.load_packed(tmp_path)[2]):
        jax.tree.map(np.testing.assert_array_equal, loaded, want)
        kernels = {leaf.dtype for path, leaf in paths_and_leaves(loaded).items() if path in plan}
        assert kernels == {np.dtype("float32")}
