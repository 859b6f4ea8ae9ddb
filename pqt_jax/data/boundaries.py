# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Where documents end: the token that says so, named by the data or by the user, and checked.

A folder of `data.prepare` has it in its index. For .bin files and text files it is
`config.data.end_token`; text files are bytes, joined without any between them, so there only a byte
of their own can end a document.
"""

import numpy as np

from pqt_jax.data.source import Text, Tokens
from pqt_jax.errors import InputError

_CHUNK = 1 << 24  # tokens looked at at once


def set_end_token(text: Text, given: int, *, needed: bool) -> Text:
    """The text with the token that ends its documents, if one is known.

    Args:
      text: from `tokens.load` or `source.load`.
      given: `config.data.end_token`; below 0 for what the text itself says.
      needed: whether it has to be known, and the training text to hold it.

    Raises:
      InputError: if the text says another, or if it is needed and is not known, or is nowhere.
    """
    end = text.end if given < 0 else given
    if text.end is not None and end != text.end:
        raise InputError(
            f"config.data.end_token={given}; by their index the documents of config.data.tokens "
            f"end with {text.end}: give that, or -1"
        )
    if needed and end is None:
        raise InputError(
            "config.data.boundaries='mask': nothing says where a document ends; give the token "
            "that does, as config.data.end_token=50256 for GPT-2's, or in config.data.tokens a "
            "folder that pqt_jax.data.prepare made"
        )
    if needed and end is not None and not _holds(text.train, end):
        raise InputError(
            f"config.data.end_token={end}: the training text has no such token; give the one that "
            "ends its documents"
        )
    return text._replace(end=end)


def _holds(tokens: Tokens, token: int) -> bool:
    starts = range(0, len(tokens), _CHUNK)
    return any(np.any(tokens[start : start + _CHUNK] == token) for start in starts)
