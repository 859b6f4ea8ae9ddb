# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""transformers loads our folders by the package compressed-tensors, and we load that package's."""

import json
import warnings

import numpy as np
import pytest

from pqt_jax.interchange.compressed_tensors import LAYOUT
from pqt_jax.numerics.formats import E2M1, E2M3, E4M3
from support import low_bit_folder
from support.low_bit_folder import CONFIGS, MIXED

REASON = "needs the extra 'peers', on Python 3.11"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
ct = pytest.importorskip("compressed_tensors", reason=REASON)

TOKENS = torch.arange(2 * 16).reshape(2, 16) * 37 % 256


def load(folder, **options):
    """What transformers loads, after the first pass, in which it may decode weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that go before those of config.json
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, **options
        )
    assert not any(report.values()), report
    with torch.no_grad():
        model.eval()(TOKENS)
    return torch.nn.Module.float(model)  # their own method refuses what was quantized


def decoded(folder):
    """What it loads if it decodes all weights at once, in float32."""
    options = transformers.CompressedTensorsConfig(dequantize=True)
    return load(folder, dtype=torch.float32, quantization_config=options)


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits.numpy()


def check(model, folder, values):
    """The model has these weights, and computes what one does that was made from them."""
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    config = transformers.AutoConfig.for_model(**config)
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {name: torch.from_numpy(x.copy()) for name, x in values.items()}
    missing, unexpected = plain.load_state_dict(state, strict=False)
    tied = config.tie_word_embeddings
    assert (missing, unexpected) == (["lm_head.weight"] if tied else [], [])
    found = model.state_dict()
    for name, x in values.items():
        assert found[name].dtype == torch.float32
        assert found[name].numpy().tobytes() == x.tobytes(), name
    np.testing.assert_array_equal(logits(model), logits(plain))


CASES = [("llama", E2M1, False), ("few kv heads, tied", E2M3, False), ("qwen2", E4M3, False)]
CASES += [("ragged", E4M3, True)]


@pytest.mark.parametrize("config, fmt, squares", CASES)
def test_transformers_decodes_a_folder_exactly(tmp_path, config, fmt, squares):
    folder = tmp_path / "out"
    values = low_bit_folder.write(folder, LAYOUT, CONFIGS[config], fmt, squares=squares)
    check(decoded(folder), folder, values)


@pytest.mark.parametrize("config", ["few kv heads, tied", "ragged"])
def test_a_format_for_each_matrix(tmp_path, config):
    """Without `dequantize`, by which transformers 5.24 decodes all matrices as the first group."""
    folder = tmp_path / "out"
    values = low_bit_folder.write(folder, LAYOUT, CONFIGS[config], MIXED)
    check(load(folder, dtype=torch.bfloat16), folder, values)


ARGS = {"type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
THEIRS = {
    "mxfp4": {"num_bits": 4, **ARGS},
    "mxfp6": {"num_bits": 6, **ARGS},
    "mxfp8": {"num_bits": 8, **ARGS},
    "blocks": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 16]},
}


def save_theirs(folder, groups):
    """A small Llama that the package compresses and saves."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 256}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, **heads)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    quantized = {"config_groups": groups, "ignore": ["lm_head"], "quantization_status": "frozen"}
    apply_quantization_config(model, QuantizationConfig.model_validate(quantized))
    for module in model.modules():
        if (scale := getattr(module, "weight_scale", None)) is not None:
            scale.data = 2.0 ** torch.randint(-9, -4, scale.shape).to(scale.dtype)
            if module.quantization_scheme.weights.strategy == "block":
                scale.data *= 1.25
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


@pytest.mark.parametrize("kind", ["blocks", "mixed"])
def test_a_folder_of_the_package_is_read_as_the_package_reads_it(tmp_path, kind):
    if kind == "mixed":
        targets = {"mxfp4": ["re:.*mlp.*"], "mxfp8": ["Linear"]}
        targets["mxfp6"] = ["model.layers.1.mlp.up_proj"]
    else:
        targets = {kind: ["Linear"]}
    groups = {name: {"targets": t, "weights": THEIRS[name]} for name, t in targets.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_theirs(tmp_path, groups)
    expected = load(tmp_path, dtype=torch.bfloat16).state_dict()
    for name, x in low_bit_folder.stored_values(tmp_path).items():
        if kind == "blocks":  # which the package rounds to bfloat16 after the product
            x = torch.from_numpy(x.copy()).to(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(x, expected[name].numpy(), err_msg=name)
