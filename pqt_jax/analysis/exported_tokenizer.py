# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Find the tokenizer that goes into an exported folder.

--workdir RUN   the run's copy; that of its data, for a run without; bytes for a run on text
--hf DIR        the files of DIR, as they are
"""

import tempfile
from argparse import Namespace
from pathlib import Path

from pqt_jax.analysis.open_weights import OpenModel
from pqt_jax.data import tokenizer_files, tokenizers
from pqt_jax.data.tokenizer_files import TokenizerFiles
from pqt_jax.interchange import files, gguf_tokenizer
from pqt_jax.interchange.gguf_reader import Value
from pqt_jax.training.run import tokenizer_copy
from pqt_jax.training.run.tokenizer_copy import TokenizerFile

_BYTES = TokenizerFile({"name": "bytes", "end": "", "pattern": ""}, b"")


def find(options: Namespace, model: OpenModel) -> TokenizerFiles:
    """The files of a model's tokenizer, for a folder that transformers loads.

    Args:
      options: with `workdir` and `hf`, as for `load.load_model`.
      model: from `open_weights.use_model`.

    Returns:
      The files, and the ids for config.json; no files where there is no tokenizer.

    Raises:
      InputError: if the tokenizer is damaged, or a package is missing that reads it.
    """
    config = model.run_config
    if config is None:
        return tokenizer_files.copy(Path(options.hf), model.config.vocab_size)
    data = config.data
    tokenizer = _find_file(options, model)
    if tokenizer is None:
        ids = {"eos_token_id": data.end_token if data.end_token >= 0 else None}
        return tokenizer_files.make_none(f"config.data.tokens={data.tokens!r} has none", ids)
    return tokenizer_files.make_files(
        *tokenizer,
        vocab_size=model.config.vocab_size,
        max_length=model.config.max_length,
        ends=bool(data.tokens),
        begins=data.boundaries != "mask",
    )


def find_gguf(options: Namespace, model: OpenModel) -> dict[str, Value]:
    """The metadata of a model's tokenizer, for a GGUF file.

    Args:
      options, model: as for `find`.

    Returns:
      name → value; without a tokenizer, what llama.cpp needs to load the file.

    Raises:
      InputError: as `find`, and if llama.cpp would make other tokens.
    """
    file = _find_file(options, model)
    if file is None:
        return {"tokenizer.ggml.model": "none"}
    name, pattern = file.description["name"], file.description["pattern"]
    with tempfile.TemporaryDirectory() as temporary:  # a tokenizer is loaded from a file
        path = "bytes"
        if name != "bytes":
            path = str(Path(temporary, name))
            Path(path).write_bytes(file.content)
        tokenizer = tokenizers.load(path, end=file.description["end"], pattern=pattern)
    begin = file.description.get("begin") if model.run_config is not None else tokenizer.begin
    return gguf_tokenizer.describe(
        name,
        file.content,
        model.config.vocab_size,
        begin=begin,
        end=tokenizer.end,
        pattern=pattern,
    )


def _find_file(options: Namespace, model: OpenModel) -> TokenizerFile | None:
    if (config := model.run_config) is None:
        folder = Path(options.hf)
        for name in (tokenizer_files.JSON, tokenizer_files.MODEL):
            if (path := folder / name).is_file():
                if name == tokenizer_files.JSON and tokenizer_files.is_bytes(path):
                    return _BYTES
                return TokenizerFile({**_BYTES.description, "name": name}, files.read_bytes(path))
        return None
    tokens, workdir = config.data.tokens, Path(options.workdir)
    if tokenizer_copy.is_there(workdir):
        return tokenizer_copy.read(workdir)
    if not tokens:
        return _BYTES
    return tokenizer_copy.read_prepared(Path(tokens)) if Path(tokens).is_dir() else None
