# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The exported weights are the quantized ones, and a folder is written whole or not at all."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from pqt_jax import console, evaluate, export, generate
from pqt_jax.analysis import export_weights, load
from pqt_jax.errors import InputError
from pqt_jax.interchange import gguf_reader, gguf_tensors, huggingface
from pqt_jax.models import GPT2, Llama2
from pqt_jax.quantization import packed_file
from pqt_jax.training import named_formats
from pqt_jax.training.config import saved_config
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import tiny
from support.command import refused
from support.paths import ROOT

FORMATS = [*named_formats.FORMATS, "mixed"]
ALIKE = ("bf16", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1")
SLOWER = [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else ()) for n in FORMATS]


def run(*arguments):
    assert export.main(arguments) == 0


def plan_of(loaded, name, **options):
    return named_formats.make_plan(loaded.params, loaded.rules, name, **options)


def read(path):
    parser = console.Parser(prog="test")
    load.add_model_options(parser)
    return load.load_model(parser.parse_args([path]))


def same(a, b):
    a, b = paths_and_leaves(a), paths_and_leaves(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype
        np.testing.assert_array_equal(
            np.asarray(a[path]).view(np.uint32), np.asarray(b[path]).view(np.uint32), path
        )


@pytest.mark.parametrize("name", SLOWER)
def test_what_is_packed_comes_back_as_it_was_rounded(trained_run, tmp_path, name, capsys):
    run(f"--workdir={trained_run}", f"--format={name}", f"--out={tmp_path / 'out'}")
    shown = capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["SHA256SUMS", "report.json", "report.png", "report.txt", "weights.safetensors"]
    assert (tmp_path / "out/report.txt").read_text() in shown
    original, loaded = read(f"--workdir={trained_run}"), read(f"--packed={tmp_path / 'out'}")
    rounded = named_formats.round_by_plan(original.params, plan_of(original, name))
    same(loaded.params, rounded)
    assert loaded.config == original.config
    rows = json.loads((tmp_path / "out/report.json").read_text())
    assert len(rows) == 14 and all(0 < row["error"] < 0.2 for row in rows)


@pytest.mark.slow
def test_evaluating_the_packed_weights_is_evaluating_the_rounded(trained_run, tmp_path, capsys):
    text = tiny.write_text(tmp_path / "text.txt", 3000)
    run(f"--workdir={trained_run}", "--format=fp4_e2m1", f"--out={tmp_path / 'out'}")
    arguments = [f"--data={text}", "--length=16", f"--json={tmp_path / 'a.json'}"]
    assert evaluate.main([f"--workdir={trained_run}", *arguments, "--weights=fp4_e2m1"]) == 0
    own = json.loads((tmp_path / "a.json").read_text())["weights"]["fp4_e2m1"]["loss"]
    assert evaluate.main([f"--packed={tmp_path / 'out'}", *arguments, "--weights=master"]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["weights"]["master"]["loss"] == own
    capsys.readouterr()
    texts = []
    for origin in (
        [f"--workdir={trained_run}", "--weights=fp4_e2m1"],
        [f"--packed={tmp_path}/out"],
    ):
        assert generate.main([*origin, "--tokens=8", "--prompt=the "]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("name", "dtype", "own"),
    [
        ("fp6_e3m2", "bfloat16", {}),
        # bfloat16 would not hold it.
        pytest.param("fp4_e2m1", "float32", {"scale": "exact"}, marks=pytest.mark.slow),
        pytest.param("mixed", "float32", {}, marks=pytest.mark.slow),
        ("master", None, {}),  # float32, as trained
    ],
)
def test_hugging_face_gets_the_rounded_weights_as_numbers(trained_run, tmp_path, name, dtype, own):
    out = tmp_path / name
    options = ["--layout=huggingface", f"--format={name}", f"--out={out}"]
    options += ["--scale=exact"] if own else [f"--dtype={dtype}"] if dtype else []
    run(f"--workdir={trained_run}", *options)
    original, loaded = read(f"--workdir={trained_run}"), read(f"--hf={out}")
    want = paths_and_leaves(
        named_formats.round_by_plan(original.params, plan_of(original, name, **own))
    )
    for path, leaf in paths_and_leaves(loaded.params).items():
        exact = dtype != "bfloat16" or path.startswith("h/") and path.endswith("kernel")
        rounded = np.asarray(want[path].astype(dtype).astype("float32"))
        np.testing.assert_array_equal(leaf, want[path] if exact else rounded)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "compressed-tensors"])
