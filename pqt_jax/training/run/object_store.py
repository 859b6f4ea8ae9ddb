# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A folder in Google Cloud Storage for the checkpoints of a run, and the claim of that folder.

    config.log.store=gs://BUCKET/FOLDER    FOLDER/checkpoints/STEP/   by Orbax
                                           FOLDER/claim.txt          which run writes there

A bucket has no locks. So a run creates claim.txt on the condition that it is not there, and writes
it again every few seconds on the condition that nobody else has. Of two runs one succeeds, and no
clocks are compared. A claim that was not written for a minute belongs to a run that was killed, and
another run takes it over. If the first one still lives, its next write fails, which ends it.
"""

import contextlib
import importlib.util
import os
import socket
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from pqt_jax.console import exit_now, print_error, print_line
from pqt_jax.errors import InputError, OutputError

CLAIM = "claim.txt"
REFRESH, STALE = 15.0, 60.0  # seconds between writes, and without one until a claim is void
_COMPLETE = "commit_success.txt"  # which Orbax writes last
_PACKAGES = {"gcsfs": "gcsfs", "google.cloud.storage": "google-cloud-storage"}
_WAIT = 30.0  # seconds for an answer


def is_address(path: Any) -> bool:
    """Whether a path is in a bucket, as those of `open_folder` are."""
    return str(path).startswith("gs://")


def open_folder(folder: str) -> Any:
    """The folder as Orbax takes it: a path of etils, which has the methods of `pathlib.Path`.

    Raises:
      InputError: if a package that it needs is not installed.
    """
    from etils import epath

    for module, package in _PACKAGES.items():
        if not _is_installed(module):
            raise InputError(
                f"config.log.store={folder!r}; it needs {package}, which is not installed: "
                "pip install 'pqt_jax[object-store]'"
            )
    return epath.Path(folder)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent, as `google.cloud`
        return False


def check(folder: str) -> None:
    """Raise InputError if the bucket is not there, or may not be read."""
    open_folder(folder)
    with _input_errors(folder):
        bucket, _ = _locate(folder)
        bucket.reload(**_patience())  # as Orbax does


def saved_steps(folder: Any) -> set[int]:
    """The steps in a folder of checkpoints that are complete.

    Orbax would list by gcsfs, which does not see what another process has changed meanwhile.

    Raises:
      InputError: if the bucket cannot be read.
    """
    with _input_errors(folder):
        bucket, path = _locate(folder)
        listed = bucket.list_blobs(prefix=f"{path}/", delimiter="/", **_patience())
        list(listed)  # which fills `prefixes`, the folders
        return {
            int(name)
            for name in (prefix.removeprefix(f"{path}/").rstrip("/") for prefix in listed.prefixes)
            if name.isdecimal() and bucket.blob(f"{path}/{name}/{_COMPLETE}").exists(**_patience())
        }


def claim(folder: str) -> Callable[[], None]:
    """Claim a folder for this process, until it ends or calls the function that is returned.

    Raises:
      InputError: if another run holds it, or the bucket cannot be written.
    """
    content = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex}"
    with _input_errors(folder):
        bucket, path = _locate(folder)
        blob = bucket.blob(f"{path}/{CLAIM}")
        generation = _write(blob, content, 0) or _take_over(blob, content, folder)
    ended = threading.Event()
    arguments = (blob, content, generation, folder, ended)
    thread = threading.Thread(target=_refresh, args=arguments, daemon=True)
    thread.start()

    def release() -> None:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # then the claim is void in a minute
            found, generation = _read(blob)
            if found == content:
                _write(blob, "", generation)

    return release


def _take_over(blob: Any, content: str, folder: str) -> int:
    """Take a claim that its run has given up, or has not written for a minute."""
    holder, first = _read(blob)
    generation, deadline = first, time.monotonic() + STALE
    if holder:
        print_line(f"{folder} is claimed; waiting {STALE:.0f} s to see whether its run goes on")
    while holder and generation == first and time.monotonic() < deadline:
        time.sleep(1)
        holder, generation = _read(blob)
    if (holder and generation != first) or not (taken := _write(blob, content, generation)):
        raise InputError(
            f"config.log.store={folder!r} is in use by another run: {holder or 'a new one'}; end "
            "that, or give another folder"
        )
    return taken


def _refresh(blob: Any, content: str, generation: int, folder: str, ended: threading.Event) -> None:
    while not ended.wait(REFRESH):
        try:
            generation = _write(blob, content, generation)
        except Exception:  # of the network; the next write may succeed
            continue
        if not generation:
            print_error(f"error: {OutputError(folder, 'another run has claimed it')}")
            exit_now(OutputError.exit_code, flush=False)


def _write(blob: Any, content: str, generation: int) -> int:
    """Write an object if its generation is this one, 0 for none; the new generation, or 0."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    try:
        blob.upload_from_string(content, if_generation_match=generation, **_patience())
        return blob.generation
    except (NotFound, PreconditionFailed):
        found, generation = _read(blob)
        return generation if found == content else 0  # written, but the answer was lost


def _read(blob: Any) -> tuple[str, int]:
    """The content and the generation of an object; "" and 0 if there is none."""
    found = blob.bucket.get_blob(blob.name, **_patience())
    return (found.download_as_text(**_patience()), found.generation) if found else ("", 0)


def _patience() -> dict[str, Any]:
    """How long one call waits and tries again."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"timeout": _WAIT, "retry": DEFAULT_RETRY.with_timeout(_WAIT)}


def _locate(folder: Any) -> tuple[Any, str]:
    """The bucket of a folder, and its path in the bucket."""
    from google.cloud import storage

    name, _, path = str(folder).removeprefix("gs://").partition("/")
    return storage.Client().bucket(name), path.strip("/")


@contextlib.contextmanager
def _input_errors(folder: Any) -> Iterator[None]:
    """Raise InputError for what the client of Google Cloud Storage raises in a body."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException

    try:
        yield
    except (GoogleAPIError, GoogleAuthError, RequestException, OSError) as error:
        reason = textwrap.shorten(str(error), 200)
        raise InputError(
            f"config.log.store: {folder} cannot be used: {reason}; name a bucket that answers and "
            "that you may read and write, and log in by gcloud auth application-default login"
        ) from None
