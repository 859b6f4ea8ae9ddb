# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Configurations: overrides, checks, and what a bad one is told."""

import dataclasses
import json
import pathlib
import re

import pytest
import tiny

from pqt_jax import cli
from pqt_jax import config as configs
from pqt_jax.errors import InputError
from pqt_jax.models import GPT2Config, Llama2Config

TINY = str(pathlib.Path(tiny.__file__))
QUICKSTART = str(pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py")


def load(*overrides):
    return cli.load(TINY, [tuple(item.split("=", 1)) for item in overrides])


def test_the_quick_start_is_sound():
    config = cli.load(QUICKSTART)
    assert config.method == "gaussws"
    opening = pathlib.Path(QUICKSTART).read_text().split('"""')[1]
    for word in ("2505.11170", "python -m pqt_jax.train --config configs/quickstart.py", "minutes"):
        assert word in opening


@pytest.mark.parametrize(
    "override, expected",
    [
        ("steps=1e3", 1000),
        ("steps=20", 20),
        ("optimizer.learning_rate=3", 3.0),
        ("optimizer.learning_rate=1e-4", 1e-4),
        ("optimizer.warmup_steps=0", 0),
        ("model.remat=true", True),
        ("model.remat=0", False),
        ("pqt.block=16,8", (16, 8)),
        ("pqt.block=(16, 8)", (16, 8)),
        ("method=uniform", "uniform"),
        ("data.files=a=b", "a=b"),
    ],
)
def test_overrides_take_the_type_of_their_field(override, expected):
    config = load(override)
    for name in override.partition("=")[0].split("."):
        config = config[name]
    assert config == expected and type(config) is type(expected)


@pytest.mark.parametrize(
    "override, message",
    [
        ("stepps=1", "--config.stepps: no such field; did you mean config.steps?"),
        ("optimizer.learnin_rate=1", "did you mean config.optimizer.learning_rate?"),
        ("lerning_rate=1", "did you mean config."),
        ("zzzz=1", "--config.zzzz: no such field; there are data.batch, data.files, data.length"),
        ("model=3", "--config.model: no such field"),
        ("steps=1.5", "config.steps='1.5'; it must be a whole number"),
        ("steps=many", "config.steps='many'; it must be a whole number"),
        ("steps=inf", "config.steps='inf'; it must be a whole number"),
        ("steps=0", "config.steps=0; it must be more than 0"),
        ("seed=-1", "config.seed=-1; it must be a whole number from 0"),
        ("method=int4", "config.method='int4'; it must be one of bf16, gaussws, uniform"),
        ("model.name=llama3", "config.model.name='llama3'; it must be one of llama2, gpt2"),
        ("model.name=gpt2", "is no field of it"),
        ("model.remat=maybe", "config.model.remat='maybe'; it must be true or false"),
        ("model.dtype=float8", "config.model.dtype='float8'; it must be float32 or bfloat16"),
        ("model.vocab_size=100", "at least 256, one for each byte"),
        ("model.num_heads=5", "config.model.num_heads=5; it must divide config.model.d_model=32"),
        ("data.length=33", "config.data.length=33; it must be at most config.model.max_length=32"),
        ("optimizer.learning_rate=nan", "config.optimizer.learning_rate=nan; it must be more"),
        ("optimizer.b2=1", "config.optimizer.b2=1.0; it must be from 0 to below 1"),
        ("optimizer.warmup_steps=60", "warmup_steps=60; it must be less than config.steps=60"),
        ("pqt.weight_decay=-1", "config.pqt.weight_decay=-1.0; it must be 0 or more"),
        ("pqt.pattern=h/(", "the pattern does not compile"),
        ("pqt.block=7,7", "block=(7, 7)"),
        ("pqt.block=a,b", "something like (32, 32)"),
        ("pqt.target_bits=7", "target_bits=7.0, init_bits=6.0"),
        ("pqt.dtype=float7", "float7"),
    ],
)
def test_a_bad_field_is_named_with_what_would_be_right(override, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(override)
    assert "\n" not in str(caught.value)


def test_the_command_line():
    config, workdir = cli.parse(["--config", TINY, "--config.steps", "1e2", "--config.seed=3"])
    assert (config.steps, config.seed, str(workdir)) == (100, 3, "runs/tiny-gaussws")
    assert str(cli.parse(["--config", TINY, "--workdir=x/y"])[1]) == "x/y"
    with pytest.raises(AttributeError):
        config.stepps = 1  # locked
    wrong = str(pathlib.Path(TINY).parent / "tyni.py")
    for arguments, message in (
        ([], "--config is missing"),
        (["--config"], "expected one argument"),
        (["--config", TINY, "--steps=3"], "unknown argument '--steps'"),
        (["--config", TINY, "--config.steps"], "--config.steps has no value"),
        (["--config", wrong], "no such file; there is .*tiny.py"),
    ):
        with pytest.raises(InputError, match=message):
            cli.parse(arguments)


def test_help_lists_the_fields(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.parse(["--config", TINY, "--help"])
    shown = capsys.readouterr().out
    for name, _ in configs.fields(load()):
        assert f"config.{name}=" in shown


@pytest.mark.parametrize(
    "content, message",
    [
        ("def get_config(:", "SyntaxError"),
        ("x = 1", "AttributeError.*get_config"),
        ("def get_config(): return {}", "must return a ConfigDict"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
    ],
)
def test_a_broken_config_file_is_one_line(tmp_path, content, message):
    (tmp_path / "broken.py").write_text(content)
    with pytest.raises(InputError, match=f"broken.py: .*{message}") as caught:
        cli.load(str(tmp_path / "broken.py"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model", [Llama2Config(300, 64, 2, 4, 96, remat=True), GPT2Config(300, 64, 2, 4, 96, bias=True)]
)
def test_a_model_survives_the_configuration(model):
    config = configs.default(model)
    configs.check(config)
    assert configs.model_config(config) == model
    assert dataclasses.asdict(model).keys() < dict(config.model).keys()


def test_methods_differ_in_their_rules_alone():
    kinds = {}
    for method in configs.METHODS:
        config = load(f"method={method}", "pqt.target_bits=3")
        kinds[method] = [rule.spec.noise for rule in configs.rules(config)]
        assert configs.quantization_rules(config)[0].spec.target_bits == 3
    assert kinds == {"bf16": [], "gaussws": ["gauss"], "uniform": ["uniform"]}


def test_differences_name_fields_and_pass_over_logging():
    old = json.loads(configs.as_json(load()))
    assert configs.differences(old, load()) == []
    changed = load("log.every=7", "seed=5", "pqt.block=16,16")
    assert configs.differences(old, changed) == [
        "config.pqt.block was [32, 32] and is [16, 16]",
        "config.seed was 0 and is 5",
    ]
    assert configs.digest(load()) == configs.digest(load("log.every=7"))
    assert configs.digest(load()) != configs.digest(load("seed=5"))
