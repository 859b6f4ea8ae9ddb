# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""transformers loads our folders by amd-quark's own modules, and we load what amd-quark exports.

That package compiles a part of itself when it is imported, for ten seconds, so all of this is slow.
vLLM reads the same folders; its code was read, not run.
"""

import json
import os
import warnings

import numpy as np
import pytest

from pqt_jax.interchange.quark import LAYOUT
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3
from support import low_bit_folder
from support.low_bit_folder import CONFIGS, MIXED
from support.paths import ROOT

pytestmark = pytest.mark.slow
REASON = "needs the extra 'peers', on Python 3.11"
TOKENS = np.arange(2 * 16).reshape(2, 16) * 37 % 256


@pytest.fixture(scope="module")
def peers():
    """(torch, transformers), after amd-quark was imported."""
    torch = pytest.importorskip("torch", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    pytest.importorskip("quark", reason="needs the extra 'quark'")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quark.torch  # noqa: F401
    return torch, transformers


def load(peers, folder):
    """(model in float32, {name: the values of its matrices})."""
    torch, transformers = peers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32
        )
    assert not any(report.values()), report
    values = {
        f"{name}.weight": module.weight_quantizer(module.weight).detach().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "weight_quantizer")
    }
    return model.eval(), values


def logits(peers, model):
    with peers[0].no_grad():
        return model(peers[0].from_numpy(TOKENS)).logits.numpy()


CASES = [("llama", E2M1, False), ("few kv heads, tied", E2M3, False), ("ragged", E3M2, False)]
CASES += [("qwen2", E3M2, False), ("llama", E4M3, True), ("few kv heads, tied", MIXED, True)]


@pytest.mark.parametrize("config, chosen, squares", CASES)
def test_quark_reads_a_folder_exactly(tmp_path, peers, config, chosen, squares):
    torch, transformers = peers
    folder = tmp_path / "out"
    expected = low_bit_folder.write(folder, LAYOUT, CONFIGS[config], chosen, squares)
    model, found = load(peers, folder)
    assert found
    state = model.state_dict()
    for name, x in expected.items():
        given = found[name] if name in found else state[name].numpy()
        assert given.tobytes() == x.tobytes(), name
    fields = json.loads((folder / "config.json").read_text())
    del fields["quantization_config"]
    fields = transformers.AutoConfig.for_model(**fields)
    plain = transformers.AutoModelForCausalLM.from_config(fields, dtype=torch.float32).eval()
    state = {name: torch.from_numpy(x.copy()) for name, x in expected.items()}
    plain.load_state_dict(state, strict=not fields.tie_word_embeddings)
    np.testing.assert_array_equal(logits(peers, model), logits(peers, plain))


def test_quark_itself_cannot_read_groups_of_fp8(tmp_path, peers):
    """Nor does it write them, though it has a specification of them. vLLM reads them."""
    low_bit_folder.write(tmp_path / "out", LAYOUT, CONFIGS["llama"], E4M3)
    with pytest.raises(ValueError, match="Unsupported QuantSchema: per_group for quant_dtype: fp8"):
        load(peers, tmp_path / "out")


@pytest.mark.parametrize("name", ["OCP_MXFP4Spec", "OCP_MXFP6E3M2Spec", "OCP_MXFP6E2M3Spec"])
def test_what_quark_exports_is_read_as_quark_reads_it(tmp_path, peers, name):
    from quark.torch import ModelQuantizer, export_safetensors
    from quark.torch.quantization.config import config as specs

    torch, transformers = peers
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 256}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    spec = getattr(specs, name)(ch_axis=-1, is_dynamic=False).to_quantization_spec()
    config = specs.QConfig(specs.QLayerConfig(weight=spec), exclude=["lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer = ModelQuantizer(config)
        export_safetensors(quantizer.freeze(quantizer.quantize_model(model, None)), tmp_path)
    _, expected = load(peers, tmp_path)
    found = low_bit_folder.stored_values(tmp_path)
    assert len(expected) == 14
    for name, x in expected.items():
        assert found[name].tobytes() == x.tobytes(), name
