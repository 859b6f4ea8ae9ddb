# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The token that ends a document, from the data or from the config.

A folder written by `data.prepare` has the token in its index. For .bin files and text files it is
`config.data.end_token`. The bytes of text files are joined without a separator, so in them only a
byte of the text itself, such as a line break, can end a document.
"""

import numpy as np

from pqt_jax.data.source import Text, Tokens
from pqt_jax.errors import InputError

_CHUNK = 1 << 24  # number of tokens searched at a time


def set_end_token(text: Text, configured: int, *, needed: bool) -> Text:
    """Set the token that ends the documents of a text, if one is known.

    Args:
      text: from `tokens.load` or `source.load`.
      configured: `config.data.end_token`; negative for the token in the index of the data.
      needed: whether the token must be known, and must occur in the training text.

    Returns:
      The text with the token as `end`.

    Raises:
      InputError: if the index has another token, or if the token is needed and is unknown or does
        not occur.
    """
    end = text.end if configured < 0 else configured
    if text.end is not None and end != text.end:
        raise InputError(
            f"config.data.end_token={configured}; by their index the documents of "
            f"config.data.tokens end with {text.end}: give that, or -1"
        )
    if needed and end is None:
        raise InputError(
            "config.data.boundaries='mask': nothing says where a document ends; give the token "
            "that does, as config.data.end_token=50256 for GPT-2's, or in config.data.tokens a "
            "folder that pqt_jax.data.prepare made"
        )
    if needed and end is not None and not _contains(text.train, end):
        raise InputError(
            f"config.data.end_token={end}: the training text has no such token; give the one that "
            "ends its documents"
        )
    return text._replace(end=end)


def _contains(tokens: Tokens, token: int) -> bool:
    starts = range(0, len(tokens), _CHUNK)
    return any(np.any(tokens[start : start + _CHUNK] == token) for start in starts)
