# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The page that a run begins with: every fact, in two columns, in plain ASCII."""

import dataclasses
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from pqt_jax.errors import InputError
from pqt_jax.models import partitioning
from pqt_jax.models.attention import Choice
from pqt_jax.training import flops as costs
from pqt_jax.training import startup_summary
from pqt_jax.training.config import command_line
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.run import metrics
from pqt_jax.training.state import abstract_state, check_step_memory
from pqt_jax.transform.rules import Rule
from support import tiny
from support.command import main
from support.paths import ROOT


def gathered(config):
    mesh = partitioning.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    with partitioning.use_mesh(mesh):
        return startup_summary.gather_facts(
            config, mesh, "a text of 10 bytes", pathlib.Path("runs/x")
        )


def rows(text):
    """Name → value, its lines joined."""
    found, name = {}, ""
    for line in text.splitlines():
        head, value = line[: startup_summary.COLUMN].strip(), line[startup_summary.COLUMN :]
        name = head.removesuffix(":") or name
        assert not head or head.endswith(":"), line
        found[name] = f"{found[name]} {value}" if not head else value
    return found


def test_the_page_of_the_tiny_model():
    config = tiny.get_config()
    config.mesh.fsdp = 2
    text = startup_summary.format_summary(config, gathered(config))
    assert rows(text) == {
        "data": "a text of 10 bytes",
        "model": "llama2, 37,024 parameters",
        "shape": "2 layers, width 32, 2 heads, MLP 64, vocabulary 256",
        "method": "gaussws, adamw; computes in float32, parameters and moments in float32",
        "sampled": "20,480 parameters, 55.3 % of all",
        "rule": "h/.*/kernel: 7 arrays, 14 matrices, 20,480 weights; gauss noise, 6 to 4 bits, "
        "32x32, BF16",
        "mesh": "data=1 x fsdp=2 x tensor=1, 1 process, cpu",
        "attention": "xla: cudnn needs a GPU, and JAX finds none",
        "step": "64 tokens, 4 sequences of 16",
        "memory": "74.4 kB weights + 74.4 kB gradients + 149 kB moments + 80 bytes bits = 298 kB "
        "on each device; activations come on top",
        "workdir": "runs/x",
    }


