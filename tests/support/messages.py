# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What commands say, word for word, in one golden file per command."""

from support.paths import GOLDEN, ROOT


def check(command, messages):
    """Compare messages with `golden/messages/COMMAND.txt`.

    If they differ, the new file is written to `.cache/messages`; the failure says how to accept it.

    Args:
      command: such as "train".
      messages: {what was given: the one line that was said}.
    """
    text = "".join(f"{given}\n    {message}\n" for given, message in messages.items())
    golden, new = (folder / f"{command}.txt" for folder in (GOLDEN / "messages", ROOT / ".cache"))
    if not golden.exists() or golden.read_text() != text:
        new.parent.mkdir(exist_ok=True)
        new.write_text(text)
        old = golden.read_text().splitlines() if golden.exists() else []
        changed = [line for line in text.splitlines() if line not in old]
        raise AssertionError(
            f"{len(changed)} lines are not those of {golden.relative_to(ROOT)}: {changed[:6]}; "
            f"if they are better, cp {new.relative_to(ROOT)} {golden.relative_to(ROOT)}"
        )
