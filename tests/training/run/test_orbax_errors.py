# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Failures of Orbax are one exception; hooks and filters change within the context alone."""

import errno
import logging
import os
import subprocess
import sys
import warnings

import pytest

from pqt_jax.training.run import orbax_errors


def test_a_failed_call_prints_nothing_and_leaves_the_hooks(capfd):
    def fail():
        logging.getLogger("absl").error("noise")
        warnings.warn("noise", stacklevel=1)
        raise OSError(f"many words: {os.strerror(errno.ENOSPC)}: and more")

    hook, level = sys.unraisablehook, logging.root.manager.disable
    with pytest.raises(orbax_errors.OrbaxError, match="^No space left on device$"):
        orbax_errors.call_orbax(fail)
    assert (sys.unraisablehook, logging.root.manager.disable) == (hook, level)
    assert capfd.readouterr() == ("", "")


def test_orbax_is_quiet_within_the_context_alone(capfd):
    def log():
        """As Orbax's background threads do."""
        record = logging.LogRecord("absl", logging.ERROR, "/orbax/x.py", 1, "noise", (), None)
        logging.getLogger("absl").handle(record)

    hook, filters = sys.unraisablehook, list(logging.getLogger("absl").filters)
    handler = logging.StreamHandler()
    logging.getLogger("absl").addHandler(handler)
    try:
        log()
        assert capfd.readouterr().err == "noise\n"
        with orbax_errors.quiet_orbax():
            assert sys.unraisablehook is not hook
            log()
        assert capfd.readouterr().err == ""
        assert sys.unraisablehook is hook and logging.getLogger("absl").filters == filters
    finally:
        logging.getLogger("absl").removeHandler(handler)


def test_importing_changes_no_hook_and_no_filter():
    program = (
        "import logging, sys, warnings; import orbax.checkpoint\n"
        "state = lambda: (sys.unraisablehook, logging.getLogger('absl').filters[:], "
        "logging.getLogger('asyncio').filters[:], warnings.filters[:])\n"
        "before = state(); import pqt_jax.training.run.orbax_errors; assert state() == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
