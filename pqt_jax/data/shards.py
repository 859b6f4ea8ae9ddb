# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokens of documents → files of a given size: nothing but tokens, little-endian, as nanoGPT's."""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class ShardWriter:
    """Tokens into files of at most so many, with their digests.

    Args:
      folder: where they go.
      part: the start of their names.
      dtype: of the tokens.
      size: tokens of a file.
    """

    def __init__(self, folder: Path, part: str, dtype: np.dtype, size: int):
        self.folder, self.part, self.dtype, self.size = folder, part, dtype, size
        self.shards: list[dict[str, Any]] = []
        self.documents = self.bytes = 0
        self.file: BinaryIO | None = None
        self.digest, self.left = hashlib.sha256(), 0

    def add(self, found: np.ndarray, end: int, size: int) -> None:
        """Write a document of so many bytes of text, and the token that ends it."""
        data = np.append(found, end).astype(self.dtype)
        self.documents, self.bytes = self.documents + 1, self.bytes + size
        while len(data):
            file = self.file if self.file and self.left else self._next()
            now, data = data[: self.left], data[self.left :]
            file.write(now.tobytes())
            self.digest.update(now.tobytes())
            self.left -= len(now)

    def close(self) -> dict[str, Any]:
        """What the index says of the part."""
        self._finish()
        total = sum(shard["tokens"] for shard in self.shards)
        about = {"documents": self.documents, "bytes": self.bytes, "tokens": total}
        return about | {"shards": self.shards}

    def _next(self) -> BinaryIO:
        self._finish()
        name = f"{self.part}-{len(self.shards):05d}.bin"
        self.file, self.digest = (self.folder / name).open("wb"), hashlib.sha256()
        self.shards.append({"file": name})
        self.left = self.size
        return self.file

    def _finish(self) -> None:
        if self.file is not None:
            self.file.close()
            self.shards[-1] |= {
                "tokens": self.size - self.left,
                "sha256": self.digest.hexdigest(),
            }
            self.file = None
