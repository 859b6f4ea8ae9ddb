# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The model card says what is stored, what was scored, and nothing that is not known."""

import dataclasses
import json
import re
from argparse import Namespace

import jax.numpy as jnp
import pytest
from flax import nnx

from pqt_jax import evaluate, export
from pqt_jax.analysis import (
    card_losses,
    export_folder,
    export_tensors,
    exported_tokenizer,
    model_card,
    open_weights,
)
from pqt_jax.analysis.export_folder import Storage
from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface, mlx
from pqt_jax.models import Llama2
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.training import named_formats
from support import tiny

NUMBERS = Storage(layout=None, numbers="bfloat16", rest="bfloat16")
MLX = Storage(layout=mlx.LAYOUT, numbers="bfloat16", rest="float32")


def make(options, storage, name, losses=None, *, as_scored=True, change=lambda plan: plan, **plan):
    """(card, bytes of the folder's weights)."""

    def use(model):
        by_path = change(named_formats.make_plan(model.params, model.rules, name, **plan))
        tensors = export_tensors.list_tensors(model, by_path)
        export = model_card.Export(
            layout=storage.layout.name if storage.layout else "huggingface",
            format=name,
            tensors=model_card.list_tensors(model, tensors, storage),
            tokenizer=exported_tokenizer.find(options, model),
            command="python -m pqt_jax.export --out x",
        )
        these = name if as_scored else None
        about = card_losses.describe_summary(losses, these) if losses else ""
        return model_card.make(model, by_path, export, about)

    return open_weights.use_model(options, use)


def run_options(folder):
    return Namespace(workdir=str(folder), hf=None, packed=None, gguf=None)


