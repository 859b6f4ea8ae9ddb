# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Where do tokens come from?

prepare → tokens     text files tokenized into a folder, read as streams of tokens
source               text files whose bytes are the tokens
boundaries           the token that ends a document
pipeline             tokens → shuffled batches
"""
