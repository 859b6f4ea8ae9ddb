# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Configurations: defaults, changes by text, help, and comparison of saved ones."""

import dataclasses
import json
import pathlib

import pytest

from pqt_jax.lab.sweep_config import SweepFileConfig
from pqt_jax.models import GPT2Config, Llama2Config
from pqt_jax.models.registry import model_config
from pqt_jax.training import methods, state
from pqt_jax.training.config import command_line, field_table, saved_config, schema, validation
from pqt_jax.training.config.fields import from_values, list_fields
from pqt_jax.training.methods import METHODS
from pqt_jax.training.methods.sampling_rules import quantization_rules
from support import tiny
from support.paths import ROOT

TINY = str(pathlib.Path(tiny.__file__))
QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def load(*overrides):
    config = command_line.load(TINY, [tuple(item.split("=", 1)) for item in overrides])
    validation.check_devices(config)
    return config


def test_the_quick_start_is_sound():
    config = command_line.load(QUICKSTART)
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
        config = getattr(config, name)
    assert config == expected and type(config) is type(expected)


def test_the_command_line():
    options = command_line.parse(["--config", TINY, "--config.steps", "1e2", "--config.seed=3"])
    config = options.config
    assert (config.steps, config.seed) == (100, 3)
    assert str(options.workdir) == "runs/tiny-gaussws"
    assert not options.distributed and not options.profile
    assert str(command_line.parse(["--config", TINY, "--workdir=x/y"]).workdir) == "x/y"
    with pytest.raises(AttributeError):
        config.stepps = 1  # frozen


@pytest.mark.parametrize("arguments", [["--config", TINY], []], ids=["file", "defaults"])
def test_help_lists_every_field_with_its_sentence(capsys, arguments):
    with pytest.raises(SystemExit, match="0"):
        command_line.parse([*arguments, "--help"])
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    for name, field in list_fields(schema.RunConfig, "llama2").items():
        assert f"  config.{name}=" in shown and field.setting.help in words
    assert ("config.steps=60\n" in shown) == bool(arguments)
    assert "Takes one of bf16, gaussws, uniform, ste, diffq." in words
    assert ("config.model.bias=false" in shown) != bool(arguments)  # of GPT-2


def test_every_field_states_its_meaning_once():
    for cls in (schema.RunConfig, SweepFileConfig):
        for model in ("llama2", "gpt2"):
            for name, field in list_fields(cls, model).items():
                assert field.setting.help.endswith("."), name
                if field.default is not dataclasses.MISSING:
                    assert type(field.default) is field.kind, name
                    assert field.setting.accepts(field.default), name


def test_the_table_of_the_documentation_has_every_field():
    table = field_table.markdown()
    names = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    fields = list_fields(schema.RunConfig, "llama2") | list_fields(schema.RunConfig, "gpt2")
    assert names == {f"config.{name}" for name in fields}
    assert "| `config.log.keep` | `2` | a whole number, 1 or more |" in table
    assert all(line.count(" | ") == 3 for line in table.splitlines() if line.startswith("| `"))
    sweep = field_table.markdown(SweepFileConfig, ["sweep", "simulate"])
    assert "config.sweep.rho" in sweep and "config.data.batch" not in sweep


def test_a_frozen_config_will_do(tmp_path):
    (tmp_path / "file.py").write_text(
        "from support import tiny\nfrom ml_collections import FrozenConfigDict\n"
        "def get_config(): return FrozenConfigDict(tiny.get_config())\n"
    )
    config = command_line.load(str(tmp_path / "file.py"), [("steps", "70")])
    assert config.to_dict() == load("steps=70").to_dict()


def test_whole_numbers_stand_for_numbers_in_a_config_of_ones_own(tmp_path):
    (tmp_path / "file.py").write_text(
        "from support import tiny\nfrom ml_collections import ConfigDict\ndef get_config():\n"
        " options = tiny.get_config().to_dict()\n options['optimizer']['learning_rate'] = 1\n"
        " return ConfigDict(options)\n"
    )
    config = command_line.load(str(tmp_path / "file.py"))
    assert type(config.optimizer.learning_rate) is float
    changed = command_line.load(str(tmp_path / "file.py"), [("optimizer.learning_rate", "0.5")])
    assert changed.optimizer.learning_rate == 0.5


@pytest.mark.parametrize(
    "model", [Llama2Config(300, 64, 2, 4, 96, remat=True), GPT2Config(300, 64, 2, 4, 96, bias=True)]
)
def test_a_model_survives_the_configuration(model):
    built = schema.default(model)
    config = from_values(schema.RunConfig, built.to_dict())
    validation.check(config)
    assert config.model == model_config(built) == model
    assert config == schema.RunConfig(model=model)
    assert dataclasses.asdict(model).keys() < dict(built.model).keys()


