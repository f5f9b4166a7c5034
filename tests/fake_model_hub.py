"""A server on this machine with the published models' files: as much of the Hub as fetching a snapshot takes."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hfprep.recipes.registry import DEFAULT, downloads, recipe


def commit_of(repository: str) -> str:
    """Each repository has a revision of its own."""
    return hashlib.sha1(repository.encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """As much of the hub's interface as fetching a snapshot takes, over the files of a models folder."""

    def __init__(self, checkpoints: Path, name: str = DEFAULT) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {
            (source.repository, name): (checkpoints / source.folder / name).read_bytes()
            for source in downloads(recipe(name))
            for name in source.files
        }
        self.bodies: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.break_after: dict[str, int] = {}
        self.claimed: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def hash(self, repository: str, name: str) -> str:
        return self.claimed.get(name) or hashlib.sha256(self.files[repository, name]).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            repository = "/".join(path.split("/")[2:4])
            if "/tree/" in path:
                entries = [
                    {"type": "file", "oid": "0" * 40, "size": len(data), "path": name}
                    | {"lfs": {"size": len(data), "oid": self.server.hash(repo, name), "pointerSize": 100}}
                    for (repo, name), data in self.server.files.items()
                    if repo == repository
                ]
                self.reply(json.dumps(entries).encode(), {}, body)
                return
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": "0" * 40}
                | ({"lfs": {"size": len(data), "sha256": self.server.hash(repo, name), "pointerSize": 100}})
                for (repo, name), data in self.server.files.items()
                if repo == repository
            ]
            self.reply(
                json.dumps({"id": repository, "sha": commit_of(repository), "siblings": siblings}).encode(), {}, body
            )
            return
        parts = path.split("/")
        repository, name = "/".join(parts[:2]), "/".join(parts[4:])
        if (repository, name) not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[repository, name]
        etag = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit_of(repository), "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        self.reply(data, headers, body, name)

    def reply(self, data: bytes, headers: dict[str, str], body: bool, name: str = "") -> None:
        wanted, start = self.headers.get("Range"), 0
        if wanted and body:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            self.server.ranges.append(f"{name}:{start}")
            headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        self.server.bodies[name] += bool(name)
        stop = self.server.break_after.get(name)
        self.wfile.write(data[start:stop])
        if stop is not None:
            self.close_connection = True


@contextmanager
def serve_models(checkpoints: Path, name: str = DEFAULT) -> Iterator[Hub]:
    """A running server with the files of one recipe; stops at the end of the block."""
    server = Hub(checkpoints, name)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hub_environment(url: str) -> dict[str, str]:
    """What makes the hub's library talk to a server here, and to it alone."""
    return {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # fmt: skip
