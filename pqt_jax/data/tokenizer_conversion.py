# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""tiktoken → a tokenizer.json, and how one is tried before it is given out.

    ranks → vocabulary, merges, how text is split

tiktoken merges any two neighbors whose union has a rank, the lowest rank first. So each way to cut
a piece into two is a pair of the tokenizer.json. Text is split by another library there, with other
regular expressions and tables of Unicode, hence the trial.
"""

import json
import random
import re
from collections.abc import Sequence
from typing import Any

from pqt_jax.data import tokenizer_kinds
from pqt_jax.data.tokenizer_kinds import END_TOKENS, Parts
from pqt_jax.interchange import byte_level

_COUNT = 1000  # of random texts that a tokenizer.json is tried on
# The package tokenizers reads {1,3}+ as a repetition of {1,3}; tiktoken reads it as a possessive
# {1,3}, and {1,3} alone is the same unless the match would have to be given up again.
_POSSESSIVE = re.compile(r"(\{\d+(?:,\d*)?\})\+")
TEXTS = (
    "",
    " ",
    "   ",
    "a",
    "The quick brown fox doesn't jump, he'll say: \"I'VE won\" 12345678 times at 3.14!",
    "two  spaces,   three, and a tab\tor two\t\tof them",
    " begins and ends with a space ",
    "\n\n begins with line breaks\r\nand has those of others\r\n\r\n  indented \n \n",
    "def f(x):\n    return x[0]  # ünïcode\n\n\n\nclass A:\n\tpass\n",
    "naïve café, e\u0301 decomposed, ﬁ ligature, ½ ① ２, Straße, İstanbul, ǅ",
    "Русский текст, ελληνικά, עברית, العربية, हिन्दी, ไทย, 한국어, 日本語の文章、中文。",
    "😀 👩‍👩‍👧 🇪🇺 \u200b\u00a0\u2028\u3000 ▁ \ufeff \ufffd \U0001d54f",
    "x" * 70 + " " * 40 + "y" + "\n" * 9 + "1" * 25,
)


class Inexact(ValueError):
    """No tokenizer.json finds the same tokens. The message says why, without a subject."""


def from_tiktoken(content: bytes, end: str, pattern: str) -> tuple[dict[str, Any], int]:
    """The tokenizer.json of a tiktoken file.

    Args:
      content: the file.
      end, pattern: as for `tokenizers.load`.

    Returns:
      (content of tokenizer.json, token that ends documents).

    Raises:
      Inexact: if its tokens are not the same.
    """
    ranks = tokenizer_kinds.read_ranks(content)
    pairs = {}
    for piece in sorted(ranks, key=ranks.__getitem__):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ranks and right in ranks:
                pairs[f"{byte_level.name_bytes(left)} {byte_level.name_bytes(right)}"] = None
    vocabulary = {byte_level.name_bytes(piece): rank for piece, rank in ranks.items()}
    parts = tokenizer_kinds.read_tiktoken(content, end, pattern)
    last = max(ranks.values()) + 1
    split = _POSSESSIVE.sub(r"\1", pattern)
    result = byte_level.tokenizer_json(
        vocabulary, (end or END_TOKENS[0], last), merges=list(pairs), pattern=split
    )
    texts = (piece.decode(errors="ignore") for piece in ranks)
    check_tokens(result, parts, [text for text in texts if text])
    return result, last


def check_tokens(result: dict[str, Any], parts: Parts, pieces: Sequence[str]) -> None:
    """Try a tokenizer.json on `TEXTS` and on random sequences of pieces of the vocabulary.

    Args:
      result: the content of the tokenizer.json.
      parts: the tokenizer that it stands for.
      pieces: texts of the vocabulary that are no special tokens.

    Raises:
      Inexact: if it finds other tokens.
    """
    import tokenizers  # a heavy package that few runs need

    try:
        model = tokenizers.Tokenizer.from_str(json.dumps(result))
    except Exception as error:  # the package has no exceptions of its own
        raise Inexact(
            f"has what the package tokenizers refuses: {' '.join(str(error).split()):.200}"
        ) from None
    model.encode_special_tokens = True
    rng = random.Random(0)
    mixed = ("".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(_COUNT))
    for text in (*TEXTS, *(text.replace("▁", " ") for text in mixed)):
        try:
            wanted = list(parts.encode(text))
        except ValueError:  # such as a pattern that leaves out characters
            continue
        if model.encode(text, add_special_tokens=False).ids != wanted:
            raise Inexact(f"encodes {text!r:.60} to other tokens than a tokenizer.json")
