"""An S3 server on this machine, in this process: moto's, which keeps objects in memory while its socket may go.

Looks at the objects through boto3, so that what hfprep did is not judged by hfprep's own eyes.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from hfprep.io import object_storage

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """A server with one bucket; `environment` leads clients to it."""

    def __init__(self, bucket: str) -> None:
        import boto3  # half a second, which the collection of tests need not take

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.bucket = bucket
        self.environment = CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}
        self.start()
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=bucket)

    def start(self) -> None:
        """Answer, with the objects that were there before."""
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Be gone: connections are refused."""
        self._server.stop()
        self._server._server.server_close()  # type: ignore[union-attr]  # stop() leaves the socket open

    def url(self, name: str) -> str:
        return f"s3://{self.bucket}/{name}"

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=name, Body=content)

    def put_folder(self, folder: Path, prefix: str) -> None:
        """Upload all files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def names(self, prefix: str) -> list[str]:
        """Keys under a prefix, without it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{prefix}/")
        return [item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", [])]

    def get(self, name: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.bucket, Key=name)["Body"].read()
        return content

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=name)

    def tree(self, prefix: str, *, private: bool = False) -> dict[str, bytes]:
        """Content of every object under a prefix, by its name."""
        names = self.names(prefix)
        return {name: self.get(f"{prefix}/{name}") for name in names if private or not name.startswith(".hfprep/")}

    def download(self, prefix: str, folder: Path) -> Path:
        """Copy everything under a prefix into a folder."""
        for name, content in self.tree(prefix, private=True).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@contextlib.contextmanager
def s3_server(bucket: str = "data") -> Iterator[S3Server]:
    """A server, and an environment that leads to it."""
    server = S3Server(bucket)
    object_storage._store.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("AWS_"):
                patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()
    object_storage._store.cache_clear()
    fsspec.filesystem("s3").clear_instance_cache()
