# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Documents, and the JSON lines of them."""

import json

TEXTS = ["one\ntwo", "über 東京", "", "x" * 5000]


def json_lines(field="text"):
    return "".join(json.dumps({field: text, "url": "u"}) + "\n" for text in TEXTS).encode()
