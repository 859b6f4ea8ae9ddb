#!/usr/bin/env bash
# transformers 5.24.0 decodes every layer of a compressed-tensors checkpoint as the first of its config
# groups, if it is asked to decode while it loads (dequantize=True). Layers of 8 bits after a group of 4
# bits get wrong weights, without an error or an entry in the loading report.
#
# Seen with transformers 5.23.0 and 5.24.0, compressed-tensors 0.20.1 and torch 2.13.0 on Python 3.11. The
# checkpoint is written by compressed-tensors itself: attention in int4, MLP in int8, both
# "pack-quantized" in groups of 128. Without dequantize=True the same checkpoint is decoded rightly on the first
# pass. With other pairs of formats, such as mxfp4 and mxfp8, loading ends with an error instead.
# `CompressedTensorsDequantize` takes its scheme from `get_dense_scheme`, which does not look at the
# name of the layer.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 compressed-tensors==0.20.1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import importlib.metadata

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
for name in ("transformers", "compressed-tensors", "torch"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 256}
sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16)
groups = {}
for name, bits in (("self_attn", 4), ("mlp", 8)):
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 128}
    groups[name] = {"targets": [f"re:.*{name}.*"], "weights": weights, "format": "pack-quantized"}
groups = {"group_0": groups["self_attn"], "group_1": groups["mlp"]}
config = {"config_groups": groups, "ignore": ["lm_head"], "quantization_status": "frozen"}
apply_quantization_config(model, QuantizationConfig.model_validate(config))
for module in model.modules():
    if getattr(module, "weight_scale", None) is not None:
        largest = 2 ** (module.quantization_scheme.weights.num_bits - 1) - 1
        module.weight_scale.data.fill_(module.weight.abs().max() / largest)
compressor = ModelCompressor.from_pretrained_model(model)
compressor.compress_model(model)
model.save_pretrained("checkpoint")
compressor.update_config("checkpoint")

right = AutoModelForCausalLM.from_pretrained("checkpoint", dtype=torch.bfloat16)
right(torch.tensor([[1, 2, 3]]))  # decodes
right = right.state_dict()
options = {"dtype": torch.bfloat16, "output_loading_info": True}
options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
found, report = AutoModelForCausalLM.from_pretrained("checkpoint", **options)
print("report:", {key: value for key, value in report.items() if value} or "nothing")
wrong = [name for name, x in found.state_dict().items() if not torch.equal(x, right[name])]
for name in wrong:
    change = (found.state_dict()[name].float() - right[name].float()).norm() / right[name].float().norm()
    print(f"{name}: {change:.0%} wrong (rms)")
expected = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
assert sorted(wrong) == sorted(expected) and not any(report.values()), "that has changed"
PY
