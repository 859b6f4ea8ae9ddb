# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The models in float64 NumPy, from their papers: one sequence, one head, one position at a time.

`p` is a dict of parameters by path, stacked over layers as the models have them.
"""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def frequency(config, i, half):
    """The angle of pair i from one position to the next; of Llama 3, by its wavelength."""
    turned = config.rope_theta ** (-i / half)
    if config.rope_scaling == "linear":
        return turned / config.rope_factor
    if config.rope_scaling == "llama3":
        wavelength, length = 2 * np.pi / turned, config.rope_original_length
        if wavelength > length / config.rope_low_freq_factor:
            return turned / config.rope_factor
        if wavelength > length / config.rope_high_freq_factor:
            kept = length / wavelength - config.rope_low_freq_factor
            kept /= config.rope_high_freq_factor - config.rope_low_freq_factor
            return (1 - kept) * turned / config.rope_factor + kept * turned
    return turned


def turn(x, config):
    out = np.empty_like(x)
    half = x.shape[-1] // 2
    for t in range(len(x)):
        for i in range(half):
            angle = t * frequency(config, i, half)
            a, b = x[t, i], x[t, i + half]
            out[t, i] = a * np.cos(angle) - b * np.sin(angle)
            out[t, i + half] = a * np.sin(angle) + b * np.cos(angle)
    return out


def attend(x, p, layer, config, rotary):
    def bias(name):
        return p[f"{name}/bias"][layer] if f"{name}/bias" in p else 0.0

    q, k, v = (x @ p[f"h/attn/{n}/kernel"][layer] + bias(f"h/attn/{n}") for n in ("q", "k", "v"))
    width = q.shape[1] // config.num_heads
    sharing = q.shape[1] // k.shape[1]  # query heads that read one head of keys and values
    out = np.zeros_like(q)
    for h in range(config.num_heads):
        part, read = (slice(i * width, (i + 1) * width) for i in (h, h // sharing))
        qh, kh = q[:, part], k[:, read]
        if "h/attn/q_norm/scale" in p:
            scales = (p[f"h/attn/{n}_norm/scale"][layer] for n in "qk")
            qh, kh = (rms(a, s, config.norm_eps) for a, s in zip((qh, kh), scales, strict=True))
        if rotary:
            qh, kh = turn(qh, config), turn(kh, config)
        for t in range(len(x)):
            weights = softmax(qh[t] @ kh[: t + 1].T / width**0.5)
            out[t, part] = weights @ v[: t + 1, read]
    return out @ p["h/attn/out/kernel"][layer] + bias("h/attn/out")


def rms(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def norm(x, scale, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale + bias


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def llama2(p, config, sequence):
    eps = config.norm_eps
    x = p["embed/embedding"][sequence]
    for i in range(config.num_layers):
        y = rms(x, p["h/attn_norm/scale"][i], eps)
        x = x + attend(y, p, i, config, rotary=True)
        y = rms(x, p["h/mlp_norm/scale"][i], eps)
        gate, up, down = (p[f"h/mlp/{n}/kernel"][i] for n in ("gate", "up", "down"))
        x = x + (silu(y @ gate) * (y @ up)) @ down
    return rms(x, p["norm/scale"], eps) @ p["head/kernel"]


def gpt2(p, config, sequence):
    eps = config.norm_eps
    x = p["embed/embedding"][sequence] + p["pos/embedding"][: len(sequence)]
    for i in range(config.num_layers):
        y = norm(x, p["h/attn_norm/scale"][i], p["h/attn_norm/bias"][i], eps)
        x = x + attend(y, p, i, config, rotary=False)
        y = norm(x, p["h/mlp_norm/scale"][i], p["h/mlp_norm/bias"][i], eps)
        y = gelu(y @ p["h/mlp/up/kernel"][i] + p["h/mlp/up/bias"][i])
        x = x + y @ p["h/mlp/down/kernel"][i] + p["h/mlp/down/bias"][i]
    return norm(x, p["norm/scale"], p["norm/bias"], eps) @ p["embed/embedding"].T
