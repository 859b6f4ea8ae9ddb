#!/usr/bin/env bash
# A possessive {1,3}+ in a tokenizer.json is read as a repetition: tiktoken's own pattern finds other tokens.
#
# Seen with tokenizers 0.23.3 and tiktoken 0.14.0 on Python 3.11. The pattern of cl100k_base in tiktoken
# has \p{N}{1,3}+, digits in groups of three at most, without going back. tokenizers accepts the same
# pattern in a Split, but there {1,3}+ means ({1,3})+, as in the Ruby syntax of Oniguruma, so a number of
# any length stays together. ?+, ++ and *+ of the same pattern are possessive in both. Nothing warns; only
# numbers of four digits and more have other tokens. With {1,3} alone both agree.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check tokenizers==0.23.3 tiktoken==0.14.0
"$folder/venv/bin/python" - <<'PY'
import inspect
import re

import tiktoken
import tokenizers
from tiktoken_ext import openai_public

(pattern,) = re.findall(r'"pat_str": r"""(.*?)""",', inspect.getsource(openai_public.cl100k_base))
print("tiktoken's pattern:", pattern)
assert r"\p{N}{1,3}+|" in pattern

ranks = {bytes([byte]): byte for byte in range(256)} | {b"12": 256, b"123": 257, b"1234": 258}
theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
print("tiktoken  ", theirs.decode_tokens_bytes(theirs.encode("1234")))
assert theirs.encode("1234") == [257, ord("4")]


def split(pattern, text):
    step = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return [piece for piece, _ in step.pre_tokenize_str(text)]


print("tokenizers", split(pattern, "1234"), split(pattern, "1234567"))
assert split(pattern, "1234") == ["1234"] and split(pattern, "1234567") == ["1234567"]
plain = pattern.replace("{1,3}+", "{1,3}")
assert split(plain, "1234567") == ["123", "456", "7"]
# The others are possessive.
assert split("ba?+a|.", "ba") == ["b", "a"] and split("a?a|.", "a") == ["a"]
assert split("a++a|.", "aa") == ["a", "a"] and split("a+a|.", "aa") == ["aa"]
PY
