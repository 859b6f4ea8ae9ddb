# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Names that say what a file is for: `train/0.bin`, `corpus_val_000.bin`, `test.txt`.

Whole words count, of the file first and then of its folders: "medieval.bin" is no validation file.
"""

import re
from collections.abc import Iterable, Sequence

_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def named_split(name: str) -> str:
    """Return the split that a relative path names: "train", "validation", "test", or "".

    Example:
      >>> [named_split(n) for n in ("val/0.bin", "edu_train_01.bin", "medieval.bin", "test.txt")]
      ['validation', 'train', '', 'test']
    """
    for part in reversed(name.split("/")):
        for word in re.findall("[a-z]+", part.lower()):
            if word in _WORDS:
                return _WORDS[word]
    return ""


def describe_contradictions(train: Iterable[str], validation: Iterable[str]) -> str:
    """Say which names tell another split than the one that their files are in; "" for none.

    Example:
      >>> describe_contradictions(["a.txt", "test.txt"], ["b.txt"])
      'trained on in spite of its name: test.txt'
    """
    kept_out = [name for name in train if named_split(name) in ("validation", "test")]
    not_trained = [name for name in validation if named_split(name) == "train"]
    said = []
    if kept_out:
        said.append(f"trained on in spite of {_its(kept_out)}: {list_some(kept_out)}")
    if not_trained:
        said.append(f"for validation in spite of {_its(not_trained)}: {list_some(not_trained)}")
    return "; ".join(said)


def list_some(names: Sequence[str], limit: int = 3) -> str:
    """List the first names, and say how many there are."""
    rest = f", … ({len(names):,} files)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _its(names: Sequence[str]) -> str:
    return "its name" if len(names) == 1 else "their names"
