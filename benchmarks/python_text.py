# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The Python sources of this interpreter and its site-packages as JSON lines, a file a document.

Files are sorted by their path below the folder of sources. Of files with the same content one is
kept; files that are not UTF-8 are left out. The text differs between machines: `write` returns what
identifies it.
"""

import hashlib
import json
import sysconfig
from pathlib import Path
from typing import Any


def write(out: Path, limit: int | None = None) -> dict[str, Any]:
    """Write the text.

    Args:
      out: file of JSON lines, `{"text": …}`.
      limit: bytes after which no more are added, each of a twentieth at most; None for all.

    Returns:
      Counts of files, documents and bytes, and the SHA-256 of the documents in order.
    """
    counts = {"files": 0, "documents": 0, "duplicates": 0, "not_utf8": 0, "empty": 0, "bytes": 0}
    seen, total = set(), hashlib.sha256()
    with out.open("w") as file:
        for path in _sources():
            if limit is not None and counts["bytes"] >= limit:
                break
            content = path.read_bytes()
            if limit is not None and len(content) > limit // 20:
                continue
            counts["files"] += 1
            digest = hashlib.sha256(content).digest()
            try:
                text = content.decode()
            except UnicodeDecodeError:
                counts["not_utf8"] += 1
                continue
            if not text.strip() or digest in seen:
                counts["duplicates" if text.strip() else "empty"] += 1
                continue
            seen.add(digest)
            total.update(digest)
            counts["documents"] += 1
            counts["bytes"] += len(content)
            file.write(json.dumps({"text": text}) + "\n")
    return {**counts, "sha256": total.hexdigest()}


def _sources() -> list[Path]:
    """Every *.py file once, by its path below its folder; the standard library comes first."""
    paths: dict[Path, None] = {}
    for name in ("stdlib", "purelib", "platlib"):
        root = Path(sysconfig.get_path(name))
        below = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py") if p.is_file())
        paths.update(dict.fromkeys((root / path).resolve() for path in below))
    return list(paths)