def sections(card):
    parts = re.split(r"^## (.*)\n", card, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_a_card_of_numbers(trained_run):
    losses = card_losses.read_summary(trained_run, 8)
    card = make(run_options(trained_run), NUMBERS, "fp4_e2m1", losses)
    front, title = card.split("# ", 1)[0], re.findall(r"^# (.*)$", card, re.M)[0]
    assert front.splitlines() == [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- pqt_jax",
        "- llama",
        "- fp4-e2m1",
        "- quantization-aware-training",
        "---",
        "",
    ]
    assert title == "Llama with 37,024 parameters, FP4 E2M1"
    found = sections(card)
    assert list(found) == ["Training", "Weights", "Loss", "Tokenizer", "Loading", "How it was made"]
    assert f"from the weights of {trained_run}, step 8." in card
    assert "method `gaussws`, rounded normal noise; the run has 8 steps." in found["Training"]
    rows = found["Weights"].splitlines()
    assert rows[3:6] == [
        "| bfloat16, which no rule covers (trained in float32) | 7 | 16,544 | 33,088 | 16.000 |",
        "| bfloat16, rounded to their format | 14 | 20,480 | 40,960 | 16.000 |",
        "| all | 21 | 37,024 | 74,048 | 16.000 |",
    ]
    assert "each block of 32×32 [in, out] share a scale, a power of two." in found["Weights"]
    four = losses["fp4_e2m1"]
    row = f"| FP4 E2M1 (these) | {four:.4f} | {four - losses['master']:+.4f} |"
    assert row in found["Loss"] and "no intervals are known" in found["Loss"]
    assert found["Loss"].count("(these)") == 1 and "not scored" not in found["Loss"]
    assert "prefix_token_id=10" in found["Tokenizer"]
    assert "AutoModelForCausalLM.from_pretrained" in found["Loading"]
    assert "```sh\npython -m pqt_jax.export --out x\n```" in found["How it was made"]


def test_learned_bits_are_the_mean_of_the_parameters(trained_run):
    card = make(run_options(trained_run), NUMBERS, "mixed")
    summary = json.loads((trained_run / "summary.json").read_text())
    training = sections(card)["Training"]
    assert f"bit-widths are {summary['mean_bits']:.2f} on average, from " in training
    shares = ", ".join(f"FP12 {name} {share:.1%}" for name, share in summary["formats"].items())
    assert f"by share of the weights: {shares}." in training
    assert "## Loss" not in card


def test_a_card_of_few_bits_says_why_some_have_more(trained_run, tmp_path):
    def change(plan):  # formats of the first matrices, from the narrowest on
        plan = dict(plan)
        for i, path in enumerate(list(plan)[: len(MIXED_FORMATS)]):
            plan[path] = plan[path]._replace(index=jnp.full_like(plan[path].index, i))
        return plan

    losses = card_losses.read_summary(trained_run, 8)
    options = {"granularity": "tensor", "as_scored": False, "change": change}
    card = make(run_options(trained_run), MLX, "mixed", losses, **options)
    assert card.startswith("---\nlibrary_name: mlx\n") and "\n- mlx\n" in card
    found = sections(card)
    kinds = re.findall(
        r"^\| (.*?) \| (\d+) \| ([\d,]+) \| ([\d,]+) \| (.*) \|$", found["Weights"], re.M
    )
    by_kind = {kind: rest for kind, *rest in kinds}
    assert by_kind["float32, which no rule covers"] == ["7", "16,544", "66,176", "32.000"]
    # Of two matrices [32, 32] each, 4 bits and 8 for each 32 weights; E3M2 is stored in E4M3.
    assert by_kind["FP4 E2M1"] == ["2", "2,048", "1,088", "4.250"]
    assert by_kind["FP8 E4M3"][-1] == "8.250" and int(by_kind["FP8 E4M3"][0]) >= 4
    why = "bfloat16, rounded to FP12 E4M7, which mlx does not have"
    assert why in by_kind and "bfloat16, rounded to their format" in by_kind
    listed = found["Weights"].split("Not in few bits:")[1]
    assert "- `model.embed_tokens.weight`: float32, which no rule covers\n" in listed
    assert "- `model.layers.*.input_layernorm.weight` (2): float32, which no rule" in listed
    assert re.search(rf"- `model.layers.\*.mlp.\w+.weight` \(2\): {why}", listed)
    assert "(these)" not in found["Loss"] and "in another way, and not scored" in found["Loss"]
    folder = tmp_path / "out"
    folder.mkdir()

    def write(model):
        plan = change(
            named_formats.make_plan(model.params, model.rules, "mixed", granularity="tensor")
        )
        export_folder.write(folder, model, plan, MLX, {})

    open_weights.use_model(run_options(trained_run), write)
    stored = int(by_kind["all"][2].replace(",", ""))
    header = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert (folder / "model.safetensors").stat().st_size == stored + header


def test_of_a_model_of_others_nothing_is_made_up(tmp_path):
    model = Llama2(tiny.LLAMA2, rngs=nnx.Rngs(0))
    huggingface.save(tmp_path / "hf", tiny.LLAMA2, nnx.state(model))
    options = Namespace(workdir=None, hf=str(tmp_path / "hf"), packed=None, gguf=None)
    card = make(options, NUMBERS, "fp8_e4m3")
    found = sections(card)
    assert "## Loss" not in card and "quantization-aware" not in card
    assert found["Training"].strip() == (
        "It was trained elsewhere; nothing is known here of its training."
    )
    assert found["Tokenizer"].strip() == f"None, since {tmp_path / 'hf'} has none."
    qwen = dataclasses.replace(tiny.LLAMA2, qk_norm=True)
    huggingface.save(tmp_path / "qwen", qwen, nnx.state(Llama2(qwen, rngs=nnx.Rngs(0))))
    card = make(
        Namespace(workdir=None, hf=str(tmp_path / "qwen"), packed=None, gguf=None), NUMBERS, "bf16"
    )
    assert "\n- qwen3\n" in card and "# Qwen3 with 37," in card


def test_losses_of_other_weights_are_left_out(run_copy):
    assert card_losses.read_summary(run_copy, 8)["steps"] == 8
    assert card_losses.read_summary(run_copy, 4) is None  # of an older checkpoint
    path = run_copy / "summary.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"config": "0" * 12}))
    assert card_losses.read_summary(run_copy, 8) is None
    path.write_text(json.dumps(content | {"master": None}))
    card = make(run_options(run_copy), NUMBERS, "bf16", card_losses.read_summary(run_copy, 8))
    assert "## Loss" not in card
    path.unlink()
    assert card_losses.read_summary(run_copy, 8) is None


@pytest.mark.parametrize(
    "given, scored",
    [({}, True), ({"granularity": "block"}, True), ({"granularity": "tensor"}, False)]
    + [({"match": "noise"}, True), ({"match": "error"}, False)]
    + [({"block": (1, 32)}, False), ({"scale": "floor"}, False)],
)
def test_weights_are_as_scored_without_options_of_their_own(given, scored):
    ungiven = dict.fromkeys(["block", "scale", "granularity", "match"])
    options = Namespace(**{**ungiven, **given})
    assert model_card.is_as_scored(options) == scored


def test_every_layout_says_how_it_is_loaded():
    from pqt_jax import export

    assert {*export.LAYOUT_NAMES} - {"packed"} <= model_card.USAGE.keys()
    assert mlx.LAYOUT.name in model_card.USAGE


@pytest.mark.parametrize(
    "fields, plain",
    [
        ({}, True),
        ({"num_kv_heads": 1, "tie_embeddings": True}, True),
        ({"attention_bias": "all"}, False),
        ({"qk_norm": True}, False),
        ({"rope_scaling": "linear", "rope_factor": 2.0}, False),
        ({"head_dim": 8}, False),
    ],
)
def test_a_gguf_card_names_transformers_for_models_that_it_reads_whole(tmp_path, fields, plain):
    config = dataclasses.replace(tiny.LLAMA2, **fields)
    huggingface.save(tmp_path / "hf", config, nnx.state(Llama2(config, rngs=nnx.Rngs(0))))
    given = [f"--hf={tmp_path / 'hf'}", "--layout=gguf", "--format=bf16"]
    assert export.main([*given, f"--out={tmp_path / 'out'}"]) == 0
    loading = (tmp_path / "out/README.md").read_text().split("## Loading")[1]
    assert "llama.cpp" in loading and ("gguf_file=" in loading) == plain


def test_losses_of_evaluate_have_intervals(trained_run, tmp_path, capsys):
    text, file = tiny.write_text(tmp_path / "text.txt", 600), tmp_path / "losses.json"
    given = [f"--data={text}", "--length=16", "--weights", "fp4_e2m1", f"--json={file}"]
    assert evaluate.main([f"--workdir={trained_run}", *given]) == 0
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("FP4"))
    given = [f"--workdir={trained_run}", "--layout=mlx", f"--losses={file}"]
    assert export.main([*given, "--format=fp4_e2m1", f"--out={tmp_path / 'out'}"]) == 0
    loss = sections((tmp_path / "out/README.md").read_text())["Loss"]
    (cells,) = re.findall(r"\| FP4 E2M1 \(these\) \| (.*) \| (.*) \|", loss)
    assert all(cell in row for cell in cells) and all("[" in cell for cell in cells)
    assert f"on {text}: 599 tokens scored" in loss and "rounded in another way" not in loss
    capsys.readouterr()
    assert export.main([*given, "--format=fp8_e4m3", f"--out={tmp_path / 'other'}"]) == 0
    loss = sections((tmp_path / "other/README.md").read_text())["Loss"]
    assert "(these)" not in loss and "rounded in another way, and not scored" in loss


def test_losses_of_other_weights_or_files_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"weights": {}}')
    with pytest.raises(InputError, match="a.json is no file of pqt_jax.evaluate --json"):
        card_losses.read_evaluation(tmp_path / "a.json", "run, step 8")
    interval = {"value": 1.0, "low": 0.5, "high": 1.5}
    weights = {"master": {"loss": interval, "difference": interval}}
    content = {"weights": weights, "origin": "run, step 4", "data": "x", "scored": 7}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is of run, step 4, and the weights are of run, step 8"):
        card_losses.read_evaluation(tmp_path / "a.json", "run, step 8")
    assert card_losses.read_evaluation(tmp_path / "a.json", "run, step 4") == content
