#!/usr/bin/env bash
# transformers 5.24.0 cannot read a GPT-2 in GGUF whose context is not 1024, nor a Qwen 3 whose heads are
# not 128 wide: it takes neither gpt2.context_length nor qwen3.attention.key_length from the file, keeps
# the defaults of its configuration, and stops with shapes that do not fit. llama.cpp reads both fields.
#
# Seen with transformers 5.24.0, gguf 0.19.0 and torch 2.13.0 on Python 3.11. The files have the fields
# that llama.cpp's converter writes. A GPT-2 of 1024 positions and a Qwen 3 with heads of 128 are read.
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
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()
for name in ("transformers", "gguf", "torch"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
TOKENS = torch.arange(40)[None] * 37 % 256


def write(model, kind, context, width, heads, head_dim):
    """The fields and names that llama.cpp's converter gives a model."""
    arch = gguf.MODEL_ARCH.GPT2 if kind == "gpt2" else gguf.MODEL_ARCH.QWEN3
    writer = gguf.GGUFWriter("model.gguf", kind)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(128)
    writer.add_head_count(heads)
    writer.add_vocab_size(256)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<{i}>" for i in range(256)])  # where transformers counts the vocabulary
    if kind == "gpt2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(heads)
        writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
        writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    names = gguf.get_tensor_name_map(arch, 1)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and kind == "gpt2" or name.endswith(".attn.bias"):
            continue
        array = value.numpy()
        if kind == "gpt2" and array.ndim == 2 and ".h." in name:
            array = array.T
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_gpt2(context):
    config = GPT2Config(vocab_size=256, n_positions=context, n_embd=32, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config).eval(), "gpt2", context, 32, 2, 16


def make_qwen3(head_dim):
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": head_dim}
    config = Qwen3Config(**sizes, max_position_embeddings=64, tie_word_embeddings=False)
    return Qwen3ForCausalLM(config).eval(), "qwen3", 64, 64, 2, head_dim


cases = {
    "GPT-2 with 1024 positions": (make_gpt2(1024), True),
    "GPT-2 with 64 positions": (make_gpt2(64), False),
    "Qwen 3 with heads of 128": (make_qwen3(128), True),
    "Qwen 3 with heads of 16": (make_qwen3(16), False),
}
for name, (case, works) in cases.items():
    write(*case)
    try:
        found = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32)
        with torch.no_grad():
            difference = (found.eval()(TOKENS).logits - case[0](TOKENS).logits).abs().max().item()
        said = f"read, logits within {difference:.1e}"
        assert difference < 1e-4
    except (RuntimeError, ValueError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
    print(f"{name}: {said}")
    assert said.startswith("read") == works, "that has changed"
PY
