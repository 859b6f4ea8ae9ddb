# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Eight fake CPU devices, set before JAX starts, and compiled programs kept between runs."""

import pathlib
import shutil

import jax
import pytest

from support.paths import ROOT

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_configure(config):
    # JAX writes an entry in place: another worker may read half of one, and an interrupted run
    # leaves one behind. It then warns and compiles anew, which is no reason to fail a test.
    for verb in ("reading", "writing"):
        message = f"ignore:Error {verb} persistent compilation cache entry:UserWarning"
        config.addinivalue_line("filterwarnings", message)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """The workdir of a real run of eight steps with checkpoints 4 and 8; not to be changed."""
    from support.command import main

    folder = tmp_path_factory.mktemp("trained")
    assert main(folder, "--config.steps=8") == 0
    return folder / "run"


@pytest.fixture
def run_copy(trained_run, tmp_path):
    """A copy of it that may be changed."""
    return pathlib.Path(shutil.copytree(trained_run, tmp_path / "run"))