def test_the_scale_of_least_error_is_exported(trained_run, tmp_path, layout):
    options = [f"--layout={layout}", "--format=fp4_e2m1", "--scale=mse", "--rest=float32"]
    run(f"--workdir={trained_run}", *options, f"--out={tmp_path / 'out'}")
    original = read(f"--workdir={trained_run}")
    plan = plan_of(original, "fp4_e2m1", scale="mse")
    want = named_formats.round_by_plan(original.params, plan)
    source = "packed" if layout == "packed" else "hf"
    same(read(f"--{source}={tmp_path / 'out'}").params, want)
    ceil = named_formats.round_by_plan(original.params, plan_of(original, "fp4_e2m1"))
    pairs = zip(jax.tree.leaves(ceil), jax.tree.leaves(want), strict=True)
    assert any((a != b).any() for a, b in pairs)


@pytest.mark.slow
def test_options_reach_the_plan(trained_run, tmp_path):
    original = read(f"--workdir={trained_run}")
    cases = [
        ("fp4_e2m1", {"block": (1, 32), "scale": "exact"}, ["--block=1x32", "--scale=exact"]),
        ("mixed", {"granularity": "model", "share": 0.5}, ["--granularity=model", "--share=0.5"]),
        ("mixed", {"match": "error"}, ["--match=error"]),
    ]
    for i, (name, options, arguments) in enumerate(cases):
        out = tmp_path / str(i)
        run(f"--workdir={trained_run}", f"--format={name}", f"--out={out}", *arguments)
        want = named_formats.round_by_plan(original.params, plan_of(original, name, **options))
        same(read(f"--packed={out}").params, want)


@pytest.mark.slow
@pytest.mark.parametrize("config", [tiny.LLAMA2, tiny.OTHERS], ids=["llama", "qwen3"])
def test_a_hugging_face_model_is_packed_too(tmp_path, config):
    model = Llama2(config, rngs=nnx.Rngs(0))
    huggingface.save(tmp_path / "hf", config, nnx.state(model), dtype="float32")
    run(f"--hf={tmp_path / 'hf'}", "--format=fp8_e4m3", f"--out={tmp_path / 'out'}")
    original, loaded = read(f"--hf={tmp_path / 'hf'}"), read(f"--packed={tmp_path / 'out'}")
    same(loaded.params, named_formats.round_by_plan(original.params, plan_of(original, "fp8_e4m3")))
    assert loaded.config == original.config == config


def test_a_file_that_an_older_version_packed_is_a_llama_2(tmp_path):
    params = nnx.state(Llama2(tiny.LLAMA2, rngs=nnx.Rngs(0)))
    model = export_weights.describe_model(tiny.LLAMA2)
    for name in saved_config._ADDED:
        model.pop(name.removeprefix("model."), None)
    assert "qk_norm" not in model
    packed_file.write(tmp_path / packed_file.FILE, params, {}, model)
    loaded = read(f"--packed={tmp_path}")
    assert loaded.config == tiny.LLAMA2
    same(loaded.params, params)


