# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A tokenizer → the files by which `AutoTokenizer` of transformers finds the same tokens.

    tokenizer.json           how text becomes tokens: of bytes written here, of *.json a copy, of
                             *.model and *.tiktoken converted; no special token is added but the
                             BOS of a model that was trained with it
    tokenizer.model          a copy of *.model
    tokenizer_config.json    special tokens
    generation_config.json   special tokens, and tokens that are never drawn

A text that spells a special token, such as "<|endoftext|>", is text for `Tokenizer.encode`.
AutoTokenizer makes it that token, unless it is called with split_special_tokens=True and the
vocabulary does not hold the name as a word.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pqt_jax.data import sentencepiece_conversion, tokenizer_conversion, tokenizer_kinds
from pqt_jax.errors import InputError, system_reason
from pqt_jax.interchange import byte_level, files, safetensors_io

JSON, MODEL = "tokenizer.json", "tokenizer.model"
CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
_TOKENIZERS = (JSON, MODEL, "vocab.json")  # a folder with one of these has a tokenizer
_COPIED = (
    *_TOKENIZERS,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    CONFIG,
    "chat_template.jinja",
    GENERATION,
)
_CARD = (
    "`AutoTokenizer.from_pretrained(FOLDER)` finds the tokens of training ({}). A text {}, as in "
    "training. A text that spells a special token becomes that token; in training it was text, as "
    "it is with `split_special_tokens=True`."
)
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # fields of config.json


class TokenizerFiles(NamedTuple):
    """What an exported folder has of a tokenizer.

    Attributes:
      files: name → content; empty if there is no tokenizer.
      ids: the fields `IDS` of config.json: token, or None.
      about: a line for the user, "tokenizer: …".
      card: a paragraph for the model card.
    """

    files: dict[str, bytes]
    ids: dict[str, Any]
    about: str
    card: str


def write(folder: Path, tokenizer: TokenizerFiles) -> None:
    """Write the files.

    Raises:
      OutputError: if they cannot be written.
    """
    for name, content in tokenizer.files.items():
        files.write(folder / name, content)


def make_none(reason: str, ids: Mapping[str, Any] | None = None) -> TokenizerFiles:
    """No tokenizer.

    Args:
      reason: why there is none.
      ids: those of the fields `IDS` that are known.
    """
    return TokenizerFiles(
        files={},
        ids={**dict.fromkeys(IDS), **(ids or {})},
        about=f"tokenizer: none, since {reason}",
        card=f"None, since {reason}.",
    )


def make_files(
    description: Mapping[str, Any],
    content: bytes,
    *,
    vocab_size: int,
    max_length: int,
    ends: bool = True,
    begins: bool = True,
) -> TokenizerFiles:
    """The files of a tokenizer.

    Args:
      description: the name of its file, or "bytes", the options of `tokenizers.load`, and "begin",
        the token before each document, if there is one.
      content: its file.
      vocab_size: number of tokens of the model.
      max_length: number of tokens that the model sees at most.
      ends: whether the model was trained on texts with the end token.
      begins: whether it has learned what follows the end token. Then this token is the BOS of the
        folder, as in GPT-2, with which one begins where there is no text, unless documents have a
        BOS. No text gets another.

    Raises:
      InputError: if a package is missing that reads the tokenizer.
    """
    name = description["name"]
    try:
        result, end = _convert(description, content, vocab_size)
    except tokenizer_conversion.Inexact as error:
        return make_none(f"no {JSON} stands for {name}: it {error}")
    except ImportError as error:
        raise InputError(
            f"{name}, the model's tokenizer, needs the package {error.name}; "
            "pip install 'pqt_jax[data]'"
        ) from None
    names, begin = _names(result), description.get("begin")
    usual = end if begins and ends else None
    ids = {
        "bos_token_id": usual if begin is None else begin,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    is_copy = name.endswith(".json") and begin is None and not _adds_tokens(result)
    processor = None if begin is None else _begin_with(begin, names[begin])
    written = {JSON: content if is_copy else _dump(result | {"post_processor": processor})}
    if name.endswith(".model"):
        written[MODEL] = content
    known = {field: token for field, token in ids.items() if token is not None}
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # it takes tokenizer.json as it is
        **{field.removesuffix("_id"): names[token] for field, token in known.items()},
        "add_bos_token": begin is not None,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "padding_side": "left",
    }
    written[CONFIG] = _dump(options, indent=2)
    generation: dict[str, Any] = dict(known)
    if never := list(range(max(names) + 1, vocab_size)):
        generation["suppress_tokens"] = never  # the model has them, and the tokenizer does not
    written[GENERATION] = _dump(generation, indent=2 if len(never) < 100 else None)
    start = "gets no BOS" if begin is None else f"begins with token {begin}, `{names[begin]}`"
    about, card = f"tokenizer: {name}", _CARD.format(name, start)
    if MODEL in written and result["model"]["type"] == "Unigram":
        about += f"; of equally likely tokens {JSON} may have others"
        card += " Of two ways to cut a text that are equally likely it may take the other."
    if not ends:
        about += f"; the model was not trained on its end token, {end}"
        card += (
            f" The model was not trained on the end token, {end}, which tools want. Give lm_eval "
            "`prefix_token_id=10`, a line break."
        )
    return TokenizerFiles(written, ids, about, card)