def test_moments_are_of_the_dtype_of_the_parameters_and_the_page_says_so():
    config = tiny.get_config()
    config.model.param_dtype, config.method = "bfloat16", "bf16"
    _, state = abstract_state(config, make_optimizer(config))
    moments = [x.dtype for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert set(moments) == {jnp.dtype("bfloat16")}
    text = startup_summary.format_summary(config, gathered(config))
    assert rows(text)["method"].endswith("parameters and moments in bfloat16")


@pytest.mark.parametrize("name", ["quickstart", "gpt2_124m", "llama2_134m", "llama2_1b"])
def test_every_config_has_a_page_of_plain_text(name):
    overrides = [("method", "bf16"), ("mesh.data", "1")] if name == "quickstart" else []
    config = command_line.load(str(ROOT / "configs" / f"{name}.py"), overrides)
    text = startup_summary.format_summary(config, gathered(config))
    assert text.isascii() and max(map(len, text.splitlines())) <= startup_summary.WIDTH
    found = rows(text)
    assert found["mesh"].startswith("one device, 1 proc" if overrides else "data=")
    if overrides:
        assert found["sampled"] == "nothing" and "; no noise, 32x32, BF16" in found["rule"]
    else:
        assert 60 < float(found["sampled"].split()[2]) < 90
    if name == "llama2_1b":
        assert found["model"] == "llama2, 1,055,991,808 parameters"
        assert found["step"] == "524,288 tokens, 256 sequences of 2,048, in 4 microbatches"
        assert found["memory"].startswith("528 MB weights + 529 MB gradients + 1.06 GB moments")


def test_long_facts_are_wrapped_and_paths_stay_whole():
    config = tiny.get_config()
    path = pathlib.Path("runs") / ("x y" * 60)
    facts = dataclasses.replace(
        gathered(config),
        workdir=path,
        data="two  words " * 30 + "z" * 150,
        attention=Choice("cudnn", "because"),
        processes=2,
    )
    lines = startup_summary.format_summary(config, facts).splitlines()
    assert lines[-1] == f"workdir:     {path}"
    assert [line for line in lines[:-1] if len(line) > startup_summary.WIDTH] == [
        " " * 13 + "z" * 150
    ]
    assert "attention:   cudnn: because" in lines and "mesh:        one device, 2 processes, cpu"


def test_each_rule_has_a_line_of_what_it_matches():
    shapes = {"a/kernel": (2, 64, 32), "b/kernel": (32, 32), "b/bias": (32,), "c/kernel": (32, 32)}
    shapes = {path: jax.ShapeDtypeStruct(shape, "float32") for path, shape in shapes.items()}
    rules = [Rule("c/.*", None), Rule("b/.*", noise="uniform", dtype="E2M1"), Rule(".*kernel")]
    assert startup_summary.describe_rules(rules, shapes) == [
        "c/.*: 1 array left alone",
        "b/.*: 1 array, 1 matrix, 1,024 weights; uniform noise, 6 to 4 bits, 32x32, FP4 E2M1",
        ".*kernel: 1 array, 2 matrices, 4,096 weights; gauss noise, 6 to 4 bits, 32x32, BF16",
    ]


def test_what_is_left_and_what_the_step_takes():
    config = tiny.get_config()
    assert rows(startup_summary.format_remaining(config, 0, 0.0)) == {
        "to go": "60 of 60 steps, 3,840 tokens: the log estimates the hours"
    }
    assert "30 of 60 steps, 1,920 tokens: 0.53 h at 1 tokens/s" in startup_summary.format_remaining(
        config, 30, 1.0
    )
    memory = SimpleNamespace(argument_size_in_bytes=2 * 10**9, temp_size_in_bytes=5 * 10**8)
    assert rows(startup_summary.format_step_memory(memory, 80 * 10**9)) == {
        "compiled": "2 GB arguments + 500 MB temporaries = 2.5 GB of 80 GB on each device"
    }
    assert "does not say" in startup_summary.format_step_memory(None, 1)
    check_step_memory(memory, 125 * 10**7)
    check_step_memory(None, 1)
    with pytest.raises(InputError, match="takes 2.5 GB on each device, and there are 1.2 GB"):
        check_step_memory(memory, 1249 * 10**6)
    sizes = {0: "0 bytes", 1000: "1 kB", 999_999: "1 MB", 2 * 10**15: "2,000.000 TB"}
    assert {n: startup_summary.format_bytes(n) for n in sizes} == sizes


@pytest.mark.slow
def test_the_command_prints_it_before_compilation_and_the_rest_after(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(costs.PEAK_FLOPS, "cpu", 1e9)
    assert main(tmp_path, "--config.steps=4") == 0
    (tmp_path / "run" / "summary.json").unlink()
    out, err = capsys.readouterr()
    names = [line.split(":")[0] for line in out.split("config.steps=4\n")[1].splitlines()]
    order = ["data", "model", "memory", "workdir", "to go", "compiled", "ready after"]
    at = [next(i for i, line in enumerate(names) if line.startswith(name)) for name in order]
    assert at == sorted(at) and err == ""
    first = metrics.read(tmp_path / "run" / "metrics.jsonl")[0]
    flops = costs.training_flops(tiny.LLAMA2, 16)
    assert first["mfu"] == pytest.approx(first["tokens_per_s"] * flops / 1e9, abs=1e-3)
    assert main(tmp_path, "--config.steps=4") == 0
    assert "to go:       0 of 4 steps, 0 tokens: 0.00 h at " in capsys.readouterr().out
