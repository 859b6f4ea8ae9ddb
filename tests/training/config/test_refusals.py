# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What is refused: fields, config files, command lines. The words are in golden/messages."""

import pathlib

import pytest

from pqt_jax.errors import InputError
from pqt_jax.models import attention
from pqt_jax.training.config import command_line, schema, validation
from pqt_jax.training.config.fields import from_values
from support import messages, tiny

TINY = str(pathlib.Path(tiny.__file__))
FIELDS = """
stepps=1
optimizer.learnin_rate=1
lerning_rate=1
learning_rate=3
OPTIMIZER.B1=0
zzzz=1
optimizer.zzzz=1
optimizer=3
steps=1.5
steps=many
steps=inf
steps=0
steps=3e9
steps=1e30
seed=-1
seed=4294967296
method=int4
method=ste pqt.dtype=bfloat16
method=ste pqt.dtype=float32
model.name=llama3
model.name=gpt2
model.remat=maybe
model.attention=flash
model.attention=cudnn
model.dtype=float8
model.vocab_size=0
model.vocab_size=100
model.num_heads=5
model.num_heads=32
model.d_model=6
model.num_kv_heads=3
model.head_dim=7
model.head_dim=-1
model.attention_bias=q
model.rope_scaling=yarn
model.rope_scaling=linear model.rope_factor=0
model.rope_factor=8
model.rope_low_freq_factor=4
data.length=33
data.microbatches=3
data.microbatches=0
data.loss_chunk=3
data.boundaries=both
data.end_token=-2
data.tokens=s3://bucket/tokens
log.store=s3://bucket/run
log.store=gs://bucket
log.store=runs/one
data.end_token=256
data.files=a data.tokens=b
optimizer.name=lion
optimizer.schedule=step
optimizer.learning_rate=nan
optimizer.learning_rate=1e-60
optimizer.learning_rate=1e-30 optimizer.final_learning_rate=1e30
optimizer.b2=1
optimizer.b2=0.99999999999
optimizer.warmup_steps=60
optimizer.schedule=wsd optimizer.decay_share=0.99
optimizer.decay_share=0
pqt.weight_decay=-1
pqt.noise_per=token
pqt.noise_per=microbatch
pqt.sample_once=True
data.microbatches=2 pqt.noise_per=microbatch pqt.sample_once=True
pqt.pattern=h/(
pqt.block=7,7
pqt.block=a,b
pqt.block=32
pqt.dtype=float7
pqt.target_bits=7
pqt.init_bits=1
pqt.init_bits=17
pqt.penalty=l1
pqt.penalty_weight=-1
pqt.average_bits=17
pqt.snap_at=1.5
pqt.target_bits=6 pqt.snap_at=0.9
pqt.begin_at=1
pqt.begin_at=0.5 pqt.round_at=0.5
method=bf16 pqt.begin_at=0.5
pqt.round_at=0.9 pqt.round_to=bf16
pqt.round_to=float7
method=ste pqt.round_to=fp4_e2m1
pqt.round_all_at=0
pqt.round_all_at=0.9
pqt.round_share=0.5 pqt.round_at=0.9 pqt.round_all_at=0.9
pqt.round_share=0.5 pqt.begin_at=0.9 pqt.round_all_at=0.9 method=ste pqt.dtype=fp4_e2m1
recipe=fp4 pqt.round_share=1 pqt.round_all_at=0.9
recipe=fp4 method=gaussws pqt.dtype=fp4_e2m1
pqt.round_at=0.9 pqt.round_to=E8M10
steps=10 optimizer.warmup_steps=0 recipe=fp4
steps=2 optimizer.warmup_steps=0 recipe=fp4 pqt.round_share=1
steps=5 optimizer.warmup_steps=0 pqt.begin_at=0.95
steps=20 optimizer.warmup_steps=0 pqt.begin_at=0.01
steps=20 optimizer.warmup_steps=0 pqt.round_at=0.01
steps=20 optimizer.warmup_steps=0 pqt.begin_at=0.5 pqt.round_at=0.501
steps=20 optimizer.warmup_steps=0 pqt.round_at=0.999999999999
steps=20 optimizer.warmup_steps=0 recipe=fp4 pqt.round_all_at=0.99
steps=20 optimizer.warmup_steps=0 pqt.snap_at=0.99
pqt.round_share=0
pqt.round_share=0.5
pqt.schedule=cosine
pqt.scale=round
pqt.scale=mse pqt.dtype=fp6_e3m2
diffq.min_bits=9
diffq.min_bits=0.5
diffq.max_bits=17
diffq.init_bits=15
diffq.group=0
diffq.groups=8
diffq.penalty=-1
diffq.learning_rate=nan
diffq.noise=gauss
method=diffq pqt.penalty=size
method=diffq pqt.snap_at=0.5
method=diffq data.microbatches=2 pqt.sample_once=True
method=diffq pqt.dtype=float6_e3m2fn
watch.skips=0
log.keep=0
log.tensorboard=yes
"""
FILES = """
def get_config(:
x = 1
import sys; sys.exit()
def get_config(): return {}
import nowhere_to_be_found
raise KeyboardInterrupt
class Odd(BaseException): pass; raise Odd('odd')
class Odd(BaseException): __str__ = exit; raise Odd
def get_config(): raise ValueError('two\\nlines')
"""
CHANGES = """
config.stepps = 5
config.optimizer.bb1 = 5
config.optimzer.b1 = 5
config.zzz.b1 = 5
config[3] = 3
config.unlock(); config.log = {3: 4}
config.unlock(); config[3] = 3
config.steps = 'x'
config.optimizer.b1 = 'x'
config.log.every = True
config.data.batch = 10**400
config.log.every = 10**5000
config.pqt.block = 2, 3, 4
config.pqt.block = 'wide'
config.optimizer.b1 = 10**400
config.unlock(); config.stepps = 5
config.unlock(); del config.optimizer
config.optimizer = 3
config.unlock(); del config.data.files
config.unlock(); del config.model
config.steps = None
config.optimizer.b1 = None
config.model.remat = None
config.model.name = 'gpt2'
config = type(config)({'steps': 'x'})
config.unlock(); config.sweep = {}
config.unlock(); config.me = config
config.model = config
"""


