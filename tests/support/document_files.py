# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Documents, the JSON lines of them, and what `data.prepare` does with them."""

import contextlib
import json
from unittest import mock

from pqt_jax.data import held_out, processes

TEXTS = ["one\ntwo", "über 東京", "", "x" * 5000]


def json_lines(field="text"):
    return "".join(json.dumps({field: text, "url": "u"}) + "\n" for text in TEXTS).encode()


def is_held_out(text, share):
    """Whether `data.prepare` puts a document into its validation split."""
    return held_out.is_held_out(held_out.position(text), share)


@contextlib.contextmanager
def without_processes():
    """Let `data.prepare` tokenize in this process, which takes a second less."""
    with mock.patch.object(processes, "start_pool", _start_inline):
        yield


@contextlib.contextmanager
def _start_inline(make, count):
    function = make()
    yield lambda items: ((item, function(item)) for item in items)
