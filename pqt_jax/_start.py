# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Ctrl-C while a command imports its modules ends it as any program, without a traceback.

The package imports this module first. `console.run` and `signals` then handle Ctrl-C.
"""

import os
import signal
import sys

# Python's own name for a module that `python -m` has not found yet, and what pip installs.
_COMMANDS = ("-m", "pqt-")

if os.path.basename(sys.argv[0] if sys.argv else "").startswith(_COMMANDS):
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