def refusal(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    line = str(caught.value)
    assert line and "\n" not in line and len(line) < 6000
    return line


def load(text):
    changes = [tuple(change.split("=", 1)) for change in text.split(" ")]
    validation.check_devices(command_line.load(TINY, changes))


def test_what_is_refused_is_named_with_what_would_be_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, words = pathlib.Path("file.py"), {}
    for text in FIELDS.split("\n")[1:-1]:
        words[text] = refusal(load, text)
        fields = [change.partition("=")[0] for change in text.split(" ")]
        assert any(f"config.{field}" in words[text] for field in fields)
    for text in FILES.split("\n")[1:-1]:
        file.write_text(text.replace("; raise", "\nraise"))
        words[text] = refusal(command_line.load, "file.py")
    for text in CHANGES.split("\n")[1:-1]:
        lines = ("def get_config():", "config = tiny.get_config()", text, "return config")
        file.write_text("from support import tiny\n" + "\n    ".join(lines) + "\n")
        words[text] = refusal(command_line.load, "file.py")
        assert words[text].startswith(("--config=file.py: ", "config."))
    file.rename("other.py")
    pathlib.Path("folder").mkdir()
    for arguments in (
        [],
        ["--config"],
        ["--config", "other.py", "--steps=3"],
        ["--config", "other.py", "--config.steps"],
        ["--config", "tyni.py"],
        ["--config", "no/such.py"],
        ["--config", "folder"],
        ["--config", "other.py", "--workdir="],
        ["--config="],
        ["--config", "/dev/null"],
    ):
        words[" ".join(map(repr, arguments)) or "(nothing)"] = refusal(
            command_line.parse, arguments
        )
    messages.check("train", words)
    for path, remedy in (("x" * 5000, "give a shorter path"), ("\0", "give a config file")):
        assert remedy in refusal(command_line.load, path)[-100:]


def test_only_config_files_are_offered_and_eight_at_most(tmp_path):
    for name in "abcdefghijk":
        (tmp_path / f"{name}.py").write_text("def get_config(): pass" if name > "a" else "")
    offered = ", ".join(f"{tmp_path}/{name}.py" for name in "bcdefghi")
    for path in (tmp_path, tmp_path / "gone.py"):
        assert f"; there is {offered} and 2 more" in refusal(command_line.load, str(path))


def test_a_folder_does_not_hide_the_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # as a run leaves it whose workdir has the config's name
    assert command_line.load("quickstart").method == "gaussws"


def test_help_fits_a_terminal(capsys):
    with pytest.raises(SystemExit):
        command_line.parse(["--help", "--config=quickstart"])
    lines = capsys.readouterr().out.splitlines()
    fields = lines[lines.index("Fields of the config file, which --config.field=value sets:") :]
    assert max(map(len, fields)) <= 80
    assert any("May change when a run is resumed." in line for line in fields)


def test_cudnn_masks_windows_of_even_length(monkeypatch):
    def choose(*_):
        return attention.Choice("cudnn", "")

    monkeypatch.setattr(validation.attention, "choose", choose)
    load("model.attention=cudnn data.boundaries=mask")
    load("data.length=15")
    line = refusal(load, "model.attention=cudnn data.boundaries=mask data.length=15")
    assert "config.data.length=15" in line and "it must be even" in line


def test_a_saved_config_is_checked_as_a_file_is():
    values = tiny.get_config().to_dict()
    assert from_values(schema.RunConfig, values).to_dict() == values
    values["optimizer"]["b1"] = True
    line = refusal(from_values, schema.RunConfig, values)
    assert line == "config.optimizer.b1=True; it must be a number"
    values["optimizer"]["b1"], values["data"]["batch"] = 0, "4"
    line = refusal(from_values, schema.RunConfig, values)
    assert line == "config.data.batch='4'; it must be a whole number"


def test_devices_that_are_not_there_are_named(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu':\nno TPU")

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr(validation.jax, "devices", devices)
    line = refusal(load, "steps=60")
    assert (
        line
        == "JAX finds no device of JAX_PLATFORMS=tpu: Unable to initialize backend 'tpu': no TPU"
    )