def test_what_is_there_is_not_replaced_unasked(trained_run, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [f"--workdir={trained_run}", f"--out={out}"]
    run(*arguments, "--format=fp8_e4m3")
    before = (out / packed_file.FILE).read_bytes()
    assert "give another folder, or --overwrite to replace it" in refused(
        export.main, [*arguments, "--format=fp4_e2m1"], capsys
    )
    assert (out / packed_file.FILE).read_bytes() == before
    run(*arguments, "--format=fp4_e2m1", "--overwrite")
    assert len((out / packed_file.FILE).read_bytes()) < len(before)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_exports_are_replaced(tmp_path, capsys):
    """Neither the model that is read, nor a folder of the same names by somebody else."""
    params = nnx.state(Llama2(tiny.LLAMA2, rngs=nnx.Rngs(0)))
    for name in ("model", "other"):
        huggingface.save(tmp_path / name, tiny.LLAMA2, params)
        (tmp_path / name / "README.md").write_text("Somebody's model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given = [f"--hf={tmp_path / 'model'}", "--format=bf16", "--overwrite"]
    for layout in ("gguf", "packed", "huggingface"):
        for out, words in (
            (tmp_path / "model", "is the folder of --hf; give another folder"),
            (
                tmp_path / "other",
                "holds no SHA256SUMS, by which an export of pqt_jax is known; noth",
            ),
        ):
            arguments = [*given, f"--layout={layout}", f"--out={out}"]
            assert words in refused(export.main, arguments, capsys)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for layout in ("gguf", "packed", "gguf"):
        run(*given, f"--layout={layout}", f"--out={tmp_path / 'out'}")


@pytest.mark.parametrize("layout", ["packed", "huggingface", "gguf", "mlx"])
def test_what_was_changed_in_an_export_is_not_replaced(trained_run, tmp_path, layout, capsys):
    """Fine-tuned weights, notes in the model card, a shard of another model."""
    out = tmp_path / "out"
    arguments = [f"--workdir={trained_run}", "--format=fp4_e2m1", f"--layout={layout}"]
    arguments += [f"--out={out}", "--overwrite"]
    run(*arguments)
    whole = {path: path.read_bytes() for path in out.iterdir()}
    for path in [*whole, out / "model-00001-of-00002.safetensors"]:
        if path.name == "SHA256SUMS":
            continue
        path.write_bytes(whole.get(path, b"") + b" mine")
        why = "was changed since it was exported" if path in whole else "the export did not write"
        said = refused(export.main, arguments, capsys)
        assert f"--out={out} holds {path.name}, which {why}; nothing is deleted" in said
        assert path.read_bytes().endswith(b" mine")
        path.unlink()
        if path in whole:
            path.write_bytes(whole[path])
    run(*arguments)


@pytest.mark.parametrize("layout", ["compressed-tensors", "quark"])
def test_scales_of_squares_are_those_of_all_their_weights(tmp_path, layout, capsys):
    config = dataclasses.replace(tiny.LLAMA2, d_model=64, d_ff=128)
    params = nnx.state(Llama2(config, rngs=nnx.Rngs(0)))
    huggingface.save(tmp_path / "hf", config, params, dtype="float32")
    given = [f"--hf={tmp_path / 'hf'}", "--format=fp8_e4m3"]
    for block in ("32x32", "64x32", "32x64", "32x1", "64x16"):
        squares, numbers = tmp_path / f"{block}-squares", tmp_path / f"{block}-numbers"
        arguments = [*given, f"--layout={layout}", "--squares", f"--block={block}"]
        arguments.append(f"--out={squares}")
        if int(block.split("x")[1]) % 32:
            said = refused(export.main, arguments, capsys)
            assert f"has blocks of {block}; leave it out, or give --block=32x32" in said
            assert "--squares stores a scale for each 32x32 weights, and " in said
            assert not squares.exists()
            continue
        run(*arguments)
        run(*given, "--layout=huggingface", f"--block={block}", f"--out={numbers}")
        same(read(f"--hf={squares}").params, read(f"--hf={numbers}").params)


def test_a_layout_of_few_bits_for_no_matrix_is_refused(tmp_path, capsys):
    config = dataclasses.replace(tiny.LLAMA2, d_model=36, num_heads=2, d_ff=40)
    huggingface.save(tmp_path / "hf", config, nnx.state(Llama2(config, rngs=nnx.Rngs(0))))
    for layout in ("compressed-tensors", "mlx", "quark"):
        arguments = [f"--hf={tmp_path / 'hf'}", "--format=fp4_e2m1", f"--layout={layout}"]
        said = refused(export.main, [*arguments, f"--out={tmp_path / 'out'}"], capsys)
        assert f"--layout={layout}: no matrix would be in few bits, model.layers.0." in said
        assert "since 32 does not divide their inputs; give --layout=huggingface" in said
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rest", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "name, kind", [("bf16", "BF16"), ("fp8_e4m3", "BF16"), ("fp6_e2m3", "Q8_0"), ("mixed", "BF16")]
)
def test_a_gguf_file_has_the_types_that_its_card_lists(trained_run, tmp_path, name, kind, rest):
    """Rounded matrices do not grow with --rest=float32, which is for the others."""
    options = ["--granularity=tensor"] if name == "mixed" else []
    out = tmp_path / "out"
    run(
        *(f"--workdir={trained_run}", "--layout=gguf", f"--format={name}", f"--rest={rest}"),
        *(f"--out={out}", *options),
    )
    stored = gguf_reader.read(out / "model.gguf").tensors
    kinds = {tensor: gguf_tensors.TensorType(x.type).name for tensor, x in stored.items()}
    matrices = {tensor: kinds.pop(tensor) for tensor in stored if "ffn_up" in tensor}
    assert set(matrices.values()) == {kind}
    assert kinds["token_embd.weight"] == ("F32" if rest == "float32" else "BF16")
    card = (out / "README.md").read_text()
    listed = re.search(r"^\| all \| [\d,]+ \| [\d,]+ \| ([\d,]+) \|", card, re.MULTILINE)
    sizes = [gguf_tensors.size(gguf_tensors.TensorType(x.type), x.shape) for x in stored.values()]
    assert int(listed[1].replace(",", "")) == sum(sizes)


def test_numbers_that_bfloat16_lacks_are_refused_or_stay(tmp_path, capsys):
    params = nnx.state(Llama2(tiny.LLAMA2, rngs=nnx.Rngs(0)))
    params["embed"]["embedding"] = params["embed"]["embedding"].at[3, 4].set(3.4028e38)
    huggingface.save(tmp_path / "model", tiny.LLAMA2, params, dtype="float32")
    for layout in ("gguf", "huggingface", "mlx"):
        given = [f"--hf={tmp_path / 'model'}", "--format=fp4_e2m1", f"--layout={layout}"]
        given += [f"--out={tmp_path / layout}"]
        said = refused(export.main, given, capsys)
        assert "3.4028e+38 is too large for bfloat16; give --rest=float32" in said
        assert "embed_tokens.weight" in said and not (tmp_path / layout).exists()
        run(*given, "--rest=float32")


def test_nothing_is_left_of_an_export_that_fails(trained_run, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError

    monkeypatch.setattr(export_weights.report_figure, "draw_report", fail)
    with pytest.raises(RuntimeError):
        export.main([f"--workdir={trained_run}", "--format=fp8_e4m3", f"--out={tmp_path / 'out'}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, size", [("700", 700), ("40KB", 40_000), ("1.5GB", 1_500_000_000), ("0.25MB", 250_000)]
)
def test_a_size_may_have_a_unit_and_a_fraction(text, size):
    valid = ["--workdir=run", "--format=fp8_e4m3", "--out=out", "--layout=mlx"]
    assert export.parse([*valid, f"--sharded-size={text}"]).sharded_size == size


BAD_OPTIONS = {
    "--format=fp5": "--format: invalid choice: 'fp5'",
    "--out=": "--out= is empty",
    "--format=master": "--format=master goes with --layout=huggingface",
    "--dtype=float32": "--dtype goes with --layout=huggingface",
    "--block=33x32": "--block: '33x32'; it must be two sides such as 32x32 or 1x32",
    "--block=32": "--block: '32'; it must be two sides",
    "--scale=round": "--scale: invalid choice: 'round' (choose from ",
    "--granularity=tensor": "--granularity does not go with --format=fp8_e4m3",
    "--match=error": "--match does not go with --format=fp8_e4m3",
    "--format=mixed --match=size": "--match: invalid choice: 'size'",
    "--format=mixed --scale=floor": "--scale does not go with --format=mixed",
    "--format=mixed --share=0.5": "--share goes with --granularity=tensor or model",
    "--share=0": "--share: '0'; it must be above 0 and at most 1",
    "--layout=huggingface --scale=exact --dtype=bfloat16": "give float32",
    "--layout=mlx --format=fp6_e2m3": "--layout=mlx has fp4_e2m1, fp8_e4m3",
    "--layout=quark --scale=exact": "--scale=exact: the scales of --layout=quark are powers of two",
    "--layout=gguf --scale=exact": "--scale=exact: the scales of --layout=gguf are powers of two",
    "--layout=gguf --format=mixed": "has one format for each tensor; give --granularity=tensor",
    "--layout=mlx --format=mixed --granularity=block": "give --granularity=tensor",
    "--layout=mlx --squares": "--squares goes with --layout=compressed-tensors --format=fp8_e4m3",
    "--layout=gguf --dtype=float32": "--dtype goes with --layout=huggingface",
    "--layout=gguf --sharded-size=1GB": "--sharded-size goes with Hugging Face folders",
    "--layout=mlx --sharded-size=0": "--sharded-size: '0'; it must be a number of bytes such as",
    "--layout=mlx --sharded-size=0.5": "--sharded-size: '0.5'; it must be a number of bytes such",
    "--losses=x": "--losses goes with layouts that have a model card",
    "--hf=x": "not allowed with argument --workdir",
}


@pytest.mark.parametrize("arguments", BAD_OPTIONS)
def test_options_that_cannot_be_used_are_refused(arguments):
    valid = ["--workdir=run", "--format=fp8_e4m3", "--out=out"]
    with pytest.raises(InputError, match=re.escape(BAD_OPTIONS[arguments])):
        export.parse([*valid, *arguments.split()])


def test_a_refusal_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--workdir=run", "--format=fp5", "--out=out"]
    assert "--format: invalid choice: 'fp5'" in refused(export.main, arguments, capsys)
    assert not list(tmp_path.iterdir())


def test_a_run_does_not_lose_its_checkpoints(run_copy, capsys):
    before = sorted(run_copy.rglob("*"))
    step = max((run_copy / "checkpoints").iterdir())
    for folder, words in (
        (step / "state", "which does not belong to an earlier output; nothing is deleted"),
        (step.parent / "900", "is among a run's checkpoints; give another folder"),
        (step / "export", "is among a run's checkpoints; give another folder"),
    ):
        arguments = [f"--workdir={run_copy}", "--format=bf16", f"--out={folder}", "--overwrite"]
        assert words in refused(export.main, arguments, capsys)
    assert sorted(run_copy.rglob("*")) == before


@pytest.mark.slow
def test_a_reader_that_has_left_and_a_full_disk(trained_run, tmp_path):
    command = [sys.executable, "-m", "pqt_jax.export", f"--workdir={trained_run}", "--format=bf16"]
    reader, unread = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    failure = "error: cannot write standard output: no space left on device; "
    for stdout, code, says in ((unread, 141, ""), (full, 1, failure)):
        out = tmp_path / str(code)
        done = subprocess.run(
            [*command, f"--out={out}"], stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        os.close(stdout)
        assert done.returncode == code and done.stderr.startswith(says)
        assert done.stderr.count("\n") == bool(says)
        assert packed_file.read(out / packed_file.FILE).params  # printed about once it is whole


def test_packed_weights_are_not_exported_again_and_need_a_model(tmp_path, capsys):
    arguments = ["--format=fp8_e4m3", f"--out={tmp_path / 'out'}"]
    message = refused(export.main, [f"--packed={tmp_path}", *arguments], capsys)
    assert "those weights are exported already" in message
    packed_file.write(
        tmp_path / packed_file.FILE, {"w": jax.numpy.ones((3, 3))}, {}, {"name": "bert"}
    )
    with pytest.raises(InputError, match="describes no model of this version"):
        read(f"--packed={tmp_path}")
    model = export_weights.describe_model(tiny.LLAMA2)
    for field, value in {
        "num_heads": 0,
        "d_model": 33,
        "vocab_size": "256",
        "dtype": "foo",
        "max_length": {"a": 1},
        "tie_embeddings": 1,
        "wide": True,
    }.items():
        packed_file.write(
            tmp_path / packed_file.FILE, {"w": jax.numpy.ones((3, 3))}, {}, model | {field: value}
        )
        with pytest.raises(InputError, match=f"no model of this version: config.model.*{field}"):
            read(f"--packed={tmp_path}")
    packed_file.write(tmp_path / packed_file.FILE, {"w": jax.numpy.ones((3, 3))}, {}, model)
    with pytest.raises(InputError, match="which is not the model's"):
        read(f"--packed={tmp_path}")


def test_what_a_layout_cannot_store_is_refused(trained_run, tmp_path, capsys):
    model = GPT2(tiny.GPT2, rngs=nnx.Rngs(0))
    huggingface.save(tmp_path / "gpt2", tiny.GPT2, nnx.state(model), dtype="float32")
    four = ["--format=fp4_e2m1", f"--out={tmp_path / 'out'}"]
    cases = [
        (
            f"--hf={tmp_path / 'gpt2'}",
            "--layout=mlx",
            "is for models like llama2, and .* is a gpt2; give --layou",
        ),
        (
            f"--workdir={trained_run}",
            "--layout=mlx --block=1x32",
            "has blocks of 1x32; give --block=",
        ),
        (
            f"--workdir={trained_run}",
            "--layout=gguf --block=16x16",
            "has blocks of 16x16; give --blo",
        ),
        (
            f"--workdir={trained_run}",
            "--layout=quark --losses=none",
            "none: No such file or directory",
        ),
    ]
    for source, options, message in cases:
        said = refused(export.main, [source, *options.split(), *four], capsys)
        assert re.search(message, said), said
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2"]
