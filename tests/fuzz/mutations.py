# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Damage to one file: to its bytes, the JSON in it, a number in its text, or the whole of it.

Everything is a function of a `random.Random`, so a case is repeated by its number.
"""

import hashlib
import json
import os
import re
import shutil

from pqt_jax.data import tokens

ODD = (
    *(None, True, False, [], {}, "", 0, -1, 1, 0.5, -0.0, 1e-320, 1e300, 10**400, 2**31 - 1, 2**31),
    *(
        2**32,
        2**62,
        2**63,
        2**64,
        float("nan"),
        float("inf"),
        float("-inf"),
        [[]],
        {"": {"": None}},
    ),
    *("x", "a\0b", "../run.json", "/", "\ud800", "é" * 300, "x" * 70_000, "\n", "nan", "1", "-1"),
    *([0] * 1000, [1, 2], ["a"], {"a": 1}),
)
TEXTS = ("1e400", "-1", "0", "None", "'x'", "[]", "{}", "10**30", "float('nan')", "True", "1.5", "")
WORDS = (0, 1, 2**7, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def mutate(rng, path):
    """Damage a file.

    Returns:
      What was done, in words.
    """
    kinds = [change_bytes] * 5 + [replace_file]
    content = path.read_bytes()
    if parse(content) is not None:
        kinds += [change_json] * 8
    if path.suffix == ".safetensors":
        kinds += [change_header] * 4
    if re.search(rb"\d", content) and b"\0" not in content:
        kinds += [change_number] * 2
    kind = rng.choice(kinds)
    return f"{path.name}: {kind(rng, path, content)}"


def change_bytes(rng, path, content):
    """Up to three changes of bytes, most of them one."""
    done = []
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = len(data)
        # Headers are at the start, and footers at the end.
        reach = rng.choice((size, size, 64, 512))
        start = rng.randrange(max(1, min(size, reach)))
        start = max(0, size - 1 - start) if rng.random() < 0.2 else start
        stop = min(size, start + rng.choice((1, 2, 4, 8, 64, 1024)))
        kind = rng.choice(("flip", "flip", "set", "cut", "drop", "repeat", "word", "zero", "grow"))
        done.append(f"{kind} {start}:{stop}")
        if kind == "flip" and size:
            data[start] ^= 1 << rng.randrange(8)
        elif kind == "set":
            data[start:stop] = rng.randbytes(stop - start)
        elif kind == "cut":
            del data[start:]
        elif kind == "drop":
            del data[start:stop]
        elif kind == "repeat":
            data[stop:stop] = data[start:stop] * rng.choice((1, 1, 50))
        elif kind == "word":
            width = rng.choice((2, 4, 8))
            word = rng.choice(WORDS) % 256**width
            data[start : start + width] = word.to_bytes(width, rng.choice(("little", "big")))
        elif kind == "zero":
            data[start:stop] = bytes(stop - start)
        elif kind == "grow":
            data += rng.choice((b"\0", b"\n", b"{}", rng.randbytes(9), bytes(5000)))
    path.write_bytes(data)
    return ", ".join(done)


def replace_file(rng, path, content):
    """Put something else in the place of a file."""
    kind = rng.choice(("nothing", "empty", "folder", "pipe", "loop", "sibling"))
    siblings = [p for p in sorted(path.parent.iterdir()) if p.is_file() and p != path]
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "sibling" and siblings:
        shutil.copyfile(rng.choice(siblings), path)
    return f"{kind} in its place"


def change_number(rng, path, content):
    """Replace a number, or a text in quotes, by something odd."""
    spots = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?|\"\w*\"", content))
    spot = rng.choice(spots)
    new = rng.choice(TEXTS)
    path.write_bytes(content[: spot.start()] + new.encode() + content[spot.end() :])
    return f"{spot[0].decode()} at {spot.start()} becomes {new!r}"


def change_header(rng, path, content):
    """Change the JSON at the start of a safetensors file, whose length is written with it."""
    size = int.from_bytes(content[:8], "little")
    value, done = change_value(rng, json.loads(content[8 : 8 + size]))
    header = dump(value).encode(errors="surrogatepass")
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    return f"header: {done}"


def change_json(rng, path, content):
    """Change the JSON of a file, or that of one of its lines."""
    values = parse(content)
    i = rng.randrange(len(values))
    values[i], done = change_value(rng, values[i])
    lines = [dump(value) for value in values]
    path.write_bytes("\n".join([*lines, ""]).encode(errors="surrogatepass"))
    return f"entry {i}: {done}"


def forge_packed(rng, path):
    """Change the metadata of packed weights, and their digest with them."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    value, done = change_value(rng, json.loads(header["__metadata__"]["pqt_jax"]))
    text = dump(value).encode(errors="replace").decode()
    digest = hashlib.sha256(text.encode()).hexdigest()
    header["__metadata__"] = {"pqt_jax": text, "sha256": digest}
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])
    return f"forged metadata: {done}"


def forge_index(rng, path):
    """Change the index of prepared tokens, and its digest with it."""
    value, done = change_value(rng, json.loads(path.read_bytes()))
    value = json.loads(json.dumps(value))
    if isinstance(value, dict):
        value[tokens.DIGEST] = tokens.compute_digest(value)
    path.write_text(dump(value), errors="surrogatepass")
    return f"forged index: {done}"


def change_value(rng, value):
    """Change one place in a JSON value: (the new value, what was done)."""
    places = list(walk(value))
    if not places:
        return rng.choice(ODD), "another value"
    parent, key = rng.choice(places)
    names = [k for k in parent] if isinstance(parent, dict) else []
    kind = rng.choice(("odd", "odd", "odd", "drop", "other", "nest", "rename", "near"))
    old = parent[key]
    if kind == "drop":
        del parent[key]
    elif kind == "rename" and names:
        parent[rng.choice(("x", "", *names))] = parent.pop(key)
    elif kind == "other":
        other, name = rng.choice(places)
        parent[key] = json.loads(json.dumps(other.get(name) if isinstance(other, dict) else old))
    elif kind == "nest":
        parent[key] = DEEP if rng.random() < 0.3 else [old]
    elif kind == "near" and isinstance(old, int | float):
        parent[key] = rng.choice((old + 1, old - 1, -old, 2 * old, old / 2, str(old), [old]))
    else:
        kind, parent[key] = "odd", rng.choice(ODD)
    new = parent[key] if kind in ("odd", "near", "other") else ""
    return value, f"{kind} {key!r}: {old!r:.60} → {new!r:.60}"


def walk(value):
    """Yield (dict or list, key) of everything inside a JSON value."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from walk(value[key])


DEEP = "the deep one"


def dump(value):
    """A value as JSON, with what Python's writer refuses: 1e400, and brackets 100,000 deep."""
    text = json.dumps(value, ensure_ascii=False).replace("Infinity", "1e400")
    return text.replace(json.dumps(DEEP), 100_000 * "[" + 100_000 * "]")


def parse(content):
    """The JSON values of a file or of its lines; None if there are none."""
    try:
        if content.strip()[:1] not in (b"{", b"["):
            return None
        try:
            return [json.loads(content)]
        except ValueError:
            return [json.loads(line) for line in content.splitlines()]
    except ValueError:
        return None
