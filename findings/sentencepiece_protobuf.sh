#!/usr/bin/env bash
# SentencePiece 0.2.3 accepts any protobuf, and its own protobuf module loads with none below 7.36.1.
#
# Seen with sentencepiece 0.2.3 and protobuf 6.33.0 on Python 3.11: `pip install 'sentencepiece[protobuf]'`
# keeps protobuf 6.33.0, since the extra `protobuf` has no lower bound, and pip reports no conflict.
# `from sentencepiece import sentencepiece_model_pb2` then raises VersionError: the module was generated
# by protobuf 7.36.1, and a runtime may not be older. Many packages of this field still need protobuf
# below 7. Reading and using a model by SentencePieceProcessor needs no protobuf at all.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check protobuf==6.33.0 'sentencepiece[protobuf]==0.2.3'
"$folder/venv/bin/python" -m pip check
"$folder/venv/bin/python" - <<'PY'
import importlib.metadata

import sentencepiece

assert importlib.metadata.version("protobuf") == "6.33.0"
declared = [name for name in importlib.metadata.requires("sentencepiece") if "protobuf" in name]
print("declared:", declared)
assert all(name.startswith("protobuf;") for name in declared)  # no bound
sentencepiece.SentencePieceProcessor()
try:
    from sentencepiece import sentencepiece_model_pb2  # noqa: F401
except Exception as error:
    print(f"{type(error).__name__}: {error}")
    assert "gencode 7.36.1 runtime 6.33.0" in str(error)
else:
    raise SystemExit("it loads now")
PY
