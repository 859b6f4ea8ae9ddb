# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Folders that all tests of a session share, also tests in other workers."""

import fcntl
import os
import shutil
from pathlib import Path


def shared_folder(tmp_path_factory, name, make):
    """A folder of the test session, made by the first test that asks for it.

    Workers of pytest-xdist share the folder: the first one makes it while the others wait. Tests
    must not change it.

    Args:
      tmp_path_factory: the fixture of pytest.
      name: of the folder. One name stands for one content.
      make: called with the path of a new, empty folder, which it fills.

    Returns:
      The path of the folder.
    """
    session = Path(tmp_path_factory.getbasetemp())
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent  # of the base folders of all workers
    folder, done = session / f"shared-{name}", session / f"shared-{name}.done"
    with (session / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by an attempt that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
