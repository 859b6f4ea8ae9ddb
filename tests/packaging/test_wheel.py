# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The wheel as users install it: built, installed in a fresh environment, and run there."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
import zipfile

import pytest

from support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command, cwd, **variables):
    env = {**os.environ, **variables}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("pqt_jax-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_types_and_the_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "pqt_jax").rglob("*.py")}
    configs = {f"pqt_jax/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.py")}
    assert names >= sources | configs | {"pqt_jax/py.typed"}
    extra = names - sources - configs - {"pqt_jax/py.typed"}
    assert all(name.startswith("pqt_jax-") for name in extra), extra


@pytest.mark.slow
def test_its_metadata_names_authors_licence_and_description_and_no_address(wheel):
    (distribution,) = importlib.metadata.distributions(path=[str(wheel)])
    about = distribution.metadata
    assert about["Author"] == "The pqt_jax Authors" and about["License-Expression"] == "Apache-2.0"
    assert about["Summary"] == PROJECT["description"]
    assert not about.get_all("Project-URL") and "Home-page" not in about
    assert "LICENSE" in about.get_all("License-File")


@pytest.mark.slow
def test_a_fresh_environment_without_the_checkout_trains_ten_steps(wheel, tmp_path):
    bin = tmp_path / "env" / "bin"
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    pip = [bin / "python", "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", wheel, cwd=tmp_path)
    where = run(bin / "python", "-c", "import pqt_jax; print(pqt_jax.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path))
    fields = ["--config.steps=10", "--config.optimizer.warmup_steps=2", "--config.log.every=1"]
    fields += ["--config.log.validation_batches=1"]
    out = run(bin / "pqt-train", "--config", "quickstart", *fields, cwd=tmp_path)
    assert "step=10 " in out
    workdir = tmp_path / "runs" / "quickstart-gaussws"
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 10
    options = ["--workdir", workdir, "--format", "fp4_e2m1", "--out", "packed"]
    assert run(bin / "pqt-export", *options, cwd=tmp_path)
    assert (tmp_path / "packed").is_dir()


@pytest.mark.slow
def test_every_command_is_on_the_path(wheel, tmp_path):
    (distribution,) = importlib.metadata.distributions(path=[str(wheel)])
    points = {p.name: p for p in distribution.entry_points if p.group == "console_scripts"}
    assert {name: point.value for name, point in points.items()} == PROJECT["scripts"]
    assert all(callable(point.load()) for point in points.values())
