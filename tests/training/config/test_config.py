# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Configurations: overrides, checks, and what a bad one is told."""

import dataclasses
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from pqt_jax.errors import InputError
from pqt_jax.models import GPT2Config, Llama2Config, attention
from pqt_jax.training import state
from pqt_jax.training.config import command_line, schema, validation
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
        config = config[name]
    assert config == expected and type(config) is type(expected)


@pytest.mark.parametrize(
    "override, message",
    [
        ("stepps=1", "--config.stepps: no such field; did you mean config.steps?"),
        ("optimizer.learnin_rate=1", "did you mean config.optimizer.learning_rate?"),
        ("lerning_rate=1", "did you mean config."),
        (
            "zzzz=1",
            "--config.zzzz: no such field; there are data.batch, data.boundaries, data.end_",
        ),
        ("model=3", "--config.model=3: a section; its fields are model.attention, model.d_ff"),
        ("pqt=1", "--config.pqt=1: a section; its fields are pqt.average_bits, pqt.block"),
        ("optimizer.lr=1", "--config.optimizer.lr: no such field; there are optimizer.b1, opt"),
        ("pq.weight_decay=1", "did you mean config.pqt.weight_decay?"),
        ("optimzer.learning_rate=1", "did you mean config.optimizer.learning_rate?"),
        ("optimizer.learning_rate=inf", "=inf; it must be finite and more than 0"),
        ("optimizer.learning_rate=1e-300", "more than 0, and in float32 it is 0"),
        ("optimizer.b1=0.99999999999", "from 0 to below 1, and in float32 it is 1"),
        ("optimizer.weight_decay=1e300", "finite and 0 or more, and in float32 it is inf"),
        ("pqt.learning_rate=1e300", "finite and 0 or more, and in float32 it is inf"),
        ("optimizer.clip_norm=1e300", "finite and more than 0, and in float32 it is inf"),
        ("model.rope_theta=1e300", "finite and more than 0, and in float32 it is inf"),
        (
            "optimizer.final_learning_rate=1e38",
            "=1e+38; it must be nearer to config.optimizer.lear",
        ),
        ("log.every=1e30", "config.log.every=1e+30; it must be more than 0 and below 2^31"),
        ("seed=-1e15", "config.seed=-1e+15; it must be a whole number from 0"),
        ("pqt.block=1e30,32", "config.pqt.block=(1e+30, 32); it must be two integers"),
        ("pqt.block=(32,32", "config.pqt.block='(32,32'; it must be something like (32, 32)"),
        ("pqt.block=(32,32]", "config.pqt.block='(32,32]'; it must be something like (32, 32)"),
        ("steps=1.5", "config.steps='1.5'; it must be a whole number"),
        ("steps=many", "config.steps='many'; it must be a whole number"),
        ("steps=inf", "config.steps='inf'; it must be a whole number"),
        ("steps=0", "config.steps=0; it must be more than 0"),
        ("seed=-1", "config.seed=-1; it must be a whole number from 0"),
        ("method=int4", "config.method='int4'; it must be one of bf16, gaussws, uniform"),
        ("model.name=llama3", "config.model.name='llama3'; it must be one of llama2, gpt2"),
        ("model.name=gpt2", "is no field of it"),
        ("model.remat=maybe", "config.model.remat='maybe'; it must be true or false"),
        ("model.attention=flash", "config.model.attention='flash'; it must be auto, xla or cudnn"),
        (
            "model.attention=cudnn",
            "attention='cudnn'; it needs a GPU, and JAX finds none; give auto",
        ),
        ("model.dtype=float8", "config.model.dtype='float8'; it must be float32 or bfloat16"),
        ("model.vocab_size=100", "at least 256, one for each byte"),
        ("model.num_heads=5", "config.model.num_heads=5; it must divide config.model.d_model=32"),
        ("model.num_kv_heads=3", "config.model.num_kv_heads=3; it must divide "),
        ("data.length=33", "config.data.length=33; it must be at most config.model.max_length=32"),
        ("optimizer.learning_rate=nan", "config.optimizer.learning_rate=nan; it must be finite"),
        ("optimizer.b2=1", "config.optimizer.b2=1.0; it must be from 0 to below 1"),
        ("optimizer.warmup_steps=60", "warmup_steps=60; it must be less than config.steps=60"),
        ("pqt.weight_decay=-1", "config.pqt.weight_decay=-1.0; it must be finite and 0 or"),
        ("optimizer.name=lion", "config.optimizer.name='lion'; it must be one of adamw, adam_mini"),
        ("optimizer.schedule=step", "schedule='step'; it must be one of cosine, linear"),
        ("data.microbatches=3", "config.data.microbatches=3; it must divide config.data.batch=4"),
        ("data.microbatches=0", "config.data.microbatches=0; it must be more than 0"),
        ("data.loss_chunk=3", "config.data.loss_chunk=3; it must divide config.data.length=16"),
        ("data.boundaries=both", "config.data.boundaries='both'; it must be token or mask"),
        ("data.end_token=-2", "config.data.end_token=-2; it must be a token, or -1 for what the"),
        ("data.end_token=256", "end_token=256; it must be below config.model.vocab_size=256"),
        ("pqt.noise_per=token", "noise_per='token'; it must be step or microbatch"),
        ("pqt.noise_per=microbatch", "with config.data.microbatches=1 it must be step"),
        ("method=ste", "config.pqt.dtype='bfloat16'; with config.method='ste' it must be what"),
        ("pqt.pattern=h/(", "config.pqt.pattern='h/('; it does not compile"),
        ("pqt.block=7,7", "config.pqt.block=(7, 7); it must be two integers"),
        ("pqt.block=a,b", "something like (32, 32)"),
        ("pqt.target_bits=7", "target_bits=7.0, config.pqt.init_bits=6.0; the first must be at"),
        ("pqt.init_bits=1", "config.pqt.target_bits=4.0, config.pqt.init_bits=1.0; the first"),
        ("pqt.init_bits=17", "config.pqt.init_bits=17.0; it must be from 1 to 16"),
        ("pqt.dtype=float7", "config.pqt.dtype='float7' names no format"),
        ("learning_rate=3", "did you mean config.optimizer.learning_rate?"),
        ("OPTIMIZER.B1=0", "did you mean config.optimizer.b1?"),
        ("steps=3e9", "config.steps=3000000000; it must be more than 0 and below 2^31"),
        ("model.num_heads=32", "config.model.num_heads=32; it must divide config.model.d_model=32"),
        ("model.d_model=6", "config.model.d_model=6 into heads of even size"),
    ],
)
def test_a_bad_field_is_named_with_what_would_be_right(override, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(override)
    assert "\n" not in str(caught.value)


def test_cudnn_masks_windows_of_even_length(monkeypatch):
    chosen = lambda *_: attention.Choice("cudnn", "")  # noqa: E731
    monkeypatch.setattr(validation.attention, "choose", chosen)
    given = ("model.attention=cudnn", "data.boundaries=mask")
    load(*given)
    load("data.length=15")
    with pytest.raises(InputError, match="config.data.length=15; with .*='mask' it must be even"):
        load(*given, "data.length=15")


def test_the_command_line():
    config, workdir, *flags = command_line.parse(
        ["--config", TINY, "--config.steps", "1e2", "--config.seed=3"]
    )
    assert (config.steps, config.seed, str(workdir)) == (100, 3, "runs/tiny-gaussws")
    assert flags == [False, False]
    assert str(command_line.parse(["--config", TINY, "--workdir=x/y"]).workdir) == "x/y"
    with pytest.raises(AttributeError):
        config.stepps = 1  # locked
    wrong = str(pathlib.Path(TINY).parent / "tyni.py")
    for arguments, message in (
        ([], "--config is missing"),
        (["--config"], "expected one argument"),
        (["--config", TINY, "--steps=3"], "unknown argument '--steps'"),
        (["--config", TINY, "--config.steps"], "--config.steps has no value"),
        (["--config", wrong], "no such file; there is .*tiny.py"),
        (["--config", str(pathlib.Path(TINY).parent)], "is a directory; give a config file"),
        (["--config", TINY, "--workdir="], "--workdir= is empty"),
        (["--config="], "--config= is empty; give a config file"),
        (["--config", "x" * 5000], "File name too long; give a shorter path"),
        (["--config", "\0"], "give a config file"),
        (["--config", "/dev/null"], "is not a regular file; give a config file"),
    ):
        with pytest.raises(InputError, match=message):
            command_line.parse(arguments)


def test_only_config_files_are_offered_and_three_at_most(tmp_path):
    for name in "abcde":
        (tmp_path / f"{name}.py").write_text("def get_config(): pass" if name > "a" else "")
    there = f"there is {tmp_path}/b.py, {tmp_path}/c.py, {tmp_path}/d.py"
    for path in (tmp_path, tmp_path / "gone.py"):
        with pytest.raises(InputError, match=f"{there}$"):
            command_line.load(str(path))


def test_help_lists_the_fields(capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.parse(["--config", TINY, "--help"])
    shown = capsys.readouterr().out
    for name, _ in schema.fields(load()):
        assert f"config.{name}=" in shown


@pytest.mark.parametrize(
    "content, message",
    [
        ("def get_config(:", "SyntaxError"),
        ("x = 1", r"it has no function get_config\(\)"),
        ("import sys; sys.exit()", "SystemExit"),
        ("def get_config(): return {}", "must return a ConfigDict"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
    ],
)
def test_a_broken_config_file_is_one_line(tmp_path, content, message):
    (tmp_path / "broken.py").write_text(content)
    with pytest.raises(InputError, match=f"broken.py: .*{message}") as caught:
        command_line.load(str(tmp_path / "broken.py"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ("config.stepps = 5", "no field 'stepps'; did you mean 'steps'?"),
        ("config.optimizer.bb1 = 5", "no field 'bb1'; did you mean 'b1'?"),
        ("config.optimzer.b1 = 5", "no field 'optimzer'; did you mean 'optimizer'?"),
        ("config.zzz.b1 = 5", "no field 'zzz'"),
        ("config[3] = 3", "no field '3'"),
        ("config.unlock(); config.log = {3: 4}", "a field has a name that is no text"),
        ("config.unlock(); config[3] = 3", "a field has a name that is no text, as in c[3]"),
        ("config.steps = 'x'", "config.steps='x'; it must be a whole number"),
        ("config.optimizer.b1 = 'x'", "config.optimizer.b1='x'; it must be a number"),
        ("config.data.batch = 10**400", "config.data.batch: a whole number of 1329 bits"),
        ("config.log.every = 10**5000", "config.log.every: a whole number of 16610 bits"),
        ("config.pqt.block = 2, 10**5000", "config.pqt.block: a whole number of 16610 bits"),
        (
            "config.optimizer.b1 = 10**400",
            "OverflowError: int too large to convert to float (line 4)",
        ),
        ("config.unlock(); config.stepps = 5", "config.stepps: no such field; did you mean"),
        ("config.unlock(); del config.optimizer", "config.optimizer.b1 is missing"),
        ("config.optimizer = 3", "config.optimizer=3; it must be a section: optimizer.b1, "),
        ("config.unlock(); del config.data.files", "config.data.files is missing"),
        ("config.unlock(); del config.model", "config.model.name=None; it must be one of"),
        ("config.steps = None", "config.steps=None; it must be a whole number"),
        ("config.optimizer.b1 = None", "config.optimizer.b1=None; it must be a number"),
        ("config.model.remat = None", "config.model.remat=None; it must be true or false"),
        ("config = type(config)({'steps': 'x'})", "config.model.name=None"),
    ],
)
def test_a_config_file_has_the_fields_and_types_of_the_default(tmp_path, change, message):
    (tmp_path / "file.py").write_text(
        f"from support import tiny\ndef get_config():\n config = tiny.get_config()\n {change}\n return config\n"
    )
    with pytest.raises(InputError, match=f"file.py: .*{re.escape(message)}") as caught:
        command_line.load(str(tmp_path / "file.py"))
    assert "\n" not in str(caught.value)


def test_a_frozen_config_will_do(tmp_path):
    (tmp_path / "file.py").write_text(
        "from support import tiny\nfrom ml_collections import FrozenConfigDict\n"
        "def get_config(): return FrozenConfigDict(tiny.get_config())\n"
    )
    config = command_line.load(str(tmp_path / "file.py"), [("steps", "70")])
    assert config.to_dict() == load("steps=70").to_dict()


def test_bools_are_no_numbers():
    for section, name in (("optimizer", "b1"), ("optimizer", "learning_rate"), ("log", "every")):
        fields = tiny.get_config().to_dict()
        fields[section][name] = True
        config = ConfigDict(fields)
        with pytest.raises(InputError, match=f"config.{section}.{name}=True; it must be a"):
            validation.check(config)


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
    config = schema.default(model)
    validation.check(config)
    assert schema.model_config(config) == model
    assert dataclasses.asdict(model).keys() < dict(config.model).keys()


def test_methods_differ_in_their_rules_alone():
    kinds = {}
    assert schema.rules(load("method=diffq")) == []  # it samples outside the model
    for method in schema.METHODS.keys() - {"diffq"}:
        config = load(f"method={method}", "pqt.target_bits=3", "pqt.dtype=float6_e3m2fn")
        kinds[method] = [(rule.spec.noise, str(rule.spec.dtype)) for rule in schema.rules(config)]
        assert schema.quantization_rules(config)[0].spec.target_bits == 3
    # The baseline is BF16, whatever it is to be compared with.
    others = {"gaussws": [("gauss", "E3M2")], "uniform": [("uniform", "E3M2")]}
    others["ste"] = [("none", "E3M2")]
    assert kinds == {"bf16": [("none", "BF16")], **others}


def test_differences_name_fields_and_pass_over_logging():
    old = json.loads(schema.as_json(load()))
    assert schema.differences(old, old) == []
    changed = load("log.every=7", "seed=5", "pqt.block=16,16")
    assert schema.differences(old, json.loads(schema.as_json(changed))) == [
        "config.pqt.block was [32, 32] and is [16, 16]",
        "config.seed was 0 and is 5",
    ]
    assert schema.digest(load()) == schema.digest(load("log.every=7"))
    assert schema.digest(load()) != schema.digest(load("seed=5"))


def test_a_field_that_an_older_version_did_not_have_has_its_default():
    new = json.loads(schema.as_json(load()))
    old = json.loads(schema.as_json(load()))
    for section, name in (("data", "tokens"), ("pqt", "noise_per"), ("model", "num_kv_heads")):
        del old[section][name]
    del old["init_from"]
    assert schema.differences(old, new) == schema.differences(new, old) == []
    changed = json.loads(schema.as_json(load("model.num_kv_heads=1", "init_from=folder")))
    assert schema.differences(old, changed) == [
        "config.init_from was '' and is 'folder'",
        "config.model.num_kv_heads was 0 and is 1",
    ]
    del old["optimizer"]  # whose defaults are not those of the test
    assert schema.differences(old, new)[0].startswith("config.optimizer.final_learning_rate was")
    del new["model"]["d_model"]  # which has none
    assert "config.model.d_model was 32 and is None" in schema.differences(old, new)
    for damaged in ({"model": 3}, {"model": {"name": ["llama2"]}}, {}):
        assert schema.completed(damaged) == damaged


def test_attention_may_change_when_a_run_is_resumed():
    old, new = load("model.attention=xla"), load()
    assert new.model.attention == "auto" and schema.digest(old) == schema.digest(new)
    assert schema.differences(old.to_dict(), new.to_dict()) == []


PARAMETERS = {
    "gpt2_124m": (50304 + 1024 + 1) * 768 + 12 * (12 * 768**2 + 2 * 768),
    "llama2_134m": 134_105_856,
    "llama2_1b": 1_055_991_808,
    "quickstart": 918_656,
}


def test_every_config_says_what_it_is_and_passes_its_checks():
    folder = pathlib.Path(QUICKSTART).parent
    assert {path.stem for path in folder.glob("*.py")} == set(PARAMETERS)
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
