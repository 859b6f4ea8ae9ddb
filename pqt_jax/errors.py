# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The one exception that the command line turns into a line of text instead of a traceback."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, and what would be right."""