def test_methods_differ_in_their_rules_alone():
    kinds = {}
    assert methods.make_rules(load("method=diffq")) == []  # it samples outside the model
    for method in METHODS.keys() - {"diffq"}:
        config = load(f"method={method}", "pqt.target_bits=3", "pqt.dtype=float6_e3m2fn")
        kinds[method] = [
            (rule.spec.noise, str(rule.spec.dtype)) for rule in methods.make_rules(config)
        ]
        assert quantization_rules(config)[0].spec.target_bits == 3
    # The baseline is BF16, whatever it is to be compared with.
    others = {"gaussws": [("gauss", "E3M2")], "uniform": [("uniform", "E3M2")]}
    others["ste"] = [("none", "E3M2")]
    assert kinds == {"bf16": [("none", "BF16")], **others}


def test_ste_has_a_format_of_its_own_unless_one_is_given():
    assert load("method=ste").pqt.dtype == "float6_e3m2fn"
    assert load("method=ste", "pqt.dtype=E4M3").pqt.dtype == "E4M3"
    (rule,) = methods.make_rules(load("method=ste", "pqt.dtype=fp4_e2m1"))
    assert str(rule.spec.dtype) == "E2M1"
    assert load("method=diffq", "pqt.dtype=bf16").pqt.dtype == "bf16"
    assert load("method=gaussws").pqt.dtype == load().pqt.dtype == "bfloat16"


def test_differences_name_fields_and_pass_over_logging():
    old = json.loads(saved_config.as_json(load()))
    assert saved_config.differences(old, old) == []
    changed = load("log.every=7", "seed=5", "pqt.block=16,16")
    assert saved_config.differences(old, json.loads(saved_config.as_json(changed))) == [
        "config.pqt.block was [32, 32] and is [16, 16]",
        "config.seed was 0 and is 5",
    ]
    assert saved_config.digest(load()) == saved_config.digest(load("log.every=7"))
    assert saved_config.digest(load()) != saved_config.digest(load("seed=5"))


def test_a_field_that_an_older_version_did_not_have_has_its_default():
    new = json.loads(saved_config.as_json(load()))
    old = json.loads(saved_config.as_json(load()))
    for section, name in (("data", "tokens"), ("pqt", "noise_per"), ("model", "num_kv_heads")):
        del old[section][name]
    del old["init_from"]
    assert saved_config.differences(old, new) == saved_config.differences(new, old) == []
    changed = json.loads(saved_config.as_json(load("model.num_kv_heads=1", "init_from=folder")))
    assert saved_config.differences(old, changed) == [
        "config.init_from was '' and is 'folder'",
        "config.model.num_kv_heads was 0 and is 1",
    ]
    del old["optimizer"]  # whose defaults are not those of the test
    assert saved_config.differences(old, new)[0].startswith(
        "config.optimizer.final_learning_rate was"
    )
    del new["model"]["d_model"]  # which has none
    assert "config.model.d_model was 32 and is None" in saved_config.differences(old, new)
    for damaged in ({"model": 3}, {"model": {"name": ["llama2"]}}, {}):
        assert saved_config.completed(damaged) == damaged


def test_fields_whose_names_begin_like_one_that_may_change_may_not():
    old, new = load(), load("model.attention_bias=qkv")
    assert saved_config.digest(old) != saved_config.digest(new)
    assert saved_config.differences(old.to_dict(), new.to_dict()) == [
        "config.model.attention_bias was 'none' and is 'qkv'"
    ]


def test_attention_may_change_when_a_run_is_resumed():
    old, new = load("model.attention=xla"), load()
    assert new.model.attention == "auto" and saved_config.digest(old) == saved_config.digest(new)
    assert saved_config.differences(old.to_dict(), new.to_dict()) == []


PARAMETERS = {
    "gpt2_124m": (50304 + 1024 + 1) * 768 + 12 * (12 * 768**2 + 2 * 768),
    "llama2_134m": 134_105_856,
    "llama2_1b": 1_055_991_808,
    "quickstart": 918_656,
}


def test_every_config_says_what_it_is_and_passes_its_checks():
    folder = pathlib.Path(QUICKSTART).parent
    assert {path.stem for path in folder.glob("*.py")} == {*PARAMETERS, "payoff_quickstart"}
    for name, parameters in PARAMETERS.items():
        path = folder / f"{name}.py"
        config = command_line.load(str(path))
        assert state.count_parameters(config) == parameters
        about = path.read_text().split('"""')[1]
        for word in ("Paper ", "Command ", "Text ", "Expect ", f"--config configs/{name}.py"):
            assert word in about, (name, word)
        if name != "quickstart":
            assert "Hours " in about and "not run here yet" in about
            assert config.data.tokens in ("data/openwebtext", "data/c4")
    config = command_line.load(str(folder / "llama2_1b.py"))
    assert (config.data.batch // config.data.microbatches) % config.mesh.fsdp == 0
