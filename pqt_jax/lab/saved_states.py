# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""States of runs that are not finished: a sweep goes on from them, and arms share first steps.

    DIR/states/00028000-FINGERPRINT      the state after 28,000 steps, and what was measured so far

The name holds the fingerprint of everything that the state depends on (`programs.Programs`). Hence
a unit finds its own states after a kill, and those of other arms that begin with the same steps, as
BF16 and all arms that are BF16 first do. A state of another program has another name and is not
used. A file begins with the SHA-256 of the rest, which is MessagePack as Flax writes it.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import serialization

from pqt_jax.console import print_error
from pqt_jax.errors import InputError, system_reason
from pqt_jax.interchange import files
from pqt_jax.lab.programs import Fingerprints

Content = dict[str, Any]  # nested dicts of NumPy arrays
_LENGTH = 32  # characters of a fingerprint in a name
_DIGEST = 32  # bytes before the content


@dataclass(frozen=True)
class SavedStates:
    """The states of one work unit.

    Attributes:
      folder: `DIR/states`, which all units share.
      fingerprints: those of the unit.
      shared: after how many steps the unit parts from other arms; these states are kept.
    """

    folder: Path
    fingerprints: Fingerprints
    shared: frozenset[int]

    def read_last(self) -> tuple[int, Content]:
        """(number of steps, content) of the unit's last state, (0, {}) if it has none.

        A damaged state is named, set aside as `NAME.damaged`, and the one before it is read.
        """
        for steps in sorted(_steps_of(self.folder, self.fingerprints), reverse=True):
            path = self._path(steps)
            try:
                data = files.read_bytes(path)
            except FileNotFoundError:  # another process has finished the unit that wrote it
                continue
            except OSError as error:
                raise InputError(
                    f"{path} cannot be read: {system_reason(error, 'move it away')}"
                ) from None
            if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
                content: Any = serialization.msgpack_restore(data[_DIGEST:])
                return steps, content
            print_error(f"warning: {path} is damaged and set aside; an earlier state is used")
            path.rename(f"{path}.damaged")
        return 0, {}

    def write(self, steps: int, content: Content) -> None:
        """Save the state after a number of steps, and remove those before that no arm needs."""
        data = serialization.msgpack_serialize(content)
        self.folder.mkdir(exist_ok=True)
        files.write_chunks(self._path(steps), [hashlib.sha256(data).digest(), data])
        self.remove(before=steps)

    def remove(self, before: int) -> None:
        """Remove the states after fewer steps, unless other arms can begin from them."""
        for steps in _steps_of(self.folder, self.fingerprints):
            if steps < before and steps not in self.shared:
                self._path(steps).unlink(missing_ok=True)

    def _path(self, steps: int) -> Path:
        return self.folder / _name(steps, self.fingerprints)


def last_saved_step(folder: Path, fingerprints: Fingerprints) -> int:
    """The number of steps of the last state that a unit can go on from; 0 if there is none."""
    return max(_steps_of(folder, fingerprints), default=0)


def count_shared_steps(one: Fingerprints, other: Fingerprints) -> int:
    """The number of first steps after which the states of two units are the same.

    Example:
      >>> bf16, recipe = [(100, "a")], [(70, "a"), (100, "b")]
      >>> count_shared_steps(bf16, recipe)
      70
    """
    shared = 0
    for (last, fingerprint), (other_last, other_fingerprint) in zip(one, other, strict=False):
        if fingerprint != other_fingerprint:
            break
        shared = min(last, other_last)
        if last != other_last:
            break
    return shared


def _name(steps: int, fingerprints: Fingerprints) -> str:
    """The file name of the state after a number of steps."""
    fingerprint = next(of for last, of in fingerprints if steps <= last)
    return f"{steps:08d}-{fingerprint[:_LENGTH]}"


def _steps_of(folder: Path, fingerprints: Fingerprints) -> list[int]:
    """The numbers of steps after which a state of a unit is saved."""
    names = {path.name for path in folder.glob("*-*")}
    steps = {int(name[:8]) for name in names if re.fullmatch(r"\d{8}-[0-9a-f]+", name)}
    known = [n for n in steps if n < fingerprints[-1][0]]
    return [n for n in known if _name(n, fingerprints) in names]
