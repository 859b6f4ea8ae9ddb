# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""SHA256SUMS: the digests of all files of an exported folder.

    64 hexadecimal digits, two spaces, the name of the file

`sha256sum -c SHA256SUMS` checks a folder that was copied. A folder whose files are those that are
listed may be replaced by another export, since nobody has put anything of their own there.

Source: the format of GNU coreutils' sha256sum.
"""

import hashlib
from pathlib import Path

from pqt_jax.errors import InputError, system_reason
from pqt_jax.interchange import files

FILE = "SHA256SUMS"


def write(folder: Path) -> None:
    """Write the digests of the files of a folder.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "config.json").write_text("{}")
      >>> write(folder)
      >>> (folder / FILE).read_text()[60:]
      'ff8a  config.json\\n'
      >>> find_change(folder) is None
      True

    Args:
      folder: with files alone.

    Raises:
      OSError: if a file cannot be read.
      OutputError: if the digests cannot be written.
    """
    lines = [f"{_digest(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    files.write(folder / FILE, "".join(lines))


def find_change(folder: Path) -> str | None:
    """What a folder holds that is not as it was written, as the end of "FOLDER …".

    Args:
      folder: an existing folder.

    Returns:
      None if each file has the digest that is listed. Files may be missing.

    Raises:
      InputError: if a file cannot be read.
    """
    try:
        text = files.read_bytes(folder / FILE).decode(errors="replace")
    except FileNotFoundError:
        return f"holds no {FILE}, by which an export of pqt_jax is known"
    except OSError as error:
        raise InputError(f"{folder / FILE}: {system_reason(error, 'put it back')}") from None
    listed = {name: digest for digest, _, name in (x.partition("  ") for x in text.splitlines())}
    for path in sorted(folder.iterdir()):
        if path.name == FILE:
            continue
        if path.name not in listed:
            return f"holds {path.name}, which the export did not write"
        try:
            is_same = _digest(path) == listed[path.name]
        except OSError as error:
            raise InputError(f"{path}: {system_reason(error, 'put it back')}") from None
        if not is_same:
            return f"holds {path.name}, which was changed since it was exported"
    return None


def _digest(path: Path) -> str:
    with files.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
