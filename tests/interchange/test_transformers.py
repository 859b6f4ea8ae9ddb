# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""transformers with PyTorch computes the same from what is exported, and from what is imported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.interchange import gguf_model, gguf_tokenizer, huggingface
from pqt_jax.models import build_model
from support import gguf_files
from support.exported import ALL, CONFIGS, make
from support.random_model import make_abstract

torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'peers'")

TOKENS = np.arange(2 * 16).reshape(2, 16) * 37 % 256
PROMPT, NEW = TOKENS[:1, :6], 32


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def check_logits(found, expected):
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def continuation(model):
    """Greedy, by full passes over a sequence whose unread end does not matter."""
    logits = jax.jit(lambda tokens: model(tokens))
    tokens = np.zeros((1, PROMPT.size + NEW), int)
    tokens[:, : PROMPT.size] = PROMPT
    for i in range(PROMPT.size, tokens.size):
        tokens[0, i] = np.asarray(logits(jnp.asarray(tokens)))[0, i - 1].argmax()
    return tokens


@pytest.mark.parametrize(  # "qwen3 with biases" has all options of "qwen3"
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "qwen3" else ()) for n in ALL]
)
def test_transformers_computes_the_same_from_an_export(tmp_path, name):
    config, model = make(ALL[name])
    huggingface.save(
        tmp_path / "out", config, nnx.state(model), dtype="float32", shard_bytes=30_000
    )
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    assert theirs.dtype == torch.float32
    tied = theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    assert tied == config.tie_embeddings
    expected = np.asarray(model(jnp.asarray(TOKENS)))
    check_logits(their_logits(theirs, TOKENS), expected)
    prompt = torch.tensor(PROMPT)
    mask = torch.ones_like(prompt)
    found = theirs.generate(prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    ours = continuation(model)
    np.testing.assert_array_equal(found.numpy(), ours)
    if name != "llama tied":  # whose large embedding finds itself again
        assert len(set(ours[0, PROMPT.size :])) > 3


def test_transformers_reads_bfloat16(tmp_path):
    config, model = make(CONFIGS["gpt2"])
    huggingface.save(tmp_path / "out", config, nnx.state(model))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    loaded = huggingface.load(tmp_path / "out")[1]["embed"]["embedding"]
    np.testing.assert_array_equal(theirs.transformer.wte.weight.float().detach().numpy(), loaded)


@pytest.mark.parametrize("name", [*[*CONFIGS][:6], "qwen2"])
def test_transformers_reads_a_gguf_file_as_the_same_numbers(tmp_path, name):
    """transformers takes 1024 positions and d_ff = 4 · d_model for granted in a GPT-2 of GGUF.

    It passes over scaled positions, the size of heads, and biases of "llama".
    """
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package, reason="needs the extra 'peers'")
    config, params = gguf_files.make(name, max_length=1024, d_ff=128)
    values, rounded = gguf_files.encode_model(config, params, gguf_files.mixed)
    tokenizer = gguf_tokenizer.describe("bytes", b"", 256, begin=None, end=256)
    gguf_model.write(tmp_path / "a.gguf", config, values, tokenizer=tokenizer, name="tiny")
    huggingface.save(tmp_path / "hf", config, huggingface.nest_by_path(rounded), dtype="float32")
    load = transformers.AutoModelForCausalLM.from_pretrained
    expected = load(tmp_path / "hf")
    found = load(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    weights = found.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(weights[key], value), key
    assert np.array_equal(their_logits(found, TOKENS), their_logits(expected, TOKENS))


SMALL_GPT2 = {"vocab_size": 300, "n_positions": 48, "n_embd": 32, "n_layer": 3, "n_head": 4}
SMALL_LLAMA = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
GROUPED = SMALL_LLAMA | {"num_key_value_heads": 2}
FAMILY = {
    "llama": ("Llama", SMALL_LLAMA),
    "llama of few kv heads": (
        "Llama",
        GROUPED | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "llama tied": ("Llama", SMALL_LLAMA | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "llama 3": ("Llama", GROUPED | {"rope_parameters": LLAMA3}),
    "llama linear": ("Llama", SMALL_LLAMA | {"rope_parameters": LINEAR, "head_dim": 24}),
    "llama factor 1": ("Llama", SMALL_LLAMA | {"rope_parameters": LLAMA3 | {"factor": 1.0}}),
    "llama with biases": ("Llama", GROUPED | {"attention_bias": True}),
    "mistral": ("Mistral", GROUPED | {"sliding_window": None, "head_dim": 24}),
    "mistral of odd width": (
        "Mistral",
        GROUPED | {"sliding_window": None, "head_dim": 24, "hidden_size": 34},
    ),
    "qwen2": ("Qwen2", GROUPED | {"tie_word_embeddings": True}),
    "qwen2 scaled": ("Qwen2", GROUPED | {"rope_parameters": LLAMA3}),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 24}),
    "qwen3 with biases": (
        "Qwen3",
        GROUPED | {"head_dim": 8, "attention_bias": True, "rope_parameters": LINEAR},
    ),
}
THEIRS = {
    "gpt2": ("GPT2", SMALL_GPT2),
    "gpt2 untied": ("GPT2", SMALL_GPT2 | {"tie_word_embeddings": False, "n_inner": 40}),
    **FAMILY,
}


def make_theirs(kind, options):
    """A model of transformers, every parameter random."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**options)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs


def our_logits(config, params):
    model = make_abstract(build_model, config)
    nnx.update(model, params)
    return np.asarray(model(jnp.asarray(TOKENS)))


SHARDS = [
    pytest.param({}, id="one"),
    pytest.param({"max_shard_size": "20KB"}, id="shards", marks=pytest.mark.slow),
]


REPEATED = {"llama with biases", "mistral", "qwen3"}  # others have all their options
IMPORTS = [
    pytest.param(*theirs, id=name, marks=pytest.mark.slow if name in REPEATED else ())
    for name, theirs in THEIRS.items()
]


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("kind, options", IMPORTS)
def test_an_import_computes_what_transformers_does(tmp_path, kind, options, shard):
    theirs = make_theirs(kind, options)
    theirs.save_pretrained(tmp_path / "in", **shard)
    assert (tmp_path / "in" / "model.safetensors.index.json").exists() == bool(shard)
    config, params = huggingface.load(tmp_path / "in")
    expected = their_logits(theirs, TOKENS)
    check_logits(our_logits(config, params), expected)
    huggingface.save(tmp_path / "out", config, params, dtype="float32")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    if kind != "Mistral":  # without a window it is a Llama
        assert type(again) is type(theirs)
    np.testing.assert_array_equal(their_logits(again, TOKENS), expected)


@pytest.mark.parametrize("kind, options", FAMILY.values(), ids=FAMILY)
def test_a_folder_of_transformers_4_is_the_same_model(tmp_path, kind, options):
    """Version 4 has the base of the rotary positions at the top, and their scaling by it."""
    theirs = make_theirs(kind, options)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    expected = huggingface.load(tmp_path)[0]
    fields = json.loads(path.read_text())
    section = fields.pop("rope_parameters")
    fields["rope_theta"] = section.pop("rope_theta")
    fields["rope_scaling"] = None if section == {"rope_type": "default"} else section
    fields["torch_dtype"] = fields.pop("dtype")
    if kind == "Qwen2":  # as its makers write it, though nothing slides
        fields |= {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1}
    path.write_text(json.dumps(fields))
    config, params = huggingface.load(tmp_path)
    assert config == expected
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    check_logits(our_logits(config, params), their_logits(again, TOKENS))
