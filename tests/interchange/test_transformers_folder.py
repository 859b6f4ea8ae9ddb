# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""transformers takes a whole folder: its tokenizer, its model, and both in a pipeline."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax import export, generate
from pqt_jax.analysis import model_card
from pqt_jax.analysis.open_weights import OpenModel
from pqt_jax.analysis.sampling import generate_tokens
from pqt_jax.data import tokenizer_files, tokenizers
from support import tiny
from support.exported import make as make_model
from support.exported import write_folder
from support.tokenizer_files import KINDS, SPELLED, make, many_texts

torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'peers'")

SIZES = {"bytes": 256, "tiktoken": 261, "model": 330, "json": 315}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def describe(kind, folder):
    """Our tokenizer, and the arguments of `make_files`."""
    path = make(kind, folder)
    tokenizer = tokenizers.load(path)
    content = b"" if path == "bytes" else (folder / tokenizer.name).read_bytes()
    return tokenizer, {"name": tokenizer.name, "end": "", "pattern": ""}, content


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
def test_auto_tokenizer_finds_our_tokens(tmp_path, kind):
    ours, *source = describe(kind, tmp_path)
    size = SIZES.get(kind, 512)
    found = tokenizer_files.make_files(*source, vocab_size=size, max_length=99)
    (tmp_path / "out").mkdir()
    tokenizer_files.write(tmp_path / "out", found)
    for model_type in ("llama", "gpt2"):
        config = {"model_type": model_type, "vocab_size": size, **found.ids}
        (tmp_path / "out/config.json").write_text(json.dumps(config))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        count = 0
        for text in many_texts():
            try:
                wanted = list(ours.encode(text.encode()))
            except tokenizers.TextError:
                continue
            count += 1
            assert theirs(text).input_ids == wanted
        assert count > 160
        split = transformers.AutoTokenizer.from_pretrained(
            tmp_path / "out", split_special_tokens=True
        )
        for text in SPELLED if kind in SIZES else ():
            wanted = list(ours.encode(text.encode()))
            assert theirs(text, split_special_tokens=True).input_ids == wanted
            assert split(text).input_ids == wanted
        end = theirs.eos_token
        spelled = theirs(f"a{end}b").input_ids  # here it is a token
        assert theirs.eos_token_id in spelled
        ids = [theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id]
        assert ids == list(found.ids.values())
        assert theirs.model_max_length == 99 and theirs.padding_side == "left"
        batch = theirs(["a b", "a b c 0"], padding=True)
        assert batch.input_ids[0][0] == theirs.pad_token_id and batch.attention_mask[0][0] == 0
        assert set(batch) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("kind", ["json", "model", "words"])
def test_auto_tokenizer_begins_as_documents_of_training(tmp_path, kind):
    """It would not by `add_bos_token` alone: if there is a tokenizer.json, that decides."""
    ours, about, content = describe(kind, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for begin in (1, None):
        found = tokenizer_files.make_files(
            {**about, "begin": begin}, content, vocab_size=512, max_length=99
        )
        tokenizer_files.write(tmp_path, found)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        start = [] if begin is None else [begin]
        assert theirs("a b c").input_ids == [*start, *ours.encode(b"a b c")]
        assert theirs.bos_token_id == (begin or ours.end)
        assert ("begins with token 1" in found.card) == (begin is not None)


CONFIGS = {"llama": tiny.LLAMA2, "gpt2": dataclasses.replace(tiny.GPT2, bias=True)}


def write(folder, kind, name, vocab_size):
    """A folder of a random model: (our tokenizer, our model)."""
    tokenizer, *source = describe(kind, folder)
    config, model = make_model(
        dataclasses.replace(CONFIGS[name], vocab_size=vocab_size), max_length=96
    )
    found = tokenizer_files.make_files(*source, vocab_size=vocab_size, max_length=96)
    write_folder(folder / "out", config, model, found)
    return tokenizer, model


CASES = [
    ("bytes", "llama", 256),
    pytest.param("json", "llama", 400, marks=pytest.mark.slow),
    ("json", "gpt2", 315),
]


@pytest.mark.parametrize("kind, name, size", CASES)
def test_a_greedy_continuation_is_ours(tmp_path, kind, name, size):
    tokenizer, model = write(tmp_path, kind, name, size)
    prompt = "the quick "
    ids = list(map(int, tokenizer.encode(prompt.encode())))
    graph, params = nnx.split(model)
    ours = generate_tokens(
        graph,
        params,
        jnp.array([ids]),
        steps=64,
        key=jax.random.key(0),
        temperature=0,
        vocab_size=tokenizer.vocab_size,
    )[0].tolist()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.float32
    assert theirs.config.eos_token_id == auto.eos_token_id not in ours and len(set(ours)) > 2
    batch = auto(prompt, return_tensors="pt")
    found = theirs.generate(**batch, max_new_tokens=64, do_sample=False)
    assert found[0].tolist() == ids + ours
    pipe = transformers.pipeline("text-generation", model=str(tmp_path / "out"))
    (result,) = pipe(prompt, max_new_tokens=64, do_sample=False)
    assert result["generated_text"] == tokenizer.decode(ids + ours).decode(errors="replace")


@pytest.mark.slow
def test_what_the_command_exports_continues_as_ours_does(trained_run, tmp_path, capsys):
    given = [f"--workdir={trained_run}", "--format=master", "--layout=huggingface"]
    assert export.main([*given, f"--out={tmp_path / 'out'}"]) == 0
    capsys.readouterr()
    sample = [f"--workdir={trained_run}", "--prompt=the quick ", "--temperature=0", "--tokens=20"]
    assert generate.main(sample) == 0
    ours = capsys.readouterr().out
    pipe = transformers.pipeline("text-generation", model=str(tmp_path / "out"))
    assert pipe.model.dtype == torch.float32
    (result,) = pipe("the quick ", max_new_tokens=20, do_sample=False)
    assert result["generated_text"] + "\n" == ours and len(ours) > 25


def test_tokens_that_the_tokenizer_lacks_are_not_drawn(tmp_path):
    _, model = write(tmp_path, "json", "llama", 400)
    head = np.array(model.head.kernel[...])
    head[:, :315] = 0  # so that all known tokens are less likely than some others
    nnx.update(model, {"head": {"kernel": jnp.asarray(head)}})
    other = tmp_path / "other"
    source = describe("json", tmp_path)[1:]
    found = tokenizer_files.make_files(*source, vocab_size=400, max_length=96)
    write_folder(other, model.config, model, found)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(other)
    prompt = torch.tensor([[5, 6, 7]])
    found = theirs.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=399)
    assert found[0, 3:].tolist() == [0] * 5
    theirs.generation_config.suppress_tokens = None
    found = theirs.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=399)
    assert (found[0, 3:] >= 315).all()


def test_the_card_is_one_of_the_hub(tmp_path):
    """Its metadata is valid YAML, and the rest is text."""
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra 'peers'")
    export = model_card.Export(
        layout="mlx",
        format="fp4_e2m1",
        tensors=[model_card.CardTensor("a.0.b", 64, 34, "FP4 E2M1", True)],
        tokenizer=tokenizer_files.make_none("it has none"),
        command="x",
    )
    model = OpenModel(
        config=tiny.LLAMA2,
        rules=(),
        origin="x",
        run_config=None,
        step=None,
        params=None,
        read=None,
    )
    card = hub.ModelCard(model_card.make(model, {}, export, ""))
    assert card.data.library_name == "mlx" and card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["pqt_jax", "llama", "fp4-e2m1", "mlx"]
    assert card.text.strip().startswith("# Llama with 64 parameters, FP4 E2M1")
