# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Eight fake CPU devices, and how programs are compiled, set before JAX starts.

Compiling is most of the time of the tests. Programs are kept between runs and shared by all
processes, and they are compiled without LLVM's expensive passes, which changes the last bits of
sums, and without XLA's emitters of fusions, which make MLIR's whole context anew for each program.
`JAX_DISABLE_MOST_OPTIMIZATIONS=0` compiles as users do, and so do the processes that a test starts
which is marked `optimized`.
"""

import gc
import os
import pathlib
import shutil
import signal
import time

from support.paths import JAX_CACHE

# Processes that tests start inherit these.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(JAX_CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest

from support.compilation import count_compilations
from support.session import shared_folder

jax.config.update("jax_num_cpu_devices", 8)

# XLA reads its flags when it first compiles, and a process with a flag that XLA does not know ends
# at once: that of jax 0.12 no longer has this one. Half of the time of a small program is saved.
QUICK_FLAG = "--xla_cpu_use_fusion_emitters=false"
GIVEN_FLAGS = os.environ.get("XLA_FLAGS", "").replace(QUICK_FLAG, "").strip()  # workers inherit it
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and jax.__version__.startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{QUICK_FLAG} {GIVEN_FLAGS}"


def pytest_configure(config):
    # JAX writes an entry in place: another worker may read half of one, and an interrupted run
    # leaves one behind. It then warns and compiles anew, which is no reason to fail a test.
    for verb in ("reading", "writing"):
        message = f"ignore:Error {verb} persistent compilation cache entry:UserWarning"
        config.addinivalue_line("filterwarnings", message)


COMPILED_AT_COLLECTION = pytest.StashKey[int]()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    # tests/test_collection.py compares the number with zero.
    with count_compilations() as programs:
        result = yield
    session.config.stash[COMPILED_AT_COLLECTION] = len(programs)
    return result


def pytest_runtest_setup(item):
    """Skip slow tests, each by its name, after the time in `PQT_SLOW_TESTS_UNTIL` (a Unix time).

    `.ci/run` sets it, so that it ends on a slow machine, too, and says what it has not run.
    """
    until = float(os.environ.get("PQT_SLOW_TESTS_UNTIL", "inf"))
    if item.get_closest_marker("slow") is not None and time.time() > until:
        pytest.skip(f"not run, as the time for slow tests is over: {item.nodeid}")


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """Leave what a file of tests has made out of later garbage collections.

    Compiled programs stay until the end. A full collection in a worker that has run half of the
    tests would take more than a second, and each run of the trainer asks for two.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def compiled_as_users_do(request, monkeypatch):
    """Processes that a test starts which is marked `optimized` compile as those of users do."""
    if request.node.get_closest_marker("optimized") is not None:
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        monkeypatch.setenv("XLA_FLAGS", GIVEN_FLAGS)


@pytest.fixture(autouse=True)
def hangup_ends_a_process():
    """SIGHUP does what it does in a shell, also where `nohup` runs the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def compiled_at_collection(pytestconfig):
    """The number of programs that JAX compiled while pytest imported the tests."""
    return pytestconfig.stash[COMPILED_AT_COLLECTION]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """The workdir of a run of eight steps with checkpoints 4 and 8. Tests must not change it."""
    from support.command import main

    def train(folder):
        assert main(folder, "--config.steps=8") == 0

    return shared_folder(tmp_path_factory, "trained", train) / "run"


@pytest.fixture
def run_copy(trained_run, tmp_path):
    """A copy of `trained_run` that a test may change."""
    return pathlib.Path(shutil.copytree(trained_run, tmp_path / "run"))
