"""An object store as S3's, on this machine, for tests of URIs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.request import Request, urlopen

import pyarrow.fs

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTKEY", "AWS_SECRET_ACCESS_KEY": "hush/secret+key"}
BUCKET = "proteins"


class ObjectStore(NamedTuple):
    """A server, by its port."""

    port: int

    @property
    def query(self) -> str:
        """The query of URIs that lead to it."""
        return f"?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the environment with which URIs need no query."""
        return {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    @property
    def files(self) -> pyarrow.fs.FileSystem:
        """Its file system, whose paths begin with the name of a bucket."""
        access, secret = KEYS.values()
        return pyarrow.fs.S3FileSystem(
            access_key=access,
            secret_key=secret,
            endpoint_override=f"127.0.0.1:{self.port}",
            scheme="http",
            allow_bucket_creation=True,
        )

    def uri(self, key: str) -> str:
        """Return the URI of a key, which must have its escapes."""
        return f"s3://{BUCKET}/{key}{self.query}"

    def write(self, key: str, data: bytes) -> None:
        """Write an object, which pyarrow would compress if its suffix says so."""
        with self.files.open_output_stream(f"{BUCKET}/{key}", None) as file:
            file.write(data)

    def read(self, key: str) -> bytes:
        """Return the bytes of an object."""
        with self.files.open_input_stream(f"{BUCKET}/{key}", None) as file:
            data: bytes = file.read()
        return data

    def keys(self) -> list[str]:
        """Return the keys of all objects."""
        infos = self.files.get_file_info(pyarrow.fs.FileSelector(BUCKET, recursive=True))
        return sorted(info.path.removeprefix(f"{BUCKET}/") for info in infos if info.is_file)

    def clear(self) -> None:
        """Delete all objects."""
        self.post("reset")
        self.files.create_dir(BUCKET)

    def post(self, action: str, data: bytes = b"") -> None:
        """Ask the server itself for something."""
        url = f"http://127.0.0.1:{self.port}/moto-api/{action}"
        headers = {"Content-Type": "application/octet-stream"}
        urlopen(Request(url, data, headers), timeout=60).close()


@contextmanager
def run_store() -> Iterator[ObjectStore]:
    """Run a server in another process; yield it with an empty bucket."""
    command = [sys.executable, __file__]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        store = ObjectStore(int(server.stdout.readline()))
        try:
            store.clear()
            yield store
        finally:
            server.terminate()


def main() -> None:
    """Run the server until standard input is closed."""
    from moto.server import ThreadedMotoServer

    os.environ.update(KEYS)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
