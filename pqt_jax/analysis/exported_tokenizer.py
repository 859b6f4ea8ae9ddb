# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Find the tokenizer that goes into an exported folder.

--workdir RUN   the run's copy; that of its data, for a run without; bytes for a run on text
--hf DIR        the files of DIR, as they are
"""

from argparse import Namespace
from pathlib import Path

from pqt_jax.analysis.open_weights import OpenModel
from pqt_jax.data import tokenizer_files
from pqt_jax.data.tokenizer_files import TokenizerFiles
from pqt_jax.training.run import tokenizer_copy

_BYTES = tokenizer_copy.TokenizerFile({"name": "bytes", "end": "", "pattern": ""}, b"")


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
        return tokenizer_files.copy(Path(options.hf))
    data = config.data
    tokenizer, workdir = None, Path(options.workdir)
    if tokenizer_copy.is_there(workdir):
        tokenizer = tokenizer_copy.read(workdir)
    elif not data.tokens:
        tokenizer = _BYTES
    elif Path(data.tokens).is_dir():
        tokenizer = tokenizer_copy.read_prepared(Path(data.tokens))
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
