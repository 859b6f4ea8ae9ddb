# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""One case: a copy of intact files, damage to one of them, and what their reader makes of it."""

import random
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fuzz.readers import ANY, READERS, SAME
from pqt_jax import console
from pqt_jax.errors import InputError, OutputError

_ORDER = [reader for reader in READERS for _ in range(reader.weight)]
random.Random(0).shuffle(_ORDER)


class Case(NamedTuple):
    """A case, which its number and the seed determine.

    Attributes:
      number: from 0 on.
      seed: of all cases of a run.
      reader: one of `READERS`.
    """

    number: int
    seed: int
    reader: object

    def random(self):
        """The source of the damage."""
        return random.Random(f"{self.seed} {self.number}")


def make_case(number, seed, readers=None):
    """A case by its number; with `readers`, of one of these."""
    order = _ORDER if readers is None else readers
    return Case(number, seed, order[number % len(order)])


def damage(case, intact, folder):
    """Copy the intact files of a case to a folder, and damage one: (the copy, what was done)."""
    copy = folder / case.reader.source
    shutil.copytree(intact / case.reader.source, copy, copy_function=shutil.copyfile)
    shutil.copyfile(intact / "text.txt", folder / "text.txt")
    files = [path for path in sorted(copy.glob(case.reader.files)) if path.is_file()]
    rng = case.random()
    path = rng.choice(files)
    done = case.reader.damage(rng, path)
    return copy, f"{path.parent.relative_to(folder)}/{done}"


def read_intact(reader, intact, folder):
    """What a reader makes of the intact files, as `freeze` gives it."""
    copy = folder / reader.source
    shutil.copytree(intact / reader.source, copy)
    shutil.copyfile(intact / "text.txt", folder / "text.txt")
    return freeze(reader.read(copy))


def judge(case, copy, intact_values):
    """Read the damaged files.

    Args:
      case: the case.
      copy: the folder with the damaged files.
      intact_values: what the reader makes of the intact files, as `freeze` gives it.

    Returns:
      ("refused" or "accepted", "") or (the kind of failure, what was wrong).
    """
    try:
        values = freeze(case.reader.read(copy))
    except (InputError, OutputError) as error:
        return "refused", console.escaped(str(error))
    if case.reader.expect is ANY:
        return "accepted", ""
    if case.reader.expect is SAME:
        expected = intact_values
    else:
        try:
            expected = freeze(case.reader.expect(copy))
        except Exception as error:
            return "changed", f"accepted, and another reader says {error!r:.300}"
    return ("accepted", "") if values == expected else ("changed", difference(values, expected))


def freeze(values):
    """Values that can be compared by `==`: arrays by their bits."""
    if isinstance(values, dict):
        return {name: freeze(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [freeze(value) for value in values]
    if isinstance(values, str | bytes | int | float | None):
        return values
    array = np.asarray(values)
    return str(array.dtype), array.shape, array.tobytes()


def difference(values, expected, where=""):
    """The first place at which values differ, in words."""
    if isinstance(values, dict) and isinstance(expected, dict):
        for name in dict.fromkeys([*values, *expected]):
            if values.get(name) != expected.get(name):
                return difference(values.get(name), expected.get(name), f"{where}[{name!r}]")
    if isinstance(values, list) and isinstance(expected, list):
        for i, (a, b) in enumerate(zip(values, expected, strict=False)):
            if a != b:
                return difference(a, b, f"{where}[{i}]")
    return f"{where} is {values!r:.200} and should be {expected!r:.200}"


def folder_of(path):
    """An empty folder."""
    shutil.rmtree(path, ignore_errors=True)
    Path(path).mkdir(parents=True)
    return Path(path)
