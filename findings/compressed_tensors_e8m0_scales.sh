#!/usr/bin/env bash
# compressed-tensors 0.20.1 accepts scale_dtype="torch.float8_e8m0fnu" for its MX formats, and then
# replaces the scales by 2, without an error or a warning.
#
# Seen with compressed-tensors 0.20.1 and torch 2.13.0 on Python 3.11. `compress` computes the E8M0
# byte of each scale as an integer, such as 121 for 2^-6, and converts this number to the dtype of the
# scales. float8_e8m0fnu rounds it to a power of two, so that bytes from 96 to 191 become the scale
# 128; `decompress` converts that to an integer again, and 2^(128 − 127) = 2. With
# scale_dtype="torch.uint8", as in the presets, the same weights come back exactly.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 compressed-tensors==0.20.1
"$folder/venv/bin/python" - <<'PY'
import importlib.metadata

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

for name in ("compressed-tensors", "torch"):
    print(name, importlib.metadata.version(name))
scale = torch.tensor([[2.0**-6], [2.0**-5], [2.0**-4]])
weight = (4 * scale).expand(3, 32)
for name, bits in (("mxfp4-pack-quantized", 4), ("mxfp6-pack-quantized", 6), ("mxfp8-quantized", 8)):
    compressor = BaseCompressor.get_value_from_registry(name)
    for dtype, expected in (("uint8", [0.0625, 0.125, 0.25]), ("float8_e8m0fnu", [8.0, 8.0, 8.0])):
        weights = {"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32}
        weights["scale_dtype"] = f"torch.{dtype}"
        scheme = {"targets": ["Linear"], "weights": weights, "format": name}
        scheme = QuantizationScheme.model_validate(scheme)
        stored = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
        again = compressor.decompress(stored, scheme)["weight"][:, 0].tolist()
        print(f"{name}, {dtype}: rows of {weight[:, 0].tolist()} become {again}")
        assert again == expected, "that has changed"
PY
