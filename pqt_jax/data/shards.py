# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokens of documents → files of at most `size` little-endian tokens each, as in nanoGPT."""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class ShardWriter:
    """Writes tokens to files of at most `size` tokens, and computes their digests.

    Args:
      folder: the folder for the files.
      split: "train" or "validation"; the start of their names.
      dtype: the dtype of the tokens.
      size: maximum number of tokens in a file.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, size: int):
        self.folder, self.split, self.dtype, self.size = folder, split, dtype, size
        self.shards: list[dict[str, Any]] = []
        self.documents = self.bytes = 0
        self.file: BinaryIO | None = None
        self.digest, self.room = hashlib.sha256(), 0

    def add(self, document: np.ndarray, size: int) -> None:
        """Write the tokens of a document, which was `size` bytes of text."""
        data = document.astype(self.dtype)
        self.documents, self.bytes = self.documents + 1, self.bytes + size
        while len(data):
            file = self.file if self.file and self.room else self._open_next()
            chunk, data = data[: self.room], data[self.room :]
            file.write(chunk.tobytes())
            self.digest.update(chunk.tobytes())
            self.room -= len(chunk)

    def close(self) -> dict[str, Any]:
        """Close the last file, and return the entry of this split in the index."""
        self._close_file()
        total = sum(shard["tokens"] for shard in self.shards)
        about = {"documents": self.documents, "bytes": self.bytes, "tokens": total}
        return about | {"shards": self.shards}

    def _open_next(self) -> BinaryIO:
        self._close_file()
        name = f"{self.split}-{len(self.shards):05d}.bin"
        self.file, self.digest = (self.folder / name).open("wb"), hashlib.sha256()
        self.shards.append({"file": name})
        self.room = self.size
        return self.file

    def _close_file(self) -> None:
        if self.file is not None:
            self.file.close()
            self.shards[-1] |= {
                "tokens": self.size - self.room,
                "sha256": self.digest.hexdigest(),
            }
            self.file = None
