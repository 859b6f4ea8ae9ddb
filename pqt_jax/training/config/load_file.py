# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Read config files, which are Python: the file is run once, and any failure becomes one line."""

import difflib
import importlib.util
import os
import re
import stat
import traceback
from pathlib import Path
from typing import TypeVar

from ml_collections import ConfigDict

from pqt_jax.errors import InputError, system_reason
from pqt_jax.training.config.fields import from_values

C = TypeVar("C")
_PACKAGE = Path(__file__).parents[2]
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # installed, a checkout


def find(name: str) -> str:
    """Return the path of a config file; the package's config files can be named without a path.

    Example:
      >>> Path(find("quickstart")).name, find("my/run.py")
      ('quickstart.py', 'my/run.py')

    Args:
      name: a path, or the name of a file in `configs` without its suffix, such as "lab/smoke".
    """
    # A folder of that name, such as the workdir of an earlier run, does not hide the config.
    if name and not name.endswith(".py") and not os.path.isfile(name):
        for folder in _FOLDERS:
            if os.path.isfile(path := folder / f"{name}.py"):
                return str(path)
    return name


def list_names() -> list[str]:
    """Return the names of the package's config files, as `find` takes them."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
    return [str(path.relative_to(folder).with_suffix("")) for path in sorted(folder.rglob("*.py"))]


def read(path: str, cls: type[C]) -> C:
    """The configuration that `get_config()` of a file returns.

    Args:
      path: as for `find`.
      cls: dataclass of the configuration.

    Raises:
      InputError: for anything wrong with the file, or with the names and types of its fields.
    """
    if not path:
        raise InputError("--config= is empty; give a config file, or a name such as quickstart")
    path = find(path)
    _check_path(path)
    spec = importlib.util.spec_from_file_location("pqt_jax_user_config", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config={path}: a config is a Python file, name it something.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError("it has no function get_config()")
        config = module.get_config()
        if not isinstance(config, ConfigDict):
            raise InputError("get_config() must return a ConfigDict")
        values = config.to_dict()
        if "sweep" in values and not hasattr(cls, "sweep"):
            raise InputError("it configures a sweep; give it to python -m pqt_jax.lab.sweep")
        if "model" in values and "sweep" not in values and hasattr(cls, "sweep"):
            raise InputError("it configures a training run; give it to python -m pqt_jax.train")
        try:
            return from_values(cls, values)
        except RecursionError:
            raise InputError("a section of its ConfigDict contains itself") from None
    except InputError as error:
        raise InputError(f"--config={path}: {error}") from None
    except BaseException as error:  # whatever a user's file does wrong becomes one line
        raise InputError(f"--config={path}: {_reason(error, path)}") from None


def _check_path(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        names = list_names()
        meant = difflib.get_close_matches(path.removesuffix(".py"), names, n=1)
        named = f"did you mean {meant[0]}?" if meant else f"by name there are {', '.join(names)}"
        near = _config_files_in(Path(path).parent)
        raise InputError(f"--config={path}: no such file{near}; {named}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        remedy = "give a config file"
        reason = (
            system_reason(error, remedy) if isinstance(error, OSError) else f"{error}; {remedy}"
        )
        raise InputError(f"--config={path}: {reason}") from None
    if stat.S_ISDIR(mode):
        inside = _config_files_in(Path(path))
        raise InputError(f"--config={path} is a directory; give a config file{inside}")
    if not stat.S_ISREG(mode):
        raise InputError(f"--config={path} is not a regular file; give a config file")


def _config_files_in(folder: Path) -> str:
    """Return up to eight config files of a folder, as "; there is a.py, b.py"; "" without any."""
    names: list[str] = []
    try:
        for path in sorted(folder.glob("*.py")):
            if path.is_file() and "def get_config" in path.read_text(errors="replace"):
                names.append(str(path))
    except OSError:
        pass  # then there is nothing to suggest
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"; there is {', '.join(names[:8])}{more}" if names else ""


def _reason(error: BaseException, path: str) -> str:
    """The error of a config file on one line, with the number of the line in the file."""
    try:
        text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    except BaseException:  # its __str__ is the file's code, too
        text = ""
    if isinstance(error, AttributeError | KeyError):  # the messages of ConfigDict have many lines
        meant = re.search(r'Did you mean "(.*?)" instead of "(.*?)"', text)
        if meant:
            return f"no field {meant[2]!r}; did you mean {meant[1]!r}?"
        if key := re.search(r'Key "(.*?)" does not|^"?\'(\w+)\'"?$', text):
            return f"no field {key[1] or key[2]!r}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == os.path.abspath(path)]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"
