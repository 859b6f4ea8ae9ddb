# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Commands refuse an address such as gs://bucket/run for a path, and make no folder of its name."""

import importlib
import os

import pytest

from pqt_jax import console
from pqt_jax.errors import InputError
from support.command import refused
from support.paths import ROOT

COMMANDS = "train evaluate generate export plot data.prepare lab.sweep lab.report".split()
OTHER = {"TOKEN", "REGEX", "TEXT", "SIZE", "RxC", "A,B", "NATS", *"NSTKP"}  # metavars of no path
CONFIG = f"--config={ROOT}/tests/support/tiny.py"
GIVEN = {  # what is required beside the option that is wrong
    "train": [CONFIG],
    "evaluate": ["--workdir=run"],
    "generate": ["--workdir=run"],
    "export": ["--workdir=run", "--format=master", "--out=out"],
    "plot": ["run", "--out=out"],
    "data.prepare": ["--tokenizer=bytes", "--input=text.txt", "--out=out"],
    "lab.sweep": [f"--config={ROOT}/configs/lab/smoke.py"],
    "lab.report": ["run"],
}


def command(name):
    return importlib.import_module(f"pqt_jax.{name}")


def path_options(name):
    actions = [action for action in command(name).parser()._actions if action.metavar]
    assert {action.metavar for action in actions} <= {*console._PATHS, *OTHER}
    return [action for action in actions if action.metavar in console._PATHS]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("address", ["gs://bucket/x", "s3:/bucket/x"])
def test_every_option_that_takes_a_path_refuses_an_address(
    name, address, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    options = path_options(name)
    assert options
    for action in options:
        flag = action.option_strings[0] if action.option_strings else action.metavar
        given = [a for a in GIVEN[name] if not a.startswith(f"{flag}=") and a != "run"]
        if name in ("evaluate", "generate", "export") and flag in ("--hf", "--packed", "--gguf"):
            given.remove("--workdir=run")
        if name in ("plot", "lab.report") and action.option_strings:
            given.insert(0, "run")
        wrong = [flag, address] if action.option_strings else [address]
        line = refused(command(name).main, [*given, *wrong], capsys)
        assert line.startswith(f"error: {flag}={address!r}; it must be a path of this machine")
        is_hinted = flag == "--workdir" and address.startswith("gs://")
        assert ("config.log.store" in line) == is_hinted
    assert os.listdir() == []


@pytest.mark.parametrize("field", ["data.files", "data.tokens", "init_from"])
@pytest.mark.parametrize("name", ["train", "lab.sweep"])
def test_every_field_that_takes_a_path_refuses_an_address(
    name, field, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    line = refused(command(name).main, [*GIVEN[name], f"--config.{field}=https://a.b/c"], capsys)
    assert f"config.{field}='https://a.b/c'; it must be a path of this machine" in line
    assert os.listdir() == []


def test_text_that_is_no_path_may_be_an_address():
    parser = command("generate").parser()
    assert parser.parse_args(["--workdir=run", "--prompt=gs://a/b"]).prompt == "gs://a/b"


def test_each_of_several_paths_is_looked_at():
    parser = command("data.prepare").parser()
    with pytest.raises(InputError, match="--input='gs://b/x'"):
        parser.parse_args(["--tokenizer=bytes", "--out=out", "--input", "a.txt", "gs://b/x"])
