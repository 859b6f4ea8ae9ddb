# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""llama.cpp as the wheel of xllamacpp brings it, by its C interface; nothing is compiled.

A struct of parameters is passed by value, and is longer in newer versions: `_Struct` is longer than
any of them.
"""

import contextlib
import ctypes
import functools
import importlib.util
from pathlib import Path

import numpy as np

is_installed = importlib.util.find_spec("xllamacpp") is not None
_log = []


class _Struct(ctypes.Structure):
    _fields_ = [("content", ctypes.c_uint8 * 1024)]


class _Batch(ctypes.Structure):
    _fields_ = [("tokens", ctypes.c_int32)] + [(f"pointer{i}", ctypes.c_void_p) for i in range(6)]


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@_LOG
def _take_log(level, text, data):
    _log.append(text.decode(errors="replace"))


@functools.cache
def _library():
    folder = Path(importlib.util.find_spec("xllamacpp").origin).parent
    library = ctypes.PyDLL(str(folder / "xllamacpp.abi3.so"), mode=ctypes.RTLD_GLOBAL)
    library.llama_log_set.argtypes = [_LOG, ctypes.c_void_p]
    library.llama_log_set(_take_log, None)
    library.llama_backend_init()
    return library


def _call(name, result, *arguments):
    """Call a function; a NumPy array is passed as a pointer."""
    function = getattr(_library(), name)
    function.restype = result
    converted = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            argument = ctypes.c_void_p(argument.ctypes.data)
        converted.append(argument)
    return function(*converted)


class Refused(Exception):
    """llama.cpp does not load a file; what it logged."""


class Model:
    """A loaded file."""

    def __init__(self, path):
        _log.clear()
        parameters = _call("llama_model_default_params", _Struct)
        model = _call("llama_model_load_from_file", ctypes.c_void_p, str(path).encode(), parameters)
        self.log = "".join(_log)
        if not model:
            raise Refused(self.log[-1500:])
        self._model = ctypes.c_void_p(model)
        vocabulary = _call("llama_model_get_vocab", ctypes.c_void_p, self._model)
        self._vocabulary = ctypes.c_void_p(vocabulary)
        self.vocab_size = _call("llama_vocab_n_tokens", ctypes.c_int32, self._vocabulary)

    def close(self):
        _call("llama_model_free", None, self._model)

    def logits(self, tokens):
        """float32[tokens, vocabulary]: after each token."""
        parameters = _call("llama_context_default_params", _Struct)
        content = np.ctypeslib.as_array(parameters.content)
        content[:4] = np.array([256], np.uint32).view(np.uint8)  # the size of the context
        context = _call("llama_init_from_model", ctypes.c_void_p, self._model, parameters)
        context = ctypes.c_void_p(context)
        _call("llama_set_n_threads", None, context, ctypes.c_int32(1), ctypes.c_int32(1))
        rows = []
        for token in tokens:
            one = np.array([token], np.int32)
            batch = _call("llama_batch_get_one", _Batch, one, ctypes.c_int32(1))
            assert _call("llama_decode", ctypes.c_int32, context, batch) == 0
            floats = ctypes.POINTER(ctypes.c_float)
            row = _call("llama_get_logits_ith", floats, context, ctypes.c_int32(-1))
            rows.append(np.ctypeslib.as_array(row, (self.vocab_size,)).copy())
        _call("llama_free", None, context)
        return np.stack(rows)

    def tokenize(self, text, special=False):
        """The tokens of bytes; with `special`, also those that the file adds."""
        tokens = np.zeros(len(text) + 8, np.int32)
        count = _call(
            "llama_tokenize",
            ctypes.c_int32,
            self._vocabulary,
            text,
            ctypes.c_int32(len(text)),
            tokens,
            ctypes.c_int32(tokens.size),
            ctypes.c_bool(special),
            ctypes.c_bool(False),
        )
        assert count >= 0
        return tokens[:count].tolist()

    def is_end(self, token):
        """Whether generation ends at this token."""
        return _call("llama_vocab_is_eog", ctypes.c_bool, self._vocabulary, ctypes.c_int32(token))


@contextlib.contextmanager
def load(path):
    model = Model(path)
    try:
        yield model
    finally:
        model.close()


class _Traits(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    ]


def dequantize(code, data, count):
    """The float32 values of a tensor of a type, by ggml."""
    traits = _call("ggml_get_type_traits", ctypes.POINTER(_Traits), ctypes.c_int(code)).contents
    convert = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    data, values = np.ascontiguousarray(data, np.uint8), np.zeros(count, np.float32)
    convert(traits.to_float)(data.ctypes.data, values.ctypes.data, count)
    return values