def _convert(
    description: Mapping[str, str], content: bytes, vocab_size: int
) -> tuple[dict[str, Any], int | None]:
    """(tokenizer.json, end token) of a tokenizer."""
    name, end = description["name"], description["end"]
    if name == "bytes":
        token = min(256, vocab_size - 1)
        return bytes_json(token), token
    if name.endswith(".model"):
        return sentencepiece_conversion.from_sentencepiece(content, end)
    if name.endswith(".tiktoken"):
        return tokenizer_conversion.from_tiktoken(content, end, description["pattern"])
    result = json.loads(content)
    tokens = {text: token for token, text in _names(result).items()}
    return result, tokenizer_kinds.find_end(end, tokens.get)


def bytes_json(end: int) -> dict[str, Any]:
    """The tokenizer.json of bytes.

    Tools need an end token to pad. If it is 255, that byte cannot be a token; no UTF-8 text has it.

    Args:
      end: the end token, 255 or 256.
    """
    vocabulary = {name: byte for byte, name in enumerate(byte_level.BYTE_NAMES) if byte != end}
    name = tokenizer_kinds.END_TOKENS[0]
    return byte_level.tokenizer_json(vocabulary | {name: end}, (name, end), pattern=None)


def is_bytes(path: Path) -> bool:
    """Whether a tokenizer.json is one of `bytes_json`.

    Raises:
      InputError: if it cannot be read.
    """
    return safetensors_io.read_json(path) in (bytes_json(255), bytes_json(256))


def copy(folder: Path, vocab_size: int) -> TokenizerFiles:
    """The files of the tokenizer of a Hugging Face folder, as they are.

    Args:
      folder: the folder.
      vocab_size: number of tokens of its model.

    Raises:
      InputError: if one cannot be read, or transformers would not load it.
    """
    path = folder / "config.json"
    config = safetensors_io.read_json(path)
    ids = {field: config.get(field) for field in IDS}
    for field, value in ids.items():
        may_be_list = field == "eos_token_id"
        tokens = value if isinstance(value, list) and may_be_list else [value]
        if value is not None and not all(type(token) is int for token in tokens):
            wanted = "null, a token or a list of tokens" if may_be_list else "null or a token"
            raise InputError(f"{path}: {field}={value!r:.80}; it must be {wanted}")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return make_none(f"{folder} has none", ids)
    copied = {}
    for path in (folder / name for name in _COPIED):
        if not path.is_file():
            continue
        if path.suffix == ".json":
            content = safetensors_io.read_json(path)
            if path.name == JSON:
                _check_vocabulary(content, vocab_size, path)
        try:
            copied[path.name] = files.read_bytes(path)
        except OSError as error:
            raise InputError(f"{path}: {system_reason(error, 'put it back')}") from None
    about = f"copied from {folder}"
    return TokenizerFiles(copied, ids, f"tokenizer: {about}", f"Its files are {about}.")


def _check_vocabulary(content: dict[str, Any], vocab_size: int, path: Path) -> None:
    """Raise InputError if a tokenizer.json makes tokens that the model does not have.

    Special tokens may: some tools add one for padding, which no text has.
    """
    try:
        token, name = max(_names(content | {"added_tokens": []}).items())
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} holds no model.vocab; put a whole copy there") from None
    if token >= vocab_size:
        raise InputError(
            f"{path} has token {token}, {name!r}, and the model has {vocab_size} tokens; put the "
            "model's own tokenizer there"
        )


def _begin_with(token: int, name: str) -> dict[str, Any]:
    """The post-processor of a tokenizer.json that puts a token before each text."""
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": sequence, "type_id": 0}} for sequence in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }


def _adds_tokens(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json adds special tokens to each text."""
    processor = content.get("post_processor")
    return processor is not None and processor["type"] != "ByteLevel"


def _names(content: dict[str, Any]) -> dict[int, str]:
    """Token → its name, of a tokenizer.json."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        names = {token: name for name, token in vocabulary.items()}
    else:  # of Unigram
        names = {token: name for token, (name, _) in enumerate(vocabulary)}
    return names | {token["id"]: token["content"] for token in content.get("added_tokens", ())}


def _dump(content: Any, indent: int | None = None) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode()
