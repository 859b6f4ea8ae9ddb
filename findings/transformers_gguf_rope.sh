#!/usr/bin/env bash
# transformers 5.24.0 reads a Llama 3.1 in GGUF without its scaled positions and a Llama with biases
# without its biases. There is no error, and the loading report is empty.
#
# Seen with transformers 5.23.0 and 5.24.0, gguf 0.19.0 and torch 2.13.0 on Python 3.11. llama.cpp's
# converter stores the scaling of Llama 3.1 as the tensor rope_freqs.weight, and biases of attention
# under names such as blk.0.attn_q.bias, which llama.cpp reads. The model here is tiny and scaled from
# 48 positions on, so that the difference is large in a short text.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0
cd "$folder"
venv/bin/python - <<'PY'
import importlib.metadata

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
for name in ("transformers", "gguf", "torch"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
HEADS, SIZE = 2, 16
sizes = {"hidden_size": HEADS * SIZE, "intermediate_size": 64, "vocab_size": 256}
sizes |= {"num_hidden_layers": 1, "num_attention_heads": HEADS, "max_position_embeddings": 128}
TOKENS = torch.arange(60)[None] * 37 % 256


def make(**options):
    model = LlamaForCausalLM(LlamaConfig(**sizes, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def write(model):
    """As convert_hf_to_gguf.py of llama.cpp does."""
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(SIZE)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in weights.items():
        array = value.numpy()
        if ".q_proj." in name or ".k_proj." in name:
            shape = array.shape
            array = array.reshape(HEADS, 2, SIZE // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(array))
    if config.rope_parameters["rope_type"] == "llama3":
        plain = config.rope_parameters["rope_theta"] ** -(torch.arange(SIZE // 2) * 2 / SIZE)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


scaling = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 48}
plain = {"rope_type": "default", "rope_theta": 500.0}
kinds = {
    "plain": ({"rope_parameters": plain}, False),
    "scaled as Llama 3.1": ({"rope_parameters": scaling}, True),
    "with biases": ({"rope_parameters": plain, "attention_bias": True}, True),
}
for name, (options, wrong) in kinds.items():
    model = make(**options)
    write(model)
    found, report = AutoModelForCausalLM.from_pretrained(
        ".", gguf_file="model.gguf", dtype=torch.float32, output_loading_info=True
    )
    with torch.no_grad():
        expected, logits = model(TOKENS).logits, found.eval()(TOKENS).logits
    error = ((logits - expected).square().mean().sqrt() / expected.std()).item()
    said = {key: value for key, value in report.items() if value} or "nothing"
    print(f"{name}: logits {error:.0%} wrong (rms); the report says {said}")
    print(f"    rope_parameters={found.config.rope_parameters}")
    assert said == "nothing" and (error > 0.1) == wrong, "that has changed"
    assert wrong or error < 1e-5
PY
