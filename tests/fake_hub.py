"""A server on this machine that speaks what is needed of the Hub's protocol, over real HTTP.

Repositories are made, files uploaded (small ones inside the commit, large ones through the LFS batch interface) and
committed, listed and downloaded. It keeps everything in memory, counts uploads, and can break off on request.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "a" * 34
LFS_BYTES = 2000  # a file of at least this size goes through LFS


@dataclass
class Repository:
    """One data set repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: ["0" * 40])

    @property
    def head(self) -> str:
        return self.commits[-1]


@dataclass
class Hub:
    """What the server holds, and what it has seen."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    break_after: int | None = None


def git_oid(data: bytes) -> str:
    """The id that git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(data: bytes) -> bool:
    return len(data) >= LFS_BYTES


class Handler(BaseHTTPRequestHandler):
    """Requests by method and path."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def answer(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        match parts:
            case ["datasets", user, name, "resolve", _, *path]:
                return self.resolve(f"{user}/{name}", "/".join(path))
            case ["api", "datasets", user, name, "tree", _, *path]:
                return self.tree(f"{user}/{name}", "/".join(path), parse_qs(url.query))
            case ["api", "datasets", user, name, "refs"]:
                head = self.hub.repositories[f"{user}/{name}"].head
                branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": head}
                return self.answer(200, {"branches": [branch], "converts": [], "tags": []})
            case ["api", "datasets", user, name, *_]:
                return self.info(f"{user}/{name}")
            case ["api", "whoami-v2"]:
                return self.answer(200, {"name": "user", "type": "user"})
        self.hub.unknown.append(f"{self.command} {self.path}")
        return self.answer(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})

    def do_PUT(self) -> None:
        oid, data = self.path.rpartition("/")[2], self.body()
        if self.hub.break_after is not None and len(self.hub.uploads) >= self.hub.break_after:
            self.close_connection = True
            return self.answer(400, {"error": "broken off"})
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self.hub.uploads.append(oid)
        return self.answer(200, {})

    def do_POST(self) -> None:
        data = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        match parts:
            case ["api", "repos", "create"]:
                return self.create(json.loads(data))
            case ["api", "validate-yaml"]:
                return self.answer(200, {"errors": [], "warnings": []})
            case ["api", "datasets", user, name, "preupload", _]:
                return self.preupload(f"{user}/{name}", json.loads(data))
            case ["api", "datasets", user, name, "commit", _]:
                return self.commit(f"{user}/{name}", data)
            case ["api", "datasets", user, name, "paths-info", _]:
                wanted = json.loads(data) if data[:1] == b"{" else parse_qs(data.decode())
                paths = wanted["paths"] if isinstance(wanted["paths"], list) else [wanted["paths"]]
                return self.answer(200, self.entries(f"{user}/{name}", paths))
            case ["datasets", user, name, "info", "lfs", "objects", "batch"]:
                return self.lfs(f"{user}/{name.removesuffix('.git')}", json.loads(data))
        self.hub.unknown.append(f"{self.command} {self.path}")
        return self.answer(404, {"error": "not found"})

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/datasets/{name}", "name": name, "id": "1"}
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this dataset repo", **url})
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        return self.answer(200, url)

    def preupload(self, repo: str, wanted: dict[str, Any]) -> None:
        files = self.hub.repositories[repo].files
        answers = []
        for item in wanted["files"]:
            mode = "lfs" if item["size"] >= LFS_BYTES else "regular"
            answer = {"path": item["path"], "uploadMode": mode, "shouldIgnore": False}
            if item["path"] in files:
                data = files[item["path"]]
                answer["oid"] = hashlib.sha256(data).hexdigest() if is_lfs(data) else git_oid(data)
            answers.append(answer)
        self.answer(200, {"files": answers})

    def lfs(self, repo: str, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}", "header": {}}}
            objects.append(answer)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, repo: str, data: bytes) -> None:
        repository = self.hub.repositories[repo]
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            match line["key"]:
                case "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    repository.files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del repository.files[value["path"]]
                case "header":
                    pass
                case key:
                    self.hub.unknown.append(f"commit {key}")
        oid = hashlib.sha1(data + repository.head.encode()).hexdigest()
        repository.commits.append(oid)
        url = f"{self.hub.url}/datasets/{repo}/commit/{oid}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def entries(self, repo: str, paths: list[str]) -> list[dict[str, Any]]:
        files, found = self.hub.repositories[repo].files, []
        for path in paths:
            path = path.strip("/")
            if path in files:
                data = files[path]
                entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
                if is_lfs(data):
                    oid = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
                found.append(entry)
            elif any(name.startswith(f"{path}/") for name in files):
                found.append({"type": "directory", "path": path, "oid": git_oid(path.encode())})
        return found

    def tree(self, repo: str, folder: str, query: dict[str, list[str]]) -> None:
        names = self.hub.repositories[repo].files
        prefix = f"{folder}/" if folder else ""
        inside = [name for name in names if name.startswith(prefix)]
        if folder and not inside:
            return self.answer(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})
        paths = set(inside) if query.get("recursive", ["false"])[0].lower() == "true" else set()
        paths |= {prefix + name[len(prefix) :].split("/")[0] for name in inside}
        return self.answer(200, self.entries(repo, sorted(paths)))

    def info(self, repo: str) -> None:
        repository = self.hub.repositories.get(repo)
        if repository is None:
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": name} for name in sorted(repository.files)]
        value = {"_id": "1", "id": repo, "sha": repository.head, "private": repository.private, "siblings": siblings}
        return self.answer(200, value | {"tags": [], "downloads": 0, "likes": 0, "disabled": False, "gated": False})

    def resolve(self, repo: str, path: str) -> None:
        repository = self.hub.repositories.get(repo)
        if repository is None or path not in repository.files:
            code = "RepoNotFound" if repository is None else "EntryNotFound"
            headers = {"X-Error-Code": code} | ({"X-Repo-Commit": repository.head} if repository else {})
            return self.answer(404, {"error": "not found"}, headers)
        data = repository.files[path]
        oid = hashlib.sha256(data).hexdigest() if is_lfs(data) else git_oid(data)
        headers = {"ETag": f'"{oid}"', "X-Repo-Commit": repository.head, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.answer(200, data, headers | {"Content-Length": str(len(data))})
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(end) if end else len(data) - 1, len(data) - 1)
        part = data[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self.answer(206, part, headers | {"Content-Length": str(len(part))})


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A running server with nothing on it; stops at the end of the block."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
